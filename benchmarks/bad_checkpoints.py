"""Bad checkpoints, each of which must be refused in one line that names the field: for whoever adds one.

Each field of a real checkpoint is deleted, retyped, negated and emptied, and each part of the file has a bit flipped.
`python -m benchmarks.attacks --what checkpoints` prints the table; tests/test_checkpoints.py makes all of them.
"""

from __future__ import annotations

import importlib
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import tracking
from benchmarks import kills
from benchmarks.bad_flags import CKPTS, TRAIN

# Settings of any text
FREE_TEXT = ("exp_name", "data", "vae", "world_model", "oracle", "resume", "evaluate", "record")
FREE_TEXT += ("wandb_project_name", "wandb_entity")
ABSENT = object()  # in place of a value: the field is left out
FLIPS = 60  # of a file


def changes_of(value: Any) -> dict[str, Any]:
    """What a field is changed to, by name."""
    changes = {"deleted": ABSENT, "none": None, "text": "x", "list": [], "nan": math.nan, "table": {"x": {}}}
    if type(value) in (int, float) and value:
        changes |= {"negated": -value, "huge": 10**400}
    if isinstance(value, (str, dict, list)):
        changes["emptied"] = type(value)()
    if isinstance(value, torch.Tensor):
        changes |= {"double": value.double(), "wider": value[None]}
        changes |= {"emptied": value.flatten()[:0], "meta": value.to("meta")}
        if value.is_floating_point():
            changes |= {"nans": torch.full_like(value, math.nan), "sparse": value.to_sparse()}
        return changes
    return {name: new for name, new in changes.items() if type(new) is not type(value) or new != value}


def replaced(part: Any, path: tuple, value: Any) -> Any:
    """A copy of nested dictionaries and lists with one value changed or left out."""
    if not path:
        return value
    part = part.copy()
    key, rest = path[0], path[1:]
    if value is ABSENT and not rest:
        del part[key]
    else:
        part[key] = replaced(part[key], rest, value)
    return part


def paths_of(saved: dict) -> list[tuple]:
    """All fields, and of the nested ones those of the first of a kind."""
    found: list[tuple] = [(name,) for name in saved if name != "kind"]
    found += [(name, key) for name in ("args", "sizes", "rng") for key in saved[name]]
    found += [("model", key) for key in list(saved["model"])[:3]]
    groups, state = saved["optimizer"]["param_groups"], saved["optimizer"]["state"]
    found += [("optimizer", "param_groups"), ("optimizer", "state")]
    found += [("optimizer", "param_groups", 0, key) for key in groups[0]]
    first = next(iter(state))
    found += [("optimizer", "state", first), *(("optimizer", "state", first, key) for key in state[first])]
    return [*found, ("history", 0), ("history", 0, "update" if "update" in saved else "epoch")]


def is_allowed(path: tuple, change: str) -> bool:
    """What may be otherwise."""
    if path in (("rules",), ("table",), ("belief",)) and change == "none":
        return True
    if (path, change) in ((("rules",), "table"), (("run",), "text"), (("sizes", "hunt_bias"), "negated")):
        return True
    if path[0] == "args" and path[-1] in FREE_TEXT:
        return change == "text" or (change == "emptied" and path[-1] != "exp_name")
    if path[-1] in ("foreach", "fused") and change == "none":  # how a step is computed
        return True
    if path[:2] == ("optimizer", "param_groups") and change == "deleted":
        return path[-1] not in ("param_groups", "lr", "params")  # of another version of torch
    return path[:2] == ("optimizer", "state") and change == "deleted" and len(path) == 3  # had no gradient


def bad_fields(saved: dict) -> Iterator[tuple[tuple, str, dict]]:
    """Yields: the path of a field, the change, and the changed checkpoint."""
    for path in paths_of(saved):
        value = saved
        for key in path:
            value = value[key]
        for change, new in changes_of(value).items():
            if not is_allowed(path, change):
                yield path, change, replaced(saved, path, new)


def names_of(path: tuple) -> tuple[str, ...]:
    """One of these stands in the line."""
    if path == ("strategies",):
        return ("strategies", "table")  # a table is over them
    name = next(key for key in reversed(path) if isinstance(key, str))
    return (name, path[0], name.replace("_", "-"))


def flipped(content: bytes, seed: int) -> Iterator[tuple[int, bytes]]:
    """Yields: positions, and the file with a bit flipped there: at random, and at each byte near the end."""
    draw = random.Random(seed)
    for position in [*draw.sample(range(len(content)), FLIPS), *range(len(content) - 100, len(content))]:
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        yield position, bytes(changed)


def outcomes(folder: Path, seed: int) -> Iterator[tuple[str, str]]:
    """Train the scripts in `folder` for a moment, and read bad copies. Yields: a case, and what went wrong, or ""."""
    kills.Range(folder)
    for command, ckpts in CKPTS.items():
        argv = [sys.executable, str(kills.ROOT / f"{command}.py"), *TRAIN[command]]
        subprocess.run(argv, cwd=folder, check=True, capture_output=True)
        path = max((folder / ckpts).rglob("last.pt"))
        schema = importlib.import_module(command).CHECKPOINT
        content = path.read_bytes()
        saved = tracking.load_checkpoint(path, schema)
        added = {(*filter(None, [part]), key) for part, values in schema.added.items() for key in values}
        added |= {("sizes", key) for key in schema.added_sizes(saved)}
        for fields, change, changed in bad_fields(saved):
            if change == "deleted" and fields in added:  # an older checkpoint
                continue
            tracking.save_checkpoint(path, changed)
            name = ".".join(map(str, fields))
            yield f"{command}: {name} {change}", problem_of(path, schema, names_of(fields))
        for position, spoilt in flipped(content, seed):
            path.write_bytes(spoilt)
            yield f"{command}: bit of byte {position}", problem_of(path, schema, ("damaged",))
        path.write_bytes(content)


def problem_of(path: Path, schema: tracking.Schema, names: tuple[str, ...]) -> str:
    """How a file is refused: "" for one line with its name and one of `names`."""
    try:
        tracking.load_checkpoint(path, schema)
    except tracking.UsageError as error:
        line = str(error)
        good = "\n" not in line and line.startswith(f"{path}: ") and any(name in line for name in names)
        return "" if good else f"not in a line of its own: {line}"
    except Exception as error:
        return f"no line: {error!r}"
    return "accepted"
