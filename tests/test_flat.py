"""Flat files of older code: rows cut from the game, in every layout and order of actions, read back as they were."""

import re

import numpy as np
import pytest

from data import DataError
from data.collect import Args, collect
from data.datasets import load_samples
from data.flat import read_flat
from data.trajectories import save_arrays
from envs import Rules
from envs.stag_hunt import legal_actions
from metrics import observers

ROWS = 5000
KINDS = ("joint actions with observer", "observer-first joint actions", "own actions")


@pytest.fixture(scope="module")
def game():
    """5,000 rows of 4x4 boards, each as a random one of four hunters sees it; some of them have left."""
    t = collect(Args(steps=8000, seed=8, rules=Rules(height=4, width=4, blocks=0)))
    rng = np.random.default_rng(0)
    step = np.sort(rng.choice(len(t.actions), ROWS, replace=False))
    observer = rng.integers(0, 4, ROWS).astype(np.int8)
    obs = t.obs[t.obs_row[step]]  # [N, A, 5, H, W]
    hop, turned = np.zeros((ROWS, 4, 4, 7), np.uint8), np.zeros((ROWS, 4), np.int8)
    for row in range(ROWS):  # the HOP layout spelt out: plane k is seat (observer + k) mod A
        for k in range(4):
            seat = (observer[row] + k) % 4
            hop[row, :, :, k] = obs[row, seat, 0]
            turned[row, k] = t.actions[step[row], seat]
        for k in range(3):
            hop[row, :, :, 4 + k] = obs[row, 0, 2 + k]
    at = np.arange(ROWS)
    return {
        "hop": hop,
        "planes": obs[at, observer],
        "joint": t.actions[step],
        "turned": turned,
        "own": t.actions[step][at, observer],
        "observer": observer,
        "times": t.tick[step],
        "active": t.active[step][at, observer],
    }


def flat_file(game, layout, kind):
    """What an older program would have written."""
    arrays = {"obs": game[layout], "times": game["times"]}
    if kind == "joint actions with observer":
        return arrays | {"actions": game["joint"], "observer": game["observer"]}
    return arrays | {"actions": game["turned" if kind == "observer-first joint actions" else "own"]}


def test_the_test_rows_differ_between_the_orders(game):
    """Most rows differ between seat order and observer-first, and between the observers: a mistake shows."""
    assert (game["joint"][:, 0] != game["own"]).mean() > 0.3
    assert (game["turned"] != game["joint"]).any(1).mean() > 0.5
    assert 0.1 < game["active"].mean() < 0.9 and game["times"].max() > 10


# ---- what is read is what was


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["hop", "planes"])
def test_planes_and_own_actions_equal_the_games(layout, kind, game):
    flat = read_flat(flat_file(game, layout, kind), "x.npz")
    assert np.array_equal(flat.planes, game["planes"]) and flat.planes.dtype == np.uint8
    assert np.array_equal(flat.actions, game["own"]) and flat.actions.dtype == np.int64
    assert np.array_equal(flat.ticks, game["times"]) and flat.ticks.dtype == np.int64
    expected = [f"layout {layout} from shape {game[layout].shape}"]
    expected += ["4 hunters from 7 channels"] * (layout == "hop")
    if kind != "own actions":
        expected += [f"joint actions in {'seat' if kind == KINDS[0] else 'observer-first'} order"]
    assert flat.inferred[:-1] == expected and flat.episodes is None
    why = "the observer changes from row to row" if kind == KINDS[0] else "rows look shuffled"
    assert flat.inferred[-1].startswith(why), "rows are missing in between, and the observer is drawn anew"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["hop", "planes"])
def test_samples_are_the_rows_with_an_observer(layout, kind, game, tmp_path):
    save_arrays(tmp_path / "x.npz", flat_file(game, layout, kind))
    samples = load_samples(tmp_path / "x.npz")
    active = game["active"]
    assert len(samples) == active.sum() and samples.trajectories is None and not samples.has_policy_probs
    assert np.array_equal(samples.frames[samples.rows], game["planes"][active])
    assert np.array_equal(samples.actions, game["own"][active])
    assert np.array_equal(samples.ticks, game["times"][active])
    assert (samples.strategies == -1).all() and samples.strategy_names == []
    assert samples.inferred[-1] == f"{(~active).sum()} rows without the observer left out"
    assert not any("illegal" in line for line in samples.inferred), "what was recorded had happened"


