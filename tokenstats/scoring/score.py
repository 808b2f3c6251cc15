"""Score a dataset: rows become tokens part by part, and each part of tokens a part of statistics as soon as it is there."""

import dataclasses
import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tokenstats.errors import InputError, StoreError
from tokenstats.modeling.load import pick_device
from tokenstats.schema import SCHEMA_VERSION, STATISTIC_BY_NAME, TOKENS_SCHEMA
from tokenstats.scoring.pair import ModelPair, load_pair
from tokenstats.scoring.part import Budget, score_part
from tokenstats.scoring.rows import reduction
from tokenstats.scoring.workers import PATIENCE, Ahead, Progress, Worker, Writer, parts_of_another
from tokenstats.store import Store, check_name
from tokenstats.store.manifests import MANIFEST, Part, ScoringManifest, now
from tokenstats.store.parts import digest_of, finished_parts, part_path, part_progress, read_part, write_part
from tokenstats.store.store import TOKENS

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
    attention: str | None = None,
    compiled: bool = False,
    patience: float = PATIENCE,
) -> tuple[Store, str]:
    """Tokenize a dataset into a store, where that is not done yet, and score it. Returns the store and the scoring's name.

    dataset:      a .json, .jsonl or .parquet file, a folder of them, or a Hub dataset id
    model:        the scored model p: a folder, a Hub id or an adapter folder; reference: the model q, or None
    name:         of the scoring; by default the model folder's own name
    columns:      {"prompt": "question", …} where the dataset's columns have other names
    chat:         wrap plain prompt/completion strings in the tokenizer's chat template, where it has one
    max_length:   cut sequences after so many tokens
    part_tokens:  a part ends once it holds so many tokens; a killed run loses at most one part
    batch_tokens: padded tokens in one forward pass; halved, and said so, where memory runs out
    topk:         also keep the K most likely alternatives; score_all: score prompt tokens too
    dtype:        auto (float32 on a CPU, the checkpoint's own on a GPU), float32, bfloat16 or float16
    attention:    implementation by its name in transformers (sdpa, eager, flash_attention_2, …)
    compiled:     let torch.compile make one program of each model's decoder
    patience:     seconds that a worker other than the first waits for the next part of tokens

    Under torchrun or srun the parts are shared among the processes; the last one out writes the manifest. A run that was
    killed goes on where it stopped when it is called again the same way. Raises InputError for what the caller must mend,
    StoreError where the store holds something else, the disk refuses, or a model gives numbers that are none. Whole parts
    stay: also those before a bad row, and once that is mended the run goes on from there.
    """
    from tokenstats.corpus.build import PART_TOKENS, build_parts, plan_corpus
    from tokenstats.corpus.sources import open_source
    from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint, tokenizer_size

    name = check_name(name if name is not None else _name_of(model), "scoring")
    if name in STATISTIC_BY_NAME or name in TOKENS_SCHEMA.names:
        raise InputError(f"a scoring cannot be called {name!r}: rules read that as a column; choose another --name")
    if topk < 0 or batch_tokens < 1:
        raise InputError(f"got topk {topk} and batch_tokens {batch_tokens}; expected at least 0 and 1")
    worker, store = Worker.from_environment(), Path(store)
    where = pick_device(device, worker.local)
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
    pair = load_pair(
        model, reference, dtype, where, vocabulary, tokenizer_fingerprint(tokenizer), attention=attention, compiled=compiled
    )
    probe = tokenizer("".join(tokenizer.get_vocab())[:400], add_special_tokens=False, return_tensors="pt")["input_ids"][:, :32]
    head = pair.check(probe)
    for source_name, way in head.items():
        if way != "split":
            print(
                f"warning: {source_name} is scored through its own full logits: slower, and in its own precision",
                file=sys.stderr,
            )
    corpus = dataclasses.replace(corpus, longest=pair.max_positions)
    # worker 0 writes the tokens, in a thread of its own: scoring starts with the first part
    parts = iter(Ahead(build_parts(corpus, store))) if worker.rank == 0 else parts_of_another(store, patience)
    scoring = Scoring(name, pair, head, topk, score_all, Budget(batch_tokens))
    with closing(parts):
        return score_parts(store, scoring, parts, worker, tokens=corpus.settings)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is scored, with what, and how."""

    name: str
    pair: ModelPair
    head: dict[str, str]
    topk: int
    score_all: bool
    budget: Budget

    def settings(self, tokens: Mapping[str, Any]) -> dict[str, Any]:
        """What the parts depend on; ``tokens``: the settings of the parts of tokens."""
        pair = self.pair
        return {
            "schema_version": SCHEMA_VERSION,
            "tokens": hashlib.blake2b(json.dumps(tokens, sort_keys=True).encode(), digest_size=16).hexdigest(),
            "model": pair.policy.description.fingerprint,
            "reference": pair.reference.description.fingerprint if pair.reference else None,
            "dtype": _dtype_of(pair),
            "vocabulary": pair.vocabulary,
            "topk": self.topk,
            "score_all": self.score_all,
        }


def score_parts(
    store: Path, scoring: Scoring, parts: Iterable[tuple[int, int]], worker: Worker, tokens: Mapping[str, Any]
) -> tuple[Store, str]:
    """Score the parts that are this worker's and missing, as they come; write the manifest where all parts are there."""
    folder, settings = store / "stats" / scoring.name, scoring.settings(tokens)
    what = f"scoring {scoring.name!r} in {store} is there already and"
    finished = set(finished_parts(folder, settings, what, mine=worker.takes, check=not (folder / MANIFEST).exists()))
    progress, writer = Progress(scoring.name, folder, worker), Writer()
    made = 0
    try:
        for index, count in parts:
            done = index in finished and _same_rows(store, folder, index)
            progress.found(index, count, done)
            if worker.takes(index) and not done:
                table, sums = score_part(
                    read_part(part_path(store / TOKENS, index)),
                    scoring.pair,
                    scoring.topk,
                    scoring.score_all,
                    scoring.budget,
                    progress.advance,
                )
                writer.submit(write_part, folder, index, table, settings, {**sums, "batch_tokens": scoring.budget.tokens})
                made += 1
        writer.wait()
    finally:
        progress.close()
    opened = Store(store)
    missing = [i for i in range(opened.part_count) if not part_path(folder, i).exists()]
    if not missing and (made or not (folder / MANIFEST).exists()):
        _finish(opened, scoring, settings)
    return opened, scoring.name


