"""The loop that hop_ppo.py is compared with: CleanRL's ppo.py and its usual hyperparameters; conv 16-32-32 and 512 units on
the observer-first joint state. Called by `python -m benchmarks.hop_ppo --what ladder`.

It plays 64 boards with a learner among `mixed` co-players: `plain_envs`, boards of `tests/reference.py` in a SyncVectorEnv,
or `fast_envs`, the same in the batched game.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import gymnasium
import numpy as np
import torch
import torch.nn as nn
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch.distributions import Categorical

from envs import DATA_EPSILON, Rules
from envs.vector_env import hop_space
from hop_ppo import Observation, encode_planes

LEARNING_RATE = 2.5e-4  # falls to zero
GAMMA = 0.99
GAE_LAMBDA = 0.95
NUM_MINIBATCHES = 4
UPDATE_EPOCHS = 4
CLIP_COEF = 0.2
ENT_COEF = 0.01
VF_COEF = 0.5
MAX_GRAD_NORM = 0.5

MakeEnvs = Callable[[Rules, int, int], VectorEnv]
Row = tuple[float, int, float]  # seconds, environment steps, mean return of the episodes that ended


# ---- the game, slow and fast


class PlainStagHunt(gymnasium.Env):
    """One board of the plain-Python game; the learner's episode ends when it leaves or at the horizon.

    obs: uint8 [H, W, A+3], the learner first, then BLOCKS, STAGS, HARES.
    """

    def __init__(self, rules: Rules, number: int, seed: int):
        # Plain Python, slow and obvious: what users have. Imported here as it needs hypothesis.
        from tests.reference import Reference

        self.rules = rules
        self.random = random.Random(seed * 1000 + number)
        self.game = Reference(rules, seed, number)
        self.observation_space = hop_space(rules)
        self.action_space = gymnasium.spaces.Discrete(7)

    def reset(self, *, seed=None, options=None):
        self.game.reset()
        self.seat = self.random.randrange(self.rules.hunters)
        self.strategies = [self.random.choice(("NS", "NH")) for _ in range(self.rules.hunters)]
        return self.obs(), self.info()

    def step(self, action):
        joint = [self.choose(seat, int(action)) for seat in range(self.rules.hunters)]
        rewards, terminated, truncated = self.game.step(joint)
        seat = self.seat
        return self.obs(), rewards[seat], terminated[seat], truncated[seat], self.info()

    def choose(self, seat: int, action: int) -> int:
        """What a hunter does. action: the learner's."""
        if seat == self.seat:
            return action
        probs = self.game.probs(seat, self.strategies[seat], DATA_EPSILON)
        return self.random.choices(range(7), probs)[0]

    def obs(self) -> np.ndarray:
        hunters = self.rules.hunters
        obs = np.zeros(self.observation_space.shape, np.uint8)
        for seat, cell in enumerate(self.game.hunters):
            if cell is not None:
                obs[cell][(seat - self.seat) % hunters] = 1
        blocks = set(self.game.cells) - self.game.free
        for plane, things in enumerate((blocks, self.game.stags, self.game.hares), start=hunters):
            for cell in filter(None, things):
                obs[cell][plane] = 1
        return obs

    def info(self) -> dict:
        mask = np.zeros(7, np.int8)
        mask[self.game.legal(self.seat)] = 1
        return {"action_mask": mask, "tick": self.game.tick}


def plain_envs(rules: Rules, num_envs: int, seed: int) -> SyncVectorEnv:
    makes = [lambda number=number: PlainStagHunt(rules, number, seed) for number in range(num_envs)]
    return SyncVectorEnv(makes, autoreset_mode=AutoresetMode.SAME_STEP)


def fast_envs(rules: Rules, num_envs: int, seed: int) -> VectorEnv:
    """The same observations, rewards and ends from the batched game."""
    settings = dict(rules=rules, co_players="mixed", layout="hop")
    return gymnasium.make_vec("StagHunt-v0", num_envs=num_envs, **settings)


