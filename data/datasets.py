"""What the scripts learn from, read from a trajectory file or a flat file.

`load_samples`: one hunter, one observation, one action (`pretrain_vae.py`). `load_transitions`: the joint state before, all
actions, the joint state after (`train_world_model.py`). `first_boards`: where recorded episodes start (`hop_ppo.py`).
`Batches` and `TransitionBatches` hold them as tensors on the device and augment them by the symmetries of the board.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.flat import Flat, read_flat
from data.npz import DataError, is_trajectory_file, read_arrays
from data.outcomes import LEAVE, AllOutcomes, outcomes_of
from data.trajectories import (
    CHUNK,
    Trajectories,
    check,
    chunks,
    split_episodes,
    split_rows,
    training_file,
)
from envs.grid import joint_to_planes, planes_to_joint, symmetries
from envs.stag_hunt import STAY, Rules, effective_actions, legal_actions

# ---- samples: one hunter, one observation, one action


def frames_of(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """What hunters see: uint8 [R, A+3, ..], int64 [n] -> uint8 [n, 5, ..]. Row r is state r // A, as seat r % A sees it."""
    seats = states.shape[1] - 3
    joint = states[rows // seats]
    frames = joint.new_empty(len(rows), 5, *joint.shape[2:])
    own = joint[torch.arange(len(rows), device=rows.device), rows % seats]
    frames[:, 0] = own
    frames[:, 1] = joint[:, :-3].sum(1, dtype=own.dtype) > own  # another hunter
    frames[:, 2:] = joint[:, -3:]
    return frames


class Frames:
    """What hunters see, made of joint states where it is asked for: `frames[rows]` (int64 [n]) is uint8 [n, 5, H, W].
    All of it would take three times as much memory as the states, which are shared by the hunters."""

    def __init__(self, states: np.ndarray):
        self.states = states
        rows, planes, *board = states.shape
        self.shape = (rows * (planes - 3), 5, *board)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return frames_of(torch.from_numpy(self.states), torch.as_tensor(rows)).numpy()


@dataclass
class Samples:
    """M samples of hunters that are on the board."""

    frames: Frames | np.ndarray
    """uint8 [R, 5, H, W], by rows; an array where the file has no episodes"""
    rows: np.ndarray
    """int64 [M], the frame of each sample"""
    actions: np.ndarray
    """int64 [M]"""
    ticks: np.ndarray
    """int64 [M]"""
    strategies: np.ndarray
    """int8 [M], -1 where the file does not say"""
    episodes: np.ndarray
    """int64 [M], rising; a number for each row where rows do not follow one another"""
    seats: np.ndarray
    """int64 [M], which hunter of its episode"""
    boards: np.ndarray
    """uint8 [U, 3, H, W], BLOCKS, STAGS and HARES: one entry for all hunters and ticks of an episode that share it"""
    board: np.ndarray
    """int64 [M], the entry of `boards` of each sample"""
    splits: dict[str, np.ndarray]
    """train, val, test: int64 indices into the M samples; `all` is all of them"""
    split_law: str
    """how they were split, for people"""
    fingerprint: str
    inferred: list[str]
    """what was concluded or changed, a line each"""
    trajectories: Trajectories | None = None
    """of a trajectory file; `frames` stand for its `obs`"""
    has_episodes: bool = True
    """False where each row of a flat file stands alone"""

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self) -> Iterator[tuple[int, Trajectories]]:
        """The trajectories, some whole episodes at a time, with `obs`; and the number of the first step of each part."""
        whole, start = self.trajectories, 0
        for first, last in whole.parts():
            part = whole.part(first, last)
            end = start + len(part.actions)
            states = self.frames.states[start + first : end + last]
            yield start, replace(part, obs=joint_to_planes(states))
            start = end

    @property
    def strategy_names(self) -> list[str]:
        return self.trajectories.strategy_names if self.trajectories else []

    @property
    def has_policy_probs(self) -> bool:
        """Does the file hold the exact probabilities that the observers of `metrics.observers` need?"""
        return self.trajectories is not None and self.trajectories.policy_probs is not None


