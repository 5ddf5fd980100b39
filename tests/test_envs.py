"""The game: the fast core against the slow reference, against hand-computed boards, and against its own rules."""

import copy
import pickle
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from reference import MOVES, Reference, distances, neighbour, place, positions, repeat, some_rules, splitmix

from envs import Rules, StagHunt, State, sample_actions, strategy_probs
from envs.grid import FAR, distance_fields
from envs.stag_hunt import splitmix64

UP, DOWN, LEFT, RIGHT, STAY, HUNT_STAG, HUNT_HARE = range(7)
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True, database=None)

BOARDS = {
    "4p5b 8x8": Rules(),
    "4x4 no blocks": Rules(height=4, width=4, blocks=0, horizon=14),
    "3x5": Rules(height=3, width=5, blocks=2, hares=2, horizon=12),
    "12x12": Rules(height=12, width=12, hunters=6, stags=2, hares=8, blocks=12, horizon=20),
    "one hunter": Rules(height=5, width=4, hunters=1, hares=2, horizon=14),
    "three needed": Rules(height=5, width=5, hunters_needed=3, hares=2, blocks=3, horizon=16),
    "one needed, three stags": Rules(
        height=4, width=5, hunters_needed=1, stags=3, hares=1, blocks=3, horizon=14
    ),
    "9x6": Rules(height=9, width=6, horizon=20),
    "no prey": Rules(height=4, width=3, stags=0, hares=0, blocks=2, hunters=2, horizon=5),
    "full corridor": Rules(height=1, width=7, hunters=2, blocks=0, hares=3, stags=2, horizon=10),
}


# ---- the fast core plays as the reference does


def same(what, fast, slow):
    """Compare board by board: a difference of two whole batches could not be read."""
    for board, (got, expected) in enumerate(zip(fast, slow, strict=True)):
        assert got == expected, f"{what}, board {board}: {got} != {expected}"


def assert_same_state(env, refs):
    """What a player sees and may do, and all that decides how the board goes on."""
    state = env.state
    same("tick", state.tick.tolist(), [ref.tick for ref in refs])
    same("ended", state.ended.tolist(), [ref.ended for ref in refs])
    same(
        "first hunt",
        state.first_hunt.tolist(),
        [-1 if ref.first_hunt is None else ref.first_hunt for ref in refs],
    )
    same("ticks left", env.ticks_left.tolist(), [ref.ticks_left() for ref in refs])
    same(
        "stream",
        zip(state.key.tolist(), state.counter.tolist(), strict=True),
        [(ref.key, ref.counter) for ref in refs],
    )
    same("active", env.active.tolist(), [[cell is not None for cell in ref.hunters] for ref in refs])
    legal = [
        [[action in ref.legal(seat) for action in range(7)] for seat in range(ref.rules.hunters)]
        for ref in refs
    ]
    same("legal", env.legal_actions().tolist(), legal)
    same("obs", env.obs.tolist(), [ref.obs() for ref in refs])


def step_both(env, refs, actions):
    """Play one tick in both and compare all that comes back."""
    obs, rewards, terminated, truncated = env.step(actions)
    expected = [ref.step(row) for ref, row in zip(refs, actions.tolist(), strict=True)]
    assert obs is env.obs and obs.dtype == np.uint8 and rewards.dtype == np.float32
    assert terminated.dtype == truncated.dtype == bool
    same("effective actions", env.effective_actions.tolist(), [ref.effective for ref in refs])
    same("rewards", rewards.tolist(), [np.float32(each[0]).tolist() for each in expected])
    same("terminated", terminated.tolist(), [each[1] for each in expected])
    same("truncated", truncated.tolist(), [each[2] for each in expected])
    assert_same_state(env, refs)


