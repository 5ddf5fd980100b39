"""Where the two files lie that every result here is made from."""

from __future__ import annotations

from pathlib import Path

DEFAULT_DATA = "data/stag_hunt_4p5b_8x8.npz"
"""what `--data` is by default: a file of this package's folder, wherever a script is started"""
DEFAULT_FILE = Path(__file__).resolve().parent / "stag_hunt_4p5b_8x8.npz"
"""107,010 active samples of seed 1: what the scripts train on"""
FRESH_FILE = DEFAULT_FILE.with_name("fresh_1001.npz")
"""100,000 board steps of seed 1001, of the same law: what targets are judged on"""


def default_or_fresh(path: str | Path) -> Path:
    """Where `--data PATH` lies. The default file, and `fresh`, are collected on first use; other paths must exist."""
    path = {"fresh": FRESH_FILE, DEFAULT_DATA: DEFAULT_FILE}.get(Path(path).as_posix(), Path(path))
    if not path.exists() and path.resolve() in (DEFAULT_FILE, FRESH_FILE):
        from data.collect import Args, collect_to_file  # here, since `collect` is a command of its own

        fresh = path.resolve() == FRESH_FILE
        collect_to_file(Args(out=str(path), steps=100_000, seed=1001) if fresh else Args(out=str(path)))
    return path
