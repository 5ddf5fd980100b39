"""The search: against a slow one with a node object each, against known optima, and where luck must not be foreseen."""

import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from reference import place, repeat
from worlds import TrueWorld

from boards import Real, sights
from envs import Rules
from envs.stag_hunt import DOWN, HUNT_HARE, HUNT_STAG, LEFT, RIGHT, STAY, UP
from envs.teams import LEARNER
from hop_ppo import Args
from others import GoalBelief, Told
from plan import Planner, SearchResult, act, search
from pretrain_vae import VAE, TabularMOA

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
        expected = [
            float(slow.total[a] / slow.count[a]) if slow.count[a] else float(slow.value) for a in range(A)
        ]
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
        return torch.tensor([0.5, 0.5, 0.0]).log().clamp(min=-1e9).expand(len(tree), 3), torch.zeros(
            len(tree)
        )

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
    foreseen, fair = (
        float(search(root, step, evaluate, 60, 1.0, branches=b).q.amax(1).mean()) for b in (1, 16)
    )
    assert foreseen > 0.8 and fair < 0.7


def test_act_by_hand():
    found = SearchResult(
        torch.tensor([[3, 1, 0], [1, 1, 0]]), torch.tensor([[1.0, 0.5, 9.0], [2.0, 0.7, 9.0]]), torch.zeros(2)
    )
    pi, q = act(found, 2, 2.0, torch.tensor([[True, True, True]]))
    assert q[0].tolist() == pytest.approx([(3 * 1.0 + 2.0) / 4, 0.6, -math.inf])
    odds = math.exp(2.0 * (1.25 - 0.6))
    assert pi[0].tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds), 0.0], abs=1e-6)


@pytest.mark.parametrize("bad", [dict(simulations=0), dict(simulations=3, branches=0)])
def test_needs_a_simulation(bad):
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


def test_search_samples_more_outcomes_the_more_often_an_edge_is_visited():
    """ceil(sqrt(visits) / 2) of them, `branches` at most."""
    for simulations, branches, outcomes in ((1, 4, 1), (4, 4, 1), (5, 4, 2), (16, 4, 2), (17, 4, 3), (36, 4, 3), (37, 4, 4),
                                            (60, 3, 3), (60, 4, 4), (64, 5, 4), (65, 5, 5)):  # fmt: skip
        edge = OneAction([(1, float(k), True) for k in range(9)])
        edge.search(simulations, branches)
        assert edge.calls == outcomes, simulations
    edge = OneAction([(1, float(k), True) for k in range(9)])
    search((torch.tensor([0]),), edge.step, edge.evaluate, 65, 1.0)
    assert edge.calls == 4  # by default


def test_search_draws_the_outcomes_of_an_edge_alike():
    """Visits 1 to 4 pay 0, the 5th pays 1, 11 draws of 0 or 1, the 17th pays 2, 23 draws of 0, 1 or 2."""
    torch.manual_seed(0)
    found = OneAction([(1, 0.0, True), (1, 1.0, True), (1, 2.0, True)]).search(40, branches=3, trees=2000)
    expected = (1 + 11 * 0.5 + 2 + 23 * 1.0) / 40
    assert abs(float(found.q[:, 0].mean()) - expected) < 0.01
    assert found.visits.tolist() == [[40, 0]] * 2000
    torch.testing.assert_close(found.value, found.q[:, 0])


def test_search_draws_a_repeated_outcome_twice_as_often():
    """The second outcome is the first one again: a third of the 23 last draws pays 3, not a half."""
    torch.manual_seed(0)
    found = OneAction([(1, 0.0, True), (1, 0.0, True), (1, 3.0, True)]).search(40, branches=3, trees=2000)
    assert abs(float(found.q[:, 0].mean()) - (3 + 23 * 1.0) / 40) < 0.015


