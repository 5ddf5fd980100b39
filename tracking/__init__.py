"""A run's name, folders, checkpoints and logs: what every script needs and is not its method.

`command_line.py` holds flags and errors, `interrupt.py` signals, `files.py` whole files, `run_lock.py` who trains a run,
`events.py` TensorBoard, `divergence.py` losses that are not finite, `distributed.py` training in several processes,
`figures.py` what several scripts draw.
"""

from __future__ import annotations

from tracking import interrupt  # first, before torch: from here on a signal ends a command in one line

# isort: split
import atexit
import io
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tracking.command_line import (
    UsageError,
    check_ranges,
    parse_args,
    resumed_args,
    run,
)
from tracking.distributed import World, join_world
from tracking.divergence import check_finite
from tracking.events import log_scalars, open_log, open_test_log
from tracking.files import write_bytes, write_csv, write_json
from tracking.run_lock import lock_run

__all__ = [
    "UsageError",
    "World",
    "build",
    "check_finite",
    "check_ranges",
    "find_folder",
    "interrupt",
    "join_world",
    "load_checkpoint",
    "load_weights",
    "lock_run",
    "log_scalars",
    "new_run",
    "newest_run",
    "open_log",
    "open_test_log",
    "parse_args",
    "resumed_args",
    "rng_state",
    "run",
    "save_checkpoint",
    "seed_everything",
    "set_rng_state",
    "write_bytes",
    "write_csv",
    "write_json",
]

FILE_THERE = "expected a folder to write to, found a file; move it away"

# ---- folders


def find_folder(run: str | Path) -> Path:
    """The folder with the checkpoints of a run: itself, or its one `dim<latent_dim>/`.

    Raises: UsageError: there is no checkpoint.
    """
    run = Path(run)
    if (run / "last.pt").is_file():
        return run
    for checkpoint in sorted(run.glob("dim*/last.pt")):
        return checkpoint.parent
    example = "vae_ckpts/vae__1758375079 or wm_ckpts/wm__.."
    raise UsageError(f"{run}: no checkpoint there; name the folder of a run, such as {example}")


def newest_run(root: str | Path, script: str) -> Path:
    """The run in `root` that was started last and has a best checkpoint. Of two in one second, the last by name.

    The seconds in its name count, not the time of its folder, which changes when an old run is judged.

    Args: script: what trains such a run, for the message.
    Raises: UsageError: there is none.
    """
    started = {}
    for folder in Path(root).glob("*__*"):
        seconds = folder.name.rpartition("__")[2]
        if seconds.isdecimal() and any(folder.glob("**/best.pt")):
            started[folder] = int(seconds)
    if not started:
        root = Path(root).as_posix()
        message = f"no trained run there; train one with `python {script}`, or name another"
        raise UsageError(f"{root}: {message}")
    return max(started, key=lambda folder: (started[folder], folder.name))


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


# ---- checkpoints


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a dictionary of tensors and plain values, as `torch.save` does.

    Serialised in memory first: a full disk is then an OSError that names the file, and keeps the checkpoint before.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: str | Path, kind: str, device: str | torch.device = "cpu") -> dict:
    """Read a checkpoint of the script `kind`. Raises: UsageError: no such file, cut short, or of another script."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no checkpoint there; name the folder of a run that has saved one")
    content = io.BytesIO(path.read_bytes())
    try:
        # From memory: there an OSError is torch's word for a damaged archive, not the disk's for an unreadable file.
        checkpoint = torch.load(content, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UsageError(f"{path}: the checkpoint is cut short or damaged ({reason})") from None
    found = checkpoint.get("kind") if isinstance(checkpoint, dict) else None
    if found != kind:
        found = found or "another program"
        raise UsageError(f"{path}: expected a checkpoint of {kind}.py, found one of {found}")
    return checkpoint


def load_weights(model: torch.nn.Module, weights: dict, path: str | Path) -> None:
    """`load_state_dict`. Raises: UsageError: the sizes or names are another network's."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        message = "the checkpoint is of other sizes than the network it describes"
        raise UsageError(f"{path}: {message}: {reason}") from None


def build(make: Callable[..., torch.nn.Module], checkpoint: dict, path: str | Path) -> torch.nn.Module:
    """The network that a checkpoint describes, its weights in it. Raises: UsageError: of another version or size."""
    try:
        model = make(**checkpoint["sizes"])
    except TypeError:
        message = "the checkpoint was made by another version of this script: train anew"
        raise UsageError(f"{path}: {message}") from None
    load_weights(model, checkpoint["model"], path)
    return model


# ---- randomness


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed torch; deterministic: also choose algorithms that give the same digits each time."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.deterministic = deterministic


def rng_state() -> dict[str, torch.Tensor]:
    """torch's random state, for a checkpoint."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Set what `rng_state` gave."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
