"""What a run with terms, metrics or a followed rule needs beyond a plain one: its sets of tokens, reference and objective."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import TrainingArguments

from tokenstats.errors import InputError, TokenstatsWarning, argument
from tokenstats.modeling.load import is_adapter_of
from tokenstats.options import refuse
from tokenstats.store.manifests import Model
from tokenstats.training.data import TokenRows, TrainingData
from tokenstats.training.mixture import Source
from tokenstats.training.models import TrainableModel, check_tokenizer
from tokenstats.training.objective import Objective
from tokenstats.training.options import ALL_TARGETS, TrainOptions
from tokenstats.training.reference import ModelBeside, Reference, load_reference, without_adapter
from tokenstats.training.reference_cache import CachedStates, RowsToKeep, make_cache
from tokenstats.training.request import Request
from tokenstats.training.selection import FollowedRule, Selector
from tokenstats.training.terms import OF_REFERENCE, Depth, Terms, plan_terms
from tokenstats.training.token_sets import ENTROPY, KEPT, KL, TARGET, TokenChoice, TokenSets, choose_tokens

_PROBE_TOKENS = 32


@dataclass(frozen=True)
class Plan:
    """What a run works out besides the cross-entropy of its kept tokens.

    Attributes:
        model: What is trained, as it was given.
        sets: Of each store.
        follow: The rule that is followed, or None.
        has_mask: Is there a stored mask?
    """

    model: str
    options: TrainOptions
    terms: Terms
    sets: tuple[TokenSets, ...]
    follow: Selector | None
    has_mask: bool

    @property
    def adapter_off(self) -> bool:
        """Is the reference the model below the adapter that is trained?"""
        reference = self.options.reference
        if not self.options.trains_adapter or reference is None:
            return self.options.trains_adapter
        return is_adapter_of(self.model, reference) if self.options.continue_adapter else reference == self.model


def plan_run(request: Request) -> Plan | None:
    """What a run works out, or None for the cross-entropy alone.

    Raises:
        InputError: A choice of tokens is none, nothing reads the reference, a rule needs one that is not there, or weights are
            to be divided by that are not there.
    """
    options, follow = request.options, request.follow
    if follow is not None and len(request.sources) > 1:
        raise InputError(f"{argument('follow')} was given with {len(request.sources)} stores; a rule follows in one alone")
    if not request.weighted:
        refuse(options, "normalise", because=f"{request.decided_by} does not weigh its tokens; leave it out")
    reads = follow.columns if follow is not None else None
    wants_reference = bool(reads and reads & OF_REFERENCE)
    needs_kl = options.kl_penalty > 0 or options.evaluates_kl
    has_reference = options.reference is not None or needs_kl or (options.trains_adapter and wants_reference)
    if wants_reference and not has_reference:
        raise InputError(
            f"the rule that is followed reads {', '.join(sorted(reads & OF_REFERENCE)) if reads else ''}; expected "
            f"{argument('reference')} with it"
        )
    by_weights = request.weighted and options.normalise == "weights"
    terms = plan_terms(options, has_reference=has_reference, by_weights=by_weights, reads=reads)
    if not terms.reads_reference:
        nobody = f"nothing reads it: {argument('kl_penalty')} is 0, {argument('metrics')} only tells the loss"
        refuse(options, "reference", "reference_cache", because=f"{nobody}, and no rule is followed that reads a KL")
    watched = options.evaluates_kl or options.best_by == "eval_accuracy"
    if not (options.entropy_bonus or options.kl_penalty or options.has_metrics or watched or follow is not None):
        return None
    sets = tuple(_token_sets(options, source, follow) for source in request.sources)
    clauses = {_clauses_of(source, follow) for source in request.sources}
    if options.metrics == ALL_TARGETS and len(clauses) == 1:  # clauses of other texts have nothing in common but a number
        sets = tuple(replace(each, clauses=len(next(iter(clauses)))) for each in sets)
    return Plan(request.model, options, terms, sets, follow, any(source.mask.name is not None for source in request.sources))


def _token_sets(options: TrainOptions, source: Source, follow: Selector | None) -> TokenSets:
    of = "the rule that is followed" if follow is not None else f"mask {source.mask.title!r}"
    clauses = _clauses_of(source, follow)

    def choice(option: str, text: str | None) -> TokenChoice | None:
        return None if text is None else choose_tokens(option, text, clauses, of, source.store)

    learned = KEPT | (ENTROPY if options.entropy_bonus else 0) | (KL if options.kl_penalty else 0)
    return TokenSets(
        entropy_on=choice("entropy_on", options.entropy_on),
        kl_on=choice("kl_on", options.kl_on),
        learned=TARGET if follow is not None else learned,
        follows=follow is not None,
    )


def _clauses_of(source: Source, follow: Selector | None) -> tuple[str, ...]:
    """The texts of the clauses that decide what is dropped."""
    if follow is not None:
        return follow.clauses
    return tuple(clause.text for clause in source.mask.manifest.clauses) if source.mask.manifest is not None else ()


def build_objective(
    plan: Plan, loaded: TrainableModel, request: Request, data: TrainingData, arguments: TrainingArguments
) -> tuple[Objective, Model | None]:
    """The objective of a run, and what its reference is.

    Raises:
        InputError: The reference does not fit, or its cache is of something else.
    """
    vocabulary = request.store.manifest.tokenizer.size
    reference, description = None, None
    if plan.terms.reads_reference:
        reference, description = _reference(plan, loaded, request, data, arguments)
    followed = FollowedRule(plan.follow, plan.sets[0], plan.has_mask) if plan.follow is not None else None
    if description is not None and plan.follow is not None:
        _warn_where_kl_begins_at_0(plan.follow, loaded.description, description)
    return Objective(loaded.split, plan.terms, vocabulary, reference, followed, plan.sets[0].clauses), description


def _reference(
    plan: Plan, loaded: TrainableModel, request: Request, data: TrainingData, arguments: TrainingArguments
) -> tuple[Reference, Model]:
    options, store = plan.options, request.store
    if plan.adapter_off:
        split, description = without_adapter(loaded.model), loaded.below
        split.is_split = loaded.split.is_split
    else:
        assert options.reference is not None
        check_tokenizer(store, options.reference, options.trust_remote_code)
        dtype = str(loaded.model.dtype).removeprefix("torch.")  # then the start's own distribution is the start's, to the bit
        longest = max(data.train.longest, data.evaluation.longest if data.evaluation else 0)
        probe = torch.from_numpy(data.train.ids[:_PROBE_TOKENS]).long()[None]
        vocabulary, trusted = store.manifest.tokenizer.size, options.trust_remote_code
        split, description = load_reference(
            options.reference, dtype, arguments.device, options.attention, trusted, vocabulary, probe, longest
        )
    if options.reference_cache is None:
        split.padding_free = plan.adapter_off and loaded.split.padding_free  # of another model nobody has shown that it may
        return ModelBeside(split), description
    folder = Path(options.reference_cache).expanduser()
    origin = {"store": request.fingerprint, "reference": description.fingerprint}
    make_cache(
        folder, split, _rows_to_keep(plan.terms, data), origin, arguments.bf16, arguments.process_index, arguments.world_size
    )
    if arguments.world_size > 1:
        torch.distributed.barrier()
    if not plan.adapter_off:
        split.release_body()
    return CachedStates(folder, split, arguments.device), description


def _rows_to_keep(terms: Terms, data: TrainingData) -> RowsToKeep:
    """The tokens whose reference is asked for, in training and in evaluation."""
    kept = [_chosen(data.train, terms.training)]
    if data.evaluation is not None:
        kept.append(_chosen(data.evaluation, terms.evaluation))
    return RowsToKeep.joined(kept)


def _chosen(rows: TokenRows, table: tuple[Depth, ...]) -> RowsToKeep:
    assert rows.sets is not None
    return RowsToKeep(rows.keys, rows.ids, rows.offsets, np.array(table)[rows.sets] == Depth.BOTH)


def _warn_where_kl_begins_at_0(follow: Selector, policy: Model, reference: Model) -> None:
    if follow.columns & OF_REFERENCE and policy.fingerprint == reference.fingerprint:
        warnings.warn(
            "the training starts from the reference itself: in the first steps every KL is 0 or nearly so, and what the rule "
            "selects by it is chance; start from a policy that has moved, such as a warm-up",
            TokenstatsWarning,
            stacklevel=2,
        )
