"""What predicted transitions are judged by: events, rule violations, PSNR, Hits@1, calibration,
and exact expectations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from data.datasets import Transitions
from data.trajectories import chunks
from envs.core import TAKE, GameRules
from envs.game import STAY, Game
from envs.grid import neighbours
from metrics.columns import Columns
from metrics.laws import deterministic_step, next_state_log_prob, outcomes
from metrics.violations import TOLERANCE, violations

EPS = 1e-10  # added to an MSE before its logarithm: a perfect frame has a PSNR of 100 dB
TIE = 1e-6  # distances nearer than this are equal
OTHER_TRANSITIONS = 5  # of the batch, among the counterfactuals of Hits@1
LOW_EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.3)  # of the calibration's bins
HIGH_EDGES = (0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 1.0)
EDGES = LOW_EDGES + HIGH_EDGES


# ---- the transitions that are judged


@dataclass
class EvalTransitions:
    """The n transitions that are judged, and the actions that the model is given."""

    states: np.ndarray
    """uint8 [R, A+1+k, H, W], joint states, the file's: nothing is copied until it is asked for"""
    before_row: np.ndarray
    """int64 [n], the row of `states` before each transition"""
    after_row: np.ndarray
    """int64 [n], the row after it"""
    actions: np.ndarray
    """int64 [n, A], as asked for, -1 where the file does not know"""
    given_actions: np.ndarray
    """int64 [n, A], -1 where the model is not given it"""
    rewards: np.ndarray
    """float32 [n, A], NaN where not known"""
    ends: np.ndarray
    """float32 [n], 1 or 0, NaN where a joint state cannot tell"""
    ticks: np.ndarray
    """int64 [n]"""
    episodes: np.ndarray
    """int64 [n]"""
    index: np.ndarray
    """int64 [n], rows of the file's transitions"""
    game: Game

    @classmethod
    def of(cls, data: Transitions, index: np.ndarray, joint: bool, seed: int) -> EvalTransitions:
        """joint: give all actions; else that of one hunter, any that is on the board and whose
        action is known."""
        assert isinstance(data.game, Game)  # who judges reads no others
        before_row = data.before[index]
        actions = data.actions[index]
        given_actions = actions
        if not joint:
            active = np.empty(actions.shape, bool)
            for part in chunks(before_row, data.states[0].nbytes):
                active[part] = data.states[before_row[part], : actions.shape[1]].any((2, 3))
            order = np.random.default_rng(seed).random(actions.shape)
            hunter = np.where(active & (actions >= 0), order, -1.0).argmax(1)
            given = np.arange(actions.shape[1]) == hunter[:, None]
            given_actions = np.where(given, actions, -1)
        return cls(
            states=data.states,
            before_row=before_row,
            after_row=data.after[index],
            actions=actions,
            given_actions=given_actions,
            rewards=data.rewards[index],
            ends=data.ends[index],
            ticks=data.ticks[index],
            episodes=data.episodes[index],
            index=index,
            game=data.game,
        )

    def __len__(self) -> int:
        return len(self.before_row)

    @property
    def before(self) -> np.ndarray:
        """uint8 [n, A+1+k, H, W], a copy: of few transitions, see `parts`."""
        return self.states[self.before_row]

    @property
    def after(self) -> np.ndarray:
        """uint8 [n, A+1+k, H, W], a copy."""
        return self.states[self.after_row]

    def take(self, rows: Any) -> EvalTransitions:
        by_row = [field.name for field in fields(self) if field.name not in ("states", "game")]
        return replace(self, **{name: getattr(self, name)[rows] for name in by_row})

    def parts(self) -> list[slice]:
        """All transitions, so many at a time that their states can be copied."""
        return chunks(self.before_row, self.states[0].nbytes)

    def tensors(self, rows: Any, device: torch.device) -> tuple[torch.Tensor, ...]:
        """States, given actions, next states, rewards, ends; planes flat."""
        part = self.take(rows)
        arrays = (part.before, part.given_actions, part.after, part.rewards, part.ends)
        states, actions, next_states, rewards, ends = (torch.as_tensor(x, device=device) for x in arrays)
        return states.flatten(2), actions, next_states.flatten(2), rewards, ends

    def rewards_known(self) -> np.ndarray:
        """bool [n, A]"""
        return ~np.isnan(self.rewards)

    def unbroken_parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Episodes, or unbroken parts of them: the first row of each, int64 [E], and how many
        steps it has."""
        follows = self.episodes[1:] == self.episodes[:-1]
        unlike = np.flatnonzero(follows & (self.before_row[1:] != self.after_row[:-1]))
        for part in chunks(unlike, self.states[0].nbytes):
            rows = unlike[part]
            after, before = self.states[self.after_row[rows]], self.states[self.before_row[rows + 1]]
            follows[rows] = (before == after).all((1, 2, 3))
        start = np.flatnonzero(np.append(True, ~follows))
        return start, np.diff(np.append(start, len(self)))

    def channel_names(self) -> list[str]:
        hunters = [f"hunter {seat}" for seat in range(self.actions.shape[1])]
        return [*hunters, *self.game.planes[2:]]


def find_events(transitions: EvalTransitions) -> dict[str, np.ndarray]:
    """Transitions in which hunters meet the rules: bool [n] a kind.

    Where hunters leave with their prey: capture: one leaves. failed_stag_hunt: one hunts a prey on
    its cell, and is still there. empty_hunt: one hunts where no such prey stands.
    Where nobody leaves: removal: one removes a prey. shared_removal: two remove the same.
    empty_removal: one tries where there is none.
    bump: one plays a step, and is where it was. shared_cell: two hunters stand on one cell
    afterwards. Empty ones and bumps are seen only in files with `attempted`: effective actions
    are legal.
    """
    columns = Columns(len(transitions))
    for part in transitions.parts():
        for kind, rows in _events_of(transitions.take(part)).items():
            columns.put(kind, part, rows)
    return columns


def _events_of(transitions: EvalTransitions) -> dict[str, np.ndarray]:
    actions = transitions.actions
    n, A = actions.shape
    before = transitions.before.reshape(n, -1, transitions.states[0, 0].size).astype(bool)
    after = transitions.after.reshape(before.shape).astype(bool)
    old, new = before[:, :A], after[:, :A]  # [n, A, K]
    active, remains = old.any(2), new.any(2)  # [n, A]
    on_prey = np.zeros((n, A), bool)  # plays the action that takes a prey on its cell
    took = np.zeros((n, A), bool)  # and the prey is gone
    for kind in range(transitions.game.kinds):
        plane, takes = A + 1 + kind, actions == TAKE + kind
        on_prey |= takes & (old & before[:, None, plane]).any(2)
        took |= takes & (old & (before & ~after)[:, None, plane]).any(2)
    empty = active & (actions >= TAKE) & ~on_prey
    steps = (actions >= 0) & (actions < STAY)
    if transitions.game.leaves:
        events = {
            "capture": (active & ~remains).any(1),
            "failed_stag_hunt": (on_prey & remains).any(1),
            "empty_hunt": empty.any(1),
        }
    else:
        events = {
            "removal": took.any(1),
            "shared_removal": ((took[..., None] & old).sum(1) > 1).any(1),
            "empty_removal": empty.any(1),
        }
    return events | {
        "bump": (active & steps & (old == new).all(2)).any(1),
        "shared_cell": (new.sum(1) > 1).any(1),
    }


# ---- rule violations


def infer_actions(before: np.ndarray, actions: np.ndarray, after: np.ndarray, rules: GameRules) -> np.ndarray:
    """Actions [M, A] in which -1 is replaced by what `after` shows: the step to a neighbour cell;
    STAY; of a hunter that has left, the hunt of what stood on its cell; where nobody leaves, the
    removal of what was on its cell, and is gone. A board is possible
    with some actions of these hunters exactly if it is with these: the other actions that
    leave a hunter where it is are steps that were blocked and hunts that failed."""
    if (actions >= 0).all():
        return actions
    M, A = actions.shape
    H, W = before.shape[2:]
    K = H * W
    old_cell = deterministic_step(before, np.full_like(actions, STAY), rules).hunters  # [M, A]
    new = after[:, :A].reshape(M, A, K).astype(bool)
    new_cell = np.where(new.any(2), new.argmax(2), K)
    step = (neighbours(H, W)[old_cell, :4] == new_cell[..., None]) & (new_cell < K)[..., None]
    prey = before[:, A + 1 :].astype(bool)
    if not rules.game.leaves:
        prey = prey & ~after[:, A + 1 :].astype(bool)
    prey = np.pad(prey.reshape(M, -1, K), ((0, 0), (0, 0), (0, 1)))  # none off the board
    row = np.arange(M)[:, None]
    taking = np.full_like(actions, STAY)
    for kind in reversed(range(rules.game.kinds)):
        taking = np.where(prey[row, kind, old_cell], TAKE + kind, taking)
    may_take = (new_cell == K) if rules.game.leaves else (new_cell == old_cell)
    inferred = np.where(may_take & (old_cell < K), taking, STAY)
    inferred = np.where(step.any(2), step.argmax(2), inferred)
    return np.where(actions < 0, inferred, actions)


def broken_rules(
    before: np.ndarray,
    actions: np.ndarray,
    after: np.ndarray,
    rewards: np.ndarray,
    known: np.ndarray,
    rules: GameRules,
) -> np.ndarray:
    """`violations` of M predictions: bool [M, kinds]. Actions that are not known are those that
    the prediction shows; rewards are judged where they are `known`, bool [M, A], and where nobody
    leaves, on boards whose actions are all known: else a board does not tell who shares a cost."""
    if not rules.game.leaves:
        known = known & (actions >= 0).all(1, keepdims=True)
    actions = infer_actions(before, actions, after, rules)
    if not known.all():
        rewards = np.where(known, rewards, deterministic_step(before, actions, rules).rewards)
    by_kind = violations(before, actions, after, rewards, rules)
    return np.stack(list(by_kind.values()), 1)


def per_10k(broken: np.ndarray, counted: np.ndarray, kinds: Sequence[str]) -> dict[str, float | None]:
    """Predictions that break a rule, per 10,000: `total`, any kind that is counted; then each
    kind, None where it is not counted. broken: bool [M, kinds]; counted: bool [kinds]; kinds:
    their names."""
    rates: dict[str, float | None] = {"total": float(10_000 * broken[:, counted].any(1).mean())}
    by_kind = 10_000 * broken.mean(0)
    for kind, rate, on in zip(kinds, by_kind, counted, strict=True):
        rates[kind] = float(rate) if on else None
    return rates


# ---- scores of one prediction


def known_mean(values: np.ndarray) -> float | None:
    """The mean of all that is not NaN; None where there is nothing."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def psnr(mse: float | np.ndarray) -> float:
    """10 log10(1 / MSE) in dB, of planes in [0, 1]; the mean over frames where `mse` is an array,
    one a frame."""
    return float(np.mean(-10.0 * np.log10(np.asarray(mse, np.float64) + EPS)))


