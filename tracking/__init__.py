"""A run's name, folders, checkpoints and logs: what every script needs and is not its method.

`command_line.py` holds flags and errors, `distributed.py` training in several processes, `figures.py` what several
scripts draw.
"""

from __future__ import annotations

from tracking import interrupt  # first, before torch: from here on a signal ends a command in one line

# isort: split
import io
import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.utils.tensorboard import SummaryWriter

from tracking.command_line import (
    UsageError,
    check_ranges,
    parse_args,
    resumed_args,
    run,
)
from tracking.distributed import World, join_world

__all__ = [
    "UsageError",
    "World",
    "build",
    "check_ranges",
    "find_folder",
    "interrupt",
    "join_world",
    "load_checkpoint",
    "load_weights",
    "log_scalars",
    "new_run",
    "newest_run",
    "open_log",
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
        if claim_folders(Path(ckpt_root) / name, Path(log_root) / name):
            return name
        second += 1


def claim_folders(checkpoints: Path, log: Path) -> bool:
    """Make both folders; False where one of them is another run's. Raises: UsageError: they cannot be made."""
    try:
        checkpoints.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            return False
        checkpoints.mkdir()  # fails if a run beside this one was first: the folder is the claim
        log.mkdir(parents=True)
    except FileExistsError as error:
        if checkpoints.is_dir():
            return False
        message = "expected a folder to write to, found a file; move it away"
        raise UsageError(f"{error.filename}: {message}") from None
    except OSError as error:
        message = f"cannot make this folder ({error.strerror}); choose one to write to"
        raise UsageError(f"{error.filename}: {message}") from None
    return True


# ---- files: each is written beside itself first and then moved into place, so that it is whole or absent


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file in one step."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:  # a full disk's error names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: str | Path, rows: list[dict] | pd.DataFrame) -> None:
    """Write a table for people.

    A training must not end for it: where the file may not be replaced (on Windows: read-only, or open in another
    program), a line on stderr says so.
    """
    table = pd.DataFrame(rows)
    content = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    try:
        write_bytes(path, content.encode())
    except PermissionError as error:
        message = "is it read-only or open in another program? The run goes on without it"
        print(f"warning: {path}: not written ({error.strerror}): {message}", file=sys.stderr, flush=True)


def write_json(path: str | Path, content: dict) -> None:
    """Plain numbers only: NaN and infinity are not JSON. Raises: ValueError: there is one."""
    text = json.dumps(content, indent=2, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


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


# ---- TensorBoard


def open_log(
    run_name: str,
    args: dict,
    log_root: str | Path = "runs",
    purge_step: int | None = None,
) -> SummaryWriter:
    """The run's event file, its first text a table of the settings.

    Args: purge_step: what a killed run logged from this step on is removed.
    """
    # An absolute path: the writer's own thread opens the file anew when it flushes, wherever the program is by then.
    folder = (Path(log_root) / run_name).resolve()
    writer = SummaryWriter(str(folder), purge_step=purge_step)
    rows = "\n".join(f"|{key}|{value}|" for key, value in args.items())
    rows = rows.encode(errors="surrogateescape").decode(
        errors="replace"
    )  # a path that the locale cannot read
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}", purge_step or 0)
    return writer


def log_scalars(writer: SummaryWriter | None, prefix: str, values: dict, step: int) -> None:
    """Log each number of `values` as `prefix/key`; other values are passed over.

    Args: writer: None logs nothing: only one process of several has one.
    """
    if writer is None:
        return
    for key, value in values.items():
        if isinstance(value, (int, float)):
            writer.add_scalar(f"{prefix}/{key}", value, step)
