"""Where the files lie that every result here is made from."""

from __future__ import annotations

from pathlib import Path

from data.trajectories import DataError

DEFAULT_DATA = "data/stag_hunt_4p5b_8x8.npz"
"""what `--data` is by default: a file of this package's folder, wherever a script is started"""
DEFAULT_FILE = Path(__file__).resolve().parent / "stag_hunt_4p5b_8x8.npz"
"""107,010 active samples of seed 1: what the scripts train on"""
FRESH_FILE = DEFAULT_FILE.with_name("fresh_1001.npz")
"""100,000 board steps of seed 1001, of the same law: what targets are judged on"""
UNMASKED_FILE = DEFAULT_FILE.with_name("unmasked_1002.npz")
"""100,000 board steps of seed 1002, with 30% of the actions uniform over all seven: what world models are judged on"""


def default_or_fresh(path: str | Path) -> Path:
    """Where `--data PATH` lies. The default file, `fresh` and `unmasked` are collected on first use; others must exist."""
    path = _path_of(path)
    settings = {
        DEFAULT_FILE: {},
        FRESH_FILE: dict(steps=100_000, seed=1001),
        UNMASKED_FILE: dict(steps=100_000, seed=1002, unmasked=0.3),
    }
    if not path.exists() and path.resolve() in settings:
        from data.collect import Args, collect_to_file  # here, since `collect` is a command of its own

        collect_to_file(Args(out=str(path), **settings[path.resolve()]))
    return path


def training_file(path: str | Path) -> Path:
    """As `default_or_fresh`, for training. Raises: DataError: the file is one of the two that judge."""
    if _path_of(path).resolve() in (FRESH_FILE.resolve(), UNMASKED_FILE.resolve()):
        raise DataError(
            f"{path}: this file is for judging only; train on another (`python -m data.collect --help`)"
        )
    return default_or_fresh(path)


def _path_of(path: str | Path) -> Path:
    names = {DEFAULT_DATA: DEFAULT_FILE, "fresh": FRESH_FILE, "unmasked": UNMASKED_FILE}
    return names.get(Path(path).as_posix(), Path(path))
