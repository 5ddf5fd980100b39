"""The results of `docs/world_model.md`, from the commands a user would type: `python -m benchmarks.world_model --help`."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch

import tracking
from benchmarks import machine
from benchmarks.results import ROOT, collected, run
from data.batches import TransitionBatches
from data.transitions import load_transitions
from envs import Rules, StagHunt, planes_to_joint, random_actions
from tracking import figures
from train_world_model import Boards, load_world_model

LARGE = ("--rules.hunters", "6", "--rules.stags", "2", "--rules.hares", "8", "--rules.blocks", "12",
         "--rules.height", "12", "--rules.width", "12")  # fmt: skip
REGRESSION = ("--model", "regression", "--epochs", "10")


@dataclass
class Options:
    what: Literal["main", "regression", "curve", "contrast", "random", "own", "flat", "speed", "case"] = "main"
    """the default model on fresh, RANDOM and larger boards; the regression; transitions needed; the contrastive loss; prey
    that move; one hunter's action alone; flat files; imagined steps a second; why hunters jump"""
    seeds: tuple[int, ...] = (1, 2, 3)
    transitions: tuple[int, ...] = (500, 1000, 2500, 5000, 10000, 25000)
    """for `curve`"""
    models: tuple[str, ...] = ("moves", "regression")
    """for `curve`"""
    coefs: tuple[float, ...] = (0.0, 0.1)
    """for `contrast`"""
    run: str = ""
    """for `speed`: folder of a run"""
    figure: str = "docs/images/wm_curve.png"
    """for `curve`: where it is drawn"""
    case_figure: str = "docs/images/wm_case.png"
    """for `case`: where it is drawn"""


def train(*flags: str) -> tuple[str, dict]:
    """Returns: the run's folder and its metrics.json."""
    log = run("train_world_model.py", *flags)
    folder = next(line.split(": ")[1] for line in log.splitlines() if line.startswith("[WM] model saved to"))
    return folder, json.loads((ROOT / folder / "metrics.json").read_text())


def judged(folder: str, data: str, *flags: str) -> dict:
    """What test_obs_reward_model.py says of a run, the figures that are single numbers."""
    run("test_obs_reward_model.py", "--checkpoint", folder, "--data", data, *flags)
    said = json.loads((ROOT / folder / "test" / "metrics.json").read_text())
    row = {key: value for key, value in said.items() if isinstance(value, (int, float))}
    row |= {f"floor_{key}": value for key, value in said["floor"].items() if value is not None}
    for how in ("argmax", "samples"):
        row |= {f"violations_{how}": said["violations_per_10k"][how]["total"]}
    row["jumps"] = said["violations_per_10k"]["argmax"].get("jump")
    row["untrained_exact"] = said["untrained"]["exact_transitions"]
    return row | {f"rollout_{k}": said["rollout"][k]["exact"] for k in said["rollout"]}


def summary(rows: list[dict], by: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows).groupby(by, sort=False).agg(["mean", "std"]).dropna(axis=1, how="all").T


def main_(options: Options) -> pd.DataFrame:
    files = {
        "NS/NH, fresh": "fresh",
        "RANDOM": collected("wm_random_4", "--steps", "100000", "--seed", "4", "--strategies", "RANDOM"),
        "12x12, 6 hunters": collected("wm_large_5", "--steps", "50000", "--seed", "5", *LARGE),
    }
    rows = []
    for seed in options.seeds:
        folder, trained = train("--seed", str(seed))
        for what, data in files.items():
            rows.append({"file": what, "training": trained["seconds"], **judged(folder, data)})
            print(rows[-1], flush=True)
    return summary(rows, ["file"])


def regression(options: Options) -> pd.DataFrame:
    rows = []
    for seed in options.seeds:
        folder, trained = train("--seed", str(seed), *REGRESSION)
        rows.append({"file": "fresh", "training": trained["seconds"], **judged(folder, "fresh")})
        print(rows[-1], flush=True)
    return summary(rows, ["file"])


