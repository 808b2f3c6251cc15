"""One round: the policy of a step is scored, the rule becomes a mask, and the mask is held beside the last one."""

from pathlib import Path

from tokenstats.computing import score_store
from tokenstats.errors import InputError, StoreError
from tokenstats.masking.build import build_mask
from tokenstats.masking.compare import compare
from tokenstats.masking.engine.counts import Counts
from tokenstats.masking.engine.decisions import stored_decisions
from tokenstats.masking.engine.targets import iter_targets
from tokenstats.rounds.plan import Plan
from tokenstats.rounds.record import Moved, Round, RoundClause
from tokenstats.scoring.workers import Worker
from tokenstats.store import Mask, Scoring, Store


def score_policy(plan: Plan, number: int, policy: str | Path, worker: Worker) -> None:
    """Score a policy for a round; what a killed run has done of it is taken up.

    Args:
        plan: The run.
        number: Of the round, from 0.
        policy: The model as it is after ``plan.starts[number]`` steps.
        worker: Which parts are this process's.

    Raises:
        InputError: The models cannot be scored.
        StoreError: The disk refuses, or what lies under the round's name is of something else.
    """
    how = plan.rounds.scoring(plan.options)
    name, reference = plan.name(number), plan.reference
    score_store(plan.store, model=str(policy), reference=reference, name=name, scoring=how, worker=worker)


def make_round(plan: Plan, number: int, last: Round | None) -> Round:
    """Make the mask of a policy that is scored, and hold it beside the last one.

    Args:
        plan: The run.
        number: Of the round, from 0.
        last: The round before, or None.

    Raises:
        InputError: The reference is not the last round's, or the rule cannot be evaluated.
        StoreError: The disk refuses, or what lies under the round's name is of something else.
    """
    name, store = plan.name(number), plan.store
    scoring = store.scorings[name]
    manifest = scoring.manifest
    reference = manifest.reference.fingerprint if manifest.reference is not None else None
    if last is not None and reference != last.reference:
        raise InputError(
            f"the reference {plan.reference} is another model than in {last.name}; put it back as it was, and remove "
            f"{scoring.folder} from {store.path}"
        )
    mask = build_mask(store, plan.rule, name, scoring=name)
    jaccard, weight_change, clauses = _beside(store, mask, last)
    return Round(
        name=name,
        step=plan.starts[number],
        policy=manifest.model.fingerprint,
        reference=reference,
        scoring=manifest.fingerprint,
        mask=mask.manifest.fingerprint,
        targets=mask.manifest.targets,
        kept=mask.manifest.kept,
        jaccard=jaccard,
        entropy=Moved(last.entropy.now if last is not None else None, manifest.means["entropy"]),
        kl=_kl(scoring, last),
        clauses=clauses,
        overlap=_overlap(store, name, len(plan.rule.clauses)),
        weight=None if (total := mask.manifest.weight_total) is None else total / max(1, mask.manifest.kept),
        weight_change=weight_change,
        settled=jaccard is not None and plan.rounds.until_jaccard is not None and jaccard >= plan.rounds.until_jaccard,
    )


def check_round(plan: Plan, made: Round) -> None:
    """Raise StoreError where a round that was made is no longer what it was."""
    found = plan.store.scorings[made.name].manifest.fingerprint, plan.store.masks[made.name].manifest.fingerprint
    if found != (made.scoring, made.mask):
        raise StoreError(
            f"{made.name} in {plan.store.path} is another scoring or mask than {plan.out} was trained with; put it back as it "
            "was, or begin anew in another folder and under other names"
        )


def _beside(store: Store, mask: Mask, last: Round | None) -> tuple[float | None, float | None, tuple[RoundClause, ...]]:
    """The Jaccard index of what this mask and the last one drop, how far their weights are apart, and the clauses."""
    if last is None:
        return None, None, tuple(RoundClause(clause.text, clause.dropped, None) for clause in mask.manifest.clauses)
    found = compare(store, mask.name, last.name)
    weight_change = found.weights.mean_absolute_change if found.weights is not None else None
    return (
        found.jaccard,
        weight_change,
        tuple(RoundClause(each.text, each.dropped, each.dropped_by_other) for each in found.a.clauses),
    )


def _kl(scoring: Scoring, last: Round | None) -> Moved | None:
    means = scoring.manifest.means
    if "kl" not in means:
        return None
    return Moved(last.kl.now if last is not None and last.kl is not None else None, means["kl"])


def _overlap(store: Store, mask: str, clauses: int) -> float:
    """Tokens that several clauses drop / tokens that any clause drops."""
    parts = (Counts.of(stored_decisions(store, mask, targets)) for targets in iter_targets(store, (), {}))
    return sum(parts, Counts()).overlap(clauses)
