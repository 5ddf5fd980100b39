"""Trajectory files: collected, read, checked, split.

`data.datasets` makes samples, transitions and batches of them;
it needs PyTorch, which this package does not import.
"""

from data.trajectories import (
    DEFAULT_DATA,
    DataError,
    Trajectories,
    default_or_fresh,
    load,
    training_file,
)

__all__ = [
    "DEFAULT_DATA",
    "DataError",
    "Trajectories",
    "default_or_fresh",
    "load",
    "training_file",
]