def _same_rows(store: Path, folder: Path, index: int) -> bool:
    """A part of an earlier run belongs to these tokens. Raises StoreError where it does not."""
    one, other = (read_part(part_path(place, index), ["seq_id"])["seq_id"] for place in (store / TOKENS, folder))
    if not one.equals(other):
        raise StoreError(
            f"{part_path(folder, index)} holds other sequences than part {index} of the tokens: delete it and run again"
        )
    return True


def _finish(store: Store, scoring: Scoring, settings: dict[str, Any]) -> None:
    """Add up the parts and write the manifest, last."""
    folder, pair = store.path / "stats" / scoring.name, scoring.pair
    progress = [part_progress(part_path(folder, i)) for i in range(store.part_count)]
    scored = sum(p["scored"] for p in progress)
    parts = tuple(
        Part(rows=p.rows, tokens=p.tokens, digest=digest_of(part_path(folder, i))) for i, p in enumerate(store.manifest.parts)
    )
    ScoringManifest(
        created=now(),
        parts=parts,
        fingerprint=hashlib.blake2b(json.dumps([settings, [p.digest for p in parts]]).encode(), digest_size=16).hexdigest(),
        store_fingerprint=store.fingerprint,
        model=pair.policy.description,
        reference=pair.reference.description if pair.reference else None,
        dtype=settings["dtype"],
        device=torch.cuda.get_device_name(pair.device) if pair.device.type == "cuda" else str(pair.device),
        vocabulary=pair.vocabulary,
        topk=scoring.topk,
        score_all=scoring.score_all,
        head=scoring.head,
        versions={
            "python": platform.python_version(),
            **{p: version(p) for p in ("tokenstats", "torch", "transformers", "pyarrow")},
        },
        scored=scored,
        means={c: sum(p["sums"][c] for p in progress) / scored for c in progress[0]["sums"]},
        padding=sum(p["padded"] for p in progress) / sum(p["tokens"] for p in progress) - 1.0,
        reduction=reduction(pair.device),
        batch_tokens=min(p["batch_tokens"] for p in progress),
    ).write(folder)


def _dtype_of(pair: ModelPair) -> str:
    return str(next(pair.policy.model.parameters()).dtype).removeprefix("torch.")


def _name_of(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip(".-")[:64] or "scoring"
