"""Batches of about equal lengths, within a budget of padded tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def plan_batches(lengths: Sequence[int] | np.ndarray, budget: int, equal_lengths: bool = False) -> list[np.ndarray]:
    """Split rows 0 … n-1 into batches, longest rows first, each of at most ``budget`` tokens, padding included.

    A row longer than the budget makes a batch of its own. Longest first: what does not fit in memory says so at once.
    equal_lengths: batches without any padding, for models whose positions depend on the width of the batch.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        size = max(1, budget // max(1, int(longest)))
        if equal_lengths:
            size = min(size, int(np.count_nonzero(lengths[order[start:]] == longest)))
        batches.append(order[start : start + size])
        start += size
    return batches


def pad(rows: list[np.ndarray], value: int | bool) -> Tensor:
    """Stack rows of unlike lengths as [B, T], filled on the right: what follows a token cannot change its prediction."""
    out = np.full((len(rows), max(map(len, rows))), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)
