"""One sequence of a store with all that is known of it: text, targets, decisions, statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tokenstats.alignment import predicted
from tokenstats.errors import StoreError
from tokenstats.inspect.protection import NotKnown, protected_targets
from tokenstats.inspect.tokens.detokenize import Decoder, visible
from tokenstats.schema import ROLES
from tokenstats.shown import Shown
from tokenstats.store import Store
from tokenstats.store.families import STATS
from tokenstats.store.manifests import MANIFEST, MaskManifest

_TOKENS = ("seq_id", "input_ids", "is_target", "role", "row", "truncated")


@dataclass(frozen=True)
class Token:
    """One token.

    Attributes:
        index: Its place in the sequence.
        id: Its id in the vocabulary.
        role: Who wrote it, one of ``ROLES``.
        is_target: Plain SFT would learn it.
        kept: It contributes to the loss.
        clauses: The rule's branches that dropped it, counted from 0.
        protected: The rule may never drop it.
        statistics: By name; one that was not scored is absent.
    """

    index: int
    id: int
    role: str
    is_target: bool
    kept: bool
    clauses: tuple[int, ...]
    protected: bool
    statistics: dict[str, Any]

    @property
    def dropped(self) -> bool:
        """A target that is not kept."""
        return self.is_target and not self.kept


@dataclass(frozen=True)
class Piece:
    """The shortest run of tokens whose text stands on its own: one token, or the few that share a character."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def shown(self) -> str:
        """The text, harmless: see :func:`tokenstats.inspect.tokens.detokenize.visible`. ``∅`` where there is none."""
        return visible(self.text) or "∅"

    @property
    def is_target(self) -> bool:
        """Is any of its tokens a target?"""
        return any(t.is_target for t in self.tokens)

    @property
    def dropped(self) -> bool:
        """Is any of its tokens dropped?"""
        return any(t.dropped for t in self.tokens)

    @property
    def protected(self) -> bool:
        """May any of its tokens never be dropped?"""
        return any(t.protected for t in self.tokens)

    @property
    def clauses(self) -> tuple[int, ...]:
        """The rule's branches that dropped any of its tokens, rising."""
        return tuple(sorted({c for t in self.tokens for c in t.clauses}))


@dataclass(frozen=True)
class SequenceView(Shown):
    """A sequence of T tokens. Without a mask every target is kept.

    Attributes:
        store: The store that it lies in.
        number: Of the sequence in the store, from 0.
        row: Of the dataset.
        seq_id: Its name in every part.
        truncated: It was cut at the store's maximal length.
        ids, role: Integers [T].
        is_target, keep: Boolean [T].
        reason: uint16 [T], bit i is set where clause i dropped the token.
        protected: Boolean [T], targets that the rule may never drop.
        clauses: Text of the rule's clauses.
        mask, scoring: Whose decisions and statistics are shown; None for none.
        statistics: Of the scoring, one list of T values each, None where not scored.
        caveat: Why no token is marked as protected, where that is not known.
    """

    store: Store = field(repr=False, compare=False)
    number: int
    row: int
    seq_id: str
    truncated: bool
    ids: np.ndarray = field(repr=False)
    role: np.ndarray = field(repr=False)
    is_target: np.ndarray = field(repr=False)
    keep: np.ndarray = field(repr=False)
    reason: np.ndarray = field(repr=False)
    protected: np.ndarray = field(repr=False)
    clauses: tuple[str, ...] = ()
    mask: str | None = None
    scoring: str | None = None
    statistics: dict[str, list[Any]] = field(default_factory=dict, repr=False)
    caveat: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many targets there are."""
        return int(self.is_target.sum())

    @property
    def kept(self) -> int:
        """How many of them are kept."""
        return int(self.keep.sum())

    @property
    def dropped(self) -> int:
        """How many of them are dropped."""
        return self.targets - self.kept

    @property
    def dropped_by_clause(self) -> list[tuple[str, int]]:
        """Text of each clause, and how many tokens it drops; one that two clauses drop counts in both."""
        bits = self.reason[:, None] >> np.arange(len(self.clauses), dtype=np.uint16) & np.uint16(1)
        return list(zip(self.clauses, np.count_nonzero(bits, axis=0).tolist(), strict=True))

    @property
    def dropped_by_several(self) -> int:
        """How many tokens more than one clause drops."""
        return int(np.count_nonzero(self.reason & (self.reason - np.uint16(1))))  # without its lowest bit: is there another?

    @cached_property
    def decoder(self) -> Decoder:
        """The store's tokenizer. Raises StoreError where it is missing."""
        return Decoder(self.store)

    def token(self, index: int) -> Token:
        """One token."""
        reason = int(self.reason[index])
        return Token(
            index=index,
            id=int(self.ids[index]),
            role=ROLES[self.role[index]],
            is_target=bool(self.is_target[index]),
            kept=bool(self.keep[index]),
            clauses=tuple(bit for bit in range(reason.bit_length()) if reason >> bit & 1),
            protected=bool(self.protected[index]),
            statistics={name: values[index] for name, values in self.statistics.items() if values[index] is not None},
        )

    def pieces(self) -> list[Piece]:
        """The sequence as pieces of text, in order; every token is in exactly one."""
        spans = self.decoder.spans(self.ids.tolist())
        return [Piece(s.text, tuple(self.token(i) for i in range(s.start, s.end))) for s in spans]

    def decided(self, keep: np.ndarray, reason: np.ndarray, protected: np.ndarray, clauses: Sequence[str]) -> "SequenceView":
        """The same sequence under other decisions, for a rule that is not stored as a mask."""
        return replace(self, keep=keep, reason=reason, protected=protected, clauses=tuple(clauses), mask=None)


