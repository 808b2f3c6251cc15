"""The tokens that a rule speaks about: the targets of one part that have a prediction, flat and in order."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from tokenstats.alignment import predicted
from tokenstats.errors import InputError, RuleError, StoreError, argument, nearest
from tokenstats.masking.language.builtins import DERIVED, STATISTIC_COLUMNS, TOKEN_COLUMNS
from tokenstats.masking.language.unparse import Column
from tokenstats.schema import STATISTIC_BY_NAME
from tokenstats.store import Store
from tokenstats.store.lists import flat, offsets_of
from tokenstats.store.manifests import Tokenizer
from tokenstats.store.vocabulary import Vocabulary

_OF_IDS = ("token_id", "token_class", "is_end_of_turn", "is_special")
_TOKEN_LISTS = {**dict.fromkeys(_OF_IDS, "input_ids"), "role": "role"}
"""Stored columns that token columns are computed from; ``is_target``, which all need, is always read."""


@dataclass(frozen=True)
class Targets:
    """n target tokens of one part, in dataset order.

    Attributes:
        offsets: [R + 1] where each of the part's R rows begins among all its N tokens.
        place: [n] index of each target among all the part's tokens.
        ids, roles: [N] of all tokens; empty where the reader was not asked for them.
    """

    part: int
    seq_ids: pa.ChunkedArray
    rows: np.ndarray
    ids: np.ndarray
    roles: np.ndarray
    offsets: np.ndarray
    place: np.ndarray
    statistics: Mapping[Column, np.ndarray]
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    _remembered: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.place)

    @property
    def has_ids(self) -> bool:
        """Was the reader asked for the ids?"""
        return len(self.ids) == self.offsets[-1]

    @cached_property
    def row(self) -> np.ndarray:
        """[n] which of the part's rows a token belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.sequence_starts))

    @cached_property
    def position_in_sequence(self) -> np.ndarray:
        """[n] place of each target in its sequence, counted from 0."""
        return self.place - self.offsets[self.row]

    @cached_property
    def sequence_starts(self) -> np.ndarray:
        """[R + 1] where each row begins among the targets."""
        return np.searchsorted(self.place, self.offsets)

    @cached_property
    def turn_starts(self) -> np.ndarray:
        """Where each reply begins among the targets: after a gap, or at a new row."""
        fresh = np.ones(len(self) + 1, bool)
        fresh[1:-1] = ~self.is_followed[:-1]
        return np.flatnonzero(fresh)

    @cached_property
    def is_followed(self) -> np.ndarray:
        """[n] boolean: is the next token of the sequence a target too?"""
        followed = np.zeros(len(self), bool)
        followed[:-1] = (np.diff(self.place) == 1) & (np.diff(self.row) == 0)
        return followed

    def name_of(self, token: int) -> str:
        """Which token this is, for messages."""
        return f"token {self.position_in_sequence[token]} of sequence {self.seq_ids[int(self.row[token])]}"

    def spread(self, values: np.ndarray) -> np.ndarray:
        """[N] the values [n] of the targets at their places among all the part's tokens; False or 0 where there is none."""
        spread = np.zeros(int(self.offsets[-1]), values.dtype)
        spread[self.place] = values
        return spread

    def of_rows(self, first: int, end: int) -> "Targets":
        """The targets of rows ``first`` to ``end - 1`` alone.

        Ties with a threshold over the dataset are resolved over a whole part: what is decided about them is decided there.
        """
        tokens, own = slice(*self.offsets[[first, end]]), slice(*self.sequence_starts[[first, end]])
        return replace(
            self,
            seq_ids=self.seq_ids.slice(first, end - first),
            rows=self.rows[first:end],
            ids=self.ids[tokens],
            roles=self.roles[tokens],
            offsets=self.offsets[first : end + 1] - self.offsets[first],
            place=self.place[own] - self.offsets[first],
            statistics={column: values[own] for column, values in self.statistics.items()},
        )

    def starts(self, scope: str) -> np.ndarray:
        """Where each sequence, or each turn, begins among the targets."""
        return self.sequence_starts if scope == "sequence" else self.turn_starts

    def remembered(self, what: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that several rules need of these tokens, computed once; the last four are kept."""
        found = self._remembered.get(what)
        if found is None:
            found = self._remembered[what] = compute()
            for old in list(self._remembered)[:-4]:
                self._remembered.pop(old, None)
        return found

    def column(self, column: Column) -> np.ndarray:
        """[n] values of a column of the rule language. Statistics and nll stay float32; the rest is float64."""
        scoring, name = column
        if name in DERIVED:
            logprob = self.statistics[scoring, DERIVED[name]]
            if name.endswith("nll"):
                return -logprob
            with np.errstate(over="ignore"):  # below −709 nats a perplexity is more than a float64 holds: infinite
                return np.exp(logprob.astype(np.float64) * (-1 if name == "ppl" else 1))
        if name in STATISTIC_COLUMNS:
            return self.statistics[scoring, name]
        return getattr(self, f"_{name}")

    @property
    def _token_id(self) -> np.ndarray:
        return self.ids[self.place]

    @property
    def _role(self) -> np.ndarray:
        return self.roles[self.place]

    @cached_property
    def _token_class(self) -> np.ndarray:
        return self.vocabulary.classes[self._token_id]

    @cached_property
    def _is_end_of_turn(self) -> np.ndarray:
        return np.isin(self._token_id, self.tokenizer.end_of_turn_ids)

    @cached_property
    def _is_special(self) -> np.ndarray:
        return np.isin(self._token_id, self.tokenizer.special_ids)

    @cached_property
    def _reply(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.turn_starts) - 1), np.diff(self.turn_starts))

    @property
    def _position(self) -> np.ndarray:
        return np.arange(len(self)) - self.turn_starts[self._reply]

    @property
    def _length(self) -> np.ndarray:
        return np.diff(self.turn_starts)[self._reply]

    @property
    def _turn(self) -> np.ndarray:
        first = np.searchsorted(self.turn_starts, self.sequence_starts[self.row])
        return self._reply - first


def physical_columns(columns: Iterable[Column]) -> set[Column]:
    """The stored statistics behind the columns that a rule names."""
    return {(scoring, DERIVED.get(name, name)) for scoring, name in columns if name not in TOKEN_COLUMNS}


def resolve_scorings(store: Store, columns: Iterable[Column], scoring: str | None) -> dict[str | None, str]:
    """Which scoring each prefix of a rule means, None being the bare names. Raises where one lacks a column."""
    names: dict[str | None, str] = {}
    for prefix, column in sorted(physical_columns(columns), key=str):
        if prefix not in names:
            if prefix is not None and prefix not in store.scorings:
                known = list(store.scorings)
                raise RuleError(
                    f"the rule reads scoring {prefix!r}{nearest(prefix, known)}; "
                    f"{store.path} holds: {', '.join(known) or 'none'}"
                )
            names[prefix] = store.scorings.choose(prefix if prefix is not None else scoring).name
        manifest = store.scorings[names[prefix]].manifest
        if STATISTIC_BY_NAME[column].of_reference and manifest.reference is None:
            raise RuleError(
                f"the rule reads {column}, but scoring {names[prefix]!r} has no reference; "
                f"compute one with {argument('reference')}"
            )
        if column not in manifest.columns:
            raise RuleError(
                f"the rule reads {column}, which scoring {names[prefix]!r} does not hold: it was made before there was one; "
                f"compute it again under another name, with {argument('name')}"
            )
    return names


def check_scoring_is_read(scoring: str | None, columns: Iterable[Column]) -> None:
    """Raise InputError where a scoring is chosen for a rule that reads no statistics by their bare names."""
    if scoring is not None and all(prefix is not None for prefix, _ in physical_columns(columns)):
        raise InputError(
            f"{argument('scoring', scoring)} would do nothing: the rule reads no statistics by their bare names; leave it out"
        )


def iter_targets(
    store: Store, columns: Iterable[Column], scorings: Mapping[str | None, str], parts: Iterable[int] | None = None
) -> Iterator[Targets]:
    """Yield the targets of each part with the statistics that the columns need, and all columns of the tokens."""
    wanted = {*columns, *((None, name) for name in TOKEN_COLUMNS)}
    for part in range(store.part_count) if parts is None else parts:
        yield read_targets(store, part, wanted, scorings)


def read_targets(store: Store, part: int, columns: Iterable[Column], scorings: Mapping[str | None, str]) -> Targets:
    """The targets of one part with what the columns need, and no more: of the tokens, ids and roles cost the most to read."""
    columns = frozenset(columns)
    needed = physical_columns(columns)
    lists = sorted({_TOKEN_LISTS[name] for _, name in columns if name in _TOKEN_LISTS})
    by_family: dict[str, list[str]] = {"tokens": ["seq_id", "row", "is_target", *lists]}
    for prefix, name in needed:
        by_family.setdefault(f"stats/{scorings[prefix]}", []).append(name)
    tables = next(store.aligned(by_family, [part]))
    tokens = tables["tokens"]
    offsets = offsets_of(tokens["is_target"])
    place = np.flatnonzero(predicted(flat(tokens["is_target"]), offsets))

    def of_targets(prefix: str | None, name: str) -> np.ndarray:
        family = f"stats/{scorings[prefix]}"
        chosen = tables[family][name].combine_chunks().flatten().take(pa.array(place))
        if chosen.null_count:
            where = f"{family}, part {part}"
            raise StoreError(f"{where}: {name} is null for {chosen.null_count} target tokens; score the store again")
        return chosen.to_numpy()

    return Targets(
        part=part,
        seq_ids=tokens["seq_id"],
        rows=tokens["row"].to_numpy(),
        ids=flat(tokens["input_ids"]) if "input_ids" in lists else np.zeros(0, np.int32),
        roles=flat(tokens["role"]) if "role" in lists else np.zeros(0, np.int8),
        offsets=offsets,
        place=place,
        statistics={(prefix, name): of_targets(prefix, name) for prefix, name in needed},
        tokenizer=store.manifest.tokenizer,
        vocabulary=Vocabulary(store),
    )
