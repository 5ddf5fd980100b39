"""The symmetries of a board, with the actions permuted along."""

from __future__ import annotations

import numpy as np

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