def test_every_layout_gives_the_same_samples(game, tmp_path):
    found = set()
    for layout in ("hop", "planes"):
        for kind in KINDS:
            save_arrays(tmp_path / "x.npz", flat_file(game, layout, kind))
            found.add(load_samples(tmp_path / "x.npz").fingerprint)
    assert len(found) == 1
    for key in ("actions", "times", "obs"):
        arrays = flat_file(game, "planes", "own actions")
        arrays[key] = arrays[key].copy()
        at = (7, 1, 2, 2) if key == "obs" else 7  # one cell of OTHERS
        arrays[key][at] = 1 - arrays[key][at] if key == "obs" else (arrays[key][at] + 1) % 7
        save_arrays(tmp_path / "x.npz", arrays)
        found.add(load_samples(tmp_path / "x.npz").fingerprint)
    assert len(found) == 4


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32, np.float64])
def test_states_may_have_any_numeric_dtype(dtype, game):
    arrays = flat_file(game, "hop", "own actions")
    arrays["states"] = arrays.pop("obs").astype(dtype)
    flat = read_flat(arrays, "x.npz")
    assert np.array_equal(flat.planes, game["planes"]) and flat.planes.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_actions_may_have_any_integer_dtype(dtype, game):
    arrays = flat_file(game, "hop", KINDS[0])
    arrays |= {key: arrays[key].astype(dtype) for key in ("actions", "observer", "times")}
    flat = read_flat(arrays, "x.npz")
    assert np.array_equal(flat.actions, game["own"]) and np.array_equal(flat.ticks, game["times"])


def test_without_times_the_tick_is_0(game):
    flat = read_flat({"obs": game["hop"], "actions": game["own"]}, "x.npz")
    assert (flat.ticks == 0).all() and flat.ticks.shape == (ROWS,)
    assert flat.inferred[-1] == "tick 0 everywhere (no `times`)"


def test_a_given_layout_is_not_inferred(game):
    for layout in ("hop", "planes"):
        flat = read_flat(flat_file(game, layout, "own actions"), "x.npz", layout)
        assert np.array_equal(flat.planes, game["planes"]) and not any(
            "layout" in line for line in flat.inferred
        )


def test_illegal_actions_count_as_stay_and_are_counted(game, tmp_path):
    """A recorder that wrote what was asked for: a random action instead, which may bump or hunt in vain."""
    rng = np.random.default_rng(1)
    asked = rng.integers(0, 7, ROWS)
    save_arrays(tmp_path / "x.npz", {"obs": game["hop"], "actions": asked, "times": game["times"]})
    samples = load_samples(tmp_path / "x.npz")
    expected, illegal = [], 0
    for row in np.flatnonzero(game["active"]):
        own, _, _, stags, hares = game["planes"][row]
        (r, c), action = np.argwhere(own)[0], asked[row]
        moves = {0: r > 0, 1: r < 3, 2: c > 0, 3: c < 3, 4: True, 5: stags[r, c] == 1, 6: hares[r, c] == 1}
        expected.append(action if moves[action] else 4)
        illegal += not moves[action]
    assert samples.actions.tolist() == expected and illegal > 500
    assert samples.inferred[-1] == f"{illegal} illegal actions count as STAY"
    assert samples.inferred[-2] == f"{(~game['active']).sum()} rows without the observer left out"
    assert legal_actions(samples.frames[samples.rows])[np.arange(len(samples)), samples.actions].all()


def test_the_split_is_by_contiguous_blocks(game, tmp_path):
    save_arrays(tmp_path / "x.npz", flat_file(game, "hop", "own actions"))
    samples = load_samples(tmp_path / "x.npz")
    n = len(samples)
    cuts = [0, n - 2 * (n // 10), n - n // 10, n]
    for name, first, last in zip(("train", "val", "test"), cuts, cuts[1:], strict=False):
        assert samples.splits[name].tolist() == list(range(first, last))
    whole = load_samples(tmp_path / "x.npz", split=False)
    assert list(whole.splits) == ["all"] and len(whole.splits["all"]) == n
    uniform = observers.predictions(samples, samples.splits["val"], observers.training_table(samples))
    assert list(uniform) == ["uniform"]
    legal = legal_actions(samples.frames[samples.rows[samples.splits["val"]]])
    np.testing.assert_allclose(uniform["uniform"], legal / legal.sum(1, keepdims=True), atol=1e-7)


@pytest.mark.parametrize("seats", [1, 2, 3, 6])
def test_other_numbers_of_hunters_are_read(seats):
    t = collect(Args(samples=300, rules=Rules(hunters=seats, height=5, width=5, blocks=2)))
    obs, rng = t.obs[t.obs_row], np.random.default_rng(0)
    observer = rng.integers(0, seats, len(obs))
    order = (observer[:, None] + np.arange(seats)) % seats
    own = obs[np.arange(len(obs))[:, None], order, 0]  # [N, A, H, W], observer first
    hop = np.moveaxis(np.concatenate([own, obs[:, 0, 2:]], 1), 1, -1)
    arrays = {"obs": hop, "actions": t.actions, "observer": observer}
    flat = read_flat(arrays, "x.npz", "hop" if seats <= 2 else "auto")
    assert np.array_equal(flat.planes, obs[np.arange(len(obs)), observer])
    assert np.array_equal(flat.actions, t.actions[np.arange(len(obs)), observer])


# ---- layouts


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((20, 4, 4, 7), "hop"),
        ((20, 8, 8, 7), "hop"),
        ((20, 4, 4, 5), "hop"),
        ((20, 5, 5, 7), "hop"),
        ((20, 5, 4, 4), "planes"),
        ((20, 5, 8, 8), "planes"),
        ((20, 5, 7, 7), "planes"),
        ((20, 5, 5, 5), None),  # both
        ((20, 4, 5, 7), None),  # a board that is not square
        ((20, 5, 3, 6), None),
        ((20, 7, 4, 4), None),  # seven planes, channels first: neither
        ((20, 8, 8, 4), None),  # one hunter: told apart from no other layout, so it is to be said
    ],
)
def test_layouts_are_inferred_from_shapes(shape, layout):
    arrays = {"obs": np.zeros(shape, np.uint8), "actions": np.zeros(20, np.int64)}
    if layout:
        flat = read_flat(arrays, "x.npz")
        assert flat.inferred[0] == f"layout {layout} from shape {shape}"
        assert flat.planes.shape == (20, 5, *(shape[1:3] if layout == "hop" else shape[2:]))
    else:
        with pytest.raises(DataError) as caught:
            read_flat(arrays, "x.npz")
        assert str(caught.value).startswith(
            "x.npz: obs: expected [N, 5, H, W] or [N, H, W, A+3] with a square board, found"
        )
        assert str(shape) in str(caught.value) and "--layout planes, hop or hop-first" in str(caught.value)


