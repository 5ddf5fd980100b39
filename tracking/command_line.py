"""The command line of a script: flags, their ranges, what a resumed run keeps, and a user's mistake as one line."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from typing import Any, NoReturn

import tyro

from tracking import interrupt

MOST_THREADS = 1024  # PyTorch crashes where the system cannot start as many threads as it was asked for
LARGEST = 1e30  # of a setting: an optimizer multiplies it, and float32 ends at 3e38
NAME = r"[\w-][\w.-]*"  # of a run: never a path


class UsageError(ValueError):
    """A setting or a file of a run that cannot be used. The message is one line: what is wrong, where, what to do."""


def run(main: Callable[[], None], *input_errors: type[Exception]) -> None:
    """Call `main`; turn a user's mistake into one line on stderr and exit code 2.

    Ctrl-C, SIGTERM and SIGHUP are one line and 130, 143 and 129.

    Args: input_errors: exceptions whose message is that line, besides UsageError and OSError.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal has no letters for is no error
            stream.reconfigure(errors="backslashreplace")
    code = 0
    try:
        with interrupt.catching():
            main()
    except BaseException as error:
        message, code = ending(error, (UsageError, *input_errors))
        if not code:
            raise
    if code:  # only now, when the frames of `main` are gone and have closed its progress bars
        exit_with(message, code)


def ending(error: BaseException, mistakes: tuple[type[Exception], ...]) -> tuple[str, int]:
    """The line and the exit code that an exception ends the program with; code 0: it is a bug, and stays a traceback."""
    number = interrupt.arrived()
    if number:  # whatever was made of its exception on the way
        return interrupt.message(number), 128 + number
    if isinstance(error, KeyboardInterrupt):
        return interrupt.message(signal.SIGINT), 130
    if isinstance(error, mistakes):
        return str(error), 2
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; what was saved before is kept", 2
    if isinstance(error, MemoryError):
        return str(error) or "out of memory: choose smaller numbers; what was saved before is kept", 2
    return "", 0


def exit_with(message: str, code: int) -> NoReturn:
    """Print an error as one line and leave the program."""
    with contextlib.suppress(OSError):  # the terminal is gone
        if interrupt.speaks():
            print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    drop_output()
    sys.exit(code)


def drop_output() -> None:
    """Give up what stdout cannot take, on a full disk or into a closed pipe: Python would try again and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- flags


def parse_args(args_type: type, description: str, argv: list[str] | None = None) -> Any:
    """`tyro.cli`, with a parsing error as one line instead of a box. `resumed_args` learns which flags were given.

    Raises: UsageError: tyro's message.
    """
    argv = sys.argv[1:] if argv is None else argv
    wants_help = any(word in ("-h", "--help") for word in argv)
    columns = os.environ.get("COLUMNS") or "100"
    errors = io.StringIO()
    try:
        # tyro wraps its box to the terminal: an error must not be wrapped
        with terminal_columns(columns if wants_help else "1000"), contextlib.redirect_stderr(errors):
            args: Any = tyro.cli(args_type, description=description, args=argv)
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise UsageError(f"{box_text(errors.getvalue())}; see --help") from None
    args.given_flags = given_flags(args, argv)
    return args


@contextlib.contextmanager
def terminal_columns(columns: str) -> Iterator[None]:
    """The width of the terminal as tyro sees it."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = columns
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def box_text(box: str) -> str:
    """The first message in tyro's box of errors, without the frame, and the flags that it finds similar below its rule."""
    lines = [line.strip("│╭╰╮╯ \n") for line in box.splitlines()[1:]]
    lines = [line for line in lines if line]
    rules = [i for i, line in enumerate(lines) if not line.strip("─")] or [len(lines)]
    message = " ".join(lines[: rules[0]]).rstrip(".")
    similar = [word[0] for line in lines[rules[0] :] if (word := re.match(r"--[\w-]+", line))]
    return f"{message}; perhaps you meant {' or '.join(similar)}" if similar else message


def given_flags(args: Any, argv: list[str]) -> set[str]:
    """The fields of `args` that stand on the command line, as `--batch-size`, `--batch_size=8` or `--no-cuda`.

    tyro knows no abbreviations and takes no value that begins with `--`: each such word is a flag.
    """
    flags = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
    names = {flag.replace("-", "_") for flag in flags}
    names |= {name.removeprefix("no_") for name in names}
    return names & {field.name for field in fields(args)}


def flag_of(name: str) -> str:
    """The flag of a field."""
    return f"--{name.replace('_', '-')}"


def check_ranges(
    args: Any,
    least: dict[str, int],
    above_zero: tuple[str, ...] = (),
    from_zero: tuple[str, ...] = (),
) -> None:
    """Check settings against their ranges.

    Args:
        least: whole numbers and the smallest that each may be.
        above_zero: numbers above 0, up to LARGEST.
        from_zero: numbers of at least 0, up to LARGEST.

    Raises: UsageError: a setting is out of its range, --exp-name is no name, or flags exclude each other.
    """
    check_least(args, least)
    for name in above_zero:
        value = getattr(args, name)
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{flag_of(name)}: must be a positive number, got {value}")
    for name in from_zero:
        value = getattr(args, name)
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{flag_of(name)}: must be a number of at least 0, got {value}")
    if args.torch_threads > MOST_THREADS:
        raise UsageError(f"--torch-threads: must be at most {MOST_THREADS}, got {args.torch_threads}")
    for name in (*above_zero, *from_zero):
        value = getattr(args, name)
        if value > LARGEST:
            raise UsageError(f"{flag_of(name)}: must be at most {LARGEST:g}, got {value}")
    if not re.fullmatch(NAME, args.exp_name):
        raise UsageError(f"--exp-name: must be letters, digits, '_', '-' and '.', got {args.exp_name!r}")
    if args.resume and getattr(args, "evaluate", ""):
        raise UsageError("--resume and --evaluate exclude each other: choose one")


def check_least(args: Any, least: dict[str, int]) -> None:
    """least: whole numbers and the smallest that each may be. Raises: UsageError: one is smaller, or 2**31 or more."""
    for name, minimum in least.items():
        value = getattr(args, name)
        if value < minimum:
            raise UsageError(f"{flag_of(name)}: must be at least {minimum}, got {value}")
        if value >= 2**31:
            raise UsageError(f"{flag_of(name)}: must be below 2**31, got {value}")


def resumed_args(args: Any, checkpoint: dict, free: tuple[str, ...]) -> Any:
    """The settings of a run to be resumed: those of its checkpoint, and the `free` ones as they were given.

    Args:
        args: from `parse_args`, which knows the flags that were given, also at their default. Of other objects, the
            fields that differ from their default count as given.
        free: fields that may change.

    Raises: UsageError: a flag that is not free was given, and differs from the run's.
    """
    saved = checkpoint["args"]
    current = asdict(args)
    defaults = asdict(type(args)())
    if set(saved) != set(defaults):
        raise UsageError("the run was made by another version of this script: train anew")
    changed = {name for name, value in current.items() if value != defaults[name]}
    given = getattr(args, "given_flags", changed)
    for name in current:
        if name in given and name not in free and current[name] != saved[name]:
            flag = flag_of(name)
            raise UsageError(f"{flag} {current[name]}: the run has {saved[name]}; leave {flag} out")
    kept = {name: current[name] for name in free if name in given}
    return type(args)(**saved | kept)
