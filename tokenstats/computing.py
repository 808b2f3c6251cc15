"""Score a dataset: rows become tokens part by part, and each part of tokens a part of statistics as soon as it is there."""

import dataclasses
import hashlib
import json
import platform
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from tokenstats.errors import InputError, StoreError, one_line
from tokenstats.schema import STATISTIC_BY_NAME, TOKENS_SCHEMA
from tokenstats.scoring.local_engine import LocalEngine
from tokenstats.scoring.reference_pass import ReferenceInfo, remove_all_states, states_path
from tokenstats.scoring.scorer import ModelInfo, Request
from tokenstats.scoring.workers import PATIENCE, BackgroundIterator, Progress, Worker, parts_of_another
from tokenstats.store import Store, check_name
from tokenstats.store.manifests import MANIFEST, Part, ScoringManifest, now
from tokenstats.store.parts import (
    digest_of,
    finished_parts,
    is_readable,
    is_whole,
    part_path,
    part_progress,
    read_part,
)
from tokenstats.store.store import TOKENS

ENGINES = ("local", "ray")
PASSES = ("together", "separate")
BATCH_TOKENS = 8192


class Engine(Protocol):
    """Where parts are worked on: in this process, or by actors of a cluster. Closed whatever happens."""

    def load_reference(self) -> ReferenceInfo: ...
    def keep_states(self, store: Path, name: str, parts: Iterator[int], progress: Progress) -> None: ...
    def load(self) -> ModelInfo: ...
    def score(self, store: Path, name: str, parts: Iterator[int], settings: dict[str, Any], progress: Progress) -> set[int]: ...
    def close(self) -> None: ...


