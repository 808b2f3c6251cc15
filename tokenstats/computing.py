"""Score a dataset: rows become tokens part by part, and each part of tokens a part of statistics as soon as it is there.

scoring = compute("sft.jsonl", model="runs/warmup", reference="base", store="runs/store", scoring=ScoringOptions(topk=5))
scoring.manifest.means["kl"], scoring.store.scan(scoring.folder)
"""

import dataclasses
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tokenstats.corpus.build import build_parts, plan_corpus
from tokenstats.corpus.options import CorpusOptions
from tokenstats.corpus.sources import open_source
from tokenstats.corpus.tokenize import Corpus
from tokenstats.errors import InputError, argument
from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint
from tokenstats.schema import STATISTIC_BY_NAME, TOKENS_SCHEMA
from tokenstats.scoring.engines import start_engine
from tokenstats.scoring.options import LOCAL, EngineOptions, Request, ScoringOptions
from tokenstats.scoring.passes import Parts, Passes
from tokenstats.scoring.workers import BackgroundIterator, Worker, parts_of_another
from tokenstats.store import Store, check_name, open_store
from tokenstats.store.families import TOKENS, Family
from tokenstats.store.manifests import ScoringManifest
from tokenstats.store.parts import finished_parts, part_settings

_log = logging.getLogger(__name__)


def compute(
    dataset: str | Path,
    *,
    model: str | Path,
    store: str | Path,
    reference: str | Path | None = None,
    name: str | None = None,
    corpus: CorpusOptions = CorpusOptions(),
    scoring: ScoringOptions = ScoringOptions(),
    engine: EngineOptions = EngineOptions(),
) -> Family[ScoringManifest] | None:
    """Tokenize a dataset into a store, where that is not done yet, and score it.

    Under torchrun or srun the parts are shared among the processes; the last one out writes the manifest. A run that was
    killed goes on where it stopped when it is called again the same way: whole parts stay, those before a bad row too, and once
    that is mended the run goes on from there.

    Args:
        dataset: A .json, .jsonl or .parquet file, a folder of them, or a Hub dataset id.
        model: The scored model p: a folder, a Hub id or an adapter folder.
        store: The store's folder; made where it is not there.
        reference: The model q that KL is measured from, or None.
        name: Of the scoring; by default the model folder's own name.
        corpus: How rows become tokens.
        scoring: How tokens are scored.
        engine: Who scores them.

    Returns:
        The finished scoring, with its store; None where other workers are still at work.

    Raises:
        InputError: What the caller must mend.
        StoreError: The store holds something else, the disk refuses, or a model gives numbers that are none.
    """
    store, name = Path(store), scoring_name(model, name)
    request = Request(str(model), None if reference is None else str(reference), scoring)
    _check_apart(store, dataset)
    worker = Worker.from_environment() if engine.kind == LOCAL else Worker()
    source = open_source(dataset, corpus.split)
    tokenizer = load_tokenizer(request.model, scoring.trust_remote_code)
    plan = plan_corpus(source, tokenizer, request.model, corpus, scoring.trust_remote_code)
    with closing(start_engine(request, worker, engine)) as crew:
        passes = Passes(store, name, crew, worker)
        # models before tokens: what cannot be scored should leave no store behind
        if request.separate:
            first = crew.load_reference()
            if worker.rank == 0:
                _say_room(store, first.bytes_per_token)
            with _tokens(plan, first.max_positions, passes, engine.patience) as parts:
                passes.keep_states(parts)
        info = crew.load()
        with _tokens(plan, info.max_positions, passes, engine.patience) as parts:
            return passes.score(parts, info, plan.settings)


def score_store(
    store: Store | str | Path,
    *,
    model: str | Path,
    reference: str | Path | None = None,
    name: str | None = None,
    scoring: ScoringOptions = ScoringOptions(),
    worker: Worker | None = None,
) -> Family[ScoringManifest] | None:
    """Score the tokens of a finished store, without its dataset. A killed run goes on as in :func:`compute`.

    Args:
        store: A store, or its folder.
        model: The scored model p: a folder, a Hub id or an adapter folder.
        reference: The model q that KL is measured from, or None.
        name: Of the scoring; by default the model folder's own name.
        scoring: How tokens are scored.
        worker: Of several processes that share the parts, this one; None: it is alone.

    Returns:
        The finished scoring: to the byte what ``compute`` makes. None where other workers are still at work.

    Raises:
        InputError: The model has another tokenizer than the store, or cannot be scored.
        StoreError: The store holds something else of this name, or the disk refuses.
    """
    opened, name = open_store(store), scoring_name(model, name)
    request = Request(str(model), None if reference is None else str(reference), scoring)
    found, expected = (
        tokenizer_fingerprint(load_tokenizer(request.model, scoring.trust_remote_code)),
        opened.manifest.tokenizer.fingerprint,
    )
    if found != expected:
        raise InputError(
            f"{model} has another tokenizer ({found[:8]}) than {opened.path} was written with ({expected[:8]}): its ids mean "
            "other words; score a model with the same tokenizer"
        )
    parts = [(index, part.tokens) for index, part in enumerate(opened.manifest.parts)]
    worker = worker or Worker()
    with closing(start_engine(request, worker, EngineOptions())) as engine:
        passes = Passes(opened.path, name, engine, worker)
        if request.separate:
            engine.load_reference()
            passes.keep_states(parts)
        return passes.score(parts, engine.load(), part_settings(opened.part_file(TOKENS, 0)))


def scoring_name(model: str | Path, name: str | None = None) -> str:
    """The name of a scoring: as given, or by the model's folder. Raises InputError for one that cannot be used."""
    name = check_name(name if name is not None else _name_of(model), "scoring")
    if name in STATISTIC_BY_NAME or name in TOKENS_SCHEMA.names:
        raise InputError(
            f"a scoring cannot be called {name!r}: rules read that as a column; choose another with {argument('name')}"
        )
    return name


def _name_of(model: str | Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip(".-")[:64] or "scoring"


def _check_apart(store: Path, dataset: str | Path) -> None:
    folder = Path(dataset).expanduser()
    if folder.is_dir() and store.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"the store {store} would lie within the dataset {dataset} and be read as rows; choose another place")


@contextmanager
def _tokens(plan: Corpus, longest: int | None, passes: Passes, patience: float) -> Iterator[Parts]:
    """The parts of tokens as they come, no row above ``longest`` tokens. Worker 0 writes them, in a thread of its own."""
    known, store = dataclasses.replace(plan, longest=longest), passes.store
    # other tokens make another scoring too: here the settings that differ have names
    finished_parts(store / TOKENS, known.settings, f"{store} exists and", mine=lambda _: False, check=True)
    writes = passes.worker.rank == 0
    found = iter(BackgroundIterator(build_parts(known, store))) if writes else parts_of_another(store, patience)
    with closing(found):
        yield found


def _say_room(store: Path, bytes_per_token: int) -> None:
    place = next(folder for folder in store.resolve().parents if folder.exists())
    free = shutil.disk_usage(place).free
    _log.info(
        f"the reference's states take {bytes_per_token:,} bytes of disk for each token until it is scored: the "
        f"{free / 2**30:,.1f} GiB that are free in {place} hold those of {free // bytes_per_token:,} tokens"
    )
