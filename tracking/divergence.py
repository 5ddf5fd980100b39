"""Training that has diverged ends in one line, before anything of it is saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from tracking.command_line import UsageError


def check_finite(
    losses: Mapping[str, float],
    optimizer: torch.optim.Optimizer,
    moment: str,
) -> None:
    """After an epoch or an update, and before it is saved.

    Args: losses: the last ones, by name. moment: such as `epoch 3`, for the message.
    Raises: UsageError: a loss, a weight or a moment of the optimizer is not finite.
    """
    bad = [f"{name} {value}" for name, value in losses.items() if not math.isfinite(value)]
    if not bad and not all_finite(tensors_of(optimizer)):
        bad = ["weights that are not finite"]
    if bad:
        found = f"{moment}: training has diverged ({bad[0]})"
        advice = "try a smaller --learning-rate; what was saved before is kept"
        raise UsageError(f"{found}: {advice}")


def tensors_of(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    """The weights that it trains, and what it remembers of their gradients."""
    for group in optimizer.param_groups:
        yield from group["params"]
    for memory in optimizer.state.values():
        yield from (value for value in memory.values() if isinstance(value, torch.Tensor))


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Read from the device at once."""
    checks = [tensor.detach().isfinite().all() for tensor in tensors]
    return bool(torch.stack([check.to(checks[0].device) for check in checks]).all())
