"""Audit: what will be learned under a mask, and what looks wrong; warnings come first."""

from collections.abc import Sequence

import streamlit as st
from heard import go
from loading import load_audit
from sides import PLAIN
from widgets import show_numbers, still_there

from tokenstats.inspect.audit.checks import OK, Finding
from tokenstats.inspect.render import audit_blocks
from tokenstats.inspect.render.blocks import Shares
from tokenstats.inspect.render.html import blocks_html
from tokenstats.masking.rule import Rule
from tokenstats.store import Store


def page(store: Store, scoring: str | None) -> None:
    """The audit of one mask."""
    still_there("audited", [PLAIN, *store.masks], "mask")
    mask = st.sidebar.selectbox("Mask", [PLAIN, *store.masks], key="audited", bind="query-params")
    found = load_audit(store, None if mask == PLAIN else mask, scoring if mask == PLAIN else None)
    show_numbers(audit_blocks.audit_numbers(found))
    for finding in found.findings:
        if finding.verdict != OK:
            _finding(finding)
    _say([finding for finding in found.findings if finding.verdict == OK])
    if found.mask is None:
        return
    left, right = st.columns(2)
    left.html(blocks_html(Shares("clause", found.by_clause, numbered=True)))
    left.html(blocks_html(Shares("tenth of the reply", found.by_position)))
    left.html(blocks_html(Shares("class of token", found.by_class)))
    if found.means:
        right.html(blocks_html(audit_blocks.means_table(found)))
    right.html(blocks_html(audit_blocks.dropped_shares(found)))
    with st.expander("The rule"):
        st.code(Rule.from_dict(store.masks[found.mask].manifest.rule).to_toml(), language="toml")


def _say(findings: Sequence[Finding]) -> None:
    if findings:
        named = [(finding.name.replace("_", " "), finding) for finding in findings]
        st.html(blocks_html(audit_blocks.findings_table(named, title=" ")))


def _finding(finding: Finding) -> None:
    _say([finding])
    if finding.rows:
        with st.container(horizontal=True):
            for row in finding.rows:
                if st.button(f"row {row:,}", key=f"{finding.name}-{row}", type="tertiary"):
                    go(page="Tokens", row=row)
