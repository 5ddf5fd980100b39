"""A small hidden game, networks for it, and the scripts in this process."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from commands import run_script
from saved import whole_checkpoint, write_run

import pretrain_vae
import train_world_model
from data.collect import Args as CollectArgs
from data.collect import collect
from data.trajectories import save_arrays
from envs import Rules
from pretrain_vae import VAE
from train_world_model import ObjectWorldModel

# As StagHunt-hidden-v0, on a board where all captures are soon seen, with so many blocks that distances differ.
HIDDEN = Rules(
    height=5,
    width=5,
    blocks=6,
    hunters=3,
    stags=1,
    hares=1,
    hunters_needed=3,
    stag_reward=15.0,
    end_after_first_hunt=1,
    horizon=25,
)
TINY_HIDDEN = (
    "--num-envs",
    24,
    "--num-steps",
    5,
    "--num-minibatches",
    2,
    "--eval-every",
    3,
    "--eval-boards",
    6,
)


def call(script, folder: Path, *flags) -> int:
    """A script in this process, in `folder`. Returns: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run_script(patch, script, *flags)


def newest(folder: Path) -> Path:
    """Of two runs of the same second the one that was written to last."""
    return max(folder.iterdir(), key=lambda path: (int(path.name.split("__")[-1]), path.stat().st_mtime_ns))


def train_networks(folder: Path) -> Path:
    """A file of the hidden game in `folder`, and a world model and a VAE trained on it for a few seconds."""
    data = collect(CollectArgs(samples=8000, strategies=("NS", "NH", "RANDOM"), rules=HIDDEN))
    save_arrays(folder / "hidden.npz", data.arrays())
    assert call(train_world_model, folder, "--data", "hidden.npz", "--epochs", 12) == 0
    assert call(pretrain_vae, folder, "--data", "hidden.npz", "--epochs", 3, "--batch-size", 64) == 0
    return folder


def write_networks(folder: Path, vae: dict | None = None, world: dict | None = None) -> Path:
    """Untrained networks for HIDDEN in `folder`. vae, world: what their checkpoints say besides, if not the usual."""
    torch.manual_seed(0)
    vae = {"goals_trained": 7} if vae is None else vae
    world = {"rules": asdict(HIDDEN)} if world is None else world
    write_run(folder / "vae_ckpts/vae__1/dim16", whole_checkpoint(pretrain_vae, VAE(5, 5, 25), **vae))
    network = ObjectWorldModel(5, 5, [0.0, 1.0, 15.0])
    write_run(folder / "wm_ckpts/wm__1", whole_checkpoint(train_world_model, network, **world))
    return folder
