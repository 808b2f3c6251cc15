"""Samples of the fast sampler follow the distributions of the model's own forward pass."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from pipelines.study import sampler as module
from pipelines.study.sampler import Sampler

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def model(base):
    return Qwen3ForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    rows = [json.loads(line)["messages"][:1] for line in (DATA / "test.jsonl").read_text().splitlines()[:8]]
    texts = [tokenizer.apply_chat_template(row, tokenize=False, add_generation_prompt=True) for row in rows]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_every_logit_that_a_token_is_drawn_from_is_the_models_own(model, tokenizer, prompts, monkeypatch):
    """Also after samples that ended made room for others, and for prompts of different lengths."""
    seen = []
    monkeypatch.setattr(module, "REPACK_EVERY", 2)
    monkeypatch.setattr(module, "REPACK_BELOW", 1.0)
    draw = module._draw

    def spying(logits, random):
        tokens = draw(logits, random)
        seen.extend((int(t), row) for t, row in zip(tokens.flatten(), logits.flatten(0, 1), strict=True))
        return tokens

    monkeypatch.setattr(module, "_draw", spying)
    made = Sampler(model, len(tokenizer), tokenizer.eos_token_id).sample(prompts, 5, 60, seed=1)
    assert len({len(p) for p in prompts}) > 1
    rows = torch.stack([row for _, row in seen])
    for prompt, samples in zip(prompts, made, strict=True):
        for sample in samples:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + sample])).logits[0, len(prompt) - 1 :, : len(tokenizer)]
            ended = [*sample, tokenizer.eos_token_id] if len(sample) < 60 else sample
            for expected, token in zip(logits, ended, strict=False):
                nearest = (rows - expected).abs().amax(1)
                close = [i for i in nearest.topk(8, largest=False).indices.tolist() if nearest[i] < 2e-4]
                assert any(seen[i][0] == token for i in close)


def test_shares_of_first_tokens_are_their_probabilities(model, tokenizer, prompts):
    count = 4000
    made = Sampler(model, len(tokenizer), tokenizer.eos_token_id).sample(prompts[:2], count, 1, seed=2)
    for prompt, samples in zip(prompts, made, strict=False):
        with torch.no_grad():
            p = model(input_ids=torch.tensor([prompt])).logits[0, -1, : len(tokenizer)].softmax(-1)
        found = torch.bincount(torch.tensor([s[0] if s else tokenizer.eos_token_id for s in samples]), minlength=len(p)) / count
        assert ((found - p).abs() <= 5 * (p * (1 - p) / count).sqrt() + 1 / count).all()


def test_the_same_call_gives_the_same_samples_and_another_seed_others(model, tokenizer, prompts):
    sampler = Sampler(model, len(tokenizer), tokenizer.eos_token_id)
    once, again, other = (sampler.sample(prompts, 4, 40, seed) for seed in (3, 3, 4))
    assert once == again != other


def test_samples_stop_before_the_end_token_or_at_the_limit(model, tokenizer, prompts):
    made = Sampler(model, len(tokenizer), tokenizer.eos_token_id).sample(prompts, 16, 12, seed=5)
    lengths = [len(s) for samples in made for s in samples]
    assert max(lengths) == 12
    assert all(tokenizer.eos_token_id not in s for samples in made for s in samples)


def test_another_architecture_is_refused(tokenizer):
    from pipelines.tiny_models import tiny_model

    with pytest.raises(ValueError, match="is for qwen3"):
        Sampler(tiny_model("llama"), 10, 0)
