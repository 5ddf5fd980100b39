"""Which network reads the board best? `python -m benchmarks.networks`

Each learns p(action | observation, goal) from the same training episodes for the same seconds of one processor, with and
without the board's symmetries as augmentation, and is judged on the same held-out episodes beside the *known* observer,
which is told the goal and knows the rules.

window       what lies where relative to the hunter: one linear layer on the shifted board, then an MLP
convolutions eight residual 3x3 convolutions, read on the 3x3 cells around the hunter
spreading    window + one 3x3 convolution applied eight times, blocks held at zero (this repository's earlier head)
attention    the things and blocks as tokens with learnt embeddings of where they lie relative to the hunter
values       learnt value iteration from each thing + attention over things: the head of pretrain_vae.py
values, 9    the same with nine free step costs instead of two: the symmetries are not built in

With `--what history` they learn p(action | all that the hunter saw and did in the episode), without any label of a goal, z
at its mean, trained by the action loss alone, and are judged beside the *bayes* observer:

MOA          the network of pretrain_vae.py, with the symmetries as augmentation
plain        its `--network plain`, which knows no legal actions, no moves and no symmetries: without augmentation
plain, all views  the same without dropout of its views, which pays in long trainings only
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import tracking
from benchmarks import machine
from data import DEFAULT_DATA, default_or_fresh
from data.datasets import Batch, Batches, load_samples
from envs import ACTIONS, PLANES
from envs.stag_hunt import GAME
from metrics import observers, scores
from pretrain_vae import BLOCKS, MASKED, MOA, OTHERS, SELF, UNREACHABLE, VAE, PlainVAE, PreyMaps, make_batches

BATCH = 256


@dataclass
class Options:
    what: Literal["goal", "history"] = "goal"
    """the networks are told the goal, or see all that the hunter did so far"""
    seconds: float = 60.0
    """of processor time for training, each: whatever else the machine does"""
    seeds: tuple[int, ...] = (1, 2, 3)


def shifted(height: int, width: int, rows: int, columns: int) -> torch.Tensor:
    """int64 [K, (2 rows + 1)(2 columns + 1)]: the cells around each cell, K for what is off the board."""
    r, c = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    dr, dc = torch.meshgrid(torch.arange(-rows, rows + 1), torch.arange(-columns, columns + 1), indexing="ij")
    r, c = r.reshape(-1, 1) + dr.reshape(1, -1), c.reshape(-1, 1) + dc.reshape(1, -1)
    inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
    return torch.where(inside, r * width + c, height * width)


class Grid(nn.Module):
    """What the networks that see planes share: the window around the hunter, the mask, and the last layers."""

    def __init__(self, height: int, width: int, inputs: int, hidden: int):
        super().__init__()
        self.height, self.width = height, width
        self.mask = MOA(height, width, 1, 1, 1, 1)  # for its legal actions alone
        self.register_buffer("window", shifted(height, width, height - 1, width - 1))
        self.register_buffer("near", shifted(height, width, 1, 1))
        self.head = nn.Sequential(
            nn.Linear(inputs + 2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.out = nn.Linear(hidden, len(ACTIONS))

    def seen(self, planes: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The four planes beside SELF, shifted so that the hunter stands in the middle; off the board is a block."""
        seen = F.pad(planes[:, OTHERS:], (0, 1))
        seen[:, BLOCKS - 1, -1] = 1.0
        return seen.gather(2, self.window[at][:, None].expand(-1, 4, -1)).flatten(1)

    def around(self, h: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        h = F.pad(h.flatten(2), (0, 1))
        return h.gather(2, self.near[at][:, None].expand(-1, h.shape[1], -1)).flatten(1)

    def forward(self, batch: Batch) -> torch.Tensor:
        at = batch.planes[:, SELF].argmax(1)
        x = torch.cat([self.read(batch.planes, at), F.one_hot(batch.goal, 2).float()], 1)
        logits = self.out(self.head(x)).masked_fill(~self.mask.action_mask(batch.planes, at), MASKED)
        return logits.log_softmax(1)


class Window(Grid):
    def __init__(self, height, width, hidden=256):
        super().__init__(height, width, 4 * (2 * height - 1) * (2 * width - 1), hidden)

    def read(self, planes, at):
        return self.seen(planes, at)


class Convolutions(Grid):
    def __init__(self, height, width, hidden=256, channels=32, layers=8):
        super().__init__(height, width, 9 * channels, hidden)
        self.stem = nn.Conv2d(6, channels, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))

    def read(self, planes, at):
        board = torch.cat([planes, torch.ones_like(planes[:, :1])], 1).unflatten(2, (self.height, self.width))
        h = F.relu(self.stem(board.contiguous(memory_format=torch.channels_last)))
        for layer in self.layers:
            h = F.relu(h + layer(h))
        return self.around(h, at)


