"""Benchmarks, each run as `python -m benchmarks.<name>` from the repository root.

NumPy's libraries get one thread, unless the environment says otherwise: set here, before NumPy is imported.
"""

import os
import platform
from datetime import date
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def machine() -> str:
    """One line: date, processor, threads, Python and NumPy."""
    import numpy as np

    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():  # Linux, where platform.processor() often knows nothing
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    threads = os.environ["OMP_NUM_THREADS"]
    return (
        f"{date.today()}  {cpu}, {os.cpu_count()} cores, {threads} thread(s)  "
        f"{platform.system()}, Python {platform.python_version()}, NumPy {np.__version__}"
    )
