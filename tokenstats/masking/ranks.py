"""Exact order statistics of any number of values, in bounded memory and any order of reading.

Floats become unsigned integers of the same order; 16 bits at a time, a histogram of 65,536 bins tells which bin holds
the wanted rank, and the next pass looks only inside it. float32 takes two passes, float64 four.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

_BINS = 1 << 16
Reader = Callable[[], Iterable[np.ndarray]]
"""Yields the values in chunks, the same values each time it is called."""


def share_of(f: int | float, n: int) -> int:
    """How many of n a selection takes: floor(f·n) of a share, as published code has it; a count, but no more than n."""
    return min(f, n) if isinstance(f, int) else int(f * n)


def order_statistics(read: Reader, wanted: Callable[[int], list[int]]) -> tuple[list[float], int]:
    """The values at the ranks ``wanted(n)``, counted from 0 at the smallest, and n itself.

    Works on float32 or float64 chunks, all of one type. NaN is not allowed.
    """
    n, bits = 0, 0
    ranks: list[int] = []
    prefixes: list[int] = []
    level = 0
    while level == 0 or level * 16 < bits:
        histograms: dict[int, np.ndarray] = {}
        for values in read():
            keys, bits = _ordered_keys(values)
            shift = bits - 16 * (level + 1)
            for prefix in set(prefixes) if level else {0}:
                inside = keys if level == 0 else keys[(keys >> np.uint64(shift + 16)) == np.uint64(prefix)]
                counts = np.bincount(((inside >> np.uint64(shift)) & np.uint64(_BINS - 1)).astype(np.int64), minlength=_BINS)
                histograms[prefix] = histograms[prefix] + counts if prefix in histograms else counts
        if level == 0:
            n = int(histograms[0].sum()) if histograms else 0
            ranks = wanted(n)
            if not ranks:
                return [], n
            assert all(0 <= r < n for r in ranks)
            prefixes = [0] * len(ranks)
        for i, prefix in enumerate(prefixes):
            upto = np.cumsum(histograms[prefix])
            bin_ = int(np.searchsorted(upto, ranks[i], side="right"))
            ranks[i] -= int(upto[bin_ - 1]) if bin_ else 0
            prefixes[i] = prefix << 16 | bin_
        level += 1
    return [_from_key(key, bits) for key in prefixes], n


def dataset_quantile(read: Reader, f: float) -> float:
    """The f-quantile with linear interpolation between neighbours; NaN of no values."""
    values, n = order_statistics(read, lambda n: [int((n - 1) * f), min(int((n - 1) * f) + 1, n - 1)] if n else [])
    if not values:
        return float("nan")
    low, high = values
    between = (n - 1) * f - int((n - 1) * f)
    return low if high == low or not between or low == -math.inf else low + between * (high - low)


def dataset_top(read: Reader, f: int | float) -> tuple[float | None, int, list[int]]:
    """Threshold of the k largest (None: k is 0), how many values equal to it belong to them, and how many each chunk has."""
    taken = 0

    def rank(n: int) -> list[int]:
        nonlocal taken
        taken = share_of(f, n)
        return [n - taken] if taken else []

    values, _ = order_statistics(read, rank)
    if not values:  # a small share of few tokens takes none
        return None, 0, []
    threshold = values[0]
    above, ties = 0, []
    for chunk in read():
        above += int(np.count_nonzero(chunk > threshold))
        ties.append(int(np.count_nonzero(chunk == threshold)))
    return threshold, taken - above, ties


def _ordered_keys(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Unsigned integers in the order of the floats (-0.0 counts as 0.0), and their width in bits."""
    assert values.dtype in (np.float32, np.float64)
    bits = values.dtype.itemsize * 8
    raw = (values + values.dtype.type(0.0)).view(f"u{values.dtype.itemsize}")
    top = raw.dtype.type(1 << (bits - 1))
    return np.where(raw & top, ~raw, raw | top).astype(np.uint64), bits


def _from_key(key: int, bits: int) -> float:
    top = 1 << (bits - 1)
    raw = key ^ top if key & top else ~key & ((1 << bits) - 1)
    unsigned, kind = (np.uint32, np.float32) if bits == 32 else (np.uint64, np.float64)
    return float(np.array([raw], unsigned).view(kind)[0])
