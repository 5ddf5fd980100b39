"""One process trains a run: an operating system's lock, which dies with the process that holds it."""

from __future__ import annotations

import atexit
import contextlib
import os
from pathlib import Path

from filelock import FileLock, Timeout

from tracking.command_line import UsageError
from tracking.files import remove_leftovers

HELD: dict[Path, FileLock] = {}  # by this process, until it ends


def lock_run(folder: Path) -> Path:
    """Make sure that no other process trains the run in `folder`, made where it is missing, until this one ends.

    What killed writes have left there is removed. Of the processes of torchrun the first holds the lock.

    Returns: the folder. Raises: UsageError: another process trains it, or nothing can be written there.
    """
    path = folder.resolve() / ".lock"
    if os.environ.get("RANK", "0") != "0" or path in HELD:
        return folder
    lock = FileLock(path)
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        advice = "wait until it ends, or end it"
        raise UsageError(f"{folder}: another process is training this run; {advice}") from None
    except OSError as error:
        advice = "a run writes to its folder; copy it to where you may write"
        raise UsageError(f"{folder}: cannot write there ({error.strerror}): {advice}") from None
    HELD[path] = lock
    atexit.register(release, path)
    remove_leftovers(folder.rglob(".*.tmp"))
    return folder


def release(path: Path) -> None:
    """Give a lock back and remove its file."""
    lock = HELD.pop(path, None)
    if lock is None:
        return
    with contextlib.suppress(OSError):  # on Windows it is removed when it is closed
        path.unlink()
    with contextlib.suppress(OSError):
        lock.release()
