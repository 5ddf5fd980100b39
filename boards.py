"""Boards that a policy plays on, real ones and imagined ones, and what an observer sees of them.

Both kinds of boards have the same interface, so that one loop plays on both (as in DIAMOND, Alonso et al. 2024).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from data import DataError, training_file
from data.datasets import load_transitions
from envs.grid import distance_fields, joint_to_planes, neighbours
from envs.scripted import STRATEGIES, parse_team
from envs.stag_hunt import Rules, ended_by_rule, first_hunt_after
from envs.teams import LEARNER, Teams
from pretrain_vae import TabularMOA
from train_world_model import JointState, ObjectWorldModel

NEVER = 99  # steps to a prey that is gone or cannot be reached


# ---- what an observer sees


class Observation(NamedTuple):
    """What N observers see: the joint state, observer first, through a fixed first layer that counts the steps around the
    blocks to each of P prey (value iteration with a cost of 1 a step), the clock, and what is known of the others."""

    steps: torch.Tensor  # int8 [N, P, A], from the cell of each hunter; NEVER where hunter or prey are gone
    ways: torch.Tensor  # int8 [N, P, 4], from the cell above, below, left, right of the observer
    there: torch.Tensor  # bool [N, A], hunters on the board
    legal: torch.Tensor  # bool [N, 7]
    clock: torch.Tensor  # float [N, 3]: tick / horizon, whether the board counts down, ticks left / 8
    known: torch.Tensor  # float [N, A-1, I], of the hunters 1, 2, .. seats after the observer
    cells: torch.Tensor  # int64 [N, A+P], of the hunters, observer first, and the prey; H * W: gone
    blocks: torch.Tensor  # bool [N, H * W]


class Maps:
    """Steps from every cell to every prey of B boards, counted anew where a board is new or its prey have moved."""

    def __init__(self, boards: int, rules: Rules):
        self.height, self.width, self.stags = rules.height, rules.width, rules.stags
        K = rules.cells
        self.steps = torch.full((boards, rules.prey, K + 1), NEVER, dtype=torch.int8)
        self.walls = torch.ones(boards, K + 1, dtype=torch.bool)
        self.around = torch.as_tensor(neighbours(self.height, self.width)[:, :4].copy())  # [K + 1, 4]

    def update(self, boards: torch.Tensor, blocks: torch.Tensor, prey: torch.Tensor, counted=None) -> None:
        """boards: int64 [m], to be counted anew; blocks: bool [m, K], prey: int64 [m, P], theirs; counted: int16
        [m, P, K], if the game has counted already, FAR where there is no way."""
        (m, P), K = prey.shape, blocks.shape[1]
        if counted is None:
            source = (
                F.one_hot(prey, K + 1)[..., :K].bool().flatten(0, 1).unflatten(1, (self.height, self.width))
            )
            wall = blocks.repeat_interleave(P, 0).unflatten(1, (self.height, self.width))
            counted = distance_fields(wall.numpy(), source.numpy())
        self.steps[boards, :, :K] = torch.as_tensor(counted).clamp(max=NEVER).to(torch.int8).view(m, P, K)
        self.walls[boards, :K] = blocks

    def see(self, board, hunters, prey, clock, seat, known) -> Observation:
        """What the hunters in `seat` see on these boards, N rows. board, seat: int64 [N]; hunters [N, A] and prey [N, P]:
        cells, K for what is gone; clock: float [N, 3]; known: float [N, A, I], of each seat."""
        A, K = hunters.shape[1], self.walls.shape[1] - 1
        order = (seat[:, None] + torch.arange(A)) % A
        cells = hunters.gather(1, order)
        own, there = cells[:, 0], cells < K
        ways = self.around[own]
        rows = (board[:, None] * prey.shape[1] + torch.arange(prey.shape[1]))[..., None] * (K + 1)
        steps = self.steps.view(-1)[rows + torch.cat([cells, ways], 1)[:, None]]
        steps.masked_fill_((prey == K)[..., None], NEVER)
        on = (prey == own[:, None]) & there[:, :1]
        hunts = [part.any(1, keepdim=True) for part in (on[:, : self.stags], on[:, self.stags :])]
        go = ~self.walls.view(-1)[board[:, None] * (K + 1) + ways] & there[:, :1]
        legal = torch.cat([go, torch.ones_like(go[:, :1]), *hunts], 1)
        others = known.gather(1, order[:, 1:, None].expand(-1, -1, known.shape[2]))
        placed = torch.cat([cells, prey], 1)
        return Observation(
            steps[..., :A], steps[..., A:], there, legal, clock, others, placed, self.walls[board, :K]
        )


def clock_of(tick: torch.Tensor, first_hunt: torch.Tensor, rules: Rules) -> torch.Tensor:
    """float [N, 3], see `Seen`. tick, first_hunt: int [N]."""
    counts = (first_hunt >= 0) & (rules.end_after_first_hunt is not None)
    left = (first_hunt + (rules.end_after_first_hunt or 0) + 1).clamp(max=rules.horizon) - tick
    return torch.stack([tick / rules.horizon, counts.float(), torch.where(counts, left / 8, 0.0)], 1)


def sample(log_probs: torch.Tensor) -> torch.Tensor:
    """The largest of log p + Gumbel noise (Gumbel 1954). float [N, 7] -> int64 [N]"""
    return (log_probs - torch.empty_like(log_probs).exponential_().log_()).argmax(1)


# ---- boards to play on: real ones, and imagined ones


class Real:
    """B boards of the game itself. A co-player is scripted, or (`self`) every hunter is a learner. Tensors of a tick:

    hunters int64 [B, A] and prey int64 [B, P], cells, K for what is gone; blocks bool [B, K]; tick, first_hunt int64 [B];
    clock float [B, 3]; seats int64 [B], the learner's; who int64 [B, A], index into STRATEGIES, -1 for learners; actions
    int64 [B, A], what was done last; version int64 [B], rises when a board is new or its prey have moved; starts, the
    blocks, hunters and prey that the episodes began with; paid float [B, A], for who plays to count in.
    """

    def __init__(self, boards: int, rules: Rules, co_players: str, seed: int, team_episodes: int = 1):
        self.boards, self.rules, self.maps = boards, rules, Maps(boards, rules)
        self.teams = Teams(boards, rules, co_players, team_episodes=team_episodes)
        self.everyone, self.paid = self.teams.everyone, torch.zeros(boards, rules.hunters)
        self.teams.reset(seed)
        self._read(np.ones(boards, bool))

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """actions: int64 [B], the learner's, or [B, A]. Returns: rewards float, terminated, truncated bool, each [B, A]."""
        found = self.teams.step(actions.view(self.boards, -1).numpy())
        self.actions = torch.as_tensor(self.teams.core.effective_actions).long()
        self._read(np.zeros(self.boards, bool))
        return tuple(torch.as_tensor(array) for array in found)

    def deal(self, boards: torch.Tensor) -> torch.Tensor:
        """A new episode on these boards, bool [B]. Returns: bool [B], where the team is a new one, too."""
        new = self.teams.deal(boards.numpy())
        self._read(boards.numpy())
        return torch.as_tensor(new)

    def _read(self, dealt: np.ndarray) -> None:
        core = self.teams.core
        before = getattr(self, "prey", None)
        self.hunters, self.prey = torch.as_tensor(core.hunters), torch.as_tensor(core.prey)
        self.blocks = torch.as_tensor(core.blocks)
        if dealt.any():  # where the episodes began
            now = self.blocks.clone(), self.hunters, self.prey
            first = getattr(self, "starts", now)
            rows = torch.as_tensor(dealt)[:, None]
            self.starts = tuple(torch.where(rows, new, old) for new, old in zip(now, first, strict=True))
        self.tick, self.first_hunt = (
            torch.as_tensor(core.tick).long(),
            torch.as_tensor(core.first_hunt).long(),
        )
        self.seats, self.who = torch.as_tensor(self.teams.seats), torch.as_tensor(self.teams.who)
        _refresh(self, before, torch.as_tensor(dealt))

    @property
    def ended(self) -> torch.Tensor:
        return torch.as_tensor(self.teams.core.ended)

    def planes(self) -> torch.Tensor:
        """uint8 [B, A, 5, H, W]: what each hunter sees."""
        return torch.as_tensor(self.teams.core.obs)

    def state_dict(self) -> dict:
        starts = {f"starts{i}": array for i, array in enumerate(self.starts)}
        return (
            {key: torch.as_tensor(value) for key, value in self.teams.state_dict().items()}
            | starts
            | {"paid": self.paid}
        )

    def load_state_dict(self, state: dict) -> None:
        self.teams.load_state_dict(
            {key: value.numpy() for key, value in state.items() if not key.startswith("starts")}
        )
        self._read(np.ones(self.boards, bool))
        self.starts, self.paid = tuple(state[f"starts{i}"] for i in range(3)), state["paid"].clone()


