"""The counting behind an audit: one pass over the tokens, a mask and a scoring, part by part."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from tokenstats.errors import StoreError
from tokenstats.inspect.audit.breakdown import MOST_ROWS, Breakdown
from tokenstats.inspect.mask_reader import count_by, read_decisions, tenth_of_reply
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.masking.engine.counts import Counts
from tokenstats.masking.engine.decisions import Decisions
from tokenstats.schema import MAX_CLAUSES, ROLES, TOKEN_CLASSES
from tokenstats.store import Store
from tokenstats.store.manifests import Tokenizer
from tokenstats.store.vocabulary import classes_of

MEANS_OF = ("entropy", "kl", "nll")
_SUMMED = {"entropy": "entropy", "kl": "kl", "logprob": "nll", "ref_logprob": "ref_nll"}  # column: what is summed of it
TURNS = (*map(str, range(7)), "7 and later")
FIRST, LAST, END_OF_TURN = range(3)
_PROMPTS = [ROLES.index(role) for role in ("system", "user", "tool")]
_BLANKS_AFTER_END = 2  # templates write a newline after the end-of-turn token


@dataclass(frozen=True)
class Weights:
    """Weights of the kept tokens.

    Attributes:
        total, mean: Their sum and mean.
        zero: How many of them are 0.
        effective: The effective number of tokens, (Σw)² / Σw² (Kish).
    """

    total: float
    mean: float
    zero: int
    effective: float


@dataclass
class AuditCounts:
    """Totals over the parts read so far.

    Attributes:
        vocabulary: Ids of the tokenizer.
        all: What is decided about the targets.
        truncated, doubled_bos: Rows; cut_replies, replies, unended: replies; special_inside, learned_prompts: tokens.
        by_role, by_turn, by_tenth, by_class, by_place, by_clause: Targets and those dropped, by group.
        by_token: The same by token id, int64 [vocabulary, 2].
        sums: Of each statistic over the targets kept and those dropped, float64 [2], nats.
        squared_weights: Σ weight²; weightless: tokens kept with weight 0.
        rows: For each thing that looks wrong, the first rows that show it.
    """

    vocabulary: int
    all: Counts = field(default_factory=Counts)
    truncated: int = 0
    cut_replies: int = 0
    replies: int = 0
    unended: int = 0
    doubled_bos: int = 0
    special_inside: int = 0
    learned_prompts: int = 0
    by_role: Breakdown = field(default_factory=lambda: Breakdown(ROLES))
    by_turn: Breakdown = field(default_factory=lambda: Breakdown(TURNS))
    by_tenth: Breakdown = field(default_factory=lambda: Breakdown([f"{10 * i}-{10 * i + 10} %" for i in range(10)]))
    by_class: Breakdown = field(default_factory=lambda: Breakdown(TOKEN_CLASSES))
    by_place: Breakdown = field(default_factory=lambda: Breakdown(("first token", "last token", "end of turn")))
    by_clause: Breakdown = field(default_factory=lambda: Breakdown([""] * MAX_CLAUSES))
    by_token: np.ndarray = field(init=False)
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    squared_weights: float = 0.0
    weightless: int = 0
    rows: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.by_token = np.zeros((self.vocabulary, 2), np.int64)

    @property
    def weights(self) -> Weights:
        """The weights of the kept tokens; all 0 where nothing is weighed or kept."""
        total, kept = float(self.all.weight.value), self.all.kept
        effective = total * total / self.squared_weights if self.squared_weights else 0.0
        return Weights(total, total / kept if kept else 0.0, self.weightless, effective)

    def note(self, what: str, rows: np.ndarray) -> int:
        """Remember the first of the rows, numbered over the store; returns how many different ones there are."""
        different = np.unique(rows)
        self.rows[what] += different[: MOST_ROWS - len(self.rows[what])].tolist()
        return len(different)


@dataclass(frozen=True)
class _Words:
    """What is known of each id of the vocabulary: its class, and whether it is blank."""

    tokenizer: Tokenizer
    classes: np.ndarray
    blank: np.ndarray


@dataclass(frozen=True)
class _Part:
    """One part's n targets: ids, rows numbered over the store, decisions; truncated [R] of its rows."""

    decisions: Decisions
    ids: np.ndarray
    rows: np.ndarray
    first_row: int
    truncated: np.ndarray


