"""Imagined boards: as long and as rewarding as real ones, with co-players of every team, from recorded boards."""

import shutil
from dataclasses import replace

import pytest
import torch
from games import board_starts, imagined_envs
from hidden_game import HIDDEN, TINY_HIDDEN, call, newest, train_networks
from worlds import TrueWorld

import hop_ppo
import tracking
from data import DataError
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import first_boards, load_transitions
from data.trajectories import save_arrays
from envs.stag_hunt import STAY, first_hunt_after
from envs.vector_env import LEARNER
from hop_ppo import GoalPolicy, make_envs, observe_envs, sample, to_tensors
from pretrain_vae import VAE
from train_world_model import CachedWorldModel, JointState, ObjectWorldModel, load_world_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a VAE and a world model in it, trained for a few seconds on the hidden game."""
    return train_networks(tmp_path_factory.mktemp("trained"))


# ---- the same game


def test_boards_end_by_the_rule_by_hand():
    """The first capture counts: a later one, or prey that are gone for long, change nothing. Hunters have not all left."""
    gone, tick = HIDDEN.cells, torch.tensor([4, 4, 4, 4, 4])
    before = torch.tensor([[3, 8], [3, gone], [3, gone], [3, 8], [3, 8]])
    # captured, again, long ago, walked, stayed
    after = torch.tensor([[3, gone], [gone, gone], [3, gone], [3, 9], [3, 8]])
    first_hunt = first_hunt_after(torch.tensor([-1, 0, 3, -1, -1]), tick, before, after, gone)
    assert first_hunt.tolist() == [4, 0, 3, -1, -1]
    active = torch.tensor([[gone, gone, 2]] * 4 + [[gone] * 3]) < gone
    ended = HIDDEN.ended(tick, first_hunt, active, after)
    assert ended.tolist() == [False, True, True, False, True]
    endless = replace(HIDDEN, end_after_first_hunt=None)
    assert endless.ended(tick, first_hunt, active, after).tolist() == [False] * 4 + [True]


def play_at_random(envs, infos) -> dict[str, torch.Tensor]:
    """Boards played to their ends by hunters that walk at random, but mostly hunt the stag when they stand on it: of each
    board its length, and the stags and hares captured."""
    weights = torch.tensor([1.0, 1, 1, 1, 1, 50, 0.2])
    over = torch.zeros(envs.num_envs, dtype=torch.bool)
    while not over.all():
        mask = observe_envs(infos, envs.rules).action_mask
        actions = sample((mask * weights + 1e-20).log())
        _, _, terminated, truncated, infos = envs.step(actions.numpy())
        infos = to_tensors(infos)
        over = torch.as_tensor(terminated) | torch.as_tensor(truncated)
    rows = slice(None, None, envs.rows_per_board)
    captured = (infos["prey"][rows] == envs.rules.cells).float()
    return dict(length=infos["tick"][rows].float(), stags=captured[:, 0], hares=captured[:, 1])


@pytest.mark.parametrize("world", ["exact", pytest.param("learned", marks=pytest.mark.slow)])
def test_imagined_hidden_game_has_the_lengths_and_captures_of_the_real_one(world, request):
    torch.manual_seed(1)
    boards = 1500
    model = TrueWorld(HIDDEN)
    if world == "learned":
        folder = newest(request.getfixturevalue("trained") / "wm_ckpts")
        model = load_world_model(folder)[0].on(HIDDEN.height, HIDDEN.width)
    rows = boards * HIDDEN.hunters
    real = make_envs(HIDDEN, boards, "self")
    first = to_tensors(real.reset(seed=1)[1])
    starts = tuple(first[key][:: HIDDEN.hunters] for key in ("blocks", "hunters", "prey"))
    imagined = imagined_envs(rows, HIDDEN, "self", starts, model, episode="board")
    expected = play_at_random(real, first)
    found = play_at_random(imagined, to_tensors(imagined.reset()[1]))
    assert expected["stags"].mean() > 0.02 and expected["hares"].mean() > 0.1
    for key in expected:
        difference = found[key].mean() - expected[key].mean()
        standard_error = (found[key].var() / boards + expected[key].var() / boards).sqrt()
        assert abs(float(difference)) < 3 * float(standard_error), key


# ---- co-players


def imagined_among(num_envs: int, team: str, starts: int):
    """Imagined boards of the hidden game, whose co-players are those of an untrained VAE. Returns: the infos, too."""
    policy = GoalPolicy(VAE(5, 5, 25), HIDDEN.prey_counts)
    starts = board_starts(HIDDEN, starts)
    envs = imagined_envs(num_envs, HIDDEN, team, starts, policy=policy, episode="board")
    return envs, to_tensors(envs.reset()[1])


def test_imagined_random_co_players_are_uniform_over_legal_actions():
    torch.manual_seed(0)
    envs, infos = imagined_among(400, "2RANDOM", 400)
    stay = torch.full((400,), STAY)
    shares = []
    for _ in range(8):
        other = (infos["seat"] + 1) % 3
        obs = observe_envs(infos | {"seat": other}, HIDDEN)
        # STAY and two more: each a third
        three = obs.active[:, 0] & (obs.action_mask.sum(1) == 3)
        infos = to_tensors(envs.step(stay)[4])
        actions = infos["joint_actions"].long().gather(1, other[:, None])
        assert obs.action_mask.gather(1, actions).all()
        shares.append((actions[:, 0] == STAY)[three].float())
    share = torch.cat(shares)
    standard_error = (2 / 9 / len(share)) ** 0.5
    assert len(share) > 500 and abs(float(share.mean()) - 1 / 3) < 4 * standard_error


def test_imagined_teams_sit_everywhere():
    """Any seat is the learner's, and each co-player of `mixed` is NS or NH in half of the boards."""
    torch.manual_seed(0)
    envs, infos = imagined_among(3000, "mixed", 5)
    seats, ids = infos["seat"], infos["strategy_ids"]
    assert (ids[torch.arange(3000), seats] == LEARNER).all()
    assert ((ids == LEARNER).sum(1) == 1).all()
    for seat in range(3):
        assert float((seats == seat).float().mean()) == pytest.approx(1 / 3, abs=0.05)
        others = ids[seats != seat, seat]
        assert float((others == 0).float().mean()) == pytest.approx(0.5, abs=0.05) and others.max() == 1
    assert len({tuple(cells) for cells in infos["hunters"].tolist()}) == 5
    assert envs.planes().shape == (3000, 3, 5, 5, 5)


