"""Is a part what its manifest and the schema say?

First its bytes: nothing in a file is believed before its digest is that of the manifest (:class:`Proofs`). Then its rows,
columns, types and the lengths of all lists, against the manifest and against each other: a digest that was taken of a part that
is wrong in itself, or that an earlier version did not take. A part that was changed, cut short, swapped with another or written
by another tool is refused by name.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from tokenstats.errors import StoreError
from tokenstats.schema import TOKENS_SCHEMA, mask_schema, stats_schema
from tokenstats.store.manifests import Part
from tokenstats.store.parts import digest_of_open, open_part

_AGAIN = "delete it and run the command that made it again"


class ChangedFile(StoreError):
    """A file's bytes are not those that its manifest recorded."""


class Proofs:
    """Which files hold the bytes that were recorded of them. None is read for it twice, unless it was touched since."""

    def __init__(self) -> None:
        self._proven: dict[Path, tuple[str, tuple[int, ...]]] = {}

    def of(self, digest: str) -> Callable[[Path, BinaryIO], None]:
        """What raises ChangedFile where an open file has not this digest. "": an earlier version took none."""

        def prove(path: Path, file: BinaryIO) -> None:
            found = os.fstat(file.fileno())
            proof = digest, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if digest and self._proven.get(path) != proof:
                if digest_of_open(file) != digest:
                    raise ChangedFile(f"{path} was changed after it was made: its digest differs; make it again")
                file.seek(0)
                self._proven[path] = proof

        return prove

    def check(self, path: Path, digest: str) -> None:
        """Raise StoreError where a file is missing or has not this digest."""
        with open_part(path) as file:
            self.of(digest)(path, file)


def check_columns(table: pa.Table, path: Path, family: str, columns: Sequence[str] | None) -> None:
    """Raise StoreError, naming the part, where a column that was asked for (None: all) is missing or of another type."""
    schema = _schema_of(family)
    required = columns if columns is not None else schema.names if family == "tokens" else ["seq_id"]
    for name in required:
        if name not in table.column_names:
            raise StoreError(f"{path} has no column {name}; {_AGAIN}")
    for field in table.schema:
        if field.name in schema.names and field.type != (wanted := schema.field(field.name).type):
            raise StoreError(f"{path}: column {field.name} is {field.type}, expected {wanted}; {_AGAIN}")


def check_counts(table: pa.Table, path: Path, expected: Part) -> None:
    """Raise StoreError where a part holds another number of rows or tokens than its manifest counts."""
    if len(table) != expected.rows:
        raise StoreError(f"{path} holds {len(table)} rows, its manifest counts {expected.rows}: cut short or swapped; {_AGAIN}")
    lengths = row_lengths(table)
    tokens = expected.tokens if lengths is None else pc.sum(lengths).as_py()
    if tokens != expected.tokens:
        raise StoreError(f"{path} holds {tokens} tokens, its manifest counts {expected.tokens}: cut short or swapped; {_AGAIN}")


def row_lengths(table: pa.Table) -> pa.ChunkedArray | None:
    """[R] tokens of each row, by the table's first list column; None where it has none."""
    return next((pc.list_value_length(table[f.name]) for f in table.schema if pa.types.is_list(f.type)), None)


def check_lengths(table: pa.Table, path: Path, lengths: pa.ChunkedArray | None, whose: str = "its other lists") -> None:
    """Raise StoreError where a list column is not as long, row by row, as ``lengths`` says."""
    for field in table.schema if lengths is not None else ():
        if pa.types.is_list(field.type) and not pc.list_value_length(table[field.name]).equals(lengths):
            raise StoreError(f"{path}: the lists of {field.name} are not as long as {whose}; {_AGAIN}")


def _schema_of(family: str) -> pa.Schema:
    """All columns that parts of a family may have."""
    match family.split("/")[0]:
        case "tokens":
            return TOKENS_SCHEMA
        case "masks":
            return mask_schema(weighted=True)
        case _:
            return stats_schema(with_reference=True, topk=1)
