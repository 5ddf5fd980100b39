"""Trajectory files: what is refused and in which words, samples, splits, symmetries, memory, and the dataset card."""

import io
import json
import re
import runpy
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import DEFAULT_DATA, DataError, card, default_or_fresh, load
from data.collect import Args, collect
from data.datasets import load_samples
from data.npz import is_trajectory_file, read_arrays
from data.trajectories import OPTIONAL, SPEC, check, save_arrays, split_episodes, split_rows
from envs import Rules, StagHunt, State, strategy_probs
from envs.grid import symmetries
from envs.stag_hunt import legal_actions

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
SMALL = Rules(height=4, width=4, blocks=1, hares=3, horizon=10)
KEYS = (*SPEC, *OPTIONAL)


@pytest.fixture(scope="module")
def small():
    """A file's arrays: 4x4, some dozens of episodes, all optional keys. Tests copy what they change."""
    return collect(Args(samples=700, seed=2, unmasked=0.2, rules=SMALL)).arrays()


@pytest.fixture(scope="module")
def default_path():
    return default_or_fresh(DEFAULT_DATA)


def refusal(arrays_or_path, path=None) -> str:
    """The message of the DataError; it is one line and names the path first."""
    if path is not None:
        np.savez(path, **arrays_or_path)
    else:
        path = arrays_or_path
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1, message
    return message


def changed(arrays, key, at, value):
    """`arrays` with one value changed."""
    array = arrays[key].copy()
    array[at] = value
    return arrays | {key: array}


def with_metadata(arrays, **changes):
    metadata = json.loads(str(arrays["metadata"])) | changes
    return arrays | {"metadata": np.array(json.dumps({k: v for k, v in metadata.items() if v is not None}))}


def active_at(arrays):
    """A step, a hunter on the board then, and the row of `obs` before that step; not in the first episode."""
    t = check(arrays)
    step, seat = np.argwhere(t.active & (t.episode[:, None] == 2))[0]
    return int(step), int(seat), int(t.obs_row[step])


# ---- files that are not


def test_a_missing_file_is_refused(tmp_path):
    message = refusal(tmp_path / "none.npz")
    assert "no such file" in message and f"python -m data.collect --out {tmp_path / 'none.npz'}" in message


