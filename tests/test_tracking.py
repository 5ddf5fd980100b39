"""tracking: names, folders, whole-or-absent files, one-line errors."""

import errno
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

import tracking


@dataclass
class Args:
    loss: Literal["a", "b"] = "a"
    size: int = 3
    resume: str = ""


def test_a_taken_second_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.7)
    names = [tracking.new_run("vae", tmp_path / "ckpts", tmp_path / "runs") for _ in range(3)]
    assert names == ["vae__1000", "vae__1001", "vae__1002"]
    (tmp_path / "runs" / "vae__1003").mkdir()  # taken by a log alone
    assert tracking.new_run("vae", tmp_path / "ckpts", tmp_path / "runs") == "vae__1004"
    assert sorted(path.name for path in (tmp_path / "ckpts").iterdir()) == [
        "vae__1000",
        "vae__1001",
        "vae__1002",
        "vae__1004",
    ]


@pytest.mark.parametrize("taken", ["ckpts", "runs"])
def test_a_file_where_the_folder_should_be(taken, tmp_path):
    (tmp_path / taken).write_text("")
    with pytest.raises(tracking.UsageError, match=taken):
        tracking.new_run("vae", tmp_path / "ckpts", tmp_path / "runs")


def test_folders_that_cannot_be_made(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(tracking.UsageError, match="cannot make this folder"):
        tracking.new_run("vae", tmp_path / "ckpts", tmp_path / "runs")


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    tracking.save_checkpoint(path, {"kind": "k", "args": {}, "step": 1})

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left.*last\.pt"):
        tracking.save_checkpoint(path, {"kind": "k", "args": {}, "step": 2})
    assert tracking.load_checkpoint(path, "k")["step"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (tracking.UsageError("the size\nis wrong"), 2, "error: the size is wrong\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.pt"),
            2,
            "error: x.pt: No space left on device; what",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted; what was saved before is kept"),
        (KeyError("k"), 2, "error: 'k'\n"),
    ],
)
def test_errors_are_one_line(error, code, says, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        tracking.run(main, KeyError)
    captured = capsys.readouterr().err
    assert stop.value.code == code and captured.startswith(says) and captured.count("\n") == 1


def test_a_bug_stays_a_traceback():
    with pytest.raises(ZeroDivisionError):
        tracking.run(lambda: 1 / 0)


@pytest.mark.parametrize("argv", [["--loss", "c"], ["--size", "x"], ["--no-such-flag", "1"], ["--size"]])
def test_a_bad_flag_is_one_line_that_names_it(argv):
    with pytest.raises(tracking.UsageError) as error:
        tracking.parse_args(Args, "d", argv)
    assert argv[0] in str(error.value) and "\n" not in str(error.value) and "─" not in str(error.value)


def test_good_flags_and_help(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert tracking.parse_args(Args, "d", ["--loss", "b", "--size", "5"]) == Args("b", 5)
    with pytest.raises(SystemExit) as stop:
        tracking.parse_args(Args, "what it is for", ["--help"])
    assert stop.value.code in (0, None) and "what it is for" in capsys.readouterr().out
    assert "COLUMNS" not in os.environ


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_checkpoint_cut_short(share, tmp_path):
    path = tmp_path / "best.pt"
    tracking.save_checkpoint(path, {"kind": "k", "args": {}, "model": {"w": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(tracking.UsageError, match=r"best\.pt: the checkpoint is cut short or damaged"):
        tracking.load_checkpoint(path, "k")


def test_only_tensors_and_plain_values_are_read(tmp_path):
    torch.save({"kind": "k", "args": Args()}, tmp_path / "x.pt")
    with pytest.raises(tracking.UsageError, match="damaged"):
        tracking.load_checkpoint(tmp_path / "x.pt", "k")
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(tracking.UsageError, match=r"expected a checkpoint of k\.py, found one of another program"):
        tracking.load_checkpoint(tmp_path / "x.pt", "k")
    with pytest.raises(tracking.UsageError, match="no checkpoint there"):
        tracking.load_checkpoint(tmp_path / "y.pt", "k")


def test_weights_of_another_network(tmp_path):
    with pytest.raises(tracking.UsageError, match="of other sizes"):
        tracking.load_weights(torch.nn.Linear(3, 2), torch.nn.Linear(4, 2).state_dict(), "x.pt")


def test_settings_of_a_resumed_run():
    checkpoint = {"args": asdict(Args("b", 7))}
    assert tracking.resumed_args(Args(resume="r"), checkpoint, ("resume",)) == Args("b", 7, "r")
    assert tracking.resumed_args(Args("b", 7, "r"), checkpoint, ("resume",)) == Args("b", 7, "r")
    assert tracking.resumed_args(Args(resume="r"), checkpoint, ("resume", "size")).size == 7  # not given: as it was
    assert tracking.resumed_args(Args(size=9), checkpoint, ("resume", "size")).size == 9
    with pytest.raises(tracking.UsageError, match="--size 9: the run to be resumed has 7"):
        tracking.resumed_args(Args(size=9), checkpoint, ("resume",))


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        tracking.write_json(tmp_path / "m.json", {"x": float("nan")})
    assert not (tmp_path / "m.json").exists()


def test_random_state_goes_round():
    tracking.seed_everything(3, False)
    state = tracking.rng_state()
    first = torch.randn(4)
    tracking.set_rng_state(state)
    assert torch.equal(first, torch.randn(4))