def load_samples(path: str | Path, layout: str = "auto", split: bool = True) -> Samples:
    """Read and check a trajectory file or a flat file.

    Args:
        layout: of a flat file: `planes`, `hop`, `hop-first` or `auto`.
        split: False where the whole file is judged; then `splits` holds `all` alone.
    Raises: DataError: in one line, what is wrong with the file.
    """
    arrays = read_arrays(path)
    if is_trajectory_file(arrays):
        trajectories, states = _with_states(check(arrays, path))
        del arrays  # the file's observations, before more is made
        samples = _samples_of_states(trajectories, states, split)
    else:
        samples = samples_of_rows(arrays, path, layout, split)
    samples.splits["all"] = np.arange(len(samples))
    return samples


def samples_of_episodes(trajectories: Trajectories, split: bool) -> Samples:
    """Raises: DataError: a split would be empty."""
    return _samples_of_states(*_with_states(trajectories), split)


def _with_states(trajectories: Trajectories) -> tuple[Trajectories, np.ndarray]:
    """The trajectories without `obs`, and the joint states that show it all: uint8 [N+E, A+3, H, W]."""
    obs = trajectories.obs
    states = np.empty((len(obs), obs.shape[1] + 3, *obs.shape[3:]), np.uint8)
    for part in chunks(obs):
        states[part] = planes_to_joint(obs[part])
    return trajectories.without_obs(), states


