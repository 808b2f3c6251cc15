"""Evaluate a rule over populations: first the thresholds that need the whole dataset, then token by token."""

import ast
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenstats.errors import RuleError
from tokenstats.masking.population import Population
from tokenstats.masking.ranks import dataset_quantile, dataset_top
from tokenstats.masking.rule import Rule
from tokenstats.masking.selections import first_in_groups, quantile_in_groups, top_in_groups, uniform
from tokenstats.masking.syntax import SELECTIONS, column_of, name_of, number_of, options_of
from tokenstats.schema import ROLES

Read = Callable[[], Iterable[Population]]
_ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}
_COMPARE = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": np.abs, "log": np.log, "exp": np.exp, "sqrt": np.sqrt, "clip": np.clip}


@dataclass(frozen=True)
class Threshold:
    """What a dataset-wide selection came down to: a number (None: it takes no token) and, per part, how many of the

    tokens equal to it are taken.
    """

    value: float | None
    ties: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The rule's word on the n tokens of a population."""

    population: Population
    dropped: np.ndarray
    reason: np.ndarray
    protected: int


def resolve_thresholds(rule: Rule, read: Read) -> dict[str, Threshold]:
    """Numbers for every dataset-wide selection of a rule, exact, innermost first. Keyed by the selection's text."""
    found: dict[str, Threshold] = {}
    trees = [rule.expression.tree] + ([rule.protected.tree] if rule.protected else [])
    for call in (node for tree in trees for node in _inner_first(tree)):
        text = ast.unparse(call)
        if text not in found and options_of(call)[0] == "dataset":
            found[text] = _threshold(call, read, found)
    return found


def _threshold(call: ast.Call, read: Read, found: dict[str, Threshold]) -> Threshold:
    name, f = name_of(call), number_of(call.args[-1])
    sign = 1 if name in ("top", "quantile") else -1  # the smallest of x are the largest of -x
    parts: list[int] = []

    def values() -> Iterator[np.ndarray]:
        parts.clear()
        for population in read():
            parts.append(population.part)
            yield sign * _as_float(_argument(call, population, found))

    value, ties = (dataset_quantile(values, f), []) if name == "quantile" else dataset_top(values, f)
    if value is None:
        return Threshold(None)
    if not np.isfinite(value):
        raise RuleError(
            f"the threshold of {ast.unparse(call)!r} is {sign * value}; keep it finite, for example with clip(x, low, high)"
        )
    return Threshold(sign * value, dict(zip(parts, ties, strict=True)) if ties else {})


def judge(rule: Rule, population: Population, thresholds: dict[str, Threshold], budget: np.ndarray | None = None) -> Verdict:
    """Decide for each token. ``budget`` [R]: how many tokens to draw in each row, for a rule with a budget."""
    spared = evaluate(rule.protected.tree, population, thresholds) if rule.protected else np.zeros(len(population), bool)
    reason = np.zeros(len(population), np.uint16)
    if budget is not None:
        call = rule.expression.tree
        assert isinstance(call, ast.Call)
        draws = np.where(spared, np.inf, _draws(call, population))
        chosen = first_in_groups(draws, budget, population.sequence_starts) & ~spared
        reason[chosen] = 1
    else:
        for bit, clause in enumerate(rule.clauses):
            reason |= evaluate(clause.tree, population, thresholds).astype(np.uint16) << np.uint16(bit)
    protected = int(np.count_nonzero(spared & (reason > 0)))
    reason[spared] = 0
    return Verdict(population, reason > 0, reason, protected)