def test_a_folder_is_refused(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: expected an .npz file, found a folder"


@pytest.mark.parametrize("content", [b"", b"P", b"obs,actions\n1,2\n", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_a_file_that_is_no_npz_is_refused(content, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    message = refusal(tmp_path / "x.npz")
    assert "expected an .npz file (a zip archive), found a file that starts with" in message
    assert repr(content[:4]) in message


@pytest.mark.parametrize("how", ["compressed", "plain"])
def test_a_truncated_archive_is_refused(how, small, tmp_path):
    (save_arrays if how == "compressed" else lambda path, arrays: np.savez(path, **arrays))(
        tmp_path / "x.npz", small
    )
    whole = (tmp_path / "x.npz").read_bytes()
    cuts = {2, 3, 4, 30, 100, 1000, len(whole) // 2, len(whole) - 1, len(whole) - 22, len(whole) - 100}
    for cut in sorted(cuts | set(range(5, len(whole), len(whole) // 60))):
        (tmp_path / "x.npz").write_bytes(whole[:cut])
        assert "cut short or damaged" in refusal(tmp_path / "x.npz"), cut


@pytest.mark.parametrize("how", ["compressed", "plain"])
def test_a_corrupt_archive_is_refused(how, small, tmp_path):
    """It is refused, or it is a byte that says nothing: never another content, never another exception."""
    (save_arrays if how == "compressed" else lambda path, arrays: np.savez(path, **arrays))(
        tmp_path / "x.npz", small
    )
    whole, fingerprint = (tmp_path / "x.npz").read_bytes(), check(small).fingerprint
    rng = np.random.default_rng(0)
    directory = range(whole.index(b"PK\x01\x02"), len(whole), 2 if how == "compressed" else 5)
    refused, other = 0, {}
    for at in [*range(0, 250, 2), *rng.integers(250, len(whole), 100).tolist(), *directory]:
        damaged = bytearray(whole)
        damaged[at] ^= int(rng.integers(1, 256))
        (tmp_path / "x.npz").write_bytes(damaged)
        try:
            assert load(tmp_path / "x.npz").fingerprint == fingerprint, at
        except DataError as error:
            assert str(error).startswith(f"{tmp_path / 'x.npz'}: "), error
            refused += 1
        except Exception as error:
            other.setdefault(type(error).__name__, f"byte {at}: {error}")
    assert not other, "exceptions that are no DataError"
    assert refused > 150


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array))
    return buffer.getvalue()


def zipped(path, arrays, **members):
    """An archive of these arrays, but with the bytes `members` under some keys."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            archive.writestr(f"{key}.npy", members.get(key) or npy(array))
    return path


@pytest.mark.parametrize("key", [*KEYS, "metadata"])
def test_pickled_objects_are_refused(key, small, tmp_path):
    message = refusal(small | {key: np.array([{"a": 1}, None], object)}, tmp_path / "x.npz")
    assert f": {key}: expected plain numbers, found pickled Python objects" in message


def test_a_member_that_is_no_array_is_refused(small, tmp_path):
    assert check(read_arrays(zipped(tmp_path / "x.npz", small))).fingerprint == check(small).fingerprint
    assert ": rewards: " in refusal(zipped(tmp_path / "x.npz", small, rewards=b"3.5, 1.0"))


def test_an_array_header_larger_than_its_data_is_refused(small, tmp_path):
    """A shape of terabytes must not end in a MemoryError."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|i1", "fortran_order": False, "shape": (10**14, 4)}
    )
    refusal(zipped(tmp_path / "x.npz", small, actions=buffer.getvalue() + b"123"))


# ---- keys, dtypes, shapes


@pytest.mark.parametrize("key", SPEC)
def test_a_missing_key_is_refused(key, small, tmp_path):
    message = refusal({k: v for k, v in small.items() if k != key}, tmp_path / "x.npz")
    expected = (
        f": {key}: expected an array {SPEC[key][0]} with {SPEC[key][1]} dimensions, found no such key (keys: "
    )
    assert expected in message and "metadata" in message


def test_policy_probs_are_optional(small, tmp_path):
    save_arrays(tmp_path / "x.npz", {k: v for k, v in small.items() if k != "policy_probs"})
    t = load(tmp_path / "x.npz")
    assert (
        t.policy_probs is None
        and t.fingerprint != check(small).fingerprint
        and "policy_probs" not in t.arrays()
    )
    assert not load_samples(tmp_path / "x.npz").has_policy_probs


def test_attempted_actions_are_optional(small, tmp_path):
    save_arrays(tmp_path / "x.npz", {k: v for k, v in small.items() if k != "attempted"})
    t = load(tmp_path / "x.npz")
    assert t.attempted is None and t.fingerprint != check(small).fingerprint and "attempted" not in t.arrays()
    assert np.array_equal(check(small).attempted, small["attempted"])


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_dtype_is_refused(key, small, tmp_path):
    dtype = (SPEC | OPTIONAL)[key][0]
    for wrong in ("int64", "float64", ">i4" if dtype == "int32" else ">f4"):
        message = refusal(small | {key: small[key].astype(wrong)}, tmp_path / "x.npz")
        assert f": {key}: expected dtype {dtype}, found {np.dtype(wrong)}" in message


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_rank_is_refused(key, small, tmp_path):
    rank = small[key].ndim
    for wrong in (small[key][..., None], small[key][0], small[key].ravel()[:1].reshape(())):
        message = refusal(small | {key: wrong}, tmp_path / "x.npz")
        assert f": {key}: expected {rank} dimensions, found shape {wrong.shape}" in message


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("change", ["one short", "one more", "empty"])
def test_inconsistent_lengths_are_refused(key, change, small, tmp_path):
    array = small[key]
    other = {"one short": array[:-1], "one more": np.concatenate([array, array[-1:]]), "empty": array[:0]}[
        change
    ]
    message = refusal(small | {key: other}, tmp_path / "x.npz")
    if key != "episode_lengths":
        assert (
            f": {key}: expected shape {array.shape} (from episode_lengths and obs), found {other.shape}"
            in message
        )
    elif change == "empty":
        assert ": episode_lengths: expected at least one episode, found zero episodes" in message
    else:  # the first array that does not fit
        assert (
            f": obs: expected shape ({len(small['obs']) + (1 if change == 'one more' else -1) * (1 + array[-1])}"
            in message
        )


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("obs", "episode_lengths", "terminated")])
def test_inconsistent_numbers_of_hunters_are_refused(key, small, tmp_path):
    message = refusal(small | {key: small[key][:, :3]}, tmp_path / "x.npz")
    assert f": {key}: expected shape {small[key].shape} (from episode_lengths and obs), found " in message


def test_other_board_sizes_are_read(small, tmp_path):
    obs, probs = small["obs"], small["policy_probs"]
    assert ": actions: expected shape" in refusal(small | {"obs": obs[:, :3]}, tmp_path / "x.npz")
    assert f": obs: expected shape {obs.shape}" in refusal(small | {"obs": obs[:, :, :4]}, tmp_path / "x.npz")
    assert ": policy_probs: expected shape" in refusal(
        small | {"policy_probs": probs[..., :6]}, tmp_path / "x.npz"
    )
    assert ": policy_probs: expected shape" in refusal(
        small | {"policy_probs": probs[:, :, :1]}, tmp_path / "x.npz"
    )
    three = with_metadata(small, strategies=["NS", "NH", "X"], priors=[0.25, 0.25, 0.5])
    assert ": policy_probs: expected shape" in refusal(three, tmp_path / "x.npz")
    no_board = {k: small[k][:, :0] if small[k].ndim > 1 else small[k] for k in KEYS} | {
        "metadata": small["metadata"]
    }
    assert ": active: expected at least one active sample, found none" in refusal(
        no_board, tmp_path / "x.npz"
    )
    refusal(small | {"obs": obs[..., :0]}, tmp_path / "x.npz")


@pytest.mark.parametrize("value", [0, -1, -(2**31)])
def test_an_episode_length_below_one_is_refused(value, small, tmp_path):
    message = refusal(changed(small, "episode_lengths", 3, value), tmp_path / "x.npz")
    assert f": episode_lengths: expected lengths of at least 1, found {value} in episode 3" in message


def test_overflowing_lengths_are_refused(small, tmp_path):
    """Sums that wrap around to the right number in 32 bits, or to a negative one, or ask for terabytes."""
    largest = 2**31 - 1
    for lengths in ([largest] * 3, [largest, largest, 2 + len(small["actions"])], [largest]):
        wrong = np.array(lengths, np.int32)
        message = refusal(small | {"episode_lengths": wrong}, tmp_path / "x.npz")
        assert (
            f": obs: expected shape ({sum(lengths) + len(lengths)}, 4, 5, 4, 4) (from episode_lengths and obs)"
            in message
        )


# ---- values


@pytest.mark.parametrize("value", [-1, 7, 127, -128])
def test_an_action_out_of_range_is_refused(value, small, tmp_path):
    message = refusal(changed(small, "actions", (17, 2), value), tmp_path / "x.npz")
    assert f": actions: expected values in 0..6, found {value} at [17, 2]" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_refused(value, small, tmp_path):
    message = refusal(changed(small, "rewards", (5, 1), value), tmp_path / "x.npz")
    assert f": rewards: expected finite numbers, found {value} at [5, 1]" in message


@pytest.mark.parametrize("value", [2, 255])
@pytest.mark.parametrize("plane", range(5))
def test_a_cell_that_is_neither_0_nor_1_is_refused(plane, value, small, tmp_path):
    message = refusal(
        changed(small, "obs", (len(small["obs"]) - 1, 3, plane, 2, 2), value), tmp_path / "x.npz"
    )
    assert f": obs: expected cells of 0 or 1, found {value} near row " in message


def test_two_self_cells_are_refused(small, tmp_path):
    _, seat, row = active_at(small)
    free = np.argwhere(small["obs"][row, seat, 0] == 0)[0]
    message = refusal(changed(small, "obs", (row, seat, 0, *free), 1), tmp_path / "x.npz")
    assert f": obs: expected at most one cell in a SELF plane, found 2 at [{row}, {seat}]" in message


def test_active_that_contradicts_self_planes_is_refused(small, tmp_path):
    step, seat, row = active_at(small)
    message = refusal(changed(small, "active", (step, seat), False), tmp_path / "x.npz")
    assert (
        f": active: expected True exactly where the SELF plane has a cell, found False at [{step}, {seat}]"
        in message
    )
    message = refusal(changed(small, "obs", (row, seat, 0), 0), tmp_path / "x.npz")
    assert (
        f": active: expected True exactly where the SELF plane has a cell, found True at [{step}, {seat}]"
        in message
    )


def test_different_boards_of_one_step_are_refused(small, tmp_path):
    row = 5
    message = refusal(changed(small, "obs", (row, 1, 4), 1 - small["obs"][row, 1, 4]), tmp_path / "x.npz")
    assert (
        f": obs: expected one board for all hunters of a step (BLOCKS, STAGS, HARES), found True at [{row}, 1]"
        in message
    )
    message = refusal(changed(small, "obs", (row, 2, 1), 0), tmp_path / "x.npz")
    assert (
        f": obs: expected OTHERS where the other hunters' SELF planes have a cell, found True at [{row}, 2]"
        in message
    )


def test_a_reward_for_a_hunter_that_has_left_is_refused(small, tmp_path):
    step, seat = np.argwhere(~small["active"])[0]
    message = refusal(changed(small, "rewards", (step, seat), 5.0), tmp_path / "x.npz")
    assert f": rewards: expected 0 for a hunter that has left, found 5.0 at [{step}, {seat}]" in message


def test_actions_that_are_not_effective_are_refused(small, tmp_path):
    """A step into a wall, and an action of a hunter that has left."""
    legal = legal_actions(small["obs"][check(small).obs_row])
    for step, seat in (np.argwhere(~legal[..., 0] & small["active"])[0], np.argwhere(~small["active"])[0]):
        message = refusal(changed(small, "actions", (step, seat), 0), tmp_path / "x.npz")
        expected = "effective actions: legal ones, STAY once a hunter has left"
        assert f": actions: expected {expected}, found 0 at [{step}, {seat}]" in message


@pytest.mark.parametrize("value", [-1, 7, 127, -128])
def test_an_attempted_action_out_of_range_is_refused(value, small, tmp_path):
    message = refusal(changed(small, "attempted", (17, 2), value), tmp_path / "x.npz")
    assert f": attempted: expected values in 0..6, found {value} at [17, 2]" in message


def test_attempted_actions_that_contradict_actions_are_refused(small, tmp_path):
    """Another legal one; an illegal one where the hunter did not stay; and anything of a hunter that has left."""
    t, legal = check(small), legal_actions(small["obs"][check(small).obs_row])
    expected = "the action in `actions`, or an illegal one where `actions` is STAY"
    moved = t.active & (t.actions < 4)
    for action in range(7):
        step, seat = np.argwhere(moved & (t.actions != action))[0]
        message = refusal(changed(small, "attempted", (step, seat), action), tmp_path / "x.npz")
        assert message.endswith(f": attempted: expected {expected}, found {action} at [{step}, {seat}]")
    step, seat = np.argwhere(t.active & (t.actions == 4) & legal[..., 0])[0]
    message = refusal(changed(small, "attempted", (step, seat), 0), tmp_path / "x.npz")
    assert message.endswith(f": attempted: expected {expected}, found 0 at [{step}, {seat}]")
    step, seat = np.argwhere(t.active & (t.actions == 4) & ~legal[..., 6])[0]
    check(changed(small, "attempted", (step, seat), 6))  # an illegal one is what STAY may come from
    step, seat = np.argwhere(~t.active)[0]
    message = refusal(changed(small, "attempted", (step, seat), 6), tmp_path / "x.npz")
    assert message.endswith(f": attempted: expected STAY once a hunter has left, found 6 at [{step}, {seat}]")


def test_bad_values_in_a_late_chunk_are_found(default_path):
    """Checks go by chunks: the row that is named is the row of the file."""
    arrays = load(default_path).arrays()
    t = check(arrays)
    step = int(np.flatnonzero(t.active[:, 1])[-1])
    arrays["active"][step, 1] = False
    said = f"active: expected True exactly where the SELF plane has a cell, found False at [{step}, 1]"
    with pytest.raises(DataError, match=re.escape(said)):
        check(arrays)
    arrays["active"][step, 1] = True
    arrays["policy_probs"][step, 2, 1] = 0
    with pytest.raises(DataError, match=re.escape(f"found 0.0 at [{step}, 2, 1]")):
        check(arrays)
    arrays["obs"][-1, 3, 0] = 1
    with pytest.raises(
        DataError, match=re.escape(f"at most one cell in a SELF plane, found 64 at [{len(t.obs) - 1}, 3]")
    ):
        check(arrays)


@pytest.mark.parametrize("value", [-1, 2, 127])
def test_a_strategy_out_of_range_is_refused(value, small, tmp_path):
    message = refusal(changed(small, "strategies", (4, 0), value), tmp_path / "x.npz")
    assert f": strategies: expected values in 0..1 (NS, NH), found {value} at [4, 0]" in message


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ([0.5, 0, 0, 0, 0, 0, 0], "0.5"),
        ([0.5, 0.51, 0, 0, 0, 0, 0], "1.00999"),
        ([0] * 7, "0.0"),
        ([np.nan, 1, 0, 0, 0, 0, 0], "nan"),
        ([np.inf, 0, 0, 0, 0, 0, 0], "inf"),
        ([1.5, -0.5, 0, 0, 0, 0, 0], "1.0"),
    ],
)
def test_policy_probs_that_are_no_probabilities_are_refused(row, found, small, tmp_path):
    message = refusal(changed(small, "policy_probs", (9, 3, 1), row), tmp_path / "x.npz")
    assert f": policy_probs: expected rows of probabilities that sum to 1, found {found}" in message
    assert "at [9, 3, 1]" in message


