"""The snowdrift: the core, the game on cells and the strategies equal the slow reference; what removing pays."""

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from snowdrift_reference import REMOVE, SnowReference, positions

from envs import make_core, sample_actions, strategy_probs
from envs.core import Cells, legal_actions, legal_cells, step_cells
from envs.scripted import cells_probs
from envs.snowdrift import GAME, Rules

STRATEGIES = tuple(GAME.strategies)
CROWDED = Rules(height=3, width=4, drifts=4, blocks=2, horizon=9)


def cells_of(core) -> Cells:
    return Cells(core.hunters, core.prey, core.tick.astype(np.int64), core.first_hunt.astype(np.int64))


def agrees(core, game: SnowReference, board: int):
    """The core's board is the reference's."""
    number = {cell: i for i, cell in enumerate(game.cells)} | {None: game.rules.cells}
    assert core.hunters[board].tolist() == [number[cell] for cell in game.agents]
    assert core.prey[board].tolist() == [number[cell] for cell in game.drifts]
    assert (core.tick[board], core.ended[board]) == (game.tick, game.ended)
    assert core.first_hunt[board] == game.first_removal and core.active[board].all()
    assert core.obs[board].tolist() == game.obs()
    for seat, mask in enumerate(core.legal_actions()[board]):
        assert np.flatnonzero(mask).tolist() == game.legal(seat)


@given(positions())
@settings(max_examples=80, deadline=None)
def test_a_tick_of_the_core_and_on_cells_is_the_references(position):
    rules, state, actions = position
    core = make_core(1, rules)
    core.set_state(state)
    game = SnowReference.from_state(rules, state, 0)
    agrees(core, game, 0)
    before = cells_of(core)
    legal = legal_cells(before.hunters, before.prey, state.blocks, rules)
    np.testing.assert_array_equal(legal, core.legal_actions())
    np.testing.assert_array_equal(legal_actions(core.obs), core.legal_actions())
    rewards, terminated, truncated = game.step(actions[0].tolist())
    after, rewards_on_cells, over = step_cells(before, actions, state.blocks, rules)
    _, core_rewards, core_terminated, core_truncated = core.step(actions)
    agrees(core, game, 0)
    np.testing.assert_allclose(core_rewards[0], rewards, rtol=1e-6)
    assert (core_terminated == terminated).all() and (core_truncated == truncated).all()
    np.testing.assert_array_equal(rewards_on_cells, core_rewards)
    assert over[0] == game.ended
    for cells, expected in zip(after, cells_of(core), strict=True):
        np.testing.assert_array_equal(cells, expected)


@given(positions())
@settings(max_examples=60, deadline=None)
def test_strategies_are_exact(position):
    """Held to a search through all walks, and on bare cells to those of the core."""
    rules, state, _ = position
    core = make_core(1, rules)
    core.set_state(state)
    game = SnowReference.from_state(rules, state, 0)
    for epsilon in (0.0, 0.1):
        probs = strategy_probs(core, STRATEGIES, epsilon)[0]
        expected = [[game.probs(seat, name, epsilon) for name in STRATEGIES] for seat in range(rules.agents)]
        np.testing.assert_allclose(probs, expected, atol=1e-12)
    for index in range(len(STRATEGIES)):
        ids = np.full((1, rules.agents), index)
        on_cells = cells_probs(cells_of(core), STRATEGIES, ids, 0.1, core.distances(), state.blocks, rules)
        np.testing.assert_array_equal(on_cells[0], probs[:, index])


def test_whole_games_are_the_references():
    """From the seed to the end, whatever is tried; then the next board of the same stream."""
    rng, B = np.random.default_rng(0), 12
    core = make_core(B, CROWDED)
    core.reset(seed=5)
    games = [SnowReference(CROWDED, seed=5, board=i) for i in range(B)]
    ends = dict(terminated=0, truncated=0)
    for _ in range(3 * CROWDED.horizon):
        nearest = sample_actions(strategy_probs(core, ["ND"])[:, :, 0], rng.random((B, CROWDED.agents)))
        any_action = rng.integers(6, size=nearest.shape)  # some are illegal
        actions = np.where(rng.random(nearest.shape) < 0.5, nearest, any_action)
        _, rewards, terminated, truncated = core.step(actions)
        for board, game in enumerate(games):
            was_over = game.ended
            expected, terminates, truncates = game.step(actions[board].tolist())
            agrees(core, game, board)
            np.testing.assert_allclose(rewards[board], expected, rtol=1e-6)
            assert (terminated[board] == terminates).all() and (truncated[board] == truncates).all()
            ends["terminated"] += terminates
            ends["truncated"] += truncates
            assert not (was_over and (terminates or truncates))
        over = core.ended & (rng.random(B) < 0.5)  # the others stand still for a while
        if over.any():
            core.reset(boards=over)
            for board in np.flatnonzero(over):
                games[board].reset()
    assert min(ends.values()) > 3


