"""The app says what the mask will do: its widgets, and the command that starts it."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from inspect_fixtures import (
    BREAKOUT,
    HOSTILE_ROWS,
    SCRIPT,
    copy_of_store,
    copy_with_second_scoring,
    make_store,
    share_of,
    store_with_masks,
)
from streamlit.testing.v1 import AppTest

from tokenstats import Rule, Store, build_mask
from tokenstats.cli.app import app_command, app_file
from tokenstats.errors import InputError
from tokenstats.inspect.preview import Preview, open_preview
from tokenstats.inspect.rows.table import RowTable, row_table
from tokenstats.inspect.tokens.sequence import read_sequence
from tokenstats.store.find_stores import find_stores

HOME = str(app_file())
EKSFT = "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)"


@pytest.fixture
def seen() -> Store:
    return store_with_masks()


@pytest.fixture
def own(tmp_path: Path) -> Store:
    return copy_of_store(tmp_path)


# --- the widgets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    def run(*arguments: object) -> AppTest:
        monkeypatch.setattr(sys, "argv", [HOME, *map(str, arguments)])
        return AppTest.from_file(HOME, default_timeout=60).run()

    return run


def value(app: AppTest, label: str) -> str:
    (metric,) = (m for m in app.metric if m.label == label)
    return metric.value


def quiet(app: AppTest) -> AppTest:
    assert not app.exception
    assert not app.error
    assert not app.warning
    return app


def choose(app: AppTest, key: str, option: str) -> AppTest:
    return app.segmented_control(key=key).set_value(option).run()


def answer(app: AppTest) -> AppTest:
    """As a browser does that knows all that was drawn, and has told of all changes."""
    app.session_state["heard"] = app.session_state["asked"]
    return app.run()


def save(app: AppTest) -> AppTest:
    return answer(app.button(key="save").click().run())


def test_moving_a_threshold_shows_what_the_mask_will_drop(start, own):
    app = quiet(start(own.path))
    before = value(app, "Dropped")
    assert before == f"{share_of(own, Rule.from_preset('eksft'), 'same'):.2%}"
    app = quiet(app.slider(key="entropy_share").set_value(45).run())
    rule = Rule(drop="top(entropy, 0.45, per=sequence) or top(kl, 0.2, per=sequence)")
    assert before != value(app, "Dropped") == f"{share_of(own, rule, 'moved'):.2%}"
    app = quiet(app.selectbox(key="cut_by").set_value("share of the dataset").run())
    rule = Rule(drop="top(entropy, 0.45) or top(kl, 0.2)")
    assert value(app, "Dropped") == f"{share_of(own, rule, 'dataset'):.2%}"
    app = quiet(choose(app, "combine", "both"))
    rule = Rule(drop="top(entropy, 0.45) and top(kl, 0.2)")
    assert value(app, "Dropped") == f"{share_of(own, rule, 'both'):.2%}"


def test_thresholds_in_nats(start, own):
    app = quiet(start(own.path))
    app = quiet(app.selectbox(key="cut_by").set_value("nats").run())
    slider = app.select_slider(key="entropy_nats")
    assert len(slider.options) > 20
    limit = open_preview(own, "warm").limits("entropy")[12]
    app = quiet(slider.set_value(limit).run())
    app = quiet(app.select_slider(key="kl_nats").set_value(float("inf")).run())
    assert value(app, "Dropped") == f"{share_of(own, Rule(drop=f'entropy > {limit}'), 'nats'):.2%}"


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


def test_a_wrong_rule_in_between_forgets_nothing(start, own):
    app = choose(quiet(start(own.path)), "way", "Expression")
    app = app.number_input(key="row").set_value(17).run()
    app = app.text_input(key="protect").set_value("is_special").run()
    shown = value(app, "Dropped")
    app = app.text_area(key="expression").set_value("entropy > ").run()
    assert len(app.error) == 1
    assert value(app, "Dropped") == shown  # the last good rule stays in view, and the page says so
    assert "last one that had none" in app.warning[0].value
    app = quiet(app.text_area(key="expression").set_value("entropy > 3").run())
    assert (app.number_input(key="row").value, app.text_input(key="protect").value) == (17, "is_special")


def test_saving_puts_on_disk_what_the_screen_says(start, own):
    app = quiet(start(own.path))
    app = quiet(app.slider(key="kl_share").set_value(31).run())
    said = value(app, "Dropped")
    app.text_input(key="mask_name").set_value("from-the-app")
    app = quiet(save(app))
    assert "from\\-the\\-app" in app.success[0].value
    manifest = own.masks["from-the-app"].manifest
    rule = Rule(drop="top(entropy, 0.2, per=sequence) or top(kl, 0.31, per=sequence)")
    assert manifest.rule_fingerprint == rule.fingerprint == Rule.load(own.path / "rules" / "from-the-app.toml").fingerprint
    assert f"{1 - manifest.kept / manifest.targets:.2%}" == said == f"{share_of(own, rule, 'again'):.2%}"
    app = quiet(app.selectbox(key="decisions").set_value("from-the-app").run())
    assert value(app, "Dropped") == said


def test_a_name_that_is_taken_or_wrong_is_a_friendly_error(start, own):
    app = quiet(start(own.path))
    for name, words in (("random", "there already"), ("../up", "cannot be used"), ("", "cannot be used")):
        app.text_input(key="mask_name").set_value(name)
        app = save(app)
        assert not app.exception
        assert words in app.error[0].value
        assert "--" not in app.error[0].value  # no flag of the command line
        assert value(app, "Dropped")  # the page is still there
    app.text_input(key="mask_name").set_value("random")
    app.checkbox(key="replace_mask").set_value(True)
    app = quiet(save(app))
    assert own.masks["random"].manifest.rule["drop"] == EKSFT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("entropy >", "syntax error"),
        ("entrpy > 1", "did you mean"),
        ("__import__('os')", "unknown function"),
        ("", "empty"),
        ("cold.kl > 1", "cold"),
    ],
)
def test_a_wrong_expression_is_a_friendly_error_and_can_be_mended(start, own, text, words):
    app = choose(quiet(start(own.path)), "way", "Expression")
    assert app.text_area(key="expression").value == EKSFT  # goes on from the knobs
    app = app.text_area(key="expression").set_value(text).run()
    assert not app.exception
    assert words in app.error[0].value
    app = quiet(app.text_area(key="expression").set_value("entropy > 3 and warm.kl > 1").run())
    assert value(app, "Dropped") == f"{share_of(own, Rule(drop='entropy > 3 and warm.kl > 1'), 'mended'):.2%}"
    app = app.text_input(key="protect").set_value("nonsense").run()
    assert not app.exception
    assert "unknown column" in app.error[0].value


def test_a_written_expression_survives_a_look_at_the_knobs(start, own):
    app = choose(quiet(start(own.path)), "way", "Expression")
    app = quiet(app.text_area(key="expression").set_value("entropy > 3 and position > 4").run())
    app = quiet(choose(app, "way", "Thresholds"))
    app = quiet(app.slider(key="kl_share").set_value(40).run())
    app = quiet(choose(app, "way", "Expression"))
    assert app.text_area(key="expression").value == "entropy > 3 and position > 4"


def test_a_preset_fills_in_the_expression(start, own):
    app = choose(quiet(start(own.path)), "way", "Expression")
    app = quiet(app.selectbox(key="preset").set_value("kl-only").run())
    assert app.text_area(key="expression").value == Rule.from_preset("kl-only").drop
    assert value(app, "Dropped") == f"{share_of(own, Rule.from_preset('kl-only'), 'preset'):.2%}"


def test_both_knobs_at_zero_is_a_hint_not_an_error(start, own):
    app = quiet(start(own.path))
    app = app.slider(key="entropy_share").set_value(0).run()
    app = quiet(app.slider(key="kl_share").set_value(0).run())
    assert "every target is learned" in app.info[0].value


def test_protection_counts_what_it_saves(start, own):
    app = quiet(start(own.path))
    rule = Rule.from_preset("eksft")
    manifest = build_mask(own, rule, "same").manifest
    assert value(app, "Saved by protection") == f"{manifest.protected:,}"
    app = quiet(app.text_input(key="protect").set_value("").run())
    assert value(app, "Saved by protection") == "0"
    dropped = build_mask(own, Rule(drop=rule.drop, protect=""), "bare").manifest
    assert value(app, "Dropped") == f"{1 - dropped.kept / dropped.targets:.2%}"
    assert not value(app, "End of turn dropped").startswith("0 of")


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


def test_thresholds_in_nats_look_at_each_column_a_few_times_not_once_a_threshold(start, own, monkeypatch):
    looked = []
    values = Preview._values
    monkeypatch.setattr(Preview, "_values", lambda preview, column: looked.append(column) or values(preview, column))
    monkeypatch.setitem(sys.modules, "loading", None)  # what an earlier test has kept is not taken from its cache
    del sys.modules["loading"]
    app = quiet(start(own.path))
    app = quiet(app.selectbox(key="cut_by").set_value("nats").run())
    assert len(app.select_slider(key="entropy_nats").options) > 20
    assert 2 <= len(looked) <= 10


@pytest.fixture(scope="module")
def two_scorings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a second scoring, first by alphabet, without a reference."""
    return copy_with_second_scoring(tmp_path_factory.mktemp("two"), "alone").path


