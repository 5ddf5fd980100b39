"""Batched tree search: PUCT (Silver et al. 2017) with a policy as prior and a critic at the leaves, T trees at once.

A tree is rows of tensors, in the manner of mctx (DeepMind 2022): there are no node objects, and one simulation is one
batched call of the model and one of the networks for all trees. What is uncertain is searched in two ways. Who the others
are: a tree for each of several goals drawn from the belief, whose values are averaged (Huang et al. 2024, HOP). What they
happen to do: an edge gets more sampled outcomes the more often it is visited (progressive widening, Couetoux et al. 2011);
with one outcome an edge a tree would know its future luck.
"""

import math
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from boards import NEVER, Observation, Real, clock_of, remember, sample
from envs.grid import FAR
from envs.scripted import DATA_EPSILON, STRATEGIES, cells_probs
from envs.stag_hunt import STAY, Cells, ended_by_rule, first_hunt_after, step_cells
from others import NS, GoalBelief
from pretrain_vae import TabularMOA
from train_world_model import JointState

ILLEGAL = -1e8  # a log prior below it


class SearchResult(NamedTuple):
    visits: torch.Tensor  # int64 [T, A], of each root action
    q: torch.Tensor  # float [T, A], mean discounted return of each; of one never visited: V of the root
    value: torch.Tensor  # float [T], mean return of the root


@torch.no_grad()
def search(
    root, step, evaluate, simulations: int, gamma: float, c_puct: float = 1.25, branches: int = 4
) -> SearchResult:
    """Grow a tree from each of T roots.

    Args:
        root: tuple of tensors [T, ..], the states.
        step: (state, actions int64 [n], tree int64 [n]) -> (state, reward float [n], over bool [n]); may be random. After
            `over` nothing is earned.
        evaluate: (state, tree) -> (log prior float [n, A], value float [n]); a log prior below -1e8: illegal.
        simulations: leaves a tree grows. gamma: discount.
        c_puct: weight of the prior. branches: the most outcomes of an edge; 1 determinises.
    Raises: ValueError: simulations or branches below 1.
    """
    if simulations < 1 or branches < 1:
        raise ValueError(f"simulations and branches must be at least 1, got {simulations} and {branches}")
    T, N, device = len(root[0]), simulations + 1, root[0].device
    every = torch.arange(T, device=device)
    log_prior, value = evaluate(root, every)
    A = log_prior.shape[1]
    state = [part.new_zeros((T * N, *part.shape[1:])) for part in root]
    prior, legal = (
        torch.zeros(T * N, A, device=device),
        torch.zeros(T * N, A, dtype=torch.bool, device=device),
    )
    count, total = torch.zeros(2, T * N, A, device=device)  # of each edge: visits, sum of returns
    visits, returns = torch.zeros(2, T * N, device=device)  # of each node, the critic's word included
    said = torch.zeros(T * N, device=device)  # the critic's word on each node, 0 where all is over
    paid, over = torch.zeros(T * N, device=device), torch.zeros(T * N, dtype=torch.bool, device=device)
    born = torch.zeros(T * N * A, dtype=torch.int64, device=device)  # outcomes of each edge so far
    child = torch.zeros(T * N * A * branches, dtype=torch.int64, device=device)
    low, high = torch.full((T,), math.inf, device=device), torch.full((T,), -math.inf, device=device)

    def plant(node, states, log_priors, values):
        for whole, part in zip(state, states, strict=True):
            whole[node] = part
        prior[node], legal[node] = log_priors.exp(), log_priors > ILLEGAL
        visits[node], returns[node], said[node] = 1.0, values, values

    plant(every * N, root, log_prior, value)
    for simulation in range(1, N):
        tree, node, path = every, every * N, []
        found = torch.zeros(T, device=device)  # the return from the leaf on
        grown = []
        while True:
            seen, mean = count[node], returns[node] / visits[node]
            q = torch.where(seen > 0, total[node] / seen.clamp(min=1), mean[:, None])
            worst, span = low[tree, None], (high - low)[tree, None]
            q = torch.where(span > 0, (q - worst) / span, 0.0)  # as MuZero: within what this tree has seen
            score = q + c_puct * prior[node] * (visits[node].sqrt()[:, None] / (1 + seen))
            action = score.masked_fill(~legal[node], -math.inf).argmax(1)
            edge = node * A + action
            outcomes = born[edge]
            fresh = outcomes < ((seen.gather(1, action[:, None])[:, 0] + 1).sqrt() / 2).ceil().clamp(
                max=branches
            )
            pick = (torch.rand(len(node), device=device) * outcomes).long()
            below = torch.where(
                fresh, tree * N + simulation, child[edge * branches + torch.where(fresh, 0, pick)]
            )
            path.append((tree, node, edge, below))
            if fresh.any():
                grown.append((tree[fresh], node[fresh], action[fresh], edge[fresh]))
            on = ~(fresh | over[below])
            if not on.any():
                break
            tree, node = tree[on], below[on]

        tree, node, action, edge = (
            (torch.cat(part) for part in zip(*grown, strict=True)) if grown else (every[:0],) * 4
        )
        if len(tree):
            below = tree * N + simulation
            after, reward, ends = step(tuple(part[node] for part in state), action, tree)
            paid[below], over[below] = reward, ends
            known = torch.full_like(
                below, -1
            )  # the same outcome, where the edge has had it: drawn again, not grown again
            for slot in range(branches - 1):
                other = child[edge * branches + slot]
                same = (slot < born[edge]) & (paid[other] == reward) & (over[other] == ends)
                for whole, part in zip(state, after, strict=True):
                    same &= (
                        (whole[other] == part).flatten(1).all(1) if part.dim() > 1 else whole[other] == part
                    )
                known = torch.where(same, other, known)
            child[edge * branches + born[edge]] = torch.where(known < 0, below, known)
            born[edge] += 1
            found[tree] = torch.where(known < 0, 0.0, said[known])
            on = (~ends & (known < 0)).nonzero()[:, 0]
            if len(on):
                states = tuple(part[on] for part in after)
                log_prior, value = evaluate(states, tree[on])
                plant(below[on], states, log_prior, value)
                found[tree[on]] = value
        for tree, node, edge, below in reversed(path):
            found[tree] = paid[below] + gamma * found[tree]
            count.view(-1)[edge] += 1
            total.view(-1)[edge] += found[tree]
            visits[node] += 1
            returns[node] += found[tree]
            q = total.view(-1)[edge] / count.view(-1)[edge]
            low[tree], high[tree] = torch.minimum(low[tree], q), torch.maximum(high[tree], q)

    roots = every * N
    q = torch.where(count[roots] > 0, total[roots] / count[roots].clamp(min=1), returns.new_zeros(()))
    first = (returns[roots] - total[roots].sum(1))[:, None]  # what the critic said
    return SearchResult(
        count[roots].long(), torch.where(count[roots] > 0, q, first), total[roots].sum(1) / simulations
    )


