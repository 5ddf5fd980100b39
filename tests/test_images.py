"""docs/images/: each picture is made by one command, from tables that say where they come from, and by today's code."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tracking
from benchmarks import images
from tracking import figures


def pixels(path, frame=0):
    with Image.open(path) as picture:
        picture.seek(frame)
        return np.asarray(picture.convert("RGB")).astype(int)


def test_every_picture_is_made_by_the_command():
    assert {path.name for path in images.IMAGES.iterdir()} == set(images.MAKERS)


def test_every_table_begins_with_the_command_that_made_it():
    tables = sorted(images.TABLES.glob("*.csv"))
    used = set(re.findall(r"\"(\w+\.csv)\"", Path(images.__file__).read_text())) - {"ladder.csv"}
    used |= {f"{name.removesuffix('.png')}.csv" for name in images.MAKERS if name.startswith("scale_")}
    assert used == {path.name for path in tables}
    for path in tables:
        first = path.read_text().partition("\n")[0]
        module = re.fullmatch(r"# python -m ([\w.]+) -.+", first)
        assert module and importlib.util.find_spec(module.group(1)), first


STUDY = {"study_iqm.png", "study_few_shot.png", "study_held_out.png"}


@pytest.mark.parametrize(
    "name", sorted(set(images.FROM_TABLES) - {"film.gif", "board.png", "cross_play.png"} - STUDY)
)
def test_a_figure_has_the_numbers_of_its_table(name, monkeypatch):
    saved = []
    monkeypatch.setattr(figures, "save", lambda figure, path: saved.append((figure, path)))
    images.MAKERS[name](images.IMAGES / name, images.Options())
    ((figure, path),) = saved
    assert path == images.IMAGES / name
    table = images.read_table(f"{path.stem}.csv").select_dtypes("number").to_numpy()
    drawn = [y for axis in figure.axes for line in axis.lines for y in line.get_ydata()]
    known = np.append(table, 100 * table)  # some are drawn as percent
    assert sum(np.isclose(known, y).any() for y in drawn) >= 6


def test_the_matrix_of_cross_play_has_the_numbers_of_its_table(monkeypatch):
    saved = []
    monkeypatch.setattr(figures, "save", lambda figure, path: saved.append(figure))
    images.cross_play(images.IMAGES / "cross_play.png", images.Options())
    drawn = np.asarray(saved[0].axes[0].images[0].get_array())
    table = images.read_table("cross_play.csv")
    assert drawn.shape == (16, 16) and len(table) == 256
    assert drawn[0, 1] == table.query("policy == 'self1' and partner == 'self2'").learner.item()


@pytest.mark.parametrize("name", sorted(STUDY))
def test_a_figure_of_the_study_has_the_numbers_of_its_page(name, monkeypatch):
    """Interquartile means as they stand in study.md, returns by episode in its column of the first."""
    saved = []
    monkeypatch.setattr(figures, "save", lambda figure, path: saved.append(figure))
    monkeypatch.setattr(images.study_page, "bootstrap_iqm", lambda *given, **how: (0.0, 1.0))
    images.MAKERS[name](images.IMAGES / name, images.Options())
    page = (images.IMAGES.parent / "study.md").read_text(encoding="utf-8")
    first = [line.get_ydata()[0] for axis in saved[0].axes for line in axis.lines]
    if name == "study_iqm.png":
        first = [
            line.get_xdata()[0] for axis in saved[0].axes for line in axis.lines if line.get_marker() == "|"
        ]
    if name == "study_held_out.png":
        table = images.read_table("study.csv").query("partners == 'held-out'")
        best = table[table.method == "best response"].set_index(["game", "team"]).episode1
        learnt = table[table.method.isin(("none", "gru", "liam", "latent", "belief"))].set_index(
            ["game", "team"]
        )
        learnt["share"] = learnt.episode1 / best.reindex(learnt.index)
        expected = learnt.groupby(["game", "method"]).share.mean()  # as many partners with each seed
        assert sorted(first) == pytest.approx(sorted(expected))
    else:
        assert len(first) >= 11 and all(f"| {value:.3f} " in page for value in first)


def test_the_board_is_what_is_drawn_today(tmp_path):
    images.board(tmp_path / "board.png", images.Options())
    assert np.abs(pixels(tmp_path / "board.png") - pixels(images.IMAGES / "board.png")).max() <= 1


def test_the_film_is_what_is_drawn_today(tmp_path):
    path = images.IMAGES / "film.gif"
    images.film(tmp_path / "film.gif", images.Options())
    with Image.open(path) as kept:
        assert kept.width == figures.FILM_WIDTH and path.stat().st_size <= 300_000
        for frame in range(kept.n_frames):
            difference = np.abs(pixels(tmp_path / "film.gif", frame) - pixels(path, frame))
            assert difference.mean() < 1, frame  # fonts are smoothed a little differently by each version
        with pytest.raises(EOFError):
            pixels(tmp_path / "film.gif", kept.n_frames)


def test_a_recorded_episode_is_read_as_it_was(tmp_path, monkeypatch):
    rules, frames = images.read_film()

    class Evaluator:
        args = images.hop_ppo.hop_ppo.Args()

        def film_frames(self, agent, seed):
            return frames, True

    Evaluator.rules = rules
    monkeypatch.setattr(images.hop_ppo, "load", lambda folder: (None, Evaluator()))
    kept = (images.TABLES / "film.csv").read_bytes()
    monkeypatch.setattr(images, "TABLES", tmp_path)
    images.record("ppo_ckpts/convn__1795942343", 3009)
    assert (tmp_path / "film.csv").read_bytes() == kept


def test_a_picture_that_there_is_not_is_a_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["images.py", "--only", "bord.png"])
    with pytest.raises(tracking.UsageError, match="no picture bord"):
        images.main()
