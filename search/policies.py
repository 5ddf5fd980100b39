"""Which action a simulation takes (PUCT), and the policy at the root after the search."""

import torch

from search.tree import SearchResult, Tree


def puct_actions(tree: Tree, trees: torch.Tensor, nodes: torch.Tensor, c_puct: float = 1.25) -> torch.Tensor:
    """The action of largest Q + U at a node of each of n trees (PUCT, Silver et al. 2017).

    U = c_puct * P(s, a) * sqrt(N(s)) / (1 + N(s, a)). Q is normalised to [0, 1] (MuZero, Schrittwieser et al. 2020).

    Args: trees, nodes: int64 [n].
    Returns: int64 [n], legal actions only.
    """
    visit_counts = tree.visit_counts[trees, nodes]  # [n, A]
    node_visits = tree.node_visits[trees, nodes][:, None]  # [n, 1]
    exploration = node_visits.sqrt() / (1 + visit_counts)
    q = normalized_q(tree, trees, nodes, visit_counts, node_visits)
    scores = q + c_puct * tree.prior_probs[trees, nodes] * exploration
    return scores.masked_fill(~tree.action_mask[trees, nodes], -torch.inf).argmax(1)


def normalized_q(
    tree: Tree,
    trees: torch.Tensor,
    nodes: torch.Tensor,
    visit_counts: torch.Tensor,
    node_visits: torch.Tensor,
) -> torch.Tensor:
    """Q of each action, scaled by the least and largest Q that the tree has seen, float [n, A].

    Of an action never visited: the mean value of the node. 0 while the tree has seen one value only.
    """
    node_values = tree.node_value_sums[trees, nodes][:, None] / node_visits
    mean_returns = tree.value_sums[trees, nodes] / visit_counts.clamp(min=1)
    q = torch.where(visit_counts > 0, mean_returns, node_values)
    min_q = tree.min_q[trees][:, None]
    span = tree.max_q[trees][:, None] - min_q
    return torch.where(span > 0, (q - min_q) / span, 0.0)


def root_policy(
    result: SearchResult,
    samples: int,
    beta: float,
    action_mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The policy that the trees of a decision agree on: softmax(beta * Q).

    Args:
        result: of B * samples trees; tree = decision * samples + sample.
        beta: inverse temperature.
        action_mask: bool [B, A], the legal actions.

    Returns:
        policy: float [B, A].
        q_values: float [B, A], mean over the samples, weighted by visits; -inf for an action that no tree tried.
    """
    visits = result.visit_counts.float().unflatten(0, (-1, samples))  # [B, samples, A]
    q_values = result.q_values.unflatten(0, (-1, samples))
    total_visits = visits.sum(1)  # [B, A]
    weighted = (q_values * visits).sum(1)
    means = weighted / total_visits.clamp(min=1)
    tried = (total_visits > 0) & action_mask
    q_values = torch.where(tried, means, -torch.inf)
    return (beta * q_values).softmax(1), q_values
