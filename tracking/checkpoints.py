"""What a checkpoint holds: written with a digest of its bytes, read with every field checked.

A script hands over a `Schema`: what it alone knows. Whatever is wrong with a file is one line: the file, the field, what
was expected, what was found, and what is left of the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch

from tracking.command_line import NAME, UsageError
from tracking.files import write_bytes

DIGEST = b"sha256:"  # then 64 hexadecimal digits
DIGEST_SIZE = len(DIGEST) + 64
ARCHIVE_END = b"PK\x05\x06"
"""begins a zip file's last record: 22 bytes, the last two the length of the comment after it"""
MAY_BE_ZERO = ("info_size", "goals")  # sizes of a network that count what may be missing
MAX_CELLS = 2**22  # of a board: networks make tables of its cells
CUDA_STATE_SIZE = 16  # bytes: seed and offset of Philox


class Expected(NamedTuple):
    """What a field must be."""

    text: str
    fits: Callable[[Any, dict], bool]  # of the value and the checkpoint


@dataclass(frozen=True)
class Schema:
    """What a script alone knows of its checkpoints."""

    kind: str
    """the script, without `.py`"""
    args_type: type
    check_args: Callable[[Any], None]
    """raises UsageError for settings out of their range"""
    make_model: Callable[[dict, Any], Any]
    """the network of `sizes` and settings; its own `sizes` must then be those of the checkpoint"""
    make_optimizer: Callable[[torch.nn.Module, Any], torch.optim.Optimizer]
    counter: Literal["epoch", "update"]
    length: Callable[[Any], int]
    """epochs or updates of a whole run with these settings"""
    worst: float
    """`best` before the first evaluation: inf or -inf"""
    scores: Callable[[dict], list[float]]
    """of the checkpoint's evaluations so far: `best` is one of them"""
    judge: str
    """the command that judges a run's best.pt, without the folder"""
    fields: dict[str, Expected]
    """what it holds besides the fields that all have"""
    former_names: dict[str, str] = field(default_factory=dict)
    """of fields, sizes and weights in older checkpoints; "": nothing of today"""
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    """what older checkpoints lack, and its value there: of the checkpoint itself (`""`) and `args`"""
    added_sizes: Callable[[dict], dict[str, Any]] = lambda saved: {}
    """of a checkpoint as it was saved: sizes that one of its age and network may lack, and their values"""


class Mismatch(ValueError):
    """A field that is not as expected."""

    def __init__(self, name: str, expected: str, found: str):
        super().__init__(f"{name}: expected {expected}, found {found}")


# ---- bytes


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a dictionary of tensors and plain values, as `torch.save` does, with the SHA-256 of all bytes at the end.

    It is the comment of the zip archive, which `torch.load` passes over. Serialised in memory first: a full disk is then
    an OSError that names the file, and keeps the checkpoint before.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getvalue()[:-2] + DIGEST_SIZE.to_bytes(2, "little")
    write_bytes(path, content + digest(content))


def digest(content: bytes | memoryview) -> bytes:
    return DIGEST + hashlib.sha256(content).hexdigest().encode()


def is_whole(content: bytes) -> bool:
    """Is it as it was written? Older checkpoints have no digest; of them the archive's check sums are compared."""
    if content[-DIGEST_SIZE:] == digest(memoryview(content)[:-DIGEST_SIZE]):
        return True
    if content[-22:-18] != ARCHIVE_END or content[-2:] != b"\0\0":
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, RuntimeError, OSError, ValueError):
        return False


# ---- reading


def load_checkpoint(
    path: str | Path, schema: Schema, device: str | torch.device = "cpu", weights_suffice: bool = False
) -> dict:
    """Read a checkpoint of the script that `schema` is of.

    Args: weights_suffice: as no training goes on with it.
    Raises: UsageError: there is none, it is damaged or of another script, or a field is not as it must be.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no checkpoint there; name the folder of a run that has saved one")
    with one_line(path, schema):
        saved = read(path, schema, device)
    if saved["optimizer"] is None and not weights_suffice:
        raise UsageError(f"{path}: holds weights alone, no training to go on with; train again")
    return saved


@contextlib.contextmanager
def one_line(path: Path, schema: Schema) -> Iterator[None]:
    """Raises: UsageError: in place of a ValueError inside, with the file and what is left of the run."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{path}: {error}; {what_is_left(path, schema)}") from None


