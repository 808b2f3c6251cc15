"""The weighted loss: a weighted mean whatever the scale, blind to what weighs nothing, and DFT where the weight is prob."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loss_fixtures import VOCABULARY, assert_same_gradients, batch, gradients, split_of
from torch.nn.functional import cross_entropy
from training_fixtures import tiny_model

from tokenstats.training.loss import masked_loss
from tokenstats.training.rows import IGNORED

MODEL = tiny_model()
SPLIT = split_of(MODEL)
seeds = st.integers(0, 2**32 - 1)
quickly = settings(max_examples=15, deadline=None)


def weights_of(seed: int, shape: torch.Size) -> torch.Tensor:
    """From 0 to 3, a fifth of them 0."""
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(shape, generator=random) * (torch.rand(shape, generator=random) > 0.2)


def naive_loss(ids: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ w · −log p / Σ w from the whole logits, every token in the sum."""
    nll = cross_entropy(MODEL(input_ids=ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    counts = torch.where(labels != IGNORED, weights, 0.0)[:, 1:].flatten()
    return (counts * nll).sum() / counts.sum()


def total(labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return weights[labels != IGNORED].sum()


def test_by_hand() -> None:
    """Two words, always with logits 0 and ln 3, that is p = 1/4 and 3/4: −log p = ln 4 and ln 4/3."""
    logits = torch.tensor([1.0, 3.0]).log()
    split = SimpleNamespace(
        vocabulary=2, hidden=lambda ids, **_: torch.zeros(*ids.shape, 1), logits=lambda rows: logits.expand(len(rows), 2)
    )
    ids = torch.tensor([[0, 1, 0, 1, 0]])
    labels = torch.tensor([[IGNORED, 1, 0, 1, IGNORED]])
    weights = torch.tensor([[9.0, 0.5, 2.0, 0.0, 9.0]])  # the ends are not kept, whatever they weigh
    one_half_of_likely_and_two_of_unlikely = 0.5 * 0.28768207 + 2 * 1.38629436
    by_weights = masked_loss(split, ids, labels, 2.5, weights)  # type: ignore[arg-type]
    by_targets = masked_loss(split, ids, labels, 3, weights)  # type: ignore[arg-type]
    assert by_weights.item() == pytest.approx(one_half_of_likely_and_two_of_unlikely / 2.5, rel=1e-6)
    assert by_targets.item() == pytest.approx(one_half_of_likely_and_two_of_unlikely / 3, rel=1e-6)


@quickly
@given(seeds)
def test_it_is_what_the_naive_sum_gives(seed: int) -> None:
    ids, labels = batch(seed)
    weights = weights_of(seed, ids.shape)
    ours = masked_loss(SPLIT, ids, labels, total(labels, weights), weights, logits_at_once=5 * VOCABULARY)
    expected = naive_loss(ids, labels, weights)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(MODEL, ours), gradients(MODEL, expected))


@quickly
@given(seeds)
def test_weights_of_1_are_no_weights_bit_for_bit(seed: int) -> None:
    ids, labels = batch(seed)
    count = (labels != IGNORED).sum()
    weighted = masked_loss(SPLIT, ids, labels, total(labels, torch.ones(ids.shape)), torch.ones(ids.shape))
    plain = masked_loss(SPLIT, ids, labels, count)
    assert weighted.item() == plain.item()
    one, two = gradients(MODEL, weighted), gradients(MODEL, plain)
    assert all(torch.equal(one[name], two[name]) for name in two)


@quickly
@given(seeds, st.floats(1e-6, 1e6))
def test_scaling_all_weights_changes_nothing_under_their_sum(seed: int, scale: float) -> None:
    ids, labels = batch(seed)
    weights = weights_of(seed, ids.shape)
    found = [masked_loss(SPLIT, ids, labels, total(labels, w), w) for w in (weights, scale * weights)]
    assert found[0].item() == pytest.approx(found[1].item(), rel=1e-5)
    assert_same_gradients(*(gradients(MODEL, loss) for loss in found))


@quickly
@given(seeds, st.sampled_from([1, 2, 3, 6]))
def test_micro_batches_add_up_to_the_whole_batch(seed: int, size: int) -> None:
    ids, labels = batch(seed, rows=6)
    weights = weights_of(seed, ids.shape)
    weights[1] = 0  # a row whose weights are all 0
    divisor = total(labels, weights)
    whole = gradients(MODEL, masked_loss(SPLIT, ids, labels, divisor, weights))
    cuts = [slice(i, i + size) for i in range(0, 6, size)]
    parts = sum(masked_loss(SPLIT, ids[c], labels[c], divisor, weights[c]) for c in cuts)
    assert_same_gradients(gradients(MODEL, parts), whole)


@quickly
@given(seeds)
def test_what_a_token_of_weight_0_is_labelled_changes_no_gradient(seed: int) -> None:
    ids, labels = batch(seed)
    weights = weights_of(seed, ids.shape)
    other = torch.where((labels != IGNORED) & (weights == 0), (labels + 7) % VOCABULARY, labels)
    assume(not torch.equal(other, labels))  # a few seeds give no target a weight of 0
    one, two = (gradients(MODEL, masked_loss(SPLIT, ids, x, 9, weights)) for x in (labels, other))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_the_head_does_not_run_for_a_token_of_weight_0(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, labels = batch()
    weights = weights_of(0, ids.shape)
    seen: list[int] = []
    logits = SPLIT.logits
    monkeypatch.setattr(SPLIT, "logits", lambda rows: seen.append(len(rows)) or logits(rows))
    masked_loss(SPLIT, ids, labels, 1, weights)
    assert sum(seen) == int(((labels != IGNORED) & (weights > 0)).sum()) < int((labels != IGNORED).sum())


def test_weights_that_are_all_0_have_loss_0_and_zero_gradients_for_every_parameter() -> None:
    ids, labels = batch()
    loss = masked_loss(SPLIT, ids, labels, 5, torch.zeros(ids.shape))
    assert loss.item() == 0.0
    found = gradients(MODEL, loss)
    assert found.keys() == dict(MODEL.named_parameters()).keys()
    assert all((g == 0).all() for g in found.values())


@quickly
@given(seeds)
def test_weighed_by_its_own_probability_over_kept_tokens_it_is_dft(seed: int) -> None:
    """DFT (arXiv:2508.05629): p · −log p with no gradient through the first p, so its gradient is that of the mean of −p."""
    ids, labels = batch(seed)
    keep = labels != IGNORED
    probabilities = MODEL(input_ids=ids).logits[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    weights = torch.zeros(ids.shape)
    weights[:, 1:] = probabilities.detach()
    ours = gradients(MODEL, masked_loss(SPLIT, ids, labels, keep.sum(), weights))
    assert_same_gradients(ours, gradients(MODEL, -probabilities[keep[:, 1:]].mean()))
