"""Figures that several scripts draw: plain arrays in, a matplotlib Figure out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from tracking import write_bytes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito, 2008
LINE_STYLES = ("-.", "--", ":", (0, (1, 3)))


def save(figure: Figure, path: str | Path, writer: SummaryWriter | None = None, step: int = 0) -> None:
    """As PNG at `path` and, under the file's name, in TensorBoard."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
    if writer is not None:
        writer.add_figure(f"figures/{Path(path).stem}", figure, step)


def row_of_axes(figure: Figure, n: int) -> list[Axes]:
    """n axes beside each other."""
    return list(np.atleast_1d(figure.subplots(1, n)))


# ---- curves and bars


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    lines: Mapping[str, Mapping[str, float]],
    xlabel: str,
) -> Figure:
    """One panel a unit, so that each term can be read.

    Args:
        panels: panels[title][label] is a curve; its first point is at 1.
        lines: lines[title][label] is the height of a horizontal line.
    """
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    axes = row_of_axes(figure, len(panels))
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        for colour, (label, values) in zip(COLOURS, series.items(), strict=False):
            x = np.arange(1, len(values) + 1)
            axis.plot(x, values, "o-", ms=3, color=colour, label=label)
        levels = lines.get(title, {})
        for style, (label, level) in zip(LINE_STYLES, levels.items(), strict=False):
            axis.axhline(level, color="0.35", lw=1, ls=style, label=f"{label} {level:.3f}")
        axis.set(title=title, xlabel=xlabel)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    return figure


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float]], ylabel: str, title: str) -> Figure:
    """Grouped bars: series[label][i] belongs to groups[i]; NaN is drawn as 0."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        x = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        heights = np.nan_to_num(np.asarray(values, float))
        axis.bar(x, heights, width * 0.92, color=COLOURS[i], label=label)
    axis.set(xticks=range(len(groups)), xticklabels=groups, ylabel=ylabel, title=title)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, ncols=len(series))
    return figure


def by_tick(panels: Mapping[str, Mapping[str, Mapping[int, float]]], title: str) -> Figure:
    """One panel a figure of merit, one curve a predictor: panels[title][label][tick]."""
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = row_of_axes(figure, len(panels))
    for axis, (name, series) in zip(axes, panels.items(), strict=True):
        for i, (label, values) in enumerate(series.items()):
            style = "-o" if i == 0 else "--"
            axis.plot(values.keys(), values.values(), style, ms=3, color=COLOURS[i], label=label)
        axis.set(title=name, xlabel="tick")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
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
    return {
        "confusion_matrix": confusion(arrays["confusion"], names, f"MOA, {title}"),
        "recall": bars(names, arrays["recall"], "recall", f"recall per action, {title}"),
        "reliability": reliability(arrays["reliability"], title),
        "by_tick": by_tick(arrays["by_tick"], title),
    }


def of_returns(results: dict[str, dict[str, dict]], adaptation: dict[str, list[dict]]) -> dict[str, Figure]:
    """Returns of the learner, file name -> figure. results[policy][team]: figures, of which `learner` is drawn;
    adaptation[team]: one row an episode."""
    teams = list(results["teams"])
    drawn = {kind: by_team for kind, by_team in results.items() if kind != "untrained"}
    heights = {
        kind: [by_team.get(team, {}).get("learner", np.nan) for team in teams]
        for kind, by_team in drawn.items()
    }
    figures = {"teams": bars(teams, heights, "return of the learner", "with each team")}
    if adaptation:
        series = {team: [row["learner"] for row in rows] for team, rows in adaptation.items()}
        figures["adaptation"] = curves({"return of the learner": series}, {}, "episode")
    return figures


# ---- boards as one hunter sees them

PLANE_COLOURS = ("#0072B2", "#E69F00", "#444444", "#D55E00", "#009E73", "#CC79A7")
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


PREY_COLOURS = ("#8C2D04", "#9BB814", "#56B4E9")


class BoardLabels(NamedTuple):
    """Words for what is drawn: by default the stag hunt's."""

    prey: tuple[str, ...] = ("stag", "hare")
    takes: tuple[str, ...] = ("stag", "hare")
    """the action that takes each"""

    @classmethod
    def of(cls, game: Any) -> BoardLabels:
        """game: envs.game.Game"""
        prey = tuple(plane.lower().removesuffix("s") for plane in game.prey)
        return cls(prey, tuple(take.lower().removeprefix("hunt_") for take in game.takes))


STAG_HUNT = BoardLabels()


