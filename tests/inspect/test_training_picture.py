"""The picture of a run: every number of its history is drawn, whatever the run told, and what is no run is said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread
from training_fixtures import QUICK, masked_store, save_tiny_model

from tokenstats import report
from tokenstats.errors import InputError
from tokenstats.inspect.render.figure_training import figure_of_run, training_figure
from tokenstats.store import Store
from tokenstats.training import train


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return masked_store(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def run(store: Store, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells everything."""
    out = tmp_path_factory.mktemp("run") / "out"
    options = replace(QUICK, metrics="targets", reference=model, entropy_bonus=0.1, entropy_on="clause 1", plot=True)
    options = replace(options, kl_penalty=0.1, kl_on="dropped", eval_share=0.25, eval_steps=2, best_by="eval_loss")
    train(store, model=model, mask="some", out=out, options=options)
    return out


def history(folder: Path) -> dict:
    return json.loads((folder / "history.json").read_text())


def drawn(figure) -> set[tuple[tuple[float, float], ...]]:
    """The points of all lines with any."""
    lines = [line for ax in figure.axes for line in ax.lines if len(line.get_xdata())]
    return {tuple(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True)) for line in lines}


def test_every_curve_of_the_history_is_drawn_and_those_of_rows_held_out_dashed(run: Path):
    found, figure = history(run), figure_of_run(run)
    not_drawn = {"step", "epoch", "learning_rate"}
    for kind in ("training", "evaluation"):
        for name in {name for entry in found[kind] for name in entry} - not_drawn:
            curve = tuple((entry["step"], entry[name]) for entry in found[kind] if name in entry)
            assert curve in drawn(figure), f"{kind}: {name}"
    dashed = [line for ax in figure.axes for line in ax.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert {float(line.get_xdata()[0]) for line in dashed} == {0.0}, "only rows held out are evaluated before the first step"


def test_groups_of_tokens_have_one_colour_and_their_names(run: Path):
    figure = figure_of_run(run)
    colours: dict[str, set] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            colours.setdefault(label, set()).add(handle.get_color())
    assert {"loss", "targets", "kept", "clause 1", "dropped", "term KL", "dashed: rows held out"} <= colours.keys()
    assert all(len(found) == 1 for found in colours.values())
    groups = [colours[name] for name in ("targets", "kept", "clause 1", "dropped")]
    assert len(set(map(frozenset, groups))) == 4


def test_the_step_whose_weights_were_saved_is_marked(run: Path):
    losses = {entry["step"]: entry["loss"] for entry in history(run)["evaluation"][1:]}
    (best,) = [step for step in losses if losses[step] == min(losses.values())]
    assert all(
        [best, best] in [list(line.get_xdata()) for line in ax.lines] for ax in figure_of_run(run).axes if ax.get_visible()
    )


def test_the_picture_lies_beside_the_weights_and_only_where_it_was_asked_for(
    store: Store, model: str, run: Path, tmp_path: Path
):
    picture = imread(run / "training.png")
    assert picture.std() > 0.05, "not an empty page"
    train(store, model=model, mask="some", out=tmp_path / "out", options=replace(QUICK, max_steps=1))
    assert not (tmp_path / "out" / "training.png").exists()


def test_a_run_that_tells_only_its_loss_has_a_panel_for_each_thing_that_there_is():
    plain = {"training": [{"step": 1, "loss": 2.0, "tokens_per_second": 5.0}], "evaluation": []}
    figure = training_figure(plain)
    assert drawn(figure) == {((1.0, 2.0),), ((1.0, 5.0),)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["loss"]


def test_a_report_draws_a_run_of_its_store_and_refuses_any_other(store: Store, run: Path, tmp_path: Path):
    shutil.copytree(store.path, tmp_path / "store")
    plain = Store(tmp_path / "store")
    for mask in plain.masks:
        shutil.rmtree(plain.path / "masks" / mask)
    page = report(plain.path, tmp_path / "report", run=run)
    assert 'src="img/training.png"' in page.read_text()
    assert (tmp_path / "report" / "img" / "training.png").exists()
    other = json.loads((run / "tokenstats.json").read_text()) | {"store_fingerprint": "0" * 32}
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "tokenstats.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="was trained on another store"):
        report(plain.path, tmp_path / "new", run=tmp_path / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [None, "{}", "[]", "not JSON", '{"training": [], "evaluation": []}'])
def test_what_is_no_run_is_said(run: Path, tmp_path: Path, content: str | None):
    if content is not None:
        shutil.copy(run / "tokenstats.json", tmp_path)
        (tmp_path / "history.json").write_text(content)
    with pytest.raises(InputError, match=r"holds no run that can be drawn \(.*\); expected a folder that was trained into"):
        figure_of_run(tmp_path)
