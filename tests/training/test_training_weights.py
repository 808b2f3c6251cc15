"""Training on a mask that weighs: one divisor for the whole optimizer batch, whatever cuts it up, and it is said which."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from training_fixtures import (
    QUICK,
    ROWS,
    add_mask,
    every_third_dropped,
    largest_difference,
    losses,
    masked_store,
    nll_of,
    remake_part,
    sequences,
    train_on_two_processes,
    uneven,
)

from tokenstats.errors import InputError, StoreError
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train
from tokenstats.training.data import NO_ROW, collate, load_training_data
from tokenstats.training.rows import choose_mask

LEFT_OUT = 2  # row 3 keeps nothing, row 7 nothing of weight above 0


def kept(row: int, is_target: np.ndarray) -> np.ndarray:
    return is_target & every_third_dropped(row, is_target)


def weighs(row: int, is_target: np.ndarray) -> np.ndarray:
    return np.where(kept(row, is_target), uneven(row, is_target), 0)


def test_a_batch_carries_the_masks_weights_token_by_token(store: Store) -> None:
    data = load_training_data(store, choose_mask(store, "uneven"))
    rows = [(row, ids, flags) for row, (ids, flags) in enumerate(sequences(store)) if row not in (3, 7)]
    assert (len(data.train), data.left_out) == (ROWS - LEFT_OUT, LEFT_OUT)
    for example, (row, ids, flags) in zip((data.train[i] for i in range(len(rows))), rows, strict=True):
        assert example["weights"].tolist() == weighs(row, flags).tolist()
        assert example["labels"].tolist() == np.where(kept(row, flags), ids, -100).tolist()
    batch = collate([data.train[0], data.train[NO_ROW]])
    assert batch["weights"].dtype.is_floating_point
    assert batch["weights"].shape == batch["labels"].shape
    assert batch["weights"][1].sum() == 0


def test_what_is_told_of_kept_tokens_is_of_those_of_weight_0_too(store: Store, model: str, tmp_path: Path) -> None:
    """As E and K mean the word, and as a rule that is followed does."""
    options = replace(QUICK, max_steps=1, batch_size=ROWS, metrics="targets", entropy_on="kept")
    summary = train(store, model=model, mask="uneven", out=tmp_path / "out", options=options)
    total, count = nll_of(store, model, lambda row, flags: kept(row, flags) if row not in (3, 7) else flags & False)
    assert summary.metrics["kept/nll"] == pytest.approx(total / count, rel=1e-5)
    assert summary.metrics["entropy_on/nll"] == pytest.approx(summary.metrics["kept/nll"], rel=1e-9)


@pytest.mark.parametrize("normalise", ["weights", "targets"])
def test_one_step_has_the_loss_that_the_models_own_logits_give(
    store: Store, model: str, tmp_path: Path, normalise: str
) -> None:
    options = replace(QUICK, max_steps=1, batch_size=ROWS, normalise=normalise)
    summary = train(store, model=model, mask="uneven", out=tmp_path / "out", options=options)
    total, weight = nll_of(store, model, weighs)
    count = sum(int(kept(row, flags).sum()) for row, (_, flags) in enumerate(sequences(store)) if row not in (3, 7))
    divisor = {"weights": weight, "targets": count}[normalise]
    assert summary.loss == pytest.approx(total / divisor, rel=1e-6)
    learned = sum(int((weighs(row, flags) > 0).sum()) for row, (_, flags) in enumerate(sequences(store)))
    assert 0 < learned < count, "some kept tokens have weight 0"
    assert (summary.rows, summary.rows_left_out, summary.kept_tokens) == (ROWS - LEFT_OUT, LEFT_OUT, learned)
    formula = {"weights": "Σ w·nll / Σ w", "targets": "Σ w·nll / kept tokens"}[normalise]
    record = json.loads((tmp_path / "out" / "tokenstats.json").read_text())
    assert (record["weighted"], record["training"]["normalise"]) == (True, normalise)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert summary.loss_formula == record["training"]["loss"] == config["tokenstats"]["training"]["loss"] == formula


@pytest.mark.parametrize("normalise", ["weights", "targets"])
def test_weights_of_1_train_to_the_last_bit_like_no_weights(store: Store, model: str, tmp_path: Path, normalise: str) -> None:
    options = replace(QUICK, accumulation=2, normalise=normalise)
    plain = train(store, model=model, mask="some", out=tmp_path / "plain", options=replace(options, normalise="weights"))
    train(store, model=model, mask="ones", out=tmp_path / "ones", options=options)
    assert plain.loss_formula == "Σ nll / kept tokens"
    assert losses(tmp_path / "ones") == losses(tmp_path / "plain")
    assert largest_difference(tmp_path / "ones", tmp_path / "plain") == 0.0


def test_the_scale_of_the_weights_matters_only_where_kept_tokens_are_counted(store: Store, model: str, tmp_path: Path) -> None:
    add_mask(store, "larger", every_third_dropped, weighs=lambda row, is_target: 4 * uneven(row, is_target))
    for normalise in ("weights", "targets"):
        for mask in ("uneven", "larger"):
            options = replace(QUICK, max_steps=2, normalise=normalise)
            train(store, model=model, mask=mask, out=tmp_path / normalise / mask, options=options)
    assert largest_difference(tmp_path / "weights" / "uneven", tmp_path / "weights" / "larger") == 0.0
    small, large = losses(tmp_path / "targets" / "uneven"), losses(tmp_path / "targets" / "larger")
    assert large[0] == pytest.approx(4 * small[0], rel=1e-6)


@pytest.mark.parametrize("normalise", ["weights", "targets"])
def test_gradient_accumulation_changes_nothing(store: Store, model: str, tmp_path: Path, normalise: str) -> None:
    for batch_size, accumulation in ((8, 1), (1, 8)):
        options = replace(QUICK, max_steps=8, batch_size=batch_size, accumulation=accumulation, normalise=normalise)
        train(store, model=model, mask="uneven", out=tmp_path / str(accumulation), options=options)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "8"), rel=1e-5)
    assert largest_difference(tmp_path / "1", tmp_path / "8") < 2e-6


@pytest.mark.parametrize(
    "sizes",
    [{"batch_size": 2}, {"batch_size": TrainOptions.batch_size, "batch_tokens": 100, "padding_free": True}],
    ids=["by rows", "by tokens, without padding"],
)
def test_the_number_of_devices_changes_nothing(store: Store, model: str, tmp_path: Path, sizes: dict) -> None:
    """Two processes share each batch; 23 or 22 rows leave one of them without rows at the end of an epoch."""
    options, masks = replace(QUICK, max_steps=8, accumulation=4, eval_share=0.2, **sizes), ("some", "uneven")
    alone = {mask: train(store, model=model, mask=mask, out=tmp_path / "alone" / mask, options=options) for mask in masks}
    train_on_two_processes(store, model, masks, tmp_path / "both", replace(options, accumulation=2))
    for mask in masks:
        one, two = tmp_path / "alone" / mask, tmp_path / "both" / mask
        assert losses(two) == pytest.approx(losses(one), rel=1e-5)
        assert largest_difference(one, two) < 2e-6
        history = json.loads((two / "history.json").read_text())
        assert history["evaluation"][-1]["loss"] == pytest.approx(alone[mask].eval_loss, rel=1e-6)


def test_a_run_is_resumed_only_with_the_divisor_it_began_with(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(QUICK, save_steps=3)
    train(store, model=model, mask="uneven", out=tmp_path / "out", options=options)
    other = replace(options, normalise="targets")
    with pytest.raises(InputError, match="normalise: there weights, asked for targets"):
        train(store, model=model, mask="uneven", out=tmp_path / "out", options=other, resume=True)


def test_a_mask_whose_weights_are_all_0_leaves_nothing_to_learn(store: Store, model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no token of weight above 0 of the 24 rows"):
        train(store, model=model, mask="weightless", out=tmp_path / "out", options=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_divisor_is_refused() -> None:
    with pytest.raises(InputError, match=r"normalise got 'weight' \(did you mean 'weights'\?\)"):
        TrainOptions(normalise="weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: [float("nan")] * len(row), "holds a weight that is no finite number"),
        (lambda row: [-0.5] * len(row), "holds a weight that is no finite number"),
        (lambda row: [None] * len(row), "holds a weight that is no finite number"),
        (lambda row: row[1:], "the lists of weight are not as long as"),
        (None, "has no column weight"),
    ],
    ids=["nan", "negative", "null", "short", "missing"],
)
def test_weights_that_are_none_are_refused_by_part(tmp_path: Path, change: object, message: str) -> None:
    store = masked_store(tmp_path)
    table = store.part("masks/uneven", 1)
    if change is None:
        broken = table.drop_columns(["weight"])
    else:
        values = pa.array([change(row) for row in table["weight"].to_pylist()], pa.list_(pa.float32()))  # type: ignore[operator]
        position = table.schema.get_field_index("weight")
        broken = table.set_column(position, table.schema.field("weight"), pa.chunked_array([values]))
    store = remake_part(store, "masks/uneven", 1, broken)
    with pytest.raises(StoreError, match=f"(part 1|part-00001.parquet).*{message}"):
        load_training_data(store, choose_mask(store, "uneven"))


def test_the_command_line_says_what_the_loss_is(cli, store: Store, model: str, tmp_path: Path) -> None:
    common = ["train", store.path, "--model", model, "--max-steps", 1, "--batch-size", 8, "--device", "cpu"]
    status, out, _ = cli(*common, "--mask", "uneven", "--out", tmp_path / "a", "--normalise", "targets")
    assert status == 0
    assert "Σ w·nll / kept tokens" in out
    assert f"left out {LEFT_OUT} rows with nothing to learn" in out
    status, _, err = cli(*common, "--mask", "uneven", "--out", tmp_path / "b", "--normalise", "tokens")
    assert status == 2
    assert "expected one of: weights, targets" in err
