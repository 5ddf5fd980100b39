"""benchmarks/study.py: cells that are done once, a study that goes on, and the page of its rows."""

import json
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from matplotlib.figure import Figure

import hop_ppo
import tracking
from benchmarks import study, study_page
from benchmarks.study import Cell, Settings, Study
from metrics.aggregate import bootstrap_iqm

GAME = "Snowdrift-hidden-v0"
FLAGS = ("--games", GAME, "--methods", "none", "gru", "belief", "oracle", "--episodes", "3", "--boards", "4")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder of its own, a machine that is always the same, few resamples, and figures without their pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "machine", lambda: "2026-01-01  a machine")
    monkeypatch.setattr(study, "POLL", 0.0)
    monkeypatch.setattr(study_page, "bootstrap_iqm", partial(bootstrap_iqm, resamples=20))
    monkeypatch.setattr(tracking.interrupt.STATE, "advice", "")
    monkeypatch.setattr(study_page.figures, "save", lambda figure, path: Path(path).write_bytes(b"png"))
    return tmp_path


def number_of(text: str) -> float:
    return zlib.crc32(text.encode()) / 2**32


def rows_of(cell: Cell) -> list[dict]:
    """What a cell might find."""
    if cell.kind in ("vae", "goals", "policy"):
        return []
    names = dict(
        rivals=["random", "script", "script_told"], response=["best response", "random", "script_told"]
    )
    partners = cell.partners or "few-shot"
    head = dict(game=cell.game, partners=partners, seed=cell.number)
    rows = []
    for name in names.get(cell.kind, [cell.method]):
        for team in study.teams_of(cell._replace(partners=partners)):
            value = number_of(f"{cell.name}{name}{team}") + (name != "random")
            returns = dict(mean=value, mean_ci95=0.1, episode1=value - 0.2, episode2=value, episode3=value)
            rows.append(head | dict(method=name, team=team) | returns)
    return rows


class Fake:
    """Starts cells that are done after so many looks; counts them, and how many there are at once."""

    def __init__(self, stop_after: int = 10**6, looks: int = 0, fails: tuple[str, ...] = ()):
        self.names: list[str] = []
        self.ended: list[str] = []
        self.stop_after, self.looks, self.fails = stop_after, looks, fails
        self.running = self.most = 0

    def __call__(self, cell: Cell, of: Study) -> "FakeProcess":
        if len(self.names) == self.stop_after:
            raise KeyboardInterrupt
        missing = [
            other.name for other in study.needs(cell, study.cells_of(of.settings)) if not of.is_done(other)
        ]
        assert missing == [], f"{cell.name} was begun before what it needs"
        self.names.append(cell.name)
        self.running += 1
        self.most = max(self.most, self.running)
        return FakeProcess(self, cell, of, int(self.looks * number_of(cell.name)))


class FakeProcess:
    def __init__(self, fake: Fake, cell: Cell, of: Study, looks: int):
        self.fake, self.cell, self.of, self.looks = fake, cell, of, looks
        self.terminated = False

    def poll(self) -> int | None:
        self.looks -= 1
        if self.looks >= 0:
            return None
        self.fake.running -= 1
        self.fake.ended.append(self.cell.name)
        self.of.place(self.cell).mkdir(parents=True, exist_ok=True)
        if self.cell.name in self.fake.fails:
            (self.of.place(self.cell) / "log.txt").write_text("Traceback\nValueError: no luck\n")
            return 1
        result = dict(seconds=60.0, rows=rows_of(self.cell))
        tracking.write_json(self.of.place(self.cell) / "result.json", result)
        return 0

    def terminate(self) -> None:
        self.terminated = True

    def wait(self) -> int:
        assert self.terminated
        return 1


def command(monkeypatch, *flags, start=None) -> int:
    """Returns: the exit code."""
    monkeypatch.setattr("sys.argv", ["study.py", *map(str, flags)])
    try:
        tracking.run(partial(study.main, start or Fake()), ValueError, RuntimeError)
    except SystemExit as stop:
        return stop.code
    return 0


def page_of(folder: str) -> dict[str, bytes]:
    files = [Path(folder) / "study.md", *sorted((Path(folder) / "results").iterdir())]
    return {file.name: file.read_bytes() for file in files}


def test_a_stopped_study_goes_on(monkeypatch, capsys):
    """Stopped after one cell, and again after ten: no cell is done twice, and the page has the same bytes."""
    whole, *parts = Fake(), Fake(stop_after=1), Fake(stop_after=10), Fake()
    assert command(monkeypatch, "--folder", "a", *FLAGS, "--workers", 1, start=whole) == 0
    codes = [command(monkeypatch, "--folder", "b", *FLAGS, "--workers", 1, start=part) for part in parts]
    assert codes == [130, 130, 0]
    assert (
        "error: interrupted; what was saved before is kept, the same command goes on"
        in capsys.readouterr().err
    )
    assert [name for part in parts for name in part.names] == whole.names
    assert (
        len(set(whole.names))
        == len(whole.names)
        == len(study.cells_of(study.read_settings(Path("a"))["settings"]))
    )
    assert page_of("a") == page_of("b")
    again = Fake()
    assert command(monkeypatch, "--folder", "b", *FLAGS, start=again) == 0 and again.names == []


