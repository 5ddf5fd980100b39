"""benchmarks/scale.py: exponents, what is timed, and the table."""

import math
import sys
import typing

import numpy as np
import pandas as pd
import pytest

import tracking
from benchmarks import scale
from tests.worlds import TrueWorld


def test_exponents_are_of_the_upper_half():
    sizes = np.array([1, 2, 4, 8, 16, 32, 64])
    costs = np.where(sizes < 8, 100.0, 3.0 * sizes**1.5)
    slope, intercept = scale.fit_exponent(sizes, costs)
    assert slope == pytest.approx(1.5) and intercept == pytest.approx(math.log(3.0))
    assert scale.fit_exponent(np.array([1, 2]), np.array([8.0, 4.0]))[0] == pytest.approx(-1)
    assert math.isnan(scale.fit_exponent(sizes, costs * (sizes < 64))[0])
    assert math.isnan(scale.fit_exponent(sizes[:1], costs[:1])[0])


def test_a_bend_is_a_change_of_slope():
    curve = pd.DataFrame(dict(size=[1, 2, 8], ms=[5.0, 5.0, 80.0]))
    found = scale.slopes(curve, "ms")
    assert math.isnan(found[0]) and found[1:] == pytest.approx([0.0, 2.0])


def test_units_of_the_warm_up_are_not_counted(monkeypatch):
    """A unit takes 2 s, of the warm-up 100 s."""
    clock, units = [0.0], []

    def unit():
        units.append(1)
        clock[0] += 100.0 if len(units) <= 3 else 2.0

    monkeypatch.setattr(scale.time, "process_time", lambda: clock[0])
    assert scale.time_units(scale.Work(unit, 3, 5), 7.0) == 2.0 and len(units) == 3 + 5
    assert scale.time_units(scale.Work(unit, 0, 1), 7.0) == 2.0 and len(units) == 8 + 4


def test_more_boards_and_other_boards_are_played():
    for what, size in (("boards", 16), ("hunters", 2), ("side", 4)):
        rules, boards = scale.rules_of(what, size)
        shape = dict(boards=boards, hunters=rules.hunters, side=rules.height)
        assert shape[what] == size and rules.height == rules.width
    found = scale.measure_here(dict(what="boards", curve="game", size=16, quick=True))
    assert found["ms"] > 0 and found["peak"] >= found["base"] > 0


def test_a_unit_of_ppo_is_a_rollout_and_its_update(monkeypatch):
    batches = []
    monkeypatch.setattr(scale.hop_ppo, "make_optimizer", lambda agent, args: None)
    monkeypatch.setattr(scale.hop_ppo, "update", lambda agent, optimizer, batch, *_: batches.append(batch))
    work = scale.ppo(dict(what="boards", size=20))
    work.unit()
    work.unit()
    assert len(batches) == 2 and all(20 < len(batch.actions) <= 20 * 16 for batch in batches)


def test_boards_of_another_side_are_imagined_without_a_vae(monkeypatch, uncached_worlds):
    monkeypatch.setattr(scale.hop_ppo, "load_networks", lambda args, rules: (None, TrueWorld(rules)))
    monkeypatch.setattr(scale, "rules_of", lambda what, size: (scale.Rules(height=4, width=4, blocks=0), 8))
    work = scale.imagined(dict(what="side", size=4, vae="", world_model=""))
    for _ in range(40):  # past the horizon of 35: boards begin again
        work.unit()
    assert work.warm_up == work.repeats == 35


def test_data_is_collected_loaded_and_seen_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    point = dict(what="data", size=900, quick=True)
    for curve in scale.CURVES["data"]:
        assert scale.measure_here(point | dict(curve=curve))["ms"] > 0
    seen = []
    take = scale.pretrain_vae.Batches.take

    def count(self, groups, symmetry):
        seen.extend(groups)
        return take(self, groups, symmetry)

    monkeypatch.setattr(scale.pretrain_vae.Batches, "take", count)
    scale.batches(point).unit()
    assert sorted(seen) == list(range(len(scale.load(point).start)))


def test_what_processes_print_is_found_and_their_failure_shown(tmp_path, monkeypatch):
    code = "import json, sys; size = json.loads(sys.argv[1])['size']; assert size, 'no size'; "
    code += """print('loading'); print(json.dumps(dict(found=dict(ms=size))))"""
    monkeypatch.setattr(scale, "CHILD", code)
    assert scale.start(dict(curve="game", size=5), tmp_path, []) == [dict(ms=5)]
    with pytest.raises(RuntimeError, match=r"(?s)game, 0: .*no size"):
        scale.start(dict(curve="game", size=0), tmp_path, [])


def test_a_unit_of_two_processes_is_the_difference_of_two_runs(tmp_path, monkeypatch):
    """Ten updates: (130 - 30) / 10 of the process that uses most, (230 - 50) / 10 of both."""

    def start(point, folder, launcher):
        assert launcher[-2:] == ["--nproc-per-node", "2"]
        steps = int(point["flags"][point["flags"].index("--total-timesteps") + 1])
        costs = {2: (20.0, 30.0), 12: (100.0, 130.0)}[steps // (1024 * 16)]
        return [dict(base=1, peak=int(cost), ms=cost, wall_ms=2 * cost) for cost in costs]

    monkeypatch.setattr(scale, "start", start)
    point = dict(what="processes", curve="hop_ppo.py", size=2, quick=False)
    row = scale.measure(point, tmp_path)
    assert (row["ms"], row["total_ms"], row["wall_ms"]) == (10.0, 18.0, 20.0)


def test_every_choice_has_curves_and_sizes():
    assert set(scale.SIZES) == set(scale.QUICK) == set(typing.get_args(scale.What))
    for what in scale.SIZES:
        points = scale.make_points(scale.Args(what, vae="v", world_model="w"))
        curves = scale.SCRIPTS if what == "processes" else scale.CURVES[what]
        expected = [(size, curve) for size in scale.SIZES[what] for curve in curves]
        assert [(point["size"], point["curve"]) for point in points] == expected


def test_the_table_and_the_figure(tmp_path, monkeypatch, capsys):
    """Time is linear, memory the square root."""

    def measure(point, folder):
        size = point["size"]
        return dict(what="data", curve=point["curve"], size=size, ms=2.0 * size, mb=size**0.5)

    monkeypatch.setattr(scale, "measure", measure)
    flags = ["--what", "data", "--quick", "--only", "loaded", "batches", "--out", str(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", ["scale", *flags])
    scale.main()
    table = pd.read_csv(tmp_path / "x_data.csv")
    assert table["curve"].tolist() == ["loaded"] * 3 + ["batches"] * 3
    assert table["size"].tolist() == [1000, 2000, 4000] * 2
    np.testing.assert_allclose(table["ms_exponent"], 1.0, atol=1e-5)
    np.testing.assert_allclose(table["mb_exponent"], 0.5, atol=1e-5)
    assert (tmp_path / "x_data.png").stat().st_size > 1000
    assert "python -m benchmarks.scale --what data --quick" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(only=("x",)), "--only: no curve x of --what data: choose from collected, loaded, batches"),
        (dict(sizes=(10, 0)), "--sizes: must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(flags, message):
    with pytest.raises(tracking.UsageError, match=message):
        scale.make_points(scale.Args("data", **flags))
