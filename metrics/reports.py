"""What is said of predicted actions: every figure beside its floor and its ceiling."""

from __future__ import annotations

import numpy as np

from data.datasets import Samples
from envs import ACTIONS
from metrics import observers, scores

LEAST = 30  # samples of a tick or a bin below which its figure is not drawn


def of_actions(
    samples: Samples,
    index: np.ndarray,
    observed: dict[str, np.ndarray],
    probs: np.ndarray | None,
    goals: np.ndarray | None,
    goal: np.ndarray,
    z: np.ndarray,
) -> dict:
    """The figures of the samples `index` (int [m]), as metrics.json names them; None where something is not there to be
    judged. Under `arrays` is what `tracking.figures.of_actions` draws.

    Args:
        observed: what other predictors say, each float [m, 7]; those that metrics.json names are `table`, `bayes`, `known`.
        probs: float [m, 7], the model's; None if it is untrained.
        goals, goal: float [m, G, 7], the model's if told the goal, and int [m], each hunter's goal, -1 if not known.
        z: float [m, D], in which a linear probe looks for the strategy.
    """
    targets, ticks, strategies = samples.actions[index], samples.ticks[index], samples.strategies[index]
    names = ("table", "bayes", "known", "uniform", "majority")
    report = {name: scores.summarize(observed[name], targets) if name in observed else None for name in names}
    report |= dict.fromkeys(("kl_to_bayes", "goal", "probe"))
    report["arrays"] = {"probs": probs, "targets": targets, "observed": observed}
    if probs is None:
        return report
    if "bayes" in observed:
        report["kl_to_bayes"] = float(scores.kl(observed["bayes"], probs).mean())
    told = goal >= 0
    if told.any():
        by_goal = goals[told, goal[told]]
        report["goal"] = scores.summarize(by_goal, targets[told])
        if "known" in observed:
            known = observed["known"][told]
            report["goal"] |= {
                "known": scores.summarize(known, targets[told]),
                "kl": float(scores.kl(known, by_goal).mean()),
            }
    everyone = {"moa": probs} | observed
    report["by_strategy"] = {
        name: _scores_of(everyone, targets, strategies == s)
        for s, name in enumerate(samples.strategy_names)
        if (strategies == s).any()
    }
    report["by_tick"] = {str(tick): _scores_of(everyone, targets, ticks == tick) for tick in np.unique(ticks)}
    fold = np.unique(samples.episodes[index], return_inverse=True)[1] % 2 == 0
    if all(len(np.unique(strategies[part])) > 1 for part in (fold, ~fold)):
        credit = {"probe": scores.probe(z, strategies, fold)}
        belief = observers.sample_posterior(samples, index)
        if belief is not None:
            credit["posterior"] = scores.topk_credit(belief, strategies.astype(np.int64), 1)
        report["probe"] = {
            str(tick): {"samples": int((ticks == tick).sum())}
            | {n: float(c[ticks == tick].mean()) for n, c in credit.items()}
            for tick in np.unique(ticks)
        }
    compared = {"MOA": probs} | {
        name: p for name, p in observed.items() if name not in ("uniform", "majority")
    }
    report["arrays"] |= {
        "confusion": action_table(probs, targets, observed)[1],
        "recall": {name: scores.recall(p, targets) for name, p in compared.items()},
        "reliability": {
            name: _enough(scores.reliability(p, targets), len(targets)) for name, p in compared.items()
        },
        "by_tick": _tick_curves(report),
    }
    return report


def _scores_of(everyone: dict[str, np.ndarray], targets: np.ndarray, part: np.ndarray) -> dict:
    return {"samples": int(part.sum())} | {
        name: scores.score(p[part], targets[part]) for name, p in everyone.items()
    }


def _enough(bins: np.ndarray, samples: int) -> np.ndarray:
    return bins[:, bins[2] * samples >= LEAST]


