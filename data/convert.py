"""Make a file that every script reads of one in another format: `python -m data.convert IN OUT`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from data.flat import game_of_metadata, read_flat
from data.formats import CHOICES, KNOWN, READERS, ROW_KEYS, TRAJECTORY_KEYS, one_line, read_file
from data.minari_dataset import check_new, is_minari, read_minari, write_minari
from data.npz import DataError, brief
from data.trajectories import (
    OPTIONAL,
    SPEC,
    Trajectories,
    check,
    check_output,
    chunks,
    save_arrays,
)
from envs.stag_hunt import GAME


@dataclass
class Args:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """a .npy, .npz, .pt, .csv, .h5 or .hdf5 file, or a Minari dataset: its id or its folder"""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """the .npz file to write; with --to minari, the id of the new dataset, such as stag_hunt/mine-v0"""
    to: Literal["npz", "minari"] = "npz"
    """`minari` makes a Minari dataset of a trajectory file"""
    layout: Literal["auto", "planes", "hop", "hop-first"] = "auto"
    """of rows on boards that are not square, as in the scripts"""
    allow_pickle: bool = False
    """open Python objects that np.save has pickled. A pickle can run any code on this machine, with all your rights:
    only for files of people whom you trust"""


# ---- what the source holds


def read_source(source: str, allow_pickle: bool) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """The arrays under our names, the names of all else in the source, what was assumed. Raises: DataError."""
    suffix = Path(source).suffix.lower()
    if suffix in READERS:
        return *named_arrays(read_file(source, allow_pickle), source), []
    if is_minari(source):
        arrays, assumed = read_minari(source)
        return *named_arrays(arrays, source), assumed
    endings = ", ".join(READERS)
    found = f"the ending {suffix!r}" if suffix else "neither"
    raise DataError(
        f"{source}: expected a file that ends with {endings}, or the folder or id of a Minari dataset, found {found}"
    )


def named_arrays(content: Any, path: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays under our names, and the names that are not used.

    Args: content: a dict of arrays, in which only one other may stand; a structured array; or a list of dicts, one a
        step or one an episode.
    Raises: DataError: another kind of object, or no name that we know.
    """
    if isinstance(content, np.ndarray) and content.dtype.names:
        content = {name: content[name] for name in content.dtype.names}
    if isinstance(content, (list, tuple, np.ndarray)):
        content = join_records(content, path)
    groups = [content]
    while isinstance(content, Mapping) and not KNOWN & content.keys() and len(groups) == 1:
        content = groups[0]
        groups = [value for value in content.values() if isinstance(value, Mapping)]
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected a dict of arrays, found {type(content).__name__}")
    found = [brief(name, 40) for name in content]
    arrays, used = {}, set()
    for key, names in CHOICES.items():
        name = next((name for name in names if content.get(name) is not None), None)
        if name is not None:
            arrays[key] = to_array(content[name], name, path)
            used.add(name)
    if not arrays:
        listed = brief(", ".join(found)) or "none"
        raise DataError(f"{path}: expected arrays named obs, actions and others, found the names {listed}")
    return arrays, [name for name in found if name not in used]


def join_records(records: Any, path: str) -> dict[str, np.ndarray]:
    """A list of steps, or of episodes with T steps and T or T+1 observations, as rows. Raises: DataError."""
    records = list(records)
    if not records or not all(isinstance(record, Mapping) for record in records):
        kind = type(records[0]).__name__ if records else "nothing"
        raise DataError(f"{path}: expected dicts of arrays, one a step or one an episode, found {kind}")
    parts = [named_arrays(record, path)[0] for record in records]
    keys = set(parts[0])
    for number, part in enumerate(parts):
        if set(part) != keys:
            expected = f"the keys of the first entry, {', '.join(sorted(keys))}"
            raise DataError(f"{path}: entry {number}: expected {expected}, found {', '.join(sorted(part))}")
    if "obs" not in keys or "actions" not in keys:
        raise DataError(
            f"{path}: expected `obs` and `actions` in each entry, found {', '.join(sorted(keys))}"
        )
    if parts[0]["obs"].ndim == 3:
        join = np.stack
    else:
        join = np.concatenate
        parts = [rows_of_episode(part) for part in parts]
    try:
        return {key: join([part[key] for part in parts]) for key in parts[0]}
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: expected entries of one shape ({one_line(error)})") from None


