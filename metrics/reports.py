"""Reports on predicted actions: every figure beside its floor and its ceiling."""

from __future__ import annotations

import numpy as np

from data.datasets import Samples
from metrics import observers, scores

LEAST = 30  # ticks and bins with fewer samples are not drawn
OBSERVERS = ("table", "bayes", "known", "uniform", "majority")
BELIEFS = (
    "belief",
    "bayes_filter",
)  # of the model's goal heads, and of the exact strategies, by the same law
GAMELESS = ("last", "after_last")  # of games outside the family
ROWS = {
    "majority": "majority",
    "uniform": "uniform over legal",
    "last": "last action repeated",
    "after_last": "frequency after it",
    "table": "table (one obs.)",
    "test": "MOA (this model)",
    "bayes": "bayes",
    "belief": "MOA, a goal or none",
    "bayes_filter": "bayes, a goal or none",
    "goal": "MOA, told the goal",
    "known": "known",
}
"""what `lines` prints, by the report's key"""
CURVES = {"moa": "MOA", "table": "table", "bayes": "bayes", "known": "known"}

Predictions = dict[str, np.ndarray]  # by predictor, float [m, n], of n actions


def of_actions(
    samples: Samples,
    index: np.ndarray,
    observed: Predictions,
    probs: np.ndarray | None,
    goals: np.ndarray | None,
    goal: np.ndarray,
    z: np.ndarray,
) -> dict:
    """The figures of the samples `index` (int [m]), as metrics.json names them; None where there is nothing to judge.
    Under `arrays` is what `tracking.figures.of_actions` draws.

    Args:
        observed: predictions of others, each float [m, n]; metrics.json names those of `OBSERVERS`, `BELIEFS` and
            `GAMELESS`.
        probs: float [m, n], the model's; None if it is untrained.
        goals: float [m, G, n], the model's given each goal. goal: int [m], each hunter's goal, -1 if not known.
        z: float [m, D], in which a linear probe looks for the strategy.
    """
    targets = samples.actions[index]
    report: dict = dict.fromkeys((*OBSERVERS, *BELIEFS, "none", "kl_to_bayes", "goal", "probe"))
    for name in (*OBSERVERS, *BELIEFS, *GAMELESS):
        if name in observed:
            report[name] = scores.summarize(observed[name], targets)
    report["arrays"] = {"probs": probs, "targets": targets, "observed": observed}
    if probs is None:
        return report
    if "bayes" in observed:
        report["kl_to_bayes"] = float(scores.kl(observed["bayes"], probs).mean())
    report["goal"] = _goal_report(observed, targets, goals, goal)
    report |= _breakdowns(samples, index, {"moa": probs} | observed)
    report["probe"] = _probe_report(samples, index, z)
    compared = {"MOA": probs}
    compared |= {
        name: p for name, p in observed.items() if name not in ("uniform", "majority", *BELIEFS, *GAMELESS)
    }
    report["arrays"] |= {
        "confusion": action_table(probs, targets, observed, samples.game.actions)[1],
        "recall": {name: scores.recall(p, targets) for name, p in compared.items()},
        "reliability": {name: _reliability(p, targets) for name, p in compared.items()},
        "by_tick": _tick_curves(report),
    }
    return report


def _goal_report(
    observed: Predictions, targets: np.ndarray, goals: np.ndarray, goal: np.ndarray
) -> dict | None:
    """The model given each hunter's goal, beside the observer that knows the strategy; None where no goal is known."""
    goal_known = goal >= 0
    if not goal_known.any():
        return None
    targets = targets[goal_known]
    probs = goals[goal_known, goal[goal_known]]
    report: dict = scores.summarize(probs, targets)
    if "known" in observed:
        known = observed["known"][goal_known]
        report["known"] = scores.summarize(known, targets)
        report["kl"] = float(scores.kl(known, probs).mean())
    return report


def _breakdowns(samples: Samples, index: np.ndarray, predictors: Predictions) -> dict:
    """`by_strategy` and `by_tick`: value -> number of samples, and the scores of each predictor."""
    targets, strategies, ticks = samples.actions[index], samples.strategies[index], samples.ticks[index]

    def of(mask: np.ndarray) -> dict:
        figures: dict = {"samples": int(mask.sum())}
        for name, probs in predictors.items():
            figures[name] = scores.score(probs[mask], targets[mask])
        return figures

    by_strategy = {}
    for strategy, name in enumerate(samples.strategy_names):
        mask = strategies == strategy
        if mask.any():
            by_strategy[name] = of(mask)
    by_tick = {str(tick): of(ticks == tick) for tick in np.unique(ticks)}
    return {"by_strategy": by_strategy, "by_tick": by_tick}


def _probe_report(samples: Samples, index: np.ndarray, z: np.ndarray) -> dict | None:
    """How often the strategy can be told, by tick: by a linear probe of z, and by the exact posterior where there is one.

    None where one half of the episodes has one strategy only.
    """
    strategies, ticks = samples.strategies[index], samples.ticks[index]
    episode = np.unique(samples.episodes[index], return_inverse=True)[1]
    fold = episode % 2 == 0
    if any(len(np.unique(strategies[half])) < 2 for half in (fold, ~fold)):
        return None
    credit = {"probe": scores.probe(z, strategies, fold)}
    belief = observers.sample_posterior(samples, index)
    if belief is not None:
        credit["posterior"] = scores.topk_credit(belief, strategies.astype(np.int64), 1)
    report = {}
    for tick in np.unique(ticks):
        mask = ticks == tick
        figures: dict = {"samples": int(mask.sum())}
        for name, values in credit.items():
            figures[name] = float(values[mask].mean())
        report[str(tick)] = figures
    return report


