"""The trajectory file: written, read and checked; where the default files lie. The keys, dtypes and shapes stand in
`docs/design.md` and `data/README.md`."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from data.npz import DataError, brief, read_arrays
from data.temporary import temporary_beside
from envs import GAMES, Rules, rules_of
from envs.core import GameRules, effective_actions, legal_actions
from envs.game import STAY, Game, OtherGame, any_game_of, game_of
from envs.games import is_as_here
from envs.stag_hunt import GAME

CHUNK = 8192  # rows checked or drawn at a time, so that a check never holds a copy of a large array,
CHUNK_BYTES = 10 * 2**20  # or as many as this holds
# key -> (dtype, number of dimensions)
SPEC = {
    "obs": ("uint8", 5),
    "actions": ("int8", 2),
    "rewards": ("float32", 2),
    "active": ("bool", 2),
    "episode_lengths": ("int32", 1),
    "terminated": ("bool", 1),
    "strategies": ("int8", 2),
}
OPTIONAL = {"attempted": ("int8", 2), "policy_probs": ("float32", 4)}

DEFAULT_DATA = "data/stag_hunt_4p5b_8x8.npz"
"""what `--data` is by default: a file of this package's folder, wherever a script is started"""
DEFAULT_FILE = Path(__file__).resolve().parent / "stag_hunt_4p5b_8x8.npz"
"""107,010 active samples of seed 1: what the scripts train on"""
FRESH_FILE = DEFAULT_FILE.with_name("fresh_1001.npz")
"""100,000 board steps of seed 1001, of the same law: what targets are judged on"""
UNMASKED_FILE = DEFAULT_FILE.with_name("unmasked_1002.npz")
"""100,000 board steps of seed 1002, with 30% of the actions uniform over all seven: what world models are judged on"""


def require(path: str | Path, condition: bool | np.bool_, key: str, expected: str, found: object) -> None:
    """Raises: DataError: the condition is not met."""
    if not condition:
        raise DataError(f"{path}: {key}: expected {expected}, found {brief(found)}")


def first_bad(bad: np.ndarray, values: np.ndarray, start: int = 0) -> str:
    """The first bad value and where it stands; nothing where none is bad. start: what is added to the first index."""
    if not bad.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{values[at]} at {[at[0] + start, *at[1:]]}"


