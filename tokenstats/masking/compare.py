"""Two masks or two rules side by side: how far they agree, and where they do not.

    compare_masks(store, "eksft", "random")                                # two masks of the store, or presets
    compare_masks(store, "eksft", Rule(drop="entropy > 2"))                # a rule, judged without being stored
    compare_masks(store, "eksft", "eksft", scoring="warm", scoring_b="later")  # how a mask drifts between checkpoints

Reads part by part: memory does not grow with the dataset.
"""

from dataclasses import dataclass, field

import numpy as np

from tokenstats.masking.drift import Drift, Moments
from tokenstats.masking.engine.exact_sum import ExactSum
from tokenstats.masking.engine.targets import Targets, iter_targets
from tokenstats.masking.operands import Operand, open_operand
from tokenstats.masking.rule import Rule, rule_text
from tokenstats.schema import MAX_CLAUSES
from tokenstats.store import Store

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

    kind:     what was found under ``name``: mask, rule of the mask, preset, file or rule
    scorings: the scorings that were read to decide
    clauses:  of a mask or rule, in the order of the bits of ``reason``; a token that two clauses drop counts in both
    """

    name: str
    kind: str
    rule: str
    scorings: tuple[str, ...]
    dropped: int
    end_of_turn_dropped: int
    clauses: tuple[ClauseOverlap, ...]


@dataclass(frozen=True)
class Comparison:
    """Counts of target tokens, and what follows from them.

    end_of_turn: end-of-turn tokens among the targets
    jaccard:     |dropped by both| / |dropped by either|; 1.0 where neither drops anything
    by_chance:   the same of expected counts, for two independent random masks that drop as many tokens as these
    by_chance_in_rows: for two that drop as many tokens of each row as these
    rows:        rows of which something is dropped: only they have a Jaccard index of their own
    per_row:     10th, 50th and 90th percentile of the rows' own Jaccard index, rounded down to a thousandth
    row_tenths:  how many rows have one in [0, 0.1), [0.1, 0.2), … [0.9, 1]
    only_a/b:    (token id, count) of what is dropped most often by one side only
    drift:       how the statistics moved, where the sides read one scoring each, and not the same
    """

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
    drift: tuple[Drift, ...]


def compare_masks(
    store: Store, a: str | Rule, b: str | Rule, *, scoring: str | None = None, scoring_b: str | None = None, most: int = 10
) -> Comparison:
    """Compare two masks or rules over the targets of a store.

    a, b:      a mask of the store, else a preset, else a ``.toml`` file; or a :class:`Rule`
    scoring:   judge the rules on these statistics, the rules of masks too, anew; ``scoring_b``: the second on these
    most:      how many tokens ``only_a`` and ``only_b`` list at most

    Raises InputError for a name that is neither mask nor preset, and what building a rule's mask would raise.
    """
    one, two = open_operand(store, a, scoring), open_operand(store, b, scoring_b or scoring)
    pair = _moved(store, one, two)
    statistics = {(name, column) for name in pair[:2] for column in pair[2]}
    counts, moments = _Counts(store.manifest.tokenizer.size), {column: Moments() for column in pair[2]}
    for population in iter_targets(store, one.columns | two.columns | statistics, {s: s for s in store.scorings}):
        counts.add(population, one.decide(population), two.decide(population))
        for column, sums in moments.items():
            sums.add(*(population.statistics[name, column] for name in pair[:2]))
    return counts.comparison(one, two, tuple(sums.drift(c, *pair[:2]) for c, sums in moments.items()), most)


def _moved(store: Store, one: Operand, two: Operand) -> tuple[str, str, tuple[str, ...]]:
    """The two scorings whose drift is of interest and the statistics that both have; none where they are the same."""
    if len(one.scorings) != 1 or len(two.scorings) != 1 or one.scorings == two.scorings:
        return "", "", ()
    (a,), (b,) = one.scorings, two.scorings
    with_reference = all(store.scorings[name].manifest.reference is not None for name in (a, b))
    return a, b, MOVED if with_reference else tuple(c for c in MOVED if c != "kl")


@dataclass
class _Counts:
    """Totals over the parts read so far. Index 0 is what a drops, index 1 what b drops."""

    vocabulary: int
    table: np.ndarray = field(default_factory=lambda: np.zeros((2, 2), np.int64))
    end_of_turn: int = 0
    ends_dropped: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    clauses: np.ndarray = field(default_factory=lambda: np.zeros((2, MAX_CLAUSES, 2), np.int64))
    both_by_chance: ExactSum = field(default_factory=ExactSum)
    rows: np.ndarray = field(default_factory=lambda: np.zeros(_BINS + 1, np.int64))
    only: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.only = np.zeros((2, self.vocabulary), np.int64)

    def add(self, population: Targets, of_a: tuple[np.ndarray, np.ndarray], of_b: tuple[np.ndarray, np.ndarray]) -> None:
        """Count a part: (dropped, reason) of each side."""
        (a, reason_a), (b, reason_b) = of_a, of_b
        self.table += [[np.sum(a & b), np.sum(a & ~b)], [np.sum(b & ~a), np.sum(~a & ~b)]]
        ends = population.column((None, "is_end_of_turn"))
        self.end_of_turn += int(ends.sum())
        self.ends_dropped += [np.sum(ends & a), np.sum(ends & b)]
        for side, (reason, other) in enumerate(((reason_a, b), (reason_b, a))):
            for bit in range(int(reason.max(initial=0)).bit_length()):
                own = (reason & (1 << bit)) > 0
                self.clauses[side, bit] += [np.sum(own), np.sum(own & other)]
        self._add_rows(population, a, b)
        ids = population.column((None, "token_id"))
        for side, difference in enumerate((a & ~b, b & ~a)):
            self.only[side] += np.bincount(ids[difference], minlength=self.vocabulary)

    def _add_rows(self, population: Targets, a: np.ndarray, b: np.ndarray) -> None:
        starts = population.sequence_starts
        both, either, of_a, of_b = (np.diff(np.concatenate([[0], np.cumsum(x)])[starts]) for x in (a & b, a | b, a, b))
        some = either > 0
        self.rows += np.bincount(_BINS * both[some] // either[some], minlength=_BINS + 1)
        self.both_by_chance.add(of_a[some] * of_b[some] / np.diff(starts)[some])

    def comparison(self, one: Operand, two: Operand, drift: tuple[Drift, ...], most: int) -> Comparison:
        (both, only_a), (only_b, neither) = self.table.tolist()
        a, b, targets = both + only_a, both + only_b, int(self.table.sum())
        return Comparison(
            a=self._compared(one, 0, a),
            b=self._compared(two, 1, b),
            targets=targets,
            end_of_turn=self.end_of_turn,
            both_dropped=both,
            only_a_dropped=only_a,
            only_b_dropped=only_b,
            both_kept=neither,
            jaccard=_jaccard(both, a, b),
            by_chance=_jaccard(a * b / max(1, targets), a, b),
            by_chance_in_rows=_jaccard(float(self.both_by_chance.value), a, b),
            rows=int(self.rows.sum()),
            per_row=(self._percentile(0.1), self._percentile(0.5), self._percentile(0.9)),
            row_tenths=_in_tenths(self.rows),
            only_a=_most(self.only[0], most),
            only_b=_most(self.only[1], most),
            drift=drift,
        )

    def _compared(self, side: Operand, index: int, dropped: int) -> Compared:
        clauses = zip(side.reasons, self.clauses[index].tolist(), strict=False)
        return Compared(
            name=side.name,
            kind=side.kind,
            rule=rule_text(side.rule.to_dict()),
            scorings=side.scorings,
            dropped=dropped,
            end_of_turn_dropped=int(self.ends_dropped[index]),
            clauses=tuple(ClauseOverlap(text, own, other) for text, (own, other) in clauses),
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


def _jaccard(both: float, a: int, b: int) -> float:
    either = a + b - both
    return both / either if either else 1.0
