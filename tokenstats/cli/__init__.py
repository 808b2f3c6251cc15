"""The command line: parsing and printing only. Each command is a thin face over one function.

Exit status 0 only when the whole job was done; 2 for a mistake that the caller can mend, with one line that says which;
1 where an audit fails the gate that --fail-on puts up; 130 where Ctrl-C ended it, 143 where SIGTERM did.
"""

import os
import sys
from functools import cache
from typing import Annotated, Any

import typer

from tokenstats.cli.compute import compute
from tokenstats.cli.from_options import with_options
from tokenstats.cli.inspect import app, audit, report, show
from tokenstats.cli.interrupts import Interrupted, interruptible, told
from tokenstats.cli.mask import compare, mask, sweep
from tokenstats.cli.messages import in_options, warnings_as_lines
from tokenstats.cli.rounds import rounds
from tokenstats.cli.train_export import export, train
from tokenstats.errors import TokenstatsError, one_line

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Score a fine-tuning dataset once, see its tokens, and decide which of them to learn from.",
)
for command in (compute, mask, sweep, compare, show, audit, report, app, train, rounds, export):
    cli.command()(told(with_options(command)))


@cache
def all_commands() -> Any:
    """The click group of all commands."""
    return typer.main.get_command(cli)


def main() -> None:
    """Entry point: errors of the user become one line and status 2."""
    # before torch brings OpenMP, which reads it once: threads that spin while they wait starve each other on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    with interruptible() as end:
        try:
            with warnings_as_lines(all_commands):
                _run()
        except Interrupted as stop:
            end(str(stop))
        except KeyboardInterrupt:
            end("nothing was begun; run the same command again")


def _run() -> None:
    try:
        status = cli(standalone_mode=False)
        if isinstance(status, int):  # how typer returns typer.Exit here, and Ctrl-C before a command began
            if status == 130:
                raise KeyboardInterrupt
            sys.exit(status)
    except TokenstatsError as error:
        _stop(in_options(error.marked, all_commands()))
    except (typer.Exit, SystemExit) as stop:
        sys.exit(getattr(stop, "exit_code", getattr(stop, "code", 0)))
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away, as in 'tokenstats show STORE | head'
        sys.exit(141)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            _stop(f"{one_line(error.filename, 200)}: {error.strerror}; choose another path, or mend its rights")
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            _stop(f"{one_line(error.format_message(), 500)} See 'tokenstats --help'.")
        if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's, of ~nobody
            _stop("a path begins with ~ and the name of somebody who has no home here; write it out, or as ./~NAME")
        raise


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


@cli.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if version:
        from tokenstats import __version__

        print(f"tokenstats {__version__}")
        raise typer.Exit
