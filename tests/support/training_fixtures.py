"""Tiny random models, a tokenizer and stores with masks: what the tests of training share. No network, no big model."""

import json
import socket
from collections.abc import Callable, Container
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipelines.processes import Started
from tokenstats.corpus.build import build_tokens, plan_corpus
from tokenstats.corpus.options import CorpusOptions
from tokenstats.corpus.sources import open_source
from tokenstats.schema import mask_schema
from tokenstats.store import Store
from tokenstats.store.manifests import Clause, MaskManifest
from tokenstats.store.parts import digest_of, part_path, write_part
from tokenstats.training import TrainOptions

torch.set_num_threads(1)  # matrices this small are slower on several

SFT = Path(__file__).resolve().parents[2] / "data" / "sft.jsonl"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ROWS = 24
QUICK = TrainOptions(max_steps=6, batch_size=4, accumulation=1, learning_rate=1e-3, device="cpu", logging_steps=1, plot=False)

PerToken = Callable[[int, np.ndarray], np.ndarray]
"""(row, is_target) → what is said of each of its tokens: kept or not, or what it weighs."""

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


def uneven(row: int, is_target: np.ndarray) -> np.ndarray:
    """Weights from 0 to 2; every fifth token, and all of row 7, weigh nothing."""
    weights = 2 * np.random.default_rng(row).random(len(is_target), np.float32)
    return np.where((np.arange(len(is_target)) % 5 != 0) & (row != 7), weights, np.float32(0))


def sequences(store: Store) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, is_target) of every row, read with nothing of the training code."""
    tables = [store.part("tokens", i) for i in range(store.part_count)]
    columns = [[row for t in tables for row in t[name].to_pylist()] for name in ("input_ids", "is_target")]
    return [(np.array(ids), np.array(flags)) for ids, flags in zip(*columns, strict=True)]


def build_store(
    folder: Path, rows: int = ROWS, part_tokens: int = 600, tokenizer: PreTrainedTokenizerFast | None = None
) -> Store:
    """A store of short chats in several parts, in the ids of :func:`byte_tokenizer` or another. Nothing is scored."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in short_chats(rows)))
    corpus = plan_corpus(open_source(data), tokenizer or byte_tokenizer(), "bytes", CorpusOptions(part_tokens=part_tokens))
    store = build_tokens(corpus, folder / "store")
    assert store.part_count > 1
    return store


def masked_store(folder: Path) -> Store:
    """A store with masks of all kinds: of some tokens, all, nothing, another store's; and some that weigh."""
    store = build_store(folder)
    add_mask(store, "some", every_third_dropped)
    add_mask(store, "all", lambda row, is_target: is_target)
    add_mask(store, "nothing", lambda row, is_target: np.zeros(len(is_target), bool))
    add_mask(store, "foreign", every_third_dropped, store_fingerprint="0" * 32)
    add_mask(store, "uneven", every_third_dropped, weighs=uneven)
    add_mask(store, "ones", every_third_dropped, weighs=lambda row, is_target: np.ones(len(is_target)))
    add_mask(store, "weightless", every_third_dropped, weighs=lambda row, is_target: np.zeros(len(is_target)))
    return store


