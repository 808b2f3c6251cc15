"""What becomes of the tokens of a micro-batch: by the stored mask, or by a rule that is evaluated on this step's statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tokenstats.training.rows import IGNORED
from tokenstats.training.token_sets import ENTROPY, KEPT, KL, Kind, TokenChoice, TokenSets

Batch = Mapping[str, Tensor]
"""Collated examples of TokenRows: ``input_ids``, ``labels``, ``sets`` and more, [B, T]; ``key``, ``length`` [B, 1]."""


@dataclass(frozen=True)
class Selection:
    """n tokens.

    Attributes:
        kept, entropy_on, kl_on: Boolean [n]: which are learned, of E, of K.
        weight: float32 [n], of the kept ones; None: 1 each.
        reason: int64 [n], the clauses that drop a token, as bits; None where nobody asks.
    """

    kept: Tensor
    entropy_on: Tensor
    kl_on: Tensor
    weight: Tensor | None = None
    reason: Tensor | None = None


def stored_selection(batch: Batch, chosen: Tensor) -> Selection:
    """The selection of the stored masks, for the chosen tokens [B, T] in their order."""
    sets = batch["sets"][chosen]
    weights = batch["weights"][chosen] if "weights" in batch else None
    reason = batch["reason"][chosen] if "reason" in batch else None
    return Selection(sets & KEPT > 0, sets & ENTROPY > 0, sets & KL > 0, weights, reason)


def stored_divisors(batch: Batch, by_weights: bool) -> Tensor:
    """[3] float64, of a micro-batch: Σ_keep w (or the kept tokens, those of weight 0 too), |E|, |K|."""
    kept = batch["weights"].sum(dtype=torch.float64) if by_weights else (batch["labels"] != IGNORED).sum().double()
    sets = batch["sets"]
    return torch.stack([kept, (sets & ENTROPY > 0).sum().double(), (sets & KL > 0).sum().double()])


@dataclass(frozen=True)
class BatchTargets:
    """The n targets of R sequences that share a micro-batch, for a rule.

    Attributes:
        keys: uint64 [R], as :func:`~tokenstats.training.rows.row_keys` has them.
        ids: int32 [N], of all tokens, those of one sequence after those of the other.
        is_target: Boolean [N].
        offsets: int64 [R + 1], where each sequence begins among the ids.
        statistics: [n] each, by their names in a scoring.
    """

    keys: np.ndarray
    ids: np.ndarray
    is_target: np.ndarray
    offsets: np.ndarray
    statistics: Mapping[str, np.ndarray]


class Selector(Protocol):
    """A rule that can be evaluated on the statistics of a batch. What it says of a sequence depends on that sequence alone.

    Attributes:
        rule: Its fields, for the record.
        source: What it was asked for by: a preset, a file or "mask"; None: it was made in Python.
        fingerprint: Digest of what it does.
        clauses: What the bits of ``reason`` mean.
        weighted: Does it weigh what it keeps?
        columns: The statistics that it reads.
    """

    rule: Mapping[str, Any]
    source: str | None
    fingerprint: str
    clauses: tuple[str, ...]
    weighted: bool
    columns: frozenset[str]

    def select(self, targets: BatchTargets) -> tuple[np.ndarray, np.ndarray | None]:
        """For each target why it is dropped, uint16 [n], 0 where it is kept; and, of a rule that weighs, float32 [n]."""
        ...


@dataclass(frozen=True)
class FollowedRule:
    """A selector, and the sets of tokens that move with it.

    Attributes:
        compares: Is there a stored mask that its decisions are compared with?
    """

    selector: Selector
    sets: TokenSets
    compares: bool = False

    def select(self, batch: Batch, chosen: Tensor, statistics: Mapping[str, Tensor]) -> Selection:
        """The selection of this step. ``chosen`` [B, T]: all targets; ``statistics``: [n] of each."""
        rows, width = chosen.shape
        targets = BatchTargets(
            keys=batch["key"].flatten().cpu().numpy().view(np.uint64),
            ids=batch["input_ids"].flatten().cpu().numpy(),
            is_target=chosen.flatten().cpu().numpy(),
            offsets=np.arange(rows + 1) * width,
            statistics={name: statistics[name].detach().cpu().numpy() for name in self.selector.columns},
        )
        reason, weight = self.selector.select(targets)
        device = chosen.device
        bits = batch["sets"][chosen]
        return Selection(
            kept=torch.from_numpy(reason == 0).to(device),
            entropy_on=self._of(self.sets.entropy_on, reason, bits & ENTROPY > 0),
            kl_on=self._of(self.sets.kl_on, reason, bits & KL > 0),
            weight=None if weight is None else torch.from_numpy(weight).to(device),
            reason=torch.from_numpy(reason.astype(np.int64)).to(device),
        )

    def _of(self, choice: TokenChoice | None, reason: np.ndarray, stored: Tensor) -> Tensor:
        if choice is None or choice.kind is Kind.MASK or not choice.is_of_rule:
            return stored
        found = choice.among(np.ones(len(reason), bool), reason == 0, reason)
        return torch.from_numpy(found).to(stored.device)
