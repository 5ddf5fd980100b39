"""Trajectory files: collected, read, checked, split. `data.datasets` makes samples, transitions and batches of them."""

from data.trajectories import DEFAULT_DATA, DataError, Trajectories, default_or_fresh, load, training_file

__all__ = ["DEFAULT_DATA", "DataError", "Trajectories", "default_or_fresh", "load", "training_file"]
