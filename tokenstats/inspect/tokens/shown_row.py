"""One row with all that a page shows of it: its tokens, what was decided about them, and why.

The same for a rule that is being tried and for a stored mask, which is explained with the scoring that it was made from.
"""

from dataclasses import dataclass, replace

import numpy as np

from tokenstats.inspect.preview import Outcome, Preview
from tokenstats.inspect.protection import NotKnown, scorings_of
from tokenstats.inspect.tokens.reasons import Condition, Reason, reasons_for
from tokenstats.inspect.tokens.sequence import SequenceView, read_sequence
from tokenstats.masking.engine.aggregates import Aggregate, Scale, Threshold
from tokenstats.masking.engine.targets import read_targets
from tokenstats.masking.language.builtins import TOKEN_COLUMNS
from tokenstats.masking.operands import Kind, Operand
from tokenstats.masking.rule import Rule
from tokenstats.store import Store
from tokenstats.store.families import MASKS
from tokenstats.store.manifests import MaskManifest


@dataclass(frozen=True)
class ShownRow:
    """A sequence of T tokens under some decisions.

    Attributes:
        view: The sequence.
        name: Whose decisions they are.
        reasons: For each clause, its conditions with values and thresholds over the sequence's targets; none where not known.
        weight: float32 [T], of a soft mask; None of a hard one.
    """

    view: SequenceView
    name: str
    reasons: tuple[Reason, ...] = ()
    weight: np.ndarray | None = None


def row_of_rule(preview: Preview, outcome: Outcome, number: int, name: str = "new rule") -> ShownRow:
    """A row of the store under a rule that is being tried."""
    view = preview.view(outcome, number)
    decisions, row = preview.decisions_on(outcome, number)
    targets = decisions.targets
    reasons = reasons_for(outcome.rule.clauses, targets, row, outcome.aggregates)
    weight = None if decisions.weight is None else targets.spread(decisions.weight)[slice(*targets.offsets[row : row + 2])]
    return ShownRow(view, name, tuple(reasons), weight)


def row_of_operand(operand: Operand, number: int) -> ShownRow:
    """A row under one side of a comparison, decided with thresholds over the whole store."""
    store = operand.store
    if operand.kind is Kind.MASK:
        return row_of_mask(store, operand.name, number)
    part, row = store.locate(number)
    wanted = operand.columns | {(None, name) for name in TOKEN_COLUMNS}
    targets = read_targets(store, part, wanted, {name: name for name in store.scorings})
    decisions = operand.decide(targets)
    assert decisions.protected is not None
    own, spread = slice(*targets.offsets[row : row + 2]), targets.spread
    keep, reason, protected = (spread(of)[own] for of in (~decisions.dropped, decisions.reason, decisions.protected))
    bare = operand.meaning.get(None, next(iter(operand.scorings), None))
    view = read_sequence(store, number, scoring=bare).decided(keep, reason, protected, operand.rule.reasons)
    reasons = reasons_for(operand.rule.clauses, operand.as_the_rule_reads(targets), row, operand.aggregates)
    weight = None if decisions.weight is None else spread(decisions.weight)[own]
    return ShownRow(view, operand.name, tuple(reasons), weight)


def row_of_mask(store: Store, mask: str | None, number: int, scoring: str | None = None) -> ShownRow:
    """A row under a stored mask, with the statistics of the scoring that it was made from; None is plain SFT.

    Args:
        store: The store.
        mask: Its name.
        number: Of the sequence.
        scoring: Whose statistics plain SFT shows.
    """
    if mask is None:
        return ShownRow(read_sequence(store, number, scoring=scoring), "plain SFT")
    manifest = store.masks[mask].manifest
    view = read_sequence(store, number, mask=mask, scoring=None if manifest.scorings_read else scoring)
    weight = None
    if manifest.weighted:
        family = f"{MASKS}/{mask}"
        weight = np.array(store.sequence(number, {family: ["weight"]})[family]["weight"], np.float32)
    try:
        reasons = _reasons_of_mask(store, manifest, number, view)
    except NotKnown as why:
        caveat = f"the thresholds are not known: {why}"
        return ShownRow(replace(view, caveat=view.caveat or caveat), mask, (), weight)
    return ShownRow(view, mask, tuple(reasons), weight)


def _reasons_of_mask(store: Store, manifest: MaskManifest, number: int, view: SequenceView) -> list[Reason]:
    """Values and thresholds, from the manifest; what holds, from the mask itself where a clause is one condition."""
    rule = Rule.from_dict(manifest.rule)
    if rule.expression is None or rule.budget_mask is not None:
        return []
    scorings = scorings_of(store, manifest, rule, rule.expression)
    part, row = store.locate(number)
    targets = read_targets(store, part, rule.expression.columns, scorings)
    found: dict[str, Aggregate] = {text: Threshold(value) for text, value in manifest.thresholds.items()}
    found |= {text: Scale(*scale) for text, scale in manifest.scales.items()}
    reasons = reasons_for(rule.clauses, targets, row, found)
    return [_as_stored(reason, view, bit) for bit, reason in enumerate(reasons)]


def _as_stored(reason: Reason, view: SequenceView, bit: int) -> Reason:
    """A manifest does not say which of the tokens equal to a threshold were taken; the mask does.

    Where the clause dropped a token, all of its conditions held. Elsewhere a tie was not taken, unless another condition or
    ``protect`` kept the token: that cannot be told, and it is shown as not taken.
    """
    dropped = (view.reason >> np.uint16(bit) & np.uint16(1)).astype(bool)[view.is_target]

    def settled(condition: Condition) -> Condition:
        tied = (condition.distance == 0) & (condition.scope in ("dataset", "role"))
        return replace(condition, holds=np.where(tied, dropped, condition.holds))

    return replace(reason, conditions=tuple(map(settled, reason.conditions)))