class Remembered(nn.Module):
    """A network of few different inputs, small multiples of 1/4, that computes each only once: for use without gradients."""

    def __init__(self, net: nn.Module, lasts: tuple[int, ...]):
        """lasts: how many of each input's last axes are one question."""
        super().__init__()
        self.net, self.lasts, self.weights = net, lasts, None

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        lead = inputs[0].shape[: inputs[0].dim() - self.lasts[0]]
        flat = torch.cat([array.flatten(len(lead)).float() for array in inputs], -1).flatten(0, -2).double()
        if (
            self.weights is None
        ):  # whole numbers: sums are exact in any order, and two inputs share one with odds of 2**-36
            generator = torch.Generator().manual_seed(1)
            self.weights = torch.randint(2**36, (flat.shape[1],), generator=generator).double()
            self.keys, self.answers = torch.full((1,), math.inf, dtype=torch.float64), None
        key = flat @ self.weights
        at = torch.searchsorted(self.keys, key)
        missing = self.keys[at] != key
        if missing.any():
            rows = missing.nonzero()[:, 0]
            new, first = key[rows].unique(return_inverse=True)
            pick = torch.zeros(len(new), dtype=torch.int64).scatter_(0, first, rows)
            said = self.net(*(array.flatten(0, len(lead) - 1)[pick] for array in inputs))
            known = said[:0] if self.answers is None else self.answers[:-1]
            self.keys, order = torch.cat([self.keys[:-1], new, self.keys[-1:]]).sort()
            self.answers = torch.cat([known, said, said[:1]])[order]
            at = torch.searchsorted(self.keys, key)
        return self.answers[at].view(*lead, -1)


