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
import torch

import tracking
from benchmarks import machine
from data import default_or_fresh
from data.datasets import load_samples
from metrics import scores
from metrics.vae_reports import predict
from pretrain_vae import VAE, make_batches
from tracking import figures

ROOT = Path(__file__).resolve().parent.parent
# The reconstruction needs more steps than the actions do: smaller batches.
RECON = ("--loss", "recon", "--batch-size", "128", "--learning-rate", "4e-3")
UNSEEN_BY = ("moa", "bayes", "belief", "bayes_filter", "uniform")  # whose figures `unseen` shows
FRAME_BITS = math.log2(
    math.comb(64, 5) * 59 * math.comb(58, 4) * 54 * math.comb(53, 3)
)  # 4 hunters apart, on 8x8


@dataclass
class Options:
    what: Literal["moa", "snowdrift", "untrained", "observation", "million", "kl", "unseen", "recon"] = "moa"
    """the MOA head beside the exact observers: as it is by default, on the snowdrift, before training, from single
    observations, from a million samples, by KL weight, on behaviour that it never saw; or exactly right frames by size
    of z"""
    seeds: tuple[int, ...] = (1, 2, 3)
    kl_coefs: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    """for `kl`"""
    latent_dims: tuple[int, ...] = (16, 64, 256)
    """for `recon`"""
    figure: str = "docs/images/recon_curve.png"
    """for `recon`: where the curve is drawn"""


def run(*words: str) -> str:
    """A command of this repository. Returns: what it printed."""
    return subprocess.run(
        [sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ).stdout


def collected(name: str, *flags: str) -> str:
    """data/<name>.npz, collected if it is not there."""
    path = ROOT / "data" / f"{name}.npz"
    if not path.exists():
        run("-m", "data.collect", "--out", str(path), *flags)
    return str(path)


def train(*flags: str) -> tuple[str, dict]:
    """Returns: the run's folder and its metrics.json."""
    log = run("pretrain_vae.py", *flags)
    folder = next(line.split(": ")[1] for line in log.splitlines() if line.startswith("[VAE] model saved to"))
    return folder, json.loads((ROOT / folder / "metrics.json").read_text())


def judge(folder: str, data: str) -> dict:
    """What `--evaluate` saves."""
    log = run("pretrain_vae.py", "--evaluate", folder, "--data", data)
    saved = next(line.split(": ")[1] for line in log.splitlines() if line.startswith("[VAE] saved"))
    return json.loads((ROOT / saved).read_text())


def row_of(report: dict, trained: dict) -> dict:
    """The figures of a run on one file, and how far they are from those of the observers."""
    row = dict(report["test"]) | {
        "kl_to_bayes": report["kl_to_bayes"],
        "used_dimensions": report["used_dimensions"],
    }
    if report["bayes"]:
        row |= {f"{key}_below_bayes": report["bayes"][key] - row[key] for key in ("top1", "top3")}
    if report["goal"]:
        row |= {
            "goal_nll": report["goal"]["nll"],
            "goal_above_known": report["goal"]["nll"] - report["goal"]["known"]["nll"],
        }
        row["kl_known"] = report["goal"]["kl"]
    for tick in ("2", "5", "10"):
        if found := (report["probe"] or {}).get(tick):
            row |= {f"probe_{tick}": found["probe"], f"posterior_{tick}": found["posterior"]}
    return row | {"seconds": trained["seconds"], "samples_per_second": trained["samples_per_second"]}


def moa(options: Options, *flags: str) -> pd.DataFrame:
    rows = []
    for seed in options.seeds:
        folder, trained = train("--seed", str(seed), *flags)
        report = judge(folder, "fresh")
        rows.append({"seed": seed, "predictor": "MOA", **row_of(report, trained)})
        rows += [
            {"seed": seed, "predictor": n, **report[n]}
            for n in ("majority", "uniform", "table", "bayes", "known")
        ]
        print(rows[-6], flush=True)
    table = pd.DataFrame(rows).drop(columns="seed").groupby("predictor", sort=False).agg(["mean", "std"])
    return table.dropna(axis=1, how="all").T


def untrained(options: Options) -> pd.DataFrame:
    """The same network with the weights that a run of the seed begins with: what is built in, without any example."""
    samples, rows = load_samples(default_or_fresh("fresh"), split=False), []
    batches = make_batches(samples, torch.device("cpu"), "moa")
    for seed in options.seeds:
        torch.manual_seed(seed)
        model = VAE(*samples.frames.shape[2:], ticks=batches.last_tick + 1).eval()
        rows.append(
            {"seed": seed}
            | scores.score(predict(model, batches, samples.splits["all"]).probs, samples.actions)
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows).drop(columns="seed").agg(["mean", "std"]).T


def million(options: Options) -> pd.DataFrame:
    data = collected("million_2", "--samples", "1000000", "--seed", "2")
    return moa(options, "--data", data, "--epochs", "3")


def kl(options: Options) -> pd.DataFrame:
    rows = []
    for coef in options.kl_coefs:
        folder, trained = train("--seed", str(options.seeds[0]), "--kl-coef", str(coef))
        rows.append({"kl_coef": coef, **row_of(judge(folder, "fresh"), trained)})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows).set_index("kl_coef").T