def curve(options: Options) -> pd.DataFrame:
    """Exact transitions and rewards on the test split, by how many transitions were learnt from: 4,000 steps of 64."""
    rows = []
    for seed in options.seeds:
        for model in options.models:
            for n in options.transitions:
                epochs = math.ceil(4000 * 64 / n)
                flags = ("--model", model, "--max-transitions", str(n), "--batch-size", "64", "--epochs", str(epochs))
                _, trained = train("--seed", str(seed), *flags)
                found = {key: trained["test"][key] for key in ("exact_transitions", "exact_rewards")}
                rows.append({"model": model, "transitions": n} | found)
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    figure = figures.Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    for colour, (model, part) in zip(figures.COLOURS, table.groupby("model", sort=False), strict=False):
        mean = part.groupby("transitions").exact_transitions.agg(["mean", "min", "max"])
        axis.plot(mean.index, mean["mean"], "o-", ms=4, color=colour, label=model)
        axis.fill_between(mean.index, mean["min"], mean["max"], color=colour, alpha=0.2, lw=0)
    axis.axhline(0.999, color="0.35", ls=":", lw=1, label="99.9 %")
    axis.set(xscale="log", xlabel="training transitions", ylabel="exact transitions, held out")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    figures.save(figure, options.figure)
    return summary(rows, ["model", "transitions"]).T


def contrast(options: Options) -> pd.DataFrame:
    """The moves with few transitions, where there is something to cure; the regression with as many as the time allows."""
    settings = {
        "moves, 500 transitions": ("--max-transitions", "500", "--batch-size", "64", "--epochs", "100"),
        "regression, 10,000 transitions": ("--model", "regression", "--max-transitions", "10000", "--epochs", "10"),
    }
    keys = ("obs_mse", "reward_mse", "exact_transitions", "exact_rewards", "violations_argmax", "jumps", "hits_at_1")
    rows = []
    for seed in options.seeds:
        for coef in options.coefs:
            for model, flags in settings.items():
                folder, _ = train("--seed", str(seed), *flags, "--contrastive-coef", str(coef))
                found = judged(folder, "fresh", "--max-samples", "20000")
                rows.append({"model": model, "coef": coef} | {key: found[key] for key in keys})
                print(rows[-1], flush=True)
    return summary(rows, ["model", "coef"]).T


def random(options: Options) -> pd.DataFrame:
    moving, rows = ("--rules.prey-moves", "0.5"), []
    data = collected("wm_moving_6", "--samples", "107010", "--seed", "6", *moving)
    fresh = collected("wm_moving_7", "--steps", "100000", "--seed", "7", *moving)
    for seed in options.seeds:
        folder, trained = train("--seed", str(seed), "--data", data)
        rows.append({"file": "prey_moves 0.5", "training": trained["seconds"], **judged(folder, fresh)})
        print(rows[-1], flush=True)
    return summary(rows, ["file"])


def own(options: Options) -> pd.DataFrame:
    """Told one hunter's action alone, on 4x4 without blocks and on the default boards."""
    small = ("--rules.height", "4", "--rules.width", "4", "--rules.blocks", "0", "--rules.hares", "2")
    rows = []
    for what, data, fresh in (
        ("8x8", "", "fresh"),
        ("4x4", collected("wm_small_8", "--samples", "107010", "--seed", "8", *small),
         collected("wm_small_9", "--steps", "20000", "--seed", "9", *small)),
    ):  # fmt: skip
        folder, _ = train("--actions", "own", *(("--data", data) if data else ()))
        rows.append({"file": what, **judged(folder, fresh, "--max-samples", "20000")})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows).set_index("file").T


def flat(options: Options) -> pd.DataFrame:
    rows = []
    for name, flags in (("joint", ()), ("own", ("--own-actions",))):
        path = ROOT / "data" / f"flat_{name}.npz"
        if not path.exists():
            run("-m", "data.flatten", "--out", str(path), "--rows", "50000", *flags)
        for seed in options.seeds:
            folder, _ = train("--seed", str(seed), "--data", str(path))
            rows.append({"file": f"4x4x7, {name} actions", **judged(folder, str(path))})
            print(rows[-1], flush=True)
    return summary(rows, ["file"])


