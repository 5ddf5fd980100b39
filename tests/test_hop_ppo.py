"""hop_ppo.py: what its learners see and know, PPO's returns and update, what it prints and saves, what it refuses."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from games import board_starts
from hidden_game import newest
from saved import whole_checkpoint, write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from worlds import TrueWorld

import hop_ppo
import metrics.comparison
import pretrain_vae
import tracking
import train_world_model
from data import DataError
from envs import Rules, snowdrift, strategy_probs
from envs.core import legal_cells
from envs.grid import FAR
from envs.scripted import parse_team
from envs.stag_hunt import STAY, UP
from envs.vector_env import LEARNER
from envs.world_model_env import WorldModelEnv
from hop_ppo import NEVER, Agent, Args, Collector, compute_gae, compute_team_gae, rollout, sample
from metrics import returns
from metrics.rivals import uniform_policy
from pretrain_vae import VAE, BeliefLaw
from train_world_model import ObjectWorldModel

ROOT = Path(hop_ppo.__file__).resolve().parent
SMALL = Rules(height=5, width=5, blocks=3, hares=3, horizon=14)
HUNTERS = SMALL.hunters


def floats(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def doubles(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bools(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def make_game(num_boards: int, rules: Rules, team: str, seed: int = 1, team_episodes: int = 1):
    """Boards that are played to their end. Returns: the environment and its infos."""
    envs = hop_ppo.make_envs(rules, num_boards, team, team_episodes, episode="board")
    _, infos = envs.reset(seed=seed)
    return envs, hop_ppo.to_tensors(infos)


def step_game(envs, actions: torch.Tensor) -> hop_ppo.Infos:
    return hop_ppo.to_tensors(envs.step(actions.numpy())[-1])


def make_collector(num_boards: int, rules: Rules, team: str, seed: int = 1, args: Args | None = None):
    """As in training, of learners that know nothing of the others."""
    return Collector(hop_ppo.make_envs(rules, num_boards, team), args or Args(), None, seed)


class UniformAgent(hop_ppo.ActorCritic):
    """Random play; V is what `value_function` makes of an observation."""

    def __init__(self, value_function: Callable):
        super().__init__()
        self.value_function = value_function

    def forward(self, obs, opponent_info):
        return uniform_policy(obs)[0], self.value_function(obs)


def constant_agent(value: float) -> UniformAgent:
    return UniformAgent(lambda obs: torch.full((len(obs.action_mask),), value))


def randomize(agent: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


# ---- returns and advantages, by hand


def test_gae_bootstraps_at_truncation_only():
    """Three learners, one tick each: ended by the rules, by the horizon, and not at all."""
    rewards = floats([1.0, 1.0, 1.0])
    values = floats([0.5, 0.5, 0.5])
    active = bools([True, True, True])
    dones = bools([True, True, False])
    final_values = floats([0.0, 4.0, 0.0])
    next_value = floats(9.0, 9.0, 2.0)
    advantages = compute_gae(rewards, values, active, dones, final_values, next_value, 0.5, 1.0)
    assert advantages[0].tolist() == [1.0 - 0.5, 1.0 + 0.5 * 4.0 - 0.5, 1.0 + 0.5 * 2.0 - 0.5]


@pytest.mark.parametrize("ends", [True, False])
def test_value_at_the_horizon_is_zero_or_bootstrapped(ends, monkeypatch):
    """V is 3 everywhere and learners stay, so that they earn nothing. An episode that the horizon ended returns 0, or 3
    where V is bootstrapped there; the one after it is cut off by the end of the rollout, and returns 3."""
    horizon = SMALL.horizon
    monkeypatch.setattr(hop_ppo, "sample", lambda logprobs, world: torch.full((len(logprobs),), STAY))
    args = Args(num_steps=horizon + 3, gamma=1.0, gae_lambda=1.0, end_at_horizon=ends)
    collector = make_collector(16, SMALL, "mixed")
    batch = rollout(constant_agent(3.0), collector, args, torch.zeros(3))
    by_tick = batch.returns.view(horizon + 3, 16)
    torch.testing.assert_close(by_tick[:horizon], torch.full((horizon, 16), 0.0 if ends else 3.0))
    torch.testing.assert_close(by_tick[horizon:], torch.full((3, 16), 3.0))


@pytest.mark.parametrize("team_reward", [False, True])
def test_nothing_is_bootstrapped_when_a_rollout_stops_at_the_horizon(team_reward, monkeypatch):
    """The last value of the rollout is then that of the next episode, and must not flow into this one."""
    monkeypatch.setattr(hop_ppo, "sample", lambda logprobs, world: torch.full((len(logprobs),), STAY))
    args = Args(num_steps=SMALL.horizon, gamma=1.0, gae_lambda=1.0, team_reward=team_reward)
    batch = rollout(constant_agent(3.0), make_collector(16, SMALL, "self"), args, torch.zeros(3))
    assert len(batch.returns) == 16 * HUNTERS * SMALL.horizon
    assert (batch.returns == 0).all()


def test_gae_sums_discounted_errors_and_stops_at_an_end():
    rewards = floats([0.0], [2.0], [0.0])
    values = floats([1.0], [1.5], [3.0])
    active = bools([True], [True], [True])
    dones = bools([False], [True], [False])
    advantages = compute_gae(rewards, values, active, dones, torch.zeros(3, 1), floats(4.0), 0.5, 0.8)
    last = 0.5 * 4.0 - 3.0  # of the next episode: it must not flow into the one before
    middle = 2.0 - 1.5
    first = 0.5 * 1.5 - 1.0 + 0.5 * 0.8 * middle
    assert advantages[:, 0].tolist() == pytest.approx([first, middle, last])


def test_inactive_rows_get_advantage_zero():
    """The hunter leaves with the first tick; what stands in its rows afterwards is garbage, and must not be used."""
    rewards = floats([5.0], [7.0], [7.0])
    values = floats([1.0], [99.0], [99.0])
    active = bools([True], [False], [False])
    dones = bools([True], [False], [False])
    advantages = compute_gae(rewards, values, active, dones, torch.zeros(3, 1), floats(99.0), 0.9, 0.9)
    assert advantages[:, 0].tolist() == [4.0, 0.0, 0.0]


def test_team_reward_goes_on_after_a_hunter_has_left():
    """Two hunters: the first earns 2 and leaves, the second earns 4 a tick later. Both get the mean: 1 + 2."""
    rewards = floats([[2.0, 0.0]], [[0.0, 4.0]])
    values = floats([[0.5, 0.7]], [[99.0, 1.0]])
    active = bools([[True, True]], [[False, True]])
    dones = bools([[True, False]], [[False, True]])
    advantages = compute_team_gae(
        rewards,
        values,
        active,
        dones,
        truncated=torch.zeros_like(dones),
        final_values=torch.zeros_like(values),
        next_value=floats([9.0, 9.0]),
        next_active=bools([False, False]),
        gamma=1.0,
        gae_lambda=1.0,
    )
    torch.testing.assert_close(advantages, floats([[3.0 - 0.5, 3.0 - 0.7]], [[0.0, 2.0 - 1.0]]))


def test_team_advantages_at_the_horizon_and_at_the_last_tick():
    """One tick. Board 0 is truncated with V 4 and 8 of its hunters; board 1 goes on with 2 (the other has left)."""
    advantages = compute_team_gae(
        rewards=floats([[1.0, 3.0], [5.0, 0.0]]),
        values=floats([[0.5, 0.25], [1.0, 7.0]]),
        active=bools([[True, True], [True, False]]),
        dones=bools([[True, True], [False, False]]),
        truncated=bools([[True, True], [False, False]]),
        final_values=floats([[4.0, 8.0], [0.0, 0.0]]),
        next_value=floats([99.0, 99.0], [2.0, 50.0]),
        next_active=bools([True, True], [True, False]),
        gamma=0.5,
        gae_lambda=1.0,
    )
    torch.testing.assert_close(advantages, floats([[2 + 3 - 0.5, 2 + 3 - 0.25], [2.5 + 1 - 1.0, 0.0]]))


# ---- one update, by hand


class TablePolicy(hop_ppo.ActorCritic):
    """Sample i has logits and a value of its own; `time_features[:, 0]` says which sample it is."""

    def __init__(self, logits: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.values = torch.nn.Parameter(values)

    def forward(self, obs, opponent_info):
        row = obs.time_features[:, 0].long()
        return self.logits[row].log_softmax(1), self.values[row]

    def copy(self) -> "TablePolicy":
        return TablePolicy(self.logits.detach().clone(), self.values.detach().clone())


def make_obs(num_rows: int, **known: torch.Tensor) -> hop_ppo.Observation:
    """Only the fields that are given; the others are empty."""
    empty = torch.zeros(num_rows, 0)
    names = hop_ppo.Observation.__dataclass_fields__
    return hop_ppo.Observation(**{name: known.get(name, empty) for name in names})


def update_case(samples: int, **replaced: torch.Tensor) -> tuple[TablePolicy, hop_ppo.Batch]:
    """A policy, float64, and a batch whose actions it took itself; some fields of the batch may be replaced."""
    torch.manual_seed(0)
    policy = TablePolicy(torch.randn(samples, 7).double(), torch.randn(samples).double())
    number = torch.arange(float(samples))[:, None].expand(-1, 3)
    obs = make_obs(samples, time_features=number)
    info = torch.zeros(samples, 0)
    actions = torch.arange(samples) % 7
    logprobs = policy(obs, info)[0].detach()[torch.arange(samples), actions]
    zeros = torch.zeros(samples)
    batch = dict(
        obs=obs,
        opponent_info=info,
        actions=actions,
        logprobs=logprobs,
        values=zeros,
        advantages=zeros,
        returns=torch.randn(samples).double(),
        improved=torch.zeros(samples, 0),
    )
    return policy, hop_ppo.Batch(**batch | replaced)


def run_update(policy, batch, frac: float = 1.0, lr: float = 0.0, **settings) -> dict[str, float]:
    args = Args(**{"update_epochs": 1, "num_minibatches": 1, **settings})
    losses = hop_ppo.update(policy, torch.optim.SGD(policy.parameters(), lr=lr), batch, args, frac)
    return {name: float(value) for name, value in losses.items()}


@pytest.mark.parametrize("value_scale", [1.0, 3.0])
def test_one_minibatch_of_an_update_by_hand(value_scale, monkeypatch):
    """Advantages 3 and -1 are 1 and -1 when normalised. Ratios 1.5 and 0.5, clip_coef 0.2: the first two samples are clipped
    and have no gradient, the other two that of -A * ratio. The entropy's gradient is -p (log p + H). The value loss is in
    units of value_scale."""
    monkeypatch.setattr(TablePolicy, "value_scale", value_scale)
    ratio = np.array([1.5, 0.5, 0.5, 1.5])
    sign = np.array([1.0, -1.0, 1.0, -1.0])
    policy, batch = update_case(4, advantages=doubles(3, -1, 3, -1))
    batch.logprobs = batch.logprobs - torch.tensor(ratio).log()
    p = policy.logits.detach().softmax(1).numpy()
    values = policy.values.detach().numpy()
    entropy = -(p * np.log(p)).sum(1)
    unclipped = np.array([0.0, 0.0, 1.0, 1.0])[:, None]
    policy_grad = unclipped * (-sign * ratio)[:, None] * (np.eye(7)[batch.actions] - p) / 4
    frac, ent_coef, vf_coef, lr = 0.5, 0.3, 0.7, 0.1
    entropy_grad = -p * (np.log(p) + entropy[:, None]) / 4
    grad = policy_grad - ent_coef * frac * entropy_grad
    errors = (values - batch.returns.numpy()) / value_scale
    value_grad = vf_coef * errors / value_scale / 4
    norm = np.sqrt((grad**2).sum() + (value_grad**2).sum())

    coefs = dict(clip_coef=0.2, ent_coef=ent_coef, vf_coef=vf_coef, learning_rate=lr)
    close = dict(atol=1e-5, rtol=1e-5)
    for max_grad_norm in (1e6, norm / 4):
        trained = policy.copy()
        scale = min(1, max_grad_norm / norm)
        losses = run_update(trained, batch, frac, lr=9.0, max_grad_norm=max_grad_norm, **coefs)
        np.testing.assert_allclose(trained.logits.grad, scale * grad, **close)
        np.testing.assert_allclose(trained.values.grad, scale * value_grad, **close)
        moved = policy.logits.detach().numpy() - lr * frac * scale * grad
        np.testing.assert_allclose(trained.logits.detach(), moved, **close)
    expected = dict(
        policy_loss=(-1.2 + 0.8 - 0.5 + 1.5) / 4,
        value_loss=0.5 * np.mean(errors**2),
        entropy=entropy.mean(),
        old_approx_kl=-np.log(ratio).mean(),
        approx_kl=(ratio - 1 - np.log(ratio)).mean(),
        clipfrac=1.0,
    )
    assert losses == pytest.approx(expected, abs=1e-5)


def test_expert_iteration_moves_the_policy_to_that_of_the_search():
    """The gradient of the cross-entropy: p - improved, over the samples; advantages and old probabilities do not matter."""
    improved = torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.2, 0.8]]).double()
    policy, batch = update_case(2, advantages=doubles(3, -1), improved=improved)
    p = policy.logits.detach().softmax(1)
    loss = -(improved * p.log()).sum(1).mean()
    found = run_update(policy, batch, ent_coef=0.0, plan_train=True, max_grad_norm=1e6)
    assert found["policy_loss"] == pytest.approx(float(loss), abs=1e-6)
    torch.testing.assert_close(policy.logits.grad, (p - improved) / 2, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("ratio", "share"), [(1.19, 0.0), (1.21, 1.0), (0.81, 0.0), (0.79, 1.0)])
def test_clipfrac_is_the_share_of_clipped_ratios(ratio, share):
    policy, batch = update_case(2)
    batch.logprobs = batch.logprobs - math.log(ratio)
    assert run_update(policy, batch)["clipfrac"] == share


def test_an_epoch_splits_all_samples_into_minibatches_and_losses_are_means_over_samples():
    """5 samples in 2 minibatches: 3 and 2, shuffled in each epoch."""
    policy, batch = update_case(5, advantages=doubles(1, 2, 3, 4, 5))
    minibatches = []
    forward = policy.forward

    def recorded(obs, info):
        minibatches.append(obs.time_features[:, 0].tolist())
        return forward(obs, info)

    policy.forward = recorded
    losses = run_update(policy, batch, update_epochs=3, num_minibatches=2, learning_rate=0.0)
    assert [len(rows) for rows in minibatches] == [3, 2] * 3
    for epoch in (0, 2, 4):
        assert sorted(minibatches[epoch] + minibatches[epoch + 1]) == [0, 1, 2, 3, 4]
    assert minibatches[0] != minibatches[2]
    logprobs, values = forward(batch.obs, None)
    value_loss = 0.5 * (values - batch.returns).square().mean()
    entropy = -(logprobs.exp() * logprobs).sum(1).mean()
    assert losses["value_loss"] == pytest.approx(value_loss.item())
    assert losses["entropy"] == pytest.approx(entropy.item())


def test_equal_advantages_of_a_minibatch_give_no_gradient():
    policy, batch = update_case(3, advantages=doubles(2, 2, 2))
    run_update(policy, batch, ent_coef=0.0, vf_coef=0.0)
    assert policy.logits.grad.abs().max() == 0  # and are not NaN


def test_advantages_may_stay_as_they_are():
    """Ratios are 1 before the first step: the loss is the mean of -A, and normalised it is 0."""
    policy, batch = update_case(2, advantages=doubles(3, -1))
    assert run_update(policy.copy(), batch, norm_adv=False)["policy_loss"] == pytest.approx(-1.0)
    assert run_update(policy, batch)["policy_loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("value_scale", "expected"), [(1.0, [4.0, 1.44, 1.0]), (2.0, [1.0, 0.64, 0.25])])
def test_a_clipped_value_loss_by_hand(value_scale, expected, monkeypatch):
    """Clipped by 0.2 and in units of value_scale. V 2 was 1, to be 0: the clipped error 1.2 is less than the error 2. V 2
    was 1, to be 2.4: the clipped error is the larger one. V 1 was 1.1, to be 2: not clipped, as 0.1 is within 0.2."""
    monkeypatch.setattr(TablePolicy, "value_scale", value_scale)
    reached = 1.0 + 0.2 * value_scale
    returns_ = doubles(0.0, reached + 1.2 if value_scale == 1.0 else reached + 1.6, 2.0)
    policy, batch = update_case(3, values=doubles(1.0, 1.0, 1.1), returns=returns_)
    policy.values.data = doubles(2.0, 2.0, 1.0)
    losses = run_update(policy, batch, clip_vloss=True, ent_coef=0.0, vf_coef=1.0, max_grad_norm=1e6)
    assert losses["value_loss"] == pytest.approx(0.5 * sum(expected) / 3)
    # of the samples whose clipped error counts, V has no gradient
    assert (policy.values.grad != 0).tolist() == [True, False, True]


@pytest.mark.parametrize(("target", "epochs"), [(None, 3), (0.1, 3), (0.05, 1)])
def test_an_update_stops_at_the_target_kl(target, epochs):
    """Each epoch's minibatch is at ratio e^0.4: its KL is e^0.4 - 1 - 0.4 = 0.0918."""
    policy, batch = update_case(4)
    batch.logprobs = batch.logprobs - 0.4
    forward, seen = policy.forward, []
    policy.forward = lambda obs, info: seen.append(len(obs.active)) or forward(obs, info)
    losses = run_update(policy, batch, update_epochs=3, target_kl=target, learning_rate=0.0, ent_coef=0.0)
    assert len(seen) == epochs
    assert losses["approx_kl"] == pytest.approx(math.exp(0.4) - 1.4)


