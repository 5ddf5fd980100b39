"""train_world_model.py and data/outcomes.py: what it prints and saves, what it says, how it goes on, what it refuses."""

import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from commands import run_script
from hypothesis import given, settings
from hypothesis import strategies as st

import tracking
import train_world_model
from benchmarks import regression
from benchmarks.regression import NETWORKS
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import TransitionBatches, load_transitions
from data.flatten import Args as FlatArgs
from data.flatten import flatten
from data.outcomes import LEAVE, STAYED, JointState, outcomes_of
from data.trajectories import save_arrays
from envs import Rules
from envs.core import TAKE
from envs.grid import symmetries
from metrics.laws import next_state_log_prob
from train_world_model import (
    MAX_COUNT,
    CachedWorldModel,
    CellWorldModel,
    CodeTable,
    ObjectWorldModel,
    effective_actions,
    hunter_features,
    make_batch,
    sample_or_argmax,
    select,
    with_certainty,
)

CPU = torch.device("cpu")
ROOT = Path(train_world_model.__file__).resolve().parent
CROWDED = Rules(height=4, width=4, blocks=2, hares=3, hunters=4, prey_moves=0.5, horizon=8)


def transitions(tmp_path, rules=None, samples=1500, seed=1, **flags):
    path = tmp_path / f"{seed}.npz"
    save_arrays(
        path, collect(CollectArgs(samples=samples, rules=rules or Rules(), seed=seed, **flags)).arrays()
    )
    return load_transitions(path, split=False)


def flat_states(data):
    return data.states.reshape(*data.states.shape[:2], -1)


def shaken(model, scale=0.5, seed=0):
    """Every parameter random and large enough to matter."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return model.eval()


def pair(data, index=slice(None)):
    """States, actions, next states, rewards, ends of some transitions as tensors."""
    states = torch.as_tensor(flat_states(data))
    tensors = (
        torch.as_tensor(a[index]) for a in (data.before, data.actions, data.after, data.rewards, data.ends)
    )
    before, actions, after, rewards, ends = tensors
    return states[before], actions, states[after], rewards, ends


# ---- what became of each object


@settings(max_examples=12, deadline=None)
@given(
    prey_moves=st.sampled_from([0.0, 0.5, 1.0]),
    size=st.sampled_from([(4, 4), (3, 6)]),
    hares=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_way_leads_to_the_next_state(tmp_path_factory, prey_moves, size, hares, seed):
    rules = Rules(
        height=size[0],
        width=size[1],
        blocks=1,
        hares=hares,
        stags=2,
        hunters=3,
        prey_moves=prey_moves,
        horizon=9,
    )
    data = transitions(tmp_path_factory.mktemp("x"), rules, samples=150, seed=seed)
    states, K = flat_states(data), size[0] * size[1]
    outcomes = outcomes_of(states[data.before], states[data.after], size, (2, hares))
    assert outcomes.possible.all()
    model = ObjectWorldModel(*size, reward_values=[0.0, 1.0])
    batch = outcomes.batch(np.arange(len(data)))
    boards = JointState.of(torch.as_tensor(states[data.before]), (2, hares))
    hunters = select(model.outcome_cells[boards.hunters], batch.hunters)
    prey = select(model.outcome_cells[boards.prey[batch.row]], batch.prey)
    led = JointState(boards.blocks[batch.row], hunters[batch.row], prey, (2, hares)).planes().numpy()
    np.testing.assert_array_equal(led, states[data.after][batch.row.numpy()])
    ways = {(int(r), *p.tolist()) for r, p in zip(batch.row, batch.prey, strict=True)}
    assert len(ways) == len(batch.row) and int(batch.way.max()) + 1 == batch.ways
    for cells in (hunters, prey):
        assert int(cells.max()) <= K


def test_two_hares_that_look_alike():
    """Hares on cells 0 and 1, one on cell 1 after: one stayed there, or one came there as the other left."""
    before, after = np.zeros((1, 4, 9), np.uint8), np.zeros((1, 4, 9), np.uint8)
    before[0, 0, 8], after[0, 0, 5] = 1, 1  # the hunter went up
    before[0, 3, [0, 1]], after[0, 3, 1] = 1, 1
    found = outcomes_of(before, after, (3, 3), (1, 2))
    assert found.possible.all() and found.hunters.tolist() == [[0]]
    assert sorted(map(tuple, found.prey[:, 1:].tolist())) == [(3, LEAVE), (LEAVE, STAYED)]


def test_what_goes_too_far_is_not_possible():
    base = np.zeros((1, 4, 9), np.uint8)
    base[0, 0, 0] = base[0, 2, 4] = 1
    for plane, cell in (
        (0, 2),
        (0, 4),
        (2, 8),
        (2, 0),
        (1, 3),
        (3, 7),
    ):  # hunter, hunter, stag, stag, block, a new hare
        after = base.copy()
        after[0, plane] = 0
        after[0, plane, cell] = 1
        assert not outcomes_of(base, after, (3, 3), (1, 1)).possible.any(), (plane, cell)
    assert outcomes_of(base, base, (3, 3), (1, 1)).possible.all()


def test_boards_and_back(tmp_path):
    states = torch.as_tensor(flat_states(transitions(tmp_path)))
    assert torch.equal(JointState.of(states, (1, 4)).planes(), states)
    assert torch.equal(JointState.of(states, (3, 9)).planes(), states)  # more slots than there are prey


# ---- the models


def every(data, own=False):
    return TransitionBatches.of(data, CPU, own)


@pytest.mark.parametrize("kind", [ObjectWorldModel, CellWorldModel])
@pytest.mark.parametrize("joint", [True, False])
def test_every_parameter_is_trained(kind, joint, tmp_path):
    data = transitions(tmp_path, CROWDED)
    batches = every(data, own=not joint)
    torch.manual_seed(0)
    model = kind(4, 4, [0.0, 1.0, 10.0], joint)
    noise = ()
    if kind is ObjectWorldModel:
        noise = model.draw_noise(len(data), data.actions.shape[1], sum(batches.most))
    terms, contrast = model(*make_batch(model, batches, np.arange(len(data)), augment=True), noise)
    (terms.stack().sum() + contrast.sum()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert contrast.shape == (len(data),) and (contrast >= 0).all()
    assert (contrast.mean() > 0) == (kind is ObjectWorldModel)


def test_what_becomes_of_an_action():
    """A step into a wall and a hunt of what is not there are STAY; what is not known stays unknown."""
    free_right, on_hare = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0])
    actions = torch.arange(-1, 7)
    found = effective_actions(free_right.expand(8, -1), on_hare.expand(8, -1), actions)
    assert found.tolist() == [-1, 4, 4, 4, 3, 4, 4, 6]


def test_moves_know_what_becomes_of_an_illegal_action(tmp_path):
    """Whatever the weights: asked for what is not legal, the same prediction and probability as for STAY."""
    data = transitions(tmp_path, samples=600, unmasked=0.6)
    states, asked, after, rewards, ends = pair(data)
    effective = torch.as_tensor(data.trajectories.actions.astype(np.int64))
    assert ((asked != effective).any(1)).sum() > 100
    model = shaken(ObjectWorldModel(8, 8, [0.0, 1.0, 10.0]))
    for one, other in zip(model.predict(states, asked), model.predict(states, effective), strict=True):
        torch.testing.assert_close(one, other)
    said = [model.log_prob(states, actions, after, rewards, ends) for actions in (asked, effective)]
    torch.testing.assert_close(*said)
    other = shaken(CellWorldModel(8, 8, [0.0, 1.0, 5.0]))
    assert not torch.equal(other.predict(states, asked).expected, other.predict(states, effective).expected)


def test_counts_go_up_to_eight():
    """Six hunters that hunt on one stag's cell: each count of them is a context of its own."""
    planes = torch.zeros(1, 9, 9, dtype=torch.uint8)
    planes[0, :6, 4] = planes[0, 7, 4] = 1
    model, seen = ObjectWorldModel(3, 3, [0.0, 10.0]), []
    for hunting in range(1, 7):
        actions = torch.tensor([[5] * hunting + [4] * (6 - hunting)])
        context = model._hunter_inputs(JointState.of(planes, (1, 1)), actions).context
        seen.append(context[0, 0])
        alone, _ = hunter_features(2)
        assert int(context[0, 0, alone : alone + MAX_COUNT].sum()) == hunting - 1
    assert len(torch.stack(seen).unique(dim=0)) == 6


