"""The tree search: against a slow one with node objects, against known optima, and on random outcomes."""

import ast
import math
import sys
from pathlib import Path

import pytest
import torch

from search import SearchResult, gumbel_search, new_tree, puct_actions, root_policy, search
from search.gumbel import complete_q, considered_visits

A = 3


def table_mdp(seed: int, states: int = 12):
    """A random deterministic MDP as tables, a random prior and critic."""
    g = torch.Generator().manual_seed(seed)
    after = torch.randint(states, (states, A), generator=g)
    reward, ends = torch.rand(states, A, generator=g), torch.rand(states, A, generator=g) < 0.15
    logits, value = torch.randn(states, A, generator=g), torch.rand(states, generator=g)
    logits[torch.arange(states), torch.randint(A, (states,), generator=g)] -= 1e9 * (
        torch.rand(states, generator=g) < 0.5
    )
    log_prior = logits.log_softmax(1)

    def step(state, actions, tree):
        return (after[state[0], actions],), reward[state[0], actions], ends[state[0], actions]

    def evaluate(state, tree):
        return log_prior[state[0]], value[state[0]]

    return step, evaluate


class Node:
    """A node of the slow search: one child an edge, sums as floats and lists."""

    def __init__(self, state, reward, terminal, evaluate):
        self.state, self.reward, self.terminal = state, reward, terminal
        self.children = {}
        self.visit_counts = [0] * A
        self.value_sums = [0.0] * A
        if not terminal:
            log_prior, value = evaluate((torch.tensor([state]),), None)
            self.prior, self.raw_value = log_prior[0].exp(), value[0]
            self.legal = (log_prior[0] > -1e8).tolist()
            self.node_visits, self.node_value_sum = 1, self.raw_value

    def q(self, action):
        if not self.visit_counts[action]:
            return self.node_value_sum / self.node_visits
        return self.value_sums[action] / self.visit_counts[action]


def slow_search(root, step, evaluate, simulations, gamma, c_puct=1.25):
    root, low, high = Node(root, 0.0, False, evaluate), math.inf, -math.inf
    for _ in range(simulations):
        node, path = root, []
        while True:
            scores = []
            for a in range(A):
                q = (node.q(a) - low) / (high - low) if high > low else torch.tensor(0.0)
                bonus = c_puct * node.prior[a] * (math.sqrt(node.node_visits) / (1 + node.visit_counts[a]))
                scores.append(float(q + bonus) if node.legal[a] else -math.inf)
            a = max(range(A), key=scores.__getitem__)
            path.append((node, a))
            if a not in node.children:
                (state,), reward, over = step((torch.tensor([node.state]),), torch.tensor([a]), None)
                node.children[a] = Node(int(state), reward[0], bool(over), evaluate)
                value = torch.tensor(0.0) if over else node.children[a].raw_value
                break
            node = node.children[a]
            if node.terminal:
                value = torch.tensor(0.0)
                break
        for node, a in reversed(path):
            value = node.children[a].reward + gamma * value
            node.visit_counts[a] += 1
            node.value_sums[a] = node.value_sums[a] + value
            node.node_visits += 1
            node.node_value_sum = node.node_value_sum + value
            low, high = min(low, float(node.q(a))), max(high, float(node.q(a)))
    return root


@pytest.mark.parametrize("seed", range(6))
def test_search_equals_a_slow_search_with_node_objects(seed):
    step, evaluate = table_mdp(seed)
    roots = torch.arange(12)
    result = search((roots,), step, evaluate, 30, 0.9, branches=1)
    assert (result.visit_counts.sum(1) == 30).all()
    for i in range(12):
        slow = slow_search(i, step, evaluate, 30, 0.9)
        assert result.visit_counts[i].tolist() == slow.visit_counts
        expected = [
            float(slow.value_sums[a] / slow.visit_counts[a])
            if slow.visit_counts[a]
            else float(slow.raw_value)
            for a in range(A)
        ]
        torch.testing.assert_close(result.q_values[i], torch.tensor(expected))
        assert not any(result.visit_counts[i, a] for a in range(A) if not slow.legal[a])


