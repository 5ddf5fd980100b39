"""Train a world model on trajectories of the Markov stag hunt: the next joint state, the rewards, the end.

`--model moves`: each object stays, goes to a neighbour cell, or leaves: a softmax over these six outcomes, hunters first,
then prey, one after another, each given what was decided before, so that every sample is a possible board; the reward as
a class, given the outcome. `--model cells`: the plain model, one convolution and two small networks, to compare: each cell
of the next planes by itself, by cross-entropy.

Built into `moves`: an action that is not legal counts as STAY; an object is in one place, and moves one cell at most;
actions 0 to 3 name the four neighbours, in which all directions are alike; nothing goes off the board; blocks do not change;
a hunter that has left stays away and is paid nothing; those that leave from one cell share what is paid there; the end
depends on whether a hunter is left; and what each object is given: hunters that hunt on its cell, counted up to 8 (for prey
4), those that left from it before, what stands there, which neighbour cells are blocked or taken. Learnt: that a legal step
moves its hunter, which hunters leave and when, what is paid, when prey walk and where to, when a board ends.

Built into `cells`: an action belongs to its hunter's cell; a hunter is predicted on its own cell and the eight around it,
with the same network for all hunters; rewards are values of the training data; blocks, hunters that have left, and the end:
as above. What an illegal action becomes it must learn.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import tracking
from data import DEFAULT_DATA, DataError, training_file
from data.datasets import TransitionBatches, Transitions, load_transitions
from data.outcomes import LEAVE, STAYED, Outcomes, outcomes_of
from envs.grid import neighbours
from tracking import figures

KIND = "train_world_model"  # what a checkpoint says it is
ACTIONS, STAY, HUNT_STAG, HUNT_HARE = 7, 4, 5, 6
MASKED = -1e9  # a logit of what cannot be
SHARP = 4.0  # scale of all logits: certainty is reached in fewer steps
RARE = 14.0  # nats; what is a million times less likely than the likeliest is not drawn: it cannot be
COUNTS = 8  # hunters that hunt on one cell are told apart up to so many
EVAL_BATCH = 4096
LOG_STEPS = 50  # TensorBoard gets the mean of so many minibatches, and of what is left at the end of an epoch


@dataclass
class Args:
    exp_name: str = "wm"
    """the run is called <exp-name>__<unix seconds>"""
    seed: int = 1
    """seed of the weights and the batches"""
    torch_deterministic: bool = True
    """use deterministic algorithms: same seed, same bytes (on a GPU: where PyTorch has them, with a warning where not)"""
    cuda: bool = True
    """train on the GPU where there is one"""
    torch_threads: int = 1
    """CPU threads of a process"""

    model: Literal["moves", "cells"] = "moves"
    """each object by its possible moves, or the plain model: each cell by itself"""
    actions: Literal["joint", "own"] = "joint"
    """what the model is told: everyone's actions, or one hunter's"""
    data: str = DEFAULT_DATA
    """trajectories or a flat file in a HOP layout; the default file and `fresh` are collected on first use"""
    layout: Literal["auto", "hop", "hop-first"] = "auto"
    """layout of a flat file, where its shape does not tell: [N, H, W, A+3] or [N, A+3, H, W]"""
    max_transitions: int = 0
    """if above 0, train on so many transitions of the training split, the first ones"""
    epochs: int = 30
    """passes over the training split"""
    batch_size: int = 256
    """transitions a step"""
    learning_rate: float = 2e-2
    """of Adam, half of it for `cells`; rises over the first 100 steps, then falls linearly to zero"""
    contrastive_coef: float = 0.0
    """weight of an InfoNCE loss against next states that break a rule; for `moves`"""

    resume: str = ""
    """go on with the run in this folder; its settings come from its checkpoint"""


# ---- what both models say


class Prediction(NamedTuple):
    """Of B joint states and joint actions; K cells, hunters in seat order, then BLOCKS, STAGS, HARES."""

    likely: torch.Tensor  # uint8 [B, A+3, K], the most likely next planes
    expected: torch.Tensor  # float [B, A+3, K], the expected ones
    rewards: torch.Tensor  # float [B, A], the most likely ones
    expected_rewards: torch.Tensor  # float [B, A]
    positive: torch.Tensor | None  # float [B, A], P(reward > 0)
    ends: torch.Tensor  # float [B], P(the board terminates)


class JointState(NamedTuple):
    """A batch of joint states as cells: what moves is a number, K for what has left."""

    blocks: torch.Tensor  # float [B, K]
    hunters: torch.Tensor  # int64 [B, A]
    prey: torch.Tensor  # int64 [B, P], stags first
    stags: int  # how many of the P are stags

    @classmethod
    def of(cls, states: torch.Tensor, stags: int, hares: int) -> "JointState":
        """states: uint8 [B, A+3, K]; stags, hares: the most that one of them has. Prey are in the order of their cells."""
        K, A = states.shape[2], states.shape[1] - 3
        order = torch.arange(K, 0, -1, device=states.device)  # so that topk finds the first cells first
        cells = []
        for planes, most in (
            (states[:, :A].flatten(0, 1), 1),
            (states[:, A + 1], stags),
            (states[:, A + 2], hares),
        ):
            value, cell = (planes * order).topk(most, 1)
            cells.append(torch.where(value > 0, cell, K))
        return cls(states[:, A].float(), cells[0].view(len(states), A), torch.cat(cells[1:], 1), stags)

    def planes(self) -> torch.Tensor:
        """uint8 [B, A+3, K]"""
        B, A = self.hunters.shape
        K = self.blocks.shape[1]
        planes = self.blocks.new_zeros(B, A + 3, K + 1)
        planes[:, :A].scatter_(2, self.hunters[:, :, None], 1.0)
        planes[:, A, :K] = self.blocks
        planes[:, A + 1].scatter_(1, self.prey[:, : self.stags], 1.0)
        planes[:, A + 2].scatter_(1, self.prey[:, self.stags :], 1.0)
        return planes[:, :, :K].to(torch.uint8)


# ---- the model of moves


class Scorer(nn.Module):
    """Logits of the six outcomes of an object: up, down, left, right, stay, leave. All four steps share one scorer."""

    def __init__(self, context: int, step: int, hidden: int):
        super().__init__()
        self.context, self.step = nn.Linear(context, 2 * hidden), nn.Linear(step, hidden, bias=False)
        self.middle, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.rest = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, context: torch.Tensor, step: torch.Tensor, off_board: torch.Tensor) -> torch.Tensor:
        """context: [.., c]; step: [.., 4, s]; off_board: bool [.., 4]. Returns: [.., 6]."""
        first, second = self.context(context).chunk(2, -1)
        steps = self.out(F.relu(self.middle(F.relu(first[..., None, :] + self.step(step)))))[..., 0]
        return torch.cat(
            [(SHARP * steps).masked_fill(off_board, MASKED), SHARP * self.rest(F.relu(second))], -1
        )


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    first, second, last = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def at_least(counts: torch.Tensor, most: int) -> torch.Tensor:
    """How many, so that five look like four and one more: float [..] -> [.., most]: at least 1, .., at least `most`."""
    return (counts[..., None] > torch.arange(most, device=counts.device) + 0.5).float()


OWN = (
    7  # what `Moves` knows of a hunter alone: its action in five classes, the stags and the hares on its cell
)


def effective_actions(wall: torch.Tensor, under: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """What happens of what was asked for: an action that is not legal (a step into a block or off the board, a hunt where no
    such prey stands) is STAY. Every player can tell which actions are legal: it is built into `Moves`, and here alone.

    Args:
        wall: float [.., 4], above 0 where a block or the border stops a step; under: float [.., 2], stags and hares on the
            hunter's cell.
        actions: int64 [..], -1 where not known.
    Returns: int64 [..].
    """
    legal = torch.cat([1.0 - wall, torch.ones_like(wall[..., :1]), under], -1) > 0  # [.., 7]
    illegal = ~legal.gather(-1, actions.clamp(min=0)[..., None])[..., 0]
    return torch.where((actions >= 0) & illegal, STAY, actions)


class Networks(NamedTuple):
    """What scores the outcomes: the model's own networks, or the same with a cache."""

    hunter: Callable[..., torch.Tensor]
    prey: Callable[..., torch.Tensor]
    reward: Callable[..., torch.Tensor]
    end: Callable[..., torch.Tensor]