def add_mask(
    store: Store,
    name: str,
    keeps: PerToken,
    rule: str = "nll > 2",
    store_fingerprint: str | None = None,
    weighs: PerToken | None = None,
    second: PerToken | None = None,
) -> list[np.ndarray]:
    """Write a mask that keeps, and weighs, what it is told to; returns the kept tokens of each row.

    ``second``: what of the dropped tokens a second clause drops too.
    """
    folder, kept, row, schema = store.path / "masks" / name, [], 0, mask_schema(weighs is not None)
    for index in range(store.part_count):
        table = store.part("tokens", index)
        flags = [np.array(f) for f in table["is_target"].to_pylist()]
        part = [np.asarray(keeps(row + i, f), bool) & f for i, f in enumerate(flags)]
        reasons = [
            ((f & ~k) * (1 + 2 * (second(row + i, f) if second is not None else 0))).astype(np.uint16).tolist()
            for i, (f, k) in enumerate(zip(flags, part, strict=True))
        ]
        columns = [table["seq_id"], pa.array([k.tolist() for k in part]), pa.array(reasons, pa.list_(pa.uint16()))]
        if weighs is not None:
            weights = [np.where(k, weighs(row + i, f), 0).tolist() for i, (f, k) in enumerate(zip(flags, part, strict=True))]
            columns.append(pa.array(weights, pa.list_(pa.float32())))
        write_part(folder, index, pa.table(columns, schema=schema), {})
        row += len(part)
        kept += part
    digests = [digest_of(part_path(folder, index)) for index in range(store.part_count)]
    MaskManifest(
        created="now",
        parts=tuple(p.model_copy(update={"digest": d}) for p, d in zip(store.manifest.parts, digests, strict=True)),
        fingerprint=f"mask-{name}",
        store_fingerprint=store_fingerprint or store.fingerprint,
        rule={"drop": rule},
        rule_fingerprint=f"rule-{name}",
        scorings={},
        thresholds={},
        clauses=(Clause(text=rule, dropped=0),) + (Clause(text="kl > 1", dropped=0),) * (second is not None),
        targets=store.manifest.targets,
        kept=int(sum(k.sum() for k in kept)),
        protected=0,
        rows_with_nothing_kept=sum(not k.any() for k in kept),
        weighted=weighs is not None,
    ).write(folder)
    return kept


def remake_part(store: Store, family: str, index: int, table: pa.Table) -> Store:
    """Put another table in the place of a part, and record its digest, as a tool would that makes parts wrongly."""
    folder = store.path / family
    write_part(folder, index, table, {})
    path = (store.path if family == "tokens" else folder) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    manifest["parts"][index]["digest"] = digest_of(part_path(folder, index))
    path.write_text(json.dumps(manifest))
    return Store(store.path)


def exported_table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / "data").glob("*.parquet"))])


def saved_parameters(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors"
    return load_file(folder / name)


def largest_difference(one: Path, two: Path) -> float:
    a, b = saved_parameters(one), saved_parameters(two)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def losses(folder: Path) -> list[float]:
    return [e["loss"] for e in json.loads((folder / "history.json").read_text())["training"]]


def nll_of(store: Store, model: str, weighs: PerToken, rows: Container[int] = range(ROWS)) -> tuple[float, float]:
    """Σ w · −log p and Σ w, w being what ``weighs`` says: one row at a time, from the model's own logits."""
    network, total, weight = Qwen3ForCausalLM.from_pretrained(model).eval(), 0.0, 0.0
    for row, (ids, is_target) in enumerate(sequences(store)):
        if row in rows:
            counts = torch.from_numpy(np.asarray(weighs(row, is_target), float))[1:]
            tokens = torch.from_numpy(ids)
            with torch.no_grad():
                nll = cross_entropy(network(input_ids=tokens[None]).logits[0, :-1].double(), tokens[1:], reduction="none")
            total, weight = total + float((nll * counts).sum()), weight + float(counts.sum())
    return total, weight


def train_on_two_processes(
    store: Store, model: str, masks: tuple[str, ...], out: Path, options: TrainOptions, follow: str = "None"
) -> None:
    """``follow``: the expression that makes the rule to follow."""
    run_on_two_processes(
        "from pathlib import Path; from tokenstats.training import TrainOptions, train; "
        f"[train({str(store.path)!r}, model={model!r}, mask=m, out=Path({str(out)!r}) / m, options={options!r}, "
        f"follow={follow}) for m in {masks!r}]"
    )


def run_on_two_processes(code: str) -> None:
    """Run statements as torchrun would have them run."""
    # a process that leaves while the other still talks to it is aborted by gloo at its own exit, now and then
    leave = "torch.distributed.barrier(); torch.distributed.destroy_process_group()"
    code = f"import torch; torch.set_num_threads(1); {code}; {leave}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [Started(code, changes={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