def mixed_play(env, rng):
    """A third of the boards plays anything, also illegal; a third NS or NH by seat; a third NS, which captures stags."""
    B, A = env.num_boards, env.rules.hunters
    probs = strategy_probs(env, ("NS", "NH"), epsilon=0.1)  # [B, A, 2, 7]
    board, seat = np.ogrid[:B, :A]
    kind = np.where(board % 3 == 1, (board + seat + board // 3) % 2, 0)
    actions = sample_actions(probs[board, seat, kind], rng.random((B, A)))
    return np.where(board % 3 == 0, rng.integers(0, 7, (B, A)), actions)


def some_ended(env, rng, t):
    """Boards to reset: half of the ended ones (the others stand still), now and then any; as a mask or as numbers."""
    chosen = rng.random(env.num_boards) < np.where(env.ended, 0.5, 0.02)
    return chosen if t % 2 else rng.permutation(np.flatnonzero(chosen))


@pytest.mark.parametrize("end_after", [None, 0, 3])
@pytest.mark.parametrize("prey_moves", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", BOARDS)
def test_core_plays_as_the_reference(name, prey_moves, end_after):
    rules = replace(BOARDS[name], prey_moves=prey_moves, end_after_first_hunt=end_after)
    seed = 1 + list(BOARDS).index(name)
    rng = np.random.default_rng(seed)
    env, refs = StagHunt(18, rules), [Reference(rules, seed, board) for board in range(18)]
    env.reset(seed=seed)
    assert_same_state(env, refs)
    for t in range(rules.horizon + 5):
        step_both(env, refs, mixed_play(env, rng))
        if t > 5:
            chosen = some_ended(env, rng, t)
            env.reset(boards=chosen)
            for board in np.arange(18)[chosen]:
                refs[board].reset()
            assert_same_state(env, refs)


@PROPERTY
@given(positions())
def test_core_plays_as_the_reference_from_any_state(position):
    rules, state, actions = position
    env = StagHunt(1, rules)
    env.set_state(state)
    refs = [Reference.from_state(rules, state, 0)]
    assert_same_state(env, refs)
    for _ in range(3):
        step_both(env, refs, actions)


def test_play_above_reaches_what_is_worth_comparing():
    """Without these events the comparison would prove little: captures by two and by more, a failed hunt, ..."""
    env, rng, seen = StagHunt(900, Rules()), np.random.default_rng(0), Counter()
    env.reset(seed=1)
    for t in range(35):
        actions = mixed_play(env, rng)
        legal = np.take_along_axis(env.legal_actions(), actions[..., None].astype(int), 2)[..., 0]
        _, rewards, terminated, truncated = env.step(actions)
        seen["illegal"] += int((~legal & env.active).sum())
        seen["failed hunt"] += int(((env.effective_actions == HUNT_STAG) & ~terminated).sum())
        seen["others on the same cell"] += int((env.obs[:, :, 0] & env.obs[:, :, 1]).sum())
        seen["truncated beside terminated"] += int((truncated.any(1) & (~env.active).any(1)).sum())
        seen["terminated at the horizon"] += int(terminated.any(1).sum()) if t == 34 else 0
        seen["all left"] += int((terminated.any(1) & ~env.active.any(1)).sum())
        seen.update(f"share {share:.2f}" for share in rewards[rewards > 0])
    kinds = ["illegal", "failed hunt", "others on the same cell", "truncated beside terminated", "all left"]
    kinds += ["terminated at the horizon", "share 5.00", "share 3.33", "share 1.00", "share 0.50"]
    assert all(seen[kind] > 0 for kind in kinds), seen


def test_distances_are_those_of_a_breadth_first_search():
    """Also after prey moved, were captured, and boards were reset: fields are computed again only where needed."""
    rules = Rules(height=6, width=7, stags=2, blocks=9, prey_moves=0.3)
    env, refs, rng = (
        StagHunt(20, rules),
        [Reference(rules, 3, board) for board in range(20)],
        np.random.default_rng(3),
    )
    env.reset(seed=3)
    for t in range(45):
        for ref, fast in zip(refs, env.distances(), strict=True):
            for slot, prey in enumerate(ref.stags + ref.hares):
                steps = {} if prey is None else distances(ref.free, prey)
                assert fast[slot].tolist() == [steps.get(cell, FAR) for cell in ref.cells]
        actions = mixed_play(env, rng)
        env.step(actions)
        chosen = some_ended(env, rng, t)
        env.reset(boards=chosen)
        for board, ref in enumerate(refs):
            ref.step(actions[board])
            if board in np.arange(20)[chosen]:
                ref.reset()


def test_distance_fields_by_hand():
    blocks = np.array([[[0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]]], bool)
    sources = np.zeros((2, 3, 4), bool)
    sources[0, 0, 0] = sources[0, 0, 3] = sources[1, 1, 1] = True  # two sources; one that stands on a block
    fast = distance_fields(np.repeat(blocks, 2, 0), sources)
    assert fast[0].tolist() == [[0, FAR, 1, 0], [1, FAR, 2, FAR], [2, 3, 3, FAR]]
    assert (fast[1] == FAR).all()


# ---- boards computed by hand


def set_up(rules, *args, **kwargs):
    """One board of the fast core with things placed on it."""
    env = StagHunt(1, rules)
    env.set_state(place(rules, *args, **kwargs))
    return env


def play(env, *actions):
    """One tick on one board. Returns: rewards, terminated, truncated as lists."""
    return [out[0].tolist() for out in env.step(np.array([actions]))[1:]]


TRIO = Rules(hunters=3, stags=1, hares=1, blocks=0, height=3, width=3, horizon=5)
S, H = (0, 1), (2, 2)  # where the stag and the hare of TRIO stand below


def test_two_hunters_share_a_stag():
    env = set_up(TRIO, [S, (1, 1), S], [S, H])
    rewards, terminated, truncated = play(env, HUNT_STAG, LEFT, HUNT_STAG)
    assert rewards == [5.0, 0.0, 5.0] and terminated == [True, False, True] and not any(truncated)
    assert env.state.hunters.tolist() == [[-1, 3, -1]] and env.state.prey.tolist() == [[-1, 8]]
    assert env.first_hunt.tolist() == [0] and env.tick.tolist() == [1] and env.ended.tolist() == [False]


@pytest.mark.parametrize(
    ("hunters", "share"), [(2, 5.0), (3, np.float32(10) / np.float32(3)), (4, 2.5), (5, 2.0)]
)
def test_a_stag_is_shared_equally(hunters, share):
    env = set_up(replace(TRIO, hunters=hunters), [S] * hunters, [S, H])
    rewards, terminated, _ = play(env, *[HUNT_STAG] * hunters)
    assert rewards == [share] * hunters and all(terminated) and env.ended.all()


def test_a_hare_is_shared_equally_and_one_hunter_is_enough():
    env = set_up(TRIO, [H, H, S], [S, H])
    assert play(env, HUNT_HARE, HUNT_HARE, STAY)[0] == [0.5, 0.5, 0.0]
    env = set_up(TRIO, [H, H, S], [S, H])
    assert play(env, HUNT_HARE, STAY, STAY)[:2] == [[1.0, 0.0, 0.0], [True, False, False]]


def test_both_kinds_of_prey_in_one_tick():
    env = set_up(replace(TRIO, stag_reward=7.0, hare_reward=3.0), [S, H, S], [S, H])
    assert play(env, HUNT_STAG, HUNT_HARE, HUNT_STAG) == [[3.5, 3.0, 3.5], [True] * 3, [False] * 3]
    assert env.ended.all()


def test_a_hunter_alone_does_not_get_the_stag():
    env = set_up(TRIO, [S, S, (0, 0)], [S, H])
    assert play(env, HUNT_STAG, STAY, RIGHT)[:2] == [[0.0] * 3, [False] * 3]  # one stays, one only arrives
    assert env.effective_actions.tolist() == [[HUNT_STAG, STAY, RIGHT]]
    assert env.first_hunt.tolist() == [-1]
    assert play(env, STAY, HUNT_STAG, HUNT_STAG)[0] == [0.0, 5.0, 5.0]


def test_hunters_on_different_stags_do_not_help_each_other():
    env = set_up(replace(TRIO, stags=2, hares=0), [S, H, H], [S, H])
    assert play(env, HUNT_STAG, HUNT_STAG, STAY)[0] == [0.0] * 3
    assert play(env, HUNT_STAG, HUNT_STAG, HUNT_STAG)[:2] == [[0.0, 5.0, 5.0], [False, True, True]]
    assert env.state.prey.tolist() == [[1, -1]]


def test_hunters_needed():
    rules = replace(TRIO, hunters_needed=3)
    assert play(set_up(rules, [S, S, S], [S, H]), HUNT_STAG, HUNT_STAG, STAY)[0] == [0.0] * 3
    assert play(set_up(rules, [S, S, S], [S, H]), *[HUNT_STAG] * 3)[0] == [np.float32(10) / np.float32(3)] * 3
    assert play(set_up(replace(TRIO, hunters_needed=1), [S, S, S], [S, H]), STAY, STAY, HUNT_STAG)[0] == [
        0,
        0,
        10,
    ]


def test_all_hunters_move_at_once_and_may_share_cells():
    env = set_up(TRIO, [(1, 1), (1, 0), (1, 1)], [S, H], blocks=[(2, 1)])
    play(env, LEFT, RIGHT, DOWN)  # two swap; the third bumps into the block
    assert env.state.hunters.tolist() == [[3, 4, 4]]
    assert env.effective_actions.tolist() == [[LEFT, RIGHT, STAY]]
    play(env, LEFT, UP, UP)  # a wall; two hunters and the stag on one cell
    assert env.state.hunters.tolist() == [[3, 1, 1]]


def test_legal_actions_by_hand():
    env = set_up(TRIO, [S, H, None], [S, H], blocks=[(1, 1)])
    assert env.legal_actions()[0].astype(int).tolist() == [
        [0, 0, 1, 1, 1, 1, 0],  # top row, above the block, on the stag
        [1, 0, 1, 0, 1, 0, 1],  # bottom right corner, on the hare
        [0, 0, 0, 0, 1, 0, 0],  # has left
    ]


def test_observation_by_hand():
    env = set_up(TRIO, [S, None, (2, 0)], [S, H], blocks=[(1, 1)])
    empty, block = [[0, 0, 0]] * 3, [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    top, corner = [[0, 1, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    both, hare = [[0, 1, 0], [0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert env.obs[0, 0].tolist() == [top, corner, block, top, hare]
    assert env.obs[0, 1].tolist() == [empty, both, block, top, hare]
    assert env.obs[0, 2].tolist() == [corner, top, block, top, hare]


def test_a_shared_cell_stays_in_others_when_one_of_two_leaves_it():
    env = set_up(TRIO, [(1, 1), (1, 1), S], [S, H])
    play(env, LEFT, STAY, STAY)
    assert env.obs[0, 2, 1].tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
    env = set_up(TRIO, [H, H, S], [S, H])
    play(env, HUNT_HARE, STAY, STAY)
    assert env.obs[0, 2, 1].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_horizon_truncates_those_who_are_left():
    env = set_up(TRIO, [None, (0, 0), H], [S, H], tick=3, first_hunt=1)
    assert play(env, STAY, STAY, STAY)[1:] == [[False] * 3, [False] * 3] and not env.ended.any()
    assert play(env, STAY, STAY, STAY)[1:] == [[False] * 3, [False, True, True]]
    assert env.ended.all() and env.tick.tolist() == [5]


def test_a_capture_on_the_last_tick_terminates():
    env = set_up(TRIO, [S, S, H], [S, H], tick=4)
    assert play(env, HUNT_STAG, HUNT_STAG, STAY) == [
        [5.0, 5.0, 0.0],
        [True, True, False],
        [False, False, True],
    ]
    env = set_up(TRIO, [S, S, H], [S, H], tick=4)
    assert play(env, HUNT_STAG, HUNT_STAG, HUNT_HARE)[1:] == [[True] * 3, [False] * 3]


def test_end_after_first_hunt_0_ends_in_the_tick_of_the_capture():
    env = set_up(replace(TRIO, end_after_first_hunt=0), [S, S, H], [S, H])
    assert env.ticks_left.tolist() == [-1]
    assert play(env, STAY, STAY, HUNT_HARE) == [[0.0, 0.0, 1.0], [True] * 3, [False] * 3]
    assert env.ended.all() and env.ticks_left.tolist() == [0]


def test_end_after_first_hunt_counts_the_ticks_that_follow():
    env = set_up(replace(TRIO, end_after_first_hunt=2), [S, S, H], [S, H])
    assert play(env, STAY, STAY, HUNT_HARE)[1:] == [
        [False, False, True],
        [False] * 3,
    ] and env.ticks_left.tolist() == [2]
    assert play(env, STAY, STAY, STAY)[1:] == [[False] * 3, [False] * 3] and env.ticks_left.tolist() == [1]
    assert play(env, HUNT_STAG, HUNT_STAG, STAY) == [[5.0, 5.0, 0.0], [True, True, False], [False] * 3]
    assert env.ended.all() and env.tick.tolist() == [3]


def test_a_second_capture_does_not_start_the_countdown_again():
    env = set_up(replace(TRIO, end_after_first_hunt=1), [S, S, S], [S, H], tick=2, first_hunt=1)
    assert env.ticks_left.tolist() == [1]
    assert play(env, HUNT_STAG, HUNT_STAG, STAY)[1:] == [[True] * 3, [False] * 3]


@pytest.mark.parametrize(("k", "terminated"), [(1, False), (0, True)])
def test_the_horizon_against_the_countdown(k, terminated):
    """The board ends at the horizon at the latest; where both fall on one tick, the rule comes before the time limit."""
    env = set_up(replace(TRIO, end_after_first_hunt=k), [S, S, H], [S, H], tick=4)
    out = play(env, STAY, STAY, HUNT_HARE)
    assert out[1:] == (
        [[True] * 3, [False] * 3] if terminated else [[False, False, True], [True, True, False]]
    )
    env = set_up(replace(TRIO, end_after_first_hunt=4), [S, S, None], [S, None], tick=3, first_hunt=2)
    assert env.ticks_left.tolist() == [2]  # of the four, only the ticks 3 and 4 are still before the horizon


def test_prey_move_after_the_hunts():
    rules = Rules(hunters=2, stags=1, hares=0, blocks=0, height=1, width=3, prey_moves=1.0)
    env = set_up(rules, [(0, 0), (0, 1)], [(0, 0)])
    assert play(env, HUNT_STAG, LEFT)[0] == [0.0, 0.0]  # the hunt fails, then the stag steps to the right
    assert env.state.prey.tolist() == [[1]] and env.obs[0, 0, 3].tolist() == [[0, 1, 0]]
    assert np.flatnonzero(env.legal_actions()[0, 0]).tolist() == [RIGHT, STAY]
    assert play(env, HUNT_STAG, HUNT_STAG)[0] == [0.0, 0.0]  # too late: it is not there any more


def test_stags_move_first_and_each_prey_sees_the_earlier_moves():
    rules = Rules(hunters=1, stags=1, hares=1, blocks=0, height=1, width=3, prey_moves=1.0)
    env = set_up(rules, [(0, 0)], [(0, 0), (0, 1)])
    play(env, STAY)  # the stag is shut in by the hare, which has one way; then the way is free
    assert env.state.prey.tolist() == [[0, 2]]
    play(env, STAY)  # the stag takes the middle, and shuts in the hare
    assert env.state.prey.tolist() == [[1, 2]]


def test_prey_step_as_often_as_told_and_every_way_alike():
    rules = Rules(hunters=1, stags=1, hares=1, blocks=0, height=3, width=3, prey_moves=0.6)
    n = 20_000
    state = repeat(place(rules, [(0, 0)], [(1, 1), (1, 2)]), n)
    state.key = np.array([splitmix(7, board) for board in range(n)], np.uint64)
    env = StagHunt(n, rules)
    env.set_state(state)
    env.step(np.full((n, 1), STAY))
    counts = np.bincount(env.state.prey[:, 0], minlength=9)
    expected = np.array([0, 0.2, 0, 0.2, 0.4, 0, 0, 0.2, 0])  # the hare is in the way to the right
    assert (counts[expected == 0] == 0).all()
    assert (np.abs(counts / n - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-12).all()


# ---- the rules, on states that hypothesis draws


def fresh(rules, state):
    """A core in this state, as many boards as the state has."""
    env = StagHunt(len(state.tick), rules)
    env.set_state(state)
    return env


def stepped(rules, state, actions):
    """(state before, state after, rewards, terminated, truncated, obs) of one tick."""
    env = fresh(rules, state)
    obs, *rest = env.step(actions)
    return env.state, *rest, obs


@PROPERTY
@given(positions())
def test_nothing_appears_and_who_leaves_has_captured(position):
    rules, before, actions = position
    after, rewards, terminated, truncated, _ = stepped(rules, before, actions)
    there, here, alive = before.hunters >= 0, after.hunters >= 0, before.prey >= 0
    left = there & ~here
    event(f"captures: {(alive & (after.prey < 0)).sum()}")
    assert not (here & ~there).any() and not ((after.prey >= 0) & ~alive).any()
    assert ((rewards > 0) == left).all() and (terminated[left]).all()
    assert not (terminated & ~there).any() and not (truncated & ~here).any()
    assert not (terminated & truncated).any() and (after.blocks == before.blocks).all()
    if rules.prey_moves == 0:
        assert (after.prey[after.prey >= 0] == before.prey[after.prey >= 0]).all()
    live = after.prey[after.prey >= 0]
    assert len(set(live.tolist())) == len(live) and not before.blocks[0, live].any()


@PROPERTY
@given(positions(prey_moves=(0.0,)))
def test_rewards_are_those_of_the_captured_prey_shared_equally(position):
    rules, before, actions = position
    after, rewards, _, _, _ = stepped(rules, before, actions)
    captured = np.flatnonzero((before.prey[0] >= 0) & (after.prey[0] < 0))
    worth = np.where(captured < rules.stags, rules.stag_reward, rules.hare_reward)
    assert rewards.sum() == pytest.approx(worth.sum(), rel=1e-6)
    left = (before.hunters[0] >= 0) & (after.hunters[0] < 0)
    for slot, value in zip(captured, worth, strict=True):
        team = left & (before.hunters[0] == before.prey[0, slot])
        assert rewards[0, team] == pytest.approx(value / team.sum(), rel=1e-6)
        assert team.sum() >= (rules.hunters_needed if slot < rules.stags else 1)
        assert (actions[0, team] == (HUNT_STAG if slot < rules.stags else HUNT_HARE)).all()


@PROPERTY
@given(positions())
def test_planes(position):
    rules, before, actions = position
    after, _, _, _, obs = stepped(rules, before, actions)
    assert obs.max() <= 1
    assert (obs[0, :, 0].sum((1, 2)) == (after.hunters[0] >= 0)).all()
    for seat in range(rules.hunters):
        union = np.delete(obs[0, :, 0], seat, 0).max(0, initial=0)
        assert (obs[0, seat, 1] == union).all()
        assert (obs[0, seat, 2:] == obs[0, 0, 2:]).all()
    assert (obs[0, 0, 2] == before.blocks.reshape(rules.height, rules.width)).all()
    counts = (after.prey[0, : rules.stags] >= 0).sum(), (after.prey[0, rules.stags :] >= 0).sum()
    assert (obs[0, 0, 3].sum(), obs[0, 0, 4].sum()) == counts and not (obs[0, 0, 3] & obs[0, 0, 4]).any()


@PROPERTY
@given(positions(), st.randoms(use_true_random=False))
def test_permuting_the_seats_permutes_everything(position, random):
    rules, before, actions = position
    order = random.sample(range(rules.hunters), rules.hunters)
    permuted = replace(before, hunters=before.hunters[:, order])
    one, two = fresh(rules, before), fresh(rules, permuted)
    assert (two.legal_actions() == one.legal_actions()[:, order]).all()
    for first, second in zip(one.step(actions), two.step(actions[:, order]), strict=True):
        assert (second == first[:, order]).all()
    assert (one.state.prey == two.state.prey).all() and one.ended == two.ended


def symmetries(grid):
    """The eight images of a board; the last two axes are rows and columns."""
    for turned in (grid, np.swapaxes(grid, -1, -2)):
        for axes in ((), (-1,), (-2,), (-1, -2)):
            yield np.flip(turned, axes)


def image_of_cells(height, width, which):
    """[K + 1]: where each cell goes; the last entry keeps -1, for what has left."""
    grid = list(symmetries(np.arange(height * width).reshape(height, width)))[which]
    return np.append(np.argsort(grid.ravel()), -1)


def image_of_actions(which):
    """[7]: what each action becomes, read off where the centre's neighbours go on a board of 3x3."""
    around = {1: UP, 7: DOWN, 3: LEFT, 5: RIGHT}
    image = image_of_cells(3, 3, which)
    moves = {move: around[image[cell]] for cell, move in around.items()}
    return np.array([moves.get(action, action) for action in range(7)])


@PROPERTY
@given(positions(prey_moves=(0.0,)), st.integers(0, 7))
def test_the_symmetries_of_the_board(position, which):
    rules, before, actions = position
    image, turn = image_of_cells(rules.height, rules.width, which), image_of_actions(which)
    height, width = list(symmetries(np.zeros((rules.height, rules.width))))[which].shape
    blocks = np.zeros_like(before.blocks)
    blocks[:, image[:-1]] = before.blocks
    turned = replace(before, blocks=blocks, hunters=image[before.hunters], prey=image[before.prey])
    one, two = fresh(rules, before), fresh(replace(rules, height=height, width=width), turned)
    assert (two.legal_actions()[..., turn] == one.legal_actions()).all()
    first, second = one.step(actions), two.step(turn[actions])
    assert (second[0] == list(symmetries(first[0]))[which]).all()
    for a, b in zip(first[1:], second[1:], strict=True):
        assert (a == b).all()
    assert (two.effective_actions == turn[one.effective_actions]).all()
    assert (two.state.hunters == image[one.state.hunters]).all() and (
        two.state.prey == image[one.state.prey]
    ).all()


@PROPERTY
@given(positions())
def test_a_legal_action_has_its_effect_and_an_illegal_one_is_staying(position):
    """Each seat in turn tries each of its actions, the others do as drawn."""
    rules, before, actions = position
    legal = fresh(rules, before).legal_actions()[0]
    for seat in range(rules.hunters):
        tries = np.repeat(actions, 7, 0)
        tries[:, seat] = range(7)
        env = fresh(rules, repeat(before, 7))
        env.step(tries)
        after, cell = env.state, before.hunters[0, seat]
        assert env.effective_actions[:, seat].tolist() == [a if legal[seat, a] else STAY for a in range(7)]
        for action in range(7):
            if not legal[seat, action]:
                assert_same_board(after, action, STAY)
            elif action in MOVES:
                to = int(after.hunters[action, seat])
                assert divmod(to, rules.width) == neighbour(divmod(int(cell), rules.width), action)
                assert not before.blocks[0, to]
            elif action == HUNT_HARE:
                assert after.hunters[action, seat] == -1 and cell in before.prey[0, rules.stags :]
            elif action == HUNT_STAG:
                together = ((before.hunters[0] == cell) & (tries[action] == HUNT_STAG)).sum()
                assert (after.hunters[action, seat] == -1) == (together >= rules.hunters_needed)
                assert cell in before.prey[0, : rules.stags]


def assert_same_board(state, one, other):
    """All of the boards number `one` and `other` is equal."""
    for field in fields(State):
        value = getattr(state, field.name)
        assert (value[one] == value[other]).all(), field.name


@PROPERTY
@given(positions(), st.lists(st.integers(0, 6), min_size=4, max_size=4))
def test_who_has_left_can_do_nothing(position, others):
    rules, before, actions = position
    gone = before.hunters < 0
    changed = np.where(gone, np.array(others)[: rules.hunters], actions)
    env = fresh(rules, repeat(before, 2))
    obs, *rest = env.step(np.concatenate([actions, changed]))
    assert_same_board(env.state, 0, 1)
    assert (obs[0] == obs[1]).all() and all((out[0] == out[1]).all() for out in rest)
    assert (rest[0][:1][gone] == 0).all() and (env.effective_actions[:1][gone] == STAY).all()


@PROPERTY
@given(positions())
def test_an_ended_board_stands_still(position):
    rules, before, actions = position
    before.ended[:] = True
    env = fresh(rules, before)
    obs = env.obs.copy()
    assert (env.legal_actions() == np.eye(7)[STAY]).all()
    assert (env.step(actions)[0] == obs).all() and not any(out.any() for out in env.step(actions)[1:])
    for field in fields(State):
        assert (getattr(env.state, field.name) == getattr(before, field.name)).all(), field.name


@settings(PROPERTY, max_examples=60)
@given(some_rules(), st.integers(0, 10**6))
def test_whole_games(rules, seed):
    """Every hunter's game ends exactly once and when it should; no team earns more than its prey are worth."""
    env, rng = StagHunt(18, rules), np.random.default_rng(seed)
    env.reset(seed=seed)
    ends, returns = np.zeros((18, rules.hunters), int), np.zeros((18, rules.hunters))
    for t in range(rules.horizon):
        assert (env.tick[~env.ended] == t).all()
        _, rewards, terminated, truncated = env.step(mixed_play(env, rng))
        ends += terminated.astype(int) + truncated
        returns += rewards
        assert (env.tick[truncated.any(1)] == rules.horizon).all()
        by_rule = (terminated & (rewards == 0)).any(1)
        assert (env.tick[by_rule] == env.first_hunt[by_rule] + (rules.end_after_first_hunt or 0) + 1).all()
        assert rules.end_after_first_hunt is not None or not by_rule.any()
    assert env.ended.all() and (ends == 1).all()
    assert (returns.sum(1) <= best_return(rules) + 1e-4).all()


def best_return(rules):
    """The most that a team can earn: every capture costs the hunters that take part."""
    return max(
        stags * rules.stag_reward + hares * rules.hare_reward
        for stags in range(rules.stags + 1)
        for hares in range(rules.hares + 1)
        if stags * rules.hunters_needed + hares <= rules.hunters
    )


def test_the_best_return_is_reached_and_is_3_a_hunter():
    assert best_return(Rules()) == 12.0
    rules = replace(Rules(), blocks=0, height=3, width=3)
    env = set_up(rules, [(0, 0), (0, 0), (0, 1), (0, 2)], [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
    assert sum(play(env, HUNT_STAG, HUNT_STAG, HUNT_HARE, HUNT_HARE)[0]) == 12.0


# ---- seeds and states


def test_the_random_stream_is_splitmix64():
    """The published first outputs, for the seeds 0 and 1234567."""
    assert int(splitmix64(np.uint64(0), np.uint64(0))) == 0xE220A8397B1DCDAF == splitmix(0, 0)
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(np.uint64(1234567), np.arange(5, dtype=np.uint64)).tolist() == known
    assert [splitmix(1234567, counter) for counter in range(5)] == known


MOVING = Rules(height=6, width=6, prey_moves=0.7)


def record(env, ticks, seed=0):
    """Play and keep everything: obs, rewards, terminated, truncated, numbers drawn; ended boards are reset."""
    kept, rng = [], np.random.default_rng(seed)
    for _ in range(ticks):
        out = env.step(rng.integers(0, 7, (1000, env.rules.hunters))[: env.num_boards])
        kept.append([*(array.copy() for array in out), env.uniform(2)])
        env.reset(boards=env.ended)
        kept[-1].append(env.obs.copy())
    return kept


def assert_equal_records(one, two, boards=slice(None)):
    for first, second in zip(one, two, strict=True):
        for a, b in zip(first, second, strict=True):
            assert np.array_equal(a[boards], b[boards])


def test_a_board_does_not_depend_on_how_many_there_are():
    few, many = StagHunt(3, MOVING), StagHunt(40, MOVING)
    assert np.array_equal(few.reset(seed=5), many.reset(seed=5)[:3])
    assert_equal_records(record(few, 80), record(many, 80), slice(0, 3))


def test_a_batch_may_start_at_any_board_of_a_seed():
    whole, part = StagHunt(9, MOVING), StagHunt(4, MOVING)
    whole.reset(seed=5)
    assert np.array_equal(part.reset(seed=5, first_board=3), whole.obs[3:7])
    assert np.array_equal(part.uniform(3), whole.uniform(3)[3:7])


def test_the_same_seed_plays_the_same_and_another_does_not():
    one, two, other = StagHunt(9, MOVING), StagHunt(9, MOVING), StagHunt(9, MOVING)
    two.reset(seed=6)
    record(two, 3)  # a seed forgets what was played before it
    one.reset(seed=5), two.reset(seed=5), other.reset(seed=6)
    assert not any(np.array_equal(a, b) for a, b in zip(one.obs, other.obs, strict=True))
    assert_equal_records(record(one, 80), record(two, 80))


def test_a_reset_without_a_seed_goes_on_in_the_streams():
    whole, parts = StagHunt(6, MOVING), StagHunt(6, MOVING)
    first = whole.reset(seed=5).copy()
    parts.reset(seed=5)
    second = whole.reset().copy()
    for board in (4, 1, 5, 0, 3, 2):
        parts.reset(boards=np.array([board]))
    assert np.array_equal(parts.obs, second) and not np.array_equal(first, second)


def test_cores_without_a_seed_differ():
    assert not np.array_equal(StagHunt(20).reset(), StagHunt(20).reset())


def test_a_state_goes_out_and_in_and_plays_on_alike():
    env = StagHunt(12, MOVING)
    env.reset(seed=3)
    record(env, 25)
    state, obs = env.state, env.obs.copy()
    twin, clone = StagHunt(12, MOVING), env.copy()
    assert np.array_equal(twin.set_state(state), obs) and np.array_equal(clone.obs, obs)
    for field in fields(State):
        a, b = getattr(state, field.name), getattr(twin.state, field.name)
        assert np.array_equal(a, b) and a.dtype == b.dtype, field.name
    played = record(env, 50)
    assert_equal_records(played, record(twin, 50))
    assert np.array_equal(clone.obs, obs)  # a copy shares nothing
    assert_equal_records(played, record(clone, 50))
    assert np.array_equal(twin.set_state(state), obs)  # nor does a state share anything with who plays it
    assert_equal_records(played, record(twin, 50))


def test_a_state_is_indexed_by_board():
    env = StagHunt(5, MOVING)
    obs = env.reset(seed=3).copy()
    state = env.state
    for boards in (slice(1, 4), np.array([3, 3, 0]), np.array([True, False, False, True, True])):
        picked = state[boards]
        assert np.array_equal(StagHunt(3, MOVING).set_state(picked), obs[boards])
        for field in fields(State):
            getattr(picked, field.name)[:] = 0  # nothing of it is shared
    assert np.array_equal(env.obs, obs) and np.array_equal(env.set_state(state), obs)


def test_start_positions_are_distinct_and_connected():
    rules = Rules(height=5, width=5, blocks=9)
    env = StagHunt(2000, rules)
    env.reset(seed=4)
    state = env.state
    things = np.concatenate([state.hunters, state.prey], 1)
    assert (state.blocks.sum(1) == 9).all() and not np.take_along_axis(
        state.blocks, things.astype(int), 1
    ).any()
    assert (np.diff(np.sort(things, 1)) > 0).all()
    far = distance_fields(
        state.blocks.reshape(-1, 5, 5), np.eye(25, dtype=bool)[things[:, 0]].reshape(-1, 5, 5)
    )
    assert ((far.reshape(-1, 25) < FAR) == ~state.blocks).all()
    assert (state.counter > 25).mean() > 0.5  # most first draws of so many blocks are not connected


def test_start_cells_are_uniform():
    """Chi-square of every thing's cell on a board without blocks; its bound is 5 standard deviations away."""
    env = StagHunt(6400, Rules(blocks=0))
    env.reset(seed=2)
    state = env.state
    for cells in np.concatenate([state.hunters, state.prey], 1).T:
        counts = np.bincount(cells, minlength=64)
        assert ((counts - 100) ** 2 / 100).sum() < 63 + 5 * np.sqrt(2 * 63)


def test_uniform_numbers():
    env = StagHunt(1000)
    env.reset(seed=2)
    before = env.state
    numbers = env.uniform(50)
    assert numbers.shape == (1000, 50) and numbers.min() >= 0 and numbers.max() < 1
    counts = np.bincount((numbers * 20).astype(int).ravel(), minlength=20)
    assert ((counts - 2500) ** 2 / 2500).sum() < 19 + 5 * np.sqrt(2 * 19)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(50)).max() < 0.2
    env.set_state(before)
    again = np.concatenate([env.uniform(20), env.uniform(30)], 1)
    assert np.array_equal(numbers, again)


# ---- errors


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(hunters=0), "hunters must be a whole number of at least 1, got 0"),
        (dict(hunters=2.0), "hunters must be a whole number .* got 2.0"),
        (dict(stags=-1), "stags must be .* at least 0"),
        (dict(hares=-1), "hares must be .* at least 0"),
        (dict(blocks=-1), "blocks must be .* at least 0"),
        (dict(height=0), "height must be .* at least 1"),
        (dict(width="8"), "width must be a whole number .* got '8'"),
        (dict(horizon=0), "horizon must be .* at least 1"),
        (dict(hunters_needed=0), "hunters_needed must be .* at least 1"),
        (dict(prey_moves=1.01), r"prey_moves must be in \[0, 1\], got 1.01"),
        (dict(prey_moves=-0.1), r"prey_moves must be in \[0, 1\]"),
        (dict(prey_moves=float("nan")), r"prey_moves must be in \[0, 1\], got nan"),
        (dict(stag_reward=float("inf")), "rewards must be finite"),
        (dict(hare_reward=float("nan")), "rewards must be finite"),
        (
            dict(end_after_first_hunt=-1),
            "end_after_first_hunt must be None or a whole number of at least 0, got -1",
        ),
        (dict(end_after_first_hunt=1.5), "end_after_first_hunt must be None or .* got 1.5"),
        (dict(height=3, width=4, blocks=4), "13 hunters, prey and blocks do not fit on 3x4 = 12 cells"),
    ],
)
def test_rules_that_cannot_be_played(wrong, says):
    with pytest.raises(ValueError, match=f"rules: .*{says}"):
        Rules(**wrong)


def test_a_board_may_be_full():
    env = StagHunt(50, Rules(height=2, width=5, blocks=1))
    env.reset(seed=1)
    assert (env.obs[:, 0].sum((1, 2, 3)) == 10).all()


def test_a_core_needs_a_board():
    with pytest.raises(ValueError, match="num_boards must be at least 1, got 0"):
        StagHunt(0)


def test_reset_errors():
    env = StagHunt(2)
    with pytest.raises(ValueError, match="reset all boards once"):
        env.reset(boards=np.array([0]))
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        env.reset(seed=-1)
    with pytest.raises(ValueError, match="a seed restarts all boards"):
        env.reset(seed=1, boards=np.array([0]))


def test_reset_gives_up_on_boards_that_do_not_connect():
    rules = Rules(height=10, width=10, blocks=70, hunters=1, stags=0, hares=0)
    with pytest.raises(ValueError, match="no board of 10x10 with 70 blocks came up connected"):
        StagHunt(1, rules).reset(seed=0)


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        (np.zeros((2, 4)), r"expected integers of shape \(2, 4\), got float64"),
        (np.zeros((2, 4), bool), r"expected integers of shape \(2, 4\), got bool"),
        (np.zeros((2, 3), int), r"expected integers of shape \(2, 4\), got int64 \(2, 3\)"),
        (np.zeros(4, int), "expected integers of shape"),
        (np.full((2, 4), 7), "must be in 0..6, got 7 to 7"),
        (np.array([[0, 1, 2, 3], [0, 1, 2, -1]]), "must be in 0..6, got -1 to 3"),
    ],
)
def test_step_errors_leave_the_board_as_it_was(actions, says):
    env = StagHunt(2)
    env.reset(seed=1)
    with pytest.raises(ValueError, match=f"actions: {says}"):
        env.step(actions)
    twin = StagHunt(2)
    twin.reset(seed=1)
    assert_equal_records(record(env, 3), record(twin, 3))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64])
def test_step_takes_any_integers(dtype):
    env, twin = StagHunt(4), StagHunt(4)
    env.reset(seed=1), twin.reset(seed=1)
    actions = np.arange(16).reshape(4, 4) % 7
    assert np.array_equal(env.step(actions.astype(dtype))[0], twin.step(actions)[0])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(hunters=np.zeros((1, 2), np.int16)), r"state.hunters: expected shape \(1, 3\), got \(1, 2\)"),
        (dict(tick=np.zeros(2, np.int32)), r"state.tick: expected shape \(1,\), got \(2,\)"),
        (dict(blocks=np.zeros((1, 8), bool)), r"state.blocks: expected shape \(1, 9\)"),
        (dict(hunters=np.array([[0, 9, 1]])), r"state.hunters: cells must be in \[-1, 9\), got 0 to 9"),
        (dict(prey=np.array([[-2, 1]])), r"state.prey: cells must be in \[-1, 9\), got -2 to 1"),
        (dict(hunters=np.array([[0, 4, 1]])), "state.hunters: one stands on a block"),
        (dict(prey=np.array([[4, -1]])), "state.prey: one stands on a block"),
        (dict(prey=np.array([[3, 3]])), "state.prey: two prey share a cell"),
    ],
)
def test_set_state_errors_leave_the_board_as_it_was(wrong, says):
    env = set_up(TRIO, [S, S, H], [S, H], blocks=[(1, 1)])
    state, obs = env.state, env.obs.copy()
    with pytest.raises(ValueError, match=says):
        env.set_state(replace(state, **wrong))
    assert np.array_equal(env.obs, obs)
    for field in fields(State):
        assert np.array_equal(getattr(env.state, field.name), getattr(state, field.name))


