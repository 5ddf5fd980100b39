"""The planner: what its trees do in a model of the game, whom it takes its co-players for, and what it believes."""

import math
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from games import envs_at
from reference import place, repeat
from worlds import TrueWorld

import hop_ppo
from envs import Rules, snowdrift
from envs.stag_hunt import DOWN, HUNT_HARE, HUNT_STAG, LEFT, RIGHT, STAY, UP
from envs.vector_env import LEARNER
from hop_ppo import Args, GoalBelief, NoInfo, Observation, OracleInfo, Planner, observe_envs, to_tensors
from pretrain_vae import VAE, TabularMOA
from search import search

# Three hunters: 0 stands on a hare, 1 and 2 on the stag.
TEAM = Rules(height=3, width=4, blocks=1, stags=1, hares=2, hunters=3, horizon=6, end_after_first_hunt=2)
K = TEAM.cells
START = place(TEAM, [(0, 0), (1, 1), (1, 1)], [(1, 1), (0, 0), (2, 3)], [(0, 1)])


class ByGoal:
    """Co-players that do one thing for sure: by their goal, stag or hare. A GoalPolicy and its table in one."""

    def __init__(self, stag=HUNT_STAG, hare=HUNT_HARE):
        self.actions = torch.tensor([stag, hare])

    def probs(self, board, hunters, prey, tick, goals):
        return F.one_hot(self.actions[goals], 7).float()

    def sync(self, blocks, prey):
        return self


def uniform_with_value_0(obs: Observation, opponent_info: torch.Tensor):
    """A policy that is uniform over legal actions, and a critic that expects nothing."""
    legal = obs.action_mask
    return legal.float().clamp(min=1e-12).log() - (~legal) * 1e9, torch.zeros(len(legal))


def make_belief(envs, infos) -> GoalBelief:
    vae = VAE(envs.rules.height, envs.rules.width, envs.rules.horizon)
    return GoalBelief(infos, envs.rows_per_board, vae, envs.rules, 0.9)


def make_planner(
    envs, infos, kind, opponents=None, policy=uniform_with_value_0, vae=None, imagined=None, **settings
) -> Planner:
    rules = envs.rules
    opponents = opponents or NoInfo(infos, envs.rows_per_board)
    vae = vae or VAE(rules.height, rules.width, rules.horizon)
    return Planner(policy, envs, opponents, Args(**settings), vae, TrueWorld(rules), kind, imagined)


def recorder():
    """A policy, and the list of what it is asked: observations and what is known of co-players."""
    calls = []

    def policy(obs, opponent_info):
        calls.append((obs, opponent_info))
        return uniform_with_value_0(obs, opponent_info)

    return policy, calls


def decide(planner, envs, infos, opponent_info=None) -> torch.Tensor:
    """The planner's actions; its policy is one, too. opponent_info: nothing is known of the others if it is not given."""
    if opponent_info is None:
        opponent_info = torch.zeros(envs.num_envs, envs.rules.hunters - 1, 0)
    actions, policy = planner(observe_envs(infos, envs.rules), opponent_info, infos)
    torch.testing.assert_close(policy.sum(1), torch.ones(envs.num_envs))
    assert (policy.gather(1, actions[:, None]) > 0).all()
    return actions


def root_of(infos, board=slice(None)) -> tuple[torch.Tensor, ...]:
    return tuple(infos[key][board] for key in ("hunters", "prey", "tick", "first_hunt"))


def step_of(kind, seat, goals, actions, state, table=None):
    """What `Planner.step` makes of a batch of states: of each tree (hunters, prey, tick, first_hunt)."""
    envs, infos = envs_at(START, TEAM, [seat], [[0, 1, 0]])
    planner = make_planner(envs, infos, kind)
    n = len(actions)
    planner.infos = infos
    planner.board = torch.zeros(n, dtype=torch.int64)
    planner.seat = torch.full((n,), seat)
    planner.goals = torch.tensor(goals).expand(n, -1)
    planner.table = table or ByGoal()
    return planner.step(tuple(map(torch.tensor, state)), torch.tensor(actions), torch.arange(n))