def what_is_left(path: Path, schema: Schema) -> str:
    """What to do where `path`, a run's last.pt or best.pt, cannot be used: the other one may be whole."""
    other = path.with_name("best.pt" if path.name == "last.pt" else "last.pt")
    try:
        saved = read(other, schema, "cpu")
    except (OSError, ValueError):
        return "train again"
    count = saved[schema.counter]
    if count == 0:
        return "train again"
    length = schema.length(schema.args_type(**saved["args"]))
    whole = f"{other.name} of {schema.counter} {count} of {length} is whole"
    if other.name == "best.pt":
        return f"{whole}: `{schema.judge} {path.parent.as_posix()}` judges it, or train again"
    return f"{whole}: copied to {path.name} it can be used, or train again"


def read(path: Path, schema: Schema, device: str | torch.device) -> dict:
    """Raises: ValueError: what is wrong with the file, without its name. UsageError: it is of another script."""
    content = path.read_bytes()
    damaged = "the checkpoint is cut short or damaged"
    if not is_whole(content):
        raise ValueError(damaged)
    try:
        # From memory: there an OSError is torch's word for a damaged archive, not the disk's for an unreadable file.
        saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # bytes that no `torch.save` wrote: the reader may raise anything
        raise ValueError(f"{damaged} ({first_sentence(error)})") from None
    kind = saved.get("kind") if isinstance(saved, dict) else None
    if kind != schema.kind:
        found = kind if isinstance(kind, str) else "another program"
        raise UsageError(f"{path}: expected a checkpoint of {schema.kind}.py, found one of {found[:80]}")
    rename(saved, schema.former_names)
    add_missing(saved, schema)
    try:
        check(saved, schema)
    except Mismatch as error:
        raise ValueError(f"{error}: edited, or made by another version of {kind}.py") from None
    return saved


def first_sentence(error: Exception) -> str:
    """Its first sentence."""
    return str(error).splitlines()[0].split(". ")[0][:120] if str(error) else type(error).__name__


def rename(saved: dict, former_names: dict[str, str]) -> None:
    """Give fields, sizes and weights of an older checkpoint the names that they have today; an empty name: it has none."""
    for part in (saved, saved.get("sizes"), saved.get("model")):
        for old, new in former_names.items():
            if isinstance(part, dict) and old in part:
                value = part.pop(old)
                if new:
                    part[new] = value


def add_missing(saved: dict, schema: Schema) -> None:
    """Give an older checkpoint the fields, sizes and settings that it lacks."""
    args, sizes = saved.get("args"), saved.get("sizes")
    if isinstance(args, dict) and isinstance(sizes, dict):
        saved["sizes"] = schema.added_sizes(saved) | sizes
    for name, values in schema.added.items():
        part = saved.get(name) if name else saved
        if isinstance(part, dict):
            part |= {key: value for key, value in values.items() if key not in part}


# ---- what each field must be


def check(saved: dict, schema: Schema) -> None:
    """Raises: Mismatch: a field is not as it must be."""
    tables = ("args", "sizes", "model", "optimizer", "rng", "history")
    check_keys("", saved, ("kind", *COMMON, *tables, schema.counter, "best", *schema.fields))
    check_fields(saved, COMMON)
    args = check_args(saved["args"], schema)
    count = saved[schema.counter]
    length = schema.length(args)
    if type(count) is not int or not 0 <= count <= length:
        raise Mismatch(schema.counter, f"a whole number from 0 to {length}", text_of(count))
    check_history(saved["history"], schema.counter, count)
    is_weights_alone = saved["optimizer"] is None and saved["rng"] is None
    if not is_weights_alone:
        check_rng(saved["rng"])
    model = check_model(saved["sizes"], saved["model"], args, schema)
    if not is_weights_alone:
        check_optimizer(saved["optimizer"], model, schema.make_optimizer(model, args))
        if count and not saved["optimizer"]["state"]:
            raise Mismatch("optimizer.state", "moments of parameters", "none")
    check_fields(saved, schema.fields)
    check_best(saved, schema)


def check_fields(saved: dict, fields: dict[str, Expected]) -> None:
    for name, expected in fields.items():
        value = saved[name]
        is_odd = isinstance(value, torch.Tensor) and not is_plain_tensor(value)
        if is_odd or not expected.fits(value, saved):
            raise Mismatch(name, expected.text, text_of(value))


