"""The app opens any store on any page, says what is wrong in words, and is started by a command."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from app_pages import choose, quiet, value
from inspect_fixtures import (
    BREAKOUT,
    HOSTILE_ROWS,
    SCRIPT,
    make_store,
    share_of,
    store_with_masks,
)

from tokenstats import Rule, Store
from tokenstats.cli.app import app_command
from tokenstats.errors import InputError
from tokenstats.store.find_stores import find_stores


def test_another_store_takes_over_what_was_chosen_for_the_first(start, own, tmp_path):
    shorter = make_store("no-reference", reference=False)
    app = quiet(start(own.path))
    app = quiet(app.number_input(key="row").set_value(34).run())
    app = quiet(app.selectbox(key="decisions").set_value("eksft").run())
    app = app.text_input(key="store").set_value(str(shorter.path)).run()
    assert "eksft is no longer in the store" in app.warning[0].value
    assert app.number_input(key="row").value == shorter.manifest.sequences - 1
    app = choose(app, "page", "Audit")
    app = quiet(app.text_input(key="store").set_value(str(own.path)).run())
    app = quiet(app.selectbox(key="audited").set_value("random").run())
    app = app.text_input(key="store").set_value(str(shorter.path)).run()
    assert "random is no longer in the store" in app.warning[0].value
    assert value(app, "Dropped") == "0.00%"


@pytest.mark.parametrize("place", ["nowhere", "a file", "an empty folder", "a broken store"])
def test_a_wrong_store_is_a_friendly_error(start, tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "tokens").mkdir(parents=True)
    (tmp_path / "broken" / "manifest.json").write_text("{")
    names = {"nowhere": "gone", "a file": "file", "an empty folder": "empty", "a broken store": "broken"}
    app = start(tmp_path / names[place])
    assert not app.exception
    assert len(app.error) == 1
    assert "store" in app.error[0].value or "manifest" in app.error[0].value


def test_without_a_store_it_asks_for_one(start):
    app = quiet(start())
    assert "tokenstats compute" in app.info[0].value


def test_a_folder_of_stores_offers_them_all(start, tmp_path, own):
    shutil.copytree(own.path, tmp_path / "runs" / "a")
    shutil.copytree(own.path, tmp_path / "runs" / "deep" / "b")
    assert find_stores(tmp_path / "runs") == [tmp_path / "runs" / "a", tmp_path / "runs" / "deep" / "b"]
    app = quiet(start(tmp_path / "runs"))
    assert app.selectbox(key="which_store").options == ["a", str(Path("deep") / "b")]
    assert value(app, "Dropped")


def test_every_row_and_picture_can_be_looked_at(start, own):
    app = quiet(start(own.path))
    for row in (0, HOSTILE_ROWS[SCRIPT], HOSTILE_ROWS[BREAKOUT], 34):
        app = quiet(app.number_input(key="row").set_value(row).run())
    app = quiet(choose(app, "way", "Expression"))
    for picture in ("place in the reply", "entropy against KL", "histograms"):
        app = quiet(choose(app, "picture", picture))
    app = quiet(choose(app, "way", "Thresholds"))  # whose own histograms take the place of the picture
    assert app.segmented_control(key="picture").options == ["entropy against KL", "place in the reply"]


def test_the_audit_page_shows_each_mask(start, own):
    app = choose(quiet(start(own.path)), "page", "Audit")
    for mask in own.masks:
        app = quiet(app.selectbox(key="audited").set_value(mask).run())
        manifest = own.masks[mask].manifest
        assert value(app, "Dropped") == f"{1 - manifest.kept / manifest.targets:.2%}"
        assert value(app, "Learned") == f"{manifest.kept:,}"


@pytest.mark.parametrize("kind", ["no reference", "no scoring"])
def test_it_works_with_fewer_statistics(start, tmp_path, kind):
    store = make_store("no-reference", reference=False)
    if kind == "no scoring":
        shutil.copytree(store.path, tmp_path / "bare")
        shutil.rmtree(tmp_path / "bare" / "stats")
        store = Store(tmp_path / "bare")
    app = quiet(start(store.path))
    assert value(app, "Dropped") != "0.00%"
    assert "kl_share" not in {s.key for s in app.slider}
    for page in ("Audit", "Overview"):
        quiet(choose(app, "page", page))


def test_a_row_beyond_the_end_is_the_last_one_and_the_box_says_so(start, own):
    app = quiet(start(own.path))
    app = quiet(app.number_input(key="row").set_value(999).run())
    assert app.number_input(key="row").value == own.manifest.sequences - 1


def test_a_missing_tokenizer_takes_neither_numbers_nor_pictures(start, own):
    shutil.rmtree(own.tokenizer_folder)
    app = quiet(start(own.path))
    assert value(app, "Dropped") == f"{share_of(own, Rule.from_preset('eksft'), 'same'):.2%}"
    assert app.segmented_control(key="picture").value == "entropy against KL"
    quiet(choose(app, "picture", "place in the reply"))


def test_a_stored_mask_opens_without_an_audit(start, own, monkeypatch):
    app = quiet(start(own.path))

    def refuse(*_: object) -> None:
        raise AssertionError("the whole store was audited")

    monkeypatch.setattr(sys.modules["loading"], "audit", refuse)
    app = quiet(app.selectbox(key="decisions").set_value("eksft").run())
    manifest = own.masks["eksft"].manifest
    assert value(app, "Dropped") == f"{1 - manifest.kept / manifest.targets:.2%}"


def test_the_command_serves_this_machine_only_and_sends_no_statistics(seen):
    command = app_command(seen.path, 9999)
    assert command[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(command[4]).name == "home.py"
    assert {"--browser.gatherUsageStats=false", "--server.address=127.0.0.1", "--server.port=9999"} <= set(command)
    assert "--logger.hideWelcomeMessage=true" in command  # Streamlit's greeting would cover the page
    assert command[-2:] == ["--", str(seen.path.resolve())]
    with pytest.raises(InputError, match="no folder"):
        app_command(seen.path / "gone")


def test_the_command_becomes_the_app(monkeypatch, cli):
    """No process is left between: whoever ends the command ends the app."""
    became = []
    monkeypatch.setattr(os, "execv", lambda path, command: became.append((path, command)))
    store = store_with_masks().path
    assert cli("app", store, "--port", "8777")[0] == 0
    assert became == [(sys.executable, app_command(store, 8777))]


def test_training_runs_beside_the_store_are_drawn_by_step(start, own):
    folder = own.path.parent / "first" / "weights"
    folder.mkdir(parents=True)
    training = [{"step": step, "epoch": 0.1, "loss": 2.0 / step, "entropy/kept": 0.5} for step in (10, 20)]
    history = {"training": training, "evaluation": [{"step": 20, "epoch": 0.2, "loss": 0.4}]}
    (folder / "history.json").write_text(json.dumps(history))
    app = choose(quiet(start(own.path)), "page", "Runs")
    table = quiet(app).dataframe[0].value
    assert table["training: first/weights"].tolist() == [0.2, 0.1]
    assert table["evaluation: first/weights"].dropna().to_dict() == {20: 0.4}
    app = quiet(app.selectbox(key="measure").set_value("entropy/kept").run())
    assert app.dataframe[0].value["training: first/weights"].tolist() == [0.5, 0.5]
    (folder / "history.json").write_text("[]")
    assert "is no history of a run" in app.run().error[0].value
    app = app.text_input(key="runs_folder").set_value(str(own.path / "tokens")).run()
    assert "No run there" in quiet(app).info[0].value
