"""Bad data files, each of which must end in one line and exit code 2: for whoever changes reading.

`bad_files` writes the files that `--data` must refuse; tests/test_bad_files.py reads them with every reader.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data import collect, flatten
from envs import Rules

Arrays = dict[str, np.ndarray]
SMALL = Rules(height=4, width=4, blocks=1, hares=3, horizon=10)


def good_trajectories() -> Arrays:
    """A small trajectory file with all optional keys."""
    return collect.collect(collect.Args(samples=500, seed=2, unmasked=0.2, rules=SMALL)).arrays()


def good_rows() -> Arrays:
    """A small flat file with all optional keys."""
    return flatten.flatten(flatten.Args(out="", rows=40))


def good_snowdrift() -> Arrays:
    """A small trajectory file of the snowdrift."""
    args = collect.Args(samples=800, env_id="Snowdrift-v0", env_args=("height=3", "width=4", "horizon=9"))
    return collect.collect(args).arrays()


def npy(array: np.ndarray) -> bytes:
    """An entry of an .npz."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array))
    return buffer.getvalue()


def header(shape: object, descr: object = "|u1", data: bytes = b"") -> bytes:
    """An entry whose header says whatever it says."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def write_entries(path: Path, arrays: Arrays, method: int = zipfile.ZIP_STORED, **entries: bytes) -> None:
    """An archive of these arrays, with these bytes in the place of some."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, array in arrays.items():
            archive.writestr(f"{key}.npy", entries.get(key) or npy(array))


def bad_files(folder: Path, seed: int = 1) -> list[tuple[str, Path]]:
    """Files that every reader must refuse: each with its name. `seed` draws the cuts and the flipped bytes."""
    trajectories, rows = good_trajectories(), good_rows()
    made = special_files(folder)
    made += damaged_archives(folder, "trajectories", trajectories, seed)
    made += damaged_archives(folder, "rows", rows, seed)
    snowdrift = good_snowdrift()
    for kind, arrays, cases in (
        ("snowdrift", snowdrift, bad_snowdrift(snowdrift)),
        ("trajectories", trajectories, bad_trajectories(trajectories)),
        ("rows", rows, bad_rows(rows)),
    ):
        for name, changes in cases:
            path = folder / f"{kind} {len(made)}.npz"
            changed = {key: array for key, array in (arrays | changes).items() if array is not None}
            entries = {key: array for key, array in changed.items() if isinstance(array, bytes)}
            write_entries(path, changed, **entries)
            made.append((f"{kind}: {name}", path))
    return made


# ---- what is no archive, or a damaged one


def special_files(folder: Path) -> list[tuple[str, Path]]:
    """Paths at which no regular file lies, and files that are no archive."""
    (folder / "folder.npz").mkdir()
    paths = {
        "missing": folder / "missing.npz",
        "below a file": folder / "special 7.npz" / "x.npz",
        "a folder": folder / "folder.npz",
        "a NUL in the path": folder / "nul\0.npz",
        "a long name": folder / ("x" * 300),
        "of Chinese, missing": folder / "数据.npz",
        "of no Unicode, missing": folder / "\udcff.npz",
    }
    contents = {
        "empty": b"",
        "one byte": b"P",
        "text": b"obs,actions\n1,2\n",
        "zip's magic alone": b"PK\x03\x04",
        "no zip after the magic": b"PK" + bytes(1000),
        "a zip of nothing": b"PK\x05\x06" + bytes(18),
        "an .npy": npy(np.zeros(3)),
        "a pickle": b"\x80\x04N.",
    }
    for name, content in contents.items():
        paths[name] = folder / f"special {len(paths)}.npz"
        paths[name].write_bytes(content)
    if os.name == "posix":
        paths["a device"] = Path("/dev/zero")
        paths["a named pipe"] = folder / "pipe.npz"
        os.mkfifo(paths["a named pipe"])
        paths["a link to itself"] = folder / "loop.npz"
        paths["a link to itself"].symlink_to(folder / "loop.npz")
        paths["a link to nothing"] = folder / "nothing.npz"
        paths["a link to nothing"].symlink_to(folder / "missing.npz")
    return list(paths.items())


