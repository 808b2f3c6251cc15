"""Undo and redo of what the rule's widgets say, as far back as the tab was opened: a page that is loaded anew still has it."""

import json
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
from components.tab import keep_in_tab
from heard import put

from tokenstats.store import Store

RULE = ("way", "cut_by", "entropy_share", "kl_share", "entropy_nats", "kl_nats", "combine", "expression", "protect")
"""The widgets that make the rule."""

_MOST = 100


@dataclass
class Rules:
    """What the widgets said, oldest first, and which of it they say now.

    Attributes:
        is_whole: What they said before the page was loaded has been asked of the tab, and is there if it had any.
    """

    said: list[dict[str, Any]] = field(default_factory=list)
    at: int = -1
    is_whole: bool = False

    @classmethod
    def of_text(cls, text: str) -> "Rules":
        """What :meth:`to_text` has written. Raises ValueError for anything else."""
        found = json.loads(text)
        said, at = (found.get("said"), found.get("at")) if isinstance(found, dict) else (None, None)
        if not isinstance(said, list) or not all(isinstance(one, dict) and one.keys() <= set(RULE) for one in said):
            raise ValueError("no list of what the widgets of a rule said")
        if not isinstance(at, int) or not 0 <= at < len(said):
            raise ValueError("no place in that list")
        return cls(said, at, is_whole=True)

    def to_text(self) -> str:
        """As JSON; a threshold that is off is ``Infinity``, which only Python reads."""
        return json.dumps({"said": self.said, "at": self.at})

    def note(self, now: dict[str, Any]) -> None:
        """Remember what the widgets say, if it is new; what had been undone is forgotten then."""
        if self.at >= 0 and self.said[self.at] == now:
            return
        del self.said[self.at + 1 :]
        self.said = [*self.said, now][-_MOST:]
        self.at = len(self.said) - 1

    def move(self, step: int) -> dict[str, Any]:
        """Back or forth; what the widgets are to say."""
        self.at = min(max(self.at + step, 0), len(self.said) - 1)
        return self.said[self.at]


def undo_buttons(store: Store, scoring: str | None) -> None:
    """Remember what the widgets of the rule say, which have been drawn, and offer two buttons side by side.

    Thresholds in nats are a scoring's own: each has a history of its own.
    """
    name = f"rules {store.fingerprint} {scoring}"
    rules: Rules = st.session_state.setdefault(name, Rules())
    rules.note({key: st.session_state[key] for key in RULE if key in st.session_state})
    with st.container(horizontal=True):
        back, forth = rules.at <= 0, rules.at >= len(rules.said) - 1
        st.button("Undo", key="undo", shortcut="Ctrl+Z", on_click=_move, args=(rules, -1), disabled=back)
        st.button("Redo", key="redo", shortcut="Ctrl+Shift+Z", on_click=_move, args=(rules, 1), disabled=forth)
    keep_in_tab(name, rules.to_text(), len(rules.said) == 1 and not rules.is_whole, lambda text: _found(rules, text))


def _move(rules: Rules, step: int) -> None:
    put(rules.move(step))


def _found(rules: Rules, text: str) -> None:
    """The page was loaded anew: what it says now comes after what it said before."""
    now, rules.is_whole = rules.said[rules.at], True
    try:
        before = Rules.of_text(text)
    except ValueError:  # written by another version of this page
        return
    before.note(now)
    rules.said, rules.at = before.said, before.at
