"""Options as frozen dataclasses: the default, the help text and the check of each stand in one place, its field.

    @dataclass(frozen=True, kw_only=True)
    class ScoringOptions:
        topk: int = field(0, "keep the K most likely alternatives too", at_least(0))

        def __post_init__(self) -> None:
            check(self)

The command line makes an option of each field, and a table of a file becomes options by :func:`from_mapping`. Loads no torch.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from tokenstats.errors import InputError, argument, nearest, one_line

Options = TypeVar("Options")

_IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Mapping: "a table of names"}


@dataclasses.dataclass(frozen=True)
class Check:
    """What a value must be.

    Attributes:
        expected: It in words, to follow "expected".
        holds: Is a value, which has the type of its field, so?
        known: The values that there are, where these are few: the nearest one is suggested.
    """

    expected: str
    holds: Callable[[Any], bool]
    known: tuple[str, ...] = ()


def one_of(*known: str) -> Check:
    """One of these texts."""
    return Check(f"one of: {', '.join(known)}", lambda value: value in known, known)


def at_least(least: int) -> Check:
    """A whole number, ``least`` or more."""
    return Check(f"a whole number, at least {least}", lambda value: value >= least)


def above(bound: float) -> Check:
    """A finite number above ``bound``."""
    return Check(f"a number above {bound:g}", lambda value: bound < value < math.inf)


def between(least: float, bound: float) -> Check:
    """At least ``least`` and below ``bound``."""
    return Check(f"at least {least:g} and below {bound:g}", lambda value: least <= value < bound)


NOT_NEGATIVE = Check("a number, at least 0", lambda value: 0 <= value < math.inf)
SEED = Check("a whole number from 0 to 2³² - 1", lambda value: 0 <= value < 2**32)


def field(
    default: Any, help: str, must: Check | None = None, *, alias: str | None = None, parse: Callable[[str], Any] | None = None
) -> Any:
    """The field of one option.

    Args:
        default: Its value where it is not given. None: there is none, or the help text says in brackets what is taken.
        help: What it does, for the command line's help and for readers of the class.
        must: What its values must be beyond their type; None is never checked.
        alias: Its name on the command line, where that is not the field's own.
        parse: From the command line's text to its value, where that is no plain text or number.
    """
    return dataclasses.field(default=default, metadata={"help": help, "must": must, "alias": alias, "parse": parse})


def check(options: Any) -> None:
    """Check type and value of each field of an options dataclass. Raises InputError that names the first that is wrong."""
    for each in dataclasses.fields(options):
        value, must = getattr(options, each.name), each.metadata["must"]
        kind, optional = type_of(each)
        if value is None and optional:
            continue
        if must is None:
            must = Check(_IN_WORDS[get_origin(kind) or kind], lambda _: True)
        expect(each.name, value, must, kind)


def expect(name: str, value: object, must: Check, kind: type = str) -> None:
    """Raise InputError where the argument ``name`` was given a value of another type, or not what it must be."""
    if _is_a(value, get_origin(kind) or kind) and must.holds(value):
        return
    # np.int64(4), where a number of Python was expected, would read as one
    shown = repr(one_line(value, 60)) if isinstance(value, str) else one_line(repr(value), 60)
    close = nearest(value, list(must.known)) if isinstance(value, str) else ""
    raise InputError(f"{argument(name)} got {shown}{close}; expected {must.expected}")


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)


def type_of(option: "dataclasses.Field[Any]") -> tuple[Any, bool]:
    """The type of an option's values, and whether it may be None."""
    kinds = [kind for kind in get_args(option.type) if kind is not NoneType] if isinstance(option.type, UnionType) else []
    return (kinds[0], True) if kinds else (option.type, False)


def given(options: Any, *names: str) -> list[str]:
    """Those of the named fields whose value is not their default."""
    return [
        each.name for each in dataclasses.fields(options) if each.name in names and getattr(options, each.name) != each.default
    ]


def refuse(options: Any, *names: str, because: str, said: Collection[str] = ()) -> None:
    """Raise InputError where one of the named options was given: in this run it would do nothing.

    Args:
        options: An options dataclass.
        names: Of its fields.
        because: Why it would do nothing, and what to do about it.
        said: Fields that are known to be given, whatever their value; those whose value is not their default are anyhow.
    """
    other = given(options, *names)
    if found := [name for name in names if name in said or name in other]:
        raise InputError(f"{', '.join(map(argument, found))} would do nothing: {because}")


def refuse_useless(options: Any, said: Collection[str] = ()) -> None:
    """Raise InputError where an option was given that does nothing beside the others; ``said``: see :func:`refuse`.

    What does nothing is known to the method ``useless`` of an options dataclass, where it has one.
    """
    for names, because in useless(options):
        refuse(options, *names, because=because, said=said)


def useless(options: Any) -> Iterable[tuple[tuple[str, ...], str]]:
    """Names of options that do nothing beside the others, and why."""
    return options.useless() if hasattr(options, "useless") else ()


def from_mapping(kind: type[Options], values: Mapping[str, Any], where: str = "the options") -> Options:
    """Options from a mapping of their names, such as a table of a TOML file.

    Args:
        kind: The options' dataclass.
        values: By field name; what is not there has its default.
        where: What the mapping is, for the error.

    Returns:
        The options, checked.

    Raises:
        InputError: A key is no option, and the nearest one is named; or a value is wrong.
    """
    known = names_of(kind)
    for key in values:
        if key not in known:
            close = nearest(str(key), known)
            raise InputError(f"{where} has an unknown key {one_line(key, 40)!r}{close}; expected: {', '.join(known)}")
    return kind(**values)


def to_dict(options: Any) -> dict[str, Any]:
    """The options by name, as :func:`from_mapping` takes them."""
    return {name: getattr(options, name) for name in names_of(type(options))}


def effective(options: Any) -> dict[str, Any]:
    """The options that something comes of, by name: those that do nothing beside the others, or are not there, are left out.

    Where nothing was given, the options dataclass may say in ``resolved`` what is taken.
    """
    resolved = getattr(options, "resolved", options)
    idle = {name for names, _ in useless(resolved) for name in names}
    return {name: value for name, value in to_dict(resolved).items() if value is not None and name not in idle}


def names_of(kind: Any) -> list[str]:
    """The options of a dataclass, in the order of its fields."""
    return [each.name for each in dataclasses.fields(kind)]
