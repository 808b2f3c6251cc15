"""Stores with made-up statistics: real Parquet, no model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tokenstats.schema import ROLES, SCHEMA_VERSION, TOKENS_SCHEMA, stats_schema
from tokenstats.store import Store
from tokenstats.store.manifests import Dataset, Model, Part, ScoringManifest, StoreManifest, Template, Tokenizer
from tokenstats.store.parts import write_part

END_OF_TURN = 2
USER, ASSISTANT, TOOL = (ROLES.index(name) for name in ("user", "assistant", "tool"))


def nested(arrays: Sequence[np.ndarray], kind: pa.DataType, valid: Sequence[np.ndarray] | None = None) -> pa.Array:
    offsets = pa.array(np.cumsum([0, *map(len, arrays)]), pa.int32())
    flat = np.concatenate(arrays) if len(arrays) else np.zeros(0)
    mask = None if valid is None else ~np.concatenate(valid)
    return pa.ListArray.from_arrays(offsets, pa.array(flat, kind, mask=mask))


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
    parts = [range(i, min(i + rows_per_part, len(ids))) for i in range(0, len(ids), rows_per_part)]
    seq_ids = [f"{i:09d}-{'0' * 16}" for i in range(len(ids))]
    schema = stats_schema(with_reference=True)
    for index, rows in enumerate(parts):
        chosen = [targets[i] & (np.arange(len(ids[i])) > 0) for i in rows]
        tokens = pa.table(
            [
                pa.array([seq_ids[i] for i in rows]),
                nested([ids[i] for i in rows], pa.int32()),
                nested([targets[i] for i in rows], pa.bool_()),
                nested([roles[i] for i in rows], pa.int8()),
                pa.array(list(rows), pa.int64()),
                pa.array([False] * len(rows)),
            ],
            schema=TOKENS_SCHEMA,
        )
        write_part(path / "tokens", index, tokens, {"made": "up"})
        columns = [
            nested(
                [statistics[f.name][i] if f.name in statistics else np.zeros(len(ids[i])) for i in rows],
                f.type.value_type,
                chosen,
            )
            for f in list(schema)[1:]
        ]
        stats = pa.table([pa.array([seq_ids[i] for i in rows]), *columns], schema=schema)
        write_part(path / "stats" / scoring, index, stats, {"made": "up"})
    listed = tuple(Part(rows=len(rows), tokens=sum(len(ids[i]) for i in rows), digest="") for rows in parts)
    shared = {"schema_version": SCHEMA_VERSION, "created": "", "parts": listed}
    total = sum(len(x) for x in ids)
    StoreManifest(
        **shared,
        fingerprint="f" * 32,
        dataset=Dataset(
            source="made up", fingerprint="", shape="text", columns={}, rows=len(ids), dropped={}, first_dropped={}, truncated=0
        ),
        tokenizer=Tokenizer(
            source="", fingerprint="", size=100, bos_id=None, end_of_turn_ids=(END_OF_TURN,), special_ids=(0, 1, 2)
        ),
        template=Template(fingerprint="", targets="text", max_length=None),
        part_tokens=0,
        sequences=len(ids),
        tokens=total,
        targets=int(sum(t.sum() for t in targets)),
    ).write(path)
    model = Model(source="made up", fingerprint="", revision=None, architecture="", parameters=0)
    ScoringManifest(
        **shared,
        fingerprint="e" * 32,
        store_fingerprint="f" * 32,
        model=model,
        reference=model,
        dtype="float32",
        device="cpu",
        vocabulary=100,
        topk=0,
        score_all=False,
        head={},
        versions={},
        scored=0,
        means={},
        padding=0.0,
    ).write(path / "stats" / scoring)
    return Store(path)


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
