"""Judge a world model: its predictions, beside the best that is possible.

`python test_obs_reward_model.py` takes the newest checkpoint of train_world_model.py and
transitions that it was not trained on. Each figure stands beside its floor, which the rules of
the game give, and beside that of a network of the same kind that was never trained. First the
counter of rule violations reads the real data: there it must find none.
"""

import tracking  # first: from here on Ctrl-C is one line, also while torch is imported

# isort: split
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data import DEFAULT_DATA, DataError
from data.datasets import Transitions, load_transitions
from data.trajectories import judged_file, save_arrays
from envs import GAMES, Rules
from envs.core import GameRules
from envs.game import STAY
from metrics import observers
from metrics.columns import Columns
from metrics.laws import next_state_log_prob
from metrics.transitions import (
    EvalTransitions,
    bin_probs,
    broken_rules,
    exact_expectation,
    find_events,
    hits_at_1,
    known_mean,
    per_10k,
    psnr,
)
from metrics.violations import TOLERANCE, kinds_of
from tracking import figures
from train_world_model import load_world_model

EVAL_BATCH = 4096
NLL_CAP = 100.0  # nats; what a model takes to be impossible counts as this much, so that a mean exists
DEPTHS = (1, 5, 10, 20, 35)  # steps of an open-loop rollout that are reported
MAX_ROLLOUTS = 10_000  # episodes that are rolled out, the first ones
MAX_UNTRAINED = 10_000  # transitions that the untrained network is judged on, the first ones
EVENTS_TITLE = {True: "captures, failed stag hunts, shared cells", False: "removals, shared cells"}
MAX_FLOOR_JOINT = (
    1000  # transitions of the exact expected planes, drawn by the seed, if all actions are given
)
MAX_FLOOR_OWN = 1000  # if one hunter's action is given
SIZES = ("hunters", "agents", "stags", "hares", "drifts", "blocks", "height", "width", "horizon")
SIZES += ("end_after_first_hunt",)  # rules that say nothing of what happens in a tick
MAX_COMBINATIONS = 500_000  # of unknown actions, in all: with many hunters the floor takes fewer transitions


@dataclass
class Args:
    checkpoint: str = ""
    """folder of a run, such as wm_ckpts/wm__1758375079; `newest`, or if empty: the newest in wm_ckpts/; `pretrained`:
    that of the repository"""
    data: str = DEFAULT_DATA
    """trajectories or a flat file in a HOP layout; the default file, `fresh` and `unmasked` are
    collected on first use"""
    layout: Literal["auto", "hop", "hop-first"] = "auto"
    """layout of a flat file, where its shape does not tell; `auto`: as in training"""
    split: Literal["", "test", "val", "train", "all"] = ""
    """split that is judged; if empty, `test` of the file that the run was trained on, and the whole of
    any other"""
    max_samples: int = 0
    """transitions that are judged, the first ones; 0: all"""
    seed: int = 1
    """seed of the samples, the counterfactuals and the subsets"""
    torch_threads: int = 1
    """CPU threads"""
    cuda: bool = True
    """GPU for the judged model, where there is one"""


# ---- the data


