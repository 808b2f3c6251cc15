"""How entropy, KL and what masks drop are distributed: counts in fixed bins, filled part by part.

The bins do not depend on the data, so one pass is enough and memory does not grow: entropy from 0 to ln V in equal
steps of its square root (most tokens of a trained model have little), KL in equal steps of its logarithm, with one bin
for what is smaller and one for what is larger.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np

from tokenstats.inspect.mask_reader import count_by, read_decisions, tenth_of_reply
from tokenstats.masking.engine.targets import Targets
from tokenstats.store import Store

BINS = 160
FIRST_TOKENS = 64
_SMALLEST, _LARGEST = -6.0, 2.0  # powers of ten of KL that have bins of their own


@dataclass
class MaskCounts:
    """What one mask drops.

    Attributes:
        dropped: int64 [BINS, BINS] over entropy and KL.
        by_tenth, by_position: int64 [n, 2], targets and those dropped, by tenth of the reply and by one of its first tokens.
    """

    dropped: np.ndarray
    by_tenth: np.ndarray
    by_position: np.ndarray


@dataclass
class Distributions:
    """Counts of target tokens.

    Attributes:
        vocabulary: Entries of the model's vocabulary, V.
        has_entropy, has_kl: Whether a scoring gave them; without, all tokens lie in the first bin.
        joint: int64 [BINS, BINS], tokens by entropy and KL.
        by_position: Entropy and KL of the first tokens of replies, int64 [64, BINS] each.
        masks: What each mask drops, by name.
    """

    vocabulary: int
    has_entropy: bool
    has_kl: bool
    joint: np.ndarray = field(init=False)
    by_position: dict[str, np.ndarray] = field(init=False)
    masks: dict[str, MaskCounts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.joint = np.zeros((BINS, BINS), np.int64)
        self.by_position = {"entropy": np.zeros((FIRST_TOKENS, BINS), np.int64), "kl": np.zeros((FIRST_TOKENS, BINS), np.int64)}

    @property
    def targets(self) -> int:
        """How many were counted."""
        return int(self.joint.sum())

    @property
    def columns(self) -> list[str]:
        """The statistics that there are histograms of."""
        return ["entropy"] * self.has_entropy + ["kl"] * self.has_kl

    def edges(self, column: str) -> np.ndarray:
        """[BINS + 1] edges in nats. The outer two of KL stand for everything below and above."""
        if column == "entropy":
            return log(max(self.vocabulary, 2)) * np.linspace(0.0, 1.0, BINS + 1) ** 2
        return np.concatenate([[10**_SMALLEST / 2], np.logspace(_SMALLEST, _LARGEST, BINS - 1), [10**_LARGEST * 2]])

    def bins_of(self, column: str, values: np.ndarray) -> np.ndarray:
        """int64 [n], the bin that each value (nats) lies in."""
        return np.clip(np.searchsorted(self.edges(column), values, side="right") - 1, 0, BINS - 1)

    def counts(self, column: str, mask: str | None = None) -> np.ndarray:
        """[BINS] targets by entropy or by KL, all of them or those that a mask drops."""
        joint = self.joint if mask is None else self.masks[mask].dropped
        return joint.sum(axis=1 if column == "entropy" else 0)

    def add(self, targets: Targets, dropped: dict[str, np.ndarray]) -> None:
        """Count a part's targets.

        Args:
            targets: n tokens, with the statistics of :attr:`columns`.
            dropped: Boolean [n] for each mask.
        """
        bins = {"entropy": self._entropy_bins(targets), "kl": self._kl_bins(targets)}
        position = targets.column((None, "position"))
        early = position < FIRST_TOKENS
        cells = bins["entropy"] * BINS + bins["kl"]
        self.joint += np.bincount(cells, minlength=BINS * BINS).reshape(BINS, BINS)
        for column, table in self.by_position.items():
            table += np.bincount(position[early] * BINS + bins[column][early], minlength=table.size).reshape(table.shape)
        for mask, flags in dropped.items():
            counts = self.masks.setdefault(mask, _nothing_dropped())
            counts.dropped += np.bincount(cells[flags], minlength=BINS * BINS).reshape(BINS, BINS)
            counts.by_tenth += count_by(tenth_of_reply(targets), flags, 10)
            counts.by_position += count_by(position[early], flags[early], FIRST_TOKENS)

    def quantiles(self, column: str, shares: Sequence[float]) -> np.ndarray:
        """[positions, shares] quantiles (nats, to the middle of a bin) over the first positions; NaN where nothing is."""
        table, edges = self.by_position[column], self.edges(column)
        middles = np.sqrt(edges[1:] * edges[:-1]) if column == "kl" else (edges[1:] + edges[:-1]) / 2
        upto = np.cumsum(table, axis=1)
        total = upto[:, -1:]
        where = np.stack([(upto <= share * total).sum(axis=1) for share in shares], axis=1)
        return np.where(total > 0, middles[np.minimum(where, BINS - 1)], np.nan)

    def _entropy_bins(self, targets: Targets) -> np.ndarray:
        if not self.has_entropy:
            return np.zeros(len(targets), np.int64)
        values = targets.column((None, "entropy")).astype(np.float64)
        places = np.sqrt(np.maximum(values, 0.0) / log(max(self.vocabulary, 2))) * BINS
        return np.clip(places, 0, BINS - 1).astype(np.int64)

    def _kl_bins(self, targets: Targets) -> np.ndarray:
        if not self.has_kl:
            return np.zeros(len(targets), np.int64)
        values = np.maximum(targets.column((None, "kl")).astype(np.float64), 1e-30)
        places = (np.log10(values) - _SMALLEST) * ((BINS - 2) / (_LARGEST - _SMALLEST))
        return np.clip(np.floor(places) + 1, 0, BINS - 1).astype(np.int64)


def _nothing_dropped() -> MaskCounts:
    return MaskCounts(*(np.zeros(shape, np.int64) for shape in ((BINS, BINS), (10, 2), (FIRST_TOKENS, 2))))


def measure(store: Store, scoring: str | None, masks: Iterable[str]) -> Distributions:
    """Count a whole store under several masks in one pass.

    Args:
        store: The store.
        scoring: Whose entropy and KL; None for neither.
        masks: Names of masks.
    """
    names = list(masks)
    found = empty_distributions(store, scoring)
    for plain, *decisions in read_decisions(store, [None, *names], found.columns, scoring):
        found.add(plain.targets, {name: of_mask.dropped for name, of_mask in zip(names, decisions, strict=True)})
    return found


def empty_distributions(store: Store, scoring: str | None) -> Distributions:
    """Nothing counted yet, with the bins that fit a scoring."""
    if scoring is None:
        return Distributions(store.manifest.tokenizer.size, False, False)
    manifest = store.scorings[scoring].manifest
    there = manifest.columns
    return Distributions(manifest.vocabulary, "entropy" in there, "kl" in there)
