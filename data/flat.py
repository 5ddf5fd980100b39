"""Flat files of older code: rows instead of episodes, in the HOP layout or as five planes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.npz import DataError
from data.trajectories import ACTION_COUNT, chunks, first_bad, require
from envs.grid import hop_to_joint

MAX_TICK = 9999  # a tick is looked up in a table
Need = Callable[..., None]  # `require` of one file


@dataclass
class Flat:
    """N rows; every array is checked, and observer-first data is brought into the observer's own five planes."""

    planes: np.ndarray
    """uint8 [N, 5, H, W], as the row's observer sees the board"""
    actions: np.ndarray
    """int64 [N], the observer's own action"""
    ticks: np.ndarray
    """int64 [N]"""
    inferred: list[str]
    """what was not in the file and had to be concluded, a line each"""
    # With `joint` alone; hunters in seat order where the file has `observer`, else observer-first:
    joint: np.ndarray | None = None
    """uint8 [N, A+3, H, W]"""
    next_joint: np.ndarray | None = None
    """uint8 [N, A+3, H, W], from `next_obs` where the file has it"""
    joint_actions: np.ndarray | None = None
    """int64 [N, A], -1 where not known"""
    rewards: np.ndarray | None = None
    """float32 [N, A], NaN where not known"""


def read_flat(
    arrays: dict[str, np.ndarray], path: str | Path, layout: str = "auto", joint: bool = False
) -> Flat:
    """Rows from the arrays `obs` (or `states`), `actions`, and optionally `times`, `observer`; with `joint`, `rewards`
    and `next_obs`, too.

    Args:
        layout: `planes` is [N, 5, H, W], `hop` [N, H, W, A+3], `hop-first` [N, A+3, H, W]; `auto` concludes it.
        joint: read all that was recorded of all hunters. Five planes merge the others, and are refused.
    Raises: DataError: in one line, the path, the key, what was expected and what was found.
    """
    need = partial(require, path)
    key = "obs" if "obs" in arrays else "states"
    found = f"no such key (keys: {', '.join(arrays)})"
    need(key in arrays, "obs", "an array `obs` or `states`", found)
    need("actions" in arrays, "actions", "an array of actions", found)
    obs = arrays[key]
    need(obs.ndim == 4, key, "4 dimensions, [N, C, H, W] or [N, H, W, C]", f"shape {obs.shape}")
    _check_cells(key, obs, need)
    inferred = []
    if layout == "auto":
        layout = _infer_layout(obs.shape, key, path)
        inferred.append(f"layout {layout} from shape {obs.shape}")
    need(
        layout != "planes" or not joint,
        key,
        "the HOP layout, a plane for each hunter ([N, H, W, A+3], or [N, A+3, H, W] with --layout hop-first)",
        f"shape {obs.shape}, five planes, which merge the other hunters into one",
    )
    hop, seats = None, None
    if layout == "planes":
        need(obs.shape[1] == 5, key, "[N, 5, H, W], channels first", f"shape {obs.shape}")
        planes = obs.astype(np.uint8, copy=False)
    else:
        hop = _channels_last(key, obs, layout, need)
        seats = hop.shape[3] - 3
        planes = _own_planes(hop)
        inferred.append(f"{seats} hunters from {hop.shape[3]} channels")
    count = planes[:, 0].sum((1, 2))
    need(count.max() <= 1, key, "at most one cell in a SELF plane", f"{count.max()} in row {count.argmax()}")

    actions = arrays["actions"]
    _check_actions(actions, len(obs), key, need)
    own, order = actions, "seat order" if "observer" in arrays else "observer-first order"
    if actions.ndim == 2 or joint:
        columns = actions.shape[1] if actions.ndim == 2 else seats
        need(seats in (None, columns), "actions", f"{seats} columns, one a hunter", f"shape {actions.shape}")
        observer = _observers(arrays, len(obs), columns, need)
    if actions.ndim == 2:
        inferred.append(f"joint actions in {order}")
        own = actions[np.arange(len(obs)), observer]
    elif joint:
        inferred.append(f"actions of the observer alone, hunters in {order}")
    ticks = _ticks(arrays, len(obs), need)
    if "times" not in arrays:
        inferred.append("tick 0 everywhere (no `times`)")
    flat = Flat(planes, own.astype(np.int64), ticks, inferred)
    if not joint:
        inferred += [f"`{name}` is not used" for name in ("rewards", "next_obs") if name in arrays]
        return flat

    flat.joint = _in_seat_order(key, hop, observer, need)
    if "next_obs" in arrays:
        next_obs = arrays["next_obs"]
        need(
            next_obs.shape == obs.shape, "next_obs", f"shape {obs.shape}, as {key}", f"shape {next_obs.shape}"
        )
        _check_cells("next_obs", next_obs, need)
        next_hop = _channels_last("next_obs", next_obs, layout, need)
        flat.next_joint = _in_seat_order("next_obs", next_hop, observer, need)
    flat.joint_actions = _columns(actions.astype(np.int64), seats, observer, -1)
    if "rewards" not in arrays:
        inferred.append("rewards are not known (no `rewards`)")
        flat.rewards = np.full((len(obs), seats), np.nan, np.float32)
        return flat
    rewards = _rewards(arrays["rewards"], len(obs), seats, need)
    if rewards.ndim == 1:
        inferred.append("rewards of the observer alone")
    flat.rewards = _columns(rewards, seats, observer, np.nan)
    return flat


# ---- layouts


