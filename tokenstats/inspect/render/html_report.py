"""The report's page: sections of blocks, pictures and examples. No scripts; links are relative."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tokenstats.inspect.render.blocks import Block
from tokenstats.inspect.render.html import page

# nothing runs and nothing is fetched, even if a text slipped through the escaping
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:"
_MOST_TABS = 40


@dataclass(frozen=True)
class Picture:
    """A figure that lies beside the page.

    Attributes:
        path: Relative to the page.
        alt: What it is.
        caption: How to read it.
        width, height: Pixels; known beforehand, so that the page does not jump while it loads.
    """

    path: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """One sequence in several views, up to 40: (name of the view, token view)."""

    title: str
    views: Sequence[tuple[str, Markup]]


@dataclass(frozen=True)
class Section:
    """A part of the page; links lead to its ``anchor``."""

    anchor: str
    title: str
    blocks: Sequence[Block | Picture | Example]


def report_page(title: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page; the first section stands under the page's own title."""
    return page("report.html", title=title, sections=sections, footer=footer, policy=_POLICY, most_tabs=_MOST_TABS)
