"""The app: turn a rule's knobs and see at once which tokens would be learned.

    streamlit run app/home.py -- STORE      # a store, or a folder with stores below it

Widgets only: what they show is computed in tokenstats.inspect and tokenstats.masking.
"""

import sys
from dataclasses import replace
from html import escape
from pathlib import Path

import streamlit as st

from tokenstats.errors import TokenstatsError
from tokenstats.inspect.audit.audit import Audit, audit
from tokenstats.inspect.preview import MOST_TOKENS, Outcome, Preview, open_preview, save_mask, threshold_rule
from tokenstats.inspect.render import audit_blocks, figures
from tokenstats.inspect.render.blocks import Shares
from tokenstats.inspect.render.html import blocks_html, style
from tokenstats.inspect.render.html_tokens import HEAT, as_markdown, token_view
from tokenstats.inspect.render.store_blocks import store_facts
from tokenstats.inspect.threshold_lines import cuts
from tokenstats.inspect.tokens.sequence import read_sequence
from tokenstats.masking.rule import PROTECT, Rule, preset_names
from tokenstats.store import Store
from tokenstats.store.find_stores import find_stores

NEW = "a new rule"
PLAIN = "plain SFT"
OFF = float("inf")
SCOPES = {"share of each sequence": "sequence", "share of the dataset": "dataset", "nats": "nats"}
PICTURES = ("histograms", "entropy against KL", "place in the reply")
# where widgets begin; what is chosen stays while they are off the screen: on another page, or after a wrong rule
STARTS = {
    "way": "Thresholds",
    "cut_by": next(iter(SCOPES)),
    "entropy_share": 20,
    "kl_share": 20,
    "combine": "either",
    "expression": "random(0.2, per=sequence)",
    "protect": PROTECT,
    "mask_name": "",
    "row": 0,
    "colour_by": "clause",
    "picture": PICTURES[0],
}


def main() -> None:
    st.set_page_config(page_title="tokenstats", layout="wide", initial_sidebar_state="expanded")
    st.html(f"<style>{Path(__file__).with_name('style.css').read_text(encoding='utf-8')}{style()}</style>")
    for key, start in STARTS.items():
        st.session_state[key] = st.session_state.get(key, start)
    try:
        store = choose_store()
        scoring = scoring_box(store)
        pages = {"Tokens": tokens_page, "Overview": overview_page}
        chosen = st.sidebar.segmented_control("Page", list(pages), default="Tokens", key="page", label_visibility="collapsed")
        pages[chosen or "Tokens"](store, scoring)
    except TokenstatsError as error:
        st.error(as_markdown(str(error)))


def choose_store() -> Store:
    st.sidebar.html('<div class="ts-app-title">tokenstats</div>')
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    text = st.sidebar.text_input("Store", value=given, key="store", placeholder="folder of a store, or of several").strip()
    if not text:
        st.info("Give the folder of a store on the left: one made by `tokenstats compute`, or a folder with several below it.")
        st.stop()
    folder = Path(text).expanduser()
    found = find_stores(folder)
    if found and found != [folder]:
        names = {str(path.relative_to(folder)): path for path in found}
        folder = names[st.sidebar.selectbox(f"{len(found)} stores there", list(names), key="which_store")]
    store = Store(folder)
    for families in (store.scorings, store.masks):
        families.check_all_listed()  # else one that lost its manifest would be left out of the lists without a word
    return store


def scoring_box(store: Store) -> str | None:
    names = list(store.scorings)
    if not names:
        st.sidebar.caption("No scoring yet: rules can only read positions, roles and token ids.")
        return None
    return st.sidebar.selectbox("Scoring", names, key="scoring") if len(names) > 1 else names[0]


def tokens_page(store: Store, scoring: str | None) -> None:
    shown = st.sidebar.selectbox("Decisions of", [NEW, *store.masks, PLAIN], key="decisions")
    if shown == NEW:
        rule = choose_rule(store, scoring)
        preview = load_preview(store, scoring, rule)
        outcome = load_outcome(preview, rule)
        offer_to_save(store, scoring, rule)
        show_outcome(preview, outcome)
        show_tokens(store, preview, outcome, None)
        show_pictures(preview, outcome)
    else:
        mask = None if shown == PLAIN else shown
        preview = load_preview(store, scoring, None)
        found = load_audit(store, mask, scoring)
        show_numbers(audit_blocks.audit_numbers(found))
        show_tokens(store, preview, None, mask)
        if mask is not None:
            st.html(blocks_html(Shares("clause", found.by_clause, numbered=True)))


def choose_rule(store: Store, scoring: str | None) -> Rule:
    """The rule of the knobs or of the text field; stops the page with a hint where there is none."""
    has_kl = scoring is not None and store.scorings[scoring].manifest.reference is not None
    with st.sidebar:
        way = "Expression"
        if scoring is not None:
            way = st.segmented_control("Rule", ["Thresholds", "Expression"], key="way", label_visibility="collapsed")
        rule = expression_field() if way == "Expression" else threshold_knobs(store, scoring, has_kl)
        protect = st.text_input("Never drop", key="protect", help="tokens that no rule may drop; empty for none")
    if rule is None:
        st.info("Both thresholds are off: every target is learned. Move one to see what it drops.")
        st.stop()
    return replace(rule, protect=protect)


