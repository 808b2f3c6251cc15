"""Attention that gives a sequence the same numbers whatever the width of its batch.

On a CPU, ``scaled_dot_product_attention`` cuts queries and keys into blocks whose sizes follow from the width, and the last is
narrower. Products of other sizes round otherwise, so a token's float32 logits depend on how wide its padded batch happens
to be: by up to 3e-5 with models of 1.3 million parameters. Here the sizes follow from the token's own position alone.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_BLOCK = 64


def even_attention(device: torch.device) -> AbstractContextManager:
    """What a model of this device is called in, for statistics that do not depend on the batch."""
    return EvenAttention() if device.type == "cpu" else nullcontext()


class EvenAttention(TorchFunctionMode):
    """While it is entered, attention within one sequence, causal or masked, goes by blocks of 64 queries.

    Queries 64·i to 64·i + 63 are held against keys 0 to 64·i + 63, whatever follows. The last block is filled up with zeros,
    which no real query sees, and cut off again. Attention of any other kind, a mask that shows the future among them, is left
    alone.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **more: Any
) -> Tensor:  # fmt: skip
    width = query.shape[-2]
    hides_future = is_causal if attn_mask is None else _hides_future(attn_mask, width)
    if key.shape[-2] != width or not hides_future:
        return scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **more)
    missing = -width % _BLOCK
    query, key, value = (pad(x, (0, 0, 0, missing)) if missing else x for x in (query, key, value))
    if attn_mask is not None:
        hidden = -float("inf") if attn_mask.is_floating_point() else False
        attn_mask = pad(attn_mask.expand(*attn_mask.shape[:-2], width, width), (0, missing, 0, missing), value=hidden)
    mixed = []
    for start in range(0, width, _BLOCK):
        upto = slice(0, start + _BLOCK)
        own = slice(start, upto.stop)
        seen = _causal(start) if attn_mask is None else attn_mask[..., own, upto]
        block = query[..., own, :], key[..., upto, :], value[..., upto, :]
        mixed.append(scaled_dot_product_attention(*block, seen, dropout_p, **more))
    return torch.cat(mixed, -2)[..., :width, :]


def _hides_future(mask: Tensor, width: int) -> bool:
    """Does no query see a key behind it? Masks are boolean, or numbers that are added to scores."""
    if mask.shape[-1] != width:
        return False
    if torch.compiler.is_compiling():  # a choice by values cannot be traced; that the models are causal was checked before
        return True
    shown = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask
    return not bool(shown.expand(*mask.shape[:-2], width, width).triu(1).any())


def _causal(start: int) -> Tensor:
    """Boolean [64, start + 64]: which keys the queries of a block see."""
    return torch.ones(_BLOCK, start + _BLOCK, dtype=torch.bool).tril(start)
