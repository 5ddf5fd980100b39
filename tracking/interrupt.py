"""Ctrl-C, SIGTERM and SIGHUP end a command of this repository in one line.

Importing this module is enough, and it comes first: torch takes seconds to import, and until
`catching` there is nothing to clean up, so that a signal ends the program at once. Then the
signal is an exception, and `tracking.run` says the line when all is closed.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "terminated"}
PATIENCE = 5.0  # seconds; a second signal within them changes nothing, a later one ends the program at once
AGAIN = 0.05  # seconds until a signal is raised again that Python has dropped


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP has arrived."""


@dataclass
class State:
    """Of the one program that this process is."""

    signal: int = 0  # the one that ends it
    since: float = 0.0
    catching: bool = False
    advice: str = "`--resume RUN_FOLDER` goes on from it"


STATE = State()


def message(number: int) -> str:
    """The line where the signal `number` ends a program."""
    word = WORDS[signal.Signals(number).name]
    return f"{word}; what was saved before is kept, {STATE.advice}"


def advise(advice: str) -> None:
    """How to go on, in the line of a program that has no --resume."""
    STATE.advice = advice


def speaks() -> bool:
    """Whether this process prints errors: of those that torchrun starts, one on each machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def arrived() -> int:
    """The signal that is ending this program, or 0."""
    return STATE.signal


@contextlib.contextmanager
def catching() -> Iterator[None]:
    """Within it a signal is an exception, KeyboardInterrupt or Terminated."""
    unraisable = sys.unraisablehook
    STATE.signal = 0
    STATE.catching = True
    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        STATE.catching = False
        sys.unraisablehook = unraisable


def install() -> None:
    """Handle the signals that nobody has ignored (as nohup does) or handles otherwise.

    A process that is silent just ends: waiting for another in a library's call, it would not hear of the signal.
    """
    for name in WORDS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None:
            continue
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, handle if speaks() else signal.SIG_DFL)


def handle(number: int, frame: FrameType | None = None) -> None:
    """The handler. Raises: KeyboardInterrupt."""
    if STATE.signal and time.monotonic() - STATE.since < PATIENCE:
        return  # torchrun and a terminal send several: what cleans up is not to be interrupted
    if STATE.signal or not STATE.catching:
        end_at_once(number)
    STATE.signal = number
    STATE.since = time.monotonic()
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def end_at_once(number: int) -> NoReturn:
    """Without cleaning up, and without `print`, which may be at work already."""
    with contextlib.suppress(OSError):  # the terminal is gone
        if speaks():
            os.write(2, f"error: {message(number)}\n".encode())
    os._exit(128 + number)


def raise_again(unraisable: Any) -> None:
    """Python drops an exception that is raised in `__del__` or a callback; a signal's comes again."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt) or not STATE.signal:
        sys.__unraisablehook__(unraisable)
        return
    number = STATE.signal
    STATE.signal = 0
    threading.Timer(AGAIN, _thread.interrupt_main, (number,)).start()


def is_command() -> bool:
    """Is this program one of this repository's, and not a test, a notebook or another that imports it?"""
    if sys.flags.interactive or threading.current_thread() is not threading.main_thread():
        return False
    if not sys.argv or sys.argv[0] in ("", "-c"):
        return False
    if sys.argv[0] == "-m":  # the package of a module that is about to run: only they import this one
        return True
    folder = Path(sys.argv[0]).resolve().parent
    return folder in (ROOT, ROOT / "data", ROOT / "benchmarks")


if is_command():
    install()
