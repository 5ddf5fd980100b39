"""tracking: names, folders, whole-or-absent files, one-line errors."""

import errno
import io
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tracking
from envs.render import HUNTER_COLOURS
from envs.stag_hunt import GAME
from tracking import figures


@dataclass
class Args:
    loss: Literal["a", "b"] = "a"
    size: int = 3
    top_k: int = 3
    cuda: bool = True
    plan: bool = False
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
    with pytest.raises(OSError, match=r"No space left.*loss\.csv"):
        tracking.write_csv(tmp_path / "loss.csv", [{"epoch": 0}])
    assert torch.load(path, weights_only=True)["step"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def locked(monkeypatch, name):
    """As on Windows, where no file can be moved over one that another program holds open."""
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == name:
            raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)


def test_a_csv_that_another_program_holds_open_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    tracking.write_csv(tmp_path / "loss.csv", [{"epoch": 0}])
    with monkeypatch.context() as patch:
        locked(patch, "loss.csv")
        tracking.write_csv(tmp_path / "loss.csv", [{"epoch": 0}, {"epoch": 1}])
        warning = capsys.readouterr().err
        assert warning.startswith(f"warning: {tmp_path / 'loss.csv'}: not written (Access is denied)")
        assert warning.count("\n") == 1
        assert (tmp_path / "loss.csv").read_text() == "epoch\n0\n" and os.listdir(tmp_path) == ["loss.csv"]
        tracking.write_csv(tmp_path / "other.csv", [{"epoch": 5}])
    tracking.write_csv(
        tmp_path / "loss.csv", [{"epoch": 0}, {"epoch": 1}]
    )  # closed again: nothing is missing
    assert (tmp_path / "loss.csv").read_text() == "epoch\n0\n1\n" and (
        tmp_path / "other.csv"
    ).read_text() == "epoch\n5\n"
    assert capsys.readouterr().err == ""


def test_checkpoints_and_metrics_must_be_written(tmp_path, monkeypatch):
    for name, write in (("last.pt", tracking.save_checkpoint), ("metrics.json", tracking.write_json)):
        locked(monkeypatch, name)
        with pytest.raises(PermissionError, match=name):
            write(tmp_path / name, {"kind": "k"})


def test_the_newest_run_is_by_the_seconds_in_its_name(tmp_path):
    """Not by the time of its folder, and not by the text: 10 is after 9."""
    with pytest.raises(
        tracking.UsageError, match=r"no trained run there; train one with `python pretrain_vae\.py`"
    ):
        tracking.newest_run(tmp_path / "nowhere", "pretrain_vae.py")
    runs = {
        "vae__9": "dim16/best.pt",
        "mine__10": "best.pt",
        "vae__8": "best.pt",
        "vae__11": "last.pt",
        "vae__best": "best.pt",
        "copy": "best.pt",
    }
    for name, best in runs.items():
        (tmp_path / name / best).parent.mkdir(parents=True)
        (tmp_path / name / best).touch()
    os.utime(tmp_path / "vae__8", (2e9, 2e9))  # an old one was judged just now
    assert tracking.newest_run(tmp_path, "pretrain_vae.py") == tmp_path / "mine__10"


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


def test_a_flag_that_does_not_exist_gets_the_ones_like_it():
    for argv, meant in (
        (["--siz", "1"], "--size"),
        (["--sizes=1", "--top-kk", "2"], "(--top-k or --size|--size or --top-k)"),
    ):
        with pytest.raises(
            tracking.UsageError, match=rf"{argv[0][:5]}.*; perhaps you meant {meant}; see --help"
        ):
            tracking.parse_args(Args, "d", argv)
    with pytest.raises(tracking.UsageError) as error:
        tracking.parse_args(Args, "d", ["--nothing-like-it"])
    assert "perhaps" not in str(error.value)


