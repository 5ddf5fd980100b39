"""The results of `docs/world_model.md`, from the commands a user would type: `python -m benchmarks.world_model --help`."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch

import tracking
from benchmarks import machine, regression
from benchmarks.results import ROOT, collected, run
from data import DEFAULT_DATA, default_or_fresh
from data.datasets import TransitionBatches, load_transitions
from envs import Rules, StagHunt, planes_to_joint, random_actions
from metrics.transitions import EvalTransitions
from metrics.violations import KINDS
from test_obs_reward_model import Judged, evaluate_steps, file_rules
from tracking import figures
from train_world_model import CachedWorldModel, JointState, load_world_model

LARGE = ("--env-args", "hunters=6", "stags=2", "hares=8", "blocks=12", "height=12", "width=12")
UNMASKED = ("--unmasked", "0.3")


@dataclass
class Options:
    what: Literal[
        "main", "needed", "ladder", "curve", "contrast", "random", "own", "flat", "speed", "cache", "case"
    ] = "main"
    """both models on fresh, RANDOM and larger boards, on actions as asked for; other numbers of hunters needed; from the
    earlier kind to moves, one thing at a time; transitions needed; the contrastive loss; prey that move; one hunter's action
    alone; flat files; imagined steps a second; the same with a cache; why hunters jump"""
    seeds: tuple[int, ...] = (1, 2, 3)
    models: tuple[str, ...] = ("moves", "cells")
    transitions: tuple[int, ...] = (500, 1000, 2500, 5000, 10000, 25000)
    """for `curve`"""
    rungs: tuple[str, ...] = (*regression.NETWORKS, "cells", "moves")
    """for `ladder`"""
    sizes: tuple[int, ...] = (1000, 5000, 0)
    """for `ladder`: training transitions, 0 is all"""
    learning_rate: float = 1e-3
    """for `ladder`: of the networks by squared error"""
    max_samples: int = 20_000
    """for `ladder`, `random`, `own`: so many transitions are judged"""
    coefs: tuple[float, ...] = (0.0, 0.1)
    """for `contrast`"""
    runs: tuple[str, ...] = ()
    """for `speed` and `cache`: folders of runs"""
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


def unmasked_train() -> str:
    """A file of the default size whose actions are to 30% uniform over all seven, legal or not."""
    return collected("unmasked_train_1", *UNMASKED)


def main_(options: Options) -> pd.DataFrame:
    files = {
        "NS/NH, fresh": "fresh",
        "RANDOM": collected("wm_random_4", "--steps", "100000", "--seed", "4", "--strategies", "RANDOM"),
        "12x12, 6 hunters": collected("wm_large_5", "--steps", "50000", "--seed", "5", *LARGE),
        "as asked for": "unmasked",
        "as asked for, 12x12, 6 hunters": collected(
            "wm_large_unmasked_5", "--steps", "50000", "--seed", "5", *LARGE, *UNMASKED
        ),
    }
    trained_on = {"legal": (), "as asked for": ("--data", unmasked_train())}
    settings = {"moves": ("legal",), "cells": ("as asked for", "legal")}
    rows = []
    for seed in options.seeds:
        for model, kinds in [(name, kind) for name in options.models for kind in settings[name]]:
            folder, trained = train("--seed", str(seed), "--model", model, *trained_on[kinds])
            for what, data in files.items():
                rows.append(
                    {"model": model, "trained on": kinds, "file": what, "training": trained["seconds"]}
                )
                rows[-1] |= judged(folder, data)
                print(rows[-1], flush=True)
    return summary(rows, ["model", "trained on", "file"])


def needed(options: Options) -> pd.DataFrame:
    """Six hunters, a stag that needs 1, 2, .., 6 of them: captures and failed hunts, on a fresh file of the same rules."""
    rows = []
    for count in range(1, 7):
        rules = ("--env-args", "hunters=6", f"hunters_needed={count}")
        flags = (*rules, "--strategies", "NS", "--steps", "20000")
        data = collected(f"wm_needed_{count}_1", "--seed", "1", *flags)
        fresh = collected(f"wm_needed_{count}_2", "--seed", "2", *flags)
        for seed in options.seeds:
            folder, _ = train("--seed", str(seed), "--data", data)
            found = judged(folder, fresh)
            report = json.loads((ROOT / folder / "test" / "metrics.json").read_text())
            row = {"hunters_needed": count, "seed": seed}
            row |= {
                key: found[key] for key in ("n", "wrong_transitions", "wrong_rewards", "violations_samples")
            }
            for event in ("capture", "failed_stag_hunt"):
                row |= {
                    f"{event}s": report["events"][event],
                    f"{event} exact": report["exact_by_event"][event],
                }
            rows.append(row)
            print(row, flush=True)
    return summary(rows, ["hunters_needed"]).T


def ladder(options: Options) -> pd.DataFrame:
    """From the earlier kind to moves, on legal actions and as asked for: 10 epochs of all transitions, or as many steps."""
    files = {
        "legal": (default_or_fresh(DEFAULT_DATA), "fresh"),
        "as asked for": (unmasked_train(), "unmasked"),
    }
    rows = []
    for (kind, (path, fresh)), seed in itertools.product(files.items(), options.seeds):
        data, judge_on = load_transitions(path), load_transitions(default_or_fresh(fresh), split=False)
        transitions = EvalTransitions.of(judge_on, np.arange(options.max_samples), True, seed)
        steps = 10 * math.ceil(len(data.splits["train"]) / 256)
        for n, rung in itertools.product(options.sizes, options.rungs):
            start = time.perf_counter()
            if rung in regression.NETWORKS:
                batches = TransitionBatches.of(data, torch.device("cpu"), own=False)
                index, rate = data.splits["train"][: n or None], options.learning_rate
                model = regression.train(batches, index, (8, 8), rung, seed, steps, learning_rate=rate)
            else:
                count = n or len(data.splits["train"])
                flags = ("--max-transitions", str(n), "--epochs", str(math.ceil(steps * 256 / count)))
                folder, _ = train("--model", rung, "--seed", str(seed), "--data", str(path), *flags)
                model = load_world_model(ROOT / folder)[0]
            seconds = time.perf_counter() - start
            torch.manual_seed(seed)
            rules, _ = file_rules(judge_on)
            counted = np.ones(len(KINDS), bool)
            judged = Judged(transitions, rules, counted, seed, torch.device("cpu"))
            found, _ = evaluate_steps(model.on(8, 8), judged)
            rows.append(
                {
                    "rung": rung,
                    "actions": kind,
                    "transitions": n or len(data.splits["train"]),
                    "seconds": seconds,
                }
            )
            rows[-1] |= {
                "exact": found["exact"].mean(),
                "exact_rewards": found["right_rewards"].all(1).mean(),
            }
            rows[-1] |= {key: 10_000 * found[key].any(1).mean() for key in ("argmax", "samples")}
            print(rows[-1], flush=True)
    return summary(rows, ["actions", "transitions", "rung"]).T


def curve(options: Options) -> pd.DataFrame:
    """Exact transitions and rewards on the test split, by how many transitions were learnt from: 4,000 steps of 64."""
    rows = []
    for seed in options.seeds:
        for model in options.models:
            for n in options.transitions:
                epochs = math.ceil(4000 * 64 / n)
                flags = (
                    "--model",
                    model,
                    "--max-transitions",
                    str(n),
                    "--batch-size",
                    "64",
                    "--epochs",
                    str(epochs),
                )
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
    """The moves with few transitions, where there is something to cure."""
    settings = {
        "moves, 500 transitions": ("--max-transitions", "500", "--batch-size", "64", "--epochs", "100")
    }
    keys = (
        "obs_mse",
        "reward_mse",
        "exact_transitions",
        "exact_rewards",
        "violations_argmax",
        "jumps",
        "hits_at_1",
    )
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
    moving, rows = ("--env-args", "prey_moves=0.5"), []
    data = collected("wm_moving_6", "--samples", "107010", "--seed", "6", *moving)
    fresh = collected("wm_moving_7", "--steps", "100000", "--seed", "7", *moving)
    for seed in options.seeds:
        for model in options.models:
            folder, trained = train("--seed", str(seed), "--data", data, "--model", model)
            found = judged(folder, fresh, "--max-samples", str(options.max_samples))
            rows.append({"model": model, "training": trained["seconds"], **found})
            print(rows[-1], flush=True)
    return summary(rows, ["model"])


def own(options: Options) -> pd.DataFrame:
    """Told one hunter's action alone, on 4x4 without blocks and on the default boards."""
    small = ("--env-args", "height=4", "width=4", "blocks=0", "hares=2")
    rows = []
    for what, data, fresh in (
        ("8x8", "", "fresh"),
        ("4x4", collected("wm_small_8", "--samples", "107010", "--seed", "8", *small),
         collected("wm_small_9", "--steps", "20000", "--seed", "9", *small)),
    ):  # fmt: skip
        for model in options.models:
            folder, _ = train("--actions", "own", "--model", model, *(("--data", data) if data else ()))
            rows.append(
                {
                    "file": f"{what}, {model}",
                    **judged(folder, fresh, "--max-samples", str(options.max_samples)),
                }
            )
            print(rows[-1], flush=True)
    return pd.DataFrame(rows).set_index("file").T


