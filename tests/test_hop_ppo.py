"""hop_ppo.py: what its learners see and are told, what PPO counts, what it prints and saves, what it refuses."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from worlds import TrueWorld

import hop_ppo
import tracking
from boards import NEVER, Imagined, Real, Remembered, sample
from data import DataError
from envs import Rules, strategy_probs
from envs.grid import FAR
from envs.scripted import parse_team
from envs.teams import LEARNER, Teams
from hop_ppo import Agent, Args, advantages_of, rollout, team_advantages_of
from others import GoalBelief, Score, Told
from pretrain_vae import VAE
from train_world_model import ObjectWorldModel, Scorer

ROOT = Path(hop_ppo.__file__).resolve().parent
SMALL = Rules(height=5, width=5, blocks=3, hares=3, horizon=14)
TINY = ("--num-envs", 16, "--num-steps", 8, "--total-timesteps", 768, "--eval-every", 2, "--eval-boards", 8,
        "--plan-boards", 4, "--num-minibatches", 2)  # fmt: skip
NONE = Args(num_steps=24)


def t(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


# ---- what PPO counts, by hand


def test_bootstrap_at_truncation_only():
    """Three learners, one tick each that ends their game: by the rules, at the horizon, and not at all."""
    rewards, values = t([1.0, 1.0, 1.0]), t([0.5, 0.5, 0.5])
    active, done = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, False]])
    cut_values, last = t([0.0, 4.0, 0.0]), t(9.0, 9.0, 2.0)
    found = advantages_of(rewards, values, active, done, cut_values, last, gamma=0.5, gae_lambda=1.0)
    assert found[0].tolist() == [1.0 - 0.5, 1.0 + 0.5 * 4.0 - 0.5, 1.0 + 0.5 * 2.0 - 0.5]


@pytest.mark.parametrize("ends", [True, False])
def test_the_horizon_as_an_end(ends, monkeypatch):
    """V is 3 everywhere and learners stay where they are, so that they are paid nothing: the returns of an episode that the
    horizon ended are 0, or 3 where V is bootstrapped there; those of the episode after it, cut off by the rollout, are 3."""
    game, horizon = Real(16, SMALL, "mixed", 1), SMALL.horizon
    monkeypatch.setattr(hop_ppo, "sample", lambda log_probs: torch.full((len(log_probs),), 4))
    args = Args(num_steps=horizon + 3, gamma=1.0, gae_lambda=1.0, end_at_horizon=ends)
    data = rollout(constant_agent(3.0), game, Told(game, False), args, torch.zeros(3))
    returns = data.returns.view(horizon + 3, 16)
    torch.testing.assert_close(returns[:horizon], torch.full((horizon, 16), 0.0 if ends else 3.0))
    torch.testing.assert_close(returns[horizon:], torch.full((3, 16), 3.0))


@pytest.mark.parametrize("team_reward", [False, True])
def test_nothing_is_bootstrapped_when_a_rollout_stops_at_the_horizon(team_reward, monkeypatch):
    """The last value of the rollout is then that of the next episode, and must not flow into this one."""
    game = Real(16, SMALL, "self", 1)
    monkeypatch.setattr(hop_ppo, "sample", lambda log_probs: torch.full((len(log_probs),), 4))
    args = Args(num_steps=SMALL.horizon, gamma=1.0, gae_lambda=1.0, team_reward=team_reward)
    data = rollout(constant_agent(3.0), game, Told(game, False), args, torch.zeros(3))
    assert len(data.returns) == 16 * 4 * SMALL.horizon and (data.returns == 0).all()


def constant_agent(value: float):
    """Uniform over legal actions, V the same everywhere."""
    return lambda seen: (hop_ppo.uniform(seen)[0], torch.full((len(seen.legal),), value))


def test_advantages_add_up_and_stop_at_an_end():
    rewards, values = t([0.0], [2.0], [0.0]), t([1.0], [1.5], [3.0])
    done = torch.tensor([[False], [True], [False]])
    found = advantages_of(
        rewards, values, torch.ones(3, 1, dtype=torch.bool), done, torch.zeros(3, 1), t(4.0), 0.5, 0.8
    )
    last = 0.5 * 4.0 - 3.0  # of the next episode: it must not flow into the one before
    middle = 2.0 - 1.5
    assert found[:, 0].tolist() == pytest.approx([0.5 * 1.5 - 1.0 + 0.5 * 0.8 * middle, middle, last])


def test_who_has_left_contributes_nothing():
    """It leaves with the first tick; what stands in its rows afterwards is garbage, and must not be seen."""
    rewards, values = t([5.0], [7.0], [7.0]), t([1.0], [99.0], [99.0])
    active, done = torch.tensor([[True], [False], [False]]), torch.tensor([[True], [False], [False]])
    found = advantages_of(rewards, values, active, done, torch.zeros(3, 1), t(99.0), 0.9, 0.9)
    assert found[:, 0].tolist() == [4.0, 0.0, 0.0]


def test_team_reward_goes_on_after_a_hunter_has_left():
    """Two hunters: the first is paid 2 and leaves, the second is paid 4 a tick later. Both earn the mean: 1 + 2."""
    rewards = t([[2.0, 0.0]], [[0.0, 4.0]])
    values = t([[0.5, 0.7]], [[99.0, 1.0]])
    active = torch.tensor([[[True, True]], [[False, True]]])
    done = torch.tensor([[[True, False]], [[False, True]]])
    cut, zero = torch.zeros_like(done), torch.zeros_like(values)
    last, gone = t([9.0, 9.0]), torch.tensor([[False, False]])
    found = team_advantages_of(rewards, values, active, done, cut, zero, last, gone, 1.0, 1.0)
    torch.testing.assert_close(found, t([[3.0 - 0.5, 3.0 - 0.7]], [[0.0, 2.0 - 1.0]]))


# ---- one update by hand


class TablePolicy(torch.nn.Module):
    """Sample i has logits and a value of its own; `clock[:, 0]` says which sample it is."""

    def __init__(self, logits: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.logits, self.values = torch.nn.Parameter(logits), torch.nn.Parameter(values)

    def forward(self, seen):
        row = seen.clock[:, 0].long()
        return self.logits[row].log_softmax(1), self.values[row]


def update_case(samples: int, seed: int = 0):
    """A policy, float64, and data whose actions were taken with another one."""
    torch.manual_seed(seed)
    policy = TablePolicy(torch.randn(samples, 7).double(), torch.randn(samples).double())
    clock, empty = torch.arange(float(samples))[:, None].expand(-1, 3), torch.zeros(samples, 1)
    seen = hop_ppo.Observation(*[clock if name == "clock" else empty for name in hop_ppo.Observation._fields])
    actions = torch.arange(samples) % 7
    log_probs = policy(seen)[0].detach()[torch.arange(samples), actions]
    return policy, hop_ppo.Rollout(
        seen, actions, log_probs, empty[:, 0], empty[:, 0], torch.randn(samples).double()
    )


def test_one_minibatch_of_an_update_by_hand():
    """Advantages 3 and -1 are 1 and -1 when normalised. Ratios 1.5 and 0.5, clip_coef 0.2: the first two samples are clipped
    and have no gradient, the other two that of -A * ratio. The entropy's gradient is -p (log p + H)."""
    policy, data = update_case(4)
    ratio, sign = np.array([1.5, 0.5, 0.5, 1.5]), np.array([1.0, -1.0, 1.0, -1.0])
    data = data._replace(
        log_probs=data.log_probs - torch.tensor(ratio).log(), advantages=t(3, -1, 3, -1, dtype=torch.float64)
    )
    p, values = policy.logits.detach().softmax(1).numpy(), policy.values.detach().numpy()
    entropy = -(p * np.log(p)).sum(1)
    pull = (
        np.array([0.0, 0.0, 1.0, 1.0])[:, None] * (-sign * ratio)[:, None] * (np.eye(7)[data.actions] - p) / 4
    )
    left, ent_coef, vf_coef, lr = 0.5, 0.3, 0.7, 0.1
    grad = pull - ent_coef * left * (-p * (np.log(p) + entropy[:, None]) / 4)
    grad_values = vf_coef * (values - data.returns.numpy()) / 4
    norm = np.sqrt((grad**2).sum() + (grad_values**2).sum())

    for max_grad_norm in (1e6, norm / 4):
        mine, scale = (
            TablePolicy(policy.logits.detach().clone(), policy.values.detach().clone()),
            min(1, max_grad_norm / norm),
        )
        args = Args(update_epochs=1, num_minibatches=1, clip_coef=0.2, ent_coef=ent_coef, vf_coef=vf_coef, learning_rate=lr,
                    max_grad_norm=max_grad_norm)  # fmt: skip
        found = hop_ppo.update(mine, torch.optim.SGD(mine.parameters(), lr=9.0), data, args, left)
        close = dict(atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(mine.logits.grad, scale * grad, **close)
        np.testing.assert_allclose(mine.values.grad, scale * grad_values, **close)
        moved = policy.logits.detach().numpy() - lr * left * scale * grad
        np.testing.assert_allclose(mine.logits.detach(), moved, **close)
    expected = dict(
        policy_loss=(-1.2 + 0.8 - 0.5 + 1.5) / 4,
        value_loss=0.5 * np.mean((values - data.returns.numpy()) ** 2),
        entropy=entropy.mean(),
        old_approx_kl=-np.log(ratio).mean(),
        approx_kl=(ratio - 1 - np.log(ratio)).mean(),
        clipfrac=1.0,
    )
    assert {key: float(value) for key, value in found.items()} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("ratio", "share"), [(1.19, 0.0), (1.21, 1.0), (0.81, 0.0), (0.79, 1.0)])
