"""Attack the project: kills, bad files, bad checkpoints, bad flags, bad machines. For whoever changes saving or reading.

    python -m benchmarks.attacks --count 100

prints what was tried, what passed and what failed, and every failure. A small part of it, with fixed seeds, is among the
tests.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from tqdm import tqdm

import tracking
from benchmarks import bad_checkpoints, bad_files, bad_flags, kills, machine
from data import DataError
from data.datasets import load_samples, load_transitions

PARTS = ("kills", "files", "checkpoints", "flags", "machines")


@dataclass
class Args:
    what: tuple[Literal["kills", "files", "checkpoints", "flags", "machines"], ...] = PARTS
    """the attacks to make"""
    count: int = 100
    """kills, over all scripts and variants in turn"""
    commands: tuple[str, ...] = tuple(kills.COMMANDS)
    """what is killed"""
    seed: int = 1
    """of the moments and signals, and of the flipped bytes"""
    out: str = ""
    """a CSV file of all attacks"""


Row = dict[str, str]  # attack, case, problem: empty where it passed


def attack_kills(args: Args, folder: Path) -> list[Row]:
    attacks = kills.kills(folder, args.count, args.seed, list(args.commands))
    rows = []
    for row in tqdm(attacks, total=args.count, unit=" kills", leave=False):
        case = f"{row['command']}: {row['signal']} after {row['share']:.3f}"
        rows.append(dict(attack="kills", case=case, problem="; ".join(row["problems"])))
        tqdm.write(f"{case}: {rows[-1]['problem'] or 'passed'}")
    return rows


def attack_files(args: Args, folder: Path) -> list[Row]:
    rows = []
    for case, path in tqdm(bad_files.bad_files(folder, args.seed), unit=" files", leave=False):
        for read in (load_samples, load_transitions):
            try:
                read(path)
                problem = "accepted"
            except DataError as error:
                problem = "" if str(error).startswith(f"{path}: ") else f"no file in the line: {error}"
            except Exception as error:
                problem = f"no line: {error!r}"
            rows.append(dict(attack="files", case=f"{case}, {read.__name__}", problem=problem))
    return rows


def attack_checkpoints(args: Args, folder: Path) -> list[Row]:
    cases = bad_checkpoints.outcomes(folder, args.seed)
    found = tqdm(cases, unit=" checkpoints", leave=False)
    return [dict(attack="checkpoints", case=case, problem=problem) for case, problem in found]


def attack_flags(args: Args, folder: Path) -> list[Row]:
    kills.Range(folder)
    os.chdir(folder)
    rows = []
    for command, flags in tqdm(list(bad_flags.bad_flags()), unit=" flags", leave=False):
        found = bad_flags.outcome(command, flags)
        case = f"{command} {' '.join(flags)[:60]!r}"
        rows.append(dict(attack="flags", case=case, problem="" if found == "refused" else found))
    return rows


def attack_machines(args: Args, folder: Path) -> list[Row]:
    kills.Range(folder)
    rows = []
    for case, found in tqdm(bad_flags.bad_machines(folder), unit=" machines", leave=False):
        rows.append(dict(attack="machines", case=case, problem="" if found == "refused" else found))
    return rows


ATTACKS: dict[str, Callable[[Args, Path], list[Row]]] = {
    "kills": attack_kills,
    "files": attack_files,
    "checkpoints": attack_checkpoints,
    "flags": attack_flags,
    "machines": attack_machines,
}


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    print(machine())
    rows: list[Row] = []
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.what:
            at = Path(folder) / name
            at.mkdir()
            rows += ATTACKS[name](args, at)
            os.chdir(here)
    table = pd.DataFrame(rows)
    table["passed"] = table["problem"] == ""
    counts = table.groupby("attack", sort=False)["passed"].agg(tried="size", passed="sum")
    counts["failed"] = counts["tried"] - counts["passed"]
    print(counts.to_string())
    for row in rows:
        if row["problem"]:
            print(f"failed: {row['attack']}: {row['case']}: {row['problem']}")
    if args.out:
        tracking.write_csv(args.out, table)
    sys.exit(int(counts["failed"].sum() > 0))


if __name__ == "__main__":
    tracking.run(main, RuntimeError)
