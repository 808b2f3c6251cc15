"""Where a rule cuts: the thresholds over the whole dataset, as numbers to draw."""

import ast
from collections.abc import Iterator, Mapping
from itertools import pairwise

from tokenstats.masking.language.builtins import SELECTIONS
from tokenstats.masking.language.unparse import column_of, number_of, text_of
from tokenstats.masking.rule import Rule


def cuts(rule: Rule, thresholds: Mapping[str, float], scoring: str | None = None) -> dict[str, list[float]]:
    """The values at which a rule divides the whole dataset: of ``entropy > 2``, ``top(entropy, 0.2)``, ``quantile(kl, 0.9)``.

    Args:
        rule: The rule. Its thresholds per sequence are no single number, and not among the values.
        thresholds: The number behind each dataset-wide selection, as a mask's manifest has them.
        scoring: The one that ``NAME.entropy`` may mean besides the bare name.

    Returns:
        Values in nats, for ``entropy`` and for ``kl``.
    """
    found: dict[str, list[float]] = {"entropy": [], "kl": []}
    for node in ast.walk(rule.expression.tree) if rule.expression is not None else ():
        for column, value in _cut(node, thresholds, scoring):
            if value not in found[column]:
                found[column].append(value)
    return found


def _cut(node: ast.AST, thresholds: Mapping[str, float], scoring: str | None) -> Iterator[tuple[str, float]]:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for left, right in pairwise(sides):
            for one, other in ((left, right), (right, left)):
                if (column := _plotted(one, scoring)) and isinstance(other, ast.Constant):
                    yield column, float(number_of(other))
    is_selection = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SELECTIONS
    if is_selection and node.args and (column := _plotted(node.args[0], scoring)):  # type: ignore[attr-defined]
        text = text_of(node)
        if text in thresholds:
            yield column, thresholds[text]


def _plotted(node: ast.expr, scoring: str | None) -> str | None:
    column = column_of(node)
    if column is None or column[0] not in (None, scoring) or column[1] not in ("entropy", "kl"):
        return None
    return column[1]
