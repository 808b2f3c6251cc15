"""Stores with made-up statistics: real Parquet, no model."""

import shutil
from collections.abc import Callable, Sequence
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models

from pipelines.made_up_store import ASSISTANT, END_OF_TURN, USER, FlatPart, write_store
from tokenstats.schema import ROLES
from tokenstats.store import Store
from tokenstats.store.manifests import ScoringManifest
from tokenstats.store.parts import digest_of, part_path, read_part, write_part

TOOL = ROLES.index("tool")
__all__ = ["ASSISTANT", "END_OF_TURN", "TOOL", "USER", "WORDS", "add_scoring", "add_words", "make_store", "random_store"]

VOCABULARY = 100
LETTERS = "ab#é1"
WORDS = ["".join(w) for w in islice(chain.from_iterable(product(LETTERS, repeat=n) for n in (1, 2, 3)), VOCABULARY)]
"""What the ids of a made-up store say, once it has words: one to three of few letters, so that texts stand in many ways."""


def make_store(
    path: Path,
    ids: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    statistics: dict[str, Sequence[np.ndarray]],
    rows_per_part: int,
    scoring: str = "warm",
    roles: Sequence[np.ndarray] | None = None,
) -> Store:
    """A finished store of the given sequences; statistics not given are zero, and null outside the targets."""
    roles = roles if roles is not None else [np.where(t, ASSISTANT, USER) for t in targets]

    def part(first: int) -> FlatPart:
        rows = slice(first, first + rows_per_part)
        offsets = np.cumsum([0, *map(len, ids[rows])])
        flat = [np.concatenate(arrays[rows]) for arrays in (ids, targets, roles)]
        return FlatPart(offsets, *flat, {name: np.concatenate(arrays[rows]) for name, arrays in statistics.items()})

    return write_store(path, map(part, range(0, len(ids), rows_per_part)), scoring, vocabulary=VOCABULARY)


def add_words(store: Store) -> None:
    """A tokenizer whose ids say ``WORDS``."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.decoder = decoders.Fuse()
    store.tokenizer_folder.mkdir()
    tokenizer.save(str(store.tokenizer_folder / "tokenizer.json"))


def random_store(path: Path, sequences: int, seed: int, rows_per_part: int = 50, ties: bool = True) -> Store:
    """Random lengths (replies of length 1 among them), several turns and roles, many ties, some rows all equal."""
    rng, more = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    ids, targets, entropy, kl, roles = [], [], [], [], []
    for row in range(sequences):
        turns = rng.integers(1, 4)
        flags = np.concatenate(
            [
                np.repeat([False, True], [rng.integers(1, 4), 1 if rng.random() < 0.3 else rng.integers(1, 20)])
                for _ in range(turns)
            ]
        )
        words = rng.integers(3, 100, len(flags))
        words[np.flatnonzero(flags & ~np.append(flags[1:], False))] = END_OF_TURN
        decimals = 1 if ties else 6
        values = [np.round(rng.gamma(1.0, 1.0, len(flags)), decimals).astype(np.float32) for _ in range(2)]
        if row % 10 == 0:
            values = [np.full(len(flags), 0.5, np.float32)] * 2
        ids.append(words)
        targets.append(flags)
        entropy.append(values[0])
        kl.append(values[1])
        by_tool = np.cumsum(~flags & np.append(True, flags[:-1])) % 3 == 2  # some replies are a tool's
        roles.append(np.where(flags, np.where(by_tool, TOOL, ASSISTANT), USER))
    logprob = [-(e + k).astype(np.float32) for e, k in zip(entropy, kl, strict=True)]
    ref_logprob, top1_logprob = (
        [-np.round(more.gamma(1.0, 1.0, len(x)), 1 if ties else 6).astype(np.float32) for x in ids] for _ in range(2)
    )
    statistics = {
        "entropy": entropy,
        "kl": kl,
        "logprob": logprob,
        "ref_logprob": ref_logprob,
        "top1_logprob": top1_logprob,
    }
    return make_store(path, ids, targets, statistics, rows_per_part, roles=roles)


def add_scoring(
    store: Store, name: str, moved: Callable[[np.ndarray], np.ndarray], columns: tuple[str, ...] = ("entropy", "kl")
) -> None:
    """A scoring like ``warm`` whose named columns are ``moved`` (a function of an array)."""
    folder = store.path / "stats" / name
    shutil.copytree(store.path / "stats" / "warm", folder)
    for index in range(store.part_count):
        table = read_part(part_path(folder, index))
        for column in columns:
            lists = table[column].combine_chunks()
            values = pa.array(moved(lists.values.to_numpy(zero_copy_only=False)), pa.float32(), from_pandas=True)
            made = pa.ListArray.from_arrays(lists.offsets, values)
            table = table.set_column(table.column_names.index(column), table.schema.field(column), made)
        write_part(folder, index, table, {"made": "up"})
    manifest = ScoringManifest.read(folder)
    digests = [digest_of(part_path(folder, index)) for index in range(store.part_count)]
    parts = tuple(part.model_copy(update={"digest": d}) for part, d in zip(manifest.parts, digests, strict=True))
    manifest.model_copy(update={"fingerprint": "d" * 32, "parts": parts}).write(folder)
