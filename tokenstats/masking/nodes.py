"""Reading the nodes of a checked expression."""

import ast

from tokenstats.masking.grammar import SCORINGS, SELECTIONS

Column = tuple[str | None, str]
"""(scoring, column); the scoring is None for a bare name."""


def column_of(node: ast.AST) -> Column | None:
    """``entropy`` is (None, 'entropy'), ``warm.entropy`` and ``stats["warm"].entropy`` are ('warm', 'entropy')."""
    match node:
        case ast.Name(id=name):
            return None, name
        case ast.Attribute(value=ast.Name(id=scoring), attr=name):
            return scoring, name
        case ast.Attribute(value=ast.Subscript(value=ast.Name(id=owner), slice=ast.Constant(value=str(scoring))), attr=name):
            return (scoring, name) if owner == SCORINGS else None
    return None


def columns_in(node: ast.AST) -> set[Column]:
    """Every column that an expression reads."""
    column = column_of(node)
    if column is not None:
        return {column}
    children = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    return {column for child in children for column in columns_in(child)}


def selections_in(node: ast.AST) -> list[ast.Call]:
    """Every selection of an expression, inner ones before those that contain them."""
    children = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    inner = [call for child in children for call in selections_in(child)]
    return [*inner, node] if isinstance(node, ast.Call) and name_of(node) in SELECTIONS else inner


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
