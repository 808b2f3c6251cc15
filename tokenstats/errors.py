"""What can go wrong through no fault of ours.

    TokenstatsError          exit status 2: one line says what was got, what was expected, what to do
    ├── InputError           an argument, a dataset, a model folder
    │                        (a ValueError too)
    ├── StoreError           what lies in a store: damaged, unfinished, or made from something else
    │   └── NotThere         a scoring or mask of that name is not in it (a KeyError too)
    └── RuleError            the text of a rule (a ValueError too)

Anything else that escapes is a bug of tokenstats and shows its traceback.
"""

import re

__all__ = ["InputError", "NotThere", "RuleError", "StoreError", "TokenstatsError", "nearest", "one_line"]


class TokenstatsError(Exception):
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
