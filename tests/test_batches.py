"""Rows are put into batches once each, within the budget, beside others of about their length."""

import numpy as np
import pytest

from tokenstats.scoring.batches import plan_batches


@pytest.mark.parametrize("lengths", [[5], [3, 900, 4, 4, 2], list(range(1, 60)), [2] * 100])
@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_batches_hold_each_row_once_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)


def test_few_rows_of_unlike_lengths_are_not_padded_to_the_longest():
    lengths = np.array([1000, 990, 980, 300, 290, 280, 270, 12, 11])
    assert [sorted(lengths[b]) for b in plan_batches(lengths, 8192)] == [[980, 990, 1000], [270, 280, 290, 300], [11, 12]]


def test_with_equal_lengths_there_is_no_padding():
    lengths = np.array([7, 5, 7, 5, 5, 3])
    assert [sorted(lengths[b]) for b in plan_batches(lengths, 15, equal_lengths=True)] == [[7, 7], [5, 5, 5], [3]]
