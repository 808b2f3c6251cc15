"""What a model must be before a dataset is scored with it, tried on a probe: some text, and words of all its vocabulary."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tokenstats.errors import InputError, one_line
from tokenstats.modeling.load import LoadedModel
from tokenstats.modeling.tokenizer import special_ids

_TEXT = (
    "Anna has 12 apples and buys 7.5 more; how many are there? def area(r): return 3.14159 * r ** 2  # in cm²\n"
    "«Ça va?» – Привет, мир! 你好，世界。 مرحبا 🙂🙂 <b>bold</b> \\frac{a}{b} = \\sqrt{2}\n\n\tEND"
)
_SPREAD, _LONGEST = 24, 160
_NOISE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""What rounding may move, as a share of the largest logit: other widths make other products of the same numbers."""

Ask = Callable[[Tensor], Tensor]
"""[B, T] ids → [B, T, V] logits."""


def probe_ids(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> Tensor:
    """[1, T] ids, the same in every process: a text of many kinds, then ids of all the vocabulary; no special ones."""
    text = tokenizer(_TEXT * 3, add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    spread = np.linspace(0, vocabulary - 1, _SPREAD).astype(int).tolist()
    ids = [i for i in text[: _LONGEST - _SPREAD] + spread if i < vocabulary and i not in special]
    return torch.tensor([ids if len(ids) > 1 else [0, vocabulary - 1]])


def check_runs(ask: Ask, probe: Tensor, source: str) -> Tensor:
    """The model's logits on the probe. Raises InputError where it gives none, or none for every token."""
    try:
        logits = ask(probe)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # architectures and adapters raise what they like
        raise InputError(
            f"{source} cannot be run on token ids alone: {one_line(error, 150) or type(error).__name__}; take a causal "
            "language model that needs nothing else, or merge its adapter first"
        ) from None
    if logits.dim() != 3 or logits.shape[:2] != probe.shape:
        raise InputError(
            f"{source} gives logits of shape {tuple(logits.shape)} for {probe.shape[1]} tokens; expected one row each"
        )
    return logits


def check_causal(ask: Ask, logits: Tensor, probe: Tensor, source: str) -> None:
    """Earlier logits must not move when later tokens change: else every statistic would see its own answer."""
    ids, half = probe[0], probe.shape[1] // 2
    for first in (half, probe.shape[1] - 1):
        changed = torch.cat([ids[:first], ids[:-1].roll(3)[first - 1 :]])[None]
        if (apart := logit_gap(ask(changed)[:, :first], logits[:, :first])) > noise(logits):
            raise InputError(
                f"{source} is not causal: its predictions look at later tokens, and move by {apart:.2g} when these change; "
                "take a causal language model"
            )


def repeats(ask: Ask, logits: Tensor, probe: Tensor) -> float:
    """By how much a model's logits move when it is asked the same again."""
    return logit_gap(ask(probe), logits)


def moved_by_neighbours(ask: Ask, logits: Tensor, probe: Tensor) -> tuple[float, float]:
    """By how much a row's logits move beside a longer row, filled up on the right, and beside one of its own length."""
    length = probe.shape[1]
    other = probe.flip(1)
    longer = torch.cat([other, probe], 1)
    padded = torch.cat([torch.nn.functional.pad(probe, (0, length)), longer])
    alike = torch.cat([probe, other])
    return logit_gap(ask(padded)[:1, :length], logits), logit_gap(ask(alike)[:1], logits)


def logit_gap(one: Tensor, other: Tensor) -> float:
    """The largest difference; words that are masked in both do not count."""
    gap = (one.float() - other.float()).abs().nan_to_num(0.0)
    return float(gap.max())


def noise(logits: Tensor) -> float:
    """What rounding may move of these logits; masked words left out."""
    seen = logits.float().nan_to_num(0.0)
    return _NOISE.get(logits.dtype, 1e-4) * float(seen.where(seen > -1e30, 0.0).abs().max().clamp_min(1.0))


def changed_words(policy: LoadedModel, reference: LoadedModel, vocabulary: int, most: int = 32) -> list[int]:
    """Ids whose embeddings differ between two models: a probe without one of these would not tell them apart."""
    tables = []
    for loaded in (policy, reference):
        with loaded.within():
            layer = loaded.model.get_input_embeddings()
            device = next(layer.parameters()).device
            tables.append([layer(block) for block in torch.arange(vocabulary, device=device).split(8192)])
    differ = [(a.to(b.device) != b).flatten(1).any(1) for a, b in zip(*tables, strict=True)]
    return torch.cat(differ).nonzero()[:most, 0].tolist()
