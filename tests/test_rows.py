"""Rows that follow one another in time are episodes: found, split and trained on as those of a trajectory file."""

from dataclasses import replace

import numpy as np
import pytest

from data import DataError, load
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import load_samples, load_transitions, samples_of_episodes, samples_of_rows
from data.flat import read_flat
from data.flatten import Args, flatten
from data.trajectories import save_arrays
from envs import Rules

RULES = Rules(height=6, width=6, blocks=3, hares=2)


@pytest.fixture(scope="module")
def played():
    """The trajectory file, and the same as rows: an episode as hunter 0 sees it, as hunter 1 sees it, .."""
    args = Args("", rows=900, seed=5, all_observers=True, rules=RULES)
    return collect(CollectArgs(samples=900, seed=5, rules=RULES)), flatten(args)


def own_actions(rows):
    return rows["actions"][np.arange(len(rows["obs"])), rows["observer"]]


def bare(rows, *keys):
    """States and the observer's own actions, and what `keys` name."""
    return {"states": rows["obs"], "actions": own_actions(rows)} | {key: rows[key] for key in keys}


def by_hunter(samples):
    """Its columns, in the order of episodes, hunters and ticks."""
    order = np.lexsort((samples.ticks, samples.seats, samples.episodes))
    columns = {key: getattr(samples, key)[order] for key in ("actions", "ticks", "episodes", "seats")}
    columns["frames"] = samples.frames[samples.rows[order]]
    columns["boards"] = samples.boards[samples.board[order]]
    split = np.empty(len(samples), "<U5")
    for name in ("train", "val", "test"):
        split[samples.splits[name]] = name
    return columns | {"split": split[order]}


def shuffled(rows, seed=0):
    order = np.random.default_rng(seed).permutation(len(rows["actions"]))
    return {key: array[order] for key, array in rows.items()}


# ---- the rows of a game are its episodes


def forms(rows):
    """The same rows as different programs would have written them."""
    last = np.append(rows["times"][1:] == 0, True)
    tick_by_tick = np.lexsort((rows["observer"], rows["times"], np.cumsum(start_of_episode(rows))))
    return {
        "all keys": rows,
        "no observer": bare(rows, "times"),
        "no times": bare(rows, "observer"),
        "boards alone": bare(rows),
        "dones": bare(rows) | {"dones": last},
        "an end each": bare(rows) | {"terminals": last & (own_actions(rows) > 4), "timeouts": last},
        "next_obs": bare(rows) | {"next_states": rows["next_obs"]},
        "tick by tick": {key: array[tick_by_tick] for key, array in rows.items()},
        "channels first": bare(rows, "times") | {"states": np.moveaxis(rows["obs"], -1, 1)},
    }


def start_of_episode(rows):
    first = (rows["times"] == 0) & (rows["observer"] == 0)
    return first


FORMS = ["all keys", "no observer", "no times", "boards alone", "dones", "an end each", "next_obs"]
FORMS += ["tick by tick", "channels first"]


@pytest.mark.parametrize("form", FORMS)
def test_rows_give_the_samples_of_the_trajectory_file(form, played):
    """The same frames, actions, ticks, episodes, hunters, boards and split."""
    trajectories, rows = played
    layout = "hop-first" if form == "channels first" else "auto"
    samples = samples_of_rows(forms(rows)[form], "x.npz", layout, split=True)
    assert samples.has_episodes and samples.trajectories is None
    assert samples.split_law == "80/10/10 by episode" and (np.diff(samples.episodes) >= 0).all()
    found, expected = by_hunter(samples), by_hunter(samples_of_episodes(trajectories, split=True))
    for key, column in expected.items():
        assert np.array_equal(found[key], column), key


@pytest.mark.parametrize("form", FORMS)
def test_what_was_inferred_is_a_line(form, played):
    trajectories, rows = played
    flat = read_flat(forms(rows)[form], "x.npz", "hop-first" if form == "channels first" else "hop")
    episodes = len(trajectories.episode_lengths)
    mean = trajectories.active.sum() / (4 * episodes)
    keys = {"dones": "`dones`", "an end each": "`terminals`, `timeouts`", "next_obs": "`next_obs`"}
    keys |= {"no times": "", "boards alone": "", "all keys": "`times`, `next_obs`"}
    keys["tick by tick"] = keys["all keys"]
    source = f"{keys.get(form, '`times`')} and the boards".removeprefix(" and ")
    line = f"{episodes} episodes of {4 * episodes} hunters, mean length {mean:.1f} rows, from {source}"
    assert line in flat.inferred
    counted = "ticks are counted from the start of each episode (no `times`)"
    assert (counted in flat.inferred) == ("times" not in forms(rows)[form])
    reordered = "rows of several observers tick by tick: put observer after observer"
    assert (reordered in flat.inferred) == (form == "tick by tick")


