"""Intervals and p values against cases that can be worked out by hand."""

import numpy as np
import pytest

from pipelines.study.statistics import holm, paired_bootstrap


def test_a_difference_that_is_everywhere_the_same_has_no_spread():
    found = paired_bootstrap([np.full((5, 30), 0.25), np.full((3, 30), 0.25)], draws=999)
    assert found.estimate == pytest.approx(0.25)
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))
    assert found.p == pytest.approx(2 / 1000)  # no draw at or below zero, one added


def test_no_difference_at_all_has_a_p_of_one():
    assert paired_bootstrap([np.zeros((4, 10))]).p == 1.0


def test_two_seeds_and_one_problem_give_the_four_draws_that_there_are():
    """Seeds with differences −1 and 2: a draw is −1, 0.5, 0.5 or 2, each a quarter of the time."""
    found = paired_bootstrap([np.array([[-1.0], [2.0]])], draws=40_000)
    assert found.estimate == 0.5
    assert (found.low, found.high) == (-1.0, 2.0)
    assert found.p == pytest.approx(2 * 0.25, abs=0.02)


def test_two_problems_and_one_seed_are_drawn_alike_for_every_base():
    """Problems with 0 and 1 in both bases: drawn apart, the mean over bases would be 0.25 or 0.75 as well."""
    one = np.array([[0.0, 1.0]])
    found = paired_bootstrap([one, one], draws=40_000)
    assert (found.low, found.high) == (0.0, 1.0)
    assert found.p == pytest.approx(2 * 0.25, abs=0.02)  # a quarter of the draws has the first problem twice


def test_every_base_counts_the_same_however_many_runs_it_has():
    assert paired_bootstrap([np.ones((9, 4)), np.zeros((1, 4))]).estimate == 0.5


def test_the_interval_of_many_problems_is_that_of_a_mean():
    """One run: mean ± 1.96 standard errors, when a difference varies over problems alone."""
    values = np.random.default_rng(1).normal(0.1, 1, 400)
    found = paired_bootstrap([values[None]], draws=20_000)
    error = values.std() / 20
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def test_turning_the_sign_turns_the_interval_and_keeps_p():
    values = np.random.default_rng(2).normal(0.05, 0.3, (3, 50))
    one, other = paired_bootstrap([values]), paired_bootstrap([-values])
    assert (one.estimate, one.low, one.high) == pytest.approx((-other.estimate, -other.high, -other.low))
    assert one.p == other.p


@pytest.mark.parametrize("differences", [[], [np.zeros((0, 5))], [np.zeros((2, 5)), np.zeros((2, 6))]])
def test_what_cannot_be_drawn_from_is_refused(differences):
    with pytest.raises(ValueError, match="equally many problems"):
        paired_bootstrap(differences)


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last may not be below the third
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
