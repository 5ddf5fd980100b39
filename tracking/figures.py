"""Figures that several scripts draw: plain arrays in, a matplotlib Figure out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tracking import write_bytes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito, 2008


def save(figure: Figure, path: str | Path, writer=None, step: int = 0) -> None:
    """As PNG at `path` and, under the file's name, in TensorBoard."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
    if writer is not None:
        writer.add_figure(f"figures/{Path(path).stem}", figure, step)


def curves(panels: dict[str, dict[str, Sequence[float]]], lines: dict[str, dict[str, float]], xlabel: str) -> Figure:
    """One panel a unit, so that each term can be read: panels[title][label] is a curve, lines[title][label] a level."""
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for axis, (title, series) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for colour, (label, values) in zip(COLOURS, series.items(), strict=False):
            axis.plot(np.arange(1, len(values) + 1), values, "o-", ms=3, color=colour, label=label)
        for style, (label, level) in zip(("-.", "--", ":", (0, (1, 3))), lines.get(title, {}).items(), strict=False):
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
        axis.bar(offset, np.nan_to_num(np.asarray(values, float)), width * 0.92, color=COLOURS[i], label=label)
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
    axis.set(xticks=ticks, yticks=ticks, yticklabels=names, xlabel="predicted (top-1)", ylabel="taken", title=title)
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
    axis.set(xlabel="confidence (p of the most likely action)", ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure


def by_tick(panels: dict[str, dict[str, dict[int, float]]], title: str) -> Figure:
    """One panel a figure, one curve a predictor: panels[title][label][tick]."""
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axis, (name, series) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for i, (label, values) in enumerate(series.items()):
            axis.plot(values.keys(), values.values(), "-o" if i == 0 else "--", ms=3, color=COLOURS[i], label=label)
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
                shade = (plane if image[quarter].shape[0] == len(plane) else np.kron(plane, np.ones((2, 2))))[..., None]
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
