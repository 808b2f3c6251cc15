"""The rule language: Python's expression syntax, parsed with ``ast``, checked against a whitelist, never evaluated.

An :class:`Expression` has passed every check: its names exist, its types fit, its text is canonical (parsing the text
again gives the same expression).
"""

import ast
import math
import warnings
from dataclasses import dataclass, field

from tokenstats.errors import RuleError, nearest, one_line
from tokenstats.schema import ROLES, STATISTICS

NUMBER, BOOLEAN, ROLE = "number", "boolean", "role"
DERIVED = {"nll": "logprob", "prob": "logprob", "ppl": "logprob", "ref_nll": "ref_logprob", "ref_prob": "ref_logprob"}
TOKEN_COLUMNS = {
    "position": NUMBER,
    "length": NUMBER,
    "turn": NUMBER,
    "token_id": NUMBER,
    "role": ROLE,
    "is_end_of_turn": BOOLEAN,
    "is_special": BOOLEAN,
}
STATISTIC_COLUMNS = (*(s.name for s in STATISTICS), *DERIVED)
COLUMNS = {**dict.fromkeys(STATISTIC_COLUMNS, NUMBER), **TOKEN_COLUMNS}

FUNCTIONS = {"abs": 1, "log": 1, "exp": 1, "sqrt": 1, "clip": 3}
SELECTIONS = {"top": BOOLEAN, "bottom": BOOLEAN, "quantile": NUMBER, "random": BOOLEAN}
SCOPES = ("dataset", "sequence", "turn")
_OPTIONS = {"top": {"per"}, "bottom": {"per"}, "quantile": {"per"}, "random": {"per", "seed"}}

_MOST_CHARACTERS, _MOST_BRACKETS, _MOST_DEPTH = 4000, 50, 100
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


@dataclass(frozen=True)
class Expression:
    """A checked expression. ``columns`` holds (scoring or None, column) for each name it reads."""

    text: str
    tree: ast.expr = field(compare=False)
    kind: str = BOOLEAN
    columns: frozenset[tuple[str | None, str]] = frozenset()

    def clauses(self) -> list["Expression"]:
        """The top-level ``or`` branches."""
        if isinstance(self.tree, ast.BoolOp) and isinstance(self.tree.op, ast.Or):
            return [_expression(branch, self.kind) for branch in self.tree.values]
        return [self]

    def negated(self) -> "Expression":
        return _expression(ast.UnaryOp(ast.Not(), self.tree), BOOLEAN)


def parse(text: str, wanted: str = BOOLEAN) -> Expression:
    """Parse and check. Raises RuleError that names the column of the text and, for a name, the nearest valid one."""
    if not isinstance(text, str) or not text.strip():
        raise RuleError("the rule is empty; expected an expression such as top(entropy, 0.2, per=sequence)")
    text = " ".join(text.split("\n")).strip()
    if "#" in text:
        raise RuleError(
            f"the rule {one_line(text, 80)!r} has a '#': a rule has no comments; put them on TOML lines of their own"
        )
    if len(text) > _MOST_CHARACTERS:
        raise RuleError(f"the rule has {len(text)} characters; expected at most {_MOST_CHARACTERS}")
    checker = _Checker(text)
    tree = checker.parse()
    kind = checker.kind_of(tree)
    if kind != wanted:
        raise RuleError(f"the rule {one_line(text, 80)!r} is a {kind}; expected a {wanted}")
    return _expression(_canonical(tree), kind)


def _expression(tree: ast.expr, kind: str) -> Expression:
    names = frozenset(
        column
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute) and (column := column_of(node)) and column[1] in COLUMNS
    )
    owners = {(None, n.value.id) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    return Expression(ast.unparse(tree), tree, kind, names - owners)


def column_of(node: ast.expr) -> tuple[str | None, str] | None:
    """``entropy`` is (None, 'entropy'), ``warm.entropy`` is ('warm', 'entropy')."""
    if isinstance(node, ast.Name):
        return None, node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id, node.attr
    return None


def options_of(call: ast.Call) -> tuple[str, int]:
    """Scope and seed of a selection."""
    options = {k.arg: k.value for k in call.keywords}
    scope, seed = options.get("per"), options.get("seed")
    return scope.id if isinstance(scope, ast.Name) else "dataset", int(number_of(seed)) if seed is not None else 0


def name_of(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Name)
    return call.func.id


def number_of(node: ast.expr) -> int | float:
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int | float)
    return node.value