# ---- a tick of the model


@pytest.mark.parametrize("kind", ["learned", "rules"])
def test_planner_step_by_hand(kind):
    """Hunter 0 takes the hare, hunter 2 hunts the stag: it takes the learner, hunter 1, to capture it."""
    hunters, prey, gone = [[0, 5, 5]] * 2, [[5, 0, 11]] * 2, K
    state = (hunters, prey, [0, 0], [-1, -1])
    after, rewards, over = step_of(kind, 1, [1, 0, 0], [HUNT_STAG, STAY], state)
    assert after[0].tolist() == [[gone] * 3, [gone, 5, 5]]
    assert after[1].tolist() == [[gone, gone, 11], [5, gone, 11]]
    assert after[2].tolist() == [1, 1]
    assert after[3].tolist() == [0, 0]
    assert rewards.tolist() == [5.0, 0.0] and over.tolist() == [True, False]
    after, rewards, over = step_of(kind, 0, [1, 0, 0], [HUNT_HARE, STAY], state)
    assert rewards.tolist() == [1.0, 0.0]  # the learner's own: the others share 10
    assert over.tolist() == [True, False] and after[0].tolist() == [[gone] * 3, [0, gone, gone]]


@pytest.mark.parametrize("kind", ["learned", "rules", "oracle"])
def test_a_tree_ends_at_the_horizon_by_the_rules_and_where_the_learner_leaves(kind):
    """All stay or walk. By the rules: two ticks after the first capture."""
    still = ByGoal(STAY, STAY)
    ticks, first = [0, 1, 2, 3, 4, 5], [-1, 0, 0, 3, -1, -1]
    state = ([[8, 3, 3]] * 6, [[5, K, 11]] * 6, ticks, first)
    after, rewards, over = step_of(kind, 1, [0, 0, 0], [STAY] * 6, state, still)
    assert over.tolist() == [False, False, True, False, False, True] and rewards.tolist() == [0.0] * 6
    assert after[2].tolist() == [1, 2, 3, 4, 5, 6] and after[3].tolist() == first
    state = ([[8, 11, 3]], [[5, K, 11]], [0], [-1])
    _, rewards, over = step_of(kind, 1, [0, 0, 0], [HUNT_HARE], state, still)
    assert over.tolist() == [True] and rewards.tolist() == [1.0]


def test_co_players_in_a_tree_are_drawn_by_their_probabilities():
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


# ---- who the co-players are


def test_oracle_search_plays_the_true_strategies():
    """With the data's epsilon, 0.1: hunter 0 (NS) and 1 (NH) one step from stag and hare, 2 (RANDOM) in a corner."""
    state = place(TEAM, [(1, 0), (2, 2), (0, 3)], [(1, 1), (0, 0), (2, 3)], [(0, 1)])
    envs, infos = envs_at(state, TEAM, [2], [[0, 1, 2]])
    planner = make_planner(envs, infos, "oracle")
    planner.infos = infos
    probs = planner.strategy_probs(torch.tensor([0]), root_of(infos), torch.tensor([[0, 1, 2]]))[0]
    legal = [[UP, DOWN, RIGHT, STAY], [UP, LEFT, RIGHT, STAY], [DOWN, LEFT, STAY]]
    for hunter, best in ((0, RIGHT), (1, RIGHT), (2, None)):
        uniform, epsilon = 1 / len(legal[hunter]), 1.0 if best is None else 0.1
        expected = [epsilon * uniform * (a in legal[hunter]) + 0.9 * (a == best) for a in range(7)]
        assert probs[hunter].tolist() == pytest.approx(expected), hunter


