"""Play the Markov stag hunt: PPO with beliefs about the others' goals, imagination in a world model, and planning.

PPO (Schulman et al. 2017) in CleanRL's form, on a thousand boards at once. `--om` says what the policy is told of each
co-player: nothing, z and action probabilities of a pretrained VAE + MOA, P(goal = stag | behaviour) by Bayes' rule from its
goal heads, carried from one episode to the next (Huang et al. 2024, HOP), or, as an oracle, who it is. `--real-ratio` below
1 learns from boards imagined in a world model, too; `--plan` searches a tree (plan.py) before each move of an evaluation.
"""

import contextlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import tracking
from boards import NEVER, Imagined, Observation, Real, recorded_starts, sample, sights
from data import DEFAULT_DATA, DataError
from envs import STRATEGIES, Rules, planes_to_joint
from envs.grid import FAR
from envs.scripted import chase_probs, parse_team
from envs.teams import LEARNER
from others import GoalBelief, LatentInfo, Told
from plan import Planner
from pretrain_vae import load_vae
from tracking import figures
from train_world_model import load_world_model

KIND = "hop_ppo"  # what a checkpoint says it is
ACTIONS = 7
MASKED = -1e9  # a logit of what is not legal
EVAL_SEED = 2001  # of the boards on which `best` and the ticks of the scripts are chosen
FINAL_SEED = 3001  # of the boards that judge at the end
HIDDEN_FINAL_SEED = 4001  # those of StagHunt-hidden-v0: that game was chosen on boards of seed 3001


@dataclass
class Args:
    exp_name: str = "ppo"
    """the run is called <exp-name>__<unix seconds>"""
    seed: int = 1
    """seed of the boards, the weights and the batches"""
    torch_deterministic: bool = True
    """use deterministic algorithms: same seed, same bytes"""
    torch_threads: int = 1
    """CPU threads"""

    env_id: str = "StagHunt-v0"
    """the game: StagHunt-v0 or StagHunt-hidden-v0, where it pays to know who the others are"""
    co_players: str = "mixed"
    """a team such as 3NS, 1NS2NH, 3RANDOM; mixed: each co-player NS or NH; self: all seats learn"""
    team_reward: bool = False
    """with self: every hunter is paid the mean of all"""
    team_episodes: int = 0
    """episodes that a team stays together, in its seats; 0: as the game has it, mostly 1"""
    om: Literal["none", "latent", "belief", "oracle"] = "none"
    """what the policy is told of the others: nothing, z and action probabilities, P(goal = stag), who they are"""
    vae: str = ""
    """folder of the pretrained VAE; the newest in vae_ckpts/ by default"""
    belief_discount: float = 0.9
    """weight of what was believed an episode earlier about the same co-players"""

    network: Literal["objects", "cnn"] = "objects"
    """objects: distances, legality and which move leads to which prey are built in; cnn: convolutions on the planes"""
    total_timesteps: int = 1_500_000
    """ticks of boards, imagined ones included"""
    learning_rate: float = 2e-3
    """of Adam; falls linearly to zero"""
    num_envs: int = 1024
    """boards played at once, imagined ones included"""
    num_steps: int = 16
    """ticks of each board an update"""
    gamma: float = 0.99
    """discount"""
    end_at_horizon: bool = True
    """the horizon is an end: V after the last tick is 0, as nothing is paid there and the policy sees the clock; else V is
    bootstrapped where the horizon cuts an episode off"""
    gae_lambda: float = 0.95
    """of generalised advantage estimation"""
    num_minibatches: int = 8
    """of an epoch"""
    update_epochs: int = 3
    """passes over the samples of an update"""
    clip_coef: float = 0.2
    """of the policy's ratio"""
    ent_coef: float = 0.01
    """weight of the entropy; falls linearly to zero"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """gradients are clipped to this norm"""

    real_ratio: float = 1.0
    """share of the boards that are real; the others are imagined in the world model. 0: from the offline file alone"""
    world_model: str = ""
    """folder of the world model; the newest in wm_ckpts/ by default"""
    data: str = DEFAULT_DATA
    """with --real-ratio 0: the file whose first observations imagined boards begin from"""

    plan: bool = False
    """in the evaluation at the end, also search before each move (plan.py)"""
    plan_model: Literal["learned", "rules"] = "learned"
    """search in the world model, or in the real rules"""
    plan_simulations: int = 200
    """of a decision, over all its goal samples"""
    plan_samples: int = 5
    """goals drawn from the belief: a tree each"""
    plan_beta: float = 20.0
    """pi ~ exp(beta Q)"""
    plan_boards: int = 256
    """fresh episodes of an evaluation that searches; boards of the adaptation, ten episodes each"""
    oracle: str = ""
    """folder of a run trained with --om oracle: its policy is the oracle of the evaluation"""
    oracle_simulations: int = 0
    """above 0: in the evaluation also search before each move in the real rules, told who the others are"""
    eval_every: int = 20
    """updates between evaluations"""
    eval_boards: int = 1024
    """fresh boards of an evaluation"""

    resume: str = ""
    """go on with the run in this folder; its settings come from its checkpoint"""
    evaluate: str = ""
    """train nothing: judge the best checkpoint of the run in this folder; --plan.. and --eval-boards may be given anew"""


# ---- actor and critic


class Agent(nn.Module):
    """pi(action | seen) and V(seen). Co-players are added up and prey scored alike: where a hunter sits, and in which order
    the prey stand, cannot matter. What is known of a co-player meets what that one is near to, before they are added up."""

    def __init__(self, stags: int, known: int, hidden: int = 64, hunt_bias: float = 1.0):
        super().__init__()
        self.sizes = dict(network="objects", stags=stags, known=known, hidden=hidden, hunt_bias=hunt_bias)
        self.stags = stags
        self.other = nn.Linear(9 + known, hidden // 2)
        self.prey, self.context = nn.Linear(12 + hidden // 2, hidden), nn.Linear(2 * hidden + 4, hidden)
        self.token = nn.Linear(hidden, hidden)
        self.actor, self.wait = nn.Linear(hidden, 3), nn.Linear(hidden, 1)
        self.critic = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        for head, gain in ((self.actor, 0.01), (self.wait, 0.01), (self.critic[2], 1.0)):
            nn.init.orthogonal_(head.weight, gain)
            nn.init.zeros_(head.bias)
        # Who stands on a prey begins by hunting it, as a stag is worth waiting on. Scores are scaled by 4 below: so is this.
        nn.init.constant_(self.actor.bias[2:], hunt_bias)

    def forward(self, seen: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns: log pi [N, 7], about MASKED where not legal; V [N]."""
        (N, P, A), s = seen.steps.shape, self.stags
        there = (seen.steps < NEVER).float()[..., None]  # [N, P, A, 1]
        steps = seen.steps.clamp(max=24).float()
        nearest = [
            F.pad(part, (0, 0, 0, 1), value=24.0).amin(1, keepdim=True)
            for part in (steps[:, :s], steps[:, s:])
        ]
        of_kind = torch.cat([nearest[0].expand(-1, s, -1), nearest[1].expand(-1, P - s, -1)], 1)
        beyond = steps - torch.minimum(*nearest)  # further than the nearest prey
        near = [steps / 8, steps == 0, steps == 1, (steps - of_kind) / 4, beyond / 4, beyond == 0]
        near = torch.stack([part.float() for part in near], 3)  # [N, P, A, 6]
        ahead = ((steps[:, :, 1:] - steps[:, :, :1]) / 4).clamp(-1, 1)[..., None]  # of the observer
        stag = (torch.arange(P, device=steps.device) < s).float()[:, None].expand(N, -1, -1)  # [N, P, 1]
        other = [near[:, :, 1:], ahead, (ahead == 0).float(), stag[:, :, None].expand(-1, -1, A - 1, -1)]
        other = torch.cat([*other, seen.known[:, None].expand(-1, P, -1, -1)], 3)
        crowd = (F.relu(self.other(other)) * there[:, :, 1:]).sum(2)

        clock = torch.cat([seen.clock, seen.there.float().mean(1, keepdim=True)], 1)
        own = torch.cat([near[:, :, 0], stag, 1 - stag, clock[:, None].expand(-1, P, -1), crowd], 2)
        prey = F.relu(self.prey(own)) * there[:, :, 0]  # [N, P, hidden]
        context = F.relu(self.context(torch.cat([prey.amax(1), prey.mean(1), clock], 1)))
        score = self.actor(F.relu(self.token(prey) + context[:, None])) * (4 * there[:, :, 0])  # [N, P, 3]
        nearer = (seen.ways < seen.steps[:, :, :1]).float()
        on = (steps[:, :, :1] == 0).float() * score[..., 1:]
        hunts = [part.sum(1, keepdim=True) for part in (on[:, :s, 1], on[:, s:, 1])]
        stay = on[..., 0].sum(1, keepdim=True) + self.wait(context)
        logits = torch.cat([(nearer * score[..., :1]).sum(1), stay, *hunts], 1)
        return logits.masked_fill(~seen.legal, MASKED).log_softmax(1), self.critic(context)[:, 0]


