"""Judge a world model: what it says of the next joint state and the rewards, beside what can be said.

`python test_obs_reward_model.py` takes the newest checkpoint of train_world_model.py and transitions that it was not trained
on. Each figure stands beside its floor, which the rules of the game give, and beside that of a network of the same
kind that was never trained. First the real data is judged by the same counter of rule violations: there it must read zero.
"""

import itertools
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import tracking
from data import DEFAULT_DATA, DataError, default_or_fresh
from data.datasets import Transitions, load_transitions
from data.trajectories import save_arrays
from envs import Rules
from envs.grid import neighbours
from metrics import observers
from metrics.laws import deterministic_step, next_state_log_prob, outcomes
from metrics.violations import KINDS, TOLERANCE, violations
from tracking import figures
from train_world_model import Prediction, load_world_model

STAY, HUNT_STAG, HUNT_HARE, ACTION_COUNT = 4, 5, 6, 7
EPS = 1e-10  # added to an MSE before its logarithm: a perfect frame has a PSNR of 100 dB
NLL_CAP = 100.0  # nats; what a model thinks impossible counts as this much, so that a mean exists
TIE = 1e-6  # distances nearer than this are equal
DEPTHS = (1, 5, 10, 20, 35)  # steps of an open-loop rollout that are reported
EDGES = (
    0.0,
    1e-4,
    1e-3,
    1e-2,
    0.1,
    0.3,
    0.5,
    0.7,
    0.9,
    0.99,
    0.999,
    0.9999,
    1.0,
)  # of the calibration's bins
EVENTS = ("capture", "failed_stag_hunt", "empty_hunt", "bump", "shared_cell")
EVAL_BATCH = 4096
ROLLOUTS = 10_000  # episodes that are rolled out, the first ones
UNTRAINED = 10_000  # transitions that the untrained network is judged on, the first ones
FLOOR = {
    True: 500,
    False: 1000,
}  # transitions, drawn by the seed, of the exact expected planes: joint actions, or one known
COMBINATIONS = (
    500_000  # of unknown actions, in all; where boards have many hunters the floor takes fewer transitions
)
TABLE = (
    ("obs MSE", "obs_mse", ".3e"), ("PSNR, global, dB", "psnr_global", ".2f"),
    ("PSNR, mean over frames, dB", "psnr_frame_mean", ".2f"), ("reward MSE", "reward_mse", ".3e"),
    ("NLL, nats a transition", "nll", ".5f"), ("exact transitions", "exact_transitions", ".3%"),
    ("  of {any} with an event", "exact_transitions_events", ".3%"), ("exact rewards", "exact_rewards", ".3%"),
    ("exact ends", "exact_ends", ".3%"), ("Hits@1", "hits_at_1", ".3%"),
    ("violations per 10,000", "violations_per_10k argmax total", ".1f"),
    ("  of samples", "violations_per_10k samples total", ".1f"),
)  # fmt: skip
TABLE_OF_ROLLOUTS = (
    ("{k}-step rollouts: exact", "exact", ".3%"), ("  every step exact", "exact_path", ".3%"),
    ("  obs MSE", "obs_mse", ".3e"), ("  reward MSE", "reward_mse", ".3e"),
    ("  violations per 10,000 steps", "violations_per_10k", ".1f"), ("    of samples", "violations_per_10k_samples", ".1f"),
)  # fmt: skip


@dataclass
class Args:
    checkpoint: str = ""
    """folder of a run, such as wm_ckpts/wm__1758375079; the newest in wm_ckpts/ if empty"""
    data: str = DEFAULT_DATA
    """trajectories or a flat file in a HOP layout; the default file, `fresh` and `unmasked` are collected on first use"""
    layout: Literal["auto", "hop", "hop-first"] = "auto"
    """layout of a flat file, where its shape does not tell; `auto`: as in training"""
    split: Literal["", "test", "val", "train", "all"] = ""
    """what is judged; if empty, `test` of the file that the run was trained on, and the whole of any other"""
    max_samples: int = 0
    """if above 0, judge so many transitions, the first ones"""
    seed: int = 1
    """seed of the samples, the counterfactuals and the subsets"""
    torch_threads: int = 1
    """CPU threads"""
    cuda: bool = True
    """judge on the GPU where there is one"""


# ---- what is judged


@dataclass
class EvalTransitions:
    """The n transitions that are judged, and what the model is told of them."""

    before: np.ndarray  # uint8 [n, A+3, H, W]
    actions: np.ndarray  # int64 [n, A], as asked for, -1 where the file does not know
    told: np.ndarray  # int64 [n, A], -1 where the model is not told
    after: np.ndarray  # uint8 [n, A+3, H, W]
    rewards: np.ndarray  # float32 [n, A], NaN where not known
    ends: np.ndarray  # float32 [n], 1 or 0, NaN where a joint state cannot tell
    ticks: np.ndarray  # int64 [n]
    episodes: np.ndarray  # int64 [n]
    index: np.ndarray  # int64 [n], rows of the file's transitions

    @classmethod
    def of(cls, data: Transitions, index: np.ndarray, joint: bool, seed: int) -> "EvalTransitions":
        """joint: tell everyone's action; else that of one hunter, any that is on the board and whose action is known."""
        before, actions = data.states[data.before[index]], data.actions[index]
        told = actions
        if not joint:
            there = before[:, :-3].any((2, 3)) & (actions >= 0)
            one = np.where(there, np.random.default_rng(seed).random(there.shape), -1.0).argmax(1)
            told = np.where(np.arange(actions.shape[1]) == one[:, None], actions, -1)
        per_case = (data.rewards, data.ends, data.ticks, data.episodes)
        return cls(
            before,
            actions,
            told,
            data.states[data.after[index]],
            *(array[index] for array in per_case),
            index,
        )

    def __len__(self) -> int:
        return len(self.before)

    def take(self, rows) -> "EvalTransitions":
        return EvalTransitions(*(getattr(self, field.name)[rows] for field in fields(self)))

    def tensors(self, rows, device: torch.device) -> tuple[torch.Tensor, ...]:
        """States, told actions, next states, rewards, ends; planes flat."""
        arrays = (self.before[rows], self.told[rows], self.after[rows], self.rewards[rows], self.ends[rows])
        states, told, after, rewards, ends = (torch.as_tensor(array, device=device) for array in arrays)
        return states.flatten(2), told, after.flatten(2), rewards, ends

    def stretches(self) -> tuple[np.ndarray, np.ndarray]:
        """Episodes, or unbroken stretches of them: the first row of each, int64 [E], and how many steps it has."""
        goes_on = (self.episodes[1:] == self.episodes[:-1]) & (self.before[1:] == self.after[:-1]).all(
            (1, 2, 3)
        )
        start = np.flatnonzero(np.append(True, ~goes_on))
        return start, np.diff(np.append(start, len(self)))


