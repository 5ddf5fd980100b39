"""The simplest policies that a learner is held against: random play, and one script.

A policy maps an observation of N learners, and what is known of the others, to log pi [N, 5 + k] and a value (here None).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from envs.core import TAKE, GameRules
from envs.game import STAY
from envs.grid import FAR
from envs.scripted import chase_probs


def uniform_policy(obs: Any, opponent_info: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
    """Random play. obs: has `action_mask`, bool [N, 5 + k]."""
    return (obs.action_mask.float() / obs.action_mask.sum(1, keepdim=True)).log(), None


def script_phases(rules: GameRules) -> tuple[str, str, bool]:
    """The strategies of a game's script, before its tick and from then on, and whether it only waits before.

    It pursues the first goal, then the second. Where the second pursues no prey, as a free rider's, it goes to the prey of
    the first goal and waits on it, then takes it.
    """
    first, second = rules.game.goals.values()
    if rules.game.strategies[second].chases:
        return first, second, False
    return first, first, True


def describe_script(rules: GameRules) -> str:
    """The script in words; `until a tick` is where the tick is to be added."""
    before, after, waits = script_phases(rules)
    if waits:
        return f"where {before} goes, waiting there until a tick, then {after}"
    return f"{before} until a tick, then {after}"


class ScriptPolicy:
    """The game's script, see `script_phases`, until tick `switch` (None: always) and after it, without random moves.

    In the stag hunt: NS, then NH. In the snowdrift: to the nearest drift, and wait on it; then ND. Knows nothing of the
    others.
    """

    def __init__(self, rules: GameRules, switch: int | None):
        self.rules = rules
        self.switch = rules.horizon if switch is None else switch
        self.before, self.after, self.waits = script_phases(rules)

    def __call__(self, obs: Any, opponent_info: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        """obs: has `distances` int8 [N, P, A] and `neighbour_distances` int8 [N, P, 4], the observer first, at least
        99 where no path leads; `action_mask` bool [N, 5 + k]; `time_features` [N, 3], the first is tick / horizon."""
        own = _to_int16(obs.distances[:, :, 0].T)  # [P, N]
        neighbours = _to_int16(obs.neighbour_distances.permute(1, 2, 0))  # [P, 4, N]
        names = (self.before, self.after)
        probs = chase_probs(own, neighbours, obs.action_mask.T.numpy(), self.rules, names)
        before, after = (torch.as_tensor(probs[name].T) for name in names)
        if self.waits:
            before = _wait(before)
        late = (obs.time_features[:, :1] * self.rules.horizon).round() >= self.switch
        return torch.where(late, after, before).log(), None


def _wait(probs: torch.Tensor) -> torch.Tensor:
    """STAY in place of taking a prey: float [N, 5 + k]."""
    waits = torch.zeros_like(probs)
    waits[:, :TAKE] = probs[:, :TAKE]
    waits[:, STAY] += probs[:, TAKE:].sum(1)
    return waits


def _to_int16(distances: torch.Tensor) -> np.ndarray:
    distances = distances.numpy().astype(np.int16)
    distances[distances >= 99] = FAR
    return distances
