"""Which tokens are in a bin of a histogram, or in a cell of two: the most frequent, and where the first of them stand."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tokenstats.inspect.histograms import Distributions, empty_distributions
from tokenstats.inspect.preview import Outcome, Preview
from tokenstats.inspect.rows.search import Hit
from tokenstats.masking.engine.decisions import Decisions

Bins = Mapping[str, range]
"""For each column that is looked at, ``entropy`` or ``kl``, neighbouring bins of its histogram, counted from 0."""

MOST_TOKENS, MOST_HITS = 20, 50
"""Token ids and places that are listed; all are counted."""


@dataclass(frozen=True)
class BinTokens:
    """The previewed targets whose statistics lie in some bins.

    Attributes:
        edges: For each column, from where to where in nats; the first bin holds what is smaller too, the last what is larger.
        count, dropped: All of them, and those that the rule drops.
        tokens: The most frequent ids, each with its count and how many of these are dropped.
        hits: The first places, in the store's order.
    """

    edges: dict[str, tuple[float, float]]
    count: int
    dropped: int
    tokens: tuple[tuple[int, int, int], ...]
    hits: tuple[Hit, ...]


def tokens_of_bin(preview: Preview, outcome: Outcome, bins: Bins) -> BinTokens:
    """Look into the bins of one histogram, or into a cell of two.

    Args:
        preview: The tokens.
        outcome: What the rule does to them.
        bins: Which: a token lies in those of every column.
    """
    found = empty_distributions(preview.store, preview.scoring)
    firsts = [0, *accumulate(part.rows for part in preview.store.manifest.parts)]
    every: Counter[int] = Counter()
    gone: Counter[int] = Counter()
    hits: list[Hit] = []
    for decisions in outcome.decisions:
        ids = decisions.targets.column((None, "token_id"))
        inside = np.flatnonzero(_lies_in(found, decisions, bins))
        every.update(ids[inside].tolist())
        gone.update(ids[inside[decisions.dropped[inside]]].tolist())
        hits += _hits(decisions, inside[: MOST_HITS - len(hits)], firsts[decisions.targets.part])
    tokens = tuple((token, count, gone[token]) for token, count in every.most_common(MOST_TOKENS))
    edges = {c: (float(found.edges(c)[of.start]), float(found.edges(c)[of.stop])) for c, of in bins.items()}
    return BinTokens(edges, every.total(), gone.total(), tokens, tuple(hits))


def _lies_in(found: Distributions, decisions: Decisions, bins: Bins) -> np.ndarray:
    """Boolean [n]."""
    inside = np.ones(len(decisions.targets), bool)
    for column, wanted in bins.items():
        number = found.bins_of(column, decisions.targets.column((None, column)))
        inside &= (number >= wanted.start) & (number < wanted.stop)
    return inside


def _hits(decisions: Decisions, chosen: np.ndarray, first_row: int) -> list[Hit]:
    """The places of some targets, by their index among the part's."""
    targets = decisions.targets
    places = targets.place[chosen]
    rows = np.searchsorted(targets.offsets, places, side="right") - 1
    flags = decisions.dropped[chosen]
    found = zip(rows.tolist(), (places - targets.offsets[rows]).tolist(), flags.tolist(), strict=True)
    return [Hit(first_row + row, token, gone) for row, token, gone in found]
