"""`newest` in place of a run's folder, and the names of runs that it is found by."""

import os
import re
from pathlib import Path

import pytest
from commands import run_script

import hop_ppo
import pretrain_vae
import test_obs_reward_model as judge
import tracking
import train_world_model

NAMES = {
    "ppo__1000": "best.pt",  # as runs were called before
    "ppo__StagHunt-v0__belief__1__1001": "best.pt",
    "ppo__StagHunt-v0__oracle__7__999": "best.pt",
    "ppo__Snowdrift-v0__oracle__1__1003": "best.pt",
    "ppo__StagHunt-v0__none__2__1002": "last.pt",  # stopped before its first evaluation
}


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    for name, checkpoint in NAMES.items():
        (tmp_path / "ppo_ckpts" / name).mkdir(parents=True)
        (tmp_path / "ppo_ckpts" / name / checkpoint).touch()
    os.utime(tmp_path / "ppo_ckpts" / "ppo__1000", (2e9, 2e9))  # judged just now
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_newest_is_the_run_that_was_started_last(runs):
    named = tracking.named_run("newest", "ppo_ckpts", "hop_ppo.py", pattern="*__StagHunt-v0__*")
    assert named == "ppo_ckpts/ppo__StagHunt-v0__belief__1__1001"
    named = tracking.named_run("newest", "ppo_ckpts", "hop_ppo.py", "last.pt")
    assert named == "ppo_ckpts/ppo__StagHunt-v0__none__2__1002"
    assert tracking.newest_run("ppo_ckpts", "hop_ppo.py").name == "ppo__Snowdrift-v0__oracle__1__1003"
    for folder in ("", "ppo_ckpts/ppo__1000", "./newest"):
        assert tracking.named_run(folder, "ppo_ckpts", "hop_ppo.py") == folder


def test_the_newest_oracle_is_of_the_game_and_knows_who_they_are(runs, monkeypatch):
    asked = []
    monkeypatch.setattr(hop_ppo, "load_agent", lambda folder: (None, dict(args={"om": folder})))
    monkeypatch.setattr(hop_ppo.fit, "check_oracle", lambda folder, *_: asked.append(folder))
    args = hop_ppo.Args(oracle="newest")
    hop_ppo.check_oracle(args)
    assert asked == [args.oracle] == ["ppo_ckpts/ppo__StagHunt-v0__oracle__7__999"]
    with pytest.raises(
        tracking.UsageError, match=r"`python hop_ppo\.py --om oracle --env-id StagHunt-4x4-v0`"
    ):
        hop_ppo.check_oracle(hop_ppo.Args(oracle="newest", env_id="StagHunt-4x4-v0"))


@pytest.mark.parametrize(
    "script, flag, trains",
    [
        (pretrain_vae, "--evaluate", "pretrain_vae"),
        (pretrain_vae, "--resume", "pretrain_vae"),
        (train_world_model, "--resume", "train_world_model"),
        (judge, "--checkpoint", "train_world_model"),
        (hop_ppo, "--evaluate", "hop_ppo"),
        (hop_ppo, "--resume", "hop_ppo"),
        (hop_ppo, "--om=belief --vae", "pretrain_vae"),
        (hop_ppo, "--real-ratio=0 --co-players=self --world-model", "train_world_model"),
        (hop_ppo, "--oracle", "hop_ppo"),
    ],
)
def test_without_a_run_one_line_says_how_to_make_one(script, flag, trains, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_script(monkeypatch, script, *flag.split(), "newest") == 2
    error = capsys.readouterr().err
    assert re.match(rf"error: \w+_ckpts: no trained run there; train one with `python {trains}\.py", error)
    assert error.count("\n") == 1 and os.listdir(tmp_path) == []


def test_names_hold_no_letter_that_a_folder_cannot():
    assert tracking.name_run("mine", "StagHunt-v0", "none", 3) == "mine__StagHunt-v0__none__3"
    assert tracking.name_run("wm", 'C:/a b*?"<>|\\game', 1) == "wm__C--a-b-------game__1"
    assert len(tracking.name_run("x" * 999)) == 64
