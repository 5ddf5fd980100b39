"""Co-players that learned: `--co-players population`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_script
from hidden_game import HIDDEN

import hop_ppo
import tracking
from benchmarks import population
from data.trajectories import load as load_trajectories
from envs import Rules
from envs.vector_env import LEARNER
from hop_ppo import Population, make_envs, to_tensors
from tracking import fit

GAME = ("--env-id", "StagHunt-hidden-v0")
TINY = ("--num-envs", 8, "--num-steps", 8, "--total-timesteps", 128, "--num-minibatches", 2, *GAME)
TINY += ("--eval-every", 1, "--eval-boards", 4, "--plan-boards", 4, "--team-episodes", 2)
play = run_script


def random_agent(seed: int, info_size: int = 0) -> hop_ppo.ActorCritic:
    torch.manual_seed(seed)
    agent = hop_ppo.make_agent("objects", HIDDEN, info_size)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return agent


def shorten_report(monkeypatch) -> None:
    monkeypatch.setattr(hop_ppo.Evaluator, "report", lambda *args: None)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a population of three policies: two to train with, one held out."""
    folder = tmp_path_factory.mktemp("population")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        shorten_report(monkeypatch)
        for seed in (1, 2, 3):
            assert play(monkeypatch, hop_ppo, "--seed", seed, *TINY) == 0
    runs = sorted((folder / "ppo_ckpts").iterdir())
    for number, run in enumerate(runs):
        run.rename(folder / f"partner{number}")
    write(folder, train=["partner0", "partner1"], held_out=["partner2"])
    return folder


def write(folder: Path, **content) -> None:
    whole = dict(game=dict(id="StagHunt-hidden-v0", args=[])) | content
    (folder / "population.json").write_text(json.dumps(whole), encoding="utf-8")
    hop_ppo.load_population.cache_clear()


def test_policies_play_as_they_would_as_learners():
    """Their probabilities are those of the same network as the learner of a row, whose seats are the hunters' own."""
    agents = [random_agent(1), random_agent(2)]
    envs = make_envs(HIDDEN, 16, "self")
    infos = to_tensors(envs.reset(seed=1)[1])
    rng = np.random.default_rng(2)
    for _ in range(20):
        mask = infos["action_mask"].numpy()
        infos = to_tensors(envs.step((mask * rng.random(mask.shape)).argmax(1))[-1])
    ids = rng.integers(-1, 2, (16, HIDDEN.hunters))
    found = Population(agents, HIDDEN)(envs.core, ids)
    obs = hop_ppo.observe_envs(infos, HIDDEN)
    nothing = torch.zeros(len(obs.active), HIDDEN.hunters - 1, 0)
    probs = torch.stack([agent(obs, nothing)[0].exp() for agent in agents])  # [2, B * A, 7]
    active = envs.core.active
    assert not active.all()
    for board, seat in np.ndindex(ids.shape):
        expected = np.eye(7)[4]
        if ids[board, seat] >= 0 and active[board, seat]:
            expected = probs[ids[board, seat], board * HIDDEN.hunters + seat].detach().numpy()
        np.testing.assert_allclose(found[board, seat], expected, atol=1e-6)


def test_each_co_player_of_a_team_is_drawn_and_stays():
    population = Population([random_agent(seed) for seed in range(3)], HIDDEN)
    envs = make_envs(HIDDEN, 300, population, team_episodes=2, episode="board")
    infos = to_tensors(envs.reset(seed=1)[1])
    first = infos["strategy_ids"]
    others = first[first != LEARNER].view(300, 2)
    assert (first == LEARNER).sum(1).tolist() == [1] * 300
    assert torch.equal((first == LEARNER).int().argmax(1), infos["seat"])
    pairs = torch.bincount(others[:, 0] * 3 + others[:, 1], minlength=9)
    assert pairs.min() > 15 and pairs.max() < 55  # 33 each
    everywhere = {"reset_mask": np.ones(300, bool)}
    second = to_tensors(envs.reset(options=everywhere)[1])["strategy_ids"]
    third = to_tensors(envs.reset(options=everywhere)[1])["strategy_ids"]
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_co_players_do_what_their_policy_says():
    """A policy that always goes on a legal action of the largest number, another that stays."""

    class Last(hop_ppo.ActorCritic):
        def forward(self, obs, info):
            last = obs.action_mask.shape[1] - 1 - obs.action_mask.int().flip(1).argmax(1)
            return torch.nn.functional.one_hot(last, 7).float().log(), None

    class Stay(hop_ppo.ActorCritic):
        def forward(self, obs, info):
            return torch.eye(7)[4].expand(len(obs.active), 7).log(), None

    envs = make_envs(HIDDEN, 50, Population([Stay(), Last()], HIDDEN))
    infos = to_tensors(envs.reset(seed=1)[1])
    cells = [infos[key].numpy() for key in ("hunters", "prey", "blocks")]
    masks = hop_ppo.legal_cells(*cells, HIDDEN)  # [B, A, 7]
    after = to_tensors(envs.step(np.full(50, 4))[-1])
    last = 6 - masks[..., ::-1].argmax(-1)
    ids = infos["strategy_ids"].numpy()
    expected = np.where(ids == 1, last, 4)
    np.testing.assert_array_equal(after["joint_actions"].numpy(), expected)


