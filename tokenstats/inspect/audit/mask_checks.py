"""Checks of a mask: what it costs, whom it hits hardest, and whether it still is what its rule says."""

import numpy as np

from tokenstats.inspect.audit.breakdown import Breakdown
from tokenstats.inspect.audit.checks import NOTE, OK, PROBLEM, WARNING, Answer, Case, Made, check, counted, grade
from tokenstats.inspect.audit.counts import END_OF_TURN, FIRST
from tokenstats.store import Store

_MOST = 0.5  # of tokens: a rule that drops more than it keeps deserves a second look
_NEARLY_ALL = 0.9  # of a group's tokens: the model hardly learns them
_OFTEN, _MORE = 2.0, 0.1  # times the share of all, and that much above it: a group that the rule is really about
_LITTLE = 0.02  # nats: below it all masks of docs/STUDY.md did harm, above it some helped and some did harm
_FAST = 1 / 3  # of the reference's −log p: in docs/STUDY.md, where one pass took more, all masks ended below plain SFT
_FEW = 0.01  # of all targets: a group as small as this is counted, but not judged


@check(Made.OF_MASK)
def mask_is_current(case: Case) -> Answer:
    """scorings or masks that it was made from and that have changed since, or are gone: warning"""
    read = case.mask.scorings
    now = {name: _fingerprint(case.store, name) for name in read}
    gone = [name for name in read if now[name] is None]
    changed = [name for name in read if now[name] not in (None, read[name])]
    text = [f"made from other versions of: {', '.join(changed)}; make the mask again"] if changed else []
    text += [f"made from what is no longer there: {', '.join(gone)}"] if gone else []
    return Answer(WARNING if text else OK, "; ".join(text) or "made from what is there now", len(gone + changed), len(read))


@check(Made.OF_MASK)
def share_dropped(case: Case) -> Answer:
    """nothing dropped, or more dropped than learned: warning"""
    counts, weighted = case.counts.all, case.mask.weighted
    hint = "; more is dropped than learned" if counts.share_dropped > _MOST else ""
    if not counts.dropped:
        hint = "; the rule only weighs" if weighted else "; the rule has no effect"
    verdict = WARNING if hint and not (weighted and not counts.dropped) else OK
    text = f"{counts.dropped:,} of {counts.targets:,} targets are dropped ({counts.share_dropped:.1%})"
    return Answer(verdict, text + hint, counts.dropped, counts.targets)


@check(Made.OF_SCORED_MASK)
def left_to_learn(case: Case) -> Answer:
    """a mean −log p of the kept tokens below 0.02 nats: warning ([why](STUDY.md#what-a-store-says-beforehand))"""
    counts, (kept, dropped) = case.counts.all, case.counts.sums["nll"]
    if not counts.kept or not counts.dropped:
        return Answer(OK, "nothing is kept" if counts.dropped else "nothing is dropped")
    mean = float(kept) / counts.kept
    text = f"mean −log p of what is kept is {mean:.3f} nats, of what is dropped {dropped / counts.dropped:.3f}"
    little = mean < _LITTLE
    return Answer(WARNING if little else OK, text + "; what is kept is known already: there is little left to learn" * little)


@check(Made.OF_COMPARED_MASK)
def learned_fast(case: Case) -> Answer:
    """tokens dropped, and a policy whose mean −log p of the targets is less than two thirds of the reference's: note
    ([why](STUDY.md#what-a-store-says-beforehand), and of which policies it speaks)"""
    targets, dropped = case.counts.all.targets, case.counts.all.dropped
    before, after = (float(case.counts.sums[name].sum()) / max(1, targets) for name in ("ref_nll", "nll"))
    share = 1 - after / before if before > 0 else 0.0
    text = f"mean −log p of the targets is {after:.3f} nats, under the reference {before:.3f}"
    fast = dropped > 0 and share > _FAST
    hint = f"; {share:.0%} less: where one pass of SFT learned so much, all masks tried ended below plain SFT (docs/STUDY.md)"
    return Answer(NOTE if fast else OK, text + hint * fast)


@check(Made.OF_MASK)
def dropped_by_role(case: Case) -> Answer:
    """a role dropped above 90 %, where all targets are not: warning; dropped more than twice as often as all targets and by 10
    points more: note. Groups of at most 1 % of the targets are counted, but not judged"""
    return _evenness(case, "role", case.counts.by_role)


@check(Made.OF_MASK)
def dropped_by_turn(case: Case) -> Answer:
    """the same of turns"""
    return _evenness(case, "turn", case.counts.by_turn)


@check(Made.OF_MASK)
def dropped_by_position(case: Case) -> Answer:
    """the same of tenths of the reply"""
    return _evenness(case, "position", case.counts.by_tenth)


@check(Made.OF_MASK)
def dropped_by_class(case: Case) -> Answer:
    """the same of classes of tokens"""
    return _evenness(case, "class", case.counts.by_class)


