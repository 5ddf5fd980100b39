"""The belief over goals, none of them and changes of mind: against a slow forward pass, and what it is chosen for."""

import json

import numpy as np
import pytest
import torch
from saved import FIRST_EPOCH, whole_checkpoint, write_run

import pretrain_vae
import tracking
from data.collect import Args, collect
from data.datasets import load_samples
from data.trajectories import save_arrays
from envs import Rules
from envs.core import legal_actions
from metrics import observers, scores
from pretrain_vae import BeliefLaw, filter_step

SMALL = Rules(height=4, width=5, blocks=3, hares=3, horizon=12)


def forward_pass(likelihood, prior, hazard):
    """Beliefs before each of T ticks, by sums over all paths' last two behaviours. likelihood: [T, C]."""
    count = len(prior)
    belief, found = [float(p) for p in prior], []
    for tick in range(len(likelihood)):
        found.append(belief)
        joint = [belief[c] * float(likelihood[tick][c]) for c in range(count)]
        total = sum(joint)
        after = [0.0] * count
        for before in range(count):
            for now in range(count):
                stays = (1.0 - hazard) * (before == now)
                after[now] += joint[before] / total * (stays + hazard * float(prior[now]))
        belief = after
    return np.array(found)


def behaviours(rng, rows, goals, actions=4):
    """Action probabilities of `goals` and, last, a uniform one: float32 [rows, goals + 1, actions]."""
    probs = rng.dirichlet(np.full(actions, 0.3), (rows, goals)).astype(np.float32)
    return pretrain_vae.add_none(probs, np.full((rows, actions), 1 / actions, np.float32))


