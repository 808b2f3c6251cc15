"""From a rule to a stored mask: thresholds first, then part by part."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from tokenstats.errors import InputError, StoreError
from tokenstats.masking.evaluate import Threshold, Verdict, judge, resolve_thresholds
from tokenstats.masking.population import read_populations, resolve_scorings
from tokenstats.masking.rule import Rule
from tokenstats.schema import MASK_SCHEMA, SCHEMA_VERSION
from tokenstats.store import Store, check_name
from tokenstats.store.manifests import MANIFEST, Clause, MaskManifest, Part, now
from tokenstats.store.parts import digest_of, part_path, write_part


def build_mask(store: Store, rule: Rule, name: str, *, scoring: str | None = None, replace: bool = False) -> MaskManifest:
    """Decide for every target token of a store, and keep the answer as ``masks/<name>``.

    scoring: which scoring the rule's bare column names mean; not needed where the store has one
    replace: put the new mask in the place of another of the same name

    A mask that is there already, of the same rule and scorings, is left as it is. Raises RuleError where the rule
    reads what the store does not have, StoreError where the name is taken by another mask.
    """
    check_name(name, "mask")
    if name == "none":
        raise InputError("a mask cannot be called 'none': that means plain SFT, without a mask; choose another name")
    scorings = resolve_scorings(store, rule.columns, scoring)
    settings = _settings(store, rule, scorings)
    folder = store.path / "masks" / name
    draft, former = folder.parent / f".making-{name}", folder.parent / f".former-{name}"
    if former.exists() and not folder.exists():
        os.replace(former, folder)  # killed between taking the old mask away and putting the new one there
    if (folder / MANIFEST).exists() and not replace:
        found = MaskManifest.read(folder)
        if (found.store_fingerprint, found.rule_fingerprint, found.scorings) == (
            store.fingerprint,
            rule.fingerprint,
            settings["scorings"],
        ):
            return found
        raise StoreError(
            f"mask {name!r} is there already, of another rule or scoring ({found.rule.get('drop') or found.rule.get('keep')}); "
            "choose another name, or replace it with --replace"
        )
    read = partial(read_populations, store, rule.columns, scorings)
    thresholds = resolve_thresholds(rule, read)
    verdicts = (
        judge(rule, population, thresholds, budget) for population, budget in zip(read(), _budgets(store, rule), strict=True)
    )
    # built beside its place and moved there at the end: a killed run leaves no half-made mask
    shutil.rmtree(draft, ignore_errors=True)
    try:
        totals = _write_parts(draft, verdicts, store.part_count, settings, name)
        manifest = _manifest(store, rule, settings, thresholds, totals, draft)
        manifest.write(draft)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        os.replace(folder, former)
    os.replace(draft, folder)
    shutil.rmtree(former, ignore_errors=True)
    return manifest


@dataclass
class Totals:
    clauses: np.ndarray
    targets: int = 0
    kept: int = 0
    protected: int = 0
    rows_with_nothing_kept: int = 0


def keep_and_reason(verdict: Verdict) -> tuple[np.ndarray, np.ndarray]:
    """Spread a verdict over all tokens of its part: keep [tokens] boolean, reason [tokens] uint16."""
    population = verdict.population
    tokens = int(population.offsets[-1])
    keep, reason = np.zeros(tokens, bool), np.zeros(tokens, np.uint16)
    keep[population.place] = ~verdict.dropped
    reason[population.place] = verdict.reason
    return keep, reason


def _write_parts(folder: Path, verdicts: Iterator[Verdict], count: int, settings: dict[str, Any], name: str) -> Totals:
    totals = Totals(np.zeros(16, np.int64))
    for verdict in tqdm(verdicts, desc=f"mask {name}", total=count, unit=" parts", disable=None):
        population = verdict.population
        keep, reason = keep_and_reason(verdict)
        offsets = pa.array(population.offsets, pa.int32())
        lists = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (keep, reason)]
        write_part(
            folder, population.part, pa.table([population.seq_ids.combine_chunks(), *lists], schema=MASK_SCHEMA), settings
        )
        kept_by_row = np.diff(np.concatenate([[0], np.cumsum(~verdict.dropped)])[population.sequence_starts])
        totals.clauses += [np.count_nonzero(verdict.reason & (1 << bit)) for bit in range(16)]
        totals.targets += len(population)
        totals.kept += int(kept_by_row.sum())
        totals.protected += verdict.protected
        totals.rows_with_nothing_kept += int(np.count_nonzero(kept_by_row == 0))
    return totals


def _budgets(store: Store, rule: Rule) -> Iterator[np.ndarray | None]:
    """Per part, how many tokens of each row the mask named by the rule's budget drops (None: the rule has no budget)."""
    other = rule.budget_mask
    if other is None:
        yield from [None] * store.part_count
        return
    other, _ = store.mask(other)
    for tables in store.aligned({"tokens": ["is_target"], f"masks/{other}": ["keep"]}):
        target = tables["tokens"]["is_target"].combine_chunks()
        offsets = target.offsets.to_numpy()
        flags = target.flatten().to_numpy(zero_copy_only=False).copy()
        flags[offsets[:-1]] = False
        kept = tables[f"masks/{other}"]["keep"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        yield np.diff(np.concatenate([[0], np.cumsum(flags & ~kept)])[offsets])


def _settings(store: Store, rule: Rule, scorings: dict[str | None, str]) -> dict[str, Any]:
    """What the mask depends on: the rule's meaning and the fingerprint of everything it reads."""
    read = {name: store.scoring(name)[1].fingerprint for name in scorings.values()}
    if rule.budget_mask is not None:
        read[f"masks/{rule.budget_mask}"] = store.mask(rule.budget_mask)[1].fingerprint
    return {"schema_version": SCHEMA_VERSION, "store": store.fingerprint, "rule": rule.fingerprint, "scorings": read}


def _manifest(
    store: Store, rule: Rule, settings: dict[str, Any], thresholds: dict[str, Threshold], totals: Totals, folder: Path
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
        thresholds={text: t.value for text, t in thresholds.items() if t.value is not None},
        clauses=tuple(Clause(text=c.text, dropped=int(totals.clauses[i])) for i, c in enumerate(rule.clauses)),
        targets=totals.targets,
        kept=totals.kept,
        protected=totals.protected,
        rows_with_nothing_kept=totals.rows_with_nothing_kept,
    )
