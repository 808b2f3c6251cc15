"""The loss of three terms, and the statistics that it is made of: one pass through the head for all of them.

B, T = sequences and tokens of a batch; H = hidden size; V = vocabulary; n = tokens that anything is worked out for.

The rows of the head are the union of what any term needs. They are taken in the order of their depth, so that only those that
need the reference's logits have them, and in blocks, whose logits are computed again in the backward pass: [n, V] logits never
live at once. Each term is a sum over one divisor of the whole optimizer batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tokenstats.alignment import outputs_that_predict
from tokenstats.modeling.head import SplitModel
from tokenstats.training.loss import LOGITS_AT_ONCE, blocks_of
from tokenstats.training.reference import Reference
from tokenstats.training.selection import Batch, FollowedRule, Selection, stored_divisors, stored_selection
from tokenstats.training.statistics import Predictions, columns_of
from tokenstats.training.terms import Depth, Terms
from tokenstats.training.token_sets import TARGET

Total = Callable[[Tensor], Tensor]
"""The sum of a tensor over all devices."""

_TENSORS = {Depth.NLL: 1, Depth.POLICY: 3, Depth.BOTH: 6}
"""About how many [rows, V] tensors live at once in a block: deeper blocks are of fewer rows."""
_TOLD = {Depth.NLL: (), Depth.POLICY: ("entropy", "correct"), Depth.BOTH: ("entropy", "correct", "kl")}


@dataclass(frozen=True)
class Measured:
    """What is known of the tokens of a micro-batch.

    Attributes:
        chosen: Boolean [B, T], the n tokens, indexed by predicted token.
        depth: int64 [n].
        columns: By name [n], in the order of ``chosen``; 0 where a token's depth does not reach.
        selection: Of the same tokens.
        nothing: With n = 0, a 0 whose gradients are zeros for every parameter: other devices wait for them.
    """

    chosen: Tensor
    depth: Tensor
    columns: Mapping[str, Tensor]
    selection: Selection
    nothing: Tensor | None = None


class Objective:
    """The loss of a micro-batch, and its parts."""

    def __init__(
        self,
        split: SplitModel,
        terms: Terms,
        vocabulary: int,
        reference: Reference | None = None,
        followed: FollowedRule | None = None,
        clauses: int = 0,
        logits_at_once: int = LOGITS_AT_ONCE,
    ):
        """vocabulary: ids that p and q are over, at most the columns of either model's logits; clauses: are told apart."""
        self.split, self.terms, self.vocabulary, self.reference, self.followed = split, terms, vocabulary, reference, followed
        self.clauses = clauses
        self._logits_at_once = logits_at_once
        self._trained = frozenset(
            ["nll"] + ["entropy"] * (terms.entropy_bonus > 0) + [terms.kl_column] * (terms.kl_penalty > 0)
        )

    def measure(self, batch: Batch, training: bool = True) -> Measured:
        """Work out what is needed of a micro-batch, with gradients where they are on."""
        table = self.terms.training if training else self.terms.evaluation
        depths = torch.tensor(table, device=batch["sets"].device)[batch["sets"].long()]
        chosen = depths > 0
        hidden = self.split.hidden(batch["input_ids"], lengths=batch.get("length"))
        rows, depth = outputs_that_predict(hidden, chosen), depths[chosen]
        followed = self.followed if _knows_all_targets(table) else None
        reads = followed.selector.columns if followed is not None else frozenset()
        if not len(rows):
            none = self.split.logits(hidden[0, :1]).sum() * 0.0
            return Measured(chosen, depth, self._no_columns(rows, reads), stored_selection(batch, chosen), none)
        both = depths == Depth.BOTH
        ref_rows = self.reference.states(batch, both) if self.reference is not None and bool(both.any()) else None
        columns = self._columns(rows, batch["input_ids"][chosen], depth, ref_rows, reads)
        selection = stored_selection(batch, chosen) if followed is None else followed.select(batch, chosen, columns)
        return Measured(chosen, depth, columns, selection)

    def divisors(self, measured: Measured) -> Tensor:
        """[3] float64, of this micro-batch: Σ_keep w (or the kept tokens), |E|, |K|."""
        found = measured.selection
        kept = found.kept.sum() if found.weight is None or not self.terms.by_weights else found.weight[found.kept].sum()
        return torch.stack([kept.double(), found.entropy_on.sum().double(), found.kl_on.sum().double()])

    def loss(self, measured: Measured, selection: Selection, divisors: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a micro-batch, and [3] its terms without their λ: cross-entropy, H / ln V, KL. A sum over nothing is 0.

        Args:
            measured: Its statistics.
            selection: Of its tokens.
            divisors: [3], of the whole optimizer batch: all micro-batches of all devices.
        """
        if measured.nothing is not None:
            return measured.nothing, torch.zeros(3, device=measured.nothing.device)
        terms, columns, kept = self.terms, measured.columns, selection.kept
        over = torch.where(divisors > 0, divisors, 1.0).float()
        nll = columns["nll"][kept]
        nll = (nll if selection.weight is None else nll * selection.weight[kept]).sum() / over[0]
        entropy = divergence = torch.zeros_like(nll)
        if terms.entropy_bonus:
            entropy = columns["entropy"][selection.entropy_on].sum() / (over[1] * math.log(self.vocabulary))
        if terms.kl_penalty:
            divergence = columns[terms.kl_column][selection.kl_on].sum() / over[2]
        loss = nll - terms.entropy_bonus * entropy + terms.kl_penalty * divergence
        return loss, torch.stack([nll, entropy, divergence]).detach()

    def _names(self, depth: Depth, reads: frozenset[str]) -> tuple[str, ...]:
        """Columns that are worked out for a token of this depth."""
        deepest = [self.terms.kl_column] if depth is Depth.BOTH and self.terms.kl_penalty else []
        return tuple(dict.fromkeys(["nll", *_TOLD[depth], *deepest, *sorted(reads)]))

    def _no_columns(self, rows: Tensor, reads: frozenset[str]) -> dict[str, Tensor]:
        return {name: rows.new_zeros(0, dtype=torch.float32) for name in self._names(Depth.BOTH, reads)}

    def _columns(
        self, rows: Tensor, targets: Tensor, depth: Tensor, ref_rows: Tensor | None, reads: frozenset[str]
    ) -> dict[str, Tensor]:
        order = depth.argsort(descending=True, stable=True)  # the tokens of both models first, as ref_rows has them
        groups = [(each, int((depth == each).sum())) for each in (Depth.BOTH, Depth.POLICY, Depth.NLL)]
        columns_of_head = self.split.vocabulary
        again = sum(count * _TENSORS[each] for each, count in groups) * columns_of_head > self._logits_at_once
        found: dict[str, list[Tensor]] = {}
        first = 0
        for each, count in groups:
            size = max(1, self._logits_at_once // (columns_of_head * _TENSORS[each]))
            for block in blocks_of(count, size, first):
                ref = ref_rows[block] if each is Depth.BOTH and ref_rows is not None else None
                made = self._block(rows[order[block]], targets[order[block]], ref, self._names(each, reads), again)
                for name in self._names(Depth.BOTH, reads):
                    found.setdefault(name, []).append(made[name] if name in made else torch.zeros_like(made["nll"]))
            first += count
        back = order.argsort()
        return {name: torch.cat(pieces)[back] for name, pieces in found.items()}

    def _block(
        self, rows: Tensor, targets: Tensor, ref_rows: Tensor | None, names: tuple[str, ...], again: bool
    ) -> dict[str, Tensor]:
        """Columns of a block of rows. ``again``: its logits are not kept for the backward pass but computed again there."""
        if again and torch.is_grad_enabled():
            # use_reentrant=False: one backward pass through the head, as data-parallel training needs it
            made = checkpoint(self._of_logits, rows, targets, ref_rows, names, use_reentrant=False)
        else:
            made = self._of_logits(rows, targets, ref_rows, names)
        return dict(zip(names, made, strict=True))

    def _of_logits(self, rows: Tensor, targets: Tensor, ref_rows: Tensor | None, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        reference = None
        if ref_rows is not None:
            assert self.reference is not None
            with torch.no_grad():
                reference = self.reference.logits(ref_rows)
        predictions = Predictions(self.split.logits(rows).float(), targets, self.vocabulary, reference)
        return columns_of(predictions, names, self._trained)


def _knows_all_targets(table: tuple[Depth, ...]) -> bool:
    """Are whole distributions of all targets worked out, as a rule that is followed needs them?"""
    return table[TARGET] >= Depth.POLICY


class OptimizerBatch:
    """The micro-batches of one optimizer step on this device: they share their divisors with each other and all devices.

    What a stored mask selects is known beforehand. What a followed rule selects is known only once the model has seen the
    tokens. With one micro-batch its own gradient pass tells. With more, all but the first are run once without gradient before
    the step, and keep what was selected then: (A - 1) / A more forward passes at A micro-batches a step.
    """

    def __init__(self, objective: Objective):
        self._objective = objective
        self._selections: list[Selection | None] = []
        self._others = torch.zeros(3, dtype=torch.float64)
        self._divisors: Tensor | None = None

    def begin(self, batches: Sequence[Batch], total: Total) -> Tensor:
        """Look at all micro-batches before the first is learned from.

        Args:
            batches: On their device.
            total: For what is added up over all devices.

        Returns:
            The divisors as far as they are known, [3].
        """
        if self._objective.followed is None:
            found = [stored_divisors(batch, self._objective.terms.by_weights) for batch in batches]
            self._selections = [None] * len(batches)
            self._divisors = total(torch.stack(found).sum(0))
            return self._divisors
        with torch.no_grad():
            ahead = [self._objective.measure(batch) for batch in batches[1:]]
        self._selections = [None, *(each.selection for each in ahead)]
        self._others = sum((self._objective.divisors(each) for each in ahead), self._others.new_zeros(3))
        self._divisors = None
        return self._others

    def loss(self, batch: Batch, total: Total) -> tuple[Tensor, Tensor, Measured]:
        """Loss, terms and statistics of the next micro-batch."""
        measured = self._objective.measure(batch)
        selection = self._selections.pop(0) or measured.selection
        if self._divisors is None:
            own = self._objective.divisors(measured)
            self._divisors = total(own + self._others.to(own.device))
        loss, parts = self._objective.loss(measured, selection, self._divisors)
        return loss, parts, Measured(measured.chosen, measured.depth, measured.columns, selection, measured.nothing)