def flat(options: Options) -> pd.DataFrame:
    rows = []
    for name, flags in (("joint", ()), ("own", ("--own-actions",))):
        path = ROOT / "data" / f"flat_{name}.npz"
        if not path.exists():
            run("-m", "data.flatten", "--out", str(path), "--rows", "50000", *flags)
        for seed in options.seeds:
            for model in options.models:
                folder, _ = train("--seed", str(seed), "--data", str(path), "--model", model)
                rows.append({"file": f"4x4x7, {name} actions, {model}", **judged(folder, str(path))})
                print(rows[-1], flush=True)
    return summary(rows, ["file"])


def speed(options: Options) -> pd.DataFrame:
    """Imagined board-steps a second, sampled, beside the real game's: all in turn, on one thread."""
    models = [load_world_model(folder)[0].on(8, 8) for folder in options.runs]
    models = {model.kind: model for model in models}
    torch.set_num_threads(1)
    rows = []
    for boards in (1024, 4096):
        env = StagHunt(boards, Rules())
        rng = np.random.default_rng(0)
        states = joint_states(env, seed=1)
        start = JointState.of(states, (1, 4))
        seconds = defaultdict(list)
        for _ in range(30):
            actions = random_actions(env, rng).astype(np.int64)
            chosen = torch.as_tensor(actions)
            calls = {"real": partial(env.step, actions)}
            for kind, model in models.items():
                calls[f"{kind}, planes"] = partial(model.sample, states, chosen)
            if "moves" in models:
                calls["moves, cells in and out"] = partial(models["moves"].step, start, chosen)
            for name, call in calls.items():
                seconds[name].append(timed(call)[1])
        rows += speed_rows(boards, seconds)
    return pd.DataFrame(rows)