def test_good_flags_and_help(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert tracking.parse_args(Args, "d", ["--loss", "b", "--size", "5"]) == Args("b", 5)
    with pytest.raises(SystemExit) as stop:
        tracking.parse_args(Args, "what it is for", ["--help"])
    assert stop.value.code in (0, None) and "what it is for" in capsys.readouterr().out
    assert "COLUMNS" not in os.environ


def test_settings_of_a_resumed_run():
    checkpoint = {"args": asdict(Args("b", 7))}
    assert tracking.resumed_args(Args(resume="r"), checkpoint, ("resume",)) == Args("b", 7, resume="r")
    assert tracking.resumed_args(Args("b", 7, resume="r"), checkpoint, ("resume",)) == Args(
        "b", 7, resume="r"
    )
    assert (
        tracking.resumed_args(Args(resume="r"), checkpoint, ("resume", "size")).size == 7
    )  # not given: as it was
    assert tracking.resumed_args(Args(size=9), checkpoint, ("resume", "size")).size == 9
    with pytest.raises(tracking.UsageError, match="--size 9: the run has 7"):
        tracking.resumed_args(Args(size=9), checkpoint, ("resume",))
    with pytest.raises(tracking.UsageError, match="another version of this script"):
        tracking.resumed_args(Args(), {"args": {"loss": "b", "lr": 0.1}}, ("resume",))


@pytest.mark.parametrize("words", [["--top-k", "3"], ["--top_k", "3"], ["--top-k=3"], ["--top_k=3"]])
def test_a_flag_given_at_its_default_is_given(words):
    """3 is the default, and not what the run has."""
    checkpoint, args = (
        {"args": asdict(Args(top_k=7))},
        tracking.parse_args(Args, "d", ["--resume", "r", *words]),
    )
    assert tracking.resumed_args(args, checkpoint, ("resume", "top_k")) == Args(top_k=3, resume="r")
    with pytest.raises(tracking.UsageError, match="--top-k 3: the run has 7; leave --top-k out"):
        tracking.resumed_args(args, checkpoint, ("resume",))
    assert tracking.resumed_args(args, {"args": asdict(Args())}, ("resume",)) == Args(resume="r"), (
        "as the run has it"
    )


def test_a_switch_given_at_its_default_is_given():
    checkpoint = {"args": asdict(Args(cuda=True, plan=True))}
    for words, free in ((["--no-plan"], ("plan",)), (["--no_plan", "--cuda"], ("plan",))):
        assert tracking.resumed_args(tracking.parse_args(Args, "d", words), checkpoint, free) == Args()
        with pytest.raises(tracking.UsageError, match="--plan False: the run has True"):
            tracking.resumed_args(tracking.parse_args(Args, "d", words), checkpoint, ())


def test_the_value_of_a_flag_is_not_a_flag():
    """The run has a strange name; --top-k is not given, and stays the run's."""
    args = tracking.parse_args(Args, "d", ["--resume=--top-k"])
    assert tracking.resumed_args(args, {"args": asdict(Args(top_k=7))}, ("resume",)) == Args(
        top_k=7, resume="--top-k"
    )


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


# ---- pictures of joint boards


def hunt(hunters, stag=0, hare=3):
    """A joint board of 2 x 2 with hunters on these cells, None: gone."""
    board = np.zeros((len(hunters) + 3, 4), np.uint8)
    for plane, cell in enumerate([*hunters, None, stag, hare]):
        if cell is not None:
            board[plane, cell] = 1
    return board.reshape(-1, 2, 2)


def test_a_capture_is_named_by_who_took_what_and_earned_what():
    before = hunt([0, 3, 0, 1])
    after = hunt([None, None, None, 1], None, None)
    said = figures.event_text(before, after, [5, 6, 5, 4], [5.0, 1.0, 5.0, 0.0])
    assert said == "seats 0, 2 captured a stag: 5 each; seat 1 captured a hare: 1"


def test_a_hunt_that_fails_is_no_event():
    board = hunt([0, 3, 1, 1])
    assert figures.event_text(board, board, [5, 4, 4, 4], [0.0] * 4) == ""
    after = hunt([0, None, 1, 1], 0, None)
    assert figures.event_text(board, after, [5, 6, -1, 4], [0.0, 1.0, 0.0, 0.0]) == "", (
        "an action is not known"
    )


def test_a_prey_that_steps_onto_the_cell_of_a_captured_one_hides_nothing():
    before = hunt([0, 0, 3, 3])
    after = hunt([None, None, 3, 3], 0)
    assert (
        figures.event_text(before, after, [5, 5, 4, 4], [5.0, 5.0, 0.0, 0.0])
        == "seats 0, 1 captured a stag: 5 each"
    )


def test_a_removal_pays_the_others_too():
    labels = figures.BoardLabels(prey=("drift",), takes=("remove",), planes=("DRIFTS",))
    before, after = hunt([0, 0, 1, 2])[:6], hunt([0, 0, 1, 2], None)[:6]
    said = figures.event_text(before, after, [5, 4, 4, 4], [2.0, 6.0, 6.0, 6.0], labels)
    assert said == "seat 0 removed a drift: 2; the others: 6 each"


def film_colours(path, frame):
    with Image.open(path) as film:
        film.seek(frame)
        return np.asarray(film.convert("RGB")).astype(int)


def count(image, colour):
    rgb = [255 * c for c in to_rgb(colour)]
    return int((np.abs(image - rgb).max(2) < 12).sum())


def test_a_film_of_play_shows_the_belief_the_learner_and_who_has_left(tmp_path):
    first = dict(joint=hunt([0, 1, 0, 2]), belief=[0.0, 0.9, 0.5, 0.5], strategy_ids=[-1, 1, 0, 0], learner=0, tick=3,
                 returns=[0.0] * 4, actions=[4] * 4)  # fmt: skip
    surer = first | dict(belief=[0.0, 0.1, 0.5, 0.5])
    last = first | dict(
        joint=hunt([None, 1, None, 2], None), returns=[5.0, 0.0, 5.0, 0.0], actions=[5, 4, 5, 4]
    )
    figures.play_film([first, surer, last], GAME, True, tmp_path / "x.gif", scale=1)
    shown = [film_colours(tmp_path / "x.gif", i) for i in range(3)]
    assert shown[0].shape[1] == figures.FILM_WIDTH
    bar = np.abs(shown[0] - shown[1]).max(2) > 40
    assert bar.any() and bar[:, :280].sum() == 0, "beliefs stand beside the board"
    assert count(shown[0], HUNTER_COLOURS[1]) - count(shown[1], HUNTER_COLOURS[1]) > 0.7 * 0.8 * 100 * 6
    assert [count(image, figures.EVENT_COLOUR) > 100 for image in shown] == [False, False, True]
    assert count(shown[2][:, :280], HUNTER_COLOURS[0]) == 0 < count(shown[0][:, :280], HUNTER_COLOURS[0])
    with Image.open(tmp_path / "x.gif") as film:
        film.seek(2)
        assert film.info["duration"] == 3000
    figures.play_film([first], GAME, False, tmp_path / "y.gif", scale=1)
    without = film_colours(tmp_path / "y.gif", 0)
    assert (np.abs(without - shown[0]).max(2)[:, 290:] > 40).sum() > 500, "no belief, no bars"


def test_titles_of_transitions():
    assert figures.transition_text([0, 5, -1], [0.0, 5.0, 1 / 3]) == "0 ↑  1 stag  2 ?\npaid 0 5 0.333"
    assert figures.transition_text([4], [float("nan")]) == "0 stay\npaid nan"


def test_a_film_and_figures_of_predictions(tmp_path):
    boards = np.random.default_rng(0).random((2, 3, 6, 4, 5))
    boards = np.where(boards < 0.9, 0.0, boards)
    films = {"real": boards[0], "imagined": boards[1]}
    figures.joint_film(films, ["a", "b", "c"], tmp_path / "x.gif", ["", "seat 0 captured a hare: 1", ""])
    with Image.open(tmp_path / "x.gif") as film:
        assert film.n_frames == 3
    said = [count(film_colours(tmp_path / "x.gif", i), figures.EVENT_COLOUR) > 100 for i in range(3)]
    assert said == [False, True, False]
    curve = np.array([[0.0, 0.4, 1.0], [0.0, 0.5, 1.0], [9.0, 2.0, 3.0]])
    drawn = figures.of_predictions(
        {"hunter 0": curve, "reward > 0": curve}, {"MSE": {0: 0.1}}, {"MSE": [0.1, 0.2]}, "title"
    )
    assert list(drawn) == ["calibration", "error_by_tick", "error_by_depth"]
    assert [axis.get_title() for axis in drawn["calibration"].axes] == ["cells, by channel", "reward > 0"]
    acts, paid = np.zeros((3, 3), int), np.zeros((3, 3))
    figure = figures.predicted_boards(*boards[[0, 1, 0]], acts, paid, paid, ["x", "y", "z"], "title")
    titles = [axis.get_title() for axis in figure.axes[:5]]
    assert titles == ["", "before", "true next", "predicted next", "error"], "side by side"
    assert figure.axes[0].texts[0].get_text() == "x\n0 ↑  1 ↑  2 ↑\npaid 0 0 0\npredicted 0 0 0"
    for name, one in (drawn | {"boards": figure}).items():
        figures.save(one, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_frames_have_titles():
    """Above the first row only."""
    names = ["SELF", "OTHERS", "BLOCKS", "STAGS", "HARES"]
    figure = figures.planes(dict.fromkeys(("true", "predicted"), np.zeros((2, 5, 3, 3))), names, ["x", "y"])
    assert [axis.get_title() for axis in figure.axes] == ["x", "y", "", ""]


def test_a_path_that_is_no_unicode_is_logged_and_shown(tmp_path, monkeypatch):
    """Under LANG=C a path of UTF-8 bytes is such a text: `ä` is shown by its bytes, and logged as it is."""
    path = "data/\udcc3\udca4.npz"
    tracking.open_log("run", {"data": path}, tmp_path).close()
    logged = EventAccumulator(str(tmp_path / "run")).Reload()
    text = logged.Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.endswith("|data|data/ä.npz|")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", terminal)
    tracking.run(lambda: print(path, flush=True))
    assert terminal.buffer.getvalue() == b"data/\\udcc3\\udca4.npz\n"