def test_a_count_that_was_never_shown_reads_as_the_largest_that_was():
    """The weights of counts are zero before training, and without a gradient they stay so."""
    model = ObjectWorldModel(3, 3, [0.0, 10.0])
    alone, counts = hunter_features(2)
    assert (alone, counts) == (7, 3 * MAX_COUNT)
    for layer in (model.hunter.context, model.reward[0]):
        assert (layer.weight[:, alone : alone + counts] == 0).all()
        assert (layer.weight[:, :alone] != 0).all()


@pytest.mark.parametrize("kind", [ObjectWorldModel, CellWorldModel])
def test_ends_that_are_not_known_cost_nothing(kind, tmp_path):
    data = transitions(tmp_path, samples=600)
    model = shaken(kind(8, 8, [0.0, 1.0, 10.0]))
    index = np.arange(len(data))
    with_, _ = model(*make_batch(model, every(data), index, augment=False))
    data.ends = np.full_like(data.ends, np.nan)
    without, _ = model(*make_batch(model, every(data), index, augment=False))
    assert (without.end == 0).all() and with_.end.sum() < -10
    assert all(map(torch.equal, with_[:3], without[:3]))
    without.stack().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_end_hangs_on_whether_a_hunter_is_left():
    model = ObjectWorldModel(3, 3, [0.0, 1.0])
    left = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    hunters = torch.tensor([[0, 1], [0, 1], [0, 9]])
    prey = torch.tensor([[2, 9]]).expand(3, -1)
    boards = JointState(torch.zeros(3, 9), hunters, prey, (1, 1))
    with torch.no_grad():
        over, on = (4.0 * model.end(torch.tensor([[bit]]))[0, 0] for bit in (0.0, 1.0))
        torch.testing.assert_close(model._end_logit(boards, left, prey), torch.stack([on, over, over]))
    assert over != on


