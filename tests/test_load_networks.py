"""The VAE and the world model of a run: which are loaded, and which are refused."""

from dataclasses import asdict, replace

import pytest
from hidden_game import HIDDEN, TINY_HIDDEN, call, newest, write_networks

import hop_ppo
import tracking
from metrics.comparison import compare

IMAGINED_SELF_PLAY = dict(real_ratio=0.0, co_players="self")  # needs a world model, and no VAE


# ---- which are loaded


@pytest.mark.parametrize(
    "settings",
    [dict(om="belief"), dict(real_ratio=0.5), dict(plan=True), dict(plan=True, co_players="self")],
)
def test_goal_heads_must_be_trained_where_they_are_used(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(write_networks(tmp_path, {"goals_trained": 0}))
    with pytest.raises(tracking.UsageError, match=r"vae__1: .*had no strategies.* name another with --vae"):
        hop_ppo.load_networks(hop_ppo.Args(**settings), HIDDEN)


@pytest.mark.parametrize(
    ("settings", "loads"),
    [
        (dict(om="latent"), "vae"),
        (dict(om="oracle"), ""),
        (dict(real_ratio=0.5, co_players="self"), "world"),
        (dict(plan=True, plan_model="rules"), "vae"),
        (dict(plan=True, co_players="self"), "vae world"),
    ],
)
def test_networks_that_are_loaded(settings, loads, tmp_path, monkeypatch):
    """z needs no goals; planning needs both networks, also of a self-play run, whose evaluation has scripted co-players."""
    monkeypatch.chdir(write_networks(tmp_path, vae={"goals_trained": 0} if settings.get("om") else None))
    vae, world = hop_ppo.load_networks(hop_ppo.Args(**settings), HIDDEN)
    assert (vae is not None, world is not None) == ("vae" in loads, "world" in loads)


# ---- trained on another game


@pytest.mark.parametrize(
    ("name", "value"),
    [("hunters_needed", 2), ("stag_reward", 6.0), ("hare_reward", 2.5), ("prey_moves", 0.5)],
)
def test_a_world_model_of_other_rules_is_refused(name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(write_networks(tmp_path, world={"rules": asdict(replace(HIDDEN, **{name: value}))}))
    wanted = getattr(HIDDEN, name)
    flags = f"--env-id StagHunt-v0 --env-args {name}={wanted:g} --out"
    says = f"wm__1: .*{name} {value} where StagHunt-v0 has {wanted}: collect with .*{flags}"
    with pytest.raises(tracking.UsageError, match=says):
        hop_ppo.load_networks(hop_ppo.Args(**IMAGINED_SELF_PLAY), HIDDEN)


def test_a_world_model_of_other_boards_is_accepted(tmp_path, monkeypatch, capsys):
    other = replace(HIDDEN, height=9, width=7, hunters=4, horizon=50, end_after_first_hunt=None)
    monkeypatch.chdir(write_networks(tmp_path, world={"rules": asdict(other)}))
    assert hop_ppo.load_networks(hop_ppo.Args(**IMAGINED_SELF_PLAY), HIDDEN)[1] is not None
    assert "not known" not in capsys.readouterr().out


def test_a_world_model_of_a_file_that_names_some_rules_only_is_refused(tmp_path, monkeypatch):
    """A user's own file need not name every rule: what it does not name cannot be checked off."""
    monkeypatch.chdir(write_networks(tmp_path, world={"rules": {"hunters_needed": 3, "prey_moves": 0.0}}))
    with pytest.raises(tracking.UsageError, match=r"wm__1: .*stag_reward None where StagHunt-v0 has 15.0"):
        hop_ppo.load_networks(hop_ppo.Args(**IMAGINED_SELF_PLAY), HIDDEN)


@pytest.mark.parametrize("world", [{}, {"rules": None}])
def test_only_rewards_are_checked_where_rules_are_not_known(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_networks(tmp_path, world=world))
    args = hop_ppo.Args(**IMAGINED_SELF_PLAY)
    hop_ppo.load_networks(args, HIDDEN)
    assert "wm__1: the rules of its data are not known" in capsys.readouterr().out
    says = r"captures pay \[1.0, 9.0\] in StagHunt-v0, \[1.0, 15.0\] in what"
    with pytest.raises(tracking.UsageError, match=says):
        hop_ppo.load_networks(args, replace(HIDDEN, stag_reward=9.0))


def test_rules_of_a_vae_that_differ_are_named(tmp_path, monkeypatch, capsys):
    """It may be used: its goal heads read boards, not rules."""
    learnt = asdict(replace(HIDDEN, stag_reward=10.0, horizon=35))
    monkeypatch.chdir(write_networks(tmp_path, vae={"goals_trained": 7, "rules": learnt}))
    hop_ppo.load_networks(hop_ppo.Args(om="belief"), HIDDEN)
    says = "in StagHunt-v0 these rules are not those of its data: horizon, stag_reward\n"
    assert says in capsys.readouterr().out


# ---- judged again


def test_a_self_play_run_is_judged_with_planning(tmp_path, monkeypatch):
    """--evaluate loads the networks, and plans where there are scripted co-players."""
    write_networks(tmp_path)
    results = []

    def report(self, agent, *rest):
        teams = ["self", "2NS"]
        results.append(compare(self.play, self.players(agent), HIDDEN, teams, 1, 2, 6))

    monkeypatch.setattr(hop_ppo, "load_rules", lambda args: (HIDDEN, 1))
    monkeypatch.setattr(hop_ppo.Evaluator, "report", report)
    flags = (*TINY_HIDDEN, "--total-timesteps", 240, "--plan-boards", 3, "--co-players", "self")
    assert call(hop_ppo, tmp_path, *flags) == 0
    run = newest(tmp_path / "ppo_ckpts")
    monkeypatch.setattr(hop_ppo, "PLAN_BOARDS", 16)
    flags = ("--evaluate", run, "--plan", "--plan-fit", 1, "--plan-simulations", 2, "--plan-samples", 1)
    assert call(hop_ppo, tmp_path, *flags) == 0
    assert "plan" not in results[0] and set(results[1]["plan"]) == {"2NS"}
