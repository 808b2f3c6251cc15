"""Between the page and its reader's browser: what the browser has not heard of yet, and what it has not told yet.

A browser sends with each press what it thinks all widgets say. Where the page itself has just set one, a quick press sends
the value of before, and Streamlit takes it for a change by the reader. So a value that was put stays until the browser is
known to have it. And a slider tells of its change later than the press of a button that follows: what a button asks for
waits until the browser has answered a number that it was told after the press.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import streamlit as st
from components.ear import ear


@dataclass(frozen=True)
class _Put:
    """A widget's value, what the browser may still think that it is, and the number that the browser answers once it knows."""

    value: Any
    before: tuple[Any, ...]
    number: int


def put(states: Mapping[str, Any]) -> None:
    """Set widgets, by their keys, from the next drawing on. Their reader's own changes count as ever."""
    puts, number = _puts(), ask()
    for key, value in states.items():
        before = (*puts[key].before, puts[key].value) if key in puts else ()
        now = (st.session_state[key],) if key in st.session_state else ()
        puts[key] = _Put(value, before + now, number)


def restate(*keys: str) -> None:
    """At the start of a drawing: widgets are as they were put, unless the reader has changed them since.

    Args:
        *keys: Of the widgets of a part that is drawn by itself; all, if none is given.
    """
    puts = _puts()
    for key in [key for key, one in puts.items() if is_heard(one.number)]:
        del puts[key]
    for key in set(keys or puts) & puts.keys():
        now = st.session_state.get(key)
        if now is None or (now in puts[key].before and now != puts[key].value):
            st.session_state[key] = puts[key].value
        elif now != puts[key].value:
            del puts[key]


def ask() -> int:
    """A number that the browser answers after the next drawing, when everything that its reader did before has arrived.

    Numbers are moments (ms): what a browser has answered to a server that has ended says nothing to the next.
    """
    st.session_state["asked"] = max(st.session_state.get("asked", 0) + 1, time.time_ns() // 1_000_000)
    return st.session_state["asked"]


def is_heard(number: int) -> bool:
    """The browser has answered this number."""
    return st.session_state.get("heard", 0) >= number


def want(what: str) -> None:
    """In a callback: note what the page is to do when all changes made before have arrived; it is drawn once more then."""
    number = ask()
    st.session_state["wanted"] = what, number
    st.session_state["awaited"] = number


def take_wanted() -> str:
    """Where it can be done: what is to be done now; nothing if it is empty."""
    what, number = st.session_state.get("wanted", ("", math.inf))
    if not is_heard(number):
        return ""
    del st.session_state["wanted"]
    st.session_state.pop("awaited", None)
    return what


@st.fragment
def listen(place: str) -> None:
    """At the end of what is drawn, of a page or of a part that is drawn by itself: hear how far the browser has come."""
    ear(place, st.session_state.get("asked", 0), st.session_state.get("heard", 0), _on_heard)
    if "awaited" in st.session_state and is_heard(st.session_state["awaited"]):
        del st.session_state["awaited"]
        st.rerun(scope="app")


def _on_heard(number: int) -> None:
    st.session_state["heard"] = max(number, st.session_state.get("heard", 0))  # answers from two places may cross


def go(**states: Any) -> NoReturn:
    """Draw the whole page anew, with these widgets so: of ``page``, ``row`` and the others that the address has."""
    put(states)
    st.rerun(scope="app")


def _puts() -> dict[str, _Put]:
    return st.session_state.setdefault("puts", {})
