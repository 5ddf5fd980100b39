"""Joint states as cells, and what became of each object between two: it stayed, went to a neighbour cell, or left."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from envs.grid import neighbours

UP, DOWN, LEFT, RIGHT, STAYED, LEAVE = range(6)


class JointState(NamedTuple):
    """A batch of joint states as cells: an object is the number of its cell, K once it has left."""

    blocks: torch.Tensor  # float [B, K]
    hunters: torch.Tensor  # int64 [B, A]
    prey: torch.Tensor  # int64 [B, P], kind after kind
    counts: tuple[int, ...]  # how many of the P are of each kind

    @classmethod
    def of(cls, states: torch.Tensor, counts: tuple[int, ...]) -> JointState:
        """states: uint8 [B, A+1+k, K]; counts: of each of k kinds the most on any board. Prey are in the order of their
        cells."""
        blocks = states.shape[1] - 1 - len(counts)
        hunters = occupied_cells(states[:, :blocks], 1)[..., 0]  # [B, A]
        prey = [occupied_cells(states[:, blocks + i], count) for i, count in enumerate(counts, 1)]
        return cls(states[:, blocks].float(), hunters, torch.cat(prey, 1), counts)

    def take(self, rows: torch.Tensor) -> JointState:
        return JointState(self.blocks[rows], self.hunters[rows], self.prey[rows], self.counts)

    def on_board(self) -> torch.Tensor:
        """Hunters that have not left: bool [B, A]."""
        return self.hunters < self.blocks.shape[1]

    def blocked(self, targets: torch.Tensor) -> torch.Tensor:
        """Does a block or the border stop a step to these cells? int64 [B, n, 4] -> float [B, n, 4]."""
        blocks = F.pad(self.blocks, (0, 1), value=1.0)  # [B, K + 1]
        return blocks.gather(1, targets.flatten(1)).view(targets.shape)

    def kinds(self) -> torch.Tensor:
        """The kind of each prey: int64 [P]."""
        counts = torch.tensor(self.counts, device=self.prey.device)
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    def on_cell(self, prey: torch.Tensor) -> torch.Tensor:
        """Which of the cells `prey` (int64 [B, P]) each hunter stands on: bool [B, A, P]."""
        here = self.hunters[:, :, None] == prey[:, None]
        return here & self.on_board()[..., None]

    def prey_here(self) -> torch.Tensor:
        """How many of each kind are on each hunter's cell: float [B, A, k]."""
        by_kind = self.on_cell(self.prey).float().split(self.counts, 2)
        return torch.stack([here.sum(2) for here in by_kind], 2)

    def same_cell(self) -> torch.Tensor:
        """Other hunters on a hunter's cell: float [B, A, A]."""
        same = self.hunters[:, :, None] == self.hunters[:, None]
        myself = torch.eye(same.shape[1], dtype=torch.bool, device=same.device)
        return (same & self.on_board()[..., None] & ~myself).float()

    def planes(self) -> torch.Tensor:
        """uint8 [B, A+1+k, K]"""
        B, A = self.hunters.shape
        K = self.blocks.shape[1]
        planes = self.blocks.new_zeros(B, A + 1 + len(self.counts), K + 1)
        planes[:, :A].scatter_(2, self.hunters[:, :, None], 1.0)
        planes[:, A, :K] = self.blocks
        for plane, cells in enumerate(self.prey.split(self.counts, 1), A + 1):
            planes[:, plane].scatter_(1, cells, 1.0)
        return planes[:, :, :K].to(torch.uint8)


