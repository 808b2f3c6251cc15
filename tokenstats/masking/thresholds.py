"""The numbers behind every selection over the whole dataset: exact, in bounded memory, whatever the order of the parts."""

import ast
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial

import numpy as np

from tokenstats.errors import RuleError
from tokenstats.masking.evaluate import argument_of
from tokenstats.masking.nodes import name_of, number_of, options_of, selections_in, text_of
from tokenstats.masking.population import Population
from tokenstats.masking.ranking import Ranking
from tokenstats.masking.ranks import dataset_quantile, dataset_top
from tokenstats.masking.resolved import Resolved, Scale, Threshold, key_of
from tokenstats.masking.rule import Rule
from tokenstats.masking.sums import ExactSum
from tokenstats.schema import ROLES

Read = Callable[[], Iterable[Population]]
Values = Callable[[], Iterator[tuple[int, np.ndarray]]]
"""Yields (part, values), the same each time it is called."""


def resolve_thresholds(rule: Rule, read: Read) -> dict[str, Resolved]:
    """Resolve every dataset-wide selection of a rule, innermost first. Keyed by the selection's text.

    ``per=role`` has one entry for each role that targets have, ``TEXT of ROLE``. Raises RuleError where a threshold or
    scale would not be finite.
    """
    found: dict[str, Resolved] = {}
    done: set[str] = set()
    roles: list[int] | None = None
    for call in (call for expression in rule.expressions for call in selections_in(expression.tree)):
        text, (scope, _) = text_of(call), options_of(call)
        if text in done or scope not in ("dataset", "role"):
            continue
        done.add(text)
        if scope == "role" and roles is None:
            roles = sorted({int(code) for population in read() for code in np.unique(population.column((None, "role")))})
        for role in [None] if scope == "dataset" else roles or []:
            values = partial(_values, call, read, dict(found), role)
            found[key_of(text, None if role is None else ROLES[role])] = _resolve(call, values)
    return found


def _values(call: ast.Call, read: Read, found: dict[str, Resolved], role: int | None) -> Iterator[tuple[int, np.ndarray]]:
    for population in read():
        values = argument_of(call, population, found)
        yield population.part, values if role is None else values[population.column((None, "role")) == role]


def _resolve(call: ast.Call, values: Values) -> Resolved:
    def present() -> Iterator[np.ndarray]:  # where nothing follows there is no value
        for _, x in values():
            missing = np.isnan(x)
            yield x[~missing] if missing.any() else x

    match name_of(call):
        case "quantile":
            return Threshold(_finite(dataset_quantile(present, number_of(call.args[-1])), call))
        case "zscore":
            return _zscore(present, call)
        case "minmax":
            return _minmax(present, call)
        case "percent_rank":
            return Ranking(present)
        case name:
            return _top(values, call, largest=name == "top")


def _top(values: Values, call: ast.Call, largest: bool) -> Threshold:
    parts: list[int] = []

    def ranked() -> Iterator[np.ndarray]:
        parts.clear()
        for part, x in values():
            parts.append(part)
            missing = np.isnan(x)
            signed = x if largest else -x  # the smallest of x are the largest of -x
            yield np.where(missing, -np.inf, signed).astype(x.dtype) if missing.any() else signed

    value, room, ties = dataset_top(ranked, number_of(call.args[-1]))
    if value is None:
        return Threshold(None)
    value, taken = _finite(value if largest else -value, call), {}
    for part, equal in sorted(zip(parts, ties, strict=True)):  # of equal values the earlier part's come first
        taken[part] = min(equal, room)
        room -= taken[part]
    return Threshold(value, taken)


def _zscore(present: Callable[[], Iterator[np.ndarray]], call: ast.Call) -> Scale:
    n, total = 0, ExactSum()
    for x in present():
        _finite(float(np.abs(x).max(initial=0.0)), call)
        n += len(x)
        total.add(x)
    mean = float(total.value / n) if n else 0.0
    squares = ExactSum()
    for x in present():
        squared = np.square(x.astype(np.float64) - mean)
        _finite(float(squared.max(initial=0.0)), call)
        squares.add(squared)
    return Scale(mean, float(np.sqrt(float(squares.value / n if n else Fraction(0)))))


def _minmax(present: Callable[[], Iterator[np.ndarray]], call: ast.Call) -> Scale:
    low, high = np.inf, -np.inf
    for x in present():
        low, high = min(low, float(x.min(initial=np.inf))), max(high, float(x.max(initial=-np.inf)))
    if low > high:  # no values at all
        return Scale(0.0, 0.0)
    return Scale(_finite(low, call), _finite(high - low, call))


def _finite(value: float, call: ast.Call) -> float:
    if not np.isfinite(value):
        what = "threshold" if name_of(call) in ("top", "bottom", "random", "quantile") else "scale"
        raise RuleError(f"the {what} of {text_of(call)!r} is {value}; keep it finite, for example with clip(x, low, high)")
    return value