class Spreading(Grid):
    def __init__(self, height, width, hidden=256, channels=16, turns=8):
        super().__init__(height, width, 9 * channels + 4 * (2 * height - 1) * (2 * width - 1), hidden)
        self.stem, self.turns = nn.Conv2d(6, channels, 3, padding=1), turns
        self.spread = nn.Conv2d(channels, channels, 3, padding=1)

    def read(self, planes, at):
        board = torch.cat([planes, torch.ones_like(planes[:, :1])], 1).unflatten(2, (self.height, self.width))
        stem, free = (
            self.stem(board.contiguous(memory_format=torch.channels_last)),
            1.0 - board[:, BLOCKS, None],
        )
        h = F.relu(stem)
        for _ in range(self.turns):
            h = F.relu(self.spread(h) + stem) * free
        return torch.cat([self.around(h, at), self.seen(planes, at)], 1)


class Attention(Grid):
    def __init__(self, height, width, hidden=256, size=64):
        super().__init__(height, width, size, hidden)
        self.offset = nn.Embedding((2 * height - 1) * (2 * width - 1), size)
        self.kind = nn.Embedding(5, size)  # nothing, OTHERS, BLOCKS, STAGS, HARES
        layer = nn.TransformerEncoderLayer(size, 4, 2 * size, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.me = nn.Parameter(0.1 * torch.randn(size))

    def read(self, planes, at):
        B, W = len(planes), self.width
        things = planes[:, OTHERS:]  # [B, 4, K]
        most = int(things.sum((1, 2)).amax())
        there, index = things.flatten(1).topk(most, 1)
        kind, cell = index // things.shape[2] + 1, index % things.shape[2]
        row, column = cell // W - (at // W)[:, None] + self.height - 1, cell % W - (at % W)[:, None] + W - 1
        token = self.offset(row * (2 * W - 1) + column) + self.kind(kind)
        token = torch.cat([self.me.expand(B, 1, -1), token], 1)
        return self.layers(token, src_key_padding_mask=F.pad(there == 0, (1, 0)))[:, 0]


class Values(nn.Module):
    """The MOA of pretrain_vae.py, told the goal."""

    def __init__(self, height, width, ticks=35, costs=2):
        super().__init__()
        self.moa = MOA(height, width, ticks, 1, 1, 32)
        self.moa.mix, self.moa.code = None, nn.Parameter(0.5 * torch.randn(2, 16))
        if costs == 9:
            self.moa.step_costs = nn.Parameter(0.1 * torch.randn(3, 3))
            self.moa.prey_nearness = self.prey_nearness

    def prey_nearness(self, boards, things):
        """As MOA.prey_nearness, each of the nine ways into a cell with a cost of its own."""
        moa = self.moa
        there, cell = (boards[:, 1] + boards[:, 2]).topk(things, 1)
        kind = boards[:, 1:].gather(2, cell[:, None].expand(-1, 2, -1)).transpose(1, 2)
        near = torch.full((*cell.shape, boards.shape[2]), UNREACHABLE).scatter(2, cell[..., None], 0.0)
        near, costs = near.unflatten(2, (moa.height, moa.width)), F.softplus(moa.step_costs)
        wall = UNREACHABLE * boards[:, 0].view(-1, 1, moa.height, moa.width)
        for _ in range(moa.height + moa.width):
            p = F.pad(near, (1, 1, 1, 1), value=UNREACHABLE)
            for i, j in np.ndindex(3, 3):
                near = torch.maximum(near, p[:, :, i : i + moa.height, j : j + moa.width] - costs[i, j])
            near = (near + wall).clamp(min=UNREACHABLE)
        return PreyMaps(F.pad(near.flatten(2), (0, 1), value=UNREACHABLE), kind, there > 0)

    def forward(self, batch: Batch) -> torch.Tensor:
        prey = self.moa.prey_nearness(batch.boards, batch.max_prey)
        features = self.moa.encode_board(batch.planes, batch.board, prey, batch.tick)
        return self.moa.action_logprobs(features)[torch.arange(len(batch.tick)), batch.goal]


class AtMean(nn.Module):
    """A VAE of pretrain_vae.py, z at its mean."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.vae(batch).action_logprobs


def plain(height: int, width: int, **sizes: float) -> AtMean:
    """`--network plain` on a file of the stag hunt."""
    return AtMean(PlainVAE(height, width, len(PLANES), len(ACTIONS), len(GAME.goals), **sizes))


HISTORY = {
    "MOA": (lambda height, width: AtMean(VAE(height, width, ticks=35)), 3e-3),
    "plain": (plain, 3e-3),
    "plain, all views": (partial(plain, view_dropout=0.0), 3e-3),
}
NETWORKS = {
    "window": (Window, 1e-3),
    "convolutions": (Convolutions, 1e-3),
    "spreading": (Spreading, 3e-3),
    "attention": (Attention, 1e-3),
    "values": (Values, 3e-3),
    "values, 9": (lambda height, width: Values(height, width, costs=9), 3e-3),
}  # fmt: skip


def train(
    network: nn.Module, rate: float, batches: Batches, index: np.ndarray, seconds: float, augment: bool
) -> int:
    """AdamW; the rate rises over 100 steps and falls linearly with the time that is left. Returns: samples seen."""
    optimizer = torch.optim.AdamW([p for n, p in network.named_parameters() if "mask" not in n], rate)
    groups, used, seen, step = np.unique(batches.group[index]), 0.0, 0, 0
    while True:
        parts = np.array_split(groups[torch.randperm(len(groups)).numpy()], len(index) // BATCH)
        for part in parts:
            start = time.process_time()
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 100) * (1.0 - used / seconds)
            batch = batches.take(
                part, torch.randint(len(batches.cell_permutation), (len(part),)) if augment else None
            )
            loss = F.nll_loss(network(batch), batch.action)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            used, seen, step = used + time.process_time() - start, seen + len(batch.tick), step + 1
            if used >= seconds:
                return seen


@torch.no_grad()
def judged(
    network: nn.Module, batches: Batches, index: np.ndarray, actions: np.ndarray, exact: np.ndarray
) -> dict:
    probs = torch.cat([network(batches.take(part)).exp() for part in batches.shares(index, 4096)]).numpy()
    return scores.summarize(probs, actions) | {"kl_to_exact": float(scores.kl(exact, probs).mean())}


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    torch.set_num_threads(1)
    print(machine())
    samples = load_samples(default_or_fresh(DEFAULT_DATA))
    batches = make_batches(samples, torch.device("cpu"), "moa")
    val, rows = samples.splits["val"], []
    observer, networks = ("known", NETWORKS) if options.what == "goal" else ("bayes", HISTORY)
    augmented = {name: (False, True) for name in NETWORKS} | {name: (name == "MOA",) for name in HISTORY}
    exact, actions = observers.predictions(samples, val, None)[observer], samples.actions[val]
    print(f"{observer}: {scores.summarize(exact, actions)}", flush=True)
    runs = [(n, a, s) for s in options.seeds for n in networks for a in augmented[n]]
    for name, augment, seed in tqdm(runs, unit=" runs", leave=False):
        torch.manual_seed(seed)
        make, rate = networks[name]
        network = make(*samples.frames.shape[2:])
        seen = train(network, rate, batches, samples.splits["train"], options.seconds, augment)
        found = judged(network.eval(), batches, val, actions, exact)
        size = sum(p.numel() for n, p in network.named_parameters() if "mask" not in n)
        rows.append(
            dict(network=name, augmented=augment, parameters=size, epochs=seen / len(samples.splits["train"]))
            | found
        )
        tqdm.write(str(rows[-1] | {"seed": seed}))
    table = pd.DataFrame(rows).groupby(["network", "augmented"], sort=False).agg(["mean", "std"])
    with pd.option_context(
        "display.width", 250, "display.max_columns", 99, "display.float_format", "{:.4f}".format
    ):
        print(table)


if __name__ == "__main__":
    tracking.run(main, ValueError)
