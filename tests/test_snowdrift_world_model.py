"""World models of the snowdrift and their judge: laws, violations of each kind, events, pay, whole runs, what is refused."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from snowdrift_reference import SnowReference, positions
from worlds import put

import test_obs_reward_model as judge
import tracking
import train_world_model
from data import DataError, flatten
from data.collect import Args, collect
from data.datasets import TransitionBatches, first_boards, load_transitions, transitions_of_episodes
from data.outcomes import JointState, outcomes_of
from data.trajectories import save_arrays
from envs import make_core, planes_to_joint
from envs.core import State
from envs.snowdrift import GAME, Rules
from envs.stag_hunt import Rules as HuntRules
from metrics import transitions
from metrics.laws import deterministic_step, next_state_log_prob, outcomes
from metrics.transitions import EvalTransitions
from metrics.violations import kinds_of, violations
from tracking import figures
from train_world_model import CachedWorldModel, CellWorldModel, ObjectWorldModel, make_model

UP, DOWN, LEFT, RIGHT, STAY, REMOVE = range(6)
CPU = torch.device("cpu")
KINDS = kinds_of(GAME)
CROWDED = Rules(agents=3, drifts=5, blocks=2, height=4, width=4, horizon=20)
ANY = ("ND", "FIX", "RANDOM")


def played(rules=CROWDED, steps=300, seed=1, unmasked=0.5):
    return collect(Args(steps=steps, seed=seed, rules=rules, strategies=ANY, unmasked=unmasked))


@pytest.fixture(scope="module")
def data():
    return transitions_of_episodes(played(), split=True)


def eval_of(data, joint=True):
    return EvalTransitions.of(data, np.arange(len(data)), joint, seed=0)


def shaken(model, seed=0):
    """With weights that are not small: whatever a network gets has an effect."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def moves(data, joint=True):
    batches = TransitionBatches.of(data, CPU, own=not joint)
    args = train_world_model.Args(actions="joint" if joint else "own")
    return shaken(make_model(args, batches, np.arange(len(data)), data, None))


# ---- the law


@given(positions())
@settings(max_examples=40, deadline=None)
def test_the_law_is_the_references(position):
    rules, state, actions = position
    before = planes_to_joint(make_core(1, rules).set_state(state))
    game = SnowReference.from_state(rules, state, 0)
    if game.ended:
        return
    rewards, *_ = game.step(actions[0].tolist())
    after = planes_to_joint(np.array(game.obs(), np.uint8))[None]
    np.testing.assert_allclose(deterministic_step(before, actions, rules).rewards[0], rewards, rtol=1e-6)
    ((board, prob),) = outcomes(before[0], actions[0], rules)
    assert prob == 1.0 and np.array_equal(board, after[0])
    assert next_state_log_prob(before, actions, after, rules).tolist() == [0.0]
    other = after ^ np.eye(before.shape[1], dtype=np.uint8)[-1][None, :, None, None]
    assert next_state_log_prob(before, actions, other, rules).tolist() == [-np.inf]
    found = violations(before, actions, after, np.array([rewards]), rules)
    assert not any(broken.any() for broken in found.values())


def test_real_data_breaks_no_rule_whichever_actions_are_given(data):
    cases = eval_of(data)
    known = np.ones(cases.actions.shape, bool)
    own = eval_of(data, joint=False).given_actions
    for given_actions in (cases.actions, own, np.full_like(own, -1)):
        broken = transitions.broken_rules(
            cases.before, given_actions, cases.after, cases.rewards, known, CROWDED
        )
        assert not broken.any() and broken.shape[1] == len(KINDS)


# ---- violations, by hand

BOARD = Rules(agents=4, drifts=3, blocks=1, height=3, width=4)
ACTIONS = np.array(
    [[RIGHT, REMOVE, REMOVE, STAY]]
)  # two share the drift on (1, 1); one stands on that on (2, 3)
HUNTERS, DRIFTS, BLOCK = [(0, 0), (1, 1), (1, 1), (2, 3)], [(1, 1), (2, 3), (0, 3)], (2, 0)
B, D = 4, 5  # the planes BLOCKS and DRIFTS


