"""A rule's word on the tokens of one part: which are dropped, for what reason, and what the others weigh."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenstats.errors import RuleError
from tokenstats.masking.engine.evaluate import draws, evaluate
from tokenstats.masking.engine.group_ops import count_in_groups, first_in_groups, sorted_in_groups
from tokenstats.masking.engine.resolved import Resolved
from tokenstats.masking.engine.targets import Targets
from tokenstats.masking.rule import Rule
from tokenstats.schema import MAX_CLAUSES


@dataclass(frozen=True)
class Decisions:
    """The rule's word on the n tokens of a population.

    dropped:   [n] boolean; reason: [n] uint16, bit i is set where the rule's i-th reason dropped the token
    weight:    [n] float32, 0 where dropped; None: the rule does not weigh
    protected: tokens that a clause would have dropped
    rows_with_too_few: rows that ``min_kept`` dropped or kept whole
    shortfall: tokens that the budget asked for beyond those that may be dropped
    """

    population: Targets
    dropped: np.ndarray
    reason: np.ndarray
    weight: np.ndarray | None
    protected: int
    rows_with_too_few: int
    shortfall: int

    @cached_property
    def kept_per_row(self) -> np.ndarray:
        """[R] how many tokens of each row are kept."""
        return count_in_groups(~self.dropped, self.population.sequence_starts)

    @cached_property
    def by_reason(self) -> np.ndarray:
        """int64 [16] how many tokens each reason dropped."""
        counts = np.zeros(MAX_CLAUSES, np.int64)
        for bit in range(int(self.reason.max(initial=0)).bit_length()):
            counts[bit] = np.count_nonzero(self.reason & np.uint16(1 << bit))
        return counts


def decide(rule: Rule, population: Targets, resolved: Mapping[str, Resolved], budget: np.ndarray | None = None) -> Decisions:
    """Decide for each token. ``budget`` [R]: how many tokens to draw in each row, for a rule with a budget.

    Raises RuleError, naming the token, for a weight that is negative or not finite.
    """
    spared = np.zeros(len(population), bool)
    if rule.protected is not None:
        spared = evaluate(rule.protected.tree, population, resolved)
    reason, shortfall = np.zeros(len(population), np.uint16), 0
    if budget is not None:
        reason, shortfall = _drawn(rule, population, spared, budget)
    else:
        for bit, clause in enumerate(rule.clauses):
            reason |= evaluate(clause.tree, population, resolved).astype(np.uint16) << np.uint16(bit)
    protected = spared & (reason > 0)
    reason[spared] = 0
    few = _enforce_min_kept(rule, population, reason)
    return Decisions(
        population=population,
        dropped=reason > 0,
        reason=reason,
        weight=_weights(rule, population, resolved, reason == 0),
        protected=int(np.count_nonzero(protected & (reason == 0))),
        rows_with_too_few=few,
        shortfall=shortfall,
    )


def _drawn(rule: Rule, population: Targets, spared: np.ndarray, budget: np.ndarray) -> tuple[np.ndarray, int]:
    """Reasons of a random control, drawn among the tokens that may be dropped, and how many of the budget they lack."""
    assert rule.expression is not None
    call = rule.expression.tree
    assert isinstance(call, ast.Call)
    order = np.where(spared, np.inf, draws(call, population))
    starts = population.sequence_starts
    take = np.minimum(budget, np.diff(starts))
    chosen = first_in_groups(order, take, starts, sorted_in_groups(order, starts)) & ~spared
    return chosen.astype(np.uint16), int(budget.sum()) - int(np.count_nonzero(chosen))


def _enforce_min_kept(rule: Rule, population: Targets, reason: np.ndarray) -> int:
    """Drop or keep whole, in ``reason``, the rows that keep too few tokens; returns how many rows."""
    if rule.min_kept is None:
        return 0
    starts = population.sequence_starts
    few = (count_in_groups(reason == 0, starts) < rule.min_kept) & (np.diff(starts) > 0)
    concerned = few[population.row]
    if rule.too_few == "keep":
        reason[concerned] = 0
    else:
        reason[concerned & (reason == 0)] = 1 << len(rule.clauses)
    return int(np.count_nonzero(few))


def _weights(rule: Rule, population: Targets, resolved: Mapping[str, Resolved], kept: np.ndarray) -> np.ndarray | None:
    if rule.weighting is None:
        return None
    with np.errstate(over="ignore"):
        weight = evaluate(rule.weighting.tree, population, resolved).astype(np.float32)
    bad = kept & ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        first = int(bad.argmax())
        raise RuleError(
            f"the weight {rule.weighting.text!r} is {weight[first]} for {population.name_of(first)}; expected a finite "
            "number of at least 0: use clip(x, low, high), or drop the token"
        )
    return np.where(kept, weight, np.float32(0))
