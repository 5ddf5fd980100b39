"""pretrain_vae.py --goals free: how many goals there are, who has which, and the networks that are trained with them."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from commands import run_script
from games import check_draws
from saved import whole_checkpoint, write_run

import hop_ppo
import pretrain_vae
import train_world_model
from benchmarks import goals as populations
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import load_samples
from data.flatten import Args as FlattenArgs
from data.flatten import flatten
from data.trajectories import save_arrays
from envs import Rules, make_core, random_actions
from envs.game import STAY
from pretrain_vae import MOA, GoalEvidence, GoalMixture, OpponentTracker, TabularMOA

CPU = torch.device("cpu")
SMALL = Rules(hunters=3, height=5, width=5, blocks=2, stags=1, hares=3, horizon=12)


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """A file with three kinds of hunters, and who they are."""
    path = tmp_path_factory.mktemp("population") / "three.npz"
    who = populations.collect(SMALL, ("NH", "FOLLOW", "RANDOM"), 3, 4000, path)
    return path, who


# ---- hunters that follow others


def test_followers_go_to_the_nearest_other_hunter():
    """Without blocks shortest paths are as long as rows and columns together."""
    rules = Rules(hunters=4, height=6, width=5, blocks=0, horizon=20)
    env = make_core(64, rules)
    env.reset(seed=5)
    stayed = 0
    for _ in range(6):
        probs = populations.follow_probs(env)
        row, column = np.divmod(env.hunters, rules.width)
        distance = abs(row[:, :, None] - row[:, None]) + abs(column[:, :, None] - column[:, None])
        distance[:, range(4), range(4)] = 99
        least = distance.min(2)
        step = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
        for action in range(4):
            moved_row, moved_column = row + step[action, 0], column + step[action, 1]
            after = abs(moved_row[:, :, None] - row[:, None]) + abs(
                moved_column[:, :, None] - column[:, None]
            )
            brings_nearer = ((distance == least[..., None]) & (after == distance - 1)).any(2) & (least > 0)
            np.testing.assert_array_equal(probs[..., action] > 0, brings_nearer)
        np.testing.assert_array_equal(probs[..., STAY] == 1, least == 0)
        stayed += (least == 0).sum()
        np.testing.assert_allclose(probs.sum(2), 1)
        env.step(populations.sample_actions(probs, env.uniform(4)))
    assert stayed > 50


# ---- how many goals


def test_the_smallest_number_within_one_standard_error_by_hand():
    worse = np.array([1.0, 3.0, 1.0, 3.0])  # mean 2, standard deviation 1, standard error 0.5
    best = np.full(4, 1.0)
    assert pretrain_vae.smallest_sufficient({1: best + worse, 2: best + worse - 1.51, 3: best}) == 2
    assert pretrain_vae.smallest_sufficient({1: best + worse, 2: best + worse - 1.49, 3: best}) == 3
    assert pretrain_vae.smallest_sufficient({1: best, 2: best - 1e-9 * worse, 3: best + 1}) == 2
    assert pretrain_vae.smallest_sufficient({1: best, 2: best, 3: best}) == 1


def test_a_mixture_of_goals_by_hand():
    """One hunter with two actions, another with one; a goal that prefers the thing by log 3, and one that walks."""
    evidence = GoalEvidence(
        things=torch.tensor([[[1.0]], [[1.0]], [[1.0]]]),
        present=torch.tensor([[True], [False], [True]]),
        thing_probs=torch.tensor([[0.5], [0.9], [1.0]]),
        idle_probs=torch.tensor([[0.2, 0.25, 0.0], [0.2, 0.25, 1.0], [0.2, 0.0, 0.0]]),
        hunter=torch.tensor([0, 0, 1]),
    )
    far = -1e4
    mixture = GoalMixture(
        torch.tensor([[math.log(3)], [far]]),
        torch.tensor([[math.log(1 / 9), 0.0, far], [far, 0.0, far]]),
        torch.tensor([math.log(4), 0.0]),
    )
    first = 0.9 * (0.75 * 0.5 + 0.25 * 0.25) + 0.1 * 0.2
    second = 0.9 * 0.25 + 0.1 * 0.2  # there is no thing
    third = 0.9 * 0.75 + 0.1 * 0.2
    expected = [[0.8 * first * second, 0.2 * 0.25 * 0.25], [0.8 * third, 0.2 * 1e-20]]
    torch.testing.assert_close(
        mixture(evidence).double().exp(), torch.tensor(expected).double(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(mixture.without(1)(evidence)[1].exp(), torch.tensor([third]))
    torch.testing.assert_close(mixture(evidence.take(torch.tensor([1]))), mixture(evidence)[1:])


def test_evidence_of_one_board_by_hand():
    """A hunter one step to the right of a hare, a stag two steps below it, another hunter on its own cell."""
    path_free = dict(hunters=2, stags=1, hares=1, blocks=0, height=3, width=3, horizon=5)
    env = make_core(1, Rules(**path_free))
    env.reset(seed=1)
    state = env.state
    state.hunters[:], state.prey[:] = [[2, 2]], [[8, 1]]
    env.set_state(state)
    planes = torch.as_tensor(env.obs[0]).flatten(2).float()
    moa = MOA(3, 3, 1, 1, 1, 1, free_goals=True)
    moa.step_costs.data = torch.tensor([math.log(math.e - 1), 30.0])
    prey = moa.prey_nearness(planes[:1, 2:], 2)
    with torch.no_grad():
        features = moa.encode_board(planes[:1], torch.zeros(1).long(), prey, torch.zeros(1).long())
    kinds = features.kind[0].argmax(1).tolist()
    assert features.present.all() and sorted(kinds) == [0, 1, 2] and kinds[2] == 2
    nearness = dict(zip(kinds, features.own_nearness[0].tolist(), strict=True))
    assert nearness == pytest.approx({0: -2.0, 1: -1.0, 2: 0.0})
    gain = dict(zip(kinds, features.nearness_gain[0].tolist(), strict=True))
    assert gain[0][1] == pytest.approx(1) and gain[1][2] == pytest.approx(1)
    assert gain[2][1] == gain[2][2] == pytest.approx(-1)
    assert features.rival_nearness[0, 2] == pretrain_vae.UNREACHABLE


def test_finds_three_kinds_without_labels(population, monkeypatch):
    path, who = population
    monkeypatch.setattr(pretrain_vae, "MAX_GOALS", 4)
    monkeypatch.setattr(pretrain_vae, "GOAL_STEPS", 100)
    result = populations.judge(load_samples(path), who, seed=1)
    assert result["found"] == 3 and result["accuracy"] > 0.9


def test_accuracy_of_goals_by_hand():
    assert populations.accuracy(np.array([0, 0, 0, 1, 1]), np.array([2, 2, 0, 1, 1])) == pytest.approx(0.8)


# ---- the network


def test_the_loss_of_hunters_of_unknown_goals_by_hand():
    probs = torch.tensor([[[0.5, 0.5], [0.1, 0.9]], [[0.5, 0.5], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4]]])
    batch = pretrain_vae.Batch(
        planes=torch.zeros(3, 5, 4),
        boards=torch.zeros(1, 3, 4),
        board=torch.zeros(3).long(),
        max_prey=1,
        tick=torch.tensor([0, 1, 0]),
        action=torch.tensor([1, 1, 0]),
        goal=torch.full((3,), -1),
        trajectory_id=torch.tensor([0, 0, 2]),
        num_trajectories=3,
        num_ticks=2,
    )
    expected = -math.log((0.25 + 0.72) / 2) - math.log((0.3 + 0.6) / 2)
    assert pretrain_vae.mixture_nll(probs.log(), batch).item() == pytest.approx(expected)


def free_vae(**sizes):
    torch.manual_seed(0)
    model = pretrain_vae.VAE(5, 5, 12, behaviours=3, free_goals=True, **sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_free_goals_are_the_behaviours():
    moa = free_vae().moa
    assert (moa.num_goals, moa.first_goal, len(moa.code)) == (3, 0, 3)
    assert "free_goals" not in pretrain_vae.VAE(5, 5, 12).sizes, "as checkpoints that know none"


def test_a_goal_can_be_another_hunter(population):
    """What a free goal says depends on where other hunters are; the order of boards in a batch does not matter."""
    samples = load_samples(population[0])
    batches = pretrain_vae.make_batches(samples, CPU, "moa", "free")
    model = free_vae()
    with torch.no_grad():
        together = model(batches.take(np.arange(6)))
        alone = [model(batches.take(np.array([group]))).goal_logprobs for group in range(6)]
    torch.testing.assert_close(together.goal_logprobs, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert together.goal_logprobs.shape[1] == 3
    batch = batches.take(np.arange(1))
    moved = batch.planes.clone()
    moved[:, 1] = moved[:, 1].roll(1, 1)
    with torch.no_grad():
        difference = model(batch._replace(planes=moved)).goal_logprobs - model(batch).goal_logprobs
    assert difference.abs().max() > 0.01


def test_the_tracker_says_what_the_batch_does(population):
    samples = load_samples(population[0])
    batches = pretrain_vae.make_batches(samples, CPU, "moa", "free")
    model = free_vae()
    batch = batches.take(np.arange(1))
    first = batch.tick == 0
    with torch.no_grad():
        output = model(batch)
    tracker = OpponentTracker(model, 1, int(first.sum()))
    obs = batch.planes[first].to(torch.uint8).view(1, -1, 5, 5, 5)
    probs, _, goal_probs = tracker.predict(obs, torch.zeros(1).long())
    torch.testing.assert_close(goal_probs[0], output.goal_logprobs[first].exp(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(probs[0], output.action_logprobs[first].exp(), atol=1e-5, rtol=1e-4)


# ---- the script


def test_a_run_on_rows_without_strategies(tmp_path, monkeypatch, capsys):
    """Episodes of a flat file: nobody says who hunters are. Resumed and uninterrupted runs are the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain_vae, "MAX_GOALS", 2)
    monkeypatch.setattr(pretrain_vae, "GOAL_STEPS", 60)
    monkeypatch.setattr(pretrain_vae, "draw_figures", lambda *_: {})  # they take most of the time
    file = tmp_path / "rows.npz"
    kinds = ("NH", "RANDOM")
    rows = FlattenArgs(out="", rows=2400, all_observers=True, strategies=kinds, rules=SMALL)
    save_arrays(file, flatten(rows))
    flags = ("--goals", "free", "--data", file, "--batch-size", 512)
    mixed, loss_sums = [], pretrain_vae.loss_sums
    monkeypatch.setattr(
        pretrain_vae, "loss_sums", lambda *asked: (mixed.append(asked[2]), loss_sums(*asked))[1]
    )
    assert run_script(monkeypatch, pretrain_vae, *flags, "--epochs", 2) == 0
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "vae_ckpts").glob("vae__*/dim*")
    model, checkpoint = pretrain_vae.load_vae(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    number = metrics["free_goals"]["number"]
    assert f"[DATA] goals without labels: {number};" in out and "goal 0: " in out
    assert model.moa.num_goals == number == len(model.moa.code) and number > 1
    assert checkpoint["goals_trained"] == metrics["samples"]["train"]
    assert checkpoint["belief"].keys() == {"none", "hazard"} and metrics["belief"]["nll"] < 2
    assert metrics["goal"]["nll"] < metrics["uniform"]["nll"]

    half = len(mixed) // 2
    assert mixed == [False] * half + [True] * half, "first by the goals that were found"

    whole = torch.load(folder / "last.pt", weights_only=True)
    saved = []
    save_checkpoint = pretrain_vae.tracking.save_checkpoint
    with monkeypatch.context() as stop:

        def interrupt(path, checkpoint):
            save_checkpoint(path, checkpoint)
            saved.append(path)
            if checkpoint["epoch"] == 1 and path.name == "last.pt":
                raise KeyboardInterrupt

        stop.setattr(pretrain_vae.tracking, "save_checkpoint", interrupt)
        run_script(stop, pretrain_vae, *flags, "--epochs", 2, "--exp-name", "cut")
    cut = saved[-1].parent
    assert run_script(monkeypatch, pretrain_vae, "--resume", cut, "--data", file) == 0
    resumed = torch.load(cut / "last.pt", weights_only=True)
    assert resumed["history"] == whole["history"]
    for name, weights in whole["model"].items():
        assert torch.equal(weights, resumed["model"][name]), name


@pytest.mark.parametrize(
    "flags", [("--network", "plain"), ("--loss", "recon")], ids=["a network without a game", "no MOA"]
)
def test_free_goals_need_a_moa(flags, monkeypatch, capsys):
    assert run_script(monkeypatch, pretrain_vae, "--goals", "free", *flags) == 2
    assert "--goals free: needs --network moa with --loss moa or both" in capsys.readouterr().err


def test_free_goals_need_episodes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arrays = flatten(FlattenArgs(out="", rows=300))
    order = np.random.default_rng(0).permutation(300)
    np.savez(
        tmp_path / "shuffled.npz",
        **{key: value[order] if value.ndim else value for key, value in arrays.items()},
    )
    assert run_script(monkeypatch, pretrain_vae, "--goals", "free", "--data", tmp_path / "shuffled.npz") == 2
    assert "expected episodes, as --goals free needs, found rows" in capsys.readouterr().err


def test_recorded_strategies_are_no_labels_of_free_goals(tmp_path):
    save_arrays(tmp_path / "recorded.npz", collect(CollectArgs(samples=300)).arrays())
    samples = load_samples(tmp_path / "recorded.npz", split=False)
    batches = pretrain_vae.make_batches(samples, CPU, "moa", "free")
    assert (batches.goals == -1).all() and not batches.goal_known.any()


def test_tables_say_what_the_moa_says_of_free_goals(monkeypatch):
    """Also once they forget: boards are new at ticks 4 and 8, and the tables remember only two layouts a board."""
    monkeypatch.setattr(pretrain_vae, "REMEMBERED", 0)
    rules = Rules(
        hunters=4, height=5, width=5, blocks=3, hares=2, horizon=12, hunters_needed=1, prey_moves=0.3
    )
    B, A, K = 12, 4, 25
    model, env, rng = free_vae(), make_core(B, rules), np.random.default_rng(0)
    moa = model.moa
    env.reset(seed=3)
    table = TabularMOA(model, torch.as_tensor(env.blocks), torch.as_tensor(env.prey), rules.prey_counts)
    every = torch.arange(B)
    compared = 0
    for now in range(12):
        if now in (4, 8):
            env.reset(seed=now)
        hunters, prey, tick = (torch.as_tensor(part) for part in (env.hunters, env.prey, env.tick))
        planes = torch.as_tensor(env.obs).flatten(3).flatten(0, 1).float()
        with torch.no_grad():
            maps = moa.prey_nearness(planes.unflatten(0, (B, A))[:, 0, 2:], rules.prey)
            features = moa.encode_board(planes, every.repeat_interleave(A), maps, tick.repeat_interleave(A))
            expected = moa.action_logprobs(features).exp().view(B, A, 3, 7)
        table.update(every, torch.as_tensor(env.blocks), prey)
        found = table.probs(every, hunters, prey, tick.long())
        here = (hunters < K) & torch.as_tensor(~env.ended)[:, None]
        torch.testing.assert_close(found[here], expected[here], atol=1e-5, rtol=1e-4)
        compared += int(here.sum())
        if now == 10:
            check_draws(table, every, hunters, prey, tick.long(), torch.randint(4, (B, A)))
        env.step(random_actions(env, rng))
    assert compared > 200 and len(table.walls) < 3 * B


# ---- in play


@pytest.fixture
def playing(tmp_path, monkeypatch):
    """A folder with an untrained world model and a VAE with three goals. Returns: hop_ppo.py there, with more flags."""
    vae = whole_checkpoint(pretrain_vae, free_vae(), args=dict(goals="free"), game=SMALL.game.metadata())
    world_model = train_world_model.ObjectWorldModel(5, 5, [0.0, 1.0, 10.0])
    write_run(tmp_path / "vae_ckpts/vae__1/dim16", vae)
    write_run(tmp_path / "wm_ckpts/wm__1", whole_checkpoint(train_world_model, world_model))
    monkeypatch.chdir(tmp_path)
    rules = [f"{name}={value}" for name, value in asdict(SMALL).items() if value is not None]
    quick = [
        "--num-envs",
        16,
        "--num-steps",
        8,
        "--num-minibatches",
        2,
        "--eval-boards",
        4,
        "--plan-boards",
        2,
    ]
    return lambda *flags: run_script(monkeypatch, hop_ppo, "--env-args", *rules, *quick, *flags)


def test_beliefs_imagined_co_players_and_search_trees_take_any_number_of_goals(
    playing, tmp_path, monkeypatch
):
    drawn, films = [], []
    monkeypatch.setattr(hop_ppo, "PLAN_BOARDS", 8)
    monkeypatch.setattr(hop_ppo, "standard_teams", lambda co_players, rules: [co_players])
    monkeypatch.setattr(hop_ppo.figures, "save", lambda *args: None)
    monkeypatch.setattr(hop_ppo.figures, "play_film", lambda *args: films.append(args))
    sample = TabularMOA.sample
    monkeypatch.setattr(
        TabularMOA, "sample", lambda self, *states: drawn.append(states[-1].unique()) or sample(self, *states)
    )
    flags = "--om belief --real-ratio 0.5 --imagined-co-players goals --plan --plan-simulations 8 --plan-samples 2"
    assert playing(*flags.split(), "--plan-fit", "1", "--total-timesteps", "128") == 0
    assert torch.cat(drawn).unique().tolist() == [0, 1, 2, 3], "three goals, and none"
    (folder,) = (tmp_path / "ppo_ckpts").iterdir()
    agent, checkpoint = hop_ppo.load_agent(folder)
    assert agent.sizes["info_size"] == 3
    _, imagined = checkpoint["collectors"]
    assert imagined["opponents"]["log_belief"].shape == (8, 3, 4)
    assert imagined["envs"]["strategy_ids"].max() == 3, "and it can be read again"
    (row,) = checkpoint["history"]
    assert "moa_nll" in row and not any(name.startswith("belief_accuracy") for name in row)
    ((_, _, shows_belief, _),) = films
    assert not shows_belief


@pytest.mark.parametrize(
    "flags, who",
    [
        ("--real-ratio 0.5", "--real-ratio below 1 without --imagined-co-players goals"),
        ("--om oracle --plan", "--om oracle"),
    ],
)
def test_what_needs_goals_with_names_refuses_free_ones_in_one_line(flags, who, playing, capsys):
    assert playing(*flags.split()) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert f"of --goals free, goals without names, which {who} cannot use: name a VAE" in line
