"""Pretrain a VAE with a MOA head (a model of other agents) on recorded trajectories.

The encoder q(z | what a hunter did so far) infers who a hunter is. `--loss moa` trains it with the
hunter's actions (cross-entropy, nats per action), `--loss recon` with the observation (binary
cross-entropy, nats per frame), `both` with the sum; each adds a KL term to the unit Gaussian (Kingma &
Welling 2014). The MOA head predicts the next action from (observation, tick, z), illegal actions masked
(Jaques et al. 2019), and from (observation, tick, goal) (Huang et al. 2024, HOP). The exact observers of
metrics/observers.py bound the results.
"""

import tracking  # first: from here on Ctrl-C is one line, also while torch is imported

# isort: split
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data import DEFAULT_DATA, DataError, memory, training_file
from data.datasets import Batch, Batches, Samples, captured_goals, load_samples, recorded_goals
from data.trajectories import judged_file, save_arrays
from envs.game import MAX_KINDS, OWN_PLANES, STAY, Game, OtherGame, any_game_of
from envs.games import is_of_network
from envs.grid import neighbours
from envs.stag_hunt import GAME
from metrics import observers, reports, scores, vae_reports
from tracking import checkpoints, figures

SELF, OTHERS, BLOCKS = range(3)  # planes of an observation; a plane of each kind of prey follows
STAG_HUNT = dict(kinds=GAME.kinds, goal_kinds=GAME.goal_kinds)  # sizes that older checkpoints lack
KIND = "pretrain_vae"  # the kind of checkpoint that this script writes
UNREACHABLE = -30.0  # nearness of what cannot be reached
MASKED = -1e9  # logit of an impossible choice
MIN_LOG_POSTERIOR = -8.0  # of a behaviour, where z is inferred from it
MIN_PROB = 1e-20  # before a logarithm
MIN_WEIGHT = 1e-30  # in TabularMOA, where all weights underflow
LOGIT_SCALE = 10.0  # of attention: it need not grow for long
TRACKER_CHUNK = 512  # co-players at once in OpponentTracker: twice as fast, since it fits the cache
TABLE_CHUNK = 1024  # states at once in TabularMOA
SAMPLE_CHUNK = 4096  # the same where one prey is drawn
REMEMBERED = 4096  # boards that are gone, whose nearness TabularMOA still knows
NOT_PLAIN = "a VAE of --network plain cannot be followed while a game is played: train one of --network moa"
NO_MOA = "a VAE trained with --loss recon has no MOA head: train one with --loss moa or both"
NONE_PRIORS = (0.0, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03)  # of these and
HAZARDS = (0.0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01)  # these `choose_belief_law` chooses
MAX_COST = 0.0015  # nats that its choice may cost on the recorded actions
BELIEF_HUNTERS = 2000  # that it is chosen on
MAX_GOALS = 8  # of --goals free
GOAL_HUNTERS = 2000  # of a split, that the number of free goals is chosen on
GOAL_BATCH = 256  # hunters a step
GOAL_STEPS, GOAL_REFIT_STEPS = 150, 40  # of the most goals, and after each that is taken away
GOAL_RATE = 0.1  # learning rate, constant for half of the steps, then falling to zero
FARTHEST = -12.0  # nearness that a free goal still tells from less
PREFERENCE_SPREAD = (
    1.0,
    0.3,
    1.0,
    0.1,
    0.3,
)  # of the first preferences: as far as `GoalEvidence.things` reach
LOG_STEPS = 50  # TensorBoard gets means of so many minibatches, and of an epoch's last ones


@dataclass
class Args:
    exp_name: str = "vae"
    """name of the run, followed by __<unix seconds>"""
    seed: int = 1
    """seed of the weights, the batches and the noise of z"""
    torch_deterministic: bool = True
    """deterministic algorithms where PyTorch has them (else it warns): same seed, same bytes"""
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
    resume: str = ""
    """folder of a run to go on with, or `newest`; its settings come from its checkpoint"""
    evaluate: str = ""
    """folder of a run, `newest` or `pretrained`: train nothing, evaluate its best checkpoint on the whole of --data"""

    network: Literal["moa", "plain"] = "moa"
    """network that is trained. *moa* knows moves, blocks and prey of the family of games; *plain*, convolutions and a
    GRU, knows no game and reads any planes and actions (with --loss moa)"""
    loss: Literal["recon", "moa", "both"] = "moa"
    """target that trains z: the actions, the observation, or the sum of both"""
    goals: Literal["recorded", "captured", "free"] = "recorded"
    """source of the goal that a hunter had: the file's `strategies`, or what it took in the end; *free*: nothing, the MOA's
    own behaviours are the goals, as many as the hunters need, and other hunters can be one"""
    context: Literal["episode", "observation"] = "episode"
    """observations that z is inferred from: the episode so far, or one (rows that stand alone)"""
    data: str = DEFAULT_DATA
    """trajectories or a flat file; the default is collected on first use, and so are `fresh` and
    `unmasked`, which are for --evaluate only"""
    layout: Literal["auto", "planes", "hop", "hop-first"] = "auto"
    """layout of an ambiguous flat file: [N, 5, H, W], [N, H, W, A+3], or [N, A+3, H, W]"""
    epochs: int = 10
    """passes over the training split"""
    batch_size: int = 256
    """samples per step, on average: with episodes, a step takes whole ones"""
    learning_rate: float = 3e-3
    """learning rate of AdamW; rises over the first 100 steps, then falls linearly to zero"""
    kl_coef: float = 1e-3
    """weight of the KL term, reached linearly over the first epoch"""
    latent_dim: int = 16
    """size of z"""


# ---- networks


class PreyMaps(NamedTuple):
    """How near each cell of U boards is to each of at most P prey."""

    nearness: Tensor  # float [U, P, K + 1], the last column is off the board
    kind: Tensor  # float [U, P, k], one-hot
    present: Tensor  # bool [U, P], False where a board has fewer prey


class BoardFeatures(NamedTuple):
    """One hunter's view of its board, for each of B hunters and P prey; with free goals, other hunters follow the prey,
    as one more kind of it."""

    own_nearness: Tensor  # float [B, P], 0 on the prey's cell, lower the further away
    nearness_gain: Tensor  # float [B, P, 4], how much nearer a step up, down, left or right is
    rival_nearness: Tensor  # float [B, P], of the other hunter that is nearest to the prey
    kind: Tensor  # float [B, P, k], one-hot; with free goals k + 1
    present: Tensor  # bool [B, P]
    action_mask: Tensor  # bool [B, n]
    other_cells: Tensor  # float [B, 1], how many cells hold other hunters
    tick: Tensor  # int64 [B]


