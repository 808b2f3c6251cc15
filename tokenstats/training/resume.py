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
MAY_CHANGE = ("device", "report_to", "keep_checkpoints")
"""Options that may be others when a run goes on."""
OF_ALL_LEGS = ("store", "model")
"""What legs of one run have in common beyond what their caller holds together."""


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
    checkpoint = last_checkpoint(out)
    if checkpoint is None:
        raise InputError(
            f"{out} holds no checkpoint to resume from; expected the folder of a stopped run that had {argument('save_steps')}"
        )
    _check_best_is_there(state_of(checkpoint))
    return checkpoint


def last_checkpoint(out: Path) -> Path | None:
    """The checkpoint of most steps that is whole; None where a folder has none.

    Its state is written last: without it, or with a piece of it, the checkpoint was cut short.
    """
    whole = {step_of(path.parent): path.parent for path in out.glob(f"checkpoint-*/{_STATE}") if _is_whole(path)}
    return whole[max(whole)] if whole else None


def clear_pieces(out: Path) -> None:
    """Remove weights that a killed run was writing, as large as the model: safetensors writes beside the file, and renames."""
    for piece in [*out.glob(".tmp??????"), *out.glob("checkpoint-*/.tmp??????")]:
        if piece.is_file():
            piece.unlink(missing_ok=True)


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


def check_same_run(out: Path, record: dict[str, Any], names: tuple[str, ...] | None = None) -> None:
    """Refuse to go on with another store, mask, model or setting than the checkpoint was made with.

    Args:
        out: The run's folder.
        record: Of the run that is asked for.
        names: Of what must be the same; None: all.

    Raises:
        InputError: It is another run, or its record cannot be read.
    """
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
        there, asked = ({n: v for n, v in _identity(r).items() if names is None or n in names} for r in (found, record))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{out / RECORD} cannot be read ({one_line(error, 80)}): what the checkpoint is of is not known; begin anew"
        ) from None
    if there != asked:
        raise InputError(
            f"{out} holds another run: {describe_difference(there, asked)}; resume with what it had, or choose another folder"
        )


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in record["training"].items() if name not in MAY_CHANGE}
    return {
        "store": record["store_fingerprint"],
        "mask": record["mask_fingerprint"],
        "model": record["base_model"]["fingerprint"],
        "reference model": (record.get("reference") or {}).get("fingerprint"),
        "followed rule": (record.get("follow") or {}).get("fingerprint"),
        **{f"mask that {option} names": of for option, of in record.get("masks_of_terms", {}).items()},
        **settings,
    }