def test_share_of_clipped_ratios(ratio, share):
    policy, data = update_case(2)
    data = data._replace(log_probs=data.log_probs - math.log(ratio))
    args = Args(update_epochs=1, num_minibatches=1)
    assert (
        float(
            hop_ppo.update(policy, torch.optim.SGD(policy.parameters(), lr=0.0), data, args, 1.0)["clipfrac"]
        )
        == share
    )


def test_minibatches_of_an_update():
    """5 samples in 2 minibatches: 3 and 2; each sample once an epoch; figures are means over the samples."""
    policy, data = update_case(5)
    data = data._replace(advantages=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64))
    sizes, forward = [], policy.forward
    policy.forward = lambda seen: (sizes.append(seen.clock[:, 0].tolist()), forward(seen))[1]
    args = Args(update_epochs=3, num_minibatches=2, learning_rate=0.0)
    found = hop_ppo.update(policy, torch.optim.SGD(policy.parameters(), lr=0.0), data, args, 1.0)
    assert [len(rows) for rows in sizes] == [3, 2] * 3
    assert all(sorted(sizes[i] + sizes[i + 1]) == [0, 1, 2, 3, 4] for i in (0, 2, 4)) and sizes[0] != sizes[2]
    log_probs, values = forward(data.seen)
    assert float(found["value_loss"]) == pytest.approx((0.5 * (values - data.returns).square().mean()).item())
    assert float(found["entropy"]) == pytest.approx(-(log_probs.exp() * log_probs).sum(1).mean().item())


def test_equal_advantages_of_a_minibatch_are_nothing_and_not_nan():
    policy, data = update_case(3)
    args = Args(update_epochs=1, num_minibatches=1, ent_coef=0.0, vf_coef=0.0)
    data = data._replace(advantages=torch.full((3,), 2.0, dtype=torch.float64))
    hop_ppo.update(policy, torch.optim.SGD(policy.parameters(), lr=0.0), data, args, 1.0)
    assert policy.logits.grad.abs().max() == 0


def test_entropy_counts_no_illegal_actions():
    """Two legal actions, equally likely: log 2."""
    logits = torch.full((2, 7), hop_ppo.MASKED).double()
    logits[:, :2] = 0.0
    policy, data = update_case(2)
    policy.logits.data = logits
    args = Args(update_epochs=1, num_minibatches=1)
    found = hop_ppo.update(policy, torch.optim.SGD(policy.parameters(), lr=0.0), data, args, 1.0)
    assert float(found["entropy"]) == pytest.approx(math.log(2)) and policy.logits.grad.isfinite().all()


def test_explained_variance_by_hand():
    """Returns 1, 3 have variance 1; errors 0.5, -0.5 have 0.25."""
    data = update_case(2)[1]._replace(returns=t(1.0, 3.0), values=t(0.5, 3.5))
    assert float(hop_ppo.explained_variance(data)) == pytest.approx(0.75)
    assert math.isnan(
        float(hop_ppo.explained_variance(data._replace(returns=t(2.0, 2.0), values=t(2.0, 2.0))))
    )


# ---- a game whose rewards and ends are a table


class ScriptedGame:
    """Two boards, three hunters. ticks: (rewards [2, 3], who terminates, who is truncated: (board, seat)), in a row.
    A board has ended when nobody is left on it; the next episode's learners sit one seat further."""

    def __init__(self, ticks: list, everyone: bool = False, seats=(1, 0)):
        self.ticks, self.everyone, self.boards = list(ticks), everyone, 2
        self.rules = Rules(hunters=3, stags=1, hares=2, blocks=0, height=2, width=3)
        self.seats, self.who = torch.tensor(seats), torch.zeros(2, 3, dtype=torch.int64)
        self.tick, self.paid = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3)
        self.there, self.prey = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[0, 6, 6], [6, 1, 6]])
        self.played, self.dealt = [], []

    @property
    def ended(self):
        return ~self.there.any(1)

    def step(self, actions):
        rewards, *ends = self.ticks.pop(0)
        terminated, truncated = torch.zeros(2, 2, 3, dtype=torch.bool)
        for which, pairs in zip((terminated, truncated), ends, strict=True):
            for board, seat in pairs:
                which[board, seat] = True
        self.tick = self.tick + ~self.ended
        self.there &= ~(terminated | truncated)
        self.played.append(actions)
        return t(*rewards), terminated, truncated

    def deal(self, boards):
        self.dealt.append(boards.tolist())
        self.there[boards], self.tick[boards] = True, 0
        self.seats = torch.where(boards, (self.seats + 1) % 3, self.seats)
        return boards & True


def scripted_sights(game, told):
    """`clock` says tick, board and seat."""
    board, seat = torch.arange(2), game.seats
    if game.everyone:
        board, seat = board.repeat_interleave(3), torch.arange(3).repeat(2)
    there = game.there[board, seat][:, None]
    clock = torch.stack([game.tick[board], board, seat], 1).float()
    legal, empty = torch.ones(len(board), 7, dtype=torch.bool), torch.zeros(len(board), 0)
    named = dict(there=there, legal=legal, clock=clock)
    return seat, hop_ppo.Observation(*[named.get(name, empty) for name in hop_ppo.Observation._fields])


def value_of(tick, board, seat):
    return 0.5 * tick + 2.0 * board + 4.0 * seat + 1.0


def scripted_policy(seen):
    return hop_ppo.uniform(seen)[0], value_of(*seen.clock.unbind(1))


class Watching:
    """Told nothing; writes down when it is called."""

    def __init__(self):
        self.calls = []

    def look(self):
        self.calls.append("look")
        return torch.zeros(2, 3, 0)

    def observe(self):
        self.calls.append("observe")

    def deal(self, boards, new):
        self.calls.append(("deal", boards.tolist(), new.tolist()))


ROLLOUT = [  # board 0's learner, in seat 1, leaves at tick 1; board 1's, in seat 0, is cut off then
    ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [], []),
    ([[0.5, 7.0, 0.5], [8.0, 0.5, 0.5]], [(0, 1)], [(1, 0), (1, 1), (1, 2)]),
    ([[0.5, 0.5, 9.0], [0.5, 11.0, 0.5]], [], []),
]


@pytest.mark.parametrize("ends", [True, False])
def test_rollout_by_hand(ends, monkeypatch):
    monkeypatch.setattr(hop_ppo, "sights", scripted_sights)
    game, others, tally = ScriptedGame(ROLLOUT), Watching(), t(10.0, 20.0, 30.0)
    data = rollout(
        scripted_policy,
        game,
        others,
        Args(num_steps=3, gamma=0.5, gae_lambda=0.5, end_at_horizon=ends),
        tally,
    )
    v = value_of
    a1 = 7.0 - v(1, 0, 1)  # the rules ended it
    a0 = 2.0 + 0.5 * v(1, 0, 1) - v(0, 0, 1) + 0.25 * a1
    a2 = 9.0 + 0.5 * v(1, 0, 2) - v(0, 0, 2)
    b1 = 8.0 + (0.0 if ends else 0.5 * v(2, 1, 0)) - v(1, 1, 0)
    b0 = 4.0 + 0.5 * v(1, 1, 0) - v(0, 1, 0) + 0.25 * b1
    b2 = 11.0 + 0.5 * v(1, 1, 1) - v(0, 1, 1)
    assert data.advantages.tolist() == pytest.approx([a0, b0, a1, b1, a2, b2])
    values = [v(0, 0, 1), v(0, 1, 0), v(1, 0, 1), v(1, 1, 0), v(0, 0, 2), v(0, 1, 1)]
    assert data.values.tolist() == pytest.approx(values)
    assert data.returns.tolist() == pytest.approx(
        [a + b for a, b in zip([a0, b0, a1, b1, a2, b2], values, strict=True)]
    )
    assert data.log_probs.tolist() == pytest.approx([-math.log(7)] * 6)
    assert data.actions.tolist() == torch.stack(game.played).flatten().tolist()
    assert data.seen.clock[:, 0].tolist() == [0, 0, 1, 1, 0, 0]  # seen before the tick
    assert tally.tolist() == [10 + 2, 20 + (2 + 7) + (4 + 8), 30 + 2 + 2]
    assert game.dealt == [[True, True]] and game.paid.tolist() == [[0.5, 0.5, 9.0], [0.5, 11.0, 0.5]]
    looks = [call for call in others.calls if call != "look"]
    assert looks == ["observe", "observe", ("deal", [True, True], [True, True]), "observe"]


