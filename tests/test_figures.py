"""What the figures of tracking say: intervals, sizes, units, and nothing that says nothing."""

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

import train_world_model
from tracking import figures


def intervals(axis):
    """Half widths of all intervals that are drawn."""
    bars = [container for container in axis.containers if isinstance(container, ErrorbarContainer)]
    segments = [segment for bar in bars for lines in bar.lines[2] for segment in lines.get_segments()]
    return [abs(segment[1][1] - segment[0][1]) / 2 for segment in segments if len(segment) == 2]


def result(learner, half, episodes):
    return dict(learner=learner, learner_ci95=half, episodes=episodes)


def test_returns_have_their_intervals_and_sizes():
    results = {
        "teams": {"mixed": result(4.0, 0.25, 1024), "3NS": result(3.0, 0.5, 1024)},
        "untrained": {"mixed": result(0.5, 0.1, 1024)},
        "plan": {"mixed": result(4.1, 0.75, 256)},
    }
    adaptation = {
        team: [dict(episode=i, learner=2.0, learner_ci95=0.125) for i in (1, 2, 3)]
        for team in ("mixed", "3NS")
    }
    drawn = figures.of_returns(results, adaptation, 64)
    (axis,) = drawn["teams"].axes
    assert sorted(intervals(axis)) == pytest.approx([0.25, 0.5, 0.75])
    (legend,) = drawn["teams"].legends
    assert axis.get_legend() is None, "it would lie over a bar"
    assert [text.get_text() for text in legend.get_texts()] == ["teams, n = 1,024", "plan, n = 256"]
    (axis,) = drawn["adaptation"].axes
    assert intervals(axis) == pytest.approx([0.125] * 6)
    assert "n = 64 boards" in drawn["adaptation"].get_suptitle() and len(drawn["adaptation"].legends) == 1
    alone = figures.of_returns(results, {"mixed": adaptation["mixed"]})["adaptation"]
    assert not alone.legends and alone.axes[0].get_legend() is None


def test_learning_curves_go_by_steps_and_show_the_evaluations():
    history = [
        dict(update=i, steps=1000 * i, episodic_return=float(i), entropy=1.0, explained_variance=np.nan)
        for i in (1, 2, 3)
    ]
    evaluations = [dict(steps=2000, learner=2.5, learner_ci95=0.5, episodes=64)]
    figure = figures.of_ppo(history, evaluations, "mixed")
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["return of an episode", "entropy of the policy, nats"], "no empty panels"
    first, second = figure.axes
    assert first.lines[0].get_xdata().tolist() == [1000, 2000, 3000] and first.get_xlabel() == figures.STEPS
    assert intervals(first) == pytest.approx([0.5])
    assert "64 episodes" in first.get_legend().get_texts()[1].get_text() and second.get_legend() is None


def test_panels_without_numbers_are_left_out_and_epochs_are_whole():
    panels = {"loss": {"train": [3.0, 2.0], "val": [2.5, 2.25]}, "nothing": {"val": [np.nan, np.nan]}}
    figure = figures.curves(panels | {"KL": {"val": [1.0, 1.0]}}, {"loss": {"bayes": 1.5}}, "epoch")
    loss, kl = figure.axes
    assert (loss.get_ylabel(), kl.get_ylabel()) == ("loss", "KL")
    assert all(tick == int(tick) for tick in loss.get_xticks())
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "val", "bayes 1.500"]
    assert kl.get_legend() is None, "a legend of one entry"


def test_a_figure_without_a_number_is_empty():
    """A run so short that no tick has samples enough."""
    assert figures.by_tick({"top-1": {"MOA": {}}}, "title").axes == []
    assert figures.curves({"loss": {"val": [np.nan]}}, {}, "epoch").axes == []


def test_seven_panels_are_three_beside_each_other():
    figure, axes = figures.new_panels(7)
    columns = {axis.get_subplotspec().colspan.start for axis in axes}
    assert len(figure.axes) == len(axes) == 7 and columns == {0, 1, 2}


def test_a_loss_that_falls_far_is_drawn_by_its_logarithm():
    history = [dict(epoch=0, hunters=1.0, total=1.0, val_nll=0.1, val_exact_transitions=0.9),
               dict(epoch=1, hunters=0.0, total=1e-4, val_nll=0.05, val_exact_transitions=1.0)]  # fmt: skip
    figure = figures.curves(train_world_model.loss_curves(history), {}, "epoch")
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == [
        "training loss",
        "validation: NLL, nats per transition",
        "validation: share of exact transitions",
    ]
    assert [axis.get_yscale() for axis in figure.axes] == ["symlog", "linear", "linear"]


def test_the_gap_to_bayes_has_a_panel():
    history = [dict(epoch=0, total=2.0, moa=0.7, val_nll=0.65, kl=1.0, val_kl=1.0)]
    actions = {"train": np.array([0, 1, 1])}
    drawn = figures.of_vae(history, dict(uniform=1.5, bayes=0.6), actions, ("UP", "DOWN"))
    gap = next(axis for axis in drawn["vae_loss_curve"].axes if "above bayes" in axis.get_ylabel())
    assert gap.lines[0].get_ydata() == pytest.approx([0.05]) and gap.lines[1].get_ydata()[0] == 0
    assert "train 3 samples" in drawn["class_distribution"].axes[0].get_title()


def test_recall_has_its_interval_and_the_number_of_samples():
    arrays = dict(
        confusion=np.array([[75, 25], [0, 0]]),
        recall={"MOA": [0.75, np.nan], "bayes": [0.5, np.nan]},
        reliability={"MOA": np.zeros((3, 1))},
        by_tick={"top-1": {"MOA": {0: 0.5}}, "empty": {"MOA": {}}},
    )
    drawn = figures.of_actions(arrays, ("UP", "DOWN"), "here")
    (axis,) = drawn["recall"].axes
    halves = sorted(intervals(axis))
    assert halves == pytest.approx([1.96 * np.sqrt(0.75 * 0.25 / 100), 1.96 * 0.05])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["UP\nn = 100", "DOWN\nn = 0"]
    assert [axis.get_ylabel() for axis in drawn["by_tick"].axes] == ["top-1"]
