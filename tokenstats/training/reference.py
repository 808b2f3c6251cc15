"""Where the reference's distribution comes from: a forward pass beside the policy's, or hidden states kept on disk.

    beside    another model, without gradient; for an adapter the same model with the adapter off
    cached    states of every token that needs them, made once; only the head of the reference stays in memory

Both are exact: the logits come from the reference's own states through its own head, in the head's arithmetic.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenstats.alignment import outputs_that_predict
from tokenstats.errors import InputError
from tokenstats.modeling.head import SplitModel
from tokenstats.modeling.load import load_model
from tokenstats.modeling.positions import max_positions
from tokenstats.store.manifests import Model
from tokenstats.training.selection import Batch


class Reference(Protocol):
    """A model q whose next-token distribution can be had for chosen tokens."""

    def states(self, batch: Batch, chosen: Tensor) -> Tensor:
        """[m, H] what the head makes the logits from that predict the m chosen tokens [B, T], in their order."""
        ...

    def logits(self, rows: Tensor) -> Tensor:
        """[m, H] states → [m, columns] float32 logits."""
        ...


class ModelBeside:
    """A reference that runs in each step, without gradient."""

    def __init__(self, split: SplitModel):
        self.split = split

    @torch.no_grad()
    def states(self, batch: Batch, chosen: Tensor) -> Tensor:
        """See :class:`Reference`."""
        return outputs_that_predict(self.split.hidden(batch["input_ids"], lengths=batch.get("length")), chosen)

    def logits(self, rows: Tensor) -> Tensor:
        """See :class:`Reference`."""
        return self.split.logits(rows)


def load_reference(
    source: str,
    dtype: str,
    device: torch.device,
    attention: str | None,
    trust_remote_code: bool,
    vocabulary: int,
    probe: Tensor,
    longest: int,
) -> tuple[SplitModel, Model]:
    """Load another model as the reference, frozen, and check that it reads what is trained on.

    Args:
        source: A folder, a Hub id or an adapter folder.
        dtype: Of its weights.
        device: Where it goes.
        attention: The implementation, as transformers names it.
        trust_remote_code: Run code that it brings.
        vocabulary: Ids of the tokenizer, which it must have logits for.
        probe: [1, T] ids that it is tried on.
        longest: Tokens of the longest sequence.

    Raises:
        InputError: It is no model, knows fewer ids, or reads shorter sequences only.
    """
    loaded = load_model(source, dtype, device, attention, trust_remote_code)
    loaded.model.requires_grad_(False)
    most = max_positions(loaded.model)
    if most and longest > most:
        raise InputError(f"the longest sequence has {longest} tokens, but the reference {source} reads at most {most}")
    # the head as it is, like the policy's: what rounding does to p and q alike cancels in the KL
    split = SplitModel(loaded.model, float32_head=False, within=loaded.within)
    if split.vocabulary < vocabulary:
        raise InputError(
            f"the reference {source} has {split.vocabulary} logits, the store's tokenizer {vocabulary} ids; expected a "
            "model whose vocabulary covers it"
        )
    split.check(probe.to(device))
    return split, loaded.description


def without_adapter(model: PreTrainedModel) -> SplitModel:
    """The base below an adapter that is being trained, on the same weights."""
    return SplitModel(model, float32_head=False, within=lambda: _adapter_off(model))


@contextmanager
def _adapter_off(model: PreTrainedModel) -> Iterator[None]:
    """The reference is no part of the training: no dropout either."""
    was_training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        model.train(was_training)
