"""What a policy knows of its co-players: how good predictions are, what is kept of earlier boards, whose turn it is."""

import math

import numpy as np
import pytest
import torch
from games import board_starts
from hidden_game import HIDDEN

from envs.stag_hunt import STAY
from envs.vector_env import LEARNER
from hop_ppo import (
    Args,
    Collector,
    GoalBelief,
    GoalPolicy,
    NoInfo,
    OracleInfo,
    make_envs,
    make_opponents,
    make_world_model_envs,
    to_tensors,
)
from metrics.predictions import PredictionStats
from pretrain_vae import VAE, OpponentTracker
from train_world_model import ObjectWorldModel


def random_vae(std: float = 0.5) -> VAE:
    """Its goal heads tell goals apart."""
    torch.manual_seed(0)
    vae = VAE(5, 5, 25).eval()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return vae


# ---- predictions


def test_prediction_stats_by_hand():
    """Two boards, the learner in seat 0. Co-players that are gone, and learners, do not count; RANDOM has no goal."""
    strategy_ids = torch.tensor([[-1, 0, 1], [-1, 2, 1]])
    actions = torch.tensor([[0, 0, 1], [0, 2, 3]])
    probs = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625, 0, 0]).expand(2, 3, 7)
    tick = torch.tensor([3, 4])
    stats = PredictionStats(HIDDEN.horizon)
    playing = torch.tensor([[True, True, True], [True, True, False]])
    belief = torch.tensor([[0.0, 0.9, 0.9], [0.0, 0.9, 0.1]])
    stats.add(probs, actions, playing, tick, strategy_ids, belief)
    summary = stats.summarize()
    nll = -(math.log(0.5) + math.log(0.25) + math.log(0.125)) / 3
    assert summary.pop("moa_nll") == pytest.approx(nll)
    assert summary == {"moa_top1": pytest.approx(1 / 3), "moa_top3": 1.0, "belief_accuracy_tick3": 0.5}
    assert stats.summarize() == {}
    playing = torch.tensor([[False] * 3, [False, False, True]])
    stats.add(probs, actions, playing, tick, strategy_ids, belief)
    summary = stats.summarize()
    expected = dict(moa_top1=0.0, moa_top3=0.0, belief_accuracy_tick4=1.0)
    assert {key: summary[key] for key in expected} == expected


# ---- whose turn it is, and in which order


def play_to_the_ends(envs, opponents, infos):
    """Whole boards, on which the learners wait. Yields: who played the tick, bool [B, A], and what was kept before it."""
    over = torch.zeros(envs.num_envs, dtype=torch.bool)
    while not over.all():
        opponents.features()
        before = {key: value.clone() for key, value in opponents.state_dict().items()}
        playing = infos["active"] & ~over[:, None]
        _, _, terminated, truncated, infos = envs.step(np.full(envs.num_envs, STAY))
        infos = to_tensors(infos)
        opponents.update(infos)
        over = torch.as_tensor(terminated | truncated)
        yield playing & (infos["strategy_ids"] != LEARNER), playing, before


@pytest.mark.parametrize("om", ["belief", "latent"])
def test_predictions_on_boards_that_are_over_do_not_count(om):
    envs = make_envs(HIDDEN, 40, "mixed", episode="board")
    infos = to_tensors(envs.reset(seed=1)[1])
    opponents = make_opponents(Args(om=om), envs, infos, random_vae())
    count = sum(int(others.sum()) for others, _, _ in play_to_the_ends(envs, opponents, infos))
    assert opponents.stats.sums[0] == count < 2 * 40 * HIDDEN.horizon


def test_boards_that_are_over_do_not_change_the_belief():
    envs = make_envs(HIDDEN, 40, "mixed", episode="board")
    infos = to_tensors(envs.reset(seed=1)[1])
    belief = GoalBelief(infos, 1, random_vae(), HIDDEN, 0.9)
    changed = 0
    for _, playing, before in play_to_the_ends(envs, belief, infos):
        assert torch.equal(belief.log_belief[~playing], before["log_belief"][~playing])
        changed += int((belief.log_belief != before["log_belief"]).any(2).sum())
    assert changed > 100


