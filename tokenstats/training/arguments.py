"""What a run's options are to transformers' Trainer."""

import inspect
import math
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from tokenstats.errors import InputError, argument, nearest, one_line
from tokenstats.modeling.load import pick_device
from tokenstats.options import refuse
from tokenstats.training.option_values import BEST_BY, SCHEDULES
from tokenstats.training.options import TrainOptions

_OF_THE_RUN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
"""Arguments of a schedule that the other options decide."""


def check_report_to(report_to: str) -> None:
    """Raise InputError for an integration that is not installed."""
    usable = ["none", "all", *get_available_reporting_integrations()]
    unknown = [name for name in report_to.split(",") if name not in usable]
    if unknown:
        raise InputError(
            f"{argument('report_to')} got {one_line(unknown[0], 60)!r}; expected what is installed here: {', '.join(usable)}"
        )


def trainer_arguments(options: TrainOptions, out: Path, resumed: bool) -> TrainingArguments:
    """transformers' own settings, which also decide the device of each process; InputError for one that cannot be had.

    Args:
        options: Resolved.
        out: The run's folder.
        resumed: Does the run go on from a checkpoint?
    """
    check_report_to(options.report_to)
    _check_optimizer_name(options.optimizer)
    device = pick_device(options.device)
    on_gpu = device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=options.epochs or 1.0,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        optim=options.optimizer,
        lr_scheduler_type=SCHEDULES[options.schedule],
        lr_scheduler_kwargs=dict(options.schedule_args or {}),
        warmup_steps=0,  # see rising_steps: how many there are in all is known later
        weight_decay=options.weight_decay,
        adam_beta2=options.beta2,
        max_grad_norm=options.max_grad_norm,
        average_tokens_across_devices=True,
        gradient_accumulation_steps=1,  # an item of the data loader is a whole optimizer batch
        bf16=options.dtype == "bfloat16" or (options.dtype == "auto" and on_gpu and torch.cuda.is_bf16_supported()),
        eval_strategy="steps" if options.eval_share else "no",
        eval_on_start=bool(options.eval_share) and not resumed,
        eval_steps=options.eval_steps or 1 << 30,  # the end is always evaluated
        save_strategy="steps" if options.save_steps else "no",
        save_steps=options.save_steps or 1,
        save_total_limit=options.keep_checkpoints,
        load_best_model_at_end=options.best_by is not None,
        metric_for_best_model=BEST_BY[options.best_by] if options.best_by is not None else None,
        greater_is_better=options.best_by == "eval_accuracy",
        restore_callback_states_from_checkpoint=resumed,
        logging_steps=options.logging_steps,
        logging_nan_inf_filter=False,  # it would put an average in the place of a NaN
        report_to="none" if options.report_to == "none" else options.report_to.split(","),
        seed=options.seed,
        use_cpu=device.type == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
    )
    _check_device(options.device, device, arguments.device)
    _check_optimizer(options, arguments)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process: threads that share a model; torchrun is the way
    return arguments


def _check_optimizer_name(name: str) -> None:
    known = [each.value for each in OptimizerNames]
    if name not in known:
        raise InputError(
            f"{argument('optimizer')} got {one_line(name, 60)!r}{nearest(name, known)}; expected one of: {', '.join(known)}"
        )


def _check_optimizer(options: TrainOptions, arguments: TrainingArguments) -> None:
    """Raise InputError for an optimizer that cannot be made here, or has no use for an option that was given."""
    try:
        _, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{argument('optimizer', options.optimizer)} cannot be had here: {one_line(error, 200)}; take another"
        ) from None
    if "betas" not in settings:
        refuse(options, "beta2", because=f"{argument('optimizer', options.optimizer)} has none; leave it out")


def rising_steps(options: TrainOptions, steps: int) -> int:
    """Over how many of the ``steps`` the learning rate rises: whole ones, rounded down.

    The first step of a rise has rate 0. transformers rounds up, so that a run of a single step would learn nothing.
    """
    return int(steps * options.warmup_ratio + 1e-9)


def check_schedule(options: TrainOptions, steps: int) -> None:
    """Raise InputError where a schedule does not take its arguments, or lacks one, in a run of so many steps."""
    name = SchedulerType(SCHEDULES[options.schedule])
    said = dict(options.schedule_args or {})
    known = [each for each in inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[name]).parameters if each not in _OF_THE_RUN]
    for key in said:
        if key not in known:
            raise InputError(
                f"{argument('schedule_args')} got {one_line(key, 60)!r}{nearest(key, known)}, which "
                f"{argument('schedule', options.schedule)} does not have; expected {', '.join(known) or 'none'}"
            )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=options.learning_rate or 1.0)
    try:
        made = get_scheduler(name, optimizer, rising_steps(options, steps), steps, said)
        rates = [made.lr_lambdas[0](step) for step in range(0, steps, max(1, steps // 100))]
        if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
            raise ValueError("the learning rate would not be a number of at least 0")
        highest = made.lr_lambdas[0](rising_steps(options, steps))
        if highest < 0.999:
            raise ValueError(f"over {steps} steps the rate would come to {highest:.2g} of the learning rate at most")
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"{argument('schedule', options.schedule)} cannot be had with {argument('schedule_args')} {one_line(said, 100)}: "
            f"{one_line(error, 200)}; it takes {', '.join(known) or 'none'}"
        ) from None


def _check_device(asked: str, device: torch.device, got: torch.device) -> None:
    if device.index is not None and device != got:
        raise InputError(
            f"{argument('device', asked)} cannot be trained on; expected {argument('device', 'cuda')}, with "
            f"CUDA_VISIBLE_DEVICES={device.index} set"
        )
