"""From text to token ids, and from stretches of the text to tokens, exactly.

A tokenizer's own offsets are made for people: some leave out the spaces that a token holds, and a special token that swallows
the spaces around it claims them all. Here a space belongs to the token that it is in, and a special token covers itself alone.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tokenstats.corpus.formats import BadRow
from tokenstats.modeling.tokenizer import special_ids

Span = tuple[int, int]
_ALIASES = 0x100000  # private characters that stand for special tokens, in a tokenizer that knows no others


@dataclass(frozen=True)
class Encoded:
    """Ids [T], and the characters [begin, end) of the text that each token holds, [T] each."""

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def touched_by(self, spans: Iterable[Span]) -> np.ndarray:
        """[T] the tokens that hold a character of a span, and those without any that stand in it (a prefix space)."""
        touched = np.zeros(len(self.ids), bool)
        for start, end in spans:
            inside = (self.begins < end) & (self.ends > start)
            inside |= (self.begins == self.ends) & (self.begins >= start) & (self.begins < end)
            places = np.flatnonzero(inside)
            if len(places):
                touched[places[0] : places[-1] + 1] = True
        return touched


class Encoder:
    """Encodes texts as the tokenizer does.

    Args:
        closings: What ends a turn; where that is a token, it counts as special, whatever the tokenizer calls it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, closings: Iterable[str] = ()):
        self._tokenizer = tokenizer
        added, vocabulary = tokenizer.added_tokens_decoder, tokenizer.get_vocab()
        self._controls = {word: vocabulary[word] for word in closings if word in vocabulary}
        self._controls |= {tokenizer.convert_ids_to_tokens(i): i for i in special_ids(tokenizer)}
        self._control = re.compile("|".join(map(re.escape, sorted(self._controls, key=len, reverse=True))) or "(?!)")
        self._greedy = {i for i, token in added.items() if token.lstrip or token.rstrip}
        self._exact = _exact_offsets(tokenizer)
        self._plain: _PlainTokenizer | None = None

    def has_controls(self, value: Any) -> bool:
        """Does a string in a row's value hold the text of a special token?"""
        if isinstance(value, str):
            return self._control.search(value) is not None
        if isinstance(value, dict):
            return any(self.has_controls(item) for pair in value.items() for item in pair)
        return isinstance(value, list | tuple) and any(self.has_controls(item) for item in value)

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoded]:
        """Ids and spans of some texts, special tokens written out in them included."""
        done = self._exact.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [self._tight(text, one.ids, one.offsets) for text, one in zip(texts, done, strict=True)]

    def encode_plain(self, text: str, said: Iterable[Span], add_special_tokens: bool) -> Encoded:
        """Encode a text in which special tokens within ``said`` are characters like others; all else becomes the ids that it
        would become anyway. Raises BadRow where the vocabulary has such a token as a word of its own.
        """
        if self._plain is None:
            self._plain = _PlainTokenizer(self._tokenizer, self._controls)
        said = sorted(said)
        gaps = zip([0, *(end for _, end in said)], [*(start for start, _ in said), len(text)], strict=True)
        meant = [found.span() for start, end in gaps for found in self._control.finditer(text, start, end)]
        ids, offsets = self._plain.encode(text, meant)
        if add_special_tokens:
            ids, offsets = self._wrapped(ids, offsets, len(text))
        encoded = self._tight(text, ids, offsets)
        risky = np.isin(encoded.ids, list(self._controls.values())) & (encoded.ends > encoded.begins)
        if any(((encoded.begins[risky] >= start) & (encoded.begins[risky] < end)).any() for start, end in said):
            raise BadRow("a special token in its text cannot be written as plain text: it is a word of the vocabulary")
        return encoded

    def _wrapped(self, ids: list[int], offsets: list[Span], length: int) -> tuple[list[int], list[Span]]:
        """With the tokens that the tokenizer puts before and after every text."""
        bare, whole = (self._exact.encode("a", add_special_tokens=add).ids for add in (False, True))
        before = next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)
        after = whole[before + len(bare) :]
        return (
            [*whole[:before], *ids, *after],
            [*[(0, 0)] * before, *offsets, *[(length, length)] * len(after)],
        )

    def _tight(self, text: str, ids: list[int], offsets: Sequence[Span]) -> Encoded:
        begins, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T.copy() if ids else np.zeros((2, 0), np.int64)
        for place, token in enumerate(ids) if self._greedy else ():
            if token in self._greedy and (core := text[begins[place] : ends[place]].strip()):
                begins[place] += text[begins[place] : ends[place]].index(core)
                ends[place] = begins[place] + len(core)
        return Encoded(np.asarray(ids, np.int32), begins, ends)


class _PlainTokenizer:
    """A tokenizer that knows its special tokens only under other names, so that text cannot name them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, controls: Iterable[str]):
        state = _backend_state(tokenizer)
        known = {entry["content"]: entry["id"] for entry in state["added_tokens"]}
        self._aliases = {word: chr(_ALIASES + k) for k, word in enumerate(sorted(set(controls) & set(known)))}
        for entry in state["added_tokens"]:
            if entry["content"] in self._aliases:
                entry |= {"content": self._aliases[entry["content"]], "normalized": False}
        self._tokenizer = _from_state(state)
        self._tokenizer.post_processor = None  # what it would add is added by its ids
        # under their other names the tokens may have got other ids
        self._ids = {self._tokenizer.token_to_id(self._aliases.get(word, word)): token for word, token in known.items()}

    def encode(self, text: str, meant: list[Span]) -> tuple[list[int], list[Span]]:
        """Ids and offsets of a text in which only the special tokens at ``meant`` are any."""
        if any(alias in text for alias in self._aliases.values()):
            raise BadRow("a special token in its text cannot be written as plain text: the text has private characters too")
        pieces: list[str] = []
        places: list[int] = []  # where each character of the pieces stands in the text, and where it stops
        stops: list[int] = []
        last = 0
        for start, end in [*meant, (len(text), len(text))]:
            word = text[start:end]
            pieces += [text[last:start], self._aliases.get(word, word)]
            alone = word in self._aliases
            places += [*range(last, start), *([start] if alone else range(start, end))]
            stops += [*range(last + 1, start + 1), *([end] if alone else range(start + 1, end + 1))]
            last = end
        places.append(len(text))
        done = self._tokenizer.encode("".join(pieces), add_special_tokens=False)
        offsets = [(places[a], stops[b - 1] if b > a else places[a]) for a, b in done.offsets]
        return [self._ids.get(token, token) for token in done.ids], offsets


def _exact_offsets(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The same tokenizer, whose offsets keep the spaces that tokens hold."""
    exact = _from_state(_backend_state(tokenizer))
    exact.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
    return exact


def _backend_state(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"padding": None, "truncation": None}
    _keep_spaces(state.get("post_processor"))
    return state


def _keep_spaces(processor: Any) -> None:
    if isinstance(processor, dict):
        if "trim_offsets" in processor:
            processor["trim_offsets"] = False
        for inner in processor.get("processors", ()):
            _keep_spaces(inner)


def _from_state(state: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(state))
