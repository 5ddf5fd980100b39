"""Gymnasium views: one learner a board, among scripted co-players.

    gymnasium.make("StagHunt-v0", co_players=("NS", "NS", "NH"))
    gymnasium.make_vec("StagHunt-v0", num_envs=1024, co_players=("NS", "NS", "NH"))

The vector view plays all boards on one core; the single view is a batch of one. Under `reset(seed=s)` board i draws
everything (boards, the learner's seat, the co-players' actions) from the stream (s, i): it does not depend on
`num_envs`, and the single view plays what board 0 plays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.render import RENDER_MODES, render_board
from envs.scripted import DATA_EPSILON, STRATEGIES, sample_actions, strategy_probs
from envs.stag_hunt import ACTIONS, PLANES, Rules, StagHunt

DEFAULT_CO_PLAYERS = ("NS", "NS", "NH")


def choose_rules(rules: Rules | None, keywords: dict[str, Any]) -> Rules:
    """`rules` itself, or `Rules(**keywords)`.

    Raises:
        ValueError: both are given, or a keyword's value is out of range.
        TypeError: `Rules` has no such field.
    """
    if rules is not None and keywords:
        raise ValueError(f"give either rules=... or single rules, not both: {', '.join(keywords)}")
    return rules or Rules(**keywords)


def planes_space(rules: Rules) -> Box:
    """The space of one hunter's observation: uint8 [5, H, W], each cell 0 or 1."""
    return Box(0, 1, (len(PLANES), rules.height, rules.width), np.uint8)


def check_render_mode(render_mode: str | None) -> str | None:
    """Returns `render_mode`. Raises: ValueError: it is neither None nor in RENDER_MODES."""
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"unknown render_mode {render_mode!r}: choose from {', '.join(RENDER_MODES)}")
    return render_mode


def _check_co_players(co_players: Sequence[str] | str | None, hunters: int) -> tuple[str, ...]:
    if co_players == "mixed":  # which of these each one is, is drawn
        return ("NS", "NH")
    if co_players is None:  # the default three, cut or repeated
        return tuple(DEFAULT_CO_PLAYERS[j % len(DEFAULT_CO_PLAYERS)] for j in range(hunters - 1))
    if isinstance(co_players, str) or len(co_players) != hunters - 1:
        raise ValueError(
            f"co_players: expected {hunters - 1} names for {hunters} hunters, got {co_players!r}"
        )
    for name in co_players:
        if name not in STRATEGIES:
            raise ValueError(f"co_players: unknown strategy {name!r}: choose from {', '.join(STRATEGIES)}")
    return tuple(co_players)


