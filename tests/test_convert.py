"""Files of other formats become files of ours: the arrays are the same, mistakes are one line, and no pickle is opened
unless it was asked for."""

import json
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pandas
import pytest
import torch

import envs  # noqa: F401  (registers the game)
from data.collect import Args as CollectArgs
from data.collect import collect
from data.convert import Args, convert
from data.datasets import load_samples, load_transitions
from data.flatten import Args as FlattenArgs
from data.flatten import flatten
from data.formats import READERS
from data.npz import DataError, read_arrays
from data.trajectories import load, save_arrays
from envs.snowdrift import GAME as SNOWDRIFT

ROOT = Path(__file__).resolve().parents[1]
ROWS = 60


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    """In the HOP layout, 4x4, everyone's actions and rewards."""
    return flatten(FlattenArgs("", rows=ROWS, seed=3))


@pytest.fixture(scope="module")
def snow_rows() -> dict[str, np.ndarray]:
    """Of the snowdrift, with `metadata` that names it."""
    return flatten(FlattenArgs("", rows=ROWS, seed=3, env_id="Snowdrift-v0"))


@pytest.fixture(scope="module")
def trajectories():
    """With `attempted` and `policy_probs`."""
    return collect(CollectArgs(steps=300, seed=5, unmasked=0.3))


@pytest.fixture(scope="module")
def snow_trajectories():
    """Two episodes of the snowdrift."""
    return collect(CollectArgs(steps=60, seed=5, unmasked=0.3, env_id="Snowdrift-v0"))


@pytest.fixture
def minari(tmp_path, monkeypatch):
    """The package, with an empty folder for its datasets."""
    pytest.importorskip("h5py")
    package = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return package


