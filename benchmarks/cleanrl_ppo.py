"""The loop that hop_ppo.py is compared with: CleanRL's ppo.py and its usual hyperparameters; conv 16-32-32 and 512 units on
the observer-first joint state. Called by `python -m benchmarks.hop_ppo --what ladder`.

It plays 64 boards with a learner among `mixed` co-players: `plain_envs`, boards of `tests/reference.py` in a SyncVectorEnv,
or `FastEnvs`, the same in the batched game.
"""

import random
import time
from itertools import pairwise

import gymnasium
import numpy as np
import torch
import torch.nn as nn
from torch.distributions import Categorical

from boards import Real, sights
from envs import DATA_EPSILON, Rules
from hop_ppo import Observation, planes_of


class PlainStagHunt(gymnasium.Env):
    """One board of the plain-Python game; the learner's episode ends when it leaves or at the horizon."""

    def __init__(self, rules: Rules, number: int, seed: int):
        from tests.reference import (
            Reference,
        )  # plain Python, slow and obvious: what users have. It needs hypothesis

        self.rules, self.random = rules, random.Random(seed * 1000 + number)
        self.game = Reference(rules, seed, number)
        self.observation_space = gymnasium.spaces.Box(
            0, 1, (rules.hunters + 4, rules.height, rules.width), np.float32
        )
        self.action_space = gymnasium.spaces.Discrete(7)

    def reset(self, *, seed=None, options=None):
        self.game.reset()
        self.seat = self.random.randrange(self.rules.hunters)
        self.who = [self.random.choice(("NS", "NH")) for _ in range(self.rules.hunters)]
        return self._obs(), self._info()

    def step(self, action):
        joint = [
            int(action)
            if seat == self.seat
            else self.random.choices(range(7), self.game.probs(seat, who, DATA_EPSILON))[0]
            for seat, who in enumerate(self.who)
        ]
        rewards, terminated, truncated = self.game.step(joint)
        return self._obs(), rewards[self.seat], terminated[self.seat], truncated[self.seat], self._info()

    def _obs(self):
        """The joint state, the learner's plane first, and a plane with the tick."""
        obs = np.zeros(self.observation_space.shape, np.float32)
        A = self.rules.hunters
        for seat, cell in enumerate(self.game.hunters):
            if cell is not None:
                obs[(seat - self.seat) % A][cell] = 1
        for i, things in enumerate((set(self.game.cells) - self.game.free, self.game.stags, self.game.hares)):
            for cell in filter(None, things):
                obs[A + i][cell] = 1
        obs[A + 3] = self.game.tick / self.rules.horizon
        return obs

    def _info(self):
        mask = np.zeros(7, bool)
        mask[self.game.legal(self.seat)] = True
        return {"action_mask": mask}


def plain_envs(rules: Rules, num_envs: int, seed: int) -> gymnasium.vector.SyncVectorEnv:
    makes = [lambda number=number: PlainStagHunt(rules, number, seed) for number in range(num_envs)]
    return gymnasium.vector.SyncVectorEnv(makes, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)


class FastEnvs:
    """The same observations, rewards and ends from the batched game."""

    def __init__(self, rules: Rules, num_envs: int, seed: int):
        self.rules, self.game = rules, Real(num_envs, rules, "mixed", seed)

    def reset(self):
        seen = sights(self.game, torch.zeros(*self.game.who.shape, 0))[1]
        return obs_of(seen, self.rules).numpy(), {"action_mask": seen.legal.numpy()}

    def step(self, actions):
        found = self.game.step(torch.as_tensor(actions))
        rewards, terminated, truncated = (
            array.gather(1, self.game.seats[:, None])[:, 0].numpy() for array in found
        )
        self.game.deal(torch.as_tensor(terminated | truncated))
        obs, infos = self.reset()
        return obs, rewards, terminated, truncated, infos


def obs_of(seen: Observation, rules: Rules) -> torch.Tensor:
    """As `PlainStagHunt._obs`, float [N, A + 4, H, W]."""
    return planes_of(seen, rules.stags, rules.height, rules.width)[:, : rules.hunters + 4]


def layer_init(layer, std=2**0.5):
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, 0.0)
    return layer


