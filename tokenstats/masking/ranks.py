"""Exact order statistics of any number of values, in bounded memory and any order of reading.

Floats become unsigned integers of the same order; 16 bits at a time, a histogram of 65,536 bins tells which bin holds
the wanted rank, and the next pass looks only inside it. float32 takes two passes, float64 four.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tokenstats.masking.passes import Pass, Steps

_BINS = 1 << 16


@dataclass
class Ordered:
    """Values at the wanted ranks, counted from 0 at the smallest, of ``present`` values; ``missing`` counts the NaN."""

    present: int
    missing: int
    at: Mapping[int, float] = field(default_factory=dict)


def share_of(f: int | float, n: int) -> int:
    """How many of n a selection takes: floor(f·n) of a share, as published code has it; a count, but no more than n."""
    return min(f, n) if isinstance(f, int) else int(f * n)


def order_statistics(wanted: Callable[[int, int], Iterable[int]]) -> Steps[Ordered]:
    """The values at the ranks ``wanted(present, missing)``. Parts are float32 or float64, all of one type."""
    upper: _Upper = yield Pass(_upper_digits, _Upper.add, _Upper())
    bits, histograms = upper.bits, {0: upper.histogram}
    found = Ordered(int(upper.histogram.sum()), upper.missing)
    ranks = sorted(set(wanted(found.present, found.missing)))
    assert all(0 <= rank < found.present for rank in ranks)
    prefixes, within = [0] * len(ranks), list(ranks)
    for level in range(bits // 16 if ranks else 0):
        if level:
            histograms = yield _digits_behind(sorted(set(prefixes)), bits - 16 * (level + 1))
        for i, prefix in enumerate(prefixes):
            upto = np.cumsum(histograms[prefix])
            bin_ = int(np.searchsorted(upto, within[i], side="right"))
            within[i] -= int(upto[bin_ - 1]) if bin_ else 0
            prefixes[i] = prefix << 16 | bin_
    found.at = {rank: _from_key(key, bits) for rank, key in zip(ranks, prefixes, strict=True)}
    return found


def quantile_ranks(f: float, n: int) -> list[int]:
    """The ranks that the f-quantile of n values lies between."""
    low = int((n - 1) * f)
    return [low, min(low + 1, n - 1)] if n else []


def quantile_of(found: Ordered, f: float) -> float:
    """The f-quantile with linear interpolation between neighbours; NaN of no values."""
    if not found.present:
        return math.nan
    low, high = (found.at[rank] for rank in quantile_ranks(f, found.present))
    between = (found.present - 1) * f - int((found.present - 1) * f)
    return low if high == low or not between or low == -math.inf else low + between * (high - low)


@dataclass
class _Upper:
    """How the upper 16 bits of the values are distributed, how many values are NaN, and how many bits a value has."""

    bits: int = 0
    missing: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def add(self, other: "_Upper") -> "_Upper":
        assert self.bits in (0, other.bits)
        return _Upper(other.bits, self.missing + other.missing, self.histogram + other.histogram)


def _upper_digits(part: int, values: np.ndarray) -> _Upper:
    keys, bits = _ordered_keys(values)
    return _Upper(bits, len(values) - len(keys), np.bincount(_digits(keys, bits - 16), minlength=_BINS))


def _digits_behind(prefixes: list[int], shift: int) -> Pass:
    """A pass over the values that begin with one of the prefixes: how their next 16 bits, at ``shift``, are distributed."""

    def measure(part: int, values: np.ndarray) -> list[np.ndarray]:
        keys, _ = _ordered_keys(values)
        digits, before = _digits(keys, shift), keys >> keys.dtype.type(shift + 16)
        return [digits[before == before.dtype.type(prefix)] for prefix in prefixes]

    def fold(histograms: dict[int, np.ndarray], said: list[np.ndarray]) -> dict[int, np.ndarray]:
        for prefix, digits in zip(prefixes, said, strict=True):
            histograms[prefix] += np.bincount(digits, minlength=_BINS)
        return histograms

    return Pass(measure, fold, {prefix: np.zeros(_BINS, np.int64) for prefix in prefixes})


def _ordered_keys(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Unsigned integers in the order of the floats (-0.0 counts as 0.0) without the NaN, and their width in bits."""
    assert values.dtype in (np.float32, np.float64)
    bits = values.dtype.itemsize * 8
    missing = np.isnan(values)
    present = values[~missing] if missing.any() else values
    raw = (present + present.dtype.type(0.0)).view(f"u{values.dtype.itemsize}")
    top = raw.dtype.type(1 << (bits - 1))
    return np.where(raw & top, ~raw, raw | top), bits


def _digits(keys: np.ndarray, shift: int) -> np.ndarray:
    """The 16 bits at ``shift``."""
    return (keys >> keys.dtype.type(shift)).astype(np.uint16)


def _from_key(key: int, bits: int) -> float:
    top = 1 << (bits - 1)
    raw = key ^ top if key & top else ~key & ((1 << bits) - 1)
    unsigned, kind = (np.uint32, np.float32) if bits == 32 else (np.uint64, np.float64)
    return float(np.array([raw], unsigned).view(kind)[0])
