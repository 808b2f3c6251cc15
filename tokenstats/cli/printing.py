"""How commands print."""

import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenstats.cli.parameters import with_parameters

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@dataclass(frozen=True)
class Answer:
    """What a command found out.

    Attributes:
        facts: It, for ``--json``.
        text: From nothing to the same for people: a string, or what rich renders.
        failed: Where the command is a gate that did not open: which checks failed. The process then ends with status 1.
        is_said: False where another process of the run says it.
    """

    facts: dict[str, Any]
    text: Callable[[], Any]
    failed: str | None = None
    is_said: bool = True


def with_json(command: Callable[..., Answer]) -> Callable[..., None]:
    """A command that prints its answer, with the option ``--json``."""

    @functools.wraps(command)
    def run(as_json: bool, **options: Any) -> None:
        answer = command(**options)
        if answer.is_said:
            _say(answer, as_json)
        if answer.failed is not None:
            print(f"failed: {answer.failed}", file=sys.stderr)
            sys.exit(1)

    parameters = list(inspect.signature(command).parameters.values())
    option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
    return with_parameters(run, [*parameters, option])


def _say(answer: Answer, as_json: bool) -> None:
    text = json.dumps(answer.facts, ensure_ascii=False) if as_json else answer.text()
    if isinstance(text, str):
        print(text)
    else:
        console().print(text)


def console() -> "Console":
    """Where a command draws."""
    from rich.console import Console

    return Console(soft_wrap=False)


def share(part: int, whole: int) -> str:
    """A share in percent; 0 of nothing."""
    return f"{part / whole:.1%}" if whole else "0.0%"


def many(count: int, what: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