def test_the_scoring_with_a_reference_opens_and_a_mask_is_explained_with_its_own(start, two_scorings, monkeypatch):
    app = quiet(start(two_scorings))
    assert app.selectbox(key="scoring").value == "warm"
    drawn = []
    read = sys.modules["row_panel"].row_of_mask
    monkeypatch.setattr(sys.modules["row_panel"], "row_of_mask", lambda *given: drawn.append(read(*given)) or drawn[-1])
    app = quiet(app.selectbox(key="scoring").set_value("alone").run())
    app = quiet(app.selectbox(key="decisions").set_value("eksft").run())
    assert [row.view.scoring for row in drawn] == ["warm"]
    quiet(app.selectbox(key="decisions").set_value("plain SFT").run())
    assert drawn[-1].view.scoring == "alone"


def test_two_scorings_are_compared_by_what_one_rule_drops(start, two_scorings):
    app = choose(quiet(start(two_scorings)), "page", "Compare")
    entropy = "preset entropy-only"
    app = app.selectbox(key="side_a").set_value(entropy).run()
    app = app.selectbox(key="side_b").set_value(entropy).run()
    assert "choose two that differ" in app.error[0].value
    app = quiet(app.selectbox(key="by_b").set_value("alone").run())
    store, rule = Store(two_scorings), Rule.from_preset("entropy-only")
    masks = [build_mask(store, rule, f"by-{name}", scoring=name, replace=True).name for name in ("warm", "alone")]
    for _, line in app.dataframe[0].value.iterrows():
        a, b = (read_sequence(store, int(line["row"]), mask=mask) for mask in masks)
        assert line["A only"] == (b.keep & ~a.keep & a.is_target).sum()
        assert line["B only"] == (a.keep & ~b.keep & a.is_target).sum()
    app = quiet(answer(app.button(key="swap").click().run()))
    assert (app.selectbox(key="by_a").value, app.selectbox(key="by_b").value) == ("alone", "warm")


