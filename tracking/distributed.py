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

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Add up the gradients of all processes, in one message. For losses that each divides by the size of the whole
        minibatch: the sum is then the gradient of their mean, whatever the sizes of the shares."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        sums = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = sums.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def own(self, values: torch.Tensor) -> torch.Tensor:
        """This process's share of rows that divide evenly: the first process has the first ones."""
        return values if self.size == 1 else values.chunk(self.size)[self.rank]

    def gather(self, values: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """All shares beside each other, each of the same shape: what `own` divides."""
        if self.size == 1:
            return values
        own = values.contiguous().flatten().view(torch.uint8)  # gloo does not know every dtype
        shares = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(shares, own)
        return torch.cat([share.view(values.dtype).view(values.shape) for share in shares], dim)

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """The first process does it, then the others: what is made on first use is made once."""
        if self.rank > 0:
            torch.distributed.barrier()
        yield
        if self.rank == 0 and self.size > 1:
            torch.distributed.barrier()


ALONE = World(0, 1, torch.device("cpu"))


@contextlib.contextmanager
def join_world(cuda: bool) -> Iterator[World]:
    """This process's World: that of `torchrun`, else its own. Only the first prints. gloo carries what is on a CPU, nccl
    what is on a GPU."""
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
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        with contextlib.redirect_stdout(sys.stdout if rank == 0 else io.StringIO()):
            yield World(rank, size, device)
    finally:
        torch.distributed.destroy_process_group()
