"""Play the Markov stag hunt and its family: PPO with beliefs about the others' goals, imagination, and planning.

PPO (Schulman et al. 2017) in CleanRL's form, on a thousand boards at once. `--om` chooses what the policy knows of each
co-player: nothing; z and action probabilities of a pretrained VAE + MOA; P(goal) by Bayes' rule from its goal heads,
carried from one episode to the next (Huang et al. 2024, HOP); what a GRU remembers of it; or, as an oracle, who it is. With
`--real-ratio` below 1 it also learns from boards imagined in a world model; with `--plan` an evaluation searches a tree
before each move.
"""

import tracking  # first: from here on Ctrl-C is one line, also while torch is imported

# isort: split
import contextlib
import copy
import functools
import hashlib
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data import DataError, memory
from data.datasets import Batches, Samples, first_boards, samples_of_episodes
from data.recording import EpisodeRecorder, with_random_moves
from data.trajectories import Trajectories, check_output, file_of, save_arrays
from envs import DATA_EPSILON, REGISTERED, make_rules
from envs.core import Board, Cells, GameRules, first_hunt_after, kind_slices, legal_cells, step_cells
from envs.game import STAY
from envs.grid import neighbours
from envs.render import film_frame
from envs.scripted import cells_probs, parse_team
from envs.vector_env import check_state
from envs.world_model_env import WorldModelEnv
from metrics import returns
from metrics.comparison import adapt, compare, standard_teams
from metrics.predictions import PredictionStats, accuracy_by_tick, is_shown
from metrics.rivals import describe_script, uniform_policy
from metrics.vae_reports import action_figures, predict
from pretrain_vae import KIND as VAE_KIND
from pretrain_vae import (
    VAE,
    BeliefLaw,
    OpponentTracker,
    TabularMOA,
    add_none,
    choose_belief_law,
    filter_step,
    load_vae,
    loss_sums,
    make_batches,
)
from pretrain_vae import Args as VAEArgs
from search import gumbel_search, root_policy, search
from tracking import checkpoints, figures, fit
from train_world_model import CachedWorldModel, JointState, load_world_model

KIND = "hop_ppo"  # what a checkpoint says it is
NEVER = 99  # the distance to a prey that is gone or cannot be reached
MASKED = -1e9  # the logit of an illegal action
FIRST, SECOND = 0, 1  # goals, and among the game's strategies the ones that pursue them; a later one has none
PRIOR_COUNT = 0.1  # of each goal before the first episode: a co-player seldom changes its own; chosen on EVAL_SEED's boards
PLAN_BOARDS, PLAN_STEPS = 1024, 16  # imagined at once by --plan-fit, and ticks of an update
MOA_BOARDS = 256  # real boards that --moa-update records
MOA_EPISODES = 512  # the last ones that it learns from
MOA_MINIBATCHES = 16  # of an update
MOA_BATCH_SIZE = 256  # samples on average: a minibatch holds whole episodes
MOA_JUDGED = 64  # new episodes that judge the MOA before it learns from them
MOA_LAW_EPISODES = 256  # that the prior of none and the hazard of a belief are chosen on
MOA_LEARNING_RATE = 3e-3  # of AdamW, falls linearly to zero
MOA_KL_COEF = 1e-3  # weight of the KL term
FILMED_EPISODES = 5  # with the same strangers: the first and the last are filmed
EVAL_SEED = 2001  # of the boards on which `best` and the ticks of the scripts are chosen
FINAL_SEED = 3001  # of the boards that judge at the end
SCRIPT_BOARDS = 256  # at most, on which the ticks of the scripts are chosen
PLAY_COST = 0.16  # of a tick of a board that is judged, beside one that is also learnt from; measured
HIDDEN_FINAL_SEED = 4001  # those of a hidden game: it was chosen on other boards


Envs = Any  # StagHuntVectorEnv or WorldModelEnv
Infos = dict[str, Tensor]  # of a vector environment, as tensors, N rows each


@dataclass
class Args:
    exp_name: str = "ppo"
    """name of the run, followed by __<env-id>__<om>__<seed>__<unix seconds>"""
    seed: int = 1
    """seed of the boards, the weights and the batches"""
    torch_deterministic: bool = True
    """deterministic algorithms: same seed, same bytes"""
    cuda: bool = True
    """GPU for PPO's network and batches, if there is one; boards, beliefs and evaluations stay on the CPU"""
    torch_threads: int = 1
    """CPU threads"""
    capture_video: bool = False
    """films of the learner at each evaluation, in videos/<run>/"""
    track: bool = False
    """tracking of this run with Weights & Biases"""
    wandb_project_name: str = "om_wm"
    """project of Weights & Biases"""
    wandb_entity: str | None = None
    """entity (team) of the project of Weights & Biases"""

    env_id: str = "StagHunt-v0"
    """game: StagHunt-v0, StagHunt-hidden-v0 (it pays to know who the others are), Snowdrift-v0, or a smaller one"""
    env_args: tuple[str, ...] = ()
    """rules of the game that are other than registered, such as height=4 width=4 blocks=0"""
    co_players: str = "mixed"
    """team such as 3NS, 1NS2NH, 1ND2FIX, 3RANDOM; mixed: each co-player has one of two goals; self: all seats learn;
    population: each is one of the policies of --population to train with; held-out: of the others; held-out/2: all are the
    third of these"""
    population: str = ""
    """folder of a population.json, which names frozen policies of earlier runs: see benchmarks/population.py"""
    team_reward: bool = False
    """reward of every hunter is the mean of all; with --co-players self"""
    team_episodes: int = 0
    """episodes that a team stays together, in its seats; 0: as the game has it, mostly 1"""
    om: Literal["none", "latent", "belief", "gru", "liam", "oracle"] = "none"
    """knowledge that the policy has of the others: none, z and action probabilities, P(goal) of each goal, what a GRU
    remembers of them (gru: trained by PPO's loss; liam: to predict them), who they are"""
    vae: str = ""
    """folder of the trained VAE; `newest`; `pretrained`: the one of the repository; if empty: the newest, else pretrained"""
    belief_discount: float = 0.9
    """weight of the beliefs of an earlier episode about the same co-players"""
    moa_update: Literal["off", "pretrained", "empty"] = "off"
    """training of the MOA while playing, by what co-players do and capture on real boards: of --vae, or of a new one"""

    network: Literal["objects", "cnn"] = "objects"
    """network of policy and value. objects: distances, legality and which move leads to which prey are built in;
    cnn: convolutions on planes"""
    total_timesteps: int = 1_500_000
    """ticks of boards, imagined ones included"""
    learning_rate: float = 2e-3
    """learning rate of Adam"""
    num_envs: int = 1024
    """boards played at once, imagined ones included"""
    num_steps: int = 16
    """ticks of each board in a rollout"""
    anneal_lr: bool = True
    """annealing of the learning rate and of the weight of the entropy: both fall linearly to zero"""
    gamma: float = 0.99
    """discount of later rewards"""
    end_at_horizon: bool = True
    """end of the episode at the horizon: V after the last tick is 0, as nothing is paid there and the policy sees the
    tick; else V is bootstrapped where the horizon truncates an episode"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    num_minibatches: int = 8
    """minibatches of an epoch"""
    update_epochs: int = 3
    """passes over the samples of a rollout"""
    norm_adv: bool = True
    """normalisation of the advantages of a minibatch"""
    clip_coef: float = 0.2
    """clipping of the policy's ratio"""
    clip_vloss: bool = False
    """clipping of the value loss, by clip-coef, too"""
    ent_coef: float = 0.01
    """weight of the entropy"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """norm that gradients are clipped to"""
    target_kl: float | None = None
    """target KL divergence: an update ends with the first epoch whose last minibatch is beyond it"""

    real_ratio: float = 1.0
    """share of the boards that are real; the others are imagined in the world model. 0: from the offline file alone"""
    imagined_co_players: Literal["same", "goals"] = "same"
    """co-players on imagined boards. same: as --co-players says; goals: each with a goal of the MOA, or none, drawn"""
    world_model: str = ""
    """folder of the world model; `newest`; `pretrained`: the one of the repository; if empty: the newest, else pretrained"""
    data: str = ""
    """file whose first observations imagined boards begin from, with --real-ratio 0; by default that of the game"""

    plan: bool = False
    """planning in the evaluation at the end, too: PPO in imagination (--plan-fit), and a search before each move"""
    plan_train: bool = False
    """expert iteration: search before each move of the training, too, and learn the policy that the search found"""
    plan_model: Literal["learned", "rules"] = "learned"
    """model that is searched: the world model, or the real rules"""
    plan_search: Literal["gumbel", "puct"] = "gumbel"
    """kind of search. gumbel: for 8 to 32 simulations, each action tried in all trees alike, beside the prior, so that it
    stays near it; puct: for 200 simulations and more"""
    plan_simulations: int = 16
    """simulations of a decision, over all its goal samples"""
    plan_samples: int = 4
    """goals drawn from the belief: a tree each"""
    plan_fit: int = 40
    """updates, before an evaluation that searches the world model, of a copy of the policy by PPO on imagined boards with
    every sort of team, whose goals it is given; the copy is what plays and searches (of latent and oracle a new network);
    0: the policy itself"""
    plan_beta: float = 20.0
    """beta of the search's policy: pi ~ prior * exp(beta Q); puct: pi ~ exp(beta Q). Q in units of a hunter's pay: in the
    snowdrift, which pays for every drift, divided by their number"""
    plan_boards: int = 256
    """fresh episodes of an evaluation that searches; boards of the adaptation, ten episodes each"""
    oracle: str = ""
    """folder of a run trained with --om oracle, or `newest`: its policy is the oracle of the evaluation"""
    oracle_simulations: int = 0
    """simulations of a search by PUCT in the real rules that knows who the others are, in the evaluation at the end; 0:
    none"""
    eval_every: int = 20
    """updates between evaluations"""
    eval_boards: int = 1024
    """fresh boards of an evaluation"""

    resume: str = ""
    """folder of a run to go on with, or `newest`; its settings come from its checkpoint"""
    evaluate: str = ""
    """folder of a run, or `newest`: train nothing, judge its best checkpoint, with the --plan.. given"""
    record: str = ""
    """file, .npz, to which --evaluate writes games of the run, one on each of --eval-boards boards, and judges nothing"""


# ---- observations


@dataclass
class Observation:
    """What N observers see: hunters and prey, the shortest paths between them around the blocks, and the time.

    It is indexed like a tensor: `obs[rows]`, `obs[step] = next_obs`.
    """

    distances: Tensor  # int8 [N, P, A], from each hunter, the observer first, to each prey; NEVER: no way
    neighbour_distances: Tensor  # int8 [N, P, 4], from the cells above, below, left, right of the observer
    active: Tensor  # bool [N, A], hunters on the board
    action_mask: Tensor  # bool [N, 5 + k], k kinds of prey
    time_features: Tensor  # float [N, 3]
    cells: Tensor  # int64 [N, A+P], of the hunters, the observer first, and the prey; H * W: gone
    blocks: Tensor  # bool [N, H * W]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Observation":
        return Observation(*(function(getattr(self, field.name)) for field in fields(self)))

    def to(self, device: torch.device) -> "Observation":
        return self.map(lambda part: part.to(device))

    def __getitem__(self, index: Any) -> "Observation":
        return self.map(lambda part: part[index])

    def __setitem__(self, index: Any, other: "Observation") -> None:
        for field in fields(self):
            getattr(self, field.name)[index] = getattr(other, field.name)

    @staticmethod
    def cat(observations: list["Observation"]) -> "Observation":
        names = [field.name for field in fields(Observation)]
        return Observation(*(torch.cat([getattr(obs, name) for obs in observations]) for name in names))


def observe(
    hunters: Tensor,
    prey: Tensor,
    time_features: Tensor,
    seat: Tensor,
    board: Tensor,
    distances: Tensor,
    blocks: Tensor,
    rules: GameRules,
) -> Observation:
    """What the hunters in `seat` see in N states of B boards; a board keeps its blocks and the cells of its prey.

    Args:
        hunters: int64 [N, A], prey: int64 [N, P], cells, H * W for what is gone.
        time_features: float [N, 3]. seat, board: int64 [N].
        distances: int16 [B, P, H * W], from each cell to each prey. blocks: bool [B, H * W].
    """
    A, P, K = rules.hunters, rules.prey, rules.cells
    order = (seat[:, None] + torch.arange(A)) % A  # [N, A], the observer first
    cells = hunters.gather(1, order)  # [N, A]
    around = torch.as_tensor(neighbours(rules.height, rules.width)[:, :4])  # [K + 1, 4]
    sources = torch.cat([cells, around[cells[:, 0]]], 1)  # [N, A + 4]
    steps = distances[board[:, None, None], torch.arange(P)[:, None], sources.clamp(max=K - 1)[:, None]]
    unreachable = (sources == K)[:, None] | (prey == K)[..., None]  # [N, P, A + 4]
    steps = steps.clamp(max=NEVER).to(torch.int8).masked_fill_(unreachable, NEVER)
    own_blocks = blocks[board]  # [N, K]
    legal = legal_cells(cells[:, :1].numpy(), prey.numpy(), own_blocks.numpy(), rules)  # [N, 1, 5 + k]
    return Observation(
        distances=steps[..., :A],
        neighbour_distances=steps[..., A:],
        active=cells < K,
        action_mask=torch.as_tensor(legal)[:, 0],
        time_features=time_features,
        cells=torch.cat([cells, prey], 1),
        blocks=own_blocks,
    )


def encode_time(tick: Tensor, first_hunt: Tensor, rules: GameRules) -> Tensor:
    """float [N, 3]: tick / horizon, whether the board counts down, ticks left / 8. tick, first_hunt: int [N]."""
    counts_down = (first_hunt >= 0) & (rules.end_after_first_hunt is not None)
    end = (first_hunt + (rules.end_after_first_hunt or 0) + 1).clamp(max=rules.horizon)
    ticks_left = torch.where(counts_down, (end - tick) / 8, 0.0)
    return torch.stack([tick / rules.horizon, counts_down.float(), ticks_left], 1)


def observe_envs(infos: Infos, rules: GameRules) -> Observation:
    """What the learner of each row of a vector environment sees."""
    return observe(
        infos["hunters"],
        infos["prey"],
        encode_time(infos["tick"], infos["first_hunt"], rules),
        infos["seat"],
        torch.arange(len(infos["seat"])),
        infos["distances"],
        infos["blocks"],
        rules,
    )


def encode_planes(
    obs: Observation, opponent_info: Tensor, prey_counts: tuple[int, ...], height: int, width: int
) -> Tensor:
    """float [N, C, H, W]: each hunter, observer first; blocks and each kind of prey; the time, the same in every cell; and
    what is known of each co-player, on its cell. prey_counts: of each kind."""
    A = obs.active.shape[1]
    on = F.one_hot(obs.cells, height * width + 1)[..., :-1].float()  # [N, A + P, K]
    hunters, prey = on[:, :A], on[:, A:]
    prey_planes = [prey[:, kind].sum(1, keepdim=True) for kind in kind_slices(prey_counts)]
    time_planes = obs.time_features[..., None].expand(-1, -1, on.shape[2])
    info_planes = opponent_info[..., None] * hunters[:, 1:, None]  # [N, A - 1, I, K]
    blocks = obs.blocks[:, None].float()
    planes = [hunters, blocks, *prey_planes, time_planes, info_planes.flatten(1, 2)]
    return torch.cat(planes, 1).unflatten(2, (height, width))


# ---- actor and critic


def layer_init(layer: nn.Module, std: float = 2**0.5) -> nn.Module:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


def sample(logprobs: Tensor, world: tracking.World = tracking.ALONE) -> Tensor:
    """The largest of log p + Gumbel noise (Gumbel 1954). float [N, n] -> int64 [N]

    Every process draws the noise of all rows and takes that of its own: actions do not depend on who plays which boards.
    """
    rows, num_actions = logprobs.shape
    noise = logprobs.new_empty(world.size * rows, num_actions).exponential_().log_()
    return (logprobs - world.own(noise)).argmax(1)


def entropy_of(logprobs: Tensor) -> Tensor:
    """float [N, n] -> [N]"""
    return -(logprobs.exp() * logprobs.clamp(min=-50.0)).sum(1)


class ActorCritic(nn.Module):
    """What both networks have in common: `forward(obs, opponent_info)` gives log pi [N, 5 + k] and V [N]."""

    value_scale = 1.0  # V is so many times what the critic's last layer says, see `scale_of_returns`

    def __init__(self) -> None:
        super().__init__()
        self.memory: Memory | None = None  # of the co-players, with --om gru and liam

    def get_value(self, obs: Observation, opponent_info: Tensor) -> Tensor:
        return self(obs, opponent_info)[1]


class Agent(ActorCritic):
    """pi(action | obs) and V(obs). Co-players are added up and prey are scored by the same weights, so neither the seat of a
    hunter nor the order of the prey matters. What is known of a co-player is combined with what it is near to."""

    def __init__(
        self, prey_counts: tuple[int, ...], info_size: int, hidden: int = 64, hunt_bias: float = 1.0
    ):
        """prey_counts: of each kind. No parameter depends on them, only on how many kinds there are."""
        super().__init__()
        kinds = len(prey_counts)
        self.sizes = dict(
            network="objects", kinds=kinds, info_size=info_size, hidden=hidden, hunt_bias=hunt_bias
        )
        self.kind_slices = kind_slices(prey_counts)
        kind = [kind for kind, count in enumerate(prey_counts) for _ in range(count)]
        self.register_buffer("kind", torch.eye(kinds)[kind], persistent=False)  # [P, k]
        self.other = nn.Linear(7 + kinds + info_size, hidden // 2)
        self.prey = nn.Linear(10 + kinds + hidden // 2, hidden)
        self.context = nn.Linear(2 * hidden + 4, hidden)
        self.token = nn.Linear(hidden, hidden)
        self.actor = nn.Linear(hidden, 3)  # for each prey: go there, wait there, take it
        self.wait = nn.Linear(hidden, 1)
        self.critic = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        layer_init(self.actor, 0.01)
        layer_init(self.wait, 0.01)
        layer_init(self.critic[2], 1.0)
        # A hunter on a prey begins by taking it, as a stag is worth waiting on. Scores are scaled by 4 below: so is this.
        nn.init.constant_(self.actor.bias[2:], hunt_bias)

    def forward(self, obs: Observation, opponent_info: Tensor) -> tuple[Tensor, Tensor]:
        """Returns: log pi [N, 5 + k], about MASKED where not legal; V [N]."""
        N, P, _ = obs.distances.shape
        reachable = (obs.distances < NEVER).float()[..., None]  # [N, P, A, 1]
        distances = obs.distances.clamp(max=24).float()  # [N, P, A]
        near = self.nearness(distances)  # [N, P, A, 6]
        kind = self.kind.expand(N, -1, -1)  # [N, P, k]
        time_features = torch.cat([obs.time_features, obs.active.float().mean(1, keepdim=True)], 1)  # [N, 4]

        others = self.encode_others(distances, near, kind, opponent_info)  # [N, P, A - 1, hidden / 2]
        crowd = (others * reachable[:, :, 1:]).sum(2)
        own = [near[:, :, 0], kind, time_features[:, None].expand(-1, P, -1), crowd]
        prey = F.relu(self.prey(torch.cat(own, 2))) * reachable[:, :, 0]  # [N, P, hidden]
        pooled = torch.cat([prey.amax(1), prey.mean(1), time_features], 1)
        context = F.relu(self.context(pooled))  # [N, hidden]
        scores = self.actor(F.relu(self.token(prey) + context[:, None]))  # [N, P, 3]
        scores = scores * (4 * reachable[:, :, 0])

        closer = (obs.neighbour_distances < obs.distances[:, :, :1]).float()  # [N, P, 4]
        moves = (closer * scores[..., :1]).sum(1)  # [N, 4]
        here = (distances[:, :, :1] == 0).float() * scores[..., 1:]  # [N, P, 2]
        stay = here[..., 0].sum(1, keepdim=True) + self.wait(context)
        take = [here[:, part, 1].sum(1, keepdim=True) for part in self.kind_slices]  # [N, 1] each
        logits = torch.cat([moves, stay, *take], 1)
        values = self.value_scale * self.critic(context)[:, 0]
        return logits.masked_fill(~obs.action_mask, MASKED).log_softmax(1), values

    def nearness(self, distances: Tensor) -> Tensor:
        """float [N, P, A] -> [N, P, A, 6]: how near each hunter is to each prey, also beside the nearest of its kind and the
        nearest of all."""
        by_kind = [distances[:, part] for part in self.kind_slices]
        nearest = [F.pad(one, (0, 0, 0, 1), value=24.0).amin(1, keepdim=True) for one in by_kind]  # [N, 1, A]
        of_kind = [least.expand_as(one) for least, one in zip(nearest, by_kind, strict=True)]
        of_kind = torch.cat(of_kind, 1)  # [N, P, A]
        beyond = distances - torch.cat(nearest, 1).amin(1, keepdim=True)
        features = [
            distances / 8,
            distances == 0,
            distances == 1,
            (distances - of_kind) / 4,
            beyond / 4,
            beyond == 0,
        ]
        return torch.stack([feature.float() for feature in features], 3)

    def encode_others(self, distances: Tensor, near: Tensor, kind: Tensor, opponent_info: Tensor) -> Tensor:
        """float [N, P, A - 1, hidden / 2]: each co-player beside each prey, before they are added up."""
        P, co_players = distances.shape[1], opponent_info.shape[1]
        ahead = ((distances[:, :, 1:] - distances[:, :, :1]) / 4).clamp(-1, 1)[..., None]  # of the observer
        same = (ahead == 0).float()
        kind = kind[:, :, None, :-1].expand(-1, -1, co_players, -1)  # the last kind is none of the others
        info = opponent_info[:, None].expand(-1, P, -1, -1)
        return F.relu(self.other(torch.cat([near[:, :, 1:], ahead, same, kind, info], 3)))


class ConvAgent(ActorCritic):
    """The plain agent: CleanRL's initial weights and convolutions of its size, on planes; built in is what is legal."""

    def __init__(self, hunters: int, prey_counts: tuple[int, ...], info_size: int, height: int, width: int):
        super().__init__()
        kinds = len(prey_counts)
        self.board = (prey_counts, height, width)
        self.sizes = dict(
            network="cnn", hunters=hunters, kinds=kinds, info_size=info_size, height=height, width=width
        )
        layers = []
        for inputs, outputs in pairwise((hunters + 4 + kinds + (hunters - 1) * info_size, 16, 32, 32)):
            layers += [layer_init(nn.Conv2d(inputs, outputs, 3, padding=1)), nn.ReLU()]
        layers += [nn.Flatten(), layer_init(nn.Linear(32 * height * width, 512)), nn.ReLU()]
        self.network = nn.Sequential(*layers)
        self.actor = layer_init(nn.Linear(512, STAY + 1 + kinds), 0.01)
        self.critic = layer_init(nn.Linear(512, 1), 1.0)

    def forward(self, obs: Observation, opponent_info: Tensor) -> tuple[Tensor, Tensor]:
        """As `Agent.forward`."""
        hidden = self.network(encode_planes(obs, opponent_info, *self.board))
        logits = self.actor(hidden).masked_fill(~obs.action_mask, MASKED)
        return logits.log_softmax(1), self.value_scale * self.critic(hidden)[:, 0]


