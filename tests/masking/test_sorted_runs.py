"""All values of a dataset in order: ranks, counts and ties are those of the values sorted in memory, however they are cut."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenstats.errors import StoreError
from tokenstats.masking.engine import sorted_runs
from tokenstats.masking.engine.sorted_runs import SortedRuns, on_disk, sorted_run

KINDS = st.sampled_from([np.float32, np.float64])


def cut(data: st.DataObject, values: list[float], kind: type) -> list[np.ndarray]:
    """The values, some of them several times, in up to five parts."""
    values = values + data.draw(st.lists(st.sampled_from(values), max_size=50))
    array = np.array(values, kind)
    return np.split(array, sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=4))))


def runs_of(parts: list[np.ndarray], keep=lambda run: run) -> SortedRuns:
    runs = {part: keep(sorted_run(values)) for part, values in enumerate(parts)}
    return SortedRuns(runs, sum(int(np.isnan(values).sum()) for values in parts))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=150), KINDS, st.data())
@settings(max_examples=150, deadline=None)
def test_ranks_counts_and_ties_are_those_of_the_sorted_values(values, kind, data):
    parts = cut(data, values, kind)
    everything = np.sort(np.concatenate(parts))
    ranks = data.draw(st.lists(st.integers(0, len(everything) - 1), min_size=1, max_size=4))
    runs = runs_of(parts, data.draw(st.sampled_from([on_disk, lambda run: run])))
    assert (runs.count, runs.missing) == (len(everything), 0)
    found = runs.at(ranks)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, everything[ranks])
    np.testing.assert_array_equal(runs.smaller(found), [(everything < value).sum() for value in found])
    for value in found:
        equal = {part: int((values == value).sum()) for part, values in enumerate(parts)}
        assert runs.equal(value) == {part: count for part, count in equal.items() if count}


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=200), st.integers(1, 50), st.data())
@settings(max_examples=60, deadline=None)
def test_merged_runs_count_as_the_others_do_whatever_a_bucket_holds(values, bucket, data):
    parts = cut(data, values, np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_runs, "_BUCKET", bucket)
        merged = runs_of(parts).merged()
    everything = np.concatenate(parts)
    others = [*values, 0.0, -0.0, 1e300, -math.inf]
    assert merged.smaller(np.array(others)).tolist() == [int((everything < x).sum()) for x in others]
    ends = [(run[0], run[-1]) for run in merged]
    assert all(last <= first for (_, last), (first, _) in pairwise(ends))


def test_infinities_have_their_place_and_what_is_missing_is_counted():
    runs = runs_of([np.array([np.inf, -np.inf, 0.0, np.nan, -0.0, 1.0])])
    assert (runs.count, runs.missing) == (5, 1)
    assert runs.at(range(5)).tolist() == [-np.inf, 0.0, 0.0, 1.0, np.inf]


def test_a_full_disk_is_an_error_that_says_how_much_room_it_takes(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sorted_runs.tempfile, "TemporaryFile", full)
    with pytest.raises(StoreError, match="takes 8 bytes for each value of the dataset: free some space, or set TMPDIR"):
        on_disk(np.zeros(10))
