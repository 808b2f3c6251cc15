"""Evaluate a checked expression, token by token, over one part's targets."""

import ast
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tokenstats.errors import RuleError
from tokenstats.masking.engine.aggregates import Aggregate, Aggregates, Threshold, key_of
from tokenstats.masking.engine.group_ops import (
    first_in_groups,
    minmax_in_groups,
    percent_rank_in_groups,
    quantile_in_groups,
    sorted_in_groups,
    take_of,
    uniform,
    zscore_in_groups,
)
from tokenstats.masking.engine.targets import Targets
from tokenstats.masking.engine.texts import CONDITIONS
from tokenstats.masking.language.builtins import FOLLOWING, FUNCTIONS, NAMES, SELECTIONS
from tokenstats.masking.language.unparse import among_of, column_of, name_of, number_of, options_of, text_of, texts_of
from tokenstats.schema import ROLES

_ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}
_COMPARE = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_SCALES = {"zscore": zscore_in_groups, "minmax": minmax_in_groups, "percent_rank": percent_rank_in_groups}


def evaluate(node: ast.expr, targets: Targets, aggregates: Aggregates) -> np.ndarray:
    """[n] value of an expression for each token: boolean, or a number (float64, or a statistic's own float32).

    NaN stands for "no value": that of ``following(x)`` at the end of a reply, and of a selection for a token of no group.
    Raises RuleError, naming the token, where arithmetic would make another one.

    Args:
        node: A checked expression.
        targets: The tokens, with the columns that it reads.
        aggregates: What :func:`~tokenstats.masking.engine.resolve.resolve` found for the dataset-wide selections.
    """

    def value(child: ast.expr) -> np.ndarray:
        return evaluate(child, targets, aggregates)

    match node:
        case ast.Constant():
            return np.full(len(targets), float(number_of(node)))
        case ast.Name() | ast.Attribute():
            column = column_of(node)
            assert column is not None
            return targets.column(column)
        case ast.BoolOp(op=op, values=branches):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            result = value(branches[0])
            for branch in branches[1:]:
                result = join(result, value(branch))
            return result
        case ast.UnaryOp(op=op, operand=operand):
            return ~value(operand) if isinstance(op, ast.Not) else -_as_float(value(operand))
        case ast.BinOp(left=left, op=op, right=right):
            return _compute(_ARITHMETIC[type(op)], [_wide(value(left)), _wide(value(right))], node, targets)
        case ast.Compare():
            return _comparison(node, value)
        case ast.Call(args=arguments):
            name = name_of(node)
            if name in SELECTIONS:
                return _selection(node, name, targets, aggregates)
            if name == FOLLOWING:
                return _following(value(arguments[0]), targets)
            if name in CONDITIONS:
                return targets.remembered(text_of(node), lambda: CONDITIONS[name](targets, *texts_of(node)))
            return _compute(FUNCTIONS[name].of, [_wide(value(a)) for a in arguments], node, targets)
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def argument_of(call: ast.Call, targets: Targets, aggregates: Aggregates) -> np.ndarray:
    """[n] floats that a selection looks at. ``random`` takes the smallest of numbers drawn for each token."""
    if name_of(call) == "random":
        return draws(call, targets)
    return _as_float(evaluate(call.args[0], targets, aggregates))


def members_of(call: ast.Call, targets: Targets, aggregates: Aggregates) -> np.ndarray | slice:
    """Which targets a selection's groups are made of: boolean [n], or a slice of all."""
    among = among_of(call)
    return slice(None) if among is None else evaluate(among, targets, aggregates)


def argument_text(call: ast.Call) -> str:
    """What stands for the values that a selection looks at: equal texts, equal values."""
    text = f"random, seed={options_of(call)[1]}" if name_of(call) == "random" else text_of(call.args[0])
    among = among_of(call)
    return text if among is None else f"{text} among {text_of(among)}"


def draws(call: ast.Call, targets: Targets) -> np.ndarray:
    """[n] numbers in [0, 1) that ``random(…)`` draws, from its seed, the dataset's row and the place in it alone."""
    return uniform(options_of(call)[1], targets.rows[targets.row], targets.position_in_sequence)


def _selection(call: ast.Call, name: str, targets: Targets, aggregates: Aggregates) -> np.ndarray:
    members = members_of(call, targets, aggregates)
    x = argument_of(call, targets, aggregates)[members]
    found = _of_members(call, name, x, members, targets, aggregates)
    if isinstance(members, slice):
        return found
    # what is no member of any group is not taken, and has no value
    result = np.zeros(len(targets), bool) if found.dtype == bool else np.full(len(targets), np.nan)
    result[members] = found
    return result


