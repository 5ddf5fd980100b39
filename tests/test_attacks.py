"""A small part of `python -m benchmarks.attacks`: a kill and bad flags, with fixed seeds; and what tells good from bad."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tracking
from benchmarks import bad_flags, kills


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    return kills.Range(tmp_path_factory.mktemp("range"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_a_killed_run_goes_on_as_if_it_had_not_been(attacked):
    """Also: the same seed gives the same bytes."""
    for share in (0.75, 0.85, 0.95):  # beside other tests, more may pass until something is saved
        row = attacked.attack("wm contrastive", "SIGKILL", share)
        assert row["problems"] == [], row
        if row["saved"]:
            return
    pytest.fail("nothing was saved before the kill")


def saved_run(folder: Path) -> Path:
    """A folder as a command leaves it: a run and its log."""
    run = folder / "wm_ckpts" / "wm__1"
    run.mkdir(parents=True)
    tracking.write_csv(run / "loss.csv", [dict(epoch=0, nll=1.5, seconds=2.0)])
    tracking.write_json(run / "metrics.json", dict(run="wm__1", nll=1.5, seconds=2.0))
    tracking.save_checkpoint(run / "last.pt", dict(run="wm__1", step=3))
    np.savez(run / "arrays.npz", a=np.arange(3))
    writer = tracking.open_log("wm__1", dict(seed=1), folder / "runs")
    tracking.log_scalars(writer, "losses", dict(nll=1.5, SPS=7.0), 3)
    writer.close()
    return run


@pytest.fixture
def pair(tmp_path):
    """Two folders that differ by their runs' names and times alone."""
    saved_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for root in ("wm_ckpts", "runs"):
        (tmp_path / "b" / root / "wm__1").rename(tmp_path / "b" / root / "wm__2")
    run = tmp_path / "b" / "wm_ckpts" / "wm__2"
    tracking.write_csv(run / "loss.csv", [dict(epoch=0, nll=1.5, seconds=9.0)])
    tracking.write_json(run / "metrics.json", dict(run="wm__2", nll=1.5, seconds=9.0))
    return tmp_path / "a", tmp_path / "b", run


def test_runs_that_differ_by_the_clock_are_equal(pair):
    expected, found, _ = pair
    assert kills.differences(expected, found) == []


@pytest.mark.parametrize(
    "spoil, line",
    [
        (lambda run: (run / "loss.csv").unlink(), "lost: wm_ckpts/RUN/loss.csv"),
        (lambda run: (run / ".last.pt.7.tmp").touch(), "left over: wm_ckpts/RUN/.last.pt.7.tmp"),
        (lambda run: (run / "last.pt").write_bytes(b"PK"), "unreadable: wm_ckpts/RUN/last.pt"),
        (
            lambda run: tracking.write_csv(run / "loss.csv", [dict(epoch=0, nll=1.6)]),
            "differs: wm_ckpts/RUN/loss",
        ),
        (
            lambda run: tracking.write_json(run / "metrics.json", dict(nll=2)),
            "differs: wm_ckpts/RUN/metrics.json",
        ),
        (lambda run: np.savez(run / "arrays.npz", a=np.arange(3.0)), "differs: wm_ckpts/RUN/arrays.npz"),
        (
            lambda run: tracking.save_checkpoint(run / "last.pt", dict(step=4)),
            "differs: wm_ckpts/RUN/last.pt",
        ),
    ],
)
def test_what_differs_is_seen(spoil, line, pair):
    expected, found, run = pair
    spoil(run)
    (seen,) = kills.differences(expected, found)
    assert seen.startswith(line)


@pytest.mark.parametrize(
    "tag, step, value", [("nll", 3, 1.5), ("nll", 3, 1.6), ("nll", 4, 1.5), ("mse", 3, 1.5)]
)
def test_a_point_more_in_tensorboard_is_seen(tag, step, value, pair):
    """Also one that is shown twice."""
    expected, found, run = pair
    writer = tracking.open_log(run.name, {}, found / "runs")
    tracking.log_scalars(writer, "losses", {tag: value}, step)
    writer.close()
    (seen,) = kills.differences(expected, found)
    assert seen.startswith("differs: TensorBoard: ")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_signals_reach_a_program_though_they_were_ignored(tmp_path):
    """As a shell does for a program in its background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        kills.deliver_signals()
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT or process.returncode == 1
    finally:
        signal.signal(signal.SIGINT, before)


def test_bad_flags_are_refused_in_one_line(attacked, monkeypatch):
    """Forty of them, of all commands."""
    monkeypatch.chdir(attacked.folder)
    cases = list(bad_flags.bad_flags())
    assert len(cases) > 500
    for i in np.random.default_rng(1).choice(len(cases), 40, replace=False):
        command, flags = cases[i]
        assert bad_flags.outcome(command, flags) == "refused", (command, flags)


def test_flags_that_are_accepted_are_not_called_refused(attacked, monkeypatch):
    monkeypatch.chdir(attacked.folder)
    assert bad_flags.outcome("train_world_model", ["--epochs", "2"]) == "accepted"
