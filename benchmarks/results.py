"""The results of `docs/pretrain_vae.md`, from the commands a user would type: `python -m benchmarks.results --help`.

Each run trains on the default data and is judged with `--evaluate` on the whole of the fresh file.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

import tracking
from benchmarks import machine
from tracking import figures

SCRIPT = Path(__file__).resolve().parent.parent / "pretrain_vae.py"
# The reconstruction needs more steps than the actions do: smaller batches.
RECON = ("--loss", "recon", "--batch-size", "128", "--learning-rate", "4e-3")
FRAME_BITS = math.log2(math.comb(64, 5) * 59 * math.comb(58, 4) * 54 * math.comb(53, 3))  # 4 hunters apart, on 8x8


@dataclass
class Options:
    what: Literal["moa", "recon"] = "moa"
    """the MOA head beside the exact observers, or exactly right frames by size of z"""
    seeds: tuple[int, ...] = (1, 2, 3)
    latent_dims: tuple[int, ...] = (16, 64, 256)
    """for `recon`"""
    figure: str = "docs/images/recon_curve.png"
    """for `recon`: where the curve is drawn"""


def train_and_judge(flags: tuple[str, ...]) -> dict:
    """Train, then judge on the fresh file. Returns: what `--evaluate` saved, and under `trained` metrics.json."""
    log = subprocess.run([sys.executable, SCRIPT, *flags], check=True, stdout=subprocess.PIPE, text=True).stdout
    folder = next(line.split(": ")[1] for line in log.splitlines() if line.startswith("[VAE] model saved to"))
    subprocess.run([sys.executable, SCRIPT, "--evaluate", folder, "--data", "fresh"], check=True, stdout=subprocess.DEVNULL)
    report = json.loads((Path(folder) / "evaluate_fresh_1001.json").read_text())
    return report | {"trained": json.loads((Path(folder) / "metrics.json").read_text())}


def moa(options: Options) -> pd.DataFrame:
    rows = []
    for seed in options.seeds:
        report = train_and_judge(("--seed", str(seed)))
        rows.append({"seed": seed, "predictor": "MOA", **report["test"], "kl_to_bayes": report["kl_to_bayes"]})
        rows[-1] |= {"seconds": report["trained"]["seconds"], "samples_per_second": report["trained"]["samples_per_second"]}
        rows += [{"seed": seed, "predictor": n, **report[n]} for n in ("majority", "uniform", "table", "bayes", "known")]
        print(rows[-6], flush=True)
    columns = ["top1", "top3", "nll", "brier", "ece", "kl", "kl_to_bayes", "seconds", "samples_per_second"]
    return pd.DataFrame(rows).groupby("predictor", sort=False)[columns].agg(["mean", "std"]).dropna(axis=1, how="all")


def recon(options: Options) -> pd.DataFrame:
    rows = []
    for dim in options.latent_dims:
        for seed in options.seeds:
            report = train_and_judge((*RECON, "--latent-dim", str(dim), "--seed", str(seed)))
            test, bits = report["test"], report["bits"]
            rows.append({"latent_dim": dim, "seed": seed, "exact": test["recon_exact"], "recon_bits": bits["recon"]})
            rows[-1] |= {"kl_bits": bits["kl"], "mse": test["recon_mse"], "seconds": report["trained"]["seconds"]}
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    figures.save(draw(table), options.figure)
    print(f"bits that a frame needs (4 hunters apart): {FRAME_BITS:.1f}")
    return table.drop(columns="seed").groupby("latent_dim").agg(["mean", "std"])


def draw(table: pd.DataFrame):
    """Exactly right frames, and bits lost and carried, by size of z."""
    figure = figures.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    dims, groups = sorted(table.latent_dim.unique()), table.groupby("latent_dim")
    left.errorbar(dims, groups.exact.mean() * 100, groups.exact.std() * 100, fmt="o-", color=figures.COLOURS[0])
    left.set(ylabel="frames with every cell right, %", ylim=(-3, 103))
    left.axhline(99.9, color="0.35", ls=":", lw=1, label="99.9 %")
    for colour, (key, label) in zip(
        figures.COLOURS, {"recon_bits": "lost (reconstruction NLL)", "kl_bits": "carried (KL of z)"}.items(), strict=False
    ):
        right.errorbar(dims, groups[key].mean(), groups[key].std(), fmt="o-", color=colour, label=label)
    right.axhline(FRAME_BITS, color="0.35", ls="--", lw=1, label=f"a frame needs {FRAME_BITS:.0f}")
    right.set(ylabel="bits a frame", yscale="log")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set(xlabel="size of z", xticks=dims, xticklabels=dims)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    return figure


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(machine())
    with pd.option_context("display.width", 200, "display.max_columns", 99, "display.float_format", "{:.4f}".format):
        print(moa(options).T if options.what == "moa" else recon(options).T)


if __name__ == "__main__":
    tracking.run(main, ValueError)
