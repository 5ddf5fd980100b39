"""The games in Gymnasium: learners among co-players, on many boards at once.

    gymnasium.make("StagHunt-v0", co_players=("NS", "NS", "NH"))
    gymnasium.make_vec("Snowdrift-v0", num_envs=1024, co_players="mixed", drifts=3)

The vector environment plays all boards on one core; the single environment is a batch of one.
Under `reset(seed=s)` board i draws everything (boards, seats, co-players and their actions)
from the stream (s, i): it does not depend on the number of boards, and the single environment
plays what board 0 plays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.core import Board, GameRules, State, legal_of_codes, make_core
from envs.game import STAY, Game
from envs.games import DEFAULT_GAME, GAMES
from envs.render import RENDER_MODES, render_board
from envs.scripted import DATA_EPSILON, parse_team, sample_actions, strategy_probs
from envs.window import FPS, HUMAN, WINDOW_MODES, Window

LEARNER = -1  # in `strategy_ids`
EPISODE_DRAWS = 2**32  # more numbers than an episode of a board draws
LAYOUTS = ("planes", "hop")
NO_LAYOUT = "none"
EPISODES = ("learner", "board")


@runtime_checkable
class Policies(Protocol):
    """Co-players that are handed in: `size` policies, of which each co-player of a new team is one, all equally likely."""

    size: int

    def __call__(self, core: Board, policy_ids: np.ndarray) -> np.ndarray:
        """Action probabilities, float [B, A, 5 + k]; the learner's, LEARNER in policy_ids, int64 [B, A], are not used."""
        ...


CoPlayers = Sequence[str] | str | Callable[[Board], np.ndarray] | Policies | None


def choose_rules(rules: GameRules | None, game: str | None, keywords: dict[str, Any]) -> GameRules:
    """`rules` itself, or the game's rules with these keywords.

    Args: game: one of GAMES; None: that of `rules`, or the stag hunt.
    Raises:
        ValueError: an unknown game; both `rules` and keywords, or rules of another game; a keyword's value is out of
            range.
        TypeError: the game has no such rule.
    """
    if game is not None and game not in GAMES:
        raise ValueError(f"unknown game {game!r}: choose from {', '.join(GAMES)}")
    if rules is not None and keywords:
        raise ValueError(f"give either rules=... or single rules, not both: {', '.join(keywords)}")
    if rules is None:
        return GAMES[game or DEFAULT_GAME](**keywords)
    if game is not None and rules.game.id != game:
        raise ValueError(f"rules: expected those of {game}, got those of {rules.game.id}")
    return rules


def planes_space(rules: GameRules) -> Box:
    """The space of one hunter's observation: uint8 [3 + k, H, W], each cell 0 or 1."""
    return Box(0, 1, (len(rules.game.planes), rules.height, rules.width), np.uint8)


def hop_space(rules: GameRules) -> Box:
    """The space of one hunter's observation in HOP's layout: uint8 [H, W, A+1+k], each cell 0 or 1."""
    return Box(0, 1, (rules.height, rules.width, rules.hunters + 1 + rules.game.kinds), np.uint8)


def space_of(layout: str, rules: GameRules) -> Box:
    """The space of one hunter's observation."""
    if layout == NO_LAYOUT:
        return Box(0, 1, (0,), np.uint8)
    return planes_space(rules) if layout == "planes" else hop_space(rules)


def check_render_mode(render_mode: str | None, modes: Sequence[str] = RENDER_MODES) -> str | None:
    """Returns `render_mode`. Raises: ValueError: it is neither None nor in `modes`."""
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"unknown render_mode {render_mode!r}: choose from {', '.join(modes)}")
    return render_mode


def open_window(render_mode: str | None, game: Game) -> Window | None:
    """For "human". Raises: gymnasium.error.DependencyNotInstalled: there is no pygame."""
    return Window(game.id, FPS) if render_mode == HUMAN else None