def test_trees_are_independent():
    step, evaluate = table_mdp(1)
    whole = search((torch.arange(12),), step, evaluate, 25, 0.95, branches=1)
    order = torch.randperm(12)
    other = search((order,), step, evaluate, 25, 0.95, branches=1)
    torch.testing.assert_close(other.q_values, whole.q_values[order])
    alone = search((torch.tensor([5]),), step, evaluate, 25, 0.95, branches=1)
    assert (alone.visit_counts[0] == whole.visit_counts[5]).all()


def test_search_finds_delayed_rewards():
    """A corridor: 0 pays 0.3 at once and ends, 1 goes on; the third 1 pays 1. Discounted, 0.9**2 > 0.3 > 0.5**2."""

    def step(state, actions, tree):
        on = actions == 1
        return (state[0] + 1,), torch.where(on, (state[0] == 2).float(), 0.3), ~on | (state[0] == 2)

    def evaluate(state, tree):
        return torch.tensor([0.5, 0.5, 0.0]).log().clamp(min=-1e9).expand(len(tree), 3), torch.zeros(
            len(tree)
        )

    for gamma, best in ((0.9, 1), (0.5, 0)):
        result = search((torch.zeros(2, dtype=torch.int64),), step, evaluate, 400, gamma)
        assert (result.visit_counts.argmax(1) == best).all() and (result.visit_counts[:, 2] == 0).all()
        if best:
            assert abs(float(result.q_values[0, 1]) - gamma**2) < 0.1


def test_several_children_an_edge_prevent_foreseen_luck():
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
    foreseen, fair = (
        float(search(root, step, evaluate, 60, 1.0, branches=b).q_values.amax(1).mean()) for b in (1, 16)
    )
    assert foreseen > 0.8 and fair < 0.7


def test_root_policy_by_hand():
    result = SearchResult(
        torch.tensor([[3, 1, 0], [1, 1, 0]]), torch.tensor([[1.0, 0.5, 9.0], [2.0, 0.7, 9.0]]), torch.zeros(2)
    )
    pi, q = root_policy(result, 2, 2.0, torch.tensor([[True, True, True]]))
    assert q[0].tolist() == pytest.approx([(3 * 1.0 + 2.0) / 4, 0.6, -math.inf])
    odds = math.exp(2.0 * (1.25 - 0.6))
    assert pi[0].tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds), 0.0], abs=1e-6)


@pytest.mark.parametrize("bad", [dict(simulations=0), dict(simulations=3, branches=0)])
def test_search_rejects_less_than_one_simulation_or_branch(bad):
    step, evaluate = table_mdp(0)
    with pytest.raises(ValueError, match="at least 1"):
        search((torch.arange(2),), step, evaluate, gamma=0.9, **bad)


# ---- outcomes of an edge


class OneAction:
    """One legal action of a root; the k-th time that a tree takes it, it pays the k-th reward and leads to the k-th state.
    What follows a state that is not over pays nothing and is over."""

    def __init__(self, outcomes):
        self.outcomes = outcomes  # (state, reward, over)
        self.calls = self.evaluated = 0

    def step(self, state, actions, tree):
        later = state[0] > 0
        nth = 0 if later.all() else min(self.calls, len(self.outcomes) - 1)
        self.calls += not later.all()
        after, reward, over = self.outcomes[nth]
        return (torch.where(later, 99, after),), torch.where(later, 0.0, reward), later | over

    def evaluate(self, state, tree):  # V of state s is s - 1
        self.evaluated += 1
        return torch.tensor([[0.0, -1e9]]).expand(len(tree), -1), state[0] - 1.0

    def search(self, simulations, branches=4, trees=1):
        return search(
            (torch.zeros(trees, dtype=torch.int64),),
            self.step,
            self.evaluate,
            simulations,
            1.0,
            branches=branches,
        )


def test_an_edge_gets_more_children_the_more_often_it_is_visited():
    """ceil(sqrt(visits) / 2) of them, `branches` at most."""
    few = [(1, 4, 1), (4, 4, 1), (5, 4, 2), (16, 4, 2), (17, 4, 3), (36, 4, 3)]
    many = [(37, 4, 4), (60, 3, 3), (60, 4, 4), (64, 5, 4), (65, 5, 5)]
    for simulations, branches, outcomes in few + many:
        edge = OneAction([(1, float(k), True) for k in range(9)])
        edge.search(simulations, branches)
        assert edge.calls == outcomes, simulations
    edge = OneAction([(1, float(k), True) for k in range(9)])
    search((torch.tensor([0]),), edge.step, edge.evaluate, 65, 1.0)
    assert edge.calls == 4  # by default