def test_a_file_without_active_samples_is_refused(small, tmp_path):
    obs = small["obs"].copy()
    obs[:, :, :2] = 0
    nobody = {
        "obs": obs,
        "rewards": np.zeros_like(small["rewards"]),
        "active": np.zeros_like(small["active"]),
        "actions": np.full_like(small["actions"], 4),
        "attempted": np.full_like(small["actions"], 4),
    }
    message = refusal(small | nobody, tmp_path / "x.npz")
    assert ": active: expected at least one active sample, found none" in message


# ---- metadata


def test_a_file_without_metadata_is_refused(small, tmp_path):
    message = refusal({k: v for k, v in small.items() if k != "metadata"}, tmp_path / "x.npz")
    assert ": metadata: expected a JSON string, found no such key" in message


@pytest.mark.parametrize("text", ["", "{", "strategies: NS", "{'strategies': ['NS', 'NH']}"])
def test_metadata_that_is_not_json_is_refused(text, small, tmp_path):
    message = refusal(small | {"metadata": np.array(text)}, tmp_path / "x.npz")
    assert ": metadata: expected a JSON string, found text that is not JSON" in message


@pytest.mark.parametrize(
    "text", ["[1, 2]", "null", "3", '"NS"', "{}", '{"strategies": ["NS", "NH"]}', '{"priors": [0.5, 0.5]}']
)
def test_metadata_without_strategies_is_refused(text, small, tmp_path):
    message = refusal(small | {"metadata": np.array(text)}, tmp_path / "x.npz")
    assert ": metadata: expected `strategies` and `priors`, lists of one length, found " in message


