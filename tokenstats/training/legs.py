"""A run in several legs: each has a mask of its own, all have one model, optimizer, schedule and order of rows.

    train_leg(store, model="models/base", mask=None, out="runs/out", options=options, leg=Leg(last_step=20))
    train_leg(store, model="models/base", mask="round-0", out="runs/out", options=options, leg=Leg(last_step=60))

A leg ends with a checkpoint, and the next goes on from it; one that was killed goes on from the last that is whole.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_STATE = "trainer_state.json"


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
        if state.global_step + 1 == self.last_step:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # not before: in the checkpoint the run goes on
        if state.global_step == self.last_step:
            control.should_training_stop = True


def last_checkpoint(out: Path) -> Path | None:
    """The checkpoint of most steps that is whole; None where a folder has none.

    Its state is written last: without it, or with a piece of it, the checkpoint was cut short.
    """
    whole = {step_of(path.parent): path.parent for path in out.glob(f"checkpoint-*/{_STATE}") if _is_whole(path)}
    return whole[max(whole)] if whole else None


def state_of(checkpoint: Path) -> TrainerState:
    """How far the run had come, with its history."""
    return TrainerState.load_from_json(str(checkpoint / _STATE))


def step_of(checkpoint: Path | None) -> int:
    """The optimizer steps that a checkpoint was made after; 0 for none."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))


def _is_whole(state: Path) -> bool:
    if not re.fullmatch(r"checkpoint-\d+", state.parent.name):
        return False
    try:
        return isinstance(json.loads(state.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False
