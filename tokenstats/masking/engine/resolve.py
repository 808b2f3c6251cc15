"""Works out the selections over the whole dataset: exact, in bounded memory, whatever the order of the parts.

One idea serves them all. The values that a selection looks at are sorted part by part, in one reading of the dataset for all
selections together; thresholds, scales and ranks are then looked up in the sorted runs. A selection that stands inside another
comes first, in a reading of its own.
"""

import ast
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np

from tokenstats.errors import RuleError
from tokenstats.masking.engine.aggregates import Aggregate, Ranking, Scale, Threshold, key_of
from tokenstats.masking.engine.evaluate import argument_of, argument_text, members_of
from tokenstats.masking.engine.exact_sum import ExactSum
from tokenstats.masking.engine.part_reader import PartReader
from tokenstats.masking.engine.sorted_runs import SortedRuns, sorted_run
from tokenstats.masking.engine.targets import Targets
from tokenstats.masking.language.builtins import SHARED
from tokenstats.masking.language.parser import Expression
from tokenstats.masking.language.unparse import columns_in, name_of, number_of, operands_of, options_of, selections_in, text_of
from tokenstats.masking.rule import Rule
from tokenstats.schema import ROLES

_OVER_THE_DATASET = ("dataset", "role")


class _Values(NamedTuple):
    """The values of one argument, over all targets (role None) or those of one role; shared by the selections of them."""

    argument: str
    role: int | None


_Runs = dict[_Values, SortedRuns]


def resolve_rules(rules: Iterable[Rule], reader: PartReader) -> dict[str, Aggregate]:
    """Resolve every dataset-wide selection of some rules, as :func:`resolve` does."""
    return resolve([expression for rule in rules for expression in rule.resolved], reader)


def resolve(expressions: Iterable[Expression], reader: PartReader) -> dict[str, Aggregate]:
    """Resolve every dataset-wide selection of some expressions, together.

    However many there are, the dataset is read once, and once more for each level of selections inside others.

    Returns:
        The aggregates by their selection's text; ``per=role`` has one for each role that targets have, ``TEXT of ROLE``.

    Raises:
        RuleError: A threshold or scale would not be finite.
    """
    found: dict[str, Aggregate] = {}
    for calls in _levels(expressions):
        runs = _sorted(calls, found, reader)
        for text, call in calls.items():
            for values in _looked_at(call):
                held = runs[values]
                looked_at = held.count + (held.missing if name_of(call) in SHARED else 0)
                if values.role is None or looked_at:
                    found[key_of(text, None if values.role is None else ROLES[values.role])] = _aggregate(call, held)
    return found


def _levels(expressions: Iterable[Expression]) -> list[dict[str, ast.Call]]:
    """Dataset-wide selections by text: first those with no other inside, then those that only need these, and so on."""
    levels: list[dict[str, ast.Call]] = []
    depths: dict[str, int] = {}
    for call in (c for expression in expressions for c in selections_in(expression.tree)):
        inner = [depths[text_of(c)] for operand in operands_of(call) for c in selections_in(operand)]
        over_all = options_of(call)[0] in _OVER_THE_DATASET
        depth = depths[text_of(call)] = max(inner, default=0) + over_all
        if over_all:
            levels += [{} for _ in range(depth - len(levels))]
            levels[depth - 1][text_of(call)] = call
    return levels


def _looked_at(call: ast.Call) -> list[_Values]:
    roles = [None] if options_of(call)[0] == "dataset" else range(len(ROLES))
    return [_Values(argument_text(call), role) for role in roles]