# ---- the world model with a cache


@pytest.mark.parametrize("actions", ["legal", "any"])
def test_a_cached_world_model_predicts_the_same(actions):
    """Its likeliest outcomes, rewards and ends, asked twice; the second time no network is asked."""
    torch.manual_seed(0)
    plain = ObjectWorldModel(5, 5, [0.0, 1.0, 15.0]).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    cached = CachedWorldModel(plain)
    networks = (plain.hunter, plain.prey, plain.reward, plain.end)
    calls = []
    for network in (cached.hunter, cached.prey, cached.reward, cached.end):
        network.register_forward_hook(lambda *_: calls.append(1))
    envs = make_envs(HIDDEN, 60, "self")
    infos = to_tensors(envs.reset(seed=1)[1])
    for _ in range(4):
        joint = torch.randint(7 if actions == "any" else 5, (60, 3))
        blocks, hunters, prey = (infos[key][::3] for key in ("blocks", "hunters", "prey"))
        boards = JointState(blocks.float(), hunters, prey, HIDDEN.prey_counts)
        expected = plain.step(boards, joint, most_likely=True)
        for _ in range(2):
            calls.clear()
            after, rewards, ends = cached.step(boards, joint, most_likely=True)[:3]
            assert torch.equal(after.hunters, expected[0].hunters)
            assert torch.equal(after.prey, expected[0].prey)
            assert torch.equal(rewards, expected[1]) and torch.equal(ends, expected[2])
        assert not calls
        infos = to_tensors(envs.step(joint.flatten().numpy())[4])
    assert (plain.hunter, plain.prey, plain.reward, plain.end) == networks  # left as it was


