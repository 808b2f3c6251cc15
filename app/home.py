"""The app: see a store's tokens, turn a rule's knobs, and decide what a model learns.

    streamlit run app/home.py -- STORE      # a store, or a folder with stores below it

Widgets only: what they show is computed in tokenstats.inspect and tokenstats.masking. A page is a module in pages/.
"""

import sys
from pathlib import Path

import streamlit as st

FOLDER = Path(__file__).parent
if str(FOLDER) not in sys.path:  # Streamlit does this too; its tests do not
    sys.path.insert(0, str(FOLDER))

from components.keys import keyboard  # noqa: E402
from heard import listen, restate, take_wanted  # noqa: E402
from pages import audit, compare, overview, rows, runs, tokens  # noqa: E402
from widgets import choice, friendly, still_there  # noqa: E402

from tokenstats.inspect.render.html import style  # noqa: E402
from tokenstats.store import Store  # noqa: E402
from tokenstats.store.find_stores import find_stores  # noqa: E402

PAGES = {
    "Tokens": tokens.page,
    "Rows": rows.page,
    "Compare": compare.page,
    "Audit": audit.page,
    "Overview": overview.page,
    "Runs": runs.page,
}


def main() -> None:
    st.set_page_config(page_title="tokenstats", layout="wide", initial_sidebar_state="auto")
    st.html(f"<style>{(FOLDER / 'style.css').read_text(encoding='utf-8')}{style()}</style>")
    restate()
    with friendly():
        store = choose_store()
        with st.sidebar:
            chosen = choice("Page", list(PAGES), "page", hidden=True)
        PAGES[chosen](store, scoring_box(store))
    with st.sidebar:
        keyboard()
    if take_wanted():
        st.warning("Nothing was saved: the page of the rule was left before the press of its button had arrived.")
    listen("page")


def choose_store() -> Store:
    st.sidebar.html('<div class="ts-app-title">tokenstats</div>')
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    place = "folder of a store, or of several"
    text = st.sidebar.text_input("Store", value=given, key="store", placeholder=place, bind="query-params").strip()
    if not text:
        st.info("Give the folder of a store on the left: one made by `tokenstats compute`, or a folder with several below it.")
        st.stop()
    folder = Path(text).expanduser()
    found = find_stores(folder)
    if found and found != [folder]:
        names = {str(path.relative_to(folder)): path for path in found}
        folder = names[
            st.sidebar.selectbox(
                "1 store there" if len(found) == 1 else f"{len(found)} stores there",
                list(names),
                key="which_store",
                bind="query-params",
            )
        ]
    store = Store(folder)
    for families in (store.scorings, store.masks):
        families.check_all_listed()  # else one that lost its manifest would be left out of the lists without a word
    return store


def scoring_box(store: Store) -> str | None:
    """Which statistics are shown: those with a reference first, as rules mostly need it, and among them the newest."""
    newest = sorted(store.scorings.values(), key=lambda of: of.manifest.created, reverse=True)
    names = [s.name for s in sorted(newest, key=lambda of: of.manifest.reference is None)]
    if not names:
        st.sidebar.caption("No scoring yet: rules can only read positions, roles and what tokens say.")
        return None
    still_there("scoring", names, "scoring")
    return st.sidebar.selectbox("Scoring", names, key="scoring", bind="query-params") if len(names) > 1 else names[0]


main()