@dataclass
class History:
    """What a policy with a memory saw of its co-players in a rollout of N rows, T ticks."""

    inputs: Tensor  # float [T, N, A - 1, F], see `HistoryInfo`
    fresh: Tensor  # bool [T, N], a team's first tick
    hidden: Tensor  # float [N, A - 1, H], what was remembered before the first tick
    actions: Tensor  # int64 [T, N, A - 1], the co-players' in this tick
    playing: Tensor  # bool [T, N, A - 1], they were on the board
    samples: Tensor  # int64 [M], T * N + row of each sample of the batch


class Memory(nn.Module):
    """What is remembered of each co-player, through all episodes of a team: a GRU, the same for all of them.

    gru: trained by PPO's loss (recurrent PPO). liam: trained to predict what the co-player does, and what it is near to, and
    not by PPO's loss (Papoudakis et al. 2021, Agent Modelling under Partial Observability for Deep Reinforcement Learning).
    """

    def __init__(self, kinds: int, num_actions: int, predicts: bool, hidden: int = 32):
        """kinds: of prey. predicts: liam."""
        super().__init__()
        self.hidden_size = hidden
        self.num_actions = num_actions
        self.predicts = predicts
        self.cell = nn.GRUCell(self.input_size(kinds, num_actions), hidden)
        if predicts:
            outputs = num_actions + 2 * kinds
            self.decoder = nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, outputs))

    @staticmethod
    def input_size(kinds: int, num_actions: int) -> int:
        return 3 * kinds + num_actions + 3

    def forward(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """inputs: float [N, A - 1, F], hidden: float [N, A - 1, H], before the tick. Returns: [N, A - 1, H]."""
        return self.cell(inputs.flatten(0, 1), hidden.flatten(0, 1)).view_as(hidden)

    def replay(self, history: History, rows: Tensor) -> Tensor:
        """float [T, n, A - 1, H]: what is remembered of a rollout, with today's weights. rows: int64 [n]."""
        hidden = history.hidden[rows]
        remembered = []
        for inputs, fresh in zip(history.inputs[:, rows], history.fresh[:, rows], strict=True):
            hidden = self(inputs, hidden.masked_fill(fresh[:, None, None], 0.0))
            remembered.append(hidden)
        return torch.stack(remembered)

    def prediction_loss(self, remembered: Tensor, history: History, rows: Tensor) -> Tensor:
        """LIAM's: NLL of the co-players' actions plus the squared error of what they are near to, mean over co-players."""
        outputs = self.decoder(remembered)  # [T, n, A - 1, 5 + k + 2 k]
        actions, near = outputs.split([self.num_actions, outputs.shape[-1] - self.num_actions], -1)
        playing = history.playing[:, rows]
        if not playing.any():  # all of them have left the board
            return 0.0 * outputs.sum()
        nll = F.cross_entropy(actions[playing], history.actions[:, rows][playing])
        seen = history.inputs[:, rows][..., : near.shape[-1]]
        return nll + (near - seen)[playing].square().mean()


def make_memory(om: str, rules: GameRules) -> Memory | None:
    if om not in ("gru", "liam"):
        return None
    return Memory(rules.game.kinds, rules.game.num_actions, predicts=om == "liam")


def make_agent(
    network: str, rules: GameRules, info_size: int, memory: Memory | None = None, **sizes: Any
) -> ActorCritic:
    """info_size: how many numbers are known of each co-player; sizes: those of `objects` that are not the default."""
    if network == "cnn":
        agent = ConvAgent(rules.hunters, rules.prey_counts, info_size, rules.height, rules.width)
    else:
        agent = Agent(rules.prey_counts, info_size, **sizes)
    agent.value_scale = scale_of_returns(rules)
    agent.memory = memory
    return agent


def scale_of_returns(rules: GameRules) -> float:
    """A hunter that leaves with its prey is paid once, one that stays for all of them. Without this the gradients of V, of
    six drifts a board, leave the policy a small share of --max-grad-norm."""
    return 1.0 if rules.game.leaves else float(max(1, rules.prey))


def rebuild_agent(sizes: dict, rules: GameRules, om: str) -> ActorCritic:
    """A network as `sizes` of another describe it, with its first weights; what is the game's is as in the rules."""
    own = {name: size for name, size in sizes.items() if name in ("hidden", "hunt_bias")}
    return make_agent(sizes["network"], rules, sizes["info_size"], make_memory(om, rules), **own)


# ---- what the policy knows of its co-players


class NoInfo:
    """`--om none`. The interface of all that follow: `features` before a tick, `update` after it, `reset` where episodes
    begin. Of B boards with A hunters; the learners are the rows of the environment, one or A on a board."""

    info_size = 0
    saved: tuple[str, ...] = ()  # attributes that a checkpoint holds

    def __init__(self, infos: Infos, rows_per_board: int = 1):
        self.infos = infos
        self.rows_per_board = rows_per_board

    def features(self) -> Tensor:
        """float [N, A - 1, info_size]: what each learner knows of the hunters 1, 2, .. seats after it."""
        return self.rotate(self.board_features())

    def board_features(self) -> Tensor:
        """float [B, A, info_size]: what is known of each hunter, in seat order."""
        return torch.zeros(*self.per_board("active").shape, 0)

    def update(self, infos: Infos) -> None:
        """After a tick, before boards are reset. infos: of the environment."""
        self.infos = infos

    def reset(self, boards: Tensor, infos: Infos) -> None:
        """After new episodes have begun on `boards`, bool [B]."""
        self.infos = infos

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in self.saved}

    def load_state_dict(self, state: dict, infos: Infos) -> None:
        """infos: of the environment as it was then. What follows from its boards is computed again."""
        self.infos = infos
        for name in self.saved:
            setattr(self, name, state[name].clone())

    def per_board(self, key: str) -> Tensor:
        return self.infos[key][:: self.rows_per_board]

    def was_playing(self, infos: Infos) -> Tensor:
        """bool [B, A]: who was on the board before the tick that led to `infos`; a board that is over stands still."""
        advanced = infos["tick"][:: self.rows_per_board] > self.per_board("tick")
        return self.per_board("active") & advanced[:, None]

    def rotate(self, board_features: Tensor) -> Tensor:
        """float [B, A, I] in seat order -> [N, A - 1, I], of the co-players, those of each learner in its order."""
        A, size = board_features.shape[1:]
        rows = board_features.repeat_interleave(self.rows_per_board, 0)  # [N, A, I]
        order = (self.infos["seat"][:, None] + torch.arange(1, A)) % A  # [N, A - 1]
        return rows.gather(1, order[..., None].expand(-1, -1, size))


