"""What can go wrong through no fault of ours.

    TokenstatsError          exit status 2: one line says what was got, what was expected, what to do
    ├── InputError           an argument, a dataset, a model folder
    │                        (a ValueError too)
    ├── StoreError           what lies in a store: damaged, unfinished, or made from something else
    │   └── NotThere         a scoring or mask of that name is not in it (a KeyError too)
    └── RuleError            the text of a rule (a ValueError too)
    TokenstatsWarning        the work goes on, and its user should know something (a UserWarning)

Any other error that escapes is a bug of tokenstats and shows its traceback.

Messages name the arguments of Python functions through :func:`argument`; the command line says its own options instead.
"""

import re
from collections.abc import Callable, Mapping

__all__ = [
    "InputError",
    "NotThere",
    "RuleError",
    "StoreError",
    "TokenstatsError",
    "TokenstatsWarning",
    "argument",
    "nearest",
    "one_line",
    "said_in",
    "with_arguments",
]

_MARK = "\x1f"  # one_line lets none through: text from outside holds no mark
_ARGUMENT = re.compile(f"{_MARK}(\\w+)(?:=([^{_MARK}]*))?{_MARK}")


class _Message(Exception):
    """A message as Python shows it, and ``marked``: the same with what :func:`argument` wrote."""

    def __init__(self, message: str = ""):
        super().__init__(with_arguments(message, lambda name, value: name if value is None else f"{name}={value}"))
        self.marked = message


class TokenstatsError(_Message):
    """Base of all errors that a user can mend."""


class InputError(TokenstatsError, ValueError):
    """An argument, a dataset or a model folder is not what it should be."""


class StoreError(TokenstatsError):
    """A store is damaged, unfinished, or was made from something else."""


class NotThere(StoreError, KeyError):
    """A store has no scoring or mask of this name."""

    __str__ = Exception.__str__  # a KeyError would print its message in quotes


class RuleError(TokenstatsError, ValueError):
    """The text of a rule cannot be used."""


class TokenstatsWarning(_Message, UserWarning):
    """What the work goes on in spite of, and its user should know."""


def argument(name: str, value: object = None) -> str:
    """An argument named in the message of an error or a warning, and in nothing else.

    Python shows ``topk`` or ``topk=5``, the command line its own option in that place. No word of a message can be mistaken
    for an argument: they are told apart by a mark, not by their text.

    Args:
        name: The argument's or field's name in Python.
        value: What it should be given, or was given; None names the argument alone.
    """
    return f"{_MARK}{name}{'' if value is None else f'={value!r}'}{_MARK}"


def with_arguments(marked: str, say: Callable[[str, str | None], str]) -> str:
    """A message in which ``say`` writes each argument, from its name and the ``repr`` of its value (None: no value)."""
    return _ARGUMENT.sub(lambda found: say(found[1], found[2]), marked)


def said_in(marked: str, places: Mapping[str, str]) -> str:
    """A marked message in which the arguments that were said in a file are named as such: ``epochs (run.toml)``.

    Args:
        marked: The message, of which other arguments keep their marks.
        places: The file by argument.
    """

    def say(name: str, value: str | None) -> str:
        if name in places:
            return f"{name}{'' if value is None else f' = {value}'} ({places[name]})"
        return f"{_MARK}{name}{'' if value is None else f'={value}'}{_MARK}"

    return with_arguments(marked, say)


def one_line(text: object, limit: int = 300) -> str:
    """Untrusted text on one printable line: no control characters, no terminal escapes."""
    clean = re.sub(
        r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    )
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def nearest(name: str, known: list[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest known name, or nothing."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
