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

from tokenstats.corpus.formats import BadRow, as_chat, read_example
from tokenstats.corpus.sources import Source, next_digest
from tokenstats.corpus.template import Rendered, Renderer
from tokenstats.errors import InputError
from tokenstats.modeling.tokenizer import tokenization_fingerprint
from tokenstats.schema import BY_TEXT, ROLES, SCHEMA_VERSION

_ROWS_AT_ONCE = 256
_MOST_REASONS = 12


@dataclass
class Counts:
    """What became of the rows read so far."""

    rows: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, int] = field(default_factory=dict)
    digest: str = ""

    def drop(self, row: int, reason: str) -> None:
        if reason not in self.dropped and len(self.dropped) >= _MOST_REASONS:
            reason = "other reasons"  # a template's own words can differ in every row
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, row)

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "truncated": self.truncated,
            "dropped": dict(self.dropped),
            "first_dropped": dict(self.first_dropped),
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Counts":
        return cls(state["rows"], state["truncated"], Counter(state["dropped"]), dict(state["first_dropped"]), state["digest"])


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
        content = hashlib.blake2b(self.ids.tobytes() + self.is_target.tobytes(), digest_size=8)
        return f"{self.row:09d}-{content.hexdigest()}"


@dataclass(frozen=True)
class Corpus:
    """A dataset with all that decides how it becomes tokens."""

    source: Source
    tokenizer: PreTrainedTokenizerFast
    tokenizer_source: str
    shape: str
    columns: dict[str, str]
    renderer: Renderer
    max_length: int | None
    part_tokens: int
    longest: int | None = None
    """How many tokens the models read: a longer sequence is an error, not a surprise hours later."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "shape": self.shape,
            "columns": self.columns,
            "tokenizer": tokenization_fingerprint(self.tokenizer),
            "template": self.renderer.fingerprint,
            "max_length": self.max_length,
            "part_tokens": self.part_tokens,
        }


def tokenized(corpus: Corpus, counts: Counts) -> Iterator[Sequence]:
    """Yield the sequences from row ``counts.rows`` on; ``counts`` keeps the account of what is left out."""
    rows = corpus.source.rows(counts.rows)
    first = counts.rows
    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
        rendered, reasons = [], {}
        for i, row in enumerate(chunk):
            try:
                example = read_example(row, corpus.shape, corpus.columns)
                result = corpus.renderer.render(as_chat(example) if corpus.renderer.is_chat else example)
                _check_unicode(result.text)
                rendered.append((i, result))
            except BadRow as reason:
                reasons[i] = str(reason)
        encoded = (
            corpus.tokenizer(
                [r.text for _, r in rendered],
                add_special_tokens=corpus.renderer.adds_special_tokens,
                return_offsets_mapping=True,
                return_attention_mask=False,
            )
            if rendered
            else {"input_ids": [], "offset_mapping": []}
        )
        by_row = {i: k for k, (i, _) in enumerate(rendered)}
        for i in range(len(chunk)):
            counts.rows = first + i + 1
            counts.digest = next_digest(counts.digest, chunk[i])
            if i in reasons:
                counts.drop(first + i, reasons[i])
                continue
            k = by_row[i]
            arrays = _align(corpus, encoded["input_ids"][k], encoded["offset_mapping"][k], rendered[k][1])
            if not arrays[1].any():
                cut = corpus.max_length is not None and len(encoded["input_ids"][k]) > corpus.max_length
                counts.drop(first + i, "no target left after truncation" if cut else "no target token")
                continue
            truncated = len(encoded["input_ids"][k]) > len(arrays[0])
            _check_length(len(arrays[0]), first + i, corpus.longest)
            counts.truncated += truncated
            yield Sequence(first + i, *arrays, truncated, counts.to_json())
        first += len(chunk)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("text is not valid Unicode: half a surrogate pair") from None


def _check_length(length: int, row: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        raise InputError(
            f"row {row} has {length} tokens, but the model reads at most {longest}; cut it with --max-length {longest}"
        )


def _align(
    corpus: Corpus, ids: list[int], offsets: list[tuple[int, int]], rendered: Rendered
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, targets and roles from character spans. A token that a target span touches is a target."""
    token_ids = np.asarray(ids, np.int32)
    begins, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T if ids else np.zeros((2, 0), np.int64)
    is_target = np.zeros(len(ids), bool)
    for start, end in rendered.targets:
        touched = np.flatnonzero((begins < end) & (ends > start))
        if len(touched):
            is_target[touched[0] : touched[-1] + 1] = True
    role_ends = np.array([end for end, _ in rendered.roles])
    codes = np.array([code for _, code in rendered.roles], np.int8)
    role = codes[np.minimum(np.searchsorted(role_ends, begins, side="right"), len(codes) - 1)]
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
    if len(token_ids):
        is_target[0] = False  # nothing predicts the first token
    length = corpus.max_length
    return token_ids[:length], is_target[:length], role[:length].astype(np.int8)
