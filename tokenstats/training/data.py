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

Example = dict[str, np.ndarray]

NO_ROW = -1
"""Instead of a row number: an example with nothing to learn, for a device that has no row left."""


@dataclass(frozen=True)
class TokenRows(Dataset[Example]):
    """R rows of N tokens in all, each an example ``{"input_ids": [T] int32, "labels": [T] int32, "length": [1] int64}``.

    ids [N] int32; learned [N] boolean; offsets [R + 1] int64; keys [R] uint64, from each row's seq_id
    weights [N] float32, 0 where not learned, or None; where given, an example has ``"weights": [T] float32`` too
    """

    ids: np.ndarray
    learned: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> Example:
        if row == NO_ROW:
            example = {"input_ids": self.ids[:1], "labels": np.array([IGNORED], np.int32), "length": np.zeros(1, np.int64)}
            return example if self.weights is None else {**example, "weights": np.zeros(1, np.float32)}
        span = slice(self.offsets[row], self.offsets[row + 1])
        ids = self.ids[span]
        example = {"input_ids": ids, "labels": np.where(self.learned[span], ids, np.int32(IGNORED))}
        example["length"] = np.array([len(ids)])
        return example if self.weights is None else {**example, "weights": self.weights[span]}

    @property
    def learned_tokens(self) -> int:
        return int(self.learned.sum())

    @property
    def longest(self) -> int:
        return int(np.diff(self.offsets).max(initial=0))


@dataclass(frozen=True)
class TrainingData:
    """Rows to learn from, rows held out (or None), and how many rows were left out because nothing in them is learned."""

    train: TokenRows
    evaluation: TokenRows | None
    left_out: int


def load_training_data(store: Store, mask: ChosenMask, eval_share: float = 0.0, eval_seed: int = 0) -> TrainingData:
    """Read a store. Raises InputError where nothing is left to learn, or no row can be held out."""
    keys = row_keys(store)
    held_out = np.zeros(len(keys), bool)
    held_out[_choose_held_out(keys, eval_share, eval_seed)] = True
    train, evaluation, left_out, first = _Collector(), _Collector(), 0, 0
    for part in read_parts(store, mask):
        rows = slice(first, first + len(part.lengths))
        first = rows.stop
        chosen = part.has_learned & ~held_out[rows]
        left_out += int(np.count_nonzero(~part.has_learned & ~held_out[rows]))
        train.add(part, chosen, part.keep, keys[rows], part.weight)
        evaluation.add(part, held_out[rows], part.is_target, keys[rows])
    if not train.keys:
        raise InputError(
            f"mask {mask.name!r} keeps no token{' of weight above 0' if mask.weighted else ''} of the "
            f"{int((~held_out).sum())} rows to train on: "
            "there is nothing to learn; choose another mask, or loosen its rule"
        )
    return TrainingData(train.rows(), evaluation.rows() if evaluation.keys else None, left_out)


PADDING = {"input_ids": 0, "labels": IGNORED, "weights": 0.0, "length": 0}


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
        self.learned: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.keys: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []

    def add(
        self, part: LearnedPart, chosen: np.ndarray, learned: np.ndarray, keys: np.ndarray, weight: np.ndarray | None = None
    ) -> None:
        """chosen, keys: [R] of the part's rows; learned, weight: [N] of its tokens."""
        if chosen.any():
            tokens = np.repeat(chosen, part.lengths)
            self.ids.append(part.ids[tokens])
            self.learned.append(learned[tokens])
            self.lengths.append(part.lengths[chosen])
            self.keys.append(keys[chosen])
            if weight is not None:
                self.weights.append(weight[tokens])

    def rows(self) -> TokenRows:
        return TokenRows(
            ids=np.concatenate(self.ids),
            learned=np.concatenate(self.learned),
            offsets=np.concatenate([[0], np.cumsum(np.concatenate(self.lengths))]),
            keys=np.concatenate(self.keys),
            weights=np.concatenate(self.weights) if self.weights else None,
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
