"""The token view on a page of the app: what is drawn, and what its reader pins and chooses."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import streamlit as st

from tokenstats.inspect.render.scripts import script, view_style

_PLACE = '<div class="token-view-place"></div>'


@dataclass(frozen=True)
class Chosen:
    """What the reader did last: the row, the token pinned in it (None for none), and how tokens are coloured."""

    row: int | None = None
    pinned: int | None = None
    colour: str | None = None


@st.cache_resource
def view_component() -> Any:
    """The component behind the token view and the histograms that steer it: one script, so that they know each other."""
    return st.components.v2.component("tokenstats_tokens", html=_PLACE, css=str(view_style()), js=str(script("component.js")))


def token_view(row: dict[str, Any], decisions: dict[str, Any], settings: dict[str, Any], slot: str = "tokens") -> None:
    """Draw a row. The row and the decisions travel apart: where only a threshold moved, the row is not sent again.

    Args:
        row: Of :func:`tokenstats.inspect.tokens.payload.row_payload`.
        decisions: Of :func:`tokenstats.inspect.tokens.payload.decisions_payload`.
        settings: ``pinned``, ``colour`` and ``scales``; ``levels`` of the row where thresholds can be held; ``dimmed``: what is
            seen is no longer what is written.
        slot: Names the view where a page has several.
    """
    key = _digest(row)
    component = view_component()
    component(key=f"{slot}-row", data={"slot": slot, "row": row, "rowKey": key})
    heard = dict(st.session_state.get(f"{slot}-view") or {})
    told = {"slot": slot, "rowKey": key, "decisions": decisions, "settings": settings, "heard": heard}
    component(key=f"{slot}-view", data=told, on_pinned_change=_nothing, on_colour_change=_nothing)


def said(slot: str = "tokens") -> Chosen:
    """What the reader of a view did last."""
    found = st.session_state.get(f"{slot}-view") or {}
    row, token = found.get("pinned") or (None, -1)
    return Chosen(row, token if token >= 0 else None, found.get("colour"))


def _digest(row: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=12).hexdigest()


def _nothing() -> None:
    """Streamlit passes on only what has a listener."""