def test_oracle_search_is_puct_whatever_the_others_search_with(monkeypatch):
    monkeypatch.setattr(hop_ppo, "gumbel_search", None)  # not called
    envs, infos = envs_at(START, TEAM, [1], [[0, LEARNER, 1]])
    decide(make_planner(envs, infos, "oracle", plan_search="gumbel", oracle_simulations=2), envs, infos)


def test_oracle_search_knows_who_the_others_are():
    """Hunter 0 is NS, one step above the stag: it goes down in nine cases of ten and more."""
    torch.manual_seed(0)
    state = place(TEAM, [(0, 2), (2, 0), (2, 0)], [(1, 2), (0, 0), (2, 3)], [(0, 1)])
    envs, infos = envs_at(repeat(state, 2), TEAM, [1, 1], [[0, LEARNER, 1], [2, LEARNER, 1]])
    settings = dict(oracle_simulations=2, plan_simulations=77, plan_samples=7)
    planner = make_planner(envs, infos, "oracle", **settings)
    assert (planner.samples, planner.simulations, planner.belief) == (1, 2, None)
    decide(planner, envs, infos)
    assert planner.goals.tolist() == [[0, 0, 1], [2, 0, 1]] and planner.board.tolist() == [0, 1]
    n = 3000
    planner.board = torch.arange(2).repeat_interleave(n)
    planner.seat = torch.ones(2 * n, dtype=torch.int64)
    planner.goals = planner.goals.repeat_interleave(n, 0)
    root = root_of(infos, planner.board)
    after, _, _ = planner.step(root, torch.full((2 * n,), STAY), torch.arange(2 * n))
    down = (after[0][:, 0] == 6).view(2, n).float().mean(1).tolist()
    assert down[0] == pytest.approx(0.9 + 0.1 / 3, abs=0.02) and down[1] == pytest.approx(1 / 3, abs=0.04)


class StubBelief:
    """A belief that says this, and notes how it is called."""

    info_size = 1

    def __init__(self, log_odds):
        log_odds = torch.tensor(log_odds)
        none = torch.full_like(log_odds, -torch.inf)
        self.log_belief = torch.stack([F.logsigmoid(log_odds), F.logsigmoid(-log_odds), none], -1)
        self.calls = []

    def features(self):
        self.calls.append("features")

    def update(self, infos):
        self.calls.append("update")

    def reset(self, boards, infos):
        self.calls.append("reset")


def test_goals_are_drawn_from_the_belief():
    """log odds of the stag: a sure stag hunter is 0, a sure hare hunter 1, one in doubt either; none is RANDOM."""
    torch.manual_seed(0)
    envs, infos = envs_at(repeat(START, 2), TEAM, [1, 1], [[2, LEARNER, 2], [2, LEARNER, 2]])
    planner = make_planner(envs, infos, "rules", plan_simulations=2000, plan_samples=1000)
    planner.belief = StubBelief([[30.0, 0.0, -30.0], [-30.0, 0.0, math.log(3)]])
    decide(planner, envs, infos)
    assert planner.simulations == 2 and planner.board.tolist() == [0] * 1000 + [1] * 1000
    goals = planner.goals.view(2, 1000, 3)
    assert (goals[0, :, 0] == 0).all() and (goals[0, :, 2] == 1).all() and (goals[1, :, 0] == 1).all()
    assert float(goals[1, :, 2].float().mean()) == pytest.approx(0.25, abs=0.05)
    assert planner.belief.calls == ["features"] and planner.decisions == 2


# ---- decisions


