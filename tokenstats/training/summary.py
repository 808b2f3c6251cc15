"""What a run says when it has ended."""

from dataclasses import dataclass, field

import numpy as np
from transformers import TrainerState

from tokenstats.training.history import History, means_in
from tokenstats.training.mixture import MixedRows
from tokenstats.training.options import TrainOptions
from tokenstats.training.request import Request

_NO_METRICS = ("step", "epoch", "loss", "tokens_per_second")


@dataclass(frozen=True)
class TrainSummary:
    """What a run did.

    Attributes:
        out: Folder of the weights, their tokenizer, ``tokenstats.json``, ``run.toml``, ``history.json`` and ``training.png``.
        steps: Optimizer steps in all, those before a resume included.
        loss: Mean training loss of the last steps, those of the last entry of the history, in nats.
        loss_steps: How many these are: ``logging_steps``, or fewer where the run, or a checkpoint, ended an entry early.
        loss_formula: What that loss is, over each optimizer batch.
        eval_loss: Loss of the rows held out over all their target tokens, in nats; None where none are.
        eval_loss_before: The same before the first step.
        rows: Rows of an epoch.
        rows_left_out: Rows with nothing kept, or nothing of weight above 0.
        eval_rows: Rows held out.
        kept_tokens: Tokens whose cross-entropy an epoch contributes (with ``shares``, the first one); None where a rule is
            followed, which decides in each step.
        metrics: What the last entry of the history tells besides the loss (docs/TRAINING.md lists the names).
        eval_metrics: The same of the rows held out, of the weights that were saved.
        best_step: With ``best_by`` the step whose weights were saved; ``eval_loss`` and ``eval_metrics`` are theirs too.
        stopped_by: Why the run ended before its time, or None.
        mixture: Of several stores the rows of each in an epoch, by their paths.
    """

    out: str
    steps: int
    loss: float
    loss_steps: int
    loss_formula: str
    eval_loss: float | None
    eval_loss_before: float | None
    rows: int
    rows_left_out: int
    eval_rows: int
    kept_tokens: int | None
    metrics: dict[str, float]
    eval_metrics: dict[str, float]
    best_step: int | None = None
    stopped_by: str | None = None
    mixture: dict[str, int] = field(default_factory=dict)


def summary_of(
    request: Request, rows: MixedRows, first_epoch: np.ndarray, loss_formula: str, state: TrainerState, history: History
) -> TrainSummary:
    """The summary of a run from its rows, those of its first epoch, its last state and its curve."""
    evaluation, training, data = history["evaluation"], history["training"], rows.data
    last = training[-1]
    best_step = None
    if request.options.best_by is not None and state.best_model_checkpoint is not None:
        best_step = int(state.best_model_checkpoint.rpartition("-")[2])
    saved = next((each for each in evaluation if each["step"] == best_step), evaluation[-1]) if evaluation else None
    return TrainSummary(
        out=str(request.out),
        steps=state.global_step,
        loss=last["loss"],
        loss_steps=int(last["step"] - (training[-2]["step"] if len(training) > 1 else 0)),
        loss_formula=loss_formula,
        eval_loss=saved["loss"] if saved else None,
        eval_loss_before=evaluation[0]["loss"] if evaluation else None,
        rows=rows.mixture.rows,
        rows_left_out=data.left_out,
        eval_rows=len(data.evaluation) if data.evaluation else 0,
        kept_tokens=data.train.learned_tokens_of(first_epoch) if request.follow is None else None,
        metrics={name: value for name, value in last.items() if name not in _NO_METRICS},
        eval_metrics=means_in(saved) if saved else {},
        best_step=best_step,
        stopped_by=_stopped_by(request.options, state, evaluation),
        mixture=_mixture(request, rows),
    )


def _mixture(request: Request, rows: MixedRows) -> dict[str, int]:
    if len(request.sources) == 1:
        return {}
    return {str(source.store.path): count for source, count in zip(request.sources, rows.mixture.counts, strict=True)}


def _stopped_by(options: TrainOptions, state: TrainerState, evaluation: list[dict[str, float]]) -> str | None:
    if state.global_step >= state.max_steps:
        return None
    if options.stop_at_kl is not None and evaluation[-1]["targets/kl"] >= options.stop_at_kl:
        return f"the KL of the rows held out reached {options.stop_at_kl:g} nats"
    if options.patience is not None:
        return f"no evaluation was the best for {options.patience} in a row"
    return "a callback"
