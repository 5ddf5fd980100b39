"""How fast `pretrain_vae.py` learns, beside an earlier recipe and the bare step: `python -m benchmarks.pretrain_vae`.

(a) The earlier recipe: two convolutional trunks (encoder, MOA), batches of 128 from a DataLoader, Adam 5e-4, 10 epochs.
(b) The bare forward, backward and step of our network on one batch that stays in place: what no loop can beat.
Then: how long our training needs until the held-out NLL that (a) has after its epochs. All in one run, on CPU.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import tracking
from benchmarks import machine
from data import DEFAULT_DATA, default_or_fresh
from data.datasets import Batches, Samples, load_samples
from metrics import scores
from metrics.vae_reports import predict
from pretrain_vae import MASKED, MOA, VAE, Args, loss_sums, make_batches, train_epoch


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
        self.legal = MOA(height, width, 1, 1, 1, 1)  # for its mask alone
        self.shape = (height, width)

    @staticmethod
    def conv() -> nn.Module:
        layers = [
            layer
            for i, o in ((5, 16), (16, 32), (32, 32))
            for layer in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())
        ]
        return nn.Sequential(*layers, nn.Flatten())

    def forward(self, planes: torch.Tensor, tick: torch.Tensor, noise: bool = True):
        """planes: float [B, 5, K]. Returns: masked logits [B, 7], KL in nats [B]."""
        board = planes.unflatten(2, self.shape)
        mean, log_var = self.latent(self.encoder(board)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp() if noise else mean
        logits = self.head(torch.cat([self.trunk(board), tick[:, None].float(), z], 1))
        action_mask = self.legal.action_mask(planes, planes[:, 0].argmax(1))
        kl = 0.5 * (mean**2 + log_var.exp() - 1.0 - log_var).sum(1)
        return logits.masked_fill(~action_mask, MASKED), kl


def train_earlier(samples: Samples, epochs: int, doubled_softmax: bool = False) -> list[dict[str, float]]:
    """(a). doubled_softmax: the cross-entropy is fed probabilities where it takes logits, as the earlier loss was.

    Returns: after each epoch, seconds of training so far, the mean loss of the epoch, and the held-out nll and top1.
    """
    height = samples.frames.shape[2]
    train, val = (torch.as_tensor(samples.splits[name]) for name in ("train", "val"))
    ticks, actions = torch.as_tensor(samples.ticks), torch.as_tensor(samples.actions)
    frames = torch.as_tensor(samples.frames[samples.rows]).flatten(2)
    data = TensorDataset(frames[train].float(), ticks[train], actions[train])
    model = EarlierRecipe(height, height)
    optimizer = torch.optim.Adam(
        [p for n, p in model.named_parameters() if not n.startswith("legal")], 5e-4, eps=1e-5
    )
    loader, curve, seconds, step = DataLoader(data, batch_size=128, shuffle=True), [], 0.0, 0
    for _ in range(epochs):
        start, losses = time.perf_counter(), torch.zeros(())
        for planes, tick, action in loader:
            logits, kl = model(planes, tick)
            action_loss = F.cross_entropy(logits.softmax(1) if doubled_softmax else logits, action)
            loss = action_loss + 1e-3 * min(1.0, step / len(loader)) * kl.mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            step += 1
            losses += action_loss.detach()
        seconds += time.perf_counter() - start
        with torch.no_grad():
            parts = [model(frames[p].float(), ticks[p], noise=False)[0].softmax(1) for p in val.split(4096)]
        held_out = scores.summarize(torch.cat(parts).numpy(), samples.actions[samples.splits["val"]])
        curve.append({"seconds": seconds, "loss": losses.item() / len(loader), **held_out})
        print(f"  (a) epoch {len(curve)}: {seconds:.1f} s, loss {curve[-1]['loss']:.4f}, NLL {held_out['nll']:.4f}, "
              f"top-1 {held_out['top1']:.4f}", flush=True)  # fmt: skip
    return curve


def our_model(batches: Batches, height: int, args: Args) -> tuple[VAE, torch.optim.Optimizer]:
    model = VAE(height, height, batches.last_tick + 1, args.latent_dim)
    return model, torch.optim.AdamW(model.parameters(), args.learning_rate)


def bare_speed(model: VAE, optimizer, batches: Batches, args: Args, parts: list[np.ndarray]) -> float:
    """(b), samples/s, on one batch: of the parts, the one whose size is nearest the mean."""
    length = np.array([batches.length[part].sum() for part in parts])
    batch = batches.take(parts[np.abs(length - length.mean()).argmin()])
    noise, start = torch.randn(len(batch.tick), args.latent_dim), time.perf_counter()
    for _ in range(100):
        losses = loss_sums(model(batch, noise), batch)
        goal_count = (batch.goal >= 0).sum()
        loss = (losses["moa"] + args.kl_coef * losses["kl"]) / len(batch.tick) + losses["goal"] / goal_count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return 100 * len(batch.tick) / (time.perf_counter() - start)


def seconds_until(
    target: float, batches: Batches, height: int, args: Args, samples: Samples, writer
) -> float:
    """Seconds of our training until its held-out NLL is at most `target`; looked at every 10 steps, which is not timed."""
    (model, optimizer), world = our_model(batches, height, args), tracking.World(0, 1, torch.device("cpu"))
    train, val = samples.splits["train"], samples.splits["val"]
    seconds, step, parts = 0.0, 0, len(train) // (10 * args.batch_size)
    episodes, rng = np.unique(batches.group[train]), np.random.default_rng(0)
    args = replace(args, epochs=args.epochs * parts)  # so that the learning rate falls as it does in training
    for _ in range(args.epochs // parts):
        for part in np.array_split(rng.permutation(episodes), parts):
            index, start = np.flatnonzero(np.isin(batches.group, part)), time.perf_counter()
            _, step = train_epoch(model, optimizer, batches, index, args, step, world, writer)
            seconds += time.perf_counter() - start
            if scores.nll(predict(model, batches, val).probs, samples.actions[val]).mean() <= target:
                return seconds
    return math.nan


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(f"{machine()}, PyTorch {torch.__version__}")
    samples, args = load_samples(default_or_fresh(DEFAULT_DATA)), Args()
    batches, height = make_batches(samples, torch.device("cpu"), "moa"), samples.frames.shape[2]
    world, train = tracking.World(0, 1, torch.device("cpu")), samples.splits["train"]
    parts = np.array_split(np.unique(batches.group[train]), len(train) // args.batch_size)
    index = np.flatnonzero(np.isin(batches.group, np.concatenate(parts[:100])))
    with tempfile.TemporaryDirectory() as folder:
        writer = tracking.open_log("benchmark", {}, folder)
        for threads in options.torch_threads:
            torch.set_num_threads(threads)
            torch.manual_seed(options.seed)
            model, optimizer = our_model(batches, height, args)
            bare, ours = [], []
            for _ in range(options.repeats):  # in turns, so that both meet the same machine
                bare.append(bare_speed(model, optimizer, batches, args, parts))
                start = time.perf_counter()
                train_epoch(model, optimizer, batches, index, args, 0, world, writer)
                ours.append(len(index) / (time.perf_counter() - start))
            ratio = np.median(np.array(ours) / np.array(bare))
            print(f"{threads} thread(s), batch {args.batch_size}: training {np.median(ours):.0f} samples/s, "
                  f"(b) bare step {np.median(bare):.0f} samples/s, ratio {ratio:.3f}", flush=True)  # fmt: skip
        torch.manual_seed(options.seed)
        last = train_earlier(samples, options.epochs)[-1]
        speed = len(train) * options.epochs / last["seconds"]
        print(f"(a) earlier recipe: {speed:.0f} samples/s, {last['seconds']:.1f} s, NLL {last['nll']:.4f}")
        torch.manual_seed(options.seed)
        needed = seconds_until(last["nll"], batches, height, args, samples, writer)
        print(
            f"ours until NLL {last['nll']:.4f}: {needed:.1f} s, {needed / last['seconds']:.4f} of (a)'s time"
        )
        writer.close()


if __name__ == "__main__":
    tracking.run(main, ValueError)
