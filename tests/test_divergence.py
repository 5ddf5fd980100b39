"""Training that diverges: one line, and what was saved stays as it was."""

import math
import sys

import pytest
import torch

import hop_ppo
import pretrain_vae
import tracking
import train_world_model
from data import DataError
from data.collect import Args as CollectArgs
from data.collect import collect
from data.trajectories import save_arrays

SCRIPTS = {
    "pretrain_vae": (pretrain_vae, "epoch 0", ["--data", "small.npz", "--epochs", "2"]),
    "train_world_model": (train_world_model, "epoch 0", ["--data", "small.npz", "--epochs", "2"]),
    "hop_ppo": (
        hop_ppo,
        "update 1",
        ["--num-envs", "16", "--num-steps", "8", "--eval-every", "1", "--eval-boards", "4"],
    ),
}


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A layer after a step of Adam."""
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return layer, optimizer


def test_finite_training_goes_on():
    tracking.check_finite({"total": 3.0}, trained()[1], "epoch 0")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(value):
    says = rf"^epoch 3: training has diverged \(kl {value}\): try a smaller --learning-rate; what was saved"
    with pytest.raises(tracking.UsageError, match=says):
        tracking.check_finite({"moa": 1.0, "kl": value}, trained()[1], "epoch 3")


def test_weights_that_the_last_step_has_spoilt():
    """The loss was finite before it."""
    layer, optimizer = trained()
    with torch.no_grad():
        layer.bias[0] = math.nan
    with pytest.raises(tracking.UsageError, match="weights that are not finite"):
        tracking.check_finite({"total": 3.0}, optimizer, "update 7")


def test_moments_that_are_not_finite():
    """Adam would divide by them, and stand still for ever."""
    layer, optimizer = trained()
    optimizer.state[layer.weight]["exp_avg_sq"][0, 0] = math.inf
    with pytest.raises(tracking.UsageError, match="update 7: training has diverged"):
        tracking.check_finite({"total": 3.0}, optimizer, "update 7")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_diverges_keeps_its_last_checkpoint(name, tmp_path, monkeypatch, capsys):
    script, moment, flags = SCRIPTS[name]
    monkeypatch.chdir(tmp_path)
    save_arrays("small.npz", collect(CollectArgs(samples=600)).arrays())
    monkeypatch.setattr(sys, "argv", [name, *flags, "--learning-rate", "1e30"])
    with pytest.raises(SystemExit) as stop:
        tracking.run(script.main, DataError)
    errors = capsys.readouterr().err.split("error: ")[1:]
    assert stop.value.code == 2 and len(errors) == 1 and errors[0].count("\n") == 1
    assert errors[0].startswith(f"{moment}: training has diverged")
    (path,) = tmp_path.rglob("last.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert all(weight.isfinite().all() for weight in checkpoint["model"].values())
    assert not list(tmp_path.rglob("best.pt"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_rate_that_float32_cannot_hold_is_refused(name, tmp_path, monkeypatch, capsys):
    script, _, flags = SCRIPTS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *flags, "--learning-rate", "1e38"])
    with pytest.raises(SystemExit) as stop:
        tracking.run(script.main, DataError)
    assert stop.value.code == 2 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == "error: --learning-rate: must be at most 1e+30, got 1e+38\n"
