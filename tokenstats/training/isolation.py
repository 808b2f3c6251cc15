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
from tokenstats.training.data import TokenRows, collate_padding_free

_FLOAT32, _BFLOAT16 = 1e-3, 0.1
"""How far a gradient may be from that of a sequence alone, relative to its norm: kernels round other shapes otherwise."""


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
    row = collate_padding_free([{"input_ids": ids, "labels": ids} for ids in sequences])
    ids, positions = row["input_ids"].to(device), row["position_ids"].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        try:
            together = _gradients(split, ids, positions, [len(s) for s in sequences])
        except TypeError as error:  # no such argument
            raise _refused(source, one_line(error, 100)) from None
        alone = [_gradients(split, part, None, [part.shape[1]])[0] for part in ids.split([len(s) for s in sequences], dim=1)]
    first = 0
    for found, expected in zip(together, alone, strict=True):
        own = slice(first, first := first + len(expected))
        others = torch.cat([found[: own.start], found[own.stop :]])
        if bool(others.any()):
            raise _refused(source, "what is predicted in one sequence depends on the others of its row")
        gap = float((found[own] - expected).norm() / expected.norm())
        if not gap <= (_BFLOAT16 if autocast else _FLOAT32):
            raise _refused(source, f"a sequence is read otherwise than in a row of its own: gradients differ by {gap:.1%}")


def sequences_to_try(rows: TokenRows, most_tokens: int) -> list[np.ndarray]:
    """Ids of the three longest rows, cut where they would have more tokens in all than a forward pass of the training has."""
    longest = np.argsort(-np.diff(rows.offsets), kind="stable")
    return [rows[int(row)]["input_ids"][: max(2, most_tokens // 3)] for row in np.resize(longest, 3)]


def _gradients(split: SplitModel, ids: Tensor, positions: Tensor | None, lengths: list[int]) -> list[Tensor]:
    """[N, H] for each sequence of a row of N tokens: by its input embeddings, of the sum of its last states, each weighed."""
    embedded: list[Tensor] = []

    def begin_here(_: nn.Module, __: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0].clone()  # some scale their embeddings in place, which a leaf forbids

    hook = split.model.get_input_embeddings().register_forward_hook(begin_here)
    try:
        hidden = split.hidden(ids, position_ids=positions)[0].float()
    finally:
        hook.remove()
    weights = torch.linspace(-1, 1, hidden.shape[1], device=hidden.device)  # a plain sum of normalised states is near 0
    sums = [(part * weights).sum() for part in hidden.split(lengths)]
    return [torch.autograd.grad(total, embedded[0], retain_graph=True)[0][0].float() for total in sums]


def _refused(source: str, why: str) -> InputError:
    return InputError(
        f"{source} cannot be trained with {argument('padding_free')}: {why}; leave it out ({argument('batch_tokens')} alone "
        f"keeps padding below 5 %), or take another attention implementation ({argument('attention', 'flash_attention_2')})"
    )
