"""Search trees as tensors, and the three phases of a simulation: simulate, expand, backward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

MIN_LOG_PRIOR = -1e8  # a log prior at or below it: the action is not legal

State = tuple[torch.Tensor, ...]  # each [n, ..]: whatever the model needs
Step = Callable[
    [State, torch.Tensor, torch.Tensor],
    tuple[State, torch.Tensor, torch.Tensor],
]
Evaluate = Callable[
    [State, torch.Tensor],
    tuple[torch.Tensor, torch.Tensor],
]


@dataclass
class Tree:
    """T trees of at most N nodes, with A actions and at most C children an edge.

    Node 0 is the root; an edge is a node and an action.

    Simulation number k may add node k to each tree. Names and shapes after mctx; there an edge has one child, here it
    has one for each outcome that was sampled.
    """

    states: State  # each [T, N, ..]
    prior_probs: torch.Tensor  # float [T, N, A], P(s, a)
    action_mask: torch.Tensor  # bool [T, N, A], the legal actions
    visit_counts: torch.Tensor  # float [T, N, A], N(s, a)
    value_sums: (
        torch.Tensor
    )  # float [T, N, A], sum of the returns of each edge; Q(s, a) = value_sums / visit_counts
    node_visits: torch.Tensor  # float [T, N], N(s), the critic's value counted as one visit
    node_value_sums: (
        torch.Tensor
    )  # float [T, N], sum of the returns from each node, the critic's value included
    raw_values: torch.Tensor  # float [T, N], the critic's value; 0 at a terminal node
    rewards: torch.Tensor  # float [T, N], reward of the step into each node
    terminal: torch.Tensor  # bool [T, N], nothing is earned after this node
    num_children: torch.Tensor  # int64 [T, N, A], outcomes sampled so far
    children_index: torch.Tensor  # int64 [T, N, A, C], their nodes; an outcome drawn twice stands twice
    min_q: torch.Tensor  # float [T], least Q of the tree so far
    max_q: torch.Tensor  # float [T], largest


class Edges(NamedTuple):
    """Edges of n trees and the child that each leads to; no tree occurs twice."""

    trees: torch.Tensor  # int64 [n]
    nodes: torch.Tensor  # int64 [n]
    actions: torch.Tensor  # int64 [n]
    children: torch.Tensor  # int64 [n], nodes

    def where(self, mask: torch.Tensor) -> "Edges":
        """The edges where mask, bool [n], is true."""
        rows = mask.nonzero()[:, 0]
        return Edges(*(column[rows] for column in self))


SelectActions = Callable[[Tree, torch.Tensor, torch.Tensor], torch.Tensor]


class SearchResult(NamedTuple):
    """What the search found at the root of each tree."""

    visit_counts: torch.Tensor  # int64 [T, A]
    q_values: (
        torch.Tensor
    )  # float [T, A], mean discounted return; of an action never visited: the critic's value
    values: torch.Tensor  # float [T], mean return of the root


def new_tree(root: State, evaluate: Evaluate, num_nodes: int, branches: int) -> Tree:
    """T trees of a root each, with room for `num_nodes` nodes."""
    device = root[0].device
    trees = torch.arange(len(root[0]), device=device)
    log_probs, values = evaluate(root, trees)
    T, N, A = len(trees), num_nodes, log_probs.shape[1]

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    tree = Tree(
        states=tuple(part.new_zeros((T, N, *part.shape[1:])) for part in root),
        prior_probs=zeros(T, N, A),
        action_mask=zeros(T, N, A, dtype=torch.bool),
        visit_counts=zeros(T, N, A),
        value_sums=zeros(T, N, A),
        node_visits=zeros(T, N),
        node_value_sums=zeros(T, N),
        raw_values=zeros(T, N),
        rewards=zeros(T, N),
        terminal=zeros(T, N, dtype=torch.bool),
        num_children=zeros(T, N, A, dtype=torch.int64),
        children_index=zeros(T, N, A, branches, dtype=torch.int64),
        min_q=torch.full((T,), torch.inf, device=device),
        max_q=torch.full((T,), -torch.inf, device=device),
    )
    write_nodes(tree, trees, 0, root, log_probs, values)
    return tree


def write_nodes(
    tree: Tree,
    trees: torch.Tensor,
    node: int,
    states: State,
    log_probs: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Fill node `node` of some trees with its state and what the networks say of it."""
    for whole, part in zip(tree.states, states, strict=True):
        whole[trees, node] = part
    tree.prior_probs[trees, node] = log_probs.exp()
    tree.action_mask[trees, node] = log_probs > MIN_LOG_PRIOR
    tree.node_visits[trees, node] = 1.0
    tree.node_value_sums[trees, node] = values
    tree.raw_values[trees, node] = values


def simulate(
    tree: Tree,
    new_node: int,
    select_actions: SelectActions,
) -> tuple[list[Edges], Edges]:
    """Walk down each tree until an edge is to get a new child, or until a terminal node.

    Args:
        new_node: the node that a new child becomes.
        select_actions: (tree, trees int64 [n], nodes int64 [n]) -> actions int64 [n].

    Returns: the edges walked at each depth (of the trees that got so far), and those that are to get a child.
    """
    trees = torch.arange(len(tree.min_q), device=tree.min_q.device)
    nodes = torch.zeros_like(trees)
    path, are_new = [], []
    while len(trees):
        actions = select_actions(tree, trees, nodes)
        children, is_new = sample_children(tree, trees, nodes, actions)
        children = torch.where(is_new, new_node, children)
        edges = Edges(trees, nodes, actions, children)
        path.append(edges)
        are_new.append(is_new)
        onward = edges.where(~(is_new | tree.terminal[trees, children]))
        trees, nodes = onward.trees, onward.children
    walked = Edges(*(torch.cat(column) for column in zip(*path, strict=True)))
    return path, walked.where(torch.cat(are_new))


