"""Joint transitions: of trajectory files and of flat files in every order and layout, against the game and by hand."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, load
from data.collect import Args, collect
from data.datasets import first_boards, load_transitions, transitions_of_episodes
from data.flat import read_flat
from data.flatten import Args as FlattenArgs
from data.flatten import flatten
from data.trajectories import save_arrays, split_episodes
from envs import Rules

GAMES = {
    "4x4": Args(steps=400, seed=4, epsilon=0.5, rules=Rules(height=4, width=4, blocks=0, horizon=9)),
    "ends early": Args(
        steps=300, seed=5, rules=Rules(height=4, width=6, blocks=3, end_after_first_hunt=1, horizon=5)
    ),
    "one hunter, prey moves": Args(
        steps=200, rules=Rules(hunters=1, height=5, width=5, hares=2, prey_moves=0.5)
    ),
    "unmasked": Args(steps=300, seed=6, unmasked=0.5, rules=Rules(height=4, width=4, blocks=2, horizon=9)),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks a file, the last of them cut."""
    monkeypatch.setattr("data.datasets.CHUNK", 7)
    monkeypatch.setattr("data.trajectories.CHUNK", 7)


def joint_of(t):
    """The joint states of a trajectory file, spelt out."""
    return np.array([[*(planes[0] for planes in row), *row[0, 2:]] for row in t.obs])


# ---- trajectory files


@pytest.mark.parametrize("name", GAMES)
def test_every_step_of_a_trajectory_file_is_a_transition(name, tmp_path):
    t = collect(GAMES[name])
    save_arrays(tmp_path / "x.npz", t.arrays())
    x = load_transitions(tmp_path / "x.npz")
    states = joint_of(t)
    assert (
        np.array_equal(x.states, states)
        and x.states.dtype == np.uint8
        and x.states.shape[1] == t.obs.shape[1] + 3
    )
    row = step = 0
    ended = 0
    for episode, length in enumerate(t.episode_lengths):
        for tick in range(length):
            assert (x.before[step], x.after[step], x.ticks[step], x.episodes[step]) == (
                row,
                row + 1,
                tick,
                episode,
            )
            terminated = tick == length - 1 and t.terminated[episode]
            by_rule = name == "ends early" and terminated and states[row + 1, :-3].any()
            np.testing.assert_array_equal(x.ends[step], np.nan if by_rule else float(terminated))
            ended, row, step = ended + terminated, row + 1, step + 1
        row += 1
    assert step == len(x) == len(x.actions) and 0 < ended == t.terminated.sum() < len(t.terminated), (
        "some are truncated"
    )
    assert (
        np.array_equal(x.actions, t.attempted if name == "unmasked" else t.actions)
        and x.actions.dtype == np.int64
    )
    assert (x.actions != t.actions).any() == (name == "unmasked") and x.rules == GAMES[name].rules
    assert np.array_equal(x.rewards, t.rewards) and x.rewards.dtype == np.float32
    assert (
        all(a.dtype == np.int64 for a in (x.before, x.after, x.ticks, x.episodes))
        and x.ends.dtype == np.float32
    )
    assert np.isnan(x.ends).any() == (name == "ends early") and (x.ends == 1).any()
    assert x.inferred == [] and not x.observer_first and x.trajectories.path == str(tmp_path / "x.npz")
    assert x.fingerprint == load(tmp_path / "x.npz").fingerprint
    assert x.split_law == "80/10/10 by episode" and x.splits["all"].tolist() == list(range(len(x)))
    for part, episodes in split_episodes(len(t.terminated)).items():
        assert x.splits[part].tolist() == [i for i in range(len(x)) if x.episodes[i] in episodes]
    assert list(load_transitions(tmp_path / "x.npz", split=False).splits) == ["all"]


