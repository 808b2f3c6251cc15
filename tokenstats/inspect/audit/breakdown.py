"""Targets of several groups, how many of them are dropped, and where to look."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MOST_ROWS = 10
"""Rows that are remembered to look at."""


@dataclass
class Breakdown:
    """int64 [groups, 2] counts of targets and of those dropped, and each group's first rows that lose a token."""

    labels: Sequence[str]
    counts: np.ndarray = field(init=False)
    rows: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(self.labels), 2), np.int64)
        self.rows = [[] for _ in self.labels]

    def add(self, groups: np.ndarray, dropped: np.ndarray, rows: np.ndarray) -> None:
        """Count n tokens: groups [n], dropped boolean [n], and their rows [n], numbered over the store."""
        size = len(self.labels)
        lost = np.bincount(groups[dropped], minlength=size)
        self.counts += np.stack([np.bincount(groups, minlength=size), lost], axis=1)
        wanted = [group for group in np.flatnonzero(lost) if len(self.rows[group]) < MOST_ROWS]
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
