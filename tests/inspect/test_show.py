"""A sequence in the terminal: readable without colour, without a terminal, and harmless whatever the data holds."""

import io
import re

import numpy as np
import pytest
from inspect_fixtures import HOSTILE_ROWS, LONG_ROW, MARKS, SMILE, edit_manifest, make_store, store_with_masks
from rich.console import Console
from rich.segment import Segment
from synthetic import add_scoring, random_store

from tokenstats import Rule, Store, build_mask
from tokenstats.errors import InputError, StoreError
from tokenstats.inspect.preview import open_preview
from tokenstats.inspect.render.terminal_tokens import origin, plain_sequence, render_sequence
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.inspect.tokens.sequence import read_sequence

DROPPED = re.compile(r"\[\[([0-9+]*):(.*?)\]\]", re.DOTALL)
ROWS = range(35)


def console(**options) -> Console:
    return Console(**({"width": 100, "file": io.StringIO(), "force_terminal": True, "color_system": "truecolor"} | options))


def segments(store: Store, number: int, mask: str | None, **options) -> list[Segment]:
    screen = console(**options)
    return list(screen.render(render_sequence(read_sequence(store, number, mask=mask))))


def printed(store: Store, number: int, mask: str | None, details: bool = False, **options) -> str:
    screen = console(**options)
    screen.print(render_sequence(read_sequence(store, number, mask=mask), details))
    return screen.file.getvalue()


def plain(store: Store, number: int, mask: str | None = None, **options: bool) -> str:
    return plain_sequence(read_sequence(store, number, mask=mask), **options)


def body(text: str) -> str:
    return text.split("\n\n", 1)[1]


def raw(store: Store, number: int, family: str) -> dict:
    """The row as it lies on disk."""
    columns = {"tokens": ["input_ids", "is_target"], "masks": ["keep", "reason"], "stats": ["entropy", "kl"]}[
        family.split("/")[0]
    ]
    return store.sequence(number, {family: columns})[family]


@pytest.mark.parametrize("row", ROWS)
def test_plain_text_is_ascii_without_escapes_and_marks_every_dropped_piece(seen, row):
    text = plain(seen, row, "dataset-wide")
    assert all(c == "\n" or " " <= c <= "~" for c in text)
    pieces = read_sequence(seen, row, mask="dataset-wide").pieces()
    assert [clauses for clauses, _ in DROPPED.findall(body(text))] == [
        "+".join(str(c + 1) for c in p.clauses) for p in pieces if p.dropped
    ]


def test_marks_agree_with_the_mask_on_disk(seen):
    row = 20  # plain English: one token, one piece
    tokens, mask = raw(seen, row, "tokens"), raw(seen, row, "masks/eksft")
    marks = DROPPED.findall(body(plain(seen, row, "eksft")))
    on_disk = [
        (reason, token)
        for token, target, keep, reason in zip(
            tokens["input_ids"], tokens["is_target"], mask["keep"], mask["reason"], strict=True
        )
        if target and not keep
    ]
    assert [sum(1 << (int(c) - 1) for c in clauses.split("+")) for clauses, _ in marks] == [reason for reason, _ in on_disk]
    assert [text for _, text in marks] == [Decoder(seen).text([token]) for _, token in on_disk]


def test_without_its_marks_the_plain_text_is_the_text(seen):
    for row in (0, 20, 25):
        whole = Decoder(seen).text(raw(seen, row, "tokens")["input_ids"])
        text = DROPPED.sub(r"\2", body(plain(seen, row, "dataset-wide")))
        assert text.replace("{{", "").replace("}}", "").replace("\\n", "").rstrip("\n") == whole.rstrip("\n")


def test_brackets_of_the_data_are_never_marks(seen):
    row = HOSTILE_ROWS[MARKS]
    kept_all = body(plain(seen, row))
    assert "[[" not in kept_all
    assert kept_all.count("{{") == kept_all.count("}}") == 2  # the prompt, and the template's last newline
    assert r"a [\[1:fake]\] and" in kept_all


