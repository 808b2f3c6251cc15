"""The rule in the sidebar: what its widgets say is what the mask will do."""

import sys

import pytest
from app_pages import EKSFT, answer, choose, quiet, save, value
from inspect_fixtures import (
    share_of,
)

from tokenstats import Rule, build_mask
from tokenstats.inspect.preview import Preview, open_preview


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


def test_a_save_that_the_page_was_left_for_is_not_done_later_and_the_page_says_so(start, own):
    app = quiet(start(own.path))
    app.text_input(key="mask_name").set_value("left-behind")
    app = app.button(key="save").click().run()
    app = answer(app.segmented_control(key="page").set_value("Overview").run())
    assert "Nothing was saved" in app.warning[0].value
    choose(app, "page", "Tokens")
    assert "left-behind" not in own.masks


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