@pytest.mark.parametrize("plan_search", ["puct", "gumbel"])
def test_planner_hunts_with_those_who_hunt(plan_search):
    """One tick is left. The stag pays 5 if hunter 2 is after it; the learner's only other choices pay nothing."""
    torch.manual_seed(0)
    state = repeat(place(TEAM, [(2, 0), (1, 1), (1, 1)], [(1, 1), (0, 0), (2, 3)], [(0, 1)], tick=5), 3)
    state.hunters[2, 1] = -1  # the learner has left: there is nothing to decide
    envs, infos = envs_at(state, TEAM, [1, 1, 1], [[0, LEARNER, 0]] * 3)
    for kind in ("learned", "rules"):
        budget = dict(plan_simulations=60, plan_samples=3, plan_beta=50.0)
        planner = make_planner(envs, infos, kind, plan_search=plan_search, **budget)
        planner.goal_policy = ByGoal(HUNT_STAG, STAY)
        planner.belief = StubBelief([[0.0, 0.0, 30.0], [0.0, 0.0, -30.0], [0.0] * 3])
        actions = decide(planner, envs, infos)
        assert actions[0] == HUNT_STAG and actions[2] == STAY and planner.decisions == 2
        result = search(root_of(infos, planner.board), planner.step, planner.evaluate, 20, 1.0)
        assert result.q_values[:3, HUNT_STAG].tolist() == [5.0] * 3
        assert result.q_values[3:, HUNT_STAG].tolist() == [0.0] * 3


def test_simulations_are_shared_by_the_samples():
    """At least one each."""
    envs, infos = envs_at(START, TEAM, [1], [[0, LEARNER, 0]])
    for simulations, samples, each in ((200, 5, 40), (14, 5, 2), (3, 5, 1)):
        planner = make_planner(envs, infos, "learned", plan_simulations=simulations, plan_samples=samples)
        assert (planner.simulations, planner.samples) == (each, samples)


def test_planner_does_not_search_where_only_stay_is_legal():
    envs, infos = envs_at(START, TEAM, [1], [[0, LEARNER, 0]])
    planner = make_planner(envs, infos, "rules")
    infos = infos | {"hunters": torch.full_like(infos["hunters"], K)}
    assert decide(planner, envs, infos).tolist() == [STAY]
    assert planner.decisions == 0


# ---- what the policy sees and knows in a tree


@pytest.mark.parametrize("kind", ["learned", "oracle"])
def test_what_the_policy_knows_in_a_tree(kind):
    """Co-players in the order of the learner: seats 2 and 0 of board 0, 1 and 2 of board 1."""
    envs, infos = envs_at(repeat(START, 2), TEAM, [1, 0], [[0, LEARNER, 1], [LEARNER, 1, 2]])
    at_root = torch.arange(8.0).view(2, 2, 2)
    goals = torch.tensor([[0, 1, 1], [1, 0, 2], [1, 1, 0]])
    goals_in_order = torch.tensor([[1, 0], [0, 2], [1, 0]])

    def info_of_trees(opponents, opponent_info):
        planner = make_planner(envs, infos, kind, opponents)
        planner.board = torch.tensor([0, 1, 1])
        planner.seat = torch.tensor([1, 0, 0])
        planner.goals = goals
        return planner.info_of_trees(opponent_info).tolist()

    nothing = NoInfo(infos, envs.rows_per_board)
    assert info_of_trees(nothing, at_root) == at_root[[0, 1, 1]].tolist()  # as at the root: z, or nothing
    stag, hare, none = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]
    believed = [[hare, stag], [stag, none], [hare, stag]]
    assert info_of_trees(make_belief(envs, infos), at_root) == believed
    oracle = OracleInfo(infos, envs.rows_per_board, len(TEAM.game.strategies))
    truth = oracle.features()
    assert truth.argmax(2).tolist() == [[1, 0], [1, 2]]
    taken_for = torch.eye(3)[goals_in_order]
    expected = truth[[0, 1, 1]] if kind == "oracle" else taken_for  # an oracle's search knows the truth
    assert info_of_trees(oracle, truth) == expected.tolist()


