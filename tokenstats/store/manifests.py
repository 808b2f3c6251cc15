"""What the manifests say: typed, read strictly, written last."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tokenstats.errors import StoreError
from tokenstats.schema import SCHEMA_VERSION
from tokenstats.store.parts import write_json

MANIFEST = "manifest.json"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Part(_Record):
    """One part file: how many rows and tokens it holds, and the digest of its bytes."""

    rows: int
    tokens: int
    digest: str


class _Versioned(BaseModel):
    """What every version of a manifest has."""

    schema_version: int


class _Manifest(_Record):
    schema_version: int = SCHEMA_VERSION
    created: str
    parts: tuple[Part, ...]
    fingerprint: str

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, self.model_dump_json(indent=2))

    @classmethod
    def read(cls, folder: Path) -> Self:
        path = folder / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"{path} is missing: the run that makes it has not ended; run it again to finish") from None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        try:
            version = _Versioned.model_validate_json(text).schema_version  # first: another version has other fields
            if version != SCHEMA_VERSION:
                raise StoreError(f"{path} has schema version {version}, this tokenstats reads {SCHEMA_VERSION}")
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "text"
            raise StoreError(
                f"{path} is not a manifest of tokenstats ({where}: {first['msg']}); delete it and run the command that made it"
            ) from None


class Dataset(_Record):
    """Where the rows came from and what became of them.

    dropped: rows left out, by reason; noted: rows that are in, with something that their reader should know
    """

    source: str
    fingerprint: str
    shape: str
    columns: dict[str, str]
    rows: int
    dropped: dict[str, int]
    first_dropped: dict[str, int]
    truncated: int
    noted: dict[str, int] = {}
    first_noted: dict[str, int] = {}


class Tokenizer(_Record):
    """Ids and words that everything in the store is written in."""

    source: str
    fingerprint: str
    size: int
    bos_id: int | None
    end_of_turn_ids: tuple[int, ...]
    special_ids: tuple[int, ...]
    trust_remote_code: bool = False


class Template(_Record):
    """How rows became text, and how targets were found in it.

    source:       own (the tokenizer's), training (what trl ships in its place) or the path of a Jinja file
    special_text: special tokens that rows write out are those tokens (as-is) or their characters (plain)
    """

    fingerprint: str
    targets: str
    max_length: int | None
    source: str = "own"
    special_text: str = "as-is"


class StoreManifest(_Manifest):
    """``STORE/manifest.json``: the tokens family."""

    dataset: Dataset
    tokenizer: Tokenizer
    template: Template
    part_tokens: int
    sequences: int
    tokens: int
    targets: int


class Model(_Record):
    """One scored model: where it was, and a digest of its weights."""

    source: str
    fingerprint: str
    revision: str | None
    architecture: str
    parameters: int


class ScoringManifest(_Manifest):
    """``stats/<scoring>/manifest.json``.

    notes: what a user should know of these models' numbers
    """

    store_fingerprint: str
    model: Model
    reference: Model | None
    dtype: str
    device: str
    vocabulary: int
    topk: int
    score_all: bool
    head: dict[str, str]
    notes: tuple[str, ...] = ()
    versions: dict[str, str]
    scored: int
    means: dict[str, float]
    padding: float
    reduction: str | None = None
    batch_tokens: int | None = None
    trust_remote_code: bool = False


class Clause(_Record):
    """One branch of a rule: its text and how many target tokens it dropped."""

    text: str
    dropped: int


class MaskManifest(_Manifest):
    """``masks/<mask>/manifest.json``.

    weighted:          the parts have a column ``weight``; ``weight_total`` is its sum
    thresholds:        the number behind each dataset-wide selection; scales: (centre, width) of each zscore and minmax
    clauses:           a rule that only weighs has none; ``min_kept`` that drops rows is the last one
    rows_with_too_few: rows that ``min_kept`` dropped or kept whole
    shortfall:         tokens that a budget asked for and that could not be dropped: too few were unprotected
    """

    store_fingerprint: str
    rule: dict[str, str | int]
    rule_fingerprint: str
    scorings: dict[str, str]
    thresholds: dict[str, float]
    scales: dict[str, tuple[float, float]] = {}
    clauses: tuple[Clause, ...]
    targets: int
    kept: int
    protected: int
    rows_with_nothing_kept: int
    rows_with_too_few: int = 0
    shortfall: int = 0
    weighted: bool = False
    weight_total: float | None = None
