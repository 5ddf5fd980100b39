"""Scores of many runs on many tasks as one number: the interquartile mean and its bootstrap interval.

Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Student's t, 97.5%, of the mean of 2, 3, .. 10 runs; of more, that of 10.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def iqm(scores: np.ndarray) -> float:
    """The mean without the lowest and the highest quarter, rounded down, of all scores."""
    ordered = np.sort(scores, axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap_iqm(strata: Sequence[np.ndarray], resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the IQM: runs are drawn with replacement within each stratum, tasks stay.

    Args: strata: of each, float [runs, tasks]; a run is drawn with its scores on all tasks of its stratum.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        parts = [runs[rng.integers(len(runs), size=len(runs))].ravel() for runs in strata]
        drawn.append(iqm(np.concatenate(parts)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def half_width_of_few(values: np.ndarray) -> float:
    """Half the width of the 95% interval of the mean of a few runs, by Student's t; NaN: of one run."""
    if len(values) < 2:
        return float("nan")
    quantile = T_QUANTILES[min(len(values), 10) - 2]
    return float(quantile * values.std(ddof=1) / len(values) ** 0.5)
