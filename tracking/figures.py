"""Figures that several scripts draw: plain arrays in, a matplotlib Figure out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from PIL import Image

from tracking import write_bytes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito, 2008


def save(figure: Figure, path: str | Path, writer=None, step: int = 0) -> None:
    """As PNG at `path` and, under the file's name, in TensorBoard."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
    if writer is not None:
        writer.add_figure(f"figures/{Path(path).stem}", figure, step)


def curves(
    panels: dict[str, dict[str, Sequence[float]]], lines: dict[str, dict[str, float]], xlabel: str
) -> Figure:
    """One panel a unit, so that each term can be read: panels[title][label] is a curve, lines[title][label] a level."""
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for axis, (title, series) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        for colour, (label, values) in zip(COLOURS, series.items(), strict=False):
            axis.plot(np.arange(1, len(values) + 1), values, "o-", ms=3, color=colour, label=label)
        for style, (label, level) in zip(
            ("-.", "--", ":", (0, (1, 3))), lines.get(title, {}).items(), strict=False
        ):
            axis.axhline(level, color="0.35", lw=1, ls=style, label=f"{label} {level:.3f}")
        axis.set(title=title, xlabel=xlabel)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    return figure


def bars(groups: Sequence[str], series: dict[str, Sequence[float]], ylabel: str, title: str) -> Figure:
    """Grouped bars: series[label][i] belongs to groups[i]."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axis, width = figure.subplots(), 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        offset = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        axis.bar(
            offset, np.nan_to_num(np.asarray(values, float)), width * 0.92, color=COLOURS[i], label=label
        )
    axis.set(xticks=range(len(groups)), xticklabels=groups, ylabel=ylabel, title=title)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, ncols=len(series))
    return figure


def confusion(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Counts, rows the true class; shaded by the share of the row."""
    figure = Figure(figsize=(6.6, 5.6), layout="constrained")
    axis, share = figure.subplots(), matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*matrix.shape):
        axis.text(j, i, f"{matrix[i, j]}\n{share[i, j]:.0%}", ha="center", va="center", fontsize=7,
                  color="white" if share[i, j] > 0.55 else "black")  # fmt: skip
    ticks = range(len(names))
    axis.set(
        xticks=ticks, yticks=ticks, yticklabels=names, xlabel="predicted (top-1)", ylabel="taken", title=title
    )
    axis.set_xticklabels(names, rotation=35, ha="right")
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the row")
    return figure


