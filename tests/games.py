"""Games that begin where a test wants them to: real boards, and imagined ones."""

from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from worlds import TrueWorld

from envs import Rules
from envs.stag_hunt import State
from envs.world_model_env import Starts, WorldModelEnv
from hop_ppo import Infos, make_envs, to_tensors
from pretrain_vae import TabularMOA
from train_world_model import JointState


def look(envs) -> Infos:
    """The infos as they are now; nothing is reset."""
    nothing = torch.zeros(envs.num_envs, dtype=torch.bool)
    return to_tensors(envs.reset(options={"reset_mask": nothing.numpy()})[1])


def envs_at(state: State, rules: Rules, seats: list[int], strategy_ids: list[list[int]]):
    """Real boards that stand as `state` says, the learners in these seats. Returns: the environment and its infos."""
    envs = make_envs(rules, len(seats), "mixed", episode="board")
    envs.reset(seed=1)
    core = {f"core.{key}": value for key, value in asdict(state).items()}
    who = dict(seats=np.array(seats), strategy_ids=np.array(strategy_ids))
    envs.load_state_dict(envs.state_dict() | core | who)
    return envs, look(envs)


def board_starts(rules: Rules, boards: int, seed: int = 1) -> Starts:
    """First boards of the game, for a WorldModelEnv."""
    infos = to_tensors(make_envs(rules, boards, "mixed").reset(seed=seed)[1])
    return infos["blocks"], infos["hunters"], infos["prey"]


def imagined_envs(
    num_envs: int, rules: Rules, co_players: str, starts: Starts, world_model=None, policy=None, **keywords
) -> WorldModelEnv:
    """Imagined boards, in the rules themselves if no world model is given."""
    world_model = world_model or TrueWorld(rules)
    return WorldModelEnv(
        num_envs, rules, co_players, world_model, policy, starts, make_state=JointState, **keywords
    )


def check_draws(table: TabularMOA, *states: torch.Tensor, repeats: int = 2000) -> None:
    """Actions are drawn as often as they are probable: of the counts that are expected to be 5 or more, the mean squared
    standard score is about 1 (Pearson 1900), and nothing impossible is drawn. states: what `probs` is called with."""
    probs = table.probs(*states).double()  # [n, A, 5 + k]
    actions = table.sample(*(part.repeat(repeats, *[1] * (part.dim() - 1)) for part in states))
    counts = F.one_hot(actions.view(repeats, *probs.shape[:2]), probs.shape[2]).sum(0)
    assert not counts[probs < 1e-9].any()
    tested = (repeats * probs >= 5) & (probs < 0.999)
    p, count = probs[tested], counts[tested]
    scores = (count - repeats * p).square() / (repeats * p * (1 - p))
    assert len(scores) > 50
    assert abs(scores.mean() - 1) < 4 * (2 / len(scores)) ** 0.5
