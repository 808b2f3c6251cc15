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

from tokenstats.corpus.arrow_rows import as_json, read_parquet
from tokenstats.errors import InputError, argument, one_line

SUFFIXES = (".jsonl", ".json", ".parquet")
_OF_DATA = (".ndjson", ".csv", ".tsv", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".tar")
"""Suffixes of files that are not read, and that nobody puts beside rows without meaning them."""
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
    elif (
        path.suffix.lower() in SUFFIXES
        or path.is_absolute()
        or str(dataset).startswith((".", "~"))
        or str(dataset).count("/") > 1
    ):
        raise InputError(
            f"no dataset at {dataset}: expected a {', '.join(SUFFIXES)} file, a folder of them, or a Hub dataset id"
        )
    else:
        source = _open_hub(str(dataset), split or "train")
    if next(source.rows(), None) is None:
        raise InputError(f"{dataset} holds no rows: expected at least one")
    return source


def _open_files(path: Path) -> Source:
    files = _files_in(path) if path.is_dir() else [path]
    if files[0].suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} is a {path.suffix or 'file without suffix'}; expected {', '.join(SUFFIXES)} or a folder of them"
        )
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": read_parquet}

    def read() -> Iterator[Row]:
        for file in files:
            try:
                yield from readers[file.suffix.lower()](file)
            except OSError as error:
                raise InputError(f"cannot read {file}: {error.strerror or error}") from error

    return Source(str(path), read)


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder and the folders in it that hold rows; of what is hidden, such as an editor's copies, none."""
    there = sorted(p for p in folder.rglob("*") if p.is_file())
    seen = [p for p in there if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    unread = [p for p in seen if p.suffix.lower() in _OF_DATA]
    if unread:
        raise InputError(
            f"{folder} holds {one_line(unread[0].relative_to(folder), 80)}, which would not be read; "
            f"expected {', '.join(SUFFIXES)} files: unpack or convert it, or move it away"
        )
    files = [p for p in seen if p.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(f"{folder} holds no {', '.join(SUFFIXES)} file")
    return files


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


def _hint_of(path: Path) -> str:
    """Files named .json often hold an object a line."""
    try:
        with open(path, "rb") as file:
            first = json.loads(file.readline())
    except (ValueError, RecursionError):
        return ""
    return ", or name it .jsonl: its first line is an object of its own" if isinstance(first, dict) else ""


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno} is not JSON (column {error.colno}: {error.msg}); mend the file{_hint_of(path)}"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error, 100)}") from None
    if not isinstance(rows, list):
        raise InputError(f"{path} holds a {type(rows).__name__}; expected a list of objects (or .jsonl, one object a line)")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}, entry {number} is a {type(row).__name__}; expected an object with named columns")
        yield row


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
    schema = loaded.features.arrow_schema
    return Source(f"{name}:{split}", lambda: (as_json(row, schema, decoded=True) for row in loaded))
