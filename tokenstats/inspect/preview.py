"""Try a rule before it is stored: its effect on tokens held in memory, at the speed of a slider.

    preview = open_preview(store, "warm")
    outcome = preview.decide(Rule(drop="entropy > 2"))
    outcome.share_dropped, preview.view(outcome, 17)

On a store that fits, the outcome is exactly what :func:`~tokenstats.masking.build_mask` writes; on a larger one it is
that of a sample, which :attr:`Preview.is_sample` says.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tokenstats.errors import InputError
from tokenstats.inspect.histograms import Distributions, empty_distributions
from tokenstats.inspect.tokens.sequence import SequenceView, read_sequence
from tokenstats.masking.build import build_mask
from tokenstats.masking.engine.aggregates import Aggregates, thresholds_of
from tokenstats.masking.engine.counts import Counts
from tokenstats.masking.engine.decisions import Decisions, decide
from tokenstats.masking.engine.part_reader import InMemory
from tokenstats.masking.engine.resolve import resolve_rules
from tokenstats.masking.engine.targets import Column, Targets, read_targets, resolve_scorings
from tokenstats.masking.language.builtins import TOKEN_COLUMNS
from tokenstats.masking.rule import Rule
from tokenstats.store import Mask, Store

MOST_TOKENS = 2_000_000
"""Tokens that a preview holds in memory at most."""


@dataclass(frozen=True)
class Outcome:
    """What a rule does to the tokens of a preview.

    Attributes:
        rule: The rule.
        aggregates: What its dataset-wide selections come to.
        decisions: For each part of the preview.
        counts: Of all parts together.
    """

    rule: Rule
    aggregates: Aggregates
    decisions: tuple[Decisions, ...]
    counts: Counts

    @property
    def clauses(self) -> list[tuple[str, int]]:
        """Text of each clause, and how many targets it drops."""
        return list(zip(self.rule.reasons, self.counts.by_reason.tolist(), strict=False))

    @property
    def thresholds(self) -> dict[str, float]:
        """Numbers of the thresholds over the whole dataset, as a mask's manifest has them."""
        return thresholds_of(self.aggregates)


@dataclass
class Preview:
    """Some or all tokens of a store in memory, with the statistics that rules may read.

    Attributes:
        store: The store.
        scoring: Which scoring bare column names mean; None where there is none.
        columns: What rules may read.
        scorings: Which scoring each prefix of a column means.
        parts: The tokens.
    """

    store: Store
    scoring: str | None
    columns: frozenset[Column]
    scorings: dict[str | None, str]
    parts: tuple[Targets, ...]
    _elsewhere: dict[int, Targets] = field(default_factory=dict)  # the part outside the sample looked at last

    @property
    def tokens(self) -> int:
        """How many tokens are in memory, prompts included."""
        return sum(int(targets.offsets[-1]) for targets in self.parts)

    @property
    def is_sample(self) -> bool:
        """Does the store hold more than the preview?"""
        return self.tokens < self.store.manifest.tokens

    @property
    def targets(self) -> int:
        """How many target tokens are in memory."""
        return sum(map(len, self.parts))

    def decide(self, rule: Rule) -> Outcome:
        """Apply a rule. Raises RuleError as building the mask would, InputError for a rule with a budget."""
        if rule.budget_mask is not None:
            raise InputError(
                "a rule with a budget follows another mask: it cannot be tried, only built, with 'tokenstats mask'"
            )
        aggregates = resolve_rules([rule], InMemory(self.parts))
        decisions = tuple(decide(rule, targets, aggregates) for targets in self.parts)
        return Outcome(rule, aggregates, decisions, sum(map(Counts.of, decisions), Counts()))

    def distributions(self, outcome: Outcome, name: str = "rule") -> Distributions:
        """Histograms of the preview's tokens under an outcome."""
        found = empty_distributions(self.store, self.scoring)
        for decisions in outcome.decisions:
            found.add(decisions.targets, {name: decisions.dropped})
        return found

    def view(self, outcome: Outcome, number: int) -> SequenceView:
        """One sequence of the store under the outcome's decisions, whether it is in the sample or not."""
        plain = read_sequence(self.store, number, scoring=self.scoring)
        decisions, row = self.decisions_on(outcome, number)
        assert decisions.protected is not None
        own, spread = slice(*decisions.targets.offsets[row : row + 2]), decisions.targets.spread
        keep, reason, protected = (spread(of)[own] for of in (~decisions.dropped, decisions.reason, decisions.protected))
        return plain.decided(keep, reason, protected, outcome.rule.reasons)

    def largest(self, column: str, share: float = 0.999) -> float:
        """The value (nats) below which this share of the previewed targets lies: a scale for sliders and colours."""
        return float(np.quantile(self._values(column), share))

    def limits(self, column: str) -> list[float]:
        """Thresholds (nats) worth trying, rising: round values that leave from 60 % down to 0.1 % of the targets above them."""
        shares = np.concatenate([np.arange(0.4, 0.95, 0.01), np.arange(0.95, 0.9995, 0.0025), [0.999]])
        return sorted({float(f"{x:.3g}") for x in np.quantile(self._values(column), shares) if x > 0})

    def _values(self, column: str) -> np.ndarray:
        """The column of all previewed targets; a single 0 where there are none."""
        return np.concatenate([p.column((None, column)) for p in self.parts]) if self.targets else np.zeros(1)

    def decisions_on(self, outcome: Outcome, number: int) -> tuple[Decisions, int]:
        """The decisions on the part that a sequence of the store lies in, and its row there."""
        part, row = self.store.locate(number)
        for decisions in outcome.decisions:
            if decisions.targets.part == part and row < len(decisions.targets.rows):
                return decisions, row
        targets = self._elsewhere.get(part)
        if targets is None:
            targets = read_targets(self.store, part, self.columns, self.scorings)
            self._elsewhere = {part: targets}
        return decide(outcome.rule, targets, outcome.aggregates), row