class OneOfTwo:
    """The first of two processes, which knows what the other one adds to the KL."""

    rank, size = 0, 2

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values + 0.0459 if values.ndim == 0 else values

    def sum_gradients(self, model) -> None:
        pass


def test_a_process_stops_at_the_target_kl_of_all():
    """Its own samples have KL 0."""
    policy, batch = update_case(4)
    forward, seen = policy.forward, []
    policy.forward = lambda obs, info: seen.append(len(obs.active)) or forward(obs, info)
    args = Args(update_epochs=3, num_minibatches=1, target_kl=0.04, learning_rate=0.0)
    hop_ppo.update(policy, torch.optim.SGD(policy.parameters(), lr=0.0), batch, args, 1.0, OneOfTwo())
    assert seen == [2]


@pytest.mark.parametrize(("flags", "shares"), [((), [1, 5 / 6]), (("--no-anneal-lr",), [1, 1])])
def test_without_annealing_nothing_falls(flags, shares, tmp_path, monkeypatch):
    """What `update` is given: the share of the training that is left."""
    given = []

    def update(agent, optimizer, batch, args, frac, world):
        given.append(frac)
        return dict.fromkeys(
            ("policy_loss", "value_loss"), 1 / (2 - len(given))
        )  # the second one is the last

    monkeypatch.setattr(hop_ppo, "update", update)
    with pytest.raises(ZeroDivisionError):
        run_script(monkeypatch, tmp_path, *TINY, *flags)
    assert given == pytest.approx(shares)


def test_entropy_excludes_illegal_actions():
    """Two legal actions, equally likely: log 2."""
    policy, batch = update_case(2)
    logits = torch.full((2, 7), hop_ppo.MASKED).double()
    logits[:, :2] = 0.0
    policy.logits.data = logits
    assert run_update(policy, batch)["entropy"] == pytest.approx(math.log(2))
    assert policy.logits.grad.isfinite().all()


def test_explained_variance_by_hand():
    """Returns 1, 3 have variance 1; errors 0.5, -0.5 have 0.25."""
    _, batch = update_case(2, returns=floats(1.0, 3.0), values=floats(0.5, 3.5))
    assert float(hop_ppo.explained_variance(batch)) == pytest.approx(0.75)
    _, batch = update_case(2, returns=floats(2.0, 2.0), values=floats(2.0, 2.0))
    assert math.isnan(float(hop_ppo.explained_variance(batch)))


# ---- rollouts of an environment whose rewards and ends are a table


class ScriptedEnvs:
    """Two boards, three hunters, as a vector environment that the caller resets.

    ticks: (rewards [2, 3], who terminates, who is truncated: (board, seat) pairs), one a tick. The learners of the next
    episode sit one seat further.
    """

    rules = Rules(hunters=3, stags=1, hares=2, blocks=0, height=2, width=3)
    co_players = "mixed"
    num_boards = 2

    def __init__(self, ticks: list, self_play: bool = False, episode: str = "learner", seats=(1, 0)):
        self.ticks = list(ticks)
        self.self_play = self_play
        self.episode = "board" if self_play else episode
        self.rows_per_board = 3 if self_play else 1
        self.num_envs = 2 * self.rows_per_board
        self.learner_seats = torch.tensor(seats)
        self.tick = torch.zeros(2, dtype=torch.int64)
        self.active = torch.ones(2, 3, dtype=torch.bool)
        self.terminated = torch.zeros(2, dtype=torch.bool)
        self.truncated = torch.zeros(2, dtype=torch.bool)
        self.joint_rewards = torch.zeros(2, 3)
        self.actions = []  # of each tick
        self.resets = []  # boards, of each reset

    def reset(self, *, seed=None, options=None):
        if options is None:
            return None, self.infos()
        boards = torch.as_tensor(options["reset_mask"][:: self.rows_per_board])
        self.resets.append(boards.tolist())
        self.active[boards] = True
        self.tick[boards] = 0
        self.terminated &= ~boards
        self.truncated &= ~boards
        self.learner_seats = torch.where(boards, (self.learner_seats + 1) % 3, self.learner_seats)
        return None, self.infos(new_team=boards)

    def step(self, actions):
        self.actions.append(actions.tolist())
        joint_rewards, leaving, cut = self.ticks.pop(0)
        self.joint_rewards = floats(*joint_rewards)
        self.tick = self.tick + ~(self.terminated | self.truncated)
        for board, seat in leaving:
            self.active[board, seat] = False
        truncated = torch.zeros(2, 3, dtype=torch.bool)
        for board, seat in cut:
            truncated[board, seat] = True
        if self.episode == "learner":
            self.terminated = ~self.of_learners(self.active)
            self.truncated = self.of_learners(truncated)
        else:
            self.truncated |= truncated.any(1)
            self.terminated |= ~self.active.any(1)
        ends = [self.to_rows(self.terminated).numpy(), self.to_rows(self.truncated).numpy()]
        rewards = self.joint_rewards.flatten() if self.self_play else self.of_learners(self.joint_rewards)
        return None, rewards.numpy(), *ends, self.infos()

    def of_learners(self, values):
        return values.gather(1, self.learner_seats[:, None])[:, 0]

    def to_rows(self, values):
        return values.repeat_interleave(self.rows_per_board, 0)

    def infos(self, new_team=None):
        cells = self.rules.cells
        boards = dict(
            tick=self.tick,
            first_hunt=torch.full((2,), -1),
            active=self.active,
            joint_rewards=self.joint_rewards,
            new_team=torch.zeros(2, dtype=torch.bool) if new_team is None else new_team,
            hunters=torch.zeros(2, 3, dtype=torch.int64),
            prey=torch.tensor([[0, cells, cells], [cells, 1, cells]]),
            blocks=torch.zeros(2, cells, dtype=torch.bool),
        )
        seat = torch.arange(3).repeat(2) if self.self_play else self.learner_seats
        return {key: self.to_rows(value).clone() for key, value in boards.items()} | {"seat": seat.clone()}


@pytest.fixture
def scripted_obs(monkeypatch):
    """`time_features` of an observation are the tick, the board and the seat."""

    def observe(infos, rules):
        seat = infos["seat"]
        num_rows = len(seat)
        board = torch.arange(num_rows) // (num_rows // 2)
        return make_obs(
            num_rows,
            active=infos["active"].gather(1, seat[:, None]),
            action_mask=torch.ones(num_rows, 7, dtype=torch.bool),
            time_features=torch.stack([infos["tick"], board, seat], 1).float(),
        )

    monkeypatch.setattr(hop_ppo, "observe_envs", observe)


def value_of(tick, board, seat):
    return 0.5 * tick + 2.0 * board + 4.0 * seat + 1.0