def test_prey_that_are_gone_do_not_share_a_cell():
    env = set_up(TRIO, [S, None, None], [None, None])
    assert env.active.tolist() == [[True, False, False]] and not env.obs[:, :, 3:].any()


# ---- edges


def test_boards_that_would_overflow_are_refused():
    with pytest.raises(ValueError, match="at most 16384 cells, got 200x200"):
        Rules(height=200, width=200)


def test_any_integer_dtype_plays_the_same():
    played = []
    for dtype in (np.int8, np.uint8, np.int64, np.uint64):
        env = StagHunt(5)
        env.reset(seed=4)
        played.append(env.step(np.tile(np.arange(4), (5, 1)).astype(dtype))[0].copy())
    assert all(np.array_equal(played[0], other) for other in played)


@pytest.mark.parametrize("ask", ["state", "uniform", "step", "legal_actions"])
def test_nothing_before_the_first_reset(ask):
    env = StagHunt(2)
    calls = {
        "state": lambda: env.state,
        "uniform": lambda: env.uniform(1),
        "legal_actions": env.legal_actions,
    }
    with pytest.raises(ValueError, match=r"call reset\(\) or set_state\(\) first"):
        calls.get(ask, lambda: env.step(np.zeros((2, 4), int)))()


@pytest.mark.parametrize("key", ["blocks", "hunters", "prey"])
def test_set_state_takes_no_other_dtypes(key):
    env = StagHunt(2)
    env.reset(seed=1)
    state = env.state
    setattr(state, key, getattr(state, key).astype(np.float32))
    with pytest.raises(ValueError, match=f"state.{key}: expected (bool|integers), got float32"):
        env.set_state(state)


def test_deepcopy_and_pickle_keep_observations_alive():
    env = StagHunt(3)
    env.reset(seed=1)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env)), env.copy()):
        mine = env.copy().step(np.zeros((3, 4), int))[0]
        assert np.array_equal(other.step(np.zeros((3, 4), int))[0], mine)
        assert not np.array_equal(mine, env.obs)
