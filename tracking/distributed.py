"""Training in several processes: `torchrun` starts them, each script joins them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class World:
    """The processes that train together, and this one's device. One process alone is a world of size 1."""

    rank: int
    size: int
    device: torch.device

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model whose gradients are averaged over all processes."""
        return model if self.size == 1 else torch.nn.parallel.DistributedDataParallel(model)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all processes."""
        if self.size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """The first process does it, then the others: what is made on first use is made once."""
        if self.rank > 0:
            torch.distributed.barrier()
        yield
        if self.rank == 0 and self.size > 1:
            torch.distributed.barrier()


@contextlib.contextmanager
def join_world(cuda: bool) -> Iterator[World]:
    """This process's World: that of `torchrun` (gloo on CPUs, nccl on GPUs), else its own. Only the first prints."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    device = torch.device("cpu")
    cuda = cuda and torch.cuda.is_available()
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1:
        yield World(rank, size, device)
        return
    if cuda:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        with contextlib.redirect_stdout(sys.stdout if rank == 0 else io.StringIO()):
            yield World(rank, size, device)
    finally:
        torch.distributed.destroy_process_group()