def rows_of_episode(episode: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows with `times`, and `next_obs` where there is one observation more than steps."""
    obs, steps = episode["obs"], len(episode["actions"])
    rows = {"times": np.arange(steps)} | episode
    if len(obs) == steps + 1:
        rows |= {"obs": obs[:-1], "next_obs": obs[1:]}
    return rows


def to_array(value: Any, name: str, path: str) -> np.ndarray:
    """Raises: DataError: it is not numbers, nor text, nor lists of one shape."""
    if name == "metadata" and isinstance(value, Mapping):
        value = json.dumps(value, default=str)
    try:
        if hasattr(value, "detach"):  # a tensor
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
        if array.dtype.hasobject:  # of numbers, or of arrays of one shape
            array = np.asarray(array.tolist())
    except Exception as error:
        raise DataError(f"{path}: {name}: expected an array, found {one_line(error)}") from None
    if array.dtype.kind not in ("U" if name == "metadata" else "biuf"):
        raise DataError(f"{path}: {name}: expected numbers, found {array.dtype} of shape {array.shape}")
    return array


# ---- what is written


def as_trajectories(arrays: dict[str, np.ndarray], path: str) -> Trajectories:
    """Checked; whole numbers of another type are of the file's type then. Raises: DataError."""
    arrays = {key: arrays[key] for key in TRAJECTORY_KEYS if key in arrays}
    for key, (dtype, _) in (SPEC | OPTIONAL).items():
        if key in arrays and arrays[key].dtype.kind in "biuf":
            with np.errstate(all="ignore"):
                cast = arrays[key].astype(dtype)
            if dtype == "float32" or np.array_equal(cast, arrays[key]):
                arrays[key] = cast
    return check(arrays, path)


def as_rows(
    arrays: dict[str, np.ndarray], path: str, layout: str = "auto"
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows, their boards of one byte a cell, and what `read_flat` infers. Raises: DataError: it cannot read them."""
    rows = {key: arrays[key] for key in row_keys(arrays, path) if key in arrays}
    for key in ("obs", "next_obs"):
        if key in rows:
            rows[key] = as_cells(rows[key])
    flat = read_flat(rows, path, layout)
    _, first, second, third = rows["obs"].shape
    has_planes = first == len(flat.game.planes) and second == third
    is_planes = layout == "planes" or (layout == "auto" and has_planes)
    if not is_planes:
        flat = read_flat(rows, path, layout, joint=True)
    return rows, [line for line in flat.inferred if not line.endswith("not used")]


def row_keys(arrays: dict[str, np.ndarray], path: str) -> tuple[str, ...]:
    """Of what rows keep: `metadata` too, where it says that they are of another game than the stag hunt."""
    is_other = game_of_metadata(arrays, path) != GAME
    return (*ROW_KEYS, "metadata") if is_other else tuple(ROW_KEYS)


def as_cells(array: np.ndarray) -> np.ndarray:
    """uint8, where all are 0 or 1; else itself."""
    binary = all(((array[part] == 0) | (array[part] == 1)).all() for part in chunks(array))
    return array.astype(np.uint8, copy=False) if binary else array


def convert(args: Args) -> str:
    """Read the source, check it, and write the file or the dataset.

    Returns: what was found, in one line.
    Raises: DataError: the source cannot be used, or OUT not be written.
    """
    if args.to == "minari":
        check_new(args.out)
    else:
        check_output(args.out)
        if Path(args.out).suffix.lower() != ".npz":
            raise DataError(f"{args.out}: expected the name of an .npz file to write, or --to minari")
    arrays, unused, assumed = read_source(args.source, args.allow_pickle)
    has_episodes = "obs" in arrays and arrays["obs"].ndim == 5
    keys = TRAJECTORY_KEYS if has_episodes else row_keys(arrays, args.source)
    unused += [key for key in arrays if key not in keys]
    if has_episodes:
        trajectories = as_trajectories(arrays, args.source)
        found = [f"{len(trajectories.episode_lengths):,} episodes", f"{len(trajectories.actions):,} steps"]
        found.append(f"{trajectories.active.sum():,} active samples of {trajectories.obs.shape[1]} hunters")
        arrays = trajectories.arrays()
    else:
        if args.to == "minari":
            raise DataError(f"{args.source}: expected a trajectory file for --to minari, found rows")
        try:
            arrays, inferred = as_rows(arrays, args.source, args.layout)
        except DataError as error:
            raise DataError("; ".join([str(error), *assumed])) from None
        found = [f"{len(arrays['obs']):,} rows of {', '.join(arrays)}", *assumed, *inferred]
    found += [f"not used: {', '.join(unused)}"] if unused else []
    if args.to == "minari":
        where = write_minari(trajectories, args.out, progress=True)
    else:
        save_arrays(args.out, arrays)
        where = Path(args.out)
    return f"{args.source}: {'; '.join(found)}; written to {where}"


if __name__ == "__main__":
    import tracking  # the command line alone needs it

    def main() -> None:
        args = tracking.parse_args(Args, __doc__)
        print(f"[DATA] {convert(args)}", flush=True)

    tracking.run(main, DataError)
