"""Overview: what the store holds, for who sees it for the first time."""

import streamlit as st

from tokenstats.inspect.render.html import blocks_html
from tokenstats.inspect.render.store_blocks import store_blocks
from tokenstats.store import Store

_ABOUT = """
A *store* is one dataset cut into tokens. A *target* is a token that plain fine-tuning would learn: what the assistant wrote.
A *scoring* adds what a model thought of each target: its entropy, its probability, how far it has moved from a reference (KL).
A *mask* says which targets are learned and which are dropped, and by which clause of its rule. **Tokens** shows a row and why;
**Rows** finds rows worth looking at; **Compare** holds two masks against each other; **Audit** looks for what is wrong.
"""


def page(store: Store, scoring: str | None) -> None:
    """The store in a few lines."""
    st.markdown(_ABOUT)
    st.html(blocks_html(*store_blocks(store)))
