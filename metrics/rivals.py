"""The simplest policies that a learner is held against: random play, and one script.

A policy maps an observation of N learners, and what is known of the others, to log pi [N, 7] and a value (here None).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from envs import Rules
from envs.grid import FAR
from envs.scripted import chase_probs


def uniform_policy(obs: Any, opponent_info: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
    """Random play. obs: has `action_mask`, bool [N, 7]."""
    return (obs.action_mask.float() / obs.action_mask.sum(1, keepdim=True)).log(), None


class ScriptPolicy:
    """NS until tick `switch` (None: always), then NH, without random moves; knows nothing of the others."""

    def __init__(self, rules: Rules, switch: int | None):
        self.rules = rules
        self.switch = rules.horizon if switch is None else switch

    def __call__(self, obs: Any, opponent_info: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        """obs: has `distances` int8 [N, P, A] and `neighbour_distances` int8 [N, P, 4], the observer first, at least
        99 where no path leads; `action_mask` bool [N, 7]; `time_features` [N, 3], of which the first is tick / horizon."""
        own = _to_int16(obs.distances[:, :, 0])  # [N, P]
        neighbours = _to_int16(obs.neighbour_distances)  # [N, P, 4]
        legal = obs.action_mask[:, None].numpy()  # [N, 1, 7]
        probs = chase_probs(own[:, None], neighbours[:, None], legal, self.rules.stags)
        nh, ns = (torch.as_tensor(probs[name][:, 0]) for name in ("NH", "NS"))
        late = (obs.time_features[:, :1] * self.rules.horizon).round() >= self.switch
        return torch.where(late, nh, ns).log(), None


def _to_int16(distances: torch.Tensor) -> np.ndarray:
    distances = distances.numpy().astype(np.int16)
    distances[distances >= 99] = FAR
    return distances
