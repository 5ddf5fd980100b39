"""Bad flags and bad states of the machine, each of which must end in one line and exit code 2: for whoever adds a flag.

Every flag of every command gets the values that its type must refuse; a few more are of one flag alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest import mock

import tracking
from benchmarks.kills import ROOT
from data import load

COMMANDS = ("pretrain_vae", "train_world_model", "test_obs_reward_model", "hop_ppo")
COMMANDS += ("data.collect", "data.flatten", "data.card", "data.convert")
POSITIONAL = {"data.convert": ("source", "out")}  # not flags
BAD_INTEGERS = ("x", "", "1.5", "-1", str(2**31), "9" * 400)
BAD_FLOATS = ("x", "", "nan", "inf", "-inf", "-1")
BAD_NAMES = ("../x", "a/b", "", "a b", "..", "x\0"[:1] + "\n")
PATHS = ("data", "vae", "world_model", "oracle", "resume", "evaluate", "checkpoint")
USED_WITH = {"vae": ["--om", "belief"], "world_model": ["--real-ratio", "0"], "data": ["--real-ratio", "0"]}
BAD_PATHS = ("missing", "missing/..", "\n", "x" * 5000)
MORE = {
    "pretrain_vae": (
        ["--resume", "RUN", "--evaluate", "RUN"],
        ["--latent-dim", "2000000000"],
        ["--goals", "guessed"],
        ["--torch-threads", "2000000000"],
        ["--loss", "both", "--latent-dim", "1"],
        ["--data", "fresh"],
        ["--epochs"],
        ["--no-epochs"],
        ["word"],
    ),
    "train_world_model": (
        ["--data", "unmasked"],
        ["--model", "cells", "--contrastive-coef", "1"],
        ["--torch-threads", "2000000000"],
        ["word"],
    ),
    "hop_ppo": (
        ["--num-envs", "2147483647"],
        ["--num-steps", "2147483647"],
        ["--eval-boards", "2147483647"],
        ["--plan", "--plan-simulations", "2147483647"],
        ["--co-players", "9NS"],
        ["--co-players", "1NS2XX"],
        ["--co-players", ""],
        ["--env-id", "CartPole-v1"],
        ["--env-id", "Snowdrift-v0", "--co-players", "3NS"],
        ["--team-reward"],
        ["--plan", "--co-players", "self"],
        ["--real-ratio", "1.1"],
        ["--real-ratio", "0.0001"],
        ["--gamma", "1.01"],
        ["--gae-lambda", "2"],
        ["--om", "belief", "--vae", "vae_ckpts/no__1"],
        ["--real-ratio", "0", "--world-model", "."],
        ["--vae"],
    ),
    "data.collect": (
        ["--strategies", "XX", "NH"],
        ["--unmasked", "1.5"],
        ["--epsilon", "2"],
        ["--env-args", "height=0"],
        ["--env-args", "height=1000000"],
        ["--env-args", "blocks=64"],
        ["--env-args", "hunters=1000000000"],
        ["--env-args", "prey_moves=2"],
        ["--env-args", "drifts=6"],
        ["--env-args", "height"],
        ["--env-args", "horizon=ten"],
        ["--env-id", "Snowdrift"],
        ["--env-id", "Snowdrift-v0", "--env-args", "hares=3"],
        ["--env-id", "Snowdrift-v0", "--env-args", "drifts=65"],
        ["--env-id", "Snowdrift-v0", "--env-args", "horizon=0"],
        ["--samples", "2147483647"],
        ["--steps", "2147483647"],
        ["--out", "."],
    ),
    "data.flatten": (["--rows", "2147483647"], ["--out", "."]),
    "data.convert": (
        ["small.npz"],
        ["small.npz", "converted.npz", "word"],
        ["missing.npz", "converted.npz"],
        ["missing.npy", "converted.npz"],
        ["missing.csv", "converted.npz"],
        ["small.xyz", "converted.npz"],
        ["no/dataset-v0", "converted.npz"],
        [".", "converted.npz"],
        ["", "converted.npz"],
        ["small.npz", ""],
        ["small.npz", "."],
        ["small.npz", "converted.txt"],
        ["--to", "minari", "small.npz", "a name"],
        ["--to", "minari", "small.npz", "../x-v0"],
        ["--to", "minari", "missing.npz", "stag_hunt/x-v0"],
    ),
}


LIBRARY = {  # what the last lines of these modules do
    "data.collect": lambda module, args: module.collect_to_file(args),
    "data.flatten": lambda module, args: module.flatten_to_file(args),
    "data.card": lambda module, args: print(module.block(load(args.data), args.data)),
    "data.convert": lambda module, args: module.convert(args),
}


class Accepted(Exception):
    """A run has begun."""


def bad_values(name: str, kind: Any) -> tuple[str, ...]:
    """What a flag of this name and type must refuse."""
    if name == "exp_name":
        return BAD_NAMES
    if name in PATHS:
        return BAD_PATHS
    if get_origin(kind) is Literal:
        return ("x", "", get_args(kind)[-1].upper())
    return {int: BAD_INTEGERS, float: BAD_FLOATS}.get(kind, ())


def bad_flags() -> Iterator[tuple[str, list[str]]]:
    """Commands, each with flags that it must refuse."""
    for command in COMMANDS:
        args_type = importlib.import_module(command).Args
        hints = get_type_hints(args_type)
        for field in dataclasses.fields(args_type):
            if field.name in POSITIONAL.get(command, ()):
                continue
            flag = f"--{field.name.replace('_', '-')}"
            yield command, [f"{flag}x", "1"]
            for value in bad_values(field.name, hints[field.name]):
                used = USED_WITH.get(field.name, []) if command == "hop_ppo" else []
                yield command, [*used, f"{flag}={value}"]
        for flags in MORE.get(command, ()):
            yield command, flags


def small(command: str) -> list[str]:
    """Flags with which a run that must not begin would be short."""
    if command in ("pretrain_vae", "train_world_model"):
        return ["--data", "small.npz"]
    return {"data.collect": ["--samples", "100", "--out", "c.npz"], "data.flatten": ["--out", "f.npz"]}.get(
        command, []
    )


def outcome(command: str, flags: list[str]) -> str:
    """What a command does with these flags, in the working folder: `refused`, or what happened instead."""
    given = {flag.partition("=")[0] for flag in flags}
    defaults = small(command)
    pairs = zip(defaults[::2], defaults[1::2], strict=True)
    argv = [word for pair in pairs if pair[0] not in given for word in pair] + flags
    if command in POSITIONAL and flags[0].startswith("--") and "minari" not in flags:
        argv += ["small.npz", "converted.npz"]
    out, err = io.StringIO(), io.StringIO()

    def begin(*args: Any, **kwargs: Any) -> None:
        raise Accepted

    code: Any = 0
    with (
        mock.patch.object(sys, "argv", [command, *argv]),
        mock.patch.object(tracking, "new_run", begin),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run(command)
        except Accepted:
            return "accepted"
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            return f"no line: {error!r}"[:200]
    lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    if code == 2 and len(lines) == 1 and len(err.getvalue().splitlines()) == 1:
        return "refused"
    return f"exit code {code}: {err.getvalue().strip()[-200:]}"


def run(command: str) -> None:
    """As from the shell, without the seconds that its imports take."""
    if command not in LIBRARY:
        runpy.run_path(str(ROOT / f"{command}.py"), run_name="__main__")
        return
    module = importlib.import_module(command)
    tracking.run(lambda: LIBRARY[command](module, tracking.parse_args(module.Args, command)), ValueError)


# ---- the machine

TRAIN = {
    "pretrain_vae": ["--data", "small.npz", "--epochs", "1"],
    "train_world_model": ["--data", "small.npz", "--epochs", "1"],
    "hop_ppo": ["--num-envs", "16", "--num-steps", "4", "--total-timesteps", "64", "--eval-boards", "4"],
}
CKPTS = {"pretrain_vae": "vae_ckpts", "train_world_model": "wm_ckpts", "hop_ppo": "ppo_ckpts"}


def limit_file_size(size: int) -> Callable[[], None]:
    """For a child: a write beyond `size` bytes fails as on a full disk (EFBIG for ENOSPC)."""
    import resource
    import signal

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def bad_machines(folder: Path) -> Iterator[tuple[str, str]]:
    """Train on machines that cannot hold a run. Yields: a name, and what happened: `refused` or what else."""
    for command, ckpts in CKPTS.items():
        for name, prepare, options in (
            ("a file where checkpoints go", lambda at, c: (at / c).touch(), {}),
            ("a file where logs go", lambda at, c: (at / "runs").touch(), {}),
            ("a dead link where logs go", lambda at, c: (at / "runs").symlink_to(at / "no" / "where"), {}),
            ("a read-only folder", lambda at, c: at.chmod(0o555), {}),
            ("a disk of 0 bytes", lambda at, c: None, dict(size=0)),
            ("a disk of 10 kB", lambda at, c: None, dict(size=10_000)),
            ("no data file", lambda at, c: (at / "small.npz").unlink(), {}),
            ("half a data file", lambda at, c: halve(at / "small.npz"), {}),
        ):
            if command == "hop_ppo" and "data file" in name:
                continue
            if name == "a read-only folder" and os.geteuid() == 0:
                continue  # nothing is read-only to root
            at = folder / "machine"
            if at.exists():
                at.chmod(0o755)
                shutil.rmtree(at)
            at.mkdir()
            shutil.copy(folder / "small.npz", at)
            prepare(at, ckpts)
            yield f"{command}: {name}", machine_outcome(at, command, ckpts, **options)


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def machine_outcome(at: Path, command: str, ckpts: str, size: int | None = None) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{command}.py"), *TRAIN[command]],
        cwd=at,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=None if size is None else limit_file_size(size),
    )
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    if done.returncode != 2 or "Traceback" in done.stderr or len(errors) != 1:
        return f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    if size is None and (at / ckpts).is_dir() and any((at / ckpts).iterdir()):
        return "an empty run is left behind"
    return "refused"
