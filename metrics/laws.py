"""The exact law of the next joint state: the floor of a world model's NLL where prey move at random.

Hunters and captures are certain; prey then step one after another, stags first. Planes do not say in which order prey of
one kind step, so every order counts the same, and all ways in which the prey can have gone to the cells after add up.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from envs.grid import neighbours
from envs.stag_hunt import HUNT_HARE, HUNT_STAG, Rules


class Tick(NamedTuple):
    """What is certain of M ticks: all but the prey's steps. K = H * W cells; K as a cell: not on the board."""

    here: np.ndarray
    """int64 [M, A], the cell of each hunter before"""
    to: np.ndarray
    """int64 [M, A], the cell that its effective action leads to"""
    caught: np.ndarray
    """bool [M, A], takes part in a capture, and so leaves the board"""
    paid: np.ndarray
    """float64 [M, A], its reward"""
    captured: np.ndarray
    """bool [M, 2, K], stags and hares that leave the board"""
    left: np.ndarray
    """bool [M, 2, K], stags and hares that are left, where they stood before"""


def resolve(before: np.ndarray, actions: np.ndarray, rules: Rules) -> Tick:
    """Moves and hunts of M ticks, by `hunters_needed`, `stag_reward` and `hare_reward`; the arrays say all sizes.

    Args:
        before: uint8 or bool [M, A+3, H, W], joint states; of a hunter that is on several cells the first counts.
        actions: integers [M, A], as chosen: illegal ones count as STAY.
    Raises: ValueError: a wrong shape or dtype, or an action outside 0..6.
    """
    if before.ndim != 4 or before.shape[1] < 4:
        raise ValueError(f"before: expected joint states of shape [M, A+3, H, W], got {before.shape}")
    M, seats, K = len(before), before.shape[1] - 3, before.shape[2] * before.shape[3]
    if actions.shape != (M, seats) or actions.dtype.kind not in "iu":
        raise ValueError(
            f"actions: expected integers of shape {(M, seats)}, got {actions.dtype} {actions.shape}"
        )
    if actions.size and (actions.min() < 0 or actions.max() > HUNT_HARE):
        raise ValueError(f"actions: must be in 0..6, got {actions.min()} to {actions.max()}")
    # One cell more, number K: off the board, where nothing stands but a wall.
    flat = np.pad(before.reshape(M, seats + 3, K).astype(bool), ((0, 0), (0, 0), (0, 1)))
    hunters, walls, prey = flat[:, :seats], flat[:, seats], flat[:, seats + 1 :]
    walls[:, K] = True
    row = np.arange(M)[:, None]
    here = np.where(hunters.any(2), hunters.argmax(2), K)
    to = neighbours(*before.shape[2:])[here, actions]
    to = np.where(walls[row, to], here, to)
    caught, paid, captured = np.zeros((M, seats), bool), np.zeros((M, seats)), np.zeros_like(prey)
    hunts = (HUNT_STAG, rules.hunters_needed, rules.stag_reward), (HUNT_HARE, 1, rules.hare_reward)
    for kind, (hunt, needed, reward) in enumerate(hunts):
        hunting = (actions == hunt) & prey[row, kind, here]
        team = (hunting[:, None, :] & (here[:, :, None] == here[:, None, :])).sum(
            2
        )  # [M, A], who hunt on its cell
        took = hunting & (team >= needed)
        caught |= took
        paid[took] = reward / team[took]
        captured[np.nonzero(took)[0], kind, here[took]] = True
    return Tick(here, to, caught, paid, captured[..., :K], (prey & ~captured)[..., :K])


def next_state_log_prob(
    before: np.ndarray, actions: np.ndarray, after: np.ndarray, rules: Rules
) -> np.ndarray:
    """float64 [M]: log P(after | before, actions) in nats; -inf for what the rules rule out.

    Each order of a kind's prey counts the same. That is exact at tick 0; later a board can hint at the order, and to be
    told it would be worth 0.015 nats a tick on the default board at `prey_moves` 0.5, 0.07 at 1.
    Args:
        before, after: uint8 or bool [M, A+3, H, W], joint states; `before` on a board that is still played.
        actions: integers [M, A], as chosen: illegal ones count as STAY.
    Raises: ValueError: a wrong shape or dtype, or an action outside 0..6.
    """
    tick, (M, planes, H, W) = resolve(before, actions, rules), before.shape
    if after.shape != before.shape:
        raise ValueError(f"after: expected the shape of before, {before.shape}, got {after.shape}")
    A, K = planes - 3, H * W
    old, new = (x.reshape(M, planes, K).astype(bool) for x in (before, after))
    hunters = np.where(tick.caught, K, tick.to)[..., None] == np.arange(K)  # [M, A, K]
    possible = (new[:, :A] == hunters).all((1, 2)) & (new[:, A] == old[:, A]).all(1)
    if rules.prey_moves == 0.0:
        return np.where(possible & (new[:, A + 1 :] == tick.left).all((1, 2)), 0.0, -np.inf)
    probs = np.zeros(M)
    for row in np.flatnonzero(possible & (new[:, A + 1 :].sum(2) == tick.left.sum(2)).all(1)):
        stags, hares = (np.flatnonzero(plane).tolist() for plane in tick.left[row])
        stags_to, hares_to = (np.flatnonzero(plane).tolist() for plane in new[row, A + 1 :])
        blocks = frozenset([K, *np.flatnonzero(old[row, A]).tolist()])
        probs[row] = _herd_prob(stags, stags_to, blocks.union(hares), rules.prey_moves, (H, W))
        if probs[row]:
            probs[row] *= _herd_prob(hares, hares_to, blocks.union(stags_to), rules.prey_moves, (H, W))
    with np.errstate(divide="ignore"):
        return np.log(probs)


