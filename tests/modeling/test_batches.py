"""Rows are put into batches once each, within the budget, beside others of their length; a full memory halves the budget."""

import weakref

import numpy as np
import pytest
import torch

from tokenstats.modeling.batches import Budget, PartTokens, plan_batches, run_batches


@pytest.mark.parametrize("lengths", [[5], [3, 900, 4, 4, 2], list(range(1, 60)), [2] * 100])
@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_batches_hold_each_row_once_within_the_budget(lengths, budget):
    batches = plan_batches(np.array(lengths), budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)


def test_few_rows_of_unlike_lengths_are_not_padded_to_the_longest():
    lengths = np.array([1000, 990, 980, 300, 290, 280, 270, 12, 11])
    assert [sorted(lengths[b]) for b in plan_batches(lengths, 8192)] == [[980, 990, 1000], [270, 280, 290, 300], [11, 12]]


def test_only_rows_of_one_class_share_a_batch():
    lengths = np.array([7, 5, 7, 5, 5, 3])
    assert [sorted(lengths[b]) for b in plan_batches(lengths, 15, lengths)] == [[7, 7], [5, 5, 5], [3]]
    assert [sorted(b) for b in plan_batches(np.full(6, 5), 99, np.array([0, 1, 0, 1, 0, 0]))] == [[0, 2, 4, 5], [1, 3]]
    assert all(len(b) == 1 for b in plan_batches(lengths, 99, np.arange(6)))


def run_with(most: int, fail) -> tuple[Budget, np.ndarray, list]:
    """Rows of 3 to 39 tokens through a model that has no memory for more than ``most`` tokens at once."""
    offsets = np.cumsum([0, *range(3, 40)])
    tokens = PartTokens(np.arange(offsets[-1]), np.ones(offsets[-1], bool), offsets)
    budget = Budget(1000)

    def run(batch: torch.Tensor, chosen: torch.Tensor, places: np.ndarray) -> np.ndarray:
        if batch.numel() > most:
            fail(batch)
        np.testing.assert_array_equal(batch[chosen].numpy(), places)  # ids are places here
        return places

    where, results, _ = run_batches(tokens, run, torch.device("cpu"), budget, np.zeros_like, lambda real, padded: None)
    np.testing.assert_array_equal(np.sort(where), tokens.ids)
    return budget, where, results


def test_what_a_full_memory_could_not_hold_is_run_in_smaller_batches_each_token_once():
    def fail(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    budget, where, results = run_with(200, fail)
    assert 100 <= budget.tokens <= 200
    np.testing.assert_array_equal(where, np.concatenate(results))


def test_the_error_of_the_cpus_own_allocator_is_known():
    assert run_with(200, lambda _: torch.empty(1 << 60))[0].tokens <= 200


def test_any_other_error_is_no_matter_of_memory():
    def fail(_):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    with pytest.raises(RuntimeError, match="must match the size"):
        run_with(200, fail)


def test_what_a_failed_batch_held_is_gone_before_the_cache_is_emptied(monkeypatch):
    """As long as the error lives, its traceback holds the tensors of the batch: an emptied cache would still be full."""
    held: list[weakref.ref] = []
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(held[-1]() is None))

    def fail(_):
        large = torch.ones(1000)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    run_with(200, fail)
    assert emptied
    assert all(emptied)