def test_one_hunter_of_each_episode_is_an_episode(played):
    trajectories, rows = played
    chosen = np.random.default_rng(1).integers(0, 4, len(trajectories.episode_lengths))
    episode = np.cumsum(start_of_episode(rows)) - 1
    kept = rows["observer"] == chosen[episode]
    samples = samples_of_rows({k: a[kept] for k, a in bare(rows, "times").items()}, "x.npz", "auto", True)
    assert np.array_equal(samples.episodes, np.unique(episode[kept], return_inverse=True)[1])
    assert np.array_equal(samples.ticks, rows["times"][kept])
    line = f"{len(chosen)} episodes, mean length {kept.sum() / len(chosen):.1f} rows, from `times` and the boards"
    assert line in samples.inferred
    assert not set(samples.episodes[samples.splits["train"]]) & set(samples.episodes[samples.splits["val"]])


def test_boards_are_shared_within_an_episode_only(played):
    _, rows = played
    samples = samples_of_rows(rows, "x.npz", "auto", True)
    seen = {}
    for sample, board in enumerate(samples.boards[samples.board]):
        key = (samples.episodes[sample], board.tobytes())
        assert seen.setdefault(key, samples.board[sample]) == samples.board[sample]
    assert len(seen) == len(samples.boards) < len(samples) / 4


# ---- what breaks an episode


def board(own, other, stag=(3, 3), hares=((0, 3),), block=(2, 0)):
    """HOP planes [4, 4, 5]."""
    found = np.zeros((4, 4, 5), np.uint8)
    for plane, cells in enumerate(([own], [other], [block], [stag], hares)):
        for cell in cells:
            if cell is not None:
                found[(*cell, plane)] = 1
    return found


HERE, NEXT = board((1, 1), (0, 0)), board((1, 2), (0, 1))
BREAKS = {
    "nothing": ({}, False),
    "stays": (dict(board=HERE), False),
    "prey that moves": (dict(board=board((1, 2), (0, 1), stag=(3, 2))), False),
    "prey caught": (dict(board=board((1, 2), None, hares=())), False),
    "a block moves": (dict(board=board((1, 2), (0, 1), block=(3, 0))), True),
    "prey appears": (dict(board=board((1, 2), (0, 1), hares=((0, 3), (0, 2)))), True),
    "the observer jumps": (dict(board=board((1, 3), (0, 1))), True),
    "a step sideways": (dict(board=board((2, 2), (0, 1))), True),
    "another hunter jumps": (dict(board=board((1, 2), (3, 1))), True),
    "the tick stands": (dict(tick=0), True),
    "the tick jumps": (dict(tick=2), True),
    "another observer": (dict(observer=1), True),
    "done": (dict(done=True), True),
    "truncated": (dict(truncated=True), True),
    "another next_obs": (dict(next_obs=board((1, 0), (0, 1))), True),
}


@pytest.mark.parametrize("name", BREAKS)
def test_rows_that_do_not_follow_break_an_episode(name):
    """The second row of five; the others follow one another."""
    change, breaks = BREAKS[name]
    second = change.get("board", NEXT)
    rows = {
        "obs": np.stack([HERE, second, second, second, second]),
        "actions": np.full(5, 4),
        "times": np.append(0, change.get("tick", 1) + np.arange(4)),
        "observer": np.append(0, np.full(4, change.get("observer", 0))),
        "dones": np.array([change.get("done", False), False, False, False, True]),
        "truncated": np.array([change.get("truncated", False), False, False, False, False]),
    }
    rows["next_observations"] = np.stack([change.get("next_obs", second), second, second, second, second])
    samples = samples_of_rows(rows, "x.npz", "auto", split=False)
    assert samples.episodes.tolist() == [0, *[int(breaks)] * 4] and samples.has_episodes


