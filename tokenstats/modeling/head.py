"""A causal language model in two halves: hidden states for all positions, logits only for the rows that are wanted.

Most positions of a fine-tuning set are prompts; a vocabulary-sized product for each of them is waste. The split is
checked against the model's own logits before it is used.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_AGREES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # relative to the largest logit


class SplitModel:
    """``logits(hidden(ids)[rows])`` is ``model(ids).logits[rows]``, in float32.

    Args:
        float32_head: Multiply a half-precision head in float32. Half-precision logits cost a KL its last three digits.
            Training takes the head as it is: its gradients belong to it.
        within: A context that every call runs in, such as one that turns an adapter on or off.
        model: What ``hidden`` calls; may be set to a wrapper of the model, which data-parallel training counts on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        float32_head: bool = True,
        within: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model = model
        self._within = within
        self._config = model.config.get_text_config()
        self._head = model.get_output_embeddings()
        self._finish = _after_head(self._config)
        self.is_split = self._head is not None
        # a head of another kind (one that an adapter wraps, or that is quantised) is only ever run whole
        plain = type(self._head) is nn.Linear and type(self._head.weight) is nn.Parameter
        self.is_linear = plain and self._head.weight.is_floating_point() and float32_head
        self._wide_head = self._head
        if self.is_split and float32_head and not self.is_linear and _is_half(self._head):
            with within():  # the copy stays as the adapter is now, on or off
                self._wide_head = deepcopy(self._head).float()

    @property
    def vocabulary(self) -> int:
        """Columns of the logits, those that only pad the embedding included."""
        return int(self._config.vocab_size)

    @property
    def in_columns(self) -> bool:
        """Can logits be had for some columns of the vocabulary alone?"""
        return self.is_split and self.is_linear

    def head_tensors(self) -> list[Tensor]:
        """What ``logits`` of hidden states is made from."""
        return [*self._head.parameters(), *self._head.buffers()] if self._head is not None else []

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[B, T] ids → [B, T, H], what the head would see (or, for a model that cannot be split, its logits [B, T, V])."""
        with self._within():
            if not self.is_split:
                return self._own_logits(input_ids, attention_mask)
            seen: list[Tensor] = []

            def stop_at_head(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
                seen.append(inputs[0])
                return (inputs[0][:, :1],)  # the head itself then runs on one position: next to nothing

            hook = self._head.register_forward_pre_hook(stop_at_head)
            try:
                self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            finally:
                hook.remove()
            return seen[0][:, -input_ids.shape[1] :]  # an adapter may have put virtual tokens before them

    def _own_logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return logits[:, -input_ids.shape[1] :]

    def logits(self, rows: Tensor) -> Tensor:
        """[N, H] hidden states → [N, V] float32 logits, scale and soft-capping included."""
        if not self.is_split:
            return rows.float()
        if self.is_linear:
            out = torch.empty(len(rows), len(self._head.weight), device=rows.device)
            return self.columns(rows, slice(0, out.shape[1]), out)
        with self._within():
            return self._finish(self._wide_head(rows.to(next(self._wide_head.parameters()).dtype)).float())

    def columns(self, rows: Tensor, block: slice | Tensor, out: Tensor) -> Tensor:
        """Logits of a block of the vocabulary (a slice, or [k] ids): [N, H] hidden states → ``out`` [N, k], float32.

        A half-precision product of a GPU adds up in float32 and is never rounded back (``out_dtype``); a CPU would round
        it, so there a block of weights is raised to float32 first. Only where ``in_columns``.
        """
        weight, bias = self._head.weight[block], self._head.bias
        if weight.dtype == rows.dtype != torch.float32 and rows.is_cuda:
            torch.mm(rows, weight.T, out_dtype=torch.float32, out=out)
        else:
            torch.mm(rows.float(), weight.float().T, out=out)
        if bias is not None:
            out += bias[block]
        finished = self._finish(out)
        return out if finished is out else out.copy_(finished)

    def check(self, input_ids: Tensor) -> Tensor:
        """The model's own logits [B, T, V] on [B, T] ids. Where the two halves give others, they are not used from here on."""
        with torch.no_grad():
            with self._within():
                truth = self._own_logits(input_ids)
            if self.is_split:
                self.is_split = self._agrees(input_ids, truth)
        return truth

    def _agrees(self, input_ids: Tensor, truth: Tensor) -> bool:
        try:
            ours = self.logits(self.hidden(input_ids).flatten(0, 1)).view_as(truth)
        except torch.OutOfMemoryError:
            raise  # says nothing of the halves
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return False  # states or weights of another form than the halves know: the whole model's logits are there
        coarser = self.model.dtype if truth.dtype == torch.float32 else truth.dtype  # some raise their logits to float32
        allowed = _AGREES.get(coarser, 1e-4) * truth.float().abs().max().clamp_min(1.0)
        return bool((ours - truth.float()).abs().max() <= allowed)


def _is_half(head: nn.Module) -> bool:
    return next((p.dtype in (torch.bfloat16, torch.float16) for p in head.parameters()), False)


def _after_head(config: object) -> Callable[[Tensor], Tensor]:
    """What an architecture does to its logits after the output matrix, as its configuration tells it."""
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def finish(logits: Tensor) -> Tensor:
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return finish
