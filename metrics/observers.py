"""Observers that know the rules and the strategies: an upper bound for a learnt model of other agents.

Each predicts a hunter's next action as a mixture of the exact `policy_probs`.
They differ in what they know of the hunter's strategy:
*known* knows it, *bayes* infers it from all earlier actions of the hunter in
the episode, and *table* from one observation.
All raise DataError where the file has no `policy_probs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from data.datasets import Samples, last_actions
from data.trajectories import CHUNK, DataError, Trajectories, chunks, split_episodes
from envs.core import legal_actions
from envs.game import OWN_PLANES, Game, any_game_of
from envs.grid import FAR, distance_fields

TABLE_DISTANCES = 24
"""the longest shortest path that `table` counts by itself: longer ones, and no prey left, count as this"""


def known(trajectories: Trajectories) -> np.ndarray:
    """Action probabilities of the hunter's own strategy, float32 [N, A, n], of n actions."""
    probs = _policy_probs(trajectories)
    strategy = trajectories.strategies[trajectories.episode].astype(np.intp)  # [N, A]
    own = np.take_along_axis(probs, strategy[:, :, None, None], 2)  # [N, A, 1, n]
    return own[:, :, 0]


def posterior(trajectories: Trajectories) -> np.ndarray:
    """P(strategy | earlier actions), by Bayes' rule from the priors. float64 [N, A, S].

    An action that no strategy plays leaves the belief as it was.
    """
    return _filter(_policy_probs(trajectories), trajectories, trajectories.priors)


def _filter(
    probs: np.ndarray, trajectories: Trajectories, prior: np.ndarray, hazard: float = 0.0
) -> np.ndarray:
    """P(behaviour | earlier actions), float64 [N, A, C], where a hunter draws its behaviour again from the prior with
    probability `hazard` after each tick. probs: [N, A, C, n]; prior: [C]."""
    actions = trajectories.actions.astype(np.intp)
    likelihood = np.take_along_axis(probs, actions[:, :, None, None], 3)[..., 0]  # [N, A, C]
    with np.errstate(divide="ignore"):
        log_likelihood = np.log(likelihood.astype(np.float64))
        log_prior = np.log(prior)
    lengths = trajectories.episode_lengths
    starts = np.cumsum(lengths) - lengths
    log_belief = np.empty_like(log_likelihood)
    current = np.tile(log_prior, (len(lengths), probs.shape[1], 1))  # [E, A, C]
    for tick in range(lengths.max()):  # all episodes at once
        playing = np.flatnonzero(lengths > tick)
        step = starts[playing] + tick
        before = current[playing]
        log_belief[step] = before
        after = before + log_likelihood[step]
        impossible = np.isneginf(after).all(-1, keepdims=True)
        after = np.where(impossible, before, after)
        if hazard:
            with np.errstate(divide="ignore"):  # log 0: not possible
                after = np.log((1.0 - hazard) * _normalized(after) + hazard * prior)
        current[playing] = after
    return _normalized(log_belief)