def test_the_policy_sees_the_root_as_it_sees_the_game():
    """With what it knows in the tree: here the goals drawn."""
    policy, calls = recorder()
    torch.manual_seed(0)
    envs, infos = envs_at(repeat(START, 2), TEAM, [1, 0], [[0, LEARNER, 1], [LEARNER, 1, 1]])
    belief = make_belief(envs, infos)
    budget = dict(plan_search="puct", plan_simulations=2, plan_samples=2)
    planner = make_planner(envs, infos, "rules", belief, policy, **budget)
    belief.features()
    decide(planner, envs, infos, torch.full((2, 2, 2), 0.5))
    obs, opponent_info = calls[0]
    root = observe_envs(infos, TEAM)
    for first_tree in (0, 1):
        trees = [first_tree, first_tree + 2]
        for name, value in vars(root).items():
            torch.testing.assert_close(getattr(obs, name)[trees], value)
        goals = F.one_hot(planner.goals[trees], 2).float()
        expected = torch.stack([goals[0, [2, 0]], goals[1, [1, 2]]])
        torch.testing.assert_close(opponent_info[trees], expected)


def test_the_prior_of_a_gumbel_root_is_the_policy_as_it_is_without_a_search():
    """With what it knows of the others in the game, not with the goals of a tree, and for the boards that decide."""
    policy, calls = recorder()
    envs, infos = envs_at(repeat(START, 2), TEAM, [1, 0], [[0, LEARNER, 1], [LEARNER, 1, 1]])
    budget = dict(plan_search="gumbel", plan_simulations=2, plan_samples=2)
    planner = make_planner(envs, infos, "rules", make_belief(envs, infos), policy, **budget)
    decide(planner, envs, infos, torch.full((2, 2, 2), 0.25))
    assert calls[0][1].tolist() == torch.full((2, 2, 2), 0.25).tolist()


@pytest.mark.parametrize("plan_search", ["gumbel", "puct"])
@pytest.mark.parametrize(("rules", "unit"), [(TEAM, 1.0), (snowdrift.Rules(drifts=4), 4.0)])
def test_q_is_weighted_in_units_of_what_a_hunter_is_paid(rules, unit, plan_search, monkeypatch):
    """One that leaves with its prey is paid once, one that stays for each of them."""
    weights = []
    improved = torch.full((1, rules.game.num_actions), 1 / rules.game.num_actions)

    def gumbel_search(*args):
        weights.append(args[-1])
        return MagicMock(actions=torch.tensor([STAY]), policy=improved)

    monkeypatch.setattr(hop_ppo, "gumbel_search", gumbel_search)
    monkeypatch.setattr(
        hop_ppo,
        "root_policy",
        lambda *args: weights.append(args[2]) or (improved[:, : args[3].shape[1]], None),
    )
    envs = hop_ppo.make_envs(rules, 1, "mixed")
    infos = to_tensors(envs.reset(seed=1)[1])
    budget = dict(plan_search=plan_search, plan_simulations=1, plan_samples=1, plan_beta=20.0)
    kinds = dict(kinds=rules.game.kinds, goal_kinds=rules.game.goal_kinds)
    vae = VAE(rules.height, rules.width, rules.horizon, **kinds)
    decide(make_planner(envs, infos, "rules", vae=vae, **budget), envs, infos)
    assert weights == [20.0 / unit]


def test_a_planner_that_imagined_plays_what_it_learnt_there_and_gives_it_beliefs():
    """At the root P(goal), of a belief beside the policy if that has none; in the trees the goals that were drawn; both in
    the order of the learners, who sit in seats 1 and 0."""
    imagined, calls = recorder()
    envs, infos = envs_at(repeat(START, 2), TEAM, [1, 0], [[0, LEARNER, 1], [LEARNER, 1, 1]])
    budget = dict(plan_search="gumbel", plan_simulations=2, plan_samples=2)
    planner = make_planner(envs, infos, "learned", None, None, imagined=imagined, **budget)
    believed = torch.tensor([[0.9, 0.5, 0.2], [0.3, 0.6, 0.8]])  # of the first goal, by seat
    planner.belief.log_belief = torch.stack([believed, 0.95 - believed, torch.full((2, 3), 0.05)], 2).log()
    decide(planner, envs, infos)
    (_, at_root), (_, in_trees), *_ = calls
    torch.testing.assert_close(at_root[..., 0], torch.tensor([[0.2, 0.9], [0.6, 0.8]]))
    torch.testing.assert_close(at_root[..., 1], torch.tensor([[0.75, 0.05], [0.35, 0.15]]))
    goals = planner.goals.gather(1, torch.tensor([[2, 0], [2, 0], [1, 2], [1, 2]]))  # two trees a decision
    assert in_trees.tolist() == torch.eye(3)[goals][..., :2].tolist()