def joint_picture(board: np.ndarray, pixels: int = 12, kinds: int = 2) -> np.ndarray:
    """A joint board, float [A+1+kinds, H, W] in [0, 1], as an image [H * pixels, W * pixels, 3]; shades are never rounded.

    A block fills its cell. Each hunter has a place of its own in the upper two thirds, row by row in seat order; the
    kinds of prey are beside each other in the lower third.
    """
    planes, height, width = board.shape
    hunters = planes - 1 - kinds
    areas = areas_in_cell(hunters, pixels, kinds)
    colours = joint_colours(hunters, kinds)
    image = np.ones((height, pixels, width, pixels, 3))
    for i in (
        hunters,
        *range(hunters),
        *range(hunters + 1, planes),
    ):  # blocks first: what stands in a block shows
        rows, columns = areas[i]
        shade = np.clip(board[i], 0, 1)[:, None, :, None, None]
        image[:, rows, :, columns] = blend(image[:, rows, :, columns], colours[i], shade)
    return image.reshape(height * pixels, width * pixels, 3)


def areas_in_cell(hunters: int, pixels: int, kinds: int) -> list[tuple[slice, slice]]:
    """Where in a cell each plane of a joint board is drawn: rows and columns of its pixels."""
    num_columns = int(np.ceil(np.sqrt(hunters)))
    num_rows = -(-hunters // num_columns)
    lower = 2 * pixels // 3
    x = np.linspace(0, pixels, num_columns + 1).astype(int)
    y = np.linspace(0, lower, num_rows + 1).astype(int)
    areas = []
    for seat in range(hunters):
        row, column = divmod(seat, num_columns)
        areas.append((slice(y[row], y[row + 1]), slice(x[column], x[column + 1])))
    areas.append((slice(0, pixels), slice(0, pixels)))  # blocks
    for kind in range(kinds):
        columns = slice(kind * pixels // kinds, (kind + 1) * pixels // kinds)
        areas.append((slice(lower, pixels), columns))
    return areas


def joint_colours(hunters: int, kinds: int) -> list[str]:
    """Of each plane of a joint board."""
    seats = [COLOURS[seat % 6] for seat in range(hunters)]
    return [*seats, "#444444", *PREY_COLOURS[:kinds]]


def show_joint(axis: Axes, board: np.ndarray, kinds: int, pixels: int = 12) -> None:
    """Draw a joint board, with the seats' numbers."""
    hunters = len(board) - 1 - kinds
    image = joint_picture(board, pixels, kinds)
    show_board(axis, image, board.shape[1:], grid={"color": "0.85", "lw": 0.4})
    style = {"color": "white", "fontsize": 4.5, "ha": "center", "va": "center"}
    for seat, (rows, columns) in enumerate(areas_in_cell(hunters, pixels, kinds)[:hunters]):
        right = (columns.start + columns.stop) / 2 / pixels
        down = (rows.start + rows.stop) / 2 / pixels
        for y, x in np.argwhere(board[seat] > 0.15):  # where there is shade enough to read a number on
            axis.text(x - 0.5 + right, y - 0.5 + down, seat, **style)


def joint_legend(figure: Figure, hunters: int, labels: BoardLabels) -> None:
    """Colours of the planes, below the boards."""
    names = [*(f"hunter {seat}" for seat in range(hunters)), "block", *labels.prey]
    colours = joint_colours(hunters, len(labels.prey))
    handles = [Patch(color=c, label=name) for name, c in zip(names, colours, strict=True)]
    place = "outside lower center" if figure.get_layout_engine() else "lower center"
    figure.legend(handles=handles, loc=place, ncols=min(len(names), 9), fontsize=7)


def joint_boards(
    rows: Mapping[str, Sequence[np.ndarray]],
    columns: Sequence[str],
    title: str,
    labels: BoardLabels = STAG_HUNT,
) -> Figure:
    """Joint boards beside each other.

    Args:
        rows: rows[label] are n boards, float [A+1+k, H, W].
        columns: titles of the n columns.
    """
    n, kinds = len(columns), len(labels.prey)
    figure = Figure(figsize=(2.3 * n + 0.6, 2.25 * len(rows) + 1.3), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(rows), n, squeeze=False)
    for line, (label, boards) in zip(axes, rows.items(), strict=True):
        for axis, board in zip(line, boards, strict=True):
            show_joint(axis, board, kinds)
        line[0].set_ylabel(label, fontsize=9)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=6.5)
    first_row = next(iter(rows.values()))
    joint_legend(figure, len(first_row[0]) - 1 - kinds, labels)
    return figure


def joint_film(
    boards: Mapping[str, Sequence[np.ndarray]],
    titles: Sequence[str],
    path: str | Path,
    notes: Sequence[dict] | None = None,
    labels: BoardLabels = STAG_HUNT,
) -> None:
    """A GIF of joint boards side by side.

    Args:
        boards: boards[label][i], float [A+1+k, H, W], stands in frame i.
        titles: of the frames.
        notes: notes[i] is written beside hunters on the first board of frame i, {seat: text}.
    """
    frames = []
    for i, title in enumerate(titles):
        frame_boards = {label: film[i] for label, film in boards.items()}
        frames.append(film_frame(frame_boards, title, notes[i] if notes is not None else {}, labels))
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=600, loop=0)
    write_bytes(path, buffer.getvalue())


