"""What is measured of a policy: pass@k, accuracy in other styles, KL from the base on its own samples, entropy at forks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from pipelines.chats import as_chat, stated_answer
from pipelines.labels import Label, token_labels
from pipelines.problems import REQUESTS
from pipelines.study.design import Cell
from pipelines.study.rows import labelled_solutions
from pipelines.study.sampler import Sampler
from pipelines.tinymath import held_out
from tokenstats.modeling.freed_memory import keep_freed_memory

MOST_TOKENS = 192
"""Longest reply: a little more than the longest SFT reply with noise, 184. A longer one is cut, and right only by accident."""

SAMPLES, WIDE_SAMPLES, FEW_SAMPLES, FEW_PROMPTS = 16, 64, 4, 100
SAMPLES_AT_ONCE = 4096  # of the sampler, so that its caches stay below 2 GB
TOKENS_AT_ONCE = 16_384  # of a forward pass


@dataclass(frozen=True)
class Policy:
    """A model in float32, and what it needs to sample."""

    model: Qwen3ForCausalLM
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def load(cls, folder: Path | str) -> "Policy":
        keep_freed_memory()  # sampling spent a fifth of its time on getting it back
        model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(folder))

    def prompts(self, rows: Sequence[dict]) -> list[list[int]]:
        texts = [
            self.tokenizer.apply_chat_template(r["messages"][:1], tokenize=False, add_generation_prompt=True) for r in rows
        ]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def sample(self, prompts: Sequence[Sequence[int]], samples: int, seed: int) -> list[list[list[int]]]:
        """``samples`` replies to each prompt, as ids without the end token."""
        sampler = Sampler(self.model, len(self.tokenizer), self.tokenizer.eos_token_id)
        step = max(1, SAMPLES_AT_ONCE // samples)
        batches = (prompts[start : start + step] for start in range(0, len(prompts), step))
        return [
            reply
            for number, batch in enumerate(batches)
            for reply in sampler.sample(batch, samples, MOST_TOKENS, seed + number)
        ]

    def count_correct(self, rows: Sequence[dict], samples: int, seed: int) -> tuple[list[int], float]:
        """How many of ``samples`` replies to each row are right, and the mean number of their tokens."""
        replies = self.sample(self.prompts(rows), samples, seed)
        texts = [self.tokenizer.batch_decode(of_row) for of_row in replies]
        correct = [sum(stated_answer(t) == row["answer"] for t in of_row) for row, of_row in zip(rows, texts, strict=True)]
        return correct, float(np.mean([len(reply) for of_row in replies for reply in of_row]))


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k draws without replacement is correct (arXiv:2107.03374, equation 1)."""
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def mean_pass_at(k: int, correct: Sequence[int], samples: int) -> float:
    return float(np.mean([pass_at_k(samples, c, k) for c in correct]))


@cache
def problem_set(name: str) -> tuple[dict, ...]:
    return tuple(held_out(name))


def problems_for(cell: Cell, kind: str) -> tuple[dict, ...]:
    """The ``test`` or ``validation`` problems of a cell's regime."""
    return problem_set(kind if cell.regime == "A" else f"{kind}-larger")


def in_other_styles(policy: Policy) -> dict[str, float]:
    """Accuracy on test problems in the base's numbers whose questions ask for each style of pre-training."""
    found = {}
    for number, (style, request) in enumerate(REQUESTS.items()):
        rows = [asking_for(request, row) for row in problem_set("test")[:FEW_PROMPTS]]
        correct, _ = policy.count_correct(rows, FEW_SAMPLES, seed=1000 * (number + 1))
        found[style] = mean_pass_at(1, correct, FEW_SAMPLES)
    return found


def asking_for(request: str, row: dict) -> dict:
    """The same problem, its question ending with a request."""
    question = row["messages"][0]
    return {**row, "messages": [{**question, "content": f"{question['content']} {request}"}]}


def kl_on_own_samples(policy: Policy, base: Policy, cell: Cell, kind: str = "test") -> float:
    """Mean over the tokens of policy samples, end tokens included, of KL(policy‖base) over the whole vocabulary, in nats."""
    prompts = policy.prompts(problems_for(cell, kind)[:FEW_PROMPTS])
    replies = policy.sample(prompts, FEW_SAMPLES, seed=500)
    end, width = policy.tokenizer.eos_token_id, len(policy.tokenizer)
    pairs = [(p, [*r, end][:MOST_TOKENS]) for p, of_prompt in zip(prompts, replies, strict=True) for r in of_prompt]
    total, count = 0.0, 0
    for batch in _batches(pairs):
        mine, theirs = (_log_probs(one.model, batch, width) for one in (policy, base))
        total += float((mine.exp() * (mine - theirs)).sum())
        count += len(mine)
    return total / count


def entropy_at_forks(policy: Policy, cell: Cell) -> float:
    """Mean entropy in nats where a right solution in the cell's wording chooses which operation comes next."""
    worked = labelled_solutions(FEW_PROMPTS, cell)
    prompts = policy.prompts([as_chat(problem, solution) for problem, solution in worked])
    replies = policy.tokenizer([solution.text for _, solution in worked], add_special_tokens=False)["input_ids"]
    labels = [token_labels(solution, policy.tokenizer)[:-1] for _, solution in worked]
    entropies = []
    for batch in _batches(list(zip(prompts, replies, strict=True))):
        log_p = _log_probs(policy.model, batch, len(policy.tokenizer))
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    at_fork = torch.tensor([label == Label.FORK for of_row in labels for label in of_row])
    return float(torch.cat(entropies)[at_fork].mean())


Pair = tuple[list[int], list[int]]


def _batches(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Runs of the pairs, in their order, that fill :data:`TOKENS_AT_ONCE`."""
    longest = max(len(p) + len(r) for p, r in pairs)
    size = max(1, TOKENS_AT_ONCE // longest)
    return (pairs[start : start + size] for start in range(0, len(pairs), size))


@torch.inference_mode()
def _log_probs(model: Qwen3ForCausalLM, pairs: Sequence[Pair], width: int) -> Tensor:
    """[reply tokens of all pairs, V] log-probabilities that predict them, float32."""
    longest = max(len(p) + len(r) for p, r in pairs)
    ids = torch.tensor([[*p, *r, *[0] * (longest - len(p) - len(r))] for p, r in pairs])
    hidden = model.model(input_ids=ids).last_hidden_state  # padding follows what it could disturb
    rows = torch.cat([hidden[i, len(p) - 1 : len(p) + len(r) - 1] for i, (p, r) in enumerate(pairs)])
    return model.lm_head(rows)[:, :width].float().log_softmax(-1)
