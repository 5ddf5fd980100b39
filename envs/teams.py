"""Learners among co-players, on many boards at once: who sits where, what the scripted ones do, and new deals.

A team is written `3NS`, `1NS2NH`, `3RANDOM`, ...: so many co-players of each strategy, in random seats. `mixed` draws each
co-player NS or NH with probability 1/2. `self`: every seat learns.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from envs.scripted import DATA_EPSILON, STRATEGIES, parse_team, sample_actions, strategy_probs
from envs.stag_hunt import Rules, StagHunt, State

LEARNER = -1  # in `who`
EPISODE_DRAWS = 2**32  # more numbers than an episode of a board draws


class Teams:
    """B boards; on each one learner in a random seat, or (`self`) a learner in every seat.

    A team keeps its seats for `team_episodes` episodes. A board is dealt anew by `deal`, never by itself. All that is
    drawn comes from the board's own stream: board i of `reset(seed)` does not depend on how many boards there are.

    Attributes: core; seats int64 [B], the learner's (0 for `self`); who int64 [B, A], index into STRATEGIES, LEARNER for
    a learner; episode int64 [B], how many this team has begun, from 1.
    Raises: ValueError: see `parse_team`; epsilon outside [0, 1].
    """

    def __init__(
        self,
        num_boards: int,
        rules: Rules,
        co_players: str,
        epsilon: float = DATA_EPSILON,
        team_episodes: int = 1,
    ):
        self.core, self.epsilon, self.team_episodes = StagHunt(num_boards, rules), epsilon, team_episodes
        self.everyone = co_players == "self"
        self.team = np.array(
            [STRATEGIES.index(name) for name in parse_team(co_players, rules.hunters - 1)], np.int64
        )
        self.seats = np.zeros(num_boards, np.int64)
        self.who = np.full((num_boards, rules.hunters), LEARNER, np.int64)
        self.episode = np.zeros(num_boards, np.int64)

    def reset(self, seed: int) -> None:
        """New boards and new teams everywhere."""
        self.core.reset(seed=seed)
        self.episode[:] = 0
        self._seat(np.arange(self.core.num_boards))

    def deal(self, boards: np.ndarray) -> np.ndarray:
        """A new episode on these boards (bool [B]). Returns: bool [B], where the team is a new one as well."""
        new = np.zeros(len(boards), bool)
        if boards.any():
            # An episode draws from a place of its own in the board's stream: how long the ones before took changes nothing.
            counter = self.core.counter
            counter[boards] = (counter[boards] // EPISODE_DRAWS + 1) * EPISODE_DRAWS
            self.core.reset(boards=boards)
            new = boards & (self.episode >= self.team_episodes)
            self.episode[boards & ~new] += 1
            self._seat(np.flatnonzero(new))
        return new

    def _seat(self, boards: np.ndarray) -> None:
        A = self.core.rules.hunters
        self.episode[boards] = 1
        if self.everyone or not len(boards):
            return
        draws = (self.core.draw(boards, A) >> np.uint64(11)) * 2.0**-53  # [n, A]
        seats = (draws[:, 0] * A).astype(np.int64)
        mixed = (draws[:, 1:] < 0.5).astype(np.int64)  # 0: NS, 1: NH
        others = self.team[np.argsort(draws[:, 1:], 1)] if len(self.team) else mixed
        self.seats[boards] = seats
        self.who[boards[:, None], (seats[:, None] + np.arange(1, A)) % A] = others
        self.who[boards, seats] = LEARNER

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One tick. actions: integers [B, L], of the learner (L = 1), or of all hunters in seat order (`self`).

        Returns: rewards float32 [B, A], terminated bool [B, A], truncated bool [B, A]; what was done is in
        `core.effective_actions`.
        """
        joint = np.asarray(actions)
        if not self.everyone:
            joint = self.co_player_actions()
            np.put_along_axis(joint, self.seats[:, None], actions.astype(joint.dtype), 1)
        return self.core.step(joint)[1:]

    def co_player_actions(self) -> np.ndarray:
        """int8 [B, A], drawn; STAY for learners."""
        probs = strategy_probs(self.core, STRATEGIES, self.epsilon)  # [B, A, S, 7]
        probs = np.take_along_axis(probs, self.who.clip(0)[:, :, None, None], 2)[:, :, 0]
        return sample_actions(probs, self.core.uniform(self.core.rules.hunters))

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that a resumed game needs."""
        return {f"core.{key}": value for key, value in asdict(self.core.state).items()} | dict(
            seats=self.seats.copy(), who=self.who.copy(), episode=self.episode.copy()
        )

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        core = {
            key.removeprefix("core."): np.asarray(value)
            for key, value in state.items()
            if key.startswith("core.")
        }
        self.core.set_state(State(**core))
        self.seats, self.who, self.episode = (np.array(state[key]) for key in ("seats", "who", "episode"))
