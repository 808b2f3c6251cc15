"""transformers' Trainer with three things changed: the loss, the batches, and an evaluation exact to the token."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tokenstats.modeling.head import SplitModel
from tokenstats.training.batching import MicroBatch, OptimizerBatches
from tokenstats.training.data import TokenRows, collate
from tokenstats.training.loss import masked_loss, nll_per_row
from tokenstats.training.metrics import Meter, means_of, sums_by_row
from tokenstats.training.objective import Objective, OptimizerBatch


class MaskedTrainer(Trainer):
    """Trains a causal language model with :func:`masked_loss`; ``eval_loss`` is in nats per target token.

    Raises InputError, while training, where the loss is no longer a finite number.

    Args:
        model: What is trained, on its device.
        arguments: The Trainer's settings.
        batches: What each optimizer step learns from; an item of the data loader is the micro-batches of one step.
        evaluation: The rows held out, or None.
        tokenizer: Saved in each checkpoint.
        split: The halves of the model.
        divide_by_weights: By the sum of the weights of each optimizer batch, not by its number of kept tokens.
        meter: Of what is told.
        callbacks: All that the run has.
        objective: The loss of three terms, with what is told of the tokens; None: the cross-entropy alone.
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
        meter: Meter,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
        objective: Objective | None = None,
    ):
        self._split, self._divide_by_weights, self._batches = split, divide_by_weights, batches
        self._objective, self._optimizer_batch = objective, OptimizerBatch(objective) if objective is not None else None
        self._meter = meter
        super().__init__(
            model,
            arguments,
            collate,
            train_dataset=batches.rows,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            compute_metrics=self._means,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # it writes to stdout, where results belong
        self.model_accepts_loss_kwargs = True  # so that the kept tokens of each optimizer batch are counted

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[MicroBatch]], num_batches: int, device: torch.device
    ) -> tuple[list[list[MicroBatch]], Tensor | int | None]:
        """One optimizer batch, as its micro-batches, and what its loss is divided by: a number of all devices."""
        batches = next(epoch_iterator)
        self._meter.begin_step(batches)
        if self._optimizer_batch is not None:
            batches = [self._prepare_inputs(batch) for batch in batches]
            self._split.model = self.model  # not the wrapper: it counts on a backward pass for each forward
            self.model.train()
            with self.accelerator.autocast():
                return [batches], self._optimizer_batch.begin(batches, self._total)
        divisor = self._get_num_items_in_batch(batches, device)
        if self._divide_by_weights:
            total = torch.stack([batch["weights"].sum(dtype=torch.float64) for batch in batches]).sum().to(device)
            divisor = self._total(total).float()
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
        """Of all micro-batches of an optimizer batch."""
        return sum(super(MaskedTrainer, self).floating_point_ops(batch) for batch in inputs)

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
        """The loss of a micro-batch over the divisor of its optimizer batch."""
        assert num_items_in_batch is not None, "the kept tokens of the optimizer batch were not counted"
        self._split.model = model
        with self.accelerator.autocast():
            if self._optimizer_batch is not None:
                loss, parts, measured = self._optimizer_batch.loss(inputs, self._total)
                self._meter.add(parts, measured, inputs)
            else:
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
            if self._objective is not None:
                sums = sums_by_row(self._objective.measure(inputs, training=False), inputs, self._objective.clauses)
                return None, sums, sums[:, 0]
            sums, counts = nll_per_row(self._split, inputs["input_ids"], inputs["labels"], inputs["length"])
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

    def get_train_dataloader(self) -> DataLoader[list[MicroBatch]]:
        """Optimizer batches: what ``OptimizerBatches`` arranges is not arranged again."""
        return self.accelerator.prepare(self._batches.loader())

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A head that shares the embedding's weights is saved once: in a checkpoint it is not missing."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _get_eval_sampler(self, eval_dataset: TokenRows) -> list[int]:
        """Longest first: rows that share a batch are of about the same length."""
        return np.argsort(-np.diff(eval_dataset.offsets), kind="stable").tolist()
