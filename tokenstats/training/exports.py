"""A store's rows and what is learned in them, as Parquet files that other trainers read as they are. Loads no torch.

    labels      input_ids, attention_mask, labels (-100: not learned)    TRL, transformers, Axolotl, Unsloth, Together
    loss-mask   input_ids, loss_mask (1: learned)                        SkyRL, and verl through a custom dataset class

Lists of int32 and int8, as ``list``, never ``large_list``, and no schema metadata: what older readers trip over.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tokenstats.errors import InputError, nearest, one_line
from tokenstats.store import Store
from tokenstats.training.card import dataset_card, how_to_read
from tokenstats.training.provenance import provenance, write_record
from tokenstats.training.rows import IGNORED, LearnedPart, check_writable, choose_mask, open_store, read_parts

ROWS_PER_FILE = 100_000
_IDS, _FLAGS = pa.list_(pa.int32()), pa.list_(pa.int8())
FORMS = {
    "labels": pa.schema([("input_ids", _IDS), ("attention_mask", _FLAGS), ("labels", _IDS)]),
    "loss-mask": pa.schema([("input_ids", _IDS), ("loss_mask", _FLAGS)]),
}
"""Columns of each form. A column too many makes Axolotl tokenize again and LLaMA-Factory fail."""


@dataclass(frozen=True)
class ExportSummary:
    """What was written.

    to:            the folder: Parquet ``files``, a dataset card (README.md) and ``tokenstats.json`` with the origin
    rows:          rows written; rows_left_out: rows with nothing kept, which are not
    tokens:        tokens of the rows written; kept_tokens: those of them that are learned
    longest:       tokens of the longest row
    how_to_read:   a snippet for the trainers that read this form, traps named
    """

    to: str
    form: str
    files: tuple[str, ...]
    rows: int
    rows_left_out: int
    tokens: int
    kept_tokens: int
    longest: int
    how_to_read: str


def export(
    store: Store | str | Path, *, mask: str | None, to: str | Path, form: str = "labels", rows_per_file: int = ROWS_PER_FILE
) -> ExportSummary:
    """Write a store's rows, with what ``mask`` keeps of them, for another trainer.

    mask: a mask of the store; None or "none" is plain fine-tuning on all targets
    to:   a folder that is not there yet, or empty. It is written beside its place and moved there at the end: an
          export that was killed leaves nothing that looks finished
    form: ``labels`` or ``loss-mask``

    Rows with nothing kept are left out and counted: trainers drop them in ways of their own. Raises InputError or
    StoreError for what the caller can mend; nothing is then written.
    """
    to = Path(to).expanduser()
    if form not in FORMS:
        raise InputError(f"form got {one_line(form, 60)!r}{nearest(form, list(FORMS))}; expected one of: {', '.join(FORMS)}")
    if rows_per_file < 1:
        raise InputError(f"rows_per_file got {rows_per_file}; expected at least 1")
    opened = open_store(store)
    chosen = choose_mask(opened, mask)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"{to} exists and is not empty; choose another folder")
    check_writable(to)
    draft = to.parent / f".exporting-{to.name}"
    shutil.rmtree(draft, ignore_errors=True)  # of an export that was killed
    draft.mkdir(parents=True)
    try:
        writer = _Writer(draft, FORMS[form], rows_per_file)
        for part in tqdm(read_parts(opened, chosen), desc="exporting", total=opened.part_count, unit=" parts", disable=None):
            writer.add(part)
        files = writer.close()
        if not files:
            raise InputError(f"mask {chosen.name!r} keeps no token of any row: there is nothing to export; choose another mask")
        record = provenance(opened, chosen, rows=writer.rows, left_out=writer.left_out, kept=writer.kept)
        write_record(draft, {**record, "form": form})
        (draft / "README.md").write_text(dataset_card(opened, chosen, record, form, writer.longest), encoding="utf-8")
        if to.exists():
            to.rmdir()
        os.replace(draft, to)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return ExportSummary(
        to=str(to),
        form=form,
        files=files,
        rows=writer.rows,
        rows_left_out=writer.left_out,
        tokens=writer.tokens,
        kept_tokens=writer.kept,
        longest=writer.longest,
        how_to_read=how_to_read(form, str(to)),
    )


class _Writer:
    """Fills files of ``rows_per_file`` rows, one after the other; counts what goes by."""

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_file: int):
        self.folder, self.schema, self.rows_per_file = folder, schema, rows_per_file
        self.rows = self.left_out = self.tokens = self.kept = self.longest = 0
        self._file: pq.ParquetWriter | None = None
        self._files: list[Path] = []

    def add(self, part: LearnedPart) -> None:
        has_kept = part.kept_per_row > 0
        self.left_out += int(np.count_nonzero(~has_kept))
        if not has_kept.any():
            return
        table = _table(part, has_kept, self.schema)
        self.tokens += int(part.lengths[has_kept].sum())
        self.kept += int(part.keep.sum())
        self.longest = max(self.longest, int(part.lengths[has_kept].max()))
        for piece in self._pieces(table):
            if self._file is None:
                self._files.append(self.folder / f"{len(self._files):05d}.parquet")
                # without Arrow's own schema in the metadata: types are Parquet's, and every reader's
                self._file = pq.ParquetWriter(self._files[-1], self.schema, compression="zstd", store_schema=False)
            self._file.write_table(piece)
            self.rows += len(piece)
            if self.rows % self.rows_per_file == 0:
                self._finish_file()

    def _pieces(self, table: pa.Table) -> Iterator[pa.Table]:
        """Cut a table where files end."""
        start = 0
        while start < len(table):
            room = self.rows_per_file - self.rows % self.rows_per_file
            yield table.slice(start, room)
            start += room

    def _finish_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> tuple[str, ...]:
        """Finish, and give the files the names that the Hub expects: ``train-00000-of-00003.parquet``."""
        self._finish_file()
        names = tuple(f"train-{i:05d}-of-{len(self._files):05d}.parquet" for i in range(len(self._files)))
        for file, name in zip(self._files, names, strict=True):
            os.replace(file, self.folder / name)
        return names


def _table(part: LearnedPart, rows: np.ndarray, schema: pa.Schema) -> pa.Table:
    """The chosen rows of a part (``rows``: [R] boolean) as a table of one form."""
    tokens = np.repeat(rows, part.lengths)
    ids, keep = part.ids[tokens], part.keep[tokens]
    offsets = pa.array(np.concatenate([[0], np.cumsum(part.lengths[rows])]), pa.int32())
    values = {
        "input_ids": ids,
        "attention_mask": np.ones(len(ids), np.int8),
        "labels": np.where(keep, ids, np.int32(IGNORED)),
        "loss_mask": keep.astype(np.int8),
    }
    columns = [pa.ListArray.from_arrays(offsets, pa.array(values[f.name], f.type.value_type), type=f.type) for f in schema]
    return pa.table(columns, schema=schema)