def count_all(store: Store, mask: str | None, scoring: str | None, decoder: Decoder) -> AuditCounts:
    """Count over the whole store. Without a mask nothing is dropped."""
    tokenizer = store.manifest.tokenizer
    texts = decoder.tokens(tokenizer.size)
    classes = classes_of(decoder.tokenizer, tokenizer.size, tokenizer.special_ids)
    words = _Words(tokenizer, classes, np.array([not text.strip() for text in texts]))
    totals = AuditCounts(tokenizer.size)
    there = store.scorings[scoring].manifest.columns if scoring is not None else []
    columns = [c for c in _SUMMED if c in there]
    first_row = 0
    for (decisions,) in read_decisions(store, [mask], columns, scoring):
        part = _read(store, decisions, first_row, tokenizer)
        totals.all += Counts.of(decisions)
        _count_rows(totals, part, tokenizer)
        _count_tokens(totals, part, words)
        _count_replies(totals, part, words)
        _add_statistics(totals, part, columns)
        first_row += len(part.truncated)
    return totals


def _read(store: Store, decisions: Decisions, first_row: int, tokenizer: Tokenizer) -> _Part:
    targets = decisions.targets
    ids = targets.column((None, "token_id"))
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.size:
        raise StoreError(
            f"part {targets.part} of {store.path / 'tokens'} holds token id {ids.max()}, beyond the vocabulary of "
            f"{tokenizer.size}; make the store again"
        )
    truncated = store.part("tokens", targets.part, ["truncated"])["truncated"].to_numpy()
    return _Part(decisions, ids, first_row + targets.row, first_row, truncated)


def _count_rows(totals: AuditCounts, part: _Part, tokenizer: Tokenizer) -> None:
    targets = part.decisions.targets
    starts, ends = targets.offsets[:-1], targets.offsets[1:]
    totals.truncated += totals.note("truncated", part.first_row + np.flatnonzero(part.truncated))
    totals.note("nothing_kept", part.first_row + np.flatnonzero(part.decisions.kept_per_row == 0))
    if tokenizer.bos_id is not None:
        second = np.minimum(starts + 1, ends - 1)
        is_bos = targets.ids == tokenizer.bos_id
        doubled = is_bos[starts] & is_bos[second] & (second > starts)
        totals.doubled_bos += totals.note("doubled_bos", part.first_row + np.flatnonzero(doubled))


def _count_tokens(totals: AuditCounts, part: _Part, words: _Words) -> None:
    targets, dropped, rows = part.decisions.targets, part.decisions.dropped, part.rows
    roles = targets.column((None, "role"))
    totals.by_role.add(roles, dropped, rows)
    totals.by_turn.add(np.minimum(targets.column((None, "turn")), len(TURNS) - 1), dropped, rows)
    totals.by_tenth.add(tenth_of_reply(targets), dropped, rows)
    totals.by_class.add(words.classes[part.ids], dropped, rows)
    totals.by_token += count_by(part.ids, dropped, totals.vocabulary)
    for bit, of_reason in enumerate(part.decisions.each_reason()):
        totals.by_clause.add_group(bit, of_reason, rows)
    ends = targets.column((None, "is_end_of_turn"))
    totals.by_place.add_group(END_OF_TURN, dropped[ends], rows[ends])
    prompts = np.isin(roles, _PROMPTS)
    totals.learned_prompts += int(np.count_nonzero(prompts))
    totals.note("learned_prompts", rows[prompts])


def _count_replies(totals: AuditCounts, part: _Part, words: _Words) -> None:
    targets, dropped, ids, rows = part.decisions.targets, part.decisions.dropped, part.ids, part.rows
    starts, lasts = targets.turn_starts[:-1], targets.turn_starts[1:] - 1
    totals.replies += len(starts)
    totals.by_place.add_group(FIRST, dropped[starts], rows[starts])
    totals.by_place.add_group(LAST, dropped[lasts], rows[lasts])
    for _ in range(_BLANKS_AFTER_END):
        lasts = np.where(words.blank[ids[lasts]] & (lasts > starts), lasts - 1, lasts)
    unended = lasts[~targets.column((None, "is_end_of_turn"))[lasts]]
    cut = part.truncated[targets.row[unended]]
    totals.cut_replies += int(np.count_nonzero(cut))
    totals.unended += int(np.count_nonzero(~cut))
    totals.note("unended", rows[unended[~cut]])
    inside = targets.column((None, "is_special")).copy()
    inside[lasts] = False
    totals.special_inside += int(inside.sum())
    totals.note("special_inside", rows[inside])


def _add_statistics(totals: AuditCounts, part: _Part, columns: list[str]) -> None:
    dropped, weight = part.decisions.dropped, part.decisions.weight
    for name in map(_SUMMED.__getitem__, columns):
        values = part.decisions.targets.column((None, name)).astype(float)
        sums = np.array([values[~dropped].sum(), values[dropped].sum()])
        totals.sums[name] = totals.sums.get(name, np.zeros(2)) + sums
    if weight is not None:
        totals.squared_weights += float(np.square(weight, dtype=float).sum())
        weightless = ~dropped & (weight == 0)
        totals.weightless += int(np.count_nonzero(weightless))
        totals.note("weightless", part.rows[weightless])
