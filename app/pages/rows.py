"""Rows: a table to find the ones worth looking at, and a search for tokens. A click opens a row."""

import numpy as np
import pandas as pd
import streamlit as st
from heard import go
from hits import choose_hit
from loading import load_decided, load_index, load_table
from subject import Subject, choose_subject

from tokenstats.inspect.rows.decided import DecidedStore
from tokenstats.inspect.rows.search import SearchBy, search, sequences_for
from tokenstats.inspect.rows.table import Filter, RowTable, column_of_rows, columns_of, find_rows
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.store import Store

MOST_ROWS = 1000
_LISTED = 50


def page(store: Store, scoring: str | None) -> None:
    """Search first, as it is quicker to see past; then the table."""
    subject = choose_subject(store, scoring)
    decided = load_decided(store, subject.rule or subject.mask, subject.scoring if subject.rule is not None else None)
    _search(store, subject, decided)
    _table(load_table(store, subject.scoring), decided)


def _search(store: Store, subject: Subject, decided: DecidedStore) -> None:
    left, right = st.columns([3, 1])
    text = left.text_input(
        f"Where is it dropped under {subject.name}?",
        key="sought",
        bind="query-params",
        placeholder="a token with its space, such as ' So'",
    )
    by = right.selectbox("Search by", list(map(str, SearchBy)), key="search_by", bind="query-params")
    if not text:
        return
    decoder = Decoder(store)
    sought = sequences_for(decoder, store.manifest.tokenizer.size, text, SearchBy(by))
    found = search(load_index(store), sought, decided.bits)
    st.markdown(f"**{found.count:,}** among the targets, **{found.dropped:,}** dropped ({found.share_dropped:.1%})")
    if hit := choose_hit(store, decoder, found.hits[:_LISTED], "hits", height=280):
        st.query_params["token"] = f"{hit.row}.{hit.token}"
        _open(hit.row, list(dict.fromkeys(hit.row for hit in found.hits)))


def _table(table: RowTable, decided: DecidedStore) -> None:
    columns = columns_of(table)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        wanted = st.selectbox("Rows", list(map(str, Filter)), key="rows_filter", bind="query-params", width=220)
        sort_by = st.selectbox(
            "Sort by", columns, 1, lambda name: name.replace("_", " "), key="rows_by", bind="query-params", width=220
        )
        rising = st.toggle("smallest first", key="rows_rising", bind="query-params")
    found = find_rows(table, decided.rows, Filter(wanted), sort_by=sort_by, rising=rising)
    more = f", the first {MOST_ROWS:,} of them listed" if len(found) > MOST_ROWS else ""
    st.caption(f"{len(found):,} of {len(table):,} rows{more}. A click opens one; n and p walk on from there.")
    listed = found[:MOST_ROWS]
    data = {name: column_of_rows(table, decided.rows, name)[listed] for name in columns} | {
        "truncated": table.truncated[listed]
    }
    shares = {"share_dropped": st.column_config.ProgressColumn("share dropped", min_value=0.0, max_value=1.0, format="percent")}
    numbers = {name: st.column_config.NumberColumn(name.replace("_", " "), format="%.3f") for name in table.statistics}
    chosen = st.dataframe(
        pd.DataFrame(data),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        column_config=shares | numbers,
        key="rows",
    )
    if chosen.selection.rows:
        _open(int(listed[chosen.selection.rows[0]]), _as_list(listed))


def _as_list(rows: np.ndarray) -> list[int]:
    return [int(row) for row in rows]


def _open(row: int, result: list[int]) -> None:
    """Show a row, and remember what it was found among."""
    st.session_state["result"] = result
    go(page="Tokens", row=row)
