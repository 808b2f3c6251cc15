"""What is decided about the tokens of one part: which are dropped, for what reason, and what the others weigh."""

import ast
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenstats.errors import RuleError
from tokenstats.masking.engine.aggregates import Aggregates
from tokenstats.masking.engine.evaluate import draws, evaluate
from tokenstats.masking.engine.group_ops import count_in_groups, first_in_groups, sorted_in_groups
from tokenstats.masking.engine.targets import Targets
from tokenstats.masking.rule import Rule
from tokenstats.schema import MAX_CLAUSES
from tokenstats.store import Store
from tokenstats.store.families import MASKS
from tokenstats.store.lists import flat


@dataclass(frozen=True)
class Decisions:
    """What a rule says, or what a stored mask holds, about the n targets of a part.

    Attributes:
        targets: The tokens.
        reason: uint16 [n], bit i is set where the i-th reason dropped the token.
        weight: float32 [n], 0 where dropped; None where nothing is weighed.
        protected: Boolean [n], tokens that the rule may never drop; None of a stored mask, which does not know.
        rescued: Protected tokens that a clause would have dropped.
        rows_with_too_few: Rows that ``min_kept`` dropped or kept whole.
        shortfall: Tokens that the budget asked for beyond those that may be dropped.
    """

    targets: Targets
    dropped: np.ndarray
    reason: np.ndarray
    weight: np.ndarray | None = None
    protected: np.ndarray | None = None
    rescued: int = 0
    rows_with_too_few: int = 0
    shortfall: int = 0

    @cached_property
    def kept_per_row(self) -> np.ndarray:
        """How many tokens of each row are kept, int64 [R]."""
        return count_in_groups(~self.dropped, self.targets.sequence_starts)

    @cached_property
    def by_reason(self) -> np.ndarray:
        """How many tokens each reason dropped, int64 [16]."""
        return np.array([np.count_nonzero(dropped) for dropped in self.each_reason()] + [0] * MAX_CLAUSES)[:MAX_CLAUSES]

    def each_reason(self) -> Sequence[np.ndarray]:
        """For each reason, up to the last that dropped a token, which tokens it dropped: boolean [n]."""
        return [self.reason & np.uint16(1 << bit) > 0 for bit in range(int(self.reason.max(initial=0)).bit_length())]


def decide(rule: Rule, targets: Targets, aggregates: Aggregates, budget: np.ndarray | None = None) -> Decisions:
    """Decide for each token.

    Args:
        rule: What to drop, protect and weigh.
        targets: The tokens of a part, with the columns that the rule reads.
        aggregates: What :func:`~tokenstats.masking.engine.resolve.resolve_rules` found for the rule's dataset-wide selections.
        budget: How many tokens to draw in each row [R], for a rule with a budget.

    Raises:
        RuleError: A weight is negative or not finite; the message names the token.
    """
    protected = np.zeros(len(targets), bool)
    if rule.protected is not None:
        protected = evaluate(rule.protected.tree, targets, aggregates)
    reason, shortfall = np.zeros(len(targets), np.uint16), 0
    if budget is not None:
        reason, shortfall = _drawn(rule, targets, protected, budget)
    else:
        for bit, clause in enumerate(rule.clauses):
            reason |= evaluate(clause.tree, targets, aggregates).astype(np.uint16) << np.uint16(bit)
    rescued = protected & (reason > 0)
    reason[protected] = 0
    few = _enforce_min_kept(rule, targets, reason)
    return Decisions(
        targets=targets,
        dropped=reason > 0,
        reason=reason,
        weight=_weights(rule, targets, aggregates, reason == 0),
        protected=protected,
        rescued=int(np.count_nonzero(rescued & (reason == 0))),
        rows_with_too_few=few,
        shortfall=shortfall,
    )


def stored_decisions(store: Store, mask: str | None, targets: Targets, *, weights: bool = False) -> Decisions:
    """What a stored mask holds for a part's targets; None is plain SFT, which drops nothing.

    Args:
        store: The store that the mask lies in.
        mask: Its name.
        targets: Of the part that is read.
        weights: Read the weights too, of a mask that weighs.
    """
    if mask is None:
        return Decisions(targets, np.zeros(len(targets), bool), np.zeros(len(targets), np.uint16))
    weighs = store.masks[mask].manifest.weighted  # says which masks there are, where this is none
    names = ["keep", "reason"] + ["weight"] * (weights and weighs)
    # a store remembers the part read last: whoever shares it with other threads is not disturbed
    table = copy(store).part(f"{MASKS}/{mask}", targets.part, names)
    keep, reason, *weight = (flat(table[name])[targets.place] for name in names)
    return Decisions(targets, ~keep, reason, *weight)


def _drawn(rule: Rule, targets: Targets, protected: np.ndarray, budget: np.ndarray) -> tuple[np.ndarray, int]:
    """Reasons of a random control, drawn among the tokens that may be dropped, and how many of the budget they lack."""
    assert rule.expression is not None
    call = rule.expression.tree
    assert isinstance(call, ast.Call)
    order = np.where(protected, np.inf, draws(call, targets))
    starts = targets.sequence_starts
    take = np.minimum(budget, np.diff(starts))
    chosen = first_in_groups(order, take, starts, sorted_in_groups(order, starts)) & ~protected
    return chosen.astype(np.uint16), int(budget.sum()) - int(np.count_nonzero(chosen))


def _enforce_min_kept(rule: Rule, targets: Targets, reason: np.ndarray) -> int:
    """Drop or keep whole, in ``reason``, the rows that keep too few tokens; returns how many rows."""
    if rule.min_kept is None:
        return 0
    starts = targets.sequence_starts
    few = (count_in_groups(reason == 0, starts) < rule.min_kept) & (np.diff(starts) > 0)
    concerned = few[targets.row]
    if rule.too_few == "keep":
        reason[concerned] = 0
    else:
        reason[concerned & (reason == 0)] = 1 << len(rule.clauses)
    return int(np.count_nonzero(few))


def _weights(rule: Rule, targets: Targets, aggregates: Aggregates, kept: np.ndarray) -> np.ndarray | None:
    if rule.weighting is None:
        return None
    with np.errstate(over="ignore"):
        weight = evaluate(rule.weighting.tree, targets, aggregates).astype(np.float32)
    bad = kept & ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        first = int(bad.argmax())
        raise RuleError(
            f"the weight {rule.weighting.text!r} is {weight[first]} for {targets.name_of(first)}; expected a finite "
            "number of at least 0: use clip(x, low, high), or drop the token"
        )
    return np.where(kept, weight, np.float32(0))
