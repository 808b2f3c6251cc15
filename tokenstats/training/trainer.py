"""Fine-tune a model on the tokens that a mask keeps, weighted where the mask weighs them.

    train("runs/store", model="models/base", mask="eksft", out="runs/eksft")                       # the whole model
    train("runs/store", model="models/base", mask="none", out="runs/plain",                        # an adapter
          options=TrainOptions(lora_rank=16, eval_share=0.05))

Under ``torchrun`` each process trains on its own share of every batch (data parallel), to the same weights.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from tokenstats.errors import InputError, argument, one_line
from tokenstats.modeling.positions import width_classes
from tokenstats.options import refuse, to_dict
from tokenstats.store import Store, open_store
from tokenstats.store.manifests import Model
from tokenstats.store.parts import describe_difference, write_json
from tokenstats.training.arguments import check_report_to, trainer_arguments
from tokenstats.training.batching import BatchPlan, OptimizerBatches
from tokenstats.training.data import TokenRows, TrainingData, load_training_data
from tokenstats.training.history import HISTORY, History, history_of, means_in
from tokenstats.training.legs import EndOfLeg, Leg, last_checkpoint, state_of
from tokenstats.training.loop import MaskedTrainer
from tokenstats.training.models import TrainableModel, check_tokenizer, load_store_tokenizer, load_trainable
from tokenstats.training.objective import Objective
from tokenstats.training.options import TrainOptions
from tokenstats.training.provenance import RECORD, provenance, without_folders, write_record
from tokenstats.training.rows import ChosenMask, check_writable, choose_mask
from tokenstats.training.selection import Selector
from tokenstats.training.setup import build_objective, plan_run

MAY_CHANGE_ON_RESUME = ("device", "report_to")
_OF_ALL_LEGS = ("store", "model")
"""What legs of one run have in common beyond what their caller holds together."""


@dataclass(frozen=True)
class TrainSummary:
    """What a run did.

    out:              folder of the weights, tokenizer, ``tokenstats.json`` (origin) and ``history.json`` (losses)
    steps:            optimizer steps in all, those before a resume included
    loss:             mean training loss of the last logged steps, nats per kept token
    loss_formula:     what that loss is, over each optimizer batch
    eval_loss:        loss of the rows held out over all their target tokens, in nats; None where none are
    eval_loss_before: the same before the first step
    rows:             rows trained on; rows_left_out: rows with nothing kept, or nothing of weight above 0;
                      eval_rows: rows held out
    kept_tokens:      tokens whose cross-entropy the rows trained on contribute in one epoch; None where a rule is followed,
                      which decides in each step
    metrics:          what the last entry of the history tells besides the loss (docs/TRAINING.md lists the names)
    eval_metrics:     the same of the rows held out, after the last step
    """

    out: str
    steps: int
    loss: float
    loss_formula: str
    eval_loss: float | None
    eval_loss_before: float | None
    rows: int
    rows_left_out: int
    eval_rows: int
    kept_tokens: int | None
    metrics: dict[str, float]
    eval_metrics: dict[str, float]


def train(
    store: Store | str | Path,
    *,
    model: str,
    out: str | Path,
    mask: str | None,
    options: TrainOptions = TrainOptions(),
    follow: Selector | None = None,
    resume: bool = False,
) -> TrainSummary:
    """Fine-tune ``model`` on a store's rows and save it in ``out``.

    The loss is the sum of the kept tokens' cross-entropies over their number in the whole optimizer batch; of a mask that
    weighs, the weighted sum over the sum of the weights, or over the number (``normalise``). With ``entropy_bonus`` and
    ``kl_penalty`` two terms are added, each a mean over its own tokens in the whole optimizer batch. Rows with nothing to learn
    are left out: nothing kept, or nothing of weight above 0, and no token of a term.

    ``out`` gets the weights (an adapter's, with ``lora_rank``), the store's tokenizer with its chat template,
    ``tokenstats.json`` with where they came from (in ``config.json`` too, for a whole model), and ``history.json``.
    Checkpoints are written only with ``save_steps``, to ``out/checkpoint-N``.

    Args:
        store: A store, or its folder.
        model: A model folder, a Hub id, or an adapter folder (which is merged into its base model).
        out: A folder that is not there yet, or empty.
        mask: The tokens to learn: a mask of the store; None or "none" is plain fine-tuning on all targets.
        options: How to train.
        follow: A rule that decides in each step, on the statistics of the policy as it is then, what is kept; the mask is then
            only compared with. Made by :func:`tokenstats.following.follow_rule`.
        resume: Go on from the last checkpoint in ``out``; everything else must be as it was.

    Raises:
        InputError: What the caller can mend; before training begins nothing is written.
        StoreError: The store or mask is not there, or damaged.
    """
    return _train(store, model=model, out=out, mask=mask, options=options, follow=follow, resume=resume)


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
    return _train(store, model=model, out=out, mask=mask, options=options, leg=leg)


def _train(
    store: Store | str | Path,
    *,
    model: str,
    out: str | Path,
    mask: str | None,
    options: TrainOptions,
    follow: Selector | None = None,
    resume: bool = False,
    leg: Leg | None = None,
) -> TrainSummary:
    out, opened = Path(out).expanduser(), open_store(store)
    chosen = choose_mask(opened, mask)
    weighted = chosen.weighted if follow is None else follow.weighted
    if not weighted:
        refuse(options, "normalise", because=f"{_what_keeps(chosen, follow)} does not weigh its tokens; leave it out")
    plan = plan_run(model, options, opened, chosen, follow, weighted)
    checkpoint = _check_out(out, resume) if leg is None else last_checkpoint(out)
    check_report_to(options.report_to)
    check_tokenizer(opened, model, options.trust_remote_code)
    arguments = trainer_arguments(options, out, resumed=checkpoint is not None)
    sets = plan.sets if plan is not None else None
    data = load_training_data(opened, chosen, options.eval_share, options.eval_seed, sets, keep_empty=leg is not None)
    batch_plan = BatchPlan.of(options, arguments.world_size)
    batch_plan.check(data)
    loaded = load_trainable(model, options, arguments.device, arguments.bf16, opened, data)
    classes = width_classes(loaded.model, np.diff(data.train.offsets))
    batches = OptimizerBatches(data.train, options.seed, batch_plan, classes)
    objective, reference = (None, None) if plan is None else build_objective(plan, loaded, opened, data, arguments)
    record = {
        **provenance(opened, chosen, rows=len(data.train), empty=data.empty, kept=data.train.learned_tokens),
        "base_model": _described(loaded.description),
        "reference": _described(reference) if reference is not None else None,
        "follow": {"rule": dict(follow.rule), "fingerprint": follow.fingerprint} if follow is not None else None,
        "training": _settings(options, loaded, arguments.world_size, weighted),
        "eval_rows": len(data.evaluation) if data.evaluation else 0,
        **({"legs": list(leg.masks)} if leg is not None else {}),
    }
    if checkpoint is not None:
        _check_same_run(out, record, None if leg is None else _OF_ALL_LEGS)
    if not options.is_lora:
        loaded.model.config.tokenstats = record
    tokenizer = load_store_tokenizer(opened, options.trust_remote_code)
    trainer = _trainer(
        loaded, arguments, options, batches, data.evaluation, tokenizer, lambda: write_record(out, record), objective
    )
    if leg is not None:
        trainer.add_callback(EndOfLeg(leg.last_step))
    _run(trainer, checkpoint, options)
    history = history_of(trainer.state.log_history)
    if trainer.is_world_process_zero() and trainer.state.global_step >= trainer.state.max_steps:
        _save(loaded.model, tokenizer, out, record, history)
    return _summary(out, trainer.state.global_step, data, history, record["training"]["loss"], follow)


def _what_keeps(mask: ChosenMask, follow: Selector | None) -> str:
    return f"the mask {mask.title!r}" if follow is None else "the rule that is followed"


def _described(model: Model) -> dict[str, Any]:
    return {**model.model_dump(mode="json"), "source": without_folders(model.source)}


def _settings(options: TrainOptions, loaded: TrainableModel, devices: int, weighted: bool) -> dict[str, Any]:
    """The options as they took effect; what is given away tells no folder."""
    folders = {name: getattr(options, name) for name in ("reference", "reference_cache")}
    return {
        **to_dict(options),
        **{name: without_folders(path) if path is not None else None for name, path in folders.items()},
        "learning_rate": options.peak_learning_rate,
        "dtype": loaded.precision,
        "devices": devices,
        "loss": options.loss_formula(weighted),
    }


def _check_out(out: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None. Raises InputError where ``out`` is taken, or holds nothing to resume."""
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                f"{out} exists and is not empty; choose another folder, or go on with the run that made it "
                f"({argument('resume', True)})"
            )
        check_writable(out)
        return None
    checkpoint = last_checkpoint(out)
    if checkpoint is None:
        raise InputError(
            f"{out} holds no checkpoint to resume from; expected the folder of a stopped run that had {argument('save_steps')}"
        )
    return checkpoint


