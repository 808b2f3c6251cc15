"""A row of the store, and the way to its neighbours: drawn anew by itself, so that the next row does not wait for the rest."""

from dataclasses import dataclass

import streamlit as st
from components.token_view import Chosen, said, token_view
from heard import go, listen, put, restate
from loading import load_outcome, load_preview, load_row, load_scales, preview_key, store_key
from sides import PLAIN, preset_sides, side_of
from subject import Subject
from widgets import friendly, still_there

from tokenstats.inspect.steering import Steering, levels_of_row
from tokenstats.inspect.tokens.payload import decisions_payload
from tokenstats.inspect.tokens.shown_row import ShownRow, row_of_mask, row_of_rule
from tokenstats.masking.rule import Rule
from tokenstats.store import Store

NOTHING = "nothing"


@dataclass(frozen=True)
class _Beside:
    """What the row's decisions are held against."""

    name: str
    row: ShownRow


@st.fragment
def row_panel(store: Store, subject: Subject, steering: Steering | None) -> None:
    """The row's number, the ways on from it, and its tokens.

    Args:
        store: The store.
        subject: Whose decisions.
        steering: What the histograms above steer with, if there are any.
    """
    restate("row")
    with friendly():
        with st.container(horizontal=True, vertical_alignment="bottom"):
            number = _choose_row(store)
            beside = _choose_beside(store, subject, number)
            is_off = st.session_state.get("mask_off", False)
            mask_label = "Show what is dropped" if is_off else "Show as plain SFT"
            st.button(mask_label, key="m", shortcut="M", on_click=_toggle_mask, type="tertiary")
            if st.button("Rows and search", key="to_rows", shortcut="S", type="tertiary"):
                go(page="Rows")
        if is_off:
            subject = Subject(PLAIN, subject.scoring)
        levels = None if steering is None or subject.preview is None else levels_of_row(subject.preview, steering, number)
        _draw(store, subject, number, beside, levels)
        if number + 1 < store.manifest.sequences:  # the next press finds it read
            load_row(store_key(store, subject.scoring), number + 1, subject.scoring, store)
    listen("row")


def _choose_row(store: Store) -> int:
    last = store.manifest.sequences - 1
    st.session_state["row"] = min(max(st.session_state.get("row", _row_of_address()), 0), last)  # beyond the end is the end
    number = int(st.number_input(f"Row, 0 to {last:,}", min_value=0, step=1, key="row", bind="query-params", width=150))
    st.button("Before", key="before", shortcut="K", on_click=_move, args=(number - 1,), disabled=number == 0)
    st.button("Next", key="next", shortcut="J", on_click=_move, args=(number + 1,), disabled=number == last)
    _walk(number)
    return number


def _row_of_address() -> int:
    text = st.query_params.get("row", "0")
    return int(text) if text.isdigit() else 0


def _walk(number: int) -> None:
    """Through the rows of the last table or search."""
    result: list[int] = st.session_state.get("result", [])
    if number not in result:
        return
    at = result.index(number)
    former, later = result[max(0, at - 1)], result[min(len(result) - 1, at + 1)]
    st.button("Former found", key="former", shortcut="P", on_click=_move, args=(former,), disabled=at == 0)
    st.button("Next found", key="later", shortcut="N", on_click=_move, args=(later,), disabled=at == len(result) - 1)
    st.caption(f"{at + 1:,} of {len(result):,} found")


def _move(number: int) -> None:
    put({"row": number})


def _toggle_mask() -> None:
    st.session_state["mask_off"] = not st.session_state.get("mask_off")


def _choose_beside(store: Store, subject: Subject, number: int) -> _Beside | None:
    """Slot B: a preset, a stored mask or plain SFT on the same row, told apart from A by the colouring "A/B"."""
    names = [NOTHING, *(mask for mask in store.masks if mask != subject.mask), PLAIN, *preset_sides()]
    still_there("beside", names, "mask")
    name = st.selectbox("Held against (B)", names, key="beside", bind="query-params", width=190, on_change=_colour_sides)
    if name == NOTHING:
        return None
    what = side_of(name, subject.scoring).what
    if name == PLAIN or not isinstance(what, Rule):
        return _Beside(name, row_of_mask(store, None if name == PLAIN else name, number, subject.scoring))
    preview = load_preview(store, subject.scoring, what)
    return _Beside(name, row_of_rule(preview, load_outcome(preview, what), number, name))


def _colour_sides() -> None:
    if st.session_state["beside"] != NOTHING:
        st.query_params["colour"] = "ab"


def _shown_row(store: Store, subject: Subject, number: int) -> ShownRow:
    if subject.preview is not None and subject.outcome is not None:
        return row_of_rule(subject.preview, subject.outcome, number, subject.name)
    return row_of_mask(store, subject.mask, number, subject.scoring)


def _draw(store: Store, subject: Subject, number: int, beside: _Beside | None, levels: dict[str, str] | None) -> None:
    row = _shown_row(store, subject, number)
    scoring = row.view.scoring
    sent = load_row(store_key(store, scoring), number, scoring, store)
    other, other_name = (None, "") if beside is None else (beside.row.view, beside.name)
    decisions = decisions_payload(
        row.view, row.name, reasons=row.reasons, weight=row.weight, other=other, other_name=other_name
    )
    _follow_reader(number)
    usual = "weight" if row.weight is not None and not row.view.clauses else "clause"
    settings = {
        "scales": load_scales(preview_key(store, scoring, None), load_preview(store, scoring, None)),
        "colour": st.query_params.get("colour", usual),
        "pinned": _pinned(number),
        "dimmed": not subject.is_written,
        "levels": levels,
    }
    token_view(sent, decisions, settings)


def _follow_reader(number: int) -> None:
    """What was pinned and chosen in the token view goes into the address of the page, which says it from then on."""
    did = said()
    if did == st.session_state.get("reader", Chosen()):
        return
    st.session_state["reader"] = did
    if did.colour is not None:
        st.query_params["colour"] = did.colour
    if did.row == number and did.pinned is not None:
        st.query_params["token"] = f"{number}.{did.pinned}"
    elif did.row == number:
        st.query_params.pop("token", None)


def _pinned(number: int) -> int:
    """The token pinned in this row, as the address of the page has it; -1 for none."""
    row, _, token = st.query_params.get("token", "").partition(".")
    return int(token) if row == str(number) and token.isdigit() else -1