def test_without_a_mask_everything_is_learned(seen):
    text = plain(seen, 3)
    assert "[[" not in text
    assert "no mask" in text
    tokens = raw(seen, 3, "tokens")
    assert f"{sum(tokens['is_target'])} targets, {sum(tokens['is_target'])} kept (100.0% of targets), 0 dropped" in text


def test_letters_of_other_scripts_can_stay(seen):
    assert SMILE not in plain(seen, 1)
    assert SMILE in plain(seen, 1, ascii_only=False)


@pytest.mark.parametrize("row", ROWS)
def test_nothing_of_the_data_acts_on_the_terminal(seen, row):
    for segment in segments(seen, row, "dataset-wide"):
        assert segment.control is None
        assert not [c for c in segment.text if c != "\n" and (c < " " or "\x7f" <= c <= "\x9f" or c in "\u202e\u202c\u2066")]


@pytest.mark.parametrize("row", [0, 1, 11, LONG_ROW, 20])
def test_dropped_tokens_are_told_apart_without_colour(seen, row):
    view = read_sequence(seen, row, mask="eksft")
    pieces = view.pieces()
    looks = {"0": "underline", "1": "strike"}
    shown = [s for s in segments(seen, row, "eksft", width=10_000) if s.text.strip("\n")]
    marked = [s for s in shown if s.style and (s.style.underline or s.style.strike)]
    legend = 2 + (1 if any(len(p.clauses) > 1 for p in pieces if p.dropped) else 0)
    dropped = [p for p in pieces if p.dropped]
    assert len(marked) - legend == len(dropped)
    for segment, piece in zip(marked[legend:], dropped, strict=True):
        assert {look for look in looks.values() if getattr(segment.style, look)} == {looks[str(c)] for c in piece.clauses}


def test_a_console_without_colours_still_underlines_and_strikes(seen):
    text = printed(seen, 0, "eksft", no_color=True)
    codes = {code for sequence in re.findall(r"\x1b\[([0-9;]*)m", text) for code in sequence.split(";")}
    assert {"4", "9"} <= codes <= {"0", "1", "2", "4", "9", ""}


def test_several_clauses_are_numbered_behind_the_token(seen):
    text = "".join(s.text for s in segments(seen, 0, "dataset-wide", width=10_000))
    pieces = [p for p in read_sequence(seen, 0, mask="dataset-wide").pieces() if p.dropped]
    for piece in pieces:
        number = "⁺".join("¹²³"[c] for c in piece.clauses)
        assert f"{piece.shown}{number}" in text


def test_where_it_is_no_terminal_it_is_the_plain_text(seen):
    text = printed(seen, 0, "eksft", force_terminal=False, color_system=None, width=500)
    assert "\x1b" not in text
    assert text.rstrip("\n") == plain(seen, 0, "eksft").rstrip("\n")


def test_header_and_legend_say_what_is_seen(seen):
    text = printed(seen, 20, "eksft", no_color=True, width=300)
    tokens, mask = raw(seen, 20, "tokens"), raw(seen, 20, "masks/eksft")
    kept, targets = sum(mask["keep"]), sum(tokens["is_target"])
    counts = f"{targets} targets, {kept} kept ({kept / targets:.1%} of targets), {targets - kept} dropped"
    assert f"{len(tokens['input_ids'])} tokens, {counts}" in text
    for bit, clause in enumerate(("top(entropy, 0.2, per=sequence)", "top(kl, 0.2, per=sequence)")):
        assert re.search(rf"{re.escape(clause)}.*\b{sum(r >> bit & 1 for r in mask['reason'])} dropped", text)
    assert "truncated" in plain(seen, LONG_ROW)
    assert "truncated" not in text