def test_a_board_that_is_not_square_needs_a_layout():
    hop = np.zeros((20, 4, 5, 7), np.uint8)
    hop[:, 1, 2, 0] = 1
    assert read_flat({"obs": hop, "actions": np.zeros(20, int)}, "x.npz", "hop").planes[:, 0, 1, 2].all()
    planes = np.zeros((20, 5, 3, 6), np.uint8)
    assert (
        read_flat({"obs": planes, "actions": np.zeros(20, int)}, "x.npz", "planes").planes.shape
        == planes.shape
    )


# ---- what is refused

N = 12
GOOD = {
    "obs": np.zeros((N, 4, 4, 7), np.uint8),
    "actions": np.full((N, 4), 4),
    "observer": np.zeros(N, np.int64),
}
GOOD["obs"][:, 2, 2, 0] = 1
GOOD["times"] = np.arange(N)


def value(key, at, what, dtype=None):
    array = GOOD[key].astype(dtype or GOOD[key].dtype)
    array[at] = what
    return {key: array}


REFUSED = {
    "no obs": (
        {"obs": None},
        "obs: expected an array `obs`, `states` or `observations`, found no such key (keys: actions, observer, times)",
    ),
    "no actions": (
        {"actions": None},
        "actions: expected an array of actions, found no such key (keys: obs, observer, times)",
    ),
    "obs of rank 3": (
        {"obs": GOOD["obs"][..., 0]},
        "obs: expected 4 dimensions, [N, C, H, W] or [N, H, W, C], found shape",
    ),
    "obs of rank 5": ({"obs": GOOD["obs"][None]}, "obs: expected 4 dimensions"),
    "obs of text": ({"obs": GOOD["obs"].astype(str)}, "obs: expected numbers, found dtype <U"),
    "obs complex": ({"obs": GOOD["obs"].astype(complex)}, "obs: expected numbers, found dtype complex128"),
    "no rows": (
        {"obs": GOOD["obs"][:0], "actions": GOOD["actions"][:0]},
        "obs: expected at least one row, found zero rows",
    ),
    "no cells": ({"obs": GOOD["obs"][:, :0, :0]}, "obs: expected"),
    "a cell of 2": (value("obs", (3, 1, 1, 5), 2), "obs: expected cells of 0 or 1, found values from 0 to 2"),
    "a cell of -1": (
        value("obs", (3, 1, 1, 5), -1, np.int8),
        "obs: expected cells of 0 or 1, found values from -1 to 1",
    ),
    "a cell of 1/2": (value("obs", (3, 1, 1, 5), 0.5, float), "obs: expected cells of 0 or 1"),
    "a cell NaN": (
        value("obs", (3, 1, 1, 5), np.nan, float),
        "obs: expected cells of 0 or 1, found values from nan",
    ),
    "two SELF cells": (
        value("obs", (5, 0, 0, 0), 1),
        "obs: expected at most one cell in a SELF plane, found 2 in row 5",
    ),
    "actions short": (
        {"actions": GOOD["actions"][:-1]},
        f"actions: expected {N} rows, as in obs, found shape (11, 4)",
    ),
    "actions of rank 3": (
        {"actions": GOOD["actions"][..., None]},
        f"actions: expected {N} rows, as in obs, found shape",
    ),
    "actions of rank 0": ({"actions": np.int64(3)}, f"actions: expected {N} rows, as in obs, found shape ()"),
    "an action of 1/2": (
        value("actions", (2, 3), 0.5, float),
        "actions: expected integers, found dtype float64",
    ),
    "an action of 7": (value("actions", (2, 3), 7), "actions: expected values in 0..6, found 4 to 7"),
    "an action of -1": (value("actions", (2, 3), -1), "actions: expected values in 0..6, found -1 to 4"),
    "three columns": (
        {"actions": GOOD["actions"][:, :3]},
        f"actions: expected 4 columns, one a hunter, found shape ({N}, 3)",
    ),
    "no columns": ({"actions": GOOD["actions"][:, :0]}, "actions: expected"),
    "observer short": ({"observer": np.zeros(3, int)}, f"observer: expected shape ({N},), found shape (3,)"),
    "observer of rank 2": (
        {"observer": np.zeros((N, 1), int)},
        f"observer: expected shape ({N},), found shape ({N}, 1)",
    ),
    "observer 4": (value("observer", 0, 4), "observer: expected seats in 0..3, found 0 to 4"),
    "observer -1": (value("observer", 0, -1), "observer: expected seats in 0..3, found -1 to 0"),
    "observer 1/2": (value("observer", 0, 0.5, float), "observer: expected"),
    "observer of text": ({"observer": np.full(N, "a")}, "observer: expected"),
    "times short": ({"times": np.arange(3)}, f"times: expected integers of shape ({N},), found int64 (3,)"),
    "a time of 1/2": (
        value("times", 3, 0.5, float),
        f"times: expected integers of shape ({N},), found float64 ({N},)",
    ),
    "times negative": (value("times", 3, -2), "times: expected ticks of at least 0, found -2"),
}