def _samples_of_states(trajectories: Trajectories, states: np.ndarray, split: bool) -> Samples:
    """Samples in the order of steps, then seats. Raises: DataError: a split would be empty."""
    step, seat = np.nonzero(trajectories.active)
    num_seats = trajectories.actions.shape[1]
    episode = trajectories.episode[step]
    boards, board = _distinct_boards(states, trajectories)
    splits = {}
    if split:
        parts = split_episodes(len(trajectories.episode_lengths), path=trajectories.path)
        splits = {name: np.flatnonzero(np.isin(episode, episodes)) for name, episodes in parts.items()}
        for name, index in splits.items():
            if not len(index):
                raise DataError(f"{trajectories.path}: active: the {name} split has no active sample")
    return Samples(
        frames=Frames(states),
        rows=trajectories.obs_row[step] * num_seats + seat,
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


def _distinct_boards(states: np.ndarray, trajectories: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """BLOCKS, STAGS and HARES wherever they change, uint8 [U, 3, H, W], and int64 [N], the entry before each step."""
    changed = np.ones(len(states), bool)
    for part in chunks(states[1:]):
        boards, before = states[1:][part, -3:], states[:-1][part, -3:]
        changed[1:][part] = (boards != before).any((1, 2, 3))
    num_obs = trajectories.episode_lengths + 1
    changed[np.cumsum(num_obs) - num_obs] = True  # an episode starts with an entry of its own
    entry = np.cumsum(changed) - 1
    return states[changed, -3:], entry[trajectories.obs_row]


def samples_of_rows(arrays: dict[str, np.ndarray], path: str | Path, layout: str, split: bool) -> Samples:
    """Samples of a flat file: the rows whose observer is on the board. Raises: DataError."""
    flat = read_flat(arrays, path, layout)
    rows = np.flatnonzero(flat.planes[:, 0].any((1, 2)))
    if not len(rows):
        raise DataError(f"{path}: obs: expected a SELF cell in some rows, found none")
    actions = flat.actions[rows]
    legal = legal_actions(flat.planes[rows])  # [M, 7]
    illegal = ~legal[np.arange(len(rows)), actions]
    actions[illegal] = STAY  # as the game has it
    inferred = list(flat.inferred)
    if left_out := len(flat.planes) - len(rows):
        inferred.append(f"{left_out} rows without the observer left out")
    if illegal.any():
        inferred.append(f"{illegal.sum()} illegal actions count as STAY")
    groups = _groups_of_rows(flat, rows, inferred, split)
    boards, board = flat.planes[:, 2:], rows
    if groups.found:
        boards, board = _boards_of_rows(flat.planes, rows, groups.episodes)
    splits = {}
    if split and groups.found:
        parts = split_episodes(int(groups.boards[-1]) + 1, path=path)
        splits = {name: np.flatnonzero(np.isin(groups.boards, part)) for name, part in parts.items()}
    elif split:
        splits = split_rows(len(rows), path)
    digest = hashlib.sha256()
    for array in (flat.planes, flat.actions, flat.ticks):
        digest.update(memoryview(np.ascontiguousarray(array)).cast("B"))
    if groups.found:
        digest.update(memoryview(groups.episodes).cast("B"))
    return Samples(
        frames=flat.planes,
        rows=rows,
        actions=actions,
        ticks=flat.ticks[rows],
        strategies=np.full(len(rows), -1, np.int8),
        episodes=groups.episodes,
        seats=groups.seats,
        boards=boards,
        board=board,
        splits=splits,
        split_law="80/10/10 by episode" if groups.found else "80/10/10 by contiguous blocks",
        fingerprint=digest.hexdigest(),
        inferred=inferred,
        has_episodes=groups.found,
    )


class _Groups(NamedTuple):
    """Which of M samples of a flat file belong together."""

    found: bool  # False: each stands alone
    episodes: np.ndarray  # int64 [M], rising
    seats: np.ndarray  # int64 [M]
    boards: np.ndarray  # int64 [M], rising: what stays together in a split


def _groups_of_rows(flat: Flat, rows: np.ndarray, inferred: list[str], split: bool) -> _Groups:
    """rows: those with the observer on the board; inferred: gets a line where episodes are too few to split."""
    if flat.episodes is not None:
        numbers = (flat.episodes.number, flat.episodes.board)
        number, board = (np.unique(array[rows], return_inverse=True)[1] for array in numbers)
        if board[-1] >= 9 or not split:
            return _Groups(True, number, flat.episodes.seat[rows], board)
        inferred.append("at least 10 episodes are needed to split by them: each row stands alone")
    alone = np.arange(len(rows))
    return _Groups(False, alone, np.zeros(len(rows), np.int64), alone)


def _boards_of_rows(
    planes: np.ndarray, rows: np.ndarray, episodes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """BLOCKS, STAGS and HARES, uint8 [U, 3, H, W], each once an episode, and int64 [M], the entry of each of `rows`."""
    changed = np.append(True, np.diff(episodes) > 0)
    for part in chunks(rows[1:], planes[0].nbytes):
        after, before = planes[rows[1:][part], 2:], planes[rows[:-1][part], 2:]
        changed[1:][part] |= (after != before).any((1, 2, 3))
    entry = np.cumsum(changed) - 1
    first = rows[changed]
    # Hunters of an episode see one board, one after another: alike are those with the same bits.
    bits = np.packbits(planes[first, 2:].reshape(len(first), -1), axis=1)
    number = episodes[changed].reshape(-1, 1)
    keys = np.concatenate([number.astype(">i8").view(np.uint8).reshape(len(first), 8), bits], 1)
    keys = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}")[:, 0]
    _, kept, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return planes[first[kept], 2:], inverse[entry]


# ---- transitions: the joint state before, all actions, the joint state after


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
    """int64 [M, A], as attempted, where the file says so: an illegal one counts as STAY in the game. STAY for a hunter that
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
    """what was concluded or changed, a line each"""
    observer_first: bool = False
    """hunters are in the order observer, observer + 1, .. (a flat file without `observer`), not by seat"""
    trajectories: Trajectories | None = None
    """where the file has episodes; `states` stands for its `obs`"""
    rules: dict | None = None
    """of the game, where the file has them: the fields of `envs.Rules`"""

    def __len__(self) -> int:
        return len(self.before)


def load_transitions(path: str | Path, layout: str = "auto", split: bool = True) -> Transitions:
    """Read and check a trajectory file or a flat file.

    Args:
        layout: of a flat file: `hop`, `hop-first`, or `auto`. Five planes do not tell the other hunters apart.
        split: False where the whole file is judged; then `splits` holds `all` alone.
    Raises: DataError: in one line, what is wrong with the file.
    """
    arrays = read_arrays(path)
    if is_trajectory_file(arrays):
        trajectories, states = _with_states(check(arrays, path))
        del arrays
        transitions = _transitions_of_states(trajectories, states, split)
    else:
        flat = read_flat(arrays, path, layout, joint=True)
        transitions = transitions_of_rows(flat, arrays, path, split)
    transitions.splits["all"] = np.arange(len(transitions))
    return transitions


def first_boards(path: str | Path, rules: Rules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boards at tick 0 of the training episodes of a file, to start games from.

    Returns: blocks bool [M, K], hunters int64 [M, A], prey int64 [M, P]: cells, K for a hunter that is not on the board;
    stags first, each kind in the order of its cells.
    Raises: DataError: a file that judges, or of another game than `rules`.
    """
    transitions = load_transitions(training_file(path))
    train = transitions.splits["train"]
    first = train[transitions.ticks[train] == 0]
    states = transitions.states[transitions.before[first]]  # [M, A+3, H, W]
    shape = (rules.hunters + 3, rules.height, rules.width)
    fits = len(states) > 0 and states.shape[1:] == shape
    counts = states[:, -2:].sum((2, 3), np.int64)  # [M, 2]
    if not fits or (counts != [rules.stags, rules.hares]).any():
        prey = f"{rules.stags} stags and {rules.hares} hares"
        game = f"{rules.hunters} hunters, {prey} on {rules.height}x{rules.width} cells"
        raise DataError(
            f"{path}: expected episodes of {game}: collect them with `python -m data.collect --rules...`"
        )
    states = states.reshape(len(states), rules.hunters + 3, -1)  # [M, A+3, K]
    stags = _cells(states[:, -2], rules.stags)
    hares = _cells(states[:, -1], rules.hares)
    hunters = [_cells(states[:, seat], 1) for seat in range(rules.hunters)]
    blocks = states[:, -3].astype(bool)
    return blocks, np.concatenate(hunters, 1), np.concatenate([stags, hares], 1)


def _cells(planes: np.ndarray, count: int) -> np.ndarray:
    """The first `count` cells of 1 in each plane, K where there are fewer. uint8 [M, K] -> int64 [M, count]."""
    cells = np.argsort(planes == 0, axis=1, kind="stable")[:, :count]
    occupied = np.take_along_axis(planes, cells, 1) > 0
    return np.where(occupied, cells, planes.shape[1])


def transitions_of_episodes(trajectories: Trajectories, split: bool) -> Transitions:
    """All steps of all episodes. Raises: DataError: a split would be empty."""
    return _transitions_of_states(*_with_states(trajectories), split)


def _transitions_of_states(trajectories: Trajectories, states: np.ndarray, split: bool) -> Transitions:
    episode = trajectories.episode
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


def transitions_of_rows(
    flat: Flat, arrays: dict[str, np.ndarray], path: str | Path, split: bool
) -> Transitions:
    """Transitions of a flat file: its rows with a hunter on the board and a known next state.

    Raises: DataError: there are none, or a split would be empty.
    """
    inferred = list(flat.inferred)
    pairs = _pair_rows(flat)
    states, broken = pairs.states, pairs.broken
    inferred += pairs.inferred
    occupied = flat.joint[:, :-3].any((1, 2, 3))  # [N]
    if not occupied.all():
        inferred.append(f"{(~occupied).sum()} rows with nobody on the board left out")
    valid = occupied & pairs.valid
    if not valid.any():
        notes = "; ".join(inferred)
        raise DataError(
            f"{path}: obs: expected at least one transition, found none in {len(valid)} rows ({notes})"
        )
    before = np.flatnonzero(valid)
    after = pairs.after[valid]
    if jumps := _count_jumps(states, before, after):
        inferred.append(
            f"{jumps} transitions move a hunter further than one cell: another episode, or another observer?"
        )
    actions = flat.joint_actions[before]  # [M, A]
    inactive = ~states[:, :-3].any((2, 3))[before]
    meaningless = inactive & (actions >= 0) & (actions != STAY)
    actions = np.where(meaningless, STAY, actions)
    if meaningless.any():
        inferred.append(f"{meaningless.sum()} actions of hunters that have left count as STAY")
    if illegal := _count_illegal(states, before, actions):
        inferred.append(f"{illegal} recorded actions are not legal, kept as asked for")
    stretch = np.append(0, np.cumsum(broken))
    columns = {
        "states": states,
        "before": before,
        "after": after,
        "actions": actions,
        "rewards": flat.rewards[before],
        "ends": (~states[after, :-3].any((1, 2, 3))).astype(np.float32),
        "ticks": flat.ticks[before],
        "episodes": np.unique(stretch[before], return_inverse=True)[1],
    }
    digest = hashlib.sha256()
    for key, array in columns.items():
        digest.update(f"{key} {array.dtype} {array.shape}".encode())
        digest.update(memoryview(np.ascontiguousarray(array)).cast("B"))
    return Transitions(
        **columns,
        splits=_split_transitions(before, after, path) if split else {},
        split_law="80/10/10 by contiguous blocks",
        fingerprint=digest.hexdigest(),
        inferred=inferred,
        observer_first="observer" not in arrays,
    )


class _Pairs(NamedTuple):
    """The next state of each of N rows."""

    states: np.ndarray  # uint8 [R, A+3, H, W], the N rows first
    after: np.ndarray  # int64 [N], the row of `states` after each row
    valid: np.ndarray  # bool [N], False where the next state is not known
    broken: np.ndarray  # bool [N-1], another episode begins between row i and row i + 1
    inferred: list[str]


def _pair_rows(flat: Flat) -> _Pairs:
    states, count = flat.joint, len(flat.joint)
    broken = flat.cut
    if flat.next_joint is None:
        broken = broken | _another_board(states[:-1], states[1:])
        valid = ~np.append(broken, True)
        paired = (valid & states[:, :-3].any((1, 2, 3))).sum()
        note = f"{paired} of {count} rows paired with the row that follows (no `next_obs`)"
        return _Pairs(states, np.arange(count) + 1, valid, broken, [note])
    broken = broken | (flat.next_joint[:-1] != states[1:]).any((1, 2, 3))
    # A recorder may have reset the board before it looked at it.
    other = _another_board(states, flat.next_joint)
    notes = [f"{other.sum()} rows left out whose `next_obs` is another board"] if other.any() else []
    states = np.concatenate([states, flat.next_joint])
    return _Pairs(states, np.arange(count) + count, ~other, broken, notes)


def _another_board(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """bool [N]: no step leads from one to the other, [N, A+3, H, W]: a block changed, or prey or a hunter appeared."""
    hunter_appeared = after.any((2, 3))[:, :-3] & ~before.any((2, 3))[:, :-3]
    prey_before = before[:, -2:].sum((2, 3), np.int64)
    prey_after = after[:, -2:].sum((2, 3), np.int64)
    blocks_changed = (before[:, -3] != after[:, -3]).any((1, 2))
    return blocks_changed | (prey_after > prey_before).any(1) | hunter_appeared.any(1)


def _count_jumps(states: np.ndarray, before: np.ndarray, after: np.ndarray) -> int:
    """Transitions in which a hunter that stays on the board moves further than one cell."""
    hunters = states[:, :-3].reshape(len(states), states.shape[1] - 3, -1)  # [R, A, K]
    active = hunters.any(2)
    row, column = np.divmod(hunters.argmax(2), states.shape[3])
    distance = abs(row[after] - row[before]) + abs(column[after] - column[before])
    jumps = (distance > 1) & active[before] & active[after]
    return int(jumps.any(1).sum())


def _count_illegal(states: np.ndarray, before: np.ndarray, actions: np.ndarray) -> int:
    """Known actions [M, A] that are not legal on their boards."""
    actions = np.where(actions < 0, STAY, actions)
    count = 0
    for start in range(0, len(before), CHUNK):
        part = slice(start, start + CHUNK)
        legal = legal_actions(joint_to_planes(states[before[part]]))
        count += np.count_nonzero(effective_actions(actions[part], legal) != actions[part])
    return count


def _split_transitions(before: np.ndarray, after: np.ndarray, path: str | Path) -> dict[str, np.ndarray]:
    """Contiguous blocks; where the last transition of one leads to the first state of the next, it is in neither."""
    splits = split_rows(len(before), path)
    for name, follower in (("train", "val"), ("val", "test")):
        if after[splits[name][-1]] == before[splits[follower][0]]:
            splits[name] = splits[name][:-1]
        if not len(splits[name]):
            needed = "at least 20 transitions to split 80/10/10 where neighbours share a state"
            raise DataError(f"{path}: expected {needed}, found {len(before)}: {name} would be empty")
    return splits


# ---- batches: tensors on the device


class Batch(NamedTuple):
    """B samples of whole episodes (or of single rows), on U boards."""

    planes: torch.Tensor  # float [B, 5, K]
    boards: torch.Tensor  # float [U, 3, K], BLOCKS, STAGS, HARES: hunters and ticks share them
    board: torch.Tensor  # int64 [B], the row of each sample in `boards`
    max_prey: int  # the most that a board has
    tick: torch.Tensor  # int64 [B]
    action: torch.Tensor  # int64 [B]
    goal: torch.Tensor  # int64 [B], -1 where it is not known
    trajectory_id: torch.Tensor  # int64 [B], which hunter of which episode
    num_trajectories: int
    num_ticks: int  # the most that an episode has


@dataclass
class Batches:
    """The samples as tensors on the device, the groups that stay together, and the symmetries that augment them."""

    frames: torch.Tensor  # uint8 [R, 5, K]; with `joint` the states that they are made of, [R', A+3, K]
    joint: bool
    rows: torch.Tensor  # int64 [M], the frame of each sample
    boards: torch.Tensor  # uint8 [U, 3, K]
    board: torch.Tensor  # int64 [M], the board of each sample
    actions: torch.Tensor  # int64 [M]
    ticks: torch.Tensor  # int64 [M]
    goals: torch.Tensor  # int64 [M], -1 where it is not known
    seats: torch.Tensor  # int64 [M]
    cell_permutation: torch.Tensor  # int64 [S, K]
    action_permutation: torch.Tensor  # int64 [S, 7]
    start: np.ndarray  # int64 [G], the first sample of each group: an episode, or a single sample
    length: np.ndarray  # int64 [G]
    goal_known: np.ndarray  # int64 [G], how many samples have a known goal
    group: np.ndarray  # int64 [M], the group of each sample
    max_prey: int
    hunters: int
    last_tick: int

    @classmethod
    def of(
        cls, samples: Samples, device: torch.device, goals: tuple[str, ...], whole_episodes: bool
    ) -> Batches:
        """Args:
        goals: the strategy that each goal stands for.
        whole_episodes: False where each sample is a group of its own.
        """
        group = samples.episodes if whole_episodes else np.arange(len(samples))
        start = np.append(0, 1 + np.flatnonzero(group[1:] != group[:-1]))  # episodes rise
        length = np.diff(start, append=len(group))
        group = np.repeat(np.arange(len(start)), length)
        sample_goals = _goals_of(samples, goals)
        cell_permutation, action_permutation = symmetries(*samples.frames.shape[2:])
        prey = samples.boards[:, 1:].max(1).sum((1, 2), dtype=np.int64)  # [U]

        joint = isinstance(samples.frames, Frames)
        frames: np.ndarray = samples.frames.states if isinstance(samples.frames, Frames) else samples.frames

        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array, device=device)

        return cls(
            frames=on_device(frames.reshape(*frames.shape[:2], -1)),
            joint=joint,
            rows=on_device(samples.rows),
            boards=on_device(samples.boards.reshape(*samples.boards.shape[:2], -1)),
            board=on_device(samples.board),
            actions=on_device(samples.actions),
            ticks=on_device(samples.ticks),
            goals=on_device(sample_goals),
            seats=on_device(samples.seats),
            cell_permutation=on_device(cell_permutation),
            action_permutation=on_device(action_permutation),
            start=start,
            length=length,
            goal_known=np.add.reduceat(sample_goals >= 0, start, dtype=np.int64),
            group=group,
            max_prey=max(1, int(prey.max())),
            hunters=int(samples.seats.max()) + 1,
            last_tick=int(samples.ticks.max()),
        )

    def take(self, groups: np.ndarray, symmetry: torch.Tensor | None = None) -> Batch:
        """The samples of these groups, in order.

        Args: symmetry: int64 [len(groups)], the symmetry of the board that each group is transformed by.
        """
        device = self.frames.device
        length = torch.as_tensor(self.length[groups], device=device)
        total = int(self.length[groups].sum())
        group = torch.arange(len(groups), device=device)
        group = group.repeat_interleave(length, output_size=total)  # [B]
        first = torch.as_tensor(self.start[groups], device=device) - (length.cumsum(0) - length)
        index = torch.arange(total, device=device) + first[group]
        rows, board = self.board[index].unique(return_inverse=True)
        frame = self.rows[index]
        planes = frames_of(self.frames, frame) if self.joint else self.frames[frame]  # [B, 5, K]
        boards = self.boards[rows]  # [U, 3, K]
        actions = self.actions[index]
        if symmetry is not None:
            symmetry = symmetry[group]
            planes = _permute_cells(planes, self.cell_permutation[symmetry])
            # The boards of an episode are its own; groups of single samples do not read them.
            board_symmetry = symmetry.new_zeros(len(rows)).scatter(0, board, symmetry)
            boards = _permute_cells(boards, self.cell_permutation[board_symmetry])
            actions = self.action_permutation[symmetry, actions]
        return Batch(
            planes=planes.float(),
            boards=boards.float(),
            board=board,
            max_prey=self.max_prey,
            tick=self.ticks[index],
            action=actions,
            goal=self.goals[index],
            trajectory_id=group * self.hunters + self.seats[index],
            num_trajectories=len(groups) * self.hunters,
            num_ticks=self.last_tick + 1,
        )

    def shares(self, index: np.ndarray, samples: int) -> list[np.ndarray]:
        """The groups of the samples `index`, in parts of about so many samples."""
        groups = np.unique(self.group[index])
        return np.array_split(groups, min(len(groups), math.ceil(len(index) / samples)))


def _goals_of(samples: Samples, goals: tuple[str, ...]) -> np.ndarray:
    """int64 [M]: the goal that the strategy of each sample stands for, -1 where there is none or it is not known."""
    names = samples.strategy_names
    goal_of = np.full(len(names) + 1, -1)  # the last entry: strategy -1, not known
    for goal, strategy in enumerate(goals):
        if strategy in names:
            goal_of[names.index(strategy)] = goal
    return goal_of[samples.strategies]


def _permute_cells(planes: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """planes: [B, C, K]; permutation: int64 [B, K], the cell that each cell is taken from."""
    return planes.gather(2, permutation[:, None].expand(-1, planes.shape[1], -1))


@dataclass
class TransitionBatches:
    """Transitions as tensors on the device, what became of each object, and the symmetries that augment them."""

    states: torch.Tensor  # uint8 [R, A+3, K]
    before: torch.Tensor  # int64 [M]
    after: torch.Tensor  # int64 [M]
    actions: torch.Tensor  # int64 [M, A]
    rewards: torch.Tensor  # float [M, A], NaN where not known
    ends: torch.Tensor  # float [M], NaN where the states cannot tell
    cell_permutation: torch.Tensor  # int64 [S, K]
    action_permutation: torch.Tensor  # int64 [S, 7]
    outcomes: AllOutcomes
    most: tuple[int, int]  # stags and hares on a board
    own: bool  # show the action of one hunter only

    @classmethod
    def of(cls, data: Transitions, device: torch.device, own: bool) -> TransitionBatches:
        """own: show the action of one hunter a transition only; the others are -1."""
        board = data.states.shape[2:]
        states = data.states.reshape(*data.states.shape[:2], -1)
        prey = states[:, -2:].sum(2, dtype=np.int64).max(0)  # [2]
        most = (max(1, int(prey[0])), max(1, int(prey[1])))
        cell_permutation, action_permutation = symmetries(*board)

        outcomes = [
            outcomes_of(states[data.before[part]], states[data.after[part]], board, *most)
            for part in chunks(states[: len(data)])  # no transition without a state of its own
        ]

        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array, device=device)

        return cls(
            states=on_device(states),
            before=on_device(data.before),
            after=on_device(data.after),
            actions=on_device(data.actions),
            rewards=on_device(data.rewards),
            ends=on_device(data.ends),
            cell_permutation=on_device(cell_permutation),
            action_permutation=on_device(action_permutation),
            outcomes=AllOutcomes.cat(outcomes),
            most=most,
            own=own,
        )

    def take(self, index: np.ndarray, random: bool, augment: bool = False) -> tuple[torch.Tensor, ...]:
        """The transitions `index` (int [B]).

        Args:
            random: with `own`, show the action of any hunter on the board, drawn at random; else of the first one.
            augment: transform each by a random symmetry of the board.
        Returns: states uint8 [B, A+3, K], actions int64 [B, A], next states, rewards float [B, A], ends float [B].
        """
        rows = torch.as_tensor(index, device=self.states.device)
        states = self.states[self.before[rows]]
        next_states = self.states[self.after[rows]]
        actions = self.actions[rows]
        if self.own:
            actions = _own_actions(states, actions, random)
        if augment:
            num_symmetries = len(self.cell_permutation)
            symmetry = torch.randint(num_symmetries, (len(index),), device=states.device)
            cells = self.cell_permutation[symmetry]  # [B, K]
            states = _permute_cells(states, cells)
            next_states = _permute_cells(next_states, cells)
            permuted = self.action_permutation[symmetry].gather(1, actions.clamp(min=0))
            actions = torch.where(actions < 0, actions, permuted)
        return states, actions, next_states, self.rewards[rows], self.ends[rows]

    def capture_totals(self, index: np.ndarray) -> list[float]:
        """What a capture was worth to all who took part, each value once, in the transitions `index`; 0 among them.

        A hunter's reward times the number of hunters that left the board on its cell in that tick.
        """
        states = self.states[self.before[index]].cpu().numpy()
        captured = self.outcomes.hunters[index] == LEAVE  # [m, A]
        apart = -1 - np.arange(captured.shape[1])  # no cell: shared with nobody
        cell = np.where(captured, states[:, :-3].argmax(2), apart)
        sharers = (cell[:, :, None] == cell[:, None]).sum(2)
        active = states[:, :-3].any(2)
        totals = (self.rewards[index].cpu().numpy() * sharers)[active]
        return _distinct(totals, decimals=3)

    def reward_values(self, index: np.ndarray) -> list[float]:
        """Rewards of a hunter, each value once, in the transitions `index`; 0 among them."""
        return _distinct(self.rewards[index].cpu().numpy(), decimals=4)


def _own_actions(states: torch.Tensor, actions: torch.Tensor, random: bool) -> torch.Tensor:
    """The action of one hunter on the board, -1 for all others. int64 [B, A] -> int64 [B, A]."""
    active = states[:, :-3].any(2)  # [B, A]
    if random:
        priority = torch.rand(active.shape, device=active.device)
    else:
        priority = -torch.arange(active.shape[1], device=active.device) / 100
    known = active & (actions >= 0)
    own = (priority + 2 * known).argmax(1, keepdim=True)
    return torch.full_like(actions, -1).scatter(1, own, actions.gather(1, own))


def _distinct(values: np.ndarray, decimals: int) -> list[float]:
    """The finite values, rounded, and 0; rising, each once."""
    finite = values[np.isfinite(values)].round(decimals)
    return np.unique(np.append(0.0, finite)).tolist()
