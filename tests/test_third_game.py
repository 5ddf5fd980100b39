"""A game that `envs/` does not know, of as many kinds of prey as there can be: all that is generic plays it.

CONTRIBUTING.md, "Adding a third game", walks through a module such as this one.
"""

from dataclasses import dataclass
from typing import ClassVar

import gymnasium
import numpy as np

from envs import hop_to_joint, joint_to_hop, joint_to_planes, make_core, planes_to_joint, strategy_probs
from envs.core import TAKE, Cells, check_rules, legal_actions, legal_cells, step_cells
from envs.game import STAY, Game, Strategy
from envs.grid import symmetries
from envs.scripted import cells_probs, random_actions

GAME = Game(
    id="Orchard-v0",
    name="orchard",
    prey=("BERRIES", "NUTS", "FISH"),
    takes=("PICK", "CRACK", "CATCH"),
    leaves=False,
    strategies={
        "PICKER": Strategy(("BERRIES", "NUTS"), otherwise="any"),
        "ANGLER": Strategy(("FISH",), "walk"),
    },
    goals={"pick": "PICKER", "fish": "ANGLER"},
)
PICK, CRACK, CATCH = range(TAKE, TAKE + 3)


@dataclass(frozen=True)
class Rules:
    """Who takes is paid 1, 2 or 3 by kind; fish move. The game ends with the first tick on which nothing is left."""

    game: ClassVar[Game] = GAME
    hunters: int = 3
    berries: int = 2
    nuts: int = 1
    fish: int = 2
    blocks: int = 2
    height: int = 4
    width: int = 4
    horizon: int = 12
    prey_moves: float = 0.0
    end_after_first_hunt: ClassVar[None] = None

    def __post_init__(self):
        check_rules(self, dict(hunters=1, berries=0, nuts=0, fish=0, blocks=0, height=1, width=1, horizon=1))

    @property
    def cells(self):
        return self.height * self.width

    @property
    def prey(self):
        return sum(self.prey_counts)

    @property
    def prey_counts(self):
        return self.berries, self.nuts, self.fish

    def resolve(self, hunters, actions, dtype=np.float32):
        captures = actions >= TAKE
        return captures, np.where(captures, actions - STAY, 0).astype(dtype)

    def ended(self, tick, first_hunt, active, prey):
        return (prey == self.cells).all(1)


def test_the_core_and_the_game_on_cells_play_it_alike():
    rules, rng, B = Rules(), np.random.default_rng(0), 64
    core = make_core(B, rules)
    core.reset(seed=1)
    first = core.distances().copy()
    names = tuple(GAME.strategies)
    taken = np.zeros(3, int)
    while not core.ended.all():
        live, before = ~core.ended, Cells(core.hunters, core.prey, core.tick, core.first_hunt)
        legal = core.legal_actions()[live]
        assert legal.shape[2] == 8
        np.testing.assert_array_equal(
            legal_cells(before.hunters, before.prey, core.blocks, rules)[live], legal
        )
        np.testing.assert_array_equal(legal_actions(core.obs)[live], legal)
        ids = rng.integers(2, size=(B, 3))
        probs = strategy_probs(core, names, 0.1)
        np.testing.assert_allclose(probs.sum(-1), 1.0)
        expected = np.take_along_axis(probs, ids[..., None, None], 2)[:, :, 0]
        on_cells = cells_probs(before, names, ids, 0.1, first, core.blocks, rules)
        np.testing.assert_allclose(on_cells[live], expected[live], atol=1e-12)
        any_action = rng.integers(8, size=ids.shape)
        actions = np.where(rng.random(ids.shape) < 0.9, random_actions(core, rng), any_action)
        after, rewards, over = step_cells(before, actions, core.blocks, rules)
        _, core_rewards, _, _ = core.step(actions)
        np.testing.assert_array_equal(rewards[live], core_rewards[live])
        np.testing.assert_array_equal(over[live], core.ended[live])
        np.testing.assert_array_equal(after.prey[live], core.prey[live])
        np.testing.assert_array_equal(after.hunters[live], core.hunters[live])
        taken += [(core.effective_actions == action).sum() for action in (PICK, CRACK, CATCH)]
    assert taken.min() > 10 and core.active.all()


def test_each_kind_is_in_its_plane_and_its_place():
    core = make_core(8, Rules())
    obs = core.reset(seed=2)
    kind = np.repeat([3, 4, 5], Rules().prey_counts)
    for board in range(8):
        for slot, cell in enumerate(core.prey[board]):
            assert obs[board, :, kind[slot]].reshape(3, 16)[:, cell].all()
    assert obs[:, 0, 3:].sum((0, 2, 3)).tolist() == [16, 8, 16]
    joint = planes_to_joint(obs)
    assert joint.shape == (8, 7, 4, 4)
    np.testing.assert_array_equal(joint_to_planes(joint, 3), obs)
    for seat in range(3):
        hop = joint_to_hop(joint, seat, 3)
        np.testing.assert_array_equal(hop[..., 0], obs[:, seat, 0])
        np.testing.assert_array_equal(np.moveaxis(hop[..., 3:], -1, 1), obs[:, 0, 2:])
        np.testing.assert_array_equal(hop_to_joint(hop, seat, 3), joint)


def test_strategies_do_as_they_say_where_nothing_is_left_to_go_for():
    core = make_core(1, Rules(blocks=0))
    core.reset(seed=3)
    state = core.state
    state.hunters[0] = 5, 6, 7
    state.prey[0] = -1, -1, -1, 6, -1  # one fish
    core.set_state(state)
    probs = strategy_probs(core, ["PICKER", "ANGLER"])[0]
    np.testing.assert_array_equal(probs[0, 0], [0.2] * 5 + [0.0] * 3)
    np.testing.assert_allclose(probs[1, 0], [1 / 6] * 5 + [0.0, 0.0, 1 / 6])
    assert probs[0, 1].argmax() == 3 and probs[1, 1, CATCH] == probs[2, 1, 2] == 1.0
    state.prey[0, 3] = -1
    state.prey[0, [1, 2]] = 12, 4  # a berry far below seat 0, a nut beside it
    core.set_state(state)
    probs = strategy_probs(core, ["PICKER"])[0, 0, 0]
    np.testing.assert_array_equal(probs, [0, 0.5, 0.5, 0, 0, 0, 0, 0])
    state.prey[0, 1] = -1
    core.set_state(state)
    np.testing.assert_array_equal(strategy_probs(core, ["PICKER"])[0, 0, 0], np.eye(8)[2])
    np.testing.assert_array_equal(strategy_probs(core, ["ANGLER"])[0, 0, 0], [0.2] * 5 + [0.0] * 3)


def test_symmetries_leave_what_takes_prey_alone():
    _, actions = symmetries(4, 4, GAME.num_actions)
    assert actions.shape == (8, 8) and (actions[:, 4:] == np.arange(4, 8)).all()
    np.testing.assert_array_equal(actions[:, :7], symmetries(4, 4)[1])


def test_the_vector_view_takes_its_rules():
    env = gymnasium.make_vec(
        "StagHunt-v0", num_envs=16, game=None, rules=Rules(prey_moves=0.5), co_players="mixed"
    )
    obs, infos = env.reset(seed=1)
    assert obs.shape == (16, 6, 4, 4) and infos["action_mask"].shape == (16, 8)
    ends = 0
    for _ in range(30):
        obs, _, terminated, truncated, infos = env.step(infos["action_mask"].argmax(1))
        assert set(np.unique(infos["strategy_ids"])) == {-1, 0, 1}
        ends += (terminated | truncated).sum()
    assert ends >= 32
