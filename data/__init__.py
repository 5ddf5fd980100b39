"""Trajectory files: collected, read, checked, split.

`data.datasets` makes samples, transitions and batches of them;
it needs PyTorch, which this package does not import.
"""

import sys

if sys.argv[0] == "-m":  # `python -m data.collect`, say: from here on Ctrl-C ends it in one line
    import tracking  # noqa: F401

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
