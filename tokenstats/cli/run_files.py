"""--config FILE: a command's options from a TOML file, which the command line overrides; --print-config: all of them, as one.

The keys are the options' names in Python. Flags of the command itself, such as --resume, say how it runs and not what it makes:
they are no keys.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from tokenstats.cli.parameters import with_parameters
from tokenstats.errors import TokenstatsError, one_line, said_in
from tokenstats.options import Check, effective, expect, names_of
from tokenstats.run_file import read_run_file, to_toml

RUN_FILE = "tokenstats.run_file"
"""Where a command's context keeps the file that was given."""
_TEXT, _NUMBER = (Check("a text", bool), str), (Check("a whole number", lambda _: True), int)
_TEXTS = Check("a text, or a list of texts", lambda found: found and all(isinstance(each, str) and each for each in found))
_CONFIG = "a TOML file of options, by their names in Python; the command line overrides it"
_PRINT = "print every option as it takes effect, as such a file, and do nothing"


@dataclasses.dataclass(frozen=True)
class RunFile:
    """What a file says, by name; where none was given, nothing."""

    title: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @contextmanager
    def naming(self, names: Iterable[str]) -> Iterator[None]:
        """Within the block, errors that name one of these options say that the file said it."""
        try:
            yield
        except TokenstatsError as error:
            raise type(error)(said_in(error.marked, dict.fromkeys(names, self.title))) from error


def with_run_file(command: Callable[..., None]) -> Callable[..., None]:
    """A command that can be told its options by a file.

    Its arguments are texts, paths, whole numbers, flags and options dataclasses.
    """
    arguments = inspect.signature(command).parameters.values()
    groups = {each.name: _type_of(each) for each in arguments if dataclasses.is_dataclass(_type_of(each))}
    own = [each.name for each in arguments if each.name not in groups and not _is_flag(each)]
    numbers = [each.name for each in arguments if _type_of(each) is int]
    several = [each.name for each in arguments if get_origin(_type_of(each)) is list]
    keys = [*own, *(name for kind in groups.values() for name in names_of(kind))]

    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            file = RunFile(one_line(path, 100), read_run_file(path, keys))
            of_command = {name: value for name, value in file.values.items() if name in own}
            with file.naming(of_command):
                for name, value in of_command.items():
                    if name in several:
                        of_command[name] = _texts(name, value)
                    else:
                        expect(name, value, *(_NUMBER if name in numbers else _TEXT))
            context.meta[RUN_FILE] = file
            context.default_map = of_command  # so that what must be given is not missed on the command line
        return path

    @functools.wraps(command)
    def run(config: Path | None, print_config: bool, **values: Any) -> None:
        if not print_config:
            command(**values)
            return
        said = {name: _plain(values[name]) for name in own if values[name] is not None}
        for group in groups:
            said |= effective(values[group])
        print(json.dumps(said, ensure_ascii=False) if values.get("as_json") else to_toml(said).rstrip())

    config = Annotated[Path | None, typer.Option(help=_CONFIG, callback=read, is_eager=True)]
    shown = Annotated[bool, typer.Option("--print-config", help=_PRINT)]
    return with_parameters(run, [*arguments, _option("config", None, config), _option("print_config", False, shown)])


def _texts(name: str, value: object) -> list[Any]:
    """What may be one text or several."""
    found = value if isinstance(value, list) else [value]
    expect(name, found, _TEXTS, list)
    return found


def _plain(value: Any) -> Any:
    """A whole number, or a text or path, or several, as a file has it."""
    if not isinstance(value, list):
        return value if isinstance(value, int) else str(value)
    return str(value[0]) if len(value) == 1 else [str(each) for each in value]


def _option(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _is_flag(parameter: inspect.Parameter) -> bool:
    return _type_of(parameter) is bool


def _type_of(parameter: inspect.Parameter) -> Any:
    """Of an argument as typer has it: what is annotated."""
    kind, *_ = get_args(parameter.annotation) or (parameter.annotation,)
    return kind