def test_the_valid_file_is_read():
    assert read_flat(GOOD, "x.npz").actions.tolist() == [4] * N


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_arrays_are_refused(name):
    changes, message = REFUSED[name]
    with pytest.raises(DataError) as caught:
        read_flat({key: array for key, array in (GOOD | changes).items() if array is not None}, "x.npz")
    assert str(caught.value).startswith(f"x.npz: {message}") and len(str(caught.value).splitlines()) == 1


def test_a_layout_that_does_not_fit_is_refused():
    with pytest.raises(
        DataError, match=re.escape(f"x.npz: obs: expected [N, 5, H, W], channels first, found shape ({N}, 4")
    ):
        read_flat(GOOD, "x.npz", "planes")
    three = {"obs": np.zeros((N, 4, 4, 3), np.uint8), "actions": np.zeros(N, int)}
    with pytest.raises(
        DataError, match=re.escape("x.npz: obs: expected [N, H, W, A+3], channels last, found shape")
    ):
        read_flat(three, "x.npz", "hop")


def test_refusals_name_the_file(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **GOOD | {"obs": np.zeros_like(GOOD["obs"])})
    with pytest.raises(
        DataError, match=re.escape(f"{path}: obs: expected a SELF cell in some rows, found none")
    ):
        load_samples(path)
    np.savez(path, obs=GOOD["obs"], states=GOOD["obs"], actions=np.array([None] * N))
    with pytest.raises(
        DataError, match=re.escape(f"{path}: actions: expected plain numbers, found pickled Python objects")
    ):
        load_samples(path)
    np.savez(path, **{key: array[:9] for key, array in GOOD.items()})
    assert len(load_samples(path, split=False)) == 9
    with pytest.raises(DataError) as caught:
        load_samples(path)
    assert "9 rows" in str(caught.value) and "at least 10" in str(caught.value)
    assert str(caught.value).startswith(f"{path}: "), "the message says which file"


def test_hop_first_equals_hop_with_channels_first():
    rng = np.random.default_rng(0)
    hop = np.zeros((30, 4, 4, 7), np.uint8)
    hop[np.arange(30), rng.integers(0, 4, 30), rng.integers(0, 4, 30), 0] = 1
    arrays = {"actions": np.full(30, 4), "rewards": np.zeros(30), "next_obs": hop}
    last = read_flat({"obs": hop, **arrays}, "x.npz")
    turned = np.moveaxis(hop, -1, 1)
    first = read_flat(arrays | {"obs": turned, "next_obs": turned}, "x.npz", "hop-first")
    np.testing.assert_array_equal(first.planes, last.planes)
    assert first.inferred[-1] == "`rewards` is not used"
    with pytest.raises(
        DataError, match=r"x\.npz: times: expected ticks of at most 9999, found 1000000000000"
    ):
        read_flat({"obs": hop, **arrays, "times": np.full(30, 10**12)}, "x.npz")