def play_film(frames: Sequence[dict], game: Any, with_belief: bool, path: str | Path) -> None:
    """A GIF of one board; beside each co-player what is believed of it and, in brackets, who it is.

    Args:
        frames: joint uint8 [A+1+k, H, W]; by hunter belief, strategy_ids (-1: a learner) and returns; learner and tick.
        game: envs.game.Game. with_belief: of its first goal.
    """
    names = list(game.strategies)
    titles, notes = [], []
    for frame in frames:
        who = {seat: names[k] for seat, k in enumerate(frame["strategy_ids"]) if k >= 0}
        learner = f"the learner is hunter {frame['learner']}" if who else "all hunters learn"
        earned = ", ".join(f"{value:g}" for value in frame["returns"])
        titles.append(f"tick {frame['tick']}, {learner}\nreturns {earned}")
        beliefs = {seat: f"{frame['belief'][seat]:.2f} " if with_belief else "" for seat in who}
        notes.append({seat: f"{beliefs[seat]}({name})" for seat, name in who.items()})
    label = f"P({next(iter(game.goals))}) (who it is)" if with_belief else "(who it is)"
    joint_film({label: [frame["joint"] for frame in frames]}, titles, path, notes, BoardLabels.of(game))


def film_frame(
    boards: Mapping[str, np.ndarray], title: str, notes: dict[int, str], labels: BoardLabels = STAG_HUNT
) -> Image.Image:
    """One picture of a film."""
    side = 3.0 if len(boards) > 1 else 6.0  # one board alone is as wide as the legend
    figure = Figure(figsize=(side * len(boards), side + 0.9), dpi=80)
    # Fixed margins: a layout that is solved for each frame takes most of the time.
    figure.subplots_adjust(0.02, 0.14, 0.98, 0.83, 0.06)
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=8)
    axes = row_of_axes(figure, len(boards))
    for axis, (label, board) in zip(axes, boards.items(), strict=True):
        show_joint(axis, board, len(labels.prey))
        axis.set_title(label, fontsize=8)
    first = next(iter(boards.values()))
    write_notes(axes[0], first, notes)
    joint_legend(figure, len(first) - 1 - len(labels.prey), labels)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def write_notes(axis: Axes, board: np.ndarray, notes: dict[int, str]) -> None:
    """Write under the cell of each hunter (above it in the last row), those that share a cell below each other."""
    lines: dict[tuple[int, int], int] = {}  # written at a cell so far
    box = {"fc": "white", "alpha": 0.75, "lw": 0, "pad": 0.6}
    style = {"fontsize": 6.5, "weight": "bold", "ha": "center", "va": "center", "bbox": box}
    last_row = board.shape[1] - 1
    for seat, text in notes.items():
        for y, x in np.argwhere(board[seat] > 0.5):
            line = lines.get((y, x), 0)
            lines[y, x] = line + 1
            direction = -1 if y == last_row else 1
            height = y + direction * (0.68 + 0.36 * line)
            axis.text(x, height, text, color=COLOURS[seat % 6], **style)


# ---- predicted transitions

ARROWS = ("↑", "↓", "←", "→", "stay")  # actions in titles
LOGIT_LIMIT = 1e-5  # probabilities 0 and 1 are drawn here
LOGIT_TICKS = (LOGIT_LIMIT, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - LOGIT_LIMIT)
LOGIT_TICK_NAMES = ("0", ".001", ".1", ".5", ".9", ".999", "1")


def transition_text(actions: Sequence[int], rewards: Sequence[float], labels: BoardLabels = STAG_HUNT) -> str:
    """One transition in two lines."""
    words = (*ARROWS, *labels.takes, "?")  # -1, not known, is the last
    arrows = " ".join(words[action] for action in actions)
    return f"{arrows}\npaid {number_text(rewards)}"


told_and_paid = transition_text  # its earlier name, still in use


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
        titles.append(f"{head}\n{text}\npredicted {number_text(predicted[i])}")
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
    panels = {"total": {"train": column["total"]}}
    levels: dict[str, dict[str, float]] = {}
    if "moa" in column:
        panels[action] = {"train": column["moa"], "val": column["val_nll"]}
        drawn: tuple[str, ...] = ("uniform", "table", "bayes")
        levels[action] = {name: bounds[name] for name in drawn if name in bounds}
    if "recon" in column:
        panels[frame] = {"train": column["recon"], "val": column["val_recon_nll"]}
    panels["KL of z, nats per frame"] = {"train": column["kl"], "val": column["val_kl"]}
    shares = {
        split: np.bincount(taken, minlength=len(names)) / len(taken) for split, taken in actions.items()
    }
    return {
        "vae_loss_curve": curves(panels, levels, "epoch"),
        "class_distribution": bars(names, shares, "share of samples", "actions in the data"),
    }
