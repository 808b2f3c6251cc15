"""Training with the terms: neither how the work is cut up nor where the reference lies changes it, and what is told is so."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import (
    QUICK,
    ROWS,
    add_mask,
    build_store,
    every_third_dropped,
    largest_difference,
    losses,
    masked_store,
    save_tiny_model,
    saved_parameters,
    sequences,
    train_on_two_processes,
)
from transformers import AutoModelForCausalLM

from tokenstats.errors import InputError
from tokenstats.modeling.hidden_states import write_states
from tokenstats.store import Store
from tokenstats.training import TrainOptions, reference_cache, train
from tokenstats.training.callbacks import Flow

IDS = 259


def evens_but_of_row_5(row: int, is_target: np.ndarray) -> np.ndarray:
    return (np.arange(len(is_target)) % 2 == 0) & (row != 5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = masked_store(tmp_path_factory.mktemp("terms"))
    add_mask(store, "even", evens_but_of_row_5)
    add_mask(store, "two-clauses", every_third_dropped, second=evens_but_of_row_5)
    return store


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return save_tiny_model(folder / "policy"), save_tiny_model(folder / "reference", seed=3, initializer_range=0.3)


@pytest.fixture(scope="module")
def terms(models: tuple[str, str]) -> TrainOptions:
    """E is what the mask drops (row 3 has nothing else), K what another mask drops."""
    return replace(
        QUICK,
        entropy_bonus=0.2,
        entropy_on="clause 1",
        kl_penalty=0.5,
        kl_on="even",
        reference=models[1],
        max_steps=8,
        batch_size=8,
    )


def history(folder: Path) -> dict:
    return json.loads((folder / "history.json").read_text())


def belongs(row: int, is_target: np.ndarray) -> dict[str, np.ndarray]:
    """The sets of a row's tokens, by their definitions."""
    kept = is_target & every_third_dropped(row, is_target)
    even, dropped = evens_but_of_row_5(row, is_target), is_target & ~kept
    sets = {"targets": is_target, "kept": kept, "entropy_on": dropped, "kl_on": is_target & ~even}
    return {**sets, "clause_1": dropped, "clause_2": dropped & even}


