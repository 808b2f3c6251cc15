"""What a rule or mask decides about a whole store, as little as the pages need of it: counts by row, and a bit a target."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tokenstats.inspect.rows.search import packed
from tokenstats.inspect.rows.table import DecidedRows, RowTable, decided_rows
from tokenstats.masking.engine.decisions import Decisions
from tokenstats.masking.engine.group_ops import count_in_groups
from tokenstats.masking.engine.targets import iter_targets
from tokenstats.masking.operands import Operand
from tokenstats.store import Store


@dataclass(frozen=True)
class DecidedStore:
    """Of all parts: what is dropped of each row, and which targets (a bit each)."""

    rows: DecidedRows
    bits: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Disagreement:
    """How two sides decide about R rows: targets that both drop, and that one of them drops, int64 [R]."""

    both: np.ndarray
    only_a: np.ndarray
    only_b: np.ndarray

    @property
    def differing(self) -> np.ndarray:
        """Targets that the two decide differently about, int64 [R]."""
        return self.only_a + self.only_b


def decided_store(decisions: Iterable[Decisions]) -> DecidedStore:
    """Keep what is needed of the decisions about each part, in order; the parts themselves are let go."""
    each = [(decided_rows([of_part]), packed([of_part])[0]) for of_part in decisions]
    dropped, ends = (np.concatenate([getattr(rows, name) for rows, _ in each]) for name in ("dropped", "ends_dropped"))
    return DecidedStore(DecidedRows(dropped, ends), tuple(bits for _, bits in each))


def read_decided(store: Store, operand: Operand | None) -> DecidedStore:
    """Decide about a whole store, part by part.

    Args:
        store: The store.
        operand: A mask or a rule, as :func:`tokenstats.masking.operands.open_operand` finds it; None for plain SFT.
    """
    return decided_store(_decisions(store, operand))


def _decisions(store: Store, operand: Operand | None) -> Iterator[Decisions]:
    if operand is None:
        for targets in iter_targets(store, [], {}):
            yield Decisions(targets, np.zeros(len(targets), bool), np.zeros(len(targets), np.uint16))
        return
    for targets in iter_targets(store, operand.columns, {name: name for name in store.scorings}):
        yield operand.decide(targets)


def disagreement(store: Store, table: RowTable, a: DecidedStore, b: DecidedStore) -> Disagreement:
    """Where two sides differ, row by row, without reading anything again."""
    counted, first = [], 0
    for part, own, other in zip(store.manifest.parts, a.bits, b.bits, strict=True):
        starts = np.concatenate([[0], np.cumsum(table.targets[first : first + part.rows])])
        of_a, of_b = (np.unpackbits(bits, count=int(starts[-1]), bitorder="little").astype(bool) for bits in (own, other))
        counted.append([count_in_groups(flags, starts) for flags in (of_a & of_b, of_a & ~of_b, of_b & ~of_a)])
        first += part.rows
    return Disagreement(*(np.concatenate(of_parts) for of_parts in zip(*counted, strict=True)))
