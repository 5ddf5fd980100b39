"""Trajectories: collected, read, checked, turned round, and the exact observers to judge a model by."""

from data import reports, scores
from data.files import DEFAULT_DATA, default_or_fresh, training_file
from data.samples import Samples, load_samples
from data.symmetries import symmetries
from data.trajectories import DataError, Trajectories, load

__all__ = [
    "DEFAULT_DATA", "DataError", "Samples", "Trajectories", "default_or_fresh", "load", "load_samples", "reports",
    "scores", "symmetries", "training_file",
]  # fmt: skip
