"""Undo and redo of what the rule's widgets say, as far back as the page was opened."""

from dataclasses import dataclass, field
from typing import Any

import streamlit as st
from widgets import put

RULE = ("way", "cut_by", "entropy_share", "kl_share", "entropy_nats", "kl_nats", "combine", "expression", "protect")
"""The widgets that make the rule."""

_KEY = "rules"


@dataclass
class Rules:
    """What the widgets said, oldest first, and which of it they say now."""

    said: list[dict[str, Any]] = field(default_factory=list)
    at: int = -1

    def note(self, now: dict[str, Any]) -> None:
        """Remember what the widgets say, if it is new; what had been undone is forgotten then."""
        if self.at >= 0 and self.said[self.at] == now:
            return
        del self.said[self.at + 1 :]
        self.said.append(now)
        self.at += 1

    def move(self, step: int) -> dict[str, Any]:
        """Back or forth; what the widgets are to say."""
        self.at = min(max(self.at + step, 0), len(self.said) - 1)
        return self.said[self.at]


def note_rule() -> None:
    """Remember what the widgets of the rule say; they have been drawn."""
    _rules().note({key: st.session_state[key] for key in RULE if key in st.session_state})


def undo_buttons() -> None:
    """Two buttons side by side."""
    rules = _rules()
    with st.container(horizontal=True):
        back, forth = rules.at <= 0, rules.at >= len(rules.said) - 1
        st.button("Undo", key="undo", shortcut="Ctrl+Z", on_click=_move, args=(-1,), disabled=back)
        st.button("Redo", key="redo", shortcut="Ctrl+Shift+Z", on_click=_move, args=(1,), disabled=forth)


def _move(step: int) -> None:
    put(_rules().move(step))


def _rules() -> Rules:
    return st.session_state.setdefault(_KEY, Rules())
