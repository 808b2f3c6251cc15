"""A store's rows and what is learned in them, as files that other trainers read as they are. Loads no torch.

The columns are those of a form (forms.py), and no others: Axolotl asks for exactly three, and LLaMA-Factory cannot batch one
more.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from tokenstats.errors import InputError
from tokenstats.store import Store, open_store
from tokenstats.store.drafts import draft_of
from tokenstats.training import guides
from tokenstats.training.card import dataset_card
from tokenstats.training.files import ArrowStream, Files, describe_for_datasets, open_parquet
from tokenstats.training.forms import check_weights, form_table, schema_of
from tokenstats.training.options import ExportOptions
from tokenstats.training.provenance import provenance, write_record
from tokenstats.training.rows import LearnedPart, check_writable, choose_mask, read_parts

DATA, DISK = "data", "disk"
"""Folders of an export: the Parquet files, alone, since SkyRL refuses anything else beside them; and for load_from_disk."""


@dataclass(frozen=True)
class ExportSummary:
    """What was written.

    Attributes:
        to: The folder: Parquet ``files`` in ``data``, with save_to_disk an Arrow dataset in ``disk``, a dataset card
            (README.md) and ``tokenstats.json`` with the origin.
        rows: Rows written.
        rows_left_out: Rows with nothing to learn, which are not.
        tokens: Tokens of the rows written.
        kept_tokens: Those of them that are learned.
        longest: Tokens of the longest row.
        how_to_read: The snippet that ``trainer`` needs, its trap named.
    """

    to: str
    form: str
    trainer: str
    files: tuple[str, ...]
    rows: int
    rows_left_out: int
    tokens: int
    kept_tokens: int
    longest: int
    how_to_read: str


def export(
    store: Store | str | Path, *, mask: str | None, to: str | Path, options: ExportOptions = ExportOptions()
) -> ExportSummary:
    """Write a store's rows, with what ``mask`` keeps of them, for another trainer.

    Rows with nothing to learn are left out and counted: trainers drop them in ways of their own.

    Args:
        store: A store, or its folder.
        mask: A mask of the store; None or "none" is plain fine-tuning on all targets.
        to: A folder that is not there yet, or empty. It is written beside its place and moved there at the end: an export that
            was killed leaves nothing that looks finished.
        options: The form, the trainer, and more.

    Returns:
        What was written, and how to read it.

    Raises:
        InputError: What the caller can mend; nothing is then written.
        StoreError: The store or mask is not there, or damaged; nothing is then written.
    """
    to = Path(to).expanduser()
    form, trainer = options.form_and_trainer
    schema = schema_of(form, options.compat)
    opened = open_store(store)
    chosen = choose_mask(opened, mask)
    check_weights(chosen, form, options.ignore_weights)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"{to} exists and is not empty; choose another folder")
    check_writable(to)
    with draft_of(to) as draft:
        writer = _Writer(draft, schema, options.rows_per_file, options.save_to_disk or guides.GUIDES[trainer].on_disk)
        parts = read_parts(opened, chosen, with_weights=not options.ignore_weights)
        for part in tqdm(parts, desc="exporting", total=opened.part_count, unit=" parts", disable=None):
            writer.add(part)
        if not writer.rows:
            raise InputError(f"mask {chosen.name!r} leaves nothing to learn in any row: nothing to export; choose another mask")
        made_of = provenance(opened, chosen, rows=writer.rows, empty=writer.left_out, kept=writer.kept)
        record = {**made_of, "form": form, "columns": schema.names, "weights_ignored": options.ignore_weights}
        files = writer.close(record)
        write_record(draft, record)
        (draft / "README.md").write_text(dataset_card(opened, chosen, record, trainer, writer.longest), encoding="utf-8")
        try:
            os.replace(draft, to)  # which is not there, or empty
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise InputError(
                f"{to} was filled by another run meanwhile; this export is thrown away: choose another folder"
            ) from error
    return ExportSummary(
        to=str(to),
        form=form,
        trainer=trainer,
        files=files,
        rows=writer.rows,
        rows_left_out=writer.left_out,
        tokens=writer.tokens,
        kept_tokens=writer.kept,
        longest=writer.longest,
        how_to_read=guides.how_to_read(trainer, form, data=f"{to}/{DATA}", disk=f"{to}/{DISK}", longest=writer.longest),
    )


class _Writer:
    """Takes parts of a store into the files of one export; counts what goes by."""

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_file: int, on_disk: bool):
        self.folder, self.schema = folder, schema
        self._data = Files(folder / DATA, "train-{index:05d}-of-{count:05d}.parquet", open_parquet, schema, rows_per_file)
        self._disk = None
        if on_disk:
            name = "data-{index:05d}-of-{count:05d}.arrow"
            self._disk = Files(folder / DISK / "train", name, ArrowStream, schema, rows_per_file)
        self.rows = self.left_out = self.tokens = self.kept = self.longest = 0

    def add(self, part: LearnedPart) -> None:
        chosen = part.has_learned
        lengths = part.lengths[chosen]
        self.rows += len(lengths)
        self.left_out += int(np.count_nonzero(~chosen))
        self.tokens += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        tokens = np.repeat(chosen, part.lengths)
        self.kept += int(np.count_nonzero(part.learned[tokens]))
        table = form_table(part, chosen, self.schema)
        self._data.add(table)
        if self._disk is not None:
            self._disk.add(table)

    def close(self, record: dict[str, Any]) -> tuple[str, ...]:
        """Finish all files; the names of the Parquet ones, from the export's folder."""
        if self._disk is not None:
            describe_for_datasets(self.folder / DISK, self._disk.close(), self.schema, record)
        return tuple(f"{DATA}/{name}" for name in self._data.close())