class _Checker:
    """Walks a tree once, giving each node its kind or raising with the place."""

    def __init__(self, text: str):
        self.text = text

    def fail(self, node: ast.AST, message: str) -> RuleError:
        column = len(self.text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore")) + 1
        return RuleError(f"{message}, at column {column} of the rule {one_line(self.text, 120)!r}")

    def parse(self) -> ast.expr:
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
            raise RuleError(
                f"syntax error at column {error.offset or 1} of the rule {one_line(self.text, 120)!r}: {error.msg}"
            ) from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise RuleError(
                f"the rule {one_line(self.text, 60)!r} cannot be parsed: {one_line(error, 80) or type(error).__name__}"
            ) from None
        level: list[ast.AST] = [tree]
        for _ in range(_MOST_DEPTH):
            level = [child for node in level for child in ast.iter_child_nodes(node)]
            if not level:
                return tree
        raise RuleError(f"the rule nests more than {_MOST_DEPTH} operations deep")

    def kind_of(self, node: ast.expr) -> str:
        match node:
            case ast.BoolOp(values=values):
                for value in values:
                    self.expect(value, BOOLEAN, "'and' and 'or'")
                return BOOLEAN
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.expect(operand, BOOLEAN, "'not'")
                return BOOLEAN
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                self.expect(operand, NUMBER, "a sign")
                return NUMBER
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ARITHMETIC):
                self.expect(left, NUMBER, "arithmetic")
                self.expect(right, NUMBER, "arithmetic")
                return NUMBER
            case ast.Compare():
                return self.comparison(node)
            case ast.Call():
                return self.call(node)
            case ast.Name() | ast.Attribute():
                return self.column(node)
            case ast.Constant(value=bool() | str() | bytes() | None):
                raise self.fail(
                    node,
                    f"{one_line(repr(node.value), 40)} has no place here; expected a column, number, comparison or selection",
                )
            case ast.Constant(value=int() | float() as value):
                self.finite(node, value)
                return NUMBER
        raise self.fail(
            node,
            f"{type(node).__name__} is not part of the rule language; "
            "expected columns, numbers, and/or/not, comparisons, + - * /, "
            f"{', '.join([*FUNCTIONS, *SELECTIONS])}",
        )

    def expect(self, node: ast.expr, wanted: str, by: str) -> None:
        kind = self.kind_of(node)
        if kind != wanted:
            hint = "; compare it, as in entropy > 2" if wanted == BOOLEAN and kind == NUMBER else ""
            raise self.fail(node, f"{by} needs a {wanted}, but {one_line(ast.unparse(node), 40)!r} is a {kind}{hint}")

    def finite(self, node: ast.expr, value: float) -> None:
        try:
            usable = math.isfinite(float(value))
        except OverflowError:
            usable = False
        if not usable:
            raise self.fail(node, "a number is too large; expected one that fits a float64")

    def comparison(self, node: ast.Compare) -> str:
        if not all(isinstance(op, _COMPARISONS) for op in node.ops):
            raise self.fail(node, "only < <= > >= == != compare")
        sides = [node.left, *node.comparators]
        if any(isinstance(s, ast.Name) and s.id == "role" for s in sides):
            return self.role_comparison(node, sides)
        for side in sides:
            self.expect(side, NUMBER, "a comparison")
        return BOOLEAN

    def role_comparison(self, node: ast.Compare, sides: list[ast.expr]) -> str:
        names = [s.value for s in sides if isinstance(s, ast.Constant)]
        if len(sides) != 2 or len(names) != 1 or not isinstance(node.ops[0], ast.Eq | ast.NotEq) or names[0] not in ROLES:
            raise self.fail(node, f"role is compared with == or != and one of: {', '.join(ROLES)}")
        return BOOLEAN

    def column(self, node: ast.expr) -> str:
        column = column_of(node)
        if column is None:
            raise self.fail(node, "a dot follows a scoring's name only, as in warm.entropy")
        scoring, name = column
        known = list(STATISTIC_COLUMNS) if scoring is not None else list(COLUMNS)
        if name not in known:
            what = f"of scoring {scoring!r} " if scoring else ""
            raise self.fail(node, f"unknown column {one_line(name, 40)!r} {what}".rstrip() + nearest(name, known))
        return COLUMNS[name]

    def call(self, node: ast.Call) -> str:
        known = [*FUNCTIONS, *SELECTIONS]
        if not isinstance(node.func, ast.Name) or node.func.id not in known:
            name = ast.unparse(node.func)
            raise self.fail(
                node, f"unknown function {one_line(name, 40)!r}{nearest(name, known)}; expected one of: {', '.join(known)}"
            )
        name = node.func.id
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            raise self.fail(node, "* and ** have no place in a rule")
        if name in SELECTIONS:
            return self.selection(node, name)
        if len(node.args) != FUNCTIONS[name] or node.keywords:
            raise self.fail(node, f"{name} takes {FUNCTIONS[name]} value(s), got {len(node.args) + len(node.keywords)}")
        for argument in node.args:
            self.expect(argument, NUMBER, name)
        return NUMBER

    def selection(self, node: ast.Call, name: str) -> str:
        values = node.args[:-1]
        if len(node.args) != (1 if name == "random" else 2):
            usage = "random(0.2, seed=0)" if name == "random" else f"{name}(entropy, 0.2, per=sequence)"
            raise self.fail(node, f"{name} is written {usage}; got {len(node.args)} value(s)")
        for value in values:
            self.expect(value, NUMBER, name)
        self.share(node.args[-1], name)
        seen = set()
        for option in node.keywords:
            if option.arg not in _OPTIONS[name] or option.arg in seen:
                raise self.fail(
                    option.value, f"{name} takes {' and '.join(sorted(_OPTIONS[name]))} once, got {one_line(option.arg, 40)!r}"
                )
            seen.add(option.arg)
            if option.arg == "per" and not (isinstance(option.value, ast.Name) and option.value.id in SCOPES):
                raise self.fail(
                    option.value, f"per is one of {', '.join(SCOPES)}; got {one_line(ast.unparse(option.value), 40)}"
                )
            if option.arg == "seed" and not (
                isinstance(option.value, ast.Constant) and type(option.value.value) is int and option.value.value < 2**63
            ):
                raise self.fail(option.value, "seed is a whole number from 0 to 2**63 - 1")
        return SELECTIONS[name]

    def share(self, node: ast.expr, name: str) -> None:
        value = node.value if isinstance(node, ast.Constant) else None
        share = type(value) is float and 0.0 < value < 1.0
        count = type(value) is int and 0 < value < 2**63 and name != "quantile"
        if not (share or count):
            expected = "a share between 0 and 1" + ("" if name == "quantile" else ", such as 0.2, or a whole count of tokens")
            raise self.fail(node, f"{name} got {one_line(ast.unparse(node), 40)}; expected {expected}")


def _canonical(tree: ast.expr) -> ast.expr:
    """One spelling per meaning: flat ``and``/``or``, no unary plus, options in order and only where they say something."""

    class Canonical(ast.NodeTransformer):
        def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
            self.generic_visit(node)
            flat: list[ast.expr] = []
            for value in node.values:
                same = isinstance(value, ast.BoolOp) and type(value.op) is type(node.op)
                flat.extend(value.values if same else [value])  # type: ignore[attr-defined]
            return ast.BoolOp(node.op, flat)

        def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
            self.generic_visit(node)
            return node.operand if isinstance(node.op, ast.UAdd) else node

        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            if isinstance(node.func, ast.Name) and node.func.id in SELECTIONS:
                scope, seed = options_of(node)
                keywords = [ast.keyword("per", ast.Name(scope))] if scope != "dataset" else []
                keywords += [ast.keyword("seed", ast.Constant(seed))] if seed else []
                return ast.Call(node.func, node.args, keywords)
            return node

    return ast.fix_missing_locations(Canonical().visit(tree))
