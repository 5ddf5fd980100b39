"""The game on cells equals the batched core."""

from dataclasses import replace

import numpy as np
import pytest

from envs import STRATEGIES, Rules, StagHunt, random_actions, strategy_probs
from envs.scripted import cells_probs
from envs.stag_hunt import Cells, legal_cells, step_cells

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
def test_cells_play_as_the_core(name):
    rules, rng, B = GAMES[name], np.random.default_rng(0), 64
    env = StagHunt(B, rules)
    env.reset(seed=7)
    first = env.distances().copy()  # to where the prey stood at the start
    captures = 0
    while not env.ended.all():
        live, before = ~env.ended, cells_of(env)
        legal = legal_cells(before.hunters, before.prey, env.blocks, rules)
        np.testing.assert_array_equal(legal[live], env.legal_actions()[live])
        who = rng.integers(3, size=(B, rules.hunters))
        expected = np.take_along_axis(strategy_probs(env, STRATEGIES, 0.1), who[..., None, None], 2)[:, :, 0]
        probs = cells_probs(before, STRATEGIES, who, 0.1, first, env.blocks, rules)
        np.testing.assert_allclose(probs[live], expected[live], atol=1e-12)
        any_action = rng.integers(7, size=(B, rules.hunters))
        is_random = rng.random(any_action.shape) < 0.8
        actions = np.where(is_random, random_actions(env, rng), any_action)  # some are illegal
        after, rewards, over = step_cells(before, actions, env.blocks, rules)
        _, expected_rewards, _, _ = env.step(actions)
        np.testing.assert_array_equal(rewards[live], expected_rewards[live])
        np.testing.assert_array_equal(over[live], env.ended[live])
        for cells, expected_cells in zip(after, cells_of(env), strict=True):
            np.testing.assert_array_equal(cells[live], expected_cells[live])
        captures += (rewards[live] > 0).sum()
    assert captures > 20


@pytest.mark.parametrize("n", [1, 4, 7, 21])
def test_legal_cells_of_any_number_of_hunters(n):
    rules = Rules(height=4, width=5, blocks=3)
    env = StagHunt(3, rules)
    env.reset(seed=2)
    hunters = np.random.default_rng(n).integers(0, rules.cells + 1, (3, n))
    legal = legal_cells(hunters, env.prey, env.blocks, rules)
    assert legal.shape == (3, n, 7) and legal[..., 4].all()
    for column in range(n):
        one = legal_cells(hunters[:, column : column + 1], env.prey, env.blocks, rules)
        np.testing.assert_array_equal(legal[:, column], one[:, 0])
    assert (legal.sum(2)[hunters == rules.cells] == 1).all()


def test_prey_move_on_cells_as_often_as_in_the_core():
    rules = Rules(height=4, width=4, blocks=2, hares=3, prey_moves=0.5)
    rng, n = np.random.default_rng(0), 20_000
    env = StagHunt(1, rules)
    env.reset(seed=1)
    blocks = env.blocks.repeat(n, 0)
    start = Cells(*(part.repeat(n, 0) for part in cells_of(env)))
    stay = np.full((n, 4), 4)
    with pytest.raises(ValueError, match="rng"):
        step_cells(start, stay, blocks, rules)
    prey = step_cells(start, stay, blocks, rules, rng)[0].prey
    ranked = np.sort(prey, 1)
    assert (ranked[:, 1:] != ranked[:, :-1]).all()
    assert not np.take_along_axis(blocks, prey, 1).any()
    copies = StagHunt(n, rules)
    state = env.state[np.zeros(n, int)]
    key = rng.integers(2**63, size=n).astype(np.uint64)  # the same board, another random stream each
    copies.set_state(replace(state, key=key))
    copies.step(stay)
    for slot in range(rules.prey):
        on_cells, in_core = (np.bincount(p[:, slot], minlength=16) / n for p in (prey, copies.prey))
        np.testing.assert_allclose(on_cells, in_core, atol=0.02)