def remember(world: ObjectWorldModel) -> ObjectWorldModel:
    """The world model, its networks remembering their answers: a tick asks the same few things of thousands of boards."""
    if not isinstance(world.hunter, Remembered):
        world.hunter, world.prey = Remembered(world.hunter, (1, 2, 1)), Remembered(world.prey, (1, 2, 1))
        world.reward, world.end = Remembered(world.reward, (1,)), Remembered(world.end, (1,))
    return world


class Imagined:
    """The same, imagined: boards begin as recorded ones did, the world model says what happens, and co-players act as the
    goal heads of the MOA say, each by a goal that is drawn as `--co-players` says; RANDOM ones uniformly over legal actions.

    Built in: when a board ends. Every player knows that rule: no hunter is left, `end_after_first_hunt` ticks after the
    first (imagined) capture, or the horizon. A joint state does not tell it, so the end that the world model predicts is
    not used. All else is imagined.
    """

    def __init__(
        self,
        boards: int,
        rules: Rules,
        co_players: str,
        world: nn.Module,
        vae: nn.Module | None,
        team_episodes: int = 1,
    ):
        self.boards, self.rules, self.maps = boards, rules, Maps(boards, rules)
        self.world, self.team_episodes = world.on(rules.height, rules.width), team_episodes
        self.everyone = co_players == "self"
        self.team = [STRATEGIES.index(name) for name in parse_team(co_players, rules.hunters - 1)]
        B, A = boards, rules.hunters
        self.hunters, self.prey = torch.full((B, A), rules.cells), torch.full((B, rules.prey), rules.cells)
        self.blocks, self.ended = (
            torch.zeros(B, rules.cells, dtype=torch.bool),
            torch.ones(B, dtype=torch.bool),
        )
        self.tick, self.first_hunt = torch.zeros(B, dtype=torch.int64), torch.full((B,), -1)
        self.episode = torch.zeros(B, dtype=torch.int64)
        self.seats, self.who, self.version = (
            torch.zeros(B).long(),
            torch.full((B, A), LEARNER),
            torch.zeros(B).long(),
        )
        self.minds = None if self.everyone else Minds(self, vae)
        self.paid = torch.zeros(B, A)
        self.starts: tuple = ()

    def begin(self, blocks: torch.Tensor, hunters: torch.Tensor, prey: torch.Tensor) -> None:
        """Boards to begin from, M of them: bool [M, K], int64 [M, A], int64 [M, P]."""
        first, self.starts = not self.starts, (blocks, hunters, prey)
        if first:
            self.deal(torch.ones(self.boards, dtype=torch.bool))

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `Real.step`."""
        joint, K, before = actions.view(self.boards, -1), self.rules.cells, self.prey
        if not self.everyone:
            joint = sample(self.minds.log_probs(self.who.clamp(min=0)).flatten(0, 1)).view(self.boards, -1)
            joint = joint.scatter(1, self.seats[:, None], actions.view(-1, 1))
        there = (self.hunters < K) & ~self.ended[:, None]
        boards = JointState(self.blocks.float(), self.hunters, self.prey, self.rules.stags)
        after, rewards, _ = self.world.step(boards, joint)
        self.actions, self.hunters, self.prey = joint, after.hunters, after.prey
        self.first_hunt = first_hunt_after(self.first_hunt, self.tick, before, self.prey, K)
        left = self.hunters == K
        ends = ended_by_rule(self.tick, self.first_hunt, self.hunters < K, self.rules)
        self.tick = self.tick + 1
        cut = ~ends & (self.tick >= self.rules.horizon)
        self.ended = self.ended | ends | cut
        _refresh(self, before, torch.zeros(self.boards, dtype=torch.bool))
        return rewards * there, there & (left | ends[:, None]), there & ~left & cut[:, None]

    def deal(self, boards: torch.Tensor) -> torch.Tensor:
        """As `Real.deal`."""
        A, rows = self.rules.hunters, boards.nonzero()[:, 0]
        pick = torch.randint(len(self.starts[0]), (len(rows),))
        for mine, start in zip((self.blocks, self.hunters, self.prey), self.starts, strict=True):
            mine[rows] = start[pick]
        self.tick[rows], self.first_hunt[rows], self.ended[rows] = 0, -1, False
        new = boards & ((self.episode == 0) | (self.episode >= self.team_episodes))
        self.episode = torch.where(boards, torch.where(new, 1, self.episode + 1), self.episode)
        if not self.everyone:
            rows = new.nonzero()[:, 0]
            seat, others = torch.randint(A, (len(rows),)), torch.randint(2, (len(rows), A - 1))  # NS or NH
            if self.team:
                others = torch.tensor(self.team)[torch.rand(len(rows), A - 1).argsort(1)]
            self.seats[rows] = seat
            self.who[rows] = LEARNER
            self.who[rows[:, None], (seat[:, None] + torch.arange(1, A)) % A] = others
        _refresh(self, self.prey, boards)
        return new

    def planes(self) -> torch.Tensor:
        boards = JointState(self.blocks.float(), self.hunters, self.prey, self.rules.stags).planes()
        return torch.as_tensor(
            joint_to_planes(boards.unflatten(2, (self.rules.height, self.rules.width)).numpy())
        )

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs; what is worked out from it is built again there, as with `Real`."""
        keys = ("hunters", "prey", "blocks", "ended", "tick", "first_hunt", "episode", "seats", "who", "paid")
        starts = {f"starts{i}": array for i, array in enumerate(self.starts)}
        return {key: getattr(self, key).clone() for key in keys} | starts

    def load_state_dict(self, state: dict) -> None:
        self.starts = tuple(state[f"starts{i}"] for i in range(3))
        for key, value in state.items():
            if not key.startswith("starts"):
                setattr(self, key, value.clone())
        _refresh(self, self.prey, torch.ones(self.boards, dtype=torch.bool))
        if self.minds is not None:
            self.minds.rebuild()


