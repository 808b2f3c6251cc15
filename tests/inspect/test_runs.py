"""The curves of a run are what its history holds, entry by entry."""

import json
from pathlib import Path

import pytest

from tokenstats.errors import InputError
from tokenstats.inspect.runs import Curve, curves_of, find_runs

WITHOUT_STEP, NO_LIST = '{"training": [{}], "evaluation": []}', '{"training": 1, "evaluation": []}'


def test_the_bundled_warm_up_is_found_and_told_as_its_file_says(warmup):
    run = Path(warmup)
    assert run in find_runs(run.parent.parent)
    history = json.loads((run / "history.json").read_text())
    first, *others = curves_of(run)
    assert first == Curve("loss", "training", tuple((entry["step"], entry["loss"]) for entry in history["training"]))
    assert {curve.measure for curve in others} == {"grad_norm", "learning_rate"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"training": [{}], "evaluation": []}', '{"training": 1, "evaluation": []}']
)
def test_what_is_no_history_is_refused_by_name(tmp_path, text):
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(InputError, match=r"history\.json"):
        curves_of(tmp_path)


def test_what_is_no_finite_number_is_left_out(tmp_path):
    history = {"training": [{"step": 1, "loss": float("nan"), "note": "x"}, {"step": 2, "loss": 1.5}], "evaluation": []}
    (tmp_path / "history.json").write_text(json.dumps(history))
    assert curves_of(tmp_path) == [Curve("loss", "training", ((2, 1.5),))]
