"""Every row of a store in numbers, to find the ones worth looking at. Read part by part: a line a row stays in memory.

table = row_table(store, "warm")
under = decided_rows(table, decisions)           # an iterable of each part's Decisions, in order
order = find_rows(table, under, Filter.NEARLY_ALL_DROPPED, sort_by="kl_largest")
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from tokenstats.errors import InputError, nearest
from tokenstats.masking.engine.decisions import Decisions
from tokenstats.masking.engine.group_ops import count_in_groups
from tokenstats.masking.engine.targets import Targets, iter_targets
from tokenstats.store import Store

MEASURED = {"kl": "kl", "entropy": "entropy", "nll": "logprob"}
"""Statistics of which a row's mean and largest value are told, and the stored column behind each."""

NEARLY_ALL = 0.9
"""A row of which this share is dropped or more is nearly all dropped."""


class Filter(StrEnum):
    """Rows to look at."""

    ALL = "all rows"
    NOTHING_KEPT = "nothing kept"
    NEARLY_ALL_DROPPED = "nearly all dropped"
    NOTHING_DROPPED = "nothing dropped"
    TRUNCATED = "truncated"
    END_DROPPED = "end of turn dropped"


@dataclass(frozen=True)
class RowTable:
    """R rows of a store, whatever is decided about them.

    Attributes:
        length: Tokens of each row, int64 [R].
        targets, turns: How many targets and replies each has, int64 [R].
        truncated: It was cut at the store's maximal length, boolean [R].
        statistics: float64 [R] by ``kl_mean``, ``kl_largest`` and so on, in nats; NaN of a row without a target.
    """

    length: np.ndarray
    targets: np.ndarray
    turns: np.ndarray
    truncated: np.ndarray
    statistics: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.length)


@dataclass(frozen=True)
class DecidedRows:
    """What is decided about R rows: targets dropped, and end-of-turn tokens dropped, int64 [R]."""

    dropped: np.ndarray
    ends_dropped: np.ndarray


def row_table(store: Store, scoring: str | None) -> RowTable:
    """Read a store once.

    Args:
        store: The store.
        scoring: Whose statistics; None for none.
    """
    there = store.scorings[scoring].manifest.columns if scoring is not None else []
    measured = [name for name, stored in MEASURED.items() if stored in there]
    scorings: dict[str | None, str] = {None: scoring} if scoring is not None else {}
    lines = [_lines(targets, measured) for targets in iter_targets(store, [(None, name) for name in measured], scorings)]
    joined = {name: np.concatenate([of_part[name] for of_part in lines]) for name in lines[0]}
    truncated = np.concatenate(
        [store.part("tokens", i, ["truncated"])["truncated"].to_numpy() for i in range(store.part_count)]
    )
    counts = {name: joined.pop(name).astype(np.int64) for name in ("length", "targets", "turns")}
    return RowTable(**counts, truncated=truncated, statistics=joined)


def _lines(targets: Targets, measured: list[str]) -> dict[str, np.ndarray]:
    starts = targets.sequence_starts
    turns = np.diff(np.searchsorted(targets.turn_starts, starts))
    found = {"length": np.diff(targets.offsets), "targets": np.diff(starts), "turns": turns}
    some = found["targets"] > 0
    for name in measured:
        values = targets.column((None, name)).astype(np.float64)
        mean, largest = np.full((2, len(some)), np.nan)
        if some.any():
            mean[some] = np.add.reduceat(values, starts[:-1][some]) / found["targets"][some]
            largest[some] = np.maximum.reduceat(values, starts[:-1][some])
        found |= {f"{name}_mean": mean, f"{name}_largest": largest}
    return found


def decided_rows(decisions: Iterable[Decisions]) -> DecidedRows:
    """Count by row. ``decisions``: of every part of the store, in order, with the ids read."""
    dropped, ends = [], []
    for of_part in decisions:
        starts = of_part.targets.sequence_starts
        dropped.append(count_in_groups(of_part.dropped, starts))
        ends.append(count_in_groups(of_part.dropped & of_part.targets.column((None, "is_end_of_turn")), starts))
    return DecidedRows(np.concatenate(dropped), np.concatenate(ends))


def columns_of(table: RowTable) -> list[str]:
    """What rows can be sorted by."""
    return ["row", "share_dropped", "dropped", "learned", "targets", "length", "turns", *table.statistics]


def column_of_rows(table: RowTable, decided: DecidedRows, name: str) -> np.ndarray:
    """A column [R]. Raises InputError for one that there is not."""
    match name:
        case "row":
            return np.arange(len(table))
        case "dropped":
            return decided.dropped
        case "learned":
            return table.targets - decided.dropped
        case "share_dropped":
            return np.where(table.targets > 0, decided.dropped / np.maximum(table.targets, 1), np.nan)
        case "targets" | "length" | "turns":
            return getattr(table, name)
        case _ if name in table.statistics:
            return table.statistics[name]
    known = columns_of(table)
    raise InputError(f"rows have no column {name!r}{nearest(name, known)}; expected one of: {', '.join(known)}")


def find_rows(
    table: RowTable, decided: DecidedRows, wanted: Filter = Filter.ALL, *, sort_by: str = "row", rising: bool = False
) -> np.ndarray:
    """Numbers of the rows that pass a filter, int64, sorted; those without a value come last, equal ones in the store's order.

    Args:
        table: Of the store.
        decided: Of the rule or mask.
        wanted: Which rows.
        sort_by: One of :func:`columns_of`.
        rising: The smallest first.
    """
    values = column_of_rows(table, decided, sort_by).astype(np.float64)
    rows = np.flatnonzero(_passing(table, decided, wanted))
    return rows[np.argsort(values[rows] if rising else -values[rows], kind="stable")]


def _passing(table: RowTable, decided: DecidedRows, wanted: Filter) -> np.ndarray:
    some = table.targets > 0
    match wanted:
        case Filter.ALL:
            return np.ones(len(table), bool)
        case Filter.NOTHING_KEPT:
            return decided.dropped == table.targets
        case Filter.NEARLY_ALL_DROPPED:
            return some & (decided.dropped >= NEARLY_ALL * table.targets)
        case Filter.NOTHING_DROPPED:
            return some & (decided.dropped == 0)
        case Filter.TRUNCATED:
            return table.truncated
        case Filter.END_DROPPED:
            return decided.ends_dropped > 0