def open_preview(store: Store, scoring: str | None, columns: Iterable[Column] = (), most_tokens: int = MOST_TOKENS) -> Preview:
    """Read a store, or whole parts spread evenly over it, up to ``most_tokens``.

    Args:
        store: The store.
        scoring: Which scoring bare column names mean.
        columns: What rules will read besides entropy, KL, log p and the tokens, as ``Rule.columns`` gives it.
        most_tokens: Of a larger store a sample is read.
    """
    there = empty_distributions(store, scoring).columns + (["logprob"] if scoring is not None else [])
    wanted = frozenset(columns) | {(None, c) for c in (*there, *TOKEN_COLUMNS)}
    scorings = resolve_scorings(store, wanted, scoring)
    parts = []
    room = most_tokens
    for part in _spread(store, most_tokens):
        parts.append(_first_rows(read_targets(store, part, wanted, scorings), room))
        room -= int(parts[-1].offsets[-1])
    return Preview(store, scoring, wanted, scorings, tuple(parts))


def threshold_rule(
    entropy: float, kl: float, *, as_share: bool = True, per: str = "sequence", both: bool = False, protect: str | None = None
) -> Rule | None:
    """A rule that drops high entropy and high KL.

    Args:
        entropy: Share to drop (0 to 1), or nats above which tokens are dropped; 0 turns it off.
        kl: The same.
        as_share: They are shares.
        per: Scope of the shares, ``sequence`` or ``dataset``.
        both: Drop only where both say so.
        protect: What is never dropped; None for what a rule protects by default.

    Returns:
        The rule; None where both are off.
    """
    limits = {"entropy": entropy, "kl": kl}
    scope = "" if per == "dataset" else f", per={per}"
    chosen = {name: float(f"{x:.6g}") for name, x in limits.items() if x > 0}  # 0.3, where a slider says 0.30000000000000004
    if not chosen:
        return None
    parts = [f"top({name}, {x!r}{scope})" if as_share else f"{name} > {x!r}" for name, x in chosen.items()]
    rule = Rule(drop=(" and " if both else " or ").join(parts))
    return rule if protect is None else replace(rule, protect=protect)


def save_mask(store: Store, rule: Rule, name: str, *, scoring: str | None, replace_old: bool = False) -> tuple[Mask, Path]:
    """Build the mask over the whole store, and write the rule beside it as ``STORE/rules/NAME.toml``.

    Args:
        store: The store.
        rule: The rule.
        name: Of the mask.
        scoring: Which scoring bare column names mean.
        replace_old: Put it in the place of another mask of this name.

    Returns:
        The mask, and the path of the rule.

    Raises:
        InputError: The rule cannot be written. What building the mask would raise.
    """
    mask = build_mask(store, rule, name, scoring=scoring if rule.needs_scoring else None, replace=replace_old)
    path = store.path / "rules" / f"{name}.toml"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(rule.to_toml(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the mask is stored, but {path} cannot be written: {error.strerror or error}") from None
    return mask, path


def _spread(store: Store, most_tokens: int) -> list[int]:
    """Parts at even distances whose tokens together come close to the limit: all of them where they fit."""
    count, tokens = store.part_count, store.manifest.tokens
    if tokens <= most_tokens:
        return list(range(count))
    take = max(1, min(count, most_tokens * count // max(1, tokens)))
    return [i * count // take for i in range(take)]


def _first_rows(targets: Targets, room: int) -> Targets:
    """The first rows that hold no more than ``room`` tokens, and at least one row."""
    rows = max(1, int(np.searchsorted(targets.offsets, max(0, room), side="right")) - 1)
    return targets if rows >= len(targets.rows) else targets.of_rows(0, rows)
