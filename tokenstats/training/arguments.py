"""What a run's options are to transformers' Trainer."""

from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from tokenstats.errors import InputError, argument, one_line
from tokenstats.modeling.load import pick_device
from tokenstats.training.options import SCHEDULES, TrainOptions

_CHECKPOINTS_KEPT = 2  # the last, and the one before it in case a kill has cut the last short


def check_report_to(report_to: str) -> None:
    """Raise InputError for an integration that is not installed."""
    usable = ["none", "all", *get_available_reporting_integrations()]
    unknown = [name for name in report_to.split(",") if name not in usable]
    if unknown:
        raise InputError(
            f"{argument('report_to')} got {one_line(unknown[0], 60)!r}; expected what is installed here: {', '.join(usable)}"
        )


def trainer_arguments(options: TrainOptions, out: Path, resumed: bool) -> TrainingArguments:
    """transformers' own settings, which also decide the device of each process; InputError for one that cannot be had."""
    device = pick_device(options.device)
    on_gpu = device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.peak_learning_rate,
        lr_scheduler_type=SCHEDULES[options.schedule],
        warmup_steps=options.warmup_ratio,
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
        save_total_limit=_CHECKPOINTS_KEPT,
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process: threads that share a model; torchrun is the way
    return arguments


def _check_device(asked: str, device: torch.device, got: torch.device) -> None:
    if device.index is not None and device != got:
        raise InputError(
            f"{argument('device', asked)} cannot be trained on; expected {argument('device', 'cuda')}, with "
            f"CUDA_VISIBLE_DEVICES={device.index} set"
        )
