"""A model and its reference in memory: on one set of weights, or one after the other. The numbers are the same."""

import logging
import weakref
from pathlib import Path

import pytest
import torch
from disk import write_jsonl
from flat_options import grouped
from test_scoring import assert_tables_close, table
from transformers import AutoModelForCausalLM

import tokenstats.modeling.load as loading
from tokenstats.computing import compute
from tokenstats.errors import InputError, TokenstatsWarning
from tokenstats.modeling.load import LoadedModel
from tokenstats.scoring import reference_pass
from tokenstats.scoring.options import ScoringOptions
from tokenstats.scoring.pair import ModelPair
from tokenstats.scoring.reference_pass import ReferencePass
from tokenstats.store import Store

# the adapter reaches the head, which the base ties to its embedding: a case worth testing, and peft warns of it
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
OPTIONS = {"part_tokens": 700, "batch_tokens": 300}


def columns(store: Store, name: str) -> list:
    return [store.part(f"stats/{name}", i) for i in range(store.part_count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory, chats) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "d.jsonl", chats[:25])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> str:
    peft = pytest.importorskip("peft", reason="needs the peft extra")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj", "lm_head"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    peft.get_peft_model(model, config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("adapter_is", ["model", "reference"])
def test_an_adapter_and_its_base_share_one_set_of_weights(adapter_is, adapter, base, data, tmp_path, monkeypatch):
    pair = {"model": adapter, "reference": base} if adapter_is == "model" else {"model": base, "reference": adapter}
    loads, real = [], loading._load_weights
    monkeypatch.setattr(loading, "_load_weights", lambda *a: loads.append(a) or real(*a))
    done = compute(data, **grouped(**pair, **OPTIONS), store=tmp_path / "shared", name="it")
    shared, name = done.store, done.name
    assert len(loads) == 1
    monkeypatch.setattr("tokenstats.scoring.pair.is_adapter_of", lambda *_: False)
    apart = compute(data, **grouped(**pair, **OPTIONS), store=tmp_path / "apart", name="it").store
    assert len(loads) == 3
    assert columns(shared, name) == columns(apart, name)
    manifests = [store.scorings[name].manifest for store in (shared, apart)]
    assert manifests[0].model.fingerprint == manifests[1].model.fingerprint
    assert manifests[0].reference.fingerprint == manifests[1].reference.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_may_come_first_and_alone(dtype, data, base, warmup, tmp_path):
    options = {"model": warmup, "reference": base, "dtype": dtype, **OPTIONS}
    done = compute(data, **grouped(**options), store=tmp_path / "together")
    together, name = done.store, done.name
    separate = compute(data, **grouped(**options, reference_pass="separate"), store=tmp_path / "separate").store
    assert together.part_count > 2
    assert columns(separate, name) == columns(together, name)
    assert not (separate.path / "stats" / name / ".reference").exists(), "the states are gone once they have served"


