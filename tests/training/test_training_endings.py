"""What ends a run before its time, which weights it ends with, and that a kill in between changes neither."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax
from training_fixtures import (
    QUICK,
    ROWS,
    largest_difference,
    nll_of,
    save_tiny_model,
    saved_parameters,
    sequences,
    train_on_two_processes,
)
from transformers import Qwen3ForCausalLM, TrainerCallback

from tokenstats.errors import InputError
from tokenstats.store import Store
from tokenstats.training import TrainOptions, TrainSummary, train
from tokenstats.training.callbacks import Flow
from tokenstats.training.data import load_training_data
from tokenstats.training.rows import choose_mask

EVALUATED = replace(QUICK, max_steps=12, eval_share=0.25, eval_steps=2, learning_rate=3e-3)
# the loss of the rows held out falls for ten steps, then it rises
HARMFUL = replace(EVALUATED, max_steps=20, batch_size=6, learning_rate=5e-2, schedule="constant")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "other", seed=3)


@pytest.fixture(scope="module")
def held_out(store: Store) -> set[int]:
    trained = load_training_data(store, choose_mask(store, None), eval_share=0.25).train
    known = [trained[i]["input_ids"].tolist() for i in range(len(trained))]
    return {row for row, (ids, _) in enumerate(sequences(store)) if ids.tolist() not in known}


def history(folder: Path) -> dict[str, list[dict[str, float]]]:
    found = json.loads((folder / "history.json").read_text())
    for entry in found["training"]:
        entry.pop("tokens_per_second")
    return found


def kl_of_held_out(store: Store, policy: str, reference: str, rows: set[int]) -> float:
    """KL(p‖q), a mean over the targets of the rows: one row at a time, from both models' own logits of the tokenizer's ids."""
    size, total, count = store.manifest.tokenizer.size, 0.0, 0
    networks = [Qwen3ForCausalLM.from_pretrained(path).eval() for path in (policy, reference)]
    for row, (ids, is_target) in enumerate(sequences(store)):
        if row in rows:
            with torch.no_grad():
                log_p, log_q = (
                    log_softmax(network(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1, :size].double(), -1)
                    for network in networks
                )
            by_token = kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
            chosen = torch.from_numpy(is_target[1:])
            total, count = total + float(by_token[chosen].sum()), count + int(chosen.sum())
    return total / count


def killed_at(step: int, run: Callable[[], TrainSummary], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until a step begins, and then no further."""

    def stop(self: Flow, args: object, state: Any, control: object, **_: object) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Flow, "on_step_begin", stop)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_a_run_stops_at_the_first_evaluation_whose_kl_reaches_the_limit(
    store: Store, model: str, held_out: set[int], tmp_path: Path
) -> None:
    whole = train(
        store, model=model, mask="some", out=tmp_path / "whole", options=replace(EVALUATED, metrics="kept", reference=model)
    )
    assert whole.stopped_by is None
    curve = {entry["step"]: entry["targets/kl"] for entry in history(tmp_path / "whole")["evaluation"]}
    assert curve[0] == pytest.approx(0.0, abs=1e-7)
    limit = (curve[4] + curve[6]) / 2
    assert max(curve[0], curve[2], curve[4]) < limit < curve[6]

    out = tmp_path / "stopped"
    options = replace(EVALUATED, stop_at_kl=limit, reference=model, logging_steps=5)
    summary = train(store, model=model, mask="some", out=out, options=options)

    assert summary.steps == 6
    assert summary.stopped_by == f"the KL of the rows held out reached {limit:g} nats"
    assert [entry["step"] for entry in history(out)["evaluation"]] == [0, 2, 4, 6]
    assert [entry["step"] for entry in history(out)["training"]] == [5, 6]
    assert summary.eval_metrics["targets/kl"] == pytest.approx(curve[6], rel=1e-4)
    assert summary.eval_metrics["targets/kl"] == pytest.approx(kl_of_held_out(store, str(out), model, held_out), rel=1e-4)

    halves = replace(options, batch_size=options.resolved.batch_size // 2)
    train_on_two_processes(store, model, ("some",), tmp_path / "both", halves)
    of_both = history(tmp_path / "both" / "some")
    assert [entry["step"] for entry in of_both["training"]] == [5, 6], "both processes stop, and at the same step"
    assert of_both["evaluation"][-1]["targets/kl"] == pytest.approx(curve[6], rel=1e-4)
    assert largest_difference(out, tmp_path / "both" / "some") < 1e-4


def test_a_limit_that_the_start_has_reached_is_an_error_before_training(
    store: Store, model: str, other: str, held_out: set[int], tmp_path: Path
) -> None:
    start = kl_of_held_out(store, model, other, held_out)
    options = replace(EVALUATED, stop_at_kl=start * 0.9, reference=other)
    with pytest.raises(InputError, match=f"stop_at_kl got {start * 0.9:g}, but the start is at a KL of {start:.4g} nats"):
        train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    assert list(tmp_path.iterdir()) == []
    options = replace(options, stop_at_kl=start * 1.01, max_steps=1)
    assert train(store, model=model, mask="some", out=tmp_path / "out", options=options).steps == 1


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 4, "learning_rate": 0.5}])
def test_the_weights_of_the_best_evaluation_are_the_result(
    store: Store, model: str, held_out: set[int], tmp_path: Path, lora: dict
) -> None:
    options = replace(HARMFUL, best_by="eval_loss", warmup_ratio=0.05, **lora)
    summary = train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    curve = {entry["step"]: entry["loss"] for entry in history(tmp_path / "out")["evaluation"] if entry["step"]}
    assert summary.best_step == min(curve, key=lambda step: curve[step])
    assert summary.best_step < summary.steps == 20
    assert summary.eval_loss == min(curve.values())
    best = tmp_path / "out" / f"checkpoint-{summary.best_step}"
    assert largest_difference(tmp_path / "out", best) == 0.0
    if not lora:
        total, count = nll_of(store, str(tmp_path / "out"), lambda _, is_target: is_target, held_out)
        assert summary.eval_loss == pytest.approx(total / count, rel=1e-6)