def act(
    found: SearchResult, samples: int, beta: float, legal: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the trees of a decision say together: tree = decision * samples + sample; legal: bool [B, A].

    Returns: pi ~ exp(beta Q), float [B, A]; Q, the mean over the samples' visits, [B, A]; -inf for what no tree tried.
    """
    visits, q = (part.unflatten(0, (-1, samples)) for part in (found.visits.float(), found.q))
    tried = visits.sum(1)
    q = torch.where((tried > 0) & legal, (q * visits).sum(1) / tried.clamp(min=1), -math.inf)
    return (beta * q).softmax(1), q


# ---- the game


class Planner:
    """Searches before each move of the learners of a game's boards, in a model of it.

    kind: `learned`, the world model; `rules`, the rules of the game; both with co-players whose goals are drawn from the
    belief, once a tree, and who act as the goal heads of the MOA say. `oracle`: the rules, and the true strategies.

    Built in, also with `learned`: when a board ends, as in `boards.Imagined`.
    """

    def __init__(self, policy, game: Real, others, args, vae, world, kind: str):
        self.policy, self.game, self.others, self.args, self.kind = policy, game, others, args, kind
        self.world = remember(world).on(game.rules.height, game.rules.width) if kind == "learned" else None
        self.belief = None  # of goals: that of the policy, or one beside it
        if kind != "oracle":
            self.belief = (
                others if isinstance(others, GoalBelief) else GoalBelief(game, vae, args.belief_discount)
            )
            self.tables = TabularMOA(vae, game.blocks, game.prey, game.rules.stags)
        self.rng = np.random.default_rng(args.seed)
        self.samples = 1 if kind == "oracle" else args.plan_samples
        self.simulations = (
            args.oracle_simulations if kind == "oracle" else max(1, args.plan_simulations // self.samples)
        )
        self.version, self.decisions, self.seconds = game.version.clone(), 0, 0.0

    def observe(self) -> None:
        """After a tick."""
        if self.belief is not None and self.belief is not self.others:
            self.belief.observe()

    def deal(self, boards: torch.Tensor, new: torch.Tensor) -> None:
        if self.belief is not None and self.belief is not self.others:
            self.belief.deal(boards, new)

    def __call__(self, told: torch.Tensor, seen: Observation) -> torch.Tensor:
        """told: float [B, A, I], what the policy is told of the others; seen: by the learners. Returns: actions [B]."""
        game = self.game
        if self.belief is not None and self.belief is not self.others:
            self.belief.look()
        rows = (seen.legal.sum(1) > 1).nonzero()[:, 0]
        actions = torch.full_like(game.seats, STAY)
        if not len(rows):
            return actions
        start = time.perf_counter()
        self.board = rows.repeat_interleave(self.samples)  # [T], of each tree
        self.seat = game.seats[self.board]
        self.goals = game.who[self.board].clamp(min=0)
        if self.belief is not None:
            self.goals = (torch.rand(self.goals.shape) >= self.belief.log_odds[self.board].sigmoid()).long()
        self.told = self._told(told)
        self._refresh()
        root = tuple(part[self.board] for part in (game.hunters, game.prey, game.tick, game.first_hunt))
        found = search(root, self.step, self.evaluate, self.simulations, self.args.gamma)
        pi, _ = act(found, self.samples, self.args.plan_beta, seen.legal[rows])
        actions[rows] = sample(pi.log())
        self.decisions, self.seconds = self.decisions + len(rows), self.seconds + time.perf_counter() - start
        return actions

    def _told(self, told: torch.Tensor) -> torch.Tensor:
        """What the policy is told in a tree: the goal drawn is the one believed in; z stays what it is at the root."""
        if isinstance(self.others, GoalBelief):
            return (self.goals == NS).float()[..., None]
        if self.others.size == len(STRATEGIES) and self.belief is not None:
            return F.one_hot(self.goals, len(STRATEGIES)).float()
        return told[self.board]

    def evaluate(self, state: tuple, tree: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hunters, prey, tick, first_hunt = state
        game, clock = self.game, clock_of(tick, first_hunt, self.game.rules)
        return self.policy(
            game.maps.see(self.board[tree], hunters, prey, clock, self.seat[tree], self.told[tree])
        )

    def step(
        self, state: tuple, actions: torch.Tensor, tree: torch.Tensor
    ) -> tuple[tuple, torch.Tensor, torch.Tensor]:
        hunters, prey, tick, first_hunt = state
        rules, board, seat = self.game.rules, self.board[tree], self.seat[tree]
        if self.kind == "oracle":
            probs = torch.as_tensor(self._strategies(board, state, self.goals[tree]))
        else:
            probs = self.tables.probs(board, hunters, prey, tick, self.goals[tree])
        sums = probs.cumsum(2)
        joint = (sums < sums[..., -1:] * torch.rand((*hunters.shape, 1))).sum(2)
        joint.scatter_(1, seat[:, None], actions[:, None])
        if self.kind == "learned":
            blocks = self.game.blocks[board].float()
            after, rewards, _ = self.world.step(JointState(blocks, hunters, prey, rules.stags), joint)
            first_hunt = first_hunt_after(first_hunt, tick, prey, after.prey, rules.cells)
            now = after.hunters, after.prey, tick + 1, first_hunt
            over = ended_by_rule(tick, first_hunt, after.hunters < rules.cells, rules) | (
                tick + 1 >= rules.horizon
            )
        else:
            now, rewards, over = self._rules(board, state, joint)
        over = over | (now[0].gather(1, seat[:, None])[:, 0] == rules.cells)
        return now, rewards.gather(1, seat[:, None])[:, 0], over

    def _refresh(self) -> None:
        """Tables of boards that are new, or whose prey have moved."""
        stale = (self.version != self.game.version).nonzero()[:, 0]
        if self.kind != "oracle" and len(stale):
            self.tables.update(stale, self.game.blocks[stale], self.game.prey[stale])
        self.version = self.game.version.clone()

    def _strategies(self, board: torch.Tensor, state: tuple, who: torch.Tensor) -> np.ndarray:
        cells, maps = Cells(*(part.numpy() for part in state)), self.game.maps
        distance = maps.steps[board][..., :-1].numpy().astype(np.int16)
        distance[distance == NEVER] = FAR
        blocks = self.game.blocks[board].numpy()
        return cells_probs(cells, STRATEGIES, who.numpy(), DATA_EPSILON, distance, blocks, self.game.rules)

    def _rules(
        self, board: torch.Tensor, state: tuple, joint: torch.Tensor
    ) -> tuple[tuple, torch.Tensor, torch.Tensor]:
        cells, blocks = Cells(*(part.numpy() for part in state)), self.game.blocks[board].numpy()
        after, rewards, over = step_cells(cells, joint.numpy(), blocks, self.game.rules, self.rng)
        return tuple(map(torch.as_tensor, after)), torch.as_tensor(rewards), torch.as_tensor(over)