def converted(source, tmp_path: Path, **settings) -> tuple[dict[str, np.ndarray], str]:
    """The arrays written, and the line printed."""
    out = tmp_path / "out" / "converted.npz"
    line = convert(Args(str(source), str(out), **settings))
    assert "\n" not in line and line.endswith(f"written to {out}")
    return read_arrays(out), line


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Keys, values and, of observations and what an episode has, types."""
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert np.array_equal(found[key], array), key
        assert key not in ("obs", "next_obs", "metadata") or found[key].dtype == array.dtype, key


def refusal(source, tmp_path: Path, **settings) -> str:
    """The message; nothing was written."""
    out = settings.pop("out", tmp_path / "refused.npz")
    with pytest.raises(DataError) as error:
        convert(Args(str(source), str(out), **settings))
    assert not (tmp_path / "refused.npz").exists()
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


# ---- files with rows


def write_structured(path, arrays):
    fields = [(key, array.dtype, array.shape[1:]) for key, array in arrays.items()]
    table = np.empty(len(arrays["obs"]), fields)
    for key, array in arrays.items():
        table[key] = array
    np.save(path, table)


def write_named(path, arrays):
    for key, array in arrays.items():
        np.save(path.with_name(f"{key}.npy"), array)
    np.save(path.with_name("something_else.npy"), np.zeros(3))


def write_steps(path, arrays):
    steps = [{key: array[row] for key, array in arrays.items()} for row in range(ROWS)]
    np.save(path, np.array(steps, object))


def write_csv(path, arrays):
    columns = {}
    for key, array in arrays.items():
        for place in np.ndindex(array.shape[1:]):
            columns["_".join([key, *map(str, place)])] = array[(slice(None), *place)]
    names = list(columns)
    np.random.default_rng(0).shuffle(names)  # the order of the columns plays no part
    pandas.DataFrame({name: columns[name] for name in names}).to_csv(path, index=False)


def write_hdf5(path, arrays, group=""):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        place = file.require_group(group) if group else file
        for key, array in arrays.items():
            text = array.dtype.kind == "U"
            place[key] = str(array) if text else array


def write_hdf5_group(path, arrays):
    write_hdf5(path, arrays, "train")


def as_tensors(arrays):
    return {key: str(a) if a.dtype.kind == "U" else torch.from_numpy(a) for key, a in arrays.items()}


WRITERS = {
    "structured.npy": write_structured,
    "obs.npy": write_named,
    "dict.npy": lambda path, arrays: np.save(path, arrays),
    "steps.npy": write_steps,
    "rows.npz": lambda path, arrays: np.savez(path, **arrays),
    "objects.npz": lambda path, arrays: np.savez(
        path, **{k: np.array(list(a), object) for k, a in arrays.items()}
    ),
    "tensors.pt": lambda path, arrays: torch.save(as_tensors(arrays), path),
    "arrays.pt": lambda path, arrays: torch.save(arrays, path),
    "nested.pth": lambda path, arrays: torch.save({"data": as_tensors(arrays), "seed": 3}, path),
    "rows.csv": write_csv,
    "rows.h5": write_hdf5,
    "group.hdf5": write_hdf5_group,
}
PICKLED = {"dict.npy", "steps.npy", "objects.npz"}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_of_each_format_are_the_same_arrays(name, rows, tmp_path):
    path = tmp_path / name
    WRITERS[name](path, rows)
    found, line = converted(path, tmp_path, allow_pickle=name in PICKLED)
    assert_same(found, rows)
    assert f"{ROWS} rows of " in line and "joint actions in seat order" in line
    assert len(load_transitions(tmp_path / "out" / "converted.npz")) == ROWS


@pytest.mark.parametrize("name", ["rows.npz", "dict.npy", "tensors.pt", "rows.h5"])
def test_rows_of_another_game_keep_its_name(name, snow_rows, tmp_path):
    WRITERS[name](tmp_path / name, snow_rows)
    found, line = converted(tmp_path / name, tmp_path, allow_pickle=name in PICKLED)
    assert_same(found, snow_rows)
    assert "not used" not in line
    assert load_transitions(tmp_path / "out" / "converted.npz").game == SNOWDRIFT


def test_planes_of_another_game_are_rows_too(snow_trajectories, tmp_path):
    first = snow_trajectories.obs[snow_trajectories.obs_row, 0]
    rows = {"obs": first, "actions": snow_trajectories.actions[:, 0], "times": snow_trajectories.tick}
    rows["metadata"] = np.array(json.dumps({"game": SNOWDRIFT.metadata()}))
    np.savez(tmp_path / "rows.npz", **rows)
    found, line = converted(tmp_path / "rows.npz", tmp_path)
    assert_same(found, rows)
    assert "layout planes" in line


def test_metadata_of_another_game_than_there_is_are_refused(snow_rows, tmp_path):
    game = SNOWDRIFT.metadata() | {"goals": {"remove": "XX"}}
    np.savez(tmp_path / "rows.npz", **snow_rows | {"metadata": np.array(json.dumps({"game": game}))})
    assert "metadata: expected `game` as" in refusal(tmp_path / "rows.npz", tmp_path)


@pytest.mark.parametrize("name", sorted(PICKLED))
def test_objects_are_refused_without_the_flag(name, rows, tmp_path):
    WRITERS[name](tmp_path / name, rows)
    message = refusal(tmp_path / name, tmp_path)
    assert "any code" in message and "--allow-pickle" in message


def test_names_of_other_code_are_ours_and_ends_keep_theirs(rows, tmp_path):
    ends = np.arange(ROWS) % 20 == 19
    source = {
        "states": rows["obs"].astype(np.float64),
        "next_observations": rows["next_obs"].astype(bool),
        "actions": rows["actions"][:, :1].astype(np.float32),
        "timesteps": rows["times"][:, None].astype(np.float64),
        "terminals": ends.astype(np.float32),
        "timeouts": ~ends,
        "rewards": rows["rewards"][:, :1],
        "qpos": np.zeros(3),
        "observations": np.zeros(3),
    }
    np.savez(tmp_path / "rows.npz", **source)
    found, line = converted(tmp_path / "rows.npz", tmp_path)
    expected = {
        "obs": rows["obs"],
        "next_obs": rows["next_obs"],
        "actions": rows["actions"][:, :1],
        "times": rows["times"][:, None],
        "terminals": ends,
        "timeouts": ~ends,
        "rewards": rows["rewards"][:, :1],
    }
    assert_same(found, expected)
    assert "not used: qpos, observations" in line


def test_episodes_of_a_list_become_rows(rows, tmp_path):
    """T+1 observations give `next_obs`; the tick counts from 0 in each."""
    episodes = []
    for start, steps in ((0, 20), (20, 33)):
        after = rows["next_obs"][start + steps - 1 : start + steps]
        obs = np.concatenate([rows["obs"][start : start + steps], after])
        episodes.append({"observations": obs, "actions": rows["actions"][start : start + steps]})
    np.save(tmp_path / "episodes.npy", np.array(episodes, object))
    found, _ = converted(tmp_path / "episodes.npy", tmp_path, allow_pickle=True)
    assert found["times"].tolist() == [*range(20), *range(33)]
    assert np.array_equal(found["obs"], rows["obs"][:53])
    assert np.array_equal(found["next_obs"][:19], rows["obs"][1:20])
    assert np.array_equal(found["next_obs"][[19, 52]], rows["next_obs"][[19, 52]])
    assert np.array_equal(found["actions"], rows["actions"][:53])
    torch.save([{key: torch.from_numpy(a) for key, a in e.items()} for e in episodes], tmp_path / "e.pt")
    assert_same(converted(tmp_path / "e.pt", tmp_path)[0], found)


def test_boards_that_are_not_square_need_a_layout(rows, tmp_path):
    oblong = rows | {key: rows[key][:, :3] for key in ("obs", "next_obs")}
    np.savez(tmp_path / "rows.npz", **oblong)
    assert "--layout" in refusal(tmp_path / "rows.npz", tmp_path)
    assert_same(converted(tmp_path / "rows.npz", tmp_path, layout="hop")[0], oblong)


def test_five_planes_are_rows_too(trajectories, tmp_path):
    first = trajectories.obs[trajectories.obs_row, 0]
    rows = {"obs": first, "actions": trajectories.actions[:, 0], "times": trajectories.tick}
    torch.save(rows, tmp_path / "rows.pt")
    found, line = converted(tmp_path / "rows.pt", tmp_path)
    assert_same(found, rows)
    assert "layout planes" in line


# ---- files with episodes


@pytest.mark.parametrize("name", ["dict.npy", "tensors.pt", "arrays.pt", "rows.h5", "rows.npz"])
def test_a_trajectory_file_stays_one(name, trajectories, tmp_path):
    arrays = trajectories.arrays()
    if name == "arrays.pt":
        arrays = {key: array for key, array in arrays.items() if key != "metadata"}
        torch.save(arrays | {"metadata": trajectories.metadata}, tmp_path / name)
    else:
        WRITERS[name](tmp_path / name, arrays)
    found, line = converted(tmp_path / name, tmp_path, allow_pickle=name == "dict.npy")
    assert_same(found, trajectories.arrays())
    assert load(tmp_path / "out" / "converted.npz").fingerprint == trajectories.fingerprint
    assert line.startswith(f"{tmp_path / name}: {len(trajectories.episode_lengths)} episodes; ")


def test_lists_of_whole_numbers_get_the_types_of_the_file(trajectories, tmp_path):
    arrays = {key: array.tolist() for key, array in trajectories.arrays().items() if key != "metadata"}
    np.save(tmp_path / "lists.npy", arrays | {"metadata": trajectories.metadata})
    found, _ = converted(tmp_path / "lists.npy", tmp_path, allow_pickle=True)
    assert {key: a.dtype for key, a in found.items()} == {
        key: a.dtype for key, a in trajectories.arrays().items()
    }
    assert_same(found, trajectories.arrays())


def test_a_trajectory_file_with_a_hole_is_refused(trajectories, tmp_path):
    arrays = trajectories.arrays()
    torch.save(as_tensors({key: a for key, a in arrays.items() if key != "active"}), tmp_path / "t.pt")
    assert "active: expected an array bool" in refusal(tmp_path / "t.pt", tmp_path)


# ---- Minari


@pytest.mark.parametrize("kind", ["attempted", "plain", "snowdrift"])
def test_a_trajectory_file_comes_back_from_minari(kind, trajectories, snow_trajectories, minari, tmp_path):
    if kind == "snowdrift":
        trajectories = snow_trajectories
    if kind == "plain":
        trajectories = replace(trajectories, attempted=None, policy_probs=None)
    save_arrays(tmp_path / "t.npz", trajectories.arrays())
    line = convert(Args(str(tmp_path / "t.npz"), "stag_hunt/a-b/mine-v3", to="minari"))
    folder = tmp_path / "minari" / "stag_hunt" / "a-b" / "mine-v3"
    assert line.endswith(f"written to {folder}") and not list((tmp_path / "minari").glob(".convert*"))
    for source in ("stag_hunt/a-b/mine-v3", folder, folder / "data"):
        assert_same(converted(source, tmp_path)[0], trajectories.arrays())
    assert list(minari.list_local_datasets()) == ["stag_hunt/a-b/mine-v3"]


@pytest.mark.parametrize("kind", ["stag hunt", "snowdrift"])
def test_the_minari_dataset_has_rewards_and_infos_of_each_hunter(
    kind, trajectories, snow_trajectories, minari, tmp_path
):
    if kind == "snowdrift":
        trajectories = snow_trajectories
    save_arrays(tmp_path / "t.npz", trajectories.arrays())
    convert(Args(str(tmp_path / "t.npz"), "mine-v0", to="minari"))
    dataset = minari.load_dataset("mine-v0")
    count, steps = len(trajectories.episode_lengths), len(trajectories.actions)
    assert (dataset.total_episodes, dataset.total_steps) == (count, steps)
    assert dataset.observation_space.shape == trajectories.obs.shape[1:]
    assert (dataset.action_space.nvec == trajectories.game.num_actions).all()
    for number, episode in enumerate(dataset.iterate_episodes()):
        part = trajectories.part(number, number + 1)
        length = len(part.actions)
        assert dataset.observation_space.contains(episode.observations[0])
        assert all(dataset.action_space.contains(action) for action in episode.actions)
        assert np.array_equal(episode.observations, part.obs)
        assert np.array_equal(episode.actions, part.attempted)
        assert np.array_equal(episode.rewards, part.rewards) and episode.rewards.shape == (length, 4)
        assert episode.terminations.tolist() == [False] * (length - 1) + [bool(part.terminated[0])]
        assert episode.truncations.tolist() == [False] * (length - 1) + [not part.terminated[0]]
        infos = episode.infos
        assert all(len(values) == length + 1 for values in infos.values())
        assert (infos["joint_actions"][0] == 4).all()
        assert np.array_equal(infos["joint_actions"][1:], part.actions)
        assert np.array_equal(infos["joint_rewards"][1:], part.rewards)
        assert np.array_equal(infos["active"][:-1], part.active)
        assert np.array_equal(infos["active"][-1], part.obs[-1, :, 0].any((1, 2)))
        assert (infos["strategies"] == part.strategies).all()


def record(minari, env, dataset_id: str, episodes: int, with_infos: bool) -> list[dict]:
    """Play at random and save it as Minari's collector does. Returns what was seen, step by step."""
    buffers, log = [], []
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        obs, info = env.reset(seed=episode)
        seen, infos, steps, over = [obs], [info], [], False
        while not over:
            action = int(rng.choice(np.flatnonzero(infos[-1]["action_mask"])))
            obs, reward, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            before = dict(obs=seen[-1], next_obs=obs, times=len(steps), info=infos[-1], after=info)
            steps.append(
                before | dict(action=action, reward=reward, terminated=terminated, truncated=truncated)
            )
            seen.append(obs)
            infos.append(info)
        columns = {key: np.array([entry[key] for entry in infos]) for key in infos[0]}
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations=np.array(seen),
                actions=np.array([step["action"] for step in steps]),
                rewards=np.array([step["reward"] for step in steps]),
                terminations=np.array([step["terminated"] for step in steps]),
                truncations=np.array([step["truncated"] for step in steps]),
                infos=columns if with_infos else {},
            )
        )
        log += steps
    minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        env=env.spec,
        observation_space=env.observation_space,
        action_space=env.action_space,
    )
    return log


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("with_infos", [True, False])
@pytest.mark.parametrize("layout", ["hop", "planes"])
@pytest.mark.parametrize(
    ("env_id", "keywords", "episodes"),
    [
        ("StagHunt-v0", {}, 12),
        ("Snowdrift-v0", {"height": 5, "width": 5}, 2),
        ("StagHunt-v0", {"game": "Snowdrift-v0"}, 1),
    ],
)
def test_what_the_gymnasium_view_recorded_becomes_rows(
    env_id, keywords, episodes, layout, with_infos, minari, tmp_path, monkeypatch
):
    """The game stands in the environment's specification, which is not made."""
    env = gymnasium.make(env_id, layout=layout, **keywords).unwrapped
    log = record(minari, env, "view-v0", episodes, with_infos)
    monkeypatch.setattr("gymnasium.make", None)
    found, line = converted("view-v0", tmp_path)
    expected = {key: np.array([step[key] for step in log]) for key in ("obs", "next_obs", "times")}
    expected |= {key: np.array([step[key] for step in log]) for key in ("terminated", "truncated")}
    if with_infos:
        expected["observer"] = np.array([step["info"]["seat"] for step in log])
        expected["actions"] = np.array([step["after"]["joint_actions"] for step in log])
        expected["rewards"] = np.array([step["after"]["joint_rewards"] for step in log])
    else:
        expected["actions"] = np.array([step["action"] for step in log])
        expected["rewards"] = np.array([step["reward"] for step in log])
    game = env.core.rules.game
    if game == SNOWDRIFT:
        expected["metadata"] = np.array(json.dumps({"game": game.metadata()}))
    assert_same(found, expected)
    assert f"{len(log)} rows of " in line
    samples = load_samples(tmp_path / "out" / "converted.npz")
    assert samples.game == game
    assert len(samples) == len(log)
    assert np.array_equal(samples.actions, [step["action"] for step in log])
    if layout == "hop":
        assert len(load_transitions(tmp_path / "out" / "converted.npz")) == len(log)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_game_of_a_minari_dataset_without_an_environment_is_stated(minari, tmp_path):
    """Of the stag hunt, also where the rows do not fit; what the line advises makes it another."""
    assumed = "in metadata.json is of a game of ours: StagHunt-v0 was assumed"
    for env_id in ("StagHunt-v0", "Snowdrift-v0"):
        env = gymnasium.make(env_id, layout="planes", height=6, width=6).unwrapped
        record(minari, env, f"{env_id[:4]}-v0", 1, False)
        path = tmp_path / "minari" / f"{env_id[:4]}-v0" / "data" / "metadata.json"
        metadata = json.loads(path.read_text())
        assert "env_spec" in metadata
        path.write_text(json.dumps({key: metadata[key] for key in metadata if key != "env_spec"}))
    assert assumed in converted("Stag-v0", tmp_path)[1]
    message = refusal("Snow-v0", tmp_path)
    assert assumed in message and "\n" not in message
    advice = message.split("by, say, ")[1]
    path.write_text(f"{path.read_text()[:-1]}, {advice}}}")
    found, line = converted("Snow-v0", tmp_path)
    assert "assumed" not in line and json.loads(str(found["metadata"]))["game"]["id"] == "Snowdrift-v0"


