"""The models of a scoring: one, or one and its reference, checked to be worth comparing."""

from dataclasses import dataclass
from enum import Enum
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from tokenstats.alignment import outputs_that_predict
from tokenstats.errors import InputError, argument, one_line
from tokenstats.modeling.head import SplitModel
from tokenstats.modeling.load import LoadedModel, is_adapter_of, load_model, load_with_base
from tokenstats.modeling.positions import combine, max_positions, trained_positions, width_classes
from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint
from tokenstats.scoring.model_checks import (
    asking,
    changed_words,
    check_causal,
    logit_gap,
    moved_by_neighbours,
    noise,
    word_digests,
)
from tokenstats.scoring.options import SEPARATE, Request
from tokenstats.scoring.reductions.rows import row_statistics

ADVICE = "take a policy that has moved: a warm-up checkpoint, another checkpoint, an adapter"


_SHORT = 16  # tokens of a probe where memory ran out over a longer one


@dataclass(frozen=True)
class ReferenceAnswer:
    """What is kept of a reference whose pass came before: its logits [T, V] on the probe, and its words' digests."""

    logits: Tensor
    words: Tensor


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
        """The scored model, and its reference where there is one."""
        return [self.policy] + ([self.reference] if self.reference else [])

    @property
    def words(self) -> int:
        """Ids that both models can read: rows of their input embeddings, or the vocabulary where one has no such table."""
        tables = [m.model.get_input_embeddings() for m in self.loaded]
        return min(getattr(table, "num_embeddings", self.vocabulary) for table in tables)

    @property
    def max_positions(self) -> int | None:
        """Tokens that both models read at most; None: neither says."""
        known = [max_positions(m.model) for m in self.loaded]
        return min((n for n in known if n), default=None)

    def classes(self, lengths: np.ndarray) -> np.ndarray:
        """[R] a number for each row of these lengths; only rows of the same number may share a batch."""
        if self.sharing is Sharing.NONE:
            return np.arange(len(lengths))
        if self.sharing is Sharing.ALIKE:
            return lengths
        each = (width_classes(m.model, lengths) for m in self.loaded)
        return reduce(combine, each)

    @torch.inference_mode()
    def check(self, input_ids: Tensor, answered: ReferenceAnswer | None = None) -> tuple[dict[str, str], list[str]]:
        """Try both models on [1, T] ids: how each one's head is run, and what a user should know of their numbers.

        Raises InputError for a model that cannot be scored, and for two that answer the same. Finds the columns that both
        give, and which rows may share a batch.

        Args:
            input_ids: [1, T].
            answered: The reference's answer to these ids, where its pass came before; it is not run then.
        """
        input_ids = self._within_training(input_ids.to(self.device))
        trying = list(zip(self.loaded, self.split, strict=True))[: 2 if answered is None else 1]
        ways: dict[str, str] = {}
        notes: list[str] = []
        for loaded, split in trying:
            source = loaded.description.source
            columns = self._check_one(loaded, split, input_ids, notes)
            ways[source] = "split" if split.is_split else "whole: its own full logits"
            if columns < self.vocabulary:
                notes.append(
                    f"{source} gives {columns:,} logits a token, its tokenizer has {self.vocabulary:,} ids: statistics are "
                    f"over the first {columns:,}; none of the others may occur"
                )
                self.vocabulary = columns
        if self.reference is not None:
            self._check_different(input_ids, answered, notes)
        return ways, notes

    def _within_training(self, input_ids: Tensor) -> Tensor:
        """Three fifths of what each model was trained on: beyond all of it positions may mean something else."""
        return input_ids[:, : max(2, self._trained_positions * 3 // 5)]

    @property
    def _trained_positions(self) -> int:
        return min(trained_positions(loaded.model) for loaded in self.loaded)

    def _check_one(self, loaded: LoadedModel, split: SplitModel, input_ids: Tensor, notes: list[str]) -> int:
        """The columns of the model's logits."""
        try:
            logits = self._try(loaded, input_ids, notes)
            split.check(input_ids)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            input_ids = input_ids[:, :_SHORT]
            try:
                logits = self._try(loaded, input_ids, notes)
                split.check(input_ids)
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"memory ran out over {2 * input_ids.shape[1]} tokens of {loaded.description.source} "
                    f"({one_line(error, 100)}); take {argument('reference_pass', SEPARATE)}, {argument('dtype', 'bfloat16')}, "
                    "or a device with more memory"
                ) from None
        return logits.shape[-1]

    def _try(self, loaded: LoadedModel, input_ids: Tensor, notes: list[str]) -> Tensor:
        source, ask = loaded.description.source, asking(loaded)
        logits = ask(input_ids)
        between_widths, same_shape = noise(loaded, logits)
        if (moved := logit_gap(ask(input_ids), logits)) > same_shape:
            notes.append(
                f"{source} gives other logits when it is asked the same again, by up to {moved:.2g}: its numbers hold for this "
                "run only"
            )
            return logits
        check_causal(ask, logits, input_ids, same_shape, source)
        by_padding, by_another = moved_by_neighbours(ask, logits, input_ids, self._trained_positions * 9 // 10)
        if by_another > same_shape:
            self.sharing = Sharing.NONE
            notes.append(
                f"{source} answers otherwise for a row beside others, by up to {by_another:.2g}: every row is scored alone, "
                "which is slower"
            )
        elif by_padding > between_widths and self.sharing is Sharing.ANY:
            self.sharing = Sharing.ALIKE
            notes.append(
                f"{source} answers otherwise for a row that is padded, by up to {by_padding:.2g}: only rows of one length "
                "share a batch, which is slower"
            )
        return logits

    def _check_different(self, input_ids: Tensor, answered: ReferenceAnswer | None, notes: list[str]) -> None:
        """Refuse two models that answer the same: every KL would be 0."""
        policy, reference = self.loaded
        own = self.probe_logits(self.split[0], input_ids)
        other = self.probe_logits(self.split[1], input_ids) if answered is None else answered.logits
        if not torch.equal(own, other[: len(own), : self.vocabulary].to(own.device)):
            return
        most = min(self.words, self.vocabulary)
        its_words = word_digests(reference, most) if answered is None else answered.words
        words = changed_words(word_digests(policy, most), its_words)
        if words and (answered is not None or self._answer_otherwise(words)):
            return
        if policy.weights == reference.weights or any(hasattr(m.model, "peft_config") for m in self.loaded):
            raise InputError(f"model and reference give the same logits, so every KL would be 0; {ADVICE}")
        notes.append("model and reference give the same logits on a probe, though their weights differ: is KL what you want?")

    def _answer_otherwise(self, words: list[int]) -> bool:
        """Do the models differ on a text of these words?"""
        probe = self._within_training(torch.tensor([[*words, *words]], device=self.device))
        return not torch.equal(*(self.probe_logits(split, probe) for split in self.split))

    @torch.inference_mode()
    def probe_logits(self, split: SplitModel, input_ids: Tensor) -> Tensor:
        """[T, V] of one of the models on [1, T] ids."""
        return split.logits(split.hidden(self._within_training(input_ids)).flatten(0, 1))[:, : self.vocabulary]

    @torch.inference_mode()
    def score(self, input_ids: Tensor, chosen: Tensor, topk: int, reference_states: Tensor | None = None) -> dict[str, Tensor]:
        """Statistics of the chosen tokens of [B, T] right-padded ids, on the device, in the order of ``ids[chosen]``.

        Args:
            input_ids: [B, T].
            chosen: Boolean [B, T], indexed by predicted token.
            topk: How many of the likeliest ids to tell.
            reference_states: The reference's hidden states of the chosen tokens, where they are known already.
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


def load_pair(
    request: Request, device: torch.device, vocabulary: int, tokenizer_id: str, loaded_reference: LoadedModel | None = None
) -> ModelPair:
    """Load and compare. An adapter and its own base share one set of weights.

    Args:
        request: The models, and how they are loaded.
        device: Where they go.
        vocabulary: Ids of the scored model's tokenizer.
        tokenizer_id: Its fingerprint.
        loaded_reference: The reference, where it is there already.

    Raises:
        InputError: Other tokenizers, or identical weights.
    """
    check_same_tokenizer(request, tokenizer_id)
    policy, second = _load_models(request, device, loaded_reference)
    if second is not None and second.description.fingerprint == policy.description.fingerprint:
        raise InputError(f"{request.model} and {request.reference} have the same weights, so every KL would be 0; {ADVICE}")
    pair = ModelPair(policy, second, vocabulary, device)
    if request.options.compiled:
        for loaded in pair.loaded if loaded_reference is None else [policy]:
            loaded.model.get_decoder().compile(dynamic=True)
    return pair


def _load_models(request: Request, device: torch.device, second: LoadedModel | None) -> tuple[LoadedModel, LoadedModel | None]:
    """The scored model, and the reference where there is one; ``second``: the reference, where it is there already."""
    model, reference, options = request.model, request.reference, request.options
    how = options.dtype, device, options.attention, options.trust_remote_code
    if second is None and reference is not None:
        if is_adapter_of(model, reference):
            return load_with_base(model, reference, *how)
        if is_adapter_of(reference, model):
            second, policy = load_with_base(reference, model, *how)
            return policy, second
    policy = load_model(model, *how)
    return policy, load_model(reference, *how) if second is None and reference is not None else second


def check_same_tokenizer(request: Request, tokenizer_id: str) -> None:
    """Raise InputError where the reference's ids mean other words than those of the tokenizer with this fingerprint."""
    if request.reference is None:
        return
    other = tokenizer_fingerprint(load_tokenizer(request.reference, request.options.trust_remote_code))
    if other != tokenizer_id:
        raise InputError(
            f"{request.model} and {request.reference} have different tokenizers ({tokenizer_id[:8]}, {other[:8]}): their "
            "probabilities are over different words; take a reference with the same tokenizer"
        )