class Judged(NamedTuple):
    """What a model is judged on."""

    transitions: EvalTransitions
    rules: GameRules
    counted: np.ndarray  # bool [kinds], the violations that the real data is free of
    seed: int
    device: torch.device

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of violations."""
        return kinds_of(self.rules.game)


def read_transitions(args: Args, checkpoint: dict) -> tuple[Transitions, np.ndarray, str]:
    """The file, the transitions to be judged, and what they are, for people. Raises: UsageError,
    DataError."""
    path, assumed = judged_file(args.data, checkpoint)
    trained = checkpoint["args"]
    layout = trained.get("layout", "auto") if args.layout == "auto" else args.layout
    same_name = not args.split and args.data == trained["data"]
    data = load_transitions(path, layout, same_name or args.split in ("test", "val", "train"))
    trained_on_it = data.fingerprint == checkpoint["fingerprint"]
    part = args.split or ("test" if trained_on_it else "all")
    if trained_on_it and part in ("train", "all"):
        raise tracking.UsageError(
            f"--split {part}: the run was trained on {args.data}; judge test, val, or --data fresh"
        )
    if part not in data.splits:
        del data  # two of them would not fit where one does
        data = load_transitions(path, layout, True)
    data.inferred.extend(assumed)
    index = data.splits[part]
    if args.max_samples:
        index = index[: args.max_samples]
    name = "the whole" if part == "all" else f"the {part} split"
    return data, index, f"{name} of {args.data}"


def check_model_fits(
    args: Args, model: nn.Module, checkpoint: dict, data: Transitions, index: np.ndarray
) -> None:
    """Raises: tracking.UsageError: another game, another number of hunters, or actions are missing."""
    if data.game.metadata() != checkpoint["game"]:
        trained = checkpoint["game"]["id"]
        raise tracking.UsageError(
            f"{args.data}: expected a file of {trained}, as the checkpoint's, found one of {data.game.id}"
        )
    hunters = data.actions.shape[1]
    if model.num_hunters not in (None, hunters):
        raise tracking.UsageError(
            f"{args.data}: expected {model.num_hunters} hunters, as the checkpoint's, found {hunters}"
        )
    if model.joint and (data.actions[index] < 0).any():
        raise tracking.UsageError(
            f"{args.data}: actions: expected everyone's, as in training, found one hunter's"
        )


def file_rules(data: Transitions) -> tuple[GameRules, bool]:
    """The rules that the file says, and whether it does: else the default ones of its game. Raises:
    tracking.UsageError: a game whose rules are not known."""
    if data.rules is not None:
        return data.rules, True
    if data.game.id not in GAMES:
        raise tracking.UsageError(
            f"{data.path}: metadata: expected one of {', '.join(GAMES)}, whose rules are known, found {data.game.id}"
        )
    return GAMES[data.game.id](), False


def compare_rules(trained: dict | None, rules: GameRules) -> list[str]:
    """A line where the rules of a tick in training were other ones than those of the judged data."""
    trained = trained or {}
    different = []
    for name, here in sorted(asdict(rules).items()):
        if name not in SIZES and name in trained and trained[name] != here:
            different.append(f"{name} {trained[name]}, here {here}")
    return [f"the model learnt from other rules: {'; '.join(different)}"] if different else []


def check_real_data(
    transitions: EvalTransitions, rules: GameRules, guessed: bool
) -> tuple[GameRules, np.ndarray, list[str]]:
    """The rule counter on the data itself. guessed: the file does not say its rules: prey may
    move after all.

    Returns: the rules; the kinds that read zero and so can be counted, bool [kinds]; what was
    found, for people.
    """
    lines = []
    kinds = kinds_of(rules.game)
    broken = count_real_data(transitions, rules)
    moved = broken[:, kinds.index("prey_moved")].any()
    if guessed and moved and isinstance(rules, Rules):  # of the stag hunt
        rules = replace(rules, prey_moves=0.5)
        broken = count_real_data(transitions, rules)
        lines.append("inferred: prey move; how often is not known, so there is no floor")
    for kind, rows in zip(kinds, broken.T, strict=True):
        if rows.any():
            row = int(rows.argmax())
            episode = f"episode {transitions.episodes[row]}, tick {transitions.ticks[row]}"
            found = f"{kind} in {rows.sum()} of {len(rows)} transitions"
            first = f"first in transition {transitions.index[row]} ({episode})"
            lines.append(f"the data breaks the rules: {found}, {first}; not counted below")
    if not broken.any():
        lines.append(f"the rule counter reads 0 on the {len(transitions)} real transitions")
    return rules, ~broken.any(0), lines


def count_real_data(transitions: EvalTransitions, rules: GameRules) -> np.ndarray:
    """bool [n, kinds]"""
    broken = []
    for start in range(0, len(transitions), EVAL_BATCH):
        part = transitions.take(slice(start, start + EVAL_BATCH))
        known = part.rewards_known()
        broken.append(broken_rules(part.before, part.actions, part.after, part.rewards, known, rules))
    return np.concatenate(broken)


# ---- one step


@torch.no_grad()
def evaluate_steps(model: nn.Module, judged: Judged) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What is measured of each transition, arrays [n, ..], and the sums of `bin_probs` by
    channel, the last one of rewards > 0."""
    transitions = judged.transitions
    num_channels = transitions.states.shape[1]
    channels = torch.arange(num_channels, device=judged.device)[:, None]
    columns = Columns(len(transitions))
    bins = 0.0
    for start in tqdm(range(0, len(transitions), EVAL_BATCH), desc="one step", leave=False, mininterval=1.0):
        rows = slice(start, start + EVAL_BATCH)
        states, actions, next_states, rewards, ends = transitions.tensors(rows, judged.device)
        prediction = model.predict(states, actions)
        sampled_states, sampled_rewards, _ = model.sample(states, actions)
        log_prob = model.log_prob(states, actions, next_states, rewards, ends)
        known = ~rewards.isnan()
        right_rewards = ((prediction.rewards - rewards).abs() <= TOLERANCE) | ~known
        right_ends = ((prediction.end_prob > 0.5) == (ends > 0.5)).float()
        step = {
            "obs_error": (prediction.expected - next_states).square().double().mean(2),  # [B, C]
            "reward_error": (prediction.expected_rewards - rewards).square().double(),  # [B, A]
            "right_rewards": right_rewards,
            "exact": (prediction.most_likely == next_states).all(2).all(1),
            "right_ends": torch.where(ends.isnan(), math.nan, right_ends),
            "hits": hits_at_1(prediction, next_states, rewards, model.board),
        }
        if log_prob is not None:
            step["nll"] = -log_prob.double()
        for key, value in step.items():
            columns.put(key, rows, value.cpu().numpy())

        part = transitions.take(rows)
        before, part_known = part.before, part.rewards_known()
        outcomes = {
            "argmax": (prediction.most_likely, prediction.rewards),
            "samples": (sampled_states, sampled_rewards),
        }
        for key, (planes, predicted_rewards) in outcomes.items():
            after = planes.view(before.shape).cpu().numpy()
            predicted_rewards = predicted_rewards.cpu().numpy()
            broken = broken_rules(
                before, part.given_actions, after, predicted_rewards, part_known, judged.rules
            )
            columns.put(key, rows, broken)

        bins = bins + bin_probs(channels, prediction.expected.clamp(0, 1), next_states, num_channels + 1)
        if prediction.reward_prob is not None:
            valid = (states[:, : actions.shape[1]] > 0).any(2) & known
            last = channels[-1] + 1
            bins = bins + bin_probs(last, prediction.reward_prob[valid], rewards[valid] > 0, num_channels + 1)
    return columns, bins.cpu().numpy()