def test_minari_datasets_that_do_not_serve_are_refused(trajectories, rows, minari, tmp_path):
    save_arrays(tmp_path / "t.npz", trajectories.arrays())
    save_arrays(tmp_path / "rows.npz", rows)
    assert "minari download nobody/knows-v0" in refusal("nobody/knows-v0", tmp_path)
    to_minari = dict(to="minari")
    for name in ("mine", "mine.npz", "../mine-v0", "/mine-v0", "a b-v0"):
        assert "expected the id" in refusal(tmp_path / "t.npz", tmp_path, out=name, **to_minari)
    assert "found rows" in refusal(tmp_path / "rows.npz", tmp_path, out="mine-v0", **to_minari)
    convert(Args(str(tmp_path / "t.npz"), "mine-v0", to="minari"))
    kept = {path: path.read_bytes() for path in (tmp_path / "minari").rglob("*.*") if path.is_file()}
    message = refusal(tmp_path / "t.npz", tmp_path, out="mine-v0", **to_minari)
    assert "there is a dataset of this id" in message
    assert kept == {path: path.read_bytes() for path in kept}
    data = tmp_path / "minari" / "mine-v0" / "data"
    (data / "main_data.hdf5").write_bytes(b"damaged")
    assert "cannot be read" in refusal("mine-v0", tmp_path)
    (data / "metadata.json").write_text("[", encoding="utf-8")
    assert "cannot be read" in refusal("mine-v0", tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("errno 28, No space left")])
