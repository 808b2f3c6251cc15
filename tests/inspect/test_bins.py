"""What a bin of a histogram holds: held against a plain walk over every row."""

from collections import Counter

import pytest
from inspect_fixtures import store_with_masks

from tokenstats import Rule
from tokenstats.inspect.preview import open_preview
from tokenstats.inspect.rows.bins import MOST_HITS, tokens_of_bin
from tokenstats.inspect.steering import steering


@pytest.mark.parametrize("column", ["entropy", "kl"])
def test_a_bin_lists_the_tokens_that_the_histogram_counts_in_it(column):
    store = store_with_masks()
    preview = open_preview(store, "warm")
    outcome = preview.decide(Rule(drop="top(entropy, 0.3) or top(kl, 0.2, per=sequence)"))
    counts = steering(preview, outcome.decisions, "dataset").counts[column]
    views = [preview.view(outcome, n) for n in range(store.manifest.sequences)]
    for number in {int(counts.argmax()), int(counts.nonzero()[0][-1])}:
        found = tokens_of_bin(preview, outcome, column, number)
        inside = [
            (view.number, i, int(view.ids[i]), not view.keep[i])
            for view in views
            for i in view.is_target.nonzero()[0]
            if found.low <= view.statistics[column][i] < found.high
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
