"""How far a statistic moved from one scoring to another, over the same targets: exact, in one reading, in any order."""

from dataclasses import dataclass, field
from fractions import Fraction
from math import sqrt

import numpy as np

from tokenstats.masking.engine.exact_sum import ExactSum


@dataclass(frozen=True)
class Drift:
    """A statistic x of scoring a and y of scoring b over all targets, in the statistic's unit (nats).

    Attributes:
        mean_a, mean_b: Means of x and y.
        mean_absolute_change: Mean of |y - x|.
        correlation: Pearson's, cov(x, y) / (sd(x) sd(y)); None where one of them does not vary.
    """

    statistic: str
    scoring_a: str
    scoring_b: str
    mean_a: float
    mean_b: float
    mean_absolute_change: float
    correlation: float | None


@dataclass
class Moments:
    """Sums of two float32 columns. Products of two float32 are exact in float64, and so are the sums."""

    count: int = 0
    sums: dict[str, ExactSum] = field(default_factory=lambda: {k: ExactSum() for k in ("x", "y", "xx", "yy", "xy", "change")})

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add [n] values of each scoring."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        self.count += len(x)
        for name, values in (("x", x), ("y", y), ("xx", x * x), ("yy", y * y), ("xy", x * y), ("change", np.abs(y - x))):
            self.sums[name].add(values)

    def drift(self, statistic: str, scoring_a: str, scoring_b: str) -> Drift:
        """What the sums come to."""
        n = max(1, self.count)
        x, y, xx, yy, xy, change = (self.sums[k].value / n for k in ("x", "y", "xx", "yy", "xy", "change"))
        spread = (xx - x * x) * (yy - y * y)
        return Drift(
            statistic=statistic,
            scoring_a=scoring_a,
            scoring_b=scoring_b,
            mean_a=float(x),
            mean_b=float(y),
            mean_absolute_change=float(change),
            correlation=_divided(xy - x * y, spread) if spread else None,
        )


def _divided(covariance: Fraction, spread: Fraction) -> float:
    """cov / √spread. Squared and compared as fractions: the numbers may be too small for a float."""
    sign = (covariance > 0) - (covariance < 0)
    return sign * sqrt(float(covariance * covariance / spread))
