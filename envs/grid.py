"""A board, once: the neighbours of a cell, shortest paths, the symmetries, and the layouts of an observation.

Layouts, each converted into the others:

- *planes*, `[..., A, 5, H, W]`: for each hunter SELF, OTHERS, BLOCKS, STAGS, HARES.
- *joint*, `[..., A+3, H, W]`: the SELF plane of each seat in seat order, then BLOCKS, STAGS, HARES.
- *HOP*, `[..., H, W, A+3]`: channels last, observer first: plane k is seat (observer + k) mod A, then BLOCKS,
  STAGS, HARES. Joint ACTIONS are in seat order; these planes are not.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

FAR = np.int16(2**14)  # the distance to a prey that is gone or cannot be reached


@lru_cache(maxsize=16)
def neighbours(height: int, width: int) -> np.ndarray:
    """int64 [K+1, 7]: the cell that each action leads to, K off the board; the last row is all K."""
    K = height * width
    grid = np.pad(np.arange(K).reshape(height, width), 1, constant_values=K)
    inner = grid[1:-1, 1:-1]
    ways = np.stack(
        [grid[:-2, 1:-1], grid[2:, 1:-1], grid[1:-1, :-2], grid[1:-1, 2:], inner, inner, inner], -1
    )
    return np.concatenate([ways.reshape(K, 7), np.full((1, 7), K)])


def distance_fields(blocks: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Shortest-path length around blocks from every cell to the nearest source (a source itself is 0).

    Args: blocks, sources: bool [N, H, W]. Returns: int16 [N, H, W]; FAR on blocks and where no source is reached.
    """
    n, h, w = sources.shape
    free = np.zeros((n, h + 2, w + 2), bool)
    free[:, 1:-1, 1:-1] = ~blocks
    reached = np.zeros_like(free)
    reached[:, 1:-1, 1:-1] = sources
    reached &= free
    steps = np.zeros((n, h, w), np.int16)
    inner = reached[:, 1:-1, 1:-1]
    while True:  # one wave a turn; a cell's distance is the number of waves that had not reached it
        before = inner.copy()
        wave = (
            before
            | reached[:, :-2, 1:-1]
            | reached[:, 2:, 1:-1]
            | reached[:, 1:-1, :-2]
            | reached[:, 1:-1, 2:]
        )
        wave &= free[:, 1:-1, 1:-1]
        if (wave == before).all():
            return np.where(before, steps, FAR)
        steps += ~before
        inner[...] = wave


_MOVES = {(-1, 0): 0, (1, 0): 1, (0, -1): 2, (0, 1): 3}  # (rows, columns) -> UP, DOWN, LEFT, RIGHT


def symmetries(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The 8 symmetries of a square board (4 of another rectangle), the identity first, as index tables.

    Returns:
        cells: int64 [S, height * width]: `planes[..., cells[g]]` is the board (its cells flattened) seen through g.
        actions: int64 [S, 7]: an action `a` becomes `actions[g, a]`, and a row of action probabilities `p` becomes
            `p[argsort(actions[g])]`.
    """
    grid = np.arange(height * width).reshape(height, width)
    cells, actions = [], []
    for transpose in (False, True) if height == width else (False,):
        for flip_rows in (False, True):
            for flip_columns in (False, True):
                board = grid.T if transpose else grid
                board = board[::-1] if flip_rows else board
                cells.append((board[:, ::-1] if flip_columns else board).ravel())
                permuted = list(range(7))
                for (dr, dc), action in _MOVES.items():
                    dr, dc = (dc, dr) if transpose else (dr, dc)
                    permuted[action] = _MOVES[(-dr if flip_rows else dr, -dc if flip_columns else dc)]
                actions.append(permuted)
    return np.array(cells, np.int64), np.array(actions, np.int64)


def planes_to_joint(obs: np.ndarray) -> np.ndarray:
    """[..., A, 5, H, W] -> [..., A+3, H, W], same dtype."""
    return np.concatenate([obs[..., :, 0, :, :], obs[..., 0, 2:, :, :]], axis=-3)


def joint_to_planes(joint: np.ndarray) -> np.ndarray:
    """[..., A+3, H, W] -> [..., A, 5, H, W], same dtype."""
    hunters, rest = joint[..., :-3, :, :], joint[..., -3:, :, :]
    seats = hunters.shape[-3]
    if seats > 1:
        others = np.stack([np.delete(hunters, seat, axis=-3).max(axis=-3) for seat in range(seats)], axis=-3)
    else:
        others = np.zeros_like(hunters)
    board = np.broadcast_to(rest[..., None, :, :, :], (*hunters.shape[:-2], *rest.shape[-3:]))
    return np.concatenate([hunters[..., None, :, :], others[..., None, :, :], board], axis=-3)


def joint_to_hop(joint: np.ndarray, observer: int | np.ndarray) -> np.ndarray:
    """[..., A+3, H, W] -> [..., H, W, A+3] as seat `observer` (an int, or an int array of shape [...]) sees it."""
    return np.moveaxis(_rotate(joint, np.asarray(observer)), -3, -1)


def hop_to_joint(hop: np.ndarray, observer: int | np.ndarray) -> np.ndarray:
    """[..., H, W, A+3] seen by seat `observer` -> [..., A+3, H, W] in seat order."""
    return _rotate(np.moveaxis(hop, -1, -3), -np.asarray(observer))


def _rotate(joint: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Plane k becomes plane (k + by) mod A; the last three planes stay."""
    seats = joint.shape[-3] - 3
    if seats < 1:
        raise ValueError(f"expected at least one hunter plane and three more, got {joint.shape[-3]} planes")
    by = np.broadcast_to(by, joint.shape[:-3])[..., None]
    order = np.concatenate(
        [(np.arange(seats) + by) % seats, np.broadcast_to(np.arange(seats, seats + 3), (*by.shape[:-1], 3))],
        -1,
    )
    return np.take_along_axis(joint, order[..., None, None], axis=-3)
