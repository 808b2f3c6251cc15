"""What can be held against something else: the rule that is tried, a stored mask, plain SFT, a preset."""

from dataclasses import dataclass

import streamlit as st

from tokenstats.masking.rule import Rule, preset_names
from tokenstats.store import Store

PLAIN, TRIED = "plain SFT", "the new rule"
AS_STORED = "as stored"
_PRESET = "preset "
_DROPS_NOTHING = Rule(drop="position < 0", protect="")


@dataclass(frozen=True)
class Side:
    """One of two.

    Attributes:
        name: On the page.
        what: A mask's name, or a rule.
        scoring: The statistics to decide by; None for a mask as it is stored.
    """

    name: str
    what: str | Rule
    scoring: str | None

    @property
    def title(self) -> str:
        """The name, with the statistics where they are not those of a stored mask."""
        return f"{self.name} by {self.scoring}" if self.scoring is not None else self.name


def side_names(store: Store) -> list[str]:
    """What there is; the rule that is tried comes first, where there is one."""
    tried = [TRIED] if st.session_state.get("last_good_rule") is not None else []
    return [*tried, *store.masks, PLAIN, *preset_sides()]


def preset_sides() -> list[str]:
    """The presets that drop something; the others only weigh."""
    return [f"{_PRESET}{name}" for name in preset_names() if Rule.from_preset(name).expression is not None]


def side_of(name: str, scoring: str | None) -> Side:
    """What a name on the page means; ``scoring``: of a rule, and of a mask that is decided anew."""
    if name == PLAIN:
        return Side(name, _DROPS_NOTHING, None)
    if name == TRIED:
        what: str | Rule = st.session_state["last_good_rule"]
    else:
        what = Rule.from_preset(name.removeprefix(_PRESET)) if name.startswith(_PRESET) else name
    if isinstance(what, Rule) and not what.needs_scoring:
        return Side(name, what, None)
    return Side(name, what, scoring)
