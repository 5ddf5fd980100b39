"""Flat files of older code: rows instead of episodes, in the HOP layout or as the observer's planes.

They are of the stag hunt, or of the game that their `metadata` describes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import episodes
from data.episodes import MAX_TICK, Episodes
from data.npz import DataError
from data.trajectories import chunks, first_bad, read_game, require
from envs.game import Game
from envs.grid import hop_to_joint
from envs.stag_hunt import GAME

NAMES = {
    "obs": ("obs", "states", "observations"),
    "actions": ("actions",),
    "times": ("times", "timesteps"),
    "observer": ("observer",),
    "rewards": ("rewards",),
    "next_obs": ("next_obs", "next_states", "next_observations"),
}
"""what an array may be called"""
ENDS = ("dones", "terminals", "terminated", "terminations", "timeouts", "truncated", "truncations")
"""arrays that say that an episode is over with this row; each of them counts"""
MOST_OBSERVERS = 128
Need = Callable[..., None]  # `require` of one file


@dataclass
class Flat:
    """N rows; every array is checked, and observer-first data is brought into the observer's own planes."""

    game: Game
    planes: np.ndarray
    """uint8 [N, 3+k, H, W], as the row's observer sees the board"""
    actions: np.ndarray
    """int64 [N], the observer's own action"""
    ticks: np.ndarray
    """int64 [N]"""
    cut: np.ndarray
    """bool [N-1], `times` or an end says that row i + 1 does not follow row i"""
    inferred: list[str]
    """what was not in the file and had to be concluded, a line each"""
    episodes: Episodes | None = None
    """without `joint`; None where rows do not follow one another"""
    # With `joint` alone; hunters in seat order where the file has `observer`, else observer-first:
    joint: np.ndarray | None = None
    """uint8 [N, A+1+k, H, W]"""
    next_joint: np.ndarray | None = None
    """uint8 [N, A+1+k, H, W], from `next_obs` where the file has it"""
    joint_actions: np.ndarray | None = None
    """int64 [N, A], -1 where not known"""
    rewards: np.ndarray | None = None
    """float32 [N, A], NaN where not known"""

    @property
    def seats(self) -> int:
        """A, with `joint`."""
        return self.joint.shape[1] - 1 - self.game.kinds


def read_flat(
    arrays: dict[str, np.ndarray], path: str | Path, layout: str = "auto", joint: bool = False
) -> Flat:
    """Rows from the arrays that `NAMES` and `ENDS` name; `obs` and `actions` are required.

    Args:
        layout: `planes` is [N, 3+k, H, W], `hop` [N, H, W, A+1+k], `hop-first` [N, A+1+k, H, W]; `auto` concludes it.
        joint: read all that was recorded of all hunters. The observer's planes merge the others, and are refused.
    Raises: DataError: in one line, the path, the key, what was expected and what was found.
    """
    need = partial(require, path)
    names = _names_of(arrays)
    found = f"no such key (keys: {', '.join(arrays)})"
    need("obs" in names, "obs", "an array `obs`, `states` or `observations`", found)
    need("actions" in names, "actions", "an array of actions", found)
    game = game_of_metadata(arrays, path)
    key = names["obs"]
    obs = arrays[key]
    need(obs.ndim == 4, key, "4 dimensions, [N, C, H, W] or [N, H, W, C]", f"shape {obs.shape}")
    _check_cells(key, obs, need)
    inferred = []
    if layout == "auto":
        layout = _infer_layout(obs.shape, key, game, path)
        inferred.append(f"layout {layout} from shape {obs.shape}")
    need(
        layout != "planes" or not joint,
        key,
        f"the HOP layout, a plane for each hunter ([N, H, W, {rest(game)}], or [N, {rest(game)}, H, W] with --layout "
        "hop-first)",
        f"shape {obs.shape}, planes of the observer, which merge the other hunters into one",
    )
    views = _views(key, obs, layout, game, need)
    seats = None if layout == "planes" else views.shape[1] - 1 - game.kinds
    if seats is not None:
        inferred.append(f"{seats} hunters from {views.shape[1]} channels")
    known = {meaning: arrays[name] for meaning, name in names.items()}
    if "next_obs" in known:
        known["next_obs"] = _next_views(names["next_obs"], known["next_obs"], obs.shape, layout, game, need)
    known["obs"] = views
    rows = _read_rows(known, names, seats, game, need)
    order = _order(rows)
    if order is not None:
        inferred.append("rows of several observers tick by tick: put observer after observer")
        fits = {meaning: array.shape[:1] == order.shape for meaning, array in known.items()}
        known = {meaning: array[order] if fits[meaning] else array for meaning, array in known.items()}
        rows = _read_rows(known, names, seats, game, need)
    views = known["obs"]
    planes = views.astype(np.uint8, copy=False) if seats is None else _own_planes(views, seats)
    count = planes[:, 0].sum((1, 2))
    need(count.max() <= 1, key, "at most one cell in a SELF plane", f"{count.max()} in row {count.argmax()}")

    seating = "observer-first order" if rows.observer is None else "seat order"
    if rows.actions.ndim == 2:
        inferred.append(f"joint actions in {seating}")
    elif joint:
        inferred.append(f"actions of the observer alone, hunters in {seating}")
    flat = Flat(game, planes, rows.own_actions, _ticks_of(rows), rows.cut, inferred)
    if joint:
        _add_joint(flat, rows, known, names, need)
    else:
        _add_episodes(flat, rows, known, seats)
    if rows.ticks is None:
        counted = flat.ticks.any()
        law = "ticks are counted from the start of each episode" if counted else "tick 0 everywhere"
        inferred.append(f"{law} (no `times`)")
    used = [name for meaning, name in names.items() if joint or meaning != "rewards"]
    used += ["metadata"] if game != GAME else []
    if spare := [f"`{name}`" for name in arrays if name not in used]:
        inferred.append(f"{', '.join(spare)} {'is' if len(spare) == 1 else 'are'} not used")
    return flat


