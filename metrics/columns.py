"""Results of many rows, made a part at a time."""

from __future__ import annotations

import numpy as np


class Columns(dict):
    """Arrays of one number of rows, by name. Room for all rows is taken when the first part comes: parts that are kept one
    by one would lie between what is freed, and hold it."""

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows

    def put(self, key: str, part: slice, values: np.ndarray) -> None:
        """values: [rows of the part, ..]."""
        if key not in self:
            self[key] = np.empty((self.rows, *values.shape[1:]), values.dtype)
        self[key][part] = values
