"""What the manifests say: typed, read strictly, written last.

A manifest carries a checksum of itself. One that was edited, or lost a byte, is refused: every count and fingerprint that a
reader goes by is the one that was written. Manifests of earlier versions have none; they are read as they are, and what can be
told from their numbers alone is all that protects them.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokenstats.errors import StoreError, one_line
from tokenstats.schema import BY_COMPARISON, MAX_CLAUSES, SCHEMA_VERSION, STATISTICS, TOPK_COLUMNS
from tokenstats.store.drafts import places_of
from tokenstats.store.parts import MissingFile, digest_of, write_json

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
_CHECKSUM = "checksum"

Count = Annotated[int, Field(ge=0, le=1 << 53)]
"""How many of something: what JSON can say exactly, and more than any disk holds."""
Vocabulary = Annotated[int, Field(ge=0, le=1 << 24)]
"""Entries of a vocabulary: tables of that size are made when a store is looked at."""
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Part(_Record):
    """One part file: how many rows and tokens it holds, and the digest of its bytes ("": was not taken)."""

    rows: Count
    tokens: Count
    digest: str


class _Manifest(_Record):
    schema_version: int = SCHEMA_VERSION
    created: str
    parts: tuple[Part, ...]
    fingerprint: str

    def write(self, folder: Path) -> None:
        """Write it into a folder, with its checksum, in one step."""
        fields = json.loads(self.model_dump_json())
        write_json(folder / MANIFEST, json.dumps({**fields, _CHECKSUM: _checksum(fields)}, indent=2, ensure_ascii=False))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a folder, or of the one that it is just replacing. Raises StoreError for one that is not whole."""
        for place in places_of(folder):
            try:
                return cls._read(place / MANIFEST)
            except MissingFile:
                continue
        raise MissingFile(f"{folder / MANIFEST} is missing: the run that makes it has not ended; run it again to finish")

    @classmethod
    def _read(cls, path: Path) -> Self:
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise MissingFile(f"{path} is missing") from None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{path} cannot be read: {one_line(error, 120)}; run the command that made it again") from error
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
            version = fields.get("schema_version")
            if type(version) is int and version != SCHEMA_VERSION:  # first: another version has other fields
                raise StoreError(f"{path} has schema version {version}, this tokenstats reads {SCHEMA_VERSION}")
            checksum = fields.pop(_CHECKSUM, None)  # None: written by an earlier version
            if checksum is not None and checksum != _checksum(fields):
                raise StoreError(
                    f"{path} was changed after it was written: its checksum differs; put the file back as it was, or delete it "
                    "and run the command that made it again"
                )
            return cls.model_validate_json(json.dumps(fields), strict=True)
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{path} is not a manifest of tokenstats ({_what_is_wrong(error)}); delete it and run the command that made it"
            ) from None


