"""The Markov stag hunt: what lies on its boards, who can play it, and what a hunt needs and pays.

How boards are played is `envs.core`, whatever the game; its names are importable from here, too. The rules stand in
`docs/design.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from envs.core import (
    MAX_CELLS,
    Board,
    Cells,
    GameRules,
    State,
    check_rules,
    effective_actions,
    first_hunt_after,
    legal_actions,
    legal_cells,
    legal_of_codes,
    legal_on,
    splitmix64,
    step_cells,
    step_prey,
    stream_keys,
)
from envs.game import DOWN, LEFT, RIGHT, STAY, UP, Game, Strategy

__all__ = [
    "ACTIONS",
    "DOWN",
    "GAME",
    "HUNT_HARE",
    "HUNT_STAG",
    "LEFT",
    "LEGAL",
    "MAX_CELLS",
    "PLANES",
    "RIGHT",
    "STAY",
    "UP",
    "Cells",
    "Rules",
    "StagHunt",
    "State",
    "effective_actions",
    "first_hunt_after",
    "legal_actions",
    "legal_cells",
    "legal_on",
    "splitmix64",
    "step_cells",
    "step_prey",
    "stream_keys",
]

GAME = Game(
    id="StagHunt-v0",
    name="stag_hunt",
    prey=("STAGS", "HARES"),
    takes=("HUNT_STAG", "HUNT_HARE"),
    leaves=True,
    strategies={
        "NS": Strategy(("STAGS", "HARES")),
        "NH": Strategy(("HARES", "STAGS")),
        "RANDOM": Strategy(otherwise="any"),
    },
    goals={"stag": "NS", "hare": "NH"},
)
PLANES = GAME.planes
ACTIONS = GAME.actions
HUNT_STAG, HUNT_HARE = (ACTIONS.index(name) for name in GAME.takes)
LEGAL = legal_of_codes(GAME.kinds)  # bool [128, 7]


@dataclass(frozen=True)
class Rules:
    """What a game is made of. The defaults are "4p5b 8x8": 4 hunters, 5 blocks, 1 stag, 4 hares.

    Raises:
        ValueError: a number is out of its range, or the board is too small for what stands on it.
    """

    game: ClassVar[Game] = GAME
    hunters: int = 4
    stags: int = 1
    hares: int = 4
    blocks: int = 5
    height: int = 8
    width: int = 8
    horizon: int = 35
    """ticks after which a board is truncated"""
    stag_reward: float = 10.0
    """shared equally by the hunters that capture a stag"""
    hare_reward: float = 1.0
    """shared equally by the hunters that capture a hare"""
    hunters_needed: int = 2
    """hunters that must play HUNT_STAG on a stag's cell in the same tick"""
    prey_moves: float = 0.0
    """probability that a prey steps to a free neighbour cell after the hunts of a tick"""
    end_after_first_hunt: int | None = None
    """k: the board is terminated after the k-th tick that follows the tick of the first capture"""

    def __post_init__(self) -> None:
        least = dict(hunters=1, stags=0, hares=0, blocks=0, height=1, width=1, horizon=1, hunters_needed=1)
        check_rules(self, least)
        if not 0.0 <= self.prey_moves <= 1.0:
            raise ValueError(f"rules: prey_moves must be in [0, 1], got {self.prey_moves!r}")
        if not (np.isfinite(self.stag_reward) and np.isfinite(self.hare_reward)):
            rewards = f"{self.stag_reward!r} and {self.hare_reward!r}"
            raise ValueError(f"rules: rewards must be finite, got {rewards}")
        k = self.end_after_first_hunt
        if k is not None and (not isinstance(k, (int, np.integer)) or k < 0):
            wanted = "None or a whole number of at least 0"
            raise ValueError(f"rules: end_after_first_hunt must be {wanted}, got {k!r}")

    @property
    def prey(self) -> int:
        """Stags and hares at the start."""
        return self.stags + self.hares

    @property
    def prey_counts(self) -> tuple[int, ...]:
        return self.stags, self.hares

    @property
    def cells(self) -> int:
        return self.height * self.width

    def resolve(
        self, hunters: np.ndarray, actions: np.ndarray, dtype: type = np.float32
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which hunters capture a prey in a tick, and what each earns: see `envs.core.GameRules`."""
        hunted = hunters * len(ACTIONS) + actions  # the same number: the same action on the same cell
        team = (hunted[:, :, None] == hunted[:, None, :]).sum(2)  # [B, A]
        hunts_stag = actions == HUNT_STAG
        needed = np.where(hunts_stag, self.hunters_needed, 1)
        captures = (actions >= HUNT_STAG) & (team >= needed)
        reward = np.where(hunts_stag, self.stag_reward, self.hare_reward)
        share = np.divide(reward.astype(dtype), team, dtype=dtype)
        return captures, np.where(captures, share, dtype(0))

    def ended(self, tick: Any, first_hunt: Any, active: Any, prey: Any) -> Any:
        """Nobody is left, or enough ticks have passed since the first capture: see `envs.core.GameRules`."""
        ended = ~active.any(1)
        if self.end_after_first_hunt is not None:
            ended |= (first_hunt >= 0) & (tick - first_hunt >= self.end_after_first_hunt)
        return ended


class StagHunt(Board):
    """B boards of the stag hunt; without rules, the default ones.

    Example:
        >>> env = StagHunt(num_boards=1024)
        >>> obs = env.reset(seed=1)
        >>> obs, rewards, terminated, truncated = env.step(np.full((1024, 4), STAY))
    """

    def __init__(self, num_boards: int, rules: GameRules | None = None):
        super().__init__(num_boards, rules or Rules())
