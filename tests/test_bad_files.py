"""What a bad file must not do: end in a traceback, be waited on, be believed. The cases stand in benchmarks/bad_files.py."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

import tracking
from benchmarks import bad_files
from data import DataError, card, load, training_file
from data.datasets import load_samples, load_transitions

READERS = (load_samples, load_transitions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad files")


@pytest.fixture(scope="module")
def bad(folder):
    return bad_files.bad_files(folder)


def outcome(reader, path: Path) -> str:
    """The line that refuses the file, or what happened instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be a second line
        try:
            reader(training_file(path))
        except DataError as error:
            line = str(error)
        except Exception as error:
            return f"no DataError: {error!r}"
        else:
            return "accepted"
    is_one = line.startswith(f"{path}: ") and line.isprintable() and len(line) < len(str(path)) * 2 + 500
    return "refused" if is_one or not str(path).isprintable() else f"no line: {line!r}"


def save(path: Path, arrays: dict) -> Path:
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


def test_the_good_files_are_read(folder):
    for arrays in (bad_files.good_trajectories(), bad_files.good_snowdrift(), bad_files.good_rows()):
        for reader in READERS:
            assert len(reader(save(folder / "good.npz", arrays))) > 20


def test_every_bad_file_is_refused_in_one_line(bad):
    readers = {True: READERS, False: (*READERS, load)}
    outcomes = {
        f"{name}, {reader.__name__}": outcome(reader, path)
        for name, path in bad
        for reader in readers[name.startswith("rows")]
    }
    assert {name: found for name, found in outcomes.items() if found != "refused"} == {}
    assert len(bad) >= 300


def test_bad_rewards_and_next_states_of_rows_are_refused(folder):
    rows = bad_files.good_rows()
    for name, changes in bad_files.bad_worlds(rows):
        path = save(folder / "world.npz", rows | changes)
        assert outcome(load_transitions, path) == "refused", name


def test_bad_files_end_a_command_with_one_line_and_exit_code_2(bad, monkeypatch, capsys):
    """Through a command's own flags and its last line of defence; a NUL cannot be given to one."""
    rng = np.random.default_rng(1)
    cases = [case for case in bad if "\0" not in str(case[1])]
    for i in rng.choice(len(cases), 25, replace=False):
        name, path = cases[i]
        monkeypatch.setattr("sys.argv", ["card", "--data", str(path)])

        def main() -> None:
            args = tracking.parse_args(card.Args, "")
            path = training_file(args.data)
            card.block(load(path), path)

        with pytest.raises(SystemExit) as stopped:
            tracking.run(main, DataError)
        printed = capsys.readouterr()
        assert stopped.value.code == 2, name
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and not printed.out, name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_named_pipe_is_not_waited_on(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match=r"expected an \.npz file, found a named pipe"):
        load(tmp_path / "pipe.npz")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "x.npz", bad_files.good_rows())

    def refuse(self, *args):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="that can be read, found: Permission denied"):
        load_samples(path)


@pytest.mark.parametrize("kind", ["trajectories", "rows"])
def test_fortran_order_changes_nothing(kind, tmp_path):
    arrays = {"trajectories": bad_files.good_trajectories, "rows": bad_files.good_rows}[kind]()
    other = {key: np.asfortranarray(array) if array.ndim else array for key, array in arrays.items()}
    assert not other["obs"].flags.c_contiguous
    for reader in READERS:
        found = reader(save(tmp_path / "x.npz", other))
        assert found.fingerprint == reader(save(tmp_path / "x.npz", arrays)).fingerprint


def test_rows_of_another_endianness_are_read(tmp_path):
    rows = bad_files.good_rows()
    other = {key: array.astype(array.dtype.newbyteorder(">")) for key, array in rows.items()}
    for reader in READERS:
        found = reader(save(tmp_path / "x.npz", other))
        assert found.fingerprint == reader(save(tmp_path / "x.npz", rows)).fingerprint


def test_rules_of_another_game_than_envs_are_kept(tmp_path):
    """A recorded game may have rules of its own; names that `envs.Rules` does not have are not judged."""
    arrays = bad_files.good_trajectories()
    metadata = json.loads(str(arrays["metadata"])) | {"rules": {"gravity": 9.81, "map": "swamp"}}
    path = save(tmp_path / "x.npz", arrays | {"metadata": np.array(json.dumps(metadata))})
    assert load(path).metadata["rules"] == {"gravity": 9.81, "map": "swamp"}


# ---- memory


def test_a_file_that_memory_cannot_hold_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = save(tmp_path / "x.npz", bad_files.good_trajectories())
    num_bytes = sum(array.nbytes for array in bad_files.good_trajectories().values())
    monkeypatch.setattr("data.memory.available_bytes", lambda: int(1.4 * num_bytes))
    monkeypatch.setattr("data.npz._read_array", None)  # nothing is read
    with pytest.raises(DataError) as caught:
        load(path)
    needs = "needs 0.0 GB of memory, 0.0 GB are free"
    assert str(caught.value) == f"{path}: {needs}; use a smaller file"


def test_boards_larger_than_the_games_are_refused_by_their_header(tmp_path, monkeypatch):
    monkeypatch.setattr("data.npz._read_array", None)  # nothing is read
    for shape in ((20, 200, 200, 7), (20, 5, 200, 200), (20, 7, 130, 140)):
        arrays = {"obs": np.zeros(shape, np.uint8), "actions": np.zeros(20, np.int8)}
        with pytest.raises(DataError, match=r"obs: expected boards of at most 16384 cells, found shape"):
            load_samples(save(tmp_path / "x.npz", arrays), "hop-first")