def test_outcomes_of_an_edge_are_drawn_with_equal_probability():
    """Visits 1 to 4 pay 0, the 5th pays 1, 11 draws of 0 or 1, the 17th pays 2, 23 draws of 0, 1 or 2."""
    torch.manual_seed(0)
    result = OneAction([(1, 0.0, True), (1, 1.0, True), (1, 2.0, True)]).search(40, branches=3, trees=2000)
    expected = (1 + 11 * 0.5 + 2 + 23 * 1.0) / 40
    assert abs(float(result.q_values[:, 0].mean()) - expected) < 0.01
    assert result.visit_counts.tolist() == [[40, 0]] * 2000
    torch.testing.assert_close(result.values, result.q_values[:, 0])


def test_a_repeated_outcome_is_drawn_twice_as_often():
    """The second outcome is the first one again: a third of the 23 last draws pays 3, not a half."""
    torch.manual_seed(0)
    result = OneAction([(1, 0.0, True), (1, 0.0, True), (1, 3.0, True)]).search(40, branches=3, trees=2000)
    assert abs(float(result.q_values[:, 0].mean()) - (3 + 23 * 1.0) / 40) < 0.015


def test_a_repeated_outcome_is_worth_what_the_critic_says_of_it():
    """State 3 is worth 2: on its first visit, and on the fifth, which meets it again. The three between end at once."""
    result = OneAction([(3, 0.5, False)]).search(5)
    assert float(result.q_values[0, 0]) == pytest.approx(0.5 + (2 + 0 + 0 + 0 + 2) / 5)
    assert float(result.q_values[0, 1]) == -1.0  # never visited: V of the root


@pytest.mark.parametrize("branches", [2, 3, 4])
def test_a_repeated_outcome_is_not_grown_again(branches):
    """The last of an edge's outcomes is compared with all before it: the critic is asked of the root and of each once."""
    different = [(state, 0.0, False) for state in range(3, 2 + branches)]
    edge = OneAction([*different, different[-1]])
    edge.search(40, branches)
    assert edge.calls == branches and edge.evaluated == branches


@pytest.mark.parametrize(
    ("second", "worth"),
    [((2, 0.0, False), 1.0), ((1, 0.5, False), 0.5), ((1, 0.0, True), 0.0), ((5, 0.0, True), 0.0)],
)
def test_outcomes_that_differ_are_not_merged(second, worth):
    """In the state alone, in the reward alone, in whether all is over: the fifth visit grows another node."""
    edge = OneAction([(1, 0.0, False), second, (7, 7.0, True)])
    assert float(edge.search(5).q_values[0, 0]) == pytest.approx(worth / 5)


def test_a_state_of_several_parts_is_another_outcome_if_one_part_differs():
    count = []

    def step(state, actions, tree):
        count.append(1)
        first = len(count) < 2
        cells = torch.tensor([[4, 5 if first else 6]]).expand(len(tree), -1)
        return (cells, state[1] + 1), torch.zeros(len(tree)), torch.zeros(len(tree), dtype=torch.bool)

    def evaluate(state, tree):
        return torch.zeros(len(tree), 1), (state[0][:, 1] == 6).float()

    root = (torch.tensor([[4, 4]]), torch.tensor([0]))
    result = search(root, step, evaluate, 1, 1.0, branches=2)
    assert float(result.q_values[0, 0]) == 0.0
    count.clear()
    result = search(root, step, evaluate, 5, 1.0, branches=2)
    assert len(count) == 5 and float(result.q_values[0, 0]) == pytest.approx((0 + 1 + 1 + 1 + 1) / 5)


