"""The game on cells alone, without planes: what a search in the rules steps, many boards at once.

The same rules as `envs.stag_hunt.StagHunt`, which the tests hold it to. K = H * W cells; cell K: not on the board. Boards
are given by `walls`, bool [B, K+1], blocks and, as cell K, what is off the board.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from envs.grid import FAR
from envs.scripted import chase
from envs.stag_hunt import HUNT_HARE, HUNT_STAG, STAY, Rules


class Cells(NamedTuple):
    hunters: np.ndarray
    """int64 [B, A]"""
    prey: np.ndarray
    """int64 [B, P], stags first"""
    tick: np.ndarray
    """int64 [B]"""
    first_hunt: np.ndarray
    """int64 [B], the tick of the first capture, -1 before it"""


def neighbours(rules: Rules) -> np.ndarray:
    """int64 [K+1, 4]: the cells above, below, left and right of each cell, K off the board."""
    cell = np.pad(np.arange(rules.cells).reshape(rules.height, rules.width), 1, constant_values=rules.cells)
    around = np.stack([cell[:-2, 1:-1], cell[2:, 1:-1], cell[1:-1, :-2], cell[1:-1, 2:]], 2).reshape(-1, 4)
    return np.vstack([around, np.full(4, rules.cells)])


def legal_cells(cells: Cells, walls: np.ndarray, rules: Rules) -> np.ndarray:
    """bool [B, A, 7]: what each hunter may do; one that has left may STAY."""
    hunters, prey, *_ = cells
    legal = np.zeros((*hunters.shape, 7), bool)
    legal[..., :4] = ~walls[np.arange(len(hunters))[:, None, None], neighbours(rules)[hunters]]
    on = (hunters[:, :, None] == prey[:, None]) & (hunters < rules.cells)[..., None]
    legal[..., STAY] = True
    legal[..., HUNT_STAG], legal[..., HUNT_HARE] = (
        on[..., : rules.stags].any(2),
        on[..., rules.stags :].any(2),
    )
    return legal


def step_cells(
    cells: Cells, actions: np.ndarray, walls: np.ndarray, rules: Rules, rng: np.random.Generator | None = None
) -> tuple[Cells, np.ndarray, np.ndarray]:
    """One tick. actions: integers [B, A]; an illegal one counts as STAY. rng: for prey that move.

    Returns: the cells after, rewards float32 [B, A], over bool [B]: by the rules or at the horizon.
    Raises: ValueError: prey move, and there is no rng.
    """
    hunters, prey, tick, first_hunt = cells
    K, B, stags = rules.cells, np.arange(len(hunters)), rules.stags
    there = hunters < K
    to = np.concatenate([neighbours(rules), np.arange(K + 1)[:, None].repeat(3, 1)], 1)[hunters, actions]
    to = np.where(walls[B[:, None], to], hunters, to)
    on = (hunters[:, :, None] == prey[:, None]) & there[..., None]  # [B, A, P]
    hunts = on & (actions[..., None] == np.where(np.arange(rules.prey) < stags, HUNT_STAG, HUNT_HARE))
    crowd = hunts.sum(1)  # [B, P]
    caught = crowd >= np.where(np.arange(rules.prey) < stags, rules.hunters_needed, 1)
    share = np.where(np.arange(rules.prey) < stags, rules.stag_reward, rules.hare_reward) / np.maximum(
        crowd, 1
    )
    took = hunts & caught[:, None]
    rewards = (took * share[:, None]).sum(2).astype(np.float32)
    hunters, prey = np.where(took.any(2), K, to), np.where(caught, K, prey)
    first_hunt = np.where((first_hunt < 0) & caught.any(1), tick, first_hunt)
    if rules.prey_moves > 0:
        if rng is None:
            raise ValueError("prey move at random: step_cells needs rng")
        prey = _move_prey(prey, walls, rules, rng)
    over = (hunters == K).all(1)
    if rules.end_after_first_hunt is not None:
        over |= (first_hunt >= 0) & (tick - first_hunt >= rules.end_after_first_hunt)
    return Cells(hunters, prey, tick + 1, first_hunt), rewards, over | (tick + 1 >= rules.horizon)


def _move_prey(prey: np.ndarray, walls: np.ndarray, rules: Rules, rng: np.random.Generator) -> np.ndarray:
    """Prey step one after another, stags first, each seeing the earlier ones' steps."""
    prey, around, board = prey.copy(), neighbours(rules), np.arange(len(prey))
    for slot in range(rules.prey):
        ways = around[prey[:, slot]]  # [B, 4]
        free = ~walls[board[:, None], ways] & (ways[:, :, None] != prey[:, None]).all(2)
        pick = np.where(free, rng.random(free.shape), -1.0).argmax(1)
        go = free.any(1) & (prey[:, slot] < rules.cells) & (rng.random(len(prey)) < rules.prey_moves)
        prey[:, slot] = np.where(go, ways[board, pick], prey[:, slot])
    return prey


def cells_probs(
    cells: Cells,
    names: Sequence[str],
    who: np.ndarray,
    epsilon: float,
    distance: np.ndarray,
    walls: np.ndarray,
    rules: Rules,
) -> np.ndarray:
    """Exact action probabilities of each hunter, float64 [B, A, 7], as `strategies.strategy_probs` gives them.

    Args: who: int [B, A], each hunter's strategy in `names`; distance: int16 [B, P, K+1], to where each prey stands or, if
    it is captured, stood (FAR where there is no way).
    """
    legal = legal_cells(cells, walls, rules)
    uniform = legal / legal.sum(-1, keepdims=True)
    distance = np.where((cells.prey == rules.cells)[..., None], FAR, distance)
    goes = chase(distance, cells.hunters, neighbours(rules), legal, rules.stags)
    probs = uniform.copy()
    for index, name in enumerate(names):
        if name != "RANDOM":
            mine = (who == index)[..., None]
            probs = np.where(mine, (1.0 - epsilon) * goes[name] + epsilon * uniform, probs)
    return probs
