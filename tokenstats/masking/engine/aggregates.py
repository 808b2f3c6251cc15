"""The numbers behind every selection over the whole dataset: exact, in bounded memory, whatever the order of the parts."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tokenstats.errors import RuleError
from tokenstats.masking.engine.evaluate import argument_of, argument_text
from tokenstats.masking.engine.exact_sum import ExactSum
from tokenstats.masking.engine.external_rank import rank_all
from tokenstats.masking.engine.multipass import Measure, Pass, Steps, work_out
from tokenstats.masking.engine.order_statistics import Ordered, order_statistics, quantile_of, quantile_ranks, share_of
from tokenstats.masking.engine.part_reader import Source
from tokenstats.masking.engine.resolved import Resolved, Scale, Threshold, key_of
from tokenstats.masking.engine.targets import Targets
from tokenstats.masking.language.parser import Expression
from tokenstats.masking.language.unparse import Column, columns_in, name_of, number_of, options_of, selections_in, text_of
from tokenstats.masking.rule import Rule
from tokenstats.schema import ROLES

_OVER_THE_DATASET = ("dataset", "role")


class _Question(NamedTuple):
    """What is asked of the values of one argument, over all targets (role None) or those of one role.

    All selections that need ranks of the same values are one question: they share every histogram.
    """

    kind: str
    argument: str
    role: int | None


def resolve_thresholds(rules: Iterable[Rule], source: Source) -> dict[str, Resolved]:
    """Resolve every dataset-wide selection of some rules, as :func:`resolve_selections` does."""
    return resolve_selections([expression for rule in rules for expression in rule.expressions], source)


def resolve_selections(expressions: Iterable[Expression], source: Source) -> dict[str, Resolved]:
    """Resolve every dataset-wide selection of some expressions, together. Keyed by the selection's text.

    However many there are, the source is read as often as for the one that asks for most: twice, and as often
    again where one selection stands inside another. (Of values that agree in their upper bits by the million: up to
    three times for float32, five for float64. ``percent_rank`` takes one reading more.)
    ``per=role`` has one entry for each role that targets have, ``TEXT of ROLE``. Raises RuleError where a threshold or
    scale would not be finite.
    """
    found: dict[str, Resolved] = {}
    for calls in _levels(expressions):
        questions: dict[_Question, dict[str, ast.Call]] = {}
        for text, call in calls.items():
            for role in [None] if options_of(call)[0] == "dataset" else range(len(ROLES)):
                question = _Question(_kind_of(call), argument_text(call), role)
                questions.setdefault(question, {})[text] = call
        answers = work_out(
            {question: _steps(question, list(asking.values())) for question, asking in questions.items()},
            partial(_read, source, questions, found),
        )
        for question, resolved in answers.items():
            role_name = None if question.role is None else ROLES[question.role]
            found |= {key_of(text, role_name): result for text, result in resolved.items()}
    return found


def _levels(expressions: Iterable[Expression]) -> list[dict[str, ast.Call]]:
    """Dataset-wide selections by text: first those with no other inside, then those that only need these, and so on."""
    levels: list[dict[str, ast.Call]] = []
    depths: dict[str, int] = {}
    for call in (c for expression in expressions for c in selections_in(expression.tree)):
        inner = [depths[text_of(c)] for argument in call.args for c in selections_in(argument)]
        over_all = options_of(call)[0] in _OVER_THE_DATASET
        depth = depths[text_of(call)] = max(inner, default=0) + over_all
        if over_all:
            levels += [{} for _ in range(depth - len(levels))]
            levels[depth - 1][text_of(call)] = call
    return levels


def _read(
    source: Source,
    questions: Mapping[_Question, Mapping[str, ast.Call]],
    found: Mapping[str, Resolved],
    measures: Mapping[_Question, Measure],
) -> Iterator[dict[_Question, Any]]:
    """One reading of the source: for each part, what each measure says of the values that its question is about."""
    # calls of one question differ in their share only: any of them has the argument
    calls = {question: next(iter(questions[question].values())) for question in measures}
    columns: set[Column] = set().union(*(columns_in(call) for call in calls.values()))

    def measured(population: Targets) -> dict[_Question, Any]:
        values: dict[str, np.ndarray] = {}
        said = {}
        for question, measure in measures.items():
            if question.argument not in values:
                values[question.argument] = argument_of(calls[question], population, found)
            x = values[question.argument]
            own = x if question.role is None else x[population.column((None, "role")) == question.role]
            said[question] = measure(population.part, own)
        return said

    return source.each(measured, columns)


def _kind_of(call: ast.Call) -> str:
    name = name_of(call)
    return name if name in ("zscore", "minmax", "percent_rank") else "ranks"


def _steps(question: _Question, calls: list[ast.Call]) -> Steps[dict[str, Resolved]]:
    """The results by the calls' text; none where a role has no targets."""
    if question.kind == "ranks":
        return _thresholds(calls, question.role)
    steps = {"zscore": _zscore, "minmax": _minmax, "percent_rank": _percent_rank}[question.kind]
    return steps(calls[0], question.role)