class OracleInfo(NoInfo):
    """`--om oracle`: which of the strategies, or policies, each co-player is, one-hot. Nothing else asks for it."""

    def __init__(self, infos: Infos, rows_per_board: int, strategies: int):
        super().__init__(infos, rows_per_board)
        self.info_size = strategies

    def board_features(self) -> Tensor:
        return F.one_hot(self.per_board("strategy_ids") + 1, self.info_size + 1)[..., 1:].float()


class GoalPolicy:
    """p(action | goal) of all hunters of B boards that are being played, from the goal heads of the MOA.

    Tables are computed for boards that are new or whose prey have moved. The size of a table decides how its numbers are
    rounded, so a resumed run and the one that goes on must build theirs from the same boards: `clear`.
    """

    def __init__(self, vae: nn.Module, prey_counts: tuple[int, ...]):
        self.vae = vae
        self.prey_counts = prey_counts
        self.clear()

    def clear(self) -> None:
        self.table = None

    def sync(self, blocks: Tensor, prey: Tensor) -> TabularMOA:
        """blocks: bool [B, K], prey: int64 [B, P], as they are now. Returns: the tables of these boards."""
        if self.table is None:
            self.table = TabularMOA(self.vae, blocks, prey, self.prey_counts)
        else:
            moved = (prey != self.prey) & (prey < blocks.shape[1])
            boards = [
                (part.view(-1).nonzero()[:, 0], part.shape[1]) for part in (moved, blocks != self.blocks)
            ]
            changed = torch.cat([at.div(size, rounding_mode="floor") for at, size in boards]).unique()
            if len(changed):
                self.table.update(changed, blocks[changed], prey[changed])
        self.blocks = blocks
        self.prey = prey
        return self.table

    def __call__(
        self, blocks: Tensor, hunters: Tensor, prey: Tensor, tick: Tensor, goals: Tensor | None = None
    ) -> Tensor:
        """goals: int64 [B, A], the last one none. Returns: log p, float [B, A, n]; without, of all, [B, A, G, n]."""
        table = self.sync(blocks, prey)
        return table.probs(torch.arange(len(tick)), hunters, prey, tick, goals).clamp(min=1e-20).log()

    def sample(self, blocks: Tensor, hunters: Tensor, prey: Tensor, tick: Tensor, goals: Tensor) -> Tensor:
        """Actions int64 [B, A]. goals: int64 [B, A], the last one none."""
        table = self.sync(blocks, prey)
        return table.sample(torch.arange(len(tick)), hunters, prey, tick, goals)


class GoalBelief(NoInfo):
    """`--om belief`: P(goal | behaviour) of each hunter, or that it has none of them, within an episode by the filter of the
    VAE's `belief_law`. The next episode with the same co-players begins with discounted counts of the beliefs at the ends of
    those before."""

    saved = ("log_belief", "prior", "counts")

    def __init__(self, infos: Infos, rows_per_board: int, vae: nn.Module, rules: GameRules, discount: float):
        super().__init__(infos, rows_per_board)
        self.rules = rules
        self.vae = vae
        self.goal_policy = GoalPolicy(vae, rules.prey_counts)
        self.discount = discount
        self.info_size = vae.moa.num_goals
        self.named_goals = not vae.moa.free_goals  # only of these is it known whether a belief is right
        self.prior = self.first_prior.expand(*self.per_board("active").shape, -1).clone()  # [B, A, G + 1]
        self.log_belief = self.prior.log().clamp(min=MASKED)  # finite, as what a checkpoint holds has to be
        self.counts = torch.zeros_like(self.prior)
        self.stats = PredictionStats(rules.horizon)

    @property
    def first_prior(self) -> Tensor:
        """float [G + 1], the last one none. --moa-update chooses the law again."""
        return self.vae.belief_law.prior(self.info_size)

    def board_features(self) -> Tensor:
        """float [B, A, G]: what is left of 1 is P(none)."""
        blocks, hunters, prey, tick = (self.per_board(key) for key in ("blocks", "hunters", "prey", "tick"))
        by_goal = self.goal_policy(blocks, hunters, prey, tick).exp()  # [B, A, G, n]
        legal = torch.as_tensor(legal_cells(hunters.numpy(), prey.numpy(), blocks.numpy(), self.rules))
        uniform = legal / legal.sum(2, keepdim=True).clamp(min=1)
        self.probs = torch.cat([by_goal, uniform[:, :, None]], 2)  # [B, A, G + 1, n]
        return self.log_belief[..., :-1].exp()

    def update(self, infos: Infos) -> None:
        tick = self.per_board("tick")
        playing = self.was_playing(infos)
        super().update(infos)
        actions = self.per_board("joint_actions").long()
        belief = self.log_belief.exp()
        predicted = (belief[:, :, None] @ self.probs)[:, :, 0]  # [B, A, n]
        strategies = self.per_board("strategy_ids")
        first = (belief[..., FIRST] > belief[..., SECOND]).float() if self.named_goals else None
        self.stats.add(predicted, actions, playing, tick, strategies, first)
        at = actions[..., None, None].expand(-1, -1, self.probs.shape[2], 1)
        likelihood = self.probs.gather(3, at)[..., 0]  # [B, A, G + 1]
        hazard = self.vae.belief_law.hazard
        after = filter_step(self.log_belief, likelihood.clamp(min=1e-20).log(), hazard, self.prior)
        self.log_belief = torch.where(playing[..., None], after, self.log_belief)

    def reset(self, boards: Tensor, infos: Infos) -> None:
        super().reset(boards, infos)
        counts = self.discount * self.counts + self.log_belief.exp()
        counts = torch.where(self.per_board("new_team")[:, None, None], 0.0, counts)
        prior = counts + PRIOR_COUNT * self.info_size * self.first_prior
        prior = prior / prior.sum(2, keepdim=True)
        new = boards[:, None, None]
        self.counts = torch.where(new, counts, self.counts)
        self.prior = torch.where(new, prior, self.prior)
        self.log_belief = torch.where(new, prior.log().clamp(min=MASKED), self.log_belief)

    def load_state_dict(self, state: dict, infos: Infos) -> None:
        super().load_state_dict(state, infos)
        self.goal_policy.clear()


class LatentInfo(NoInfo):
    """`--om latent`: z at its mean and p(action) of each hunter, from the pretrained VAE and MOA; episodes begin without
    knowledge. envs: its `planes()` are what each hunter sees."""

    def __init__(self, infos: Infos, rows_per_board: int, vae: nn.Module, envs: Envs):
        super().__init__(infos, rows_per_board)
        self.envs = envs
        self.tracker = OpponentTracker(vae, *self.per_board("active").shape)
        self.info_size = vae.sizes["latent_dim"] + envs.rules.game.num_actions
        self.stats = PredictionStats(envs.rules.horizon)

    def board_features(self) -> Tensor:
        planes = torch.as_tensor(self.envs.planes())
        self.probs, z, _ = self.tracker.predict(planes, self.per_board("tick"))
        return torch.cat([z, self.probs], 2)

    def update(self, infos: Infos) -> None:
        tick = self.per_board("tick")
        playing = self.was_playing(infos)
        super().update(infos)
        actions = self.per_board("joint_actions").long()
        self.stats.add(self.probs, actions, playing, tick, self.per_board("strategy_ids"))
        self.tracker.update(actions)

    def reset(self, boards: Tensor, infos: Infos) -> None:
        super().reset(boards, infos)
        self.tracker.reset(boards)

    def state_dict(self) -> dict:
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict, infos: Infos) -> None:
        super().load_state_dict(state, infos)
        self.tracker.load_state_dict(state)


class HistoryInfo(NoInfo):
    """`--om gru`, `liam`: what the policy's `Memory` holds of each co-player, as each learner sees it, since their team met.

    Its input in a tick, of k kinds of prey: how far the co-player and the learner are from the nearest of each kind, how
    much nearer the co-player has come, its last action, one-hot, whether it is on the board, the time, and whether an
    episode begins.
    """

    saved = ("hidden", "before", "fresh")

    def __init__(self, infos: Infos, rows_per_board: int, memory: Memory, rules: GameRules):
        super().__init__(infos, rows_per_board)
        self.memory = memory
        self.rules = rules
        self.info_size = memory.hidden_size
        others = self.order().shape[1] - 1
        self.hidden = torch.zeros(len(infos["seat"]), others, memory.hidden_size)
        self.before = self.nearest()
        self.fresh = torch.ones(len(infos["seat"]), dtype=torch.bool)

    def order(self) -> Tensor:
        """int64 [N, A]: seats, the learner's first."""
        A = self.infos["hunters"].shape[1]
        return (self.infos["seat"][:, None] + torch.arange(A)) % A

    def nearest(self) -> Tensor:
        """float [N, A, k]: steps / 8 from each hunter, the learner first, to the nearest prey of each kind; 3: no way."""
        distances, hunters = self.infos["distances"], self.infos["hunters"].gather(1, self.order())
        on_board = hunters.clamp(max=self.rules.cells - 1)[:, None].expand(-1, distances.shape[1], -1)
        steps = distances.gather(2, on_board).clamp(max=24).float() / 8  # [N, P, A]
        steps = steps.masked_fill((hunters == self.rules.cells)[:, None], 3.0)
        kinds = [
            F.pad(steps[:, part], (0, 0, 0, 1), value=3.0).amin(1)
            for part in kind_slices(self.rules.prey_counts)
        ]
        return torch.stack(kinds, 2)

    def inputs(self) -> Tensor:
        """float [N, A - 1, F]"""
        others = self.order()[:, 1:]
        nearest = self.nearest()
        own = nearest[:, :1].expand(-1, others.shape[1], -1)
        approach = (self.before - nearest)[:, 1:].clamp(-0.5, 0.5) * 8
        actions = self.infos["joint_actions"].long().gather(1, others)
        active = self.infos["active"].gather(1, others)
        tick = self.infos["tick"][:, None, None].expand(-1, others.shape[1], 1)
        parts = [
            nearest[:, 1:],
            own,
            approach,
            F.one_hot(actions, self.rules.game.num_actions),
            active[..., None],
            tick / self.rules.horizon,
            tick == 0,
        ]
        return torch.cat([part.float() for part in parts], 2)

    def features(self) -> Tensor:
        self.seen = self.inputs()
        with torch.no_grad():
            self.remembered = self.memory(self.seen, self.hidden)
        return self.remembered

    def update(self, infos: Infos) -> None:
        advanced = (infos["tick"] > self.infos["tick"])[:, None, None]  # a board that is over stands still
        self.before = torch.where(advanced, self.nearest(), self.before)
        self.hidden = torch.where(advanced, self.remembered, self.hidden)
        self.fresh = torch.zeros_like(self.fresh)
        super().update(infos)

    def reset(self, boards: Tensor, infos: Infos) -> None:
        super().reset(boards, infos)
        begun = boards.repeat_interleave(self.rows_per_board)
        self.before = torch.where(begun[:, None, None], self.nearest(), self.before)
        self.fresh = begun & infos["new_team"]
        self.hidden = self.hidden.masked_fill(self.fresh[:, None, None], 0.0)


def make_opponents(
    args: Args, envs: Envs, infos: Infos, vae: nn.Module | None, memory: Memory | None = None
) -> NoInfo:
    """What the learners of an environment know of the others, as --om says."""
    rows = envs.rows_per_board
    population = envs.co_players if isinstance(envs.co_players, Population) else None
    if args.om == "belief":
        belief = GoalBelief(infos, rows, vae, envs.rules, args.belief_discount)
        belief.named_goals &= population is None
        return belief
    if args.om == "latent":
        return LatentInfo(infos, rows, vae, envs)
    if args.om == "oracle":
        return OracleInfo(infos, rows, population.size if population else len(envs.rules.game.strategies))
    return HistoryInfo(infos, rows, memory, envs.rules) if memory else NoInfo(infos, rows)


# ---- co-players that learned


class Population:
    """Frozen policies of earlier runs as co-players, see `Policies` of envs/vector_env.py."""

    def __init__(self, agents: list[ActorCritic], rules: GameRules):
        self.agents = agents
        self.rules = rules
        self.size = len(agents)

    @torch.no_grad()
    def __call__(self, core: Board, policy_ids: np.ndarray) -> np.ndarray:
        """float32 [B, A, 5 + k]: p(action) of each hunter; of those that are no co-player, or have left, STAY."""
        playing = torch.as_tensor((policy_ids >= 0) & core.active)
        board, seat = playing.nonzero(as_tuple=True)
        policy = torch.as_tensor(policy_ids)[playing]
        time_features = encode_time(
            torch.as_tensor(core.tick).long(), torch.as_tensor(core.first_hunt).long(), self.rules
        )
        hunters, prey = (torch.as_tensor(cells)[board].long() for cells in (core.hunters, core.prey))
        maps = map(torch.as_tensor, (core.distances(), core.blocks))
        obs = observe(hunters, prey, time_features[board], seat, board, *maps, self.rules)
        nothing = torch.zeros(len(board), self.rules.hunters - 1, 0)
        probs = torch.zeros(*playing.shape, self.rules.game.num_actions)
        probs[..., STAY] = 1.0
        for number, agent in enumerate(self.agents):
            rows = (policy == number).nonzero()[:, 0]
            if len(rows):
                probs[board[rows], seat[rows]] = agent(obs[rows], nothing[rows])[0].exp()
        return probs.numpy()


def co_players_of(team: str, args: Args, rules: GameRules) -> "str | Population":
    """What an environment takes for a team: its text, or policies of --population. Raises: tracking.UsageError."""
    if not is_population(team):
        return team
    split, _, number = team.partition("/")
    agents = load_population(args.population, args.env_id, args.env_args)[split]
    if number and int(number) >= len(agents):
        raise tracking.UsageError(f"--co-players {team}: {args.population} has {len(agents)} of them")
    return Population([agents[int(number)]] if number else agents, rules)


def is_population(team: str) -> bool:
    return re.fullmatch(r"(population|held-out)(/\d+)?", team) is not None


@functools.lru_cache(maxsize=4)
def load_population(folder: str, env_id: str, env_args: tuple[str, ...]) -> dict[str, list[ActorCritic]]:
    """Its policies to train with, and those held out. Raises: tracking.UsageError: it is not one, or of another game."""
    content = fit.read_population(folder, env_id, env_args)
    agents = {"population": content["train"], "held-out": content["held_out"]}
    return {split: [load_partner(run, env_id, env_args) for run in runs] for split, runs in agents.items()}


def load_partner(run: str, env_id: str, env_args: tuple[str, ...]) -> ActorCritic:
    agent, checkpoint = load_agent(run)
    fit.check_partner(run, checkpoint["args"], env_id, env_args)
    return agent


