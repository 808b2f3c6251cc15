"""From a rule to a stored mask: thresholds first, then part by part."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tokenstats.errors import InputError, StoreError, argument, one_line
from tokenstats.masking.engine.aggregates import resolve_thresholds
from tokenstats.masking.engine.decisions import Decisions, decide
from tokenstats.masking.engine.exact_sum import ExactSum
from tokenstats.masking.engine.group_ops import count_in_groups
from tokenstats.masking.engine.part_reader import OnDisk, worker_count
from tokenstats.masking.engine.resolved import Resolved, scales_of, thresholds_of
from tokenstats.masking.engine.targets import Targets, resolve_scorings
from tokenstats.masking.rule import Rule, rule_text
from tokenstats.schema import MAX_CLAUSES, SCHEMA_VERSION, mask_schema
from tokenstats.store import Store, check_name
from tokenstats.store.drafts import draft_of, put_in_place
from tokenstats.store.manifests import Clause, MaskManifest, Part, now
from tokenstats.store.parts import digest_of, part_path, write_part
from tokenstats.store.store import MASKS


def build_mask(
    store: Store,
    rule: Rule,
    name: str,
    *,
    scoring: str | None = None,
    replace: bool = False,
    workers: int | None = None,
) -> MaskManifest:
    """Decide for every target token of a store, and keep the answer as ``masks/<name>``.

    scoring: which scoring the rule's bare column names mean; not needed where the store has one
    replace: put the new mask in the place of another of the same name. Whoever reads meanwhile sees the one or the other
    workers: threads, each with one part in memory; by default one a processor, up to 8. The mask is the same with any number

    A mask that is there already, of the same rule and scorings, is left as it is. Raises RuleError where the rule
    reads what the store does not have, StoreError where the name is taken by another mask.
    """
    check_name(name, "mask")
    if name == "none":
        raise InputError("a mask cannot be called 'none': that means plain SFT, without a mask; choose another name")
    scorings = resolve_scorings(store, rule.columns, scoring)
    settings = _settings(store, rule, scorings)
    family = f"{MASKS}/{name}"
    if store.has(family) and not replace:
        return _same_mask(store, name, rule, settings, scorings.get(None))
    source = OnDisk(store, scorings, worker_count(workers), f"mask {name}")
    resolved = resolve_thresholds([rule], source)
    # built beside its place and moved there at the end: a killed run leaves no half-made mask
    try:
        with draft_of(store.path / family) as draft:
            totals = _write_parts(draft, rule, source, resolved, settings)
            manifest = _manifest(store, rule, settings, scorings, resolved, totals, draft)
            manifest.write(draft)
            if not replace and store.has(family):  # another run was faster
                return _same_mask(store, name, rule, settings, scorings.get(None))
            put_in_place(draft, store.path / family)
    except OSError as error:
        raise StoreError(f"cannot write {store.path / family}: {error.strerror or error}; mend its rights") from error
    finally:
        store.forget(family)
    return manifest


def _same_mask(store: Store, name: str, rule: Rule, settings: dict[str, Any], scoring: str | None) -> MaskManifest:
    """The mask of that name, where it is of this rule and these scorings, and whole."""
    found = MaskManifest.read(store.path / MASKS / name)
    there = found.store_fingerprint, found.rule_fingerprint, found.scorings, found.scoring or scoring
    if there != (store.fingerprint, rule.fingerprint, settings["scorings"], scoring):
        raise StoreError(
            f"mask {name!r} is there already, of another rule or scoring ({one_line(rule_text(found.rule), 80)}); "
            f"choose another name, or replace it with {argument('replace', True)}"
        )
    store.verify(f"{MASKS}/{name}")
    return found


@dataclass
class Totals:
    """What a mask's manifest counts. The sum of the weights is exact: no order of the parts changes it."""

    reasons: np.ndarray = field(default_factory=lambda: np.zeros(MAX_CLAUSES, np.int64))
    weight: ExactSum = field(default_factory=ExactSum)
    targets: int = 0
    kept: int = 0
    protected: int = 0
    rows_with_nothing_kept: int = 0
    rows_with_too_few: int = 0
    shortfall: int = 0

    @classmethod
    def of(cls, verdict: Decisions) -> "Totals":
        return cls(
            reasons=verdict.by_reason,
            weight=ExactSum(verdict.weight),
            targets=len(verdict.population),
            kept=int(verdict.kept_per_row.sum()),
            protected=verdict.protected,
            rows_with_nothing_kept=int(np.count_nonzero(verdict.kept_per_row == 0)),
            rows_with_too_few=verdict.rows_with_too_few,
            shortfall=verdict.shortfall,
        )

    def add(self, part: "Totals") -> None:
        self.reasons += part.reasons
        self.weight.merge(part.weight)
        self.targets += part.targets
        self.kept += part.kept
        self.protected += part.protected
        self.rows_with_nothing_kept += part.rows_with_nothing_kept
        self.rows_with_too_few += part.rows_with_too_few
        self.shortfall += part.shortfall