# ---- boards to begin from


def test_first_boards_are_those_of_the_training_episodes(tmp_path):
    path = tmp_path / "few.npz"
    save_arrays(path, collect(CollectArgs(samples=900, rules=HIDDEN)).arrays())
    data = load_transitions(path)
    train = data.splits["train"]
    first = data.states[data.before[train[data.ticks[train] == 0]]]
    blocks, hunters, prey = map(torch.as_tensor, first_boards(path, HIDDEN))
    assert len(blocks) > 5
    planes = JointState(blocks.float(), hunters, prey, HIDDEN.prey_counts).planes()
    assert torch.equal(planes.unflatten(2, (5, 5)), torch.as_tensor(first))


@pytest.mark.parametrize("change", [dict(hunters=4), dict(width=6), dict(hares=2), dict(stags=0)])
def test_first_boards_of_another_game_are_refused(change, tmp_path):
    path = tmp_path / "few.npz"
    save_arrays(path, collect(CollectArgs(samples=900, rules=HIDDEN)).arrays())
    other = replace(HIDDEN, **change)
    prey = f"{other.stags} stags and {other.hares} hares"
    game = f"{other.hunters} hunters, {prey} on {other.height}x{other.width} cells"
    with pytest.raises(DataError, match=f"expected episodes of {game}"):
        first_boards(path, other)


def test_first_boards_of_a_file_that_judges_are_refused():
    with pytest.raises(DataError, match="fresh: this file is for judging only"):
        first_boards("fresh", HIDDEN)


# ---- a run that is killed and resumed


class Killed(Exception):
    pass


def kill_at(monkeypatch, evaluation: int) -> None:
    """The n-th evaluation from now on ends the process; a large n: none does."""
    remaining = [evaluation]

    def play(self, *args, **kwargs):
        remaining[0] -= 1
        if not remaining[0]:
            raise Killed
        return PLAY(self, *args, **kwargs)

    monkeypatch.setattr(hop_ppo.Evaluator, "play", play)


PLAY = hop_ppo.Evaluator.play


@pytest.mark.slow
def test_resumed_equals_uninterrupted_with_trained_networks(trained, tmp_path, monkeypatch):
    """Killed at three evaluations, one after another: the same bytes."""
    monkeypatch.setattr(hop_ppo, "load_rules", lambda args: (HIDDEN, 3))
    monkeypatch.setattr(hop_ppo.Evaluator, "report", lambda *args: None)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    steps = 24 * 5 * 24
    flags = (*TINY_HIDDEN, "--total-timesteps", steps, "--data", "hidden.npz")
    flags += ("--om", "belief", "--real-ratio", 0.5)
    assert call(hop_ppo, tmp_path, *flags) == 0
    whole = newest(tmp_path / "ppo_ckpts")
    kill_at(monkeypatch, 2)
    with pytest.raises(Killed):
        call(hop_ppo, tmp_path, *flags)
    part = newest(tmp_path / "ppo_ckpts")
    for evaluation in (4, 3):
        kill_at(monkeypatch, evaluation)
        with pytest.raises(Killed):
            call(hop_ppo, tmp_path, "--resume", part)
    kill_at(monkeypatch, 99)
    assert call(hop_ppo, tmp_path, "--resume", part) == 0 and part != whole
    for name in ("progress.csv", "evaluations.csv"):
        assert (part / name).read_bytes() == (whole / name).read_bytes(), name
    found, expected = (
        tracking.load_checkpoint(folder / "last.pt", hop_ppo.CHECKPOINT) for folder in (part, whole)
    )
    assert found["update"] == 24
    for key in ("model", "optimizer", "collectors", "rng", "best"):
        torch.testing.assert_close(
            found[key], expected[key], rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}"
        )
