"""Make everything in ``data/``: problems, tokenizer, and the two bundled models.

    python -m pipelines.tinymath data          # sft.jsonl, test.jsonl, pretrain-sample.jsonl: seconds
    python -m pipelines.tinymath base          # tokenizer and base model: about an hour on two CPU cores
    python -m pipelines.tinymath warmup        # a short plain fine-tune of the base: seconds
    python -m pipelines.tinymath evaluate      # greedy accuracy and pass@8 of both

The base is a Qwen3 of 1.3 million parameters, pre-trained on an endless mix of the problems of ``problems.py`` in all
solution styles. It stands in for the large model of a real run: right often enough to be interesting, wrong often
enough to have something to learn.
"""

import argparse
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipelines.problems import LARGER, chats

DATA = Path(__file__).resolve().parent.parent / "data"
SFT_ROWS, TEST_ROWS, SAMPLE_ROWS = 400, 300, 500
SFT_SEED, TEST_SEED, PRETRAIN_SEED, TOKENIZER_SEED = 11, 12, 13, 14
SFT_STYLE = ("prose",)

CHAT_TEMPLATE = (
    "{%- if tools %}{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] }}"
    "{%- if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif -%}"
    "{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{%- else -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"
)


def held_out_questions() -> set[str]:
    """Questions of the test set: no other set may contain them."""
    return {c["messages"][0]["content"] for c in chats(TEST_ROWS, TEST_SEED, SFT_STYLE, LARGER)}


def write_chats(path: Path, rows: Iterator[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"wrote {path.relative_to(DATA.parent)}")


def make_data() -> None:
    held_out = held_out_questions()
    write_chats(DATA / "test.jsonl", chats(TEST_ROWS, TEST_SEED, SFT_STYLE, LARGER))
    write_chats(DATA / "sft.jsonl", chats(SFT_ROWS, SFT_SEED, SFT_STYLE, LARGER, held_out))
    write_chats(DATA / "pretrain-sample.jsonl", chats(SAMPLE_ROWS, PRETRAIN_SEED, taken=held_out))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((m["content"] for c in chats(20_000, TOKENIZER_SEED) for m in c["messages"]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def pretraining_batches(tokenizer: PreTrainedTokenizerFast, batch_size: int, steps: int) -> Iterator[torch.Tensor]:
    """Yield [batch, length] ids, right-padded with the pad token, of rows of about equal length."""
    rows = chats(batch_size * steps, PRETRAIN_SEED, taken=held_out_questions())
    rng = random.Random(PRETRAIN_SEED)
    while window := list(itertools.islice(rows, batch_size * 20)):
        texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in window]
        ids = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        batches = [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)]
        rng.shuffle(batches)
        for batch in batches:
            width = max(map(len, batch))
            yield torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in batch])


def make_base(steps: int, out: Path, batch_size: int = 128, peak_lr: float = 3e-3) -> None:
    """Pre-train the base model: AdamW, linear warm-up, linear decay to zero."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = make_tokenizer()
    vocabulary = math.ceil(len(tokenizer) / 64) * 64  # padded, as real checkpoints are
    config = Qwen3Config(
        vocab_size=vocabulary,
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
    model = Qwen3ForCausalLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.05)
    warmup = max(1, steps // 50)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, max(0.0, (steps - s) / (steps - warmup)))
    )
    started, running = time.time(), math.nan
    for step, ids in enumerate(pretraining_batches(tokenizer, batch_size, steps)):
        ids = ids.to(device)
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        with torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}/{steps}  loss {running:.4f}  {time.time() - started:.0f} s", flush=True)
    # bfloat16 halves the files; what is evaluated and shipped is the rounded model
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def evaluate_models(folders: list[Path]) -> None:
    from pipelines.evaluate import evaluate, load_chats

    rows = load_chats(DATA / "test.jsonl")
    for folder in folders:
        model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        print(folder.name, evaluate(model, AutoTokenizer.from_pretrained(folder), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "base", "warmup", "evaluate"])
    parser.add_argument("--steps", type=int, default=3500, help="pre-training steps of 128 problems")
    parser.add_argument("--models", type=Path, default=DATA / "models", help="folder of base/ and warmup/")
    args = parser.parse_args()
    if args.what == "data":
        make_data()
    elif args.what == "base":
        make_base(args.steps, out=args.models / "base")
    elif args.what == "warmup":
        from pipelines.demo import warm_up

        # float32: bfloat16 would round away part of so small a move
        shutil.rmtree(args.models / "warmup", ignore_errors=True)
        warm_up(args.models / "warmup", base=args.models / "base")
    elif args.what == "evaluate":
        evaluate_models([args.models / "base", args.models / "warmup"])


if __name__ == "__main__":
    main()