def occupied_cells(planes: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` occupied cells of each plane, K where there are fewer: uint8 [.., K] -> int64 [.., count]."""
    K = planes.shape[-1]
    priority = torch.arange(K, 0, -1, device=planes.device)  # topk then finds the first cells first
    value, cell = (planes * priority).topk(count, -1)
    return torch.where(value > 0, cell, K)


def prey_counts(states: torch.Tensor, kinds: int) -> tuple[int, ...]:
    """Of each kind the most prey on any of the boards, at least 1. states: uint8 [B, A+1+kinds, K]."""
    most = states[:, -kinds:].sum(2).amax(0)
    return tuple(most.clamp(min=1).tolist())


class Outcomes(NamedTuple):
    """Of B transitions. Prey of a kind look alike: a next state can have come about in several ways, R rows, one a way."""

    hunters: torch.Tensor  # int64 [B, A], an outcome; STAYED for a hunter that had left before
    row: torch.Tensor  # int64 [R], the transition
    way: torch.Tensor  # int64 [R], which way of it: 0, 1, ..
    prey: torch.Tensor  # int64 [R, P], kind after kind, each in the order of its cells before
    ways: int  # the most that a transition has

    def captured(self) -> torch.Tensor:
        """float [B, A]: 1 for hunters that leave the board, with a capture."""
        return (self.hunters == LEAVE).float()


@dataclass
class AllOutcomes:
    """Of M transitions, on the host."""

    possible: np.ndarray
    """bool [M]: does each object stay, go to a neighbour cell, or leave?"""
    hunters: np.ndarray
    """int8 [M, A]"""
    prey: np.ndarray
    """int8 [W, P], the ways of all transitions"""
    start: np.ndarray
    """int64 [M], the first way of each"""
    count: np.ndarray
    """int64 [M]"""

    @classmethod
    def cat(cls, parts: list[AllOutcomes]) -> AllOutcomes:
        """Of all transitions of these parts, in order."""
        columns = ("possible", "hunters", "prey", "count")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
        return cls(**joined, start=np.cumsum(joined["count"]) - joined["count"])

    def batch(self, index: np.ndarray, device: torch.device | str = "cpu") -> Outcomes:
        """Those of the transitions `index` (int [B])."""
        count = self.count[index]
        row = np.repeat(np.arange(len(index)), count)
        first = np.cumsum(count) - count
        way = np.arange(len(row)) - first[row]
        prey = self.prey[self.start[index][row] + way]

        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array.astype(np.int64), device=device)

        return Outcomes(
            hunters=on_device(self.hunters[index]),
            row=on_device(row),
            way=on_device(way),
            prey=on_device(prey),
            ways=int(count.max(initial=1)),
        )


def outcomes_of(
    before: np.ndarray, after: np.ndarray, board: tuple[int, int], counts: tuple[int, ...]
) -> AllOutcomes:
    """What became of each object in M transitions.

    Args: before, after: uint8 [M, A+1+k, K]; board: (H, W); counts: slots of each kind, at least what a state has.
    """
    A, K = before.shape[1] - 1 - len(counts), before.shape[2]
    cells = neighbours(*board)[:, :5]  # where the first five outcomes lead to
    targets = np.pad(cells, ((0, 0), (0, 1)), constant_values=K)  # [K+1, 6]
    hunters, possible = _hunter_outcomes(before[:, :A], after[:, :A], targets)
    possible &= (before[:, A] == after[:, A]).all(1)  # blocks
    changed = (before[:, A + 1 :] != after[:, A + 1 :]).any((1, 2))
    stay = np.full((1, sum(counts)), STAYED, np.int8)
    count = np.ones(len(before), np.int64)
    ways = []
    for i in np.flatnonzero(changed):
        options = []
        for plane, slots in enumerate(counts, A + 1):
            cells_before = np.flatnonzero(before[i, plane]).tolist()
            cells_after = np.flatnonzero(after[i, plane]).tolist()
            unused = (STAYED,) * (slots - len(cells_before))
            found = _ways(cells_before, frozenset(cells_after), targets)
            options.append([way + unused for way in found])
        rows = [sum(ways_of_kinds, ()) for ways_of_kinds in itertools.product(*options)]
        possible[i] &= bool(rows)
        ways.append(np.array(rows, np.int8) if rows else stay)
        count[i] = len(ways[-1])
    prey = np.repeat(stay, count.sum(), 0)
    if ways:
        prey[np.repeat(changed, count)] = np.concatenate(ways)
    return AllOutcomes(possible, hunters, prey, np.cumsum(count) - count, count)


def _hunter_outcomes(
    before: np.ndarray, after: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int8 [M, A] outcomes, and bool [M]: is each hunter on one cell at most, and can it have gone where it is?

    Args: before, after: uint8 [M, A, K]; targets: int [K+1, 6], the cell that each outcome leads to from each cell.
    """
    K = before.shape[2]
    cell_before = np.where(before.any(2), before.argmax(2), K)  # [M, A]
    cell_after = np.where(after.any(2), after.argmax(2), K)
    reached = targets[cell_before] == cell_after[:, :, None]  # [M, A, 6]
    # From a border several outcomes lead off the board, to K: LEAVE is the last of them.
    last = LEAVE - reached[..., ::-1].argmax(2)
    hunters = np.where(cell_before == K, STAYED, last)
    returned = (cell_before == K) & (cell_after < K)
    possible = (reached.any(2) & ~returned).all(1)
    possible &= (after.sum(2) <= 1).all(1)
    return hunters.astype(np.int8), possible


def _ways(before: list[int], after: frozenset[int], targets: np.ndarray) -> list[tuple[int, ...]]:
    """All ways in which prey on the cells `before` can be those on the cells `after`, an outcome each, or LEAVE."""
    if not before:
        return [] if after else [()]
    if len(after) > len(before):
        return []
    first, *others = before
    ways = []
    for outcome in (UP, DOWN, LEFT, RIGHT, STAYED):
        cell = int(targets[first, outcome])
        if cell in after:
            rest = _ways(others, after - {cell}, targets)
            ways += [(outcome, *way) for way in rest]
    if len(before) > len(after):
        ways += [(LEAVE, *way) for way in _ways(others, after, targets)]
    return ways