def outcomes(before: np.ndarray, actions: np.ndarray, rules: Rules) -> list[tuple[np.ndarray, float]]:
    """The whole law of one tick, for small cases: each possible next joint state, once, and its probability.

    Args: before: uint8 or bool [A+3, H, W]; actions: integers [A]. Returns: (uint8 [A+3, H, W], probability) pairs.
    Raises: ValueError: a wrong shape or dtype, or an action outside 0..6.
    """
    tick, (planes, H, W) = resolve(before[None], np.asarray(actions)[None], rules), before.shape
    A, K, p = planes - 3, H * W, rules.prey_moves
    stags, hares = (frozenset(np.flatnonzero(plane).tolist()) for plane in tick.left[0])
    blocks = frozenset([K, *np.flatnonzero(before[A]).tolist()])
    law = []
    for stags_to, q in _herd_law(_ways(stags, blocks | hares, (H, W)), p).items():
        for hares_to, r in _herd_law(_ways(hares, blocks | stags_to, (H, W)), p).items():
            after = np.zeros((planes, K), np.uint8)
            after[:A] = np.where(tick.caught[0], K, tick.to[0])[:, None] == np.arange(K)
            after[A] = before[A].reshape(K)
            after[A + 1, list(stags_to)] = after[A + 2, list(hares_to)] = 1
            law.append((after.reshape(planes, H, W), q * r))
    return law


# ---- one kind's prey: its cells, and for each the neighbour cells without a block or prey of the other kind


def _ways(cells, closed: frozenset, size: tuple[int, int]) -> frozenset:
    around = neighbours(*size)[:, :4]
    return frozenset((cell, tuple(to for to in around[cell].tolist() if to not in closed)) for cell in cells)


def _step(cell: int, ways: tuple, taken: frozenset, p: float) -> list[tuple[int, float]]:
    """Where one prey goes, and how likely, while others of its kind stand on `taken`."""
    free = [to for to in ways if to not in taken]
    if not free:
        return [(cell, 1.0)]
    return [(cell, 1.0 - p), *((to, p / len(free)) for to in free)]


def _herd_law(herd: frozenset, p: float) -> dict[frozenset, float]:
    """Cells after -> probability: one of those that wait goes next, each as likely."""
    law = {(herd, frozenset()): 1.0}  # (who waits, cells of those that went)
    for _ in herd:
        step = defaultdict(float)
        for (waiting, gone), q in law.items():
            for prey in waiting:
                rest = waiting - {prey}
                for to, r in _step(*prey, gone.union(cell for cell, _ in rest), p):
                    if r:
                        step[rest, gone | {to}] += q * r / len(waiting)
        law = step
    return {cells: q for (_, cells), q in law.items()}


def _herd_prob(
    cells: list[int], after: list[int], closed: frozenset, p: float, size: tuple[int, int]
) -> float:
    """P(a kind's prey on `cells` go to the cells `after`). Prey three or more steps apart have no cell in common, whatever
    either does: groups of nearer ones go independently, and a cell after belongs to the one group beside it."""
    left, prob = set(cells), 1.0
    while left and prob:
        group, grown = set(), [left.pop()]
        while grown:
            group.update(grown)
            grown = [b for b in left if any(_steps(a, b, size[1]) <= 2 for a in grown)]
            left.difference_update(grown)
        target = frozenset(to for to in after if any(_steps(a, to, size[1]) <= 1 for a in group))
        prob *= (
            _arrive(_ways(group, closed, size), frozenset(), target, p) if len(target) == len(group) else 0.0
        )
    return prob


def _steps(a: int, b: int, width: int) -> int:
    return abs(a // width - b // width) + abs(a % width - b % width)


@lru_cache(maxsize=2**16)
def _arrive(waiting: frozenset, gone: frozenset, target: frozenset, p: float) -> float:
    """P(those that wait end on the cells of `target` that those that went, now on `gone`, leave over)."""
    prob = 0.0 if waiting else 1.0
    for prey in waiting:
        rest = waiting - {prey}
        for to, r in _step(*prey, gone.union(cell for cell, _ in rest), p):
            if r and to in target:
                prob += r / len(waiting) * _arrive(rest, gone | {to}, target, p)
    return prob
