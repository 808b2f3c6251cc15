"""Architectures that differ in head, positions, attention and state, each scored as near to the truth as plain float32 comes.

The truth is the same model in float64, a row at a time. All that transformers offers is in docs/MODELS.md, by ``make matrix``.
"""

from pathlib import Path

import pytest
from transformers import logging

from pipelines.matrix import measure
from pipelines.tiny_models import kinds

HEADS = (
    "cohere cohere2 falcon_h1 gemma gemma2 gemma3_text gemma4_text granite granitemoehybrid recurrent_gemma minicpm3 nanochat"
)
POSITIONS = "bloom mpt falcon gpt2 gpt_neo gptj codegen gpt_neox opt bart biogpt xglm roberta bert xlm ctrl openai-gpt smollm3"
ATTENTION = (
    "mistral phi phi3 qwen2 qwen3 llama llama4_text olmo2 olmo3 starcoder2 stablelm glm4 exaone4 nemotron deepseek_v3 "
    "deepseek_v4 diffllama"
)
EXPERTS = "mixtral qwen2_moe qwen3_moe gpt_oss olmoe ernie4_5_moe dbrx jetmoe deepseek_v2 glm4_moe minimax hunyuan_v1_moe"
STATE = "mamba mamba2 falcon_mamba jamba bamba lfm2 qwen3_next rwkv xlstm zamba2 nemotron_h"
WHOLE = "prophetnet"
GROUPS = [group.split() for group in (HEADS, POSITIONS, ATTENTION, EXPERTS, STATE, WHOLE)]
TRIED = [kind for group in GROUPS for kind in group]
ALWAYS = {kind for group in GROUPS for kind in group[:5]}


@pytest.fixture(autouse=True)
def quiet():
    """Small configurations are odd, and transformers says so."""
    before = logging.get_verbosity()
    logging.set_verbosity(50)
    yield
    logging.set_verbosity(before)


@pytest.mark.filterwarnings("ignore")  # of what transformers thinks of such small models
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind in ALWAYS else [pytest.mark.thorough]) for kind in TRIED])
def test_every_column_is_as_near_to_float64_as_plain_float32(kind, tmp_path: Path):
    found = measure(kind, tmp_path)
    assert not found.refusal
    assert found.ratio <= 1.25, f"{found.worst}: plain {found.plain[found.worst]:.1e}, ours {found.ours[found.worst]:.1e}"
    rounding = max(found.plain.values())
    assert found.batches <= 40 * rounding, "batches of 512 and of 8,192 tokens"
    assert found.order <= 40 * rounding, "rows in another order"
    for name, (plain, ours) in found.unlike.items():
        assert ours <= 1.25 * plain + 2, f"{name}: other than float64's in {ours} of about 860 tokens, plain in {plain}"


def test_these_are_many_and_known():
    assert len(set(TRIED)) == len(TRIED) >= 60
    assert set(TRIED) <= set(kinds())
