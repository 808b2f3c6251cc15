"""The models of a scoring: one, or one and its reference, checked to be worth comparing."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenstats.alignment import outputs_that_predict
from tokenstats.errors import InputError
from tokenstats.modeling.attention import even_attention
from tokenstats.modeling.head import SplitModel
from tokenstats.modeling.load import LoadedModel, is_adapter_of, load_model, load_with_base
from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint
from tokenstats.scoring.rows import row_statistics

_ADVICE = "take a policy that has moved: a warm-up checkpoint, another checkpoint, an adapter"


@dataclass
class ModelPair:
    """A scored model, perhaps a reference, and the vocabulary they share."""

    policy: LoadedModel
    reference: LoadedModel | None
    vocabulary: int
    device: torch.device

    def __post_init__(self) -> None:
        for loaded in self.loaded:
            columns = loaded.model.get_output_embeddings()
            width = getattr(columns, "out_features", self.vocabulary) if columns is not None else self.vocabulary
            if width < self.vocabulary:
                raise InputError(
                    f"{loaded.description.source} gives {width} logits a token, but its tokenizer has ids up to "
                    f"{self.vocabulary - 1}; expected a model whose vocabulary covers its tokenizer"
                )
        self.split = [SplitModel(loaded.model, within=loaded.within) for loaded in self.loaded]

    @property
    def loaded(self) -> list[LoadedModel]:
        return [self.policy] + ([self.reference] if self.reference else [])

    @property
    def depends_on_width(self) -> bool:
        """Do positions mean another thing in a longer batch? Then rows of unlike lengths cannot share one."""
        return any(_rope_types(m.model.config.get_text_config()) & {"dynamic", "longrope"} for m in self.loaded)

    @property
    def max_positions(self) -> int | None:
        configs = [m.model.config.get_text_config() for m in self.loaded]
        # dynamic scaling is there to go beyond the positions of pre-training
        known = [getattr(c, "max_position_embeddings", None) for c in configs if "dynamic" not in _rope_types(c)]
        return min((n for n in known if n), default=None)

    @torch.inference_mode()
    def check(self, input_ids: Tensor, reference_too: bool = True) -> dict[str, str]:
        """Try both models on [B, T] ids: refuse two that answer the same, and say how each one's head is run."""
        input_ids = input_ids.to(self.device)
        ways = {}
        trying = len(self.split) if reference_too else 1
        for loaded, split in list(zip(self.loaded, self.split, strict=True))[:trying]:
            _check_causal(loaded, input_ids)
            ways[loaded.description.source] = "split" if split.check(input_ids) else "whole: its own full logits"
        if trying == 2:
            first, second = (s.logits(s.hidden(input_ids).flatten(0, 1))[:, : self.vocabulary] for s in self.split)
            if torch.equal(first, second):
                raise InputError(f"model and reference give the same logits, so every KL would be 0; {_ADVICE}")
        return ways

    @torch.inference_mode()
    def score(self, input_ids: Tensor, chosen: Tensor, topk: int, reference_states: Tensor | None = None) -> dict[str, Tensor]:
        """Statistics of the chosen tokens of [B, T] right-padded ids, on the device, in the order of ``ids[chosen]``.

        reference_states: the reference's hidden states of the chosen tokens, where they are known already
        """
        # no attention mask: padding is on the right, where a causal model's earlier positions cannot see it
        running = self.split if reference_states is None else self.split[:1]
        rows = [self.states(split, input_ids, chosen) for split in running]
        if reference_states is not None:
            rows.append(reference_states)
        return row_statistics(self.split, rows, input_ids[chosen], self.vocabulary, topk)

    def states(self, split: SplitModel, input_ids: Tensor, chosen: Tensor) -> Tensor:
        """[n, H] of one of the models: what predicts the chosen tokens, whatever else is in the batch."""
        with even_attention(self.device):
            return outputs_that_predict(split.hidden(input_ids), chosen)


def _rope_types(config: Any) -> set[str]:
    """How positions are scaled; a configuration may say it once, or for each kind of layer."""
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(scaling, dict):
        return set()
    each = [scaling, *(s for s in scaling.values() if isinstance(s, dict))]
    return {str(s.get("rope_type", s.get("type"))) for s in each}


def _check_causal(loaded: LoadedModel, input_ids: Tensor) -> None:
    """Earlier logits must not move when only the last token changes: else every statistic would see its own answer."""
    changed = input_ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % input_ids.max().clamp_min(2)
    with loaded.within():
        one, other = (loaded.model(input_ids=ids, use_cache=False).logits[:, :-1].float() for ids in (input_ids, changed))
    if (one - other).abs().max() > 1e-2 * one.abs().max().clamp_min(1.0):
        raise InputError(
            f"{loaded.description.source} is not causal: its predictions look at later tokens; take a causal language model"
        )


def load_pair(
    model: str,
    reference: str | None,
    dtype: str,
    device: torch.device,
    vocabulary: int,
    tokenizer_id: str,
    attention: str | None = None,
    compiled: bool = False,
    loaded_reference: LoadedModel | None = None,
    trust_remote_code: bool = False,
) -> ModelPair:
    """Load and compare. An adapter and its own base share one set of weights.

    loaded_reference: the reference, where it is there already
    compiled: let torch.compile make one program of each decoder; minutes at the start, for hours that are shorter

    Raises InputError for other tokenizers, identical weights, or a model that lacks columns.
    """
    if reference is not None:
        other = tokenizer_fingerprint(load_tokenizer(reference, trust_remote_code))
        if other != tokenizer_id:
            raise InputError(
                f"{model} and {reference} have different tokenizers ({tokenizer_id[:8]}, {other[:8]}): their probabilities "
                "are over different words; take a reference with the same tokenizer"
            )
    second: LoadedModel | None = None
    if loaded_reference is not None:
        policy, second = load_model(model, dtype, device, attention, trust_remote_code), loaded_reference
    elif reference is not None and is_adapter_of(model, reference):
        policy, second = load_with_base(model, reference, dtype, device, attention, trust_remote_code)
    elif reference is not None and is_adapter_of(reference, model):
        second, policy = load_with_base(reference, model, dtype, device, attention, trust_remote_code)
    else:
        policy = load_model(model, dtype, device, attention, trust_remote_code)
        second = load_model(reference, dtype, device, attention, trust_remote_code) if reference is not None else None
    if second is not None and second.description.fingerprint == policy.description.fingerprint:
        raise InputError(f"{model} and {reference} have the same weights, so every KL would be 0; {_ADVICE}")
    pair = ModelPair(policy, second, vocabulary, device)
    if compiled:
        for loaded in pair.loaded if loaded_reference is None else [policy]:
            loaded.model.get_decoder().compile(dynamic=True)
    return pair
