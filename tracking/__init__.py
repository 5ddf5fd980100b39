"""A run's name, folders, files and logs: what every script needs and is not its method.

`checkpoints.py` knows what a checkpoint holds, `command_line.py` holds flags and errors, `interrupt.py` signals, `files.py`
whole files, `run_lock.py` who trains a run, `events.py` TensorBoard, `divergence.py` losses that are not finite,
`distributed.py` training in several processes, `figures.py` what several scripts draw.
"""

from __future__ import annotations

from tracking import interrupt  # first, before torch: from here on a signal ends a command in one line

# isort: split
import atexit
import os
import re
import shutil
import time
from pathlib import Path

import torch

from tracking.checkpoints import (
    Schema,
    kept_rng,
    learnt,
    load_checkpoint,
    load_model,
    load_states,
    load_weights,
    restore,
    rng_state,
    save_checkpoint,
    set_rng_state,
    weights_alone,
)
from tracking.command_line import (
    UsageError,
    check_least,
    check_ranges,
    parse_args,
    resumed_args,
    run,
)
from tracking.distributed import ALONE, World, join_world
from tracking.divergence import check_finite
from tracking.events import UNTRACKED, check_wandb, log_scalars, open_log, open_test_log
from tracking.files import write_bytes, write_csv, write_json
from tracking.run_lock import lock_run

__all__ = [
    "ALONE",
    "UNTRACKED",
    "Schema",
    "UsageError",
    "World",
    "check_finite",
    "check_least",
    "check_ranges",
    "check_wandb",
    "find_folder",
    "interrupt",
    "join_world",
    "kept_rng",
    "learnt",
    "load_checkpoint",
    "load_model",
    "load_states",
    "load_weights",
    "lock_run",
    "log_scalars",
    "name_run",
    "named_run",
    "network_run",
    "new_run",
    "newest_run",
    "open_log",
    "open_test_log",
    "parse_args",
    "restore",
    "resumed_args",
    "rng_state",
    "run",
    "save_checkpoint",
    "seed_everything",
    "set_rng_state",
    "weights_alone",
    "write_bytes",
    "write_csv",
    "write_json",
]

NEWEST = "newest"  # in place of a run's folder
PRETRAINED = {"vae_ckpts": "pretrained/vae", "wm_ckpts": "pretrained/wm"}  # what the repository comes with
FILE_THERE = "expected a folder to write to, found a file; move it away"

# ---- folders


def find_folder(run: str | Path) -> Path:
    """The folder with the checkpoints of a run: itself, or its one `dim<latent_dim>/`.

    Raises: UsageError: there is no checkpoint.
    """
    run = Path(run)
    for name in ("last.pt", "best.pt"):  # weights alone are a best.pt
        if (run / name).is_file():
            return run
        for checkpoint in sorted(run.glob(f"dim*/{name}")):
            return checkpoint.parent
    example = "vae_ckpts/vae__1758375079 or wm_ckpts/wm__.., or `newest`"
    raise UsageError(f"{run}: no checkpoint there; name the folder of a run, such as {example}")


def newest_run(root: str | Path, script: str, checkpoint: str = "best.pt", pattern: str = "*__*") -> Path:
    """The run in `root` that was started last and has a best checkpoint. Of two in one second, the last by name.

    The seconds in its name count, not the time of its folder, which changes when an old run is judged.

    Args:
        script: what trains such a run, for the message.
        checkpoint: the file that it must have. pattern: of its name.

    Raises: UsageError: there is none.
    """
    started = {}
    for folder in Path(root).glob(pattern):
        seconds = folder.name.rpartition("__")[2]
        if seconds.isdecimal() and any(folder.glob(f"**/{checkpoint}")):
            started[folder] = int(seconds)
    if not started:
        root = Path(root).as_posix()
        message = f"no trained run there; train one with `python {script}`, or name another"
        raise UsageError(f"{root}: {message}")
    return max(started, key=lambda folder: (started[folder], folder.name))


def named_run(folder: str, root: str, script: str, checkpoint: str = "best.pt", pattern: str = "*__*") -> str:
    """The folder that a flag names: itself, or that of `newest_run` where it is the word `newest`."""
    if folder != NEWEST:
        return folder
    return newest_run(root, script, checkpoint, pattern).as_posix()


def name_run(*parts: object) -> str:
    """`<part>__<part>..`, what `new_run` adds the seconds to. What a folder's name cannot hold is a dash."""
    return "__".join(re.sub(r"[^\w.-]", "-", str(part))[:64] for part in parts)


def network_run(name: str, root: str, script: str, or_pretrained: bool = False) -> str:
    """The folder of the trained network that a flag names.

    Args:
        name: a folder; `pretrained`: that of the repository, in `PRETRAINED`; `newest` or "": the newest run in `root`.
        script: what trains such a run, for the message.
        or_pretrained: where there is no run, take the repository's, with a line that says so.

    Raises: UsageError: there is no run.
    """
    pretrained = PRETRAINED[root]
    if name == "pretrained":
        return pretrained
    if name:
        return named_run(name, root, script)
    try:
        return newest_run(root, script).as_posix()
    except UsageError:
        if not or_pretrained or not Path(pretrained).is_dir():
            raise
    print(f"[RUN] {root}: no trained run there, so {pretrained} is used; `python {script}` trains another")
    return pretrained


def new_run(prefix: str, ckpt_root: str | Path, log_root: str | Path = "runs") -> str:
    """Claim a run name `<prefix>__<unix seconds>` and its folders in both roots; if taken, the next free second.

    Raises: UsageError: a folder cannot be made.
    """
    second = int(time.time())
    while True:
        name = f"{prefix}__{second}"
        folders = Path(ckpt_root) / name, Path(log_root) / name
        if claim_folders(*folders):
            atexit.register(drop_unsaved, *(folder.resolve() for folder in folders))
            return name
        second += 1


def claim_folders(checkpoints: Path, log: Path) -> bool:
    """Make both folders; False where one of them is another run's.

    Raises: UsageError: they cannot be made; neither is there then.
    """
    try:
        if log.exists():
            return False
        checkpoints.parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.mkdir()  # fails if a run beside this one was first: the folder is the claim
    except FileExistsError as error:
        if checkpoints.is_dir():
            return False
        raise UsageError(f"{error.filename}: {FILE_THERE}") from None
    except OSError as error:
        raise UsageError(f"{error.filename}: {unwritable(error)}") from None
    try:
        log.mkdir()
    except OSError as error:
        checkpoints.rmdir()
        if isinstance(error, FileExistsError):
            return False
        raise UsageError(f"{error.filename}: {unwritable(error)}") from None
    return True


def drop_unsaved(checkpoints: Path, log: Path) -> None:
    """Remove a run that has ended before its first checkpoint, on a full disk or by a signal: nothing can resume it."""
    if not any(checkpoints.rglob("*.pt")):
        shutil.rmtree(checkpoints, ignore_errors=True)
        shutil.rmtree(log, ignore_errors=True)


def unwritable(error: OSError) -> str:
    if isinstance(error, NotADirectoryError):
        return FILE_THERE
    return f"cannot make this folder ({error.strerror}); choose one to write to"


# ---- randomness


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed torch; deterministic: also choose algorithms that give the same digits each time."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.deterministic = deterministic
