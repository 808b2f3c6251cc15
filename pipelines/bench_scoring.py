"""Scoring beside what people do today, in one process, interleaved, medians, as ratios.

    make bench            or            python -m pipelines.bench_scoring --rounds 5

    naive   full logits of both models for every position, float32 log-softmax, batches in dataset order
    floor   both backbones and two bare head products on the target rows, nothing else, on our batches
    ours    tokenstats: length-sorted batches, the head on target rows only, every column

Models have random weights in the shape given; lengths are those of the bundled SFT set, repeated.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from tokenstats.alignment import outputs_that_predict
from tokenstats.corpus.build import plan_corpus
from tokenstats.corpus.sources import open_source
from tokenstats.corpus.tokenize import Counts, tokenized
from tokenstats.modeling.load import LoadedModel
from tokenstats.scoring.batches import pad, plan_batches
from tokenstats.scoring.pair import ModelPair
from tokenstats.store.manifests import Model

DATA = Path(__file__).resolve().parent.parent / "data"
SHAPES = {  # hidden, layers, vocabulary
    "bundled (hidden 128, V 768)": (128, 6, 768),
    "hidden 256, V 32,000": (256, 4, 32_000),
}
Rows = list[tuple[np.ndarray, np.ndarray]]


def build_model(hidden: int, layers: int, vocabulary: int, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=3 * hidden,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


def load_rows(count: int) -> Rows:
    tokenizer = AutoTokenizer.from_pretrained(DATA / "models" / "base")
    corpus = plan_corpus(open_source(DATA / "sft.jsonl"), tokenizer, "base")
    return [(s.ids, s.is_target) for s in tokenized(corpus, Counts())][:count]


@torch.inference_mode()
def naive(models: list[Qwen3ForCausalLM], rows: Rows, budget: int) -> None:
    """What one writes in an afternoon: everything, everywhere, in float32."""
    size = max(1, budget // max(len(ids) for ids, _ in rows))
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        ids, chosen = pad([r[0] for r in batch], 0).long(), pad([r[1] for r in batch], False)
        mask = pad([np.ones(len(r[0]), np.int64) for r in batch], 0)
        log_p, log_q = (m(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)[:, :-1] for m in models)
        p, q, y = log_p.exp(), log_q.exp(), ids[:, 1:, None]
        columns = [
            log_p.gather(-1, y).squeeze(-1),
            log_q.gather(-1, y).squeeze(-1),
            -(p * log_p).sum(-1),
            -(q * log_q).sum(-1),
            (p * (log_p - log_q)).sum(-1),
            (q * (log_q - log_p)).sum(-1),
            (log_p > log_p.gather(-1, y)).sum(-1),
        ]
        for column in columns:
            column[chosen[:, 1:]].numpy()


@torch.inference_mode()
def floor(pair: ModelPair, rows: Rows, budget: int) -> None:
    for ids, chosen in our_batches(rows, budget):
        for split in pair.split:
            split.logits(outputs_that_predict(split.hidden(ids), chosen))


def ours(pair: ModelPair, rows: Rows, budget: int) -> None:
    for ids, chosen in our_batches(rows, budget):
        pair.score(ids, chosen, topk=0)


def our_batches(rows: Rows, budget: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    plan = plan_batches([len(ids) for ids, _ in rows], budget)
    return [(pad([rows[i][0] for i in b], 0).long(), pad([rows[i][1] for i in b], False)) for b in plan]


def timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--budget", type=int, default=4096, help="padded tokens in one batch")
    args = parser.parse_args()
    rows = load_rows(args.rows)
    tokens, targets = sum(len(r[0]) for r in rows), sum(int(r[1].sum()) for r in rows)
    print(f"{len(rows)} rows, {tokens:,} tokens, {targets:,} targets")
    print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    for title, (hidden, layers, vocabulary) in SHAPES.items():
        models = [build_model(hidden, layers, vocabulary, seed) for seed in (0, 1)]
        described = Model(source="", fingerprint="", revision=None, architecture="", parameters=0)
        pair = ModelPair(*(LoadedModel(m, described) for m in models), vocabulary, torch.device("cpu"))
        runs = {
            "naive": lambda m=models: naive(m, rows, args.budget),
            "floor": lambda p=pair: floor(p, rows, args.budget),
            "ours": lambda p=pair: ours(p, rows, args.budget),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds + 1):
            for name, run in runs.items():
                times[name].append(timed(run))
        medians = {name: statistics.median(t[1:]) for name, t in times.items()}  # the first round warms up
        print(f"\n{title}")
        for name, seconds in medians.items():
            ratio = medians[name] / medians["ours"]
            print(f"  {name:6} {seconds:7.3f} s  {tokens / seconds:9,.0f} tokens/s  {ratio:5.2f} x the time of ours")


if __name__ == "__main__":
    main()
