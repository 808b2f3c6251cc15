"""Raw results: one JSON object a line, one line a run, added when the run is done. A run that has a line is not done again."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.tinymath import DATA

FOLDER = DATA / "study"


class Results:
    """The lines of a file, by their ``key``. A last line that a killed run left unfinished is cut off when one is added."""

    def __init__(self, path: Path):
        self.path = path
        self._records = {record["key"]: record for record in self._read()}

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: dict[str, Any]) -> None:
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

    def _read(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            for line in self.path.read_bytes()[: self._whole_length()].splitlines():
                yield json.loads(line)

    def _whole_length(self) -> int:
        """Bytes up to the end of the last whole line."""
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0