def whole_action(action: Any, of: str, num_actions: int) -> int:
    """An action of one hunter.

    Args: of: begins the message, such as `action`.
    Raises: ValueError: it is not a whole number in 0..num_actions - 1.
    """
    limits = f"0..{num_actions - 1}"
    try:
        number = operator.index(action)  # numpy's and torch's integers, too; no floats, no complex numbers
    except TypeError:
        raise ValueError(f"{of}: expected a whole number in {limits}, got {action!r}") from None
    if not 0 <= number < num_actions:
        raise ValueError(f"{of}: must be in {limits}, got {action!r}")
    return number


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Returns `value`. Raises: ValueError: it is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(choices)}")
    return value


def check_co_players(co_players: CoPlayers, hunters: int, game: Game) -> tuple[str, ...] | str | Callable:
    """A tuple of A - 1 names, a team's text, or a function. Raises: ValueError: see `BoardVectorEnv`."""
    others = hunters - 1
    if callable(co_players):
        return co_players
    if co_players is None:  # the first goal twice, each other once; cut or repeated
        names = tuple(game.goals.values())
        names = (names[0], *names)
        return tuple(names[j % len(names)] for j in range(others))
    if isinstance(co_players, str):
        parse_team(co_players, others, game)
        return co_players
    if len(co_players) != others:
        raise ValueError(f"co_players: expected {others} names for {hunters} hunters, got {co_players!r}")
    for name in co_players:
        if name not in game.strategies:
            strategies = ", ".join(game.strategies)
            raise ValueError(f"co_players: unknown strategy {name!r}: choose from {strategies}")
    return tuple(co_players)


def count_rows(num_envs: int, hunters: int, self_play: bool, episode: str) -> int:
    """Rows of a board. Raises: ValueError: in self-play, no whole boards, or episodes of a single learner."""
    if not self_play:
        return 1
    if episode == "learner":
        raise ValueError('co_players="self" has a learner in every seat: give episode="board"')
    if num_envs % hunters:
        raise ValueError(f"num_envs: self-play needs a multiple of {hunters} hunters, got {num_envs}")
    return hunters


def check_state(
    state: dict[str, Any], rules: GameRules, team_episodes: int = 1, num_strategies: int | None = None
) -> None:
    """Of environments and `starts`; the core checks its own cells.

    Args:
        state: arrays or tensors, as `state_dict` names them.
        num_strategies: that a co-player can have; by default those of the game.
    Raises: ValueError: a number is out of its range.
    """
    num_strategies = num_strategies or len(rules.game.strategies)
    ranges = dict(
        hunters=(0, rules.cells),
        prey=(0, rules.cells),
        starts1=(0, rules.cells),
        starts2=(0, rules.cells),
        tick=(0, rules.horizon),
        first_hunt=(-1, rules.horizon),
        strategy_ids=(LEARNER, num_strategies - 1),
        seats=(0, rules.hunters - 1),
        learner_seats=(0, rules.hunters - 1),
        team_episode=(0, team_episodes),
        joint_actions=(0, rules.game.num_actions - 1),
    )
    ranges |= {f"core.{key}": ranges[key] for key in ("tick", "first_hunt")}
    for key in ranges.keys() & state.keys():
        low, high = ranges[key]
        values = state[key]
        if 0 not in values.shape and (values.min() < low or values.max() > high):
            found = f"{values.min()} to {values.max()}"
            raise ValueError(f"{key}: expected numbers from {low} to {high}, found {found}")


