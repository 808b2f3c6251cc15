"""How near to the truth is each architecture's scoring? Ours, and plain transformers in float32, against float64.

    python -m pipelines.matrix [KIND …] [--to docs/MODELS.md]       make matrix

For every architecture that AutoModelForCausalLM knows, a small random model and one that has moved from it are scored over
rows of 2 to 150 tokens: by tokenstats, from disk to columns, in batches of 512 and of 8,192 tokens and with the rows in another
order; by the plain model, a row at a time; and by the same model in float64 throughout, a row at a time in a fresh copy.
"""

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipelines.tiny_models import NOT_BUILT, VOCABULARY, kinds, moved, tiny_model
from tokenstats.errors import TokenstatsError, one_line
from tokenstats.modeling.load import load_model
from tokenstats.schema import TOKENS_SCHEMA
from tokenstats.scoring.pair import ModelPair
from tokenstats.scoring.score_part import Budget, score_part

LENGTHS = (150, 2, 97, 33, 150, 64, 5, 120, 17, 80, 48, 111, 3)
_FLOATS = ("logprob", "entropy", "sum_p2", "top1_logprob", "ref_logprob", "ref_entropy", "kl", "reverse_kl")
_WHOLE = ("rank", "ref_rank", "top1_id")
_STORED = 2e-7
"""What float32 itself loses of numbers of a few nats: no column is asked to be nearer than that."""


@dataclass
class Measured:
    """Errors of one architecture. All in nats, by root mean square over the scored tokens, the worst column of each."""

    kind: str
    way: str = ""
    plain: dict[str, float] = field(default_factory=dict)
    ours: dict[str, float] = field(default_factory=dict)
    batches: float = 0.0
    order: float = 0.0
    unlike: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    refusal: str = ""

    @property
    def worst(self) -> str:
        """The column whose error is the largest multiple of plain float32's."""
        return max(self.ours, key=lambda name: self.ours[name] / max(self.plain[name], _STORED))

    @property
    def ratio(self) -> float:
        """Our error as a multiple of plain float32's, of the column where it is the largest."""
        return max((self.ours[name] / max(self.plain[name], _STORED) for name in self.ours), default=0.0)


class Float64(TorchFunctionMode):
    """Models cast to float32 here and there, whatever their weights are: while this is entered they get float64 instead."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        swap = {torch.float32: torch.float64}
        args = tuple(swap.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = {k: swap.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def measure(kind: str, folder: Path, **changes: Any) -> Measured:
    """Score one architecture in all ways; ``folder`` takes its two checkpoints."""
    started = time.perf_counter()
    found = Measured(kind)
    reference = tiny_model(kind, **changes)
    policy = copy.deepcopy(reference)
    moved(policy)
    for name, model in (("policy", policy), ("reference", reference)):
        model.save_pretrained(folder / name)
    rows = sample_rows()
    try:
        by_ours = {budget: scored(folder, rows, budget, found) for budget in (512, 8192)}
        order = np.random.default_rng(1).permutation(len(rows))
        shuffled = scored(folder, [rows[i] for i in order], 512, found)
    except TokenstatsError as error:
        found.refusal = one_line(error, 400).replace(str(folder), "").replace("/policy", "it")
        return found
    truth = plain_columns(folder, rows, torch.float64)
    plain = plain_columns(folder, rows, torch.float32)
    ours = by_ours[8192]
    for name in _FLOATS:
        found.plain[name] = rms(plain[name].astype(np.float32), truth[name])
        found.ours[name] = max(rms(columns[name], truth[name]) for columns in by_ours.values())
    for name in _WHOLE:
        found.unlike[name] = int((plain[name] != truth[name]).sum()), int((ours[name] != truth[name]).sum())
    found.batches = max(float(np.abs(by_ours[512][name] - ours[name]).max()) for name in _FLOATS)
    back = np.concatenate([np.flatnonzero(np.repeat(order, [len(rows[i]) - 1 for i in order]) == i) for i in range(len(rows))])
    found.order = max(float(np.abs(shuffled[name][back] - by_ours[512][name]).max()) for name in _FLOATS)
    found.seconds = time.perf_counter() - started
    return found


def sample_rows(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, length).astype(np.int32) for length in LENGTHS]


def scored(folder: Path, rows: list[np.ndarray], budget: int, found: Measured) -> dict[str, np.ndarray]:
    """The columns of all tokens but each row's first, as tokenstats scores them."""
    cpu = torch.device("cpu")
    policy, reference = (load_model(str(folder / name), "float32", cpu) for name in ("policy", "reference"))
    pair = ModelPair(policy, reference, VOCABULARY, cpu)
    ways, notes = pair.check(torch.from_numpy(max(rows, key=len)[None]).long())
    found.notes = [note.replace(str(folder / "policy"), "it") for note in notes if str(folder / "reference") not in note]
    found.way = next(iter(ways.values())).partition(":")[0]
    table, _ = score_part(as_tokens(rows), pair, topk=0, score_all=True, budget=Budget(budget))
    return {name: table[name].combine_chunks().flatten().drop_null().to_numpy() for name in (*_FLOATS, *_WHOLE)}


