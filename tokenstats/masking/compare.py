"""Two masks or two rules side by side: how far they agree, and where they do not.

    compare(store, "eksft", "random")                                # two masks of the store, or presets
    compare(store, "eksft", Rule(drop="entropy > 2"))                # a rule, judged without being stored
    compare(store, "eksft", "eksft", scoring="warm", scoring_b="later")  # how a mask drifts between checkpoints

Reads part by part: memory does not grow with the dataset.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from tokenstats.masking.drift import Drift, Moments, Paired
from tokenstats.masking.engine.counts import Counts, jaccard
from tokenstats.masking.engine.decisions import Decisions
from tokenstats.masking.engine.exact_sum import ExactSum
from tokenstats.masking.engine.group_ops import count_in_groups
from tokenstats.masking.engine.targets import iter_targets
from tokenstats.masking.operands import Operand, open_operand
from tokenstats.masking.rule import Rule, rule_text
from tokenstats.schema import MAX_CLAUSES
from tokenstats.shown import Shown
from tokenstats.store import Store, open_store

MOVED = ("logprob", "entropy", "kl")
"""Statistics whose drift is told where the two sides read different scorings."""

_BINS = 1000  # of the rows' Jaccard index


@dataclass(frozen=True)
class ClauseOverlap:
    """A clause, how many tokens it drops, and how many of them the other side drops too."""

    text: str
    dropped: int
    dropped_by_other: int


@dataclass(frozen=True)
class Compared:
    """One side of a comparison.

    Attributes:
        kind: What was found under ``name``: mask, rule of the mask, preset, file or rule.
        scorings: The scorings that were read to decide.
        clauses: Of a mask or rule, in the order of the bits of ``reason``; a token that two clauses drop counts in both.
    """

    name: str
    kind: str
    rule: str
    scorings: tuple[str, ...]
    dropped: int
    end_of_turn_dropped: int
    clauses: tuple[ClauseOverlap, ...]


@dataclass(frozen=True)
class Comparison(Shown):
    """Counts of target tokens, and what follows from them.

    Attributes:
        store: The store whose tokens they are.
        end_of_turn: End-of-turn tokens among the targets.
        jaccard: |dropped by both| / |dropped by either|; 1.0 where neither drops anything.
        by_chance: The same of expected counts, for two independent random masks that drop as many tokens as these.
        by_chance_in_rows: For two that drop as many tokens of each row as these.
        rows: Rows of which something is dropped: only they have a Jaccard index of their own.
        per_row: 10th, 50th and 90th percentile of the rows' own Jaccard index, rounded down to a thousandth.
        row_tenths: How many rows have one in [0, 0.1), [0.1, 0.2), … [0.9, 1].
        only_a, only_b: (token id, count) of what is dropped most often by one side only.
        weights: What the tokens that both keep weigh, where a mask or rule weighs; on a side that does not, each weighs 1.
        drift: How the statistics moved, where the sides read one scoring each, and not the same.
    """

    store: Store = field(repr=False, compare=False)
    a: Compared
    b: Compared
    targets: int
    end_of_turn: int
    both_dropped: int
    only_a_dropped: int
    only_b_dropped: int
    both_kept: int
    jaccard: float
    by_chance: float
    by_chance_in_rows: float
    rows: int
    per_row: tuple[float, float, float]
    row_tenths: tuple[int, ...]
    only_a: tuple[tuple[int, int], ...]
    only_b: tuple[tuple[int, int], ...]
    weights: Paired | None
    drift: tuple[Drift, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names of the fields, without the store; for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "store"}
        weights = asdict(self.weights) if self.weights else None
        drift = [asdict(drift) for drift in self.drift]
        return plain | {"a": asdict(self.a), "b": asdict(self.b), "weights": weights, "drift": drift}


def compare(
    store: Store | str | Path,
    a: str | Rule | Mapping[str, Any] | Operand,
    b: str | Rule | Mapping[str, Any] | Operand,
    *,
    scoring: str | None = None,
    scoring_b: str | None = None,
    most: int = 10,
) -> Comparison:
    """Compare two masks or rules over the targets of a store.

    Args:
        store: A store, or its path.
        a: A mask of the store, else a preset, else a ``.toml`` file; a :class:`Rule` or its fields; or what is open.
        b: The same.
        scoring: Decide by these statistics, for the rules of masks too, anew.
        scoring_b: Decide by these for ``b``.
        most: How many tokens ``only_a`` and ``only_b`` list at most.

    Raises:
        InputError: A name is neither mask nor preset. What building a rule's mask would raise.
    """
    store = open_store(store)
    asked = ((a, scoring), (b, scoring_b or scoring))
    one, two = (side if isinstance(side, Operand) else open_operand(store, side, by) for side, by in asked)
    name, other, moved = _moved(store, one, two)
    statistics = {(scoring, column) for scoring in (name, other) for column in moved}
    counts, moments = _PairCounts(store.manifest.tokenizer.size), {column: Moments() for column in moved}
    for targets in iter_targets(store, one.columns | two.columns | statistics, {s: s for s in store.scorings}):
        counts.add(one.decide(targets), two.decide(targets))
        for column, sums in moments.items():
            sums.add(targets.statistics[name, column], targets.statistics[other, column])
    return counts.comparison(one, two, tuple(sums.drift(c, name, other) for c, sums in moments.items()), most)


def _moved(store: Store, one: Operand, two: Operand) -> tuple[str, str, tuple[str, ...]]:
    """The two scorings whose drift is of interest and the statistics that both have; none where they are the same."""
    if len(one.scorings) != 1 or len(two.scorings) != 1 or one.scorings == two.scorings:
        return "", "", ()
    (a,), (b,) = one.scorings, two.scorings
    with_reference = all(store.scorings[name].manifest.reference is not None for name in (a, b))
    return a, b, MOVED if with_reference else tuple(c for c in MOVED if c != "kl")


@dataclass
class _PairCounts:
    """Totals over the parts read so far. Of pairs, index 0 is of what a drops, index 1 of what b drops."""

    vocabulary: int
    each: list[Counts] = field(default_factory=lambda: [Counts(), Counts()])
    both: int = 0
    by_reason_and_other: np.ndarray = field(default_factory=lambda: np.zeros((2, MAX_CLAUSES), np.int64))
    both_by_chance: ExactSum = field(default_factory=ExactSum)
    rows: np.ndarray = field(default_factory=lambda: np.zeros(_BINS + 1, np.int64))
    weights: Moments = field(default_factory=Moments)
    only: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.only = np.zeros((2, self.vocabulary), np.int64)

    def add(self, a: Decisions, b: Decisions) -> None:
        """Count what both sides decide about the targets of one part."""
        ids = a.targets.column((None, "token_id"))
        self.both += int(np.count_nonzero(a.dropped & b.dropped))
        for side, (own, other) in enumerate(((a, b), (b, a))):
            self.each[side] += Counts.of(own)
            for bit, dropped in enumerate(own.each_reason()):
                self.by_reason_and_other[side, bit] += np.count_nonzero(dropped & other.dropped)
            self.only[side] += np.bincount(ids[own.dropped & ~other.dropped], minlength=self.vocabulary)
        self._add_rows(a, b)
        if a.weight is not None or b.weight is not None:
            kept = ~(a.dropped | b.dropped)
            self.weights.add(*(np.ones(kept.sum()) if side.weight is None else side.weight[kept] for side in (a, b)))

    def _add_rows(self, a: Decisions, b: Decisions) -> None:
        starts = a.targets.sequence_starts
        flags = (a.dropped & b.dropped, a.dropped | b.dropped, a.dropped, b.dropped)
        both, either, of_a, of_b = (count_in_groups(x, starts) for x in flags)
        some = either > 0
        self.rows += np.bincount(_BINS * both[some] // either[some], minlength=_BINS + 1)
        self.both_by_chance.add(of_a[some] * of_b[some] / np.diff(starts)[some])

    def comparison(self, one: Operand, two: Operand, drift: tuple[Drift, ...], most: int) -> Comparison:
        """What the totals come to."""
        a, b, targets = self.each[0].dropped, self.each[1].dropped, self.each[0].targets
        return Comparison(
            store=one.store,
            a=self._compared(one, 0),
            b=self._compared(two, 1),
            targets=targets,
            end_of_turn=self.each[0].ends,
            both_dropped=self.both,
            only_a_dropped=a - self.both,
            only_b_dropped=b - self.both,
            both_kept=targets - a - b + self.both,
            jaccard=jaccard(self.both, a, b),
            by_chance=jaccard(a * b / max(1, targets), a, b),
            by_chance_in_rows=jaccard(float(self.both_by_chance.value), a, b),
            rows=int(self.rows.sum()),
            per_row=(self._percentile(0.1), self._percentile(0.5), self._percentile(0.9)),
            row_tenths=_in_tenths(self.rows),
            only_a=_most(self.only[0], most),
            only_b=_most(self.only[1], most),
            weights=self.weights.paired() if one.weighs or two.weighs else None,
            drift=drift,
        )

    def _compared(self, side: Operand, index: int) -> Compared:
        own = self.each[index]
        clauses = zip(side.reasons, own.by_reason.tolist(), self.by_reason_and_other[index].tolist(), strict=False)
        return Compared(
            name=side.name,
            kind=side.kind,
            rule=rule_text(side.rule.to_dict()),
            scorings=side.scorings,
            dropped=own.dropped,
            end_of_turn_dropped=own.ends_dropped,
            clauses=tuple(ClauseOverlap(*clause) for clause in clauses),
        )

    def _percentile(self, share: float) -> float:
        """The least value that so many of the rows reach at most; 1.0 where there are none."""
        upto = np.cumsum(self.rows)
        return float(np.searchsorted(upto, share * upto[-1])) / _BINS if upto[-1] else 1.0


def _in_tenths(rows: np.ndarray) -> tuple[int, ...]:
    tenths = rows[:-1].reshape(10, -1).sum(axis=1)
    tenths[-1] += rows[-1]
    return tuple(tenths.tolist())


def _most(counts: np.ndarray, most: int) -> tuple[tuple[int, int], ...]:
    """The ids counted most often; among equals the lower id first."""
    order = np.argsort(-counts, kind="stable")[:most]
    return tuple((int(i), int(counts[i])) for i in order if counts[i])