def events_of(cases: EvalTransitions) -> dict[str, np.ndarray]:
    """Transitions in which hunters meet the rules: bool [n] a kind.

    capture: a hunter leaves. failed_stag_hunt: one plays HUNT_STAG on a stag's cell, and is still there. empty_hunt: one
    hunts where no such prey stands. bump: one plays a step, and is where it was. The last two are seen only in files with
    `attempted`: effective actions are legal. shared_cell: two hunters stand on one cell afterwards.
    """
    old, new = (x[:, :-3].reshape(*cases.actions.shape, -1).astype(bool) for x in (cases.before, cases.after))
    there, still = old.any(2), new.any(2)
    stags, hares = (cases.before[:, plane].reshape(len(cases), 1, -1).astype(bool) for plane in (-2, -1))
    on_stag, on_hare = (old & stags).any(2), (old & hares).any(2)  # [n, A]
    hunts_stag, hunts_hare = cases.actions == HUNT_STAG, cases.actions == HUNT_HARE
    steps = (cases.actions >= 0) & (cases.actions < STAY)
    found = (
        there & ~still,
        on_stag & still & hunts_stag,
        there & ((hunts_stag & ~on_stag) | (hunts_hare & ~on_hare)),
        there & steps & (old == new).all(2),
        new.sum(1) > 1,
    )
    return dict(zip(EVENTS, (one.any(1) for one in found), strict=True))


# ---- rule violations


def shown_actions(before: np.ndarray, actions: np.ndarray, after: np.ndarray, rules: Rules) -> np.ndarray:
    """Actions [M, A] where -1 is replaced by what `after` shows: the step to a neighbour cell; STAY; of who has left, the
    hunt of what stood on its cell. A board is possible with some actions of these hunters exactly if it is with these: the
    other actions that leave a hunter where it is are steps that were blocked and hunts that failed."""
    if (actions >= 0).all():
        return actions
    (M, A), (H, W) = actions.shape, before.shape[2:]
    K = H * W
    here = deterministic_step(before, np.full_like(actions, STAY), rules).hunters
    new = after[:, :A].reshape(M, A, K).astype(bool)
    at = np.where(new.any(2), new.argmax(2), K)
    step = (neighbours(H, W)[here, :4] == at[..., None]) & (at < K)[..., None]
    prey = np.pad(before[:, A + 1 :].reshape(M, 2, K).astype(bool), ((0, 0), (0, 0), (0, 1)))
    on_stag, on_hare = (prey[np.arange(M)[:, None], kind, here] for kind in (0, 1))
    hunt = np.where(on_stag, HUNT_STAG, np.where(on_hare, HUNT_HARE, STAY))
    shown = np.where(step.any(2), step.argmax(2), np.where((at == K) & (here < K), hunt, STAY))
    return np.where(actions < 0, shown, actions)


def broken_rules(before: np.ndarray, actions: np.ndarray, after: np.ndarray, rewards: np.ndarray, known: np.ndarray,
                 rules: Rules) -> np.ndarray:  # fmt: skip
    """metrics.violations of M predictions: bool [M, kinds]. Actions that are not known are those that the prediction shows;
    rewards are judged where they are `known`, bool [M, A]."""
    actions = shown_actions(before, actions, after, rules)
    if not known.all():
        rewards = np.where(known, rewards, deterministic_step(before, actions, rules).rewards)
    return np.stack(list(violations(before, actions, after, rewards, rules).values()), 1)


def per_10k(broken: np.ndarray, counted: np.ndarray) -> dict[str, float | None]:
    """broken: bool [M, kinds]; counted: bool [kinds]. `total`: predictions with a violation of any kind that is
    counted; then those with one of each kind, None where it is not counted."""
    rate = 10_000 * broken.mean(0)
    total = {"total": float(10_000 * broken[:, counted].any(1).mean())}
    return total | {kind: float(r) if on else None for kind, r, on in zip(KINDS, rate, counted, strict=True)}


