"""From a rule to a stored mask: thresholds first, then part by part."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tokenstats.errors import InputError, StoreError, TokenstatsWarning, argument, one_line
from tokenstats.masking.engine.aggregates import Aggregates, scales_of, thresholds_of
from tokenstats.masking.engine.counts import Counts
from tokenstats.masking.engine.decisions import Decisions, decide, stored_decisions
from tokenstats.masking.engine.group_ops import count_in_groups
from tokenstats.masking.engine.part_reader import OnDisk, worker_count
from tokenstats.masking.engine.resolve import resolve_rules
from tokenstats.masking.engine.targets import Targets, check_scoring_is_read, resolve_scorings
from tokenstats.masking.rule import Rule, rule_text
from tokenstats.schema import SCHEMA_VERSION, mask_schema
from tokenstats.store import Mask, Store, check_name, open_store
from tokenstats.store.drafts import draft_of, put_in_place
from tokenstats.store.families import MASKS
from tokenstats.store.lists import as_lists
from tokenstats.store.manifests import Clause, MaskManifest, Part, now
from tokenstats.store.parts import digest_of, part_path, write_part


def build_mask(
    store: Store | str | Path,
    rule: Rule,
    name: str,
    *,
    scoring: str | None = None,
    replace: bool = False,
    workers: int | None = None,
) -> Mask:
    """Decide for every target token of a store, and keep the answer as ``masks/<name>``.

    A mask that is there already, of the same rule and scorings, is left as it is.

    Args:
        store: A store, or its path.
        rule: What to drop, protect and weigh.
        name: Of the mask.
        scoring: Which scoring the rule's bare column names mean; not needed where the store has one.
        replace: Put the new mask in the place of another of the same name. Whoever reads meanwhile sees the one or the other.
        workers: Threads, each with one part in memory; by default one a processor, up to 8. The mask is the same with any.

    Returns:
        The mask, its ``manifest`` with what it drops.

    Raises:
        InputError: A name that cannot be used, or a scoring chosen for a rule that reads no statistics.
        RuleError: The rule reads what the store does not have.
        StoreError: The name is taken by another mask, or the disk refuses.
    """
    store = open_store(store)
    check_name(name, "mask")
    if name == "none":
        raise InputError("a mask cannot be called 'none': that means plain SFT, without a mask; choose another name")
    if rule.budget_mask == name:
        raise InputError(f"mask {name!r} cannot have the budget of itself; choose another name for it, or another budget")
    check_scoring_is_read(scoring, rule.columns)
    scorings = resolve_scorings(store, rule.columns, scoring)
    settings = _settings(store, rule, scorings)
    folder = store.path / MASKS / name
    if store.has(f"{MASKS}/{name}") and not replace:
        return _same_mask(store, name, rule, settings, scorings.get(None))
    _warn_of_a_control_that_is_none(store, rule)
    reader = OnDisk(store, scorings, worker_count(workers), f"mask {name}")
    aggregates = resolve_rules([rule], reader)
    # built beside its place and moved there at the end: a killed run leaves no half-made mask
    try:
        with draft_of(folder) as draft:
            counts = _write_parts(draft, rule, reader, aggregates, settings)
            _manifest(store, rule, settings, scorings.get(None), aggregates, counts, _parts(store, draft)).write(draft)
            if not replace and store.has(f"{MASKS}/{name}"):  # another run was faster
                return _same_mask(store, name, rule, settings, scorings.get(None))
            put_in_place(draft, folder)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}; mend its rights") from error
    finally:
        store.forget(f"{MASKS}/{name}")
    return store.masks[name]


def _warn_of_a_control_that_is_none(store: Store, rule: Rule) -> None:
    if rule.budget_mask is None:
        return
    model, name = store.masks[rule.budget_mask].manifest, rule.budget_mask
    said = None
    if model.kept == model.targets:
        said = f"mask {name!r} drops nothing, so that a control with its budget is plain SFT"
    elif model.weighted and rule.weighting is None:
        said = f"mask {name!r} weighs what it keeps; a control with its budget does not, and stands for what is dropped alone"
    if said is not None:
        warnings.warn(said, TokenstatsWarning, stacklevel=3)


def _same_mask(store: Store, name: str, rule: Rule, settings: dict[str, Any], scoring: str | None) -> Mask:
    """The mask of that name, where it is of this rule and these scorings, and whole."""
    store.forget(f"{MASKS}/{name}")
    mask = store.masks[name]
    found = mask.manifest
    there = found.store_fingerprint, found.rule_fingerprint, found.scorings, found.scoring or scoring
    if there != (store.fingerprint, rule.fingerprint, settings["scorings"], scoring):
        raise StoreError(
            f"mask {name!r} is there already, of another rule or scoring ({one_line(rule_text(found.rule), 80)}); "
            f"choose another name, or replace it with {argument('replace', True)}"
        )
    store.verify(mask.folder)
    return mask


def mask_part(decisions: Decisions) -> pa.Table:
    """One part of a mask: decisions on the targets, spread over all tokens; False and 0 where a token is no target."""
    targets = decisions.targets
    columns = [~decisions.dropped, decisions.reason] + ([] if decisions.weight is None else [decisions.weight])
    lists = [as_lists(targets.spread(values), targets.offsets) for values in columns]
    return pa.table([targets.seq_ids.combine_chunks(), *lists], schema=mask_schema(decisions.weight is not None))


def _write_parts(folder: Path, rule: Rule, reader: OnDisk, aggregates: Aggregates, settings: dict[str, Any]) -> Counts:
    def decide_and_write(targets: Targets) -> Counts:
        decisions = decide(rule, targets, aggregates, budget_of(rule, reader.store, targets))
        write_part(folder, targets.part, mask_part(decisions), settings)
        return Counts.of(decisions)

    with closing(reader.each(decide_and_write, rule.columns)) as parts:
        return sum(parts, Counts())


def budget_of(rule: Rule, store: Store, targets: Targets) -> np.ndarray | None:
    """How many tokens of each row the mask named by the rule's budget drops, [R]; None where the rule has no budget."""
    if rule.budget_mask is None:
        return None
    return count_in_groups(stored_decisions(store, rule.budget_mask, targets).dropped, targets.sequence_starts)


