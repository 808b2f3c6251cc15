"""Why a rule dropped a token: each condition of each clause with the token's value, its group's threshold and the distance.

    for clause in reasons_for(rule.clauses, targets, row, aggregates):
        for condition in clause.conditions:
            condition.values[i], condition.limits[i], condition.distance[i]   # entropy 1.62, this row's limit 1.41: +0.21

The numbers are the engine's own: values come from its ``evaluate``, thresholds over the dataset are those that it resolved, and
those of a sequence or turn are found with the functions that it selects with.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from tokenstats.masking.engine.aggregates import Aggregates, Threshold, key_of
from tokenstats.masking.engine.evaluate import argument_of, evaluate, starts_among
from tokenstats.masking.engine.group_ops import sorted_in_groups, take_of
from tokenstats.masking.engine.targets import Targets
from tokenstats.masking.language.builtins import NAMES, SELECTIONS
from tokenstats.masking.language.parser import Expression
from tokenstats.masking.language.unparse import among_of, name_of, number_of, options_of, selections_in, text_of
from tokenstats.schema import ROLES

_SYMBOLS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_OVER_THE_DATASET = ("dataset", "role")


@dataclass(frozen=True)
class Condition:
    """One comparison, selection or flag of a clause, over the n targets of one sequence.

    Attributes:
        text: As it stands in the rule, after ``not`` where it is negated.
        measure: The text of what is measured; "" for a flag, which has no number.
        symbol: How a value that fulfils it stands to its limit: one of ``> >= < <= == !=``; "" for a flag. A negated condition
            has the opposite symbol.
        scope: Whose limit it is: ``dataset``, ``sequence``, ``turn`` or ``role`` for a selection, "" where both sides are the
            token's own or a constant.
        values: float64 [n], NaN where there is none.
        limits: float64 [n], the smallest (or largest) value that is taken; NaN where the group takes none, or is not known.
        holds: Boolean [n].
    """

    text: str
    measure: str
    symbol: str
    scope: str
    values: np.ndarray
    limits: np.ndarray
    holds: np.ndarray

    @property
    def distance(self) -> np.ndarray:
        """float64 [n]: value - limit, in the unit of what is measured."""
        return self.values - self.limits


@dataclass(frozen=True)
class Reason:
    """A clause, and the conditions that it is made of. Where all joined by ``and`` hold, the clause holds."""

    text: str
    conditions: tuple[Condition, ...]


def reasons_for(clauses: Sequence[Expression], targets: Targets, row: int, aggregates: Aggregates) -> list[Reason]:
    """Take the clauses of a rule apart for one sequence.

    Args:
        clauses: Of the rule; a bit of ``reason`` each.
        targets: Of the whole part that the sequence lies in: ties with thresholds of the dataset are resolved over it.
        row: The sequence's place in the part.
        aggregates: Of the dataset-wide selections. Those of a stored mask may lack some; what rests on them has no numbers.
    """
    of_row = _OneRow(targets, row, aggregates)
    return [Reason(clause.text, tuple(of_row.conditions(clause.tree, False))) for clause in clauses]


@dataclass(frozen=True)
class _OneRow:
    part: Targets
    row: int
    aggregates: Aggregates

    @cached_property
    def own(self) -> slice:
        """Where the sequence's targets stand among the part's."""
        return slice(*self.part.sequence_starts[self.row : self.row + 2])

    @cached_property
    def alone(self) -> Targets:
        """The sequence's targets by themselves."""
        return self.part.of_rows(self.row, self.row + 1)

    def conditions(self, node: ast.expr, negated: bool) -> Iterator[Condition]:
        match node:
            case ast.BoolOp(values=branches):
                for branch in branches:
                    yield from self.conditions(branch, negated)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield from self.conditions(operand, not negated)
            case ast.Compare(left=left, ops=ops, comparators=sides):
                # a chain under a "not" is no conjunction of its negated parts: it stays in one piece
                if negated and len(ops) > 1:
                    yield self._flag(node, negated)
                    return
                for op, (one, other) in zip(ops, pairwise([left, *sides]), strict=True):
                    yield self._comparison(ast.Compare(one, [op], [other]), negated)
            case ast.Call() if SELECTIONS.get(name_of(node)) == "boolean":
                yield self._selection(node, negated)
            case _:
                yield self._flag(node, negated)

    def _flag(self, node: ast.expr, negated: bool) -> Condition:
        nothing = np.full(len(self.alone), np.nan)
        return Condition(_said(node, negated), "", "", "", nothing, nothing, self._holds(node, negated))

    def _comparison(self, node: ast.Compare, negated: bool) -> Condition:
        value, limit, symbol = node.left, node.comparators[0], _SYMBOLS[type(node.ops[0])]
        if any(isinstance(side, ast.Name) and side.id in NAMES for side in (value, limit)):
            return self._flag(node, negated)
        if isinstance(value, ast.Constant) and not isinstance(limit, ast.Constant):
            value, limit, symbol = limit, value, _MIRRORED[symbol]
        scopes = {options_of(call)[0] for call in selections_in(limit)}
        return Condition(
            text=_said(node, negated),
            measure=text_of(value),
            symbol=_opposite(symbol) if negated else symbol,
            scope=scopes.pop() if len(scopes) == 1 else "",
            values=self._evaluated(value, np.float64, np.nan),
            limits=self._evaluated(limit, np.float64, np.nan),
            holds=self._holds(node, negated),
        )

    def _selection(self, call: ast.Call, negated: bool) -> Condition:
        name, scope = name_of(call), options_of(call)[0]
        symbol = ">=" if name == "top" else "<="
        values = self._known(call.args[:-1], lambda targets: argument_of(call, targets, self.aggregates), np.float64, np.nan)
        among = among_of(call)
        members = slice(None) if among is None else self._evaluated(among, np.bool_, False)
        limits = np.full(len(self.alone), np.nan)  # what is no member of a group has no limit
        limits[members] = (
            self._resolved(call, scope, members)
            if scope in _OVER_THE_DATASET
            else self._of_groups(call, values[members], members, scope)
        )
        return Condition(
            text=_said(call, negated),
            measure="the number drawn" if name == "random" else text_of(call.args[0]),
            symbol=_opposite(symbol) if negated else symbol,
            scope=scope,
            values=values,
            limits=limits,
            holds=self._holds(call, negated),
        )

    def _resolved(self, call: ast.Call, scope: str, members: np.ndarray | slice) -> np.ndarray:
        """[m] the threshold that the engine resolved over the dataset, or over each role, for each member."""
        roles: list[str | None] = [None] * len(np.arange(len(self.alone))[members])
        if scope == "role":
            roles = [ROLES[code] for code in self.alone.column((None, "role"))[members]]
        limits = {role: self.aggregates.get(key_of(text_of(call), role)) for role in set(roles)}
        return np.array([_value_of(limits[role]) for role in roles], np.float64)

    def _of_groups(self, call: ast.Call, values: np.ndarray, members: np.ndarray | slice, scope: str) -> np.ndarray:
        """[m] the last value that is taken of each member's sequence or turn, as the engine's selection takes them."""
        sign = -1.0 if name_of(call) == "top" else 1.0
        starts = starts_among(self.alone.starts(scope), members)
        take = take_of(number_of(call.args[-1]), starts)
        ordered, some = sorted_in_groups(sign * values, starts), take > 0
        limit = np.full(len(take), np.nan)
        limit[some] = sign * ordered[(starts[:-1] + take)[some] - 1]
        return np.repeat(limit, np.diff(starts))

    def _holds(self, node: ast.expr, negated: bool) -> np.ndarray:
        holds = self._evaluated(node, np.bool_, False)
        return ~holds if negated else holds

    def _evaluated(self, node: ast.expr, kind: type, unknown: object) -> np.ndarray:
        return self._known([node], lambda targets: evaluate(node, targets, self.aggregates), kind, unknown)

    def _known(
        self, nodes: Sequence[ast.expr], compute: Callable[[Targets], np.ndarray], kind: type, unknown: object
    ) -> np.ndarray:
        """[n] of the sequence, computed over as little as is right; ``unknown`` where an aggregate is missing."""
        calls = [call for node in nodes for call in selections_in(node) if options_of(call)[0] in _OVER_THE_DATASET]
        if not calls:
            return compute(self.alone).astype(kind)
        if not all(any(key == text_of(c) or key.startswith(f"{text_of(c)} of ") for key in self.aggregates) for c in calls):
            return np.full(len(self.alone), unknown, kind)
        return compute(self.part)[self.own].astype(kind)


def _value_of(threshold: object) -> float:
    return threshold.value if isinstance(threshold, Threshold) and threshold.value is not None else np.nan


def _said(node: ast.expr, negated: bool) -> str:
    return text_of(ast.UnaryOp(ast.Not(), node)) if negated else text_of(node)


def _opposite(symbol: str) -> str:
    return {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}[symbol]