def check_real_data(
    cases: EvalTransitions, rules: Rules, guessed: bool
) -> tuple[Rules, np.ndarray, list[str]]:
    """The rule counter on the data itself. guessed: the file does not say its rules: prey may move after all.

    Returns: the rules; which kinds read zero and so can be counted, bool [kinds]; what was found, for people.
    """
    known = ~np.isnan(cases.rewards)

    def count(rules: Rules) -> np.ndarray:
        arrays = (cases.before, cases.actions, cases.after, cases.rewards, known)
        parts = [slice(i, i + EVAL_BATCH) for i in range(0, len(cases), EVAL_BATCH)]
        return np.concatenate([broken_rules(*(array[part] for array in arrays), rules) for part in parts])

    broken, said = count(rules), []
    if guessed and broken[:, KINDS.index("prey_moved")].any():
        rules = replace(rules, prey_moves=0.5)
        broken = count(rules)
        said.append("inferred: prey move; how often is not known, so there is no floor")
    for kind, rows in zip(KINDS, broken.T, strict=True):
        if rows.any():
            first = int(rows.argmax())
            where = f"transition {cases.index[first]} (episode {cases.episodes[first]}, tick {cases.ticks[first]})"
            said.append(f"the data breaks the rules: {kind} in {rows.sum()} of {len(rows)} transitions, first in {where}; "
                        "not counted below")  # fmt: skip
    if not broken.any():
        said.append(f"the rule counter reads 0 on the {len(cases)} real transitions")
    return rules, ~broken.any(0), said


# ---- one step


def psnr(mse) -> float:
    """10 log10(1 / MSE) in dB, of planes in [0, 1]; the mean over frames where `mse` is an array, one a frame."""
    return float(np.mean(-10.0 * np.log10(np.asarray(mse, np.float64) + EPS)))


