"""The report's page: sections of blocks, pictures and examples. Links are relative, and the one script is our own."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tokenstats.inspect.render.blocks import Block
from tokenstats.inspect.render.html import page
from tokenstats.inspect.render.scripts import script, view_style


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
    """One sequence in the app's token view, under several decisions that its reader can choose from.

    Attributes:
        title: Above it.
        row: Of :func:`tokenstats.inspect.tokens.payload.row_payload`.
        decisions: Of :func:`tokenstats.inspect.tokens.payload.decisions_payload`, one for each mask.
    """

    title: str
    row: dict[str, Any]
    decisions: Sequence[dict[str, Any]]

    @property
    def data(self) -> Markup:
        """As JSON that cannot end the element that it stands in, whatever a text holds."""
        plain = json.dumps({"row": self.row, "decisions": list(self.decisions)}, ensure_ascii=True, allow_nan=False)
        return Markup(plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@dataclass(frozen=True)
class Section:
    """A part of the page; links lead to its ``anchor``."""

    anchor: str
    title: str
    blocks: Sequence[Block | Picture | Example]


def report_page(title: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page; the first section stands under the page's own title."""
    code = script("page.js")
    return page(
        "report.html", title=title, sections=sections, footer=footer, policy=_policy(code), script=code, view_style=view_style()
    )


def _policy(code: str) -> str:
    """Nothing is fetched, and nothing runs but the script of this digest, even if a text slipped through the escaping."""
    digest = b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src 'self' file: data:"
