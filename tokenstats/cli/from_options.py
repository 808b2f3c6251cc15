"""Options of the command line, made from the fields of options dataclasses: none can exist on one side only.

A command takes a dataclass of :mod:`tokenstats.options` as one argument, and the command line gets an option for each of its
fields: name, type, default and help are the field's. A boolean is a flag, with a ``--no-`` form where it is on by default, or
may be in a run file. ``Annotated[Options, Unoffered(names)]`` takes all of them and offers some: the help leaves out what the
command refuses, and who gives it is told why.
What was given, on the command line or in a run file, must be of use, even where it is the default.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer

from tokenstats.cli.parameters import with_parameters
from tokenstats.cli.run_files import RUN_FILE, RunFile
from tokenstats.options import from_mapping, names_of, refuse_useless, type_of


class Unoffered(frozenset[str]):
    """Names of options that a command refuses, and so does not offer."""


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose arguments that are options dataclasses became one option for each of their fields."""
    arguments = inspect.signature(command).parameters.values()
    groups = {each.name: group for each in arguments if (group := _group(each.annotation)) is not None}

    @functools.wraps(command)
    def run(context: typer.Context, **values: Any) -> Any:
        file: RunFile = context.meta.get(RUN_FILE, RunFile())
        typed = {name for name in values if _source(context, name) == "COMMANDLINE"}
        of_file = {name: value for name, value in file.values.items() if name not in typed}
        values |= {name: of_file[name] for kind, _ in groups.values() for name in names_of(kind) if name in of_file}
        with file.naming(of_file):
            made = {name: _made(kind, values, typed | of_file.keys()) for name, (kind, _) in groups.items()}
            return command(**values, **made)

    flat = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    has_file = "config" in inspect.signature(command).parameters
    for each in arguments:
        if each.name in groups:
            kind, unoffered = groups[each.name]
            flat += [_parameter(option, has_file, option.name in unoffered) for option in dataclasses.fields(kind)]
        else:
            flat.append(each)
    return with_parameters(run, flat)


def _group(annotation: Any) -> tuple[Any, Unoffered] | None:
    """The options dataclass that an argument stands for, and which of its fields are not offered; None: it is no group."""
    kind, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not dataclasses.is_dataclass(kind):
        return None
    return kind, next((note for note in notes if isinstance(note, Unoffered)), Unoffered())


def _source(context: typer.Context, name: str) -> str:
    """Where click has the value of an argument from."""
    source = context.get_parameter_source(name)
    return source.name if source is not None else ""


def _made(kind: Any, values: dict[str, Any], said: set[str]) -> Any:
    """Options from what was given; it is taken out of ``values``. ``said``: names of what was given, whatever its value."""
    found = {}
    for each in dataclasses.fields(kind):
        value, parse = values.pop(each.name), each.metadata["parse"]
        found[each.name] = parse(value) if parse is not None and isinstance(value, str) else value
    options = from_mapping(kind, found)
    refuse_useless(options, said)
    return options


def _parameter(option: "dataclasses.Field[Any]", has_file: bool, hidden: bool) -> inspect.Parameter:
    """``has_file``: a run file may have set a flag, so the command line can unset it."""
    kind, optional = type_of(option)
    text: Any = str if option.metadata["parse"] is not None else kind
    name = option.metadata["alias"] or option.name.replace("_", "-")
    opposite = option.default is True or (has_file and kind is bool)
    names = f"--{name}/--no-{name}" if opposite else f"--{name}"
    shown = typer.Option(names, help=option.metadata["help"], hidden=hidden)
    annotation: Any = Annotated[text | None if optional else text, shown]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation)
