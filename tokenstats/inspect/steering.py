"""Thresholds that are alive while they are held: every setting's effect, worked out once, so that a page only looks it up.

A threshold has settings 0 to S: 0 is off, and each drops what the one before drops and more. A token's *level* is the first
setting that drops it. With levels a page knows exactly, and without asking, which tokens any two settings drop together: those
whose level is at most the setting. The engine stays the authority: its decisions replace the page's when the pointer lets go.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenstats.inspect.histograms import BINS, Distributions, empty_distributions
from tokenstats.inspect.preview import Preview
from tokenstats.inspect.tokens.payload import floats, ints
from tokenstats.masking.engine.decisions import Decisions
from tokenstats.masking.engine.group_ops import take_of

SHARES = tuple(percent / 100 for percent in range(100))
"""Settings of a share: 0 to 99 %."""

NEVER = 255
"""The level of a token that no setting drops: it is protected, or below every threshold."""


@dataclass(frozen=True)
class Steering:
    """Of the unprotected targets of a preview, and of two thresholds with settings 0 to S.

    Attributes:
        levels: For each column, uint8 [n] of each part's targets.
        upto: int64 [S + 1, S + 1], how many tokens have a first level of at most i and a second of at most j; where there is
            one column, [S + 1, 1].
        by_bin: For each column, int64 [S + 1, BINS]: tokens of each bin of its histogram with a level of at most i.
        counts: For each column, int64 [BINS]: all targets, the protected ones too.
        edges: For each column, [BINS + 1] in nats.
        targets: How many targets there are, the protected ones too.
    """

    levels: dict[str, tuple[np.ndarray, ...]]
    upto: np.ndarray
    by_bin: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    edges: dict[str, np.ndarray]
    targets: int

    def dropped(self, first: int, second: int, both: bool) -> int:
        """How many tokens two settings drop together: those that either drops, or that both drop."""
        if self.upto.shape[1] == 1:
            return int(self.upto[first, 0])
        if both:
            return int(self.upto[first, second])
        return int(self.upto[first, -1] + self.upto[-1, second] - self.upto[first, second])


def steering(
    preview: Preview, decisions: Sequence[Decisions], scope: str, limits: Mapping[str, Sequence[float]] | None = None
) -> Steering:
    """Work out every setting's effect on a preview's tokens.

    Args:
        preview: The tokens.
        decisions: Of any rule with the same ``protect``, for each part: what is protected is taken from them.
        scope: Of shares: ``sequence`` or ``dataset``. Not looked at with limits.
        limits: For each column, rising limits in nats: setting i drops what lies above the i-th from the end. None: shares.
    """
    found = empty_distributions(preview.store, preview.scoring)
    free = [
        ~of_part.protected if of_part.protected is not None else np.ones(len(of_part.targets), bool) for of_part in decisions
    ]
    levels = {c: _levels(preview, c, scope, None if limits is None else limits[c]) for c in found.columns}
    size = NEVER + 1
    for of_column in levels.values():
        for level, is_free in zip(of_column, free, strict=True):
            level[~is_free] = NEVER
    flat = {c: np.concatenate(of_column) if of_column else np.zeros(0, np.uint8) for c, of_column in levels.items()}
    settings = len(SHARES) if limits is None else 1 + max(map(len, limits.values()))
    first, second, *_ = *flat.values(), np.zeros_like(next(iter(flat.values())))
    joint = np.bincount(first.astype(np.int64) * size + second, minlength=size * size).reshape(size, size)
    upto = joint.cumsum(0).cumsum(1)
    kept = [*range(settings), NEVER]  # the last line and column: whatever the other's level is
    bins = {c: _bins(found, preview, c) for c in found.columns}
    return Steering(
        levels=levels,
        upto=upto[np.ix_(range(settings), [0])] if len(flat) == 1 else upto[np.ix_(kept, kept)],
        by_bin={c: _by_bin(flat[c], bins[c], settings) for c in flat},
        counts={c: np.bincount(bins[c], minlength=BINS) for c in flat},
        edges={c: found.edges(c) for c in flat},
        targets=preview.targets,
    )


def _levels(preview: Preview, column: str, scope: str, limits: Sequence[float] | None) -> tuple[np.ndarray, ...]:
    if limits is not None:
        rising = np.asarray(limits, np.float64)
        of_parts = (targets.column((None, column)).astype(np.float64) for targets in preview.parts)
        above = (np.searchsorted(rising, values, side="left") for values in of_parts)  # how many limits lie below a value
        return tuple(np.where(count > 0, len(rising) - count + 1, NEVER).astype(np.uint8) for count in above)
    if scope == "sequence":
        return tuple(_share_levels(t.column((None, column)), t.sequence_starts) for t in preview.parts)
    values = np.concatenate([targets.column((None, column)) for targets in preview.parts])
    whole = _share_levels(values, np.array([0, len(values)]))
    return tuple(np.split(whole, np.cumsum([len(targets) for targets in preview.parts])[:-1]))


def _share_levels(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint8 [n]: the first share, in percent, with which ``top`` takes a value of its group; of equals the earlier first."""
    sizes = np.diff(starts)
    group = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((-values, group))  # stable: the earlier of equal values comes first
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - starts[:-1][group]
    # groups of one size share a table from rank to level
    distinct, which = np.unique(sizes, return_inverse=True)
    begins = np.concatenate([[0], np.cumsum(distinct)])
    tables = [_level_of_rank(int(size)) for size in distinct]
    table = np.concatenate(tables) if tables else np.zeros(0, np.uint8)
    return table[begins[which[group]] + rank]


