"""The page of `benchmarks.study`: tables and figures of its rows.

A row: game, partners, method, seed, team; `mean`, the return from the second episode on, and mean_ci95, half of its 95%
interval over boards; episode1, episode2, ..: the return in each.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import tracking
from metrics.aggregate import bootstrap_iqm, half_width_of_few, iqm
from tracking import figures

MATTERS = 0.05  # a task counts in the interquartile mean if random play is that share below the best
BASELINES = ("random", "script", "script_told")
TOP = {"few-shot": "oracle", "held-out": "best response", "self-play": "oracle"}  # score 1
TITLES = {
    "few-shot": "Few-shot: episodes in a row with the same scripted co-players",
    "held-out": "Held-out partners that learned",
    "self-play": "Self-play",
}


@dataclass
class Facts:
    """What a page says beside its rows."""

    command: str
    settings: dict[str, Any]
    machine: str
    cells: int
    done: int
    hours: float  # of the cells, one after the other
    estimate: float


def words(value: Any) -> str:
    """As on a command line."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def markdown(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def figure_of(value: float, digits: int = 3) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def plus_minus(value: float, half: float) -> str:
    return f"{value:+.3f}" + (f" ± {half:.3f}" if not math.isnan(half) else "")


# ---- scores


def by_seed(rows: pd.DataFrame) -> pd.Series:
    """Mean over teams, by seed."""
    return rows.groupby("seed")["mean"].mean()


def episodes_of(rows: pd.DataFrame) -> list[str]:
    """The columns."""
    return [name for name in rows if name.startswith("episode")]


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of held-out partners: returns as shares of what the best response earns with the same partner."""
    names = ["mean", *episodes_of(rows)]
    best = rows[rows.method == "best response"].set_index(["game", "team"])[names]
    keys = pd.MultiIndex.from_frame(rows[["game", "team"]])
    divided = rows[names].to_numpy() / best.reindex(keys).to_numpy()
    return rows.assign(**dict(zip(names, divided.T, strict=True)))


def normalised(rows: pd.DataFrame, partners: str) -> pd.DataFrame:
    """Rows of methods, with `score` = (mean - random) / (TOP - random).

    A task is a game and team. Left out: teams with RANDOM, whom the oracle never met; tasks that even random play does well.
    """
    rows = rows[(rows.partners == partners) & ~rows.team.str.contains("RANDOM")]
    if partners == "self-play":
        rows = rows[rows.team == "self"]
    tasks = rows.pivot_table(index=["game", "team"], columns="method", values="mean")
    if not {TOP[partners], "random"} <= set(tasks):
        return rows.assign(score=np.nan).iloc[:0]
    top, random = tasks[TOP[partners]], tasks["random"]
    kept = top - random > MATTERS * top.abs()
    keys = pd.MultiIndex.from_frame(rows[["game", "team"]])
    span = (top - random)[kept].reindex(keys).to_numpy()
    score = (rows["mean"].to_numpy() - random.reindex(keys).to_numpy()) / span
    return rows.assign(score=score).dropna(subset="score")


def aggregate(scored: pd.DataFrame, method: str) -> tuple[float, float, float] | None:
    """The IQM and its interval over all runs and tasks of a method; a game's runs are a stratum. None: there are no runs."""
    own = scored[scored.method == method]
    strata = [runs.pivot(index="seed", columns="team", values="score") for _, runs in own.groupby("game")]
    scores = [runs.dropna().to_numpy() for runs in strata]
    if not scores:
        return None
    return iqm(np.concatenate([part.ravel() for part in scores])), *bootstrap_iqm(scores)


def iqm_rows(rows: pd.DataFrame, methods: list[str], partners: list[str]) -> list[dict]:
    found = []
    for sort in partners:
        scored = normalised(rows, sort)
        for method in methods:
            result = aggregate(scored, method)
            if result:
                value, low, high = result
                runs = scored[scored.method == method]
                counts = dict(runs=runs[["game", "seed"]].drop_duplicates().shape[0], tasks=len(runs))
                found.append(dict(partners=sort, method=method, iqm=value, low=low, high=high) | counts)
    return found


# ---- tables


def table_of_game(rows: pd.DataFrame, methods: list[str], partners: str) -> str:
    """rows: of one game and sort of partners."""
    teams = list(dict.fromkeys(rows.team))
    # what was trained with; the others are columns of their own
    main, others = (teams, []) if partners == "held-out" else (teams[:1], teams[1:])
    header = ["", "episode 1", "2 on", "± seeds", "± boards", "over gru, paired", *others]
    if partners == "held-out":
        header += ["share of best", "± seeds", "its least partner"]
        relative = shares(rows)
    gru = by_seed(rows[(rows.method == "gru") & rows.team.isin(main)])
    lines = []
    for method in methods:
        own = rows[(rows.method == method) & rows.team.isin(main)]
        if own.empty:
            continue
        seeds = by_seed(own)
        half = half_width_of_few(seeds.to_numpy())
        line = [own["episode1"].mean(), seeds.mean(), half, own["mean_ci95"].mean()]
        line = [method, *map(figure_of, line)]
        gain = (seeds - gru).dropna()  # all play the same boards
        paired = method not in ("gru", "best response") and len(gain) > 0
        line.append(plus_minus(gain.mean(), half_width_of_few(gain.to_numpy())) if paired else "")
        for team in others:
            line.append(figure_of(rows[(rows.method == method) & (rows.team == team)]["mean"].mean()))
        if partners == "held-out":
            line += share_cells(relative[relative.method == method])
        lines.append(line)
    return markdown(header, lines)