def test_a_repeated_outcome_is_worth_what_the_critic_says_of_it():
    """State 3 is worth 2: on its first visit, and on the fifth, which meets it again. The three between end at once."""
    found = OneAction([(3, 0.5, False)]).search(5)
    assert float(found.q[0, 0]) == pytest.approx(0.5 + (2 + 0 + 0 + 0 + 2) / 5)
    assert float(found.q[0, 1]) == -1.0  # never visited: V of the root


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
    assert float(edge.search(5).q[0, 0]) == pytest.approx(worth / 5)


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
    found = search(root, step, evaluate, 1, 1.0, branches=2)
    assert float(found.q[0, 0]) == 0.0
    count.clear()
    found = search(root, step, evaluate, 5, 1.0, branches=2)
    assert len(count) == 5 and float(found.q[0, 0]) == pytest.approx((0 + 1 + 1 + 1 + 1) / 5)


def test_act_never_takes_what_is_not_legal():
    found = SearchResult(torch.tensor([[4, 4, 0]]), torch.tensor([[9.0, 1.0, 5.0]]), torch.zeros(1))
    pi, q = act(found, 1, 1.0, torch.tensor([[False, True, True]]))
    assert pi[0].tolist() == [0.0, 1.0, 0.0] and q[0].tolist() == [-math.inf, 1.0, -math.inf]


# ---- the planner, in a game of three hunters: 0 stands on a hare, 1 and 2 on the stag

TEAM = Rules(height=3, width=4, blocks=1, stags=1, hares=2, hunters=3, horizon=6, end_after_first_hunt=2)
K = TEAM.cells
START = place(TEAM, [(0, 0), (1, 1), (1, 1)], [(1, 1), (0, 0), (2, 3)], [(0, 1)])


def game_from(state, seats, who, rules=TEAM) -> Real:
    game = Real(len(seats), rules, "mixed", 1)
    placed = {f"core.{key}": torch.as_tensor(value) for key, value in asdict(state).items()}
    game.load_state_dict(game.state_dict() | placed | dict(seats=torch.tensor(seats), who=torch.tensor(who)))
    return game


class ByGoal:
    """Co-players that do one thing for sure: by their goal, stag or hare."""

    def __init__(self, stag=HUNT_STAG, hare=HUNT_HARE):
        self.actions = torch.tensor([stag, hare])

    def probs(self, board, hunters, prey, tick, goals):
        return torch.nn.functional.one_hot(self.actions[goals], 7).float()

    def place(self, *boards):
        pass


def alike(seen):
    """A policy that is uniform over legal actions, and a critic that expects nothing."""
    return seen.legal.float().clamp(min=1e-12).log() - (~seen.legal) * 1e9, torch.zeros(len(seen.legal))


def planner_of(game, kind, others=None, policy=alike, **settings):
    others = others or Told(game, False)
    vae = VAE(game.rules.height, game.rules.width, game.rules.horizon)
    return Planner(policy, game, others, Args(**settings), vae, TrueWorld(game.rules), kind)


def step_of(kind, seat, goals, actions, state, tables=None):
    """What `Planner.step` makes of a batch of states: of each tree (hunters, prey, tick, first_hunt)."""
    planner = planner_of(game_from(START, [seat], [[0, 1, 0]]), kind)
    n = len(actions)
    planner.board, planner.seat = torch.zeros(n, dtype=torch.int64), torch.full((n,), seat)
    planner.goals, planner.tables = torch.tensor(goals).expand(n, -1), tables or ByGoal()
    return planner.step(tuple(map(torch.tensor, state)), torch.tensor(actions), torch.arange(n))


@pytest.mark.parametrize("kind", ["learned", "rules"])
def test_planner_step_by_hand(kind):
    """Hunter 0 takes the hare, hunter 2 hunts the stag: it takes the learner, hunter 1, to capture it."""
    hunters, prey, gone = [[0, 5, 5]] * 2, [[5, 0, 11]] * 2, K
    after, rewards, over = step_of(kind, 1, [1, 0, 0], [HUNT_STAG, STAY], (hunters, prey, [0, 0], [-1, -1]))
    assert [part.tolist() for part in after] == [
        [[gone] * 3, [gone, 5, 5]],
        [[gone, gone, 11], [5, gone, 11]],
        [1, 1],
        [0, 0],
    ]
    assert rewards.tolist() == [5.0, 0.0] and over.tolist() == [True, False]
    after, rewards, over = step_of(kind, 0, [1, 0, 0], [HUNT_HARE, STAY], (hunters, prey, [0, 0], [-1, -1]))
    assert rewards.tolist() == [1.0, 0.0]  # the learner's own: the others share 10
    assert over.tolist() == [True, False] and after[0].tolist() == [[gone] * 3, [0, gone, gone]]


