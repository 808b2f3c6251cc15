"""Which tokens the rule of a stored mask may never drop: decided anew, exactly as when the mask was made, ties included.

A mask's parts say what was dropped, not what was spared. So the rule's ``protect`` is evaluated again, over the whole part that
the sequence is in, against thresholds that are resolved again over the whole dataset where it has any.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from tokenstats.errors import RuleError, StoreError
from tokenstats.masking.engine.aggregates import Aggregates
from tokenstats.masking.engine.evaluate import evaluate
from tokenstats.masking.engine.part_reader import OnDisk, worker_count
from tokenstats.masking.engine.resolve import resolve
from tokenstats.masking.engine.targets import physical_columns, read_targets, resolve_scorings
from tokenstats.masking.language.parser import Expression
from tokenstats.masking.rule import Rule
from tokenstats.store import Store
from tokenstats.store.manifests import MaskManifest


class NotKnown(Exception):
    """What was protected can no longer be told, and why."""


def protected_targets(store: Store, mask: MaskManifest, number: int) -> np.ndarray | None:
    """Which targets of a sequence the mask's rule protects.

    Args:
        store: The store.
        mask: The mask.
        number: Of the sequence, counted from 0 over the store.

    Returns:
        Boolean [T], of all its tokens; None where the rule protects nothing.

    Raises:
        NotKnown: A scoring that decides about it is gone, or no longer is what the mask was made from.
    """
    rule = Rule.from_dict(mask.rule)
    if rule.protected is None:
        return None
    scorings = scorings_of(store, mask, rule, rule.protected)
    part, row = store.locate(number)
    targets = read_targets(store, part, rule.protected.columns, scorings)
    key = str(store.path.resolve()), store.fingerprint, mask.fingerprint  # a mask's fingerprint holds all that it depends on
    aggregates = _aggregates(_Question(key, store, rule.protected, scorings))
    return targets.spread(evaluate(rule.protected.tree, targets, aggregates))[slice(*targets.offsets[row : row + 2])]


def scorings_of(store: Store, mask: MaskManifest, rule: Rule, expression: Expression) -> dict[str | None, str]:
    """Which scoring each prefix of an expression of the rule meant when the mask was made.

    Raises:
        NotKnown: One is gone, or no longer is what the mask was made from.
    """
    bare = any(prefix is None for prefix, _ in physical_columns(expression.columns))
    try:
        scorings = resolve_scorings(store, expression.columns, _bare_scoring(mask, rule) if bare else None)
    except (RuleError, StoreError) as error:
        raise NotKnown(str(error)) from None
    for name in scorings.values():
        if store.scorings[name].manifest.fingerprint != mask.scorings.get(name):
            raise NotKnown(f"scoring {name} is not the one that the mask was made from")
    return scorings


def _bare_scoring(mask: MaskManifest, rule: Rule) -> str:
    """The scoring that bare names meant. Earlier versions did not record it: then it is what no prefix names."""
    if mask.scoring is not None:
        return mask.scoring
    named = {prefix for prefix, _ in rule.columns}
    left = [name for name in mask.scorings_read if name not in named]
    if len(left) != 1:
        raise NotKnown("an earlier version did not record which scoring the rule's bare names mean; make the mask again")
    return left[0]


@dataclass(frozen=True)
class _Question:
    """What aggregates depend on. Only the key is compared: it holds all of it."""

    key: tuple[str, str, str]
    store: Store = field(compare=False)
    protected: Expression = field(compare=False)
    scorings: Mapping[str | None, str] = field(compare=False)


@lru_cache(maxsize=8)  # a dataset-wide selection takes a reading of the dataset: once for all the rows that are looked at
def _aggregates(of: _Question) -> Aggregates:
    return resolve([of.protected], OnDisk(of.store, of.scorings, worker_count(None), "protected tokens"))
