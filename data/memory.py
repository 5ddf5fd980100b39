"""What fits in this machine's memory: asked before anything large is allocated, so that a run is refused in one line
with the number, and not killed in the middle."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path
from typing import Any

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")

# Peak memory as a multiple of a file's arrays; `python -m benchmarks.memory` measures it.
COLLECT_FACTOR = 1.3
TRAJECTORY_FACTOR = 1.5  # trained on, or judged
FLAT_FACTOR = 4.1  # read from rows


def shortage(needed: float) -> str:
    """Why `needed` bytes do not fit, or "": `needs 31.2 GB of memory, 7.6 GB are free`."""
    free = available_bytes()
    if free is None or needed <= free:
        return ""
    return f"needs {needed / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB are free"


def require(needed: float, what: str) -> None:
    """Refuse a run that this machine cannot hold. needed: bytes; what: the settings that ask for them.

    Raises: MemoryError: one line with the numbers.
    """
    why = shortage(needed)
    if why:
        raise MemoryError(f"{what}: {why}; choose smaller numbers")


def bytes_of_play(args: Any, rules: Any, recorded: int, imagined: tuple[int, int]) -> int:
    """Of a run of hop_ppo.py: the rollout and the minibatches' copy of it, the activations of a minibatch, boards, search
    trees, and recorded episodes.

    args: settings of hop_ppo.py; rules: envs.core.GameRules; recorded: episodes that are kept;
    imagined: boards, and ticks of an update, of imagination before a search.
    """
    A, P = rules.hunters, rules.prey
    node = 8 * (A + P) + 200
    rows = args.num_envs * (A if args.co_players == "self" else 1)
    samples = rows * args.num_steps
    nodes = args.plan_simulations + args.plan_samples  # of a decision
    trees = max(
        args.plan * args.plan_boards * nodes,
        args.plan_train * rows * nodes,
        args.plan_boards * args.oracle_simulations,
    )
    if args.plan and args.plan_model == "learned" and args.plan_fit:
        rows, samples = max(rows, imagined[0]), max(samples, imagined[0] * imagined[1])
    activations = 1500 * P * (A + 4) * math.ceil(samples / args.num_minibatches)
    boards = max(rows, args.eval_boards, args.plan_boards) * bytes_of_board(rules)
    kept = 2 * recorded * rules.horizon * A * rules.cells * (3 + rules.game.kinds)
    return 2 * samples * bytes_of_observation(rules) + activations + boards + trees * node + kept


def bytes_of_observation(rules: Any) -> int:
    """Of hop_ppo.py, of a learner in a tick, with what is known of the others."""
    A, P = rules.hunters, rules.prey
    return 12 * (A + P) + P * (A + 4) + rules.cells + 100


def bytes_of_board(rules: Any) -> int:
    """That is being played: most are distances, int16, before and after a tick."""
    return rules.cells * (4 * rules.prey + 8)


def available_bytes() -> int | None:
    """Bytes that a process can still allocate: the least of what the machine and its container give; None: not known."""
    limits = [limit for limit in (_machine_bytes(), _container_bytes()) if limit is not None]
    return min(limits, default=None)


def _machine_bytes() -> int | None:
    if MEMINFO.is_file():  # Linux
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf"):  # macOS says how much there is, not how much is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _windows_bytes()


def _windows_bytes() -> int | None:
    """`ullAvailPhys` of GlobalMemoryStatusEx."""
    windll = getattr(ctypes, "windll", None)
    if windll is None:
        return None
    status = (ctypes.c_ulonglong * 8)()  # the length and the load share the first eight bytes
    status[0] = ctypes.sizeof(status)
    return status[2] if windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _container_bytes() -> int | None:
    """What the control group (version 2) of this process leaves; None: no limit."""
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    try:
        allowed = limit.read_text(encoding="ascii").strip()
        return None if allowed == "max" else int(allowed) - int(used.read_text(encoding="ascii"))
    except OSError:
        return None
