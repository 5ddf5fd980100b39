"""boards.py: real and imagined boards of the hidden game are alike, and go on after a restart as if nothing had happened."""

import copy
import math
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from worlds import TrueWorld

import hop_ppo
import pretrain_vae
import tracking
import train_world_model
from boards import (
    Imagined,
    Minds,
    Real,
    Remembered,
    recorded_starts,
    remember,
    sample,
    sights,
)
from data import DataError
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import load_transitions
from data.trajectories import save_arrays
from envs import Rules
from envs.stag_hunt import STAY, ended_by_rule, first_hunt_after
from envs.teams import LEARNER
from others import GoalBelief, Score
from pretrain_vae import VAE, OpponentTracker
from train_world_model import JointState, ObjectWorldModel, load_world_model

# As StagHunt-hidden-v0, on a board where all captures are soon seen, with so many blocks that distances differ.
HIDDEN = Rules(height=5, width=5, blocks=6, hunters=3, stags=1, hares=1, hunters_needed=3, stag_reward=15.0,
               end_after_first_hunt=1, horizon=25)  # fmt: skip


def call(script, folder, *flags):
    """A script in this process, in `folder`. Returns: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
        try:
            tracking.run(script.main, DataError)
        except SystemExit as stop:
            return stop.code
    return 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a VAE and a world model in it, trained for a few seconds on the hidden game."""
    folder = tmp_path_factory.mktemp("trained")
    data = collect(CollectArgs(samples=8000, strategies=("NS", "NH", "RANDOM"), rules=HIDDEN))
    save_arrays(folder / "hidden.npz", data.arrays())
    assert call(train_world_model, folder, "--data", "hidden.npz", "--epochs", 12) == 0
    assert call(pretrain_vae, folder, "--data", "hidden.npz", "--epochs", 3, "--batch-size", 64) == 0
    return folder


def play_at_random(game) -> dict[str, torch.Tensor]:
    """Boards played to their ends by hunters that walk at random, but mostly hunt the stag when they stand on it: of each
    board its length, and the stags and hares captured."""
    length, captured = torch.zeros(game.boards), torch.zeros(game.boards, game.rules.prey)
    while not game.ended.all():
        live = ~game.ended
        legal = sights(game, torch.zeros(*game.who.shape, 0))[1].legal
        game.step(sample((legal * torch.tensor([1.0, 1, 1, 1, 1, 50, 0.2]) + 1e-20).log()))
        length += live
        captured[live] = (game.prey == game.rules.cells)[live].float()
    return dict(length=length, stags=captured[:, 0], hares=captured[:, 1])


def test_ends_by_the_rule_by_hand():
    """The first capture counts: a later one, or prey that are gone for long, change nothing. Hunters have not all left."""
    gone, tick = HIDDEN.cells, torch.tensor([4, 4, 4, 4, 4])
    before = torch.tensor([[3, 8], [3, gone], [3, gone], [3, 8], [3, 8]])
    after = torch.tensor(
        [[3, gone], [gone, gone], [3, gone], [3, 9], [3, 8]]
    )  # captured, again, long ago, walked, stayed
    first_hunt = first_hunt_after(torch.tensor([-1, 0, 3, -1, -1]), tick, before, after, gone)
    assert first_hunt.tolist() == [4, 0, 3, -1, -1]
    hunters = torch.tensor([[gone, gone, 2]] * 4 + [[gone] * 3])
    assert ended_by_rule(tick, first_hunt, hunters < gone, HIDDEN).tolist() == [
        False,
        True,
        True,
        False,
        True,
    ]
    on = replace(HIDDEN, end_after_first_hunt=None)
    assert ended_by_rule(tick, first_hunt, hunters < gone, on).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("world", ["exact", pytest.param("learned", marks=pytest.mark.slow)])
def test_imagined_hidden_game_has_the_lengths_and_captures_of_the_real_one(world, request):
    torch.manual_seed(1)
    model = TrueWorld(HIDDEN)
    if world == "learned":
        model = load_world_model(newest(request.getfixturevalue("trained") / "wm_ckpts"))[0]
    real = Real(1500, HIDDEN, "self", seed=1)
    imagined = Imagined(1500, HIDDEN, "self", model, None)
    imagined.begin(*real.starts)
    expected, found = play_at_random(real), play_at_random(imagined)
    assert expected["stags"].mean() > 0.02 and expected["hares"].mean() > 0.1
    for key in expected:
        difference = found[key].mean() - expected[key].mean()
        standard_error = (found[key].var() / 1500 + expected[key].var() / 1500).sqrt()
        assert abs(float(difference)) < 3 * float(standard_error), key


