"""What the pages look at: the decisions of a rule that is being tried, of a stored mask, or of plain SFT."""

from dataclasses import dataclass

import streamlit as st
from components.download import deliver
from loading import load_outcome, load_preview, mask_key
from rule_panel import choose_rule, offer_to_save
from sides import PLAIN
from widgets import still_there

from tokenstats.inspect.preview import Outcome, Preview
from tokenstats.masking.rule import Rule
from tokenstats.store import Store

NEW = "a new rule"


@dataclass(frozen=True)
class Subject:
    """Whose decisions are shown.

    Attributes:
        name: On the page.
        scoring: The statistics beside them: of a mask, those that it was made from.
        mask: The stored mask; None for a rule and for plain SFT.
        rule: The rule that is being tried; None for a mask and for plain SFT.
        preview, outcome: Of the rule.
        is_written: The rule is what is written in the sidebar, which has an error otherwise.
    """

    name: str
    scoring: str | None
    mask: str | None = None
    rule: Rule | None = None
    preview: Preview | None = None
    outcome: Outcome | None = None
    is_written: bool = True

    def key(self, store: Store) -> str:
        """All that the decisions depend on, besides the store and its scoring."""
        return f"rule {self.rule.fingerprint}" if self.rule is not None else mask_key(store, self.mask)


def choose_subject(store: Store, scoring: str | None) -> Subject:
    """The choice in the sidebar, with the rule's own widgets where a rule is tried."""
    options = [NEW, *store.masks, PLAIN]
    still_there("decisions", options, "mask")
    shown = st.sidebar.selectbox("Decisions of", options, key="decisions", bind="query-params")
    if shown == PLAIN:
        return Subject(PLAIN, scoring)
    if shown != NEW:
        return Subject(shown, store.masks[shown].manifest.scoring or scoring, mask=shown)
    has_kl = scoring is not None and store.scorings[scoring].manifest.reference is not None
    rule, is_written = choose_rule(store, scoring, has_kl)
    if rule is None:
        if is_written:
            st.info("Both thresholds are off: every target is learned. Move one to see what it drops.")
        return Subject(PLAIN, scoring, is_written=is_written)
    preview = load_preview(store, scoring, rule)
    outcome = load_outcome(preview, rule)
    offer_to_save(store, scoring, rule, is_written, deliver)
    if not is_written:
        st.warning("The rule has an error. What is shown below is the last one that had none.")
    return Subject("new rule", scoring, rule=rule, preview=preview, outcome=outcome, is_written=is_written)
