"""Checks of a store and its scorings: what usually goes wrong before a fine-tuning run, and where to look."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path

from tokenstats.inspect.audit.counts import END_OF_TURN, AuditCounts
from tokenstats.schema import BY_COMPARISON, BY_TRAINING_TEMPLATE
from tokenstats.store import Store
from tokenstats.store.manifests import ScoringManifest

OK, NOTE, WARNING, PROBLEM = VERDICTS = ("ok", "note", "warning", "problem")
"""From nothing to say to stop and mend it. A note is worth knowing, and may be meant."""

ALWAYS, OF_SCORING, OF_KL = "always", "for each scoring", "for each scoring with a reference"
OF_MASK, OF_MIN_KEPT, OF_BUDGET, OF_WEIGHTS = (
    "for a mask",
    "for a mask with min_kept",
    "for a mask with a budget",
    "for a mask that weighs",
)

CHECKS = {
    "intact_parts": ALWAYS,
    "template": ALWAYS,
    "targets": ALWAYS,
    "left_out_rows": ALWAYS,
    "truncated_rows": ALWAYS,
    "end_of_turn": ALWAYS,
    "end_of_turn_learned": ALWAYS,
    "special_tokens": ALWAYS,
    "doubled_bos": ALWAYS,
    "nothing_kept": ALWAYS,
    "kl": OF_KL,
    "fit": OF_SCORING,
    "mask_is_current": OF_MASK,
    "share_dropped": OF_MASK,
    "dropped_by_role": OF_MASK,
    "dropped_by_turn": OF_MASK,
    "dropped_by_position": OF_MASK,
    "dropped_by_class": OF_MASK,
    "reply_starts": OF_MASK,
    "end_of_turn_dropped": OF_MASK,
    "min_kept": OF_MIN_KEPT,
    "budget": OF_BUDGET,
    "weights": OF_WEIGHTS,
}
"""Every check, in the order of the audit, and when it is made."""

_MUCH = 0.1  # of rows: beyond this a loss of data is a problem, not a remark
_GUESSING = 0.9  # of ln V: a model with a mean −log p above this knows next to nothing about the text
_NOTHING, _ROUNDING = 1e-9, 1e-5  # nats: a mean KL below these is zero everywhere, or little more than rounding


@dataclass(frozen=True)
class Finding:
    """One check and its verdict.

    about:     the scoring that is judged, for the checks that come once for each; else None
    count, of: what was counted, and of how many; None where the check counts nothing
    rows:      up to ten sequences to look at, counted from 0 over the store, as ``show`` takes them
    """

    name: str
    verdict: str
    message: str
    count: int | None = None
    of: int | None = None
    rows: tuple[int, ...] = ()
    about: str | None = None


def worst(verdicts: Iterator[str]) -> str:
    return max(verdicts, key=VERDICTS.index, default=OK)


def grade(count: int, whole: int) -> str:
    """Some are a warning, more than a tenth of them a problem."""
    return OK if not count else PROBLEM if count > _MUCH * whole else WARNING


def counted(
    name: str, facts: AuditCounts, rows: str, count: int, whole: int, bad: str, good: str, verdict: str = ""
) -> Finding:
    """A check that counts: graded by its share of ``whole``, where no verdict is given."""
    return Finding(
        name, (verdict or grade(count, whole)) if count else OK, bad if count else good, count, whole, tuple(facts.rows[rows])
    )


def check_store(store: Store, facts: AuditCounts, changed: list[Path]) -> Iterator[Finding]:
    """Checks of the tokens and of every scoring. ``changed``: parts whose digests are not those of their manifests."""
    yield from _of_tokenization(store, facts, changed)
    yield from _of_sequences(store, facts)
    store.scorings.check_all_listed()
    for name in store.scorings:
        yield from _of_scoring(name, store.scorings[name].manifest)


def _of_tokenization(store: Store, facts: AuditCounts, changed: list[Path]) -> Iterator[Finding]:
    whole, data, template = store.manifest, store.manifest.dataset, store.manifest.template
    text = "every part that was read holds the bytes that its manifest recorded"
    if changed:
        names = ", ".join(str(path.relative_to(store.path)) for path in changed)
        text = f"changed after they were made: {names}; make them again"
    yield Finding("intact_parts", PROBLEM if changed else OK, text, len(changed))

    compared = template.targets == BY_COMPARISON
    hint = {
        BY_COMPARISON: ": the chat template has no generation markers; look whether the stretches are right",
        BY_TRAINING_TEMPLATE: ": the chat template has no generation markers of its own",
    }.get(template.targets, "")
    rows = tuple(range(min(3, whole.sequences))) if compared else ()
    noted = "".join(f"; {n:,} rows: {remark} (first: row {data.first_noted[remark]})" for remark, n in data.noted.items())
    yield Finding("template", NOTE if hint else OK, f"targets were found by: {template.targets}{hint}{noted}", rows=rows)

    text = f"{facts.targets:,} of {whole.tokens:,} tokens are targets"
    prompts = f"; {facts.learned_prompts:,} of them stand in prompts" if facts.learned_prompts else ""
    rows = tuple(facts.rows["learned_prompts"])
    yield Finding("targets", PROBLEM if prompts else OK, text + prompts, facts.learned_prompts, facts.targets, rows)

    lost = sum(data.dropped.values())
    text = f"all {data.rows:,} dataset rows are in"
    if lost:
        reasons = [f"{n:,} × {reason} (first: dataset row {data.first_dropped[reason]})" for reason, n in data.dropped.items()]
        text = f"{lost:,} of {data.rows:,} dataset rows were left out: {'; '.join(reasons)}"
    yield Finding("left_out_rows", grade(lost, data.rows), text, lost, data.rows)

    text = (
        f"{facts.truncated:,} of {whole.sequences:,} sequences were cut at {template.max_length} tokens, "
        f"{facts.cut_replies:,} replies among them: they have no end"
    )
    yield counted("truncated_rows", facts, "truncated", facts.truncated, whole.sequences, text, "no sequence was cut")


def _of_sequences(store: Store, facts: AuditCounts) -> Iterator[Finding]:
    sequences = store.manifest.sequences
    if not store.manifest.tokenizer.end_of_turn_ids:
        yield Finding("end_of_turn", PROBLEM, "no end-of-turn token is known: the model is not taught to stop")
    else:
        text = f"{facts.unended:,} of {facts.replies:,} replies do not end with an end-of-turn token: nothing teaches to stop"
        clean = "every reply that was not cut ends with an end-of-turn token"
        yield counted("end_of_turn", facts, "unended", facts.unended, facts.replies, text, clean)

    ends, dropped = facts.by_place.counts[END_OF_TURN].tolist()
    text = f"{ends - dropped:,} end-of-turn tokens are learned"
    never = "no end-of-turn token is ever learned: the model is not taught to stop"
    yield Finding(
        "end_of_turn_learned", OK if ends > dropped else PROBLEM, text if ends > dropped else never, ends - dropped, ends
    )

    text = (
        f"{facts.special_inside:,} special tokens stand inside replies: right where the template writes them, as for tool "
        "calls, wrong where the data does"
    )
    clean = "no special token inside a reply"
    yield counted("special_tokens", facts, "special_inside", facts.special_inside, facts.targets, text, clean, WARNING)

    text = f"{facts.doubled_bos:,} of {sequences:,} sequences begin with two BOS tokens: template and tokenizer both add one"
    clean = "no sequence begins with two BOS tokens"
    yield counted("doubled_bos", facts, "doubled_bos", facts.doubled_bos, sequences, text, clean)

    text = f"{facts.nothing_kept:,} of {sequences:,} sequences have nothing to learn: they cost time and teach nothing"
    clean = "every sequence has something to learn"
    yield counted("nothing_kept", facts, "nothing_kept", facts.nothing_kept, sequences, text, clean)


def _of_scoring(name: str, scoring: ScoringManifest) -> Iterator[Finding]:
    kl, logprob = scoring.means.get("kl"), scoring.means.get("logprob")
    if kl is not None:
        verdict, text = OK, f"KL has mean {kl:.4f} nats"
        if abs(kl) < _NOTHING:  # KL is never negative: a mean of zero means zeros everywhere
            verdict, text = PROBLEM, "KL is 0 everywhere: model and reference answer alike, so its highest share is noise"
        elif kl < _ROUNDING:
            verdict, text = WARNING, f"KL has mean {kl:.2g} nats: hardly more than rounding, so its highest share is noise"
        yield Finding("kl", verdict, f"scoring {name}: {text}", about=name)
    if logprob is not None and scoring.vocabulary > 1:
        chance = log(scoring.vocabulary)
        guessing = -logprob > _GUESSING * chance
        text = f"scoring {name}: mean −log p is {-logprob:.3f} nats, chance would be {chance:.3f}"
        hint = "; is it the right model and template?" * guessing
        yield Finding("fit", WARNING if guessing else OK, text + hint, about=name)
