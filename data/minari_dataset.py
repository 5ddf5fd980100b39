"""Minari datasets (https://minari.farama.org): read into arrays, and written from trajectories. The package `minari` is
imported where it is needed.

A step of our datasets is one of all hunters: observations uint8 [T+1, A, 3+k, H, W]; actions int8 [T, A], as they were
attempted; rewards float32 [T, A]. `infos` have T+1 entries and the names of the environments' infos: `joint_actions`,
what was done in the last tick, STAY at first; `joint_rewards`, what was earned in it; `active`, who is on the board;
and `strategies`; `policy_probs` of the next action, where the file has them.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from tqdm import tqdm

from data.formats import needs, one_line
from data.npz import DataError
from data.trajectories import Trajectories
from envs.game import STAY, Game
from envs.games import game_of_env
from envs.stag_hunt import GAME

DATASET_ID = re.compile(r"(?:[\w-]+/)*[\w-]+-v\d+")
INSTALL = '"minari[hdf5]"'
ASSUMED = (
    f"neither `env_spec` nor `game` in metadata.json is of a game of ours: {GAME.id} was assumed; "
    'state another by, say, "game": "Snowdrift-v0"'
)
OURS = "trajectory_metadata"  # in a dataset's metadata: `metadata` of the trajectory file, as JSON


def is_minari(source: str) -> bool:
    """Is it the id of a dataset, or a folder?"""
    return Path(source).is_dir() or bool(DATASET_ID.fullmatch(source))


# ---- reading


def read_minari(source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of a trajectory file, where `write_minari` made the dataset; else rows, those of each episode in order,
    with `metadata` that names the game, where it is not the stag hunt.

    Args: source: a dataset's id, or its folder.
    Returns: the arrays, and what was assumed, a line each.
    Raises: DataError: no such dataset, one of another version of Minari, or whose observations are no arrays; `minari`
        is missing.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return _read_folder(_find_folder(source), source)
    except DataError:
        raise
    except ImportError as error:  # also of h5py or pyarrow, which Minari imports for its formats
        raise DataError(f"{source}: {error}") from None
    except Exception as error:
        raise DataError(
            f"{source}: expected a Minari dataset, found one that cannot be read ({one_line(error)})"
        ) from None


def _find_folder(source: str) -> Path:
    """Where `metadata.json` and the data lie."""
    is_folder = Path(source).is_dir()
    root = Path(source) if is_folder else _dataset_path(source)
    for folder in (root / "data", root):
        if (folder / "metadata.json").is_file():
            return folder
    expected = "a Minari dataset, with data/metadata.json in its folder"
    hint = "" if is_folder else f"; `minari download {source}` brings one of Farama's"
    raise DataError(f"{source}: expected {expected}, found none at {root}{hint}")


def _dataset_path(dataset_id: str) -> Path:
    """Where Minari keeps a dataset of this id."""
    try:
        from minari.storage import get_dataset_path
    except ImportError:
        raise needs("minari", INSTALL) from None
    return get_dataset_path(dataset_id)


def _read_folder(folder: Path, source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        from minari.dataset.minari_dataset import MinariDataset
    except ImportError:
        raise needs("minari", INSTALL) from None
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    if not {"observation_space", "action_space"} <= metadata.keys():
        # Minari would make the environment to ask it, and with it any function that the file names.
        raise DataError(f"{source}: expected metadata with observation_space and action_space, found none")
    episodes = list(MinariDataset(folder).iterate_episodes())
    if not episodes:
        raise DataError(f"{source}: expected at least one episode, found none")
    if OURS in metadata:
        return _trajectory_arrays(episodes) | {"metadata": np.array(metadata[OURS])}, []
    rows = [_rows_of(episode, source) for episode in episodes]
    shared = [key for key in rows[0] if all(key in part for part in rows)]
    arrays = {key: np.concatenate([part[key] for part in rows]) for key in shared}
    game = _recorded_game(metadata)
    if game is None:
        return arrays, [ASSUMED]
    if game != GAME:
        arrays["metadata"] = np.array(json.dumps({"game": game.metadata()}))
    return arrays, []


def _recorded_game(metadata: dict[str, Any]) -> Game | None:
    """The game whose id stands in `game`, else the one that an environment of ours recorded; None: no game of ours.

    The environment's specification is read as text: it is not made, for a file may name any function as one.
    """
    if "game" in metadata:
        return game_of_env(str(metadata["game"]), {})
    spec = json.loads(metadata.get("env_spec") or "{}")
    return game_of_env(spec.get("id"), spec.get("kwargs") or {})


def _trajectory_arrays(episodes: list[Any]) -> dict[str, np.ndarray]:
    def joined(key: str, part: slice = slice(-1)) -> np.ndarray:
        return np.concatenate([episode.infos[key][part] for episode in episodes])

    arrays = {
        "obs": np.concatenate([episode.observations for episode in episodes]),
        "actions": joined("joint_actions", slice(1, None)),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "active": joined("active"),
        "episode_lengths": np.array([len(episode) for episode in episodes], np.int32),
        "terminated": np.array([episode.terminations[-1] for episode in episodes], bool),
        "strategies": joined("strategies", slice(1)),
    }
    if "attempted" in episodes[0].infos:
        arrays["attempted"] = np.concatenate([episode.actions for episode in episodes])
    if "policy_probs" in episodes[0].infos:
        arrays["policy_probs"] = joined("policy_probs")
    return arrays


def _rows_of(episode: Any, source: str) -> dict[str, np.ndarray]:
    """Rows of one episode: with the infos of our environments, the actions and rewards of all hunters."""
    for key in ("observations", "actions"):
        found = type(getattr(episode, key)).__name__
        if found != "ndarray":
            raise DataError(f"{source}: {key}: expected arrays, found a {found} of spaces")
    steps = len(episode.rewards)
    infos = episode.infos or {}
    infos = {key: value for key, value in infos.items() if np.shape(value)[:1] == (steps + 1,)}
    rows = {
        "obs": episode.observations[:steps],
        "next_obs": episode.observations[1 : steps + 1],
        "actions": episode.actions,
        "rewards": episode.rewards,
        "times": infos["tick"][:-1] if "tick" in infos else np.arange(steps),
        "terminated": episode.terminations,
        "truncated": episode.truncations,
    }
    if {"seat", "joint_actions", "joint_rewards"} <= infos.keys():
        rows["observer"] = infos["seat"][:-1]
        rows["actions"] = infos["joint_actions"][1:]
        rows["rewards"] = infos["joint_rewards"][1:]
    return rows


# ---- writing


def check_new(dataset_id: str) -> Path:
    """Where Minari keeps the dataset of this id. Raises: DataError: no id, or there is one already."""
    if not DATASET_ID.fullmatch(dataset_id):
        raise DataError(f"{dataset_id}: expected the id of a Minari dataset, such as stag_hunt/mine-v0")
    try:
        import h5py  # noqa: F401
    except ImportError:
        raise DataError(f"{dataset_id}: {needs('h5py', INSTALL)}") from None
    try:
        folder = _dataset_path(dataset_id)
    except ImportError as error:
        raise DataError(f"{dataset_id}: {error}") from None
    if os.path.lexists(folder):
        raise DataError(f"{dataset_id}: there is a dataset of this id at {folder}; choose another version")
    return folder


def write_minari(trajectories: Trajectories, dataset_id: str, progress: bool = False) -> Path:
    """Write a dataset that `minari.load_dataset(dataset_id)` reads: whole, or not at all.

    Returns: its folder.
    Raises: DataError: as `check_new`; OSError: it cannot be written.
    """
    folder = check_new(dataset_id)
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.storage import get_dataset_path

    namespace = dataset_id.rpartition("/")[0]
    with tempfile.TemporaryDirectory(dir=get_dataset_path(), prefix=".convert-") as made:
        data = Path(made) / "data"
        try:
            _write_folder(trajectories, data, dataset_id, progress)
        except RuntimeError as error:  # h5py's, on a full disk
            raise OSError(f"{folder}: cannot be written ({one_line(error)})") from None
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)
        folder.mkdir()
        os.replace(data, folder / "data")
    return folder


def _write_folder(trajectories: Trajectories, folder: Path, dataset_id: str, progress: bool) -> None:
    """Raises: OSError: the disk is full, or Minari finds something else there than was written."""
    import minari
    from minari.dataset.minari_dataset import MinariDataset
    from minari.dataset.minari_storage import MinariStorage

    _, seats, *planes = trajectories.obs.shape
    storage = MinariStorage.new(
        folder,
        observation_space=Box(0, 1, (seats, *planes), np.uint8),
        action_space=MultiDiscrete([trajectories.game.num_actions] * seats),
        data_format="hdf5",
    )
    metadata = trajectories.metadata
    described = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "algorithm_name": str(metadata.get("algorithm_name", "not known")),
        OURS: json.dumps(metadata),
    }
    storage.update_metadata(described)
    count, steps = len(trajectories.episode_lengths), len(trajectories.actions)
    episodes = _episode_buffers(trajectories)
    storage.update_episodes(tqdm(episodes, total=count, disable=not progress, leave=False))
    written = MinariDataset(folder)
    if (written.total_episodes, written.total_steps) != (count, steps):
        raise OSError(f"{folder}: Minari does not read what was written")


def _episode_buffers(trajectories: Trajectories) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    for number in range(len(trajectories.episode_lengths)):
        episode = trajectories.part(number, number + 1)
        is_last = np.arange(1, len(episode.actions) + 1) == len(episode.actions)
        attempted = episode.attempted
        yield EpisodeBuffer(
            observations=episode.obs,
            actions=episode.actions if attempted is None else attempted,
            rewards=episode.rewards,
            terminations=is_last & episode.terminated,
            truncations=is_last & ~episode.terminated,
            infos=_infos_of(episode),
        )


def _infos_of(episode: Trajectories) -> dict[str, np.ndarray]:
    """[T+1, ..] of one episode."""
    steps = len(episode.actions)
    on_board = episode.obs[:, :, 0].any((2, 3))
    infos = {
        "joint_actions": _with_first(episode.actions, STAY),
        "joint_rewards": _with_first(episode.rewards, 0),
        "active": on_board,
        "strategies": np.repeat(episode.strategies, steps + 1, 0),
    }
    if episode.attempted is not None:
        infos["attempted"] = _with_first(episode.attempted, STAY)
    if episode.policy_probs is not None:  # of the action that follows; nothing follows the last observation
        infos["policy_probs"] = np.pad(episode.policy_probs, ((0, 1), (0, 0), (0, 0), (0, 0)))
    return infos


def _with_first(values: np.ndarray, first: float) -> np.ndarray:
    """[T, A] -> [T+1, A]: what the infos hold after `reset`, then after each step."""
    return np.pad(values, ((1, 0), (0, 0)), constant_values=first)