def test_a_board_does_not_depend_on_how_many_there_are():
    few, many = make_core(2, CROWDED), make_core(7, CROWDED)
    few.reset(seed=4)
    many.reset(seed=4)
    for _ in range(CROWDED.horizon):
        np.testing.assert_array_equal(few.obs, many.obs[:2])
        np.testing.assert_array_equal(few.uniform(3), many.uniform(3)[:2])
        actions = np.random.default_rng(1).integers(0, 6, (7, 4))
        few.step(actions[:2])
        many.step(actions)


# ---- what is removed, and what it pays


@given(positions())
@settings(max_examples=60, deadline=None)
def test_pay_adds_up_and_drifts_do_not_come_back(position):
    rules, state, actions = position
    core = make_core(1, rules)
    core.set_state(state)
    gone = core.prey == rules.cells
    rng = np.random.default_rng(int(state.key[0]))
    while not core.ended[0]:
        before = core.prey
        _, rewards, *_ = core.step(actions)
        removed = (core.prey == rules.cells).sum() - gone.sum()
        expected = removed * (rules.reward * rules.agents - rules.cost)
        np.testing.assert_allclose(rewards.sum(), expected, atol=1e-4)
        gone |= core.prey == rules.cells
        assert (core.prey[gone] == rules.cells).all() and (core.prey[~gone] == before[~gone]).all()
        assert core.active.all()
        actions = np.where(rng.random(actions.shape) < 0.5, REMOVE, rng.integers(6, size=actions.shape))


@pytest.mark.parametrize(
    ("hunters", "actions", "rewards"),
    [
        (
            [0, 0, 1, 5],
            [5, 5, 5, 5],
            [10.0, 10.0, 8.0, 12.0],
        ),  # two share one, one removes another, one tries
        ([0, 0, 0, 0], [5, 5, 5, 5], [5.0, 5.0, 5.0, 5.0]),
        ([0, 0, 0, 5], [5, 5, 5, 4], [14 / 3, 14 / 3, 14 / 3, 6.0]),
        ([0, 1, 2, 5], [4, 3, 4, 0], [0.0, 0.0, 0.0, 0.0]),
        ([0, 1, 2, 2], [5, 5, 5, 5], [14.0, 14.0, 16.0, 16.0]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pay_by_hand(hunters, actions, rewards, dtype):
    """Drifts on 0, 1 and 2; REMOVE on cell 5 is not legal."""
    rules = Rules(height=2, width=4, drifts=3)
    core = make_core(1, rules)
    core.reset(seed=1)
    state = core.state
    state.hunters[0], state.prey[0] = hunters, [0, 1, 2]
    core.set_state(state)
    _, found, terminated, _ = core.step(np.array([actions]))
    np.testing.assert_allclose(found[0], rewards, rtol=1e-6)
    assert terminated.all() == (rewards[0] == 14.0)
    captures, found = rules.resolve(np.array([hunters]), core.effective_actions, dtype)
    assert found.dtype == dtype and captures.tolist() == (core.effective_actions == REMOVE).tolist()
    np.testing.assert_allclose(found[0], rewards, rtol=np.finfo(dtype).eps * 2)


def test_the_last_drift_on_the_last_tick_terminates():
    rules = Rules(height=2, width=4, drifts=3, horizon=5)
    core = make_core(2, rules)
    core.reset(seed=1)
    state = core.state
    state.hunters[:], state.prey[:], state.tick[:] = [0, 1, 2, 2], [0, 1, 2], 4
    core.set_state(state)
    _, _, terminated, truncated = core.step(np.array([[5, 5, 5, 5], [5, 5, 4, 4]]))
    assert terminated.tolist() == [[True] * 4, [False] * 4]
    assert truncated.tolist() == [[False] * 4, [True] * 4]
    assert core.ended.all() and (core.ticks_left == -1).all()


def test_a_team_is_paid_at_most_30_and_all_removed_is_30():
    core = make_core(64, Rules())
    core.reset(seed=1)
    means = np.zeros(64)
    while not core.ended.all():
        probs = strategy_probs(core, ["ND"], 0.1)[:, :, 0]
        _, rewards, _, _ = core.step(sample_actions(probs, core.uniform(4)))
        means += rewards.mean(1)
    removed = (core.prey == 64).sum(1)
    np.testing.assert_allclose(means, 5.0 * removed, atol=1e-4)
    assert removed.max() == 6 and means.max() == pytest.approx(30.0)


def test_free_riders_never_remove():
    core = make_core(64, CROWDED)
    core.reset(seed=2)
    assert strategy_probs(core, ["FIX"])[..., REMOVE].max() == 0.0
    while not core.ended.all():
        probs = strategy_probs(core, ["FIX"])[:, :, 0]
        _, rewards, _, _ = core.step(sample_actions(probs, core.uniform(4)))
        assert not rewards.any()
    assert (core.prey < CROWDED.cells).all() and (core.tick == CROWDED.horizon).all()


# ---- the rules


@pytest.mark.parametrize("shape", [dict(height=1, width=2), dict(height=2, width=1)])
def test_the_smallest_board_can_be_played(shape):
    core = make_core(1, Rules(agents=1, drifts=1, horizon=1, **shape))
    core.reset(seed=1)
    assert core.step(np.array([[4]]))[3].all()  # the horizon truncates it


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(agents=0), "agents must be a whole number of at least 1, got 0"),
        (dict(drifts=0), "drifts must be a whole number of at least 1, got 0"),
        (dict(blocks=-1), "blocks must be"),
        (dict(horizon=2.5), "horizon must be"),
        (dict(height=1, width=9), r"10 hunters, prey and blocks do not fit on 1x9 = 9 cells"),
        (dict(height=200, width=200), "at most 16384 cells, got 200x200"),
        (dict(reward=float("nan")), "reward and cost must be finite, got nan and 4.0"),
        (dict(cost=float("inf")), "reward and cost must be finite, got 6.0 and inf"),
    ],
)
def test_impossible_rules_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Rules(**wrong)


