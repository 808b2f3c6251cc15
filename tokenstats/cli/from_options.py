"""Options of the command line, made from the fields of options dataclasses: none can exist on one side only.

A command takes a dataclass of :mod:`tokenstats.options` as one argument, and the command line gets an option for each of its
fields: name, type, default and help are the field's. A boolean is a flag, with a ``--no-`` form where it is on by default.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tokenstats.options import from_mapping, type_of


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose arguments that are options dataclasses became one option for each of their fields."""
    arguments = inspect.signature(command).parameters.values()
    groups = {each.name: each.annotation for each in arguments if dataclasses.is_dataclass(each.annotation)}

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        made = {name: _made(kind, values) for name, kind in groups.items()}
        return command(**values, **made)

    flat: list[inspect.Parameter] = []
    for each in arguments:
        flat += map(_parameter, dataclasses.fields(groups[each.name])) if each.name in groups else [each]
    return with_parameters(run, flat)


def with_parameters(run: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """Let typer see these parameters of a function that takes whatever it is given by name."""
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in named}
    return run


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """Options from what the command line gave; it is taken out of ``values``."""
    found = {}
    for each in dataclasses.fields(kind):
        value, parse = values.pop(each.name), each.metadata["parse"]
        found[each.name] = value if parse is None or value is None else parse(value)
    return from_mapping(kind, found)


def _parameter(option: "dataclasses.Field[Any]") -> inspect.Parameter:
    kind, optional = type_of(option)
    text: Any = str if option.metadata["parse"] is not None else kind
    name = option.metadata["alias"] or option.name.replace("_", "-")
    names = f"--{name}/--no-{name}" if option.default is True else f"--{name}"
    annotation: Any = Annotated[text | None if optional else text, typer.Option(names, help=option.metadata["help"])]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation)