# ---- open-loop rollouts


@dataclass
class Rollouts:
    """Of E episodes and up to T steps; 0 after the end of an episode."""

    length: np.ndarray  # int64 [E], steps of an episode
    exact: np.ndarray  # float [E, T]
    obs_mse: np.ndarray  # float [E, T]
    reward_mse: np.ndarray  # float [E, T], NaN where not known
    broken: np.ndarray  # bool [E, T, kinds]

    def playing(self) -> np.ndarray:
        """bool [E, T]"""
        return np.arange(self.exact.shape[1]) < self.length[:, None]


@torch.no_grad()
def roll_out(model: nn.Module, judged: Judged, sampled: bool = False) -> Rollouts:
    """From each episode's start, the recorded actions on the model's own boards, up to the last
    of DEPTHS: the most likely boards or, if `sampled`, samples, which are only judged by the
    rules."""
    transitions = judged.transitions
    start, length = transitions.unbroken_parts()
    start = start[:MAX_ROLLOUTS]
    length = length[:MAX_ROLLOUTS]
    steps = min(int(length.max()), DEPTHS[-1])
    exact, obs_mse, reward_mse = np.zeros((3, len(start), steps))
    broken = np.zeros((len(start), steps, len(judged.kinds)), bool)
    boards = transitions.take(start).before
    for t in tqdm(range(steps), desc="open loop", leave=False, mininterval=1.0):
        playing = np.flatnonzero(length > t)
        for first in range(0, len(playing), EVAL_BATCH):
            episodes = playing[first : first + EVAL_BATCH]
            rows = start[episodes] + t
            _, actions, next_states, rewards, _ = transitions.tensors(rows, judged.device)
            states = torch.as_tensor(boards[episodes], device=judged.device).flatten(2)
            if sampled:
                planes, predicted_rewards, _ = model.sample(states, actions)
            else:
                prediction = model.predict(states, actions)
                planes = prediction.most_likely
                predicted_rewards = prediction.rewards
                obs_error = (prediction.expected - next_states).square().mean((1, 2))
                reward_error = (prediction.expected_rewards - rewards).square().nanmean(1)
                exact[episodes, t] = (planes == next_states).all(2).all(1).cpu().numpy()
                obs_mse[episodes, t] = obs_error.cpu().numpy()
                reward_mse[episodes, t] = reward_error.cpu().numpy()
            after = planes.view(boards[episodes].shape).cpu().numpy()
            broken[episodes, t] = broken_rules(
                boards[episodes],
                transitions.given_actions[rows],
                after,
                predicted_rewards.cpu().numpy(),
                ~rewards.isnan().cpu().numpy(),
                judged.rules,
            )
            boards[episodes] = after
    return Rollouts(length, exact, obs_mse, reward_mse, broken)


