"""Sums without any rounding: the same whatever the order of the values and however they are cut into chunks."""

from fractions import Fraction

import numpy as np

_LOWEST = 1126
"""Every float64 is a whole multiple of 2**-1126, as it is taken apart here."""
_LOW_BITS = 27
_SLICE = 1 << 22  # so many 27-bit numbers add up to less than 2**53: exactly, in float64


class ExactSum:
    """Adds finite floats as whole numbers.

    A value is mantissa · 2**exponent; the mantissas of each exponent are summed as whole numbers, in two halves.
    """

    def __init__(self, values: np.ndarray | None = None) -> None:
        self._total = 0
        if values is not None:
            self.add(values)

    def add(self, values: np.ndarray) -> None:
        """Add every value of an array of finite floats."""
        for first in range(0, len(values), _SLICE):
            mantissa, exponent = np.frexp(values[first : first + _SLICE].astype(np.float64))
            whole = np.ldexp(mantissa, 53).astype(np.int64)
            place = exponent.astype(np.int64) - 53 + _LOWEST
            low = whole & ((1 << _LOW_BITS) - 1)
            for half, shift in ((whole >> _LOW_BITS, _LOW_BITS), (low, 0)):
                sums = np.bincount(place, weights=half.astype(np.float64))
                self._total += sum(int(sums[i]) << (int(i) + shift) for i in np.flatnonzero(sums))

    def __add__(self, other: "ExactSum") -> "ExactSum":
        total = ExactSum()
        total._total = self._total + other._total
        return total

    @property
    def value(self) -> Fraction:
        """The sum."""
        return Fraction(self._total, 1 << _LOWEST)
