"""Try a rule before it is stored: its effect on tokens held in memory, at the speed of a slider.

    preview = open_preview(store, "warm")
    outcome = preview.decide(Rule(drop="entropy > 2"))
    outcome.share_dropped, preview.view(outcome, 17)

On a store that fits, the outcome is exactly what :func:`~tokenstats.masking.build_mask` writes; on a larger one it is
that of a sample, which :attr:`Preview.is_sample` says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tokenstats.errors import InputError
from tokenstats.inspect.histograms import Distributions, empty_distributions
from tokenstats.inspect.tokens.sequence import SequenceView, read_sequence
from tokenstats.masking.build import build_mask
from tokenstats.masking.engine.aggregates import resolve_thresholds
from tokenstats.masking.engine.decisions import Decisions, decide
from tokenstats.masking.engine.evaluate import evaluate
from tokenstats.masking.engine.part_reader import InMemory
from tokenstats.masking.engine.resolved import Resolved, thresholds_of
from tokenstats.masking.engine.targets import Column, Targets, iter_targets, resolve_scorings
from tokenstats.masking.rule import Rule
from tokenstats.store import Store
from tokenstats.store.manifests import MaskManifest

MOST_TOKENS = 2_000_000
"""Tokens that a preview holds in memory at most."""


@dataclass(frozen=True)
class Outcome:
    """What a rule does to the tokens of a preview. ``clauses``: text of each clause and how many targets it drops."""

    rule: Rule
    thresholds: Mapping[str, Resolved]
    verdicts: tuple[Decisions, ...]
    targets: int
    dropped: int
    protected: int
    nothing_kept: int
    end_of_turn: int
    end_of_turn_dropped: int
    clauses: tuple[tuple[str, int], ...]

    @property
    def share_dropped(self) -> float:
        return self.dropped / self.targets if self.targets else 0.0

    @property
    def values(self) -> dict[str, float]:
        """Numbers of the thresholds over the whole dataset, as a mask's manifest has them."""
        return thresholds_of(self.thresholds)


@dataclass
class Preview:
    """Some or all tokens of a store in memory, with the statistics that rules may read."""

    store: Store
    scoring: str | None
    columns: frozenset[Column]
    scorings: Mapping[str | None, str]
    populations: tuple[Targets, ...]
    tokens: int
    _elsewhere: dict[int, Targets] = field(default_factory=dict)  # the part outside the sample looked at last

    @property
    def is_sample(self) -> bool:
        return self.tokens < self.store.manifest.tokens

    @property
    def targets(self) -> int:
        return sum(map(len, self.populations))

    def decide(self, rule: Rule) -> Outcome:
        """Apply a rule. Raises RuleError as building the mask would, InputError for a rule with a budget."""
        if rule.budget_mask is not None:
            raise InputError(
                "a rule with a budget follows another mask: it cannot be tried, only built, with 'tokenstats mask'"
            )
        thresholds = resolve_thresholds([rule], InMemory(self.populations))
        verdicts = tuple(decide(rule, population, thresholds) for population in self.populations)
        ends = [v.population.column((None, "is_end_of_turn")) for v in verdicts]
        by_reason = [sum(int(np.count_nonzero(v.reason & (1 << bit))) for v in verdicts) for bit in range(len(rule.reasons))]
        return Outcome(
            rule=rule,
            thresholds=thresholds,
            verdicts=verdicts,
            targets=self.targets,
            dropped=sum(int(v.dropped.sum()) for v in verdicts),
            protected=sum(v.protected for v in verdicts),
            nothing_kept=sum(int((v.kept_per_row == 0).sum()) for v in verdicts),
            end_of_turn=sum(int(e.sum()) for e in ends),
            end_of_turn_dropped=sum(int((e & v.dropped).sum()) for e, v in zip(ends, verdicts, strict=True)),
            clauses=tuple(zip(rule.reasons, by_reason, strict=True)),
        )

    def distributions(self, outcome: Outcome, name: str = "rule") -> Distributions:
        """Histograms of the preview's tokens under an outcome."""
        found = empty_distributions(self.store, self.scoring)
        for verdict in outcome.verdicts:
            found.add(verdict.population, {name: verdict.dropped})
        return found

    def view(self, outcome: Outcome, number: int) -> SequenceView:
        """One sequence of the store under the outcome's decisions, whether it is in the sample or not."""
        plain = read_sequence(self.store, number, scoring=self.scoring)
        verdict, row = self._verdict_on(outcome, number)
        population = verdict.population
        own = slice(*population.sequence_starts[row : row + 2])
        place = population.position_in_sequence[own]
        keep, reason, protected = (np.zeros(len(plain), kind) for kind in (bool, np.uint16, bool))
        keep[place], reason[place] = ~verdict.dropped[own], verdict.reason[own]
        if outcome.rule.protected is not None:
            protected[place] = evaluate(outcome.rule.protected.tree, population, outcome.thresholds)[own]
        return plain.decided(keep, reason, protected, [text for text, _ in outcome.clauses])

    def largest(self, column: str, share: float = 0.999) -> float:
        """The value (nats) below which this share of the previewed targets lies: a scale for sliders and colours."""
        values = [p.column((None, column)) for p in self.populations]
        return float(np.quantile(np.concatenate(values), share)) if self.targets else 0.0

    def limits(self, column: str) -> list[float]:
        """Thresholds (nats) worth trying, rising: round values that leave from 60 % down to 0.1 % of the targets above them."""
        shares = np.concatenate([np.arange(0.4, 0.95, 0.01), np.arange(0.95, 0.9995, 0.0025), [0.999]])
        values = np.concatenate([p.column((None, column)) for p in self.populations]) if self.targets else np.zeros(1)
        return sorted({float(f"{x:.3g}") for x in np.quantile(values, shares) if x > 0})

    def _verdict_on(self, outcome: Outcome, number: int) -> tuple[Decisions, int]:
        part, row = self.store.locate(number)
        for verdict in outcome.verdicts:
            if verdict.population.part == part and row < len(verdict.population.rows):
                return verdict, row
        population = self._elsewhere.get(part)
        if population is None:
            population = next(iter(iter_targets(self.store, self.columns, self.scorings, [part])))
            self._elsewhere = {part: population}
        return decide(outcome.rule, population, outcome.thresholds), row