def test_a_minari_dataset_that_cannot_be_written_leaves_nothing(
    error, trajectories, minari, tmp_path, monkeypatch
):
    storage = pytest.importorskip("minari.dataset._storages.hdf5_storage")

    def full(*_, **__):
        raise error

    save_arrays(tmp_path / "t.npz", trajectories.arrays())
    monkeypatch.setattr(storage.HDF5Storage, "update_episodes", full)
    with pytest.raises(OSError, match="No space left"):
        convert(Args(str(tmp_path / "t.npz"), "mine-v0", to="minari"))
    assert list((tmp_path / "minari").iterdir()) == []


# ---- optional packages


def test_a_folder_without_a_dataset_is_refused_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    assert "expected a Minari dataset" in refusal(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("package", "source", "to", "install"),
    [
        ("h5py", "rows.h5", "npz", "pip install h5py"),
        ("minari", "stag_hunt/mine-v0", "npz", 'pip install "minari[hdf5]"'),
        ("minari", "t.npz", "minari", 'pip install "minari[hdf5]"'),
        ("h5py", "t.npz", "minari", 'needs h5py, which is not installed: pip install "minari[hdf5]"'),
    ],
)
def test_a_missing_package_is_one_line(package, source, to, install, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    Path("rows.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert install in refusal(source, tmp_path, to=to, out="a-v0" if to == "minari" else "a.npz")


def test_the_module_needs_no_optional_package_and_no_torch():
    code = (
        "import sys; sys.modules |= {'h5py': None, 'minari': None}; import data.convert; "
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---- pickles


class Plant:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def plant_minari(path: Path, grown: Path) -> None:
    """A dataset without spaces: Minari makes its environment, and that is any function."""
    (path / "data").mkdir(parents=True)
    spec = {"id": "Plant-v0", "entry_point": "pathlib:Path.touch", "kwargs": {"self": str(grown)}}
    metadata = {"env_spec": json.dumps(spec), "data_format": "hdf5", "total_episodes": 1, "total_steps": 1}
    (path / "data" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


def plant_npz(path: Path, plant: Plant) -> None:
    np.savez(path, obs=np.array(plant, object), actions=np.zeros(3, int))


def plant_npz_member(path: Path, plant: Plant) -> None:
    """No array at all."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("obs.npy", pickle.dumps(plant))


PLANTS = {
    "dict.npy": lambda path, plant: np.save(path, {"obs": plant}),
    "obs.npy": lambda path, plant: np.save(path, np.array([plant], object)),
    "rows.npz": plant_npz,
    "bare.npy": lambda path, plant: path.write_bytes(pickle.dumps(plant)),
    "bare.npz": lambda path, plant: path.write_bytes(pickle.dumps(plant)),
    "member.npz": plant_npz_member,
    "rows.pt": lambda path, plant: torch.save({"obs": plant}, path),
    "old.pth": lambda path, plant: torch.save({"obs": plant}, path, _use_new_zipfile_serialization=False),
    "bare.pt": lambda path, plant: path.write_bytes(pickle.dumps(plant)),
    "rows.csv": lambda path, plant: path.write_bytes(pickle.dumps(plant)),
    "rows.h5": lambda path, plant: path.write_bytes(pickle.dumps(plant)),
}
GROW_WITH_THE_FLAG = {"dict.npy", "obs.npy", "rows.npz"}  # what np.save has pickled, and nothing else


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_pickle_is_opened_with_the_flag_alone(name, allow_pickle, tmp_path):
    grown = tmp_path / "grown"
    PLANTS[name](tmp_path / name, Plant(grown))
    message = refusal(tmp_path / name, tmp_path, allow_pickle=allow_pickle)
    assert grown.exists() == (allow_pickle and name in GROW_WITH_THE_FLAG)
    assert "weights_only" not in message, "PyTorch advises to do without"


def test_a_pickle_beside_a_named_array_is_not_opened(rows, tmp_path):
    write_named(tmp_path / "obs.npy", rows)
    np.save(tmp_path / "times.npy", np.array([Plant(tmp_path / "grown")], object))
    assert "--allow-pickle" in refusal(tmp_path / "obs.npy", tmp_path)
    assert not (tmp_path / "grown").exists()


def test_an_environment_that_a_minari_dataset_names_is_not_made(minari, tmp_path):
    plant_minari(tmp_path / "planted", tmp_path / "grown")
    assert "expected metadata with observation_space" in refusal(tmp_path / "planted", tmp_path)
    assert not (tmp_path / "grown").exists()


# ---- mistakes


def sources_with_mistakes(folder: Path, rows: dict[str, np.ndarray]) -> dict[str, str]:
    """Files that do not serve, and words of the line of each."""
    np.savez(folder / "nothing.npz", qpos=np.zeros(3), qvel=np.zeros(3))
    np.savez(folder / "no_actions.npz", obs=rows["obs"])
    np.savez(folder / "no_obs.npz", actions=rows["actions"])
    np.savez(folder / "no_rows.npz", **{key: array[:0] for key, array in rows.items()})
    np.savez(folder / "action_7.npz", **rows | {"actions": rows["actions"] + 5})
    np.savez(folder / "half.npz", **rows | {"actions": rows["actions"] + 0.5})
    np.savez(folder / "nan.npz", **rows | {"times": np.full(ROWS, np.nan)})
    np.savez(folder / "rewards.npz", **rows | {"rewards": np.full(ROWS, np.nan)})
    np.savez(folder / "two.npz", **rows | {"obs": rows["obs"] * 2})
    np.savez(folder / "dones.npz", **rows | {"dones": np.arange(ROWS)})
    np.savez(folder / "short.npz", **rows | {"dones": np.zeros(3, bool)})
    np.savez(folder / "text.npz", **rows | {"times": np.full(ROWS, "one")})
    (folder / "cut.npz").write_bytes((folder / "dones.npz").read_bytes()[:2000])
    np.save(folder / "plain.npy", rows["obs"])
    write_structured(folder / "whole.npy", rows)
    (folder / "cut.npy").write_bytes((folder / "whole.npy").read_bytes()[:2000])
    torch.save({"model": {"w": torch.zeros(3)}, "step": 3}, folder / "checkpoint.pt")
    torch.save([torch.zeros(3)], folder / "list.pt")
    torch.save({"obs": torch.from_numpy(rows["obs"]), "actions": "many"}, folder / "text.pt")
    torch.save([{"obs": rows["obs"][0], "actions": 1}, {"obs": rows["obs"][0]}], folder / "uneven.pt")
    torch.save(
        [{"obs": rows["obs"][0], "actions": 1}, {"obs": rows["obs"][0, 1:], "actions": 1}],
        folder / "shapes.pt",
    )
    write_csv(folder / "whole.csv", rows)
    table = pandas.read_csv(folder / "whole.csv")
    table.drop(columns="obs_3_3_6").to_csv(folder / "column.csv", index=False)
    table.copy().assign(obs=1).to_csv(folder / "ranks.csv", index=False)
    table.assign(times="soon").to_csv(folder / "words.csv", index=False)
    table.assign(times=[None, *range(1, ROWS)]).to_csv(folder / "cell.csv", index=False)
    (folder / "empty.csv").write_bytes(b"")
    (folder / "fields.csv").write_text("times,actions\n1,2\n1,2,3\n", encoding="utf-8")
    (folder / "folder.csv").mkdir()
    for name in ("x.npy", "x.npz", "x.pt", "x.csv", "rows.txt", "rows"):
        (folder / name).write_bytes(b"\x00\xffsome other bytes")
    return {
        "nothing.npz": "the names qpos, qvel",
        "no_actions.npz": "actions: expected",
        "no_obs.npz": "obs: expected",
        "no_rows.npz": "at least one row",
        "action_7.npz": "values in 0..6",
        "half.npz": "actions: expected integers, found",
        "nan.npz": "times: expected integers of shape",
        "rewards.npz": "rewards: expected finite numbers",
        "two.npz": "obs: expected cells of 0 or 1",
        "dones.npz": "dones: expected True or False, found 2 at [2]",
        "short.npz": "dones: expected shape (60,), found shape (3,)",
        "text.npz": "times: expected numbers",
        "cut.npz": "cannot be read",
        "plain.npy": "name its file by its key",
        "cut.npy": "cannot be read",
        "checkpoint.pt": "the names",
        "list.pt": "expected dicts of arrays",
        "text.pt": "actions: expected numbers",
        "uneven.pt": "entry 1: expected the keys of the first entry",
        "shapes.pt": "entries of one shape",
        "column.csv": "obs: expected a column for each of 4x4x7 values, the last one obs_3_3_6, found 111 columns",
        "ranks.csv": "obs: expected a column for each",
        "words.csv": "times: expected numbers, found text",
        "cell.csv": "times: expected numbers, found an empty cell in line 2",
        "empty.csv": "cannot be read",
        "fields.csv": "cannot be read (Error tokenizing data",
        "folder.csv": "found a folder",
        "x.npy": "cannot be read",
        "x.npz": "cannot be read",
        "x.pt": "expected a dict of tensors",
        "x.csv": "",
        "rows.txt": "found the ending '.txt'",
        "rows": "found neither",
        "missing.npy": "found no such file",
        "missing.h5": "found no such file",
    }


def test_each_mistake_is_one_line_that_names_the_file(rows, tmp_path):
    for name, words in sources_with_mistakes(tmp_path, rows).items():
        message = refusal(tmp_path / name, tmp_path)
        assert message.startswith(str(tmp_path / name)) and words in message, (name, message)


def test_hdf5_files_that_do_not_serve_are_refused(rows, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "episodes.h5", "w") as file:
        for number in range(3):
            file[f"episode_{number}/obs"] = rows["obs"]
    assert "the names episode_0, episode_1, episode_2" in refusal(tmp_path / "episodes.h5", tmp_path)
    (tmp_path / "x.h5").write_bytes(b"other bytes")
    assert "expected an HDF5 file" in refusal(tmp_path / "x.h5", tmp_path)
    write_hdf5(tmp_path / "whole.h5", rows)
    whole = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(tmp_path / "cut.h5", tmp_path)


def test_more_than_the_memory_is_refused_before_it_is_read(rows, tmp_path, monkeypatch):
    names = ["structured.npy", "rows.npz", "tensors.pt", "rows.csv"]
    for name in names:
        WRITERS[name](tmp_path / name, rows)
    monkeypatch.setattr("data.memory.available_bytes", lambda: 1000)
    for name in names:
        assert "GB of memory" in refusal(tmp_path / name, tmp_path)


def test_out_must_be_a_file_of_ours(rows, tmp_path):
    np.savez(tmp_path / "rows.npz", **rows)
    for out in ("x.csv", "x", str(tmp_path)):
        assert "expected" in refusal(tmp_path / "rows.npz", tmp_path, out=tmp_path / out)
    (tmp_path / "folder.npz").mkdir()
    assert "found a folder" in refusal(tmp_path / "rows.npz", tmp_path, out=tmp_path / "folder.npz")


def test_an_older_file_is_replaced_by_a_good_one_alone(rows, tmp_path):
    np.savez(tmp_path / "out.npz", **rows)
    before = (tmp_path / "out.npz").read_bytes()
    np.savez(tmp_path / "bad.npz", **rows | {"actions": rows["actions"] + 5})
    refusal(tmp_path / "bad.npz", tmp_path, out=tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_bytes() == before
    np.savez(tmp_path / "good.npz", **rows | {"actions": rows["actions"][:, ::-1]})
    convert(Args(str(tmp_path / "good.npz"), str(tmp_path / "out.npz")))
    assert np.array_equal(read_arrays(tmp_path / "out.npz")["actions"], rows["actions"][:, ::-1])
    convert(Args(str(tmp_path / "out.npz"), str(tmp_path / "out.npz")))  # of itself
    assert np.array_equal(read_arrays(tmp_path / "out.npz")["actions"], rows["actions"][:, ::-1])


def test_each_ending_has_a_writer_here():
    assert {Path(name).suffix for name in WRITERS} == set(READERS)


@pytest.mark.slow
def test_the_command_says_one_line(rows, tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "data.convert", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    np.save(tmp_path / "dict.npy", rows)
    done = run(tmp_path / "dict.npy", tmp_path / "out.npz", "--allow-pickle")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"[DATA] {tmp_path / 'dict.npy'}: {ROWS} rows of obs, ")
    assert len(done.stdout.splitlines()) == 1
    assert_same(read_arrays(tmp_path / "out.npz"), rows)
    done = run(tmp_path / "dict.npy", tmp_path / "no.npz")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "no.npz").exists()
    text = " ".join(run("--help").stdout.replace("│", " ").split())
    assert "A pickle can run any code on this machine" in text
