"""Compare: any two of a rule that is tried, a stored mask, a preset and plain SFT, token by token."""

import numpy as np
import pandas as pd
import streamlit as st
from components.token_view import token_view
from heard import put
from loading import load_comparison, load_decided, load_operand, load_row, load_table, store_key
from sides import AS_STORED, PLAIN, Side, side_names, side_of
from widgets import still_there

from tokenstats.errors import InputError
from tokenstats.inspect.render.comparison_blocks import comparison_blocks
from tokenstats.inspect.render.html import blocks_html
from tokenstats.inspect.rows.decided import disagreement
from tokenstats.inspect.tokens.payload import decisions_payload
from tokenstats.inspect.tokens.shown_row import row_of_operand
from tokenstats.store import Store

_MOST_ROWS = 200


def page(store: Store, scoring: str | None) -> None:
    """Two sides, what they share, and the rows where they differ most."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        a, b = (_choose_side(store, letter, scoring) for letter in "ab")
        st.button("swap", key="swap", shortcut="X", on_click=_swap)
    if a == b:
        raise InputError(f"both sides are {a.title}; choose two that differ")
    number = _choose_row(_rows(store, scoring, a, b))
    one, two = (row_of_operand(load_operand(store, side.what, side.scoring), number) for side in (a, b))
    if one.view.scoring != two.view.scoring:
        st.caption(f"Statistics of {one.view.scoring}, which {a.title} reads; {b.title} reads {two.view.scoring}.")
    sent = load_row(store_key(store, one.view.scoring), number, one.view.scoring, store)
    decisions = decisions_payload(one.view, a.title, reasons=one.reasons, weight=one.weight, other=two.view, other_name=b.title)
    token_view(sent, decisions, {"colour": "ab", "pinned": -1}, slot="compared")
    st.html(blocks_html(*comparison_blocks(load_comparison(store, a, b))))


def _choose_side(store: Store, letter: str, scoring: str | None) -> Side:
    """A name and, where the store has several scorings, whose statistics decide: two scorings can be held together."""
    key, names = f"side_{letter}", side_names(store)
    still_there(key, names, "side")
    default = 0 if letter == "a" else min(1, len(names) - 1)
    name = st.selectbox(letter.upper(), names, default, key=key, bind="query-params", width=260)
    if len(store.scorings) > 1 and name != PLAIN:
        as_is = [AS_STORED] if name in store.masks else []
        options = [*as_is, *sorted(store.scorings, key=lambda other: other != scoring)]
        still_there(f"by_{letter}", options, "scoring")
        chosen = st.selectbox(f"{letter.upper()} decided by", options, key=f"by_{letter}", bind="query-params", width=160)
        return side_of(name, None if chosen == AS_STORED else chosen)
    return side_of(name, None if name in store.masks else scoring)


def _swap() -> None:
    for kind in ("side", "by"):
        one, two = (st.session_state.get(f"{kind}_{letter}") for letter in "ab")
        for key, value in ((f"{kind}_a", two), (f"{kind}_b", one)):
            if value is not None:
                put({key: value})
            else:
                st.session_state.pop(key, None)


def _rows(store: Store, scoring: str | None, a: Side, b: Side) -> pd.DataFrame:
    """The rows where the sides differ most."""
    table = load_table(store, scoring)
    one, two = (load_decided(store, side.what, side.scoring) for side in (a, b))
    found = disagreement(store, table, one, two)
    order = np.argsort(-found.differing, kind="stable")[:_MOST_ROWS]
    return pd.DataFrame(
        {"row": order, "both drop": found.both[order], "A only": found.only_a[order], "B only": found.only_b[order]}
    )


def _choose_row(rows: pd.DataFrame) -> int:
    with st.expander("Rows by disagreement", expanded=True):
        chosen = st.dataframe(
            rows, hide_index=True, on_select="rerun", selection_mode="single-row", key="differing", height=220
        )
    at = chosen.selection.rows[0] if chosen.selection.rows else 0
    return int(rows["row"].iloc[at])
