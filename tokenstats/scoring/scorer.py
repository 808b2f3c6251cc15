"""A scorer: models that are loaded, checked and ready to score parts, in this process or in one of a cluster."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from tokenstats.errors import InputError, TokenstatsWarning, argument
from tokenstats.modeling.batches import Advance, Budget
from tokenstats.modeling.freed_memory import keep_freed_memory
from tokenstats.modeling.load import pick_device
from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint, tokenizer_size
from tokenstats.schema import SCHEMA_VERSION
from tokenstats.scoring.model_checks import probe_ids
from tokenstats.scoring.options import Request
from tokenstats.scoring.pair import ADVICE, ModelPair, check_same_tokenizer, load_pair
from tokenstats.scoring.reductions.rows import reduction
from tokenstats.scoring.reference_pass import ReferenceInfo, ReferencePass
from tokenstats.scoring.score_part import score_part
from tokenstats.store.families import TOKENS
from tokenstats.store.manifests import Model
from tokenstats.store.parts import part_path, read_part


@dataclass(frozen=True)
class ModelInfo:
    """What the models turned out to be."""

    request: Request
    model: Model
    reference: Model | None
    dtype: str
    device: str
    reduction: str
    vocabulary: int
    max_positions: int | None
    head: dict[str, str]
    notes: tuple[str, ...]
    """What a user should know of these models' numbers."""

    def settings(self, tokens: Mapping[str, Any]) -> dict[str, Any]:
        """What the parts depend on; ``tokens``: the settings of the parts of tokens."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tokens": hashlib.blake2b(json.dumps(tokens, sort_keys=True).encode(), digest_size=16).hexdigest(),
            "model": self.model.fingerprint,
            "reference": self.reference.fingerprint if self.reference else None,
            "dtype": self.dtype,
            "vocabulary": self.vocabulary,
            "topk": self.request.options.topk,
            "score_all": self.request.options.score_all,
        }


class Scorer:
    """The models of a request in one process. Raises InputError for what cannot be scored, where it loads them.

    ``load`` and then ``score``; of a request for separate passes, ``load_reference`` and ``keep_states`` come before. Who comes
    late, in place of a process that died, loads once more what it needs, and takes the states from the disk.
    """

    _pair: ModelPair

    def __init__(self, request: Request, local_rank: int = 0):
        self._request, self._budget = request, Budget(request.options.batch_tokens)
        self._device = pick_device(request.options.device, local_rank)
        if self._device.type == "cpu":
            keep_freed_memory()
        self._first: ReferencePass | None = None
        self._facts: ModelInfo | None = None

    def load_reference(self) -> ReferenceInfo:
        """For the first of two passes."""
        if self._first is None:  # who asks again lost the answer
            self._first = _load_reference_pass(self._request, self._device)
        return self._first.facts

    def keep_states(self, store: Path, name: str, index: int, advance: Advance = lambda real, padded: None) -> tuple[int, int]:
        """Write the reference's states of one part of a store's tokens. Returns the tokens, without and with padding."""
        assert self._first is not None
        return self._first.write(store, name, index, advance)

    def load(self) -> ModelInfo:
        """Load what scores: both models or, after the reference's pass, the scored one in place of the reference's body."""
        if self._facts is None:
            if self._request.separate:
                self.load_reference()
            self._facts = self._load(self._first)
        return self._facts

    def _load(self, first: ReferencePass | None) -> ModelInfo:
        request, device = self._request, self._device
        if first is not None:
            first.release()
        tokenizer = load_tokenizer(request.model, request.options.trust_remote_code)
        vocabulary = first.vocabulary if first else tokenizer_size(tokenizer)
        loaded_reference = first.loaded if first else None
        self._pair = pair = load_pair(request, device, vocabulary, tokenizer_fingerprint(tokenizer), loaded_reference)
        head, notes = pair.check(probe_ids(tokenizer, tokenizer_size(tokenizer)), first.answer if first else None)
        if request.options.topk > pair.vocabulary:
            raise InputError(
                f"{argument('topk')} got {request.options.topk}; expected at most the vocabulary's {pair.vocabulary} tokens"
            )
        if first is not None:
            head[first.loaded.description.source] = "split, in a pass of its own"
            notes = [*first.notes, *notes]
        notes += [
            f"{source} is scored through its own full logits: slower, and in its own precision"
            for source, way in head.items()
            if way.startswith("whole")
        ]
        for note in notes:
            warnings.warn(note, TokenstatsWarning, stacklevel=2)
        return ModelInfo(
            request=request,
            model=pair.policy.description,
            reference=pair.reference.description if pair.reference else None,
            dtype=str(next(pair.policy.model.parameters()).dtype).removeprefix("torch."),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            reduction=reduction(device),
            vocabulary=pair.vocabulary,
            max_positions=pair.max_positions,
            head=head,
            notes=tuple(notes),
        )

    def score(
        self, store: Path, name: str, index: int, advance: Advance = lambda real, padded: None
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Statistics of one part of a store's tokens, and what its manifest adds up."""
        tokens, options = read_part(part_path(store / TOKENS, index)), self._request.options
        states, states_budget = self._first.read(store, name, index) if self._first else (None, options.batch_tokens)
        table, sums = score_part(tokens, self._pair, options.topk, options.score_all, self._budget, advance, states)
        return table, {**sums, "batch_tokens": min(self._budget.tokens, states_budget)}


def _load_reference_pass(request: Request, device: torch.device) -> ReferencePass:
    """Raises InputError where the reference is no other model, or its tokenizer is another."""
    assert request.reference is not None
    if request.reference == request.model:
        raise InputError(f"model and reference are the same weights, {request.model}, so every KL would be 0; {ADVICE}")
    tokenizer = load_tokenizer(request.model, request.options.trust_remote_code)
    check_same_tokenizer(request, tokenizer_fingerprint(tokenizer))
    size = tokenizer_size(tokenizer)
    return ReferencePass(request.reference, request.options, device, size, probe_ids(tokenizer, size))