def evaluate(node: ast.expr, population: Population, thresholds: dict[str, Threshold]) -> np.ndarray:
    """[n] value of an expression for each token: boolean, or a number (float64, or a statistic's own float32)."""

    def value(child: ast.expr) -> np.ndarray:
        return evaluate(child, population, thresholds)

    match node:
        case ast.Constant():
            return np.full(len(population), float(number_of(node)))
        case ast.Name() | ast.Attribute():
            column = column_of(node)
            assert column is not None
            return population.column(column)
        case ast.BoolOp(op=op, values=branches):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            result = value(branches[0])
            for branch in branches[1:]:
                result = join(result, value(branch))
            return result
        case ast.UnaryOp(op=op, operand=operand):
            return ~value(operand) if isinstance(op, ast.Not) else -_as_float(value(operand))
        case ast.BinOp(left=left, op=op, right=right):
            with np.errstate(all="ignore"):
                result = _ARITHMETIC[type(op)](_wide(value(left)), _wide(value(right)))
            return _number(result, node, population)
        case ast.Compare():
            return _comparison(node, value)
        case ast.Call(func=ast.Name(id=name)) if name in SELECTIONS:
            return _selection(node, name, population, thresholds)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            with np.errstate(all="ignore"):
                result = _FUNCTIONS[name](*(_wide(value(a)) for a in arguments))
            return _number(result, node, population)
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _selection(call: ast.Call, name: str, population: Population, thresholds: dict[str, Threshold]) -> np.ndarray:
    scope, _ = options_of(call)
    f = number_of(call.args[-1])
    if scope == "dataset":
        threshold = thresholds[ast.unparse(call)]
        if threshold.value is None:
            return np.zeros(len(population), bool)
        if name == "quantile":
            return np.full(len(population), threshold.value)
        x = _as_float(_argument(call, population, thresholds))
        beyond = x > threshold.value if name == "top" else x < threshold.value
        equal = np.flatnonzero(x == threshold.value)
        beyond[equal[: threshold.ties.get(population.part, 0)]] = True
        return beyond
    x = _as_float(_argument(call, population, thresholds))
    starts = population.starts(scope)
    if name == "quantile":
        return quantile_in_groups(x, float(f), starts)
    return top_in_groups(x if name == "top" else -x, f, starts)


def _argument(call: ast.Call, population: Population, thresholds: dict[str, Threshold]) -> np.ndarray:
    """What a selection ranks. ``random`` takes the smallest of numbers drawn for each token."""
    if name_of(call) == "random":
        return _draws(call, population)
    return evaluate(call.args[0], population, thresholds)


def _draws(call: ast.Call, population: Population) -> np.ndarray:
    return uniform(options_of(call)[1], population.rows[population.row], population.position_in_sequence)


def _comparison(node: ast.Compare, value: Callable[[ast.expr], np.ndarray]) -> np.ndarray:
    sides = [node.left, *node.comparators]
    if any(isinstance(s, ast.Name) and s.id == "role" for s in sides):
        arrays: list[Any] = [ROLES.index(s.value) if isinstance(s, ast.Constant) else value(s) for s in sides]
    else:
        # a float32 statistic against a number: both as float64, or 2.1 would be rounded to float32 first
        arrays = [_wide(value(s)) for s in sides]
    result: np.ndarray | None = None
    for op, left, right in zip(node.ops, arrays, arrays[1:], strict=False):
        this = np.asarray(_COMPARE[type(op)](left, right))
        result = this if result is None else result & this
    assert result is not None
    return result


def _inner_first(tree: ast.expr) -> list[ast.Call]:
    inner = [call for child in ast.iter_child_nodes(tree) if isinstance(child, ast.expr) for call in _inner_first(child)]
    is_selection = isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in SELECTIONS
    return [*inner, tree] if is_selection else inner  # type: ignore[list-item]


def _as_float(values: np.ndarray) -> np.ndarray:
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64, copy=False)


def _number(values: np.ndarray, node: ast.expr, population: Population) -> np.ndarray:
    bad = np.isnan(values)
    if bad.any():
        first = int(bad.argmax())
        raise RuleError(
            f"{ast.unparse(node)!r} is not a number for token {population.position_in_sequence[first]} of sequence "
            f"{population.seq_ids[int(population.row[first])]}; keep it in range, for example with clip(x, low, high)"
        )
    return values
