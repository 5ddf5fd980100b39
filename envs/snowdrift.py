"""The Markov snowdrift: agents clear the snowdrifts of a board; each removal pays all, and costs those who removed it.

Agents are called hunters and drifts prey, as in every game of the family. The rules stand in `docs/design.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from envs.core import TAKE, check_rules
from envs.game import Game, Strategy

GAME = Game(
    id="Snowdrift-v0",
    name="snowdrift",
    prey=("DRIFTS",),
    takes=("REMOVE",),
    leaves=False,
    strategies={
        "ND": Strategy(("DRIFTS",)),
        "FIX": Strategy(otherwise="walk"),
        "RANDOM": Strategy(otherwise="any"),
    },
    goals={"remove": "ND", "ride": "FIX"},
)
REMOVE = TAKE


@dataclass(frozen=True)
class Rules:
    """What a game is made of. All six drifts removed pay each agent 36 and cost the team 24.

    Raises:
        ValueError: a number is out of its range, or the board is too small for what stands on it.
    """

    game: ClassVar[Game] = GAME
    agents: int = 4
    drifts: int = 6
    blocks: int = 0
    height: int = 8
    width: int = 8
    horizon: int = 50
    """ticks after which a board is truncated"""
    reward: float = 6.0
    """paid to every agent for each drift that is removed"""
    cost: float = 4.0
    """shared equally by the agents that remove a drift in the same tick"""

    def __post_init__(self) -> None:
        check_rules(self, dict(agents=1, drifts=1, blocks=0, height=1, width=1, horizon=1))
        if not (np.isfinite(self.reward) and np.isfinite(self.cost)):
            raise ValueError(f"rules: reward and cost must be finite, got {self.reward!r} and {self.cost!r}")

    @property
    def hunters(self) -> int:
        """Agents."""
        return self.agents

    @property
    def prey(self) -> int:
        """Drifts at the start."""
        return self.drifts

    @property
    def prey_counts(self) -> tuple[int, ...]:
        return (self.drifts,)

    @property
    def prey_moves(self) -> float:
        """Drifts do not move."""
        return 0.0

    @property
    def end_after_first_hunt(self) -> None:
        """A removal ends nothing but the last one, see `ended`."""
        return None

    @property
    def cells(self) -> int:
        return self.height * self.width

    def resolve(
        self, hunters: np.ndarray, actions: np.ndarray, dtype: type = np.float32
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which agents remove a drift in a tick, and what each is paid: see `envs.core.GameRules`."""
        removes = actions == REMOVE
        same_cell = hunters[:, :, None] == hunters[:, None, :]
        together = same_cell & removes[:, :, None] & removes[:, None, :]  # [B, A, A]
        team = together.sum(2)  # [B, A], 0 where it does not remove
        is_first = removes & ~np.tril(together, -1).any(2)  # one agent of each drift
        removed = is_first.sum(1, keepdims=True)  # [B, 1], drifts
        pay = np.multiply(removed, self.reward, dtype=dtype)
        cost = np.divide(self.cost, np.maximum(team, 1), dtype=dtype)
        return removes, pay - np.where(removes, cost, dtype(0))

    def ended(self, tick: Any, first_hunt: Any, active: Any, prey: Any) -> Any:
        """No drift is left: see `envs.core.GameRules`."""
        return (prey == self.cells).all(1)
