"""What selections over the whole dataset come down to: numbers that any token can be held against."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tokenstats.masking.engine.external_rank import Ranking


@dataclass(frozen=True)
class Threshold:
    """Of top, bottom, random and quantile.

    value: None where no token is taken, and for the quantile of no values; ties: per part, how many of the tokens equal to
           it are taken
    """

    value: float | None
    ties: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """Of zscore (mean and standard deviation) and minmax (smallest value and range)."""

    centre: float
    width: float

    def of(self, values: np.ndarray) -> np.ndarray:
        """(values - centre) / width; 0 where all values of the dataset are equal."""
        moved = values.astype(np.float64) - self.centre
        return moved / self.width if self.width else np.where(np.isnan(moved), np.nan, 0.0)


Resolved = Threshold | Scale | Ranking


def key_of(selection: str, role: str | None) -> str:
    """The name of a resolved selection: its text, and with per=role the role it is of."""
    return selection if role is None else f"{selection} of {role}"


def thresholds_of(resolved: Mapping[str, Resolved]) -> dict[str, float]:
    """The thresholds as a mask's manifest has them."""
    return {text: r.value for text, r in resolved.items() if isinstance(r, Threshold) and r.value is not None}


def scales_of(resolved: Mapping[str, Resolved]) -> dict[str, tuple[float, float]]:
    """The scales as a mask's manifest has them: (centre, width)."""
    return {text: (r.centre, r.width) for text, r in resolved.items() if isinstance(r, Scale)}
