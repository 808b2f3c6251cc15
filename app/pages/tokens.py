"""Tokens: a row under a rule that is being tried, or under a stored mask, and why each token is dropped."""

from html import escape

import streamlit as st
from components.joint import joint_view
from components.steering import steering_view
from heard import put
from loading import ALONG_REPLY, HISTOGRAMS, JOINT, load_picture
from row_panel import row_panel
from rule_panel import as_written
from subject import NEW, Subject, choose_subject
from widgets import choice, show_numbers

from tokenstats.inspect.preview import MOST_TOKENS
from tokenstats.inspect.render import audit_blocks
from tokenstats.masking.rule import Rule, rule_text
from tokenstats.store import Store


def page(store: Store, scoring: str | None) -> None:
    """A row of the store and the decisions on it."""
    subject = choose_subject(store, scoring)
    _numbers(store, subject)
    steering = None
    if subject.preview is not None and subject.outcome is not None and st.session_state.get("way") == "Thresholds":
        steering = steering_view(subject.preview, subject.outcome, (None, "kl") in subject.preview.columns)
    row_panel(store, subject, steering)
    if subject.outcome is not None:
        _pictures(subject, steering is not None)


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
    put({"decisions": NEW, "way": "Expression"} | as_written(rule))


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


def _pictures(subject: Subject, is_steered: bool) -> None:
    """Pictures of the whole preview; its histograms, which take longest to draw, only where none above can be steered."""
    preview, outcome = subject.preview, subject.outcome
    if preview is None or outcome is None or not preview.scoring:
        return
    has_kl = (None, "kl") in preview.columns
    pictures = [HISTOGRAMS] * (not is_steered) + [JOINT] * has_kl + [ALONG_REPLY]
    if st.session_state.get("picture") not in pictures:
        st.session_state.pop("picture", None)
    chosen = choice("Picture", pictures, "picture", hidden=True)
    if chosen == JOINT:
        joint_view(preview, outcome)
    else:
        st.html(f'<img class="ts-picture" alt="{escape(chosen)}" src="{load_picture(preview, outcome, chosen)}">')
