"""The trajectory file: written, read and checked. The keys, dtypes and shapes stand in `docs/design.md`."""

from __future__ import annotations

import hashlib
import json
import os
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from envs.stag_hunt import STAY, effective_actions, legal_actions

CHUNK = 8192  # rows checked or drawn at a time, so that a check never holds a copy of a large array
# key -> (dtype, number of dimensions)
SPEC = {
    "obs": ("uint8", 5),
    "actions": ("int8", 2),
    "rewards": ("float32", 2),
    "active": ("bool", 2),
    "episode_lengths": ("int32", 1),
    "terminated": ("bool", 1),
    "strategies": ("int8", 2),
}
OPTIONAL = {"attempted": ("int8", 2), "policy_probs": ("float32", 4)}
ACTION_COUNT = 7

DEFAULT_DATA = "data/stag_hunt_4p5b_8x8.npz"
"""what `--data` is by default: a file of this package's folder, wherever a script is started"""
DEFAULT_FILE = Path(__file__).resolve().parent / "stag_hunt_4p5b_8x8.npz"
"""107,010 active samples of seed 1: what the scripts train on"""
FRESH_FILE = DEFAULT_FILE.with_name("fresh_1001.npz")
"""100,000 board steps of seed 1001, of the same law: what targets are judged on"""
UNMASKED_FILE = DEFAULT_FILE.with_name("unmasked_1002.npz")
"""100,000 board steps of seed 1002, with 30% of the actions uniform over all seven: what world models are judged on"""


class DataError(ValueError):
    """A file that cannot be used. The message is one line: which file, which key, what was expected, what was found."""


