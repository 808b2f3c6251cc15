"""Scoring beside what people run today: one process, interleaved, medians, as ratios to the time of ours.

    make bench            or            python -m pipelines.bench_scoring --parts head,rows,padding,batches,end --rounds 5

Head stage: two hidden states of N rows → all statistics. End to end: rows of ids → all statistics, 75 % prompt.

    naive     full logits of both models for every position, float32 log-softmax; end to end in dataset order
    trl       TRL's entropy_from_logits and selective_log_softmax, and a KL over the whole vocabulary
    chunked   naive, but a few rows at a time, so that logits stay small
    floor     the two head products (end to end: both backbones too), into memory that is there already; nothing else
    ours      every column of the contract

Models have random weights in the shape given. Lengths: quantiles of GSM8K's training rows (characters / 3.6, about a
token), and a log-normal with a long tail.
"""

import argparse
import contextlib
import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from pipelines.lengths import lengths_of
from tokenstats.alignment import outputs_that_predict
from tokenstats.modeling.batches import pad, plan_batches
from tokenstats.modeling.load import LoadedModel
from tokenstats.scoring.pair import ModelPair
from tokenstats.scoring.reductions.rows import reduction, row_statistics
from tokenstats.store.manifests import Model

HEADS = {  # hidden, vocabulary, rows
    "hidden 896, V 151,936": (896, 151_936, 1024),
    "hidden 256, V 32,000": (256, 32_000, 2048),
    "hidden 128, V 2,048": (128, 2_048, 8192),
}
Runs = dict[str, Callable[[], object]]


def build_model(
    hidden: int, layers: int, inner: int, heads: int, vocabulary: int, seed: int, device: str, dtype: torch.dtype
) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval().to(device, dtype)


def build_pair(models: list[Qwen2ForCausalLM], vocabulary: int, device: str) -> ModelPair:
    described = Model(source="", fingerprint="", revision=None, architecture="", parameters=0)
    return ModelPair(*(LoadedModel(m, described) for m in models), vocabulary, torch.device(device))


def naive_columns(log_p: Tensor, log_q: Tensor, y: Tensor) -> list[Tensor]:
    """What one writes in an afternoon, from two [.., V] float32 log-softmaxes."""
    p, q = log_p.exp(), log_q.exp()
    own, other = log_p.gather(-1, y), log_q.gather(-1, y)
    return [
        own,
        other,
        -(p * log_p).sum(-1),
        -(q * log_q).sum(-1),
        (p * (log_p - log_q)).sum(-1),
        (q * (log_q - log_p)).sum(-1),
        (log_p > own).sum(-1),
        (log_q > other).sum(-1),
    ]


def trl_columns(z: Tensor, r: Tensor, y: Tensor) -> list[Tensor]:
    log_p, log_q = z.log_softmax(-1), r.log_softmax(-1)
    return [
        *(selective_log_softmax(logits, y) for logits in (z, r)),
        *(entropy_from_logits(logits) for logits in (z, r)),
        torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1),
        torch.nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1),
    ]


