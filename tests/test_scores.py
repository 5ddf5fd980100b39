"""metrics/scores.py and metrics/reports.py: what is not already checked against formulas in test_observers.py."""

import numpy as np
import pytest
import torch

from data import load
from data.collect import Args, collect
from data.datasets import load_samples
from data.trajectories import save_arrays
from metrics import observers, reports, scores
from tracking import figures


def test_reliability_by_hand():
    probs = np.array([[0.9, 0.1, 0], [0.92, 0.08, 0], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    confidence, accuracy, share = scores.reliability(probs, np.array([0, 1, 2, 0]), bins=10)
    np.testing.assert_allclose(confidence, [0.4, 0.5, 0.91])
    np.testing.assert_allclose(accuracy, [0.5, 0.0, 0.5])  # a tie of two is right by half
    np.testing.assert_allclose(share, [0.25, 0.25, 0.5])
    gaps = np.abs(confidence - accuracy) @ share
    assert scores.ece(probs, np.array([0, 1, 2, 0]), bins=10) == pytest.approx(gaps)


def test_ece_bins_have_equal_width():
    """Fifteen by default: 0.66 and 0.67 fall into two of them. A confidence of 1 is in the last bin, with 0.95."""
    probs = np.array([[0.66, 0.34], [0.67, 0.33]])
    assert scores.ece(probs, np.array([0, 1])) == pytest.approx((0.34 + 0.67) / 2)
    assert scores.ece(probs, np.array([0, 1]), bins=10) == pytest.approx(abs(1 - 0.66 - 0.67) / 2)
    assert scores.reliability(probs, np.array([0, 1])).shape == (3, 2)
    probs, targets = np.array([[1.0, 0], [0.95, 0.05], [0.85, 0.15]]), np.array([0, 1, 1])
    assert scores.ece(probs, targets, bins=10) == pytest.approx((abs(1 - 1.95) + 0.85) / 3)
    confidence, accuracy, share = scores.reliability(probs, targets, bins=10)
    np.testing.assert_allclose(confidence, [0.85, 0.975])
    np.testing.assert_allclose(accuracy, [0, 0.5])
    np.testing.assert_allclose(share, [1 / 3, 2 / 3])


def test_probabilities_within_a_millionth_are_ties():
    for gap, credit in ((1e-6, 0.5), (1.01e-6, 0.0), (0.0, 0.5), (-1e-6, 0.5), (-1.01e-6, 1.0)):
        probs = np.array([[max(gap, 0.0), max(-gap, 0.0), -1.0]])
        assert scores.topk_credit(probs, np.array([1]), 1)[0] == credit, gap


def test_summarize_is_score_without_brier():
    probs = np.array([[0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    found = scores.score(probs, np.array([1, 3]))
    assert scores.summarize(probs, np.array([1, 3])) == {
        key: found[key] for key in ("top1", "top3", "nll", "ece")
    }


def test_the_probe_is_ridge_logistic_regression():
    """Its decision boundary is where another optimiser finds the optimum of sum log-loss + 0.01 / 2 * |w|^2, w with the
    intercept, of columns scaled to mean 0 and standard deviation 1; a constant column changes nothing."""
    grid = np.linspace(0, 3, 20_001)
    x = np.append([-1.0, -1.0, -0.9, 2.9, 0.0, 3.0], grid)
    classes = np.append([0, 0, 0, 1, 0, 1], (grid > 1.2).astype(int))
    fold = np.arange(len(x)) < 6
    design = torch.tensor(np.stack([(x - x.mean()) / x.std(), np.ones(len(x))], 1))
    weight = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimiser.zero_grad()
        target = torch.tensor(classes[fold], dtype=torch.float64)
        logits = design[fold] @ weight
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        (value := value + 0.01 / 2 * (weight**2).sum()).backward()
        return value

    optimiser.step(loss)
    expected = (design @ weight > 0).numpy()
    assert 1.0 < grid[expected[6:].argmax()] < 2.0, "it is on the grid, and not in the middle"
    for columns in (x[:, None], np.stack([np.full(len(x), 3.0), x], 1)):
        right = scores.probe(columns, classes, fold)
        assert np.array_equal(np.where(right, classes, 1 - classes)[~fold], expected[~fold])


def test_the_probe_converges_on_nearly_equal_columns():
    """Their difference tells the class: Newton's first steps are so long that they must be shortened."""
    rng = np.random.default_rng(0)
    x, difference = rng.normal(size=(2, 400))
    classes = (difference + 0.02 * rng.normal(size=400) > 0).astype(int)
    assert scores.probe(np.stack([x, x + 0.03 * difference], 1), classes, np.arange(400) < 40).mean() > 0.85


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_finds_linear_information_only(classes):
    rng = np.random.default_rng(0)
    x, fold = rng.normal(size=(4000, 5)), rng.random(4000) < 0.5
    direction = rng.normal(size=(5, classes))
    clear = (x @ direction).argmax(
        1
    )  # three: each a wedge, which one line against the rest cuts well, not exactly
    assert scores.probe(100 * x + 7, clear, fold).mean() > (
        0.97 if classes == 2 else 0.8
    )  # whatever the scale and the origin
    assert scores.probe(x, rng.integers(0, classes, 4000), fold).mean() == pytest.approx(
        1 / classes, abs=0.03
    )
    noisy = np.where(rng.random(4000) < 0.2, (clear + 1) % classes, clear)
    if classes == 2:
        assert scores.probe(x, noisy, fold).mean() == pytest.approx(0.8, abs=0.03)
    bent = (np.abs(x[:, 0]) > 0.67).astype(int)
    assert scores.probe(x, bent, fold).mean() < 0.6  # not linear


def test_the_probe_is_judged_on_the_other_fold():
    """With as many numbers as samples it would be right everywhere; on the other fold it only guesses."""
    rng = np.random.default_rng(0)
    x, classes = rng.normal(size=(200, 150)), rng.integers(0, 2, 200)
    assert scores.probe(x, classes, np.arange(200) % 2 == 0).mean() < 0.7


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npz"
    save_arrays(path, collect(Args(samples=1500)).arrays())
    return load_samples(path)


def test_boards_of_samples_equal_their_frames(samples):
    planes = samples.frames[samples.rows]
    np.testing.assert_array_equal(samples.boards[samples.board], planes[:, 2:])
    t = load(samples.trajectories.path)
    changes = sum(
        (np.diff(t.obs[start + e : start + e + n + 1, 0, 2:].reshape(n + 1, -1).astype(int), axis=0) != 0)
        .any(1)
        .sum()
        for e, (start, n) in enumerate(
            zip(np.cumsum(t.episode_lengths) - t.episode_lengths, t.episode_lengths, strict=True)
        )
    )
    assert len(samples.boards) == len(t.episode_lengths) + changes
    for board in range(len(samples.boards)):  # an episode's own, even where two episodes look alike
        assert len(np.unique(samples.episodes[samples.board == board])) <= 1


def test_samples_have_their_hunters_strategy(samples):
    t = samples.trajectories
    np.testing.assert_array_equal(samples.strategies, t.strategies[samples.episodes, samples.seats])
    assert (np.diff(samples.episodes) >= 0).all()
    belief = observers.sample_posterior(samples, samples.splits["all"])
    assert (belief[samples.ticks == 0] == 0.5).all() and belief.shape == (len(samples), 2)


def test_a_report_of_bayes_as_the_model(samples):
    """Judged as a model, bayes is at no distance from bayes, and the curves are its own."""
    index = samples.splits["all"]
    observed = observers.predictions(samples, index, observers.training_table(samples))
    goals = samples.trajectories.policy_probs[samples.trajectories.active]
    belief = observers.sample_posterior(samples, index)
    z = np.log(belief.clip(1e-9))
    report = reports.of_actions(
        samples, index, observed, observed["bayes"], goals, samples.strategies.astype(int), z
    )
    report["test"] = scores.score(observed["bayes"], samples.actions)
    assert report["kl_to_bayes"] == pytest.approx(0, abs=1e-9) and report["goal"]["kl"] == pytest.approx(
        0, abs=1e-9
    )
    for tick, found in report["probe"].items():
        if found["samples"] > 100 and int(tick) > 0:
            assert found["probe"] == pytest.approx(found["posterior"], abs=0.02)
    curves = report["arrays"]["by_tick"]
    assert curves["NLL, nats"]["MOA"] == curves["NLL, nats"]["bayes"]
    assert min(report["by_tick"][str(t)]["samples"] for t in curves["top-1"]["MOA"]) >= reports.LEAST
    text = "\n".join(reports.lines(report))
    assert "KL(bayes || MOA) 0.0000 nats" in text and "who is it, at tick 5: probe" in text
    drawn = figures.of_actions(report["arrays"], [str(a) for a in range(7)], "here")
    panel = drawn["by_tick"].axes[1]
    assert panel.get_ylabel() == "NLL, nats" and len(panel.lines) == 4
    assert drawn["reliability"].axes[0].lines[1].get_label() == "MOA"


def test_an_untrained_model_has_no_figures(samples):
    index = samples.splits["test"]
    report = reports.of_actions(
        samples, index, {}, None, None, np.zeros(len(index), int), np.zeros((len(index), 2))
    )
    report["test"] = {"nll": None}
    assert report["kl_to_bayes"] is report["goal"] is report["probe"] is report["bayes"] is None
    assert reports.lines(report) == ["MOA: untrained"]
