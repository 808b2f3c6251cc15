"""Tiny random models, a tokenizer and stores with masks: what the tests of training share. No network, no big model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tokenstats.corpus.build import build_tokens, plan_corpus
from tokenstats.corpus.sources import open_source
from tokenstats.schema import MASK_SCHEMA
from tokenstats.store import Store
from tokenstats.store.manifests import Clause, MaskManifest
from tokenstats.store.parts import write_part

torch.set_num_threads(1)  # matrices this small are slower on several

SFT = Path(__file__).resolve().parent.parent / "data" / "sft.jsonl"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_tokenizer(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token per byte; ``extra`` words make it another tokenizer."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *extra]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=SPECIAL,
        chat_template=TEMPLATE,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        clean_up_tokenization_spaces=False,
    )


def tiny_config(**changes: object) -> Qwen3Config:
    settings = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return Qwen3Config(**{**settings, **changes})


def tiny_model(seed: int = 0, **changes: object) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(tiny_config(**changes))


def save_tiny_model(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, **changes: object) -> str:
    tiny_model(**changes).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return str(folder)


def short_chats(count: int) -> list[dict]:
    """Chats of the bundled data, cut short: 30 characters of question and 5 to 24 of reply."""
    rows = [json.loads(line)["messages"] for line in SFT.read_text().splitlines()[:count]]
    return [
        {
            "messages": [
                {"role": "user", "content": q["content"][:30]},
                {"role": "assistant", "content": a["content"][: 5 + i % 20]},
            ]
        }
        for i, (q, a) in enumerate(rows)
    ]


def every_third_dropped(row: int, is_target: np.ndarray) -> np.ndarray:
    """Keeps two of three tokens, and nothing of row 3."""
    return (np.arange(len(is_target)) % 3 != 0) & (row != 3)


def sequences(store: Store) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, is_target) of every row, read with nothing of the training code."""
    tables = [store.part("tokens", i) for i in range(store.part_count)]
    columns = [[row for t in tables for row in t[name].to_pylist()] for name in ("input_ids", "is_target")]
    return [(np.array(ids), np.array(flags)) for ids, flags in zip(*columns, strict=True)]


def build_store(folder: Path, rows: int = 24, part_tokens: int = 600) -> Store:
    """A store of short chats in several parts, in the ids of :func:`byte_tokenizer`. Nothing is scored."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in short_chats(rows)))
    corpus = plan_corpus(open_source(data), byte_tokenizer(), "bytes", part_tokens=part_tokens)
    store = build_tokens(corpus, folder / "store")
    assert store.part_count > 1
    return store


def add_mask(
    store: Store,
    name: str,
    keeps: Callable[[int, np.ndarray], np.ndarray],
    rule: str = "nll > 2",
    store_fingerprint: str | None = None,
) -> list[np.ndarray]:
    """Write a mask that keeps what ``keeps(row, is_target)`` says; returns the kept tokens of each row."""
    folder, kept, row = store.path / "masks" / name, [], 0
    for index in range(store.part_count):
        table = store.part("tokens", index)
        flags = [np.array(f) for f in table["is_target"].to_pylist()]
        part = [np.asarray(keeps(row + i, f), bool) & f for i, f in enumerate(flags)]
        row += len(part)
        kept += part
        reasons = [(f & ~k).astype(np.uint16).tolist() for f, k in zip(flags, part, strict=True)]
        columns = [table["seq_id"], pa.array([k.tolist() for k in part]), pa.array(reasons, pa.list_(pa.uint16()))]
        write_part(folder, index, pa.table(columns, schema=MASK_SCHEMA), {})
    MaskManifest(
        created="now",
        parts=store.manifest.parts,
        fingerprint=f"mask-{name}",
        store_fingerprint=store_fingerprint or store.fingerprint,
        rule={"drop": rule},
        rule_fingerprint=f"rule-{name}",
        scorings={},
        thresholds={},
        clauses=(Clause(text=rule, dropped=0),),
        targets=store.manifest.targets,
        kept=int(sum(k.sum() for k in kept)),
        protected=0,
        rows_with_nothing_kept=sum(not k.any() for k in kept),
    ).write(folder)
    return kept