def random_true(mask: torch.Tensor) -> torch.Tensor:
    """The index of a random True of each row: bool [B, n] -> int64 [B]; any index where there is
    none."""
    return (torch.rand(mask.shape, device=mask.device) + mask).argmax(1)


def hits_at_1(
    prediction: Any, truth: torch.Tensor, rewards: torch.Tensor, board: tuple[int, int]
) -> torch.Tensor:
    """Is the truth nearer to the expected planes and rewards, by squared distance, than each
    counterfactual? float [B].

    Counterfactuals: what happened, but one hunter is one cell further on, or two; a prey is
    missing; a reward is wrong (0 instead of one, 1 instead of none); and what happened after five
    other transitions of the batch. Those that do not exist, or equal the truth, are left out.
    Ties are shared: with t counterfactuals as near as the truth it scores 1 / (1 + t).

    Args:
        prediction: `expected` float [B, A+1+k, K], `expected_rewards` float [B, A].
        truth: uint8 [B, A+1+k, K]. rewards: float [B, A], NaN where not known.
    """
    A = rewards.shape[1]
    margins = _hunter_margins(prediction.expected[:, :A], truth[:, :A], board)
    margins.append(_prey_margin(prediction.expected[:, A + 1 :], truth[:, A + 1 :]))
    margins.append(_reward_margin(prediction.expected_rewards, rewards))
    margins += _other_margins(prediction, truth.float(), rewards)
    distance = torch.stack(margins, 1)
    nearest = (distance >= -TIE).all(1)
    ties = (distance.abs() <= TIE).sum(1)
    return nearest / (1.0 + ties)