def test_shuffled_rows_are_recognised(played):
    _, rows = played
    for keys in ((), ("times",), ("times", "observer")):
        samples = samples_of_rows(shuffled(bare(rows, *keys)), "x.npz", "auto", split=True)
        assert not samples.has_episodes and samples.split_law == "80/10/10 by contiguous blocks"
        assert len(np.unique(samples.episodes)) == len(samples)
        why = [line for line in samples.inferred if line.startswith("rows look shuffled: ")]
        by = "`times` and the boards" if keys else "the boards"
        assert len(why) == 1 and why[0].endswith(f"of 900 follow the row before them, judged by {by}")
        assert ("tick 0 everywhere (no `times`)" in samples.inferred) == (not keys)
        assert (samples.ticks > 0).any() == bool(keys)


def test_views_of_one_board_stay_in_one_split():
    """Drawn observers: views are short, and the split is by what may be one board."""
    args = Args("", rows=900, seed=5, rules=RULES)
    trajectories = collect(CollectArgs(samples=1, steps=900, seed=5, rules=RULES))
    samples = samples_of_rows(flatten(args), "x.npz", "auto", split=True)
    assert samples.has_episodes and samples.episodes[-1] > 3 * trajectories.episode[899]
    parts = [set(trajectories.episode[samples.rows[index]]) for index in samples.splits.values()]
    assert sum(map(len, parts)) == trajectories.episode[899] + 1 == len(set.union(*parts))


def test_few_episodes_are_no_split(played):
    _, rows = played
    few = {key: array[np.cumsum(start_of_episode(rows)) <= 9] for key, array in rows.items()}
    samples = samples_of_rows(few, "x.npz", "auto", split=True)
    assert not samples.has_episodes and samples.split_law == "80/10/10 by contiguous blocks"
    assert "at least 10 episodes are needed to split by them: each row stands alone" in samples.inferred
    assert samples_of_rows(few, "x.npz", "auto", split=False).has_episodes


# ---- keys and forms


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_keys_order_and_dtype_do_not_matter(dtype, played, tmp_path):
    _, rows = played
    expected = samples_of_rows(bare(rows, "times"), "x.npz", "auto", split=True)
    for names in (("obs", "times"), ("states", "timesteps"), ("observations", "times")):
        arrays = {
            "actions": own_actions(rows).astype(np.float64)[:, None],
            names[1]: rows["times"].astype(np.float32),
            names[0]: rows["obs"].astype(dtype),
        }
        save_arrays(tmp_path / "x.npz", arrays)
        samples = load_samples(tmp_path / "x.npz")
        assert samples.fingerprint == expected.fingerprint
        assert all(np.array_equal(samples.splits[k], expected.splits[k]) for k in expected.splits)


@pytest.mark.parametrize("key", ["next_obs", "next_states", "next_observations"])
def test_a_world_model_reads_the_same_keys(key, played, tmp_path):
    _, rows = played
    save_arrays(tmp_path / "a.npz", rows)
    arrays = {
        "rewards": rows["rewards"].astype(np.float64),
        key: rows["next_obs"].astype(bool),
        "timesteps": rows["times"].astype(float),
        "observer": rows["observer"].astype(float),
        "actions": rows["actions"].astype(np.float32),
        "states": rows["obs"].astype(np.float32),
    }
    save_arrays(tmp_path / "b.npz", arrays)
    a, b = load_transitions(tmp_path / "a.npz"), load_transitions(tmp_path / "b.npz")
    assert a.fingerprint == b.fingerprint and len(a) == len(rows["obs"])


def test_a_world_model_pairs_no_rows_across_an_end(tmp_path):
    rows = {"obs": np.stack([HERE, NEXT, HERE, NEXT]), "actions": np.full((4, 2), 4)}
    for ends in ({}, {"dones": [0, 1, 0, 0]}, {"timeouts": [[False], [True], [False], [False]]}):
        save_arrays(tmp_path / "x.npz", rows | {key: np.array(value) for key, value in ends.items()})
        x = load_transitions(tmp_path / "x.npz", split=False)
        assert x.before.tolist() == ([0, 2] if ends else [0, 1, 2])
        assert x.ticks.tolist() == [0] * len(x)


def test_keys_that_are_not_used_are_named(played):
    _, rows = played
    arrays = rows | {
        "states": rows["obs"],
        "goal": np.zeros(3),
        "dones": np.append(rows["times"][1:] == 0, True),
    }
    for joint, unused in (
        (False, "`rewards`, `states`, `goal` are not used"),
        (True, "`states`, `goal` are not used"),
    ):
        lines = read_flat(arrays, "x.npz", joint=joint).inferred
        assert [line for line in lines if "not used" in line] == [unused]
    lines = read_flat(bare(rows, "times"), "x.npz").inferred
    assert not any("not used" in line for line in lines)


