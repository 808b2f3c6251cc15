"""Selections inside groups: the largest, the smallest, a quantile, of each sequence or turn.

``starts`` [G + 1] cuts the flat values into groups: group g is values[starts[g]:starts[g + 1]]; groups may be empty.
Among equal values the earlier token comes first.
"""

import numpy as np


def top_in_groups(values: np.ndarray, f: int | float, starts: np.ndarray) -> np.ndarray:
    """Boolean [n]: is the value among the floor(f·size) (or f) largest of its group?"""
    sizes = np.diff(starts)
    take = np.minimum(f, sizes) if isinstance(f, int) else np.floor(f * sizes).astype(np.int64)
    return first_in_groups(-values, take, starts)


def first_in_groups(values: np.ndarray, take: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Boolean [n]: is the value among the ``take[g]`` smallest of its group g?"""
    sizes = np.diff(starts)
    group = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((values, group))  # stable: equal values stay in order of position
    place = np.arange(len(values)) - starts[group]
    chosen = np.zeros(len(values), bool)
    chosen[order] = place < take[group]
    return chosen


def quantile_in_groups(values: np.ndarray, f: float, starts: np.ndarray) -> np.ndarray:
    """float64 [n]: each token's group's f-quantile, interpolated linearly between neighbours."""
    sizes = np.diff(starts)
    group = np.repeat(np.arange(len(sizes)), sizes)
    ordered = values[np.lexsort((values, group))].astype(np.float64)
    inhabited = sizes > 0
    place = np.maximum(sizes - 1, 0) * f
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(sizes - 1, 0))
    first = starts[:-1]
    quantiles = np.full(len(sizes), np.nan)
    at_low, at_high = ordered[(first + low)[inhabited]], ordered[(first + high)[inhabited]]
    between = (place - low)[inhabited]
    with np.errstate(invalid="ignore"):  # inf - inf, where nothing lies between
        quantiles[inhabited] = np.where(
            (at_low == at_high) | (between == 0) | np.isneginf(at_low), at_low, at_low + between * (at_high - at_low)
        )
    return quantiles[group]


def uniform(seed: int, row: np.ndarray, position: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from (seed, row, position) alone: the same token draws the same number wherever it is read.

    Two rounds of the splitmix64 finaliser (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) + row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        state = _mix(state + position.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