def _check_same_run(out: Path, record: dict[str, Any], names: tuple[str, ...] | None = None) -> None:
    """Refuse to go on with another store, mask, model or setting than the checkpoint was made with.

    names: of what must be the same; None: all
    """
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
        there, asked = ({n: v for n, v in _identity(r).items() if names is None or n in names} for r in (found, record))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{out / RECORD} cannot be read ({one_line(error, 80)}): what the checkpoint is of is not known; begin anew"
        ) from None
    if there != asked:
        raise InputError(
            f"{out} holds another run: {describe_difference(there, asked)}; resume with what it had, or choose another folder"
        )


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in record["training"].items() if name not in MAY_CHANGE_ON_RESUME}
    return {
        "store": record["store_fingerprint"],
        "mask": record["mask_fingerprint"],
        "model": record["base_model"]["fingerprint"],
        "reference model": (record.get("reference") or {}).get("fingerprint"),
        "followed rule": (record.get("follow") or {}).get("fingerprint"),
        **settings,
    }


def _trainer(
    loaded: TrainableModel,
    arguments: TrainingArguments,
    options: TrainOptions,
    batches: OptimizerBatches,
    evaluation: TokenRows | None,
    tokenizer: PreTrainedTokenizerFast,
    before_save: Callable[[], None],
    objective: Objective | None,
) -> MaskedTrainer:
    arguments.use_cache = loaded.model.config.use_cache  # the trainer would switch it off in the saved config
    if evaluation is not None:
        arguments.per_device_eval_batch_size = batches.plan.evaluation_rows(evaluation)
    if options.gradient_checkpointing:
        # transformers renamed it, and still warns about the old name
        enable = getattr(loaded.model, "activation_checkpointing_enable", None) or loaded.model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    trainer = MaskedTrainer(
        loaded.model,
        arguments,
        batches,
        evaluation,
        tokenizer,
        loaded.split,
        divide_by_weights=batches.rows.weights is not None and options.normalise == "weights",
        before_save=before_save,
        objective=objective,
    )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InputError(
            "models in shards (FSDP, DeepSpeed) cannot be trained here; expected one device, or data parallel by torchrun"
        )
    return trainer


