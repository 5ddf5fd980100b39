"""Files of a run: what kills leave behind, who may write, full disks, folders that cannot be made."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import tracking
from data import temporary
from data.trajectories import save_arrays
from tracking import files, run_lock

ROOT = Path(__file__).resolve().parents[1]
WRITES = {
    "tracking": lambda path: tracking.write_bytes(path, b"content"),
    "data": lambda path: save_arrays(path, {"a": np.arange(3)}),
}


def in_another_process(code: str, *words) -> subprocess.Popen:
    """It says `ready`, and lives until its stdin closes."""
    code = f"import sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


# ---- temporary files


@pytest.mark.parametrize("write", WRITES)
def test_the_next_write_removes_what_a_killed_one_left(write, tmp_path):
    path = tmp_path / "x[1].npz"
    (tmp_path / ".x[1].npz.4711.tmp").write_bytes(b"hal")
    (tmp_path / ".y.npz.4711.tmp").write_bytes(b"of another file")
    WRITES[write](path)
    assert sorted(os.listdir(tmp_path)) == [".y.npz.4711.tmp", "x[1].npz"]


@pytest.mark.skipif(os.name == "nt", reason="there the system keeps files that are open")
@pytest.mark.parametrize("write", WRITES)
def test_a_living_write_keeps_its_temporary_file(write, tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    module = {"tracking": files, "data": temporary}[write]
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 4711)
        living = module.temporary_beside(path)
        living.__enter__().write_bytes(b"hal")
    WRITES[write](path)
    assert sorted(os.listdir(tmp_path)) == [".x.npz.4711.tmp", "x.npz"]
    living.__exit__(None, None, None)
    assert os.listdir(tmp_path) == ["x.npz"]


def test_a_write_that_was_killed_holds_nothing(tmp_path):
    path = tmp_path / "x.npz"
    code = "from pathlib import Path\nfrom data.temporary import temporary_beside\n"
    code += "context = temporary_beside(Path(sys.argv[1]))\ncontext.__enter__().write_bytes(b'hal')"
    writer = in_another_process(code, path)
    assert os.listdir(tmp_path) == [f".x.npz.{writer.pid}.tmp"]
    writer.kill()
    writer.communicate()
    save_arrays(path, {"a": np.arange(3)})
    assert os.listdir(tmp_path) == ["x.npz"]


def test_the_next_start_of_a_run_removes_all_that_was_left(tmp_path):
    for name in (".last.pt.12.tmp", "test/.error_by_tick.png.9.tmp", "test/mine.tmp", ".note.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    tracking.lock_run(tmp_path)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".lock", ".note.tmp", "mine.tmp"]


# ---- one process trains a run


def test_a_run_that_another_process_trains_is_refused_until_it_is_dead(tmp_path):
    code = "from filelock import FileLock\nlock = FileLock(sys.argv[1])\nlock.acquire()"
    trainer = in_another_process(code, tmp_path / ".lock")
    with pytest.raises(tracking.UsageError, match="another process is training this run; wait") as error:
        tracking.lock_run(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ") and "\n" not in str(error.value)
    trainer.kill()  # it cannot clean up
    trainer.communicate()
    assert tracking.lock_run(tmp_path) == tmp_path
    assert tracking.lock_run(tmp_path) == tmp_path, "its own process may ask again"
    run_lock.release(tmp_path / ".lock")
    assert not (tmp_path / ".lock").exists()


def test_of_torchruns_processes_the_first_holds_the_lock(tmp_path, monkeypatch):
    with FileLock(tmp_path / ".lock"):
        monkeypatch.setenv("RANK", "1")
        assert tracking.lock_run(tmp_path) == tmp_path
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(tracking.UsageError, match="another process"):
            tracking.lock_run(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / ".lock"))

    monkeypatch.setattr(run_lock.FileLock, "acquire", refuse)
    with pytest.raises(tracking.UsageError, match=r"cannot write there \(Read-only file system\): "):
        tracking.lock_run(tmp_path)


# ---- folders that cannot be made


def test_a_log_folder_that_cannot_be_made_leaves_no_empty_run(tmp_path, monkeypatch):
    make = Path.mkdir

    def refuse(self, *args, **kwargs):
        if self.parent.name == "runs":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(tracking.UsageError, match="cannot make this folder"):
        tracking.new_run("ppo", tmp_path / "ppo_ckpts", tmp_path / "runs")
    assert os.listdir(tmp_path / "ppo_ckpts") == []


@pytest.mark.parametrize("file", ["runs", "ckpts", "above"])
def test_a_file_in_the_way_leaves_no_empty_run(file, tmp_path):
    (tmp_path / file).write_text("")
    folders = {"runs": tmp_path / "runs", "ckpts": tmp_path / "ckpts"}
    if file == "above":
        folders["runs"] = tmp_path / "above" / "runs"
    with pytest.raises(tracking.UsageError, match="expected a folder to write to, found a file"):
        tracking.new_run("ppo", folders["ckpts"], folders["runs"])
    assert not list(tmp_path.glob("ckpts/*"))


def test_a_run_that_ends_before_its_first_checkpoint_leaves_nothing(tmp_path):
    for saved in (True, False):
        tracking.new_run("vae", tmp_path / "ckpts", tmp_path / "runs")
        (folder,) = (tmp_path / "ckpts").iterdir()
        tracking.open_log(folder.name, {}, tmp_path / "runs")
        (folder / "dim16").mkdir()
        (folder / "dim16" / ("last.pt" if saved else "loss.csv")).touch()
        tracking.drop_unsaved(folder, tmp_path / "runs" / folder.name)
        assert folder.exists() == (tmp_path / "runs" / folder.name).exists() == saved
        shutil.rmtree(folder, ignore_errors=True)


# ---- full disks

FULL = """
import contextlib, resource, sys
import numpy as np
import tracking
from data.trajectories import save_arrays

def save():
    tracking.save_checkpoint("last.pt", {"kind": "k", "a": "x" * 5000})

def collect():
    save_arrays("x.npz", {"a": np.random.default_rng(0).random(5000)})

def log():
    writer = tracking.open_log("run", {})
    for step in range(200):
        writer.add_scalar("losses/total", 0.5, step)

resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for main in (save, collect, log):
    try:
        tracking.run(main)
    except SystemExit as stop:
        print(stop.code)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a limit of a file's size")
@pytest.mark.slow
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FULL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "2", "2"], done.stderr
    says = "File too large; what was saved before is kept"
    (log,) = (tmp_path / "runs" / "run").iterdir()
    names = ["last.pt", "x.npz", log.relative_to(tmp_path).as_posix()]
    assert done.stderr.splitlines() == [f"error: {name}: {says}" for name in names]
    assert not list(tmp_path.rglob("*.tmp"))
    list(EventFileLoader(str(log)).Load())  # its records are whole


def test_files_of_windows_need_no_locks(tmp_path, monkeypatch):
    """There nobody can remove a file that is open: what can be removed was left behind."""
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / ".x.pt.4711.tmp").touch()
    tracking.write_bytes(tmp_path / "x.pt", b"content")
    assert os.listdir(tmp_path) == ["x.pt"] and (tmp_path / "x.pt").read_bytes() == b"content"