@pytest.mark.parametrize("kind", ["learned", "rules", "oracle"])
def test_planner_step_ends(kind):
    """All stay or walk. Over at the horizon, two ticks after the first capture, and where the learner leaves."""
    hunters, prey = [[8, 3, 3]] * 6, [[5, K, 11]] * 6
    ticks, first = [0, 1, 2, 3, 4, 5], [-1, 0, 0, 3, -1, -1]
    after, rewards, over = step_of(
        kind, 1, [0, 0, 0], [STAY] * 6, (hunters, prey, ticks, first), ByGoal(STAY, STAY)
    )
    assert over.tolist() == [False, False, True, False, False, True] and rewards.tolist() == [0.0] * 6
    assert after[2].tolist() == [1, 2, 3, 4, 5, 6] and after[3].tolist() == first
    hunters, prey = [[8, 11, 3]], [[5, K, 11]]
    _, rewards, over = step_of(
        kind, 1, [0, 0, 0], [HUNT_HARE], (hunters, prey, [0], [-1]), ByGoal(STAY, STAY)
    )
    assert over.tolist() == [True] and rewards.tolist() == [1.0]


def test_planner_step_draws_co_players_by_their_probabilities():
    class Mixed(ByGoal):
        def probs(self, board, hunters, prey, tick, goals):
            return torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0, 0.0]).expand(*hunters.shape, 7)

    torch.manual_seed(0)
    n = 20000
    state = ([[5, 0, 5]] * n, [[K, K, 11]] * n, [0] * n, [-1] * n)
    after, _, _ = step_of("rules", 1, [0, 0, 0], [STAY] * n, state, Mixed())
    assert (after[0][:, 1] == 0).all()
    for hunter in (0, 2):
        shares = torch.bincount(after[0][:, hunter], minlength=K) / n
        expected = torch.zeros(K).index_put((torch.tensor([9, 6, 5]),), torch.tensor([0.1, 0.6, 0.3]))
        torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)


def test_oracle_search_plays_the_true_strategies():
    """With the data's epsilon, 0.1: hunter 0 (NS) and 1 (NH) one step from stag and hare, 2 (RANDOM) in a corner."""
    state = place(TEAM, [(1, 0), (2, 2), (0, 3)], [(1, 1), (0, 0), (2, 3)], [(0, 1)])
    game = game_from(state, [2], [[0, 1, 2]])
    planner = planner_of(game, "oracle")
    root = tuple(part for part in (game.hunters, game.prey, game.tick, game.first_hunt))
    probs = planner._strategies(torch.tensor([0]), root, torch.tensor([[0, 1, 2]]))[0]
    legal = [[UP, DOWN, RIGHT, STAY], [UP, LEFT, RIGHT, STAY], [DOWN, LEFT, STAY]]
    for hunter, best in ((0, RIGHT), (1, RIGHT), (2, None)):
        uniform, epsilon = 1 / len(legal[hunter]), 1.0 if best is None else 0.1
        expected = [epsilon * uniform * (a in legal[hunter]) + 0.9 * (a == best) for a in range(7)]
        assert probs[hunter].tolist() == pytest.approx(expected), hunter


def test_oracle_search_is_told_who_they_are():
    """Hunter 0 is NS, one step above the stag: it goes down in nine cases of ten and more."""
    torch.manual_seed(0)
    state = place(TEAM, [(0, 2), (2, 0), (2, 0)], [(1, 2), (0, 0), (2, 3)], [(0, 1)])
    game = game_from(repeat(state, 2), [1, 1], [[0, LEARNER, 1], [2, LEARNER, 1]])
    planner = planner_of(game, "oracle", oracle_simulations=2, plan_simulations=77, plan_samples=7)
    assert (planner.samples, planner.simulations, planner.belief) == (1, 2, None)
    planner(torch.zeros(2, 3, 0), sights(game, torch.zeros(2, 3, 0))[1])
    assert planner.goals.tolist() == [[0, 0, 1], [2, 0, 1]] and planner.board.tolist() == [0, 1]
    n = 3000
    planner.board, planner.seat = torch.arange(2).repeat_interleave(n), torch.ones(2 * n, dtype=torch.int64)
    planner.goals = planner.goals.repeat_interleave(n, 0)
    root = tuple(part[planner.board] for part in (game.hunters, game.prey, game.tick, game.first_hunt))
    after, _, _ = planner.step(root, torch.full((2 * n,), STAY), torch.arange(2 * n))
    down = (after[0][:, 0] == 6).view(2, n).float().mean(1).tolist()
    assert down[0] == pytest.approx(0.9 + 0.1 / 3, abs=0.02) and down[1] == pytest.approx(1 / 3, abs=0.04)


