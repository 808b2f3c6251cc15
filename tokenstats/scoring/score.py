"""Score a dataset: tokens first, then one part of statistics for each part of tokens."""

import dataclasses
import hashlib
import json
import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from tokenstats.errors import InputError, StoreError
from tokenstats.modeling.load import pick_device
from tokenstats.schema import SCHEMA_VERSION, STATISTIC_BY_NAME, TOKENS_SCHEMA, TOPK_COLUMNS, stats_schema
from tokenstats.scoring.batches import pad, plan_batches
from tokenstats.scoring.pair import ModelPair, load_pair
from tokenstats.store import Store, check_name
from tokenstats.store.manifests import Part, ScoringManifest, now
from tokenstats.store.parts import digest_of, finished_parts, part_path, part_progress, write_part

BATCH_TOKENS = 8192


def compute(
    dataset: str | Path,
    *,
    model: str,
    store: str | Path,
    reference: str | None = None,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    chat: bool = True,
    max_length: int | None = None,
    part_tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    topk: int = 0,
    score_all: bool = False,
    dtype: str = "auto",
    device: str = "auto",
) -> tuple[Store, str]:
    """Tokenize a dataset into a store, where that is not done yet, and score it. Returns the store and the scoring's name.

    dataset:      a .json, .jsonl or .parquet file, a folder of them, or a Hub dataset id
    model:        the scored model p: a folder, a Hub id or an adapter folder; reference: the model q, or None
    name:         of the scoring; by default the model folder's own name
    columns:      {"prompt": "question", …} where the dataset's columns have other names
    chat:         wrap plain prompt/completion strings in the tokenizer's chat template, where it has one
    max_length:   cut sequences after so many tokens
    part_tokens:  a part ends once it holds so many tokens; a killed run loses at most one part
    batch_tokens: padded tokens in one forward pass
    topk:         also keep the K most likely alternatives; score_all: score prompt tokens too
    dtype:        auto (float32 on a CPU, the checkpoint's own on a GPU), float32, bfloat16 or float16

    A run that was killed goes on where it stopped when it is called again the same way. Raises InputError for what
    the caller must mend: a store begun by this very call is then taken away again. Raises StoreError where the store
    holds something else, the disk refuses, or a model gives numbers that are none: whole parts stay, to go on from.
    """
    from tokenstats.corpus.build import PART_TOKENS, build_tokens, plan_corpus
    from tokenstats.corpus.sources import open_source
    from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint, tokenizer_size

    name = check_name(name if name is not None else _name_of(model), "scoring")
    if name in STATISTIC_BY_NAME or name in TOKENS_SCHEMA.names:
        raise InputError(f"a scoring cannot be called {name!r}: rules read that as a column; choose another --name")
    if topk < 0 or batch_tokens < 1:
        raise InputError(f"got topk {topk} and batch_tokens {batch_tokens}; expected at least 0 and 1")
    where = pick_device(device)
    source = open_source(dataset, split)
    tokenizer = load_tokenizer(model)
    corpus = plan_corpus(
        source,
        tokenizer,
        model,
        columns=dict(columns or {}),
        chat=chat,
        max_length=max_length,
        part_tokens=PART_TOKENS if part_tokens is None else part_tokens,
    )
    vocabulary = tokenizer_size(tokenizer)
    # models before tokens: what cannot be scored should leave no store behind
    pair = load_pair(model, reference, dtype, where, vocabulary, tokenizer_fingerprint(tokenizer))
    probe = tokenizer("".join(tokenizer.get_vocab())[:400], add_special_tokens=False, return_tensors="pt")["input_ids"][:, :32]
    head = pair.check(probe)
    for source_name, way in head.items():
        if way != "split":
            print(
                f"warning: {source_name} is scored through its own full logits: slower, and in its own precision",
                file=sys.stderr,
            )
    built = build_tokens(dataclasses.replace(corpus, longest=pair.max_positions), store)
    score_store(built, name, pair, head, topk=topk, score_all=score_all, batch_tokens=batch_tokens)
    return built, name


