"""Optimizers and schedules have transformers' names; what cannot be had, or an argument that is none, is said at the start."""

import inspect
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from training_fixtures import QUICK, every_third_dropped, saved_parameters, sequences
from transformers import Qwen3ForCausalLM
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, Adafactor
from transformers.trainer_utils import SchedulerType

from tokenstats.errors import InputError
from tokenstats.store import Store
from tokenstats.training import train
from tokenstats.training.arguments import check_schedule, rising_steps
from tokenstats.training.option_values import SCHEDULES, parse_schedule_args
from tokenstats.training.options import TrainOptions

RATE = 1e-3
ONE_STEP = replace(
    QUICK, max_steps=1, batch_size=30, learning_rate=RATE, warmup_ratio=0.0, schedule="constant", max_grad_norm=0.0
)


@pytest.fixture(scope="module")
def gradients(store: Store, model: str) -> tuple[Qwen3ForCausalLM, list[torch.Tensor]]:
    """The model, with the gradient of the mean −log p of the kept tokens: one row at a time, from the model's own logits."""
    network, count = Qwen3ForCausalLM.from_pretrained(model), 0
    for row, (ids, is_target) in enumerate(sequences(store)):
        kept = torch.from_numpy((is_target & every_third_dropped(row, is_target))[1:])
        logits, tokens = network(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1], torch.from_numpy(ids)[1:]
        cross_entropy(logits[kept], tokens[kept], reduction="sum").backward()
        count += int(kept.sum())
    return network, [parameter.grad / count for parameter in network.parameters()]


@pytest.mark.parametrize(("steps", "rising"), [(1, 0), (6, 0), (33, 0), (34, 1), (100, 3)])
def test_no_run_is_short_enough_to_be_all_rise(steps: int, rising: int) -> None:
    assert rising_steps(TrainOptions(), steps) == rising


def test_a_single_step_moves_the_model_and_a_rise_begins_at_rate_0(store: Store, model: str, tmp_path: Path) -> None:
    assert QUICK.warmup_ratio == TrainOptions().warmup_ratio > 0
    train(store, model=model, mask="some", out=tmp_path / "one", options=replace(QUICK, max_steps=1))
    moved = saved_parameters(tmp_path / "one")
    assert any(not torch.equal(moved[name], was) for name, was in saved_parameters(Path(model)).items())
    train(store, model=model, mask="some", out=tmp_path / "rise", options=replace(QUICK, max_steps=4, warmup_ratio=0.5))
    rates = [step["learning_rate"] for step in json.loads((tmp_path / "rise" / "history.json").read_text())["training"]]
    assert rates[:3] == [0.0, QUICK.learning_rate / 2, QUICK.learning_rate]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw_torch", lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.0)),
        ("adafactor", lambda p: Adafactor(p, RATE, scale_parameter=False, relative_step=False)),
        ("sgd", lambda p: torch.optim.SGD(p, RATE)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, RATE)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, RATE)),
    ],
)
def test_a_step_is_that_of_the_optimizer_of_this_name(
    store: Store,
    model: str,
    tmp_path: Path,
    gradients: tuple[Qwen3ForCausalLM, list[torch.Tensor]],
    name: str,
    make: Callable[[Any], torch.optim.Optimizer],
) -> None:
    network, found = gradients
    start = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter, gradient in zip(network.parameters(), found, strict=True):
        parameter.grad = gradient.clone()
    make(network.parameters()).step()
    expected = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    network.load_state_dict(start)
    train(store, model=model, mask="some", out=tmp_path / "out", options=replace(ONE_STEP, optimizer=name))
    after = saved_parameters(tmp_path / "out")
    moved, right = (torch.cat([(end[each] - start[each]).flatten() for each in start]) for end in (after, expected))
    # of AdamW and its like a gradient that is nearly 0 makes a whole step all the same, to whichever side rounding says
    assert ((moved - right).norm() / right.norm()).item() < (1e-4 if name == "sgd" else 0.03)


def test_every_schedule_that_is_a_function_of_the_step_is_offered_under_its_name() -> None:
    others = {SchedulerType.CONSTANT, SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY}
    assert {SchedulerType(name) for name in SCHEDULES.values()} == set(SchedulerType) - others
    assert [name for name in SCHEDULES if SCHEDULES[name] != name] == ["constant"]
    for name in SCHEDULES.values():
        assert "num_warmup_steps" in inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters


