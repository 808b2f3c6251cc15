"""A run that was stopped: the checkpoint that it goes on from, and that it is the same run."""

import json
import re
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer_callback import TrainerControl

from tokenstats.errors import InputError, argument, one_line
from tokenstats.store.parts import describe_difference
from tokenstats.training.provenance import RECORD
from tokenstats.training.rows import check_writable

_STATE = "trainer_state.json"
_MAY_CHANGE = ("device", "report_to", "keep_checkpoints")


def find_checkpoint(out: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None. Raises InputError where ``out`` is taken, or holds nothing to resume."""
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                f"{out} exists and is not empty; choose another folder, or go on with the run that made it "
                f"({argument('resume', True)})"
            )
        check_writable(out)
        return None
    # its state is written last: without it a checkpoint was cut short
    found = (p.parent for p in out.glob(f"checkpoint-*/{_STATE}"))
    whole = {int(p.name.removeprefix("checkpoint-")): p for p in found if re.fullmatch(r"checkpoint-\d+", p.name)}
    if not whole:
        raise InputError(
            f"{out} holds no checkpoint to resume from; expected the folder of a stopped run that had {argument('save_steps')}"
        )
    _check_best_is_there(state_of(whole[max(whole)]))
    return whole[max(whole)]


def state_of(checkpoint: Path) -> TrainerState:
    """How far a run had come."""
    return TrainerState.load_from_json(str(checkpoint / _STATE))


def has_ended(state: TrainerState) -> bool:
    """Was the checkpoint written when nothing was left to train?"""
    return bool(state.stateful_callbacks[TrainerControl.__name__]["args"]["should_training_stop"])


def _check_best_is_there(state: TrainerState) -> None:
    best = state.best_model_checkpoint
    if best is not None and not Path(best).is_dir():
        raise InputError(f"the best checkpoint of the run, {one_line(best, 200)}, is not there any more; put the folder back")


def check_same_run(out: Path, record: dict[str, Any]) -> None:
    """Refuse to go on with another store, mask, model or setting than the checkpoint was made with."""
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
        there, asked = _identity(found), _identity(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{out / RECORD} cannot be read ({one_line(error, 80)}): what the checkpoint is of is not known; begin anew"
        ) from None
    if there != asked:
        raise InputError(
            f"{out} holds another run: {describe_difference(there, asked)}; resume with what it had, or choose another folder"
        )


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in record["training"].items() if name not in _MAY_CHANGE}
    return {
        "store": record["store_fingerprint"],
        "mask": record["mask_fingerprint"],
        "model": record["base_model"]["fingerprint"],
        "reference model": (record.get("reference") or {}).get("fingerprint"),
        "followed rule": (record.get("follow") or {}).get("fingerprint"),
        **settings,
    }