def scripted_agent() -> UniformAgent:
    return UniformAgent(lambda obs: value_of(*obs.time_features.unbind(1)))


class RecordingInfo(hop_ppo.NoInfo):
    """Knows nothing; records what it is asked."""

    def __init__(self, infos, rows_per_board=1):
        super().__init__(infos, rows_per_board)
        self.calls = []

    def features(self):
        self.calls.append("features")
        return super().features()

    def update(self, infos):
        self.calls.append("update")
        super().update(infos)

    def reset(self, boards, infos):
        self.calls.append(("reset", boards.tolist(), infos["new_team"].tolist()))
        super().reset(boards, infos)


def scripted_collector(envs: ScriptedEnvs) -> Collector:
    collector = Collector(envs, Args(), None, 1)
    collector.opponents = RecordingInfo(collector.infos, envs.rows_per_board)
    return collector


ROLLOUT = [  # board 0's learner, in seat 1, leaves at tick 1; board 1's, in seat 0, is truncated then
    ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [], []),
    ([[0.5, 7.0, 0.5], [8.0, 0.5, 0.5]], [(0, 1)], [(1, 0), (1, 1), (1, 2)]),
    ([[0.5, 0.5, 9.0], [0.5, 11.0, 0.5]], [], []),
]


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.usefixtures("scripted_obs")
def test_rollout_by_hand(ends):
    envs, episode_stats = ScriptedEnvs(ROLLOUT), floats(10.0, 20.0, 30.0)
    collector = scripted_collector(envs)
    args = Args(num_steps=3, gamma=0.5, gae_lambda=0.5, end_at_horizon=ends)
    batch = rollout(scripted_agent(), collector, args, episode_stats)
    v = value_of
    a1 = 7.0 - v(1, 0, 1)  # the rules ended it
    a0 = 2.0 + 0.5 * v(1, 0, 1) - v(0, 0, 1) + 0.25 * a1
    a2 = 9.0 + 0.5 * v(1, 0, 2) - v(0, 0, 2)
    b1 = 8.0 + (0.0 if ends else 0.5 * v(2, 1, 0)) - v(1, 1, 0)
    b0 = 4.0 + 0.5 * v(1, 1, 0) - v(0, 1, 0) + 0.25 * b1
    b2 = 11.0 + 0.5 * v(1, 1, 1) - v(0, 1, 1)
    advantages = [a0, b0, a1, b1, a2, b2]
    values = [v(0, 0, 1), v(0, 1, 0), v(1, 0, 1), v(1, 1, 0), v(0, 0, 2), v(0, 1, 1)]
    assert batch.advantages.tolist() == pytest.approx(advantages)
    assert batch.values.tolist() == pytest.approx(values)
    assert batch.returns.tolist() == pytest.approx([a + b for a, b in zip(advantages, values, strict=True)])
    assert batch.logprobs.tolist() == pytest.approx([-math.log(7)] * 6)
    assert batch.actions.view(3, 2).tolist() == envs.actions
    assert batch.obs.time_features[:, 0].tolist() == [0, 0, 1, 1, 0, 0]  # seen before the tick
    assert episode_stats.tolist() == [10 + 2, 20 + (2 + 7) + (4 + 8), 30 + 2 + 2]
    assert envs.resets == [[True, True]]
    assert collector.episode_returns.tolist() == [9.0, 11.0]  # goes on in the next rollout
    calls = [call for call in collector.opponents.calls if call != "features"]
    assert calls == ["update", "update", ("reset", [True, True], [True, True]), "update"]


@pytest.mark.usefixtures("scripted_obs")
def test_the_search_moves_in_a_rollout_and_its_policy_is_kept():
    envs = ScriptedEnvs(ROLLOUT)
    collector = scripted_collector(envs)
    searched = []

    def planner(obs, opponent_info, infos):
        searched.append(infos["tick"].tolist())
        return torch.tensor([len(searched) - 1, 6]), torch.full((2, 7), float(len(searched)))

    collector.planner = planner
    batch = rollout(scripted_agent(), collector, Args(num_steps=3), torch.zeros(3))
    assert batch.actions.view(3, 2).tolist() == envs.actions == [[0, 6], [1, 6], [2, 6]]
    assert batch.improved.view(3, 2, 7)[:, :, 0].tolist() == [[1, 1], [2, 2], [3, 3]]
    assert searched == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize("team_reward", [False, True])
@pytest.mark.usefixtures("scripted_obs")
def test_self_play_rollout_by_hand(team_reward):
    """Board 0: seat 0 leaves at tick 0, the others at tick 1. Board 1 goes on. Hunters that have left give no samples; the
    return of a board's episode is the mean of its hunters'."""
    ticks = [
        ([[3.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [(0, 0)], []),
        ([[0.0, 6.0, 9.0], [0.0, 2.0, 0.0]], [(0, 1), (0, 2)], []),
        ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [], []),
    ]
    v = value_of
    rows = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2)]  # tick, board, seat
    rows += [(1, 0, 1), (1, 0, 2), (1, 1, 0), (1, 1, 1), (1, 1, 2)]
    rows += [(0, 0, 0), (0, 0, 1), (0, 0, 2), (2, 1, 0), (2, 1, 1), (2, 1, 2)]  # board 0 is a new one
    envs, episode_stats = ScriptedEnvs(ticks, self_play=True), torch.zeros(3)
    args = Args(num_steps=3, gamma=1.0, gae_lambda=1.0, co_players="self", team_reward=team_reward)
    batch = rollout(scripted_agent(), scripted_collector(envs), args, episode_stats)
    assert batch.obs.time_features.tolist() == [[float(x) for x in row] for row in rows]
    assert episode_stats.tolist() == [1, (3 + 6 + 9) / 3, 2]
    assert envs.resets == [[True, False]]
    if team_reward:  # the mean of the rewards, until the board ends; then, or at the last, the mean of V
        last = sum(v(3, 1, seat) for seat in range(3)) / 3
        expected = [6.0] * 3 + [1.0 + last] * 3 + [5.0] * 2 + [2 / 3 + last] * 3
    else:
        last = [v(3, 1, seat) for seat in range(3)]
        expected = [3.0, 6.0, 9.0, 0.0 + last[0], 2.0 + last[1], 1.0 + last[2]]
        expected += [6.0, 9.0, 0.0 + last[0], 2.0 + last[1], 0.0 + last[2]]
    assert batch.returns[:11].tolist() == pytest.approx(expected)


EVALUATED = [  # two episodes; learners in seats 2 and 0, then 0 and 1
    ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [(0, 0), (0, 1), (0, 2)], []),
    ([[0.0, 0.0, 0.0], [10.0, 20.0, 30.0]], [(1, 0), (1, 1)], [(1, 2)]),
    ([[7.0, 0.0, 2.0], [0.0, 8.0, 1.0]], [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)], []),
]


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.usefixtures("scripted_obs")
def test_evaluate_by_hand(planned):
    envs = ScriptedEnvs(EVALUATED, episode="board", seats=(2, 0))
    infos = envs.infos()
    opponents = RecordingInfo(infos)

    class Planner(RecordingInfo):
        def __call__(self, obs, opponent_info, infos):
            self.calls.append("plan")
            return torch.tensor([5, 6]), torch.zeros(2, 7)

    planner = Planner(infos) if planned else None
    results = hop_ppo.evaluate(scripted_agent(), envs, infos, opponents, 2, planner)
    assert {key: array.tolist() for key, array in results.items()} == dict(
        learner=[[3.0, 4.0 + 10.0], [7.0, 8.0]],
        team=[[2.0, (14 + 25 + 36) / 3], [3.0, 3.0]],
        length=[[1, 2], [1, 1]],
        stags=[[0, 1]] * 2,
        hares=[[2, 1]] * 2,
    )
    reset = ("reset", [True, True], [True, True])
    assert opponents.calls == ["features", "update", "features", "update", reset, "features", "update"]
    if planned:
        assert planner.calls == ["plan", "update", "plan", "update", reset, "plan", "update"]
        assert envs.actions == [[5, 6]] * 3


# ---- what an observer sees


def play_randomly(rules: Rules, ticks: int, num_boards: int = 24, seed: int = 3):
    """Self-play, so that every hunter is a learner. Returns: the environment and its infos."""
    envs, infos = make_game(num_boards, rules, "self", seed)
    torch.manual_seed(seed)
    for _ in range(ticks):
        infos = step_game(envs, sample((infos["action_mask"].float() + 1e-9).log()))
    return envs, infos


def by_seat(array: torch.Tensor, hunters: int = HUNTERS) -> torch.Tensor:
    """[B * A, ..] -> [B, A, ..]"""
    return array.unflatten(0, (-1, hunters))


@pytest.mark.parametrize("ticks", [0, 4, 9])
def test_observation_is_the_joint_state_observer_first(ticks):
    envs, infos = play_randomly(SMALL, ticks)
    core, K = envs.core, SMALL.cells
    live = np.flatnonzero(~core.ended)
    obs = hop_ppo.observe_envs(infos, SMALL).map(by_seat)
    distance = np.pad(core.distances(), ((0, 0), (0, 0), (0, 1)), constant_values=FAR)
    for seat in range(HUNTERS):
        own = obs[:, seat]
        np.testing.assert_array_equal(own.action_mask[live], core.legal_actions()[live, seat])
        for k in range(HUNTERS):
            cell = core.hunters[:, (seat + k) % HUNTERS]
            expected = distance[np.arange(24)[:, None], np.arange(SMALL.prey), cell[:, None]]
            expected = np.where(expected == FAR, NEVER, expected)
            np.testing.assert_array_equal(own.distances[:, :, k], expected)
            np.testing.assert_array_equal(own.active[:, k], cell < K)
        np.testing.assert_allclose(own.time_features[:, 0], core.tick / SMALL.horizon)


def test_time_features_count_down_after_the_first_hunt():
    rules = Rules(
        height=3, width=3, blocks=0, stags=0, hares=2, hunters=2, horizon=12, end_after_first_hunt=3
    )
    envs, infos = play_randomly(rules, 0)
    for _ in range(8):
        ticks_left = envs.core.ticks_left
        time_features = hop_ppo.observe_envs(infos, rules).time_features[::2].numpy()
        counts_down = (ticks_left >= 0) | (envs.core.first_hunt >= 0)
        np.testing.assert_array_equal(time_features[:, 1] > 0, counts_down)
        live = ~envs.core.ended & (ticks_left >= 0)
        np.testing.assert_allclose(time_features[live, 2] * 8, ticks_left[live])
        infos = step_game(envs, torch.randint(7, (48,)))
    assert (ticks_left >= 0).any()


