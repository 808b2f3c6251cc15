"""Work on a whole store: done once for all readers of the page, shown as it goes on, and given up when a reader says so."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

import streamlit as st

from tokenstats.store import Store

Made = TypeVar("Made")
_MOST_KEPT = 32
QUIET = 0.4
"""Seconds after which work is said to go on: what is done sooner needs no bar."""


@dataclass
class _Work:
    """What has been made, the oldest first, and a lock for each thing that is being made."""

    made: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    locks: dict[Hashable, threading.Lock] = field(default_factory=dict)
    own: threading.Lock = field(default_factory=threading.Lock)

    def lock_of(self, key: Hashable) -> threading.Lock:
        with self.own:
            return self.locks.setdefault(key, threading.Lock())

    def keep(self, key: Hashable, what: Any) -> None:
        with self.own:
            self.made[key] = what
            if len(self.made) > _MOST_KEPT:
                self.made.popitem(last=False)


@st.cache_resource
def _work() -> _Work:
    return _Work()


def once(key: Hashable, title: str, store: Store, make: Callable[[Store], Made]) -> Made:
    """What is made of a store, made once.

    Args:
        key: All that it depends on.
        title: What is being done, for the bar.
        store: The store.
        make: Makes it of the store, by one thread or several: the bar moves with the parts that they read. Cancelled, or left
            for another page, it ends at the next part, and nothing is kept of it.
    """
    work = _work()
    if key in work.made:
        return work.made[key]
    if st.session_state.get("cancelled") == key:
        _offer_again()
    place = st.empty()
    lock = work.lock_of(key)
    while not lock.acquire(timeout=QUIET):
        place.info(f"{title}: another page is at it")  # a reader who goes elsewhere is let go here
    try:
        if key not in work.made:
            work.keep(key, _made(store, make, _Bar(place, title, key)))
    finally:
        lock.release()
    place.empty()
    return work.made[key]


def _offer_again() -> None:
    st.info("Cancelled.")
    if not st.button("Start again", key="again"):
        st.stop()
    del st.session_state["cancelled"]
    st.rerun()


def _cancel(key: Hashable) -> None:
    st.session_state["cancelled"] = key


class _GivenUp(Exception):
    """Nobody waits for the work any more."""


@dataclass
class _Progress:
    """The part that is read now, of how many; and whether anybody still waits."""

    part: int = 0
    parts: int = 1
    is_given_up: bool = False

    def tell(self, part: int, parts: int) -> None:
        """A part is about to be read."""
        if self.is_given_up:
            raise _GivenUp
        self.part, self.parts = part, parts


class _Bar:
    """A bar with a button beside it, drawn once the work has lasted."""

    def __init__(self, place: Any, title: str, key: Hashable):
        self.place, self.title, self.key = place, title, key
        self.began = time.monotonic()
        self.bar: Any = None

    def show(self, progress: _Progress) -> None:
        """How far the work is; Streamlit ends the run here where the reader has asked for something else."""
        if time.monotonic() - self.began < QUIET:
            return
        share, text = progress.part / progress.parts, f"{self.title}: part {progress.part + 1:,} of {progress.parts:,}"
        if self.bar is None:
            with self.place.container(horizontal=True, vertical_alignment="center"):
                self.bar = st.progress(share, text)
                st.button("Cancel", key=f"cancel {self.title}", on_click=_cancel, args=(self.key,))
        self.bar.progress(share, text)


def _made(store: Store, make: Callable[[Store], Made], bar: _Bar) -> Made:
    """Another thread works, as this one, which Streamlit watches, has to look after the bar."""
    progress = _Progress()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(make, store.watched(progress.tell))
        try:
            while not wait([work], QUIET / 4).done:
                bar.show(progress)
        except BaseException:  # by which Streamlit ends a run, too
            progress.is_given_up = True
            raise
        return work.result()
