"""tokenstats train, export: what becomes of a mask."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenstats.cli.options import StorePath
from tokenstats.cli.printing import Answer, many, with_json
from tokenstats.cli.run_files import with_run_file
from tokenstats.training.options import ExportOptions, TrainOptions

if TYPE_CHECKING:
    from tokenstats.training import ExportSummary, TrainSummary


_TOLD = {"loss_nll": "nll", "loss_entropy": "H / ln V", "loss_kl": "KL", "agreement": "agreement with the mask"}
"""Names of the history in the words of a summary."""


@with_run_file
@with_json
def train(
    store: Annotated[list[Path], typer.Argument(metavar="STORE…", help="a folder made by 'tokenstats compute', or several")],
    mask: Annotated[str, typer.Option(help="the tokens to learn: a mask of the store (A,B: one each), or none for plain SFT")],
    model: Annotated[str, typer.Option(help="what to fine-tune: folder, Hub id or adapter folder")],
    out: Annotated[Path, typer.Option(help="folder for the result; new or empty")],
    options: TrainOptions,
    follow: Annotated[
        str | None, typer.Option(help="decide in each step by a rule: a preset, a .toml file, or mask: the mask's own")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in --out")] = False,
) -> Answer:
    """Fine-tune a model on the tokens that a mask keeps."""
    from tokenstats import Store
    from tokenstats.following import follow_rule
    from tokenstats.training import train as run

    opened = [Store(path) for path in store]
    selector = follow_rule(opened[0], follow, mask=mask) if follow is not None else None
    try:
        done = run(opened, model=model, out=out, mask=mask, options=options, follow=selector, resume=resume)
    finally:
        leave_process_group()
    return Answer(asdict(done), lambda: trained(done), is_said=is_first_process())


def trained(done: "TrainSummary") -> str:
    """What a training did, in lines."""
    learned = (
        f"{done.kept_tokens:,} tokens learned in an epoch"
        if done.kept_tokens is not None
        else "kept as the rule says in each step"
    )
    last = "step" if done.loss_steps == 1 else many(done.loss_steps, "step")
    lines = [
        f"{done.out}: {many(done.steps, 'step')} over {many(done.rows, 'row')}, {learned}",
        *(f"  {many(count, 'row')} of {path}" for path, count in done.mixture.items()),
        *_left_out(done),
        f"  loss {done.loss:.4f} nats in the last {last}: {done.loss_formula} of each optimizer batch",
        *_means(done.metrics),
    ]
    if done.stopped_by is not None:
        lines.append(f"  stopped early: {done.stopped_by}")
    if done.eval_loss is not None:
        before = f"{done.eval_loss_before:.4f} before, " if done.eval_loss_before is not None else ""
        after = "after" if done.best_step is None else f"after step {done.best_step}, the best: its weights were saved"
        lines.append(f"  {many(done.eval_rows, 'row')} held out, all their targets: {before}{done.eval_loss:.4f} {after}")
        lines += _means(done.eval_metrics)
    return "\n".join(lines)


def _means(found: dict[str, float]) -> list[str]:
    """What the last entry tells besides the loss, a line for each group of tokens."""
    groups: dict[str, list[str]] = {}
    for name, value in found.items():
        group, _, what = name.rpartition("/")
        if group or name in _TOLD:
            groups.setdefault(group, []).append(f"{_TOLD.get(what, what)} {value:.4f}")
    return [f"    {group or 'terms'}: {', '.join(values)}" for group, values in groups.items()]


def _left_out(done: "TrainSummary | ExportSummary") -> list[str]:
    return [f"  left out {many(done.rows_left_out, 'row')} with nothing to learn"] if done.rows_left_out else []


def is_first_process() -> bool:
    """Is this the process that torchrun counts first, or the only one? What a training did is said once."""
    return os.environ.get("RANK", "0") == "0"


def leave_process_group() -> None:
    """Under torchrun: a process that leaves while others still talk to it is aborted at its own exit, now and then."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@with_json
def export(
    store: StorePath,
    mask: Annotated[str, typer.Option(help="the tokens to learn: a mask of the store, or none for all targets")],
    to: Annotated[Path, typer.Option(help="folder for the files; new or empty")],
    options: ExportOptions,
) -> Answer:
    """Write the store's rows and what is learned of them for another trainer."""
    from tokenstats import Store
    from tokenstats.training import export as run

    done = run(Store(store), mask=mask, to=to, options=options)
    return Answer(asdict(done), lambda: _exported(done))


def _exported(done: "ExportSummary") -> str:
    rows = f"{done.to}: {many(done.rows, 'row')}, {done.tokens:,} tokens, {done.kept_tokens:,} learned, "
    return "\n".join([f"{rows}the longest row {done.longest:,}", *_left_out(done), "", done.how_to_read.rstrip()])
