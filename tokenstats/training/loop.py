"""transformers' Trainer with three things changed: the loss, the batches, and an evaluation exact to the token."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tokenstats.errors import InputError
from tokenstats.modeling.head import SplitModel
from tokenstats.training.batching import MicroBatch, OptimizerBatches
from tokenstats.training.data import TokenRows, collate
from tokenstats.training.loss import masked_loss, nll_per_row


class MaskedTrainer(Trainer):
    """Trains a causal language model with :func:`masked_loss`; ``eval_loss`` is in nats per target token.

    batches: what each optimizer step learns from; an item of the data loader is the micro-batches of one step
    divide_by_weights: by the sum of the weights of each optimizer batch, not by its number of kept tokens

    Raises InputError, while training, where the loss is no longer a finite number.
    """

    # the loss is already divided by the one divisor of the whole optimizer batch
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        batches: OptimizerBatches,
        evaluation: TokenRows | None,
        tokenizer: PreTrainedTokenizerFast,
        split: SplitModel,
        divide_by_weights: bool,
        before_save: Callable[[], None],
    ):
        self._split, self._divide_by_weights, self._batches = split, divide_by_weights, batches
        super().__init__(
            model,
            arguments,
            collate,
            train_dataset=batches.rows,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            compute_metrics=_mean_loss,
            callbacks=[_Flow(batches, before_save), _Progress()],
        )
        self.remove_callback(PrinterCallback)  # it writes to stdout, where results belong
        self.model_accepts_loss_kwargs = True  # so that the kept tokens of each optimizer batch are counted

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[MicroBatch]], num_batches: int, device: torch.device
    ) -> tuple[list[list[MicroBatch]], Tensor | int | None]:
        """One optimizer batch, as its micro-batches, and what its loss is divided by: a number of all devices."""
        batches = next(epoch_iterator)
        divisor = self._get_num_items_in_batch(batches, device)
        if self._divide_by_weights:
            total = torch.stack([batch["weights"].sum(dtype=torch.float64) for batch in batches]).sum().to(device)
            divisor = self.accelerator.gather(total).sum().float()
        return [batches], divisor

    def training_step(
        self, model: nn.Module, inputs: list[MicroBatch], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward passes of an optimizer batch; devices wait for each other's gradients in the last one only."""
        loss = torch.zeros((), device=self.args.device)
        for i, batch in enumerate(inputs, 1):
            with nullcontext() if i == len(inputs) else self.accelerator.no_sync(model=model):
                loss += super().training_step(model, batch, num_items_in_batch)
        return loss

    def floating_point_ops(self, inputs: list[MicroBatch]) -> int:
        return sum(super(MaskedTrainer, self).floating_point_ops(batch) for batch in inputs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        assert num_items_in_batch is not None, "the kept tokens of the optimizer batch were not counted"
        self._split.model = model
        with self.accelerator.autocast():
            loss = masked_loss(
                self._split,
                inputs["input_ids"],
                inputs["labels"],
                num_items_in_batch,
                inputs.get("weights"),
                inputs["length"],
            )
        # the divisor is of all devices; data-parallel training then averages gradients over them
        loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, Tensor, Tensor]:
        """Sums and counts of each sequence: a mean of batch means would depend on the batch size."""
        inputs = self._prepare_inputs(inputs)
        self._split.model = model
        with torch.no_grad(), self.accelerator.autocast():
            sums, counts = nll_per_row(self._split, inputs["input_ids"], inputs["labels"], inputs["length"])
        return None, sums, counts

    def get_train_dataloader(self) -> DataLoader[list[MicroBatch]]:
        return self.accelerator.prepare(self._batches.loader())

    def _get_eval_sampler(self, eval_dataset: TokenRows) -> list[int]:
        """Longest first: rows that share a batch are of about the same length."""
        return np.argsort(-np.diff(eval_dataset.offsets), kind="stable").tolist()


def _mean_loss(found: EvalPrediction) -> dict[str, float]:
    return {"loss": float(found.predictions.sum(dtype=np.float64) / found.label_ids.sum())}


class _Flow(TrainerCallback):
    """Tells the batches the epoch, closes the books at each save and at the end, and stops where the loss is lost."""

    def __init__(self, batches: OptimizerBatches, before_save: Callable[[], None]):
        self.batches, self.before_save = batches, before_save

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.batches.epoch = int(state.epoch or 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        if not control.should_save and state.global_step < state.max_steps:
            return
        control.should_log = True  # a run that is resumed here then logs the same losses as one that was not stopped
        if not all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad):
            raise _diverged("a weight is not a finite number", state.global_step)
        if control.should_save and state.is_world_process_zero:
            self.before_save()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise _diverged(f"{name} is {logs[name]}", state.global_step)


def _diverged(how: str, step: int) -> InputError:
    return InputError(
        f"the training diverged: {how} at step {step}; lower the learning rate, lengthen the warm-up, or train in float32"
    )


class _Progress(TrainerCallback):
    """A bar on stderr, and nothing where that is no terminal."""

    bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                desc="training", total=state.max_steps, initial=state.global_step, unit=" steps", file=sys.stderr, disable=None
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if self.bar is not None:
            self.bar.set_postfix({name: f"{logs[name]:.4f}" for name in ("loss", "eval_loss") if name in logs})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
