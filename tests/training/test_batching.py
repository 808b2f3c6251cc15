"""How rows become optimizer batches and micro-batches: what is promised of sizes, padding and devices, whatever the lengths."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.lengths import lengths_of
from tokenstats.errors import InputError
from tokenstats.training import TrainOptions
from tokenstats.training.batching import BatchPlan, OptimizerBatches
from tokenstats.training.data import NO_ROW, TokenRows, TrainingData
from tokenstats.training.rows import shuffled

KINDS = ("gsm8k", "log-normal")
SIZES = ({"batch_size": 4}, {"batch_tokens": 4096}, {"batch_tokens": 9000, "padding_free": True}, {"padding_free": True})


def rows_of(lengths: np.ndarray) -> TokenRows:
    rng, total = np.random.default_rng(0), int(lengths.sum())
    keys = rng.integers(0, 2**63, len(lengths)).astype(np.uint64)
    ids = np.arange(total, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    learned = rng.random(total) < 0.5
    learned[offsets[:-1]] = False
    return TokenRows(ids, learned, offsets, keys)


def planned(rows: TokenRows, devices: int = 1, accumulation: int = 2, **options: object) -> OptimizerBatches:
    return OptimizerBatches(rows, 0, BatchPlan.of(TrainOptions(accumulation=accumulation, **options), devices))  # type: ignore[arg-type]


def steps(batches: OptimizerBatches) -> Iterator[list[list[list[int]]]]:
    """Each optimizer batch: device → micro-batch → rows."""
    items = list(batches)
    assert len(items) == len(batches)
    for first in range(0, len(items), batches.plan.devices):
        yield items[first : first + batches.plan.devices]


def rows_in(step: list[list[list[int]]]) -> list[int]:
    return sorted(row for device in step for rows in device for row in rows if row != NO_ROW)


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("options", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_has_each_row_once_and_each_device_as_many_micro_batches(kind: str, options: dict, devices: int) -> None:
    rows = rows_of(lengths_of(kind, 301))
    for step in (all_steps := list(steps(planned(rows, devices, **options)))):
        assert len({len(device) for device in step}) == 1
        assert all(rows for device in step for rows in device)
    assert sorted(row for step in all_steps for row in rows_in(step)) == list(range(301))


@pytest.mark.parametrize("options", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_batch_is_the_next_rows_of_the_order_whatever_the_padding(kind: str, options: dict) -> None:
    rows = rows_of(lengths_of(kind, 300))
    for epoch in range(3):
        batches = planned(rows, **options)
        batches.epoch = epoch
        order, first = shuffled(rows.keys, "training", 0, epoch).tolist(), 0
        for step in steps(batches):
            found = rows_in(step)
            assert found == sorted(order[first : first + len(found)])
            first += len(found)
        assert first == 300
        other = planned(rows, **{**options, "padding_free": not options.get("padding_free")})
        other.epoch = epoch
        assert list(map(rows_in, steps(other))) == list(map(rows_in, steps(batches)))


def test_by_rows_an_optimizer_batch_has_as_many_as_was_asked() -> None:
    sizes = [len(rows_in(step)) for step in steps(planned(rows_of(lengths_of("gsm8k", 101)), devices=2, batch_size=3))]
    assert sizes == [12] * 8 + [5]


@pytest.mark.parametrize("kind", KINDS)
def test_by_tokens_optimizer_batches_are_alike_and_as_many_each_epoch(kind: str) -> None:
    rows = rows_of(lengths_of(kind, 2000))
    lengths = np.diff(rows.offsets)
    batches = planned(rows, devices=2, accumulation=3, batch_tokens=5000)
    for epoch in range(5):
        batches.epoch = epoch
        tokens = [lengths[rows_in(step)].sum() for step in steps(batches)]
        assert len(tokens) == int(np.ceil(lengths.sum() / 30_000))
        assert max(tokens) - min(tokens) <= 2 * lengths.max()


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_below_5_percent(kind: str, devices: int) -> None:
    """Of steps of few rows as of many; all of GSM8K's rows, and of lengths from 8 to 4,096."""
    rows = rows_of(lengths_of(kind, 7473))
    lengths = np.diff(rows.offsets)
    for budget in (4096, 16_384):
        padded = 0
        for step in steps(planned(rows, devices, batch_tokens=budget)):
            for micro_batch in (lengths[micro] for device in step for micro in device if micro != [NO_ROW]):
                assert len(micro_batch) * micro_batch.max() <= budget
                padded += len(micro_batch) * micro_batch.max()
        assert padded < 1.05 * lengths.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_laid_one_after_the_other_keep_the_budget_and_fill_it(kind: str) -> None:
    rows = rows_of(lengths_of(kind, 2000))
    lengths = np.diff(rows.offsets)
    for step in steps(planned(rows, accumulation=4, batch_tokens=8192, padding_free=True)):
        tokens = [lengths[micro].sum() for micro in step[0]]
        assert max(tokens) <= 8192
        assert len(tokens) <= 5
        assert max(tokens) - min(tokens) <= 200, "micro-batches of a step should be of about equal sums"
    for step in steps(planned(rows, batch_size=4, padding_free=True)):
        assert [len(micro) for micro in step[0]] == [4, 4]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    budget=st.integers(60, 200),
    devices=st.integers(1, 4),
    padding_free=st.booleans(),
)
@settings(deadline=None)
def test_any_lengths_find_their_place(lengths: list[int], budget: int, devices: int, padding_free: bool) -> None:
    rows = rows_of(np.array(lengths))
    found = list(steps(planned(rows, devices, accumulation=1, batch_tokens=budget, padding_free=padding_free)))
    assert sorted(row for step in found for row in rows_in(step)) == list(range(len(lengths)))
    assert all(rows_in(step) for step in found)
    for micro_batch in (np.diff(rows.offsets)[micro] for step in found for device in step for micro in device):
        assert (micro_batch.sum() if padding_free else len(micro_batch) * micro_batch.max()) <= budget


def test_rows_that_are_read_with_other_frequencies_share_no_micro_batch() -> None:
    rows = rows_of(lengths_of("log-normal", 400))
    classes = (np.diff(rows.offsets) > 200).astype(int)
    for options in SIZES:
        plan = BatchPlan.of(TrainOptions(**options), 2)
        for step in OptimizerBatches(rows, 0, plan, classes):
            assert all(len(set(classes[micro])) == 1 for micro in step if micro != [NO_ROW])


def test_a_row_longer_than_the_budget_is_refused() -> None:
    rows = rows_of(np.array([5, 90, 7]))
    plan = BatchPlan.of(TrainOptions(batch_tokens=64), 1)
    for data in (TrainingData(rows, None, 0), TrainingData(rows_of(np.array([5])), rows, 0)):
        with pytest.raises(InputError, match="batch_tokens got 64, but the longest sequence has 90 tokens; give at least 90"):
            plan.check(data)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_tokens": 512, "batch_size": 4}, "batch_size would do nothing: batch_tokens says"),
        ({"padding_free": True, "batch_size": 1}, "padding_free would do nothing"),
        ({"batch_tokens": 0}, "batch_tokens got 0; expected a whole number, at least 1"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainOptions(**wrong)
