"""A rule that follows the policy: masking's rules, evaluated by training on the statistics of each step.

    follow = follow_rule("runs/store", "eksft", mask="eksft")
    train("runs/store", model="models/base", mask="eksft", out="runs/moving", follow=follow, options=...)

Stands above both stages: training knows a small protocol, masking its rules, and neither the other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tokenstats.errors import InputError, RuleError
from tokenstats.masking.engine.decisions import decide
from tokenstats.masking.engine.targets import Targets, physical_columns
from tokenstats.masking.language.unparse import options_of, selections_in, text_of
from tokenstats.masking.rule import Rule
from tokenstats.store import Store, open_store
from tokenstats.store.families import TOKENS
from tokenstats.store.lists import flat, offsets_of
from tokenstats.store.vocabulary import Vocabulary
from tokenstats.training.rows import row_keys
from tokenstats.training.selection import BatchTargets, Selector

OWN = "mask"
"""In place of a rule: that of the mask itself."""
_WITHIN_A_ROW = ("sequence", "turn")


class RuleFollower:
    """A :class:`~tokenstats.training.selection.Selector` made of a rule."""

    def __init__(self, store: Store, rule: Rule, source: str | None = None):
        """Raises RuleError where the rule cannot follow."""
        _check_can_follow(rule)
        self.source = source
        self._rule, self._tokenizer, self._vocabulary = rule, store.manifest.tokenizer, Vocabulary(store)
        self.rule: Mapping[str, Any] = rule.to_dict()
        self.fingerprint = rule.fingerprint
        self.clauses = tuple(rule.reasons)
        self.weighted = rule.weighting is not None
        self.columns = frozenset(name for _, name in physical_columns(rule.columns))
        self._place = {key: place for place, key in enumerate(row_keys(store).tolist())}
        self._seq_ids, self._rows, self._roles = _read_rows(store, with_roles=(None, "role") in rule.columns)

    def select(self, targets: BatchTargets) -> tuple[np.ndarray, np.ndarray | None]:
        """See :class:`~tokenstats.training.selection.Selector`."""
        # what only fills a batch up has no targets and no row in the store: any will do
        rows = np.array([self._place.get(key, 0) for key in targets.keys.tolist()])
        decisions = decide(
            self._rule,
            Targets(
                part=0,
                seq_ids=pa.chunked_array([self._seq_ids.take(pa.array(rows))]),
                rows=self._rows[rows],
                ids=targets.ids,
                roles=self._roles_of(rows, targets),
                offsets=targets.offsets,
                place=np.flatnonzero(targets.is_target),
                statistics={(None, name): values for name, values in targets.statistics.items()},
                tokenizer=self._tokenizer,
                vocabulary=self._vocabulary,
            ),
            {},
        )
        return decisions.reason, decisions.weight

    def _roles_of(self, rows: np.ndarray, targets: BatchTargets) -> np.ndarray:
        if self._roles is None:
            return np.zeros(0, np.int8)
        roles = np.zeros(len(targets.ids), np.int8)
        for row, first in zip(rows, targets.offsets, strict=False):
            own = self._roles[row]
            roles[first : first + len(own)] = own[: len(roles) - first]
        return roles


def follow_rule(store: Store | str | Path, rule: str | Path | Rule, *, mask: str | None = None) -> Selector:
    """A rule for :func:`tokenstats.train` to follow.

    Args:
        store: A store, or its folder: what the rule knows of a token besides its statistics.
        rule: A preset, a ``.toml`` file or a rule; "mask" is the rule of the mask.
        mask: The mask that is trained on.

    Raises:
        RuleError: The rule needs more than one sequence, or what a training step does not know; the message says what.
        InputError: There is no such rule or mask.
    """
    opened = open_store(store)
    if rule == OWN:
        if mask in (None, "none"):
            raise InputError("the mask's own rule was to be followed, but there is no mask; expected a preset or a .toml file")
        return RuleFollower(opened, Rule.from_dict(opened.masks[str(mask)].manifest.rule), OWN)
    return RuleFollower(opened, rule) if isinstance(rule, Rule) else RuleFollower(opened, Rule.load(rule), str(rule))


def _check_can_follow(rule: Rule) -> None:
    """Raise RuleError where a rule says of a token what the step that it is learned in cannot know."""
    if rule.budget is not None:
        raise _cannot(f"its budget ({rule.budget}) counts what a stored mask drops")
    for scoring, name in sorted(rule.columns, key=str):
        if scoring is not None:
            raise _cannot(f"it reads {scoring}.{name}, of a stored scoring: a step knows its own policy and reference only")
    for expression in rule.expressions:
        for call in selections_in(expression.tree):
            if options_of(call)[0] not in _WITHIN_A_ROW:
                raise _cannot(
                    f"{text_of(call)} looks at the whole dataset, a step at its own sequences; write per=sequence or per=turn"
                )


def _cannot(why: str) -> RuleError:
    return RuleError(f"this rule cannot be followed: {why}")


def _read_rows(store: Store, with_roles: bool) -> tuple[pa.Array, np.ndarray, list[np.ndarray] | None]:
    """Of all rows of a store their seq_id, their number in the dataset, and their tokens' roles."""
    seq_ids, numbers, roles = [], [], []
    for index in range(store.part_count):
        table = store.part(TOKENS, index, ["seq_id", "row", *(["role"] if with_roles else [])])
        seq_ids.append(table["seq_id"].combine_chunks())
        numbers.append(table["row"].to_numpy())
        if with_roles:
            roles += np.split(flat(table["role"]), offsets_of(table["role"])[1:-1])
    return pa.concat_arrays(seq_ids), np.concatenate(numbers), roles if with_roles else None
