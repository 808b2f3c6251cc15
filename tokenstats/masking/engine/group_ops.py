"""Selections inside groups: the largest, the smallest, a quantile, a scale, of each sequence or turn.

``starts`` [G + 1] cuts the flat values into groups: group g is values[starts[g]:starts[g + 1]]; groups may be empty.
Among equal values the earlier token comes first. NaN stands for "no value": it counts to the size of which a share is
taken, but is never chosen, and all else is over the values there are.
"""

from itertools import pairwise

import numpy as np

from tokenstats.mixing import mixed


def take_of(f: int | float, starts: np.ndarray) -> np.ndarray:
    """int64 [G]: how many a selection takes of each group: floor(f·size), or f, but no more than there are."""
    sizes = np.diff(starts)
    return np.minimum(f, sizes) if isinstance(f, int) else np.floor(f * sizes).astype(np.int64)


def sorted_in_groups(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[n] the values of each group in rising order, NaN last."""
    ordered = values.copy()
    # one group at a time: ten times as fast as sorting all of them by group and value
    for start, end in pairwise(starts.tolist()):
        ordered[start:end].sort()
    return ordered


def first_in_groups(values: np.ndarray, take: np.ndarray, starts: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Boolean [n]: is the value among the ``take[g]`` smallest of its group g? ``ordered``: of :func:`sorted_in_groups`."""
    some = take > 0
    limit = np.full(len(take), -np.inf, values.dtype)
    limit[some] = ordered[(starts[:-1] + take)[some] - 1]
    limit[np.isnan(limit)] = np.inf  # fewer have a value than are to be taken
    of_token = np.repeat(limit, np.diff(starts))
    chosen = values < of_token
    room = take - count_in_groups(chosen, starts)
    equal = np.flatnonzero(values == of_token)
    group = np.searchsorted(starts, equal, side="right") - 1
    nth = np.arange(len(equal)) - np.searchsorted(equal, starts)[group]
    chosen[equal[nth < room[group]]] = True
    return chosen


def count_in_groups(flags: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """int64 [G]: how many flags of each group are set."""
    return np.diff(np.searchsorted(np.flatnonzero(flags), starts))


def quantile_in_groups(values: np.ndarray, f: float, starts: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """float64 [n]: each token's group's f-quantile, interpolated linearly between neighbours."""
    sizes = count_in_groups(~np.isnan(values), starts)
    inhabited = sizes > 0
    place = np.maximum(sizes - 1, 0) * f
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(sizes - 1, 0))
    first = starts[:-1]
    quantiles = np.full(len(sizes), np.nan)
    at_low, at_high = (ordered[(first + place)[inhabited]].astype(np.float64) for place in (low, high))
    between = (place - low)[inhabited]
    with np.errstate(invalid="ignore"):  # inf - inf, where nothing lies between
        quantiles[inhabited] = np.where(
            (at_low == at_high) | (between == 0) | np.isneginf(at_low), at_low, at_low + between * (at_high - at_low)
        )
    return quantiles[_group(starts)]


def zscore_in_groups(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float64 [n]: (x - mean) / standard deviation (of the population, ddof 0) of its group; 0 where all are equal."""
    group, low, _ = _extremes(values, starts)
    present = ~np.isnan(values)
    size = np.maximum(1, np.bincount(group[present], minlength=len(low)))
    with np.errstate(invalid="ignore", over="ignore"):
        # from the smallest value up: the mean of equal values is exactly that value
        above = values - low[group]
        centred = above - (np.bincount(group[present], above[present], len(low)) / size)[group]
        deviation = np.sqrt(np.bincount(group[present], np.square(centred[present]), len(low)) / size)[group]
        deviation[np.isinf(deviation)] = np.nan  # of squares that overflow: no number, rather than a score of 0
        return np.divide(centred, deviation, out=_zero_or_nan(centred), where=deviation != 0)


def minmax_in_groups(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float64 [n]: (x - smallest) / (largest - smallest) of its group; 0 where all are equal."""
    group, low, high = _extremes(values, starts)
    with np.errstate(invalid="ignore", over="ignore"):
        above, width = values - low[group], (high - low)[group]
        return np.divide(above, width, out=_zero_or_nan(above), where=width != 0)


def percent_rank_in_groups(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float64 [n] in [0, 1]: values of its group that are smaller / (group size - 1); 0 for a group of one."""
    group = _group(starts)
    order = np.lexsort((values, group))
    ordered, places = values[order], np.arange(len(values))
    fresh = np.ones(len(values), bool)
    fresh[1:] = (np.diff(group) > 0) | (ordered[1:] != ordered[:-1])
    first_equal = np.maximum.accumulate(np.where(fresh, places, 0))
    smaller = np.empty(len(values), np.int64)
    smaller[order] = first_equal - starts[group]
    size = np.bincount(group[~np.isnan(values)], minlength=len(starts) - 1)[group]
    return np.where(np.isnan(values), np.nan, smaller / np.maximum(1, size - 1))


def _extremes(values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each token's group, and each group's smallest and largest value (float64; NaN of none)."""
    low, high = np.full((2, len(starts) - 1), np.nan)
    inhabited = np.diff(starts) > 0
    if len(values):
        cuts = starts[:-1][inhabited]
        low[inhabited], high[inhabited] = np.fmin.reduceat(values, cuts), np.fmax.reduceat(values, cuts)
    return _group(starts), low, high


def _group(starts: np.ndarray) -> np.ndarray:
    """[n] which group a token belongs to."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def _zero_or_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.nan, 0.0)


def uniform(seed: int, row: np.ndarray, position: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from (seed, row, position) alone: the same token draws the same number wherever it is read."""
    with np.errstate(over="ignore"):
        state = mixed(np.uint64(seed) + row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        state = mixed(state + position.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
