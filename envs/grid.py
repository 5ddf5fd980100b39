"""A board, once: the neighbours of a cell, shortest paths, the symmetries, and the layouts of an observation.

Layouts, each converted into the others, with k kinds of prey (2 in the stag hunt: stags, hares):

- *planes*, `[..., A, 3+k, H, W]`: for each hunter SELF, OTHERS, BLOCKS and each kind of prey.
- *joint*, `[..., A+1+k, H, W]`: the SELF plane of each seat in seat order, then BLOCKS and each kind of prey.
- *HOP*, `[..., H, W, A+1+k]`: channels last, observer first: plane i is seat (observer + i) mod A, then BLOCKS and
  each kind of prey. Joint ACTIONS are in seat order; these planes are not.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from envs.game import MAX_KINDS

FAR = np.int16(2**14)  # the distance to a prey that is gone or cannot be reached


# ---- cells: row * W + column; K = H * W stands for off the board


@lru_cache(maxsize=16)
def neighbours(height: int, width: int) -> np.ndarray:
    """int64 [K+1, 8]: the cell that each action leads to, K off the board; the last row is all K.

    An action after the five moves takes prey, and stays.
    """
    K = height * width
    grid = np.pad(np.arange(K).reshape(height, width), 1, constant_values=K)
    here = grid[1:-1, 1:-1]
    up = grid[:-2, 1:-1]
    down = grid[2:, 1:-1]
    left = grid[1:-1, :-2]
    right = grid[1:-1, 2:]
    table = np.stack([up, down, left, right, here, *[here] * MAX_KINDS], -1).reshape(K, -1)
    return np.concatenate([table, np.full_like(table[:1], K)])


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


def symmetries(height: int, width: int, num_actions: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """The 8 symmetries of a square board (4 of another rectangle), the identity first, as index tables.

    Returns:
        cells: int64 [S, height * width]: `planes[..., cells[g]]` is the board (its cells flattened) seen through g.
        actions: int64 [S, num_actions]: an action `a` becomes `actions[g, a]`, and a row of action probabilities `p` becomes
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
                actions.append(_permuted_actions(transpose, flip_rows, flip_columns, num_actions))
    return np.array(cells, np.int64), np.array(actions, np.int64)


def _permuted_actions(transpose: bool, flip_rows: bool, flip_columns: bool, num_actions: int) -> list[int]:
    permuted = list(range(num_actions))
    for (rows, columns), action in _DIRECTIONS.items():
        to = (columns, rows) if transpose else (rows, columns)
        down = -to[0] if flip_rows else to[0]
        right = -to[1] if flip_columns else to[1]
        permuted[action] = _DIRECTIONS[down, right]
    return permuted


# ---- layouts


def planes_to_joint(obs: np.ndarray) -> np.ndarray:
    """[..., A, 3+k, H, W] -> [..., A+1+k, H, W], same dtype."""
    own = obs[..., :, 0, :, :]
    board = obs[..., 0, 2:, :, :]
    return np.concatenate([own, board], axis=-3)


def joint_to_planes(joint: np.ndarray, kinds: int = 2) -> np.ndarray:
    """[..., A+1+k, H, W] -> [..., A, 3+k, H, W], same dtype. kinds: k."""
    A = joint.shape[-3] - 1 - kinds
    own = joint[..., :A, :, :]
    board = joint[..., None, A:, :, :]
    if A > 1:
        others = np.stack([np.delete(own, seat, axis=-3).max(axis=-3) for seat in range(A)], axis=-3)
    else:
        others = np.zeros_like(own)
    board = np.broadcast_to(board, (*own.shape[:-2], *board.shape[-3:]))
    hunters = np.stack([own, others], axis=-3)  # [..., A, 2, H, W]
    return np.concatenate([hunters, board], axis=-3)


def joint_to_hop(joint: np.ndarray, observer: int | np.ndarray, kinds: int = 2) -> np.ndarray:
    """[..., A+1+k, H, W] -> [..., H, W, A+1+k] as seat `observer` (an int, or an int array of shape [...]) sees it."""
    return np.moveaxis(_rotate(joint, np.asarray(observer), 1 + kinds), -3, -1)


def hop_to_joint(hop: np.ndarray, observer: int | np.ndarray, kinds: int = 2) -> np.ndarray:
    """[..., H, W, A+1+k] seen by seat `observer` -> [..., A+1+k, H, W] in seat order."""
    return _rotate(np.moveaxis(hop, -1, -3), -np.asarray(observer), 1 + kinds)


def _rotate(joint: np.ndarray, by: np.ndarray, board_planes: int) -> np.ndarray:
    """Plane i becomes plane (i + by) mod A; the last `board_planes` stay."""
    planes = joint.shape[-3]
    A = planes - board_planes
    if A < 1:
        raise ValueError(f"expected at least one hunter plane and {board_planes} more, got {planes} planes")
    by = np.broadcast_to(by, joint.shape[:-3])[..., None]
    seats = (np.arange(A) + by) % A
    board = np.broadcast_to(np.arange(A, planes), (*seats.shape[:-1], board_planes))
    order = np.concatenate([seats, board], axis=-1)
    return np.take_along_axis(joint, order[..., None, None], axis=-3)