def stub_belief(log_odds):
    """A belief that says this, and counts how often it is asked, updated and dealt."""
    calls = []
    note = lambda name: lambda *args: calls.append(name)  # noqa: E731
    return SimpleNamespace(log_odds=torch.tensor(log_odds), look=note("look"), observe=note("observe"), deal=note("deal"),
                           calls=calls, size=1)  # fmt: skip


def test_planner_draws_goals_from_the_belief():
    """log odds of the stag: a sure stag hunter is 0, a sure hare hunter 1, one in doubt either; none is RANDOM."""
    torch.manual_seed(0)
    game = game_from(repeat(START, 2), [1, 1], [[2, LEARNER, 2], [2, LEARNER, 2]])
    planner = planner_of(game, "rules", plan_simulations=2000, plan_samples=1000)
    planner.belief = stub_belief([[30.0, 0.0, -30.0], [-30.0, 0.0, math.log(3)]])
    planner(torch.zeros(2, 3, 0), sights(game, torch.zeros(2, 3, 0))[1])
    assert planner.simulations == 2 and planner.board.tolist() == [0] * 1000 + [1] * 1000
    goals = planner.goals.view(2, 1000, 3)
    assert (goals[0, :, 0] == 0).all() and (goals[0, :, 2] == 1).all() and (goals[1, :, 0] == 1).all()
    assert float(goals[1, :, 2].float().mean()) == pytest.approx(0.25, abs=0.05)
    assert planner.belief.calls == ["look"] and planner.decisions == 2


def test_planner_hunts_with_those_who_hunt():
    """One tick is left. The stag pays 5 if hunter 2 is after it; the learner's only other choices pay nothing."""
    torch.manual_seed(0)
    state = place(TEAM, [(2, 0), (1, 1), (1, 1)], [(1, 1), (0, 0), (2, 3)], [(0, 1)], tick=5)
    game = game_from(repeat(state, 3), [1, 1, 1], [[0, LEARNER, 0]] * 3)
    game.hunters[2, 1] = K  # the learner has left: there is nothing to decide
    for kind in ("learned", "rules"):
        planner = planner_of(game, kind, plan_simulations=60, plan_samples=3, plan_beta=50.0)
        planner.tables, planner.belief = (
            ByGoal(HUNT_STAG, STAY),
            stub_belief([[0.0, 0.0, 30.0], [0.0, 0.0, -30.0], [0.0] * 3]),
        )
        actions = planner(torch.zeros(3, 3, 0), sights(game, torch.zeros(3, 3, 0))[1])
        assert actions[0] == HUNT_STAG and actions[2] == STAY and planner.decisions == 2
        root = tuple(part[planner.board] for part in (game.hunters, game.prey, game.tick, game.first_hunt))
        found = search(root, planner.step, planner.evaluate, 20, 1.0)
        assert found.q[:3, HUNT_STAG].tolist() == [5.0] * 3 and found.q[3:, HUNT_STAG].tolist() == [0.0] * 3


def test_simulations_are_shared_by_the_samples():
    """At least one each."""
    game = game_from(START, [1], [[0, LEARNER, 0]])
    for simulations, samples, each in ((200, 5, 40), (14, 5, 2), (3, 5, 1)):
        planner = planner_of(game, "learned", plan_simulations=simulations, plan_samples=samples)
        assert (planner.simulations, planner.samples) == (each, samples)