def recorded_starts(path: str, rules: Rules) -> tuple[torch.Tensor, ...]:
    """The first boards of the training episodes of an offline file, for `Imagined.begin`. Raises: DataError."""
    data = load_transitions(training_file(path))
    train = data.splits["train"]
    states = data.states[data.before[train[data.ticks[train] == 0]]]
    prey = states[:, -2:].sum((2, 3), np.int64)  # stags and hares on each board
    fits = states.shape[1:] == (rules.hunters + 3, rules.height, rules.width) and len(states)
    if not fits or (prey != [rules.stags, rules.hares]).any():
        game = f"{rules.hunters} hunters, {rules.stags} stags and {rules.hares} hares on {rules.height}x{rules.width} cells"
        raise DataError(
            f"{path}: expected episodes of {game}: collect them with `python -m data.collect --rules...`"
        )
    states = torch.as_tensor(states).flatten(2)
    boards = JointState.of(states, rules.stags, rules.hares)
    return boards.blocks.bool(), boards.hunters, boards.prey


def sights(game: "Real | Imagined", told: torch.Tensor) -> tuple[torch.Tensor, Observation]:
    """Seats, int64 [N], and what the learners in them see, board by board: N = B, or B * A where every hunter learns.
    told: float [B, A, I], what is known of each hunter."""
    B, A = game.who.shape
    if not game.everyone:
        return game.seats, game.maps.see(
            torch.arange(B), game.hunters, game.prey, game.clock, game.seats, told
        )
    board, seat = torch.arange(B).repeat_interleave(A), torch.arange(A).repeat(B)
    return seat, game.maps.see(
        board, game.hunters[board], game.prey[board], game.clock[board], seat, told[board]
    )