@pytest.mark.parametrize("hazard", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("none", [0.0, 0.2])
def test_steps_are_the_forward_pass_of_a_hidden_markov_model(none, hazard):
    likelihood = np.random.default_rng(0).dirichlet(np.ones(4), 9)
    prior = BeliefLaw(none, hazard).prior(3)
    log_belief, found = prior.log(), []
    for tick in likelihood:
        found.append(log_belief.exp().numpy())
        log_belief = filter_step(log_belief, torch.as_tensor(tick).float().log(), hazard, prior)
    np.testing.assert_allclose(found, forward_pass(likelihood, prior, hazard), atol=1e-5)


def test_a_change_of_mind_is_seen_after_certainty():
    """200 ticks of one goal, 3 of another: without a hazard the belief would stand at e^-800."""
    prior = BeliefLaw(0.01, 0.002).prior(2)
    log_belief = prior.log()
    for tick in range(203):
        likelihood = torch.tensor([0.9, 0.01, 0.2] if tick < 200 else [0.01, 0.9, 0.2])
        log_belief = filter_step(log_belief, likelihood.log(), 0.002, prior)
    assert log_belief.exp()[1] > 0.95


@pytest.mark.parametrize("goals", [1, 2, 5])
def test_predictions_mix_the_behaviours_by_each_hunters_own_history(goals):
    rng, law = np.random.default_rng(goals), BeliefLaw(0.1, 0.05)
    hunter, tick = np.array([7, 7, 3, 7, 3, 7, 9]), np.array([0, 1, 0, 2, 1, 3, 0])
    probs, actions = behaviours(rng, 7, goals), rng.integers(0, 4, 7)
    belief, predicted = pretrain_vae.predict_by_belief(probs, actions, hunter, tick, law)
    for number in (3, 7, 9):
        rows = np.flatnonzero(hunter == number)
        expected = forward_pass(probs[rows, :, actions[rows]], law.prior(goals), law.hazard)
        np.testing.assert_allclose(belief[rows], expected, atol=1e-5)
    np.testing.assert_allclose(predicted, (belief[..., None] * probs).sum(1), atol=1e-6)


def test_hunters_turn_to_another_goal_and_never_on_their_first_action():
    """Three goals that each do one thing for sure; 300 hunters of the second one, four ticks each."""
    hunter = np.tile(np.arange(300), 4)  # tick after tick
    goal_probs = np.tile(np.eye(3, dtype=np.float32), (1200, 1, 1))
    actions = np.full(1200, 1)
    turned = pretrain_vae.turned_actions(goal_probs, actions, hunter, np.random.default_rng(0)).reshape(
        4, 300
    )
    assert (turned[0] == 1).all() and (turned[3] != 1).all()
    changes = (turned[1:] != turned[:-1]).sum(0)
    assert (changes == 1).all(), "once"
    assert set(turned[3]) == {0, 2} and len(set((turned == 1).sum(0))) == 3, "to any goal, at any tick"


def test_the_law_stays_within_its_cost(monkeypatch):
    """Hunters that keep their goal: the law may cost so much on them and no more; with more to spend it expects more."""
    rng = np.random.default_rng(0)
    hunter, tick = np.repeat(np.arange(400), 10), np.tile(np.arange(10), 400)
    probs = behaviours(rng, 4000, 2)
    actions = pretrain_vae.draw_actions(probs[np.arange(4000), hunter % 2], rng)
    history = (actions, hunter, tick)

    def nll(law):
        return scores.nll(pretrain_vae.predict_by_belief(probs, *history, law)[1], actions).mean()

    laws = []
    for cost in (0.0005, 0.0015, 0.02):
        monkeypatch.setattr(pretrain_vae, "MAX_COST", cost)
        laws.append(pretrain_vae.choose_belief_law(probs, *history, seed=1))
        assert nll(laws[-1]) - nll(BeliefLaw(0.0, 0.0)) <= cost
        assert laws[-1] == pretrain_vae.choose_belief_law(probs, *history, seed=1)
    assert laws[0].none + laws[0].hazard < laws[1].none + laws[1].hazard < laws[2].none + laws[2].hazard
    assert min(laws[2]) > 0


def test_the_law_is_chosen_on_the_first_hunters_alone(monkeypatch):
    """Those beyond BELIEF_HUNTERS, here uniform players, change nothing."""
    rng = np.random.default_rng(0)
    hunter, tick = np.repeat(np.arange(60), 10), np.tile(np.arange(10), 60)
    probs = behaviours(rng, 600, 2)
    actions = pretrain_vae.draw_actions(probs[np.arange(600), hunter % 2], rng)
    actions[300:] = rng.integers(0, 4, 300)
    first = slice(300)
    expected = pretrain_vae.choose_belief_law(probs[first], actions[first], hunter[first], tick[first], 1)
    assert expected != pretrain_vae.choose_belief_law(probs, actions, hunter, tick, 1)
    monkeypatch.setattr(pretrain_vae, "BELIEF_HUNTERS", 30)
    assert pretrain_vae.choose_belief_law(probs, actions, hunter, tick, 1) == expected


def test_the_exact_filter_is_the_forward_pass():
    t = collect(Args(samples=300, strategies=("NH", "RANDOM", "NS"), rules=SMALL, seed=4))
    belief, probs = observers.goal_filter(t, 0.1, 0.05)
    starts = np.cumsum(t.episode_lengths) - t.episode_lengths
    legal = legal_actions(t.obs[t.obs_row])
    uniform = legal / legal.sum(-1, keepdims=True)
    mixed = np.concatenate([t.policy_probs[:, :, [2, 0]], uniform[:, :, None]], 2)  # stag, hare, none
    for start, length in zip(starts.tolist(), t.episode_lengths.tolist(), strict=True):
        for seat in range(4):
            steps = np.arange(start, start + length)
            likelihood = mixed[steps, seat, :, t.actions[steps, seat]]
            expected = forward_pass(likelihood, [0.45, 0.45, 0.1], 0.05)
            np.testing.assert_allclose(belief[steps, seat], expected, atol=1e-6)
    np.testing.assert_allclose(probs, (belief[..., None] * mixed).sum(2), atol=1e-6)
    assert (
        observers.goal_filter(collect(Args(samples=99, strategies=("RANDOM",), rules=SMALL)), 0.1, 0.05)
        is None
    )


def test_without_either_number_the_exact_filter_is_bayes():
    t = collect(Args(samples=300, rules=SMALL))
    belief, probs = observers.goal_filter(t, 0.0, 0.0)
    np.testing.assert_allclose(belief[..., :2], observers.posterior(t), atol=1e-12)
    np.testing.assert_allclose(probs, observers.bayes(t), atol=1e-6)


def test_auroc_counts_pairs_and_half_of_the_ties():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(2, 9, 40) / 10, rng.integers(0, 7, 50) / 10
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert scores.auroc(positive, negative) == pytest.approx(np.mean(pairs))
    assert scores.auroc(positive, negative[:0]) is None


def test_reports_show_the_belief_and_how_well_it_knows_strangers(tmp_path, monkeypatch, capsys):
    """A file with RANDOM hunters, judged by a checkpoint whose goal heads are the exact strategies."""
    args = Args(samples=3000, strategies=("NS", "NH", "RANDOM"), rules=SMALL, seed=2)
    save_arrays(tmp_path / "x.npz", collect(args).arrays())
    samples = load_samples(tmp_path / "x.npz", split=False)
    index = samples.splits["all"]
    step = np.argwhere(samples.trajectories.active)
    exact = samples.trajectories.policy_probs[step[:, 0], step[:, 1], :2]
    predict = pretrain_vae.vae_reports.predict
    monkeypatch.setattr(
        pretrain_vae.vae_reports, "predict", lambda *asked: predict(*asked)._replace(goal_probs=exact)
    )
    model = pretrain_vae.VAE(4, 5, 12)
    batches = pretrain_vae.make_batches(samples, torch.device("cpu"), "moa")
    checkpoint = dict(table=None, pairs=None, strategies=[], counts=[1] * 7, goals_trained=1, epoch=1)
    checkpoint["belief"] = dict(none=0.01, hazard=0.002)
    report = pretrain_vae.judge(model, samples, batches, index, checkpoint)
    assert report["belief"]["nll"] == pytest.approx(report["bayes_filter"]["nll"], abs=1e-5)
    assert (
        report["by_strategy"]["RANDOM"]["belief"]["nll"]
        < report["by_strategy"]["RANDOM"]["uniform"]["nll"] + 0.4
    )
    none = report["none"]
    assert none["0"]["auroc"] == 0.5 and none["0"]["by_strategy"]["NS"] == pytest.approx(0.01)
    assert none["10"]["auroc"] > 0.97 and none["10"]["by_strategy"]["RANDOM"] > 0.5
    assert none["10"]["by_strategy"]["NS"] < 0.1
    pretrain_vae.show_report(report, checkpoint, "here")
    printed = capsys.readouterr().out
    assert "MOA, a goal or none" in printed and "bayes, a goal or none" in printed
    assert "prior of none 0.01, changes 0.002 a tick" in printed and "AUROC" in printed
    json.dumps({key: value for key, value in report.items() if key != "arrays"})
    report = pretrain_vae.judge(model, samples, batches, index, checkpoint | {"belief": None})
    assert report["belief"] is report["bayes_filter"] is report["none"] is None


@pytest.mark.parametrize(
    "belief", [dict(none=0.1), dict(none=0.1, hazard=1.5), dict(none="a", hazard=0.1), [0.1]]
)
def test_a_belief_law_of_a_checkpoint_is_two_probabilities(belief, tmp_path):
    saved = whole_checkpoint(pretrain_vae, pretrain_vae.VAE(4, 4, 9), **FIRST_EPOCH)
    write_run(tmp_path / "run", saved | dict(belief=belief))
    with pytest.raises(tracking.UsageError, match="belief: expected two probabilities"):
        pretrain_vae.load_vae(tmp_path / "run")