class MOA(nn.Module):
    """p(action | observation, tick, z): a mixture of behaviours, each a mixture over prey.

    How near a prey is, around the blocks, comes from value iteration (Tamar et al. 2016): nearness
    spreads over the board, each cell taking the best of its neighbours less the cost of a straight or
    a diagonal step. These two costs are the only parameters that depend on positions, and one scorer
    serves all steps, so the eight symmetries of the board hold by construction.

    A *behaviour* is a vector. Given it, attention chooses a prey (or none), and a scorer an action,
    given the prey. The first behaviours are mixed by z and trained by the action loss alone; those of
    the game's goals follow and are trained by the hunters' goals. C = behaviours + goals. There are
    k kinds of prey and n = 5 + k actions: four steps, STAY, and one that takes a prey of each kind.

    With free goals the behaviours are the goals, C of them, and a hunter can go for other hunters, too.
    """

    def __init__(
        self,
        height: int,
        width: int,
        ticks: int,
        z_size: int,
        behaviours: int,
        hidden: int,
        kinds: int = GAME.kinds,
        goal_kinds: tuple[int, ...] = GAME.goal_kinds,
        code: int = 16,
        free_goals: bool = False,
    ):
        """kinds: of prey. goal_kinds: for each goal of the game the kind that it pursues, -1: none."""
        super().__init__()
        self.height = height
        self.width = width
        self.ticks = ticks
        self.behaviours = behaviours
        self.kinds = kinds
        self.free_goals = free_goals
        self.first_goal = 0 if free_goals else behaviours  # among the behaviours
        self.num_goals = behaviours if free_goals else len(goal_kinds)
        self.thing_kinds = kinds + free_goals
        self.num_actions = STAY + 1 + kinds
        self.step_costs = nn.Parameter(torch.zeros(2))  # straight and diagonal, before softplus
        self.code = nn.Parameter(0.5 * torch.randn(self.first_goal + self.num_goals, code))
        self.tick = nn.Embedding(ticks, 8)
        nn.init.normal_(self.tick.weight, std=0.1)
        self.thing = nn.Linear(4 + self.thing_kinds, hidden)  # a thing is a prey, or another hunter
        self.context = nn.Linear(code + 8 + 1, hidden)
        self.choice = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.nothing = nn.Linear(code + 8 + 1, 1)
        self.action = nn.Sequential(
            nn.Linear(6 + self.thing_kinds + kinds, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        # Without a prey all legal actions are alike, but where a goal has none: a free rider never takes one.
        self.idle = nn.Parameter(torch.zeros(len(self.code), 2 + kinds)) if -1 in goal_kinds else None
        self.mix = nn.Linear(z_size, behaviours)
        cells = torch.as_tensor(neighbours(height, width)[:, :5])  # up, down, left, right, stay
        self.register_buffer("neighbours", cells, persistent=False)  # int64 [K + 1, 5]
        action_kind = torch.eye(2 + kinds)[[0, 0, 0, *range(2 + kinds)]]  # a step, STAY, taking each kind
        self.register_buffer("action_kind", action_kind, persistent=False)

    def prey_nearness(self, boards: Tensor, num_prey: int) -> PreyMaps:
        """boards: float [U, 1 + k, K], BLOCKS and each kind of prey; num_prey: the most that one has."""
        present, cell = boards[:, 1:].sum(1).topk(num_prey, 1)
        kind = boards[:, 1:].gather(2, cell[:, None].expand(-1, self.kinds, -1)).transpose(1, 2)
        nearness = torch.full((*cell.shape, boards.shape[2]), UNREACHABLE, device=boards.device)
        nearness = nearness.scatter(2, cell[..., None], 0.0)
        nearness = nearness.unflatten(2, (self.height, self.width))  # [U, P, H, W]
        walls = UNREACHABLE * boards[:, 0].view(-1, 1, self.height, self.width)
        straight_cost, diagonal_cost = F.softplus(self.step_costs)
        for _ in range(self.height + self.width):
            padded = F.pad(nearness, (1, 1, 1, 1), value=UNREACHABLE)
            vertical = torch.maximum(padded[:, :, :-2], padded[:, :, 2:])  # [U, P, H, W + 2]
            horizontal = torch.maximum(padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:])
            straight = torch.maximum(horizontal, vertical[..., 1:-1]) - straight_cost
            diagonal = torch.maximum(vertical[..., :-2], vertical[..., 2:]) - diagonal_cost
            best = torch.maximum(straight, diagonal)
            nearness = (torch.maximum(nearness, best) + walls).clamp(min=UNREACHABLE)
        return PreyMaps(F.pad(nearness.flatten(2), (0, 1), value=UNREACHABLE), kind, present > 0)

    def encode_board(self, planes: Tensor, board: Tensor, prey: PreyMaps, tick: Tensor) -> BoardFeatures:
        """planes: float [B, 3 + k, K]; board: int64 [B], the row of each in `prey`; tick: int64 [B]."""
        cell = planes[:, SELF].argmax(1)
        others = planes[:, OTHERS]
        around = prey.nearness[board[:, None], :, self.neighbours[cell]].transpose(1, 2)  # [B, P, 5]
        own = around[..., 4]
        rival = prey.nearness[board, :, :-1].masked_fill(others[:, None] == 0, UNREACHABLE).amax(2)
        features = BoardFeatures(
            own_nearness=own,
            nearness_gain=around[..., :4] - own[..., None],
            rival_nearness=rival,
            kind=prey.kind[board],
            present=prey.present[board],
            action_mask=self.action_mask(planes, cell),
            other_cells=others.sum(1, keepdim=True),
            tick=tick,
        )
        return self.add_hunters(features, planes, board, cell) if self.free_goals else features

    def add_hunters(
        self, features: BoardFeatures, planes: Tensor, board: Tensor, cell: Tensor
    ) -> BoardFeatures:
        """Append the cells of other hunters, without rivals for them. Arguments as of `encode_board`; cell: int64 [B]."""
        B, _, K = planes.shape
        others = planes[:, OTHERS]
        present, other = others.topk(max(1, int(others.sum(1).amax())), 1)  # [B, O]
        sample = torch.arange(B, device=cell.device)[:, None].expand_as(other)
        place, index = (board[:, None] * K + other).unique(
            return_inverse=True
        )  # ticks and hunters share places
        sample = sample.new_zeros(len(place)).scatter(0, index.flatten(), sample.flatten())  # one that has it
        one_prey = F.one_hot(place % K, K).float()
        boards = torch.stack([planes[sample, BLOCKS], one_prey], 1)
        boards = F.pad(
            boards, (0, 0, 0, self.kinds - 1)
        )  # as one of the first kind: nearness is the same for all
        nearness = self.prey_nearness(boards, 1).nearness[:, 0]  # [S, K + 1]
        around = nearness[index[..., None], self.neighbours[cell][:, None]]  # [B, O, 5]
        own = around[..., 4]
        kind = F.one_hot(torch.full_like(other, self.kinds), self.kinds + 1)
        return features._replace(
            own_nearness=torch.cat([features.own_nearness, own], 1),
            nearness_gain=torch.cat([features.nearness_gain, around[..., :4] - own[..., None]], 1),
            rival_nearness=torch.cat([features.rival_nearness, torch.full_like(own, UNREACHABLE)], 1),
            kind=torch.cat([F.pad(features.kind, (0, 1)), kind.float()], 1),
            present=torch.cat([features.present, present > 0], 1),
        )

    def action_mask(self, planes: Tensor, cell: Tensor) -> Tensor:
        """bool [B, n]: a step to a free cell, STAY, taking a prey on its cell. cell: int64 [B]."""
        walls = F.pad(planes[:, BLOCKS], (0, 1), value=1.0)
        steps = walls.gather(1, self.neighbours[cell][:, :4]) == 0
        prey = planes[:, BLOCKS + 1 :].gather(2, cell[:, None, None].expand(-1, self.kinds, 1))
        return torch.cat([steps, torch.ones_like(steps[:, :1]), prey[..., 0] > 0], 1)

    def behaviour_context(self, tick: Tensor, other_cells: Tensor) -> Tensor:
        """What preferences among prey depend on beside the prey: float [B, C, code + 9]."""
        tick = self.tick(tick.clamp(max=self.ticks - 1))
        now = torch.cat([tick, other_cells / 4], 1)  # [B, 9]
        code = self.code.expand(len(now), -1, -1)
        return torch.cat([code, now[:, None].expand(-1, len(self.code), -1)], 2)

    def score_prey(self, own: Tensor, rival: Tensor, kind: Tensor, context: Tensor) -> Tensor:
        """Preference for a prey, as a logit: float [...]; shapes broadcast.

        Args: own, rival: float [..., 2], `nearness_features` of the hunter and its nearest rival;
        kind: float [..., k]; context: float [..., hidden], of `self.context`.
        """
        thing = self.thing(torch.cat([own, rival, kind], -1))
        return self.choice(thing + context)[..., 0]

    def score_actions(self, own: Tensor, kind: Tensor, gain: Tensor, action_kind: Tensor) -> Tensor:
        """Preference for each of n actions, given the prey, as a logit: float [..., n].

        Args: own: float [..., 2], `nearness_features` of the hunter; kind: float [..., k];
        gain: float [..., n], how much nearer each action brings it; action_kind: float [n, 2 + k].
        """
        prey = torch.cat([own, kind], -1)[..., None, :].expand(*gain.shape, -1)
        gain = gain.clamp(-3, 3)[..., None]
        features = [prey, gain, (gain > 0).float(), action_kind.expand(*prey.shape[:-1], -1)]
        return self.action(torch.cat(features, -1))[..., 0]

    def action_logprobs(self, features: BoardFeatures) -> Tensor:
        """log p(action | observation, tick, behaviour): float [B, C, n]."""
        own = nearness_features(features.own_nearness)
        rival = nearness_features(features.rival_nearness)
        kind = features.kind
        illegal = ~features.action_mask[:, None]
        context = self.behaviour_context(features.tick, features.other_cells)
        hidden = self.context(context)[:, :, None]  # [B, C, 1, hidden]
        prey_logits = self.score_prey(own[:, None], rival[:, None], kind[:, None], hidden)
        prey_logits = prey_logits.masked_fill(~features.present[:, None], MASKED)
        choice = torch.cat([prey_logits, self.nothing(context)], 2).softmax(2)  # [B, C, P + 1]
        gain = F.pad(features.nearness_gain, (0, 1 + self.kinds))  # [B, P, n]
        action_logits = self.score_actions(own, kind, gain, self.action_kind)
        action_logits = F.pad(action_logits, (0, 0, 0, 1))  # [B, P + 1, n], equal without a prey
        action_probs = action_logits.masked_fill(illegal, MASKED).softmax(2)
        if self.idle is None:
            probs = choice @ action_probs
        else:
            idle_logits = self.idle @ self.action_kind.T  # [C, n]
            idle_probs = idle_logits.expand(len(choice), -1, -1).masked_fill(illegal, MASKED).softmax(2)
            probs = choice[..., :-1] @ action_probs[:, :-1] + choice[..., -1:] * idle_probs
        return probs.clamp(min=MIN_PROB).log().masked_fill(illegal, MASKED)

    def forward(self, logprobs: Tensor, z: Tensor) -> Tensor:
        """logprobs: [B, C, n], of `action_logprobs`; z: float [B, z_size].

        Returns: log p(action | observation, tick, z), [B, n].
        """
        weight = self.mix(z).log_softmax(1)
        return torch.logsumexp(weight[:, :, None] + logprobs[:, : self.behaviours], 1)


def nearness_features(nearness: Tensor) -> Tensor:
    """[...] -> [..., 2]: the nearness, scaled, and whether it is the same cell."""
    return torch.stack([nearness / 8, (nearness == 0).float()], -1)


class Shortcut(nn.Module):
    """A linear map, which copies the cells, and a hidden layer, which corrects it."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.direct = nn.Linear(inputs, outputs)
        self.first = nn.Linear(inputs, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.direct(x) + self.last(F.relu(self.first(x)))


class VAEOutput(NamedTuple):
    """Outputs for B samples; None where the loss leaves a part untrained."""

    mean: Tensor  # [B, latent_dim], of z
    log_var: Tensor  # [B, latent_dim]
    action_logprobs: Tensor | None = None  # log p(action | observation, tick, z), [B, n]
    goal_logprobs: Tensor | None = None  # log p(action | observation, tick, goal), [B, goals, n]
    cell_logits: Tensor | None = None  # [B, 3 + k, K]

    def kl(self) -> Tensor:
        """KL(q(z) || unit Gaussian) in nats, [B, latent_dim]."""
        return 0.5 * (self.mean**2 + self.log_var.exp() - 1.0 - self.log_var)


class BeliefLaw(NamedTuple):
    """What a belief over goals assumes of hunters."""

    none: float
    """prior probability of none of the goals: uniform over legal actions; the goals share the rest equally"""
    hazard: float
    """probability that a hunter draws its behaviour again from the prior, each tick"""

    def prior(self, num_goals: int) -> Tensor:
        """float [num_goals + 1], the last one none."""
        goals = torch.full((num_goals,), (1.0 - self.none) / num_goals)
        return torch.cat([goals, torch.tensor([self.none])])


class VAE(nn.Module):
    """q(z | ...), p(observation | z) and the MOA head. K = height * width cells. z has two parts:

    The MOA head reads *z_agent*. With context `episode` it is inferred from the log posterior of the
    behaviours given the hunter's earlier actions (Bayes' rule, causal: a sum over the past); with
    `observation` from the nearest prey, the tick, and the prey and hunters that are left. The decoder
    reads *z_frame*, inferred from the frame. `--loss moa` needs only the first, `recon` only the second,
    and `both` gives z_agent a quarter of z: in one part, the frame's tens of nats would hide the tenths
    of a nat that distinguish the hunters.
    """

    belief_law = BeliefLaw(none=0.0, hazard=0.0)  # what a belief over its goals assumes; set once chosen

    def __init__(
        self,
        height: int,
        width: int,
        ticks: int,
        latent_dim: int = 16,
        loss: str = "moa",
        context: str = "episode",
        hidden: int = 32,
        frame_hidden: int = 512,
        behaviours: int = 4,
        kinds: int = GAME.kinds,
        goal_kinds: tuple[int, ...] = GAME.goal_kinds,
        free_goals: bool = False,
    ):
        """kinds, goal_kinds: of the game, the stag hunt's by default. free_goals: the behaviours are the goals.

        Raises: ValueError: no such kind.
        """
        super().__init__()
        if not 1 <= kinds <= MAX_KINDS or not all(-1 <= kind < kinds for kind in goal_kinds):
            raise ValueError(f"kinds, goal_kinds: expected at most {MAX_KINDS}, and -1 or one of them")
        self.sizes = dict(
            height=height,
            width=width,
            ticks=ticks,
            latent_dim=latent_dim,
            loss=loss,
            context=context,
            hidden=hidden,
            frame_hidden=frame_hidden,
            behaviours=behaviours,
            kinds=kinds,
            goal_kinds=goal_kinds,
        )
        if free_goals:  # else as in checkpoints that know no such size
            self.sizes["free_goals"] = True
        self.num_planes = len(OWN_PLANES) + kinds
        self.loss = loss
        self.context = context
        self.agent_dim = {"moa": latent_dim, "recon": 0, "both": max(1, latent_dim // 4)}[loss]
        frame_dim = latent_dim - self.agent_dim
        if loss != "recon":
            self.moa = MOA(
                height,
                width,
                ticks,
                self.agent_dim,
                behaviours,
                hidden,
                kinds,
                goal_kinds,
                free_goals=free_goals,
            )
            layers = [nn.Linear(behaviours, 2 * self.agent_dim)]
            if context == "observation":  # the layer above has been drawn: seeds keep their results
                first = nn.Linear(3 * self.moa.thing_kinds + 1 + self.moa.tick.embedding_dim, 64)
                layers = [first, nn.ReLU(), nn.Linear(64, 2 * self.agent_dim)]
            self.recogniser = nn.Sequential(*layers)
            nn.init.constant_(
                self.recogniser[-1].bias[self.agent_dim :], -5.0
            )  # z starts almost without noise
        if loss != "moa":
            cells = self.num_planes * height * width
            self.encoder = Shortcut(cells, frame_hidden, 2 * frame_dim)
            self.decoder = Shortcut(frame_dim, frame_hidden, cells)
            nn.init.constant_(self.encoder.last.bias[frame_dim:], -5.0)

    def forward(self, batch: Batch, noise: Tensor | None = None) -> VAEOutput:
        """noise: float [B, latent_dim], standard normal; None: z is its mean."""
        moments = []
        if self.loss != "recon":
            prey = self.moa.prey_nearness(batch.boards, batch.max_prey)
            features = self.moa.encode_board(batch.planes, batch.board, prey, batch.tick)
            logprobs = self.moa.action_logprobs(features)
            history = self.log_likelihood(logprobs, batch) if self.context == "episode" else None
            moments.append(self.encode_history(features, history))
        if self.loss != "moa":
            moments.append(self.encoder(batch.planes.flatten(1)))
        mean, log_var = self.moments(moments)
        z = mean if noise is None else mean + noise * (0.5 * log_var).exp()
        output = VAEOutput(mean, log_var)
        if self.loss != "recon":
            output = output._replace(
                action_logprobs=self.moa(logprobs, z[:, : self.agent_dim]),
                goal_logprobs=logprobs[:, self.moa.first_goal :],
            )
        if self.loss != "moa":
            output = output._replace(cell_logits=self.decode(z[:, self.agent_dim :]))
        return output

    def moments(self, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, each [B, latent_dim], from those of its parts."""
        means, log_vars = zip(*(part.chunk(2, 1) for part in parts), strict=True)
        return torch.cat(means, 1), torch.cat(log_vars, 1).clamp(-10.0, 10.0)

    def taken_logprobs(self, logprobs: Tensor, action: Tensor) -> Tensor:
        """log p(the action taken | observation, tick, behaviour), [B, behaviours]."""
        logprobs = logprobs[:, : self.moa.behaviours]
        return logprobs.gather(2, action[:, None, None].expand(-1, logprobs.shape[1], 1))[..., 0]

    def log_likelihood(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """log p(the hunter's actions before this tick | behaviour), [B, behaviours].

        Boards are encoded without padding; only these few numbers are laid out by hunter and tick.
        """
        taken = self.taken_logprobs(logprobs, batch.action)
        by_tick = taken.new_zeros(batch.num_trajectories, batch.num_ticks + 1, taken.shape[1])
        by_tick = by_tick.index_put((batch.trajectory_id, batch.tick + 1), taken)
        return by_tick.cumsum(1)[batch.trajectory_id, batch.tick]

    def encode_history(self, features: BoardFeatures | None, history: Tensor | None) -> Tensor:
        """Mean and log variance of z_agent, [B, 2 agent_dim]; history: what `log_likelihood` returns, or
        None: from one board."""
        if history is not None:
            return self.recogniser(history.log_softmax(1).clamp(min=MIN_LOG_POSTERIOR))
        nearness = features.own_nearness[..., None]
        nearest = torch.where(features.kind > 0, nearness, UNREACHABLE).amax(1)  # [B, k], by kind
        counts = (features.kind * features.present.float()[..., None]).sum(1)
        seen = [nearest / 8, (nearest == 0).float(), counts / 4, features.other_cells / 4]
        tick = self.moa.tick(features.tick.clamp(max=self.moa.ticks - 1))
        return self.recogniser(torch.cat([*seen, tick], 1))

    def decode(self, z_frame: Tensor) -> Tensor:
        """Logits of each cell being 1, [B, 3 + k, K]."""
        return self.decoder(z_frame).unflatten(1, (self.num_planes, -1))


class PlainVAE(nn.Module):
    """A VAE that knows no game: any planes, any actions, and no moves, prey, legality or symmetries.

    One convolution is applied again and again (a learnt gate decides what passes a cell), so that what
    lies far away can reach a cell. Attention that is learnt from the planes finds the place to read: what
    lies around it makes the *features* of a tick. They give the actions of `behaviours`, and of goals.
    z mixes the behaviours, as in `MOA`; q(z | history) reads a GRU over the ticks before: what the hunter
    saw (the features), what it did, and how likely each behaviour was to do so.
    """

    loss = "moa"

    def __init__(
        self,
        height: int,
        width: int,
        planes: int,
        actions: int,
        goals: int,
        latent_dim: int = 16,
        context: str = "episode",
        channels: int = 32,
        turns: int = 6,
        hidden: int = 128,
        memory: int = 64,
        behaviours: int = 4,
        dropout: float = 0.1,
        view_dropout: float = 0.2,
    ):
        """planes, actions, goals: how many there are. view_dropout: of what lies around the place of attention."""
        super().__init__()
        self.sizes = dict(
            height=height,
            width=width,
            planes=planes,
            actions=actions,
            goals=goals,
            latent_dim=latent_dim,
            context=context,
            channels=channels,
            turns=turns,
            hidden=hidden,
            memory=memory,
            behaviours=behaviours,
            dropout=dropout,
            view_dropout=view_dropout,
        )
        self.context = context
        self.turns = turns
        self.behaviours = behaviours
        self.num_actions = actions
        self.board = (height, width)
        self.attention = nn.Conv2d(planes, 1, 1)
        self.stem = nn.Conv2d(planes + 1, channels, 3, padding=1)
        self.gate = nn.Conv2d(planes + 1, channels, 1)
        nn.init.constant_(self.gate.bias, 2.0)  # open
        self.spread = nn.Conv2d(channels, channels, 3, padding=1)
        views = 9 * channels + (2 * height - 1) * (2 * width - 1) * (planes + 1)
        # Most parameters read these views: without dropout there, they learn the training boards by heart.
        self.view_dropout = nn.Dropout(view_dropout)
        self.features = nn.Sequential(nn.Linear(views, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.heads = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, (behaviours + goals) * actions),
        )
        self.history = nn.GRU(hidden + actions + behaviours, memory, batch_first=True)
        self.recogniser = nn.Linear(hidden if context == "observation" else memory, 2 * latent_dim)
        nn.init.constant_(self.recogniser.bias[latent_dim:], -5.0)  # z starts almost without noise
        self.mix = nn.Linear(latent_dim, behaviours)

    def forward(self, batch: Batch, noise: Tensor | None = None) -> VAEOutput:
        """noise: float [B, latent_dim], standard normal; None: z is its mean."""
        features = self.encode_planes(batch.planes)
        logprobs = self.heads(features).unflatten(1, (-1, self.num_actions)).log_softmax(2)
        history = features
        if self.context == "episode":
            history = self.encode_history(features, logprobs[:, : self.behaviours], batch)
        mean, log_var = self.recogniser(history).chunk(2, 1)
        log_var = log_var.clamp(-10.0, 10.0)
        z = mean if noise is None else mean + noise * (0.5 * log_var).exp()
        weight = self.mix(z).log_softmax(1)
        action_logprobs = torch.logsumexp(weight[:, :, None] + logprobs[:, : self.behaviours], 1)
        goal_logprobs = logprobs[:, self.behaviours :] if self.sizes["goals"] else None
        return VAEOutput(mean, log_var, action_logprobs, goal_logprobs)

    def encode_planes(self, planes: Tensor) -> Tensor:
        """Planes of one tick, float [B, P, K] -> features, [B, hidden]."""
        planes = planes.unflatten(2, self.board)
        attention = (LOGIT_SCALE * self.attention(planes)).flatten(1).softmax(1)
        planes = F.pad(planes, (0, 0, 0, 0, 0, 1), value=1.0)  # a plane of ones: the padding shows the border
        planes = planes.contiguous(memory_format=torch.channels_last)
        gate = self.gate(planes).sigmoid()
        stem = self.stem(planes)
        hidden = F.relu(stem) * gate
        for _ in range(self.turns):
            hidden = F.relu(self.spread(hidden) + stem) * gate
        height, width = self.board
        near = self.look_around(attention, hidden, 1, 1)
        far = self.look_around(attention, planes, height - 1, width - 1)
        return self.features(self.view_dropout(torch.cat([near, far], 1)))

    def look_around(self, attention: Tensor, maps: Tensor, rows: int, columns: int) -> Tensor:
        """What lies so many cells around the place of attention (float [B, K]) on maps [B, C, H, W]: by offset, flat."""
        shifted = F.unfold(
            attention.unflatten(1, (1, *self.board)),
            (2 * rows + 1, 2 * columns + 1),
            padding=(rows, columns),
        )  # [B, offsets, K]
        return (shifted @ maps.flatten(2).transpose(1, 2)).flatten(1)

    def encode_history(self, features: Tensor, logprobs: Tensor, batch: Batch) -> Tensor:
        """The GRU's state before each tick: [B, memory]. logprobs: of the behaviours, [B, behaviours, n]."""
        taken = logprobs.gather(2, batch.action[:, None, None].expand(-1, self.behaviours, 1))[..., 0]
        did = F.one_hot(batch.action, self.num_actions).float()
        ticks = torch.cat([features, did, taken], 1)
        by_tick = ticks.new_zeros(batch.num_trajectories, batch.num_ticks + 1, ticks.shape[1])
        by_tick = by_tick.index_put((batch.trajectory_id, batch.tick + 1), ticks)
        states, _ = self.history(by_tick[:, :-1])
        return states[batch.trajectory_id, batch.tick]


# ---- losses


def loss_sums(output: VAEOutput, batch: Batch, mixed_goals: bool = False) -> dict[str, Tensor]:
    """Sums over a batch in nats by name; 0 for what is not trained.

    `moa`: actions given z; `goal`: actions given the goal, where it is known; `recon`: frames; `kl`.
    mixed_goals: a hunter has any of the goals, all equally likely, an episode long.
    """
    zero = output.mean.new_zeros(())
    sums = dict(moa=zero, goal=zero, recon=zero, kl=output.kl().sum())
    if output.action_logprobs is not None:
        sums["moa"] = F.nll_loss(output.action_logprobs, batch.action, reduction="sum")
    if output.goal_logprobs is not None and mixed_goals:
        sums["goal"] = mixture_nll(output.goal_logprobs, batch)
    elif output.goal_logprobs is not None:
        goal = batch.goal.clamp(min=0)[:, None, None].expand(-1, 1, output.goal_logprobs.shape[2])
        by_goal = output.goal_logprobs.gather(1, goal)[:, 0]  # [B, n]
        taken = by_goal.gather(1, batch.action[:, None])[:, 0]
        sums["goal"] = -(taken * (batch.goal >= 0)).sum()
    if output.cell_logits is not None:
        cells = F.binary_cross_entropy_with_logits(output.cell_logits, batch.planes, reduction="sum")
        sums["recon"] = cells
    return sums


def mixture_nll(goal_logprobs: Tensor, batch: Batch) -> Tensor:
    """-log p(all that hunters did) in nats, summed; each has one of the goals. goal_logprobs: [B, goals, n]."""
    goals = goal_logprobs.shape[1]
    taken = goal_logprobs.gather(2, batch.action[:, None, None].expand(-1, goals, 1))[..., 0]
    by_hunter = taken.new_full((batch.num_trajectories, goals), -math.log(goals))
    return -by_hunter.index_add(0, batch.trajectory_id, taken).logsumexp(1).sum()


# ---- checkpoints


def check_ranges(args: Args) -> None:
    """Raises: tracking.UsageError: a setting is out of its range."""
    if args.loss == "both" and args.latent_dim == 1:
        raise tracking.UsageError("--latent-dim: must be at least 2 with --loss both, a part for each")
    if args.network == "plain" and args.loss != "moa":
        raise tracking.UsageError(
            f"--network plain: it has no decoder for --loss {args.loss}: use --loss moa"
        )
    if args.goals == "free" and (args.network == "plain" or args.loss == "recon"):
        raise tracking.UsageError("--goals free: needs --network moa with --loss moa or both")
    least = dict(epochs=1, batch_size=1, latent_dim=1, torch_threads=1, seed=0)
    tracking.check_ranges(args, least, above_zero=("learning_rate",), from_zero=("kl_coef",))


def make_optimizer(model: VAE | PlainVAE, args: Args) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)


