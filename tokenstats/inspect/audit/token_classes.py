"""What kind of word a token is: digits, operators, words, …; told once for each id of the vocabulary."""

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from tokenstats.inspect.tokens.detokenize import UNKNOWN

CLASSES = ("words", "digits", "operators", "punctuation", "whitespace", "special", "other")
"""``other``: part of a character, a control character, or no text at all."""

_OPERATORS = frozenset("+-*/=<>^%&|~")
"""With all of Unicode's mathematical symbols. A hyphen counts as a minus."""


def token_classes(texts: Sequence[str], special_ids: Iterable[int]) -> np.ndarray:
    """int8 [vocabulary]: for each id the place of its class in ``CLASSES``. ``texts`` are the tokens' texts, by id."""
    classes = np.array([CLASSES.index(class_of(text)) for text in texts], np.int8)
    classes[[i for i in special_ids if i < len(classes)]] = CLASSES.index("special")
    return classes


def class_of(text: str) -> str:
    """The class of a token's text: by its strongest character, a letter before a digit before an operator."""
    if not text or UNKNOWN in text:
        return "other"
    signs = text.strip()
    if not signs:
        return "whitespace"
    if any(c.isalpha() for c in signs):
        return "words"
    if any(c.isnumeric() for c in signs):
        return "digits"
    if any(c in _OPERATORS or unicodedata.category(c) == "Sm" for c in signs):
        return "operators"
    return "punctuation" if any(c.isprintable() for c in signs) else "other"