@pytest.mark.parametrize(
    "changes",
    [
        dict(strategies=[]),
        dict(strategies="NS"),
        dict(strategies=[1, 2]),
        dict(strategies=["NS"]),
        dict(priors=[0.5]),
        dict(priors=None),
        dict(priors=["a", "b"]),
        dict(priors=[float("nan"), 0.5]),
        dict(priors=[-1, 2]),
        dict(priors=[1, 1]),
    ],
)
def test_invalid_strategies_and_priors_are_refused(changes, small, tmp_path):
    """Names are strings, priors are probabilities that sum to 1: the observers compute with them."""
    assert ": metadata: expected " in refusal(with_metadata(small, **changes), tmp_path / "x.npz")


# ---- splits


@pytest.mark.parametrize("cut", [split_episodes, split_rows])
def test_splits_are_80_10_10(cut):
    for n in (10, 11, 19, 20, 101, 3106):
        parts = cut(n)
        assert list(parts) == ["train", "val", "test"]
        assert len(parts["val"]) == len(parts["test"]) == n // 10
        assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(n))
        assert all((np.diff(part) > 0).all() for part in parts.values())


def test_splits_of_episodes_are_seeded_and_of_rows_contiguous():
    a, b, c = split_episodes(200), split_episodes(200, 0), split_episodes(200, 1)
    assert all(np.array_equal(a[name], b[name]) for name in a) and not np.array_equal(a["test"], c["test"])
    assert not np.array_equal(a["train"], np.arange(160))
    assert split_rows(25)["val"].tolist() == [21, 22] and split_rows(25)["test"].tolist() == [23, 24]


