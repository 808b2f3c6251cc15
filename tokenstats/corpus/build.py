"""Build the tokens family of a store: rows in, ids and targets out, part by part."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from tokenstats.corpus.formats import BadRow, as_chat, read_example, recognise_shape
from tokenstats.corpus.sources import Source
from tokenstats.corpus.template import BY_TEXT, Renderer
from tokenstats.errors import InputError, one_line
from tokenstats.modeling.tokenizer import describe_tokenizer, save_tokenizer, tokenization_fingerprint
from tokenstats.schema import ROLES, SCHEMA_VERSION, TOKENS_SCHEMA
from tokenstats.store.manifests import Dataset, Part, StoreManifest, Template, now
from tokenstats.store.parts import digest_of, finished_parts, is_part, part_path, part_progress, read_part, write_part
from tokenstats.store.store import TOKENS, Store

PART_TOKENS = 1_000_000
_ROWS_AT_ONCE = 256
_MOST_REASONS = 12


@dataclass
class Counts:
    """What became of the rows read so far."""

    rows: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, int] = field(default_factory=dict)

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
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Counts":
        return cls(state["rows"], state["truncated"], Counter(state["dropped"]), dict(state["first_dropped"]))


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
            "dataset": self.source.fingerprint,
            "shape": self.shape,
            "columns": self.columns,
            "tokenizer": tokenization_fingerprint(self.tokenizer),
            "template": self.renderer.fingerprint,
            "max_length": self.max_length,
            "part_tokens": self.part_tokens,
        }


def plan_corpus(
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_source: str,
    *,
    columns: dict[str, str] | None = None,
    chat: bool = True,
    max_length: int | None = None,
    part_tokens: int = PART_TOKENS,
) -> Corpus:
    """Look at the first row and decide how the dataset is read. Writes nothing."""
    if max_length is not None and max_length < 2:
        raise InputError(f"--max-length got {max_length}; expected at least 2 tokens")
    if part_tokens < 1:
        raise InputError(f"--part-tokens got {part_tokens}; expected at least 1")
    columns = columns or {}
    shape = recognise_shape(next(source.rows()), columns)
    renderer = Renderer(tokenizer, shape, chat)
    return Corpus(source, tokenizer, tokenizer_source, shape, columns, renderer, max_length, part_tokens)


def build_tokens(corpus: Corpus, folder: str | Path) -> Store:
    """Write what is missing of the tokens of a store, and its manifest.

    Raises StoreError where the folder holds tokens of anything else, and InputError for data that cannot be read;
    a store begun by this very call is then taken away again.
    """
    folder = Path(folder)
    check_place(folder)
    finished = finished_parts(folder / TOKENS, corpus.settings, f"{folder} exists and")
    if (folder / "manifest.json").exists():
        store = Store(folder)
        if len(finished) == store.part_count:
            return store
    try:
        _write_missing_parts(corpus, folder / TOKENS, set(finished))
    except (
        InputError
    ):  # the data are at fault: a store begun by this very call goes; what the disk refused stays, to go on from
        if not finished:
            _take_back(folder, corpus)
        raise
    return _finish(corpus, folder)


def check_place(folder: Path) -> None:
    """Refuse a folder that holds anything but a store: a store is never mixed with other files."""
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise InputError(f"{folder} is a file; expected a folder for the store, new or made by 'tokenstats compute'")
        names = {p.name for p in folder.iterdir()}
    except OSError as error:
        raise InputError(f"{one_line(folder)} cannot be a store: {error.strerror}; choose another folder") from None
    if names and TOKENS not in names:
        raise InputError(
            f"{folder} holds other files ({one_line(', '.join(sorted(names)[:3]), 80)}); choose a new folder for the store"
        )
    strangers = [p.name for p in (folder / TOKENS).glob("*") if not is_part(p)] if TOKENS in names else []
    if strangers:
        raise InputError(f"{folder / TOKENS} holds {one_line(strangers[0], 60)!r}, which is no part of a store; move it away")


def _take_back(folder: Path, corpus: Corpus) -> None:
    for index in finished_parts(folder / TOKENS, corpus.settings, f"{folder} exists and"):
        part_path(folder / TOKENS, index).unlink()
    for place in (folder / TOKENS, folder):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _write_missing_parts(corpus: Corpus, folder: Path, finished: set[int]) -> None:
    index, counts, settings = 0, Counts(), corpus.settings
    sequences: Iterator[Sequence] | None = None
    pending: Sequence | None = None
    with tqdm(desc="tokens", unit=" rows", disable=None, initial=0) as bar:
        while True:
            if index in finished:
                progress = part_progress(part_path(folder, index))
                counts, sequences, pending = Counts.from_json(progress["counts"]), None, None
                if progress["end"]:
                    return
                index += 1
                continue
            if sequences is None:
                sequences = tokenized(corpus, counts)
                pending = next(sequences, None)
                bar.update(counts.rows - bar.n)
            if pending is None:
                break
            batch, size = [pending], len(pending.ids)
            while size < corpus.part_tokens and (sequence := next(sequences, None)) is not None:
                batch.append(sequence)
                size += len(sequence.ids)
            pending = next(sequences, None)
            # after the last sequence the counts go on to the end: trailing rows may have been left out
            state = counts.to_json() if pending is None else batch[-1].counts
            write_part(folder, index, _table(batch), settings, {"counts": state, "end": pending is None})
            bar.update(state["rows"] - bar.n)
            index += 1
            if pending is None:
                return
    reasons = "; ".join(
        f"{n:,} rows: {reason} (first: row {counts.first_dropped[reason]})" for reason, n in counts.dropped.items()
    )
    raise InputError(f"{corpus.source.name} has no row to learn from. {reasons}. Targets found by: {corpus.renderer.targets}")


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
    corpus: Corpus, ids: list[int], offsets: list[tuple[int, int]], rendered: Any
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


def _table(sequences: list[Sequence]) -> pa.Table:
    offsets = pa.array(np.cumsum([0, *(len(s.ids) for s in sequences)]), pa.int32())

    def lists(arrays: list[np.ndarray], kind: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(arrays), kind))

    return pa.table(
        [
            pa.array([s.seq_id for s in sequences], pa.string()),
            lists([s.ids for s in sequences], pa.int32()),
            lists([s.is_target for s in sequences], pa.bool_()),
            lists([s.role for s in sequences], pa.int8()),
            pa.array([s.row for s in sequences], pa.int64()),
            pa.array([s.truncated for s in sequences], pa.bool_()),
        ],
        schema=TOKENS_SCHEMA,
    )


def _finish(corpus: Corpus, folder: Path) -> Store:
    """Add up the parts, save the tokenizer beside them, and write the manifest last."""
    identity, parts, targets = hashlib.blake2b(digest_size=16), [], 0
    for index in finished_parts(folder / TOKENS, corpus.settings, f"{folder} exists and"):
        path = part_path(folder / TOKENS, index)
        table = read_part(path, ["seq_id", "is_target"])
        identity.update("".join(f"{i}\n" for i in table["seq_id"].to_pylist()).encode())
        flags = table["is_target"].combine_chunks().flatten()
        targets += flags.true_count
        parts.append(Part(rows=len(table), tokens=len(flags), digest=digest_of(path)))
    counts = Counts.from_json(part_progress(part_path(folder / TOKENS, len(parts) - 1))["counts"])
    renderer = corpus.renderer
    save_tokenizer(corpus.tokenizer, folder / "tokenizer")
    StoreManifest(
        created=now(),
        parts=tuple(parts),
        fingerprint=identity.hexdigest(),
        dataset=Dataset(
            source=corpus.source.name,
            fingerprint=corpus.source.fingerprint,
            shape=corpus.shape,
            columns=corpus.columns,
            rows=counts.rows,
            dropped=dict(counts.dropped),
            first_dropped=counts.first_dropped,
            truncated=counts.truncated,
        ),
        tokenizer=describe_tokenizer(corpus.tokenizer, corpus.tokenizer_source, renderer.end_of_turn_ids()),
        template=Template(fingerprint=renderer.fingerprint, targets=renderer.targets, max_length=corpus.max_length),
        part_tokens=corpus.part_tokens,
        sequences=sum(p.rows for p in parts),
        tokens=sum(p.tokens for p in parts),
        targets=targets,
    ).write(folder)
    return Store(folder)
