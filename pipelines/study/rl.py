"""RL from every start: GRPO (TRL) with reward 1 for the exact answer, on the same prompts from each start.

TRL does the learning; the samples come from ``sampler.py``, which draws a whole batch of groups at once.
"""

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from pipelines.chats import stated_answer
from pipelines.problems import make_problem
from pipelines.study.design import Cell
from pipelines.study.measures import MOST_TOKENS, Policy
from pipelines.tinymath import held_out_questions


@dataclass(frozen=True)
class Grpo:
    """How RL is done: the same from every start.

    Attributes:
        steps: optimizer steps, each on prompts that no step before had.
        prompts: of a step; samples: of each prompt, a group.
        rate: learning rate, constant.
    """

    steps: int = 60
    prompts: int = 32
    samples: int = 8
    rate: float = 1e-4


def rl_problems(cell: Cell, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Prompts and answers in the cell's numbers, none of which is held out."""
    rng, held_out = random.Random(f"rl {cell.regime} {seed}"), held_out_questions()
    while count:
        problem = make_problem(rng, cell.mix.numbers)
        if problem.question not in held_out:
            count -= 1
            yield {"prompt": [{"role": "user", "content": problem.question}], "answer": problem.answer}


def reinforce(start: Path, cell: Cell, seed: int, out: Path, how: Grpo) -> dict[str, list[float]]:
    """Train a policy from ``start`` into ``out``.

    Returns:
        By step: ``reward``, the share of right samples before the step; ``mixed``, the share of groups with right and wrong
        ones, which alone teach something; ``length``, tokens of a sample with its end.
    """
    from datasets import Dataset

    from pipelines.study.by_length import ByLength

    policy = Policy.load(start)
    data = Dataset.from_list(list(rl_problems(cell, how.steps * how.prompts, seed)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        trainer = ByLength(
            model=policy.model,
            reward_funcs=exact_answer,
            args=_arguments(out, seed, how),
            train_dataset=data,
            processing_class=policy.tokenizer,
            rollout_func=_Rollout(policy, how.samples, seed),
        )
    trainer.remove_callback(PrinterCallback)  # its curves are the result
    trainer.train()
    trainer.save_model(str(out))
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    return {
        "reward": [entry["reward"] for entry in logs],
        "mixed": [1 - entry["frac_reward_zero_std"] for entry in logs],
        "length": [entry["completions/mean_length"] for entry in logs],
    }


def exact_answer(completions: Sequence[Sequence[dict[str, str]]], answer: Sequence[int], **_: Any) -> list[float]:
    """1 where the last number of a reply is the answer."""
    return [float(stated_answer(reply[0]["content"]) == right) for reply, right in zip(completions, answer, strict=True)]


class _Rollout:
    """TRL's own interface: conversations, each as often as it is to be sampled, to ids."""

    def __init__(self, policy: Policy, samples: int, seed: int):
        self.policy, self.samples, self.calls, self.seed = policy, samples, 0, seed

    def __call__(self, prompts: list[list[dict[str, str]]], trainer: Any) -> dict[str, Any]:
        groups = [(conversation, len(list(same))) for conversation, same in groupby(prompts)]
        if any(count != self.samples for _, count in groups):
            raise ValueError(f"expected every prompt {self.samples} times in a row, got {[count for _, count in groups]}")
        ids = self.policy.prompts([{"messages": conversation} for conversation, _ in groups])
        replies = self.policy.sample(ids, self.samples, seed=self.seed * 1_000_000 + self.calls)
        self.calls += 1
        end = self.policy.tokenizer.eos_token_id
        return {
            "prompt_ids": [prompt for prompt in ids for _ in range(self.samples)],
            "completion_ids": [[*reply, end][:MOST_TOKENS] for of_prompt in replies for reply in of_prompt],
            "logprobs": None,  # sampled from the very weights that learn: TRL computes them itself
        }


def _arguments(out: Path, seed: int, how: Grpo) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(out),
        max_steps=how.steps,
        per_device_train_batch_size=how.prompts * how.samples,
        gradient_accumulation_steps=1,
        num_generations=how.samples,
        max_completion_length=MOST_TOKENS,
        learning_rate=how.rate,
        lr_scheduler_type="constant",
        beta=0.0,  # no KL penalty: what a start is worth shall show by itself
        seed=seed,
        shuffle_dataset=False,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