def test_root_policy_gives_illegal_actions_probability_0():
    result = SearchResult(torch.tensor([[4, 4, 0]]), torch.tensor([[9.0, 1.0, 5.0]]), torch.zeros(1))
    pi, q = root_policy(result, 1, 1.0, torch.tensor([[False, True, True]]))
    assert pi[0].tolist() == [0.0, 1.0, 0.0] and q[0].tolist() == [-math.inf, 1.0, -math.inf]


def test_puct_actions_by_hand():
    """Of a root visited 9 times. Q runs from 2 to 6 in this tree: Q = 5 is 0.75, and 4 (the node's mean) is 0.5."""
    prior = torch.tensor([[0.2, 0.5, 0.3], [0.2, 0.5, 0.0]])

    def evaluate(state, trees):
        return prior.log().clamp(min=-1e9), torch.zeros(2)

    tree = new_tree((torch.zeros(2),), evaluate, 2, 1)
    tree.visit_counts[:, 0] = torch.tensor([2.0, 6.0, 0.0])
    tree.value_sums[:, 0] = torch.tensor([10.0, 24.0, 0.0])
    tree.node_visits[:, 0], tree.node_value_sums[:, 0] = 9, 36
    tree.min_q[:], tree.max_q[:] = 2, 6
    roots = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    # c = 1: 0.75 + 0.2 * 3 / 3 = 0.95; 0.5 + 0.5 * 3 / 7 = 0.71; 0.5 + 0.3 * 3 / 1 = 1.4 where it is legal
    assert puct_actions(tree, *roots, c_puct=1.0).tolist() == [2, 0]
    assert puct_actions(tree, *roots, c_puct=0.1).tolist() == [0, 0]
    tree.max_q[:] = 2  # one value only: Q counts as 0, the prior decides
    assert puct_actions(tree, *roots, c_puct=1.0).tolist() == [2, 1]


def test_search_imports_torch_only():
    for path in (Path(__file__).parents[1] / "search").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in (name.split(".")[0] for name in names):
                assert name in {"torch", "search"} | sys.stdlib_module_names, f"{path} imports {name}"


# ---- the Gumbel root


def slow_completed_q(visit_counts, q_values, prior, raw_value):
    visited = [a for a in range(A) if visit_counts[a]]
    total = sum(visit_counts)
    mean_q = sum(prior[a] * q_values[a] for a in visited) / max(sum(prior[a] for a in visited), 1e-12)
    mixed = (raw_value + total * mean_q) / (1 + total)
    return [q_values[a] if a in visited else mixed for a in range(A)]


def slow_interior_action(node, beta):
    visits = node.visit_counts
    q_values = [node.value_sums[a] / max(1, visits[a]) for a in range(A)]
    completed = slow_completed_q(visits, q_values, node.prior, node.raw_value)
    weights = [
        float(max(node.prior[a], 1e-12)) * math.exp(beta * float(completed[a])) if node.legal[a] else 0.0
        for a in range(A)
    ]
    behind = [weights[a] / sum(weights) - visits[a] / (1 + sum(visits)) for a in range(A)]
    return max((a for a in range(A) if node.legal[a]), key=behind.__getitem__)


def slow_gumbel_search(roots, step, evaluate, log_prior, gumbel, simulations, gamma, beta):
    """One decision, with a tree of node objects for each root. Returns: visits of the root's actions, and the action."""
    nodes = [Node(state, 0.0, False, evaluate) for state in roots]
    prior = log_prior.exp().tolist()
    legal = [a for a in range(A) if log_prior[a] > -1e8]
    raw_value = sum(float(node.raw_value) for node in nodes) / len(nodes)

    def best(visits):
        counts = nodes[0].visit_counts
        means = [
            sum(float(node.value_sums[a]) / max(1, counts[a]) for node in nodes) / len(nodes)
            for a in range(A)
        ]
        completed = slow_completed_q(counts, means, prior, raw_value)
        scores = {
            a: float(gumbel[a] + log_prior[a]) + beta * completed[a] for a in legal if counts[a] == visits
        }
        return max(scores, key=scores.__getitem__)

    for visits in considered_visits(len(legal), simulations):
        first = best(visits)
        for root in nodes:
            node, a, path = root, first, []
            while True:
                path.append((node, a))
                if a not in node.children:
                    (state,), reward, over = step((torch.tensor([node.state]),), torch.tensor([a]), None)
                    node.children[a] = Node(int(state), reward[0], bool(over), evaluate)
                    value = 0.0 if over else float(node.children[a].raw_value)
                    break
                node = node.children[a]
                if node.terminal:
                    value = 0.0
                    break
                a = slow_interior_action(node, beta)
            for parent, taken in reversed(path):
                value = float(parent.children[taken].reward) + gamma * value
                parent.visit_counts[taken] += 1
                parent.value_sums[taken] += value
    return nodes[0].visit_counts, best(max(nodes[0].visit_counts))


