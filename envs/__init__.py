"""The Markov stag hunt: a batched NumPy core, scripted strategies, and views on both."""

from envs.layouts import hop_to_joint, joint_to_hop, joint_to_planes, planes_to_joint
from envs.stag_hunt import ACTIONS, PLANES, Rules, StagHunt, State
from envs.strategies import DATA_EPSILON, STRATEGIES, random_actions, sample_actions, strategy_probs

__all__ = [
    "ACTIONS", "DATA_EPSILON", "PLANES", "STRATEGIES", "Rules", "StagHunt", "State", "hop_to_joint", "joint_to_hop",
    "joint_to_planes", "planes_to_joint", "random_actions", "sample_actions", "strategy_probs",
]  # fmt: skip
