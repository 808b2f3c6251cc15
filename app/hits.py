"""Places of tokens as a list with a little of what stands around each."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from tokenstats.inspect.rows.search import Hit
from tokenstats.inspect.tokens.detokenize import Decoder, visible
from tokenstats.inspect.tokens.sequence import ids_of
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
    ids = _ids_of(store.fingerprint, hit.row, store)
    around = slice(max(0, hit.token - _AROUND), hit.token), slice(hit.token + 1, hit.token + 1 + _AROUND)
    before, after = (visible(decoder.text(ids[part])) for part in around)
    return f"{before}⟦{decoder.visible(ids[hit.token])}⟧{after}"


@st.cache_data(max_entries=500, show_spinner=False)
def _ids_of(fingerprint: str, row: int, _store: Store) -> list[int]:
    return ids_of(_store, row)
