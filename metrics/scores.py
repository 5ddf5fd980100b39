"""Scores of predicted actions: one implementation for every model and every observer.

probs: float [M, n], one row a sample, of n actions; targets: int [M], the actions that were taken. NLL is in nats.
Ties are shared equally: where m actions share the last places of the top k, each counts as its fraction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

CHUNK = 2**16  # rows at a time: what is made of a row in between takes more memory than what comes out
BLOCK = 2**17  # rows at a time in the sums of the probe
NLL_FLOOR = 1e-12  # the smallest probability that a logarithm sees
ECE_BINS = 15
TIE = 1e-6  # probabilities closer than this are equal up to float32 rounding


def _target_probs(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[M, 1]: the probability of each target."""
    return np.take_along_axis(probs, targets[:, None], 1)


def _in_chunks(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """`function` of all rows, which it takes one by one."""
    starts = range(0, max(1, len(arrays[0])), CHUNK)
    return np.concatenate([function(*(array[i : i + CHUNK] for array in arrays)) for i in starts])


def topk_credit(probs: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """float64 [M]: the chance that the target is among the k most likely actions, ties broken at random."""

    def credit(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        probs = probs.astype(np.float64)
        excess = probs - _target_probs(probs, targets)
        above = (excess > TIE).sum(1)
        equal = (np.abs(excess) <= TIE).sum(1)
        return np.clip((k - above) / equal, 0.0, 1.0)

    return _in_chunks(credit, probs, targets)


def nll(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [M]: -log p(target)."""
    target_probs = _target_probs(probs, targets)[:, 0].astype(np.float64)
    return -np.log(np.maximum(target_probs, NLL_FLOOR))


def _confidence_bins(probs: np.ndarray, targets: np.ndarray, bins: int) -> tuple[np.ndarray, ...]:
    """Confidence of the top-1 prediction, its credit, and the equal-width bin of the confidence, each [M]."""
    confidence = probs.max(1)
    correct = topk_credit(probs, targets, 1)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    return confidence, correct, index


def ece(probs: np.ndarray, targets: np.ndarray, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the top-1 prediction, equal-width bins (Guo et al., 2017)."""
    confidence, correct, index = _confidence_bins(probs, targets, bins)
    gap = np.bincount(index, correct, bins) - np.bincount(index, confidence, bins)
    return float(np.abs(gap).sum() / len(targets))


def score(probs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """top1, top3, nll, brier (sum over the actions, Brier 1950) and ece of M samples."""
    squares = _in_chunks(lambda part: (part.astype(np.float64) ** 2).sum(1), probs)
    brier = squares - 2.0 * _target_probs(probs, targets)[:, 0] + 1.0
    return {
        "top1": float(topk_credit(probs, targets, 1).mean()),
        "top3": float(topk_credit(probs, targets, 3).mean()),
        "nll": float(nll(probs, targets).mean()),
        "brier": float(brier.mean()),
        "ece": ece(probs, targets),
    }


def summarize(probs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """top1, top3, nll and ece: what metrics.json has of each observer."""
    metrics = score(probs, targets)
    return {key: metrics[key] for key in ("top1", "top3", "nll", "ece")}


def reliability(probs: np.ndarray, targets: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """float64 [3, n], of the n bins of `ece` that are not empty: mean confidence, accuracy, share of the samples."""
    confidence, correct, index = _confidence_bins(probs, targets, bins)
    samples = np.bincount(index, np.ones(len(targets)), bins)
    filled = samples > 0
    samples = samples[filled]
    mean_confidence = np.bincount(index, confidence, bins)[filled] / samples
    accuracy = np.bincount(index, correct, bins)[filled] / samples
    return np.stack([mean_confidence, accuracy, samples / len(targets)])


def auroc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """P(a positive's value is above a negative's), ties counted half: the area under the ROC curve. float [P], [N].

    None where there is none of one kind.
    """
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    not_above = np.searchsorted(ordered, positive, "right")
    return float((below + not_above).mean() / (2 * len(negative)))


def probe(
    x: np.ndarray, classes: np.ndarray, fold: np.ndarray, ridge: float = 1e-2, max_steps: int = 30
) -> np.ndarray:
    """Accuracy of a linear probe: bool [M], does it predict the class of x?

    Logistic regression, one class against the rest; fitted on one fold and judged on the other, both ways.
    Args: x: float [M, D]; classes: int [M]; fold: bool [M].
    """
    mean, deviation = _moments(x)
    labels = np.unique(classes)
    correct = np.zeros(len(x), bool)

    def inputs(rows: np.ndarray) -> np.ndarray:
        """Standardised, with a constant: float64 [n, D+1]."""
        scaled = (x[rows].astype(np.float64) - mean) / (deviation + 1e-9)
        return np.pad(scaled, ((0, 0), (0, 1)), constant_values=1.0)

    for fit in (fold, ~fold):
        learnt = _blocks(inputs, np.flatnonzero(fit))
        weights = []
        for label in labels:
            y = (classes[fit] == label).astype(np.float64)
            weights.append(_logistic_regression(learnt, y, ridge, max_steps))
        judged = np.flatnonzero(~fit)
        for start in range(0, len(judged), BLOCK):
            rows = judged[start : start + BLOCK]
            part = inputs(rows)
            logits = np.stack([part @ weight for weight in weights], 1)
            correct[rows] = labels[logits.argmax(1)] == classes[rows]
    return correct


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, as NumPy computes those of a float64 copy, without that copy."""

    def total(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        sums = np.zeros((0, x.shape[1]))
        for start in range(0, len(x), CHUNK):
            part = function(x[start : start + CHUNK].astype(np.float64))
            sums = np.concatenate([sums, part]).sum(0, keepdims=True)
        return sums[0]

    mean = total(lambda part: part) / len(x)
    return mean, np.sqrt(total(lambda part: (part - mean) ** 2) / len(x))


def _blocks(
    inputs: Callable[[np.ndarray], np.ndarray], rows: np.ndarray
) -> Callable[[], Iterable[np.ndarray]]:
    """What gives the inputs of these rows, BLOCK of them at a time; one block is kept, several are made again each time."""
    parts = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    if len(parts) > 1:
        return lambda: map(inputs, parts)
    kept = [inputs(part) for part in parts]
    return lambda: kept


def _logistic_regression(
    inputs: Callable[[], Iterable[np.ndarray]], y: np.ndarray, ridge: float, max_steps: int
) -> np.ndarray:
    """Weights, float64 [D], by Newton's method. inputs: gives blocks of float64 [n, D]; y: float64 [M], 0 or 1."""
    weight: np.ndarray | None = None
    for _ in range(max_steps):
        gradient: Any = 0.0
        hessian: Any = 0.0
        done = 0
        for x in inputs():
            if weight is None:
                weight = np.zeros(x.shape[1])
            logits = np.clip(x @ weight, -30, 30)
            p = 1.0 / (1.0 + np.exp(-logits))
            gradient = gradient + x.T @ (p - y[done : done + len(x)])
            hessian = hessian + (x * (p * (1 - p))[:, None]).T @ x
            done += len(x)
        gradient = gradient + ridge * weight
        hessian = hessian + ridge * np.eye(len(weight))
        step = np.linalg.solve(hessian, gradient)
        largest = np.abs(step).max()
        weight -= step * min(1.0, 5.0 / (largest + 1e-12))  # far from the optimum Newton overshoots
        if largest < 1e-6:
            break
    return weight


def recall(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [n]: of the samples of each action, the share that top-1 gets right; NaN for an action never taken."""
    num_actions = probs.shape[1]
    samples = np.bincount(targets, minlength=num_actions)
    correct = np.bincount(targets, topk_credit(probs, targets, 1), num_actions)
    with np.errstate(invalid="ignore"):
        return correct / samples


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """float64 [M]: KL(p || q) in nats, row by row."""

    def of_rows(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        p = p.astype(np.float64)
        q = np.maximum(q.astype(np.float64), NLL_FLOOR)
        log_ratio = np.log(np.maximum(p, NLL_FLOOR)) - np.log(q)
        return np.where(p > 0, p * log_ratio, 0.0).sum(1)

    return _in_chunks(of_rows, p, q)
