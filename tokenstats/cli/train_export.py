"""tokenstats train, export: what becomes of a mask."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokenstats.cli.options import AsJson, StorePath, TrustRemoteCode
from tokenstats.cli.printing import many, print_json
from tokenstats.training.options import TrainOptions

_DEFAULTS = TrainOptions()


def train(
    store: StorePath,
    mask: Annotated[str, typer.Option(help="the tokens to learn: a mask of the store, or none for plain SFT")],
    model: Annotated[str, typer.Option(help="what to fine-tune: folder, Hub id or adapter folder")],
    out: Annotated[Path, typer.Option(help="folder for the result; new or empty")],
    epochs: Annotated[float, typer.Option(help="passes over the rows")] = _DEFAULTS.epochs,
    max_steps: Annotated[int | None, typer.Option(help="optimizer steps, instead of epochs")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="the peak [2e-5, or 2e-4 with LoRA]")] = None,
    batch_size: Annotated[int, typer.Option(help="sequences in one forward pass")] = _DEFAULTS.batch_size,
    accumulation: Annotated[int, typer.Option(help="forward passes in one optimizer step")] = _DEFAULTS.accumulation,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant")] = _DEFAULTS.schedule,
    warmup_ratio: Annotated[float, typer.Option(help="share of the steps that the rate rises over")] = _DEFAULTS.warmup_ratio,
    weight_decay: Annotated[float, typer.Option(help="decoupled, as in AdamW")] = _DEFAULTS.weight_decay,
    normalise: Annotated[
        str, typer.Option(help="divide a weighted mask's loss by: weights (their sum) or targets (the kept tokens)")
    ] = _DEFAULTS.normalise,
    max_grad_norm: Annotated[float, typer.Option(help="gradients are scaled down to it; 0: never")] = _DEFAULTS.max_grad_norm,
    lora_rank: Annotated[int | None, typer.Option(help="train an adapter of this rank instead")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="scale of the adapter [twice the rank]")] = None,
    lora_targets: Annotated[str, typer.Option(help="modules, by name, separated by commas")] = _DEFAULTS.lora_targets,
    eval_share: Annotated[float, typer.Option(help="share of the rows held out")] = _DEFAULTS.eval_share,
    eval_steps: Annotated[int | None, typer.Option(help="evaluate every so many steps, not only at the ends")] = None,
    save_steps: Annotated[int | None, typer.Option(help="write a checkpoint every so many steps")] = None,
    logging_steps: Annotated[int, typer.Option(help="steps averaged in one entry of the history")] = _DEFAULTS.logging_steps,
    report_to: Annotated[str, typer.Option(help="none, or tensorboard, wandb, … as installed")] = _DEFAULTS.report_to,
    seed: Annotated[int, typer.Option(help="of the order of rows, dropout and a new adapter")] = _DEFAULTS.seed,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16")] = _DEFAULTS.dtype,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = _DEFAULTS.device,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="trade time for memory")
    ] = _DEFAULTS.gradient_checkpointing,
    trust_remote_code: TrustRemoteCode = _DEFAULTS.trust_remote_code,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in --out")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on the tokens that a mask keeps."""
    options = TrainOptions(
        epochs=epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        accumulation=accumulation,
        schedule=schedule,
        warmup_ratio=warmup_ratio,
        weight_decay=weight_decay,
        normalise=normalise,
        max_grad_norm=max_grad_norm,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=lora_targets,
        eval_share=eval_share,
        eval_steps=eval_steps,
        save_steps=save_steps,
        logging_steps=logging_steps,
        report_to=report_to,
        seed=seed,
        dtype=dtype,
        device=device,
        gradient_checkpointing=gradient_checkpointing,
        trust_remote_code=trust_remote_code,
    )
    from tokenstats import Store
    from tokenstats.training import train as run

    try:
        done = run(Store(store), model=model, out=out, mask=mask, options=options, resume=resume)
    finally:
        _leave_process_group()
    if as_json:
        print_json(asdict(done))
        return
    print(
        f"{done.out}: {many(done.steps, 'step')} over {many(done.rows, 'row')}, {done.kept_tokens:,} tokens learned in an epoch"
    )
    if done.rows_left_out:
        print(f"  left out {many(done.rows_left_out, 'row')} with nothing to learn")
    print(f"  loss {done.loss:.4f} nats: {done.loss_formula} of each optimizer batch")
    if done.eval_loss is not None:
        before = f"{done.eval_loss_before:.4f} before, " if done.eval_loss_before is not None else ""
        print(f"  {many(done.eval_rows, 'row')} held out, all their targets: {before}{done.eval_loss:.4f} after")


def _leave_process_group() -> None:
    """Under torchrun: a process that leaves while others still talk to it is aborted at its own exit, now and then."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def export(
    store: StorePath,
    mask: Annotated[str, typer.Option(help="the tokens to learn: a mask of the store, or none for all targets")],
    to: Annotated[Path, typer.Option(help="folder for the files; new or empty")],
    form: Annotated[str | None, typer.Option(help="labels, loss-mask or weights [what the trainer reads, or labels]")] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            "--for", help="whose config to print: trl, transformers, axolotl, llama-factory, unsloth, skyrl, verl or tinker"
        ),
    ] = None,
    save_to_disk: Annotated[bool, typer.Option("--save-to-disk", help="also as datasets.load_from_disk reads it")] = False,
    compat: Annotated[str | None, typer.Option(help="trl-legacy: also what TRL 0.24 to 1.6 keeps when it packs")] = None,
    ignore_weights: Annotated[
        bool, typer.Option("--ignore-weights", help="of a mask that weighs, export only which tokens it keeps")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the store's rows and what is learned of them for another trainer."""
    from tokenstats import Store
    from tokenstats.training import export as run

    done = run(
        Store(store),
        mask=mask,
        to=to,
        form=form,
        trainer=trainer,
        save_to_disk=save_to_disk,
        compat=compat,
        ignore_weights=ignore_weights,
    )
    if as_json:
        print_json(asdict(done))
        return
    print(
        f"{done.to}: {many(done.rows, 'row')}, {done.tokens:,} tokens, {done.kept_tokens:,} learned, "
        f"the longest row {done.longest:,}"
    )
    if done.rows_left_out:
        print(f"  left out {many(done.rows_left_out, 'row')} with nothing to learn")
    print(f"\n{done.how_to_read.rstrip()}")