def cache(options: Options) -> pd.DataFrame:
    """Imagined board-steps a second on 1,024 boards that are played on, with and without CachedWorldModel, in turn on one
    thread; the first tick, in which the cache is filled, is left out."""
    model = load_world_model(options.runs[0])[0].on(8, 8)
    models = {"ObjectWorldModel": model, "CachedWorldModel": CachedWorldModel(model)}
    torch.set_num_threads(1)
    boards = 1024
    generator = torch.Generator().manual_seed(0)
    seconds = defaultdict(list)
    for episode in range(5):
        state = JointState.of(joint_states(StagHunt(boards, Rules()), seed=episode), (1, 4))
        for _ in range(Rules().horizon):
            actions = torch.randint(7, (boards, 4), generator=generator)
            for name, stepped in models.items():
                (next_state, _, _), taken = timed(partial(stepped.step, state, actions))
                seconds[name].append(taken)
            state = next_state
    rows = speed_rows(boards, {name: taken[1:] for name, taken in seconds.items()})
    plain, cached = (row["board-steps/s"] for row in rows)
    return pd.DataFrame(rows).assign(factor=[1.0, cached / plain])


def joint_states(env: StagHunt, seed: int) -> torch.Tensor:
    """The start of all boards: uint8 [B, A+3, K]."""
    return torch.as_tensor(planes_to_joint(env.reset(seed=seed))).flatten(2)


