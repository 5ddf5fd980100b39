"""An .npz file, read with care: only a regular file is opened, nothing is unpickled, and the memory that its arrays will
need is asked for, by their headers, before any of them is read."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from data import memory
from envs.stag_hunt import MAX_CELLS

PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Formats that `data.convert` reads; `data.formats` has the readers.
CONVERTED = {
    ".npy": "an array without a key (np.save)",
    ".pt": "a PyTorch file",
    ".pth": "a PyTorch file",
    ".csv": "a table of text",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
}
NO_ARRAY_FILE = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

BOARDS = ("obs", "states", "observations", "next_obs", "next_states", "next_observations")
MINARI_FILES = ("data/metadata.json", "metadata.json")


class DataError(ValueError):
    """A file that cannot be used. The message is one line: which file, which key, what was expected, what was found."""


class Header(NamedTuple):
    """What an entry of the archive says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def brief(value: object, most: int = 200) -> str:
    """The value as text, cut where it is long: a message is one line that can be read."""
    text = f"{value}"
    return text if len(text) <= most else f"{text[:most]} .."


def is_trajectory_file(keys: dict) -> bool:
    """Does it hold episodes? Flat files of older code have no `episode_lengths`."""
    return "episode_lengths" in keys or "strategies" in keys


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, without pickles.

    Raises: DataError: no such file, not an .npz, cut short, an array of Python objects, or more than the memory holds.
    """
    path = Path(path)
    with _open_archive(path) as archive:
        headers = _read_headers(archive, path)
        _check_need(headers, path)
        return {key: _read_array(archive, entry) for key, entry in _entries(archive, path).items()}


def read_headers(path: str | Path) -> dict[str, Header]:
    """Shapes and dtypes of all arrays. Raises: DataError: as `read_arrays`, without asking for memory."""
    path = Path(path)
    with _open_archive(path) as archive:
        return _read_headers(archive, path)


@contextlib.contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Raises: DataError: whatever goes wrong while it is open."""
    with _open(path) as file:
        found = CONVERTED.get(path.suffix.lower())
        if found:
            holds_objects = found.startswith("an array") and _has_objects(file)
            raise DataError(
                f"{path}: expected an .npz file, found {found}; {_conversion(path, holds_objects)}"
            )
        magic = file.read(4)
        if magic[:2] != b"PK":
            raise DataError(
                f"{path}: expected an .npz file (a zip archive), found a file that starts with {magic!r}"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except DataError:
            raise
        except MemoryError:
            raise DataError(f"{path}: does not fit in this machine's memory; use a smaller file") from None
        except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for damaged bytes
            raise DataError(
                f"{path}: the archive is cut short or damaged ({brief(error)}); collect or copy it again"
            ) from None


def _open(path: Path) -> IO[bytes]:
    """Raises: DataError: it is not there, cannot be read, or is no regular file: a pipe would be waited on for ever."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind == stat.S_IFREG:
            return path.open("rb")
    except FileNotFoundError:
        hint = f"collect one with `python -m data.collect --out {path}`"
        raise DataError(f"{path}: no such file; {hint}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: expected an .npz file that can be read, found: {reason}") from None
    if kind == stat.S_IFDIR and any((path / name).is_file() for name in MINARI_FILES):
        found = f"a Minari dataset; {_conversion(path)}"
    else:
        found = NO_ARRAY_FILE.get(kind, "no regular file")
    raise DataError(f"{path}: expected an .npz file, found {found}")


def _conversion(path: Path, holds_objects: bool = False) -> str:
    """The one command that makes a file of it that every script reads."""
    out = path.with_name(f"{path.stem}_plain.npz") if path.suffix == ".npz" else path.with_suffix(".npz")
    names = [f'"{name}"' if " " in str(name) else str(name) for name in (path, out)]
    flag = " --allow-pickle" if holds_objects else ""
    trust = ", if you trust the file: a pickle can run any code" if holds_objects else ""
    return f"make one of it: `python -m data.convert {' '.join(names)}{flag}`{trust}"


def _has_objects(file: IO[bytes]) -> bool:
    """Does a .npy file hold Python objects, by its header?"""
    try:
        version = np.lib.format.read_magic(file)
        return HEADERS[version](file)[2].hasobject
    except (ValueError, KeyError):
        return False


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by their keys, each once."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        key = entry.filename.removesuffix(".npy")
        if key in entries:
            raise DataError(f"{path}: {brief(key)}: expected one entry of this name, found two")
        if entry.compress_type not in PLAIN_METHODS:
            method = f"zip method {entry.compress_type}"
            raise DataError(f"{path}: {brief(key)}: expected what np.savez_compressed writes, found {method}")
        entries[key] = entry
    return entries


def _read_headers(archive: zipfile.ZipFile, path: Path) -> dict[str, Header]:
    return {key: _read_header(archive, entry, path) for key, entry in _entries(archive, path).items()}


def _read_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Header:
    """Raises: DataError: no array, one of objects, or one whose shape is not that of its bytes."""
    where = f"{path}: {brief(entry.filename.removesuffix('.npy'))}"
    with archive.open(entry) as file:
        magic = file.read(len(np.lib.format.MAGIC_PREFIX))
        if magic != np.lib.format.MAGIC_PREFIX:
            found = f"{entry.file_size} bytes of another kind"
            raise DataError(f"{where}: expected an array, found {found}")
        version = tuple(file.read(2))
        if version not in HEADERS:
            raise DataError(f"{where}: expected an array of .npy version 1.0 or 2.0, found {version}")
        shape, _, dtype = HEADERS[version](file)
        left = entry.file_size - file.tell()
    if dtype.hasobject:
        command = _conversion(path, holds_objects=True)
        raise DataError(f"{where}: expected plain numbers, found pickled Python objects; {command}")
    header = Header(shape, dtype)
    if min(shape, default=0) < 0 or header.nbytes != left:
        expected = f"{dtype} {shape}, {header.nbytes:,} bytes, as its header says"
        raise DataError(f"{where}: expected {brief(expected)}, found {left:,} bytes")
    return header


def _check_need(headers: dict[str, Header], path: Path) -> None:
    """Raises: DataError: larger boards than the game has, or more than this machine's memory holds."""
    for key in BOARDS:
        shape = headers[key].shape if key in headers else ()
        if len(shape) in (4, 5) and _num_cells(shape) > MAX_CELLS:
            expected = f"boards of at most {MAX_CELLS} cells"
            raise DataError(f"{path}: {key}: expected {expected}, found shape {brief(shape)}")
    num_bytes = sum(header.nbytes for header in headers.values())
    factor = memory.TRAJECTORY_FACTOR if is_trajectory_file(headers) else memory.FLAT_FACTOR
    if shortage := memory.shortage(int(factor * num_bytes)):
        raise DataError(f"{path}: {shortage}; use a smaller file")


def _num_cells(shape: tuple[int, ...]) -> int:
    """Of a board, [.., C, H, W] or [.., H, W, C]: where there are many cells, there are fewer channels than rows."""
    first, second, third = shape[-3:]
    return first * second if len(shape) == 4 and third <= first else second * third


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
