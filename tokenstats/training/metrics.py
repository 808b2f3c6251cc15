"""What a run tells in each entry of its history besides the loss, and how it is added up.

    loss_nll, loss_entropy, loss_kl     the terms: loss = loss_nll − λ_H · loss_entropy + λ_KL · loss_kl
    GROUP/nll, GROUP/entropy, GROUP/kl  means over the tokens of a group, in nats
    GROUP/accuracy                      share of its tokens that are the policy's most likely one
    agreement                           of a rule that is followed: the Jaccard index of what it and the stored mask drop
    tokens_per_second                   of the input, without padding, on all devices; evaluation and saving left out

Groups are ``targets``, ``kept``, ``entropy_on`` (E), ``kl_on`` (K) and, where all targets are told of, ``clause_1`` and so on:
what that clause of the rule drops. A mean is told where it is known of every token of the group. Means are of all tokens since
the last entry, each counted once, on all devices; with weights they are unweighted.
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
TERMS = ("loss_nll", "loss_entropy", "loss_kl")


def sum_count(clauses: int) -> int:
    """How many sums are kept, with so many clauses told apart."""
    return (len(GROUPS) + clauses) * (1 + len(VALUES)) + 2


def sums_by_row(measured: Measured, batch: Batch, clauses: int) -> Tensor:
    """[B, S] float64 of each sequence, S = :func:`sum_count`: of each group its tokens and the sums of its values.

    The last two are the tokens that the stored mask (``labels``) and this step's selection both drop, and those that any does.
    """
    found, columns, chosen = measured.selection, measured.columns, measured.chosen
    by_token = []
    reason = torch.zeros_like(found.kept, dtype=torch.int64) if found.reason is None else found.reason
    dropped_by = [reason & 1 << clause > 0 for clause in range(clauses)]
    for group in (torch.ones_like(found.kept), found.kept, found.entropy_on, found.kl_on, *dropped_by):
        by_token.append(group.double())
        by_token += [torch.where(group, columns[name].detach().double(), 0.0) for name, _ in VALUES.values()]
    stored = batch["labels"][chosen] == IGNORED
    by_token += [(stored & ~found.kept).double(), (stored | ~found.kept).double()]
    sums = torch.zeros(len(chosen), len(by_token), dtype=torch.float64, device=chosen.device)
    return sums.index_add_(0, chosen.nonzero()[:, 0], torch.stack(by_token, 1))


def means_of(sums: Tensor, table: tuple[Depth, ...]) -> dict[str, float]:
    """Means by ``GROUP/VALUE`` from [S] sums; ``table``: the depths by which they were worked out."""
    found = {}
    by_group = sums[:-2].view(-1, 1 + len(VALUES)).tolist()
    groups = GROUPS | {f"clause_{number}": TARGET for number in range(1, len(by_group) - len(GROUPS) + 1)}
    for (group, bit), (count, *totals) in zip(groups.items(), by_group, strict=True):
        known = max(table[bit], table[TARGET])
        for (name, (_, depth)), total in zip(VALUES.items(), totals, strict=True):
            if count and known >= depth:
                found[f"{group}/{name}"] = total / count
    return found


class Meter:
    """Adds up what happens between two entries of the history, on this device."""

    def __init__(self, terms: Terms | None, compares: bool, device: torch.device, clauses: int = 0):
        self._terms, self._compares, self._clauses = terms, compares, clauses
        self._sums = torch.zeros(sum_count(clauses), dtype=torch.float64, device=device)
        self._parts = torch.zeros(len(TERMS), dtype=torch.float64, device=device)
        self._tokens = torch.zeros(1, dtype=torch.float64, device=device)
        self._steps, self._seconds, self._began = 0, 0.0, 0.0

    @classmethod
    def of(cls, objective: Objective | None, device: torch.device) -> "Meter":
        """The meter of a run's objective; None: of the cross-entropy alone."""
        if objective is None:
            return cls(None, False, device)
        compares = objective.followed is not None and objective.followed.compares
        return cls(objective.terms, compares, device, objective.clauses)

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
        self._sums += sums_by_row(measured, batch, self._clauses).sum(0)

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
