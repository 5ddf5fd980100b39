"""The Markov stag hunt: a batched NumPy core, scripted strategies, and environments made of both.

Importing it registers "StagHunt-v0" and "StagHunt-hidden-v0" with Gymnasium. PettingZoo is needed
only when `parallel_env` is called, torch only for `envs.world_model_env`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

from envs.grid import hop_to_joint, joint_to_hop, joint_to_planes, planes_to_joint
from envs.scripted import DATA_EPSILON, STRATEGIES, random_actions, sample_actions, strategy_probs
from envs.stag_hunt import ACTIONS, PLANES, Rules, StagHunt, State

if TYPE_CHECKING:
    from envs.pettingzoo_env import StagHuntParallelEnv

__all__ = [
    "ACTIONS",
    "DATA_EPSILON",
    "PLANES",
    "STRATEGIES",
    "Rules",
    "StagHunt",
    "State",
    "hop_to_joint",
    "joint_to_hop",
    "joint_to_planes",
    "parallel_env",
    "planes_to_joint",
    "random_actions",
    "sample_actions",
    "strategy_probs",
]

register(
    id="StagHunt-v0",
    entry_point="envs.vector_env:StagHuntEnv",
    vector_entry_point="envs.vector_env:StagHuntVectorEnv",
)

# Of the games that `python -m benchmarks.hidden` tried on boards of this size, the one where knowing
# the co-players is worth most: a stag takes all three and pays each 5, and a tick after the first
# capture all is over. See docs/hop_ppo.md.
register(
    id="StagHunt-hidden-v0",
    entry_point="envs.vector_env:StagHuntEnv",
    vector_entry_point="envs.vector_env:StagHuntVectorEnv",
    kwargs=dict(
        hunters=3,
        stags=2,
        hares=2,
        hunters_needed=3,
        stag_reward=15.0,
        end_after_first_hunt=1,
        co_players="mixed",
        team_episodes=10,
    ),
)


def parallel_env(
    rules: Rules | None = None,
    render_mode: str | None = None,
    **rule_keywords: Any,
) -> StagHuntParallelEnv:
    """The PettingZoo view, a `pettingzoo.ParallelEnv`: see `envs.pettingzoo_env.StagHuntParallelEnv`.

    Raises:
        ImportError: PettingZoo is not installed.
    """
    try:
        import pettingzoo  # noqa: F401
    except ImportError as error:
        raise ImportError("envs.parallel_env needs PettingZoo: pip install pettingzoo") from error
    from envs.pettingzoo_env import StagHuntParallelEnv

    return StagHuntParallelEnv(rules, render_mode, **rule_keywords)