def open_preview(store: Store, scoring: str | None, columns: Iterable[Column] = (), most_tokens: int = MOST_TOKENS) -> Preview:
    """Read a store, or whole parts spread evenly over it, up to ``most_tokens``.

    columns: what rules will read besides entropy, KL and log p, as ``Rule.columns`` gives it
    """
    there = empty_distributions(store, scoring).columns + (["logprob"] if scoring is not None else [])
    wanted = frozenset(columns) | {(None, c) for c in there}
    scorings = resolve_scorings(store, wanted, scoring)
    populations = []
    room = most_tokens
    for part in _spread(store, most_tokens):
        population = _first_rows(next(iter(iter_targets(store, wanted, scorings, [part]))), room)
        room -= int(population.offsets[-1])
        populations.append(population)
    tokens = sum(int(p.offsets[-1]) for p in populations)
    return Preview(store, scoring, wanted, scorings, tuple(populations), tokens)


def threshold_rule(
    entropy: float, kl: float, *, as_share: bool = True, per: str = "sequence", both: bool = False, protect: str | None = None
) -> Rule | None:
    """A rule that drops high entropy and high KL.

    entropy, kl: shares to drop (0 to 1), or with ``as_share=False`` the nats above which tokens are dropped; 0 turns one off
    per:  scope of the shares, ``sequence`` or ``dataset``; both: drop only where both say so
    """
    limits = {"entropy": entropy, "kl": kl}
    scope = "" if per == "dataset" else f", per={per}"
    chosen = {name: float(f"{x:.6g}") for name, x in limits.items() if x > 0}  # 0.3, where a slider says 0.30000000000000004
    if not chosen:
        return None
    parts = [f"top({name}, {x!r}{scope})" if as_share else f"{name} > {x!r}" for name, x in chosen.items()]
    rule = Rule(drop=(" and " if both else " or ").join(parts))
    return rule if protect is None else replace(rule, protect=protect)


def save_mask(
    store: Store, rule: Rule, name: str, *, scoring: str | None, replace_old: bool = False
) -> tuple[MaskManifest, Path]:
    """Build the mask over the whole store, and write the rule beside it as ``STORE/rules/NAME.toml``."""
    manifest = build_mask(store, rule, name, scoring=scoring, replace=replace_old)
    path = store.path / "rules" / f"{name}.toml"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(rule.to_toml(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the mask is stored, but {path} cannot be written: {error.strerror or error}") from None
    return manifest, path


def _spread(store: Store, most_tokens: int) -> list[int]:
    """Parts at even distances whose tokens together come close to the limit: all of them where they fit."""
    count, tokens = store.part_count, store.manifest.tokens
    if tokens <= most_tokens:
        return list(range(count))
    take = max(1, min(count, most_tokens * count // max(1, tokens)))
    return [i * count // take for i in range(take)]


def _first_rows(population: Targets, room: int) -> Targets:
    """The first rows that hold no more than ``room`` tokens, and at least one row."""
    rows = max(1, int(np.searchsorted(population.offsets, max(0, room), side="right")) - 1)
    if rows >= len(population.rows):
        return population
    end = int(population.offsets[rows])
    targets = int(np.searchsorted(population.place, end))
    return replace(
        population,
        seq_ids=population.seq_ids.slice(0, rows),
        rows=population.rows[:rows],
        ids=population.ids[:end],
        roles=population.roles[:end],
        offsets=population.offsets[: rows + 1],
        place=population.place[:targets],
        statistics={column: values[:targets] for column, values in population.statistics.items()},
    )
