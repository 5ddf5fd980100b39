"""The scripted hunters: their exact probabilities, and what is drawn from them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import DOWN, HUNT_HARE, HUNT_STAG, LEFT, RIGHT, STAY, UP, Reference, place, positions, repeat

from envs import STRATEGIES, Rules, StagHunt, random_actions, sample_actions, strategy_probs

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True, database=None)

BOARDS = {
    "4p5b 8x8": Rules(horizon=18),
    "4x4 no blocks": Rules(height=4, width=4, blocks=0, horizon=10),
    "many ties": Rules(height=5, width=5, blocks=4, stags=3, hares=5, horizon=12),
    "a maze": Rules(height=6, width=7, blocks=16, stags=2, hares=2, horizon=18),
    "prey that move": Rules(height=5, width=6, stags=2, prey_moves=0.5, horizon=12),
    "ends early": Rules(height=4, width=5, hares=2, blocks=2, end_after_first_hunt=2, horizon=12),
    "no stag": Rules(height=4, width=4, stags=0, hares=3, blocks=2, horizon=10),
    "no hare": Rules(height=4, width=4, stags=2, hares=0, blocks=2, horizon=10),
    "no prey": Rules(height=3, width=4, stags=0, hares=0, blocks=2, horizon=4),
}


def assert_probs_are_the_references(env, refs, epsilon):
    """All strategies, in an order that is not the usual one."""
    names = ("NH", "RANDOM", "NS")
    probs = strategy_probs(env, names, epsilon)
    assert probs.shape == (env.num_boards, env.rules.hunters, 3, 7) and probs.dtype == np.float64
    expected = [
        [[ref.probs(i, name, epsilon) for name in names] for i in range(env.rules.hunters)] for ref in refs
    ]
    np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-12)
    assert (probs.argmax(-1) == STAY)[~env.active].all()


@pytest.mark.parametrize("name", BOARDS)
def test_probs_are_the_references(name):
    rules, rng = BOARDS[name], np.random.default_rng(1)
    env, refs = StagHunt(24, rules), [Reference(rules, 11, board) for board in range(24)]
    env.reset(seed=11)
    for t in range(rules.horizon + 1):
        assert_probs_are_the_references(env, refs, epsilon=(0.0, 0.1, 1.0)[t % 3])
        probs = strategy_probs(env, ("NS", "NH"), epsilon=0.1)[np.arange(24), :, np.arange(24) % 2]
        actions = sample_actions(probs, rng.random((24, rules.hunters)))
        env.step(actions)
        for ref, row in zip(refs, actions.tolist(), strict=True):
            ref.step(row)
    assert env.ended.all()


@PROPERTY
@given(positions(), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_probs_are_the_references_from_any_state(position, epsilon):
    rules, state, _ = position
    env = StagHunt(1, rules)
    env.set_state(state)
    assert_probs_are_the_references(env, [Reference.from_state(rules, state, 0)], epsilon)


@PROPERTY
@given(positions(), st.floats(0, 1))
def test_probs_sum_to_one_over_legal_actions(position, epsilon):
    rules, state, _ = position
    env = StagHunt(1, rules)
    env.set_state(state)
    probs, legal = strategy_probs(env, STRATEGIES, epsilon), env.legal_actions()
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=0, atol=1e-12)
    assert (probs[np.broadcast_to(~legal[:, :, None], probs.shape)] == 0).all() and (probs >= 0).all()
    floor = (epsilon / legal.sum(-1))[..., None, None] * legal[:, :, None]
    assert (probs >= floor - 1e-12).all()


def test_without_an_epsilon_nothing_is_random():
    env = StagHunt(8)
    env.reset(seed=1)
    np.testing.assert_array_equal(strategy_probs(env, STRATEGIES), strategy_probs(env, STRATEGIES, 0.0))


@PROPERTY
@given(positions(), st.randoms(use_true_random=False))
def test_permuting_the_seats_permutes_the_probs(position, random):
    rules, state, _ = position
    order = random.sample(range(rules.hunters), rules.hunters)
    env = StagHunt(1, rules)
    env.set_state(state)
    probs = strategy_probs(env, STRATEGIES)
    env.set_state(replace(state, hunters=state.hunters[:, order]))
    assert np.array_equal(strategy_probs(env, STRATEGIES), probs[:, order])


# ---- by hand


def probs_of(rules, name, *args, epsilon=0.0, **kwargs):
    """Action -> probability, where it is not zero, of the one hunter of a board."""
    env = StagHunt(1, rules)
    env.set_state(place(rules, *args, **kwargs))
    probs = strategy_probs(env, (name,), epsilon)[0, 0, 0]
    return {action: pytest.approx(p, abs=1e-12) for action, p in enumerate(probs.tolist()) if p}


ONE = Rules(hunters=1, stags=2, hares=1, blocks=0, height=3, width=4)


def test_the_nearest_stag_over_all_shortest_paths():
    assert probs_of(ONE, "NS", [(2, 0)], [(0, 1), None, (2, 1)]) == {UP: 0.5, RIGHT: 0.5}
    assert probs_of(ONE, "NH", [(2, 0)], [(0, 1), None, (2, 1)]) == {RIGHT: 1}


def test_a_tie_is_shared_among_the_stags_first_and_then_among_the_ways():
    """One stag straight to the right, one diagonally: half of the mass each, and the diagonal's is halved again."""
    assert probs_of(ONE, "NS", [(1, 0)], [(1, 2), (0, 1), (2, 2)]) == {RIGHT: 0.75, UP: 0.25}
    assert probs_of(ONE, "NS", [(1, 1)], [(1, 3), (0, 0), (2, 2)]) == {RIGHT: 0.5, UP: 0.25, LEFT: 0.25}


