"""Tokens: a row under a rule that is being tried, or under a stored mask, and why each token is dropped."""

from html import escape

import streamlit as st
from components.download import deliver
from components.token_view import token_view
from loading import PICTURES, load_outcome, load_picture, load_preview, load_row, load_scales, preview_key, store_key
from rule_panel import choose_rule, offer_to_save
from widgets import choice, show_numbers, still_there

from tokenstats.inspect.preview import MOST_TOKENS, Outcome, Preview
from tokenstats.inspect.render import audit_blocks
from tokenstats.inspect.tokens.payload import decisions_payload
from tokenstats.inspect.tokens.shown_row import ShownRow, row_of_mask, row_of_rule
from tokenstats.masking.rule import Rule, rule_text
from tokenstats.store import Store

NEW = "a new rule"
PLAIN = "plain SFT"


def page(store: Store, scoring: str | None) -> None:
    """A row of the store and the decisions on it."""
    still_there("decisions", [NEW, *store.masks, PLAIN], "mask")
    shown = st.sidebar.selectbox("Decisions of", [NEW, *store.masks, PLAIN], key="decisions", bind="query-params")
    if shown == NEW:
        _new_rule(store, scoring)
    else:
        _stored(store, scoring, None if shown == PLAIN else shown)


def _new_rule(store: Store, scoring: str | None) -> None:
    has_kl = scoring is not None and store.scorings[scoring].manifest.reference is not None
    rule, is_written = choose_rule(store, scoring, has_kl)
    if rule is None:
        if is_written:
            st.info("Both thresholds are off: every target is learned. Move one to see what it drops.")
        _stored(store, scoring, None)
        return
    preview = load_preview(store, scoring, rule)
    outcome = load_outcome(preview, rule)
    offer_to_save(store, scoring, rule, is_written, deliver)
    if not is_written:
        st.warning("The rule has an error. What is shown below is the last one that had none.")
    show_numbers(audit_blocks.outcome_numbers(outcome))
    _say_of_what(preview, outcome)
    _draw(store, row_of_rule(preview, outcome, _row_number(store)), scoring, preview)
    _pictures(preview, outcome)


def _stored(store: Store, scoring: str | None, mask: str | None) -> None:
    if mask is not None:
        manifest = store.masks[mask].manifest
        show_numbers(audit_blocks.mask_numbers(manifest))
        st.code(rule_text(manifest.rule), language="python", wrap_lines=True)
        rule = Rule.from_dict(manifest.rule)
        if rule.expression is not None and rule.budget_mask is None:
            st.button("Edit as a new rule", on_click=_edit, args=(rule,), key="edit")
    else:
        show_numbers([("Dropped", "0.00%"), ("Learned", f"{store.manifest.targets:,}")])
    row = row_of_mask(store, mask, _row_number(store), scoring)
    _draw(store, row, row.view.scoring, load_preview(store, row.view.scoring, None))


def _edit(rule: Rule) -> None:
    st.session_state["decisions"], st.session_state["way"] = NEW, "Expression"
    st.session_state["fill"] = (rule.drop or f"not ({rule.keep})"), rule.protect


def _row_number(store: Store) -> int:
    last = store.manifest.sequences - 1
    if st.session_state.get("row", 0) > last:
        st.session_state["row"] = last  # beyond the end is the end, and the box says so
    if st.session_state.get("row", 0) < 0:
        st.session_state["row"] = 0
    place, _ = st.columns([1, 4])
    return int(place.number_input(f"Row, 0 to {last:,}", value=0, step=1, key="row", bind="query-params"))


def _draw(store: Store, row: ShownRow, scoring: str | None, preview: Preview) -> None:
    sent = load_row(store_key(store, scoring), row.view.number, scoring, store)
    decisions = decisions_payload(row.view, row.name, reasons=row.reasons, weight=row.weight)
    settings = {"scales": load_scales(preview_key(store, scoring, None), preview), "colour": st.query_params.get("colour")}
    settings["pinned"] = _pinned(row.view.number)
    if settings["colour"] is None:
        settings["colour"] = "weight" if row.weight is not None and not row.view.clauses else "clause"
    chosen = token_view(sent, decisions, settings)
    if chosen.colour is not None:
        st.query_params["colour"] = chosen.colour
    if chosen.pinned is not None:
        st.query_params["token"] = f"{row.view.number}.{chosen.pinned}"
    elif "tokens-view" in st.session_state and st.session_state["tokens-view"].get("pinned") is not None:
        st.query_params.pop("token", None)


def _pinned(number: int) -> int:
    """The token pinned in this row, as the address of the page has it; -1 for none."""
    row, _, token = st.query_params.get("token", "").partition(".")
    return int(token) if row == str(number) and token.isdigit() else -1


def _say_of_what(preview: Preview, outcome: Outcome) -> None:
    if preview.is_sample:
        st.warning(
            f"A sample: {preview.tokens:,} of the store's {preview.store.manifest.tokens:,} tokens, as at most {MOST_TOKENS:,} "
            "are held in memory. Shares and thresholds are the sample's; a saved mask is computed from all tokens."
        )
    else:
        st.caption(f"All {outcome.counts.targets:,} targets of the store: saving this rule gives exactly these numbers.")


def _pictures(preview: Preview, outcome: Outcome) -> None:
    if not preview.scoring:
        return
    chosen = choice("Picture", PICTURES, "picture", hidden=True)
    if chosen == PICTURES[1] and (None, "kl") not in preview.columns:
        st.info("This scoring has no reference, so there is no KL.")
        return
    st.html(f'<img class="ts-picture" alt="{escape(chosen)}" src="{load_picture(preview, outcome, chosen)}">')
