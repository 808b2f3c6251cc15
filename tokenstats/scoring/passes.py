"""The passes over a store's parts that make a scoring: perhaps the reference's states first, then the statistics."""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenstats.errors import StoreError
from tokenstats.scoring.engines import Engine
from tokenstats.scoring.reference_pass import remove_all_states, states_path
from tokenstats.scoring.scorer import ModelInfo
from tokenstats.scoring.workers import Progress, Worker
from tokenstats.store import Store
from tokenstats.store.families import STATS, TOKENS, Family
from tokenstats.store.manifests import MANIFEST, Part, ScoringManifest, now
from tokenstats.store.parts import (
    check_settings,
    digest_of,
    finished_parts,
    is_readable,
    is_whole,
    part_path,
    part_progress,
    read_part,
)

Parts = Iterable[tuple[int, int]]
"""(index, tokens) of the parts of tokens, as they come."""


@dataclass(frozen=True)
class Passes:
    """One worker's share of a scoring.

    Attributes:
        store: The store's folder, which may still be without a manifest.
        name: Of the scoring.
        engine: What scores the parts.
        worker: Which of them are this worker's.
    """

    store: Path
    name: str
    engine: Engine
    worker: Worker

    @property
    def folder(self) -> Path:
        """Where the scoring lies."""
        return self.store / STATS / self.name

    def keep_states(self, parts: Parts) -> None:
        """The first of two passes: the reference's states of the parts that are this worker's and not scored yet."""
        finished = (self.folder / MANIFEST).exists()
        progress = Progress(f"reference of {self.name}", partial(states_path, self.folder), self.worker)

        def missing() -> Iterator[int]:
            for index, tokens in parts:
                path, mine = part_path(self.folder, index), self.worker.takes(index)
                # a damaged part of an unfinished scoring will be made again
                scored = path.exists() and (finished or not mine or is_whole(path, remove=True))
                progress.found(index, tokens, scored)
                if mine and not scored:
                    yield index

        with closing(progress):
            self.engine.keep_states(self.store, self.name, missing(), progress)

    def score(self, parts: Parts, info: ModelInfo, tokens_settings: Mapping[str, Any]) -> Family[ScoringManifest] | None:
        """Score the parts that are this worker's and missing; write the manifest where all parts are there.

        Args:
            parts: The parts of tokens.
            info: The models, as they were loaded.
            tokens_settings: What the parts of tokens were made with.

        Returns:
            The finished scoring; None where other workers are still at work.

        Raises:
            StoreError: A scoring of this name was made with other settings, or a part is not what it should be.
        """
        settings = info.settings(tokens_settings)
        what = f"scoring {self.name!r} in {self.store} is there already and"
        unfinished = not (self.folder / MANIFEST).exists()
        finished = set(finished_parts(self.folder, settings, what, mine=self.worker.takes, check=unfinished))
        progress = Progress(f"scoring {self.name}", partial(part_path, self.folder), self.worker)
        with closing(progress):
            missing = self._missing(parts, finished, settings, progress)
            made = self.engine.score(self.store, self.name, missing, settings, progress)
        opened = Store(self.store)
        if (made or not (self.folder / MANIFEST).exists()) and self._all_whole(opened, made):
            remove_all_states(self.folder)
            _write_manifest(opened, self.folder, info, settings, self._meanwhile)
        return opened.scorings[self.name] if opened.has(f"{STATS}/{self.name}") else None

    @property
    def _meanwhile(self) -> str:
        """What is said where a run that began after this one writes a scoring of the same name."""
        return f"scoring {self.name!r} in {self.store} is being made by another run too, and a part of it"

    def _missing(self, parts: Parts, finished: set[int], settings: dict[str, Any], progress: Progress) -> Iterator[int]:
        tokens_of = Store(self.store) if (self.store / MANIFEST).exists() else None  # else they are being written just now
        for index, tokens in parts:
            mine = self.worker.takes(index)
            if mine and index in finished:
                self._check_rows(index)
            progress.found(index, tokens, index in finished)
            if mine and index not in finished:
                if (path := part_path(self.folder, index)).exists():
                    check_settings(path, settings, self._meanwhile)
                if tokens_of is not None:
                    tokens_of.part(TOKENS, index, ["seq_id"])  # refuses what was changed since
                yield index

    def _check_rows(self, index: int) -> None:
        """A part of an earlier run belongs to these tokens. Raises StoreError where it does not."""
        one, other = (read_part(part_path(place, index), ["seq_id"])["seq_id"] for place in (self.store / TOKENS, self.folder))
        if not one.equals(other):
            raise StoreError(
                f"{part_path(self.folder, index)} holds other sequences than part {index} of the tokens: "
                "delete it and run again"
            )

    def _all_whole(self, store: Store, made: set[int]) -> bool:
        """Are all parts there? Those that were not made just now are read through before a manifest vouches for their bytes."""
        paths = [part_path(self.folder, index) for index in range(store.part_count)]
        if not all(is_readable(path) for path in paths):
            return False
        for index, path in enumerate(paths):
            if index not in made and not is_whole(path):
                if self.worker.count == 1:
                    read_part(path)  # says what is wrong
                return False  # whose it is makes it again
        return True


def _write_manifest(store: Store, folder: Path, info: ModelInfo, settings: dict[str, Any], meanwhile: str) -> None:
    """Add up the parts and write the manifest, last. Raises StoreError for a part of other settings."""
    progress = [part_progress(part_path(folder, i)) for i in range(store.part_count)]
    scored = sum(p["scored"] for p in progress)
    parts = tuple(
        Part(rows=p.rows, tokens=p.tokens, digest=digest_of(part_path(folder, i))) for i, p in enumerate(store.manifest.parts)
    )
    for index in range(store.part_count):  # after its digest: a part that is put there later is not the one that it is of
        check_settings(part_path(folder, index), settings, meanwhile)
    packages = ("tokenstats", "torch", "transformers", "pyarrow")
    ScoringManifest(
        created=now(),
        parts=parts,
        fingerprint=hashlib.blake2b(json.dumps([settings, [p.digest for p in parts]]).encode(), digest_size=16).hexdigest(),
        store_fingerprint=store.fingerprint,
        model=info.model,
        reference=info.reference,
        dtype=info.dtype,
        device=info.device,
        vocabulary=info.vocabulary,
        topk=info.request.options.topk,
        score_all=info.request.options.score_all,
        head=info.head,
        notes=info.notes,
        versions={"python": platform.python_version(), **{package: version(package) for package in packages}},
        scored=scored,
        means={c: sum(p["sums"][c] for p in progress) / scored for c in progress[0]["sums"]},
        padding=sum(p["padded"] for p in progress) / sum(p["tokens"] for p in progress) - 1.0,
        reduction=info.reduction,
        batch_tokens=min(p["batch_tokens"] for p in progress),
        trust_remote_code=info.request.options.trust_remote_code,
    ).write(folder)
