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

from data.episodes import MIN_SHARE
from data.flat import Flat, read_flat
from data.npz import DataError, is_trajectory_file, read_arrays
from data.outcomes import LEAVE, AllOutcomes, outcomes_of
from data.trajectories import (
    CHUNK,
    Trajectories,
    check,
    check_other,
    chunks,
    is_of_other_game,
    split_episodes,
    split_rows,
    training_file,
)
from envs.core import TAKE, GameRules, effective_actions, legal_actions
from envs.game import OWN_PLANES, STAY, Game, OtherGame
from envs.games import env_id_of
from envs.grid import joint_to_planes, planes_to_joint, symmetries

# ---- samples: one hunter, one observation, one action


def frames_of(states: torch.Tensor, rows: torch.Tensor, kinds: int) -> torch.Tensor:
    """What hunters see: uint8 [R, A+1+k, ..], int64 [n] -> uint8 [n, 3+k, ..], with k kinds of prey.

    Row r is state r // A, as seat r % A sees it.
    """
    seats = states.shape[1] - 1 - kinds
    joint = states[rows // seats]
    frames = joint.new_empty(len(rows), 3 + kinds, *joint.shape[2:])
    own = joint[torch.arange(len(rows), device=rows.device), rows % seats]
    frames[:, 0] = own
    frames[:, 1] = joint[:, :seats].sum(1, dtype=own.dtype) > own  # another hunter
    frames[:, 2:] = joint[:, seats:]
    return frames


class Frames:
    """What hunters see, made of joint states where it is asked for: `frames[rows]` (int64 [n]) is uint8 [n, 3+k, H, W].
    All of it would take three times as much memory as the states, which are shared by the hunters."""

    def __init__(self, states: np.ndarray, kinds: int):
        self.states = states
        self.kinds = kinds
        rows, planes, *board = states.shape
        self.seats = planes - 1 - kinds
        self.shape = (rows * self.seats, 3 + kinds, *board)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return frames_of(torch.from_numpy(self.states), torch.as_tensor(rows), self.kinds).numpy()


@dataclass
class Samples:
    """M samples of hunters that are on the board."""

    frames: Frames | np.ndarray
    """uint8 [R, 3+k, H, W], by rows (of another game [R, P, H, W]); an array where the file has no joint states"""
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
    """uint8 [U, 1+k, H, W], BLOCKS and each kind of prey: one entry for all hunters and ticks of an episode that share it"""
    board: np.ndarray
    """int64 [M], the entry of `boards` of each sample"""
    splits: dict[str, np.ndarray]
    """train, val, test: int64 indices into the M samples; `all` is all of them"""
    split_law: str
    """how they were split, for people"""
    fingerprint: str
    inferred: list[str]
    """what was concluded or changed, a line each"""
    game: Game | OtherGame
    path: str
    trajectories: Trajectories | None = None
    """of a trajectory file; `frames` stand for its `obs`"""
    has_episodes: bool = True
    """False where each row of a flat file stands alone"""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hunters(self) -> np.ndarray:
        """int64 [M], a number for each hunter of each episode."""
        return self.episodes * (self.seats.max() + 1) + self.seats

    def parts(self) -> Iterator[tuple[int, Trajectories]]:
        """The trajectories, some whole episodes at a time, with `obs`; and the number of the first step of each part."""
        whole, start = self.trajectories, 0
        for first, last in whole.parts():
            part = whole.part(first, last)
            end = start + len(part.actions)
            states = self.frames.states[start + first : end + last]
            yield start, replace(part, obs=joint_to_planes(states, self.game.kinds))
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
    if is_of_other_game(arrays):
        samples = samples_of_other_game(*check_other(arrays, path), split)
    elif is_trajectory_file(arrays):
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
    """The trajectories without `obs`, and the joint states that show it all: uint8 [N+E, A+1+k, H, W]."""
    obs = trajectories.obs
    states = np.empty((len(obs), obs.shape[1] + obs.shape[2] - 2, *obs.shape[3:]), np.uint8)
    for part in chunks(obs):
        states[part] = planes_to_joint(obs[part])
    return trajectories.without_obs(), states


def _samples_of_states(trajectories: Trajectories, states: np.ndarray, split: bool) -> Samples:
    """Samples in the order of steps, then seats. Raises: DataError: a split would be empty."""
    boards, board = _distinct_boards(states, trajectories)
    frames = Frames(states, trajectories.game.kinds)
    return _samples_of(trajectories, split, trajectories.game, frames, boards, board)


def samples_of_other_game(trajectories: Trajectories, game: OtherGame, split: bool) -> Samples:
    """Samples of a game outside the family. `boards` are empty. Raises: DataError: a split would be empty."""
    obs = trajectories.obs
    frames = obs.reshape(-1, *obs.shape[2:])
    no_board = np.zeros((1, 1, *obs.shape[3:]), np.uint8)
    board = np.zeros(len(trajectories.actions), np.int64)
    return _samples_of(trajectories.without_obs(), split, game, frames, no_board, board)


def _samples_of(
    trajectories: Trajectories,
    split: bool,
    game: Game | OtherGame,
    frames: Frames | np.ndarray,
    boards: np.ndarray,
    board: np.ndarray,
) -> Samples:
    """board: int64 [N], the entry of `boards` before each step."""
    step, seat = np.nonzero(trajectories.active)
    num_seats = trajectories.actions.shape[1]
    episode = trajectories.episode[step]
    splits = {}
    if split:
        parts = split_episodes(len(trajectories.episode_lengths), path=trajectories.path)
        splits = {name: np.flatnonzero(np.isin(episode, episodes)) for name, episodes in parts.items()}
        for name, index in splits.items():
            if not len(index):
                raise DataError(f"{trajectories.path}: active: the {name} split has no active sample")
    return Samples(
        frames=frames,
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
        game=game,
        path=trajectories.path,
        trajectories=trajectories,
    )


def _distinct_boards(states: np.ndarray, trajectories: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """BLOCKS and prey wherever they change, uint8 [U, 1+k, H, W], and int64 [N], the entry before each step."""
    planes = slice(trajectories.actions.shape[1], None)
    changed = np.ones(len(states), bool)
    for part in chunks(states[1:]):
        boards, before = states[1:][part, planes], states[:-1][part, planes]
        changed[1:][part] = (boards != before).any((1, 2, 3))
    num_obs = trajectories.episode_lengths + 1
    changed[np.cumsum(num_obs) - num_obs] = True  # an episode starts with an entry of its own
    entry = np.cumsum(changed) - 1
    return states[changed, planes], entry[trajectories.obs_row]


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
        game=flat.game,
        path=str(path),
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
    """BLOCKS and prey, uint8 [U, 1+k, H, W], each once an episode, and int64 [M], the entry of each of `rows`."""
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


# ---- goals: whom a hunter plays as


def recorded_goals(samples: Samples) -> np.ndarray:
    """int64 [M]: the goal that the strategy of each sample stands for, -1 where there is none or it is not known."""
    names = samples.strategy_names
    goal_of = np.full(len(names) + 1, -1)  # the last entry: strategy -1, not known
    for goal, strategy in enumerate(samples.game.goals.values()):
        if strategy in names:
            goal_of[names.index(strategy)] = goal
    return goal_of[samples.strategies]


def last_actions(samples: Samples) -> np.ndarray:
    """int64 [M]: what the hunter of each sample did at the tick before; the number of actions where nothing is known."""
    hunter = samples.hunters
    order = np.lexsort((samples.ticks, hunter))
    before, after = order[:-1], order[1:]
    follows = (hunter[before] == hunter[after]) & (samples.ticks[before] + 1 == samples.ticks[after])
    last = np.full(len(samples), samples.game.num_actions)
    last[after[follows]] = samples.actions[before[follows]]
    return last


def captured_goals(samples: Samples) -> np.ndarray:
    """int64 [M]: the goal of each sample's hunter by the kind of prey that it took last in the episode (as HOP infers
    goals: Huang et al. 2024). Who took nothing has the goal without prey, if the game has one, else -1.

    Where rows stand alone no goal is known.
    """
    game = samples.game
    if not samples.has_episodes or isinstance(game, OtherGame):
        return np.full(len(samples), -1)
    kinds = game.goal_kinds
    goal_of = np.array([kinds.index(kind) if kind in kinds else -1 for kind in range(-1, game.kinds)])
    hunter = np.unique(samples.hunters, return_inverse=True)[1]  # int64 [M]
    last = np.full(hunter.max() + 1, -1)  # the kind that it took last
    takes = np.flatnonzero(_takes(samples, game, hunter))
    order = takes[np.argsort(samples.ticks[takes], kind="stable")]
    last[hunter[order]] = samples.actions[order] - TAKE  # of several entries the last one stays
    return goal_of[last + 1][hunter]


def _takes(samples: Samples, game: Game, hunter: np.ndarray) -> np.ndarray:
    """bool [M]: does the hunter take a prey with this action? hunter: int64 [M], a number for each hunter."""
    takes = samples.actions >= TAKE
    if isinstance(samples.frames, Frames):
        index = np.flatnonzero(takes)
        for part in chunks(index, samples.frames.states[0].nbytes):
            row = samples.rows[index[part]]
            before, after = samples.frames[row], samples.frames[row + samples.frames.seats]
            takes[index[part]] = _took(game, before, after, samples.actions[index[part]])
        return takes
    if game.leaves:  # rows: who takes a prey has no row after; nor has anyone at the end of time
        last_tick = np.full(hunter.max() + 1, -1)
        np.maximum.at(last_tick, hunter, samples.ticks)
        takes &= (samples.ticks == last_tick[hunter]) & (samples.ticks < samples.ticks.max())
    return takes


def _took(game: Game, before: np.ndarray, after: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """bool [n]: is the hunter gone with its prey, or the prey alone? Frames [n, 3+k, H, W] around actions [n] that take."""
    if game.leaves:
        return ~after[:, 0].any((1, 2))
    row = np.arange(len(actions))
    prey = after[row, len(OWN_PLANES) + actions - TAKE]
    return ~(prey & before[:, 0]).any((1, 2))


# ---- transitions: the joint state before, all actions, the joint state after


@dataclass
class Transitions:
    """M transitions of A hunters between R joint states; successive ones of an episode share a state. k kinds of prey."""

    states: np.ndarray
    """uint8 [R, A+1+k, H, W]: A SELF planes, BLOCKS, and each kind of prey"""
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
    game: Game | OtherGame
    path: str
    observer_first: bool = False
    """hunters are in the order observer, observer + 1, .. (a flat file without `observer`), not by seat"""
    trajectories: Trajectories | None = None
    """where the file has episodes; `states` stands for its `obs`"""
    rules: GameRules | None = None
    """of the game, where the file has them and they are known"""

    def __len__(self) -> int:
        return len(self.before)


def load_transitions(
    path: str | Path, layout: str = "auto", split: bool = True, other_games: bool = False
) -> Transitions:
    """Read and check a trajectory file or a flat file.

    Args:
        other_games: accept a game outside the family, too: its joint state is what all agents see.
        layout: of a flat file: `hop`, `hop-first`, or `auto`. Five planes do not tell the other hunters apart.
        split: False where the whole file is judged; then `splits` holds `all` alone.
    Raises: DataError: in one line, what is wrong with the file.
    """
    arrays = read_arrays(path)
    if other_games and is_of_other_game(arrays):
        transitions = transitions_of_other_game(*check_other(arrays, path), split)
    elif is_trajectory_file(arrays):
        trajectories, states = _with_states(check(arrays, path))
        del arrays
        transitions = _transitions_of_states(trajectories, states, split)
    else:
        flat = read_flat(arrays, path, layout, joint=True)
        transitions = transitions_of_rows(flat, arrays, path, split)
    transitions.splits["all"] = np.arange(len(transitions))
    return transitions


def first_boards(path: str | Path, rules: GameRules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boards at tick 0 of the training episodes of a file, to start games from.

    Returns: blocks bool [M, K], hunters int64 [M, A], prey int64 [M, P]: cells, K for a hunter that is not on the board;
    kind after kind, each in the order of its cells.
    Raises: DataError: a file that judges, or of another game than `rules`.
    """
    kinds = rules.game.kinds
    transitions = load_transitions(training_file(path))
    if transitions.game != rules.game:
        env_id = transitions.game.id if transitions.rules is None else env_id_of(transitions.rules)
        raise DataError(
            f"{path}: expected episodes of {rules.game.id}, found {transitions.game.id}: "
            f"use --env-id {env_id}, or name another file"
        )
    train = transitions.splits["train"]
    first = train[transitions.ticks[train] == 0]
    states = transitions.states[transitions.before[first]]  # [M, A+1+k, H, W]
    shape = (rules.hunters + 1 + kinds, rules.height, rules.width)
    fits = len(states) > 0 and states.shape[1:] == shape
    counts = states[:, -kinds:].sum((2, 3), np.int64)  # [M, k]
    if not fits or (counts != rules.prey_counts).any():
        names = [plane.lower() for plane in rules.game.prey]
        counted = zip(rules.prey_counts, names, strict=True)
        prey = " and ".join(f"{count} {name}" for count, name in counted)
        game = f"{rules.hunters} hunters, {prey} on {rules.height}x{rules.width} cells"
        raise DataError(
            f"{path}: expected episodes of {game}: collect them with `python -m data.collect --env-args ..`"
        )
    states = states.reshape(*states.shape[:2], -1)  # [M, A+1+k, K]
    prey_planes = enumerate(rules.prey_counts, rules.hunters + 1)
    prey_cells = [_cells(states[:, plane], count) for plane, count in prey_planes]
    hunters = [_cells(states[:, seat], 1) for seat in range(rules.hunters)]
    blocks = states[:, rules.hunters].astype(bool)
    return blocks, np.concatenate(hunters, 1), np.concatenate(prey_cells, 1)


def _cells(planes: np.ndarray, count: int) -> np.ndarray:
    """The first `count` cells of 1 in each plane, K where there are fewer. uint8 [M, K] -> int64 [M, count]."""
    cells = np.argsort(planes == 0, axis=1, kind="stable")[:, :count]
    occupied = np.take_along_axis(planes, cells, 1) > 0
    return np.where(occupied, cells, planes.shape[1])


def transitions_of_episodes(trajectories: Trajectories, split: bool) -> Transitions:
    """All steps of all episodes. Raises: DataError: a split would be empty."""
    return _transitions_of_states(*_with_states(trajectories), split)


def transitions_of_other_game(trajectories: Trajectories, game: OtherGame, split: bool) -> Transitions:
    """All steps of all episodes of a game outside the family; `states` are uint8 [R, A * P, H, W], what each agent sees.
    A reward is not known of one that is not active."""
    obs = trajectories.obs
    ends = np.zeros(len(trajectories.actions), np.float32)
    ends[np.cumsum(trajectories.episode_lengths) - 1] = trajectories.terminated
    return Transitions(
        states=obs.reshape(len(obs), -1, *obs.shape[3:]),
        before=trajectories.obs_row,
        after=trajectories.obs_row + 1,
        actions=trajectories.actions.astype(np.int64),
        rewards=np.where(trajectories.active, trajectories.rewards, np.float32(np.nan)),
        ends=ends,
        ticks=trajectories.tick,
        episodes=trajectories.episode,
        splits=_split_steps(trajectories) if split else {},
        split_law="80/10/10 by episode",
        fingerprint=trajectories.fingerprint,
        inferred=[],
        game=game,
        path=trajectories.path,
    )


def _split_steps(trajectories: Trajectories) -> dict[str, np.ndarray]:
    parts = split_episodes(len(trajectories.episode_lengths), path=trajectories.path)
    return {name: np.flatnonzero(np.isin(trajectories.episode, part)) for name, part in parts.items()}


def _transitions_of_states(trajectories: Trajectories, states: np.ndarray, split: bool) -> Transitions:
    episode = trajectories.episode
    splits = _split_steps(trajectories) if split else {}
    rules = trajectories.rules
    ends = np.zeros(len(episode), np.float32)
    last = np.cumsum(trajectories.episode_lengths) - 1
    ends[last] = trajectories.terminated
    if rules and rules.end_after_first_hunt is not None:
        hunters = slice(trajectories.actions.shape[1])
        hunters_left = states[trajectories.obs_row[last] + 1, hunters].any((1, 2, 3))
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
        game=trajectories.game,
        path=trajectories.path,
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
    A = flat.joint_actions.shape[1]
    occupied = flat.joint[:, :A].any((1, 2, 3))  # [N]
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
    if jumps := _count_jumps(states[:, :A], before, after):
        inferred.append(
            f"{jumps} transitions move a hunter further than one cell: another episode, or another observer?"
        )
    actions = flat.joint_actions[before]  # [M, A]
    inactive = ~states[:, :A].any((2, 3))[before]
    meaningless = inactive & (actions >= 0) & (actions != STAY)
    actions = np.where(meaningless, STAY, actions)
    if meaningless.any():
        inferred.append(f"{meaningless.sum()} actions of hunters that have left count as STAY")
    if illegal := _count_illegal(states, before, actions, flat.game.kinds):
        inferred.append(f"{illegal} recorded actions are not legal, kept as asked for")
    stretch = np.append(0, np.cumsum(broken))
    objects = slice(A) if flat.game.leaves else slice(A + 1, None)  # when they are gone, the board ends
    columns = {
        "states": states,
        "before": before,
        "after": after,
        "actions": actions,
        "rewards": flat.rewards[before],
        "ends": (~states[after, objects].any((1, 2, 3))).astype(np.float32),
        "ticks": flat.ticks[before],
        "episodes": np.unique(stretch[before], return_inverse=True)[1],
    }
    digest = hashlib.sha256()
    for key, array in columns.items():
        digest.update(f"{key} {array.dtype} {array.shape}".encode())
        digest.update(memoryview(np.ascontiguousarray(array)).cast("B"))
    law = "contiguous blocks"
    splits: dict[str, np.ndarray] = {}
    if split:
        law, splits = _split_transitions(states, columns, A, path)
    return Transitions(
        **columns,
        splits=splits,
        split_law=f"80/10/10 by {law}",
        fingerprint=digest.hexdigest(),
        inferred=inferred,
        game=flat.game,
        path=str(path),
        observer_first="observer" not in arrays,
    )


class _Pairs(NamedTuple):
    """The next state of each of N rows."""

    states: np.ndarray  # uint8 [R, A+1+k, H, W], the N rows first
    after: np.ndarray  # int64 [N], the row of `states` after each row
    valid: np.ndarray  # bool [N], False where the next state is not known
    broken: np.ndarray  # bool [N-1], another episode begins between row i and row i + 1
    inferred: list[str]


def _pair_rows(flat: Flat) -> _Pairs:
    states, count = flat.joint, len(flat.joint)
    seats = flat.joint_actions.shape[1]
    broken = flat.cut
    if flat.next_joint is None:
        broken = broken | _another_board(states[:-1], states[1:], seats)
        valid = ~np.append(broken, True)
        paired = (valid & states[:, :seats].any((1, 2, 3))).sum()
        note = f"{paired} of {count} rows paired with the row that follows (no `next_obs`)"
        return _Pairs(states, np.arange(count) + 1, valid, broken, [note])
    broken = broken | (flat.next_joint[:-1] != states[1:]).any((1, 2, 3))
    # A recorder may have reset the board before it looked at it.
    other = _another_board(states, flat.next_joint, seats)
    notes = [f"{other.sum()} rows left out whose `next_obs` is another board"] if other.any() else []
    states = np.concatenate([states, flat.next_joint])
    return _Pairs(states, np.arange(count) + count, ~other, broken, notes)


def _another_board(before: np.ndarray, after: np.ndarray, seats: int) -> np.ndarray:
    """bool [N]: no step leads from one to the other, [N, A+1+k, H, W]: a block changed, or prey or a hunter appeared."""
    hunter_appeared = after[:, :seats].any((2, 3)) & ~before[:, :seats].any((2, 3))
    prey_before = before[:, seats + 1 :].sum((2, 3), np.int64)
    prey_after = after[:, seats + 1 :].sum((2, 3), np.int64)
    blocks_changed = (before[:, seats] != after[:, seats]).any((1, 2))
    return blocks_changed | (prey_after > prey_before).any(1) | hunter_appeared.any(1)


def _count_jumps(planes: np.ndarray, before: np.ndarray, after: np.ndarray) -> int:
    """Transitions in which a hunter that stays on the board moves further than one cell. planes: [R, A, H, W]"""
    hunters = planes.reshape(*planes.shape[:2], -1)  # [R, A, K]
    active = hunters.any(2)
    row, column = np.divmod(hunters.argmax(2), planes.shape[3])
    distance = abs(row[after] - row[before]) + abs(column[after] - column[before])
    jumps = (distance > 1) & active[before] & active[after]
    return int(jumps.any(1).sum())


def _count_illegal(states: np.ndarray, before: np.ndarray, actions: np.ndarray, kinds: int) -> int:
    """Known actions [M, A] that are not legal on their boards."""
    actions = np.where(actions < 0, STAY, actions)
    count = 0
    for start in range(0, len(before), CHUNK):
        part = slice(start, start + CHUNK)
        legal = legal_actions(joint_to_planes(states[before[part]], kinds))
        count += np.count_nonzero(effective_actions(actions[part], legal) != actions[part])
    return count


def _split_transitions(
    states: np.ndarray, columns: dict[str, np.ndarray], seats: int, path: str | Path
) -> tuple[str, dict[str, np.ndarray]]:
    """By episode, where enough transitions follow one another; else contiguous blocks: where the last transition of one
    leads to the first state of the next, it is in neither. Returns: what they were split by; the splits.

    Args: columns: `before`, `after` and `episodes` of Transitions.
    """
    before, after, stretch = columns["before"], columns["after"], columns["episodes"]
    first = np.flatnonzero(np.diff(stretch, prepend=-1))  # [S], where an unbroken stretch begins
    group = _boards_of_stretches(states, before[first], seats)[stretch]
    if len(first) <= (1 - MIN_SHARE) * len(before) and group[-1] >= 9:
        parts = split_episodes(int(group[-1]) + 1, path=path)
        return "episode", {name: np.flatnonzero(np.isin(group, part)) for name, part in parts.items()}
    splits = split_rows(len(before), path)
    for name, follower in (("train", "val"), ("val", "test")):
        if after[splits[name][-1]] == before[splits[follower][0]]:
            splits[name] = splits[name][:-1]
        if not len(splits[name]):
            needed = "at least 20 transitions to split 80/10/10 where neighbours share a state"
            raise DataError(f"{path}: expected {needed}, found {len(before)}: {name} would be empty")
    return "contiguous blocks", splits


def _boards_of_stretches(states: np.ndarray, first: np.ndarray, seats: int) -> np.ndarray:
    """int64 [S], rising: stretches one after another that begin with the same board, as several hunters see it, share a
    number. first: int64 [S], the state that each begins with."""
    another = np.ones(len(first), bool)
    for part in chunks(first[1:], 2 * states[0].nbytes):
        before, after = states[first[:-1][part]], states[first[1:][part]]
        same_board = (before[:, seats:] == after[:, seats:]).all((1, 2, 3))
        same_hunters = (before[:, :seats].sum(1) == after[:, :seats].sum(1)).all((1, 2))
        another[1:][part] = ~(same_board & same_hunters)
    return np.cumsum(another) - 1


# ---- batches: tensors on the device


class Batch(NamedTuple):
    """B samples of whole episodes (or of single rows), on U boards."""

    planes: torch.Tensor  # float [B, 3+k, K]
    boards: torch.Tensor  # float [U, 1+k, K], BLOCKS and each kind of prey: hunters and ticks share them
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

    frames: torch.Tensor  # uint8 [R, 3+k, K]; with `joint` the states that they are made of, [R', A+1+k, K]
    joint: bool
    rows: torch.Tensor  # int64 [M], the frame of each sample
    boards: torch.Tensor  # uint8 [U, 1+k, K]
    board: torch.Tensor  # int64 [M], the board of each sample
    actions: torch.Tensor  # int64 [M]
    ticks: torch.Tensor  # int64 [M]
    goals: torch.Tensor  # int64 [M], -1 where it is not known
    seats: torch.Tensor  # int64 [M]
    cell_permutation: torch.Tensor  # int64 [S, K]
    action_permutation: torch.Tensor  # int64 [S, 5+k]
    start: np.ndarray  # int64 [G], the first sample of each group: an episode, or a single sample
    length: np.ndarray  # int64 [G]
    goal_known: np.ndarray  # int64 [G], how many samples have a known goal
    group: np.ndarray  # int64 [M], the group of each sample
    max_prey: int
    hunters: int
    last_tick: int

    @classmethod
    def of(cls, samples: Samples, device: torch.device, goals: np.ndarray, whole_episodes: bool) -> Batches:
        """Args:
        goals: int64 [M], the goal of each sample's hunter, -1 where it is not known.
        whole_episodes: False where each sample is a group of its own.
        """
        group = samples.episodes if whole_episodes else np.arange(len(samples))
        start = np.append(0, 1 + np.flatnonzero(group[1:] != group[:-1]))  # episodes rise
        length = np.diff(start, append=len(group))
        group = np.repeat(np.arange(len(start)), length)
        height, width = samples.frames.shape[2:]
        num_actions = max(samples.game.num_actions, STAY)  # of a game that is not of the family nobody asks
        cell_permutation, action_permutation = symmetries(height, width, num_actions)
        prey = samples.boards[:, 1:].any(1).sum((1, 2), dtype=np.int64)  # [U]

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
            goals=on_device(goals),
            seats=on_device(samples.seats),
            cell_permutation=on_device(cell_permutation),
            action_permutation=on_device(action_permutation),
            start=start,
            length=length,
            goal_known=np.add.reduceat(goals >= 0, start, dtype=np.int64),
            group=group,
            max_prey=max(1, int(prey.max())),
            hunters=int(samples.seats.max()) + 1,
            last_tick=int(samples.ticks.max()),
        )

    def set_goals(self, goals: np.ndarray) -> None:
        """goals: int64 [M], as in `of`."""
        self.goals = torch.as_tensor(goals, device=self.goals.device)
        self.goal_known = np.add.reduceat(goals >= 0, self.start, dtype=np.int64)

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
        kinds = self.boards.shape[1] - 1
        planes = frames_of(self.frames, frame, kinds) if self.joint else self.frames[frame]  # [B, 3+k, K]
        boards = self.boards[rows]  # [U, 1+k, K]
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


def _permute_cells(planes: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """planes: [B, C, K]; permutation: int64 [B, K], the cell that each cell is taken from."""
    return planes.gather(2, permutation[:, None].expand(-1, planes.shape[1], -1))


class _Captures(NamedTuple):
    """Who took part in a capture in m transitions, and what left the board."""

    rewards: np.ndarray  # float32 [m, A], NaN where not known
    active: np.ndarray  # bool [m, A]
    cell: np.ndarray  # int64 [m, A], before; 0 of a hunter that has left
    takers: np.ndarray  # bool [m, A]; where nobody leaves: whose action took the prey on its cell
    gone: np.ndarray  # int64 [m, k], prey of each kind


@dataclass
class TransitionBatches:
    """Transitions as tensors on the device, what became of each object, and the symmetries that augment them."""

    states: torch.Tensor  # uint8 [R, A+1+k, K]
    before: torch.Tensor  # int64 [M]
    after: torch.Tensor  # int64 [M]
    actions: torch.Tensor  # int64 [M, A]
    rewards: torch.Tensor  # float [M, A], NaN where not known
    ends: torch.Tensor  # float [M], NaN where the states cannot tell
    cell_permutation: torch.Tensor  # int64 [S, K]
    action_permutation: torch.Tensor  # int64 [S, 5+k]
    outcomes: AllOutcomes | None  # None in games outside the family
    most: tuple[int, ...]  # of each kind, the most prey on a board
    game: Game | OtherGame
    own: bool  # show the action of one hunter only

    @classmethod
    def of(cls, data: Transitions, device: torch.device, own: bool) -> TransitionBatches:
        """own: show the action of one hunter a transition only; the others are -1."""
        height, width = data.states.shape[2:]
        states = data.states.reshape(*data.states.shape[:2], -1)
        prey = states[:, -data.game.kinds :].sum(2, dtype=np.int64).max(0)  # [k]
        most = tuple(np.maximum(prey, 1).tolist())
        cell_permutation, action_permutation = symmetries(height, width, max(data.game.num_actions, STAY))

        outcomes = None
        if isinstance(data.game, Game):
            parts = [
                outcomes_of(states[data.before[part]], states[data.after[part]], (height, width), most)
                for part in chunks(states[: len(data)])  # no transition without a state of its own
            ]
            outcomes = AllOutcomes.cat(parts)

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
            outcomes=outcomes,
            most=most,
            game=data.game,
            own=own,
        )

    def take(self, index: np.ndarray, random: bool, augment: bool = False) -> tuple[torch.Tensor, ...]:
        """The transitions `index` (int [B]).

        Args:
            random: with `own`, show the action of any hunter on the board, drawn at random; else of the first one.
            augment: transform each by a random symmetry of the board.
        Returns: states uint8 [B, A+1+k, K], actions int64 [B, A], next states, rewards float [B, A], ends float [B].
        """
        rows = torch.as_tensor(index, device=self.states.device)
        states = self.states[self.before[rows]]
        next_states = self.states[self.after[rows]]
        actions = self.actions[rows]
        if self.own:
            actions = _own_actions(states[:, : actions.shape[1]], actions, random)
        if augment:
            num_symmetries = len(self.cell_permutation)
            symmetry = torch.randint(num_symmetries, (len(index),), device=states.device)
            cells = self.cell_permutation[symmetry]  # [B, K]
            states = _permute_cells(states, cells)
            next_states = _permute_cells(next_states, cells)
            permuted = self.action_permutation[symmetry].gather(1, actions.clamp(min=0))
            actions = torch.where(actions < 0, actions, permuted)
        return states, actions, next_states, self.rewards[rows], self.ends[rows]

    def public_pay(self, index: np.ndarray) -> tuple[float, ...]:
        """Of each kind what every hunter is paid for a prey that leaves the board, whoever takes it, in the transitions
        `index`: read off the hunters that took no part where only prey of this kind left; 0 where there are none."""
        captures = self._captures(index)
        bystanders = captures.active & ~captures.takers & np.isfinite(captures.rewards)
        pay = []
        for gone in captures.gone.T:
            only = (gone > 0) & (gone == captures.gone.sum(1))
            each = captures.rewards / np.maximum(gone, 1)[:, None]  # [m, A], of one prey
            values = each[bystanders & only[:, None]]
            pay.append(round(float(np.median(values)), 4) if len(values) else 0.0)
        return tuple(pay)

    def capture_totals(self, index: np.ndarray, public_pay: tuple[float, ...]) -> list[float]:
        """What a capture was worth to all who took part, each value once, in the transitions `index`; 0 among them.

        A hunter's reward, less what everyone is paid, times the number of hunters that took part on its cell in that
        tick. With `own`, where nobody leaves, it is not known who took part: shares are values of their own.
        """
        captures = self._captures(index)
        sharers: np.ndarray | int = 1
        if self.game.leaves or not self.own:
            apart = -1 - np.arange(captures.takers.shape[1])  # no cell: shared with nobody
            cell = np.where(captures.takers, captures.cell, apart)
            sharers = (cell[:, :, None] == cell[:, None]).sum(2)
        own_pay = captures.rewards - captures.gone @ np.array(public_pay)[:, None]
        return _distinct((own_pay * sharers)[captures.active], decimals=3)

    def _captures(self, index: np.ndarray) -> _Captures:
        parts = chunks(index, 2 * self.states[0].numel())
        columns = zip(*(self._captures_of(index[part]) for part in parts), strict=True)
        return _Captures(*map(np.concatenate, columns))

    def _captures_of(self, index: np.ndarray) -> _Captures:
        before = self.states[self.before[index]].cpu().numpy()
        after = self.states[self.after[index]].cpu().numpy()
        actions = self.actions[index].cpu().numpy()
        A = actions.shape[1]
        prey_before, prey_after = before[:, A + 1 :], after[:, A + 1 :]  # [m, k, K]
        active = before[:, :A].any(2)
        cell = before[:, :A].argmax(2)
        if self.game.leaves:
            takers = self.outcomes.hunters[index] == LEAVE
        else:
            taken = prey_before > prey_after
            kind = (actions - TAKE).clip(0)
            takers = active & (actions >= TAKE) & taken[np.arange(len(index))[:, None], kind, cell]
        gone = prey_before.sum(2, dtype=np.int64) - prey_after.sum(2, dtype=np.int64)
        return _Captures(self.rewards[index].cpu().numpy(), active, cell, takers, gone)

    def reward_values(self, index: np.ndarray) -> list[float]:
        """Rewards of a hunter, each value once, in the transitions `index`; 0 among them."""
        return _distinct(self.rewards[index].cpu().numpy(), decimals=4)


def _own_actions(hunters: torch.Tensor, actions: torch.Tensor, random: bool) -> torch.Tensor:
    """The action of one hunter on the board, -1 for all others. uint8 [B, A, K], int64 [B, A] -> int64 [B, A]."""
    active = hunters.any(2)  # [B, A]
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
