"""What fits in this machine's memory: asked before anything large is allocated, so that a run is refused in one line
with the number, and not killed in the middle."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

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
