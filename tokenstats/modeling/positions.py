"""How far a model reads, what else its answers depend on than a row's own tokens, and what it remembers of longer rows.

Dynamic rotary scaling computes its frequencies from the width of the batch and keeps those of the widest one it has met;
longrope has one set of frequencies for widths within the pre-trained length and another beyond. Attention that picks the k
best keys picks among equal ones by how many there are, padding included. Either way a row may only share a batch with rows
that are read alike.
"""

import re
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

_OTHER_SENSES = re.compile("vision|visual|audio|image")
_REMEMBERED = ("inv_freq", "max_seq_len_cached", "attention_scaling")


def forget_widths(model: nn.Module) -> None:
    """Have each rotary embedding begin every call as it was after loading, whatever it was called with before."""
    for module in model.modules():
        if any(name.endswith("original_inv_freq") for name in vars(module) | module._buffers):
            module.register_forward_pre_hook(_Restore(module))


class _Restore:
    """A hook that puts back what dynamic scaling changes in its module."""

    def __init__(self, module: nn.Module):
        held = {**vars(module), **module._buffers}
        self._fresh = {name: _copy(value) for name, value in held.items() if name.endswith(_REMEMBERED)}

    def __call__(self, module: nn.Module, _: Any) -> None:
        for name, value in self._fresh.items():
            there = module._buffers.get(name)
            fresh = _copy(value) if there is None else value.to(there.device, copy=True)
            setattr(module, name, fresh)  # a buffer stays one
        gone = [name for name in vars(module) if name.endswith(_REMEMBERED) and name not in self._fresh]
        for name in gone:
            delattr(module, name)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def max_positions(model: PreTrainedModel) -> int | None:
    """Tokens that a model reads at most; None where nothing bounds them. Dynamic scaling goes beyond its pre-training."""
    config = model.config.get_text_config()
    bounds = [] if "dynamic" in rope_types(config) else [_declared(config)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2] and not _OTHER_SENSES.search(name):
            # BART and OPT begin their tables at an offset, RoBERTa's after the padding's place
            first = getattr(module, "offset", None)
            if first is None:
                first = 0 if module.padding_idx is None else module.padding_idx + 1
            bounds.append(module.num_embeddings - first)
    known = [bound for bound in bounds if bound is not None]
    return min(known) - virtual_tokens(model) if known else None


def virtual_tokens(model: PreTrainedModel) -> int:
    """Positions that an adapter's prompt or prefix takes before each row."""
    configs = getattr(model, "peft_config", {}).values()
    return max((getattr(config, "num_virtual_tokens", None) or 0 for config in configs), default=0)


def trained_positions(model: PreTrainedModel) -> int:
    """Tokens up to which a model's positions mean what they did in pre-training; very many where nothing is said."""
    config = model.config.get_text_config()
    original = [s.get("original_max_position_embeddings") for s in _scalings(config)]
    bounds = [*original, _declared(config), 1 << 20]
    most = max_positions(model)
    return min([bound - virtual_tokens(model) for bound in bounds if bound] + ([most] if most else []))


def _declared(config: Any) -> int | None:
    try:
        declared = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))  # the latter is MPT's
    except Exception:  # a number that differs by layer
        return None
    return declared if isinstance(declared, int) and declared > 0 else None  # XLNet says -1


def rope_types(config: Any) -> set[str]:
    """How positions are scaled; a configuration may say it once, or for each kind of layer."""
    return {str(scaling.get("rope_type", scaling.get("type"))) for scaling in _scalings(config)}


def _scalings(config: Any) -> list[dict]:
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(scaling, dict):
        return []
    return [scaling, *(s for s in scaling.values() if isinstance(s, dict))]


def width_classes(model: PreTrainedModel, lengths: np.ndarray) -> np.ndarray:
    """[R] a number for each row: rows of the same number are read alike, padded to their longest."""
    config, lengths = model.config.get_text_config(), lengths + virtual_tokens(model)
    classes = np.zeros(len(lengths), np.int64)
    for scaling in _scalings(config):
        kind, declared = scaling.get("rope_type", scaling.get("type")), _declared(config) or 0
        if kind == "longrope":
            classes = combine(classes, lengths > (scaling.get("original_max_position_embeddings") or declared))
        elif kind == "dynamic":
            classes = combine(classes, np.where(lengths > declared, lengths, 0))
    if (most := _keys_picked(config)) is not None:
        classes = combine(classes, np.where(lengths > most, lengths, 0))
    return classes


def _keys_picked(config: Any) -> int | None:
    """Tokens up to which sparse attention sees every key; None where attention is not sparse.

    DeepSeek's indexer picks ``index_topk`` keys, or groups of so many that V4 made one of; Doge ``keep_window_size``.
    """
    groups = getattr(config, "compress_rates", None) or {}
    picked = getattr(config, "index_topk", None) or getattr(config, "keep_window_size", None)
    return picked * groups.get("compressed_sparse_attention", 1) if picked else None


def combine(classes: np.ndarray, more: np.ndarray) -> np.ndarray:
    """[R] numbers that are the same for two rows where both of theirs are; numbers are at least 0."""
    _, known = np.unique(classes, return_inverse=True)
    _, added = np.unique(more, return_inverse=True)
    return known * (int(added.max(initial=0)) + 1) + added