def test_best_by_accuracy_is_the_most_accurate(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(EVALUATED, best_by="eval_accuracy", learning_rate=1e-2)
    summary = train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    curve = {e["step"]: e["targets/accuracy"] for e in history(tmp_path / "out")["evaluation"] if e["step"]}
    assert curve[summary.best_step] == summary.eval_metrics["targets/accuracy"] == max(curve.values())
    assert min(curve.values()) < max(curve.values())


def test_patience_counts_evaluations_that_are_not_the_best(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(HARMFUL, best_by="eval_loss", patience=2)
    summary = train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    losses = [entry["loss"] for entry in history(tmp_path / "out")["evaluation"][1:]]
    assert summary.best_step is not None
    assert summary.steps == summary.best_step + 2 * 2 < 20
    assert losses.index(min(losses)) == len(losses) - 3
    assert summary.stopped_by == "no evaluation was the best for 2 in a row"


def test_so_many_checkpoints_are_kept_and_the_best(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(QUICK, save_steps=1)
    for count in (1, 3):
        train(store, model=model, mask="some", out=tmp_path / str(count), options=replace(options, keep_checkpoints=count))
        assert sorted(p.name for p in (tmp_path / str(count)).glob("checkpoint-*")) == [
            f"checkpoint-{step}" for step in range(7 - count, 7)
        ]
    options = replace(HARMFUL, max_steps=16, best_by="eval_loss", keep_checkpoints=2)
    summary = train(store, model=model, mask="some", out=tmp_path / "best", options=options)
    assert {p.name for p in (tmp_path / "best").glob("checkpoint-*")} == {f"checkpoint-{summary.best_step}", "checkpoint-16"}


@pytest.mark.parametrize(
    ("ending", "kills"),
    [
        ({"best_by": "eval_loss", "patience": 2}, (3, 13)),
        ({"best_by": "eval_kl", "keep_checkpoints": 1, "max_steps": 8}, (5,)),
        ({"stop_at_kl": 0.2, "save_steps": 3, "learning_rate": 5e-3}, (4, 7)),
    ],
)
def test_a_run_that_ends_early_is_resumed_to_the_last_bit(
    store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: dict, kills: tuple[int, ...]
) -> None:
    options = replace(HARMFUL, reference=model, metrics="kept", logging_steps=5, **ending)
    whole = train(store, model=model, mask="some", out=tmp_path / "whole", options=options)
    assert max(kills) < whole.steps
    assert (whole.stopped_by is None) == ("max_steps" in ending)

    def run(resume: bool = True) -> TrainSummary:
        return train(store, model=model, mask="some", out=tmp_path / "killed", options=options, resume=resume)

    for i, step in enumerate(kills):
        killed_at(step, lambda first=i == 0: run(resume=not first), monkeypatch)
    assert replace(run(), out="") == replace(whole, out="")
    assert largest_difference(tmp_path / "whole", tmp_path / "killed") == 0.0
    assert history(tmp_path / "killed") == history(tmp_path / "whole")


@pytest.mark.parametrize("ending", [{}, {"stop_at_kl": 0.05}, {"best_by": "eval_loss", "patience": 2}])
def test_a_run_that_was_killed_behind_its_last_checkpoint_trains_no_further(
    store: Store, model: str, tmp_path: Path, ending: dict
) -> None:
    """The last step is in the midst of an epoch."""
    steps = {} if "best_by" in ending else {"save_steps": 2}
    options = replace(HARMFUL, max_steps=17, batch_size=5, reference=model, metrics="kept", **steps, **ending)
    whole = train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    weights = saved_parameters(tmp_path / "out")
    curve = history(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        if path.suffix == ".safetensors" or path.name == "history.json":
            path.unlink()
    again = train(store, model=model, mask="some", out=tmp_path / "out", options=options, resume=True)
    assert again == whole
    assert all(torch.equal(weights[name], found) for name, found in saved_parameters(tmp_path / "out").items())
    assert history(tmp_path / "out") == curve


class StopAt(TrainerCallback):
    """Ends a run, and remembers what it saw."""

    def __init__(self, step: int):
        self.step, self.losses = step, []

    def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
        control.should_training_stop |= state.global_step == self.step

    def on_log(self, args: object, state: object, control: object, logs: dict, **_: object) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


def test_callbacks_see_the_run_and_may_end_it_and_it_is_logged_evaluated_and_saved_as_any(
    store: Store, model: str, tmp_path: Path
) -> None:
    mine, options = StopAt(5), replace(QUICK, max_steps=12, logging_steps=3, eval_share=0.25, save_steps=4)
    summary = train(store, model=model, mask="some", out=tmp_path / "out", options=options, callbacks=[mine])
    found = history(tmp_path / "out")
    assert (summary.steps, summary.stopped_by) == (5, "a callback")
    assert [entry["step"] for entry in found["evaluation"]] == [0, 5]
    assert mine.losses == [entry["loss"] for entry in found["training"]]
    assert [entry["step"] for entry in found["training"]] == [3, 4, 5]
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    assert "# with callbacks in Python\n" in (tmp_path / "out" / "run.toml").read_text()


@pytest.mark.parametrize("wrong", [3, print, Flow.on_save, int])
def test_what_is_no_callback_is_refused(store: Store, model: str, tmp_path: Path, wrong: object) -> None:
    with pytest.raises(InputError, match=r"callbacks got .*; expected transformers' TrainerCallbacks"):
        train(store, model=model, mask="some", out=tmp_path / "out", options=QUICK, callbacks=[wrong])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"best_by": "eval_loss"}, "best_by='eval_loss' got no cadence; expected eval_steps with it"),
        ({"stop_at_kl": 1.0, "reference": "q"}, "stop_at_kl=1.0 got no cadence; expected eval_steps with it"),
        ({"stop_at_kl": 1.0, "eval_steps": 2}, "stop_at_kl=1.0 got no reference; expected reference with it"),
        ({"best_by": "eval_kl", "eval_steps": 2}, "best_by='eval_kl' got no reference; expected reference with it"),
        ({"stop_at_kl": 0.0}, "stop_at_kl got 0.0; expected a number above 0"),
        ({"best_by": "eval_los", "eval_steps": 2}, "best_by got 'eval_los' (did you mean 'eval_loss'?); expected one of"),
        ({"patience": 2, "eval_steps": 2}, "patience would do nothing: no evaluation is better than another; give best_by"),
        ({"best_by": "eval_loss", "eval_share": 0.0}, "best_by would do nothing: no row is held out"),
        ({"best_by": "eval_loss", "eval_steps": 2, "save_steps": 4}, "save_steps=4 was given with best_by='eval_loss', which"),
        ({"keep_checkpoints": 3}, "keep_checkpoints would do nothing: there are none; give save_steps or best_by with it"),
        ({"keep_checkpoints": 0, "save_steps": 1}, "keep_checkpoints got 0; expected a whole number, at least 1"),
    ],
)
def test_endings_that_make_no_sense_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError) as refused:
        TrainOptions(**{"eval_share": 0.1, **wrong})
    assert str(refused.value).startswith(message)


def test_a_best_checkpoint_that_is_gone_is_not_passed_over(
    store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(EVALUATED, best_by="eval_loss")
    killed_at(5, lambda: train(store, model=model, mask="some", out=tmp_path / "out", options=options), monkeypatch)
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"the best checkpoint of the run, .*, is not there any more"):
        train(store, model=model, mask="some", out=tmp_path / "moved", options=options, resume=True)


def test_rows_held_out_are_as_many_as_the_share_says(held_out: set[int]) -> None:
    assert len(held_out) == np.round(0.25 * ROWS)
