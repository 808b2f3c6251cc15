"""Functions whose parameters are put together, as typer sees them."""

import inspect
from collections.abc import Callable
from typing import Any


def with_parameters(run: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """Let typer see these parameters of a function that takes whatever it is given by name."""
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in named}
    return run
