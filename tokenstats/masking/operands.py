"""What can be compared: a stored mask, or a rule that is judged part by part without being stored."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tokenstats.errors import InputError, nearest, one_line
from tokenstats.masking.engine.aggregates import resolve_thresholds
from tokenstats.masking.engine.decisions import decide
from tokenstats.masking.engine.part_reader import OnDisk, worker_count
from tokenstats.masking.engine.resolved import Resolved
from tokenstats.masking.engine.targets import Targets, physical_columns, resolve_scorings
from tokenstats.masking.language.unparse import Column
from tokenstats.masking.rule import Rule, preset_names
from tokenstats.store import Store

MASK, RULE_OF_MASK, PRESET, FILE, RULE = "mask", "rule of the mask", "preset", "file", "rule"


@dataclass(frozen=True)
class Operand:
    """One of two things compared.

    name:     as it was asked for; kind: what was found under that name, one of the words above
    reasons:  the text behind each bit of ``reason``
    scorings: the scorings that it read
    """

    store: Store
    name: str
    kind: str
    rule: Rule
    reasons: tuple[str, ...]
    scorings: tuple[str, ...]
    _meaning: Mapping[str | None, str]  # which scoring each prefix of the rule means; empty for a stored mask
    _resolved: Mapping[str, Resolved]

    @property
    def columns(self) -> set[Column]:
        """The statistics that :meth:`decide` needs, each with the name of its scoring."""
        if self.kind == MASK:
            return set()
        return {(self._meaning[prefix], name) for prefix, name in physical_columns(self.rule.columns)}

    def decide(self, population: Targets) -> tuple[np.ndarray, np.ndarray]:
        """(dropped [n] boolean, reason [n] uint16) of a part's targets. The population holds :attr:`columns`."""
        if self.kind == MASK:
            return stored_decisions(self.store, self.name, population)
        own = {
            (prefix, name): population.statistics[self._meaning[prefix], name]
            for prefix, name in physical_columns(self.rule.columns)
        }
        verdict = decide(self.rule, replace(population, statistics=own), self._resolved)
        return verdict.dropped, verdict.reason


def open_operand(store: Store, what: str | Rule, scoring: str | None) -> Operand:
    """Find out what is meant: a mask of the store, else a preset, else a ``.toml`` file, and resolve its thresholds.

    scoring: judge the rule on these statistics, the rule of a mask too, anew; None: the store's only scoring, and masks
             as they are stored

    Raises InputError for a name that is nothing, and for a rule with a budget; what building the mask would raise.
    """
    if scoring is not None:
        store.scorings[scoring]  # raises where it is not there
    if isinstance(what, Rule):
        return _judged(store, "rule", RULE, what, scoring)
    if what not in store.masks:
        store.masks.check_all_listed()  # else a preset would stand in for a mask of its name that lost its manifest
    if what in store.masks:
        manifest = store.masks[what].manifest
        rule = Rule.from_dict(manifest.rule)
        if scoring is not None and rule.needs_scoring:
            return _judged(store, what, RULE_OF_MASK, rule, scoring)
        read = tuple(name for name in manifest.scorings if not name.startswith("masks/"))
        return Operand(store, what, MASK, rule, tuple(c.text for c in manifest.clauses), read, {}, {})
    if what.endswith(".toml") or "/" in what:
        return _judged(store, what, FILE, Rule.load(what), scoring)
    if what in preset_names():
        return _judged(store, what, PRESET, Rule.from_preset(what), scoring)
    masks, presets = list(store.masks), preset_names()
    raise InputError(
        f"no mask and no preset {one_line(what, 60)!r}{nearest(what, masks + presets)}; expected a mask of the store "
        f"({', '.join(masks) or 'it has none'}), a preset ({', '.join(presets)}) or a .toml file"
    )


def stored_decisions(store: Store, mask: str, population: Targets) -> tuple[np.ndarray, np.ndarray]:
    """(dropped [n] boolean, reason [n] uint16) that a mask holds for a part's targets."""
    table = store.part(f"masks/{mask}", population.part, ["keep", "reason"])
    keep = table["keep"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    reason = table["reason"].combine_chunks().flatten().to_numpy()
    return ~keep[population.place], reason[population.place]


def _judged(store: Store, name: str, kind: str, rule: Rule, scoring: str | None) -> Operand:
    if rule.budget_mask is not None:
        raise InputError(
            f"{name} follows mask {rule.budget_mask!r} with its budget: it cannot be compared before it is built; "
            "build it with 'tokenstats mask', then compare the mask"
        )
    meaning = resolve_scorings(store, rule.columns, scoring)
    resolved = resolve_thresholds([rule], OnDisk(store, meaning, worker_count(None), f"rule {name}"))
    return Operand(store, name, kind, rule, tuple(rule.reasons), tuple(sorted(set(meaning.values()))), meaning, resolved)