def test_undo_and_redo_walk_through_what_the_rule_was(start, own):
    app = quiet(start(own.path))
    said = [app.code[0].value]
    for share in (45, 30):
        app = quiet(app.slider(key="entropy_share").set_value(share).run())
        said.append(app.code[0].value)
    assert len(set(said)) == 3
    for back in (1, 0):
        app = quiet(app.button(key="undo").click().run())
        assert app.code[0].value == said[back]
    assert app.button(key="undo").disabled
    app = quiet(app.button(key="redo").click().run())
    assert app.code[0].value == said[1]
    app = quiet(app.slider(key="kl_share").set_value(5).run())  # a new change: what was undone is gone
    assert app.button(key="redo").disabled
    app = quiet(app.button(key="undo").click().run())
    assert app.code[0].value == said[1]


def test_the_history_of_a_rule_is_read_from_what_the_tab_has_kept_and_from_nothing_else(start, own):
    app = quiet(start(own.path))
    app = quiet(app.selectbox(key="cut_by").set_value("nats").run())
    app = quiet(app.select_slider(key="entropy_nats").set_value(float("inf")).run())  # off
    rules_of = sys.modules["undo"].Rules
    rules = app.session_state[f"rules {own.fingerprint} warm"]
    assert [said["cut_by"] for said in rules.said] == ["share of each sequence", "nats", "nats"]
    read = rules_of.of_text(rules.to_text())
    assert (read.said, read.at) == (rules.said, 2)
    for other in (
        "",
        "[]",
        "{}",
        '{"said": [], "at": 0}',
        '{"said": [{"page": "Rows"}], "at": 0}',
        '{"said": [{}], "at": "0"}',
    ):
        with pytest.raises(ValueError, match=r"no list|no place|Expecting"):
            rules_of.of_text(other)


def test_a_row_is_held_against_a_preset(start, own):
    app = quiet(start(own.path))
    for beside in ("preset kl-only", "random", "plain SFT"):
        app = quiet(app.selectbox(key="beside").set_value(beside).run())
    assert app.query_params["colour"] == "ab"


