"""Build the tokens family of a store: rows in, ids and targets out, part by part."""

import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from tokenstats.corpus.formats import recognise_shape
from tokenstats.corpus.options import CorpusOptions
from tokenstats.corpus.sources import Source
from tokenstats.corpus.template import Renderer
from tokenstats.corpus.tokenize import Corpus, Counts, Sequence, tokenized
from tokenstats.errors import InputError, StoreError, one_line
from tokenstats.modeling.tokenizer import describe_tokenizer, save_tokenizer
from tokenstats.schema import TOKENS_SCHEMA
from tokenstats.store.families import TOKENS
from tokenstats.store.lists import flat
from tokenstats.store.manifests import MANIFEST, Dataset, Part, StoreManifest, Template, now
from tokenstats.store.parts import (
    clear_leftovers,
    digest_of,
    finished_parts,
    is_part,
    part_path,
    part_progress,
    read_part,
    write_part,
)
from tokenstats.store.store import Store


def plan_corpus(
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_source: str,
    options: CorpusOptions = CorpusOptions(),
    trust_remote_code: bool = False,
) -> Corpus:
    """Look at the first row and decide how the dataset is read. Writes nothing.

    Args:
        source: The rows; its split was chosen when it was opened.
        tokenizer: What makes tokens of them.
        tokenizer_source: Where it came from; only recorded.
        options: How rows are read.
        trust_remote_code: Was the tokenizer's own code run? Only recorded.

    Raises:
        InputError: The rows have no shape that is known, or options do not go with it.
    """
    shape = recognise_shape(next(source.rows()), options.columns or {})
    renderer = Renderer(tokenizer, shape, options)
    return Corpus(source, tokenizer, tokenizer_source, shape, renderer, options, trust_remote_code=trust_remote_code)


def build_tokens(corpus: Corpus, folder: str | Path) -> Store:
    """Write what is missing of the tokens of a store, and its manifest. Errors as in :func:`build_parts`."""
    for _ in build_parts(corpus, folder):
        pass
    return Store(folder)


def build_parts(corpus: Corpus, folder: str | Path) -> Iterator[tuple[int, int]]:
    """Write what is missing of the tokens of a store, part by part, and the manifest at the end.

    Yields (index, tokens) of each part once it is on disk: scoring need not wait for the rest. Raises StoreError where
    the folder holds tokens of anything else, and InputError for data that cannot be read; the parts before them stay,
    and once the data are mended, the next call goes on from there.
    """
    folder = Path(folder)
    check_place(folder)
    clear_leftovers(folder)
    finished = finished_parts(folder / TOKENS, corpus.settings, f"{folder} exists and", check=not (folder / MANIFEST).exists())
    if (folder / MANIFEST).exists() and len(finished) == Store(folder).part_count:
        store = Store(folder)
        _check_rows(corpus, folder, store.manifest.dataset.rows, store.manifest.dataset.fingerprint, to_the_end=True)
        yield from ((index, part.tokens) for index, part in enumerate(store.manifest.parts))
        return
    if finished:
        last = part_progress(part_path(folder / TOKENS, finished[-1]))
        _check_rows(corpus, folder, last["counts"]["rows"], last["counts"]["digest"], to_the_end=last["end"])
    try:
        counts = yield from _write_missing_parts(corpus, folder / TOKENS, set(finished))
    except BaseException:
        for place in (folder / TOKENS, folder):  # nothing was written: nothing stays
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise
    _finish(corpus, folder, counts)


def _check_rows(corpus: Corpus, folder: Path, rows: int, digest: str, to_the_end: bool = False) -> None:
    """Are the rows that the store was made of still the dataset's? Rows that follow may have changed, or been mended."""
    found = corpus.source.digest(None if to_the_end else rows)
    if found != (rows, digest):
        raise StoreError(
            f"{folder} exists and was made of other rows: its first {rows:,} have the digest {digest[:8]}, "
            f"those of {corpus.source.name} ({found[0]:,} rows) {found[1][:8]}; choose another folder for the store"
        )


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