def as_tokens(rows: list[np.ndarray]) -> pa.Table:
    """Rows of ids as a part of tokens, all of them targets."""
    lists = [
        [list(map(int, row)) for row in rows],
        [[False] + [True] * (len(row) - 1) for row in rows],
        [[3] * len(row) for row in rows],
    ]
    ids = [f"{i:09d}-{0:016x}" for i in range(len(rows))]
    return pa.table([ids, *lists, list(range(len(rows))), [False] * len(rows)], schema=TOKENS_SCHEMA)


def plain_columns(folder: Path, rows: list[np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Logits of each row alone, in a fresh copy of each model, in one type; the formulas on them in float64."""
    loaded = [transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in _PAIR]
    for model in loaded if dtype == torch.float64 else ():
        model.set_experts_implementation("eager")  # the grouped products of experts know no float64
    pieces = []
    for row in rows:
        ids = torch.from_numpy(row[None]).long()
        z, r = (plain_logits(copy.deepcopy(model), ids, dtype)[:, :VOCABULARY] for model in loaded)
        pieces.append(definitions(z[:-1], r[:-1], ids[0, 1:]))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


_PAIR = ("policy", "reference")


def plain_logits(model: nn.Module, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, V] as the model itself gives them, in float64."""
    with torch.no_grad():
        if dtype == torch.float64:
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                with Float64():
                    return model.double().eval()(input_ids=ids, use_cache=False).logits[0]
            finally:
                torch.set_default_dtype(before)
        return model.eval()(input_ids=ids, use_cache=False).logits[0].double()


def definitions(z: Tensor, r: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """The columns straight from their definitions; [N, V] logits of both models in float64, [N] targets."""
    log_p, log_q = z.double().log_softmax(-1), r.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()

    def at(values: Tensor) -> Tensor:
        return values.gather(-1, y[:, None])[:, 0]

    columns = {
        "logprob": at(log_p),
        "entropy": -(p * log_p).sum(-1),
        "sum_p2": p.square().sum(-1),
        "top1_logprob": log_p.amax(-1),
        "ref_logprob": at(log_q),
        "ref_entropy": -(q * log_q).sum(-1),
        "kl": (p * (log_p - log_q)).sum(-1),
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
        "rank": (z > at(z)[:, None]).sum(-1),
        "ref_rank": (r > at(r)[:, None]).sum(-1),
        "top1_id": z.argmax(-1),
    }
    return {name: column.numpy() for name, column in columns.items()}


def rms(values: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64) - truth))))


_HEAD = """# Architectures

Every architecture that `AutoModelForCausalLM` of transformers {version} knows, as a small random model and one that has
moved from it, against the same models in float64 throughout. Made by `make matrix`; what is measured is said in
[pipelines/matrix.py](../pipelines/matrix.py).

*plain*: error of plain transformers in float32, a row at a time, in the column where ours is the largest multiple of it, root
mean square over the tokens, in nats (of `sum_p2`: in shares). *batches*: the most that any number moves between batches of 512
and of 8,192 tokens. *order*: the same, between two orders of the rows.

Whether rows disturb each other is tried on a probe of 160 tokens, beside a row of 320. What depends on the width of a batch
only beyond that is known by its configuration: dynamic and longrope rotary scaling, and attention that picks the best keys
(`index_topk`, of DeepSeek V3.2 and V4, GLM's and others with their indexer; `keep_window_size` of Doge). Rows with more tokens
than that share a batch only with rows of their own length. Which keys are picked hangs on the last bit of their scores: single
tokens of such rows may differ between batches, as they do in plain float32. Another architecture that brings a threshold of its
own, beyond the probe, is not seen.

"""


def table(measured: list[Measured]) -> Iterator[str]:
    """The page of docs, line by line."""
    yield from _HEAD.format(version=transformers.__version__).splitlines()
    yield "| architecture | head | worst column | plain | ours | ratio | batches | order | said at the start |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for one in measured:
        if one.refusal:
            yield f"| {one.kind} | refused | | | | | | | {one.refusal} |"
            continue
        name, notes = one.worst, "; ".join(one.notes).replace("|", "/")
        yield (
            f"| {one.kind} | {one.way} | {name} | {one.plain[name]:.1e} | {one.ours[name]:.1e} | {one.ratio:.2f} | "
            f"{one.batches:.1e} | {one.order:.1e} | {notes} |"
        )
    yield ""
    yield "Not tried:"
    yield ""
    yield from (f"- {kind}: {why}" for kind, why in NOT_BUILT.items())


def main() -> None:
    parser = argparse.ArgumentParser(description="Scoring of every architecture against float64.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="architectures, by their type [all]")
    parser.add_argument("--to", type=Path, help="write the table to this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    measured = []
    for kind in args.kinds or kinds():
        with tempfile.TemporaryDirectory() as folder:
            found = measure(kind, Path(folder))
        measured.append(found)
        print(kind, found.refusal or f"{found.way}, ratio {found.ratio:.2f} ({found.worst}), {found.seconds:.1f} s", flush=True)
    if args.to:
        args.to.write_text("\n".join(table(measured)) + "\n")


if __name__ == "__main__":
    main()
