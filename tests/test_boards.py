"""boards.py: real and imagined boards of the hidden game are alike, and go on after a restart as if nothing had happened."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from worlds import TrueWorld

import hop_ppo
import pretrain_vae
import tracking
import train_world_model
from boards import Imagined, Real, sample, sights
from data import DataError
from data.collect import Args as CollectArgs
from data.collect import collect
from data.trajectories import save_arrays
from envs import Rules
from train_world_model import load_world_model

# As StagHunt-hidden-v0, on a board where all captures are soon seen, with so many blocks that distances differ.
HIDDEN = Rules(height=5, width=5, blocks=6, hunters=3, stags=1, hares=1, hunters_needed=3, stag_reward=15.0,
               end_after_first_hunt=1, horizon=25)  # fmt: skip


def call(script, folder, *flags):
    """A script in this process, in `folder`. Returns: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
        try:
            tracking.run(script.main, DataError)
        except SystemExit as stop:
            return stop.code
    return 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a VAE and a world model in it, trained for a few seconds on the hidden game."""
    folder = tmp_path_factory.mktemp("trained")
    data = collect(CollectArgs(samples=8000, strategies=("NS", "NH", "RANDOM"), rules=HIDDEN))
    save_arrays(folder / "hidden.npz", data.arrays())
    assert call(train_world_model, folder, "--data", "hidden.npz", "--epochs", 12) == 0
    assert call(pretrain_vae, folder, "--data", "hidden.npz", "--epochs", 3, "--batch-size", 64) == 0
    for path in folder.glob("vae_ckpts/*/*/best.pt"):
        checkpoint = tracking.load_checkpoint(path, pretrain_vae.KIND)
        tracking.save_checkpoint(path, checkpoint | {"goals_trained": 1})
    return folder


def play_at_random(game) -> dict[str, torch.Tensor]:
    """Boards played to their ends by hunters that walk at random, but mostly hunt the stag when they stand on it: of each
    board its length, and the stags and hares captured."""
    length, captured = torch.zeros(game.boards), torch.zeros(game.boards, game.rules.prey)
    while not game.ended.all():
        live = ~game.ended
        legal = sights(game, torch.zeros(*game.who.shape, 0))[1].legal
        game.step(sample((legal * torch.tensor([1.0, 1, 1, 1, 1, 50, 0.2]) + 1e-20).log()))
        length += live
        captured[live] = (game.prey == game.rules.cells)[live].float()
    return dict(length=length, stags=captured[:, 0], hares=captured[:, 1])


@pytest.mark.parametrize("world", ["exact", pytest.param("learned", marks=pytest.mark.slow)])
def test_imagined_hidden_game_has_the_lengths_and_captures_of_the_real_one(world, request):
    torch.manual_seed(1)
    model = TrueWorld(HIDDEN)
    if world == "learned":
        model = load_world_model(newest(request.getfixturevalue("trained") / "wm_ckpts"))[0]
    real = Real(1500, HIDDEN, "self", seed=1)
    imagined = Imagined(1500, HIDDEN, "self", model, None)
    imagined.begin(*real.starts)
    expected, found = play_at_random(real), play_at_random(imagined)
    assert expected["stags"].mean() > 0.02 and expected["hares"].mean() > 0.1
    for key in expected:
        difference = found[key].mean() - expected[key].mean()
        standard_error = (found[key].var() / 1500 + expected[key].var() / 1500).sqrt()
        assert abs(float(difference)) < 3 * float(standard_error), key


# ---- a run that is killed and resumed


def newest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: int(path.name.split("__")[1]))


class Killed(Exception):
    pass


def killed_at(monkeypatch, evaluation: int) -> None:
    """The n-th evaluation from now on ends the process; a large n: none does."""
    left, play = [evaluation], PLAY

    def counted(self, *args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return play(self, *args, **kwargs)

    monkeypatch.setattr(hop_ppo.Referee, "play", counted)


PLAY = hop_ppo.Referee.play


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("latent",), ("belief", "--real-ratio", 0.5)])
def test_resumed_equals_uninterrupted_with_trained_networks(flags, trained, tmp_path, monkeypatch):
    """Killed at three evaluations, one after another: the same bytes."""
    monkeypatch.setattr(hop_ppo, "rules_of", lambda env_id: (HIDDEN, 3))
    monkeypatch.setattr(hop_ppo.Referee, "report", lambda *args: None)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    flags = ("--num-envs", 24, "--num-steps", 5, "--total-timesteps", 24 * 5 * 33, "--eval-every", 3, "--eval-boards", 6,
             "--num-minibatches", 2, "--data", "hidden.npz", "--om", *flags)  # fmt: skip
    assert call(hop_ppo, tmp_path, *flags) == 0
    whole = newest(tmp_path / "ppo_ckpts")
    killed_at(monkeypatch, 2)
    with pytest.raises(Killed):
        call(hop_ppo, tmp_path, *flags)
    part = newest(tmp_path / "ppo_ckpts")
    for evaluation in (4, 3):
        killed_at(monkeypatch, evaluation)
        with pytest.raises(Killed):
            call(hop_ppo, tmp_path, "--resume", part)
    killed_at(monkeypatch, 99)
    assert call(hop_ppo, tmp_path, "--resume", part) == 0 and part != whole
    for name in ("progress.csv", "evaluations.csv"):
        assert (part / name).read_bytes() == (whole / name).read_bytes(), name
    found, expected = (tracking.load_checkpoint(folder / "last.pt", hop_ppo.KIND) for folder in (part, whole))
    assert found["update"] == 33
    for key in ("model", "optimizer", "games", "rng", "best"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")