def sample_children(
    tree: Tree,
    trees: torch.Tensor,
    nodes: torch.Tensor,
    actions: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which child each edge leads to, and whether it is to be a new one instead (progressive widening).

    The v-th visit of an edge finds ceil(sqrt(v) / 2) children, C at most, each drawn with the same probability.
    """
    branches = tree.children_index.shape[3]
    num_children = tree.num_children[trees, nodes, actions]
    visits = tree.visit_counts[trees, nodes, actions] + 1
    allowed = (visits.sqrt() / 2).ceil()
    is_new = num_children < allowed.clamp(max=branches)
    slots = (torch.rand(len(trees), device=trees.device) * num_children).long()
    return tree.children_index[trees, nodes, actions, slots], is_new


def expand(tree: Tree, new_node: int, leaves: Edges, step: Step, evaluate: Evaluate) -> torch.Tensor:
    """Step the model along the leaves' edges and let the networks evaluate the nodes that this makes.

    An outcome that an edge has had before is linked again: it is drawn twice as often, and not evaluated again.

    Returns: the critic's value of each tree's leaf, float [T]; 0 where that is terminal.
    """
    leaf_values = torch.zeros_like(tree.min_q)
    trees, nodes, actions, _ = leaves
    if not len(trees):
        return leaf_values
    parents = tuple(part[trees, nodes] for part in tree.states)
    states, rewards, terminal = step(parents, actions, trees)
    known = known_children(tree, leaves, states, rewards, terminal)  # [n]
    is_new = known < 0
    slots = tree.num_children[trees, nodes, actions]
    tree.children_index[trees, nodes, actions, slots] = torch.where(is_new, new_node, known)
    tree.num_children[trees, nodes, actions] = slots + 1
    tree.rewards[trees, new_node] = rewards
    tree.terminal[trees, new_node] = terminal
    leaf_values[trees] = torch.where(is_new, 0.0, tree.raw_values[trees, known.clamp(min=0)])
    rows = (is_new & ~terminal).nonzero()[:, 0]
    if len(rows):
        states = tuple(part[rows] for part in states)
        log_probs, values = evaluate(states, trees[rows])
        write_nodes(tree, trees[rows], new_node, states, log_probs, values)
        leaf_values[trees[rows]] = values
    return leaf_values


def known_children(
    tree: Tree,
    edges: Edges,
    states: State,
    rewards: torch.Tensor,
    terminal: torch.Tensor,
) -> torch.Tensor:
    """The child of each edge that has this state, this reward and this end: its node, int64 [n], or -1."""
    known = torch.full_like(edges.trees, -1)
    num_children = tree.num_children[edges.trees, edges.nodes, edges.actions]
    rows = num_children.nonzero()[:, 0]  # most edges that grow have no child yet
    if not len(rows):
        return known
    trees = edges.trees[rows, None]  # [m, 1]
    children = tree.children_index[edges.trees[rows], edges.nodes[rows], edges.actions[rows]]  # [m, C]
    slots = torch.arange(children.shape[1], device=children.device)
    same = slots < num_children[rows, None]
    same &= tree.rewards[trees, children] == rewards[rows, None]
    same &= tree.terminal[trees, children] == terminal[rows, None]
    for whole, part in zip(tree.states, states, strict=True):
        equal = whole[trees, children] == part[rows, None]  # [m, C, ..]
        same &= equal.flatten(2).all(2) if equal.dim() > 2 else equal
    known[rows] = torch.where(same, children, -1).amax(1)
    return known


def backward(tree: Tree, path: list[Edges], leaf_values: torch.Tensor, gamma: float) -> None:
    """Add the discounted return of this simulation to every edge and node of its path, from the leaf up."""
    returns = leaf_values.clone()  # [T], from the depth at hand on
    for trees, nodes, actions, children in reversed(path):
        values = tree.rewards[trees, children] + gamma * returns[trees]
        returns[trees] = values
        visits = tree.visit_counts[trees, nodes, actions] + 1
        value_sums = tree.value_sums[trees, nodes, actions] + values
        tree.visit_counts[trees, nodes, actions] = visits
        tree.value_sums[trees, nodes, actions] = value_sums
        tree.node_visits[trees, nodes] += 1
        tree.node_value_sums[trees, nodes] += values
        q = value_sums / visits
        tree.min_q[trees] = torch.minimum(tree.min_q[trees], q)
        tree.max_q[trees] = torch.maximum(tree.max_q[trees], q)


def summarize(tree: Tree) -> SearchResult:
    """Visits and values at the roots."""
    visit_counts = tree.visit_counts[:, 0]  # [T, A]
    value_sums = tree.value_sums[:, 0]
    total = value_sums.sum(1)  # [T]
    critic_values = tree.node_value_sums[:, 0] - total
    q_values = torch.where(
        visit_counts > 0,
        value_sums / visit_counts.clamp(min=1),
        critic_values[:, None],
    )
    return SearchResult(visit_counts.long(), q_values, total / visit_counts.sum(1))
