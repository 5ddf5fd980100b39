"""A script's command line, in the test's own process."""

import sys
from types import ModuleType

import tracking
from data import DataError


def run_script(monkeypatch, script: ModuleType, *flags) -> int:
    """Returns: its exit code, 0 if it just ends."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
    try:
        tracking.run(script.main, DataError)
    except SystemExit as stop:
        return stop.code
    return 0