def threshold_knobs(store: Store, scoring: str | None, has_kl: bool) -> Rule | None:
    scope = st.selectbox("Cut by", list(SCOPES), key="cut_by")
    as_share = SCOPES[scope] != "nats"
    preview = load_preview(store, scoring, None)
    entropy = threshold_slider("entropy", "Highest entropy", as_share, preview)
    kl = threshold_slider("kl", "Highest KL", as_share, preview) if has_kl else 0.0
    both = has_kl and st.segmented_control("Drop where", ["either", "both"], key="combine") == "both"
    rule = threshold_rule(entropy, kl, as_share=as_share, per=SCOPES[scope], both=both)
    if rule is not None:
        st.code(rule.drop, language="python", wrap_lines=True)
        if st.session_state["expression"] == st.session_state.get("knobs", STARTS["expression"]):
            st.session_state["expression"] = rule.drop  # nothing was written yet: writing begins with what the knobs say
        st.session_state["knobs"] = rule.drop
    return rule


def threshold_slider(column: str, label: str, as_share: bool, preview: Preview) -> float:
    """The share to drop, or the nats above which tokens are dropped; 0 where it is off."""
    if as_share:
        hint = "0 turns it off"
        return st.slider(f"{label}, share dropped", 0, 99, format="%d %%", key=f"{column}_share", help=hint) / 100
    limits = [*preview.limits(column), OFF]
    start = min(limits[:-1], key=lambda x: abs(x - preview.largest(column, 0.8)), default=OFF)
    names = {limit: "off" if limit == OFF else f"{limit:g} nats" for limit in limits}
    chosen = st.select_slider(f"{label}: drop above", limits, start, names.__getitem__, key=f"{column}_nats")
    return 0.0 if chosen == OFF else float(chosen)


def expression_field() -> Rule:
    def fill() -> None:
        if name := st.session_state["preset"]:
            chosen = Rule.from_preset(name)
            st.session_state["expression"] = chosen.drop or f"not ({chosen.keep})"
            st.session_state["protect"] = chosen.protect

    dropping = [name for name in preset_names() if Rule.from_preset(name).expression is not None]  # the others only weigh
    st.selectbox("Start from a preset", dropping, index=None, key="preset", on_change=fill, placeholder="choose one")
    return Rule(drop=st.text_area("Drop", key="expression", height=110, help="such as entropy > 2 and not is_special"))


def offer_to_save(store: Store, scoring: str | None, rule: Rule) -> None:
    def save() -> None:
        try:
            name, again = st.session_state["mask_name"].strip(), st.session_state["replace_mask"]
            mask, path = save_mask(store, rule, name, scoring=scoring, replace_old=again)
            manifest = mask.manifest
            share = 1 - manifest.kept / max(1, manifest.targets)
            text = f"Mask {name} drops {share:.2%} of {manifest.targets:,} targets. Its rule is in {path}."
            st.session_state["saved"] = as_markdown(text)
        except TokenstatsError as error:
            st.session_state["save_error"] = as_markdown(str(error))

    with st.sidebar:
        st.divider()
        st.text_input("Save as mask", key="mask_name", placeholder="name")
        st.checkbox("replace a mask of this name", key="replace_mask")
        left, right = st.columns(2)
        left.button("Save mask", key="save", on_click=save, type="primary")
        right.download_button("Rule file", rule.to_toml(), file_name="rule.toml", mime="application/toml", key="download")
    if message := st.session_state.pop("saved", None):
        st.success(message)
    if message := st.session_state.pop("save_error", None):
        st.error(message)


def show_outcome(preview: Preview, outcome: Outcome) -> None:
    show_numbers(audit_blocks.outcome_numbers(outcome))
    if preview.is_sample:
        st.warning(
            f"A sample: {preview.tokens:,} of the store's {preview.store.manifest.tokens:,} tokens, as at most {MOST_TOKENS:,} "
            "are held in memory. Shares and thresholds are the sample's; a saved mask is computed from all tokens."
        )
    else:
        st.caption(f"All {outcome.counts.targets:,} targets of the store: saving this rule gives exactly these numbers.")


def show_numbers(numbers: list[tuple[str, str]]) -> None:
    for column, (label, value) in zip(st.columns(len(numbers)), numbers, strict=True):
        column.metric(label, value)


