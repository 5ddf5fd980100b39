"""The exact next-state law: against plain enumeration over orders and steps, and against how often the core plays what."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from reference import MOVES, neighbour, place, positions, repeat

from envs import Rules, StagHunt, planes_to_joint
from envs.grid import neighbours
from metrics.laws import deterministic_step, next_state_log_prob, outcomes

STAY, HUNT_STAG, HUNT_HARE = 4, 5, 6
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)
CORRIDOR = dict(hunters=1, height=1, blocks=0)
# rules, hunters, prey (stags first), blocks, actions
CROWDS = {
    "a row of hares": (Rules(hunters=1, stags=0, hares=3, blocks=0, height=2, width=4), [(1, 3)], [(0, 0), (0, 1), (0, 2)]),
    "four in a corner": (Rules(hunters=1, hares=3, blocks=1), [(7, 7)], [(1, 1), (0, 0), (0, 1), (1, 0)], [(0, 2)]),
    "stags and hares mixed": (
        Rules(hunters=1, stags=2, hares=2, blocks=1, height=3, width=3),
        [(0, 0)], [(1, 1), (0, 2), (1, 2), (2, 1)], [(2, 2)],
    ),
    "one cell between two": (Rules(stags=0, hares=2, width=5, **CORRIDOR), [(0, 0)], [(0, 1), (0, 3)]),
    "a capture makes room": (
        Rules(hunters=2, hares=3, blocks=1, height=3, width=4),
        [(1, 1), (2, 3)], [(0, 0), (1, 1), (1, 0), (1, 2)], [(2, 1)], [HUNT_HARE, HUNT_STAG],
    ),
}  # fmt: skip


def joint(state, rules):
    """The joint states of all boards of a state. [B, A+3, H, W]."""
    return planes_to_joint(StagHunt(len(state.tick), rules).set_state(state))


def crowd(name, prey_moves):
    rules, hunters, prey, *rest = CROWDS[name]
    blocks, actions = rest[0] if rest else [], np.array(rest[1] if len(rest) > 1 else [STAY] * len(hunters))
    return Rules(**{**vars(rules), "prey_moves": prey_moves}), place(rules, hunters, prey, blocks), actions


def plain_law(rules, stags, hares, free):
    """(stags after, hares after) -> probability, from the rule's own words: every order, every step, one at a time."""
    law = {}

    def go(order, herds, prob):
        if not order:
            key = frozenset(herds[0].values()), frozenset(herds[1].values())
            law[key] = law.get(key, 0.0) + prob
            return
        kind, slot = order[0]
        cell, taken = herds[kind][slot], {*herds[0].values(), *herds[1].values()}
        ways = [to for move in MOVES if (to := neighbour(cell, move)) in free and to not in taken]
        go(order[1:], herds, prob * (1 - rules.prey_moves if ways else 1))
        for to in ways:
            moved = [{**herd, slot: to} if k == kind else herd for k, herd in enumerate(herds)]
            go(order[1:], moved, prob * rules.prey_moves / len(ways))

    herds = [dict(enumerate(stags)), dict(enumerate(hares))]
    orders = [
        [(0, s) for s in first] + [(1, s) for s in then]
        for first in itertools.permutations(range(len(stags)))
        for then in itertools.permutations(range(len(hares)))
    ]
    for order in orders:
        go(order, herds, 1 / len(orders))
    return {key: prob for key, prob in law.items() if prob > 0}


def cells(plane):
    return frozenset(map(tuple, np.argwhere(plane).tolist()))


@pytest.mark.parametrize("prey_moves", [0.3, 1.0])
@pytest.mark.parametrize("name", CROWDS)
def test_outcomes_are_the_plain_enumeration(name, prey_moves):
    rules, state, actions = crowd(name, prey_moves)
    before = joint(state, rules)[0]
    law = outcomes(before, actions, rules)
    stags, hares = cells(before[-2]), cells(before[-1])
    if name == "a capture makes room":
        hares -= {(1, 1)}
        assert not any(after[0].any() or not after[1].any() for after, _ in law), (
            "the hunter on the hare has left"
        )
    expected = plain_law(rules, sorted(stags), sorted(hares), cells(before[-3] == 0))
    found = {(cells(after[-2]), cells(after[-1])): prob for after, prob in law}
    assert len(found) == len(law) and found == pytest.approx(expected, abs=1e-12) and len(law) > 2
    assert math.isclose(sum(found.values()), 1.0, abs_tol=1e-12)


