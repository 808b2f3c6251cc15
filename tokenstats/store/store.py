"""A store on disk: one tokenized dataset, any number of scorings and masks of it.

store = Store("runs/gsm8k")
store.scorings(), store.masks()
store.scan("stats/warm")                                   # a polars LazyFrame
for tables in store.aligned({"tokens": ["input_ids"], "stats/warm": ["entropy"]}):
    ...                                                    # one part of each, rows proven to match
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from tokenstats.errors import InputError, StoreError, nearest, one_line
from tokenstats.store.manifests import MANIFEST, MaskManifest, ScoringManifest, StoreManifest
from tokenstats.store.parts import part_path, read_part

if TYPE_CHECKING:
    import polars as pl

TOKENS = "tokens"


def check_name(name: str, what: str) -> str:
    """A scoring's or mask's name, safe as a folder name; InputError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or ".." in name:
        raise InputError(
            f"{what} name {one_line(name, 80)!r} cannot be used: expected 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


class Store:
    """A finished store. Raises StoreError where ``path`` is none."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise StoreError(f"no store at {self.path}: expected a folder made by 'tokenstats compute'")
        if not (self.path / MANIFEST).exists() and not (self.path / TOKENS).is_dir():
            raise StoreError(f"{self.path} is not a store: it has no {MANIFEST}; make one with 'tokenstats compute'")
        self.manifest = StoreManifest.read(self.path)
        self._seq_ids: tuple[int, pa.ChunkedArray] | None = None  # of the part read last

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, sequences={self.manifest.sequences:,}, tokens={self.manifest.tokens:,})"

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def tokenizer_folder(self) -> Path:
        return self.path / "tokenizer"

    def scorings(self) -> list[str]:
        """Names of the finished scorings."""
        return _finished(self.path / "stats")

    def masks(self) -> list[str]:
        """Names of the finished masks."""
        return _finished(self.path / "masks")

    def scoring(self, name: str | None = None) -> tuple[str, ScoringManifest]:
        """The named scoring, or the only one. Raises StoreError where it is not there or the choice is not clear."""
        name = self._choose(name, self.scorings(), "scoring", "--scoring")
        manifest = ScoringManifest.read(self.path / "stats" / name)
        self._check_owner(manifest.store_fingerprint, f"stats/{name}")
        return name, manifest

    def mask(self, name: str | None = None) -> tuple[str, MaskManifest]:
        """The named mask, or the only one."""
        name = self._choose(name, self.masks(), "mask", "--mask")
        manifest = MaskManifest.read(self.path / "masks" / name)
        self._check_owner(manifest.store_fingerprint, f"masks/{name}")
        return name, manifest

    @property
    def part_count(self) -> int:
        return len(self.manifest.parts)

    def part(self, family: str, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One part of a family (``tokens``, ``stats/NAME``, ``masks/NAME``), its rows proven to be the tokens' rows."""
        table = read_part(part_path(self.path / family, index), _with_seq_id(columns))
        if family != TOKENS:
            self._check_rows(table, family, index)
        return table if columns is None or "seq_id" in columns else table.drop_columns(["seq_id"])

    def aligned(
        self, columns: Mapping[str, Sequence[str]], parts: Sequence[int] | None = None
    ) -> Iterator[dict[str, pa.Table]]:
        """Yield, part by part, one table per family. Row i is the same sequence in all of them."""
        for index in range(self.part_count) if parts is None else parts:
            yield {family: self.part(family, index, names) for family, names in columns.items()}

    def sequence(self, number: int, columns: Mapping[str, Sequence[str]]) -> dict[str, dict]:
        """One sequence, counted from 0 over the whole store, as plain Python values per family."""
        if not 0 <= number < self.manifest.sequences:
            raise InputError(f"row {number} is not in the store: it holds rows 0 to {self.manifest.sequences - 1}")
        for index, part in enumerate(self.manifest.parts):
            if number < part.rows:
                tables = next(self.aligned(columns, [index]))
                return {family: table.slice(number, 1).to_pylist()[0] for family, table in tables.items()}
            number -= part.rows
        raise StoreError(f"{self.path / MANIFEST} counts {self.manifest.sequences} rows, but its parts hold fewer")

    def scan(self, family: str) -> "pl.LazyFrame":
        """A polars LazyFrame over a family: the way out to any other tool."""
        import polars as pl

        return pl.scan_parquet([part_path(self.path / family, i) for i in range(self.part_count)])

    def _choose(self, name: str | None, known: list[str], what: str, option: str) -> str:
        if name is None and len(known) == 1:
            return known[0]
        if name is None and not known:
            raise StoreError(f"{self.path} holds no {what} yet")
        if name is None:
            raise StoreError(f"{self.path} holds several {what}s ({', '.join(known)}): choose one with {option}")
        if check_name(name, what) not in known:
            raise StoreError(f"no {what} {name!r} in {self.path}{nearest(name, known)}; it holds: {', '.join(known) or 'none'}")
        return name

    def _check_owner(self, fingerprint: str, family: str) -> None:
        if fingerprint != self.fingerprint:
            raise StoreError(f"{self.path / family} was made from other tokens than this store's; make it again")

    def _check_rows(self, table: pa.Table, family: str, index: int) -> None:
        if self._seq_ids is None or self._seq_ids[0] != index:
            self._seq_ids = index, read_part(part_path(self.path / TOKENS, index), ["seq_id"])["seq_id"]
        if not table["seq_id"].equals(self._seq_ids[1]):
            raise StoreError(
                f"{part_path(self.path / family, index)} holds other sequences than part {index} of the tokens: "
                "delete it and run the command that made it again"
            )


def _with_seq_id(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(dict.fromkeys(["seq_id", *columns]))


def _finished(folder: Path) -> list[str]:
    names = [p.parent.name for p in folder.glob(f"*/{MANIFEST}")] if folder.is_dir() else []
    return sorted(name for name in names if not name.startswith("."))  # a dot: being made, or being replaced
