"""The exact law of the next joint state: the floor of a world model's NLL where prey move at random.

Hunters and captures are deterministic; prey then step one after another, kind after kind. The planes do not show in
which order prey of one kind step, so each order is equally likely, and the probabilities of all ways in which the
prey can reach the cells after the tick are added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from envs.core import TAKE, GameRules, effective_actions, legal_on
from envs.grid import neighbours


class DeterministicStep(NamedTuple):
    """The part of M ticks that is certain: all but the steps of prey. Cell K = H * W stands for off the board."""

    hunters: np.ndarray
    """int64 [M, A], the cell of each hunter before the tick"""
    destinations: np.ndarray
    """int64 [M, A], the cell that its effective action leads to"""
    captures: np.ndarray
    """bool [M, A], takes part in a capture"""
    leaves: np.ndarray
    """bool [M, A], leaves the board: who takes part in a capture, where the game says so"""
    rewards: np.ndarray
    """float64 [M, A]"""
    captured_prey: np.ndarray
    """bool [M, k, K], the prey of each kind that are captured"""
    remaining_prey: np.ndarray
    """bool [M, k, K], the prey that are not, on their cells before the tick"""


def deterministic_step(before: np.ndarray, actions: np.ndarray, rules: GameRules) -> DeterministicStep:
    """Moves and captures of M ticks on joint states, which may be impossible ones that a model predicted.

    Args:
        before: uint8 or bool [M, A+1+k, H, W], joint states; of a hunter that is on several cells the first counts.
        actions: integers [M, A], as chosen: illegal ones count as STAY.
        rules: what a capture needs and pays is used; the arrays give all sizes.
    Raises: ValueError: a wrong shape or dtype, or an action that the game does not have.
    """
    kinds = rules.game.kinds
    _check(before, actions, kinds)
    M, planes, H, W = before.shape
    A, K = planes - 1 - kinds, H * W
    flat = before.reshape(M, planes, K).astype(bool)
    on_cell = flat[:, :A]
    hunters = np.where(on_cell.any(2), on_cell.argmax(2), K)  # [M, A]
    prey = np.pad(flat[:, A + 1 :], ((0, 0), (0, 0), (0, 1)))  # [M, k, K+1], none off the board
    row = np.arange(M)[:, None]
    on_prey = prey[row, :, hunters]  # [M, A, k]
    legal = legal_on(hunters, flat[:, A], on_prey, H, W)
    actions = effective_actions(actions, legal)
    destinations = neighbours(H, W)[hunters, actions]
    captures, rewards = rules.resolve(hunters, actions, np.float64)
    seat = np.nonzero(captures)
    captured = np.zeros_like(prey)
    captured[seat[0], actions[seat] - TAKE, hunters[seat]] = True
    remaining = prey & ~captured
    leaves = captures & rules.game.leaves
    return DeterministicStep(
        hunters, destinations, captures, leaves, rewards, captured[..., :K], remaining[..., :K]
    )


def _check(before: np.ndarray, actions: np.ndarray, kinds: int) -> None:
    if before.ndim != 4 or before.shape[1] < 2 + kinds:
        expected = f"joint states of shape [M, A+{1 + kinds}, H, W]"
        raise ValueError(f"before: expected {expected}, got {before.shape}")
    shape = (len(before), before.shape[1] - 1 - kinds)
    if actions.shape != shape or actions.dtype.kind not in "iu":
        raise ValueError(f"actions: expected integers of shape {shape}, got {actions.dtype} {actions.shape}")
    last = TAKE + kinds - 1
    if actions.size and (actions.min() < 0 or actions.max() > last):
        raise ValueError(f"actions: must be in 0..{last}, got {actions.min()} to {actions.max()}")


def next_state_log_prob(
    before: np.ndarray, actions: np.ndarray, after: np.ndarray, rules: GameRules
) -> np.ndarray:
    """float64 [M]: log P(after | before, actions) in nats; -inf for what the rules exclude.

    Each order of a kind's prey is equally likely. That is exact at tick 0; later a board can give a hint of the order,
    and to know it would be worth 0.015 nats a tick on the default board at `prey_moves` 0.5, 0.07 at 1.

    Args:
        before, after: uint8 or bool [M, A+1+k, H, W], joint states; `before` on a board that is still played.
        actions: integers [M, A], as chosen: illegal ones count as STAY.
    Raises: ValueError: a wrong shape or dtype, or an action that the game does not have.
    """
    step = deterministic_step(before, actions, rules)
    if after.shape != before.shape:
        raise ValueError(f"after: expected the shape of before, {before.shape}, got {after.shape}")
    M, planes, H, W = before.shape
    A, K = planes - 1 - rules.game.kinds, H * W
    old_blocks = before[:, A].reshape(M, K).astype(bool)
    new = after.reshape(M, planes, K).astype(bool)
    new_prey = new[:, A + 1 :]  # [M, k, K]
    possible = (new[:, :A] == _hunter_planes(step, K)).all((1, 2))
    possible &= (new[:, A] == old_blocks).all(1)
    if rules.prey_moves == 0.0:
        possible &= (new_prey == step.remaining_prey).all((1, 2))
        return np.where(possible, 0.0, -np.inf)
    possible &= (new_prey.sum(2) == step.remaining_prey.sum(2)).all(1)
    probs = np.zeros(M)
    for row in np.flatnonzero(possible):
        blocks = frozenset([K, *_cells(old_blocks[row])])
        cells_before = [_cells(plane) for plane in step.remaining_prey[row]]
        cells_after = [_cells(plane) for plane in new_prey[row]]
        probs[row] = 1.0
        for kind, (cells, after_step) in enumerate(zip(cells_before, cells_after, strict=True)):
            others = (
                cells_after[:kind] + cells_before[kind + 1 :]
            )  # those before it have gone, those behind it wait
            closed = blocks.union(*others)
            probs[row] *= _group_prob(cells, after_step, closed, rules.prey_moves, (H, W))
            if not probs[row]:
                break
    with np.errstate(divide="ignore"):
        return np.log(probs)


def outcomes(before: np.ndarray, actions: np.ndarray, rules: GameRules) -> list[tuple[np.ndarray, float]]:
    """The whole law of one tick, for small cases: each possible next joint state, once, and its probability.

    Args: before: uint8 or bool [A+1+k, H, W]; actions: integers [A].
    Returns: (uint8 [A+1+k, H, W], probability) pairs.
    Raises: ValueError: a wrong shape or dtype, or an action that the game does not have.
    """
    step = deterministic_step(before[None], np.asarray(actions)[None], rules)
    planes, H, W = before.shape
    A, K = planes - 1 - rules.game.kinds, H * W
    certain = np.zeros((planes, K), np.uint8)
    certain[:A] = _hunter_planes(step, K)[0]
    certain[A] = before[A].reshape(K)
    blocks = frozenset([K, *_cells(before[A])])
    law = [(certain, 1.0)]
    waiting = [frozenset(_cells(plane)) for plane in step.remaining_prey[0]]
    for kind, cells in enumerate(waiting):
        longer = []
        for board, prob in law:
            gone = map(_cells, board[A + 1 : A + 1 + kind])  # the kinds before it, after their steps
            closed = blocks.union(*gone, *waiting[kind + 1 :])
            for cells_after, step_prob in _group_law(
                _options(cells, closed, (H, W)), rules.prey_moves
            ).items():
                after = board.copy()
                after[A + 1 + kind, list(cells_after)] = 1
                longer.append((after, prob * step_prob))
        law = longer
    return [(board.reshape(planes, H, W), prob) for board, prob in law]


def _hunter_planes(step: DeterministicStep, K: int) -> np.ndarray:
    """bool [M, A, K]: where the hunters are after the tick."""
    cells = np.where(step.leaves, K, step.destinations)
    return cells[..., None] == np.arange(K)


def _cells(plane: np.ndarray) -> list[int]:
    return np.flatnonzero(plane).tolist()


# ---- Prey of one kind. Each is (cell, options): its cell, and the neighbour cells without a block or prey of the
# other kind. The law of `envs.core.step_prey`, if each order of the prey is equally likely.

Prey = tuple[int, tuple[int, ...]]


def _options(cells: Iterable[int], closed: frozenset[int], size: tuple[int, int]) -> frozenset[Prey]:
    around = neighbours(*size)[:, :4]
    return frozenset((cell, tuple(to for to in around[cell].tolist() if to not in closed)) for cell in cells)


def _step_law(cell: int, options: tuple, taken: frozenset, p: float) -> list[tuple[int, float]]:
    """(cell after, probability) of one prey, while others of its kind stand on `taken`."""
    free = [to for to in options if to not in taken]
    if not free:
        return [(cell, 1.0)]
    return [(cell, 1.0 - p), *((to, p / len(free)) for to in free)]


def _taken(waiting: frozenset[Prey], moved: frozenset[int]) -> frozenset[int]:
    """The cells of the prey that still have to step and of those that have."""
    return moved.union(cell for cell, _ in waiting)


def _group_law(group: frozenset[Prey], p: float) -> dict[frozenset, float]:
    """Cells after -> probability. Each of those that wait is equally likely to step next."""
    # (prey that wait, cells of those that have stepped) -> probability
    law: dict[tuple[frozenset[Prey], frozenset[int]], float] = {(group, frozenset()): 1.0}
    for _ in group:
        next_law: dict[tuple[frozenset[Prey], frozenset[int]], float] = defaultdict(float)
        for (waiting, moved), prob in law.items():
            for prey in waiting:
                rest = waiting - {prey}
                for to, step_prob in _step_law(*prey, _taken(rest, moved), p):
                    if step_prob:
                        next_law[rest, moved | {to}] += prob * step_prob / len(waiting)
        law = next_law
    return {cells: prob for (_, cells), prob in law.items()}


def _group_prob(
    cells: list[int], after: list[int], closed: frozenset, p: float, size: tuple[int, int]
) -> float:
    """P(a kind's prey on `cells` go to the cells `after`). Prey three or more steps apart have no cell in common,
    whatever either does: clusters of nearer ones go independently, and each cell after belongs to one cluster."""
    remaining = set(cells)
    prob = 1.0
    while remaining and prob:
        cluster: set[int] = set()
        added = [remaining.pop()]
        while added:
            cluster.update(added)
            added = [b for b in remaining if any(_distance(a, b, size[1]) <= 2 for a in added)]
            remaining.difference_update(added)
        target = frozenset(to for to in after if any(_distance(a, to, size[1]) <= 1 for a in cluster))
        if len(target) != len(cluster):
            return 0.0
        prob *= _arrive_prob(_options(cluster, closed, size), frozenset(), target, p)
    return prob


def _distance(a: int, b: int, width: int) -> int:
    return abs(a // width - b // width) + abs(a % width - b % width)


@lru_cache(maxsize=2**16)
def _arrive_prob(waiting: frozenset[Prey], moved: frozenset[int], target: frozenset[int], p: float) -> float:
    """P(the prey that wait end on the cells of `target` that those which have stepped do not cover)."""
    prob = 0.0 if waiting else 1.0
    for prey in waiting:
        rest = waiting - {prey}
        for to, step_prob in _step_law(*prey, _taken(rest, moved), p):
            if step_prob and to in target:
                prob += step_prob / len(waiting) * _arrive_prob(rest, moved | {to}, target, p)
    return prob