def _level_of_rank(size: int) -> np.ndarray:
    """uint8 [size]: the first share that takes the largest, the second largest, … of so many."""
    taken = [0] + [int(take_of(share, np.array([0, size]))[0]) for share in SHARES[1:]]
    level = np.searchsorted(taken, np.arange(size), side="right")
    return np.where(level < len(SHARES), level, NEVER).astype(np.uint8)


def _bins(found: Distributions, preview: Preview, column: str) -> np.ndarray:
    """int64 [n] the bin of each target."""
    values = np.concatenate([targets.column((None, column)) for targets in preview.parts]) if preview.parts else np.zeros(0)
    return found.bins_of(column, values)


def _by_bin(level: np.ndarray, bins: np.ndarray, settings: int) -> np.ndarray:
    counted = np.bincount(level.astype(np.int64) * BINS + bins, minlength=(NEVER + 1) * BINS).reshape(-1, BINS)
    return counted.cumsum(0)[:settings]


def steering_payload(found: Steering, settings: Mapping[str, Sequence[float]], unit: str) -> dict[str, Any]:
    """What the histograms on a page steer with; arrays as in :mod:`tokenstats.inspect.tokens.payload`.

    Args:
        found: Of :func:`steering`.
        settings: What each setting of a column is called: a share, or nats (infinite: off).
        unit: ``share`` or ``nats``.
    """
    return {
        "targets": found.targets,
        "unit": unit,
        "upto": ints(found.upto.reshape(-1)),
        "columns": [
            {
                "name": column,
                "settings": floats(settings[column]),
                "counts": ints(found.counts[column]),
                "byBin": ints(found.by_bin[column].reshape(-1)),
                "edges": floats(found.edges[column]),
            }
            for column in found.levels
        ],
    }


def levels_of_row(preview: Preview, found: Steering, number: int) -> dict[str, str] | None:
    """Each column's levels of one row's targets, uint8 in base64; None for a row outside of the preview."""
    part, row = preview.store.locate(number)
    for at, targets in enumerate(preview.parts):
        if targets.part == part and row < len(targets.rows):
            own = slice(*targets.sequence_starts[row : row + 2])
            return {c: b64encode(of_parts[at][own].tobytes()).decode("ascii") for c, of_parts in found.levels.items()}
    return None
