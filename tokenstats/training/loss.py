"""The loss of masked fine-tuning: cross-entropies of the kept tokens, over the kept tokens of the whole optimizer batch.

    Σ −log p(y) / number of kept tokens         a mask that keeps or drops
    Σ w · −log p(y) / Σ w                       a mask that weighs: a mean, whatever the scale of the weights
    Σ w · −log p(y) / number of kept tokens     the same on request: small weights then make small steps, as in DFT

B, T = sequences and tokens of a batch; H = hidden size; V = vocabulary; N = learned tokens of the batch.

The sum is divided by one number for the whole optimizer batch, so that neither gradient accumulation nor the number of
devices changes the gradient. The vocabulary product runs only for rows that predict a learned token, a block of rows at a
time; a block's logits are computed again in the backward pass, so that [N, V] logits never live at once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tokenstats.alignment import outputs_that_predict
from tokenstats.modeling.head import SplitModel
from tokenstats.training.rows import IGNORED

LOGITS_AT_ONCE = 1 << 26
"""Rows · vocabulary of one block: 256 MiB in float32. Larger blocks are no faster, smaller ones read the head too often."""


def masked_loss(
    split: SplitModel,
    input_ids: Tensor,
    labels: Tensor,
    divisor: Tensor | float,
    weights: Tensor | None = None,
    lengths: Tensor | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Σ w · −log p(y) over the kept tokens / ``divisor``: a float32 scalar, in nats.

    With nothing learned the loss is 0 and its gradients are zeros for every parameter, not missing: other devices wait
    for them.

    Args:
        split: The halves of the model.
        input_ids: [B, T], padded on the right.
        labels: [B, T] token ids, IGNORED where a token is not kept; indexed by predicted token, column 0 all IGNORED.
        divisor: Kept tokens, or sum of weights, of the whole optimizer batch: all accumulated micro-batches of all devices.
        weights: [B, T] float32, at least 0, indexed by predicted token; None: 1 everywhere.
        lengths: [B] or [B, 1], for a model that reads its batches without their padding.
        logits_at_once: Rows · vocabulary of a block; what does not fit in one is worked out again in the backward pass.
    """
    hidden = split.hidden(input_ids, lengths=lengths)
    chosen = labels != IGNORED
    if weights is not None:
        chosen &= weights > 0  # the rest adds nothing: no logits for it, and no 0 · inf
    if not chosen.any():
        return split.logits(hidden[0, :1]).sum() * 0.0
    nll = _nll(split, hidden, labels, chosen, logits_at_once)
    return (nll if weights is None else nll * weights[chosen]).sum() / divisor


def nll_per_row(
    split: SplitModel,
    input_ids: Tensor,
    labels: Tensor,
    lengths: Tensor | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Sums of −log p(y) in nats and counts of kept tokens of each sequence: [B] float32 and [B] int64."""
    chosen = labels != IGNORED
    sums = torch.zeros(len(labels), device=labels.device)
    if chosen.any():
        nll = _nll(split, split.hidden(input_ids, lengths=lengths), labels, chosen, logits_at_once)
        sums.index_add_(0, chosen.nonzero()[:, 0], nll)
    return sums, chosen.sum(1)


def _nll(split: SplitModel, hidden: Tensor, labels: Tensor, chosen: Tensor, logits_at_once: int) -> Tensor:
    """[N] −log p(y) of the chosen tokens, in the order of ``labels[chosen]``."""
    rows, targets = outputs_that_predict(hidden, chosen), labels[chosen]
    blocks = list(blocks_of(len(targets), max(1, logits_at_once // split.vocabulary)))
    if len(blocks) == 1:  # its logits fit: no need to compute them twice
        return _block_nll(split, rows, targets)
    # use_reentrant=False: one backward pass through the head, as data-parallel training needs it
    return torch.cat([checkpoint(_block_nll, split, rows[block], targets[block], use_reentrant=False) for block in blocks])


def _block_nll(split: SplitModel, rows: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(split.logits(rows).float(), targets, reduction="none")


def blocks_of(count: int, size: int, first: int = 0) -> Iterator[slice]:
    """Places ``first`` to ``first + count``, at most ``size`` in one slice."""
    return (slice(start, min(start + size, first + count)) for start in range(first, first + count, size))