def test_the_nearest_is_the_nearest_around_blocks():
    blocks = [(0, 1), (1, 1)]
    assert probs_of(ONE, "NS", [(0, 0)], [(0, 2), None, (2, 3)], blocks) == {DOWN: 1}  # six steps, not two
    assert probs_of(ONE, "NS", [(1, 0)], [(0, 2), (2, 2), (2, 3)], blocks) == {DOWN: 1}


def test_on_its_cell_it_hunts_and_passes_by_the_other_kind():
    assert probs_of(ONE, "NS", [(0, 0)], [(0, 0), (0, 1), (2, 2)]) == {HUNT_STAG: 1}
    assert probs_of(ONE, "NH", [(2, 2)], [(0, 0), (0, 1), (2, 2)]) == {HUNT_HARE: 1}
    assert probs_of(ONE, "NH", [(0, 2)], [(0, 2), (0, 1), (2, 2)]) == {DOWN: 1}


def test_without_its_kind_it_takes_the_other_and_without_prey_it_stays():
    assert probs_of(ONE, "NS", [(2, 0)], [None, None, (2, 2)]) == {RIGHT: 1}
    assert probs_of(ONE, "NS", [(2, 2)], [None, None, (2, 2)]) == {HUNT_HARE: 1}
    assert probs_of(ONE, "NH", [(2, 0)], [(0, 0), (2, 3), None]) == {UP: 1}
    assert probs_of(ONE, "NH", [(0, 0)], [(0, 0), (2, 3), None]) == {HUNT_STAG: 1}
    assert probs_of(ONE, "NS", [(0, 0)], [None] * 3) == probs_of(ONE, "NH", [(0, 0)], [None] * 3) == {STAY: 1}


def test_epsilon_is_uniform_over_legal_actions():
    probs = probs_of(ONE, "NH", [(0, 0)], [(0, 0), (2, 3), (0, 2)], epsilon=0.2)
    assert probs == {DOWN: 0.05, RIGHT: 0.85, STAY: 0.05, HUNT_STAG: 0.05}
    assert probs_of(ONE, "NS", [(0, 3)], [None] * 3, epsilon=0.3) == {DOWN: 0.1, LEFT: 0.1, STAY: 0.8}
    for epsilon in (0.0, 0.3):  # uniform already
        probs = probs_of(ONE, "RANDOM", [(0, 3)], [None] * 3, epsilon=epsilon)
        assert probs == {DOWN: 1 / 3, LEFT: 1 / 3, STAY: 1 / 3}


