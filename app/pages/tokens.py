"""Tokens: a row under a rule that is being tried, or under a stored mask, and why each token is dropped."""

from html import escape

import streamlit as st
from components.steering import steering_view
from components.token_view import token_view
from loading import PICTURES, load_picture, load_preview, load_row, load_scales, preview_key, store_key
from subject import NEW, PLAIN, Subject, choose_subject
from widgets import choice, show_numbers

from tokenstats.inspect.preview import MOST_TOKENS
from tokenstats.inspect.render import audit_blocks
from tokenstats.inspect.tokens.payload import decisions_payload
from tokenstats.inspect.tokens.shown_row import ShownRow, row_of_mask, row_of_rule
from tokenstats.masking.rule import Rule, rule_text
from tokenstats.store import Store

KEYS = """
| key | does |
|---|---|
| `j` `k` | next row, row before |
| `n` `p` | next, former row of the last search or table |
| `m` | decisions on and off |
| `←` `→` `Home` `End` | in the tokens: move |
| `d` `D` | in the tokens: next dropped, dropped before |
| `Enter` `Esc` | pin the token, let it go |
| `s` | rows and search |
"""


def page(store: Store, scoring: str | None) -> None:
    """A row of the store and the decisions on it."""
    subject = choose_subject(store, scoring)
    _numbers(store, subject)
    number = _row_bar(store)
    if subject.preview is not None and subject.outcome is not None and st.session_state.get("way") == "Thresholds":
        steering_view(subject.preview, subject.outcome, number, (None, "kl") in subject.preview.columns)
    if st.session_state.get("mask_off"):
        subject = Subject(PLAIN, subject.scoring)
    if subject.preview is not None and subject.outcome is not None:
        row = row_of_rule(subject.preview, subject.outcome, number, subject.name)
    else:
        row = row_of_mask(store, subject.mask, number, subject.scoring)
    _draw(store, row)
    if subject.outcome is not None:
        _pictures(subject)
    with st.expander("Keys"):
        st.markdown(KEYS)


def _numbers(store: Store, subject: Subject) -> None:
    if subject.preview is not None and subject.outcome is not None:
        show_numbers(audit_blocks.outcome_numbers(subject.outcome))
        _say_of_what(subject)
    elif subject.mask is not None:
        manifest = store.masks[subject.mask].manifest
        show_numbers(audit_blocks.mask_numbers(manifest))
        st.code(rule_text(manifest.rule), language="python", wrap_lines=True)
        rule = Rule.from_dict(manifest.rule)
        if rule.expression is not None and rule.budget_mask is None:
            st.button("Edit as a new rule", on_click=_edit, args=(rule,), key="edit")
    else:
        show_numbers([("Dropped", "0.00%"), ("Learned", f"{store.manifest.targets:,}")])


def _edit(rule: Rule) -> None:
    st.session_state["decisions"], st.session_state["way"] = NEW, "Expression"
    st.session_state["fill"] = (rule.drop or f"not ({rule.keep})"), rule.protect


def _row_bar(store: Store) -> int:
    """The row's number, and the way to its neighbours."""
    last = store.manifest.sequences - 1
    st.session_state["row"] = min(max(st.session_state.get("row", _row_of_address()), 0), last)  # beyond the end is the end
    with st.container(horizontal=True, vertical_alignment="bottom"):
        number = st.number_input(f"Row, 0 to {last:,}", min_value=0, step=1, key="row", bind="query-params", width=180)
        st.button("Before", key="before", shortcut="K", on_click=_move, args=(number - 1,), disabled=number == 0)
        st.button("Next", key="next", shortcut="J", on_click=_move, args=(number + 1,), disabled=number == last)
        _walk(int(number))
        st.toggle("all learned", key="mask_off", help="show the row as plain SFT would learn it; key: m")
        st.button("m", key="m", shortcut="M", on_click=_toggle_mask, type="tertiary")
        st.button("Rows and search", key="to_rows", shortcut="S", on_click=_to_rows, type="tertiary")
    return int(number)


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
    st.session_state["row"] = number


def _toggle_mask() -> None:
    st.session_state["mask_off"] = not st.session_state.get("mask_off")


def _to_rows() -> None:
    st.session_state["page"] = "Rows"


def _draw(store: Store, row: ShownRow) -> None:
    scoring = row.view.scoring
    sent = load_row(store_key(store, scoring), row.view.number, scoring, store)
    decisions = decisions_payload(row.view, row.name, reasons=row.reasons, weight=row.weight)
    usual = "weight" if row.weight is not None and not row.view.clauses else "clause"
    scales = load_scales(preview_key(store, scoring, None), load_preview(store, scoring, None))
    settings = {"scales": scales, "colour": st.query_params.get("colour", usual), "pinned": _pinned(row.view.number)}
    chosen = token_view(sent, decisions, settings)
    if chosen.colour is not None:
        st.query_params["colour"] = chosen.colour
    if chosen.pinned is not None and chosen.row == row.view.number:
        st.query_params["token"] = f"{row.view.number}.{chosen.pinned}"
    elif "token" in st.query_params and chosen.row == row.view.number:
        del st.query_params["token"]


def _pinned(number: int) -> int:
    """The token pinned in this row, as the address of the page has it; -1 for none."""
    row, _, token = st.query_params.get("token", "").partition(".")
    return int(token) if row == str(number) and token.isdigit() else -1


def _say_of_what(subject: Subject) -> None:
    preview, outcome = subject.preview, subject.outcome
    assert preview is not None
    assert outcome is not None
    if preview.is_sample:
        st.warning(
            f"A sample: {preview.tokens:,} of the store's {preview.store.manifest.tokens:,} tokens, as at most {MOST_TOKENS:,} "
            "are held in memory. Shares and thresholds are the sample's; a saved mask is computed from all tokens."
        )
    else:
        st.caption(f"All {outcome.counts.targets:,} targets of the store: saving this rule gives exactly these numbers.")


def _pictures(subject: Subject) -> None:
    preview, outcome = subject.preview, subject.outcome
    if preview is None or outcome is None or not preview.scoring:
        return
    chosen = choice("Picture", PICTURES, "picture", hidden=True)
    if chosen == PICTURES[1] and (None, "kl") not in preview.columns:
        st.info("This scoring has no reference, so there is no KL.")
        return
    st.html(f'<img class="ts-picture" alt="{escape(chosen)}" src="{load_picture(preview, outcome, chosen)}">')
