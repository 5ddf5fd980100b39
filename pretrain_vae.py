"""Pretrain a VAE with a MOA head (a model of other agents) on offline trajectories of the Markov stag hunt.

z ~ q(z | what the hunter did so far) says who the other one is. It is trained by the actions that the hunter takes (`--loss
moa`: cross-entropy, in nats per action), by the observation itself (`--loss recon`: in nats per frame), or by both, each
with a KL term to the unit Gaussian (Kingma & Welling 2014). The MOA head predicts the next action from (observation, tick,
z), illegal actions masked (Jaques et al. 2019), and from (observation, tick, goal) for each goal (Huang et al. 2024, HOP).
What they say is printed beside the best that can be said: see metrics/observers.py.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import tracking
from data import DEFAULT_DATA, DataError, default_or_fresh, training_file
from data.datasets import Batch, Batches, Samples, load_samples
from data.trajectories import save_arrays
from metrics import observers, reports, scores
from tracking import figures

ACTIONS = ("UP", "DOWN", "LEFT", "RIGHT", "STAY", "HUNT_STAG", "HUNT_HARE")
PLANES = ("SELF", "OTHERS", "BLOCKS", "STAGS", "HARES")
SELF, OTHERS, BLOCKS, STAGS, HARES = range(5)
STAY = 4
GOALS = {"stag": "NS", "hare": "NH"}  # goal -> the recorded strategy that is after it
KIND = "pretrain_vae"  # what a checkpoint says it is
FAR = -30.0  # nearness of what cannot be reached
MASKED = -1e9  # a logit of what cannot be
SURE = -8.0  # log-probability below which a behaviour is ruled out
EVAL_BATCH = 4096
TINY = 1e-30  # where all weights underflow
NO_GOAL = 2  # index of RANDOM in `envs.scripted.STRATEGIES`: a hunter that is after nothing
TRACKER_CHUNK = 512  # co-players at once in OpponentTracker: what fits a processor's cache is twice as fast
TABLE_CHUNK = 1024  # questions at once in TabularMOA
LOG_STEPS = 50  # TensorBoard gets the mean of so many minibatches, and of what is left at the end of an epoch


@dataclass
class Args:
    exp_name: str = "vae"
    """the run is called <exp-name>__<unix seconds>"""
    seed: int = 1
    """seed of the weights, the batches and the noise of z"""
    torch_deterministic: bool = True
    """use deterministic algorithms: same seed, same bytes (on a GPU: where PyTorch has them, with a warning where not)"""
    cuda: bool = True
    """train on the GPU where there is one"""
    torch_threads: int = 1
    """CPU threads of a process"""

    loss: Literal["recon", "moa", "both"] = "moa"
    """what trains z: the actions, the observation, or the sum of both"""
    context: Literal["episode", "observation"] = "episode"
    """what tells who a hunter is: all that it did so far in the episode, or one observation (files without episodes)"""
    data: str = DEFAULT_DATA
    """trajectories or a flat file; the default file is collected on first use, and so are `fresh` and `unmasked`, which are
    for --evaluate only"""
    layout: Literal["auto", "planes", "hop", "hop-first"] = "auto"
    """layout of a flat file, where its shape does not tell: [N, 5, H, W], [N, H, W, A+3], or [N, A+3, H, W]"""
    epochs: int = 10
    """passes over the training split"""
    batch_size: int = 256
    """samples a step, on average: with episodes, a step takes whole ones"""
    learning_rate: float = 3e-3
    """of AdamW; rises over the first 100 steps, then falls linearly to zero"""
    kl_coef: float = 1e-3
    """weight of the KL term, reached linearly over the first epoch"""
    latent_dim: int = 16
    """size of z"""

    resume: str = ""
    """go on with the run in this folder; its settings come from its checkpoint"""
    evaluate: str = ""
    """train nothing: judge the best checkpoint of the run in this folder on the whole of --data; other flags do nothing"""


# ---- the model


class BoardFeatures(NamedTuple):
    """What a hunter has around it: P things (prey), how far each is, and what it may do."""

    near: torch.Tensor  # float [B, P], 0 on the thing's cell, below 0 the further it is
    toward: torch.Tensor  # float [B, P, 4], how much nearer a step up, down, left, right is
    rival: torch.Tensor  # float [B, P], as `near`, for the other hunter that is nearest to the thing
    kind: torch.Tensor  # float [B, P, 2], a stag, a hare
    there: torch.Tensor  # bool [B, P], False where a board has fewer things
    legal: torch.Tensor  # bool [B, 7]
    others: torch.Tensor  # float [B, 1], cells with other hunters


class MOA(nn.Module):
    """p(action | observation, tick, z), illegal actions masked: a mixture over behaviours, each a mixture over things.

    How far a thing is, around the blocks, is learnt by value iteration (Tamar et al. 2016): every thing spreads over the
    board, turn by turn, each cell taking the best of its neighbours less what a straight or a diagonal step costs. The
    two costs are learnt. They are the only parameters that see where things lie, and all steps share one scorer: the
    eight symmetries of the board hold by construction.

    A *behaviour* is a vector: with it, attention chooses a thing (or none), and a scorer the action, given the thing. The
    behaviours that z mixes are free, found by the action loss alone; those of GOALS are learnt from the recorded strategies.
    """

    def __init__(
        self, height: int, width: int, ticks: int, who: int, behaviours: int, hidden: int, code: int = 16
    ):
        super().__init__()
        self.height, self.width, self.ticks, self.behaviours = height, width, ticks, behaviours
        self.step_costs = nn.Parameter(torch.zeros(2))  # straight and diagonal, through softplus
        self.code = nn.Parameter(0.5 * torch.randn(behaviours + len(GOALS), code))
        self.tick = nn.Embedding(ticks, 8)
        nn.init.normal_(self.tick.weight, std=0.1)
        self.thing = nn.Linear(6, hidden)
        self.context = nn.Linear(code + 8 + 1, hidden)
        self.choice = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.nothing = nn.Linear(code + 8 + 1, 1)
        self.action = nn.Sequential(
            nn.Linear(10, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        self.mix = nn.Linear(who, behaviours)
        self.register_buffer("around", _around(height, width), persistent=False)  # [K, 5]
        kinds = torch.eye(4)[[0, 0, 0, 0, 1, 2, 3]]  # a step, STAY, HUNT_STAG, HUNT_HARE
        self.register_buffer("action_kind", kinds, persistent=False)

    def prey_nearness(
        self, boards: torch.Tensor, things: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """boards: float [U, 3, K], BLOCKS, STAGS, HARES; things: the most that one of them has.

        Returns: how near each cell is to each thing, float [U, P, K + 1], the last one off the board; kind [U, P, 2];
        there [U, P].
        """
        there, cell = (boards[:, 1] + boards[:, 2]).topk(things, 1)
        kind = boards[:, 1:].gather(2, cell[:, None].expand(-1, 2, -1)).transpose(1, 2)
        near = torch.full((*cell.shape, boards.shape[2]), FAR, device=boards.device)
        near = near.scatter(2, cell[..., None], 0.0).unflatten(2, (self.height, self.width))
        wall = FAR * boards[:, 0].view(-1, 1, self.height, self.width)
        straight, diagonal = F.softplus(self.step_costs)
        for _ in range(self.height + self.width):
            p = F.pad(near, (1, 1, 1, 1), value=FAR)
            beside = torch.maximum(
                p[:, :, :-2], p[:, :, 2:]
            )  # the better of above and below, also of the columns beside
            best = torch.maximum(p[:, :, 1:-1, :-2], p[:, :, 1:-1, 2:])
            best = torch.maximum(best, beside[..., 1:-1]) - straight
            best = torch.maximum(best, torch.maximum(beside[..., :-2], beside[..., 2:]) - diagonal)
            near = (torch.maximum(near, best) + wall).clamp(min=FAR)
        return F.pad(near.flatten(2), (0, 1), value=FAR), kind, there > 0

    def encode_board(self, planes: torch.Tensor, board: torch.Tensor, fields: tuple) -> BoardFeatures:
        """planes: float [B, 5, K]; board: int64 [B], each one's row in `fields`, which `spread` gives."""
        near, kind, there = fields
        at = planes[:, SELF].argmax(1)
        around = near[board[:, None], :, self.around[at]].transpose(1, 2)  # [B, P, 5]
        rival = near[board, :, :-1].masked_fill(planes[:, OTHERS, None] == 0, FAR).amax(2)
        own = around[..., 4]
        return BoardFeatures(own, around[..., :4] - own[..., None], rival, kind[board], there[board], self.legal(planes, at),
                       planes[:, OTHERS].sum(1, keepdim=True))  # fmt: skip

    def action_logprobs(self, reading: BoardFeatures, tick: torch.Tensor) -> torch.Tensor:
        """log p(action | observation, tick, behaviour): float [B, behaviours + goals, 7]."""
        near, toward, rival, kind, there, legal, others = reading
        B, P = near.shape
        on = (near == 0).float()
        thing = torch.stack([near / 8, on, rival / 8, (rival == 0).float()], 2)
        ticks = self.tick(tick.clamp(max=self.ticks - 1))
        now = torch.cat([ticks, others / 4], 1)  # [B, 9]
        context = torch.cat(
            [self.code.expand(B, -1, -1), now[:, None].expand(-1, len(self.code), -1)], 2
        )  # [B, C, D + 9]
        scores = self.choice(
            self.thing(torch.cat([thing, kind], 2))[:, None] + self.context(context)[:, :, None]
        )[..., 0]
        scores = scores.masked_fill(~there[:, None], MASKED)  # [B, C, P]
        choice = torch.cat([scores, self.nothing(context)], 2).softmax(2)  # [B, C, P + 1]
        toward = F.pad(toward.clamp(-3, 3), (0, 3))[..., None]  # [B, P, 7, 1]
        seen = torch.cat([thing[:, :, :2], kind], 2)[:, :, None].expand(-1, -1, 7, -1)
        seen = torch.cat([seen, toward, (toward > 0).float(), self.action_kind.expand(B, P, -1, -1)], 3)
        action = F.pad(self.action(seen)[..., 0], (0, 0, 0, 1))  # [B, P + 1, 7]; after nothing, all are alike
        action = action.masked_fill(~legal[:, None], MASKED).softmax(2)
        return (choice @ action).clamp(min=1e-20).log().masked_fill(~legal[:, None], MASKED)

    def forward(self, behaved: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """behaved: what `behave` gives; z: float [B, who]. Returns: log p(action | observation, tick, z), [B, 7]."""
        weight = self.mix(z).log_softmax(1)
        return torch.logsumexp(weight[:, :, None] + behaved[:, : self.behaviours], 1)

    def legal(self, planes: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """bool [B, 7]: a step onto a free cell, STAY, and hunting what stands on the hunter's own cell."""
        walls = F.pad(planes[:, BLOCKS], (0, 1), value=1.0)
        steps = walls.gather(1, self.around[at][:, :4]) == 0
        prey = planes[:, STAGS : HARES + 1].gather(2, at[:, None, None].expand(-1, 2, 1))[..., 0] > 0
        return torch.cat([steps, torch.ones_like(steps[:, :1]), prey], 1)


def _around(height: int, width: int) -> torch.Tensor:
    """int64 [K, 5]: the cells above, below, left and right of each cell, and itself; K for what is off the board."""
    cell = F.pad(torch.arange(height * width).view(height, width), (1, 1, 1, 1), value=height * width)
    around = (cell[:-2, 1:-1], cell[2:, 1:-1], cell[1:-1, :-2], cell[1:-1, 2:], cell[1:-1, 1:-1])
    return torch.stack(around, 2).flatten(0, 1)


class Shortcut(nn.Module):
    """A hidden layer beside a linear map. Cells are copied by the map; the hidden layer only has to repair it."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.direct, self.first = nn.Linear(inputs, outputs), nn.Linear(inputs, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.direct(x) + self.last(F.relu(self.first(x)))


class VAE(nn.Module):
    """q(z | ...), p(observation | z) and the MOA head. K = height * width cells. z has two parts:

    *who*, which the MOA head reads, is inferred, with context `episode`, from log P(behaviour | what the hunter did before
    this tick), by Bayes' rule over the MOA's behaviours: causal, since a sum over the past; with context `observation`, from
    how far the nearest things are, the tick, and who is left. *What*, which the decoder reads, is inferred from the frame.
    `--loss moa` needs only the one, `recon` only the other; `both` gives *who* a quarter of z. Were they one, the tens of
    nats of a frame would drown the tenths of a nat that tell who it is.
    """

    def __init__(self, height: int, width: int, ticks: int, latent_dim: int = 16, loss: str = "moa",
                 context: str = "episode", hidden: int = 32, frame_hidden: int = 512, behaviours: int = 4):  # fmt: skip
        super().__init__()
        self.sizes = dict(height=height, width=width, ticks=ticks, latent_dim=latent_dim, loss=loss, context=context,
                          hidden=hidden, frame_hidden=frame_hidden, behaviours=behaviours)  # fmt: skip
        self.loss, self.context = loss, context
        self.who = {"moa": latent_dim, "recon": 0, "both": max(1, latent_dim // 4)}[loss]
        what, inputs, lasts = latent_dim - self.who, len(PLANES) * height * width, []
        if loss != "recon":
            self.moa = MOA(height, width, ticks, self.who, behaviours, hidden)
            layers = [nn.Linear(behaviours, 2 * self.who)]
            if context == "observation":
                layers = [
                    nn.Linear(7 + self.moa.tick.embedding_dim, 64),
                    nn.ReLU(),
                    nn.Linear(64, 2 * self.who),
                ]
            self.recogniser = nn.Sequential(*layers)
            lasts.append((layers[-1], self.who))
        if loss != "moa":
            self.encoder, self.decoder = (
                Shortcut(inputs, frame_hidden, 2 * what),
                Shortcut(what, frame_hidden, inputs),
            )
            lasts.append((self.encoder.last, what))
        for last, size in lasts:
            nn.init.constant_(last.bias[size:], -5.0)  # z begins almost without noise: something gets through

    def forward(self, batch: Batch, noise: torch.Tensor | None = None) -> "VAEOutput":
        """noise: float [B, latent_dim], standard normal; None leaves z at its mean."""
        behaved, moments = None, []
        if self.loss != "recon":
            reading = self.moa.encode_board(
                batch.planes, batch.board, self.moa.prey_nearness(batch.boards, batch.max_prey)
            )
            behaved = self.moa.action_logprobs(reading, batch.tick)
            history = self.history(behaved, batch) if self.context == "episode" else None
            moments.append(self.encode_history(reading, batch.tick, history))
        if self.loss != "moa":
            moments.append(self.encoder(batch.planes.flatten(1)))
        mean, log_var = self.moments(moments)
        z = mean if noise is None else mean + noise * (0.5 * log_var).exp()
        moa = goals = cells = None
        if self.loss != "recon":
            moa, goals = self.moa(behaved, z[:, : self.who]), behaved[:, self.moa.behaviours :]
        if self.loss != "moa":
            cells = self.decode(z[:, self.who :])
        return VAEOutput(mean, log_var, moa, goals, cells)

    def moments(self, parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of z, each [B, latent_dim], from those of its parts."""
        mean, log_var = (
            torch.cat(half, 1) for half in zip(*(part.chunk(2, 1) for part in parts), strict=True)
        )
        return mean, log_var.clamp(-10.0, 10.0)

    def history(self, behaved: torch.Tensor, batch: Batch) -> torch.Tensor:
        """log p(what the hunter did before this tick | behaviour), [B, behaviours]. The boards were read without padding;
        only these few numbers are laid out by hunter and tick."""
        taken = self.evidence(behaved, batch.action)
        laid = taken.new_zeros(batch.num_trajectories, batch.num_ticks + 1, taken.shape[1])
        laid = laid.index_put((batch.trajectory_id, batch.tick + 1), taken)
        return laid.cumsum(1)[batch.trajectory_id, batch.tick]

    def evidence(self, behaved: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """log p(the action taken | observation, tick, behaviour), [B, behaviours]."""
        behaved = behaved[:, : self.moa.behaviours]
        return behaved.gather(2, action[:, None, None].expand(-1, behaved.shape[1], 1))[..., 0]

    def encode_history(
        self, reading: BoardFeatures, tick: torch.Tensor, history: torch.Tensor | None
    ) -> torch.Tensor:
        """Mean and log variance of *who*, [B, 2 who], from the history or, where it is None, from one reading."""
        if history is not None:
            return self.recogniser(history.log_softmax(1).clamp(min=SURE))
        kind, there = reading.kind, reading.there.float()[..., None]
        nearest = torch.where(kind > 0, reading.near[..., None], FAR).amax(1)  # [B, 2]
        seen = torch.cat(
            [nearest / 8, (nearest == 0).float(), (kind * there).sum(1) / 4, reading.others / 4], 1
        )
        return self.recogniser(torch.cat([seen, self.moa.tick(tick.clamp(max=self.moa.ticks - 1))], 1))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z: [B, latent_dim - who]. Returns: logits of each cell being 1, [B, 5, K]."""
        return self.decoder(z).unflatten(1, (len(PLANES), -1))


class VAEOutput(NamedTuple):
    """What the VAE says of a batch; None where the loss leaves it untrained."""

    mean: torch.Tensor  # [B, latent_dim], of z
    log_var: torch.Tensor  # [B, latent_dim]
    moa: torch.Tensor | None  # log p(action | observation, tick, z), [B, 7]
    goals: torch.Tensor | None  # log p(action | observation, tick, goal), [B, 2, 7]
    cells: torch.Tensor | None  # logits [B, 5, K]


def kl_of(said: VAEOutput) -> torch.Tensor:
    """KL(q(z) || unit Gaussian) in nats, by dimension: [B, latent_dim]."""
    return 0.5 * (said.mean**2 + said.log_var.exp() - 1.0 - said.log_var)


def loss_terms(said: VAEOutput, batch: Batch) -> torch.Tensor:
    """The sums over a batch, in nats: [moa per action, goal per action of hunters whose goal is recorded, how many these
    are, recon per frame, kl per frame]; what is not trained is 0."""
    moa = goal = recon = said.mean.new_zeros(())
    told = batch.goal >= 0
    if said.moa is not None:
        moa = F.nll_loss(said.moa, batch.action, reduction="sum")
        by_goal = said.goals.gather(1, batch.goal.clamp(min=0)[:, None, None].expand(-1, 1, len(ACTIONS)))[
            :, 0
        ]
        goal = -(by_goal.gather(1, batch.action[:, None])[:, 0] * told).sum()
    if said.cells is not None:
        recon = F.binary_cross_entropy_with_logits(said.cells, batch.planes, reduction="sum")
    return torch.stack([moa, goal, told.sum().to(moa.dtype), recon, kl_of(said).sum()])


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict:
    """Raises: tracking.UsageError: not a checkpoint of this version of this script."""
    checkpoint = tracking.load_checkpoint(path, KIND, device)
    if "goals_trained" not in checkpoint:
        raise tracking.UsageError(
            f"{path}: the checkpoint was made by another version of this script: train anew"
        )
    return checkpoint


def load_vae(folder: str | Path, device: str | torch.device = "cpu") -> tuple[VAE, dict]:
    """The network of a run's best checkpoint, in eval mode, and the checkpoint. Who uses the goal heads checks its
    `goals_trained`; who plays another game than the recorded one, its `rules`. Raises: tracking.UsageError."""
    path = tracking.find_folder(folder) / "best.pt"
    checkpoint = load_checkpoint(path, device)
    return tracking.build(VAE, checkpoint, path).to(device).eval(), checkpoint


# ---- one tick at a time, while a game is played


class OpponentTracker:
    """Beliefs about C co-players on each of B boards.

    Example:
        >>> tracker = OpponentTracker(load_vae("vae_ckpts/vae__1758375079")[0], num_boards=1024, num_co_players=3)
        >>> action_probs, z, goal_probs = tracker.predict(obs, tick)  # before the tick
        >>> tracker.update(actions)  # after it
        >>> tracker.reset(ended)  # boards where a new episode begins
    """

    def __init__(self, model: VAE, num_boards: int, num_co_players: int):
        if model.loss == "recon":
            raise ValueError(
                "a VAE trained with --loss recon has no MOA head: train one with --loss moa or both"
            )
        self.model, self.shape = model.eval(), (num_boards, num_co_players)
        self.device = next(model.parameters()).device
        self.log_likelihood = torch.zeros(
            num_boards * num_co_players, model.moa.behaviours, device=self.device
        )
        self.behaved, self.gone, self.boards = None, None, None

    @torch.no_grad()
    def predict(
        self, obs: torch.Tensor, tick: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """obs: uint8 [B, C, 5, H, W], as each co-player sees the board; tick: int64 [B].

        Returns: p(action) float [B, C, 7], z at its mean [B, C, latent_dim], p(action | goal) [B, C, 2, 7]; STAY is certain
        for a co-player that has left. Raises: ValueError: a wrong shape.
        """
        B, C = self.shape
        height, width = self.model.sizes["height"], self.model.sizes["width"]
        if obs.shape != (B, C, len(PLANES), height, width) or tick.shape != (B,):
            raise ValueError(f"obs, tick: expected shapes {(B, C, 5, height, width)} and {(B,)}, "
                             f"got {tuple(obs.shape)} and {tuple(tick.shape)}")  # fmt: skip
        moa = self.model.moa
        planes = obs.to(self.device).flatten(3).flatten(0, 1).float()  # [BC, 5, K]
        ticks = tick.to(self.device).repeat_interleave(C)
        self._spread(planes.unflatten(0, (B, C))[:, 0, BLOCKS:])
        reading = moa.encode_board(
            planes, torch.arange(B, device=self.device).repeat_interleave(C), self.fields
        )
        parts = zip(*(whole.split(TRACKER_CHUNK) for whole in (*reading, ticks)), strict=True)
        self.behaved = torch.cat([moa.action_logprobs(BoardFeatures(*part[:-1]), part[-1]) for part in parts])
        self.gone, self.legal = planes[:, SELF].amax(1) == 0, reading.legal
        history = self.log_likelihood if self.model.context == "episode" else None
        moments = [self.model.encode_history(reading, ticks, history)]
        if self.model.loss == "both":
            moments.append(self.model.encoder(planes.flatten(1)))
        z, _ = self.model.moments(moments)
        moa_probs = moa(self.behaved, z[:, : self.model.who])
        probs = torch.cat([moa_probs[:, None], self.behaved[:, moa.behaviours :]], 1).exp()  # [BC, 3, 7]
        stay = F.one_hot(torch.tensor(STAY, device=self.device), len(ACTIONS)).float()
        probs = torch.where(self.gone[:, None, None], stay, probs).unflatten(0, (B, C))
        return probs[:, :, 0], z.unflatten(0, (B, C)), probs[:, :, 1:]

    @torch.no_grad()
    def update(self, actions: torch.Tensor) -> None:
        """actions: integers [B, C], what the co-players did after the last `predict`; an illegal action counts as STAY."""
        if self.behaved is None:
            raise ValueError("nothing was predicted yet: call predict() before update()")
        if actions.shape != self.shape:
            raise ValueError(f"actions: expected shape {self.shape}, got {tuple(actions.shape)}")
        actions = actions.to(self.device).flatten().long()
        legal = self.legal.gather(1, actions[:, None])[:, 0]
        taken = self.model.evidence(self.behaved, torch.where(legal, actions, STAY))
        self.log_likelihood += taken.masked_fill(self.gone[:, None], 0.0)

    def reset(self, boards: torch.Tensor) -> None:
        """Forget the co-players of these boards (bool [B]): a new episode begins."""
        self.log_likelihood[boards.to(self.device).repeat_interleave(self.shape[1])] = 0.0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The beliefs."""
        return dict(log_likelihood=self.log_likelihood)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Beliefs as saved; fields are spread anew: their padding is of the boards seen so far, and sets how sums round."""
        self.log_likelihood = state["log_likelihood"].clone()
        self.behaved, self.gone, self.boards = None, None, None

    def _spread(self, boards: torch.Tensor) -> None:
        """Spread the things of the boards [B, 3, K] that changed since the last tick."""
        things = max(1, int((boards[:, 1] + boards[:, 2]).clamp(max=1).sum(1).amax()))
        if self.boards is None or things > self.fields[1].shape[1]:
            self.boards, self.fields = boards.clone(), self.model.moa.prey_nearness(boards, things)
            return
        changed = (boards != self.boards).flatten(1).any(1)
        for field, new in zip(
            self.fields, self.model.moa.prey_nearness(boards[changed], self.fields[1].shape[1]), strict=True
        ):
            field[changed] = new
        self.boards[changed] = boards[changed]


class TabularMOA:
    """U boards of A hunters and P prey, stags first.

    How near a cell is to a prey takes few values (so many steps, each at the cost that was learnt), so that the scores of
    things and of actions, given those, are worked out once and looked up. Raises: ValueError: the VAE has no MOA head.
    """

    def __init__(self, model: VAE, blocks: torch.Tensor, prey: torch.Tensor, stags: int):
        """blocks: bool [U, K]; prey: int64 [U, P], K for what is gone."""
        if model.loss == "recon":
            raise ValueError(
                "a VAE trained with --loss recon has no MOA head: train one with --loss moa or both"
            )
        self.moa, (U, P), K = model.eval().moa, prey.shape, blocks.shape[1]
        self.stags, self.kind = stags, (torch.arange(P) >= stags).long()  # [P], 0 stag, 1 hare
        self.around = F.pad(self.moa.around, (0, 0, 0, 1), value=K)  # [K + 1, 5]
        self.walls = torch.ones(U, K + 1, dtype=torch.bool)
        self.values = torch.tensor([FAR])  # what nearness can be, rising
        self.near = torch.zeros(U, P, K + 1, dtype=torch.int16)  # index into `values`
        self.update(torch.arange(U), blocks, prey)

    @torch.no_grad()
    def update(self, boards: torch.Tensor, blocks: torch.Tensor, prey: torch.Tensor) -> None:
        """Boards that are new, or whose prey have moved. boards: int64 [m]; blocks: bool [m, K]; prey: int64 [m, P]."""
        (m, P), K = prey.shape, blocks.shape[1]
        thing = F.one_hot(prey, K + 1)[..., :K].float()  # [m, P, K]
        planes = torch.stack([blocks[:, None].expand(-1, P, -1).float(), thing, torch.zeros_like(thing)], 2)
        near = torch.cat(
            [self.moa.prey_nearness(part, 1)[0] for part in planes.flatten(0, 1).split(TABLE_CHUNK)]
        )  # [mP, 1, K + 1]
        values = torch.cat([self.values, near.unique()]).unique()
        if len(values) > len(self.values):
            self.near = torch.searchsorted(values, self.values)[self.near.long()].to(torch.int16)
            self.values = values
            self._tabulate()
        self.near[boards] = torch.searchsorted(values, near).view(m, P, K + 1).to(torch.int16)
        self.walls[boards, :K] = blocks

    def _tabulate(self) -> None:
        """Weights of the actions, given the thing: of the steps [2 kinds, own nearness, that of the cell stepped to], of
        STAY and the hunts [2, own nearness, 3]. Weights of the things wait until a tick is asked about."""
        V, moa = len(self.values), self.moa
        kind, own, to = torch.meshgrid(torch.arange(2.0), self.values, self.values, indexing="ij")
        toward = torch.where(own == to, 0.0, (to - own).clamp(-3, 3))
        seen = [
            own / 8,
            (own == 0).float(),
            (kind == 0).float(),
            (kind == 1).float(),
            toward,
            (toward > 0).float(),
        ]
        seen = torch.stack(seen, 3)
        step = moa.action(torch.cat([seen, moa.action_kind[0].expand(2, V, V, 4)], 3))[..., 0]
        here = F.pad(seen[:, :, 0, :4], (0, 2))
        still = [moa.action(torch.cat([here, moa.action_kind[a].expand(2, V, 4)], 2)) for a in (4, 5, 6)]
        highest = torch.stack([step.max(), *(part.max() for part in still)]).max()
        self.steps, self.still, self.things = (
            (step - highest).exp(),
            (torch.cat(still, 2) - highest).exp(),
            {},
        )

    def _things(self, tick: int, crowds: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of the things, float [2 goals, crowds, 2 kinds, own nearness, a rival's], and of none [2, crowds]."""
        if (tick, crowds) not in self.things:
            moa, values = self.moa, self.values
            kind, own, rival = torch.meshgrid(torch.arange(2.0), values, values, indexing="ij")
            seen = [
                own / 8,
                (own == 0).float(),
                rival / 8,
                (rival == 0).float(),
                (kind == 0).float(),
                (kind == 1).float(),
            ]
            thing = moa.thing(torch.stack(seen, 3))  # [2, V, V, hidden]
            code = moa.code[moa.behaviours :][:, None].expand(-1, crowds, -1)
            now = moa.tick(torch.tensor(min(tick, moa.ticks - 1))).expand(2, crowds, -1)
            crowd = (torch.arange(crowds) / 4)[None, :, None].expand(2, -1, 1)
            context = torch.cat([code, now, crowd], 2)  # [2, crowds, D + 9]
            found = torch.stack(
                [moa.choice(thing + one)[..., 0] for one in moa.context(context).flatten(0, 1)]
            )
            nothing = moa.nothing(context)[..., 0]
            highest = torch.maximum(found.max(), nothing.max())
            self.things[tick, crowds] = (
                (found - highest).exp().view(2, crowds, *kind.shape),
                (nothing - highest).exp(),
            )
        return self.things[tick, crowds]

    @torch.no_grad()
    def probs(self, board, hunters, prey, tick, goals=None) -> torch.Tensor:
        """p(action | goal) of each hunter, STAY for certain once it has left.

        Args:
            board: int64 [n], which of the U boards; hunters int64 [n, A], prey int64 [n, P]: cells, K for what is gone;
            tick: int64 [n]; goals: int64 [n, A], 0 stag, 1 hare, 2 none: uniform over legal actions; None: both 0 and 1.
        Returns: float [n, A, 7], or [n, A, 2, 7] for both. Raises: ValueError: there is no such goal.
        """
        if goals is not None and goals.numel() and not (goals.amin() >= 0 and goals.amax() <= NO_GOAL):
            found = sorted(set(goals.unique().tolist()) - {*range(NO_GOAL + 1)})
            raise ValueError(f"goals: expected 0 (stag), 1 (hare) or {NO_GOAL} (none), got {found}")
        given = (board, hunters, prey, tick) + (() if goals is None else (goals,))
        return torch.cat(
            [self._probs(*part) for part in zip(*(whole.split(TABLE_CHUNK) for whole in given), strict=True)]
        )

    def _probs(self, board, hunters, prey, tick, goals=None) -> torch.Tensor:
        (n, A), P, K, V = hunters.shape, prey.shape[1], self.walls.shape[1] - 1, len(self.values)
        gone, there = hunters == K, (prey < K)[:, None]  # [n, A], [n, 1, P]
        ways = self.around[hunters]  # [n, A, 5]
        row = (board[:, None] * P + torch.arange(P)) * (K + 1)  # [n, P]
        around = self.near.view(-1)[
            row[:, None, :, None] + ways[:, :, None]
        ].long()  # [n, A, P, 5], index into values
        near = around[..., 4]
        others = ~torch.eye(A, dtype=torch.bool) & ~gone[:, None]  # [n, A, A]
        rival = near[:, None].masked_fill(~others[..., None], 0).amax(2)  # [n, A, P]; 0 is FAR
        earlier = (torch.tril(hunters[:, :, None] == hunters[:, None], -1)[:, None] & others[:, :, None]).any(
            3
        )  # [n, A, A]
        crowd = (others & ~earlier).sum(2)  # [n, A], cells with other hunters

        ticks, which = tick.unique(return_inverse=True)
        things, nothing = zip(*(self._things(t, A) for t in ticks.tolist()), strict=True)
        goal = (
            torch.arange(2).expand(n, A, 2) if goals is None else goals.clamp(max=1)[..., None]
        )  # [n, A, G]
        base = (which[:, None, None] * 2 + goal) * A + crowd[..., None]  # [n, A, G]
        flat = (base[..., None] * 2 + self.kind) * V * V + (near * V + rival)[:, :, None]  # [n, A, G, P]
        weight = torch.stack(things).view(-1)[flat] * there[:, :, None]
        choice = torch.cat([weight, torch.stack(nothing).view(-1)[base][..., None] + TINY], 3)

        on = (near == V - 1) & there
        go = ~self.walls.view(-1)[board[:, None, None] * (K + 1) + ways[..., :4]] & ~gone[..., None]
        hunts = [part.any(2, keepdim=True) for part in (on[..., : self.stags], on[..., self.stags :])]
        legal = torch.cat([go, torch.ones_like(go[..., :1]), *hunts], 2)  # [n, A, 7]
        own = self.kind * V + near  # [n, A, P]
        action = torch.cat(
            [self.steps.view(-1)[own[..., None] * V + around[..., :4]], self.still.view(-1, 3)[own]], 3
        )
        action = (F.pad(action, (0, 0, 0, 1), value=1.0) + TINY) * legal[
            :, :, None
        ]  # after nothing, all are alike
        probs = (choice / choice.sum(3, keepdim=True)) @ (
            action / action.sum(3, keepdim=True)
        )  # [n, A, G, 7]
        stay = F.one_hot(torch.tensor(STAY), 7).float()
        probs = torch.where(gone[..., None, None], stay, probs)
        if goals is None:
            return probs
        uniform = legal / legal.sum(2, keepdim=True)
        return torch.where((goals == NO_GOAL)[..., None], uniform, probs[:, :, 0])


# ---- judging


class Predicted(NamedTuple):
    """Of m samples, z at its mean; None where the loss leaves it untrained."""

    probs: np.ndarray | None  # float32 [m, 7]
    goals: np.ndarray | None  # float32 [m, 2, 7]
    z: np.ndarray  # float32 [m, latent_dim]
    means: dict[
        str, float | None
    ]  # kl, recon_nll, recon_mse, recon_exact: an exact frame has every cell right (p > 0.5)
    used: int  # dimensions of z with a KL above 0.01 nats


@torch.no_grad()
def predict(model: VAE, batches: Batches, index: np.ndarray) -> Predicted:
    """Of the samples `index`: whole groups, in order."""
    said, sums = [], 0.0
    for groups in batches.shares(index, EVAL_BATCH):
        batch = batches.take(groups)
        found = model(batch)
        recon = [found.mean.new_zeros(())] * 3
        if found.cells is not None:
            nll = F.binary_cross_entropy_with_logits(found.cells, batch.planes, reduction="sum")
            mse = (found.cells.sigmoid() - batch.planes).square().mean((1, 2)).sum()
            recon = [nll, mse, ((found.cells > 0) == (batch.planes > 0.5)).all(2).all(1).sum()]
        sums = sums + torch.cat([torch.stack(recon), kl_of(found).sum(0)]).double()
        said.append((found.moa, found.goals, found.mean))
    probs, goals, z = (
        None if part[0] is None else torch.cat(part).cpu().numpy() for part in zip(*said, strict=True)
    )
    sums = (sums / len(index)).cpu().numpy()
    recon = dict(zip(("recon_nll", "recon_mse", "recon_exact"), sums[:3].tolist(), strict=True))
    means = {"kl": float(sums[3:].sum())} | (dict.fromkeys(recon) if model.loss == "moa" else recon)
    exp = [None if logs is None else np.exp(logs) for logs in (probs, goals)]
    return Predicted(*exp, z, means, int((sums[3:] > 0.01).sum()))


def judge(model: VAE, samples: Samples, batches: Batches, index: np.ndarray, checkpoint: dict) -> dict:
    """All figures of the samples `index`, as metrics.json names them, and under `arrays` what the figures are drawn from.

    checkpoint: what `load_vae` gives: what the baselines know of the training split (`table`, `counts`), and whether the
    goal heads were trained.
    """
    table, said = checkpoint["table"], predict(model, batches, index)
    if table is not None and not observers.table_fits(samples, table, checkpoint["strategies"]):
        hunters, names = table.shape[-2] - 1, "/".join(checkpoint["strategies"])
        print(f"[DATA] no `table` here: it was counted with {hunters} hunters of {names}")
        table = None
    observed = observers.predictions(samples, index, None if table is None else table.cpu().numpy())
    counts, targets = np.array(checkpoint["counts"]), samples.actions[index]
    observed["majority"] = np.tile((counts / counts.sum()).astype(np.float32), (len(targets), 1))
    untrained = dict.fromkeys(("top1", "top3", "nll", "brier", "ece"))
    report = {"test": (untrained if said.probs is None else scores.score(said.probs, targets)) | said.means}
    bits = {"kl": said.means["kl"], "recon": said.means["recon_nll"]}
    report["bits"] = {key: None if nats is None else nats / math.log(2) for key, nats in bits.items()}
    report["used_dimensions"] = said.used
    report["goals_trained"] = checkpoint["goals_trained"]
    goal = batches.goals.cpu().numpy()[index]
    if not checkpoint["goals_trained"]:
        goal = np.full_like(goal, -1)  # no figures of heads that no label reached
    return report | reports.of_actions(samples, index, observed, said.probs, said.goals, goal, said.z)


def show(report: dict, what: str) -> None:
    """The figures of a report beside their floor and ceiling, as a small table."""
    test, bits, used = report["test"], report["bits"], report["used_dimensions"]
    print(f"\n[VAE] {what}")
    for line in reports.lines(report):
        print(f"       {line}")
    if test["recon_nll"] is None:
        print("       reconstruction: untrained")
    else:
        print(f"       reconstruction: {test['recon_exact']:.2%} of frames exact, {bits['recon']:.3f} bits a frame, "
              f"MSE {test['recon_mse']:.6f}")  # fmt: skip
    collapsed = "" if used else ": z carries nothing (posterior collapse); try a smaller --kl-coef"
    print(
        f"       KL of z: {test['kl']:.3f} nats ({bits['kl']:.2f} bits), {used} dimensions above 0.01{collapsed}",
        flush=True,
    )


def draw(model: VAE, samples: Samples, batches: Batches, report: dict, history: list, levels: dict, folder: Path, writer,
         step: int) -> None:  # fmt: skip
    """All PNGs of a finished run, in its folder and in TensorBoard, and the breakdown by strategy and tick as CSV.

    report: of the test split. history, levels: the loss curves, and the observers' NLL on the same validation split.
    """
    column, test = {key: [row[key] for row in history] for key in history[0]}, samples.splits["test"]
    panels, lines = {"total": {"train": column["total"]}}, {}
    if model.loss != "recon":
        panels["action loss, nats per action"] = {"train": column["moa"], "val": column["val_nll"]}
        lines["action loss, nats per action"] = {
            n: levels[n] for n in ("uniform", "table", "bayes") if n in levels
        }
    if model.loss != "moa":
        panels["reconstruction, nats per frame"] = {"train": column["recon"], "val": column["val_recon_nll"]}
    panels["KL of z, nats per frame"] = {"train": column["kl"], "val": column["val_kl"]}
    shares = {
        name: np.bincount(samples.actions[part], minlength=7) / len(part)
        for name, part in samples.splits.items()
    }
    shares.pop("all")
    drawn = {"vae_loss_curve": figures.curves(panels, lines, "epoch"),
             "class_distribution": figures.bars(ACTIONS, shares, "share of samples", "actions in the data")}  # fmt: skip
    if model.loss != "recon":
        drawn |= figures.of_actions(report["arrays"], ACTIONS, f"test split, {len(test):,} samples")
        tracking.write_csv(folder / "moa_breakdown.csv", reports.breakdown(report))
    if model.loss != "moa":
        groups = np.unique(batches.group[test])
        some = groups[:: max(1, len(groups) // 8)][:8]
        first, shape = (
            np.cumsum(batches.length[some]) - batches.length[some],
            (len(some), *samples.frames.shape[1:]),
        )
        with torch.no_grad():
            batch = batches.take(some)
            pair = (batch.planes[first], model(batch).cells.sigmoid()[first])
        rows = dict(
            zip(("original", "reconstruction"), (p.cpu().numpy().reshape(shape) for p in pair), strict=True)
        )
        drawn["reconstructions"] = figures.planes(rows, PLANES, [f"sample {i}" for i in batches.start[some]])
    for name, figure in drawn.items():
        figures.save(figure, folder / f"{name}.png", writer, step)


# ---- training


def read_samples(args: Args, split: bool = True) -> Samples:
    """The samples of --data. A file without episodes has no history: then `args.context` becomes `observation`."""
    path = default_or_fresh(args.data) if args.evaluate else training_file(args.data)
    samples = load_samples(path, args.layout, split)
    print(f"[VAE] Loaded {len(samples)} samples.")
    for line in samples.inferred:
        print(f"[DATA] inferred: {line}")
    if args.context == "episode" and samples.trajectories is None and not args.evaluate:
        print("[DATA] no episodes in this file, so no history: --context observation")
        args.context = "observation"
    return samples


def batches_of(samples: Samples, device: torch.device, loss: str) -> Batches:
    """Whole episodes; frames alone need none, and are better shuffled one by one."""
    return Batches.of(samples, device, tuple(GOALS.values()), whole_episodes=loss != "recon")


def count_goals(batches: Batches, index: np.ndarray) -> int:
    """How many of the samples `index` have a recorded goal; 0 where a goal has none: its head stays untrained."""
    counts = [int((batches.goals[index] == goal).sum()) for goal in range(len(GOALS))]
    return sum(counts) if all(counts) else 0


def evaluate(args: Args, device: torch.device) -> None:
    """Judge a finished run on the whole of another file; nothing of it was trained on."""
    start, folder = time.perf_counter(), tracking.find_folder(args.evaluate)
    model, checkpoint = load_vae(folder, device)
    samples = read_samples(args, split=False)
    found, known = samples.frames.shape[2:], (model.sizes["height"], model.sizes["width"])
    needs_episodes = model.context == "episode" and model.loss != "recon"
    for wrong, reason in (
        (found != known, f"obs: expected boards of {known[0]}x{known[1]}, as the checkpoint's, found {found[0]}x{found[1]}"),
        (samples.fingerprint == checkpoint["fingerprint"], "the run was trained on this file; judge it on another, such as "
         "--data fresh"),
        (needs_episodes and samples.trajectories is None, "expected episodes, as --context episode needs, found rows"),
    ):  # fmt: skip
        if wrong:
            raise tracking.UsageError(f"{args.data}: {reason}")
    report = judge(model, samples, batches_of(samples, device, model.loss), samples.splits["all"], checkpoint)
    show(
        report,
        f"epoch {checkpoint['epoch'] - 1} (best on validation) on the whole of {args.data}: {len(samples)} samples",
    )
    path, arrays = folder / f"evaluate_{Path(default_or_fresh(args.data)).stem}.json", report.pop("arrays")
    if arrays["probs"] is not None:
        rows, _ = reports.action_table(arrays["probs"], arrays["targets"], arrays["observed"])
        tracking.write_csv(path.with_suffix(".csv"), rows)
    seconds = time.perf_counter() - start
    trained = checkpoint["args"]
    head = dict(run=checkpoint["run"], seed=trained["seed"], args=trained, data=args.data, seconds=seconds,
                samples_per_second=len(samples) / seconds, samples=dict(train=0, val=0, test=len(samples)))  # fmt: skip
    tracking.write_json(path, head | report)
    print(f"[VAE] saved: {path.as_posix()}")


def rates(step: int, args: Args, steps_per_epoch: int) -> tuple[float, float]:
    """Learning rate and KL weight of a step: the one rises and falls linearly, the other is warmed up over an epoch."""
    rise, fall = min(1.0, (step + 1) / 100), 1.0 - step / (args.epochs * steps_per_epoch)
    return args.learning_rate * rise * fall, args.kl_coef * min(1.0, (step + 1) / steps_per_epoch)


def run_epoch(
    model,
    optimizer,
    batches: Batches,
    index: np.ndarray,
    args: Args,
    step: int,
    world: tracking.World,
    writer,
):
    """Train once on the samples `index`, their groups in random order, `step` steps having been taken before.

    Every process of `world` draws the randomness of whole batches and takes its share of the groups: as many processes as
    you like give one process's results, but for rounding. Returns: the means {moa, .., total}, the steps so far.
    """
    names = ("moa", "goal", "recon", "kl", "total")
    device, latent_dim = batches.frames.device, args.latent_dim
    groups = np.unique(batches.group[index])[torch.randperm(len(np.unique(batches.group[index]))).numpy()]
    parts = np.array_split(groups, min(len(groups), math.ceil(len(index) / args.batch_size)))
    sums, logged = torch.zeros(
        2, len(names), device=device
    )  # over the epoch; over the steps since the last log
    with tqdm(total=len(index), unit=" samples", leave=False, mininterval=1.0, disable=world.rank > 0) as bar:
        for done, part in enumerate(parts, 1):
            optimizer.param_groups[0]["lr"], kl_coef = rates(step, args, len(parts))
            count, told = int(batches.length[part].sum()), max(1, int(batches.goal_known[part].sum()))
            turn = torch.randint(len(batches.cell_permutation), (len(part),), device=device)
            noise = torch.randn(count, latent_dim, device=device)
            if world.size > 1:
                mine = np.arange(len(part)) % world.size == world.rank
                noise = noise[torch.as_tensor(np.repeat(mine, batches.length[part]), device=device)]
                part, turn = part[mine], turn[torch.as_tensor(mine, device=device)]
            batch = batches.take(part, turn)
            moa, goal, _, recon, kl = loss_terms(model(batch, noise), batch)
            terms = torch.stack([moa / count, goal / told, recon / count, kl / count])
            loss = terms[0] + terms[1] + terms[2] + kl_coef * terms[3]
            optimizer.zero_grad()
            (loss * world.size).backward()  # the processes' gradients are averaged
            optimizer.step()
            seen = torch.cat([terms, loss[None]]).detach()
            sums += seen
            logged += seen
            step += 1
            bar.update(count)
            if done % LOG_STEPS == 0 or done == len(parts):
                means = world.sum(logged) / ((done - 1) % LOG_STEPS + 1)
                tracking.log_scalars(
                    writer,
                    "losses",
                    dict(zip(names, means.tolist(), strict=True)) | {"kl_coef": kl_coef},
                    step,
                )
                tracking.log_scalars(
                    writer, "charts", {"learning_rate": optimizer.param_groups[0]["lr"]}, step
                )
                logged.zero_()
    return dict(zip(names, (world.sum(sums) / len(parts)).tolist(), strict=True)), step


def validate(
    model: VAE, samples: Samples, batches: Batches, observed: dict, epoch: int, folder: Path
) -> dict:
    """Judge the validation split after an epoch, print and save. Returns: its figures, None for what is untrained."""
    val = samples.splits["val"]
    said = predict(model, batches, val)
    if said.probs is None:
        print("[MOA] untrained")
        return said.means
    targets, goal = samples.actions[val], batches.goals.cpu().numpy()[val]
    moa, (rows, matrix) = (
        scores.score(said.probs, targets),
        reports.action_table(said.probs, targets, observed),
    )
    told = goal >= 0
    moa["goal_nll"] = (
        float(scores.nll(said.goals[told, goal[told]], targets[told]).mean()) if told.any() else None
    )
    csv, npz = (folder / f"moa_eval_epoch{epoch}.{ending}" for ending in ("csv", "npz"))
    tracking.write_csv(csv, rows)
    arrays = dict(
        targets=targets.astype(np.int8),
        predictions=said.probs.argmax(1).astype(np.int8),
        probabilities=said.probs,
    )
    arrays |= dict(
        strategies=samples.strategies[val], ticks=samples.ticks[val].astype(np.int32), confusion_matrix=matrix
    )
    save_arrays(npz, arrays | dict(goal_probabilities=said.goals, z=said.z))
    print(f"[MOA] epoch {epoch}: top1={moa['top1']:.4f}, top3={moa['top3']:.4f}, saved:")
    print(f"       {csv.as_posix()}\n       {npz.as_posix()}")
    return moa | said.means


def train(args: Args, world: tracking.World, resumed: dict | None) -> None:
    start, device = time.perf_counter(), world.device
    with world.one_first():  # the default file is collected once
        samples = read_samples(args)
    if resumed and resumed["fingerprint"] != samples.fingerprint:
        raise tracking.UsageError(
            f"{args.data}: not the data that the run was trained on; name that file with --data"
        )
    parts = {name: len(samples.splits[name]) for name in ("train", "val", "test")}
    print(f"[DATA] split {samples.split_law}: {parts['train']} train, {parts['val']} val, {parts['test']} test samples; "
          "an epoch's figures are held out, of the val split, the last ones of the test split")  # fmt: skip
    tracking.seed_everything(args.seed, args.torch_deterministic)
    batches = batches_of(samples, device, args.loss)
    height, width = samples.frames.shape[2:]
    ticks = int(samples.ticks.max()) + 1
    model = (
        VAE(**resumed["sizes"])
        if resumed
        else VAE(height, width, ticks, args.latent_dim, args.loss, args.context)
    )
    model = model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    table = observers.training_table(samples)
    observed = observers.predictions(samples, samples.splits["val"], table)

    state = dict(epoch=0, step=0, best=math.inf, history=[], seconds=0.0, train_seconds=0.0)
    if resumed:
        folder, run_name = tracking.find_folder(args.resume), resumed["run"]
        state = {key: resumed[key] for key in state}
        tracking.load_weights(model, resumed["model"], folder / "last.pt")
        optimizer.load_state_dict(resumed["optimizer"])
        tracking.set_rng_state(resumed["rng"])
    else:
        run_name = tracking.new_run(args.exp_name, "vae_ckpts") if world.rank == 0 else ""
        folder = Path("vae_ckpts") / run_name / f"dim{args.latent_dim}"
        if world.rank == 0:
            folder.mkdir()
    settings = asdict(args) | {"resume": ""}  # so that a resumed run's files equal an uninterrupted one's
    goals_trained = 0 if args.loss == "recon" else count_goals(batches, samples.splits["train"])
    rules = samples.trajectories.metadata.get("rules") if samples.trajectories else None
    fixed = dict(kind=KIND, run=run_name, args=settings, sizes=model.sizes, fingerprint=samples.fingerprint,
                 goals_trained=goals_trained, rules=rules,
                 table=None if table is None else torch.as_tensor(table), strategies=samples.strategy_names,
                 counts=np.bincount(samples.actions[samples.splits["train"]], minlength=7).tolist())  # fmt: skip

    def save(name: str) -> None:
        now = state | dict(seconds=state["seconds"] + time.perf_counter() - start)
        learnt = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), rng=tracking.rng_state())
        tracking.save_checkpoint(folder / name, fixed | now | learnt)

    purge = state["step"] + 1 if resumed else None
    writer = tracking.open_log(run_name, settings, purge_step=purge) if world.rank == 0 else None
    if not resumed and world.rank == 0:
        save("last.pt")  # so that a run killed in its first epoch can be resumed too
    untrained = dict(moa="the decoder", recon="the MOA head").get(args.loss)
    if untrained:
        print(f"[VAE] --loss {args.loss}: {untrained} stays untrained")
    if args.loss != "recon" and not goals_trained:
        print(f"[VAE] the file does not record hunters of each goal ({', '.join(GOALS.values())}): the goal heads stay "
              "untrained; beliefs, imagination and planning in hop_ppo.py need them")  # fmt: skip
    print("[VAE] Begin offline training...", flush=True)

    shared = world.wrap(model)
    for epoch in range(state["epoch"], args.epochs):
        print(f"\n[Epoch {epoch + 1}/{args.epochs}]", flush=True)
        epoch_start = time.perf_counter()
        means, state["step"] = run_epoch(
            shared, optimizer, batches, samples.splits["train"], args, state["step"], world, writer
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
        figures_of_val = validate(model, samples, batches, observed, epoch, folder)
        tracking.log_scalars(writer, "val", figures_of_val, state["step"])
        used = [name for name in ("moa", "recon") if args.loss in (name, "both")]
        used = used + ["goal"] * (figures_of_val.get("goal_nll") is not None) + ["kl", "total"]
        row = {name: means[name] for name in used}
        row |= {f"val_{key}": value for key, value in figures_of_val.items() if value is not None}
        print("[VAE] " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()), flush=True)
        state["history"].append(dict(epoch=epoch) | row)
        tracking.write_csv(folder / "loss.csv", state["history"])
        val_nll = row.get("val_nll", 0.0) + row.get("val_recon_nll", 0.0)
        if val_nll < state["best"]:
            state["best"] = val_nll
            save("best.pt")
        save("last.pt")
    if world.rank > 0:
        return

    print(f"\n[VAE] model saved to: {folder.as_posix()}")
    model, best = load_vae(folder, device)
    test = samples.splits["test"]
    report = judge(model, samples, batches, test, best)
    show(
        report,
        f"epoch {best['epoch'] - 1} (best on validation) on the test split: {len(test)} samples, none trained on",
    )
    levels = {
        name: scores.score(p, samples.actions[samples.splits["val"]])["nll"] for name, p in observed.items()
    }
    draw(model, samples, batches, report, state["history"], levels, folder, writer, state["step"])
    report.pop("arrays")
    tracking.log_scalars(writer, "test", report["test"], state["step"])
    seconds = state["seconds"] + time.perf_counter() - start
    speed = args.epochs * parts["train"] / state["train_seconds"]
    head = dict(
        run=run_name, seed=args.seed, args=settings, seconds=seconds, samples_per_second=speed, samples=parts
    )
    tracking.write_json(folder / "metrics.json", head | report)
    writer.close()
    print(
        f"[VAE] {seconds:.0f} s, {speed:.0f} samples/s in training; figures and metrics.json: {folder.as_posix()}"
    )


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    least = dict(epochs=1, batch_size=1, latent_dim=1, torch_threads=1, seed=0)
    if args.loss == "both" and args.latent_dim == 1:
        raise tracking.UsageError("--latent-dim: must be at least 2 with --loss both, a part for each")
    tracking.check_ranges(args, least, above_zero=("learning_rate",), from_zero=("kl_coef",))
    resumed = None
    if args.resume:
        resumed = load_checkpoint(tracking.find_folder(args.resume) / "last.pt")
        args = tracking.resumed_args(args, resumed, free=("resume", "data", "cuda", "torch_threads"))
    torch.set_num_threads(args.torch_threads)
    with tracking.join_world(args.cuda) as world:
        if args.evaluate:
            if world.rank == 0:
                evaluate(args, world.device)
        else:
            train(args, world, resumed)


if __name__ == "__main__":
    tracking.run(main, DataError)