def saved_vae(sizes: dict, args: Args) -> VAE | PlainVAE:
    """The network of a checkpoint's sizes; what is a setting, too, is as there."""
    settings = dict(latent_dim=args.latent_dim, context=args.context)
    if args.network == "plain":
        return PlainVAE(**sizes | settings)
    return VAE(**sizes | settings | dict(loss=args.loss))


def network_sizes(args: Args, samples: Samples, free_goals: int = 0) -> dict:
    """What `saved_vae` makes a new network of: sizes that follow from the data. free_goals: how many; 0: other goals."""
    game = samples.game
    height, width = samples.frames.shape[2:]
    sizes = dict(height=height, width=width)
    if args.network == "plain":
        return sizes | dict(planes=len(game.planes), actions=game.num_actions, goals=len(game.goals))
    ticks = int(samples.ticks.max()) + 1
    sizes |= dict(ticks=ticks, kinds=game.kinds, goal_kinds=game.goal_kinds)
    return sizes | dict(behaviours=free_goals, free_goals=True) if free_goals else sizes


def are_action_counts(value: Any, saved: dict) -> bool:
    return checkpoints.counts_of(any_game_of(saved["game"]).num_actions).fits(value, saved)


def is_belief_law(value: Any, saved: dict) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or tuple(value) != BeliefLaw._fields:
        return False
    return all(isinstance(number, float) and 0.0 <= number < 1.0 for number in value.values())


def val_nll(row: dict) -> float:
    """What chooses the best epoch. row: of the history."""
    return row.get("val_nll", 0.0) + row.get("val_recon_nll", 0.0)


def older_sizes(saved: dict) -> dict:
    """Sizes that older checkpoints lack, for those of a plain network and of others."""
    if saved["args"].get("network") == "plain":
        return dict(view_dropout=0.0)
    return {} if "game" in saved else STAG_HUNT


CHECKPOINT = tracking.Schema(
    kind=KIND,
    args_type=Args,
    check_args=check_ranges,
    make_model=saved_vae,
    make_optimizer=make_optimizer,
    counter="epoch",
    length=lambda args: args.epochs,
    worst=math.inf,
    scores=lambda saved: [val_nll(row) for row in saved["history"]],
    judge="python pretrain_vae.py --evaluate",
    fields=dict(
        step=checkpoints.OPTIMIZER_STEP,
        fingerprint=checkpoints.FINGERPRINT,
        goals_trained=checkpoints.WHOLE_NUMBER,
        game=checkpoints.Expected("the description of a game that the network is for", is_of_network),
        rules=checkpoints.RULES,
        strategies=checkpoints.NAMES,
        table=checkpoints.Expected("counts of the strategies, or None", observers.is_table),
        pairs=checkpoints.Expected(
            "counts of two actions that follow one another, or None", observers.are_pairs
        ),
        counts=checkpoints.Expected("whole numbers of at least 0, one for each action", are_action_counts),
        belief=checkpoints.Expected("two probabilities, none and hazard, or None", is_belief_law),
    ),
    added={
        "": dict(game=GAME.metadata(), pairs=None, belief=None),
        "args": dict(goals="recorded", network="moa") | tracking.UNTRACKED,
    },
    added_sizes=older_sizes,
)


def load_vae(folder: str | Path, device: str | torch.device = "cpu") -> tuple[VAE | PlainVAE, dict]:
    """The network of a run's best checkpoint, in eval mode, and the checkpoint.

    Its `goals_trained` and `rules` tell whether the goal heads can be used. Raises: tracking.UsageError.
    """
    model, checkpoint = tracking.load_model(tracking.find_folder(folder) / "best.pt", CHECKPOINT, device)
    if checkpoint["belief"]:
        model.belief_law = BeliefLaw(**checkpoint["belief"])
    return model, checkpoint


# ---- the MOA while a game is played, one tick at a time


def check_moa(model: nn.Module) -> None:
    """Raises: ValueError: it has no `MOA`."""
    if not isinstance(model, VAE):
        raise ValueError(NOT_PLAIN)
    if model.loss == "recon":
        raise ValueError(NO_MOA)


def in_chunks(function: Callable[..., Tensor], size: int, tensors: tuple) -> Tensor:
    """`function` of `size` rows of the tensors at a time."""
    chunks = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks])