def planes_of(seen: Observation, stags: int, height: int, width: int) -> torch.Tensor:
    """float [N, C, H, W]: each hunter, observer first; blocks, stags, hares; the clock, the same in every cell; and what is
    known of each co-player, on its cell."""
    A = seen.there.shape[1]
    on = F.one_hot(seen.cells, height * width + 1)[..., :-1].float()  # [N, A + P, K]
    prey = on[:, A:]
    board = [
        seen.blocks[:, None].float(),
        prey[:, :stags].sum(1, keepdim=True),
        prey[:, stags:].sum(1, keepdim=True),
    ]
    clock = seen.clock[..., None].expand(-1, -1, on.shape[2])
    known = seen.known[..., None] * on[:, 1:A, None]  # [N, A - 1, I, K]
    return torch.cat([on[:, :A], *board, clock, known.flatten(1, 2)], 1).unflatten(2, (height, width))


def layer_init(layer: nn.Module, std: float = 2**0.5) -> nn.Module:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class ConvAgent(nn.Module):
    """The plain agent: CleanRL's initial weights and convolutions of its size, on planes; built in is what is legal."""

    def __init__(self, hunters: int, stags: int, known: int, height: int, width: int):
        super().__init__()
        self.sizes = dict(
            network="cnn", hunters=hunters, stags=stags, known=known, height=height, width=width
        )
        channels, layers = (hunters + 6 + (hunters - 1) * known, 16, 32, 32), []
        for inputs, outputs in pairwise(channels):
            layers += [layer_init(nn.Conv2d(inputs, outputs, 3, padding=1)), nn.ReLU()]
        self.network = nn.Sequential(
            *layers, nn.Flatten(), layer_init(nn.Linear(32 * height * width, 512)), nn.ReLU()
        )
        self.actor, self.critic = (
            layer_init(nn.Linear(512, ACTIONS), 0.01),
            layer_init(nn.Linear(512, 1), 1.0),
        )

    def forward(self, seen: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Agent.forward`."""
        hidden = self.network(planes_of(seen, self.sizes["stags"], self.sizes["height"], self.sizes["width"]))
        return self.actor(hidden).masked_fill(~seen.legal, MASKED).log_softmax(1), self.critic(hidden)[:, 0]


def new_agent(network: str, rules: Rules, known: int) -> Agent | ConvAgent:
    """known: how many numbers are known of each co-player."""
    if network == "cnn":
        return ConvAgent(rules.hunters, rules.stags, known, rules.height, rules.width)
    return Agent(rules.stags, known)


def build_agent(network: str, **sizes) -> Agent | ConvAgent:
    """The network that `sizes` of an agent or a checkpoint describe."""
    return {"objects": Agent, "cnn": ConvAgent}[network](**sizes)


def others_of(args: Args, game: Real | Imagined, vae: nn.Module | None) -> Told | GoalBelief | LatentInfo:
    if args.om == "belief":
        return GoalBelief(game, vae, args.belief_discount)
    return LatentInfo(game, vae) if args.om == "latent" else Told(game, args.om == "oracle")


# ---- PPO


class Rollout(NamedTuple):
    """T ticks of N learners, flat, only of learners on the board: M samples."""

    seen: Observation
    actions: torch.Tensor  # int64 [M]
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def advantages_of(
    rewards, values, active, done, cut_values, last_values, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """Generalised advantage estimation (Schulman et al. 2016). All [T, N] but last_values [N], V after the last tick.

    active: on the board before the tick; done: the learner's game ended with it; cut_values: V of what it saw then, where
    the horizon cut it off, 0 where the rules ended it. Who is not active gets 0, and nothing flows through it.
    """
    advantages, follow = torch.zeros_like(rewards), torch.zeros_like(last_values)
    following = last_values
    for t in reversed(range(len(rewards))):
        ahead = torch.where(done[t], cut_values[t], following)
        follow = (
            rewards[t] + gamma * ahead - values[t] + gamma * gae_lambda * torch.where(done[t], 0.0, follow)
        )
        advantages[t] = follow = torch.where(active[t], follow, 0.0)
        following = values[t]
    return advantages


def team_advantages_of(
    rewards, values, active, done, cut, cut_values, last_values, last_active, gamma, gae_lambda
):
    """The same for a reward that the whole team shares, [T, B, A]: one return a board, which goes on until the board ends,
    estimated by the mean of V over the hunters on the board. cut: who the horizon cut off. Returns: [T, B, A]."""

    def team(array: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        return (array * there).sum(-1) / there.sum(-1).clamp(min=1)

    over, by_team = ~(active & ~done).any(2), team(values, active)
    last, cut_values = team(last_values, last_active), team(cut_values, cut)
    found = advantages_of(rewards.mean(2), by_team, active.any(2), over, cut_values, last, gamma, gae_lambda)
    target = found + by_team
    return torch.where(active, target[..., None] - values, 0.0)


@torch.no_grad()
def rollout(
    agent: Agent | ConvAgent, game: Real | Imagined, others, args: Args, tally: torch.Tensor
) -> Rollout:
    """num_steps ticks. tally: float [3], added to: episodes that ended, the sum of their returns, of their lengths."""
    B, A = game.who.shape
    board, rows = torch.arange(B).repeat_interleave(A if game.everyone else 1), []
    seat, seen = sights(game, others.look())
    for _ in range(args.num_steps):
        log_probs, values = agent(seen)
        actions = sample(log_probs)
        taken = log_probs.gather(1, actions[:, None])[:, 0]
        rewards, terminated, truncated = game.step(actions)
        others.observe()
        game.paid += rewards
        mine = [array[board, seat] for array in (rewards, terminated, truncated)]
        done, cut_values, before = mine[1] | mine[2], torch.zeros_like(values), seen
        if (
            mine[2].any() and not args.end_at_horizon
        ):  # Pardo et al. 2018, Time Limits in Reinforcement Learning
            cut_values[mine[2]] = agent(
                Observation(*(part[mine[2]] for part in sights(game, others.look())[1]))
            )[1]
        over = game.ended if game.everyone else done
        if over.any():
            paid = game.paid.mean(1) if game.everyone else game.paid.gather(1, game.seats[:, None])[:, 0]
            tally += torch.stack([over.sum(), paid[over].sum(), game.tick[over].sum()])
            game.paid[over] = 0.0
            others.deal(over, game.deal(over))
        rows.append((before, actions, taken, values, mine[0], before.there[:, 0], done, mine[2], cut_values))
        seat, seen = sights(game, others.look())
    seens, *columns = zip(*rows, strict=True)
    actions, taken, values, rewards, active, done, cut, cut_values = (
        torch.stack(column) for column in columns
    )
    last = agent(seen)[1]
    if args.team_reward:
        by_seat = (rewards, values, active, done, cut, cut_values, last, seen.there[:, 0])
        by_seat = (array.unflatten(-1, (B, A)) for array in by_seat)
        advantages = team_advantages_of(*by_seat, args.gamma, args.gae_lambda).flatten(1)
    else:
        advantages = advantages_of(
            rewards, values, active, done, cut_values, last, args.gamma, args.gae_lambda
        )
    keep = active.flatten().nonzero()[:, 0]
    flat = (array.flatten()[keep] for array in (actions, taken, values, advantages, advantages + values))
    return Rollout(Observation(*(torch.cat(part)[keep] for part in zip(*seens, strict=True))), *flat)


def update(
    agent: Agent | ConvAgent, optimizer: torch.optim.Optimizer, data: Rollout, args: Args, left: float
) -> dict[str, torch.Tensor]:
    """PPO's epochs on one rollout; left: share of the training that is left. Returns: means over ALL minibatches."""
    optimizer.param_groups[0]["lr"] = args.learning_rate * left
    names, M = (
        ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac"),
        len(data.actions),
    )
    sums = torch.zeros(len(names))
    for _ in range(args.update_epochs):
        for index in torch.randperm(M).split(math.ceil(M / args.num_minibatches)):
            log_probs, values = agent(Observation(*(part[index] for part in data.seen)))
            log_ratio = log_probs.gather(1, data.actions[index, None])[:, 0] - data.log_probs[index]
            ratio, advantages = log_ratio.exp(), data.advantages[index]
            advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
            value_loss = 0.5 * (values - data.returns[index]).square().mean()
            entropy = -(log_probs.exp() * log_probs.clamp(min=-50.0)).sum(1).mean()
            loss = policy_loss - args.ent_coef * left * entropy + args.vf_coef * value_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
            with torch.no_grad():  # http://joschu.net/blog/kl-approx.html
                sums += len(index) / M * torch.stack([policy_loss, value_loss, entropy, -log_ratio.mean(),
                        (ratio - 1 - log_ratio).mean(), ((ratio - 1).abs() > args.clip_coef).float().mean()])  # fmt: skip
    return dict(zip(names, sums / args.update_epochs, strict=True))


def explained_variance(data: Rollout) -> torch.Tensor:
    """Of the returns by the critic: 1 is all, 0 none; NaN where they do not vary."""
    return 1 - (data.returns - data.values).var(correction=0) / data.returns.var(correction=0)


# ---- judging


@torch.no_grad()
def judge(policy, game: Real, others, episodes: int = 1, plan=None) -> dict[str, np.ndarray]:
    """Whole boards, played until everyone has left, `episodes` in a row with the same teams.

    policy: Seen -> (log pi, V). plan: (known, Seen) -> actions, instead of the policy's. Returns: arrays [episodes, B]:
    learner (its return; `self`: that of seat 0), team (mean return of all hunters), length, stags and hares (captured).
    """
    B, A = game.who.shape
    found = {key: [] for key in ("learner", "team", "length", "stags", "hares")}
    watching = [others] if plan is None else [others, plan]
    for _ in range(episodes):
        paid = torch.zeros(B, A)
        while not game.ended.all():
            told = others.look()
            _, seen = sights(game, told)
            actions = sample(policy(seen)[0]) if plan is None else plan(told, seen)
            paid += game.step(actions)[0]
            for one in watching:
                one.observe()
        gone = game.prey == game.rules.cells
        now = (paid.gather(1, game.seats[:, None])[:, 0], paid.mean(1), game.tick, gone[:, : game.rules.stags].sum(1),
               gone[:, game.rules.stags :].sum(1))  # fmt: skip
        for key, array in zip(found, now, strict=True):
            found[key].append(array.numpy().copy())
        if len(found["learner"]) == episodes:
            break
        every = torch.ones(B, dtype=torch.bool)
        new = game.deal(every)
        for one in watching:
            one.deal(every, new)
    return {key: np.stack(arrays) for key, arrays in found.items()}


def uniform(seen: Observation) -> tuple[torch.Tensor, None]:
    """The policy of random play."""
    return (seen.legal.float() / seen.legal.sum(1, keepdim=True)).log(), None


class Script:
    """The simple rival: NS until tick `switch` (None: always), then NH, without random moves, told nothing."""

    def __init__(self, rules: Rules, switch: int | None):
        self.rules, self.switch = rules, rules.horizon if switch is None else switch

    def __call__(self, seen: Observation) -> tuple[torch.Tensor, None]:
        distance = torch.cat([seen.steps[:, :, :1], seen.ways], 2).numpy().astype(np.int16)  # [N, P, 5]
        distance[distance == NEVER] = FAR
        distance = distance[:, None]  # [N, 1, P, 5]: one hunter a row
        probs = chase_probs(
            distance[..., 0], distance[..., 1:], seen.legal[:, None].numpy(), self.rules.stags
        )
        late = (seen.clock[:, :1] * self.rules.horizon).round() >= self.switch
        return torch.where(late, *(torch.as_tensor(probs[name][:, 0]) for name in ("NH", "NS"))).log(), None


def summarize(found: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over all boards and episodes, and half the width of their 95% intervals (of the boards' means)."""
    means = {key: float(array.mean()) for key, array in found.items()}
    for key in ("learner", "team"):
        boards = found[key].mean(0)
        means[f"{key}_ci95"] = float(1.96 * boards.std(ddof=1) / math.sqrt(len(boards)))
    keys = ("learner", "learner_ci95", "team", "team_ci95")
    return {key: means[key] for key in keys} | {"episodes": found["learner"].size} | {
        key: means[key] for key in ("length", "stags", "hares")}  # fmt: skip


# ---- the run


def rules_of(env_id: str) -> tuple[Rules, int]:
    """Rules and team_episodes of a registered game. Raises: tracking.UsageError: there is no such game here."""
    if env_id not in ("StagHunt-v0", "StagHunt-hidden-v0"):
        raise tracking.UsageError(f"--env-id: expected StagHunt-v0 or StagHunt-hidden-v0, got {env_id!r}")
    keywords = dict(gymnasium.spec(env_id).kwargs)
    names = Rules.__dataclass_fields__
    return Rules(**{key: value for key, value in keywords.items() if key in names}), keywords.get(
        "team_episodes", 1
    )


def load_networks(args: Args, rules: Rules) -> tuple[nn.Module | None, nn.Module | None]:
    """The VAE and the world model that the settings need; their folders go into the settings. Raises: tracking.UsageError:
    there is none, or it was trained for another game or without what is needed of it."""
    vae = world = None
    goal_users = {"--om belief": args.om == "belief", "--plan": args.plan,
                  "--real-ratio below 1": args.real_ratio < 1 and args.co_players != "self"}  # fmt: skip
    needs_goals = [flag for flag, used in goal_users.items() if used]
    if needs_goals or args.om == "latent":
        args.vae = args.vae or tracking.newest_run("vae_ckpts", "pretrain_vae.py").as_posix()
        vae, checkpoint = load_vae(args.vae)
        check_vae(args.vae, vae, checkpoint, rules, needs_goals)
        judged = tracking.find_folder(args.vae) / "metrics.json"
        test = json.loads(judged.read_text(encoding="utf-8"))["test"] if judged.is_file() else {}
        said = (
            ", ".join(f"{key} {test[key]:.4f}" for key in ("top1", "top3", "nll"))
            if test
            else "not judged yet"
        )
        print(f"[MOA] {args.vae}: {said} on the offline test split of {checkpoint['args']['data']}")
        if other := [
            name
            for name, value in asdict(rules).items()
            if (checkpoint.get("rules") or {}).get(name) != value
        ]:
            print(
                f"[MOA] {args.vae}: in {args.env_id} these rules are not those of its data: {', '.join(other)}"
            )
    if args.real_ratio < 1 or (args.plan and args.plan_model == "learned"):
        args.world_model = (
            args.world_model or tracking.newest_run("wm_ckpts", "train_world_model.py").as_posix()
        )
        world, checkpoint = load_world_model(args.world_model)
        check_world_model(args, world, checkpoint, rules)
        print(f"[WM] {args.world_model}: trained on {checkpoint['args']['data']}")
    return vae, world


def check_vae(folder: str, vae: nn.Module, checkpoint: dict, rules: Rules, needs_goals: list[str]) -> None:
    """needs_goals: the flags that need trained goal heads. Raises: tracking.UsageError: this VAE cannot be used."""
    if vae.loss == "recon":
        raise tracking.UsageError(
            f"{folder}: trained with --loss recon, it has no MOA head: name another with --vae"
        )
    size = (vae.sizes["height"], vae.sizes["width"])
    if size != (rules.height, rules.width):
        raise tracking.UsageError(
            f"{folder}: for boards of {size}, the game has {(rules.height, rules.width)}"
        )
    if not needs_goals:
        return
    if not checkpoint["goals_trained"]:
        raise tracking.UsageError(
            f"{folder}: {needs_goals[0]} needs goal heads, and its data had no strategies to train them: train on a file of "
            "`python -m data.collect`, or name another with --vae"
        )


def check_world_model(args: Args, world: nn.Module, checkpoint: dict, rules: Rules) -> None:
    """Sizes, hunters and horizon of its data may differ: it plays on any board, and when boards end is the game's rule.
    Raises: tracking.UsageError: this world model cannot be used."""
    folder, its = args.world_model, checkpoint.get("rules")
    if world.kind != "moves" or not world.joint:
        raise tracking.UsageError(f"{folder}: imagination needs --model moves --actions joint: name another")
    names = ("hunters_needed", "stag_reward", "hare_reward", "prey_moves")
    if other := [name for name in names if its and its.get(name) != getattr(rules, name)]:
        values = ", ".join(
            f"{name} {its.get(name)} where {args.env_id} has {getattr(rules, name)}" for name in other
        )
        flags = " ".join(f"--rules.{name.replace('_', '-')} {getattr(rules, name):g}" for name in other)
        raise tracking.UsageError(
            f"{folder}: learnt from a game with {values}: collect with `python -m data.collect {flags} --out FILE`, train "
            "on that file, and name the run with --world-model"
        )
    pays, paid = {rules.stag_reward, rules.hare_reward}, set(world.reward_values.tolist())
    if not pays <= paid:
        pays = f"captures pay {sorted(pays)} in {args.env_id}, {sorted(paid - {0.0})} in what it learnt from"
        raise tracking.UsageError(f"{folder}: {pays}: name one that learnt from this game")
    if not its:
        print(f"[WM] {folder}: the rules of its data are not known; only what captures pay was checked")


def games_of(args: Args, rules: Rules, vae, world) -> list:
    """(game, what its learners are told of the others): real boards, and imagined ones."""
    real, games = round(args.real_ratio * args.num_envs), []
    if real:
        games.append(Real(real, rules, args.co_players, args.seed, args.team_episodes))
    if real < args.num_envs:
        games.append(Imagined(args.num_envs - real, rules, args.co_players, world, vae, args.team_episodes))
        games[-1].begin(*(games[0].starts if real else recorded_starts(args.data, rules)))
    return [(game, others_of(args, game, vae)) for game in games]


def load_games(games: list, played: list) -> None:
    """played: the state_dict of each game, and of what its learners are told."""
    for (game, others), (its, theirs) in zip(games, played, strict=True):
        game.load_state_dict(its)
        others.load_state_dict(theirs)


def final_seed_of(env_id: str) -> int:
    return HIDDEN_FINAL_SEED if env_id == "StagHunt-hidden-v0" else FINAL_SEED


def teams_of(args: Args, rules: Rules) -> list[str]:
    """What an evaluation plays with: the training's own co-players first."""
    n = rules.hunters - 1
    named = [f"{n}NS", f"1NS{n - 1}NH", f"{n - 1}NS1NH", f"{n}NH"] if n > 1 else [f"{n}NS", f"{n}NH"]
    return list(dict.fromkeys([args.co_players, *named, f"{n}RANDOM", "mixed"]))


@dataclass
class Evaluator:
    """Judges policies on fresh boards, which are the same for every policy."""

    args: Args
    rules: Rules
    vae: nn.Module | None
    world: nn.Module | None

    def play(
        self, policy, team: str, seed: int, boards: int = 0, episodes: int = 0, om: str = "", plan: str = ""
    ):
        """What `judge` finds in so many boards and episodes in a row (0: as set, and as the game has it). om: what the
        policy is told, if not what --om says. plan: search, in `learned` or `rules`, or as the `oracle`, told who they are.
        """
        episodes = episodes or self.args.team_episodes
        boards = boards or max(2, math.ceil(self.args.eval_boards / episodes))
        told = replace(self.args, om=om or self.args.om)
        with kept_rng():
            torch.manual_seed(seed)
            game = Real(boards, self.rules, team, seed, episodes)
            others = others_of(told, game, self.vae)
            planner = Planner(policy, game, others, told, self.vae, self.world, plan) if plan else None
            return judge(policy, game, others, episodes, planner)

    @property
    def final_seed(self) -> int:
        return final_seed_of(self.args.env_id)

    def script(self, team: str, seed: int, switch: int | None, **boards) -> dict:
        """What `Script` earns with a team, and its `tick`, None for never."""
        return summarize(self.play(Script(self.rules, switch), team, seed, om="none", **boards)) | {
            "tick": switch
        }

    def best_switch(self, team: str) -> int | None:
        """The tick at which `Script` earns most with a team, on boards of EVAL_SEED: 0, 4, .., 32 or never."""
        key = "team" if team == "self" else "learner"
        switches = [*range(0, min(33, self.rules.horizon), 4), None]
        boards = dict(
            boards=self.args.eval_boards, episodes=1
        )  # it remembers nothing: one episode of each team will do
        return max(switches, key=lambda switch: self.script(team, EVAL_SEED, switch, **boards)[key])

    def untrained(self, agent: Agent | ConvAgent) -> Agent | ConvAgent:
        """A network of the same kind with its first weights."""
        with kept_rng():
            torch.manual_seed(self.args.seed)
            return build_agent(**agent.sizes)

    def compare(self, agent: Agent | ConvAgent) -> dict[str, dict[str, dict]]:
        """Who earns what with which team, {"teams": {"3NS": {..}, ..}, "script": the same, ..}; what is not asked for is
        not there. All on the same boards; of plan and oracle_search, --plan-boards of them."""
        args, seed, teams, found = self.args, self.final_seed, teams_of(self.args, self.rules), {}
        scripts = tqdm(dict.fromkeys(["mixed", *teams]), unit=" scripts", leave=False)
        switches = {team: self.best_switch(team) for team in scripts}
        untrained, oracle = self.untrained(agent), load_agent(args.oracle)[0] if args.oracle else None
        few = dict(seed=seed, boards=max(2, math.ceil(args.plan_boards / args.team_episodes)))
        for team in tqdm(teams, unit=" teams", leave=False):
            one = {
                "teams": summarize(self.play(agent, team, seed)),
                "script": self.script(team, seed, switches["mixed"]),
                "script_told": self.script(team, seed, switches[team]),
                "untrained": summarize(self.play(untrained, team, seed)),
                "random": summarize(self.play(uniform, team, seed, om="none")),
            }
            if oracle and team != "self":
                one["oracle"] = summarize(self.play(oracle, team, seed, om="oracle"))
            if args.plan and team != "self":
                one["plan"] = summarize(self.play(agent, team, plan=args.plan_model, **few))
            if args.oracle_simulations and team != "self":
                policy, om = (oracle, "oracle") if oracle else (agent, args.om)
                one["oracle_search"] = summarize(self.play(policy, team, om=om, plan="oracle", **few))
            for kind, result in one.items():
                found.setdefault(kind, {})[team] = result
        return found

    def adapt(self, agent: Agent | ConvAgent, episodes: int = 10) -> dict[str, list[dict]]:
        """Unknown co-players that stay in their seats: the learner's return by episode."""
        found = {}
        for team in [team for team in teams_of(self.args, self.rules) if team != "self"]:
            learner = self.play(agent, team, self.final_seed, self.args.plan_boards, episodes)["learner"]
            ci = 1.96 * learner.std(1, ddof=1) / math.sqrt(learner.shape[1])
            found[team] = [dict(episode=e + 1, learner=float(mean), learner_ci95=float(half))
                           for e, (mean, half) in enumerate(zip(learner.mean(1), ci, strict=True))]  # fmt: skip
        return found

    def report(self, agent: Agent | ConvAgent, folder: Path, head: dict, stem: str, writer=None) -> None:
        """Say, write and draw all that is judged of an agent."""
        found, adapted = self.compare(agent), self.adapt(agent)
        rows = [dict(team=team) | one for team, ones in adapted.items() for one in ones]
        by_episode = {team: [one["learner"] for one in ones] for team, ones in adapted.items()}
        tracking.write_csv(folder / f"{stem}_teams.csv", table_rows(found))
        tracking.write_csv(folder / f"{stem}_adaptation.csv", rows)
        for kind in ("script", "script_told"):
            ticks = (
                f"{team} {'never' if one['tick'] is None else one['tick']}"
                for team, one in found[kind].items()
            )
            print(
                f"[PPO] {kind}: NS until a tick, chosen on boards of seed {EVAL_SEED}, then NH: {', '.join(ticks)}"
            )
        episodes = {kind: next(iter(by_team.values()))["episodes"] for kind, by_team in found.items()}
        searched = [f"{kind} {episodes[kind]}" for kind in ("plan", "oracle_search") if kind in found]
        print(f"[PPO] returns on fresh boards of seed {self.final_seed}, mean and half of its 95% interval; episodes: "
              + ", ".join([str(episodes["teams"]), *searched]))  # fmt: skip
        print(" " * 17 + "".join(f"{kind:>20}" for kind in found))
        for team in found["teams"]:
            for key in ("learner", "team"):
                cells = (by_team.get(team) for by_team in found.values())
                cells = (f"{one[key]:.3f} ± {one[f'{key}_ci95']:.3f}" if one else "" for one in cells)
                print(
                    f"       {team if key == 'learner' else '':9}{key:7}"
                    + "".join(f"{cell:>20}" for cell in cells)
                )
        for team, returns in by_episode.items():
            print(
                f"[PPO] {team}, the same co-players for {len(returns)} episodes: "
                + " ".join(f"{x:.2f}" for x in returns)
            )
        drawn = {kind: by_team for kind, by_team in found.items() if kind != "untrained"}
        bars = {
            kind: [one.get(team, {}).get("learner", math.nan) for team in found["teams"]]
            for kind, one in drawn.items()
        }
        pictures = {
            f"{stem}_teams": figures.bars(
                list(found["teams"]), bars, "return of the learner", "with each team"
            )
        }
        if by_episode:
            pictures[f"{stem}_adaptation"] = figures.curves(
                {"return of the learner": by_episode}, {}, "episode"
            )
        for name, figure in pictures.items():
            figures.save(figure, folder / f"{name}.png", writer, head["steps"])
        seeds = dict(eval_seed=EVAL_SEED, final_seed=self.final_seed)
        absent = dict(oracle=None, oracle_search=None)
        tracking.write_json(
            folder / f"{stem}.json", head | seeds | absent | found | {"adaptation": by_episode}
        )
        self.film(agent, folder / f"{stem}_episode.gif")

    def film(self, agent: Agent | ConvAgent, path: Path) -> None:
        """An episode; beside each co-player what is believed of it, P(goal = stag), and, in brackets, who it is."""
        frames, titles, notes = [], [], []
        with kept_rng(), torch.no_grad():
            torch.manual_seed(self.args.seed)
            game = Real(1, self.rules, self.args.co_players, self.final_seed, self.args.team_episodes)
            others = others_of(self.args, game, self.vae)
            while True:
                told, who = others.look(), game.who[0].tolist()
                belief = [f"{float(p):.2f} " if self.args.om == "belief" else "" for p in told[0].sum(1)]
                notes.append({i: f"{belief[i]}({STRATEGIES[w]})" for i, w in enumerate(who) if w != LEARNER})
                frames.append(planes_to_joint(game.planes()[0].numpy()))
                learner = "all hunters learn" if game.everyone else f"the learner is hunter {int(game.seats)}"
                paid = ", ".join(f"{value:g}" for value in game.paid[0].tolist())
                titles.append(f"tick {int(game.tick)}, {learner}\nreturns {paid}")
                if game.ended.all():
                    break
                actions = sample(agent(sights(game, told)[1])[0])
                game.paid += game.step(actions)[0]
                others.observe()
        label = "P(stag) (who it is)" if self.args.om == "belief" else "(who it is)"
        figures.joint_film({label: frames}, titles, path, notes)


def table_rows(found: dict[str, dict[str, dict]]) -> list[dict]:
    """A row a policy and team. `team` is the team's name, so its mean return is called `team_return`."""
    named = dict(team="team_return", team_ci95="team_return_ci95")
    rows = [(kind, team, one) for kind, by_team in found.items() for team, one in by_team.items()]
    return [dict(policy=kind, team=team) | {named.get(key, key): value for key, value in one.items()}
            for kind, team, one in rows]  # fmt: skip


@contextlib.contextmanager
def kept_rng():
    """What is drawn inside changes nothing outside: training does not hang on when it is judged."""
    saved = tracking.rng_state()
    yield
    tracking.set_rng_state(saved)


def load_agent(folder: str | Path) -> tuple[Agent | ConvAgent, dict]:
    """The network of a run's best checkpoint, in eval mode, and the checkpoint. Raises: tracking.UsageError."""
    path = tracking.find_folder(folder) / "best.pt"
    checkpoint = tracking.load_checkpoint(path, KIND)
    return tracking.build(build_agent, checkpoint, path).eval(), checkpoint


def joined(parts: list[Rollout]) -> Rollout:
    """The samples of several games as one rollout."""
    seen = Observation(*(torch.cat(part) for part in zip(*(one.seen for one in parts), strict=True)))
    return Rollout(seen, *(torch.cat(part) for part in zip(*(one[1:] for one in parts), strict=True)))


def train(args: Args, resumed: dict | None) -> None:
    start = time.perf_counter()
    rules, together = rules_of(args.env_id)
    args.team_episodes = args.team_episodes or together
    vae, world = load_networks(args, rules)
    tracking.seed_everything(args.seed, args.torch_deterministic)
    games = games_of(args, rules, vae, world)
    agent, referee = new_agent(args.network, rules, games[0][1].size), Evaluator(args, rules, vae, world)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    batch, updates = (
        args.num_envs * args.num_steps,
        max(1, args.total_timesteps // (args.num_envs * args.num_steps)),
    )
    real = sum(game.boards for game, _ in games if isinstance(game, Real)) * args.num_steps  # an update
    goal = "team" if args.co_players == "self" else "learner"

    state = dict(
        update=0,
        best=-math.inf,
        selection_steps=0,
        history=[],
        evaluations=[],
        seconds=0.0,
        train_seconds=0.0,
    )
    if resumed:
        folder, run_name = tracking.find_folder(args.resume), resumed["run"]
        state = {key: resumed[key] for key in state}
        tracking.load_weights(agent, resumed["model"], folder / "last.pt")
        optimizer.load_state_dict(resumed["optimizer"])
        load_games(games, resumed["games"])
        tracking.set_rng_state(resumed["rng"])
    else:
        run_name = tracking.new_run(args.exp_name, "ppo_ckpts")
        folder = Path("ppo_ckpts") / run_name
    settings = asdict(args) | {"resume": ""}  # so that a resumed run's files equal an uninterrupted one's
    fixed = dict(kind=KIND, run=run_name, args=settings, sizes=agent.sizes)

    def save(name: str) -> None:
        now = state | dict(seconds=state["seconds"] + time.perf_counter() - start)
        played = [(game.state_dict(), others.state_dict()) for game, others in games]
        learnt = dict(
            model=agent.state_dict(), optimizer=optimizer.state_dict(), rng=tracking.rng_state(), games=played
        )
        tracking.save_checkpoint(folder / name, fixed | now | learnt)
        if (
            name == "last.pt"
        ):  # go on from what a resumed run begins with: tables built anew, so that both round alike
            load_games(games, played)

    writer = tracking.open_log(
        run_name, settings, purge_step=state["update"] * batch + 1 if resumed else None
    )
    if not resumed:
        save("last.pt")  # so that a run killed before its first evaluation can be resumed, too
    print(f"[PPO] {run_name}: --co-players {args.co_players} --om {args.om}, {updates} updates of {args.num_envs} boards x "
          f"{args.num_steps} ticks, {real / batch:.0%} of them real", flush=True)  # fmt: skip
    for now in tqdm(
        range(state["update"], updates), initial=state["update"], total=updates, unit=" updates", leave=False
    ):
        begun, tally = time.perf_counter(), torch.zeros(3)
        if len(games) > 1:
            games[1][0].begin(*games[0][0].starts)
        data = joined([rollout(agent, game, others, args, tally) for game, others in games])
        losses = update(agent, optimizer, data, args, 1 - now / updates) | {
            "explained_variance": explained_variance(data)
        }
        losses, (episodes, paid, length) = (
            {key: float(value) for key, value in losses.items()},
            tally.tolist(),
        )
        seconds, steps = time.perf_counter() - begun, (now + 1) * batch
        if not math.isfinite(losses["policy_loss"] + losses["value_loss"]):
            raise tracking.UsageError(
                f"update {now + 1}: the loss is not finite; try a smaller --learning-rate"
            )
        played = dict(episodic_return=paid / episodes, episodic_length=length / episodes) if episodes else {}
        played |= games[0][1].score.read() if args.om in ("belief", "latent") else {}
        tracking.log_scalars(writer, "losses", losses, steps)
        for key, value in (played | {"learning_rate": optimizer.param_groups[0]["lr"]}).items():
            writer.add_scalar(f"{'belief' if 'tick' in key else 'charts'}/{key}", value, steps)
        if now > 0:  # the first update warms up
            state["train_seconds"] += seconds
            tracking.log_scalars(writer, "charts", {"SPS": batch / seconds}, steps)
        row = dict(update=now + 1, steps=steps, real_steps=(now + 1) * real + state["selection_steps"])
        state["history"].append(row | played | losses)
        state["update"] = now + 1
        if (now + 1) % args.eval_every and now + 1 < updates:
            continue
        played = referee.play(agent, args.co_players, EVAL_SEED)
        if real:  # real boards choose `best`: their ticks are paid for, too
            state["selection_steps"] += int(played["length"].sum())
            row["real_steps"] += int(played["length"].sum())
        found = summarize(played)
        state["evaluations"].append(row | found)
        tracking.log_scalars(writer, "eval", found, steps)
        said = ", ".join(
            f"{key} {found[key]:.3f} ± {found[f'{key}_ci95']:.3f}" for key in ("learner", "team")
        )
        tqdm.write(f"[PPO] update {now + 1}/{updates}, {steps} steps ({row['real_steps']} real): {said}")
        tracking.write_csv(folder / "progress.csv", state["history"])
        tracking.write_csv(folder / "evaluations.csv", state["evaluations"])
        if not real or found[goal] > state["best"]:
            state["best"] = found[goal]
            save("best.pt")
        save("last.pt")

    agent, best = load_agent(folder)
    print(f"\n[PPO] model saved to: {folder.as_posix()}")
    chosen = f"the best on boards of seed {EVAL_SEED}" if real else "the last: nothing real is to choose it"
    print(f"[PPO] judged: update {best['update']}, {chosen}")
    keys = ("episodic_return", "episodic_length", "entropy", "explained_variance")
    panels = {key: {args.co_players: [row.get(key, math.nan) for row in state["history"]]} for key in keys}
    curves = figures.curves(panels, {}, f"update of {batch} steps")
    figures.save(curves, folder / "ppo_curve.png", writer, updates * batch)
    head = dict(run=run_name, seed=args.seed, args=settings, seconds=state["seconds"] + time.perf_counter() - start,
                sps=(updates - 1) * batch / max(state["train_seconds"], 1e-9), steps=best["update"] * batch,
                real_steps=updates * real + state["selection_steps"])  # fmt: skip
    referee.report(agent, folder, head, "metrics", writer)
    writer.close()
    print(
        f"[PPO] {head['seconds']:.0f} s, {head['sps']:.0f} steps/s in training; metrics.json: {folder.as_posix()}"
    )


FREE = ("plan", "plan_model", "plan_simulations", "plan_samples", "plan_beta", "plan_boards", "oracle", "oracle_simulations",
        "eval_boards", "vae", "world_model", "torch_threads")  # fmt: skip


def evaluate(args: Args) -> None:
    """--evaluate: judge a run again, with other settings of the search."""
    folder = tracking.find_folder(args.evaluate)
    agent, checkpoint = load_agent(folder)
    args = tracking.resumed_args(args, checkpoint, free=("resume", "evaluate", *FREE))
    check_oracle(args)
    rules, _ = rules_of(args.env_id)
    judge = Evaluator(args, rules, *load_networks(args, rules))
    steps = checkpoint["update"] * args.num_envs * args.num_steps
    head = dict(run=checkpoint["run"], seed=args.seed, args=asdict(args), steps=steps)
    judge.report(agent, folder, head, "evaluate")


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    least = dict(seed=0, torch_threads=1, team_episodes=0, total_timesteps=1, num_envs=1, num_steps=1, num_minibatches=1,
                 update_epochs=1, plan_simulations=1, plan_samples=1, plan_boards=2, oracle_simulations=0, eval_every=1,
                 eval_boards=2)  # fmt: skip
    rates = ("learning_rate", "clip_coef", "max_grad_norm", "plan_beta")
    tracking.check_ranges(args, least, above_zero=rates, from_zero=("ent_coef", "vf_coef"))
    for name in ("gamma", "gae_lambda", "real_ratio", "belief_discount"):
        if not 0 <= getattr(args, name) <= 1:
            raise tracking.UsageError(
                f"--{name.replace('_', '-')}: must be in [0, 1], got {getattr(args, name)}"
            )
    torch.set_num_threads(args.torch_threads)
    if args.evaluate:
        return evaluate(args)
    resumed = None
    if args.resume:
        resumed = tracking.load_checkpoint(tracking.find_folder(args.resume) / "last.pt", KIND)
        args = tracking.resumed_args(args, resumed, free=("resume", "torch_threads"))
    rules, _ = rules_of(args.env_id)
    try:
        parse_team(args.co_players, rules.hunters - 1)
    except ValueError as error:
        raise tracking.UsageError(f"--{error}") from None
    if 0 < args.real_ratio < 1 and round(args.real_ratio * args.num_envs) in (0, args.num_envs):
        what = "none would be real" if args.real_ratio < 0.5 else "all would be real"
        numbers = f"--real-ratio {args.real_ratio}: of {args.num_envs} boards {what}"
        raise tracking.UsageError(f"{numbers}: 0, 1, or more --num-envs")
    if args.team_reward and args.co_players != "self":
        raise tracking.UsageError(
            "--team-reward: needs --co-players self: scripted co-players have no use for a reward"
        )
    if args.plan and args.co_players == "self":
        raise tracking.UsageError(
            "--plan: needs scripted co-players: goals are drawn for those that have one"
        )
    check_oracle(args)
    train(args, resumed)


def check_oracle(args: Args) -> None:
    """Raises: tracking.UsageError: --oracle names a run that does not know who the others are, or is of another game."""
    if args.oracle:
        its = load_agent(args.oracle)[1]["args"]
        if (its["om"], its["env_id"]) != ("oracle", args.env_id):
            its = f"--om {its['om']} --env-id {its['env_id']}"
            raise tracking.UsageError(
                f"--oracle {args.oracle}: needs --om oracle --env-id {args.env_id}, this has {its}"
            )
        if its["co_players"] == "self":
            raise tracking.UsageError(
                f"--oracle {args.oracle}: learnt among learners alone; name one with scripted co-players"
            )


if __name__ == "__main__":
    tracking.run(main, DataError)
