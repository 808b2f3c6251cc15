"""A text that the reader's tab keeps when its page is loaded anew."""

from collections.abc import Callable
from typing import Any

import streamlit as st

# of the tab alone: the address, which is sent to others, says what the rule is, not how its reader came to it
_SCRIPT = """
/** @param {{data: {name: string, text: string, isNew: boolean}, setTriggerValue: (name: string, value: any) => void}} page */
export default function ({ data, setTriggerValue }) {
  const kept = sessionStorage.getItem(data.name);
  if (data.isNew && kept !== null && kept !== data.text) setTriggerValue("found", kept);
  else sessionStorage.setItem(data.name, data.text);
}
"""


@st.cache_resource
def _component() -> Any:
    return st.components.v2.component("tokenstats_tab", js=_SCRIPT)


def keep_in_tab(name: str, text: str, is_new: bool, on_found: Callable[[str], None]) -> None:
    """Keep a text under a name.

    Args:
        name: Of the text.
        text: To be kept.
        is_new: The page may have been loaded anew: a text that is kept already is not written over.
        on_found: Called with that one.
    """
    key = f"tab {name}"
    data = {"name": name, "text": text, "isNew": is_new}
    _component()(key=key, data=data, on_found_change=lambda: on_found(str(st.session_state[key]["found"])))