def show_tokens(store: Store, preview: Preview, outcome: Outcome | None, mask: str | None) -> None:
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    last = store.manifest.sequences - 1
    st.session_state["row"] = min(st.session_state["row"], last)  # another store may be shorter
    number = int(left.number_input(f"Row, 0 to {last:,}", 0, last, key="row"))
    there = [key for key in HEAT if preview.scoring is not None and (key != "kl" or (None, "kl") in preview.columns)]
    names = {"clause": None, **{HEAT[key]: key for key in there}}
    if st.session_state["colour_by"] not in names:
        st.session_state["colour_by"] = "clause"
    colour_by = names[right.segmented_control("Colour by", list(names), key="colour_by") or "clause"]
    if outcome is not None:
        view = preview.view(outcome, number)
    else:
        view = read_sequence(store, number, mask=mask, scoring=preview.scoring)
    scale = (preview.largest(colour_by, 0.95) or None) if colour_by is not None else None
    st.html(token_view(view, colour_by=colour_by, scale=scale))


def show_pictures(preview: Preview, outcome: Outcome) -> None:
    if not preview.scoring:
        return
    chosen = st.segmented_control("Picture", PICTURES, key="picture", label_visibility="collapsed")
    if chosen == PICTURES[1] and (None, "kl") not in preview.columns:
        st.info("This scoring has no reference, so there is no KL.")
        return
    key, chosen = preview_key(preview.store, preview.scoring, outcome.rule), chosen or PICTURES[0]
    source = picture(key, outcome.rule.fingerprint, chosen, preview, outcome)
    st.html(f'<img class="ts-picture" alt="{escape(chosen)}" src="{source}">')


@st.cache_data(max_entries=32, show_spinner=False)
def picture(key: tuple[str, ...], fingerprint: str, chosen: str, _preview: Preview, _outcome: Outcome) -> str:
    found = _preview.distributions(_outcome)
    if chosen == PICTURES[1]:
        return figures.data_uri(figures.joint_figure(found, "rule"))
    if chosen == PICTURES[2]:
        return figures.data_uri(figures.position_figure(found, ["rule"]))
    return figures.data_uri(
        figures.distribution_figure(found, "rule", cuts(_outcome.rule, _outcome.thresholds, _preview.scoring))
    )


def overview_page(store: Store, scoring: str | None) -> None:
    mask = st.sidebar.selectbox("Mask", [PLAIN, *store.masks], key="audited")
    found = load_audit(store, None if mask == PLAIN else mask, scoring)
    show_numbers(audit_blocks.audit_numbers(found))
    st.html(blocks_html(store_facts(store.manifest, store.scorings[scoring] if scoring is not None else None)))
    st.html(blocks_html(audit_blocks.findings_table([(f.name.replace("_", " "), f) for f in found.findings])))
    if found.mask is not None:
        left, right = st.columns(2)
        left.html(blocks_html(Shares("clause", found.by_clause, numbered=True)))
        left.html(blocks_html(Shares("tenth of the reply", found.by_position)))
        left.html(blocks_html(Shares("class of token", found.by_class)))
        if found.means:
            right.html(blocks_html(audit_blocks.means_table(found)))
        right.html(blocks_html(audit_blocks.dropped_shares(found)))
        with st.expander("The rule"):
            st.code(Rule.from_dict(store.masks[found.mask].manifest.rule).to_toml(), language="toml")


def load_preview(store: Store, scoring: str | None, rule: Rule | None) -> Preview:
    """One preview per store, scoring and set of columns: sliders do not read the disk."""
    return _preview(preview_key(store, scoring, rule), scoring, store, rule)


def preview_key(store: Store, scoring: str | None, rule: Rule | None) -> tuple[str, ...]:
    """All that a preview depends on: what was read, by fingerprint, and the columns."""
    columns = rule.columns if rule is not None else frozenset()
    names = sorted({name for name, _ in columns if name is not None} | ({scoring} if scoring else set()))
    read = [f"{name} {store.scorings[name].manifest.fingerprint}" for name in names if name in store.scorings]
    return str(store.path.resolve()), store.fingerprint, *read, *sorted(map(str, columns))


@st.cache_resource(max_entries=4, show_spinner="reading tokens")
def _preview(key: tuple[str, ...], scoring: str | None, _store: Store, _rule: Rule | None) -> Preview:
    return open_preview(_store, scoring, _rule.columns if _rule is not None else ())


def load_outcome(preview: Preview, rule: Rule) -> Outcome:
    return _outcome(preview_key(preview.store, preview.scoring, rule), rule.fingerprint, preview, rule)


@st.cache_resource(max_entries=16, show_spinner=False)
def _outcome(key: tuple[str, ...], fingerprint: str, _preview: Preview, _rule: Rule) -> Outcome:
    return _preview.decide(_rule)


def load_audit(store: Store, mask: str | None, scoring: str | None) -> Audit:
    read = [f"{name} {store.scorings[name].manifest.fingerprint}" for name in store.scorings]
    read += [f"{name} {store.masks[name].manifest.fingerprint}" for name in store.masks]
    return _audit((str(store.path.resolve()), store.fingerprint, *read), mask, scoring, store)


@st.cache_resource(max_entries=16, show_spinner="counting tokens")
def _audit(key: tuple[str, ...], mask: str | None, scoring: str | None, _store: Store) -> Audit:
    return audit(_store, mask, scoring)


main()
