"""Many samples of many prompts at once, for a small Qwen3 on a CPU.

    P = prompts, S = samples of each, N = P · S sequences, L = longest prompt, T = tokens sampled so far,
    A = attention heads, K = key-value heads, G = A / K, D = size of a head, H = hidden size, V = vocabulary

A general ``generate`` copies its key-value cache at each step and keeps that of the prompt once for each sample; here the
samples of a prompt share it, room for new tokens is taken once, and samples that have ended make room for the others. All in
float32: a token's distribution is that of the model's own forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu
from transformers import Qwen3ForCausalLM

REPACK_EVERY, REPACK_BELOW = 8, 0.8
"""Steps between looks at how many samples still run, and the share below which they are packed anew."""


@dataclass
class _Cache:
    """Keys and values of one layer: of prompts [P, K, L, D], shared, and of what was sampled [P, S, K, room, D]."""

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor

    def take(self, prompts: Tensor, slots: Tensor) -> None:
        """Keep the prompts [P'] and of each the samples in its slots [P', S']."""
        self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]
        self.keys, self.values = self.keys[prompts[:, None], slots], self.values[prompts[:, None], slots]


class Sampler:
    """A Qwen3 that samples at temperature 1 from the whole distribution over the first ``vocabulary`` tokens."""

    def __init__(self, model: Qwen3ForCausalLM, vocabulary: int, end: int):
        config = model.config
        if config.model_type != "qwen3" or config.rope_parameters.get("rope_type") != "default":
            raise ValueError(f"the sampler is for qwen3 with plain rotary positions; got {config.model_type}")
        if any(kind != "full_attention" for kind in config.layer_types) or config.attention_bias:
            raise ValueError("the sampler is for full attention without bias")
        self.heads, self.kv_heads, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.eps, self.end = config.rms_norm_eps, end
        self.layers = [dict(layer.named_parameters()) for layer in model.model.layers]
        self.embedding, self.norm = model.model.embed_tokens.weight, model.model.norm.weight
        self.head = model.lm_head.weight[:vocabulary]
        self.base = config.rope_parameters["rope_theta"]

    @torch.inference_mode()
    def sample(self, prompts: Sequence[Sequence[int]], samples: int, most: int, seed: int) -> list[list[list[int]]]:
        """``samples`` continuations of each prompt: ids up to and without the end token, ``most`` at most.

        The same call gives the same ids; other prompts beside a prompt change what is drawn for it.
        """
        random = torch.Generator().manual_seed(seed)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        caches, hidden = self._read_prompts(prompts, lengths, samples, most)
        ids = torch.full((len(prompts), samples, most), self.end)
        # where each running sample belongs: its prompt [P], and its column [P, S]
        prompt, column = torch.arange(len(prompts)), torch.arange(samples).repeat(len(prompts), 1)
        running = torch.ones(len(prompts), samples, dtype=torch.bool)
        hidden = hidden[:, None].expand(-1, samples, -1)
        for step in range(most):
            tokens = _draw(self.logits(hidden), random)
            ids[prompt[:, None].expand_as(column)[running], column[running], step] = tokens[running]
            running &= tokens != self.end
            if not running.any() or step == most - 1:
                break
            if step % REPACK_EVERY == REPACK_EVERY - 1 and running.float().mean() < REPACK_BELOW:
                rows, slots, running = _pack(running)
                for cache in caches:
                    cache.take(rows, slots)
                prompt, lengths, column = prompt[rows], lengths[rows], column[rows[:, None], slots]
                tokens = tokens[rows[:, None], slots]
            hidden = self._advance(tokens, lengths, caches, step)
        return [[_until_end(row, self.end) for row in rows] for rows in ids.tolist()]

    def logits(self, hidden: Tensor) -> Tensor:
        return linear(rms_norm(hidden, hidden.shape[-1:], self.norm, self.eps), self.head)

    def _read_prompts(
        self, prompts: Sequence[Sequence[int]], lengths: Tensor, samples: int, most: int
    ) -> tuple[list[_Cache], Tensor]:
        """The caches, and the hidden states [P, H] that predict the first new token."""
        count, longest = len(prompts), int(lengths.max())
        ids = torch.zeros(count, longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        cos, sin = self._rotations(torch.arange(longest)[None])
        hidden, caches = self.embedding[ids], []
        for layer in self.layers:
            queries, keys, values = self._project(layer, hidden, cos, sin)  # [P, L, A or K, D]
            q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            hidden = self._finish(layer, hidden, mixed.transpose(1, 2).flatten(2))
            room = (count, samples, self.kv_heads, most, self.size)
            caches.append(_Cache(k.contiguous(), v.contiguous(), torch.empty(room), torch.empty(room)))
        return caches, hidden[torch.arange(count), lengths - 1]

    def _advance(self, tokens: Tensor, lengths: Tensor, caches: list[_Cache], step: int) -> Tensor:
        """Hidden states [P, S, H] after one more token [P, S] of each sample, the ``step``-th."""
        cos, sin = self._rotations((lengths + step)[:, None].expand_as(tokens))
        longest = caches[0].prompt_keys.shape[2]
        outside = torch.arange(longest) >= lengths[:, None]  # [P, L] padding of prompts
        hidden = self.embedding[tokens]
        for layer, cache in zip(self.layers, caches, strict=True):
            queries, keys, values = self._project(layer, hidden, cos, sin)  # [P, S, A or K, D]
            cache.keys[:, :, :, step], cache.values[:, :, :, step] = keys, values
            hidden = self._finish(layer, hidden, self._attend(queries, cache, outside, step + 1))
        return hidden

    def _attend(self, queries: Tensor, cache: _Cache, outside: Tensor, new: int) -> Tensor:
        """[P, S, A · D]: each sample looks at its prompt and at its own ``new`` tokens."""
        prompts, samples = queries.shape[:2]
        groups = self.heads // self.kv_heads
        q = queries.view(prompts, samples, self.kv_heads, groups, self.size) * self.size**-0.5
        shared = q.permute(0, 2, 1, 3, 4).flatten(2, 3)  # [P, K, S · G, D]
        at_prompt = (shared @ cache.prompt_keys.transpose(2, 3)).masked_fill_(outside[:, None, None], -torch.inf)
        at_prompt = at_prompt.view(prompts, self.kv_heads, samples, groups, -1).permute(0, 2, 1, 3, 4)
        at_own = q @ cache.keys[:, :, :, :new].transpose(3, 4)  # [P, S, K, G, T]
        weights = torch.cat([at_prompt, at_own], -1).softmax(-1)
        of_prompt, of_own = weights.split([outside.shape[1], new], -1)
        mixed = of_prompt.permute(0, 2, 1, 3, 4).flatten(2, 3) @ cache.prompt_values
        mixed = mixed.view(prompts, self.kv_heads, samples, groups, self.size).permute(0, 2, 1, 3, 4)
        return (mixed + of_own @ cache.values[:, :, :, :new]).flatten(2)

    def _project(self, layer: dict[str, Tensor], hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = rms_norm(hidden, hidden.shape[-1:], layer["input_layernorm.weight"], self.eps)
        queries, keys, values = (
            linear(normed, layer[f"self_attn.{name}_proj.weight"]).unflatten(-1, (-1, self.size)) for name in "qkv"
        )
        queries = rms_norm(queries, (self.size,), layer["self_attn.q_norm.weight"], self.eps)
        keys = rms_norm(keys, (self.size,), layer["self_attn.k_norm.weight"], self.eps)
        return _rotate(queries, cos, sin), _rotate(keys, cos, sin), values

    def _finish(self, layer: dict[str, Tensor], hidden: Tensor, mixed: Tensor) -> Tensor:
        """What follows attention: its output matrix, and the feed-forward network."""
        hidden = hidden + linear(mixed, layer["self_attn.o_proj.weight"])
        normed = rms_norm(hidden, hidden.shape[-1:], layer["post_attention_layernorm.weight"], self.eps)
        gate, up = (linear(normed, layer[f"mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        return hidden + linear(silu(gate) * up, layer["mlp.down_proj.weight"])

    def _rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [..., 1, D] of rotary positions."""
        frequencies = self.base ** -(torch.arange(0, self.size, 2) / self.size)
        angles = (positions[..., None] * frequencies).repeat(*(1,) * positions.dim(), 2)[..., None, :]
        return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


def _draw(logits: Tensor, random: torch.Generator) -> Tensor:
    """One token of each row of logits [..., V], by the inverse of the cumulative distribution."""
    cumulative = logits.softmax(-1).cumsum(-1)
    chosen = torch.rand(logits.shape[:-1], generator=random)[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, chosen, right=True)[..., 0].clamp_(max=logits.shape[-1] - 1)


def _pack(running: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts that still run [P'], slots of each to keep [P', S'], running ones first, and which of those run."""
    rows = running.any(1).nonzero()[:, 0]
    width = int(running.sum(1).max())
    slots = running[rows].int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return rows, slots, running[rows[:, None], slots]


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
