"""Kill every script at random moments, resume it, and compare what is there with a run that nobody killed.

`python -m benchmarks.attacks --what kills` prints the table; tests/test_kills.py makes a few. A kill passes if the program
ends as it should (one line and 143, 130 or 129; SIGKILL says nothing), if the run can be resumed from whatever is saved,
and if the resumed run's files and TensorBoard points are those of the run that was not killed. Wall-clock fields aside.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
WALL_CLOCK = {
    "run",
    "checkpoint",
    "seconds",
    "train_seconds",
    "samples_per_second",
    "transitions_per_second",
    "sps",
    "SPS",
}
OUTPUTS = ("vae_ckpts", "wm_ckpts", "ppo_ckpts", "runs", "out")
SIGNALS = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}
SIGNALS = {name: code for name, code in SIGNALS.items() if hasattr(signal, name)}
MINUTES = 10  # after which a run counts as hanging

TRAIN_VAE = ["pretrain_vae.py", "--data", "small.npz", "--epochs", "4"]
TRAIN_WM = ["train_world_model.py", "--data", "small.npz", "--epochs", "4"]
PLAY = [
    "hop_ppo.py",
    "--num-envs",
    "64",
    "--num-steps",
    "8",
    "--total-timesteps",
    "6144",
    "--eval-every",
    "3",
]
PLAY += ["--eval-boards", "16", "--plan-boards", "4"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@dataclass
class Command:
    """A program to kill. needs: commands whose runs it reads, made once and never killed."""

    argv: list[str]
    needs: tuple[str, ...] = ()
    resumes: bool = True
    launcher: list[str] = field(default_factory=list)


COMMANDS = {
    "vae moa": Command(TRAIN_VAE),
    "vae recon": Command([*TRAIN_VAE, "--loss", "recon"]),
    "vae both": Command([*TRAIN_VAE, "--loss", "both"]),
    "vae torchrun": Command(TRAIN_VAE, launcher=TORCHRUN),
    "wm moves": Command(TRAIN_WM),
    "wm cells": Command([*TRAIN_WM, "--model", "cells"]),
    "wm contrastive": Command([*TRAIN_WM, "--contrastive-coef", "0.01"]),
    "ppo none": Command(PLAY),
    "ppo self": Command([*PLAY, "--co-players", "self", "--team-reward"]),
    "ppo oracle": Command([*PLAY, "--om", "oracle"]),
    "ppo belief": Command([*PLAY, "--om", "belief"], needs=("vae moa",)),
    "ppo latent": Command([*PLAY, "--om", "latent"], needs=("vae moa",)),
    "ppo real-ratio 0.5": Command([*PLAY, "--real-ratio", "0.5"], needs=("vae moa", "wm moves")),
    "ppo real-ratio 0": Command(
        [*PLAY, "--real-ratio", "0", "--data", "small.npz"], needs=("vae moa", "wm moves")
    ),
    "judge": Command(["test_obs_reward_model.py", "--data", "small.npz"], needs=("wm moves",), resumes=False),
    "collect": Command(["-m", "data.collect", "--samples", "60000", "--out", "out/c.npz"], resumes=False),
}


# ---- running


def start(command: Command, folder: Path, *more: str) -> subprocess.Popen:
    argv = [str(ROOT / word) if word.endswith(".py") else word for word in command.argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "stderr.txt").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, *command.launcher, *argv, *more],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )


def finish(process: subprocess.Popen, folder: Path) -> str:
    """Wait for its end. Returns: what went wrong, or ""."""
    try:
        code = process.wait(60 * MINUTES)
    except subprocess.TimeoutExpired:
        end_group(process)
        return f"still running after {MINUTES} minutes"
    text = (folder / "stderr.txt").read_text(errors="replace")
    return "" if code == 0 else f"exit code {code}: {text.strip()[-300:]}"


def end_group(process: subprocess.Popen) -> None:
    """SIGKILL to a program and all that it has started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def kill(process: subprocess.Popen, name: str) -> int:
    """Send a signal; SIGKILL to all its processes. Returns: the exit code."""
    if name == "SIGKILL":
        end_group(process)
    elif process.poll() is None:
        process.send_signal(getattr(signal, name))
    return process.wait(60 * MINUTES)