def test_a_wrong_class_is_any_of_the_others():
    """One object of three classes, 1 is right: 0 and 2 come equally often, 1 never; what is not there has none."""
    torch.manual_seed(0)
    log_probs, right = (
        torch.tensor([-1.0, -2.0, -4.0]).expand(4000, 1, 3),
        torch.ones(4000, 1, dtype=torch.int64),
    )
    model, there = ObjectWorldModel(3, 3, [0.0, 1.0]), torch.ones(4000, 1, dtype=torch.bool)
    shift, which = torch.randint(1, 3, (4000, 1)), torch.rand(4000, 1)
    found = model._wrong_class(log_probs, right, there, shift, which)
    assert found.unique().tolist() == [-2.0, 1.0] and float((found == 1.0).float().mean()) == pytest.approx(
        0.5, abs=0.03
    )
    assert (model._wrong_class(log_probs, right, ~there, shift, which) < -1e8).all()


def test_a_draw_comes_as_often_as_its_logit_says():
    torch.manual_seed(0)
    probs = torch.tensor([0.4, 0.3, 0.2, 0.1])
    drawn = sample_or_argmax(probs.log().expand(40_000, 4), most_likely=False)
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / 40_000, probs, atol=0.01, rtol=0)
    assert sample_or_argmax(probs.log(), most_likely=True) == 0


def test_what_is_a_million_times_less_likely_cannot_be(monkeypatch):
    """14 nats below the likeliest is drawn, 14.1 is not, however the noise falls."""
    noise = torch.tensor([1.0, 1e-30])  # Gumbel noise of 0 and of 69
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self: noise.expand_as(self).clone())
    logits = torch.tensor([[0.0, -13.9], [0.0, -14.1]])
    assert sample_or_argmax(logits, most_likely=False).tolist() == [1, 0]
    found = train_world_model.saturate(torch.tensor([13.9, -13.9, 14.1, -14.1]))
    assert found[:2].tolist() == pytest.approx([13.9, -13.9]) and found[2:].tolist() == [1e4, -1e4]


def test_where_a_prey_goes_does_not_tell_where_it_goes():
    """What a prey is given of those before it leaves itself out: else its probability would be told its outcome."""
    states, actions = one_hunter(8, 4, hare=4)
    model, boards = shaken(ObjectWorldModel(3, 3, [0.0, 1.0])), JointState.of(states, (1, 1))
    left, seen = torch.zeros(1, 1), None
    for cell in (4, 1, 5, 9):
        now = torch.tensor([[9, cell]])  # no stag; the hare stays, goes up, goes right, is gone
        features = model._prey_features(boards, actions, left, now)
        logits = model.prey(*features)[:, 1]
        assert seen is None or torch.equal(logits, seen)
        seen = logits


