"""Places of tokens as a list with a little of what stands around each."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from tokenstats.inspect.rows.search import Hit
from tokenstats.inspect.tokens.detokenize import Decoder, visible
from tokenstats.inspect.tokens.sequence import read_sequence
from tokenstats.store import Store

_AROUND = 6


def choose_hit(store: Store, decoder: Decoder, hits: Sequence[Hit], key: str, height: int) -> Hit | None:
    """List places; the one that is clicked."""
    if not hits:
        return None
    lines = [(h.row, h.token, "dropped" if h.dropped else "learned", _context(store, decoder, h)) for h in hits]
    table = pd.DataFrame(lines, columns=["row", "token", "decision", "in context"])
    chosen = st.dataframe(table, hide_index=True, on_select="rerun", selection_mode="single-row", key=key, height=height)
    return hits[chosen.selection.rows[0]] if chosen.selection.rows else None


def _context(store: Store, decoder: Decoder, hit: Hit) -> str:
    return _context_of(store.fingerprint, hit.row, hit.token, store, decoder)


@st.cache_data(max_entries=2000, show_spinner=False)
def _context_of(fingerprint: str, row: int, token: int, _store: Store, _decoder: Decoder) -> str:
    ids = read_sequence(_store, row).ids.tolist()
    around = slice(max(0, token - _AROUND), token), slice(token + 1, token + 1 + _AROUND)
    before, after = (visible(_decoder.text(ids[part])) for part in around)
    return f"{before}⟦{_decoder.visible(ids[token])}⟧{after}"
