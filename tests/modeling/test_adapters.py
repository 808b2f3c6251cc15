"""Every kind of adapter that peft knows is scored as peft itself runs it, or refused by name."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipelines.matrix import as_tokens, definitions
from pipelines.tiny_models import VOCABULARY, tiny_model
from tokenstats.errors import InputError
from tokenstats.modeling.batches import Budget
from tokenstats.modeling.folders import adapter_base
from tokenstats.scoring.options import Request, ScoringOptions
from tokenstats.scoring.pair import load_pair
from tokenstats.scoring.score_part import score_part

peft = pytest.importorskip("peft", reason="needs the peft extra")
# an adapter on the embedding reaches the head that is tied to it: a case worth testing, and peft warns of it
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:torch")

CPU = torch.device("cpu")
FLOAT32 = ScoringOptions(dtype="float32")
MODULES = ["q_proj", "v_proj", "down_proj"]
OWN: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2, "target_modules": None},
    "C3A": {"block_size": 16},
    "CPT": {"cpt_token_ids": [5, 6, 7], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"target_modules": None, "token_indices": [4, 9, 300]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "WAVEFT": {"n_frequency": 64},
}
REFUSED = {
    "LILY": "not causal",
    "MULTITASK_PROMPT_TUNING": "task_ids",
    "POLY": "task_ids",
    "SHADOW": "ShadowCarrier",
    "XLORA": "XLORA",
}
"""They need more than tokens, look at later ones, or peft itself cannot run them; each with a word of the refusal."""
NEEDS = {"ADAMSS": "sklearn"}


def test_a_base_that_is_not_where_the_adapter_says_is_named_with_the_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "data/models/base of mine"}')
    said = r"is an adapter of 'data/models/base of mine', and that is not here: no model folder at .*base_model_name_or_path"
    with pytest.raises(InputError, match=said):
        adapter_base(tmp_path)


KINDS = [kind.value for kind in peft.PeftType]


def fresh(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def base_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    return folder


def make_adapter(kind: str, base: Path, folder: Path, **changes: Any) -> Path:
    """Save an adapter that does something: all its numbers are moved."""
    config_class = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    takes = inspect.signature(config_class).parameters
    defaults = {"task_type": "CAUSAL_LM", "target_modules": MODULES, "num_virtual_tokens": 5}
    options = {**{k: v for k, v in defaults.items() if k in takes}, **OWN.get(kind, {}), **changes}
    torch.manual_seed(0)
    bare = fresh(base)
    if kind == "XLORA":  # a mixture of adapters that lie in folders of their own
        lora = make_adapter("LORA", base, folder / "lora")
        bare.config.use_cache = False
        options |= {"hidden_size": 64, "adapters": {"0": str(lora), "1": str(lora)}}
    model = peft.get_peft_model(bare, config_class(**{k: v for k, v in options.items() if v is not None}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def sample_rows() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, length).astype(np.int32) for length in (40, 7, 23, 40, 2)]


def score(model: Path, reference: Path | None) -> dict[str, np.ndarray]:
    pair = load_pair(Request(str(model), reference and str(reference), FLOAT32), CPU, VOCABULARY, "")
    pair.check(torch.arange(5, 45)[None])
    table, _ = score_part(as_tokens(sample_rows()), pair, topk=0, score_all=True, budget=Budget(100))
    columns = table.column_names[1:]
    return {name: table[name].combine_chunks().flatten().drop_null().to_numpy() for name in columns}


def own_columns(adapter: Path, base: Path) -> dict[str, np.ndarray]:
    """As peft runs the adapter, and transformers its base: a row at a time, each model on weights of its own."""
    policy, reference = peft.PeftModel.from_pretrained(fresh(base), adapter).eval(), fresh(base)
    pieces = []
    for row in sample_rows():
        ids = torch.from_numpy(row[None]).long()
        with torch.no_grad():
            z, r = (m(input_ids=ids, use_cache=False).logits[0, -len(row) :].double() for m in (policy, reference))
        pieces.append(definitions(z[:-1], r[:-1], ids[0, 1:]))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


@pytest.fixture
def one_tokenizer(monkeypatch) -> None:
    """These models have none; which tokenizer they share is another test's matter."""
    monkeypatch.setattr("tokenstats.scoring.pair.load_tokenizer", lambda *_: None)
    monkeypatch.setattr("tokenstats.scoring.pair.tokenizer_fingerprint", lambda _: "")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_each_kind_is_scored_as_peft_runs_it_or_refused_by_name(kind, base_model, tmp_path, one_tokenizer):
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind], reason="what peft needs for it is no dependency of ours")
    if kind in REFUSED:
        with pytest.raises(InputError, match=REFUSED[kind]):
            score(make_adapter(kind, base_model, tmp_path), base_model)
        return
    adapter = make_adapter(kind, base_model, tmp_path)
    expected, found = own_columns(adapter, base_model), score(adapter, base_model)
    assert expected["kl"].max() > 1e-6, "it does something"
    for name, column in expected.items():
        np.testing.assert_allclose(found[name], column, atol=2e-5, rtol=1e-5, err_msg=name)
    mirrored = score(base_model, adapter)  # the adapter as the reference
    np.testing.assert_allclose(mirrored["reverse_kl"], expected["kl"], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(mirrored["logprob"], expected["ref_logprob"], atol=2e-5, rtol=1e-5)


def test_an_activated_lora_is_refused_by_name(base_model, tmp_path):
    make_adapter("LORA", base_model, tmp_path, alora_invocation_tokens=[7, 8])
    with pytest.raises(InputError, match="activated LoRA"):
        score(tmp_path, None)


def test_prompts_that_peft_would_leave_out_are_refused(base_model, tmp_path):
    """Without a task type peft runs the bare base model, and says nothing."""
    make_adapter("PROMPT_TUNING", base_model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"CAUSAL_LM"', "null"))
    with pytest.raises(InputError, match=r"PROMPT_TUNING.*CAUSAL_LM"):
        score(tmp_path, None)


def test_an_adapter_that_moves_a_single_word_is_no_copy_of_its_base(base_model, tmp_path, one_tokenizer):
    """A probe without that word sees no difference."""
    make_adapter("TRAINABLE_TOKENS", base_model, tmp_path, token_indices=[301])
    found = score(tmp_path, base_model)
    assert found["kl"].max() >= 0


def test_an_adapter_that_does_nothing_is_refused(base_model, tmp_path, one_tokenizer):
    model = peft.get_peft_model(fresh(base_model), peft.LoraConfig(r=4, target_modules=MODULES, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="same logits"):
        score(tmp_path, base_model)


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize("adapter_is", ["model", "reference"])
def test_an_adapter_on_the_head_of_a_half_precision_model_is_off_where_the_base_is_asked(
    where, adapter_is, base_model, tmp_path, one_tokenizer, monkeypatch
):
    """Heads in half precision are raised to float32 in a copy, which must be of the head as that model has it."""
    more = {where: [*MODULES, "lm_head"] if where == "target_modules" else ["lm_head"]}
    adapter = make_adapter("LORA", base_model, tmp_path, **more)
    sides = (adapter, base_model) if adapter_is == "model" else (base_model, adapter)

    def columns() -> dict[str, np.ndarray]:
        pair = load_pair(Request(str(sides[0]), str(sides[1]), ScoringOptions(dtype="bfloat16")), CPU, VOCABULARY, "")
        pair.check(torch.arange(5, 45)[None])
        table, _ = score_part(as_tokens(sample_rows()), pair, topk=0, score_all=True, budget=Budget(100))
        return {n: table[n].combine_chunks().flatten().drop_null().to_numpy() for n in ("logprob", "ref_logprob", "kl")}

    together = columns()
    monkeypatch.setattr("tokenstats.scoring.pair.is_adapter_of", lambda *_: False)
    apart = columns()
    for name, column in apart.items():
        np.testing.assert_allclose(together[name], column, atol=2e-3, err_msg=name)