# ---- environments


def to_tensors(infos: dict) -> Infos:
    """The infos of an environment as tensors; those of imagined boards are tensors already."""
    tensors = {key: torch.as_tensor(value) for key, value in infos.items() if not key.startswith("_")}
    return tensors | {"tick": tensors["tick"].long(), "first_hunt": tensors["first_hunt"].long()}


def make_envs(
    rules: GameRules,
    num_boards: int,
    co_players: str | Population,
    team_episodes: int = 1,
    episode: str | None = None,
) -> Envs:
    """Real boards. Every hunter of a `self` team is a row of its own, and plays on to the board's end.

    episode: `learner` or `board`, at whose end the episode of a row ends; by default that of the only learner.
    """
    self_play = co_players == "self"
    return gymnasium.make_vec(
        rules.game.id,
        num_envs=num_boards * (rules.hunters if self_play else 1),
        rules=rules,
        layout="none",  # networks read the infos
        co_players=co_players,
        team_episodes=team_episodes,
        episode=episode or ("board" if self_play else "learner"),
        autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED,  # the loop resets: it asks for V of the last state first
    )


def make_world_model_envs(
    args: Args,
    rules: GameRules,
    num_boards: int,
    starts: tuple,
    world_model: nn.Module,
    vae: nn.Module | None,
) -> WorldModelEnv:
    """Imagined boards: co-players act as the goal heads of the MOA say, each by a goal that is drawn."""
    co_players = imagined_team(args)
    self_play = co_players == "self"
    return WorldModelEnv(
        num_boards * (rules.hunters if self_play else 1),
        rules,
        co_players,
        CachedWorldModel(world_model).on(rules.height, rules.width),
        None if self_play else GoalPolicy(vae, rules.prey_counts),
        starts,
        make_state=JointState,
        team_episodes=args.team_episodes,
        episode="board" if self_play else "learner",
        num_goals=None if vae is None else vae.moa.num_goals,
    )


def imagined_team(args: Args) -> str:
    """The co-players of imagined boards."""
    return args.co_players if args.imagined_co_players == "same" else args.imagined_co_players


class Collector:
    """An environment, what its learners know of the others, and where the next rollout goes on."""

    def __init__(
        self, envs: Envs, args: Args, vae: nn.Module | None, seed: int, memory: Memory | None = None
    ):
        _, infos = envs.reset(seed=seed)
        self.envs = envs
        self.infos = to_tensors(infos)
        self.opponents = make_opponents(args, envs, self.infos, vae, memory)
        self.planner: Planner | None = None
        self.recorder: EpisodeRecorder | None = None
        self.episode_returns = torch.zeros(envs.num_envs)
        self.starts = self.boards()

    def observe(self, device: torch.device) -> tuple[Observation, Tensor]:
        """What the policy sees and knows now, on its device."""
        obs = observe_envs(self.infos, self.envs.rules)
        return obs.to(device), self.opponents.features().to(device)

    def boards(self) -> tuple[Tensor, ...]:
        rows = slice(None, None, self.envs.rows_per_board)
        return tuple(self.infos[key][rows].clone() for key in ("blocks", "hunters", "prey"))

    def reset(self, dones: Tensor) -> None:
        """New episodes on the rows `dones`, bool [N]. `starts`: what the episodes began with, for imagined boards."""
        _, infos = self.envs.reset(options={"reset_mask": dones.numpy()})
        self.infos = to_tensors(infos)
        boards = dones[:: self.envs.rows_per_board]
        self.opponents.reset(boards, self.infos)
        if self.recorder:
            self.recorder.reset(boards, self.infos)
        pairs = zip(self.boards(), self.starts, strict=True)
        self.starts = tuple(torch.where(boards[:, None], new, old) for new, old in pairs)

    def state_dict(self) -> dict:
        return dict(
            envs={key: torch.as_tensor(value) for key, value in self.envs.state_dict().items()},
            opponents=self.opponents.state_dict(),
            episode_returns=self.episode_returns,
            starts=list(self.starts),
        )

    def load_state_dict(self, state: dict) -> None:
        check_state(dict(zip(("blocks", "hunters", "prey"), state["starts"], strict=True)), self.envs.rules)
        self.envs.load_state_dict(state["envs"])
        nothing = np.zeros(self.envs.num_envs, bool)  # only looks
        self.infos = to_tensors(self.envs.reset(options={"reset_mask": nothing})[1])
        self.opponents.load_state_dict(state["opponents"], self.infos)
        if self.planner:
            self.planner.clear()
        self.episode_returns = state["episode_returns"].clone()
        self.starts = tuple(start.clone() for start in state["starts"])


def offline_starts(args: Args, rules: GameRules) -> tuple[Tensor, ...]:
    """The first boards of the episodes in --data: blocks, hunters, prey. Raises: DataError: they are of another game."""
    boards = first_boards(args.data or file_of(rules), rules)
    return tuple(torch.as_tensor(part) for part in boards)


def make_collectors(
    args: Args,
    rules: GameRules,
    vae: nn.Module | None,
    world_model: nn.Module | None,
    memory: Memory | None = None,
) -> list[Collector]:
    """One with real boards and one with imagined ones, as --real-ratio says."""
    real = round(args.real_ratio * args.num_envs)
    collectors = []
    if real:
        envs = make_envs(rules, real, co_players_of(args.co_players, args, rules), args.team_episodes)
        collectors.append(Collector(envs, args, vae, args.seed, memory))
    if real < args.num_envs:
        starts = collectors[0].starts if real else offline_starts(args, rules)
        envs = make_world_model_envs(args, rules, args.num_envs - real, starts, world_model, vae)
        collectors.append(Collector(envs, args, vae, args.seed))
    return collectors


def map_boards(state: dict, function: Callable[[Tensor], Tensor]) -> dict:
    """A collector's state with every tensor mapped, board by board or row by row; `starts<i>`, which all imagined boards
    draw from, stay."""
    envs = {key: part if key.startswith("starts") else function(part) for key, part in state["envs"].items()}
    opponents = {key: function(part) for key, part in state["opponents"].items()}
    returns_, starts = function(state["episode_returns"]), [function(part) for part in state["starts"]]
    return dict(envs=envs, opponents=opponents, episode_returns=returns_, starts=starts)