def _checksum(fields: dict[str, Any]) -> str:
    """BLAKE2b of the fields as canonical JSON: sorted names, no spaces."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _what_is_wrong(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return one_line(error, 120)
    first = error.errors()[0]
    return one_line(f"{'.'.join(map(str, first['loc'])) or 'text'}: {first['msg']}", 200)


class Dataset(_Record):
    """Where the rows came from and what became of them.

    Attributes:
        dropped: Rows left out, by reason; noted: rows that are in, with something that their reader should know.
    """

    source: str
    fingerprint: str
    shape: str
    columns: dict[str, str]
    rows: Count
    dropped: dict[str, Count]
    first_dropped: dict[str, Count]
    truncated: Count
    noted: dict[str, Count] = {}
    first_noted: dict[str, Count] = {}

    @model_validator(mode="after")
    def _same_reasons(self) -> Self:
        if self.dropped.keys() != self.first_dropped.keys():
            raise ValueError("dropped and first_dropped name other reasons")
        if self.noted.keys() != self.first_noted.keys():
            raise ValueError("noted and first_noted name other things")
        return self


class Tokenizer(_Record):
    """Ids and words that everything in the store is written in."""

    source: str
    fingerprint: str
    size: Vocabulary
    bos_id: TokenId | None
    end_of_turn_ids: tuple[TokenId, ...]
    special_ids: tuple[TokenId, ...]
    trust_remote_code: bool = False


class Template(_Record):
    """How rows became text, and how targets were found in it.

    Attributes:
        source: Own (the tokenizer's), training (what trl ships in its place) or the path of a Jinja file.
        special_text: Special tokens that rows write out are those tokens (as-is) or their characters (plain).
    """

    fingerprint: str
    targets: str
    max_length: Count | None
    source: str = "own"
    special_text: str = "as-is"

    @property
    def found_by(self) -> str:
        """``targets`` in a sentence: "found by …"."""
        return "rendering each chat with and without the reply" if self.targets == BY_COMPARISON else self.targets


class StoreManifest(_Manifest):
    """``STORE/manifest.json``: the tokens family. ``tokenizer_files``: digests of what lies in ``STORE/tokenizer``."""

    dataset: Dataset
    tokenizer: Tokenizer
    template: Template
    part_tokens: Count
    sequences: Count
    tokens: Count
    targets: Count
    tokenizer_files: dict[str, str] = {}

    def write(self, folder: Path) -> None:
        """Write it beside the tokenizer, with the digests of the tokenizer's files."""
        files = sorted(path for path in (folder / TOKENIZER).glob("*") if path.is_file())
        _Manifest.write(self.model_copy(update={"tokenizer_files": {p.name: digest_of(p) for p in files}}), folder)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        counted = sum(p.rows for p in self.parts), sum(p.tokens for p in self.parts)
        if (self.sequences, self.tokens) != counted or self.targets > self.tokens:
            raise ValueError(f"it counts {self.sequences} sequences and {self.tokens} tokens, its parts {counted}")
        return self


class Model(_Record):
    """One scored model: where it was, and a digest of its weights."""

    source: str
    fingerprint: str
    revision: str | None
    architecture: str
    parameters: Count


class ScoringManifest(_Manifest):
    """``stats/<scoring>/manifest.json``.

    Attributes:
        notes: What a user should know of these models' numbers.
        means: Of each statistic that is a real number, over the tokens that were scored.
    """

    store_fingerprint: str
    model: Model
    reference: Model | None
    dtype: str
    device: str
    vocabulary: Vocabulary
    topk: Count
    score_all: bool
    head: dict[str, str]
    notes: tuple[str, ...] = ()
    versions: dict[str, str]
    scored: Count
    means: dict[str, float]
    padding: float
    reduction: str | None = None
    batch_tokens: Count | None = None
    trust_remote_code: bool = False

    @property
    def columns(self) -> list[str]:
        """The statistics that its parts hold.

        Those that are real numbers have a mean here, so that a scoring made before one of them was known does not claim it.
        """
        of_models = [s for s in STATISTICS if self.reference is not None or not s.of_reference]
        names = [s.name for s in of_models if s.name in self.means or not s.is_float]
        return names + (list(TOPK_COLUMNS) if self.topk else [])


class Clause(_Record):
    """One branch of a rule: its text and how many target tokens it dropped."""

    text: str
    dropped: Count


class MaskManifest(_Manifest):
    """``masks/<mask>/manifest.json``.

    Attributes:
        scorings: Name and fingerprint of all that was read: scorings, and of a budget ``masks/<mask>``.
        scoring: The one of them that the rule's bare names mean; None where it has none, and before that was recorded.
        weighted: The parts have a column ``weight``; ``weight_total`` is its sum.
        thresholds: The number behind each dataset-wide selection; scales: (centre, width) of each zscore and minmax.
        clauses: A rule that only weighs has none; ``min_kept`` that drops rows is the last one.
        rows_with_too_few: Rows that ``min_kept`` dropped or kept whole.
        shortfall: Tokens that a budget asked for and that could not be dropped: too few were unprotected.
    """

    store_fingerprint: str
    rule: dict[str, str | int]
    rule_fingerprint: str
    scorings: dict[str, str]
    scoring: str | None = None
    thresholds: dict[str, float]
    scales: dict[str, tuple[float, float]] = {}
    clauses: Annotated[tuple[Clause, ...], Field(max_length=MAX_CLAUSES)]
    targets: Count
    kept: Count
    protected: Count
    rows_with_nothing_kept: Count
    rows_with_too_few: Count = 0
    shortfall: Count = 0
    weighted: bool = False
    weight_total: float | None = None

    @property
    def dropped(self) -> int:
        """Targets that are not kept."""
        return self.targets - self.kept

    @property
    def scorings_read(self) -> dict[str, str]:
        """Names and fingerprints of the scorings alone, without the mask that a budget follows."""
        return {name: fingerprint for name, fingerprint in self.scorings.items() if not name.startswith("masks/")}

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.kept > self.targets:
            raise ValueError(f"it keeps {self.kept} of {self.targets} targets")
        return self