@pytest.mark.parametrize("episodes", [1, 9])
def test_too_few_episodes_to_split_are_refused(episodes, tmp_path):
    t = collect(Args(steps=episodes * 2, rules=Rules(hunters=1, horizon=2)))
    assert len(t.terminated) == episodes
    save_arrays(tmp_path / "x.npz", t.arrays())
    with pytest.raises(DataError) as caught:
        load_samples(tmp_path / "x.npz")
    assert f"{episodes} episodes" in str(caught.value) and "at least 10" in str(caught.value)
    assert len(load_samples(tmp_path / "x.npz", split=False)) == t.active.sum(), (
        "judged whole, it needs no split"
    )
    assert str(caught.value).startswith(f"{tmp_path / 'x.npz'}: "), "the message says which file"


def test_a_split_without_active_samples_is_refused(small, tmp_path):
    """The last tenth of the episodes, as they are shuffled, with nobody on the board."""
    t = check(small)
    empty = np.isin(t.episode, split_episodes(len(t.terminated))["test"])
    obs, active, actions, rewards = t.obs.copy(), t.active.copy(), t.actions.copy(), t.rewards.copy()
    obs[t.obs_row[empty], :, :2], active[empty], actions[empty], rewards[empty] = 0, False, 4, 0
    arrays = {"obs": obs, "active": active, "actions": actions, "attempted": actions, "rewards": rewards}
    save_arrays(tmp_path / "x.npz", small | arrays)
    load(tmp_path / "x.npz")
    with pytest.raises(
        DataError, match=re.escape(f"{tmp_path / 'x.npz'}: active: the test split has no active sample")
    ):
        load_samples(tmp_path / "x.npz")


# ---- samples


