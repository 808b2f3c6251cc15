"""The browser says how far it has come: a number that it is told is a number that it tells, once all before it is done."""

from collections.abc import Callable
from typing import Any

import streamlit as st

# a slider of Streamlit tells of its change a fifth of a second late; timers that are due earlier run earlier
_SCRIPT = """
const LATEST_CHANGE = 250;

/** @param {{data: {number: number, heard: number}, setStateValue: (name: string, value: any) => void}} component */
export default function ({ data, setStateValue }) {
  if (data.heard < data.number) setTimeout(() => setStateValue("number", data.number), LATEST_CHANGE);
}
"""


@st.cache_resource
def _component() -> Any:
    return st.components.v2.component("tokenstats_ear", js=_SCRIPT)


def ear(place: str, number: int, heard: int, on_heard: Callable[[int], None]) -> None:
    """Tell the browser a number. Its answer comes after all changes made before it, with all that was drawn before it known.

    Args:
        place: Names this one among several on a page.
        number: To be told.
        heard: The highest that was answered.
        on_heard: Called with the answer.
    """
    key = f"ear {place}"
    data = {"number": number, "heard": heard}
    _component()(key=key, data=data, on_number_change=lambda: on_heard(int(st.session_state[key]["number"])))