def own_collectors(
    whole: list[Collector],
    args: Args,
    rules: GameRules,
    vae: nn.Module | None,
    world_model: nn.Module | None,
    world: tracking.World,
) -> list[Collector]:
    """Those of this process: each plays its share of the boards of `whole`."""
    if world.size == 1:
        return whole
    with tracking.kept_rng():
        share = replace(args, num_envs=args.num_envs // world.size)
        collectors = make_collectors(share, rules, vae, world_model)
    for collector, of_all in zip(collectors, whole, strict=True):
        collector.load_state_dict(map_boards(of_all.state_dict(), world.own))
    return collectors


# ---- the MOA, trained while playing


class MOALearner:
    """`--moa-update`: trains a VAE + MOA on what the co-players of real boards do; in self-play on all hunters.

    Nothing says who a hunter is. Its goal is what it captured last in its episode (Huang et al. 2024, HOP): one that took
    nothing teaches the goal heads nothing. Free goals need no captures.
    """

    def __init__(self, vae: VAE, collector: Collector, seed: int):
        """collector: of real boards, which are recorded from now on."""
        envs = collector.envs
        self.vae = vae
        self.rules = envs.rules
        self.seed = seed
        self.optimizer = torch.optim.AdamW(vae.parameters(), lr=MOA_LEARNING_RATE, weight_decay=0.01)
        boards = min(MOA_BOARDS, envs.num_boards)
        self.recorder = EpisodeRecorder(envs.rules, boards, MOA_EPISODES, envs.rows_per_board)
        self.recorder.reset(torch.ones(envs.num_boards, dtype=torch.bool), collector.infos)
        collector.recorder = self.recorder
        self.learnt = 0  # of all episodes that have ended, how many it has learnt from
        self.nll = 0.0  # of actions before they were learnt from
        self.goal_counts = torch.zeros(vae.moa.num_goals, dtype=torch.int64)  # samples with each goal
        self.action_counts = torch.zeros(vae.moa.num_actions, dtype=torch.int64)

    def samples(self, episodes: int) -> tuple[Samples, Batches]:
        """What the co-players did in so many of the last episodes."""
        recorded, learner = self.recorder.trajectories(episodes)
        co_player = np.arange(self.rules.hunters) != learner[recorded.episode, None]  # [N, A]
        recorded = replace(recorded, active=recorded.active & co_player)
        samples = samples_of_episodes(recorded, split=False)
        goals = "free" if self.vae.moa.free_goals else "captured"
        return samples, make_batches(samples, torch.device("cpu"), self.vae.loss, goals)

    def update(self, frac: float, collectors: list[Collector]) -> dict[str, float]:
        """Learn, if episodes have ended since the last time.

        Args: frac: share of the training that is left. collectors: all that use the MOA; what they have computed with the
        weights of before is forgotten.
        Returns: top1, top3 and nll of new actions, nll given the goal, all before they were learnt from; and the mean loss.
        """
        new = min(self.recorder.count - self.learnt, MOA_EPISODES)
        if not new:
            return {}
        self.learnt = self.recorder.count
        samples, batches = self.samples(MOA_EPISODES)
        first_new = int(samples.episodes[-1]) + 1 - new
        is_new = samples.episodes >= first_new
        self.count(samples, batches, is_new)
        judged = is_new & (samples.episodes < first_new + MOA_JUDGED)
        figures = action_figures(self.vae, samples, batches, np.flatnonzero(judged))
        self.nll = figures["nll"]

        self.optimizer.param_groups[0]["lr"] = MOA_LEARNING_RATE * frac
        groups = torch.randperm(len(batches.start)).numpy()
        num_minibatches = min(len(groups), math.ceil(len(samples) / MOA_BATCH_SIZE))
        minibatches = np.array_split(groups, num_minibatches)[:MOA_MINIBATCHES]
        losses = [self.step(batches, minibatch) for minibatch in minibatches]
        figures["loss"] = float(torch.stack(losses).mean())
        for collector in collectors:
            collector.load_state_dict(collector.state_dict())
        return {f"moa_update_{name}": value for name, value in figures.items()}

    def step(self, batches: Batches, minibatch: np.ndarray) -> Tensor:
        """One step on whole episodes, each turned or mirrored. Returns: the loss in nats per action."""
        symmetry = torch.randint(len(batches.cell_permutation), (len(minibatch),))
        batch = batches.take(minibatch, symmetry)
        count = len(batch.action)
        noise = torch.randn(count, self.vae.sizes["latent_dim"])
        sums = loss_sums(self.vae(batch, noise), batch, mixed_goals=self.vae.moa.free_goals)
        goal_count = count if self.vae.moa.free_goals else max(1, int((batch.goal >= 0).sum()))
        loss = (sums["moa"] + sums["recon"] + MOA_KL_COEF * sums["kl"]) / count + sums["goal"] / goal_count

        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def count(self, samples: Samples, batches: Batches, new: np.ndarray) -> None:
        """new: bool [M], samples that it has not learnt from."""
        goals = batches.goals[torch.as_tensor(new)]
        self.goal_counts += goals[goals >= 0].bincount(minlength=len(self.goal_counts))
        actions = np.bincount(samples.actions[new], minlength=len(self.action_counts))
        self.action_counts += torch.as_tensor(actions)

    def choose_law(self) -> None:
        """What a belief assumes of hunters without a goal and of changes of mind, as `pretrain_vae.py` chooses it."""
        if not self.goals_trained:
            return
        samples, batches = self.samples(MOA_LAW_EPISODES)
        goal_probs = predict(self.vae, batches, np.arange(len(samples))).goal_probs  # [M, G, n]
        legal = goal_probs.max(1) > 0
        uniform = (legal / legal.sum(1, keepdims=True)).astype(np.float32)
        history = (samples.actions, samples.hunters, samples.ticks)
        self.vae.belief_law = choose_belief_law(add_none(goal_probs, uniform), *history, self.seed)

    @property
    def goals_trained(self) -> int:
        """Samples with a goal; 0 if a goal has none."""
        if self.vae.moa.free_goals:
            return int(self.action_counts.sum())
        return int(self.goal_counts.sum()) if self.goal_counts.min() > 0 else 0

    def save(self, folder: Path, names: tuple[str, ...], run: str) -> None:
        """As `pretrain_vae.py` saves a VAE, so that all that reads one can read this one."""
        settings = VAEArgs(
            seed=self.seed,
            loss=self.vae.loss,
            goals="free" if self.vae.moa.free_goals else "captured",
            context=self.vae.context,
            data=f"real boards of {run}",
            epochs=1,
            batch_size=MOA_BATCH_SIZE,
            learning_rate=MOA_LEARNING_RATE,
            kl_coef=MOA_KL_COEF,
            latent_dim=self.vae.sizes["latent_dim"],
        )
        learnt = tracking.learnt(self.vae, self.optimizer)
        steps = [int(moments["step"]) for moments in learnt["optimizer"]["state"].values()]
        history = [dict(epoch=0, val_nll=self.nll)] if steps else []
        digest = hashlib.sha256(self.recorder.kept["cells"].numpy().tobytes()).hexdigest()
        checkpoint = dict(kind=VAE_KIND, run=run, args=asdict(settings), fingerprint=digest)
        checkpoint |= dict(epoch=len(history), step=max(steps, default=0), history=history)
        checkpoint |= dict(best=self.nll if steps else math.inf, seconds=0.0, train_seconds=0.0)
        checkpoint |= dict(goals_trained=self.goals_trained, belief=self.vae.belief_law._asdict())
        checkpoint |= dict(game=self.rules.game.metadata(), rules=dict(vars(self.rules)))
        checkpoint |= dict(strategies=[], table=None, pairs=None, counts=self.action_counts.tolist())
        folder.mkdir(exist_ok=True)
        for name in names:
            tracking.save_checkpoint(folder / name, checkpoint | learnt)

    def state_dict(self) -> dict:
        numbers = dict(learnt=self.learnt, nll=self.nll, law=self.vae.belief_law)
        return dict(
            model=self.vae.state_dict(),
            optimizer=self.optimizer.state_dict(),
            recorder=self.recorder.state_dict(),
            numbers={name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()},
            goal_counts=self.goal_counts,
            action_counts=self.action_counts,
        )

    def load_state_dict(self, state: dict) -> None:
        """Raises: ValueError: it is not as `state_dict` gives."""
        own = self.state_dict()
        checkpoints.check_keys("moa", state, own)
        for name, value in own.items():
            if name != "optimizer":
                checkpoints.check_like(f"moa.{name}", state[name], value)
        checkpoints.check_optimizer(state["optimizer"], self.vae, self.optimizer)
        self.vae.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.recorder.load_state_dict(state["recorder"])
        self.learnt = int(state["numbers"]["learnt"])
        self.nll = float(state["numbers"]["nll"])
        none, hazard = state["numbers"]["law"].tolist()
        if not 0 <= none < 1 or not 0 <= hazard < 1:
            raise ValueError(f"moa.numbers.law: expected two probabilities, found {none} and {hazard}")
        self.vae.belief_law = BeliefLaw(none, hazard)
        self.goal_counts = state["goal_counts"].clone()
        self.action_counts = state["action_counts"].clone()


def new_vae(args: Args, rules: GameRules) -> VAE:
    """With its first weights."""
    game = rules.game
    with tracking.kept_rng():
        torch.manual_seed(args.seed)
        return VAE(rules.height, rules.width, rules.horizon, kinds=game.kinds, goal_kinds=game.goal_kinds)


# ---- PPO


@dataclass
class Batch:
    """The samples of a rollout of all processes, only of learners on the board: M of them."""

    obs: Observation
    opponent_info: Tensor  # float [M, A - 1, I]
    actions: Tensor  # int64 [M]
    logprobs: Tensor  # float [M], as the rest
    values: Tensor
    advantages: Tensor
    returns: Tensor
    improved: Tensor  # float [M, 5 + k], the policy of a search; [M, 0] without one
    history: "History | None" = None  # of a policy with a memory

    @staticmethod
    def cat(batches: list["Batch"]) -> "Batch":
        if len(batches) == 1:
            return batches[0]
        names = [field.name for field in fields(Batch)][1:-1]
        obs = Observation.cat([batch.obs for batch in batches])
        return Batch(obs, *(torch.cat([getattr(batch, name) for batch in batches]) for name in names))


def compute_gae(
    rewards: Tensor,
    values: Tensor,
    active: Tensor,
    dones: Tensor,
    final_values: Tensor,
    next_value: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016), float [T, N]; inactive rows get advantage 0.

    Args: all [T, N], but next_value [N], V after the last tick. active: on the board before the tick; dones: the learner's
    game ended with it; final_values: V of its last observation where the horizon truncated it, 0 where the rules ended it.
    """
    advantages = torch.zeros_like(rewards)
    lastgaelam = torch.zeros_like(next_value)
    for t in reversed(range(len(rewards))):
        following = torch.where(dones[t], final_values[t], next_value)
        delta = rewards[t] + gamma * following - values[t]
        lastgaelam = delta + gamma * gae_lambda * torch.where(dones[t], 0.0, lastgaelam)
        lastgaelam = torch.where(active[t], lastgaelam, 0.0)
        advantages[t] = lastgaelam
        next_value = values[t]
    return advantages


def compute_team_gae(
    rewards: Tensor,
    values: Tensor,
    active: Tensor,
    dones: Tensor,
    truncated: Tensor,
    final_values: Tensor,
    next_value: Tensor,
    next_active: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """The same for a reward that the whole team shares, [T, B, A]: one return a board, which goes on until the board ends,
    estimated by the mean of V over the hunters on the board. truncated: whom the horizon cut off. Returns: [T, B, A]."""

    def team_mean(array: Tensor, mask: Tensor) -> Tensor:
        return (array * mask).sum(-1) / mask.sum(-1).clamp(min=1)

    team_values = team_mean(values, active)  # [T, B]
    advantages = compute_gae(
        rewards.mean(2),
        team_values,
        active.any(2),
        ~(active & ~dones).any(2),
        team_mean(final_values, truncated),
        team_mean(next_value, next_active),
        gamma,
        gae_lambda,
    )
    team_returns = advantages + team_values
    return torch.where(active, team_returns[..., None] - values, 0.0)


@torch.no_grad()
def rollout(
    agent: ActorCritic,
    collector: Collector,
    args: Args,
    episode_stats: Tensor,
    world: tracking.World = tracking.ALONE,
) -> Batch:
    """num_steps ticks of all rows; with a planner it is the search that moves. episode_stats: float [3], added to: boards
    that ended, the sum of their (mean) returns, the sum of their lengths. Returns: the samples of all processes, in the
    order of one that plays all boards."""
    envs, opponents = collector.envs, collector.opponents
    rows = envs.rows_per_board
    device = world.device
    next_obs, next_info = collector.observe(device)

    shape = (args.num_steps, envs.num_envs)
    obs = next_obs.map(lambda part: part.new_zeros((args.num_steps, *part.shape)))
    opponent_info = next_info.new_zeros((args.num_steps, *next_info.shape))
    actions = torch.zeros(shape, dtype=torch.int64, device=device)
    logprobs = torch.zeros(shape, device=device)
    values = torch.zeros(shape, device=device)
    rewards = torch.zeros(shape, device=device)
    dones = torch.zeros(shape, dtype=torch.bool, device=device)
    truncations = torch.zeros(shape, dtype=torch.bool, device=device)
    final_values = torch.zeros(shape, device=device)
    history = HistoryBuffer(opponents) if isinstance(opponents, HistoryInfo) else None
    planner = collector.planner
    improved = torch.zeros(*shape, envs.rules.game.num_actions if planner else 0, device=device)

    for step in range(args.num_steps):
        obs[step] = next_obs
        opponent_info[step] = next_info
        policy, values[step] = agent(next_obs, next_info)
        actions[step] = sample(policy, world)
        logprobs[step] = policy.gather(1, actions[step, :, None])[:, 0]
        if planner:
            actions[step], improved[step] = planner(next_obs, next_info, collector.infos)
        _, *outcome, infos = envs.step(actions[step].cpu().numpy())
        reward, terminated, truncated = map(torch.as_tensor, outcome)
        collector.infos = infos = to_tensors(infos)
        if history:
            history.add(infos)
        opponents.update(infos)
        if collector.recorder:
            collector.recorder.update(infos, terminated)

        rewards[step] = reward
        on_board = infos["active"].gather(1, infos["seat"][:, None])[:, 0]
        ended = terminated | truncated  # the episode, in self-play that of the board
        dones[step] = ended | ~on_board
        last = truncated & on_board
        truncations[step] = last
        if last.any() and not args.end_at_horizon:
            # Pardo et al. 2018, Time Limits in Reinforcement Learning
            last_obs, last_info = collector.observe(device)
            final_values[step, last] = agent.get_value(last_obs[last], last_info[last])
        collector.episode_returns += reward
        if ended.any():
            board_ended = ended[::rows]
            board_returns = collector.episode_returns.view(-1, rows).mean(1)[board_ended]
            lengths = infos["tick"][::rows][board_ended]
            episode_stats += torch.stack([board_ended.sum(), board_returns.sum(), lengths.sum()])
            collector.episode_returns[ended] = 0.0
            collector.reset(ended)
        next_obs, next_info = collector.observe(device)

    next_value = agent.get_value(next_obs, next_info)
    active = obs.active[:, :, 0]
    if args.team_reward:
        by_tick = [rewards, values, active, dones, truncations, final_values]
        by_seat = [part.unflatten(-1, (-1, rows)) for part in (*by_tick, next_value, next_obs.active[:, 0])]
        advantages = compute_team_gae(*by_seat, args.gamma, args.gae_lambda).flatten(1)
    else:
        advantages = compute_gae(
            rewards, values, active, dones, final_values, next_value, args.gamma, args.gae_lambda
        )
    parts = (opponent_info, actions, logprobs, values, advantages, advantages + values, improved)
    flat_obs = obs.map(lambda part: world.gather(part, dim=1).flatten(0, 1))
    flat_parts = [world.gather(part, dim=1).flatten(0, 1) for part in parts]
    b_inds = flat_obs.active[:, 0].nonzero()[:, 0]
    whole = history.history(b_inds) if history else None
    return Batch(flat_obs[b_inds], *(part[b_inds] for part in flat_parts), whole)


class HistoryBuffer:
    """Collects the `History` of a rollout."""

    def __init__(self, opponents: HistoryInfo):
        self.opponents = opponents
        self.hidden = opponents.hidden
        self.ticks: list[tuple[Tensor, ...]] = []

    def add(self, infos: Infos) -> None:
        """After a tick, before the opponents are updated. infos: of the environment after it."""
        others = self.opponents.order()[:, 1:]
        actions = infos["joint_actions"].long().gather(1, others)
        playing = self.opponents.infos["active"].gather(1, others)
        self.ticks.append((self.opponents.seen, self.opponents.fresh, actions, playing))

    def history(self, samples: Tensor) -> History:
        inputs, fresh, actions, playing = map(torch.stack, zip(*self.ticks, strict=True))
        return History(inputs, fresh, self.hidden, actions, playing, samples)


def update(
    agent: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    args: Args,
    frac: float,
    world: tracking.World = tracking.ALONE,
) -> dict[str, Tensor]:
    """PPO's epochs on one rollout. Of several processes each takes its share of every minibatch. frac: share of the
    training that is left. Returns: means over ALL minibatches taken."""
    optimizer.param_groups[0]["lr"] = args.learning_rate * frac
    batch_size = len(batch.actions)
    sums: dict[str, Tensor] = {}
    epochs = 0
    for _ in range(args.update_epochs):
        for minibatch, rows in minibatches(batch, args.num_minibatches):
            size = len(minibatch)
            mb_advantages = batch.advantages[minibatch]
            if args.norm_adv:
                mb_mean, mb_std = mb_advantages.mean(), mb_advantages.std(correction=0)
                mb_advantages = (mb_advantages - mb_mean) / (mb_std + 1e-8)

            mb_inds = minibatch[world.rank :: world.size]
            mb_advantages = mb_advantages[world.rank :: world.size]
            mb_obs, mb_actions = batch.obs[mb_inds], batch.actions[mb_inds]
            if rows is None:
                mb_info, prediction_loss = batch.opponent_info[mb_inds], 0.0
            else:
                mb_info, prediction_loss = remember(agent.memory, batch.history, minibatch, rows)
            newlogprobs, newvalue = agent(mb_obs, mb_info)
            newlogprob = newlogprobs.gather(1, mb_actions[:, None])[:, 0]
            entropy = entropy_of(newlogprobs)
            logratio = newlogprob - batch.logprobs[mb_inds]
            ratio = logratio.exp()

            clipped_ratio = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            if args.plan_train:
                pg_loss = -(batch.improved[mb_inds] * newlogprobs.clamp(min=-50.0)).sum() / size
            else:
                pg_loss = -torch.min(mb_advantages * ratio, mb_advantages * clipped_ratio).sum() / size
            v_errors = ((newvalue - batch.returns[mb_inds]) / agent.value_scale).square()
            if args.clip_vloss:
                v_old, v_range = batch.values[mb_inds], args.clip_coef * agent.value_scale
                v_clipped = v_old + (newvalue - v_old).clamp(-v_range, v_range)
                v_errors_clipped = ((v_clipped - batch.returns[mb_inds]) / agent.value_scale).square()
                v_errors = torch.max(v_errors, v_errors_clipped)
            v_loss = 0.5 * (v_errors.sum() / size)
            entropy_loss = entropy.sum() / size
            loss = pg_loss - args.ent_coef * frac * entropy_loss + args.vf_coef * v_loss + prediction_loss

            optimizer.zero_grad()
            loss.backward()
            world.sum_gradients(agent)
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()

            with torch.no_grad():  # http://joschu.net/blog/kl-approx.html
                losses = {
                    "policy_loss": pg_loss,
                    "value_loss": v_loss,
                    "entropy": entropy_loss,
                    "old_approx_kl": -(logratio.sum() / size),
                    "approx_kl": (ratio - 1 - logratio).sum() / size,
                    "clipfrac": ((ratio - 1).abs() > args.clip_coef).float().sum() / size,
                }
                weight = size / batch_size
                sums = {name: sums.get(name, 0.0) + weight * value for name, value in losses.items()}
        epochs += 1
        # All processes add up their shares, so that they stop together.
        if args.target_kl is not None and world.sum(losses["approx_kl"]) > args.target_kl:
            break
    means = world.sum(torch.stack(list(sums.values())).detach()) / epochs
    return dict(zip(sums, means, strict=True))


def minibatches(batch: Batch, number: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Samples in random order, the same in every process; with a memory those of whole rows of the rollout, and these."""
    device = batch.actions.device
    if batch.history is None:
        order = torch.randperm(len(batch.actions), device=device)
        yield from ((part, None) for part in order.split(math.ceil(len(order) / number)))
        return
    num_rows = batch.history.fresh.shape[1]
    for rows in torch.randperm(num_rows, device=device).split(math.ceil(num_rows / number)):
        own = torch.zeros(num_rows, dtype=torch.bool).index_fill_(0, rows, True)
        minibatch = own[batch.history.samples % num_rows].nonzero()[:, 0]
        if len(minibatch):  # in self-play all learners of these rows may have left the board
            yield minibatch, rows


def remember(
    memory: Memory, history: History, samples: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor | float]:
    """What the memory knows in these samples of these rows, float [m, A - 1, H], and the loss of its predictions."""
    remembered = memory.replay(history, rows)  # [T, n, A - 1, H]
    at = history.samples[samples]
    num_rows = history.fresh.shape[1]
    place = torch.empty(num_rows, dtype=torch.int64).index_copy_(0, rows, torch.arange(len(rows)))
    info = remembered[at.div(num_rows, rounding_mode="floor"), place[at % num_rows]]
    if not memory.predicts:
        return info, 0.0
    return info.detach(), memory.prediction_loss(remembered, history, rows)


def explained_variance(batch: Batch) -> Tensor:
    """Of the returns by the critic: 1 is all, 0 none; NaN where they do not vary."""
    return 1 - (batch.returns - batch.values).var(correction=0) / batch.returns.var(correction=0)


# ---- planning


class Planner:
    """Searches a tree before each move of the learners of a vector environment, in a model of the game.

    kind: `learned`, the world model; `rules`, the rules of the game; both with co-players whose goals are drawn from the
    belief, once a tree, and who act as the goal heads of the MOA say. `oracle`: the rules, and the true strategies.

    Built in, also with `learned`: when a board ends, as in `WorldModelEnv`.
    """

    def __init__(
        self,
        policy: ActorCritic,
        envs: Envs,
        opponents: NoInfo,
        args: Args,
        vae: nn.Module | None,
        world_model: nn.Module | None,
        kind: str,
        imagined: ActorCritic | None = None,
    ):
        """imagined: of `imagine`; it is searched with instead of the policy."""
        self.policy = imagined or policy
        self.reads_goals = imagined is not None or isinstance(opponents, GoalBelief)
        self.rules = envs.rules
        self.opponents = opponents
        self.args = args
        self.beta = args.plan_beta / scale_of_returns(envs.rules)
        self.kind = kind
        self.belief = None  # about goals: that of the policy, or one beside it
        if kind == "learned":
            self.world_model = world_model.on(self.rules.height, self.rules.width)
        if kind == "oracle":
            self.samples = 1
            self.simulations = args.oracle_simulations
        else:
            self.samples = args.plan_samples
            self.simulations = max(1, args.plan_simulations // self.samples)
            self.belief = opponents
            if not isinstance(opponents, GoalBelief):
                infos = opponents.infos
                self.belief = GoalBelief(infos, envs.rows_per_board, vae, self.rules, args.belief_discount)
            self.goal_policy = self.belief.goal_policy
        self.rng = np.random.default_rng(args.seed)
        self.decisions = 0
        self.seconds = 0.0

    @property
    def own_belief(self) -> GoalBelief | None:
        """The belief beside the policy, which the planner alone keeps up to date."""
        return None if self.belief is self.opponents else self.belief

    def update(self, infos: Infos) -> None:
        """As `NoInfo.update`."""
        if self.own_belief:
            self.own_belief.update(infos)

    def reset(self, boards: Tensor, infos: Infos) -> None:
        """As `NoInfo.reset`."""
        if self.own_belief:
            self.own_belief.reset(boards, infos)

    def clear(self) -> None:
        """Forget what was computed of boards and steps, so that a resumed run and the one that goes on round alike."""
        self.world_model.clear()

    def __call__(self, obs: Observation, opponent_info: Tensor, infos: Infos) -> tuple[Tensor, Tensor]:
        """obs, opponent_info: what the policy sees and knows, [N, ..]. Returns: actions int64 [N], and the policy of the
        search, float [N, 5 + k]."""
        beliefs = self.own_belief.features() if self.own_belief else opponent_info
        action = torch.full_like(infos["seat"], STAY)
        improved = F.one_hot(action, obs.action_mask.shape[1]).float()
        rows = (obs.action_mask.sum(1) > 1).nonzero()[:, 0]
        if not len(rows):
            return action, improved
        start = time.perf_counter()
        self.infos = infos
        self.board = rows.repeat_interleave(self.samples)  # [T], of each tree
        self.seat = infos["seat"][self.board]
        self.goals = infos["strategy_ids"][self.board].clamp(min=0)  # [T, A]
        if self.belief is not None:
            log_belief = self.belief.log_belief[self.board]  # [T, A, G + 1]
            self.goals = sample(log_belief.flatten(0, 1)).view(self.goals.shape)
        self.opponent_info = self.info_of_trees(opponent_info)
        if self.kind != "oracle":
            self.table = self.goal_policy.sync(infos["blocks"], infos["prey"])
        root = tuple(infos[key][self.board] for key in ("hunters", "prey", "tick", "first_hunt"))
        if self.args.plan_search == "gumbel" and self.kind != "oracle":
            known = beliefs if self.reads_goals else opponent_info
            log_prior = self.policy(obs[rows], known[rows])[0]
            action[rows], improved[rows] = self.search_gumbel(root, log_prior)
        else:
            action[rows], improved[rows] = self.search_puct(root, obs.action_mask[rows])
        self.decisions += len(rows)
        self.seconds += time.perf_counter() - start
        return action, improved

    def search_puct(self, root: tuple, action_mask: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [n], drawn from exp(beta Q), and that policy. action_mask: bool [n, 5 + k]."""
        result = search(root, self.step, self.evaluate, self.simulations, self.args.gamma)
        policy, _ = root_policy(result, self.samples, self.beta, action_mask)
        return sample(policy.log()), policy

    def search_gumbel(self, root: tuple, log_prior: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [n], and the improved policy. log_prior: float [n, 5 + k], of the policy as it is without a search."""
        budget = (self.simulations, self.samples, self.args.gamma, self.beta)
        result = gumbel_search(root, self.step, self.evaluate, log_prior, *budget)
        return result.actions, result.policy

    def info_of_trees(self, opponent_info: Tensor) -> Tensor:
        """float [T, A - 1, I]: a tree's goals are what the policy believes in; z stays what it is at the root."""
        knows_strategies = isinstance(self.opponents, OracleInfo) and self.belief is not None
        if not self.reads_goals and not knows_strategies:
            return opponent_info[self.board]
        A = self.rules.hunters
        goals = self.goals.gather(1, (self.seat[:, None] + torch.arange(1, A)) % A)  # [T, A - 1]
        if self.reads_goals:
            knower = self.belief or self.opponents
            return F.one_hot(goals, knower.info_size + 1)[..., :-1].float()
        return F.one_hot(goals, self.opponents.info_size).float()

    def evaluate(self, state: tuple, tree: Tensor) -> tuple[Tensor, Tensor]:
        """log pi [n, 5 + k] and V [n] in states of these trees: the prior and the value of new nodes."""
        hunters, prey, tick, first_hunt = state
        time_features = encode_time(tick, first_hunt, self.rules)
        board, seat = self.board[tree], self.seat[tree]
        maps = (self.infos["distances"], self.infos["blocks"])
        obs = observe(hunters, prey, time_features, seat, board, *maps, self.rules)
        return self.policy(obs, self.opponent_info[tree])

    def step(self, state: tuple, actions: Tensor, tree: Tensor) -> tuple[tuple, Tensor, Tensor]:
        """One tick of the model. actions: int64 [n], the learners'. Returns: states, rewards [n] and ends [n] for them."""
        hunters, prey, tick, first_hunt = state
        rules, board, seat = self.rules, self.board[tree], self.seat[tree]
        if self.kind == "oracle":
            probs = self.strategy_probs(board, state, self.goals[tree])
        else:
            probs = self.table.probs(board, hunters, prey, tick, self.goals[tree])
        cumulative = probs.cumsum(2)  # [n, A, 5 + k]
        joint_actions = (cumulative < cumulative[..., -1:] * torch.rand((*hunters.shape, 1))).sum(2)
        joint_actions.scatter_(1, seat[:, None], actions[:, None])
        blocks = self.infos["blocks"][board]
        if self.kind == "learned":
            boards = JointState(blocks.float(), hunters, prey, rules.prey_counts)
            boards, rewards, _ = self.world_model.step(boards, joint_actions)
            first_hunt = first_hunt_after(first_hunt, tick, prey, boards.prey, rules.cells)
            state = (boards.hunters, boards.prey, tick + 1, first_hunt)
            over = rules.ended(tick, first_hunt, boards.hunters < rules.cells, boards.prey)
            over |= tick + 1 >= rules.horizon
        else:
            cells = Cells(*(part.numpy() for part in state))
            after = step_cells(cells, joint_actions.numpy(), blocks.numpy(), rules, self.rng)
            state = tuple(map(torch.as_tensor, after[0]))
            rewards, over = map(torch.as_tensor, after[1:])
        left = state[0].gather(1, seat[:, None])[:, 0] == rules.cells
        return state, rewards.gather(1, seat[:, None])[:, 0], over | left

    def strategy_probs(self, board: Tensor, state: tuple, strategy_ids: Tensor) -> Tensor:
        """float64 [n, A, 5 + k]: the exact action probabilities of scripted hunters."""
        cells = Cells(*(part.numpy() for part in state))
        distances = self.infos["distances"][board].numpy()
        blocks = self.infos["blocks"][board].numpy()
        names = tuple(self.rules.game.strategies)
        ids = strategy_ids.numpy()
        return torch.as_tensor(cells_probs(cells, names, ids, DATA_EPSILON, distances, blocks, self.rules))


class KnownGoals(NoInfo):
    """The goal of each co-player of an imagined board, one-hot; zeros for none."""

    def __init__(self, infos: Infos, goals: int):
        super().__init__(infos)
        self.info_size = goals

    def board_features(self) -> Tensor:
        goals = self.per_board("strategy_ids").clamp(min=0)  # the learner's own is -1, and goes unread
        return F.one_hot(goals, self.info_size + 1)[..., :-1].float()


def reader_of_goals(policy: ActorCritic, om: str, rules: GameRules, goals: int) -> ActorCritic:
    """A copy of a policy that knows nothing of the others, or P(goal), which is given their goals; of the former, at first
    without effect. What others know is not known in imagination: of these a new network of the same kind."""
    if om == "belief":
        return copy.deepcopy(policy).train()
    network = rebuild_agent(policy.sizes | dict(info_size=goals), rules, "belief")
    if om == "none":
        weights = network.state_dict()
        for name, known in policy.state_dict().items():
            own = weights[name].zero_()  # what is known of others comes last
            own[tuple(map(slice, known.shape))] = known
    return network


@torch.enable_grad()
def imagine(
    policy: ActorCritic, args: Args, rules: GameRules, vae: nn.Module, world_model: nn.Module, starts: tuple
) -> ActorCritic:
    """Background planning (Dyna, Sutton 1991): PPO trains a copy of the policy, `reader_of_goals`, on imagined boards with
    every sort of team, whose goals it is given. Settings are those of its run; the learning rate falls linearly to zero.

    In search trees goals are known, and the policy's own critic may be wrong about teams that it seldom met.
    starts: boards to begin from, blocks, hunters and prey.
    """
    network = reader_of_goals(policy, args.om, rules, vae.moa.num_goals)
    changes = dict(om="none", imagined_co_players="goals", team_reward=False, plan_train=False)
    args = replace(args, num_steps=PLAN_STEPS, team_episodes=1, **changes)
    optimizer = make_optimizer(network, args)
    envs = make_world_model_envs(args, rules, len(starts[0]), starts, world_model, vae)
    collector = Collector(envs, args, vae, args.seed)
    collector.opponents = KnownGoals(collector.infos, vae.moa.num_goals)
    for now in tqdm(range(args.plan_fit), unit=" updates in imagination", leave=False):
        batch = rollout(network, collector, args, torch.zeros(3))
        update(network, optimizer, batch, args, 1 - now / args.plan_fit)
    return network.eval()


# ---- judging


@torch.no_grad()
def evaluate(
    policy: Callable,
    envs: Envs,
    infos: Infos,
    opponents: NoInfo,
    episodes: int = 1,
    planner: Planner | None = None,
    frames: list[dict] | None = None,
    recorder: EpisodeRecorder | None = None,
) -> dict[str, np.ndarray]:
    """Whole boards, played until they end, `episodes` in a row with the same teams.

    policy: (Observation, opponent_info) -> (log pi, V). planner: chooses the actions instead of the policy. frames: what the
    first board shows at each tick is appended. recorder: of the only episode. Returns: arrays [episodes, B]: learner (its
    return; self-play: that of seat 0), team (mean return of all hunters), length, and how many of each kind of prey were
    captured: stags, hares or drifts.
    """
    rows, rules = envs.rows_per_board, envs.rules
    trackers = [opponents] if planner is None else [opponents, planner]
    kinds = [plane.lower() for plane in rules.game.prey]
    results = {key: [] for key in ("learner", "team", "length", *kinds)}
    for episode in range(episodes):
        if episode:
            _, infos = envs.reset(options={"reset_mask": np.ones(envs.num_envs, bool)})
            infos = to_tensors(infos)
            for tracker in trackers:
                tracker.reset(torch.ones(envs.num_boards, dtype=torch.bool), infos)
        joint_returns = torch.zeros(envs.num_boards, rules.hunters)
        over = torch.zeros(envs.num_envs, dtype=torch.bool)
        while not over.all():
            info = opponents.features()
            obs = observe_envs(infos, rules)
            if frames is not None:
                frames.append(film_frame(envs, infos, opponents, joint_returns))
            action = sample(policy(obs, info)[0]) if planner is None else planner(obs, info, infos)[0]
            _, _, terminated, truncated, infos = envs.step(action.numpy())
            infos = to_tensors(infos)
            over |= torch.as_tensor(terminated | truncated)
            joint_returns += infos["joint_rewards"][::rows]
            for tracker in trackers:
                tracker.update(infos)
            if recorder:
                recorder.update(infos, torch.as_tensor(terminated))
        if frames is not None:
            frames.append(film_frame(envs, infos, opponents, joint_returns))
        captured = infos["prey"][::rows] == rules.cells
        results["learner"].append(joint_returns.gather(1, infos["seat"][::rows, None])[:, 0])
        results["team"].append(joint_returns.mean(1))
        results["length"].append(infos["tick"][::rows])
        for kind, part in zip(kinds, kind_slices(rules.prey_counts), strict=True):
            results[kind].append(captured[:, part].sum(1))
    return {key: torch.stack(values).numpy() for key, values in results.items()}


def record_games(agent: ActorCritic, args: Args, rules: GameRules, vae: nn.Module | None) -> Trajectories:
    """Games of a run's team, learners and all, on boards of the seed of its training. Strategies are not recorded."""
    torch.manual_seed(args.seed)
    envs = make_envs(rules, args.eval_boards, co_players_of(args.co_players, args, rules), episode="board")
    infos = to_tensors(envs.reset(seed=args.seed)[1])
    recorder = EpisodeRecorder(rules, envs.num_boards, envs.num_boards, envs.rows_per_board)
    recorder.reset(torch.ones(envs.num_boards, dtype=torch.bool), infos)
    opponents = make_opponents(args, envs, infos, vae, agent.memory)
    evaluate(with_random_moves(agent), envs, infos, opponents, recorder=recorder)
    recorder.finish()
    return recorder.trajectories(envs.num_boards)[0]


@dataclass
class Evaluator:
    """Judges policies on fresh boards, which are the same for every policy."""

    args: Args
    rules: GameRules
    vae: nn.Module | None
    world_model: nn.Module | None
    progress: tqdm | None = None  # each `play` moves it on by its `cost`

    def __post_init__(self) -> None:
        # A search asks the same few things of many boards.
        if self.args.plan and self.args.plan_model == "learned":
            self.world_model = CachedWorldModel(self.world_model)
        self.imagined: dict[Callable, ActorCritic] = {}

    def play(
        self,
        policy: Callable,
        team: str,
        seed: int,
        boards: int = 0,
        episodes: int = 0,
        om: str = "",
        plan: str = "",
    ) -> dict[str, np.ndarray]:
        """As `evaluate`, in so many boards and episodes in a row (0: as set, and as the game has it). om: what the policy
        knows, if not what --om says. plan: search, in `learned` or `rules`, or as the `oracle`, which knows who they are.
        """
        episodes = episodes or self.args.team_episodes
        boards = boards or max(2, math.ceil(self.args.eval_boards / episodes))
        args = replace(self.args, om=om or self.args.om)
        imagined = self.imagine(policy) if plan == "learned" and args.plan_fit else None
        with tracking.kept_rng():
            torch.manual_seed(seed)
            co_players = co_players_of(team, args, self.rules)
            envs = make_envs(self.rules, boards, co_players, episodes, episode="board")
            infos = to_tensors(envs.reset(seed=seed)[1])
            memory = getattr(policy, "memory", None)
            opponents = make_opponents(args, envs, infos, self.vae, memory)
            planner = None
            if plan:
                planner = Planner(policy, envs, opponents, args, self.vae, self.world_model, plan, imagined)
            results = evaluate(policy, envs, infos, opponents, episodes, planner)
        self.move_on(self.cost(boards, episodes, plan))
        return results

    def move_on(self, cost: float) -> None:
        """The bar, but not beyond its end: scripts of which each team has its own take some plays that were not foreseen."""
        if self.progress is not None:
            self.progress.update(min(cost, max(0.0, self.progress.total - self.progress.n)))

    def cost(self, boards: int = 0, episodes: int = 0, plan: str = "", **_: Any) -> float:
        """What `play` with these takes of the time of one update, about."""
        args = self.args
        episodes = episodes or args.team_episodes
        boards = boards or max(2, math.ceil(args.eval_boards / episodes))
        simulations = args.oracle_simulations if plan == "oracle" else args.plan_simulations
        ticks = boards * episodes * self.rules.horizon * (1 + simulations * bool(plan))
        return PLAY_COST * ticks / (args.num_envs * args.num_steps)

    @property
    def cost_of_imagination(self) -> float:
        """The same of `imagine`, of which an update takes about twice as long as one of real boards."""
        return (
            2.0 * self.args.plan_fit * PLAN_BOARDS * PLAN_STEPS / (self.args.num_envs * self.args.num_steps)
        )

    def cost_of_report(self, agent: ActorCritic) -> float:
        """The same of `report`: who plays whom is asked with a `play` that plays nothing."""
        costs = []
        nothing = dict.fromkeys(("learner", "team", "length"), np.zeros((1, 2)))

        def play(*_: Any, **how: Any) -> dict[str, np.ndarray]:
            costs.append(self.cost(**how))
            return nothing

        with tracking.kept_rng():
            self.judge(agent, play)
        if self.args.plan and self.args.plan_model == "learned":
            costs.append(self.cost_of_imagination)
        return sum(costs)

    def imagine(self, policy: ActorCritic) -> ActorCritic:
        """Once for each policy, from boards of the seed of its training."""
        if policy not in self.imagined:
            with tracking.kept_rng():
                infos = to_tensors(make_envs(self.rules, PLAN_BOARDS, "mixed").reset(seed=self.args.seed)[1])
                starts = tuple(infos[key] for key in ("blocks", "hunters", "prey"))
                networks = (self.vae, self.world_model)
                torch.manual_seed(self.args.seed)
                self.imagined[policy] = imagine(policy, self.args, self.rules, *networks, starts)
            self.move_on(self.cost_of_imagination)
        return self.imagined[policy]

    @property
    def final_seed(self) -> int:
        return HIDDEN_FINAL_SEED if "-hidden-" in self.args.env_id else FINAL_SEED

    def untrained(self, agent: ActorCritic) -> ActorCritic:
        """A network of the same kind with its first weights."""
        with tracking.kept_rng():
            torch.manual_seed(self.args.seed)
            return rebuild_agent(agent.sizes, self.rules, self.args.om)

    def players(self, agent: ActorCritic) -> dict[str, dict]:
        """Who is compared, and how it plays; searching players play --plan-boards of the boards."""
        args = self.args
        few = max(2, math.ceil(args.plan_boards / args.team_episodes))
        players = {
            "teams": dict(policy=agent),
            "untrained": dict(policy=self.untrained(agent)),
            "random": dict(policy=uniform_policy, om="none"),
        }
        best = dict(policy=agent)
        if args.oracle:
            best = dict(policy=load_agent(args.oracle)[0], om="oracle", scripted_only=True)
            players["oracle"] = best
        if args.plan:
            players["plan"] = dict(policy=agent, plan=args.plan_model, boards=few, scripted_only=True)
        if args.oracle_simulations:
            players["oracle_search"] = best | dict(plan="oracle", boards=few, scripted_only=True)
        return players

    def teams(self) -> list[str]:
        """A policy that knows which of a population's policies a co-player is meets these alone."""
        teams = standard_teams(self.args.co_players, self.rules)
        knows_policies = self.args.om == "oracle" and is_population(self.args.co_players)
        return teams[:1] if knows_policies else teams

    def judge(self, agent: ActorCritic, play: Callable) -> tuple[returns.Results, dict[str, list[dict]]]:
        """What it and its rivals earn with each team, and what it earns by episode among the same co-players."""
        args, seed = self.args, self.final_seed
        teams = self.teams()
        players = self.players(agent)
        script_boards = min(args.eval_boards, SCRIPT_BOARDS)
        results = compare(play, players, self.rules, teams, seed, EVAL_SEED, script_boards)
        teams = [team for team in teams if team != "self"]
        if args.om in ("none", "oracle"):  # it remembers nothing of earlier episodes: one team shows that
            teams = teams[:1]
        return results, adapt(play, agent, teams, seed, args.plan_boards)

    def report(
        self, agent: ActorCritic, folder: Path, head: dict, stem: str, writer: Any = None, step: int = 0
    ) -> None:
        """Print, write and draw all that is judged of an agent; step: at which the figures are logged."""
        args, seed = self.args, self.final_seed
        players = ", ".join(["script", *self.players(agent)])
        teams = ", ".join(self.teams())
        tqdm.write(f"[PPO] judging on boards of seed {seed}: {players}; each with {teams}")
        results, adaptation = self.judge(agent, self.play)
        if self.progress is not None:
            self.progress.close()
        tracking.write_csv(folder / f"{stem}_teams.csv", returns.table_rows(results))
        rows = [dict(team=team) | row for team, by_episode in adaptation.items() for row in by_episode]
        tracking.write_csv(folder / f"{stem}_adaptation.csv", rows)
        final = {key: results["teams"][args.co_players][key] for key in ("learner", "team")}
        tracking.log_scalars(writer, "final", final, step)
        script = describe_script(self.rules)
        for line in returns.lines(results, adaptation, script, EVAL_SEED, seed):
            print(line if line.startswith(" ") else f"[PPO] {line}")
        for name, figure in figures.of_returns(results, adaptation, args.plan_boards).items():
            figures.save(figure, folder / f"{stem}_{name}.png", writer, step)
        by_episode = {team: [row["learner"] for row in rows] for team, rows in adaptation.items()}
        content = head | dict(eval_seed=EVAL_SEED, final_seed=seed, oracle=None, oracle_search=None)
        tracking.write_json(folder / f"{stem}.json", content | results | {"adaptation": by_episode})
        self.film(agent, folder / f"{stem}_episode.gif")
        if self.args.om == "belief" and not self.vae.moa.free_goals:
            self.film_strangers(agent, folder / f"{stem}_episode.gif")

    def film(self, agent: ActorCritic, path: Path) -> None:
        """An episode; beside the board each hunter, what is believed of it, P(first goal), and who it is."""
        frames, shows_belief = self.film_frames(agent, self.final_seed)
        figures.play_film(frames, self.rules.game, shows_belief, path)

    def film_frames(self, agent: ActorCritic, seed: int) -> tuple[list[dict], bool]:
        """Of an episode on the first board of a seed, and whether there are beliefs to show: found goals have no names."""
        frames: list[dict] = []
        with tracking.kept_rng():
            torch.manual_seed(self.args.seed)
            co_players = co_players_of(self.args.co_players, self.args, self.rules)
            envs = make_envs(self.rules, 1, co_players, self.args.team_episodes, episode="board")
            infos = to_tensors(envs.reset(seed=seed)[1])
            opponents = make_opponents(self.args, envs, infos, self.vae, agent.memory)
            evaluate(agent, envs, infos, opponents, frames=frames)
        return frames, isinstance(opponents, GoalBelief) and opponents.named_goals

    def film_strangers(self, agent: ActorCritic, path: Path) -> None:
        """The first and the last of some episodes with the same co-players, who all have the second goal, on the same board:
        what differs is what is believed of them. Saved beside `path`."""
        second_goal = list(self.rules.game.goals.values())[SECOND]
        team = f"{self.rules.hunters - 1}{second_goal}"
        everywhere = np.ones(1, bool)
        with tracking.kept_rng():
            torch.manual_seed(self.args.seed)
            envs = make_envs(self.rules, 1, team, FILMED_EPISODES, episode="board")
            infos = to_tensors(envs.reset(seed=self.final_seed)[1])
            first_board = envs.state_dict()
            opponents = make_opponents(self.args, envs, infos, self.vae)
            for episode in range(1, FILMED_EPISODES + 1):
                if episode > 1:
                    infos = to_tensors(envs.reset(options={"reset_mask": everywhere})[1])
                if episode == FILMED_EPISODES:
                    envs.load_state_dict(first_board)
                    infos = to_tensors(envs.reset(options={"reset_mask": ~everywhere})[1])
                if episode > 1:
                    opponents.reset(torch.as_tensor(everywhere), infos)
                frames: list[dict] = []
                evaluate(agent, envs, infos, opponents, frames=frames)
                if episode in (1, FILMED_EPISODES):
                    film = path.with_stem(f"{path.stem}_strangers{episode}")
                    figures.play_film(frames, self.rules.game, True, film)


# ---- the run


def load_rules(args: Args) -> tuple[GameRules, int]:
    """Rules and team_episodes of the game. Raises: tracking.UsageError: there is no such game, or it has no such rule."""
    try:
        rules, settings = make_rules(args.env_id, args.env_args)
    except ValueError as error:
        flag = "--env-args" if args.env_id in REGISTERED else "--env-id"
        raise tracking.UsageError(f"{flag}: {error}") from None
    return rules, settings.get("team_episodes", 1)


def load_networks(args: Args, rules: GameRules) -> tuple[nn.Module | None, nn.Module | None]:
    """The VAE and the world model that the settings need; their folders go into the settings. Raises: tracking.UsageError:
    there is none, or it was trained for another game or without what is needed of it."""
    vae = world_model = None
    needs_goals, needs_names = fit.needs_of_vae(args, imagined_team(args))
    is_default_game = rules == make_rules("StagHunt-v0")[0]
    if args.moa_update == "empty":
        vae = new_vae(args, rules)
    elif needs_goals or args.om == "latent" or args.moa_update == "pretrained":
        args.vae = tracking.network_run(args.vae, "vae_ckpts", "pretrain_vae.py", is_default_game)
        vae, checkpoint = load_vae(args.vae)
        fit.check_vae(args.vae, vae, checkpoint, rules, needs_goals, needs_names)
        print(*fit.describe_vae(args.vae, checkpoint, rules, args.env_id), sep="\n")
    if args.real_ratio < 1 or args.plan_train or (args.plan and args.plan_model == "learned"):
        named = (args.world_model, "wm_ckpts", "train_world_model.py")
        args.world_model = tracking.network_run(*named, is_default_game)
        world_model, checkpoint = load_world_model(args.world_model)
        fit.check_world_model(args.world_model, world_model, checkpoint, rules, args.env_id)
        print(f"[WM] {args.world_model}: trained on {checkpoint['args']['data']}")
    return vae, world_model


def check_ranges(args: Args) -> None:
    """Raises: tracking.UsageError: a number is out of its range."""
    sizes = "torch_threads total_timesteps num_envs num_steps num_minibatches update_epochs"
    sizes += " plan_simulations plan_samples eval_every"
    least = dict.fromkeys(sizes.split(), 1) | dict(plan_boards=2, eval_boards=2)
    least |= dict(seed=0, team_episodes=0, plan_fit=0, oracle_simulations=0)
    rates = ["learning_rate", "clip_coef", "max_grad_norm", "plan_beta"]
    if args.target_kl is not None:
        rates.append("target_kl")
    tracking.check_ranges(args, least, above_zero=tuple(rates), from_zero=("ent_coef", "vf_coef"))
    for name in ("gamma", "gae_lambda", "real_ratio", "belief_discount"):
        value = getattr(args, name)
        if not 0 <= value <= 1:
            raise tracking.UsageError(f"--{name.replace('_', '-')}: must be in [0, 1], got {value}")


def check_settings(args: Args, rules: GameRules) -> None:
    """Raises: tracking.UsageError: settings that exclude each other, or a team that there is not."""
    if is_population(args.co_players):
        fit.check_population_settings(args)
        co_players_of(args.co_players, args, rules)
    elif args.population:
        raise tracking.UsageError("--population: needs --co-players population or held-out")
    else:
        try:
            parse_team(args.co_players, rules.hunters - 1, rules.game)
        except ValueError as error:
            raise tracking.UsageError(f"--{error}") from None
    fit.check_settings(args)


def check_info_size(agent: ActorCritic, args: Args, rules: GameRules, vae: nn.Module | None) -> None:
    """Raises: tracking.UsageError: --om gives another number of figures than the policy reads."""
    game = rules.game
    team = co_players_of(args.co_players, args, rules)
    strategies = team.size if isinstance(team, Population) else len(game.strategies)
    sizes = dict(none=0, oracle=strategies)
    if agent.memory:
        sizes |= {args.om: agent.memory.hidden_size}
    if vae is not None:
        sizes |= dict(belief=vae.moa.num_goals, latent=vae.sizes["latent_dim"] + game.num_actions)
    size = sizes[args.om]
    expected = agent.sizes["info_size"]
    if size != expected:
        found = f"--om {args.om} --vae {args.vae!r}: gives {size} figures of each co-player"
        raise tracking.UsageError(f"{found}, the policy reads {expected}: name the VAE it was trained with")


def check_oracle(args: Args) -> None:
    """Raises: tracking.UsageError: --oracle names a run that is none."""
    command = f"hop_ppo.py --om oracle --env-id {args.env_id}"
    pattern = f"*__{args.env_id}__oracle__*"
    args.oracle = tracking.named_run(args.oracle, "ppo_ckpts", command, pattern=pattern)
    if args.oracle:
        fit.check_oracle(args.oracle, load_agent(args.oracle)[1]["args"], args.env_id, args.env_args)


def check_memory(args: Args, rules: GameRules) -> None:
    """Raises: MemoryError: this machine cannot hold the run."""
    sizes = "num_envs num_steps eval_boards plan_boards plan_samples plan_simulations oracle_simulations"
    settings = [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in sizes.split()]
    recorded = MOA_EPISODES * (args.moa_update != "off") + args.eval_boards * bool(args.record)
    needed = memory.bytes_of_play(args, rules, recorded, (PLAN_BOARDS, PLAN_STEPS))
    memory.require(needed, " ".join(settings))


# ---- checkpoints


def check_saved(args: Args) -> None:
    """Raises: tracking.UsageError: no run has these settings."""
    check_ranges(args)
    check_settings(args, load_rules(args)[0])


def saved_agent(sizes: dict, args: Args) -> ActorCritic:
    """The network of a checkpoint's sizes; what is a setting, too, or the game's, is as there."""
    return rebuild_agent(sizes | {"network": args.network}, load_rules(args)[0], args.om)


def make_optimizer(agent: ActorCritic, args: Args) -> torch.optim.Optimizer:
    # fused: one call for all weights; with 20 thousand of them, calls are what a step costs
    return torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)


def count_updates(args: Args) -> int:
    """Of a whole run."""
    return max(1, args.total_timesteps // (args.num_envs * args.num_steps))


def goal_of(args: dict) -> str:
    """The return that chooses the best checkpoint."""
    return "team" if args["co_players"] == "self" else "learner"


def is_moa_state(value: Any, saved: dict) -> bool:
    """`MOALearner.load_state_dict` looks into it."""
    return isinstance(value, dict) if saved["args"]["moa_update"] != "off" else value is None


CHECKPOINT = tracking.Schema(
    kind=KIND,
    args_type=Args,
    check_args=check_saved,
    make_model=saved_agent,
    make_optimizer=make_optimizer,
    counter="update",
    length=count_updates,
    worst=-math.inf,
    scores=lambda saved: [row[goal_of(saved["args"])] for row in saved["evaluations"]],
    judge="python hop_ppo.py --evaluate",
    fields=dict(
        selection_steps=checkpoints.WHOLE_NUMBER,
        evaluations=checkpoints.EVALUATIONS,
        collectors=checkpoints.STATES,
        moa=checkpoints.Expected("a state of what --moa-update trains, or None", is_moa_state),
    ),
    former_names={"known": "info_size", "games": "collectors", "stags": ""},
    added={
        "": {"moa": None},
        "args": {
            "moa_update": "off",
            "record": "",
            "env_args": (),
            "cuda": True,
            "population": "",
            "capture_video": False,
            "plan_search": "puct",
            "imagined_co_players": "same",
            "plan_train": False,
            "plan_fit": 0,
            "anneal_lr": True,
            "norm_adv": True,
            "clip_vloss": False,
            "target_kl": None,
        }
        | tracking.UNTRACKED,
    },
    added_sizes=lambda saved: {"kinds": 2},
)


def load_agent(folder: str | Path) -> tuple[ActorCritic, dict]:
    """The network of a run's best checkpoint, in eval mode, and the checkpoint. Raises: tracking.UsageError."""
    return tracking.load_model(tracking.find_folder(folder) / "best.pt", CHECKPOINT)


@contextlib.contextmanager
def noise_of(collector: Collector, seed: tuple[int, int], world: tracking.World) -> Iterator[None]:
    """Inside, each of several processes draws from its own generator if the boards are imagined: how many numbers they take
    depends on what happens. Real boards, and what follows, draw from generators that stay equal in all processes."""
    if world.size == 1 or not isinstance(collector.envs, WorldModelEnv):
        yield
        return
    with tracking.kept_rng():
        torch.manual_seed(int(np.random.default_rng((*seed, world.rank)).integers(2**62)))
        yield


def train(args: Args, world: tracking.World, resumed: dict | None) -> None:
    start = time.perf_counter()
    rules, team_episodes = load_rules(args)
    args.team_episodes = args.team_episodes or team_episodes
    vae, world_model = load_networks(args, rules)
    tracking.seed_everything(args.seed, args.torch_deterministic)

    memory = make_memory(args.om, rules)
    collectors = make_collectors(args, rules, vae, world_model, memory)
    agent = make_agent(args.network, rules, collectors[0].opponents.info_size, memory).to(world.device)
    for collector in collectors if args.plan_train else ():
        cached = CachedWorldModel(world_model).on(rules.height, rules.width)
        collector.planner = Planner(agent, collector.envs, collector.opponents, args, vae, cached, "learned")
    optimizer = make_optimizer(agent, args)
    learner = MOALearner(vae, collectors[0], args.seed) if args.moa_update != "off" else None
    evaluator = Evaluator(args, rules, vae, world_model)
    batch_size = args.num_envs * args.num_steps
    num_updates = count_updates(args)
    real_batch_size = round(args.real_ratio * args.num_envs) * args.num_steps
    goal = goal_of(vars(args))
    # Nothing real is to choose it, or what is real says nothing of the other teams that it learns for; or it belongs to
    # the MOA of the same moment.
    keep_last = not real_batch_size or args.imagined_co_players != "same" or learner is not None

    state = dict(update=0, best=-math.inf, selection_steps=0, seconds=0.0, train_seconds=0.0)
    state |= dict(history=[], evaluations=[])
    if resumed:
        folder = tracking.find_folder(args.resume)
        run_name = resumed["run"]
        state = {key: resumed[key] for key in state}
        path = folder / "last.pt"
        tracking.load_states(path, CHECKPOINT, "collectors", resumed["collectors"], collectors)
        if learner:
            with checkpoints.one_line(path, CHECKPOINT):
                learner.load_state_dict(resumed["moa"])
        tracking.restore(path, resumed, agent, optimizer)
    else:
        name = tracking.name_run(args.exp_name, args.env_id, args.om, args.seed)
        run_name = tracking.new_run(name, "ppo_ckpts") if world.rank == 0 else ""
        folder = tracking.lock_run(Path("ppo_ckpts") / run_name)
    settings = asdict(args) | {"resume": ""}  # so that a resumed run's files equal an uninterrupted one's
    collectors = own_collectors(collectors, args, rules, vae, world_model, world)

    def save(*names: str) -> None:
        """All processes call it, the first one writes."""
        own = [collector.state_dict() for collector in collectors]
        checkpoint = dict(kind=KIND, run=run_name, args=settings) | state
        checkpoint["seconds"] += time.perf_counter() - start
        checkpoint |= tracking.learnt(agent, optimizer)
        checkpoint["collectors"] = [map_boards(part, world.gather) for part in own]
        checkpoint["moa"] = learner.state_dict() if learner else None
        if learner:
            learner.save(folder / "moa", names, run_name)
        for name in names if world.rank == 0 else ():
            tracking.save_checkpoint(folder / name, checkpoint)
        # Go on from what a resumed run begins with: tables are built again, so that both round alike.
        for collector, saved in zip(collectors, own, strict=True):
            collector.load_state_dict(saved)

    purge_step = state["update"] * batch_size + 1 if resumed else None
    writer = tracking.open_log(run_name, settings, purge_step=purge_step) if world.rank == 0 else None
    if not resumed:
        save("last.pt")  # so that a run killed before its first evaluation can be resumed, too
    share = f"{real_batch_size / batch_size:.0%} of them real"
    boards = f"{args.num_envs} boards x {args.num_steps} ticks, {share}"
    settings_ = f"--co-players {args.co_players} --om {args.om}"
    where = f"on {world.device}" + (f", {world.size} processes" if world.size > 1 else "")
    print(f"[PPO] {run_name}: {settings_}, {num_updates} updates of {boards}, {where}", flush=True)
    of_training = num_updates + math.ceil(num_updates / args.eval_every) * evaluator.cost()
    evaluator.progress = progress = tqdm(
        initial=state["update"] + len(state["evaluations"]) * evaluator.cost(),
        total=of_training + evaluator.cost_of_report(agent),
        bar_format="{percentage:3.0f}%|{bar}| {desc}{elapsed}<{remaining}",
        leave=False,
        disable=world.rank > 0,
    )
    for now in range(state["update"], num_updates):
        progress.set_description(f"update {now + 1}/{num_updates}", refresh=False)
        update_start = time.perf_counter()
        frac = 1 - now / num_updates if args.anneal_lr else 1.0
        episode_stats = torch.zeros(3)
        if len(collectors) > 1:
            collectors[1].envs.starts = tuple(map(world.gather, collectors[0].starts))
        batches = []
        for collector in collectors:
            with noise_of(collector, (args.seed, now), world):
                batches.append(rollout(agent, collector, args, episode_stats, world))
        batch = Batch.cat(batches)
        losses = update(agent, optimizer, batch, args, frac, world)
        losses["explained_variance"] = explained_variance(batch)
        moa = learner.update(frac, collectors) if learner else {}

        global_step = (now + 1) * batch_size
        losses = {name: float(value) for name, value in losses.items()}
        trained = {name: losses[name] for name in ("policy_loss", "value_loss")}
        tracking.check_finite(trained, optimizer, f"update {now + 1}")
        if moa:
            tracking.check_finite(moa, learner.optimizer, f"update {now + 1}")
        seconds = time.perf_counter() - update_start
        charts = dict(moa)
        episodes, episode_returns, episode_lengths = world.sum(episode_stats).tolist()
        if episodes:
            charts["episodic_return"] = episode_returns / episodes
            charts["episodic_length"] = episode_lengths / episodes
        if args.om in ("belief", "latent"):
            charts |= collectors[0].opponents.stats.summarize(world.sum)
        shown = {name: value for name, value in charts.items() if is_shown(name)}
        shown["learning_rate"] = optimizer.param_groups[0]["lr"]
        tracking.log_scalars(writer, "losses", losses, global_step)
        tracking.log_scalars(writer, "charts", shown, global_step)
        if now > 0:  # the first update warms up
            state["train_seconds"] += seconds
            tracking.log_scalars(writer, "charts", {"SPS": batch_size / seconds}, global_step)
        real_steps = (now + 1) * real_batch_size + state["selection_steps"]
        row = dict(update=now + 1, steps=global_step, real_steps=real_steps)
        state["history"].append(row | charts | losses)
        state["update"] = now + 1
        progress.update()
        if (now + 1) % args.eval_every and now + 1 < num_updates:
            continue
        if world.rank > 0:  # the first process evaluates and saves
            save()
            continue

        if learner:
            learner.choose_law()
        progress.set_description("evaluation")
        judged_agent = copy.deepcopy(agent).cpu()
        results = evaluator.play(judged_agent, args.co_players, EVAL_SEED)
        if args.capture_video:
            evaluator.film(judged_agent, Path("videos", run_name, f"{global_step}.gif"))
        if real_batch_size:  # real boards choose `best`: their ticks count, too
            selection_steps = int(results["length"].sum())
            state["selection_steps"] += selection_steps
            row["real_steps"] += selection_steps
        summary = returns.summarize(results)
        state["evaluations"].append(row | summary)
        tracking.log_scalars(writer, "eval", summary, global_step)
        means = [f"{key} {summary[key]:.3f} ± {summary[f'{key}_ci95']:.3f}" for key in ("learner", "team")]
        steps = f"{global_step} steps ({row['real_steps']} real)"
        tqdm.write(f"[PPO] update {now + 1}/{num_updates}, {steps}: {', '.join(means)}")
        tracking.write_csv(folder / "progress.csv", state["history"])
        tracking.write_csv(folder / "evaluations.csv", state["evaluations"])
        names = ["last.pt"]
        if keep_last or summary[goal] > state["best"]:
            state["best"] = summary[goal]
            names.insert(0, "best.pt")
        save(*names)
    if world.rank > 0:
        return

    agent, best = load_agent(folder)
    progress.set_description("judging")
    tqdm.write(f"\n[PPO] model saved to: {folder.as_posix()}")
    chosen = "the last" if keep_last else f"the best on boards of seed {EVAL_SEED}"
    tqdm.write(f"[PPO] judged: update {best['update']}, {chosen}")
    final_step = num_updates * batch_size + 1  # a resumed run removes what is logged after its checkpoint
    curves = figures.of_ppo(state["history"], state["evaluations"], args.co_players)
    figures.save(curves, folder / "ppo_curve.png", writer, final_step)
    last_updates = state["history"][-args.eval_every :]
    accuracy = accuracy_by_tick(last_updates)
    if accuracy:
        title = f"share of co-players whose goal is believed, last {len(last_updates)} updates"
        drawn = figures.by_tick({"belief accuracy": {f"--om {args.om}": accuracy}}, title)
        figures.save(drawn, folder / "belief_by_tick.png", writer, final_step)
    head = dict(
        run=run_name,
        seed=args.seed,
        args=settings,
        seconds=state["seconds"] + time.perf_counter() - start,
        sps=(num_updates - 1) * batch_size / max(state["train_seconds"], 1e-9),
        steps=best["update"] * batch_size,
        real_steps=num_updates * real_batch_size + state["selection_steps"],
    )
    evaluator.report(agent, folder, head, "metrics", writer, final_step)
    writer.close()
    speed = f"{head['seconds']:.0f} s, {head['sps']:.0f} steps/s in training"
    print(f"[PPO] {speed}; metrics.json: {folder.as_posix()}")


def with_own_moa(args: Args, folder: str | Path, checkpoint: dict) -> Args:
    """The settings that judge a run: with the MOA that --moa-update left beside it, if no other is named."""
    if args.moa_update == "off":
        return args
    named = args.vae != checkpoint["args"]["vae"]
    return replace(args, moa_update="off", vae=args.vae if named else (Path(folder) / "moa").as_posix())


def evaluate_run(args: Args) -> None:
    """--evaluate: judge a run again, with other settings of the search."""
    folder = tracking.find_folder(args.evaluate)
    agent, checkpoint = load_agent(folder)
    search_flags = [field.name for field in fields(Args) if field.name.startswith(("plan", "oracle"))]
    free = ("resume", "evaluate", "record", "eval_boards", "vae", "world_model", "cuda", "torch_threads")
    args = tracking.resumed_args(args, checkpoint, free=(*free, *search_flags))
    check_oracle(args)
    rules, _ = load_rules(args)
    check_settings(args, rules)
    args = with_own_moa(args, folder, checkpoint)
    vae, world_model = load_networks(args, rules)
    check_info_size(agent, args, rules, vae)
    check_memory(args, rules)
    if args.record:
        recorded = record_games(agent, args, rules, vae)
        save_arrays(args.record, recorded.arrays())
        counts = recorded.metadata
        numbers = f"{counts['total_episodes']} episodes, {counts['active_samples']} active samples"
        print(f"[DATA] {numbers} of {checkpoint['run']}: {args.record}")
        return
    evaluator = Evaluator(args, rules, vae, world_model)
    bar = "{percentage:3.0f}%|{bar}| judging {elapsed}<{remaining}"
    evaluator.progress = tqdm(total=evaluator.cost_of_report(agent), bar_format=bar, leave=False)
    steps = checkpoint["update"] * args.num_envs * args.num_steps
    head = dict(run=checkpoint["run"], seed=args.seed, args=asdict(args), steps=steps)
    evaluator.report(agent, folder, head, "evaluate")


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    check_ranges(args)
    tracking.check_wandb(args)
    args.evaluate = tracking.named_run(args.evaluate, "ppo_ckpts", "hop_ppo.py")
    args.resume = tracking.named_run(args.resume, "ppo_ckpts", "hop_ppo.py", "last.pt")
    torch.set_num_threads(args.torch_threads)
    if args.record:
        check_output(args.record)
        if not args.evaluate:
            raise tracking.UsageError("--record: needs --evaluate RUN, whose games are recorded")
    if args.evaluate:
        with tracking.join_world(args.cuda) as world:
            if world.rank == 0:
                evaluate_run(args)
        return
    resumed = None
    if args.resume:
        folder = tracking.lock_run(tracking.find_folder(args.resume))
        resumed = tracking.load_checkpoint(folder / "last.pt", CHECKPOINT)
        free = ("resume", "cuda", "torch_threads", *tracking.UNTRACKED)
        args = tracking.resumed_args(args, resumed, free)
    rules, _ = load_rules(args)
    check_settings(args, rules)
    check_oracle(args)
    check_memory(args, rules)
    with tracking.join_world(args.cuda) as world:
        fit.check_shares(args, world)
        train(args, world, resumed)


if __name__ == "__main__":
    tracking.run(main, DataError)
