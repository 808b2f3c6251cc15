"""All values of a dataset in order, exact, without ever holding them in memory.

Each part's values are sorted on their own, once: a run, in a file without a name that goes with the process. Where a number
stands among all values is where it stands in each run, added up. So the value of any rank is found by halving the range of
numbers it can lie in, 32 times for float32 and 64 times for float64, however many values there are.
"""

import mmap
import tempfile
from collections.abc import Iterator, Mapping

import numpy as np

from tokenstats.errors import StoreError, one_line

_BUCKET = 1 << 21  # values that are in memory at once where runs are merged


class SortedRuns:
    """Runs by the part they are of, and how many values are missing (NaN) beside them.

    Args:
        runs: Rising float32 or float64 values [n] of each part, all of one type, without NaN.
        missing: How many values of all parts are NaN.
    """

    def __init__(self, runs: Mapping[int, np.ndarray], missing: int = 0):
        self._runs = runs
        self.missing = missing
        self.count = sum(map(len, runs.values()))

    def __iter__(self) -> Iterator[np.ndarray]:
        """The runs that hold anything, in the order of their parts; what was read of a file need not stay in memory."""
        for _, run in sorted(self._runs.items()):
            if len(run):
                yield run
                _let_go(run)

    def at(self, ranks: list[int]) -> np.ndarray:
        """The values [k] of ranks that are counted from 0 at the smallest of the ``count`` values."""
        kind = next((run.dtype for run in self), np.dtype(np.float64))
        low, high = (np.full(len(ranks), _key(np.array([end], kind))[0]) for end in (-np.inf, np.inf))
        while (low < high).any():
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            upto = np.zeros(len(ranks), np.int64)
            for run in self:
                upto += np.searchsorted(run, _value(middle, kind), side="right")
            low, high = np.where(upto > ranks, low, middle + 1), np.where(upto > ranks, middle, high)
        return _value(low, kind)

    def smaller(self, values: np.ndarray) -> np.ndarray:
        """How many of all values are smaller than each of ``values`` [n], int64."""
        order = np.argsort(values)
        sought, counts = values[order], np.zeros(len(values), np.int64)
        for run in self:
            # only what lies between the run's ends needs a search
            first, last = np.searchsorted(sought, run[0], side="right"), np.searchsorted(sought, run[-1], side="right")
            counts[first:last] += np.searchsorted(run, sought[first:last])
            counts[last:] += len(run)
        unsorted = np.empty_like(counts)
        unsorted[order] = counts
        return unsorted

    def equal(self, value: float) -> dict[int, int]:
        """By part, how many values are equal to one; parts without any are left out."""
        found = {}
        for part, run in sorted(self._runs.items()):
            first, last = (np.searchsorted(run, run.dtype.type(value), side) for side in ("left", "right"))
            if first < last:
                found[part] = int(last - first)
        return found

    def merged(self) -> "SortedRuns":
        """The same values in runs that do not overlap: many numbers are then looked up in one run each."""
        cuts = np.unique(self.at(list(range(_BUCKET, self.count, _BUCKET))))
        places = [[0, *np.searchsorted(run, cuts).tolist(), len(run)] for run in self]
        merged = {}
        for i in range(len(cuts) + 1):
            pieces = [run[own[i] : own[i + 1]] for run, own in zip(self, places, strict=True)]
            merged[i] = on_disk(np.sort(np.concatenate(pieces))) if pieces else np.zeros(0)
        return SortedRuns(merged, self.missing)


def sorted_run(values: np.ndarray) -> np.ndarray:
    """The values of one part [n] as a run: rising, without NaN, -0.0 as 0.0."""
    missing = np.isnan(values)
    return np.sort((values[~missing] if missing.any() else values) + values.dtype.type(0.0))


def on_disk(run: np.ndarray) -> np.ndarray:
    """The same run in a file that has no name: it goes when nobody holds the run any more, however the process ends.

    Raises:
        StoreError: The folder for temporary files is full.
    """
    if not len(run):
        return run
    try:
        with tempfile.TemporaryFile(prefix="tokenstats-") as file:
            run.tofile(file)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StoreError(
            f"cannot sort {len(run):,} values in {tempfile.gettempdir()} ({one_line(error, 100)}); it takes "
            f"{run.itemsize} bytes for each value of the dataset: free some space, or set TMPDIR to another folder"
        ) from error
    return np.frombuffer(mapped, run.dtype)


def _let_go(run: np.ndarray) -> None:
    held = run.base.obj if isinstance(run.base, memoryview) else run.base
    if isinstance(held, mmap.mmap):
        held.madvise(mmap.MADV_DONTNEED)


def _key(values: np.ndarray) -> np.ndarray:
    """Whole numbers, int64, in the order of floats."""
    bits = values.view(f"i{values.itemsize}")
    return np.where(bits < 0, -(bits & np.iinfo(bits.dtype).max), bits).astype(np.int64)


def _value(keys: np.ndarray, kind: np.dtype) -> np.ndarray:
    """The floats that :func:`_key` came from."""
    size = np.abs(keys).astype(f"i{kind.itemsize}").view(kind)
    return np.where(keys < 0, -size, size)