class OpponentTracker:
    """Beliefs about C co-players on each of B boards. Raises: ValueError: the VAE has no MOA head.

    Example:
        >>> tracker = OpponentTracker(model, num_boards=1024, num_co_players=3)
        >>> action_probs, z, goal_probs = tracker.predict(obs, tick)  # before the tick
        >>> tracker.update(actions)  # after it
        >>> tracker.reset(dones)  # boards where a new episode begins
    """

    def __init__(self, model: VAE, num_boards: int, num_co_players: int):
        check_moa(model)
        self.model = model.eval()
        self.shape = (num_boards, num_co_players)
        self.device = next(model.parameters()).device
        rows = num_boards * num_co_players
        self.log_likelihood = torch.zeros(rows, model.moa.behaviours, device=self.device)
        self._forget_boards()

    @torch.no_grad()
    def predict(self, obs: Tensor, tick: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Args: obs: uint8 [B, C, 3 + k, H, W], as each co-player sees the board; tick: int64 [B].

        Returns: p(action) float [B, C, n], z at its mean [B, C, latent_dim], p(action | goal)
        [B, C, goals, n]. A co-player that has left plays STAY. Raises: ValueError: a wrong shape.
        """
        model, moa = self.model, self.model.moa
        B, C = self.shape
        expected = (B, C, model.num_planes, moa.height, moa.width)
        if obs.shape != expected or tick.shape != (B,):
            found = f"{tuple(obs.shape)} and {tuple(tick.shape)}"
            raise ValueError(f"obs, tick: expected shapes {expected} and {(B,)}, got {found}")
        obs = obs.to(self.device).flatten(3).float()  # [B, C, 3 + k, K]
        planes = obs.flatten(0, 1)  # [BC, 3 + k, K]
        board = torch.arange(B, device=self.device).repeat_interleave(C)
        tick = tick.to(self.device).repeat_interleave(C)
        self._update_boards(obs[:, 0, BLOCKS:])
        features = moa.encode_board(planes, board, self.prey, tick)
        self.logprobs = in_chunks(
            lambda *chunk: moa.action_logprobs(BoardFeatures(*chunk)), TRACKER_CHUNK, features
        )
        self.action_mask = features.action_mask
        self.gone = planes[:, SELF].amax(1) == 0
        history = self.log_likelihood if model.context == "episode" else None
        moments = [model.encode_history(features, history)]
        if model.loss == "both":
            moments.append(model.encoder(planes.flatten(1)))
        z, _ = model.moments(moments)
        action_logprobs = moa(self.logprobs, z[:, : model.agent_dim])
        goal_logprobs = self.logprobs[:, moa.first_goal :]
        probs = torch.cat([action_logprobs[:, None], goal_logprobs], 1).exp()  # [BC, 1 + goals, n]
        stay = F.one_hot(torch.tensor(STAY, device=self.device), moa.num_actions).float()
        probs = torch.where(self.gone[:, None, None], stay, probs).unflatten(0, (B, C))
        return probs[:, :, 0], z.unflatten(0, (B, C)), probs[:, :, 1:]

    @torch.no_grad()
    def update(self, actions: Tensor) -> None:
        """actions: int [B, C], taken after the last `predict`; an illegal one counts as STAY."""
        if self.logprobs is None:
            raise ValueError("no prediction to update: call predict() before update()")
        if actions.shape != self.shape:
            raise ValueError(f"actions: expected shape {self.shape}, got {tuple(actions.shape)}")
        actions = actions.to(self.device).flatten().long()
        legal = self.action_mask.gather(1, actions[:, None])[:, 0]
        taken = self.model.taken_logprobs(self.logprobs, torch.where(legal, actions, STAY))
        self.log_likelihood += taken.masked_fill(self.gone[:, None], 0.0)

    def reset(self, mask: Tensor) -> None:
        """Forget the co-players of these boards (bool [B]): a new episode begins."""
        self.log_likelihood[mask.to(self.device).repeat_interleave(self.shape[1])] = 0.0

    def state_dict(self) -> dict[str, Tensor]:
        return dict(log_likelihood=self.log_likelihood)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Prey maps are forgotten: their padding depends on earlier boards, and affects rounding."""
        self.log_likelihood = state["log_likelihood"].clone()
        self._forget_boards()

    def _forget_boards(self) -> None:
        self.boards = None  # float [B, 1 + k, K], of the last tick
        self.prey = None  # the PreyMaps of these boards
        self.logprobs = None  # [BC, behaviours + goals, n], of the last prediction

    def _update_boards(self, boards: Tensor) -> None:
        """Prey maps of the boards [B, 1 + k, K] that changed since the last tick."""
        moa = self.model.moa
        num_prey = max(1, int(boards[:, 1:].sum(1).clamp(max=1).sum(1).amax()))
        if self.boards is None or num_prey > self.prey.kind.shape[1]:
            self.boards = boards.clone()
            self.prey = moa.prey_nearness(boards, num_prey)
            return
        changed = (boards != self.boards).flatten(1).any(1)
        new = moa.prey_nearness(boards[changed], self.prey.kind.shape[1])
        for values, new_values in zip(self.prey, new, strict=True):
            values[changed] = new_values
        self.boards[changed] = boards[changed]


class Views(NamedTuple):
    """What each of A hunters sees in n states: N = A * n columns, seat after seat, so that the last axis is the long one.
    Indices are int32. With free goals the A hunters follow the P prey, as one more kind of it."""

    cells: Tensor  # [N]
    nearness_at: Tensor  # [P, N], where the map of each prey begins in `TabularMOA.nearness`
    between_at: Tensor  # [A, N], of each hunter, in `TabularMOA.between`; [0, N] where goals are not free
    kind: Tensor  # [P]
    own: Tensor  # [P, N], how near it is to each prey, an index into `TabularMOA.values`
    rival: Tensor  # [P, N], the same of the other hunter that is nearest to the prey
    present: Tensor  # bool [P, N]
    legal: Tensor  # float [5 + k, N]
    context: Tensor  # [N], tick and how many cells hold other hunters: a row of the scores of a goal's prey


class TabularMOA:
    """p(action | goal) of A hunters on U boards whose blocks and prey seldom change, by lookup.

    Nearness takes few values (so many steps, each at its learnt cost): the scorers of `MOA` are called
    once with all of them, and the results looked up (`python -m benchmarks.online` has how fast).
    Raises: ValueError: the VAE has no MOA head.
    """

    def __init__(self, model: VAE, blocks: Tensor, prey: Tensor, prey_counts: tuple[int, ...]):
        """blocks: bool [U, K]; prey: int64 [U, P], kind by kind, K for what is gone; prey_counts: of each kind."""
        check_moa(model)
        U, P = prey.shape
        K = blocks.shape[1]
        self.moa = model.eval().moa
        self.num_goals = self.moa.num_goals  # as a goal it is none at all
        self.prey_counts = prey_counts
        self.kind = torch.arange(self.moa.kinds).repeat_interleave(torch.tensor(prey_counts)).int()  # [P]
        self.around = self.moa.neighbours[:, :4].T.int().contiguous()  # [4, K + 1]
        self.values = torch.tensor([UNREACHABLE])  # the nearness values, rising
        self.layouts: dict[bytes, int] = {}  # blocks and prey -> their row in what follows
        self.nearness = torch.zeros(0, P, K + 1, dtype=torch.int16)  # index into `values`
        self.free = torch.zeros(0, K + 1, dtype=torch.int32)  # bit d: a step in direction d is legal
        self.walls: dict[bytes, int] = {}  # with free goals: blocks -> their row in `between`
        self.wall_of = torch.zeros(0, dtype=torch.int32)  # of each layout
        self.between = torch.zeros(0, K + 1, K + 1, dtype=torch.int16)  # as `nearness`, to each cell
        self.layout = torch.zeros(U, dtype=torch.int32)  # of each board
        self.update(torch.arange(U), blocks, prey)

    @torch.no_grad()
    def update(self, boards: Tensor, blocks: Tensor, prey: Tensor) -> None:
        """New boards, or moved prey. What boards have been before is remembered.

        Args: boards: int64 [m]; blocks: bool [m, K]; prey: int64 [m, P].
        """
        if len(self.layouts) > 2 * len(self.layout) + REMEMBERED:
            self._forget_layouts()
        keys = np.concatenate(
            [np.packbits(blocks.numpy(), 1), prey.numpy().astype(np.int16).view(np.uint8)], 1
        )
        keys = [key.tobytes() for key in keys]
        first = {key: i for i, key in enumerate(keys) if key not in self.layouts}
        if first:
            new = torch.tensor(list(first.values()))
            known = len(self.nearness)
            self._add_layouts(blocks[new], prey[new])
            self.layouts |= zip(first, range(known, len(self.nearness)), strict=True)
        self.layout[boards] = torch.tensor([self.layouts[key] for key in keys], dtype=torch.int32)

    def _forget_layouts(self) -> None:
        """Those on which no board is."""
        used, self.layout = self.layout.unique(return_inverse=True)
        self.layout = self.layout.int()
        self.nearness = self.nearness[used]
        self.free = self.free[used]
        if self.moa.free_goals:
            walls, wall_of = self.wall_of[used].unique(return_inverse=True)
            self.wall_of = wall_of.int()
            self.between = self.between[walls]
            new_row = {old: new for new, old in enumerate(walls.tolist())}
            self.walls = {key: new_row[row] for key, row in self.walls.items() if row in new_row}
        rows = {old: new for new, old in enumerate(used.tolist())}
        self.layouts = {key: rows[row] for key, row in self.layouts.items() if row in rows}

    def _add_layouts(self, blocks: Tensor, prey: Tensor) -> None:
        index = self._index_of(self._maps_to(blocks, prey))
        self.nearness = torch.cat([self.nearness, index.to(torch.int16)])
        open_to = F.pad(~blocks, (0, 1)).int()
        free = torch.zeros_like(open_to)
        for way, cells in enumerate(self.around):
            free |= open_to[:, cells] << way
        self.free = torch.cat([self.free, free])
        if self.moa.free_goals:
            self._add_walls(blocks)

    def _add_walls(self, blocks: Tensor) -> None:
        """Maps to every cell, as a hunter can follow another to any. They are kept by blocks alone: prey that move or are
        gone leave them as they are."""
        K = blocks.shape[1]
        keys = [key.tobytes() for key in np.packbits(blocks.numpy(), 1)]
        first = {key: i for i, key in enumerate(keys) if key not in self.walls}
        if first:
            cells = torch.arange(K + 1).expand(len(first), -1)
            index = self._index_of(self._maps_to(blocks[list(first.values())], cells))
            self.walls |= zip(first, range(len(self.between), len(self.between) + len(first)), strict=True)
            self.between = torch.cat([self.between, index.to(torch.int16)])
        walls = torch.tensor([self.walls[key] for key in keys], dtype=torch.int32)
        self.wall_of = torch.cat([self.wall_of, walls])

    def _maps_to(self, blocks: Tensor, cells: Tensor) -> Tensor:
        """How near each cell is to each of these, int64 [m, P], K for none: float [m, P, K + 1]. blocks: bool [m, K]."""
        (m, P), K = cells.shape, blocks.shape[1]
        one_prey = F.one_hot(cells, K + 1)[..., :K].float()  # [m, P, K]
        blocked = blocks[:, None].expand(-1, P, -1).float()
        # Nearness is the same for all kinds: each prey alone, as one of the first kind.
        planes = torch.stack([blocked, one_prey], 2).flatten(0, 1)
        planes = F.pad(planes, (0, 0, 0, self.moa.kinds - 1))  # [mP, 1 + k, K]
        nearness = in_chunks(lambda part: self.moa.prey_nearness(part, 1).nearness, TABLE_CHUNK, (planes,))
        return nearness.view(m, P, K + 1)

    def _index_of(self, nearness: Tensor) -> Tensor:
        """The index of each value, of the same shape; new values are added."""
        values = torch.cat([self.values, nearness.unique()]).unique()
        if len(values) > len(self.values):
            new_index = torch.searchsorted(values, self.values)
            self.nearness = new_index[self.nearness.long()].to(torch.int16)
            self.between = new_index[self.between.long()].to(torch.int16)
            self.values = values
            self._tabulate_actions()
        return torch.searchsorted(values, nearness)

    def probs(
        self, board: Tensor, hunters: Tensor, prey: Tensor, tick: Tensor, goals: Tensor | None = None
    ) -> Tensor:
        """p(action | goal) of each hunter in n states; one that has left plays STAY.

        Args:
            board: int64 [n], which of the U boards; tick: int64 [n];
            hunters: int64 [n, A]; prey: int64 [n, P]: cells, K for what is gone;
            goals: int64 [n, A], the number of goals: none, uniform over legal actions; None: all of them.
        Returns: p(action), float [n, A, 5 + k], or [n, A, goals, 5 + k]. Raises: ValueError: no such goal.
        """
        states = (board, hunters, prey, tick)
        if goals is None:
            return in_chunks(self._probs, TABLE_CHUNK, states)
        self._check_goals(goals)
        return in_chunks(self._probs, TABLE_CHUNK, (*states, goals))

    def sample(self, board: Tensor, hunters: Tensor, prey: Tensor, tick: Tensor, goals: Tensor) -> Tensor:
        """Actions drawn from `probs`, int64 [n, A]: first which prey a hunter goes for, then a step, given that prey."""
        self._check_goals(goals)
        return in_chunks(self._sample, SAMPLE_CHUNK, (board, hunters, prey, tick, goals))

    def _check_goals(self, goals: Tensor) -> None:
        none = self.num_goals
        if goals.numel() and (goals.amin() < 0 or goals.amax() > none):
            found = sorted(set(goals.unique().tolist()) - {*range(none + 1)})
            raise ValueError(f"goals: expected 0 to {none - 1}, or {none} (none), got {found}")

    def _tabulate_actions(self) -> None:
        """Weights of the actions, given the prey: exp of `MOA.score_actions` up to a factor."""
        moa, values = self.moa, self.values
        k = moa.thing_kinds
        kind = torch.eye(k)[:, None].expand(-1, len(values), -1)  # [k, V, k]
        own = nearness_features(values.expand(k, -1))  # [k, V, 2]
        gain = (values - values[:, None]).expand(k, -1, -1)  # [k, V, V]
        steps = moa.score_actions(own, kind, gain, moa.action_kind[:1].expand(len(values), -1))
        zero = torch.zeros(k, len(values), 1)
        still_kinds = moa.action_kind[STAY:].split(1)
        still = torch.cat([moa.score_actions(own, kind, zero, action_kind) for action_kind in still_kinds], 2)
        highest = torch.maximum(steps.max(), still.max())
        self.step_weights = (steps - highest).exp()  # [k, own nearness, after the step]
        self.still_weights = (still - highest).exp()  # [k, own nearness, 1 + k]
        self.tick_rows = torch.full(
            (moa.ticks,), -1, dtype=torch.int32
        )  # of the ticks that have been asked for
        self.prey_scores = torch.zeros(
            0
        )  # float [ticks asked for, G goals, A other cells, k, V own, V a rival's]
        self.none_scores = torch.zeros(0)  # float [ticks asked for, G, A]
        if moa.idle is not None:
            idle = moa.idle[moa.first_goal :]
            self.idle_weights = (idle - idle.amax(1, keepdim=True)).exp() @ moa.action_kind.T  # [G, 5 + k]

    def _tabulate_prey(self, tick: int, hunters: int) -> tuple[Tensor, Tensor]:
        """Scores of the prey at a tick, `MOA.score_prey`, and of no prey.

        Returns: float [G goals, other cells, k, own nearness, a rival's] and [G, other cells].
        """
        moa, k, V = self.moa, self.moa.thing_kinds, len(self.values)
        other_cells = torch.arange(hunters)[:, None].float()
        context = moa.behaviour_context(torch.full((hunters,), tick), other_cells)
        context = context[:, moa.first_goal :].transpose(0, 1).contiguous()  # [G, hunters, code + 9]
        own = nearness_features(self.values[:, None].expand(k, V, V))
        rival = nearness_features(self.values.expand(k, V, V))
        kind = torch.eye(k)[:, None, None].expand(-1, V, V, -1)
        hidden = moa.context(context).flatten(0, 1)  # one after another: less memory
        prey = torch.stack([moa.score_prey(own, rival, kind, one) for one in hidden])
        prey = prey.view(-1, hunters, k, V, V)
        none = moa.nothing(context)[..., 0]
        return prey, none

    def _rows_of(self, tick: Tensor, hunters: int) -> Tensor:
        """int32 [n], the row of each tick in the scores of the prey, which are computed when a tick is first asked for."""
        tick = tick.clamp(max=self.moa.ticks - 1)
        rows = self.tick_rows.index_select(0, tick)
        new = tick[rows < 0].unique().tolist()
        if not new:
            return rows
        scores = [self._tabulate_prey(now, hunters) for now in new]
        first = len(self.none_scores)
        self.tick_rows[new] = torch.arange(first, first + len(new), dtype=torch.int32)
        prey, none = (torch.stack(parts) for parts in zip(*scores, strict=True))
        self.prey_scores = torch.cat([self.prey_scores, prey]) if first else prey
        self.none_scores = torch.cat([self.none_scores, none]) if first else none
        return self.tick_rows.index_select(0, tick)

    def _views(self, board: Tensor, hunters: Tensor, prey: Tensor, tick: Tensor) -> Views:
        n, A = hunters.shape
        _, P, width = self.nearness.shape
        layout = self.layout.index_select(0, board)
        cells = hunters.T.int().flatten()
        nearness_at = torch.arange(P, dtype=torch.int32)[:, None] * width + (layout * (P * width)).repeat(A)
        own = look_up(self.nearness, nearness_at + cells).int().view(P, A, n)
        present = (prey < width - 1).T.repeat(1, A)  # [P, N]
        seats = own.unbind(1)
        before = list(itertools.accumulate(seats[:-1], torch.maximum, initial=torch.zeros_like(seats[0])))
        after = list(itertools.accumulate(seats[:0:-1], torch.maximum, initial=torch.zeros_like(seats[0])))
        rival = [
            torch.maximum(*both) for both in zip(before, reversed(after), strict=True)
        ]  # 0 is UNREACHABLE

        own = own.view(P, -1)
        bits = look_up(self.free, (layout * width).repeat(A) + cells)
        steps = bits >> torch.arange(4, dtype=torch.int32)[:, None] & 1
        on_prey = (own == len(self.values) - 1) & present
        takes = [kind.any(0, keepdim=True) for kind in on_prey.split(self.prey_counts)]
        legal = torch.cat([steps, torch.ones_like(steps[:1]), *takes]).float()
        context = self._rows_of(tick, A).repeat(A) * (self.num_goals * A) + count_cells(hunters, width - 1)
        rival = torch.stack(rival, 1).view(P, -1)
        between_at = cells.new_zeros(0, A * n)
        views = Views(cells, nearness_at, between_at, self.kind, own, rival, present, legal, context)
        return self._add_hunters(views, layout, hunters) if self.moa.free_goals else views

    def _add_hunters(self, views: Views, layout: Tensor, hunters: Tensor) -> Views:
        """As `MOA.add_hunters`: each hunter is one more thing to go for. layout: int32 [n]; hunters: int64 [n, A]."""
        A, width = hunters.shape[1], self.between.shape[2]
        wall = self.wall_of.index_select(0, layout)
        between_at = ((wall * width + hunters.T.int()) * width).repeat(1, A)  # [A, N]
        own = look_up(self.between, between_at + views.cells).int()
        return views._replace(
            between_at=between_at,
            kind=F.pad(self.kind, (0, A), value=self.moa.kinds),
            own=torch.cat([views.own, own]),
            rival=F.pad(views.rival, (0, 0, 0, A)),  # 0, UNREACHABLE: no other hunter goes for hunters
            present=torch.cat([views.present, others_apart(hunters, width - 1)]),
        )

    def _choice(self, views: Views, goal: Tensor | int) -> Tensor:
        """Weights of the prey, given a goal, and of none: float [P + 1, N], not normalised. goal: int32 [N], or of all."""
        A, k, V = self.prey_scores.shape[2:5]
        row = views.context + goal * A  # [N]
        column = (views.kind[:, None] * V + views.own) * V + views.rival  # [P, N]
        at = (row.long() if self.prey_scores.numel() >= 2**31 else row) * (k * V * V) + column
        prey = look_up(self.prey_scores, at).masked_fill(~views.present, -math.inf)
        scores = torch.cat([prey, look_up(self.none_scores, row)[None]])
        # Of a trained network they differ by more than exp can hold: the largest is each hunter's own.
        return (scores - scores.amax(0)).exp()

    def _around(self, views: Views, maps: Tensor, at: Tensor) -> Tensor:
        """Nearness above, below, left and right: int32 [.., 4, N]. at: int32 [.., N], where the prey's begins in `maps`."""
        ways = torch.arange(4, dtype=torch.int32)[:, None] * self.around.shape[1]
        return look_up(maps, at[..., None, :] + look_up(self.around, ways + views.cells)).int()

    def _steps(self, kind: Tensor, own: Tensor, near: Tensor) -> Tensor:
        """Weights of all actions, given a prey: float [.., 5 + k, N]. kind, own: int32 [.., N], of the prey; near: of
        `_around`."""
        V = len(self.values)
        row = kind * V + own
        steps = look_up(self.step_weights, row[..., None, :] * V + near)
        still = self.still_weights.flatten(0, 1).T.contiguous()  # [1 + k, kV]
        at = row[..., None, :] + torch.arange(len(still), dtype=torch.int32)[:, None] * still.shape[1]
        return torch.cat([steps, look_up(still, at)], -2)

    @torch.no_grad()
    def _probs(
        self, board: Tensor, hunters: Tensor, prey: Tensor, tick: Tensor, goals: Tensor | None = None
    ) -> Tensor:
        """`probs` of one chunk."""
        n, A = hunters.shape
        views = self._views(board, hunters, prey, tick)
        near = self._around(views, self.nearness, views.nearness_at)
        if self.moa.free_goals:
            near = torch.cat([near, self._around(views, self.between, views.between_at)])
        weights = self._steps(views.kind[:, None].expand_as(views.own), views.own, near)
        weights = torch.cat(
            [weights, torch.ones_like(views.legal)[None]]
        )  # [P + 1, 5 + k, N], equal without a prey
        weights = (weights + MIN_WEIGHT) * views.legal
        action_probs = weights / weights.sum(1, keepdim=True)
        if goals is None:
            each = [self._mixture(views, action_probs, goal) for goal in range(self.num_goals)]
            probs = torch.stack(each, 1)  # [5 + k, G, N]
            return probs.view(*probs.shape[:2], A, n).permute(3, 2, 1, 0)
        goal = goals.T.flatten().int()
        probs = self._mixture(views, action_probs, goal.clamp(max=self.num_goals - 1))
        uniform = views.legal / views.legal.sum(0)
        probs = torch.where(goal == self.num_goals, uniform, probs)
        return probs.view(-1, A, n).permute(2, 1, 0)

    def _mixture(self, views: Views, action_probs: Tensor, goal: Tensor | int) -> Tensor:
        """p(action | goal), float [5 + k, N]. action_probs: float [P + 1, 5 + k, N], given each prey, and none."""
        choice = self._choice(views, goal)
        choice = choice / choice.sum(0)
        if self.moa.idle is not None:
            idle = self.idle_weights.T[:, goal].reshape(len(views.legal), -1) * views.legal
            action_probs = torch.cat([action_probs[:-1], (idle / idle.sum(0))[None]])
        probs = (choice[:, None] * action_probs).sum(0)
        stay = F.one_hot(torch.tensor(STAY), len(probs)).float()[:, None]
        return torch.where(views.cells == self.nearness.shape[2] - 1, stay, probs)

    @torch.no_grad()
    def _sample(self, board: Tensor, hunters: Tensor, prey: Tensor, tick: Tensor, goals: Tensor) -> Tensor:
        """`sample` of one chunk."""
        n, A = hunters.shape
        P = self.nearness.shape[1]
        views = self._views(board, hunters, prey, tick)
        goal = goals.T.flatten().int()
        known_goal = goal.clamp(max=self.num_goals - 1)
        choice = draw_row(self._choice(views, known_goal))  # int32 [N], the last row: none
        chosen = choice.clamp(max=len(views.own) - 1)
        columns = torch.arange(A * n, dtype=torch.int32)
        prey_at = look_up(views.nearness_at, chosen.clamp(max=P - 1) * (A * n) + columns)
        near = self._around(views, self.nearness, prey_at)
        if self.moa.free_goals:
            hunter_at = look_up(views.between_at, (chosen - P).clamp(min=0) * (A * n) + columns)
            near = torch.where(chosen < P, near, self._around(views, self.between, hunter_at))
        own = look_up(views.own, chosen * (A * n) + columns)
        weights = self._steps(look_up(views.kind, chosen), own, near)
        idle = 1.0 if self.moa.idle is None else self.idle_weights.T[:, known_goal]
        weights = torch.where(choice == len(views.own), idle, weights + MIN_WEIGHT)
        has_none = goal == self.num_goals
        if has_none.any():
            weights = weights.masked_fill_(has_none, 1.0)
        weights *= views.legal
        return draw_row(weights).view(A, n).T.long()


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Entries of the flattened table, in the shape of the index. `index_select` is faster than indexing."""
    return table.view(-1).index_select(0, index.view(-1)).view(index.shape)


def draw_row(weights: Tensor) -> Tensor:
    """A row of each column, drawn in proportion to its weight: float [r, N] -> int32 [N]."""
    cumulative = list(itertools.accumulate(weights))
    # Below the sum also when rounded, as torch.rand is a multiple of 2**-24.
    threshold = torch.rand_like(cumulative[-1]) * cumulative[-1]
    row = torch.zeros_like(threshold, dtype=torch.int32)
    for below in cumulative[:-1]:
        row += below <= threshold
    return row


def count_cells(hunters: Tensor, gone: int) -> Tensor:
    """How many cells hold other hunters, int32 [A * n], seat after seat. hunters: int64 [n, A], cells, `gone` once left."""
    cells = hunters.T.int()  # [A, n]
    active = cells < gone
    first = list(active)  # whether a hunter is the first on its cell
    alone = list(active)
    for i, j in itertools.combinations(range(len(cells)), 2):
        differs = cells[i] != cells[j]
        first[j] = first[j] & differs
        alone[i] = alone[i] & differs
        alone[j] = alone[j] & differs
    return (torch.stack(first).sum(0, dtype=torch.int32) - torch.stack(alone).int()).flatten()


def others_apart(hunters: Tensor, gone: int) -> Tensor:
    """Whether hunter j is the first of the others on its cell, for hunter i: bool [j, A * n], seat i after seat. Arguments
    as of `count_cells`."""
    cells = hunters.T  # [A, n]
    A = len(cells)
    active = cells < gone
    others = ~torch.eye(A, dtype=torch.bool)
    earlier = torch.ones(A, A, dtype=torch.bool).triu(1)[..., None]  # [who, j, 1]
    covers = (cells[:, None] == cells) & active[:, None] & earlier  # [who, j, n]
    covered = (covers[:, :, None] & others[:, None, :, None]).any(0)  # [j, i, n]
    return (active[:, None] & others[..., None] & ~covered).flatten(1)


# ---- free goals: how many there are, and which a hunter has


class GoalEvidence(NamedTuple):
    """m actions of hunters among P things at most: prey, and other hunters, one kind more."""

    things: Tensor  # float [m, P, 5 (k + 1)], what the preference of a goal for a thing is linear in
    present: Tensor  # bool [m, P]
    thing_probs: Tensor  # float [m, P], p(action | the thing)
    idle_probs: Tensor  # float [m, 3], p(action | any legal one; a step or STAY; STAY)
    hunter: Tensor  # int64 [m], rising numbers of hunters from 0

    def take(self, chosen: Tensor) -> "GoalEvidence":
        """Of these hunters alone, int64 [h], whose numbers are then 0, 1, .. in their order."""
        number = torch.full((int(self.hunter.max()) + 1,), -1, device=chosen.device)
        number[chosen] = torch.arange(len(chosen), device=chosen.device)
        rows = (number[self.hunter] >= 0).nonzero()[:, 0]
        return GoalEvidence(*(part[rows] for part in self[:-1]), number[self.hunter[rows]])


class GoalMixture(nn.Module):
    """K goals that hunters have, an episode long, each in the simplest form of a behaviour of `MOA`.

    A goal chooses a thing, log-linear in its kind, how near it is to the hunter and to its rival, and whether each stands
    on it; goes there by a shortest path; takes it, or stays with it, if it is a hunter. Or it walks about, or stays. And
    with a probability of its own it does any legal action.
    """

    def __init__(self, preference: Tensor, idle: Tensor, share: Tensor):
        """preference: float [K, F], for things; idle: float [K, 3], logits of any action and of walking and staying;
        share: float [K], logits of how many hunters have each goal."""
        super().__init__()
        self.preference = nn.Parameter(preference.clone())
        self.idle = nn.Parameter(idle.clone())
        self.share = nn.Parameter(share.clone())

    @classmethod
    def random(cls, goals: int, kinds: int, seed: int) -> "GoalMixture":
        rng = torch.Generator().manual_seed(seed)
        spread = torch.tensor(PREFERENCE_SPREAD).repeat(kinds)
        preference = spread * torch.randn(goals, len(spread), generator=rng)
        return cls(preference, 0.5 * torch.randn(goals, 3, generator=rng), torch.zeros(goals))

    def without(self, goal: int) -> "GoalMixture":
        kept = torch.arange(len(self.share)) != goal
        return GoalMixture(*(parameter.detach()[kept] for parameter in self.parameters()))

    def forward(self, evidence: GoalEvidence) -> Tensor:
        """log p(a hunter has this goal, and does all that it did), float [H, K]."""
        things = evidence.things @ self.preference.T  # [m, P, K]
        things = things.masked_fill(~evidence.present[..., None], MASKED).transpose(1, 2)
        idle = self.idle[:, 1:].expand(len(things), -1, -1)
        choice = torch.cat([things, idle], 2).softmax(2)  # [m, K, P + 2]
        known_probs = torch.cat([evidence.thing_probs, evidence.idle_probs[:, 1:]], 1)  # [m, P + 2]
        chosen = (choice @ known_probs[..., None])[..., 0]  # [m, K]
        any_action = self.idle[:, 0].sigmoid()
        probs = chosen + any_action * (evidence.idle_probs[:, :1] - chosen)
        log_probs = probs.clamp(min=MIN_PROB).log()
        share = self.share.log_softmax(0).expand(int(evidence.hunter.max()) + 1, -1)
        return share.index_add(0, evidence.hunter, log_probs)


@torch.no_grad()
def goal_evidence(samples: Samples, batches: Batches, index: np.ndarray) -> Iterator[GoalEvidence]:
    """What the samples `index`, whole episodes, say about goals, some episodes at a time; hunters in order of `hunters`."""
    height, width = samples.frames.shape[2:]
    kinds = samples.game.kinds
    moa = MOA(height, width, 1, 1, 1, 1, kinds, free_goals=True).to(batches.frames.device)
    moa.step_costs.copy_(torch.tensor([math.log(math.e - 1), -UNREACHABLE]))  # 1 a step, and no diagonals
    arrival = torch.tensor([*range(STAY + 1, moa.num_actions), STAY])  # what to do with each kind
    arrival = F.one_hot(arrival, moa.num_actions).float().to(batches.frames.device)
    walks = torch.arange(moa.num_actions, device=arrival.device) <= STAY
    for groups in batches.shares(index, TABLE_CHUNK):
        batch = batches.take(groups)
        prey = moa.prey_nearness(batch.boards, batch.max_prey)
        features = moa.encode_board(batch.planes, batch.board, prey, batch.tick)
        nearer = (features.nearness_gain > 0.5) & features.action_mask[:, None, :4]  # [B, P, 4]
        steps = F.pad(nearer / nearer.sum(2, keepdim=True).clamp(min=1), (0, 1 + kinds))
        own, rival = features.own_nearness, features.rival_nearness
        thing_probs = torch.where((own == 0)[..., None], features.kind @ arrival, steps)  # [B, P, n]
        legal = features.action_mask
        stays = F.one_hot(torch.full_like(batch.action, STAY), moa.num_actions)
        idle = torch.stack([legal, legal & walks, stays], 1).float()
        probs = torch.cat([thing_probs, idle / idle.sum(2, keepdim=True)], 1)  # [B, P + 3, n]
        taken = probs.gather(2, batch.action[:, None, None].expand(-1, probs.shape[1], 1))[..., 0]
        near = [
            torch.ones_like(own),
            own.clamp(min=FARTHEST),
            (own == 0).float(),
            rival.clamp(min=FARTHEST),
            (rival == 0).float(),
        ]
        things = features.kind[..., None] * torch.stack(near, 2)[:, :, None]  # [B, P, k + 1, 5]
        yield GoalEvidence(
            things=things.flatten(2),
            present=features.present & (own > UNREACHABLE + 1),
            thing_probs=taken[:, :-3],
            idle_probs=taken[:, -3:],
            hunter=batch.trajectory_id.unique(return_inverse=True)[1],
        )


def first_evidence(samples: Samples, batches: Batches, index: np.ndarray) -> GoalEvidence:
    """Of the first `GOAL_HUNTERS` hunters or so of a split, whole episodes."""
    _, hunter = np.unique(samples.hunters[index], return_inverse=True)
    last = batches.group[index[hunter < GOAL_HUNTERS]].max()
    parts = list(goal_evidence(samples, batches, index[batches.group[index] <= last]))
    most = max(part.present.shape[1] for part in parts)
    columns: list[list[Tensor]] = [[] for _ in GoalEvidence._fields]
    hunters = 0
    for part in parts:
        more = most - part.present.shape[1]
        columns[0].append(F.pad(part.things, (0, 0, 0, more)))
        columns[1].append(F.pad(part.present, (0, more)))
        columns[2].append(F.pad(part.thing_probs, (0, more)))
        columns[3].append(part.idle_probs)
        columns[4].append(part.hunter + hunters)
        hunters += int(part.hunter.max()) + 1
    return GoalEvidence(*map(torch.cat, columns))


def fit_goals(mixture: GoalMixture, minibatches: list[GoalEvidence], steps: int) -> None:
    """Minimise the NLL of what hunters did."""
    optimizer = torch.optim.Adam(mixture.parameters(), GOAL_RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = GOAL_RATE * min(1.0, 2.0 - 2.0 * step / steps)
        loss = -mixture(minibatches[step % len(minibatches)]).logsumexp(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class FoundGoals(NamedTuple):
    mixture: GoalMixture
    nll: dict[int, float]  # of a hunter, on the validation split, by number of goals


def find_goals(samples: Samples, batches: Batches, seed: int) -> FoundGoals:
    """The smallest number of goals whose held-out NLL is within one standard error of the best, of 1 to `MAX_GOALS`.

    Too many are fitted, from random preferences; then the one that costs least is taken away, and the others are fitted
    again, until one is left. The standard error is that of the mean difference between the same hunters' NLLs.
    """
    train, val = (first_evidence(samples, batches, samples.splits[name]) for name in ("train", "val"))
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(train.hunter.max()) + 1, generator=rng).to(train.hunter.device)
    minibatches = [train.take(chosen) for chosen in order.chunk(math.ceil(len(order) / GOAL_BATCH))]
    mixture = GoalMixture.random(MAX_GOALS, samples.game.kinds + 1, seed).to(train.hunter.device)
    fit_goals(mixture, minibatches, GOAL_STEPS)
    found = {}
    nll = {}
    for goals in range(MAX_GOALS, 0, -1):
        with torch.no_grad():
            joint = mixture(train)
            nll[goals] = -mixture(val).logsumexp(1).double().cpu().numpy()
        found[goals] = mixture
        if goals > 1:
            rest = torch.stack([joint[:, torch.arange(goals) != goal].logsumexp(1) for goal in range(goals)])
            mixture = mixture.without(int(rest.mean(1).argmax()))
            fit_goals(mixture, minibatches, GOAL_REFIT_STEPS)
    means = {goals: float(nll[goals].mean()) for goals in sorted(nll)}
    return FoundGoals(found[smallest_sufficient(nll)], means)


def smallest_sufficient(nll: dict[int, np.ndarray]) -> int:
    """The smallest number within one standard error of the best one's mean. nll: by number, float [H]."""
    best = min(nll, key=lambda number: nll[number].mean())
    for number in sorted(nll):
        excess = nll[number] - nll[best]
        if excess.mean() <= excess.std() / math.sqrt(len(excess)):
            return number
    return best


@torch.no_grad()
def likeliest_goals(mixture: GoalMixture, samples: Samples, batches: Batches) -> np.ndarray:
    """int64 [M]: the goal of each sample's hunter that is likeliest by all that it did."""
    parts = goal_evidence(samples, batches, samples.splits["all"])
    return torch.cat([mixture(part).argmax(1)[part.hunter] for part in parts]).cpu().numpy()


# ---- the belief: which goal a hunter has, or none of them


def filter_step(log_belief: Tensor, log_likelihood: Tensor, hazard: Tensor | float, prior: Tensor) -> Tensor:
    """One tick of the forward filter of a hidden Markov model (Rabiner 1989): Bayes' rule, then the changes of mind.

    A change is a draw from the prior, as in the fixed-share rule (Herbster & Warmuth 1998).
    Args: log_belief: float [.., C], before the action, up to a constant; log_likelihood: float [.., C], log p(action |
    behaviour); hazard: in [0, 1], broadcasts to [.., 1]; prior: probabilities, broadcasts to [.., C].
    Returns: the log belief before the next action, float [.., C].
    """
    hazard = torch.as_tensor(hazard)
    log_posterior = (log_belief + log_likelihood).log_softmax(-1)
    return torch.logaddexp(log_posterior + torch.log1p(-hazard), (hazard * prior).log())


def filter_beliefs(
    log_likelihood: Tensor, hunter: Tensor, tick: Tensor, hazard: Tensor | float, prior: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The log beliefs before each of m actions of H hunters, tick by tick.

    Args: log_likelihood: float [m, C]; hunter: int64 [m], below H; tick: int64 [m]; hazard and prior: floats [.., 1, 1]
    and [.., 1, C], of several laws at once.
    Yields: which of the m they are, int64 [n], and float [.., n, C].
    """
    log_belief = prior.log().expand(*prior.shape[:-2], int(hunter.max()) + 1, -1).clone()
    for rows in tick.argsort(stable=True).split(tick.bincount().tolist()):
        before = log_belief[..., hunter[rows], :]
        yield rows, before
        log_belief[..., hunter[rows], :] = filter_step(before, log_likelihood[rows], hazard, prior)


def taken_log(probs: np.ndarray, actions: np.ndarray) -> Tensor:
    """log p(action), float [m, C]. probs: [m, C, n]; actions: int [m]."""
    taken = np.take_along_axis(probs, actions[:, None, None], 2)[..., 0]
    return torch.as_tensor(taken).clamp(min=MIN_PROB).log()


def add_none(goal_probs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """p(action | behaviour): the goals, then none of them. float32 [m, G, n], [m, n] -> [m, G + 1, n]."""
    return np.concatenate([goal_probs, uniform[:, None]], 1)


def choose_belief_law(
    probs: np.ndarray, actions: np.ndarray, hunter: np.ndarray, tick: np.ndarray, seed: int
) -> BeliefLaw:
    """The law that predicts hunters without a goal and those that change theirs best, of the laws that cost at most
    `MAX_COST` nats on the recorded actions of a validation split.

    No file needs to hold such hunters: on the boards of recorded ones, actions are drawn uniformly from the legal ones,
    and, from a random tick on, from another goal's. Boards do not follow these actions; a belief needs no such boards.
    Args: probs: float32 [m, G + 1, n], of `add_none`; actions, hunter, tick: int64 [m]; a hunter's ticks rise.
    """
    hunter = np.unique(hunter, return_inverse=True)[1]
    some = hunter < BELIEF_HUNTERS
    probs, actions, hunter, tick = probs[some], actions[some], hunter[some], tick[some]
    num_goals = probs.shape[1] - 1
    laws = [BeliefLaw(none, hazard) for none in NONE_PRIORS for hazard in HAZARDS]
    hazard = torch.tensor([law.hazard for law in laws])[:, None, None]
    prior = torch.stack([law.prior(num_goals) for law in laws])[:, None]

    def mean_nll(actions: np.ndarray) -> Tensor:
        """Of each law, float64 [L]."""
        log_likelihood = taken_log(probs, actions)
        nll = torch.zeros(len(laws), dtype=torch.float64)
        for rows, log_belief in filter_beliefs(
            *map(torch.as_tensor, (log_likelihood, hunter, tick)), hazard, prior
        ):
            nll -= (log_belief + log_likelihood[rows]).logsumexp(-1).sum(-1)
        return nll / len(actions)

    rng = np.random.default_rng(seed)
    recorded = mean_nll(actions)
    nll = mean_nll(draw_actions(probs[:, -1], rng))
    nll += mean_nll(turned_actions(probs[:, :-1], actions, hunter, rng))
    nll[recorded - recorded[0] > MAX_COST] = math.inf  # the first law has neither
    return laws[int(nll.argmin())]


def draw_actions(probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [m], of probs [m, n]."""
    cumulative = probs.cumsum(1)
    threshold = rng.random((len(probs), 1)) * cumulative[:, -1:]
    return (threshold < cumulative).argmax(1)


def turned_actions(
    goal_probs: np.ndarray, actions: np.ndarray, hunter: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """What hunters would do if they changed their goal at a random tick, not their first. int64 [m].

    A hunter's own goal is the likeliest by all that it did; the next one is any other.
    """
    num_goals = goal_probs.shape[1]
    length = np.bincount(hunter)
    goal = np.zeros((len(length), num_goals))
    np.add.at(goal, hunter, taken_log(goal_probs, actions).numpy())
    next_goal = (goal.argmax(1) + rng.integers(1, max(2, num_goals), len(length))) % num_goals
    turn = 1 + rng.integers(0, np.maximum(1, length - 1))  # [H]
    order = np.argsort(hunter, kind="stable")  # by hunter, and by tick
    age = np.empty(len(hunter), np.int64)
    age[order] = np.arange(len(hunter)) - np.repeat(length.cumsum() - length, length)
    drawn = draw_actions(goal_probs[np.arange(len(hunter)), next_goal[hunter]], rng)
    return np.where(age >= turn[hunter], drawn, actions)


def predict_by_belief(
    probs: np.ndarray, actions: np.ndarray, hunter: np.ndarray, tick: np.ndarray, law: BeliefLaw
) -> tuple[np.ndarray, np.ndarray]:
    """The belief before each action, float32 [m, G + 1], and its prediction, [m, n]. Arguments as of `choose_belief_law`."""
    log_likelihood = taken_log(probs, actions)
    hunter = np.unique(hunter, return_inverse=True)[1]
    prior = law.prior(probs.shape[1] - 1)[None]
    belief = torch.empty_like(log_likelihood)
    for rows, log_belief in filter_beliefs(
        *map(torch.as_tensor, (log_likelihood, hunter, tick)), law.hazard, prior
    ):
        belief[rows] = log_belief.exp()
    return belief.numpy(), np.einsum("mc,mcn->mn", belief.numpy(), probs)


# ---- evaluation


def validate(
    model: VAE | PlainVAE, samples: Samples, batches: Batches, observed: dict, epoch: int, folder: Path
) -> tuple[dict[str, float | None], vae_reports.Predictions]:
    """Evaluate the validation split after an epoch, print and save; None for what is untrained."""
    val = samples.splits["val"]
    predictions = vae_reports.predict(model.eval(), batches, val)
    metrics = vae_reports.validation(samples, batches, val, predictions)
    if predictions.probs is None:
        print("[MOA] untrained")
        return metrics, predictions
    targets, names = samples.actions[val], samples.game.actions
    rows, confusion = reports.action_table(predictions.probs, targets, observed, names)
    csv = folder / f"moa_eval_epoch{epoch}.csv"
    npz = csv.with_suffix(".npz")
    tracking.write_csv(csv, rows)
    save_arrays(npz, vae_reports.validation_arrays(samples, val, predictions, confusion))
    print(f"[MOA] epoch {epoch}: top1={metrics['top1']:.4f}, top3={metrics['top3']:.4f}, saved:")
    print(f"       {csv.as_posix()}\n       {npz.as_posix()}")
    return metrics, predictions


def belief_arguments(
    samples: Samples, index: np.ndarray, goal_probs: np.ndarray, uniform: np.ndarray
) -> tuple:
    """What `predict_by_belief` and `choose_belief_law` are asked of the samples `index`."""
    return add_none(goal_probs, uniform), samples.actions[index], samples.hunters[index], samples.ticks[index]


def judge(
    model: VAE | PlainVAE, samples: Samples, batches: Batches, index: np.ndarray, checkpoint: dict
) -> dict:
    """`vae_reports.evaluate` of the samples `index`, with the belief by the checkpoint's law beside the exact one."""
    predictions = vae_reports.predict(model, batches, index)
    observed = vae_reports.baselines(samples, index, checkpoint)
    belief = None
    if checkpoint["belief"] and samples.has_episodes:
        law = BeliefLaw(**checkpoint["belief"])
        asked = belief_arguments(samples, index, predictions.goal_probs, observed["uniform"])
        belief, observed["belief"] = predict_by_belief(*asked, law)
        if exact := observers.sample_filter(samples, index, *law):
            _, observed["bayes_filter"] = exact
    return vae_reports.evaluate(samples, batches, index, checkpoint, predictions, observed, belief)


def draw_figures(
    model: VAE | PlainVAE,
    samples: Samples,
    batches: Batches,
    report: dict,
    history: list[dict],
    observed: dict,
) -> dict[str, figures.Figure]:
    """All figures of a run by file name.

    report: of the test split; history: rows of loss.csv; observed: the observers on the validation split.
    """
    val, test = samples.splits["val"], samples.splits["test"]
    targets = samples.actions[val]
    bounds = {name: scores.score(probs, targets)["nll"] for name, probs in observed.items()}
    actions = {name: samples.actions[samples.splits[name]] for name in ("train", "val", "test")}
    game = samples.game
    drawn = figures.of_vae(history, bounds, actions, game.actions)
    if model.loss != "recon":
        drawn |= figures.of_actions(report["arrays"], game.actions, f"test split, {len(test):,} samples")
    if model.loss != "moa":
        groups = np.unique(batches.group[test])
        groups = groups[:: max(1, len(groups) // 8)][:8]
        frames = vae_reports.reconstructions(model, batches, groups)
        titles = [f"sample {i}" for i in batches.start[groups]]
        drawn["reconstructions"] = figures.planes(frames, game.planes, titles)
    return drawn


def show_report(report: dict, checkpoint: dict, where: str) -> None:
    print(f"\n[VAE] epoch {checkpoint['epoch'] - 1} (best on validation) on {where}")
    for line in vae_reports.lines(report):
        print(f"       {line}", flush=True)


def evaluate_run(args: Args, device: torch.device) -> None:
    """Evaluate a finished run on the whole of another file, none of which it was trained on."""
    start = time.perf_counter()
    folder = tracking.find_folder(tracking.network_run(args.evaluate, "vae_ckpts", "pretrain_vae.py"))
    model, checkpoint = load_vae(folder, device)
    samples = read_samples(args, checkpoint)
    game = any_game_of(checkpoint["game"])
    size = "x".join(str(cells) for cells in samples.frames.shape[2:])
    own_size = f"{model.sizes['height']}x{model.sizes['width']}"
    problem = None
    if samples.game != game:
        problem = f"expected a file of {game.id}, as the checkpoint's, found one of {samples.game.id}"
    elif size != own_size:
        problem = f"obs: expected boards of {own_size}, as the checkpoint's, found {size}"
    elif samples.fingerprint == checkpoint["fingerprint"]:
        problem = "the run was trained on this file; judge it on another, such as --data fresh"
    elif model.context == "episode" and model.loss != "recon" and not samples.has_episodes:
        problem = "expected episodes, as --context episode needs, found rows"
    if problem:
        raise tracking.UsageError(f"{args.data}: {problem}")
    goals = checkpoint["args"]["goals"]
    if goals == "captured" and samples.strategy_names:
        goals = "recorded"
    batches = make_batches(samples, device, model.loss, goals)
    report = judge(model, samples, batches, samples.splits["all"], checkpoint)
    show_report(report, checkpoint, f"the whole of {args.data}: {len(samples)} samples")
    path = folder / f"evaluate_{Path(samples.path).stem}.json"
    arrays = report.pop("arrays")
    if arrays["probs"] is not None:
        predicted = (arrays["probs"], arrays["targets"], arrays["observed"])
        rows, _ = reports.action_table(*predicted, game.actions)
        tracking.write_csv(path.with_suffix(".csv"), rows)
    seconds = time.perf_counter() - start
    metrics = dict(
        run=checkpoint["run"],
        seed=checkpoint["args"]["seed"],
        args=checkpoint["args"],
        data=args.data,
        seconds=seconds,
        samples_per_second=len(samples) / seconds,
        samples=dict(train=0, val=0, test=len(samples)),
    )
    tracking.write_json(path, metrics | report)
    print(f"[VAE] saved: {path.as_posix()}")


# ---- training


def read_samples(args: Args, judged: dict | None = None) -> Samples:
    """The samples of --data. Rows that do not follow one another set `args.context` to `observation`.

    judged: the checkpoint that they judge: `fresh` and `unmasked` are files of its rules.
    """
    path, assumed = (training_file(args.data), []) if judged is None else judged_file(args.data, judged)
    samples = load_samples(path, args.layout, split=judged is None)
    if judged is None and args.network != "plain" and isinstance(samples.game, OtherGame):
        message = f"{samples.game.id} is not of the family that --network {args.network} knows"
        raise tracking.UsageError(f"{args.data}: {message}: use --network plain")
    print(f"[VAE] Loaded {len(samples)} samples.")
    for line in assumed + samples.inferred:
        print(f"[DATA] inferred: {line}")
    if args.goals == "free" and judged is None and not samples.has_episodes:
        raise tracking.UsageError(f"{args.data}: expected episodes, as --goals free needs, found rows")
    if args.context == "episode" and not samples.has_episodes and judged is None:
        print("[DATA] no episodes in this file, so no history: --context observation")
        args.context = "observation"
    return samples


def make_batches(samples: Samples, device: torch.device, loss: str, goals: str = "recorded") -> Batches:
    """Whole episodes; frames alone do not need them, and are better shuffled one by one. goals: as --goals; who has which
    of the free ones is not known."""
    if goals == "free":
        labels = np.full(len(samples), -1)
    else:
        labels = captured_goals(samples) if goals == "captured" else recorded_goals(samples)
    return Batches.of(samples, device, labels, whole_episodes=loss != "recon")


def goal_counts(samples: Samples, goals: np.ndarray) -> str:
    """How many hunters have each goal, for people. goals: int64 [M], -1: none."""
    _, first = np.unique(np.stack([samples.episodes, samples.seats]), axis=1, return_index=True)
    counts = np.bincount(goals[first] + 1, minlength=len(samples.game.goals) + 1).tolist()
    named = [f"{count} {goal}" for goal, count in zip(samples.game.goals, counts[1:], strict=True)]
    return f"{', '.join(named)}; {counts[0]} without a goal, of whom goal heads learn nothing"


def describe_goals(found: FoundGoals, samples: Samples, goals: np.ndarray) -> list[str]:
    """For people. goals: int64 [M], of each sample's hunter."""
    number = len(found.mixture.share)
    nll = ", ".join(f"{count}: {value:.3f}" for count, value in found.nll.items())
    lines = [
        f"goals without labels: {number}; held-out nats a hunter, by number: {nll}",
    ]
    _, first = np.unique(samples.hunters, return_index=True)
    taken = captured_goals(samples)[first]
    for goal in range(number):
        counts = np.bincount(taken[goals[first] == goal] + 1, minlength=len(samples.game.goals) + 1).tolist()
        named = zip((*samples.game.goals, "nothing"), counts[1:] + counts[:1], strict=True)
        what = ", ".join(f"{count} {name}" for name, count in named)
        lines.append(f"goal {goal}: {sum(counts)} hunters, by what they took in the end: {what}")
    return lines


def count_goals(batches: Batches, index: np.ndarray, num_goals: int) -> int:
    """Samples with a known goal among `index`; 0 if one goal has none: its head stays untrained."""
    counts = [int((batches.goals[index] == goal).sum()) for goal in range(num_goals)]
    return sum(counts) if all(counts) else 0


def untrained_parts(args: Args, goals_trained: int, game: Game | OtherGame) -> list[str]:
    """What stays untrained, and why, for people."""
    lines = []
    if args.loss != "both" and args.network != "plain":
        part = {"moa": "the decoder", "recon": "the MOA head"}[args.loss]
        lines.append(f"--loss {args.loss}: {part} stays untrained")
    if args.loss != "recon" and not goals_trained and game.goals:
        missing = f"the file does not record hunters of each goal ({', '.join(game.goals.values())})"
        if args.goals == "captured":
            missing = f"no hunters of one goal ({', '.join(game.goals)}) by what they took"
        users = "beliefs, imagination and planning in hop_ppo.py need them"
        lines.append(f"{missing}: the goal heads stay untrained; {users}")
    return lines


def rates(step: int, args: Args, steps_per_epoch: int) -> tuple[float, float]:
    """Learning rate, rising and falling linearly, and KL weight, warmed up over an epoch."""
    rise = min(1.0, (step + 1) / 100)
    fall = 1.0 - step / (args.epochs * steps_per_epoch)
    warm_up = min(1.0, (step + 1) / steps_per_epoch)
    return args.learning_rate * rise * fall, args.kl_coef * warm_up


def train_epoch(
    ddp_model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    index: np.ndarray,
    args: Args,
    step: int,
    world: tracking.World,
    writer: Any,
) -> tuple[dict[str, float], int]:
    """Train once on the samples `index`, their groups in random order, after `step` steps.

    Every process of `world` draws the randomness of whole batches and takes its share of the groups: the
    number of processes changes results only by rounding. Returns: the mean losses by name, the steps.
    """
    device = batches.frames.device
    ddp_model.train()
    groups = np.unique(batches.group[index])
    groups = groups[torch.randperm(len(groups)).numpy()]
    num_batches = min(len(groups), math.ceil(len(index) / args.batch_size))
    epoch_sums: dict[str, Tensor] = defaultdict(float)
    log_sums: dict[str, Tensor] = defaultdict(float)  # since the last log
    progress = tqdm(total=len(index), unit=" samples", leave=False, mininterval=1.0, disable=world.rank > 0)
    for done, minibatch in enumerate(np.array_split(groups, num_batches), 1):
        learning_rate, kl_coef = rates(step, args, num_batches)
        optimizer.param_groups[0]["lr"] = learning_rate
        count = int(batches.length[minibatch].sum())
        goal_count = max(1, int(batches.goal_known[minibatch].sum()))
        symmetry = None
        if args.network == "moa":
            symmetry = torch.randint(len(batches.cell_permutation), (len(minibatch),), device=device)
        noise = torch.randn(count, args.latent_dim, device=device)
        if world.size > 1:
            mine = np.arange(len(minibatch)) % world.size == world.rank
            own_samples = np.repeat(mine, batches.length[minibatch])
            noise = noise[torch.as_tensor(own_samples, device=device)]
            minibatch = minibatch[mine]
            symmetry = None if symmetry is None else symmetry[torch.as_tensor(mine, device=device)]
        batch = batches.take(minibatch, symmetry)
        # The goals that were found teach the heads for half of the run; then these say themselves who has which.
        mixed_goals = args.goals == "free" and step >= num_batches * args.epochs / 2
        sums = loss_sums(ddp_model(batch, noise), batch, mixed_goals)

        # Losses in nats per action, and per frame
        losses = {name: value / count for name, value in sums.items()}
        losses["goal"] = sums["goal"] / goal_count
        loss = losses["moa"] + losses["goal"] + losses["recon"] + kl_coef * losses["kl"]
        losses["total"] = loss

        optimizer.zero_grad()
        (loss * world.size).backward()  # the processes' gradients are averaged
        optimizer.step()
        step += 1
        progress.update(count)

        for name, value in losses.items():
            epoch_sums[name] += value.detach()
            log_sums[name] += value.detach()
        if done % LOG_STEPS == 0 or done == num_batches:
            means = mean_losses(log_sums, (done - 1) % LOG_STEPS + 1, world)
            tracking.log_scalars(writer, "losses", means | {"kl_coef": kl_coef}, step)
            tracking.log_scalars(writer, "charts", {"learning_rate": learning_rate}, step)
            log_sums.clear()
    progress.close()
    return mean_losses(epoch_sums, num_batches, world), step


def mean_losses(sums: dict[str, Tensor], steps: int, world: tracking.World) -> dict[str, float]:
    """Over `steps` minibatches of all processes; read from the device at once."""
    means = world.sum(torch.stack(list(sums.values()))) / steps
    return dict(zip(sums, means.tolist(), strict=True))


def check_memory(sizes: dict, args: Args, rows: int) -> None:
    """sizes: of the network; rows: whose z are kept. Raises: MemoryError: this machine cannot hold them."""
    with torch.device("meta"):  # sizes without numbers
        weights = sum(parameter.numel() for parameter in saved_vae(sizes, args).parameters())
    floats = 4 * weights + rows * args.latent_dim  # weights, gradients, two moments; z
    memory.require(4 * floats, f"--latent-dim {args.latent_dim}")


def train(args: Args, world: tracking.World, resumed: dict | None) -> None:
    start = time.perf_counter()
    device = world.device

    # Data
    with world.one_first():  # the default file is collected once
        samples = read_samples(args)
    if resumed and resumed["fingerprint"] != samples.fingerprint:
        raise tracking.UsageError(
            f"{args.data}: not the data that the run was trained on; name that file with --data"
        )
    splits = samples.splits
    sizes = {name: len(splits[name]) for name in ("train", "val", "test")}
    counts = f"{sizes['train']} train, {sizes['val']} val, {sizes['test']} test samples"
    held_out = "an epoch's figures are held out, of the val split, the last ones of the test split"
    print(f"[DATA] split {samples.split_law}: {counts}; {held_out}")
    table = observers.training_table(samples)
    pairs = observers.training_pairs(samples)
    observed = observers.predictions(samples, splits["val"], table, pairs)

    # Model
    tracking.seed_everything(args.seed, args.torch_deterministic)
    batches = make_batches(samples, device, args.loss, args.goals)
    if args.goals == "captured":
        print(
            f"[DATA] hunters by what they took in the end: {goal_counts(samples, batches.goals.cpu().numpy())}"
        )
    found = None
    if args.goals == "free":
        found = find_goals(samples, batches, args.seed)
        goals = likeliest_goals(found.mixture, samples, batches)
        batches.set_goals(goals)
        for line in describe_goals(found, samples, goals):
            print(f"[DATA] {line}")
    game = samples.game
    num_goals = len(found.mixture.share) if found else len(game.goals)
    network = resumed["sizes"] if resumed else network_sizes(args, samples, num_goals if found else 0)
    check_memory(network, args, max(sizes.values()))
    model = saved_vae(network, args).to(device)
    optimizer = make_optimizer(model, args)

    # Run folder, checkpoints and log
    state = dict(epoch=0, step=0, best=math.inf, history=[], seconds=0.0, train_seconds=0.0, belief=None)
    if resumed:
        folder = tracking.find_folder(args.resume)
        run_name = resumed["run"]
        state = {key: resumed[key] for key in state}
        tracking.restore(folder / "last.pt", resumed, model, optimizer)
    else:
        run_name = tracking.new_run(args.exp_name, "vae_ckpts") if world.rank == 0 else ""
        folder = tracking.lock_run(Path("vae_ckpts") / run_name / f"dim{args.latent_dim}")
    settings = asdict(args) | {"resume": ""}  # a resumed run's files equal an uninterrupted one's
    goals_trained = 0 if args.loss == "recon" else count_goals(batches, splits["train"], len(game.goals))
    if found:
        goals_trained = sizes["train"]
    action_counts = np.bincount(samples.actions[splits["train"]], minlength=game.num_actions)
    fixed = dict(
        kind=KIND,
        run=run_name,
        args=settings,
        fingerprint=samples.fingerprint,
        goals_trained=goals_trained,
        game=game.metadata(),
        rules=(samples.trajectories.metadata.get("rules") or None) if samples.trajectories else None,
        table=None if table is None else torch.as_tensor(table),
        strategies=samples.strategy_names,
        counts=action_counts.tolist(),
        pairs=None if pairs is None else torch.as_tensor(pairs),
    )

    def save(name: str) -> None:
        now = state | dict(seconds=state["seconds"] + time.perf_counter() - start)
        tracking.save_checkpoint(folder / name, fixed | now | tracking.learnt(model, optimizer))

    purge_step = state["step"] + 1 if resumed else None
    writer = tracking.open_log(run_name, settings, purge_step=purge_step) if world.rank == 0 else None
    if not resumed and world.rank == 0:
        save("last.pt")  # so that a run killed in its first epoch can be resumed too
    for line in untrained_parts(args, goals_trained, game):
        print(f"[VAE] {line}")
    print(f"[VAE] on {device}")
    print("[VAE] Begin offline training...", flush=True)

    # Epochs: train, validate, save
    ddp_model = world.wrap(model)  # averages the gradients of several processes
    for epoch in range(state["epoch"], args.epochs):
        print(f"\n[Epoch {epoch + 1}/{args.epochs}]", flush=True)
        epoch_start = time.perf_counter()
        losses, state["step"] = train_epoch(
            ddp_model, optimizer, batches, splits["train"], args, state["step"], world, writer
        )
        epoch_seconds = time.perf_counter() - epoch_start
        state["train_seconds"] += epoch_seconds
        tracking.check_finite(losses, optimizer, f"epoch {epoch}")
        state["epoch"] = epoch + 1
        if world.rank > 0:  # the first process evaluates and saves
            continue
        tracking.log_scalars(writer, "charts", {"SPS": sizes["train"] / epoch_seconds}, state["step"])
        val, predictions = validate(model, samples, batches, observed, epoch, folder)
        tracking.log_scalars(writer, "val", val, state["step"])
        names = [name for name in ("moa", "recon") if args.loss in (name, "both")]
        if val.get("goal_nll") is not None:
            names.append("goal")
        row = {name: losses[name] for name in (*names, "kl", "total")}
        row |= {f"val_{key}": value for key, value in val.items() if value is not None}
        print("[VAE] " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()), flush=True)
        state["history"].append(dict(epoch=epoch) | row)
        tracking.write_csv(folder / "loss.csv", state["history"])
        tracking.check_finite({"val nll": val_nll(row)}, optimizer, f"epoch {epoch}")
        if val_nll(row) < state["best"]:
            state["best"] = val_nll(row)
            if goals_trained and samples.has_episodes:
                asked = belief_arguments(samples, splits["val"], predictions.goal_probs, observed["uniform"])
                state["belief"] = choose_belief_law(*asked, args.seed)._asdict()
            save("best.pt")
        save("last.pt")
    if world.rank > 0:
        return

    print(f"\n[VAE] model saved to: {folder.as_posix()}")

    # Test the best checkpoint
    model, best = load_vae(folder, device)
    report = judge(model, samples, batches, splits["test"], best)
    show_report(report, best, f"the test split: {sizes['test']} samples, none trained on")
    drawn = draw_figures(model, samples, batches, report, state["history"], observed)
    final_step = state["step"] + 1  # a resumed run removes what is logged later than its checkpoint
    for name, figure in drawn.items():
        figures.save(figure, folder / f"{name}.png", writer, final_step)
    if args.loss != "recon":
        tracking.write_csv(folder / "moa_breakdown.csv", reports.breakdown(report))
    report.pop("arrays")
    tracking.log_scalars(writer, "test", report["test"], final_step)
    seconds = state["seconds"] + time.perf_counter() - start
    speed = args.epochs * sizes["train"] / state["train_seconds"]
    metrics = dict(
        run=run_name,
        seed=args.seed,
        args=settings,
        seconds=seconds,
        samples_per_second=speed,
        samples=sizes,
    )
    if found:
        metrics["free_goals"] = dict(number=num_goals, nll=found.nll)
    tracking.write_json(folder / "metrics.json", metrics | report)
    writer.close()
    where = f"figures and metrics.json: {folder.as_posix()}"
    print(f"[VAE] {seconds:.0f} s, {speed:.0f} samples/s in training; {where}")


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    check_ranges(args)
    tracking.check_wandb(args)
    args.evaluate = tracking.named_run(args.evaluate, "vae_ckpts", "pretrain_vae.py")
    args.resume = tracking.named_run(args.resume, "vae_ckpts", "pretrain_vae.py", "last.pt")
    resumed = None
    if args.resume:
        folder = tracking.lock_run(tracking.find_folder(args.resume))
        resumed = tracking.load_checkpoint(folder / "last.pt", CHECKPOINT)
        free = ("resume", "data", "cuda", "torch_threads", *tracking.UNTRACKED)
        args = tracking.resumed_args(args, resumed, free)
    torch.set_num_threads(args.torch_threads)
    with tracking.join_world(args.cuda) as world:
        if not args.evaluate:
            train(args, world, resumed)
        elif world.rank == 0:
            evaluate_run(args, world.device)


if __name__ == "__main__":
    tracking.run(main, DataError)
