"""The game on cells is the game."""

import numpy as np
import pytest

from envs import STRATEGIES, Rules, StagHunt, random_actions, strategy_probs
from envs.cells import Cells, cells_probs, legal_cells, step_cells
from envs.grid import FAR

GAMES = {
    "4p5b 8x8": Rules(),
    "crowded": Rules(height=4, width=4, blocks=2, stags=2, hares=3, horizon=20),
    "three needed": Rules(height=4, width=5, blocks=1, hunters=5, hunters_needed=3, stag_reward=7.5),
    "ends early": Rules(height=5, width=4, blocks=2, hares=3, end_after_first_hunt=2),
    "ends at once": Rules(height=4, width=4, blocks=0, hares=2, end_after_first_hunt=0),
}


def cells_of(env: StagHunt) -> Cells:
    return Cells(env.hunters, env.prey, env.tick.astype(np.int64), env.first_hunt.astype(np.int64))


@pytest.mark.parametrize("name", GAMES)
def test_equals_the_core(name):
    rules, rng, B = GAMES[name], np.random.default_rng(0), 64
    env = StagHunt(B, rules)
    env.reset(seed=7)
    walls = np.pad(env.blocks, ((0, 0), (0, 1)), constant_values=True)
    first = env.distances().copy()
    first = np.pad(
        first, ((0, 0), (0, 0), (0, 1)), constant_values=FAR
    )  # to where the prey stood at the start
    captures = 0
    while not env.ended.all():
        live, before = ~env.ended, cells_of(env)
        np.testing.assert_array_equal(legal_cells(before, walls, rules)[live], env.legal_actions()[live])
        who = rng.integers(3, size=(B, rules.hunters))
        probs = np.take_along_axis(strategy_probs(env, STRATEGIES, 0.1), who[..., None, None], 2)[:, :, 0]
        np.testing.assert_allclose(
            cells_probs(before, STRATEGIES, who, 0.1, first, walls, rules)[live], probs[live], atol=1e-12
        )
        legal, any_ = random_actions(env, rng), rng.integers(7, size=(B, rules.hunters))
        actions = np.where(rng.random(any_.shape) < 0.8, legal, any_)  # some are illegal
        after, rewards, over = step_cells(before, actions, walls, rules)
        _, expected, _, _ = env.step(actions)
        np.testing.assert_allclose(rewards[live], expected[live], rtol=1e-6)
        np.testing.assert_array_equal(over[live], env.ended[live])
        for one, other in zip(after, cells_of(env), strict=True):
            np.testing.assert_array_equal(one[live], other[live])
        captures += (rewards[live] > 0).sum()
    assert captures > 20


def test_prey_that_move():
    rules, rng, n = (
        Rules(height=4, width=4, blocks=2, hares=3, prey_moves=0.5),
        np.random.default_rng(0),
        20_000,
    )
    env = StagHunt(1, rules)
    env.reset(seed=1)
    walls = np.pad(env.blocks, ((0, 0), (0, 1)), constant_values=True).repeat(n, 0)
    start = Cells(*(part.repeat(n, 0) for part in cells_of(env)))
    stay = np.full((n, 4), 4)
    with pytest.raises(ValueError, match="rng"):
        step_cells(start, stay, walls, rules)
    prey = step_cells(start, stay, walls, rules, rng)[0].prey
    assert (np.sort(prey, 1)[:, 1:] != np.sort(prey, 1)[:, :-1]).all() and not np.take_along_axis(
        walls, prey, 1
    ).any()
    env2 = StagHunt(n, rules)
    env2.set_state(env.state[np.zeros(n, int)])
    env2._key[:] = rng.integers(2**63, size=n).astype(np.uint64)  # the same board, other luck
    env2.step(stay)
    for slot in range(rules.prey):
        mine, theirs = (np.bincount(p[:, slot], minlength=16) / n for p in (prey, env2.prey))
        np.testing.assert_allclose(mine, theirs, atol=0.02)
