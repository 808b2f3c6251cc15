"""What is trained: keep-all is plain fine-tuning, a mask is obeyed, and how the work is cut up changes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import (
    QUICK,
    ROWS,
    byte_tokenizer,
    every_third_dropped,
    largest_difference,
    losses,
    nll_of,
    saved_parameters,
    sequences,
)
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from tokenstats.errors import TokenstatsWarning
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train
from tokenstats.training.data import collate, load_training_data
from tokenstats.training.rows import IGNORED, choose_mask, shuffled


def plain_sft(store: Store, model: str, out: Path, options: TrainOptions, epochs: int) -> list[float]:
    """transformers' Trainer with the model's own loss, on labels made here, in the order in which ``train`` takes the rows."""
    rows = [{"input_ids": ids.tolist(), "labels": np.where(flags, ids, -100).tolist()} for ids, flags in sequences(store)]
    keys = load_training_data(store, choose_mask(store, None)).train.keys
    examples = [rows[i] for epoch in range(epochs) for i in shuffled(keys, "training", options.seed, epoch)]
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        TrainingArguments(
            str(out),
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulation,
            learning_rate=options.learning_rate,
            lr_scheduler_type=options.schedule,
            warmup_steps=options.warmup_ratio,
            weight_decay=options.weight_decay,
            logging_steps=1,
            train_sampling_strategy="sequential",
            save_strategy="no",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        ),
        DataCollatorForSeq2Seq(byte_tokenizer()),
        examples,
    )
    trainer.train()
    trainer.save_model(out)
    return [e["loss"] for e in trainer.state.log_history if "loss" in e]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_keep_all_follows_plain_fine_tuning_for_20_steps(store: Store, model: str, tmp_path: Path, accumulation: int) -> None:
    options = replace(QUICK, max_steps=20, batch_size=4 // accumulation, accumulation=accumulation, weight_decay=0.1)
    options = replace(options, warmup_ratio=0.05)  # a whole step, so that nobody has to round
    expected = plain_sft(store, model, tmp_path / "plain", options, epochs=4)
    train(store, model=model, mask="all", out=tmp_path / "ours", options=options)
    assert losses(tmp_path / "ours") == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < 0.95 * expected[0]
    assert largest_difference(tmp_path / "ours", tmp_path / "plain") < 2e-6
    train(store, model=model, mask="none", out=tmp_path / "none", options=options)
    assert largest_difference(tmp_path / "ours", tmp_path / "none") == 0.0


def test_labels_are_the_kept_tokens_of_rows_with_any(store: Store) -> None:
    data = load_training_data(store, choose_mask(store, "some"))
    expected = [
        np.where(is_target & every_third_dropped(row, is_target), ids, IGNORED)
        for row, (ids, is_target) in enumerate(sequences(store))
        if row != 3
    ]
    assert (len(data.train), data.left_out) == (ROWS - 1, 1)
    for row, labels in enumerate(expected):
        assert data.train[row]["labels"].tolist() == labels.tolist()
    batch = collate([data.train[i] for i in range(3)])
    assert batch["input_ids"].shape == batch["labels"].shape == (3, max(map(len, expected[:3])))
    assert int((batch["labels"] != IGNORED).sum()) == sum(int((x != IGNORED).sum()) for x in expected[:3])
    assert not (batch["labels"][:, 0] != IGNORED).any()


def test_a_mask_is_obeyed(store: Store, model: str, tmp_path: Path) -> None:
    """One step of gradient descent in one batch: the first loss is the mean over exactly the kept tokens."""
    options = replace(QUICK, max_steps=1, batch_size=ROWS)
    summary = train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    total, count = nll_of(store, model, lambda row, is_target: is_target & every_third_dropped(row, is_target), range(ROWS))
    assert summary.loss == pytest.approx(total / count, rel=1e-6)
    assert (summary.rows, summary.rows_left_out, summary.kept_tokens) == (ROWS - 1, 1, count)


def test_the_loss_that_is_told_is_of_as_many_steps_as_is_told(store: Store, model: str, tmp_path: Path) -> None:
    """A checkpoint ends an entry of the history, and a longer entry is another mean."""
    for out, options, steps in (
        ("each", {"logging_steps": 1}, 1),
        ("cut", {"logging_steps": 10, "save_steps": 5}, 2),
        ("whole", {"logging_steps": 10}, 7),
    ):
        summary = train(store, model=model, mask="some", out=tmp_path / out, options=replace(QUICK, max_steps=7, **options))
        assert summary.loss_steps == steps
        assert summary.loss == pytest.approx(np.mean(losses(tmp_path / "each")[-steps:]), rel=1e-5)


def test_gradient_accumulation_changes_nothing(store: Store, model: str, tmp_path: Path) -> None:
    for batch_size, accumulation in ((8, 1), (1, 8)):
        options = replace(QUICK, max_steps=8, batch_size=batch_size, accumulation=accumulation)
        train(store, model=model, mask="some", out=tmp_path / str(accumulation), options=options)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "8"), rel=1e-5)
    assert largest_difference(tmp_path / "1", tmp_path / "8") < 2e-6


def test_computing_in_bfloat16_keeps_float32_weights(store: Store, model: str, tmp_path: Path) -> None:
    exact = train(store, model=model, mask="some", out=tmp_path / "exact", options=QUICK)
    rough = train(store, model=model, mask="some", out=tmp_path / "rough", options=replace(QUICK, dtype="bfloat16"))
    assert {w.dtype for w in saved_parameters(tmp_path / "rough").values()} == {torch.float32}
    assert rough.loss == pytest.approx(exact.loss, rel=1e-2)
    assert rough.loss != exact.loss


def test_recomputed_activations_change_nothing(store: Store, model: str, tmp_path: Path) -> None:
    train(store, model=model, mask="some", out=tmp_path / "kept", options=QUICK)
    train(store, model=model, mask="some", out=tmp_path / "recomputed", options=replace(QUICK, gradient_checkpointing=True))
    assert largest_difference(tmp_path / "kept", tmp_path / "recomputed") < 1e-7


def test_a_model_that_cannot_be_split_trains_the_same_and_says_that_it_costs_memory(
    store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(QUICK, eval_share=0.2)
    split = train(store, model=model, mask="some", out=tmp_path / "split", options=options)
    # an architecture that does something to its logits that its configuration does not tell
    monkeypatch.setattr("tokenstats.modeling.head._after_head", lambda _: lambda logits: 2 * logits)
    with pytest.warns(TokenstatsWarning, match="its own full logits"):
        whole = train(store, model=model, mask="some", out=tmp_path / "whole", options=options)
    assert whole.eval_loss == pytest.approx(split.eval_loss, rel=1e-5)
    assert largest_difference(tmp_path / "split", tmp_path / "whole") < 2e-6


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_on_a_half_precision_output_matrix_learns(store: Store, model: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = replace(QUICK, lora_rank=2, lora_targets="lm_head, q_proj", dtype="bfloat16")
    train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    second = {name: w for name, w in saved_parameters(tmp_path / "out").items() if "lora_B" in name}  # zeros at first
    assert any("lm_head" in name for name in second)
    assert all(bool((w != 0).any()) for w in second.values())


@pytest.mark.parametrize(
    ("schedule", "after_warmup"),
    [
        ("constant", lambda x: 1.0),
        ("linear", lambda x: 1.0 - x),
        ("cosine", lambda x: 0.5 * (1.0 + np.cos(np.pi * x))),
    ],
)
def test_the_learning_rate_warms_up_and_follows_its_schedule(
    store: Store, model: str, tmp_path: Path, schedule: str, after_warmup: Callable[[float], float]
) -> None:
    options = replace(QUICK, batch_size=2, max_steps=10, schedule=schedule, warmup_ratio=0.2)
    train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    found = [e["learning_rate"] for e in json.loads((tmp_path / "out" / "history.json").read_text())["training"]]
    expected = [0.0, 0.5, *(after_warmup(step / 8) for step in range(8))]
    assert found == pytest.approx([1e-3 * x for x in expected], rel=1e-6)
