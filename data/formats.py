"""Files that other code wrote: NumPy, PyTorch, CSV, HDF5. `data.convert` makes a file of ours of them.

Nothing here runs what a file says: pickles are opened with `allow_pickle` alone, PyTorch's files as weights only.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from data import memory
from data.flat import ENDS, NAMES
from data.npz import HEADERS, DataError, brief
from data.trajectories import OPTIONAL, SPEC

ROW_KEYS = NAMES | {name: (name,) for name in ENDS}
TRAJECTORY_KEYS = (*SPEC, *OPTIONAL, "metadata")
CHOICES = {name: (name,) for name in TRAJECTORY_KEYS} | ROW_KEYS
"""what other code calls an array, by the name that we give it; the first of them that is there counts"""
KNOWN = {name for names in CHOICES.values() for name in names}
COLUMN = re.compile(r"(.*?)((?:_\d{1,4})*)")  # of a table: a key, and where the value stands in its array
NUMPY_TYPES = ("bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")


def read_file(path: str | Path, allow_pickle: bool = False) -> Any:
    """What the file holds, by its ending: a dict of arrays, lists or dicts, a list of dicts, or a structured array.

    Values of names that are not in KNOWN may be missing: None.
    Raises: DataError: in one line, what is wrong with the file; also, that an optional package is missing.
    """
    path = Path(path)
    reader = READERS[path.suffix.lower()]
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no regular file" if path.exists() else "no such file"
        raise DataError(f"{path}: expected a {path.suffix} file, found {found}")
    try:
        with warnings.catch_warnings(action="ignore"):  # PyTorch and pandas have lines of their own
            return reader(path, allow_pickle)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{path}: {error}") from None
    except MemoryError:
        raise DataError(f"{path}: does not fit in this machine's memory; use a smaller file") from None
    except Exception as error:  # each library raises its own dozen kinds for damaged bytes
        raise DataError(
            f"{path}: expected a {path.suffix} file, found one that cannot be read ({one_line(error)})"
        ) from None


def one_line(error: Exception) -> str:
    """A library's message, which may have several."""
    return brief(" ".join(str(error).split()))


def needs(package: str, install: str) -> ImportError:
    """The error that says how an optional package is installed."""
    return ImportError(f"this needs {package}, which is not installed: pip install {install}")


def check_memory(path: str | Path, num_bytes: int) -> None:
    """Before arrays of so many bytes are read. Raises: DataError: they do not fit in this machine's memory."""
    if shortage := memory.shortage(memory.FLAT_FACTOR * num_bytes):
        raise DataError(f"{path}: {shortage}; use a smaller file")


# ---- NumPy


def read_npy(path: Path, allow_pickle: bool) -> Any:
    """A structured array, or what an array of objects holds. A plain array is named by its file, `obs.npy`, and the
    others of KNOWN names that lie beside it belong to it."""
    content = read_npy_file(path, allow_pickle)
    if content.dtype.names or content.dtype.hasobject:
        return content if content.ndim else content[()]
    if path.stem not in KNOWN:
        hint = "name its file by its key, such as obs.npy, with actions.npy beside it"
        raise DataError(f"{path}: one array {content.shape} without a name: {hint}")
    beside = [file for file in sorted(path.parent.glob("*.npy")) if file.stem in KNOWN]
    return {file.stem: read_npy_file(file, allow_pickle) for file in beside}


def read_npy_file(path: Path, allow_pickle: bool) -> np.ndarray:
    with path.open("rb") as file:
        return read_array(file, path, allow_pickle)


def read_array(file: IO[bytes], where: str | Path, allow_pickle: bool) -> np.ndarray:
    """One array of a .npy file. (`np.load` would take any other file for a pickle.)"""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise DataError(f"{where}: expected an array of .npy version 1.0 or 2.0, found {version}")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject and not allow_pickle:
        raise DataError(
            f"{where}: it holds pickled Python objects, and opening a pickle can run any code on this machine: "
            "give --allow-pickle if you trust the file"
        )
    check_memory(where, math.prod(shape) * dtype.itemsize)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=allow_pickle)


def read_npz(path: Path, allow_pickle: bool) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            key = name.removesuffix(".npy")
            with archive.open(name) as file:
                arrays[key] = read_array(file, f"{path}: {brief(key)}", allow_pickle)
    return arrays


