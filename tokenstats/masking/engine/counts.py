"""What decisions come to: counts that are added up part by part, the same whatever the order of the parts.

Masks, sweeps, comparisons, previews and audits all count with these.
"""

from dataclasses import dataclass, field, fields

import numpy as np

from tokenstats.masking.engine.decisions import Decisions
from tokenstats.masking.engine.exact_sum import ExactSum
from tokenstats.schema import MAX_CLAUSES


@dataclass
class Counts:
    """Of the tokens decided about so far.

    Attributes:
        targets, dropped: Tokens.
        ends, ends_dropped: End-of-turn tokens among them; 0 where the ids were not read.
        by_reason: Tokens that each reason dropped, int64 [16]; one that two reasons dropped counts in both.
        several: Tokens that more than one reason dropped.
        rescued, rows_with_too_few, shortfall: As in :class:`Decisions`.
        rows_with_nothing_kept: Rows of which every token is dropped, and rows without a target.
        weight: Sum of the weights.
    """

    targets: int = 0
    dropped: int = 0
    ends: int = 0
    ends_dropped: int = 0
    by_reason: np.ndarray = field(default_factory=lambda: np.zeros(MAX_CLAUSES, np.int64))
    several: int = 0
    rescued: int = 0
    rows_with_nothing_kept: int = 0
    rows_with_too_few: int = 0
    shortfall: int = 0
    weight: ExactSum = field(default_factory=ExactSum)

    @classmethod
    def of(cls, decisions: Decisions) -> "Counts":
        """Count one part."""
        targets, dropped, reason = decisions.targets, decisions.dropped, decisions.reason
        ends = targets.column((None, "is_end_of_turn")) if targets.has_ids else np.zeros(len(targets), bool)
        return cls(
            targets=len(targets),
            dropped=int(np.count_nonzero(dropped)),
            ends=int(np.count_nonzero(ends)),
            ends_dropped=int(np.count_nonzero(ends & dropped)),
            by_reason=decisions.by_reason,
            several=int(np.count_nonzero(reason & (reason - np.uint16(1)))),  # without its lowest bit: is there another?
            rescued=decisions.rescued,
            rows_with_nothing_kept=int(np.count_nonzero(decisions.kept_per_row == 0)),
            rows_with_too_few=decisions.rows_with_too_few,
            shortfall=decisions.shortfall,
            weight=ExactSum(decisions.weight),
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def kept(self) -> int:
        """Tokens that are not dropped."""
        return self.targets - self.dropped

    def overlap(self, clauses: int) -> float:
        """Tokens that several of so many clauses drop / tokens that any of them drops; 0 where there are none.

        What ``min_kept`` drops, the reason behind the clauses', it drops because no clause did.
        """
        dropped = self.dropped - int(self.by_reason[clauses:].sum())
        return self.several / dropped if dropped else 0.0

    @property
    def share_dropped(self) -> float:
        """Dropped / targets; 0 of no targets."""
        return self.dropped / self.targets if self.targets else 0.0


def jaccard(both: float, one: float, other: float) -> float:
    """|A and B| / |A or B| of two sets of so many tokens; 1 where both are empty."""
    either = one + other - both
    return both / either if either else 1.0
