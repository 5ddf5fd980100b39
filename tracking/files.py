"""Files that are whole or absent: each is written beside itself first and then moved into place."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that is open
    fcntl = None  # type: ignore[assignment]


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file in one step. Raises: OSError: it cannot be written; it names the file."""
    path = Path(path)
    try:
        with temporary_beside(path) as temporary:
            temporary.write_bytes(content)
            os.replace(temporary, path)
    except OSError as error:  # a full disk's error names no file
        raise OSError(error.errno, error.strerror, str(path)) from None


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


# ---- temporary files; data/temporary.py has the same, as data/ does without this package


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A file to write to and to move to `path`; it is gone in the end.

    What earlier writes of `path` have left, being killed, is removed; living ones hold a lock on theirs.
    """
    remove_leftovers(path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.tmp"))
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


def remove_leftovers(paths: Iterator[Path]) -> None:
    """Remove those of `paths` that are temporary files of writes that were killed."""
    for path in paths:
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name) and path.is_file():
            with contextlib.suppress(OSError):
                remove_unless_held(path)


def remove_unless_held(path: Path) -> None:
    """Raises: OSError: a living process holds it."""
    if fcntl is None:
        path.unlink()
        return
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
