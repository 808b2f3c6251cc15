"""The keyboard of the page as a whole, and the list of all keys."""

from html import escape
from pathlib import Path
from typing import Any

import streamlit as st
from heard import put

KEYS = {
    "j k": "next row, row before",
    "n p": "next, former row of the last search or table",
    "m": "the row as plain SFT would learn it, and back",
    "← → Home End": "in the tokens: move",
    "d D": "in the tokens: next dropped, dropped before",
    "Enter Esc": "in the tokens: pin one, let it go",
    "/": "search",
    "s": "rows and search",
    "x": "in Compare: swap the sides",
    "Ctrl+Z Ctrl+Shift+Z": "undo and redo a change of the rule; the browser's Back undoes any change",
    "?": "these keys",
}

_STYLE = """
button { font: 13px/1.5 system-ui, sans-serif; color: inherit; cursor: pointer;
  background: none; border: 1px solid currentColor; border-radius: 6px; padding: 1px 10px; }
dialog { color: var(--st-text-color); background: var(--st-background-color); border: 1px solid; border-radius: 8px;
  max-width: min(34rem, 90vw); font: 14px/1.6 system-ui, sans-serif; }
dialog::backdrop { background: rgb(0 0 0 / 45%); }
td { padding: 1px 14px 1px 0; vertical-align: top; } kbd { font: 600 13px/1.6 ui-monospace, monospace; white-space: nowrap; }
"""


@st.cache_resource
def _component() -> Any:
    lines = "".join(f"<tr><td><kbd>{escape(keys)}</kbd></td><td>{escape(does)}</td></tr>" for keys, does in KEYS.items())
    dialog = f'<dialog aria-label="keys"><table>{lines}</table><button class="close">close</button></dialog>'
    script = (Path(__file__).parent / "keys.js").read_text(encoding="utf-8")
    html = f'<button class="open" aria-haspopup="dialog">keys: ?</button>{dialog}'
    return st.components.v2.component("tokenstats_keys", html=html, css=_STYLE, js=script)


def keyboard() -> None:
    """Listen to the keys of the page. A search asked for elsewhere opens the page that has it."""
    _component()(key="keys", on_search_change=_to_search)


def _to_search() -> None:
    put({"page": "Rows"})