def compute(
    dataset: str | Path,
    *,
    model: str,
    store: str | Path,
    reference: str | None = None,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
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
    engine: str = "local",
    reference_pass: str = "together",
    workers: int | None = None,
    ray_address: str | None = None,
    patience: float = PATIENCE,
    template: str = "own",
    special_text: str = "as-is",
    trust_remote_code: bool = False,
) -> tuple[Store, str]:
    """Tokenize a dataset into a store, where that is not done yet, and score it. Returns the store and the scoring's name.

    dataset:      a .json, .jsonl or .parquet file, a folder of them, or a Hub dataset id
    model:        the scored model p: a folder, a Hub id or an adapter folder; reference: the model q, or None
    name:         of the scoring; by default the model folder's own name
    split:        of a Hub dataset; None: train
    columns:      {"prompt": "question", …} where the dataset's columns have other names
    chat:         wrap plain prompt/completion strings in the tokenizer's chat template, where it has one
    max_length:   cut sequences after so many tokens
    part_tokens:  a part ends once it holds so many tokens; a killed run loses at most one part
    batch_tokens: padded tokens in one forward pass; halved, and said so, where memory runs out
    topk:         also keep the K most likely alternatives; score_all: score prompt tokens too
    dtype:        auto (float32 on a CPU, the checkpoint's own on a GPU), float32, bfloat16 or float16
    attention:    implementation by its name in transformers (sdpa, eager, flash_attention_2, …)
    compiled:     let torch.compile make one program of each model's decoder
    reference_pass: together, or separate where two models do not fit: the reference first, its hidden states on disk
    engine:       local (this process, or those that torchrun or srun started), or ray: ``workers`` actors of the cluster
                  at ``ray_address`` (None: one that is running, else one on this machine)
    patience:     seconds that a worker other than the first waits for the next part of tokens
    template:     own (the tokenizer's), training (what trl ships in its place) or the path of a Jinja file
    special_text: special tokens that rows write out are those tokens (as-is), or their characters (plain)
    trust_remote_code: run code that the models bring with them; it is never asked on the terminal

    Under torchrun or srun the parts are shared among the processes; the last one out writes the manifest. A run that was
    killed goes on where it stopped when it is called again the same way. Raises InputError for what the caller must mend,
    StoreError where the store holds something else, the disk refuses, or a model gives numbers that are none. Whole parts
    stay: also those before a bad row, and once that is mended the run goes on from there.
    """
    from tokenstats.corpus.build import PART_TOKENS, build_parts, plan_corpus
    from tokenstats.corpus.sources import open_source
    from tokenstats.modeling.tokenizer import load_tokenizer

    name = check_name(name if name is not None else _name_of(model), "scoring")
    if name in STATISTIC_BY_NAME or name in TOKENS_SCHEMA.names:
        raise InputError(f"a scoring cannot be called {name!r}: rules read that as a column; choose another --name")
    for option, value, least in (("--topk", topk, 0), ("--batch-tokens", batch_tokens, 1)):
        if value < least:
            raise InputError(f"{option} got {value}; expected at least {least}")
    if reference_pass not in PASSES:
        raise InputError(f"reference_pass got {one_line(reference_pass, 40)!r}; expected one of: {', '.join(PASSES)}")
    if reference_pass == "separate" and reference is None:
        raise InputError("reference_pass separate got no reference; expected --reference")
    if engine not in ENGINES:
        raise InputError(f"engine got {one_line(engine, 40)!r}; expected one of: {', '.join(ENGINES)}")
    for option, given in (("--workers", workers), ("--ray-address", ray_address)):
        if engine != "ray" and given is not None:
            raise InputError(f"{option} got {one_line(given, 60)} with engine {engine}; it is for --engine ray alone: add that")
    store, worker = Path(store), Worker.from_environment() if engine == "local" else Worker()
    folder = Path(dataset).expanduser()
    if folder.is_dir() and store.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"the store {store} would lie within the dataset {dataset} and be read as rows; choose another place")
    corpus = plan_corpus(
        open_source(dataset, split),
        load_tokenizer(model, trust_remote_code),
        model,
        columns=dict(columns or {}),
        chat=chat,
        max_length=max_length,
        part_tokens=PART_TOKENS if part_tokens is None else part_tokens,
        template=template,
        special_text=special_text,
        trust_remote_code=trust_remote_code,
    )
    separate = reference_pass == "separate"
    request = Request(
        model, reference, dtype, device, attention, compiled, topk, score_all, batch_tokens, separate, trust_remote_code
    )

    @contextmanager
    def parts(longest: int | None) -> Iterator[Iterable[tuple[int, int]]]:
        """(index, tokens) of the parts of tokens, as they come. Worker 0 writes them, in a thread of its own."""
        known = dataclasses.replace(corpus, longest=longest)
        # other tokens make another scoring too: here the settings that differ have names
        finished_parts(store / TOKENS, known.settings, f"{store} exists and", mine=lambda _: False, check=True)
        found = iter(BackgroundIterator(build_parts(known, store))) if worker.rank == 0 else parts_of_another(store, patience)
        with closing(found):
            yield found

    with closing(_engine(engine, request, worker, workers, ray_address)) as crew:
        # models before tokens: what cannot be scored should leave no store behind
        if separate:
            first = crew.load_reference()
            if worker.rank == 0:
                _say_room(store, first.bytes_per_token)
            with parts(first.max_positions) as tokens:
                keep_states(store, name, crew, tokens, worker)
        facts = crew.load()
        with parts(facts.max_positions) as tokens:
            return score_parts(store, name, crew, tokens, worker, facts, corpus.settings), name


def _engine(engine: str, request: Request, worker: Worker, workers: int | None, address: str | None) -> Engine:
    if engine == "local":
        return LocalEngine(request, worker)
    from tokenstats.scoring.ray_engine import RayEngine

    here = threading.current_thread() is threading.main_thread()
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        return RayEngine(request, workers, address)
    finally:
        if here and on_terminate is not None:
            signal.signal(signal.SIGTERM, on_terminate)  # ray.init puts its own there, which ends with another status


def _say_room(store: Path, bytes_per_token: int) -> None:
    place = next(folder for folder in store.resolve().parents if folder.exists())
    free = shutil.disk_usage(place).free
    print(
        f"the reference's states take {bytes_per_token:,} bytes of disk for each token until it is scored: the "
        f"{free / 2**30:,.1f} GiB that are free in {place} hold those of {free // bytes_per_token:,} tokens",
        file=sys.stderr,
    )