class ObjectWorldModel(nn.Module):
    """p(next joint state, rewards, end | joint state, joint action), object by object, on boards of any size.

    totals: what a capture can pay in all, read off the training data; it is shared by those who leave from one cell.
    """

    kind = "moves"
    hunters = None

    def __init__(
        self, height: int, width: int, reward_values: list[float], joint: bool = True, hidden: int = 32
    ):
        super().__init__()
        self.sizes = dict(height=height, width=width, reward_values=reward_values, joint=joint, hidden=hidden)
        self.joint = joint
        self.hunter = Scorer(OWN + 3 * COUNTS + 2, 4, hidden)
        self.prey = Scorer(21, 5, hidden)
        self.reward, self.end = _mlp(OWN + 3 * COUNTS + 1, hidden, len(reward_values)), _mlp(1, hidden, 1)
        # A count of hunters that training never shows has no effect on hunters and rewards beyond the largest that it did.
        for layer in (self.hunter.context, self.reward[0]):
            nn.init.zeros_(layer.weight[:, OWN : OWN + 3 * COUNTS])
        self.register_buffer("reward_values", torch.tensor(reward_values, dtype=torch.float32))
        self.on(height, width)

    @property
    def networks(self) -> Networks:
        return Networks(self.hunter, self.prey, self.reward, self.end)

    def on(self, height: int, width: int) -> "ObjectWorldModel":
        """The same model, for boards of this size."""
        K = height * width
        around = torch.as_tensor(
            np.pad(neighbours(height, width)[:, :5], ((0, 0), (0, 1)), constant_values=K)
        )
        self.register_buffer(
            "around", around.to(self.reward_values.device), persistent=False
        )  # [K + 1, 6], where an outcome leads
        self.board = (height, width)
        return self

    def _surroundings(self, boards: JointState) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each hunter: is a step up, down, left, right blocked, float [B, A, 4]; stags, hares on its cell [B, A, 2]."""
        blocks, hunters, prey, stags = boards
        walls = F.pad(blocks, (0, 1), value=1.0)  # [B, K + 1]
        wall = walls.gather(1, self.around[hunters][..., :4].flatten(1)).unflatten(1, (-1, 4))
        on = (
            (hunters[:, :, None] == prey[:, None]) & (hunters < blocks.shape[1])[..., None]
        ).float()  # [B, A, P]
        return wall, torch.stack([on[..., :stags].sum(2), on[..., stags:].sum(2)], 2)

    def _hunters_see(self, boards: JointState, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """actions: int64 [B, A], as asked for, -1 where not known. Returns: the effective actions; context
        [B, A, OWN + 3 COUNTS], step [B, A, 4, 4], same [B, A, A]: who else stands on one's cell."""
        hunters, (K, A) = boards.hunters, (boards.blocks.shape[1], boards.hunters.shape[1])
        wall, under = self._surroundings(boards)
        actions = effective_actions(wall, under, actions)
        chosen = (actions[..., None] == torch.arange(4, device=actions.device)).float()
        hunt_stag, hunt_hare, unknown = (
            (actions == HUNT_STAG).float(),
            (actions == HUNT_HARE).float(),
            (actions < 0).float(),
        )
        same = (hunters[:, :, None] == hunters[:, None]) & (hunters < K)[..., None]
        same = (same & ~torch.eye(A, dtype=torch.bool, device=same.device)).float()
        crowd = same @ torch.stack([hunt_stag, hunt_hare, unknown], 2)  # [B, A, 3]
        own = torch.stack([chosen.sum(2), (actions == STAY).float(), hunt_stag, hunt_hare, unknown], 2)
        context = torch.cat([own, under, at_least(crowd, COUNTS).flatten(2)], 2)
        toward = self._toward(boards, self.around[hunters][..., :4]) * unknown[..., None, None]
        return actions, context, torch.cat([chosen[..., None], wall[..., None], toward], 3), same

    def _toward(self, boards: JointState, ways: torch.Tensor) -> torch.Tensor:
        """Does a step bring the nearest stag or hare nearer, as the crow flies? [B, A, 4, 2] in {-1, 0, 1}: all that a
        hunter's move can be guessed from whose action is not known."""
        if self.joint:
            return ways.new_zeros((*ways.shape, 2), dtype=torch.float32)
        width, K, far = self.board[1], boards.blocks.shape[1], 99
        cells = torch.cat([ways, boards.hunters[..., None]], 2)[..., None]  # [B, A, 5, 1]
        prey = boards.prey[:, None, None]
        steps = (cells // width - prey // width).abs() + (cells % width - prey % width).abs()
        steps = torch.where((prey < K) & (cells < K), steps, far)  # [B, A, 5, P]
        kinds = (steps[..., : boards.stags], steps[..., boards.stags :])
        near = torch.stack([F.pad(kind, (0, 1), value=far).amin(3) for kind in kinds], 3)  # [B, A, 5, 2]
        return (near[:, :, 4:] - near[:, :, :4]).clamp(-1, 1).float()

    def _prey_see(
        self, boards: JointState, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns: context [B, P, 13], wall [B, P, 4], under [B, P, A]: hunters on a prey's cell."""
        blocks, hunters, prey, stags = boards
        ways = self.around[prey][..., :4]
        wall = F.pad(blocks, (0, 1), value=1.0).gather(1, ways.flatten(1)).view(ways.shape)
        under = (prey[:, :, None] == hunters[:, None]).float()
        crowd = under @ torch.stack([actions == HUNT_STAG, actions == HUNT_HARE, actions < 0], 2).float()
        is_stag = (torch.arange(prey.shape[1], device=prey.device) < stags).float().expand(len(prey), -1)
        context = [torch.stack([is_stag, 1.0 - is_stag], 2), at_least(crowd[..., :2], 4).flatten(2)]
        return torch.cat([*context, at_least(crowd[..., 2], 3)], 2), wall, under

    def _prey_features(
        self, seen: tuple, boards: JointState, left: torch.Tensor, now: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every prey, given those before it. left: float [B, A], hunters that leave; now: int64 [B, P], where prey go.
        Returns: what `Scorer` takes, for [B, P, 6] logits."""
        (context, wall, under), cell, P = seen, boards.prey, boards.prey.shape[1]
        ways, index = self.around[cell][..., :4], torch.arange(P, device=cell.device)
        earlier, later = index < index[:, None], index > index[:, None]  # [P, P]
        taken = ((ways[..., None] == now[:, None, None]) & earlier[:, None]).any(3)  # [B, P, 4]
        waits = (ways[..., None] == cell[:, None, None]) & later[:, None]  # [B, P, 4, P]
        leavers = (under * left[:, None]).sum(2)  # [B, P], hunters that leave from its cell
        alike = ((index < boards.stags)[:, None] == (index < boards.stags))[:, None]
        stays = waits & (leavers == 0)[:, None, None]
        waiting = [part.any(3) for part in (waits & ~stays, stays & alike, stays & ~alike)]
        ousted, shot = ((cell[..., None] == now[:, None]) & earlier).any(2).float(), at_least(leavers, 2)
        step = torch.stack([wall, *(array.float() for array in (taken, *waiting))], 3)
        context = torch.cat([context, shot, ousted[..., None], step.sum(2) / 4], 2)
        return context, step, ways == boards.blocks.shape[1]

    def _reward_logits(
        self, context: torch.Tensor, left: torch.Tensor, networks: Networks | None = None
    ) -> torch.Tensor:  # over `reward_values`, [B, A, n]
        reward = (networks or self.networks).reward
        return SHARP * reward(torch.cat([context, left[..., None]], 2))

    def terms(self, boards: JointState, actions: torch.Tensor, outcome: Outcomes, rewards: torch.Tensor, ends: torch.Tensor,
              contrast: bool = False) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """log p of what happened, in nats: float [B, 4], of hunters, prey, rewards and end (0 where not known); and InfoNCE
        (van den Oord et al. 2018) of that against what breaks a rule, [B], 0 unless `contrast`.

        A next state does not say which of two hares is which: its probability is the sum over all ways to tell.
        """
        (actions, context, step, same), K = self._hunters_see(boards, actions), boards.blocks.shape[1]
        left = outcome.left()
        earlier = torch.tril(same, -1) @ left[..., None]  # [B, A, 1], left before from one's cell
        off_board = self.around[boards.hunters][..., :4] == K
        hunters = self.hunter(
            torch.cat([context, at_least(earlier[..., 0], 2)], 2), step, off_board
        ).log_softmax(2)
        there = boards.hunters < K

        told = JointState(
            *(array[outcome.row] for array in boards[:3]), boards.stags
        )  # a row a way to tell the prey apart
        now = self.around[told.prey].gather(2, outcome.prey[..., None])[..., 0]
        seen = self._prey_see(told, actions[outcome.row])
        prey = self.prey(*self._prey_features(seen, told, left[outcome.row], now)).log_softmax(2)
        each = (_at(prey, outcome.prey) * (told.prey < K)).sum(1)
        by_way = each.new_full((len(actions), outcome.ways), MASKED).index_put(
            (outcome.row, outcome.way), each
        )

        paid = self._reward_logits(context, left).log_softmax(2)
        known = there & ~rewards.isnan()
        total = (
            (rewards[..., None].nan_to_num() * self._sharers(same, left) - self.reward_values).abs().argmin(2)
        )
        end = _end_log_prob(self._end_logit(left, there), ends)
        found = [
            (_at(hunters, outcome.hunters) * there).sum(1),
            by_way.logsumexp(1),
            (_at(paid, total) * known).sum(1),
            end,
        ]
        lost = found[0].new_zeros(len(actions))
        if contrast:
            first = outcome.way == 0
            gone = torch.where(
                outcome.prey == LEAVE, STAYED, LEAVE
            )  # one prey missing, or there though it was captured
            less = [self._wrong(hunters, outcome.hunters, there), self._wrong(paid, total, known),
                    _one_of((_at(prey, gone) - _at(prey, outcome.prey))[first], (told.prey < K)[first])]  # fmt: skip
            # Next states of the batch are on other boards: impossible here by construction, they would add nothing.
            lost = torch.logsumexp(torch.stack([torch.zeros_like(lost), *less]), 0)
        return torch.stack(found, 1), lost

    def _wrong(self, log_probs: torch.Tensor, right: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """How much less likely another class of one random object is, [B]."""
        classes = log_probs.shape[2]
        other = (right + torch.randint_like(right, 1, max(2, classes))) % classes
        return _one_of(
            (_at(log_probs, other) - _at(log_probs, right)).clamp(min=MASKED), there & (other != right)
        )

    def _sharers(self, same: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """How many leave from one's cell, oneself included; 1 for who stays. [B, A, 1]"""
        return (1.0 + (same @ left[..., None])[..., 0] * left)[..., None]

    def _end_logit(
        self, left: torch.Tensor, there: torch.Tensor, networks: Networks | None = None
    ) -> torch.Tensor:  # is anybody left on the board? [B]
        stay = ((left == 0) & there).any(1, keepdim=True).float()
        return SHARP * (networks or self.networks).end(stay)[:, 0]

    @torch.no_grad()
    def log_prob(self, states, actions, next_states, rewards, ends) -> torch.Tensor:
        """log p(next state, rewards, end | state, actions), float [B] in nats; about -1e9 for what cannot be said."""
        most = max(1, int(states[:, -2].sum(1).max())), max(1, int(states[:, -1].sum(1).max()))
        boards, device = JointState.of(states, *most), states.device
        outcome = outcomes_of(states.cpu().numpy(), next_states.cpu().numpy(), self.board, *most)
        found = torch.full((len(states),), MASKED, device=device)
        good = torch.as_tensor(np.flatnonzero(outcome.possible), device=device)
        part = JointState(*(array[good] for array in boards[:3]), boards.stags)
        told = outcome.batch(np.flatnonzero(outcome.possible), device)
        terms, _ = self.terms(part, actions[good], told, rewards[good], ends[good])
        same = (part.hunters[:, :, None] == part.hunters[:, None]).float()
        paid = rewards[good].nan_to_num()[..., None] * self._sharers(
            same - torch.eye(same.shape[1]).to(same), told.left()
        )
        odd = ((paid - self.reward_values).abs().amin(2) > 0.01).any(1)  # a reward that is no class
        return found.index_put((good,), torch.where(odd, MASKED, terms.sum(1)))

    # -- what happens

    @torch.no_grad()
    def step(
        self,
        boards: JointState,
        actions: torch.Tensor,
        likely: bool = False,
        networks: Networks | None = None,
    ):
        """One tick on all boards, sampled, or with every object's likeliest outcome given those before it.

        networks: what scores the outcomes, if not the model's own (`CachedWorldModel`).
        Returns: boards, rewards float [B, A], ends bool [B]; with `likely`, also what the expected planes are made of.
        """
        networks = networks or self.networks
        K, (B, A), P = boards.blocks.shape[1], boards.hunters.shape, boards.prey.shape[1]
        actions, context, step, same = self._hunters_see(boards, actions)
        # All are decided at once, as if none before had left or moved; whoever saw what is not so decides anew.
        there, to, rows = (
            boards.hunters < K,
            self.around[boards.hunters],
            torch.arange(B, device=actions.device),
        )
        seen, earlier = (context, step, to[..., :4] == K), torch.tril(same, -1)
        left, outcomes, hunter_probs = (
            context.new_zeros(B, A),
            to.new_full((B, A), STAYED),
            context.new_zeros(B, A, 6),
        )
        before, anew = at_least(left, 2), torch.ones_like(there)
        while len(rows):
            context_now = torch.cat([seen[0][rows], before], 2)
            logits = networks.hunter(context_now, *(array[rows] for array in seen[1:]))
            outcomes[rows] = torch.where(anew, _pick(logits, likely), outcomes[rows])
            hunter_probs[rows] = torch.where(anew[..., None], logits, hunter_probs[rows])
            left[rows] = ((outcomes[rows] == LEAVE) & there[rows]).float()
            now = at_least((earlier[rows] @ left[rows, :, None])[..., 0], 2)
            anew = (now != before).any(2)
            on = anew.any(1)
            rows, before, anew = rows[on], now[on], anew[on]

        seen, goes, rows = (
            self._prey_see(boards, actions),
            boards.prey.clone(),
            torch.arange(B, device=actions.device),
        )
        prey_probs, start, index = (
            context.new_zeros(B, P, 6),
            to.new_zeros(B, 1),
            torch.arange(P, device=rows.device),
        )
        while len(rows) and P:
            some = JointState(*(array[rows] for array in boards[:3]), boards.stags)
            given = tuple(array[rows] for array in seen)
            logits = networks.prey(*self._prey_features(given, some, left[rows], goes[rows]))
            prey_probs[rows] = torch.where((index < start)[..., None], prey_probs[rows], logits)
            pick = _pick(logits, likely)
            went = (pick != STAYED) & (index >= start) & (some.prey < K)
            which = went.int().argmax(1, keepdim=True)
            to_cell, on = (
                self.around[some.prey.gather(1, which)[:, 0], pick.gather(1, which)[:, 0]],
                went.any(1),
            )
            rows, start = rows[on], which[on] + 1
            goes[rows, which[on, 0]] = to_cell[on]

        paid = self._reward_logits(context, left, networks)
        end = self._end_logit(left, there, networks)
        sharers = self._sharers(same, left)[..., 0]
        rewards = self.reward_values[_pick(paid, likely)] / sharers * there
        after = boards._replace(hunters=to.gather(2, outcomes[..., None])[..., 0], prey=goes)
        if not likely:
            return after, rewards, torch.rand_like(end) < end.sigmoid()
        return after, rewards, end > 0, (hunter_probs, prey_probs, context, end, sharers, there)

    @torch.no_grad()
    def predict(self, states: torch.Tensor, actions: torch.Tensor) -> Prediction:
        """`expected` adds up each object's outcomes, given the likeliest ones of those before it."""
        boards = self._boards(states)
        after, rewards, _, (hunters, prey, context, end, sharers, there) = self.step(
            boards, actions, likely=True
        )
        (B, A), K = boards.hunters.shape, boards.blocks.shape[1]
        planes = states.new_zeros(B, A + 3, K + 1, dtype=torch.float32)
        planes[:, :A].scatter_add_(2, self.around[boards.hunters], hunters.softmax(2))
        planes[:, A, :K] = boards.blocks
        for plane, own in ((A + 1, slice(None, boards.stags)), (A + 2, slice(boards.stags, None))):
            planes[:, plane].scatter_add_(
                1, self.around[boards.prey[:, own]].flatten(1), prey[:, own].softmax(2).flatten(1)
            )
        leaves = hunters.softmax(2)[..., LEAVE]
        paid = [self._reward_logits(context, torch.full_like(leaves, left)).softmax(2) for left in (0.0, 1.0)]
        paid = paid[0] + leaves[..., None] * (paid[1] - paid[0])  # [B, A, n]
        positive, expected = (
            paid[..., self.reward_values > 0].sum(2) * there,
            (paid * self.reward_values).sum(2) / sharers * there,
        )
        return Prediction(after.planes(), planes[:, :, :K], rewards, expected, positive, end.sigmoid())

    @torch.no_grad()
    def sample(self, states: torch.Tensor, actions: torch.Tensor):
        """Returns: planes uint8 [B, A+3, K], rewards [B, A], ends bool [B]."""
        after, rewards, ends = self.step(self._boards(states), actions)
        return after.planes(), rewards, ends

    def _boards(self, states: torch.Tensor) -> JointState:
        return JointState.of(
            states, max(1, int(states[:, -2].sum(1).max())), max(1, int(states[:, -1].sum(1).max()))
        )


class CachedNetwork:
    """A network that computes each distinct input once. Inputs are multiples of 1/4; no gradients flow.

    Each row of inputs is hashed to a sum of random whole numbers: exact in any order of summation, and two rows share a
    key with odds of 2**-36. Keys are kept sorted, so that a batch is looked up by one binary search.
    """

    def __init__(self, network: Callable[..., torch.Tensor], num_axes: tuple[int, ...]):
        """num_axes: how many of each input's last axes belong to one row."""
        self.network = network
        self.num_axes = num_axes
        self.weights = None  # float64 [n], of the key's sum
        self.keys = torch.full((1,), math.inf, dtype=torch.float64)  # sorted, the last one is no key
        self.outputs = None  # [keys, outputs]

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        batch = inputs[0].shape[: inputs[0].dim() - self.num_axes[0]]
        flat = [array.flatten(len(batch)).float() for array in inputs]
        flat = torch.cat(flat, -1).flatten(0, -2).double()
        if self.weights is None:
            generator = torch.Generator().manual_seed(1)
            self.weights = torch.randint(2**36, (flat.shape[1],), generator=generator).double()
        keys = flat @ self.weights
        index = torch.searchsorted(self.keys, keys)
        missing = self.keys[index] != keys
        if missing.any():
            rows = missing.nonzero()[:, 0]
            self._compute(keys[rows], rows, [array.flatten(0, len(batch) - 1) for array in inputs])
            index = torch.searchsorted(self.keys, keys)
        return self.outputs[index].view(*batch, -1)

    def _compute(self, keys: torch.Tensor, rows: torch.Tensor, inputs: list[torch.Tensor]) -> None:
        """Add the outputs of these rows of `inputs`, each distinct key once."""
        keys, first = keys.unique(return_inverse=True)
        rows = torch.zeros(len(keys), dtype=torch.int64).scatter_(0, first, rows)
        new = self.network(*(array[rows] for array in inputs))
        known = new[:0] if self.outputs is None else self.outputs[:-1]
        self.keys, order = torch.cat([self.keys[:-1], keys, self.keys[-1:]]).sort()
        self.outputs = torch.cat([known, new, new[:1]])[order]


class CachedWorldModel(nn.Module):
    """The `step` of a world model whose networks compute each distinct input once: a tick asks the same few things of
    thousands of boards. The world model itself is left as it is; its weights must not change afterwards."""

    def __init__(self, world_model: ObjectWorldModel):
        super().__init__()
        self.world_model = world_model
        self.networks = Networks(
            CachedNetwork(world_model.hunter, (1, 2, 1)),
            CachedNetwork(world_model.prey, (1, 2, 1)),
            CachedNetwork(world_model.reward, (1,)),
            CachedNetwork(world_model.end, (1,)),
        )

    def on(self, height: int, width: int) -> "CachedWorldModel":
        self.world_model.on(height, width)
        return self

    @torch.no_grad()
    def step(self, boards: JointState, actions: torch.Tensor, likely: bool = False):
        """As `ObjectWorldModel.step`."""
        return self.world_model.step(boards, actions, likely, self.networks)


def _at(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return values.gather(-1, index[..., None])[..., 0]


def _end_log_prob(logit: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """log p of an end, or of none; 0 where it is not known. Both float [B]."""
    return (
        -F.softplus(-logit * (2 * ends.nan_to_num() - 1)) * ~ends.isnan()
    )  # multiplied: a NaN has no gradient


def _one_of(values: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The value of a random object that is there, [B, n] -> [B]; MASKED where none is."""
    pick = (torch.rand_like(values) + there).argmax(1, keepdim=True)
    return torch.where(there.gather(1, pick), values.gather(1, pick), MASKED)[:, 0]


def _pick(logits: torch.Tensor, likely: bool) -> torch.Tensor:
    """The likeliest, or a draw: the largest of logits + Gumbel noise (Gumbel 1954), among those not RARE."""
    if likely:
        return logits.argmax(-1)
    logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) - RARE, MASKED)
    return (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)


# ---- the plain model


class CellLogits(NamedTuple):
    """What `Cells` says of B joint states; a hunter's window is its own cell and the eight around it."""

    window: (
        torch.Tensor
    )  # int64 [B, A, 9], the cells, K for what is off the board; all K for a hunter that has left
    hunters: torch.Tensor  # float [B, A, 9], logits of the hunter being there next
    rewards: torch.Tensor  # float [B, A, n], logits of the values in `rewards`
    prey: torch.Tensor  # float [B, 2, K], logits of a stag, of a hare


class Cells(nn.Module):
    """The plain model: each cell of the next planes by itself, independently of the others, by cross-entropy.

    A convolution over the board (hunters by their actions as asked for, each action on its hunter's cell; BLOCKS, STAGS,
    HARES, the board) is read at each hunter's own cell together with its action: where it goes, what it is paid. The same
    network serves all hunters, on boards of any size. The next STAGS and HARES are read off every cell.

    rewards: the values that a hunter was paid in the training data.
    """

    kind = "cells"
    hunters = None

    def __init__(self, height: int, width: int, rewards: list[float], joint: bool = True, channels: int = 32):
        super().__init__()
        self.sizes = dict(height=height, width=width, rewards=rewards, joint=joint, channels=channels)
        self.joint = joint
        self.board_features = nn.Conv2d(ACTIONS + 1 + 4, channels, 3, padding=1)
        self.hunter = _mlp(channels + ACTIONS + 1, 2 * channels, 9 + len(rewards))
        self.prey = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 2, 1))
        self.end = nn.Linear(1, 1)
        self.register_buffer("rewards", torch.tensor(rewards, dtype=torch.float32))
        self.on(height, width)

    def on(self, height: int, width: int) -> "Cells":
        """The same model, for boards of this size."""
        K = height * width
        cell = F.pad(torch.arange(K).view(height, width), (1, 1, 1, 1), value=K)
        window = [cell[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        window = F.pad(torch.stack(window, 2).flatten(0, 1), (0, 0, 0, 1), value=K)
        self.register_buffer("window", window.to(self.rewards.device), persistent=False)  # [K + 1, 9]
        self.board = (height, width)
        return self

    def forward(self, states: torch.Tensor, actions: torch.Tensor) -> CellLogits:
        """states: uint8 [B, A+3, K]; actions: int64 [B, A], as asked for, -1 where not known."""
        (B, A), K = actions.shape, states.shape[2]
        hunters, chosen = states[:, :A].float(), F.one_hot(actions + 1, ACTIONS + 1).float()
        by_action = torch.einsum(
            "bac,bak->bck", chosen, hunters
        )  # [B, 8, K], how many hunters play it on a cell
        inside = hunters.new_ones(B, 1, K)  # tells a free cell from one beyond the border
        board = torch.cat([by_action, states[:, A:].float(), inside], 1)
        features = F.relu(self.board_features(board.unflatten(2, self.board)))  # [B, channels, H, W]
        prey = self.prey(features).flatten(2)
        cell = _cell_of(states[:, :A])  # [B, A]
        features = F.pad(features.flatten(2), (0, 1)).transpose(1, 2)  # [B, K + 1, channels]
        own = features.gather(1, cell[..., None].expand(-1, -1, features.shape[2]))
        says = self.hunter(torch.cat([own, chosen], 2))
        return CellLogits(self.window[cell], says[..., :9], says[..., 9:], prey)

    def _end_logit(
        self, hunters: torch.Tensor
    ) -> torch.Tensor:  # hunters: [B, A, K], the next planes. Is one left? [B]
        return SHARP * self.end((hunters > 0.5).any(2).any(1, keepdim=True).float())[:, 0]

    def terms(self, states, actions, next_states, rewards, ends, contrast: bool = False):
        """log p of what happened, in nats: float [B, 4], of the hunters' cells, the prey's, rewards and end (0 where not
        known); and zeros [B] where `Moves` has its contrastive loss."""
        logits, (A, K) = self(states, actions), (actions.shape[1], states.shape[2])
        there = states[:, :A].amax(2) > 0
        truth = F.pad(next_states[:, :A], (0, 1)).gather(2, logits.window).float()  # [B, A, 9]
        cells = F.binary_cross_entropy_with_logits(logits.hunters, truth, reduction="none") * (
            logits.window < K
        )
        prey = F.binary_cross_entropy_with_logits(
            logits.prey, next_states[:, A + 1 :].float(), reduction="none"
        )
        value = (rewards[..., None].nan_to_num() - self.rewards).abs().argmin(2)
        paid = _at(logits.rewards.log_softmax(2), value) * (there & ~rewards.isnan())
        end = _end_log_prob(self._end_logit(next_states[:, :A]), ends)
        found = [-cells.sum((1, 2)), -prey.sum((1, 2)), paid.sum(1), end]
        return torch.stack(found, 1), prey.new_zeros(len(prey))

    @torch.no_grad()
    def log_prob(self, states, actions, next_states, rewards, ends) -> torch.Tensor:
        """As `Moves.log_prob`."""
        terms, _ = self.terms(states, actions, next_states, rewards, ends)
        A = actions.shape[1]
        there = states[:, :A].amax(2) > 0
        near = self.window[_cell_of(states[:, :A])]  # [B, A, 9]
        seen = F.pad(next_states[:, :A], (0, 1)).gather(2, near).sum(2)
        far = (seen != next_states[:, :A].sum(2)).any(1) | (states[:, A] != next_states[:, A]).any(1)
        rewards = rewards.nan_to_num()
        odd = (rewards[..., None] - self.rewards).abs().amin(2) > 0.01  # a reward that is no class
        odd |= ~there & (rewards != 0)
        return torch.where(far | odd.any(1), MASKED, terms.sum(1))

    def _probabilities(
        self, states: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the next planes [B, A+3, K], of the rewards [B, A, n]; and there, bool [B, A]."""
        logits, A = self(states, actions), actions.shape[1]
        planes = F.pad(states, (0, 1)).float()
        planes[:, :A] = 0.0
        planes[:, :A].scatter_(2, logits.window, _certain(logits.hunters).sigmoid())
        planes[:, A + 1 :, :-1] = _certain(logits.prey).sigmoid()
        return planes[..., :-1], logits.rewards.softmax(2), states[:, :A].amax(2) > 0

    @torch.no_grad()
    def predict(self, states: torch.Tensor, actions: torch.Tensor) -> Prediction:
        planes, paid, there = self._probabilities(states, actions)
        likely = (planes > 0.5).to(torch.uint8)
        end = self._end_logit(likely[:, : actions.shape[1]]).sigmoid()
        positive = paid[..., self.rewards > 0].sum(2) * there
        return Prediction(
            likely, planes, self.rewards[paid.argmax(2)] * there, (paid @ self.rewards) * there, positive, end
        )

    @torch.no_grad()
    def sample(self, states: torch.Tensor, actions: torch.Tensor):
        """As `Moves.sample`, but nothing makes it a board: every cell is drawn by itself."""
        planes, paid, there = self._probabilities(states, actions)
        planes = (torch.rand_like(planes) < planes).to(torch.uint8)
        end = self._end_logit(planes[:, : actions.shape[1]]).sigmoid()
        return planes, self.rewards[_pick(paid.log(), likely=False)] * there, torch.rand_like(end) < end


def _cell_of(planes: torch.Tensor) -> torch.Tensor:
    """uint8 [B, A, K] -> int64 [B, A], the cell of each hunter, K for one that has left."""
    value, cell = planes.max(2)
    return torch.where(value > 0, cell, planes.shape[2])


def _certain(logits: torch.Tensor) -> torch.Tensor:
    """What is a million times less likely than its contrary cannot be."""
    return torch.where(logits.abs() > RARE, 1e4 * logits.sign(), logits)


MODELS = {"moves": ObjectWorldModel, "cells": Cells}


def read_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict:
    """Raises: tracking.UsageError: there is none, or it is of another script or a former version."""
    checkpoint = tracking.load_checkpoint(path, KIND, device)
    if checkpoint["args"]["model"] not in MODELS:  # the former regression
        raise tracking.UsageError(
            f"{path}: the checkpoint was made by another version of this script: train anew"
        )
    return checkpoint


def load_world_model(
    folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[ObjectWorldModel | Cells, dict]:
    """The network of a run's best checkpoint, in eval mode, and the checkpoint. Raises: tracking.UsageError."""
    path = tracking.find_folder(folder) / "best.pt"
    checkpoint = read_checkpoint(path, device)
    return tracking.build(MODELS[checkpoint["args"]["model"]], checkpoint, path).to(device).eval(), checkpoint


def log_likelihood_terms(
    model: nn.Module, batches: TransitionBatches, index: np.ndarray, contrast: bool, augment: bool
):
    """The model's terms of the transitions `index`, and its contrastive loss. A turned board tells `moves` nothing new,
    since their scorers share all directions; `cells` is trained on random symmetries."""
    batch = batches.take(index, random=augment, augment=augment and model.kind == "cells")
    if model.kind == "cells":
        return model.terms(*batch, contrast)
    states, actions, _, rewards, ends = batch
    outcome = batches.outcomes.batch(index, states.device)
    return model.terms(JointState.of(states, *batches.most), actions, outcome, rewards, ends, contrast)


# ---- judging


@torch.no_grad()
def judge(model: nn.Module, batches: TransitionBatches, index: np.ndarray) -> dict[str, float | None]:
    """In short what test_obs_reward_model.py says at length: means over the transitions `index`."""
    sums = 0.0
    for part in np.array_split(index, math.ceil(len(index) / EVAL_BATCH)):
        states, actions, truth, rewards, _ = batches.take(part, random=False)
        said = model.predict(states, actions)
        known = ~rewards.isnan()
        right = (((said.rewards - rewards).abs() < 0.01) | ~known).all(1) & known.any(1)
        terms, _ = log_likelihood_terms(model, batches, part, contrast=False, augment=False)
        found = [(said.expected - truth).square().mean((1, 2)), (said.likely == truth).all(2).all(1), -terms, known.any(1),
                 right, known, (said.expected_rewards - rewards)[known].square()]  # fmt: skip
        sums = sums + torch.stack([array.double().sum() for array in found])
    obs, exact, nll, rows, right, known, error = sums.tolist()
    means = {"obs_mse": obs / len(index), "reward_mse": error / known if known else None}
    means |= {"exact_transitions": exact / len(index), "exact_rewards": right / rows if rows else None}
    return means | {"nll": nll / len(index)}


# ---- training


def read_transitions(args: Args) -> Transitions:
    data = load_transitions(training_file(args.data), args.layout)
    print(f"[WM] Loaded {len(data)} transitions.")
    for line in data.inferred:
        print(f"[DATA] inferred: {line}")
    if args.actions == "joint" and (data.actions < 0).any():
        print("[DATA] not everyone's action is in this file: --actions own")
        args.actions = "own"
    return data


def run_epoch(
    model, optimizer, batches, index: np.ndarray, args: Args, step: int, world: tracking.World, writer
):
    """Train once on the transitions `index`, in an order of this seed and step, `step` steps having been taken before. Of
    several processes each takes its share of every batch.

    Returns: the means over the epoch of the loss's terms, and the steps so far.
    """
    names = ("hunters", "prey", "rewards", "end")
    names += ("contrastive",) * (args.contrastive_coef > 0) + ("total",)
    torch.manual_seed(int(np.random.default_rng((args.seed, step, world.rank)).integers(2**62)))
    order = index[
        np.random.default_rng((args.seed, step)).permutation(len(index))
    ]  # the same in every process
    parts = np.array_split(order, math.ceil(len(index) / args.batch_size))
    sums, logged = torch.zeros(
        2, len(names), device=world.device
    )  # over the epoch; over the steps since the last log
    with tqdm(
        total=len(index), unit=" transitions", leave=False, mininterval=1.0, disable=world.rank > 0
    ) as bar:
        for done, part in enumerate(parts, 1):
            rise, fall = min(1.0, (step + 1) / 100), 1.0 - step / (args.epochs * len(parts))
            scale = 0.5 if args.model == "cells" else 1.0
            optimizer.param_groups[0]["lr"] = args.learning_rate * scale * rise * fall
            mine = part[world.rank :: world.size]
            terms, contrast = model(batches, mine, args.contrastive_coef > 0)
            terms = -terms.sum(0) / len(part)
            loss = terms.sum() + args.contrastive_coef * contrast.sum() / len(part)
            optimizer.zero_grad()
            (loss * world.size).backward()  # the processes' gradients are averaged
            optimizer.step()
            extra = [contrast.sum()[None] / len(part)] * (args.contrastive_coef > 0)
            seen = torch.cat([terms, *extra, loss[None]]).detach()
            sums += seen
            logged += seen
            step += 1
            bar.update(len(part))
            if done % LOG_STEPS == 0 or done == len(parts):
                means = (world.sum(logged) / ((done - 1) % LOG_STEPS + 1)).tolist()
                tracking.log_scalars(writer, "losses", dict(zip(names, means, strict=True)), step)
                tracking.log_scalars(
                    writer, "charts", {"learning_rate": optimizer.param_groups[0]["lr"]}, step
                )
                logged.zero_()
    return dict(zip(names, (world.sum(sums) / len(parts)).tolist(), strict=True)), step


class Loss(nn.Module):
    """The terms of a batch as a module's forward pass, which is what several processes share."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batches: TransitionBatches, index: np.ndarray, contrast: bool):
        return log_likelihood_terms(self.model, batches, index, contrast, augment=True)


def train(args: Args, world: tracking.World, resumed: dict | None) -> None:
    start, device = time.perf_counter(), world.device
    with world.one_first():  # the default file is collected once
        data = read_transitions(args)
    if resumed and resumed["fingerprint"] != data.fingerprint:
        raise tracking.UsageError(
            f"{args.data}: not the data that the run was trained on; name that file with --data"
        )
    tracking.seed_everything(args.seed, args.torch_deterministic)
    batches = TransitionBatches.of(data, device, args.actions == "own")
    if late := int(np.isnan(data.ends).sum()):
        print(
            f"[DATA] {late} boards end by end_after_first_hunt: a joint state does not tell when; not part of the loss"
        )
    splits = {name: part[batches.outcomes.possible[part]] for name, part in data.splits.items()}
    if impossible := len(data) - len(splits["all"]):
        print(
            f"[DATA] {impossible} transitions left out in which an object goes further than a neighbour cell"
        )
    splits["train"] = splits["train"][: args.max_transitions or None]
    parts = {name: len(splits[name]) for name in ("train", "val", "test")}
    if min(parts.values()) < 1:
        raise tracking.UsageError(
            f"{args.data}: expected transitions to train, validate and test on, found {parts}"
        )
    print(
        f"[DATA] split {data.split_law}: {parts['train']} train, {parts['val']} val, {parts['test']} test transitions"
    )
    height, width = data.states.shape[2:]
    if resumed:
        model = MODELS[args.model](**resumed["sizes"])
    else:
        values = (
            batches.capture_totals(splits["train"])
            if args.model == "moves"
            else batches.reward_values(splits["train"])
        )
        if len(values) > 64:
            raise tracking.UsageError(
                f"{args.data}: rewards: expected at most 64 values, classes, found {len(values)}"
            )
        model = MODELS[args.model](height, width, values, args.actions == "joint")
    model = model.to(device).on(height, width)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)

    state = dict(epoch=0, step=0, best=math.inf, history=[], seconds=0.0, train_seconds=0.0)
    if resumed:
        folder, run_name = tracking.find_folder(args.resume), resumed["run"]
        state = {key: resumed[key] for key in state}
        tracking.load_weights(model, resumed["model"], folder / "last.pt")
        optimizer.load_state_dict(resumed["optimizer"])
        tracking.set_rng_state(resumed["rng"])
    else:
        run_name = tracking.new_run(args.exp_name, "wm_ckpts") if world.rank == 0 else ""
        folder = Path("wm_ckpts") / run_name
    settings = asdict(args) | {"resume": ""}  # so that a resumed run's files equal an uninterrupted one's
    fixed = dict(
        kind=KIND,
        run=run_name,
        args=settings,
        sizes=model.sizes,
        fingerprint=data.fingerprint,
        rules=data.rules,
    )

    def save(name: str) -> None:
        now = state | dict(seconds=state["seconds"] + time.perf_counter() - start)
        learnt = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), rng=tracking.rng_state())
        tracking.save_checkpoint(folder / name, fixed | now | learnt)

    purge = state["step"] + 1 if resumed else None
    writer = tracking.open_log(run_name, settings, purge_step=purge) if world.rank == 0 else None
    if not resumed and world.rank == 0:
        save("last.pt")  # so that a run killed in its first epoch can be resumed too
    print("[WM] Begin offline training...", flush=True)

    shared = world.wrap(Loss(model))
    for epoch in range(state["epoch"], args.epochs):
        print(f"\n[Epoch {epoch + 1}/{args.epochs}]", flush=True)
        epoch_start = time.perf_counter()
        means, state["step"] = run_epoch(
            shared, optimizer, batches, splits["train"], args, state["step"], world, writer
        )
        seconds = time.perf_counter() - epoch_start
        state["train_seconds"] += seconds
        if not math.isfinite(means["total"]):
            raise tracking.UsageError(
                f"epoch {epoch}: the loss is {means['total']}; try a smaller --learning-rate"
            )
        state["epoch"] = epoch + 1
        if world.rank > 0:  # the first process judges and saves
            continue
        tracking.log_scalars(writer, "charts", {"SPS": parts["train"] / seconds}, state["step"])
        val = judge(model, batches, splits["val"])
        tracking.log_scalars(writer, "val", val, state["step"])
        row = means | {f"val_{key}": value for key, value in val.items() if value is not None}
        print("[WM] " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
        state["history"].append(dict(epoch=epoch) | row)
        tracking.write_csv(folder / "loss.csv", state["history"])
        if val["nll"] < state["best"]:
            state["best"] = val["nll"]
            save("best.pt")
        save("last.pt")
    if world.rank > 0:
        return

    print(f"\n[WM] model saved to: {folder.as_posix()}")
    model, best = load_world_model(folder, device)
    test = judge(model.on(height, width), batches, splits["test"])
    said = ", ".join(f"{key} {value:.6g}" for key, value in test.items() if value is not None)
    print(
        f"[WM] epoch {best['epoch'] - 1} (best on validation) on the test split: {parts['test']} transitions: {said}"
    )
    column = {key: [row[key] for row in state["history"]] for key in state["history"][0]}
    val = [key for key in column if key.startswith("val_")]
    panels = {"training loss": {key: column[key] for key in column if key not in ("epoch", *val)}}
    panels |= {key: {"val": column[key]} for key in val}
    figures.save(figures.curves(panels, {}, "epoch"), folder / "wm_loss_curve.png", writer, state["step"])
    tracking.log_scalars(writer, "test", test, state["step"])
    seconds = state["seconds"] + time.perf_counter() - start
    speed = args.epochs * parts["train"] / state["train_seconds"]
    head = dict(
        run=run_name,
        seed=args.seed,
        args=settings,
        seconds=seconds,
        transitions_per_second=speed,
        transitions=parts,
    )
    tracking.write_json(folder / "metrics.json", head | {"test": test})
    writer.close()
    print(f"[WM] {seconds:.0f} s, {speed:.0f} transitions/s in training; judge it: python test_obs_reward_model.py "
          f"--checkpoint {folder.as_posix()}")  # fmt: skip


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    least = dict(max_transitions=0, epochs=1, batch_size=1, torch_threads=1, seed=0)
    tracking.check_ranges(args, least, above_zero=("learning_rate",), from_zero=("contrastive_coef",))
    if args.contrastive_coef and args.model == "cells":
        raise tracking.UsageError("--contrastive-coef: needs --model moves")
    resumed = None
    if args.resume:
        resumed = read_checkpoint(tracking.find_folder(args.resume) / "last.pt")
        args = tracking.resumed_args(args, resumed, free=("resume", "data", "cuda", "torch_threads"))
    torch.set_num_threads(args.torch_threads)
    with tracking.join_world(args.cuda) as world:
        train(args, world, resumed)


if __name__ == "__main__":
    tracking.run(main, DataError)