def chunks(array: np.ndarray, row_bytes: int = 0) -> list[slice]:
    """Its rows in parts of CHUNK, or of fewer that hold CHUNK_BYTES. row_bytes: of what is made of a row; 0: its own."""
    row_bytes = row_bytes or max(1, array.nbytes // max(1, len(array)))
    size = max(1, min(CHUNK, CHUNK_BYTES // row_bytes))
    return [slice(start, min(start + size, len(array))) for start in range(0, len(array), size)]


def known_rules(metadata: dict) -> GameRules | None:
    """`envs.rules_of`, of a file or of a checkpoint; None where they do not stand there, or are of a game not in `envs/`."""
    try:
        return rules_of(metadata)
    except ValueError:
        return None


@dataclass
class Trajectories:
    """Recorded episodes: E of them, N steps in all, A hunters, S strategies, a game of k kinds of prey. Field by field as
    in the file."""

    obs: np.ndarray
    """uint8 [N+E, A, 3+k, H, W]"""
    actions: np.ndarray
    """int8 [N, A]"""
    rewards: np.ndarray
    """float32 [N, A]"""
    active: np.ndarray
    """bool [N, A]"""
    episode_lengths: np.ndarray
    """int32 [E]"""
    terminated: np.ndarray
    """bool [E]"""
    strategies: np.ndarray
    """int8 [E, A]"""
    policy_probs: np.ndarray | None
    """float32 [N, A, S, 5+k], or None"""
    metadata: dict
    path: str = ""
    attempted: np.ndarray | None = None
    """int8 [N, A], the action that each hunter attempted, legal or not; `actions` is what happened. Or None"""

    @cached_property
    def episode(self) -> np.ndarray:
        """int64 [N]: the episode of each step."""
        return np.repeat(np.arange(len(self.episode_lengths)), self.episode_lengths)

    @cached_property
    def tick(self) -> np.ndarray:
        """int64 [N]: the tick of each step, 0 at the start of its episode."""
        starts = np.cumsum(self.episode_lengths) - self.episode_lengths
        return np.arange(len(self.actions)) - starts[self.episode]

    @cached_property
    def obs_row(self) -> np.ndarray:
        """int64 [N]: the row of `obs` before each step (an episode has one observation more than steps)."""
        return np.arange(len(self.actions)) + self.episode

    @cached_property
    def game(self) -> Game:
        return game_of(self.metadata["game"]) if "game" in self.metadata else GAME

    @cached_property
    def rules(self) -> GameRules | None:
        return known_rules(self.metadata)

    @property
    def strategy_names(self) -> list[str]:
        return self.metadata["strategies"]

    @property
    def priors(self) -> np.ndarray:
        """float64 [S]: how likely each strategy was when a hunter's was drawn."""
        return np.array(self.metadata["priors"], np.float64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over keys, shapes, dtypes and bytes of all arrays: what a checkpoint says it was trained on."""
        digest = hashlib.sha256()
        for key in (*SPEC, *OPTIONAL):
            array = getattr(self, key)
            if array is not None:
                digest.update(f"{key} {array.dtype} {array.shape}".encode())
                digest.update(memoryview(np.ascontiguousarray(array)).cast("B"))
        return digest.hexdigest()

    def part(self, first: int, last: int) -> Trajectories:
        """Episodes first .. last - 1, as views."""
        ends = np.append(0, np.cumsum(self.episode_lengths))
        start, end = int(ends[first]), int(ends[last])
        cut = {key: getattr(self, key) for key in (*SPEC, *OPTIONAL)}
        of_episodes = ("episode_lengths", "terminated", "strategies")
        for key, array in cut.items():
            if key == "obs":
                cut[key] = array[start + first : end + last]
            elif array is not None:
                cut[key] = array[first:last] if key in of_episodes else array[start:end]
        return Trajectories(**cut, metadata=self.metadata, path=self.path)

    def parts(self) -> list[tuple[int, int]]:
        """All episodes in stretches of about CHUNK steps: the first of each, and the one behind its last."""
        ends = np.cumsum(self.episode_lengths)
        cuts = np.searchsorted(ends, np.arange(0, ends[-1], CHUNK), "left")
        cuts = np.append(np.unique(cuts), len(ends))
        return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))

    def without_obs(self) -> Trajectories:
        """The same without rows of `obs`, where joint states show it all; `fingerprint` stays that of the file."""
        bare = replace(self, obs=np.empty((0, *self.obs.shape[1:]), np.uint8))
        bare.fingerprint = self.fingerprint
        return bare

    def arrays(self) -> dict[str, np.ndarray]:
        """What the file holds, key by key."""
        arrays = {key: getattr(self, key) for key in (*SPEC, *OPTIONAL)}
        arrays = {key: array for key, array in arrays.items() if array is not None}
        return arrays | {"metadata": np.array(json.dumps(self.metadata))}


# ---- splits


def split_episodes(episodes: int, seed: int = 0, path: str | Path = "") -> dict[str, np.ndarray]:
    """Episode numbers of train, val and test: 80/10/10, shuffled by `seed`; the same for every run on a file.

    Raises: DataError: a part would be empty.
    """
    order = np.random.default_rng(seed).permutation(episodes)
    return _cut(order, "episodes", path)


def split_rows(rows: int, path: str | Path = "") -> dict[str, np.ndarray]:
    """Rows of train, val and test of a flat file, 80/10/10 in contiguous blocks: neighbours in time stay together.

    Raises: DataError: a part would be empty.
    """
    return _cut(np.arange(rows), "rows", path)


def _cut(order: np.ndarray, what: str, path: str | Path) -> dict[str, np.ndarray]:
    held_out = len(order) // 10
    if held_out < 1:
        expected = f"at least 10 {what} to split 80/10/10"
        raise DataError(
            f"{path}: expected {expected}, found {len(order)} {what}: val and test would be empty"
        )
    train = len(order) - 2 * held_out
    return {
        "train": np.sort(order[:train]),
        "val": np.sort(order[train:-held_out]),
        "test": np.sort(order[-held_out:]),
    }


# ---- files


def check_output(path: str | Path) -> None:
    """Before the work whose result it is to hold. Raises: DataError: no file can be written there."""
    if not Path(path).name or Path(path).is_dir():
        raise DataError(f"{path}: expected an .npz file to write, found a folder")


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed .npz: to a temporary file first, then `os.replace`d, so that `path` is whole or absent."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_beside(path) as temporary:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)
            os.replace(temporary, path)
    except OSError as error:  # a full disk's error names no file
        raise OSError(error.errno, error.strerror, str(path)) from None


def load(path: str | Path) -> Trajectories:
    """Read a trajectory file and check everything in it.

    Peak memory is 1.0 to 1.1 times the arrays' bytes: each array is read once into place, and checked in chunks.
    Raises: DataError: in one line, the path, the key, what was expected and what was found.
    """
    return check(read_arrays(path), path)


# ---- checks


def check(arrays: dict[str, np.ndarray], path: str | Path = "") -> Trajectories:
    """Trajectories from arrays in the file's format. Raises: DataError."""
    if is_of_other_game(arrays):
        read_game(json.loads(str(arrays["metadata"])), path)  # which says so
    _check_format(arrays, path)
    metadata = _read_metadata(arrays, path)
    game = read_game(metadata, path)
    _check_shapes(arrays, metadata["strategies"], game, path)
    _check_values(arrays, metadata["strategies"], game, path)
    fields = {key: arrays.get(key) for key in (*SPEC, *OPTIONAL)}
    trajectories = Trajectories(**fields, metadata=metadata, path=str(path))
    for part in chunks(trajectories.obs):
        _check_cells(trajectories, part)
    for part in chunks(trajectories.obs[: len(trajectories.actions)]):
        _check_steps(trajectories, part)
    for part in chunks(trajectories.obs):
        _check_boards(trajectories, part)
    active, rewards = trajectories.active, trajectories.rewards
    bad = (rewards != 0) & ~active
    require(path, not bad.any(), "rewards", "0 for a hunter that has left", first_bad(bad, rewards))
    require(path, active.any(), "active", "at least one active sample", "none")
    _check_rules(trajectories)
    return trajectories


def _check_format(arrays: dict[str, np.ndarray], path: str | Path) -> None:
    """Keys, dtypes and numbers of dimensions."""
    need = partial(require, path)
    for key, (dtype, rank) in (SPEC | OPTIONAL).items():
        if key in OPTIONAL and key not in arrays:
            continue
        expected = f"an array {dtype} with {rank} dimensions"
        need(key in arrays, key, expected, f"no such key (keys: {', '.join(arrays)})")
        need(arrays[key].dtype == dtype, key, f"dtype {dtype}", arrays[key].dtype)
        need(arrays[key].ndim == rank, key, f"{rank} dimensions", f"shape {arrays[key].shape}")


def _read_metadata(arrays: dict[str, np.ndarray], path: str | Path) -> dict:
    def need(condition: bool, expected: str, found: object) -> None:
        require(path, condition, "metadata", expected, found)

    need("metadata" in arrays, "a JSON string", "no such key")
    text = arrays["metadata"]
    need(text.ndim == 0 and text.dtype.kind == "U", "a JSON string", f"{text.dtype} of shape {text.shape}")
    try:
        metadata = json.loads(str(text))
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, brackets without end
        need(False, "a JSON string", f"text that is not JSON ({error})")
    is_object = isinstance(metadata, dict)
    names = metadata.get("strategies") if is_object else None
    priors = metadata.get("priors") if is_object else None
    are_lists = isinstance(names, list) and isinstance(priors, list)
    fits = are_lists and len(names) > 0 and len(priors) == len(names)
    need(fits, "`strategies` and `priors`, lists of one length", f"{brief(names)}, {brief(priors)}")
    are_names = all(isinstance(name, str) and name.isprintable() for name in names)
    need(are_names, "`strategies` as names", repr(names))
    shares = all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in priors)
    need(shares and abs(sum(priors) - 1) <= 1e-6, "`priors` that sum to 1", priors)
    rules = metadata.get("rules")
    need(isinstance(rules, (dict, type(None))), "`rules` as names and values", repr(rules))
    values = (rules or {}).values()
    plain = all(isinstance(value, (int, float, str, type(None))) for value in values)
    need(plain, "`rules` as names and values", repr(rules))
    return metadata


def is_of_other_game(arrays: dict[str, np.ndarray]) -> bool:
    """Do its metadata describe a game outside the family (`envs.game.OtherGame`)?"""
    try:
        return isinstance(any_game_of(json.loads(str(arrays["metadata"]))["game"]), OtherGame)
    except (KeyError, TypeError, ValueError, RecursionError):  # `check` says what is wrong
        return False


def check_other(arrays: dict[str, np.ndarray], path: str | Path = "") -> tuple[Trajectories, OtherGame]:
    """Trajectories of a game outside the family: shapes, dtypes and ranges are checked, no rule is. Who an agent was
    need not be there, and nothing but the agents' own views, actions and rewards is read.

    Raises: DataError.
    """
    need = partial(require, path)
    metadata = json.loads(str(arrays["metadata"]))
    game = any_game_of(metadata["game"])
    assert isinstance(game, OtherGame)  # `is_of_other_game`
    if "strategies" not in arrays and "obs" in arrays and arrays["obs"].ndim > 1:
        unknown = np.zeros((len(arrays.get("episode_lengths", ())), arrays["obs"].shape[1]), np.int8)
        arrays = arrays | {"strategies": unknown}
        metadata |= dict(strategies=["unknown"], priors=[1.0])
    arrays = {key: array for key, array in arrays.items() if key in SPEC} | {
        "metadata": np.array(json.dumps(metadata))
    }
    _check_format(arrays, path)
    metadata = _read_metadata(arrays, path)
    _check_shapes(arrays, metadata["strategies"], game, path)
    _check_values(arrays, metadata["strategies"], game, path)
    for part in chunks(arrays["obs"]):
        largest = arrays["obs"][part].max(initial=0)
        need(largest <= 1, "obs", "cells of 0 or 1", f"{largest} near row {part.start}")
    need(arrays["active"].any(), "active", "at least one active sample", "none")
    fields = {key: arrays[key] for key in SPEC}
    return Trajectories(**fields, policy_probs=None, metadata=metadata, path=str(path)), game


def read_game(metadata: dict, path: str | Path) -> Game:
    """Of a file; without `metadata.game` the stag hunt. Raises: DataError: another game than it says."""
    if "game" not in metadata:
        return GAME
    try:
        game = any_game_of(metadata["game"])
    except ValueError as error:
        require(path, False, "metadata", "`game` as `python -m data.collect` writes it", error)
    if isinstance(game, OtherGame):
        users = "`pretrain_vae.py --network plain` and `train_world_model.py --model cells` read others"
        raise DataError(f"{path}: metadata: expected a game of this family ({users}), found {brief(game.id)}")
    require(path, is_as_here(game), "metadata", f"`game` as this version's {game.id}", "another description")
    return game


def _check_shapes(
    arrays: dict[str, np.ndarray], names: list[str], game: Game | OtherGame, path: str | Path
) -> None:
    """Episode lengths, and the shapes that follow from them."""
    need = partial(require, path)
    obs, lengths = arrays["obs"], arrays["episode_lengths"]
    episodes = len(lengths)
    need(episodes > 0, "episode_lengths", "at least one episode", "zero episodes")
    shortest = f"{lengths.min()} in episode {lengths.argmin()}"
    need(lengths.min() > 0, "episode_lengths", "lengths of at least 1", shortest)
    steps, seats = int(lengths.sum(dtype=np.int64)), obs.shape[1]
    shapes = {
        "obs": (steps + episodes, seats, len(game.planes), *obs.shape[3:]),
        "actions": (steps, seats),
        "rewards": (steps, seats),
        "active": (steps, seats),
        "terminated": (episodes,),
        "strategies": (episodes, seats),
        "attempted": (steps, seats),
        "policy_probs": (steps, seats, len(names), game.num_actions),
    }
    for key, shape in shapes.items():
        if key in arrays:
            expected = f"shape {shape} (from episode_lengths and obs)"
            need(arrays[key].shape == shape, key, expected, arrays[key].shape)


def _check_values(
    arrays: dict[str, np.ndarray], names: list[str], game: Game | OtherGame, path: str | Path
) -> None:
    """Ranges of actions, rewards and strategies."""
    need = partial(require, path)
    for key in ("actions", "attempted"):
        if key in arrays:
            bad = (arrays[key] < 0) | (arrays[key] >= game.num_actions)
            expected = f"values in 0..{game.num_actions - 1}"
            need(not bad.any(), key, expected, first_bad(bad, arrays[key]))
    rewards, strategies = arrays["rewards"], arrays["strategies"]
    bad = ~np.isfinite(rewards)
    need(not bad.any(), "rewards", "finite numbers", first_bad(bad, rewards))
    bad = (strategies < 0) | (strategies >= len(names))
    expected = f"values in 0..{len(names) - 1} ({', '.join(names)})"
    need(not bad.any(), "strategies", expected, first_bad(bad, strategies))


def _check_cells(trajectories: Trajectories, rows: slice) -> None:
    """Of a chunk of observations: cells are 0 or 1, and a hunter stands on one of them at most."""
    need = partial(require, trajectories.path)
    part, start = trajectories.obs[rows], rows.start
    largest = part.max(initial=0)
    need(largest <= 1, "obs", "cells of 0 or 1", f"{largest} near row {start}")
    count = np.count_nonzero(part[:, :, 0], axis=(2, 3))  # [n, A]
    bad = count > 1
    need(not bad.any(), "obs", "at most one cell in a SELF plane", first_bad(bad, count, start))


def _check_steps(trajectories: Trajectories, part: slice) -> None:
    """Of a chunk of steps: who is active, that actions are the effective ones, and that probabilities sum to 1."""
    need = partial(require, trajectories.path)
    start = part.start
    active, actions = trajectories.active[part], trajectories.actions[part]
    planes = trajectories.obs[trajectories.obs_row[part]]  # [n, A, 3+k, H, W]
    bad = planes[:, :, 0].any(axis=(2, 3)) != active
    expected = "True exactly where the SELF plane has a cell"
    need(not bad.any(), "active", expected, first_bad(bad, active, start))
    bad = ~active & (not trajectories.game.leaves)
    need(not bad.any(), "active", "True: agents of this game never leave", first_bad(bad, active, start))
    legal = legal_actions(planes)
    bad = actions != effective_actions(actions, legal)
    expected = "effective actions: legal ones, STAY once a hunter has left"
    need(not bad.any(), "actions", expected, first_bad(bad, actions, start))
    if trajectories.attempted is not None:
        attempted = trajectories.attempted[part]
        bad = ~active & (attempted != STAY)
        need(not bad.any(), "attempted", "STAY once a hunter has left", first_bad(bad, attempted, start))
        bad = actions != effective_actions(attempted, legal)
        expected = "the action in `actions`, or an illegal one where `actions` is STAY"
        need(not bad.any(), "attempted", expected, first_bad(bad, attempted, start))
    if trajectories.policy_probs is not None:
        probs = trajectories.policy_probs[part]
        total = probs.sum(-1)
        bad = ~(np.abs(total - 1.0) < 1e-4) | (probs < 0).any(-1)
        expected = "rows of probabilities that sum to 1"
        need(not bad.any(), "policy_probs", expected, first_bad(bad, total, start))


def _check_boards(trajectories: Trajectories, rows: slice) -> None:
    """Of a chunk of observations: all hunters of a step see one board, and each other."""
    need = partial(require, trajectories.path)
    part, start = trajectories.obs[rows], rows.start
    bad = (part[:, :, 2:] != part[:, :1, 2:]).any(axis=(2, 3, 4))
    expected = f"one board for all hunters of a step ({', '.join(trajectories.game.planes[2:])})"
    need(not bad.any(), "obs", expected, first_bad(bad, bad, start))
    on_cell = part[:, :, 0].sum(1, dtype=np.uint8)  # [n, H, W], hunters on each cell
    others = on_cell[:, None] > part[:, :, 0]  # [n, A, H, W]
    bad = (part[:, :, 1] != others).any(axis=(2, 3))
    expected = "OTHERS where the other hunters' SELF planes have a cell"
    need(not bad.any(), "obs", expected, first_bad(bad, bad, start))


def _check_rules(trajectories: Trajectories) -> None:
    """Where metadata has rules of a game that we know: no episode is longer or has more than they say, and prey that stands
    still by them does."""
    need = partial(require, trajectories.path)
    game, values = trajectories.game, trajectories.metadata.get("rules")
    if game.id not in GAMES or not values:
        return
    names = {field.name for field in fields(GAMES[game.id])}  # files of other programs may hold more, or less
    rules = {name: value for name, value in values.items() if name in names}
    small = all(abs(value) < 2**31 for value in rules.values() if isinstance(value, (int, float)))
    need(small, "metadata", "`rules` of numbers below 2**31", rules)
    try:
        played = rules_of(trajectories.metadata)
    except ValueError as error:
        need(False, "metadata", "`rules` of a game", error)
    lengths = trajectories.episode_lengths
    first = np.cumsum(lengths + 1) - (lengths + 1)
    boards = trajectories.obs[first, 0, 2:]  # [E, 1+k, H, W]
    counts = boards.sum((2, 3), np.int64).max(0).tolist()
    things = ("blocks", *(plane.lower() for plane in game.prey))
    stated = dict(zip(things, (played.blocks, *played.prey_counts), strict=True))
    stated |= {
        name: getattr(played, name) for name in ("horizon", "hunters", "height", "width", "prey_moves")
    }
    if game == GAME:
        stated = {name: value for name, value in stated.items() if name in rules}
    most = dict(zip(things, counts, strict=True), horizon=int(lengths.max()))
    for name, count in most.items():
        value = stated.get(name, count)
        need(value >= count, "metadata", f"`rules` with {name} at least {count}, as the arrays", value)
    _, hunters, _, height, width = trajectories.obs.shape
    sizes = dict(hunters=hunters, height=height, width=width)
    for name, size in sizes.items():
        value = stated.get(name, size)
        need(value == size, "metadata", f"`rules` with {name} {size}, as the arrays", value)
    if stated.get("prey_moves") == 0:
        for part in chunks(trajectories.actions):
            _check_prey(trajectories, part)


def _check_prey(trajectories: Trajectories, part: slice) -> None:
    """Of a chunk of steps, under rules by which prey stands still: it comes to no cell where there was none."""
    rows = trajectories.obs_row[part]
    before, after = trajectories.obs[rows, 0, 3:], trajectories.obs[rows + 1, 0, 3:]  # [n, k, H, W]
    bad = (after > before).any((1, 2, 3))
    names = ", ".join(trajectories.game.prey)
    found = f"one on a new cell after step {part.start + bad.argmax()}"
    require(trajectories.path, not bad.any(), "obs", f"{names} that stand still", found)


# ---- the default files


def file_of(rules: GameRules, judges: Path | None = None) -> Path:
    """Where the file of these rules lies that scripts train on; judges: FRESH_FILE or UNMASKED_FILE, for its like."""
    if rules == Rules():
        return judges or DEFAULT_FILE
    ending = f"_{judges.stem}" if judges else ""
    return DEFAULT_FILE.with_name(f"{rules.game.name}_{size_of(rules)}{ending}.npz")


def size_of(rules: GameRules) -> str:
    """`4p5b_8x8` in the stag hunt, `4a6d_8x8` in other games: agents, each kind of prey, blocks where there are any."""
    board = f"{rules.height}x{rules.width}"
    if rules.game == GAME:
        return f"{rules.hunters}p{rules.blocks}b_{board}"
    prey = zip(rules.prey_counts, rules.game.prey, strict=True)
    counts = [f"{count}{plane[0].lower()}" for count, plane in prey]
    blocks = f"{rules.blocks}b" if rules.blocks else ""
    return f"{rules.hunters}a{''.join(counts)}{blocks}_{board}"


def default_or_fresh(path: str | Path, rules: GameRules | None = None) -> Path:
    """Where `--data PATH` lies. The default file of each game, `fresh` and `unmasked` are collected on first use; others
    must exist.

    Args: rules: those of a checkpoint that is judged: `fresh` and `unmasked` are files of them. None: the stag hunt's.
    Raises: DataError: a file of other rules lies where theirs would.
    """
    path = _path_of(path, rules)
    full = _full(path)
    settings = [values for file, values in _collected(rules).items() if _full(file) == full]
    if not settings:
        return path
    if not os.path.exists(path):
        from data.collect import Args, collect_to_file  # which imports this module

        collect_to_file(Args(out=str(path), **settings[0]))
    elif rules and settings[0]["rules"] == rules != Rules():
        found = load(path).rules
        require(path, found == rules, "metadata", f"the checkpoint's rules, {rules}", found)
    return path


def judged_file(path: str | Path, checkpoint: dict[str, Any]) -> tuple[Path, list[str]]:
    """Where `--data PATH` lies that judges a run, and what was assumed: a run on rows does not keep its rules.

    Args: checkpoint: with `game`, and `rules` where they are known.
    Raises: DataError: as `default_or_fresh`, or `fresh` and `unmasked` of a game whose rules are not known.
    """
    rules = known_rules(checkpoint)
    if rules is not None or str(path) not in ("fresh", "unmasked"):
        return default_or_fresh(path, rules), []
    game = checkpoint["game"]["id"]
    if game not in GAMES:
        raise DataError(f"{path}: the rules of {game} are not known: name a file")
    assumed = f"{path}: the run does not keep its rules: the default ones of {game}"
    return default_or_fresh(path, GAMES[game]()), [assumed]


def _collected(rules: GameRules | None) -> dict[Path, dict[str, Any]]:
    """The files that are collected on first use, and how: of each game, and of these rules."""
    files: dict[Path, dict[str, Any]] = {}
    for known in [*(of_game() for of_game in GAMES.values()), *([rules] if rules else [])]:
        files[file_of(known)] = dict(rules=known)
        files[file_of(known, FRESH_FILE)] = dict(rules=known, steps=100_000, seed=1001)
        files[file_of(known, UNMASKED_FILE)] = dict(rules=known, steps=100_000, seed=1002, unmasked=0.3)
    return files


def training_file(path: str | Path) -> Path:
    """As `default_or_fresh`, for training. Raises: DataError: the file is one of those that judge."""
    full = _full(_path_of(path))
    judges = full.stem.endswith((FRESH_FILE.stem, UNMASKED_FILE.stem))
    if judges and full.parent == _full(DEFAULT_FILE.parent):
        raise DataError(
            f"{path}: this file is for judging only; train on another (`python -m data.collect --help`)"
        )
    return default_or_fresh(path)


def _path_of(path: str | Path, rules: GameRules | None = None) -> Path:
    rules = rules or Rules()
    names = {f"data/{file.name}": file for file in (file_of(of_game()) for of_game in GAMES.values())}
    names |= {DEFAULT_DATA: DEFAULT_FILE}
    names |= {"fresh": file_of(rules, FRESH_FILE), "unmasked": file_of(rules, UNMASKED_FILE)}
    return names.get(Path(path).as_posix(), Path(path))


def _full(path: Path) -> Path:
    """As `resolve()`, which raises where links go round in a circle."""
    return Path(os.path.realpath(path)) if "\0" not in str(path) else path