@pytest.mark.parametrize(
    ("key", "array", "says"),
    [
        ("dones", np.full(900, 2), "dones: expected True or False, found 2 at [0]"),
        ("timeouts", np.zeros(3), "timeouts: expected shape (900,), found shape (3,)"),
        ("truncated", np.full(900, np.nan), "truncated: expected True or False, found nan at [0]"),
        ("terminals", np.full(900, "x"), "terminals: expected True or False, found dtype <U1"),
        ("timesteps", np.full(900, 0.5), "timesteps: expected integers of shape (900,), found float64"),
        ("next_states", np.zeros((900, 6, 6, 5)), "next_states: expected shape (900, 6, 6, 7), as obs"),
    ],
)
def test_bad_keys_are_named_as_in_the_file(key, array, says, played):
    with pytest.raises(DataError) as caught:
        read_flat(bare(played[1]) | {key: array}, "x.npz")
    assert str(caught.value).startswith(f"x.npz: {says}")


# ---- data.flatten --all-observers


def test_all_observers_are_written_one_after_another(played):
    trajectories, rows = played
    assert len(rows["obs"]) == trajectories.active.sum()
    step = trajectories.active.nonzero()[0]
    assert np.array_equal(np.sort(rows["times"]), np.sort(trajectories.tick[step]))
    border = rows["times"][1:] != rows["times"][:-1] + 1
    assert border.sum() + 1 == 4 * len(trajectories.episode_lengths), "each hunter of each episode, unbroken"
    assert (np.diff(rows["observer"])[~border] == 0).all() and (rows["times"][1:][border] == 0).all()
    own = replace(Args("", rows=900, seed=5, all_observers=True, rules=RULES), own_actions=True)
    assert np.array_equal(flatten(own)["actions"], own_actions(rows))


# ---- other formats are answered with the command that helps


def pickled(path):
    np.save(path, np.array([{"obs": 1}, None], object))


def write_minari_folder(path):
    (path / "data").mkdir(parents=True)
    (path / "data" / "metadata.json").write_text("{}")


FORMATS = {
    "obs.npy": (lambda path: np.save(path, np.zeros(3)), "an array without a key (np.save)", ""),
    "steps.npy": (pickled, "an array without a key (np.save)", " --allow-pickle"),
    "damaged.npy": (lambda path: path.write_bytes(b"\x93NUMPY\x01"), "an array without a key (np.save)", ""),
    "rows.pt": (lambda path: path.write_bytes(b"PK"), "a PyTorch file", ""),
    "rows.PTH": (lambda path: path.write_bytes(b"\x80"), "a PyTorch file", ""),
    "rows.csv": (lambda path: path.write_text("obs,actions\n"), "a table of text", ""),
    "rows.h5": (lambda path: path.write_bytes(b"\x89HDF"), "an HDF5 file", ""),
    "my rows.hdf5": (lambda path: path.write_bytes(b"\x89HDF"), "an HDF5 file", ""),
    "hunt-v0": (write_minari_folder, "a Minari dataset", ""),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("read", [load_samples, load_transitions, load])
def test_other_formats_are_answered_with_the_command_that_helps(read, name, tmp_path, monkeypatch):
    write, found, flag = FORMATS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    out = f"{name.rsplit('.', 1)[0]}.npz"
    quote = '"' if " " in name else ""
    command = f"python -m data.convert {quote}{name}{quote} {quote}{out}{quote}{flag}"
    with pytest.raises(DataError) as caught:
        read(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: expected an .npz file, found {found}; make one of it: `{command}`")
    assert ("if you trust the file" in message) == bool(flag) and "\n" not in message


def test_pickled_arrays_are_answered_with_the_command_that_helps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", obs=np.zeros((3, 4, 4, 7)), actions=np.array([None] * 3))
    with pytest.raises(DataError) as caught:
        load_samples("x.npz")
    command = "`python -m data.convert x.npz x_plain.npz --allow-pickle`"
    found = "x.npz: actions: expected plain numbers, found pickled Python objects"
    assert str(caught.value).startswith(f"{found}; make one of it: {command}, if you trust")
