"""Completion of columns and functions below a field in which an expression is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

_STYLE = """
.suggestions { display: flex; flex-wrap: wrap; gap: 4px; min-height: 26px; }
button { font: 12.5px/1.5 ui-monospace, monospace; color: inherit; cursor: pointer;
  background: none; border: 1px solid currentColor; border-radius: 5px; padding: 1px 7px; }
"""


@st.cache_resource
def _component() -> Any:
    html = '<div class="suggestions" role="group" aria-label="words that fit; Tab takes the first"></div>'
    script = (Path(__file__).parent / "completion.js").read_text(encoding="utf-8")
    return st.components.v2.component("tokenstats_completion", html=html, css=_STYLE, js=script)


def complete(label: str, words: Sequence[str]) -> None:
    """Suggest words for the text area of this label, while one is being written."""
    _component()(key=f"complete-{label}", data={"label": label, "words": list(words)})