def test_the_number_of_workers_changes_no_row(monkeypatch):
    """Two processes that end in another order than they began."""
    one, two = Fake(), Fake(looks=9)
    assert command(monkeypatch, "--folder", "a", *FLAGS, "--workers", 1, start=one) == 0
    assert command(monkeypatch, "--folder", "b", *FLAGS, "--workers", 2, start=two) == 0
    assert (one.most, two.most) == (1, 2)
    assert sorted(one.ended) == sorted(two.ended) and one.ended != two.ended
    assert page_of("a") == page_of("b")


def test_a_process_that_runs_is_ended_with_the_study(monkeypatch):
    fake = Fake(looks=10**6, stop_after=1)
    processes = []

    def start(cell, of):
        processes.append(fake(cell, of))
        return processes[-1]

    assert command(monkeypatch, *FLAGS, "--workers", 2, start=start) == 130
    assert [process.terminated for process in processes] == [True]


def test_a_cell_that_fails_stops_only_what_needs_it(monkeypatch, capsys):
    bad = f"policy.{GAME}.held-out.self.1"
    fake = Fake(fails=(bad,))
    assert command(monkeypatch, *FLAGS, start=fake) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(
        f"error: 1 of the study's cells failed, first {bad}: ValueError: no luck; see study/cells"
    )
    assert {name.split(".")[0] for name in fake.names if "held-out" in name} == {"policy"}
    assert len([name for name in fake.names if "few-shot" in name]) == 8
    again = Fake()
    assert command(monkeypatch, *FLAGS, start=again) == 0
    assert not set(again.names) & (set(fake.names) - {bad}) and bad in again.names


# ---- bad input


def saved_study(folder: str, **content) -> None:
    Path(folder).mkdir()
    settings = dict(Settings().__dict__) | {"games": [GAME]}
    (Path(folder) / "study.json").write_text(json.dumps(dict(settings=settings, machine="m") | content))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--games", "Chess"), "--games: no game Chess: choose from StagHunt-v0, "),
        (("--methods", "magic"), "invalid choice 'magic'"),
        (("--boards", 1), "--boards: must be at least 2, got 1"),
        (("--workers", -1), "--workers: must be at least 0, got -1"),
        (("--seeds", -1), "--seeds: must be at least 0, got -1"),
        (("--page", "docs"), "study: no study there: begin one with python -m benchmarks.study"),
        (("--folder", "full"), "full: not a study's folder, and not empty: name another --folder"),
        (
            ("--folder", "other"),
            f"other: a study with --games {GAME}, here it is StagHunt-hidden-v0 {GAME}: name",
        ),
        (
            ("--folder", "other", "--page", "docs"),
            "other: no agent is judged yet: go on with the study first",
        ),
        (
            ("--folder", "damaged"),
            "damaged/study.json: damaged, or of another version: name another --folder",
        ),
        (
            ("--folder", "other", "--cell", "x"),
            f"--cell: no cell x in other: choose from vae.{GAME}, rivals.{GAME}",
        ),
    ],
)
def test_bad_input_is_one_line(flags, message, monkeypatch, capsys):
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    saved_study("other")
    saved_study("damaged", settings=[1])
    fake = Fake()
    assert command(monkeypatch, *flags, start=fake) == 2
    error = capsys.readouterr().err
    assert message in error and error.strip().count("\n") == 0, error
    assert fake.names == []


def test_two_studies_in_one_folder_are_refused(monkeypatch, capsys):
    Path("study").mkdir()
    with FileLock("study/.lock"):
        assert command(monkeypatch, *FLAGS) == 2
    assert "study: another process is training this run; wait until it ends" in capsys.readouterr().err


# ---- what a cell does