SPOILT = {  # what is right: seat 0 on (0, 1), no drift on (1, 1), pay 6, 4, 4, 6
    "an agent that leaves": (put((3, 2, 3, 0)), "lost"),
    "one that leaves with its drift": (put((1, 1, 1, 0)), "lost"),
    "two cells on": (put((0, 0, 1, 0), (0, 0, 2, 1)), "jump"),
    "a drift that comes back": (put((D, 2, 1, 1)), "prey_created"),
    "a drift that goes without REMOVE": (put((D, 2, 3, 0)), "prey_lost"),
    "a drift that moves": (put((D, 0, 3, 0), (D, 0, 2, 1)), "prey_moved"),
    "REMOVE, and it is there": (put((D, 1, 1, 1)), "removal_without_effect"),
    "a cost that is not shared": (put(rewards=[(1, 2.0), (2, 2.0)]), "wrong_share"),
    "no cost": (put(rewards=[(1, 6.0)]), "wrong_share"),
    "a bystander is not paid": (put(rewards=[(0, 0.0)]), "wrong_pay"),
    "a bystander pays, too": (put(rewards=[(3, 4.0)]), "wrong_pay"),
    "not a number": (put(rewards=[(2, np.nan)]), "wrong_share"),
    "nearly": (put(rewards=[(0, 6.009)]), ""),
    "nothing spoilt": (put(), ""),
}


def board(drifts=DRIFTS):
    """uint8 [1, 6, 3, 4], and what it becomes."""
    core = make_core(1, BOARD)
    core.reset(seed=0)
    cell = {place: place[0] * 4 + place[1] for place in [*HUNTERS, *DRIFTS, BLOCK]}
    values = vars(core.state) | dict(
        blocks=np.arange(12)[None] == cell[BLOCK],
        hunters=np.array([[cell[place] for place in HUNTERS]], np.int16),
        prey=np.array([[cell[place] if place in drifts else -1 for place in DRIFTS]], np.int16),
    )
    before = planes_to_joint(core.set_state(State(**values)))
    obs, rewards, *_ = core.step(ACTIONS)
    return before, planes_to_joint(obs), rewards.copy()


def test_each_kind_counts_what_it_names():
    before, after, rewards = board()
    assert rewards[0].tolist() == [6.0, 4.0, 4.0, 6.0]
    found = set()
    for name, (spoil, kinds) in SPOILT.items():
        planes, paid = after.copy(), rewards.copy()
        spoil(planes[0], paid[0])
        broken = violations(before, ACTIONS, planes, paid, BOARD)
        assert tuple(broken) == KINDS
        assert " ".join(kind for kind in KINDS if broken[kind][0]) == kinds, name
        found.update(kinds.split())
    before, after, rewards = board(drifts=DRIFTS[1:])
    assert not rewards.any()
    broken = violations(before, ACTIONS, after, rewards + np.array([0, 0, 0, 6]), BOARD)
    assert [kind for kind in KINDS if broken[kind][0]] == ["pay_without_removal"]
    assert {*KINDS[4:8], *KINDS[9:]} <= found | {"pay_without_removal"}


def test_events_by_hand():
    """Two share a removal; one alone; nothing there; into the border; nothing."""
    planes = np.zeros((2, 5, 4, 1, 4), np.uint8)  # before and after, of two agents on a row of four cells
    rows = [
        ((0, 0), (REMOVE, REMOVE), (0, 0), [0], []),
        ((0, 2), (REMOVE, STAY), (0, 2), [0], []),
        ((1, 2), (REMOVE, STAY), (1, 2), [0], [0]),
        ((0, 2), (LEFT, STAY), (0, 2), [], []),
        ((0, 2), (RIGHT, STAY), (1, 2), [3], [3]),
    ]
    for i, (hunters, _, later, drifts, drifts_later) in enumerate(rows):
        for side, (cells, prey) in enumerate(((hunters, drifts), (later, drifts_later))):
            planes[side, i, [0, 1], 0, cells] = 1
            planes[side, i, 3, 0, prey] = 1
    row, zeros = np.arange(5), np.zeros(5)
    actions = np.array([row_actions for _, row_actions, *_ in rows])
    cases = EvalTransitions(
        np.concatenate(planes), row, row + 5, actions, actions, np.zeros((5, 2)), *[zeros] * 4, GAME
    )
    found = {name: np.flatnonzero(there).tolist() for name, there in transitions.find_events(cases).items()}
    assert found == {
        "removal": [0, 1],
        "shared_removal": [0],
        "empty_removal": [2],
        "bump": [3],
        "shared_cell": [0],
    }
    assert cases.channel_names() == ["hunter 0", "hunter 1", "BLOCKS", "DRIFTS"]


