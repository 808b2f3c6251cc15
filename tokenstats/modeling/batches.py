"""Batches of about equal lengths, within a budget of padded tokens that comes down where memory runs out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tokenstats.alignment import predicted
from tokenstats.errors import InputError, argument
from tokenstats.store.lists import flat, offsets_of

_ALIKE, _ENOUGH = 0.8, 1 / 8
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
Result = TypeVar("Result")
Advance = Callable[[int, int], None]
"""Called with the tokens of each batch, without and with padding."""


@dataclass
class Budget:
    """Padded tokens in one forward pass. Halved where memory runs out, and never raised again."""

    tokens: int

    def halve(self, reason: str, rows: int, longest: int) -> None:
        """After a batch of ``rows`` by ``longest`` tokens ran out of memory. Raises InputError where it was a single row."""
        if rows == 1:
            raise InputError(
                f"memory ran out over a single sequence of {longest} tokens ({reason.partition(chr(10))[0][:120]}); cut it "
                f"with {argument('max_length')}, take {argument('dtype', 'bfloat16')}, or a device with more memory"
            )
        self.tokens = max(1, min(self.tokens, rows * longest) // 2)


@dataclass(frozen=True)
class PartTokens:
    """Of a part: all ids, which of them are scored, and where rows begin. The first of a row has no prediction."""

    ids: np.ndarray
    chosen: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, score_all: bool) -> "PartTokens":
        """Of a part of the tokens; ``score_all``: score all of them, not the targets alone."""
        ids, offsets = flat(table["input_ids"]), offsets_of(table["input_ids"])
        chosen = np.ones(len(ids), bool) if score_all else flat(table["is_target"])
        return cls(ids, predicted(chosen, offsets), offsets)

    @property
    def lengths(self) -> np.ndarray:
        """[rows] tokens of each row."""
        return np.diff(self.offsets)


def run_batches(
    tokens: PartTokens,
    run: Callable[[Tensor, Tensor, np.ndarray], Result],
    device: torch.device,
    budget: Budget,
    classes: Callable[[np.ndarray], np.ndarray],
    advance: Advance,
) -> tuple[np.ndarray, list[Result], int]:
    """Run a model on all rows of a part. Where memory runs out, the budget is halved and what is left is planned anew.

    Returns the places of the scored tokens in the order of the results, the results batch by batch, and all tokens padded.

    Args:
        tokens: Of the part.
        run: From [B, T] right-padded ids, which of them are scored, and the places of those in the part, to a result.
        device: Where the model is.
        budget: Padded tokens of a batch; it is lowered where memory runs out.
        classes: From the lengths of rows to a number for each; only rows of the same number share a batch.
        advance: Told of each batch.
    """
    where, results, padded = [], [], 0
    lengths = tokens.lengths
    kinds = classes(lengths)
    left = plan_batches(lengths, budget.tokens, kinds)[::-1]
    while left:
        rows = left.pop()
        spans = [slice(tokens.offsets[r], tokens.offsets[r + 1]) for r in rows]
        batch = pad([tokens.ids[s] for s in spans], 0).long()
        chosen = pad([tokens.chosen[s] for s in spans], False)
        places = np.concatenate([np.flatnonzero(tokens.chosen[s]) + s.start for s in spans])
        failure: str | None = None
        try:
            results.append(run(on_device(batch, device), on_device(chosen, device), places))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            failure = str(error)
        if failure is not None:  # not before the error is gone, which holds on to all that the batch had in memory
            budget.halve(failure, len(rows), batch.shape[1])
            rest = np.concatenate([rows, *left[::-1]])
            left = [rest[again] for again in plan_batches(lengths[rest], budget.tokens, kinds[rest])][::-1]
            torch.cuda.empty_cache()
            continue
        where.append(places)
        padded += batch.numel()
        advance(int(lengths[rows].sum()), batch.numel())
    return np.concatenate(where), results, padded


def plan_batches(lengths: np.ndarray, budget: int, classes: np.ndarray | None = None) -> list[np.ndarray]:
    """Split rows 0 … n-1 into batches, longest rows first, each of at most ``budget`` tokens, padding included.

    A row longer than the budget makes a batch of its own. Longest first: what does not fit in memory says so at once. Once a
    batch fills an eighth of the budget, it takes no row shorter than four fifths of its longest: of few rows, whose lengths
    lie far apart, most would be padding.

    Args:
        lengths: [R] tokens of each row.
        budget: Padded tokens of a batch.
        classes: [R] a number for each row; only rows of the same number share a batch.
    """
    classes = np.zeros(len(lengths), np.int64) if classes is None else classes
    order = np.lexsort((-lengths, classes))
    falling, of_class = lengths[order], classes[order]
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        longest = max(1, int(falling[start]))
        last = int(np.searchsorted(of_class, of_class[start], side="right"))
        size = max(1, budget // longest)
        alike = int(np.searchsorted(-falling[start:last], -longest * _ALIKE, side="right"))
        size = min(size, max(alike, math.ceil(size * _ENOUGH)), last - start)
        batches.append(order[start : start + size])
        start += size
    return sorted(batches, key=lambda rows: -int(lengths[rows[0]]))


def pad(rows: list[np.ndarray], value: int | bool) -> Tensor:
    """Stack rows of unlike lengths as [B, T], filled on the right: what follows a token cannot change its prediction."""
    out = np.full((len(rows), max(map(len, rows))), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def on_device(batch: Tensor, device: torch.device) -> Tensor:
    """A batch on the device; to a GPU without waiting for the copy."""
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