@PROPERTY
@given(positions())
def test_log_prob_is_the_enumerated_law(position):
    """On any board: over all outcomes, and on the board before, which is one of them or impossible."""
    rules, state, actions = position
    before = joint(state, rules)
    law = outcomes(before[0], actions[0], rules)
    after = np.array([each for each, _ in law])
    assert len(np.unique(after.reshape(len(law), -1), axis=0)) == len(law), "each once"
    probs = np.array([prob for _, prob in law])
    assert math.isclose(probs.sum(), 1.0, abs_tol=1e-12) and (probs > 0).all()
    many = np.repeat(before, len(law), 0), np.repeat(actions, len(law), 0)
    found = next_state_log_prob(*many, after, rules)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.log(probs), atol=1e-9)
    (again,) = np.exp(next_state_log_prob(before, actions, before, rules))
    assert math.isclose(again, sum(probs[(after == before).all((1, 2, 3))]), abs_tol=1e-12)
    if rules.prey_moves == 0:
        assert len(law) == 1 and probs[0] == 1 and found[0] == 0


def test_log_prob_by_hand():
    """A lone hare in a corridor: half of 0.4 each way; at the end of it all of 0.4."""
    rules = Rules(stags=0, hares=1, width=4, prey_moves=0.4, **CORRIDOR)
    before = np.zeros((3, 4, 1, 4), np.uint8)
    before[:, 0, 0, 0] = 1
    before[:, 3, 0, 1] = 1
    after = before.copy()
    after[:, 3] = np.eye(4, dtype=np.uint8)[[1, 2, 3]][:, None]
    np.testing.assert_allclose(
        np.exp(next_state_log_prob(before, np.full((3, 1), STAY), after, rules)), [0.6, 0.2, 0]
    )
    before[:, 3, 0], after[:, 3, 0] = np.eye(4)[3], np.eye(4)[[3, 2, 1]]
    np.testing.assert_allclose(
        np.exp(next_state_log_prob(before, np.full((3, 1), STAY), after, rules)), [0.6, 0.4, 0]
    )
    after[0, 0, 0] = [0, 1, 0, 0]
    after[1, 1] = 1
    assert (next_state_log_prob(before, np.full((3, 1), STAY), after, rules)[:2] == -np.inf).all()


def hares_on_a_row(before, after, width, prey_moves):
    """P(after) of hares on the cells `before` of one row; the hunter has left."""
    states = np.zeros((2, 1, 4, 1, width), np.uint8)
    states[0, 0, 3, 0, before] = states[1, 0, 3, 0, after] = 1
    rules = Rules(stags=0, hares=0, width=width, prey_moves=prey_moves, **CORRIDOR)
    return np.exp(next_state_log_prob(states[0], np.full((1, 1), STAY), states[1], rules)).item()


def test_hares_on_a_row_by_hand():
    """Three cells apart they go independently; two apart the one that goes first may take the cell between; next to each
    other one may make room."""
    for p in (0.1, 0.4):
        assert hares_on_a_row([0, 3], [0, 3], 5, p) == pytest.approx((1 - p) ** 2)
        assert hares_on_a_row([0, 3], [1, 2], 5, p) == pytest.approx(p * p / 2)
        assert hares_on_a_row([0, 3], [1, 3], 5, p) == pytest.approx(p * (1 - p))
        assert hares_on_a_row([0, 4], [1, 3], 5, p) == pytest.approx(p * p)
        assert hares_on_a_row([0, 3], [2, 3], 5, p) == hares_on_a_row([0, 3], [0, 1], 5, p) == 0
        assert hares_on_a_row([1, 3], [2, 3], 5, p) == pytest.approx(p / 2 * (1 - p))
        assert hares_on_a_row([1, 3], [1, 2], 5, p) == pytest.approx(p / 2 * (1 - p))
        # the left one goes first and right; then the other has one way, to the right
        assert hares_on_a_row([1, 3], [2, 4], 5, p) == pytest.approx(p / 2 * p / 2 + p / 2 / 2 * p / 2)
        assert hares_on_a_row([0, 1], [1, 2], 3, p) == pytest.approx(p * p / 2), (
            "only if the right one goes first"
        )
        assert hares_on_a_row([0, 1], [0, 1], 2, p) == 1, "neither can go"
    assert hares_on_a_row([0, 3], [0, 3], 5, 0.0) == 1 and hares_on_a_row([0, 3], [1, 3], 5, 0.0) == 0


