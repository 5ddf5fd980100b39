"""Which rows of a flat file follow one another in time: its episodes, and the hunters of each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data.trajectories import chunks

MIN_SHARE = 0.25  # of the rows, that follow the row before them: less looks shuffled
MAX_TICK = 9999  # a tick is looked up in a table


class Episodes(NamedTuple):
    """Of N rows."""

    number: np.ndarray  # int64 [N], rising
    seat: np.ndarray  # int64 [N], which hunter of its episode the observer is
    tick: np.ndarray  # int64 [N], how many rows of its hunter come before it
    board: np.ndarray
    """int64 [N], rising: episodes that may be one board, seen by changing observers, share a number"""


class Places(NamedTuple):
    """What N rows show, as far as it tells whether one follows another."""

    hunters: np.ndarray
    """int64 [N, S, 2], row and column; -1 where a hunter has left. The observer is the first"""
    prey: np.ndarray  # int64 [N, k], how many of each kind
    same_blocks: np.ndarray  # bool [N-1], as in the row before

    @property
    def present(self) -> np.ndarray:
        """bool [N]: is the observer on the board?"""
        return self.hunters[:, 0, 0] >= 0

    def one_board(self) -> np.ndarray:
        """bool [N-1]: may rows i and i + 1 show one board, also to two observers? Blocks stay, and no prey appears."""
        more_prey = (self.prey[1:] > self.prey[:-1]).any(1)
        return self.same_blocks & ~more_prey

    def can_follow(self) -> np.ndarray:
        """bool [N-1]: may a step lead from row i to row i + 1? No hunter appears, and none goes far."""
        before, after = self.hunters[:-1], self.hunters[1:]
        was, is_now = before[..., 0] >= 0, after[..., 0] >= 0
        distance = abs(after - before).sum(2)
        impossible = np.where(was, is_now & (distance > 1), is_now).any(1)
        return self.one_board() & ~impossible


def places_of(hunters: np.ndarray, boards: np.ndarray) -> Places:
    """hunters: [N, S, H, W], a plane for each; boards: [N, 1+k, H, W], BLOCKS and each kind of prey."""
    count, seats, _, width = hunters.shape
    cells = np.empty((count, seats, 2), np.int64)
    prey = np.empty((count, boards.shape[1] - 1), np.int64)
    same_blocks = np.empty(count - 1, bool)
    for part in chunks(boards):
        planes = hunters[part].reshape(-1, seats, hunters[0, 0].size)
        cells[part] = np.stack(np.divmod(planes.argmax(2), width), 2)
        cells[part][~planes.any(2)] = -1
        prey[part] = np.count_nonzero(boards[part, 1:], axis=(2, 3))
    for part in chunks(boards[1:]):
        same_blocks[part] = (boards[1:][part, 0] == boards[:-1][part, 0]).all((1, 2))
    return Places(cells, prey, same_blocks)


def find_episodes(
    planes: np.ndarray, places: Places, cut: np.ndarray, observer: np.ndarray | None, ticks: np.ndarray | None
) -> Episodes | None:
    """Episodes of rows, or None where too few follow the row before them.

    A hunter's rows are unbroken where nothing is `cut`, the observer stays and the board can follow. Such stretches, one
    after another, that begin with one board seen by different hunters are one episode.

    Args:
        planes: uint8 [N, 3+k, H, W], what the observers see.
        cut: bool [N-1], the file says that row i + 1 does not follow row i.
        observer: int64 [N], or None: not known.
        ticks: int64 [N], or None: not known.
    """
    follows = _follows(places, cut, observer)
    if _share(follows, places) < MIN_SHARE:
        return None
    begins = np.append(True, ~follows)
    if ticks is None:
        begins |= rows_since(begins) % (MAX_TICK + 1) == 0
    first = np.flatnonzero(begins)
    start_ticks = np.zeros(len(first), np.int64) if ticks is None else ticks[first]
    who = _observer_cells(places, planes.shape[3])[first] if observer is None else observer[first]
    alike = _starts_alike(planes, first) & (np.diff(start_ticks) == 0)
    number, seat = _join(np.append(False, alike).tolist(), who.tolist())
    if observer is not None:
        seat = observer[first]
    stretch = np.cumsum(begins) - 1
    number = number[stretch]
    another = (np.diff(number) > 0) & (cut | ~places.one_board())
    return Episodes(number, seat[stretch], rows_since(begins), np.append(0, np.cumsum(another)))


def describe(found: Episodes, places: Places) -> str:
    """How many episodes, for people."""
    numbers, seats = found.number[places.present], found.seat[places.present]
    num_episodes = len(np.unique(numbers))
    num_hunters = len(np.unique(numbers * (1 + seats.max(initial=0)) + seats))
    length = len(numbers) / max(1, num_hunters)
    of = "" if num_hunters == num_episodes else f" of {num_hunters} hunters"
    return f"{num_episodes} episodes{of}, mean length {length:.1f} rows"


def why_none(places: Places, cut: np.ndarray, observer: np.ndarray | None) -> str:
    """Why `find_episodes` found none, for people."""
    found, rows = _count(_follows(places, cut, observer), places), int(places.present.sum())
    boards = ~cut & places.one_board()
    if observer is not None and _share(boards, places) >= MIN_SHARE:
        return f"the observer changes from row to row: it stays in {found} of {rows} rows"
    return f"rows look shuffled: {found} of {rows} follow the row before them"


def _follows(places: Places, cut: np.ndarray, observer: np.ndarray | None) -> np.ndarray:
    """bool [N-1]: does row i + 1 follow row i?"""
    follows = ~cut & places.can_follow()
    return follows if observer is None else follows & (observer[1:] == observer[:-1])


def _count(follows: np.ndarray, places: Places) -> int:
    """Of rows that follow one another, with the observer on the board."""
    return int((follows & places.present[1:] & places.present[:-1]).sum())


def _share(follows: np.ndarray, places: Places) -> float:
    return _count(follows, places) / max(1, int(places.present.sum()) - 1)


def rows_since(begins: np.ndarray) -> np.ndarray:
    """int64 [N]: how many rows ago the last one was that begins something. The first one does."""
    at = np.arange(len(begins))
    return at - np.maximum.accumulate(np.where(begins, at, 0))


def _observer_cells(places: Places, width: int) -> np.ndarray:
    """int64 [N]: the observer's cell, negative where it has left."""
    return places.hunters[:, 0] @ np.array([width, 1])


