"""Many numbers for one rule, tried in one go: what each would drop, without storing a mask.

found = sweep(store, "eksft", {"f": "0.05:0.5:0.05"})
[(line.values["f"], line.share_dropped) for line in found.lines]
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tokenstats.masking.build import budget_of
from tokenstats.masking.engine.aggregates import key_of, thresholds_of
from tokenstats.masking.engine.counts import Counts, jaccard
from tokenstats.masking.engine.decisions import decide
from tokenstats.masking.engine.part_reader import OnDisk, worker_count
from tokenstats.masking.engine.resolve import resolve_rules
from tokenstats.masking.engine.targets import Targets, check_scoring_is_read, resolve_scorings
from tokenstats.masking.language.unparse import Column, selections_in, text_of
from tokenstats.masking.rule import rule_fields
from tokenstats.masking.variants import Variant, numbers_of, variants
from tokenstats.schema import ROLES
from tokenstats.shown import Shown
from tokenstats.store import Store, open_store

_ENDS: Column = (None, "is_end_of_turn")


@dataclass(frozen=True)
class Line:
    """One rule of a sweep: what the mask of these numbers would drop, of the sweep's targets.

    Attributes:
        clauses: Text of each clause, as ``reason`` records it, and how many tokens it drops.
        overlap: Tokens that several clauses drop / tokens that any clause drops; 0 where there are none. Of two clauses: their
            Jaccard. What ``min_kept`` drops besides counts in neither.
        by_chance: The overlap that independent random clauses of the same sizes would have.
        jaccard: |dropped here and by the first line| / |dropped by either|; 1 where neither drops anything.
        thresholds: The number behind each dataset-wide selection.
        mean_weight: Of a rule that weighs, the mean weight of what is kept; None of others.
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
    mean_weight: float | None


@dataclass(frozen=True)
class Sweep(Shown):
    """The lines in the order of the numbers, and what they share: targets, end-of-turn tokens among them, rows."""

    targets: int
    ends: int
    rows: int
    lines: tuple[Line, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names of the fields; for JSON."""
        return asdict(self)


def sweep(
    store: Store | str | Path,
    rule: str | Path | Mapping[str, Any],
    vary: Mapping[str, str | Sequence[str | float]],
    *,
    scoring: str | None = None,
    workers: int | None = None,
) -> Sweep:
    """Try a rule with many numbers. Each line is what the mask of these numbers would drop, token for token.

    The store is read as often as for one mask, however many numbers there are: once, and once more where selections look at the
    whole dataset.

    Args:
        store: A store, or its path.
        rule: A preset, a ``.toml`` file, or the fields of a rule, with names in the place of numbers: ``{"drop": "kl > t"}``.
        vary: The numbers that each name stands for: ``[0.1, 0.2]``, or ``"0.05:0.5:0.05"``; combined where there are several.
        scoring: Which scoring the rule's bare column names mean; not needed where the store has one.
        workers: Threads, each with one part in memory; by default one a processor, up to 8.

    Raises:
        RuleError: The numbers make no valid rule; and what building the mask would raise.
    """
    store = open_store(store)
    fields = rule if isinstance(rule, Mapping) else rule_fields(rule)
    tried = variants(fields, {name: numbers_of(name, given) for name, given in vary.items()})
    rules = [variant.rule for variant in tried]
    check_scoring_is_read(scoring, frozenset().union(*(rule.columns for rule in rules)))
    columns = frozenset({_ENDS}).union(*(rule.columns for rule in rules))
    reader = OnDisk(store, resolve_scorings(store, columns, scoring), worker_count(workers), "sweep")
    aggregates = resolve_rules(rules, reader)

    def count(targets: Targets) -> list[tuple[Counts, int]]:
        """For each rule what it decides, and how many tokens it drops that the first rule drops too."""
        first: np.ndarray | None = None
        counts = []
        for rule in rules:
            decisions = decide(rule, targets, aggregates, budget_of(rule, store, targets))
            first = decisions.dropped if first is None else first
            counts.append((Counts.of(decisions), int(np.count_nonzero(decisions.dropped & first))))
        return counts

    totals = [(Counts(), 0) for _ in rules]
    with closing(reader.each(count, columns)) as parts:
        for part in parts:
            totals = [(total + own, both + more) for (total, both), (own, more) in zip(totals, part, strict=True)]
    thresholds, first = thresholds_of(aggregates), totals[0][0]
    lines = tuple(
        _line(variant, counts, jaccard(both, counts.dropped, first.dropped), thresholds)
        for variant, (counts, both) in zip(tried, totals, strict=True)
    )
    return Sweep(first.targets, first.ends, store.manifest.sequences, lines)


def _line(variant: Variant, counts: Counts, as_first: float, thresholds: Mapping[str, float]) -> Line:
    rule = variant.rule
    clauses = tuple(zip(rule.reasons, counts.by_reason.tolist(), strict=False))
    calls = {text_of(call) for expression in rule.expressions for call in selections_in(expression.tree)}
    own = {key_of(text, role) for text in calls for role in (None, *ROLES)}
    return Line(
        values=variant.values,
        rule=rule.to_dict(),
        dropped=counts.dropped,
        share_dropped=counts.share_dropped,
        clauses=clauses,
        overlap=counts.overlap(len(rule.clauses)),
        by_chance=_by_chance([n / counts.targets for _, n in clauses[: len(rule.clauses)]] if counts.targets else []),
        jaccard=as_first,
        protected=counts.rescued,
        ends_dropped=counts.ends_dropped,
        rows_with_nothing_kept=counts.rows_with_nothing_kept,
        thresholds={key: value for key, value in thresholds.items() if key in own},
        mean_weight=float(counts.weight.value) / max(1, counts.kept) if rule.weighting is not None else None,
    )


def _by_chance(shares: Sequence[float]) -> float:
    """P(two or more) / P(one or more) of independent events."""
    if len(shares) < 2:
        return 0.0
    none = prod(1 - share for share in shares)
    one = sum(share * prod(1 - other for j, other in enumerate(shares) if j != i) for i, share in enumerate(shares))
    return max(0.0, 1 - none - one) / (1 - none) if none < 1 else 0.0
