"""Rule violations: none on what the game plays, the right kinds on what is spoilt by hand, none where the law allows."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import place, positions, some_rules
from worlds import put

from data.collect import Args, collect
from envs import Rules, StagHunt, planes_to_joint, sample_actions, strategy_probs
from envs.grid import neighbours
from metrics.laws import deterministic_step, next_state_log_prob, outcomes
from metrics.violations import KINDS, count_unmatched, counts, violations

UP, DOWN, LEFT, RIGHT, STAY, HUNT_STAG, HUNT_HARE = range(7)
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)
GAMES = {
    "default": Rules(),
    "prey that move": Rules(prey_moves=0.5),
    "crowded, prey move always": Rules(height=5, width=5, stags=2, hares=6, blocks=3, prey_moves=1.0),
    "six hunters 12x12": Rules(hunters=6, height=12, width=12, stags=2, hares=8, blocks=12, prey_moves=0.5),
    "ends early, other rewards": Rules(
        end_after_first_hunt=2, hunters_needed=3, stag_reward=7, hare_reward=-2, prey_moves=0.5
    ),
}


def no_violation(before, actions, after, rewards, rules):
    found = violations(before, actions, after, rewards, rules)
    return tuple(found) == KINDS and set(counts(found).values()) == {0.0}


def play(rules, seed, boards=40, ticks=12):
    """Boards played on the core, a third by any actions, also illegal: before, actions as chosen, after, rewards."""
    env, rng, log = StagHunt(boards, rules), np.random.default_rng(seed), []
    env.reset(seed=seed)
    for _ in range(ticks):
        live, before = ~env.ended, planes_to_joint(env.obs)
        own = strategy_probs(env, ("NS", "NH"), 0.1)[:, :, seed % 2]
        actions = sample_actions(own, rng.random((boards, rules.hunters)))
        actions[::3] = rng.integers(0, 7, actions[::3].shape)
        after, rewards, *_ = env.step(actions)
        log.append((before[live], actions[live], planes_to_joint(after)[live], rewards[live]))
    return [np.concatenate(parts) for parts in zip(*log, strict=True)]


# ---- the game breaks no rule


@pytest.mark.parametrize("name", GAMES)
def test_none_in_collected_data(name):
    rules = GAMES[name]
    t = collect(Args(samples=3000, seed=7, rules=rules, strategies=("NS", "NH", "RANDOM")))
    joint = planes_to_joint(t.obs)
    assert (
        no_violation(joint[t.obs_row], t.actions, joint[t.obs_row + 1], t.rewards, rules)
        and (t.rewards != 0).sum() > 50
    )


@PROPERTY
@given(some_rules(), st.integers(0, 99))
def test_none_in_play(rules, seed):
    assert no_violation(*play(rules, seed), rules)


def test_chosen_and_effective_actions_are_judged_alike():
    before, actions, after, rewards = play(Rules(), 0)
    step = deterministic_step(before, actions, Rules())
    own = np.take_along_axis(before[:, :4].reshape(-1, 4, 64), step.hunters[..., None] % 64, 2)
    assert ((actions < STAY) & own[..., 0].astype(bool)).any() and (rewards > 4).any()
    stays = step.destinations == step.hunters
    assert no_violation(before, np.where(stays & (actions < STAY), STAY, actions), after, rewards, Rules())


# ---- spoilt by hand

BOARD = Rules(hunters=5, stags=2, hares=3, blocks=3, height=6, width=6)
BLOCKS = [(1, 2), (5, 5), (0, 1)]
HUNTERS = [
    (2, 2),
    (4, 4),
    (4, 4),
    None,
    (0, 5),
]  # goes right; two capture the stag; has left; stays on a hare
PREY = [(4, 4), (3, 0), (0, 5), (0, 0), (5, 2)]
ACTIONS = np.array([[RIGHT, HUNT_STAG, HUNT_STAG, STAY, STAY]])
B, S, H = 5, 6, 7  # the planes BLOCKS, STAGS, HARES


def moved(plane, old, new):
    return put((plane, *old, 0), (plane, *new, 1))


SPOILT = {  # what is put right first is (2, 3) for hunter 0, nobody for 1, 2, 3; 5 for 1 and 2; no stag on (4, 4)
    "two cells on": (moved(0, (2, 3), (2, 4)), "jump"),
    "diagonal": (moved(0, (2, 3), (3, 3)), "jump"),
    "around the edge": (moved(4, (0, 5), (1, 0)), "jump"),
    "stays though the way is free": (moved(0, (2, 3), (2, 2)), "against_action"),
    "goes elsewhere": (moved(0, (2, 3), (3, 2)), "against_action"),
    "moves though it stays": (moved(4, (0, 5), (1, 5)), "against_action"),
    "into the block beside it": (moved(0, (2, 3), (1, 2)), "into_block"),
    "onto a far block: it is there, and it is far": (moved(0, (2, 3), (5, 5)), "jump into_block"),
    "twice": (put((0, 2, 2, 1)), "doubled"),
    "twice, once on a block": (put((0, 1, 2, 1)), "doubled"),
    "back": (put((3, 2, 2, 1)), "doubled"),
    "gone": (put((0, 2, 3, 0)), "lost"),
    "a hare more": (put((H, 3, 3, 1)), "prey_created"),
    "a hare on a block": (put((H, 5, 5, 1)), "prey_created"),
    "a stag more": (put((S, 3, 4, 1)), "prey_created"),
    "a hare less": (put((H, 5, 2, 0)), "prey_lost"),
    "a stag less": (put((S, 3, 0, 0)), "prey_lost"),
    "a stag turned hare: one kind has lost, the other gained": (put((S, 3, 0, 0), (H, 3, 0, 1)), "prey_created prey_lost"),
    "a hare far away": (moved(H, (5, 2), (5, 4)), "prey_moved"),
    "a hare on a block beside it": (moved(H, (0, 0), (0, 1)), "prey_moved"),
    "a block less": (put((B, 5, 5, 0)), "block_changed"),
    "a block more": (put((B, 4, 2, 1)), "block_changed"),
    "a block where the hunter goes": (put((B, 2, 3, 1)), "block_changed"),
    "paid for nothing": (put(rewards=[(0, 1.0)]), "reward_without_capture"),
    "paid after it left": (put(rewards=[(3, 0.02)]), "reward_without_capture"),
    "not a number": (put(rewards=[(4, np.nan)]), "reward_without_capture"),
    "not paid": (put(rewards=[(1, 0.0)]), "capture_without_reward"),
    "paid too little": (put(rewards=[(1, 4.98)]), "capture_without_reward"),
    "paid all": (put(rewards=[(1, 10.0)]), "capture_without_reward"),
    "stays behind": (put((1, 4, 4, 1)), "capture_without_reward"),
    "stays behind beside its cell": (put((1, 4, 3, 1)), "capture_without_reward"),
    "the stag stays behind": (put((S, 4, 4, 1)), "capture_without_reward"),
    "nobody notices the capture": (
        put((1, 4, 4, 1), (2, 4, 4, 1), (S, 4, 4, 1), rewards=[(1, 0.0), (2, 0.0)]), "capture_without_reward",
    ),
    "stays behind, twice": (put((1, 4, 4, 1), (1, 4, 3, 1)), "doubled capture_without_reward"),
    "a hare hunt that was none": (
        put((4, 0, 5, 0), (H, 0, 5, 0), rewards=[(4, 1.0)]), "lost prey_lost reward_without_capture",
    ),
    "nearly paid": (put(rewards=[(1, 5.009), (0, -0.009)]), ""),
    "nothing spoilt": (put(), ""),
}  # fmt: skip
STANDING = {
    "a hare beside its cell": (moved(H, (5, 2), (5, 1)), "prey_moved"),
    "a stag goes where the captured one was": (moved(S, (3, 0), (4, 4)), "prey_lost capture_without_reward"),
}
MOVING = {
    "a hare beside its cell": (moved(H, (5, 2), (5, 1)), ""),
    "both beside their cells": (put((H, 5, 2, 0), (H, 4, 2, 1), (S, 3, 0, 0), (S, 2, 0, 1)), ""),
    "a hare on the hunter": (moved(H, (0, 5), (0, 4)), ""),
    "one beside its cell, one gone": (put((H, 5, 2, 0), (H, 4, 2, 1), (H, 0, 0, 0)), "prey_lost"),
    "one beside its cell, one far away": (
        put((H, 5, 2, 0), (H, 4, 2, 1), (H, 0, 0, 0), (H, 2, 0, 1)),
        "prey_moved",
    ),
    "a hare on a stag": (
        put((H, 0, 0, 0), (H, 1, 0, 1), (S, 3, 0, 0), (S, 2, 0, 1), (H, 5, 2, 0), (H, 3, 0, 1)),
        "prey_moved",
    ),
}


@pytest.mark.parametrize("prey_moves", [0.0, 0.5])
def test_each_kind_counts_what_it_names(prey_moves):
    rules = replace(BOARD, prey_moves=prey_moves)
    state = place(rules, HUNTERS, PREY, BLOCKS)
    env = StagHunt(1, replace(rules, prey_moves=0.0))  # where prey may step, they may also stay
    before = planes_to_joint(env.set_state(state))
    obs, rewards, *_ = env.step(ACTIONS)
    cases = SPOILT | (MOVING if prey_moves else STANDING)
    after, paid = (np.repeat(x, len(cases), 0) for x in (planes_to_joint(obs), rewards))
    for row, (spoil, _) in enumerate(cases.values()):
        spoil(after[row], paid[row])
    many = np.repeat(before, len(cases), 0), np.repeat(ACTIONS, len(cases), 0)
    found = violations(*many, after, paid, rules)
    for row, (name, (_, kinds)) in enumerate(cases.items()):
        assert " ".join(kind for kind in KINDS if found[kind][row]) == kinds, name
    assert all(found[kind].any() and found[kind].dtype == bool for kind in KINDS)

    # Seats are alike: hunters in another order break the same rules. Bool planes are as good as bytes.
    order = [3, 1, 4, 0, 2]
    planes = [*order, B, S, H]
    again = violations(many[0][:, planes], many[1][:, order], after[:, planes] > 0, paid[:, order], rules)
    assert all(np.array_equal(found[kind], again[kind]) for kind in KINDS)

    per_10k = counts(found)
    wrong = sum(bool(kinds) for _, kinds in cases.values())
    assert list(per_10k) == ["total", *KINDS] and per_10k["total"] == pytest.approx(
        10_000 * wrong / len(cases)
    )
    assert per_10k["lost"] == pytest.approx(10_000 * 2 / len(cases))


ROWS = {  # prey before, stags first, of which `captured`; stags after, hares after: columns of one row of six cells
    "a chain of hares": (0, [0, 1, 2], [], [], [1, 2, 3], ""),
    "a hare follows the stag": (1, [1, 0], [], [2], [1], ""),
    "a stag does not follow a hare: stags go first": (1, [0, 1], [], [1], [2], "prey_moved"),
    "both onto one cell": (1, [0, 2], [], [1], [1], "prey_moved"),
    "into the captured hare's cell": (0, [2, 3], [3], [], [3], ""),
    "the captured hare is still there": (0, [2, 3], [3], [], [2, 3], "capture_without_reward"),
    "and the other one beside": (0, [2, 3], [3], [], [1, 3], "capture_without_reward"),
    "two for one, neither captured": (0, [2, 5], [5], [], [1, 3], "prey_created"),
    "two for one, and the captured one": (
        0,
        [2, 5],
        [5],
        [],
        [1, 3, 5],
        "prey_created capture_without_reward",
    ),
    "still there, the other one gone": (0, [0, 5], [5], [], [5], "prey_lost capture_without_reward"),
}


@pytest.mark.parametrize("name", ROWS)
def test_prey_that_move_on_one_row(name):
    stags, prey, captured, stags_to, hares_to, kinds = ROWS[name]
    rules = Rules(
        hunters=1, stags=stags, hares=len(prey) - stags, blocks=0, height=1, width=6, prey_moves=0.5
    )
    hunter = captured[0] if captured else 4
    before, after = np.zeros((2, 1, 4, 1, 6), np.uint8)
    before[0, 0, 0, hunter] = 1
    before[0, 2, 0, prey[:stags]] = before[0, 3, 0, prey[stags:]] = 1
    after[0, 0, 0, hunter] = not captured
    after[0, 2, 0, stags_to] = after[0, 3, 0, hares_to] = 1
    rewards = np.full((1, 1), float(len(captured)))
    found = violations(before, np.array([[HUNT_HARE]]), after, rewards, rules)
    assert " ".join(kind for kind in KINDS if found[kind][0]) == kinds


def test_within_a_hundredth_is_right():
    """The bound itself is within; either side; paid nothing and paid a share."""
    before = np.zeros((1, 4, 1, 3), np.uint8)
    before[0, 0, 0, 0] = before[0, 3, 0, 0] = 1
    for action, kind, right in (
        (STAY, "reward_without_capture", 0.0),
        (HUNT_HARE, "capture_without_reward", 0.5),
    ):
        rules = Rules(hunters=1, stags=0, hares=1, blocks=0, height=1, width=3, hare_reward=right)
        after = before * np.uint8(action == STAY)
        for off, wrong in ((0.0099, False), (0.0101, True), (0.01, False)):
            for rewards in (right + off, right - off) if off != 0.01 else (right + off,) * (right == 0):
                found = violations(before, np.array([[action]]), after, np.array([[rewards]]), rules)
                assert [name for name in KINDS if found[name][0]] == [kind] * wrong, (action, rewards)


@pytest.mark.parametrize("prey_moves", [0.0, 0.05, 1.0])
def test_prey_may_step_as_soon_as_they_can_move(prey_moves):
    before = np.zeros((1, 4, 1, 4), np.uint8)
    before[0, 0, 0, 0] = before[0, 3, 0, 1] = 1
    after = before.copy()
    after[0, 3, 0] = [0, 0, 1, 0]
    rules = Rules(hunters=1, stags=0, hares=1, blocks=0, height=1, width=4, prey_moves=prey_moves)
    found = violations(before, np.array([[STAY]]), after, np.zeros((1, 1)), rules)
    assert [name for name in KINDS if found[name][0]] == ["prey_moved"] * (prey_moves == 0)


# ---- and the law


@PROPERTY
@given(positions(prey_moves=(0.0, 0.5)), st.integers(0, 2**32 - 1))
def test_no_violation_is_what_the_law_allows(position, seed):
    """What comes after is any outcome with some steps, cells and hunters spoilt: possible by the law, or a violation."""
    rules, state, actions = position
    rng, size = np.random.default_rng(seed), (rules.height, rules.width)
    before = planes_to_joint(StagHunt(1, rules).set_state(state))
    law = outcomes(before[0], actions[0], rules)
    after = np.array([law[i][0] for i in rng.integers(len(law), size=80)]).reshape(80, -1, rules.cells)
    for row in after:
        for plane in rng.integers(0, rules.hunters + 3, rng.integers(0, 4)):
            for cell in np.flatnonzero(row[plane]):
                to = rng.choice(neighbours(*size)[cell]) if rng.random() < 0.8 else rng.integers(rules.cells)
                if to < rules.cells:
                    row[plane, cell], row[plane, to] = rng.random() < 0.1, 1
    rewards = deterministic_step(before, actions, rules).rewards
    many = [np.repeat(x, 80, 0) for x in (before, actions, rewards)]
    after = after.reshape(80, *before.shape[1:])
    broken = np.any(list(violations(*many[:2], after, many[2], rules).values()), 0)
    assert np.array_equal(~broken, np.isfinite(next_state_log_prob(*many[:2], after, rules)))


@pytest.mark.parametrize("captured", [False, True])
def test_every_prey_plane_of_a_small_board(captured):
    """All 4,096 ways to put stags and hares on 2x3 cells: without a violation exactly where the law allows it."""
    rules = Rules(hunters=1, stags=1, hares=3, blocks=1, height=2, width=3, prey_moves=0.5)
    before = planes_to_joint(
        StagHunt(1, rules).set_state(place(rules, [(0, 1)], [(0, 0), (0, 1), (1, 1), (1, 2)], [(1, 0)]))
    )
    actions = np.full((1, 1), HUNT_HARE if captured else STAY)
    before, actions = (np.repeat(x, 4096, 0) for x in (before, actions))
    after = before.copy()
    after[:, 0] *= not captured
    after[:, 2:] = (np.arange(4096)[:, None] >> np.arange(12) & 1).reshape(4096, 2, 2, 3)
    found = violations(before, actions, after, np.full((4096, 1), float(captured)), rules)
    allowed = np.isfinite(next_state_log_prob(before, actions, after, rules))
    assert np.array_equal(~np.any(list(found.values()), 0), allowed) and 3 < allowed.sum() < 40


@pytest.mark.parametrize("still", [False, True])
def test_matching_is_as_large_as_can_be(still):
    """Against all assignments: cells of captured prey are used last."""
    rng = np.random.default_rng(4)
    M, ways = 500, None if still else neighbours(3, 3)[:, :4]
    left, now, captured, closed = rng.random((4, M, 9)) < [[[0.35]], [[0.35]], [[0.2]], [[0.2]]]
    captured &= ~left
    found = np.array(count_unmatched(left, now, captured, closed, ways))
    assert (found > 0).any(1).all()
    for row in range(M):
        prey, cells = np.flatnonzero(left[row]), np.flatnonzero(now[row])
        reach = {
            p: {p} if still else {p, *(to for to in ways[p] if to < 9 and not closed[row, to])} for p in prey
        }
        slots = [*cells.tolist(), *[None] * len(prey)]
        best = max(
            (len(used), -len(used & set(np.flatnonzero(captured[row]).tolist())))
            for choice in set(itertools.permutations(slots, len(prey)))
            if all(to is None or to in reach[p] for p, to in zip(prey, choice, strict=True))
            for used in [{to for to in choice if to is not None}]
        )
        on_captured = int((now & captured)[row].sum()) + best[1]
        assert found[:, row].tolist() == [
            len(prey) - best[0],
            len(cells) - best[0] - on_captured,
            on_captured,
        ]


def test_a_rollout_goes_on_from_impossible_boards():
    """A model's own prediction as `before`: no error, and what was wrong before is not counted once more if it stays."""
    rules = Rules(hunters=2, stags=1, hares=1, blocks=1, height=3, width=3, prey_moves=0.5)
    before = np.zeros((1, 5, 3, 3), np.uint8)
    before[0, 0, 0, :2] = before[0, 1, 2, 2] = before[0, 2, 1, 1] = before[0, 3:, 1, 1] = (
        1  # both prey on the block
    )
    before[0, 3, 0, 0] = 1
    after = before.copy()
    after[0, 0, 0, 1] = 0
    assert no_violation(before, np.full((1, 2), STAY), after, np.zeros((1, 2)), rules)


def test_bad_arguments():
    before, actions, rewards = np.zeros((2, 6, 3, 3), np.uint8), np.zeros((2, 3), int), np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"actions: must be in 0..6, got -1 to 0"):
        violations(before, actions - [0, 0, 1], before, rewards, Rules())
    with pytest.raises(ValueError, match=r"after: expected shape \(2, 6, 3, 3\), got \(2, 5, 3, 3\)"):
        violations(before, actions, before[:, 1:], rewards, Rules())
    with pytest.raises(ValueError, match=r"rewards: expected shape \(2, 3\), got \(2,\)"):
        violations(before, actions, before, rewards[:, 0], Rules())
    with pytest.raises(ValueError, match="no predictions"):
        counts(violations(before[:0], actions[:0], before[:0], rewards[:0], Rules()))
