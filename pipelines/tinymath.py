"""Make everything in ``data/``: problems, tokenizer, and the bundled models.

    python -m pipelines.tinymath data                # sft.jsonl, scarce.jsonl, test.jsonl, …: seconds
    python -m pipelines.tinymath base --seed 1       # a base model: about an hour on two CPU cores; the same command goes on
    python -m pipelines.tinymath warmup              # a short plain fine-tune of the base: seconds
    python -m pipelines.tinymath evaluate            # pass@1, @16 and @64 of all: a minute each

A base is a Qwen3 of 1.3 million parameters, pre-trained on an endless mix of the problems of ``problems.py`` in four
solution styles, most of them flawed (``pretrain.py``). It stands in for the large model of a real run: able to solve
nearly every problem, and right in a third of its samples.
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from pipelines.chats import Mix, chats
from pipelines.pretrain import STAGES, Pretraining, new_model
from pipelines.problems import LARGER
from pipelines.wordings import NEW_STYLE

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
MODELS = DATA / "models"
SFT_ROWS, SCARCE_ROWS, TEST_ROWS, SAMPLE_ROWS = 400, 50, 300, 500
SFT_SEED, TEST_SEED, PRETRAIN_SEED, TOKENIZER_SEED, SCARCE_SEED = 11, 12, 13, 14, 15
LARGER_PROSE = Mix(("prose",), LARGER)
SCARCE = Mix((NEW_STYLE,), noise=0.5)
HELD_OUT = {
    "test-larger": (TEST_ROWS, TEST_SEED, LARGER_PROSE),
    "validation": (100, 21, Mix()),
    "test": (300, 22, Mix()),
    "validation-larger": (100, 23, LARGER_PROSE),
}
"""Problems to choose and to measure by, in the numbers that the base knows and in larger ones: how many, seed, mix."""

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
    """Questions of the test and validation sets: no training set may contain them."""
    return {row["messages"][0]["content"] for name in HELD_OUT for row in held_out(name)}


def held_out(name: str) -> list[dict]:
    """The chats of one of :data:`HELD_OUT`."""
    return list(chats(*HELD_OUT[name]))


def write_chats(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"wrote {path.relative_to(DATA.parent)}")


def make_data() -> None:
    taken = held_out_questions()
    write_chats(DATA / "test.jsonl", held_out("test"))
    write_chats(DATA / "scarce.jsonl", chats(SCARCE_ROWS, SCARCE_SEED, SCARCE, taken))
    write_chats(DATA / "sft.jsonl", chats(SFT_ROWS, SFT_SEED, LARGER_PROSE, taken))
    write_chats(DATA / "pretrain-sample.jsonl", chats(SAMPLE_ROWS, PRETRAIN_SEED, STAGES[-1].mix, taken))


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


def make_base(seed: int, out: Path, start: Path | None) -> None:
    """Pre-train a base, or go on with it. ``start``: a model that has been through the first stage."""
    tokenizer = make_tokenizer() if start is None else AutoTokenizer.from_pretrained(start)
    model = new_model(tokenizer, seed) if start is None else Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
    checkpoint = ROOT / "runs" / "pretrain" / f"base-{seed}.pt"
    run = Pretraining(model, seed, checkpoint, stage=0 if start is None else 1)
    run.run(tokenizer, held_out_questions(), say=lambda line: print(line, flush=True))
    # bfloat16 halves the files; what is evaluated and shipped is the rounded model
    run.model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def evaluate_models(folders: Iterable[Path]) -> None:
    """pass@k of 64 samples each, on the validation problems in the base's numbers and in larger ones."""
    from pipelines.study.measures import WIDE_SAMPLES, Policy, mean_pass_at

    for folder in folders:
        policy = Policy.load(folder)
        for name in ("validation", "validation-larger"):
            correct, length = policy.count_correct(held_out(name), WIDE_SAMPLES, seed=0)
            found = "  ".join(f"pass@{k} {mean_pass_at(k, correct, WIDE_SAMPLES):.1%}" for k in (1, 16, 64))
            print(f"{folder.name}, {name}: {found}  {length:.1f} tokens a reply", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "base", "warmup", "evaluate"])
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the models")
    parser.add_argument("--seed", type=int, default=0, help="of the base; seed 0 is base/, seed 1 base-1/")
    parser.add_argument("--start", type=Path, help="a base that has been through the first stage: begin with the second")
    args = parser.parse_args()
    if args.what == "data":
        make_data()
    elif args.what == "base":
        make_base(args.seed, args.models / (f"base-{args.seed}" if args.seed else "base"), args.start)
    elif args.what == "warmup":
        from pipelines.demo import warm_up
        from tokenstats.training import TrainOptions

        # float32: bfloat16 would round away part of so small a move
        shutil.rmtree(args.models / "warmup", ignore_errors=True)
        options = TrainOptions(epochs=1, learning_rate=3e-4, batch_size=16, accumulation=1, seed=1)
        warm_up(args.models / "warmup", args.models / "base", DATA / "sft.jsonl", options)
    elif args.what == "evaluate":
        evaluate_models(sorted(folder for folder in args.models.iterdir() if folder.is_dir()))


if __name__ == "__main__":
    main()
