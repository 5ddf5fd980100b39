"""data/scores.py and data/reports.py: what is not already checked against formulas in test_observers.py."""

import numpy as np
import pytest

from data import reports, scores
from data.collect import Args, collect
from data.samples import load_samples
from data.trajectories import save_arrays
from tracking import figures


def test_reliability_by_hand():
    probs = np.array([[0.9, 0.1, 0], [0.92, 0.08, 0], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    confidence, accuracy, share = scores.reliability(probs, np.array([0, 1, 2, 0]), bins=10)
    np.testing.assert_allclose(confidence, [0.4, 0.5, 0.91])
    np.testing.assert_allclose(accuracy, [0.5, 0.0, 0.5])  # a tie of two is right by half
    np.testing.assert_allclose(share, [0.25, 0.25, 0.5])
    gaps = np.abs(confidence - accuracy) @ share
    assert scores.ece(probs, np.array([0, 1, 2, 0]), bins=10) == pytest.approx(gaps)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_probe_reads_what_is_there_and_no_more(classes):
    rng = np.random.default_rng(0)
    x, fold = rng.normal(size=(4000, 5)), rng.random(4000) < 0.5
    direction = rng.normal(size=(5, classes))
    clear = (x @ direction).argmax(1)  # three: each a wedge, which one line against the rest cuts well, not exactly
    assert scores.probe(100 * x + 7, clear, fold).mean() > (
        0.97 if classes == 2 else 0.8
    )  # whatever the scale and the origin
    assert scores.probe(x, rng.integers(0, classes, 4000), fold).mean() == pytest.approx(1 / classes, abs=0.03)
    noisy = np.where(rng.random(4000) < 0.2, (clear + 1) % classes, clear)
    if classes == 2:
        assert scores.probe(x, noisy, fold).mean() == pytest.approx(0.8, abs=0.03)
    bent = (np.abs(x[:, 0]) > 0.67).astype(int)
    assert scores.probe(x, bent, fold).mean() < 0.6  # not linear


def test_a_probe_is_judged_on_what_it_was_not_fitted_on():
    """With as many numbers as samples it would be right everywhere; on the other fold it only guesses."""
    rng = np.random.default_rng(0)
    x, classes = rng.normal(size=(200, 150)), rng.integers(0, 2, 200)
    assert scores.probe(x, classes, np.arange(200) % 2 == 0).mean() < 0.7


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npz"
    save_arrays(path, collect(Args(samples=1500)).arrays())
    return load_samples(path)


def test_boards_of_samples(samples):
    planes = samples.frames[samples.rows]
    np.testing.assert_array_equal(samples.boards[samples.board], planes[:, 2:])
    t = samples.trajectories
    changes = sum(
        (np.diff(t.obs[start + e : start + e + n + 1, 0, 2:].reshape(n + 1, -1).astype(int), axis=0) != 0).any(1).sum()
        for e, (start, n) in enumerate(zip(np.cumsum(t.episode_lengths) - t.episode_lengths, t.episode_lengths, strict=True))
    )
    assert len(samples.boards) == len(t.episode_lengths) + changes
    for board in range(len(samples.boards)):  # an episode's own, even where two episodes look alike
        assert len(np.unique(samples.episodes[samples.board == board])) <= 1


def test_who_samples_are(samples):
    t = samples.trajectories
    np.testing.assert_array_equal(samples.strategies, t.strategies[samples.episodes, samples.seats])
    assert (np.diff(samples.episodes) >= 0).all()
    belief = samples.posterior(samples.splits["all"])
    assert (belief[samples.ticks == 0] == 0.5).all() and belief.shape == (len(samples), 2)


def test_a_report_of_the_observer_itself(samples):
    """Judged as a model, bayes is at no distance from bayes, and the curves are its own."""
    index = samples.splits["all"]
    observed = samples.observers(index, samples.count_table())
    goals = samples.trajectories.policy_probs[samples.trajectories.active]
    belief = samples.posterior(index)
    z = np.log(belief.clip(1e-9))
    report = reports.of_actions(samples, index, observed, observed["bayes"], goals, samples.strategies.astype(int), z)
    report["test"] = scores.score(observed["bayes"], samples.actions)
    assert report["kl_to_bayes"] == pytest.approx(0, abs=1e-9) and report["goal"]["kl"] == pytest.approx(0, abs=1e-9)
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
    assert panel.get_title() == "NLL, nats" and len(panel.lines) == 4
    assert drawn["reliability"].axes[0].lines[1].get_label() == "MOA"


def test_nothing_is_claimed_of_what_is_not_trained(samples):
    index = samples.splits["test"]
    report = reports.of_actions(samples, index, {}, None, None, np.zeros(len(index), int), np.zeros((len(index), 2)))
    report["test"] = {"nll": None}
    assert report["kl_to_bayes"] is report["goal"] is report["probe"] is report["bayes"] is None
    assert reports.lines(report) == ["MOA: untrained"]
