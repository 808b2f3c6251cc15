"""What the selections of a rule over the whole dataset come down to: numbers that any token can be held against."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tokenstats.masking.engine.sorted_runs import SortedRuns


@dataclass(frozen=True)
class Threshold:
    """Of top, bottom, random and quantile.

    Attributes:
        value: None where no token is taken, and for the quantile of no values.
        ties: Per part, how many of the tokens equal to the value are taken: the earlier ones.
    """

    value: float | None
    ties: Mapping[int, int] = field(default_factory=dict)

    def takes(self, values: np.ndarray, part: int, largest: bool) -> np.ndarray:
        """Boolean [n]: is a token of this part among the largest, or the smallest, that are taken?"""
        if self.value is None:
            return np.zeros(len(values), bool)
        taken = np.asarray(values > self.value if largest else values < self.value)
        taken[np.flatnonzero(values == self.value)[: self.ties.get(part, 0)]] = True
        return taken


@dataclass(frozen=True)
class Scale:
    """Of zscore (mean and standard deviation) and minmax (smallest value and range)."""

    centre: float
    width: float

    def of(self, values: np.ndarray) -> np.ndarray:
        """(values - centre) / width; 0 where all values of the dataset are equal."""
        moved = values.astype(np.float64) - self.centre
        return moved / self.width if self.width else np.where(np.isnan(moved), np.nan, 0.0)


@dataclass(frozen=True)
class Ranking:
    """Of percent_rank: all values of the dataset, in order."""

    runs: SortedRuns

    def of(self, values: np.ndarray) -> np.ndarray:
        """Smaller values / (all values - 1), float64 in [0, 1]; 0 where there is only one."""
        share = self.runs.smaller(values) / max(1, self.runs.count - 1)
        return np.where(np.isnan(values), np.nan, np.minimum(share, 1.0))


Aggregate = Threshold | Scale | Ranking
Aggregates = Mapping[str, Aggregate]
"""By :func:`key_of`."""


def key_of(selection: str, role: str | None) -> str:
    """The name of an aggregate: its selection's text, and with per=role the role it is of."""
    return selection if role is None else f"{selection} of {role}"


def thresholds_of(aggregates: Aggregates) -> dict[str, float]:
    """The thresholds as a mask's manifest has them."""
    return {text: a.value for text, a in aggregates.items() if isinstance(a, Threshold) and a.value is not None}


def scales_of(aggregates: Aggregates) -> dict[str, tuple[float, float]]:
    """The scales as a mask's manifest has them: (centre, width)."""
    return {text: (a.centre, a.width) for text, a in aggregates.items() if isinstance(a, Scale)}