def timed(call: Callable[[], object]) -> tuple:
    """What it returns, and the seconds it took."""
    start = time.perf_counter()
    found = call()
    return found, time.perf_counter() - start


def speed_rows(boards: int, seconds: dict[str, list[float]]) -> list[dict]:
    return [
        {"boards": boards, "what": name, "board-steps/s": boards / np.median(taken)}
        for name, taken in seconds.items()
    ]


def case(options: Options) -> pd.DataFrame:
    """Rows of 4x4x7 that tell one hunter's action: a held-out row that pays nothing, for which the regression promises some
    0.04 and paints a hunter two cells away, and what the moves say of it."""
    path = ROOT / "data" / "flat_own.npz"
    if not path.exists():
        run("-m", "data.flatten", "--out", str(path), "--rows", "50000", "--own-actions")
    data = load_transitions(path)
    batches = TransitionBatches.of(data, torch.device("cpu"), own=False)
    index = data.splits["train"][batches.outcomes.possible[data.splits["train"]]]
    steps = 10 * math.ceil(len(index) / 256)
    models = [regression.train(batches, index, (4, 4), "broadcast", 1, steps)]
    models.append(load_world_model(ROOT / train("--data", str(path), "--actions", "own")[0])[0])
    index = np.flatnonzero(batches.outcomes.possible)[-5000:]  # of the test split
    states, actions, truth, rewards, _ = batches.take(index, random=False)
    painted, moves = (model.predict(states, actions) for model in models)
    there = states[:, :4].any(2)
    cell = states[:, :4].float().argmax(2)[..., None]
    cells = torch.arange(16)
    far = (cells // 4 - cell // 4).abs() + (cells % 4 - cell % 4).abs() >= 2
    jumped = (painted.expected[:, :4] * far).amax(
        2
    )  # [n, 4], the most that is painted further than a cell away
    other = there & (actions < 0) & truth[:, :4].any(2)
    odd = (painted.rewards - 0.042).abs() + torch.where((actions >= 0) & there & (rewards == 0), 0.0, 9.0)
    score = torch.where(other, jumped, 0.0).amax(1) - 50 * odd.amin(1)
    best = score.topk(3).indices
    rows = []
    for i in best.tolist():
        own, who = int((actions[i] >= 0).int().argmax()), int(torch.where(other[i], jumped[i], 0.0).argmax())
        rows.append({"row": int(index[i]), "own": own, "action": int(actions[i, own])})
        rows[-1] |= {"regression pays": float(painted.rewards[i, own])}
        rows[-1] |= {
            "P(reward > 0)": float(moves.reward_prob[i, own]),
            "moves' mean": float(moves.expected_rewards[i, own]),
        }
        rows[-1] |= {
            "true": float(rewards[i, own]),
            "hunter": who,
            "painted two cells away": float(jumped[i, who]),
        }
        rows[-1] |= {
            "where it may go, moves": [round(p, 3) for p in moves.expected[i, who].tolist() if p > 0.005]
        }
    shape = (-1, 7, 4, 4)
    boards = {"before": states, "true next": truth, "regression": painted.expected, "moves": moves.expected}
    boards |= {"moves, a sample": models[1].sample(states[best], actions[best])[0]}
    boards = {
        name: (b if len(b) == len(best) else b[best]).float().numpy().reshape(shape)
        for name, b in boards.items()
    }
    text = (
        "row {row}, hunter {own}'s action is told\nregression pays it {regression pays:.3f}, truth {true:.0f}"
    )
    heads = [text.format(**row) for row in rows]
    figures.save(
        figures.joint_boards(boards, heads, "what may happen, painted as one board, and as moves"),
        options.case_figure,
    )
    return pd.DataFrame(rows).T


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(machine(), flush=True)
    parts = dict(
        main=main_, needed=needed, ladder=ladder, curve=curve, contrast=contrast, random=random, own=own
    )
    parts |= dict(flat=flat, speed=speed, cache=cache, case=case)
    with pd.option_context("display.width", 250, "display.max_rows", 300, "display.max_columns", 99,
                           "display.float_format", "{:.6g}".format):  # fmt: skip
        print(parts[options.what](options))


if __name__ == "__main__":
    tracking.run(main, ValueError)
