"""Who scores which part. Workers share nothing but the store's folder: a part belongs to one of them, and a file says done.

``torchrun`` and SLURM start W processes; worker r takes the parts r, r + W, r + 2W, … and worker 0 writes the tokens. Nobody
waits for others at the end: whoever finds all parts on disk writes the manifest. A worker that dies takes one part with it.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tokenstats.errors import InputError, StoreError
from tokenstats.store.drafts import is_abandoned
from tokenstats.store.manifests import MANIFEST, StoreManifest
from tokenstats.store.parts import part_path, part_progress


@dataclass(frozen=True)
class Worker:
    """One of ``count`` processes of a run; ``local`` is its number on its own machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    def takes(self, part: int) -> bool:
        """Is a part this worker's?"""
        return part % self.count == self.rank

    @classmethod
    def from_environment(cls) -> "Worker":
        """As torchrun or a SLURM step says, else the only one. Raises InputError for numbers that make no sense."""
        for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
            if names[0] in os.environ and names[1] in os.environ:
                texts = [os.environ.get(name, "0") for name in names]
                if not all(text.isdecimal() for text in texts) or not int(texts[0]) < int(texts[1]):
                    raise InputError(f"{', '.join(names)} are {', '.join(texts)}; expected a rank below the number of workers")
                return cls(*map(int, texts))
        return cls()


class BackgroundIterator:
    """An iterator that runs in a thread of its own: rows become tokens while a model scores. Its errors come out here."""

    def __init__(self, source: Iterator[Any]):
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(source,), daemon=True)

    def _run(self, source: Iterator[Any]) -> None:
        try:
            for item in source:
                self._queue.put(("item", item))
                if self._stopped:
                    return
            self._queue.put(("end", None))
        except BaseException as error:
            self._queue.put(("error", error))

    def __iter__(self) -> Generator[Any, None, None]:
        self._thread.start()  # not before: a reader that never begins has nothing to stop
        try:
            while True:
                kind, value = self._queue.get()
                if kind == "end":
                    return
                if kind == "error":
                    raise value
                yield value
        finally:  # the reader went away: so does the thread, once the part at hand is written
            self._stopped = True
            if not is_abandoned():  # where the process is about to end, it is not waited for
                self._thread.join()


def parts_of_another(folder: Path, patience: float) -> Generator[tuple[int, int], None, None]:
    """(index, tokens) of the parts of tokens that worker 0 writes, as they appear; it is waited for ``patience`` seconds."""
    index, since = 0, time.monotonic()
    while True:
        path = part_path(folder / "tokens", index)
        if path.exists():
            yield index, part_progress(path)["tokens"]
            index, since = index + 1, time.monotonic()
        elif (folder / MANIFEST).exists() and index >= len(StoreManifest.read(folder).parts):
            return
        elif time.monotonic() - since > patience:
            raise StoreError(f"{path} did not come within {patience:.0f} s: worker 0 may be dead; run the same command again")
        else:
            time.sleep(min(0.2, patience / 10))


class Progress:
    """One display for a whole pass, on worker 0: tokens/s, share done, time left, padding. Others' parts are seen on disk."""

    def __init__(self, title: str, made: Callable[[int], Path], worker: Worker):
        """made: where a part lies once it is done."""
        self._made, self._worker = made, worker
        self._others: dict[int, int] = {}
        self._real = self._padded = 0
        self._looked = 0.0
        hidden = True if worker.rank else None
        self._bar = tqdm(desc=title, total=0, unit=" tokens", unit_scale=True, disable=hidden, file=sys.stderr)

    def found(self, index: int, tokens: int, done: bool) -> None:
        """A part of tokens is known; ``done``: an earlier run did it."""
        if self._bar.disable:
            return
        self._bar.total += tokens
        if done:
            self._bar.initial += tokens  # not counted into tokens/s
            self._bar.n += tokens
        elif not self._worker.takes(index):
            self._others[index] = tokens
        self._bar.refresh()

    def advance(self, real: int, padded: int) -> None:
        """So many tokens were done, without and with padding."""
        self._real, self._padded = self._real + real, self._padded + padded
        self._bar.set_postfix_str(f"padding {self._padded / self._real - 1:.1%}", refresh=False)
        self._bar.update(real)
        if self._others and time.monotonic() - self._looked > 2.0:
            self._looked = time.monotonic()
            for index in [i for i in self._others if self._made(i).exists()]:
                self._bar.update(self._others.pop(index))

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
