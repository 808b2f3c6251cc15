"""Where rows come from: JSON, JSON Lines and Parquet files, folders of them, or a dataset of the Hugging Face Hub.

A source can be read again from any row. What it holds is told by a digest of its rows, taken as they go by: nothing waits
until a whole dataset has been read.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenstats.errors import InputError, argument, one_line

SUFFIXES = (".jsonl", ".json", ".parquet")
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Rows that can be read any number of times, always in the same order."""

    name: str
    _read: Callable[[], Iterator[Row]]

    def rows(self, start: int = 0) -> Iterator[Row]:
        """The rows from ``start`` on."""
        return islice(self._read(), start, None)

    def digest(self, count: int | None = None) -> tuple[int, str]:
        """How many of the first ``count`` rows (None: of all) there are, and their digest."""
        rows, digest = 0, ""
        for row in islice(self._read(), count):
            rows, digest = rows + 1, next_digest(digest, row)
        return rows, digest


def next_digest(digest: str, row: Row) -> str:
    """The digest of the rows so far and one more: a chain, so that a run can go on with it from any row."""
    content = json.dumps(row, sort_keys=True, default=str)
    return hashlib.blake2b(f"{digest} {content}".encode(), digest_size=16).hexdigest()


def open_source(dataset: str | Path, split: str | None = None) -> Source:
    """Open a file, a folder or a Hub dataset, of which ``split`` (None: train) is read.

    Raises InputError where it is none of them, holds no rows, or files were given a split: files have none.
    """
    path = Path(dataset).expanduser()
    if path.exists():
        if split is not None:
            raise InputError(
                f"{argument('split')} would do nothing: {dataset} is read from files, which have no split "
                f"{one_line(split, 60)!r}; name that split's own file"
            )
        source = _open_files(path)
    elif path.suffix in SUFFIXES or path.is_absolute() or str(dataset).startswith((".", "~")) or str(dataset).count("/") > 1:
        raise InputError(
            f"no dataset at {dataset}: expected a {', '.join(SUFFIXES)} file, a folder of them, or a Hub dataset id"
        )
    else:
        source = _open_hub(str(dataset), split or "train")
    if next(source.rows(), None) is None:
        raise InputError(f"{dataset} holds no rows: expected at least one")
    return source


def _open_files(path: Path) -> Source:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise InputError(f"{path} holds no {', '.join(SUFFIXES)} file")
    elif path.suffix in SUFFIXES:
        files = [path]
    else:
        raise InputError(
            f"{path} is a {path.suffix or 'file without suffix'}; expected {', '.join(SUFFIXES)} or a folder of them"
        )

    def read() -> Iterator[Row]:
        for file in files:
            try:
                yield from {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}[file.suffix](file)
            except OSError as error:
                raise InputError(f"cannot read {file}: {error.strerror or error}") from error

    return Source(str(path), read)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse_object(line, f"{path}, line {number}")


def _parse_object(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 (byte {error.start + 1}); mend or remove the line") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON (column {error.colno}: {error.msg}); mend or remove the line") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where} cannot be read: {one_line(error, 100)}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where} is a {type(row).__name__}; expected a JSON object with named columns")
    return row


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno} is not JSON (column {error.colno}: {error.msg}); mend the file"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error, 100)}") from None
    if not isinstance(rows, list):
        raise InputError(f"{path} holds a {type(rows).__name__}; expected a list of objects (or .jsonl, one object a line)")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}, entry {number} is a {type(row).__name__}; expected an object with named columns")
        yield row


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise InputError(f"{path} has two columns of one name ({one_line(', '.join(names), 100)}); rename one of them")
            for batch in file.iter_batches(batch_size=1024):
                yield from _rows_of(batch, path)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {one_line(error, 100)}") from None


def _rows_of(batch: pa.RecordBatch, path: Path) -> list[Row]:
    """Rows as Python values. Raises InputError that names a column which Python cannot hold: a date of the year 300,000."""
    try:
        return batch.to_pylist()
    except (OverflowError, ValueError, UnicodeDecodeError) as error:  # pyarrow's ArrowInvalid is a ValueError
        for name in batch.schema.names:
            try:
                batch.column(name).to_pylist()
            except (OverflowError, ValueError, UnicodeDecodeError) as reason:
                raise InputError(
                    f"{path}, column {one_line(name, 60)!r} ({batch.schema.field(name).type}) has a value that cannot be read "
                    f"({one_line(reason, 80)}); mend the column or leave it out of the file"
                ) from None
        raise InputError(f"{path} cannot be read: {one_line(error, 100)}") from None


def _open_hub(name: str, split: str) -> Source:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"no file or folder {name!r}; to read it as a Hub dataset id, install the extra: pip install 'tokenstats[hub]'"
        ) from None
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds: no network, no such id, no such split
        raise InputError(
            f"no file or folder {name!r}, and as a Hub dataset it cannot be loaded: {one_line(error, 150)}"
        ) from None
    return Source(f"{name}:{split}", lambda: iter(loaded))