def reliability(bins: dict[str, np.ndarray], title: str) -> Figure:
    """Accuracy by confidence; bins[label] is [3, n]: confidence, accuracy, share of the samples (the size of a dot)."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.35", lw=1, ls="--", label="calibrated")
    for colour, (label, (confidence, accuracy, share)) in zip(COLOURS, bins.items(), strict=False):
        axis.plot(confidence, accuracy, color=colour, lw=1, label=label)
        axis.scatter(confidence, accuracy, 8 + 250 * share, color=colour, alpha=0.6, lw=0)
    axis.set(
        xlabel="confidence (p of the most likely action)",
        ylabel="accuracy",
        title=title,
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure


def by_tick(panels: dict[str, dict[str, dict[int, float]]], title: str) -> Figure:
    """One panel a figure, one curve a predictor: panels[title][label][tick]."""
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axis, (name, series) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        for i, (label, values) in enumerate(series.items()):
            axis.plot(
                values.keys(), values.values(), "-o" if i == 0 else "--", ms=3, color=COLOURS[i], label=label
            )
        axis.set(title=name, xlabel="tick")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    return figure


def of_actions(arrays: dict, names: Sequence[str], title: str) -> dict[str, Figure]:
    """Predicted actions, file name -> figure. arrays: confusion, recall, reliability and by_tick, as drawn below."""
    return {
        "confusion_matrix": confusion(arrays["confusion"], names, f"MOA, {title}"),
        "recall": bars(names, arrays["recall"], "recall", f"recall per action, {title}"),
        "reliability": reliability(arrays["reliability"], title),
        "by_tick": by_tick(arrays["by_tick"], title),
    }


def planes(rows: dict[str, np.ndarray], channels: Sequence[str], columns: Sequence[str]) -> Figure:
    """Frames beside each other: rows[label] is [n, C, H, W] in [0, 1], n columns; shades are never rounded.

    A block fills its cell; what may share a cell has a quarter of it each: SELF and OTHERS above, STAGS and HARES below.
    """
    n = len(columns)
    figure = Figure(figsize=(1.7 * n + 1.2, 1.9 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), n, squeeze=False)
    tint = np.array([to_rgb(c) for c in ("#0072B2", "#E69F00", "#444444", "#D55E00", "#009E73")])
    for line, (label, frames) in zip(axes, rows.items(), strict=True):
        for axis, frame, title in zip(line, frames, columns, strict=True):
            image = np.ones((2 * frame.shape[1], 2 * frame.shape[2], 3))
            quarters = (np.s_[::2, ::2], np.s_[::2, 1::2], np.s_[:, :], np.s_[1::2, ::2], np.s_[1::2, 1::2])
            for plane, colour, quarter in zip(frame, tint, quarters, strict=True):
                shade = (plane if image[quarter].shape[0] == len(plane) else np.kron(plane, np.ones((2, 2))))[
                    ..., None
                ]
                image[quarter] = image[quarter] * (1 - shade) + colour * shade
            axis.imshow(image.clip(0, 1), extent=(-0.5, frame.shape[2] - 0.5, frame.shape[1] - 0.5, -0.5))
            axis.set(xticks=np.arange(-0.5, frame.shape[2]), yticks=np.arange(-0.5, frame.shape[1]))
            axis.set(xticklabels=[], yticklabels=[])
            axis.grid(color="0.85", lw=0.5)
            axis.tick_params(length=0)
            if line is axes[0]:
                axis.set_title(title, fontsize=8)
        line[0].set_ylabel(label, fontsize=9)
    handles = [Patch(color=c, label=name) for c, name in zip(tint, channels, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(channels), fontsize=8)
    return figure


def joint_picture(board: np.ndarray, pixels: int = 12) -> np.ndarray:
    """A joint board, float [A+3, H, W] in [0, 1], as an image [H * pixels, W * pixels, 3]; shades are never rounded.

    A block fills its cell. Each hunter has a place of its own in the upper two thirds, row by row in seat order; stags
    have the left half of the lower third, hares the right one.
    """
    hunters, (height, width) = len(board) - 3, board.shape[1:]
    image = np.ones((height, pixels, width, pixels, 3))
    places = _places(hunters, pixels)
    for i in (hunters, *range(hunters), hunters + 1, hunters + 2):  # what stands in a block shows
        plane, (place, colour) = board[i], places[i]
        shade, area = np.clip(plane, 0, 1)[:, None, :, None, None], image[:, place[0], :, place[1]]
        image[:, place[0], :, place[1]] = area * (1 - shade) + np.array(to_rgb(colour)) * shade
    return image.reshape(height * pixels, width * pixels, 3)


def _places(hunters: int, pixels: int) -> list[tuple[tuple[slice, slice], str]]:
    """Where in a cell each plane of a joint board is drawn, and in which colour."""
    columns = int(np.ceil(np.sqrt(hunters)))
    lower, lines = 2 * pixels // 3, -(-hunters // columns)
    x, y = np.linspace(0, pixels, columns + 1).astype(int), np.linspace(0, lower, lines + 1).astype(int)
    seats = [divmod(seat, columns) for seat in range(hunters)]
    places = [(slice(y[r], y[r + 1]), slice(x[c], x[c + 1])) for r, c in seats]
    places += [(slice(0, pixels), slice(0, pixels))]
    places += [
        (slice(lower, pixels), slice(0, pixels // 2)),
        (slice(lower, pixels), slice(pixels // 2, pixels)),
    ]
    colours = [COLOURS[seat % 6] for seat in range(hunters)]
    return list(zip(places, [*colours, "#444444", "#8C2D04", "#9BB814"], strict=True))


def _show_joint(axis, board: np.ndarray, pixels: int = 12) -> None:
    height, width = board.shape[1:]
    axis.imshow(joint_picture(board, pixels).clip(0, 1), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    for seat, ((rows, columns), _) in enumerate(_places(len(board) - 3, pixels)[:-3]):
        for y, x in np.argwhere(board[seat] > 0.15):  # a number where there is shade enough to read it on
            axis.text(x - 0.5 + (columns.start + columns.stop) / 2 / pixels, y - 0.5 + (rows.start + rows.stop) / 2 / pixels,
                      seat, color="white", fontsize=4.5, ha="center", va="center")  # fmt: skip
    axis.set(xticks=np.arange(-0.5, width), yticks=np.arange(-0.5, height), xticklabels=[], yticklabels=[])
    axis.grid(color="0.85", lw=0.4)
    axis.tick_params(length=0)


def _joint_legend(figure: Figure, hunters: int) -> None:
    names = [*(f"hunter {seat}" for seat in range(hunters)), "block", "stag", "hare"]
    handles = [Patch(color=c, label=name) for name, (_, c) in zip(names, _places(hunters, 12), strict=True)]
    place = "outside lower center" if figure.get_layout_engine() else "lower center"
    figure.legend(handles=handles, loc=place, ncols=min(len(names), 9), fontsize=7)


def joint_boards(rows: dict[str, Sequence[np.ndarray]], columns: Sequence[str], title: str) -> Figure:
    """Joint boards beside each other: rows[label] are n of them, float [A+3, H, W]; columns: what each is titled."""
    n = len(columns)
    figure = Figure(figsize=(2.3 * n + 0.6, 2.25 * len(rows) + 1.3), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for line, (label, boards) in zip(figure.subplots(len(rows), n, squeeze=False), rows.items(), strict=True):
        for axis, board, name in zip(line, boards, columns, strict=True):
            _show_joint(axis, board)
            if label == next(iter(rows)):
                axis.set_title(name, fontsize=6.5)
        line[0].set_ylabel(label, fontsize=9)
    _joint_legend(figure, len(next(iter(rows.values()))[0]) - 3)
    return figure


def joint_film(
    boards: dict[str, Sequence[np.ndarray]],
    titles: Sequence[str],
    path: str | Path,
    notes: Sequence[dict] | None = None,
) -> None:
    """A GIF of joint boards side by side: boards[label][i] stands in frame i, which is titled titles[i]. notes[i]: what is
    written beside hunters on the first board, {seat: text}."""
    frames, side = [], 3.0 if len(boards) > 1 else 6.0  # as wide as the legend
    for i, title in enumerate(titles):
        figure = Figure(figsize=(side * len(boards), side + 0.9), dpi=80)
        figure.subplots_adjust(
            0.02, 0.14, 0.98, 0.83, 0.06
        )  # a layout that is solved for each frame takes most of the time
        canvas = FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=8)
        for axis, (label, film) in zip(
            np.atleast_1d(figure.subplots(1, len(boards))), boards.items(), strict=True
        ):
            _show_joint(axis, film[i])
            axis.set_title(label, fontsize=8)
            if notes is not None and film is next(iter(boards.values())):
                _write_beside(axis, film[i], notes[i])
        _joint_legend(figure, len(film[i]) - 3)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=600, loop=0)
    write_bytes(path, buffer.getvalue())


def _write_beside(axis, board: np.ndarray, notes: dict[int, str]) -> None:
    """Under the cell of each hunter (above it in the last row), those that share one below each other."""
    shared: dict[tuple[int, int], int] = {}
    for seat, text in notes.items():
        for y, x in np.argwhere(board[seat] > 0.5):
            line = shared[y, x] = shared.get((y, x), -1) + 1
            down = -1 if y == board.shape[1] - 1 else 1
            style = dict(color=COLOURS[seat % 6], fontsize=6.5, weight="bold", ha="center", va="center")
            axis.text(
                x,
                y + down * (0.68 + 0.36 * line),
                text,
                bbox=dict(fc="white", alpha=0.75, lw=0, pad=0.6),
                **style,
            )


def calibration(panels: dict[str, dict[str, np.ndarray]], title: str) -> Figure:
    """What was said to be likely, and how often it was so, on logit axes: panels[title][label] is [3, n], mean probability,
    frequency, count (the size of a dot, by its logarithm). Bins that are empty are to be left out; 0 and 1 are drawn at
    the borders."""
    figure = Figure(figsize=(4.8 * len(panels), 4.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    low, ticks = 1e-5, (1e-5, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-5)
    names = ("0", ".001", ".1", ".5", ".9", ".999", "1")
    for axis, (name, series) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        axis.plot([low, 1 - low], [low, 1 - low], color="0.35", lw=1, ls="--", label="calibrated")
        for i, (label, (said, found, count)) in enumerate(series.items()):
            x, y = (np.clip(values, low, 1 - low) for values in (said, found))
            axis.plot(x, y, color=COLOURS[i % 7], lw=0.8, label=label)
            axis.scatter(x, y, 6 + 8 * np.log10(np.maximum(count, 1)), color=COLOURS[i % 7], alpha=0.6, lw=0)
        axis.set(
            xscale="logit",
            yscale="logit",
            xlim=(low / 2, 1 - low / 2),
            ylim=(low / 2, 1 - low / 2),
            title=name,
        )
        axis.set(xlabel="predicted probability", ylabel="frequency")
        for one in (axis.xaxis, axis.yaxis):
            one.set_ticks(ticks, names)
            one.set_minor_locator(NullLocator())
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    return figure


# ---- predicted transitions

ARROWS = ("↑", "↓", "←", "→", "stay", "stag", "hare", "?")  # actions in titles; -1, not known, is the last


def told_and_paid(actions: Sequence[int], rewards: Sequence[float]) -> str:
    """One transition in two lines."""
    return f"{' '.join(ARROWS[action] for action in actions)}\npaid {_numbers(rewards)}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join("0" if abs(value) < 5e-4 else f"{value:.3g}" for value in values)


def predicted_boards(
    before, after, expected, actions, rewards, predicted, heads: Sequence[str], title: str
) -> Figure:
    """n transitions as joint boards [n, A+3, H, W], under heads[i], the actions [n, A], the rewards and those predicted."""
    rows = {
        "before": before,
        "true next": after,
        "predicted next": expected,
        "error": np.abs(expected - after),
    }
    titles = [f"{head}\n{told_and_paid(told, paid)}\npredicted {_numbers(pays)}"
              for head, told, paid, pays in zip(heads, actions, rewards, predicted, strict=True)]  # fmt: skip
    return joint_boards(rows, titles, title)


def of_predictions(
    reliable: dict[str, np.ndarray], ticks: dict, depths: dict, title: str
) -> dict[str, Figure]:
    """File name -> figure. reliable: curves as `calibration` has them, of channels and of `reward > 0`; ticks[name][tick]
    and depths[name][step]: errors of one step, and of open-loop rollouts."""
    cells = {name: curve for name, curve in reliable.items() if name != "reward > 0"}
    rest = {name: {name: curve} for name, curve in reliable.items() if name not in cells}
    return {
        "calibration": calibration({"cells, by channel": cells} | rest, title),
        "error_by_tick": by_tick({name: {"one step": values} for name, values in ticks.items()}, title),
        "error_by_depth": curves(
            {name: {"open loop": values} for name, values in depths.items()}, {}, "step of a rollout"
        ),
    }
