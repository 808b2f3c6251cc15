"""Results that show themselves: a page in a notebook, plain text under ``print``, colours on a console of ``rich``.

How a result looks is known to :mod:`tokenstats.inspect.render`, which stands above everything that is shown. It is looked up
when something is first shown: importing this module loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

_RENDERER = "tokenstats.inspect.render.notebook"


class Shown:
    """Base of results that can be looked at. ``repr`` stays what it is: one line for people who debug."""

    def _repr_html_(self) -> str:
        """What a notebook shows: HTML with its own styles, and nothing in it that runs."""
        return _renderer().as_html(self)

    def __str__(self) -> str:
        """What ``print`` shows: the text of a terminal, without colours and without wrapped lines."""
        return _renderer().as_text(self)

    def __rich__(self) -> "RenderableType":
        """What a console of ``rich`` shows."""
        return _renderer().as_rich(self)


def _renderer() -> Any:
    return import_module(_RENDERER)