def test_samples_are_the_active_rows(small, tmp_path):
    save_arrays(tmp_path / "x.npz", small)
    t, samples = load(tmp_path / "x.npz"), load_samples(tmp_path / "x.npz")
    splits = {
        e: name for name, episodes in split_episodes(len(t.terminated)).items() for e in episodes.tolist()
    }
    of = {int(i): name for name in ("train", "val", "test") for i in samples.splits[name]}
    frames = samples.frames[samples.rows]
    assert samples.frames.shape == (t.obs.shape[0] * t.obs.shape[1], *t.obs.shape[2:])
    i = step = row = 0
    for episode, length in enumerate(t.episode_lengths.tolist()):
        for tick in range(length):
            for seat in np.flatnonzero(t.active[step]):
                assert np.array_equal(frames[i], t.obs[row, seat])
                assert samples.actions[i] == t.actions[step, seat] and samples.ticks[i] == tick
                assert samples.strategies[i] == t.strategies[episode, seat] and of.pop(i) == splits[episode]
                i += 1
            step, row = step + 1, row + 1
        row += 1
    assert i == len(samples) == t.active.sum() and not of
    assert samples.splits["all"].tolist() == list(range(i)) and samples.inferred == []
    assert (
        samples.fingerprint == t.fingerprint
        and samples.strategy_names == ["NS", "NH"]
        and samples.has_policy_probs
    )
    assert len(samples.trajectories.obs) == 0 and samples.trajectories.fingerprint == t.fingerprint
    assert samples.actions.dtype == samples.rows.dtype == samples.ticks.dtype == np.int64


def test_each_board_is_stored_once(tmp_path):
    """Two episodes by hand, 1x5, one hunter that stays: a block moves, then a hare; an episode never shares a board."""
    blocks, hares = (
        [4, 3, 3, 3, 3, 3],
        [2, 2, 1, 1, 1, 1],
    )  # the first episode's three steps and end, the second's step and end
    obs = np.zeros((6, 1, 5, 1, 5), np.uint8)
    obs[:, 0, 0, 0, 0] = 1
    obs[np.arange(6), 0, 2, 0, blocks] = obs[np.arange(6), 0, 4, 0, hares] = 1
    arrays = dict(obs=obs, actions=np.full((4, 1), 4, np.int8), rewards=np.zeros((4, 1), np.float32))
    arrays |= dict(
        active=np.ones((4, 1), bool), episode_lengths=np.array([3, 1], np.int32), terminated=np.zeros(2, bool)
    )
    arrays |= dict(
        strategies=np.zeros((2, 1), np.int8), metadata=np.array('{"strategies": ["NS"], "priors": [1.0]}')
    )
    save_arrays(tmp_path / "x.npz", arrays)
    samples = load_samples(tmp_path / "x.npz", split=False)
    assert samples.board.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(samples.boards, obs[[0, 1, 2, 4], 0, 2:])


def test_the_fingerprint_depends_on_every_array(small):
    t = check(small)
    assert check(dict(reversed(small.items()))).fingerprint == t.fingerprint
    for key in KEYS:
        other = check(small)
        array = small[key].copy()
        array.flat[-1] = not array.flat[-1] if array.dtype == bool else array.flat[-1] + 1
        setattr(other, key, array)
        assert other.fingerprint != t.fingerprint, key


def test_trajectory_files_are_told_from_flat_files(small):
    assert is_trajectory_file(small) and not is_trajectory_file({"obs": 0, "actions": 0, "times": 0})


@pytest.mark.parametrize(
    "rules", [Rules(), SMALL, Rules(height=3, width=6, blocks=4), Rules(hunters=1, hares=0)], ids=str
)
def test_legal_actions_of_planes_equal_the_cores(rules):
    """Read off the planes alone, and equal to what the game allows."""
    env = StagHunt(64, rules)
    env.reset(seed=3)
    rng, legal = np.random.default_rng(0), env.legal_actions()
    for _ in range(12):
        planes, on_board = env.obs.copy(), env.active & ~env.ended[:, None]
        assert np.array_equal(legal_actions(planes)[on_board], env.legal_actions()[on_board])
        env.step(rng.integers(0, 7, (64, rules.hunters)))
    one = legal_actions(planes[5, 0])
    assert one.shape == (7,) and np.array_equal(one, legal_actions(planes)[5, 0]) and legal.any()


# ---- symmetries


@pytest.mark.parametrize(("height", "width", "count"), [(8, 8, 8), (4, 4, 8), (3, 5, 4), (2, 7, 4)])
def test_symmetries_are_a_group(height, width, count):
    cells, actions = symmetries(height, width)
    assert cells.shape == (count, height * width) and actions.shape == (count, 7)
    assert cells[0].tolist() == list(range(height * width)) and actions[0].tolist() == list(range(7))
    assert (actions[:, 4:] == [4, 5, 6]).all(), "STAY and hunts stay what they are"
    known = {(tuple(c), tuple(a)) for c, a in zip(cells.tolist(), actions.tolist(), strict=True)}
    assert len(known) == len({c for c, _ in known}) == count
    for g in range(count):
        assert sorted(cells[g]) == list(range(height * width)) and sorted(actions[g]) == list(range(7))
        for h in range(count):  # first g, then h: planes[cells[g]][cells[h]], and an action a becomes h(g(a))
            assert (tuple(cells[g][cells[h]].tolist()), tuple(actions[h][actions[g]].tolist())) in known


