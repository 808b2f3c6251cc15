"""The app says what the mask will do: previews against built masks, and the widgets."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from inspect_fixtures import BREAKOUT, HOSTILE_ROWS, SCRIPT, copy_of_store, make_store, store_with_masks
from streamlit.testing.v1 import AppTest

from tokenstats import Rule, Store, build_mask
from tokenstats.errors import InputError, RuleError
from tokenstats.inspect import app_command, open_preview
from tokenstats.inspect.launch import app_file, find_stores
from tokenstats.inspect.preview import locate, save_mask, threshold_rule
from tokenstats.inspect.sequences import read_sequence

RULES = [
    "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)",
    "top(entropy, 0.37) or top(rank, 0.2)",
    "entropy > 3.5 and not is_special or position < 2",
    "random(0.3, seed=5)",
    "top(warm.kl, 50) or nll > quantile(nll, 0.9)",
    "top(entropy, 0.0001) or kl > 7",
]
HOME = str(app_file())


@pytest.fixture
def seen() -> Store:
    return store_with_masks()


@pytest.fixture
def own(tmp_path: Path) -> Store:
    return copy_of_store(tmp_path)


def share_of(store: Store, rule: Rule, name: str) -> float:
    """The share that the mask on disk really drops, counted from its rows."""
    build_mask(store, rule, name, scoring="warm")
    kept = targets = 0
    for part in range(store.part_count):
        keep, flags = store.part(f"masks/{name}", part)["keep"].to_pylist(), store.part("tokens", part)["is_target"].to_pylist()
        kept += sum(map(sum, keep))
        targets += sum(map(sum, flags))
    return 1 - kept / targets


# --- the preview --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protect", ["is_end_of_turn", ""])
@pytest.mark.parametrize("text", RULES)
def test_a_preview_is_the_mask_that_would_be_built(own, text, protect):
    rule = Rule(drop=text, protect=protect)
    outcome = open_preview(own, "warm", rule.columns).judge(rule)
    manifest = build_mask(own, rule, "built", scoring="warm")
    assert (outcome.targets, outcome.targets - outcome.dropped, outcome.protected) == (
        manifest.targets,
        manifest.kept,
        manifest.protected,
    )
    assert outcome.nothing_kept == manifest.rows_with_nothing_kept
    assert outcome.clauses == tuple((c.text, c.dropped) for c in manifest.clauses)
    assert outcome.values == manifest.thresholds


@pytest.mark.parametrize("text", RULES)
def test_the_tokens_of_a_preview_are_the_masks_tokens(own, text):
    rule = Rule(drop=text)
    preview = open_preview(own, "warm", rule.columns)
    outcome = preview.judge(rule)
    build_mask(own, rule, "built", scoring="warm")
    for number in range(own.manifest.sequences):
        here, stored = preview.view(outcome, number), read_sequence(own, number, mask="built", scoring="warm")
        for name in ("ids", "keep", "reason", "protected"):
            assert (getattr(here, name) == getattr(stored, name)).all(), (number, name)
        assert here.clauses == stored.clauses


@pytest.mark.parametrize("most", [100, 900, 1500])
def test_a_sample_says_so_and_still_shows_every_row(seen, most):
    preview = open_preview(seen, "warm", most_tokens=most)
    assert preview.is_sample
    assert 0 < preview.tokens <= most
    assert preview.tokens == sum(int(p.offsets[-1]) for p in preview.populations)
    outcome = preview.judge(Rule(drop="entropy > 3"))
    assert outcome.targets == preview.targets < seen.manifest.targets
    for number in (0, 12, 34):
        view = preview.view(outcome, number)
        entropy = np.array([v if v is not None else np.nan for v in view.statistics["entropy"]])
        dropped = view.is_target & ~view.keep
        assert (dropped == ((np.nan_to_num(entropy) > 3) & ~view.protected)).all()


def test_the_whole_store_is_no_sample(seen):
    preview = open_preview(seen, "warm")
    assert not preview.is_sample
    assert (preview.tokens, preview.targets) == (seen.manifest.tokens, seen.manifest.targets)


def test_rows_are_found_in_their_parts(seen):
    places = [locate(seen, n) for n in range(seen.manifest.sequences)]
    assert places == [(part, row) for part, listed in enumerate(seen.manifest.parts) for row in range(listed.rows)]
    for wrong in (-1, seen.manifest.sequences):
        with pytest.raises(InputError, match="0 to 34"):
            locate(seen, wrong)


@pytest.mark.parametrize(
    ("knobs", "drop"),
    [
        ({"entropy": 0.2, "kl": 0.2}, "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)"),
        ({"entropy": 0.1, "kl": 0.3, "both": True}, "top(entropy, 0.1, per=sequence) and top(kl, 0.3, per=sequence)"),
        ({"entropy": 0.2, "kl": 0, "per": "dataset"}, "top(entropy, 0.2)"),
        ({"entropy": 2, "kl": 0.1 + 0.2, "as_share": False}, "entropy > 2.0 or kl > 0.3"),
    ],
)
def test_knobs_write_the_rule_that_one_would_write_by_hand(knobs, drop):
    assert threshold_rule(**knobs) == Rule(drop=drop)
    assert threshold_rule(0, 0) is None


def test_a_saved_mask_brings_its_rule(own):
    rule = Rule(drop="entropy > 3 or kl > 5", protect="")
    manifest, path = save_mask(own, rule, "mine", scoring="warm")
    assert own.mask("mine")[1] == manifest
    assert path == own.path / "rules" / "mine.toml"
    assert Rule.load(path).fingerprint == manifest.rule_fingerprint


def test_a_rule_with_a_budget_is_not_guessed_at(seen):
    with pytest.raises(InputError, match="budget"):
        open_preview(seen, "warm").judge(Rule(drop="random(0.2)", budget="same as eksft"))


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


@pytest.mark.parametrize("column", ["entropy", "kl"])
def test_limits_to_try_reach_from_most_of_the_tokens_to_few(seen, column):
    preview = open_preview(seen, "warm")
    limits = preview.limits(column)
    above = [preview.judge(Rule(drop=f"{column} > {limit}", protect="")).share_dropped for limit in limits]
    assert above == sorted(above, reverse=True)
    assert above[0] > 0.55
    assert above[-1] < 0.01
    assert np.abs(np.diff(above)).max() < 0.05


def test_another_store_takes_over_what_was_chosen_for_the_first(start, own, tmp_path):
    shorter = make_store("no-reference", reference=False)
    app = quiet(start(own.path))
    app = quiet(app.number_input(key="row").set_value(34).run())
    app = quiet(app.selectbox(key="decisions").set_value("eksft").run())
    app = quiet(choose(app, "colour_by", "KL"))
    app = quiet(app.text_input(key="store").set_value(str(shorter.path)).run())
    app = quiet(choose(app, "page", "Overview"))
    app = quiet(app.text_input(key="store").set_value(str(own.path)).run())
    app = quiet(app.selectbox(key="audited").set_value("random").run())
    app = quiet(app.text_input(key="store").set_value(str(shorter.path)).run())
    assert value(app, "Dropped") == "0.00%"


def test_a_wrong_rule_in_between_forgets_nothing(start, own):
    app = choose(quiet(start(own.path)), "way", "Expression")
    app = app.number_input(key="row").set_value(17).run()
    app = app.text_input(key="protect").set_value("is_special").run()
    app = app.text_area(key="expression").set_value("entropy > ").run()
    assert len(app.error) == 1
    app = quiet(app.text_area(key="expression").set_value("entropy > 3").run())
    assert (app.number_input(key="row").value, app.text_input(key="protect").value) == (17, "is_special")


def test_saving_puts_on_disk_what_the_screen_says(start, own):
    app = quiet(start(own.path))
    app = quiet(app.slider(key="kl_share").set_value(31).run())
    said = value(app, "Dropped")
    app.text_input(key="mask_name").set_value("from-the-app")
    app = quiet(app.button(key="save").click().run())
    assert "from\\-the\\-app" in app.success[0].value
    manifest = own.mask("from-the-app")[1]
    rule = Rule(drop="top(entropy, 0.2, per=sequence) or top(kl, 0.31, per=sequence)")
    assert manifest.rule_fingerprint == rule.fingerprint == Rule.load(own.path / "rules" / "from-the-app.toml").fingerprint
    assert f"{1 - manifest.kept / manifest.targets:.2%}" == said == f"{share_of(own, rule, 'again'):.2%}"
    app = quiet(app.selectbox(key="decisions").set_value("from-the-app").run())
    assert value(app, "Dropped") == said


def test_a_name_that_is_taken_or_wrong_is_a_friendly_error(start, own):
    app = quiet(start(own.path))
    for name, words in (("random", "there already"), ("../up", "cannot be used"), ("", "cannot be used")):
        app.text_input(key="mask_name").set_value(name)
        app = app.button(key="save").click().run()
        assert not app.exception
        assert words in app.error[0].value
        assert value(app, "Dropped")  # the page is still there
    app.text_input(key="mask_name").set_value("random")
    app.checkbox(key="replace_mask").set_value(True)
    app = quiet(app.button(key="save").click().run())
    assert own.mask("random")[1].rule["drop"] == RULES[0]


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
    assert app.text_area(key="expression").value == RULES[0]  # goes on from the knobs
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
    manifest = build_mask(own, rule, "same")
    assert value(app, "Saved by protection") == f"{manifest.protected:,}"
    app = quiet(app.text_input(key="protect").set_value("").run())
    assert value(app, "Saved by protection") == "0"
    dropped = build_mask(own, Rule(drop=rule.drop, protect=""), "bare")
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


def test_every_row_and_colour_can_be_looked_at(start, own):
    app = quiet(start(own.path))
    for row in (0, HOSTILE_ROWS[SCRIPT], HOSTILE_ROWS[BREAKOUT], 34):
        app = quiet(app.number_input(key="row").set_value(row).run())
    for colour in ("entropy", "KL", "−log p"):
        app = quiet(choose(app, "colour_by", colour))
    for picture in ("entropy against KL", "place in the reply"):
        app = quiet(choose(app, "picture", picture))


def test_the_overview_shows_the_audit_of_each_mask(start, own):
    app = choose(quiet(start(own.path)), "page", "Overview")
    for mask in own.masks():
        app = quiet(app.selectbox(key="audited").set_value(mask).run())
        manifest = own.mask(mask)[1]
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
    choose(app, "page", "Overview")
    quiet(app)


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command_serves_this_machine_only_and_sends_no_statistics(seen):
    command = app_command(seen.path, 9999)
    assert command[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(command[4]).name == "home.py"
    assert {"--browser.gatherUsageStats=false", "--server.address=127.0.0.1", "--server.port=9999"} <= set(command)
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


def test_a_bad_rule_raises_before_anything_is_saved(own):
    with pytest.raises(RuleError):
        save_mask(own, Rule(drop="cold.entropy > 1"), "never", scoring="warm")
    assert "never" not in own.masks()
    assert not (own.path / "rules").exists()
