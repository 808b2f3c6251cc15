"""Rows become token ids with targets and roles, and every row that does not is accounted for."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from tokenstats.alignment import predicted
from tokenstats.corpus.encode import Encoded
from tokenstats.corpus.formats import BadRow, as_chat, read_example
from tokenstats.corpus.options import AS_IS, OWN, PLAIN, TRAINING, CorpusOptions
from tokenstats.corpus.sources import Row, Source, next_digest
from tokenstats.corpus.template import Rendered, Renderer
from tokenstats.errors import InputError, argument
from tokenstats.modeling.tokenizer import tokenization_fingerprint
from tokenstats.schema import BY_TEXT, ROLES, SCHEMA_VERSION

_ROWS_AT_ONCE = 256
_MOST_REASONS = 12
SPECIAL_AS = {
    AS_IS: "special tokens written out in the text, read as those tokens",
    PLAIN: "special tokens written out in the text, read as plain text",
}


@dataclass
class Counts:
    """What became of the rows read so far. ``noted``: rows that are in, with something that their reader should know."""

    rows: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, int] = field(default_factory=dict)
    noted: Counter[str] = field(default_factory=Counter)
    first_noted: dict[str, int] = field(default_factory=dict)
    digest: str = ""

    def drop(self, row: int, reason: str) -> None:
        """Count a row that is left out."""
        if reason not in self.dropped and len(self.dropped) >= _MOST_REASONS:
            reason = "other reasons"  # a template's own words can differ in every row
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, row)

    def note(self, row: int, remark: str) -> None:
        """Count a row that is in, with something to know about it."""
        self.noted[remark] += 1
        self.first_noted.setdefault(remark, row)

    def to_json(self) -> dict[str, Any]:
        """The counts as a part keeps them."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Counts":
        """The counts that a part kept."""
        return cls(
            state["rows"],
            state["truncated"],
            Counter(state["dropped"]),
            dict(state["first_dropped"]),
            Counter(state["noted"]),
            dict(state["first_noted"]),
            state["digest"],
        )


@dataclass(frozen=True)
class Sequence:
    """One row, tokenized. ``counts`` is the state of the run once this row has been read."""

    row: int
    ids: np.ndarray
    is_target: np.ndarray
    role: np.ndarray
    truncated: bool
    counts: dict[str, Any]

    @property
    def seq_id(self) -> str:
        """The dataset's row and a digest of ids and targets."""
        content = hashlib.blake2b(self.ids.tobytes() + self.is_target.tobytes(), digest_size=8)
        return f"{self.row:09d}-{content.hexdigest()}"


@dataclass(frozen=True)
class Corpus:
    """A dataset with all that decides how it becomes tokens."""

    source: Source
    tokenizer: PreTrainedTokenizerFast
    tokenizer_source: str
    shape: str
    renderer: Renderer
    options: CorpusOptions
    longest: int | None = None
    """How many tokens the models read: a longer sequence is an error, not a surprise hours later."""
    trust_remote_code: bool = False

    @cached_property
    def columns(self) -> dict[str, str]:
        """The dataset's own names, by the shape's."""
        return dict(self.options.columns or {})

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the parts of tokens depend on."""
        return {
            "schema_version": SCHEMA_VERSION,
            "shape": self.shape,
            "columns": self.columns,
            "tokenizer": tokenization_fingerprint(self.tokenizer),
            "template": self.renderer.fingerprint,
            "template_source": self.renderer.source if self.renderer.source in (OWN, TRAINING) else "a file",
            "special_text": self.renderer.special_text,
            "max_length": self.options.max_length,
            "part_tokens": self.options.part_tokens,
        }


def tokenized(corpus: Corpus, counts: Counts) -> Iterator[Sequence]:
    """Yield the sequences from row ``counts.rows`` on; ``counts`` keeps the account of what is left out."""
    rows = corpus.source.rows(counts.rows)
    first = counts.rows
    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
        for i, (row, result) in enumerate(zip(chunk, _encoded(corpus, chunk), strict=True)):
            counts.rows = first + i + 1
            counts.digest = next_digest(counts.digest, row)
            if isinstance(result, BadRow):
                counts.drop(first + i, str(result))
                continue
            rendered, encoded = result
            whole = _align(corpus, encoded, rendered)
            ids, is_target, role = (array[: corpus.options.max_length] for array in whole)
            cut = len(ids) < len(whole[0])
            if not is_target.any():
                counts.drop(first + i, "no target left after truncation" if cut else "no target token")
                continue
            _check_length(len(ids), first + i, corpus.longest)
            counts.truncated += cut
            for remark in rendered.remarks:
                counts.note(first + i, remark)
            yield Sequence(first + i, ids, is_target, role, cut, counts.to_json())
        first += len(chunk)


def _encoded(corpus: Corpus, chunk: list[Row]) -> list["BadRow | tuple[Rendered, Encoded]"]:
    """Each row as text and tokens, or why it is neither. Most rows are encoded together."""
    renderer = corpus.renderer
    results: list[Any] = [_rendered(corpus, row) for row in chunk]
    together = []
    for i, rendered in enumerate(results):
        if isinstance(rendered, BadRow):
            continue
        if renderer.special_text == PLAIN and SPECIAL_AS[PLAIN] in rendered.remarks:
            try:
                results[i] = rendered, renderer.encode_plain(rendered)
            except BadRow as reason:
                results[i] = reason
        else:
            together.append(i)
    for i, encoded in zip(together, renderer.encode_as_is([results[i] for i in together]), strict=True):
        results[i] = results[i], encoded
    return results


def _rendered(corpus: Corpus, row: Row) -> "BadRow | Rendered":
    renderer = corpus.renderer
    try:
        example = read_example(row, corpus.shape, corpus.columns)
        example = as_chat(example) if renderer.is_chat else example
        rendered = renderer.render(example)
        _check_unicode(rendered.text)
    except BadRow as reason:
        return reason
    if renderer.encoder.has_controls([example.messages, example.tools, example.prompt, example.completion]):
        rendered.remarks.append(SPECIAL_AS[renderer.special_text])
    return rendered


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("text is not valid Unicode: half a surrogate pair") from None


def _check_length(length: int, row: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        raise InputError(
            f"row {row} has {length} tokens, but the model reads at most {longest}; "
            f"cut it with {argument('max_length', longest)}"
        )


def _align(corpus: Corpus, encoded: Encoded, rendered: Rendered) -> tuple[np.ndarray, ...]:
    """Token ids, targets and roles from character spans, [T] each. A token that a target span touches is a target."""
    token_ids, is_target = encoded.ids, encoded.touched_by(rendered.targets)
    role_ends = np.array([end for end, _ in rendered.roles])
    codes = np.array([code for _, code in rendered.roles], np.int8)
    role = codes[np.minimum(np.searchsorted(role_ends, encoded.begins, side="right"), len(codes) - 1)]
    spoken = ROLES.index("text" if corpus.renderer.targets == BY_TEXT else "assistant")
    if corpus.renderer.adds_special_tokens:
        # plain text ends where its document ends: the model must learn to stop there
        eos = corpus.tokenizer.eos_token_id
        if eos is not None and (not len(token_ids) or token_ids[-1] != eos):
            token_ids = np.append(token_ids, np.int32(eos))
            is_target, role = np.append(is_target, True), np.append(role, np.int8(spoken))
        elif len(token_ids) and token_ids[-1] == eos:
            is_target[-1] = True
    role[is_target] = spoken
    return token_ids, predicted(is_target, np.array([0, len(is_target)])), role.astype(np.int8)