def test_rollout_of_all_hunters_by_hand(monkeypatch):
    """Board 0: seat 0 leaves at tick 0, the others at tick 1. Board 1 goes on. Hunters that have left give no samples; the
    return of a board's episode is the mean of its hunters'."""
    monkeypatch.setattr(hop_ppo, "sights", scripted_sights)
    ticks = [
        ([[3.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [(0, 0)], []),
        ([[0.0, 6.0, 9.0], [0.0, 2.0, 0.0]], [(0, 1), (0, 2)], []),
        ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [], []),
    ]
    v, left = value_of, [(1, 0, 0)]  # tick, board, seat
    rows = [(k, b, s) for k in (0, 1) for b in (0, 1) for s in range(3) if (k, b, s) not in left]
    rows += [(0, 0, 0), (0, 0, 1), (0, 0, 2), (2, 1, 0), (2, 1, 1), (2, 1, 2)]  # board 0 is a new one
    for team_reward in (False, True):
        game, tally = ScriptedGame(ticks, everyone=True), torch.zeros(3)
        args = Args(num_steps=3, gamma=1.0, gae_lambda=1.0, co_players="self", team_reward=team_reward)
        data = rollout(scripted_policy, game, Watching(), args, tally)
        assert data.seen.clock.tolist() == [[float(x) for x in row] for row in rows]
        assert tally.tolist() == [1, (3 + 6 + 9) / 3, 2] and game.dealt == [[True, False]]
        returns = dict(zip(rows[:11], data.returns.tolist(), strict=False))
        if team_reward:  # the mean of the rewards, until the board ends; then, or at the last, the mean of V
            last = sum(v(3, 1, seat) for seat in range(3)) / 3
            expected = {(0, 0, s): 6.0 for s in range(3)} | {(1, 0, s): 5.0 for s in (1, 2)}
            expected |= {(0, 1, s): 1.0 + last for s in range(3)} | {
                (1, 1, s): 2 / 3 + last for s in range(3)
            }
        else:
            expected = {(0, 0, 0): 3.0, (0, 0, 1): 6.0, (0, 0, 2): 9.0, (1, 0, 1): 6.0, (1, 0, 2): 9.0}
            expected |= {(0, 1, s): (0.0, 2.0, 1.0)[s] + v(3, 1, s) for s in range(3)}
            expected |= {(1, 1, s): (0.0, 2.0, 0.0)[s] + v(3, 1, s) for s in range(3)}
        assert returns == pytest.approx(expected)


def test_team_advantages_at_the_horizon_and_at_the_last_tick():
    """One tick. Board 0 is cut off with V 4 and 8 of the hunters left there; board 1 goes on with 2 (the other has left)."""
    rewards, values = t([[1.0, 3.0], [5.0, 0.0]]), t([[0.5, 0.25], [1.0, 7.0]])
    active = torch.tensor([[[True, True], [True, False]]])
    done, cut = torch.tensor([[[True, True], [False, False]]]), torch.tensor([[[True, True], [False, False]]])
    cut_values, last = t([[4.0, 8.0], [0.0, 0.0]]), t([99.0, 99.0], [2.0, 50.0])
    last_active = torch.tensor([[True, True], [True, False]])
    found = team_advantages_of(rewards, values, active, done, cut, cut_values, last, last_active, 0.5, 1.0)
    torch.testing.assert_close(found, t([[2 + 3 - 0.5, 2 + 3 - 0.25], [2.5 + 1 - 1.0, 0.0]]))


# ---- judge and brief, by hand

JUDGED = [  # two episodes; learners in seats 2 and 0, then 0 and 1
    ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [(0, 0), (0, 1), (0, 2)], []),
    ([[0.0, 0.0, 0.0], [10.0, 20.0, 30.0]], [(1, 0), (1, 1)], [(1, 2)]),
    ([[7.0, 0.0, 2.0], [0.0, 8.0, 1.0]], [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)], []),
]


@pytest.mark.parametrize("planned", [False, True])
def test_judge_by_hand(planned, monkeypatch):
    monkeypatch.setattr(hop_ppo, "sights", scripted_sights)
    game, others = ScriptedGame(JUDGED, seats=(2, 0)), Watching()

    class Plan(Watching):
        def __call__(self, told, seen):
            self.calls.append("plan")
            return torch.tensor([5, 6])

    plan = Plan() if planned else None
    found = hop_ppo.judge(scripted_policy, game, others, 2, plan)
    assert found["learner"].tolist() == [[3.0, 4.0 + 10.0], [7.0, 8.0]]
    assert found["team"].tolist() == [[2.0, (14 + 25 + 36) / 3], [3.0, 3.0]]
    assert found["length"].tolist() == [[1, 2], [1, 1]]
    assert (found["stags"].tolist(), found["hares"].tolist()) == ([[0, 1]] * 2, [[2, 1]] * 2)
    deal = ("deal", [True, True], [True, True])
    assert others.calls == ["look", "observe", "look", "observe", deal, "look", "observe"]
    if planned:
        assert plan.calls == ["plan", "observe", "plan", "observe", deal, "plan", "observe"]
        assert all(actions.tolist() == [5, 6] for actions in game.played)


def test_brief_by_hand():
    """Two episodes of three boards; the interval is of the boards' means, here 2, 4 and 9: standard deviation 13 ** 0.5."""
    learner = np.array([[1.0, 4.0, 8.0], [3.0, 4.0, 10.0]])
    found = hop_ppo.summarize(
        dict(learner=learner, team=2 * learner, length=learner + 1, stags=learner > 3, hares=learner * 0)
    )
    half = 1.96 * 13**0.5 / 3**0.5
    assert found == pytest.approx(
        dict(
            learner=5.0,
            learner_ci95=half,
            team=10.0,
            team_ci95=2 * half,
            episodes=6,
            length=6.0,
            stags=4 / 6,
            hares=0.0,
        )
    )


# ---- what an observer sees


def boards_in_play(rules: Rules, ticks: int, boards: int = 24, seed: int = 3) -> Real:
    game = Real(boards, rules, "self", seed)
    torch.manual_seed(seed)
    for _ in range(ticks):
        legal = torch.as_tensor(game.teams.core.legal_actions())
        game.step(sample((legal.float() + 1e-9).log().flatten(0, 1)).view(boards, -1))
    return game


@pytest.mark.parametrize("ticks", [0, 4, 9])
def test_what_is_seen_is_the_joint_state(ticks):
    game = boards_in_play(SMALL, ticks)
    core, A, K, P = game.teams.core, 4, SMALL.cells, SMALL.prey
    live = np.flatnonzero(~core.ended)
    for seat in range(A):
        seats = torch.full((24,), seat)
        seen = game.maps.see(
            torch.arange(24), game.hunters, game.prey, game.clock, seats, torch.zeros(24, A, 0)
        )
        np.testing.assert_array_equal(seen.legal[live], core.legal_actions()[live, seat])
        distance = np.pad(core.distances(), ((0, 0), (0, 0), (0, 1)), constant_values=FAR)
        for k in range(A):
            cell = core.hunters[:, (seat + k) % A]
            expected = distance[np.arange(24)[:, None], np.arange(P), cell[:, None]]
            np.testing.assert_array_equal(seen.steps[:, :, k], np.where(expected == FAR, NEVER, expected))
            np.testing.assert_array_equal(seen.there[:, k], cell < K)
        np.testing.assert_allclose(seen.clock[:, 0], core.tick / SMALL.horizon)


def test_the_clock_counts_down():
    rules = Rules(
        height=3, width=3, blocks=0, stags=0, hares=2, hunters=2, horizon=12, end_after_first_hunt=3
    )
    game = boards_in_play(rules, 0)
    for _ in range(8):
        left = game.teams.core.ticks_left
        np.testing.assert_array_equal(game.clock[:, 1] > 0, (left >= 0) | (game.first_hunt >= 0).numpy())
        live = ~game.teams.core.ended & (left >= 0)
        np.testing.assert_allclose(game.clock[:, 2].numpy()[live] * 8, left[live])
        game.step(torch.randint(7, (24, 2)))
    assert (left >= 0).any()


