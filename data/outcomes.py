"""Joint states as cells, and what became of each object between two: it stayed, went to a neighbour cell, or left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from envs.grid import neighbours

UP, DOWN, LEFT, RIGHT, STAYED, LEAVE = range(6)


class JointState(NamedTuple):
    """A batch of joint states as cells: an object is the number of its cell, K once it has left."""

    blocks: torch.Tensor  # float [B, K]
    hunters: torch.Tensor  # int64 [B, A]
    prey: torch.Tensor  # int64 [B, P], stags first
    stags: int  # how many of the P are stags

    @classmethod
    def of(cls, states: torch.Tensor, stags: int, hares: int) -> JointState:
        """states: uint8 [B, A+3, K]; stags, hares: the most of each on any board. Prey are in the order of their cells."""
        hunters = occupied_cells(states[:, :-3], 1)[..., 0]  # [B, A]
        stag_cells = occupied_cells(states[:, -2], stags)
        hare_cells = occupied_cells(states[:, -1], hares)
        prey = torch.cat([stag_cells, hare_cells], 1)  # [B, P]
        return cls(states[:, -3].float(), hunters, prey, stags)

    def take(self, rows: torch.Tensor) -> JointState:
        return JointState(self.blocks[rows], self.hunters[rows], self.prey[rows], self.stags)

    def on_board(self) -> torch.Tensor:
        """Hunters that have not left: bool [B, A]."""
        return self.hunters < self.blocks.shape[1]

    def planes(self) -> torch.Tensor:
        """uint8 [B, A+3, K]"""
        B, A = self.hunters.shape
        K = self.blocks.shape[1]
        planes = self.blocks.new_zeros(B, A + 3, K + 1)
        planes[:, :A].scatter_(2, self.hunters[:, :, None], 1.0)
        planes[:, A, :K] = self.blocks
        planes[:, A + 1].scatter_(1, self.prey[:, : self.stags], 1.0)
        planes[:, A + 2].scatter_(1, self.prey[:, self.stags :], 1.0)
        return planes[:, :, :K].to(torch.uint8)


def occupied_cells(planes: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` occupied cells of each plane, K where there are fewer: uint8 [.., K] -> int64 [.., count]."""
    K = planes.shape[-1]
    priority = torch.arange(K, 0, -1, device=planes.device)  # topk then finds the first cells first
    value, cell = (planes * priority).topk(count, -1)
    return torch.where(value > 0, cell, K)


def prey_counts(states: torch.Tensor) -> tuple[int, int]:
    """The most stags and the most hares on any of the boards, at least 1. states: uint8 [B, A+3, K]."""
    stags = int(states[:, -2].sum(1).max())
    hares = int(states[:, -1].sum(1).max())
    return max(1, stags), max(1, hares)


class Outcomes(NamedTuple):
    """Of B transitions. Prey of a kind look alike: a next state can have come about in several ways, R rows, one a way."""

    hunters: torch.Tensor  # int64 [B, A], an outcome; STAYED for who was gone before
    row: torch.Tensor  # int64 [R], the transition
    way: torch.Tensor  # int64 [R], which way of it: 0, 1, ..
    prey: torch.Tensor  # int64 [R, P], stags first, each kind in the order of its cells before
    ways: int  # the most that a transition has

    def left(self) -> torch.Tensor:
        """float [B, A]: hunters that leave."""
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

    def batch(self, index: np.ndarray, device: torch.device | str = "cpu") -> Outcomes:
        """Those of the transitions `index` (int [B])."""
        count = self.count[index]
        row = np.repeat(np.arange(len(index)), count)
        way = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        prey = self.prey[self.start[index][row] + way]
        tensors = (
            torch.as_tensor(array.astype(np.int64), device=device)
            for array in (self.hunters[index], row, way, prey)
        )
        return Outcomes(*tensors, ways=int(count.max(initial=1)))


def outcomes_of(
    before: np.ndarray, after: np.ndarray, board: tuple[int, int], stags: int, hares: int
) -> AllOutcomes:
    """Args: before, after: uint8 [M, A+3, K]; board: (H, W); stags, hares: slots, at least what a state has."""
    A, K = before.shape[1] - 3, before.shape[2]
    around = np.pad(neighbours(*board)[:, :5], ((0, 0), (0, 1)), constant_values=K)  # [K + 1, 6]
    was, now = (np.where(s[:, :A].any(2), s[:, :A].argmax(2), K) for s in (before, after))
    same = around[was] == now[:, :, None]  # [M, A, 6]
    hunters = np.where(
        was == K, STAYED, LEAVE - same[..., ::-1].argmax(2)
    )  # LEAVE first: off the board is K, too
    possible = (same.any(2) & ((was < K) | (now == K))).all(1) & (before[:, A] == after[:, A]).all(1)
    possible &= (after[:, :A].sum(2) <= 1).all(1)

    changed = (before[:, A + 1 :] != after[:, A + 1 :]).any((1, 2))
    prey, count = [], np.ones(len(before), np.int64)
    stay = np.full((1, stags + hares), STAYED, np.int8)
    for i in np.flatnonzero(changed):
        kinds = [[np.flatnonzero(s[i, plane]).tolist() for s in (before, after)] for plane in (A + 1, A + 2)]
        found = [_ways(cells, frozenset(left), around) for cells, left in kinds]
        rows = [
            (*s, *(STAYED,) * (stags - len(s)), *h, *(STAYED,) * (hares - len(h)))
            for s in found[0]
            for h in found[1]
        ]
        possible[i] &= bool(rows)
        prey.append(np.array(rows, np.int8) if rows else stay)
        count[i] = len(prey[-1])
    start = np.cumsum(count) - count
    ways = np.repeat(stay, count.sum(), 0)
    if prey:
        ways[np.repeat(changed, count)] = np.concatenate(prey)
    return AllOutcomes(possible, hunters.astype(np.int8), ways, start, count)


def _ways(before: list[int], after: frozenset[int], around: np.ndarray) -> list[tuple[int, ...]]:
    """All ways in which prey on the cells `before` can be those on the cells `after`, an outcome each, or LEAVE."""
    if not before:
        return [()] if not after else []
    if len(after) > len(before):
        return []
    found = []
    for outcome in range(5):
        cell = int(around[before[0], outcome])
        if cell in after:
            found += [(outcome, *rest) for rest in _ways(before[1:], after - {cell}, around)]
    if len(before) > len(after):
        found += [(LEAVE, *rest) for rest in _ways(before[1:], after, around)]
    return found
