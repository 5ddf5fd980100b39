"""benchmarks/worth.py: what a game is worth to those who know the others, and how games are drawn."""

import sys

import numpy as np
import pytest

from benchmarks import worth
from envs import make_rules, snowdrift
from metrics.rivals import ScriptPolicy

RULES, _ = make_rules("Snowdrift-4x4-v0", ["agents=3", "drifts=2", "horizon=9"])


def make_trial(**settings) -> worth.Trial:
    return worth.Trial(RULES, "mixed", worth.Args(boards=40, **settings))


def test_scripts_by_brute_force():
    """One tick for all boards, and one for each number of ND, both the best on the boards of seed 2001."""
    trial = make_trial()
    switches = (0, 4, 8, None)
    before, after = (
        np.array([trial.earn(ScriptPolicy(RULES, switch), seed) for switch in switches])
        for seed in (2001, 4001)
    )
    pursuers, pursuers_after = trial.pursuers(2001), trial.pursuers(4001)
    assert set(pursuers) == {0, 1, 2} and (pursuers != pursuers_after).any()
    found = trial.scripts(4001)
    np.testing.assert_array_equal(found["script"], after[before.mean(1).argmax()])
    for n in range(3):
        best = before[:, pursuers == n].mean(1).argmax()
        np.testing.assert_array_equal(
            found["script_told"][pursuers_after == n], after[best, pursuers_after == n]
        )


def test_differences_are_paired(monkeypatch):
    """`oracle` earns 1 more on each board, so the gain has no spread, whatever the returns."""
    returns = np.array([1.0, 5.0, 3.0, 7.0])
    monkeypatch.setattr(worth.Trial, "learn", lambda self, om, updates: om)
    monkeypatch.setattr(worth.Trial, "earn", lambda self, policy, seed, om: returns + (om == "oracle"))
    monkeypatch.setattr(
        worth.Trial, "scripts", lambda self, seed: dict(script=returns - 2, script_told=returns + 3)
    )
    row = worth.judge_game(make_trial(), 4001, 1)
    assert (row["none"], row["oracle"], row["gain"], row["gain_ci95"], row["worth"]) == (
        4.0,
        5.0,
        1.0,
        0.0,
        0.25,
    )
    assert (row["none_over_script"], row["oracle_over_script_told"]) == (2.0, -2.0)
    assert row["none_ci95"] == pytest.approx(1.96 * returns.std(ddof=1) / 2)


def test_games_of_a_sweep_can_be_played():
    games = worth.draw_games("Snowdrift-v0", worth.Args(games=30))
    assert len(games) == 30 == len({tuple(game.values()) for game in games})
    for game in games:
        rules = worth.make_trial("Snowdrift-v0", tuple(game["env_args"].split()), "mixed", worth.Args()).rules
        assert isinstance(rules, snowdrift.Rules) and game["co_players"] in worth.teams_of(rules)
    assert worth.teams_of(snowdrift.Rules()) == ["mixed", "2ND1FIX", "1ND2FIX"]
    assert worth.teams_of(snowdrift.Rules(agents=3)) == ["mixed", "1ND1FIX"]
    assert worth.teams_of(snowdrift.Rules(agents=2)) == ["mixed"]
    with pytest.raises(
        ValueError, match="no settings to draw from for StagHunt-4x4-v0: choose from StagHunt-v0, Snow"
    ):
        worth.sweep(worth.Args(env_id="StagHunt-4x4-v0"))


def test_a_sweep_reports_the_best_on_other_boards(monkeypatch, tmp_path, capsys):
    """Two of eight games are trained on again, the best among those drawn."""
    monkeypatch.setattr(
        worth,
        "judge_game",
        lambda trial, seed, updates, scripts: dict(worth=trial.rules.cost, updates=updates, scripts=scripts),
    )
    monkeypatch.setattr(worth, "machine", lambda: "")
    sizes = dict(games=8, best=2, updates=5, first_updates=3, out=tmp_path / "w.csv")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    monkeypatch.setattr(sys, "argv", ["worth", "--sweep", *flags])
    worth.main()
    rows = worth.pd.read_csv(tmp_path / "w.csv")
    drawn, chosen = rows[:8], rows[8:]
    assert (
        drawn["worth"].is_monotonic_increasing
        and set(drawn["seed"]) == {2001}
        and set(drawn["updates"]) == {3}
    )
    assert list(chosen["worth"]) == list(drawn["worth"][-2:])
    assert set(chosen["seed"]) == {4001} and chosen["scripts"].all() and not drawn["scripts"].any()
