"""What the library says, as lines on stderr in words of the command line: ``--topk`` where Python says ``topk``."""

import ast
import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tokenstats.errors import TokenstatsWarning, one_line, with_arguments

_LIMIT = 2000  # characters of a line


def in_options(marked: str, group: Any) -> str:
    """A message on one line that names options where the library names arguments.

    Args:
        marked: The message, as an error or a warning has it in ``marked``.
        group: The click group of all commands. Where several have an option for an argument, that of the running command is
            meant; what no command has stays as Python says it.
    """
    running = next((word for word in sys.argv[1:] if word in group.commands), None)
    commands = sorted(group.commands.items(), key=lambda item: item[0] == running)
    names = {each.name: _names_of(each) for _, command in commands for each in command.params}

    def say(name: str, value: str | None) -> str:
        if name not in names:
            return name if value is None else f"{name}={value}"
        option, negative = names[name]
        if value in (None, "True", "False"):
            return negative if value == "False" else option
        text = ast.literal_eval(value) if value[0] in "'\"" else value
        return f"{option} {shlex.quote(text)}"

    return one_line(with_arguments(marked, say), _LIMIT)


def _names_of(parameter: Any) -> tuple[str, str]:
    """What a parameter is called, and, of a flag, its opposite."""
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
        return name, name
    return parameter.opts[0], (parameter.secondary_opts or parameter.opts)[0]


@contextmanager
def warnings_as_lines(group: Callable[[], Any]) -> Iterator[None]:
    """Within the block, warnings and notes of the library are lines on stderr, each as often as it comes.

    Args:
        group: From nothing to the click group of all commands.
    """
    logger, handler = logging.getLogger("tokenstats"), _Lines()
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("always", TokenstatsWarning)
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: Any = None,
        ) -> None:
            if isinstance(message, TokenstatsWarning):
                print(f"warning: {in_options(message.marked, group())}", file=sys.stderr)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(one_line(record.getMessage(), _LIMIT), file=sys.stderr)