class StagHuntVectorEnv(VectorEnv):
    """N boards with one learner each, on one batched core.

    An episode is the learner's: `terminated` when it leaves (or a rule ends the board), `truncated` at the horizon;
    then the board is dealt anew. With SAME_STEP that happens in the same call: `obs` and `infos` are the new episode's;
    the last observation is `infos["final_obs"]` (object array [N], None where no episode ended) with the mask
    `infos["_final_obs"]`, its infos are `infos["final_info"]`, as in Gymnasium's own SyncVectorEnv.

    obs: uint8 [N, 5, H, W], the learner's planes. rewards: float32 [N]. terminated, truncated: bool [N].
    infos: `action_mask` int8 [N, 7], `seat` int64 [N], `tick` and `ticks_left` int32 [N] (see `StagHunt.ticks_left`),
    each with its mask `_<key>`, bool [N].

    `gymnasium.wrappers.vector.RecordEpisodeStatistics` counts right from Gymnasium 1.4 on. Before, it took the step after
    an end for a reset, as NEXT_STEP has it, and lost the first step of every later episode here.

    Args:
        num_envs: boards.
        rules: the game; or give its fields as keywords (`hunters=3, height=6, ...`).
        co_players: names of strategies; co_players[j] sits at seat (learner + 1 + j) mod A. None: NS, NS, NH, cut or
            repeated to A - 1 names. "mixed": each NS or NH with probability 1/2.
        team_episodes: how many episodes of a board the learner's seat, and who is who of a mixed team, stay what they are.
        epsilon: of the co-players, see `strategy_probs`.
        render_mode: None, "rgb_array" or "ansi".
        autoreset_mode: SAME_STEP; or DISABLED: boards that are over wait for `reset(options={"reset_mask": mask})`.
    Raises:
        ValueError: a wrong number of co-players, an unknown strategy, render mode or autoreset mode, epsilon, a rule or
            team_episodes out of range.
    """

    metadata = {  # noqa: RUF012  (Gymnasium's own form)
        "render_modes": list(RENDER_MODES), "render_fps": 4, "autoreset_mode": AutoresetMode.SAME_STEP,
    }  # fmt: skip

    def __init__(
        self,
        num_envs: int = 1,
        rules: Rules | None = None,
        co_players: Sequence[str] | str | None = None,
        epsilon: float = DATA_EPSILON,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        team_episodes: int = 1,
        **rule_keywords,
    ):
        r = choose_rules(rules, rule_keywords)
        self.co_players = _check_co_players(co_players, r.hunters)
        if not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon must be in [0, 1], got {epsilon!r}")
        if team_episodes < 1:
            raise ValueError(f"team_episodes must be at least 1, got {team_episodes!r}")
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.NEXT_STEP:
            raise ValueError("autoreset_mode: NEXT_STEP is not supported: choose SAME_STEP or DISABLED")
        self.core = StagHunt(num_envs, r)
        self.num_envs, self.epsilon = num_envs, epsilon
        self.render_mode = check_render_mode(render_mode)
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self._resets_itself = mode is AutoresetMode.SAME_STEP
        self.single_observation_space = planes_space(r)
        self.single_action_space = Discrete(len(ACTIONS))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = MultiDiscrete(np.full(num_envs, len(ACTIONS)))
        self.seats = np.zeros(num_envs, np.int64)  # the learner's seat on each board
        self._boards = np.arange(num_envs)
        self._over = np.ones(num_envs, bool)  # boards that wait for a reset
        self._dealt = False
        self._names = tuple(dict.fromkeys(self.co_players))  # each strategy once
        # [N, A], the strategy of the hunter k + 1 seats after the learner; the last is the learner itself, unused
        self._mixed, self._team_episodes = co_players == "mixed", team_episodes
        row = [0] * r.hunters if self._mixed else [self._names.index(name) for name in self.co_players] + [0]
        self._after_learner = np.tile(np.array(row), (num_envs, 1))
        self._episode = np.zeros(num_envs, np.int64)  # how many the board's team has begun

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Deal new boards.

        Args:
            seed: starts board i's stream at (seed, i); None goes on in the streams.
            options: `reset_mask`, bool [N], resets only these boards.
        Raises:
            ValueError: a seed that is not one whole number >= 0 or comes with a mask; a mask of wrong shape or dtype.
        """
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise ValueError(
                f"seed: expected one whole number (board i plays the stream (seed, i)), got {seed!r}"
            )
        mask = (options or {}).get("reset_mask")
        if mask is not None and (np.shape(mask) != (self.num_envs,) or np.asarray(mask).dtype != bool):
            raise ValueError(f"reset_mask: expected bool of shape ({self.num_envs},), got {mask!r}")
        self._deal(mask, seed)
        super().reset(seed=seed)
        return self._obs(), self._infos(np.ones(self.num_envs, bool))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Play one tick on all boards. actions: integers [N] in 0..6, the learners'.

        Raises:
            ValueError: wrong shape or dtype, or an action outside 0..6.
            gymnasium.error.ResetNeeded: before the first reset, or (DISABLED) on a board that is over.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions: expected integers of shape ({self.num_envs},), got {actions.dtype} {actions.shape}"
            )
        if actions.min() < 0 or actions.max() >= len(ACTIONS):
            raise ValueError(
                f"actions: must be in 0..{len(ACTIONS) - 1}, got {actions.min()} to {actions.max()}"
            )
        if self._over.any():
            raise ResetNeeded("no episode is running: call reset() before step()")
        joint = self._co_player_actions()  # int8 [N, A]
        joint[self._boards, self.seats] = actions
        _, *results = self.core.step(joint)
        rewards, terminated, truncated = (result[self._boards, self.seats] for result in results)
        done, infos = terminated | truncated, {}
        if done.any():
            if self._resets_itself:
                infos = self._final(done)
                self._deal(done)
            else:
                self._over = done
        infos.update(self._infos(np.ones(self.num_envs, bool)))
        return self._obs(), rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray | str, ...] | None:
        """One picture (uint8 [h, w, 3]) or text a board, the learner marked; None without a render mode."""
        if self.render_mode is None:
            return None
        if not self._dealt:
            raise ResetNeeded("nothing to show yet: call reset() before render()")
        state = self.core.state
        return tuple(
            render_board(self.render_mode, state, self.core.rules, i, int(seat))
            for i, seat in enumerate(self.seats)
        )

    # ---- parts

    def _deal(self, mask: np.ndarray | None, seed: int | None = None):
        """New boards and a new seat for each learner, where `mask` (bool [N], None: everywhere)."""
        self.core.reset(seed=seed, boards=mask)
        boards = self._boards if mask is None else np.flatnonzero(mask)
        self._over[boards], self._dealt = False, True
        if seed is not None:
            self._episode[:] = 0
        new = boards[self._episode[boards] % self._team_episodes == 0]
        self._episode[boards] += 1
        # Only the boards that are dealt may draw: how others fare must not move a board's stream.
        self.seats[new] = self.core.draw(new, 1)[:, 0] % np.uint64(self.core.rules.hunters)
        if self._mixed:
            others = self.core.rules.hunters - 1
            self._after_learner[new, :others] = self.core.draw(new, others) >> np.uint64(63)

    def _co_player_actions(self) -> np.ndarray:
        """int8 [N, A]: what each hunter would do as a co-player; the learner's own entry is a filler."""
        A = self.core.rules.hunters
        if A == 1:
            return np.zeros((self.num_envs, 1), np.int8)
        probs = strategy_probs(self.core, self._names, self.epsilon)  # [N, A, S, 7]
        who = np.take_along_axis(
            self._after_learner, (np.arange(A) - self.seats[:, None] - 1) % A, 1
        )  # [N, A]
        probs = np.take_along_axis(probs, who[:, :, None, None], 2)[:, :, 0]
        return sample_actions(probs, self.core.uniform(A))

    def _obs(self) -> np.ndarray:
        return self.core.obs[self._boards, self.seats]  # indexing by arrays copies: [N, 5, H, W]

    def _infos(self, mask: np.ndarray) -> dict[str, np.ndarray]:
        """The infos of the boards in `mask` (bool [N]); zeros elsewhere, as Gymnasium fills them."""
        values = {
            "action_mask": self.core.legal_actions()[self._boards, self.seats].astype(np.int8),
            "seat": self.seats,
            "tick": self.core.tick,
            "ticks_left": self.core.ticks_left,
        }
        infos = {}
        for key, value in values.items():
            infos[key] = value * mask.reshape(-1, *[1] * (value.ndim - 1))  # a copy
            infos[f"_{key}"] = mask.copy()
        return infos

    def _final(self, done: np.ndarray) -> dict[str, Any]:
        """`final_obs` and `final_info` of the boards in `done` (bool [N]), in the form of Gymnasium's SyncVectorEnv."""
        final_obs = np.full(self.num_envs, None, object)
        last = self._obs()[done]
        final_obs[done] = np.fromiter(last, object, len(last))
        return {
            "final_obs": final_obs, "_final_obs": done.copy(), "final_info": self._infos(done), "_final_info": done.copy(),
        }  # fmt: skip


