"""Where is `` So`` dropped? All places of a token, of a text, or of every token that a pattern fits, with what becomes of them.

The ids of all targets are kept in temporary files, four bytes each: a search reads them through once, and holds no more than
its hits in memory.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import regex

from tokenstats.errors import InputError, one_line
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.masking.engine.decisions import Decisions
from tokenstats.masking.engine.sorted_runs import on_disk
from tokenstats.masking.engine.targets import Targets, iter_targets
from tokenstats.store import Store

MOST_HITS = 500
"""Places that are listed; all are counted."""

_SECONDS = 2.0
"""A pattern that takes longer is refused."""


class SearchBy(StrEnum):
    """How what is sought is read."""

    TOKEN = "token"
    TEXT = "text"
    PATTERN = "regular expression"


@dataclass(frozen=True)
class Hit:
    """One place: a row of the store, the first token's index in it, and whether any of its tokens is dropped."""

    row: int
    token: int
    dropped: bool


@dataclass(frozen=True)
class Found:
    """What a search found among the targets.

    Attributes:
        count, dropped: All places, and those of which a token is dropped.
        hits: The first of them.
        sought: What was looked for: sequences of ids.
    """

    count: int
    dropped: int
    hits: tuple[Hit, ...]
    sought: tuple[tuple[int, ...], ...]

    @property
    def share_dropped(self) -> float:
        """Dropped / count; 0 of none."""
        return self.dropped / self.count if self.count else 0.0


@dataclass(frozen=True)
class _Part:
    """The n targets of a part: their ids, and what places them in their rows."""

    first_row: int
    ids: np.ndarray
    place: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class TokenIndex:
    """The targets of a store by place, ready to be searched."""

    parts: tuple[_Part, ...]

    @property
    def targets(self) -> int:
        """How many are searched."""
        return sum(len(part.ids) for part in self.parts)


def token_index(store: Store) -> TokenIndex:
    """Read the ids of a store's targets once."""
    parts, first = [], 0
    for targets in iter_targets(store, [], {}):
        parts.append(_part_of(targets, first))
        first += len(targets.rows)
    return TokenIndex(tuple(parts))


def _part_of(targets: Targets, first: int) -> _Part:
    ids, place = targets.column((None, "token_id")).astype(np.int32), targets.place.astype(np.int32)
    return _Part(first, on_disk(ids), on_disk(place), targets.offsets)


def packed(decisions: Iterable[Decisions]) -> tuple[np.ndarray, ...]:
    """What is dropped, a bit for each target, part by part: all that a search needs of the decisions."""
    return tuple(np.packbits(of_part.dropped, bitorder="little") for of_part in decisions)


def sequences_for(decoder: Decoder, vocabulary: int, text: str, by: SearchBy) -> list[tuple[int, ...]]:
    """The ids that a search looks for.

    Args:
        decoder: Of the store.
        vocabulary: How many ids there are.
        text: What is sought: a token's text with its space, a text, or a pattern that a token's text must contain.
        by: How to read it.

    Raises:
        InputError: There is no such token, the text is empty, or the pattern is none or takes too long.
    """
    if not text:
        raise InputError("nothing to search for: the text is empty")
    if by is SearchBy.TEXT:  # as it stands at the beginning of a text, and after a space
        ways = {tuple(decoder.tokenizer.encode(t, add_special_tokens=False).ids) for t in (text, f" {text}")}
        return sorted(way for way in ways if way)
    fits = _pattern(text) if by is SearchBy.PATTERN else text.__eq__
    try:
        found: list[tuple[int, ...]] = [(i,) for i, token in enumerate(decoder.tokens(vocabulary)) if fits(token)]
    except TimeoutError:
        raise InputError(f"the pattern {one_line(text, 60)!r} takes too long on this vocabulary; make it simpler") from None
    if not found:
        raise InputError(f"no token of the vocabulary {'is' if by is SearchBy.TOKEN else 'fits'} {one_line(text, 60)!r}")
    return found


def _pattern(text: str) -> Callable[[str], object]:
    try:
        compiled = regex.compile(text)
    except regex.error as error:
        raise InputError(f"{one_line(text, 60)!r} is no regular expression: {one_line(error, 100)}") from None
    return lambda token: compiled.search(token, timeout=_SECONDS)


def search(index: TokenIndex, sought: Sequence[tuple[int, ...]], dropped: Sequence[np.ndarray]) -> Found:
    """Count and list the places of sequences of ids among the targets.

    Args:
        index: Of the store.
        sought: Sequences of ids; each stands in one row without a gap.
        dropped: Of :func:`packed`.
    """
    count = lost = 0
    hits: list[Hit] = []
    for part, bits in zip(index.parts, dropped, strict=True):
        flags = np.unpackbits(bits, count=len(part.ids), bitorder="little").astype(bool)
        first, is_dropped = _places(part, sought, flags)
        count, lost = count + len(first), lost + int(np.count_nonzero(is_dropped))
        listed = slice(0, MOST_HITS - len(hits))
        places = part.place[first[listed]]
        rows = np.searchsorted(part.offsets, places, side="right") - 1
        found = zip(rows.tolist(), (places - part.offsets[rows]).tolist(), is_dropped[listed].tolist(), strict=True)
        hits += [Hit(part.first_row + row, token, gone) for row, token, gone in found]
    return Found(count, lost, tuple(hits), tuple(sought))


def _places(part: _Part, sought: Sequence[tuple[int, ...]], dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where sequences begin among a part's targets, rising, and whether any of their tokens is dropped."""
    singles = np.array([ids[0] for ids in sought if len(ids) == 1], np.int32)
    first = np.flatnonzero(_among(part.ids, singles)) if len(singles) else np.zeros(0, np.int64)
    found, gone = [first], [dropped[first]]
    for ids in (ids for ids in sought if len(ids) > 1):
        at = np.flatnonzero(part.ids[: len(part.ids) - len(ids) + 1] == ids[0])
        for step, token in enumerate(ids[1:], 1):
            at = at[(part.ids[at + step] == token) & (part.place[at + step] == part.place[at] + step)]
        rows = np.searchsorted(part.offsets, np.stack([part.place[at], part.place[at] + len(ids) - 1]), side="right")
        at = at[rows[0] == rows[1]]
        found.append(at)
        gone.append(np.any([dropped[at + step] for step in range(len(ids))], axis=0) if len(at) else np.zeros(0, bool))
    places, is_dropped = np.concatenate(found), np.concatenate(gone)
    order = np.argsort(places, kind="stable")
    return places[order], is_dropped[order]


def _among(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if len(wanted) == 1:
        return ids == wanted[0]
    table = np.zeros(max(int(ids.max(initial=0)), int(wanted.max())) + 1, bool)
    table[wanted] = True
    return table[ids]
