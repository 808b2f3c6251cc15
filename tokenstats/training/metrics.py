"""What a run tells in each entry of its history besides the loss, and how it is added up.

    loss_nll, loss_entropy, loss_kl     the terms: loss = loss_nll − λ_H · loss_entropy + λ_KL · loss_kl
    GROUP/nll, GROUP/entropy, GROUP/kl  means over the tokens of a group, in nats
    GROUP/accuracy                      share of its tokens that are the policy's most likely one
    agreement                           of a rule that is followed: the Jaccard index of what it and the stored mask drop
    tokens_per_second                   of the input, without padding, on all devices; evaluation and saving left out

Groups are ``targets``, ``kept``, ``entropy_on`` (E) and ``kl_on`` (K). A mean is told where it is known of every token of the
group. Means are of all tokens since the last entry, each counted once, on all devices; with weights they are unweighted.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tokenstats.training.objective import Measured, Objective
from tokenstats.training.rows import IGNORED
from tokenstats.training.selection import Batch
from tokenstats.training.terms import Depth, Terms
from tokenstats.training.token_sets import ENTROPY, KEPT, KL, TARGET

GROUPS = {"targets": TARGET, "kept": KEPT, "entropy_on": ENTROPY, "kl_on": KL}
VALUES = {
    "nll": ("nll", Depth.NLL),
    "entropy": ("entropy", Depth.POLICY),
    "kl": ("kl", Depth.BOTH),
    "accuracy": ("correct", Depth.POLICY),
}
"""By the name of a mean: the column, and the depth from which it is known."""
SUMS = len(GROUPS) * (1 + len(VALUES)) + 2
TERMS = ("loss_nll", "loss_entropy", "loss_kl")


def sums_by_row(measured: Measured, batch: Batch) -> Tensor:
    """[B, SUMS] float64 of each sequence: of each group its tokens and the sums of its values.

    The last two are the tokens that the stored mask (``labels``) and this step's selection both drop, and those that any does.
    """
    found, columns, chosen = measured.selection, measured.columns, measured.chosen
    by_token = []
    for group in (torch.ones_like(found.kept), found.kept, found.entropy_on, found.kl_on):
        by_token.append(group.double())
        by_token += [torch.where(group, columns[name].detach().double(), 0.0) for name, _ in VALUES.values()]
    stored = batch["labels"][chosen] == IGNORED
    by_token += [(stored & ~found.kept).double(), (stored | ~found.kept).double()]
    sums = torch.zeros(len(chosen), SUMS, dtype=torch.float64, device=chosen.device)
    return sums.index_add_(0, chosen.nonzero()[:, 0], torch.stack(by_token, 1))


def means_of(sums: Tensor, table: tuple[Depth, ...]) -> dict[str, float]:
    """Means by ``GROUP/VALUE`` from [SUMS] sums; ``table``: the depths by which they were worked out."""
    found = {}
    by_group = sums[:-2].view(len(GROUPS), -1).tolist()
    for (group, bit), (count, *totals) in zip(GROUPS.items(), by_group, strict=True):
        known = max(table[bit], table[TARGET])
        for (name, (_, depth)), total in zip(VALUES.items(), totals, strict=True):
            if count and known >= depth:
                found[f"{group}/{name}"] = total / count
    return found


class Meter:
    """Adds up what happens between two entries of the history, on this device."""

    def __init__(self, terms: Terms | None, compares: bool, device: torch.device):
        self._terms, self._compares = terms, compares
        self._sums = torch.zeros(SUMS, dtype=torch.float64, device=device)
        self._parts = torch.zeros(len(TERMS), dtype=torch.float64, device=device)
        self._tokens = torch.zeros(1, dtype=torch.float64, device=device)
        self._steps, self._seconds, self._began = 0, 0.0, 0.0

    @classmethod
    def of(cls, objective: Objective | None, device: torch.device) -> "Meter":
        """The meter of a run's objective; None: of the cross-entropy alone."""
        if objective is None:
            return cls(None, False, device)
        return cls(objective.terms, objective.followed is not None and objective.followed.compares, device)

    def begin_step(self, batches: Sequence[Batch]) -> None:
        """An optimizer step begins, of these micro-batches."""
        self._began = time.perf_counter()
        self._tokens += sum(int(batch["length"].sum()) for batch in batches)

    def end_step(self) -> None:
        """It has ended."""
        self._steps += 1
        self._seconds += time.perf_counter() - self._began

    def add(self, parts: Tensor, measured: Measured, batch: Batch) -> None:
        """A micro-batch: its terms [3], and its statistics."""
        self._parts += parts
        self._sums += sums_by_row(measured, batch).sum(0)

    def read(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The entry since the last reading; ``total`` adds up over all devices."""
        told = {}
        if self._terms is not None:
            parts, sums = total(self._parts) / max(1, self._steps), total(self._sums)
            used = (True, self._terms.entropy_bonus > 0, self._terms.kl_penalty > 0)
            told = {name: value for name, value, use in zip(TERMS, parts.tolist(), used, strict=True) if use}
            told |= means_of(sums, self._terms.training)
            if self._compares and sums[-1]:
                told["agreement"] = float(sums[-2] / sums[-1])
        told["tokens_per_second"] = float(total(self._tokens)) / max(self._seconds, 1e-9)
        for each in (self._sums, self._parts, self._tokens):
            each.zero_()
        self._steps, self._seconds = 0, 0.0
        return told
