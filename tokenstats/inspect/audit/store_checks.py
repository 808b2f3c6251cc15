"""Checks of a store and its scorings: what usually goes wrong before a fine-tuning run, and where to look."""

from math import log

from tokenstats.inspect.audit.checks import NOTE, OK, PROBLEM, WARNING, Answer, Case, Made, check, counted
from tokenstats.inspect.audit.counts import END_OF_TURN
from tokenstats.schema import BY_COMPARISON, BY_TRAINING_TEMPLATE

_GUESSING = 0.9  # of ln V: a model with a mean −log p above this knows next to nothing about the text
_NOTHING, _ROUNDING = 1e-9, 1e-5  # nats: a mean KL below these is zero everywhere, or little more than rounding


@check(Made.ALWAYS)
def intact_parts(case: Case) -> Answer:
    """the bytes of every part that the audit rests on, against the digests in the manifests: problem where one was changed"""
    text = "every part that was read holds the bytes that its manifest recorded"
    if case.changed:
        names = ", ".join(str(path.relative_to(case.store.path)) for path in case.changed)
        text = f"changed after they were made: {names}; make them again"
    return Answer(PROBLEM if case.changed else OK, text, len(case.changed))


@check(Made.ALWAYS)
def template(case: Case) -> Answer:
    """how targets were found. Note where the chat template has no generation markers of its own. Also told: rows that lose
    reasoning, or write special tokens out"""
    data, template = case.store.manifest.dataset, case.store.manifest.template
    hint = {
        BY_COMPARISON: ": the chat template has no generation markers; look whether the stretches are right",
        BY_TRAINING_TEMPLATE: ": the chat template has no generation markers of its own",
    }.get(template.targets, "")
    rows = tuple(range(min(3, case.store.manifest.sequences))) if template.targets == BY_COMPARISON else ()
    noted = "".join(f"; {n:,} rows: {remark} (first: row {data.first_noted[remark]})" for remark, n in data.noted.items())
    return Answer(NOTE if hint else OK, f"targets were found by: {template.found_by}{hint}{noted}", rows=rows)


@check(Made.ALWAYS)
def targets(case: Case) -> Answer:
    """tokens of prompts among the targets: problem"""
    counts, whole = case.counts, case.counts.all.targets
    text = f"{whole:,} of {case.store.manifest.tokens:,} tokens are targets"
    prompts = f"; {counts.learned_prompts:,} of them stand in prompts" if counts.learned_prompts else ""
    rows = tuple(counts.rows["learned_prompts"])
    return Answer(PROBLEM if prompts else OK, text + prompts, counts.learned_prompts, whole, rows)


@check(Made.ALWAYS)
def left_out_rows(case: Case) -> Answer:
    """dataset rows that never became sequences, with the reasons"""
    data = case.store.manifest.dataset
    lost = sum(data.dropped.values())
    reasons = [f"{n:,} × {reason} (first: dataset row {data.first_dropped[reason]})" for reason, n in data.dropped.items()]
    bad = f"{lost:,} of {data.rows:,} dataset rows were left out: {'; '.join(reasons)}"
    return counted(lost, data.rows, bad, f"all {data.rows:,} dataset rows are in")


@check(Made.ALWAYS)
def truncated_rows(case: Case) -> Answer:
    """sequences cut at the maximal length, and replies in them that have no end"""
    whole, counts = case.store.manifest, case.counts
    bad = (
        f"{counts.truncated:,} of {whole.sequences:,} sequences were cut at {whole.template.max_length} tokens, "
        f"{counts.cut_replies:,} replies among them: they have no end"
    )
    return counted(counts.truncated, whole.sequences, bad, "no sequence was cut", counts.rows["truncated"])


@check(Made.ALWAYS)
def end_of_turn(case: Case) -> Answer:
    """replies, not cut, that do not end with an end-of-turn token; problem where no such token is known"""
    counts = case.counts
    if not case.store.manifest.tokenizer.end_of_turn_ids:
        return Answer(PROBLEM, "no end-of-turn token is known: the model is not taught to stop")
    bad = f"{counts.unended:,} of {counts.replies:,} replies do not end with an end-of-turn token: nothing teaches to stop"
    good = "every reply that was not cut ends with an end-of-turn token"
    return counted(counts.unended, counts.replies, bad, good, counts.rows["unended"])


@check(Made.ALWAYS)
def end_of_turn_learned(case: Case) -> Answer:
    """problem where not one end-of-turn token is learned"""
    ends, dropped = case.counts.by_place.counts[END_OF_TURN].tolist()
    if ends > dropped:
        return Answer(OK, f"{ends - dropped:,} end-of-turn tokens are learned", ends - dropped, ends)
    return Answer(PROBLEM, "no end-of-turn token is ever learned: the model is not taught to stop", ends - dropped, ends)


@check(Made.ALWAYS)
def special_tokens(case: Case) -> Answer:
    """special tokens inside replies: warning"""
    inside = case.counts.special_inside
    bad = (
        f"{inside:,} special tokens stand inside replies: right where the template writes them, as for tool "
        "calls, wrong where the data does"
    )
    good = "no special token inside a reply"
    return counted(inside, case.counts.all.targets, bad, good, case.counts.rows["special_inside"], WARNING)


@check(Made.ALWAYS)
def doubled_bos(case: Case) -> Answer:
    """sequences that begin with two BOS tokens"""
    doubled, sequences = case.counts.doubled_bos, case.store.manifest.sequences
    bad = f"{doubled:,} of {sequences:,} sequences begin with two BOS tokens: template and tokenizer both add one"
    return counted(doubled, sequences, bad, "no sequence begins with two BOS tokens", case.counts.rows["doubled_bos"])


@check(Made.ALWAYS)
def nothing_kept(case: Case) -> Answer:
    """sequences with nothing to learn"""
    empty, sequences = case.counts.all.rows_with_nothing_kept, case.store.manifest.sequences
    bad = f"{empty:,} of {sequences:,} sequences have nothing to learn: they cost time and teach nothing"
    return counted(empty, sequences, bad, "every sequence has something to learn", case.counts.rows["nothing_kept"])


@check(Made.OF_KL)
def kl(case: Case) -> Answer:
    """a KL of 0 everywhere: problem; a mean below 1e-5 nats, little more than rounding: warning"""
    mean = case.scoring.means["kl"]
    verdict, text = OK, f"KL has mean {mean:.4f} nats"
    if abs(mean) < _NOTHING:  # KL is never negative: a mean of zero means zeros everywhere
        verdict, text = PROBLEM, "KL is 0 everywhere: model and reference answer alike, so its highest share is noise"
    elif mean < _ROUNDING:
        verdict, text = WARNING, f"KL has mean {mean:.2g} nats: hardly more than rounding, so its highest share is noise"
    return Answer(verdict, f"scoring {case.about}: {text}")


@check(Made.OF_SCORING)
def fit(case: Case) -> Answer:
    """mean −log p above 0.9 of ln V, V the vocabulary: the model guesses: warning"""
    nll, chance = -case.scoring.means["logprob"], log(max(2, case.scoring.vocabulary))
    guessing = nll > _GUESSING * chance
    text = f"scoring {case.about}: mean −log p is {nll:.3f} nats, chance would be {chance:.3f}"
    return Answer(WARNING if guessing else OK, text + "; is it the right model and template?" * guessing)
