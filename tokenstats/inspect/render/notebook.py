"""How each result is shown: in a notebook, under ``print``, on a console of ``rich``.

:class:`tokenstats.shown.Shown` asks here. A new result is shown once its blocks are registered with :func:`blocks_of`.
"""

from collections.abc import Iterable
from functools import singledispatch

from markupsafe import Markup
from rich.console import RenderableType

from tokenstats.inspect.audit.audit import Audit
from tokenstats.inspect.render.audit_blocks import audit_blocks
from tokenstats.inspect.render.blocks import Block
from tokenstats.inspect.render.comparison_blocks import comparison_blocks
from tokenstats.inspect.render.html import blocks_html, page
from tokenstats.inspect.render.html_tokens import token_view
from tokenstats.inspect.render.store_blocks import family_blocks, store_blocks
from tokenstats.inspect.render.sweep_blocks import sweep_blocks
from tokenstats.inspect.render.terminal import OnTerminal, plain_text
from tokenstats.inspect.render.terminal_tokens import plain_sequence, render_sequence
from tokenstats.inspect.tokens.sequence import SequenceView
from tokenstats.masking.compare import Comparison
from tokenstats.masking.sweep import Sweep
from tokenstats.shown import Shown
from tokenstats.store import Store
from tokenstats.store.families import Family


@singledispatch
def blocks_of(shown: Shown) -> Iterable[Block]:
    """What is said about a result."""
    raise TypeError(f"nothing is known of how a {type(shown).__name__} is shown")


blocks_of.register(Audit, audit_blocks)
blocks_of.register(Comparison, comparison_blocks)
blocks_of.register(Sweep, sweep_blocks)
blocks_of.register(Store, store_blocks)
blocks_of.register(Family, family_blocks)


def as_html(shown: Shown) -> str:
    """A result for a notebook: a fragment with its styles, on a light ground of its own, for dark notebooks too."""
    body = token_view(shown) if isinstance(shown, SequenceView) else blocks_html(*blocks_of(shown))
    return page("cell.html", body=Markup(body))


def as_text(shown: Shown) -> str:
    """A result as plain text, without colours; lines are as long as they are."""
    return plain_sequence(shown, ascii_only=False) if isinstance(shown, SequenceView) else plain_text(as_rich(shown))


def as_rich(shown: Shown) -> RenderableType:
    """A result for a console of ``rich``."""
    return render_sequence(shown) if isinstance(shown, SequenceView) else OnTerminal(list(blocks_of(shown)))