# ---- networks that a game can use


def write_networks(folder, vae=None, world=None):
    """Untrained networks for HIDDEN, and what their checkpoints say besides."""
    torch.manual_seed(0)
    rules = asdict(HIDDEN)
    for kind, path, net, rest in (
        (
            "pretrain_vae",
            "vae_ckpts/vae__1/dim16",
            VAE(5, 5, 25),
            {"goals_trained": 7} if vae is None else vae,
        ),
        (
            "train_world_model",
            "wm_ckpts/wm__1",
            ObjectWorldModel(5, 5, [0.0, 1.0, 15.0]),
            {"rules": rules} if world is None else world,
        ),
    ):
        (folder / path).mkdir(parents=True)
        checkpoint = dict(
            kind=kind, model=net.state_dict(), sizes=net.sizes, args=dict(data="x", model="moves")
        )
        for name in ("best.pt", "last.pt"):
            tracking.save_checkpoint(folder / path / name, checkpoint | rest)
    return folder


GOAL_USERS = [dict(om="belief"), dict(real_ratio=0.5), dict(plan=True), dict(plan=True, co_players="self")]


@pytest.mark.parametrize("settings", GOAL_USERS)
def test_goal_heads_must_be_trained_where_they_are_used(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(write_networks(tmp_path, {"goals_trained": 0}))
    with pytest.raises(tracking.UsageError, match=r"vae__1: .*had no strategies.* name another with --vae"):
        hop_ppo.load_networks(hop_ppo.Args(**settings), HIDDEN)


@pytest.mark.parametrize(
    ("settings", "loads"),
    [(dict(om="latent"), "vae"), (dict(om="oracle"), ""), (dict(real_ratio=0.5, co_players="self"), "world"),
     (dict(plan=True, plan_model="rules"), "vae"), (dict(plan=True, co_players="self"), "vae world")],
)  # fmt: skip
def test_networks_that_are_loaded(settings, loads, tmp_path, monkeypatch):
    """z needs no goals; planning needs both networks, also of a self-play run, whose evaluation has scripted co-players."""
    monkeypatch.chdir(write_networks(tmp_path, vae={"goals_trained": 0} if settings.get("om") else None))
    vae, world = hop_ppo.load_networks(hop_ppo.Args(**settings), HIDDEN)
    assert (vae is not None, world is not None) == ("vae" in loads, "world" in loads)


@pytest.mark.parametrize(
    ("name", "value"),
    [("hunters_needed", 2), ("stag_reward", 6.0), ("hare_reward", 2.5), ("prey_moves", 0.5)],
)
def test_a_world_model_of_other_rules_is_refused(name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(write_networks(tmp_path, world={"rules": asdict(replace(HIDDEN, **{name: value}))}))
    flag, wanted = f"--rules.{name.replace('_', '-')}", getattr(HIDDEN, name)
    says = f"wm__1: .*{name} {value} where StagHunt-v0 has {wanted}: collect with .*{flag} {wanted:g} --out"
    with pytest.raises(tracking.UsageError, match=says):
        hop_ppo.load_networks(hop_ppo.Args(real_ratio=0.0, co_players="self"), HIDDEN)


def test_a_world_model_of_other_boards_is_accepted(tmp_path, monkeypatch, capsys):
    other = replace(HIDDEN, height=9, width=7, hunters=4, horizon=50, end_after_first_hunt=None)
    monkeypatch.chdir(write_networks(tmp_path, world={"rules": asdict(other)}))
    assert hop_ppo.load_networks(hop_ppo.Args(real_ratio=0.0, co_players="self"), HIDDEN)[1] is not None
    assert "not known" not in capsys.readouterr().out


def test_a_file_with_some_rules_only(tmp_path, monkeypatch):
    """A user's own file need not name every rule: what it does not name cannot be checked off."""
    monkeypatch.chdir(write_networks(tmp_path, world={"rules": {"hunters_needed": 3, "prey_moves": 0.0}}))
    with pytest.raises(tracking.UsageError, match=r"wm__1: .*stag_reward None where StagHunt-v0 has 15.0"):
        hop_ppo.load_networks(hop_ppo.Args(real_ratio=0.0, co_players="self"), HIDDEN)


def test_a_vae_of_other_rules_is_named(tmp_path, monkeypatch, capsys):
    """It may be used: its goal heads read boards, not rules."""
    learnt = asdict(replace(HIDDEN, stag_reward=10.0, horizon=35))
    monkeypatch.chdir(write_networks(tmp_path, vae={"goals_trained": 7, "rules": learnt}))
    hop_ppo.load_networks(hop_ppo.Args(om="belief"), HIDDEN)
    assert (
        "in StagHunt-v0 these rules are not those of its data: horizon, stag_reward\n"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("world", [{}, {"rules": None}])
def test_rules_that_are_not_known(world, tmp_path, monkeypatch, capsys):
    """What captures pay is all that can be checked."""
    monkeypatch.chdir(write_networks(tmp_path, world=world))
    args = hop_ppo.Args(real_ratio=0.0, co_players="self")
    hop_ppo.load_networks(args, HIDDEN)
    assert "wm__1: the rules of its data are not known" in capsys.readouterr().out
    with pytest.raises(
        tracking.UsageError, match=r"captures pay \[1.0, 9.0\] in StagHunt-v0, \[1.0, 15.0\] in what"
    ):
        hop_ppo.load_networks(args, replace(HIDDEN, stag_reward=9.0))


TINY = ("--num-envs", 8, "--num-steps", 4, "--total-timesteps", 64, "--eval-boards", 6, "--plan-boards", 3,
        "--oracle-simulations", 0, "--num-minibatches", 1)  # fmt: skip


def test_a_self_play_run_is_judged_with_planning(tmp_path, monkeypatch):
    """--evaluate loads the networks, and plans where there are scripted co-players."""
    write_networks(tmp_path)
    found = []
    monkeypatch.setattr(hop_ppo, "rules_of", lambda env_id: (HIDDEN, 1))
    monkeypatch.setattr(hop_ppo, "teams_of", lambda args, rules: ["self", "2NS"])
    monkeypatch.setattr(
        hop_ppo.Evaluator, "report", lambda self, agent, *rest: found.append(self.compare(agent))
    )
    assert call(hop_ppo, tmp_path, *TINY, "--co-players", "self") == 0
    run = newest(tmp_path / "ppo_ckpts")
    assert (
        call(hop_ppo, tmp_path, "--evaluate", run, "--plan", "--plan-simulations", 2, "--plan-samples", 1)
        == 0
    )
    assert "plan" not in found[0] and set(found[1]["plan"]) == {"2NS"}


# ---- imagined co-players


def test_imagined_random_co_players_are_uniform_over_legal_actions():
    torch.manual_seed(0)
    game, learner = Imagined(400, HIDDEN, "2RANDOM", TrueWorld(HIDDEN), VAE(5, 5, 25)), torch.arange(400)
    game.begin(*Real(400, HIDDEN, "self", 1).starts)
    shares = []
    for _ in range(8):
        other = (game.seats + 1) % 3
        seen = game.maps.see(learner, game.hunters, game.prey, game.clock, other, torch.zeros(400, 3, 0))
        steps = seen.there[:, 0] & (seen.legal.sum(1) == 3)  # STAY and two more: each a third
        game.step(torch.full((400,), STAY))
        done = game.actions.gather(1, other[:, None])
        assert seen.legal.gather(1, done).all()
        shares.append((done[:, 0] == STAY)[steps].float())
    share = torch.cat(shares)
    assert len(share) > 500 and abs(float(share.mean()) - 1 / 3) < 4 * (2 / 9 / len(share)) ** 0.5


@pytest.mark.parametrize("actions", ["legal", "any"])
def test_a_world_model_that_remembers_says_the_same(actions):
    """Its likeliest outcomes, rewards and ends, asked twice."""
    torch.manual_seed(0)
    plain = ObjectWorldModel(5, 5, [0.0, 1.0, 15.0]).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    quick = remember(copy.deepcopy(plain))
    assert remember(quick) is quick and isinstance(quick.end, Remembered)
    game = Real(60, HIDDEN, "self", 1)
    for _ in range(4):
        joint = torch.randint(7 if actions == "any" else 5, (60, 3))
        boards = JointState(game.blocks.float(), game.hunters, game.prey, 1)
        for _ in range(2):
            found, expected = (
                quick.step(boards, joint, most_likely=True),
                plain.step(boards, joint, most_likely=True),
            )
            assert torch.equal(found[0].hunters, expected[0].hunters) and torch.equal(
                found[0].prey, expected[0].prey
            )
            assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])
        game.step(joint)


def test_recorded_starts_are_the_first_boards_of_the_training_episodes(tmp_path):
    save_arrays(tmp_path / "few.npz", collect(CollectArgs(samples=900, rules=HIDDEN)).arrays())
    data = load_transitions(tmp_path / "few.npz")
    train = data.splits["train"]
    first = data.states[data.before[train[data.ticks[train] == 0]]]
    blocks, hunters, prey = recorded_starts(str(tmp_path / "few.npz"), HIDDEN)
    assert len(blocks) > 5
    planes = JointState(blocks.float(), hunters, prey, HIDDEN.stags).planes()
    assert torch.equal(planes.unflatten(2, (5, 5)), torch.as_tensor(first))
    for other in (
        replace(HIDDEN, hunters=4),
        replace(HIDDEN, width=6),
        replace(HIDDEN, hares=2),
        replace(HIDDEN, stags=0),
    ):
        game = (
            f"{other.hunters} hunters, {other.stags} stags and {other.hares} hares on 5x{other.width} cells"
        )
        with pytest.raises(DataError, match=f"expected episodes of {game}"):
            recorded_starts(str(tmp_path / "few.npz"), other)
    with pytest.raises(DataError, match="fresh: this file is for judging only"):
        recorded_starts("fresh", HIDDEN)


def test_scores_of_predictions_by_hand():
    """Two boards, the learner in seat 0. Co-players that are gone, and learners, do not count; RANDOM has no goal."""
    game = SimpleNamespace(
        rules=HIDDEN, who=torch.tensor([[-1, 0, 1], [-1, 2, 1]]), actions=torch.tensor([[0, 0, 1], [0, 2, 3]])
    )
    probs = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625, 0, 0]).expand(2, 3, 7)
    score = Score(game)
    there = torch.tensor([[True, True, True], [True, True, False]])
    belief = torch.tensor([[0.0, 0.9, 0.9], [0.0, 0.9, 0.1]])
    score.add(probs, there, torch.tensor([3, 4]), belief)
    found = score.read()
    nll = -(math.log(0.5) + math.log(0.25) + math.log(0.125)) / 3
    assert found.pop("moa_nll") == pytest.approx(nll)
    assert found == {"moa_top1": pytest.approx(1 / 3), "moa_top3": 1.0, "belief_accuracy_tick3": 0.5}
    assert score.read() == {}
    score.add(probs, torch.tensor([[False] * 3, [False, False, True]]), torch.tensor([3, 4]), belief)
    found = score.read()
    assert (found["moa_top1"], found["moa_top3"], found["belief_accuracy_tick4"]) == (0.0, 0.0, 1.0)


