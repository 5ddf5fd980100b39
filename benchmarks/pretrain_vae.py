"""How fast `pretrain_vae.py` learns, beside an earlier recipe and the bare step: `python -m benchmarks.pretrain_vae`.

(a) The earlier recipe: two convolutional trunks (encoder, MOA), batches of 128 from a DataLoader, Adam 5e-4, 10 epochs.
(b) The bare forward, backward and step of our network on one batch that stays in place: what no loop can beat.
Then: how long our training needs until the held-out NLL that (a) has after its epochs. All in one run, on CPU.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import tracking
from benchmarks import machine
from data import DEFAULT_DATA, default_or_fresh, load_samples, scores
from pretrain_vae import MOA, VAE, Args, Batches, loss_terms, predict, run_epoch


@dataclass
class Options:
    epochs: int = 10
    """epochs of the earlier recipe"""
    torch_threads: tuple[int, ...] = (1, 2)
    """thread counts at which the bare step is timed; the training runs use the last"""
    repeats: int = 5
    """of each speed; the median counts"""
    seed: int = 1


class EarlierRecipe(nn.Module):
    """Conv 5 -> 16 -> 32 -> 32 to a latent of 16; the MOA: a trunk of its own, (time, z) appended, 512 units, 7 logits."""

    def __init__(self, height: int, width: int, latent_dim: int = 16):
        super().__init__()
        self.encoder, self.trunk = self.conv(), self.conv()
        features = 32 * height * width
        self.latent = nn.Linear(features, 2 * latent_dim)
        self.head = nn.Sequential(nn.Linear(features + 1 + latent_dim, 512), nn.ReLU(), nn.Linear(512, 7))
        self.legal = MOA(height, width, 1, 1, 1, 1, 0)  # for its mask alone
        self.shape = (height, width)

    @staticmethod
    def conv() -> nn.Module:
        layers = [layer for i, o in ((5, 16), (16, 32), (32, 32)) for layer in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())]
        return nn.Sequential(*layers, nn.Flatten())

    def forward(self, planes: torch.Tensor, tick: torch.Tensor, noise: bool = True):
        """planes: float [B, 5, K]. Returns: masked logits [B, 7], KL in nats [B]."""
        board = planes.unflatten(2, self.shape)
        mean, log_var = self.latent(self.encoder(board)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp() if noise else mean
        logits = self.head(torch.cat([self.trunk(board), tick[:, None].float(), z], 1))
        legal = self.legal.legal(board, planes[:, 0].argmax(1))
        kl = 0.5 * (mean**2 + log_var.exp() - 1.0 - log_var).sum(1)
        return logits.masked_fill(~legal, torch.finfo(logits.dtype).min), kl


def train_earlier(batches: Batches, train: np.ndarray, val: np.ndarray, epochs: int) -> list[tuple[float, float]]:
    """(a). Returns: after each epoch, seconds of training so far and the held-out NLL."""
    index = torch.as_tensor(train)
    data = TensorDataset(batches.frames[batches.rows[index]].float(), batches.ticks[index], batches.actions[index])
    height = int(batches.frames.shape[2] ** 0.5)
    model = EarlierRecipe(height, height)
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if not n.startswith("legal")], 5e-4, eps=1e-5)
    loader, curve, seconds, step = DataLoader(data, batch_size=128, shuffle=True), [], 0.0, 0
    for _ in range(epochs):
        start = time.perf_counter()
        for planes, tick, action in loader:
            logits, kl = model(planes, tick)
            loss = F.cross_entropy(logits, action) + 1e-3 * min(1.0, step / len(loader)) * kl.mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            step += 1
        seconds += time.perf_counter() - start
        with torch.no_grad():
            parts = [(model(p, t, noise=False)[0], a) for p, t, a in map(batches.get, torch.as_tensor(val).split(4096))]
        nll = sum(F.cross_entropy(logits, action, reduction="sum").item() for logits, action in parts) / len(val)
        curve.append((seconds, nll))
        print(f"  (a) epoch {len(curve)}: {seconds:6.1f} s, held-out NLL {nll:.4f}", flush=True)
    return curve


def our_model(batches: Batches, args: Args) -> tuple[VAE, torch.optim.Optimizer]:
    height = int(batches.frames.shape[2] ** 0.5)
    model = VAE(height, height, int(batches.ticks.max()) + 1, args.latent_dim)
    return model, torch.optim.AdamW(model.trained_parameters(args.loss), args.learning_rate)


def bare_speed(model, optimizer, batches: Batches, args: Args, train: torch.Tensor, steps: int = 100) -> float:
    """(b), samples/s."""
    batch = batches.augmented(train[: args.batch_size])
    start = time.perf_counter()
    for _ in range(steps):
        terms = loss_terms(model, args.loss, *batch)
        optimizer.zero_grad()
        (terms[0] + terms[1] + args.kl_coef * terms[2]).backward()
        optimizer.step()
    return steps * args.batch_size / (time.perf_counter() - start)


def seconds_until(
    target: float, batches: Batches, args: Args, train: torch.Tensor, val: np.ndarray, actions, writer
) -> float:
    """Seconds of our training until its held-out NLL is at most `target`; looked at every 50 steps, which is not timed."""
    model, optimizer = our_model(batches, args)
    seconds, step, steps_per_epoch = 0.0, 0, math.ceil(len(train) / args.batch_size)
    for _ in range(args.epochs):
        for part in train[torch.randperm(len(train))].split(50 * args.batch_size):
            start = time.perf_counter()
            _, step = run_epoch(model, optimizer, batches, part, args, step, steps_per_epoch, writer)
            seconds += time.perf_counter() - start
            probs, _ = predict(model, batches, val, "moa")
            if scores.nll(probs, actions).mean() <= target:
                return seconds
    return math.nan


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(f"{machine()}, PyTorch {torch.__version__}")
    samples, args = load_samples(default_or_fresh(DEFAULT_DATA)), Args()
    batches = Batches.of(samples, torch.device("cpu"))
    train, val = samples.splits["train"], samples.splits["val"]
    train_index, actions = torch.as_tensor(train), samples.actions[val]
    steps_per_epoch = math.ceil(len(train) / args.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        writer = tracking.open_log("benchmark", {}, folder)
        for threads in options.torch_threads:
            torch.set_num_threads(threads)
            torch.manual_seed(options.seed)
            model, optimizer = our_model(batches, args)
            bare, ours = [], []
            for _ in range(options.repeats):  # in turns, so that both meet the same machine
                bare.append(bare_speed(model, optimizer, batches, args, train_index))
                start, part = time.perf_counter(), train_index[: 100 * args.batch_size]
                run_epoch(model, optimizer, batches, part, args, 0, steps_per_epoch, writer)
                ours.append(len(part) / (time.perf_counter() - start))
            ratio = np.median(np.array(ours) / np.array(bare))
            print(f"{threads} thread(s), batch {args.batch_size}: training {np.median(ours):.0f} samples/s, "
                  f"(b) bare step {np.median(bare):.0f} samples/s, ratio {ratio:.3f}", flush=True)  # fmt: skip
        torch.manual_seed(options.seed)
        curve = train_earlier(batches, train, val, options.epochs)
        seconds, target = curve[-1]
        print(
            f"(a) earlier recipe: {len(train) * options.epochs / seconds:.0f} samples/s, {seconds:.1f} s, NLL {target:.4f}"
        )
        torch.manual_seed(options.seed)
        needed = seconds_until(target, batches, args, train_index, val, actions, writer)
        print(f"ours until NLL {target:.4f}: {needed:.1f} s, {needed / seconds:.3f} of (a)'s time")
        writer.close()


if __name__ == "__main__":
    tracking.run(main, ValueError)