def test_planner_does_not_search_where_only_stay_is_legal():
    game = game_from(START, [1], [[0, LEARNER, 0]])
    game.hunters[:] = K
    planner = planner_of(game, "rules")
    assert planner(torch.zeros(1, 3, 0), sights(game, torch.zeros(1, 3, 0))[1]).tolist() == [STAY]
    assert planner.decisions == 0


@pytest.mark.parametrize("kind", ["learned", "oracle"])
def test_what_the_policy_is_told_in_a_tree(kind):
    game = game_from(repeat(START, 2), [1, 0], [[0, LEARNER, 1], [LEARNER, 1, 2]])
    vae = VAE(3, 4, 6)
    told = torch.arange(12.0).view(2, 3, 2)
    goals = torch.tensor([[0, 1, 0], [1, 0, 1], [1, 1, 0]])

    def said(others, told):
        planner = planner_of(game, kind, others)
        planner.board, planner.goals = torch.tensor([0, 1, 1]), goals
        return planner._told(told).tolist()

    assert said(Told(game, False), told) == told[[0, 1, 1]].tolist()  # as at the root: z, or nothing
    assert said(GoalBelief(game, vae, 0.9), told[..., :1]) == [
        [[1.0], [0.0], [1.0]],
        [[0.0], [1.0], [0.0]],
        [[0.0], [0.0], [1.0]],
    ]
    who = Told(game, True).look()
    one_hot = torch.eye(3)[goals].tolist()  # who each is taken to be; an oracle's search is told the truth
    assert said(Told(game, True), who) == (who[[0, 1, 1]].tolist() if kind == "oracle" else one_hot)


def test_the_policy_sees_the_root_as_it_sees_the_game():
    """With what it is told in the tree: here the goals drawn."""
    seen = []

    def policy(what):
        seen.append(what)
        return alike(what)

    torch.manual_seed(0)
    game = game_from(repeat(START, 2), [1, 0], [[0, LEARNER, 1], [LEARNER, 1, 1]])
    planner = planner_of(
        game, "rules", GoalBelief(game, VAE(3, 4, 6), 0.9), policy, plan_simulations=2, plan_samples=2
    )
    told = torch.full((2, 3, 1), 0.5)
    planner(told, sights(game, told)[1])
    root = sights(game, (planner.goals == 0).float()[[0, 2]][..., None])[1]
    for name in ("steps", "ways", "there", "legal", "clock", "known"):
        torch.testing.assert_close(getattr(seen[0], name)[[0, 2]], getattr(root, name))


def test_a_belief_beside_the_policy_is_kept_up_to_date():
    """And the policy's own is not: whoever plays does that."""
    game, every = game_from(START, [1], [[0, LEARNER, 1]]), torch.tensor([True])
    for own in (False, True):
        planner = planner_of(game, "rules", plan_simulations=1, plan_samples=1)
        planner.belief = stub_belief([[0.0, 0.0, 0.0]])
        planner.others = planner.belief if own else planner.others
        planner(torch.zeros(1, 3, 0), sights(game, torch.zeros(1, 3, 0))[1])
        planner.observe()
        planner.deal(every, every)
        assert planner.belief.calls == ([] if own else ["look", "observe", "deal"])
    belief = GoalBelief(game, VAE(3, 4, 6), 0.9)
    assert planner_of(game, "rules", belief).belief is belief
    oracle = planner_of(game, "oracle")
    oracle.observe(), oracle.deal(every, every)


def test_tables_of_the_planner_follow_the_boards():
    torch.manual_seed(0)
    game = game_from(repeat(START, 3), [1, 0, 2], [[0, 0, 0]] * 3)
    vae, others = VAE(3, 4, 6), Told(game, False)
    torch.nn.init.normal_(vae.moa.step_costs)
    planner = Planner(
        alike, game, others, Args(plan_simulations=1, plan_samples=1), vae, TrueWorld(TEAM), "learned"
    )
    for dealt in ([False, True, False], [True, False, True], [False] * 3):
        game.deal(torch.tensor(dealt))
        planner(torch.zeros(3, 3, 0), sights(game, torch.zeros(3, 3, 0))[1])
        board = torch.arange(3), game.hunters, game.prey, game.tick
        expected = TabularMOA(vae, game.blocks, game.prey, TEAM.stags).probs(*board)
        torch.testing.assert_close(planner.tables.probs(*board), expected)