@pytest.mark.parametrize("om", ["gru", "oracle"])
def test_training_with_a_population_and_resuming(om, home, monkeypatch):
    """Killed after the first of two updates: the same weights and boards."""
    monkeypatch.chdir(home)
    shorten_report(monkeypatch)
    flags = (*TINY, "--om", om, "--co-players", "population", "--population", ".")
    assert play(monkeypatch, hop_ppo, "--exp-name", f"whole{om}", *flags) == 0

    evaluations = hop_ppo.Evaluator.play
    calls = []

    def stop_at_the_second(self, *args, **how):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return evaluations(self, *args, **how)

    monkeypatch.setattr(hop_ppo.Evaluator, "play", stop_at_the_second)
    with pytest.raises(RuntimeError, match="killed"):
        play(monkeypatch, hop_ppo, "--exp-name", f"part{om}", *flags)
    monkeypatch.setattr(hop_ppo.Evaluator, "play", evaluations)
    (whole,) = Path("ppo_ckpts").glob(f"whole{om}__*")
    (part,) = Path("ppo_ckpts").glob(f"part{om}__*")
    assert play(monkeypatch, hop_ppo, "--resume", part) == 0
    saved = [torch.load(folder / "last.pt", weights_only=True) for folder in (whole, part)]
    for key in ("model", "optimizer", "collectors", "rng"):
        torch.testing.assert_close(saved[0][key], saved[1][key], rtol=0, atol=0)
    ids = saved[0]["collectors"][0]["envs"]["strategy_ids"]
    assert set(ids.unique().tolist()) == {LEARNER, 0, 1}


def test_who_is_a_held_out_partner(home):
    args = hop_ppo.Args(env_id="StagHunt-hidden-v0", population=home.as_posix())
    rules, _ = hop_ppo.load_rules(args)
    agents = [hop_ppo.load_agent(home / f"partner{number}")[0].state_dict() for number in range(3)]
    expected = {"population": [0, 1], "population/1": [1], "held-out": [2], "held-out/0": [2]}
    for team, numbers in expected.items():
        team = hop_ppo.co_players_of(team, args, rules)
        assert team.size == len(numbers)
        for agent, number in zip(team.agents, numbers, strict=True):
            torch.testing.assert_close(agent.state_dict(), agents[number], rtol=0, atol=0)
    assert hop_ppo.co_players_of("1NS1NH", args, rules) == "1NS1NH"


ALL = ("--co-players", "population", "--population", ".")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--co-players", "population"),
            "--co-players population: needs --population: name the folder of one",
        ),
        (("--population", "."), "--population: needs --co-players population or held-out"),
        (
            ("--co-players", "population", "--population", "ppo_ckpts"),
            "no population.json there: make one: python -m",
        ),
        (("--co-players", "held-out/1", "--population", "."), "--co-players held-out/1: . has 1 of them"),
        (
            (*ALL, "--env-id", "StagHunt-v0"),
            "--population .: of --om none --env-id StagHunt-hidden-v0, the game is",
        ),
        ((*ALL, "--env-args", "hares=1"), "--env-args hares=1: name one of this game"),
        ((*ALL, "--oracle-simulations", 4), "--oracle: knows strategies, not the policies of ."),
        ((*ALL, "--om", "oracle", "--plan"), "--om oracle: knows policies of ., --plan has goals: leave one"),
        (
            (*ALL, "--om", "oracle", "--real-ratio", 0.5, "--imagined-co-players", "goals"),
            "--om oracle: knows policies of ., --real-ratio below 1 has goals: leave one out",
        ),
        ((*ALL, "--real-ratio", 0.5), "--real-ratio: its policies play on real boards alone"),
        (
            ("--om", "gru", "--real-ratio", 0.5),
            "--om gru: plays real boards, without a search: leave out --real-ratio",
        ),
        (("--om", "liam", "--plan"), "--om liam: plays real boards, without a search: leave out --plan"),
    ],
)
def test_invalid_settings_end_with_one_line(flags, message, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert play(monkeypatch, hop_ppo, *TINY, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.strip().count("\n") == 0, error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "population.json: expected JSON"),
        ("[]", "population.json: game: expected its id and args"),
        (dict(train=[], held_out=["partner0"]), "train: expected a list of run folders, found []"),
        (dict(train=["partner0"]), "held_out: expected a list of run folders, found None"),
        (dict(train=["partner0", "nowhere"], held_out=["partner2"]), "nowhere: no checkpoint there"),
        (
            dict(train=["oracle"], held_out=["partner2"]),
            "oracle: a co-player sees the board alone: needs --om none",
        ),
    ],
)
def test_a_damaged_population_is_one_line(content, message, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    shorten_report(monkeypatch)
    if "oracle" in message and not Path("oracle").exists():
        assert play(monkeypatch, hop_ppo, *TINY, "--exp-name", "oracle", "--om", "oracle") == 0
        next(Path("ppo_ckpts").glob("oracle__*")).rename("oracle")
        capsys.readouterr()
    before = Path("population.json").read_text(encoding="utf-8")
    if isinstance(content, str):
        Path("population.json").write_text(content, encoding="utf-8")
        hop_ppo.load_population.cache_clear()
    else:
        write(Path(), **content)
    try:
        assert play(monkeypatch, hop_ppo, *TINY, *ALL) == 2
        error = capsys.readouterr().err
        assert message in error and error.strip().count("\n") == 0, error
    finally:
        Path("population.json").write_text(before, encoding="utf-8")
        hop_ppo.load_population.cache_clear()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "population.json: expected JSON"),
        ('{"game": {"id": "StagHunt-v0", "args": null}}', "args: expected a list of rules, found None"),
        ('{"game": {"id": "StagHunt-v0", "args": [1]}}', r"args: expected a list of rules, found \[1\]"),
        ('{"game": {"id": "StagHunt-v0", "args": "hares"}}', "args: expected a list of rules, found 'hares'"),
    ],
)
def test_a_damaged_population_file_is_refused(content, message, tmp_path):
    (tmp_path / "population.json").write_text(content, encoding="utf-8")
    with pytest.raises(tracking.UsageError, match=message):
        fit.read_population(str(tmp_path), "StagHunt-v0", ())