def test_neighbours_by_hand():
    """2x3 cells, and cell 6 off the board: UP, DOWN, LEFT, RIGHT, and all that stay."""
    assert neighbours(2, 3)[:, :5].tolist() == [
        [6, 3, 6, 1, 0], [6, 4, 0, 2, 1], [6, 5, 1, 6, 2],
        [0, 6, 6, 4, 3], [1, 6, 3, 5, 4], [2, 6, 4, 6, 5], [6] * 5,
    ]  # fmt: skip
    assert (neighbours(2, 3)[:, 5:] == np.arange(7)[:, None]).all()


def test_a_tick_resolved_by_hand():
    """Three hunt the stag of their cell, a fourth one beside it does not; a hare is taken by one; one is stopped by a block,
    one by the border, one has left, and one stands in two places."""
    rules = Rules(hunters=9, stags=2, hares=2, hunters_needed=3, stag_reward=6.0, hare_reward=-1.0)
    before = np.zeros((1, 12, 3, 4), np.uint8)
    cells = [5, 5, 5, 6, 3, 8, 0, None, 7]
    for seat, cell in enumerate(cells):
        if cell is not None:
            before[0, seat].flat[cell] = 1
    before[0, 8].flat[10] = 1
    before[0, 9].flat[9] = 1
    before[0, 10].flat[[5, 6]] = 1
    before[0, 11].flat[[3, 11]] = 1
    actions = np.array([[HUNT_STAG] * 4 + [HUNT_HARE, 3, 0, HUNT_HARE, 1]])
    step = deterministic_step(before, actions, rules)
    assert step.hunters.tolist() == [[5, 5, 5, 6, 3, 8, 0, 12, 7]]
    assert step.destinations.tolist() == [[5, 5, 5, 6, 3, 8, 0, 12, 11]]
    assert step.captures.tolist() == [[True] * 3 + [False, True] + [False] * 4]
    assert step.rewards.tolist() == [[2.0, 2.0, 2.0, 0, -1.0, 0, 0, 0, 0]]
    assert [np.flatnonzero(plane).tolist() for plane in step.captured_prey[0]] == [[5], [3]]
    assert [np.flatnonzero(plane).tolist() for plane in step.remaining_prey[0]] == [[6], [11]]
    assert step.captured_prey.shape == step.remaining_prey.shape == (1, 2, 12)
    two = deterministic_step(before, np.where(np.arange(9) == 0, STAY, actions), rules)
    assert not two.captures[0, :3].any() and not two.captured_prey[0, 0].any(), "two are too few"


def chi_square(name, prey_moves, shuffle, boards=40_000):
    """Play one tick on many boards alike; the distance of the frequencies from the law, and its 1 - 3e-5 quantile.

    The quantile is Wilson and Hilferty's (1931) at 4 standard deviations; outcomes expected less than 5 times are pooled.
    """
    rules, state, actions = crowd(name, prey_moves)
    rng, state = np.random.default_rng(8), repeat(state, boards)
    state.key[:] = rng.integers(0, 2**64, boards, np.uint64)
    if shuffle:  # the order in which prey of a kind step is that of their slots
        for kind in (slice(0, rules.stags), slice(rules.stags, None)):
            state.prey[:, kind] = rng.permuted(state.prey[:, kind], axis=1)
    env = StagHunt(boards, rules)
    before = planes_to_joint(env.set_state(state))[0].copy()
    after = planes_to_joint(env.step(np.tile(actions, (boards, 1)))[0]).reshape(boards, -1)
    expected = {each.tobytes(): boards * prob for each, prob in outcomes(before, actions, rules)}
    seen, count = np.unique(after, axis=0, return_counts=True)
    found = {each.tobytes(): n for each, n in zip(seen, count, strict=True)}
    assert found.keys() <= expected.keys(), "nothing that the law calls impossible"
    often = [key for key in expected if expected[key] >= 5]
    pairs = [(expected[key], found.get(key, 0)) for key in often]
    pairs.append((boards - sum(e for e, _ in pairs) + 1e-9, boards - sum(f for _, f in pairs)))
    pairs = [pair for pair in pairs if pair[0] > 1]
    df = len(pairs) - 1
    return sum((f - e) ** 2 / e for e, f in pairs), df * (1 - 2 / (9 * df) + 4 * (2 / (9 * df)) ** 0.5) ** 3