def _tick_curves(report: dict) -> dict[str, dict[str, dict[int, float]]]:
    """panel -> predictor -> tick -> value."""
    ticks = {tick: found for tick, found in report["by_tick"].items() if found["samples"] >= LEAST}
    panels = {}
    for key, title in {"top1": "top-1", "nll": "NLL, nats"}.items():
        panels[title] = {
            label: {int(tick): found[name][key] for tick, found in ticks.items()}
            for name, label in {"moa": "MOA", "table": "table", "bayes": "bayes", "known": "known"}.items()
            if all(name in found for found in ticks.values())
        }
    if report["probe"]:
        panels["who is it? accuracy"] = {
            label: {
                int(tick): found[name] for tick, found in report["probe"].items() if found["samples"] >= LEAST
            }
            for name, label in {"probe": "linear probe of z", "posterior": "exact posterior"}.items()
            if name in next(iter(report["probe"].values()))
        }
    return panels


def lines(report: dict) -> list[str]:
    """A report's figures of actions as a small table, for people."""
    test, goal = report["test"], report["goal"]
    if test["nll"] is None:
        return ["MOA: untrained"]
    said = [f"{'':<24}{'top-1':>8}{'top-3':>8}{'NLL, nats':>11}"]
    rows = {"majority": "majority", "uniform": "uniform over legal", "table": "table (one obs.)", "test": "MOA (this model)",
            "bayes": "bayes", "goal": "MOA, told the goal", "known": "known"}  # fmt: skip
    for name, label in rows.items():
        if row := report[name]:
            said.append(f"{label:<24}{row['top1']:8.4f}{row['top3']:8.4f}{row['nll']:11.4f}")
        elif name == "goal" and not report["goals_trained"]:
            said.append(f"{label:<24}{'-':>8}{'-':>8}{'untrained':>11}")
    away = "" if report["kl_to_bayes"] is None else f", KL(bayes || MOA) {report['kl_to_bayes']:.4f} nats"
    away += f", KL(known || told the goal) {goal['kl']:.4f} nats" if goal and "kl" in goal else ""
    said.append(f"Brier {test['brier']:.4f}, ECE {test['ece']:.4f}{away}")
    for tick in ("0", "2", "5", "10"):
        if found := (report["probe"] or {}).get(tick):
            exact = f", exact posterior {found['posterior']:.4f}" if "posterior" in found else ""
            said.append(
                f"who is it, at tick {tick}: probe of z {found['probe']:.4f}{exact} ({found['samples']} samples)"
            )
    return said


def action_table(
    probs: np.ndarray, targets: np.ndarray, observed: dict[str, np.ndarray]
) -> tuple[list[dict], np.ndarray]:
    """One row an action, as moa_eval_epoch{k}.csv has it, and the confusion matrix int64 [7, 7], rows the action taken."""
    matrix = np.bincount(targets * 7 + probs.argmax(1), minlength=49).reshape(7, 7)
    recalls = {
        f"{name}_recall": scores.recall(observed[name], targets)
        for name in ("table", "bayes")
        if name in observed
    }
    rows = []
    for a, name in enumerate(ACTIONS):
        count, hits, said = int(matrix[a].sum()), matrix[a, a], matrix[:, a].sum()
        precision, recall = hits / said if said else 0.0, hits / count if count else 0.0
        row = dict(
            action=a, name=name, count=count, ratio=count / len(targets), precision=precision, recall=recall
        )
        row["f1"] = 2 * precision * recall / (precision + recall) if hits else 0.0
        rows.append(
            row
            | {key: recalls[key][a] if key in recalls else np.nan for key in ("table_recall", "bayes_recall")}
        )
    return rows, matrix


def breakdown(report: dict) -> list[dict]:
    """`by_strategy` and `by_tick` of a report as rows: by, value, samples, predictor, top1, top3, nll, brier, ece."""
    return [
        {"by": by, "value": value, "samples": found["samples"], "predictor": name} | figure
        for by in ("strategy", "tick")
        for value, found in report[f"by_{by}"].items()
        for name, figure in found.items()
        if name != "samples"
    ]
