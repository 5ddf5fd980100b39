"""Boards played inside a world model, behind the vector environment's interface (as in DIAMOND,
Alonso et al. 2024).

The networks are handed in: a world model says what happens, a policy says what co-players do.
Built in: when a board ends. Every player knows that rule of the game (`rules.ended`, such as no
hunter is left, or no drift; or the horizon), which is asked of the imagined board. A joint state
does not tell all of it, so the end that the world model predicts is not used. Who leaves the
board, and what is captured, is as the world model says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium.error import ResetNeeded

from envs.core import GameRules, first_hunt_after, kind_slices, legal_cells
from envs.game import STAY
from envs.grid import FAR, distance_fields, joint_to_planes
from envs.scripted import parse_team
from envs.vector_env import EPISODES, LEARNER, NO_LAYOUT, check_choice, check_state, count_rows

Starts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Infos = dict[str, torch.Tensor]
Step = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor, Infos]

_BOARD_STATE = ("blocks", "hunters", "prey", "tick", "first_hunt", "strategy_ids", "learner_seats")
_EPISODE_STATE = ("team_episode", "terminated", "truncated", "joint_actions", "joint_rewards")


class WorldModelEnv:
    """N learners among co-players on B imagined boards; rows, episodes and infos are those of
    `BoardVectorEnv`.

    All that is returned is a torch tensor. The caller resets boards, as with DISABLED. Draws
    come from torch's global generator. obs: None (layout="none"), or ("hop") uint8 [N, H, W, A+1+k],
    the learner first. rewards: float32 [N], as the world model predicts them. `joint_actions` in
    the infos are what the world model was given, not always legal.

    Args:
        num_envs: rows, N.
        rules: of any game. Of the rewards and captures nothing is used: the world model predicts
            them.
        co_players: a team's text, "mixed", "self", or "goals": each has one of the goals that `co_player_policy`
            knows, or none of them; a team's shares are drawn first, uniformly (Dirichlet), so that teams of one kind
            are as likely as any others.
        world_model: its `step(state, actions int64 [B, A])` returns the state after, rewards
            float [B, A] and one value that is not used. A state has `hunters` and `prey`.
        co_player_policy: its `sample` is called with blocks bool [B, K], hunters int64 [B, A],
            prey int64 [B, P], tick int64 [B] and goals int64 [B, A] (0, 1: the game's first and
            second; 2: none; or as `num_goals` says). Returns: actions, int64 [B, A]. None in self-play. `load_state_dict`
            calls its `clear()` and that of the world model, if they have one: they forget what
            they have computed of earlier boards.
        starts: boards to begin from, M of them: blocks bool [M, K], hunters int64 [M, A], prey
            int64 [M, P]. The attribute may be assigned at any time.
        team_episodes: how many episodes of a board its seats and co-players stay what they are.
        num_goals: of `co_player_policy`, for the team "goals"; the number itself is none of them. By default those
            of the game.
        episode: "learner" or "board"; self-play needs "board".
        make_state: called with blocks float [B, K], hunters, prey, and how many prey there are of
            each kind, a tuple.
        layout: of `obs`, "none" or "hop".
    Raises:
        ValueError: an unknown team, episode or layout; self-play with "learner" or N not a
        multiple of A.
    """

    def __init__(
        self,
        num_envs: int,
        rules: GameRules,
        co_players: str,
        world_model: Any,
        co_player_policy: Any,
        starts: Starts,
        team_episodes: int = 1,
        episode: str = "learner",
        num_goals: int | None = None,
        *,
        make_state: Callable[..., Any],
        layout: str = NO_LAYOUT,
    ):
        hunters = rules.hunters
        game = rules.game
        team = [] if co_players == "goals" else parse_team(co_players, hunters - 1, game)
        self.self_play = co_players == "self"
        self.num_envs = num_envs
        self.episode = check_choice("episode", episode, EPISODES)
        self.rows_per_board = count_rows(num_envs, hunters, self.self_play, episode)
        self.num_boards = num_envs // self.rows_per_board
        self.rules = rules
        self.co_players = co_players
        self.num_goals = num_goals or len(game.goals)
        self.world_model = world_model
        self.co_player_policy = co_player_policy
        self.make_state = make_state
        self.starts = starts
        self.team_episodes = team_episodes
        self.layout = check_choice("layout", layout, (NO_LAYOUT, "hop"))

        strategies = list(game.strategies)
        self._team = torch.tensor([strategies.index(name) for name in team], dtype=torch.int64)
        self._pursuers = torch.tensor([strategies.index(name) for name in game.goals.values()])
        self._board_of_row = torch.arange(num_envs) // self.rows_per_board
        gone = torch.full((self.num_boards, 1), rules.cells)
        zeros = torch.zeros(self.num_boards, dtype=torch.int64)
        self.blocks = torch.zeros(self.num_boards, rules.cells, dtype=torch.bool)
        self.hunters = gone.repeat(1, hunters)
        self.prey = gone.repeat(1, rules.prey)
        self.tick = zeros.clone()
        self.first_hunt = zeros - 1
        self.strategy_ids = torch.full((self.num_boards, hunters), LEARNER)  # int64 [B, A]
        self.learner_seats = zeros.clone()
        self.team_episode = zeros.clone()  # how many its team has begun
        self.terminated = zeros.bool()  # [B], the last episode ended so, and is not reset yet
        self.truncated = zeros.bool()
        self.joint_actions = torch.full((self.num_boards, hunters), STAY)  # int64 [B, A]
        self.joint_rewards = torch.zeros(self.num_boards, hunters)
        self.distances = torch.full((self.num_boards, rules.prey, rules.cells), int(FAR), dtype=torch.int16)
        self.action_mask = torch.zeros(
            self.num_boards, self.rows_per_board, game.num_actions, dtype=torch.int8
        )
        self._started = False

    @property
    def seats(self) -> torch.Tensor:
        """int64 [N], the learner's seat of each row."""
        if self.self_play:
            return torch.arange(self.num_envs) % self.rows_per_board
        return self.learner_seats

    @property
    def starts(self) -> Starts:
        """Boards to begin from."""
        return self._starts

    @starts.setter
    def starts(self, starts: Starts) -> None:
        self._starts = starts
        self._start_distances: torch.Tensor | None = None

    # ---- playing

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[torch.Tensor | None, Infos]:
        """Begin new episodes. Returns the obs and infos of all rows.

        Args:
            seed: given to `torch.manual_seed`; all teams are new.
            options: `reset_mask`, bool [N], resets only these rows' boards; a mask of False
                only looks.
        Raises: ValueError: a mask of wrong shape, of a part of a board, with a seed, or before
        the first reset.
        """
        mask = (options or {}).get("reset_mask")
        if mask is None:
            boards = torch.ones(self.num_boards, dtype=torch.bool)
        elif seed is not None or not self._started:
            raise ValueError("a seed, or the first reset, is for all boards: give no reset_mask")
        else:
            boards = self._check_mask(torch.as_tensor(mask))
        if seed is not None:
            torch.manual_seed(seed)
            self.team_episode = torch.zeros_like(self.team_episode)
        self._started = True
        new_team = self._reset_boards(boards)
        return self._obs(), self._infos(new_team)

    def step(self, actions: torch.Tensor) -> Step:
        """Play one tick. actions: integers [N], the learners'. Returns: obs, rewards,
        terminated, truncated, infos.

        Raises: gymnasium.error.ResetNeeded: before the first reset, or ("learner") where an
        episode is over.
        """
        waiting = self.terminated | self.truncated
        if not self._started or (self.episode == "learner" and waiting.any()):
            raise ResetNeeded("no episode is running: call reset() before step()")
        joint = self._joint(torch.as_tensor(actions))
        prey_before = self.prey
        was_active = (self.hunters < self.rules.cells) & ~waiting[:, None]  # [B, A]
        self.joint_rewards = self._imagine(joint, waiting) * was_active
        active = self.hunters < self.rules.cells
        self.first_hunt = first_hunt_after(
            self.first_hunt, self.tick, prey_before, self.prey, self.rules.cells
        )
        ended = self.rules.ended(self.tick, self.first_hunt, active, self.prey) & ~waiting
        self.tick = self.tick + ~waiting
        cut = ~waiting & ~ended & (self.tick >= self.rules.horizon)
        if self.episode == "learner":
            still_active = self._of_learners(active)
            ended = ended | ~still_active
            cut = cut & still_active
        self.terminated = self.terminated | ended
        self.truncated = self.truncated | cut
        self._update_distances(self.prey != prey_before)
        self._update_action_mask(torch.arange(self.num_boards))
        self.joint_actions = joint
        infos = self._infos(torch.zeros(self.num_boards, dtype=torch.bool))
        rewards = self._of_learners(self.joint_rewards)
        return self._obs(), rewards, self._to_rows(self.terminated), self._to_rows(self.truncated), infos

    def planes(self) -> torch.Tensor:
        """uint8 [B, A, 3+k, H, W]: what each hunter sees."""
        planes = joint_to_planes(self._joint_planes().numpy(), self.rules.game.kinds)
        return torch.as_tensor(planes)

    # ---- stopping and going on

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that a resumed game needs but the networks and torch's generator, copies."""
        state = {key: getattr(self, key).clone() for key in _BOARD_STATE + _EPISODE_STATE}
        starts = {f"starts{index}": tensor for index, tensor in enumerate(self.starts)}
        return state | starts

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state_dict()`; `reset(options={"reset_mask": torch.zeros(N).bool()})` gives obs and infos.

        Raises: ValueError: a number is out of its range.
        """
        num_strategies = self.num_goals + 1 if self.co_players == "goals" else None
        check_state(state, self.rules, self.team_episodes, num_strategies)
        self.starts = (state["starts0"], state["starts1"], state["starts2"])
        for key in _BOARD_STATE + _EPISODE_STATE:
            setattr(self, key, state[key].clone())
        self._started = True
        for network in (self.world_model, self.co_player_policy):
            clear = getattr(network, "clear", None)
            if clear is not None:
                clear()
        self._update_distances(torch.ones_like(self.prey, dtype=torch.bool))
        self._update_action_mask(torch.arange(self.num_boards))

    # ---- new episodes, and what players do

    def _check_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """bool [B], from bool [N]."""
        if mask.shape != (self.num_envs,) or mask.dtype != torch.bool:
            raise ValueError(f"reset_mask: expected bool of shape ({self.num_envs},), got {mask!r}")
        mask = mask.view(self.num_boards, -1)
        if (mask != mask[:, :1]).any():
            raise ValueError("reset_mask: the rows of a board must be equal, as they are reset together")
        return mask[:, 0].clone()

    def _reset_boards(self, boards: torch.Tensor) -> torch.Tensor:
        """New episodes on these boards, bool [B]. Returns: bool [B], where the team is new."""
        rows = boards.nonzero()[:, 0]
        blocks, hunters, prey = self.starts
        pick = torch.randint(len(blocks), (len(rows),))
        self.blocks = self.blocks.index_copy(0, rows, blocks[pick])
        self.hunters = self.hunters.index_copy(0, rows, hunters[pick])
        self.prey = self.prey.index_copy(0, rows, prey[pick])
        self.tick = self.tick.masked_fill(boards, 0)
        self.first_hunt = self.first_hunt.masked_fill(boards, -1)
        self.joint_actions = self.joint_actions.masked_fill(boards[:, None], STAY)
        self.joint_rewards = self.joint_rewards.masked_fill(boards[:, None], 0.0)
        self.terminated = self.terminated & ~boards
        self.truncated = self.truncated & ~boards
        is_new = (self.team_episode == 0) | (self.team_episode >= self.team_episodes)
        new_team = boards & is_new
        self.team_episode = torch.where(new_team, 1, self.team_episode + boards)
        if not self.self_play:
            self._seat_new_teams(new_team.nonzero()[:, 0])
        self.distances = self.distances.index_copy(0, rows, self._distances_of_starts(pick))
        self._update_action_mask(rows)
        return new_team

    def _seat_new_teams(self, boards: torch.Tensor) -> None:
        """Draw the learner's seat and the co-players of these boards, int64 [n]."""
        hunters = self.rules.hunters
        seats = torch.randint(hunters, (len(boards),))
        if self.co_players == "goals":
            shares = torch.empty(len(boards), self.num_goals + 1).exponential_()  # of the goals, and none
            others = shares.multinomial(hunters - 1, replacement=True) if len(boards) else boards[:, None]
        else:
            goals = torch.randint(len(self._pursuers), (len(boards), hunters - 1))
            others = self._pursuers[goals]
        if len(self._team):
            order = torch.rand(len(boards), hunters - 1).argsort(1)
            others = self._team[order]
        other_seats = (seats[:, None] + torch.arange(1, hunters)) % hunters
        ids = torch.full((len(boards), hunters), LEARNER).scatter(1, other_seats, others)
        self.learner_seats = self.learner_seats.index_copy(0, boards, seats)
        self.strategy_ids = self.strategy_ids.index_copy(0, boards, ids)

    def _joint(self, actions: torch.Tensor) -> torch.Tensor:
        """The actions of all hunters, int64 [B, A]. actions: [N], the learners'."""
        actions = actions.long().view(self.num_boards, -1)
        if self.self_play:
            return actions
        goals = self.strategy_ids.clamp(min=0)
        joint = self.co_player_policy.sample(self.blocks, self.hunters, self.prey, self.tick, goals)
        return joint.scatter(1, self.learner_seats[:, None], actions)

    def _imagine(self, joint: torch.Tensor, waiting: torch.Tensor) -> torch.Tensor:
        """Let the world model step the boards; those that wait stand still. Returns: rewards float [B, A]."""
        state = self.make_state(self.blocks.float(), self.hunters, self.prey, self.rules.prey_counts)
        after, rewards, _ = self.world_model.step(state, joint)
        self.hunters = torch.where(waiting[:, None], self.hunters, after.hunters)
        self.prey = torch.where(waiting[:, None], self.prey, after.prey)
        return rewards

    def _update_distances(self, changed: torch.Tensor) -> None:
        """Compute the distances to these prey again, bool [B, P]; a prey that is gone is FAR from everywhere."""
        boards, slots = changed.nonzero(as_tuple=True)
        if len(boards):
            fields = self._fields(self.blocks[boards], self.prey[boards, slots])
            self.distances = self.distances.index_put((boards, slots), fields)

    def _fields(self, blocks: torch.Tensor, prey: torch.Tensor) -> torch.Tensor:
        """int16 [n, K], from each cell to a prey, int64 [n], K if gone. blocks: bool [n, K]."""
        fields = torch.full(blocks.shape, int(FAR), dtype=torch.int16)
        there = (prey < self.rules.cells).nonzero()[:, 0]
        if len(there):
            shape = (len(there), self.rules.height, self.rules.width)
            sources = F.one_hot(prey[there], self.rules.cells).bool()
            found = distance_fields(blocks[there].view(shape).numpy(), sources.view(shape).numpy())
            fields[there] = torch.as_tensor(found).flatten(1)
        return fields

    def _distances_of_starts(self, pick: torch.Tensor) -> torch.Tensor:
        """int16 [n, P, K], computed when a start is first picked, int64 [n]."""
        blocks, _, prey = self.starts
        if self._start_distances is None:
            self._start_distances = torch.zeros(*prey.shape, self.rules.cells, dtype=torch.int16)
            self._start_known = torch.zeros(len(prey), dtype=torch.bool)
        new = pick[~self._start_known[pick]].unique()
        if len(new):
            fields = self._fields(blocks[new].repeat_interleave(prey.shape[1], 0), prey[new].flatten())
            self._start_distances[new] = fields.view(len(new), -1, self.rules.cells)
            self._start_known[new] = True
        return self._start_distances[pick]

    def _update_action_mask(self, boards: torch.Tensor) -> None:
        """Compute what learners may do on these boards again, int64 [n]; where one has ended they may STAY."""
        hunters = self.hunters[boards]
        if not self.self_play:
            hunters = hunters.gather(1, self.learner_seats[boards, None])
        prey, blocks = self.prey[boards], self.blocks[boards]
        legal = legal_cells(hunters.numpy(), prey.numpy(), blocks.numpy(), self.rules)
        mask = torch.as_tensor(legal).to(torch.int8)  # [n, rows of a board, 5+k]
        ended = (self.terminated | self.truncated)[boards]
        mask[ended] = F.one_hot(torch.tensor(STAY), mask.shape[2]).to(torch.int8)
        self.action_mask = self.action_mask.index_copy(0, boards, mask)

    # ---- what is returned

    def _to_rows(self, values: torch.Tensor) -> torch.Tensor:
        """[B, ...] -> [N, ...], each board's value in all of its rows; itself where a board has one row."""
        if self.rows_per_board == 1:
            return values
        return values.repeat_interleave(self.rows_per_board, 0)

    def _of_learners(self, values: torch.Tensor) -> torch.Tensor:
        """[B, A, ...] -> [N, ...], each learner's."""
        return values[self._board_of_row, self.seats]

    def _joint_planes(self) -> torch.Tensor:
        """uint8 [B, A+1+k, H, W]: each hunter's plane in seat order, then BLOCKS and each kind of prey."""
        cells = self.rules.cells
        hunters = F.one_hot(self.hunters, cells + 1)[..., :cells]  # [B, A, K]
        prey = F.one_hot(self.prey, cells + 1)[..., :cells].bool()  # [B, P, K]
        kinds = [prey[:, kind].any(1) for kind in kind_slices(self.rules.prey_counts)]
        things = torch.stack([self.blocks, *kinds], 1)  # [B, 1+k, K]
        joint = torch.cat([hunters, things], 1).to(torch.uint8)
        return joint.unflatten(2, (self.rules.height, self.rules.width))

    def _obs(self) -> torch.Tensor | None:
        if self.layout == NO_LAYOUT:
            return None
        hunters = self.rules.hunters
        joint = self._to_rows(self._joint_planes())  # [N, A+1+k, H, W]
        order = (self.seats[:, None] + torch.arange(hunters)) % hunters  # [N, A], the learner first
        own = joint[torch.arange(self.num_envs)[:, None], order]
        return torch.cat([own, joint[:, hunters:]], 1).permute(0, 2, 3, 1)

    def _ticks_left(self) -> torch.Tensor:
        """int64 [B], see `Board.ticks_left`."""
        limit = self.rules.end_after_first_hunt
        if limit is None:
            return torch.full_like(self.tick, -1)
        last = (self.first_hunt + limit + 1).clamp(max=self.rules.horizon)
        has_hunters = (self.hunters < self.rules.cells).any(1)
        left = (last - self.tick) * has_hunters
        return torch.where(self.first_hunt < 0, -1, left)

    def _infos(self, new_team: torch.Tensor) -> Infos:
        """The infos of all rows with their masks. new_team: bool [B]."""
        boards = dict(
            tick=self.tick,
            ticks_left=self._ticks_left(),
            first_hunt=self.first_hunt,
            active=self.hunters < self.rules.cells,
            new_team=new_team,
            joint_actions=self.joint_actions.to(torch.int8),
            joint_rewards=self.joint_rewards,
            hunters=self.hunters,
            prey=self.prey,
            blocks=self.blocks,
            distances=self.distances,
            strategy_ids=self.strategy_ids,
        )
        infos = dict(action_mask=self.action_mask.flatten(0, 1), seat=self.seats)
        infos |= {key: self._to_rows(value) for key, value in boards.items()}
        everywhere = torch.ones(self.num_envs, dtype=torch.bool)
        masks = {f"_{key}": everywhere for key in infos}
        return infos | masks
