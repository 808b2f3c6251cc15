"""A model and its reference in memory: on one set of weights, or one after the other. The numbers are the same."""

from pathlib import Path

import pytest
import torch
from conftest import write_jsonl
from test_scoring import assert_tables_close
from transformers import AutoModelForCausalLM

import tokenstats.modeling.load as loading
from tokenstats.errors import InputError
from tokenstats.scoring import compute
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
    shared, name = compute(data, **pair, store=tmp_path / "shared", name="it", **OPTIONS)
    assert len(loads) == 1
    monkeypatch.setattr("tokenstats.scoring.pair.is_adapter_of", lambda *_: False)
    apart, _ = compute(data, **pair, store=tmp_path / "apart", name="it", **OPTIONS)
    assert len(loads) == 3
    assert columns(shared, name) == columns(apart, name)
    manifests = [store.scoring(name)[1] for store in (shared, apart)]
    assert manifests[0].model.fingerprint == manifests[1].model.fingerprint
    assert manifests[0].reference.fingerprint == manifests[1].reference.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_may_come_first_and_alone(dtype, data, base, warmup, tmp_path):
    options = {"model": warmup, "reference": base, "dtype": dtype, **OPTIONS}
    together, name = compute(data, **options, store=tmp_path / "together")
    separate, _ = compute(data, **options, store=tmp_path / "separate", reference_pass="separate")
    assert together.part_count > 2
    assert columns(separate, name) == columns(together, name)
    assert not (separate.path / "stats" / name / ".reference").exists(), "the states are gone once they have served"


def test_a_run_killed_between_the_passes_goes_on(data, base, warmup, tmp_path, monkeypatch):
    options = {"model": warmup, "reference": base, "reference_pass": "separate", **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(ReferencePass, "release", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compute(data, **options, store=tmp_path / "s")
    states = sorted((tmp_path / "s").rglob("*.safetensors"))
    assert len(states) > 2
    states[0].write_bytes(states[0].read_bytes()[:100])  # and one of them damaged
    written = []
    real = ReferencePass._states
    monkeypatch.setattr(ReferencePass, "_states", lambda *a: written.append(a) or real(*a))
    store, name = compute(data, **options, store=tmp_path / "s")
    assert len(written) == 1, "only what is missing is done again"
    together, _ = compute(data, model=warmup, reference=base, store=tmp_path / "together", **OPTIONS)
    assert columns(store, name) == columns(together, name)


def test_a_separate_pass_needs_a_reference_and_one_process(data, base, warmup, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no reference"):
        compute(data, model=warmup, store=tmp_path / "s", reference_pass="separate")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        compute(data, model=warmup, reference=base, store=tmp_path / "s", reference_pass="separate")
    assert not (tmp_path / "s").exists()


def test_compiled_models_give_the_same_numbers(data, base, warmup, tmp_path, monkeypatch):
    """Traced as for a real run, but not turned into machine code: that takes a minute and tests torch."""
    compiled, real = [], torch.nn.Module.compile

    def trace(self, **options):
        compiled.append(self)
        real(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    options = {"model": warmup, "reference": base, **OPTIONS}
    plain, name = compute(data, **options, store=tmp_path / "plain")
    assert not compiled
    traced, _ = compute(data, **options, store=tmp_path / "traced", compiled=True)
    assert len(compiled) == 2
    for one, other in zip(columns(plain, name), columns(traced, name), strict=True):
        assert_tables_close(one, other)
