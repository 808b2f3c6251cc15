"""One part: a Parquet file that appears whole or not at all, and says which run made it.

A part is written under a temporary name in its own folder, flushed to disk, then renamed. The settings of the run are
kept in the file's metadata, so that a later run knows whether it may go on beside it. Pages carry checksums: flipped
bytes are an error that names the part, never a wrong number.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tokenstats.errors import StoreError, TokenstatsWarning, one_line
from tokenstats.store.drafts import TEMPORARY, whole_file

_SETTINGS, _PROGRESS = b"tokenstats.settings", b"tokenstats.progress"
_VALUES_PER_ROW_GROUP = 1_000_000

Settings = Mapping[str, Any]
"""What a run was asked for, as JSON: parts of other settings are never mixed."""


def part_path(folder: Path, index: int) -> Path:
    """Where a part lies in the folder of its family."""
    return folder / f"part-{index:05d}.parquet"


def is_part(path: Path) -> bool:
    """Is this a part's name, or the temporary name of one being written?"""
    return re.fullmatch(r"(\.writing-[0-9a-f]{8}-)?part-\d{5,}\.parquet", path.name) is not None


class MissingFile(StoreError):
    """A part or manifest is not there."""


def write_part(folder: Path, index: int, table: pa.Table, settings: Settings, progress: Settings | None = None) -> None:
    """Write one part, atomically. ``progress`` says where in its source the part ends."""
    table = table.replace_schema_metadata(
        {_SETTINGS: _to_json(settings).encode(), _PROGRESS: _to_json(progress or {}).encode()}
    )
    with whole_file(part_path(folder, index)) as file:
        pq.write_table(table, file, row_group_size=_rows_per_group(table), **_encoding(table.schema))


def write_json(path: Path, content: str) -> None:
    """Write a manifest, atomically."""
    with whole_file(path) as file:
        file.write((content + "\n").encode())


def read_part(
    path: Path, columns: Sequence[str] | None = None, prove: Callable[[Path, BinaryIO], None] | None = None
) -> pa.Table:
    """Read a part, or some of its columns. Raises StoreError, naming it, where it is missing or damaged.

    Args:
        path: Of the part.
        columns: Those to read; None: all.
        prove: Called with the open file before it is read, to raise where it is not the right one.
    """
    with open_part(path) as file:
        if prove is not None:
            prove(path, file)
        # who is in a hurry reads several parts at once: pyarrow's own threads gain nothing within one, and get in their way
        with pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as parquet:
            return parquet.read(columns=list(columns) if columns is not None else None, use_threads=False)


@contextmanager
def open_part(path: Path) -> Iterator[BinaryIO]:
    """A file of a store, opened for reading. What cannot be found or read in the block is a StoreError that names it."""
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing; run the command that made it again") from None
    except (OSError, pa.ArrowException, KeyError) as error:
        raise StoreError(
            f"{path} cannot be read ({one_line(error, 120)}); delete it and run the command that made it again"
        ) from error


def finished_parts(
    folder: Path, settings: Settings, what: str, mine: Callable[[int], bool] = lambda _: True, check: bool = False
) -> list[int]:
    """Indices of the parts that are there already, made with the same settings.

    Clears away what a killed run was writing, of the parts that are ``mine``: another worker may be at the others. With
    ``check``, mine are read through, and one that is damaged is removed, to be made again; of the others, those that cannot
    be read are left to their owners. Raises StoreError where a part was made with other settings, naming each setting that
    differs; ``what`` says in words what the folder holds.
    """
    if not folder.is_dir():
        return []
    clear_leftovers(folder, mine)
    indices = []
    for path in sorted(p for p in folder.glob("part-*.parquet") if is_part(p)):
        own = mine(_index_of(path))
        if check and not (is_whole(path, remove=True) if own else is_readable(path)):
            continue
        check_settings(path, settings, what)
        indices.append(_index_of(path))
    return indices


def check_settings(path: Path, settings: Settings, what: str) -> None:
    """Raise StoreError where a part was made with other settings, naming each that differs."""
    found, wanted = _metadata(path, _SETTINGS), json.loads(_to_json(settings))
    if found != wanted:
        raise StoreError(
            f"{what} was made with other settings: {describe_difference(found, wanted)}; ask for the same again, or choose "
            "another name or folder"
        )


def clear_leftovers(folder: Path, mine: Callable[[int], bool] = lambda _: True) -> None:
    """Remove what a killed run was writing in a folder: the parts that are ``mine``, and manifests where the first part is."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.is_file() and mine(_index_of(leftover) if is_part(leftover) else 0):
            leftover.unlink(missing_ok=True)


def is_whole(path: Path, remove: bool = False) -> bool:
    """Can every page of a part be read? ``remove``: one that is damaged is said and removed, to be made again."""
    try:
        read_part(path)
        return True
    except StoreError as damage:
        if remove:
            path.unlink(missing_ok=True)
            warnings.warn(f"{damage}: made again", TokenstatsWarning, stacklevel=2)
        return False


def is_readable(path: Path) -> bool:
    """Is a part there, as far as its footer tells? Another worker may be about to make it again."""
    try:
        part_progress(path)
        return True
    except StoreError:
        return False


def _index_of(path: Path) -> int:
    return int(path.stem.rpartition("part-")[2])


def part_settings(path: Path) -> dict[str, Any]:
    """What the run that wrote a part was asked for."""
    return _metadata(path, _SETTINGS)


def part_progress(path: Path) -> dict[str, Any]:
    """What the run that wrote a part had counted by then."""
    return _metadata(path, _PROGRESS)


def describe_difference(found: Settings, wanted: Settings) -> str:
    """``name: there X, asked for Y`` for each setting that differs."""
    names = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
    there = {k: one_line(found[k], 80) if k in found else "nothing (an earlier version made it)" for k in names}
    return "; ".join(f"{k}: there {there[k]}, asked for {one_line(wanted.get(k), 80)}" for k in names)


def digest_of(path: Path) -> str:
    """BLAKE2b of a file's bytes, 16 bytes in hexadecimal. Raises StoreError where the file is missing."""
    with open_part(path) as file:
        return digest_of_open(file)


def digest_of_open(file: BinaryIO) -> str:
    """The digest of all that follows in a file."""
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _metadata(path: Path, key: bytes) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[key])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise StoreError(f"{path} is not a readable part ({one_line(error, 120)}); delete it and run again") from error


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _rows_per_group(table: pa.Table) -> int:
    values = max((len(c.combine_chunks().flatten()) for c in table.columns if pa.types.is_list(c.type)), default=0)
    return max(1, _VALUES_PER_ROW_GROUP * max(1, len(table)) // max(1, values))


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Byte-stream-split for floats and wide integers, dictionaries for the rest; zstd-1; large pages.

    Small pages (pyarrow starts a new one every 20,000 rows) would cut the byte streams short.
    """
    split: dict[str, str] = {}
    dictionary: list[str] = []
    for column in schema:
        path, kind = column.name, column.type
        while pa.types.is_list(kind):
            path, kind = f"{path}.list.element", kind.value_type
        if pa.types.is_floating(kind) or pa.types.is_int32(kind):
            split[path] = "BYTE_STREAM_SPLIT"
        elif not pa.types.is_boolean(kind) and not pa.types.is_string(kind):
            dictionary.append(path)
    return {
        "compression": "zstd",
        "compression_level": 1,
        "column_encoding": split or None,
        "use_dictionary": dictionary or False,
        "data_page_size": 64 << 20,
        "max_rows_per_page": 1 << 30,
        "write_page_checksum": True,
    }