# ---- the planner's own belief and tables


def test_a_belief_beside_the_policy_is_kept_up_to_date():
    """And the policy's own is not: whoever plays does that."""
    envs, infos = envs_at(START, TEAM, [1], [[0, LEARNER, 1]])
    everywhere = torch.tensor([True])
    for own in (False, True):
        planner = make_planner(envs, infos, "rules", plan_simulations=1, plan_samples=1)
        planner.belief = StubBelief([[0.0, 0.0, 0.0]])
        planner.opponents = planner.belief if own else planner.opponents
        decide(planner, envs, infos)
        planner.update(infos)
        planner.reset(everywhere, infos)
        assert planner.belief.calls == ([] if own else ["features", "update", "reset"])
    belief = make_belief(envs, infos)
    assert make_planner(envs, infos, "rules", belief).belief is belief
    oracle = make_planner(envs, infos, "oracle")
    oracle.update(infos)
    oracle.reset(everywhere, infos)


def test_a_belief_beside_the_policy_learns_from_what_is_played():
    """As the belief of a policy that has one: after the same ticks and the same new episodes."""
    torch.manual_seed(0)
    envs, infos = envs_at(
        repeat(START, 3), TEAM, [1, 0, 2], [[0, LEARNER, 1], [LEARNER, 1, 1], [0, 0, LEARNER]]
    )
    vae = VAE(3, 4, 6)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    planner = make_planner(envs, infos, "rules", vae=vae, plan_simulations=1, plan_samples=1)
    belief = GoalBelief(infos, envs.rows_per_board, vae, TEAM, Args().belief_discount)
    for tick in range(8):
        belief.features()
        actions = decide(planner, envs, infos)
        _, _, terminated, truncated, infos = envs.step(actions.numpy())
        infos = to_tensors(infos)
        ended = terminated | truncated
        for tracker in (belief, planner):
            tracker.update(infos)
        assert torch.equal(planner.belief.log_belief, belief.log_belief), tick
        infos = to_tensors(envs.reset(options={"reset_mask": ended})[1])
        for tracker in (belief, planner):
            tracker.reset(torch.as_tensor(ended), infos)
    assert torch.equal(planner.belief.log_belief, belief.log_belief) and not torch.equal(
        belief.log_belief, belief.prior.log()
    )


def test_tables_of_the_planner_follow_the_boards():
    torch.manual_seed(0)
    envs, infos = envs_at(repeat(START, 3), TEAM, [1, 0, 2], [[0, 0, 0]] * 3)
    vae = VAE(3, 4, 6)
    torch.nn.init.normal_(vae.moa.step_costs)
    planner = make_planner(envs, infos, "learned", vae=vae, plan_simulations=1, plan_samples=1)
    for mask in ([False, True, False], [True, False, True], [False] * 3):
        infos = to_tensors(envs.reset(options={"reset_mask": np.array(mask)})[1])
        planner.reset(torch.tensor(mask), infos)
        decide(planner, envs, infos)
        question = (torch.arange(3), infos["hunters"], infos["prey"], infos["tick"])
        expected = TabularMOA(vae, infos["blocks"], infos["prey"], TEAM.prey_counts).probs(*question)
        torch.testing.assert_close(planner.table.probs(*question), expected)