def keep_states(store: Path, name: str, crew: Engine, parts: Iterable[tuple[int, int]], worker: Worker) -> None:
    """The first of two passes: the reference's states of the parts that are this worker's and not scored yet, as they come."""
    folder = store / "stats" / name
    finished = (folder / MANIFEST).exists()
    progress = Progress(f"reference of {name}", partial(states_path, folder), worker)

    def missing() -> Iterator[int]:
        for index, tokens in parts:
            path = part_path(folder, index)
            # a damaged part of an unfinished scoring will be made again
            scored = path.exists() and (finished or not worker.takes(index) or is_whole(path, remove=True))
            progress.found(index, tokens, scored)
            if worker.takes(index) and not scored:
                yield index

    with closing(progress):
        crew.keep_states(store, name, missing(), progress)


def score_parts(
    store: Path,
    name: str,
    crew: Engine,
    parts: Iterable[tuple[int, int]],
    worker: Worker,
    facts: ModelInfo,
    tokens_settings: Mapping[str, Any],
) -> Store:
    """Score the parts that are this worker's and missing, as they come; write the manifest where all parts are there."""
    folder, settings = store / "stats" / name, facts.settings(tokens_settings)
    what = f"scoring {name!r} in {store} is there already and"
    finished = set(finished_parts(folder, settings, what, mine=worker.takes, check=not (folder / MANIFEST).exists()))
    progress = Progress(f"scoring {name}", partial(part_path, folder), worker)
    tokens_of = Store(store) if (store / MANIFEST).exists() else None  # else they are being written just now

    def missing() -> Iterator[int]:
        for index, tokens in parts:
            if index in finished and worker.takes(index):
                _check_rows(store, folder, index)
            progress.found(index, tokens, index in finished)
            if worker.takes(index) and index not in finished:
                if tokens_of is not None:
                    tokens_of.part(TOKENS, index, ["seq_id"])  # refuses what was changed since
                yield index

    with closing(progress):
        made = crew.score(store, name, missing(), settings, progress)
    opened = Store(store)
    if (made or not (folder / MANIFEST).exists()) and _all_whole(opened, folder, made, worker):
        remove_all_states(folder)
        _finish(opened, name, facts, settings)
    return opened


def _all_whole(store: Store, folder: Path, made: set[int], worker: Worker) -> bool:
    """Are all parts there? Those that were not made just now are read through before a manifest vouches for their bytes."""
    paths = [part_path(folder, index) for index in range(store.part_count)]
    if not all(is_readable(path) for path in paths):
        return False
    for index, path in enumerate(paths):
        if index not in made and not is_whole(path):
            if worker.count == 1:
                read_part(path)  # says what is wrong
            return False  # whose it is makes it again
    return True


def _check_rows(store: Path, folder: Path, index: int) -> None:
    """A part of an earlier run belongs to these tokens. Raises StoreError where it does not."""
    one, other = (read_part(part_path(place, index), ["seq_id"])["seq_id"] for place in (store / TOKENS, folder))
    if not one.equals(other):
        raise StoreError(
            f"{part_path(folder, index)} holds other sequences than part {index} of the tokens: delete it and run again"
        )


def _finish(store: Store, name: str, facts: ModelInfo, settings: dict[str, Any]) -> None:
    """Add up the parts and write the manifest, last."""
    folder = store.path / "stats" / name
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
        model=facts.model,
        reference=facts.reference,
        dtype=facts.dtype,
        device=facts.device,
        vocabulary=facts.vocabulary,
        topk=facts.request.topk,
        score_all=facts.request.score_all,
        head=facts.head,
        notes=facts.notes,
        versions={
            "python": platform.python_version(),
            **{p: version(p) for p in ("tokenstats", "torch", "transformers", "pyarrow")},
        },
        scored=scored,
        means={c: sum(p["sums"][c] for p in progress) / scored for c in progress[0]["sums"]},
        padding=sum(p["padded"] for p in progress) / sum(p["tokens"] for p in progress) - 1.0,
        reduction=facts.reduction,
        batch_tokens=min(p["batch_tokens"] for p in progress),
        trust_remote_code=facts.request.trust_remote_code,
    ).write(folder)


def _name_of(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip(".-")[:64] or "scoring"
