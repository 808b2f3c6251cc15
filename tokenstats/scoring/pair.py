"""The models of a scoring: one, or one and its reference, checked to be worth comparing."""

from dataclasses import dataclass
from enum import Enum
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from tokenstats.alignment import outputs_that_predict
from tokenstats.errors import InputError
from tokenstats.modeling.head import SplitModel
from tokenstats.modeling.load import LoadedModel, is_adapter_of, load_model, load_with_base, same_weights
from tokenstats.modeling.positions import combine, max_positions, trained_positions, width_classes
from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint
from tokenstats.scoring.model_checks import changed_words, check_causal, check_runs, moved_by_neighbours, noise, repeats
from tokenstats.scoring.rows import row_statistics

ADVICE = "take a policy that has moved: a warm-up checkpoint, another checkpoint, an adapter"


class Sharing(Enum):
    """Which rows may share a forward pass without changing each other's numbers."""

    ANY = "rows of any lengths"
    ALIKE = "rows of one length"
    NONE = "no two rows"


@dataclass
class ModelPair:
    """A scored model, perhaps a reference, and the vocabulary they share."""

    policy: LoadedModel
    reference: LoadedModel | None
    vocabulary: int
    device: torch.device
    sharing: Sharing = Sharing.ANY

    def __post_init__(self) -> None:
        self.split = [SplitModel(loaded.model, within=loaded.within) for loaded in self.loaded]

    @property
    def loaded(self) -> list[LoadedModel]:
        return [self.policy] + ([self.reference] if self.reference else [])

    @property
    def words(self) -> int:
        """Ids that both models can read: rows of their input embeddings, or the vocabulary where one has no such table."""
        tables = [m.model.get_input_embeddings() for m in self.loaded]
        return min(getattr(table, "num_embeddings", self.vocabulary) for table in tables)

    @property
    def max_positions(self) -> int | None:
        known = [max_positions(m.model) for m in self.loaded]
        return min((n for n in known if n), default=None)

    def classes(self, lengths: np.ndarray) -> np.ndarray:
        """[R] a number for each row of these lengths; only rows of the same number may share a batch."""
        if self.sharing is Sharing.NONE:
            return np.arange(len(lengths))
        if self.sharing is Sharing.ALIKE:
            return lengths
        each = (width_classes(m.model.config.get_text_config(), lengths) for m in self.loaded)
        return reduce(combine, each)

    @torch.inference_mode()
    def check(self, input_ids: Tensor, reference_too: bool = True) -> tuple[dict[str, str], list[str]]:
        """Try both models on [B, T] ids: how each one's head is run, and what a user should know of their numbers.

        Raises InputError for a model that cannot be scored, and for two that answer the same. Finds the columns that both
        give, and which rows may share a batch.
        """
        input_ids = input_ids.to(self.device)
        for loaded in self.loaded:  # twice the probe must be within what each was trained on
            input_ids = input_ids[:, : max(2, trained_positions(loaded.model) // 2)]
        trying = list(zip(self.loaded, self.split, strict=True))[: 2 if reference_too else 1]
        ways: dict[str, str] = {}
        notes: list[str] = []
        answers: list[Tensor] = []
        for loaded, split in trying:
            answer = self._check_one(loaded, split, input_ids, notes)
            ways[loaded.description.source] = "split" if split.is_split else "whole: its own full logits"
            answers.append(answer)
        for (loaded, _), answer in zip(trying, answers, strict=True):
            if answer.shape[-1] < self.vocabulary:
                notes.append(
                    f"{loaded.description.source} gives {answer.shape[-1]:,} logits a token, its tokenizer has "
                    f"{self.vocabulary:,} ids: statistics are over the first {answer.shape[-1]:,}; none of the others may occur"
                )
                self.vocabulary = answer.shape[-1]
        if len(trying) == 2:
            self._check_different(input_ids, notes)
        return ways, notes

    def _check_one(self, loaded: LoadedModel, split: SplitModel, input_ids: Tensor, notes: list[str]) -> Tensor:
        source = loaded.description.source

        def ask(ids: Tensor) -> Tensor:
            with loaded.within():
                return loaded.model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]

        logits = check_runs(ask, input_ids, f"{source}{_adapter_of(loaded)}")
        allowed = noise(logits)
        if (moved := repeats(ask, logits, input_ids)) > allowed:
            notes.append(
                f"{source} gives other logits when it is asked the same again, by up to {moved:.2g}: its numbers hold for this "
                "run only"
            )
            allowed = max(allowed, 3 * moved)
        else:
            check_causal(ask, logits, input_ids, source)
        beside_longer, beside_alike = moved_by_neighbours(ask, logits, input_ids)
        if beside_alike > allowed:
            self.sharing = Sharing.NONE
            notes.append(
                f"{source} answers otherwise for a row beside others, by up to {beside_alike:.2g} (quantised activations do): "
                "every row is scored alone, which is slower"
            )
        elif beside_longer > allowed and self.sharing is Sharing.ANY:
            self.sharing = Sharing.ALIKE
            notes.append(
                f"{source} answers otherwise for a row that is padded, by up to {beside_longer:.2g}: only rows of one length "
                "share a batch, which is slower"
            )
        split.check(input_ids)
        return logits

    def _check_different(self, input_ids: Tensor, notes: list[str]) -> None:
        """Refuse two models that answer the same: every KL would be 0."""
        if not self._same_logits(input_ids):
            return
        policy, reference = self.loaded
        words = changed_words(policy, reference, self.vocabulary)
        if words and not self._same_logits(torch.tensor([[*words, *words]], device=self.device)):
            return
        shared = policy.model is reference.model or any(hasattr(m.model, "peft_config") for m in self.loaded)
        if shared or same_weights(policy.model, reference.model):
            raise InputError(f"model and reference give the same logits, so every KL would be 0; {ADVICE}")
        notes.append("model and reference give the same logits on a probe, though their weights differ: is KL what you want?")

    def _same_logits(self, input_ids: Tensor) -> bool:
        one, other = (s.logits(s.hidden(input_ids).flatten(0, 1))[:, : self.vocabulary] for s in self.split)
        return torch.equal(one, other)

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
        return outputs_that_predict(split.hidden(input_ids), chosen)


def _adapter_of(loaded: LoadedModel) -> str:
    kinds = [c.peft_type.value for c in getattr(loaded.model, "peft_config", {}).values()]
    return f" (an adapter of kind {', '.join(kinds)})" if kinds else ""


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
        raise InputError(f"{model} and {reference} have the same weights, so every KL would be 0; {ADVICE}")
    pair = ModelPair(policy, second, vocabulary, device)
    if compiled:
        for loaded in pair.loaded if loaded_reference is None else [policy]:
            loaded.model.get_decoder().compile(dynamic=True)
    return pair
