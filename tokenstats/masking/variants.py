"""Rules that differ in a number or two: what a sweep tries.

    variants({"drop": "kl > t"}, dict([parse_vary("t=0.1:0.5:0.1")]))

A name in the place of a number stands for the numbers it is given. ``f`` needs no place of its own: in rules that do not
write it, such as the presets, it is the share of every top, bottom, random and quantile.
"""

import ast
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tokenstats.errors import RuleError, argument, one_line
from tokenstats.masking.language.builtins import COLUMNS, OPTIONS, SCOPES, SCORINGS, SHARED, WORDS
from tokenstats.masking.language.typecheck import Checker
from tokenstats.masking.rule import Rule, rule_text

SHARE = "f"
MOST_VARIANTS = 100
"""Each takes half a megabyte for a dataset-wide threshold, and its time."""

_TEXTS = ("drop", "keep", "weight", "protect")
_TAKEN = {*COLUMNS, *WORDS, *SCOPES, *OPTIONS["random"], SCORINGS, "and", "or", "not"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_SMALLEST, _LARGEST = 1e-100, 1e100
_USAGE = "expected NAME=LOW:HIGH:STEP or NAME=NUMBER,NUMBER,…"


@dataclass(frozen=True)
class Variant:
    """One rule of a sweep, and the numbers that make it, as they are written in it."""

    values: dict[str, str]
    rule: Rule


def parse_vary(text: str) -> tuple[str, list[str]]:
    """``f=0.05:0.5:0.05`` or ``t=1,2,5``: a name, and the numbers it stands for as they will be written in the rule.

    LOW:HIGH:STEP goes from LOW in steps, HIGH included where a step meets it, in decimal arithmetic: 0.3 is 0.3. Numbers are
    whole, counts where a share could stand, where neither a point nor an exponent is written. Raises RuleError.
    """
    name, equals, given = (word.strip() for word in text.partition("="))
    if not equals or not given:
        raise RuleError(f"vary got {one_line(text, 60)!r}; {_USAGE}")
    if not (name.isascii() and name.isidentifier()) or name in _TAKEN:
        raise RuleError(f"vary got the name {one_line(name, 40)!r}; expected one such as t, no word of the language")
    if ":" not in given:
        return name, [_written(_number(item, text), _is_whole(item)) for item in given.split(",")]
    bounds = [_number(item, text) for item in given.split(":")]
    if len(bounds) != 3:
        raise RuleError(f"vary got {one_line(text, 60)!r}; {_USAGE}")
    low, high, step = bounds
    if step <= 0 or high < low:
        raise RuleError(f"vary got {one_line(text, 60)!r}; expected LOW no larger than HIGH, and a STEP above 0")
    count = int((high - low) / step) + 1
    if count > MOST_VARIANTS:
        raise RuleError(f"vary got {one_line(text, 60)!r}, which is {count:.4g} numbers; expected at most {MOST_VARIANTS}")
    return name, [_written(low + i * step, _is_whole(given)) for i in range(count)]


def numbers_of(name: str, given: str | Sequence[str | float]) -> list[str]:
    """The numbers that a name stands for, as they will be written in the rule: see :func:`parse_vary`."""
    text = given if isinstance(given, str) else ",".join(map(str, given))
    return parse_vary(f"{name}={text}")[1]


def variants(fields: Mapping[str, Any], vary: Mapping[str, Sequence[str]]) -> list[Variant]:
    """Every combination of the numbers, put into the fields of a rule; the last name's change fastest.

    Raises RuleError where the rule has no place for a name, where numbers make no valid rule, and where they are too many.
    """
    count = math.prod(len(numbers) for numbers in vary.values())
    if not vary or not 1 <= count <= MOST_VARIANTS:
        said = " x ".join(str(len(numbers)) for numbers in vary.values()) or "no"
        raise RuleError(f"the sweep has {said} combinations of numbers; expected 1 to {MOST_VARIANTS}")
    texts = {key: Checker(str(fields[key])) for key in _TEXTS if str(fields.get(key) or "").strip()}
    places = {key: _places(checker, list(vary)) for key, checker in texts.items()}
    named = {name for found in places.values() for _, _, name in found}
    if SHARE in vary and SHARE not in named:
        places = {key: sorted(places[key] + _shares(checker)) for key, checker in texts.items()}
        named = {name for found in places.values() for _, _, name in found}
    for name in vary:
        if name not in named:
            shares = ", and has no top, bottom, random or quantile" if name == SHARE else ""
            raise RuleError(
                f"the rule has no {name!r} in the place of a number{shares}: {rule_text(fields)!r}; "
                f"write it, as in {argument('drop', f'kl > {name}')}"
            )
    kept = {key: value for key, value in fields.items() if key not in ("preset", "description")}  # of other numbers
    found = []
    for combination in itertools.product(*vary.values()):
        values = dict(zip(vary, combination, strict=True))
        filled = {key: _filled(checker.text, places[key], values) for key, checker in texts.items()}
        found.append(Variant(values, Rule(**{**kept, **filled})))
    return found


def _places(checker: Checker, names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Where the names stand in a text, in bytes: start, end, name. ``warm`` of ``warm.kl`` is a scoring, no number."""
    tree = checker.parse()
    scorings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in names and id(n) not in scorings]
    return sorted((n.col_offset, n.end_col_offset or 0, n.id) for n in nodes)


def _shares(checker: Checker) -> list[tuple[int, int, str]]:
    """Where the text gives the share, or the count, of a selection."""
    calls = (n for n in ast.walk(checker.parse()) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
    numbers = (call.args[-1] for call in calls if call.func.id in SHARED and call.args)  # type: ignore[attr-defined]
    return [(n.col_offset, n.end_col_offset or 0, SHARE) for n in numbers if isinstance(n, ast.Constant)]


def _filled(text: str, places: Sequence[tuple[int, int, str]], values: Mapping[str, str]) -> str:
    raw = text.encode()
    for start, end, name in reversed(places):
        raw = raw[:start] + values[name].encode() + raw[end:]
    return raw.decode()


def _number(item: str, text: str) -> Decimal:
    number = item.strip()
    if not _NUMBER.fullmatch(number) or len(number) > 40:
        raise RuleError(f"vary got {one_line(text, 60)!r}, where {one_line(number, 40)!r} is no number; {_USAGE}")
    size, is_zero = abs(float(number)), not re.search("[1-9]", number.lower().partition("e")[0])
    if not (is_zero or _SMALLEST <= size <= _LARGEST):
        raise RuleError(f"vary got {one_line(number, 40)!r}; expected 0, or a size from {_SMALLEST} to {_LARGEST}")
    return Decimal(0) if is_zero else Decimal(number)


def _is_whole(text: str) -> bool:
    return not re.search(r"[.e]", text, re.IGNORECASE)


def _written(value: Decimal, whole: bool) -> str:
    return str(int(value)) if whole else repr(float(value))