class ConvAgent(nn.Module):
    def __init__(self, rules: Rules):
        super().__init__()
        sizes, layers = (rules.hunters + 4, 16, 32, 32), []
        for inputs, outputs in pairwise(sizes):
            layers += [layer_init(nn.Conv2d(inputs, outputs, 3, padding=1)), nn.ReLU()]
        self.network = nn.Sequential(
            *layers, nn.Flatten(), layer_init(nn.Linear(32 * rules.cells, 512)), nn.ReLU()
        )
        self.actor, self.critic = layer_init(nn.Linear(512, 7), 0.01), layer_init(nn.Linear(512, 1), 1)

    def forward(self, obs, mask):
        hidden = self.network(obs)
        return Categorical(logits=self.actor(hidden).masked_fill(~mask, -1e8)), self.critic(hidden)[:, 0]


def train(make_envs, seconds: float, seed: int = 1, num_envs: int = 64, num_steps: int = 128):
    """make_envs: plain_envs or FastEnvs. The learning rate falls to zero at the end of `seconds`.

    Returns: rows (seconds, environment steps, mean return of the episodes that ended), and a policy for `hop_ppo.judge`.
    """
    torch.manual_seed(seed)
    rules = Rules()
    envs, agent = make_envs(rules, num_envs, seed), ConvAgent(rules)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
    next_obs, infos = envs.reset()
    shape = (num_steps, num_envs)
    obs, masks = torch.zeros(num_steps, *next_obs.shape), torch.zeros(*shape, 7, dtype=torch.bool)
    actions, log_probs, rewards, dones, values = torch.zeros(5, *shape)
    batch, gamma, gae_lambda, clip, rows, start = (
        num_envs * num_steps,
        0.99,
        0.95,
        0.2,
        [],
        time.perf_counter(),
    )
    next_obs, next_mask, next_done = (
        torch.tensor(next_obs),
        torch.tensor(infos["action_mask"]),
        torch.zeros(num_envs),
    )
    running = np.zeros(num_envs)
    while (elapsed := time.perf_counter() - start) < seconds:
        optimizer.param_groups[0]["lr"] = 2.5e-4 * (1 - elapsed / seconds)
        finished = []
        for t in range(num_steps):
            obs[t], masks[t], dones[t] = next_obs, next_mask, next_done
            with torch.no_grad():
                policy, values[t] = agent(next_obs, next_mask)
            action = policy.sample()
            actions[t], log_probs[t] = action, policy.log_prob(action)
            next_obs, reward, terminated, truncated, infos = envs.step(action.numpy())
            running += reward
            done = terminated | truncated
            finished += running[done].tolist()
            running[done] = 0.0
            rewards[t] = torch.tensor(reward)
            next_obs, next_mask = torch.tensor(next_obs), torch.tensor(infos["action_mask"])
            next_done = torch.tensor(done).float()
        with torch.no_grad():
            next_value = agent(next_obs, next_mask)[1]
        advantages, last = torch.zeros_like(rewards), 0.0
        for t in reversed(range(num_steps)):
            follow = 1.0 - (next_done if t == num_steps - 1 else dones[t + 1])
            delta = (
                rewards[t]
                + gamma * (next_value if t == num_steps - 1 else values[t + 1]) * follow
                - values[t]
            )
            advantages[t] = last = delta + gamma * gae_lambda * follow * last
        flat = [
            array.flatten(0, 1)
            for array in (obs, masks, actions, log_probs, advantages, advantages + values, values)
        ]
        for _ in range(4):
            for index in torch.randperm(batch).split(batch // 4):
                b_obs, b_mask, b_action, b_log_prob, b_advantage, b_return, b_value = (
                    array[index] for array in flat
                )
                policy, value = agent(b_obs, b_mask)
                ratio = (policy.log_prob(b_action) - b_log_prob).exp()
                b_advantage = (b_advantage - b_advantage.mean()) / (b_advantage.std() + 1e-8)
                pg_loss = torch.max(
                    -b_advantage * ratio, -b_advantage * ratio.clamp(1 - clip, 1 + clip)
                ).mean()
                v_clipped = b_value + (value - b_value).clamp(-clip, clip)
                v_loss = 0.5 * torch.max((value - b_return) ** 2, (v_clipped - b_return) ** 2).mean()
                loss = pg_loss - 0.01 * policy.entropy().mean() + 0.5 * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        rows.append(
            (
                time.perf_counter() - start,
                (len(rows) + 1) * batch,
                float(np.mean(finished)) if finished else np.nan,
            )
        )
    return rows, lambda seen: (agent(obs_of(seen, rules), seen.legal)[0].logits, None)
