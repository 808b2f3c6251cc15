"""transformers' Trainer with three things changed: the loss, the order of the rows, and an evaluation exact to the token."""

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
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
from tokenstats.training.data import NO_ROW, TrainingData, collate
from tokenstats.training.loss import masked_loss, nll_per_row
from tokenstats.training.metrics import Meter, means_of, sums_by_row
from tokenstats.training.objective import Objective, OptimizerBatch
from tokenstats.training.rows import shuffled


class SeededOrder(Sampler[int]):
    """Another order of the rows each epoch, from their keys, the seed and ``epoch`` alone.

    It does not depend on how many random numbers anything else has drawn, nor on the batch size; and rows that two
    masks have in common come in the same order under both.

    multiple: fill up with NO_ROW to a multiple of this. Devices must all have as many batches; what would fill them up
              otherwise is rows from the front, learned twice.
    """

    def __init__(self, keys: np.ndarray, seed: int, multiple: int):
        self.keys, self.seed, self.epoch = keys, seed, 0
        self.fill = -len(keys) % multiple

    def __len__(self) -> int:
        return len(self.keys) + self.fill

    def __iter__(self) -> Iterator[int]:
        yield from map(int, shuffled(self.keys, "training", self.seed, self.epoch))
        yield from [NO_ROW] * self.fill


class MaskedTrainer(Trainer):
    """Trains a causal language model with :func:`masked_loss`; ``eval_loss`` is in nats per target token.

    divide_by_weights: by the sum of the weights of each optimizer batch, not by its number of kept tokens
    objective:         the loss of three terms, with what is told of the tokens; None: the cross-entropy alone

    Raises InputError, while training, where the loss is no longer a finite number.
    """

    # the loss is already divided by the one divisor of the whole optimizer batch
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        data: TrainingData,
        tokenizer: PreTrainedTokenizerFast,
        split: SplitModel,
        divide_by_weights: bool,
        before_save: Callable[[], None],
        objective: Objective | None = None,
    ):
        self._split, self._divide_by_weights, self._objective = split, divide_by_weights, objective
        self._optimizer_batch = OptimizerBatch(objective) if objective is not None else None
        terms = objective.terms if objective is not None else None
        compares = objective is not None and objective.followed is not None and objective.followed.compares
        self._meter = Meter(terms, compares, arguments.device)
        multiple = arguments.train_batch_size * arguments.world_size if arguments.world_size > 1 else 1
        self._order = SeededOrder(data.train.keys, arguments.seed, multiple)
        super().__init__(
            model,
            arguments,
            collate,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            processing_class=tokenizer,
            compute_metrics=self._means,
            callbacks=[_Flow(self._order, before_save, self._meter), _Progress()],
        )
        self.remove_callback(PrinterCallback)  # it writes to stdout, where results belong
        self.model_accepts_loss_kwargs = True  # so that the kept tokens of each optimizer batch are counted

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | int | None]:
        """The micro-batches of one optimizer batch, and what its loss is divided by: a number of all devices."""
        batches, divisor = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._meter.begin_step(batches)
        if self._optimizer_batch is not None and batches:
            batches = [self._prepare_inputs(batch) for batch in batches]
            self._split.model = self.model  # not the wrapper: it counts on a backward pass for each forward
            self.model.train()
            with self.accelerator.autocast():
                divisor = self._optimizer_batch.begin(batches, self._total)
        elif self._divide_by_weights and batches:
            total = torch.stack([batch["weights"].sum(dtype=torch.float64) for batch in batches]).sum().to(device)
            divisor = self._total(total).float()
        return batches, divisor

    def _total(self, tensor: Tensor) -> Tensor:
        """The sum over all devices of a tensor that each has one of."""
        return self.accelerator.reduce(tensor.to(self.args.device), "sum")

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
            if self._optimizer_batch is not None:
                loss, parts, measured = self._optimizer_batch.loss(inputs, self._total)
                self._meter.add(parts, measured, inputs)
            else:
                ids, labels = inputs["input_ids"], inputs["labels"]
                loss = masked_loss(self._split, ids, labels, num_items_in_batch, inputs.get("weights"))
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
            if self._objective is not None:
                sums = sums_by_row(self._objective.measure(inputs, training=False), inputs)
                return None, sums, sums[:, 0]
            sums, counts = nll_per_row(self._split, inputs["input_ids"], inputs["labels"])
        return None, sums, counts

    def _means(self, found: EvalPrediction) -> dict[str, float]:
        if self._objective is None:
            return {"loss": float(found.predictions.sum(dtype=np.float64) / found.label_ids.sum())}
        means = means_of(torch.from_numpy(found.predictions).sum(0), self._objective.terms.evaluation)
        return {"loss": means["targets/nll"], **means}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to an entry of the training what the meter has; it is called on all devices."""
        if "loss" in logs:
            logs |= self._meter.read(self._total)
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededOrder:
        return self._order


class _Flow(TrainerCallback):
    """Keeps the order's epoch, closes the books at each save and at the end, and stops where the loss is lost."""

    def __init__(self, order: SeededOrder, before_save: Callable[[], None], meter: Meter):
        self.order, self.before_save, self.meter = order, before_save, meter

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.order.epoch = int(state.epoch or 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        self.meter.end_step()
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