def _infer_layout(shape: tuple[int, ...], key: str, path: str | Path) -> str:
    channels_first = shape[1] == 5 and shape[2] == shape[3]
    channels_last = shape[3] > 4 and shape[1] == shape[2]
    if channels_first == channels_last:
        raise DataError(
            f"{path}: {key}: expected [N, 5, H, W] or [N, H, W, A+3] with a square board, found shape {shape}; "
            "say which with --layout planes, hop or hop-first ([N, A+3, H, W])"
        )
    return "planes" if channels_first else "hop"


def _channels_last(key: str, obs: np.ndarray, layout: str, need: Need) -> np.ndarray:
    """A view as [N, H, W, A+3]."""
    if layout == "hop-first":
        need(obs.shape[1] > 3, key, "[N, A+3, H, W], channels first", f"shape {obs.shape}")
        return np.moveaxis(obs, 1, -1)
    need(obs.shape[3] > 3, key, "[N, H, W, A+3], channels last", f"shape {obs.shape}")
    return obs


def _own_planes(hop: np.ndarray) -> np.ndarray:
    """[N, H, W, A+3] -> uint8 [N, 5, H, W]: the first hunter is the observer, in which seat it sits plays no part."""
    seats = hop.shape[3] - 3
    planes = np.empty((len(hop), 5, *hop.shape[1:3]), np.uint8)
    planes[:, 0] = hop[..., 0]
    planes[:, 1] = hop[..., 1:seats].max(-1, initial=0)
    planes[:, 2:] = np.moveaxis(hop[..., seats:], -1, 1)
    return planes


def _in_seat_order(key: str, hop: np.ndarray, observer: np.ndarray, need: Need) -> np.ndarray:
    """[N, H, W, A+3] -> uint8 [N, A+3, H, W], in chunks."""
    joint = np.empty((len(hop), hop.shape[3], *hop.shape[1:3]), np.uint8)
    for part in chunks(hop):
        joint[part] = hop_to_joint(hop[part].astype(np.uint8, copy=False), observer[part])
    count = joint[:, :-3].sum((2, 3))  # [N, A]
    bad = count > 1
    need(not bad.any(), key, "at most one cell in the plane of a hunter", first_bad(bad, count))
    return joint


def _columns(values: np.ndarray, seats: int, observer: np.ndarray, unknown: float) -> np.ndarray:
    """[N], the observers', -> [N, A], `unknown` for the others; [N, A] stays."""
    if values.ndim == 2:
        return values
    joint = np.full((len(values), seats), unknown, values.dtype)
    joint[np.arange(len(values)), observer] = values
    return joint


# ---- checks


def _check_cells(key: str, obs: np.ndarray, need: Need) -> None:
    need(obs.dtype.kind in "biuf", key, "numbers", f"dtype {obs.dtype}")
    need(len(obs) > 0, key, "at least one row", "zero rows")
    need(obs.size > 0, key, "a board", f"shape {obs.shape}")
    binary = all(((obs[part] == 0) | (obs[part] == 1)).all() for part in chunks(obs))
    need(binary, key, "cells of 0 or 1", f"values from {obs.min()} to {obs.max()}")


def _check_actions(actions: np.ndarray, rows: int, key: str, need: Need) -> None:
    shape = f"shape {actions.shape}"
    fits = actions.ndim in (1, 2) and len(actions) == rows
    need(fits, "actions", f"{rows} rows, as in {key}", shape)
    need(actions.size > 0, "actions", "at least one column", shape)
    need(actions.dtype.kind in "iu", "actions", "integers", f"dtype {actions.dtype}")
    lowest, highest = actions.min(), actions.max()
    known = lowest >= 0 and highest < ACTION_COUNT
    need(known, "actions", "values in 0..6", f"{lowest} to {highest}")


def _observers(arrays: dict[str, np.ndarray], rows: int, columns: int, need: Need) -> np.ndarray:
    """int64 [N]: the column of each row's observer; 0 where the file has no `observer`."""
    if "observer" not in arrays:
        return np.zeros(rows, np.int64)
    observer = arrays["observer"]
    need(observer.dtype.kind in "iu", "observer", "integers", f"dtype {observer.dtype}")
    observer = observer.astype(np.int64)
    need(observer.shape == (rows,), "observer", f"shape {(rows,)}", f"shape {observer.shape}")
    lowest, highest = observer.min(), observer.max()
    known = lowest >= 0 and highest < columns
    need(known, "observer", f"seats in 0..{columns - 1}", f"{lowest} to {highest}")
    return observer


def _ticks(arrays: dict[str, np.ndarray], rows: int, need: Need) -> np.ndarray:
    """int64 [N]: `times`; 0 where the file has none."""
    times = arrays.get("times", np.zeros(rows, np.int64))
    fits = times.shape == (rows,) and times.dtype.kind in "iu"
    need(fits, "times", f"integers of shape {(rows,)}", f"{times.dtype} {times.shape}")
    need(times.min() >= 0, "times", "ticks of at least 0", times.min())
    need(times.max() <= MAX_TICK, "times", f"ticks of at most {MAX_TICK}", times.max())
    return times.astype(np.int64)


def _rewards(rewards: np.ndarray, rows: int, seats: int, need: Need) -> np.ndarray:
    """float32 [N, A], or [N], the observers'."""
    joint, own = (rows, seats), (rows,)
    expected = f"shape {joint}, one a hunter, or {own}, the observer's"
    need(rewards.shape in (joint, own), "rewards", expected, f"shape {rewards.shape}")
    need(rewards.dtype.kind in "biuf", "rewards", "numbers", f"dtype {rewards.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        values = rewards.astype(np.float32)
    bad = ~np.isfinite(values)
    need(not bad.any(), "rewards", "finite numbers of float32", first_bad(bad, rewards))
    return values