def test_a_state_without_an_agent_is_refused():
    core = make_core(1, Rules())
    core.reset(seed=1)
    state = core.state
    state.hunters[0, 2] = -1
    with pytest.raises(ValueError, match=r"state.hunters: cells must be in \[0, 64\), got -1 to"):
        core.set_state(state)


# ---- the vector view


def test_the_learner_never_leaves_and_its_episode_is_the_boards():
    """It removes drifts itself, and goes on until the board ends, in both kinds of episode."""
    kinds = dict(height=4, width=4, blocks=2, horizon=12, co_players="1ND2FIX")
    by_learner = gymnasium.make_vec("Snowdrift-v0", num_envs=32, **kinds)
    by_board = gymnasium.make_vec("Snowdrift-v0", num_envs=32, episode="board", **kinds)
    a, b = by_learner.reset(seed=3), by_board.reset(seed=3)
    ends = np.zeros(2, int)
    removals = 0
    for _ in range(60):
        np.testing.assert_array_equal(a[0], b[0])
        core = by_learner.core
        probs = strategy_probs(core, ["ND"])[np.arange(32), by_learner.seats, 0]
        actions = probs.argmax(1)
        a, b = by_learner.step(actions), by_board.step(actions)
        for x, y in zip(a[1:4], b[1:4], strict=True):
            np.testing.assert_array_equal(x, y)
        infos = a[4]
        assert infos["active"].all() and infos["action_mask"].shape == (32, 6)
        removals += (infos["joint_actions"][np.arange(32), infos["seat"]] == REMOVE)[~(a[2] | a[3])].sum()
        ends += [a[2].sum(), a[3].sum()]
        for row in np.flatnonzero(a[2] | a[3]):
            left = infos["final_obs"][row][3].any()
            assert left == a[3][row] and infos["final_info"]["tick"][row] <= 12
    assert ends.min() > 0 and removals > 50


def test_mixed_co_players_pursue_each_goal_equally_often():
    env = gymnasium.make_vec("Snowdrift-v0", num_envs=3000, co_players="mixed")
    _, infos = env.reset(seed=1)
    ids = infos["strategy_ids"]
    assert (ids == -1).sum(1).tolist() == [1] * 3000
    assert np.bincount(ids[ids >= 0], minlength=3)[2] == 0
    assert abs((ids[ids >= 0] == STRATEGIES.index("ND")).mean() - 0.5) < 0.03


def test_co_players_do_as_their_strategies():
    env = gymnasium.make_vec("Snowdrift-4x4-v0", num_envs=64, co_players=("FIX", "RANDOM", "ND"), epsilon=0.0)
    _, infos = env.reset(seed=1)
    removals = np.zeros(4, int)  # of FIX, RANDOM, ND and the learner, which stays
    legal = np.zeros(4, int)
    for _ in range(40):
        seats = (infos["seat"][:, None] + [1, 2, 3, 0]) % 4
        can_remove = np.take_along_axis(env.core.legal_actions()[..., REMOVE], seats, 1)
        infos = env.step(np.full(64, 4))[4]
        removes = np.take_along_axis(infos["joint_actions"] == REMOVE, seats, 1)
        removals += removes.sum(0)
        legal += can_remove.sum(0)
    assert removals[0] == removals[3] == 0 < legal[0]
    assert removals[2] == legal[2] > removals[1] > 0