def test_imagined_teams_sit_everywhere():
    """Any seat is the learner's, and each co-player of `mixed` is NS or NH in half of the boards."""
    torch.manual_seed(0)
    game = Imagined(3000, HIDDEN, "mixed", TrueWorld(HIDDEN), VAE(5, 5, 25))
    game.begin(*Real(5, HIDDEN, "self", 1).starts)
    rows = torch.arange(3000)
    assert (game.who[rows, game.seats] == LEARNER).all() and ((game.who == LEARNER).sum(1) == 1).all()
    for seat in range(3):
        assert float((game.seats == seat).float().mean()) == pytest.approx(1 / 3, abs=0.05)
        who = game.who[game.seats != seat, seat]
        assert float((who == 0).float().mean()) == pytest.approx(0.5, abs=0.05) and who.max() == 1
    assert len({tuple(cells) for cells in game.hunters.tolist()}) == 5
    assert game.planes().shape == (3000, 3, 5, 5, 5)


# ---- a run that is killed and resumed


def test_tables_after_a_restart_are_those_of_the_boards_as_they_are():
    """Both of a game that goes on and of one that is built from its state; nothing is kept of boards before."""
    torch.manual_seed(0)
    vae = VAE(5, 5, 25).eval()
    game = Imagined(4, HIDDEN, "mixed", TrueWorld(HIDDEN), vae)
    game.begin(*Real(60, HIDDEN, "self", 1).starts)
    belief, every = GoalBelief(game, vae, 0.9), torch.ones(4, dtype=torch.bool)
    for _ in range(15):
        game.deal(every)
        belief.look()
    grown = len(belief.minds.policy.values)
    state = game.state_dict(), belief.state_dict()
    other = Imagined(4, HIDDEN, "mixed", TrueWorld(HIDDEN), vae)
    other.begin(*Real(9, HIDDEN, "self", 5).starts)
    others = GoalBelief(other, vae, 0.9)
    hop_ppo.load_games([(game, belief), (other, others)], [state, state])
    fresh = Minds(game, vae).policy.values.tolist()
    assert len(fresh) < grown
    for minds in (game.minds, belief.minds, other.minds, others.minds):
        assert minds.policy.values.tolist() == fresh
    torch.testing.assert_close(belief.look(), others.look(), rtol=0, atol=0)
    torch.testing.assert_close(belief.said, others.said, rtol=0, atol=0)


