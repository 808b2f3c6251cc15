"""What can be compared: a stored mask, or a rule that is decided part by part without being stored."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from tokenstats.errors import InputError, nearest, one_line
from tokenstats.masking.engine.aggregates import Aggregates
from tokenstats.masking.engine.decisions import Decisions, decide, stored_decisions
from tokenstats.masking.engine.part_reader import OnDisk, worker_count
from tokenstats.masking.engine.resolve import resolve_rules
from tokenstats.masking.engine.targets import Targets, physical_columns, resolve_scorings
from tokenstats.masking.language.unparse import Column
from tokenstats.masking.rule import Rule, preset_names
from tokenstats.store import Store


class Kind(StrEnum):
    """What was found under the name of an operand."""

    MASK = "mask"
    RULE_OF_MASK = "rule of the mask"
    PRESET = "preset"
    FILE = "file"
    RULE = "rule"


@dataclass(frozen=True)
class Operand:
    """One of two things compared.

    Attributes:
        store: The store whose tokens are decided about.
        name: As it was asked for.
        kind: What was found under that name.
        rule: The rule, of a mask the one that it was made with.
        reasons: The text behind each bit of ``reason``.
        scorings: The scorings that it reads.
        meaning: Which scoring each prefix of the rule means; empty for a stored mask.
        aggregates: Of the rule's dataset-wide selections; empty for a stored mask.
    """

    store: Store
    name: str
    kind: Kind
    rule: Rule
    reasons: tuple[str, ...]
    scorings: tuple[str, ...]
    meaning: Mapping[str | None, str]
    aggregates: Aggregates

    @property
    def columns(self) -> set[Column]:
        """The statistics that :meth:`decide` needs, each with the name of its scoring."""
        if self.kind is Kind.MASK:
            return set()
        return {(self.meaning[prefix], name) for prefix, name in physical_columns(self.rule.columns)}

    @property
    def weighs(self) -> bool:
        """Does it say what a token counts for, beyond whether it is learned?"""
        return self.rule.weighting is not None

    def decide(self, targets: Targets) -> Decisions:
        """Decide about a part's targets, which hold :attr:`columns`."""
        if self.kind is Kind.MASK:
            return stored_decisions(self.store, self.name, targets, weights=True)
        return replace(decide(self.rule, self.as_the_rule_reads(targets), self.aggregates), targets=targets)

    def as_the_rule_reads(self, targets: Targets) -> Targets:
        """The same targets with their statistics under the names that the rule has for them."""
        columns = physical_columns(self.rule.columns)
        own = {(prefix, name): targets.statistics[self.meaning[prefix], name] for prefix, name in columns}
        return replace(targets, statistics=own)


def open_operand(store: Store, what: str | Rule | Mapping[str, Any], scoring: str | None) -> Operand:
    """Find out what is meant: a mask of the store, else a preset, else a ``.toml`` file, and resolve its thresholds.

    Args:
        store: The store.
        what: A name, or a rule.
        scoring: Decide by these statistics, for the rule of a mask too, anew; None: the store's only scoring, and masks as they
            are stored.

    Raises:
        InputError: The name is nothing, or the rule has a budget. What building the mask would raise.
    """
    if scoring is not None:
        store.scorings[scoring]  # raises where it is not there
    if isinstance(what, Mapping):
        what = Rule.from_dict(what)
    if isinstance(what, Rule):
        return _of_rule(store, "rule", Kind.RULE, what, scoring)
    if what not in store.masks:
        store.masks.check_all_listed()  # else a preset would stand in for a mask of its name that lost its manifest
    if what in store.masks:
        manifest = store.masks[what].manifest
        rule = Rule.from_dict(manifest.rule)
        if scoring is not None and rule.needs_scoring:
            return _of_rule(store, what, Kind.RULE_OF_MASK, rule, scoring)
        reasons = tuple(c.text for c in manifest.clauses)
        return Operand(store, what, Kind.MASK, rule, reasons, tuple(manifest.scorings_read), {}, {})
    if what.endswith(".toml") or "/" in what:
        return _of_rule(store, what, Kind.FILE, Rule.load(what), scoring)
    if what in preset_names():
        return _of_rule(store, what, Kind.PRESET, Rule.from_preset(what), scoring)
    masks, presets = list(store.masks), preset_names()
    raise InputError(
        f"no mask and no preset {one_line(what, 60)!r}{nearest(what, masks + presets)}; expected a mask of the store "
        f"({', '.join(masks) or 'it has none'}), a preset ({', '.join(presets)}) or a .toml file"
    )


def _of_rule(store: Store, name: str, kind: Kind, rule: Rule, scoring: str | None) -> Operand:
    if rule.budget_mask is not None:
        raise InputError(
            f"{name} follows mask {rule.budget_mask!r} with its budget: it cannot be compared before it is built; "
            "build it with 'tokenstats mask', then compare the mask"
        )
    meaning = resolve_scorings(store, rule.columns, scoring)
    aggregates = resolve_rules([rule], OnDisk(store, meaning, worker_count(None), f"rule {name}"))
    return Operand(store, name, kind, rule, tuple(rule.reasons), tuple(sorted(set(meaning.values()))), meaning, aggregates)
