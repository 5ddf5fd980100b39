"""How a prediction of actions is scored: one implementation for every model and every observer.

probs: float [M, 7], one row a sample; targets: int [M], the actions that were taken. NLL is in nats.
Ties are shared equally: where m actions share the last places of the top k, each counts as its fraction.
"""

from __future__ import annotations

import numpy as np

NLL_FLOOR = 1e-12  # probabilities are not let below it in a logarithm
ECE_BINS = 15
TIE = 1e-6  # closer is equal up to float32 rounding


def topk_credit(probs: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """float64 [M]: the chance that the target is among the k most likely actions, ties broken at random."""
    probs = probs.astype(np.float64)
    over = probs - np.take_along_axis(probs, targets[:, None], 1)
    above, equal = (over > TIE).sum(1), (np.abs(over) <= TIE).sum(1)
    return np.clip((k - above) / equal, 0.0, 1.0)


def nll(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [M]: -log p(target)."""
    return -np.log(
        np.maximum(np.take_along_axis(probs, targets[:, None], 1)[:, 0].astype(np.float64), NLL_FLOOR)
    )


def ece(probs: np.ndarray, targets: np.ndarray, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the top-1 prediction, equal-width bins (Guo et al., 2017)."""
    confidence, correct = probs.max(1), topk_credit(probs, targets, 1)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(index, correct, bins) - np.bincount(index, confidence, bins)
    return float(np.abs(gap).sum() / len(targets))


def score(probs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """top1, top3, nll, brier (sum over the 7 actions, Brier 1950) and ece of M samples."""
    squared = (
        (probs.astype(np.float64) ** 2).sum(1)
        - 2.0 * np.take_along_axis(probs, targets[:, None], 1)[:, 0]
        + 1.0
    )
    return {
        "top1": float(topk_credit(probs, targets, 1).mean()),
        "top3": float(topk_credit(probs, targets, 3).mean()),
        "nll": float(nll(probs, targets).mean()),
        "brier": float(squared.mean()),
        "ece": ece(probs, targets),
    }


def summarize(probs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """top1, top3, nll and ece: what metrics.json has of each observer."""
    found = score(probs, targets)
    return {key: found[key] for key in ("top1", "top3", "nll", "ece")}


def reliability(probs: np.ndarray, targets: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """float64 [3, n], of the n bins of `ece` that are not empty: mean confidence, accuracy, share of the samples."""
    confidence, correct = probs.max(1), topk_credit(probs, targets, 1)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = np.stack(
        [np.bincount(index, weights, bins) for weights in (confidence, correct, np.ones(len(targets)))]
    )
    sums = sums[:, sums[2] > 0]
    return np.stack([sums[0] / sums[2], sums[1] / sums[2], sums[2] / len(targets)])


def probe(
    x: np.ndarray, classes: np.ndarray, fold: np.ndarray, ridge: float = 1e-2, turns: int = 30
) -> np.ndarray:
    """What a linear probe reads in x: bool [M], is the class right?

    Logistic regression, one class against the rest, by Newton's method; fitted on one fold and judged on the other, both
    ways round.
    Args: x: float [M, D]; classes: int [M]; fold: bool [M].
    """
    x = x.astype(np.float64)
    x = np.pad((x - x.mean(0)) / (x.std(0) + 1e-9), ((0, 0), (0, 1)), constant_values=1.0)
    found = np.unique(classes)
    right = np.zeros(len(x), bool)
    for fit in (fold, ~fold):
        logits = np.zeros((len(x), len(found)))
        for column, one in enumerate(found):
            y, weight = (classes[fit] == one).astype(np.float64), np.zeros(x.shape[1])
            for _ in range(turns):
                p = 1.0 / (1.0 + np.exp(-np.clip(x[fit] @ weight, -30, 30)))
                slope = x[fit].T @ (p - y) + ridge * weight
                curve = (x[fit] * (p * (1 - p))[:, None]).T @ x[fit] + ridge * np.eye(len(weight))
                step = np.linalg.solve(curve, slope)
                weight -= step * min(
                    1.0, 5.0 / (np.abs(step).max() + 1e-12)
                )  # far from the optimum Newton overshoots
                if np.abs(step).max() < 1e-6:
                    break
            logits[:, column] = x @ weight
        right[~fit] = found[logits[~fit].argmax(1)] == classes[~fit]
    return right


def recall(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [7]: of the samples of each action, the share that top-1 gets right; NaN for an action never taken."""
    count = np.bincount(targets, minlength=7)
    with np.errstate(invalid="ignore"):
        return np.bincount(targets, topk_credit(probs, targets, 1), 7) / count


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """float64 [M]: KL(p || q) in nats, row by row."""
    p, q = p.astype(np.float64), np.maximum(q.astype(np.float64), NLL_FLOOR)
    return np.where(p > 0, p * (np.log(np.maximum(p, NLL_FLOOR)) - np.log(q)), 0.0).sum(1)