def rollout_metrics(rollouts: Rollouts, sampled: Rollouts | None, judged: Judged) -> dict[str, dict]:
    """`rollout` of metrics.json: figures of the k-th step, or of an episode's last one where it
    is shorter; `exact_path`: all steps up to it are right; violations per 10,000 steps, of all
    up to it."""
    length = rollouts.length
    episodes = np.arange(len(length))
    steps = np.arange(rollouts.exact.shape[1])
    exact_path = np.logical_and.accumulate(rollouts.exact.astype(bool), 1)
    metrics = {}
    for k in DEPTHS:
        last = np.minimum(length, k) - 1
        so_far = (steps <= last[:, None]).nonzero()
        row = {
            "exact": known_mean(rollouts.exact[episodes, last]),
            "obs_mse": known_mean(rollouts.obs_mse[episodes, last]),
            "reward_mse": known_mean(rollouts.reward_mse[episodes, last]),
            "exact_path": known_mean(exact_path[episodes, last]),
            "violations_per_10k": per_10k(rollouts.broken[so_far], judged.counted, judged.kinds)["total"],
        }
        if sampled:
            rates = per_10k(sampled.broken[so_far], judged.counted, judged.kinds)
            row["violations_per_10k_samples"] = rates["total"]
        metrics[str(k)] = row | {"episodes": len(length), "shorter": int((length < k).sum())}
    return metrics


# ---- the floor


def compute_floor(judged: Judged, data: Transitions, certain: bool) -> dict[str, Any]:
    """The least that each figure can be, by the rules; None where it cannot be known.

    Where nothing is random it is 0. Else: NLL by the exact law of the next state; MSE by the
    exact expected planes, of `n` transitions. Actions that the model is not given are those of
    the observer that knows the strategies and infers which one a hunter plays
    (metrics.observers.bayes). certain: the rules are known, and the data keeps them.
    """
    transitions = judged.transitions
    rules = judged.rules
    all_given = bool((transitions.given_actions >= 0).all())
    has_policy = data.trajectories is not None and data.trajectories.policy_probs is not None
    if not certain or not (all_given or has_policy):
        return dict(obs_mse=None, reward_mse=None, nll=None, n=0)
    if all_given and rules.prey_moves == 0.0:
        return dict(obs_mse=0.0, reward_mse=0.0, nll=0.0, n=len(transitions))

    order = np.random.default_rng(judged.seed).permutation(len(transitions))
    subset = transitions.take(order[: MAX_FLOOR_JOINT if all_given else MAX_FLOOR_OWN])
    probs = action_probs(subset, data)
    combinations = np.cumsum((probs > 0).sum(2).prod(1))
    enough = 1 + int(np.searchsorted(combinations, MAX_COMBINATIONS))
    subset = subset.take(slice(enough))
    rows = range(len(subset))
    before, after = subset.before, subset.after
    best = [
        exact_expectation(before[i], probs[i], after[i], subset.rewards[i], rules)
        for i in tqdm(rows, desc="floor", leave=False, mininterval=1.0)
    ]
    obs_mse, reward_mse, nll = (known_mean(values) for values in np.array(best).T)
    if all_given:
        parts = map(transitions.take, transitions.parts())
        log_probs = [
            next_state_log_prob(part.before, part.given_actions, part.after, rules) for part in parts
        ]
        nll = -float(np.concatenate(log_probs).mean())
    if nll is not None and not math.isfinite(nll):
        nll = None
    return dict(obs_mse=obs_mse, reward_mse=reward_mse, nll=nll, n=len(subset))


def action_probs(transitions: EvalTransitions, data: Transitions) -> np.ndarray:
    """What is known of each hunter's action: float [n, A, 5 + k]."""
    one_hot = np.eye(data.game.num_actions)
    given = transitions.given_actions >= 0
    probs = one_hot[transitions.given_actions.clip(0)]
    if given.all():
        return probs
    has_left = ~transitions.before[:, : given.shape[1]].any((2, 3))
    guess = observers.bayes(data.trajectories)[transitions.index]
    guess = np.where(has_left[..., None], one_hot[STAY], guess)
    return np.where(given[..., None], probs, guess)


def ideal_report(floor: dict) -> dict[str, Any]:
    """The floor as a report: the rules break no rule, and where nothing is random they are never
    wrong."""
    report: dict[str, Any] = dict(floor)
    report["violations_per_10k"] = {"argmax": {"total": 0.0}, "samples": {"total": 0.0}}
    report["psnr_global"] = None if floor["obs_mse"] is None else psnr(floor["obs_mse"])
    row = dict(violations_per_10k=0.0, violations_per_10k_samples=0.0)
    if floor["obs_mse"] == 0.0:
        for key in ("exact_transitions", "exact_transitions_events", "exact_rewards", "hits_at_1"):
            report[key] = 1.0
        report["psnr_frame_mean"] = psnr(0.0)
        report["exact_ends"] = None if floor["nll"] is None else 1.0
        row |= dict(exact=1.0, exact_path=1.0, obs_mse=0.0, reward_mse=0.0)
    report["rollout"] = {str(k): row for k in DEPTHS}
    return report


# ---- all figures


class Arrays(NamedTuple):
    """What the figures are drawn from."""

    steps: dict[str, np.ndarray]
    rollouts: Rollouts
    rollout_violations: dict[str, float | None]
    calibration: dict[str, np.ndarray]  # channel -> [3, bins]: predicted, frequency, count