def _starts_alike(planes: np.ndarray, first: np.ndarray) -> np.ndarray:
    """bool [S-1]: does stretch s + 1 begin with the board of stretch s, also to two observers?"""
    alike = np.empty(len(first) - 1, bool)
    for part in chunks(planes[: len(alike)]):
        before, after = planes[first[:-1][part]], planes[first[1:][part]]
        same_board = (before[:, 2:] == after[:, 2:]).all((1, 2, 3))
        same_hunters = (before[:, :2].max(1) == after[:, :2].max(1)).all((1, 2))
        alike[part] = same_board & same_hunters
    return alike


def _join(alike: list[bool], who: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The episode of each stretch, and the place of its hunter in it. A hunter has one stretch in an episode."""
    number, seat = np.empty(len(who), np.int64), np.empty(len(who), np.int64)
    episode, seen = -1, set[int]()
    for stretch, hunter in enumerate(who):
        if not alike[stretch] or hunter in seen:
            episode, seen = episode + 1, set()
        number[stretch] = episode
        seat[stretch] = len(seen)
        seen.add(hunter)
    return number, seat


def observer_by_observer(observer: np.ndarray, ticks: np.ndarray) -> np.ndarray | None:
    """int64 [N], an order in which each observer's rows of an episode follow one another, where the rows were recorded
    tick by tick, a tick of all observers after another; None where they were not."""
    if len(ticks) < 2:
        return None
    another = np.diff(observer) > 0
    step = np.diff(ticks)
    together = (step == 0) & another
    if together.mean() < MIN_SHARE:
        return None
    begins = (step < 0) | (step > 1) | ((step == 0) & ~another)
    episode = np.append(0, np.cumsum(begins))
    return np.lexsort((ticks, observer, episode))
