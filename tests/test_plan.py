"""The search: against a slow one with a node object each, against known optima, and where luck must not be foreseen."""

import math

import pytest
import torch

from plan import Found, act, search

A = 3


def table_mdp(seed: int, states: int = 12):
    """A random deterministic MDP as tables, a random prior and critic."""
    g = torch.Generator().manual_seed(seed)
    after = torch.randint(states, (states, A), generator=g)
    reward, ends = torch.rand(states, A, generator=g), torch.rand(states, A, generator=g) < 0.15
    logits, value = torch.randn(states, A, generator=g), torch.rand(states, generator=g)
    logits[torch.arange(states), torch.randint(A, (states,), generator=g)] -= 1e9 * (torch.rand(states, generator=g) < 0.5)
    log_prior = logits.log_softmax(1)

    def step(state, actions, tree):
        return (after[state[0], actions],), reward[state[0], actions], ends[state[0], actions]

    def evaluate(state, tree):
        return log_prior[state[0]], value[state[0]]

    return step, evaluate


class Node:
    def __init__(self, state, reward, over, evaluate):
        self.state, self.reward, self.over, self.children = state, reward, over, {}
        self.count, self.total = [0] * A, [0.0] * A
        if not over:
            log_prior, value = evaluate((torch.tensor([state]),), None)
            self.prior, self.value = log_prior[0].exp(), value[0]
            self.legal = (log_prior[0] > -1e8).tolist()
            self.visits, self.returns = 1, self.value


def slow_search(root, step, evaluate, simulations, gamma, c_puct=1.25):
    root, low, high = Node(root, 0.0, False, evaluate), math.inf, -math.inf
    for _ in range(simulations):
        node, path = root, []
        while True:
            scores = []
            for a in range(A):
                q = node.total[a] / node.count[a] if node.count[a] else node.returns / node.visits
                q = (q - low) / (high - low) if high > low else torch.tensor(0.0)
                bonus = c_puct * node.prior[a] * (math.sqrt(node.visits) / (1 + node.count[a]))
                scores.append(float(q + bonus) if node.legal[a] else -math.inf)
            a = max(range(A), key=scores.__getitem__)
            path.append((node, a))
            if a not in node.children:
                (state,), reward, over = step((torch.tensor([node.state]),), torch.tensor([a]), None)
                node.children[a] = Node(int(state), reward[0], bool(over), evaluate)
                found = torch.tensor(0.0) if over else node.children[a].value
                break
            node = node.children[a]
            if node.over:
                found = torch.tensor(0.0)
                break
        for node, a in reversed(path):
            found = node.children[a].reward + gamma * found
            node.count[a] += 1
            node.total[a] = node.total[a] + found
            node.visits += 1
            node.returns = node.returns + found
            q = float(node.total[a] / node.count[a])
            low, high = min(low, q), max(high, q)
    return root


@pytest.mark.parametrize("seed", range(6))
def test_equals_a_search_with_nodes(seed):
    step, evaluate = table_mdp(seed)
    roots = torch.arange(12)
    found = search((roots,), step, evaluate, 30, 0.9, branches=1)
    assert (found.visits.sum(1) == 30).all()
    for i in range(12):
        slow = slow_search(i, step, evaluate, 30, 0.9)
        assert found.visits[i].tolist() == slow.count
        expected = [float(slow.total[a] / slow.count[a]) if slow.count[a] else float(slow.value) for a in range(A)]
        torch.testing.assert_close(found.q[i], torch.tensor(expected))
        assert not any(found.visits[i, a] for a in range(A) if not slow.legal[a])


def test_trees_do_not_mix():
    step, evaluate = table_mdp(1)
    whole = search((torch.arange(12),), step, evaluate, 25, 0.95, branches=1)
    order = torch.randperm(12)
    other = search((order,), step, evaluate, 25, 0.95, branches=1)
    torch.testing.assert_close(other.q, whole.q[order])
    alone = search((torch.tensor([5]),), step, evaluate, 25, 0.95, branches=1)
    assert (alone.visits[0] == whole.visits[5]).all()


def test_finds_what_pays_later():
    """A corridor: 0 pays 0.3 at once and ends, 1 goes on; the third 1 pays 1. Discounted, 0.9**2 > 0.3 > 0.5**2."""

    def step(state, actions, tree):
        on = actions == 1
        return (state[0] + 1,), torch.where(on, (state[0] == 2).float(), 0.3), ~on | (state[0] == 2)

    def evaluate(state, tree):
        return torch.tensor([0.5, 0.5, 0.0]).log().clamp(min=-1e9).expand(len(tree), 3), torch.zeros(len(tree))

    for gamma, best in ((0.9, 1), (0.5, 0)):
        found = search((torch.zeros(2, dtype=torch.int64),), step, evaluate, 400, gamma)
        assert (found.visits.argmax(1) == best).all() and (found.visits[:, 2] == 0).all()
        if best:
            assert abs(float(found.q[0, 1]) - gamma**2) < 0.1


def test_luck_is_not_foreseen():
    """Guess a coin that falls afterwards: worth 0.5. With one outcome an edge, a tree knows how it will fall."""
    torch.manual_seed(0)

    def step(state, actions, tree):
        tick, coin = state
        flip = torch.randint(2, coin.shape)
        right = (actions == 1 + flip).float()  # whether a guess pays is drawn when it is made
        return (tick + 1, flip), torch.where(tick == 0, 0.0, right), tick == 1

    def evaluate(state, tree):
        return torch.full((len(tree), 3), 1 / 3).log(), torch.zeros(len(tree))

    root = (torch.zeros(200, dtype=torch.int64), torch.zeros(200, dtype=torch.int64))
    foreseen, fair = (float(search(root, step, evaluate, 60, 1.0, branches=b).q.amax(1).mean()) for b in (1, 16))
    assert foreseen > 0.8 and fair < 0.7


def test_act_by_hand():
    found = Found(torch.tensor([[3, 1, 0], [1, 1, 0]]), torch.tensor([[1.0, 0.5, 9.0], [2.0, 0.7, 9.0]]), torch.zeros(2))
    pi, q = act(found, 2, 2.0, torch.tensor([[True, True, True]]))
    assert q[0].tolist() == pytest.approx([(3 * 1.0 + 2.0) / 4, 0.6, -math.inf])
    odds = math.exp(2.0 * (1.25 - 0.6))
    assert pi[0].tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds), 0.0], abs=1e-6)


@pytest.mark.parametrize("bad", [dict(simulations=0), dict(simulations=3, branches=0)])
def test_needs_a_simulation(bad):
    step, evaluate = table_mdp(0)
    with pytest.raises(ValueError, match="at least 1"):
        search((torch.arange(2),), step, evaluate, gamma=0.9, **bad)