class StagHuntEnv(gymnasium.Env):
    """One board with one learner: a batch of one that does not reset itself.

    obs: uint8 [5, H, W]. info: `action_mask` int8 [7] (for `action_space.sample(info["action_mask"])`), `seat`, `tick`,
    `ticks_left`. Arguments and errors are those of `StagHuntVectorEnv`.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        rules: Rules | None = None,
        co_players: Sequence[str] | str | None = None,
        epsilon: float = DATA_EPSILON,
        render_mode: str | None = None,
        team_episodes: int = 1,
        **rule_keywords,
    ):
        self._batch = StagHuntVectorEnv(
            1, rules, co_players, epsilon, render_mode, AutoresetMode.DISABLED, team_episodes, **rule_keywords
        )
        self.core, self.co_players, self.render_mode = self._batch.core, self._batch.co_players, render_mode
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Deal a new board; `seed` starts its stream, None goes on in it. No options are known."""
        obs, infos = self._batch.reset(seed=seed)
        super().reset(seed=seed)
        return obs[0], self._info(infos)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Play one tick.

        Raises:
            ValueError: the action is not a whole number in 0..6.
            gymnasium.error.ResetNeeded: before the first reset or after the end of an episode.
        """
        obs, rewards, terminated, truncated, infos = self._batch.step(np.asarray(action)[None])
        return obs[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), self._info(infos)

    def render(self) -> np.ndarray | str | None:
        """A picture (uint8 [h, w, 3]) or a text, the learner marked; None without a render mode."""
        return None if self.render_mode is None else self._batch.render()[0]

    @staticmethod
    def _info(infos: dict[str, np.ndarray]) -> dict[str, Any]:
        rows = {key: value[0] for key, value in infos.items() if not key.startswith("_")}
        return {key: row if row.ndim else row.item() for key, row in rows.items()}
