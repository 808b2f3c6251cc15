"""Histograms whose thresholds are dragged: the token view follows while one is held, the rule when it is let go."""

from collections.abc import Mapping, Sequence

import streamlit as st
from bin_list import list_bin
from components.token_view import view_component
from heard import put
from loading import Key, load_limits, preview_key
from rule_panel import OFF, SCOPES

from tokenstats.inspect.preview import Outcome, Preview
from tokenstats.inspect.steering import SHARES, Steering, steering, steering_payload

_KEY = "tokens-steer"


def steering_view(preview: Preview, outcome: Outcome, has_kl: bool) -> Steering:
    """Draw the histograms of the rule in the sidebar, which is one of thresholds; what they steer with."""
    scope = SCOPES[st.session_state["cut_by"]]
    columns = ["entropy", "kl"] if has_kl else ["entropy"]
    key = preview_key(preview.store, preview.scoring, None)
    limits = {c: load_limits(key, c, preview)[0] for c in columns} if scope == "nats" else None
    settings = {c: _settings(None if limits is None else limits[c]) for c in columns}
    found = _steering((*key, scope, outcome.rule.protect), preview, outcome, scope, limits)
    data = {
        "slot": "tokens",
        "steering": steering_payload(found, settings, "nats" if scope == "nats" else "share"),
        "chosen": [_chosen(column, scope, settings[column]) for column in columns],
        "both": has_kl and st.session_state.get("combine") == "both",
    }
    said = view_component()(
        key=_KEY, data=data, on_released_change=lambda: _released(columns, scope, settings), on_bin_change=lambda: None
    )
    if said.get("bin"):
        column, number = said["bin"]
        list_bin(preview, outcome, {column: range(number, number + 1)}, "bin_hits")
    return found


@st.cache_resource(max_entries=4, show_spinner="working out every threshold")
def _steering(
    key: Key, _preview: Preview, _outcome: Outcome, scope: str, _limits: Mapping[str, Sequence[float]] | None
) -> Steering:
    return steering(_preview, _outcome.decisions, scope, _limits)


def _settings(limits: Sequence[float] | None) -> list[float]:
    """What each setting means: shares rising, or nats falling from "off"."""
    return list(SHARES) if limits is None else [OFF, *reversed(limits)]


def _chosen(column: str, scope: str, settings: Sequence[float]) -> int:
    if scope != "nats":
        return int(st.session_state.get(f"{column}_share", 20))
    return settings.index(st.session_state[f"{column}_nats"])


def _released(columns: Sequence[str], scope: str, settings: Mapping[str, Sequence[float]]) -> None:
    """The thresholds that were let go become the rule's: the sidebar has the same."""
    for column, setting in zip(columns, st.session_state[_KEY]["released"]["chosen"], strict=True):
        put({f"{column}_nats": settings[column][setting]} if scope == "nats" else {f"{column}_share": int(setting)})