def unseen(options: Options) -> pd.DataFrame:
    """Hunters that play RANDOM, hunters that turn from stag to hare or back at tick 6, and RANDOM ones among others:
    calibration and NLL by tick, with and without a belief that allows for them."""
    files = {
        "as in training": "fresh",
        "switch at 6": collected("switch_3", "--steps", "30000", "--seed", "3", "--switch-tick", "6"),
        "RANDOM": collected("random_4", "--steps", "30000", "--seed", "4", "--strategies", "RANDOM"),
        "NS, NH, RANDOM": collected(
            "strangers_5", "--steps", "30000", "--seed", "5", "--strategies", "NS", "NH", "RANDOM"
        ),
    }
    folder, _ = train("--seed", str(options.seeds[0]))
    rows = []
    for what, data in files.items():
        report = judge(folder, data)
        for when in ("all", "5", "6", "7", "8", "10", "15"):
            found = report["by_tick"].get(when) if when != "all" else None
            own = {"moa": report["test"]} | {n: report[n] for n in UNSEEN_BY[1:]} if when == "all" else found
            for name in UNSEEN_BY:
                if own and own.get(name):
                    figures_ = {key: own[name].get(key) for key in ("top1", "nll", "ece")}
                    rows.append({"hunters": what, "tick": when, "predictor": name} | figures_)
        if report["none"]:
            print(f"{what}: P(none) at tick 10: {report['none']['10']}")
    return pd.DataFrame(rows).set_index(["hunters", "tick", "predictor"]).unstack()


def recon(options: Options) -> pd.DataFrame:
    rows = []
    for dim in options.latent_dims:
        for seed in options.seeds:
            folder, trained = train(*RECON, "--latent-dim", str(dim), "--seed", str(seed))
            report = judge(folder, "fresh")
            test, bits = report["test"], report["bits"]
            rows.append(
                {"latent_dim": dim, "seed": seed, "exact": test["recon_exact"], "recon_bits": bits["recon"]}
            )
            rows[-1] |= {"kl_bits": bits["kl"], "mse": test["recon_mse"], "seconds": trained["seconds"]}
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    figures.save(draw(table), options.figure)
    print(f"bits that a frame needs (4 hunters apart): {FRAME_BITS:.1f}")
    return table.drop(columns="seed").groupby("latent_dim").agg(["mean", "std"]).T


def draw(table: pd.DataFrame):
    """Exactly right frames, and bits lost and carried, by size of z. A row a run; bars: standard deviation of the seeds."""
    figure = figures.Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(f"mean and standard deviation of {table.seed.nunique()} seeds" if table.seed.nunique() > 1
                    else f"mean of seeds {table.seed.iloc[0]}", fontsize=10)  # fmt: skip
    left, right = figure.subplots(1, 2)
    dims, groups = sorted(table.latent_dim.unique()), table.groupby("latent_dim")
    style = {"fmt": "o-", "capsize": 3}
    spread = groups.exact.std() * 100
    left.errorbar(dims, groups.exact.mean() * 100, spread, color=figures.COLOURS[0], label="frames", **style)
    left.set(ylim=(-3, 103))
    left.axhline(99.9, color="0.35", ls=":", lw=1, label="99.9 %")
    labels = {"recon_bits": "lost (reconstruction NLL)", "kl_bits": "carried (KL of z)"}
    for colour, (key, label) in zip(figures.COLOURS, labels.items(), strict=False):
        right.errorbar(dims, groups[key].mean(), groups[key].std(), color=colour, label=label, **style)
    right.axhline(FRAME_BITS, color="0.35", ls="--", lw=1, label=f"a frame needs {FRAME_BITS:.0f}")
    right.set(yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    for axis, ylabel in ((left, "frames with every cell right, %"), (right, "bits a frame")):
        axis.set_xscale("log", base=2)
        axis.set(xticks=dims, xticklabels=dims)
        figures.finish(axis, "size of z", ylabel)
    return figure


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(machine())
    with pd.option_context(
        "display.width",
        250,
        "display.max_rows",
        200,
        "display.max_columns",
        99,
        "display.float_format",
        "{:.4f}".format,
    ):
        if options.what == "observation":
            print(moa(options, "--context", "observation"))
        elif options.what == "snowdrift":
            print(moa(options, "--data", "data/snowdrift_4a6d_8x8.npz"))
        else:
            print(
                dict(moa=moa, untrained=untrained, million=million, kl=kl, unseen=unseen, recon=recon)[
                    options.what
                ](options)
            )


if __name__ == "__main__":
    tracking.run(main, ValueError)
