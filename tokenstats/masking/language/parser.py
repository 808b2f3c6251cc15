"""The rule language: Python's expression syntax, parsed with ``ast``, checked against a whitelist, never evaluated.

An :class:`Expression` has passed every check: its names exist, its types fit, its text is canonical (parsing the text
again gives the same expression).
"""

import ast
import keyword
from dataclasses import dataclass, field

from tokenstats.errors import RuleError, one_line
from tokenstats.masking.language.builtins import BOOLEAN, SCORINGS, SELECTIONS, SHARED
from tokenstats.masking.language.typecheck import MOST_CHARACTERS, Checker
from tokenstats.masking.language.unparse import Column, among_of, column_of, columns_in, name_of, options_of, text_of


@dataclass(frozen=True)
class Expression:
    """A checked expression. ``columns`` holds (scoring or None, column) for each name it reads."""

    text: str
    tree: ast.expr = field(compare=False)
    kind: str = BOOLEAN
    columns: frozenset[Column] = frozenset()

    def clauses(self) -> list["Expression"]:
        """The top-level ``or`` branches."""
        if isinstance(self.tree, ast.BoolOp) and isinstance(self.tree.op, ast.Or):
            return [_expression(branch, self.kind) for branch in self.tree.values]
        return [self]

    def negated(self) -> "Expression":
        """The opposite condition."""
        return _expression(_canonical(ast.UnaryOp(ast.Not(), self.tree)), BOOLEAN)


def parse(text: str, wanted: str = BOOLEAN) -> Expression:
    """Parse and check. Raises RuleError that names the place in the text and, for a name, the nearest valid one."""
    if not isinstance(text, str) or not text.strip():
        raise RuleError("the rule is empty; expected an expression such as top(entropy, 0.2, per=sequence)")
    checker = Checker(text)
    tree = checker.parse()
    kind = checker.kind_of(tree)
    if kind != wanted:
        raise RuleError(f"the rule {one_line(checker.text, 80)!r} is a {kind}; expected a {wanted}")
    found = _expression(_canonical(tree), kind)
    if len(found.text) > MOST_CHARACTERS:
        wide = len(found.text)
        raise RuleError(f"the rule, written out with its options, has {wide} characters; expected at most {MOST_CHARACTERS}")
    return found


def _expression(tree: ast.expr, kind: str) -> Expression:
    return Expression(text_of(tree), tree, kind, frozenset(columns_in(tree)))


def _canonical(tree: ast.expr) -> ast.expr:
    """One spelling per meaning.

    Flat ``and`` and ``or``; no unary plus, no double ``not``; 2 for 2.0; options in order and only where they say
    something; ``stats["warm"].entropy`` as ``warm.entropy``.
    """
    return ast.fix_missing_locations(_Canonical().visit(tree))


class _Canonical(ast.NodeTransformer):
    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        flat: list[ast.expr] = []
        for value in node.values:
            same = isinstance(value, ast.BoolOp) and type(value.op) is type(node.op)
            flat.extend(value.values if same else [value])  # type: ignore[attr-defined]
        return ast.BoolOp(node.op, flat)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        inner = node.operand
        if isinstance(node.op, ast.Not) and isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.Not):
            return inner.operand
        return inner if isinstance(node.op, ast.UAdd) else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, int | float):
            return node
        value = float(node.value)  # what it is evaluated as
        return ast.Constant(int(value) if value.is_integer() and abs(value) <= 2**53 else value)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        column = column_of(node)
        assert column is not None
        scoring = column[0] or ""
        plain = scoring.isascii() and scoring.isidentifier() and not keyword.iskeyword(scoring)
        owner = ast.Name(scoring) if plain else ast.Subscript(ast.Name(SCORINGS), ast.Constant(scoring))
        return ast.Attribute(owner, node.attr)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = name_of(node)
        if name not in SELECTIONS:
            return self.generic_visit(node)
        share = node.args[-1:] if name in SHARED else []  # 0.2 is a share, 1 a count: left as they are
        values = [self.visit(value) for value in node.args[: len(node.args) - len(share)]]
        scope, seed = options_of(node)
        keywords = [ast.keyword("per", ast.Name(scope))] if scope != "dataset" else []
        among = among_of(node)
        keywords += [ast.keyword("among", self.visit(among))] if among is not None else []
        keywords += [ast.keyword("seed", ast.Constant(seed))] if seed else []
        return ast.Call(node.func, [*values, *share], keywords)