# ---- the agent


def to_planes(obs: np.ndarray, tick: np.ndarray, rules: Rules) -> torch.Tensor:
    """float [N, A+4, H, W]: the joint state and a plane with the tick. obs: uint8 [N, H, W, A+3], tick: int [N]."""
    planes = torch.as_tensor(obs).permute(0, 3, 1, 2).float()
    time_plane = torch.as_tensor(tick) / rules.horizon
    time_plane = time_plane[:, None, None, None].expand(-1, 1, *planes.shape[2:])
    return torch.cat([planes, time_plane], 1)


def layer_init(layer: nn.Module, std: float = 2**0.5) -> nn.Module:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, 0.0)
    return layer


class ConvAgent(nn.Module):
    def __init__(self, rules: Rules):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((rules.hunters + 4, 16, 32, 32)):
            layers.append(layer_init(nn.Conv2d(inputs, outputs, 3, padding=1)))
            layers.append(nn.ReLU())
        hidden = layer_init(nn.Linear(32 * rules.cells, 512))
        self.network = nn.Sequential(*layers, nn.Flatten(), hidden, nn.ReLU())
        self.actor = layer_init(nn.Linear(512, 7), 0.01)
        self.critic = layer_init(nn.Linear(512, 1), 1)

    def forward(self, planes: torch.Tensor, mask: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """planes: float [N, A+4, H, W]; mask: bool [N, 7]. Returns: the policy and V [N]."""
        hidden = self.network(planes)
        logits = self.actor(hidden).masked_fill(~mask, -1e8)
        return Categorical(logits=logits), self.critic(hidden)[:, 0]

    def as_policy(self, rules: Rules) -> Callable:
        """The policy for `hop_ppo.evaluate`."""
        channels = rules.hunters + 4  # of those that follow, nothing is used

        def policy(obs: Observation, opponent_info: torch.Tensor) -> tuple[torch.Tensor, None]:
            planes = encode_planes(obs, opponent_info, rules.prey_counts, rules.height, rules.width)
            return self(planes[:, :channels], obs.action_mask)[0].logits, None

        return policy


# ---- PPO


@dataclass
class Batch:
    """The samples of a rollout, [T, N, ..]."""

    planes: torch.Tensor
    masks: torch.Tensor
    actions: torch.Tensor
    logprobs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def flat(self) -> list[torch.Tensor]:
        return [part.flatten(0, 1) for part in vars(self).values()]


class Runner:
    """Environments, and where the next rollout goes on."""

    def __init__(self, envs: VectorEnv, rules: Rules, seed: int, num_steps: int):
        self.envs = envs
        self.rules = rules
        self.num_steps = num_steps
        obs, infos = envs.reset(seed=seed)
        self.next_planes, self.next_mask = self.read(obs, infos)
        self.next_done = torch.zeros(envs.num_envs)
        self.episode_returns = np.zeros(envs.num_envs)

    def read(self, obs: np.ndarray, infos: dict) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.as_tensor(infos["action_mask"]).bool()
        return to_planes(obs, infos["tick"], self.rules), mask

    @torch.no_grad()
    def rollout(self, agent: ConvAgent) -> tuple[Batch, list[float]]:
        """num_steps ticks. Returns: the samples, and the returns of the episodes that ended."""
        shape = (self.num_steps, self.envs.num_envs)
        planes = torch.zeros(self.num_steps, *self.next_planes.shape)
        masks = torch.zeros(*shape, 7, dtype=torch.bool)
        actions = torch.zeros(shape)
        logprobs = torch.zeros(shape)
        rewards = torch.zeros(shape)
        dones = torch.zeros(shape)
        values = torch.zeros(shape)
        finished: list[float] = []
        for step in range(self.num_steps):
            planes[step] = self.next_planes
            masks[step] = self.next_mask
            dones[step] = self.next_done
            policy, values[step] = agent(self.next_planes, self.next_mask)
            action = policy.sample()
            actions[step] = action
            logprobs[step] = policy.log_prob(action)
            rewards[step] = self.step(action.numpy(), finished)
        next_value = agent(self.next_planes, self.next_mask)[1]
        advantages = compute_gae(rewards, values, dones, next_value, self.next_done)
        batch = Batch(planes, masks, actions, logprobs, values, advantages, advantages + values)
        return batch, finished

    def step(self, actions: np.ndarray, finished: list[float]) -> torch.Tensor:
        """Returns: the rewards."""
        obs, reward, terminated, truncated, infos = self.envs.step(actions)
        self.episode_returns += reward
        done = terminated | truncated
        finished += self.episode_returns[done].tolist()
        self.episode_returns[done] = 0.0
        self.next_planes, self.next_mask = self.read(obs, infos)
        self.next_done = torch.as_tensor(done).float()
        return torch.as_tensor(reward)


def compute_gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    dones: torch.Tensor,
    next_value: torch.Tensor,
    next_done: torch.Tensor,
) -> torch.Tensor:
    """float [T, N]. dones: whether the episode of the observation is a new one. A truncated one counts as terminated."""
    advantages = torch.zeros_like(rewards)
    lastgaelam = torch.zeros_like(next_value)
    for t in reversed(range(len(rewards))):
        nextnonterminal = 1.0 - next_done
        delta = rewards[t] + GAMMA * next_value * nextnonterminal - values[t]
        lastgaelam = delta + GAMMA * GAE_LAMBDA * nextnonterminal * lastgaelam
        advantages[t] = lastgaelam
        next_done = dones[t]
        next_value = values[t]
    return advantages


