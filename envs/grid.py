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


# ---- cells: row * W + column; K = H * W stands for off the board


@lru_cache(maxsize=16)
def neighbours(height: int, width: int) -> np.ndarray:
    """int64 [K+1, 7]: the cell that each action leads to, K off the board; the last row is all K."""
    K = height * width
    grid = np.pad(np.arange(K).reshape(height, width), 1, constant_values=K)
    here = grid[1:-1, 1:-1]
    up = grid[:-2, 1:-1]
    down = grid[2:, 1:-1]
    left = grid[1:-1, :-2]
    right = grid[1:-1, 2:]
    table = np.stack([up, down, left, right, here, here, here], -1)  # [H, W, 7]; who hunts stays
    return np.concatenate([table.reshape(K, 7), np.full((1, 7), K)])


def distance_fields(blocks: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Shortest-path length around blocks from every cell to the nearest source (a source itself is 0).

    Args: blocks, sources: bool [N, H, W].
    Returns: int16 [N, H, W]; FAR on blocks and where no source is reached.
    """
    n, h, w = sources.shape
    free = ~blocks.transpose(
        1, 2, 0
    )  # boards last: what is done to one cell of all boards is one row of memory
    padded = np.zeros((h + 2, w + 2, n), bool)
    reached = padded[1:-1, 1:-1]  # [H, W, N]
    reached[...] = sources.transpose(1, 2, 0) & free
    steps = np.zeros((h, w, n), np.int16)
    wave = reached.copy()
    while True:  # a cell's distance is the number of waves that had not reached it
        before = wave
        wave = before | padded[:-2, 1:-1]
        wave |= padded[2:, 1:-1]
        wave |= padded[1:-1, :-2]
        wave |= padded[1:-1, 2:]
        wave &= free
        if np.array_equal(wave, before):
            break
        steps += ~before
        reached[...] = wave
    steps[~wave] = FAR
    return np.ascontiguousarray(steps.transpose(2, 0, 1))


# ---- symmetries

_DIRECTIONS = {(-1, 0): 0, (1, 0): 1, (0, -1): 2, (0, 1): 3}  # (rows, columns) -> UP, DOWN, LEFT, RIGHT


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
                board = board[:, ::-1] if flip_columns else board
                cells.append(board.ravel())
                actions.append(_permuted_actions(transpose, flip_rows, flip_columns))
    return np.array(cells, np.int64), np.array(actions, np.int64)


def _permuted_actions(transpose: bool, flip_rows: bool, flip_columns: bool) -> list[int]:
    permuted = list(range(7))
    for (rows, columns), action in _DIRECTIONS.items():
        to = (columns, rows) if transpose else (rows, columns)
        down = -to[0] if flip_rows else to[0]
        right = -to[1] if flip_columns else to[1]
        permuted[action] = _DIRECTIONS[down, right]
    return permuted


# ---- layouts


def planes_to_joint(obs: np.ndarray) -> np.ndarray:
    """[..., A, 5, H, W] -> [..., A+3, H, W], same dtype."""
    own = obs[..., :, 0, :, :]
    board = obs[..., 0, 2:, :, :]
    return np.concatenate([own, board], axis=-3)


def joint_to_planes(joint: np.ndarray) -> np.ndarray:
    """[..., A+3, H, W] -> [..., A, 5, H, W], same dtype."""
    own = joint[..., :-3, :, :]
    board = joint[..., None, -3:, :, :]
    A = own.shape[-3]
    if A > 1:
        others = np.stack([np.delete(own, seat, axis=-3).max(axis=-3) for seat in range(A)], axis=-3)
    else:
        others = np.zeros_like(own)
    board = np.broadcast_to(board, (*own.shape[:-2], *board.shape[-3:]))
    hunters = np.stack([own, others], axis=-3)  # [..., A, 2, H, W]
    return np.concatenate([hunters, board], axis=-3)


def joint_to_hop(joint: np.ndarray, observer: int | np.ndarray) -> np.ndarray:
    """[..., A+3, H, W] -> [..., H, W, A+3] as seat `observer` (an int, or an int array of shape [...]) sees it."""
    return np.moveaxis(_rotate(joint, np.asarray(observer)), -3, -1)


def hop_to_joint(hop: np.ndarray, observer: int | np.ndarray) -> np.ndarray:
    """[..., H, W, A+3] seen by seat `observer` -> [..., A+3, H, W] in seat order."""
    return _rotate(np.moveaxis(hop, -1, -3), -np.asarray(observer))


def _rotate(joint: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Plane k becomes plane (k + by) mod A; the last three planes stay."""
    A = joint.shape[-3] - 3
    if A < 1:
        planes = joint.shape[-3]
        raise ValueError(f"expected at least one hunter plane and three more, got {planes} planes")
    by = np.broadcast_to(by, joint.shape[:-3])[..., None]
    seats = (np.arange(A) + by) % A
    board = np.broadcast_to([A, A + 1, A + 2], (*seats.shape[:-1], 3))
    order = np.concatenate([seats, board], axis=-1)
    return np.take_along_axis(joint, order[..., None, None], axis=-3)
