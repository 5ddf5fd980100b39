"""Interquartile means and their intervals, by hand."""

import math

import numpy as np
import pytest

from metrics.aggregate import bootstrap_iqm, half_width_of_few, iqm


def test_the_iqm_is_the_mean_of_the_middle_half():
    assert iqm(np.array([[100.0, 3.0, 4.0, -50.0], [1.0, 2.0, 5.0, 9.0]])) == (2 + 3 + 4 + 5) / 4
    assert iqm(np.array([0.0, 1.0, 2.0, 3.0, 100.0])) == 2.0
    assert iqm(np.array([1.0, 2.0, 3.0])) == 2.0, "a quarter of three is none"


def test_the_interval_of_a_constant_is_a_point():
    assert bootstrap_iqm([np.full((3, 4), 0.7), np.full((2, 5), 0.7)]) == pytest.approx((0.7, 0.7))


def test_runs_are_drawn_within_their_stratum():
    """Two runs of one task each, and a stratum whose runs are alike: the mean of all is one of three values, and half of the
    draws have each run once."""
    strata = [np.array([[0.0], [3.0]]), np.array([[6.0]])]
    assert bootstrap_iqm(strata, 400) == (2.0, 4.0)
    low, high = bootstrap_iqm([np.array([[0.0], [3.0]]), np.array([[9.0], [9.0]])], 400)
    assert (low, high) == (4.5, 6.0), "IQM of 0, 0, 9, 9 and of 3, 3, 9, 9"


def test_a_run_is_drawn_with_all_its_tasks():
    """Both tasks of a run sum to 1: so does every draw; tasks drawn apart would not."""
    assert bootstrap_iqm([np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])], 200) == (0.5, 0.5)


def test_the_same_seed_gives_the_same_interval():
    runs = [np.random.default_rng(1).normal(size=(5, 3))]
    assert bootstrap_iqm(runs, 100, seed=1) == bootstrap_iqm(runs, 100, seed=1)
    assert bootstrap_iqm(runs, 100, seed=1) != bootstrap_iqm(runs, 100, seed=2)


def test_intervals_of_few_runs_are_those_of_student():
    assert half_width_of_few(np.array([1.0, 3.0])) == pytest.approx(12.706)  # sd sqrt(2), over sqrt(2)
    assert half_width_of_few(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert math.isnan(half_width_of_few(np.array([1.0])))