def means(store: Store, models: tuple[str, str]) -> dict[str, float]:
    """Every mean over all rows, from whole float64 logits of one row at a time."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(m, dtype=torch.float64).eval() for m in models)
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for row, (ids, is_target) in enumerate(sequences(store)):
        tokens = torch.from_numpy(ids)
        with torch.no_grad():
            z, r = (m(input_ids=tokens[None]).logits[0, :-1] for m in (policy, reference))
        log_p, log_q = z[:, :IDS].log_softmax(-1), r[:, :IDS].log_softmax(-1)
        values = {
            "nll": -z.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0],
            "entropy": -(log_p.exp() * log_p).sum(-1),
            "kl": (log_p.exp() * (log_p - log_q)).sum(-1),
            "accuracy": (z[:, :IDS].argmax(-1) == tokens[1:]).double(),
        }
        for group, flags in belongs(row, is_target).items():
            chosen = torch.from_numpy(flags[1:])
            counts[group] = counts.get(group, 0) + int(chosen.sum())
            for name, value in values.items():
                sums[f"{group}/{name}"] = sums.get(f"{group}/{name}", 0.0) + float(value[chosen].sum())
    return {name: total / counts[name.partition("/")[0]] for name, total in sums.items()}


@pytest.mark.parametrize("metrics", ["loss", "kept", "targets"])
def test_what_is_told_is_what_float64_arithmetic_on_whole_logits_gives(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path, metrics: str
) -> None:
    options = replace(terms, max_steps=1, batch_size=ROWS, metrics=metrics)
    summary = train(store, model=models[0], mask="two-clauses", out=tmp_path / "out", options=options)
    expected = means(store, models)
    entry = history(tmp_path / "out")["training"][0]
    told = {name: value for name, value in entry.items() if "/" in name}
    assert told == pytest.approx({name: expected[name] for name in told}, rel=1e-5)
    both = {f"{group}/{name}" for group in ("kept", "entropy_on", "kl_on") for name in ("nll", "entropy", "kl", "accuracy")}
    free = {"kept/nll", "entropy_on/nll", "entropy_on/entropy", "entropy_on/accuracy"} | {n for n in both if "kl_on" in n}
    everything = {f"{group}/{name.partition('/')[2]}" for group in belongs(0, np.zeros(1, bool)) for name in both}
    assert told.keys() == {"loss": free, "kept": both, "targets": everything}[metrics]
    assert entry["loss_nll"] == pytest.approx(expected["kept/nll"], rel=1e-5)
    assert entry["loss_entropy"] == pytest.approx(expected["entropy_on/entropy"] / math.log(IDS), rel=1e-5)
    assert entry["loss_kl"] == pytest.approx(expected["kl_on/kl"], rel=1e-5)
    assert entry["loss"] == pytest.approx(entry["loss_nll"] - 0.2 * entry["loss_entropy"] + 0.5 * entry["loss_kl"], rel=1e-6)
    assert entry["tokens_per_second"] > 0
    assert summary.rows == ROWS, "row 3 keeps nothing, and has tokens of both terms"
    assert {name: summary.metrics[name] for name in told} == told


def test_rows_held_out_are_told_the_same_way(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path
) -> None:
    options = replace(terms, max_steps=1, metrics="kept", eval_share=0.95)
    summary = train(store, model=models[0], mask="some", out=tmp_path / "out", options=options)
    assert summary.eval_rows == ROWS - 1
    first = history(tmp_path / "out")["evaluation"][0]
    one_by_one = train(
        store, model=models[0], mask="some", out=tmp_path / "one", options=replace(options, batch_size=1, accumulation=3)
    )
    assert history(tmp_path / "one")["evaluation"][0] == pytest.approx(first, rel=1e-5)
    assert first["loss"] == first["targets/nll"]
    assert first.keys() >= {"targets/entropy", "kept/kl", "entropy_on/accuracy", "kl_on/kl"}
    assert summary.eval_metrics.keys() == one_by_one.eval_metrics.keys() == {name for name in first if "/" in name}
    near = means(store, models)  # of one row more
    assert first["targets/kl"] == pytest.approx(near["targets/kl"], rel=0.05)


def test_accumulation_and_devices_change_nothing(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path
) -> None:
    # Adam's first step is the sign of a gradient, so one that is nearly 0 makes a step of its rounding: that step has rate 0
    options = replace(terms, metrics="targets", warmup_ratio=0.2)
    for batch_size, accumulation in ((8, 1), (1, 8)):
        cut = replace(options, batch_size=batch_size, accumulation=accumulation)
        train(store, model=models[0], mask="some", out=tmp_path / str(accumulation) / "some", options=cut)
    train_on_two_processes(store, models[0], ("some",), tmp_path / "both", replace(options, batch_size=2, accumulation=2))
    one = tmp_path / "1" / "some"
    for other in (tmp_path / "8" / "some", tmp_path / "both" / "some"):
        assert losses(other) == pytest.approx(losses(one), rel=1e-5)
        assert largest_difference(one, other) < 2e-6
        for a, b in zip(history(one)["training"], history(other)["training"], strict=True):
            del a["tokens_per_second"], b["tokens_per_second"]
            assert b == pytest.approx(a, rel=2e-4)


@pytest.mark.parametrize("change", [{}, {"lora_rank": 2, "reference": None}])
def test_rows_that_are_read_without_padding_have_the_same_terms(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path, change: dict
) -> None:
    options = replace(terms, metrics="targets", **change)
    for padding_free in (False, True):
        each = replace(options, padding_free=padding_free)
        train(store, model=models[0], mask="some", out=tmp_path / str(padding_free), options=each)
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-5)
    assert largest_difference(tmp_path / "True", tmp_path / "False") < 2e-6
    cached = replace(options, padding_free=True, reference_cache=str(tmp_path / "cache"))
    train(store, model=models[0], mask="some", out=tmp_path / "cached", options=cached)
    assert largest_difference(tmp_path / "cached", tmp_path / "False") < 2e-6


def test_λ_of_0_works_out_nothing_more(
    store: Store, models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing was asked that needs it")

    for name in ("tokenstats.training.setup.Objective", "tokenstats.training.statistics.Predictions.__init__"):
        monkeypatch.setattr(name, never)
    train(store, model=models[0], mask="some", out=tmp_path / "out", options=QUICK)
    assert {name for entry in history(tmp_path / "out")["training"] for name in entry} == {
        "step", "epoch", "loss", "grad_norm", "learning_rate", "tokens_per_second"
    }  # fmt: skip


def test_the_entropy_bonus_raises_entropy_and_the_penalty_keeps_the_policy_near(
    store: Store, models: tuple[str, str], tmp_path: Path
) -> None:
    model = models[1]  # the one that is sure of what it says
    options = replace(QUICK, max_steps=30, batch_size=8, metrics="targets", reference=model, learning_rate=3e-3)
    runs = {
        "plain": options,
        "bonus": replace(options, entropy_bonus=2.0, entropy_on="targets"),
        "penalty": replace(options, kl_penalty=2.0, kl_on="targets"),
    }
    last = {
        name: train(store, model=model, mask="some", out=tmp_path / name, options=each).metrics for name, each in runs.items()
    }
    assert last["bonus"]["targets/entropy"] > last["plain"]["targets/entropy"] + 0.05
    assert last["penalty"]["targets/kl"] < 0.5 * last["plain"]["targets/kl"]


@pytest.mark.parametrize("bit", ["first", "later"])
def test_below_an_adapter_the_reference_is_the_base_without_a_second_model(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bit: str
) -> None:
    pytest.importorskip("peft")
    options = replace(terms, lora_rank=4, lora_dropout=0.1 if bit == "first" else 0.0, reference=None, metrics="targets")
    copy = save_tiny_model(tmp_path / "copy")
    train(store, model=models[0], mask="some", out=tmp_path / "second", options=replace(options, reference=copy))
    monkeypatch.setattr("tokenstats.training.setup.load_reference", None)
    train(store, model=models[0], mask="some", out=tmp_path / "off", options=options)
    entries = history(tmp_path / "off")["training"]
    if bit == "later":
        assert entries[0]["targets/kl"] < 1e-8, "a new adapter does nothing"
    assert entries[-1]["targets/kl"] > 1e-5
    assert losses(tmp_path / "off") == pytest.approx(losses(tmp_path / "second"), rel=1e-6)
    assert largest_difference(tmp_path / "off", tmp_path / "second") < 1e-6


@pytest.mark.parametrize("change", [{}, {"metrics": "targets", "eval_share": 0.3}, {"lora_rank": 2, "reference": None}])
def test_states_from_disk_train_as_the_model_beside_does(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path, change: dict, caplog: pytest.LogCaptureFixture
) -> None:
    options = replace(terms, **change)
    train(store, model=models[0], mask="some", out=tmp_path / "beside", options=options)
    with caplog.at_level("INFO", logger="tokenstats"):
        cached = replace(options, reference_cache=str(tmp_path / "cache"))
        train(store, model=models[0], mask="some", out=tmp_path / "cached", options=cached)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "beside"), rel=1e-5)
    assert largest_difference(tmp_path / "cached", tmp_path / "beside") < 2e-6
    tokens = sum(int(belongs(row, flags)["kl_on"].sum()) for row, (_, flags) in enumerate(sequences(store)))
    if not change:
        assert f"of {tokens:,} tokens take {tokens * 32 * 4:,} bytes" in caplog.text, "32 numbers of 4 bytes a token"


def test_in_bfloat16_the_start_is_no_distance_from_itself_and_states_take_two_bytes(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = replace(terms, dtype="bfloat16", metrics="targets", max_steps=3)
    train(store, model=models[1], mask="some", out=tmp_path / "beside", options=options)
    first = history(tmp_path / "beside")["training"][0]
    assert first["targets/kl"] < 1e-7
    with caplog.at_level("INFO", logger="tokenstats"):
        cached = replace(options, reference_cache=str(tmp_path / "cache"))
        train(store, model=models[1], mask="some", out=tmp_path / "cached", options=cached)
    assert f"take {store.manifest.targets * 32 * 2:,} bytes" in caplog.text
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "beside"), rel=1e-2)
    exact = replace(options, dtype="float32")
    train(store, model=models[1], mask="some", out=tmp_path / "exact", options=exact)
    assert losses(tmp_path / "beside") == pytest.approx(losses(tmp_path / "exact"), rel=2e-2)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(reference_cache, "_FILE_TOKENS", 50)
    return monkeypatch


def test_a_cache_that_was_cut_short_is_finished_and_one_that_is_whole_is_used(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path, small_files: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def killed_at_the_third(path: Path, *rest: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write_states(path, *rest)

    options = replace(terms, max_steps=2, reference_cache=str(tmp_path / "cache"))
    small_files.setattr(reference_cache, "write_states", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(store, model=models[0], mask="some", out=tmp_path / "killed", options=options)
    assert not (tmp_path / "killed").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    written[0].write_bytes(written[0].read_bytes()[:100])  # and one of them damaged

    def counted(path: Path, *rest: object) -> None:
        written.append(path)
        write_states(path, *rest)

    small_files.setattr(reference_cache, "write_states", counted)
    train(store, model=models[0], mask="some", out=tmp_path / "on", options=options)
    whole = sorted((tmp_path / "cache").iterdir())
    assert sorted(written[2:]) == [path for path in whole if path != written[1]]
    assert len(whole) > 3
    train(store, model=models[0], mask="some", out=tmp_path / "again", options=options)
    assert len(written) == 1 + len(whole)
    assert largest_difference(tmp_path / "on", tmp_path / "again") == 0.0
    train(store, model=models[0], mask="some", out=tmp_path / "beside", options=replace(options, reference_cache=None))
    assert largest_difference(tmp_path / "on", tmp_path / "beside") < 2e-6


def test_a_cache_of_other_tokens_or_of_another_reference_is_refused(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path
) -> None:
    options = replace(terms, max_steps=1, reference_cache=str(tmp_path / "cache"))
    train(store, model=models[0], mask="some", out=tmp_path / "out", options=options)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").iterdir())
    wrong = {
        "tokens: there": replace(options, kl_on="clause 1"),
        "reference: there": replace(options, reference=save_tiny_model(tmp_path / "other", seed=9)),
    }
    for message, each in wrong.items():
        with pytest.raises(InputError, match=f"holds states of something else: {message}"):
            train(store, model=models[0], mask="some", out=tmp_path / "no", options=each)
    rows, other = other_store(tmp_path / "other rows"), replace(options, kl_on="dropped")
    with pytest.raises(InputError, match="store: there"):
        train(rows, model=models[0], mask="some", out=tmp_path / "no", options=other)
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").iterdir()) == before
    assert not (tmp_path / "no").exists()


def other_store(folder: Path) -> Store:
    store = build_store(folder, rows=ROWS - 2)
    add_mask(store, "some", every_third_dropped)
    return store


def test_a_run_with_terms_is_resumed_to_the_last_bit_and_only_with_its_reference(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Flow, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 5:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    options = replace(terms, save_steps=2, metrics="kept")
    train(store, model=models[0], mask="some", out=tmp_path / "whole", options=options)
    with monkeypatch.context() as patch:
        patch.setattr(Flow, "on_step_begin", stop)
        with pytest.raises(KeyboardInterrupt):
            train(store, model=models[0], mask="some", out=tmp_path / "killed", options=options)
    other = replace(options, reference=save_tiny_model(tmp_path / "x" / "reference", seed=9))
    with pytest.raises(InputError, match="reference model: there"):
        train(store, model=models[0], mask="some", out=tmp_path / "killed", options=other, resume=True)
    train(store, model=models[0], mask="some", out=tmp_path / "killed", options=options, resume=True)
    one, two = (saved_parameters(tmp_path / name) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
