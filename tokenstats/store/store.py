"""A store on disk: one tokenized dataset, any number of scorings and masks of it.

store = Store("runs/gsm8k")
list(store.scorings), store.masks["eksft"].manifest
store.scan("stats/warm")                                   # a polars LazyFrame
for tables in store.aligned({"tokens": ["input_ids"], "stats/warm": ["entropy"]}):
    ...                                                    # one part of each, rows proven to match
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from tokenstats.errors import InputError, StoreError
from tokenstats.shown import Shown
from tokenstats.store.checks import ChangedFile, Proofs, check_columns, check_counts, check_lengths, row_lengths
from tokenstats.store.drafts import places_of
from tokenstats.store.families import MASKS, STATS, TOKENS, Families, Kind
from tokenstats.store.manifests import MANIFEST, TOKENIZER, MaskManifest, Part, ScoringManifest, StoreManifest
from tokenstats.store.parts import MissingFile, digest_of, part_path, read_part

if TYPE_CHECKING:
    import polars as pl


class Store(Shown):
    """A finished store. Raises StoreError where ``path`` is none.

    It shows each scoring and mask as it was when it was first asked for: of one that is replaced meanwhile, reading on is an
    error, never a mixture. Every part is held against the digest of its manifest before anything in it is believed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise StoreError(f"no store at {self.path}: expected a folder made by 'tokenstats compute'")
        if not (self.path / MANIFEST).exists() and not (self.path / TOKENS).is_dir():
            raise StoreError(f"{self.path} is not a store: it has no {MANIFEST}; make one with 'tokenstats compute'")
        self.manifest = StoreManifest.read(self.path)
        self._seen: dict[str, ScoringManifest | MaskManifest] = {}
        self._proofs: Proofs | None = Proofs()
        self._tell: Callable[[int, int], object] | None = None
        # of the tokens part read last: its index, seq_ids and, where a list was read, the rows' lengths
        self._rows: tuple[int, pa.ChunkedArray, pa.ChunkedArray | None] | None = None

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, sequences={self.manifest.sequences:,}, tokens={self.manifest.tokens:,})"

    @property
    def fingerprint(self) -> str:
        """Digest of the identity of all sequences, in order."""
        return self.manifest.fingerprint

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies."""
        return self.path / TOKENIZER

    def check_tokenizer(self) -> None:
        """Raise StoreError where a file of the tokenizer is not what it was when the store was made."""
        for name, digest in self.manifest.tokenizer_files.items():
            path = self.tokenizer_folder / Path(name).name
            if digest_of(path) != digest:
                raise ChangedFile(f"{path} was changed after the store was made: its digest differs; put it back as it was")

    @property
    def scorings(self) -> Families[ScoringManifest]:
        """The finished scorings by name: ``store.scorings["warm"].manifest``."""
        return Families(self, STATS, "scoring", ScoringManifest)

    @property
    def masks(self) -> Families[MaskManifest]:
        """The finished masks by name: ``store.masks["eksft"].manifest``."""
        return Families(self, MASKS, "mask", MaskManifest)

    def has(self, family: str) -> bool:
        """Is ``stats/NAME`` or ``masks/NAME`` finished?"""
        return any((place / MANIFEST).exists() for place in places_of(self.path / family))

    def forget(self, family: str) -> None:
        """Look at a scoring or mask anew: this process has replaced it."""
        self._seen.pop(family, None)

    @property
    def part_count(self) -> int:
        """Parts that the tokens are cut into."""
        return len(self.manifest.parts)

    def unproven(self) -> "Store":
        """The same store, read without its digests: for who holds them against the files itself, to say which differ."""
        twin = copy(self)
        twin._proofs = None
        return twin

    def watched(self, tell: Callable[[int, int], object]) -> "Store":
        """The same store, which tells of each part that is about to be read: its index, and how many there are.

        What ``tell`` raises ends the reading. Where several threads read, each calls it.
        """
        twin = copy(self)
        twin._tell = tell
        return twin

    def part(self, family: str, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One part of a family (``tokens``, ``stats/NAME``, ``masks/NAME``), its rows proven to be the tokens' rows.

        Raises StoreError, naming the part, where it is missing, damaged, or not what the manifest says.
        """
        if self._tell is not None:
            self._tell(index, self.part_count)
        expected = self._parts_of(family)[index]
        path, table = self._read(family, index, _with_seq_id(columns), expected)
        check_columns(table, path, family, _with_seq_id(columns))
        if family != TOKENS:
            self._check_rows(table, path, index)
        check_counts(table, path, expected)
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

    def locate(self, number: int) -> tuple[int, int]:
        """Part, and row in it, of a sequence counted from 0 over the whole store. Raises InputError where there is none."""
        row = number
        for index, part in enumerate(self.manifest.parts if number >= 0 else ()):
            if row < part.rows:
                return index, row
            row -= part.rows
        raise InputError(f"row {number} is not in the store: it holds rows 0 to {self.manifest.sequences - 1}")

    def part_file(self, family: str, index: int) -> Path:
        """Where a part of a family lies."""
        return part_path(self._place_of(family), range(self.part_count)[index])

    def sequence(self, number: int, columns: Mapping[str, Sequence[str]]) -> dict[str, dict]:
        """One sequence, counted from 0 over the whole store, as plain Python values per family."""
        index, row = self.locate(number)
        tables = next(self.aligned(columns, [index]))
        return {family: table.slice(row, 1).to_pylist()[0] for family, table in tables.items()}

    def changed_parts(self, family: str) -> list[Path]:
        """The parts of a family whose bytes are no longer those that its manifest recorded; reads every byte of them.

        A part without a recorded digest is not judged: an earlier version made it.
        """
        recorded = zip(self._paths_of(family), self._parts_of(family), strict=True)
        return [path for path, part in recorded if part.digest and digest_of(path) != part.digest]

    def verify(self, *families: str) -> None:
        """Raise StoreError, naming the part, where the bytes of one are not those that its manifest recorded."""
        proofs = self._proofs or Proofs()
        for family in families:
            for path, part in zip(self._paths_of(family), self._parts_of(family), strict=True):
                proofs.check(path, part.digest)

    def scan(self, family: str) -> "pl.LazyFrame":
        """A polars LazyFrame over a family: the way out to any other tool. Proves nothing: see :meth:`verify`."""
        import polars as pl

        return pl.scan_parquet(self._paths_of(family))

    def looked_up(self, family: str, kind: type[Kind]) -> Kind:
        """The manifest of a family, as it was when it was first asked for; StoreError where it was replaced since."""
        seen = self._manifest(family, kind)
        self._check_not_replaced(family)
        return seen

    def _manifest(self, family: str, kind: type[Kind]) -> Kind:
        if family not in self._seen:
            found = kind.read(self.path / family)
            self._check_owner(found, family)
            self._seen[family] = found
        seen = self._seen[family]
        assert isinstance(seen, kind)
        return seen

    def _manifest_of(self, family: str) -> StoreManifest | ScoringManifest | MaskManifest:
        if family == TOKENS:
            return self.manifest
        if family.startswith(f"{MASKS}/"):
            return self._manifest(family, MaskManifest)
        return self._manifest(family, ScoringManifest)

    def _parts_of(self, family: str) -> tuple[Part, ...]:
        return self._manifest_of(family).parts

    def _paths_of(self, family: str) -> list[Path]:
        place = self._place_of(family)
        return [part_path(place, index) for index in range(self.part_count)]

    def _place_of(self, family: str) -> Path:
        return next((p for p in places_of(self.path / family) if p.is_dir()), self.path / family)

    def _read(self, family: str, index: int, columns: list[str] | None, expected: Part) -> tuple[Path, pa.Table]:
        prove = self._proofs.of(expected.digest) if self._proofs is not None else None
        *others, last = (part_path(place, index) for place in places_of(self.path / family))
        try:
            for path in others:
                try:
                    return path, read_part(path, columns, prove)
                except MissingFile:
                    continue
            return last, read_part(last, columns, prove)
        except (MissingFile, ChangedFile):
            self._check_not_replaced(family)
            raise

    def _check_not_replaced(self, family: str) -> None:
        """Raise StoreError where a family is another one by now than the one that was seen first."""
        seen = self._manifest_of(family)
        if family != TOKENS and self.has(family) and type(seen).read(self.path / family) != seen:
            raise StoreError(f"{self.path / family} was replaced while it was being read; run again, on a store opened anew")

    def _check_owner(self, manifest: ScoringManifest | MaskManifest, family: str) -> None:
        if manifest.store_fingerprint != self.fingerprint:
            raise StoreError(f"{self.path / family} was made from other tokens than this store's; make it again")
        if [(p.rows, p.tokens) for p in manifest.parts] != [(p.rows, p.tokens) for p in self.manifest.parts]:
            raise StoreError(f"{self.path / family / MANIFEST} lists other parts than the store's tokens; make it again")

    def _check_rows(self, table: pa.Table, path: Path, index: int) -> None:
        has_lists = row_lengths(table) is not None
        if self._rows is None or self._rows[0] != index or (has_lists and self._rows[2] is None):
            self.part(TOKENS, index, ["seq_id", "is_target"] if has_lists else ["seq_id"])  # is_target: the smallest list
        assert self._rows is not None
        _, seq_ids, lengths = self._rows
        if not table["seq_id"].equals(seq_ids):
            raise StoreError(
                f"{path} holds other sequences than part {index} of the tokens: "
                "delete it and run the command that made it again"
            )
        check_lengths(table, path, lengths, f"the rows of part {index} of the tokens")


def open_store(store: Store | str | Path) -> Store:
    """The store at a path, or the one that is open already."""
    return store if isinstance(store, Store) else Store(store)


def _with_seq_id(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(dict.fromkeys(["seq_id", *columns]))