# ---- what is read off the data


def test_pay_and_shares_are_read_off_the_data(data):
    index = np.arange(len(data))
    batches = TransitionBatches.of(data, CPU, own=False)
    assert batches.public_pay(index) == (6.0,)
    assert batches.capture_totals(index, (6.0,)) == [-4.0, 0.0]
    shares = TransitionBatches.of(data, CPU, own=True).capture_totals(index, (6.0,))
    assert {-4.0, -2.0, 0.0} <= set(shares)
    other = transitions_of_episodes(
        played(Rules(agents=3, drifts=5, reward=0.5, cost=3.0, height=4, width=4)), False
    )
    batches, index = TransitionBatches.of(other, CPU, own=False), np.arange(len(other))
    assert batches.public_pay(index) == (0.5,) and batches.capture_totals(index, (0.5,)) == [-3.0, 0.0]


def test_first_boards_are_of_the_rules_game(tmp_path):
    path = tmp_path / "x.npz"
    save_arrays(path, played().arrays())
    blocks, hunters, prey = first_boards(path, CROWDED)
    assert (
        blocks.sum(1).tolist() == [2] * len(blocks) and hunters.shape[1:] == (3,) and prey.shape[1:] == (5,)
    )
    hunt = HuntRules(hunters=2, stags=1, hares=5, blocks=2, height=4, width=4)  # as many planes
    with pytest.raises(
        DataError, match="expected episodes of StagHunt-v0, found Snowdrift-v0: use --env-id Snow"
    ):
        first_boards(path, hunt)
    more = replace(CROWDED, drifts=CROWDED.drifts - 1)
    with pytest.raises(DataError, match=f"expected episodes of 3 hunters, {more.drifts} drifts on 4x4 cells"):
        first_boards(path, more)


@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_are_transitions_of_the_game_that_they_say(shuffled, tmp_path):
    rows = flatten.flatten(flatten.Args(out="", rows=300, rules=CROWDED, strategies=ANY))
    if shuffled:
        order = np.random.default_rng(0).permutation(len(rows["actions"]))
        rows = {key: array[order] if array.ndim else array for key, array in rows.items()}
    save_arrays(tmp_path / "rows.npz", rows)
    x = load_transitions(tmp_path / "rows.npz")
    assert x.game == GAME and x.states.shape[1:] == (5, 4, 4)
    assert x.split_law == f"80/10/10 by {'contiguous blocks' if shuffled else 'episode'}"
    drifts_left = x.states[x.after, -1].any((1, 2))
    assert np.array_equal(x.ends, ~drifts_left) and 0 < x.ends.sum() < len(x)


# ---- the models


def test_what_happened_has_the_probability_that_the_parts_say(data):
    """By hand: agents, then drifts, then each agent's share of what is left after the public pay, then the end."""
    model, cases = moves(data), eval_of(data)
    assert model.public_pay.tolist() == [6.0] and not model.leaves
    states, actions, after, rewards, ends = cases.tensors(slice(None), CPU)
    found = model.log_prob(states, actions, after, rewards, ends)
    assert (found > -1e6).all()
    for wrong in (rewards + 1.0, rewards - 6.0 * (rewards != 0)):
        changed = (wrong != rewards).any(1)
        assert (model.log_prob(states, actions, after, wrong, ends)[changed] < -1e6).all()
    state = JointState.of(states, (5,))
    happened = outcomes_of(states.numpy(), after.numpy(), (4, 4), (5,)).batch(np.arange(len(data)))
    terms, _ = model(state, actions, happened, rewards, ends)
    inputs = model._hunter_inputs(state, actions)
    step = deterministic_step(cases.before, cases.actions, CROWDED)
    takers = torch.as_tensor(step.captures).float()
    assert 0 < takers.sum() < takers.numel()
    classes = (takers == 0).long()  # of the values -4 and 0
    logits = model._reward_logits(inputs.context, takers).log_softmax(2)
    torch.testing.assert_close(terms.rewards, logits.gather(2, classes[..., None]).sum((1, 2)))
    remains = torch.as_tensor(step.remaining_prey.any((1, 2))).float()
    logit = 4.0 * model.end(remains[:, None])[:, 0]
    expected = -torch.nn.functional.softplus(logit * (2 * remains - 1))
    torch.testing.assert_close(terms.end, expected)