class BoardVectorEnv(VectorEnv):
    """N learners among co-players, on one batched core.

    A row is a learner. Usually each of B = N boards has one, in a seat that is drawn. With
    `co_players="self"` every hunter is a learner: B = N / A boards, and row r is seat r % A of
    board r // A.

    An episode ends (`terminated` or `truncated`) as `episode` says:

    - "learner": when the learner leaves the board, or the board ends.
    - "board": when the board ends. A learner that has left plays STAY whatever is asked, and
      its reward is 0.

    With SAME_STEP the board is then reset in the same call: `obs` and `infos` are the new
    episode's; the last observation is `infos["final_obs"]` (object array [N], None where no
    episode ended) with the mask `infos["_final_obs"]`, its infos are `infos["final_info"]`, as
    in Gymnasium's own SyncVectorEnv.

    With DISABLED the caller resets: `reset(options={"reset_mask": terminated | truncated})`.
    "learner": until then `step` raises ResetNeeded. "board": until then boards that have ended
    stand still: their rewards are 0, their `terminated` and `truncated` stay what they are.

    obs: uint8, the "planes" [N, 3+k, H, W] of the learner, or "hop" [N, H, W, A+1+k], the
    learner first, or "none" [N, 0]; k kinds of prey, 2 in the stag hunt.
    rewards: float32 [N]. terminated, truncated: bool [N].

    infos, each with its mask `_<key>`, bool [N]; hunters are in seat order, K = H * W is a cell
    off the board:

    - `action_mask` int8 [N, 5+k], the learner's legal actions; `seat` int64 [N], the learner's.
    - `tick`, `ticks_left` (see `Board.ticks_left`), `first_hunt`: int64 [N].
    - `active` bool [N, A], hunters on the board; `strategy_ids` int64 [N, A], index into
      the game's strategies, LEARNER for learners and for co-players that are a bare function.
    - `new_team` bool [N]: this call has begun an episode with new seats and co-players.
    - `joint_actions` int8 [N, A], what was done in the last tick, also where SAME_STEP has
      reset; STAY after `reset`. `joint_rewards` float32 [N, A], what was earned in it.
    - `hunters` int64 [N, A], `prey` int64 [N, P], cells; `blocks` bool [N, K].
    - `distances` int16 [N, P, K], from each cell to each prey, FAR where there is no way or no
      prey.

    `gymnasium.wrappers.vector.RecordEpisodeStatistics` counts right from Gymnasium 1.4 on.
    Before, it took the step after an end for a reset, as NEXT_STEP has it, and lost the first
    step of every later episode here.

    Args:
        num_envs: rows, N.
        rules: of any game; or give their fields as keywords (`hunters=3, height=6, ...`).
        game: one of GAMES, whose rules the keywords are; None: that of `rules`, or the stag hunt.
        co_players: a tuple of names: co_players[j] sits at seat (learner + 1 + j) mod A. None:
            the stag hunt's NS, NS, NH (the snowdrift's ND, ND, FIX), cut or repeated to A - 1
            names. A text such as "3NS" or "1NS2NH": so
            many of each strategy, in random seats. "mixed": each pursues one of the
            game's goals (NS or NH; ND or FIX), all equally likely.
            "self": all are learners. `Policies`: `strategy_ids` are then their numbers. Another
            function of the core: it returns the actions of all hunters, integers [B, A]; the
            learner's own are not used.
        epsilon: of the co-players, see `strategy_probs`.
        render_mode: None, "rgb_array" or "ansi".
        autoreset_mode: SAME_STEP or DISABLED.
        team_episodes: how many episodes of a board its seats and co-players stay what they are.
        layout: of the observations, "planes", "hop", or "none": uint8 [N, 0], for a policy that reads the infos.
        episode: "learner" or "board"; self-play has no single learner, and needs "board".
    Attributes:
        num_boards, rows_per_board: B, and N / B. core: the boards. seats: int64 [N], the
            learner's seat.
        strategy_ids: int64 [B, A].
    Raises:
        ValueError: a wrong number of co-players, an unknown strategy, team, render mode,
            autoreset mode, layout or episode; epsilon, a rule or team_episodes out of range;
            self-play with "learner" or N not a multiple of A.
    """

    metadata = dict(  # noqa: RUF012  (Gymnasium's own form)
        render_modes=list(RENDER_MODES),
        render_fps=4,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )

    def __init__(
        self,
        num_envs: int = 1,
        rules: GameRules | None = None,
        co_players: CoPlayers = None,
        epsilon: float = DATA_EPSILON,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        team_episodes: int = 1,
        layout: str = "planes",
        episode: str = "learner",
        game: str | None = None,
        **rule_keywords: Any,
    ):
        rules = choose_rules(rules, game, rule_keywords)
        hunters = rules.hunters
        num_actions = rules.game.num_actions
        self.rules = rules
        self.co_players = check_co_players(co_players, hunters, rules.game)
        self.self_play = self.co_players == "self"
        self.layout = check_choice("layout", layout, (*LAYOUTS, NO_LAYOUT))
        self.episode = check_choice("episode", episode, EPISODES)
        self.render_mode = check_render_mode(render_mode)
        if not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon must be in [0, 1], got {epsilon!r}")
        if team_episodes < 1:
            raise ValueError(f"team_episodes must be at least 1, got {team_episodes!r}")
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.NEXT_STEP:
            raise ValueError("autoreset_mode: NEXT_STEP is not supported: choose SAME_STEP or DISABLED")
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self.epsilon = epsilon
        self.team_episodes = team_episodes
        self.num_envs = num_envs
        self.rows_per_board = count_rows(num_envs, hunters, self.self_play, episode)
        self.num_boards = num_envs // self.rows_per_board
        self.core = make_core(self.num_boards, rules)

        self.single_observation_space = space_of(layout, rules)
        self.single_action_space = Discrete(num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = MultiDiscrete(np.full(num_envs, num_actions))

        self.seats = np.arange(num_envs) % self.rows_per_board  # [N]
        self.strategy_ids = np.full((self.num_boards, hunters), LEARNER, np.int64)
        self._legal = legal_of_codes(rules.game.kinds)
        self._board_of_row = np.arange(num_envs) // self.rows_per_board
        self._team, self._strategies = self._read_team()
        self._team_episode = np.zeros(self.num_boards, np.int64)  # how many its team has begun
        self._terminated = np.zeros(self.num_boards, bool)  # the last episode ended so, and is not reset yet
        self._truncated = np.zeros(self.num_boards, bool)
        self._joint_actions = np.full((self.num_boards, hunters), STAY, np.int8)
        self._joint_rewards = np.zeros((self.num_boards, hunters), np.float32)
        self._started = False

    # ---- playing

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict]:
        """Begin new episodes. Returns the obs and infos of all rows.

        Args:
            seed: starts board i's stream at (seed, i), with new teams; None goes on in the
                streams. A list has a seed for each row, None: any; a row then plays what the
                single environment plays under that seed.
            options: `reset_mask`, bool [N], resets only these rows' boards; a mask of False
                only looks.
        Raises:
            ValueError: a seed that is not a whole number >= 0 or comes with a mask, a list that
                has not one for each row, or (self-play) different ones for a board; a mask of
                wrong shape or dtype, or (self-play) one that has a part of a board.
        """
        if seed is not None and not isinstance(seed, (int, np.integer)):
            seed = self._check_seeds(seed)
        mask = (options or {}).get("reset_mask")
        if mask is None:
            new_team = self._reset_all(seed)
        elif seed is not None:
            raise ValueError("a seed restarts all boards: reset some boards without one")
        elif not self._started:
            raise ValueError("reset all boards once before you reset some of them")
        else:
            boards = self._check_mask(mask)
            new_team = self._reset_boards(boards)
            self._joint_actions = np.where(boards[:, None], np.int8(STAY), self._joint_actions)
            self._joint_rewards = np.where(boards[:, None], np.float32(0.0), self._joint_rewards)
        super().reset(seed=None if isinstance(seed, list) else seed)
        return self._obs(), self._infos(new_team)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Play one tick on all boards. actions: integers [N] in 0..4+k, the learners'.

        Raises:
            ValueError: wrong shape or dtype, or an action outside 0..4+k.
            gymnasium.error.ResetNeeded: before the first reset, or ("learner", DISABLED) where
            an episode is over.
        """
        actions = self._check_actions(actions)
        waiting = self._terminated | self._truncated
        if not self._started or (self.episode == "learner" and waiting.any()):
            raise ResetNeeded("no episode is running: call reset() before step()")
        _, rewards, terminated, truncated = self.core.step(self._joint(actions))
        self._joint_actions = self.core.effective_actions
        self._joint_rewards = rewards
        if self.episode == "learner":
            self._terminated = self._of_learners(terminated)
            self._truncated = self._of_learners(truncated)
        else:
            ended_now = self.core.ended & ~waiting
            self._truncated = self._truncated | truncated.any(1)  # the horizon finds a hunter on the board
            self._terminated = self._terminated | (ended_now & ~self._truncated)
        rewards = self._of_learners(rewards)
        terminated = self._to_rows(self._terminated)
        truncated = self._to_rows(self._truncated)
        infos = {}
        new_team = np.zeros(self.num_boards, bool)
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            ended = self._terminated | self._truncated
            if ended.any():
                infos = self._final(terminated | truncated)
                new_team = self._reset_boards(ended)
        infos.update(self._infos(new_team))
        return self._obs(), rewards, terminated, truncated, infos

    def planes(self) -> np.ndarray:
        """uint8 [B, A, 3+k, H, W]: what each hunter sees, the core's live buffer."""
        return self.core.obs

    def render(self) -> tuple[np.ndarray | str, ...] | None:
        """One picture (uint8 [h, w, 3]) or text a row, the learner marked; None without a render mode."""
        if self.render_mode is None:
            return None
        if not self._started:
            raise ResetNeeded("nothing to show yet: call reset() before render()")
        state = self.core.state
        rows = zip(self._board_of_row.tolist(), self.seats.tolist(), strict=True)
        return tuple(render_board(self.render_mode, state, self.rules, board, seat) for board, seat in rows)

    # ---- stopping and going on

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that a resumed game needs, copies. Raises: ValueError: nothing has been reset yet."""
        core = {f"core.{key}": value for key, value in asdict(self.core.state).items()}
        return core | dict(
            seats=self.seats.copy(),
            strategy_ids=self.strategy_ids.copy(),
            team_episode=self._team_episode.copy(),
            terminated=self._terminated.copy(),
            truncated=self._truncated.copy(),
            joint_actions=self._joint_actions.copy(),
            joint_rewards=self._joint_rewards.copy(),
        )

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Go on from `state_dict()`; `reset(options={"reset_mask": np.zeros(N, bool)})` gives obs and infos.

        Raises: ValueError: a number is out of its range.
        """
        num_policies = self.co_players.size if isinstance(self.co_players, Policies) else None
        check_state(state, self.rules, self.team_episodes, num_policies)
        arrays = {key: np.asarray(value).copy() for key, value in state.items()}
        core = {key[5:]: value for key, value in arrays.items() if key.startswith("core.")}
        self.core.set_state(State(**core))
        self.seats = arrays["seats"]
        self.strategy_ids = arrays["strategy_ids"]
        self._team_episode = arrays["team_episode"]
        self._terminated = arrays["terminated"]
        self._truncated = arrays["truncated"]
        self._joint_actions = arrays["joint_actions"]
        self._joint_rewards = arrays["joint_rewards"]
        self._started = True

    # ---- who plays, and new episodes

    def _read_team(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """The co-players that are fixed, int64 [A-1], index into the game's strategies (empty if none are),
        and all that may play."""
        game = self.rules.game
        if callable(self.co_players) or self.self_play:
            return np.zeros(0, np.int64), ()
        if self.co_players == "mixed":
            return np.zeros(0, np.int64), tuple(game.goals.values())
        names = self.co_players
        if isinstance(names, str):
            names = parse_team(names, self.rules.hunters - 1, game)
        return self._ids_of(names), tuple(dict.fromkeys(names))

    def _ids_of(self, names: Sequence[str]) -> np.ndarray:
        """int64 [len(names)]: indices of strategies of the game."""
        strategies = list(self.rules.game.strategies)
        return np.array([strategies.index(name) for name in names], np.int64)

    def _reset_all(self, seed: int | list[int | None] | None) -> np.ndarray:
        """New boards everywhere. Returns: bool [B], where the team is new."""
        everywhere = np.ones(self.num_boards, bool)
        self._joint_actions = np.full_like(self._joint_actions, STAY)
        self._joint_rewards = np.zeros_like(self._joint_rewards)
        if seed is None and self._started:
            return self._reset_boards(everywhere)
        self.core.reset(seed=seed)
        self._started = True
        self._terminated = ~everywhere
        self._truncated = ~everywhere
        self._seat_new_teams(np.arange(self.num_boards))
        return everywhere

    def _reset_boards(self, boards: np.ndarray) -> np.ndarray:
        """New episodes on these boards, bool [B]. Returns: bool [B], where the team is new."""
        if not boards.any():
            return np.zeros(self.num_boards, bool)
        # An episode draws from its own place in the board's stream, however long the episodes before it took.
        counter = self.core.counter
        counter[boards] = (counter[boards] // EPISODE_DRAWS + 1) * EPISODE_DRAWS
        self.core.reset(boards=boards)
        self._terminated = self._terminated & ~boards
        self._truncated = self._truncated & ~boards
        new_team = boards & (self._team_episode >= self.team_episodes)
        self._team_episode[boards & ~new_team] += 1
        self._seat_new_teams(np.flatnonzero(new_team))
        return new_team

    def _seat_new_teams(self, boards: np.ndarray) -> None:
        """Draw the learner's seat and the co-players of these boards, int [n], from their own streams."""
        hunters = self.rules.hunters
        self._team_episode[boards] = 1
        if self.self_play or not len(boards):
            return
        draws = self.core.draw(boards, hunters) >> np.uint64(11)
        draws = draws * 2.0**-53  # [n, A], in [0, 1)
        seats = (draws[:, 0] * hunters).astype(np.int64)
        self.seats[boards] = seats
        if isinstance(self.co_players, Policies):
            others = (draws[:, 1:] * self.co_players.size).astype(np.int64)
        elif callable(self.co_players):
            return
        elif self.co_players == "mixed":
            pursuers = self._ids_of(self._strategies)
            goal = (draws[:, 1:] * len(pursuers)).astype(np.int64)
            others = pursuers[::-1][goal]  # [n, A-1]; a number below 1/2 is the last of two goals
        elif isinstance(self.co_players, str):
            others = self._team[np.argsort(draws[:, 1:], 1)]
        else:
            others = np.broadcast_to(self._team, (len(boards), hunters - 1))
        other_seats = (seats[:, None] + np.arange(1, hunters)) % hunters
        self.strategy_ids[boards[:, None], other_seats] = others
        self.strategy_ids[boards, seats] = LEARNER

    def _joint(self, actions: np.ndarray) -> np.ndarray:
        """The actions of all hunters, integers [B, A]. actions: [N], the learners'."""
        if self.self_play:
            return actions.reshape(self.num_boards, -1)
        joint = self._co_player_actions()
        joint[self._board_of_row, self.seats] = actions
        return joint

    def _co_player_actions(self) -> np.ndarray:
        """Integers [B, A]: what each hunter does as a co-player; the learner's own entry is a filler."""
        if isinstance(self.co_players, Policies):
            uniform = self.core.uniform(self.rules.hunters)  # [B, A]
            return sample_actions(self.co_players(self.core, self.strategy_ids), uniform)
        if callable(self.co_players):
            return np.array(self.co_players(self.core))
        uniform = self.core.uniform(self.rules.hunters)  # [B, A]
        if not self._strategies:  # a board with one hunter
            return np.full(uniform.shape, STAY, np.int8)
        probs = strategy_probs(self.core, self._strategies, self.epsilon)  # [B, A, S, 5+k]
        column = np.zeros(len(self.rules.game.strategies), np.int64)
        column[self._ids_of(self._strategies)] = np.arange(len(self._strategies))
        column = column[self.strategy_ids.clip(0)]  # [B, A]
        probs = np.take_along_axis(probs, column[:, :, None, None], 2)
        return sample_actions(probs[:, :, 0], uniform)

    # ---- checks

    def _check_seeds(self, seeds: Any) -> list[int | None]:
        """One a board, from one a row."""
        wanted = (
            f"seed: expected a whole number, or a list with one (or None) for each of {self.num_envs} rows"
        )
        is_list = isinstance(seeds, (list, tuple, np.ndarray)) and len(seeds) == self.num_envs
        if not is_list or not all(seed is None or isinstance(seed, (int, np.integer)) for seed in seeds):
            raise ValueError(f"{wanted}, got {seeds!r}")
        rows = self.rows_per_board
        by_board = [set(seeds[i : i + rows]) for i in range(0, self.num_envs, rows)]
        if any(len(different) > 1 for different in by_board):
            raise ValueError("seed: the rows of a board must have the same, as they are reset together")
        return [seed for (seed,) in by_board]

    def _check_mask(self, mask: np.ndarray) -> np.ndarray:
        """bool [B], from bool [N]."""
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"reset_mask: expected bool of shape ({self.num_envs},), got {mask!r}")
        mask = mask.reshape(self.num_boards, -1)
        if (mask != mask[:, :1]).any():
            raise ValueError("reset_mask: the rows of a board must be equal, as they are reset together")
        return mask[:, 0].copy()

    def _check_actions(self, actions: np.ndarray) -> np.ndarray:
        shape = (self.num_envs,)
        try:
            actions = np.asarray(actions)
        except (TypeError, ValueError):  # rows of different lengths
            raise ValueError(f"actions: expected integers of shape {shape}, got {actions!r}") from None
        if actions.shape != shape or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions: expected integers of shape {shape}, got {actions.dtype} {actions.shape}"
            )
        low, high = actions.min(), actions.max()
        num_actions = self.rules.game.num_actions
        if low < 0 or high >= num_actions:
            raise ValueError(f"actions: must be in 0..{num_actions - 1}, got {low} to {high}")
        return actions

    # ---- what is returned

    def _to_rows(self, values: np.ndarray) -> np.ndarray:
        """[B, ...] -> [N, ...], each board's value in all of its rows; itself where a board has one row."""
        if self.rows_per_board == 1:
            return values
        return values.repeat(self.rows_per_board, 0)

    def _of_learners(self, values: np.ndarray) -> np.ndarray:
        """[B, A, ...] -> [N, ...], a copy of each learner's."""
        return values[self._board_of_row, self.seats]

    def _obs(self) -> np.ndarray:
        if self.layout == NO_LAYOUT:
            return np.empty(self.observation_space.shape, np.uint8)
        planes = self.core.obs  # [B, A, 3+k, H, W]
        if self.layout == "planes":
            return self._of_learners(planes)
        hunters = self.rules.hunters
        order = (self.seats[:, None] + np.arange(hunters)) % hunters  # [N, A], the learner first
        obs = np.empty(self.observation_space.shape, np.uint8)  # [N, H, W, A+1+k]
        own = planes[self._board_of_row[:, None], order, 0]  # [N, A, H, W], where each hunter is
        obs[..., :hunters] = np.moveaxis(own, 1, -1)
        things = planes[self._board_of_row, 0, 2:]  # [N, 1+k, H, W]
        obs[..., hunters:] = np.moveaxis(things, 1, -1)
        return obs

    def _info_values(self, new_team: np.ndarray) -> dict[str, np.ndarray]:
        """The infos of all rows without their masks. new_team: bool [B]."""
        core = self.core
        boards = dict(
            tick=core.tick.astype(np.int64),
            ticks_left=core.ticks_left.astype(np.int64),
            first_hunt=core.first_hunt.astype(np.int64),
            active=core.active,
            new_team=new_team,
            joint_actions=self._joint_actions,
            joint_rewards=self._joint_rewards,
            hunters=core.hunters,
            prey=core.prey,
            blocks=core.blocks.copy(),
            distances=core.distances().copy(),
            strategy_ids=self.strategy_ids.copy(),
        )
        action_mask = self._legal[self._of_learners(core.legal_codes())]
        rows = dict(action_mask=action_mask.astype(np.int8), seat=self.seats.copy())
        return rows | {key: self._to_rows(value) for key, value in boards.items()}

    def _infos(self, new_team: np.ndarray) -> dict[str, np.ndarray]:
        """The infos of all rows. new_team: bool [B]."""
        infos = {}
        for key, value in self._info_values(new_team).items():
            infos[key] = value
            infos[f"_{key}"] = np.ones(self.num_envs, bool)
        return infos

    def _final(self, done: np.ndarray) -> dict[str, Any]:
        """`final_obs` and `final_info` of the rows in `done` (bool [N]), in the form of Gymnasium's SyncVectorEnv."""
        final_obs = np.full(self.num_envs, None, object)
        last = self._obs()[done]
        final_obs[done] = np.fromiter(last, object, len(last))
        final_info = {}
        for key, value in self._info_values(np.zeros(self.num_boards, bool)).items():
            final_info[key] = np.zeros(value.shape, value.dtype)
            final_info[key][done] = value[done]
            final_info[f"_{key}"] = done.copy()
        return dict(
            final_obs=final_obs, _final_obs=done.copy(), final_info=final_info, _final_info=done.copy()
        )