def test_an_agent_is_trained_and_judged(monkeypatch):
    """Its flags, and its rows: the returns of its episodes, and from the second on the mean of the boards' means."""
    settings = Settings(games=(GAME,), boards=6, episodes=3, steps=100, seeds=(7,))
    of = Study(Path("s"), settings)
    run_args = hop_ppo.Args(env_id=GAME, team_episodes=3)
    rules, _ = hop_ppo.load_rules(run_args)
    judge = hop_ppo.Evaluator(run_args, rules, None, None)
    agent = hop_ppo.make_agent("objects", rules, 0)
    runs = []
    monkeypatch.setattr(study, "run", lambda *flags: runs.append(" ".join(map(str, flags))) or "folder")
    monkeypatch.setattr(study, "load", lambda folder: (agent, judge))
    study.work(f"agent.{GAME}.few-shot.none.7", of)
    found = of.result(Cell("agent", GAME, "few-shot", "none", 7))
    common = f"--env-id {GAME} --gamma 1.0 --seed 7 --total-timesteps"
    short = "--eval-boards 32 --plan-boards 2"
    assert runs == [f"{common} 100 --num-envs 512 --team-episodes 3 --co-players mixed --om none {short}"]
    rows = pd.DataFrame(found["rows"])
    assert list(dict.fromkeys(rows.team)) == ["mixed", "1ND", "1FIX", "1RANDOM"]
    earned = judge.play(agent, "1FIX", hop_ppo.HIDDEN_FINAL_SEED, 6, 3)["learner"]  # [3, 6]
    own = rows[rows.team == "1FIX"].iloc[0]
    late = earned[1:].mean(0)
    assert own["mean"] == pytest.approx(late.mean(), rel=1e-6)
    assert own.mean_ci95 == pytest.approx(1.96 * late.std(ddof=1) / 6**0.5, rel=1e-5)
    np.testing.assert_allclose([own[f"episode{i}"] for i in (1, 2, 3)], earned.mean(1), rtol=1e-6)
    study.train_agent(Cell("agent", GAME, "self-play", "none", 7), of)
    assert runs[-1] == f"{common} 50 --num-envs 256 --team-episodes 3 --co-players self --om none {short}"


def test_a_process_does_its_cell(monkeypatch):
    """Its command line is that of a cell, and what it prints stands in the cell's folder."""
    saved_study("other")
    of = Study(Path("other"), study.read_settings(Path("other"))["settings"])
    started, worked = [], []
    monkeypatch.setattr(study.subprocess, "Popen", lambda command, **pipes: started.append((command, pipes)))
    cell = Cell("rivals", GAME)
    study.start_process(cell, of)
    ((words, pipes),) = started
    assert words[1:3] == ["-m", "benchmarks.study"]
    assert Path(pipes["stdout"].name) == of.place(cell) / "log.txt" and pipes["stderr"] == pipes["stdout"]
    monkeypatch.setattr(study, "work", lambda name, of: worked.append((name, of)))
    assert command(monkeypatch, *words[3:]) == 0
    assert worked == [(cell.name, of)]


def test_the_order_of_a_study():
    """Each game's population, responses and agents; an oracle knows nothing of partners that were held out."""
    cells = study.cells_of(study.FULL)
    assert len({cell.name for cell in cells}) == len(cells)
    assert list(dict.fromkeys(cell.game for cell in cells))[:2] == list(Settings.games)
    held_out = [cell for cell in cells if cell.partners == "held-out"]
    assert {cell.game for cell in held_out} == set(Settings.games)
    counts = {kind: sum(cell.kind == kind for cell in held_out) for kind in ("policy", "response", "agent")}
    assert counts == dict(policy=2 * 16, response=2 * 8, agent=2 * 5 * 5)
    assert not any(cell.method == "oracle" for cell in held_out)
    twice = study.settings_of(study.Args(seeds=(2, 1, 2), games=(GAME, GAME)))
    assert (twice.seeds, twice.games) == ((2, 1), (GAME,)), "no cell is there twice"
    assert set(Settings.games) <= set(hop_ppo.REGISTERED) and set(study.FULL.games) == set(hop_ppo.REGISTERED)


def test_who_uses_which_vae():
    """Among policies that learned: one of their own games. Nothing is trained that nobody needs."""
    cells = study.cells_of(Settings())
    for partners in ("few-shot", "held-out"):
        agents = [cell for cell in cells if (cell.kind, cell.partners) == ("agent", partners)]
        for agent in agents:
            used = [cell.kind for cell in study.needs(agent, cells) if cell.kind in ("vae", "goals")]
            kind = "goals" if partners == "held-out" else "vae"
            assert used == ([kind] if agent.method in ("latent", "belief") else []), agent
    (own,) = [cell for cell in cells if (cell.kind, cell.game) == ("goals", GAME)]
    assert {cell.kind for cell in study.needs(own, cells)} == {"policy"}
    only = study.cells_of(Settings(partners=("held-out",)))
    assert {cell.kind for cell in only} == {"rivals", "policy", "goals", "response", "agent"}
    blind = study.cells_of(Settings(methods=("none", "gru")))
    assert not {"vae", "goals"} & {cell.kind for cell in blind}


def test_a_study_fits_an_hour_on_two_cores():
    """By the estimate."""
    settings = Settings()
    assert sum(study.estimate(cell, settings) for cell in study.cells_of(settings)) / 2 < 60 * 60


