"""Train the networks that the repository comes with, `pretrained/`, and judge them: `python -m benchmarks.pretrained`.

Two runs with the default settings on the default file; of each the best weights and what reading them needs are kept, and
its figures, on the test split and on the fresh file.
"""

from __future__ import annotations

import json
from pathlib import Path

import tracking
from benchmarks import machine
from benchmarks.results import ROOT, run
from pretrain_vae import load_vae
from train_world_model import load_world_model

FIGURES = ("top1", "top3", "nll")
EXACT = ("n", "exact_transitions", "exact_rewards", "nll")


def trained(script: str, *flags: str) -> Path:
    """Train with a script. Returns: the run's folder."""
    print(f"python {script} {' '.join(flags)}", flush=True)
    lines = run(script, *flags).splitlines()
    return ROOT / next(line.split(": ")[1] for line in lines if "model saved to: " in line)


def pack(checkpoint: dict, folder: Path, metrics: dict, fresh: dict) -> None:
    """Write a run's best checkpoint without what training alone needs, and metrics.json.

    A VAE's table, which is counted on its training data and only judged beside it, is left out: it is 50 times as large
    as the weights.

    Args: metrics: of the run; fresh: its figures on the fresh file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = tracking.weights_alone(checkpoint) | ({"table": None} if "table" in checkpoint else {})
    tracking.save_checkpoint(folder / "best.pt", kept)
    names = ("run", "seed", "args", "seconds", "samples", "transitions", "test")
    kept_metrics = {name: metrics[name] for name in names if name in metrics}
    tracking.write_json(folder / "metrics.json", kept_metrics | dict(fresh=fresh))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    vae = trained("pretrain_vae.py", "--loss", "moa")
    run("pretrain_vae.py", "--evaluate", str(vae), "--data", "fresh")
    report = read_json(vae / "evaluate_fresh_1001.json")
    fresh = {name: report["test"][name] for name in FIGURES} | {"kl_to_bayes": report["kl_to_bayes"]}
    fresh |= dict(n=report["samples"]["test"], bayes_nll=report["bayes"]["nll"])
    folder = ROOT / tracking.PRETRAINED["vae_ckpts"] / "dim16"
    pack(load_vae(vae)[1], folder, read_json(vae / "metrics.json"), fresh)

    world_model = trained("train_world_model.py")
    run("test_obs_reward_model.py", "--checkpoint", str(world_model), "--data", "fresh")
    report = read_json(world_model / "test" / "metrics.json")
    folder = ROOT / tracking.PRETRAINED["wm_ckpts"]
    metrics = read_json(world_model / "metrics.json")
    pack(load_world_model(world_model)[1], folder, metrics, {name: report[name] for name in EXACT})

    files = [path for path in sorted((ROOT / "pretrained").rglob("*")) if path.is_file()]
    for path in files:
        print(f"{path.relative_to(ROOT).as_posix()}: {path.stat().st_size:,} bytes")
    print(f"{sum(path.stat().st_size for path in files):,} bytes in all; {machine()}")


if __name__ == "__main__":
    tracking.run(main)
