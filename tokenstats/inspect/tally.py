"""The counting behind an audit: one pass over the tokens, a mask and a scoring, part by part."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from tokenstats.inspect.sequences import statistic_columns
from tokenstats.inspect.spans import Decoder
from tokenstats.inspect.streams import Decisions, count_by, read_decisions, tenth_of_reply
from tokenstats.schema import MAX_CLAUSES, ROLES
from tokenstats.store import Store
from tokenstats.store.manifests import Tokenizer

MEANS_OF = ("entropy", "kl", "nll")
MOST_ROWS = 10
_BLANKS_AFTER_END = 2  # templates write a newline after the end-of-turn token


@dataclass
class Tally:
    """Totals over the parts read so far. ``rows`` holds, for each thing that looks wrong, the first rows that show it."""

    vocabulary: int
    targets: int = 0
    dropped: int = 0
    truncated: int = 0
    replies: int = 0
    unended: int = 0
    first_dropped: int = 0
    doubled_bos: int = 0
    nothing_kept: int = 0
    special_inside: int = 0
    learned_prompts: int = 0
    end_of_turn: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    by_role: np.ndarray = field(default_factory=lambda: np.zeros((len(ROLES), 2), np.int64))
    by_tenth: np.ndarray = field(default_factory=lambda: np.zeros((10, 2), np.int64))
    by_clause: np.ndarray = field(default_factory=lambda: np.zeros(MAX_CLAUSES, np.int64))
    by_token: np.ndarray = field(init=False)
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.by_token = np.zeros((self.vocabulary, 2), np.int64)

    def note(self, what: str, rows: np.ndarray) -> int:
        """Remember the first of the rows, numbered over the store; returns how many different ones there are."""
        different = np.unique(rows)
        self.rows[what] += different[: MOST_ROWS - len(self.rows[what])].tolist()
        return len(different)


def tally(store: Store, mask: str | None, scoring: str | None, decoder: Decoder) -> Tally:
    """Count over the whole store. Without a mask nothing is dropped."""
    tokenizer = store.manifest.tokenizer
    totals = Tally(tokenizer.size)
    blank = np.array([not decoder.token(i).strip() for i in range(tokenizer.size)])
    there = statistic_columns(store.scoring(scoring)[1]) if scoring is not None else []
    columns: list[str] = [c for c in ("entropy", "kl", "logprob") if c in there]
    first_row = 0
    for part in read_decisions(store, mask, columns, scoring):
        truncated = store.part("tokens", part.population.part, ["truncated"])["truncated"].to_numpy()
        _count_rows(totals, part, truncated, tokenizer, first_row)
        _count_tokens(totals, part, tokenizer)
        _count_replies(totals, part, truncated, tokenizer, blank, first_row)
        _add_statistics(totals, part, columns)
        first_row += len(truncated)
    return totals


def _count_rows(totals: Tally, part: Decisions, truncated: np.ndarray, tokenizer: Tokenizer, first_row: int) -> None:
    population = part.population
    starts, ends = population.offsets[:-1], population.offsets[1:]
    totals.truncated += totals.note("truncated", first_row + np.flatnonzero(truncated))
    kept = np.diff(np.concatenate([[0], np.cumsum(~part.dropped)])[population.sequence_starts])
    totals.nothing_kept += totals.note("nothing_kept", first_row + np.flatnonzero(kept == 0))
    if tokenizer.bos_id is not None:
        second = np.minimum(starts + 1, ends - 1)
        is_bos = population.ids == tokenizer.bos_id
        doubled = is_bos[starts] & is_bos[second] & (second > starts)
        totals.doubled_bos += totals.note("doubled_bos", first_row + np.flatnonzero(doubled))


def _count_tokens(totals: Tally, part: Decisions, tokenizer: Tokenizer) -> None:
    population, dropped = part.population, part.dropped
    ids, roles = population.column((None, "token_id")), population.column((None, "role"))
    totals.targets += len(population)
    totals.dropped += int(dropped.sum())
    totals.by_role += count_by(roles, dropped, len(ROLES))
    totals.by_tenth += count_by(tenth_of_reply(population), dropped, 10)
    totals.by_token += count_by(ids, dropped, totals.vocabulary)
    totals.by_clause += [np.count_nonzero(part.reason & (1 << bit)) for bit in range(MAX_CLAUSES)]
    ends = np.isin(ids, tokenizer.end_of_turn_ids)
    totals.end_of_turn += [ends.sum(), (ends & dropped).sum()]
    totals.learned_prompts += int(np.isin(roles, [ROLES.index(r) for r in ("system", "user", "tool")]).sum())


def _count_replies(
    totals: Tally, part: Decisions, truncated: np.ndarray, tokenizer: Tokenizer, blank: np.ndarray, first_row: int
) -> None:
    population = part.population
    starts, lasts = population.turn_starts[:-1], population.turn_starts[1:] - 1
    ids, rows = population.column((None, "token_id")), population.row
    totals.replies += len(starts)
    totals.first_dropped += int(part.dropped[starts].sum())
    for _ in range(_BLANKS_AFTER_END):
        lasts = np.where(blank[ids[lasts]] & (lasts > starts), lasts - 1, lasts)
    unended = ~np.isin(ids[lasts], tokenizer.end_of_turn_ids) & ~truncated[rows[lasts]]
    totals.unended += int(unended.sum())
    totals.note("unended", first_row + rows[lasts[unended]])
    inside = np.isin(ids, tokenizer.special_ids)
    inside[lasts] = False
    totals.special_inside += int(inside.sum())
    totals.note("special_inside", first_row + rows[inside])
    ends = np.isin(ids, tokenizer.end_of_turn_ids)
    totals.note("end_of_turn_dropped", first_row + rows[ends & part.dropped])


def _add_statistics(totals: Tally, part: Decisions, columns: list[str]) -> None:
    for column in columns:
        name = "nll" if column == "logprob" else column
        values = part.population.column((None, name)).astype(float)
        sums = np.array([values[~part.dropped].sum(), values[part.dropped].sum()])
        totals.sums[name] = totals.sums.get(name, np.zeros(2)) + sums
