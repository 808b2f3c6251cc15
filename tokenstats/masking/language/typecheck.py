"""Checks a parsed rule: every node gets its kind, or an error that names the place in the text and what to write instead."""

import ast
import io
import math
import re
import tokenize
import warnings

from tokenstats.errors import RuleError, nearest, one_line
from tokenstats.masking.language.builtins import (
    BOOLEAN,
    COLUMNS,
    FOLLOWING,
    FUNCTIONS,
    NAMES,
    NUMBER,
    OPTIONS,
    SCOPES,
    SELECTIONS,
    SHARED,
    STATISTIC_COLUMNS,
    TEXTS,
    USAGE,
    WORDS,
)
from tokenstats.masking.language.unparse import column_of

MOST_CHARACTERS, _MOST_BRACKETS, _MOST_DEPTH = 4000, 50, 100
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


class Checker:
    """Reads one text. Places in messages count characters, from 1, as the text was given."""

    def __init__(self, text: str):
        self.given = text
        flat = re.sub(r"\s", " ", text)  # one for one, so that places stay
        self.text = flat.strip()
        self.indent = len(flat) - len(flat.lstrip())

    def error(self, message: str, column: int) -> RuleError:
        """``column``: characters before the place in the stripped text."""
        before = self.given[: self.indent + column]
        line = before.count("\n")
        place = f"column {len(before) - before.rfind(chr(10))}"
        place = f"line {line + 1}, {place}" if "\n" in self.given.strip() else place
        return RuleError(f"{message}, at {place} of the rule {one_line(self.text, 120)!r}")

    def fail(self, node: ast.AST, message: str) -> RuleError:
        """An error about a node, with its place in the text."""
        before = self.text.encode()[: getattr(node, "col_offset", 0)]
        return self.error(message, len(before.decode(errors="ignore")))

    def source(self, node: ast.AST) -> str:
        """The text of a node, cut short: for messages."""
        start, end = getattr(node, "col_offset", 0), getattr(node, "end_col_offset", 0)
        return one_line(self.text.encode()[start:end].decode(errors="ignore"), 40)

    def parse(self) -> ast.expr:
        """The tree of the text, not yet checked. Refuses what is too long or too deep to be a rule."""
        if len(self.text) > MOST_CHARACTERS:
            raise RuleError(f"the rule has {len(self.text)} characters; expected at most {MOST_CHARACTERS}")
        if (comment := _comment_in(self.text)) is not None:
            raise self.error("a '#' has no place here: put comments on TOML lines of their own", comment)
        depth = most = 0
        for character in self.text:
            depth += (character in "([{") - (character in ")]}")
            most = max(most, depth)
        if most > _MOST_BRACKETS:
            raise RuleError(f"the rule nests {most} brackets; expected at most {_MOST_BRACKETS}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            end = len(self.text) + 1
            message = f"syntax error: {one_line(error.msg, 80)}{self._dashed_scoring()}"
            raise self.error(message, (error.offset or end) - 1) from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise RuleError(
                f"the rule {one_line(self.text, 60)!r} cannot be parsed: {one_line(error, 80) or type(error).__name__}"
            ) from None
        level: list[ast.AST] = [tree]
        for _ in range(_MOST_DEPTH):
            level = [child for node in level for child in ast.iter_child_nodes(node)]
            for text in (n for n in level if isinstance(n, ast.Constant) and isinstance(n.value, str)):
                self._check_text(text)
            if not level:
                return tree
        raise RuleError(f"the rule nests more than {_MOST_DEPTH} operations deep")

    def _check_text(self, node: ast.Constant) -> None:
        """Refuse a text with a blank that was made a space, and one that is none in UTF-8."""
        start, end = (len(self.text.encode()[:place].decode()) for place in (node.col_offset, node.end_col_offset or 0))
        if re.search(r"[^\S ]", self.given[self.indent :][start:end]):
            raise self.fail(node, f"a text has a line break or a tab in it; write \\n or \\t, got {self.source(node)}")
        if any("\ud800" <= c <= "\udfff" for c in str(node.value)):
            raise self.fail(node, f"{self.source(node)} has half a character in it; expected text")

    def kind_of(self, node: ast.expr) -> str:
        """The kind of an expression: number, boolean or role. Raises RuleError where it has none."""
        match node:
            case ast.BoolOp(values=values):
                for value in values:
                    self._expect(value, BOOLEAN, "'and' and 'or'")
                return BOOLEAN
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._expect(operand, BOOLEAN, "'not'")
                return BOOLEAN
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                self._expect(operand, NUMBER, "a sign")
                return NUMBER
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ARITHMETIC):
                self._expect(left, NUMBER, "arithmetic")
                self._expect(right, NUMBER, "arithmetic")
                return NUMBER
            case ast.Compare():
                return self._comparison(node)
            case ast.Call():
                return self._call(node)
            case ast.Name() | ast.Attribute():
                return self._column(node)
            case ast.Constant(value=bool() | str() | bytes() | None):
                raise self.fail(
                    node, f"{self.source(node)} has no place here; expected a column, number, comparison or selection"
                )
            case ast.Constant(value=int() | float() as value):
                self._finite(node, value)
                return NUMBER
        raise self.fail(
            node,
            f"{type(node).__name__} is not part of the rule language; "
            f"expected columns, numbers, and/or/not, comparisons, + - * /, {', '.join(WORDS)}",
        )

    def _expect(self, node: ast.expr, wanted: str, by: str) -> None:
        kind = self.kind_of(node)
        if kind != wanted:
            hint = "; compare it, as in entropy > 2" if wanted == BOOLEAN and kind == NUMBER else ""
            raise self.fail(node, f"{by} needs a {wanted}, but {self.source(node)!r} is a {kind}{hint}")

    def _finite(self, node: ast.expr, value: float) -> None:
        try:
            usable = math.isfinite(float(value))
        except OverflowError:
            usable = False
        if not usable:
            raise self.fail(node, "a number is too large; expected one that fits a float64")
        if value == 0 and re.search("[1-9]", self.source(node).lower().partition("e")[0]):
            raise self.fail(node, f"{self.source(node)} is too small: as a float64 it is 0; write 0, or a larger number")

    def _comparison(self, node: ast.Compare) -> str:
        if not all(isinstance(op, _COMPARISONS) for op in node.ops):
            raise self.fail(node, "only < <= > >= == != compare")
        sides = [node.left, *node.comparators]
        named = next((s.id for s in sides if isinstance(s, ast.Name) and s.id in NAMES), None)
        if named is not None:
            return self._comparison_with_name(node, sides, named)
        for side in sides:
            self._expect(side, NUMBER, "a comparison")
        return BOOLEAN

    def _comparison_with_name(self, node: ast.Compare, sides: list[ast.expr], column: str) -> str:
        names, known = [s for s in sides if isinstance(s, ast.Constant)], NAMES[column]
        if len(sides) != 2 or len(names) != 1 or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
            raise self.fail(node, f"{column} is compared with == or != and one of: {', '.join(known)}")
        if names[0].value not in known:
            hint = nearest(str(names[0].value), list(known))
            raise self.fail(names[0], f"{column} is compared with one of {', '.join(known)}; got {self.source(names[0])}{hint}")
        return BOOLEAN

    def _column(self, node: ast.expr) -> str:
        column = column_of(node)
        if column is None:
            raise self.fail(
                node, 'a dot follows a scoring\'s name only, as in warm.entropy; any name can be read as stats["NAME"].entropy'
            )
        scoring, name = column
        known = list(STATISTIC_COLUMNS) if scoring is not None else list(COLUMNS)
        if name not in known:
            what = f" of scoring {one_line(scoring, 40)!r}" if scoring is not None else ""
            hint = self._dashed_scoring() or nearest(name, known)
            raise self.fail(node, f"unknown column {one_line(name, 40)!r}{what}{hint}")
        return COLUMNS[name]

    def _dashed_scoring(self) -> str:
        """How to write ``Qwen3-8B.entropy``, where the text has such a word; or nothing."""
        for word in re.split(r"[^\w.-]+", self.text):
            scoring, _, name = word.rpartition(".")
            if "-" in scoring.strip("-") and name in STATISTIC_COLUMNS:
                return f' (for a scoring called {one_line(scoring, 64)} write stats["{one_line(scoring, 64)}"].{name})'
        return ""

    def _call(self, node: ast.Call) -> str:
        if not isinstance(node.func, ast.Name) or node.func.id not in WORDS:
            close = nearest(node.func.id, list(WORDS)) if isinstance(node.func, ast.Name) else ""
            raise self.fail(node, f"unknown function {self.source(node.func)!r}{close}; expected one of: {', '.join(WORDS)}")
        name = node.func.id
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            raise self.fail(node, "* and ** have no place in a rule")
        if name in SELECTIONS:
            return self._selection(node, name)
        if name in TEXTS:
            return self._text_condition(node, name)
        wanted = 1 if name == FOLLOWING else FUNCTIONS[name].takes
        if len(node.args) != wanted or node.keywords:
            raise self.fail(node, f"{name} takes {wanted} value(s), got {len(node.args) + len(node.keywords)}")
        if name == FOLLOWING:
            if (kind := self.kind_of(node.args[0])) not in (NUMBER, BOOLEAN):
                raise self.fail(node, f"following takes a number or a condition, not a {kind}; compare the {kind} inside it")
            return kind
        for argument in node.args:
            self._expect(argument, NUMBER, name)
        if name == "clip":
            low, high = (_number_in(bound) for bound in node.args[1:])
            if low is not None and high is not None and low > high:
                raise self.fail(node, f"clip got {low} to {high}; expected the lower bound first")
        return NUMBER

    def _text_condition(self, node: ast.Call, name: str) -> str:
        texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if len(texts) != TEXTS[name] or len(node.args) != len(texts) or node.keywords:
            texts_wanted = "a text" if TEXTS[name] == 1 else f"{TEXTS[name]} texts"
            raise self.fail(node, f"{name} takes {texts_wanted} in quotes, as in {USAGE[name]}; got {self.source(node)}")
        if not all(texts):
            raise self.fail(node, f"{name} got an empty text, which stands everywhere; expected some, as in {USAGE[name]}")
        return BOOLEAN

    def _selection(self, node: ast.Call, name: str) -> str:
        takes_x, takes_share = name != "random", name in SHARED
        if len(node.args) != takes_x + takes_share:
            raise self.fail(node, f"{name} is written {USAGE[name]}; got {len(node.args)} value(s)")
        if takes_x:
            self._expect(node.args[0], NUMBER, name)
        if takes_share:
            self._share(node.args[-1], name)
        seen: set[str] = set()
        for option in node.keywords:
            key = option.arg or ""
            if key not in OPTIONS[name] or key in seen:
                hint = nearest(key, list(OPTIONS[name])) if key not in seen else ""
                raise self.fail(
                    option, f"{name} takes {' and '.join(OPTIONS[name])}, each once; got {one_line(key, 40)!r}{hint}"
                )
            seen.add(key)
            self._option(option.value, key)
        return SELECTIONS[name]

    def _option(self, value: ast.expr, key: str) -> None:
        if key == "among":
            self._expect(value, BOOLEAN, "among")
        if key == "per" and not (isinstance(value, ast.Name) and value.id in SCOPES):
            hint = nearest(value.id, list(SCOPES)) if isinstance(value, ast.Name) else ""
            raise self.fail(value, f"per is one of {', '.join(SCOPES)}; got {self.source(value)}{hint}")
        if key == "seed" and not (isinstance(value, ast.Constant) and type(value.value) is int and value.value < 2**63):
            raise self.fail(value, "seed is a whole number from 0 to 2**63 - 1")

    def _share(self, node: ast.expr, name: str) -> None:
        value = node.value if isinstance(node, ast.Constant) else None
        share = type(value) is float and 0.0 < value < 1.0
        count = type(value) is int and 0 < value < 2**63 and name != "quantile"
        if not (share or count):
            or_count = "" if name == "quantile" else ", such as 0.2, or a whole count of tokens"
            raise self.fail(node, f"{name} got {self.source(node)}; expected a share above 0 and below 1{or_count}")


def _number_in(node: ast.expr) -> float | None:
    """The number that is written there, a sign before it or not; None where it is none."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -float(value)
    return None


def _comment_in(text: str) -> int | None:
    """Where a '#' stands that is in no text in quotes, counted in characters."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                return token.start[1]
    except (tokenize.TokenError, SyntaxError, ValueError):  # which parsing says better
        return None
    return None