def _hunter_margins(
    expected: torch.Tensor, truth: torch.Tensor, board: tuple[int, int]
) -> list[torch.Tensor]:
    """How much further away than the truth one hunter is one cell further on, and two; inf where
    it cannot be."""
    row = torch.arange(len(truth), device=truth.device)
    hunter = random_true((truth > 0).any(2))
    plane = truth[row, hunter] > 0  # [B, K]
    cell = plane.int().argmax(1)
    probs = expected[row, hunter]
    table = torch.as_tensor(neighbours(*board)[:, :4], device=truth.device)  # [K + 1, 4]
    target = table[cell]
    margins = []
    for _ in range(2):
        inside = target < plane.shape[1]
        direction = random_true(inside)
        to = target[row, direction].clamp(max=plane.shape[1] - 1)
        margin = 2 * (probs[row, cell] - probs[row, to])
        margins.append(torch.where(plane.any(1) & inside.any(1), margin, math.inf))
        target = table[target, torch.arange(4, device=truth.device)]
    return margins


def _prey_margin(expected: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """How much further away than the truth the board is without one of its prey; inf where there
    is none."""
    row = torch.arange(len(truth), device=truth.device)
    prey = truth.flatten(1) > 0
    missing = expected.flatten(1)[row, random_true(prey)]
    return torch.where(prey.any(1), 2 * missing - 1, math.inf)


def _reward_margin(expected: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """How much further away than the truth one wrong reward is; inf where none is known."""
    row = torch.arange(len(rewards), device=rewards.device)
    known = ~rewards.isnan()
    hunter = random_true(known)
    predicted = expected[row, hunter]
    right = rewards.nan_to_num()[row, hunter]
    wrong = torch.where(right > 0, 0.0, 1.0)
    margin = (predicted - wrong).square() - (predicted - right).square()
    return torch.where(known[row, hunter], margin, math.inf)


def _other_margins(prediction: Any, truth: torch.Tensor, rewards: torch.Tensor) -> list[torch.Tensor]:
    """How much further away than the truth five other transitions of the batch are; inf where
    they equal the truth."""
    if len(truth) < 2:
        return []
    known = ~rewards.isnan()
    rewards = rewards.nan_to_num()
    margins = []
    for shift in (1 + torch.randperm(len(truth) - 1)[:OTHER_TRANSITIONS]).tolist():
        other = truth.roll(shift, 0)
        other_rewards = rewards.roll(shift, 0)
        both = known & known.roll(shift, 0)
        margin = ((truth - other) * (2 * prediction.expected - other - truth)).sum((1, 2))
        reward_margin = (rewards - other_rewards) * (
            2 * prediction.expected_rewards - other_rewards - rewards
        )
        margin += (reward_margin * both).sum(1)
        same = (truth == other).all(2).all(1)
        same &= ((rewards == other_rewards) | ~both).all(1)
        margins.append(torch.where(same, math.inf, margin))
    return margins


def bin_probs(rows: torch.Tensor, probs: torch.Tensor, targets: torch.Tensor, num_rows: int) -> torch.Tensor:
    """For the calibration: sums of probabilities and of targets (0 or 1), and counts, by row and
    by bin of the probability.

    Args: rows: int64, broadcast to the shape of `probs`. Returns: float64 [3, num_rows, bins].
    """
    bins = torch.bucketize(probs, torch.tensor(EDGES[1:-1], device=probs.device))
    place = (rows.expand_as(bins).flatten(), bins.flatten())
    probs = probs.flatten().double()
    values = torch.stack([probs, targets.flatten().double(), torch.ones_like(probs)])
    sums = torch.zeros(3, num_rows, len(EDGES) - 1, dtype=torch.float64, device=probs.device)
    for total, value in zip(sums, values, strict=True):
        total.index_put_(place, value, accumulate=True)
    return sums


# ---- the floor


def exact_expectation(
    before: np.ndarray, probs: np.ndarray, after: np.ndarray, rewards: np.ndarray, rules: GameRules
) -> tuple[float, float, float]:
    """The best that can be predicted of one transition if hunter a plays independently by
    probs[a], float [A, 5 + k].

    Args: before, after: uint8 [A+1+k, H, W]. rewards: float [A], NaN where not known.
    Returns: expected MSE of the planes and of the rewards, and -log p(next state, rewards).
    """
    actions = np.array(list(itertools.product(*(np.flatnonzero(p) for p in probs))))  # [n, A]
    weight = np.prod(probs[np.arange(len(probs)), actions], 1)
    weight /= weight.sum()
    many = np.broadcast_to(before, (len(actions), *before.shape))
    step = deterministic_step(many, actions, rules)
    planes, H, W = before.shape
    A, K = len(probs), H * W
    expected = np.zeros((planes, K))
    expected[A] = before[A].reshape(K)
    cells = np.where(step.leaves, K, step.destinations)
    expected[:A] = [np.bincount(seat, weight, K + 1)[:K] for seat in cells.T]
    # The next prey depend on the actions only through which of them are captured.
    captured = step.captured_prey.reshape(len(actions), -1)
    _, first, which = np.unique(captured, axis=0, return_index=True, return_inverse=True)
    for row, prob in zip(first, np.bincount(which.ravel(), weight), strict=True):
        if rules.prey_moves == 0.0:
            expected[A + 1 :] += prob * step.remaining_prey[row]
        else:
            law = outcomes(before, actions[row], rules)
            expected[A + 1 :] += prob * sum(p * board[A + 1 :].reshape(-1, K) for board, p in law)
    mean = weight @ step.rewards
    variance = weight @ (step.rewards - mean) ** 2
    known = ~np.isnan(rewards)
    right = (np.abs(step.rewards - rewards) <= TOLERANCE) | ~known
    right = np.flatnonzero(right.all(1))
    next_boards = np.broadcast_to(after, many[right].shape)
    log_prob = next_state_log_prob(many[right], actions[right], next_boards, rules)
    with np.errstate(divide="ignore"):
        nll = -np.log(weight[right] @ np.exp(log_prob))
    obs_mse = (expected * (1 - expected)).mean()
    reward_mse = variance[known].mean() if known.any() else np.nan
    return float(obs_mse), float(reward_mse), float(nll)