def moved(state: State, cells: np.ndarray) -> State:
    """The boards of `state` under a symmetry; cell c goes where `cells` has c."""
    to = np.append(np.argsort(cells), -1).astype(np.int16)
    copy = state[np.arange(len(state.blocks))]
    return replace(copy, blocks=state.blocks[:, cells], hunters=to[state.hunters], prey=to[state.prey])


@pytest.mark.parametrize(
    "rules", [Rules(stags=2), Rules(height=4, width=6, blocks=5, stags=2)], ids=["square", "rectangle"]
)
def test_the_game_commutes_with_symmetries(rules):
    """See, then move the planes = move the board, then see; so for legality, strategies, and a tick of play."""
    env, rng = StagHunt(80, rules), np.random.default_rng(1)
    env.reset(seed=9)
    for _ in range(4):  # into the middle of games, where hunters stand on prey and some have left
        probs = strategy_probs(env, ("NS", "NH"), 0.2)[:, :, 0]
        env.step((probs.cumsum(-1) > rng.random((*probs.shape[:2], 1))).argmax(-1))
    assert not env.active.all() and (env.legal_actions()[..., 5:]).any()
    joint = rng.integers(0, 7, (80, rules.hunters))
    for cells, actions in zip(*symmetries(rules.height, rules.width), strict=True):
        twin, before = StagHunt(80, rules), env.copy()
        twin.set_state(moved(env.state, cells))
        flat = lambda obs: obs.reshape(*obs.shape[:3], -1)  # noqa: E731
        assert np.array_equal(flat(twin.obs), flat(before.obs)[..., cells])
        back = np.argsort(actions)
        assert np.array_equal(twin.legal_actions(), before.legal_actions()[..., back])
        on_board = before.active & ~before.ended[:, None]
        assert np.array_equal(legal_actions(twin.obs)[on_board], before.legal_actions()[..., back][on_board])
        names = ("NS", "NH", "RANDOM")
        expected = strategy_probs(before, names, 0.1)[..., back]
        np.testing.assert_allclose(strategy_probs(twin, names, 0.1), expected, rtol=0, atol=1e-12)
        _, rewards, *ends = before.step(joint)
        _, twin_rewards, *twin_ends = twin.step(actions[joint])
        assert np.array_equal(twin_rewards, rewards) and np.array_equal(twin_ends, ends)
        assert np.array_equal(flat(twin.obs), flat(before.obs)[..., cells])
        assert np.array_equal(twin.effective_actions, actions[before.effective_actions])


def test_a_symmetry_by_hand():
    """The board flipped left to right: the hunter in the left corner stands in the right one, and RIGHT becomes LEFT."""
    cells, actions = symmetries(2, 3)
    board = np.array([[1, 0, 0], [0, 0, 2]]).ravel()
    flipped = [g for g in range(4) if board[cells[g]].reshape(2, 3).tolist() == [[0, 0, 1], [2, 0, 0]]]
    assert len(flipped) == 1 and actions[flipped[0]].tolist() == [0, 1, 3, 2, 4, 5, 6]


# ---- imports and memory


def test_collecting_and_reading_files_need_no_torch():
    """Importing torch takes longer than collecting a small file."""
    code = "import sys, data.card, data.collect; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0


MEASURE = """
import sys, data
from data.datasets import load_samples, load_transitions
def peak():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before = peak()
found = {"load": data.load, "load_samples": load_samples, "load_transitions": load_transitions}[sys.argv[1]](sys.argv[2])
print((peak() - before) / int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from /proc, as Linux has it"
)
def test_loading_keeps_peak_memory_low(default_path, tmp_path):
    """Four times the default file, 428,116 active samples and 335 MB of arrays, loaded in a process of its own.

    VmHWM and not getrusage: `ru_maxrss` of a child starts at its parent's size.
    """
    arrays = load(default_path).arrays()
    big = {key: array if key == "metadata" else np.concatenate([array] * 4) for key, array in arrays.items()}
    np.savez(tmp_path / "big.npz", **big)
    num_bytes = str(sum(array.nbytes for array in big.values()))
    for function, limit in (("load", 1.15), ("load_samples", 1.4), ("load_transitions", 1.4)):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, function, str(tmp_path / "big.npz"), num_bytes],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert 0.99 < float(done.stdout) < limit, function
    (tmp_path / "big.npz").unlink()


# ---- the card


@pytest.mark.parametrize(
    ("section", "file"), [("numbers", DEFAULT_DATA), ("snowdrift", "data/snowdrift_4a6d_8x8.npz")]
)
def test_the_readme_holds_the_numbers_of_the_card_command(section, file):
    """The file's own hash depends on the zlib that compressed it: it is compared where the README names ours."""
    marked = re.search(rf"<!-- {section} -->\n(.*?)\n<!-- /{section} -->", README, re.S)
    shown, path = marked.group(1).splitlines(), default_or_fresh(file)
    printed = card.block(load(path), path).splitlines()
    assert len(printed) == len(shown) > 40
    for ours, theirs in zip(printed, shown, strict=True):
        if (
            not ours.startswith(("| SHA-256 of the file", "| file "))
            or f"zlib {zlib.ZLIB_RUNTIME_VERSION}" in README
        ):
            assert ours == theirs


