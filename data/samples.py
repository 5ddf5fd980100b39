"""A file of either kind as single samples: one hunter, one observation, one action."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.flat import read_flat
from data.trajectories import (
    CHUNK,
    DataError,
    Trajectories,
    check,
    is_trajectory_file,
    legal_actions,
    read_arrays,
    split_episodes,
    split_rows,
)  # fmt: skip
from metrics import observers


@dataclass
class Samples:
    """M samples of hunters on the board. `frames` is a view of the file's observations, not a copy."""

    frames: np.ndarray
    """uint8 [R, 5, H, W]"""
    rows: np.ndarray
    """int64 [M], the frame of each sample"""
    actions: np.ndarray
    """int64 [M]"""
    ticks: np.ndarray
    """int64 [M]"""
    strategies: np.ndarray
    """int8 [M], -1 where the file does not say"""
    episodes: np.ndarray
    """int64 [M], rising; each row its own where the file does not say"""
    seats: np.ndarray
    """int64 [M], which hunter of its episode"""
    boards: np.ndarray
    """uint8 [U, 3, H, W], BLOCKS, STAGS and HARES, each once for all hunters and ticks of an episode that share it"""
    board: np.ndarray
    """int64 [M], the board of each sample"""
    splits: dict[str, np.ndarray]
    """train, val, test: int64 indices into the M samples; `all` is all of them"""
    split_law: str
    """how they were split, for people"""
    fingerprint: str
    inferred: list[str]
    trajectories: Trajectories | None = None
    """where the episodes are known"""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def strategy_names(self) -> list[str]:
        return self.trajectories.strategy_names if self.trajectories else []

    @property
    def has_observers(self) -> bool:
        return self.trajectories is not None and self.trajectories.policy_probs is not None

    def count_table(self) -> np.ndarray | None:
        """`observers.count_table` over the training episodes; None without `policy_probs`."""
        if not self.has_observers:
            return None
        episodes = split_episodes(len(self.trajectories.episode_lengths))["train"]
        return observers.count_table(
            self.trajectories, np.flatnonzero(np.isin(self.trajectories.episode, episodes))
        )

    def fits_table(self, counts: np.ndarray, names: list[str]) -> bool:
        """Can a table counted on another file, over the strategies `names`, speak of this one?"""
        return (
            self.has_observers
            and self.strategy_names == names
            and self.trajectories.obs.shape[1] == counts.shape[-2] - 1
        )

    def posterior(self, index: np.ndarray) -> np.ndarray | None:
        """P(strategy | what the hunter did before), float64 [m, S], of the samples `index`; None without `policy_probs`."""
        if not self.has_observers:
            return None
        return observers.posterior(self.trajectories)[self.trajectories.active][index]

    def observers(self, index: np.ndarray, table_counts: np.ndarray | None) -> dict[str, np.ndarray]:
        """Predictions for the samples `index` (int [m]), each float32 [m, 7]: `uniform` over legal actions and, with
        `policy_probs`, `table` (where `table_counts` is given), `bayes` and `known`."""
        legal = np.concatenate(
            [
                legal_actions(self.frames[self.rows[part]])
                for part in np.array_split(index, len(index) // CHUNK + 1)
            ]
        )
        found = {"uniform": (legal / legal.sum(1, keepdims=True)).astype(np.float32)}
        if self.has_observers:
            step, seat = np.nonzero(self.trajectories.active)  # in the order of the samples
            step, seat = step[index], seat[index]
            if table_counts is not None:
                found["table"] = observers.table(self.trajectories, table_counts)[step, seat]
            found["bayes"] = observers.bayes(self.trajectories)[step, seat]
            found["known"] = observers.known(self.trajectories)[step, seat]
        return found


def load_samples(path: str | Path, layout: str = "auto", split: bool = True) -> Samples:
    """Read and check a trajectory file or a flat file. split: False where the whole file is judged.

    Raises: DataError: in one line, what is wrong with the file.
    """
    arrays = read_arrays(path)
    samples = (
        _from_episodes(check(arrays, path), split)
        if is_trajectory_file(arrays)
        else _from_rows(arrays, path, layout, split)
    )
    samples.splits["all"] = np.arange(len(samples))
    return samples


def _from_episodes(trajectories: Trajectories, split: bool) -> Samples:
    step, seat = np.nonzero(trajectories.active)
    seats, episode = trajectories.obs.shape[1], trajectories.episode[step]
    boards, board = _boards(trajectories)
    splits = {}
    if split:
        for name, episodes in split_episodes(
            len(trajectories.episode_lengths), path=trajectories.path
        ).items():
            splits[name] = np.flatnonzero(np.isin(episode, episodes))
            if not len(splits[name]):
                raise DataError(f"{trajectories.path}: active: the {name} split has no active sample")
    return Samples(
        frames=trajectories.obs.reshape(-1, *trajectories.obs.shape[2:]),
        rows=trajectories.obs_row[step] * seats + seat,
        actions=trajectories.actions[step, seat].astype(np.int64),
        ticks=trajectories.tick[step],
        strategies=trajectories.strategies[episode, seat],
        episodes=episode,
        seats=seat,
        boards=boards,
        board=board[step],
        splits=splits,
        split_law="80/10/10 by episode",
        fingerprint=trajectories.fingerprint,
        inferred=[],
        trajectories=trajectories,
    )


def _boards(trajectories: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """What stands on the boards but hunters, uint8 [U, 3, H, W], and int64 [N], which of them stands before each step."""
    new = np.ones(len(trajectories.obs), bool)
    for start in range(1, len(new), CHUNK):
        part = trajectories.obs[start - 1 : start + CHUNK, 0, 2:]
        new[start : start + CHUNK] = (part[1:] != part[:-1]).any((1, 2, 3))
    lengths = trajectories.episode_lengths + 1
    new[np.cumsum(lengths) - lengths] = True  # the first of each episode
    return trajectories.obs[new, 0, 2:], (np.cumsum(new) - 1)[trajectories.obs_row]


def _from_rows(arrays: dict[str, np.ndarray], path, layout: str, split: bool) -> Samples:
    flat = read_flat(arrays, path, layout)
    rows = np.flatnonzero(flat.planes[:, 0].any((1, 2)))  # the others have left the board: no samples
    if not len(rows):
        raise DataError(f"{path}: obs: expected a SELF cell in some rows, found none")
    actions = flat.actions[rows]
    illegal = ~legal_actions(flat.planes[rows])[np.arange(len(rows)), actions]
    actions[illegal] = 4  # STAY, as the game has it
    inferred = list(flat.inferred)
    for count, what in (
        (len(flat.planes) - len(rows), "rows without the observer left out"),
        (illegal.sum(), "illegal actions count as STAY"),
    ):
        if count:
            inferred.append(f"{count} {what}")
    digest = hashlib.sha256()
    for array in (flat.planes, flat.actions, flat.ticks):
        digest.update(memoryview(np.ascontiguousarray(array)).cast("B"))
    return Samples(
        frames=flat.planes,
        rows=rows,
        actions=actions,
        ticks=flat.ticks[rows],
        strategies=np.full(len(rows), -1, np.int8),
        episodes=np.arange(len(rows)),
        seats=np.zeros(len(rows), np.int64),
        boards=flat.planes[:, 2:],
        board=rows,
        splits=split_rows(len(rows), path) if split else {},
        split_law="80/10/10 by contiguous blocks",
        fingerprint=digest.hexdigest(),
        inferred=inferred,
    )
