"""Ctrl-C and SIGTERM: the process ends at once, with 128 + the signal's number, and says what is there and how to go on.

130 for SIGINT, 143 for SIGTERM, as shells have it. Nothing half-written stays: what is whole does, and every command goes on
from there, or begins anew, when it is run again.
"""

import atexit
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tokenstats.errors import one_line

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN = "run the same command again"
_PATIENCE = 30.0  # seconds from the signal until the process ends, whatever it still waits for


class Interrupted(BaseException):
    """A command was interrupted; the text says what is there and how to go on."""


@contextmanager
def interruptible() -> Iterator[Callable[[str], None]]:
    """Within the block, signals stop the work. Yields what ends the process then: it takes the line to say."""
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        drafts = sys.modules.get("tokenstats.store.drafts")
        if drafts is not None:  # else nothing is being written yet
            drafts.abandon()  # before anything else: threads that are writing need not be waited for
        if not received:
            received.append(number)
            # raised inside a library's callback it is dropped and printed; the next write, or _at_the_latest, ends the run then
            sys.unraisablehook = lambda dropped: None
            _at_the_latest(128 + number)
        raise KeyboardInterrupt

    def end(text: str) -> None:
        print(f"interrupted: {one_line(text, 600)}", file=sys.stderr)
        if not received:  # raised by hand: nothing is known of threads
            sys.exit(128 + signal.SIGINT)
        # threads may be deep in compiled code: the interpreter would wait for some of them, and trip over the others
        for step in (atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
            try:
                step()
            except Exception:  # a broken pipe, or a library that cannot end well: the line is said
                continue
        os._exit(128 + received[0])

    before = {}
    if threading.current_thread() is threading.main_thread():
        # who starts a job in the background of a script has told it to ignore Ctrl-C
        before = {number: signal.signal(number, stop) for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _at_the_latest(status: int) -> None:
    """End the process even where something on the way out waits for ever, such as a cluster that is gone."""

    def give_up() -> None:
        print(f"interrupted: {_AGAIN}", file=sys.stderr, flush=True)
        os._exit(status)

    timer = threading.Timer(_PATIENCE, give_up)
    timer.daemon = True
    timer.start()


def told(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that says, when it is interrupted, what is there and how to go on."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt:
            raise Interrupted(_WHAT_IS_THERE.get(command.__name__, _nothing_written)(options)) from None

    return run


def _nothing_written(_: dict[str, Any]) -> str:
    return f"what was not finished is not there, and what was there before is as it was; {_AGAIN}"


def _compute(options: dict[str, Any]) -> str:
    store = Path(options["store"])
    folders = [store / "tokens", *sorted(path for path in store.glob("stats/[!.]*") if not (path / "manifest.json").exists())]
    counts = {folder: len(list(folder.glob("part-*.parquet"))) for folder in folders}
    said = [f"{count:,} {'part' if count == 1 else 'parts'} of {folder.name}" for folder, count in counts.items() if count]
    if not said:
        return f"nothing was written yet; {_AGAIN}"
    return f"{store} holds {' and '.join(said)}, whole; {_AGAIN} to go on from there"


def _train(options: dict[str, Any]) -> str:
    out = Path(options["out"])
    if not out.exists():
        return f"nothing was written; {_AGAIN}"
    whole = [path.parent for path in out.glob("checkpoint-*/trainer_state.json")]
    if not whole:
        return f"{out} holds no checkpoint to go on from (--save-steps writes them); empty it and {_AGAIN} to begin anew"
    last = max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))
    return f"the last checkpoint is {last}; {_AGAIN} with --resume to go on from there"


def _rounds(options: dict[str, Any]) -> str:
    out = Path(options["out"])
    if not (out / "rounds.json").exists():
        return f"nothing was written; {_AGAIN}"
    return f"{out} and the store hold the run up to here; {_AGAIN} with --resume to go on in the same round"


_WHAT_IS_THERE = {"compute": _compute, "train": _train, "rounds": _rounds}