def check_args(found: Any, schema: Schema) -> Any:
    """Returns: the settings."""
    hints = get_type_hints(schema.args_type)
    check_keys("args", found, hints)
    check_types("args", found, hints)
    args = schema.args_type(**found)
    try:
        schema.check_args(args)
    except UsageError as error:
        raise ValueError(f"args: {error}") from None
    return args


def check_types(name: str, found: dict, hints: dict[str, Any]) -> None:
    for key, hint in hints.items():
        if not is_of_type(found[key], hint):
            choices = " or ".join(map(repr, get_args(hint)))
            if get_origin(hint) is not Literal:
                choices = getattr(hint, "__name__", str(hint))
            raise Mismatch(f"{name}.{key}", choices, text_of(found[key]))


def is_of_type(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(is_of_type(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return type(value) is str and value in get_args(hint)
    if hint is float:
        return is_number(value)
    if hint is int:
        return type(value) is int and is_number(value)
    return type(value) is (get_origin(hint) or hint)


def check_model(sizes: Any, weights: Any, args: Any, schema: Schema) -> torch.nn.Module:
    """Returns: the network on the device `meta`, where it costs nothing, whatever its sizes."""
    check_sizes(sizes)
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # of layers without weights
            model = schema.make_model(sizes, args)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise Mismatch("sizes", "those of a network", f"{text_of(sizes)} ({first_sentence(error)})") from None
    hints = get_type_hints(type(model).__init__)
    check_types("sizes", sizes, {name: hints[name] for name in sizes.keys() & hints.keys()})
    check_like("sizes", sizes, model.sizes)
    check_like("model", weights, dict(model.state_dict()))
    return model


def check_sizes(sizes: Any) -> None:
    if not isinstance(sizes, dict):
        raise Mismatch("sizes", "a dict", text_of(sizes))
    for name, value in sizes.items():
        least = 0 if name in MAY_BE_ZERO else 1
        if type(value) is int and not least <= value < 2**31:
            raise Mismatch(f"sizes.{name}", f"a whole number from {least}, below 2**31", text_of(value))
        numbers = value if isinstance(value, (list, tuple)) and value else [value]
        if not isinstance(value, str) and not all(map(is_finite, numbers)) and not isinstance(value, bool):
            raise Mismatch(f"sizes.{name}", "a finite number, a list of them, or a name", text_of(value))
    height, width = sizes.get("height", 1), sizes.get("width", 1)
    if is_finite(height) and is_finite(width) and height * width > MAX_CELLS:
        raise Mismatch("sizes.height, sizes.width", f"at most {MAX_CELLS} cells", f"{height}x{width}")


def check_optimizer(found: Any, model: torch.nn.Module, fresh: torch.optim.Optimizer) -> None:
    """The groups of a fresh one; moments of some of its parameters: one without a gradient has none."""
    check_keys("optimizer", found, ("state", "param_groups"))
    groups, expected = found["param_groups"], fresh.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(expected):
        raise Mismatch("optimizer.param_groups", f"a list of {len(expected)}", text_of(groups))
    for index, (group, like) in enumerate(zip(groups, expected, strict=True)):
        check_group(f"optimizer.param_groups[{index}]", group, like)
    if not isinstance(found["state"], dict):
        raise Mismatch("optimizer.state", "a dict", text_of(found["state"]))
    parameters = dict(enumerate(model.parameters()))
    for index, moments in found["state"].items():
        name = f"optimizer.state[{text_of(index)}]"
        if type(index) is not int or index not in parameters:
            raise Mismatch(name, f"parameters 0 to {len(parameters) - 1}", "another")
        parameter = parameters[index].detach()
        check_like(name, moments, dict(step=torch.zeros(()), exp_avg=parameter, exp_avg_sq=parameter))
        if moments["step"] < 0 or (moments["exp_avg_sq"] < 0).any():
            raise Mismatch(name, "steps and squares of at least 0", "negative ones")


def check_group(name: str, found: Any, expected: dict) -> None:
    """Another version of torch may have other options: those that both know must be equal, but how a step is computed."""
    if not isinstance(found, dict):
        raise Mismatch(name, "a dict", text_of(found))
    known = {key: value for key, value in expected.items() if key in found or key in ("lr", "params")}
    check_keys(name, {key: value for key, value in found.items() if key in expected}, known)
    learning_rate = found["lr"]
    if not is_finite(learning_rate) or learning_rate < 0:
        raise Mismatch(f"{name}.lr", "a finite number of at least 0", text_of(learning_rate))
    for key in known.keys() - {"lr"}:
        if key in ("foreach", "fused") and (found[key] is None or type(found[key]) is bool):
            continue
        check_like(f"{name}.{key}", found[key], expected[key])


def check_rng(found: Any) -> None:
    """As `rng_state` gives."""
    on_gpu = isinstance(found, dict) and "cuda" in found
    like = {"cpu": torch.get_rng_state()}
    if on_gpu:
        like["cuda"] = torch.zeros(CUDA_STATE_SIZE, dtype=torch.uint8)
    check_like("rng", found, like)
    try:
        torch.Generator().set_state(found["cpu"].cpu())
    except RuntimeError:
        raise Mismatch("rng.cpu", "a state of torch's generator", "other bytes") from None


def check_history(rows: Any, counter: str, count: int) -> None:
    """A row for each epoch or update, which are counted from 0 and 1. Rows of epochs have the same columns."""
    numbers = [row.get(counter) for row in rows] if are_rows(rows) else None
    if numbers != [index + (counter == "update") for index in range(count)]:
        raise Mismatch("history", f"a row of figures for each {counter}, {count} in all", text_of(rows))
    if counter == "epoch" and any(row.keys() != rows[0].keys() for row in rows):
        raise Mismatch("history", "the same figures in each row", "others")


def check_best(saved: dict, schema: Schema) -> None:
    try:
        scores = [score for score in schema.scores(saved) if math.isfinite(score)]
    except (KeyError, TypeError) as error:
        raise Mismatch("history", "the figures of each evaluation", f"none of {error}") from None
    best = saved["best"]
    if not is_number(best) or best not in (scores or [schema.worst]):
        raise Mismatch("best", "one of the figures of its evaluations", text_of(best))


# ---- comparing


def check_keys(name: str, found: Any, expected: Iterable[str]) -> None:
    """Raises: Mismatch: no dict, or not with exactly these keys."""
    expected = list(expected)
    if not isinstance(found, dict):
        raise Mismatch(name, "a dict", text_of(found))
    prefix = f"{name}." if name else ""
    for key in expected:
        if key not in found:
            raise Mismatch(f"{prefix}{key}", "a value", "none")
    for key in found:
        if key not in expected:
            raise Mismatch(f"{prefix}{key}", "no such field", text_of(found[key]))


def check_like(name: str, found: Any, expected: Any) -> None:
    """Compare dictionaries, lists and tuples part by part; other values are equal, but tensors need not be.

    Tensors: of the same shape and dtype, finite.
    Raises: Mismatch: they differ.
    """
    if isinstance(expected, torch.Tensor):
        check_tensor(name, found, expected)
    elif isinstance(expected, dict):
        check_keys(name, found, expected)
        for key, value in expected.items():
            check_like(f"{name}.{key}", found[key], value)
    elif type(found) is not type(expected):
        raise Mismatch(name, text_of(expected), text_of(found))
    elif isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            raise Mismatch(name, text_of(expected), text_of(found))
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            check_like(f"{name}[{index}]", one, other)
    elif found != expected:
        raise Mismatch(name, text_of(expected), text_of(found))


def check_tensor(name: str, found: Any, expected: torch.Tensor) -> None:
    if not is_plain_tensor(found) or (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise Mismatch(name, text_of(expected), text_of(found))
    if found.is_floating_point() and not found.isfinite().all():
        raise Mismatch(name, "finite numbers", f"{int((~found.isfinite()).sum())} that are not")


def is_plain_tensor(value: Any) -> bool:
    """Not a sparse one, nor one without numbers."""
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta


def is_number(value: Any) -> bool:
    """Of 64 bits."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def are_rows(value: Any) -> bool:
    """Figures by name."""
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(row, dict) and all(map(is_figure, row.items())) for row in rows)


def is_figure(item: tuple[Any, Any]) -> bool:
    name, value = item
    return isinstance(name, str) and (value is None or is_number(value))


def text_of(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict):
        names = ", ".join(str(key)[:20] for key in list(value)[:8])
        return f"a dict with {names or 'nothing'}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    if type(value) is int and not is_number(value):
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---- fields that scripts choose from


def is_whole_number(value: Any, saved: dict) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_text_of(pattern: str) -> Callable[[Any, dict], bool]:
    return lambda value, saved: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def is_duration(value: Any, saved: dict) -> bool:
    return is_finite(value) and value >= 0


def is_optimizer_step(value: Any, saved: dict) -> bool:
    """Parameters that had no gradient at first have fewer."""
    if saved["optimizer"] is None:
        return is_whole_number(value, saved)
    steps = [int(moments["step"]) for moments in saved["optimizer"]["state"].values()]
    return type(value) is int and value == max(steps, default=0)


def are_rules(value: Any, saved: dict) -> bool:
    return value is None or (
        isinstance(value, dict) and bool(value) and all(isinstance(k, str) for k in value)
    )


def are_names(value: Any, saved: dict) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def are_states(value: Any, saved: dict) -> bool:
    """`load_states` looks into them."""
    return isinstance(value, list) and bool(value)


def end_with_this_update(value: Any, saved: dict) -> bool:
    """A run is saved after an evaluation, and once before its first update."""
    updates = [saved["update"]] if saved["update"] else []
    return are_rows(value) and [row.get("update") for row in value[-1:]] == updates


def counts_of(classes: int) -> Expected:
    def fits(value: Any, saved: dict) -> bool:
        numbers = value if isinstance(value, list) else []
        return len(numbers) == classes and all(is_whole_number(number, saved) for number in numbers)

    return Expected(f"{classes} whole numbers of at least 0", fits)


WHOLE_NUMBER = Expected("a whole number of at least 0", is_whole_number)
OPTIMIZER_STEP = Expected("as many steps as the optimizer's", is_optimizer_step)
FINGERPRINT = Expected("64 hexadecimal digits", is_text_of("[0-9a-f]{64}"))
RULES = Expected("a dict of rules, or None", are_rules)
NAMES = Expected("a list of names", are_names)
EVALUATIONS = Expected("rows of figures, the last of this update", end_with_this_update)
STATES = Expected("a list of states, at least one", are_states)
COMMON = {
    "run": Expected("a name of letters, digits, '_', '-' and '.'", is_text_of(NAME)),
    "seconds": Expected("a finite number of at least 0", is_duration),
    "train_seconds": Expected("a finite number of at least 0", is_duration),
}


# ---- what a run has learnt, and its random state


def learnt(model: Any, optimizer: torch.optim.Optimizer) -> dict:
    """What a checkpoint holds of both."""
    weights = model.state_dict()
    return dict(sizes=model.sizes, model=weights, optimizer=optimizer.state_dict(), rng=rng_state())


def weights_alone(checkpoint: dict) -> dict:
    """A checkpoint to use, not to go on with: without the optimizer's moments and the random state."""
    return checkpoint | dict(optimizer=None, rng=None)


def restore(path: Path, saved: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Go on from what `learnt` gave. Raises: UsageError: the weights are another network's."""
    load_weights(model, saved["model"], path)
    optimizer.load_state_dict(saved["optimizer"])
    set_rng_state(saved["rng"])


def load_model(
    path: str | Path, schema: Schema, device: str | torch.device = "cpu"
) -> tuple[torch.nn.Module, dict]:
    """The network of a checkpoint, in eval mode, and the checkpoint. Raises: UsageError: as `load_checkpoint`."""
    saved = load_checkpoint(path, schema, device, weights_suffice=True)
    model = schema.make_model(saved["sizes"], schema.args_type(**saved["args"]))
    load_weights(model, saved["model"], path)
    return model.to(device).eval(), saved


def load_weights(model: torch.nn.Module, weights: dict, path: str | Path) -> None:
    """`load_state_dict`. Raises: UsageError: the sizes or names are another network's."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        message = "the checkpoint is of other sizes than the network it is for"
        raise UsageError(f"{path}: {message}: {reason}") from None


def load_states(path: Path, schema: Schema, name: str, states: list[dict], parts: list[Any]) -> None:
    """`load_state_dict` of each of `parts`, whose state so far says what a state must look like.

    Args: path, schema: of the checkpoint. name: its field. Raises: UsageError: a state is not of such a part.
    """
    with one_line(path, schema):
        check_like(name, states, [part.state_dict() for part in parts])
        for index, (part, state) in enumerate(zip(parts, states, strict=True)):
            try:
                part.load_state_dict(state)
            except ValueError as error:
                raise ValueError(f"{name}[{index}]: {error}") from None


def rng_state() -> dict[str, torch.Tensor]:
    """torch's random state, for a checkpoint."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Set what `rng_state` gave."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextlib.contextmanager
def kept_rng() -> Iterator[None]:
    """What is drawn inside changes nothing outside: training does not depend on when it is judged."""
    saved = rng_state()
    yield
    set_rng_state(saved)