def _normalized(log_weight: np.ndarray) -> np.ndarray:
    """Probabilities, from their logarithms up to a constant; along the last axis."""
    weight = np.exp(log_weight - log_weight.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def goal_filter(
    trajectories: Trajectories, none: float, hazard: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """What *bayes* says where a hunter may also have no goal, and change its mind: the belief over the strategies that
    pursue a goal and, last, "uniform over legal actions", float64 [N, A, G + 1], and its prediction, float32 [N, A, n].

    Args: none: prior probability of no goal, the goals share the rest equally; hazard: as of `_filter`.
    Returns: None where `policy_probs` lack a strategy that pursues a goal.
    """
    names = list(trajectories.game.goals.values())
    if not set(names) <= set(trajectories.strategy_names):
        return None
    row = trajectories.obs_row
    parts = [legal_actions(trajectories.obs[row[part]]) for part in chunks(row, trajectories.obs[0].nbytes)]
    legal = np.concatenate(parts)  # bool [N, A, n]
    uniform = (legal / legal.sum(-1, keepdims=True))[:, :, None]  # [N, A, 1, n]
    of_goals = [trajectories.strategy_names.index(name) for name in names]
    probs = np.concatenate([_policy_probs(trajectories)[:, :, of_goals], uniform], 2)  # [N, A, G + 1, n]
    prior = np.array([*[(1.0 - none) / len(names)] * len(names), none])
    belief = _filter(probs, trajectories, prior, hazard)
    return belief, np.einsum("nac,nack->nak", belief, probs).astype(np.float32)


def bayes(trajectories: Trajectories) -> np.ndarray:
    """Probabilities under the posterior, float32 [N, A, n].

    No predictor that does not know the strategy has a lower expected NLL.
    """
    return _mix(posterior(trajectories), trajectories)


def table_features(trajectories: Trajectories) -> np.ndarray:
    """What one observation shows before each step, int64 [N, A, k + 2].

    Distance around blocks to the nearest prey of each kind, tick, hunters left.
    """
    kinds = trajectories.game.kinds
    features = np.empty((*trajectories.actions.shape, kinds + 2), np.int64)
    row = trajectories.obs_row
    for start in range(0, len(row), CHUNK):
        part = slice(start, start + CHUNK)
        boards = trajectories.obs[row[part]].astype(bool)  # [n, A, 3 + k, H, W]
        own = boards[:, :, 0]  # [n, A, H, W], one cell, or none
        active = own.any((2, 3))
        blocks = boards[:, 0, 2]
        for kind in range(kinds):
            distance = distance_fields(blocks, boards[:, 0, len(OWN_PLANES) + kind])  # [n, H, W]
            to_nearest = np.where(own, distance[:, None], 0).sum((2, 3))
            features[part, :, kind] = np.where(active, to_nearest, FAR)
    features[..., :kinds] = np.minimum(features[..., :kinds], TABLE_DISTANCES)
    features[..., kinds] = trajectories.tick[:, None]
    features[..., kinds + 1] = trajectories.active.sum(1)[:, None]
    return features


def count_table(trajectories: Trajectories, steps: np.ndarray) -> np.ndarray:
    """How often each strategy was seen with each combination of features.

    Args: steps: int [n], rows of `actions`; only active hunters count.
    Returns: int32 [D, .., T, A+1, S], D distances of each kind of prey.
    """
    return _count_table(trajectories, steps, _parts(trajectories))


def _count_table(
    trajectories: Trajectories, steps: np.ndarray, parts: Iterable[tuple[int, Trajectories]]
) -> np.ndarray:
    """parts: `trajectories`, some episodes at a time, and the first step of each part."""
    num_distances = [TABLE_DISTANCES + 1] * trajectories.game.kinds
    num_ticks = int(trajectories.episode_lengths.max())
    num_hunters = trajectories.actions.shape[1]
    num_strategies = len(trajectories.strategy_names)
    shape = (*num_distances, num_ticks, num_hunters + 1, num_strategies)
    table = np.zeros(shape, np.int32)
    counted = np.zeros(len(trajectories.actions), bool)
    counted[steps] = True
    for start, part in parts:
        active = part.active & counted[start : start + len(part.active), None]  # [n, A]
        features = table_features(part)[active]  # [m, k + 2]
        strategies = part.strategies[part.episode][active]  # [m]
        np.add.at(table, (*features.T, strategies), 1)
    return table


def table(trajectories: Trajectories, counts: np.ndarray) -> np.ndarray:
    """Probabilities under P(strategy | one observation) of `count_table`, float32 [N, A, n].

    One more count is spread over the strategies by the priors.
    Raises: DataError: the table was counted on another number of hunters or strategies.
    """
    hunters, strategies = trajectories.actions.shape[1], len(trajectories.strategy_names)
    if counts.shape[-2:] != (hunters + 1, strategies):
        expected = f"{counts.shape[-2] - 1} hunters and {counts.shape[-1]} strategies"
        raise DataError(
            f"{trajectories.path}: expected {expected}, as in the training data, "
            f"found {hunters} and {strategies}"
        )
    features = table_features(trajectories)
    tick = features[..., -2]
    np.minimum(tick, counts.shape[-3] - 1, out=tick)
    seen = counts[tuple(np.moveaxis(features, -1, 0))] + trajectories.priors  # [N, A, S]
    return _mix(seen / seen.sum(-1, keepdims=True), trajectories)


# ---- for samples: hunters that are on the board, at one tick each


def training_table(samples: Samples) -> np.ndarray | None:
    """`count_table` of the training episodes; None without `policy_probs`."""
    if not samples.has_policy_probs:
        return None
    trajectories = samples.trajectories
    episodes = split_episodes(len(trajectories.episode_lengths))["train"]
    steps = np.flatnonzero(np.isin(trajectories.episode, episodes))
    return _count_table(trajectories, steps, samples.parts())


def is_table(counts: Any, saved: dict) -> bool:
    """Is it a `count_table` (as a tensor) over `saved["strategies"]`, or None?"""
    if counts is None:
        return True
    kinds = any_game_of(saved["game"]).kinds
    shape = tuple(getattr(counts, "shape", ()))
    if len(shape) != kinds + 3 or str(counts.dtype) != "torch.int32":
        return False
    fits = set(shape[:kinds]) == {TABLE_DISTANCES + 1} and shape[-1] == len(saved["strategies"])
    return fits and bool((counts >= 0).all())


def training_pairs(samples: Samples) -> np.ndarray | None:
    """How often each action followed another in the training episodes, int64 [n + 1, n], rows the one before (n: none).

    None in games of the family, where better observers are known.
    """
    if isinstance(samples.game, Game):
        return None
    n = samples.game.num_actions
    train = samples.splits["train"]
    pairs = last_actions(samples)[train] * n + samples.actions[train]
    return np.bincount(pairs, minlength=(n + 1) * n).reshape(n + 1, n)


def are_pairs(counts: Any, saved: dict) -> bool:
    """Are they `training_pairs` (as a tensor) of the game `saved["game"]`, or None?"""
    game = any_game_of(saved["game"])
    if counts is None:
        return isinstance(game, Game)
    n = game.num_actions
    is_table = tuple(getattr(counts, "shape", ())) == (n + 1, n) and str(counts.dtype) == "torch.int64"
    return is_table and bool((counts >= 0).all())


def _predictions_of_pairs(samples: Samples, index: np.ndarray, pairs: np.ndarray) -> dict[str, np.ndarray]:
    """What two observers that know no game predict for the samples `index`, float32 [m, n].

    `last`: the last action again, as often as it was, else any other; `after_last`: what followed the last action.
    Where there is no last action both are `after_last`.
    """
    n = pairs.shape[1]
    after_last = (pairs + 1) / (pairs + 1).sum(1, keepdims=True)
    repeated = pairs[:n].trace() / max(1, pairs[:n].sum())
    last = after_last.copy()
    last[:n] = np.where(np.eye(n, dtype=bool), repeated, (1 - repeated) / max(1, n - 1))
    before = last_actions(samples)[index]
    return dict(last=last[before].astype(np.float32), after_last=after_last[before].astype(np.float32))


def table_fits(samples: Samples, counts: np.ndarray, strategy_names: list[str]) -> bool:
    """Can a table that was counted on another file, over `strategy_names`, be read for these samples?"""
    if not samples.has_policy_probs or samples.strategy_names != strategy_names:
        return False
    return samples.trajectories.obs.shape[1] == counts.shape[-2] - 1


def sample_posterior(samples: Samples, index: np.ndarray) -> np.ndarray | None:
    """`posterior` of the samples `index`, float64 [m, S]; None without `policy_probs`."""
    if not samples.has_policy_probs:
        return None
    belief = np.empty((len(index), len(samples.strategy_names)))
    for here, step, seat, part in _samples_in_parts(samples, index):
        belief[here] = posterior(part)[step, seat]
    return belief


def sample_filter(
    samples: Samples, index: np.ndarray, none: float, hazard: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """`goal_filter` of the samples `index`: float64 [m, G + 1], float32 [m, n]; None also without `policy_probs`."""
    goals = samples.game.goals
    if not samples.has_policy_probs or not set(goals.values()) <= set(samples.strategy_names):
        return None
    belief = np.empty((len(index), len(goals) + 1))
    probs = np.empty((len(index), samples.game.num_actions), np.float32)
    for here, step, seat, part in _samples_in_parts(samples, index):
        of_part = goal_filter(part, none, hazard)
        belief[here], probs[here] = (values[step, seat] for values in of_part)
    return belief, probs


def predictions(
    samples: Samples, index: np.ndarray, counts: np.ndarray | None, pairs: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What each observer predicts for the samples `index` (int [m]), float32 [m, n].

    `uniform` over legal actions; with `policy_probs` also `bayes`, `known`,
    and `table` where `counts` is given. Outside the family of games, where
    these are not known, `last` and `after_last` of `pairs`.
    """
    if pairs is not None:
        return _predictions_of_pairs(samples, index, pairs)
    shape = (len(index), samples.game.num_actions)
    probs = {"uniform": np.empty(shape, np.float32)}
    for start in range(0, len(index), CHUNK):
        here = slice(start, start + CHUNK)
        legal = legal_actions(samples.frames[samples.rows[index[here]]])
        probs["uniform"][here] = legal / legal.sum(1, keepdims=True)
    if not samples.has_policy_probs:
        return probs
    names = ("bayes", "known") if counts is None else ("table", "bayes", "known")
    probs |= {name: np.empty(shape, np.float32) for name in names}
    for here, step, seat, part in _samples_in_parts(samples, index):
        if counts is not None:
            probs["table"][here] = table(part, counts)[step, seat]
        probs["bayes"][here] = bayes(part)[step, seat]
        probs["known"][here] = known(part)[step, seat]
    return probs


def _parts(trajectories: Trajectories) -> Iterator[tuple[int, Trajectories]]:
    """Whole episodes, a part at a time, after the number of its first step: what is made of a part takes little memory."""
    start = 0
    for first, last in trajectories.parts():
        part = trajectories.part(first, last)
        yield start, part
        start += len(part.actions)


def _samples_in_parts(samples: Samples, index: np.ndarray) -> Iterator[tuple]:
    """Of the samples `index` in each part: which of them they are, their steps in the part, their seats, the part."""
    step = samples.trajectories.obs_row  # of each step: rising
    step = np.searchsorted(step, samples.rows[index] // samples.trajectories.obs.shape[1])
    for start, part in samples.parts():
        here = np.flatnonzero((step >= start) & (step < start + len(part.actions)))
        if len(here):
            yield here, step[here] - start, samples.seats[index[here]], part


def _policy_probs(trajectories: Trajectories) -> np.ndarray:
    if trajectories.policy_probs is None:
        expected = f"expected float32 [N, A, S, {trajectories.game.num_actions}] for the observers"
        raise DataError(f"{trajectories.path}: policy_probs: {expected}, found no such key")
    return trajectories.policy_probs


def _mix(belief: np.ndarray, trajectories: Trajectories) -> np.ndarray:
    """belief: float [N, A, S]. Returns: action probabilities, float32 [N, A, n]."""
    probs = np.einsum("nas,nask->nak", belief, _policy_probs(trajectories))
    return probs.astype(np.float32)
