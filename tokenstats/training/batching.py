"""Which rows an optimizer step learns from, and the micro-batches that they are cut into: one forward pass of one device each.

An *optimizer batch* is the next rows of the epoch's order, which follows from the seed and the rows' keys alone. Its loss is
one sum divided by one number, so how its rows are arranged in micro-batches changes no update beyond rounding: they are
arranged by length.

    batch_size      rows of a micro-batch; a step has batch_size · accumulation · devices of them
    batch_tokens    tokens of a micro-batch at most, padding included, which is at most 4 % of it; a step has about
                    batch_tokens · accumulation · devices tokens, in as many micro-batches as that takes
    padding_free    the model reads the rows of a micro-batch one after the other in a single one: their padding is no token
                    of it, so they need not be alike
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tokenstats.errors import InputError, argument
from tokenstats.training.data import NO_ROW, TokenRows, TrainingData, collate
from tokenstats.training.mixture import Mixture
from tokenstats.training.options import TrainOptions
from tokenstats.training.rows import shuffled

_MOST_PADDING = 0.04
"""Of a micro-batch's tokens, where batch_tokens says how many it has."""

MicroBatch = dict[str, Tensor]


@dataclass(frozen=True)
class BatchPlan:
    """How large optimizer batches and micro-batches are.

    Attributes:
        batch_size: Rows of a micro-batch, or None.
        batch_tokens: Tokens of a micro-batch at most, where ``batch_size`` is None.
        accumulation: Micro-batches of each device in an optimizer batch; by tokens, as many full ones would have its size.
        devices: Of all processes.
        padding_free: Padding costs nothing: fill micro-batches evenly, rather than with rows that are alike.
    """

    batch_size: int | None
    batch_tokens: int | None
    accumulation: int
    devices: int
    padding_free: bool

    @classmethod
    def of(cls, options: TrainOptions, devices: int) -> "BatchPlan":
        """What the options ask for on so many devices."""
        known = options.resolved
        return cls(known.batch_size, known.batch_tokens, known.accumulation, devices, known.padding_free)

    def check(self, data: TrainingData) -> None:
        """Raise InputError where a row does not fit into ``batch_tokens``."""
        longest = max(rows.longest for rows in (data.train, data.evaluation) if rows is not None)
        if self.batch_tokens is not None and longest > self.batch_tokens:
            raise InputError(
                f"{argument('batch_tokens')} got {self.batch_tokens}, but the longest sequence has {longest} tokens; give at "
                f"least {longest}, or compute a store with {argument('max_length', self.batch_tokens)}"
            )

    def evaluation_rows(self, rows: TokenRows) -> int:
        """Rows in one forward pass of an evaluation, all padded to the longest of them."""
        return self.batch_size or max(1, (self.batch_tokens or 0) // rows.longest)

    def steps(self, lengths: np.ndarray) -> int:
        """Optimizer batches of an epoch of rows of these lengths, whatever their order."""
        in_all, of_a_step = (len(lengths), self.batch_size) if self.batch_size else (int(lengths.sum()), self.batch_tokens)
        return math.ceil(in_all / ((of_a_step or 1) * self.accumulation * self.devices))

    def cut(self, lengths: np.ndarray, steps: int) -> np.ndarray:
        """Where so many optimizer batches of rows of these lengths begin, [steps + 1]; in that order, at least a row in each.

        By rows, the last may be smaller. By tokens, all are of a size but for the part of a row, so that an epoch has as many
        steps whatever its order.
        """
        count, numbers = len(lengths), np.arange(steps + 1)
        if self.batch_size:
            return np.minimum(numbers * (self.batch_size * self.accumulation * self.devices), count)
        middles = np.cumsum(lengths) - lengths / 2
        cuts = np.searchsorted(middles, numbers * (lengths.sum() / steps))
        return np.minimum(np.maximum.accumulate(cuts - numbers) + numbers, count - steps + numbers)

    def arrange(self, lengths: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
        """Cut the rows 0 … n-1 of an optimizer batch into micro-batches, a multiple of the devices where there are rows enough.

        Args:
            lengths: Their tokens, [n].
            classes: Numbers [n]; only rows of the same number share a micro-batch.

        Returns:
            The rows of each micro-batch, those of most tokens first, so that devices get alike ones at a time.
        """
        cut = self._packed if self.padding_free else self._alike
        longest_first = np.argsort(-lengths, kind="stable")
        of_a_class = [longest_first[classes[longest_first] == each] for each in np.unique(classes)]
        batches = [rows[part] for rows in of_a_class for part in cut(lengths[rows])]

        def tokens(rows: np.ndarray) -> int:
            return int(lengths[rows].sum() if self.padding_free else len(rows) * lengths[rows].max())

        while len(batches) % self.devices and any(len(rows) > 1 for rows in batches):
            largest = max((i for i, rows in enumerate(batches) if len(rows) > 1), key=lambda i: tokens(batches[i]))
            batches[largest : largest + 1] = np.array_split(batches[largest], 2)
        return sorted(batches, key=tokens, reverse=True)

    def _alike(self, falling: np.ndarray) -> list[np.ndarray]:
        """Micro-batches of neighbours, by falling length: ``batch_size`` of them, or as many as are nearly as long."""
        if self.batch_size:
            return np.array_split(np.arange(len(falling)), math.ceil(len(falling) / self.batch_size))
        before, batches, first = np.concatenate([[0], np.cumsum(falling)]), [], 0
        while first < len(falling):
            padded = falling[first] * np.arange(1, len(falling) - first + 1)
            padding = padded - (before[first + 1 :] - before[first])
            fits = (padded <= (self.batch_tokens or 0)) & (padding <= _MOST_PADDING * padded)
            assert fits[0], "a row longer than batch_tokens"
            size = len(fits) if fits.all() else int(np.argmin(fits))
            batches.append(np.arange(first, first + size))
            first += size
        return batches

    def _packed(self, falling: np.ndarray) -> list[np.ndarray]:
        """As few micro-batches as can be, of about equal sums: each row goes where the fewest tokens are."""
        count = math.ceil(len(falling) / self.batch_size if self.batch_size else falling.sum() / (self.batch_tokens or 1))
        while True:
            batches: list[list[int]] = [[] for _ in range(count)]
            emptiest = [(0, i) for i in range(count)]
            for row, length in enumerate(falling):
                tokens, i = heapq.heappop(emptiest)
                batches[i].append(row)
                if self.batch_size is None or len(batches[i]) < self.batch_size:
                    heapq.heappush(emptiest, (tokens + int(length), i))
            if self.batch_tokens is None or max(falling[rows].sum() for rows in batches) <= self.batch_tokens:
                return [np.array(rows) for rows in batches]
            count += 1


class OptimizerBatches(Sampler[list[list[int]]]):
    """Optimizer batch after optimizer batch, of each device in turn: a list of micro-batches, which are lists of row numbers.

    The order is another one each epoch, from the rows' keys, the seed and ``epoch`` alone. It does not depend on how many
    random numbers anything else has drawn, nor on the batch size; and rows that two masks have in common come in the same order
    under both. Devices must all have as many micro-batches: what is missing is NO_ROW, not rows from the front once more.

    Args:
        classes: A number for each row, [R]; only rows of the same number share a micro-batch.
        mixture: Which rows an epoch has; None: all.
    """

    def __init__(
        self,
        rows: TokenRows,
        seed: int,
        plan: BatchPlan,
        classes: np.ndarray | None = None,
        mixture: Mixture | None = None,
    ):
        self.rows, self.seed, self.plan, self.epoch, self.mixture = rows, seed, plan, 0, mixture
        self.lengths = np.diff(rows.offsets)
        self.steps = plan.steps(self.lengths[self.rows_of(0)])  # by tokens, epochs of other rows are cut into as many
        self.classes = np.zeros(len(rows), np.int64) if classes is None else classes

    def __len__(self) -> int:
        return self.steps * self.plan.devices

    def rows_of(self, epoch: int) -> np.ndarray:
        """The row numbers of an epoch, in no order."""
        everything = np.arange(len(self.rows))
        return everything if self.mixture is None else self.mixture.rows_of(epoch, self.rows.keys, self.seed)

    def __iter__(self) -> Iterator[list[list[int]]]:
        chosen = self.rows_of(self.epoch)
        order = chosen[shuffled(self.rows.keys[chosen], "training", self.seed, self.epoch)]
        devices = self.plan.devices
        for first, last in pairwise(self.plan.cut(self.lengths[order], self.steps)):
            rows = order[first:last]
            batches = [rows[part].tolist() for part in self.plan.arrange(self.lengths[rows], self.classes[rows])]
            batches += [[NO_ROW]] * (-len(batches) % devices)
            for device in range(devices):
                yield batches[device::devices]

    def loader(self) -> "DataLoader[list[MicroBatch]]":
        """Optimizer batches as tensors: an item is a list of micro-batches."""
        return DataLoader(_MicroBatches(self.rows), batch_sampler=self, collate_fn=list)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _MicroBatches(Dataset[MicroBatch]):
    """Indexed by the rows of a micro-batch."""

    rows: TokenRows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: list[int]) -> MicroBatch:
        return collate([self.rows[row] for row in rows])