def _thresholds(calls: list[ast.Call], role: int | None) -> Steps[dict[str, Resolved]]:
    found = yield from order_statistics(lambda *counts: [rank for call in calls for rank in _ranks_of(call, *counts)])
    if role is not None and not found.present + found.missing:
        return {}
    return {text_of(call): _threshold(call, found) for call in calls}


def _threshold(call: ast.Call, found: Ordered) -> Threshold:
    f, name = number_of(call.args[-1]), name_of(call)
    if name == "quantile":
        return Threshold(_finite(quantile_of(found, f), call) if found.present else None)
    taken, ranks = _taken(f, found.present, found.missing), _ranks_of(call, found.present, found.missing)
    if not taken:
        return Threshold(None)  # a small share of few tokens takes none
    equal, smaller = found.equal[ranks[0]], found.smaller[ranks[0]]
    beyond = found.present - smaller - sum(equal.values()) if name == "top" else smaller
    return Threshold(_finite(found.at[ranks[0]], call), _ties(taken - beyond, equal))


def _ties(room: int, equal: Mapping[int, int]) -> dict[int, int]:
    """Of values equal to the threshold the earlier part's come first: how many of each part there is room for."""
    ties = {}
    for part in sorted(equal):
        ties[part] = min(equal[part], room)
        room -= ties[part]
    return ties


def _ranks_of(call: ast.Call, present: int, missing: int) -> list[int]:
    """Which ranks a selection needs, counted from the smallest of the values there are."""
    f = number_of(call.args[-1])
    if name_of(call) == "quantile":
        return quantile_ranks(f, present)
    taken = _taken(f, present, missing)
    rank = present - taken if name_of(call) == "top" else taken - 1
    return [rank] if taken else []


def _taken(f: int | float, present: int, missing: int) -> int:
    """How many are taken: a share is of all tokens, but none is taken that has no value."""
    return min(share_of(f, present + missing), present)


def _percent_rank(call: ast.Call, role: int | None) -> Steps[dict[str, Resolved]]:
    ranking = yield from rank_all()
    return {text_of(call): ranking} if ranking.count or role is None else {}


def _zscore(call: ast.Call, role: int | None) -> Steps[dict[str, Resolved]]:
    n, total = yield _sum_of(lambda x: x, call)
    mean = float(total.value / n) if n else 0.0
    _, squares = yield _sum_of(lambda x: np.square(x.astype(np.float64) - mean), call)
    deviation = float(np.sqrt(float(squares.value / n))) if n else 0.0
    return {text_of(call): Scale(mean, deviation)} if n or role is None else {}


def _sum_of(term: Any, call: ast.Call) -> Pass:
    """How many values there are, and the exact sum of a term of each."""

    def measure(part: int, x: np.ndarray) -> tuple[int, ExactSum]:
        with np.errstate(over="ignore"):  # what overflows is refused by name
            terms = term(_present(x))
        _finite(float(np.abs(terms).max(initial=0.0)), call)
        return len(terms), ExactSum(terms)

    def fold(state: tuple[int, ExactSum], said: tuple[int, ExactSum]) -> tuple[int, ExactSum]:
        state[1].merge(said[1])
        return state[0] + said[0], state[1]

    return Pass(measure, fold, (0, ExactSum()))


def _minmax(call: ast.Call, role: int | None) -> Steps[dict[str, Resolved]]:
    def measure(part: int, x: np.ndarray) -> tuple[float, float]:
        own = _present(x)
        return float(own.min(initial=np.inf)), float(own.max(initial=-np.inf))

    low, high = yield Pass(measure, lambda a, b: (min(a[0], b[0]), max(a[1], b[1])), (np.inf, -np.inf))
    if low > high:  # no values at all
        return {text_of(call): Scale(0.0, 0.0)} if role is None else {}
    return {text_of(call): Scale(_finite(low, call), _finite(high - low, call))}


def _present(values: np.ndarray) -> np.ndarray:
    """Where nothing follows there is no value."""
    missing = np.isnan(values)
    return values[~missing] if missing.any() else values


def _finite(value: float, call: ast.Call) -> float:
    if not np.isfinite(value):
        what = "threshold" if name_of(call) in ("top", "bottom", "random", "quantile") else "scale"
        raise RuleError(f"the {what} of {text_of(call)!r} is {value}; keep it finite, for example with clip(x, low, high)")
    return value