# ---- PyTorch


def read_pt(path: Path, allow_pickle: bool) -> Any:
    """Tensors and arrays, whatever `allow_pickle` says: a file of PyTorch that holds more is not opened."""
    import torch  # not on import: this package does without

    check_memory(path, path.stat().st_size)
    numpy_types: list[Any] = [type(np.dtype(name)) for name in NUMPY_TYPES]
    make_array, make_scalar = (value.__reduce__()[0] for value in (np.zeros(0), np.float32(0)))
    numpy_types += [np.ndarray, np.dtype, make_array, make_scalar]
    numpy_types.append((make_array, "numpy.core.multiarray._reconstruct"))  # as NumPy 1 called them
    numpy_types.append((make_scalar, "numpy.core.multiarray.scalar"))
    with torch.serialization.safe_globals(numpy_types):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its own message advises to load it without this care
            raise DataError(
                f"{path}: expected a dict of tensors, saved by torch.save, found other objects or other bytes; "
                'save torch.save({"obs": obs, "actions": actions}, ..)'
            ) from None


# ---- tables


def read_csv(path: Path, allow_pickle: bool) -> dict[str, np.ndarray]:
    """A row is a step; a column is `times`, or a value of an array: `actions_2` is actions[row, 2], `obs_6_0_3` is
    obs[row, 6, 0, 3]."""
    import pandas

    check_memory(path, path.stat().st_size)
    table = pandas.read_csv(path)
    columns: dict[str, dict[tuple[int, ...], str]] = {}
    for column in table.columns:
        name, index = COLUMN.fullmatch(str(column)).groups()
        place = tuple(int(number) for number in index.split("_")[1:])
        columns.setdefault(name, {})[place] = column
    return {
        name: _array_of_columns(table, name, places, path) if name in KNOWN else None
        for name, places in columns.items()
    }


def _array_of_columns(table: Any, name: str, places: dict[tuple[int, ...], str], path: Path) -> np.ndarray:
    """[rows, ..], from the columns by their places. Raises: DataError: one is missing, or is not of numbers."""
    order = sorted(places)
    ranks = {len(place) for place in order}
    shape = tuple(1 + max(axis) for axis in zip(*order, strict=False))
    if len(ranks) > 1 or math.prod(shape) != len(order):
        last = "_".join(str(size - 1) for size in shape)
        expected = f"a column for each of {'x'.join(map(str, shape))} values, the last one {name}_{last}"
        raise DataError(f"{path}: {name}: expected {expected}, found {len(order)} columns")
    values = []
    for place in order:
        column = table[places[place]].to_numpy()
        if column.dtype.kind not in "biuf":
            raise DataError(f"{path}: {places[place]}: expected numbers, found text or empty cells")
        if np.isnan(column).any():
            line = 2 + int(np.isnan(column).argmax())
            raise DataError(f"{path}: {places[place]}: expected numbers, found an empty cell in line {line}")
        values.append(column)
    return np.stack(values, 1).reshape(len(table), *shape)


# ---- HDF5


def read_hdf5(path: Path, allow_pickle: bool) -> dict[str, np.ndarray]:
    """Datasets by name; where the file has none and one group, those of the group."""
    try:
        import h5py
    except ImportError:
        raise needs("h5py", "h5py") from None
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: expected an HDF5 file, found other bytes")
    with h5py.File(path, "r") as file:
        group, groups = file, [file]
        while not KNOWN & set(group) and len(groups) == 1:
            group = groups[0]
            groups = [item for item in group.values() if isinstance(item, h5py.Group)]
        wanted = {name: group[name] for name in group if name in KNOWN}
        arrays = {name: item for name, item in wanted.items() if isinstance(item, h5py.Dataset)}
        check_memory(path, sum(item.nbytes for item in arrays.values()))
        unread = {name: None for name in group if name not in arrays}
        return {name: _read_dataset(item) for name, item in arrays.items()} | unread


def _read_dataset(dataset: Any) -> np.ndarray:
    import h5py

    is_text = h5py.check_string_dtype(dataset.dtype)
    return np.asarray(dataset.asstr()[()] if is_text else dataset[()])


READERS: dict[str, Callable[[Path, bool], Any]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".pt": read_pt,
    ".pth": read_pt,
    ".csv": read_csv,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}
