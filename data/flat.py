"""Flat files of older code: rows instead of episodes, in the HOP layout or as five planes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.trajectories import ACTION_COUNT, CHUNK, DataError, _first
from envs.grid import hop_to_joint

MAX_TICK = 9999  # a tick is looked up in a table


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

    Args: layout: `planes` is [N, 5, H, W], `hop` [N, H, W, A+3], `hop-first` [N, A+3, H, W]; `auto` concludes it.
    joint: read all that was recorded of all hunters. Five planes merge the others, and are refused.
    Raises: DataError: in one line, the path, the key, what was expected and what was found.
    """

    def need(condition, key: str, expected: str, found) -> None:
        if not condition:
            raise DataError(f"{path}: {key}: expected {expected}, found {found}")

    key = "obs" if "obs" in arrays else "states"
    need(key in arrays, "obs", "an array `obs` or `states`", f"no such key (keys: {', '.join(arrays)})")
    need("actions" in arrays, "actions", "an array of actions", f"no such key (keys: {', '.join(arrays)})")
    obs, actions = arrays[key], arrays["actions"]
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
    channels = 1 if layout == "hop-first" else -1
    if layout == "hop-first":
        need(obs.shape[1] > 3, key, "[N, A+3, H, W], channels first", f"shape {obs.shape}")
        obs, layout = np.moveaxis(obs, 1, -1), "hop"
    if layout == "hop":
        need(obs.shape[3] > 3, key, "[N, H, W, A+3], channels last", f"shape {obs.shape}")
        seats = obs.shape[3] - 3
        # The observer is its own seat 0 here: only which plane is its own matters, not where the others sit.
        planes = np.empty((len(obs), 5, *obs.shape[1:3]), np.uint8)
        planes[:, 0], planes[:, 1] = obs[..., 0], obs[..., 1:seats].max(-1, initial=0)
        planes[:, 2:] = np.moveaxis(obs[..., seats:], -1, 1)
        inferred.append(f"{seats} hunters from {obs.shape[3]} channels")
    else:
        need(obs.shape[1] == 5, key, "[N, 5, H, W], channels first", f"shape {obs.shape}")
        seats, planes = None, obs.astype(np.uint8, copy=False)
    count = planes[:, 0].sum((1, 2))
    need(count.max() <= 1, key, "at most one cell in a SELF plane", f"{count.max()} in row {count.argmax()}")

    need(
        actions.ndim in (1, 2) and len(actions) == len(obs),
        "actions",
        f"{len(obs)} rows, as in {key}",
        f"shape {actions.shape}",
    )
    need(actions.size > 0, "actions", "at least one column", f"shape {actions.shape}")
    need(actions.dtype.kind in "iu", "actions", "integers", f"dtype {actions.dtype}")
    need(
        actions.min() >= 0 and actions.max() < ACTION_COUNT,
        "actions",
        "values in 0..6",
        f"{actions.min()} to {actions.max()}",
    )
    own, order = actions, "seat order" if "observer" in arrays else "observer-first order"
    if actions.ndim == 2 or joint:
        columns = actions.shape[1] if actions.ndim == 2 else seats
        need(seats in (None, columns), "actions", f"{seats} columns, one a hunter", f"shape {actions.shape}")
        observer = np.zeros(len(obs), np.int64)
        if "observer" in arrays:
            observer = arrays["observer"]
            need(observer.dtype.kind in "iu", "observer", "integers", f"dtype {observer.dtype}")
            observer = observer.astype(np.int64)
            need(observer.shape == (len(obs),), "observer", f"shape {(len(obs),)}", f"shape {observer.shape}")
            good = (observer >= 0) & (observer < columns)
            need(
                good.all(), "observer", f"seats in 0..{columns - 1}", f"{observer.min()} to {observer.max()}"
            )
    if actions.ndim == 2:
        inferred.append(f"joint actions in {order}")
        own = actions[np.arange(len(obs)), observer]
    elif joint:
        inferred.append(f"actions of the observer alone, hunters in {order}")
    times = arrays.get("times")
    if times is None:
        times = np.zeros(len(obs), np.int64)
        inferred.append("tick 0 everywhere (no `times`)")
    need(
        times.shape == (len(obs),) and times.dtype.kind in "iu",
        "times",
        f"integers of shape {(len(obs),)}",
        f"{times.dtype} {times.shape}",
    )
    need(times.min() >= 0, "times", "ticks of at least 0", times.min())
    need(times.max() <= MAX_TICK, "times", f"ticks of at most {MAX_TICK}", times.max())
    flat = Flat(planes, own.astype(np.int64), times.astype(np.int64), inferred)
    if not joint:
        inferred += [f"`{name}` is not used" for name in ("rewards", "next_obs") if name in arrays]
        return flat

    flat.joint = _in_seat_order(key, obs, observer, need)
    if "next_obs" in arrays:
        after, shape = arrays["next_obs"], arrays[key].shape
        need(after.shape == shape, "next_obs", f"shape {shape}, as {key}", f"shape {after.shape}")
        _check_cells("next_obs", after, need)
        flat.next_joint = _in_seat_order("next_obs", np.moveaxis(after, channels, -1), observer, need)
    flat.joint_actions = _columns(actions.astype(np.int64), seats, observer, -1)
    if "rewards" not in arrays:
        inferred.append("rewards are not known (no `rewards`)")
        flat.rewards = np.full((len(obs), seats), np.nan, np.float32)
        return flat
    rewards, shapes = arrays["rewards"], ((len(obs), seats), (len(obs),))
    expected = f"shape {shapes[0]}, one a hunter, or {shapes[1]}, the observer's"
    need(rewards.shape in shapes, "rewards", expected, f"shape {rewards.shape}")
    need(rewards.dtype.kind in "biuf", "rewards", "numbers", f"dtype {rewards.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        found = rewards.astype(np.float32)
    bad = ~np.isfinite(found)
    need(not bad.any(), "rewards", "finite numbers of float32", _first(bad, rewards))
    inferred += ["rewards of the observer alone"] * (rewards.ndim == 1)
    flat.rewards = _columns(found, seats, observer, np.nan)
    return flat


def _check_cells(key: str, obs: np.ndarray, need) -> None:
    need(obs.dtype.kind in "biuf", key, "numbers", f"dtype {obs.dtype}")
    need(len(obs) > 0, key, "at least one row", "zero rows")
    need(obs.size > 0, key, "a board", f"shape {obs.shape}")
    binary = all(((part == 0) | (part == 1)).all() for part in np.array_split(obs, len(obs) // CHUNK + 1))
    need(binary, key, "cells of 0 or 1", f"values from {obs.min()} to {obs.max()}")


def _in_seat_order(key: str, hop: np.ndarray, observer: np.ndarray, need) -> np.ndarray:
    """[N, H, W, A+3] -> uint8 [N, A+3, H, W], in chunks."""
    joint = np.empty((len(hop), hop.shape[3], *hop.shape[1:3]), np.uint8)
    for start in range(0, len(hop), CHUNK):
        part = slice(start, start + CHUNK)
        joint[part] = hop_to_joint(hop[part].astype(np.uint8, copy=False), observer[part])
    count = joint[:, :-3].sum((2, 3))  # [N, A]
    need(count.max() <= 1, key, "at most one cell in the plane of a hunter", _first(count > 1, count))
    return joint


def _columns(values: np.ndarray, seats: int, observer: np.ndarray, unknown: float) -> np.ndarray:
    """[N], the observers', -> [N, A], `unknown` for the others; [N, A] stays."""
    if values.ndim == 2:
        return values
    found = np.full((len(values), seats), unknown, values.dtype)
    found[np.arange(len(values)), observer] = values
    return found


def _infer_layout(shape: tuple[int, ...], key: str, path) -> str:
    first, last = shape[1] == 5 and shape[2] == shape[3], shape[3] > 4 and shape[1] == shape[2]
    if first == last:
        raise DataError(
            f"{path}: {key}: expected [N, 5, H, W] or [N, H, W, A+3] with a square board, found shape {shape}; "
            "say which with --layout planes, hop or hop-first ([N, A+3, H, W])"
        )
    return "planes" if first else "hop"
