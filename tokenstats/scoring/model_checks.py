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
"""What rounding may move between widths, as a share of the largest logit: other widths make other products."""
_SAME_SHAPE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""The same between calls of one shape, where only experts, who get other tokens then, make other products."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

Ask = Callable[[Tensor], Tensor]
"""[B, T] ids → [B, T, V] logits."""


def probe_ids(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> Tensor:
    """[1, T] ids, the same in every process: a text of many kinds, then ids of all the vocabulary; no special ones.

    Nor words that were added to a tokenizer: their model may have no embedding of them, and need none where no row has one.
    """
    vocabulary = min(vocabulary, tokenizer.vocab_size or vocabulary)
    text = tokenizer(_TEXT * 3, add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    spread = np.linspace(0, vocabulary - 1, _SPREAD).astype(int).tolist()
    ids = [i for i in text[: _LONGEST - _SPREAD] + spread if i < vocabulary and i not in special]
    return torch.tensor([ids if len(ids) > 1 else [0, vocabulary - 1]])


def asking(loaded: LoadedModel) -> Ask:
    """The model as a function that raises InputError where it gives no logits for every token. A full memory passes through."""
    kinds = [config.peft_type.value for config in getattr(loaded.model, "peft_config", {}).values()]
    source = loaded.description.source + (f" (an adapter of kind {', '.join(kinds)})" if kinds else "")

    def ask(ids: Tensor) -> Tensor:
        try:
            with loaded.within():
                logits = loaded.model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # architectures and adapters raise what they like
            raise InputError(
                f"{source} cannot be run on token ids alone: {one_line(error, 150) or type(error).__name__}; take a causal "
                "language model that needs nothing else, or merge its adapter first"
            ) from None
        if logits.dim() != 3 or logits.shape[:2] != ids.shape:
            raise InputError(f"{source} gives logits of shape {tuple(logits.shape)} for {tuple(ids.shape)} tokens")
        return logits

    return ask


def check_causal(ask: Ask, logits: Tensor, probe: Tensor, allowed: float, source: str) -> None:
    """Earlier logits must not move when later tokens change: else every statistic would see its own answer."""
    ids = probe[0]
    for first in (len(ids) // 2, len(ids) - 1):
        changed = torch.cat([ids[:first], others_than(ids)[first:]])[None]
        if (apart := logit_gap(ask(changed)[:, :first], logits[:, :first])) > allowed:
            raise InputError(
                f"{source} is not causal: its predictions look at later tokens, and move by {apart:.2g} when these change; "
                "take a causal language model (8-bit activations, as of LLM.int8, depend on all tokens too: take weights of "
                "another type)"
            )


def others_than(ids: Tensor) -> Tensor:
    """As many ids, of the same range."""
    return ids.max() - ids + ids.min()


def moved_by_neighbours(ask: Ask, logits: Tensor, probe: Tensor, widest: int) -> tuple[float, float]:
    """By how much a row's logits move when it is filled up beside a longer row, and when the row beside it is another.

    Args:
        ask: The model, from [B, T] ids to [B, T, V] logits.
        logits: [1, T, V] of the probe alone.
        probe: [1, T] ids.
        widest: Tokens that the longer row may have; it has twice those of the probe where it may.
    """
    length, other = probe.shape[1], others_than(probe)
    longer = torch.cat([other, probe], 1)[:, : max(widest, length)]
    padded = torch.cat([torch.nn.functional.pad(probe, (0, longer.shape[1] - length)), longer])
    beside = [ask(torch.cat([probe, neighbour]))[:1] for neighbour in (probe, other)]
    return logit_gap(ask(padded)[:1, :length], logits), logit_gap(*beside)


def logit_gap(one: Tensor, other: Tensor) -> float:
    """The largest difference; words that are masked in both do not count."""
    gap = (one.float() - other.float()).abs().nan_to_num(0.0)
    return float(gap.max())


def noise(loaded: LoadedModel, logits: Tensor) -> tuple[float, float]:
    """What rounding may move of these logits between widths, and between calls of one shape; masked words left out."""
    seen = logits.float().nan_to_num(0.0)
    largest = float(seen.where(seen > -1e30, 0.0).abs().max().clamp_min(1.0))
    coarser = loaded.model.dtype if logits.dtype == torch.float32 else logits.dtype  # some raise their logits to float32
    config = loaded.model.config.get_text_config()
    table = _NOISE if any(isinstance(getattr(config, name, None), int) for name in _EXPERTS) else _SAME_SHAPE
    return _NOISE.get(coarser, 1e-4) * largest, table.get(coarser, 1e-4) * largest


@torch.inference_mode()
def word_digests(loaded: LoadedModel, words: int) -> Tensor:
    """[words] a number for the embedding of each id: others where one of its elements differs."""
    found = []
    with loaded.within():
        layer = loaded.model.get_input_embeddings()
        for block in torch.arange(words, device=next(layer.parameters()).device).split(4096):
            bits = layer(block).float().flatten(1).view(torch.int32).long()
            found.append((bits * (2 * torch.arange(bits.shape[1], device=bits.device) + 1)).sum(-1).cpu())
    return torch.cat(found)


def changed_words(one: Tensor, other: Tensor, most: int = 32) -> list[int]:
    """The first ids whose embeddings differ between two models, by their :func:`word_digests`, as far as both go.

    Without one of these no probe would tell the models apart.
    """
    shared = min(len(one), len(other))
    return (one[:shared] != other[:shared]).nonzero()[:most, 0].tolist()
