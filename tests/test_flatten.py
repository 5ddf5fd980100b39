"""Flat files of the game: the rows are the steps of the trajectory file, read back as the same transitions."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import load_samples, load_transitions
from data.flatten import Args, flatten, flatten_to_file
from data.trajectories import save_arrays
from envs import Rules

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "default": Args("", rows=700, seed=3),
    "8x8": Args("", rows=300, seed=4, epsilon=0.3, rules=Rules()),
    "three hunters, oblong": Args(
        "", rows=600, strategies=("NS", "RANDOM"), rules=Rules(3, 1, 3, 2, 4, 5, prey_moves=0.2)
    ),
}


def played(args):
    names = ("seed", "epsilon", "strategies", "rules")
    return collect(CollectArgs(steps=args.rows, **{key: getattr(args, key) for key in names}))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_flat_files_are_read_back(name, own, tmp_path):
    """Trajectory file and flat file give the same joint states, actions and rewards."""
    args = replace(SETTINGS[name], out=str(tmp_path / "flat.npz"), own_actions=own)
    arrays, t = flatten_to_file(args), played(args)
    save_arrays(tmp_path / "episodes.npz", t.arrays())
    n, seats = args.rows, args.rules.hunters
    x = load_transitions(tmp_path / "flat.npz", "auto" if args.rules.height == args.rules.width else "hop")
    y = load_transitions(tmp_path / "episodes.npz", split=False)
    assert len(x) == n and n <= len(y) < n + args.rules.horizon
    assert np.array_equal(x.states[x.before], y.states[y.before[:n]])
    assert np.array_equal(x.states[x.after], y.states[y.after[:n]])
    assert np.array_equal(x.rewards, y.rewards[:n]) and (x.rewards > 0).any()
    assert np.array_equal(x.ends, y.ends[:n]) and x.ends.any()
    assert np.array_equal(x.ticks, y.ticks[:n]) and np.array_equal(x.episodes, y.episodes[:n])
    assert not x.observer_first and not any("illegal" in line or "left out" in line for line in x.inferred)
    known = np.eye(seats, dtype=bool)[arrays["observer"]] if own else np.ones((n, seats), bool)
    assert np.array_equal(x.actions, np.where(known, y.actions[:n], -1))


def test_the_file_has_the_documented_arrays():
    args = SETTINGS["default"]
    arrays, t = flatten(args), played(args)
    assert {key: (a.dtype.name, a.shape) for key, a in arrays.items()} == {
        "obs": ("uint8", (700, 4, 4, 7)),
        "actions": ("int8", (700, 4)),
        "times": ("int64", (700,)),
        "observer": ("int8", (700,)),
        "rewards": ("float32", (700, 4)),
        "next_obs": ("uint8", (700, 4, 4, 7)),
    }
    at, seen = np.arange(700), arrays["observer"]
    assert t.active[at, seen].all(), "the observer is on the board"
    for key, row in (("obs", t.obs_row), ("next_obs", t.obs_row + 1)):
        for k in range(4):
            assert np.array_equal(arrays[key][..., k], t.obs[row[:700], (seen + k) % 4, 0])
        assert np.array_equal(arrays[key][..., 4:], np.moveaxis(t.obs[row[:700], 0, 2:], 1, -1))
    own = flatten(replace(args, own_actions=True))
    assert np.array_equal(own["actions"], t.actions[at, seen]) and np.array_equal(own["obs"], arrays["obs"])


def test_observers_are_drawn_evenly_by_the_seed():
    args = Args("", rows=6000)
    arrays, t = flatten(args), played(args)
    left = t.active[:6000].sum(1)
    for hunters in (2, 3, 4):  # of those on the board, each as often
        among = t.active[:6000][left == hunters]
        rank = (np.cumsum(among, 1) - 1)[np.arange(len(among)), arrays["observer"][left == hunters]]
        share = np.bincount(rank, minlength=hunters) / len(among)
        assert len(among) > 300 and np.abs(share - 1 / hunters).max() < 5 * np.sqrt(0.25 / len(among))
    again, other = flatten(args), flatten(replace(args, seed=2))
    assert all(np.array_equal(again[key], arrays[key]) for key in arrays)
    assert (other["observer"] != arrays["observer"]).mean() > 0.5


def test_the_chunk_size_changes_nothing(tmp_path, monkeypatch):
    args = replace(SETTINGS["default"], out=str(tmp_path / "flat.npz"))
    whole = flatten(args)
    monkeypatch.setattr("data.trajectories.CHUNK", 64)
    cut = flatten_to_file(args)
    assert all(np.array_equal(cut[key], whole[key]) for key in whole)
    samples = load_samples(args.out)  # the view of pretrain_vae.py
    assert len(samples) == 700 and np.array_equal(
        samples.actions, cut["actions"][np.arange(700), cut["observer"]]
    )


def test_the_default_game_and_a_single_row():
    rules = Args("").rules
    assert (rules.height, rules.width, rules.blocks) == (4, 4, 0)
    assert (rules.hunters, rules.stags, rules.hares) == (4, 1, 2)
    one = flatten(Args("", rows=1))
    assert len(one["obs"]) == 1 and one["times"].tolist() == [0]
    assert one["obs"][0].sum((0, 1)).tolist() == [1, 1, 1, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (dict(rows=0), r"--rows must be in 1..2\*\*31 - 1, got 0"),
        (dict(rows=-5), r"--rows must be in 1..2\*\*31 - 1, got -5"),
        (dict(strategies=("NS", "XX")), "unknown strategy 'XX'"),
        (dict(rows=10**400), r"--rows must be in 1..2\*\*31 - 1, got 10000000000000000000$"),
        (dict(epsilon=2.0), "epsilon must be in"),
        (dict(seed=-1), r"--seed must be in 0..2\*\*31 - 1, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        flatten(Args(**{"out": "", "rows": 10} | setting))


@pytest.mark.slow
def test_the_command_writes_the_file(tmp_path, capsys):
    def run(*flags):
        command = [sys.executable, "-m", "data.flatten", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run(
        "--out",
        str(tmp_path / "a.npz"),
        "--rows",
        "200",
        "--own-actions",
        "--env-args",
        "hares=3",
        "--seed",
        "7",
    )
    assert done.returncode == 0, done.stderr
    arrays = flatten_to_file(
        Args(str(tmp_path / "b.npz"), 200, 7, True, rules=Rules(hares=3, blocks=0, height=4, width=4))
    )
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes(), (
        "two processes, the same bytes"
    )
    first, last = done.stdout.splitlines()
    assert first == f"[DATA] playing 200 rows (seed 7) into {tmp_path / 'a.npz'}"
    assert last.startswith(f"[DATA] 200 rows (4, 4, 7) of {(arrays['times'] == 0).sum()} episodes in ")
    assert capsys.readouterr().out.splitlines()[1].startswith(last.rsplit(" in ", 1)[0])
    for flags, words in (
        (("--rows", "5"), "--out"),
        (("--out", str(tmp_path / "c.npz"), "--rows", "0"), "--rows"),
    ):
        done = run(*flags)
        assert done.returncode == 2 and done.stderr.startswith("error:") and words in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "c.npz").exists()
