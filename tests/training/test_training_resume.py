"""A stopped run goes on to where an undisturbed one ends; what is saved loads, and says where it came from."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import (
    QUICK,
    add_mask,
    byte_tokenizer,
    every_third_dropped,
    largest_difference,
    losses,
    sequences,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from tokenstats.errors import InputError
from tokenstats.store import Store
from tokenstats.store.drafts import claimed
from tokenstats.training import train
from tokenstats.training.callbacks import Flow


@pytest.fixture
def killed_at_step_5(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    def stop(self: Flow, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 5:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Flow, "on_step_begin", stop)
        yield patch


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 4, "lora_dropout": 0.2}])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(
    store: Store, model: str, tmp_path: Path, killed_at_step_5: pytest.MonkeyPatch, lora: dict
) -> None:
    # 23 rows are 6 batches: the kill is in the second epoch, between two checkpoints and two log entries
    options = replace(QUICK, max_steps=15, batch_size=4, accumulation=2, save_steps=4, logging_steps=3, eval_share=0.1, **lora)
    with pytest.raises(KeyboardInterrupt):
        train(store, model=model, mask="some", out=tmp_path / "killed", options=options)
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["checkpoint-4", "run.toml", "tokenstats.json"]
    killed_at_step_5.undo()
    whole = train(store, model=model, mask="some", out=tmp_path / "whole", options=options)
    (tmp_path / "killed" / "checkpoint-5").mkdir()  # a kill in the middle of a save
    resumed = train(store, model=model, mask="some", out=tmp_path / "killed", options=options, resume=True)
    assert largest_difference(tmp_path / "whole", tmp_path / "killed") == 0.0
    assert replace(resumed, out="") == replace(whole, out="")
    assert history_without_times(tmp_path / "killed") == history_without_times(tmp_path / "whole")


def test_a_folder_that_another_run_writes_to_is_refused_and_left_alone(store: Store, model: str, tmp_path: Path) -> None:
    """Until its first checkpoint a run has nothing there that would say so."""
    with claimed(tmp_path / "out"), pytest.raises(InputError, match=r"another run is writing to .*/out; choose another folder"):
        train(store, model=model, mask="some", out=tmp_path / "out", options=QUICK)
    assert list((tmp_path / "out").iterdir()) == []
    train(store, model=model, mask="some", out=tmp_path / "out", options=QUICK)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_pieces_of_weights_that_a_kill_left_are_gone_and_damage_is_named(store: Store, model: str, tmp_path: Path) -> None:
    options, out = replace(QUICK, max_steps=4, save_steps=2, keep_checkpoints=2), tmp_path / "out"
    train(store, model=model, mask="some", out=out, options=options)
    shutil.rmtree(out / "checkpoint-4")
    pieces = [out / ".tmpAb12Cd", out / "checkpoint-2" / ".tmpqDvo88"]  # as safetensors names them
    for piece in pieces:
        piece.write_bytes(b"half of the weights")
    whole = (out / "checkpoint-2" / "optimizer.pt").read_bytes()
    (out / "checkpoint-2" / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"checkpoint-2 is damaged \(.*\); delete it, and go on from the one before"):
        train(store, model=model, mask="some", out=out, options=options, resume=True)
    (out / "checkpoint-2" / "optimizer.pt").write_bytes(whole)
    train(store, model=model, mask="some", out=out, options=options, resume=True)
    assert not any(piece.exists() for piece in pieces)


def history_without_times(folder: Path) -> dict[str, list[dict[str, float]]]:
    found = json.loads((folder / "history.json").read_text())
    assert all(entry.pop("tokens_per_second") > 0 for entry in found["training"])
    return found


def test_a_run_is_resumed_only_as_what_it_was(store: Store, model: str, tmp_path: Path) -> None:
    out, options = tmp_path / "out", replace(QUICK, save_steps=3)
    with pytest.raises(InputError, match="no checkpoint to resume"):
        train(store, model=model, mask="some", out=out, options=options, resume=True)
    assert not out.exists()
    train(store, model=model, mask="some", out=out, options=options)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(InputError, match=r"learning_rate: there 0\.001, asked for 0\.002"):
        train(store, model=model, mask="some", out=out, options=replace(options, learning_rate=2e-3), resume=True)
    with pytest.raises(InputError, match="mask: there mask-some, asked for mask-all"):
        train(store, model=model, mask="all", out=out, options=options, resume=True)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    again = train(store, model=model, mask="some", out=out, options=options, resume=True)
    assert again.steps == 6


def test_a_run_whose_term_names_a_mask_goes_on_with_that_mask_alone(store: Store, model: str, tmp_path: Path) -> None:
    own = Store(shutil.copytree(store.path, tmp_path / "store"))
    add_mask(own, "other", lambda row, f: f & (np.arange(len(f)) % 2 == 0))
    told = {"model": model, "mask": "some", "out": tmp_path / "out"}
    options = replace(QUICK, save_steps=3, entropy_bonus=0.1, entropy_on="other")
    train(own, **told, options=options)
    record = json.loads((tmp_path / "out" / "tokenstats.json").read_text())
    assert record["masks_of_terms"] == {"entropy_on": "mask-other"}
    own.masks["other"].manifest.model_copy(update={"fingerprint": "remade"}).write(own.path / "masks" / "other")
    with pytest.raises(InputError, match="mask that entropy_on names: there mask-other, asked for remade"):
        train(own.path, **told, options=options, resume=True)


def test_without_save_steps_nothing_but_the_result_is_written(
    store: Store, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(store, model=model, mask="some", out=tmp_path / "out", options=QUICK)
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "history.json",
        "model.safetensors",
        "run.toml",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenstats.json",
    ]


def test_a_saved_model_loads_and_says_where_it_came_from(store: Store, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(store, model=model, mask="some", out=out, options=QUICK)
    network, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == byte_tokenizer().chat_template
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert network.generate(**prompt, max_new_tokens=3).shape[1] > prompt["input_ids"].shape[1]
    assert network.config.use_cache
    told = network.config.tokenstats
    assert told == json.loads((out / "tokenstats.json").read_text())
    assert told["store_fingerprint"] == store.fingerprint
    assert (told["mask"], told["mask_fingerprint"], told["rule"]) == ("some", "mask-some", {"drop": "nll > 2"})
    assert told["kept_tokens"] == sum(int((f & every_third_dropped(r, f)).sum()) for r, (_, f) in enumerate(sequences(store)))
    assert told["base_model"]["source"] == "tiny"
    assert told["training"]["learning_rate"] == 1e-3
    # and it can be the base of the next round
    train(store, model=str(out), mask="none", out=tmp_path / "next", options=replace(QUICK, max_steps=1))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "next").config.tokenstats["mask"] is None


def test_an_adapter_loads_on_its_base_and_merges_when_trained_further(store: Store, model: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    out = tmp_path / "adapter"
    options = replace(QUICK, lora_rank=4, learning_rate=None)
    summary = train(store, model=model, mask="some", out=out, options=options)
    assert summary.loss < losses(out)[0] or summary.steps == 6
    assert json.loads((out / "tokenstats.json").read_text())["training"]["learning_rate"] == 2e-4
    base = Qwen3ForCausalLM.from_pretrained(model)
    ids = torch.from_numpy(sequences(store)[0][0])[None]
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        adapted = peft.PeftModel.from_pretrained(base, out)(input_ids=ids).logits
    assert not torch.equal(plain, adapted)
    assert AutoTokenizer.from_pretrained(out).chat_template == byte_tokenizer().chat_template
    with pytest.raises(InputError, match="cannot be put on another"):
        train(store, model=str(out), mask="some", out=tmp_path / "no", options=options)
    merged = tmp_path / "merged"
    train(store, model=str(out), mask="some", out=merged, options=replace(QUICK, max_steps=1, learning_rate=1e-12))
    with torch.no_grad():
        assert torch.allclose(Qwen3ForCausalLM.from_pretrained(merged)(input_ids=ids).logits, adapted, atol=1e-5)
