"""What a caller gets wrong is named in one line, and nothing is written; a training that diverges stops."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from training_fixtures import (
    QUICK,
    add_mask,
    byte_tokenizer,
    every_third_dropped,
    masked_store,
    remake_part,
    save_tiny_model,
    sequences,
    tiny_config,
)

from tokenstats.errors import InputError, StoreError, TokenstatsError
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train


def with_entropy_on(tokens: str) -> TrainOptions:
    return replace(QUICK, entropy_bonus=0.1, entropy_on=tokens)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate got 0.0; expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate got nan"),
        ({"epochs": -1.0}, "epochs got -1.0"),
        ({"batch_size": 0}, "batch_size got 0; expected a whole number"),
        ({"max_steps": 2.5}, "max_steps got 2.5"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"dtype": "float16"}, "expected one of: auto, float32, bfloat16"),
        ({"warmup_ratio": 1.0}, "warmup_ratio got 1.0"),
        ({"eval_share": 1.0}, "eval_share got 1.0"),
        ({"eval_steps": 5}, "eval_share above 0"),
        ({"eval_seed": 1}, "eval_seed would do nothing: no row is held out"),
        ({"epochs": 1.0, "max_steps": 5}, "epochs would do nothing: max_steps says when to stop"),
        ({"lora_alpha": 8}, "give lora_rank too"),
        ({"lora_dropout": 0.1, "lora_targets": "q_proj"}, "lora_dropout, lora_targets would do nothing"),
        ({"batch_size": True}, "batch_size got True; expected a whole number"),
        ({"schedule": None}, "schedule got None; expected one of"),
        ({"gradient_checkpointing": "no"}, "gradient_checkpointing got 'no'; expected true or false"),
        ({"seed": -1}, "seed got -1"),
        ({"entropy_bonus": -0.1, "entropy_on": "kept"}, "entropy_bonus got -0.1; expected a number, at least 0"),
        ({"entropy_bonus": 0.1}, "entropy_bonus=0.1 got no tokens; expected entropy_on with it"),
        ({"kl_penalty": 0.1, "reference": "q"}, "kl_penalty=0.1 got no tokens; expected kl_on with it"),
        ({"kl_penalty": 0.1, "kl_on": "kept"}, "kl_penalty=0.1 got no reference; expected reference with it"),
        ({"entropy_on": "kept"}, "entropy_on would do nothing: entropy_bonus is 0"),
        ({"kl_on": "kept", "reference": "q"}, "kl_on would do nothing: kl_penalty is 0"),
        ({"kl_term": "reverse"}, "kl_term would do nothing: kl_penalty is 0"),
        ({"kl_term": "exakt"}, "did you mean 'exact'"),
        ({"reference_cache": "c"}, "reference_cache would do nothing: there is no reference"),
        ({"metrics": "all"}, "expected one of: loss, kept, targets"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        TrainOptions(**wrong)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"mask": "sme"}, StoreError, "no mask 'sme'"),
        ({"mask": ""}, InputError, "mask name '' cannot be used"),
        ({"mask": " "}, InputError, "mask name '' cannot be used"),
        ({"mask": "nothing"}, InputError, "keeps no token"),
        ({"mask": "foreign"}, StoreError, "made from other tokens"),
        ({"model": "nowhere/at/all"}, InputError, "no model folder"),
        ({"options": replace(QUICK, report_to="wandbb")}, InputError, "report_to got 'wandbb'"),
        ({"options": replace(QUICK, lora_rank=2, lora_targets="nose")}, InputError, "lora_targets 'nose'"),
        ({"options": replace(QUICK, device="tpu")}, InputError, "device='tpu' cannot be used"),
        ({"options": replace(QUICK, normalise="targets")}, InputError, "normalise would do nothing: the mask 'some' does not"),
        ({"resume": True}, InputError, "no checkpoint"),
        (
            {"options": with_entropy_on("clause 2")},
            InputError,
            r"clause '2', which mask 'some' does not have; its clauses: 1: nll",
        ),
        ({"options": with_entropy_on("clause nll > 3")}, InputError, r"clause 'nll > 3' \(did you mean 'nll > 2'\?\)"),
        ({"options": with_entropy_on("clause 0")}, InputError, "entropy_on got clause '0'"),
        ({"options": with_entropy_on("droped")}, InputError, r"entropy_on got 'droped' \(did you mean 'dropped'\?\)"),
        ({"options": with_entropy_on("foreign")}, StoreError, "made from other tokens"),
        ({"options": with_entropy_on("clause 1"), "mask": "none"}, InputError, "which mask 'none: all target tokens' does not"),
        ({"options": with_entropy_on("dropped"), "mask": "all"}, InputError, "would do nothing: no token of the 24 rows"),
        ({"options": replace(QUICK, reference="q")}, InputError, "reference would do nothing: nothing reads it"),
        (
            {"options": replace(QUICK, metrics="kept", reference="nowhere/at/all")},
            InputError,
            "no model folder at nowhere/at/all",
        ),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    store: Store, model: str, tmp_path: Path, wrong: dict, kind: type[TokenstatsError], message: str
) -> None:
    arguments = {"model": model, "mask": "some", "out": tmp_path / "out", "options": QUICK, **wrong}
    with pytest.raises(kind, match=message) as caught:
        train(store, **arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_models_that_do_not_fit_the_store_are_refused(store: Store, tmp_path: Path) -> None:
    longest = max(len(ids) for ids, _ in sequences(store))
    models = {
        "another tokenizer": save_tiny_model(tmp_path / "other", byte_tokenizer(extra=("xyz",))),
        f"{longest} tokens, but": save_tiny_model(tmp_path / "short", max_position_embeddings=longest - 1),
        "knows 200 tokens": save_tiny_model(tmp_path / "narrow", vocab_size=200),
    }
    for message, folder in models.items():
        with pytest.raises(InputError, match=message):
            train(store, model=folder, mask="some", out=tmp_path / "out", options=QUICK)
    assert not (tmp_path / "out").exists()
    assert tiny_config().vocab_size > 200


def test_references_that_do_not_fit_the_store_are_refused(store: Store, model: str, tmp_path: Path) -> None:
    longest = max(len(ids) for ids, _ in sequences(store))
    models = {
        "another tokenizer": save_tiny_model(tmp_path / "other", byte_tokenizer(extra=("xyz",))),
        f"{longest} tokens, but the reference": save_tiny_model(tmp_path / "short", max_position_embeddings=longest - 1),
        "has 200 logits, the store's tokenizer 259 ids": save_tiny_model(tmp_path / "narrow", vocab_size=200),
    }
    for message, folder in models.items():
        options = replace(QUICK, kl_penalty=0.1, kl_on="kept", reference=folder)
        with pytest.raises(InputError, match=message):
            train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_a_mask_called_like_a_word_is_ambiguous_and_a_file_is_no_cache(store: Store, model: str, tmp_path: Path) -> None:
    named = masked_store(tmp_path / "named")
    add_mask(named, "kept", every_third_dropped)
    with pytest.raises(InputError, match="'kept', a word of its own and the name of a mask too"):
        train(named, model=model, mask="some", out=tmp_path / "out", options=with_entropy_on("kept"))
    (tmp_path / "file").write_text("mine")
    options = replace(QUICK, kl_penalty=0.1, kl_on="kept", reference=model, reference_cache=str(tmp_path / "file"))
    with pytest.raises(InputError, match="is a file; expected a folder"):
        train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_anything_in_it_is_left_alone(store: Store, model: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        train(store, model=model, mask="some", out=tmp_path, options=QUICK)
    with pytest.raises(InputError, match="not empty"):
        train(store, model=model, mask="some", out=tmp_path / "thesis.txt", options=QUICK)
    with pytest.raises(InputError, match="cannot be made"):
        train(store, model=model, mask="some", out=tmp_path / "thesis.txt" / "out", options=QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_mask_that_keeps_what_is_no_target_is_refused(model: str, tmp_path: Path) -> None:
    store = masked_store(tmp_path / "store")
    add_mask(store, "broken", every_third_dropped)
    table = store.part("masks/broken", 0)
    keep = [[True] * len(k) for k in table["keep"].to_pylist()]
    broken = table.set_column(1, table.schema.field("keep"), pa.chunked_array([pa.array(keep)]))
    remade = remake_part(store, "masks/broken", 0, broken)
    with pytest.raises(StoreError, match="no targets of its rows"):
        train(remade, model=model, mask="broken", out=tmp_path / "out", options=QUICK)
    assert not (tmp_path / "out").exists()


def test_running_out_of_memory_is_a_users_mistake(
    store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("tokenstats.training.loop.masked_loss", full)
    with pytest.raises(InputError, match="out of memory with batch_size=4") as caught:
        train(store, model=model, mask="some", out=tmp_path / "out", options=QUICK)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    train(
        store, model=model, mask="some", out=tmp_path / "out", options=replace(QUICK, max_steps=1)
    )  # nothing stands in its way


@pytest.mark.parametrize("steps", [1, 6])
def test_a_training_that_diverges_stops_and_saves_no_nan(store: Store, model: str, tmp_path: Path, steps: int) -> None:
    wild = replace(QUICK, max_steps=steps, learning_rate=1e38, weight_decay=1e3, save_steps=1, warmup_ratio=0.0)
    with pytest.raises(InputError, match="diverged"):
        train(store, model=model, mask="some", out=tmp_path / "out", options=wild)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