def _evenness(case: Case, what: str, groups: Breakdown) -> Answer:
    """Is a group of targets, large enough to count, dropped far more often than all are?"""
    whole = case.counts.all.share_dropped
    judged = np.flatnonzero(groups.counts[:, 0] > _FEW * case.counts.all.targets)
    if not case.counts.all.dropped or not len(judged):
        return Answer(OK, "nothing is dropped")
    if len(judged) == 1:
        return Answer(OK, f"nearly all targets are of one {what}: {groups.labels[judged[0]]}")
    shares = groups.counts[judged, 1] / groups.counts[judged, 0]
    most, least = judged[shares.argmax()], judged[shares.argmin()]
    targets, dropped = groups.counts[most].tolist()
    text = f"most among {groups.labels[most]}: {shares.max():.1%}; least among {groups.labels[least]}: {shares.min():.1%}"
    verdict, rows = OK, tuple(groups.rows[most])
    if shares.max() > _NEARLY_ALL > whole:
        verdict, text = WARNING, f"{text}; {groups.labels[most]} is hardly learned"
    elif shares.max() > _OFTEN * whole and shares.max() > whole + _MORE:
        verdict, text = NOTE, f"{text}; of all targets {whole:.1%}"
    return Answer(verdict, text, dropped, targets, () if verdict == OK else rows)


@check(Made.OF_MASK)
def reply_starts(case: Case) -> Answer:
    """the first token of more than half of the replies dropped: warning"""
    starts, dropped = case.counts.by_place.counts[FIRST].tolist()
    share = dropped / max(1, starts)
    hint = "; the model is hardly taught how to begin" if share > _MOST else ""
    text = f"the first token of {share:.0%} of the replies is dropped{hint}"
    rows = tuple(case.counts.by_place.rows[FIRST]) if hint else ()
    return Answer(WARNING if hint else OK, text, dropped, starts, rows)


@check(Made.OF_MASK)
def end_of_turn_dropped(case: Case) -> Answer:
    """end-of-turn targets that are dropped"""
    ends, dropped = case.counts.by_place.counts[END_OF_TURN].tolist()
    bad = f"{dropped:,} of {ends:,} end-of-turn targets are dropped: the model unlearns to stop; protect is_end_of_turn"
    return counted(dropped, ends, bad, "no end-of-turn target is dropped", case.counts.by_place.rows[END_OF_TURN])


@check(Made.OF_MIN_KEPT)
def min_kept(case: Case) -> Answer:
    """rows with too few tokens: dropped whole, or kept whole (note)"""
    # rows dropped whole are known by the last clause; rows kept whole leave no trace but their number
    few, sequences, rule = case.mask.rows_with_too_few, case.store.manifest.sequences, case.mask.rule
    kept = rule.get("too_few") == "keep"
    bad = (
        f"{few:,} of {sequences:,} sequences would keep fewer than {rule['min_kept']} tokens and are "
        f"{'kept' if kept else 'dropped'} whole"
    )
    rows = () if kept else case.counts.by_clause.rows[len(case.mask.clauses) - 1]
    verdict = NOTE if kept else grade(few, sequences)
    return counted(few, sequences, bad, f"every sequence keeps {rule['min_kept']} tokens", rows, verdict)


@check(Made.OF_BUDGET)
def budget(case: Case) -> Answer:
    """tokens that the budget asked for and that could not be dropped: warning"""
    shortfall = case.mask.shortfall
    bad = f"{shortfall:,} tokens fewer are dropped than its budget asks for: too few may be dropped"
    good = f"draws in each row as many tokens as it should ({case.mask.rule['budget']})"
    return Answer(WARNING if shortfall else OK, bad if shortfall else good, shortfall)


@check(Made.OF_WEIGHTS)
def weights(case: Case) -> Answer:
    """every weight 0: problem; kept tokens of weight 0: note"""
    found, kept = case.counts.weights, case.counts.all.kept
    if not found.total:
        return Answer(PROBLEM, "every weight is 0: nothing is learned", found.zero, kept)
    text = (
        f"the mean weight of the {kept:,} kept tokens is {found.mean:.3f}; "
        f"they count as {found.effective:,.0f} tokens of one weight"
    )
    hint = f"; {found.zero:,} have weight 0 and teach nothing" if found.zero else ""
    return Answer(NOTE if hint else OK, text + hint, found.zero, kept, tuple(case.counts.rows["weightless"]))


def _fingerprint(store: Store, name: str) -> str | None:
    """The fingerprint of what a mask read, as it is now."""
    if name.startswith("masks/"):
        other = name.removeprefix("masks/")
        return store.masks[other].manifest.fingerprint if store.has(name) else None
    return store.scorings[name].manifest.fingerprint if store.has(f"stats/{name}") else None
