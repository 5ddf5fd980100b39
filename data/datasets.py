"""A file of either kind as samples of one hunter, as joint transitions, and both as batches of tensors on the device."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.flat import Flat, read_flat
from data.outcomes import LEAVE, AllOutcomes, outcomes_of
from data.trajectories import (
    CHUNK,
    STAY,
    DataError,
    Trajectories,
    check,
    effective_actions,
    is_trajectory_file,
    legal_actions,
    read_arrays,
    split_episodes,
    split_rows,
)
from envs.grid import joint_to_planes, planes_to_joint, symmetries


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
    def has_policy_probs(self) -> bool:
        """Does the file hold the exact probabilities that the observers of `metrics.observers` need?"""
        return self.trajectories is not None and self.trajectories.policy_probs is not None


def load_samples(path: str | Path, layout: str = "auto", split: bool = True) -> Samples:
    """Read and check a trajectory file or a flat file. split: False where the whole file is judged.

    Raises: DataError: in one line, what is wrong with the file.
    """
    arrays = read_arrays(path)
    samples = (
        samples_of_episodes(check(arrays, path), split)
        if is_trajectory_file(arrays)
        else samples_of_rows(arrays, path, layout, split)
    )
    samples.splits["all"] = np.arange(len(samples))
    return samples


def samples_of_episodes(trajectories: Trajectories, split: bool) -> Samples:
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


def samples_of_rows(arrays: dict[str, np.ndarray], path, layout: str, split: bool) -> Samples:
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


@dataclass
class Transitions:
    """M transitions of A hunters between R joint states; successive ones of an episode share a state."""

    states: np.ndarray
    """uint8 [R, A+3, H, W]: A SELF planes, BLOCKS, STAGS, HARES"""
    before: np.ndarray
    """int64 [M], the row of `states` before each transition"""
    after: np.ndarray
    """int64 [M], the row after it"""
    actions: np.ndarray
    """int64 [M, A], as asked for, where the file says so: an illegal one counts as STAY in the game. STAY for a hunter that
    has left; -1 where not known"""
    rewards: np.ndarray
    """float32 [M, A], NaN where not known"""
    ends: np.ndarray
    """float32 [M], 1 where the board terminated with this step, else 0 (a truncation at the horizon is no end). NaN where
    `end_after_first_hunt` ended it with hunters left: that follows from the ticks since a capture, not from the states"""
    ticks: np.ndarray
    """int64 [M]"""
    episodes: np.ndarray
    """int64 [M], rising; in a flat file a running number of each unbroken stretch"""
    splits: dict[str, np.ndarray]
    """train, val, test: int64 indices into the M transitions; `all` is all of them"""
    split_law: str
    """how they were split, for people"""
    fingerprint: str
    inferred: list[str]
    observer_first: bool = False
    """hunters are in the order observer, observer + 1, .. (a flat file without `observer`), not by seat"""
    trajectories: Trajectories | None = None
    """where the episodes are known"""
    rules: dict | None = None
    """of the game, where the file has them: the fields of `envs.Rules`"""

    def __len__(self) -> int:
        return len(self.before)


def load_transitions(path: str | Path, layout: str = "auto", split: bool = True) -> Transitions:
    """Read and check a trajectory file or a flat file. split: False where the whole file is judged.

    Args: layout: of a flat file: `hop`, `hop-first`, or `auto`. Five planes do not tell the other hunters apart.
    Raises: DataError: in one line, what is wrong with the file.
    """
    arrays = read_arrays(path)
    if is_trajectory_file(arrays):
        transitions = transitions_of_episodes(check(arrays, path), split)
    else:
        transitions = transitions_of_rows(read_flat(arrays, path, layout, joint=True), arrays, path, split)
    transitions.splits["all"] = np.arange(len(transitions))
    return transitions


def transitions_of_episodes(trajectories: Trajectories, split: bool) -> Transitions:
    obs, episode = trajectories.obs, trajectories.episode
    states = np.empty((len(obs), obs.shape[1] + 3, *obs.shape[3:]), np.uint8)
    for start in range(0, len(obs), CHUNK):
        states[start : start + CHUNK] = planes_to_joint(obs[start : start + CHUNK])
    splits = {}
    if split:
        parts = split_episodes(len(trajectories.episode_lengths), path=trajectories.path)
        splits = {name: np.flatnonzero(np.isin(episode, episodes)) for name, episodes in parts.items()}
    rules = trajectories.metadata.get("rules")
    ends = np.zeros(len(episode), np.float32)
    last = np.cumsum(trajectories.episode_lengths) - 1
    ends[last] = trajectories.terminated
    if rules and rules.get("end_after_first_hunt") is not None:
        hunters_left = states[trajectories.obs_row[last] + 1, :-3].any((1, 2, 3))
        ends[last[trajectories.terminated & hunters_left]] = np.nan
    actions = trajectories.actions if trajectories.attempted is None else trajectories.attempted
    return Transitions(
        states=states,
        before=trajectories.obs_row,
        after=trajectories.obs_row + 1,
        actions=actions.astype(np.int64),
        rewards=trajectories.rewards,
        ends=ends,
        ticks=trajectories.tick,
        episodes=episode,
        splits=splits,
        split_law="80/10/10 by episode",
        fingerprint=trajectories.fingerprint,
        inferred=[],
        trajectories=trajectories,
        rules=rules,
    )


def transitions_of_rows(flat: Flat, arrays: dict[str, np.ndarray], path, split: bool) -> Transitions:
    states, n, inferred = flat.joint, len(flat.joint), list(flat.inferred)
    there = states[:, :-3].any((1, 2, 3))  # somebody is on the board
    broken = (
        np.diff(flat.ticks) != 1 if "times" in arrays else np.zeros(n - 1, bool)
    )  # between row i and row i + 1
    if flat.next_joint is None:
        broken |= _another_board(states[:-1], states[1:])
        good, after = there & ~np.append(broken, True), np.arange(n) + 1
        inferred.append(f"{good.sum()} of {n} rows paired with the row that follows (no `next_obs`)")
    else:
        broken |= (flat.next_joint[:-1] != states[1:]).any((1, 2, 3))
        other = _another_board(
            states, flat.next_joint
        )  # a recorder's board that was dealt anew before it was looked at
        good, after = there & ~other, np.arange(n) + n
        inferred += [f"{other.sum()} rows left out whose `next_obs` is another board"] * bool(other.any())
        states = np.concatenate([states, flat.next_joint])
    inferred += [f"{(~there).sum()} rows with nobody on the board left out"] * (not there.all())
    if not good.any():
        raise DataError(
            f"{path}: obs: expected at least one transition, found none in {n} rows ({'; '.join(inferred)})"
        )
    before, after = np.flatnonzero(good), after[good]
    jumps = _jumps(states, before, after)
    if jumps:
        inferred.append(
            f"{jumps} transitions move a hunter further than one cell: another episode, or another observer?"
        )
    actions, left = flat.joint_actions[before], ~states[:, :-3].any((2, 3))[before]
    meaningless = left & (actions >= 0) & (actions != STAY)
    actions = np.where(meaningless, STAY, actions)
    inferred += [f"{meaningless.sum()} actions of hunters that have left count as STAY"] * bool(
        meaningless.any()
    )
    if illegal := _count_illegal(states, before, actions):
        inferred.append(f"{illegal} recorded actions are not legal, kept as asked for")
    found = {
        "states": states,
        "before": before,
        "after": after,
        "actions": actions,
        "rewards": flat.rewards[before],
        "ends": (~states[after, :-3].any((1, 2, 3))).astype(np.float32),
        "ticks": flat.ticks[before],
        "episodes": np.unique(np.append(0, np.cumsum(broken))[before], return_inverse=True)[1],
    }
    digest = hashlib.sha256()
    for key, array in found.items():
        digest.update(f"{key} {array.dtype} {array.shape}".encode())
        digest.update(memoryview(np.ascontiguousarray(array)).cast("B"))
    return Transitions(
        **found,
        splits=_split_transitions(before, after, path) if split else {},
        split_law="80/10/10 by contiguous blocks",
        fingerprint=digest.hexdigest(),
        inferred=inferred,
        observer_first="observer" not in arrays,
    )


def _another_board(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """bool [n]: no step leads from one to the other, [n, A+3, H, W]: a block changed, or prey or a hunter came in."""
    more = after.any((2, 3))[:, :-3] & ~before.any((2, 3))[:, :-3]  # hunters that had left
    prey = after[:, -2:].sum((2, 3), np.int64) > before[:, -2:].sum((2, 3), np.int64)
    return (before[:, -3] != after[:, -3]).any((1, 2)) | prey.any(1) | more.any(1)


def _jumps(states: np.ndarray, before: np.ndarray, after: np.ndarray) -> int:
    """Transitions in which a hunter that stays on the board moves further than one cell."""
    hunters = states[:, :-3].reshape(len(states), states.shape[1] - 3, -1)
    (row, column), there = np.divmod(hunters.argmax(2), states.shape[3]), hunters.any(2)
    far = abs(row[after] - row[before]) + abs(column[after] - column[before]) > 1
    return int((far & there[before] & there[after]).any(1).sum())


def _count_illegal(states: np.ndarray, before: np.ndarray, actions: np.ndarray) -> int:
    """Known actions [M, A] that are not legal on their boards."""
    count, actions = 0, np.where(actions < 0, STAY, actions)
    for start in range(0, len(before), CHUNK):
        part = slice(start, start + CHUNK)
        legal = legal_actions(joint_to_planes(states[before[part]]))
        legal[..., STAY] = True  # all that is left to a hunter that has left
        count += np.count_nonzero(effective_actions(actions[part], legal) != actions[part])
    return count


def _split_transitions(before: np.ndarray, after: np.ndarray, path) -> dict[str, np.ndarray]:
    """Contiguous blocks; where the last transition of one leads to the first state of the next, it is in neither."""
    splits, what = (
        split_rows(len(before), path),
        "transitions to split 80/10/10 where neighbours share a state",
    )
    for name, follower in (("train", "val"), ("val", "test")):
        if after[splits[name][-1]] == before[splits[follower][0]]:
            splits[name] = splits[name][:-1]
        if not len(splits[name]):
            raise DataError(
                f"{path}: expected at least 20 {what}, found {len(before)}: {name} would be empty"
            )
    return splits


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
