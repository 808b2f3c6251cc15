"""What a training run reads: rows of a store in memory, and how they become batches.

Per token four bytes of id and one of mask; arrays, no Python lists. The rows that are held out for evaluation are
chosen by their seq_id, and their loss is over **all** their target tokens whatever the mask: the evaluation losses of
runs with different masks compare.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokenstats.errors import InputError
from tokenstats.store import Store
from tokenstats.training.rows import IGNORED, ChosenMask, LearnedPart, read_parts, row_keys, shuffled

Example = dict[str, np.ndarray]

NO_ROW = -1
"""Instead of a row number: an example with nothing to learn, for a device that has no row left."""


@dataclass(frozen=True)
class TokenRows(Dataset[Example]):
    """R rows of N tokens in all, each an example ``{"input_ids": [T] int32, "labels": [T] int32}``.

    ids [N] int32; learned [N] boolean; offsets [R + 1] int64; keys [R] uint64, from each row's seq_id
    """

    ids: np.ndarray
    learned: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> Example:
        if row == NO_ROW:
            return {"input_ids": self.ids[:1], "labels": np.array([IGNORED], np.int32)}
        span = slice(self.offsets[row], self.offsets[row + 1])
        return {"input_ids": self.ids[span], "labels": np.where(self.learned[span], self.ids[span], np.int32(IGNORED))}

    @property
    def learned_tokens(self) -> int:
        return int(self.learned.sum())

    @property
    def longest(self) -> int:
        return int(np.diff(self.offsets).max(initial=0))


@dataclass(frozen=True)
class TrainingData:
    """Rows to learn from, rows held out (or None), and how many rows were left out because nothing in them is kept."""

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
        has_kept = part.kept_per_row > 0
        left_out += int(np.count_nonzero(~has_kept & ~held_out[rows]))
        train.add(part, has_kept & ~held_out[rows], part.keep, keys[rows])
        evaluation.add(part, held_out[rows], part.is_target, keys[rows])
    if not train.keys:
        raise InputError(
            f"mask {mask.name!r} keeps no token of the {int((~held_out).sum())} rows to train on: "
            "there is nothing to learn; choose another mask, or loosen its rule"
        )
    return TrainingData(train.rows(), evaluation.rows() if evaluation.keys else None, left_out)


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """B examples → ``input_ids`` and ``labels`` [B, T] int64, padded on the right with 0 and IGNORED.

    There is no attention mask: a causal model's earlier positions cannot see the padding that follows them.
    """
    return {name: _pad([e[name] for e in examples], value) for name, value in (("input_ids", 0), ("labels", IGNORED))}


class _Collector:
    """Rows picked out of parts, joined at the end."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.learned: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.keys: list[np.ndarray] = []

    def add(self, part: LearnedPart, chosen: np.ndarray, learned: np.ndarray, keys: np.ndarray) -> None:
        """chosen, keys: [R] of the part's rows; learned: [N] of its tokens."""
        if chosen.any():
            tokens = np.repeat(chosen, part.lengths)
            self.ids.append(part.ids[tokens])
            self.learned.append(learned[tokens])
            self.lengths.append(part.lengths[chosen])
            self.keys.append(keys[chosen])

    def rows(self) -> TokenRows:
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self.lengths))])
        return TokenRows(np.concatenate(self.ids), np.concatenate(self.learned), offsets, np.concatenate(self.keys))


def _choose_held_out(keys: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Row numbers to hold out: round(share · rows) of them, at least 1."""
    if share and len(keys) < 2:
        raise InputError(f"eval_share got {share}, but the store holds {len(keys)} row; expected at least 2 to hold one out")
    count = min(len(keys) - 1, max(1, round(share * len(keys)))) if share else 0
    return shuffled(keys, "evaluation", seed)[:count]


def _pad(rows: list[np.ndarray], value: int) -> Tensor:
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.from_numpy(row)
    return out
