"""Attention that gives a sequence the same numbers whatever the width of its batch.

On a CPU, ``scaled_dot_product_attention`` goes over queries in blocks of 32 or more. The last, narrower block is multiplied
by other kernels, so a token's float32 logits depend on where its padded batch happens to end: by up to 3e-5 with models of
1.3 million parameters. Widths that the blocks divide leave no such remainder.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_BLOCK = 32


def even_attention(device: torch.device) -> AbstractContextManager:
    """What a model of this device is called in, for statistics that do not depend on the batch."""
    return EvenAttention() if device.type == "cpu" else nullcontext()


class EvenAttention(TorchFunctionMode):
    """While it is entered, attention within one sequence, causal or masked, is done at widths that 32 divides.

    Zeros are put behind queries and keys, and cut off again. No real query sees them: to a causal one they lie in the
    future, from the others the mask hides them. Attention of any other kind is left alone.
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
    missing = -width % _BLOCK
    within_one = key.shape[-2] == width and (is_causal or attn_mask is not None)
    if within_one and missing:
        query, key, value = (pad(x, (0, 0, 0, missing)) for x in (query, key, value))
        if attn_mask is not None:
            hidden = -float("inf") if attn_mask.is_floating_point() else False
            attn_mask = attn_mask.expand(*attn_mask.shape[:-2], width, width)
            attn_mask = pad(attn_mask, (0, missing, 0, missing), value=hidden)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **more)
    return mixed[..., :width, :]
