"""Which rows are learned when, and which are held out: from the rows and the seed alone; evaluation is over all targets."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import QUICK, ROWS, nll_of, sequences

from tokenstats.store import Store
from tokenstats.training import TrainOptions, train
from tokenstats.training.batching import BatchPlan, OptimizerBatches
from tokenstats.training.data import TokenRows, load_training_data
from tokenstats.training.rows import choose_mask


def epoch(batches: OptimizerBatches, number: int = 0) -> list[int]:
    """The rows of an epoch as they come."""
    batches.epoch = number
    return [row for micro_batches in batches for rows in micro_batches for row in rows]


def test_the_order_depends_on_the_seed_and_the_rows_alone() -> None:
    keys = np.random.default_rng(0).integers(0, 2**63, 50).astype(np.uint64)

    def order(seed: int, number: int, chosen: np.ndarray = keys) -> list[int]:
        torch.rand(torch.randint(1, 9, ()))  # whatever else draws random numbers
        ones = np.ones(len(chosen), np.int32)
        rows = TokenRows(ones, ones > 0, np.arange(len(chosen) + 1), chosen)
        return epoch(OptimizerBatches(rows, seed, BatchPlan.of(TrainOptions(batch_size=1, accumulation=1), 1)), number)

    assert order(1, 0) == order(1, 0)
    assert sorted(order(1, 0)) == list(range(50))
    assert len({tuple(order(seed, number)) for seed in range(3) for number in range(3)}) == 9
    some = np.arange(50) % 4 != 0
    of_all = [keys[i] for i in order(5, 2) if some[i]]
    assert [keys[some][i] for i in order(5, 2, keys[some])] == of_all, "common rows should come in the same order"


def test_evaluation_is_over_all_targets_of_the_same_rows_whatever_the_mask(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(QUICK, eval_share=0.25, eval_steps=4)
    found = [
        train(
            store, model=model, mask=mask, out=tmp_path / f"{mask}{size}", options=replace(options, batch_size=size, seed=size)
        )
        for mask, size in (("some", 5), ("none", 2), ("uneven", 3))
    ]
    held_out = set(range(ROWS)) - {row for row, (ids, _) in enumerate(sequences(store)) if is_trained(store, ids)}
    assert len(held_out) == 6
    total, count = nll_of(store, model, lambda _, is_target: is_target, held_out)
    for summary in found:
        assert summary.eval_rows == 6
        assert summary.eval_loss_before == pytest.approx(total / count, rel=1e-6)
        assert summary.eval_loss is not None
        assert summary.eval_loss < summary.eval_loss_before
    history = json.loads((tmp_path / "some5" / "history.json").read_text())
    assert [e["step"] for e in history["evaluation"]] == [0, 4, 6]
    total, count = nll_of(store, str(tmp_path / "some5"), lambda _, is_target: is_target, held_out)
    assert found[0].eval_loss == pytest.approx(total / count, rel=1e-6)


def is_trained(store: Store, ids: np.ndarray) -> bool:
    rows = load_training_data(store, choose_mask(store, None), eval_share=0.25).train
    return any(np.array_equal(rows[i]["input_ids"], ids) for i in range(len(rows)))


def test_rows_held_out_do_not_depend_on_the_mask_and_are_not_trained_on(store: Store) -> None:
    plain, masked, other = (
        load_training_data(store, choose_mask(store, mask), 0.3, seed) for mask, seed in ((None, 0), ("some", 0), (None, 1))
    )
    assert plain.evaluation is not None
    assert masked.evaluation is not None
    assert other.evaluation is not None
    assert masked.evaluation.keys.tolist() == plain.evaluation.keys.tolist() != other.evaluation.keys.tolist()
    assert len(plain.evaluation) == round(0.3 * ROWS)
    for data in (plain, masked):
        assert data.evaluation is not None
        assert not set(data.train.keys.tolist()) & set(data.evaluation.keys.tolist())
        assert len(data.train) + data.left_out + len(data.evaluation) == ROWS
