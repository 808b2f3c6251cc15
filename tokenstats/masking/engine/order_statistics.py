"""Exact order statistics of any number of values, in bounded memory and any order of reading.

Floats become unsigned integers of the same order. A histogram of their upper 16 bits tells which of 65,536 bins holds the
wanted rank; the next pass looks only inside it. Once few values are left, they are looked at themselves. So two passes are
enough, unless millions of values agree in their upper bits: then as many as a float has 16 bits, and one.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tokenstats.masking.engine.multipass import Pass, Steps

_BINS = 1 << 16
_FEW = 1 << 22  # values that may be in memory at once, at most 12 bytes each


@dataclass
class Ordered:
    """The order of ``present`` values at the wanted ranks, counted from 0 at the smallest; ``missing`` counts the NaN.

    at:      the value; smaller: how many values are smaller than it
    equal:   by part, how many values are equal to it
    """

    present: int
    missing: int
    at: dict[int, float] = field(default_factory=dict)
    smaller: dict[int, int] = field(default_factory=dict)
    equal: dict[int, dict[int, int]] = field(default_factory=dict)


def share_of(f: int | float, n: int) -> int:
    """How many of n a selection takes: floor(f·n) of a share, as published code has it; a count, but no more than n."""
    return min(f, n) if isinstance(f, int) else int(f * n)


def order_statistics(wanted: Callable[[int, int], Iterable[int]], few: int = _FEW) -> Steps[Ordered]:
    """The values at the ranks ``wanted(present, missing)``. Parts are float32 or float64, all of one type.

    few: so many values, in the bins that hold the ranks, are few enough to be looked at
    """
    upper: _Upper = yield Pass(_upper_digits, _Upper.add, _Upper())
    found = Ordered(int(upper.histogram.sum()), upper.missing)
    ranks = sorted(set(wanted(found.present, found.missing)))
    assert all(0 <= rank < found.present for rank in ranks)
    if not ranks:
        return found
    # for each rank: the upper bits of the value, and its rank among the values that begin with them
    places = {rank: _descend(0, rank, upper.histogram) for rank in ranks}
    behind = {prefix: int(upper.histogram[prefix]) for prefix, _ in places.values()}
    lower = upper.bits - 16
    while lower and sum(behind.values()) > few:
        lower -= 16
        histograms = yield _digits_behind(list(behind), lower)
        places = {rank: _descend(prefix, within, histograms[prefix]) for rank, (prefix, within) in places.items()}
        behind = {prefix: int(histograms[prefix >> 16][prefix % _BINS]) for prefix, _ in places.values()}
    tallies: dict[int, _Tally] = yield _values_behind(list(behind), lower)
    for rank, (prefix, within) in places.items():
        key, smaller, found.equal[rank] = tallies[prefix].at(within)
        found.at[rank], found.smaller[rank] = _from_key(key, upper.bits), rank - within + smaller
    return found


def _descend(prefix: int, within: int, histogram: np.ndarray) -> tuple[int, int]:
    """The bin that holds a rank, behind its prefix, and the rank inside that bin."""
    upto = np.cumsum(histogram)
    digits = int(np.searchsorted(upto, within, side="right"))
    return prefix << 16 | digits, within - (int(upto[digits - 1]) if digits else 0)


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
        return [_digits(keys, shift) for keys in _behind(prefixes, shift + 16, values)]

    def fold(histograms: dict[int, np.ndarray], said: list[np.ndarray]) -> dict[int, np.ndarray]:
        for prefix, digits in zip(prefixes, said, strict=True):
            histograms[prefix] += np.bincount(digits, minlength=_BINS)
        return histograms

    return Pass(measure, fold, {prefix: np.zeros(_BINS, np.int64) for prefix in prefixes})


@dataclass
class _Tally:
    """The values behind one prefix: by part, which there are, rising, and how often each occurs."""

    parts: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def at(self, within: int) -> tuple[int, int, dict[int, int]]:
        """The key at a rank, how many keys here are smaller, and how often each part has it."""
        keys, counts = (np.concatenate(arrays) for arrays in zip(*self.parts.values(), strict=True))
        order = np.argsort(keys)
        upto = np.cumsum(counts[order], dtype=np.int64)
        key = keys[order[np.searchsorted(upto, within, side="right")]]
        equal = {part: int(own[mine == key].sum()) for part, (mine, own) in self.parts.items()}
        return int(key), int(counts[keys < key].sum(dtype=np.int64)), equal


def _values_behind(prefixes: list[int], shift: int) -> Pass:
    """A pass over the values that begin with one of the prefixes, their bits from ``shift`` up: the values themselves."""

    def measure(part: int, values: np.ndarray) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
        tallies = (np.unique(keys, return_counts=True) for keys in _behind(prefixes, shift, values))
        return part, [(keys, counts.astype(np.int32)) for keys, counts in tallies]

    def fold(tallies: dict[int, _Tally], said: tuple[int, list[tuple[np.ndarray, np.ndarray]]]) -> dict[int, _Tally]:
        part, found = said
        for prefix, tally in zip(prefixes, found, strict=True):
            tallies[prefix].parts[part] = tally
        return tallies

    return Pass(measure, fold, {prefix: _Tally() for prefix in prefixes})


def _behind(prefixes: list[int], shift: int, values: np.ndarray) -> Iterator[np.ndarray]:
    """For each prefix the keys that begin with it, as far as the bit at ``shift``."""
    keys, _ = _ordered_keys(values)
    before = keys >> keys.dtype.type(shift)
    for prefix in prefixes:
        yield keys[before == before.dtype.type(prefix)]


def _ordered_keys(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Unsigned integers in the order of the floats (-0.0 counts as 0.0) without the NaN, and their width in bits."""
    assert values.dtype in (np.float32, np.float64)
    bits = values.dtype.itemsize * 8
    missing = np.isnan(values)
    present = values[~missing] if missing.any() else values
    raw = (present + present.dtype.type(0.0)).view(f"i{values.dtype.itemsize}")
    flip = raw >> raw.dtype.type(bits - 1)  # all ones for a negative number
    flip |= np.iinfo(raw.dtype).min
    raw ^= flip
    return raw.view(f"u{values.dtype.itemsize}"), bits


def _digits(keys: np.ndarray, shift: int) -> np.ndarray:
    """The 16 bits at ``shift``."""
    return (keys >> keys.dtype.type(shift)).astype(np.uint16)


def _from_key(key: int, bits: int) -> float:
    top = 1 << (bits - 1)
    raw = key ^ top if key & top else ~key & ((1 << bits) - 1)
    unsigned, kind = (np.uint32, np.float32) if bits == 32 else (np.uint64, np.float64)
    return float(np.array([raw], unsigned).view(kind)[0])