def mask_part(verdict: Decisions) -> pa.Table:
    """One part of a mask: a verdict on the targets, spread over all tokens; False and 0 where a token is no target."""
    population = verdict.population
    offsets = pa.array(population.offsets, pa.int32())
    columns = [~verdict.dropped, verdict.reason] + ([] if verdict.weight is None else [verdict.weight])
    lists = []
    for values in columns:
        spread = np.zeros(int(population.offsets[-1]), values.dtype)
        spread[population.place] = values
        lists.append(pa.ListArray.from_arrays(offsets, pa.array(spread)))
    return pa.table([population.seq_ids.combine_chunks(), *lists], schema=mask_schema(verdict.weight is not None))


def _write_parts(
    folder: Path, rule: Rule, source: OnDisk, resolved: Mapping[str, Resolved], settings: dict[str, Any]
) -> Totals:
    def judge_and_write(population: Targets) -> Totals:
        verdict = decide(rule, population, resolved, budget_of(rule, source.store, population))
        write_part(folder, population.part, mask_part(verdict), settings)
        return Totals.of(verdict)

    totals = Totals()
    with closing(source.each(judge_and_write, rule.columns)) as parts:
        for part in parts:
            totals.add(part)
    return totals


def budget_of(rule: Rule, store: Store, population: Targets) -> np.ndarray | None:
    """[R] how many tokens of each row the mask named by the rule's budget drops; None: the rule has no budget."""
    if rule.budget_mask is None:
        return None
    keep = copy(store).part(f"{MASKS}/{rule.budget_mask}", population.part, ["keep"])["keep"]
    kept = keep.combine_chunks().flatten().to_numpy(zero_copy_only=False)[population.place]
    return count_in_groups(~kept, population.sequence_starts)


def _settings(store: Store, rule: Rule, scorings: dict[str | None, str]) -> dict[str, Any]:
    """What the mask depends on: the rule's meaning and the fingerprint of everything it reads."""
    read = {name: store.scorings[name].manifest.fingerprint for name in scorings.values()}
    if rule.budget_mask is not None:
        read[f"masks/{rule.budget_mask}"] = store.masks[rule.budget_mask].manifest.fingerprint
    return {"schema_version": SCHEMA_VERSION, "store": store.fingerprint, "rule": rule.fingerprint, "scorings": read}


def _manifest(
    store: Store,
    rule: Rule,
    settings: dict[str, Any],
    scorings: Mapping[str | None, str],
    resolved: dict[str, Resolved],
    totals: Totals,
    folder: Path,
) -> MaskManifest:
    parts = tuple(
        Part(rows=p.rows, tokens=p.tokens, digest=digest_of(part_path(folder, i))) for i, p in enumerate(store.manifest.parts)
    )
    return MaskManifest(
        created=now(),
        parts=parts,
        fingerprint=hashlib.blake2b(json.dumps([settings, [p.digest for p in parts]]).encode(), digest_size=16).hexdigest(),
        store_fingerprint=store.fingerprint,
        rule=rule.to_dict(),
        rule_fingerprint=rule.fingerprint,
        scorings=settings["scorings"],
        scoring=scorings.get(None),
        thresholds=thresholds_of(resolved),
        scales=scales_of(resolved),
        clauses=tuple(Clause(text=text, dropped=int(totals.reasons[i])) for i, text in enumerate(rule.reasons)),
        targets=totals.targets,
        kept=totals.kept,
        protected=totals.protected,
        rows_with_nothing_kept=totals.rows_with_nothing_kept,
        rows_with_too_few=totals.rows_with_too_few,
        shortfall=totals.shortfall,
        weighted=rule.weighting is not None,
        weight_total=float(totals.weight.value) if rule.weighting is not None else None,
    )