def score_store(
    store: Store,
    name: str,
    pair: ModelPair,
    head: dict[str, str],
    *,
    topk: int = 0,
    score_all: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> ScoringManifest:
    """Write the parts of a scoring that are missing, then its manifest."""
    folder = store.path / "stats" / name
    settings = {
        "schema_version": SCHEMA_VERSION,
        "store": store.fingerprint,
        "model": pair.policy.description.fingerprint,
        "reference": pair.reference.description.fingerprint if pair.reference else None,
        "dtype": _dtype_of(pair),
        "vocabulary": pair.vocabulary,
        "topk": topk,
        "score_all": score_all,
    }
    finished = set(finished_parts(folder, settings, f"scoring {name!r} in {store.path} is there already and"))
    if len(finished) == store.part_count and (folder / "manifest.json").exists():
        return ScoringManifest.read(folder)
    done = sum(p.tokens for i, p in enumerate(store.manifest.parts) if i in finished)
    with tqdm(
        desc=f"scoring {name}", total=store.manifest.tokens, initial=done, unit=" tokens", unit_scale=True, disable=None
    ) as bar:
        for index in range(store.part_count):
            if index not in finished:
                table, progress = score_part(store.part("tokens", index), pair, topk, score_all, batch_tokens, bar)
                write_part(folder, index, table, settings, progress)
    return _finish(store, name, pair, head, settings)


def score_part(
    tokens: pa.Table, pair: ModelPair, topk: int, score_all: bool, batch_tokens: int, bar: Any
) -> tuple[pa.Table, dict[str, Any]]:
    """Statistics of one part of tokens, in the same rows, and the sums that the manifest adds up."""
    offsets = tokens["input_ids"].combine_chunks().offsets.to_numpy()
    ids = tokens["input_ids"].combine_chunks().flatten().to_numpy()
    chosen = tokens["is_target"].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
    if score_all:
        chosen[:] = True
    chosen[offsets[:-1]] = False
    lengths = np.diff(offsets)
    seq_ids = tokens["seq_id"]
    _check_lengths(lengths, pair.max_positions, seq_ids)
    schema = stats_schema(pair.reference is not None, topk)
    values: dict[str, np.ndarray] = {}
    padded = 0
    for rows in plan_batches(lengths, batch_tokens, pair.depends_on_width):
        spans = [slice(offsets[r], offsets[r + 1]) for r in rows]
        batch = pad([ids[s] for s in spans], 0).long()
        statistics = pair.score(batch.to(pair.device), pad([chosen[s] for s in spans], False).to(pair.device), topk)
        where = np.concatenate([np.flatnonzero(chosen[s]) + s.start for s in spans])
        for column, tensor in statistics.items():
            array = tensor.cpu().numpy()
            _check_finite(array, column, where, offsets, seq_ids)
            values.setdefault(column, np.zeros((len(ids), *array.shape[1:]), array.dtype))[where] = array
        padded += batch.numel()
        bar.update(int(lengths[rows].sum()))
    table = pa.table(
        [seq_ids.combine_chunks(), *(_column(field, values[field.name], chosen, offsets) for field in list(schema)[1:])],
        schema=schema,
    )
    floats = [c for c in values if c in STATISTIC_BY_NAME and STATISTIC_BY_NAME[c].is_float]
    sums = {c: float(values[c][chosen].sum(dtype=np.float64)) for c in floats}
    return table, {"scored": int(chosen.sum()), "padded": padded, "tokens": len(ids), "sums": sums}


def _column(field: pa.Field, values: np.ndarray, valid: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    if field.name in TOPK_COLUMNS:
        kind = field.type.value_type
        inner_offsets = np.concatenate([[0], np.cumsum(valid * values.shape[1])]).astype(np.int32)
        flat = pa.array(values[valid].ravel(), kind.value_type)
        inner = pa.ListArray.from_arrays(pa.array(inner_offsets), flat, type=kind, mask=pa.array(~valid))
    else:
        inner = pa.array(values, field.type.value_type, mask=~valid)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner)


def _check_lengths(lengths: np.ndarray, most: int | None, seq_ids: pa.ChunkedArray) -> None:
    if most is not None and len(lengths) and lengths.max() > most:
        row = int(lengths.argmax())
        raise InputError(
            f"sequence {seq_ids[row]} has {lengths[row]} tokens, but the model reads at most {most}; "
            f"compute into a new store with --max-length {most} or less"
        )


def _check_finite(array: np.ndarray, column: str, where: np.ndarray, offsets: np.ndarray, seq_ids: pa.ChunkedArray) -> None:
    bad = ~np.isfinite(array).reshape(len(array), -1).all(-1)
    if bad.any():
        place = int(where[bad.argmax()])
        row = int(np.searchsorted(offsets, place, side="right")) - 1
        raise StoreError(
            f"{column} of sequence {seq_ids[row]}, token {place - offsets[row]} is {array[bad.argmax()]}, not a finite number: "
            "the model's logits overflow or hold NaN; try --dtype float32, or another checkpoint"
        )


def _finish(store: Store, name: str, pair: ModelPair, head: dict[str, str], settings: dict[str, Any]) -> ScoringManifest:
    folder = store.path / "stats" / name
    progress = [part_progress(part_path(folder, i)) for i in range(store.part_count)]
    scored = sum(p["scored"] for p in progress)
    parts = tuple(
        Part(rows=p.rows, tokens=p.tokens, digest=digest_of(part_path(folder, i))) for i, p in enumerate(store.manifest.parts)
    )
    manifest = ScoringManifest(
        created=now(),
        parts=parts,
        fingerprint=hashlib.blake2b(json.dumps([settings, [p.digest for p in parts]]).encode(), digest_size=16).hexdigest(),
        store_fingerprint=store.fingerprint,
        model=pair.policy.description,
        reference=pair.reference.description if pair.reference else None,
        dtype=settings["dtype"],
        device=torch.cuda.get_device_name(pair.device) if pair.device.type == "cuda" else str(pair.device),
        vocabulary=pair.vocabulary,
        topk=settings["topk"],
        score_all=settings["score_all"],
        head=head,
        versions={
            "python": platform.python_version(),
            **{p: version(p) for p in ("tokenstats", "torch", "transformers", "pyarrow")},
        },
        scored=scored,
        means={c: sum(p["sums"][c] for p in progress) / scored for c in progress[0]["sums"]},
        padding=sum(p["padded"] for p in progress) / sum(p["tokens"] for p in progress) - 1.0,
    )
    manifest.write(folder)
    return manifest


def _dtype_of(pair: ModelPair) -> str:
    return str(next(pair.policy.model.parameters()).dtype).removeprefix("torch.")


def _name_of(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip(".-")[:64] or "scoring"
