"""Small things that several pages show."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import streamlit as st

from tokenstats.errors import TokenstatsError
from tokenstats.inspect.render.html_tokens import as_markdown


@contextmanager
def friendly() -> Iterator[None]:
    """Say what is wrong in words: what was got, what was expected, what to do."""
    try:
        yield
    except TokenstatsError as error:
        st.error(as_markdown(str(error)))


def show_numbers(numbers: list[tuple[str, str]]) -> None:
    """Numbers side by side, each with its name."""
    for column, (label, value) in zip(st.columns(len(numbers)), numbers, strict=True):
        column.metric(label, value)


def choice(label: str, options: Sequence[str], key: str, hidden: bool = False) -> str:
    """One of a few options, the first to begin with; the address of the page has it, and pressing it again changes nothing."""
    visibility = "collapsed" if hidden else "visible"
    return st.segmented_control(
        label, options, default=options[0], required=True, key=key, label_visibility=visibility, bind="query-params"
    )


def still_there(key: str, options: list[str], what: str) -> None:
    """Say so where what was chosen, or what the page's address names, is no longer there; the first option takes its place."""
    wanted = st.session_state.get(key, st.query_params.get(key))
    if wanted is not None and wanted not in options:
        st.warning(as_markdown(f"The {what} {wanted} is no longer in the store; {options[0]} is shown instead."))
        if key in st.session_state:
            st.session_state[key] = options[0]