def test_samples_pay_as_the_rules_do_where_the_network_says_who_pays(data):
    """Whatever goes: everyone is paid 6 for each drift, and takers share the total that the network chose."""
    model = moves(data)
    states, actions, *_ = eval_of(data).tensors(slice(None), CPU)
    with torch.no_grad():
        model.reward[-1].bias.copy_(torch.tensor([0.0, -50.0]))  # always -4
        model.reward[-1].weight.zero_()
        for parameter in model.prey.parameters():
            parameter.zero_()  # each outcome is equally likely
    state = JointState.of(states, (5,))
    torch.manual_seed(0)
    after, rewards, _ = model.step(state, actions)
    gone = (state.prey < 16).sum(1) - (after.prey < 16).sum(1)
    assert 0 < (gone > 1).sum() < len(gone)
    own_pay = rewards - 6.0 * gone[:, None]
    takes = (actions == REMOVE) & (state.prey_here()[..., 0] > 0)
    still = (state.hunters[:, :, None] == after.prey[:, None]).any(2)
    took = takes & ~still
    sharers = (state.same_cell() * took[:, None] * took[..., None]).sum(2) + 1
    torch.testing.assert_close(own_pay[state.on_board()], (-4.0 / sharers)[state.on_board()])


def test_expected_rewards_by_hand():
    """Two agents on a drift that goes with probability 3/4: 6 for each, and -4 shared by those who took it."""
    model = ObjectWorldModel(1, 3, [-4.0, 0.0], kinds=1, leaves=False, public_pay=(6.0,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.hunter.rest[2].bias[0] = 20.0  # agents stay
        model.prey.rest[2].bias[1] = (
            np.log(3.0 * 3) / 4
        )  # logits: 0 of two steps and of staying, log 9 of leaving
        model.reward[4].bias[1] = 20.0  # 0 ..
        model.reward[0].weight[0, -1] = model.reward[2].weight[0, 0] = 1.0
        model.reward[4].weight[1, 0] = -40.0  # .. but -4 for who took part
    states = torch.tensor([[[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]], dtype=torch.uint8)
    found = model.predict(states, torch.tensor([[REMOVE, REMOVE, STAY]]))
    torch.testing.assert_close(found.rewards, torch.tensor([[4.0, 4.0, 6.0]]))
    torch.testing.assert_close(found.expected_rewards, torch.tensor([[3.0, 3.0, 4.5]]))
    torch.testing.assert_close(found.expected[0, -1], torch.tensor([1 / 12, 1 / 12, 1 / 12]))
    assert not found.most_likely[0, -1].any() and (found.reward_prob == 1).all()


def test_agents_are_alike(data):
    """Seats in another order: the same probabilities, in that order."""
    model = moves(data)
    states, actions, after, rewards, ends = eval_of(data).tensors(slice(None), CPU)
    order = [2, 0, 1]
    planes = [*order, 3, 4]
    found = model.log_prob(states, actions, after, rewards, ends)
    again = model.log_prob(states[:, planes], actions[:, order], after[:, planes], rewards[:, order], ends)
    torch.testing.assert_close(again, found)


@pytest.mark.parametrize("joint", [True, False])
def test_the_cached_model_is_the_model(joint, data):
    model, cases = moves(data, joint), eval_of(data, joint)
    states, actions, *_ = cases.tensors(slice(None), CPU)
    state = JointState.of(states, (5,))
    cached = CachedWorldModel(model)
    for expected, found in zip(
        model.step(state, actions, True), cached.step(state, actions, True), strict=True
    ):
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(found, expected)
        else:
            assert torch.equal(found.prey, expected.prey) and torch.equal(found.hunters, expected.hunters)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("kind", ["moves", "cells"])
def test_every_parameter_learns(kind, joint, data):
    args = train_world_model.Args(model=kind, actions="joint" if joint else "own")
    batches = TransitionBatches.of(data, CPU, own=not joint)
    index = np.arange(len(data))
    torch.manual_seed(0)
    model = make_model(args, batches, index, data, None)
    noise = ()
    if kind == "moves":
        noise = model.draw_noise(len(index), data.actions.shape[1], sum(batches.most))
    terms, infonce = model(*train_world_model.make_batch(model, batches, index, augment=True), noise)
    (infonce.sum() - terms.stack().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert terms.stack().isfinite().all() and infonce.isfinite().all()


def test_the_plain_model_sees_what_others_take():
    """A drift that goes far away pays an agent, too."""
    torch.manual_seed(0)
    model = CellWorldModel(1, 9, [0.0, 6.0], kinds=1, leaves=False, public_pay=(6.0,))
    states = torch.zeros(1, 4, 9, dtype=torch.uint8)
    states[0, [0, 1, 3], [0, 8, 8]] = 1
    rewards = [
        model.logits(states, torch.tensor([[STAY, action]])).rewards[0, 0] for action in (STAY, REMOVE)
    ]
    assert not torch.equal(*rewards)
    private = CellWorldModel(1, 9, [0.0, 6.0], kinds=1, leaves=False, public_pay=(0.0,))
    rewards = [
        private.logits(states, torch.tensor([[STAY, action]])).rewards[0, 0] for action in (STAY, REMOVE)
    ]
    assert torch.equal(*rewards)


def test_kinds_and_their_pay_must_fit():
    for kinds, pay in ((0, ()), (1, (0.0, 0.0)), (4, (0.0,) * 4)):
        for model in (ObjectWorldModel, CellWorldModel):
            with pytest.raises(ValueError, match="kinds: expected 1 to 3"):
                model(4, 4, [0.0], kinds=kinds, public_pay=pay)


# ---- pictures


def test_words_for_drifts():
    labels = figures.BoardLabels.of(GAME)
    assert labels == (("drift",), ("remove",), ("DRIFTS",))
    assert (
        figures.transition_text([UP, REMOVE, -1], [6.0, 2.0, 0.0], labels) == "0 ↑  1 remove  2 ?\npaid 6 2 0"
    )
    assert figures.BoardLabels.of(HuntRules.game) == figures.BoardLabels()


# ---- whole runs


def run(monkeypatch, script, *flags):
    """The script in this process. Returns: its exit code, 0 if it just ends."""
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, flags)])
    try:
        tracking.run(script.main, DataError)
    except SystemExit as stop:
        return stop.code
    return 0


def test_a_model_trained_on_one_board_is_right_on_a_larger_one(tmp_path, monkeypatch, capsys):
    """Through the command lines; then files of another game are refused."""
    monkeypatch.chdir(tmp_path)
    make_figures = judge.make_figures
    monkeypatch.setattr(
        judge, "make_figures", lambda *args: {} if make_figures(*args) else None
    )  # draws no pixels
    small = Rules(agents=3, drifts=6, blocks=1, height=4, width=4, horizon=30)
    large = Rules(agents=5, drifts=8, blocks=3, height=6, width=5, horizon=8)
    save_arrays("small.npz", played(small, 1500, unmasked=0.0).arrays())
    save_arrays("large.npz", played(large, 250, seed=2).arrays())
    save_arrays("hunt.npz", collect(Args(steps=100)).arrays())
    flags = ("--data", "small.npz", "--epochs", 12, "--batch-size", 128)
    assert run(monkeypatch, train_world_model, *flags) == 0
    folder = next((tmp_path / "wm_ckpts").iterdir())
    capsys.readouterr()
    assert run(monkeypatch, judge, "--checkpoint", folder, "--data", "large.npz") == 0
    out = capsys.readouterr().out
    found = json.loads((folder / "test" / "metrics.json").read_text())
    assert "obs_shape=(7, 6, 5), action_dim=6" in out and "inferred n_agents=5" in out
    assert "the rule counter reads 0 on the" in out and "the model learnt" not in out
    assert found["exact_transitions"] == found["exact_rewards"] == 1.0, found["exact_by_event"]
    assert found["violations_per_10k"]["argmax"].keys() == {"total", *KINDS}
    assert found["violations_per_10k"]["samples"]["total"] < 200
    assert found["floor"]["nll"] == 0.0 and found["events"]["shared_removal"] > 0
    assert (folder / "test" / "imagined_episode.gif").stat().st_size > 1000

    assert run(monkeypatch, judge, "--checkpoint", folder, "--data", "hunt.npz") == 2
    error = capsys.readouterr().err
    assert "expected a file of Snowdrift-v0, as the checkpoint's, found one of StagHunt-v0" in error
    assert len(error.splitlines()) == 1