def test_a_schedule_takes_its_arguments(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(QUICK, max_steps=10, batch_size=2, warmup_ratio=0.2, schedule="cosine_with_min_lr")
    options = replace(options, schedule_args={"min_lr_rate": 0.25, "num_cycles": 0.5})
    train(store, model=model, mask="some", out=tmp_path / "out", options=options)
    found = [e["learning_rate"] for e in json.loads((tmp_path / "out" / "history.json").read_text())["training"]]
    fallen = [0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert found == pytest.approx([RATE * share for share in (0.0, 0.5, *fallen)], rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "arguments", "message"),
    [
        (
            "cosine",
            {"num_cycels": 2},
            "schedule_args got 'num_cycels' (did you mean 'num_cycles'?), which schedule='cosine' does not have",
        ),
        ("linear", {"power": 2}, "schedule_args got 'power', which schedule='linear' does not have; expected none"),
        ("cosine_with_min_lr", None, "schedule='cosine_with_min_lr' cannot be had with schedule_args {}: One of min_lr or"),
        ("warmup_stable_decay", {}, "schedule='warmup_stable_decay' cannot be had with schedule_args {}: get_wsd_schedule()"),
        (
            "warmup_stable_decay",
            {"num_decay_steps": 400},
            "schedule='warmup_stable_decay' cannot be had with schedule_args {'num_decay_steps': 400}: over 100 steps the rate "
            "would come to",
        ),
        ("polynomial", {"lr_end": 1.0}, "schedule='polynomial' cannot be had with schedule_args {'lr_end': 1.0}: lr_end"),
        ("polynomial", {"power": "x"}, "schedule='polynomial' cannot be had with schedule_args {'power': 'x'}: unsupported"),
        ("cosine", {"num_cycles": "nan"}, "schedule_args got {'num_cycles': 'nan'}; expected a table of finite numbers and"),
        ("cosine", {"num_cycles": math.inf}, "schedule_args got {'num_cycles': inf}; expected a table of finite numbers"),
        ("cosine", {"num_cycles": "2"}, "schedule_args got {'num_cycles': '2'}; expected a table of finite numbers and words"),
        ("cosine", {"num_cycles": True}, "schedule_args got {'num_cycles': True}; expected a table of finite numbers"),
        ("cosine", {"last_epoch": 3}, "schedule_args got 'last_epoch', which schedule='cosine' does not have"),
    ],
)
def test_arguments_that_a_schedule_does_not_take_or_lacks_are_refused(schedule: str, arguments: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        check_schedule(TrainOptions(schedule=schedule, schedule_args=arguments).resolved, 100)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"optimizer": "adamw_torhc"},
            "optimizer got 'adamw_torhc' (did you mean 'adamw_torch'?); expected one of: ",
        ),
        ({"optimizer": "galore_adamw"}, "optimizer='galore_adamw' cannot be had here: "),
        ({"optimizer": "sgd", "beta2": 0.9}, "beta2 would do nothing: optimizer='sgd' has none"),
        ({"schedule_args": {"power": 1}}, "schedule_args got 'power', which schedule='cosine' does not have"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_written(
    store: Store, model: str, tmp_path: Path, wrong: dict, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        train(store, model=model, mask="some", out=tmp_path / "out", options=replace(QUICK, **wrong))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_cycles=2", {"num_cycles": 2}),
        ("lr_end=1e-6, power=2.5", {"lr_end": 1e-6, "power": 2.5}),
        ("decay_type=linear", {"decay_type": "linear"}),
        ("", {}),
    ],
)
def test_arguments_of_a_schedule_are_numbers_where_they_look_so(text: str, expected: dict) -> None:
    assert parse_schedule_args(text) == expected
    assert list(map(type, parse_schedule_args(text).values())) == list(map(type, expected.values()))


@pytest.mark.parametrize("text", ["num_cycles", "=2", "num_cycles=", "a=1,b"])
def test_what_is_no_argument_of_a_schedule_is_said(text: str) -> None:
    with pytest.raises(InputError, match=r"schedule_args got '.*'; expected NAME=VALUE"):
        parse_schedule_args(text)
