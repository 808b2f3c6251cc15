"""A run file: all that a command is told, as a flat TOML table of its options' names. Loads no torch."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenstats.errors import InputError, nearest, one_line


def read_run_file(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """The values of a run file by key; what they must be is not looked at.

    Args:
        path: Of the file.
        known: The keys that there are.

    Raises:
        InputError: There is no such file, it is not TOML, or a key is unknown; then the nearest is named.
    """
    where = one_line(path, 100)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(
            f"no run file at {where}; expected a TOML file of options, such as a run leaves beside its weights"
        ) from None
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}; expected a TOML file of options") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not TOML: {one_line(error, 120)}") from None
    for key in table:
        if key not in known:
            close = nearest(key, list(known)) or f"; expected: {', '.join(known)}"
            raise InputError(f"{where} has an unknown key {one_line(key, 40)!r}{close}")
    return table


def to_toml(values: Mapping[str, Any]) -> str:
    """A flat TOML table, a line for each key; None is left out, which TOML has no word for."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in values.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_text(name)} = {_value(each)}' for name, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return _text(str(value))


def _text(text: str) -> str:
    # a JSON string is a TOML string, but for characters that JSON writes in two halves, and for DEL
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