def _sorted(calls: Mapping[str, ast.Call], found: Mapping[str, Aggregate], reader: PartReader) -> _Runs:
    """One reading of the dataset: all values that the selections look at, in order."""
    looked_at = {values: call for call in calls.values() for values in _looked_at(call)}
    columns = frozenset().union(*(columns_in(call) for call in looked_at.values()))

    def runs_of(targets: Targets) -> tuple[int, dict[_Values, tuple[np.ndarray, int]]]:
        by_argument: dict[str, tuple[np.ndarray, np.ndarray | slice]] = {}
        sorted_values = {}
        for values, call in looked_at.items():
            if values.argument not in by_argument:
                members = members_of(call, targets, found)
                by_argument[values.argument] = argument_of(call, targets, found)[members], members
            x, members = by_argument[values.argument]
            if values.role is not None:
                x = x[targets.column((None, "role"))[members] == values.role]
            in_order = partial(sorted_run, x)
            # what rests on other selections may be another the next time; the rest serves the next rule that is tried
            run = in_order() if found else targets.remembered(f"{values} in order", in_order)
            sorted_values[values] = reader.keep(run), len(x) - len(run)
        return targets.part, sorted_values

    by_part: dict[_Values, dict[int, np.ndarray]] = {values: {} for values in looked_at}
    missing = dict.fromkeys(looked_at, 0)
    with closing(reader.each(runs_of, columns)) as parts:
        for part, of_part in parts:
            for values, (run, lacking) in of_part.items():
                by_part[values][part] = run
                missing[values] += lacking
    return {values: SortedRuns(runs, missing[values]) for values, runs in by_part.items()}


def _aggregate(call: ast.Call, runs: SortedRuns) -> Aggregate:
    match name_of(call):
        case "percent_rank":
            return Ranking(runs.merged())
        case "zscore":
            return _mean_and_deviation(call, runs)
        case "minmax":
            ends = runs.at([0, runs.count - 1]) if runs.count else np.zeros(2)
            return Scale(_finite(float(ends[0]), call), _finite(float(ends[1]) - float(ends[0]), call))
        case "quantile":
            return Threshold(_finite(_quantile(runs, number_of(call.args[-1])), call) if runs.count else None)
        case name:
            return _threshold(call, runs, largest=name == "top")


def _threshold(call: ast.Call, runs: SortedRuns, largest: bool) -> Threshold:
    """Of a share of all tokens, or a count. What has no value is not taken; of equal values the earlier parts' are first."""
    f, everything = number_of(call.args[-1]), runs.count + runs.missing
    # floor(f·n) of a share, as published code has it
    taken = min(f if isinstance(f, int) else int(f * everything), runs.count)
    if not taken:
        return Threshold(None)  # a small share of few tokens takes none
    (at,) = runs.at([runs.count - taken if largest else taken - 1])
    value, equal = _finite(float(at), call), runs.equal(at)
    smaller = int(runs.smaller(np.array([at]))[0])
    room = taken - (runs.count - smaller - sum(equal.values()) if largest else smaller)
    ties = {}
    for part, count in equal.items():
        ties[part] = min(count, room)
        room -= ties[part]
    return Threshold(value, ties)


def _quantile(runs: SortedRuns, f: float) -> float:
    """With linear interpolation between neighbours."""
    place = (runs.count - 1) * f
    low, high = (float(value) for value in runs.at([int(place), min(int(place) + 1, runs.count - 1)]))
    between = place - int(place)
    return low if high == low or not between or low == -np.inf else low + between * (high - low)


def _mean_and_deviation(call: ast.Call, runs: SortedRuns) -> Scale:
    """Of the population (ddof 0). The sums are exact."""
    n = max(1, runs.count)
    mean = float(_sum(runs, call).value / n)
    return Scale(mean, float(np.sqrt(float(_sum(runs, call, mean).value / n))))


def _sum(runs: SortedRuns, call: ast.Call, mean: float | None = None) -> ExactSum:
    """Of the values, or of their squared distances from the mean."""
    total = ExactSum()
    for run in runs:
        with np.errstate(over="ignore"):  # what overflows is refused by name
            terms = run if mean is None else np.square(run.astype(np.float64) - mean)
        _finite(float(np.abs(terms).max()), call)
        total.add(terms)
    return total


def _finite(value: float, call: ast.Call) -> float:
    if not np.isfinite(value):
        what = "scale" if name_of(call) in ("zscore", "minmax") else "threshold"
        raise RuleError(f"the {what} of {text_of(call)!r} is {value}; keep it finite, for example with clip(x, low, high)")
    return value