def none_report(samples: Samples, index: np.ndarray, none: np.ndarray) -> dict:
    """P(none of the goals), float [m], by tick: its mean for each strategy, and how well it separates hunters whose
    strategy pursues no goal from all others (area under the ROC curve; None where one kind is missing)."""
    strategies, ticks = samples.strategies[index], samples.ticks[index]
    names = samples.strategy_names
    has_goal = np.isin(strategies, [names.index(n) for n in samples.game.goals.values() if n in names])
    report = {}
    for tick in np.unique(ticks):
        now = ticks == tick
        of_strategies = {name: none[now & (strategies == number)] for number, name in enumerate(names)}
        report[str(tick)] = {
            "samples": int(now.sum()),
            "mean": float(none[now].mean()),
            "by_strategy": {
                name: float(values.mean()) for name, values in of_strategies.items() if len(values)
            },
            "auroc": scores.auroc(none[now & ~has_goal], none[now & has_goal]) if names else None,
        }
    return report


def _reliability(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`scores.reliability` without the bins that have few samples."""
    bins = scores.reliability(probs, targets)
    return bins[:, bins[2] * len(targets) >= LEAST]


def _tick_curves(report: dict) -> dict[str, dict[str, dict[int, float]]]:
    """panel -> predictor -> tick -> value."""

    def enough(by_tick: dict) -> dict:
        return {int(tick): figures for tick, figures in by_tick.items() if figures["samples"] >= LEAST}

    panels: dict = {}
    by_tick = enough(report["by_tick"])
    for key, title in {"top1": "top-1", "nll": "NLL, nats"}.items():
        panels[title] = {}
        for name, label in CURVES.items():
            if all(name in figures for figures in by_tick.values()):
                panels[title][label] = {tick: figures[name][key] for tick, figures in by_tick.items()}
    if report["probe"]:
        named = {"probe": "linear probe of z", "posterior": "exact posterior"}
        first = next(iter(report["probe"].values()))
        by_tick = enough(report["probe"])
        panels["who is it? accuracy"] = {
            label: {tick: figures[name] for tick, figures in by_tick.items()}
            for name, label in named.items()
            if name in first
        }
    return panels


def lines(report: dict) -> list[str]:
    """A report's figures of actions as a small table, for people."""
    test = report["test"]
    if test["nll"] is None:
        return ["MOA: untrained"]
    table = [f"{'':<24}{'top-1':>8}{'top-3':>8}{'NLL, nats':>11}"]
    for name, label in ROWS.items():
        if row := report.get(name):
            table.append(f"{label:<24}{row['top1']:8.4f}{row['top3']:8.4f}{row['nll']:11.4f}")
        elif name == "goal" and not report["goals_trained"] and "last" not in report:
            table.append(f"{label:<24}{'-':>8}{'-':>8}{'untrained':>11}")
    distances = ""
    if report["kl_to_bayes"] is not None:
        distances += f", KL(bayes || MOA) {report['kl_to_bayes']:.4f} nats"
    if report["goal"] and "kl" in report["goal"]:
        distances += f", KL(known || told the goal) {report['goal']['kl']:.4f} nats"
    table.append(f"Brier {test['brier']:.4f}, ECE {test['ece']:.4f}{distances}")
    for tick in ("0", "2", "5", "10"):
        if figures := (report["probe"] or {}).get(tick):
            exact = f", exact posterior {figures['posterior']:.4f}" if "posterior" in figures else ""
            accuracy = f"probe of z {figures['probe']:.4f}{exact}"
            table.append(f"who is it, at tick {tick}: {accuracy} ({figures['samples']} samples)")
    if report["belief"]:
        law = report["belief"]
        table.append(
            f"a goal or none: prior of none {law['none']}, changes {law['hazard']} a tick (chosen on validation)"
        )
    if figures := (report["none"] or {}).get("10"):
        means = ", ".join(f"{name} {mean:.4f}" for name, mean in figures["by_strategy"].items())
        auroc = "" if figures["auroc"] is None else f"; AUROC {figures['auroc']:.4f}"
        table.append(f"P(none), at tick 10: {means or figures['mean']}{auroc} ({figures['samples']} samples)")
    return table


def action_table(
    probs: np.ndarray, targets: np.ndarray, observed: Predictions, names: tuple[str, ...]
) -> tuple[list[dict], np.ndarray]:
    """One row an action, as moa_eval_epoch{k}.csv has it, and the confusion matrix int64 [n, n], rows the action taken.

    Args: names: of the n actions.
    """
    n = len(names)
    pairs = targets * n + probs.argmax(1)
    matrix = np.bincount(pairs, minlength=n * n).reshape(n, n)
    unknown = [np.nan] * n
    recalls = {}
    for name in ("table", "bayes"):
        known = name in observed
        recalls[f"{name}_recall"] = scores.recall(observed[name], targets) if known else unknown
    rows = []
    for action, name in enumerate(names):
        hits = matrix[action, action]
        count = int(matrix[action].sum())
        predicted = matrix[:, action].sum()
        precision = hits / predicted if predicted else 0.0
        recall = hits / count if count else 0.0
        row = {
            "action": action,
            "name": name,
            "count": count,
            "ratio": count / len(targets),
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        }
        row |= {key: values[action] for key, values in recalls.items()}
        rows.append(row)
    return rows, matrix


def breakdown(report: dict) -> list[dict]:
    """`by_strategy` and `by_tick` of a report as rows: by, value, samples, predictor, top1, top3, nll, brier, ece."""
    rows = []
    for by in ("strategy", "tick"):
        for value, figures in report[f"by_{by}"].items():
            row = {"by": by, "value": value, "samples": figures["samples"]}
            predictors = [name for name in figures if name != "samples"]
            rows += [row | {"predictor": name} | figures[name] for name in predictors]
    return rows