@dataclass
class Trajectories:
    """Recorded episodes: E of them, N steps in all, A hunters, S strategies. Field by field as in the file."""

    obs: np.ndarray
    """uint8 [N+E, A, 5, H, W]"""
    actions: np.ndarray
    """int8 [N, A]"""
    rewards: np.ndarray
    """float32 [N, A]"""
    active: np.ndarray
    """bool [N, A]"""
    episode_lengths: np.ndarray
    """int32 [E]"""
    terminated: np.ndarray
    """bool [E]"""
    strategies: np.ndarray
    """int8 [E, A]"""
    policy_probs: np.ndarray | None
    """float32 [N, A, S, 7], or None"""
    metadata: dict
    path: str = ""
    attempted: np.ndarray | None = None
    """int8 [N, A], the action that each hunter asked for, legal or not; `actions` is what happened. Or None"""

    @cached_property
    def episode(self) -> np.ndarray:
        """int64 [N]: the episode of each step."""
        return np.repeat(np.arange(len(self.episode_lengths)), self.episode_lengths)

    @cached_property
    def tick(self) -> np.ndarray:
        """int64 [N]: the tick of each step, 0 at the start of its episode."""
        starts = np.cumsum(self.episode_lengths) - self.episode_lengths
        return np.arange(len(self.actions)) - starts[self.episode]

    @property
    def obs_row(self) -> np.ndarray:
        """int64 [N]: the row of `obs` that stands before each step (an episode has one observation more than steps)."""
        return np.arange(len(self.actions)) + self.episode

    @property
    def strategy_names(self) -> list[str]:
        return self.metadata["strategies"]

    @property
    def priors(self) -> np.ndarray:
        """float64 [S]: how likely each strategy was when a hunter's was drawn."""
        return np.array(self.metadata["priors"], np.float64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over keys, shapes, dtypes and bytes of all arrays: what a checkpoint says it was trained on."""
        digest = hashlib.sha256()
        for key in (*SPEC, *OPTIONAL):
            array = getattr(self, key)
            if array is not None:
                digest.update(f"{key} {array.dtype} {array.shape}".encode())
                digest.update(memoryview(np.ascontiguousarray(array)).cast("B"))
        return digest.hexdigest()

    def arrays(self) -> dict[str, np.ndarray]:
        """What the file holds, key by key."""
        found = {key: getattr(self, key) for key in (*SPEC, *OPTIONAL) if getattr(self, key) is not None}
        return found | {"metadata": np.array(json.dumps(self.metadata))}


def split_episodes(episodes: int, seed: int = 0, path: str | Path = "") -> dict[str, np.ndarray]:
    """Episode numbers of train, val and test: 80/10/10, shuffled by `seed`; the same for every run on a file.

    Raises: DataError: a part would be empty.
    """
    order = np.random.default_rng(seed).permutation(episodes)
    return _cut(order, "episodes", path)


def split_rows(rows: int, path: str | Path = "") -> dict[str, np.ndarray]:
    """Rows of train, val and test of a flat file, 80/10/10 in contiguous blocks: neighbours in time stay together.

    Raises: DataError: a part would be empty.
    """
    return _cut(np.arange(rows), "rows", path)


def _cut(order: np.ndarray, what: str, path) -> dict[str, np.ndarray]:
    held_out = len(order) // 10
    if held_out < 1:
        raise DataError(
            f"{path}: expected at least 10 {what} to split 80/10/10, found {len(order)} {what}: val and test would be empty"
        )
    train = len(order) - 2 * held_out
    return {
        "train": np.sort(order[:train]),
        "val": np.sort(order[train:-held_out]),
        "test": np.sort(order[-held_out:]),
    }


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed .npz: to a temporary file first, then `os.replace`d, so that `path` is whole or absent."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:  # a full disk's error names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, without pickles.

    Raises: DataError: no such file, not an .npz, cut short, or an array of Python objects.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; collect one with `python -m data.collect --out {path}`")
    if path.is_dir():
        raise DataError(f"{path}: expected an .npz file, found a folder")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] != b"PK":
        raise DataError(
            f"{path}: expected an .npz file (a zip archive), found a file that starts with {magic!r}"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {}
            for key in archive.files:
                try:
                    arrays[key] = archive[key]
                except ValueError as error:
                    if "pickle" in str(error).lower() or "object" in str(error).lower():
                        raise DataError(
                            f"{path}: {key}: expected plain numbers, found pickled Python objects"
                        ) from None
                    raise
                if not isinstance(arrays[key], np.ndarray):
                    raise DataError(
                        f"{path}: {key}: expected an array, found {len(arrays[key])} bytes of another kind"
                    )
            return arrays
    except DataError:
        raise
    except (
        zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError,
        RuntimeError, MemoryError, SyntaxError, tokenize.TokenError,  # a damaged zip entry or array header
    ) as error:  # fmt: skip
        raise DataError(
            f"{path}: the archive is cut short or damaged ({error}); collect or copy it again"
        ) from None


def is_trajectory_file(arrays: dict[str, np.ndarray]) -> bool:
    """Does it hold episodes? Flat files of older code have no `episode_lengths`."""
    return "episode_lengths" in arrays or "strategies" in arrays


def load(path: str | Path) -> Trajectories:
    """Read a trajectory file and check everything in it.

    Peak memory is 1.0 to 1.1 times the arrays' bytes: each array is read once into place, and checked in chunks.
    Raises: DataError: in one line, the path, the key, what was expected and what was found.
    """
    return check(read_arrays(path), path)


def check(arrays: dict[str, np.ndarray], path: str | Path = "") -> Trajectories:
    """Trajectories from arrays in the file's format. Raises: DataError."""

    def need(condition, key: str, expected: str, found) -> None:
        if not condition:
            raise DataError(f"{path}: {key}: expected {expected}, found {found}")

    for key, (dtype, rank) in (SPEC | OPTIONAL).items():
        if key in OPTIONAL and key not in arrays:
            continue
        need(
            key in arrays,
            key,
            f"an array {dtype} with {rank} dimensions",
            f"no such key (keys: {', '.join(arrays)})",
        )
        need(arrays[key].dtype == dtype, key, f"dtype {dtype}", arrays[key].dtype)
        need(arrays[key].ndim == rank, key, f"{rank} dimensions", f"shape {arrays[key].shape}")
    metadata = _read_metadata(arrays, path)

    obs, actions, lengths = arrays["obs"], arrays["actions"], arrays["episode_lengths"]
    episodes = len(lengths)
    need(episodes > 0, "episode_lengths", "at least one episode", "zero episodes")
    need(
        lengths.min() > 0,
        "episode_lengths",
        "lengths of at least 1",
        f"{lengths.min()} in episode {lengths.argmin()}",
    )
    steps, seats = int(lengths.sum(dtype=np.int64)), obs.shape[1]
    names = metadata["strategies"]
    shapes = {
        "obs": (steps + episodes, seats, 5, *obs.shape[3:]),
        "actions": (steps, seats),
        "rewards": (steps, seats),
        "active": (steps, seats),
        "terminated": (episodes,),
        "strategies": (episodes, seats),
        "attempted": (steps, seats),
        "policy_probs": (steps, seats, len(names), ACTION_COUNT),
    }
    for key, shape in shapes.items():
        if key in arrays:
            need(
                arrays[key].shape == shape,
                key,
                f"shape {shape} (from episode_lengths and obs)",
                arrays[key].shape,
            )

    for key in ("actions", "attempted"):
        if key in arrays:
            bad = (arrays[key] < 0) | (arrays[key] >= ACTION_COUNT)
            need(not bad.any(), key, "values in 0..6", _first(bad, arrays[key]))
    bad = ~np.isfinite(arrays["rewards"])
    need(not bad.any(), "rewards", "finite numbers", _first(bad, arrays["rewards"]))
    bad = (arrays["strategies"] < 0) | (arrays["strategies"] >= len(names))
    need(
        not bad.any(),
        "strategies",
        f"values in 0..{len(names) - 1} ({', '.join(names)})",
        _first(bad, arrays["strategies"]),
    )

    trajectories = Trajectories(
        **{key: arrays.get(key) for key in (*SPEC, *OPTIONAL)}, metadata=metadata, path=str(path)
    )
    active, row = arrays["active"], trajectories.obs_row
    for start in range(0, len(obs), CHUNK):
        part = obs[start : start + CHUNK]
        need(part.max(initial=0) <= 1, "obs", "cells of 0 or 1", f"{part.max(initial=0)} near row {start}")
        count = np.count_nonzero(part[:, :, 0], axis=(2, 3))  # [rows, A]
        need(
            count.max(initial=0) <= 1,
            "obs",
            "at most one cell in a SELF plane",
            _first(count > 1, count, start),
        )
    for start in range(0, steps, CHUNK):
        part = slice(start, start + CHUNK)
        on_board = obs[row[part]][:, :, 0].any(axis=(2, 3))
        bad = on_board != active[part]
        need(
            not bad.any(),
            "active",
            "True exactly where the SELF plane has a cell",
            _first(bad, active[part], start),
        )
        legal = legal_actions(obs[row[part]])
        bad = actions[part] != effective_actions(actions[part], legal)
        need(
            not bad.any(),
            "actions",
            "effective actions: legal ones, STAY once a hunter has left",
            _first(bad, actions[part], start),
        )
        if trajectories.attempted is not None:
            attempted = trajectories.attempted[part]
            bad = ~active[part] & (attempted != STAY)
            need(not bad.any(), "attempted", "STAY once a hunter has left", _first(bad, attempted, start))
            bad = actions[part] != effective_actions(attempted, legal)
            need(
                not bad.any(),
                "attempted",
                "the action in `actions`, or an illegal one where `actions` is STAY",
                _first(bad, attempted, start),
            )
        if trajectories.policy_probs is not None:
            probs = trajectories.policy_probs[part]
            bad = ~(np.abs(probs.sum(-1) - 1.0) < 1e-4) | (probs < 0).any(-1)
            need(
                not bad.any(),
                "policy_probs",
                "rows of probabilities that sum to 1",
                _first(bad, probs.sum(-1), start),
            )
    for start in range(0, len(obs), CHUNK):
        part = obs[start : start + CHUNK]
        bad = (part[:, :, 2:] != part[:, :1, 2:]).any(axis=(2, 3, 4))
        need(
            not bad.any(),
            "obs",
            "one board for all hunters of a step (BLOCKS, STAGS, HARES)",
            _first(bad, bad, start),
        )
        others = part[:, :, 0].sum(1, dtype=np.uint8)[:, None] > part[:, :, 0]  # [rows, A, H, W]
        bad = (part[:, :, 1] != others).any(axis=(2, 3))
        need(
            not bad.any(),
            "obs",
            "OTHERS where the other hunters' SELF planes have a cell",
            _first(bad, bad, start),
        )
    bad = (arrays["rewards"] != 0) & ~active
    need(not bad.any(), "rewards", "0 for a hunter that has left", _first(bad, arrays["rewards"]))
    need(active.any(), "active", "at least one active sample", "none")
    return trajectories


def _read_metadata(arrays: dict[str, np.ndarray], path) -> dict:
    if "metadata" not in arrays:
        raise DataError(f"{path}: metadata: expected a JSON string, found no such key")
    try:
        metadata = json.loads(str(arrays["metadata"]))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: metadata: expected a JSON string, found text that is not JSON ({error})"
        ) from None
    names, priors = (
        (metadata.get(key) for key in ("strategies", "priors"))
        if isinstance(metadata, dict)
        else (None, None)
    )
    if not isinstance(names, list) or not names or not isinstance(priors, list) or len(priors) != len(names):
        raise DataError(
            f"{path}: metadata: expected `strategies` and `priors`, lists of one length, found {names}, {priors}"
        )
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: metadata: expected `strategies` as names, found {names}")
    if not all(isinstance(p, (int, float)) and p >= 0 for p in priors) or abs(sum(priors) - 1) > 1e-6:
        raise DataError(f"{path}: metadata: expected `priors` that sum to 1, found {priors}")
    if not isinstance(metadata.get("rules"), (dict, type(None))):
        raise DataError(
            f"{path}: metadata: expected `rules` as names and values, found {metadata['rules']!r}"
        )
    return metadata


