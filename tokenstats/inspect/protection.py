"""Which tokens the rule of a stored mask may never drop: decided anew, exactly as when the mask was made, ties included.

A mask's parts say what was dropped, not what was spared. So the rule's ``protect`` is evaluated again, over the whole part that
the sequence is in, against thresholds that are resolved again over the whole dataset where it has any.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from tokenstats.errors import RuleError, StoreError
from tokenstats.masking.engine.aggregates import Aggregates
from tokenstats.masking.engine.evaluate import evaluate
from tokenstats.masking.engine.part_reader import OnDisk, worker_count
from tokenstats.masking.engine.resolve import resolve
from tokenstats.masking.engine.targets import physical_columns, read_targets, resolve_scorings
from tokenstats.masking.rule import Rule
from tokenstats.store import Store
from tokenstats.store.manifests import MaskManifest


class NotKnown(Exception):
    """What was protected can no longer be told, and why."""


def protected_targets(store: Store, mask: MaskManifest, number: int) -> np.ndarray:
    """Places, within a sequence of the store, of the targets that the mask's rule protects, rising.

    Raises NotKnown where a scoring that decides about it is gone, or no longer is what the mask was made from.
    """
    protected = Rule.from_dict(mask.rule).protected
    if protected is None:
        return np.zeros(0, np.int64)
    scorings = _scorings(store, mask)
    part, row = store.locate(number)
    targets = read_targets(store, part, protected.columns, scorings)
    aggregates = _aggregates(_Mask(store, mask, scorings))
    own = slice(*targets.sequence_starts[row : row + 2])
    return targets.position_in_sequence[own][evaluate(protected.tree, targets, aggregates)[own]]


def _scorings(store: Store, mask: MaskManifest) -> dict[str | None, str]:
    """Which scoring each prefix of the rule's ``protect`` meant when the mask was made."""
    rule = Rule.from_dict(mask.rule)
    assert rule.protected is not None
    columns = rule.protected.columns
    bare = any(prefix is None for prefix, _ in physical_columns(columns))
    try:
        scorings = resolve_scorings(store, columns, _bare_scoring(mask, rule) if bare else None)
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


class _Mask:
    """What aggregates depend on, as the key of a cache: a mask's fingerprint holds all of it."""

    def __init__(self, store: Store, mask: MaskManifest, scorings: Mapping[str | None, str]):
        self.store, self.mask, self.scorings = store, mask, scorings

    def __hash__(self) -> int:
        return hash(self.mask.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Mask) and self._key() == other._key()

    def _key(self) -> tuple[str, str, str]:
        return str(self.store.path.resolve()), self.store.fingerprint, self.mask.fingerprint


@lru_cache(maxsize=8)  # a dataset-wide selection takes a reading of the dataset: once for all the rows that are looked at
def _aggregates(of: _Mask) -> Aggregates:
    protected = Rule.from_dict(of.mask.rule).protected
    assert protected is not None
    return resolve([protected], OnDisk(of.store, of.scorings, worker_count(None), "protected tokens"))