def _of_members(
    call: ast.Call, name: str, x: np.ndarray, members: np.ndarray | slice, targets: Targets, aggregates: Aggregates
) -> np.ndarray:
    """[m] the selection's value for each member, from what it looks at [m]."""
    scope, _ = options_of(call)
    if scope == "dataset":
        return _against(aggregates[text_of(call)], x, name, targets)
    if scope == "role":
        return _by_role(call, x, targets.column((None, "role"))[members], targets, aggregates)
    starts = starts_among(targets.starts(scope), members)
    if name in _SCALES:
        return _no_nan(_SCALES[name](x, starts), [x], call, targets, members)
    f, signed = number_of(call.args[-1]), -x if name == "top" else x  # the largest of x are the smallest of -x
    # sorted once for every share that is asked of the same values
    what = f"{'-' if name == 'top' else ''}{argument_text(call)} of {scope}s"
    ordered = targets.remembered(what, lambda: sorted_in_groups(signed, starts))
    if name == "quantile":
        return quantile_in_groups(x, float(f), starts, ordered)
    return first_in_groups(signed, take_of(f, starts), starts, ordered)


def starts_among(starts: np.ndarray, members: np.ndarray | slice) -> np.ndarray:
    """[G + 1] where each group begins among its members alone."""
    return starts if isinstance(members, slice) else np.searchsorted(np.flatnonzero(members), starts)


def _by_role(call: ast.Call, x: np.ndarray, roles: np.ndarray, targets: Targets, aggregates: Aggregates) -> np.ndarray:
    name = name_of(call)
    result = np.zeros(len(x), bool if SELECTIONS[name] == "boolean" else np.float64)
    for code in np.unique(roles):
        own, found = roles == code, aggregates.get(key_of(text_of(call), ROLES[code]))
        if found is not None:  # a sample of the dataset need not have every role
            result[own] = _against(found, x[own], name, targets)
    return result


def _against(found: Aggregate, x: np.ndarray, name: str, targets: Targets) -> np.ndarray:
    """Hold values against what their selection came down to over the dataset."""
    if not isinstance(found, Threshold):
        return found.of(x)
    if name == "quantile":
        return np.full(len(x), np.nan if found.value is None else found.value)
    return found.takes(x, targets.part, largest=name == "top")


def _following(values: np.ndarray, targets: Targets) -> np.ndarray:
    """Each token's value is that of the next token; NaN, or False, where the next token is no target of the sequence."""
    followed = targets.is_followed
    result = np.zeros(len(values), bool) if values.dtype == bool else np.full(len(values), np.nan, _as_float(values).dtype)
    result[followed] = values[1:][followed[:-1]]
    return result


def _comparison(node: ast.Compare, value: Callable[[ast.expr], np.ndarray]) -> np.ndarray:
    sides = [node.left, *node.comparators]
    names = next((NAMES[s.id] for s in sides if isinstance(s, ast.Name) and s.id in NAMES), None)
    if names is not None:
        arrays: list[Any] = [names.index(s.value) if isinstance(s, ast.Constant) else value(s) for s in sides]
    else:
        # a float32 statistic against a number: both as float64, or 2.1 would be rounded to float32 first
        arrays = [_wide(value(s)) for s in sides]
    result: np.ndarray | None = None
    for op, left, right in zip(node.ops, arrays, arrays[1:], strict=False):
        this = np.asarray(_COMPARE[type(op)](left, right))
        if isinstance(op, ast.NotEq):
            this &= ~(np.isnan(left) | np.isnan(right))  # where nothing follows, every comparison is false
        result = this if result is None else result & this
    assert result is not None
    return result


def _compute(function: Callable[..., Any], values: list[np.ndarray], node: ast.expr, targets: Targets) -> np.ndarray:
    with np.errstate(all="ignore"):
        return _no_nan(function(*values), values, node, targets)


def _no_nan(
    result: np.ndarray,
    values: list[np.ndarray],
    node: ast.expr,
    targets: Targets,
    members: np.ndarray | slice = slice(None),
) -> np.ndarray:
    """Refuse a NaN that was not among the values already; ``members``: the targets that the values are of."""
    bad = np.isnan(result)
    if bad.any():
        bad &= ~np.any([np.isnan(v) for v in values], axis=0)
    if bad.any():
        first = int(np.arange(len(targets))[members][bad.argmax()])
        raise RuleError(
            f"{text_of(node)!r} is not a number for {targets.name_of(first)}; "
            "keep it in range, for example with clip(x, low, high)"
        )
    return result


def _as_float(values: np.ndarray) -> np.ndarray:
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64, copy=False)
