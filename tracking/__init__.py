"""A run's name, folders, checkpoints and logs: what every script needs and is not its method."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter


class UsageError(ValueError):
    """A setting or a file of a run that cannot be used. The message is one line: what is wrong, where, what to do."""


# ---- the command line


def run(main: Callable[[], None], *input_errors: type[Exception]) -> None:
    """Call `main`; turn a user's mistake into one line on stderr and exit code 2, Ctrl-C into one line and 130.

    Args: input_errors: exceptions whose message is that line, besides UsageError and OSError.
    """
    try:
        main()
    except (UsageError, *input_errors) as error:
        _leave(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"{where}{error.strerror or error}; what was saved before is kept", 2)
    except KeyboardInterrupt:
        _leave("interrupted; what was saved before is kept, `--resume RUN_FOLDER` goes on from it", 130)


def _leave(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def parse_args(args_type: type, description: str, argv: list[str] | None = None):
    """`tyro.cli`, with a parsing error as one line instead of a box. `resumed_args` learns which flags were given."""
    argv = sys.argv[1:] if argv is None else argv
    columns, captured = os.environ.get("COLUMNS"), io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            os.environ["COLUMNS"] = "1000"  # tyro wraps its box to the terminal
            if any(word in ("-h", "--help") for word in argv):
                os.environ["COLUMNS"] = columns or "100"
            args = tyro.cli(args_type, description=description, args=argv)
            args.given_flags = _given_flags(args, argv)
            return args
    except SystemExit as stop:
        if stop.code == 2:
            lines = [line.strip("│╭╰╮╯ \n") for line in captured.getvalue().splitlines()]
            body = [line for line in lines[1:] if line]
            rule = next((i for i, line in enumerate(body) if not line.strip("─")), len(body))
            raise UsageError(f"{' '.join(body[:rule]).rstrip('.')}; see --help") from None
        raise
    finally:
        os.environ.pop("COLUMNS", None) if columns is None else os.environ.update(COLUMNS=columns)


def _given_flags(args, argv: list[str]) -> set[str]:
    """The fields of `args` that stand on the command line, as `--batch-size`, `--batch_size=8` or `--no-cuda`.

    tyro knows no abbreviations and takes no value that begins with `--`: each such word is a flag.
    """
    words = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    words |= {word.removeprefix("no_") for word in words}
    return words & {field.name for field in fields(args)}


def check_ranges(
    args, least: dict[str, int], above_zero: tuple[str, ...] = (), from_zero: tuple[str, ...] = ()
) -> None:
    """least: whole numbers and the smallest that each may be. above_zero, from_zero: finite numbers.

    Raises: UsageError: a setting is out of its range, --exp-name is no name, or flags exclude each other.
    """
    for name, value in ((name, getattr(args, name)) for name in (*least, *above_zero, *from_zero)):
        flag = f"--{name.replace('_', '-')}"
        if name in least and value < least[name]:
            raise UsageError(f"{flag}: must be at least {least[name]}, got {value}")
        if name in least and value >= 2**31:
            raise UsageError(f"{flag}: must be below 2**31, got {value}")
        if name in above_zero and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{flag}: must be a positive number, got {value}")
        if name in from_zero and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{flag}: must be a number of at least 0, got {value}")
    if not re.fullmatch(r"[\w-][\w.-]*", args.exp_name):
        raise UsageError(f"--exp-name: must be letters, digits, '_', '-' and '.', got {args.exp_name!r}")
    if args.resume and getattr(args, "evaluate", ""):
        raise UsageError("--resume and --evaluate exclude each other: choose one")


# ---- folders


def find_folder(run: str | Path) -> Path:
    """The folder with the checkpoints of a run: itself, or its one `dim<latent_dim>/`. Raises: UsageError."""
    run = Path(run)
    found = [run] if (run / "last.pt").is_file() else sorted(path.parent for path in run.glob("dim*/last.pt"))
    if not found:
        raise UsageError(
            f"{run}: no checkpoint there; name the folder of a run, such as vae_ckpts/vae__1758375079 or wm_ckpts/wm__.."
        )
    return found[0]


def newest_run(root: str | Path, script: str) -> Path:
    """The run in `root` that was started last and has a best checkpoint, by the seconds in its name: judging an old run
    changes the time of its folder. Of two in one second, the last by name.

    Args: script: what trains such a run, for the message. Raises: UsageError: there is none.
    """
    seconds = {
        run: run.name.rpartition("__")[2] for run in Path(root).glob("*__*") if any(run.glob("**/best.pt"))
    }
    seconds = {run: int(digits) for run, digits in seconds.items() if digits.isdecimal()}
    if not seconds:
        raise UsageError(
            f"{Path(root).as_posix()}: no trained run there; train one with `python {script}`, or name another"
        )
    return max(seconds, key=lambda run: (seconds[run], run.name))


def new_run(prefix: str, ckpt_root: str | Path, log_root: str | Path = "runs") -> str:
    """Claim a run name `<prefix>__<unix seconds>` and its folders in both roots; if taken, the next free second.

    Raises: UsageError: a folder cannot be made.
    """
    second = int(time.time())
    while True:
        name = f"{prefix}__{second}"
        try:
            Path(ckpt_root).mkdir(parents=True, exist_ok=True)
            if not (Path(log_root) / name).exists():
                (
                    Path(ckpt_root) / name
                ).mkdir()  # fails if a run beside this one was first: the folder is the claim
                (Path(log_root) / name).mkdir(parents=True)
                return name
        except FileExistsError as error:
            if not (Path(ckpt_root) / name).is_dir():
                raise UsageError(
                    f"{error.filename}: expected a folder to write to, found a file; move it away"
                ) from None
        except OSError as error:
            raise UsageError(
                f"{error.filename}: cannot make this folder ({error.strerror}); choose one to write to"
            ) from None
        second += 1


# ---- files: each is written beside itself first and then moved into place, so that it is whole or absent


def write_bytes(path: str | Path, content: bytes) -> None:
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
    """A table for people. A training must not end for it: where it may not be replaced (on Windows: read-only, or open in
    another program), a line on stderr says so."""
    content = pd.DataFrame(rows).to_csv(index=False, float_format="%.6f", lineterminator="\n")
    try:
        write_bytes(path, content.encode())
    except PermissionError as error:
        message = "is it read-only or open in another program? The run goes on without it"
        print(f"warning: {path}: not written ({error.strerror}): {message}", file=sys.stderr, flush=True)


def write_json(path: str | Path, content: dict) -> None:
    """Plain numbers only: NaN and infinity are not JSON. Raises: ValueError: there is one."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """A dictionary of tensors and plain values, as `torch.save` writes it. Serialised in memory first: a full disk
    is then an OSError that names the file, and leaves the one before in place."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: str | Path, kind: str, device: str | torch.device = "cpu") -> dict:
    """Raises: UsageError: no such file, cut short, or not a checkpoint of the script `kind`."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no checkpoint there; name the folder of a run that has saved one")
    content = io.BytesIO(path.read_bytes())
    try:
        # From memory: there an OSError is torch's word for a damaged archive, not the disk's for a file it cannot read.
        checkpoint = torch.load(content, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UsageError(f"{path}: the checkpoint is cut short or damaged ({reason})") from None
    found = checkpoint.get("kind") if isinstance(checkpoint, dict) else None
    if found != kind:
        raise UsageError(
            f"{path}: expected a checkpoint of {kind}.py, found one of {found or 'another program'}"
        )
    return checkpoint


def load_weights(model: torch.nn.Module, weights: dict, path: str | Path) -> None:
    """`load_state_dict`. Raises: UsageError: the sizes or names are another network's."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UsageError(
            f"{path}: the checkpoint is of other sizes than the network it describes: {reason}"
        ) from None