def test_features_are_in_the_order_of_each_learner():
    """One learner a board: seats after it. Self-play: row r is seat r % A of board r // A."""
    infos = to_tensors(make_envs(HIDDEN, 30, "mixed").reset(seed=1)[1])
    ids, seats = infos["strategy_ids"], infos["seat"]
    features = OracleInfo(infos, 1, len(HIDDEN.game.strategies)).features()
    assert features.shape == (30, 2, 3)
    for row in range(30):
        expected = [ids[row, (seats[row] + step) % 3] for step in (1, 2)]
        assert features[row].argmax(1).tolist() == expected
    assert len(seats.unique()) == 3
    infos = to_tensors(make_envs(HIDDEN, 4, "self").reset(seed=1)[1])
    nothing = NoInfo(infos, rows_per_board=3)
    assert nothing.features().shape == (12, 2, 0)
    numbered = torch.arange(12.0).view(4, 3, 1)
    rotated = nothing.rotate(numbered)[..., 0].tolist()
    assert rotated[:3] == [[1, 2], [2, 0], [0, 1]] and rotated[9:] == [[10, 11], [11, 9], [9, 10]]


# ---- a run that is killed and resumed


def test_tables_after_a_restart_are_those_of_the_boards_as_they_are():
    """Both of a game that goes on and of one that is built from its state; nothing is kept of boards before."""
    torch.manual_seed(0)
    vae = VAE(5, 5, 25).eval()
    args = Args(om="belief", team_episodes=1)
    everywhere = torch.ones(4, dtype=torch.bool)

    def make_collector(boards: int, seed: int) -> Collector:
        starts = board_starts(HIDDEN, boards, seed)
        envs = make_world_model_envs(args, HIDDEN, 4, starts, ObjectWorldModel(5, 5, [0.0, 1.0]), vae)
        return Collector(envs, args, vae, seed)

    def tables(collector: Collector) -> list[list[float]]:
        """Of the co-players and of the belief, once both have been asked."""
        collector.opponents.features()
        collector.envs.step(torch.full((4,), STAY))
        policies = (collector.envs.co_player_policy, collector.opponents.goal_policy)
        return [policy.table.values.tolist() for policy in policies]

    collector, other = make_collector(60, 1), make_collector(9, 5)
    for _ in range(15):
        collector.reset(everywhere)
        collector.opponents.features()
    grown = len(collector.opponents.goal_policy.table.values)
    state = collector.state_dict()
    for one in (collector, other):
        one.load_state_dict(state)
    features = [one.opponents.features() for one in (collector, other)]
    assert torch.equal(*features)
    assert torch.equal(collector.opponents.probs, other.opponents.probs)
    infos = collector.infos
    fresh = GoalPolicy(vae, HIDDEN.prey_counts).sync(infos["blocks"], infos["prey"]).values.tolist()
    assert len(fresh) < grown
    assert tables(collector) == tables(other) == [fresh, fresh]


def test_padding_after_a_restart_is_that_of_the_boards_as_they_are():
    """A board with two prey came first, then two with one: a tracker that goes on, and one built from its state."""
    vae = random_vae()
    envs = make_envs(HIDDEN, 2, "self")
    envs.reset(seed=1)
    planes, tick = torch.tensor(envs.planes()), torch.tensor([3, 4])
    tracker, other = OpponentTracker(vae, 2, 3), OpponentTracker(vae, 2, 3)
    tracker.predict(planes, tick)
    tracker.update(torch.full((2, 3), STAY))
    planes[:, :, 4] = 0  # no hare is left
    tracker.load_state_dict(tracker.state_dict())
    other.load_state_dict(tracker.state_dict())
    for found, expected in zip(tracker.predict(planes, tick), other.predict(planes, tick), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert tracker.log_likelihood.abs().sum() > 0
    assert tracker.prey.kind.shape[1] == other.prey.kind.shape[1] == 1