def share_cells(own: pd.DataFrame) -> list[str]:
    """Of the best response: the mean over partners, its interval over seeds, and that of the least partner."""
    share = by_seed(own)
    half = half_width_of_few(share.to_numpy())
    least = own.groupby("team")["mean"].mean().min()
    return [f"{value:.1%}" if not math.isnan(value) else "" for value in (share.mean(), half, least)]


def iqm_table(found: list[dict], methods: list[str], partners: list[str]) -> str:
    cells = {
        (row["method"], row["partners"]): f"{row['iqm']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        for row in found
    }
    lines = [[method, *(cells.get((method, sort), "") for sort in partners)] for method in methods]
    return markdown(["", *partners], lines)


# ---- figures


def draw_by_episode(rows: pd.DataFrame, methods: list[str], ylabel: str, path: Path) -> None:
    """A panel a game: the mean over teams and seeds by episode, and the range of the seeds."""
    games = list(dict.fromkeys(rows.game))
    columns = min(2, len(games))
    lines = math.ceil(len(games) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(games) :]:
        axis.set_visible(False)
    for axis, game in zip(axes, games, strict=False):
        for colour, method in zip(figures.COLOURS, methods, strict=False):
            own = rows[(rows.game == game) & (rows.method == method)]
            if own.empty:
                continue
            curves = own.groupby("seed")[episodes_of(rows)].mean()  # [seeds, episodes]
            x = range(1, curves.shape[1] + 1)
            axis.plot(x, curves.mean(), "o-", ms=3, lw=1.2, color=colour, label=method)
            axis.fill_between(x, curves.min(), curves.max(), color=colour, alpha=0.12, lw=0)
        axis.set(title=game, xlabel="episode with the same partners", ylabel=ylabel)
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figures.save(figure, path)


def draw_iqm(found: list[dict], methods: list[str], partners: list[str], path: Path) -> None:
    figure = Figure(figsize=(4.2 * len(partners), 2.8), layout="constrained")
    for axis, sort in zip(figures.row_of_axes(figure, len(partners)), partners, strict=True):
        for row in found:
            if row["partners"] == sort:
                height = methods.index(row["method"])
                colour = figures.COLOURS[height % len(figures.COLOURS)]
                bar = dict(
                    color=colour, lw=7, alpha=0.35, solid_capstyle="butt"
                )  # ends where the interval does
                axis.plot([row["low"], row["high"]], [height, height], **bar)
                axis.plot(row["iqm"], height, "|", color=colour, ms=16, mew=2)
        axis.axvline(1.0, color="0.5", lw=0.8, ls=":")
        axis.set(yticks=range(len(methods)), yticklabels=methods, title=sort, ylim=(len(methods) - 0.5, -0.5))
        axis.set(xlabel=f"interquartile mean; 1: {TOP[sort]}")
        axis.grid(axis="x", alpha=0.25)
    figures.save(figure, path)


def draw_section(rows: pd.DataFrame, methods: list[str], partners: str, path: Path) -> None:
    """By episode. rows: with these partners."""
    if partners == "held-out":
        draw_by_episode(shares(rows), methods, "share of the best response", path)
    else:
        draw_by_episode(rows[rows.team == "mixed"], methods, "return among mixed", path)


def draw(table: pd.DataFrame, methods: list[str], path: Path) -> None:
    """Once more from a study's table: study_iqm.png, study_few_shot.png or study_held_out.png."""
    methods = [method for method in methods if (table.method == method).any()]
    if path.stem == "study_iqm":
        partners = [sort for sort in TITLES if (table.partners == sort).any()]
        draw_iqm(iqm_rows(table, methods, partners), methods, partners, path)
    else:
        partners = path.stem.removeprefix("study_").replace("_", "-")
        draw_section(table[table.partners == partners], methods, partners, path)


# ---- the page