def speed(options: Options) -> pd.DataFrame:
    """Imagined board-steps a second beside the real game's, on one thread and two."""
    model, rows = load_world_model(options.run)[0].on(8, 8), []
    for boards in (1024, 4096):
        env, rng = StagHunt(boards, Rules()), np.random.default_rng(0)
        states = torch.as_tensor(planes_to_joint(env.reset(seed=1)).reshape(boards, 7, 64))
        start, turns = Boards.of(states, 1, 4), 30
        actions = [random_actions(env, rng).astype(np.int64) for _ in range(turns)]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            imagined, played = [], []
            for action in actions:
                now, told = time.perf_counter(), torch.as_tensor(action)
                model.imagine(start, told)
                imagined.append(time.perf_counter() - now)
                now = time.perf_counter()
                env.step(action)
                played.append(time.perf_counter() - now)
            rows.append({"boards": boards, "threads": threads, "imagined": boards / np.median(imagined)})
            rows[-1] |= {"real": boards / np.median(played)}
    return pd.DataFrame(rows)


def case(options: Options) -> pd.DataFrame:
    """Rows of 4x4x7 that tell one hunter's action: a held-out row that pays nothing, for which the regression promises some
    0.04 and paints a hunter two cells away, and what the moves say of it."""
    path = ROOT / "data" / "flat_own.npz"
    if not path.exists():
        run("-m", "data.flatten", "--out", str(path), "--rows", "50000", "--own-actions")
    flags = ("--data", str(path), "--actions", "own")
    models = [load_world_model(ROOT / train(*flags, *extra)[0])[0] for extra in (REGRESSION, ())]
    batches = TransitionBatches.of(load_transitions(path), torch.device("cpu"), own=False)
    index = np.flatnonzero(batches.outcomes.possible)[-5000:]  # of the test split
    states, actions, truth, rewards, _ = batches.take(index, random=False)
    regression, moves = (model.predict(states, actions) for model in models)
    there, at = states[:, :4].any(2), states[:, :4].float().argmax(2)
    far = (torch.arange(16) // 4 - at[..., None] // 4).abs() + (torch.arange(16) % 4 - at[..., None] % 4).abs() >= 2
    jumped = (regression.expected[:, :4] * far).amax(2)  # [n, 4], the most that is painted further than a cell away
    other = there & (actions < 0) & truth[:, :4].any(2)
    odd = (regression.rewards - 0.042).abs() + torch.where((actions >= 0) & there & (rewards == 0), 0.0, 9.0)
    score = torch.where(other, jumped, 0.0).amax(1) - 50 * odd.amin(1)
    best = score.topk(3).indices
    rows = []
    for i in best.tolist():
        own, who = int((actions[i] >= 0).int().argmax()), int(torch.where(other[i], jumped[i], 0.0).argmax())
        rows.append({"row": int(index[i]), "own": own, "action": int(actions[i, own])})
        rows[-1] |= {"regression pays": float(regression.rewards[i, own])}
        rows[-1] |= {"P(reward > 0)": float(moves.positive[i, own]), "moves' mean": float(moves.expected_rewards[i, own])}
        rows[-1] |= {"true": float(rewards[i, own]), "hunter": who, "painted two cells away": float(jumped[i, who])}
        rows[-1] |= {"where it may go, moves": [round(p, 3) for p in moves.expected[i, who].tolist() if p > 0.005]}
    shape = (-1, 7, 4, 4)
    boards = {"before": states, "true next": truth, "regression": regression.expected, "moves": moves.expected}
    boards |= {"moves, a sample": models[1].sample(states[best], actions[best])[0]}
    boards = {name: (b if len(b) == len(best) else b[best]).float().numpy().reshape(shape) for name, b in boards.items()}
    text = "row {row}, hunter {own}'s action is told\nregression pays it {regression pays:.3f}, truth {true:.0f}"
    heads = [text.format(**row) for row in rows]
    figures.save(
        figures.joint_boards(boards, heads, "what may happen, painted as one board, and as moves"), options.case_figure
    )
    return pd.DataFrame(rows).T


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(machine(), flush=True)
    parts = dict(main=main_, regression=regression, curve=curve, contrast=contrast, random=random, own=own, flat=flat)
    parts |= dict(speed=speed, case=case)
    with pd.option_context("display.width", 250, "display.max_rows", 300, "display.max_columns", 99,
                           "display.float_format", "{:.6g}".format):  # fmt: skip
        print(parts[options.what](options))


if __name__ == "__main__":
    tracking.run(main, ValueError)
