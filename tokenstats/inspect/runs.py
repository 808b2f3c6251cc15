"""Training runs below a folder, and their curves: what lies beside the weights in ``history.json``."""

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from tokenstats.errors import InputError
from tokenstats.store.find_stores import find_below
from tokenstats.training.history import HISTORY

_PHASES = ("training", "evaluation")
_AXES = ("step", "epoch")


@dataclass(frozen=True)
class Curve:
    """One measure of a run by step.

    Attributes:
        measure: ``loss`` (nats a token), ``grad_norm``, ``learning_rate``, or a mean over a group of tokens, such as
            ``entropy/dropped``.
        phase: ``training`` or ``evaluation``.
        points: Step and value, in the order in which they were written.
    """

    measure: str
    phase: str
    points: tuple[tuple[int, float], ...]


def find_runs(folder: str | Path) -> list[Path]:
    """Folders with a ``history.json``: the folder itself, or at most three levels below it, by path."""
    return find_below(folder, lambda path: (path / HISTORY).is_file())


def curves_of(run: str | Path) -> list[Curve]:
    """What a run's history tells, measure by measure, the loss first.

    Raises InputError where the file cannot be read, or is no history of a run.
    """
    path = Path(run) / HISTORY
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(history, dict) or not all(isinstance(history.get(phase), list) for phase in _PHASES):
        raise InputError(f"{path} is no history of a run: expected lists named {' and '.join(_PHASES)}")
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for phase in _PHASES:
        for entry in history[phase]:
            for measure, value in _numbers(entry, path).items():
                found.setdefault((measure, phase), []).append((int(entry["step"]), value))
    return [Curve(measure, phase, tuple(points)) for (measure, phase), points in sorted(found.items(), key=_loss_first)]


def _numbers(entry: Any, path: Path) -> dict[str, float]:
    """An entry's finite numbers but for those that count the way."""
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int | float):
        raise InputError(f"{path} is no history of a run: an entry has no step")
    return {n: float(v) for n, v in entry.items() if n not in _AXES and isinstance(v, int | float) and isfinite(v)}


def _loss_first(item: tuple[tuple[str, str], Any]) -> tuple[bool, str, bool]:
    (measure, phase), _ = item
    return measure != "loss", measure, phase != "training"
