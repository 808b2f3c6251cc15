"""Greedy accuracy and pass@k on held-out problems: is the last number of the reply the right one?"""

import json
from math import comb
from pathlib import Path

import torch

from pipelines.chats import stated_answer


def load_chats(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def replies(model, tokenizer, prompts: list[str], sample: bool, max_new_tokens: int = 128, batch_size: int = 256) -> list[str]:
    """Complete each prompt, greedily or by sampling at temperature 1 from the whole distribution."""
    out = []
    for i in range(0, len(prompts), batch_size):
        batch = tokenizer(
            prompts[i : i + batch_size], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(model.device)
        with torch.inference_mode():
            ids = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=sample,
                **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        out += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return out


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k draws without replacement is correct (arXiv:2107.03374, equation 1)."""
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def evaluate(model, tokenizer, chats: list[dict], samples: int = 8, seed: int = 0) -> dict[str, float]:
    """Greedy accuracy, pass@1 and pass@``samples`` over ``chats``."""
    model.eval()
    torch.manual_seed(seed)
    prompts = [tokenizer.apply_chat_template(c["messages"][:-1], tokenize=False, add_generation_prompt=True) for c in chats]
    answers = [c["answer"] for c in chats]
    greedy = [stated_answer(r) == a for r, a in zip(replies(model, tokenizer, prompts, sample=False), answers, strict=True)]
    drawn = replies(model, tokenizer, [p for p in prompts for _ in range(samples)], sample=True)
    correct = [sum(stated_answer(r) == a for r in drawn[i * samples : (i + 1) * samples]) for i, a in enumerate(answers)]
    return {
        "greedy": sum(greedy) / len(chats),
        "pass@1": sum(pass_at_k(samples, c, 1) for c in correct) / len(chats),
        f"pass@{samples}": sum(pass_at_k(samples, c, samples) for c in correct) / len(chats),
    }