@pytest.mark.parametrize("prey_moves", [0.5, 1.0])
@pytest.mark.parametrize("name", CROWDS)
def test_core_plays_the_law(name, prey_moves):
    distance, bound = chi_square(name, prey_moves, shuffle=True)
    assert distance < bound


def test_the_frequencies_tell_the_orders_apart():
    """The bound is sharp enough: with one fixed order of the hares the core is not the law's."""
    distance, bound = chi_square("a row of hares", 0.5, shuffle=False)
    assert distance > 2 * bound


@pytest.mark.parametrize("prey_moves", [0.5, 1.0])
def test_real_transitions_are_possible(prey_moves):
    rules = Rules(prey_moves=prey_moves, hares=8, height=6, width=6, stags=2)
    env, rng, found = StagHunt(100, rules), np.random.default_rng(3), []
    env.reset(seed=3)
    for _ in range(10):
        live, before = ~env.ended, planes_to_joint(env.obs).copy()
        actions = rng.integers(0, 7, (100, 4))
        env.step(actions)
        found.append(next_state_log_prob(before[live], actions[live], planes_to_joint(env.obs)[live], rules))
    found = np.concatenate(found)
    assert np.isfinite(found).all() and (found <= 1e-12).all() and len(np.unique(found)) > 100


def test_log_prob_where_prey_stand_still():
    rules = Rules(height=6, width=6)
    env, rng = StagHunt(200, rules), np.random.default_rng(3)
    before = planes_to_joint(env.reset(seed=3))
    actions = rng.integers(0, 7, (200, 4))
    after = planes_to_joint(env.step(actions)[0])
    assert (next_state_log_prob(before, actions, after, rules) == 0).all()
    same = (before == after).all((1, 2, 3))
    assert (
        np.array_equal(np.exp(next_state_log_prob(before, actions, before, rules)), same) and not same.all()
    )
    after[:, -1] = np.roll(after[:, -1], 1, 2)
    assert (next_state_log_prob(before, actions, after, rules) == -np.inf).all()


def test_bad_arguments():
    before, actions = np.zeros((2, 6, 3, 3), np.uint8), np.zeros((2, 3), int)
    for shape in ((6, 3, 3), (2, 3, 3, 3), (1, 2, 6, 3, 3)):
        with pytest.raises(ValueError, match=rf"before: .* got {re.escape(str(shape))}"):
            deterministic_step(np.zeros(shape, np.uint8), actions, Rules())
    with pytest.raises(ValueError, match=r"actions: .* \(2, 3\), got float64 \(2, 3\)"):
        deterministic_step(before, actions * 1.0, Rules())
    with pytest.raises(ValueError, match=r"actions: must be in 0..6, got -1 to 0"):
        deterministic_step(before, actions - [0, 1, 0], Rules())
    assert next_state_log_prob(before[:0], actions[:0], before[:0], Rules()).shape == (0,)
    with pytest.raises(ValueError, match=r"actions: .* \(2, 3\), got int64 \(2, 2\)"):
        next_state_log_prob(before, actions[:, :2], before, Rules())
    with pytest.raises(ValueError, match=r"actions: must be in 0..6, got 0 to 7"):
        next_state_log_prob(before, np.full((2, 3), [0, 0, 7]), before, Rules())
    with pytest.raises(ValueError, match="after: expected the shape of before"):
        next_state_log_prob(before, actions, before[:1], Rules())
