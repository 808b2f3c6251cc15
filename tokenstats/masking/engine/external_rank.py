"""How many values of a dataset are smaller than a given one: exact, in bounded memory, from a sorted file.

The order statistics at every two-millionth rank cut the values into buckets. Values equal to a cut are counted, the
others are written to their bucket's file, and each file is sorted on its own: however the values lie, no more than one
bucket is in memory.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tokenstats.errors import StoreError, one_line
from tokenstats.masking.engine.multipass import Pass, Steps
from tokenstats.masking.engine.order_statistics import order_statistics

_BUCKET = 1 << 21


class Ranking:
    """The sorted values of a dataset, on disk for as long as this object lives (8 bytes a value).

    ``count`` values, cut at ``cuts``; :func:`rank_all` fills it.
    """

    def __init__(self, cuts: Iterable[float], count: int):
        self.count = count
        self._cuts = np.unique(np.array(list(cuts), np.float64))
        self._equal, self._between = np.zeros((2, len(self._cuts)), np.int64)
        self._folder = Path(tempfile.mkdtemp(prefix="tokenstats-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def smaller(self, values: np.ndarray) -> np.ndarray:
        """int64 [n]: how many of the dataset's values are smaller than each of these."""
        order = np.argsort(values)
        sought = values[order].astype(np.float64)
        counts = np.zeros(len(values), np.int64)
        for i, (at, above, end) in enumerate(self._spans(sought)):
            counts[order[at:above]] = self._below[i]
            if above < end:
                path = self._path(i)
                held = np.fromfile(path) if path.exists() else np.zeros(0)
                counts[order[above:end]] = self._through[i] + np.searchsorted(held, sought[above:end])
        return counts

    def percent(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] in [0, 1]: smaller values / (n - 1); 0 where there is only one."""
        return np.minimum(self.smaller(values) / max(1, self.count - 1), 1.0)

    def add(self, ordered: np.ndarray) -> "Ranking":
        """Put sorted float64 values into their buckets."""
        with self._room():
            for i, (at, above, end) in enumerate(self._spans(ordered)):
                self._equal[i] += above - at
                self._between[i] += end - above
                if above < end:
                    with open(self._path(i), "ab") as file:
                        ordered[above:end].tofile(file)
        return self

    def finish(self) -> "Ranking":
        """Sort the buckets, after the last value."""
        with self._room():
            for path in self._folder.iterdir():
                np.sort(np.fromfile(path)).tofile(path)
        # how many values are smaller than each cut, and how many are no larger than it
        self._below = np.concatenate([[0], np.cumsum(self._equal + self._between)])[:-1]
        self._through = self._below + self._equal
        return self

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot sort {self.count:,} values in {self._folder} ({one_line(error, 100)}); "
                f"it takes {8 * self.count:,} bytes: free some space, or set TMPDIR to another folder"
            ) from error

    def _spans(self, ordered: np.ndarray) -> Iterable[tuple[int, int, int]]:
        """For each cut: where the values equal to it begin, where those above it begin, and where the next cut's begin."""
        at, above = (np.searchsorted(ordered, self._cuts, side).tolist() for side in ("left", "right"))
        return zip(at, above, [*at[1:], len(ordered)], strict=True) if at else []

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:06d}"


def rank_all(bucket: int = _BUCKET) -> Steps[Ranking]:
    """The ranking of all values, NaN left out, in buckets of so many."""
    found = yield from order_statistics(lambda present, missing: range(0, present, bucket))
    return (yield Pass(_sorted, Ranking.add, Ranking(found.at.values(), found.present))).finish()


def _sorted(part: int, values: np.ndarray) -> np.ndarray:
    return np.sort(values[~np.isnan(values)]).astype(np.float64)
