"""Planning with few simulations (Danihelka et al. 2022, "Policy improvement by planning with Gumbel"; mctx's
`gumbel_muzero_policy`): the root tries the actions of largest log prior + Gumbel noise, by sequential halving."""

import math
from functools import partial
from typing import NamedTuple

import torch

from search.tree import MIN_LOG_PRIOR, Evaluate, State, Step, Tree, backward, expand, new_tree, simulate


class GumbelResult(NamedTuple):
    """What the trees of each of B decisions found together."""

    actions: torch.Tensor  # int64 [B], the best of the actions that were visited most
    policy: torch.Tensor  # float [B, A], the improved policy: softmax(log prior + beta * completed Q)
    q_values: torch.Tensor  # float [B, A], completed Q
    visit_counts: torch.Tensor  # int64 [B, A], of each tree


def considered_visits(considered: int, simulations: int) -> list[int]:
    """Sequential halving (Karnin et al. 2013), int [simulations]: each simulation goes to the best of the actions that have
    been visited so often. All `considered` ones get the same number of visits, then the better half of them, and so on."""
    phases = math.ceil(math.log2(max(2, considered)))
    visits = [0] * considered
    sequence: list[int] = []
    left = considered
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (phases * left))):
            sequence += visits[:left]
            visits[:left] = [count + 1 for count in visits[:left]]
        left = min(left, max(2, left // 2))
    return sequence[:simulations]


def complete_q(
    visit_counts: torch.Tensor, q_values: torch.Tensor, prior: torch.Tensor, raw_values: torch.Tensor
) -> torch.Tensor:
    """Q of each action; that of an action never visited is the critic's value, mixed with the mean Q of the visited ones
    by the prior: the more visits, the less the critic counts (Danihelka et al. 2022, appendix D).

    Args: visit_counts, q_values, prior: float [n, A]; raw_values: float [n], the critic's.
    Returns: float [n, A].
    """
    visited = visit_counts > 0
    weights = prior.clamp(min=1e-12) * visited
    mean_q = (weights * q_values).sum(1) / weights.sum(1).clamp(min=1e-12)
    total = visit_counts.sum(1)
    mixed = (raw_values + total * mean_q) / (1 + total)
    return torch.where(visited, q_values, mixed[:, None])


def interior_actions(tree: Tree, trees: torch.Tensor, nodes: torch.Tensor, beta: float) -> torch.Tensor:
    """Below the root: the action whose share of the visits falls most behind the improved policy. trees, nodes: int64 [n].
    Returns: int64 [n], legal actions only."""
    visit_counts = tree.visit_counts[trees, nodes]  # [n, A]
    prior = tree.prior_probs[trees, nodes]
    q_values = tree.value_sums[trees, nodes] / visit_counts.clamp(min=1)
    q_values = complete_q(visit_counts, q_values, prior, tree.raw_values[trees, nodes])
    illegal = ~tree.action_mask[trees, nodes]
    logits = prior.clamp(min=1e-12).log() + beta * q_values
    improved = logits.masked_fill(illegal, -torch.inf).softmax(1)
    behind = improved - visit_counts / (1 + visit_counts.sum(1, keepdim=True))
    return behind.masked_fill(illegal, -torch.inf).argmax(1)


def root_q(tree: Tree, samples: int, prior: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Visits of each tree and completed Q over the trees of each decision, float [B, A] both. prior: float [B, A]."""
    visit_counts = tree.visit_counts[::samples, 0]  # the trees of a decision visit the same actions
    value_sums = tree.value_sums[:, 0].unflatten(0, (-1, samples))  # [B, samples, A]
    raw_values = tree.raw_values[:, 0].unflatten(0, (-1, samples)).mean(1)
    q_values = value_sums.mean(1) / visit_counts.clamp(min=1)
    return visit_counts, complete_q(visit_counts, q_values, prior, raw_values)


@torch.no_grad()
def gumbel_search(
    root: State,
    step: Step,
    evaluate: Evaluate,
    log_prior: torch.Tensor,
    simulations: int,
    samples: int,
    gamma: float,
    beta: float,
    branches: int = 4,
) -> GumbelResult:
    """Grow `samples` trees for each of B decisions; a simulation tries the same action in all trees of a decision, so
    that actions are compared on the same samples of what is hidden.

    Args:
        root, step, evaluate, gamma, branches: as for `search`; tree = decision * samples + sample.
        log_prior: float [B, A], of the policy that decides; an action at or below -1e8 is not legal.
        simulations: how many each tree gets.
        beta: weight of Q beside the log prior.

    Raises: ValueError: simulations, samples or branches below 1.
    """
    if min(simulations, samples, branches) < 1:
        given = f"{simulations}, {samples} and {branches}"
        raise ValueError(f"simulations, samples and branches must be at least 1, got {given}")
    legal = log_prior > MIN_LOG_PRIOR
    prior = log_prior.exp()
    gumbel = -torch.empty_like(log_prior).exponential_().log_()
    sequences = [considered_visits(count, simulations) for count in range(1, log_prior.shape[1] + 1)]
    schedule = torch.tensor(sequences, device=log_prior.device)[legal.sum(1) - 1]  # [B, simulations]
    tree = new_tree(root, evaluate, simulations + 1, branches)

    def best(visits: torch.Tensor) -> torch.Tensor:
        """int64 [B], of the actions visited so often, [B]."""
        visit_counts, q_values = root_q(tree, samples, prior)
        scores = gumbel + log_prior + beta * q_values
        return scores.masked_fill((visit_counts != visits[:, None]) | ~legal, -torch.inf).argmax(1)

    def select_actions(
        first: torch.Tensor, tree: Tree, trees: torch.Tensor, nodes: torch.Tensor
    ) -> torch.Tensor:
        return torch.where(nodes == 0, first[trees], interior_actions(tree, trees, nodes, beta))

    for new_node in range(1, simulations + 1):
        first = best(schedule[:, new_node - 1]).repeat_interleave(samples)
        path, leaves = simulate(tree, new_node, partial(select_actions, first))
        leaf_values = expand(tree, new_node, leaves, step, evaluate)
        backward(tree, path, leaf_values, gamma)
    visit_counts, q_values = root_q(tree, samples, prior)
    improved = (log_prior + beta * q_values).masked_fill(~legal, -torch.inf).softmax(1)
    return GumbelResult(best(visit_counts.amax(1)), improved, q_values, visit_counts.long())
