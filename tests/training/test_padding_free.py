"""How an optimizer batch is cut changes nothing: by lengths, by tokens, or in one row without padding where a model keeps
sequences apart. Where it does not, that is found out and refused.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_fixtures import (
    QUICK,
    byte_tokenizer,
    every_third_dropped,
    largest_difference,
    losses,
    nll_of,
    sequences,
    tiny_model,
    uneven,
)
from transformers import TrainerState

from pipelines import tiny_models
from tokenstats.errors import InputError
from tokenstats.modeling.head import SplitModel
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train
from tokenstats.training.batching import BatchPlan
from tokenstats.training.callbacks import Flow
from tokenstats.training.data import collate
from tokenstats.training.isolation import check_isolation

APART = ("qwen3", "mistral", "gemma2", "gpt2", "llama4_text")
"""Full attention; a sliding window of 24 tokens; both, with soft-capping; learned positions; chunks and experts."""
MIXING = ("bloom", "mamba")
"""No positions to tell sequences by; a state that runs on."""

BY_TOKENS = TrainOptions(**{**vars(QUICK), "batch_size": TrainOptions.batch_size, "batch_tokens": 300, "accumulation": 2})

SEQUENCES = [np.random.default_rng(n).integers(3, 260, n).astype(np.int32) for n in (60, 2, 41)]


def saved(kind: str, folder: Path) -> str:
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if kind == "gpt2" else {}
    tiny_models.tiny_model(kind, **no_dropout).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def in_the_order_of_rows(self: BatchPlan, lengths: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """Three rows at a time, as they come."""
    return np.array_split(np.arange(len(lengths)), -(-len(lengths) // 3))


@pytest.mark.filterwarnings("ignore:.*is falling back")
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.thorough] if kind in ("mistral", "bloom") else []) for kind in (*APART, *MIXING)],
)
def test_a_run_by_lengths_and_a_run_without_padding_follow_the_padded_one(
    store: Store, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = saved(kind, tmp_path / "model")
    by_rows = replace(QUICK, max_steps=8, batch_size=8)
    for title, chosen in (("rows", by_rows), ("tokens", replace(BY_TOKENS, max_steps=8))):
        with monkeypatch.context() as patch:
            patch.setattr(BatchPlan, "arrange", in_the_order_of_rows)
            train(store, model=name, mask="some", out=tmp_path / title / "plain", options=chosen)
        train(store, model=name, mask="some", out=tmp_path / title / "alike", options=chosen)
        assert losses(tmp_path / title / "alike") == pytest.approx(losses(tmp_path / title / "plain"), rel=1e-5)
        if kind in MIXING:
            with pytest.raises(InputError, match="cannot be trained with padding_free: what is predicted in one sequence"):
                train(store, model=name, mask="some", out=tmp_path / "no", options=replace(chosen, padding_free=True))
            assert not (tmp_path / "no").exists()
        else:
            train(store, model=name, mask="some", out=tmp_path / title / "free", options=replace(chosen, padding_free=True))
            assert losses(tmp_path / title / "free") == pytest.approx(losses(tmp_path / title / "plain"), rel=1e-5)


def test_rows_that_a_model_reads_with_other_frequencies_are_read_as_if_they_were_alone(store: Store, tmp_path: Path) -> None:
    """longrope has one set of frequencies for batches up to its first length, another for longer ones: here in the middle."""
    middle = int(np.median([len(ids) for ids, _ in sequences(store)]))
    scaling = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": middle}
    factors = {"short_factor": [1.0] * 8, "long_factor": [9.0] * 8}
    model = tiny_models.tiny_model("phi3", rope_parameters={**scaling, **factors}, original_max_position_embeddings=middle)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    for size in (1, 8):
        options = replace(QUICK, max_steps=4, batch_size=size, accumulation=8 // size)
        train(store, model=str(tmp_path / "model"), mask="some", out=tmp_path / str(size), options=options)
    assert losses(tmp_path / "8") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


@pytest.mark.parametrize("padding_free", [False, True])
def test_one_step_by_tokens_has_the_loss_that_the_models_own_logits_give(
    store: Store, model: str, tmp_path: Path, padding_free: bool
) -> None:
    """Weighted, and all rows in one optimizer batch of several forward passes; one row and its mask at a time beside it."""
    options = replace(BY_TOKENS, max_steps=1, accumulation=20, padding_free=padding_free)
    summary = train(store, model=model, mask="uneven", out=tmp_path / "out", options=options)
    total, weight = nll_of(store, model, lambda row, flags: flags * every_third_dropped(row, flags) * uneven(row, flags))
    assert summary.steps == 1
    assert summary.loss == pytest.approx(total / weight, rel=1e-6)


@pytest.mark.parametrize("padding_free", [False, True])
def test_a_resumed_run_by_tokens_ends_where_an_undisturbed_one_does(
    store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, padding_free: bool
) -> None:
    options = replace(BY_TOKENS, max_steps=9, save_steps=4, padding_free=padding_free, eval_share=0.1)
    train(store, model=model, mask="some", out=tmp_path / "whole", options=options)

    def stop(self: Flow, args: object, state: TrainerState, control: object, **_: object) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Flow, "on_step_begin", stop)
        with pytest.raises(KeyboardInterrupt):
            train(store, model=model, mask="some", out=tmp_path / "killed", options=options)
    train(store, model=model, mask="some", out=tmp_path / "killed", options=options, resume=True)
    assert largest_difference(tmp_path / "whole", tmp_path / "killed") == 0.0


def test_an_evaluation_does_not_depend_on_how_batches_are_sized(store: Store, model: str, tmp_path: Path) -> None:
    found = [
        train(store, model=model, mask="some", out=tmp_path / str(i), options=replace(options, max_steps=1, eval_share=0.3))
        for i, options in enumerate((QUICK, BY_TOKENS, replace(BY_TOKENS, padding_free=True)))
    ]
    assert found[1].eval_loss_before == pytest.approx(found[0].eval_loss_before, rel=1e-6)
    assert found[2].eval_loss_before == pytest.approx(found[0].eval_loss_before, rel=1e-6)


def test_a_compiled_decoder_trains_the_same(store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for a real run, but not turned into machine code: that takes a minute and tests torch."""
    compiled, real = [], nn.Module.compile

    def trace(self: nn.Module, **options: object) -> None:
        compiled.append(type(self).__name__)
        real(self, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", trace)
    options = replace(BY_TOKENS, max_steps=4, padding_free=True)
    train(store, model=model, mask="some", out=tmp_path / "plain", options=options)
    assert compiled == []
    train(store, model=model, mask="some", out=tmp_path / "traced", options=replace(options, compiled=True))
    assert compiled == ["Qwen3Model"]
    assert losses(tmp_path / "traced") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert largest_difference(tmp_path / "traced", tmp_path / "plain") < 2e-6


def test_states_of_a_row_of_rows_are_those_of_each_row_alone_and_zero_for_padding() -> None:
    split = SplitModel(tiny_model().eval(), float32_head=False)
    split.padding_free = True
    examples = [{"input_ids": ids} for ids in [*SEQUENCES, SEQUENCES[0][:1]]]
    lengths = torch.tensor([[60], [2], [41], [0]])  # the last instead of a row: one token, of no row
    read: list[tuple[int, ...]] = []
    split.model.get_input_embeddings().register_forward_hook(lambda _, __, output: read.append(tuple(output.shape)))
    with torch.no_grad():
        states = split.hidden(collate(examples)["input_ids"], lengths=lengths)
        assert read == [(1, 60 + 2 + 41 + 1, 32)]
        split.padding_free = False
        for row, ids in enumerate(SEQUENCES):
            alone = split.hidden(torch.from_numpy(ids).long()[None])[0]
            assert torch.allclose(states[row, : len(ids)], alone, atol=1e-6)
            assert not states[row, len(ids) :].any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_that_keeps_sequences_apart_passes(attention: str, autocast: bool) -> None:
    for kind in APART:
        if (kind, attention) != ("gemma2", "sdpa"):  # which it does not have
            model = tiny_models.tiny_model(kind)
            model.set_attn_implementation(attention)
            check_isolation(SplitModel(model, float32_head=False), SEQUENCES, kind, autocast)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_that_reads_a_sequence_as_if_it_began_later_is_refused(autocast: bool) -> None:
    """Its mask keeps sequences apart, and its positions run on."""
    model = tiny_models.tiny_model("gpt2")
    model.transformer.wpe.register_forward_pre_hook(lambda _, args: (torch.arange(args[0].shape[1])[None],))
    with pytest.raises(InputError, match=r"read otherwise than in a row of its own: gradients differ by \d"):
        check_isolation(SplitModel(model, float32_head=False), SEQUENCES, "m", autocast)


def test_a_single_token_that_is_seen_from_another_sequence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token of the first sequence, by the first of the second, in one of two layers: as a convolution would do it."""
    model = tiny_model().eval()
    boundary = len(SEQUENCES[0])

    def look_back(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        if output.shape[1] <= boundary:
            return output
        shifted = torch.zeros_like(output)
        shifted[:, boundary] = 1e-6 * output[:, boundary - 1]
        return output + shifted

    check_isolation(SplitModel(model, float32_head=False), SEQUENCES, "m", False)
    model.model.layers[0].mlp.register_forward_hook(look_back)
    with pytest.raises(InputError, match="depends on the others of its row"):
        check_isolation(SplitModel(model, float32_head=False), SEQUENCES, "m", False)


def test_an_attention_that_transformers_does_not_know_is_a_users_mistake(store: Store, model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no causal language model can be loaded from"):
        train(store, model=model, mask="some", out=tmp_path / "out", options=replace(QUICK, attention="flesh_attention"))
    assert list(tmp_path.iterdir()) == []
