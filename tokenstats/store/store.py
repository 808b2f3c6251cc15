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
from tokenstats.store.checks import check_columns, check_counts, check_lengths, row_lengths
from tokenstats.store.manifests import MANIFEST, MaskManifest, Part, ScoringManifest, StoreManifest
from tokenstats.store.parts import digest_of, part_path, read_part

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
        # of the tokens part read last: its index, seq_ids and, where a list was read, the rows' lengths
        self._rows: tuple[int, pa.ChunkedArray, pa.ChunkedArray | None] | None = None

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
        self._check_owner(manifest, f"stats/{name}")
        return name, manifest

    def mask(self, name: str | None = None) -> tuple[str, MaskManifest]:
        """The named mask, or the only one."""
        name = self._choose(name, self.masks(), "mask", "--mask")
        manifest = MaskManifest.read(self.path / "masks" / name)
        self._check_owner(manifest, f"masks/{name}")
        return name, manifest

    @property
    def part_count(self) -> int:
        return len(self.manifest.parts)

    def part(self, family: str, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One part of a family (``tokens``, ``stats/NAME``, ``masks/NAME``), its rows proven to be the tokens' rows.

        Raises StoreError, naming the part, where it is missing, damaged, or not what the manifest says.
        """
        path = part_path(self.path / family, index)
        table = read_part(path, _with_seq_id(columns))
        check_columns(table, path, family, _with_seq_id(columns))
        if family != TOKENS:
            self._check_rows(table, path, index)
        check_counts(table, path, self.manifest.parts[index])
        lengths = row_lengths(table)
        check_lengths(table, path, lengths)
        if family == TOKENS and (lengths is not None or self._rows is None or self._rows[0] != index):
            self._rows = index, table["seq_id"], lengths
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

    def changed_parts(self, family: str) -> list[Path]:
        """The parts of a family whose bytes are no longer those that its manifest recorded; reads every byte of them.

        This sees what :meth:`part` cannot: other values in the same shape. A part without a recorded digest is not judged.
        """
        paths = [part_path(self.path / family, i) for i in range(self.part_count)]
        recorded = zip(paths, self._parts_of(family), strict=True)
        return [path for path, part in recorded if part.digest and digest_of(path) != part.digest]

    def verify(self, *families: str) -> None:
        """Raise StoreError, naming the part, where the bytes of one are not those that its manifest recorded."""
        for family in families:
            for path in self.changed_parts(family):
                raise StoreError(f"{path} was changed after it was made: its digest differs; make it again")

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

    def _parts_of(self, family: str) -> tuple[Part, ...]:
        if family == TOKENS:
            return self.manifest.parts
        kind, _, name = family.partition("/")
        return (self.scoring(name) if kind == "stats" else self.mask(name))[1].parts

    def _check_owner(self, manifest: ScoringManifest | MaskManifest, family: str) -> None:
        if manifest.store_fingerprint != self.fingerprint:
            raise StoreError(f"{self.path / family} was made from other tokens than this store's; make it again")
        if [(p.rows, p.tokens) for p in manifest.parts] != [(p.rows, p.tokens) for p in self.manifest.parts]:
            raise StoreError(f"{self.path / family / MANIFEST} lists other parts than the store's tokens; make it again")

    def _check_rows(self, table: pa.Table, path: Path, index: int) -> None:
        if self._rows is None or self._rows[0] != index:
            self.part(TOKENS, index, ["seq_id"])
        assert self._rows is not None
        _, seq_ids, lengths = self._rows
        if not table["seq_id"].equals(seq_ids):
            raise StoreError(
                f"{path} holds other sequences than part {index} of the tokens: "
                "delete it and run the command that made it again"
            )
        check_lengths(table, path, lengths, f"the rows of part {index} of the tokens")


def _with_seq_id(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(dict.fromkeys(["seq_id", *columns]))


def _finished(folder: Path) -> list[str]:
    names = [p.parent.name for p in folder.glob(f"*/{MANIFEST}")] if folder.is_dir() else []
    return sorted(name for name in names if not name.startswith("."))  # a dot: being made, or being replaced
