"""Whole checkpoints of networks that a test has made."""

import math
from pathlib import Path
from types import ModuleType

import torch

import tracking

FIRST_EPOCH = dict(epoch=1, best=0.5, history=[dict(epoch=0, val_nll=0.5)])


def whole_checkpoint(script: ModuleType, network: torch.nn.Module, **fields) -> dict:
    """What `script`, pretrain_vae or train_world_model, saves of a network before its first epoch.

    fields: those that are other than usual; `args`: settings that are not the default.
    """
    args = script.Args(**fields.pop("args", {}))
    optimizer = script.make_optimizer(network, args)
    if fields.get("epoch"):
        take_a_step(optimizer)
        fields["step"] = 1
    saved = dict(kind=script.KIND, run="run__1", args=vars(args), fingerprint="0" * 64, rules=None)
    saved |= dict(epoch=0, step=0, best=math.inf, history=[], seconds=0.0, train_seconds=0.0)
    if script.KIND == "pretrain_vae":
        saved |= dict(goals_trained=1, strategies=[], table=None, counts=[0] * 7)
    return saved | tracking.learnt(network, optimizer) | fields


def take_a_step(optimizer: torch.optim.Optimizer) -> None:
    """It has moments then; the weights stay."""
    (group,) = optimizer.param_groups
    rate, group["lr"] = group["lr"], 0.0
    for parameter in group["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    group["lr"] = rate


def write_run(folder: Path, checkpoint: dict) -> None:
    """A run's folder with this as its last and its best checkpoint."""
    folder.mkdir(parents=True)
    for name in ("best.pt", "last.pt"):
        tracking.save_checkpoint(folder / name, checkpoint)
