"""A run in several legs: each has a mask of its own, all have one model, optimizer, schedule and order of rows.

    train_leg(store, model="models/base", mask=None, out="runs/out", options=options, leg=Leg(last_step=20))
    train_leg(store, model="models/base", mask="round-0", out="runs/out", options=options, leg=Leg(last_step=60))

A leg ends with a checkpoint, and the next goes on from it; one that was killed goes on from the last that is whole.
"""

from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


@dataclass(frozen=True)
class Leg:
    """A stretch of a run.

    Attributes:
        last_step: The optimizer step that it ends after, with a checkpoint; the last step of the run also saves the result.
        masks: What is recorded of the masks of the run so far, this one included.
    """

    last_step: int
    masks: tuple[dict[str, Any], ...] = ()


class EndOfLeg(TrainerCallback):
    """Has a checkpoint written after an optimizer step, and then ends the training; the schedule is that of the whole run."""

    def __init__(self, last_step: int):
        self.last_step = last_step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint after the leg's last step."""
        if state.global_step + 1 == self.last_step:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the training once it is written."""
        # not before: in the checkpoint the run goes on
        if state.global_step == self.last_step:
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The run goes on: nothing is told or evaluated as at its end."""
        if state.global_step == self.last_step < state.max_steps:
            control.should_evaluate = control.should_log = False
