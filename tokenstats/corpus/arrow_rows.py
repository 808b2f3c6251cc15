"""Rows of Arrow tables, as JSON would have them.

All objects of an Arrow column have the same fields: what one row's tool call is given, every other row's has too, as null. So a
null inside an object is a field that is not there. A column of JSON texts (``datasets.Json``) holds what the texts say, where
nulls are meant.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenstats.errors import InputError, one_line

_UNREADABLE = (OverflowError, ValueError, RecursionError)  # pyarrow's ArrowInvalid is a ValueError


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file. Raises InputError where it cannot be read, or has two columns of one name."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise InputError(f"{path} has two columns of one name ({one_line(', '.join(names), 100)}); rename one of them")
            for batch in file.iter_batches(batch_size=1024):
                yield from _rows_of(batch, path)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {one_line(error, 100)}") from None


def as_json(row: dict[str, Any], schema: pa.Schema, decoded: bool = False) -> dict[str, Any]:
    """A row of Python values without the fields that only other rows have. ``decoded``: JSON texts were read already."""
    return {name: _value(value, schema.field(name).type, decoded) for name, value in row.items()}


def _value(value: Any, kind: pa.DataType, decoded: bool) -> Any:
    if value is None:
        return None
    if getattr(kind, "extension_name", None) == "arrow.json":
        return value if decoded else json.loads(value)
    if pa.types.is_struct(kind) and isinstance(value, dict):
        given = (field for field in kind if value.get(field.name) is not None)
        return {field.name: _value(value[field.name], field.type, decoded) for field in given}
    if hasattr(kind, "value_type") and isinstance(value, list) and not pa.types.is_dictionary(kind):
        return [_value(item, kind.value_type, decoded) for item in value]
    return value


def _rows_of(batch: pa.RecordBatch, path: Path) -> list[dict[str, Any]]:
    """Raises InputError that names a column which Python cannot hold: a date of the year 300,000, a text that is not JSON."""
    try:
        return [as_json(row, batch.schema) for row in batch.to_pylist()]
    except _UNREADABLE as error:
        for name in batch.schema.names:
            try:
                for value in batch.column(name).to_pylist():
                    _value(value, batch.schema.field(name).type, decoded=False)
            except _UNREADABLE as reason:
                raise InputError(
                    f"{path}, column {one_line(name, 60)!r} ({batch.schema.field(name).type}) has a value that cannot be read "
                    f"({one_line(reason, 80)}); mend the column or leave it out of the file"
                ) from None
        raise InputError(f"{path} cannot be read: {one_line(error, 100)}") from None