def test_who_has_left_stays():
    for name in STRATEGIES:
        assert probs_of(ONE, name, [None], [(0, 0), (0, 1), (2, 2)], epsilon=0.5) == {STAY: 1}


def test_prey_that_no_path_reaches_leave_the_probs_valid():
    """A reset never draws such a board, `set_state` may."""
    blocks = [(0, 1), (1, 1), (2, 1)]
    assert probs_of(ONE, "NS", [(0, 0)], [(0, 2), None, (2, 0)], blocks) == {
        DOWN: 1
    }  # the hare, for want of a stag
    assert probs_of(ONE, "NS", [(0, 0)], [(0, 2), None, (2, 2)], blocks) == {STAY: 1}


# ---- drawing actions


def test_sampled_frequencies_agree_with_the_probs():
    """Chi-square over all hunters and strategies of 12 boards; the bound is 5 standard deviations away."""
    env, n = StagHunt(12), 4000
    env.reset(seed=8)
    probs = strategy_probs(env, STRATEGIES, epsilon=0.1).reshape(-1, 7)
    drawn = sample_actions(
        np.broadcast_to(probs, (n, *probs.shape)), np.random.default_rng(8).random((n, len(probs)))
    )
    assert drawn.dtype == np.int8
    counts = (drawn[..., None] == np.arange(7)).sum(0)
    assert (counts[probs == 0] == 0).all()
    expected = n * probs[probs > 0]
    freedom = (probs > 0).sum() - len(probs)
    chi2 = ((counts[probs > 0] - expected) ** 2 / expected).sum()
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_sampling_is_an_inversion():
    probs = np.array([0, 0.25, 0.25, 0, 0, 0.5, 0])
    uniform = np.array([0, 0.2499, 0.25, 0.4999, 0.5, 0.9999, np.nextafter(1, 0)])
    assert sample_actions(np.tile(probs, (7, 1)), uniform).tolist() == [1, 1, 2, 2, 5, 5, 5]


def test_sampling_never_picks_an_action_without_mass():
    """Sums that rounding leaves beside one, with the largest and the smallest number there is."""
    probs = np.random.default_rng(0).dirichlet(np.ones(7), 20_000) * (
        np.random.default_rng(1).random((20_000, 7)) < 0.6
    )
    probs = probs[probs.sum(1) > 0]
    probs /= probs.sum(1, keepdims=True)
    for uniform in (0.0, np.nextafter(1, 0)):
        drawn = sample_actions(probs, np.full(len(probs), uniform))
        assert (np.take_along_axis(probs, drawn[:, None].astype(int), 1) > 0).all()


def test_random_actions_are_uniform_over_legal_ones():
    rules = Rules(hunters=5, stags=1, hares=1, blocks=0, height=3, width=3)
    n = 100_000
    state = repeat(place(rules, [(0, 0), (1, 1), (0, 1), None, (2, 2)], [(0, 1), (2, 2)], [(1, 0)]), n)
    state.ended[-1] = True
    env = StagHunt(n, rules)
    env.set_state(state)
    actions, legal = random_actions(env, np.random.default_rng(0)), env.legal_actions()
    assert actions.dtype == np.int8 and actions.shape == (n, 5) and (actions[-1] == STAY).all()
    for seat in range(5):
        counts = np.bincount(actions[:-1, seat], minlength=7)
        p = legal[0, seat] / legal[0, seat].sum()
        assert (np.abs(counts - (n - 1) * p) <= 5 * np.sqrt(n * p * (1 - p))).all()


# ---- errors


@pytest.mark.parametrize("names", [["NS", "NX"], ["ns"], [""]])
def test_an_unknown_strategy(names):
    with pytest.raises(ValueError, match=r"unknown strategy .*: choose from NS, NH, RANDOM"):
        strategy_probs(StagHunt(1), names)


@pytest.mark.parametrize("epsilon", [-0.01, 1.01, float("nan")])
def test_a_bad_epsilon(epsilon):
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\], got"):
        strategy_probs(StagHunt(1), ["NS"], epsilon)