class BoardEnv(gymnasium.Env):
    """One board with one learner: a batch of one that does not reset itself.

    obs and infos are one row of `BoardVectorEnv`, without the masks: uint8 [3+k, H, W], and
    for example `action_mask` int8 [5+k], for `action_space.sample(info["action_mask"])`.
    Arguments and errors are those of `BoardVectorEnv`; render_mode may also be "human", which
    needs pygame.
    """

    metadata = dict(render_modes=list(WINDOW_MODES), render_fps=FPS)  # noqa: RUF012

    def __init__(
        self,
        rules: GameRules | None = None,
        co_players: CoPlayers = None,
        epsilon: float = DATA_EPSILON,
        render_mode: str | None = None,
        team_episodes: int = 1,
        layout: str = "planes",
        episode: str = "learner",
        game: str | None = None,
        **rule_keywords: Any,
    ):
        self.render_mode = check_render_mode(render_mode, (*RENDER_MODES, HUMAN))
        self._batch = BoardVectorEnv(
            num_envs=1,
            rules=rules,
            game=game,
            co_players=co_players,
            epsilon=epsilon,
            render_mode="rgb_array" if render_mode == HUMAN else render_mode,
            autoreset_mode=AutoresetMode.DISABLED,
            team_episodes=team_episodes,
            layout=layout,
            episode=episode,
            **rule_keywords,
        )
        self._over = True
        self.core = self._batch.core
        self.co_players = self._batch.co_players
        self._window = open_window(render_mode, self.core.rules.game)
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Begin a new episode; `seed` starts the board's stream, None goes on in it. No options are known."""
        obs, infos = self._batch.reset(seed=seed)
        self._over = False
        super().reset(seed=seed)
        self._show()
        return obs[0], self._info(infos)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Play one tick.

        Raises:
            ValueError: the action is not a whole number in 0..4+k.
            gymnasium.error.ResetNeeded: before the first reset or after the end of an episode.
        """
        if self._over:
            raise ResetNeeded("no episode is running: call reset() before step()")
        actions = np.array([whole_action(action, "action", self.core.rules.game.num_actions)])
        obs, rewards, terminated, truncated, infos = self._batch.step(actions)
        self._over = bool(terminated[0] or truncated[0])
        self._show()
        return obs[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), self._info(infos)

    def render(self) -> np.ndarray | str | None:
        """A picture (uint8 [h, w, 3]) or a text, the learner marked; None without a render mode, and with "human", where
        `reset` and `step` show the board in a window."""
        return None if self.render_mode in (None, HUMAN) else self._batch.render()[0]

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(self._batch.render()[0])

    @staticmethod
    def _info(infos: dict[str, np.ndarray]) -> dict[str, Any]:
        rows = {key: value[0] for key, value in infos.items() if not key.startswith("_")}
        return {key: row.copy() if row.ndim else row.item() for key, row in rows.items()}


StagHuntVectorEnv = BoardVectorEnv
StagHuntEnv = BoardEnv
