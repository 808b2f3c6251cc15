"""Raw results: one JSON object a line, one line a run, added when the run is done. A run that has a line is not done again."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.study.design import SEARCH_SEED, Cell
from pipelines.tinymath import DATA

FOLDER = DATA / "study"
BASES = ("base", "base-1")
KINDS = ("sft", "wording", "rl", "stores")
Record = dict[str, Any]


class Results:
    """The lines of a file, by their ``key``. A last line that a killed run left unfinished is cut off when one is added."""

    def __init__(self, path: Path):
        self.path = path
        self._records = {record["key"]: record for record in self._read()}

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> Record:
        return self._records[key]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> None:
        """Append a line and flush it to the disk. Raises ValueError where the key is there already."""
        if record["key"] in self:
            raise ValueError(f"{self.path} has a line for {record['key']!r} already")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.truncate(self._whole_length())
            file.write((json.dumps(record) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        self._records[record["key"]] = record

    def _read(self) -> Iterator[Record]:
        if self.path.exists():
            for line in self.path.read_bytes()[: self._whole_length()].splitlines():
                yield json.loads(line)

    def _whole_length(self) -> int:
        """Bytes up to the end of the last whole line."""
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0


def committed(kind: str) -> list[Record]:
    """All lines of a kind that lie in :data:`FOLDER`."""
    return [record for base in BASES for record in Results(FOLDER / f"{kind}-{base}.jsonl")]


def of_arm(runs: Iterable[Record], arm: str) -> list[Record]:
    return [record for record in runs if record["arm"] == arm]


def of_cell(runs: Iterable[Record], cell: Cell) -> list[Record]:
    return [record for record in runs if record["cell"] == cell.name]


def without_searches(runs: Iterable[Record]) -> list[Record]:
    return [record for record in runs if record["seed"] != SEARCH_SEED]
