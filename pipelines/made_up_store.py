"""Stores with made-up statistics, as large as one likes: real Parquet through the project's own writer, no model.

    python -m pipelines.made_up_store runs/made-up --tokens 10000000

Parts are drawn one by one, each from its own seed: memory does not grow with the store. Lengths are log-normal with a mean
of about 350 tokens, about 60 % of the tokens are targets, a third of the sequences has several turns. Entropy, KL and the
two log-probabilities are skewed, related to each other, and full of ties; all other statistics are 0.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from tokenstats.schema import ROLES, SCHEMA_VERSION, TOKENS_SCHEMA, stats_schema
from tokenstats.store import Store
from tokenstats.store.manifests import Dataset, Model, Part, ScoringManifest, StoreManifest, Template, Tokenizer
from tokenstats.store.parts import digest_of, part_path, write_part

END_OF_TURN, SPECIAL = 2, (0, 1, 2)
VOCABULARY = 50_000
USER, ASSISTANT = ROLES.index("user"), ROLES.index("assistant")
_LENGTHS = {"mean": np.log(350) - 0.6**2 / 2, "sigma": 0.6}
_SHORTEST, _LONGEST, _MOST_TURNS = 8, 4096, 4


@dataclass(frozen=True)
class FlatPart:
    """N tokens of R rows, flat: ``offsets`` [R + 1] cut them into rows; ``statistics`` [N] count at targets only."""

    offsets: np.ndarray
    ids: np.ndarray
    is_target: np.ndarray
    role: np.ndarray
    statistics: Mapping[str, np.ndarray]


def write_store(path: Path, parts: Iterable[FlatPart], scoring: str = "warm", vocabulary: int = VOCABULARY) -> Store:
    """Write a finished store of one scoring, part by part; statistics that a part does not name are 0."""
    listed: dict[str, list[Part]] = {"tokens": [], "stats": []}
    rows = targets = 0
    for index, part in enumerate(parts):
        count = len(part.offsets) - 1
        names = pa.array([f"{i:09d}-{'0' * 16}" for i in range(rows, rows + count)])
        write_part(path / "tokens", index, _tokens(part, names, rows), {"made": "up"})
        write_part(path / "stats" / scoring, index, _statistics(part, names), {"made": "up"})
        for family, folder in (("tokens", path / "tokens"), ("stats", path / "stats" / scoring)):
            listed[family].append(Part(rows=count, tokens=len(part.ids), digest=digest_of(part_path(folder, index))))
        rows += count
        targets += int(np.count_nonzero(part.is_target))
    _write_manifests(path, scoring, listed, targets, vocabulary)
    return Store(path)


def _tokens(part: FlatPart, names: pa.Array, first: int) -> pa.Table:
    offsets = pa.array(part.offsets, pa.int32())
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(values, kind))
        for values, kind in ((part.ids, pa.int32()), (part.is_target, pa.bool_()), (part.role, pa.int8()))
    ]
    numbers = pa.array(np.arange(first, first + len(names)))
    return pa.table([names, *lists, numbers, pa.array(np.zeros(len(names), bool))], schema=TOKENS_SCHEMA)


def _statistics(part: FlatPart, names: pa.Array) -> pa.Table:
    schema = stats_schema(with_reference=True)
    offsets, absent = pa.array(part.offsets, pa.int32()), ~part.is_target
    absent[part.offsets[:-1]] = True  # nothing predicts a first token
    zeros = np.zeros(len(part.ids), np.float32)
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(part.statistics.get(f.name, zeros), f.type.value_type, mask=absent))
        for f in list(schema)[1:]
    ]
    return pa.table([names, *lists], schema=schema)


def _write_manifests(path: Path, scoring: str, parts: Mapping[str, Sequence[Part]], targets: int, vocabulary: int) -> None:
    shared = {"schema_version": SCHEMA_VERSION, "created": ""}
    rows, tokens = sum(p.rows for p in parts["tokens"]), sum(p.tokens for p in parts["tokens"])
    StoreManifest(
        **shared,
        parts=tuple(parts["tokens"]),
        fingerprint="f" * 32,
        dataset=Dataset(
            source="made up", fingerprint="", shape="text", columns={}, rows=rows, dropped={}, first_dropped={}, truncated=0
        ),
        tokenizer=Tokenizer(
            source="", fingerprint="", size=vocabulary, bos_id=None, end_of_turn_ids=(END_OF_TURN,), special_ids=SPECIAL
        ),
        template=Template(fingerprint="", targets="text", max_length=None),
        part_tokens=0,
        sequences=rows,
        tokens=tokens,
        targets=targets,
    ).write(path)
    model = Model(source="made up", fingerprint="", revision=None, architecture="", parameters=0)
    ScoringManifest(
        **shared,
        parts=tuple(parts["stats"]),
        fingerprint="e" * 32,
        store_fingerprint="f" * 32,
        model=model,
        reference=model,
        dtype="float32",
        device="cpu",
        vocabulary=vocabulary,
        topk=0,
        score_all=False,
        head={},
        versions={},
        scored=0,
        means={},
        padding=0.0,
    ).write(path / "stats" / scoring)


def made_up_part(tokens: int, seed: int, index: int) -> FlatPart:
    """One part of at most ``tokens`` tokens, from its seed and its number alone."""
    rng = np.random.default_rng([seed, index])
    lengths = np.clip(rng.lognormal(**_LENGTHS, size=1 + tokens // 200), _SHORTEST, _LONGEST).astype(np.int64)
    lengths = lengths[np.cumsum(lengths) <= tokens]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    is_target, ends = _turns(rng, lengths)
    ids = np.exp(rng.uniform(np.log(3), np.log(VOCABULARY), len(is_target))).astype(np.int32)  # few words are frequent
    ids[ends] = END_OF_TURN
    return FlatPart(offsets, ids, is_target, np.where(is_target, ASSISTANT, USER), made_up_statistics(rng, len(ids)))


def _turns(rng: np.random.Generator, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens are targets, and where replies end: each turn is a prompt of about 40 % and a reply."""
    turns = np.where(rng.random(len(lengths)) < 1 / 3, rng.integers(2, _MOST_TURNS + 1, len(lengths)), 1)
    size = np.repeat(lengths // turns, turns)
    size[np.cumsum(turns) - 1] += lengths % turns
    prompt = np.clip((size * rng.beta(4, 6, len(size))).astype(np.int64), 1, size - 1)
    runs = np.stack([prompt, size - prompt], axis=1).ravel()
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs), np.cumsum(size) - 1