def test_a_run_killed_between_the_passes_goes_on(data, base, warmup, tmp_path, monkeypatch):
    options = {"model": warmup, "reference": base, "reference_pass": "separate", **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(ReferencePass, "release", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compute(data, **grouped(**options), store=tmp_path / "s")
    states = sorted((tmp_path / "s").rglob("*.safetensors"))
    assert len(states) > 2
    states[0].write_bytes(states[0].read_bytes()[:100])  # and one of them damaged
    written, real = [], reference_pass.write_states
    monkeypatch.setattr(reference_pass, "write_states", lambda *a: written.append(a) or real(*a))
    done = compute(data, **grouped(**options), store=tmp_path / "s")
    store, name = done.store, done.name
    assert len(written) == 1, "only what is missing is done again"
    together = compute(data, **grouped(**OPTIONS), model=warmup, reference=base, store=tmp_path / "together").store
    assert columns(store, name) == columns(together, name)


@pytest.mark.parametrize("short_of_memory", ["the reference", "the scored model"])
def test_in_both_passes_batches_get_smaller_where_memory_runs_out(short_of_memory, data, base, warmup, tmp_path, monkeypatch):
    options = {"model": warmup, "reference": base, "part_tokens": 1500, "batch_tokens": 1600}
    done = compute(data, **grouped(**options), store=tmp_path / "plenty")
    plenty, name = done.store, done.name
    real = ModelPair.states

    def states(self, split, input_ids, chosen):
        alone = self.reference is None  # the first pass has no other model
        if input_ids.numel() > 500 and alone == (short_of_memory == "the reference"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(self, split, input_ids, chosen)

    monkeypatch.setattr(ModelPair, "states", states)
    scarce = compute(data, **grouped(**options, reference_pass="separate"), store=tmp_path / "scarce").store
    assert 250 <= scarce.scorings[name].manifest.batch_tokens <= 500
    assert_tables_close(table(scarce, name), table(plenty, name))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_the_references_body_is_gone_before_the_scored_model_loads(compiled, chats, base, warmup, tmp_path, monkeypatch):
    data = write_jsonl(tmp_path / "d.jsonl", chats[:2])
    real, compile_ = loading.load_model, torch.nn.Module.compile
    seen: list[weakref.ref] = []
    policies: list[LoadedModel] = []

    def load_reference(*arguments):
        loaded = real(*arguments)
        seen.extend(weakref.ref(p) for p in loaded.model.get_decoder().layers.parameters())
        return loaded

    def load(*arguments):
        assert len(seen) > 4
        assert all(parameter() is None for parameter in seen), "both bodies are in memory"
        policies.append(real(*arguments))
        return policies[-1]

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compile_(self, backend="eager", **options))
    monkeypatch.setattr(reference_pass, "load_model", load_reference)
    monkeypatch.setattr("tokenstats.scoring.pair.load_model", load)
    compute(
        data,
        **grouped(**OPTIONS, reference_pass="separate", compiled=compiled),
        model=warmup,
        reference=base,
        store=tmp_path / "s",
    )
    assert len(policies) == 1


def test_states_of_other_tokens_are_made_again(data, base, warmup, tmp_path, monkeypatch):
    """Between the passes somebody changes their mind about what is scored."""
    options = {"model": warmup, "reference": base, **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(ReferencePass, "release", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compute(data, **grouped(**options, reference_pass="separate"), store=tmp_path / "s")
    done = compute(data, **grouped(**options, reference_pass="separate", score_all=True), store=tmp_path / "s")
    store, name = done.store, done.name
    together = compute(data, **grouped(**options, score_all=True), store=tmp_path / "together").store
    assert columns(store, name) == columns(together, name)


def test_a_damaged_part_of_an_unfinished_scoring_gets_its_states_again(data, base, warmup, tmp_path):
    options = {"model": warmup, "reference": base, "reference_pass": "separate", **OPTIONS}
    done = compute(data, **grouped(**options), store=tmp_path / "s")
    store, name = done.store, done.name
    before, folder = columns(store, name), store.path / "stats" / name
    (folder / "manifest.json").unlink()
    path = folder / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.warns(TokenstatsWarning, match="part-00001.parquet .*: made again"):
        again = compute(data, **grouped(**options), store=tmp_path / "s").store
    assert columns(again, name) == before


def test_the_room_that_states_take_is_said_beforehand(data, base, warmup, tmp_path, caplog):
    caplog.set_level(logging.INFO, "tokenstats")
    compute(data, **grouped(**OPTIONS, reference_pass="separate"), model=warmup, reference=base, store=tmp_path / "s")
    hidden = AutoModelForCausalLM.from_pretrained(base).config.hidden_size
    assert f"states take {4 * hidden:,} bytes of disk for each token" in caplog.text


def test_a_separate_pass_needs_a_reference_that_is_another_model(data, base, warmup, tmp_path):
    with pytest.raises(InputError, match="no reference"):
        compute(data, model=warmup, store=tmp_path / "s", scoring=ScoringOptions(reference_pass="separate"))
    with pytest.raises(InputError, match="same weights"):
        compute(data, model=warmup, reference=warmup, store=tmp_path / "s", scoring=ScoringOptions(reference_pass="separate"))
    assert not (tmp_path / "s").exists()


def test_compiled_models_give_the_same_numbers(data, base, warmup, tmp_path, monkeypatch):
    """Traced as for a real run, but not turned into machine code: that takes a minute and tests torch."""
    compiled, real = [], torch.nn.Module.compile

    def trace(self, **options):
        compiled.append(self)
        real(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    options = {"model": warmup, "reference": base, **OPTIONS}
    done = compute(data, **grouped(**options), store=tmp_path / "plain")
    plain, name = done.store, done.name
    assert not compiled
    traced = compute(data, **grouped(**options, compiled=True), store=tmp_path / "traced").store
    assert len(compiled) == 2
    compute(data, **grouped(**options, compiled=True, reference_pass="separate"), store=tmp_path / "separate")
    assert len(compiled) == 4
    for one, other in zip(columns(plain, name), columns(traced, name), strict=True):
        assert_tables_close(one, other)