def read_sequence(store: Store, number: int, *, mask: str | None = None, scoring: str | None = None) -> SequenceView:
    """Read one sequence.

    Args:
        store: The store.
        number: Of the sequence, counted from 0 over the store.
        mask: Whose decisions; None: plain SFT, every target kept.
        scoring: Whose statistics; None: those that the mask read, or the store's only scoring, or none.

    Raises:
        InputError: The number is out of range.
        StoreError: The mask or scoring is not there.
    """
    manifest = store.masks[mask].manifest if mask is not None else None
    scoring = choose_scoring(store, manifest, scoring)
    families: dict[str, list[str]] = {"tokens": list(_TOKENS)}
    if manifest is not None:
        families[f"masks/{mask}"] = ["keep", "reason"]
    if scoring is not None:
        families[f"stats/{scoring}"] = store.scorings[scoring].manifest.columns
    found = _one_row(store, number, families)
    statistics = {k: v for k, v in found.get(f"stats/{scoring}", {}).items() if k != "seq_id"}
    plain = _plain_sft(store, number, found["tokens"], scoring, statistics)
    return plain if manifest is None else _under(plain, str(mask), manifest, found[f"masks/{mask}"])


def ids_of(store: Store, number: int) -> list[int]:
    """The token ids of one sequence, for who needs nothing else. Raises as :func:`read_sequence` does."""
    return _one_row(store, number, {"tokens": ["input_ids"]})["tokens"]["input_ids"]


def _one_row(store: Store, number: int, families: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """As :meth:`Store.sequence`, but the part that was read last is kept: the next row is mostly in the same one."""
    part, row = store.locate(number)
    columns = tuple((family, *names) for family, names in families.items())
    state = tuple((str(path), *_state_of(path)) for family in families for path in [store.part_file(family, part)])
    tables = _tables_of(_PartRead((state, columns), store, part))
    return {family: table.slice(row, 1).to_pylist()[0] for family, table in tables.items()}


def _state_of(path: Path) -> tuple[int, int]:
    """What changes when a file does: its size and when it was written."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1  # reading it says what is wrong
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class _PartRead:
    """Columns of a part. Only the key is compared: it holds the files as they are now, and the columns."""

    key: tuple[Any, tuple[tuple[str, ...], ...]]
    store: Store = field(compare=False)
    part: int = field(compare=False)


@lru_cache(maxsize=2)
def _tables_of(read: _PartRead) -> dict[str, pa.Table]:
    families = {family: names for family, *names in read.key[1]}
    return next(read.store.aligned(families, [read.part]))


def _plain_sft(
    store: Store, number: int, tokens: dict[str, Any], scoring: str | None, statistics: dict[str, list[Any]]
) -> SequenceView:
    flags = np.asarray(tokens["is_target"], bool)
    is_target = predicted(flags, np.array([0, len(flags)]))
    return SequenceView(
        store=store,
        number=number,
        row=tokens["row"],
        seq_id=tokens["seq_id"],
        truncated=tokens["truncated"],
        ids=np.asarray(tokens["input_ids"], np.int32),
        role=np.asarray(tokens["role"], np.int8),
        is_target=is_target,
        keep=is_target.copy(),
        reason=np.zeros(len(flags), np.uint16),
        protected=np.zeros(len(flags), bool),
        scoring=scoring,
        statistics=statistics,
    )


def _under(plain: SequenceView, mask: str, manifest: MaskManifest, decisions: dict[str, Any]) -> SequenceView:
    """The sequence with what a stored mask decided."""
    keep, reason = np.asarray(decisions["keep"], bool), np.asarray(decisions["reason"], np.uint16)
    protected, caveat = None, None
    try:
        protected = protected_targets(plain.store, manifest, plain.number)
    except NotKnown as why:
        caveat = f"which tokens are protected is not known: {why}"
    protected = plain.protected if protected is None else protected
    view = plain.decided(keep, reason, protected, [c.text for c in manifest.clauses])
    return replace(view, mask=mask, caveat=caveat)


def choose_scoring(store: Store, mask: MaskManifest | None, scoring: str | None) -> str | None:
    """The scoring asked for; else the one that the mask's bare names mean, or one that it read; else the only one; else None.

    Raises StoreError where one has its parts, but no manifest: whether it is the one cannot be told.
    """
    if scoring is not None:
        return store.scorings.choose(scoring).name
    read = list(mask.scorings_read) if mask else []
    if mask is not None and mask.scoring is not None:
        read.insert(0, mask.scoring)
    for name in read:
        if store.has(f"{STATS}/{name}"):
            return name
        if (store.path / STATS / name).is_dir():
            raise StoreError(f"{store.path / STATS / name} has no {MANIFEST}: run the command that made it again")
    store.scorings.check_all_listed()
    known = list(store.scorings)
    return known[0] if len(known) == 1 else None