def evaluate(model: nn.Module, judged: Judged) -> tuple[dict[str, Any], Arrays]:
    """The figures as metrics.json names them, and what the pictures are drawn from."""
    torch.manual_seed(judged.seed)
    steps, bins = evaluate_steps(model, judged)
    rollouts = roll_out(model, judged)
    is_random = judged.rules.prey_moves > 0.0 or bool((judged.transitions.given_actions < 0).any())
    sampled = roll_out(model, judged, sampled=True) if is_random else None
    report = summarize(steps, judged, rollouts, sampled)
    curves = calibration_curves(bins, [*judged.transitions.channel_names(), "reward > 0"])
    keys = ("predicted", "frequency", "count")
    report["calibration"] = {
        name: dict(zip(keys, curve.tolist(), strict=True)) for name, curve in curves.items()
    }
    rollout_violations = per_10k(rollouts.broken[rollouts.playing()], judged.counted, judged.kinds)
    return report, Arrays(steps, rollouts, rollout_violations, curves)


def summarize(
    steps: dict[str, np.ndarray], judged: Judged, rollouts: Rollouts, sampled: Rollouts | None
) -> dict[str, Any]:
    """Means of what was measured."""
    transitions = judged.transitions
    events = find_events(transitions)
    any_event = np.any(list(events.values()), axis=0)
    frames = steps["obs_error"].mean(1)
    exact = steps["exact"]
    has_rewards = transitions.rewards_known().any(1)
    right_rewards = steps["right_rewards"].all(1)[has_rewards]
    nll = steps.get("nll")
    return {
        "n": len(transitions),
        "obs_mse": float(frames.mean()),
        "psnr_global": psnr(frames.mean()),
        "psnr_frame_mean": psnr(frames),
        "reward_mse": known_mean(steps["reward_error"]),
        "nll": None if nll is None else float(np.minimum(nll, NLL_CAP).mean()),
        "exact_transitions": known_mean(exact),
        "exact_transitions_events": known_mean(exact[any_event]),
        "exact_rewards": known_mean(right_rewards),
        "exact_ends": known_mean(steps["right_ends"]),
        "hits_at_1": known_mean(steps["hits"]),
        "wrong_transitions": int((~exact).sum()),
        "wrong_rewards": int((~right_rewards).sum()),
        "nll_capped": None if nll is None else int((nll > NLL_CAP).sum()),
        "per_channel_mse": steps["obs_error"].mean(0).tolist(),
        "violations_per_10k": {
            key: per_10k(steps[key], judged.counted, judged.kinds) for key in ("argmax", "samples")
        },
        "rollout": rollout_metrics(rollouts, sampled, judged),
        "events": {name: int(rows.sum()) for name, rows in events.items()} | {"any": int(any_event.sum())},
        "exact_by_event": {name: known_mean(exact[rows]) for name, rows in events.items()},
    }