def _first(bad: np.ndarray, values: np.ndarray, start: int = 0) -> str:
    """The first bad value and where it stands; nothing where none is bad."""
    if not bad.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{values[at]} at {[at[0] + start, *at[1:]]}"


def default_or_fresh(path: str | Path) -> Path:
    """Where `--data PATH` lies. The default file, `fresh` and `unmasked` are collected on first use; others must exist."""
    path = _path_of(path)
    settings = {
        DEFAULT_FILE: {},
        FRESH_FILE: dict(steps=100_000, seed=1001),
        UNMASKED_FILE: dict(steps=100_000, seed=1002, unmasked=0.3),
    }
    if not path.exists() and path.resolve() in settings:
        from data.collect import Args, collect_to_file  # here, since `collect` is a command of its own

        collect_to_file(Args(out=str(path), **settings[path.resolve()]))
    return path


def training_file(path: str | Path) -> Path:
    """As `default_or_fresh`, for training. Raises: DataError: the file is one of the two that judge."""
    if _path_of(path).resolve() in (FRESH_FILE.resolve(), UNMASKED_FILE.resolve()):
        raise DataError(
            f"{path}: this file is for judging only; train on another (`python -m data.collect --help`)"
        )
    return default_or_fresh(path)


def _path_of(path: str | Path) -> Path:
    names = {DEFAULT_DATA: DEFAULT_FILE, "fresh": FRESH_FILE, "unmasked": UNMASKED_FILE}
    return names.get(Path(path).as_posix(), Path(path))