def test_a_population_is_trained_policy_by_policy(tmp_path, monkeypatch):
    """Those that are there are kept; the first two seeds of each kind are to train with."""
    runs = []

    def run(*flags):
        runs.append(" ".join(map(str, flags)))
        (tmp_path / f"run{len(runs)}").mkdir()
        (tmp_path / f"run{len(runs)}" / "best.pt").write_bytes(runs[-1].encode())
        return str(tmp_path / f"run{len(runs)}")

    monkeypatch.setattr(population, "run", run)
    args = population.Args("train", folder=(tmp_path / "all").as_posix(), steps=9)
    population.train_population(args, HIDDEN)
    assert len(runs) == len(set(runs)) == 16
    common = "--env-id StagHunt-hidden-v0 --gamma 0.99 --seed 3 --total-timesteps 9 --num-envs"
    assert (tmp_path / "all/self3/best.pt").read_text() == f"{common} 341 --co-players self"
    assert (tmp_path / "all/one3/best.pt").read_text() == f"{common} 1024 --co-players 2NS"
    saved = json.loads((tmp_path / "all/population.json").read_text())
    assert saved["game"] == dict(id="StagHunt-hidden-v0", args=[])
    assert saved["train"] == [f"{kind}{seed}" for kind in ("self", "team", "mixed", "one") for seed in (1, 2)]
    assert saved["held_out"] == [
        f"{kind}{seed}" for kind in ("self", "team", "mixed", "one") for seed in (3, 4)
    ]
    (tmp_path / "all/mixed2/best.pt").unlink()
    population.train_population(args, HIDDEN)
    assert len(runs) == 17 and "--seed 2" in runs[-1] and runs[-1].endswith("mixed")
    args.env_id = "StagHunt-v0"
    with pytest.raises(tracking.UsageError, match="of --om none --env-id StagHunt-hidden-v0"):
        population.train_population(args, Rules())
    assert json.loads((tmp_path / "all/population.json").read_text()) == saved and len(runs) == 17


def test_goals_are_learnt_from_games_of_the_policies_to_train_with(home, monkeypatch, tmp_path):
    """Recorded once, in a file that says no strategy; none of those that are held out plays."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(population, "GAMES", 40)
    commands, teams = [], []
    monkeypatch.setattr(population, "call", lambda *words: commands.append(words) or "vae")
    recorded = hop_ppo.record_games
    monkeypatch.setattr(
        hop_ppo, "record_games", lambda *given: teams.append(given[1].co_players) or recorded(*given)
    )
    args = population.Args("methods", folder=".")
    rules, _ = hop_ppo.load_rules(hop_ppo.Args(env_id=args.env_id))
    assert population.learn_goals(args, rules) == population.learn_goals(args, rules) == "vae"
    games = home / "games.npz"
    assert commands == [("pretrain_vae.py", "--data", games, "--goals", "free")] * 2
    assert teams == ["population"]
    trajectories = load_trajectories(games)
    assert len(np.unique(trajectories.episode)) == 40 and trajectories.rules == rules
    games.unlink()
