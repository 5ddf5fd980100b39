"""Train a world model of the game of a file: the next joint state, the rewards, the end.

`--model moves` (ObjectWorldModel): each object stays, goes to a neighbour cell, or leaves: a
softmax over these six outcomes. Hunters come first, then prey, one after another, each given the
outcomes before it, so that every sample is a possible board. The reward is a class, given the
outcome. `--model cells` (CellWorldModel): the plain model, to compare: one convolution and two
small networks predict each cell of the next planes independently, by cross-entropy.

What is built into each, and what it learns, is listed in docs/world_model.md. Built into both: a
hunter moves one cell at most, with the same network for all hunters; blocks do not change; a
hunter that has left stays away and gets no reward; the end depends on whether a hunter is left
or, where nobody leaves, a prey. Built into `moves` alone: an action that is not legal counts as
STAY, all directions are alike, prey move one cell at most; every hunter is paid alike for a prey
that leaves the board (nothing, in the stag hunt), and those who took it share something more.
"""

import tracking  # first: from here on Ctrl-C is one line, also while torch is imported

# isort: split
import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data import DEFAULT_DATA, DataError, training_file
from data.datasets import TransitionBatches, Transitions, load_transitions
from data.outcomes import LEAVE, STAYED, JointState, Outcomes, occupied_cells, outcomes_of, prey_counts
from envs.core import TAKE
from envs.game import DOWN, LEFT, MAX_KINDS, MOVES, RIGHT, STAY, UP, OtherGame
from envs.games import is_of_network
from envs.grid import neighbours
from envs.stag_hunt import GAME as STAG_HUNT
from tracking import checkpoints, figures

KIND = "train_world_model"  # the script that a checkpoint belongs to
MASKED = -1e9  # the logit of what is impossible
LOGIT_SCALE = 4.0  # of all logits: certainty is reached in fewer steps
RARE = 14.0  # nats; outcomes a million times less likely than the likeliest are never sampled
MAX_REWARDS = 64  # values of a reward, classes
MAX_COUNT = 8  # hunters that take prey on one cell are counted up to this
EVAL_BATCH = 4096
GONE = 31  # in a code: the cell of what is off the board
LOG_STEPS = 50  # TensorBoard gets means over this many minibatches
FIRST_SIZES = dict(kinds=2, leaves=True, public_pay=(0.0, 0.0))  # that checkpoints without a game lack


@dataclass
class Args:
    exp_name: str = "wm"
    """name of the run, followed by __<game>__<model>__<seed>__<unix seconds>"""
    seed: int = 1
    """seed of the weights and the batches"""
    torch_deterministic: bool = True
    """deterministic algorithms: same seed, same bytes (on a GPU: where PyTorch has them, with
    a warning where not)"""
    cuda: bool = True
    """GPU for the training, where there is one"""
    torch_threads: int = 1
    """CPU threads of a process"""
    track: bool = False
    """tracking of this run with Weights & Biases"""
    wandb_project_name: str = "om_wm"
    """project of Weights & Biases"""
    wandb_entity: str | None = None
    """entity (team) of the project of Weights & Biases"""

    model: Literal["moves", "cells"] = "moves"
    """law of the next state: each object by its possible moves, or the plain model, each cell independently (the one that
    reads games outside the family, too)"""
    actions: Literal["joint", "own"] = "joint"
    """actions that the model is given: all hunters', or one hunter's"""
    data: str = DEFAULT_DATA
    """trajectories or a flat file in a HOP layout; the default file and `fresh` are collected on
    first use"""
    layout: Literal["auto", "hop", "hop-first"] = "auto"
    """layout of a flat file, where its shape does not tell: [N, H, W, A+3] or [N, A+3, H, W]"""
    max_transitions: int = 0
    """transitions of the training split to train on, the first ones; 0: all"""
    epochs: int = 30
    """passes over the training split"""
    batch_size: int = 256
    """transitions a step"""
    learning_rate: float = 2e-2
    """learning rate of Adam, half of it for `cells`; rises over the first 100 steps, then falls linearly to
    zero"""
    contrastive_coef: float = 0.0
    """weight of an InfoNCE loss against next states that break a rule; for `moves`"""

    resume: str = ""
    """folder of a run to go on with, or `newest`; its settings come from its checkpoint"""


# ---- what both models give


class Prediction(NamedTuple):
    """Of B joint states and joint actions; K cells, hunters in seat order, then BLOCKS and each
    of k kinds of prey."""

    most_likely: Tensor  # uint8 [B, A+1+k, K], the most likely next planes
    expected: Tensor  # float [B, A+1+k, K], the expected next planes
    rewards: Tensor  # float [B, A], the most likely rewards
    expected_rewards: Tensor  # float [B, A]
    reward_prob: Tensor | None  # float [B, A], P(reward > 0)
    end_prob: Tensor  # float [B], P(the board terminates)


class LogLikelihood(NamedTuple):
    """log p of the true next state, rewards and end, by part, in nats: float [B] each."""

    hunters: Tensor
    prey: Tensor
    rewards: Tensor  # 0 where not known
    end: Tensor  # 0 where not known

    def stack(self) -> Tensor:
        """float [B, 4]"""
        return torch.stack(self, 1)


def select(values: Tensor, index: Tensor) -> Tensor:
    """The value of one class: [.., n], int64 [..] -> [..]."""
    return values.gather(-1, index[..., None])[..., 0]


def thermometer(counts: Tensor, max_count: int) -> Tensor:
    """Counts as bits "at least 1", .., "at least max_count", so that five looks like four and one
    more: float [..] -> [.., max_count]."""
    levels = torch.arange(max_count, device=counts.device) + 0.5
    return (counts[..., None] > levels).float()


def sample_or_argmax(logits: Tensor, most_likely: bool) -> Tensor:
    """The most likely class, or a sample among those not RARE: the largest of logits + Gumbel
    noise (Gumbel 1954)."""
    if most_likely:
        return logits.argmax(-1)
    logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) - RARE, MASKED)
    return (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)


def end_log_prob(logit: Tensor, ends: Tensor) -> Tensor:
    """log p of an end, or of none; 0 where it is not known. Both float [B]."""
    known = ~ends.isnan()
    sign = 2 * ends.nan_to_num() - 1
    return -F.softplus(-logit * sign) * known  # multiplied: a NaN has no gradient


