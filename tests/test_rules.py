"""The rules of a tick, each by hand; that the core plays by them is in test_envs.py and test_cells.py."""

import numpy as np
import pytest

from envs import Rules, StagHunt
from envs.stag_hunt import (
    LEGAL,
    effective_actions,
    first_hunt_after,
    legal_actions,
    legal_on,
    step_prey,
)

UP, DOWN, LEFT, RIGHT, STAY, HUNT_STAG, HUNT_HARE = range(7)


def test_legal_on_corners_blocks_and_prey():
    """2 x 3 cells, a block on cell 4: corners, beside the block, off the board."""
    blocks = np.zeros((1, 6), bool)
    blocks[0, 4] = True
    cells = np.array([[0, 1, 5, 6]])
    on_stag = np.array([[False, True, False, False]])
    on_hare = np.array([[False, True, True, False]])
    legal = legal_on(cells, blocks, np.stack([on_stag, on_hare], -1), 2, 3)
    assert [np.flatnonzero(row).tolist() for row in legal[0]] == [
        [DOWN, RIGHT, STAY],
        [LEFT, RIGHT, STAY, HUNT_STAG, HUNT_HARE],
        [UP, STAY, HUNT_HARE],
        [STAY],
    ]


def test_legal_actions_of_planes_are_the_cores():
    env = StagHunt(200, Rules(height=4, width=5, blocks=2))
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(6):
        env.step(rng.integers(0, 7, (200, 4)))
    live = ~env.ended
    legal = legal_actions(env.obs)
    assert legal.dtype == bool and (~env.active[live]).any()
    np.testing.assert_array_equal(legal[live], env.legal_actions()[live])
    np.testing.assert_array_equal(legal_actions(env.obs[3, 1] > 0), legal[3, 1])
    assert legal_actions(env.obs[:0]).shape == (0, 4, 7)


def test_an_illegal_action_counts_as_stay():
    actions = np.tile(np.arange(7), (128, 1))
    effective = effective_actions(actions, np.repeat(LEGAL[:, None], 7, 1))
    np.testing.assert_array_equal(effective, np.where(LEGAL, actions, STAY))


@pytest.mark.parametrize(
    ("cells", "actions", "captures", "rewards"),
    [
        ([3, 3, 3, 3], [5, 5, 5, 5], [1, 1, 1, 1], [2.5, 2.5, 2.5, 2.5]),
        ([3, 3, 3, 3], [5, 5, 4, 0], [1, 1, 0, 0], [5.0, 5.0, 0.0, 0.0]),
        ([3, 3, 7, 7], [5, 4, 5, 6], [0, 0, 0, 1], [0.0, 0.0, 0.0, 1.0]),
        ([3, 7, 3, 7], [5, 6, 5, 6], [1, 1, 1, 1], [5.0, 0.5, 5.0, 0.5]),
        ([3, 4, 5, 6], [5, 5, 5, 5], [0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]),
        ([9, 9, 9, 9], [4, 4, 4, 4], [0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]),
        ([3, 3, 3, 3], [6, 6, 6, 5], [1, 1, 1, 0], [1 / 3, 1 / 3, 1 / 3, 0.0]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_who_captures_and_what_each_earns(cells, actions, captures, rewards, dtype):
    result = Rules().resolve(np.array([cells]), np.array([actions]), dtype)
    assert result[0].tolist() == [[bool(c) for c in captures]]
    assert result[1].dtype == dtype and result[1].tolist() == [np.array(rewards, dtype).tolist()]


def test_three_hunters_are_needed_where_the_rules_say_so():
    rules = Rules(hunters_needed=3, stag_reward=6.0)
    two = rules.resolve(np.array([[3, 3, 3, 3]]), np.array([[5, 5, 4, 6]]))
    three = rules.resolve(np.array([[3, 3, 3, 4]]), np.array([[5, 5, 5, 5]]))
    assert two[0].tolist() == [[False, False, False, True]]
    assert three[1].tolist() == [[2.0, 2.0, 2.0, 0.0]]


def test_prey_step_in_order_and_see_the_earlier_steps():
    """One row of five cells: the stag on 1 steps to 2, so the hare on 3 can only go to 4; then all is closed."""
    rules = Rules(hunters=1, stags=1, hares=1, blocks=1, height=1, width=5, prey_moves=0.5)
    blocks = np.array([[True, False, False, False, False]])
    prey = np.array([[1, 3]])
    both = np.array([[[0.0, 0.0], [0.0, 0.0]]])
    assert step_prey(prey, blocks, both, rules).tolist() == [[2, 4]]
    only_hare = np.array([[[0.5, 0.0], [0.49, 0.6]]])
    assert step_prey(prey, blocks, only_hare, rules).tolist() == [[1, 4]]
    captured = step_prey(np.array([[5, 3]]), blocks, both, rules)
    assert captured.tolist() == [[5, 2]], "LEFT comes first, and captured prey stay off the board"
    shut_in = step_prey(np.array([[4, 3]]), np.array([[False, False, True, False, False]]), both, rules)
    assert shut_in.tolist() == [[4, 3]]


def test_first_hunt_is_kept_and_ends_the_board_k_ticks_later():
    before = np.array([[1, 2], [1, 2], [9, 2], [1, 2]])
    after = np.array([[9, 2], [1, 2], [9, 2], [1, 9]])
    first = np.array([-1, -1, 3, 4])
    tick = np.array([5, 5, 5, 5])
    first = first_hunt_after(first, tick, before, after, 9)
    assert first.tolist() == [5, -1, 3, 4]
    active = np.ones((4, 2), bool)
    assert Rules().ended(tick, first, active, after).tolist() == [False] * 4
    ends = Rules(end_after_first_hunt=1).ended(tick, first, active, after)
    assert ends.tolist() == [False, False, True, True]
    active[1] = False
    assert Rules().ended(tick, first, active, after).tolist() == [False, True, False, False]