def test_states_are_made_in_chunks(monkeypatch):
    """Peak memory is that of the arrays, and one chunk more."""
    monkeypatch.setattr("data.trajectories.CHUNK", 64)
    t = collect(Args(steps=5000, rules=Rules(height=10, width=10)))
    tracemalloc.start()
    x = transitions_of_episodes(t, split=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    small = sum(
        a.nbytes for a in (x.before, x.after, x.actions, x.ends, x.ticks, x.episodes, *x.splits.values())
    )
    assert peak < 1.05 * (x.states.nbytes + small) + 64 * x.states[0].nbytes * 3


def test_ends_of_a_file_without_rules_are_all_known(tmp_path):
    t = collect(GAMES["ends early"])
    t.metadata = {key: value for key, value in t.metadata.items() if key != "rules"}
    save_arrays(tmp_path / "x.npz", t.arrays())
    x = load_transitions(tmp_path / "x.npz")
    last = np.cumsum(t.episode_lengths) - 1
    assert (
        x.rules is None and np.array_equal(x.ends[last], t.terminated) and x.ends.sum() == t.terminated.sum()
    )
    t.metadata["rules"] = ["hunters"]
    save_arrays(tmp_path / "x.npz", t.arrays())
    with pytest.raises(
        DataError, match=r"metadata: expected `rules` as names and values, found \['hunters'\]"
    ):
        load_transitions(tmp_path / "x.npz")


def test_first_boards_are_those_of_the_training_episodes(tmp_path):
    """Cells of each plane in plain loops; another game and a file that judges are refused."""
    rules = Rules(hunters=3, stags=2, hares=2, blocks=3, height=5, width=6, hunters_needed=3)
    save_arrays(tmp_path / "few.npz", collect(Args(samples=900, rules=rules)).arrays())
    x = load_transitions(tmp_path / "few.npz")
    blocks, hunters, prey = first_boards(tmp_path / "few.npz", rules)
    train = x.splits["train"]
    rows = x.before[train[x.ticks[train] == 0]]
    assert len(blocks) == len(hunters) == len(prey) == len(rows) > 5
    assert (blocks.dtype, hunters.dtype, prey.dtype) == (bool, np.int64, np.int64)
    for i, state in enumerate(x.states[rows]):
        *selves, block, stags, hares = state.reshape(len(state), -1)
        assert np.array_equal(blocks[i], block == 1)
        assert hunters[i].tolist() == [plane.tolist().index(1) for plane in selves]
        assert prey[i].tolist() == [c for plane in (stags, hares) for c in range(30) if plane[c]]
    for other in (
        replace(rules, hunters=4),
        replace(rules, width=7),
        replace(rules, hares=1),
        replace(rules, stags=0),
    ):
        prey = f"{other.stags} stags and {other.hares} hares"
        expected = f"expected episodes of {other.hunters} hunters, {prey} on 5x{other.width} cells"
        with pytest.raises(DataError, match=expected):
            first_boards(tmp_path / "few.npz", other)
    with pytest.raises(DataError, match="fresh: this file is for judging only"):
        first_boards("fresh", rules)


def test_a_hunter_that_is_not_on_the_board_has_cell_k(tmp_path):
    """A flat file may start with a hunter gone."""
    save_arrays(tmp_path / "x.npz", flatten(FlattenArgs(out="", rows=40)))
    x = load_transitions(tmp_path / "x.npz", "hop")
    game = FlattenArgs(out="").rules
    with np.load(tmp_path / "x.npz") as archive:
        arrays = dict(archive)
    first = x.before[0]
    observer = int(arrays["observer"][first])
    arrays["obs"][first, :, :, 1] = 0  # the hunter in the seat after the observer's
    arrays["next_obs"][first, :, :, 1] = 0
    save_arrays(tmp_path / "x.npz", arrays)
    _, hunters, _ = first_boards(tmp_path / "x.npz", game)
    gone = (observer + 1) % game.hunters
    assert hunters[0, gone] == game.height * game.width
    assert (np.delete(hunters[0], gone) < game.height * game.width).all()


# ---- flat files of the game


def flat_of(t, observer, order="seats"):
    """A row a step as hunter `observer` [N] sees it, the HOP layout spelt out: plane k is seat (observer + k) mod A.
    order: of actions and rewards, `seats`, `observer-first`, or `own`."""
    seats, n = t.actions.shape[1], len(t.actions)
    states = joint_of(t)
    hop = np.zeros((2, n, *states.shape[2:], seats + 3), np.uint8)
    actions, rewards = t.actions.copy(), t.rewards.copy()
    for i, row in enumerate(t.obs_row):
        for k in range(seats):
            seat = (observer[i] + k) % seats
            hop[:, i, ..., k] = states[row : row + 2, seat]
            if order != "seats":
                actions[i, k], rewards[i, k] = t.actions[i, seat], t.rewards[i, seat]
        for k in range(3):
            hop[:, i, ..., seats + k] = states[row : row + 2, seats + k]
    if order == "own":
        actions, rewards = actions[:, 0], rewards[:, 0]
    return {"obs": hop[0], "actions": actions, "times": t.tick, "rewards": rewards, "next_obs": hop[1]}


@pytest.fixture(scope="module")
def game():
    """400 steps of 4x4 boards, and an observer for each."""
    t = collect(GAMES["4x4"])
    return t, np.random.default_rng(0).integers(0, 4, len(t.actions))


def load_rows(path, arrays, layout="auto", split=False):
    save_arrays(path / "flat.npz", {key: array for key, array in arrays.items() if array is not None})
    return load_transitions(path / "flat.npz", layout, split)


def same(x, t, rows=None):
    """The transitions are those of the trajectory file, at its steps `rows`."""
    rows = np.arange(len(t.actions)) if rows is None else rows
    states = joint_of(t)
    assert np.array_equal(x.states[x.before], states[t.obs_row[rows]])
    assert np.array_equal(x.states[x.after], states[t.obs_row[rows] + 1])
    assert np.array_equal(x.actions, t.actions[rows]) and np.array_equal(x.rewards, t.rewards[rows])
    assert np.array_equal(x.ticks, t.tick[rows])
    ends = states[t.obs_row[rows] + 1][:, :-3].sum((1, 2, 3)) == 0
    assert np.array_equal(x.ends, ends)


@pytest.mark.parametrize("layout", ["auto", "hop", "hop-first"])
def test_with_observers_hunters_are_in_seat_order(layout, game, tmp_path):
    t, observer = game
    arrays = flat_of(t, observer) | {"observer": observer.astype(np.int8)}
    if layout == "hop-first":
        arrays |= {key: np.moveaxis(arrays[key], -1, 1) for key in ("obs", "next_obs")}
    x = load_rows(tmp_path, arrays, layout)
    same(x, t)
    assert np.array_equal(x.episodes, t.episode), (
        "a row's next_obs is the row that follows, until the episode is over"
    )
    timeless = load_rows(tmp_path, arrays | {"times": None}, layout)
    assert np.array_equal(timeless.episodes, t.episode) and (timeless.ticks == 0).all()
    assert not x.observer_first and x.trajectories is None
    inferred = ["4 hunters from 7 channels", "joint actions in seat order"]
    if layout == "auto":
        inferred = [f"layout hop from shape {arrays['obs'].shape}", *inferred]
    assert x.inferred == inferred
    assert x.actions.dtype == np.int64 and x.rewards.dtype == np.float32 and x.states.dtype == np.uint8
    # another observer: the same content
    again = load_rows(tmp_path, flat_of(t, (observer + 1) % 4) | {"observer": (observer + 1) % 4})
    assert again.fingerprint == x.fingerprint
    assert (
        load_rows(tmp_path, arrays | {"rewards": arrays["rewards"] + 1}, layout).fingerprint != x.fingerprint
    )


@pytest.mark.parametrize("seat", [0, 2])
def test_without_observer_hunters_are_observer_first(seat, game, tmp_path):
    """Seats permuted in the game, everything permuted with them."""
    t, _ = game
    x = load_rows(tmp_path, flat_of(t, np.full(len(t.actions), seat), "observer-first"))
    order = [*np.roll(range(4), -seat), 4, 5, 6]
    assert x.observer_first and "joint actions in observer-first order" in x.inferred
    assert np.array_equal(x.states[x.before], joint_of(t)[t.obs_row][:, order])
    assert np.array_equal(x.actions, t.actions[:, order[:4]]) and np.array_equal(
        x.rewards, t.rewards[:, order[:4]]
    )


@pytest.mark.parametrize("seated", [True, False])
def test_own_actions_and_rewards_leave_the_others_unknown(seated, game, tmp_path):
    t, observer = game
    arrays = flat_of(t, observer, "own")
    x = load_rows(tmp_path, arrays | ({"observer": observer} if seated else {}))
    column, at = observer if seated else np.zeros(len(observer), int), np.arange(len(observer))
    actions, rewards = np.full((len(at), 4), -1), np.full((len(at), 4), np.nan)
    actions[at, column], rewards[at, column] = t.actions[at, observer], t.rewards[at, observer]
    assert np.array_equal(x.actions, actions) and np.array_equal(
        x.rewards, rewards.astype(np.float32), equal_nan=True
    )
    said = f"actions of the observer alone, hunters in {'seat' if seated else 'observer-first'} order"
    assert said in x.inferred and "rewards of the observer alone" in x.inferred


def test_without_rewards_they_are_nan(game, tmp_path):
    t, observer = game
    x = load_rows(tmp_path, flat_of(t, observer) | {"observer": observer, "rewards": None})
    assert np.isnan(x.rewards).all() and x.rewards.shape == t.rewards.shape and x.rewards.dtype == np.float32
    assert x.inferred[-1] == "rewards are not known (no `rewards`)"


def test_rows_pair_up_within_an_episode(game, tmp_path):
    t, observer = game
    arrays = flat_of(t, observer) | {"observer": observer, "next_obs": None}
    inner = np.flatnonzero(t.episode[:-1] == t.episode[1:])
    x = load_rows(tmp_path, arrays)
    same(x, t, inner)
    assert np.array_equal(x.states, joint_of(t)[t.obs_row]), "a row stands once"
    assert np.array_equal(x.after, x.before + 1)
    _, stretch = np.unique(t.episode[inner], return_inverse=True)
    assert np.array_equal(x.episodes, stretch)
    assert (
        x.inferred[-1]
        == f"{len(inner)} of {len(t.actions)} rows paired with the row that follows (no `next_obs`)"
    )


def test_without_times_some_episode_borders_are_missed(tmp_path):
    """It does where prey or hunters come back. The others are paired wrongly, and that is said."""
    t = collect(Args(steps=300, strategies=("RANDOM",), rules=Rules(height=5, width=5, blocks=0, horizon=3)))
    inner = t.episode[:-1] == t.episode[1:]
    arrays = flat_of(t, np.zeros(len(t.actions), int))
    x = load_rows(tmp_path, {key: arrays[key] for key in ("obs", "actions", "rewards")})
    states = joint_of(t)[t.obs_row]
    count = states.sum((2, 3))[:, [0, 1, 2, 3, 5, 6]]  # each hunter, stags, hares
    unmarked = ~inner & (count[1:] <= count[:-1]).all(1)
    assert x.before.tolist() == np.flatnonzero(inner | unmarked).tolist() and (x.ticks == 0).all()
    assert 10 < unmarked.sum() < (~inner).sum()
    far = 0
    for i in np.flatnonzero(unmarked):
        cells = [[np.argwhere(plane)[0] for plane in states[row, :4]] for row in (i, i + 1)]
        far += any(abs(a - b).sum() > 1 for a, b in zip(*cells, strict=True))
    said = f"{far} transitions move a hunter further than one cell: another episode, or another observer?"
    assert x.inferred[-1] == said and far > 10


@pytest.mark.parametrize("alone", [True, False])
def test_rows_are_split_by_episode(alone, game, tmp_path):
    """Also where each hunter's rows of an episode follow those of another: they show the same board."""
    t, observer = game
    arrays = flat_of(t, observer) | {"observer": observer}
    if not alone:  # each episode as hunter 0 sees it, then as hunter 1 does
        whole = [np.flatnonzero(t.episode == e) for e in range(len(t.episode_lengths))]
        rows = np.concatenate([np.tile(steps, 2) for steps in whole])
        observer = np.concatenate([np.repeat([0, 1], len(steps)) for steps in whole])
        arrays = {key: array[rows] for key, array in flat_of(t, np.zeros_like(t.episode)).items()}
        other = {key: array[rows] for key, array in flat_of(t, np.ones_like(t.episode)).items()}
        for key in ("obs", "next_obs"):
            arrays[key] = np.where((observer == 1)[:, None, None, None], other[key], arrays[key])
        arrays["observer"] = observer
    x = load_rows(tmp_path, arrays, split=True)
    assert x.split_law == "80/10/10 by episode"
    episode = t.episode if alone else np.repeat(np.arange(len(t.episode_lengths)), 2 * t.episode_lengths)
    found = {name: set(episode[x.splits[name]]) for name in ("train", "val", "test")}
    assert sum(map(len, found.values())) == len(t.episode_lengths), "no episode is in two"
    assert sum(len(x.splits[name]) for name in found) == len(x.splits["all"]) == len(x)


def test_no_state_is_in_two_splits_of_shuffled_rows(game, tmp_path):
    t, observer = game
    arrays = flat_of(t, observer) | {"observer": observer}
    order = np.random.default_rng(0).permutation(len(observer))
    x = load_rows(tmp_path, {key: array[order] for key, array in arrays.items()}, split=True)
    n = len(x)
    low, high = n - 2 * (n // 10), n - n // 10
    parts = {"train": range(low), "val": range(low, high), "test": range(high, n), "all": range(n)}
    assert x.split_law == "80/10/10 by contiguous blocks"
    assert {name: index.tolist() for name, index in x.splits.items()} == {
        name: list(part) for name, part in parts.items()
    }


def test_no_state_is_in_two_splits_of_one_episode(tmp_path):
    """A border falls within a stretch: a transition is in neither part."""
    rules = Rules(hunters=2, stags=0, hares=1, blocks=0, height=4, width=4, horizon=60)
    t = collect(Args(steps=60, strategies=("RANDOM",), rules=rules, seed=3))
    arrays = flat_of(t, np.zeros(len(t.actions), int))
    x = load_rows(tmp_path, {key: array for key, array in arrays.items() if key != "next_obs"}, split=True)
    n, parts = len(x), [x.splits[k] for k in ("train", "val", "test")]
    used = [{*x.before[part], *x.after[part]} for part in parts]
    assert not used[0] & used[1] and not used[1] & used[2] and not used[0] & used[2]
    cuts = [0, n - 2 * (n // 10), n - n // 10, n]
    for part, low, high in zip(parts, cuts, cuts[1:], strict=False):
        shared = high < n and x.after[high - 1] == x.before[high]
        assert part.tolist() == list(range(low, high - shared))
    assert len(x.splits["all"]) == n


# ---- by hand: two hunters, 3x3


def board(first, second, stag=(0, 0), hares=((2, 2),), block=(1, 1)):
    """HOP planes [3, 3, 5]; a cell of None is none."""
    found = np.zeros((3, 3, 5), np.uint8)
    for plane, cells in enumerate(([first], [second], [block], [stag], hares)):
        for cell in cells:
            if cell is not None:
                found[(*cell, plane)] = 1
    return found


START = board((0, 1), (0, 2))
AFTER = {
    "a step": (board((0, 0), (1, 2)), True),
    "nothing at all": (START, True),
    "a hunter left": (board(None, (0, 2), hares=()), True),
    "both left": (board(None, None, stag=None), True),
    "prey that moves": (board((0, 1), (0, 2), hares=((2, 1),)), True),
    "a block moves": (board((0, 1), (0, 2), block=(1, 0)), False),
    "a block goes": (board((0, 1), (0, 2), block=None), False),
    "a hare more": (board((0, 1), (0, 2), hares=((2, 2), (2, 1))), False),
    "a hare for a stag": (board((0, 1), (0, 2), stag=None, hares=((2, 2), (0, 0))), False),
}


@pytest.mark.parametrize("name", AFTER)
def test_rows_of_different_boards_do_not_pair_up(name, tmp_path):
    after, pairs = AFTER[name]
    arrays = {"obs": np.stack([START, START, after, after]), "actions": np.full((4, 2), 4)}
    gone = not after[..., :2].any()
    x = load_rows(tmp_path, arrays)
    assert x.before.tolist() == [0, *[1] * pairs, *[2] * (not gone)]
    assert x.ends.tolist() == [False, *[gone] * pairs, *[False] * (not gone)]
    assert x.episodes.tolist() == [0, *[0] * pairs, *[int(not pairs)] * (not gone)]
    y = load_rows(
        tmp_path, {key: array[:2] for key, array in arrays.items()} | {"next_obs": np.stack([START, after])}
    )
    assert len(y) == 1 + pairs and y.ends.tolist() == [False, gone][: len(y)]
    assert ("1 rows left out whose `next_obs` is another board" in y.inferred) == (not pairs)


def test_a_returning_hunter_or_a_tick_jump_breaks_an_episode(tmp_path):
    left = board(None, (0, 2))
    arrays = {"obs": np.stack([START, left, left, START, START]), "actions": np.full((5, 2), 4)}
    x = load_rows(tmp_path, arrays)
    assert (
        x.before.tolist() == [0, 1, 3] and x.after.tolist() == [1, 2, 4] and x.episodes.tolist() == [0, 0, 1]
    )
    for times, before, episodes in (
        ([0, 1, 2, 0, 1], [0, 1, 3], [0, 0, 1]),
        ([0, 1, 3, 0, 0], [0], [0]),
        ([0, 0, 1, 2, 3], [1, 3], [0, 1]),
        ([5, 4, 5, 6, 7], [1, 3], [0, 1]),
    ):
        x = load_rows(tmp_path, arrays | {"times": np.array(times)})
        assert (x.before.tolist(), x.episodes.tolist()) == (before, episodes)
        assert x.ticks.tolist() == [times[row] for row in before]


def test_empty_rows_are_left_out_and_illegal_actions_counted(tmp_path):
    obs = np.stack([START, board(None, (0, 2)), board(None, None), START, START])
    actions = np.array(
        [[2, 0], [6, 1], [0, 0], [5, 3], [4, 4]]
    )  # LEFT, UP off the board; gone, DOWN; ..; no stag, off
    x = load_rows(tmp_path, {"obs": obs, "actions": actions})
    assert (
        x.before.tolist() == [0, 1, 3]
        and x.episodes.tolist() == [0, 0, 1]
        and x.ends.tolist() == [False, True, False]
    )
    assert x.actions.tolist() == [[2, 0], [4, 1], [5, 3]] and x.rules is None
    assert x.inferred[-4:] == [
        "3 of 5 rows paired with the row that follows (no `next_obs`)",
        "1 rows with nobody on the board left out",
        "1 actions of hunters that have left count as STAY",
        "3 recorded actions are not legal, kept as asked for",
    ]
    own = load_rows(tmp_path, {"obs": obs, "actions": actions[:, 1], "observer": np.ones(5, int)})
    assert own.inferred[-1] == "1 recorded actions are not legal, kept as asked for"
    assert own.actions.tolist() == [[-1, 0], [-1, 4], [-1, 3]], (
        "plane 0 is seat 1 now; what is not known stays unknown"
    )


def test_illegal_actions_are_kept_as_attempted(game, tmp_path):
    """Asked for at random: nothing changes but for hunters that have left, and the illegal ones are counted."""
    t, observer = game
    asked = np.random.default_rng(2).integers(0, 7, t.actions.shape)
    x = load_rows(tmp_path, flat_of(t, observer) | {"observer": observer, "actions": asked})
    illegal = 0
    for i in range(len(asked)):
        for seat in range(4):
            planes = t.obs[t.obs_row[i], seat]
            legal = {4}
            if planes[0].any():
                (r, c) = np.argwhere(planes[0])[0]
                moves = (r > 0, r < 3, c > 0, c < 3)
                legal |= {a for a in range(4) if moves[a]} | ({5} if planes[3, r, c] else set())
                legal |= {6} if planes[4, r, c] else set()
                illegal += asked[i, seat] not in legal
            assert x.actions[i, seat] == (asked[i, seat] if planes[0].any() else 4)
    said = f"{illegal} recorded actions are not legal, kept as asked for"
    assert x.inferred[-1] == said and illegal > 100
    said = f"{(x.actions != asked).sum()} actions of hunters that have left count as STAY"
    assert x.inferred[-2] == said


# ---- boards that hypothesis draws


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_boards_are_read_back_in_seat_order(data):
    seats, h, w, n = (data.draw(st.integers(1, high)) for high in (5, 4, 4, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    joint = np.zeros((2, n, seats + 3, h, w), np.uint8)
    joint[..., seats:, :, :] = rng.integers(0, 2, (2, n, 3, h, w))
    cell = rng.integers(-1, h * w, (2, n, seats))
    for at in np.argwhere(cell >= 0):
        joint[(*at, *divmod(cell[tuple(at)], w))] = 1
    observer, actions, rewards = (
        rng.integers(0, seats, n),
        rng.integers(0, 7, (n, seats)),
        rng.normal(size=(n, seats)),
    )
    hop = np.zeros((2, n, h, w, seats + 3), np.uint8)
    for i in range(n):
        for k in range(seats + 3):
            hop[:, i, :, :, k] = joint[:, i, (observer[i] + k) % seats if k < seats else k]
    arrays = {"obs": hop[0], "next_obs": hop[1], "actions": actions, "rewards": rewards, "observer": observer}
    flat = read_flat(arrays, "x.npz", "hop", joint=True)
    assert np.array_equal(flat.joint, joint[0]) and np.array_equal(flat.next_joint, joint[1])
    assert np.array_equal(flat.joint_actions, actions) and np.array_equal(
        flat.rewards, rewards.astype(np.float32)
    )
    assert np.array_equal(flat.actions, actions[np.arange(n), observer]), "and the samples are what they were"
    assert np.array_equal(flat.planes[:, 0], joint[0, np.arange(n), observer])
    plain = read_flat(arrays, "x.npz", "hop")
    assert plain.joint is plain.next_joint is plain.joint_actions is plain.rewards is None
    assert np.array_equal(plain.planes, flat.planes) and "`rewards` is not used" in plain.inferred


# ---- what is refused

N = 24
GOOD = {
    "obs": np.stack([START] * N),
    "next_obs": np.stack([START] * N),
    "actions": np.full((N, 2), 4),
    "rewards": np.zeros((N, 2)),
    "observer": np.arange(N) % 2,
    "times": np.arange(N),
}


def value(key, at, what):
    array = GOOD[key].astype(type(what)) if isinstance(what, float) else GOOD[key].copy()
    array[at] = what
    return {key: array}


SHAPE = f"({N}, 3, 3, 5)"
FINITE = "rewards: expected finite numbers of float32, found"
REFUSED = {
    "no actions": ({"actions": None}, "actions: expected an array of actions, found no such key"),
    "an action of 7": (value("actions", (2, 1), 7), "actions: expected values in 0..6, found 4 to 7"),
    "three columns": (
        {"actions": np.zeros((N, 3), int)},
        f"actions: expected 2 columns, one a hunter, found shape ({N}, 3)",
    ),
    "actions of 1/2": ({"actions": GOOD["actions"] + 0.5}, "actions: expected integers, found dtype float64"),
    "observer 2": (value("observer", 0, 2), "observer: expected seats in 0..1, found 0 to 2"),
    "observer 2 of own actions": (
        {"actions": GOOD["actions"][:, 0], **value("observer", 0, 2)},
        "observer: expected seats in 0..1, found 0 to 2",
    ),
    "observer short": ({"observer": np.zeros(3, int)}, f"observer: expected shape ({N},), found shape (3,)"),
    "times of 1/2": (
        {"times": np.full(N, 0.5)},
        f"times: expected integers of shape ({N},), found float64 ({N},)",
    ),
    "a cell of 2": (value("obs", (3, 0, 0, 3), 2), "obs: expected cells of 0 or 1, found values from 0 to 2"),
    "two cells of the other": (
        value("obs", (4, 2, 2, 1), 1),
        "obs: expected at most one cell in the plane of a hunter, found 2 at [4, 1]",
    ),
    "next_obs of the other shape": (
        {"next_obs": np.moveaxis(GOOD["next_obs"], -1, 1)},
        f"next_obs: expected shape {SHAPE}, as obs, found shape ({N}, 5, 3, 3)",
    ),
    "next_obs short": (
        {"next_obs": GOOD["obs"][1:]},
        f"next_obs: expected shape {SHAPE}, as obs, found shape (23,",
    ),
    "next_obs of text": ({"next_obs": GOOD["obs"].astype(str)}, "next_obs: expected numbers, found dtype <U"),
    "next_obs of 1/2": (
        value("next_obs", (3, 0, 0, 3), 0.5),
        "next_obs: expected cells of 0 or 1, found values from",
    ),
    "two SELF cells after": (
        value("next_obs", (5, 2, 2, 0), 1),
        "next_obs: expected at most one cell in the plane of a hunter, found 2 at [5, 1]",
    ),
    "rewards NaN": (
        value("rewards", (3, 1), float("nan")),
        f"{FINITE} nan at [3, 1]",
    ),
    "rewards infinite": (
        value("rewards", (3, 1), 1e300),
        f"{FINITE} 1e+300 at [3, 1]",
    ),
    "rewards short": (
        {"rewards": np.zeros(N - 1)},
        f"rewards: expected shape ({N}, 2), one a hunter, or ({N},), the observer's, found shape (23,)",
    ),
    "rewards of three": (
        {"rewards": np.zeros((N, 3))},
        f"rewards: expected shape ({N}, 2), one a hunter, or ({N},)",
    ),
    "rewards of text": ({"rewards": np.full((N, 2), "a")}, "rewards: expected numbers, found dtype <U1"),
    "nobody anywhere": (
        {"obs": np.zeros_like(GOOD["obs"])},
        f"obs: expected at least one transition, found none in {N} rows (",
    ),
    "no two rows of a board": (
        {"next_obs": None, "times": np.zeros(N, int)},
        f"obs: expected at least one transition, found none in {N} rows (",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_arrays_are_refused(name, tmp_path):
    changes, message = REFUSED[name]
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path, GOOD | changes, "hop")
    assert str(caught.value).startswith(f"{tmp_path / 'flat.npz'}: {message}"), str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_valid_file_is_read(tmp_path):
    assert len(load_rows(tmp_path, GOOD, "hop", split=True)) == N


@pytest.mark.parametrize("layout", ["auto", "planes"])
def test_five_planes_are_refused(layout, game, tmp_path):
    t, _ = game
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path, {"obs": t.obs[t.obs_row, 0], "actions": t.actions[:, 0]}, layout)
    start, end = str(caught.value).split(", found ")
    assert start.startswith(
        f"{tmp_path / 'flat.npz'}: obs: expected the HOP layout, a plane for each hunter ([N, H, W, A+3]"
    )
    assert (
        end
        == f"shape ({len(t.actions)}, 5, 4, 4), planes of the observer, which merge the other hunters into one"
    )


def test_too_few_rows_to_split_are_refused(tmp_path):
    def rows(n, next_obs):
        return {key: a[:n] for key, a in GOOD.items() if key != "next_obs" or next_obs}

    for n, next_obs, fits in (
        (10, True, True),
        (9, True, False),
        (21, False, True),
        (20, False, False),
        (10, False, False),
    ):
        assert len(load_rows(tmp_path, rows(n, next_obs), "hop")) == n - (not next_obs)
        if fits:
            x = load_rows(tmp_path, rows(n, next_obs), "hop", split=True)
            assert all(len(x.splits[name]) for name in ("train", "val", "test"))
        else:
            with pytest.raises(
                DataError, match=r"flat\.npz: expected at least [12]0 (rows|transitions) to split 80/10/10"
            ):
                load_rows(tmp_path, rows(n, next_obs), "hop", split=True)