def _write_missing_parts(corpus: Corpus, folder: Path, finished: set[int]) -> Generator[tuple[int, int], None, Counts]:
    """Returns what became of all rows: of rows that follow the last part, and are left out, no part knows."""
    index, counts, settings = 0, Counts(), corpus.settings
    sequences: Iterator[Sequence] | None = None
    pending: Sequence | None = None
    while True:
        if index in finished:
            progress = part_progress(part_path(folder, index))
            counts, sequences, pending = Counts.from_json(progress["counts"]), None, None
            yield index, progress["tokens"]
            if progress["end"]:
                return counts
            index += 1
            continue
        if sequences is None:
            sequences = tokenized(corpus, counts)
            pending = next(sequences, None)
        if pending is None and index:
            return counts
        if pending is None:
            break
        batch, size = [pending], len(pending.ids)
        while size < corpus.options.part_tokens and (sequence := next(sequences, None)) is not None:
            batch.append(sequence)
            size += len(sequence.ids)
        pending = next(sequences, None)
        # after the last sequence the counts go on to the end: trailing rows may have been left out
        state = counts.to_json() if pending is None else batch[-1].counts
        told = {"counts": state, "end": pending is None, "tokens": size}
        _check_nobody_else(folder, index, told)
        write_part(folder, index, _table(batch), settings, told)
        yield index, size
        index += 1
        if pending is None:
            return counts
    reasons = "; ".join(
        f"{n:,} rows: {reason} (first: row {counts.first_dropped[reason]})" for reason, n in counts.dropped.items()
    )
    raise InputError(f"{corpus.source.name} has no row to learn from. {reasons}. Targets found by: {corpus.renderer.targets}")


def _check_nobody_else(folder: Path, index: int, told: dict[str, Any]) -> None:
    """Raise StoreError where a part lies there meanwhile, of other rows than the one that is to be written."""
    path = part_path(folder, index)
    if path.exists() and part_progress(path) != told:
        raise StoreError(f"{folder.parent} is being made of other rows by another run; choose another folder for the store")


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


def _finish(corpus: Corpus, folder: Path, counts: Counts) -> Store:
    """Add up the parts, save the tokenizer beside them, and write the manifest last."""
    identity, parts, targets = hashlib.blake2b(digest_size=16), [], 0
    for index in finished_parts(folder / TOKENS, corpus.settings, f"{folder} exists and"):
        path = part_path(folder / TOKENS, index)
        table = read_part(path, ["seq_id", "is_target"])
        identity.update("".join(f"{i}\n" for i in table["seq_id"].to_pylist()).encode())
        flags = flat(table["is_target"])
        targets += int(np.count_nonzero(flags))
        parts.append(Part(rows=len(table), tokens=len(flags), digest=digest_of(path)))
    renderer = corpus.renderer
    save_tokenizer(corpus.tokenizer, folder / "tokenizer", renderer.brought)
    StoreManifest(
        created=now(),
        parts=tuple(parts),
        fingerprint=identity.hexdigest(),
        dataset=_dataset(corpus, counts),
        tokenizer=describe_tokenizer(
            corpus.tokenizer, corpus.tokenizer_source, renderer.end_of_turn_ids(), corpus.trust_remote_code
        ),
        template=Template(
            fingerprint=renderer.fingerprint,
            targets=renderer.targets,
            max_length=corpus.options.max_length,
            source=renderer.source,
            special_text=renderer.special_text,
        ),
        part_tokens=corpus.options.part_tokens,
        sequences=sum(p.rows for p in parts),
        tokens=sum(p.tokens for p in parts),
        targets=targets,
    ).write(folder)
    return Store(folder)


def _dataset(corpus: Corpus, counts: Counts) -> Dataset:
    return Dataset(
        source=corpus.source.name,
        fingerprint=counts.digest,
        shape=corpus.shape,
        columns=corpus.columns,
        rows=counts.rows,
        dropped=dict(counts.dropped),
        first_dropped=counts.first_dropped,
        noted=dict(counts.noted),
        first_noted=counts.first_noted,
        truncated=counts.truncated,
    )
