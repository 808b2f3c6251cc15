"""The masked loss: what it is, what it does not depend on, and what it leaves alone."""

import numpy as np
import pytest
import torch
from loss_fixtures import VOCABULARY, assert_same_gradients, batch, gradients, split_of
from torch import nn
from training_fixtures import tiny_model
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from tokenstats.modeling.head import SplitModel
from tokenstats.training.loss import masked_loss, nll_per_row
from tokenstats.training.rows import IGNORED

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def gemma() -> nn.Module:
    torch.manual_seed(1)
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0, query_pre_attn_scalar=16))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)  # logits large enough for the cap to bend them
    return model


def granite() -> nn.Module:
    torch.manual_seed(2)
    settings = {k: v for k, v in SMALL.items() if k != "head_dim"}
    return GraniteForCausalLM(GraniteConfig(**settings, logits_scaling=0.5))


MODELS = {"qwen": tiny_model, "tied": lambda: tiny_model(tie_word_embeddings=True), "soft-capped": gemma, "scaled": granite}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_what_float64_arithmetic_on_the_models_own_logits_gives(name: str) -> None:
    model = MODELS[name]()
    ids, labels = batch()
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double().numpy()
    expected, count = 0.0, 0
    for row in range(ids.shape[0]):
        for t in range(1, ids.shape[1]):
            if labels[row, t] != IGNORED:
                z = logits[row, t - 1]
                expected += np.log(np.exp(z - z.max()).sum()) + z.max() - z[ids[row, t]]
                count += 1
    loss = masked_loss(split_of(model), ids, labels, count)
    assert loss.item() == pytest.approx(expected / count, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_transformers_own_loss(name: str) -> None:
    model = MODELS[name]()
    ids, labels = batch()
    count = (labels != IGNORED).sum()
    own = model(input_ids=ids, labels=labels).loss
    ours = masked_loss(split_of(model), ids, labels, count)
    assert ours.item() == pytest.approx(own.item(), rel=1e-6)
    assert_same_gradients(gradients(model, ours), gradients(model, own))


@pytest.mark.parametrize("rows_at_once", [1, 4, 7, 1000])
def test_the_block_size_changes_nothing_and_bounds_the_logits(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    split = split_of(model)
    ids, labels = batch()
    count = int((labels != IGNORED).sum())
    whole = gradients(model, masked_loss(split, ids, labels, count))
    seen: list[int] = []
    logits = SplitModel.logits

    def counting(self: SplitModel, rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return logits(self, rows)

    monkeypatch.setattr(SplitModel, "logits", counting)
    loss = masked_loss(split, ids, labels, count, logits_at_once=rows_at_once * VOCABULARY)
    assert sum(seen) == count, "the head ran for a token that is not kept"
    assert max(seen) <= rows_at_once
    assert_same_gradients(gradients(model, loss), whole)


def test_a_batch_with_nothing_kept_has_loss_0_and_zero_gradients_for_every_parameter() -> None:
    model = tiny_model()
    ids, labels = batch()
    loss = masked_loss(split_of(model), ids, torch.full_like(labels, IGNORED), 5)
    assert loss.item() == 0.0
    found = gradients(model, loss)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all((g == 0).all() for g in found.values())


def test_what_is_dropped_changes_no_gradient() -> None:
    """The last token is nobody's context: dropped, it must not matter at all which token it is."""
    model = tiny_model()
    split = split_of(model)
    ids, labels = batch(kept=1.0)
    labels[:, -1] = IGNORED
    count = int((labels != IGNORED).sum())
    before = gradients(model, masked_loss(split, ids, labels, count))
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 7) % VOCABULARY
    after = gradients(model, masked_loss(split, other, labels, count))
    assert all(torch.equal(before[name], after[name]) for name in before)
    labels[:, -1] = other[:, -1]  # kept, it does matter
    kept = gradients(model, masked_loss(split, other, labels, count))
    assert not torch.equal(before["lm_head.weight"], kept["lm_head.weight"])


def test_labels_of_dropped_tokens_change_no_gradient() -> None:
    """Against a loss that sees every label and weighs it by keep: whatever dropped tokens are labelled, the same gradients."""
    model = tiny_model()
    ids, labels = batch()
    keep = labels != IGNORED
    ours = gradients(model, masked_loss(split_of(model), ids, labels, keep.sum()))
    for seed in (1, 2):
        wrong = torch.where(keep, ids, batch(seed)[0])
        log_p = torch.log_softmax(model(input_ids=ids).logits, -1)[:, :-1]
        nll = -log_p.gather(-1, wrong[:, 1:, None]).squeeze(-1)
        assert_same_gradients(ours, gradients(model, (nll * keep[:, 1:]).sum() / keep.sum()))


def test_only_outputs_that_predict_kept_tokens_get_a_gradient() -> None:
    model = tiny_model()
    split = split_of(model)
    ids, labels = batch()
    hidden: list[torch.Tensor] = []
    inner = split.hidden
    split.hidden = lambda *args, **kwargs: hidden.append(inner(*args, **kwargs)) or hidden[0]  # type: ignore[method-assign]
    loss = masked_loss(split, ids, labels, 1)
    (grad,) = torch.autograd.grad(loss, hidden[0])
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED
    assert torch.equal(grad.abs().sum(-1) > 0, predicts)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    model = tiny_model()
    split = split_of(model)
    ids, labels = batch(rows=8)
    labels[2] = IGNORED
    count = int((labels != IGNORED).sum())
    whole = gradients(model, masked_loss(split, ids, labels, count))
    for size in (1, 2, 4):
        parts = sum(masked_loss(split, ids[i : i + size], labels[i : i + size], count) for i in range(0, 8, size))
        assert_same_gradients(gradients(model, parts), whole)


def test_padding_changes_nothing() -> None:
    model = tiny_model()
    split = split_of(model)
    ids, labels = batch()
    pad = nn.functional.pad
    plain = gradients(model, masked_loss(split, ids, labels, 9))
    assert_same_gradients(gradients(model, masked_loss(split, pad(ids, (0, 6)), pad(labels, (0, 6), value=IGNORED), 9)), plain)


def test_a_model_that_cannot_be_split_trains_the_same_through_its_whole_logits() -> None:
    model = tiny_model()
    split = split_of(model)
    ids, labels = batch()
    halves = masked_loss(split, ids, labels, 9)
    split.is_split = False
    whole = masked_loss(split, ids, labels, 9)
    assert whole.item() == pytest.approx(halves.item(), rel=1e-6)
    assert_same_gradients(gradients(model, whole), gradients(model, halves))


def test_an_architecture_whose_logits_are_finished_in_an_unknown_way_is_trained_through_its_whole_logits() -> None:
    class Shifting(type(tiny_model())):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> object:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits + torch.arange(VOCABULARY) / 50
            return out

    model = tiny_model()
    model.__class__ = Shifting
    ids, labels = batch()
    split = SplitModel(model.eval(), float32_head=False)
    split.check(ids)
    assert not split.is_split
    own = model(input_ids=ids, labels=None).logits
    expected = nn.functional.cross_entropy(own[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    assert masked_loss(split, ids, labels, (labels != IGNORED).sum()).item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_adapter_on_the_output_matrix_is_trained() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(), config).eval()
    ids, labels = batch()
    own = model(input_ids=ids, labels=labels).loss
    ours = masked_loss(split_of(model), ids, labels, (labels != IGNORED).sum(), logits_at_once=5 * VOCABULARY)
    found = gradients(model, ours)
    assert any("lm_head" in name for name in found)
    assert all("lora" in name for name in found)
    assert_same_gradients(found, gradients(model, own))


def test_under_autocast_float32_weights_get_float32_gradients_close_to_the_exact_ones() -> None:
    model = tiny_model()
    split = split_of(model)
    ids, labels = batch()
    exact_loss = masked_loss(split, ids, labels, 9)
    exact = gradients(model, exact_loss)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_loss(split, ids, labels, 9, logits_at_once=5 * VOCABULARY)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact_loss.item(), rel=1e-2)
    found = gradients(model, loss)
    assert {g.dtype for g in found.values()} == {torch.float32}
    cosine = nn.functional.cosine_similarity(*(torch.cat([g[n].flatten() for n in exact]) for g in (found, exact)), dim=0)
    assert 0.99 < cosine < 0.999999, "bfloat16 should be near the exact gradient, and not be it"


def test_sums_per_row_are_those_of_the_kept_tokens() -> None:
    split = split_of(tiny_model())
    ids, labels = batch(rows=4)
    labels[1] = IGNORED
    sums, counts = nll_per_row(split, ids, labels, logits_at_once=3 * VOCABULARY)
    assert counts.tolist() == (labels != IGNORED).sum(1).tolist()
    for row in range(4):
        assert sums[row].item() == pytest.approx(
            masked_loss(split, ids[row : row + 1], labels[row : row + 1], 1).item(), rel=1e-6
        )