def test_the_cards_numbers_equal_plain_counts(small, tmp_path):
    """Counted once more, in plain loops, on a small file; one that says nothing of seed and rules has a card too."""
    arrays = with_metadata(small, seed=None, rules=None, epsilon=None)
    save_arrays(tmp_path / "x.npz", arrays)
    t = load(tmp_path / "x.npz")
    text = card.block(t, tmp_path / "x.npz")
    cells = {
        row.split(" | ")[0][2:]: row[2:-2].split(" | ")[1:]
        for row in text.splitlines()
        if row.startswith("| ")
    }
    earned, samples, hunters, left, ends, step = [[], []], [0, 0], [0, 0], [0, 0], [0] * 5, 0
    for e, length in enumerate(t.episode_lengths.tolist()):
        for seat in range(4):
            s = t.strategies[e, seat]
            earned[s].append(float(t.rewards[step : step + length, seat].sum()))
            samples[s] += int(t.active[step : step + length, seat].sum())
            hunters[s] += 1
            left[s] += earned[s][-1] > 0
        ends[int((t.strategies[e] == 0).sum())] += 1
        step += length
    for s, name in enumerate(("NS", "NH")):
        mean, median = np.mean(earned[s]), np.median(earned[s])
        share = [
            f"{samples[s] / hunters[s]:.2f}",
            f"{mean:.4f}",
            f"{median:.4f}",
            f"{left[s] / hunters[s]:.2%}",
        ]
        assert cells[name] == [f"{hunters[s]:,}", f"{samples[s]:,}", *share]
    assert cells["episodes"] == [str(n) for n in ends], "the last row of that name: how many of four were NS"
    assert cells["steps"] == [f"{len(t.actions):,}"] and cells["seed"] == cells["rules"] == ["unknown"]
    gone = int((~t.active).sum())
    stays = int(((t.actions == 4) & t.active).sum())
    assert cells["STAY"][0] == f"{stays:,}" and cells["STAY"][2] == f"{stays + gone:,}"
    illegal = sum(1 for a, b in zip(t.attempted.flat, t.actions.flat, strict=True) if a != b)
    share = f"{illegal / t.active.sum():.2%}"
    assert cells["actions asked for that were not legal"] == [f"{illegal} ({share} of active samples)"]
    assert cells["unmasked"] == ["0.2"] and illegal > 20
    assert cells["HUNT_HARE"][0] == cells["HUNT_HARE"][2] == f"{(t.actions == 6).sum():,}"
    assert cells["episodes terminated"] == [f"{t.terminated.sum()} ({t.terminated.mean():.2%})"]
    assert cells["train"][0] == str(len(t.terminated) - 2 * (len(t.terminated) // 10))
    assert sum(int(cells[part][1].replace(",", "")) for part in ("train", "val", "test")) == t.active.sum()
    assert f"`{t.fingerprint}`" in text


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_card_command_prints_the_card(default_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["card"])
    runpy.run_module("data.card", run_name="__main__", alter_sys=True)
    assert capsys.readouterr().out == card.block(load(default_path), default_path) + "\n"
    monkeypatch.setattr(sys, "argv", ["card", "--data", str(tmp_path / "none.npz")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("data.card", run_name="__main__", alter_sys=True)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"error: {tmp_path / 'none.npz'}: no such file")


def test_the_readmes_examples_run(tmp_path, monkeypatch, capsys):
    """Every Python block, in order, in one folder; what a comment says is printed is printed."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    for source in blocks:
        exec(compile(source, "data/README.md", "exec"), {})
        promised = re.findall(r"^print\(.*\)  # (.*)$", source, re.M)
        assert promised and capsys.readouterr().out.splitlines() == promised
    assert {p.name for p in tmp_path.iterdir()} == {"mine.npz", "flat.npz"}
    assert len(blocks[0].strip().splitlines()) <= 5, "loading takes five lines"
