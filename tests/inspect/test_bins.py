"""What a bin of a histogram holds: held against a plain walk over every row."""

from collections import Counter

import numpy as np
import pytest
from inspect_fixtures import store_with_masks

from tokenstats import Rule
from tokenstats.inspect.histograms import empty_distributions
from tokenstats.inspect.preview import open_preview
from tokenstats.inspect.rows.bins import MOST_HITS, tokens_of_bin
from tokenstats.inspect.rows.joint import bins_of_cell, cells_of, joint
from tokenstats.inspect.steering import steering


@pytest.mark.parametrize("column", ["entropy", "kl"])
def test_a_bin_lists_the_tokens_that_the_histogram_counts_in_it(column):
    store = store_with_masks()
    preview = open_preview(store, "warm")
    outcome = preview.decide(Rule(drop="top(entropy, 0.3) or top(kl, 0.2, per=sequence)"))
    counts = steering(preview, outcome.decisions, "dataset").counts[column]
    views = [preview.view(outcome, n) for n in range(store.manifest.sequences)]
    for number in {int(counts.argmax()), int(counts.nonzero()[0][-1])}:
        found = tokens_of_bin(preview, outcome, {column: range(number, number + 1)})
        low, high = found.edges[column]
        inside = [
            (view.number, i, int(view.ids[i]), not view.keep[i])
            for view in views
            for i in view.is_target.nonzero()[0]
            if low <= view.statistics[column][i] < high
        ]
        assert (
            (found.count, found.dropped) == (len(inside), sum(gone for *_, gone in inside)) == (counts[number], found.dropped)
        )
        assert [(hit.row, hit.token, hit.dropped) for hit in found.hits] == [
            (row, token, gone) for row, token, _, gone in inside[:MOST_HITS]
        ]
        every, gone = Counter(i for _, _, i, _ in inside), Counter(i for _, _, i, dropped in inside if dropped)
        assert all(every[i] == count and gone[i] == dropped for i, count, dropped in found.tokens)
        assert [count for _, count, _ in found.tokens] == sorted(every.values(), reverse=True)[: len(found.tokens)]


def test_a_cell_of_entropy_and_kl_counts_the_tokens_between_its_edges_and_lists_the_same():
    store = store_with_masks()
    preview = open_preview(store, "warm")
    outcome = preview.decide(Rule(drop="top(entropy, 0.3) or top(kl, 0.2, per=sequence)"))
    found = joint(preview, outcome, cells_of(preview))
    assert (found.counts.sum(), found.dropped.sum()) == (outcome.counts.targets, outcome.counts.dropped)
    values = [(d.targets.column((None, "entropy")), d.targets.column((None, "kl")), d.dropped) for d in outcome.decisions]
    entropy, kl, gone = (np.concatenate(of_parts) for of_parts in zip(*values, strict=True))
    for i, j in zip(*np.unravel_index(np.argsort(-found.counts, axis=None)[:12], found.counts.shape), strict=True):
        inside = between(entropy, found.edges["entropy"], i) & between(kl, found.edges["kl"], j)
        assert (found.counts[i, j], found.dropped[i, j]) == (inside.sum(), (inside & gone).sum())
        listed = tokens_of_bin(preview, outcome, bins_of_cell(i, j))
        assert (listed.count, listed.dropped) == (inside.sum(), (inside & gone).sum())
        assert listed.edges == {c: tuple(found.edges[c][n : n + 2]) for c, n in (("entropy", i), ("kl", j))}
    # the report's picture has the same counts, in bins half as wide
    whole = empty_distributions(store, "warm")
    for decisions in outcome.decisions:
        whole.add(decisions.targets, {"rule": decisions.dropped})
    assert abs(whole.joint.reshape(80, 2, 80, 2).sum(axis=(1, 3)) - found.counts).sum() <= 2  # at an edge, by rounding


def between(values: np.ndarray, edges: np.ndarray, number: int) -> np.ndarray:
    """The first cell holds what is smaller too, and the last what is larger."""
    low = -np.inf if number == 0 else edges[number]
    high = np.inf if number == len(edges) - 2 else edges[number + 1]
    return (values >= low) & (values < high)
