"""Training: keep-all is plain fine-tuning, a mask is obeyed, a stopped run goes on, and weights say where they came from."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from training_fixtures import (
    add_mask,
    build_store,
    byte_tokenizer,
    every_third_dropped,
    save_tiny_model,
    sequences,
    tiny_config,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)

from tokenstats.errors import InputError, StoreError, TokenstatsError
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train
from tokenstats.training.data import NO_ROW, collate, load_training_data
from tokenstats.training.loop import SeededOrder, _Flow
from tokenstats.training.rows import IGNORED, choose_mask, shuffled

ROWS = 24
Keeps = Callable[[int, np.ndarray], np.ndarray]
QUICK = TrainOptions(max_steps=6, batch_size=4, accumulation=1, learning_rate=1e-3, device="cpu", logging_steps=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = build_store(tmp_path_factory.mktemp("training"), ROWS)
    add_mask(store, "some", every_third_dropped)
    add_mask(store, "all", lambda row, is_target: is_target)
    add_mask(store, "nothing", lambda row, is_target: np.zeros(len(is_target), bool))
    add_mask(store, "foreign", every_third_dropped, store_fingerprint="0" * 32)
    return store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors"
    return load_file(folder / name)


def largest_difference(one: Path, two: Path) -> float:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def losses(folder: Path) -> list[float]:
    return [e["loss"] for e in json.loads((folder / "history.json").read_text())["training"]]


# ---- what is trained


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


def nll_of(store: Store, model: str, keeps: Keeps, rows: Container[int]) -> tuple[float, int]:
    """Sum of −log p over what ``keeps`` says, and how many: one row at a time, from the model's own logits."""
    network, total, count = Qwen3ForCausalLM.from_pretrained(model).eval(), 0.0, 0
    for row, (ids, is_target) in enumerate(sequences(store)):
        if row in rows:
            keep = torch.from_numpy(keeps(row, is_target))
            tokens = torch.from_numpy(ids)
            with torch.no_grad():
                nll = cross_entropy(network(input_ids=tokens[None]).logits[0, :-1].double(), tokens[1:], reduction="none")
            total, count = total + float(nll[keep[1:]].sum()), count + int(keep[1:].sum())
    return total, count


def test_gradient_accumulation_changes_nothing(store: Store, model: str, tmp_path: Path) -> None:
    for batch_size, accumulation in ((8, 1), (1, 8)):
        options = replace(QUICK, max_steps=8, batch_size=batch_size, accumulation=accumulation)
        train(store, model=model, mask="some", out=tmp_path / str(accumulation), options=options)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "8"), rel=1e-5)
    assert largest_difference(tmp_path / "1", tmp_path / "8") < 2e-6


def test_the_number_of_devices_changes_nothing(store: Store, model: str, tmp_path: Path) -> None:
    """Two processes share each batch; 23 rows leave one of them without rows at the end of an epoch."""
    options = replace(QUICK, max_steps=8, batch_size=2, accumulation=4, eval_share=0.2)
    alone = train(store, model=model, mask="some", out=tmp_path / "alone", options=options)
    code = (
        "import torch; torch.set_num_threads(1); from tokenstats.training import TrainOptions, train; "
        f"train({str(store.path)!r}, model={model!r}, mask='some', out={str(tmp_path / 'both')!r}, "
        f"options={replace(options, accumulation=2)!r}); "
        # a process that leaves while the other still talks to it is aborted by gloo at its own exit, now and then
        "torch.distributed.barrier(); torch.distributed.destroy_process_group()"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**shared, "RANK": rank, "LOCAL_RANK": rank}, cwd=Path(__file__).parent.parent
        )
        for rank in "01"
    ]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    assert largest_difference(tmp_path / "alone", tmp_path / "both") < 2e-6
    history = json.loads((tmp_path / "both" / "history.json").read_text())
    assert history["evaluation"][-1]["loss"] == pytest.approx(alone.eval_loss, rel=1e-6)


def test_computing_in_bfloat16_keeps_float32_weights(store: Store, model: str, tmp_path: Path) -> None:
    exact = train(store, model=model, mask="some", out=tmp_path / "exact", options=QUICK)
    rough = train(store, model=model, mask="some", out=tmp_path / "rough", options=replace(QUICK, dtype="bfloat16"))
    assert {w.dtype for w in weights(tmp_path / "rough").values()} == {torch.float32}
    assert rough.loss == pytest.approx(exact.loss, rel=1e-2)
    assert rough.loss != exact.loss


def test_recomputed_activations_change_nothing(store: Store, model: str, tmp_path: Path) -> None:
    train(store, model=model, mask="some", out=tmp_path / "kept", options=QUICK)
    train(store, model=model, mask="some", out=tmp_path / "recomputed", options=replace(QUICK, gradient_checkpointing=True))
    assert largest_difference(tmp_path / "kept", tmp_path / "recomputed") < 1e-7