def damaged_archives(folder: Path, kind: str, arrays: Arrays, seed: int) -> list[tuple[str, Path]]:
    """Cut short, with flipped bytes, and with entries that are not what they say."""
    made = []

    def add(name: str) -> Path:
        path = folder / f"{kind} damaged {len(made)}.npz"
        made.append((f"{kind}: {name}", path))
        return path

    write_entries(add("twice `actions`"), arrays)
    with zipfile.ZipFile(made[-1][1], "a") as archive:
        archive.writestr("actions", npy(arrays["actions"]))
    write_entries(folder / "whole.npz", arrays)
    whole = (folder / "whole.npz").read_bytes()
    rng = np.random.default_rng(seed)
    for cut in (5, 40, len(whole) // 3, len(whole) - 200, len(whole) - 23, *rng.integers(60, len(whole), 5)):
        add(f"cut at {cut}").write_bytes(whole[:cut])
    for at in data_bytes(folder / "whole.npz", rng, 8):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        add(f"a flipped bit in byte {at}").write_bytes(damaged)
    add("garbage in the directory").write_bytes(whole[:-300] + bytes(300))
    write_entries(add("zip method bzip2"), arrays, zipfile.ZIP_BZIP2)
    first, actions = next(iter(arrays)), npy(arrays["actions"])
    for name, entry in {
        "a shape of 10**12 rows": header((10**12, 4)),
        "a shape of 10**30 rows": header((10**30,)),
        "a negative shape": header((-3, 4)),
        "a shape of 100 dimensions": header((1,) * 100, data=b"1"),
        "a shape of text": header("ab"),
        "a shape of fractions": header((1.5, 2)),
        "a dtype of text": header((3,), "xyz", b"123"),
        "a dtype that runs code": header((3,), "__import__('os')", b"123"),
        "no array": b"3.5, 1.0",
        "an array cut short": actions[:-5],
        "an array and more": actions + b"123",
        "an unknown .npy version": actions[:6] + b"\x09\x00" + actions[8:],
        "a header of brackets": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000,
        "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        "an empty entry": b" ",
    }.items():
        write_entries(add(f"actions: {name}"), arrays, actions=entry)
    boards = header((20, 200, 200, 7), data=bytes(20 * 200 * 200 * 7))
    write_entries(add("boards of 200x200"), arrays, zipfile.ZIP_DEFLATED, **{first: boards})
    lying_size(folder / "whole.npz", add("a directory that says 2**62 bytes"))
    return made


def data_bytes(path: Path, rng: np.random.Generator, count: int) -> Iterator[int]:
    """Positions within the arrays of an archive that is not compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size > 300]
    for entry in rng.choice(np.array(entries), count):
        start = entry.header_offset + 30 + len(entry.filename)
        yield start + int(rng.integers(0, entry.file_size))


def lying_size(whole: Path, path: Path) -> None:
    """`actions` says 2**62 bytes, in the directory and in its header alike."""
    content = bytearray(whole.read_bytes())
    with zipfile.ZipFile(whole) as archive:
        entry = archive.getinfo("actions.npy")
    at = content.rindex(b"actions.npy") - 46  # its entry in the directory
    content[at + 20 : at + 28] = b"\xff\xff\xff\xff" * 2  # compressed and whole size
    start = entry.header_offset + 30 + len(entry.filename)
    text = header(((2**32 - 1 - 128) // 4, 4))
    content[start : start + len(text)] = text
    path.write_bytes(content)


# ---- arrays that are whole, and wrong


def changed(array: np.ndarray, at: object, value: object, dtype: object = None) -> np.ndarray:
    """A copy with one value changed."""
    array = array.astype(dtype or array.dtype)
    array[at] = value
    return array


def wrong_kinds(key: str, array: np.ndarray) -> Iterator[tuple[str, dict]]:
    """What no key may be."""
    yield f"no {key}", {key: None}
    yield f"{key} of objects", {key: np.full(array.shape, None, object)}
    yield f"{key} of text", {key: np.full(array.shape, "a")}
    yield f"{key} structured", {key: np.zeros(array.shape, [("a", "i4"), ("b", "f4")])}
    yield f"{key} complex", {key: array.astype(complex)}
    yield f"{key} of dates", {key: np.zeros(array.shape, "M8[s]")}
    yield f"{key} of nothing", {key: array[:0]}
    yield f"{key} of no dimension", {key: np.zeros((), array.dtype)}
    yield f"{key} with one dimension more", {key: array[None]}
    yield f"{key} one shorter", {key: array[:-1]}
    yield f"{key} of no width", {key: np.zeros((*array.shape, 0), array.dtype)}


def bad_trajectories(arrays: Arrays) -> Iterator[tuple[str, dict]]:
    """Changes of a good trajectory file, each with its name."""
    keys = [key for key in arrays if key != "metadata"]
    for key in keys:
        for name, change in wrong_kinds(key, arrays[key]):
            if change[key] is not None or key not in ("attempted", "policy_probs"):
                yield name, change
    for key in ("rewards", "episode_lengths", "policy_probs"):
        yield f"{key} of other endianness", {key: arrays[key].astype(arrays[key].dtype.newbyteorder(">"))}
    for key in ("rewards", "policy_probs"):
        first = (0,) * arrays[key].ndim
        for value in (np.nan, np.inf, -np.inf):
            yield f"{key} {value}", {key: changed(arrays[key], first, value)}
    for key, value in (("actions", 7), ("actions", -1), ("attempted", 100), ("strategies", 2), ("obs", 2)):
        yield f"{key} of {value}", {key: changed(arrays[key], (0,) * arrays[key].ndim, value)}
    for value in (0, -1, 2**31 - 1, -(2**31)):
        yield f"an episode of {value}", {"episode_lengths": changed(arrays["episode_lengths"], 0, value)}
    yield "nobody active", {"active": np.zeros_like(arrays["active"])}
    yield "empty boards", {"obs": np.zeros_like(arrays["obs"])}
    yield "probabilities below 0", {"policy_probs": arrays["policy_probs"] * -1}
    yield "no hunters", {key: arrays[key][:, :0] for key in keys if arrays[key].ndim > 1}
    yield "boards of no cells", {"obs": arrays["obs"][..., :0]}
    yield "boards of 4x3", {"obs": arrays["obs"][..., :3]}
    text = str(arrays["metadata"])
    for name, metadata in bad_metadata(json.loads(text)):
        yield f"metadata: {name}", {"metadata": metadata}
    yield "metadata as bytes", {"metadata": np.array(text.encode())}
    yield "metadata of no Unicode", {"metadata": npy(np.array(text)).replace(b"N\0\0\0S\0\0\0", b"\xff" * 8)}
    yield "metadata of two", {"metadata": np.array([text, text])}
    yield "no metadata", {"metadata": None}


def bad_metadata(good: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Texts that are not the metadata of this file."""
    texts = {
        "brackets": "[" * 200_000,
        "braces": '{"a":' * 200_000,
        "a number of 5,000 digits": '{"seed": %s}' % ("1" * 5000),
        "empty": "",
        "a list": "[1, 2]",
        "null": "null",
        "cut short": json.dumps(good)[:-1],
        "a lone surrogate": json.dumps(good).replace("NS", "\\ud800"),
    }
    for name, text in texts.items():
        yield name, np.array(text)
    changes = {
        "no strategies": dict(strategies=None),
        "strategies of numbers": dict(strategies=[1, 2]),
        "strategies as text": dict(strategies="ab"),
        "strategies of two lines": dict(strategies=["a\nb", "c"]),
        "one strategy": dict(strategies=["NS"], priors=[1.0]),
        "100,000 strategies": dict(strategies=["x"] * 100_000, priors=[1e-5] * 100_000),
        "priors of 0.4": dict(priors=[0.4, 0.4]),
        "priors of text": dict(priors=["a", "b"]),
        "priors below 0": dict(priors=[-1.0, 2.0]),
        "priors of NaN": dict(priors=[float("nan"), 1.0]),
        "priors without end": dict(priors=[float("inf"), -float("inf")]),
        "priors of 400 digits": dict(priors=[10**400, 0.5]),
        "priors nested": dict(priors=[[0.5], [0.5]]),
        "rules as a list": dict(rules=[1]),
        "rules as text": dict(rules="default"),
        "rules nested": dict(rules={"more": {"a": 1}}),
    }
    wrong = {
        "hunters": (3, "x", None, 4.5, -1, 10**30),
        "height": (8, 0, "x", float("nan")),
        "stags": (0, -1, "x", [1]),
        "blocks": (0, 15, 10**12),
        "horizon": (3, 0, "x", 10**30, float("inf")),
        "prey_moves": (2.0, -0.1, "x", float("nan"), None),
        "stag_reward": (float("inf"), "x", None, 10**400),
        "end_after_first_hunt": (-1, "x", 1.5),
    }
    for key, values in wrong.items():
        for value in values:
            changes[f"rules: {key} {str(value)[:9]}"] = dict(rules=good["rules"] | {key: value})
    for name, change in changes.items():
        yield name, np.array(json.dumps(good | change))


def bad_snowdrift(arrays: Arrays) -> Iterator[tuple[str, dict]]:
    """Changes of a good file of another game, each with its name."""
    metadata = json.loads(str(arrays["metadata"]))
    game = metadata["game"]
    games = {
        "a list": [1, 2],
        "a name": game["id"],
        "null": None,
        "empty": {},
        "another plane": game | {"planes": [*game["planes"][:3], "HEAPS"]},
        "another kind of prey": game | {"prey": ["HEAPS"]},
        "an action more": game | {"actions": [*game["actions"], "JUMP"]},
        "a take more": game | {"takes": [*game["takes"], "JUMP"]},
        "a goal that is no strategy": game | {"goals": {"remove": "NS"}},
        "goals as a list": game | {"goals": ["ND", "FIX"]},
        "another strategy": game | {"strategies": game["strategies"] | {"MORE": game["strategies"]["ND"]}},
        "agents that leave": game | {"leaves": True},
    }
    games |= {
        f"no {part}": {key: game[key] for key in game if key != part} for part in ("id", "takes", "goals")
    }
    for name, value in games.items():
        yield f"game: {name}", {"metadata": np.array(json.dumps(metadata | {"game": value}))}
    without = {key: value for key, value in metadata.items() if key != "game"}
    yield "no game", {"metadata": np.array(json.dumps(without))}
    for rule, value in (("hares", 3), ("drifts", 1), ("cost", "x"), ("agents", 3)):
        changes = {"rules": metadata["rules"] | {rule: value}}
        yield f"rules: {rule} {value}", {"metadata": np.array(json.dumps(metadata | changes))}
    yield "actions of 6", {"actions": changed(arrays["actions"], (0, 0), 6)}
    obs = arrays["obs"]
    yield "five planes", {"obs": np.concatenate([obs, 0 * obs[:, :, 3:]], 2)}
    drifts = obs[1, 0, 3].ravel()
    moved = obs.copy()
    moved[1].reshape(4, 4, -1)[:, 3, drifts.argmax()] = 0
    moved[1].reshape(4, 4, -1)[:, 3, (drifts + obs[1, :, 0].sum(0).ravel()).argmin()] = 1
    yield "a drift that moves", {"obs": moved}


def bad_rows(arrays: Arrays) -> Iterator[tuple[str, dict]]:
    """Changes of a good flat file, each with its name; what `data.load_samples` does not read is not among them."""
    for key in ("obs", "actions", "times", "observer"):
        for name, change in wrong_kinds(key, arrays[key]):
            if change[key] is not None or key in ("obs", "actions"):
                yield name, change
    obs = arrays["obs"].astype(np.float32)
    for value in (np.nan, np.inf, 0.5, -1.0, 2.0):
        yield f"obs {value}", {"obs": changed(obs, (3, 1, 1, 0), value)}
    for value in (7, -1, 2**62):
        yield f"actions of {value}", {"actions": changed(arrays["actions"], (0, 0), value, np.int64)}
    for value in (-1, 10**12, 2**63):
        dtype = np.uint64 if value > 0 else np.int64
        yield f"times of {value}", {"times": changed(arrays["times"], 0, value, dtype)}
    for value in (4, -1, 2**63):
        dtype = np.uint64 if value > 0 else np.int64
        yield f"observer of {value}", {"observer": changed(arrays["observer"], 0, value, dtype)}
    yield "actions as fractions", {"actions": arrays["actions"] + 0.5}
    yield "times as fractions", {"times": arrays["times"] + 0.5}
    yield "empty boards", {"obs": np.zeros_like(arrays["obs"])}
    yield "full boards", {"obs": np.ones_like(arrays["obs"])}
    yield "three channels", {"obs": arrays["obs"][..., :3]}
    yield "boards of 4x3", {"obs": arrays["obs"][:, :, :3]}
    yield "nine rows", {key: array[:9] for key, array in arrays.items()}


def bad_worlds(arrays: Arrays) -> Iterator[tuple[str, dict]]:
    """More changes of a good flat file: what only `data.load_transitions` reads."""
    for key in ("rewards", "next_obs"):
        yield from list(wrong_kinds(key, arrays[key]))[1:]
    for value in (np.nan, np.inf, 1e39):
        yield f"rewards {value}", {"rewards": changed(arrays["rewards"], (0, 0), value, np.float64)}
    yield "next_obs of other boards", {"next_obs": arrays["next_obs"][:, :3]}
    yield "next_obs of 2", {"next_obs": arrays["next_obs"] * 2}
