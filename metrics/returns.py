"""Returns of played episodes: means with their intervals, and the tables made of them."""

from __future__ import annotations

import math

import numpy as np

from envs import GameRules, snowdrift

Results = dict[str, dict[str, dict]]  # policy -> team -> figures of `summarize`


def half_width(values: np.ndarray) -> np.ndarray:
    """Half the width of the 95% interval of the mean over the last axis."""
    return 1.96 * values.std(-1, ddof=1) / math.sqrt(values.shape[-1])


def summarize(episodes: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over all boards and episodes, and half the width of their 95% intervals (of the boards' means).

    Args: episodes: arrays [episodes, B]: learner, team, length, and what was captured of each kind.
    """
    summary: dict[str, float] = {}
    for key in ("learner", "team"):
        boards = episodes[key].mean(0)  # [B]
        summary[key] = float(episodes[key].mean())
        summary[f"{key}_ci95"] = float(half_width(boards))
    summary["episodes"] = episodes["learner"].size
    return summary | {key: float(values.mean()) for key, values in episodes.items() if key not in summary}


def removals(figures: dict[str, float], rules: GameRules) -> dict[str, float]:
    """Drifts of the snowdrift that were removed in an episode, how many of them by the learner, and its share.

    Each that is removed costs its team `rules.cost`, shared by those that remove it together: so returns tell who paid.
    Args: figures: of `summarize`. Raises: ValueError: another game, or a cost of 0.
    """
    if not isinstance(rules, snowdrift.Rules) or rules.cost == 0.0:
        raise ValueError("removals: expected the snowdrift with a cost other than 0")
    removed = figures["drifts"]
    own = (rules.reward * removed - figures["learner"]) / rules.cost
    return dict(removed=removed, by_learner=own, share=own / removed if removed else float("nan"))


def by_episode(learner: np.ndarray) -> list[dict]:
    """One row an episode: its number from 1, the mean of `learner` [episodes, B], half of its 95% interval over boards."""
    half_widths = half_width(learner)
    means = zip(learner.mean(1), half_widths, strict=True)
    return [
        dict(episode=episode, learner=float(mean), learner_ci95=float(half))
        for episode, (mean, half) in enumerate(means, start=1)
    ]


def table_rows(results: Results) -> list[dict]:
    """One row a policy and team. `team` is the team's name, so its mean return is called `team_return`."""
    names = dict(team="team_return", team_ci95="team_return_ci95")
    rows = []
    for policy, by_team in results.items():
        for team, figures in by_team.items():
            renamed = {names.get(key, key): value for key, value in figures.items()}
            rows.append(dict(policy=policy, team=team) | renamed)
    return rows


def lines(
    results: Results, adaptation: dict[str, list[dict]], script: str, eval_seed: int, final_seed: int
) -> list[str]:
    """The tables for people. adaptation: team -> rows of `by_episode`; script: what the scripts do, in words."""
    text = []
    for kind in ("script", "script_told"):
        switches = {team: figures["tick"] for team, figures in results[kind].items()}
        ticks = [f"{team} {'never' if tick is None else tick}" for team, tick in switches.items()]
        chosen = script.replace("until a tick", f"until a tick, chosen on boards of seed {eval_seed}")
        text.append(f"{kind}: {chosen}: {', '.join(ticks)}")
    episodes = {kind: next(iter(by_team.values()))["episodes"] for kind, by_team in results.items()}
    counts = [str(episodes["teams"])]
    counts += [f"{kind} {episodes[kind]}" for kind in ("plan", "oracle_search") if kind in episodes]
    head = f"returns on fresh boards of seed {final_seed}, mean and half of its 95% interval"
    text.append(f"{head}; episodes: {', '.join(counts)}")
    text.append(" " * 17 + "".join(f"{kind:>20}" for kind in results))
    for team in results["teams"]:
        for key in ("learner", "team"):
            cells = [_cell(by_team.get(team), key) for by_team in results.values()]
            label = team if key == "learner" else ""
            text.append(f"       {label:9}{key:7}" + "".join(cells))
    for team, rows in adaptation.items():
        means = " ".join(f"{row['learner']:.2f}" for row in rows)
        text.append(f"{team}, the same co-players for {len(rows)} episodes: {means}")
    return text


def _cell(figures: dict | None, key: str) -> str:
    content = f"{figures[key]:.3f} ± {figures[f'{key}_ci95']:.3f}" if figures else ""
    return f"{content:>20}"