def test_a_model_that_cannot_be_split_trains_the_same_and_says_that_it_costs_memory(
    store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(QUICK, eval_share=0.2)
    split = train(store, model=model, mask="some", out=tmp_path / "split", options=options)
    assert capsys.readouterr().err == ""
    # an architecture that does something to its logits that its configuration does not tell
    monkeypatch.setattr("tokenstats.modeling.head._after_head", lambda _: lambda logits: 2 * logits)
    whole = train(store, model=model, mask="some", out=tmp_path / "whole", options=options)
    assert "its own full logits" in capsys.readouterr().err
    assert whole.eval_loss == pytest.approx(split.eval_loss, rel=1e-5)
    assert largest_difference(tmp_path / "split", tmp_path / "whole") < 2e-6


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_on_a_half_precision_output_matrix_learns(store: Store, model: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = replace(QUICK, lora_rank=2, lora_targets="lm_head, q_proj", dtype="bfloat16")
    train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    second = {name: w for name, w in weights(tmp_path / "out").items() if "lora_B" in name}  # zeros at first
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


# ---- order and evaluation


def test_the_order_depends_on_the_seed_and_the_rows_alone() -> None:
    keys = np.random.default_rng(0).integers(0, 2**63, 50).astype(np.uint64)

    def order(seed: int, epoch: int, chosen: np.ndarray = keys) -> list[int]:
        torch.rand(torch.randint(1, 9, ()))  # whatever else draws random numbers
        sampler = SeededOrder(chosen, seed, 1)
        sampler.epoch = epoch
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert sorted(order(1, 0)) == list(range(50))
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    some = np.arange(50) % 4 != 0
    of_all = [keys[i] for i in order(5, 2) if some[i]]
    assert [keys[some][i] for i in order(5, 2, keys[some])] == of_all, "common rows should come in the same order"


def test_the_order_is_filled_up_for_several_devices() -> None:
    keys = np.arange(10, dtype=np.uint64)
    order = list(SeededOrder(keys, 0, 4))
    assert len(order) == 12
    assert sorted(order) == [NO_ROW, NO_ROW, *range(10)]


def test_evaluation_is_over_all_targets_of_the_same_rows_whatever_the_mask(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(QUICK, eval_share=0.25, eval_steps=4)
    found = [
        train(
            store, model=model, mask=mask, out=tmp_path / f"{mask}{size}", options=replace(options, batch_size=size, seed=size)
        )
        for mask, size in (("some", 5), ("none", 2))
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


# ---- stopping and going on


@pytest.fixture
def killed_at_step_5(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    def stop(self: _Flow, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 5:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Flow, "on_step_begin", stop)
        yield patch


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 4, "lora_dropout": 0.2}])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(
    store: Store, model: str, tmp_path: Path, killed_at_step_5: pytest.MonkeyPatch, lora: dict
) -> None:
    # 23 rows are 6 batches: the kill is in the second epoch, between two checkpoints and two log entries
    options = replace(QUICK, max_steps=15, batch_size=4, accumulation=2, save_steps=4, logging_steps=3, eval_share=0.1, **lora)
    with pytest.raises(KeyboardInterrupt):
        train(store, model=model, mask="some", out=tmp_path / "killed", options=options)
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["checkpoint-4", "tokenstats.json"]
    killed_at_step_5.undo()
    whole = train(store, model=model, mask="some", out=tmp_path / "whole", options=options)
    (tmp_path / "killed" / "checkpoint-5").mkdir()  # a kill in the middle of a save
    resumed = train(store, model=model, mask="some", out=tmp_path / "killed", options=options, resume=True)
    assert largest_difference(tmp_path / "whole", tmp_path / "killed") == 0.0
    assert replace(resumed, out="") == replace(whole, out="")
    assert json.loads((tmp_path / "killed" / "history.json").read_text()) == json.loads(
        (tmp_path / "whole" / "history.json").read_text()
    )


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
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenstats.json",
    ]


# ---- what is saved


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


# ---- mistakes


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
        ({"lora_alpha": 8}, "give lora_rank too"),
        ({"seed": -1}, "seed got -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        TrainOptions(**wrong)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"mask": "sme"}, StoreError, "no mask 'sme'"),
        ({"mask": "nothing"}, InputError, "keeps no token"),
        ({"mask": "foreign"}, StoreError, "made from other tokens"),
        ({"model": "nowhere/at/all"}, InputError, "no model folder"),
        ({"options": replace(QUICK, report_to="wandbb")}, InputError, "report_to got 'wandbb'"),
        ({"options": replace(QUICK, lora_rank=2, lora_targets="nose")}, InputError, "lora_targets 'nose'"),
        ({"options": replace(QUICK, device="tpu")}, InputError, "device 'tpu'"),
        ({"resume": True}, InputError, "no checkpoint"),
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


def test_a_folder_with_anything_in_it_is_left_alone(store: Store, model: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        train(store, model=model, mask="some", out=tmp_path, options=QUICK)
    with pytest.raises(InputError, match="not empty"):
        train(store, model=model, mask="some", out=tmp_path / "thesis.txt", options=QUICK)
    with pytest.raises(InputError, match="cannot be made"):
        train(store, model=model, mask="some", out=tmp_path / "thesis.txt" / "out", options=QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_mask_that_keeps_what_is_no_target_is_refused(store: Store, model: str, tmp_path: Path) -> None:
    import pyarrow as pa

    from tokenstats.store.parts import part_path, write_part

    add_mask(store, "broken", every_third_dropped)
    folder = store.path / "masks" / "broken"
    table = store.part("masks/broken", 0)
    keep = [[True] * len(k) for k in table["keep"].to_pylist()]
    assert part_path(folder, 0).exists()
    write_part(folder, 0, table.set_column(1, table.schema.field("keep"), pa.chunked_array([pa.array(keep)])), {})
    with pytest.raises(StoreError, match="no targets of its rows"):
        train(store, model=model, mask="broken", out=tmp_path / "out", options=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_running_out_of_memory_is_a_users_mistake(
    store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("tokenstats.training.loop.masked_loss", full)
    with pytest.raises(InputError, match="out of memory with batch_size 4") as caught:
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
