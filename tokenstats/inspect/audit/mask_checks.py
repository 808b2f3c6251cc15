"""Checks of a mask: what it costs, whom it hits hardest, and whether it still is what its rule says."""

from collections.abc import Iterator

import numpy as np

from tokenstats.inspect.audit.breakdown import Breakdown
from tokenstats.inspect.audit.counts import END_OF_TURN, FIRST, AuditCounts
from tokenstats.inspect.audit.store_checks import NOTE, OK, PROBLEM, WARNING, Finding, grade
from tokenstats.store import Store
from tokenstats.store.manifests import MaskManifest

_MOST = 0.5  # of tokens: a rule that drops more than it keeps deserves a second look
_NEARLY_ALL = 0.9  # of a group's tokens: the model hardly learns them
_OFTEN, _MORE = 2.0, 0.1  # times the share of all, and that much above it: a group that the rule is really about
_FEW = 0.01  # of all targets: a group as small as this is counted, but not judged


def check_mask(store: Store, mask: MaskManifest, facts: AuditCounts) -> Iterator[Finding]:
    """All checks that apply to a mask, in a fixed order."""
    stale = [name for name, fingerprint in mask.scorings.items() if _fingerprint(store, name) != fingerprint]
    text = f"made from other versions of: {', '.join(stale)}; make the mask again" if stale else "made from what is there now"
    yield Finding("mask_is_current", WARNING if stale else OK, text, len(stale), len(mask.scorings))
    yield _share_dropped(mask, facts)
    for what, groups in (
        ("role", facts.by_role),
        ("turn", facts.by_turn),
        ("position", facts.by_tenth),
        ("class", facts.by_class),
    ):
        yield _evenness(what, groups, facts)
    yield _reply_starts(facts)
    yield _end_of_turn(facts)
    if "min_kept" in mask.rule:
        yield _min_kept(store, mask, facts)
    if "budget" in mask.rule:
        text = f"draws in each row as many tokens as it should ({mask.rule['budget']})"
        lacking = f"{mask.shortfall:,} tokens fewer are dropped than its budget asks for: too few may be dropped"
        yield Finding("budget", WARNING if mask.shortfall else OK, lacking if mask.shortfall else text, mask.shortfall)
    if mask.weighted:
        yield _weights(facts)


def _share_dropped(mask: MaskManifest, facts: AuditCounts) -> Finding:
    share = facts.dropped / max(1, facts.targets)
    hint = "; more is dropped than learned" if share > _MOST else ""
    if not facts.dropped:
        hint = "; the rule only weighs" if mask.weighted else "; the rule has no effect"
    verdict = WARNING if hint and not (mask.weighted and not facts.dropped) else OK
    text = f"{facts.dropped:,} of {facts.targets:,} targets are dropped ({share:.1%})"
    return Finding("share_dropped", verdict, text + hint, facts.dropped, facts.targets)


def _evenness(what: str, groups: Breakdown, facts: AuditCounts) -> Finding:
    """Is a group of targets, large enough to count, dropped far more often than all are?"""
    name, whole = f"dropped_by_{what}", facts.dropped / max(1, facts.targets)
    judged = np.flatnonzero(groups.counts[:, 0] > _FEW * facts.targets)
    if not facts.dropped or not len(judged):
        return Finding(name, OK, "nothing is dropped")
    if len(judged) == 1:
        return Finding(name, OK, f"nearly all targets are of one {what}: {groups.labels[judged[0]]}")
    shares = groups.counts[judged, 1] / groups.counts[judged, 0]
    most, least = judged[shares.argmax()], judged[shares.argmin()]
    targets, dropped = groups.counts[most].tolist()
    text = f"most among {groups.labels[most]}: {shares.max():.1%}; least among {groups.labels[least]}: {shares.min():.1%}"
    verdict, rows = OK, tuple(groups.rows[most])
    if shares.max() > _NEARLY_ALL > whole:
        verdict, text = WARNING, f"{text}; {groups.labels[most]} is hardly learned"
    elif shares.max() > _OFTEN * whole and shares.max() > whole + _MORE:
        verdict, text = NOTE, f"{text}; of all targets {whole:.1%}"
    return Finding(name, verdict, text, dropped, targets, () if verdict == OK else rows)


def _reply_starts(facts: AuditCounts) -> Finding:
    starts, dropped = facts.by_place.counts[FIRST].tolist()
    share = dropped / max(1, starts)
    hint = "; the model is hardly taught how to begin" if share > _MOST else ""
    text = f"the first token of {share:.0%} of the replies is dropped{hint}"
    rows = tuple(facts.by_place.rows[FIRST]) if hint else ()
    return Finding("reply_starts", WARNING if hint else OK, text, dropped, starts, rows)


def _end_of_turn(facts: AuditCounts) -> Finding:
    ends, dropped = facts.by_place.counts[END_OF_TURN].tolist()
    text = "no end-of-turn target is dropped"
    if dropped:
        text = f"{dropped:,} of {ends:,} end-of-turn targets are dropped: the model unlearns to stop; protect is_end_of_turn"
    rows = tuple(facts.by_place.rows[END_OF_TURN])
    return Finding("end_of_turn_dropped", grade(dropped, ends), text, dropped, ends, rows)


def _min_kept(store: Store, mask: MaskManifest, facts: AuditCounts) -> Finding:
    """Rows dropped whole are known by the last clause; rows kept whole leave no trace but their number."""
    few, sequences = mask.rows_with_too_few, store.manifest.sequences
    kept = mask.rule.get("too_few") == "keep"
    text = f"{few:,} of {sequences:,} sequences would keep fewer than {mask.rule['min_kept']} tokens"
    text = (
        f"{text} and are {'kept' if kept else 'dropped'} whole"
        if few
        else f"every sequence keeps {mask.rule['min_kept']} tokens"
    )
    verdict = OK if not few else NOTE if kept else grade(few, sequences)
    rows = () if kept else tuple(facts.by_clause.rows[len(mask.clauses) - 1])
    return Finding("min_kept", verdict, text, few, sequences, rows)


def _weights(facts: AuditCounts) -> Finding:
    total, squares = facts.weights.tolist()
    kept = facts.targets - facts.dropped
    if not total:
        return Finding("weights", PROBLEM, "every weight is 0: nothing is learned", facts.weightless, kept)
    text = (
        f"the mean weight of the {kept:,} kept tokens is {total / kept:.3f}; "
        f"they count as {total * total / squares:,.0f} tokens of one weight"
    )
    hint = f"; {facts.weightless:,} have weight 0 and teach nothing" if facts.weightless else ""
    return Finding("weights", NOTE if hint else OK, text + hint, facts.weightless, kept, tuple(facts.rows["weightless"]))


def _fingerprint(store: Store, name: str) -> str | None:
    """The fingerprint of what a mask read, as it is now."""
    if name.startswith("masks/"):
        other = name.removeprefix("masks/")
        return store.masks[other].manifest.fingerprint if store.has(name) else None
    return store.scorings[name].manifest.fingerprint if store.has(f"stats/{name}") else None
