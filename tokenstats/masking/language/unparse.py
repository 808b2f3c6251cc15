"""Reading and printing the nodes of a checked expression."""

import ast

from tokenstats.masking.language.builtins import SCORINGS, SELECTIONS, TEXTS

_OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _SIGN = range(1, 8)
_SYMBOLS = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}

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
    """Every column that an expression reads; the role too, where a selection is ``per=role``, and the ids behind a text."""
    column = column_of(node)
    if column is not None:
        return {column}
    if isinstance(node, ast.Call) and name_of(node) in TEXTS:
        return {(None, "token_id")}
    columns = {column for child in operands_of(node) for column in columns_in(child)}
    by_role = isinstance(node, ast.Call) and name_of(node) in SELECTIONS and options_of(node)[0] == "role"
    return columns | {(None, "role")} if by_role else columns


def selections_in(node: ast.AST) -> list[ast.Call]:
    """Every selection of an expression, inner ones before those that contain them."""
    inner = [call for child in operands_of(node) for call in selections_in(child)]
    return [*inner, node] if isinstance(node, ast.Call) and name_of(node) in SELECTIONS else inner


def operands_of(node: ast.AST) -> list[ast.AST]:
    """The expressions that an expression is made of; of a selection its condition on the group too."""
    if not isinstance(node, ast.Call):
        return list(ast.iter_child_nodes(node))
    among = among_of(node)
    return [*node.args, *([among] if among is not None else [])]


def among_of(call: ast.Call) -> ast.expr | None:
    """Which tokens a selection's groups are of, as a condition; None: all."""
    return next((k.value for k in call.keywords if k.arg == "among"), None)


def options_of(call: ast.Call) -> tuple[str, int]:
    """Scope and seed of a selection."""
    options = {k.arg: k.value for k in call.keywords}
    scope, seed = options.get("per"), options.get("seed")
    return scope.id if isinstance(scope, ast.Name) else "dataset", int(number_of(seed)) if seed is not None else 0


def texts_of(call: ast.Call) -> list[str]:
    """The texts that a condition on texts is given."""
    return [argument.value for argument in call.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]


def name_of(call: ast.Call) -> str:
    """The name of the function that is called."""
    assert isinstance(call.func, ast.Name)
    return call.func.id


def number_of(node: ast.expr) -> int | float:
    """The number that a checked constant is."""
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int | float)
    return node.value


def text_of(node: ast.AST, above: int = 0) -> str:
    """The text of an expression, with the brackets it needs and no others.

    Not ``ast.unparse``, whose brackets differ between versions of Python: fingerprints and manifests hold this text.
    ``above`` is how tightly the operator around the node binds.
    """
    match node:
        case ast.BoolOp(op=op, values=values):
            binds, word = (_AND, " and ") if isinstance(op, ast.And) else (_OR, " or ")
            text = word.join(text_of(value, binds + 1) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            binds, text = _NOT, f"not {text_of(operand, _NOT)}"
        case ast.UnaryOp(operand=operand):
            binds, text = _SIGN, f"-{text_of(operand, _SIGN)}"
        case ast.Compare(left=left, ops=ops, comparators=sides):
            pairs = zip(ops, sides, strict=True)
            later = [f" {_SYMBOLS[type(op)]} {text_of(side, _COMPARISON + 1)}" for op, side in pairs]
            binds, text = _COMPARISON, "".join([text_of(left, _COMPARISON + 1), *later])
        case ast.BinOp(left=left, op=op, right=right):
            binds = _SUM if isinstance(op, ast.Add | ast.Sub) else _PRODUCT
            text = f"{text_of(left, binds)} {_SYMBOLS[type(op)]} {text_of(right, binds + 1)}"
        case ast.Call(args=arguments, keywords=keywords):
            said = [text_of(a) for a in arguments] + [f"{k.arg}={text_of(k.value)}" for k in keywords]
            return f"{name_of(node)}({', '.join(said)})"
        case ast.Attribute(value=owner, attr=name):
            return f"{text_of(owner)}.{name}"
        case ast.Subscript(value=owner, slice=key):
            return f"{text_of(owner)}[{text_of(key)}]"
        case ast.Name(id=name):
            return name
        case ast.Constant(value=value):
            return repr(value)
        case _:
            raise AssertionError(f"unchecked node {ast.dump(node)}")
    return f"({text})" if binds < above else text
