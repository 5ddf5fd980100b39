"""hop_ppo.py on the games besides the default one, through its command line, with networks that are not trained."""

from dataclasses import asdict
from itertools import pairwise

import pandas as pd
import pytest
import torch
from hidden_game import call, newest
from PIL import Image
from saved import whole_checkpoint, write_run

import hop_ppo
import metrics.comparison
import pretrain_vae
import tracking
import train_world_model
from envs import make_rules, snowdrift
from tracking import figures, fit

RULES, _ = make_rules("Snowdrift-4x4-v0")
GAME = snowdrift.GAME
TINY = "--num-envs 8 --num-steps 6 --total-timesteps 96 --num-minibatches 2 --eval-every 1 --eval-boards 4 --plan-boards 2"
TINY += " --plan-simulations 4 --plan-samples 2"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with an untrained VAE and world model of the snowdrift in it."""
    folder = tmp_path_factory.mktemp("drifts")
    torch.manual_seed(0)
    saved = dict(game=GAME.metadata(), rules=asdict(RULES))
    vae = pretrain_vae.VAE(4, 4, RULES.horizon, kinds=1, goal_kinds=GAME.goal_kinds)
    vae = whole_checkpoint(pretrain_vae, vae, goals_trained=7, counts=[0] * 6, **saved)
    write_run(folder / "vae_ckpts/vae__1/dim16", vae)
    world = train_world_model.ObjectWorldModel(4, 4, [0.0, -4.0], kinds=1, leaves=False, public_pay=(6.0,))
    write_run(folder / "wm_ckpts/wm__1", whole_checkpoint(train_world_model, world, **saved))
    return folder


def play(monkeypatch, folder, *flags) -> int:
    """The script in `folder`; its evaluation with two teams, without pictures and without a choice of ticks."""
    standard_teams = hop_ppo.standard_teams
    adapt = hop_ppo.adapt
    with monkeypatch.context() as patch:
        patch.setattr(hop_ppo, "standard_teams", lambda *args: standard_teams(*args)[:2])
        patch.setattr(hop_ppo, "adapt", lambda *args: adapt(*args, episodes=2))
        patch.setattr(hop_ppo, "PLAN_BOARDS", 16)
        patch.setattr(hop_ppo.figures, "save", lambda *args: None)
        patch.setattr(hop_ppo.Evaluator, "film", lambda *args: None)
        patch.setattr(metrics.comparison, "best_switch", lambda *args: 4)
        return call(hop_ppo, folder, *TINY.split(), *flags)


@pytest.mark.parametrize(
    "flags",
    [
        ("--co-players", "1ND2FIX", "--om", "belief", "--plan", "--plan-fit", "1"),
        ("--real-ratio", "0.5", "--om", "latent", "--network", "cnn"),
        ("--co-players", "self", "--team-reward"),
    ],
)
def test_the_snowdrift_is_played(flags, workplace, monkeypatch, capsys):
    assert play(monkeypatch, workplace, "--env-id", "Snowdrift-4x4-v0", *flags) == 0, capsys.readouterr().err
    rows = pd.read_csv(newest(workplace / "ppo_ckpts") / "metrics_teams.csv")
    columns = ["length", "drifts", "tick"]
    assert (
        list(rows.columns[-3:]) == columns and rows["drifts"].between(0, 6).all() and rows["drifts"].sum() > 0
    )
    assert set(rows["policy"]) >= {"teams", "script", "random"} and ("plan" in set(rows["policy"])) == (
        "--plan" in flags
    )
    assert "script: where ND goes, waiting there until a tick, chosen on boards" in capsys.readouterr().out


def test_a_run_knows_its_game_and_rules(workplace, monkeypatch, capsys):
    """--evaluate and --oracle read them from the checkpoint."""
    flags = ("--env-id", "Snowdrift-4x4-v0", "--env-args", "cost=5", "blocks=1")
    assert play(monkeypatch, workplace, *flags, "--om", "oracle") == 0, capsys.readouterr().err
    run = newest(workplace / "ppo_ckpts")
    saved = hop_ppo.Args(**hop_ppo.load_agent(run)[1]["args"])
    assert hop_ppo.load_rules(saved)[0] == snowdrift.Rules(height=4, width=4, horizon=15, cost=5.0, blocks=1)
    assert play(monkeypatch, workplace, "--evaluate", run) == 0, capsys.readouterr().err
    before, after = (pd.read_csv(run / f"{stem}_teams.csv") for stem in ("metrics", "evaluate"))
    pd.testing.assert_frame_equal(after, before)
    assert play(monkeypatch, workplace, *flags[:2], "--env-args", "cost=2", "--oracle", run) == 2
    says = "needs --om oracle --env-id Snowdrift-4x4-v0 --env-args cost=2, this has --om oracle --env-id"
    assert says in capsys.readouterr().err


def test_a_small_stag_hunt_is_played_with_other_rules(tmp_path, monkeypatch):
    flags = ("--env-id", "StagHunt-4x4-v0", "--env-args", "hares=2", "--co-players", "1NS1NH1RANDOM")
    assert play(monkeypatch, tmp_path, *flags) == 0
    rows = pd.read_csv(newest(tmp_path / "ppo_ckpts") / "metrics_teams.csv")
    assert list(rows.columns[-3:]) == ["stags", "hares", "tick"] and rows["hares"].max() <= 2
    assert list(rows["team"].unique()) == ["1NS1NH1RANDOM", "3NS"]


def test_a_film_of_the_snowdrift_shows_its_planes(tmp_path, monkeypatch):
    """Four agents, and a drift a cell; each removal is named."""
    shown = []
    monkeypatch.setattr(figures, "play_page", lambda *args: shown.append(args) or Image.new("RGB", (4, 4)))
    args = hop_ppo.Args(env_id="Snowdrift-4x4-v0", om="oracle", team_episodes=1)
    agent = hop_ppo.make_agent("objects", RULES, 3)
    hop_ppo.Evaluator(args, RULES, None, None).film(agent, tmp_path / "film.gif")
    frame, strategies, labels, belief, event, _ = shown[0]
    assert belief == "", "an oracle believes nothing"
    assert frame["joint"].shape == (6, 4, 4) and frame["joint"].sum() == 4 + 6
    assert strategies == ["ND", "FIX", "RANDOM"] and event == ""
    assert labels == figures.BoardLabels(prey=("drift",), takes=("remove",), planes=("DRIFTS",))
    removals = [frame["joint"][5].sum() for frame, *_ in shown]
    assert [bool(event) for *_, event, _ in shown[1:]] == [b < a for a, b in pairwise(removals)], (
        "actions tell of each"
    )
    assert any("removed a drift: " in event for *_, event, _ in shown)


@pytest.mark.parametrize(
    ("env_args", "settings", "says"),
    [
        ((), dict(om="belief", vae="vae_ckpts/vae__1"), ""),
        (
            ("height=5",),
            dict(om="belief", vae="vae_ckpts/vae__1"),
            r"for boards of \(4, 4\), the game has \(5, 4\): name one of this size with --vae",
        ),
        (("height=5",), dict(real_ratio=0.5, co_players="self"), ""),
        (("cost=3",), dict(real_ratio=0.5, co_players="self"), "cost 4.0 where .* --env-args cost=3 --out"),
    ],
)
def test_networks_must_fit_the_board_and_the_rules(env_args, settings, says, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    args = hop_ppo.Args(env_id="Snowdrift-4x4-v0", env_args=env_args, **settings)
    rules, _ = hop_ppo.load_rules(args)
    if not says:
        assert any(hop_ppo.load_networks(args, rules))
        return
    with pytest.raises(tracking.UsageError, match=says):
        hop_ppo.load_networks(args, rules)


def test_networks_of_the_snowdrift_are_refused_in_the_stag_hunt(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    rules, _ = make_rules("StagHunt-4x4-v0")
    for settings in (dict(om="latent"), dict(real_ratio=0.5, co_players="self")):
        with pytest.raises(
            tracking.UsageError, match="trained on Snowdrift-v0, the game is StagHunt-v0: name"
        ):
            hop_ppo.load_networks(hop_ppo.Args(**settings), rules)


def test_what_a_capture_pays_those_who_take_part():
    assert fit.capture_totals(RULES) == {-4.0}
    assert fit.capture_totals(make_rules("StagHunt-v0")[0]) == {10.0, 1.0}
    assert fit.capture_totals(make_rules("StagHunt-hidden-v0")[0]) == {15.0, 1.0}


def test_the_offline_file_must_be_of_the_game(tmp_path):
    from data.collect import Args as CollectArgs
    from data.collect import collect
    from data.trajectories import save_arrays

    save_arrays(tmp_path / "hunt.npz", collect(CollectArgs(samples=600)).arrays())
    args = hop_ppo.Args(real_ratio=0.0, data=str(tmp_path / "hunt.npz"))
    expected = r"hunt.npz: expected episodes of Snowdrift-v0, found StagHunt-v0: use --env-id StagHunt-v0, or"
    with pytest.raises(hop_ppo.DataError, match=expected):
        hop_ppo.offline_starts(args, RULES)