def _refresh(game: Real | Imagined, before: torch.Tensor | None, dealt: torch.Tensor) -> None:
    """Bring up to date what hangs on a game's tick and cells; `version` [B] rises where steps must be counted anew."""
    fresh = (
        dealt if before is None else dealt | ((game.prey != before) & (game.prey < game.rules.cells)).any(1)
    )
    game.clock = clock_of(game.tick, game.first_hunt, game.rules)
    if before is None:
        game.version = torch.zeros(game.boards, dtype=torch.int64)
    game.version += fresh
    rows = fresh.nonzero()[:, 0]
    if len(rows):
        counted = game.teams.core.distances()[rows.numpy()] if isinstance(game, Real) else None
        game.maps.update(rows, game.blocks[rows], game.prey[rows], counted)


class Minds:
    """What the goal heads of the MOA say of all hunters of a game's boards."""

    def __init__(self, game: Real | Imagined, vae: nn.Module):
        self.game, self.vae, self.board = game, vae, torch.arange(game.boards)
        self.rebuild()

    def rebuild(self) -> None:
        """Make the tables from the boards as they are now, and nothing before. A table's size decides how its numbers are
        rounded, so a resumed run and the one that goes on must build theirs from the same boards."""
        self.policy = TabularMOA(self.vae, self.game.blocks, self.game.prey, self.game.rules.stags)
        self.version = self.game.version.clone()

    def log_probs(self, goals: torch.Tensor | None = None) -> torch.Tensor:
        """goals: int64 [B, A], 0 stag, 1 hare, 2 none. Returns: float [B, A, 7]; None: of 0 and 1, [B, A, 2, 7]."""
        game = self.game
        stale = (self.version != game.version).nonzero()[:, 0]
        if len(stale):
            self.policy.update(stale, game.blocks[stale], game.prey[stale])
            self.version = game.version.clone()
        return self.policy.probs(self.board, game.hunters, game.prey, game.tick, goals).clamp(min=1e-20).log()