def made_up_statistics(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Most tokens are nearly certain, a few are not; KL grows with entropy; every tenth value is rounded to 2 decimals."""
    entropy = np.minimum(rng.standard_gamma(0.5, count) * 1.5, np.log(VOCABULARY))
    kl = entropy * rng.lognormal(-2.5, 1.2, count)
    nll = rng.standard_exponential(count) * entropy
    ref_nll = np.maximum(nll + rng.normal(0.05, 0.3, count) * entropy, 0.0)
    rounded = rng.random(count) < 0.1
    columns = {"entropy": entropy, "kl": kl, "logprob": -nll, "ref_logprob": -ref_nll}
    return {name: np.where(rounded, np.round(x, 2), x).astype(np.float32) for name, x in columns.items()}


def made_up_store(path: Path, tokens: int, seed: int = 0, part_tokens: int = 1_000_000) -> Store:
    """A store of about ``tokens`` tokens (at most, and short of it by less than one sequence a part)."""
    sizes = [min(part_tokens, tokens - first) for first in range(0, tokens, part_tokens)]
    progress = tqdm(sizes, desc="making up", unit=" parts", disable=None)
    return write_store(path, (made_up_part(size, seed, index) for index, size in enumerate(progress)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--part-tokens", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(made_up_store(args.path, args.tokens, args.seed, args.part_tokens))


if __name__ == "__main__":
    main()
