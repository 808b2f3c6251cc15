"""Fine-tune a model on the tokens that a mask keeps, weighted where the mask weighs them.

    train("runs/store", model="models/base", mask="eksft", out="runs/eksft")                       # the whole model
    train("runs/store", model="models/base", mask="none", out="runs/plain",                        # an adapter
          options=TrainOptions(lora_rank=16, eval_share=0.05))

Under ``torchrun`` each process trains on its own share of every batch (data parallel), to the same weights.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, TrainingArguments

from tokenstats.errors import InputError, argument, one_line
from tokenstats.modeling.positions import width_classes
from tokenstats.store import Store, open_store
from tokenstats.store.drafts import claimed
from tokenstats.store.parts import write_json
from tokenstats.training.arguments import check_schedule, rising_steps, trainer_arguments
from tokenstats.training.batching import BatchPlan, OptimizerBatches
from tokenstats.training.callbacks import Callback, callbacks_of, check_callbacks
from tokenstats.training.data import load_training_data
from tokenstats.training.history import HISTORY, History, history_of
from tokenstats.training.legs import Leg
from tokenstats.training.loop import MaskedTrainer
from tokenstats.training.metrics import Meter
from tokenstats.training.mixture import MixedRows, check_shares, choose_sources
from tokenstats.training.models import TrainableModel, check_tokenizer, load_store_tokenizer, load_trainable
from tokenstats.training.objective import Objective
from tokenstats.training.options import TrainOptions
from tokenstats.training.picture import draw_run
from tokenstats.training.record import Record, record_of
from tokenstats.training.request import Request
from tokenstats.training.resume import (
    OF_ALL_LEGS,
    check_same_run,
    clear_pieces,
    find_checkpoint,
    has_ended,
    last_checkpoint,
    state_of,
)
from tokenstats.training.selection import Selector
from tokenstats.training.setup import Plan, build_objective, plan_run
from tokenstats.training.summary import TrainSummary, summary_of


@dataclass(frozen=True)
class Prepared:
    """All that a run is made from, loaded and checked."""

    rows: MixedRows
    loaded: TrainableModel
    batches: OptimizerBatches
    objective: Objective | None
    record: Record
    tokenizer: PreTrainedTokenizerFast


def train(
    store: Store | str | Path | Sequence[Store | str | Path],
    *,
    model: str | Path,
    out: str | Path,
    mask: str | Sequence[str | None] | None,
    options: TrainOptions = TrainOptions(),
    follow: Selector | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TrainSummary:
    """Fine-tune ``model`` on a store's rows and save it in ``out``.

    The loss is the sum of the kept tokens' cross-entropies over their number in the whole optimizer batch; of a mask that
    weighs, the weighted sum over the sum of the weights, or over the number (``normalise``). With ``entropy_bonus`` and
    ``kl_penalty`` two terms are added, each a mean over its own tokens in the whole optimizer batch. Rows with nothing to learn
    are left out: nothing kept, or nothing of weight above 0, and no token of a term.

    ``out`` gets the weights (an adapter's, where one is trained), the store's tokenizer with its chat template,
    ``tokenstats.json`` with where they came from (in ``config.json`` too, for a whole model), ``run.toml`` with all that the
    run was told, ``history.json``, and ``training.png``, which draws it. With ``save_steps`` or ``best_by`` there are
    checkpoints too, in ``out/checkpoint-N``.

    Args:
        store: A store, or its folder; or several of one tokenizer, mixed by ``shares``.
        model: A model folder, a Hub id, or an adapter folder: merged into its base model, or trained on (``continue_adapter``).
        out: A folder that is not there yet, or empty.
        mask: The tokens to learn: a mask of the store; None or "none" is plain fine-tuning on all targets. Of several stores
            one that each has, or one for each.
        options: How to train.
        follow: A rule that decides in each step, on the statistics of the policy as it is then, what is kept; the mask is then
            only compared with. Made by :func:`tokenstats.following.follow_rule`.
        resume: Go on from the last checkpoint in ``out``; everything else must be as it was.
        callbacks: transformers' TrainerCallbacks, run before the run's own.

    Raises:
        InputError: What the caller can mend; before training begins nothing is written.
        StoreError: The store or mask is not there, or damaged.
    """
    stores = [open_store(each) for each in ([store] if isinstance(store, Store | str | Path) else store)]
    check_shares(options.shares, len(stores))
    sources = choose_sources(stores, mask)
    return _train(Request(sources, str(model), Path(out).expanduser(), options.resolved, follow, tuple(callbacks)), resume)


def train_leg(
    store: Store | str | Path, *, model: str, out: str | Path, mask: str | None, options: TrainOptions, leg: Leg
) -> TrainSummary:
    """Train one leg of a run, from the last checkpoint in ``out``, or from ``model`` where there is none.

    As :func:`train` does it, but: rows that the mask leaves empty stay in their batches, so that the order of the rows and the
    length of an epoch are those of every other mask; the leg ends with a checkpoint; and only the one that ends with the run
    saves the result.

    Args:
        store: A store, or its folder.
        model: What the whole run starts from.
        out: The run's folder.
        mask: What this leg learns; None: all targets.
        options: Of the whole run; ``max_steps`` is its end.
        leg: Where it ends.

    Raises:
        InputError, StoreError: As :func:`train`; the run in ``out`` is of another store or model.
    """
    sources = choose_sources([open_store(store)], mask)
    return _train(Request(sources, str(model), Path(out).expanduser(), options.resolved, leg=leg), resume=False)


def _train(request: Request, resume: bool) -> TrainSummary:
    plan = plan_run(request)
    checkpoint = find_checkpoint(request.out, resume) if request.leg is None else last_checkpoint(request.out)
    check_callbacks(request.callbacks)
    check_tokenizer(request.store, request.model, request.options.trust_remote_code)
    arguments = trainer_arguments(request.options, request.out, resumed=checkpoint is not None)
    prepared = prepare(request, plan, arguments)
    if checkpoint is not None:
        check_same_run(request.out, prepared.record, OF_ALL_LEGS if request.leg is not None else None)
    with _own_folder(request.out, arguments.process_index == 0):
        if checkpoint is None and request.leg is None and arguments.process_index == 0:
            find_checkpoint(request.out, resume)  # once more: another run may have ended there meanwhile
        clear_pieces(request.out)
        trainer = trainer_for(request, prepared, arguments)
        _run(trainer, checkpoint, request.options)
        history = history_of(trainer.state.log_history)
        if trainer.is_world_process_zero() and request.ends_the_run:
            _save(request, prepared, history)
    first_epoch = prepared.batches.rows_of(0)
    return summary_of(request, prepared.rows, first_epoch, prepared.record["training"]["loss"], trainer.state, history)


@contextmanager
def _own_folder(out: Path, is_writer: bool) -> Iterator[None]:
    """The folder of the result, no other run's meanwhile. One that was made for a run which then made no step is gone again."""
    was_there = out.exists()
    try:
        with claimed(out) if is_writer else nullcontext():
            yield
    except InputError:
        if not was_there:
            with suppress(OSError):
                out.rmdir()
        raise


def prepare(request: Request, plan: Plan | None, arguments: TrainingArguments) -> Prepared:
    """Read the rows and load the models. Raises InputError where they do not fit each other or the options."""
    options, store = request.options, request.store
    sets = plan.sets if plan is not None else [None] * len(request.sources)
    parts = [
        load_training_data(
            source.store, source.mask, options.eval_share, options.eval_seed, of_source, keep_empty=request.leg is not None
        )
        for source, of_source in zip(request.sources, sets, strict=True)
    ]
    rows = MixedRows.of(parts, request.sources, options.shares)
    data = rows.data
    batch_plan = BatchPlan.of(options, arguments.world_size)
    batch_plan.check(data)
    batches = OptimizerBatches(data.train, options.seed, batch_plan, mixture=rows.mixture)
    steps = options.max_steps or math.ceil((options.epochs or 1) * batches.steps)
    check_schedule(options, steps)
    arguments.warmup_steps = rising_steps(options, steps)
    loaded = load_trainable(request.model, options, arguments.device, arguments.bf16, store, data)
    batches.classes = width_classes(loaded.model, batches.lengths)
    objective, reference = (None, None) if plan is None else build_objective(plan, loaded, request, data, arguments)
    record = record_of(request, rows, loaded, reference, arguments.world_size)
    if not options.trains_adapter:
        loaded.model.config.tokenstats = record
    return Prepared(rows, loaded, batches, objective, record, load_store_tokenizer(store, options.trust_remote_code))


def trainer_for(request: Request, prepared: Prepared, arguments: TrainingArguments) -> MaskedTrainer:
    """transformers' Trainer of a run, with all of its callbacks. Raises InputError for a model in shards."""
    options, model, objective = request.options, prepared.loaded.model, prepared.objective
    arguments.use_cache = model.config.use_cache  # the trainer would switch it off in the saved config
    if prepared.rows.data.evaluation is not None:
        arguments.per_device_eval_batch_size = prepared.batches.plan.evaluation_rows(prepared.rows.data.evaluation)
    if options.gradient_checkpointing:
        # transformers renamed it, and still warns about the old name
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    meter = Meter.of(objective, arguments.device)
    trainer = MaskedTrainer(
        model,
        arguments,
        prepared.batches,
        prepared.rows.data.evaluation,
        prepared.tokenizer,
        prepared.loaded.split,
        divide_by_weights=prepared.batches.rows.weights is not None and options.normalise == "weights",
        meter=meter,
        callbacks=callbacks_of(request, prepared.batches, lambda: request.write_beside(prepared.record), meter),
        objective=objective,
    )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InputError(
            "models in shards (FSDP, DeepSpeed) cannot be trained here; expected one device, or data parallel by torchrun"
        )
    return trainer


def _run(trainer: MaskedTrainer, checkpoint: Path | None, options: TrainOptions) -> None:
    if checkpoint is not None and has_ended(state := state_of(checkpoint)):
        trainer.state = state
        trainer._load_from_checkpoint(state.best_model_checkpoint or str(checkpoint))
        return
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        size = "batch_size" if options.batch_tokens is None else "batch_tokens"
        raise InputError(
            f"out of memory with {argument(size, getattr(options, size))} ({one_line(error, 100)}); lower it and raise "
            f"{argument('accumulation')} as much, give {argument('gradient_checkpointing', True)}, or train an adapter "
            f"({argument('lora_rank')})"
        ) from None
    except RuntimeError as error:
        if checkpoint is None or "PytorchStreamReader" not in str(error):
            raise
        raise InputError(
            f"{checkpoint} is damaged ({one_line(error, 80)}); delete it, and go on from the one before, or begin anew"
        ) from None


def _save(request: Request, prepared: Prepared, history: History) -> None:
    prepared.loaded.model.save_pretrained(request.out)
    prepared.tokenizer.save_pretrained(request.out)
    request.write_beside(prepared.record)
    write_json(request.out / HISTORY, json.dumps(history, indent=1))
    if request.options.plot:
        draw_run(request.out)
