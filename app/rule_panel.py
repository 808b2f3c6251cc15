"""The rule in the sidebar: thresholds or an expression, and where it is saved to."""

import shlex
from collections.abc import Callable
from dataclasses import replace

import streamlit as st
from components.completion import complete
from heard import put, take_wanted, want
from loading import load_limits, load_outcome, load_preview, preview_key
from undo import undo_buttons
from widgets import choice

from tokenstats.errors import RuleError, TokenstatsError
from tokenstats.inspect.completions import completions
from tokenstats.inspect.preview import Preview, save_mask, threshold_rule
from tokenstats.inspect.render.html_tokens import as_markdown
from tokenstats.masking.rule import PROTECT, Rule, preset_names
from tokenstats.store import Store

OFF = float("inf")
SCOPES = {"share of each sequence": "sequence", "share of the dataset": "dataset", "nats": "nats"}
_FIRST_EXPRESSION = "random(0.2, per=sequence)"


def choose_rule(store: Store, scoring: str | None, has_kl: bool) -> tuple[Rule | None, bool]:
    """The rule of the knobs or of the text field, and whether it is what is written there.

    A rule with an error says so beside its field; the last good one stays in view. None: nothing is dropped yet.
    """
    try:
        with st.sidebar:
            rule = _written(store, scoring, has_kl)
            undo_buttons(store, scoring)
            if rule is not None:
                load_outcome(load_preview(store, scoring, rule), rule)  # raises where the rule reads what is not there
    except RuleError as error:
        st.sidebar.error(as_markdown(str(error)))
        return st.session_state.get("last_good_rule"), False
    st.session_state["last_good_rule"] = rule
    return rule, True


def _written(store: Store, scoring: str | None, has_kl: bool) -> Rule | None:
    way = "Expression"
    if scoring is not None:
        way = choice("Rule", ["Thresholds", "Expression"], "way", hidden=True)
    rule = _expression_field(store, scoring) if way == "Expression" else _knobs(store, scoring, has_kl)
    protect = st.text_input(
        "Never drop", PROTECT, key="protect", help="tokens that no rule may drop; empty for none", bind="query-params"
    )
    return None if rule is None else replace(rule, protect=protect)


def _knobs(store: Store, scoring: str | None, has_kl: bool) -> Rule | None:
    scope = st.selectbox("Cut by", list(SCOPES), key="cut_by", bind="query-params")
    as_share = SCOPES[scope] != "nats"
    preview = load_preview(store, scoring, None)
    entropy = _threshold("entropy", "Highest entropy", as_share, preview)
    kl = _threshold("kl", "Highest KL", as_share, preview) if has_kl else 0.0
    both = False
    if has_kl:
        both = choice("Drop where", ["either", "both"], "combine") == "both"
    rule = threshold_rule(entropy, kl, as_share=as_share, per=SCOPES[scope], both=both)
    if rule is not None:
        st.code(rule.drop, language="python", wrap_lines=True)
        st.session_state["knobs"] = rule.drop
    return rule


def _threshold(column: str, label: str, as_share: bool, preview: Preview) -> float:
    """The share to drop, or the nats above which tokens are dropped; 0 where it is off."""
    if as_share:
        name, hint = f"{label}, share dropped", "0 turns it off"
        return st.slider(name, 0, 99, 20, format="%d %%", key=f"{column}_share", help=hint, bind="query-params") / 100
    limits, start = load_limits(preview_key(preview.store, preview.scoring, None), column, preview)
    names = {limit: f"{limit:g} nats" for limit in limits} | {OFF: "off"}
    chosen = st.select_slider(
        f"{label}: drop above", [*limits, OFF], start, names.__getitem__, key=f"{column}_nats", bind="query-params"
    )
    return 0.0 if chosen == OFF else float(chosen)


def _expression_field(store: Store, scoring: str | None) -> Rule:
    def fill() -> None:
        if name := st.session_state["preset"]:
            put(as_written(Rule.from_preset(name)))

    dropping = [name for name in preset_names() if Rule.from_preset(name).expression is not None]  # the others only weigh
    st.selectbox("Start from a preset", dropping, index=None, key="preset", on_change=fill, placeholder="choose one")
    first = st.session_state.get("knobs", _FIRST_EXPRESSION)  # nothing was written yet: writing begins with what the knobs say
    written = st.text_area(
        "Drop", first, key="expression", height=110, help="such as entropy > 2 and not is_special", bind="query-params"
    )
    complete("Drop", completions(store, scoring))
    return Rule(drop=written)


def as_written(rule: Rule) -> dict[str, str]:
    """What the fields of an expression say for a rule."""
    return {"expression": rule.drop or f"not ({rule.keep})", "protect": rule.protect}


def offer_to_save(store: Store, scoring: str | None, rule: Rule, is_written: bool, deliver: Callable[[str, str], None]) -> None:
    """Buttons that store the rule as a mask, or hand it over as a file: the rule that is on the screen when they are pressed.

    A press may overtake a change made just before it. So it only notes what is wanted; when the browser has told of every
    change, the page does it with the rule that it then shows.
    """
    with st.sidebar:
        st.divider()
        name = st.text_input("Save as mask", key="mask_name", placeholder="name", persist_state="session").strip()
        again = st.checkbox("replace a mask of this name", key="replace_mask")
        left, right = st.columns(2)
        left.button("Save mask", key="save", on_click=want, args=("mask",), type="primary", disabled=not is_written)
        right.button("Rule file", key="download", on_click=want, args=("file",), disabled=not is_written)
    _say_saved()
    what = take_wanted()
    if not what:
        return
    if not is_written:
        st.error("Nothing was saved: the rule on the screen has an error.")
    elif what == "file":
        deliver(f"{name or 'rule'}.toml", rule.to_toml())
    else:
        _save(store, scoring, rule, name, again)


def _save(store: Store, scoring: str | None, rule: Rule, name: str, again: bool) -> None:
    try:
        mask, path = save_mask(store, rule, name, scoring=scoring, replace_old=again)
    except TokenstatsError as error:
        st.error(as_markdown(str(error)))
        return
    manifest = mask.manifest
    share = 1 - manifest.kept / max(1, manifest.targets)
    said = f"Mask {name} drops {share:.2%} of {manifest.targets:,} targets. Its rule is in {path}."
    st.session_state["saved"] = said, f"tokenstats train {shlex.quote(str(store.path))} --mask {name} --model MODEL --out DIR"
    st.rerun()  # so that the list of masks has it


def _say_saved() -> None:
    if "saved" in st.session_state:
        said, command = st.session_state.pop("saved")
        st.success(as_markdown(said))
        st.code(command, language="bash")
