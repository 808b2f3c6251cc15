"""Many numbers for one rule, tried in one go: what each would drop, without storing a mask.

found = sweep(store, Rule.load("eksft").to_dict(), dict([parse_vary("f=0.05:0.5:0.05")]))
[(line.values["f"], line.share_dropped) for line in found.lines]
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from math import prod
from typing import Any

import numpy as np

from tokenstats.masking.build import budget_of
from tokenstats.masking.engine.aggregates import resolve_thresholds
from tokenstats.masking.engine.decisions import Decisions, decide
from tokenstats.masking.engine.part_reader import OnDisk, worker_count
from tokenstats.masking.engine.resolved import key_of, thresholds_of
from tokenstats.masking.engine.targets import Targets, resolve_scorings
from tokenstats.masking.language.unparse import Column, selections_in, text_of
from tokenstats.masking.variants import Variant, variants
from tokenstats.schema import MAX_CLAUSES, ROLES
from tokenstats.store import Store

_ENDS: Column = (None, "is_end_of_turn")


@dataclass(frozen=True)
class Line:
    """One rule of a sweep: what the mask of these numbers would drop, of the sweep's targets.

    clauses:    text of each clause, as ``reason`` records it, and how many tokens it drops
    overlap:    tokens that several clauses drop / tokens that any drops; 0 where there are none. Of two clauses: their Jaccard
    by_chance:  the overlap that independent random clauses of the same sizes would have
    jaccard:    |dropped here and by the first line| / |dropped by either|; 1 where neither drops anything
    thresholds: the number behind each dataset-wide selection
    """

    values: dict[str, str]
    rule: dict[str, Any]
    dropped: int
    share_dropped: float
    clauses: tuple[tuple[str, int], ...]
    overlap: float
    by_chance: float
    jaccard: float
    protected: int
    ends_dropped: int
    rows_with_nothing_kept: int
    thresholds: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """The lines in the order of the numbers, and what they share: targets, end-of-turn tokens among them, rows."""

    targets: int
    ends: int
    rows: int
    lines: tuple[Line, ...]


def sweep(
    store: Store,
    fields: Mapping[str, Any],
    vary: Mapping[str, Sequence[str]],
    *,
    scoring: str | None = None,
    workers: int | None = None,
) -> Sweep:
    """Try a rule with many numbers. Each line is what :func:`build_mask` of that rule would decide, token for token.

    fields: of a rule, as ``Rule.to_dict()`` gives them, with names in the place of numbers
    vary:   the numbers that each name stands for, as :func:`parse_vary` reads them; combined where there are several names

    The store is read as often as for one mask, however many numbers there are: once, and twice more where selections look
    at the whole dataset. Raises RuleError for numbers that make no valid rule, and as ``build_mask`` does.
    """
    tried = variants(fields, vary)
    rules = [variant.rule for variant in tried]
    columns = frozenset({_ENDS}).union(*(rule.columns for rule in rules))
    source = OnDisk(store, resolve_scorings(store, columns, scoring), worker_count(workers), "sweep")
    resolved = resolve_thresholds(rules, source)

    def judge_all(population: Targets) -> tuple[int, int, list[_Counts]]:
        ends = population.column(_ENDS)
        first: np.ndarray | None = None
        counts = []
        for rule in rules:
            verdict = decide(rule, population, resolved, budget_of(rule, store, population))
            first = verdict.dropped if first is None else first
            counts.append(_Counts.of(verdict, first, ends))
        return len(population), int(np.count_nonzero(ends)), counts

    targets, ends, totals = 0, 0, [_Counts() for _ in rules]
    with closing(source.each(judge_all, columns)) as parts:
        for part_targets, part_ends, counts in parts:
            targets, ends = targets + part_targets, ends + part_ends
            totals = [total.plus(count) for total, count in zip(totals, counts, strict=True)]
    numbers = thresholds_of(resolved)
    lines = tuple(_line(variant, total, targets, numbers) for variant, total in zip(tried, totals, strict=True))
    return Sweep(targets, ends, store.manifest.sequences, lines)


@dataclass(frozen=True)
class _Counts:
    """Of one rule: tokens by reason [16], and how many are dropped, by several clauses, by the first rule too, by either."""

    by_reason: np.ndarray = field(default_factory=lambda: np.zeros(MAX_CLAUSES, np.int64))
    dropped: int = 0
    several: int = 0
    both: int = 0
    either: int = 0
    protected: int = 0
    ends_dropped: int = 0
    rows_with_nothing_kept: int = 0

    @classmethod
    def of(cls, verdict: Decisions, first: np.ndarray, ends: np.ndarray) -> "_Counts":
        dropped, reason = verdict.dropped, verdict.reason
        return cls(
            by_reason=verdict.by_reason,
            dropped=int(np.count_nonzero(dropped)),
            several=int(np.count_nonzero(reason & (reason - np.uint16(1)))),  # without its lowest bit: is there another?
            both=int(np.count_nonzero(dropped & first)),
            either=int(np.count_nonzero(dropped | first)),
            protected=verdict.protected,
            ends_dropped=int(np.count_nonzero(dropped & ends)),
            rows_with_nothing_kept=int(np.count_nonzero(verdict.kept_per_row == 0)),
        )

    def plus(self, other: "_Counts") -> "_Counts":
        return _Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclass_fields(self)})


def _line(variant: Variant, counts: _Counts, targets: int, thresholds: Mapping[str, float]) -> Line:
    rule = variant.rule
    clauses = tuple(zip(rule.reasons, counts.by_reason.tolist(), strict=False))
    calls = {text_of(call) for expression in rule.expressions for call in selections_in(expression.tree)}
    own = {key_of(text, role) for text in calls for role in (None, *ROLES)}
    return Line(
        values=variant.values,
        rule=rule.to_dict(),
        dropped=counts.dropped,
        share_dropped=counts.dropped / targets if targets else 0.0,
        clauses=clauses,
        overlap=counts.several / counts.dropped if counts.dropped else 0.0,
        by_chance=_by_chance([dropped / targets for _, dropped in clauses] if targets else []),
        jaccard=counts.both / counts.either if counts.either else 1.0,
        protected=counts.protected,
        ends_dropped=counts.ends_dropped,
        rows_with_nothing_kept=counts.rows_with_nothing_kept,
        thresholds={key: value for key, value in thresholds.items() if key in own},
    )


def _by_chance(shares: Sequence[float]) -> float:
    """P(two or more) / P(one or more) of independent events."""
    if len(shares) < 2:
        return 0.0
    none = prod(1 - share for share in shares)
    one = sum(share * prod(1 - other for j, other in enumerate(shares) if j != i) for i, share in enumerate(shares))
    return max(0.0, 1 - none - one) / (1 - none) if none < 1 else 0.0
