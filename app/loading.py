"""What the pages read, each thing once: kept under the fingerprints of all that it depends on, and shared by all readers."""

from dataclasses import replace

import numpy as np
import streamlit as st
from long_work import once
from sides import Side

from tokenstats.inspect.audit.audit import Audit, audit
from tokenstats.inspect.preview import Outcome, Preview, open_preview
from tokenstats.inspect.render import figures
from tokenstats.inspect.rows.decided import DecidedStore, read_decided
from tokenstats.inspect.rows.joint import Joint, cells_of, joint
from tokenstats.inspect.rows.search import TokenIndex, token_index
from tokenstats.inspect.rows.table import RowTable, row_table
from tokenstats.inspect.threshold_lines import cuts
from tokenstats.inspect.tokens.payload import row_payload
from tokenstats.inspect.tokens.sequence import read_sequence
from tokenstats.masking.compare import Comparison, compare
from tokenstats.masking.operands import Operand, open_operand
from tokenstats.masking.rule import Rule
from tokenstats.store import Store

HISTOGRAMS, JOINT, ALONG_REPLY = "histograms", "entropy against KL", "place in the reply"

Key = tuple[str, ...]


def store_key(store: Store, *scorings: str | None) -> Key:
    """A store and some of its scorings, as they are now."""
    named = [f"{name} {store.scorings[name].manifest.fingerprint}" for name in scorings if name in store.scorings]
    return str(store.path.resolve()), store.fingerprint, *named


def mask_key(store: Store, mask: str | None) -> str:
    """A mask as it is now; plain SFT for None."""
    return "plain SFT" if mask is None else f"{mask} {store.masks[mask].manifest.fingerprint}"


def preview_key(store: Store, scoring: str | None, rule: Rule | None) -> Key:
    """All that a preview depends on: what was read, by fingerprint, and the columns."""
    columns = rule.columns if rule is not None else frozenset()
    names = sorted({name for name, _ in columns if name is not None} | ({scoring} if scoring else set()))
    return *store_key(store, *names), str(scoring), *sorted(map(str, columns))


def load_preview(store: Store, scoring: str | None, rule: Rule | None) -> Preview:
    """One preview per store, scoring and set of columns: sliders do not read the disk."""
    return _preview(preview_key(store, scoring, rule), scoring, store, rule)


@st.cache_resource(max_entries=4, show_spinner="reading tokens")
def _preview(key: Key, scoring: str | None, _store: Store, _rule: Rule | None) -> Preview:
    return open_preview(_store, scoring, _rule.columns if _rule is not None else ())


def load_outcome(preview: Preview, rule: Rule) -> Outcome:
    """What a rule does to a preview's tokens."""
    return _outcome(preview_key(preview.store, preview.scoring, rule), rule.fingerprint, preview, rule)


@st.cache_resource(max_entries=6, show_spinner=False)
def _outcome(key: Key, fingerprint: str, _preview: Preview, _rule: Rule) -> Outcome:
    return _preview.decide(_rule)


@st.cache_data(max_entries=16, show_spinner=False)
def load_limits(key: Key, column: str, _preview: Preview) -> tuple[list[float], float]:
    """Thresholds (nats) worth trying, and the one to begin with: what drops a fifth."""
    limits = _preview.limits(column)
    fifth = _preview.largest(column, 0.8)
    return limits, min(limits, key=lambda limit: abs(limit - fifth), default=float("inf"))


@st.cache_data(max_entries=16, show_spinner=False)
def load_scales(key: Key, _preview: Preview) -> dict[str, float]:
    """The darkest shade of each statistic, in nats: 95 % of the targets lie below."""
    there = {name for prefix, name in _preview.columns if prefix is None}
    return {c: _preview.largest(c, 0.95) for c in ("entropy", "kl") if c in there} | (
        {"nll": _preview.largest("nll", 0.95)} if "logprob" in there else {}
    )


@st.cache_data(max_entries=64, show_spinner=False)
def load_row(key: Key, number: int, scoring: str | None, _store: Store) -> dict:
    """A row's tokens and statistics as the token view takes them."""
    return row_payload(read_sequence(_store, number, scoring=scoring))


def load_table(store: Store, scoring: str | None) -> RowTable:
    """Every row in numbers."""
    key = ("table", scoring, store_key(store, scoring))
    return once(key, "reading every row", store, lambda watched: row_table(watched, scoring))


def load_index(store: Store) -> TokenIndex:
    """The ids of all targets, ready to be searched."""
    return once(("index", store_key(store)), "reading every token", store, token_index)


def side_key(store: Store, what: str | Rule) -> str:
    """A mask as it is now, or a rule."""
    return what.fingerprint if isinstance(what, Rule) else mask_key(store, what)


def load_operand(store: Store, what: str | Rule, scoring: str | None) -> Operand:
    """A mask of the store, or a rule with its thresholds over the whole store.

    Args:
        store: The store.
        what: A mask's name, or a rule.
        scoring: The statistics to decide by, for the rule of a mask too; None: masks as they are stored.
    """
    key = ("operand", scoring, side_key(store, what), store_key(store, *store.scorings))
    # it reads of the store later, too, when nobody waits for this
    return once(
        key, "working out thresholds", store, lambda watched: replace(open_operand(watched, what, scoring), store=store)
    )


def load_decided(store: Store, what: str | Rule | None, scoring: str | None) -> DecidedStore:
    """What a rule or mask decides about the whole store; None is plain SFT."""
    named = side_key(store, what) if what is not None else "plain SFT"
    key = ("decided", scoring, named, store_key(store, *store.scorings))
    operand = None if what is None else load_operand(store, what, scoring)
    return once(key, "deciding about every row", store, lambda watched: read_decided(watched, operand))


def load_comparison(store: Store, a: Side, b: Side) -> Comparison:
    """Two sides held against each other over the whole store."""
    sides = tuple((side_key(store, side.what), side.scoring) for side in (a, b))
    one, two = (load_operand(store, side.what, side.scoring) for side in (a, b))
    key = ("comparison", sides, store_key(store, *store.scorings))
    return once(key, "comparing", store, lambda watched: compare(watched, one, two))


def load_audit(store: Store, mask: str | None, scoring: str | None) -> Audit:
    """The audit of a mask; it reads the whole store."""
    key = ("audit", scoring, mask_key(store, mask), store_key(store, *store.scorings))
    return once(key, "counting every token", store, lambda watched: audit(watched, mask, scoring))


def load_joint(preview: Preview, outcome: Outcome) -> Joint:
    """Entropy against KL under a rule."""
    return joint(preview, outcome, _cells(preview_key(preview.store, preview.scoring, None), preview))


@st.cache_resource(max_entries=4, show_spinner=False)
def _cells(key: Key, _preview: Preview) -> tuple[np.ndarray, ...]:
    return cells_of(_preview)


def load_picture(preview: Preview, outcome: Outcome, chosen: str) -> str:
    """A figure of what a rule does, as the address of an image."""
    key = preview_key(preview.store, preview.scoring, outcome.rule)
    return _picture(key, outcome.rule.fingerprint, chosen, preview, outcome)


@st.cache_data(max_entries=32, show_spinner=False)
def _picture(key: Key, fingerprint: str, chosen: str, _preview: Preview, _outcome: Outcome) -> str:
    found = _preview.distributions(_outcome)
    if chosen == ALONG_REPLY:
        return figures.data_uri(figures.position_figure(found, ["rule"]))
    lines = cuts(_outcome.rule, _outcome.thresholds, _preview.scoring)
    return figures.data_uri(figures.distribution_figure(found, "rule", lines))