def _settings(store: Store, rule: Rule, scorings: Mapping[str | None, str]) -> dict[str, Any]:
    """What the mask depends on: the rule's meaning and the fingerprint of everything it reads."""
    read = {name: store.scorings[name].manifest.fingerprint for name in scorings.values()}
    if rule.budget_mask is not None:
        budget = store.masks[rule.budget_mask]
        read[budget.folder] = budget.manifest.fingerprint
    return {"schema_version": SCHEMA_VERSION, "store": store.fingerprint, "rule": rule.fingerprint, "scorings": read}


def _parts(store: Store, folder: Path) -> tuple[Part, ...]:
    there = enumerate(store.manifest.parts)
    return tuple(Part(rows=p.rows, tokens=p.tokens, digest=digest_of(part_path(folder, i))) for i, p in there)


def _manifest(
    store: Store,
    rule: Rule,
    settings: dict[str, Any],
    scoring: str | None,
    aggregates: Aggregates,
    counts: Counts,
    parts: tuple[Part, ...],
) -> MaskManifest:
    weighted = rule.weighting is not None
    return MaskManifest(
        created=now(),
        parts=parts,
        fingerprint=hashlib.blake2b(json.dumps([settings, [p.digest for p in parts]]).encode(), digest_size=16).hexdigest(),
        store_fingerprint=store.fingerprint,
        rule=rule.to_dict(),
        rule_fingerprint=rule.fingerprint,
        scorings=settings["scorings"],
        scoring=scoring,
        thresholds=thresholds_of(aggregates),
        scales=scales_of(aggregates),
        clauses=tuple(Clause(text=text, dropped=int(counts.by_reason[i])) for i, text in enumerate(rule.reasons)),
        targets=counts.targets,
        kept=counts.kept,
        protected=counts.rescued,
        rows_with_nothing_kept=counts.rows_with_nothing_kept,
        rows_with_too_few=counts.rows_with_too_few,
        shortfall=counts.shortfall,
        weighted=weighted,
        weight_total=float(counts.weight.value) if weighted else None,
    )
