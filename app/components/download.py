"""A text handed to the reader's browser as a file, when the page says so rather than when a button is pressed."""

from typing import Any

import streamlit as st

_SCRIPT = """
const done = new Set();

/** @param {{data: {name: string, text: string, id: string}}} component */
export default function ({ data }) {
  if (done.has(data.id)) return; // drawn again, not asked for again
  done.add(data.id);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([data.text], { type: "application/toml" }));
  link.download = data.name;
  link.click();
  URL.revokeObjectURL(link.href);
}
"""


@st.cache_resource
def _component() -> Any:
    return st.components.v2.component("tokenstats_download", js=_SCRIPT)


def deliver(name: str, text: str) -> None:
    """Let the browser save a file of this name."""
    count = st.session_state["delivered"] = st.session_state.get("delivered", 0) + 1
    _component()(key="download-file", data={"name": name, "text": text, "id": f"{count} {name}"})
