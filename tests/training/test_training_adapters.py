"""Adapters: a new one, one that is trained on, in DoRA, on a base in 4 bits; the reference is the model below it."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from training_fixtures import QUICK, largest_difference, save_tiny_model, saved_parameters, sequences
from transformers import Qwen3ForCausalLM

from tokenstats.errors import InputError, TokenstatsWarning
from tokenstats.modeling.load import quiet_peft
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train

peft = pytest.importorskip("peft")
LORA = replace(QUICK, lora_rank=4, learning_rate=1e-2)
ON = replace(QUICK, continue_adapter=True, learning_rate=1e-2)


@pytest.fixture(scope="module")
def adapter(store: Store, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "first"
    train(store, model=model, mask="some", out=out, options=replace(LORA, lora_dropout=0.1, lora_alpha=12.0))
    return out


def config(folder: Path) -> dict:
    found = json.loads((folder / "adapter_config.json").read_text())
    found["target_modules"] = sorted(found["target_modules"])
    return found


def record(folder: Path) -> dict:
    return json.loads((folder / "tokenstats.json").read_text())


def logits(network: torch.nn.Module, store: Store) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(input_ids=torch.from_numpy(sequences(store)[0][0])[None]).logits


def test_an_adapter_that_is_trained_on_starts_as_it_was_and_keeps_its_shape(
    store: Store, model: str, adapter: Path, tmp_path: Path
) -> None:
    still, moved = tmp_path / "still", tmp_path / "moved"
    before = train(store, model=str(adapter), mask="some", out=still, options=replace(ON, learning_rate=1e-20, eval_share=0.2))
    assert largest_difference(still, adapter) == 0.0
    assert config(still) == config(adapter)
    assert (config(still)["r"], config(still)["lora_alpha"], config(still)["lora_dropout"]) == (4, 12, 0.1)
    assert config(still)["base_model_name_or_path"] == model
    network = peft.PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(model), adapter).merge_and_unload()
    network.save_pretrained(tmp_path / "merged")
    whole = replace(QUICK, learning_rate=1e-20, max_steps=1, eval_share=0.2)
    save_tokenizer_of(adapter, tmp_path / "merged")
    merged = train(store, model=str(tmp_path / "merged"), mask="some", out=tmp_path / "whole", options=whole)
    assert before.eval_loss == pytest.approx(merged.eval_loss, rel=1e-6)
    train(store, model=str(adapter), mask="some", out=moved, options=ON)
    assert saved_parameters(moved).keys() == saved_parameters(adapter).keys()
    assert all(bool((saved_parameters(moved)[name] != found).any()) for name, found in saved_parameters(adapter).items())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_merging_an_adapter_on_one_end_of_a_tied_matrix_leaves_the_other_end(store: Store, tmp_path: Path, target: str) -> None:
    """The held-out loss after the adapter's training is that before the whole model's, and that of the model it saves."""
    tied = save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    assert Qwen3ForCausalLM.from_pretrained(tied).config.tie_word_embeddings
    first, second = tmp_path / "adapter", tmp_path / "merged"
    told = replace(LORA, lora_targets=target, learning_rate=0.1, max_steps=12, eval_share=0.2)
    adapted = train(store, model=tied, mask="some", out=first, options=told)
    assert abs(adapted.eval_loss - adapted.eval_loss_before) > 1e-3
    whole = replace(QUICK, learning_rate=1e-20, max_steps=1, eval_share=0.2)
    with pytest.warns(TokenstatsWarning, match="changes one of two matrices that are one in its base"):
        merged = train(store, model=str(first), mask="some", out=second, options=whole)
    assert merged.eval_loss_before == pytest.approx(adapted.eval_loss, rel=1e-5)
    saved = Qwen3ForCausalLM.from_pretrained(second)
    assert not saved.config.tie_word_embeddings
    with quiet_peft():
        unmerged = peft.PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(tied), first)
    torch.testing.assert_close(logits(saved, store), logits(unmerged, store), rtol=1e-4, atol=1e-4)
    again = train(store, model=str(first), mask="some", out=tmp_path / "on", options=replace(ON, max_steps=1, eval_share=0.2))
    assert again.eval_loss_before == pytest.approx(adapted.eval_loss, rel=1e-5)


def test_merging_an_adapter_within_the_layers_leaves_a_tied_model_tied(store: Store, tmp_path: Path) -> None:
    tied = save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    train(store, model=tied, mask="some", out=tmp_path / "adapter", options=LORA)
    train(store, model=str(tmp_path / "adapter"), mask="some", out=tmp_path / "merged", options=replace(QUICK, max_steps=1))
    assert Qwen3ForCausalLM.from_pretrained(tmp_path / "merged").config.tie_word_embeddings
    assert "lm_head.weight" not in saved_parameters(tmp_path / "merged")


def test_a_name_that_is_no_module_is_said_beside_names_that_are(store: Store, model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lora_targets got 'v_porj', which no module .*did you mean 'v_proj'\?.*all-linear"):
        train(store, model=model, mask="some", out=tmp_path / "o", options=replace(LORA, lora_targets="q_proj,v_porj"))
    assert not (tmp_path / "o").exists()


def save_tokenizer_of(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((source / name).read_bytes())


def test_the_reference_of_an_adapter_that_is_trained_on_is_the_model_below_it(
    store: Store, model: str, adapter: Path, tmp_path: Path
) -> None:
    told = replace(ON, max_steps=1, metrics="targets", kl_penalty=0.1, kl_on="targets", eval_share=0.2)
    off = train(store, model=str(adapter), mask="some", out=tmp_path / "off", options=told)
    named = train(store, model=str(adapter), mask="some", out=tmp_path / "named", options=replace(told, reference=model))
    twin = save_tiny_model(tmp_path / "twin")  # the same weights in another place: a second model
    beside = train(store, model=str(adapter), mask="some", out=tmp_path / "beside", options=replace(told, reference=twin))
    assert off.metrics["targets/kl"] > 1e-4
    assert named.metrics == off.metrics
    assert beside.eval_metrics["targets/kl"] == pytest.approx(off.eval_metrics["targets/kl"], rel=1e-5)
    assert record(tmp_path / "off")["reference"]["fingerprint"] == record(tmp_path / "beside")["reference"]["fingerprint"]
    assert record(tmp_path / "off")["base_model"]["fingerprint"] != record(tmp_path / "off")["reference"]["fingerprint"]


def test_an_adapter_that_is_trained_on_is_resumed_to_the_last_bit(store: Store, adapter: Path, tmp_path: Path) -> None:
    options = replace(ON, save_steps=2, max_steps=4)
    train(store, model=str(adapter), mask="some", out=tmp_path / "out", options=options)
    whole = saved_parameters(tmp_path / "out")
    for path in (tmp_path / "out" / "checkpoint-4").iterdir():
        path.unlink()
    train(store, model=str(adapter), mask="some", out=tmp_path / "out", options=options, resume=True)
    assert all(torch.equal(whole[name], found) for name, found in saved_parameters(tmp_path / "out").items())


def test_dora_learns_magnitudes_too_and_can_be_trained_on(store: Store, model: str, tmp_path: Path) -> None:
    rate = 1e-3
    train(store, model=model, mask="some", out=tmp_path / "dora", options=replace(LORA, dora=True, learning_rate=rate))
    assert config(tmp_path / "dora")["use_dora"]
    magnitudes = {name: w for name, w in saved_parameters(tmp_path / "dora").items() if "magnitude" in name}
    below = Qwen3ForCausalLM.from_pretrained(model).state_dict()
    assert magnitudes
    for name, found in magnitudes.items():
        weight = below[name.removeprefix("base_model.model.").replace("lora_magnitude_vector", "weight")]
        moved = (found - weight.norm(dim=1)).abs().max().item()  # from where it starts
        assert 0 < moved <= 1.01 * rate * QUICK.max_steps, f"{name}: a step of AdamW is at most about its rate"
    network = peft.PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(model), tmp_path / "dora")
    assert not torch.equal(logits(network, store), logits(Qwen3ForCausalLM.from_pretrained(model), store))
    train(store, model=str(tmp_path / "dora"), mask="some", out=tmp_path / "on", options=ON)
    assert config(tmp_path / "on") == config(tmp_path / "dora")
    assert largest_difference(tmp_path / "on", tmp_path / "dora") > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"continue_adapter": True, "lora_rank": 4},
            "lora_rank would do nothing: continue_adapter=True trains the",
        ),
        ({"continue_adapter": True, "dora": True}, "dora would do nothing: continue_adapter=True trains"),
        ({"dora": True}, "dora would do nothing: the whole model is trained; give lora_rank too"),
        ({"load_in_4bit": True}, "load_in_4bit=True got a whole model to train; expected an adapter: lora_rank or"),
    ],
)
def test_options_of_adapters_that_make_no_sense_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError) as refused:
        TrainOptions(**wrong)
    assert str(refused.value).startswith(message)


def test_what_is_no_adapter_of_a_known_kind_cannot_be_trained_on(
    store: Store, model: str, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"continue_adapter=True got .*tiny, which is no adapter; expected a folder with"):
        train(store, model=model, mask="some", out=tmp_path / "out", options=ON)
    odd = tmp_path / "odd"
    odd.mkdir()
    save_tokenizer_of(adapter, odd)
    (odd / "adapter_config.json").write_text(json.dumps({**config(adapter), "peft_type": "IA3"}))
    with pytest.raises(InputError, match="odd is an adapter of kind IA3; only LoRA and DoRA can be trained on"):
        train(store, model=str(odd), mask="some", out=tmp_path / "out", options=ON)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_without_bitsandbytes_a_base_in_4_bits_names_the_package(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(LORA, load_in_4bit=True)
    with pytest.raises(InputError, match="load_in_4bit=True needs the library bitsandbytes; install it with: pip install bits"):
        train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_base_in_4_bits_stays_as_it_is_and_the_adapter_learns(store: Store, tmp_path: Path) -> None:
    # rows of whole blocks of 64 weights, which share a scale
    model = save_tiny_model(tmp_path / "wide", hidden_size=64, intermediate_size=128, head_dim=64)
    options = replace(LORA, load_in_4bit=True, metrics="targets", kl_penalty=0.1, kl_on="targets", eval_share=0.2)
    with pytest.warns(TokenstatsWarning, match="in 4 bits costs on a CPU, in time and in accuracy, was not measured"):
        summary = train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    assert summary.eval_loss < summary.eval_loss_before
    second = {name: w for name, w in saved_parameters(tmp_path / "out").items() if "lora_B" in name}  # zeros at first
    assert all(bool((w != 0).any()) for w in second.values())
    assert config(tmp_path / "out")["base_model_name_or_path"] == model
    exact = train(store, model=model, mask="some", out=tmp_path / "exact", options=replace(options, load_in_4bit=False))
    assert exact.loss != summary.loss
    assert exact.loss == pytest.approx(summary.loss, rel=0.05)
