"""Where the targets of a dataset come from: part by part from a store, by several threads, or from memory."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from tokenstats.errors import InputError
from tokenstats.masking.engine.sorted_runs import on_disk
from tokenstats.masking.engine.targets import Targets, read_targets
from tokenstats.masking.language.unparse import Column
from tokenstats.store import Store
from tokenstats.store.drafts import is_abandoned

Item = TypeVar("Item")
Answer = TypeVar("Answer")
_MOST_BY_DEFAULT = 8  # each holds one part and what is computed from it: about 100 MB for a million tokens


class PartReader(Protocol):
    """Reads a dataset part by part."""

    def each(self, work: Callable[[Targets], Answer], columns: Iterable[Column]) -> Generator[Answer, None, None]:
        """What ``work`` says of each part, in the order of the parts. It reads no other columns than these."""
        ...

    def keep(self, run: np.ndarray) -> np.ndarray:
        """The same array, held where there is room for those of all parts."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Targets that are in memory already."""

    parts: Sequence[Targets]

    def each(self, work: Callable[[Targets], Answer], columns: Iterable[Column]) -> Generator[Answer, None, None]:
        """See :class:`PartReader`."""
        yield from map(work, self.parts)

    def keep(self, run: np.ndarray) -> np.ndarray:
        """In memory, where the targets are."""
        return run


@dataclass(frozen=True)
class OnDisk:
    """The parts of a store, each held by one of ``workers`` threads; what they say does not depend on how many there are.

    Attributes:
        title: Of the progress bar that each reading shows.
    """

    store: Store
    scorings: Mapping[str | None, str]
    workers: int
    title: str

    def each(self, work: Callable[[Targets], Answer], columns: Iterable[Column]) -> Generator[Answer, None, None]:
        """See :class:`PartReader`."""
        wanted = frozenset(columns)

        def read_and_work(part: int) -> Answer:
            # a store remembers the part read last: each thread has its own
            return work(read_targets(copy(self.store), part, wanted, self.scorings))

        count = self.store.part_count
        with closing(in_order(read_and_work, range(count), self.workers)) as answers:
            yield from tqdm(answers, desc=self.title, total=count, unit=" parts", leave=False, disable=None)

    def keep(self, run: np.ndarray) -> np.ndarray:
        """In a temporary file."""
        return on_disk(run)


def worker_count(workers: int | None) -> int:
    """How many threads to use: as many as there are processors, up to 8, unless said. Raises InputError below 1."""
    if workers is not None and workers < 1:
        raise InputError(f"workers got {workers}; expected a whole number of at least 1")
    return workers if workers is not None else min(_MOST_BY_DEFAULT, os.cpu_count() or 1)


def in_order(work: Callable[[Item], Answer], items: Iterable[Item], workers: int) -> Generator[Answer, None, None]:
    """``map``, by several threads. No more than ``workers`` items are ahead of the answer that is taken next.

    Close it, or take all of it: until then threads may be at work.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[Answer]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # where the process is about to end, what is at work is not waited for
        pool.shutdown(wait=not is_abandoned(), cancel_futures=True)
