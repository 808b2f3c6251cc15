"""The tokens of a bin of a histogram, or of a cell of two, below the picture that it was pressed in."""

import pandas as pd
import streamlit as st
from heard import go
from hits import choose_hit
from widgets import friendly

from tokenstats.inspect.preview import Outcome, Preview
from tokenstats.inspect.rows.bins import Bins, tokens_of_bin
from tokenstats.inspect.tokens.detokenize import Decoder


def list_bin(preview: Preview, outcome: Outcome, bins: Bins, key: str) -> None:
    """What is in the bins that were pressed last; a click on a place opens its row."""
    if not {(None, column) for column in bins} <= preview.columns:
        return
    found = tokens_of_bin(preview, outcome, bins)
    ranges = " and ".join(f"{column} {low:.3g} to {high:.3g} nats" for column, (low, high) in found.edges.items())
    with st.expander(f"{ranges}: {found.count:,} targets, {found.dropped:,} dropped", expanded=True), friendly():
        decoder = Decoder(preview.store)
        left, right = st.columns([1, 2])
        words = [(decoder.visible(token), count, dropped / count) for token, count, dropped in found.tokens]
        table = pd.DataFrame(words, columns=["token", "count", "dropped"])
        shares = {"dropped": st.column_config.NumberColumn("dropped", format="percent")}
        left.dataframe(table, hide_index=True, height=220, column_config=shares)
        with right:
            hit = choose_hit(preview.store, decoder, found.hits, key, height=220)
        if hit is not None and hit != st.session_state.get(f"{key}_last"):  # the list keeps it chosen: it is gone to once
            st.session_state[f"{key}_last"] = hit
            st.query_params["token"] = f"{hit.row}.{hit.token}"
            go(row=hit.row)
