"""Parts scored in this process: the only one of a run, or one of those that torchrun or srun started."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokenstats.scoring.options import Request
from tokenstats.scoring.reference_pass import ReferenceInfo, remove_states
from tokenstats.scoring.scorer import ModelInfo, Scorer
from tokenstats.scoring.workers import Progress, Worker
from tokenstats.store.parts import write_part


class LocalEngine:
    """Models of this process, and a thread that writes one part while the next is being scored."""

    def __init__(self, request: Request, worker: Worker):
        self._scorer = Scorer(request, worker.local)
        self._threads = ThreadPoolExecutor(1)

    def load_reference(self) -> ReferenceInfo:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        return self._scorer.load_reference()

    def keep_states(self, store: Path, name: str, parts: Iterator[int], progress: Progress) -> None:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        for index in parts:
            self._scorer.keep_states(store, name, index, progress.advance)

    def load(self) -> ModelInfo:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        return self._scorer.load()

    def score(self, store: Path, name: str, parts: Iterator[int], settings: dict[str, Any], progress: Progress) -> set[int]:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        folder, made = store / "stats" / name, set()
        last: Future | None = None
        for index in parts:
            table, sums = self._scorer.score(store, name, index, progress.advance)
            if last is not None:
                last.result()
            last = self._threads.submit(write_scored, folder, index, table, settings, sums)
            made.add(index)
        if last is not None:
            last.result()
        return made

    def close(self) -> None:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        self._threads.shutdown()


def write_scored(folder: Path, index: int, table: pa.Table, settings: dict[str, Any], sums: dict[str, Any]) -> None:
    """Write a part of statistics; the reference's states of it have served."""
    write_part(folder, index, table, settings, sums)
    remove_states(folder, index)  # of a reference pass, if there was one