@pytest.mark.parametrize("flags", [(), ("--full",), FLAGS, ("--full", "--seeds", "1", "2", "--steps", "9")])
def test_the_page_names_the_command(flags):
    settings = study.settings_of(tracking.parse_args(study.Args, "", list(flags)))
    words = study.command_of(settings).split()
    assert words[:3] == ["python", "-m", "benchmarks.study"]
    assert study.settings_of(tracking.parse_args(study.Args, "", words[3:])) == settings


# ---- the page


def make_rows(partners: str, values: dict[tuple[str, int, str], tuple[float, float]]) -> pd.DataFrame:
    """values: of method, seed, team: the mean of episode 1, and from the second on."""
    rows = []
    for (method, seed, team), (first, late) in values.items():
        head = dict(game="g", partners=partners, method=method, seed=seed, team=team)
        rows.append(head | dict(mean=late, mean_ci95=0.25, episode1=first, episode2=late))
    return pd.DataFrame(rows)


def test_a_table_by_hand():
    """gru 2 and 4, none 1 and 2: the difference is -1 and -2, -1.5 ± 12.706 x 0.5."""
    values = {
        ("none", 1, "mixed"): (0.5, 1.0),
        ("none", 2, "mixed"): (1.5, 2.0),
        ("gru", 1, "mixed"): (2.0, 2.0),
        ("gru", 2, "mixed"): (3.0, 4.0),
        ("none", 1, "1ND"): (0.0, 7.0),
        ("none", 2, "1ND"): (0.0, 8.0),
    }
    text = study_page.table_of_game(make_rows("few-shot", values), ["none", "gru", "oracle"], "few-shot")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[0] == ["", "episode 1", "2 on", "± seeds", "± boards", "over gru, paired", "1ND"]
    assert lines[2] == ["none", "1.000", "1.500", "6.353", "0.250", "-1.500 ± 6.353", "7.500"]
    assert lines[3] == ["gru", "2.500", "3.000", "12.706", "0.250", "", ""]
    assert len(lines) == 4, "no row of a method without runs"


def test_shares_of_the_best_response_by_hand():
    """Partners on which the best response earns 4 and 10: 3 and 9 are 75% and 90%, 82.5% on average."""
    values = {("best response", 1, f"held-out/{k}"): (1.0, best) for k, best in enumerate((4.0, 10.0))}
    values |= {("belief", 1, f"held-out/{k}"): (1.0, mean) for k, mean in enumerate((3.0, 9.0))}
    text = study_page.table_of_game(make_rows("held-out", values), ["belief"], "held-out")
    cells = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert cells == ["belief", "1.000", "6.000", "", "0.250", "", "82.5%", "", "75.0%"]


def test_scores_by_hand():
    """Random play earns 1, the oracle 4 and 6: the best is 5, and 3 scores 0.5. Teams that random play does well with, and
    those with RANDOM, are not counted."""
    values = {("random", 0, team): (0.0, 1.0) for team in ("mixed", "1RANDOM")} | {
        ("random", 0, "1ND"): (0.0, 4.9)
    }
    for seed, mean in ((1, 4.0), (2, 6.0)):
        values |= {("oracle", seed, team): (0.0, mean) for team in ("mixed", "1ND", "1RANDOM")}
        values |= {("none", seed, team): (0.0, 3.0) for team in ("mixed", "1ND", "1RANDOM")}
    scored = study_page.normalised(make_rows("few-shot", values), "few-shot")
    assert set(scored.team) == {"mixed"}
    assert scored[scored.method == "none"].score.tolist() == [0.5, 0.5]
    assert scored[scored.method == "oracle"].score.tolist() == [0.75, 1.25]
    (row,) = study_page.iqm_rows(make_rows("few-shot", values), ["none"], ["few-shot"])
    assert (row["iqm"], row["low"], row["high"], row["tasks"], row["runs"]) == (0.5, 0.5, 0.5, 2, 2)


def test_a_page_of_a_part_says_so(monkeypatch):
    """Its links lead to files, and its figures are drawn."""
    drawn = []
    monkeypatch.setattr(
        study_page.figures, "save", lambda figure, path: drawn.append(figure) or Path(path).write_bytes(b"")
    )
    assert command(monkeypatch, *FLAGS, "--workers", 1, start=Fake(stop_after=20)) == 130
    assert command(monkeypatch, "--page", "docs") == 0
    page = Path("docs/study.md").read_text(encoding="utf-8")
    assert "20 of 41 cells: **not finished**" in page and "2026-01-01  a machine" in page
    for link in ("results/study.csv", "images/study_iqm.png", "images/study_few_shot.png"):
        assert f"]({link})" in page and (Path("docs") / link).is_file()
    assert drawn and all(isinstance(figure, Figure) for figure in drawn)
