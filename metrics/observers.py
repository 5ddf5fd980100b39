"""Observers that know the rules and the strategies: the best that a learnt model of other agents can hope for.

Each predicts a hunter's next action as a mixture of the exact `policy_probs`, and differs in what it knows of the
hunter's strategy: *known* is told it, *bayes* infers it from all that the hunter did so far in the episode, *table*
from what one observation tells.
"""

from __future__ import annotations

import numpy as np

from data.datasets import Samples
from data.trajectories import CHUNK, DataError, Trajectories, legal_actions, split_episodes
from envs.grid import FAR, distance_fields

TABLE_DISTANCES = (
    24  # shortest paths are told apart up to this length; the last value is "this or more, or none left"
)


def known(trajectories: Trajectories) -> np.ndarray:
    """Told the strategy. Returns: float32 [N, A, 7]."""
    probs = _policy_probs(trajectories)
    strategy = trajectories.strategies[trajectories.episode].astype(np.intp)  # [N, A]
    return np.take_along_axis(probs, strategy[:, :, None, None], 2)[:, :, 0]


def posterior(trajectories: Trajectories) -> np.ndarray:
    """P(strategy | what the hunter did before this step), by Bayes' rule from the priors. float64 [N, A, S].

    An action that no strategy would have played leaves the belief as it was.
    """
    probs = _policy_probs(trajectories)
    taken = trajectories.actions.astype(np.intp)[:, :, None, None]
    likelihood = np.take_along_axis(probs, taken, 3)[..., 0].astype(np.float64)  # [N, A, S]
    with np.errstate(divide="ignore"):
        log_likelihood = np.log(likelihood)
        belief = np.log(trajectories.priors)
    lengths = trajectories.episode_lengths
    starts = np.cumsum(lengths) - lengths
    log_belief = np.empty_like(log_likelihood)
    current = np.tile(belief, (len(lengths), probs.shape[1], 1))  # [E, A, S]
    for tick in range(lengths.max()):  # all episodes at once
        playing = np.flatnonzero(lengths > tick)
        log_belief[starts[playing] + tick] = current[playing]
        updated = current[playing] + log_likelihood[starts[playing] + tick]
        impossible = np.isneginf(updated).all(-1, keepdims=True)
        current[playing] = np.where(impossible, current[playing], updated)
    weight = np.exp(log_belief - log_belief.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def bayes(trajectories: Trajectories) -> np.ndarray:
    """No predictor that is not told the strategy can beat its expected NLL. Returns: float32 [N, A, 7]."""
    return _mix(posterior(trajectories), trajectories)


def table_features(trajectories: Trajectories) -> np.ndarray:
    """int64 [N, A, 4]: distance to the nearest stag and hare around blocks, tick, hunters left, before each step."""
    features = np.empty((*trajectories.actions.shape, 4), np.int64)
    row = trajectories.obs_row
    for start in range(0, len(row), CHUNK):
        part = slice(start, start + CHUNK)
        board = trajectories.obs[row[part]].astype(bool)  # [n, A, 5, H, W]
        for feature, plane in enumerate((3, 4)):
            distance = distance_fields(board[:, 0, 2], board[:, 0, plane])  # [n, H, W]
            at = np.where(board[:, :, 0], distance[:, None], 0).sum(
                (2, 3)
            )  # a SELF plane has one cell, or none
            features[part, :, feature] = np.where(board[:, :, 0].any((2, 3)), at, FAR)
    features[..., :2] = np.minimum(features[..., :2], TABLE_DISTANCES)
    features[..., 2] = trajectories.tick[:, None]
    features[..., 3] = trajectories.active.sum(1)[:, None]
    return features


def count_table(trajectories: Trajectories, steps: np.ndarray) -> np.ndarray:
    """How often each strategy was seen with each combination of features, over active samples of these steps.

    Args: steps: int [n], rows of `actions`. Returns: int32 [D, D, T, A+1, S].
    """
    features, seats = table_features(trajectories)[steps], trajectories.actions.shape[1]
    active = trajectories.active[steps]
    strategy = trajectories.strategies[trajectories.episode[steps]]
    ticks = int(trajectories.episode_lengths.max())
    table = np.zeros(
        (TABLE_DISTANCES + 1, TABLE_DISTANCES + 1, ticks, seats + 1, len(trajectories.strategy_names)),
        np.int32,
    )
    np.add.at(table, (*np.moveaxis(features[active], -1, 0), strategy[active]), 1)
    return table


def table(trajectories: Trajectories, counts: np.ndarray) -> np.ndarray:
    """P(strategy | one observation) from `count_table`, with one count more spread by the priors. float32 [N, A, 7].

    Raises: DataError: the table was counted on another number of hunters or strategies.
    """
    seats, names = trajectories.actions.shape[1], trajectories.strategy_names
    if counts.shape[-2:] != (seats + 1, len(names)):
        raise DataError(
            f"{trajectories.path}: expected {counts.shape[-2] - 1} hunters and {counts.shape[-1]} strategies, "
            f"as in the training data, found {seats} and {len(names)}"
        )
    features = table_features(trajectories)
    features[..., 2] = np.minimum(features[..., 2], counts.shape[2] - 1)
    seen = counts[tuple(np.moveaxis(features, -1, 0))] + trajectories.priors
    return _mix(seen / seen.sum(-1, keepdims=True), trajectories)


# ---- the same for the samples of a file: a hunter that is on the board, at one tick


def training_table(samples: Samples) -> np.ndarray | None:
    """`count_table` of the training episodes; None without `policy_probs`."""
    if not samples.has_policy_probs:
        return None
    trajectories = samples.trajectories
    episodes = split_episodes(len(trajectories.episode_lengths))["train"]
    steps = np.flatnonzero(np.isin(trajectories.episode, episodes))
    return count_table(trajectories, steps)


def table_fits(samples: Samples, counts: np.ndarray, strategy_names: list[str]) -> bool:
    """Is a table counted on another file, over these strategies, of the same number of hunters and the same strategies?"""
    if not samples.has_policy_probs or samples.strategy_names != strategy_names:
        return False
    return samples.trajectories.obs.shape[1] == counts.shape[-2] - 1


def sample_posterior(samples: Samples, index: np.ndarray) -> np.ndarray | None:
    """`posterior` of the samples `index`, float64 [m, S]; None without `policy_probs`."""
    if not samples.has_policy_probs:
        return None
    trajectories = samples.trajectories
    return posterior(trajectories)[trajectories.active][index]


def predictions(samples: Samples, index: np.ndarray, counts: np.ndarray | None) -> dict[str, np.ndarray]:
    """What each observer predicts for the samples `index` (int [m]), float32 [m, 7].

    `uniform` over legal actions; with `policy_probs` also `table` (where `counts` is given), `bayes` and `known`.
    """
    parts = np.array_split(index, len(index) // CHUNK + 1)
    legal = np.concatenate([legal_actions(samples.frames[samples.rows[part]]) for part in parts])
    probs = {"uniform": (legal / legal.sum(1, keepdims=True)).astype(np.float32)}
    if not samples.has_policy_probs:
        return probs
    trajectories = samples.trajectories
    steps, seats = np.nonzero(trajectories.active)  # in the order of the samples
    step, seat = steps[index], seats[index]
    if counts is not None:
        probs["table"] = table(trajectories, counts)[step, seat]
    probs["bayes"] = bayes(trajectories)[step, seat]
    probs["known"] = known(trajectories)[step, seat]
    return probs


def _policy_probs(trajectories: Trajectories) -> np.ndarray:
    if trajectories.policy_probs is None:
        raise DataError(
            f"{trajectories.path}: policy_probs: expected float32 [N, A, S, 7] for the observers, found no such key"
        )
    return trajectories.policy_probs


def _mix(belief: np.ndarray, trajectories: Trajectories) -> np.ndarray:
    """belief [N, A, S] -> action probabilities, float32 [N, A, 7]."""
    return np.einsum("nas,nask->nak", belief, _policy_probs(trajectories)).astype(np.float32)