# --- the command --------------------------------------------------------------------------------------------------------


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


# --- rows, and comparisons -----------------------------------------------------------------------------------------------


def test_the_rows_page_counts_where_a_token_is_dropped_and_lists_the_rows_that_lose_most(start, own):
    app = choose(quiet(start(own.path)), "page", "Rows")
    app = quiet(app.selectbox(key="decisions").set_value("eksft").run())
    views = [read_sequence(own, n, mask="eksft") for n in range(own.manifest.sequences)]
    listed = app.dataframe[-1].value
    assert listed["share_dropped"].iloc[0] == max(v.dropped / v.targets for v in views if v.targets)
    app = quiet(app.text_input(key="sought").set_value(" so").run())
    places = [(v, i) for v in views for i in v.is_target.nonzero()[0] if v.decoder.token(int(v.ids[i])) == " so"]
    dropped = sum(not v.keep[i] for v, i in places)
    assert any(f"**{len(places):,}** among the targets, **{dropped:,}** dropped" in m.value for m in app.markdown)
    app = app.text_input(key="sought").set_value("no such token").run()
    assert "no token of the vocabulary" in app.error[0].value


def test_work_on_the_whole_store_is_done_once_and_nothing_is_kept_of_what_was_given_up(start, own, monkeypatch):
    app = quiet(start(own.path))
    told = []

    def given_up(store: Store, scoring: str | None) -> None:
        raise InputError("given up")

    def counted(store: Store, scoring: str | None) -> RowTable:
        told.append(scoring)
        return row_table(store, scoring)

    monkeypatch.setattr(sys.modules["loading"], "row_table", given_up)
    assert "given up" in choose(app, "page", "Rows").error[0].value
    monkeypatch.setattr(sys.modules["loading"], "row_table", counted)
    for rising in (True, False):
        quiet(app.toggle(key="rows_rising").set_value(rising).run()) if told else quiet(app.run())
    assert told == ["warm"]


def test_every_long_work_of_a_page_has_its_own_bar(start, own, monkeypatch):
    app = quiet(start(own.path))
    monkeypatch.setattr(sys.modules["long_work"], "QUIET", 0.0)
    quiet(choose(app, "page", "Rows"))  # decides about every row, and counts them
    app = quiet(app.text_input(key="sought").set_value(" so").run())
    assert any("among the targets" in m.value for m in app.markdown)
    for page in ("Compare", "Audit"):
        quiet(choose(app, "page", page))


def test_thresholds_over_the_whole_store_show_how_far_they_are_and_can_be_given_up(start, own, monkeypatch):
    app = quiet(start(own.path))
    app = quiet(app.selectbox(key="cut_by").set_value("share of the dataset").run())
    told = []

    def given_up(bar, progress) -> None:
        told.append((bar.title, progress))
        raise InputError("given up")

    monkeypatch.setattr(sys.modules["long_work"], "QUIET", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["long_work"]._Bar, "show", given_up)
        assert "given up" in choose(app, "page", "Rows").error[0].value
    ((title, progress),) = told
    assert title == "working out thresholds"
    assert progress.is_given_up
    app = quiet(app.run())
    decided = open_preview(own, "warm").decide(Rule(drop="top(entropy, 0.2) or top(kl, 0.2)"))
    assert app.dataframe[0].value["dropped"].sum() == decided.counts.dropped


def test_two_sides_are_compared_row_by_row(start, own):
    app = choose(quiet(start(own.path)), "page", "Compare")
    app = quiet(app.selectbox(key="side_a").set_value("eksft").run())
    app = quiet(app.selectbox(key="side_b").set_value("random").run())
    listed = app.dataframe[0].value
    for _, line in listed.iterrows():
        a, b = (read_sequence(own, int(line["row"]), mask=mask) for mask in ("eksft", "random"))
        assert line["A only"] + line["B only"] == ((a.keep != b.keep) & a.is_target).sum()
    before = app.selectbox(key="side_a").value
    app = quiet(answer(app.button(key="swap").click().run()))
    assert app.selectbox(key="side_b").value == before
    app = app.selectbox(key="side_a").set_value(before).run()
    assert "choose two that differ" in app.error[0].value
    app = quiet(app.selectbox(key="side_a").set_value("plain SFT").run())
    quiet(app.selectbox(key="side_b").set_value("preset kl-only").run())
