"""Targets of several groups, how many of them are dropped, and where to look."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenstats.inspect.mask_reader import count_by

MOST_ROWS = 10
"""Rows that are remembered to look at."""


@dataclass
class Breakdown:
    """Counts of targets and of those dropped, by group.

    Attributes:
        labels: Names of the groups.
        counts: int64 [groups, 2], targets and those dropped.
        rows: Each group's first rows that lose a token.
    """

    labels: Sequence[str]
    counts: np.ndarray = field(init=False)
    rows: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(self.labels), 2), np.int64)
        self.rows = [[] for _ in self.labels]

    def add(self, groups: np.ndarray, dropped: np.ndarray, rows: np.ndarray) -> None:
        """Count n tokens.

        Args:
            groups: Of each token, [n].
            dropped: Boolean [n].
            rows: Of each token, [n], numbered over the store, rising.
        """
        size = len(self.labels)
        counts = count_by(groups, dropped, size)
        self.counts += counts
        wanted = [group for group in np.flatnonzero(counts[:, 1]) if len(self.rows[group]) < MOST_ROWS]
        if not wanted:
            return
        first, last = rows[0], rows[-1]
        hit = np.zeros((size, last - first + 1), bool)
        hit[groups[dropped], rows[dropped] - first] = True
        for group in wanted:
            room = MOST_ROWS - len(self.rows[group])
            self.rows[group] += (first + np.flatnonzero(hit[group])[:room]).tolist()

    def add_group(self, group: int, dropped: np.ndarray, rows: np.ndarray) -> None:
        """Count n tokens that are all of one group; groups may overlap."""
        self.add(np.full(len(rows), group), dropped, rows)
