"""Two masks side by side: how far they agree, and where they do not."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tokenstats.store import Store


@dataclass(frozen=True)
class Comparison:
    """Counts of target tokens, and what follows from them.

    jaccard:    |dropped by both| / |dropped by either|; 1.0 where neither drops anything
    by_chance:  the jaccard that two independent random masks of the same sizes would have
    per_row:    shares of rows' own Jaccard index at the 10th, 50th and 90th percentile (rows that drop something)
    only_a/b:   token ids most often dropped by one mask only, with their counts
    """

    mask_a: str
    mask_b: str
    targets: int
    both_dropped: int
    only_a_dropped: int
    only_b_dropped: int
    both_kept: int
    jaccard: float
    by_chance: float
    per_row: tuple[float, float, float]
    only_a: tuple[tuple[int, int], ...]
    only_b: tuple[tuple[int, int], ...]


def compare_masks(store: Store, mask_a: str, mask_b: str, most: int = 10) -> Comparison:
    """Compare two masks of one store. Raises StoreError where one of them is not there."""
    mask_a, mask_b = store.mask(mask_a)[0], store.mask(mask_b)[0]
    table = np.zeros((2, 2), np.int64)
    rows: list[np.ndarray] = []
    only: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    # a dict cannot hold one family twice: a mask compared with itself is read once
    families = {"tokens": ["input_ids", "is_target"], f"masks/{mask_a}": ["keep"], f"masks/{mask_b}": ["keep"]}
    for tables in store.aligned(families):
        ids = tables["tokens"]["input_ids"].combine_chunks()
        offsets = ids.offsets.to_numpy()
        target = _flags(tables["tokens"]["is_target"])
        target[offsets[:-1]] = False
        a, b = (target & ~_flags(tables[f"masks/{m}"]["keep"]) for m in (mask_a, mask_b))
        table += [[np.sum(a & b), np.sum(a & ~b)], [np.sum(b & ~a), np.sum(target & ~a & ~b)]]
        both, either = (np.diff(np.concatenate([[0], np.cumsum(x)])[offsets]) for x in (a & b, a | b))
        rows.append(both[either > 0] / either[either > 0])
        for counter, difference in zip(only, (a & ~b, b & ~a), strict=True):
            values, counts = np.unique(ids.flatten().to_numpy()[difference], return_counts=True)
            counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    (both_dropped, only_a), (only_b, both_kept) = table.tolist()
    targets = int(table.sum())
    per_row = np.concatenate(rows) if rows else np.zeros(0)
    return Comparison(
        mask_a=mask_a,
        mask_b=mask_b,
        targets=targets,
        both_dropped=both_dropped,
        only_a_dropped=only_a,
        only_b_dropped=only_b,
        both_kept=both_kept,
        jaccard=_ratio(both_dropped, both_dropped + only_a + only_b),
        by_chance=_chance(both_dropped + only_a, both_dropped + only_b, targets),
        per_row=tuple(np.quantile(per_row, [0.1, 0.5, 0.9]).tolist()) if len(per_row) else (1.0, 1.0, 1.0),
        only_a=tuple(only[0].most_common(most)),
        only_b=tuple(only[1].most_common(most)),
    )


def _flags(column: object) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()  # type: ignore[attr-defined]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _chance(a: int, b: int, n: int) -> float:
    both = a * b / n if n else 0.0
    return _ratio(both, a + b - both)