@pytest.mark.parametrize("simulations", [1, 4, 9, 32])
@pytest.mark.parametrize("seed", range(4))
def test_gumbel_search_equals_a_slow_search_with_node_objects(seed, simulations):
    step, evaluate = table_mdp(seed)
    roots = torch.arange(12)  # of six decisions with two trees each
    logits = torch.randn(6, A, generator=torch.Generator().manual_seed(seed))
    logits[:2, 1] = -1e9
    log_prior = logits.log_softmax(1)
    torch.manual_seed(seed)
    gumbel = -torch.empty_like(log_prior).exponential_().log_()
    torch.manual_seed(seed)
    result = gumbel_search((roots,), step, evaluate, log_prior, simulations, 2, 0.9, 3.0, branches=1)
    for i in range(6):
        visits, action = slow_gumbel_search(
            [2 * i, 2 * i + 1], step, evaluate, log_prior[i], gumbel[i], simulations, 0.9, 3.0
        )
        assert result.visit_counts[i].tolist() == visits
        assert int(result.actions[i]) == action
    assert (result.visit_counts.sum(1) == simulations).all() and (result.visit_counts[:2, 1] == 0).all()
    expected = (log_prior + 3.0 * result.q_values).masked_fill(log_prior < -1e8, -math.inf).softmax(1)
    torch.testing.assert_close(result.policy, expected)


def test_considered_visits_by_hand():
    """As in mctx: four actions, 16 simulations: two phases of eight, two visits each, then four each of the best two."""
    assert considered_visits(4, 16) == [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 5]
    assert considered_visits(3, 8) == [0, 0, 0, 1, 1, 2, 2, 3]
    assert considered_visits(7, 5) == [0] * 5
    assert considered_visits(1, 3) == [0, 1, 2]
    assert considered_visits(2, 6) == [0, 0, 1, 1, 2, 2]


def test_actions_without_an_advantage_are_drawn_from_the_prior():
    """Where nothing is paid and the critic is right, the search changes nothing: its actions are samples of the prior."""
    torch.manual_seed(0)
    log_prior = torch.tensor([0.6, 0.3, 0.1]).log().expand(4000, 3)

    def step(state, actions, tree):
        return state, torch.zeros(len(tree)), torch.zeros(len(tree), dtype=torch.bool)

    def evaluate(state, tree):
        return log_prior[:1].expand(len(tree), 3), torch.zeros(len(tree))

    root = (torch.zeros(8000, dtype=torch.int64),)
    result = gumbel_search(root, step, evaluate, log_prior, 8, 2, 1.0, 20.0)
    shares = result.actions.bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03, rtol=0)
    torch.testing.assert_close(result.policy, log_prior.exp())


def test_unvisited_actions_count_the_critic_less_the_more_was_visited():
    """v_mix by hand: critic 4, visited Q 1 (prior 0.6, three visits) and 2 (0.3, one visit)."""
    completed = complete_q(
        torch.tensor([[3.0, 1.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 99.0]]),
        torch.tensor([[0.6, 0.3, 0.1]]),
        torch.tensor([4.0]),
    )
    mean_q = (0.6 * 1 + 0.3 * 2) / 0.9
    assert completed[0].tolist() == pytest.approx([1.0, 2.0, (4 + 4 * mean_q) / 5])


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_gumbel_search_rejects_less_than_one(bad):
    step, evaluate = table_mdp(0)
    simulations, samples, branches = bad
    with pytest.raises(ValueError, match="at least 1"):
        gumbel_search(
            (torch.arange(2),), step, evaluate, torch.zeros(2, A), simulations, samples, 0.9, 1.0, branches
        )
