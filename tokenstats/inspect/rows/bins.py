"""Which tokens are in a bin of a histogram: the most frequent of them, and where the first of them stand."""

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tokenstats.inspect.histograms import empty_distributions
from tokenstats.inspect.preview import Outcome, Preview
from tokenstats.inspect.rows.search import Hit
from tokenstats.masking.engine.decisions import Decisions

MOST_TOKENS, MOST_HITS = 20, 50
"""Token ids and places that are listed; all are counted."""


@dataclass(frozen=True)
class BinTokens:
    """The previewed targets whose statistic lies in one bin.

    Attributes:
        low, high: The bin's edges in nats; the first bin holds what is smaller too, the last what is larger.
        count, dropped: All of them, and those that the rule drops.
        tokens: The most frequent ids, each with its count and how many of these are dropped.
        hits: The first places, in the store's order.
    """

    low: float
    high: float
    count: int
    dropped: int
    tokens: tuple[tuple[int, int, int], ...]
    hits: tuple[Hit, ...]


def tokens_of_bin(preview: Preview, outcome: Outcome, column: str, number: int) -> BinTokens:
    """Look into a bin.

    Args:
        preview: The tokens.
        outcome: What the rule does to them.
        column: ``entropy`` or ``kl``.
        number: Of the bin, counted from 0.
    """
    bins = empty_distributions(preview.store, preview.scoring)
    firsts = [0, *accumulate(part.rows for part in preview.store.manifest.parts)]
    every: Counter[int] = Counter()
    gone: Counter[int] = Counter()
    hits: list[Hit] = []
    for decisions in outcome.decisions:
        ids = decisions.targets.column((None, "token_id"))
        inside = np.flatnonzero(bins.bins_of(column, decisions.targets.column((None, column))) == number)
        every.update(ids[inside].tolist())
        gone.update(ids[inside[decisions.dropped[inside]]].tolist())
        hits += _hits(decisions, inside[: MOST_HITS - len(hits)], firsts[decisions.targets.part])
    tokens = tuple((token, count, gone[token]) for token, count in every.most_common(MOST_TOKENS))
    low, high = bins.edges(column)[number : number + 2].tolist()
    return BinTokens(low, high, every.total(), gone.total(), tokens, tuple(hits))


def _hits(decisions: Decisions, chosen: np.ndarray, first_row: int) -> list[Hit]:
    """The places of some targets, by their index among the part's."""
    targets = decisions.targets
    places = targets.place[chosen]
    rows = np.searchsorted(targets.offsets, places, side="right") - 1
    flags = decisions.dropped[chosen]
    found = zip(rows.tolist(), (places - targets.offsets[rows]).tolist(), flags.tolist(), strict=True)
    return [Hit(first_row + row, token, gone) for row, token, gone in found]