def run_folder(folder: Path) -> Path | None:
    """The run that a command has saved in `folder`."""
    saved = [path.parent for root in OUTPUTS[:3] for path in (folder / root).glob("*/**/last.pt")]
    return saved[0] if saved else None


# ---- comparing


def plain(value: Any) -> Any:
    """A value without the wall clock, tensors as arrays."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in WALL_CLOCK}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value.numpy() if isinstance(value, torch.Tensor) else value


def read(path: Path) -> Any:
    """What a file holds, without the wall clock. Raises: whatever its reader raises: the file is damaged."""
    if path.suffix == ".pt":
        return plain(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return plain(json.loads(path.read_text()))
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if name in WALL_CLOCK]).to_csv()
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    return path.read_bytes()


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a == b or (a != a and b != b)  # NaN is NaN


def points(folder: Path) -> list[tuple]:
    """All that TensorBoard shows of a run: tag, step, value; of pictures and texts the bytes."""
    events = EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("scalars", "images", "tensors", "histograms"), 0)
    )
    events.Reload()
    tags = events.Tags()
    shown: list[tuple] = []
    for tag in tags["scalars"]:
        timed = tag.rpartition("/")[2] in WALL_CLOCK
        shown += [(tag, point.step, 0 if timed else point.value) for point in events.Scalars(tag)]
    for tag in tags["images"]:
        shown += [(tag, point.step, point.encoded_image_string) for point in events.Images(tag)]
    for tag in filter(lambda tag: not tag.startswith("_hparams_/"), tags["tensors"]):
        shown += [(tag, point.step, point.tensor_proto.string_val[0]) for point in events.Tensors(tag)]
    return sorted(shown, key=str)


def files(folder: Path) -> dict[str, Path]:
    """Below `folder`, by their path with the run's name left out; locks and event files aside."""
    found = {}
    for root in OUTPUTS:
        for path in sorted((folder / root).glob("**/*")):
            is_log = path.name.startswith("events.out") or path.name.endswith(".lock")
            if path.is_file() and not is_log:
                parts = ["RUN" if "__" in part else part for part in path.relative_to(folder).parts]
                found["/".join(parts)] = path
    return found


def differences(expected: Path, found: Path) -> list[str]:
    """What differs between the outputs of two folders, a line each."""
    ours, theirs = files(found), files(expected)
    lines = [f"left over: {name}" for name in ours if name not in theirs]
    lines += [f"lost: {name}" for name in theirs if name not in ours]
    for name in theirs.keys() & ours.keys():
        try:
            same = equal(read(theirs[name]), read(ours[name]))
        except Exception as error:
            lines.append(f"unreadable: {name}: {error}")
            continue
        if not same:
            lines.append(f"differs: {name}")
    logs = [sorted((folder / "runs").glob("*__*")) for folder in (expected, found)]
    if [len(log) for log in logs] != [1, 1]:
        return lines if not any(logs) else [*lines, "differs: number of logs"]
    shown, wanted = points(logs[1][0]), points(logs[0][0])
    if shown != wanted:
        odd = set(shown) ^ set(wanted)
        names = sorted({f"{tag} {step}" for tag, step, _ in odd})[:4] or ["points shown twice"]
        lines.append(f"differs: TensorBoard: {', '.join(names)}")
    return lines


# ---- attacking


def deliver_signals() -> None:
    """Programs that are started inherit what is ignored here, as SIGHUP is under nohup and SIGINT in a script's
    background: no signal that kills may be."""
    for name in SIGNALS:
        if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.SIG_DFL)


