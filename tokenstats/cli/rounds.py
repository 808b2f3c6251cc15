"""tokenstats rounds: masks made anew while a model trains."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokenstats.cli.from_options import Unoffered
from tokenstats.cli.options import StorePath
from tokenstats.cli.printing import Answer, many, with_json
from tokenstats.cli.run_files import with_run_file
from tokenstats.cli.train_export import is_first_process, leave_process_group, trained
from tokenstats.rounds.options import NOT_IN_ROUNDS, RoundOptions
from tokenstats.training.options import TrainOptions


@with_run_file
@with_json
def rounds(
    store: StorePath,
    model: Annotated[str, typer.Option(help="what to fine-tune: folder, Hub id or adapter folder")],
    rule: Annotated[str, typer.Option(help="what each mask is made by: a preset, or a .toml file with a rule")],
    every: Annotated[int, typer.Option(help="optimizer steps from one mask to the next")],
    out: Annotated[Path, typer.Option(help="folder for the result; new or empty")],
    rounds: RoundOptions,
    options: Annotated[TrainOptions, Unoffered(NOT_IN_ROUNDS)],
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out where it was stopped")] = False,
) -> Answer:
    """Fine-tune a model on masks that are made anew from it, every so many steps."""
    from tokenstats.rounds.record import RECORD
    from tokenstats.rounds.run import train_rounds

    try:
        done = train_rounds(store, model=model, rule=rule, every=every, out=out, rounds=rounds, options=options, resume=resume)
    finally:
        leave_process_group()
    made, last = done.rounds, done.rounds[-1]
    told = f"  {many(len(made), 'round')}, the last mask {last.name}: see {Path(done.training.out) / RECORD}"
    return Answer(asdict(done), lambda: f"{trained(done.training)}\n{told}", is_said=is_first_process())
