"""What a training run reads: rows of a store in memory, and how they become batches.

Per token four bytes of id, one of mask and, where the mask weighs, four of weight; arrays, no Python lists. The rows
that are held out for evaluation are chosen by their seq_id, and their loss is over **all** their target tokens, each
counted once, whatever the mask: the evaluation losses of runs with different masks compare.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokenstats.errors import InputError, argument
from tokenstats.store import Store
from tokenstats.training.rows import IGNORED, ChosenMask, LearnedPart, read_parts, row_keys, shuffled
from tokenstats.training.token_sets import ENTROPY, KL, TokenChoice, TokenSets

Example = dict[str, np.ndarray]

NO_ROW = -1
"""Instead of a row number: an example with nothing to learn, for a device that has no row left."""


@dataclass(frozen=True)
class TokenRows(Dataset[Example]):
    """R rows of N tokens in all, each an example ``{"input_ids": [T] int32, "labels": [T] int32, "length": [1] int64}``.

    Attributes:
        ids: [N] int32.
        learned: [N] boolean.
        offsets: [R + 1] int64.
        keys: [R] uint64, from each row's seq_id.
        weights: [N] float32, 0 where not learned, or None; where given, an example has ``"weights": [T] float32`` too.
        sets: [N] uint8, what each token belongs to (see token_sets), or None; where given, an example has
            ``"sets": [T] uint8`` and ``"key": [1] int64``, the bits of the row's key.
        reason: [N] uint16, the clauses that drop each token, as bits, or None; where given, an example has
            ``"reason": [T] uint16`` too.
    """

    ids: np.ndarray
    learned: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    weights: np.ndarray | None = None
    sets: np.ndarray | None = None
    reason: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> Example:
        if row == NO_ROW:
            return self._without_row()
        span = slice(self.offsets[row], self.offsets[row + 1])
        ids = self.ids[span]
        example = {"input_ids": ids, "labels": np.where(self.learned[span], ids, np.int32(IGNORED))}
        example["length"] = np.array([len(ids)])
        if self.weights is not None:
            example["weights"] = self.weights[span]
        if self.sets is not None:
            example |= {"sets": self.sets[span], "key": self.keys[row : row + 1].view(np.int64)}
        if self.reason is not None:
            example["reason"] = self.reason[span]
        return example

    def _without_row(self) -> Example:
        example = {"input_ids": self.ids[:1], "labels": np.array([IGNORED], np.int32), "length": np.zeros(1, np.int64)}
        if self.weights is not None:
            example["weights"] = np.zeros(1, np.float32)
        if self.sets is not None:
            example |= {"sets": np.zeros(1, np.uint8), "key": np.zeros(1, np.int64)}
        if self.reason is not None:
            example["reason"] = np.zeros(1, np.uint16)
        return example

    @property
    def learned_tokens(self) -> int:
        """How many tokens are learned in one epoch: kept, and not with weight 0."""
        return int(self._counts.sum())

    def learned_tokens_of(self, rows: np.ndarray) -> int:
        """Of some of the rows, by their numbers."""
        before = np.concatenate([[0], np.cumsum(self._counts)])[self.offsets]
        return int(np.diff(before)[rows].sum())

    @property
    def _counts(self) -> np.ndarray:
        """[N] boolean: does a token's cross-entropy count?"""
        return self.learned if self.weights is None else self.weights > 0

    @property
    def without_learned(self) -> int:
        """Rows of which nothing is learned."""
        return int(np.count_nonzero(np.diff(np.concatenate([[0], np.cumsum(self._counts)])[self.offsets]) == 0))

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 of none."""
        return int(np.diff(self.offsets).max(initial=0))


@dataclass(frozen=True)
class TrainingData:
    """Rows to learn from, rows held out (or None), and how many rows were left out because nothing in them is learned."""

    train: TokenRows
    evaluation: TokenRows | None
    left_out: int

    @property
    def empty(self) -> int:
        """Rows with nothing to learn: those left out, and those that stay all the same."""
        return self.left_out + self.train.without_learned


def load_training_data(
    store: Store,
    mask: ChosenMask,
    eval_share: float = 0.0,
    eval_seed: int = 0,
    sets: TokenSets | None = None,
    keep_empty: bool = False,
) -> TrainingData:
    """Read a store, and where ``sets`` are given what each token belongs to.

    Args:
        store: The store.
        mask: What is learned.
        eval_share: Of the rows, how many are held out.
        eval_seed: Which ones.
        sets: What the terms of the loss are over; None where there are none.
        keep_empty: Rows with targets stay where the mask leaves nothing of them to learn, and a set may have no token: masks
            that follow each other in one run meet the same rows in the same order.

    Raises:
        InputError: Nothing is left to learn, no row can be held out, or a set has no token at all.
    """
    keys = row_keys(store)
    held_out = np.zeros(len(keys), bool)
    held_out[_choose_held_out(keys, eval_share, eval_seed)] = True
    train, evaluation, left_out, first, any_learned = _Collector(), _Collector(), 0, 0, False
    if sets is not None:
        sets.verify(store)
    for index, part in enumerate(read_parts(store, mask)):
        rows = slice(first, first + len(part.lengths))
        first = rows.stop
        bits = None if sets is None else sets.bits_of(store, mask, index, part)
        reason = sets.reason_of(store, mask, index) if sets is not None else None
        has_learned = part.has_learned if sets is None or bits is None else sets.rows_with_any(part, bits)
        any_learned |= bool((has_learned & ~held_out[rows]).any())
        stays = part.rows_with(part.is_target) if keep_empty else has_learned
        chosen = stays & ~held_out[rows]
        left_out += int(np.count_nonzero(~stays & ~held_out[rows]))
        train.add(part, chosen, keys[rows], learned=part.keep, weights=part.weight, sets=bits, reason=reason)
        evaluation.add(part, held_out[rows], keys[rows], learned=part.is_target, sets=bits, reason=reason)
    if not any_learned:
        raise InputError(
            f"mask {mask.name!r} keeps no token{' of weight above 0' if mask.weighted else ''} of the "
            f"{int((~held_out).sum())} rows to train on: "
            "there is nothing to learn; choose another mask, or loosen its rule"
        )
    data = TrainingData(train.rows(), evaluation.rows() if evaluation.keys else None, left_out)
    if sets is not None and not keep_empty:
        _check_not_empty(data.train, "entropy_on", sets.entropy_on, ENTROPY, sets.follows)
        _check_not_empty(data.train, "kl_on", sets.kl_on, KL, sets.follows)
    return data


def _check_not_empty(rows: TokenRows, option: str, choice: TokenChoice | None, bit: int, follows: bool) -> None:
    if choice is None or rows.sets is None or (follows and choice.is_of_rule):
        return
    if not bool((rows.sets & bit).any()):
        raise InputError(
            f"{argument(option, choice.text)} would do nothing: no token of the {len(rows)} rows to train on is of it; "
            "choose others"
        )


PADDING = {"input_ids": 0, "labels": IGNORED, "weights": 0.0, "sets": 0, "reason": 0, "length": 0, "key": 0}


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """B examples → ``input_ids``, ``labels`` [B, T] and ``length`` [B, 1] int64, and what else they have: ``weights`` float32.

    Padded on the right. There is no attention mask: a causal model's earlier positions cannot see the padding that
    follows them.
    """
    return {name: _pad([e[name] for e in examples], PADDING[name]) for name in examples[0]}


class _Collector:
    """Rows picked out of parts, joined at the end."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.keys: list[np.ndarray] = []
        self.by_token: dict[str, list[np.ndarray]] = {}

    def add(self, part: LearnedPart, chosen: np.ndarray, keys: np.ndarray, **by_token: np.ndarray | None) -> None:
        """chosen, keys: [R] of the part's rows; by_token: [N] of its tokens, by the name in TokenRows; None: there are none."""
        if chosen.any():
            tokens = np.repeat(chosen, part.lengths)
            self.ids.append(part.ids[tokens])
            self.lengths.append(part.lengths[chosen])
            self.keys.append(keys[chosen])
            for name, values in by_token.items():
                if values is not None:
                    self.by_token.setdefault(name, []).append(values[tokens])

    def rows(self) -> TokenRows:
        return TokenRows(
            ids=np.concatenate(self.ids),
            offsets=np.concatenate([[0], np.cumsum(np.concatenate(self.lengths))]),
            keys=np.concatenate(self.keys),
            **{name: np.concatenate(values) for name, values in self.by_token.items()},
        )


def _choose_held_out(keys: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Row numbers to hold out: round(share · rows) of them, at least 1."""
    if share and len(keys) < 2:
        raise InputError(
            f"{argument('eval_share')} got {share}, but the store holds {len(keys)} row; expected at least 2 to hold one out"
        )
    count = min(len(keys) - 1, max(1, round(share * len(keys)))) if share else 0
    return shuffled(keys, "evaluation", seed)[:count]


def _pad(rows: list[np.ndarray], value: float) -> Tensor:
    dtype = torch.float32 if rows[0].dtype == np.float32 else torch.int64
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.from_numpy(row)
    return out
