"""Batched tree search over any model, in the manner of mctx (DeepMind 2022): T trees at once, no node objects.

One simulation is one batched call of the model and one of the networks for all trees. The search knows no game: it
is given a model (`step`) and a policy with a critic (`evaluate`).

- `tree.py`: the tree as tensors, and the three phases of a simulation: simulate, expand, backward.
- `policies.py`: which action a simulation takes (PUCT), and the policy at the root after the search.
- `gumbel.py`: the same tree with a Gumbel root and sequential halving, for 8 to 32 simulations.

Two kinds of uncertainty are searched. Hidden state, such as the goals of co-players: one tree for each of several
samples, averaged by `root_policy` (Huang et al. 2024, HOP). Random outcomes: an edge gets more sampled children the
more often it is visited (progressive widening, Couetoux et al. 2011); with one child an edge a tree would know its
future luck.
"""

from functools import partial

import torch

from search.gumbel import GumbelResult, gumbel_search
from search.policies import puct_actions, root_policy
from search.tree import (
    Evaluate,
    SearchResult,
    State,
    Step,
    Tree,
    backward,
    expand,
    new_tree,
    simulate,
    summarize,
)

__all__ = [
    "Evaluate",
    "GumbelResult",
    "SearchResult",
    "State",
    "Step",
    "Tree",
    "backward",
    "expand",
    "gumbel_search",
    "new_tree",
    "puct_actions",
    "root_policy",
    "search",
    "simulate",
    "summarize",
]


@torch.no_grad()
def search(
    root: State,
    step: Step,
    evaluate: Evaluate,
    simulations: int,
    gamma: float,
    c_puct: float = 1.25,
    branches: int = 4,
) -> SearchResult:
    """Grow a tree from each of T roots.

    Args:
        root: tuple of tensors [T, ..], the states of the roots.
        step: (states [n], actions int64 [n], trees int64 [n]) -> (next states, rewards float [n], terminal bool [n]);
            it may draw at random. `trees` says which tree each row belongs to.
        evaluate: (states [n], trees int64 [n]) -> (log prior float [n, A], value float [n]). An action whose log prior
            is not above -1e8 is not legal.
        simulations: how many simulations each tree gets.
        gamma: discount.
        c_puct: weight of the prior in PUCT.
        branches: the most children (sampled outcomes) of an edge; 1 takes the first outcome for the only one.

    Raises: ValueError: simulations or branches below 1.
    """
    if simulations < 1 or branches < 1:
        raise ValueError(f"simulations and branches must be at least 1, got {simulations} and {branches}")
    select_actions = partial(puct_actions, c_puct=c_puct)
    tree = new_tree(root, evaluate, simulations + 1, branches)
    for new_node in range(1, simulations + 1):
        path, leaves = simulate(tree, new_node, select_actions)
        leaf_values = expand(tree, new_node, leaves, step, evaluate)
        backward(tree, path, leaf_values, gamma)
    return summarize(tree)
