"""TensorBoard's event files, written without a thread: what is logged is on disk, or an error names the file."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard import writer as torch_writer
from torch.utils.tensorboard.summary import hparams

from tracking.command_line import UsageError

UNTRACKED = dict(
    track=False, wandb_project_name="om_wm", wandb_entity=None
)  # settings of a run without Weights & Biases
TEST = ".test"  # ends the names of event files that judge a finished run


def open_log(
    run_name: str,
    args: dict,
    log_root: str | Path = "runs",
    purge_step: int | None = None,
) -> SummaryWriter:
    """The run's event file. The first text of a run is a table of its settings.

    Args: purge_step: the run is resumed: what it has logged from this step on is removed.
    """
    folder = Path(log_root) / run_name
    is_new = not any(folder.glob("*tfevents*"))
    if args.get("track"):
        init_wandb(run_name, args)
    writer = EventLog(folder, purge_step)
    if args.get("track"):
        # wandb.init has put its own class in this place: it reads the folders that the class is made for, all event files.
        torch_writer.EventFileWriter(str(folder)).close()
    if is_new:
        rows = "\n".join(f"|{key}|{printable(value)}|" for key, value in args.items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}", 0)
        # For the page HPARAMS, which shows them beside the run's scalars. `SummaryWriter.add_hparams` would begin a run of
        # its own, and its summary of the experiment would be that of all runs, whatever trains them.
        plain = {
            key: value if isinstance(value, (bool, int, float)) else printable(value)
            for key, value in args.items()
        }
        writer.file_writer.add_summary(hparams(plain, {})[1])
    return writer


def open_test_log(run_name: str, log_root: str | Path = "runs") -> SummaryWriter:
    """An event file beside the run's own, which is left as it is, instead of those of earlier tests."""
    folder = Path(log_root) / run_name
    for earlier in folder.glob(f"*tfevents*{TEST}"):
        earlier.unlink()
    return EventLog(folder, suffix=TEST)


def check_wandb(args: Any) -> None:
    """Raises: UsageError: --track, and wandb is not installed."""
    if getattr(args, "track", False) and importlib.util.find_spec("wandb") is None:
        raise UsageError("--track: wandb is not installed: `pip install wandb`, or leave --track out")


def init_wandb(run_name: str, args: dict) -> None:
    """Start tracking with Weights & Biases, as CleanRL does: what is logged for TensorBoard is sent there."""
    import wandb

    wandb.init(
        project=args["wandb_project_name"],
        entity=args["wandb_entity"],
        sync_tensorboard=True,
        config=args,
        name=run_name,
        save_code=True,
    )


def log_scalars(writer: SummaryWriter | None, prefix: str, values: dict, step: int) -> None:
    """Log each number of `values` as `prefix/key`; other values are passed over.

    Args: writer: None logs nothing: only one process of several has one.
    """
    if writer is None:
        return
    for key, value in values.items():
        if isinstance(value, (int, float)):
            writer.add_scalar(f"{prefix}/{key}", value, step)


def printable(value: object) -> str:
    """As UTF-8 can hold it: the name of a file may have bytes that the locale cannot read, or that are no letters."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class EventLog(SummaryWriter):
    """torch's writer on an `EventFile`."""

    file_writer: Any
    purge_step: int | None

    def __init__(self, folder: Path, purge_step: int | None = None, suffix: str = ""):
        super().__init__(str(folder), purge_step=purge_step, filename_suffix=suffix)

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = EventFileWriter(Path(self.log_dir), self.filename_suffix)
            self.all_writers = {self.log_dir: self.file_writer}
            if self.purge_step is not None:
                session = SessionLog(status=SessionLog.START)
                self.file_writer.add_event(Event(session_log=session), self.purge_step)
                self.purge_step = None
        return self.file_writer


class EventFileWriter(FileWriter):
    """torch's writer of events on an `EventFile`."""

    def __init__(self, folder: Path, suffix: str):
        self.event_writer = EventFile(folder, suffix)


class EventFile:
    """A new event file in `folder`, the last one there by its name, as TensorBoard reads them in this order.

    Raises: OSError: it cannot be written; it names the file, whose events are whole.
    """

    def __init__(self, folder: Path, suffix: str):
        folder.mkdir(parents=True, exist_ok=True)
        seconds = max([int(time.time()), *(start_of(path) + 1 for path in folder.glob("*tfevents*"))])
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.0{suffix}"
        self.path = folder / name
        self.file = self.path.open("ab", buffering=0)
        self.records = RecordWriter(self)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Event) -> None:
        self.records.write(event.SerializeToString())

    def write(self, record: bytes) -> None:
        """The whole of a record or nothing of it."""
        end = self.file.tell()
        try:
            while record:
                record = record[self.file.write(record) :]
        except OSError as error:
            self.file.truncate(end)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        self.file.close()


def start_of(path: Path) -> int:
    """The seconds in the name of an event file; 0 where there are none."""
    parts = path.name.split(".")
    return int(parts[3]) if len(parts) > 3 and parts[3].isdecimal() else 0
