"""Temporary files that a killed write leaves behind, as in `tracking/files.py`, which this package does without."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that is open
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A file to write to and to move to `path`; it is gone in the end.

    What earlier writes of `path` have left, being killed, is removed; living ones hold a lock on theirs.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.tmp"):
        with contextlib.suppress(OSError):
            remove_unless_held(leftover)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = None
    try:
        if fcntl is not None:
            descriptor = make_held(temporary)
        yield temporary
    finally:
        if descriptor is not None:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_held(temporary: Path) -> int:
    """The descriptor of a new file that this process holds."""
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: nothing is removed there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # removed before it was held


def remove_unless_held(path: Path) -> None:
    """Raises: OSError: a living process holds it."""
    if fcntl is None:
        path.unlink()
        return
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