def head_stage(hidden: int, vocabulary: int, rows: int, device: str, dtype: torch.dtype) -> Runs:
    models = [build_model(hidden, 1, 16, 2, vocabulary, seed, device, dtype) for seed in (0, 1)]
    pair = build_pair(models, vocabulary, device)
    states = [torch.randn(rows, hidden, device=device, dtype=dtype) for _ in models]
    weights = [m.get_output_embeddings().weight for m in models]
    y = torch.randint(0, vocabulary, (rows,), device=device)
    fits = max(1, (1 << 26) // vocabulary)
    space = torch.empty(2, min(fits, rows), vocabulary, device=device, dtype=dtype)

    def chunks(size: int) -> list[slice]:
        return [slice(s, min(s + size, rows)) for s in range(0, rows, size)]

    def naive(size: int) -> None:
        for c in chunks(size):
            naive_columns(*((s[c] @ w.T).float().log_softmax(-1) for s, w in zip(states, weights, strict=True)), y[c, None])

    def trl() -> None:
        for c in chunks(fits):
            trl_columns(*((s[c] @ w.T).float() for s, w in zip(states, weights, strict=True)), y[c])

    def floor() -> None:
        for c in chunks(fits):
            for s, w, out in zip(states, weights, space, strict=True):
                torch.mm(s[c], w.T, out=out[: c.stop - c.start])

    runs: Runs = {
        "naive": lambda: naive(fits),
        "trl": trl,
        "chunked": lambda: naive(max(1, (1 << 22) // vocabulary)),
        "floor": floor,
        "ours": lambda: row_statistics(pair.split, states, y, vocabulary),
    }
    if reduction(y.device) != "torch":
        runs["ours, torch only"] = lambda: row_statistics(pair.split, states, y, vocabulary, way="torch")
    return runs


def end_to_end(pair: ModelPair, models: list[Qwen2ForCausalLM], lengths: np.ndarray, budget: int) -> Runs:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, pair.vocabulary, n).astype(np.int32) for n in lengths]
    chosen = [np.arange(n) >= max(1, int(0.75 * n)) for n in lengths]

    def batches(plan: list[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        return [
            (pad([rows[i] for i in b], 0).long().to(pair.device), pad([chosen[i] for i in b], False).to(pair.device))
            for b in plan
        ]

    in_order, sorted_ = batches(dataset_order(lengths, budget)), batches(plan_batches(lengths, budget))

    def naive() -> None:
        for ids, targets in in_order:
            mask = torch.ones_like(ids)
            log_p, log_q = (m(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)[:, :-1] for m in models)
            for column in naive_columns(log_p, log_q, ids[:, 1:, None]):
                column[targets[:, 1:]].cpu()

    def floor() -> None:
        for ids, targets in sorted_:
            for half in pair.split:
                states = outputs_that_predict(half.hidden(ids), targets)
                states @ half.model.get_output_embeddings().weight.T

    def ours() -> None:
        for ids, targets in sorted_:
            pair.score(ids, targets, topk=0)

    return {"naive": naive, "floor": floor, "ours": ours}


def dataset_order(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Rows as they come, as many as fit the budget with padding."""
    plan: list[list[int]] = [[]]
    for i, n in enumerate(lengths):
        if plan[-1] and max(n, *(lengths[j] for j in plan[-1])) * (len(plan[-1]) + 1) > budget:
            plan.append([])
        plan[-1].append(i)
    return [np.array(b) for b in plan]


def padding(budget: int) -> None:
    print(f"\npadding, 7,473 rows, budget {budget:,} tokens a batch")
    for kind in ("gsm8k", "log-normal"):
        lengths = lengths_of(kind, 7473)
        waste = {}
        for name, plan in (("dataset order", dataset_order(lengths, budget)), ("ours", plan_batches(lengths, budget))):
            padded = sum(len(b) * lengths[b].max() for b in plan)
            waste[name] = padded - lengths.sum()
            print(f"  {kind:11} {name:14} {padded:10,} tokens with padding, {waste[name] / lengths.sum():6.1%} waste")
        print(f"  {kind:11} {waste['dataset order'] / max(1, waste['ours']):.1f} x less padding")


@torch.inference_mode()
def moved_by_batches(device: str, wider: float) -> None:
    """How far statistics of 12 rows move between one row at a time and 8,192 tokens a batch, six layers of the 0.5B shape."""
    models = [build_model(896, 6, 4864, 14, 32_000, seed, device, torch.float32) for seed in (0, 1)]
    for weight in (p for m in models for p in m.parameters() if p.ndim == 2):
        weight.mul_(wider)
    pair, lengths, rng = build_pair(models, 32_000, device), lengths_of("gsm8k", 12, seed=3), np.random.default_rng(0)
    rows = [torch.from_numpy(rng.integers(0, 32_000, n)) for n in lengths]
    alone: dict[str, list[Tensor]] = {}
    together: dict[str, list[Tensor]] = {}
    for budget, found in ((1, alone), (8192, together)):
        scored: dict[int, dict[str, Tensor]] = {}
        for batch in plan_batches(lengths, budget):
            ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in batch], batch_first=True)
            chosen = torch.stack([(torch.arange(ids.shape[1]) > 0) & (torch.arange(ids.shape[1]) < lengths[i]) for i in batch])
            columns = pair.score(ids.to(device), chosen.to(device), topk=0)
            for name, values in columns.items():
                for i, piece in zip(batch, values.split([int(lengths[i]) - 1 for i in batch]), strict=True):
                    scored.setdefault(i, {})[name] = piece
        for i in range(len(rows)):
            for name, piece in scored[i].items():
                found.setdefault(name, []).append(piece.double())
    print(f"\nbatches, matrices x {wider:g}, lowest log-probability {torch.cat(together['logprob']).min():.1f}")
    for name in ("logprob", "ref_logprob", "entropy", "kl", "reverse_kl"):
        print(f"  {name:12} moves by up to {(torch.cat(alone[name]) - torch.cat(together[name])).abs().max():.1e}")


@torch.inference_mode()
def compare(title: str, runs: Runs, rounds: int, device: str) -> None:
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = {}
    for _ in range(rounds + 1):  # the first round warms up
        for name, run in runs.items():
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated() / 2**30
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}
    print(f"\n{title}")
    for name, seconds in medians.items():
        peak = f"  peak {peaks[name]:5.1f} GiB" if name in peaks else ""
        ratios = f"{seconds / medians['ours']:6.2f} x ours  {seconds / medians['floor']:6.2f} x floor"
        print(f"  {name:18} {seconds:8.3f} s  {ratios}{peak}")


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="head,padding,end", help="which of head, rows, bf16, padding, batches, end")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16, help="rows of the end-to-end part")
    parser.add_argument("--budget", type=int, default=2048, help="padded tokens in one batch, end to end")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    parts, device = args.parts.split(","), args.device
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    print(f"{name}, torch {version('torch')}, {dtype}, sums by {reduction(torch.device(device))}")
    heads = [(title, shape, dtype) for title, shape in HEADS.items() if "head" in parts]
    wide = next(iter(HEADS))
    heads += [(wide, (*HEADS[wide][:2], rows), dtype) for rows in (1, 5, 20, 48, 100, 127, 160, 300, 700) if "rows" in parts]
    heads += [(f"{title}, bfloat16", HEADS[title], torch.bfloat16) for title in [wide] if "bf16" in parts]
    for title, shape, kind in heads:
        compare(f"head stage, {title}, {shape[2]:,} rows", head_stage(*shape, device, kind), args.rounds, device)
    if "padding" in parts:
        padding(8192)
    if "batches" in parts:
        for wider in (1.0, 3.0):
            moved_by_batches(args.device, wider)
    if "end" in parts:
        models = [build_model(896, 24, 4864, 14, 151_936, seed, args.device, dtype) for seed in (0, 1)]
        pair = build_pair(models, 151_936, args.device)
        for kind in ("gsm8k", "log-normal"):
            lengths = np.minimum(lengths_of(kind, args.rows, seed=1), 1024)
            runs = end_to_end(pair, models, lengths, args.budget)
            compare(f"end to end, 0.5B shape, {kind} lengths, {lengths.sum():,} tokens", runs, args.rounds, args.device)
    print(f"\npeak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
