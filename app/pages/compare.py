"""Compare: any two of a rule that is tried, a stored mask, a preset and plain SFT, token by token."""

import numpy as np
import pandas as pd
import streamlit as st
from components.token_view import token_view
from loading import Key, load_comparison, load_decided, load_operand, load_row, load_table, side_key, store_key
from widgets import still_there

from tokenstats.errors import InputError
from tokenstats.inspect.render.comparison_blocks import comparison_blocks
from tokenstats.inspect.render.html import blocks_html
from tokenstats.inspect.rows.decided import disagreement
from tokenstats.inspect.tokens.payload import decisions_payload
from tokenstats.inspect.tokens.shown_row import row_of_operand
from tokenstats.masking.rule import Rule, preset_names
from tokenstats.store import Store

PLAIN, TRIED = "plain SFT", "the new rule"
_DROPS_NOTHING = Rule(drop="position < 0", protect="")
_MOST_ROWS = 200


def page(store: Store, scoring: str | None) -> None:
    """Two sides, what they share, and the rows where they differ most."""
    options = _options(store)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for key, default in (("side_a", 0), ("side_b", min(1, len(options) - 1))):
            still_there(key, options, "side")
            st.selectbox(key[-1].upper(), options, default, key=key, bind="query-params", width=260)
        st.button("swap", key="swap", shortcut="X", on_click=_swap)
    a, b = st.session_state["side_a"], st.session_state["side_b"]
    if a == b:
        raise InputError(f"both sides are {a}; choose two that differ")
    rows = _rows(store, scoring, a, b)
    number = _choose_row(rows)
    one, two = (row_of_operand(load_operand(store, _side(side), scoring), number) for side in (a, b))
    if one.view.scoring != two.view.scoring:
        st.caption(f"Statistics of {one.view.scoring}, which {a} reads; {b} reads {two.view.scoring}.")
    sent = load_row(store_key(store, one.view.scoring), number, one.view.scoring, store)
    decisions = decisions_payload(one.view, a, reasons=one.reasons, weight=one.weight, other=two.view, other_name=b)
    token_view(sent, decisions, {"colour": "ab", "pinned": -1}, slot="compared")
    key: Key = (*store_key(store, *store.scorings), side_key(store, _side(a)), side_key(store, _side(b)))
    found = load_comparison(key, store, _side(a), _side(b), scoring if _reads(a) or _reads(b) else None)
    st.html(blocks_html(*comparison_blocks(found)))


def _options(store: Store) -> list[str]:
    tried = [TRIED] if st.session_state.get("last_good_rule") is not None else []
    presets = [f"preset {name}" for name in preset_names() if Rule.from_preset(name).expression is not None]
    return [*tried, *store.masks, PLAIN, *presets]


def _swap() -> None:
    st.session_state["side_a"], st.session_state["side_b"] = st.session_state["side_b"], st.session_state["side_a"]


def _side(name: str) -> str | Rule:
    """What an option means to :func:`tokenstats.masking.compare.compare`."""
    if name == PLAIN:
        return _DROPS_NOTHING
    if name == TRIED:
        return st.session_state["last_good_rule"]
    return Rule.from_preset(name.removeprefix("preset ")) if name.startswith("preset ") else name


def _reads(name: str) -> bool:
    side = _side(name)
    return isinstance(side, Rule) and side.needs_scoring


def _rows(store: Store, scoring: str | None, a: str, b: str) -> pd.DataFrame:
    """The rows where the sides differ most."""
    table = load_table(store, scoring)
    one, two = (load_decided(store, _side(side), scoring) for side in (a, b))
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
