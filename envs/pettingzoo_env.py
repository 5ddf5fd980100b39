"""The PettingZoo view: all hunters are agents. Made by `envs.parallel_env`, which alone needs PettingZoo.

Importing this module registers the games with PettingZoo, where it has a registry (1.27 and later):

    import pettingzoo, envs.pettingzoo_env
    env = pettingzoo.make("parallel", "StagHunt-v0", hares=2)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pettingzoo
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv

from envs.core import GameRules, make_core
from envs.games import REGISTERED
from envs.grid import joint_to_hop, planes_to_joint
from envs.render import RENDER_MODES, render_board
from envs.vector_env import (
    LAYOUTS,
    check_choice,
    check_render_mode,
    choose_rules,
    hop_space,
    open_window,
    planes_space,
    whole_action,
)
from envs.window import FPS, HUMAN, WINDOW_MODES


class BoardParallelEnv(ParallelEnv):
    """One board, agents "hunter_0", "hunter_1", ... in seat order.

    An agent leaves `agents` when it leaves the board.

    Observations: uint8, the "planes" [3+k, H, W], or "hop" [H, W, A+1+k], the observer first; k kinds of prey, 2 in the
    stag hunt. infos: `action_mask` int8 [5+k], `tick`, `ticks_left` (see `Board.ticks_left`).
    Under `reset(seed=s)` it plays board 0 of `Board.reset(seed=s)`.

    Args:
        rules: of any game; or give their fields as keywords (`hunters=3, height=6, ...`).
        render_mode: None, "rgb_array", "ansi", or "human": `reset` and `step` show the board in a window, by pygame.
        layout: of the observations, "planes" or "hop".
        game: one of GAMES, whose rules the keywords are; None: that of `rules`, or the stag hunt.
    Raises:
        ValueError: an unknown render mode, layout or game, a rule out of range, or both `rules` and single rules.
        gymnasium.error.DependencyNotInstalled: "human" without pygame.
    """

    metadata = {  # noqa: RUF012  (PettingZoo's own form)
        "name": "stag_hunt_v0",
        "render_modes": list(WINDOW_MODES),
        "render_fps": FPS,
        "is_parallelizable": True,
    }

    def __init__(
        self,
        rules: GameRules | None = None,
        render_mode: str | None = None,
        layout: str = "planes",
        game: str | None = None,
        **rule_keywords: Any,
    ):
        r = choose_rules(rules, game, rule_keywords)
        self.metadata = {**self.metadata, "name": f"{r.game.name}_v0"}
        self.layout = check_choice("layout", layout, LAYOUTS)
        self.core = make_core(1, r)
        self.render_mode = check_render_mode(render_mode, (*RENDER_MODES, HUMAN))
        self._window = open_window(render_mode, r.game)
        self.possible_agents = [f"hunter_{seat}" for seat in range(r.hunters)]
        self.agents: list[str] = []
        space = planes_space if layout == "planes" else hop_space
        self.observation_spaces = {agent: space(r) for agent in self.possible_agents}
        self.action_spaces = {agent: Discrete(r.game.num_actions) for agent in self.possible_agents}
        self.state_space = Box(0, 1, (r.hunters + 1 + r.game.kinds, r.height, r.width), np.uint8)
        self._seats = {agent: seat for seat, agent in enumerate(self.possible_agents)}
        self._has_board = False

    def observation_space(self, agent: str) -> Box:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Discrete:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Draw a new board; `seed` starts its stream, None goes on in it.

        Returns: (observations, infos) by agent.
        """
        self.core.reset(seed=seed)
        self.agents = self.possible_agents[:]
        self._has_board = True
        self._show()
        return self._observations(self.agents), self._infos(self.agents)

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        """Play one tick.

        Args: actions: one of 0..4+k for each agent in `agents`; those of agents that have left are ignored.
        Returns: observations, rewards, terminations, truncations, infos of the agents that were on the board.
        Raises:
            ValueError: an agent's action is missing or not in 0..4+k, or there is no such agent.
            gymnasium.error.ResetNeeded: before the first reset or after the board has ended.
        """
        if not self.agents:
            raise ResetNeeded("no hunter is on the board: call reset() before step()")
        players = self.agents
        _, rewards, terminated, truncated = self.core.step(self._joint_action(actions))
        done = (terminated | truncated)[0]
        self.agents = [agent for agent in players if not done[self._seats[agent]]]
        self._show()
        return (
            self._observations(players),
            {agent: float(rewards[0, self._seats[agent]]) for agent in players},
            {agent: bool(terminated[0, self._seats[agent]]) for agent in players},
            {agent: bool(truncated[0, self._seats[agent]]) for agent in players},
            self._infos(players),
        )

    def state(self) -> np.ndarray:
        """The joint state, uint8 [A+1+k, H, W]: each hunter's plane in seat order, blocks, each kind of prey."""
        return planes_to_joint(self.core.obs[0])

    def render(self) -> np.ndarray | str | None:
        """A picture (uint8 [h, w, 3]) or a text; None without a render mode, and with "human"."""
        if self.render_mode in (None, HUMAN):
            return None
        if not self._has_board:
            raise ResetNeeded("nothing to show yet: call reset() before render()")
        return render_board(self.render_mode, self.core.state, self.core.rules, 0)

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(render_board("rgb_array", self.core.state, self.core.rules, 0))

    def _joint_action(self, actions: dict[str, int]) -> np.ndarray:
        """int64 [1, A]; checked here, so that an error leaves the board as it was."""
        unknown = actions.keys() - self._seats.keys()
        if unknown:
            raise ValueError(f"actions: no such agent: {min(unknown, key=str)}")
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise ValueError(f"actions: none for {', '.join(missing)}")
        joint = np.zeros((1, len(self._seats)), np.int64)
        num_actions = self.core.rules.game.num_actions
        for agent in self.agents:
            joint[0, self._seats[agent]] = whole_action(actions[agent], f"actions: {agent}", num_actions)
        return joint

    def _observations(self, agents: list[str]) -> dict[str, np.ndarray]:
        if self.layout == "planes":
            return {agent: self.core.obs[0, self._seats[agent]].copy() for agent in agents}
        joint = self.state()
        kinds = self.core.rules.game.kinds
        return {agent: joint_to_hop(joint, self._seats[agent], kinds) for agent in agents}

    def _infos(self, agents: list[str]) -> dict[str, dict]:
        legal = self.core.legal_actions()[0].astype(np.int8)
        tick = int(self.core.tick[0])
        ticks_left = int(self.core.ticks_left[0])
        infos = {}
        for agent in agents:
            action_mask = legal[self._seats[agent]].copy()
            infos[agent] = {"action_mask": action_mask, "tick": tick, "ticks_left": ticks_left}
        return infos


StagHuntParallelEnv = BoardParallelEnv


if hasattr(pettingzoo, "register"):
    for _env_id, _keywords in REGISTERED.items():
        _rules = {
            key: value for key, value in _keywords.items() if key not in ("co_players", "team_episodes")
        }
        pettingzoo.register("parallel", _env_id, "envs.pettingzoo_env:BoardParallelEnv", kwargs=_rules)