def test_permuting_the_seats_permutes_policy_and_value():
    """The same board, the hunters in other seats: each one's policy and value go with it, and so does what is known."""
    torch.manual_seed(0)
    (_, infos), agent = play_randomly(SMALL, 3), Agent((1, 3), 5)
    randomize(agent)
    hunters = infos["hunters"][::HUNTERS]
    known = torch.randn(24, HUNTERS, 5)
    order = torch.tensor([2, 0, 3, 1])

    def all_seats(hunters, known):
        moved = infos | {"hunters": hunters.repeat_interleave(HUNTERS, 0)}
        info = hop_ppo.NoInfo(moved, HUNTERS).rotate(known)
        return map(by_seat, agent(hop_ppo.observe_envs(moved, SMALL), info))

    logprobs, values = all_seats(hunters, known)
    permuted, permuted_values = all_seats(hunters[:, order], known[:, order])
    torch.testing.assert_close(permuted, logprobs[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(permuted_values, values[:, order], atol=1e-5, rtol=1e-5)
    swapped = known[:, [0, 2, 1, 3]]
    other_logprobs, _ = all_seats(hunters, swapped)
    assert (other_logprobs[:, 0] - logprobs[:, 0]).abs().max() > 1e-3  # of whom it is known does matter


def test_planes_of_the_cnn_by_hand():
    """2x3 cells, three hunters; the observer in cell 4, one in cell 0, the other gone; stag in 2, hares in 4 and gone."""
    obs = make_obs(
        1,
        active=torch.ones(1, 3),
        time_features=floats([0.25, 1.0, 0.5]),
        cells=torch.tensor([[4, 0, 6, 2, 4, 6]]),
        blocks=bools([False, True, False, False, False, False]),
    )
    opponent_info = floats([[0.3, 0.7], [0.9, 0.1]])
    empty = [0.0] * 6

    def at(cell: int, value: float = 1.0) -> list[float]:
        return [value if i == cell else 0.0 for i in range(6)]

    hunters = [at(4), at(0), empty]
    blocks_stags_hares = [at(1), at(2), at(4)]
    time_planes = [[0.25] * 6, [1.0] * 6, [0.5] * 6]
    known = [at(0, 0.3), at(0, 0.7), empty, empty]
    planes = hop_ppo.encode_planes(obs, opponent_info, (1, 2), height=2, width=3)
    expected = torch.tensor([*hunters, *blocks_stags_hares, *time_planes, *known])
    torch.testing.assert_close(planes.flatten(2)[0], expected)


@pytest.mark.parametrize("ticks", [0, 5])
def test_planes_of_the_cnn_are_the_joint_state(ticks):
    envs, infos = play_randomly(SMALL, ticks)
    obs = hop_ppo.observe_envs(infos, SMALL)
    planes = by_seat(hop_ppo.encode_planes(obs, torch.zeros(96, 3, 0), SMALL.prey_counts, 5, 5))
    expected = torch.as_tensor(envs.planes()).float()  # [B, A, 5, H, W]: SELF, OTHERS, BLOCKS, STAGS, HARES
    torch.testing.assert_close(planes[:, :, 0], expected[:, :, 0])
    torch.testing.assert_close(planes[:, :, 1:4].sum(2).clamp(max=1), expected[:, :, 1])
    torch.testing.assert_close(planes[:, :, 4:7], expected[:, :, 2:])
    for k in range(4):  # observer first: plane k of seat i is the hunter in seat i + k
        torch.testing.assert_close(planes[:, :, k], expected[:, :, 0].roll(-k, 1))


# ---- the networks


def test_initial_policies_prefer_only_what_is_legal_and_objects_the_hunts():
    """CleanRL's weights: the cnn is about uniform. `objects` prefers the hunts, by 4 times its bias."""
    torch.manual_seed(0)
    _, infos = play_randomly(SMALL, 6)
    obs = hop_ppo.observe_envs(infos, SMALL)
    agents = dict(
        cnn=hop_ppo.make_agent("cnn", SMALL, 0),
        plain=Agent((1, 3), 0, hunt_bias=0.0),
        objects=Agent((1, 3), 0),
    )
    probs = {name: agent(obs, torch.zeros(96, 3, 0))[0].exp() for name, agent in agents.items()}
    uniform = uniform_policy(obs)[0].exp()
    assert (probs["cnn"] - uniform).abs().max() < 0.02
    assert (probs["plain"] - uniform).abs().max() < 0.05
    on_prey = obs.action_mask[:, 5] | obs.action_mask[:, 6]
    odds = probs["objects"][on_prey, 5:].amax(1) / probs["objects"][on_prey, 4]
    assert on_prey.any() and (odds.log() - 4.0).abs().max() < 0.3


def test_initial_weights_are_orthogonal_and_biases_zero():
    cnn, objects = hop_ppo.make_agent("cnn", SMALL, 0), Agent((1, 3), 0)
    gains = {cnn.network[0]: 2**0.5, cnn.actor: 0.01, cnn.critic: 1.0}
    gains |= {objects.actor: 0.01, objects.wait: 0.01, objects.critic[2]: 1.0}
    for layer, gain in gains.items():
        weight = layer.weight.flatten(1)
        expected = gain**2 * torch.eye(len(weight))
        torch.testing.assert_close(weight @ weight.T, expected, atol=1e-3 * gain**2, rtol=0)
    assert objects.actor.bias.tolist() == [0.0, 0.0, 1.0]
    assert not any(layer.bias.any() for layer in gains if layer is not objects.actor)


def slow_forward(agent: Agent, obs, opponent_info, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`Agent.forward` of one observer, prey by prey and hunter by hunter. Returns: logits [5 + k] without the mask, V."""
    kinds, (P, A) = agent.kind_slices, obs.distances.shape[1:]
    kind_of = [kind for kind, part in enumerate(kinds) for _ in range(part.start, part.stop)]
    raw = obs.distances[row].tolist()
    time_features = [*obs.time_features[row].tolist(), float(obs.active[row].float().mean())]
    distances = [[min(d, 24) for d in of_prey] for of_prey in raw]

    def near(p, a):
        d = distances[p][a]
        same_kind = [distances[q][a] for q in range(P) if kind_of[q] == kind_of[p]]
        beyond = d - min(distances[q][a] for q in range(P))
        return [d / 8, d == 0, d == 1, (d - min(same_kind)) / 4, beyond / 4, beyond == 0]

    prey = []
    for p in range(P):
        is_kind = [kind == kind_of[p] for kind in range(len(kinds))]
        crowd = torch.zeros(agent.other.out_features)
        for a in range(1, A):
            if raw[p][a] < NEVER:
                ahead = max(-1.0, min(1.0, (distances[p][a] - distances[p][0]) / 4))
                other = [*near(p, a), ahead, ahead == 0, *is_kind[:-1], *opponent_info[row, a - 1].tolist()]
                crowd += agent.other(torch.tensor(other).float()).relu()
        own = torch.tensor([*near(p, 0), *is_kind, *time_features]).float()
        prey.append(agent.prey(torch.cat([own, crowd])).relu() * (raw[p][0] < NEVER))
    stacked = torch.stack(prey)
    pooled = torch.cat([stacked.amax(0), stacked.mean(0), torch.tensor(time_features)])
    context = agent.context(pooled).relu()
    logits = torch.zeros(5 + len(kinds))
    logits[4] = agent.wait(context)[0]
    for p in range(P):
        if raw[p][0] < NEVER:
            go, stay, hunt = 4 * agent.actor((agent.token(prey[p]) + context).relu())
            for move in range(4):
                logits[move] += go * (obs.neighbour_distances[row, p, move] < raw[p][0])
            if raw[p][0] == 0:
                logits[4] += stay
                logits[5 + kind_of[p]] += hunt
    return logits, agent.value_scale * agent.critic(context)[0]


TWO_AND_TWO = Rules(height=5, width=5, blocks=3, stags=2, hares=2, horizon=14)


@pytest.mark.parametrize(
    ("rules", "ticks", "scale"),
    [
        (TWO_AND_TWO, 0, 1.0),
        (TWO_AND_TWO, 5, 1.0),
        (TWO_AND_TWO, 9, 1.0),
        (snowdrift.Rules(height=5, width=5, blocks=3, drifts=4, horizon=14), 9, 4.0),
    ],
)
def test_agent_equals_a_slow_forward_prey_by_prey(rules, ticks, scale):
    """Also where a kind of prey is gone, a hunter has left, or one stands on a prey; V is in units of the returns."""
    _, infos = play_randomly(rules, ticks)
    prey = infos["prey"]
    prey[:4, :2] = prey[4:8, 2:] = prey[8:12] = rules.cells  # boards 0, 1 and 2
    torch.manual_seed(1)
    agent, known = hop_ppo.make_agent("objects", rules, 3), torch.randn(96, 3, 3)
    assert agent.value_scale == scale
    randomize(agent)
    obs = hop_ppo.observe_envs(infos, rules)
    with torch.no_grad():
        logprobs, values = agent(obs, known)
        for row in range(0, 96, 5):
            logits, value = slow_forward(agent, obs, known, row)
            expected = torch.where(obs.action_mask[row], logits, -1e9).log_softmax(0)
            torch.testing.assert_close(logprobs[row], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(values[row], value, atol=1e-4, rtol=1e-4)


def test_sizes_describe_the_networks():
    agent = Agent((2, 2), 3)
    assert agent.sizes == dict(network="objects", kinds=2, info_size=3, hidden=64, hunt_bias=1.0)
    agent = hop_ppo.make_agent("cnn", SMALL, 2)
    assert agent.sizes == dict(network="cnn", hunters=4, kinds=2, info_size=2, height=5, width=5)
    shapes = [tuple(layer.weight.shape) for layer in agent.modules() if hasattr(layer, "weight")]
    assert shapes == [(16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (512, 800), (7, 512), (1, 512)]


def test_illegal_actions_are_never_taken():
    torch.manual_seed(0)
    (_, infos), agent = play_randomly(SMALL, 2), Agent((1, 3), 0)
    randomize(agent)
    obs = hop_ppo.observe_envs(infos, SMALL)
    logprobs, _ = agent(obs, torch.zeros(96, 3, 0))
    assert (logprobs.exp()[~obs.action_mask] == 0).all()
    for _ in range(20):
        assert obs.action_mask.gather(1, sample(logprobs)[:, None]).all()


@pytest.mark.parametrize("network", ["objects", "cnn"])
def test_every_parameter_is_trained(network):
    torch.manual_seed(0)
    agent = hop_ppo.make_agent(network, SMALL, 3)
    collector = make_collector(64, SMALL, "mixed", args=Args(om="oracle"))
    batch = rollout(agent, collector, Args(num_steps=8), torch.zeros(3))
    run_update(agent, batch)
    for name, parameter in agent.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("team", ["self", "mixed"])
def test_a_rollout_holds_only_learners_on_the_board(team, monkeypatch):
    torch.manual_seed(0)
    collector = make_collector(32, SMALL, team)
    envs, active = collector.envs, []
    step = envs.step

    def counting_step(actions):
        hunters = envs.core.hunters.repeat(envs.rows_per_board, 0)
        learners = hunters[np.arange(envs.num_envs), envs.seats]
        active.append(int((learners < SMALL.cells).sum()))
        return step(actions)

    monkeypatch.setattr(envs, "step", counting_step)
    episode_stats = torch.zeros(3)
    batch = rollout(Agent((1, 3), 0), collector, Args(num_steps=24), episode_stats)
    assert len(batch.actions) == sum(active)
    assert batch.obs.active[:, 0].all()
    assert batch.obs.action_mask.gather(1, batch.actions[:, None]).all()
    episodes, return_sum, length_sum = episode_stats.tolist()
    assert episodes > 10 and 0 < return_sum / episodes < 5 and length_sum / episodes <= SMALL.horizon
    if team == "mixed":
        assert len(batch.actions) == 32 * 24  # a board is reset as soon as its learner has left


# ---- who plays


@pytest.mark.parametrize("text", ["2NS", "3XX", "4NH", "NS3", "3ns", "", "1NS2NH!"])
def test_invalid_teams_are_errors(text):
    with pytest.raises(ValueError, match="co-players: expected mixed, self, or 3 co-players"):
        parse_team(text, 3)
    with pytest.raises(ValueError, match="co-players: expected mixed, self, or 3 co-players"):
        hop_ppo.make_envs(Rules(), 4, text)


def test_learner_and_co_players_sit_in_random_seats():
    _, infos = make_game(400, Rules(), "1NS2NH")
    ids = infos["strategy_ids"].numpy()
    assert (np.sort(ids, 1) == [LEARNER, 0, 1, 1]).all()
    assert (ids[np.arange(400), infos["seat"]] == LEARNER).all()
    assert (np.bincount(infos["seat"]) > 60).all()
    assert (np.bincount(np.nonzero(ids == 0)[1]) > 60).all()
    _, infos = make_game(4000, Rules(), "mixed")
    assert abs((infos["strategy_ids"] == 0).sum() / 12000 - 0.5) < 0.03


def test_a_team_stays_together_for_team_episodes():
    envs, infos = make_game(50, SMALL, "mixed", team_episodes=3)
    ids = [infos["strategy_ids"]]
    for episode in range(1, 7):
        infos = hop_ppo.to_tensors(envs.reset(options={"reset_mask": np.ones(50, bool)})[1])
        assert infos["new_team"].tolist() == [episode % 3 == 0] * 50
        ids.append(infos["strategy_ids"])
    assert (ids[0] == ids[1]).all() and (ids[1] == ids[2]).all() and (ids[3] == ids[5]).all()
    assert (ids[2] != ids[3]).any(1).float().mean() > 0.5


def test_the_next_episode_does_not_depend_on_the_length_of_this_one():
    games = []
    for ticks in (3, 9):
        envs, _ = make_game(20, SMALL, "mixed", seed=5, team_episodes=2)
        for _ in range(2):
            for _ in range(ticks):
                envs.step(np.full(20, STAY))
            _, infos = envs.reset(options={"reset_mask": np.ones(20, bool)})
        games.append((envs.planes(), infos["strategy_ids"]))
    for short, long in zip(*games, strict=True):
        np.testing.assert_array_equal(short, long)


def test_boards_are_independent():
    games = [make_game(num_boards, SMALL, "mixed", seed=5)[0] for num_boards in (4, 9)]
    for _ in range(12):
        few, many = games
        np.testing.assert_array_equal(few.planes(), many.planes()[:4])
        np.testing.assert_array_equal(few.strategy_ids, many.strategy_ids[:4])
        for envs in games:
            ended = envs.core.ended.copy()
            ended[4:] = True  # these are reset all the time
            envs.reset(options={"reset_mask": ended})
            envs.step(np.full(envs.num_envs, STAY))


# ---- what the policy knows of its co-players


def make_belief(law: BeliefLaw, probs: torch.Tensor, discount: float) -> tuple[hop_ppo.GoalBelief, dict]:
    """About two hunters of one board, whose goals say probs, [goals, 7]."""
    rules = Rules(height=4, width=4, blocks=0, hunters=2, hares=2)
    _, infos = make_game(1, rules, "1NS")
    vae = VAE(4, 4, rules.horizon)
    vae.belief_law = law
    belief = hop_ppo.GoalBelief(infos, 1, vae, rules, discount)
    belief.goal_policy = lambda *board: probs.log().expand(1, 2, 2, 7)
    return belief, infos


def see(belief: hop_ppo.GoalBelief, infos: dict, actions: list[int]) -> dict:
    """Both take these actions. Returns: the infos after."""
    belief.board_features()
    infos = infos | dict(joint_actions=torch.tensor([actions]), tick=infos["tick"] + 1)
    belief.update(infos)
    return infos


def test_belief_by_hand():
    """After UP (3:1 for the stag) twice: 9:1. The next episode begins with counts 0.9 and 0.1, plus 1/10 each."""
    probs = floats([0.3, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1], [0.1, 0.3, 0.1, 0.1, 0.2, 0.1, 0.1])  # [goals, 7]
    belief, infos = make_belief(BeliefLaw(0.0, 0.0), probs, discount=0.5)
    assert belief.board_features().tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    for expected in (0.75, 0.9):
        infos = see(belief, infos, [UP, STAY])  # STAY shows nothing
        assert belief.board_features()[0, :, 0].tolist() == pytest.approx([expected, 0.5])
        assert belief.board_features().sum(2).tolist() == [pytest.approx([1.0, 1.0])]

    def next_episode(new_team: bool) -> float:
        belief.reset(bools(True), infos | {"new_team": bools(new_team)})
        return float(belief.board_features()[0, 0, 0])

    assert next_episode(new_team=False) == pytest.approx(1.0 / 1.2)
    # nothing happened: 0.5 * 0.9 + 1 / 1.2 for the stag, of 1.5 in all, plus 1/10 each
    assert next_episode(new_team=False) == pytest.approx((0.45 + 1.0 / 1.2 + 0.1) / 1.7)
    assert next_episode(new_team=True) == pytest.approx(0.5)


def test_belief_in_none_of_the_goals_and_in_changes_of_mind_by_hand():
    """Uniform over the legal actions says 1/n where both goals say 0.01; with the hazard a tenth is drawn from the prior."""
    probs = torch.full((2, 7), 0.01)
    probs[:, STAY] = 0.94
    belief, infos = make_belief(BeliefLaw(none=0.2, hazard=0.1), probs, discount=1.0)
    assert belief.board_features()[0, 0].tolist() == pytest.approx([0.4, 0.4])
    hunters, prey, blocks = (infos[key].numpy() for key in ("hunters", "prey", "blocks"))
    legal = legal_cells(hunters, prey, blocks, belief.rules)[0, 0]
    move = int(legal[:STAY].argmax())
    infos = see(belief, infos, [move, STAY])
    seen = np.array([0.4 * 0.01, 0.4 * 0.01, 0.2 / legal.sum()])
    expected = 0.9 * seen / seen.sum() + 0.1 * np.array([0.4, 0.4, 0.2])
    assert belief.log_belief[0, 0].exp().tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert belief.board_features()[0, 0].tolist() == pytest.approx(expected[:2].tolist(), rel=1e-5)
    belief.reset(bools(True), infos | {"new_team": bools(False)})
    prior = (expected + 0.2 * np.array([0.4, 0.4, 0.2])) / 1.2
    assert belief.log_belief[0, 0].exp().tolist() == pytest.approx(prior.tolist(), rel=1e-5)
    before = belief.log_belief.clone()
    away = infos["hunters"].clone()
    away[0, 1] = belief.rules.cells
    infos = infos | dict(hunters=away, active=torch.tensor([[True, False]]))
    belief.infos = infos
    see(belief, infos, [move, STAY])
    assert torch.equal(belief.log_belief[0, 1], before[0, 1]), "nothing is learnt of a hunter that has left"
    second = prior * seen / np.array([0.4, 0.4, 0.2])
    second = second / second.sum() * 0.9 + 0.1 * prior
    assert belief.log_belief[0, 0].exp().tolist() == pytest.approx(second.tolist(), rel=1e-5)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return VAE(5, 5, 14).eval()


@pytest.mark.parametrize("om", ["none", "belief", "latent"])
def test_only_the_oracle_uses_the_strategies(om, vae):
    features = []
    for strategy in (0, 1):
        torch.manual_seed(0)
        envs, infos = make_game(6, SMALL, "mixed")
        ids = {"strategy_ids": torch.full((6, HUNTERS), strategy)}
        opponents = hop_ppo.make_opponents(Args(om=om), envs, infos | ids, vae)
        by_tick = []
        for _ in range(4):
            by_tick.append(opponents.features())
            infos = step_game(envs, torch.full((6,), STAY))
            opponents.update(infos | ids)
        features.append(torch.stack(by_tick))
    torch.testing.assert_close(*features)


def test_the_oracle_knows_the_strategies():
    envs, infos = make_game(6, SMALL, "mixed")
    ids = torch.tensor([[LEARNER, 0, 1, 2]] * 6)
    oracle = hop_ppo.make_opponents(Args(om="oracle"), envs, infos | {"strategy_ids": ids}, None)
    assert oracle.board_features()[0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_beliefs_with_exact_goal_policies_are_soon_right(vae, monkeypatch):
    """With goal heads that are the strategies themselves."""
    envs, infos = make_game(200, Rules(), "mixed")

    class Exact:
        def __init__(self, vae, stags):
            pass

        def __call__(self, *board):
            probs = strategy_probs(envs.core, ["NS", "NH"], 0.1)
            return torch.as_tensor(probs, dtype=torch.float32).clamp(min=1e-20).log()

    monkeypatch.setattr(hop_ppo, "GoalPolicy", Exact)
    belief = hop_ppo.GoalBelief(infos, 1, vae, Rules(), 0.9)
    for _ in range(6):
        belief.board_features()
        belief.update(step_game(envs, torch.full((200,), STAY)))
    stats = belief.stats.summarize()
    assert stats["belief_accuracy_tick0"] < 0.65 < 0.85 < stats["belief_accuracy_tick5"]
    assert stats["moa_top1"] > 0.7 and 0.4 < stats["moa_nll"] < 0.9


# ---- imagination


MEADOW = Rules(height=4, width=4, blocks=0, hares=3, horizon=6)


def imagine(policy, **settings):
    """In the true rules of a small game. Returns: the network, other imagined boards whose goals are given, and settings."""
    rules = MEADOW
    args = Args(num_minibatches=4, learning_rate=5e-3, **settings)
    networks = (VAE(4, 4, rules.horizon), TrueWorld(rules))
    network = hop_ppo.imagine(policy, args, rules, *networks, board_starts(rules, 64, 1))
    args = replace(args, om="none", imagined_co_players="goals", num_steps=rules.horizon, team_episodes=1)
    envs = hop_ppo.make_world_model_envs(args, rules, 256, board_starts(rules, 256, 2), *reversed(networks))
    collector = Collector(envs, args, None, 2)
    collector.opponents = hop_ppo.KnownGoals(collector.infos, goals=2)
    return network, collector, args


@pytest.mark.usefixtures("uncached_worlds")
@pytest.mark.parametrize(("om", "info_size"), [("none", 0), ("belief", 2), ("oracle", 3)])
@pytest.mark.parametrize("kind", ["objects", "cnn"])
def test_ppo_in_imagination_earns_more_with_every_sort_of_team(kind, om, info_size):
    """Than what it begins with. The policy is left as it is."""
    torch.manual_seed(0)
    policy = hop_ppo.make_agent(kind, MEADOW, info_size).eval()
    before = [parameter.clone() for parameter in policy.parameters()]
    returns = []
    for updates in (0, 12):
        network, collector, args = imagine(policy, om=om, plan_fit=updates, gamma=1.0)
        assert network.sizes == policy.sizes | dict(info_size=2) and not network.training
        stats = torch.zeros(3)
        batch = rollout(network, collector, args, stats)
        returns.append(float(stats[1] / stats[0]))
    assert batch.opponent_info.sum(2).unique().tolist() == [0.0, 1.0], "a goal each, or none"
    assert returns[1] > 1.15 * returns[0]
    assert all(map(torch.equal, policy.parameters(), before))


@pytest.mark.parametrize("kind", ["objects", "cnn"])
def test_a_copy_that_is_given_goals_plays_as_the_policy(kind):
    """Of one that knows nothing whatever the goals, of one with beliefs given the same; another's is not copied."""
    torch.manual_seed(0)
    envs = hop_ppo.make_envs(MEADOW, 8, "mixed")
    obs = hop_ppo.observe_envs(hop_ppo.to_tensors(envs.reset(seed=1)[1]), MEADOW)
    goals = torch.eye(3)[torch.randint(3, (8, MEADOW.hunters - 1))][..., :2]
    for om, known in (("none", goals[..., :0]), ("belief", goals), ("latent", goals)):
        policy = hop_ppo.make_agent(kind, MEADOW, known.shape[2])
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        copy = hop_ppo.reader_of_goals(policy, om, MEADOW, 2)
        pairs = zip(copy(obs, goals), policy(obs, known), strict=True)
        equal = [torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs]
        assert equal == [om != "latent"] * 2, om


@pytest.mark.usefixtures("uncached_worlds")
def test_settings_of_a_run_that_imagination_does_not_share(monkeypatch):
    """Its co-players, their goals and its search are not those of imagined boards, where each learner is paid its own."""
    asked = []
    make = hop_ppo.make_world_model_envs
    monkeypatch.setattr(
        hop_ppo, "make_world_model_envs", lambda args, *rest: asked.append(args) or make(args, *rest)
    )
    run = dict(co_players="self", team_reward=True, plan_train=True, team_episodes=3, num_steps=2)
    imagine(Agent((1, 3), 2), om="belief", plan_fit=1, **run)
    seen = asked[0]
    assert hop_ppo.imagined_team(seen) == "goals" and (seen.num_steps, seen.team_episodes) == (16, 1)
    assert not seen.team_reward and not seen.plan_train


@pytest.mark.usefixtures("uncached_worlds")
def test_an_update_in_imagination_is_given_the_goals_and_a_falling_learning_rate(monkeypatch):
    goals, rates = [], []

    def update(network, optimizer, batch, args, frac):
        goals.append(batch.opponent_info)
        rates.append(frac)

    monkeypatch.setattr(hop_ppo, "update", update)
    imagine(Agent((1, 3), 2), om="belief", plan_fit=4)
    assert torch.stack(goals).sum(-1).unique().tolist() == [0.0, 1.0], "one-hot, or none"
    assert torch.stack(goals).sum((0, 1, 2)).min() > 0, "both goals"
    assert rates == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.usefixtures("uncached_worlds")
@pytest.mark.parametrize(("om", "info_size"), [("belief", 2), ("oracle", 3)])
def test_what_is_imagined_before_a_search_depends_on_the_seed_alone(om, info_size, monkeypatch):
    """Not on the random numbers that were drawn before; and it is imagined once for each policy."""
    monkeypatch.setattr(hop_ppo, "PLAN_BOARDS", 16)
    policy = hop_ppo.make_agent("objects", MEADOW, info_size)
    networks = []
    for before in (1, 2):
        torch.manual_seed(before)
        vae = VAE(4, 4, MEADOW.horizon)
        vae.load_state_dict({name: torch.zeros_like(value) for name, value in vae.state_dict().items()})
        evaluator = hop_ppo.Evaluator(Args(om=om, plan_fit=1), MEADOW, vae, TrueWorld(MEADOW))
        networks.append(evaluator.imagine(policy))
        assert evaluator.imagine(policy) is networks[-1]
    assert all(map(torch.equal, *(network.parameters() for network in networks)))
    assert not torch.equal(policy.actor.weight, networks[0].actor.weight)


def test_goals_of_imagined_co_players_are_given_in_the_order_of_the_learner():
    infos = dict(
        strategy_ids=torch.tensor([[0, -1, 2, 1]]), seat=torch.tensor([1]), active=torch.ones(1, 4).bool()
    )
    known = hop_ppo.KnownGoals(infos, goals=2).features()
    assert known.tolist() == [[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]]  # none, the second, the first


FOUR_BY_FOUR = dict(height=4, width=4, blocks=2, horizon=9)


@pytest.mark.usefixtures("uncached_worlds")
@pytest.mark.parametrize(
    "rules",
    [
        Rules(hares=3, **FOUR_BY_FOUR),
        Rules(hares=3, end_after_first_hunt=2, **FOUR_BY_FOUR),
        snowdrift.Rules(drifts=2, **FOUR_BY_FOUR),
    ],
    ids=["stag hunt", "counts down", "snowdrift"],
)
def test_imagined_boards_with_an_exact_world_model_are_real_boards(rules):
    """With the rules as world model and self-play: tick for tick the same game."""
    real, infos = make_game(40, rules, "self")
    starts = tuple(infos[key][::HUNTERS] for key in ("blocks", "hunters", "prey"))
    args = Args(co_players="self", team_episodes=1)
    imagined = hop_ppo.make_world_model_envs(args, rules, 40, starts, TrueWorld(rules), None)
    imagined.reset(seed=1)  # from boards that are drawn: now each from its own
    same = dict(zip(("blocks", "hunters", "prey"), starts, strict=True))
    imagined.load_state_dict(imagined.state_dict() | same)
    torch.manual_seed(2)
    num_truncated = num_terminated = 0
    over = torch.zeros(160, dtype=torch.bool)
    for _ in range(rules.horizon):
        actions = sample((infos["action_mask"].float() + 1e-12).log())
        _, *results, infos = real.step(actions.numpy())
        _, *imagined_results, imagined_infos = imagined.step(actions)
        infos = hop_ppo.to_tensors(infos)
        live = ~over
        for result, expected in zip(imagined_results, results, strict=True):
            torch.testing.assert_close(result[live], torch.as_tensor(expected)[live])
        for key in ("hunters", "prey", "active", "tick", "first_hunt", "ticks_left"):
            torch.testing.assert_close(imagined_infos[key][live], infos[key][live])
        terminated, truncated = map(torch.as_tensor, results[1:])
        num_truncated += int(truncated[live].sum())
        num_terminated += int(terminated[live].sum())
        over |= terminated | truncated
    assert over.all() and num_truncated > 0 and (num_terminated > 0 or rules.game.leaves)
    _, infos = imagined.reset(options={"reset_mask": over})
    assert infos["new_team"].all() and (infos["tick"] == 0).all()
    assert not (imagined.terminated | imagined.truncated).any()


def test_imagined_teams_stay_together_and_are_rolled_out(vae):
    args = Args(om="belief", co_players="1NS2NH", team_episodes=2, num_steps=3)
    _, infos = make_game(8, SMALL, "mixed")
    starts = tuple(infos[key] for key in ("blocks", "hunters", "prey"))
    world_model = ObjectWorldModel(5, 5, [0.0, 1.0])
    envs = hop_ppo.make_world_model_envs(args, SMALL, 60, starts, world_model, vae)
    _, infos = envs.reset(seed=1)
    before = infos["strategy_ids"].clone()
    assert (before.sort(1).values == torch.tensor([LEARNER, 0, 1, 1])).all()
    everywhere = torch.ones(60, dtype=torch.bool)
    _, infos = envs.reset(options={"reset_mask": everywhere})
    assert not infos["new_team"].any() and (infos["strategy_ids"] == before).all()
    _, infos = envs.reset(options={"reset_mask": everywhere})
    assert infos["new_team"].all() and (infos["strategy_ids"] != before).any()
    batch = rollout(Agent((1, 3), 2), Collector(envs, args, vae, 1), args, torch.zeros(3))
    assert len(batch.actions) == 180


# ---- the evaluator


def fake_results(learner: np.ndarray, team: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What `Evaluator.play` returns, arrays [episodes, B]."""
    team = learner if team is None else team
    return dict(learner=learner, team=team, length=learner, stags=learner, hares=learner)


class Bar:
    """In place of tqdm's: what it was moved on by."""

    total = 1e9

    def __init__(self):
        self.done = 0.0

    @property
    def n(self) -> float:
        return self.done

    def update(self, n: float) -> None:
        self.done += n

    def close(self) -> None:
        pass


SEARCHES = dict(plan=True, plan_model="rules", oracle_simulations=7)


@pytest.mark.parametrize("settings", [{}, SEARCHES, dict(plan=True, plan_fit=3), dict(co_players="self")])
def test_the_bar_knows_beforehand_what_the_report_takes(settings, tmp_path, monkeypatch, capsys):
    """The games are not played, only counted."""
    args = Args(team_episodes=2, eval_boards=6, plan_boards=5, num_envs=4, num_steps=5, **settings)
    monkeypatch.setattr(hop_ppo, "evaluate", lambda *args: fake_results(np.zeros((1, 2))))
    for name in ("make_envs", "make_opponents", "Planner", "to_tensors", "imagine", "CachedWorldModel"):
        monkeypatch.setattr(hop_ppo, name, lambda *args, **how: MagicMock())
    monkeypatch.setattr(hop_ppo.figures, "of_returns", lambda *results: {})
    evaluator = hop_ppo.Evaluator(args, Rules(), None, None, Bar())
    monkeypatch.setattr(evaluator, "film", lambda *args: None)
    agent = Agent((1, 4), 0)
    torch.manual_seed(5)
    expected = evaluator.cost_of_report(agent)
    assert evaluator.progress.done == 0 and torch.initial_seed() == 5
    evaluator.report(agent, tmp_path, dict(steps=1), "metrics")
    assert evaluator.progress.done == pytest.approx(expected) and expected > 0
    assert "[PPO] judging on boards of seed 3001: script, teams, untrained, random" in capsys.readouterr().out


def test_a_bar_does_not_move_beyond_its_end():
    evaluator = hop_ppo.Evaluator(Args(), Rules(), None, None, Bar())
    evaluator.progress.total = 2.5
    for _ in range(4):
        evaluator.move_on(1.0)
    assert evaluator.progress.done == 2.5


def test_the_cost_of_what_is_judged_by_hand():
    """Updates of 20 ticks; 3 boards of 35 ticks and 2 episodes; 200 simulations a tick."""
    args = Args(plan_simulations=200, team_episodes=2, eval_boards=6, num_envs=4, num_steps=5)
    evaluator = hop_ppo.Evaluator(args, Rules(), None, None)
    assert evaluator.cost() == pytest.approx(hop_ppo.PLAY_COST * 210 / 20)
    assert evaluator.cost(1, 1, "rules") == pytest.approx(hop_ppo.PLAY_COST * 35 * 201 / 20)


@pytest.mark.parametrize(("env_id", "final"), [("StagHunt-v0", 3001), ("StagHunt-hidden-v0", 4001)])
def test_switch_ticks_are_chosen_on_other_boards_than_those_that_judge(env_id, final, tmp_path, monkeypatch):
    """A fake `play`: on boards that choose, scripts return most at tick 8 with `mixed`, at 12 with other teams. The learner
    returns the tick of the script on boards that judge."""
    rules, _ = hop_ppo.load_rules(Args(env_id=env_id))
    args = Args(env_id=env_id, team_episodes=1, eval_boards=6, plan_boards=5)
    evaluator = hop_ppo.Evaluator(args, rules, None, None)
    plays = []

    def play(policy, team, seed, boards=0, episodes=0, om="", plan=""):
        plays.append((seed, boards, episodes))
        switch = getattr(policy, "switch", 0.0)
        value = float(switch)
        if seed == hop_ppo.EVAL_SEED:
            best = 8 if team == "mixed" else 12
            value = 10.0 if switch == best else -value
        learner = np.full((1, 4), value)
        return fake_results(learner, learner if team == "self" else 1 - learner)

    monkeypatch.setattr(evaluator, "play", play)
    monkeypatch.setattr(evaluator, "film", lambda *args: None)
    monkeypatch.setattr(hop_ppo.figures, "of_returns", lambda *results: {})
    evaluator.report(Agent(rules.prey_counts, 0), tmp_path, dict(steps=1), "metrics")
    results = json.loads((tmp_path / "metrics.json").read_text())
    players = ("teams", "script", "script_told", "untrained", "random")
    assert results.keys() - {"steps", "eval_seed", "final_seed", "adaptation"} == {
        *players,
        "oracle",
        "oracle_search",
    }
    assert results["oracle"] is results["oracle_search"] is None
    teams = list(results["teams"])
    assert [figures["tick"] for figures in results["script"].values()] == [8] * len(teams)
    ticks = {team: figures["tick"] for team, figures in results["script_told"].items()}
    assert ticks == {team: 8 if team == "mixed" else 12 for team in teams}
    for kind in ("script", "script_told"):
        assert all(figures["learner"] == figures["tick"] for figures in results[kind].values())
    choosing, judging, adapting = (2001, 6, 1), (final, 0, 0), (final, 5, 10)
    judged = 5 * len(teams) - 1  # among `mixed` both scripts are one, which plays once
    assert plays == [choosing] * 10 * len(teams) + [judging] * judged + [adapting]  # with `mixed`
    assert (results["eval_seed"], results["final_seed"]) == (2001, final)
    assert (hop_ppo.EVAL_SEED, evaluator.final_seed) == (2001, final)


@pytest.mark.parametrize(
    ("eval_boards", "keywords", "boards", "episodes"),
    [
        (10, {}, 3, 4),
        (8, {}, 2, 4),
        (3, {}, 2, 4),
        (10, dict(boards=5, episodes=2), 5, 2),
        (10, dict(episodes=1), 10, 1),
    ],
)
def test_number_of_boards_and_episodes_of_an_evaluation(eval_boards, keywords, boards, episodes, monkeypatch):
    """So many episodes in all, at least two boards; the policy knows what --om says, if nothing else is asked for."""
    monkeypatch.setattr(hop_ppo, "evaluate", lambda *args: args)
    args = Args(eval_boards=eval_boards, team_episodes=4, om="oracle")
    evaluator = hop_ppo.Evaluator(args, SMALL, None, None)
    policy, envs, infos, opponents, played, planner = evaluator.play("policy", "2NS1NH", 5, **keywords)
    assert (policy, played, planner) == ("policy", episodes, None)
    assert (envs.num_boards, envs.team_episodes) == (boards, episodes)
    expected, expected_infos = make_game(boards, SMALL, "2NS1NH", 5, episodes)
    np.testing.assert_array_equal(envs.planes(), expected.planes())
    for key in ("strategy_ids", "seat", "hunters"):
        torch.testing.assert_close(infos[key], expected_infos[key])
    assert type(opponents) is hop_ppo.OracleInfo
    assert type(evaluator.play("policy", "mixed", 5, om="none")[3]) is hop_ppo.NoInfo
    planner = evaluator.play("policy", "mixed", 5, plan="oracle", **keywords)[5]
    assert planner.kind == "oracle"


@pytest.mark.parametrize("oracle", ["", "run"])
def test_players_of_an_evaluation(oracle, monkeypatch):
    """Searches play --plan-boards episodes, all others --eval-boards; oracle and searches do not play with `self`."""
    args = Args(co_players="self", om="belief", oracle=oracle, team_episodes=4, plan=True, plan_boards=10)
    args.plan_model = "rules"
    args.oracle_simulations = 7
    evaluator = hop_ppo.Evaluator(args, Rules(), None, None)
    monkeypatch.setattr(hop_ppo, "load_agent", lambda folder: (f"agent of {folder}", {}))
    monkeypatch.setattr(evaluator, "untrained", lambda agent: "untrained")
    monkeypatch.setattr(metrics.comparison, "best_switch", lambda *args: 4)
    monkeypatch.setattr(returns, "summarize", lambda results: results)

    def play(policy, team, seed, boards=0, episodes=0, om="", plan=""):
        if not isinstance(policy, str):
            policy = getattr(policy, "__name__", type(policy).__name__)
        return dict(play=(policy, team, seed, boards, episodes, om or args.om, plan))

    def expected(policy, team, boards=0, om="belief", plan=""):
        return policy, team, 3001, boards, 0, om, plan

    players = evaluator.players("agent")
    results = metrics.comparison.compare(play, players, Rules(), ["self", "3NS"], 3001, 2001, 1024)
    plays = {(kind, team): v["play"] for kind, by_team in results.items() for team, v in by_team.items()}
    expected_plays = {}
    for team in ("self", "3NS"):
        expected_plays |= {
            ("teams", team): expected("agent", team),
            ("script", team): expected("ScriptPolicy", team, om="none"),
            ("script_told", team): expected("ScriptPolicy", team, om="none"),
            ("untrained", team): expected("untrained", team),
            ("random", team): expected("uniform_policy", team, om="none"),
        }
    if oracle:
        expected_plays["oracle", "3NS"] = expected("agent of run", "3NS", om="oracle")
    best = ("agent of run", "oracle") if oracle else ("agent", "belief")
    expected_plays["plan", "3NS"] = expected("agent", "3NS", 3, plan="rules")
    expected_plays["oracle_search", "3NS"] = expected(best[0], "3NS", 3, best[1], "oracle")
    assert plays == expected_plays
    kinds = ["teams", "script", "script_told", "untrained", "random", "oracle", "plan", "oracle_search"]
    assert list(results) == [kind for kind in kinds if oracle or kind != "oracle"]


def test_a_script_in_every_seat_catches_the_stag():
    evaluator = hop_ppo.Evaluator(Args(eval_boards=50, team_episodes=1), Rules(), None, None)
    summary = metrics.comparison.play_script(evaluator.play, Rules(), "self", 3001, None)
    assert 2.7 < summary["team"] < 3.0 and summary["stags"] == 1 and summary["tick"] is None


def test_untrained_is_a_network_of_the_same_kind_with_the_seed_of_the_run():
    torch.manual_seed(7)
    agent = Agent((1, 3), 0)
    randomize(agent)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    untrained = hop_ppo.Evaluator(Args(seed=7), Rules(), None, None).untrained(agent)
    torch.testing.assert_close(torch.rand(4), expected)  # and nothing else is drawn differently
    torch.manual_seed(7)
    torch.testing.assert_close(untrained.state_dict(), Agent((1, 3), 0).state_dict())


# ---- the whole script

TINY = ["--num-envs", 16, "--num-steps", 8, "--total-timesteps", 768, "--num-minibatches", 2]
TINY += ["--eval-every", 2, "--eval-boards", 8, "--plan-boards", 4]  # 6 updates of 128 steps


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with an untrained VAE and world model in it."""
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    vae = VAE(8, 8, 35)
    world_model = ObjectWorldModel(8, 8, [0.0, 1.0, 10.0])
    write_run(folder / "vae_ckpts/vae__1/dim16", whole_checkpoint(pretrain_vae, vae, args=dict(data="x")))
    write_run(folder / "wm_ckpts/wm__1", whole_checkpoint(train_world_model, world_model))
    test = dict(top1=0.7874, top3=0.9638, nll=0.5832)
    tracking.write_json(folder / "vae_ckpts/vae__1/dim16/metrics.json", {"test": test})
    return folder


def run_script(monkeypatch, folder: Path, *flags) -> int:
    """The script in this process. Returns: its exit code, 0 if it just ends."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["hop_ppo.py", *map(str, flags)])
    try:
        tracking.run(hop_ppo.main, DataError)
    except SystemExit as stop:
        return stop.code
    return 0


def shorten_report(monkeypatch) -> None:
    """The end of a run without pictures, with one team, two episodes of adaptation and no choice of ticks."""
    adapt = hop_ppo.adapt
    monkeypatch.setattr(hop_ppo, "standard_teams", lambda co_players, rules: [co_players])
    monkeypatch.setattr(hop_ppo, "adapt", lambda *args: adapt(*args, episodes=2))
    monkeypatch.setattr(hop_ppo.figures, "save", lambda *args: None)
    monkeypatch.setattr(hop_ppo.Evaluator, "film", lambda *args: None)
    monkeypatch.setattr(hop_ppo.Evaluator, "film_strangers", lambda *args: None)
    monkeypatch.setattr(metrics.comparison, "best_switch", lambda *args: None)


def newest_run(folder: Path) -> Path:
    return newest(folder / "ppo_ckpts")


def load_last(folder: Path) -> dict:
    return tracking.load_checkpoint(folder / "last.pt", hop_ppo.CHECKPOINT)


def load_best(folder: Path) -> dict:
    return tracking.load_checkpoint(folder / "best.pt", hop_ppo.CHECKPOINT)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


class FinishedRun:
    """The files of a run with belief and searches, and what it printed."""

    def __init__(self, folder: Path, printed: str, seconds: float):
        self.folder = folder
        self.printed = printed
        self.seconds = seconds
        self.metrics = read_json(folder / "metrics.json")
        self.progress = pd.read_csv(folder / "progress.csv")
        self.evaluations = pd.read_csv(folder / "evaluations.csv")

    def log(self) -> EventAccumulator:
        return EventAccumulator(str(self.folder.parents[1] / "runs" / self.folder.name)).Reload()


# the players of the run that is checked, and their episodes
EPISODES = dict(teams=8, script=8, script_told=8, untrained=8, random=8, plan=4, oracle_search=4)


def check_printed(run: FinishedRun):
    scores = "top1 0.7874, top3 0.9638, nll 0.5832 on the offline test split of x"
    assert f"[MOA] vae_ckpts/vae__1: {scores}" in run.printed
    assert f"[PPO] model saved to: ppo_ckpts/{run.folder.name}\n" in run.printed
    assert run.folder.name.split("__")[:4] == ["ppo", "StagHunt-v0", "belief", "1"]


def check_files(run: FinishedRun):
    assert {path.name for path in run.folder.iterdir()} >= {
        "best.pt",
        "last.pt",
        "progress.csv",
        "evaluations.csv",
        "metrics_teams.csv",
        "metrics_adaptation.csv",
        "metrics_teams.png",
        "metrics_adaptation.png",
        "ppo_curve.png",
        "belief_by_tick.png",
        "metrics_episode.gif",
        "metrics_episode_strangers1.gif",
        "metrics_episode_strangers5.gif",
    }


def check_metrics_hold_every_player_with_every_team(run: FinishedRun):
    metrics = run.metrics
    assert {"run", "seed", "args", "sps", "steps", "adaptation"} <= set(metrics)
    assert metrics["oracle"] is None
    assert (metrics["eval_seed"], metrics["final_seed"]) == (2001, 3001)
    for policy, episodes in EPISODES.items():
        assert set(metrics[policy]) == {"mixed", "3NS"}
        for figures in metrics[policy].values():
            assert {"learner", "learner_ci95", "team", "team_ci95"} <= set(figures)
            assert figures["episodes"] == episodes
    ticks = [figures["tick"] for figures in metrics["script"].values()]
    assert ticks == [metrics["script_told"]["mixed"]["tick"]] * 2
    assert all(len(by_episode) == 10 for by_episode in metrics["adaptation"].values())


def check_table_of_teams_is_that_of_the_metrics(run: FinishedRun):
    table = pd.read_csv(run.folder / "metrics_teams.csv")
    assert table["policy"].tolist() == [policy for policy in EPISODES for _ in range(2)]
    assert set(table["team"]) == {"mixed", "3NS"}
    for row in table.to_dict("records"):
        figures = run.metrics[row["policy"]][row["team"]]
        assert row["team_return"] == pytest.approx(figures["team"], abs=1e-6)
        assert row["team_return_ci95"] == pytest.approx(figures["team_ci95"], abs=1e-6)


def check_evaluations_in_training_count_as_real_steps(run: FinishedRun):
    """They choose the best checkpoint."""
    progress, evaluations = run.progress, run.evaluations
    ticks = (evaluations["length"] * evaluations["episodes"]).cumsum().tolist()
    close = dict(abs=0.01)
    assert progress["update"].tolist() == [1, 2, 3, 4, 5, 6]
    expected = [256 + ticks[0], 512 + ticks[1], 768 + ticks[2]]
    assert evaluations["real_steps"].tolist() == pytest.approx(expected, **close)
    expected = [128, 256, 384 + ticks[0], 512 + ticks[0], 640 + ticks[1], 768 + ticks[1]]
    assert progress["real_steps"].tolist() == pytest.approx(expected, **close)
    assert run.metrics["real_steps"] == pytest.approx(768 + ticks[2], **close)


def check_speed_and_seconds(run: FinishedRun):
    last, metrics = load_last(run.folder), run.metrics
    assert metrics["sps"] == pytest.approx(5 * 128 / last["train_seconds"])  # the first update is not counted
    assert 0 < last["train_seconds"] < last["seconds"] < metrics["seconds"] < run.seconds


def check_the_best_evaluation_chooses_the_checkpoint(run: FinishedRun):
    evaluations = run.evaluations
    best = evaluations.loc[evaluations["learner"].idxmax(), "update"]
    assert run.metrics["steps"] == best * 128
    assert load_best(run.folder)["update"] == best


def check_curves(run: FinishedRun):
    losses = {"policy_loss", "value_loss", "entropy", "explained_variance"}
    assert losses | {"moa_top1", "moa_top3", "moa_nll"} <= set(run.progress)
    log = run.log()
    assert set(log.Tags()["scalars"]) >= {
        "losses/value_loss",
        "losses/explained_variance",
        "charts/SPS",
        "charts/moa_nll",
        "eval/learner",
        "charts/belief_accuracy_tick0",
    }
    assert log.Scalars("charts/SPS")[0].step == 256  # after the first update, which warms up


@pytest.mark.slow
def test_what_a_run_prints_and_saves_and_evaluate_judges_again(workplace, monkeypatch, capsys):
    search = [
        "--plan",
        "--plan-fit",
        1,
        "--plan-simulations",
        4,
        "--plan-samples",
        2,
        "--oracle-simulations",
        3,
    ]
    monkeypatch.setattr(hop_ppo, "PLAN_BOARDS", 16)
    monkeypatch.setattr(hop_ppo, "standard_teams", lambda co_players, rules: ["mixed", "3NS"])
    start = time.perf_counter()
    assert run_script(monkeypatch, workplace, *TINY, "--om", "belief", *search) == 0
    seconds = time.perf_counter() - start
    folder = newest_run(workplace)
    run = FinishedRun(folder, capsys.readouterr().out, seconds)
    check_printed(run)
    check_files(run)
    check_metrics_hold_every_player_with_every_team(run)
    check_table_of_teams_is_that_of_the_metrics(run)
    check_evaluations_in_training_count_as_real_steps(run)
    check_speed_and_seconds(run)
    check_the_best_evaluation_chooses_the_checkpoint(run)
    check_curves(run)

    shorten_report(monkeypatch)
    assert run_script(monkeypatch, workplace, "--evaluate", "newest", "--eval-boards", 4) == 0
    again = read_json(folder / "evaluate.json")
    assert again["teams"]["mixed"]["episodes"] == 4
    assert again["steps"] == run.metrics["steps"]
    capsys.readouterr()
    assert run_script(monkeypatch, workplace, "--evaluate", folder, "--oracle", folder) == 2
    error = capsys.readouterr().err
    assert "needs --om oracle --env-id StagHunt-v0, this has --om belief" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--om", "none", "--total-timesteps", 1),
        ("--om", "belief", "--real-ratio", 0.5, "--plan", "--plan-fit", 0, "--plan-simulations", 2),
        ("--om", "latent", "--env-id", "StagHunt-hidden-v0"),
        ("--om", "oracle"),
        ("--co-players", "self", "--team-reward", "--real-ratio", 0.5),
    ],
)
def test_the_cnn_plays_everything(flags, workplace, monkeypatch):
    """Imagined boards, if any, begin where the real ones did before each of the two updates."""
    shorten_report(monkeypatch)
    imagined_from, real_from = [], []

    def recorded_rollout(agent, collector, *args):
        if isinstance(collector.envs, WorldModelEnv):
            imagined_from.append(collector.envs.starts)
        else:
            real_from.append(collector.starts)
        return rollout(agent, collector, *args)

    monkeypatch.setattr(hop_ppo, "rollout", recorded_rollout)
    quick = (*TINY, "--network", "cnn", "--total-timesteps", 256, "--update-epochs", 1)
    assert run_script(monkeypatch, workplace, *quick, *flags) == 0
    if "--real-ratio" in flags:
        assert len(imagined_from) == 2
        torch.testing.assert_close(imagined_from, real_from)
    else:
        assert not imagined_from
    folder = newest_run(workplace)
    agent, checkpoint = hop_ppo.load_agent(folder)
    assert isinstance(agent, hop_ppo.ConvAgent) and checkpoint["sizes"]["network"] == "cnn"
    assert checkpoint["update"] == (1 if "--total-timesteps" in flags else 2)  # at least one
    before = read_json(folder / "metrics.json")["teams"]
    assert run_script(monkeypatch, workplace, "--evaluate", folder) == 0
    assert read_json(folder / "evaluate.json")["teams"] == before


@pytest.mark.slow
def test_films_of_a_training_change_nothing_of_it(tmp_path, monkeypatch):
    film = hop_ppo.Evaluator.film
    shorten_report(monkeypatch)
    monkeypatch.setattr(hop_ppo.Evaluator, "film", film)
    quick = (*TINY, "--env-id", "StagHunt-4x4-v0", "--total-timesteps", 384, "--eval-every", 1)
    runs = []
    for flags in (("--capture-video",), ()):
        assert run_script(monkeypatch, tmp_path, *quick, *flags) == 0
        runs.append(newest_run(tmp_path))
    filmed, plain = runs
    names = sorted(path.relative_to(tmp_path / "videos").as_posix() for path in tmp_path.glob("videos/*/*"))
    assert names == [f"{filmed.name}/{step}.gif" for step in (128, 256, 384)]
    assert (tmp_path / "videos" / names[0]).read_bytes()[:4] == b"GIF8"
    for key in ("model", "optimizer", "collectors", "rng"):
        torch.testing.assert_close(load_last(filmed)[key], load_last(plain)[key], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--co-players", "self", "--team-reward"),
        ("--network", "cnn"),
        ("--om", "latent", "--real-ratio", 0.5),
        ("--om", "oracle", "--env-id", "StagHunt-hidden-v0"),
        ("--co-players", "self", "--om", "belief", "--real-ratio", 0.5, "--imagined-co-players", "goals"),
        (
            "--om",
            "belief",
            "--plan-train",
            "--plan-search",
            "gumbel",
            "--plan-simulations",
            4,
            "--plan-samples",
            2,
        ),
        ("--co-players", "self", "--om", "belief", "--moa-update", "empty"),
    ],
)
def test_resumed_equals_uninterrupted(flags, workplace, tmp_path, monkeypatch):
    """Killed after its second evaluation and resumed: the same files, wall-clock fields aside."""
    shutil.copytree(workplace / "vae_ckpts", tmp_path / "vae_ckpts")
    shutil.copytree(workplace / "wm_ckpts", tmp_path / "wm_ckpts")
    quick = (*TINY, *flags)
    shorten_report(monkeypatch)
    assert run_script(monkeypatch, tmp_path, *quick) == 0
    whole = newest_run(tmp_path)

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
        run_script(monkeypatch, tmp_path, *quick)
    monkeypatch.setattr(hop_ppo.Evaluator, "play", play)
    part = newest_run(tmp_path)
    assert part != whole
    assert run_script(monkeypatch, tmp_path, "--resume", part) == 0
    for name in ("progress.csv", "evaluations.csv", "metrics_teams.csv", "metrics_adaptation.csv"):
        assert (part / name).read_bytes() == (whole / name).read_bytes(), name
    resumed, uninterrupted = load_last(part), load_last(whole)
    for key in ("model", "optimizer", "collectors", "moa", "rng"):
        torch.testing.assert_close(resumed[key], uninterrupted[key], rtol=0, atol=0)


@pytest.mark.slow
def test_training_from_the_offline_file_alone(workplace, tmp_path, monkeypatch, capsys):
    """Nothing real is played: the last checkpoint is kept, whatever its return."""
    from data.collect import Args as CollectArgs
    from data.collect import collect
    from data.trajectories import save_arrays

    data = tmp_path / "small.npz"
    save_arrays(data, collect(CollectArgs(samples=600)).arrays())
    shorten_report(monkeypatch)
    falling, summarize = iter([3.0, 2.0, 1.0]), returns.summarize

    def falls(played: dict) -> dict:
        counts = len(played["learner"][0]) == 8  # not those that only count what there is to judge
        return summarize(played) | {"learner": next(falling, 0.0) if counts else 0.0}

    monkeypatch.setattr(returns, "summarize", falls)
    flags = ("--total-timesteps", 700, "--real-ratio", 0, "--data", data)  # 5 updates of 128
    assert run_script(monkeypatch, workplace, *TINY, *flags) == 0
    folder = newest_run(workplace)
    metrics = read_json(folder / "metrics.json")
    assert (metrics["steps"], metrics["real_steps"]) == (640, 0)
    assert load_best(folder)["update"] == 5
    evaluations = pd.read_csv(folder / "evaluations.csv")
    assert evaluations["learner"].tolist() == [3.0, 2.0, 1.0]
    assert evaluations["update"].tolist() == [2, 4, 5]
    assert evaluations["real_steps"].tolist() == [0, 0, 0]
    assert evaluations["steps"].tolist() == [256, 512, 640]
    printed = capsys.readouterr().out
    assert "0% of them real" in printed and "judged: update 5, the last" in printed


HIDDEN = ("--env-id", "StagHunt-hidden-v0")
DRIFTS = ("--env-id", "Snowdrift-v0")


@pytest.mark.parametrize(
    ("flags", "message"),
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
        (("--env-id", "CartPole-v1"), "--env-id: unknown game 'CartPole-v1': choose from StagHunt-v0, "),
        (
            ("--env-args", "drifts=3"),
            "--env-args: unknown rule 'drifts' of StagHunt-v0: choose from hunters, ",
        ),
        ((*DRIFTS, "--env-args", "height=x"), "--env-args: height: expected a whole number, got 'x'"),
        (
            (*DRIFTS, "--env-args", "blocks=5", "drifts=56"),
            "--env-args: rules: 65 hunters, prey and blocks do not fit on 8x8 = 64 cells",
        ),
        (
            (*DRIFTS, "--co-players", "3NS"),
            "--co-players: expected mixed, self, or 3 co-players of ND, FIX, RANDOM",
        ),
        (
            (*DRIFTS, "--om", "belief"),
            "vae__1: trained on StagHunt-v0, the game is Snowdrift-v0: name one",
        ),
        (
            (*DRIFTS, "--real-ratio", "0", "--co-players", "self"),
            "wm__1: trained on StagHunt-v0, the game is Sn",
        ),
        ((*HIDDEN, "--real-ratio", "0.5"), "captures pay [1.0, 15.0] in StagHunt-hidden-v0, [1.0"),
        (("--om", "everything"), "--om"),
        (("--om", "belief", "--vae", "nowhere"), "nowhere: no checkpoint there"),
        (("--real-ratio", "0.5", "--world-model", "nowhere"), "nowhere: no checkpoint there"),
        (("--oracle", "nowhere"), "nowhere: no checkpoint there"),
        (("--oracle-simulations", "-1"), "--oracle-simulations: must be at least 0, got -1"),
        (("--end-at-horizon", "no"), "no"),
        (("--network", "transformer"), "--network"),
        (("--evaluate", "nowhere"), "nowhere: no checkpoint there"),
        (("--resume", "vae_ckpts/vae__1"), "expected a checkpoint of hop_ppo.py, found one of pretrain_vae"),
        (("--plan-train",), "--plan-train: needs --om belief and --plan-search gumbel"),
        (("--imagined-co-players", "goals"), "--imagined-co-players: no board is imagined"),
        (("--moa-update", "empty", "--real-ratio", "0"), "--moa-update: learns from real boards, of which"),
    ],
)
def test_invalid_settings_end_with_one_line(flags, message, workplace, monkeypatch, capsys):
    runs = len(list((workplace / "ppo_ckpts").glob("*")))
    assert run_script(monkeypatch, workplace, *TINY, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.strip().count("\n") == 0 and "----env" not in error, error
    assert len(list((workplace / "ppo_ckpts").glob("*"))) == runs  # nothing is left behind


def test_a_missing_network_is_an_error(tmp_path, monkeypatch, capsys):
    assert run_script(monkeypatch, tmp_path, *TINY, "--om", "belief") == 2
    assert "train one with `python pretrain_vae.py`, or name another" in capsys.readouterr().err


@pytest.mark.slow
def test_ppo_learns_to_hunt_among_three_that_hunt_hares():
    """Without knowing anything of them."""
    torch.manual_seed(1)
    args, agent = Args(), Agent((1, 4), 0)
    collector = make_collector(256, Rules(), "3NH")
    optimizer = torch.optim.Adam(agent.parameters(), lr=2e-3, eps=1e-5)
    for _ in range(12):
        batch = rollout(agent, collector, args, torch.zeros(3))
        hop_ppo.update(agent, optimizer, batch, args, 1.0)
    envs, infos = make_game(200, Rules(), "3NH", seed=99)
    results = hop_ppo.evaluate(agent, envs, infos, hop_ppo.NoInfo(infos))
    assert returns.summarize(results)["learner"] > 0.8  # random play: 0.1


@pytest.mark.slow
def test_two_runs_at_once_and_ctrl_c(tmp_path):
    """A run that is interrupted says so in one line, with exit code 130."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    flags = ["--num-envs", "64", "--total-timesteps", "100000000"]
    # started under nohup, Python would ignore the signal
    listen = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
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


def test_rules_are_those_of_the_registered_game():
    for env_id, team_episodes in (("StagHunt-v0", 1), ("StagHunt-hidden-v0", 10)):
        env = gymnasium.make_vec(env_id, num_envs=2)
        assert hop_ppo.load_rules(Args(env_id=env_id)) == (env.rules, team_episodes)
        assert env.team_episodes == team_episodes


# ---- benchmarks


@pytest.mark.slow
def test_benchmarks_need_nothing_of_the_tests():
    """--help where hypothesis is not installed."""
    code = "import sys; sys.modules['hypothesis'] = None; sys.argv = ['x', '--help']; import runpy; "
    code += "runpy.run_module('benchmarks.hop_ppo', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and "--what" in ran.stdout, ran.stderr


def test_the_plain_loop_sees_the_same_in_both_games():
    """From the same cells the slow game and the batched one give the same observations, masks and ticks."""
    from benchmarks import cleanrl_ppo

    fast = cleanrl_ppo.fast_envs(SMALL, 6, 1)
    fast.reset(seed=1)
    for _ in range(4):
        obs, *_, infos = fast.step(np.full(6, STAY))
    for board in range(6):
        slow = cleanrl_ppo.PlainStagHunt(SMALL, 0, 1)
        slow.game = slow.game.from_state(SMALL, fast.core.state, board)
        slow.seat = int(fast.seats[board])
        np.testing.assert_array_equal(slow.obs(), obs[board])
        for key, value in slow.info().items():
            np.testing.assert_array_equal(value, infos[key][board])
    planes = cleanrl_ppo.to_planes(obs, infos["tick"], SMALL)
    assert planes.shape == (6, 8, 5, 5)
    np.testing.assert_allclose(planes[:, -1, 0, 0], infos["tick"] / SMALL.horizon)
