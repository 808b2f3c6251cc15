"""A scorer: models that are loaded, checked and ready to score parts, in this process or in one of a cluster."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tokenstats.errors import InputError
from tokenstats.modeling.load import pick_device
from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint, tokenizer_size
from tokenstats.schema import SCHEMA_VERSION
from tokenstats.scoring.pair import load_pair
from tokenstats.scoring.part import Budget, score_part
from tokenstats.scoring.reference_pass import ReferencePass
from tokenstats.scoring.rows import reduction
from tokenstats.store.manifests import Model
from tokenstats.store.parts import part_path, read_part
from tokenstats.store.store import TOKENS


@dataclass(frozen=True)
class Request:
    """What is scored with what. Goes from process to process."""

    model: str
    reference: str | None
    dtype: str
    device: str
    attention: str | None
    compiled: bool
    topk: int
    score_all: bool
    batch_tokens: int
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Facts:
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

    def settings(self, tokens: Mapping[str, Any]) -> dict[str, Any]:
        """What the parts depend on; ``tokens``: the settings of the parts of tokens."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tokens": hashlib.blake2b(json.dumps(tokens, sort_keys=True).encode(), digest_size=16).hexdigest(),
            "model": self.model.fingerprint,
            "reference": self.reference.fingerprint if self.reference else None,
            "dtype": self.dtype,
            "vocabulary": self.vocabulary,
            "topk": self.request.topk,
            "score_all": self.request.score_all,
        }


class Scorer:
    """Loads the models of a request. Raises InputError for what cannot be scored, before anything is written."""

    def __init__(self, request: Request, local_rank: int = 0, reference: ReferencePass | None = None):
        """reference: its pass, where that came before; the reference is not loaded again then."""
        device = pick_device(request.device, local_rank)
        tokenizer = load_tokenizer(request.model, request.trust_remote_code)
        self._request, self._budget, self._reference = request, Budget(request.batch_tokens), reference
        self._pair = load_pair(
            request.model,
            request.reference,
            request.dtype,
            device,
            tokenizer_size(tokenizer),
            tokenizer_fingerprint(tokenizer),
            attention=request.attention,
            compiled=request.compiled,
            loaded_reference=reference.loaded if reference else None,
            trust_remote_code=request.trust_remote_code,
        )
        if request.topk > self._pair.vocabulary:
            raise InputError(f"--topk got {request.topk}; expected at most the vocabulary's {self._pair.vocabulary} tokens")
        head = self._pair.check(probe_of(tokenizer), reference_too=reference is None)
        if reference is not None:
            head[reference.loaded.description.source] = "split, in a pass of its own"
        for source, way in head.items():
            if way.startswith("whole"):
                print(
                    f"warning: {source} is scored through its own full logits: slower, and in its own precision",
                    file=sys.stderr,
                )
        self.facts = Facts(
            request=request,
            model=self._pair.policy.description,
            reference=self._pair.reference.description if self._pair.reference else None,
            dtype=str(next(self._pair.policy.model.parameters()).dtype).removeprefix("torch."),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            reduction=reduction(device),
            vocabulary=self._pair.vocabulary,
            max_positions=self._pair.max_positions,
            head=head,
        )

    def score(
        self, store: Path, name: str, index: int, advance: Callable[[int, int], None] = lambda real, padded: None
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Statistics of one part of a store's tokens, and what its manifest adds up."""
        tokens = read_part(part_path(store / TOKENS, index))
        states = self._reference.read(store, name, index) if self._reference else None
        request = self._request
        table, sums = score_part(tokens, self._pair, request.topk, request.score_all, self._budget, advance, states)
        return table, {**sums, "batch_tokens": self._budget.tokens}


def probe_of(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """[1, T] ids to try models on."""
    words = "".join(tokenizer.get_vocab())[:400]
    return tokenizer(words, add_special_tokens=False, return_tensors="pt")["input_ids"][:, :32]


def load_reference_pass(request: Request, local_rank: int) -> ReferencePass:
    """The first of two passes. Raises InputError where there is no reference, or its tokenizer is another."""
    if request.reference is None:
        raise InputError("reference_pass separate got no reference; expected --reference")
    tokenizer = load_tokenizer(request.model, request.trust_remote_code)
    if tokenizer_fingerprint(load_tokenizer(request.reference, request.trust_remote_code)) != tokenizer_fingerprint(tokenizer):
        raise InputError(
            f"{request.model} and {request.reference} have different tokenizers; take a reference with the same one"
        )
    return ReferencePass(
        request.reference,
        request.dtype,
        pick_device(request.device, local_rank),
        request.attention,
        tokenizer_size(tokenizer),
        probe_of(tokenizer),
        request.batch_tokens,
        request.trust_remote_code,
    )