def update(agent: ConvAgent, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    flat = batch.flat()
    batch_size = len(flat[0])
    for _ in range(UPDATE_EPOCHS):
        for mb_inds in torch.randperm(batch_size).split(batch_size // NUM_MINIBATCHES):
            loss = compute_loss(agent, Batch(*(part[mb_inds] for part in flat)))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
            optimizer.step()


def compute_loss(agent: ConvAgent, batch: Batch) -> torch.Tensor:
    policy, newvalue = agent(batch.planes, batch.masks)
    ratio = (policy.log_prob(batch.actions) - batch.logprobs).exp()
    advantages = batch.advantages
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    pg_loss1 = -advantages * ratio
    pg_loss2 = -advantages * ratio.clamp(1 - CLIP_COEF, 1 + CLIP_COEF)
    pg_loss = torch.max(pg_loss1, pg_loss2).mean()
    v_clipped = batch.values + (newvalue - batch.values).clamp(-CLIP_COEF, CLIP_COEF)
    v_loss_unclipped = (newvalue - batch.returns) ** 2
    v_loss_clipped = (v_clipped - batch.returns) ** 2
    v_loss = 0.5 * torch.max(v_loss_unclipped, v_loss_clipped).mean()
    return pg_loss - ENT_COEF * policy.entropy().mean() + VF_COEF * v_loss


def train(
    make_envs: MakeEnvs, seconds: float, seed: int = 1, num_envs: int = 64, num_steps: int = 128
) -> tuple[list[Row], Callable]:
    """make_envs: plain_envs or fast_envs. The learning rate falls to zero at the end of `seconds`.

    Returns: a row an update, and a policy for `hop_ppo.evaluate`.
    """
    torch.manual_seed(seed)
    rules = Rules()
    envs = make_envs(rules, num_envs, seed)
    agent = ConvAgent(rules)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=1e-5)
    runner = Runner(envs, rules, seed, num_steps)
    rows: list[Row] = []
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - elapsed / seconds)
        batch, finished = runner.rollout(agent)
        update(agent, optimizer, batch)
        steps = (len(rows) + 1) * num_envs * num_steps
        mean_return = float(np.mean(finished)) if finished else np.nan
        rows.append((time.perf_counter() - start, steps, mean_return))
    return rows, agent.as_policy(rules)