@pytest.mark.parametrize("row", [1, 20])
def test_details_give_each_token_its_own_line_of_numbers(seen, row):
    stored, tokens = raw(seen, row, "stats/warm"), raw(seen, row, "tokens")
    for text in (plain(seen, row, "eksft", details=True), printed(seen, row, "eksft", True, no_color=True, width=200)):
        lines = [line for line in text.split("\n") if re.match(r"(\x1b\[\d*m)*\s*\d+\b.*(context|kept|dropped)", line)][
            -len(tokens["input_ids"]) :
        ]
        assert len(lines) == len(tokens["input_ids"])
        for index, line in enumerate(lines):
            for column in ("entropy", "kl"):
                value = stored[column][index]
                assert value is None or f"{value:.4f}" in line
            assert ("context" in line) == (not tokens["is_target"][index])


def test_a_scoring_without_reference_has_no_kl_to_show():
    store = make_store("no-reference", reference=False)
    text = plain(store, 0, details=True)
    assert "entropy" in text
    assert "kl" not in text


def test_the_same_sequence_whatever_the_parts():
    whole = make_store("one-part", part_tokens=1_000_000)
    assert whole.part_count == 1
    for row in (0, 12, 34):
        assert plain(whole, row) == plain(store_with_masks(), row)


@pytest.mark.parametrize("row", [-1, 35, 10**9])
def test_a_row_that_is_not_there(seen, row):
    with pytest.raises(InputError, match="0 to 34"):
        plain(seen, row)


def test_a_mask_or_scoring_that_is_not_there(seen):
    with pytest.raises(StoreError, match="did you mean 'eksft'"):
        read_sequence(seen, 0, mask="ekfst")
    with pytest.raises(StoreError, match="no scoring 'wram'"):
        read_sequence(seen, 0, scoring="wram")


PROTECTIONS = [
    "top(entropy, 0.3)",
    "bottom(kl, 25)",
    "percent_rank(entropy) >= 0.8 or top(kl, 3, per=role)",
    "top(entropy, 0.2, per=sequence) and not random(0.5, seed=2)",
    "is_end_of_turn",
    "",
]


@pytest.mark.parametrize("protect", PROTECTIONS)
def test_what_is_marked_as_protected_is_what_the_mask_spared(tmp_path, protect):
    """Values are full of ties, and a rule that drops all the others shows what was spared: all that is kept."""
    store = random_store(tmp_path / "store", sequences=80, seed=9, rows_per_part=9)
    manifest = build_mask(store, Rule(drop="entropy >= 0", protect=protect), "all-else").manifest
    marked = 0
    for number in range(80):
        view = read_sequence(store, number, mask="all-else")
        assert view.protected.tolist() == view.keep.tolist()
        marked += int(view.protected.sum())
    assert marked == manifest.protected == manifest.kept
    preview = open_preview(store, "warm", Rule(drop="entropy >= 0", protect=protect).columns)
    outcome = preview.decide(Rule(drop="entropy >= 0", protect=protect))
    for number in (0, 40, 79):
        assert preview.view(outcome, number).protected.tolist() == read_sequence(store, number, mask="all-else").keep.tolist()


def test_bare_names_of_a_protection_mean_the_scoring_that_the_mask_was_made_with(tmp_path):
    store = random_store(tmp_path / "store", sequences=40, seed=9, rows_per_part=9)
    add_scoring(store, "later", np.negative)
    rule = Rule(drop="entropy < 100 and later.kl < 100", protect="top(entropy, 0.3)")
    build_mask(store, rule, "both", scoring="warm")
    for number in range(40):
        view = read_sequence(store, number, mask="both")
        assert view.scoring == "warm"
        assert view.protected.tolist() == view.keep.tolist()


def test_where_the_statistics_are_others_now_it_is_said_that_protection_is_not_known(tmp_path):
    store = random_store(tmp_path / "store", sequences=20, seed=9, rows_per_part=9)
    build_mask(store, Rule(drop="entropy >= 0", protect="top(entropy, 0.3)"), "mine")
    edit_manifest(store.path / "stats" / "warm", fingerprint="0" * 32)
    view = read_sequence(Store(store.path), 1, mask="mine")
    assert not view.protected.any()
    assert view.caveat == "which tokens are protected is not known: scoring warm is not the one that the mask was made from"
    assert origin(view).endswith(view.caveat)