def write(rows: list[dict], facts: Facts, folder: Path) -> None:
    """study.md, results/study.csv and images/study_*.png; the page shows what the CSV holds."""
    for name in ("results", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    csv = folder / "results" / "study.csv"
    content = pd.DataFrame(rows).to_csv(index=False, float_format="%.6f", lineterminator="\n")
    tracking.write_bytes(csv, f"# {facts.command} --page docs\n{content}".encode())
    table = pd.read_csv(csv, comment="#")
    methods = [method for method in facts.settings["methods"] if (table.method == method).any()]
    partners = [sort for sort in facts.settings["partners"] if (table.partners == sort).any()]
    found = iqm_rows(table, methods, partners)
    parts = [introduction(facts), summary(found, methods, partners)]
    draw_iqm(found, methods, partners, folder / "images" / "study_iqm.png")
    for sort in partners:
        own = table[table.partners == sort]
        parts.append(section(own, methods, sort, folder))
    parts.append(caveats(facts))
    tracking.write_bytes(folder / "study.md", "\n".join(parts).encode())


def introduction(facts: Facts) -> str:
    settings = facts.settings
    whole = f"{facts.done} of {facts.cells} cells"
    if facts.done < facts.cells:
        whole += ": **not finished**"
    lines = [
        ["machine and date", facts.machine],
        ["seeds of trainings", words(settings["seeds"])],
        ["ticks of a method", f"{settings['steps']:,}"],
        ["ticks of a policy of a population, of a best response", f"{settings['policy_steps']:,}"],
        ["samples of a game's VAE (latent, belief; few-shot)", f"{settings['samples']:,}"],
        ["boards that judge", f"{settings['boards']} x {settings['episodes']} episodes, the same for all"],
        ["done", whole],
        [
            "hours of all cells, one after the other",
            f"{facts.hours:.2f}; estimated, on an idle core: {facts.estimate:.2f}",
        ],
    ]
    return f"""# The study

Written by `{facts.command}`, which goes on where it was stopped. All methods have the same network, boards
and number of ticks; they differ in what the policy knows of its co-players (`--om`): nothing (none), what a
recurrent network remembers of them (gru), one that is trained to predict them (liam, Papoudakis et al.
2021), z and action probabilities of a VAE (latent), P(goal) by Bayes' rule (belief), who they are (oracle).
[study.csv](results/study.csv) has every figure.

{markdown(["", ""], lines)}"""


def summary(found: list[dict], methods: list[str], partners: list[str]) -> str:
    tasks = {
        row["partners"]: f"{row['partners']} {row['tasks']} scores of {row['runs']} runs" for row in found
    }
    counts = ", ".join(tasks.values()) or "none"
    return f"""## Interquartile means

Of scores (return - random play) / (best - random play) from the second episode on, over seeds, games and
teams: the mean of the middle half (Agarwal et al. 2021, *Deep RL at the Edge of the Statistical
Precipice*). The best is the oracle, mean of its seeds; with held-out partners the best response, PPO
trained with that partner alone. In brackets: 95% bootstrap interval, runs drawn within each game, 2,000
times, seed 0; boards are not drawn. Not counted: teams with RANDOM, whom no method met, and teams with
which random play earns at least {1 - MATTERS:.0%} of the best. Of each method: {counts}.

{iqm_table(found, methods, partners)}
![Interquartile means with their intervals](images/study_iqm.png)
"""


HOW = {
    "few-shot": """Trained among scripted co-players with one of two goals each (`mixed`: first columns), judged with
each team (last columns).""",
    "held-out": """Trained among the policies of a population that are to train with; judged with each that was held
out, in all seats but one: mean over partners. The VAE of latent and belief is of games of the policies to train with,
its goals found without labels (`--goals free`). Best: the best response, a training like the others: a share above 100%
shows that it fell short. There is no oracle: it would know whom it learned with, and these it never met.""",
    "self-play": """Trained among its own kind, each with its own reward: mean return of all hunters (first columns);
and what one such agent earns among scripted co-players (`mixed`).""",
}


def section(rows: pd.DataFrame, methods: list[str], partners: str, folder: Path) -> str:
    names = [*BASELINES, *methods]
    if partners == "held-out":
        names.append("best response")
    parts = [f"## {TITLES[partners]}\n", f"{HOW[partners]}\n"]
    for game in dict.fromkeys(rows.game):
        parts.append(f"### {game}, {partners}\n")
        parts.append(table_of_game(rows[rows.game == game], names, partners))
    picture = f"study_{partners.replace('-', '_')}.png"
    path = folder / "images" / picture
    if partners == "self-play":
        return "\n".join(parts)
    draw_section(rows, methods, partners, path)
    parts.append(f"![By episode](images/{picture})\n")
    return "\n".join(parts)


def caveats(facts: Facts) -> str:
    seeds = len(facts.settings["seeds"])
    return f"""## How to read it

- **± seeds**: half of the 95% interval of the mean over the {seeds} trainings, by Student's t; of two seeds
  it is wide. **± boards**: half of the 95% interval over the boards of one training, mean over trainings.
  They are not added: all methods play the same boards, so a difference between methods is surer than ±
  boards says.
- **over gru, paired**: the difference to gru of the same seed on the same boards, mean and 95% interval
  over seeds.
- `random`: any legal action. `script`: the game's script with the tick that is best with `mixed`;
  `script_told`: with this team, chosen on other boards. The band of a figure is the range of the seeds.
- Boards that judge have other seeds than those on which anything was chosen; trainings keep their last
  policy.
"""
