"""What happens beside the steps of a run: when it is logged, evaluated and saved, what ends it, and the bar."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import nn
from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from tokenstats.errors import InputError, argument, one_line
from tokenstats.training.batching import OptimizerBatches
from tokenstats.training.legs import EndOfLeg
from tokenstats.training.metrics import Meter
from tokenstats.training.option_values import BEST_BY
from tokenstats.training.request import Request

Callback: TypeAlias = TrainerCallback | type[TrainerCallback]


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise InputError for what is no callback of transformers' Trainer."""
    for each in callbacks:
        kind = each if isinstance(each, type) else type(each)
        if not issubclass(kind, TrainerCallback):
            raise InputError(f"{argument('callbacks')} got {one_line(each, 60)}; expected transformers' TrainerCallbacks")


def callbacks_of(request: Request, batches: OptimizerBatches, before_save: Callable[[], None], meter: Meter) -> list[Callback]:
    """All callbacks of a run. Flow comes after whatever may end it, and before the end of a leg, which is none of the run."""
    options = request.options
    ending: list[Callback] = []
    if options.patience is not None:
        ending.append(EarlyStoppingCallback(options.patience))
    if options.stop_at_kl is not None:
        ending.append(StopAtKl(options.stop_at_kl))
    leg = [EndOfLeg(request.leg.last_step)] if request.leg is not None else []
    return [*request.callbacks, *ending, Flow(batches, before_save, meter), *leg, Progress()]


class StopAtKl(TrainerCallback):
    """Ends a run at the first evaluation whose KL has reached a limit.

    Raises InputError where it has before the first step.
    """

    def __init__(self, limit: float):
        self.limit = limit

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> None:
        """Has the KL reached the limit?"""
        found = metrics[BEST_BY["eval_kl"]]
        if found < self.limit:
            return
        if state.global_step == 0:
            raise InputError(
                f"{argument('stop_at_kl')} got {self.limit:g}, but the start is at a KL of {found:.4g} nats already, over the "
                "targets of the rows held out; expected more than that, or a start nearer to the reference"
            )
        control.should_training_stop = True


class Flow(TrainerCallback):
    """Tells the batches the epoch, closes the books at each save and at the end, and stops where the loss is lost."""

    def __init__(self, batches: OptimizerBatches, before_save: Callable[[], None], meter: Meter):
        self.batches, self.before_save, self.meter = batches, before_save, meter
        self.saved_at = -1

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The batches take the order of this epoch."""
        self.batches.epoch = int(state.epoch or 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """Save where the weights may be the best; close the books where something is saved, or at the end."""
        self.meter.end_step()
        if args.load_best_model_at_end and control.should_evaluate:
            control.should_save = True
        if control.should_save or state.global_step >= state.max_steps:
            self._close_books(state, control, model)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """A run that something ends early is logged, evaluated and saved at its end as any other."""
        if not control.should_training_stop:
            return
        if args.eval_strategy == IntervalStrategy.STEPS and not _is_evaluated(state):
            control.should_evaluate = True
        if args.save_strategy == SaveStrategy.STEPS and self.saved_at != state.global_step:
            control.should_save = True
        self._close_books(state, control, model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remember the last checkpoint."""
        self.saved_at = state.global_step

    def _close_books(self, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        control.should_log = True  # a run that is resumed here then logs the same losses as one that was not stopped
        if not all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad):
            raise _diverged("a weight is not a finite number", state.global_step)
        if control.should_save and state.is_world_process_zero:
            self.before_save()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Raise InputError where a loss is no number."""
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise _diverged(f"{name} is {logs[name]}", state.global_step)


def _is_evaluated(state: TrainerState) -> bool:
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def _diverged(how: str, step: int) -> InputError:
    return InputError(
        f"the training diverged: {how} at step {step}; lower the learning rate, lengthen the warm-up, or train in float32"
    )


class Progress(TrainerCallback):
    """A bar on stderr, and nothing where that is no terminal."""

    bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                desc="training", total=state.max_steps, initial=state.global_step, unit=" steps", file=sys.stderr, disable=None
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A step is done."""
        if self.bar is not None:
            self.bar.update(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Show the losses beside the bar."""
        if self.bar is not None:
            self.bar.set_postfix({name: f"{logs[name]:.4f}" for name in ("loss", "eval_loss") if name in logs})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
