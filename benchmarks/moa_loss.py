"""Why is the MOA loss so much larger than the reconstruction loss? `python -m benchmarks.moa_loss`

Two answers, measured. A cross-entropy that is fed softmaxed probabilities is bounded: for 7 actions it lies in
[log(1 + 6/e), log(6 + e)] = [1.165, 2.165] whatever the network says, so "the loss stays at 1.6". And the two losses were
not in one unit: a mean over 320 cells, nearly all of them empty, beside nats per action. Here both are in nats per frame,
beside what no loss can go below.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

import tracking
from benchmarks import machine
from benchmarks.pretrain_vae import train_earlier
from data import DEFAULT_DATA, default_or_fresh
from data.datasets import load_samples
from metrics import observers, scores
from tracking import figures

BOUNDS = (math.log(1 + 6 / math.e), math.log(6 + math.e))


@dataclass
class Options:
    runs: tuple[str, ...]
    """folders of finished runs of pretrain_vae.py, --loss moa and recon: their metrics.json is drawn beside"""
    epochs: int = 10
    seed: int = 1
    figure: str = "docs/images/moa_loss.png"


def draw(curves: dict[str, list[dict]], observed: dict[str, float], bars: dict[str, float]):
    figure = figures.Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhspan(
        *BOUNDS, color="0.9", label=f"all that a doubled softmax can say [{BOUNDS[0]:.3f}, {BOUNDS[1]:.3f}]"
    )
    for colour, (label, curve) in zip(figures.COLOURS, curves.items(), strict=False):
        x = range(1, len(curve) + 1)
        left.plot(
            x, [row["loss"] for row in curve], "o-", ms=3, color=colour, label=f"{label}: training loss"
        )
        left.plot(x, [row["nll"] for row in curve], "--", color=colour, label=f"{label}: held-out NLL")
    left.axhline(
        observed["bayes"],
        color="0.35",
        lw=1,
        ls=":",
        label=f"bayes {observed['bayes']:.3f}: the entropy that is left",
    )
    left.set(title="one network, two losses", ylim=(0, None))
    figures.finish(left, "epoch", "nats per action")
    left.get_legend().remove()  # below, where it hides no curve
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, ncols=2, loc="outside lower left")
    colours = [figures.COLOURS[1] if "frame" in name else figures.COLOURS[0] for name in bars]
    right.barh(list(bars), [max(value, 1e-3) for value in bars.values()], color=colours)
    for i, value in enumerate(bars.values()):
        right.text(max(value, 1e-3) * 1.1, i, f"{value:.3g}", va="center", fontsize=8)
    right.set(xscale="log", xlim=(1e-3, 300), xlabel="nats per frame", title="one axis, one unit")
    right.xaxis.set_major_formatter("{x:g}")
    right.invert_yaxis()
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    return figure


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    torch.set_num_threads(1)
    print(machine())
    samples, curves = load_samples(default_or_fresh(DEFAULT_DATA)), {}
    for label, doubled in (("softmax twice", True), ("logits", False)):
        print(label)
        torch.manual_seed(options.seed)
        curves[label] = train_earlier(samples, options.epochs, doubled)
    low, high = (
        min(row["loss"] for row in curves["softmax twice"]),
        max(row["loss"] for row in curves["softmax twice"]),
    )
    print(
        f"softmax twice: training loss from {high:.4f} to {low:.4f}, bounds {BOUNDS[0]:.4f} and {BOUNDS[1]:.4f}"
    )
    val = samples.splits["val"]
    observed = observers.predictions(samples, val, observers.training_table(samples))
    observed = {name: float(scores.nll(p, samples.actions[val]).mean()) for name, p in observed.items()}
    print(
        "entropy that is left, held out, nats per action:",
        {name: round(nll, 4) for name, nll in observed.items()},
    )
    bars = {}
    for run in options.runs:  # each run's test split, the observers' too
        metrics = json.loads((tracking.find_folder(Path(run)) / "metrics.json").read_text())
        if metrics["test"]["nll"] is not None:
            bars |= {
                f"action: {name}": metrics[name]["nll"] for name in ("uniform", "table", "bayes", "known")
            }
            bars["action: MOA"] = metrics["test"]["nll"]
        if metrics["test"]["recon_nll"] is not None:
            bars[f"frame: z of {metrics['args']['latent_dim']}"] = metrics["test"]["recon_nll"]
    print({name: round(value, 4) for name, value in bars.items()})
    figures.save(draw(curves, observed, bars), options.figure)


if __name__ == "__main__":
    tracking.run(main, ValueError)
