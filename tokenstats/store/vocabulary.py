"""What is known of each id of a store's vocabulary: its text, its bytes, and what kind of word it is."""

import re
import unicodedata
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenstats.errors import StoreError, one_line
from tokenstats.schema import TOKEN_CLASSES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tokenstats.store import Store

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for a part of a character."""

_OPERATORS = frozenset("+-*/=<>^%&|~")
"""With all of Unicode's mathematical symbols. A hyphen counts as a minus."""


class Vocabulary:
    """The tokens of a store by id, read when they are first asked for.

    Raises StoreError, then, where the tokenizer's files are missing, damaged, or not those that the store was made with.
    """

    def __init__(self, store: "Store"):
        self._store = store

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """What each token adds to a text, in UTF-8: those of a sequence joined are its text."""
        return _pieces_of(self._tokenizer, self._store.manifest.tokenizer.size)

    @cached_property
    def classes(self) -> np.ndarray:
        """int8 [vocabulary]: for each id the place of its class in ``TOKEN_CLASSES``."""
        about = self._store.manifest.tokenizer
        return classes_of(self._tokenizer, about.size, about.special_ids)

    @property
    def _tokenizer(self) -> "Tokenizer":
        tokenizer = load_tokenizer(self._store)
        self._store.check_tokenizer()
        return tokenizer


def load_tokenizer(store: "Store") -> "Tokenizer":
    """The store's own tokenizer. Raises StoreError where its file is missing or damaged."""
    path = store.tokenizer_folder / "tokenizer.json"
    if not path.is_file():
        raise StoreError(f"{path} is missing: tokens cannot be decoded; copy the tokenizer that made the store there")
    return _tokenizer_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)  # a large vocabulary takes half a second to read
def _tokenizer_of(path: Path, _changed: int) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise StoreError(f"{path} cannot be read: {one_line(error, 120)}") from None


@lru_cache(maxsize=2)  # a vocabulary of 50,000 takes an eighth of a second to decode
def texts_of(tokenizer: "Tokenizer", size: int) -> tuple[str, ...]:
    """The text of each token as it stands inside a sentence; it may be half a character, which is then ``UNKNOWN``."""
    # decoded twice in a row, the second time counts: a decoder may strip the space that a text begins with
    once, twice = (tokenizer.decode_batch([[i] * times for i in range(size)], skip_special_tokens=False) for times in (1, 2))
    return tuple(text[len(start) :] for start, text in zip(once, twice, strict=True))


@lru_cache(maxsize=2)
def _pieces_of(tokenizer: "Tokenizer", size: int) -> tuple[bytes, ...]:
    texts = texts_of(tokenizer, size)
    return tuple(text.encode() if UNKNOWN not in text else _half(tokenizer, i, text) for i, text in enumerate(texts))


def _half(tokenizer: "Tokenizer", token_id: int, text: str) -> bytes:
    found = bytes_of(tokenizer.id_to_token(token_id) or "")
    return text.encode() if found is None else found


def bytes_of(word: str) -> bytes | None:
    """The bytes that a word of a vocabulary stands for, where it is one of bytes: ``<0xF0>``, or in GPT-2's signs."""
    if re.fullmatch("<0x[0-9A-F]{2}>", word):
        return bytes([int(word[3:5], 16)])
    table = _byte_of_sign()
    return bytes(table[c] for c in word) if all(c in table for c in word) else None


@lru_cache(maxsize=1)
def _byte_of_sign() -> dict[str, int]:
    """Byte-level vocabularies write each byte as one printable character (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


@lru_cache(maxsize=2)
def classes_of(tokenizer: "Tokenizer", size: int, special_ids: tuple[int, ...]) -> np.ndarray:
    """int8 [size]: for each id the place of its class in ``TOKEN_CLASSES``."""
    classes = np.array([TOKEN_CLASSES.index(class_of(text)) for text in texts_of(tokenizer, size)], np.int8)
    classes[[i for i in special_ids if i < size]] = TOKEN_CLASSES.index("special")
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
