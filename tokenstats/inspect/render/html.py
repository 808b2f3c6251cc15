"""HTML from templates: everything that is put into one is escaped, unless a template made it."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tokenstats.inspect.render.blocks import Block


def blocks_html(*blocks: Block) -> Markup:
    """Blocks as an HTML fragment; it needs the style sheet of :func:`style`."""
    return Markup("").join(fragment("blocks.html", "block", block) for block in blocks)


def fragment(template: str, macro: str, *arguments: Any) -> Markup:
    """What a macro of a template makes of the arguments."""
    return getattr(_module(template), macro)(*arguments)


def page(template: str, **values: Any) -> str:
    """A whole template, filled in."""
    return _environment().get_template(template).render(**values)


@cache
def style(name: str = "parts.css") -> Markup:
    """A style sheet of ours; ``parts.css`` is that of the token view and of all blocks."""
    return Markup((files("tokenstats.inspect.render") / name).read_text(encoding="utf-8"))


def kind_of(block: Any) -> str:
    """The name of a block's macro."""
    return type(block).__name__.lower()


@cache
def _module(template: str) -> Any:
    return _environment().get_template(template).module


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("tokenstats.inspect.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"kind": kind_of, "count": "{:,}".format, "percent": "{:.1%}".format}
    made.globals["style"] = style
    return made