def resumed_args(args, checkpoint: dict, free: tuple[str, ...]):
    """The settings of a run to be resumed: those of its checkpoint, and the `free` ones as they were given.

    Args: args: from `parse_args`, which knows the flags that were given, also at their default; of other objects,
    those that differ from their default count as given.
    Raises: UsageError: a flag that is not free was given, and differs from the run's.
    """
    saved, default, found = checkpoint["args"], asdict(type(args)()), asdict(args)
    if set(saved) != set(default):
        raise UsageError("the run was made by another version of this script: train anew")
    given = getattr(args, "given_flags", {key for key, value in found.items() if value != default[key]})
    for key in (key for key in found if key in given and key not in free):
        if found[key] != saved[key]:
            flag = f"--{key.replace('_', '-')}"
            raise UsageError(f"{flag} {found[key]}: the run has {saved[key]}; leave {flag} out")
    return type(args)(**saved | {key: found[key] for key in free if key in given})


def build(make: Callable[..., torch.nn.Module], checkpoint: dict, path: str | Path) -> torch.nn.Module:
    """The network that a checkpoint describes, its weights in it. Raises: UsageError: it is of another version or size."""
    try:
        model = make(**checkpoint["sizes"])
    except TypeError:
        raise UsageError(
            f"{path}: the checkpoint was made by another version of this script: train anew"
        ) from None
    load_weights(model, checkpoint["model"], path)
    return model


# ---- randomness


def seed_everything(seed: int, deterministic: bool) -> None:
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.deterministic = deterministic


def rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


# ---- several processes


@dataclass(frozen=True)
class World:
    """The processes that train together, and this one's device. One process alone is a world of size 1."""

    rank: int
    size: int
    device: torch.device

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model whose gradients are averaged over all processes."""
        return model if self.size == 1 else torch.nn.parallel.DistributedDataParallel(model)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all processes."""
        if self.size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    @contextlib.contextmanager
    def one_first(self):
        """The first process does it, then the others: what is made on first use is made once."""
        if self.rank > 0:
            torch.distributed.barrier()
        yield
        if self.rank == 0 and self.size > 1:
            torch.distributed.barrier()


@contextlib.contextmanager
def join_world(cuda: bool):
    """This process's World: that of `torchrun` (gloo on CPUs, nccl on GPUs), else one of its own. Only the first prints."""
    cuda = cuda and torch.cuda.is_available()
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if size == 1:
        yield World(rank, size, device)
        return
    if cuda:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        with contextlib.redirect_stdout(sys.stdout if rank == 0 else io.StringIO()):
            yield World(rank, size, device)
    finally:
        torch.distributed.destroy_process_group()


# ---- TensorBoard


def open_log(
    run_name: str, args: dict, log_root: str | Path = "runs", purge_step: int | None = None
) -> SummaryWriter:
    """The run's event file, its first text a table of the settings. purge_step: what a killed run logged from it on goes."""
    # An absolute path: the writer's own thread opens the file anew when it flushes, wherever the program is by then.
    writer = SummaryWriter(str((Path(log_root) / run_name).resolve()), purge_step=purge_step)
    rows = "\n".join(f"|{key}|{value}|" for key, value in args.items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}", purge_step or 0)
    return writer


def log_scalars(writer: SummaryWriter | None, prefix: str, values: dict, step: int) -> None:
    """Each number of `values` as `prefix/key`; what is not a number is passed over.
    No writer, no log: only one process of several has one."""
    for key, value in values.items():
        if writer is not None and isinstance(value, (int, float)):
            writer.add_scalar(f"{prefix}/{key}", value, step)
