"""Files that fill up with rows, one after the other: Parquet, and the Arrow streams that ``datasets`` maps into memory.

Both hold plain ``list`` columns, never ``large_list``, and no schema metadata: what older readers trip over.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tokenstats.store.parts import write_json

_DTYPES = {pa.int32(): "int32", pa.int8(): "int8", pa.float32(): "float32"}


class OpenFile(Protocol):
    """A file that takes tables: a pyarrow writer."""

    def write_table(self, table: pa.Table) -> None:
        """Add rows."""

    def close(self) -> None:
        """Finish the file."""


def open_parquet(path: Path, schema: pa.Schema) -> OpenFile:
    """A Parquet file, compressed by zstd."""
    # without Arrow's own schema in the metadata: types are Parquet's, and every reader's
    return pq.ParquetWriter(path, schema, compression="zstd", store_schema=False)


class ArrowStream:
    """An Arrow stream, not compressed, so that it can be mapped into memory."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._file, schema)

    def write_table(self, table: pa.Table) -> None:
        """Add rows."""
        self._stream.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        self._stream.close()
        self._file.close()


class Files:
    """Files of ``rows_per_file`` rows in a new folder; only the table that is being added is in memory.

    Attributes:
        folder: Where they lie.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        open_file: Callable[[Path, pa.Schema], OpenFile],
        schema: pa.Schema,
        rows_per_file: int,
    ):
        """name: what a file is called in the end, such as ``train-{index:05d}-of-{count:05d}.parquet``."""
        folder.mkdir(parents=True)
        self.folder, self._name, self._open, self._schema, self._rows_per_file = folder, name, open_file, schema, rows_per_file
        self._rows = 0
        self._paths: list[Path] = []
        self._file: OpenFile | None = None

    def add(self, table: pa.Table) -> None:
        """Add rows, in as many files as they need."""
        for piece in self._pieces(table):
            if self._file is None:
                self._paths.append(self.folder / f"{len(self._paths):05d}")
                self._file = self._open(self._paths[-1], self._schema)
            self._file.write_table(piece)
            self._rows += len(piece)
            if self._rows % self._rows_per_file == 0:
                self._finish_file()

    def close(self) -> tuple[str, ...]:
        """Finish, and give the files their names, now that it is known how many there are."""
        self._finish_file()
        names = tuple(self._name.format(index=i, count=len(self._paths)) for i in range(len(self._paths)))
        for path, name in zip(self._paths, names, strict=True):
            os.replace(path, self.folder / name)
        return names

    def _pieces(self, table: pa.Table) -> Iterator[pa.Table]:
        """Cut a table where files end."""
        start = 0
        while start < len(table):
            room = self._rows_per_file - self._rows % self._rows_per_file
            yield table.slice(start, room)
            start += room

    def _finish_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def describe_for_datasets(folder: Path, files: tuple[str, ...], schema: pa.Schema, content: dict[str, Any]) -> None:
    """Make a folder with Arrow ``files`` in ``train/`` one that ``datasets.load_from_disk`` opens as a DatasetDict.

    Written here and not by ``datasets``: from version 4 on, that calls the type of a list ``List``, which older versions
    cannot read, and LLaMA-Factory asks for 4.0 or older. ``Sequence``, its former name, is read by all.

    Args:
        folder: The dataset's.
        files: Names of the Arrow files, in order.
        schema: Of their columns.
        content: What identifies the rows; ``datasets`` keys its caches by its hash.
    """
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest(),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    features = {
        column.name: {
            "feature": {"dtype": _DTYPES[column.type.value_type], "_type": "Value"},
            "length": -1,
            "_type": "Sequence",
        }
        for column in schema
    }
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    write_json(folder / "train" / "state.json", json.dumps(state, indent=2))
    write_json(folder / "train" / "dataset_info.json", json.dumps(info, indent=2))
    write_json(folder / "dataset_dict.json", json.dumps({"splits": ["train"]}))
