"""Checks of a store and a mask: what usually goes wrong before a fine-tuning run, and where to look."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log

from tokenstats.inspect.tally import MOST_ROWS, Tally
from tokenstats.store import Store
from tokenstats.store.manifests import MaskManifest, ScoringManifest

OK, WARNING, PROBLEM = "ok", "warning", "problem"

_MUCH = 0.1  # of rows: beyond this a loss of data is a problem, not a remark
_MOST = 0.5  # of tokens: a rule that drops more than it keeps deserves a second look
_GUESSING = 0.9  # of ln V: a model with a mean −log p above this knows next to nothing about the text


@dataclass(frozen=True)
class Finding:
    """One check. ``rows`` are up to ten sequences to look at, counted from 0 over the store, as ``show --row`` takes them."""

    name: str
    verdict: str
    message: str
    rows: tuple[int, ...] = ()


def judge_facts(store: Store, mask: MaskManifest | None, facts: Tally) -> list[Finding]:
    """All checks that apply, in a fixed order. ``kl`` and ``fit`` come once for each scoring."""
    findings = [*_of_tokenization(store, facts), *_of_sequences(store, facts)]
    for name in store.scorings():
        findings += _of_scoring(name, store.scoring(name)[1])
    return findings if mask is None else [*findings, *_of_mask(store, mask, facts)]


def _of_tokenization(store: Store, facts: Tally) -> Iterator[Finding]:
    whole, data, template = store.manifest, store.manifest.dataset, store.manifest.template
    text = f"{facts.targets / max(1, whole.tokens):.1%} of the tokens are targets, found by: {template.targets}"
    prompts = f"; {facts.learned_prompts:,} of them stand in prompts" if facts.learned_prompts else ""
    yield Finding("targets", PROBLEM if prompts else OK, text + prompts)

    lost = sum(data.dropped.values())
    text = f"all {data.rows:,} dataset rows are in"
    if lost:
        reasons = [f"{n:,} × {reason} (first: dataset row {data.first_dropped[reason]})" for reason, n in data.dropped.items()]
        text = f"{lost:,} of {data.rows:,} dataset rows were left out: {'; '.join(reasons)}"
    yield Finding("left_out_rows", _grade(lost, data.rows), text)

    text = f"{facts.truncated:,} of {whole.sequences:,} sequences were cut at {template.max_length} tokens: they have no end"
    yield _finding("truncated_rows", facts, "truncated", facts.truncated, whole.sequences, text, "no sequence was cut")


def _of_sequences(store: Store, facts: Tally) -> Iterator[Finding]:
    sequences = store.manifest.sequences
    if not store.manifest.tokenizer.end_of_turn_ids:
        yield Finding("end_of_turn", PROBLEM, "no end-of-turn token is known: the model is not taught to stop")
    else:
        text = f"{facts.unended:,} of {facts.replies:,} replies do not end with an end-of-turn token: nothing teaches to stop"
        clean = "every reply that was not cut ends with an end-of-turn token"
        yield _finding("end_of_turn", facts, "unended", facts.unended, facts.replies, text, clean)

    text = (
        f"{facts.special_inside:,} special tokens stand inside replies: right where the template writes them, as for tool "
        "calls, wrong where the data does"
    )
    clean = "no special token inside a reply"
    yield _finding("special_tokens", facts, "special_inside", facts.special_inside, None, text, clean)

    text = f"{facts.doubled_bos:,} of {sequences:,} sequences begin with two BOS tokens: template and tokenizer both add one"
    clean = "no sequence begins with two BOS tokens"
    yield _finding("doubled_bos", facts, "doubled_bos", facts.doubled_bos, sequences, text, clean)


def _of_scoring(name: str, scoring: ScoringManifest) -> Iterator[Finding]:
    kl, logprob = scoring.means.get("kl"), scoring.means.get("logprob")
    if kl is not None:
        # KL is never negative: a mean of zero means zeros everywhere
        zero = abs(kl) < 1e-9
        noise = "KL is 0 everywhere: model and reference answer alike, so its highest share is noise"
        yield Finding("kl", PROBLEM if zero else OK, f"scoring {name}: {noise if zero else f'KL has mean {kl:.4f} nats'}")
    if logprob is not None and scoring.vocabulary > 1:
        chance = log(scoring.vocabulary)
        guessing = -logprob > _GUESSING * chance
        text = f"scoring {name}: mean −log p is {-logprob:.3f} nats, chance would be {chance:.3f}"
        yield Finding("fit", WARNING if guessing else OK, text + "; is it the right model and template?" * guessing)


def _of_mask(store: Store, mask: MaskManifest, facts: Tally) -> Iterator[Finding]:
    share = facts.dropped / max(1, facts.targets)
    text = f"{facts.dropped:,} of {facts.targets:,} targets are dropped ({share:.1%})"
    hint = "; the rule has no effect" if not facts.dropped else "; more is dropped than learned" if share > _MOST else ""
    yield Finding("share_dropped", WARNING if hint else OK, text + hint)

    ends, dropped = facts.end_of_turn.tolist()
    text = f"{dropped:,} of {ends:,} end-of-turn targets are dropped: the model unlearns to stop; protect is_end_of_turn"
    clean = "no end-of-turn target is dropped"
    yield _finding("end_of_turn_dropped", facts, "end_of_turn_dropped", dropped, ends, text, clean)

    sequences = store.manifest.sequences
    text = f"{facts.nothing_kept:,} of {sequences:,} sequences keep nothing: they cost time and teach nothing"
    clean = "every sequence keeps something"
    yield _finding("nothing_kept", facts, "nothing_kept", facts.nothing_kept, sequences, text, clean)

    first = facts.first_dropped / max(1, facts.replies)
    text = f"the first token of {first:.0%} of the replies is dropped"
    hint = "; the model is hardly taught how to begin" if first > _MOST else ""
    yield Finding("reply_starts", WARNING if hint else OK, text + hint)

    stale = [name for name, fingerprint in mask.scorings.items() if _fingerprint(store, name) != fingerprint]
    text = f"made from other versions of: {', '.join(stale)}; make the mask again"
    yield Finding("mask_is_current", WARNING if stale else OK, text if stale else "made from what is there now")


def _finding(name: str, facts: Tally, rows: str, count: int, whole: int | None, bad: str, good: str) -> Finding:
    """A check that counts: graded by its share of ``whole``, a mere warning where there is none."""
    verdict = (WARNING if count else OK) if whole is None else _grade(count, whole)
    return Finding(name, verdict, bad if count else good, tuple(facts.rows[rows][:MOST_ROWS]))


def _grade(count: int, whole: int) -> str:
    return OK if not count else PROBLEM if count > _MUCH * whole else WARNING


def _fingerprint(store: Store, name: str) -> str | None:
    """The fingerprint of what a mask read, as it is now."""
    if name.startswith("masks/"):
        other = name.removeprefix("masks/")
        return store.mask(other)[1].fingerprint if other in store.masks() else None
    return store.scoring(name)[1].fingerprint if name in store.scorings() else None
