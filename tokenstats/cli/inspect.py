"""tokenstats show, audit, report, app: what is in a store."""

import os
from pathlib import Path
from typing import Annotated

import typer

from tokenstats.cli.options import Scoring, StorePath
from tokenstats.cli.printing import Answer, console, with_json


def show(
    store: StorePath,
    mask: Annotated[str | None, typer.Option(help="whose decisions to show; without one, all targets are learned")] = None,
    row: Annotated[int, typer.Option(help="the first sequence to show, counted from 0")] = 0,
    count: Annotated[int, typer.Option(help="how many sequences", min=1)] = 1,
    scoring: Scoring = None,
    details: Annotated[bool, typer.Option("--details", help="a line for each token with its statistics")] = False,
    text: Annotated[bool, typer.Option("--text", help="plain ASCII, to search, compare and pipe")] = False,
) -> None:
    """Show sequences, their tokens and which of them are learned."""
    from tokenstats import Store
    from tokenstats.inspect.render.terminal_tokens import plain_sequence, render_sequence
    from tokenstats.inspect.tokens.sequence import read_sequence

    opened = Store(store)
    for number in range(row, min(row + count, max(row + 1, opened.manifest.sequences))):
        view = read_sequence(opened, number, mask=mask, scoring=scoring)
        if text:
            print(plain_sequence(view, details))
        else:
            console().print(render_sequence(view, details))


@with_json
def audit(
    store: StorePath,
    mask: Annotated[str | None, typer.Option(help="a mask; without one, plain SFT is audited")] = None,
    scoring: Scoring = None,
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="LEVEL|CHECK,…", help="exit with 1 on this verdict (note, warning, problem) or on these checks"),
    ] = None,
) -> Answer:
    """Say what will be learned, and what looks wrong."""
    from tokenstats import Store
    from tokenstats.inspect.audit.audit import audit as run
    from tokenstats.inspect.audit.gate import Gate

    gate = Gate.parse(fail_on) if fail_on is not None else Gate()
    found = run(Store(store), mask, scoring)
    failing = [f"{f.name}{f' of {f.about}' if f.about else ''} ({f.verdict})" for f in gate.failing(found.findings)]
    return Answer(found.to_dict(), lambda: found, failed=", ".join(failing) or None)


def report(
    store: StorePath,
    to: Annotated[Path, typer.Option(help="folder for the page and its pictures; a former report is replaced")],
    scoring: Scoring = None,
    run: Annotated[Path | None, typer.Option(help="a folder that was trained into on this store: its curves too")] = None,
) -> None:
    """Write plots and a page about a store, its scoring, its masks and a training run."""
    from tokenstats import Store
    from tokenstats.inspect.report import report as write

    print(f"wrote {write(Store(store), to, scoring=scoring, run=run)}")


def app(
    store: Annotated[Path | None, typer.Argument(metavar="[STORE]", help="the store to open with")] = None,
    port: Annotated[int, typer.Option(help="where the app listens, on this machine only", min=1, max=65535)] = 8501,
) -> None:
    """Open the app: tokens, thresholds, masks."""
    from tokenstats.cli.app import app_command

    command = app_command(store, port)
    os.execv(command[0], command)  # in the place of this process: whoever ends it ends the app
