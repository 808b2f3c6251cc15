"""The store as a notebook uses it: rows, masks and datasets, each one call away.

    store = ts.Store("runs/gsm8k")
    store[17]                                  # a sequence, that shows itself
    store.add_mask("mine", drop="entropy > 2") # a mask of the whole store
    store.row(17, mask="mine")                 # the sequence with what the mask drops
    store.to_dataset("mine")                   # a datasets.Dataset

It stands above the stages, and loads each only when it is used.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenstats.errors import InputError, nearest
from tokenstats.store import Mask
from tokenstats.store import Store as StoreOnDisk

if TYPE_CHECKING:
    from datasets import Dataset

    from tokenstats.inspect.tokens.sequence import SequenceView
    from tokenstats.masking.rule import Rule


class Store(StoreOnDisk):
    """A finished store. Raises StoreError where ``path`` is none.

    ``len(store)`` is its number of sequences; iterating reads them one by one.
    """

    def __len__(self) -> int:
        return self.manifest.sequences

    def __getitem__(self, number: int) -> "SequenceView":
        """A sequence, counted from 0, or from the end where negative. Raises IndexError beyond the last."""
        try:
            number = operator.index(number)
        except TypeError:
            raise TypeError(f"a row is one whole number, got {number!r}; several: [store[i] for i in range(2, 4)]") from None
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} is not in the store: it holds rows 0 to {len(self) - 1}")
        return self.row(number % len(self))

    def __iter__(self) -> "Iterator[SequenceView]":
        return map(self.row, range(len(self)))

    def row(self, number: int, *, mask: str | None = None, scoring: str | None = None) -> "SequenceView":
        """A sequence with its statistics, and what a mask drops of it.

        Args:
            number: Of the sequence in the store, counted from 0.
            mask: Whose decisions; None: plain SFT, every target is learned.
            scoring: Whose statistics; None: those that the mask read, or the store's only scoring, or none.

        Raises:
            InputError: There is no such row.
            StoreError: There is no such mask or scoring, or a part is damaged.
        """
        from tokenstats.inspect.tokens.sequence import read_sequence

        return read_sequence(self, number, mask=mask, scoring=scoring)

    def add_mask(
        self,
        name: str,
        rule: "Rule | Mapping[str, Any] | str | Path | None" = None,
        *,
        scoring: str | None = None,
        replace: bool = False,
        **parts: Any,
    ) -> Mask:
        """Build a mask over the whole store.

        Args:
            name: Of the mask.
            rule: A rule or its fields, a preset's name or a ``.toml`` file; None where ``drop``, ``keep`` or ``weight`` say it.
            scoring: Which scoring the rule's bare column names mean; not needed where the store has one.
            replace: Put it in the place of another mask of this name.
            **parts: Of a rule, or to change one: ``drop``, ``keep``, ``weight``, ``protect``, ``min_kept``, ``too_few``,
                ``budget``.

        Raises:
            RuleError: The rule is none, or reads what the store does not have.
            StoreError: The name is taken by another mask.
        """
        from tokenstats.masking.build import build_mask
        from tokenstats.masking.rule import Rule

        known = [f.name for f in fields(Rule)]
        for word in parts:
            if word not in known:
                raise InputError(f"a rule has no {word!r}{nearest(word, known)}; expected: {', '.join(known)}")
        if not isinstance(rule, Rule | Mapping | None):
            rule = Rule.load(rule)
        base = rule.to_dict() if isinstance(rule, Rule) else rule or {}
        return build_mask(self, Rule.from_dict({**base, **parts}), name, scoring=scoring, replace=replace)

    def to_dataset(self, mask: str | None = None, *, form: str | None = None, ignore_weights: bool = False) -> "Dataset":
        """The rows and what is learned of them as a ``datasets.Dataset``: see :func:`tokenstats.training.forms.to_dataset`."""
        from tokenstats.training.forms import to_dataset

        return to_dataset(self, mask, form=form, ignore_weights=ignore_weights)
