"""Batches of about equal lengths, within a budget of padded tokens."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIKE, _ENOUGH = 0.8, 1 / 8


def plan_batches(lengths: Sequence[int] | np.ndarray, budget: int, equal_lengths: bool = False) -> list[np.ndarray]:
    """Split rows 0 … n-1 into batches, longest rows first, each of at most ``budget`` tokens, padding included.

    A row longer than the budget makes a batch of its own. Longest first: what does not fit in memory says so at once. Once a
    batch fills an eighth of the budget, it takes no row shorter than four fifths of its longest: of few rows, whose lengths
    lie far apart, most would be padding.
    equal_lengths: batches without any padding, for models whose positions depend on the width of the batch.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    falling = np.asarray(lengths)[order]
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        longest = max(1, int(falling[start]))
        size = max(1, budget // longest)
        alike = int(np.searchsorted(-falling, -longest * (1.0 if equal_lengths else _ALIKE), side="right")) - start
        size = min(size, alike if equal_lengths else max(alike, math.ceil(size * _ENOUGH)))
        batches.append(order[start : start + size])
        start += size
    return batches


def pad(rows: list[np.ndarray], value: int | bool) -> Tensor:
    """Stack rows of unlike lengths as [B, T], filled on the right: what follows a token cannot change its prediction."""
    out = np.full((len(rows), max(map(len, rows))), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)