def nearest_value(rewards: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The class of a reward, and how far it is from that class: float [B, A], [n] -> int64 [B,
    A], float [B, A]."""
    distance = (rewards[..., None] - values).abs()
    return distance.argmin(2), distance.amin(2)


# ---- the model of moves


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def check_kinds(kinds: int, public_pay: tuple[float, ...]) -> None:
    """Raises: ValueError."""
    if not 1 <= kinds <= MAX_KINDS or len(public_pay) != kinds:
        raise ValueError(
            f"kinds: expected 1 to {MAX_KINDS}, and public_pay of each, got {kinds}, {public_pay}"
        )


class Scorer(nn.Module):
    """Logits of the six outcomes of an object: up, down, left, right, stay, leave. All four steps
    share one scorer."""

    def __init__(self, context: int, step: int, hidden: int):
        super().__init__()
        self.context = nn.Linear(context, 2 * hidden)
        self.step = nn.Linear(step, hidden, bias=False)
        self.middle = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)
        self.rest = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, context: Tensor, steps: Tensor, off_board: Tensor) -> Tensor:
        """context: [.., c]; steps: [.., 4, s]; off_board: bool [.., 4]. Returns: [.., 6]."""
        for_steps, for_rest = self.context(context).chunk(2, -1)
        features = F.relu(for_steps[..., None, :] + self.step(steps))  # [.., 4, hidden]
        step_logits = LOGIT_SCALE * self.out(F.relu(self.middle(features)))[..., 0]
        rest_logits = LOGIT_SCALE * self.rest(F.relu(for_rest))
        return torch.cat([step_logits.masked_fill(off_board, MASKED), rest_logits], -1)


class Networks(NamedTuple):
    """What scores the outcomes: the networks of an ObjectWorldModel, or the same ones with a
    cache."""

    hunter: Callable[..., Tensor]
    prey: Callable[..., Tensor]
    reward: Callable[..., Tensor]
    end: Callable[..., Tensor]


class HunterInputs(NamedTuple):
    """What the networks are given of each hunter."""

    actions: Tensor  # int64 [B, A], effective
    context: Tensor  # float [B, A, n], see `hunter_features`
    steps: Tensor  # float [B, A, 4, 2 + k]
    off_board: Tensor  # bool [B, A, 4]
    same_cell: Tensor  # float [B, A, A], other hunters on a hunter's cell


class StepOutcome(NamedTuple):
    """One tick, sampled or most likely, and what it was decided from."""

    next_state: JointState
    rewards: Tensor  # float [B, A]
    end_logit: Tensor  # float [B]
    inputs: HunterInputs
    sharers: Tensor  # float [B, A], hunters that share a reward
    public: Tensor  # float [B, 1], what everyone is paid
    hunter_logits: Tensor  # float [B, A, 6]
    prey_logits: Tensor  # float [B, P, 6]


def hunter_features(kinds: int) -> tuple[int, int]:
    """Features of a hunter alone (does it step, stay, take prey of each kind, is its action not
    known; prey of each kind on its cell), and of others on its cell: thermometers of how many
    take prey of each kind, and of how many actions are not known."""
    return 3 + 2 * kinds, (kinds + 1) * MAX_COUNT


def prey_features(kinds: int) -> int:
    """Its kind; hunters on its cell that take prey of each kind, up to 4, whose action is not
    known, up to 3, and who leave, up to 2; whether an earlier prey arrives; its four steps."""
    return kinds + 4 * kinds + 3 + 2 + 1 + 5


def effective_actions(blocked: Tensor, prey_here: Tensor, actions: Tensor) -> Tensor:
    """An action that is not legal (a step into a block or off the board, a hunt where no such
    prey stands) is STAY. Every player can tell which actions are legal: it is built into
    ObjectWorldModel, and here alone.

    Args:
        blocked: float [.., 4], above 0 where a block or the border stops a step.
        prey_here: float [.., k], prey of each kind on the hunter's cell.
        actions: int64 [..], -1 where not known.
    Returns: int64 [..].
    """
    stay = torch.ones_like(blocked[..., :1])
    legal = torch.cat([1.0 - blocked, stay, prey_here], -1) > 0  # [.., 5 + k]
    illegal = ~select(legal, actions.clamp(min=0))
    return torch.where((actions >= 0) & illegal, STAY, actions)


class ObjectWorldModel(nn.Module):
    """p(next joint state, rewards, end | joint state, joint action), object by object, on boards
    of any size.

    A reward is `public_pay` for each prey that leaves the board and, for hunters that took part,
    one of `reward_values` shared among those on its cell. Both are read off the training data.

    Args:
        reward_values: what a capture can be worth in all to those who took part.
        leaves: hunters leave with the prey that they take: those who leave took part, and the
            end depends on whether a hunter is left. Else those took part whose action takes the
            prey on their cell, if it is gone after the tick, and the end depends on whether a
            prey is left.
        public_pay: of each kind, what every hunter on the board is paid for a prey that leaves.
    """

    kind = "moves"
    num_hunters = None  # any number

    def __init__(
        self,
        height: int,
        width: int,
        reward_values: list[float],
        joint: bool = True,
        hidden: int = 32,
        kinds: int = 2,
        leaves: bool = True,
        public_pay: tuple[float, ...] = (0.0, 0.0),
    ):
        super().__init__()
        check_kinds(kinds, public_pay)
        self.sizes = dict(
            height=height,
            width=width,
            reward_values=reward_values,
            joint=joint,
            hidden=hidden,
            kinds=kinds,
            leaves=leaves,
            public_pay=public_pay,
        )
        self.joint = joint
        self.kinds = kinds
        self.leaves = leaves
        alone, counts = hunter_features(kinds)
        self.hunter = Scorer(alone + counts + 2, 2 + kinds, hidden)
        self.prey = Scorer(prey_features(kinds), 5, hidden)
        self.reward = mlp(alone + counts + 1, hidden, len(reward_values))
        self.end = mlp(1, hidden, 1)
        # Weights of counts start at zero: a count that training never shows has no effect on hunters and rewards.
        for layer in (self.hunter.context, self.reward[0]):
            nn.init.zeros_(layer.weight[:, alone : alone + counts])
        self.register_buffer("reward_values", torch.tensor(reward_values, dtype=torch.float32))
        self.register_buffer("public_pay", torch.tensor(public_pay, dtype=torch.float32), persistent=False)
        self.on(height, width)

    @property
    def networks(self) -> Networks:
        return Networks(self.hunter, self.prey, self.reward, self.end)

    def on(self, height: int, width: int) -> "ObjectWorldModel":
        """The same model, for boards of this size."""
        steps = neighbours(height, width)[:, :5]
        cells = np.pad(steps, ((0, 0), (0, 1)), constant_values=height * width)
        cells = torch.as_tensor(cells).to(self.reward_values.device)
        self.register_buffer("outcome_cells", cells, persistent=False)  # [K + 1, 6], where an outcome leads
        self.board = (height, width)
        return self

    # -- inputs of the networks

    def _hunter_inputs(self, state: JointState, actions: Tensor) -> HunterInputs:
        """actions: int64 [B, A], as asked for, -1 where not known."""
        targets = self.outcome_cells[state.hunters][..., :4]
        blocked = state.blocked(targets)
        prey_here = state.prey_here()
        actions = effective_actions(blocked, prey_here, actions)
        steps = (actions[..., None] == torch.arange(4, device=actions.device)).float()  # [B, A, 4]
        stay = (actions == STAY).float()
        unknown = (actions < 0).float()
        special = torch.cat([self._takes(actions).float(), unknown[..., None]], 2)  # [B, A, k + 1]
        same_cell = state.same_cell()
        counts = thermometer(same_cell @ special, MAX_COUNT).flatten(2)
        walks = torch.stack([steps.sum(2), stay], 2)
        context = torch.cat([walks, special, prey_here, counts], 2)
        toward = self._toward_prey(state, targets) * unknown[..., None, None]
        steps = torch.cat([steps[..., None], blocked[..., None], toward], 3)
        return HunterInputs(actions, context, steps, targets == state.blocks.shape[1], same_cell)

    def _takes(self, actions: Tensor) -> Tensor:
        """Does an action take prey of each kind? int64 [B, A] -> bool [B, A, k]"""
        return actions[..., None] == TAKE + torch.arange(self.kinds, device=actions.device)

    def _toward_prey(self, state: JointState, targets: Tensor) -> Tensor:
        """Does a step bring the nearest prey of each kind nearer, as the crow flies? [B, A, 4, k]
        in {-1, 0, 1}: all that the move of a hunter whose action is not known can be guessed
        from."""
        if self.joint:
            return targets.new_zeros((*targets.shape, self.kinds), dtype=torch.float32)
        K = state.blocks.shape[1]
        width = self.board[1]
        far = 99
        cells = torch.cat([targets, state.hunters[..., None]], 2)[..., None]  # [B, A, 5, 1]
        prey = state.prey[:, None, None]
        rows = (cells // width - prey // width).abs()
        columns = (cells % width - prey % width).abs()
        distance = torch.where((prey < K) & (cells < K), rows + columns, far)  # [B, A, 5, P]
        by_kind = distance.split(state.counts, 3)
        nearest = torch.stack([F.pad(kind, (0, 1), value=far).amin(3) for kind in by_kind], 3)
        return (nearest[:, :, 4:] - nearest[:, :, :4]).clamp(-1, 1).float()

    def _prey_features(
        self, state: JointState, actions: Tensor, captured: Tensor, next_cells: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of every prey, given hunters and the prey before it: the arguments of its Scorer, for
        logits [B, P, 6].

        Args: actions: int64 [B, A], effective; captured: float [B, A], hunters that leave;
        next_cells: int64 [B, P], where prey go.
        """
        cells = state.prey
        targets = self.outcome_cells[cells][..., :4]
        index = torch.arange(cells.shape[1], device=cells.device)
        earlier = index < index[:, None]  # [P, P]
        later = index > index[:, None]
        kinds = state.kinds()
        same_kind = kinds[:, None] == kinds

        hunters_here = (cells[:, :, None] == state.hunters[:, None]).float()  # [B, P, A]
        hunts = torch.cat([self._takes(actions), (actions < 0)[..., None]], 2).float()
        counts = hunters_here @ hunts  # [B, P, k + 1]
        leavers = (hunters_here * captured[:, None]).sum(2)  # [B, P], hunters that leave from its cell

        # Of each step: is it blocked, did an earlier prey go there, does a later one still stand there?
        taken = ((targets[..., None] == next_cells[:, None, None]) & earlier[:, None]).any(3)  # [B, P, 4]
        occupied = (targets[..., None] == cells[:, None, None]) & later[:, None]  # [B, P, 4, P]
        unhunted = occupied & (leavers == 0)[:, None, None]
        hunted = (occupied & ~unhunted).any(3)
        same = (unhunted & same_kind[:, None]).any(3)
        other = (unhunted & ~same_kind[:, None]).any(3)
        bits = [bit.float() for bit in (taken, hunted, same, other)]
        steps = torch.stack([state.blocked(targets), *bits], 3)  # [B, P, 4, 5]

        kind = F.one_hot(kinds, self.kinds).float().expand(len(cells), -1, -1)
        hunting = thermometer(counts[..., : self.kinds], 4).flatten(2)
        unknown = thermometer(counts[..., self.kinds], 3)
        arrived = ((cells[..., None] == next_cells[:, None]) & earlier).any(2, keepdim=True).float()
        context = [kind, hunting, unknown, thermometer(leavers, 2), arrived, steps.sum(2) / 4]
        return torch.cat(context, 2), steps, targets == state.blocks.shape[1]

    def _left_before(self, same_cell: Tensor, captured: Tensor) -> Tensor:
        """Hunters of earlier seats that leave from a hunter's cell, as a thermometer: float [B,
        A, 2]."""
        earlier = torch.tril(same_cell, -1) @ captured[..., None]
        return thermometer(earlier[..., 0], 2)

    def _takers(self, state: JointState, actions: Tensor, captured: Tensor, next_prey: Tensor) -> Tensor:
        """Who takes part in a capture: float [B, A].

        Args: actions: int64 [B, A], effective; captured: float [B, A], hunters that leave;
        next_prey: int64 [B, P], the cells of prey after the tick.
        """
        if self.leaves:
            return captured
        takes = self._wanted(state, actions)
        was_there = (state.on_cell(state.prey) & takes).any(2)
        still_there = (state.on_cell(next_prey) & takes).any(2)
        return (was_there & ~still_there).float()

    def _wanted(self, state: JointState, actions: Tensor) -> Tensor:
        """Would an action take each prey from its cell? One that is not known may. bool [B, A, P]"""
        return self._takes(actions)[..., state.kinds()] | (actions < 0)[..., None]

    def _sharers(self, same_cell: Tensor, takers: Tensor) -> Tensor:
        """How many take part on a hunter's cell, itself included; 1 for one that does not. Where
        nobody leaves and actions are not known, who took part is not, either: 1. [B, A]"""
        if not self.leaves and not self.joint:
            return torch.ones_like(takers)
        others = (same_cell @ takers[..., None])[..., 0]
        return 1.0 + others * takers

    def _public(self, state: JointState, next_prey: Tensor) -> Tensor:
        """What every hunter on the board is paid for the prey that leave: [B, 1]"""
        K = state.blocks.shape[1]
        gone = ((state.prey < K) & (next_prey == K)).float()
        return (gone @ self.public_pay[state.kinds()])[:, None]

    def _reward_logits(self, context: Tensor, takers: Tensor) -> Tensor:
        """Over `reward_values`, [B, A, n]."""
        return LOGIT_SCALE * self.networks.reward(torch.cat([context, takers[..., None]], 2))

    def _end_logit(self, state: JointState, captured: Tensor, next_prey: Tensor) -> Tensor:
        """From one bit: is a hunter left on the board or, where nobody leaves, a prey? [B]"""
        if self.leaves:
            remains = ((captured == 0) & state.on_board()).any(1, keepdim=True)
        else:
            remains = (next_prey < state.blocks.shape[1]).any(1, keepdim=True)
        return LOGIT_SCALE * self.networks.end(remains.float())[:, 0]

    # -- the likelihood of what happened

    def forward(
        self,
        state: JointState,
        actions: Tensor,
        outcomes: Outcomes,
        rewards: Tensor,
        ends: Tensor,
        noise: tuple[Tensor, ...] = (),
    ) -> tuple[LogLikelihood, Tensor]:
        """log p of the true outcomes; and their InfoNCE loss, [B], 0 without the `noise` that draws what it is against.

        A next state does not say which of two hares is which: its probability is the sum over all
        R ways to tell.
        """
        inputs = self._hunter_inputs(state, actions)
        on_board = state.on_board()
        captured = outcomes.captured()
        context = torch.cat([inputs.context, self._left_before(inputs.same_cell, captured)], 2)
        hunter_logprobs = self.hunter(context, inputs.steps, inputs.off_board).log_softmax(2)
        hunters = (select(hunter_logprobs, outcomes.hunters) * on_board).sum(1)

        row = outcomes.row
        ways = state.take(row)
        next_cells = select(self.outcome_cells[ways.prey], outcomes.prey)
        features = self._prey_features(ways, inputs.actions[row], captured[row], next_cells)
        prey_logprobs = self.prey(*features).log_softmax(2)  # [R, P, 6]
        prey_on_board = ways.prey < state.blocks.shape[1]
        of_way = (select(prey_logprobs, outcomes.prey) * prey_on_board).sum(1)
        by_way = of_way.new_full((len(actions), outcomes.ways), MASKED)
        prey = by_way.index_put((row, outcomes.way), of_way).logsumexp(1)

        # All ways lead to the same cells: who took part, and what left, can be read off the first.
        first = outcomes.way == 0
        next_prey = next_cells[first]
        known = on_board & ~rewards.isnan()
        takers = self._takers(state, inputs.actions, captured, next_prey)
        reward_logprobs = self._reward_logits(inputs.context, takers).log_softmax(2)
        totals = self._totals(state, rewards, inputs.same_cell, takers, next_prey)
        reward_class, _ = nearest_value(totals, self.reward_values)
        reward = (select(reward_logprobs, reward_class) * known).sum(1)
        end = end_log_prob(self._end_logit(state, captured, next_prey), ends)
        terms = LogLikelihood(hunters, prey, reward, end)
        if not noise:
            return terms, hunters.new_zeros(len(actions))

        # InfoNCE (van den Oord et al. 2018) against next states that break a rule. Next states of the batch are on
        # other boards: they are impossible by construction, and would add nothing.
        hunter_shift, which_hunter, reward_shift, which_reward, which_prey = noise
        wrong_hunter = self._wrong_class(
            hunter_logprobs, outcomes.hunters, on_board, hunter_shift, which_hunter
        )
        wrong_reward = self._wrong_class(reward_logprobs, reward_class, known, reward_shift, which_reward)
        opposite = torch.where(outcomes.prey == LEAVE, STAYED, LEAVE)  # missing, or still there once captured
        less_likely = select(prey_logprobs, opposite) - select(prey_logprobs, outcomes.prey)
        wrong_prey = random_valid(less_likely[first], prey_on_board[first], which_prey)
        truth = torch.zeros_like(wrong_prey)
        return terms, torch.logsumexp(torch.stack([truth, wrong_hunter, wrong_reward, wrong_prey]), 0)

    def _totals(
        self, state: JointState, rewards: Tensor, same_cell: Tensor, takers: Tensor, next_prey: Tensor
    ) -> Tensor:
        """What a capture was worth to all who took part: [B, A]; of a reward that is not known, that of 0."""
        own_pay = rewards.nan_to_num() - self._public(state, next_prey) * state.on_board()
        return own_pay * self._sharers(same_cell, takers)

    def draw_noise(self, size: int, hunters: int, prey: int) -> tuple[Tensor, ...]:
        """What `forward` draws wrong outcomes of `size` transitions by: a shift of the class and a choice of one hunter,
        the same of one reward, a choice of one prey. int64 and float [B, A], twice, and float [B, P]."""
        device = self.reward_values.device
        noise = []
        for classes in (LEAVE + 1, len(self.reward_values)):
            noise.append(torch.randint(1, max(2, classes), (size, hunters), device=device))
            noise.append(torch.rand(size, hunters, device=device))
        return (*noise, torch.rand(size, prey, device=device))

    def _wrong_class(
        self, log_probs: Tensor, true_class: Tensor, valid: Tensor, shift: Tensor, which: Tensor
    ) -> Tensor:
        """log p of another class of one random valid object, less log p of its true class: [B]. shift, which: of
        `draw_noise`."""
        wrong = (true_class + shift) % log_probs.shape[2]
        less_likely = select(log_probs, wrong) - select(log_probs, true_class)
        return random_valid(less_likely.clamp(min=MASKED), valid & (wrong != true_class), which)

    @torch.no_grad()
    def log_prob(
        self, states: Tensor, actions: Tensor, next_states: Tensor, rewards: Tensor, ends: Tensor
    ) -> Tensor:
        """log p(next state, rewards, end | state, actions), float [B] in nats; about -1e9 for
        what is impossible."""
        counts = prey_counts(states, self.kinds)
        outcomes = outcomes_of(states.cpu().numpy(), next_states.cpu().numpy(), self.board, counts)
        possible = np.flatnonzero(outcomes.possible)
        rows = torch.as_tensor(possible, device=states.device)
        state = JointState.of(states, counts).take(rows)
        true_outcomes = outcomes.batch(possible, states.device)
        terms, _ = self(state, actions[rows], true_outcomes, rewards[rows], ends[rows])
        next_prey = JointState.of(next_states[rows], counts).prey
        inputs = self._hunter_inputs(state, actions[rows])
        takers = self._takers(state, inputs.actions, true_outcomes.captured(), next_prey)
        totals = self._totals(state, rewards[rows], inputs.same_cell, takers, next_prey)
        _, distance = nearest_value(totals, self.reward_values)
        no_class = (distance > 0.01).any(1)
        log_probs = torch.where(no_class, MASKED, terms.stack().sum(1))
        impossible = torch.full((len(states),), MASKED, device=states.device)
        return impossible.index_put((rows,), log_probs)

    # -- prediction

    def _hunter_outcomes(
        self, inputs: HunterInputs, on_board: Tensor, most_likely: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All hunters are decided at once, as if none before had left; those whose inputs changed
        are decided again.

        Returns: outcomes int64 [B, A], hunters that leave float [B, A], logits [B, A, 6].
        """
        all_logits = inputs.context.new_zeros(*on_board.shape, 6)
        outcomes = torch.full_like(inputs.actions, STAYED)
        captured = torch.zeros_like(inputs.actions, dtype=torch.float32)
        rows = torch.arange(len(on_board), device=on_board.device)
        left_before = thermometer(captured, 2)
        needs_update = torch.ones_like(on_board)
        while len(rows):
            context = torch.cat([inputs.context[rows], left_before], 2)
            logits = self.networks.hunter(context, inputs.steps[rows], inputs.off_board[rows])
            drawn = sample_or_argmax(logits, most_likely)
            outcomes[rows] = torch.where(needs_update, drawn, outcomes[rows])
            all_logits[rows] = torch.where(needs_update[..., None], logits, all_logits[rows])
            captured[rows] = ((outcomes[rows] == LEAVE) & on_board[rows]).float()
            now = self._left_before(inputs.same_cell[rows], captured[rows])
            needs_update = (now != left_before).any(2)
            changed = needs_update.any(1)
            rows = rows[changed]
            left_before = now[changed]
            needs_update = needs_update[changed]
        return outcomes, captured, all_logits

    def _prey_outcomes(
        self, state: JointState, actions: Tensor, captured: Tensor, most_likely: bool
    ) -> tuple[Tensor, Tensor]:
        """All prey are decided at once, as if all stayed; after the first that does not, those
        behind it again.

        Returns: next cells int64 [B, P], logits [B, P, 6].
        """
        B, P = state.prey.shape
        all_logits = captured.new_zeros(B, P, 6)
        next_cells = state.prey.clone()
        index = torch.arange(P, device=state.prey.device)
        rows = torch.arange(B, device=state.prey.device)
        start = torch.zeros_like(rows)[:, None]  # [B, 1], the first prey that is not decided
        while len(rows) and P:
            now = state.take(rows)
            features = self._prey_features(now, actions[rows], captured[rows], next_cells[rows])
            logits = self.networks.prey(*features)
            undecided = index >= start
            all_logits[rows] = torch.where(undecided[..., None], logits, all_logits[rows])
            outcomes = sample_or_argmax(logits, most_likely)
            moved = (outcomes != STAYED) & undecided & (now.prey < state.blocks.shape[1])
            changed = moved.any(1)
            first = moved.int().argmax(1)  # [B], the first prey that does not stay
            cells = self.outcome_cells[select(now.prey, first), select(outcomes, first)]
            rows = rows[changed]
            first = first[changed]
            next_cells[rows, first] = cells[changed]
            start = first[:, None] + 1
        return next_cells, all_logits

    def _outcome(self, state: JointState, actions: Tensor, most_likely: bool) -> StepOutcome:
        """One tick: hunters, then prey, then rewards."""
        on_board = state.on_board()
        inputs = self._hunter_inputs(state, actions)
        outcomes, captured, hunter_logits = self._hunter_outcomes(inputs, on_board, most_likely)
        prey, prey_logits = self._prey_outcomes(state, inputs.actions, captured, most_likely)
        hunters = select(self.outcome_cells[state.hunters], outcomes)
        next_state = state._replace(hunters=hunters, prey=prey)
        takers = self._takers(state, inputs.actions, captured, prey)
        sharers = self._sharers(inputs.same_cell, takers)
        public = self._public(state, prey)
        reward_class = sample_or_argmax(self._reward_logits(inputs.context, takers), most_likely)
        rewards = (self.reward_values[reward_class] / sharers + public) * on_board
        end_logit = self._end_logit(state, captured, prey)
        return StepOutcome(
            next_state, rewards, end_logit, inputs, sharers, public, hunter_logits, prey_logits
        )

    @torch.no_grad()
    def step(
        self, state: JointState, actions: Tensor, most_likely: bool = False
    ) -> tuple[JointState, Tensor, Tensor]:
        """One tick on all boards, sampled, or with every object's most likely outcome given those
        before it.

        Args: actions: int64 [B, A], as asked for, -1 where not known.
        Returns: the next state, rewards float [B, A], ends bool [B].
        """
        outcome = self._outcome(state, actions, most_likely)
        threshold = 0.5 if most_likely else torch.rand_like(outcome.end_logit)
        return outcome.next_state, outcome.rewards, outcome.end_logit.sigmoid() > threshold

    @torch.no_grad()
    def predict(self, states: Tensor, actions: Tensor) -> Prediction:
        """states: uint8 [B, A+1+k, K]. Expected planes and rewards add up each object's outcomes,
        given the most likely ones of those before it."""
        state = JointState.of(states, prey_counts(states, self.kinds))
        outcome = self._outcome(state, actions, most_likely=True)
        hunter_probs = outcome.hunter_logits.softmax(2)
        prey_probs = outcome.prey_logits.softmax(2)
        prey_cells = self.outcome_cells[state.prey]  # [B, P, 6]
        B, A = state.hunters.shape
        K = state.blocks.shape[1]
        planes = state.blocks.new_zeros(B, A + 1 + self.kinds, K + 1)
        planes[:, :A].scatter_add_(2, self.outcome_cells[state.hunters], hunter_probs)
        planes[:, A, :K] = state.blocks
        by_kind = zip(prey_cells.split(state.counts, 1), prey_probs.split(state.counts, 1), strict=True)
        for plane, (cells, probs) in enumerate(by_kind, A + 1):
            planes[:, plane].scatter_add_(1, cells.flatten(1), probs.flatten(1))

        prey_leaves = prey_probs[..., LEAVE] * (state.prey < K)  # [B, P]
        takes = self._take_probs(state, outcome.inputs.actions, hunter_probs[..., LEAVE], prey_leaves)
        context = outcome.inputs.context
        if_not = self._reward_logits(context, torch.zeros_like(takes)).softmax(2)
        if_takes = self._reward_logits(context, torch.ones_like(takes)).softmax(2)
        reward_probs = if_not + takes[..., None] * (if_takes - if_not)  # [B, A, n]
        on_board = state.on_board()
        expected_public = (prey_leaves @ self.public_pay[state.kinds()])[:, None]
        expected_share = (reward_probs * self.reward_values).sum(2) / outcome.sharers
        is_paid = self.reward_values / outcome.sharers[..., None] + outcome.public[..., None] > 0
        return Prediction(
            most_likely=outcome.next_state.planes(),
            expected=planes[:, :, :K],
            rewards=outcome.rewards,
            expected_rewards=(expected_share + expected_public) * on_board,
            reward_prob=(reward_probs * is_paid).sum(2) * on_board,
            end_prob=outcome.end_logit.sigmoid(),
        )

    def _take_probs(self, state: JointState, actions: Tensor, leaves: Tensor, prey_leaves: Tensor) -> Tensor:
        """How likely each hunter takes part in a capture: float [B, A].

        Args: actions: int64 [B, A], effective; leaves: float [B, A], how likely each hunter leaves;
        prey_leaves: float [B, P].
        """
        if self.leaves:
            return leaves
        takes = state.on_cell(state.prey) & self._wanted(state, actions)  # [B, A, P]
        return (takes * prey_leaves[:, None]).amax(2)

    @torch.no_grad()
    def sample(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns: planes uint8 [B, A+1+k, K], rewards [B, A], ends bool [B]."""
        state = JointState.of(states, prey_counts(states, self.kinds))
        next_state, rewards, ends = self.step(state, actions)
        return next_state.planes(), rewards, ends


def random_valid(values: Tensor, valid: Tensor, which: Tensor) -> Tensor:
    """The value of a random valid object, [B, n] -> [B]; MASKED where there is none. which: uniform in [0, 1), [B, n]."""
    pick = (which + valid).argmax(1)
    return torch.where(select(valid, pick), select(values, pick), MASKED)


# ---- the model of moves with a cache


class CodeTable:
    """Numbers of each code, computed when the code is first seen.

    Codes are whole numbers from 0 on. A code is looked for in one slot that it hashes to (Knuth 1973, multiplicative
    hashing); where another code took the slot, by binary search.
    """

    BITS = 16  # of a slot
    FACTOR = -7046029254386353131  # 2**64 / golden ratio

    def __init__(self, device: torch.device):
        self.codes = torch.full((1,), -1, device=device)  # int64 [n], by row; row 0 belongs to no code
        self.slots = torch.zeros(2**self.BITS, dtype=torch.int64, device=device)  # the row of a code in each
        self.sorted, self.order = self.codes.sort()  # [n], and their rows
        self.columns: tuple[Tensor, ...] = ()  # each [n, ..] or [2n, ..], what is known of each row

    def _slot(self, codes: Tensor) -> Tensor:
        return (codes * self.FACTOR >> 64 - self.BITS) & 2**self.BITS - 1

    def rows(self, codes: Tensor, compute: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
        """The row of each code, int64 [n]. compute: gives the columns of the codes at these places, int64 [m]."""
        rows = self.slots.index_select(0, self._slot(codes))
        wrong = self.codes.index_select(0, rows) != codes
        if not wrong.any():
            return rows
        places = wrong.nonzero()[:, 0]
        found = self._search(codes[places])
        missing = places[self.codes[found] != codes[places]]
        if len(missing):
            new, which = codes[missing].unique(return_inverse=True)
            first = torch.zeros_like(new).scatter_(0, which, missing)
            self._add(new, compute(first))
            found = self._search(codes[places])
        return rows.index_copy(0, places, found)

    def _search(self, codes: Tensor) -> Tensor:
        at = torch.searchsorted(self.sorted, codes)
        return self.order[at.clamp(max=len(self.order) - 1)]

    def _add(self, codes: Tensor, columns: tuple[Tensor, ...]) -> None:
        if not self.columns:  # row 0, of no code
            self.columns = tuple(column[: len(column) // len(codes)] for column in columns)
        self.columns = tuple(torch.cat(parts) for parts in zip(self.columns, columns, strict=True))
        self.slots[self._slot(codes)] = torch.arange(len(codes), device=codes.device) + len(self.codes)
        self.codes = torch.cat([self.codes, codes])
        self.sorted, self.order = self.codes.sort()


def with_certainty(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [.., c], as [n, c]; the most likely class, int64 [n]; and the only one that is ever sampled, -1 where there
    are more, int64 [n]."""
    logits = logits.flatten(0, -2)
    likeliest = logits.argmax(1)
    possible = logits >= logits.amax(1, keepdim=True) - RARE
    return logits, likeliest, torch.where(possible.sum(1) == 1, likeliest, -1)


class BoardBits(NamedTuple):
    """What stands on a cell, as bits of one int32: prey, a bit each; a block or the border; does a hunter leave from it; how
    many hunters take prey of each kind, and how many leave, four bits each."""

    block: int  # the number of its bit: bits below are prey
    leaves: int
    takers: tuple[int, ...]  # the first bit of each kind
    leavers: int  # the first bit

    @classmethod
    def of(cls, counts: tuple[int, ...]) -> "BoardBits":
        prey = sum(counts)
        starts = [prey + 2 + 4 * kind for kind in range(len(counts) + 1)]
        return cls(prey, prey + 1, tuple(starts[:-1]), starts[-1])

    def of_step(self, counts: tuple[int, ...]) -> Tensor:
        """int32 [P, 2 ** (P + 2)]: what a prey's network is given of a step to a cell with these bits, beside the border, in
        five bits: is there a block, an earlier prey, a later one whose cell a hunter leaves, another later one of the same
        kind, of another kind."""
        low = torch.arange(1 << self.leaves + 1, dtype=torch.int32)
        kinds = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        codes = torch.zeros(self.block, len(low), dtype=torch.int32)
        for slot, kind in enumerate(kinds.tolist()):
            codes[slot] = low >> self.block & 1
            for other, other_kind in enumerate(kinds.tolist()):
                there = (low >> other & 1).bool()
                if other < slot:
                    codes[slot] |= there * 2
                if other > slot:
                    remains = 8 if other_kind == kind else 16
                    codes[slot] |= there * torch.where(low >> self.leaves > 0, 4, remains)
        return codes.int()


class Tiles(NamedTuple):
    """What depends on the slot of an object alone, int32 and repeated for many boards: a product of rows and columns without
    broadcasting, which is slow where the last axis is short."""

    hunter_board: Tensor  # [B * A], the board's first cell in the map
    prey_board: Tensor  # [B * P], as the rest
    earlier: Tensor  # bits of earlier prey
    step_at: Tensor  # where the slot begins in `BoardBits.of_step`
    kind: Tensor


class CachedWorldModel(ObjectWorldModel):
    """A copy of a world model whose networks compute each distinct input once: a tick gives them the same few inputs on
    thousands of boards. `step` alone is cached, and draws only what is not certain. The world model that it is made from is
    not changed; neither may be trained.

    What an object's networks are given is written as one whole number, from one map of bits a board. Actions that are not
    known, and more than 15 hunters or 12 prey, are left to the networks themselves.
    """

    def __init__(self, world_model: ObjectWorldModel):
        with torch.random.fork_rng(devices=[]):  # the initial weights are not used
            super().__init__(**world_model.sizes)
        self.to(world_model.reward_values.device)
        self.load_state_dict(world_model.state_dict())
        self.on(*world_model.board)
        self.eval()

    def on(self, height: int, width: int) -> "CachedWorldModel":
        """As `ObjectWorldModel.on`."""
        super().on(height, width)
        K = height * width
        off_board = self.outcome_cells[:, :4] == K
        powers = 1 << torch.arange(4, device=off_board.device)
        borders = (off_board * powers).sum(1) + 16 * (torch.arange(K + 1, device=off_board.device) == K)
        self.register_buffer(
            "borders", borders.int(), persistent=False
        )  # [K + 1], of a cell; 31: off the board
        around = self.outcome_cells[:, :4].T.int().flatten()
        self.register_buffer("around", around, persistent=False)  # [4 * (K + 1)]
        starts = torch.arange(4, device=around.device, dtype=torch.int32)[:, None] * (K + 1)
        self.register_buffer("way_starts", starts, persistent=False)  # [4, 1], in `around`
        self.clear()
        return self

    def clear(self) -> None:
        """Forget what has been computed. The size of a batch decides how its numbers are rounded: a run that is resumed and
        one that goes on must compute the same batches."""
        self.counts = None
        self.tiles = None

    def _prepare(self, state: JointState) -> None:
        """For boards with so many hunters, and prey of each kind."""
        if state.counts != self.counts:
            self.clear()
            self.counts = state.counts
            device = self.borders.device
            self.hunter_table = CodeTable(device)
            self.prey_table = CodeTable(device)
            self.bits = BoardBits.of(state.counts)
            self.of_step = self.bits.of_step(state.counts).flatten().to(device)
            self.prey_bits = 1 << torch.arange(self.bits.block, device=device, dtype=torch.int32)  # [P]
            takes = self._takes(torch.arange(TAKE + self.kinds, device=device)).int()  # [5 + k, k]
            self.wanted = (
                (takes[:, state.kinds()] * self.prey_bits).sum(1).int()
            )  # [5 + k], prey that an action takes
            units = torch.tensor([1 << start for start in self.bits.takers], device=device)
            self.taker_unit = (takes * units).sum(1).int()  # [5 + k], of an action
            remains = torch.tensor([[0.0], [1.0]], device=device)
            end_logit = LOGIT_SCALE * self.end(remains)  # [2, 1]
            self.end_columns = with_certainty(torch.cat([torch.zeros_like(end_logit), end_logit], 1))
        if self.tiles is None or len(self.tiles.hunter_board) < state.hunters.numel():
            self.tiles = self._make_tiles(state)

    def _make_tiles(self, state: JointState) -> Tiles:
        B, A = state.hunters.shape
        P = state.prey.shape[1]
        kinds = state.kinds()
        board = torch.arange(B, device=kinds.device) * (state.blocks.shape[1] + 1)
        step_at = torch.arange(P, device=kinds.device) << self.bits.leaves + 1
        of_slot = [self.prey_bits - 1, step_at, kinds]
        tiles = [
            board.repeat_interleave(A),
            board.repeat_interleave(P),
            *(slot.repeat(B) for slot in of_slot),
        ]
        return Tiles(*(tile.int() for tile in tiles))

    @torch.no_grad()
    def step(
        self, state: JointState, actions: Tensor, most_likely: bool = False
    ) -> tuple[JointState, Tensor, Tensor]:
        """As `ObjectWorldModel.step`."""
        if sum(state.counts) > 12 or actions.shape[1] > 15 or (actions < 0).any():
            return super().step(state, actions, most_likely)
        self._prepare(state)
        on_map = self._map(state)  # int32 [B, K + 1]
        outcomes, rows = self._decide_hunters(state, actions, on_map, most_likely)
        leaves = outcomes == LEAVE
        prey, changed = self._decide_prey(state, actions, leaves, on_map, most_likely)
        rewards = self._decide_rewards(state, actions, leaves, prey, changed, rows, most_likely)
        cells = (state.hunters * 6 + outcomes).flatten()
        hunters = self.outcome_cells.flatten().index_select(0, cells).view_as(outcomes)
        remaining = hunters if self.leaves else prey
        remains = (remaining < state.blocks.shape[1]).any(1)
        ends = self._choose(self.end_columns, remains.int(), most_likely) > 0
        return state._replace(hunters=hunters, prey=prey), rewards, ends

    def _map(self, state: JointState) -> Tensor:
        """int32 [B, K + 1]: blocks and prey, as `BoardBits`; cell K, off the board, is blocked, and holds what is gone."""
        B, K = state.blocks.shape
        on_map = torch.ones(B, K + 1, dtype=torch.int32, device=state.blocks.device)
        on_map[:, :K] = state.blocks
        on_map <<= self.bits.block
        return on_map.scatter_add_(1, state.prey, self.prey_bits.expand(B, -1))

    def _targets(self, cells: Tensor, board: Tensor) -> Tensor:
        """int32 [4 * n], the cells above, below, left and right in the map. cells, board: int32 [n]."""
        around = self.around.index_select(0, (cells + self.way_starts).view(-1))
        return (around.view(4, -1) + board).view(-1)

    def _choose(self, columns: tuple[Tensor, ...], rows: Tensor, most_likely: bool) -> Tensor:
        """The class of each object, given by its rows in three columns of `with_certainty`."""
        logits, likeliest, certain = columns
        if most_likely:
            return likeliest.index_select(0, rows)
        classes = certain.index_select(0, rows)
        unknown = classes < 0
        if unknown.any():
            places = unknown.nonzero()[:, 0]
            classes[places] = sample_or_argmax(logits[rows[places]], most_likely=False)
        return classes

    # -- hunters

    def _decide_hunters(
        self, state: JointState, actions: Tensor, on_map: Tensor, most_likely: bool
    ) -> tuple[Tensor, Tensor]:
        """Outcomes int64 [B, A], and each hunter's row in the table. Adds to the map who takes, and who leaves."""
        on_map = on_map.view(-1)
        cells = state.hunters.int().flatten()
        board = self.tiles.hunter_board[: len(cells)]
        at = board + cells
        asked = actions.int().flatten()
        takes = on_map.index_select(0, at) & self.wanted.index_select(0, asked)
        own = takes.clamp(max=1) * self.taker_unit.index_select(0, asked)
        at_long = at.long()
        on_map.scatter_add_(0, at_long, own)
        borders = self.borders.index_select(0, cells)
        there = on_map.index_select(0, self._targets(cells, board))
        up, down, left, right = (there >> self.bits.block & 1).view(4, -1)
        code = asked * 2**11 + borders * 2**6 + up + down * 2 + left * 4 + right * 8
        beside = on_map.index_select(0, at) - own & ~(1 << self.bits.block)
        codes = (beside.long() << 16) + code  # bits 4 and 5 count who left before
        codes.masked_fill_(borders == GONE, GONE * 2**6)
        places = torch.arange(len(codes), device=codes.device)
        compute = functools.partial(self._hunter_columns, state, actions, places, codes)
        rows = self.hunter_table.rows(codes, compute)
        outcomes = self._choose(self.hunter_table.columns[:3], rows, most_likely).view_as(actions)
        leaves = outcomes == LEAVE
        if leaves.any():
            self._decide_again(state, actions, codes, outcomes, most_likely)
            leavers = at_long[(outcomes == LEAVE).flatten()]
            unit = torch.full_like(leavers, 1 << self.bits.leavers, dtype=torch.int32)
            on_map.scatter_add_(0, leavers, unit)
            on_map[leavers] |= 1 << self.bits.leaves
        return outcomes, rows

    def _decide_again(
        self, state: JointState, actions: Tensor, codes: Tensor, outcomes: Tensor, most_likely: bool
    ) -> None:
        """Hunters whose inputs change as others leave before them, as in `ObjectWorldModel._hunter_outcomes`."""
        boards = (outcomes == LEAVE).any(1).nonzero()[:, 0]
        same_cell = state.take(boards).same_cell()
        left_before = torch.zeros_like(outcomes[boards])  # [b, A]
        while len(boards):
            now = self._left_before(same_cell, (outcomes[boards] == LEAVE).float()).sum(2).long()
            changes = now != left_before
            row, seat = changes.nonzero(as_tuple=True)
            places = boards[row] * outcomes.shape[1] + seat
            changed = codes[places] | now[row, seat] << 4
            compute = functools.partial(self._hunter_columns, state, actions, places, changed)
            rows = self.hunter_table.rows(changed, compute)
            outcomes.view(-1)[places] = self._choose(self.hunter_table.columns[:3], rows, most_likely)
            kept = changes.any(1)
            boards = boards[kept]
            left_before = now[kept]
            same_cell = same_cell[kept]

    def _hunter_columns(
        self, state: JointState, actions: Tensor, places: Tensor, codes: Tensor, index: Tensor
    ) -> tuple[Tensor, ...]:
        """Of the hunters at `places[index]`, board * A + seat, `with_certainty`: logits [n, 6] of the outcomes, and of the
        rewards [2n, r], without and with a share in a capture."""
        boards = places[index] // actions.shape[1]
        seats = places[index] % actions.shape[1]
        each = torch.arange(len(index), device=index.device)
        some = state.take(boards)
        inputs = self._hunter_inputs(some, actions[boards])
        context = inputs.context[each, seats]  # [n, c]
        left_before = thermometer(codes[index] >> 4 & 3, 2)
        features = torch.cat([context, left_before], 1)
        logits = self.hunter(features, inputs.steps[each, seats], inputs.off_board[each, seats])
        self._keep_gone(logits, some.on_board()[each, seats])
        shares = torch.tensor([[0.0], [1.0]], device=index.device).expand(len(index), -1, -1)
        pay = LOGIT_SCALE * self.reward(torch.cat([context[:, None].expand(-1, 2, -1), shares], 2))
        return *with_certainty(logits), *with_certainty(pay)

    def _keep_gone(self, logits: Tensor, on_board: Tensor) -> None:
        """What is gone stays so."""
        stays = F.one_hot(torch.tensor(STAYED, device=logits.device), 6)
        logits[~on_board] = (1.0 - stays) * MASKED

    # -- prey

    def _decide_prey(
        self, state: JointState, actions: Tensor, leaves: Tensor, on_map: Tensor, most_likely: bool
    ) -> tuple[Tensor, Tensor]:
        """The next cells, int64 [B, P], as in `ObjectWorldModel._prey_outcomes`, and the boards, int64 [n], on which they
        differ. leaves: bool [B, A], of hunters."""
        P = state.prey.shape[1]
        next_cells = state.prey.clone()
        boards = torch.arange(len(next_cells), device=next_cells.device)
        changed = boards[:0]
        index = torch.arange(P, device=boards.device)
        start = torch.zeros_like(boards)  # of each board, the first prey that is not decided
        here = there = on_map
        while len(boards) and P:
            codes = self._prey_codes(state.prey[boards], here, there)
            compute = functools.partial(self._prey_columns, state, actions, leaves, boards, next_cells)
            rows = self.prey_table.rows(codes, compute)
            outcomes = self._choose(self.prey_table.columns, rows, most_likely)
            kept = (outcomes != STAYED).nonzero()[:, 0].div(P, rounding_mode="floor").unique_consecutive()
            outcomes = outcomes.view(-1, P)[kept]
            moves = (outcomes != STAYED) & (index >= start[kept, None])
            moving = moves.any(1)
            kept = kept[moving]
            boards = boards[kept]
            if there is on_map:
                changed = boards
            first = moves[moving].int().argmax(1)
            cells = self.outcome_cells[state.prey[boards, first], outcomes[moving, first]]
            next_cells[boards, first] = cells
            start = first + 1
            here = here[kept]
            there = torch.zeros_like(here)
            there.scatter_add_(1, next_cells[boards], self.prey_bits.expand(len(boards), -1))
        return next_cells, changed

    def _prey_codes(self, prey: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """int64 [B * P]. prey: int64 [B, P]; here, there: int32 [B, K + 1], the map, and where prey go."""
        is_first = there is here
        here, there = here.view(-1), there.view(-1)
        cells = prey.int().flatten()
        _, board, earlier, step_at, kind = (tile[: len(cells)] for tile in self.tiles)
        at = board + cells
        on_cell = here.index_select(0, at)
        arrives = on_cell if is_first else there.index_select(0, at)
        borders = self.borders.index_select(0, cells)
        code = kind * 2**20 + borders * 2**22 + (arrives & earlier).clamp(max=1) * 2**27
        targets = self._targets(cells, board)
        now = here.index_select(0, targets).view(4, -1)
        if not is_first:
            then = there.index_select(0, targets).view(4, -1)
            now = (now & ~earlier) | (then & earlier)
        step = (now & (1 << self.bits.leaves + 1) - 1) + step_at
        up, down, left, right = self.of_step.index_select(0, step.view(-1)).view(4, -1)
        code += up + down * 2**5 + left * 2**10 + right * 2**15
        codes = ((on_cell >> self.bits.leaves + 1).long() << 28) + code
        return codes.masked_fill_(borders == GONE, GONE * 2**22)

    def _prey_columns(
        self,
        state: JointState,
        actions: Tensor,
        leaves: Tensor,
        boards: Tensor,
        next_cells: Tensor,
        index: Tensor,
    ) -> tuple[Tensor, ...]:
        """Logits [n, 6] of the prey at these places of `boards`, `with_certainty`. next_cells: int64 [B, P], so far."""
        P = next_cells.shape[1]
        boards = boards[index // P]
        slots = index % P
        each = torch.arange(len(index), device=index.device)
        some = state.take(boards)
        effective = self._hunter_inputs(some, actions[boards]).actions
        features = self._prey_features(some, effective, leaves[boards].float(), next_cells[boards])
        logits = self.prey(*(feature[each, slots] for feature in features))
        self._keep_gone(logits, some.prey[each, slots] < state.blocks.shape[1])
        return with_certainty(logits)

    # -- rewards

    def _decide_rewards(
        self,
        state: JointState,
        actions: Tensor,
        leaves: Tensor,
        prey: Tensor,
        changed: Tensor,
        rows: Tensor,
        most_likely: bool,
    ) -> Tensor:
        """float [B, A]. leaves: bool [B, A]; prey: int64 [B, P], after the tick, other than before on the boards `changed`;
        rows: of the hunters, in their table."""
        leavers = leaves.nonzero()[:, 0]
        boards = torch.cat([leavers, changed]).unique()  # where anybody takes part
        some = state.take(boards)
        took_part = self._takers(some, actions[boards], leaves[boards].float(), prey[boards])
        takers = torch.zeros_like(actions).index_copy(0, boards, took_part.long())
        classes = self._choose(self.hunter_table.columns[3:], rows * 2 + takers.flatten(), most_likely)
        rewards = self.reward_values.index_select(0, classes).view_as(actions)
        shares = rewards[boards] / self._sharers(some.same_cell(), took_part)
        rewards[boards] = shares + self._public(some, prey[boards])
        return rewards * state.on_board()


# ---- the plain model


class CellLogits(NamedTuple):
    """What CellWorldModel predicts for B joint states; a hunter's window is its own cell and the
    eight around it."""

    window: Tensor  # int64 [B, A, 9], cells, K off the board; all K for a hunter that has left
    hunters: Tensor  # float [B, A, 9], logits of the hunter being there next
    rewards: Tensor  # float [B, A, n], logits of the values in `rewards`
    prey: Tensor  # float [B, k, K], logits of a prey of each kind


class CellWorldModel(nn.Module):
    """The plain model: each cell of the next planes independently of the others, by
    cross-entropy.

    A convolution over the board (hunters by their actions as asked for, each action on its
    hunter's cell; BLOCKS, each kind of prey, the board) is read at each hunter's own cell
    together with its action: where it goes, its reward. The same network serves all hunters, on
    boards of any size. The next prey are read off every cell.

    Args:
        rewards: the values of a hunter's reward in the training data.
        leaves: as for ObjectWorldModel: what the end depends on.
        public_pay: as for ObjectWorldModel: where it is not 0, a hunter is also paid for what
            others take, and its reward is read off the sum over all cells, too.
    """

    kind = "cells"
    num_hunters = None  # any number

    def __init__(
        self,
        height: int,
        width: int,
        rewards: list[float],
        joint: bool = True,
        channels: int = 32,
        kinds: int = 2,
        leaves: bool = True,
        public_pay: tuple[float, ...] = (0.0, 0.0),
    ):
        super().__init__()
        check_kinds(kinds, public_pay)
        self.sizes = dict(
            height=height,
            width=width,
            rewards=rewards,
            joint=joint,
            channels=channels,
            kinds=kinds,
            leaves=leaves,
            public_pay=public_pay,
        )
        self.joint = joint
        self.leaves = leaves
        self.is_public = any(public_pay)
        self.num_actions = len(MOVES) + kinds
        self.board_features = nn.Conv2d(self.num_actions + 1 + 2 + kinds, channels, 3, padding=1)
        read = channels * (2 if self.is_public else 1)
        self.hunter = mlp(read + self.num_actions + 1, 2 * channels, 9 + len(rewards))
        self.prey = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, kinds, 1))
        self.end = nn.Linear(1, 1)
        self.register_buffer("rewards", torch.tensor(rewards, dtype=torch.float32))
        self.on(height, width)

    def on(self, height: int, width: int) -> "CellWorldModel":
        """The same model, for boards of this size."""
        table = neighbours(height, width)
        rows = table[:, [UP, STAY, DOWN]]
        window = table[rows][..., [LEFT, STAY, RIGHT]].reshape(-1, 9)  # [K + 1, 9]
        self.register_buffer("window", torch.as_tensor(window).to(self.rewards.device), persistent=False)
        self.board = (height, width)
        return self

    def logits(self, states: Tensor, actions: Tensor) -> CellLogits:
        """states: uint8 [B, A+1+k, K]; actions: int64 [B, A], as asked for, -1 where not known."""
        B, A = actions.shape
        hunters = states[:, :A].float()
        chosen = F.one_hot(actions + 1, self.num_actions + 1).float()
        by_action = torch.einsum("bac,bak->bck", chosen, hunters)  # [B, 6 + k, K], who plays it on a cell
        inside = hunters.new_ones(B, 1, states.shape[2])  # tells a free cell from one beyond the border
        board = torch.cat([by_action, states[:, A:].float(), inside], 1)
        features = F.relu(self.board_features(board.unflatten(2, self.board)))  # [B, channels, H, W]
        prey = self.prey(features).flatten(2)
        cell = occupied_cells(states[:, :A], 1)  # [B, A, 1]
        features = F.pad(features.flatten(2), (0, 1)).transpose(1, 2)  # [B, K + 1, channels]
        read = [features.gather(1, cell.expand(-1, -1, features.shape[2])), chosen]
        if self.is_public:
            read.append(features.sum(1, keepdim=True).expand(-1, A, -1))
        output = self.hunter(torch.cat(read, 2))
        return CellLogits(self.window[cell[..., 0]], output[..., :9], output[..., 9:], prey)

    def _end_logit(self, planes: Tensor, num_hunters: int) -> Tensor:
        """From one bit: is a hunter left or, where nobody leaves, a prey? planes: [B, A+1+k, K],
        the next ones. Returns: [B]."""
        objects = planes[:, :num_hunters] if self.leaves else planes[:, num_hunters + 1 :]
        remains = (objects > 0.5).any(2).any(1, keepdim=True).float()
        return LOGIT_SCALE * self.end(remains)[:, 0]

    def forward(
        self,
        states: Tensor,
        actions: Tensor,
        next_states: Tensor,
        rewards: Tensor,
        ends: Tensor,
        noise: tuple[Tensor, ...] = (),
    ) -> tuple[LogLikelihood, Tensor]:
        """log p of the next planes, rewards and end; and zeros, [B], for the InfoNCE loss of
        ObjectWorldModel."""
        A = actions.shape[1]
        logits = self.logits(states, actions)
        on_board = states[:, :A].amax(2) > 0
        inside = logits.window < states.shape[2]
        next_window = F.pad(next_states[:, :A], (0, 1)).gather(2, logits.window).float()  # [B, A, 9]
        next_prey = next_states[:, A + 1 :].float()
        hunters = F.binary_cross_entropy_with_logits(logits.hunters, next_window, reduction="none") * inside
        prey = F.binary_cross_entropy_with_logits(logits.prey, next_prey, reduction="none")
        reward_class, _ = nearest_value(rewards.nan_to_num(), self.rewards)
        known = on_board & ~rewards.isnan()
        reward = select(logits.rewards.log_softmax(2), reward_class) * known
        end = end_log_prob(self._end_logit(next_states, A), ends)
        terms = LogLikelihood(-hunters.sum((1, 2)), -prey.sum((1, 2)), reward.sum(1), end)
        return terms, prey.new_zeros(len(prey))

    @torch.no_grad()
    def log_prob(
        self, states: Tensor, actions: Tensor, next_states: Tensor, rewards: Tensor, ends: Tensor
    ) -> Tensor:
        """As `ObjectWorldModel.log_prob`."""
        A = actions.shape[1]
        terms, _ = self(states, actions, next_states, rewards, ends)
        on_board = states[:, :A].amax(2) > 0
        window = self.window[occupied_cells(states[:, :A], 1)[..., 0]]  # [B, A, 9]
        inside = F.pad(next_states[:, :A], (0, 1)).gather(2, window).sum(2)
        impossible = (inside != next_states[:, :A].sum(2)).any(1)
        impossible |= (states[:, A] != next_states[:, A]).any(1)
        rewards = rewards.nan_to_num()
        _, distance = nearest_value(rewards, self.rewards)
        no_class = (distance > 0.01) | (~on_board & (rewards != 0))
        return torch.where(impossible | no_class.any(1), MASKED, terms.stack().sum(1))

    def _probs(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Of the next planes [B, A+1+k, K] and of the rewards [B, A, n]."""
        A = actions.shape[1]
        logits = self.logits(states, actions)
        planes = F.pad(states, (0, 1)).float()
        planes[:, :A] = 0.0
        planes[:, :A].scatter_(2, logits.window, saturate(logits.hunters).sigmoid())
        planes[:, A + 1 :, :-1] = saturate(logits.prey).sigmoid()
        return planes[..., :-1], logits.rewards.softmax(2)

    @torch.no_grad()
    def predict(self, states: Tensor, actions: Tensor) -> Prediction:
        """states: uint8 [B, A+1+k, K]"""
        A = actions.shape[1]
        planes, reward_probs = self._probs(states, actions)
        on_board = states[:, :A].amax(2) > 0
        most_likely = (planes > 0.5).to(torch.uint8)
        rewards = self.rewards[reward_probs.argmax(2)] * on_board
        expected_rewards = (reward_probs @ self.rewards) * on_board
        reward_prob = reward_probs[..., self.rewards > 0].sum(2) * on_board
        end_prob = self._end_logit(most_likely, A).sigmoid()
        return Prediction(most_likely, planes, rewards, expected_rewards, reward_prob, end_prob)

    @torch.no_grad()
    def sample(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `ObjectWorldModel.sample`, but nothing makes it a possible board: every cell is
        drawn independently."""
        A = actions.shape[1]
        probs, reward_probs = self._probs(states, actions)
        on_board = states[:, :A].amax(2) > 0
        planes = (torch.rand_like(probs) < probs).to(torch.uint8)
        end_prob = self._end_logit(planes, A).sigmoid()
        rewards = self.rewards[sample_or_argmax(reward_probs.log(), most_likely=False)] * on_board
        return planes, rewards, torch.rand_like(end_prob) < end_prob


class ViewWorldModel(nn.Module):
    """`cells` outside the family of games: each cell of what each agent sees next, and its reward.

    No move, object or rule is known. Convolutions read what an agent sees, with its action; those of
    all agents are added up, and read again beside each one's own: on boards of any size, with any
    number of agents, all alike. Rewards are classes, as in `cells`: the expected reward of a squared
    error is none that is ever paid, and where rewards are rare it is seldom the most likely one.
    """

    kind = "views"

    def __init__(
        self,
        height: int,
        width: int,
        planes: int,
        actions: int,
        rewards: list[float],
        joint: bool = True,
        channels: int = 32,
    ):
        """planes, actions: how many there are. rewards: the values of an agent's reward in the training data."""
        super().__init__()
        self.sizes = dict(
            height=height,
            width=width,
            planes=planes,
            actions=actions,
            rewards=rewards,
            joint=joint,
            channels=channels,
        )
        self.num_planes = planes
        self.num_actions = actions
        self.joint = joint
        inputs = planes + actions + 2  # an action that is not known; the board, so that the padding shows
        self.own = nn.Conv2d(inputs, channels, 3, padding=1)
        self.all = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        self.cells = nn.Conv2d(channels, planes, 1)
        self.stay = nn.Parameter(torch.ones(planes, 1))
        self.totals = mlp(channels, channels, len(rewards) + 1)  # logits of the reward, and of the end
        self.register_buffer("rewards", torch.tensor(rewards, dtype=torch.float32))
        self.on(height, width)

    def on(self, height: int, width: int) -> "ViewWorldModel":
        """The same model, for boards of this size."""
        self.board = (height, width)
        return self

    def outputs(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """states: uint8 [B, A * P, K]; actions: int64 [B, A], -1 where not known.

        Returns: logits of the next cells [B, A * P, K], of the rewards [B, A, n] and of the end [B].
        """
        B, A = actions.shape
        views = states.view(B * A, self.num_planes, -1).float()
        chosen = F.one_hot(actions.flatten() + 1, self.num_actions + 1).float()
        chosen = F.pad(chosen, (0, 1), value=1.0)[..., None].expand(-1, -1, views.shape[2])
        own = F.relu(self.own(torch.cat([views, chosen], 1).unflatten(2, self.board)))  # [BA, channels, H, W]
        everyone = own.unflatten(0, (B, A)).sum(1, keepdim=True).expand(-1, A, -1, -1, -1).flatten(0, 1)
        hidden = F.relu(self.all(torch.cat([own, everyone], 1)))
        hidden = F.relu(self.last(hidden) + hidden)
        logits = self.cells(hidden).flatten(2) + self.stay * (2 * views - 1)
        totals = LOGIT_SCALE * self.totals(hidden.amax((2, 3))).unflatten(0, (B, A))
        return LOGIT_SCALE * logits.view(states.shape), totals[..., :-1], totals[..., -1].mean(1)

    def forward(
        self,
        states: Tensor,
        actions: Tensor,
        next_states: Tensor,
        rewards: Tensor,
        ends: Tensor,
        noise: tuple[Tensor, ...] = (),
    ) -> tuple[LogLikelihood, Tensor]:
        """As `CellWorldModel`; all planes count as the hunters'."""
        logits, reward_logits, end_logit = self.outputs(states, actions)
        cells = F.binary_cross_entropy_with_logits(logits, next_states.float(), reduction="none")
        reward_class, _ = nearest_value(rewards.nan_to_num(), self.rewards)
        reward = select(reward_logits.log_softmax(2), reward_class) * ~rewards.isnan()
        zeros = end_logit.new_zeros(len(end_logit))
        return LogLikelihood(-cells.sum((1, 2)), zeros, reward.sum(1), end_log_prob(end_logit, ends)), zeros

    @torch.no_grad()
    def predict(self, states: Tensor, actions: Tensor) -> Prediction:
        """states: uint8 [B, A * P, K]"""
        logits, reward_logits, end_logit = self.outputs(states, actions)
        most_likely = (logits > 0).to(torch.uint8)
        rewards = self.rewards[reward_logits.argmax(2)]
        expected_rewards = reward_logits.softmax(2) @ self.rewards
        return Prediction(most_likely, logits.sigmoid(), rewards, expected_rewards, None, end_logit.sigmoid())


def saturate(logits: Tensor) -> Tensor:
    """What is a million times less likely than its contrary becomes impossible."""
    return torch.where(logits.abs() > RARE, 1e4 * logits.sign(), logits)


MODELS = {"moves": ObjectWorldModel, "cells": CellWorldModel}


def saved_model(sizes: dict, args: Args) -> nn.Module:
    """The network of a checkpoint's sizes; what is a setting, too, is as there."""
    make = ViewWorldModel if "planes" in sizes and args.model == "cells" else MODELS[args.model]
    return make(**sizes | {"joint": args.actions == "joint"})


# ---- checkpoints


def check_ranges(args: Args) -> None:
    """Raises: tracking.UsageError: a setting is out of its range."""
    least = dict(max_transitions=0, epochs=1, batch_size=1, torch_threads=1, seed=0)
    tracking.check_ranges(args, least, above_zero=("learning_rate",), from_zero=("contrastive_coef",))
    if args.contrastive_coef and args.model == "cells":
        raise tracking.UsageError("--contrastive-coef: needs --model moves")


def make_optimizer(model: nn.Module, args: Args) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=args.learning_rate)


CHECKPOINT = tracking.Schema(
    kind=KIND,
    args_type=Args,
    check_args=check_ranges,
    make_model=saved_model,
    make_optimizer=make_optimizer,
    counter="epoch",
    length=lambda args: args.epochs,
    worst=math.inf,
    scores=lambda saved: [row["val_nll"] for row in saved["history"]],
    judge="python test_obs_reward_model.py --checkpoint",
    fields=dict(
        step=checkpoints.OPTIMIZER_STEP,
        fingerprint=checkpoints.FINGERPRINT,
        rules=checkpoints.RULES,
        game=checkpoints.Expected("the description of a game that the network is for", is_of_network),
    ),
    former_names={"totals": "reward_values"},
    added={"": {"game": STAG_HUNT.metadata()}, "args": tracking.UNTRACKED},
    added_sizes=lambda saved: {} if "game" in saved else FIRST_SIZES,
)


def load_world_model(
    folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[ObjectWorldModel | CellWorldModel, dict]:
    """The network of a run's best checkpoint, in eval mode, and the checkpoint. Raises:
    tracking.UsageError."""
    return tracking.load_model(tracking.find_folder(folder) / "best.pt", CHECKPOINT, device)


# ---- losses and metrics


def make_batch(
    model: nn.Module,
    batches: TransitionBatches,
    index: np.ndarray,
    augment: bool,
    own: slice = slice(None),
) -> tuple:
    """The arguments of `model` for the transitions `index`, of these the rows `own`: what is drawn at random does not
    depend on them. `cells` is trained on random symmetries of the board; they would tell `moves` nothing new, since its
    scorers share all directions."""
    parts = batches.take(index, random=augment, augment=augment and model.kind == "cells")
    states, actions, next_states, rewards, ends = (part[own] for part in parts)
    if model.kind != "moves":
        return states, actions, next_states, rewards, ends
    outcomes = batches.outcomes.batch(index[own], states.device)
    return JointState.of(states, batches.most), actions, outcomes, rewards, ends


@torch.no_grad()
def evaluate(model: nn.Module, batches: TransitionBatches, index: np.ndarray) -> dict[str, float | None]:
    """Means over the transitions `index`, the main ones of those of test_obs_reward_model.py."""
    sums = defaultdict(float)
    for part in np.array_split(index, math.ceil(len(index) / EVAL_BATCH)):
        states, actions, next_states, rewards, _ = batches.take(part, random=False)
        terms, _ = model(*make_batch(model, batches, part, augment=False))
        prediction = model.predict(states, actions)
        known = ~rewards.isnan()
        has_rewards = known.any(1)
        right_rewards = ((prediction.rewards - rewards).abs() < 0.01) | ~known
        reward_error = (prediction.expected_rewards - rewards)[known]
        sums["obs"] += (prediction.expected - next_states).square().mean((1, 2)).double().sum()
        sums["exact"] += (prediction.most_likely == next_states).all(2).all(1).double().sum()
        sums["nll"] += (-terms.stack()).double().sum()
        sums["boards"] += has_rewards.double().sum()
        sums["right"] += (right_rewards.all(1) & has_rewards).double().sum()
        sums["known"] += known.double().sum()
        sums["reward"] += reward_error.square().double().sum()
    sums = {name: value.item() for name, value in sums.items()}
    return {
        "obs_mse": sums["obs"] / len(index),
        "reward_mse": sums["reward"] / sums["known"] if sums["known"] else None,
        "exact_transitions": sums["exact"] / len(index),
        "exact_rewards": sums["right"] / sums["boards"] if sums["boards"] else None,
        "nll": sums["nll"] / len(index),
    }


def nothing_moves(
    batches: TransitionBatches, train: np.ndarray, index: np.ndarray
) -> dict[str, float | None]:
    """The figures of `evaluate` if nothing ever happened, and each reward were the mean of the transitions `train`."""
    before, after = batches.states[batches.before[index]], batches.states[batches.after[index]]
    rewards = batches.rewards[index]
    error = (rewards - batches.rewards[train].nanmean()).square().nanmean().item()
    changed = before != after
    return {
        "obs_mse": changed.double().mean().item(),
        "reward_mse": None if math.isnan(error) else error,
        "exact_transitions": (~changed).all(2).all(1).double().mean().item(),
        "exact_rewards": ((rewards.abs() < 0.01) | rewards.isnan()).all(1).double().mean().item(),
    }


# ---- training


def read_transitions(args: Args) -> Transitions:
    """The transitions of --data. A file of one hunter's actions sets `args.actions` to `own`."""
    data = load_transitions(training_file(args.data), args.layout, other_games=args.model == "cells")
    if args.actions == "own" and isinstance(data.game, OtherGame):
        raise tracking.UsageError("--actions own: outside the family of games all actions are needed")
    print(f"[WM] Loaded {len(data)} transitions.")
    for line in data.inferred:
        print(f"[DATA] inferred: {line}")
    if args.actions == "joint" and (data.actions < 0).any():
        print("[DATA] not everyone's action is in this file: --actions own")
        args.actions = "own"
    return data


def split_transitions(args: Args, data: Transitions, batches: TransitionBatches) -> dict[str, np.ndarray]:
    """The indices of train, val and test that can be learnt from. Raises: tracking.UsageError:
    too few."""
    late = int(np.isnan(data.ends).sum())
    if late:
        print(
            f"[DATA] {late} boards end by end_after_first_hunt: a joint state does not tell when; not part of the loss"
        )
    splits = dict(data.splits)
    if batches.outcomes:
        splits = {name: part[batches.outcomes.possible[part]] for name, part in splits.items()}
    impossible = len(data) - len(splits["all"])
    if impossible:
        print(
            f"[DATA] {impossible} transitions left out in which an object goes further than a neighbour cell"
        )
    splits["train"] = splits["train"][: args.max_transitions or None]
    sizes = {name: len(splits[name]) for name in ("train", "val", "test")}
    if min(sizes.values()) < 1:
        raise tracking.UsageError(
            f"{args.data}: expected transitions to train, validate and test on, found {sizes}"
        )
    counts = f"{sizes['train']} train, {sizes['val']} val, {sizes['test']} test transitions"
    print(f"[DATA] split {data.split_law}: {counts}")
    return splits


def make_model(
    args: Args, batches: TransitionBatches, train: np.ndarray, data: Transitions, resumed: dict | None
) -> nn.Module:
    """A new network for the training data, or of a resumed run's sizes. Raises:
    tracking.UsageError: too many rewards."""
    board = data.states.shape[2:]
    if resumed:
        return saved_model(resumed["sizes"], args).on(*board)
    if isinstance(data.game, OtherGame):
        rewards = spread_values(batches.reward_values(train))
        return ViewWorldModel(*board, len(data.game.planes), data.game.num_actions, rewards)
    public_pay = batches.public_pay(train)
    values = (
        batches.capture_totals(train, public_pay) if args.model == "moves" else batches.reward_values(train)
    )
    if len(values) > MAX_REWARDS:
        raise tracking.UsageError(
            f"{args.data}: rewards: expected at most {MAX_REWARDS} values, classes, found {len(values)}"
        )
    return MODELS[args.model](
        *board,
        values,
        args.actions == "joint",
        kinds=data.game.kinds,
        leaves=data.game.leaves,
        public_pay=public_pay,
    )


def spread_values(values: list[float]) -> list[float]:
    """Of more than `MAX_REWARDS` values that rise, so many, evenly by rank, 0 among them: others are rounded to these."""
    if len(values) <= MAX_REWARDS:
        return values
    ranks = np.linspace(0, len(values) - 1, MAX_REWARDS - 1).round().astype(int)
    return sorted({0.0, *(values[rank] for rank in ranks)})


def learning_rate(args: Args, step: int, steps_per_epoch: int) -> float:
    """Rises over 100 steps, then falls linearly to zero."""
    scale = 0.5 if args.model == "cells" else 1.0
    rise = min(1.0, (step + 1) / 100)
    fall = 1.0 - step / (args.epochs * steps_per_epoch)
    return args.learning_rate * scale * rise * fall


def train_epoch(
    model: nn.Module,
    ddp_model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: TransitionBatches,
    index: np.ndarray,
    args: Args,
    step: int,
    world: tracking.World,
    writer: SummaryWriter | None,
) -> tuple[dict[str, float], int]:
    """Train once on the transitions `index`, in an order of this seed and step, `step` steps
    having been taken before. Of several processes each takes its share of every minibatch.

    Returns: the epoch's mean losses by name, and the steps so far.
    """
    contrastive = args.contrastive_coef > 0
    noise_seed = np.random.default_rng((args.seed, step, 0)).integers(2**62)
    torch.manual_seed(int(noise_seed))  # in every process, which draws for whole minibatches
    order = np.random.default_rng((args.seed, step)).permutation(len(index))
    minibatches = np.array_split(index[order], math.ceil(len(index) / args.batch_size))
    epoch_sums = defaultdict(float)
    log_sums = defaultdict(float)  # since the last log
    progress = tqdm(
        total=len(index), unit=" transitions", leave=False, mininterval=1.0, disable=world.rank > 0
    )
    for done, minibatch in enumerate(minibatches, 1):
        optimizer.param_groups[0]["lr"] = learning_rate(args, step, len(minibatches))
        size = len(minibatch)
        own = slice(world.rank, None, world.size)
        batch = make_batch(model, batches, minibatch, augment=True, own=own)
        noise: tuple[Tensor, ...] = ()
        if contrastive:
            noise = model.draw_noise(size, batches.actions.shape[1], sum(batches.most))
        terms, infonce = ddp_model(*batch, tuple(part[own] for part in noise))

        # Losses in nats per transition
        hunter_loss, prey_loss, reward_loss, end_loss = -terms.stack().sum(0) / size
        contrastive_loss = infonce.sum() / size
        loss = hunter_loss + prey_loss + reward_loss + end_loss
        if contrastive:
            loss = loss + args.contrastive_coef * infonce.sum() / size

        optimizer.zero_grad()
        (loss * world.size).backward()  # the processes' gradients are averaged
        optimizer.step()
        step += 1
        progress.update(size)

        losses = dict(hunters=hunter_loss, prey=prey_loss, rewards=reward_loss, end=end_loss)
        if contrastive:
            losses["contrastive"] = contrastive_loss
        losses["total"] = loss
        for name, value in losses.items():
            epoch_sums[name] += value.detach()
            log_sums[name] += value.detach()
        if done % LOG_STEPS == 0 or done == len(minibatches):
            means = mean_losses(log_sums, (done - 1) % LOG_STEPS + 1, world)
            tracking.log_scalars(writer, "losses", means, step)
            rate = {"learning_rate": optimizer.param_groups[0]["lr"]}
            tracking.log_scalars(writer, "charts", rate, step)
            log_sums.clear()
    progress.close()
    return mean_losses(epoch_sums, len(minibatches), world), step


def mean_losses(sums: dict[str, Tensor], steps: int, world: tracking.World) -> dict[str, float]:
    """Over `steps` minibatches of all processes; read from the device at once."""
    means = world.sum(torch.stack(list(sums.values()))) / steps
    return dict(zip(sums, means.tolist(), strict=True))


CURVE_LABELS = {
    "nll": "NLL, nats per transition",
    "obs_mse": "MSE of the boards",
    "reward_mse": "MSE of the rewards",
    "exact_transitions": "share of exact transitions",
    "exact_rewards": "share of exact rewards",
}


def loss_curves(history: list[dict]) -> dict[str, dict[str, list]]:
    """The panels of wm_loss_curve.png."""
    columns = {key: [row[key] for row in history] for key in history[0] if key != "epoch"}
    training = {key: values for key, values in columns.items() if not key.startswith("val_")}
    validation = {
        f"validation: {label}": {"val": columns[f"val_{key}"]}
        for key, label in CURVE_LABELS.items()
        if f"val_{key}" in columns
    }
    return {"training loss": training} | validation


def train(args: Args, world: tracking.World, resumed: dict | None) -> None:
    start = time.perf_counter()
    device = world.device

    # Data
    with world.one_first():  # the default file is collected once
        data = read_transitions(args)
    if resumed and resumed["fingerprint"] != data.fingerprint:
        raise tracking.UsageError(
            f"{args.data}: not the data that the run was trained on; name that file with --data"
        )
    tracking.seed_everything(args.seed, args.torch_deterministic)
    batches = TransitionBatches.of(data, device, args.actions == "own")
    splits = split_transitions(args, data, batches)
    sizes = {name: len(splits[name]) for name in ("train", "val", "test")}
    board = data.states.shape[2:]

    # Model
    model = make_model(args, batches, splits["train"], data, resumed).to(device)
    optimizer = make_optimizer(model, args)

    # Run folder, checkpoints and log
    state = dict(epoch=0, step=0, best=math.inf, history=[], seconds=0.0, train_seconds=0.0)
    if resumed:
        folder = tracking.find_folder(args.resume)
        run_name = resumed["run"]
        state = {key: resumed[key] for key in state}
        tracking.restore(folder / "last.pt", resumed, model, optimizer)
    else:
        name = tracking.name_run(args.exp_name, data.game.id, args.model, args.seed)
        run_name = tracking.new_run(name, "wm_ckpts") if world.rank == 0 else ""
        folder = tracking.lock_run(Path("wm_ckpts") / run_name)
    settings = asdict(args) | {"resume": ""}  # so that a resumed run's files equal an uninterrupted one's
    fixed = dict(
        kind=KIND,
        run=run_name,
        args=settings,
        fingerprint=data.fingerprint,
        rules=asdict(data.rules) if data.rules else None,
        game=data.game.metadata(),
    )

    def save(name: str) -> None:
        now = state | dict(seconds=state["seconds"] + time.perf_counter() - start)
        tracking.save_checkpoint(folder / name, fixed | now | tracking.learnt(model, optimizer))

    purge_step = state["step"] + 1 if resumed else None
    writer = tracking.open_log(run_name, settings, purge_step=purge_step) if world.rank == 0 else None
    if not resumed and world.rank == 0:
        save("last.pt")  # so that a run killed in its first epoch can be resumed too
    print(f"[WM] on {device}")
    print("[WM] Begin offline training...", flush=True)

    # Epochs: train, validate, save
    ddp_model = world.wrap(model)  # averages the gradients of several processes
    for epoch in range(state["epoch"], args.epochs):
        print(f"\n[Epoch {epoch + 1}/{args.epochs}]", flush=True)
        epoch_start = time.perf_counter()
        losses, state["step"] = train_epoch(
            model, ddp_model, optimizer, batches, splits["train"], args, state["step"], world, writer
        )
        epoch_seconds = time.perf_counter() - epoch_start
        state["train_seconds"] += epoch_seconds
        tracking.check_finite(losses, optimizer, f"epoch {epoch}")
        state["epoch"] = epoch + 1
        if world.rank > 0:  # the first process validates and saves
            continue
        tracking.log_scalars(writer, "charts", {"SPS": sizes["train"] / epoch_seconds}, state["step"])
        val = evaluate(model, batches, splits["val"])
        tracking.check_finite({"val nll": val["nll"]}, optimizer, f"epoch {epoch}")
        tracking.log_scalars(writer, "val", val, state["step"])
        row = losses | {f"val_{key}": value for key, value in val.items() if value is not None}
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

    # Test the best checkpoint
    model, best = load_world_model(folder, device)
    test = evaluate(model.on(*board), batches, splits["test"])
    found = ", ".join(f"{key} {value:.6g}" for key, value in test.items() if value is not None)
    where = f"epoch {best['epoch'] - 1} (best on validation) on the test split: {sizes['test']} transitions"
    print(f"[WM] {where}: {found}")
    floor = None
    if isinstance(data.game, OtherGame):
        floor = nothing_moves(batches, splits["train"], splits["test"])
        found = ", ".join(f"{key} {value:.6g}" for key, value in floor.items() if value is not None)
        print(f"[WM] if nothing moved, and with the mean reward: {found}")
    final_step = state["step"] + 1  # a resumed run removes what is logged later than its checkpoint
    curves = figures.curves(loss_curves(state["history"]), {}, "epoch")
    figures.save(curves, folder / "wm_loss_curve.png", writer, final_step)
    tracking.log_scalars(writer, "test", test, final_step)
    seconds = state["seconds"] + time.perf_counter() - start
    speed = args.epochs * sizes["train"] / state["train_seconds"]
    metrics = dict(
        run=run_name,
        seed=args.seed,
        args=settings,
        seconds=seconds,
        transitions_per_second=speed,
        transitions=sizes,
        test=test,
    )
    if floor:
        metrics["nothing_moves"] = floor
    tracking.write_json(folder / "metrics.json", metrics)
    writer.close()
    judge = f"; judge it: python test_obs_reward_model.py --checkpoint {folder.as_posix()}"
    print(f"[WM] {seconds:.0f} s, {speed:.0f} transitions/s in training{'' if floor else judge}")


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    check_ranges(args)
    tracking.check_wandb(args)
    args.resume = tracking.named_run(args.resume, "wm_ckpts", "train_world_model.py", "last.pt")
    resumed = None
    if args.resume:
        folder = tracking.lock_run(tracking.find_folder(args.resume))
        resumed = tracking.load_checkpoint(folder / "last.pt", CHECKPOINT)
        free = ("resume", "data", "cuda", "torch_threads", *tracking.UNTRACKED)
        args = tracking.resumed_args(args, resumed, free)
    torch.set_num_threads(args.torch_threads)
    with tracking.join_world(args.cuda) as world:
        train(args, world, resumed)


if __name__ == "__main__":
    tracking.run(main, DataError)
