"""Sequences that lie one after the other in one row must not know of each other: shown on the model itself, by gradients.

Transformers tells packed sequences by their positions, for attention implementations that have a mask for it. Names do not
tell: some architectures have no ``position_ids``, some take and do not use them, and convolutions and recurrent states go past
a sequence's end. What holds is what the model does with the rows that it is about to learn from.
"""

import numpy as np
import torch
from torch import Tensor, nn

from tokenstats.errors import InputError, argument, one_line
from tokenstats.modeling.head import SplitModel
from tokenstats.training.data import TokenRows, collate

_ROUNDING = 1e-3
"""How far a gradient may be from that of a sequence alone, relative to its norm. In float32 it is about 1e-7."""
_AS_PADDED = 3.0
"""In half precision: how much farther, as a multiple of how far it is in a padded batch."""

Span = tuple[int, slice]
"""The row of a sequence in a batch, and its tokens there."""


def check_isolation(split: SplitModel, sequences: list[np.ndarray], source: str, autocast: bool) -> None:
    """Raise InputError where a model mixes sequences of one row, or reads them otherwise than alone.

    For each sequence, the gradient of a sum over its last hidden states by all input embeddings: zero for the other sequences'
    tokens, to the bit, and for its own what it is where the sequence has a row of its own.

    Args:
        split: The model, in evaluation mode: no dropout.
        sequences: Token ids of two sequences or more, each of at least two tokens.
        source: What the model is called in the error.
        autocast: Compute in bfloat16, as the training will.
    """
    device = next(split.model.parameters()).device
    ids = collate([{"input_ids": ids} for ids in sequences])["input_ids"].to(device)
    lengths = torch.tensor([len(ids) for ids in sequences], device=device)
    ends = lengths.cumsum(0).tolist()
    spans = [(0, slice(end - len(ids), end)) for ids, end in zip(sequences, ends, strict=True)]
    own_rows = [(i, slice(0, len(ids))) for i, ids in enumerate(sequences)]
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        alone = [_gradients(split, ids[i : i + 1, span], None, [(0, span)])[0][0] for i, span in own_rows]
        padded = _gradients(split, ids, None, own_rows)
        try:
            together = _gradients(split, ids, lengths, own_rows)
        except TypeError as error:  # no such argument
            raise _refused(source, one_line(error, 100)) from None
    for found, span in zip(together, spans, strict=True):
        others = found.clone()
        others[span] = 0
        if bool(others.any()):
            raise _refused(source, "what is predicted in one sequence depends on the others of its row")
    is_half = autocast or split.model.dtype != torch.float32
    allowed = _ROUNDING + (_AS_PADDED * _largest_gap(padded, own_rows, alone) if is_half else 0.0)
    if not (gap := _largest_gap(together, spans, alone)) <= allowed:
        raise _refused(source, f"a sequence is read otherwise than in a row of its own: gradients differ by {gap:.1%}")


def sequences_to_try(rows: TokenRows, most_tokens: int) -> list[np.ndarray]:
    """Ids of the three longest rows, cut where they would have more tokens in all than a forward pass of the training has."""
    longest = np.argsort(-np.diff(rows.offsets), kind="stable")
    return [rows[int(row)]["input_ids"][: max(2, most_tokens // 3)] for row in np.resize(longest, 3)]


def _gradients(split: SplitModel, ids: Tensor, lengths: Tensor | None, spans: list[Span]) -> list[Tensor]:
    """For each sequence of a batch [B, T]: by all input embeddings, of the sum of its last states, each weighed.

    Without ``lengths`` [B, T, H]; with them the model reads one row of N tokens, [1, N, H].
    """
    embedded: list[Tensor] = []

    def begin_here(_: nn.Module, __: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0].clone()  # some scale their embeddings in place, which a leaf forbids

    hook = split.model.get_input_embeddings().register_forward_hook(begin_here)
    split.padding_free = lengths is not None
    try:
        hidden = split.hidden(ids, lengths=lengths).float()
    finally:
        hook.remove()
        split.padding_free = False
    weights = torch.linspace(-1, 1, hidden.shape[-1], device=hidden.device)  # a plain sum of normalised states is near 0
    sums = [(hidden[span] * weights).sum() for span in spans]
    return [torch.autograd.grad(total, embedded[0], retain_graph=True)[0].float() for total in sums]


def _largest_gap(found: list[Tensor], spans: list[Span], alone: list[Tensor]) -> float:
    """Of the sequences' gradients to those of the sequences alone, relative to the norm of the latter."""
    gaps = [(g[span] - own).norm() / own.norm() for g, span, own in zip(found, spans, alone, strict=True)]
    return float(torch.stack(gaps).max())  # NaN, where there is one


def _refused(source: str, why: str) -> InputError:
    return InputError(
        f"{source} cannot be trained with {argument('padding_free')}: {why}; leave it out ({argument('batch_tokens')} alone "
        f"keeps padding below 5 %), or try another attention implementation ({argument('attention', 'flash_attention_2')})"
    )