def calibration_curves(bins: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Of the channels and bins that are not empty: mean probability, frequency, count. bins: [3,
    channels, bins]."""
    curves = {}
    for name, (probs, targets, count) in zip(names, bins.swapaxes(0, 1), strict=True):
        full = count > 0
        if full.any():
            count = count[full]
            curves[name] = np.stack([probs[full] / count, targets[full] / count, count])
    return curves


# ---- the printed report


def print_report(report: dict, untrained: dict, data: Transitions, lines: list[str]) -> None:
    """The block that users' tools parse, then every figure beside its floor and the untrained
    network's."""
    shape = data.states.shape[1:]
    reward_mse = math.nan if report["reward_mse"] is None else report["reward_mse"]
    print(f"[INFO] loaded model. obs_shape={shape}, action_dim={data.game.num_actions}")
    print(f"[INFO] dataset size={len(data)}, inferred n_agents={data.actions.shape[1]}\n\n=== Metrics ===")
    print(f"Obs  MSE (mean over B,C,H,W): {report['obs_mse']:.6f}")
    print(f"Obs  PSNR: {report['psnr_frame_mean']:.2f} dB")
    print(f"Rew  MSE:  {reward_mse:.6f}\nPer-channel MSE:")
    for i, mse in enumerate(report["per_channel_mse"]):
        print(f"  ch[{i}]: {mse:.6e}")
    print("", *lines, sep="\n")

    columns = [report, ideal_report(report["floor"]), untrained]
    columns = [table_lines(column, report["events"]["any"]) for column in columns]
    print(f"\n{'':<34}{'model':>12}{'floor':>12}{'untrained':>12}")
    for line in zip(*columns, strict=True):
        if line[0].value is not None or line[0].label.startswith("NLL"):
            texts = ["-" if value is None else format(value, form) for _, value, form in line]
            print(f"{line[0].label:<34}" + "".join(f"{text:>12}" for text in texts))
    for key, rates in report["violations_per_10k"].items():
        kinds = ", ".join(f"{kind} {rate:.1f}" for kind, rate in rates.items() if rate)
        print(f"violations per 10,000, {key}: {kinds or 'none'}")
    if report["nll_capped"]:
        print(f"{report['nll_capped']} transitions were thought impossible, and count as {NLL_CAP:.0f} nats")


class Line(NamedTuple):
    """One figure of the printed table."""

    label: str
    value: float | None
    form: str


def table_lines(report: dict, num_events: int) -> list[Line]:
    """The printed table of one report; what it lacks is None."""
    violations = report["violations_per_10k"]
    lines = [
        Line("obs MSE", report["obs_mse"], ".3e"),
        Line("PSNR, global, dB", report["psnr_global"], ".2f"),
        Line("PSNR, mean over frames, dB", report.get("psnr_frame_mean"), ".2f"),
        Line("reward MSE", report["reward_mse"], ".3e"),
        Line("NLL, nats a transition", report["nll"], ".5f"),
        Line("exact transitions", report.get("exact_transitions"), ".3%"),
        Line(f"  of {num_events} with an event", report.get("exact_transitions_events"), ".3%"),
        Line("exact rewards", report.get("exact_rewards"), ".3%"),
        Line("exact ends", report.get("exact_ends"), ".3%"),
        Line("Hits@1", report.get("hits_at_1"), ".3%"),
        Line("violations per 10,000", violations["argmax"]["total"], ".1f"),
        Line("  of samples", violations["samples"]["total"], ".1f"),
    ]
    for k, row in report["rollout"].items():
        lines += [
            Line(f"{k}-step rollouts: exact", row.get("exact"), ".3%"),
            Line("  every step exact", row.get("exact_path"), ".3%"),
            Line("  obs MSE", row.get("obs_mse"), ".3e"),
            Line("  reward MSE", row.get("reward_mse"), ".3e"),
            Line("  violations per 10,000 steps", row["violations_per_10k"], ".1f"),
            Line("    of samples", row.get("violations_per_10k_samples"), ".1f"),
        ]
    return lines


# ---- figures and files


def choose_pictured(
    steps: dict[str, np.ndarray], transitions: EvalTransitions, seed: int, count: int = 6
) -> dict[str, np.ndarray]:
    """Which transitions are drawn: the worst by NLL, or by squared error where there is none, and
    some of each event."""
    error = steps["nll"] if "nll" in steps else steps["obs_error"].mean(1)
    order = np.random.default_rng(seed).permutation(len(transitions))
    kinds = [order[rows[order]][:count] for rows in find_events(transitions).values()]
    in_turn = [row for turn in itertools.zip_longest(*kinds) for row in turn if row is not None]
    chosen = {
        "worst_cases": np.argsort(-error, kind="stable")[:count],
        "events": np.array(list(dict.fromkeys(in_turn))[:count]),
    }
    return {name: rows.astype(np.int64) for name, rows in chosen.items() if len(rows)}


@torch.no_grad()
def make_figures(model: nn.Module, judged: Judged, arrays: Arrays) -> dict[str, Any]:
    """All figures, file name -> Figure."""
    transitions = judged.transitions
    labels = figures.BoardLabels.of(transitions.game)
    steps = arrays.steps
    by = "NLL" if "nll" in steps else "squared error"
    titles = {
        "worst_cases": f"the worst of {len(transitions)} by {by}",
        "events": EVENTS_TITLE[transitions.game.leaves],
    }
    drawn = {}
    for name, rows in choose_pictured(steps, transitions, judged.seed).items():
        part = transitions.take(rows)
        states, actions, *_ = transitions.tensors(rows, judged.device)
        prediction = model.predict(states, actions)
        before = part.before
        expected = prediction.expected.clamp(0, 1).cpu().numpy().reshape(before.shape)
        heads = [f"transition {i}, tick {tick}" for i, tick in zip(part.index, part.ticks, strict=True)]
        if "nll" in steps:
            heads = [f"{head}\nNLL {nll:.3g}" for head, nll in zip(heads, steps["nll"][rows], strict=True)]
        drawn[name] = figures.predicted_boards(
            before,
            part.after,
            expected,
            part.given_actions,
            part.rewards,
            prediction.expected_rewards.cpu().numpy(),
            heads,
            titles[name],
            labels,
        )

    wrong = {"share of wrong boards": ~steps["exact"], "obs MSE": steps["obs_error"].mean(1)}
    ticks = np.unique(transitions.ticks)
    by_tick = {
        name: {int(tick): float(values[transitions.ticks == tick].mean()) for tick in ticks}
        for name, values in wrong.items()
    }
    rollouts = arrays.rollouts
    wrong = {
        "share of wrong boards": 1.0 - rollouts.exact,
        "obs MSE": rollouts.obs_mse,
        "reward MSE": rollouts.reward_mse,
        "share of steps that break a rule": rollouts.broken.any(2),
    }
    playing = rollouts.playing().T  # [T, E]
    by_depth = {
        name: [known_mean(values[on, t]) or 0.0 for t, on in enumerate(playing)]
        for name, values in wrong.items()
    }
    title = f"{len(transitions)} transitions"
    return drawn | figures.of_predictions(arrays.calibration, by_tick, by_depth, title)


@torch.no_grad()
def save_film(model: nn.Module, judged: Judged, path: Path) -> None:
    """A GIF of the real episode with most events, the most likely one and a sampled one beside
    it: the same start, the same actions."""
    torch.manual_seed(judged.seed)
    transitions = judged.transitions
    start, length = transitions.unbroken_parts()
    length = np.minimum(length, DEPTHS[-1])
    events = np.append(0, np.cumsum(sum(find_events(transitions).values())))
    episode = (events[start + length] - events[start]).argmax()
    part = transitions.take(slice(start[episode], start[episode] + length[episode]))
    labels = figures.BoardLabels.of(part.game)
    before, after = part.before, part.after
    shape = before.shape[1:]
    boards = {name: [before[0]] for name in ("real", "most likely", "sampled")}
    titles, happened = ["the start"], [""]
    for i in range(len(part)):
        actions = torch.as_tensor(part.given_actions[i : i + 1], device=judged.device)
        likely = torch.as_tensor(boards["most likely"][-1], device=judged.device).flatten(1)[None]
        sampled = torch.as_tensor(boards["sampled"][-1], device=judged.device).flatten(1)[None]
        boards["real"].append(after[i])
        next_likely = model.predict(likely, actions).most_likely
        next_sampled, _, _ = model.sample(sampled, actions)
        boards["most likely"].append(next_likely.cpu().numpy().reshape(shape))
        boards["sampled"].append(next_sampled.cpu().numpy().reshape(shape))
        text = figures.transition_text(part.given_actions[i], part.rewards[i], labels)
        titles.append(f"after tick {part.ticks[i]}: {text}")
        happened.append(figures.event_text(before[i], after[i], part.actions[i], part.rewards[i], labels))
    figures.joint_film(boards, titles, path, happened, labels)


@torch.no_grad()
def save_tables(
    model: nn.Module, judged: Judged, report: dict, untrained: dict, arrays: Arrays, folder: Path
) -> None:
    """per_channel.csv, violations.csv, rollout.csv and predictions.npz."""
    transitions = judged.transitions
    rows = []
    for i, name in enumerate(transitions.channel_names()):
        mse = report["per_channel_mse"][i]
        untrained_mse = untrained["per_channel_mse"][i]
        row = dict(channel=i, name=name, mse=f"{mse:.9e}", psnr=psnr(mse))
        rows.append(row | dict(untrained_mse=f"{untrained_mse:.9e}"))
    tracking.write_csv(folder / "per_channel.csv", rows)

    rates = report["violations_per_10k"] | {"rollout": arrays.rollout_violations}
    rates |= {f"untrained_{key}": rate for key, rate in untrained["violations_per_10k"].items()}
    rows = [
        dict(kind=kind) | {key: rate[kind] for key, rate in rates.items()}
        for kind in ("total", *judged.kinds)
    ]
    tracking.write_csv(folder / "violations.csv", rows)

    rows = []
    for k, row in report["rollout"].items():
        other = untrained["rollout"][k]
        other = {f"untrained_{key}": other[key] for key in ("exact", "obs_mse", "reward_mse")}
        rows.append(dict(k=int(k)) | row | other)
    tracking.write_csv(folder / "rollout.csv", rows)

    subset = np.sort(np.random.default_rng(judged.seed).permutation(len(transitions))[:2000])
    part = transitions.take(subset)
    states, actions, *_ = transitions.tensors(subset, judged.device)
    prediction = model.predict(states, actions)
    expected = prediction.expected.cpu().numpy().astype(np.float16)
    true_next = part.after
    predictions = dict(
        index=part.index,
        actions=part.given_actions.astype(np.int8),
        rewards=prediction.rewards.cpu().numpy(),
        expected=expected.reshape(true_next.shape),
        expected_rewards=prediction.expected_rewards.cpu().numpy(),
        likely=prediction.most_likely.cpu().numpy().reshape(true_next.shape),
        true_next=true_next,
        true_rewards=part.rewards,
    )
    save_arrays(folder / "predictions.npz", predictions)


def log_report(writer: SummaryWriter, report: dict, step: int) -> None:
    """All numbers to TensorBoard, as one text of three tables."""
    figures_ = {key: {"": value} for key, value in report.items() if isinstance(value, (int, float))}
    tables = {
        "figure": figures_,
        "violations per 10,000": report["violations_per_10k"],
        "rollout, after so many steps": report["rollout"],
    }
    text = "\n\n".join(markdown_table(title, rows) for title, rows in tables.items())
    writer.add_text("test_report", text, step)


def markdown_table(title: str, rows: dict[str, dict]) -> str:
    """rows[name][column]: one row a name, below the title and the columns."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [[title, *columns], ["-"] * (1 + len(columns))]
    for name, row in rows.items():
        values = [row.get(column) for column in columns]
        lines.append([str(name), *("" if value is None else f"{value:.6g}" for value in values)])
    return "\n".join(f"|{'|'.join(line)}|" for line in lines)


# ---- the command


def check_args(args: Args) -> None:
    """Raises: tracking.UsageError."""
    for name, least in dict(max_samples=0, seed=0, torch_threads=1).items():
        value = getattr(args, name)
        if not least <= value < 2**31:
            flag = f"--{name.replace('_', '-')}"
            raise tracking.UsageError(f"{flag}: must be at least {least} and below 2**31, got {value}")


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    start = time.perf_counter()
    check_args(args)
    torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")

    # Model and data
    named = (args.checkpoint, "wm_ckpts", "train_world_model.py")
    folder = tracking.find_folder(tracking.network_run(*named))
    model, checkpoint = load_world_model(folder, device)
    data, index, where = read_transitions(args, checkpoint)
    check_model_fits(args, model, checkpoint, data, index)
    board = data.states.shape[2:]
    model = model.on(*board)
    transitions = EvalTransitions.of(data, index, model.joint, args.seed)
    rules, rules_known = file_rules(data)
    notes = [f"inferred: {line}" for line in data.inferred]
    if rules_known:
        notes += compare_rules(checkpoint.get("rules"), rules)
    else:
        notes.append("inferred: the default rules; the file does not say its own")
    rules, counted, found = check_real_data(transitions, rules, guessed=not rules_known)
    judged = Judged(transitions, rules, counted, args.seed, device)

    # The model, the floor, the same network untrained
    report, arrays = evaluate(model, judged)
    certain = bool(counted.all()) and (rules_known or rules.prey_moves == 0.0)
    report["floor"] = compute_floor(judged, data, certain)
    torch.manual_seed(args.seed)
    fresh_model = type(model)(**model.sizes).to(device).on(*board).eval()
    first = judged._replace(transitions=transitions.take(slice(MAX_UNTRAINED)))
    untrained, _ = evaluate(fresh_model, first)
    untrained.pop("calibration")

    # The report
    given = "everyone's actions" if model.joint else "one hunter's action"
    what = f"{folder.as_posix()}, epoch {checkpoint['epoch'] - 1}, given {given}, on {where}"
    lines = [f"[TEST] {what}: {len(transitions)} transitions, on {device}"]
    lines += [f"[DATA] {line}" for line in notes + found]
    if 0 < report["floor"]["n"] < len(transitions):
        count = report["floor"]["n"]
        lines.append(
            f"[TEST] floor: by the exact law of the next state, on {count} transitions drawn by the seed"
        )
    if len(transitions) > MAX_UNTRAINED:
        lines.append(
            f"[TEST] untrained: the same network before training, on the first {MAX_UNTRAINED} transitions"
        )
    print_report(report, untrained, data, lines)

    # Tables, figures and metrics.json
    out = folder / "test"
    out.mkdir(exist_ok=True)
    save_tables(model, judged, report, untrained, arrays, out)
    writer = tracking.open_test_log(checkpoint["run"])
    for name, figure in make_figures(model, judged, arrays).items():
        path = out / f"{name}.png"
        figures.save(figure, path)
        image = imread(path)[..., :3]
        writer.add_image(f"test_figures/{name}", image, checkpoint["step"], dataformats="HWC")
    save_film(model, judged, out / "imagined_episode.gif")
    log_report(writer, report, checkpoint["step"])
    writer.close()
    seconds = time.perf_counter() - start
    head = dict(
        checkpoint=folder.as_posix(),
        run=checkpoint["run"],
        epoch=checkpoint["epoch"] - 1,
        data=args.data,
        judged=where,
        seed=args.seed,
        seconds=seconds,
    )
    text = json.dumps(head | report | {"untrained": untrained})
    metrics = json.loads(text, parse_constant=lambda _: None)  # NaN is not JSON
    tracking.write_json(out / "metrics.json", metrics)
    print(f"[TEST] {seconds:.0f} s; tables, figures and metrics.json: {out.as_posix()}")


if __name__ == "__main__":
    tracking.run(main, DataError)