def hits_at_1(
    said: Prediction, truth: torch.Tensor, rewards: torch.Tensor, board: tuple[int, int]
) -> torch.Tensor:
    """Is the truth nearer to the expected planes and rewards, by squared distance, than each counterfactual? float [B].

    Counterfactuals: what happened, but one hunter is one cell further on, or two; a prey is missing; a reward is wrong (0
    instead of one, 1 instead of none); and what happened after five other transitions of the batch. Those that do not exist,
    or equal the truth, are left out. Ties are shared: with t counterfactuals as near as the truth it scores 1 / (1 + t).
    """
    B, A, K = len(truth), truth.shape[1] - 3, truth.shape[2]
    row, real, none = (
        torch.arange(B, device=truth.device),
        truth.float(),
        torch.full((B,), math.inf, device=truth.device),
    )
    known, paid = ~rewards.isnan(), rewards.nan_to_num()

    def some(there: torch.Tensor) -> torch.Tensor:  # one of those that are there, by chance: int64 [B]
        return (torch.rand(there.shape, device=there.device) + there).argmax(1)

    margins = []  # how much further away than the truth
    who, prey = some((truth[:, :A] > 0).any(2)), truth[:, A + 1 :].flatten(1) > 0
    plane, own = truth[row, who] > 0, said.expected[row, who]
    cell = plane.int().argmax(1)
    for distance in (1, 2):
        down, right = (
            distance * torch.tensor(way, device=cell.device) for way in ((-1, 1, 0, 0), (0, 0, -1, 1))
        )
        y, x = (cell // board[1])[:, None] + down, (cell % board[1])[:, None] + right
        inside = (y >= 0) & (y < board[0]) & (x >= 0) & (x < board[1])
        to = (y * board[1] + x)[row, some(inside)].clamp(0, K - 1)
        margins.append(torch.where(plane.any(1) & inside.any(1), 2 * (own[row, cell] - own[row, to]), none))
    missing = said.expected[:, A + 1 :].flatten(1)[row, some(prey)]
    margins.append(torch.where(prey.any(1), 2 * missing - 1, none))
    who = some(known)
    pays, right = said.expected_rewards[row, who], paid[row, who]
    wrong = torch.where(right > 0, 0.0, 1.0)
    margins.append(torch.where(known[row, who], (pays - wrong).square() - (pays - right).square(), none))
    for shift in (1 + torch.randperm(B - 1)[:5]).tolist() if B > 1 else []:
        other, other_paid, both = real.roll(shift, 0), paid.roll(shift, 0), known & known.roll(shift, 0)
        apart = ((real - other) * (2 * said.expected - other - real)).sum((1, 2))
        apart += ((paid - other_paid) * (2 * said.expected_rewards - other_paid - paid) * both).sum(1)
        same = (real == other).all(2).all(1) & ((paid == other_paid) | ~both).all(1)
        margins.append(torch.where(same, none, apart))
    margins = torch.stack(margins, 1)
    return (margins >= -TIE).all(1) / (1.0 + (margins.abs() <= TIE).sum(1))


def binned(row: torch.Tensor, said: torch.Tensor, found: torch.Tensor, rows: int) -> torch.Tensor:
    """For the calibration: sums of `said` (probabilities), of `found` (0 or 1), and counts, by `row`, which is broadcast to
    their shape, and by bin of `said`: float64 [3, rows, bins]."""
    bins = len(EDGES) - 1
    where = (torch.bucketize(said, torch.tensor(EDGES[1:-1], device=said.device)) + bins * row).flatten()
    weights = (said.flatten().double(), found.flatten().double(), None)
    return torch.stack(
        [torch.bincount(where, weight, rows * bins).double().view(rows, bins) for weight in weights]
    )


@torch.no_grad()
def judge_steps(
    model: nn.Module, cases: EvalTransitions, rules: Rules, device: torch.device
) -> tuple[dict, np.ndarray]:
    """What is measured of each transition, arrays [n, ..], and the sums of `binned` by channel, the last of rewards > 0."""
    found, channels, sums = (
        defaultdict(list),
        torch.arange(cases.before.shape[1], device=device)[:, None],
        0.0,
    )
    for i in tqdm(range(0, len(cases), EVAL_BATCH), desc="one step", leave=False, mininterval=1.0):
        rows = slice(i, i + EVAL_BATCH)
        states, told, truth, rewards, ends = cases.tensors(rows, device)
        said, (planes, paid, _) = model.predict(states, told), model.sample(states, told)
        log_prob = model.log_prob(states, told, truth, rewards, ends)
        known = ~rewards.isnan()
        step = {
            "squares": (said.expected - truth).square().double().mean(2),  # [B, C]
            "reward_squares": (said.expected_rewards - rewards).square().double(),  # [B, A]
            "right_rewards": ((said.rewards - rewards).abs() <= TOLERANCE) | ~known,
            "exact": (said.most_likely == truth).all(2).all(1),
            "right_ends": torch.where(
                ends.isnan(), math.nan, ((said.end_prob > 0.5) == (ends > 0.5)).float()
            ),
            "hits": hits_at_1(said, truth, rewards, model.board),
        }
        if log_prob is not None:
            step["nll"] = -log_prob.double()
        for key, value in step.items():
            found[key].append(value.cpu().numpy())
        known = known.cpu().numpy()
        for key, after, pays in (("argmax", said.most_likely, said.rewards), ("samples", planes, paid)):
            after = after.view(-1, *cases.before.shape[1:]).cpu().numpy()
            found[key].append(
                broken_rules(cases.before[rows], cases.told[rows], after, pays.cpu().numpy(), known, rules)
            )
        sums += binned(channels, said.expected.clamp(0, 1), truth, len(channels) + 1)
        if said.reward_prob is not None:
            judged = (states[:, :-3] > 0).any(2) & ~rewards.isnan()
            sums += binned(channels[-1] + 1, said.reward_prob[judged], rewards[judged] > 0, len(channels) + 1)
    return {key: np.concatenate(parts) for key, parts in found.items()}, sums.cpu().numpy()


# ---- open loop


@torch.no_grad()
def roll_out(
    model: nn.Module, cases: EvalTransitions, rules: Rules, device: torch.device, sampled: bool = False
) -> dict:
    """From each episode's start, the recorded actions, and what the model makes of its own boards, up to the last of DEPTHS:
    the most likely ones or, if `sampled`, samples, which are only judged by the rules.

    Returns: of E episodes and T steps, [E, T] each: exact, obs_mse, reward_mse; broken [E, T, kinds]; length int64 [E].
    """
    start, length = cases.stretches()
    start, length = start[:ROLLOUTS], length[:ROLLOUTS]
    steps = min(int(length.max()), DEPTHS[-1])
    found = {key: np.zeros((len(start), steps)) for key in ("exact", "obs_mse", "reward_mse")}
    found |= {"broken": np.zeros((len(start), steps, len(KINDS)), bool), "length": length}
    imagined = cases.before[start]
    for t in tqdm(range(steps), desc="open loop", leave=False, mininterval=1.0):
        playing = np.flatnonzero(length > t)
        for i in range(0, len(playing), EVAL_BATCH):
            who = playing[i : i + EVAL_BATCH]
            rows = start[who] + t
            _, told, truth, rewards, _ = cases.tensors(rows, device)
            states = torch.as_tensor(imagined[who], device=device).flatten(2)
            if sampled:
                planes, pays, _ = model.sample(states, told)
            else:
                said = model.predict(states, told)
                planes, pays = said.most_likely, said.rewards
                found["exact"][who, t] = (planes == truth).all(2).all(1).cpu().numpy()
                found["obs_mse"][who, t] = (said.expected - truth).square().mean((1, 2)).cpu().numpy()
                found["reward_mse"][who, t] = (
                    (said.expected_rewards - rewards).square().nanmean(1).cpu().numpy()
                )
            after, known = planes.view(imagined[who].shape).cpu().numpy(), ~rewards.isnan().cpu().numpy()
            found["broken"][who, t] = broken_rules(
                imagined[who], cases.told[rows], after, pays.cpu().numpy(), known, rules
            )
            imagined[who] = after
    return found


def at_depths(rolled: dict, sampled: dict | None, counted: np.ndarray) -> dict[str, dict]:
    """`rollout` of metrics.json: figures of the k-th step, or of an episode's last one where it is shorter;
    `exact_path`: all steps up to it right; violations per 10,000 steps, of all up to it."""
    length, episodes, report = rolled["length"], np.arange(len(rolled["length"])), {}
    path = np.logical_and.accumulate(rolled["exact"].astype(bool), 1)
    steps = np.arange(rolled["exact"].shape[1])
    for k in DEPTHS:
        last = np.minimum(length, k) - 1
        row = {key: rolled[key][episodes, last] for key in ("exact", "obs_mse", "reward_mse")}
        row["exact_path"] = path[episodes, last]
        row = {key: _mean(values) for key, values in row.items()}
        so_far = (steps < np.minimum(length, k)[:, None]).nonzero()
        row["violations_per_10k"] = per_10k(rolled["broken"][so_far], counted)["total"]
        if sampled:
            row["violations_per_10k_samples"] = per_10k(sampled["broken"][so_far], counted)["total"]
        report[str(k)] = row | {"episodes": len(length), "shorter": int((length < k).sum())}
    return report


def _mean(values: np.ndarray) -> float | None:
    """None where nothing is known."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


# ---- the floor


def law_of(
    before: np.ndarray, probs: np.ndarray, after: np.ndarray, rewards: np.ndarray, rules: Rules
) -> np.ndarray:
    """What can be said of one transition at best: expected MSE of the planes and of the rewards, and -log p(next state,
    rewards), if hunter a plays independently by probs[a], float [A, 7]."""
    actions = np.array(list(itertools.product(*(np.flatnonzero(p) for p in probs))))  # [n, A]
    weight = np.prod(probs[np.arange(len(probs)), actions], 1)
    weight /= weight.sum()
    many = np.broadcast_to(before, (len(actions), *before.shape))
    step, (planes, H, W) = deterministic_step(many, actions, rules), before.shape
    A, K = planes - 3, H * W
    expected = np.zeros((planes, K))
    expected[A] = before[A].reshape(K)
    at = np.where(step.captures, K, step.destinations)
    expected[:A] = [np.bincount(cells, weight, K + 1)[:K] for cells in at.T]
    _, first, which = np.unique(
        step.captured_prey.reshape(len(actions), -1), axis=0, return_index=True, return_inverse=True
    )
    for i, q in zip(
        first, np.bincount(which.ravel(), weight), strict=True
    ):  # prey only care who of them is left
        if rules.prey_moves == 0.0:
            expected[A + 1 :] += q * step.remaining_prey[i]
        else:
            expected[A + 1 :] += q * sum(
                p * x[A + 1 :].reshape(2, K) for x, p in outcomes(before, actions[i], rules)
            )
    mean = weight @ step.rewards
    reward = (weight @ (step.rewards - mean) ** 2)[~np.isnan(rewards)]
    right = np.flatnonzero(((np.abs(step.rewards - rewards) <= TOLERANCE) | np.isnan(rewards)).all(1))
    log_prob = next_state_log_prob(
        many[right], actions[right], np.broadcast_to(after, many[right].shape), rules
    )
    with np.errstate(divide="ignore"):
        nll = -np.log(weight[right] @ np.exp(log_prob))
    return np.array([(expected * (1 - expected)).mean(), reward.mean() if reward.size else np.nan, nll])


def floor_of(cases: EvalTransitions, data: Transitions, rules: Rules, sure: bool, seed: int) -> dict:
    """The least that each figure can be, by the rules; None where it cannot be known.

    Where nothing is left to chance it is 0. Else: NLL by the exact law of the next state; MSE by the exact expected planes,
    of `n` transitions. Actions that the model is not told are those of the observer that knows the strategies and infers who
    plays which (metrics.observers.bayes).
    sure: the rules are known, and the data keeps them.
    """
    none, told = dict(obs_mse=None, reward_mse=None, nll=None, n=0), (cases.told >= 0).all()
    if not sure or not (
        told or (data.trajectories is not None and data.trajectories.policy_probs is not None)
    ):
        return none
    if told and rules.prey_moves == 0.0:
        return dict(obs_mse=0.0, reward_mse=0.0, nll=0.0, n=len(cases))
    some = cases.take(np.random.default_rng(seed).permutation(len(cases))[: FLOOR[bool(told)]])
    probs = np.eye(ACTION_COUNT)[some.told.clip(0)]  # [m, A, 7]
    if not told:
        left = ~some.before[:, :-3].any((2, 3))
        guess = np.where(
            left[..., None], np.eye(ACTION_COUNT)[STAY], observers.bayes(data.trajectories)[some.index]
        )
        probs = np.where((some.told < 0)[..., None], guess, probs)
    enough = 1 + int(np.searchsorted(np.cumsum((probs > 0).sum(2).prod(1)), COMBINATIONS))
    some, probs = some.take(slice(enough)), probs[:enough]
    each = list(zip(some.before, probs, some.after, some.rewards, strict=True))
    laws = [law_of(*one, rules) for one in tqdm(each, desc="floor", leave=False, mininterval=1.0)]
    obs_mse, reward_mse, nll = (_mean(values) for values in np.array(laws).T)
    if told:
        nll = -float(next_state_log_prob(cases.before, cases.told, cases.after, rules).mean())
    nll = None if nll is None or not math.isfinite(nll) else nll
    return dict(obs_mse=obs_mse, reward_mse=reward_mse, nll=nll, n=len(some))


# ---- all figures


def summary(
    steps: dict, cases: EvalTransitions, rolled: dict, sampled: dict | None, counted: np.ndarray
) -> dict:
    """The figures as metrics.json names them."""
    events = events_of(cases)
    some = np.any(list(events.values()), axis=0)
    paid, frames = ~np.isnan(cases.rewards).all(1), steps["squares"].mean(1)
    right, exact, nll = steps["right_rewards"].all(1)[paid], steps["exact"], steps.get("nll")
    report = dict(n=len(cases), obs_mse=float(frames.mean()), psnr_global=psnr(frames.mean()), psnr_frame_mean=psnr(frames),
                  reward_mse=_mean(steps["reward_squares"]),
                  nll=None if nll is None else float(np.minimum(nll, NLL_CAP).mean()),
                  exact_transitions=_mean(exact), exact_transitions_events=_mean(exact[some]), exact_rewards=_mean(right),
                  exact_ends=_mean(steps["right_ends"]), hits_at_1=_mean(steps["hits"]))  # fmt: skip
    report |= {"wrong_transitions": int((~exact).sum()), "wrong_rewards": int((~right).sum())}
    report["nll_capped"] = None if nll is None else int((nll > NLL_CAP).sum())
    report["per_channel_mse"] = steps["squares"].mean(0).tolist()
    report["violations_per_10k"] = {key: per_10k(steps[key], counted) for key in ("argmax", "samples")}
    report["rollout"] = at_depths(rolled, sampled, counted)
    report["events"] = {name: int(rows.sum()) for name, rows in events.items()} | {"any": int(some.sum())}
    return report | {"exact_by_event": {name: _mean(exact[rows]) for name, rows in events.items()}}


def judge(
    model: nn.Module,
    cases: EvalTransitions,
    rules: Rules,
    counted: np.ndarray,
    seed: int,
    device: torch.device,
) -> dict:
    """`summary` of a model, and under `arrays` what the figures are drawn from."""
    torch.manual_seed(seed)
    steps, sums = judge_steps(model, cases, rules, device)
    rolled = roll_out(model, cases, rules, device)
    random = rules.prey_moves > 0.0 or bool((cases.told < 0).any())
    sampled = roll_out(model, cases, rules, device, sampled=True) if random else None
    report = summary(steps, cases, rolled, sampled, counted)
    names, keys = [*channels_of(cases), "reward > 0"], ("predicted", "frequency", "count")
    bins = {name: rows[:, rows[2] > 0] for name, rows in zip(names, sums.swapaxes(0, 1), strict=True)}
    curves = {name: np.stack([*(rows[:2] / rows[2]), rows[2]]) for name, rows in bins.items() if rows.size}
    report["calibration"] = {
        name: dict(zip(keys, rows.tolist(), strict=True)) for name, rows in curves.items()
    }
    playing = np.arange(rolled["exact"].shape[1]) < rolled["length"][:, None]
    rate = per_10k(rolled["broken"][playing], counted)
    return report | {
        "arrays": dict(steps=steps, rolled=rolled, playing=playing, rolled_rate=rate, calibration=curves)
    }


def channels_of(cases: EvalTransitions) -> list[str]:
    return [*(f"hunter {seat}" for seat in range(cases.actions.shape[1])), "BLOCKS", "STAGS", "HARES"]


def show(report: dict, untrained: dict, cases: EvalTransitions, data: Transitions, what: list[str]) -> None:
    """The block that users' tools parse, then every figure beside its floor and the untrained network's."""
    shape, floor = cases.before.shape[1:], report["floor"]
    print(f"[INFO] loaded model. obs_shape={shape}, action_dim={ACTION_COUNT}")
    print(f"[INFO] dataset size={len(data)}, inferred n_agents={shape[0] - 3}\n\n=== Metrics ===")
    print(f"Obs  MSE (mean over B,C,H,W): {report['obs_mse']:.6f}")
    print(f"Obs  PSNR: {report['psnr_frame_mean']:.2f} dB")
    print(
        f"Rew  MSE:  {math.nan if report['reward_mse'] is None else report['reward_mse']:.6f}\nPer-channel MSE:"
    )
    for i, mse in enumerate(report["per_channel_mse"]):
        print(f"  ch[{i}]: {mse:.6e}")
    print("", *what, sep="\n")
    lines = [(label.format(**report["events"]), path, form) for label, path, form in TABLE]
    for k in report["rollout"]:
        lines += [(label.format(k=k), f"rollout {k} {key}", form) for label, key, form in TABLE_OF_ROLLOUTS]
    print(f"\n{'':<34}{'model':>12}{'floor':>12}{'untrained':>12}")
    for label, path, form in lines:
        found = [
            reduce(lambda at, key: (at or {}).get(key), path.split(), x)
            for x in (report, ideal(floor), untrained)
        ]
        if path == "nll" or found[0] is not None:
            print(f"{label:<34}" + "".join(f"{'-' if x is None else format(x, form):>12}" for x in found))
    for key, rates in report["violations_per_10k"].items():
        kinds = ", ".join(f"{kind} {rate:.1f}" for kind, rate in rates.items() if rate)
        print(f"violations per 10,000, {key}: {kinds or 'none'}")
    if report["nll_capped"]:
        print(f"{report['nll_capped']} transitions were thought impossible, and count as {NLL_CAP:.0f} nats")


def ideal(floor: dict) -> dict:
    """The floor as a report: whoever knows the rules breaks none, and, where nothing is left to chance, is never wrong."""
    report = {"violations_per_10k": {"argmax": {"total": 0.0}, "samples": {"total": 0.0}}}
    report["psnr_global"] = None if floor["obs_mse"] is None else psnr(floor["obs_mse"])
    row = dict(violations_per_10k=0.0, violations_per_10k_samples=0.0)
    if floor["obs_mse"] == 0.0:
        report |= dict.fromkeys(
            ("exact_transitions", "exact_transitions_events", "exact_rewards", "hits_at_1"), 1.0
        )
        report["psnr_frame_mean"] = psnr(0.0)
        report["exact_ends"] = None if floor["nll"] is None else 1.0
        row |= dict(exact=1.0, exact_path=1.0, obs_mse=0.0, reward_mse=0.0)
    return floor | report | {"rollout": {str(k): row for k in DEPTHS}}


# ---- figures and files


def pictured(steps: dict, cases: EvalTransitions, seed: int, each: int = 6) -> dict[str, np.ndarray]:
    """Which cases are drawn: the worst by NLL, or by squared error where there is none, and some of each kind of event."""
    error = steps["nll"] if "nll" in steps else steps["squares"].mean(1)
    order = np.random.default_rng(seed).permutation(len(cases))
    kinds = [order[rows[order]] for rows in events_of(cases).values()]
    turns = [
        row
        for turn in itertools.zip_longest(*(kind[:each] for kind in kinds))
        for row in turn
        if row is not None
    ]
    found = {
        "worst_cases": np.argsort(-error, kind="stable")[:each],
        "events": np.array(list(dict.fromkeys(turns))[:each]),
    }
    return {name: rows.astype(np.int64) for name, rows in found.items() if len(rows)}


@torch.no_grad()
def draw(model: nn.Module, cases: EvalTransitions, report: dict, seed: int, device: torch.device) -> dict:
    """All figures, file name -> Figure."""
    arrays, drawn = report["arrays"], {}
    steps, rolled, playing = arrays["steps"], arrays["rolled"], arrays["playing"]
    titles = {"worst_cases": f"the worst of {len(cases)} by {'NLL' if 'nll' in steps else 'squared error'}",
              "events": "captures, failed stag hunts, shared cells"}  # fmt: skip
    for name, rows in pictured(steps, cases, seed).items():
        states, told, *_ = cases.tensors(rows, device)
        said, some = model.predict(states, told), cases.take(rows)
        heads = [
            f"transition {index}, tick {tick}" for index, tick in zip(some.index, some.ticks, strict=True)
        ]
        if "nll" in steps:
            heads = [f"{head}, NLL {nll:.3g}" for head, nll in zip(heads, steps["nll"][rows], strict=True)]
        boards = (some.before, some.after, said.expected.clamp(0, 1).cpu().numpy().reshape(some.before.shape))
        pays = said.expected_rewards.cpu().numpy()
        drawn[name] = figures.predicted_boards(*boards, some.told, some.rewards, pays, heads, titles[name])
    wrong = {"share of wrong boards": ~steps["exact"], "obs MSE": steps["squares"].mean(1)}
    by_tick = {name: {int(tick): float(values[cases.ticks == tick].mean()) for tick in np.unique(cases.ticks)}
               for name, values in wrong.items()}  # fmt: skip
    wrong = {"share of wrong boards": 1.0 - rolled["exact"], "obs MSE": rolled["obs_mse"],
             "reward MSE": rolled["reward_mse"], "share of steps that break a rule": rolled["broken"].any(2)}  # fmt: skip
    by_depth = {
        name: [_mean(values[on, t]) or 0.0 for t, on in enumerate(playing.T)]
        for name, values in wrong.items()
    }
    return drawn | figures.of_predictions(
        arrays["calibration"], by_tick, by_depth, f"{len(cases)} transitions"
    )


@torch.no_grad()
def film(model: nn.Module, cases: EvalTransitions, path: Path, seed: int, device: torch.device) -> None:
    """A real episode, the most likely one and a sampled one beside it: the same start, the same actions."""
    torch.manual_seed(seed)
    start, length = cases.stretches()
    length = np.minimum(length, DEPTHS[-1])
    events = np.append(0, np.cumsum(sum(events_of(cases).values())))
    best = (events[start + length] - events[start]).argmax()  # the one with most events
    rows = start[best] + np.arange(length[best])
    boards, shape = (
        {name: [cases.before[rows[0]]] for name in ("real", "most likely", "sampled")},
        cases.before.shape[1:],
    )
    titles = ["the start"]
    for row in rows:
        told = torch.as_tensor(cases.told[row : row + 1], device=device)
        last = {
            name: torch.as_tensor(shown[-1], device=device).flatten(1)[None] for name, shown in boards.items()
        }
        boards["real"].append(cases.after[row])
        boards["most likely"].append(
            model.predict(last["most likely"], told).most_likely.cpu().numpy().reshape(shape)
        )
        boards["sampled"].append(model.sample(last["sampled"], told)[0].cpu().numpy().reshape(shape))
        titles.append(
            f"after tick {cases.ticks[row]}: {figures.told_and_paid(cases.told[row], cases.rewards[row])}"
        )
    figures.joint_film(boards, titles, path)


def save(
    report: dict, untrained: dict, model: nn.Module, cases: EvalTransitions, folder: Path, seed: int, device
) -> None:
    """per_channel.csv, violations.csv, rollout.csv and predictions.npz."""
    names = channels_of(cases)
    rows = zip(names, report["per_channel_mse"], untrained["per_channel_mse"], strict=True)
    rows = [dict(channel=i, name=name, mse=f"{mse:.9e}", psnr=psnr(mse), untrained_mse=f"{other:.9e}")
            for i, (name, mse, other) in enumerate(rows)]  # fmt: skip
    tracking.write_csv(folder / "per_channel.csv", rows)
    rates = report["violations_per_10k"] | {"rollout": report["arrays"]["rolled_rate"]}
    rates |= {f"untrained_{key}": found for key, found in untrained["violations_per_10k"].items()}
    rows = [dict(kind=kind) | {key: rate[kind] for key, rate in rates.items()} for kind in ("total", *KINDS)]
    tracking.write_csv(folder / "violations.csv", rows)
    others = {k: {f"untrained_{key}": row[key] for key in ("exact", "obs_mse", "reward_mse")}
              for k, row in untrained["rollout"].items()}  # fmt: skip
    tracking.write_csv(
        folder / "rollout.csv", [dict(k=int(k)) | row | others[k] for k, row in report["rollout"].items()]
    )
    some = np.sort(np.random.default_rng(seed).permutation(len(cases))[:2000])
    with torch.no_grad():
        states, told, *_ = cases.tensors(some, device)
        said = model.predict(states, told)
    shape = (len(some), *cases.before.shape[1:])
    arrays = dict(index=cases.index[some], actions=cases.told[some].astype(np.int8), rewards=said.rewards.cpu().numpy(),
                  expected=said.expected.cpu().numpy().astype(np.float16).reshape(shape),
                  expected_rewards=said.expected_rewards.cpu().numpy(), likely=said.most_likely.cpu().numpy().reshape(shape),
                  true_next=cases.after[some], true_rewards=cases.rewards[some])  # fmt: skip
    save_arrays(folder / "predictions.npz", arrays)


# ---- the command


def read(args: Args, checkpoint: dict) -> tuple[Transitions, np.ndarray, str]:
    """The file, the transitions to be judged, and what they are, for people. Raises: tracking.UsageError, DataError."""
    path, trained = default_or_fresh(args.data), checkpoint["args"]
    layout = trained.get("layout", "auto") if args.layout == "auto" else args.layout
    split = args.split in ("test", "val", "train") or (not args.split and args.data == trained["data"])
    data = load_transitions(path, layout, split)
    own = data.fingerprint == checkpoint["fingerprint"]
    part = args.split or ("test" if own else "all")
    if own and part in ("train", "all"):
        raise tracking.UsageError(
            f"--split {part}: the run was trained on {args.data}; judge test, val, or --data fresh"
        )
    if part not in data.splits:
        data = load_transitions(path, layout, True)
    index = data.splits[part]
    index = index[: args.max_samples] if args.max_samples else index
    return data, index, f"the whole of {args.data}" if part == "all" else f"the {part} split of {args.data}"


def rules_of(data: Transitions) -> tuple[Rules, bool]:
    """The rules that the file says, and whether it does: else the default ones."""
    try:
        return Rules(**data.trajectories.metadata["rules"]), True
    except (AttributeError, KeyError, TypeError, ValueError):
        return Rules(), False


def other_rules(trained: dict | None, rules: Rules) -> list[str]:
    """A line where what the model learnt from had other rules of a tick than what it is judged on."""
    names = [
        name
        for name in ("hunters_needed", "stag_reward", "hare_reward", "prey_moves")
        if name in (trained or {})
    ]
    found = [
        f"{name} {trained[name]}, here {getattr(rules, name)}"
        for name in names
        if trained[name] != getattr(rules, name)
    ]
    return [f"the model learnt from other rules: {'; '.join(found)}"] * bool(found)


def main() -> None:
    args, start = tracking.parse_args(Args, __doc__.split("\n")[0]), time.perf_counter()
    for name, least in dict(max_samples=0, seed=0, torch_threads=1).items():
        if not least <= getattr(args, name) < 2**31:
            flag = f"--{name.replace('_', '-')}"
            raise tracking.UsageError(
                f"{flag}: must be at least {least} and below 2**31, got {getattr(args, name)}"
            )
    torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    folder = tracking.find_folder(args.checkpoint or tracking.newest_run("wm_ckpts", "train_world_model.py"))
    model, checkpoint = load_world_model(folder, device)
    data, index, what = read(args, checkpoint)
    A, board = data.actions.shape[1], data.states.shape[2:]
    if model.num_hunters not in (None, A):
        raise tracking.UsageError(
            f"{args.data}: expected {model.num_hunters} hunters, as the checkpoint's, found {A}"
        )
    if model.joint and (data.actions[index] < 0).any():
        raise tracking.UsageError(
            f"{args.data}: actions: expected everyone's, as in training, found one hunter's"
        )
    model = model.on(*board)
    cases = EvalTransitions.of(data, index, model.joint, args.seed)
    (rules, said_so), lines = rules_of(data), [f"inferred: {line}" for line in data.inferred]
    lines += ["inferred: the default rules; the file does not say its own"] * (not said_so)
    lines += other_rules(checkpoint.get("rules"), rules) if said_so else []
    rules, counted, found = check_real_data(cases, rules, guessed=not said_so)

    report = judge(model, cases, rules, counted, args.seed, device)
    sure = bool(counted.all()) and (said_so or rules.prey_moves == 0.0)
    report["floor"] = floor_of(cases, data, rules, sure, args.seed)
    torch.manual_seed(args.seed)
    fresh = type(model)(**model.sizes).to(device).on(*board).eval()
    untrained = judge(fresh, cases.take(slice(UNTRAINED)), rules, counted, args.seed, device)
    untrained = {key: value for key, value in untrained.items() if key not in ("arrays", "calibration")}

    told = "everyone's actions" if model.joint else "one hunter's action"
    head = f"[TEST] {folder.as_posix()}, epoch {checkpoint['epoch'] - 1}, told {told}, on {what}: {len(cases)} transitions"
    lines = [head, *(f"[DATA] {line}" for line in lines + found)]
    if 0 < report["floor"]["n"] < len(cases):
        lines.append(
            f"[TEST] floor: by the exact law of the next state, on {report['floor']['n']} transitions drawn by the seed"
        )
    if len(cases) > UNTRAINED:
        lines.append(
            f"[TEST] untrained: the same network before training, on the first {UNTRAINED} transitions"
        )
    show(report, untrained, cases, data, lines)

    out = folder / "test"
    out.mkdir(exist_ok=True)
    save(report, untrained, model, cases, out, args.seed, device)
    # A second event file beside the run's own, which is left as it is.
    writer = SummaryWriter(str((Path("runs") / checkpoint["run"]).resolve()), filename_suffix=".test")
    step = checkpoint["step"]
    for name, figure in draw(model, cases, report, args.seed, device).items():
        figures.save(figure, out / f"{name}.png")
        writer.add_image(
            f"test_figures/{name}", imread(out / f"{name}.png")[..., :3], step, dataformats="HWC"
        )
    film(model, cases, out / "imagined_episode.gif", args.seed, device)
    report.pop("arrays")
    tracking.log_scalars(writer, "test_metrics", report, step)
    for key, rates in report["violations_per_10k"].items():
        tracking.log_scalars(writer, f"test_violations_{key}", rates, step)
    for k, row in report["rollout"].items():
        tracking.log_scalars(writer, "test_rollout", row, int(k))
    writer.close()
    seconds = time.perf_counter() - start
    head = dict(checkpoint=folder.as_posix(), run=checkpoint["run"], epoch=checkpoint["epoch"] - 1, data=args.data,
                judged=what, seed=args.seed, seconds=seconds)  # fmt: skip
    whole = json.dumps(head | report | {"untrained": untrained})
    tracking.write_json(
        out / "metrics.json", json.loads(whole, parse_constant=lambda _: None)
    )  # NaN is not JSON
    print(f"[TEST] {seconds:.0f} s; tables, figures and metrics.json: {out.as_posix()}")


if __name__ == "__main__":
    tracking.run(main, DataError)