def _run(trainer: MaskedTrainer, checkpoint: Path | None, options: TrainOptions) -> None:
    if checkpoint is not None and (state := state_of(checkpoint)).global_step >= state.max_steps:
        # nothing is left to train; the trainer itself would go on to the end of the epoch
        trainer.state = state
        trainer._load_from_checkpoint(str(checkpoint))
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


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict[str, Any], history: dict[str, Any]
) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_record(out, record)
    write_json(out / HISTORY, json.dumps(history, indent=1))


def _summary(
    out: Path,
    steps: int,
    data: TrainingData,
    history: History,
    loss_formula: str,
    follow: Selector | None,
) -> TrainSummary:
    evaluation, last = history["evaluation"], history["training"][-1]
    return TrainSummary(
        out=str(out),
        steps=steps,
        loss=last["loss"],
        loss_formula=loss_formula,
        eval_loss=evaluation[-1]["loss"] if evaluation else None,
        eval_loss_before=evaluation[0]["loss"] if evaluation else None,
        rows=len(data.train),
        rows_left_out=data.left_out,
        eval_rows=len(data.evaluation) if data.evaluation else 0,
        kept_tokens=data.train.learned_tokens if follow is None else None,
        metrics={n: v for n, v in last.items() if n not in ("step", "epoch", "loss", "tokens_per_second")},
        eval_metrics=means_in(evaluation[-1]) if evaluation else {},
    )