class Range:
    """The folders of an attack below `folder`: the small data file, and runs that nobody kills."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds: dict[str, float] = {}
        deliver_signals()
        folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "data.collect", "--samples", "3000", "--seed", "5"]
        subprocess.run(
            [*argv, "--out", str(folder / "small.npz")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )

    def fresh(self, name: str, folder: Path) -> list[str]:
        """A folder for one run. Returns: the flags that name the runs it needs."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(self.folder / "small.npz", folder)
        flags = []
        for need in COMMANDS[name].needs:
            trained = run_folder(self.reference(need))
            assert trained is not None
            if name == "judge":  # it writes into the run: a copy of it
                trained = Path(shutil.copytree(trained, folder / trained.relative_to(self.reference(need))))
                flags += ["--checkpoint", str(trained)]
            else:
                flags += ["--vae" if need == "vae moa" else "--world-model", str(trained)]
        return flags

    def reference(self, name: str) -> Path:
        """The folder of a run that nobody kills. Raises: RuntimeError: it fails."""
        folder = self.folder / name.replace(" ", "-")
        if name not in self.seconds:
            flags = self.fresh(name, folder)
            began = time.perf_counter()
            problem = finish(start(COMMANDS[name], folder, *flags), folder)
            if problem:
                raise RuntimeError(f"{name}: {problem}")
            self.seconds[name] = time.perf_counter() - began
        return folder

    def attack(self, name: str, how: str, share: float) -> dict:
        """Kill a run after this share of its usual time, go on with it, and compare. Returns: a row of the table."""
        command, expected = COMMANDS[name], self.reference(name)
        folder = self.folder / "killed"
        flags = self.fresh(name, folder)
        process = start(command, folder, *flags)
        time.sleep(share * self.seconds[name])
        code = kill(process, how)
        in_time = code != 0
        problems = [] if command.launcher or not in_time else self.bad_end(expected, folder, how, code)
        saved = run_folder(folder) if command.resumes else None
        if saved:
            flags = ["--resume", str(saved)]
            if "small.npz" in command.argv and not name.startswith("ppo"):
                flags += ["--data", "small.npz"]
            command = Command([command.argv[0]], launcher=command.launcher)
        elif command.resumes:
            flags = self.fresh(name, folder)  # nothing was saved yet: begin again
        lost = finish(start(command, folder, *flags), folder)
        if lost:
            problems.append(f"lost: {lost}")
        else:
            problems += differences(expected, folder)
        row = dict(command=name, signal=how, share=round(share, 3), in_time=in_time, saved=saved is not None)
        return row | {"problems": problems}

    def bad_end(self, expected: Path, folder: Path, how: str, code: int) -> list[str]:
        """What is wrong with how a killed program ended."""
        text = (folder / "stderr.txt").read_text(errors="replace")
        lines = text.count("error: ")
        if how == "SIGKILL":
            good = lines == 0
        elif code == 128 - SIGNALS[how]:  # Python starts or ends: its own handler, and nothing to lose
            good = lines == 0 and (run_folder(folder) is None or not differences(expected, folder))
        else:
            good = code == SIGNALS[how] and lines == 1
        return [] if good and "Traceback" not in text else [f"ended badly: exit code {code}: {text[-200:]}"]


def kills(folder: Path, count: int, seed: int, names: list[str]) -> Iterator[dict]:
    """Kill these commands in turn, `count` times in all, with signals and at moments drawn from `seed`. A signal that comes
    when the program has ended is not counted: the program is then faster than it was thought to be."""
    rng = np.random.default_rng(seed)
    attacked = Range(folder)
    for i in range(count):
        name = names[i % len(names)]
        row = dict(in_time=False, problems=[])
        while not row["in_time"] and not row["problems"]:
            share = rng.random()
            row = attacked.attack(name, list(SIGNALS)[rng.integers(len(SIGNALS))], share)
            if not row["in_time"]:
                attacked.seconds[name] *= share
        yield row