def newest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: int(path.name.split("__")[1]))


class Killed(Exception):
    pass


def killed_at(monkeypatch, evaluation: int) -> None:
    """The n-th evaluation from now on ends the process; a large n: none does."""
    left, play = [evaluation], PLAY

    def counted(self, *args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return play(self, *args, **kwargs)

    monkeypatch.setattr(hop_ppo.Evaluator, "play", counted)


PLAY = hop_ppo.Evaluator.play


def test_padding_after_a_restart_is_that_of_the_boards_as_they_are():
    """A board with two prey came first, then two with one: an Online that goes on, and one built from its state."""
    torch.manual_seed(0)
    vae = VAE(5, 5, 25).eval()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    planes, tick = Real(2, HIDDEN, "self", 1).planes(), torch.tensor([3, 4])
    online, other = OpponentTracker(vae, 2, 3), OpponentTracker(vae, 2, 3)
    online.predict(planes, tick)
    online.update(torch.full((2, 3), STAY))
    planes[:, :, 4] = 0  # no hare is left
    online.load_state_dict(online.state_dict())
    other.load_state_dict(online.state_dict())
    for found, expected in zip(online.predict(planes, tick), other.predict(planes, tick), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (
        online.log_likelihood.abs().sum() > 0 and online.fields[0].shape[1] == other.fields[0].shape[1] == 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("latent",), ("belief", "--real-ratio", 0.5)])
def test_resumed_equals_uninterrupted_with_trained_networks(flags, trained, tmp_path, monkeypatch):
    """Killed at three evaluations, one after another: the same bytes."""
    monkeypatch.setattr(hop_ppo, "rules_of", lambda env_id: (HIDDEN, 3))
    monkeypatch.setattr(hop_ppo.Evaluator, "report", lambda *args: None)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    flags = ("--num-envs", 24, "--num-steps", 5, "--total-timesteps", 24 * 5 * 33, "--eval-every", 3, "--eval-boards", 6,
             "--num-minibatches", 2, "--data", "hidden.npz", "--om", *flags)  # fmt: skip
    assert call(hop_ppo, tmp_path, *flags) == 0
    whole = newest(tmp_path / "ppo_ckpts")
    killed_at(monkeypatch, 2)
    with pytest.raises(Killed):
        call(hop_ppo, tmp_path, *flags)
    part = newest(tmp_path / "ppo_ckpts")
    for evaluation in (4, 3):
        killed_at(monkeypatch, evaluation)
        with pytest.raises(Killed):
            call(hop_ppo, tmp_path, "--resume", part)
    killed_at(monkeypatch, 99)
    assert call(hop_ppo, tmp_path, "--resume", part) == 0 and part != whole
    for name in ("progress.csv", "evaluations.csv"):
        assert (part / name).read_bytes() == (whole / name).read_bytes(), name
    found, expected = (tracking.load_checkpoint(folder / "last.pt", hop_ppo.KIND) for folder in (part, whole))
    assert found["update"] == 33
    for key in ("model", "optimizer", "games", "rng", "best"):
        torch.testing.assert_close(
            found[key], expected[key], rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}"
        )
