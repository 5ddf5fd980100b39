"""Trajectories: collected, read, checked, turned round, and cut into samples and batches."""

from data.files import DEFAULT_DATA, default_or_fresh, training_file
from data.samples import Samples, load_samples
from data.trajectories import DataError, Trajectories, load
from envs.grid import symmetries

__all__ = [
    "DEFAULT_DATA", "DataError", "Samples", "Trajectories", "default_or_fresh", "load", "load_samples", "symmetries",
    "training_file",
]  # fmt: skip