def test_expected_rewards_by_hand():
    """A hunter leaves with probability 3/4 and is then paid 10, else 0: 7.5 is expected, and P(reward > 0) is 3/4."""
    model = ObjectWorldModel(3, 3, [0.0, 10.0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.hunter.rest[2].bias[1] = (
            math.log(3.0 * 5) / 4
        )  # logits: 0 of the four steps and of staying, log 15 of leaving
        model.reward[0].weight[0, -1] = model.reward[2].weight[0, 0] = 1.0  # the bit "leaves"
        model.reward[4].weight[1, 0], model.reward[4].bias[1] = 20.0, -10.0
    states, actions = one_hunter(4, 4)
    said = model.predict(states, actions)
    assert float(said.expected[0, 0].sum()) == pytest.approx(0.25)
    assert float(said.expected_rewards) == pytest.approx(7.5) and float(said.reward_prob) == pytest.approx(
        0.75
    )
    assert said.rewards.tolist() == [[10.0]] and not said.most_likely[0, 0].any()


# ---- the plain model


def one_hunter(cell, action, hare=None, size=3):
    """One hunter on a cell of a board without blocks. Returns: states, actions."""
    planes = torch.zeros(1, 4, size * size, dtype=torch.uint8)
    planes[0, 0, cell] = 1
    if hare is not None:
        planes[0, 3, hare] = 1
    return planes, torch.tensor([[action]])


def test_cells_by_hand():
    """All weights zero but the biases: the window around the hunter, the rewards, the prey are what the biases say."""
    model = CellWorldModel(3, 3, [0.0, 2.0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.hunter[-1].bias[:] = torch.tensor(
            [-20.0] * 4 + [1.0] + [-20.0] * 4 + [0.0, 1.0]
        )  # on its own cell; paid 2
        model.prey[-1].bias[:] = torch.tensor([-20.0, -1.0])
    states, actions = one_hunter(0, 3)  # in the corner: five cells of its window are off the board
    said = model.predict(states, actions)
    here, paid, hare = (1 / (1 + math.exp(-x)) for x in (1.0, 1.0, -1.0))
    torch.testing.assert_close(said.expected[0, 0], torch.tensor([here] + [0.0] * 8))
    torch.testing.assert_close(said.expected[0, 2:], torch.tensor([[0.0] * 9, [hare] * 9]))
    assert said.most_likely[0, 0].tolist() == [1] + [0] * 8 and not said.most_likely[0, 1:].any()
    assert said.rewards.tolist() == [[2.0]] and said.reward_prob[0, 0] == pytest.approx(paid)
    assert said.expected_rewards[0, 0] == pytest.approx(2 * paid)
    right = states.clone()
    log_prob = model.log_prob(states, actions, right, torch.tensor([[2.0]]), torch.tensor([0.0]))
    assert float(log_prob) == pytest.approx(
        math.log(here) + math.log(paid) + 9 * math.log(1 - hare) + math.log(0.5), abs=1e-5
    )
    for cell, reward in ((5, 2.0), (0, 1.5)):  # two cells further on; a reward that is no class
        after, _ = one_hunter(cell, 0)
        assert (
            float(model.log_prob(states, actions, after, torch.tensor([[reward]]), torch.tensor([0.0])))
            < -1e8
        )
    blocked = states.clone()
    blocked[0, 1, 8] = 1
    assert float(model.log_prob(states, actions, blocked, torch.tensor([[2.0]]), torch.tensor([0.0]))) < -1e8


def test_samples_of_cells_come_as_often_as_they_say():
    torch.manual_seed(0)
    model, (states, actions) = shaken(CellWorldModel(3, 3, [0.0, 1.0, 4.0]), 0.3), one_hunter(4, 0, hare=1)
    said, n = model.predict(states, actions), 20_000
    planes, rewards, ends = model.sample(states.expand(n, -1, -1), actions.expand(n, -1))
    torch.testing.assert_close(planes.float().mean(0), said.expected[0], atol=0.015, rtol=0)
    assert float(rewards.mean()) == pytest.approx(float(said.expected_rewards), abs=0.05)
    nobody = planes[:, 0].amax(1) == 0
    for left, rate in ((0.0, ends[nobody]), (1.0, ends[~nobody])):
        expected = (4.0 * model.end(torch.tensor([left]))).sigmoid().detach()
        assert len(rate) < 50 or float(rate.float().mean()) == pytest.approx(float(expected), abs=0.08)


def test_cells_see_no_further_than_their_window(tmp_path):
    """A hunter that has left is nowhere and paid nothing; what changes three cells away changes nothing for a hunter."""
    data = transitions(tmp_path, samples=800)
    states, actions, *_ = pair(data)
    model = shaken(CellWorldModel(8, 8, [0.0, 1.0, 5.0]))
    said, gone = model.predict(states, actions), states[:, :4].amax(2) == 0
    assert gone.any() and not said.expected[:, :4][gone].any() and not said.rewards[gone].any()
    corner = (states[:, 0, [0, 1, 8, 9]].amax(1) > 0).nonzero()[0]  # hunter 0 near the first corner
    far = states[corner].clone()
    far[:, 4, 36:] = 1 - far[:, 4, 36:]
    torch.testing.assert_close(model.predict(far, actions[corner]).expected[:, 0], said.expected[corner, 0])


def test_cells_permute_with_the_seats(tmp_path):
    states, actions, *_ = pair(transitions(tmp_path, samples=800))
    model, order = shaken(CellWorldModel(8, 8, [0.0, 1.0, 5.0])), [2, 0, 3, 1]
    planes = [*order, 4, 5, 6]
    one, other = model.predict(states, actions), model.predict(states[:, planes], actions[:, order])
    torch.testing.assert_close(one.expected[:, planes], other.expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.expected_rewards[:, order], other.expected_rewards, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_cells_learn_what_becomes_of_illegal_actions(tmp_path, monkeypatch):
    """From `attempted` alone: on fresh boards nearly all transitions with an illegal action are right."""
    rules = Rules(height=5, width=5, blocks=3, hares=3, hunters=3, horizon=20)
    save_arrays(tmp_path / "x.npz", collect(CollectArgs(samples=15000, rules=rules, unmasked=0.5)).arrays())
    data = transitions(tmp_path, rules, samples=3000, seed=5, unmasked=0.5)
    states, actions, after, rewards, _ = pair(data)
    illegal = torch.as_tensor((data.actions != data.trajectories.actions).any(1))
    monkeypatch.chdir(tmp_path)
    flags = ("--model", "cells", "--epochs", 14, "--batch-size", 128)
    assert call(monkeypatch, "--data", "x.npz", *flags) == 0
    model, _ = train_world_model.load_world_model(run_folder(tmp_path))
    prediction = model.predict(states, actions)
    right = (prediction.most_likely == after).all(2).all(1) & (
        (prediction.rewards - rewards).abs() < 0.01
    ).all(1)
    assert illegal.sum() > 500 and right[illegal].float().mean() > 0.97


def test_samples_come_as_often_as_their_probability_says(tmp_path):
    """Sampling and log_prob are two programs: on a crowded board they must agree, outcome by outcome."""
    data = transitions(tmp_path, CROWDED, samples=300)
    states, actions, *_ = pair(data)
    crowd = int(states[:, -2:].sum((1, 2)).argmax())
    n, prey = 60_000, int(states[crowd, -2:].sum())
    model = shaken(ObjectWorldModel(4, 4, [0.0, 1.0, 10.0]), 0.5)
    one, act = states[crowd].expand(n, -1, -1), actions[crowd].expand(n, -1)
    torch.manual_seed(1)
    (first, second), draws = ({}, {}), []
    for counts in (first, second):  # which outcomes to look at, and how often they come
        draws.append(model.sample(one, act))
        rows = (
            torch.cat([draws[-1][0].flatten(1), draws[-1][1] * 60, draws[-1][2][:, None]], 1)
            .round()
            .to(torch.int16)
        )
        for i, row in enumerate(rows.numpy()):
            # A network that was not trained may put two prey on one cell: then a plane does not tell what happened.
            if draws[-1][0][i, -2:].sum() == prey:
                counts.setdefault(row.tobytes(), []).append(i)
    top = sorted(first, key=lambda key: -len(first[key]))[:30]
    index = torch.tensor([first[key][0] for key in top])
    planes, rewards, ends = (array[index] for array in draws[0])
    told = model.log_prob(one[index], act[index], planes, rewards, ends).exp().numpy() * n
    z = (np.array([len(second.get(key, [])) for key in top]) - told) / np.sqrt(told)
    assert told.min() > 20 and np.abs(z).max() < 4.5 and abs(z.mean()) < 0.8


def test_a_prediction_is_what_is_said(tmp_path):
    """One hunter and one hare: the expected planes and rewards are the mean over samples."""
    rules = Rules(height=4, width=4, blocks=2, stags=0, hares=1, hunters=1, prey_moves=0.5, horizon=6)
    states, actions, *_ = pair(transitions(tmp_path, rules, samples=40))
    model = shaken(ObjectWorldModel(4, 4, [0.0, 1.0]))
    on_hare = int((states[:, 0] & states[:, 3]).any(1).nonzero()[0, 0])
    n = 30_000
    for i in (0, on_hare):
        said = model.predict(states[i : i + 1], actions[i : i + 1])
        planes, rewards, _ = model.sample(states[i].expand(n, -1, -1), actions[i].expand(n, -1))
        hunter = said.expected[0, 0]
        np.testing.assert_allclose(planes[:, 0].float().mean(0), hunter, atol=0.015)
        np.testing.assert_allclose((rewards > 0).float().mean(0), said.reward_prob[0], atol=0.015)
        np.testing.assert_allclose(rewards.mean(0), said.expected_rewards[0], atol=0.015)
        gone = 1 - hunter.sum()
        assert (
            said.most_likely[0, 0].argmax() == hunter.argmax()
            if hunter.max() > gone
            else said.most_likely[0, 0].sum() == 0
        )


def test_directions_are_alike_by_construction(tmp_path):
    """A turned board and turned actions: the same probability (one prey of a kind, so that their order cannot change)."""
    rules = Rules(height=5, width=5, blocks=4, stags=1, hares=1, prey_moves=0.5)
    states, actions, after, rewards, ends = pair(transitions(tmp_path, rules, samples=400))
    model = shaken(ObjectWorldModel(5, 5, [0.0, 1.0, 10.0]))
    told = model.log_prob(states, actions, after, rewards, ends)
    for cells, turned in zip(*(torch.as_tensor(t) for t in symmetries(5, 5)), strict=True):
        again = model.log_prob(states[..., cells], turned[actions], after[..., cells], rewards, ends)
        torch.testing.assert_close(again, told, atol=1e-4, rtol=1e-4)
    assert told.std() > 0.1


def test_hunters_on_cells_of_their_own_may_sit_anywhere(tmp_path):
    """Permuting the seats of hunters that do not share a cell changes no probability."""
    states, actions, after, rewards, ends = pair(transitions(tmp_path))
    apart = (states[:, :4].sum(1) <= 1).all(1)
    model, order = shaken(ObjectWorldModel(8, 8, [0.0, 1.0, 10.0])), [2, 0, 3, 1]
    planes = [*order, 4, 5, 6]
    one = model.log_prob(states, actions, after, rewards, ends)
    other = model.log_prob(states[:, planes], actions[:, order], after[:, planes], rewards[:, order], ends)
    torch.testing.assert_close(one[apart], other[apart], atol=1e-4, rtol=1e-4)
    assert apart.sum() > 100


def test_with_own_actions_the_others_are_not_told(tmp_path):
    data = transitions(tmp_path)
    torch.manual_seed(0)
    batches, index = every(data, own=True), np.arange(len(data))
    told = []
    for random in (False, True, True):
        states, actions, *_ = batches.take(index, random)
        known = actions >= 0
        assert (known.sum(1) == 1).all() and (
            states[:, :-3].any(2) | ~known
        ).all()  # somebody who is on the board
        assert torch.equal(actions[known], torch.as_tensor(data.actions)[known])
        told.append(known.int().argmax(1))
    there = states[:, :-3].any(2)
    assert torch.equal(told[0], there.int().argmax(1)) and not torch.equal(told[1], told[2])
    assert torch.bincount(told[1], minlength=4).min() > 0.15 * len(index)


def test_unknown_rewards_cost_nothing(tmp_path):
    data = transitions(tmp_path)
    states, actions, after, rewards, ends = pair(data)
    model, hidden = shaken(ObjectWorldModel(8, 8, [0.0, 1.0, 10.0])), torch.full_like(rewards, float("nan"))
    outcome = outcomes_of(states.numpy(), after.numpy(), (8, 8), (1, 4)).batch(np.arange(len(data)))
    boards = JointState.of(states, (1, 4))
    (with_, _), (without, _) = (model(boards, actions, outcome, r, ends.float()) for r in (rewards, hidden))
    assert (without.rewards == 0).all() and with_.rewards.sum() < -100
    for part in ("hunters", "prey", "end"):
        assert torch.equal(getattr(with_, part), getattr(without, part))


def test_what_a_capture_pays_in_all(tmp_path):
    rules = Rules(stag_reward=7, hare_reward=3, horizon=20)
    data = transitions(tmp_path, rules, samples=6000)
    batches, index = every(data), np.arange(len(data))
    assert batches.public_pay(index) == (0.0, 0.0)
    assert batches.capture_totals(index, (0.0, 0.0)) == [0.0, 3.0, 7.0]


# ---- the cache


def test_a_code_table_computes_each_code_once(monkeypatch):
    """Also codes that share a slot, which is searched for."""
    monkeypatch.setattr(CodeTable, "BITS", 2)
    table = CodeTable(torch.device("cpu"))
    computed = []

    def compute(codes, places):
        computed.extend(codes[places].tolist())
        return (-2 * codes[places],)

    generator = torch.Generator().manual_seed(0)
    for n in (4, 50, 3, 200):
        codes = torch.randint(40, (n,), generator=generator) * 2**40
        for _ in range(2):
            rows = table.rows(codes, partial(compute, codes))
            assert torch.equal(table.columns[0][rows], -2 * codes)
    assert len(computed) == len(set(computed)) == 40


def test_what_is_certain_needs_no_draw():
    """The only class that is not RARE; between two that are both likely one is drawn."""
    logits, likeliest, certain = with_certainty(torch.tensor([[[0.0, 20.0, 5.0]], [[3.0, 3.5, -30.0]]]))
    assert logits.shape == (2, 3) and likeliest.tolist() == [1, 1] and certain.tolist() == [1, -1]


@pytest.mark.parametrize("actions", ["legal", "any"])
def test_a_cached_world_model_steps_as_the_model_does(actions, tmp_path):
    """Its most likely outcomes, rewards and ends, asked twice; the model, its board and the random stream are as before."""
    states, *_ = pair(transitions(tmp_path, CROWDED, samples=400))
    model = shaken(ObjectWorldModel(4, 4, [0.0, 1.0, 10.0]))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    cached = CachedWorldModel(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    boards = JointState.of(states, (1, 3))
    for _ in range(3):
        joint = torch.randint(7 if actions == "any" else 5, boards.hunters.shape)
        for _ in range(2):
            found = cached.step(boards, joint, most_likely=True)
            expected = model.step(boards, joint, most_likely=True)
            assert torch.equal(found[0].hunters, expected[0].hunters)
            assert torch.equal(found[0].prey, expected[0].prey)
            assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])
        boards = expected[0]
    cached.on(5, 6)
    assert model.board == (4, 4)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("leaves", [True, False])
def test_a_cached_world_model_samples_from_the_same_law(leaves):
    """Hunters on one cell, some on prey, and prey side by side, of networks that are sure of nothing: how often each ends
    where, is paid and ends, within 4.5 standard errors."""
    n = 6000
    torch.manual_seed(1)
    model = ObjectWorldModel(4, 4, [0.0, 1.0, 10.0], leaves=leaves, public_pay=(0.0, 2.0)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    blocks = torch.zeros(n, 16)
    blocks[:, 10] = 1.0
    hunters, prey = torch.tensor([[5, 5, 9]]).repeat(n, 1), torch.tensor([[5, 6, 9]]).repeat(n, 1)
    actions = torch.tensor([[TAKE, TAKE, TAKE + 1]]).repeat(n, 1)
    state = JointState(blocks, hunters, prey, (1, 2))

    def shares(world_model):
        after, rewards, ends = world_model.step(state, actions)
        cells = torch.cat([F.one_hot(after.hunters, 17), F.one_hot(after.prey, 17)], 1).flatten(1)
        paid = torch.stack([rewards > least for least in (0.0, 0.7, 1.5, 3.0, 7.0)], 2).flatten(1)
        events = torch.cat([cells, paid, ends[:, None]], 1).float()  # [n, e]
        return events.T @ events / n  # what an object does depends on those before it

    expected, found = shares(model), shares(CachedWorldModel(model))
    happens = expected > 0.002
    assert happens.sum() > 200 and (found[~happens] < 0.01).all()
    variance = (expected * (1 - expected) + found * (1 - found)) / n
    error = (found - expected).abs() / variance.clamp(min=1e-12).sqrt()
    assert error[happens].max() < 4.5


# ---- the script


def command(*flags, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return [sys.executable, str(ROOT / "train_world_model.py"), *map(str, flags)], dict(
        cwd=cwd, env=environment, text=True
    )


def call(monkeypatch, *flags):
    return run_script(monkeypatch, train_world_model, *flags)


def run_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "wm_ckpts").glob("wm__StagHunt-v0__*__1__*")
    return folder


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.npz"
    save_arrays(path, collect(CollectArgs(samples=8000)).arrays())
    return path


@pytest.fixture(scope="module")
def finished(data_file, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("run")
    words, how = command("--data", data_file, "--epochs", 12, "--batch-size", 64, cwd=cwd)
    done = subprocess.run(words, capture_output=True, **how)
    assert done.returncode == 0, done.stderr
    return cwd, done.stdout


def test_what_it_prints_and_saves(finished, data_file):
    cwd, out = finished
    folder, lines = run_folder(cwd), out.splitlines()
    assert lines[0] == f"[WM] Loaded {len(load_transitions(data_file))} transitions."
    assert "[WM] Begin offline training..." in lines and "[Epoch 1/12]" in lines
    assert f"[WM] model saved to: {folder.relative_to(cwd).as_posix()}" in lines
    loss = pd.read_csv(folder / "loss.csv")
    assert list(loss.epoch) == list(range(12)) and {
        "hunters",
        "prey",
        "rewards",
        "end",
        "total",
        "val_nll",
    } <= set(loss)
    assert loss.total.iloc[-1] == pytest.approx(
        loss[["hunters", "prey", "rewards", "end"]].iloc[-1].sum(), abs=1e-5
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"run", "seed", "args", "seconds", "transitions_per_second", "transitions", "test"} <= set(metrics)
    training = 12 * metrics["transitions"]["train"] / metrics["transitions_per_second"]  # seconds
    assert 0.1 < training / metrics["seconds"] < 1.0
    assert (folder / "wm_loss_curve.png").read_bytes()[:4] == b"\x89PNG" and not list(cwd.rglob("*.tmp"))
    model, checkpoint = train_world_model.load_world_model(folder)
    assert checkpoint["sizes"] == model.sizes and model.sizes["reward_values"] == [0.0, 1.0, 10.0]
    assert Rules(**checkpoint["rules"]) == Rules()
    assert {"model", "optimizer", "rng", "step", "epoch", "args", "sizes", "history"} <= set(checkpoint)


@pytest.mark.slow
def test_it_learns_the_rules_and_takes_them_to_other_boards(finished, tmp_path):
    """A few thousand transitions of 4 hunters on 8x8: exact on a fresh file, on RANDOM hunters, and on a larger board."""
    model, _ = train_world_model.load_world_model(run_folder(finished[0]))
    large = Rules(hunters=6, stags=2, hares=8, blocks=12, height=12, width=12)
    for seed, rules, names in (
        (7, Rules(), ("NS", "NH")),
        (8, Rules(), ("RANDOM",)),
        (9, large, ("NS", "NH")),
    ):
        data = transitions(tmp_path, rules, samples=6000, seed=seed, strategies=names)
        states, actions, after, rewards, ends = pair(data)
        said = model.on(rules.height, rules.width).predict(states, actions)
        right = (said.most_likely == after).all(2).all(1) & ((said.rewards - rewards).abs() < 0.01).all(1)
        assert right.float().mean() > 0.998, names
        assert ((said.end_prob > 0.5) == ends).all()
        law = next_state_log_prob(data.states[data.before], data.actions, data.states[data.after], rules)
        assert (law == 0).all()
    assert said.rewards.max() > 0


@pytest.mark.slow
def test_random_games_get_their_law(tmp_path, monkeypatch):
    """With prey that move the NLL comes near the exact floor, though the file does not say which hare is which."""
    rules = Rules(height=5, width=5, blocks=2, stags=1, hares=2, hunters=2, prey_moves=0.5, horizon=20)
    save_arrays(tmp_path / "x.npz", collect(CollectArgs(samples=20000, rules=rules)).arrays())
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", "x.npz", "--epochs", 8) == 0
    model, _ = train_world_model.load_world_model(run_folder(tmp_path))
    data = transitions(tmp_path, rules, samples=4000, seed=5)
    states, actions, after, rewards, ends = pair(data)
    nll = -model.log_prob(states, actions, after, rewards, ends).mean().item()
    floor = -next_state_log_prob(
        data.states[data.before], data.actions, data.states[data.after], rules
    ).mean()
    assert floor < nll < 1.05 * floor


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_flat_files_go_the_whole_way(own, tmp_path, monkeypatch, capsys):
    args = FlatArgs(out="x.npz", rows=3000, own_actions=own)
    save_arrays(tmp_path / "x.npz", flatten(args))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", "x.npz", "--epochs", 6, "--batch-size", 64) == 0
    out, metrics = capsys.readouterr().out, json.loads((run_folder(tmp_path) / "metrics.json").read_text())
    assert ("not everyone's action is in this file: --actions own" in out) == own
    assert metrics["args"]["actions"] == ("own" if own else "joint")
    assert (metrics["test"]["exact_transitions"] > 0.99) == (not own)


@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_the_contrastive_loss_is_logged(coef, data_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved, write = [], tracking.save_checkpoint
    monkeypatch.setattr(
        tracking, "save_checkpoint", lambda path, kept: (saved.append(kept), write(path, kept))
    )
    flags = ("--epochs", 2, "--max-transitions", 600, "--contrastive-coef", coef)
    assert call(monkeypatch, "--data", data_file, *flags) == 0
    assert saved[0]["train_seconds"] == saved[0]["epoch"] == saved[0]["step"] == 0
    loss = pd.read_csv(run_folder(tmp_path) / "loss.csv")
    assert ("contrastive" in loss) == (coef > 0)
    parts = loss.hunters + loss.prey + loss.rewards + loss.end + (coef * loss.contrastive if coef else 0)
    assert (
        loss.total.iloc[1] == pytest.approx(parts.iloc[1], rel=1e-3)
        and loss.total.iloc[1] < loss.total.iloc[0]
    )
    metrics = json.loads((run_folder(tmp_path) / "metrics.json").read_text())
    assert metrics["transitions"]["train"] == 600 and metrics["test"]["nll"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_regression_learns(network, tmp_path):
    """The earlier kind, which benchmarks/ keeps: its error falls, and every parameter is trained."""
    data = transitions(tmp_path, CROWDED, samples=1500)
    batches, index = every(data), np.arange(len(data))
    first, last = (
        regression.train(batches, index, (4, 4), network, 1, n, learning_rate=5e-3) for n in (1, 60)
    )
    states, actions, after, *_ = pair(data)
    errors = [
        float((model.predict(states, actions).expected - after).square().mean()) for model in (first, last)
    ]
    assert errors[1] < 0.9 * errors[0]
    loss = last.loss(*batches.take(index, random=False)[:4], contrast=0.1)
    last.zero_grad()
    loss.backward()
    assert not [name for name, p in last.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(data_file, tmp_path, monkeypatch):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    assert call(monkeypatch, "--data", data_file, "--epochs", 2) == 0
    words, how = command("--data", data_file, "--epochs", 2, cwd=tmp_path / "two")
    done = subprocess.run([*torchrun, *words[1:]], capture_output=True, **how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[WM] Begin offline training...") == 1
    one, two = (pd.read_csv(run_folder(tmp_path / name) / "loss.csv") for name in ("one", "two"))
    np.testing.assert_allclose(one.val_nll, two.val_nll, atol=1e-3)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch-size", 0], "--batch-size: must be at least 1, got 0"),
        (["--max-transitions", -1], "--max-transitions: must be at least 0"),
        (["--contrastive-coef", -1], "--contrastive-coef: must be a number of at least 0"),
        (["--learning-rate", "inf"], "--learning-rate: must be a positive number"),
        (["--model", "gan"], "'gan'"),
        (["--model", "cells", "--contrastive-coef", "0.1"], "--contrastive-coef: needs --model moves"),
        (["--data", "unmasked"], "unmasked: this file is for judging only"),
        (["--resume", "nowhere"], "nowhere: no checkpoint there"),
        (["--data", "nowhere.npz"], "nowhere.npz: no such file"),
    ],
)
def test_bad_settings(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, error = call(monkeypatch, *flags), capsys.readouterr().err.splitlines()
    assert code == 2 and len(error) == 1 and error[0].startswith("error: ") and says in error[0]
    assert not list(tmp_path.iterdir())


def test_a_run_of_the_former_regression_is_refused(finished, tmp_path, monkeypatch, capsys):
    checkpoint = torch.load(run_folder(finished[0]) / "last.pt", weights_only=True)
    for name in ("last.pt", "best.pt"):
        torch.save(checkpoint | {"args": checkpoint["args"] | {"model": "regression"}}, tmp_path / name)
    with pytest.raises(tracking.UsageError, match="found 'regression': edited, or made by another version"):
        train_world_model.load_world_model(tmp_path)
    assert call(monkeypatch, "--resume", tmp_path) == 2
    assert "last.pt: args.model: expected 'moves' or 'cells', found 'regression'" in capsys.readouterr().err


def test_a_vae_is_no_world_model(finished, tmp_path, monkeypatch, capsys):
    checkpoint = torch.load(run_folder(finished[0]) / "last.pt", weights_only=True)
    torch.save(checkpoint | {"kind": "pretrain_vae"}, tmp_path / "last.pt")
    assert call(monkeypatch, "--resume", tmp_path) == 2
    assert re.search(
        "expected a checkpoint of train_world_model.py, found one of pretrain_vae", capsys.readouterr().err
    )


def test_files_that_cannot_teach(data_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arrays = dict(np.load(data_file))
    rng = np.random.default_rng(0)
    arrays["rewards"] = np.where(arrays["active"], rng.random(arrays["rewards"].shape), 0).astype(np.float32)
    save_arrays(tmp_path / "odd.npz", arrays)
    assert call(monkeypatch, "--data", "odd.npz") == 2
    assert "odd.npz: rewards: expected at most 64 values" in capsys.readouterr().err
    save_arrays(tmp_path / "planes.npz", dict(obs=arrays["obs"][:50, 0], actions=arrays["actions"][:50, 0]))
    assert call(monkeypatch, "--data", "planes.npz") == 2
    assert "planes.npz: obs" in capsys.readouterr().err
