"""Two columns of the same tokens beside each other, exact, in one reading, in any order: how far a statistic moved from one
scoring to another, how far two masks weigh alike."""

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from math import sqrt

import numpy as np

from tokenstats.masking.engine.exact_sum import ExactSum


@dataclass(frozen=True)
class Paired:
    """What is known of two columns x and y of the same tokens, in their unit.

    Attributes:
        mean_a, mean_b: Means of x and y.
        mean_absolute_change: Mean of |y - x|.
        correlation: Pearson's, cov(x, y) / (sd(x) sd(y)); None where one of them does not vary.
    """

    mean_a: float
    mean_b: float
    mean_absolute_change: float
    correlation: float | None


@dataclass(frozen=True)
class Drift(Paired):
    """A statistic of scoring a and of scoring b over all targets, in nats."""

    statistic: str
    scoring_a: str
    scoring_b: str


@dataclass
class Moments:
    """Sums of two float32 columns. Products of two float32 are exact in float64, and so are the sums."""

    count: int = 0
    sums: dict[str, ExactSum] = field(default_factory=lambda: {k: ExactSum() for k in ("x", "y", "xx", "yy", "xy", "change")})

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add [n] values of each column."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        self.count += len(x)
        for name, values in (("x", x), ("y", y), ("xx", x * x), ("yy", y * y), ("xy", x * y), ("change", np.abs(y - x))):
            self.sums[name].add(values)

    def paired(self) -> Paired:
        """What the sums come to; all 0 where nothing was added."""
        n = max(1, self.count)
        x, y, xx, yy, xy, change = (self.sums[k].value / n for k in ("x", "y", "xx", "yy", "xy", "change"))
        spread = (xx - x * x) * (yy - y * y)
        return Paired(float(x), float(y), float(change), _divided(xy - x * y, spread) if spread else None)

    def drift(self, statistic: str, scoring_a: str, scoring_b: str) -> Drift:
        """The same of a statistic of two scorings."""
        return Drift(**asdict(self.paired()), statistic=statistic, scoring_a=scoring_a, scoring_b=scoring_b)


def _divided(covariance: Fraction, spread: Fraction) -> float:
    """cov / √spread. Squared and compared as fractions: the numbers may be too small for a float."""
    sign = (covariance > 0) - (covariance < 0)
    return sign * sqrt(float(covariance * covariance / spread))
