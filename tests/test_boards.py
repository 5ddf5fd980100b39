"""boards.py: real and imagined boards of the hidden game are alike, and go on after a restart as if nothing had happened."""

import sys

import pytest
import torch
from worlds import TrueWorld

import tracking
import train_world_model
from boards import Imagined, Real, sample, sights
from data import DataError
from data.collect import Args as CollectArgs
from data.collect import collect
from data.trajectories import save_arrays
from envs import Rules
from train_world_model import load_world_model

# As StagHunt-hidden-v0, on a board where all captures are soon seen.
HIDDEN = Rules(height=4, width=4, blocks=1, hunters=3, stags=1, hares=1, hunters_needed=3, stag_reward=15.0,
               end_after_first_hunt=1, horizon=25)  # fmt: skip


@pytest.fixture(scope="module")
def learned_world(tmp_path_factory):
    """A world model trained for a few seconds on the hidden game."""
    folder = tmp_path_factory.mktemp("learned")
    data = collect(CollectArgs(samples=8000, strategies=("NS", "NH", "RANDOM"), rules=HIDDEN))
    save_arrays(folder / "hidden.npz", data.arrays())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train_world_model.py", "--data", "hidden.npz", "--epochs", "12"])
        tracking.run(train_world_model.main, DataError)
    return load_world_model(next((folder / "wm_ckpts").iterdir()))[0]


def play_at_random(game) -> dict[str, torch.Tensor]:
    """Boards played to their ends by hunters that walk at random, but mostly hunt the stag when they stand on it: of each
    board its length, and the stags and hares captured."""
    length, captured = torch.zeros(game.boards), torch.zeros(game.boards, game.rules.prey)
    while not game.ended.all():
        live = ~game.ended
        legal = sights(game, torch.zeros(*game.who.shape, 0))[1].legal
        game.step(sample((legal * torch.tensor([1.0, 1, 1, 1, 1, 20, 1]) + 1e-20).log()))
        length += live
        captured[live] = (game.prey == game.rules.cells)[live].float()
    return dict(length=length, stags=captured[:, 0], hares=captured[:, 1])


@pytest.mark.parametrize("world", ["exact", pytest.param("learned", marks=pytest.mark.slow)])
def test_imagined_hidden_game_has_the_lengths_and_captures_of_the_real_one(world, request):
    torch.manual_seed(1)
    model = TrueWorld(HIDDEN) if world == "exact" else request.getfixturevalue("learned_world")
    real = Real(1500, HIDDEN, "self", seed=1)
    imagined = Imagined(1500, HIDDEN, "self", model, None)
    imagined.begin(*real.starts)
    expected, found = play_at_random(real), play_at_random(imagined)
    assert expected["stags"].mean() > 0.02 and expected["hares"].mean() > 0.3
    for key in expected:
        difference = found[key].mean() - expected[key].mean()
        standard_error = (found[key].var() / 1500 + expected[key].var() / 1500).sqrt()
        assert abs(float(difference)) < 3 * float(standard_error), key
