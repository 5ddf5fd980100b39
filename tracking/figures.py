"""Figures that several scripts draw: plain arrays in, a matplotlib Figure out."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import get_data_path
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter

from envs.render import HUNTER_COLOURS, INK, THING_COLOURS, draw_planes, icon
from tracking import write_bytes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito, 2008
LINE_STYLES = ("-.", "--", ":", (0, (1, 3)))


def save(figure: Figure, path: str | Path, writer: SummaryWriter | None = None, step: int = 0) -> None:
    """As PNG at `path` and, under the file's name, in TensorBoard."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
    if writer is not None:  # the same pixels: to draw a figure again takes longer than to read it
        pixels = np.asarray(Image.open(buffer).convert("RGB"))
        writer.add_image(f"figures/{Path(path).stem}", pixels, step, dataformats="HWC")


def row_of_axes(figure: Figure, n: int) -> list[Axes]:
    """n axes beside each other."""
    return list(np.atleast_1d(figure.subplots(1, n)))


def new_panels(n: int) -> tuple[Figure, list[Axes]]:
    """n axes, at most three beside each other; of none, an empty figure."""
    rows = max(-(-n // 3), 1)
    columns = max(-(-n // rows), 1)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes[n:]:
        axis.remove()
    return figure, list(axes[:n])


def finish(axis: Axes, xlabel: str, ylabel: str) -> None:
    """Labels, a grid, whole numbers on an axis that counts, and a legend, if there is more than one thing to name."""
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.25)
    if xlabel.startswith(COUNTED):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif xlabel == STEPS:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(axis.get_legend_handles_labels()[1]) > 1:
        axis.legend(fontsize=8)


# ---- curves and bars

COUNTED = ("epoch", "episode", "tick", "step of a rollout")
STEPS = "steps (ticks of all boards)"
LOG_RANGE = 30.0  # a loss that falls to less than a 30th is drawn by its logarithm


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    lines: Mapping[str, Mapping[str, float]],
    xlabel: str,
    half_widths: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Figure:
    """One panel a unit, so that each term can be read; one without a number is left out.

    Args:
        panels: panels[ylabel][label] is a curve; its first point is at 1.
        lines: lines[ylabel][label] is the height of a horizontal line.
        half_widths: of the intervals, as `panels`.
    """
    shown = {name: series for name, series in panels.items() if any(map(has_number, series.values()))}
    figure, axes = new_panels(len(shown))
    for axis, (name, series) in zip(axes, shown.items(), strict=True):
        intervals = (half_widths or {}).get(name, {})
        for i, (label, values) in enumerate(series.items()):
            x = np.arange(1, len(values) + 1)
            style = {"ms": 3, "color": COLOURS[i % len(COLOURS)], "label": label}
            if label in intervals:
                shift = 0.3 * ((i + 0.5) / len(series) - 0.5)  # so that no interval hides another
                axis.errorbar(x + shift, values, intervals[label], fmt="o-", lw=1, elinewidth=1, **style)
            else:
                axis.plot(x, values, "o-", **style)
        levels = lines.get(name, {})
        for dashes, (label, level) in zip(LINE_STYLES, levels.items(), strict=False):
            axis.axhline(level, color="0.35", lw=1, ls=dashes, label=f"{label} {level:.3f}")
        if not intervals and not levels:
            set_scale(axis, [value for values in series.values() for value in values])
        finish(axis, xlabel, name)
    if half_widths and (legend := axes[0].get_legend()):
        legend.remove()  # intervals leave no room for it
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=6, loc="outside lower center")
    return figure


def set_scale(axis: Axes, values: Sequence[float]) -> None:
    """Logarithmic where values fall far; what is 0 is drawn at 0."""
    positive = np.array([value for value in values if value > 0 and np.isfinite(value)])
    if len(positive) and np.nanmin(values) >= 0 and positive.max() > LOG_RANGE * positive.min():
        axis.set_yscale("symlog", linthresh=positive.min())
        axis.yaxis.set_major_formatter("{x:g}")


def has_number(values: Sequence[float]) -> bool:
    return bool(np.isfinite(np.asarray(values, float)).any())


def of_ppo(history: Sequence[dict], evaluations: Sequence[dict], co_players: str) -> Figure:
    """A training of hop_ppo.py by its steps. history, evaluations: rows of progress.csv and evaluations.csv."""
    labels = {
        "episodic_return": "return of an episode",
        "episodic_length": "length of an episode, ticks",
        "entropy": "entropy of the policy, nats",
        "explained_variance": "explained variance of V",
    }
    columns = {key: [row.get(key, np.nan) for row in history] for key in ("steps", *labels)}
    shown = [key for key in labels if has_number(columns[key])]
    figure, axes = new_panels(len(shown))
    for axis, key in zip(axes, shown, strict=True):
        axis.plot(columns["steps"], columns[key], color=COLOURS[0], lw=1.2, label="training")
        if key == "episodic_return" and evaluations:
            judged = {
                name: [row[name] for row in evaluations] for name in ("steps", "learner", "learner_ci95")
            }
            label = f"fresh boards, {evaluations[0]['episodes']:,} episodes each, 95%"
            style = {"fmt": "o", "ms": 4, "capsize": 3, "color": COLOURS[1], "label": label}
            axis.errorbar(judged["steps"], judged["learner"], judged["learner_ci95"], **style)
        finish(axis, STEPS, labels[key])
    figure.suptitle(f"co-players: {co_players}", fontsize=10)
    return figure


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    ylabel: str,
    title: str,
    half_widths: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """Grouped bars: series[label][i] belongs to groups[i], NaN: no bar; half_widths: of their intervals."""
    figure = Figure(figsize=(9, 4.0), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        x = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        style = {"color": COLOURS[i % len(COLOURS)], "label": label}
        intervals = None if half_widths is None else half_widths[label]
        axis.bar(x, values, width * 0.92, yerr=intervals, error_kw={"lw": 1, "capsize": 2}, **style)
    axis.set(xticks=range(len(groups)), xticklabels=groups, ylabel=ylabel, title=title)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    if len(series) > 1:
        figure.legend(fontsize=8, ncols=min(len(series), 5), loc="outside lower center")  # never over a bar
    return figure


def by_tick(panels: Mapping[str, Mapping[str, Mapping[int, float]]], title: str) -> Figure:
    """One panel a figure of merit, one curve a predictor: panels[ylabel][label][tick]."""
    shown = {
        name: series
        for name, series in panels.items()
        if any(has_number(list(values.values())) for values in series.values())
    }
    figure, axes = new_panels(len(shown))
    figure.suptitle(title, fontsize=9)
    for axis, (name, series) in zip(axes, shown.items(), strict=True):
        for i, (label, values) in enumerate(series.items()):
            style = "-o" if i == 0 else "--"
            axis.plot(values.keys(), values.values(), style, ms=3, color=COLOURS[i], label=label)
        finish(axis, "tick", name)
    return figure


# ---- predicted actions


def confusion(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Counts, rows the true class; shaded by the share of the row."""
    figure = Figure(figsize=(6.6, 5.6), layout="constrained")
    axis = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*matrix.shape):
        colour = "white" if share[i, j] > 0.55 else "black"
        text = f"{matrix[i, j]}\n{share[i, j]:.0%}"
        axis.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    ticks = range(len(names))
    axis.set(xticks=ticks, yticks=ticks, yticklabels=names)
    axis.set(xlabel="predicted (top-1)", ylabel="taken", title=title)
    axis.set_xticklabels(names, rotation=35, ha="right")
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the row")
    return figure


def reliability(bins: Mapping[str, np.ndarray], title: str) -> Figure:
    """Accuracy by confidence.

    Args: bins: bins[label] is [3, n]: confidence, accuracy, share of the samples (the size of a dot).
    """
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.35", lw=1, ls="--", label="calibrated")
    for colour, (label, (confidence, accuracy, share)) in zip(COLOURS, bins.items(), strict=False):
        axis.plot(confidence, accuracy, color=colour, lw=1, label=label)
        axis.scatter(confidence, accuracy, 8 + 250 * share, color=colour, alpha=0.6, lw=0)
    axis.set(xlabel="confidence (p of the most likely action)", ylabel="accuracy", title=title)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure


def of_actions(arrays: dict, names: Sequence[str], title: str) -> dict[str, Figure]:
    """Predicted actions, file name -> figure.

    Args: arrays: `confusion`, `recall`, `reliability` and `by_tick`, as the functions of these names take them.
    """
    counts = arrays["confusion"].sum(1)
    groups = [f"{name}\nn = {count:,}" for name, count in zip(names, counts, strict=True)]
    half_widths = {
        label: 1.96 * np.sqrt(np.multiply(recall, np.subtract(1, recall)) / np.maximum(counts, 1))
        for label, recall in (
            (label, np.asarray(values, float)) for label, values in arrays["recall"].items()
        )
    }
    recall_title = f"recall per action and its 95% interval, {title}"
    return {
        "confusion_matrix": confusion(arrays["confusion"], names, f"MOA, {title}"),
        "recall": bars(groups, arrays["recall"], "recall", recall_title, half_widths),
        "reliability": reliability(arrays["reliability"], title),
        "by_tick": by_tick(arrays["by_tick"], title),
    }


def of_returns(
    results: dict[str, dict[str, dict]], adaptation: dict[str, list[dict]], boards: int = 0
) -> dict[str, Figure]:
    """Returns of the learner and their 95% intervals, file name -> figure.

    Args:
        results: results[policy][team], figures of which `learner`, `learner_ci95` and `episodes` are drawn.
        adaptation: adaptation[team], one row an episode: `learner`, `learner_ci95`. boards: of each, 0: unknown.
    """
    teams = list(results["teams"])
    heights, half_widths = {}, {}
    for kind, by_team in results.items():
        if kind == "untrained":
            continue
        label = f"{kind}, n = {next(iter(by_team.values()))['episodes']:,}"
        heights[label] = [by_team.get(team, {}).get("learner", np.nan) for team in teams]
        half_widths[label] = [by_team.get(team, {}).get("learner_ci95", np.nan) for team in teams]
    ylabel = "return of the learner per episode"
    title = "with each team: mean and 95% interval, n episodes"
    figures = {"teams": bars(teams, heights, ylabel, title, half_widths)}
    if adaptation:
        series = {team: [row["learner"] for row in rows] for team, rows in adaptation.items()}
        intervals = {team: [row["learner_ci95"] for row in rows] for team, rows in adaptation.items()}
        xlabel = "episode with the same co-players"
        drawn = curves({ylabel: series}, {}, xlabel, {ylabel: intervals})
        drawn.set_size_inches(6.4, 4.2)
        drawn.suptitle("mean and 95% interval" + (f", n = {boards:,} boards" if boards else ""), fontsize=10)
        figures["adaptation"] = drawn
    return figures


# ---- boards as one hunter sees them

PLANE_COLOURS = (*HUNTER_COLOURS[:2], *THING_COLOURS.values())
"""SELF, OTHERS, BLOCKS, each kind of prey"""


def planes(rows: Mapping[str, np.ndarray], channels: Sequence[str], columns: Sequence[str]) -> Figure:
    """Frames beside each other, as one hunter sees them; shades are never rounded.

    A block fills its cell; what may share a cell has a part of it each: SELF and OTHERS above, the kinds of prey below.

    Args:
        rows: rows[label] is [n, C, H, W] in [0, 1].
        channels: names of the C planes.
        columns: titles of the n columns.
    """
    n = len(columns)
    figure = Figure(figsize=(1.7 * n + 1.2, 1.9 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), n, squeeze=False)
    for line, (label, frames) in zip(axes, rows.items(), strict=True):
        for axis, frame in zip(line, frames, strict=True):
            show_board(axis, planes_picture(frame), frame.shape[1:], grid={"color": "0.85", "lw": 0.5})
        line[0].set_ylabel(label, fontsize=9)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=8)
    handles = [Patch(color=c, label=name) for c, name in zip(PLANE_COLOURS, channels, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(channels), fontsize=8)
    return figure


def planes_picture(frame: np.ndarray) -> np.ndarray:
    """Planes as one hunter sees them, float [3 + k, H, W], as an image [2H, n * W, 3]: a cell is 2 x 2 points, or
    2 x 6 for three kinds of prey."""
    planes, height, width = frame.shape
    kinds = planes - 3
    columns = 6 if kinds == 3 else 2
    edges = [columns * i // kinds for i in range(kinds + 1)]
    prey = [np.s_[:, 1:, :, left:right] for left, right in pairwise(edges)]
    half = columns // 2
    areas = (np.s_[:, :1, :, :half], np.s_[:, :1, :, half:], np.s_[:], *prey)
    image = np.ones((height, 2, width, columns, 3))
    for plane, colour, area in zip(frame, PLANE_COLOURS, areas, strict=False):
        image[area] = blend(image[area], colour, plane[:, None, :, None, None])
    return image.reshape(2 * height, columns * width, 3)


def blend(image: np.ndarray, colour: str, shade: np.ndarray) -> np.ndarray:
    """Lay a colour over an image [.., 3]; shade 1 hides what was there."""
    return image * (1 - shade) + np.array(to_rgb(colour)) * shade


def show_board(axis: Axes, image: np.ndarray, size: tuple[int, int], grid: dict) -> None:
    """Draw the image of a board with one unit a cell, and lines between the cells."""
    height, width = size
    axis.imshow(image.clip(0, 1), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axis.set(xticks=np.arange(-0.5, width), yticks=np.arange(-0.5, height))
    axis.set(xticklabels=[], yticklabels=[])
    axis.grid(**grid)
    axis.tick_params(length=0)


# ---- joint boards: each hunter has a plane


class BoardLabels(NamedTuple):
    """Words for what is drawn: by default the stag hunt's."""

    prey: tuple[str, ...] = ("stag", "hare")
    takes: tuple[str, ...] = ("stag", "hare")
    """the action that takes each"""
    planes: tuple[str, ...] = ("STAGS", "HARES")
    """as `envs.render.SPRITES` has them"""

    @classmethod
    def of(cls, game: Any) -> BoardLabels:
        """game: envs.game.Game"""
        prey = tuple(plane.lower().removesuffix("s") for plane in game.prey)
        return cls(prey, tuple(take.lower().removeprefix("hunt_") for take in game.takes), tuple(game.prey))


STAG_HUNT = BoardLabels()


def event_text(
    before: np.ndarray,
    after: np.ndarray,
    actions: Sequence[int],
    rewards: Sequence[float],
    labels: BoardLabels = STAG_HUNT,
) -> str:
    """What was taken in a tick, by whom, and what all were paid, such as `seats 0, 2 captured a stag: 5 each`; or nothing.

    Args:
        before, after: [A+1+k, H, W], joint boards of 0 and 1. actions, rewards: [A]; no event is named where an action is
            unknown, -1.
    """
    if min(actions) < 0:
        return ""
    hunters = len(before) - 1 - len(labels.prey)
    teams: dict[tuple[int, int], list[int]] = {}  # (kind, cell) -> seats that try to take it
    for seat in range(hunters):
        cell = before[seat].argmax()
        kind = actions[seat] - len(ARROWS)
        if kind >= 0 and before[seat].any() and before[hunters + 1 + kind].flat[cell]:
            teams.setdefault((kind, int(cell)), []).append(seat)
    events, others = [], set(range(hunters))
    for (kind, cell), seats in teams.items():
        is_gone = not after[hunters + 1 + kind].flat[cell]
        if not is_gone and all(after[seat].any() for seat in seats):
            continue  # one hunter alone does not take a stag; where prey moves, another may have stepped here
        others -= set(seats)
        verb = (
            "captured"
            if labels.takes[kind] == labels.prey[kind]
            else f"{labels.takes[kind].removesuffix('e')}ed"
        )
        events.append(f"{seats_text(seats)} {verb} a {labels.prey[kind]}: {shares_text(seats, rewards)}")
    paid = [seat for seat in sorted(others) if rewards[seat] and not np.isnan(rewards[seat])]
    if events and paid:
        events.append(f"the others: {shares_text(paid, rewards)}")
    return "; ".join(events)


def seats_text(seats: Sequence[int]) -> str:
    return f"seat{'s' if len(seats) > 1 else ''} {', '.join(map(str, seats))}"


def shares_text(seats: Sequence[int], rewards: Sequence[float]) -> str:
    """What these seats earn, once if it is the same."""
    amounts = [f"{rewards[seat]:.3g}" for seat in seats]
    if len(set(amounts)) > 1:
        return ", ".join(amounts)
    return amounts[0] + (" each" if len(seats) > 1 else "")


def joint_boards(
    rows: Mapping[str, Sequence[np.ndarray]],
    columns: Sequence[str],
    title: str,
    labels: BoardLabels = STAG_HUNT,
) -> Figure:
    """n cases below each other, the boards of a case beside each other, drawn by `envs.render`.

    Args:
        rows: rows[label] are n boards, float [A+1+k, H, W]: what is there with probability p has opacity p.
        columns: what is written beside each case.
    """
    n = len(columns)
    figure = Figure(figsize=(2.05 * len(rows) + 2.1, 2.05 * n + 0.75), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(n, 1 + len(rows), squeeze=False)
    for i, (line, text) in enumerate(zip(axes, columns, strict=True)):
        line[0].text(0.0, 0.5, text, fontsize=9, va="center", transform=line[0].transAxes)
        line[0].set_axis_off()
        for axis, (label, boards) in zip(line[1:], rows.items(), strict=True):
            axis.imshow(draw_planes(boards[i], labels.planes, 32))
            axis.set_axis_off()
            if i == 0:
                axis.set_title(label, fontsize=11)
    return figure


# ---- films

FILM_WIDTH = 400  # pixels at scale 1
EVENT_COLOUR, FAINT = "#8a1c00", "#5b6068"


class Page:
    """A frame of a film, in units of which it is FILM_WIDTH wide, at `scale` pixels a unit."""

    def __init__(self, height: int, scale: float):
        self.scale = scale
        self.image = Image.new("RGB", (round(FILM_WIDTH * scale), round(height * scale)), "white")
        self.canvas = ImageDraw.Draw(self.image)

    def write(self, x: float, y: float, text: str, size: float, colour: str = INK, **style: Any) -> None:
        """style: `bold`; `anchor`, as PIL has it: by default `lm`, x is the left end and y the middle."""
        font = film_font(size * self.scale, style.get("bold", False))
        at = (x * self.scale, y * self.scale)
        self.canvas.text(at, text, colour, font, anchor=style.get("anchor", "lm"))

    def paste(self, x: float, y: float, picture: np.ndarray) -> None:
        self.image.paste(Image.fromarray(picture), (round(x * self.scale), round(y * self.scale)))

    def bar(self, x: float, y: float, width: float, share: float, colour: str) -> None:
        """A bar, filled to a share in [0, 1]."""
        top, bottom = y * self.scale, (y + 8) * self.scale
        box = [x * self.scale, top, (x + width) * self.scale, bottom]
        self.canvas.rectangle(box, "#ebe8e0")
        if share * width * self.scale >= 1:
            self.canvas.rectangle([box[0], top, (x + share * width) * self.scale, bottom], colour)
        self.canvas.rectangle(box, outline=INK)

    def sentence(self, y: float, text: str, size: float = 12, colour: str = EVENT_COLOUR) -> None:
        """A line over the whole width; smaller where it is too long."""
        while (
            size > 8 and film_font(size * self.scale, True).getlength(text) > (FILM_WIDTH - 12) * self.scale
        ):
            size -= 1
        self.write(6, y, text, size, colour, bold=True)


@lru_cache(maxsize=32)
def film_font(pixels: float, bold: bool) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), pixels)


def save_film(pages: Sequence[Image.Image], seconds: Sequence[float], path: str | Path) -> None:
    """As GIF, each page for so long. All have the palette of a few of them, which is faster than one each, and steadier."""
    few = pages[:: math.ceil(len(pages) / 4)]
    strip = Image.fromarray(np.concatenate([np.asarray(page) for page in few]))
    palette = strip.quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    first, *others = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages)
    buffer = io.BytesIO()
    durations = [round(1000 * second) for second in seconds]
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def fit_board(board: np.ndarray, labels: BoardLabels, pixels: float, ring: int | None = None) -> np.ndarray:
    """A picture of a joint board, about so many pixels wide or high."""
    cell = max(int(pixels / (max(board.shape[1:]) + 1 / 3)), 4)
    return draw_planes(board, labels.planes, cell, ring)


def joint_film(
    boards: Mapping[str, Sequence[np.ndarray]],
    titles: Sequence[str],
    path: str | Path,
    events: Sequence[str] | None = None,
    labels: BoardLabels = STAG_HUNT,
    scale: float = 1.5,
) -> None:
    """A GIF of joint boards side by side.

    Args:
        boards: boards[label][i], float [A+1+k, H, W], stands in frame i.
        titles: of the frames, of one line or two. events: what happened, in words.
    """
    pages, seconds = [], []
    width = (FILM_WIDTH - 6) / len(boards)
    for i, title in enumerate(titles):
        pictures = {label: fit_board(film[i], labels, (width - 6) * scale) for label, film in boards.items()}
        height = max(picture.shape[0] for picture in pictures.values()) / scale
        page = Page(round(height) + 84, scale)
        for k, line in enumerate(title.split("\n")):
            page.write(6, 12 + 16 * k, line, 12, bold=k == 0)
        for k, (label, picture) in enumerate(pictures.items()):
            x = 6 + k * width
            page.write(x + picture.shape[1] / scale / 2, 48, label, 12, bold=True, anchor="mm")
            page.paste(x, 56, picture)
        event = events[i] if events is not None else ""
        page.sentence(height + 68, event)
        pages.append(page.image)
        seconds.append(1.6 if event else 0.8)
    save_film(pages, seconds, path)


def play_film(
    frames: Sequence[dict], game: Any, with_belief: bool, path: str | Path, scale: float = 1.5
) -> None:
    """A GIF of one board; beside it each hunter, who it is, what it has earned, and what is believed of a co-player.

    Args:
        frames: joint uint8 [A+1+k, H, W]; by hunter belief, strategy_ids (-1: a learner), returns and actions, those of the
            tick before; learner and tick.
        game: envs.game.Game. with_belief: of its first goal.
    """
    labels = BoardLabels.of(game)
    belief = f"P({next(iter(game.goals))})" if with_belief else ""
    pages, seconds = [], []
    for i, frame in enumerate(frames):
        event = ""
        if i:
            earned = np.subtract(frame["returns"], frames[i - 1]["returns"])
            event = event_text(frames[i - 1]["joint"], frame["joint"], frame["actions"], earned, labels)
        pages.append(play_page(frame, list(game.strategies), labels, belief, event, scale))
        seconds.append(1.8 if event else 0.7)
    seconds[-1] = 3.0
    save_film(pages, seconds, path)


def play_page(
    frame: dict, strategies: Sequence[str], labels: BoardLabels, belief: str, event: str, scale: float
) -> Image.Image:
    """A frame of `play_film`. belief: what the bars are called; nothing: there are none."""
    learner = frame["learner"] if max(frame["strategy_ids"]) >= 0 else None
    board = fit_board(frame["joint"], labels, 276 * scale, learner)
    seats = len(frame["strategy_ids"])
    space = max(board.shape[0] / scale / seats, 62)
    page = Page(round(max(board.shape[0] / scale, space * seats)) + 58, scale)
    page.write(8, 14, f"tick {frame['tick']}", 15, bold=True)
    page.paste(4, 28, board)
    x = 12 + board.shape[1] / scale
    for seat, k in enumerate(frame["strategy_ids"]):
        y = 30 + seat * space
        page.paste(x, y, icon(seat, round(28 * scale), seat == learner))
        page.write(x + 34, y + 7, strategies[k] if k >= 0 else "learner", 13, bold=True)
        gone = "" if frame["joint"][seat].any() else "left, "
        page.write(x + 34, y + 22, f"{gone}earned {frame['returns'][seat]:.3g}", 11, FAINT)
        if belief and k >= 0:
            right = FILM_WIDTH - 8
            page.write(x, y + 38, belief, 11, FAINT)
            page.write(right, y + 38, f"{frame['belief'][seat]:.2f}", 13, bold=True, anchor="rm")
            page.bar(x, y + 47, right - x, frame["belief"][seat], HUNTER_COLOURS[seat % len(HUNTER_COLOURS)])
    page.sentence(page.image.height / scale - 14, event)
    return page.image


# ---- predicted transitions

ARROWS = ("↑", "↓", "←", "→", "stay")  # actions in titles
LOGIT_LIMIT = 1e-5  # probabilities 0 and 1 are drawn here
LOGIT_TICKS = (LOGIT_LIMIT, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - LOGIT_LIMIT)
LOGIT_TICK_NAMES = ("0", ".001", ".1", ".5", ".9", ".999", "1")


def transition_text(actions: Sequence[int], rewards: Sequence[float], labels: BoardLabels = STAG_HUNT) -> str:
    """What each seat does and is paid, in two lines."""
    words = (*ARROWS, *labels.takes, "?")  # -1, not known, is the last
    arrows = "  ".join(f"{seat} {words[action]}" for seat, action in enumerate(actions))
    return f"{arrows}\npaid {number_text(rewards)}"


def number_text(values: Sequence[float]) -> str:
    """Three digits each."""
    return " ".join("0" if abs(value) < 5e-4 else f"{value:.3g}" for value in values)


def calibration(panels: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Predicted probability and observed frequency, on logit axes.

    Args: panels: panels[title][label] is [3, n]: mean probability, frequency, count (the size of a dot, by its
        logarithm) of the bins that are not empty.
    """
    figure = Figure(figsize=(4.8 * len(panels), 4.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    ends = [LOGIT_LIMIT, 1 - LOGIT_LIMIT]
    axes = row_of_axes(figure, len(panels))
    for axis, (name, series) in zip(axes, panels.items(), strict=True):
        axis.plot(ends, ends, color="0.35", lw=1, ls="--", label="calibrated")
        for i, (label, (probs, frequency, count)) in enumerate(series.items()):
            x = np.clip(probs, *ends)
            y = np.clip(frequency, *ends)
            colour = COLOURS[i % 7]
            sizes = 6 + 8 * np.log10(np.maximum(count, 1))
            axis.plot(x, y, color=colour, lw=0.8, label=label)
            axis.scatter(x, y, sizes, color=colour, alpha=0.6, lw=0)
        set_logit_axes(axis)
        axis.set(title=name, xlabel="predicted probability", ylabel="frequency")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    return figure


def set_logit_axes(axis: Axes) -> None:
    """Both axes from 0 to 1 on the logit scale."""
    limits = (LOGIT_LIMIT / 2, 1 - LOGIT_LIMIT / 2)
    axis.set(xscale="logit", yscale="logit", xlim=limits, ylim=limits)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_ticks(LOGIT_TICKS, LOGIT_TICK_NAMES)
        scale.set_minor_locator(NullLocator())


def predicted_boards(
    before: np.ndarray,
    after: np.ndarray,
    expected: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    predicted: np.ndarray,
    heads: Sequence[str],
    title: str,
    labels: BoardLabels = STAG_HUNT,
) -> Figure:
    """n transitions as joint boards.

    Args:
        before, after, expected: [n, A+1+k, H, W].
        actions: int [n, A]. rewards, predicted: [n, A].
        heads: the first line over each transition.
    """
    error = np.abs(expected - after)
    rows = {"before": before, "true next": after, "predicted next": expected, "error": error}
    titles = []
    for i, head in enumerate(heads):
        text = transition_text(actions[i], rewards[i], labels)
        event = event_text(before[i], after[i], actions[i], rewards[i], labels).replace("; ", "\n")
        titles.append(f"{head}\n{text}\npredicted {number_text(predicted[i])}\n{event}".strip())
    return joint_boards(rows, titles, title, labels)


def of_predictions(
    reliable: Mapping[str, np.ndarray],
    ticks: Mapping[str, Mapping[int, float]],
    depths: Mapping[str, Sequence[float]],
    title: str,
) -> dict[str, Figure]:
    """Predicted transitions, file name -> figure.

    Args:
        reliable: curves as `calibration` takes them, of channels and of `reward > 0`.
        ticks: ticks[name][tick], errors of one step.
        depths: depths[name][step], errors of open-loop rollouts.
    """
    panels: dict[str, dict[str, np.ndarray]] = {"cells, by channel": {}}
    for name, curve in reliable.items():
        panel = name if name == "reward > 0" else "cells, by channel"
        panels.setdefault(panel, {})[name] = curve
    one_step = {name: {"one step": values} for name, values in ticks.items()}
    open_loop = {name: {"open loop": values} for name, values in depths.items()}
    return {
        "calibration": calibration(panels, title),
        "error_by_tick": by_tick(one_step, title),
        "error_by_depth": curves(open_loop, {}, "step of a rollout"),
    }


def of_vae(
    history: Sequence[dict[str, float]],
    bounds: dict[str, float],
    actions: dict[str, np.ndarray],
    names: Sequence[str],
) -> dict[str, Figure]:
    """A training of pretrain_vae.py, file name -> figure.

    history: a row an epoch, as loss.csv has it, without what is untrained. bounds: NLL of other predictors on the
    same samples, drawn as levels. actions: int [m] of each split; names: of the actions.
    """
    column = {key: [row[key] for row in history] for key in history[0]}
    action, frame = "action loss, nats per action", "reconstruction, nats per frame"
    panels = {"total loss, nats": {"train": column["total"]}}
    levels: dict[str, dict[str, float]] = {}
    if "moa" in column:
        panels[action] = {"train": column["moa"], "val": column["val_nll"]}
        drawn: tuple[str, ...] = ("uniform", "table", "bayes")
        levels[action] = {name: bounds[name] for name in drawn if name in bounds}
        if "bayes" in bounds:
            gap = "held-out NLL above bayes, nats per action"
            panels[gap] = {"val": [nll - bounds["bayes"] for nll in column["val_nll"]]}
            levels[gap] = {"bayes": 0.0}
    if "recon" in column:
        panels[frame] = {"train": column["recon"], "val": column["val_recon_nll"]}
    panels["KL of z, nats per frame"] = {"train": column["kl"], "val": column["val_kl"]}
    shares = {
        split: np.bincount(taken, minlength=len(names)) / len(taken) for split, taken in actions.items()
    }
    numbers = ", ".join(f"{split} {len(taken):,} samples" for split, taken in actions.items())
    return {
        "vae_loss_curve": curves(panels, levels, "epoch"),
        "class_distribution": bars(names, shares, "share of samples", f"actions in the data: {numbers}"),
    }