def test_seats_permute_results():
    """The same board, the hunters in other seats: each one's policy and value go with it, and so does what is known."""
    torch.manual_seed(0)
    game, agent, A = boards_in_play(SMALL, 3), Agent(1, 5), 4
    nn_scale(agent)
    known, order = torch.randn(24, A, 5), torch.tensor([2, 0, 3, 1])

    def all_seats(hunters, known):
        board = torch.arange(24).repeat_interleave(A)
        seen = game.maps.see(
            board,
            hunters[board],
            game.prey[board],
            game.clock[board],
            torch.arange(A).repeat(24),
            known[board],
        )
        return [array.unflatten(0, (24, A)) for array in agent(seen)]

    log_probs, values = all_seats(game.hunters, known)
    permuted, permuted_values = all_seats(game.hunters[:, order], known[:, order])
    torch.testing.assert_close(permuted, log_probs[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(permuted_values, values[:, order], atol=1e-5, rtol=1e-5)
    moved = known.clone()
    moved[:, [1, 2]] = known[:, [2, 1]]
    assert (
        all_seats(game.hunters, moved)[0][:, 0] - log_probs[:, 0]
    ).abs().max() > 1e-3  # whose it is does matter


def test_planes_of_the_cnn_by_hand():
    """2x3 cells, three hunters; the observer in cell 4, one in cell 0, the other gone; stag in 2, hares in 4 and gone."""
    nothing = torch.zeros(1, 0)
    seen = hop_ppo.Observation(
        steps=nothing, ways=nothing, there=torch.ones(1, 3), legal=nothing, clock=t([0.25, 1.0, 0.5]),
        known=t([[0.3, 0.7], [0.9, 0.1]]), cells=torch.tensor([[4, 0, 6, 2, 4, 6]]),
        blocks=torch.tensor([[False, True, False, False, False, False]]),
    )  # fmt: skip

    def cells(**values):
        return [float(values.get(f"cell{i}", 0)) for i in range(6)]

    expected = [
        cells(cell4=1), cells(cell0=1), cells(),  # the hunters
        cells(cell1=1), cells(cell2=1), cells(cell4=1),  # blocks, stags, hares
        [0.25] * 6, [1.0] * 6, [0.5] * 6,
        cells(cell0=0.3), cells(cell0=0.7), cells(), cells(),
    ]  # fmt: skip
    torch.testing.assert_close(
        hop_ppo.planes_of(seen, stags=1, height=2, width=3).flatten(2)[0], torch.tensor(expected)
    )


@pytest.mark.parametrize("ticks", [0, 5])
def test_cells_and_blocks_seen_are_the_joint_state(ticks):
    game = boards_in_play(SMALL, ticks)
    _, seen = hop_ppo.sights(game, torch.zeros(24, 4, 0))
    planes = hop_ppo.planes_of(seen, SMALL.stags, 5, 5).unflatten(0, (24, 4))
    obs = torch.as_tensor(game.teams.core.obs).float()  # [B, A, 5, H, W]: SELF, OTHERS, BLOCKS, STAGS, HARES
    torch.testing.assert_close(planes[:, :, 0], obs[:, :, 0])
    torch.testing.assert_close(planes[:, :, 1:4].sum(2).clamp(max=1), obs[:, :, 1])
    torch.testing.assert_close(planes[:, :, 4:7], obs[:, :, 2:])
    for k in range(4):  # observer first: plane k of seat i is the hunter in seat i + k
        torch.testing.assert_close(planes[:, :, k], obs[:, :, 0].roll(-k, 1))


def test_first_weights_of_the_networks():
    """CleanRL's of the cnn: all it prefers at first is what is legal. `objects` prefers the hunts, by 4 times its bias."""
    torch.manual_seed(0)
    game, probs = boards_in_play(SMALL, 6), {}
    _, seen = hop_ppo.sights(game, torch.zeros(24, 4, 0))
    agents = dict(
        cnn=hop_ppo.new_agent("cnn", SMALL, 0), plain=Agent(1, 0, hunt_bias=0.0), objects=Agent(1, 0)
    )
    for name, agent in agents.items():
        probs[name] = agent(seen)[0].exp()
    uniform = hop_ppo.uniform(seen)[0].exp()
    assert (probs["cnn"] - uniform).abs().max() < 0.02 and (probs["plain"] - uniform).abs().max() < 0.05
    on_prey = seen.legal[:, 5] | seen.legal[:, 6]
    odds = probs["objects"][on_prey, 5:].amax(1) / probs["objects"][on_prey, 4]
    assert on_prey.any() and (odds.log() - 4.0).abs().max() < 0.3
    gains = {agents["cnn"].network[0]: 2**0.5, agents["cnn"].actor: 0.01, agents["cnn"].critic: 1.0}
    gains |= {agents["objects"].actor: 0.01, agents["objects"].wait: 0.01, agents["objects"].critic[2]: 1.0}
    for layer, gain in gains.items():  # orthogonal
        weight = layer.weight.flatten(1)
        torch.testing.assert_close(
            weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-3 * gain**2, rtol=0
        )
    assert agents["objects"].actor.bias.tolist() == [0.0, 0.0, 1.0]
    assert not any(layer.bias.any() for layer in gains if layer is not agents["objects"].actor)


def slow_forward(agent: Agent, seen, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`Agent.forward` of one observer, prey by prey and hunter by hunter. Returns: logits [7] without the mask, V."""
    s, (P, A) = agent.stags, seen.steps.shape[1:]
    raw, clock = seen.steps[row].tolist(), [*seen.clock[row].tolist(), float(seen.there[row].float().mean())]
    steps = [[min(d, 24) for d in of_prey] for of_prey in raw]

    def near(p, a):
        same = [steps[q][a] for q in range(P) if (q < s) == (p < s)]
        beyond = steps[p][a] - min(steps[q][a] for q in range(P))
        d = steps[p][a]
        return [d / 8, d == 0, d == 1, (d - min(same)) / 4, beyond / 4, beyond == 0]

    prey = []
    for p in range(P):
        crowd = torch.zeros(agent.other.out_features)
        for a in range(1, A):
            if raw[p][a] < NEVER:
                ahead = max(-1.0, min(1.0, (steps[p][a] - steps[p][0]) / 4))
                other = [*near(p, a), ahead, ahead == 0, p < s, *seen.known[row, a - 1].tolist()]
                crowd += agent.other(torch.tensor(other).float()).relu()
        own = torch.tensor([*near(p, 0), p < s, p >= s, *clock]).float()
        prey.append(agent.prey(torch.cat([own, crowd])).relu() * (raw[p][0] < NEVER))
    pooled = torch.cat([torch.stack(prey).amax(0), torch.stack(prey).mean(0), torch.tensor(clock)])
    context = agent.context(pooled).relu()
    logits = torch.zeros(7)
    logits[4] = agent.wait(context)[0]
    for p in range(P):
        if raw[p][0] < NEVER:
            go, stay, hunt = 4 * agent.actor((agent.token(prey[p]) + context).relu())
            for move in range(4):
                logits[move] += go * (seen.ways[row, p, move] < raw[p][0])
            if raw[p][0] == 0:
                logits[4] += stay
                logits[5 if p < s else 6] += hunt
    return logits, agent.critic(context)[0]


@pytest.mark.parametrize("ticks", [0, 5, 9])
def test_agent_prey_by_prey(ticks):
    """Also where a kind of prey is gone, a hunter has left, or one stands on a prey."""
    rules = Rules(height=5, width=5, blocks=3, stags=2, hares=2, horizon=14)
    game = boards_in_play(rules, ticks)
    game.prey[0, :2], game.prey[1, 2:], game.prey[2] = 25, 25, 25
    torch.manual_seed(1)
    agent, known = Agent(2, 3), torch.randn(24, 4, 3)
    nn_scale(agent)
    seen = hop_ppo.sights(game, known)[1]
    with torch.no_grad():
        log_probs, values = agent(seen)
        for row in range(0, 96, 5):
            logits, value = slow_forward(agent, seen, row)
            expected = torch.where(seen.legal[row], logits, -1e9).log_softmax(0)
            torch.testing.assert_close(log_probs[row], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(values[row], value, atol=1e-4, rtol=1e-4)


def test_sizes_of_the_networks():
    assert Agent(2, 3).sizes == dict(network="objects", stags=2, known=3, hidden=64, hunt_bias=1.0)
    agent = hop_ppo.new_agent("cnn", SMALL, 2)
    assert agent.sizes == dict(network="cnn", hunters=4, stags=1, known=2, height=5, width=5)
    shapes = [tuple(layer.weight.shape) for layer in agent.modules() if hasattr(layer, "weight")]
    assert shapes == [(16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (512, 800), (7, 512), (1, 512)]


def nn_scale(agent: Agent) -> None:
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def test_illegal_actions_are_never_taken():
    torch.manual_seed(0)
    game, agent = boards_in_play(SMALL, 2), Agent(1, 0)
    nn_scale(agent)
    board = torch.arange(24)
    seen = game.maps.see(board, game.hunters, game.prey, game.clock, game.seats, torch.zeros(24, 4, 0))
    log_probs, _ = agent(seen)
    assert (log_probs.exp()[~seen.legal] == 0).all()
    for _ in range(20):
        assert seen.legal.gather(1, sample(log_probs)[:, None]).all()


@pytest.mark.parametrize("network", ["objects", "cnn"])
def test_every_parameter_is_trained(network):
    torch.manual_seed(0)
    agent, game = hop_ppo.new_agent(network, SMALL, 3), Real(64, SMALL, "mixed", 1)
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
    data = rollout(agent, game, Told(game, True), Args(num_steps=8), torch.zeros(3))
    hop_ppo.update(agent, optimizer, data, Args(update_epochs=1, num_minibatches=1), 1.0)
    for name, parameter in agent.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("team", ["self", "mixed"])
def test_a_rollout_holds_learners_on_the_board_alone(team):
    torch.manual_seed(0)
    game = Real(32, SMALL, team, 1)
    active = []
    step = game.step

    def counted(actions):
        there = game.hunters < SMALL.cells
        active.append(int(there.sum() if team == "self" else there.gather(1, game.seats[:, None]).sum()))
        return step(actions)

    game.step = counted
    tally = torch.zeros(3)
    data = rollout(Agent(1, 0), game, Told(game, False), NONE, tally)
    assert len(data.actions) == sum(active) and data.seen.there[:, 0].all()
    assert (data.seen.legal.gather(1, data.actions[:, None])).all()
    assert tally[0] > 10 and 0 < tally[1] / tally[0] < 5 and tally[2] / tally[0] <= SMALL.horizon
    if team == "mixed":
        assert len(data.actions) == 32 * 24  # a board is dealt anew as soon as its learner has left


# ---- who plays


@pytest.mark.parametrize("text", ["2NS", "3XX", "4NH", "NS3", "3ns", "", "1NS2NH!"])
def test_teams_that_are_none(text):
    with pytest.raises(ValueError, match="co-players: expected mixed, self, or 3 co-players"):
        parse_team(text, 3)


def test_teams_are_seated():
    teams = Teams(400, Rules(), "1NS2NH")
    teams.reset(1)
    assert (np.sort(teams.who, 1) == [LEARNER, 0, 1, 1]).all()
    assert (teams.who[np.arange(400), teams.seats] == LEARNER).all()
    assert (np.bincount(teams.seats) > 60).all() and (np.bincount(np.nonzero(teams.who == 0)[1]) > 60).all()
    mixed = Teams(4000, Rules(), "mixed")
    mixed.reset(1)
    assert abs((mixed.who == 0).sum() / 12000 - 0.5) < 0.03


def test_a_team_stays_together():
    teams = Teams(50, SMALL, "mixed", team_episodes=3)
    teams.reset(1)
    who, every = [teams.who.copy()], np.ones(50, bool)
    for episode in range(1, 7):
        new = teams.deal(every)
        assert new.all() == (episode % 3 == 0) and new.any() == new.all()
        who.append(teams.who.copy())
    assert (who[0] == who[1]).all() and (who[1] == who[2]).all() and (who[3] == who[5]).all()
    assert (who[2] != who[3]).any(1).mean() > 0.5


def test_the_next_episode_is_the_same_however_long_this_one_took():
    short, long = Teams(20, SMALL, "mixed", team_episodes=2), Teams(20, SMALL, "mixed", team_episodes=2)
    for teams, ticks in ((short, 3), (long, 9)):
        teams.reset(5)
        for _ in range(2):
            for _ in range(ticks):
                teams.step(np.full((20, 1), 4))
            teams.deal(np.ones(20, bool))
    np.testing.assert_array_equal(short.core.obs, long.core.obs)
    np.testing.assert_array_equal(short.who, long.who)


def test_a_board_does_not_hang_on_the_others():
    few, many = Teams(4, SMALL, "mixed"), Teams(9, SMALL, "mixed")
    few.reset(5), many.reset(5)
    for _ in range(12):
        np.testing.assert_array_equal(few.core.obs, many.core.obs[:4])
        np.testing.assert_array_equal(few.who, many.who[:4])
        over = [one.core.ended.copy() for one in (few, many)]
        over[1][4:] = True  # the others are dealt anew all the time
        few.deal(over[0]), many.deal(over[1])
        few.step(np.full((4, 1), 4)), many.step(np.full((9, 1), 4))


# ---- what is known of the others


class SaidMinds:
    """Goal heads that say what they are told to."""

    def __init__(self, probs):
        self.probs = torch.as_tensor(probs)  # [2 goals, 7]

    def log_probs(self, goals=None):
        return self.probs.log().expand(1, 2, 2, 7)


def test_belief_by_hand():
    """After UP (3:1 for the stag) twice: 9:1. The next episode begins with counts 0.9 and 0.1, plus 1/2 each."""
    probs = [[0.3, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1], [0.1, 0.3, 0.1, 0.1, 0.2, 0.1, 0.1]]
    game = Real(1, Rules(height=4, width=4, blocks=0, hunters=2, hares=2), "1NS", 1, team_episodes=3)
    belief = GoalBelief.__new__(GoalBelief)
    belief.game, belief.discount, belief.minds = game, 0.5, SaidMinds(probs)
    belief.log_odds, belief.counts, belief.score = torch.zeros(1, 2), torch.zeros(1, 2, 2), Score(game)
    assert belief.look().tolist() == [[[0.5], [0.5]]]
    for expected in (0.75, 0.9):
        belief.look()
        game.actions = torch.tensor([[0, 4]])  # UP; STAY tells nothing
        belief.observe()
        assert belief.look()[0, :, 0].tolist() == pytest.approx([expected, 0.5])
    yes, no = torch.tensor([True]), torch.tensor([False])
    belief.deal(yes, no)
    assert float(belief.look()[0, 0, 0]) == pytest.approx(1.4 / 2)
    belief.deal(yes, no)  # nothing happened: 0.5 * 0.9 + 0.7 for the stag, of 1.5 in all, plus 1/2 each
    assert float(belief.look()[0, 0, 0]) == pytest.approx((0.45 + 0.7 + 0.5) / 2.5)
    belief.deal(yes, yes)
    assert float(belief.look()[0, 0, 0]) == 0.5


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return VAE(5, 5, 14).eval()


@pytest.mark.parametrize("om", ["none", "belief", "latent"])
def test_only_the_oracle_asks_who_they_are(om, vae):
    looks = []
    for who in (0, 1):
        torch.manual_seed(0)
        game = Real(6, SMALL, "mixed", 1)
        others = hop_ppo.others_of(Args(om=om), game, vae)
        seen = []
        for _ in range(4):
            game.who = torch.full_like(game.who, who)
            seen.append(others.look())
            game.step(torch.full((6, 1), 4))
            others.observe()
        looks.append(torch.stack(seen))
    torch.testing.assert_close(*looks)
    oracle = hop_ppo.others_of(Args(om="oracle"), game, None)
    game.who = torch.tensor([[LEARNER, 0, 1, 2]] * 6)
    assert oracle.look()[0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_beliefs_find_out(vae, monkeypatch):
    """With goal heads that are the strategies themselves, the belief is soon right."""
    game = Real(200, Rules(), "mixed", 1)

    class Exact:
        def __init__(self, *_):
            pass

        def log_probs(self, goals=None):
            probs = strategy_probs(game.teams.core, ["NS", "NH"], 0.1)
            return torch.as_tensor(probs, dtype=torch.float32).clamp(min=1e-20).log()

    monkeypatch.setattr("others.Minds", Exact)
    belief = GoalBelief(game, vae, 0.9)
    for _ in range(6):
        belief.look()
        game.step(torch.full((200, 1), 4))
        belief.observe()
    said = belief.score.read()
    assert said["belief_accuracy_tick0"] < 0.65 < 0.85 < said["belief_accuracy_tick5"]
    assert said["moa_top1"] > 0.7 and 0.4 < said["moa_nll"] < 0.9


# ---- imagination


@pytest.mark.parametrize("ends", [None, 2])
def test_imagined_boards_are_like_real_ones(ends):
    """With the rules as world model and everyone a learner: tick for tick the same game."""
    rules = Rules(height=4, width=4, blocks=2, hares=3, horizon=9, end_after_first_hunt=ends)
    real = Real(40, rules, "self", 1)
    imagined = Imagined(40, rules, "self", TrueWorld(rules), None)
    imagined.begin(*(part[:1] for part in real.starts))
    for mine, start in zip((imagined.blocks, imagined.hunters, imagined.prey), real.starts, strict=True):
        mine[:] = start
    imagined.version += 1
    imagined.maps.update(torch.arange(40), imagined.blocks, imagined.prey)
    torch.manual_seed(2)
    cut = 0
    for _ in range(rules.horizon):
        legal = torch.as_tensor(real.teams.core.legal_actions())
        actions = sample((legal.float() + 1e-12).log().flatten(0, 1)).view(40, 4)
        live = ~real.ended
        found, expected = imagined.step(actions), real.step(actions)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[live], other[live])
        cut += int(found[2][live].sum())
        for key in ("hunters", "prey", "tick", "clock", "ended"):
            torch.testing.assert_close(getattr(imagined, key)[live], getattr(real, key)[live])
    assert real.ended.all() and cut > 0
    new = imagined.deal(imagined.ended.clone())
    assert new.all() and (imagined.tick == 0).all() and not imagined.ended.any()


def test_imagined_teams(vae):
    game = Imagined(60, SMALL, "1NS2NH", ObjectWorldModel(5, 5, [0.0, 1.0]), vae, team_episodes=2)
    game.begin(*Real(8, SMALL, "self", 1).starts)
    assert (game.who.sort(1).values == torch.tensor([LEARNER, 0, 1, 1])).all()
    before, every = game.who.clone(), torch.ones(60, dtype=torch.bool)
    assert not game.deal(every).any() and (game.who == before).all()
    assert game.deal(every).all() and (game.who != before).any()
    data = rollout(Agent(1, 1), game, GoalBelief(game, vae, 0.9), Args(num_steps=3), torch.zeros(3))
    assert len(data.actions) == 180


def test_remembered_answers():
    torch.manual_seed(0)
    scorer = Scorer(5, 3, 8)
    quick = Remembered(scorer, (1, 2, 1))
    for n in (4, 50, 3, 200):
        given = (
            torch.randint(3, (n, 2, 5)).float(),
            torch.randint(2, (n, 2, 4, 3)).float(),
            torch.rand(n, 2, 4) < 0.3,
        )
        with torch.no_grad():
            torch.testing.assert_close(quick(*given), scorer(*given), atol=1e-5, rtol=1e-5)


# ---- judging


@pytest.mark.parametrize(("switch", "name"), [(0, "NH"), (4, "NH"), (5, "NS"), (None, "NS")])
def test_script_plays_the_strategies_exactly(switch, name):
    """On boards at tick 4, beside the strategies of the game; None: never."""
    game = boards_in_play(SMALL, 4)
    expected = strategy_probs(game.teams.core, [name])[:, :, 0]
    seen = hop_ppo.sights(game, torch.zeros(24, 4, 0))[1]
    live = ((game.hunters < SMALL.cells) & ~game.ended[:, None]).numpy()
    probs = hop_ppo.Script(SMALL, switch)(seen)[0].exp().view(24, 4, 7)
    np.testing.assert_allclose(probs[live], expected[live], atol=1e-12)


def switches_played(monkeypatch, referee, seeds: list) -> None:
    """`play` returns 10 at tick 8 with `mixed` and at 12 with other teams, else -tick; on other boards never is best."""

    def play(policy, team, seed, boards=0, episodes=0, om="", plan=""):
        seeds.append(seed)
        value, switch = 0.0, getattr(policy, "switch", None)
        if switch is not None and seed == hop_ppo.EVAL_SEED:
            value = 10.0 if switch == (8 if team == "mixed" else 12) else -float(switch)
        elif switch is not None:
            value = float(switch)
        learner = np.full((1, 4), value)
        return dict(
            learner=learner,
            team=1 - learner if team != "self" else learner,
            length=learner,
            stags=learner,
            hares=learner,
        )

    monkeypatch.setattr(referee, "play", play)


@pytest.mark.parametrize(("env_id", "final"), [("StagHunt-v0", 3001), ("StagHunt-hidden-v0", 4001)])
def test_ticks_of_the_scripts_are_chosen_on_other_boards(env_id, final, monkeypatch):
    rules, seeds = hop_ppo.rules_of(env_id)[0], []
    referee = hop_ppo.Evaluator(Args(env_id=env_id, team_episodes=1), rules, None, None)
    switches_played(monkeypatch, referee, seeds)
    found = referee.compare(Agent(rules.stags, 0))
    assert set(found) == {"teams", "script", "script_told", "untrained", "random"}
    assert {one["tick"] for one in found["script"].values()} == {8}
    assert {team: one["tick"] for team, one in found["script_told"].items()} == {
        team: 8 if team == "mixed" else 12 for team in found["teams"]
    }
    assert all(
        one["learner"] == one["tick"] for kind in ("script", "script_told") for one in found[kind].values()
    )
    teams = len(found["teams"])
    assert seeds == [2001] * 10 * teams + [final] * 5 * teams
    assert (hop_ppo.EVAL_SEED, referee.final_seed) == (2001, final)


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [(35, [*range(0, 33, 4), 35]), (33, [*range(0, 33, 4), 33]), (32, [*range(0, 29, 4), 32]), (3, [0, 3])],
)
def test_ticks_of_the_scripts_stop_at_the_horizon(horizon, expected, monkeypatch):
    referee = hop_ppo.Evaluator(Args(team_episodes=1), Rules(horizon=horizon), None, None)
    tried = []

    def script(team, seed, switch, **boards):
        tried.append(horizon if switch is None else switch)
        assert hop_ppo.Script(referee.rules, switch).switch == tried[-1]
        return dict(team=-1.0, learner=float(switch is None))

    monkeypatch.setattr(referee, "script", script)
    assert referee.best_switch("mixed") is None and tried == expected


def test_all_learners_choose_the_tick_by_the_return_of_the_team(monkeypatch):
    referee = hop_ppo.Evaluator(Args(team_episodes=1), Rules(horizon=9), None, None)
    found = {0: (1.0, 2.0), 4: (3.0, 1.0), 8: (2.0, 3.0), None: (0.0, 0.0)}  # learner (seat 0), team
    monkeypatch.setattr(
        referee,
        "script",
        lambda team, seed, switch, **boards: dict(zip(("learner", "team"), found[switch], strict=True)),
    )
    assert (referee.best_switch("self"), referee.best_switch("3NS")) == (8, 4)


@pytest.mark.parametrize(
    ("eval_boards", "given", "boards", "episodes"),
    [
        (10, {}, 3, 4),
        (8, {}, 2, 4),
        (3, {}, 2, 4),
        (10, dict(boards=5, episodes=2), 5, 2),
        (10, dict(episodes=1), 10, 1),
    ],
)
def test_boards_that_a_policy_plays(eval_boards, given, boards, episodes, monkeypatch):
    """So many episodes in all, at least two boards; what is told is what --om says, if nothing else is asked for."""
    monkeypatch.setattr(hop_ppo, "judge", lambda *args: args)
    referee = hop_ppo.Evaluator(
        Args(eval_boards=eval_boards, team_episodes=4, om="oracle"), SMALL, None, None
    )
    policy, game, others, played, planner = referee.play("policy", "2NS1NH", 5, **given)
    assert (policy, game.boards, played, game.teams.team_episodes, planner) == (
        "policy",
        boards,
        episodes,
        episodes,
        None,
    )
    expected = Real(boards, SMALL, "2NS1NH", 5, episodes)
    np.testing.assert_array_equal(game.planes(), expected.planes())
    np.testing.assert_array_equal(game.who, expected.who)
    assert others.oracle and not referee.play("policy", "mixed", 5, om="none")[2].oracle
    assert referee.play("policy", "mixed", 5, plan="oracle", **given)[4].kind == "oracle"


@pytest.mark.parametrize("oracle", ["", "run"])
def test_oracle_and_searches_of_an_evaluation(oracle, monkeypatch):
    """Searches play --plan-boards episodes, all others --eval-boards; none of them with `self`."""
    args = Args(co_players="self", om="belief", oracle=oracle, team_episodes=4)
    args.plan, args.plan_boards, args.plan_model, args.oracle_simulations = True, 10, "rules", 7
    referee, plays = hop_ppo.Evaluator(args, Rules(), None, None), []
    monkeypatch.setattr(hop_ppo, "teams_of", lambda args, rules: ["self", "3NS"])
    monkeypatch.setattr(hop_ppo, "load_agent", lambda folder: (f"agent of {folder}", {}))
    monkeypatch.setattr(hop_ppo, "summarize", lambda found: found)
    monkeypatch.setattr(referee, "best_switch", lambda team: 4)
    monkeypatch.setattr(referee, "untrained", lambda agent: "untrained")

    def play(policy, team, seed, boards=0, episodes=0, om="", plan=""):
        plays.append(
            (
                policy if isinstance(policy, str) else type(policy).__name__,
                team,
                seed,
                boards,
                episodes,
                om,
                plan,
            )
        )
        return {"number": len(plays)}

    monkeypatch.setattr(referee, "play", play)
    found = referee.compare("agent")
    usual = [("agent", ""), ("Script", "none"), ("Script", "none"), ("untrained", ""), ("function", "none")]
    expected = [(policy, team, 3001, 0, 0, om, "") for team in ("self", "3NS") for policy, om in usual]
    if oracle:
        expected.append(("agent of run", "3NS", 3001, 0, 0, "oracle", ""))
    expected.append(("agent", "3NS", 3001, 3, 0, "", "rules"))
    searches = ("agent of run", "oracle") if oracle else ("agent", "belief")
    expected.append((searches[0], "3NS", 3001, 3, 0, searches[1], "oracle"))
    assert plays == expected
    kinds = [
        "teams",
        "script",
        "script_told",
        "untrained",
        "random",
        *(["oracle"] if oracle else []),
        "plan",
        "oracle_search",
    ]
    assert list(found) == kinds and all(list(found[kind]) == ["3NS"] for kind in kinds[5:])
    numbers = [
        found[kind][team]["number"] for team in ("self", "3NS") for kind in kinds if team in found[kind]
    ]
    assert numbers == list(range(1, len(plays) + 1))


def test_adaptation_by_hand(monkeypatch):
    """Two episodes of three teams: means 2 and 5, standard deviations 1 and 3."""
    referee = hop_ppo.Evaluator(Args(co_players="self", plan_boards=3), Rules(), None, None)
    monkeypatch.setattr(hop_ppo, "teams_of", lambda args, rules: ["self", "3NH"])
    plays, learner = [], np.array([[1.0, 2.0, 3.0], [2.0, 5.0, 8.0]])
    monkeypatch.setattr(referee, "play", lambda *args: (plays.append(args), dict(learner=learner))[1])
    found = referee.adapt("agent")
    assert plays == [("agent", "3NH", 3001, 3, 10)] and list(found) == ["3NH"]
    for i, (mean, deviation) in enumerate([(2.0, 1.0), (5.0, 3.0)]):
        half = 1.96 * deviation / 3**0.5
        assert found["3NH"][i] == pytest.approx(dict(episode=i + 1, learner=mean, learner_ci95=half))


def test_script_of_all_goes_for_the_stag():
    found = hop_ppo.Evaluator(Args(eval_boards=50, team_episodes=1), Rules(), None, None).script(
        "self", 3001, None
    )
    assert 2.7 < found["team"] < 3.0 and found["stags"] == 1 and found["tick"] is None


def test_untrained_is_a_network_of_the_same_kind_with_the_seed_of_the_run():
    torch.manual_seed(7)
    agent = Agent(1, 0)
    nn_scale(agent)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    untrained = hop_ppo.Evaluator(Args(seed=7), Rules(), None, None).untrained(agent)
    torch.testing.assert_close(torch.rand(4), expected)  # and nothing else is drawn differently
    torch.manual_seed(7)
    torch.testing.assert_close(untrained.state_dict(), Agent(1, 0).state_dict())


def test_rows_of_a_table_keep_the_name_of_the_team():
    one = dict(learner=1.0, learner_ci95=0.1, team=2.0, team_ci95=0.2, episodes=8)
    rows = hop_ppo.table_rows({"teams": {"3NS": one, "3NH": one}, "random": {"3NS": one}})
    assert [(row["policy"], row["team"]) for row in rows] == [
        ("teams", "3NS"),
        ("teams", "3NH"),
        ("random", "3NS"),
    ]
    assert {key: value for key, value in rows[0].items() if key not in ("policy", "team")} == dict(
        learner=1.0, learner_ci95=0.1, team_return=2.0, team_return_ci95=0.2, episodes=8
    )


# ---- the whole script


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with an untrained VAE and world model in it."""
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    for kind, root, net, args in (
        ("pretrain_vae", "vae_ckpts/vae__1/dim16", VAE(8, 8, 35), dict(data="x")),
        (
            "train_world_model",
            "wm_ckpts/wm__1",
            ObjectWorldModel(8, 8, [0.0, 1.0, 10.0]),
            dict(data="x", model="moves"),
        ),
    ):
        (folder / root).mkdir(parents=True)
        for name in ("best.pt", "last.pt"):
            checkpoint = dict(kind=kind, model=net.state_dict(), sizes=net.sizes, args=args, goals_trained=1)
            tracking.save_checkpoint(folder / root / name, checkpoint)
    test = dict(top1=0.7874, top3=0.9638, nll=0.5832)
    tracking.write_json(folder / "vae_ckpts/vae__1/dim16/metrics.json", {"test": test})
    return folder


def call(monkeypatch, folder, *flags):
    """The script in this process. Returns: its exit code, 0 if it just ends."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["hop_ppo.py", *map(str, flags)])
    try:
        tracking.run(hop_ppo.main, DataError)
    except SystemExit as stop:
        return stop.code
    return 0


def few_figures(monkeypatch) -> None:
    """The end of a run without pictures, with one team, two adaptations and no choice of ticks."""
    adapt = hop_ppo.Evaluator.adapt
    monkeypatch.setattr(hop_ppo, "teams_of", lambda args, rules: [args.co_players])
    monkeypatch.setattr(hop_ppo.figures, "save", lambda *args: None)
    monkeypatch.setattr(hop_ppo.Evaluator, "film", lambda *args: None)
    monkeypatch.setattr(hop_ppo.Evaluator, "adapt", lambda self, agent: adapt(self, agent, 2))
    monkeypatch.setattr(hop_ppo.Evaluator, "best_switch", lambda *args: None)


def newest(folder: Path) -> Path:
    return max((folder / "ppo_ckpts").iterdir(), key=lambda path: int(path.name.split("__")[1]))


def test_teams_of_an_evaluation():
    teams = ["3NS", "1NS2NH", "2NS1NH", "3NH", "3RANDOM", "mixed"]
    assert hop_ppo.teams_of(Args(co_players="3RANDOM"), Rules()) == ["3RANDOM", *teams[:4], "mixed"]
    assert hop_ppo.teams_of(Args(co_players="self"), Rules()) == ["self", *teams]
    assert hop_ppo.teams_of(Args(), Rules(hunters=2)) == ["mixed", "1NS", "1NH", "1RANDOM"]
    assert hop_ppo.teams_of(Args(), Rules(hunters=3)) == ["mixed", "2NS", "1NS1NH", "2NH", "2RANDOM"]


def test_what_it_prints_and_saves(workplace, monkeypatch, capsys):
    monkeypatch.setattr(hop_ppo, "teams_of", lambda args, rules: ["mixed", "3NS"])
    start, search = (
        time.perf_counter(),
        ("--plan", "--plan-simulations", 4, "--plan-samples", 2, "--oracle-simulations", 3),
    )
    assert call(monkeypatch, workplace, *TINY, "--om", "belief", *search) == 0
    said, folder = capsys.readouterr().out, newest(workplace)
    assert (
        "[MOA] vae_ckpts/vae__1: top1 0.7874, top3 0.9638, nll 0.5832 on the offline test split of x" in said
    )
    assert f"[PPO] model saved to: ppo_ckpts/{folder.name}\n" in said
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"run", "seed", "args", "sps", "steps", "adaptation"} <= set(metrics)
    assert metrics["oracle"] is None and (metrics["eval_seed"], metrics["final_seed"]) == (2001, 3001)
    policies = dict(
        teams=8, script=8, script_told=8, untrained=8, random=8, plan=4, oracle_search=4
    )  # and their episodes
    for policy, episodes in policies.items():
        assert set(metrics[policy]) == {"mixed", "3NS"}
        for one in metrics[policy].values():
            assert {"learner", "learner_ci95", "team", "team_ci95"} <= set(one) and one[
                "episodes"
            ] == episodes
    ticks = [one["tick"] for one in metrics["script"].values()]
    assert ticks == [metrics["script_told"]["mixed"]["tick"]] * 2
    table = pd.read_csv(folder / "metrics_teams.csv")
    assert table["policy"].tolist() == [policy for policy in policies for _ in range(2)]
    assert set(table["team"]) == {"mixed", "3NS"}
    for row in table.to_dict("records"):
        one = metrics[row["policy"]][row["team"]]
        assert row["team_return"] == pytest.approx(one["team"], abs=1e-6)
        assert row["team_return_ci95"] == pytest.approx(one["team_ci95"], abs=1e-6)
    assert all(len(returns) == 10 for returns in metrics["adaptation"].values())
    assert {path.name for path in folder.iterdir()} >= {
        "best.pt", "last.pt", "progress.csv", "evaluations.csv", "metrics_teams.csv", "metrics_adaptation.csv",
        "metrics_teams.png", "metrics_adaptation.png", "ppo_curve.png", "metrics_episode.gif",
    }  # fmt: skip
    progress = pd.read_csv(folder / "progress.csv")
    assert progress["update"].tolist() == [1, 2, 3, 4, 5, 6]
    evaluations = pd.read_csv(
        folder / "evaluations.csv"
    )  # they choose the best checkpoint: their ticks are real steps, too
    ticks = (evaluations["length"] * evaluations["episodes"]).cumsum().tolist()
    assert evaluations["real_steps"].tolist() == pytest.approx(
        [256 + ticks[0], 512 + ticks[1], 768 + ticks[2]], abs=0.01
    )
    real = [128, 256, 384 + ticks[0], 512 + ticks[0], 640 + ticks[1], 768 + ticks[1]]
    assert progress["real_steps"].tolist() == pytest.approx(real, abs=0.01)
    assert metrics["real_steps"] == pytest.approx(768 + ticks[2], abs=0.01)
    last = tracking.load_checkpoint(folder / "last.pt", hop_ppo.KIND)
    assert metrics["sps"] == pytest.approx(5 * 128 / last["train_seconds"])  # the first update is not counted
    assert 0 < last["train_seconds"] < last["seconds"] < metrics["seconds"] < time.perf_counter() - start
    best = evaluations.loc[evaluations["learner"].idxmax(), "update"]
    assert (
        metrics["steps"]
        == best * 128
        == tracking.load_checkpoint(folder / "best.pt", hop_ppo.KIND)["update"] * 128
    )
    assert {
        "policy_loss",
        "value_loss",
        "entropy",
        "explained_variance",
        "moa_top1",
        "moa_top3",
        "moa_nll",
    } <= set(progress)
    log = EventAccumulator(str(workplace / "runs" / folder.name)).Reload()
    tags = set(log.Tags()["scalars"])
    assert {
        "losses/value_loss",
        "losses/explained_variance",
        "charts/SPS",
        "charts/moa_nll",
        "eval/learner",
    } <= tags
    assert "belief/belief_accuracy_tick0" in tags
    assert (
        next(event.step for event in log.Scalars("charts/SPS")) == 256
    )  # after the first update, which warms up

    few_figures(monkeypatch)
    assert call(monkeypatch, workplace, "--evaluate", folder, "--eval-boards", 4) == 0
    again = json.loads((folder / "evaluate.json").read_text())
    assert again["teams"]["mixed"]["episodes"] == 4 and again["steps"] == metrics["steps"]
    assert call(monkeypatch, workplace, "--evaluate", folder, "--oracle", folder) == 2
    assert "needs --om oracle --env-id StagHunt-v0, this has --om belief" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ("--om", "none", "--total-timesteps", 1),
        ("--om", "belief", "--real-ratio", 0.5, "--plan", "--plan-simulations", 2, "--plan-samples", 1),
        ("--om", "latent", "--env-id", "StagHunt-hidden-v0"),
        ("--om", "oracle"),
        ("--co-players", "self", "--team-reward", "--real-ratio", 0.5),
    ],
)
def test_the_cnn_plays_everything(flags, workplace, monkeypatch):
    few_figures(monkeypatch)
    begin, begun = Imagined.begin, []
    monkeypatch.setattr(
        Imagined, "begin", lambda self, *starts: (begun.append(starts), begin(self, *starts))[1]
    )
    quick = (*TINY, "--network", "cnn", "--total-timesteps", 256, "--update-epochs", 1)
    assert call(monkeypatch, workplace, *quick, *flags) == 0
    assert len(begun) == (
        3 if "--real-ratio" in flags else 0
    )  # once, and with each of two updates where real boards began
    folder = newest(workplace)
    agent, checkpoint = hop_ppo.load_agent(folder)
    assert isinstance(agent, hop_ppo.ConvAgent) and checkpoint["sizes"]["network"] == "cnn"
    assert checkpoint["update"] == (1 if "--total-timesteps" in flags else 2)  # at least one
    before = json.loads((folder / "metrics.json").read_text())["teams"]
    assert call(monkeypatch, workplace, "--evaluate", folder) == 0
    assert json.loads((folder / "evaluate.json").read_text())["teams"] == before


@pytest.mark.parametrize(
    "flags",
    [
        ("--co-players", "self", "--team-reward"),
        ("--network", "cnn"),
        ("--om", "latent", "--real-ratio", 0.5),
        ("--om", "oracle", "--env-id", "StagHunt-hidden-v0"),
    ],
)
def test_resumed_equals_uninterrupted(flags, workplace, tmp_path, monkeypatch):
    """Killed after its second evaluation and resumed: the same files, wall-clock fields aside."""
    shutil.copytree(workplace / "vae_ckpts", tmp_path / "vae_ckpts")
    shutil.copytree(workplace / "wm_ckpts", tmp_path / "wm_ckpts")
    quick = (*TINY, *flags)
    few_figures(monkeypatch)
    assert call(monkeypatch, tmp_path, *quick) == 0
    whole = newest(tmp_path)

    class Killed(Exception):
        pass

    play, calls = hop_ppo.Evaluator.play, []

    def killed(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return play(self, *args, **kwargs)

    monkeypatch.setattr(hop_ppo.Evaluator, "play", killed)
    with pytest.raises(Killed):
        call(monkeypatch, tmp_path, *quick)
    monkeypatch.setattr(hop_ppo.Evaluator, "play", play)
    part = newest(tmp_path)
    assert part != whole
    assert call(monkeypatch, tmp_path, "--resume", part) == 0
    for name in ("progress.csv", "evaluations.csv", "metrics_teams.csv", "metrics_adaptation.csv"):
        assert (part / name).read_bytes() == (whole / name).read_bytes(), name
    mine, theirs = (tracking.load_checkpoint(folder / "last.pt", hop_ppo.KIND) for folder in (part, whole))
    for key in ("model", "games", "rng"):
        torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=0)


def test_from_the_offline_file_alone(workplace, tmp_path, monkeypatch, capsys):
    from data.collect import Args as CollectArgs
    from data.collect import collect
    from data.trajectories import save_arrays

    save_arrays(tmp_path / "small.npz", collect(CollectArgs(samples=600)).arrays())
    few_figures(monkeypatch)
    returns, summarize = (
        iter([3.0, 2.0, 1.0]),
        hop_ppo.summarize,
    )  # of the evaluations in training: real boards choose nothing
    monkeypatch.setattr(
        hop_ppo, "summarize", lambda found: summarize(found) | {"learner": next(returns, 0.0)}
    )
    flags = (
        *TINY,
        "--total-timesteps",
        700,
        "--real-ratio",
        0,
        "--data",
        tmp_path / "small.npz",
    )  # 5 updates of 128
    assert call(monkeypatch, workplace, *flags) == 0
    folder = newest(workplace)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["steps"], metrics["real_steps"]) == (640, 0)
    assert tracking.load_checkpoint(folder / "best.pt", hop_ppo.KIND)["update"] == 5
    evaluations = pd.read_csv(folder / "evaluations.csv")
    assert evaluations["update"].tolist() == [2, 4, 5] and evaluations["real_steps"].tolist() == [0, 0, 0]
    assert evaluations["steps"].tolist() == [256, 512, 640]
    said = capsys.readouterr().out
    assert "0% of them real" in said and "judged: update 5, the last" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--real-ratio", "0.01"),
            "--real-ratio 0.01: of 16 boards none would be real: 0, 1, or more --num-envs",
        ),
        (("--co-players", "2NS"), "--co-players: expected mixed, self, or 3 co-players of NS, NH, RANDOM"),
        (("--team-reward",), "--team-reward: needs --co-players self"),
        (("--gamma", "1.5"), "--gamma: must be in [0, 1], got 1.5"),
        (("--real-ratio", "nan"), "--real-ratio: must be in [0, 1], got nan"),
        (("--num-envs", "0"), "--num-envs: must be at least 1"),
        (("--env-id", "CartPole-v1"), "--env-id: expected StagHunt-v0 or StagHunt-hidden-v0"),
        (
            ("--env-id", "StagHunt-hidden-v0", "--real-ratio", "0.5"),
            "captures pay [1.0, 15.0] in StagHunt-hidden-v0, [1.0",
        ),
        (("--om", "everything"), "--om"),
        (("--om", "belief", "--vae", "nowhere"), "nowhere: no checkpoint there"),
        (("--real-ratio", "0.5", "--world-model", "nowhere"), "nowhere: no checkpoint there"),
        (("--oracle", "nowhere"), "nowhere: no checkpoint there"),
        (("--oracle-simulations", "-1"), "--oracle-simulations: must be at least 0, got -1"),
        (("--end-at-horizon", "no"), "no"),
        (("--network", "transformer"), "--network"),
        (("--evaluate", "nowhere"), "nowhere: no checkpoint there"),
        (("--resume", "vae_ckpts/vae__1"), "expected a checkpoint of hop_ppo.py, found one of pretrain_vae"),
        (("--plan", "--co-players", "self"), "--plan: needs scripted co-players"),
    ],
)
def test_bad_settings(flags, says, workplace, monkeypatch, capsys):
    runs = len(list((workplace / "ppo_ckpts").glob("*")))
    assert call(monkeypatch, workplace, *TINY, *flags) == 2
    error = capsys.readouterr().err
    assert says in error and error.strip().count("\n") == 0 and "----env" not in error, error
    assert len(list((workplace / "ppo_ckpts").glob("*"))) == runs  # nothing is left behind


def test_no_network_to_be_found(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, tmp_path, *TINY, "--om", "belief") == 2
    assert "train one with `python pretrain_vae.py`, or name another" in capsys.readouterr().err


def test_it_learns(tmp_path):
    """Told nothing, among three that hunt hares."""
    torch.manual_seed(1)
    game, args = Real(256, Rules(), "3NH", 1), Args()
    agent, others = Agent(1, 0), Told(game, False)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2e-3, eps=1e-5)
    for _ in range(12):
        data = rollout(agent, game, others, args, torch.zeros(3))
        hop_ppo.update(agent, optimizer, data, args, 1.0)
    fresh = Real(200, Rules(), "3NH", 99)
    found = hop_ppo.summarize(hop_ppo.judge(agent, fresh, Told(fresh, False)))
    assert found["learner"] > 0.8  # random play: 0.1


def test_two_runs_at_once_and_ctrl_c(tmp_path):
    """A run that is interrupted says so in one line, with exit code 130."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    flags = ["--num-envs", "64", "--total-timesteps", "100000000"]
    listen = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a nohup would deafen it
    start = f"{listen}; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-u", "-c", start, str(ROOT / "hop_ppo.py"), *flags]
    pipes = dict(cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    runs = [subprocess.Popen(command, **pipes) for _ in range(2)]
    names = [run.stdout.readline().split()[1] for run in runs]
    for run in runs:
        run.send_signal(2)
    errors = [run.communicate(timeout=60)[1].replace("\r", "\n").splitlines()[-1] for run in runs]
    assert names[0] != names[1] and all(run.returncode == 130 for run in runs)
    assert all(error.startswith("error: interrupted; what was saved before is kept") for error in errors)


def test_hidden_game_in_gymnasium():
    import gymnasium

    env = gymnasium.make_vec("StagHunt-hidden-v0", num_envs=300)
    again = gymnasium.make("StagHunt-hidden-v0")
    assert again.unwrapped.core.rules == env.core.rules == hop_ppo.rules_of("StagHunt-hidden-v0")[0]


# ---- benchmarks


def test_benchmarks_need_nothing_of_the_tests():
    """--help where hypothesis is not installed."""
    code = "import sys; sys.modules['hypothesis'] = None; sys.argv = ['x', '--help']; import runpy; "
    code += "runpy.run_module('benchmarks.hop_ppo', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and "--what" in ran.stdout, ran.stderr


def test_the_plain_loop_sees_the_same_in_both_games():
    """From the same cells the slow game and the batched one give the same observations and masks."""
    from benchmarks import cleanrl_ppo

    fast = cleanrl_ppo.FastEnvs(SMALL, 6, 1)
    for _ in range(4):
        obs, infos = fast.step(np.full(6, 4))[::4]
    core = fast.game.teams.core
    for board in range(6):
        slow = cleanrl_ppo.PlainStagHunt(SMALL, 0, 1)
        slow.game, slow.seat = slow.game.from_state(SMALL, core.state, board), int(fast.game.seats[board])
        np.testing.assert_allclose(slow._obs(), obs[board], atol=1e-6)
        np.testing.assert_array_equal(slow._info()["action_mask"], infos["action_mask"][board])
    assert obs.shape == (6, 8, 5, 5)
