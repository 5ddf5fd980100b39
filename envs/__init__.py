"""The Markov stag hunt and its family: a batched NumPy core, scripted strategies, and environments made of both.

Importing it registers the games of `envs.games.REGISTERED` with Gymnasium. PettingZoo
is needed only when `parallel_env` is called, torch only for `envs.world_model_env`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

from envs.core import Board, GameRules, make_core
from envs.games import GAMES, REGISTERED, make_rules, rules_of
from envs.grid import hop_to_joint, joint_to_hop, joint_to_planes, planes_to_joint
from envs.scripted import DATA_EPSILON, STRATEGIES, random_actions, sample_actions, strategy_probs
from envs.stag_hunt import ACTIONS, PLANES, Rules, StagHunt, State

if TYPE_CHECKING:
    from envs.pettingzoo_env import BoardParallelEnv

__all__ = [
    "ACTIONS",
    "DATA_EPSILON",
    "GAMES",
    "PLANES",
    "REGISTERED",
    "STRATEGIES",
    "Board",
    "Rules",
    "StagHunt",
    "State",
    "hop_to_joint",
    "joint_to_hop",
    "joint_to_planes",
    "make_core",
    "make_rules",
    "parallel_env",
    "planes_to_joint",
    "random_actions",
    "rules_of",
    "sample_actions",
    "strategy_probs",
]

for _env_id, _keywords in REGISTERED.items():
    register(
        id=_env_id,
        entry_point="envs.vector_env:BoardEnv",
        vector_entry_point="envs.vector_env:BoardVectorEnv",
        kwargs=_keywords,
    )


def parallel_env(
    rules: GameRules | None = None,
    render_mode: str | None = None,
    **keywords: Any,
) -> BoardParallelEnv:
    """The PettingZoo view, a `pettingzoo.ParallelEnv`: see `envs.pettingzoo_env.BoardParallelEnv`.

    Raises:
        ImportError: PettingZoo is not installed.
    """
    try:
        import pettingzoo  # noqa: F401
    except ImportError as error:
        raise ImportError("envs.parallel_env needs PettingZoo: pip install pettingzoo") from error
    from envs.pettingzoo_env import BoardParallelEnv

    return BoardParallelEnv(rules, render_mode, **keywords)
