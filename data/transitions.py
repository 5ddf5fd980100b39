"""A file of either kind as joint transitions: the board before, everyone's actions, the board after, rewards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.flat import Flat, read_flat
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
)  # fmt: skip
from envs.grid import joint_to_planes, planes_to_joint


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
        transitions = _from_episodes(check(arrays, path), split)
    else:
        transitions = _from_rows(read_flat(arrays, path, layout, joint=True), arrays, path, split)
    transitions.splits["all"] = np.arange(len(transitions))
    return transitions


def _from_episodes(trajectories: Trajectories, split: bool) -> Transitions:
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


def _from_rows(flat: Flat, arrays: dict[str, np.ndarray], path, split: bool) -> Transitions:
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
        splits=_split(before, after, path) if split else {},
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


def _split(before: np.ndarray, after: np.ndarray, path) -> dict[str, np.ndarray]:
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