def game_of_metadata(arrays: dict[str, np.ndarray], path: str | Path) -> Game:
    """The game that a flat file says it is of, in `metadata` as trajectory files have it. Raises: DataError."""
    text = arrays.get("metadata")
    if text is None or text.ndim or text.dtype.kind != "U":
        return GAME
    try:
        metadata = json.loads(str(text))
    except (ValueError, RecursionError):  # of another program
        return GAME
    return read_game(metadata, path) if isinstance(metadata, dict) else GAME


def rest(game: Game) -> str:
    """How many channels the HOP layout has, for people."""
    return f"A+{1 + game.kinds}"


def _names_of(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """What each array that is read is called in this file."""
    names = {end: end for end in ENDS if end in arrays}
    for meaning, choices in NAMES.items():
        found = [name for name in choices if name in arrays]
        if found:
            names[meaning] = found[0]
    return names


# ---- rows


class Rows(NamedTuple):
    """What the file says of N rows, beside their boards."""

    actions: np.ndarray  # int64 [N], the observers', or [N, A]
    observer: np.ndarray | None  # int64 [N]
    ticks: np.ndarray | None  # int64 [N]
    cut: np.ndarray  # bool [N-1], as in Flat
    sources: list[str]  # the keys that say what follows what

    @property
    def columns(self) -> np.ndarray:
        """int64 [N]: the column of each row's observer."""
        return np.zeros(len(self.actions), np.int64) if self.observer is None else self.observer

    @property
    def own_actions(self) -> np.ndarray:
        """int64 [N]"""
        if self.actions.ndim == 1:
            return self.actions
        return self.actions[np.arange(len(self.actions)), self.columns]


def _read_rows(
    known: dict[str, np.ndarray], names: dict[str, str], seats: int | None, game: Game, need: Need
) -> Rows:
    """known: arrays by their meaning; seats: how many hunters, None: not known."""
    count = len(known["obs"])
    actions = _actions(known["actions"], count, names["obs"], game.num_actions, need)
    if actions.ndim == 2:
        columns = actions.shape[1]
        need(seats in (None, columns), "actions", f"{seats} columns, one a hunter", f"shape {actions.shape}")
        seats = columns
    observer, ticks = None, None
    if "observer" in known:
        observer = _observers(known["observer"], count, seats or MOST_OBSERVERS, need)
    cut = np.zeros(count - 1, bool)
    if "times" in known:
        ticks = _ticks(known["times"], count, names["times"], need)
        cut |= np.diff(ticks) != 1
    ends = [name for name in ENDS if name in known]
    for name in ends:
        cut |= _flags(known[name], count, name, need)[:-1]
    sources = [names[name] for name in ("times", *ends) if name in names]
    return Rows(actions, observer, ticks, cut, sources)


def _order(rows: Rows) -> np.ndarray | None:
    """int64 [N], in which the rows of one observer follow one another, where the file has another order."""
    if rows.observer is None or rows.ticks is None:
        return None
    return episodes.observer_by_observer(rows.observer, rows.ticks)


def _ticks_of(rows: Rows) -> np.ndarray:
    """int64 [N]: as in the file, or the rows since an end, or 0."""
    if rows.ticks is not None:
        return rows.ticks
    if not rows.sources:
        return np.zeros(len(rows.actions), np.int64)
    return episodes.rows_since(np.append(True, rows.cut)) % (MAX_TICK + 1)


def _add_episodes(flat: Flat, rows: Rows, known: dict[str, np.ndarray], seats: int | None) -> None:
    """Sets `episodes` and says so. Where they tell the tick, it sets `ticks`, too."""
    views, cut = known["obs"], rows.cut
    sources = [f"`{name}`" for name in rows.sources]
    places = episodes.places_of(views[:, : seats or 1], flat.planes[:, 2:])
    if "next_obs" in known:  # of the next observer, where it changes
        sources.append("`next_obs`")
        same = True if rows.observer is None else rows.observer[1:] == rows.observer[:-1]
        cut = cut | (same & _unlike(known["next_obs"][:-1], views[1:]))
    evidence = f"{', '.join(sources)} and the boards" if sources else "the boards"
    found = episodes.find_episodes(flat.planes, places, cut, rows.observer, rows.ticks)
    if found is None:
        if rows.ticks is None:
            flat.ticks = np.zeros_like(flat.ticks)
        why = episodes.why_none(places, cut, rows.observer)
        flat.inferred.append(f"{why}, judged by {evidence}")
        return
    flat.episodes = found
    flat.inferred.append(f"{episodes.describe(found, places)}, from {evidence}")
    if rows.ticks is None:
        flat.ticks = found.tick


def _unlike(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """bool [N]: which rows differ, [N, C, H, W]."""
    unlike = np.empty(len(left), bool)
    for part in chunks(left):
        unlike[part] = (left[part] != right[part]).any((1, 2, 3))
    return unlike


def _add_joint(
    flat: Flat, rows: Rows, known: dict[str, np.ndarray], names: dict[str, str], need: Need
) -> None:
    """Sets what is known of all hunters."""
    observer, count = rows.columns, len(rows.actions)
    kinds = flat.game.kinds
    flat.joint = _in_seat_order(names["obs"], known["obs"], observer, kinds, need)
    if "next_obs" in known:
        _check_cells(names["next_obs"], known["next_obs"], need)
        flat.next_joint = _in_seat_order(names["next_obs"], known["next_obs"], observer, kinds, need)
    seats = flat.seats
    flat.joint_actions = _columns(rows.actions, seats, observer, -1)
    if "rewards" not in known:
        flat.inferred.append("rewards are not known (no `rewards`)")
        flat.rewards = np.full((count, seats), np.nan, np.float32)
        return
    rewards = _rewards(known["rewards"], count, seats, need)
    if rewards.ndim == 1:
        flat.inferred.append("rewards of the observer alone")
    flat.rewards = _columns(rewards, seats, observer, np.nan)


# ---- layouts


def _infer_layout(shape: tuple[int, ...], key: str, game: Game, path: str | Path) -> str:
    planes = len(game.planes)
    channels_first = shape[1] == planes and shape[2] == shape[3]
    channels_last = shape[3] > 2 + game.kinds and shape[1] == shape[2]
    if channels_first == channels_last:
        layouts = f"[N, {planes}, H, W] or [N, H, W, {rest(game)}]"
        raise DataError(
            f"{path}: {key}: expected {layouts} with a square board, found shape {shape}; "
            f"say which with --layout planes, hop or hop-first ([N, {rest(game)}, H, W])"
        )
    return "planes" if channels_first else "hop"


def _views(key: str, obs: np.ndarray, layout: str, game: Game, need: Need) -> np.ndarray:
    """With channels first: [N, 3+k, H, W], or [N, A+1+k, H, W]."""
    planes, shape = len(game.planes), f"shape {obs.shape}"
    if layout == "planes":
        need(obs.shape[1] == planes, key, f"[N, {planes}, H, W], channels first", shape)
        return obs
    if layout == "hop-first":
        need(obs.shape[1] > 1 + game.kinds, key, f"[N, {rest(game)}, H, W], channels first", shape)
        return obs
    need(obs.shape[3] > 1 + game.kinds, key, f"[N, H, W, {rest(game)}], channels last", shape)
    return np.moveaxis(obs, -1, 1)


def _next_views(
    key: str, next_obs: np.ndarray, shape: tuple[int, ...], layout: str, game: Game, need: Need
) -> np.ndarray:
    """As `_views`, of an array that has the shape of `obs`."""
    need(next_obs.shape == shape, key, f"shape {shape}, as obs", f"shape {next_obs.shape}")
    return _views(key, next_obs, layout, game, need)


def _own_planes(views: np.ndarray, seats: int) -> np.ndarray:
    """[N, A+1+k, H, W] -> uint8 [N, 3+k, H, W]: the first hunter is the observer, in which seat it sits plays no part."""
    planes = np.empty((len(views), views.shape[1] - seats + 2, *views.shape[2:]), np.uint8)
    planes[:, 0] = views[:, 0]
    planes[:, 1] = views[:, 1:seats].max(1, initial=0)
    planes[:, 2:] = views[:, seats:]
    return planes


def _in_seat_order(key: str, views: np.ndarray, observer: np.ndarray, kinds: int, need: Need) -> np.ndarray:
    """[N, A+1+k, H, W] -> uint8 [N, A+1+k, H, W], in chunks."""
    joint = np.empty(views.shape, np.uint8)
    for part in chunks(views):
        hop = np.moveaxis(views[part].astype(np.uint8, copy=False), 1, -1)
        joint[part] = hop_to_joint(hop, observer[part], kinds)
    count = joint[:, : -1 - kinds].sum((2, 3))  # [N, A]
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


def _one_column(array: np.ndarray) -> np.ndarray:
    """[N, 1] -> [N]"""
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _whole(array: np.ndarray) -> np.ndarray:
    """Floats that are whole numbers as int64; anything else as it is."""
    if array.dtype.kind != "f":
        return array
    small = np.abs(array) < 2**53  # False where it is NaN
    return array.astype(np.int64) if small.all() and (array == np.rint(array)).all() else array


def _actions(actions: np.ndarray, rows: int, key: str, num_actions: int, need: Need) -> np.ndarray:
    """int64 [N] or [N, A]"""
    shape = f"shape {actions.shape}"
    fits = actions.ndim in (1, 2) and len(actions) == rows
    need(fits, "actions", f"{rows} rows, as in {key}", shape)
    need(actions.size > 0, "actions", "at least one column", shape)
    actions = _whole(_one_column(actions))
    need(actions.dtype.kind in "iu", "actions", "integers", f"dtype {actions.dtype}")
    lowest, highest = actions.min(), actions.max()
    known = lowest >= 0 and highest < num_actions
    need(known, "actions", f"values in 0..{num_actions - 1}", f"{lowest} to {highest}")
    return actions.astype(np.int64)


def _observers(observer: np.ndarray, rows: int, columns: int, need: Need) -> np.ndarray:
    """int64 [N]: the seat of each row's observer."""
    observer = _whole(observer)
    need(observer.dtype.kind in "iu", "observer", "integers", f"dtype {observer.dtype}")
    observer = observer.astype(np.int64)
    need(observer.shape == (rows,), "observer", f"shape {(rows,)}", f"shape {observer.shape}")
    lowest, highest = observer.min(), observer.max()
    known = lowest >= 0 and highest < columns
    need(known, "observer", f"seats in 0..{columns - 1}", f"{lowest} to {highest}")
    return observer


def _ticks(times: np.ndarray, rows: int, key: str, need: Need) -> np.ndarray:
    """int64 [N]"""
    times = _whole(_one_column(times))
    fits = times.shape == (rows,) and times.dtype.kind in "iu"
    need(fits, key, f"integers of shape {(rows,)}", f"{times.dtype} {times.shape}")
    need(times.min() >= 0, key, "ticks of at least 0", times.min())
    need(times.max() <= MAX_TICK, key, f"ticks of at most {MAX_TICK}", times.max())
    return times.astype(np.int64)


def _flags(flags: np.ndarray, rows: int, key: str, need: Need) -> np.ndarray:
    """bool [N]: the episode is over with this row; where there is one for each hunter, with all of them."""
    fits = flags.ndim in (1, 2) and len(flags) == rows and flags.size > 0
    need(fits, key, f"shape {(rows,)}", f"shape {flags.shape}")
    need(flags.dtype.kind in "biuf", key, "True or False", f"dtype {flags.dtype}")
    bad = (flags != 0) & (flags != 1)
    need(not bad.any(), key, "True or False", first_bad(bad, flags))
    return flags.astype(bool).reshape(rows, -1).all(1)


def _rewards(rewards: np.ndarray, rows: int, seats: int, need: Need) -> np.ndarray:
    """float32 [N, A], or [N], the observers'."""
    joint, own = (rows, seats), (rows,)
    rewards = _one_column(rewards)
    expected = f"shape {joint}, one a hunter, or {own}, the observer's"
    need(rewards.shape in (joint, own), "rewards", expected, f"shape {rewards.shape}")
    need(rewards.dtype.kind in "biuf", "rewards", "numbers", f"dtype {rewards.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        values = rewards.astype(np.float32)
    bad = ~np.isfinite(values)
    need(not bad.any(), "rewards", "finite numbers of float32", first_bad(bad, rewards))
    return values
