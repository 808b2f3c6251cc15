"""Pre-train a base model that has the capability but not the habit: resumable, the same command goes on.

Three stages of problems in every style, each drawn anew for every step, so that no row is seen twice:

    capability   right solutions in the first four styles: the model learns to calculate
    habit        most solutions carry one flaw (``flaws.py``), in all five styles; half of the questions ask for a style, and
                 before one step in twenty stands a sentence that nobody needs
    settle       the same at a lower rate with fewer flaws: after the second stage too few samples were right

After the last stage the model is right in about as many of its samples as the share of right solutions, for nearly every
problem: sampling often enough finds a right solution, and nothing tells it that right ones are wanted.
"""

import itertools
import math
import random
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipelines.chats import Mix, chats
from pipelines.wordings import PRETRAINING_STYLES

BATCH, WINDOW = 128, 20
"""Problems of a step; steps whose problems are drawn together and sorted by length, so that batches need little padding."""

CHECKPOINT_SECONDS = 180


@dataclass(frozen=True)
class Stage:
    """A learning rate that rises over 2 % of the steps and falls linearly to zero, and what is learned."""

    name: str
    mix: Mix
    steps: int
    peak_rate: float


STAGES = (
    Stage("capability", Mix(), steps=2500, peak_rate=3e-3),
    Stage("habit", Mix(PRETRAINING_STYLES, flawed=0.6, requests=0.5, noise=0.05), steps=240, peak_rate=1e-3),
    Stage("settle", Mix(PRETRAINING_STYLES, flawed=0.45, requests=0.5, noise=0.05), steps=120, peak_rate=5e-4),
)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A random Qwen3 of 1.3 million parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,  # padded, as real checkpoints are
        hidden_size=128,
        num_hidden_layers=6,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int, taken: Collection[str], first: int
) -> Iterator[torch.Tensor]:
    """Yield the ids [BATCH, length] of steps ``first``, ``first + 1``, …, right-padded with the pad token."""
    for window in itertools.count(first // WINDOW):
        name = f"{stage.name} {seed} {window}"  # a window depends on nothing drawn before: a resumed run draws the same
        rows = chats(BATCH * WINDOW, name, stage.mix, taken)
        texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
        ids = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        drawn = [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]
        random.Random(name).shuffle(drawn)
        for batch in drawn[first % WINDOW if window == first // WINDOW else 0 :]:
            width = max(map(len, batch))
            yield torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in batch])


class Pretraining:
    """Model, optimizer and how far they are; written to ``checkpoint`` every few minutes and at the end of a stage."""

    def __init__(self, model: Qwen3ForCausalLM, seed: int, checkpoint: Path, stage: int = 0):
        self.model, self.seed, self.checkpoint = model, seed, checkpoint
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.05)
        self.stage, self.step, self.loss, self.seconds = stage, 0, math.nan, 0.0
        if checkpoint.exists():
            self._load(torch.load(checkpoint, weights_only=True))

    def run(self, tokenizer: PreTrainedTokenizerFast, taken: Collection[str], say: Callable[[str], None] = print) -> None:
        """Go on to the end of the last stage."""
        while self.stage < len(STAGES):
            stage, saved = STAGES[self.stage], time.monotonic()
            drawn = batches(tokenizer, stage, self.seed, taken, self.step)
            while self.step < stage.steps:
                started = time.monotonic()
                self._one_step(next(drawn), stage, tokenizer.pad_token_id)
                self.seconds += time.monotonic() - started
                if self.step % 20 == 0 or self.step == stage.steps:
                    say(f"{stage.name} {self.step}/{stage.steps}  loss {self.loss:.4f}  {self.seconds:.0f} s")
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
            self.stage, self.step, self.loss = self.stage + 1, 0, math.nan
            self._save()

    def _one_step(self, ids: torch.Tensor, stage: Stage, padding: int) -> None:
        labels = ids.masked_fill(ids == padding, -100)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(stage, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss = loss.item() if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss.item()

    def _save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        draft = self.checkpoint.with_suffix(".draft")
        counters = {name: getattr(self, name) for name in ("stage", "step", "loss", "seconds", "seed")}
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), **counters}, draft)
        draft.replace(self.checkpoint)

    def _load(self, state: dict[str, Any]) -> None:
        if state["seed"] != self.seed:
            raise SystemExit(f"{self.checkpoint} is of seed {state['seed']}, not {self.seed}: choose another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stage, self.step, self.loss, self.seconds = (state[name] for name in ("stage", "step", "loss", "seconds"))


def learning_rate(stage: Stage, step: int) -> float:
    """The rate of step ``step``, counted from 0."""
    rising = max(1, stage.steps // 50)
    return stage.peak_rate * min((step + 1) / rising, (stage.steps - step) / (stage.steps - rising))
