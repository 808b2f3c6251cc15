"""What is worked out over a whole store, and two sides held against each other."""

import sys
from pathlib import Path

import pytest
from app_pages import answer, choose, quiet
from inspect_fixtures import (
    copy_with_second_scoring,
)

from tokenstats import Rule, Store, build_mask
from tokenstats.errors import InputError
from tokenstats.inspect.preview import open_preview
from tokenstats.inspect.rows.table import RowTable, row_table
from tokenstats.inspect.tokens.sequence import read_sequence


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


def test_a_row_is_held_against_a_preset(start, own):
    app = quiet(start(own.path))
    for beside in ("preset kl-only", "random", "plain SFT"):
        app = quiet(app.selectbox(key="beside").set_value(beside).run())
    assert app.query_params["colour"] == "ab"


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
