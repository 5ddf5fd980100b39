"""Samples and transitions as tensors, resident on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from data.outcomes import LEAVE, AllOutcomes, outcomes_of
from data.samples import Samples
from data.transitions import Transitions
from envs.grid import symmetries


class Batch(NamedTuple):
    """B samples of whole episodes (or of single rows), on U boards."""

    planes: torch.Tensor  # float [B, 5, K]
    boards: torch.Tensor  # float [U, 3, K], BLOCKS, STAGS, HARES: hunters and ticks share them
    board: torch.Tensor  # int64 [B], the row of each sample in `boards`
    things: int  # the most that a board has
    tick: torch.Tensor  # int64 [B]
    action: torch.Tensor  # int64 [B]
    goal: torch.Tensor  # int64 [B], -1 where it is not known
    track: torch.Tensor  # int64 [B], which hunter of which episode
    tracks: int  # how many there are
    ticks: int  # the most that an episode has


@dataclass
class Batches:
    """The samples as tensors on the device, the groups that stay together, and the symmetries that augment them."""

    frames: torch.Tensor  # uint8 [R, 5, K]
    rows: torch.Tensor  # int64 [M], the frame of each sample
    boards: torch.Tensor  # uint8 [.., 3, K]
    board: torch.Tensor  # int64 [M], the board of each sample
    actions: torch.Tensor  # int64 [M]
    ticks: torch.Tensor  # int64 [M]
    goals: torch.Tensor  # int64 [M]
    seats: torch.Tensor  # int64 [M]
    cells: torch.Tensor  # int64 [S, K]
    turned: torch.Tensor  # int64 [S, 7]
    start: np.ndarray  # int64 [G], the first sample of each group: an episode, or a single sample
    length: np.ndarray  # int64 [G]
    told: np.ndarray  # int64 [G], samples whose goal is known
    group: np.ndarray  # int64 [M], the group of each sample
    things: int
    hunters: int
    last_tick: int

    @classmethod
    def of(cls, samples: Samples, device: torch.device, goals: tuple[str, ...], whole_episodes: bool):
        """goals: the strategy that each goal stands for. whole_episodes: False where each sample is a group of its own."""
        group = samples.episodes if whole_episodes else np.arange(len(samples))
        _, start, group, length = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
        names = samples.strategy_names
        goal_of = np.full(len(names) + 1, -1)  # the last one: not known
        for goal, strategy in enumerate(goals):
            if strategy in names:
                goal_of[names.index(strategy)] = goal
        flat = (samples.frames.reshape(*samples.frames.shape[:2], -1), samples.rows)
        flat += (samples.boards.reshape(*samples.boards.shape[:2], -1), samples.board)
        flat += (samples.actions, samples.ticks, goal_of[samples.strategies], samples.seats)
        tensors = (torch.as_tensor(a, device=device) for a in (*flat, *symmetries(*samples.frames.shape[2:])))
        told = np.add.reduceat((goal_of[samples.strategies] >= 0).astype(np.int64), start)
        things = max(1, int(samples.boards[:, 1:].max(1).sum((1, 2), dtype=np.int64).max()))
        return cls(*tensors, start, length, told, group, things, int(samples.seats.max()) + 1,
                   int(samples.ticks.max()))  # fmt: skip

    def take(self, groups: np.ndarray, turn: torch.Tensor | None = None) -> Batch:
        """The samples of these groups, in order. turn: int64 [len(groups)], the symmetry that each is seen through."""
        device, length = self.frames.device, torch.as_tensor(self.length[groups], device=self.frames.device)
        total = int(self.length[groups].sum())
        which = torch.arange(len(groups), device=device).repeat_interleave(length, output_size=total)  # [B]
        first = torch.as_tensor(self.start[groups], device=device) - (length.cumsum(0) - length)
        index = torch.arange(total, device=device) + first[which]
        rows, board = self.board[index].unique(return_inverse=True)
        planes, boards, actions = self.frames[self.rows[index]], self.boards[rows], self.actions[index]
        if turn is not None:
            turn = turn[which]
            planes = planes.gather(2, self.cells[turn][:, None].expand(-1, planes.shape[1], -1))
            board_turn = turn.new_zeros(len(rows)).scatter(
                0, board, turn
            )  # an episode's board is its own; single samples read no boards
            boards = boards.gather(2, self.cells[board_turn][:, None].expand(-1, boards.shape[1], -1))
            actions = self.turned[turn, actions]
        return Batch(planes.float(), boards.float(), board, self.things, self.ticks[index], actions, self.goals[index],
                     which * self.hunters + self.seats[index], len(groups) * self.hunters,
                     self.last_tick + 1)  # fmt: skip

    def shares(self, index: np.ndarray, samples: int) -> list[np.ndarray]:
        """The groups of the samples `index`, in parts of about so many samples."""
        groups = np.unique(self.group[index])
        return np.array_split(groups, min(len(groups), math.ceil(len(index) / samples)))


@dataclass
class TransitionBatches:
    """Transitions as tensors on the device, what became of each object, and the symmetries that augment them."""

    states: torch.Tensor  # uint8 [R, A+3, K]
    before: torch.Tensor  # int64 [M]
    after: torch.Tensor  # int64 [M]
    actions: torch.Tensor  # int64 [M, A]
    rewards: torch.Tensor  # float [M, A], NaN where not known
    ends: torch.Tensor  # float [M], NaN where the states cannot tell
    cells: torch.Tensor  # int64 [S, K]
    turned: torch.Tensor  # int64 [S, 7]
    outcomes: AllOutcomes
    most: tuple[int, int]  # stags and hares on a board
    own: bool  # tell only one hunter's action

    @classmethod
    def of(cls, data: Transitions, device: torch.device, own: bool):
        states, board = data.states.reshape(*data.states.shape[:2], -1), data.states.shape[2:]
        most = tuple(max(1, int(states[:, plane].sum(1, dtype=np.int64).max())) for plane in (-2, -1))
        outcomes = outcomes_of(states[data.before], states[data.after], board, *most)
        arrays = (states, data.before, data.after, data.actions, data.rewards, data.ends)
        arrays += symmetries(*board)
        return cls(*(torch.as_tensor(array, device=device) for array in arrays), outcomes, most, own)

    def take(self, index: np.ndarray, random: bool, turned: bool = False) -> tuple[torch.Tensor, ...]:
        """States, actions, next states, rewards, ends of the transitions `index`. With --actions own, one hunter that is on
        the board keeps its action: the first one or, if `random`, any. turned: each through a random symmetry."""
        where = torch.as_tensor(index, device=self.states.device)
        states, actions = self.states[self.before[where]], self.actions[where]
        if self.own:
            there = states[:, :-3].any(2)
            first = -torch.arange(there.shape[1], device=there.device) / 100
            order = torch.rand(there.shape, device=there.device) if random else first
            told = (order + 2 * (there & (actions >= 0))).argmax(1, keepdim=True)
            actions = torch.full_like(actions, -1).scatter(1, told, actions.gather(1, told))
        after = self.states[self.after[where]]
        if turned:
            turn = torch.randint(len(self.cells), (len(index),), device=states.device)
            cells = self.cells[turn][:, None].expand_as(states)
            states, after = states.gather(2, cells), after.gather(2, cells)
            actions = torch.where(actions < 0, actions, self.turned[turn].gather(1, actions.clamp(min=0)))
        return states, actions, after, self.rewards[where], self.ends[where]

    def capture_totals(self, index: np.ndarray) -> list[float]:
        """What leaving a cell paid in all, in the transitions `index`: a hunter's reward times those who left with it."""
        states, left = self.states[self.before[index]].cpu().numpy(), self.outcomes.hunters[index] == LEAVE
        cell = np.where(left, states[:, :-3].argmax(2), -1 - np.arange(left.shape[1]))
        sharers = (cell[:, :, None] == cell[:, None]).sum(2)
        paid = (self.rewards[index].cpu().numpy() * sharers)[states[:, :-3].any(2)]
        return np.unique(np.append(0.0, paid[np.isfinite(paid)].round(3))).tolist()

    def reward_values(self, index: np.ndarray) -> list[float]:
        """What a hunter was paid, each value once, in the transitions `index`; 0 among them."""
        paid = self.rewards[index].cpu().numpy()
        return np.unique(np.append(0.0, paid[np.isfinite(paid)].round(4))).tolist()
