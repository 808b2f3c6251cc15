"""Entropy against KL on a page: how many targets each cell holds, and how many of them a rule drops.

A cell is two bins of the histogram of entropy by two of that of KL: single ones are too small for a pointer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenstats.inspect.histograms import BINS, empty_distributions
from tokenstats.inspect.preview import Outcome, Preview
from tokenstats.inspect.rows.bins import Bins
from tokenstats.inspect.tokens.payload import floats, ints

COLUMNS = ("entropy", "kl")
STEP = 2
CELLS = BINS // STEP


@dataclass(frozen=True)
class Joint:
    """Targets by entropy and KL.

    Attributes:
        counts, dropped: int64 [CELLS, CELLS], all of them and those that the rule drops.
        edges: For each column, [CELLS + 1] in nats.
    """

    counts: np.ndarray
    dropped: np.ndarray
    edges: dict[str, np.ndarray]


def cells_of(preview: Preview) -> tuple[np.ndarray, ...]:
    """For each part, int32 [n] the cell of each target: entropy's times ``CELLS``, and KL's. No rule changes them."""
    found = empty_distributions(preview.store, preview.scoring)

    def cells(values: list[np.ndarray]) -> np.ndarray:
        entropy, kl = (found.bins_of(c, of_column) // STEP for c, of_column in zip(COLUMNS, values, strict=True))
        return (entropy * CELLS + kl).astype(np.int32)

    return tuple(cells([targets.column((None, c)) for c in COLUMNS]) for targets in preview.parts)


def joint(preview: Preview, outcome: Outcome, cells: Sequence[np.ndarray]) -> Joint:
    """Count the preview's targets.

    Args:
        preview: The tokens.
        outcome: What the rule does to them.
        cells: Of :func:`cells_of`.
    """
    counts, dropped = np.zeros((2, CELLS * CELLS), np.int64)
    for of_part, decisions in zip(cells, outcome.decisions, strict=True):
        counts += np.bincount(of_part, minlength=counts.size)
        dropped += np.bincount(of_part[decisions.dropped], minlength=counts.size)
    found = empty_distributions(preview.store, preview.scoring)
    shape = CELLS, CELLS
    return Joint(counts.reshape(shape), dropped.reshape(shape), {c: found.edges(c)[::STEP] for c in COLUMNS})


def bins_of_cell(entropy: int, kl: int) -> Bins:
    """The bins of the histograms that a cell stands for, as :func:`tokenstats.inspect.rows.bins.tokens_of_bin` takes them."""
    return {c: range(i * STEP, (i + 1) * STEP) for c, i in zip(COLUMNS, (entropy, kl), strict=True)}


def joint_payload(found: Joint) -> dict[str, Any]:
    """What a page draws: the cells that hold anything, and the edges; arrays as in :mod:`tokenstats.inspect.tokens.payload`."""
    counts, dropped = found.counts.reshape(-1), found.dropped.reshape(-1)
    some = np.flatnonzero(counts)
    return {
        "size": CELLS,
        "cells": ints(some),
        "counts": ints(counts[some]),
        "dropped": ints(dropped[some]),
        "edges": [floats(found.edges[c]) for c in COLUMNS],
    }
