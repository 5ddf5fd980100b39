"""World models by mean squared error, the earlier kind: what `train_world_model.py` is compared with.

Three networks of three convolutions, planes and rewards as numbers, seen through random symmetries of the board:

broadcast  everyone's actions as constant planes over the whole board (the earlier implementation)
own cell   the same, but each hunter's action stands on that hunter's own cell
shared     one network for all hunters: its own action on its own cell, everyone by action; its reward read at its own cell
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from data.datasets import TransitionBatches
from envs import ACTIONS
from train_world_model import Prediction

NETWORKS = ("broadcast", "own cell", "shared")
REWARD_WEIGHT = 10.0  # of the reward's error, beside the sum over the cells


def convolutions(inputs: int, hidden: int) -> nn.Sequential:
    sizes = [(inputs, hidden), (hidden, hidden), (hidden, hidden)]
    return nn.Sequential(*(layer for i, o in sizes for layer in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())))


class Regression(nn.Module):
    """The next planes and the rewards as numbers. What may happen is averaged into one picture."""

    kind = "regression"
    joint = True

    def __init__(self, height: int, width: int, hunters: int, network: str = "broadcast"):
        super().__init__()
        self.sizes = dict(height=height, width=width, hunters=hunters, network=network)
        self.network, self.board = network, (height, width)
        self.num_hunters = (
            None if network == "shared" else hunters
        )  # how many it was built for; None: any number
        if network == "shared":
            self.trunk, self.own = (
                convolutions(2 * len(ACTIONS) + 4, 32),
                nn.Conv2d(32, 2, 1),
            )  # a hunter's plane and reward
            self.prey = nn.Conv2d(32, 2, 1)
        else:
            self.trunk = convolutions((len(ACTIONS) + 1) * hunters + 3, 64)
            self.planes = nn.Conv2d(64, hunters + 3, 3, padding=1)
            self.rewards = nn.Sequential(
                nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, hunters)
            )

    def on(self, height: int, width: int) -> Regression:
        """The same model, for boards of this size."""
        self.board = (height, width)
        return self

    def forward(self, states: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """states: uint8 [B, A+3, K]; actions: int64 [B, A], -1 where not known. Returns: planes [B, A+3, K], rewards."""
        A = actions.shape[1]
        chosen = F.one_hot(actions + 1, len(ACTIONS) + 1)[
            ..., 1:
        ].float()  # [B, A, 7]; no action known: all zero
        on_cell = chosen[..., None] * states[:, :A, None].float()  # [B, A, 7, K]
        if self.network == "shared":
            return self._shared(states, on_cell)
        planes = on_cell if self.network == "own cell" else chosen[..., None].expand_as(on_cell)
        features = self.trunk(torch.cat([states.float(), planes.flatten(1, 2)], 1).unflatten(2, self.board))
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        return self.planes(features).flatten(2), self.rewards(pooled)

    def _shared(self, states: torch.Tensor, on_cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        B, A, _, K = on_cell.shape
        board = torch.cat([on_cell.sum(1), states[:, A:].float(), on_cell.new_ones(B, 1, K)], 1)  # [B, 11, K]
        inputs = torch.cat([on_cell, board[:, None].expand(-1, A, -1, -1)], 2)  # [B, A, 18, K]
        features = self.trunk(inputs.flatten(0, 1).unflatten(2, self.board))
        own = self.own(features).flatten(2).unflatten(0, (B, A))  # [B, A, 2, K]
        prey = (
            self.prey(features).flatten(2).unflatten(0, (B, A)).mean(1)
        )  # [B, 2, K], all hunters' networks agree on them
        rewards = (own[:, :, 1] * states[:, :A]).sum(2)
        return torch.cat([own[:, :, 0], states[:, A : A + 1].float(), prey], 1), rewards

    @torch.no_grad()
    def predict(self, states: torch.Tensor, actions: torch.Tensor) -> Prediction:
        planes, rewards = self(states, actions)
        likely = (planes > 0.5).to(torch.uint8)
        ends = (~likely[:, : actions.shape[1]].bool().any((1, 2))).float()  # nobody is left
        return Prediction(likely, planes, rewards, rewards, None, ends)

    def sample(self, states: torch.Tensor, actions: torch.Tensor):
        """There is nothing to draw from: the rounded prediction."""
        found = self.predict(states, actions)
        return found.most_likely, found.rewards, found.end_prob > 0.5

    def log_prob(self, states, actions, next_states, rewards, ends) -> None:
        return None

    def loss(self, states, actions, next_states, rewards, contrast: float) -> torch.Tensor:
        """Squared errors of the cells in all and of known rewards; and, weighted by `contrast`, InfoNCE."""
        planes, paid = self(states, actions)
        truth, known = next_states.float(), ~rewards.isnan()
        squares = (planes - truth).square()
        wrong = ((paid - rewards.nan_to_num()).square() * known).sum(1) / known.sum(1).clamp(min=1)
        loss = squares.sum((1, 2)) + REWARD_WEIGHT * wrong
        if contrast:
            loss = loss + contrast * self._contrast(
                planes, paid, truth, rewards.nan_to_num(), known, squares, wrong
            )
        return loss.mean()

    def _contrast(self, planes, paid, truth, rewards, known, squares, wrong) -> torch.Tensor:
        """InfoNCE (van den Oord et al. 2018), [B]: the nearer a next state is, the likelier; against one hunter shifted, a
        prey missing, a wrong reward, four next states of the batch."""
        A = paid.shape[1]
        hunter = _one_of(truth[:, :A].any(2))
        shift = truth[:, :A].unflatten(2, self.board).roll(1, 2 + int(torch.randint(2, ()))).flatten(2)
        shifted = torch.where(hunter[..., None], shift, truth[:, :A])
        prey = truth[:, A + 1 :].flatten(1)
        missing = prey * ~_one_of(prey > 0)
        other = rewards + _one_of(known) * torch.where(rewards > 0, -rewards, 1.0)
        base = squares.sum((1, 2)) + wrong
        far = [
            base + (planes[:, :A] - shifted).square().sum((1, 2)) - squares[:, :A].sum((1, 2)),
            base
            + (planes[:, A + 1 :].flatten(1) - missing).square().sum(1)
            - squares[:, A + 1 :].sum((1, 2)),
            base + ((paid - other).square() * known).sum(1) / known.sum(1).clamp(min=1) - wrong,
        ]
        far += [
            (planes - truth.roll(i, 0)).square().sum((1, 2)) + wrong for i in range(1, 5) if i < len(truth)
        ]
        return base + torch.logsumexp(-torch.stack([base, *far]), 0)


def _one_of(mask: torch.Tensor) -> torch.Tensor:
    """A random True of each row of bool [B, n], alone; none where there is none."""
    pick = (torch.rand(mask.shape) + mask).argmax(1, keepdim=True)
    return torch.zeros_like(mask).scatter(1, pick, True) & mask


def train(batches: TransitionBatches, index: np.ndarray, board: tuple[int, int], network: str, seed: int, steps: int,
          batch_size: int = 256, learning_rate: float = 1e-3, contrast: float = 0.0) -> Regression:  # fmt: skip
    """`steps` minibatches of the transitions `index`; Adam, its rate rises over 100 steps and falls linearly to zero."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Regression(*board, batches.actions.shape[1], network)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    step = 0
    while step < steps:
        for part in np.array_split(rng.permutation(index), math.ceil(len(index) / batch_size)):
            if step == steps:
                break
            optimizer.param_groups[0]["lr"] = (
                learning_rate * min(1.0, (step + 1) / 100) * (1.0 - step / steps)
            )
            states, actions, truth, rewards, _ = batches.take(part, random=True, augment=True)
            loss = model.loss(states, actions, truth, rewards, contrast)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return model.eval()
