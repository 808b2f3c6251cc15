"""Results show themselves: the numbers are theirs, and nothing of the data acts on a notebook or a terminal."""

import io
import json
import re
import shutil
from typing import get_args

import pytest
from inspect_fixtures import HOSTILE_ROWS, copy_of_store, edit_manifest
from rich.console import Console
from test_report import Page, dropped_on_disk, targets_on_disk

from tokenstats import Store, compare, sweep
from tokenstats.inspect.audit.audit import Share, audit
from tokenstats.inspect.render.blocks import Block, Cell, Facts, Line, Look, Note, Numbers, Shares, Table, Words
from tokenstats.inspect.render.html import blocks_html
from tokenstats.inspect.render.html_tokens import token_view
from tokenstats.inspect.render.notebook import blocks_of
from tokenstats.inspect.render.terminal import OnTerminal, plain_text
from tokenstats.inspect.tokens.detokenize import visible
from tokenstats.inspect.tokens.sequence import read_sequence
from tokenstats.shown import Shown

TAGS = {"style", "div", "p", "span", "b", "i", "code", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td"}
RESULTS = {
    "store": lambda store: store,
    "scoring": lambda store: store.scorings["warm"],
    "mask": lambda store: store.masks["dataset-wide"],
    "audit": lambda store: audit(store, "eksft"),
    "audit of plain SFT": lambda store: audit(store),
    "comparison": lambda store: compare(store, "eksft", "random"),
    "sweep": lambda store: sweep(store, {"drop": "top(entropy, f) or kl > 6"}, {"f": ["0.1", "0.3"]}),
    "sequence": lambda store: read_sequence(store, 20, mask="eksft"),
}
HOSTILE = "</style><script>alert(1)</script><img src=x onerror='alert(2)'>\x1b[31m\x07\u202e"


@pytest.fixture(scope="module", params=RESULTS)
def shown(request, seen) -> Shown:
    return RESULTS[request.param](seen)


def check_harmless(html: str, text: str) -> None:
    """Nothing in them runs, fetches, or moves a cursor."""
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert {name for _, attributes in page.tags for name in attributes} <= {"class", "style", "dir", "data-tip"}
    assert all(re.fullmatch(r"width:\d+px", a["style"]) for _, a in page.tags if "style" in a)
    assert not [c for c in text if c != "\n" and (c < " " or "\x7f" <= c <= "\x9f" or c in "\u202e\u202c\u2066")]


def test_a_notebook_cell_has_its_styles_once_and_nothing_that_runs_or_is_fetched(shown):
    html = shown._repr_html_()
    check_harmless(html, str(shown))
    assert html.count("<style>") == html.count("</style>") == 1
    assert not re.search(r"url\(|@import|https?:", html)
    assert type(html) is str


def test_what_print_shows_is_what_a_terminal_without_colours_shows(shown):
    screen = Console(file=io.StringIO(), width=10_000)
    screen.print(shown)
    lines = [line.rstrip() for line in screen.file.getvalue().rstrip().split("\n")]
    assert "\n".join(lines) == str(shown).rstrip()


def test_a_terminal_with_colours_shows_colours(shown):
    screen = Console(file=io.StringIO(), width=10_000, force_terminal=True, color_system="truecolor")
    screen.print(shown)
    assert "\x1b[" in screen.file.getvalue()


def test_for_people_who_debug_a_result_is_its_fields_without_the_store(shown):
    assert repr(shown).startswith(f"{type(shown).__name__}(")
    assert "store=Store" not in repr(shown)
    assert "array(" not in repr(shown)
    assert len(repr(shown)) < 5_000, "no numbers of every token, no tables"


def test_a_store_says_what_is_in_it(seen):
    for said in (str(seen), Page(seen._repr_html_()).text):
        for number in (seen.manifest.sequences, seen.manifest.tokens, seen.manifest.targets):
            assert f"{number:,}" in said
        for column in ("entropy", "kl", "logprob"):
            assert f"{targets_on_disk(seen, column).mean():.4f}" in said
        for mask in seen.masks:
            assert re.search(rf"{mask}\s*{dropped_on_disk(seen, mask).mean():.1%}".replace("%", r"\s*%"), said)


def test_a_store_without_scorings_and_masks_says_how_to_make_them(tmp_path):
    own = copy_of_store(tmp_path)
    shutil.rmtree(own.path / "masks")
    shutil.rmtree(own.path / "stats")
    assert "tokenstats compute" in str(own)
    assert "tokenstats mask" in str(own)


def test_a_mask_says_what_it_drops_and_by_which_clause(seen):
    mask = seen.masks["dataset-wide"]
    dropped = dropped_on_disk(seen, "dataset-wide")
    for said in (str(mask), Page(mask._repr_html_()).text):
        assert f"{dropped.sum():,} ({dropped.mean():.1%})" in said
        for clause in mask.manifest.clauses:
            assert clause.text in said
            assert f"{clause.dropped / len(dropped):.1%}" in said


def test_an_audit_says_every_check_in_words(seen):
    found = audit(seen, "dataset-wide")
    for said in (str(found), Page(found._repr_html_()).text):
        for finding in found.findings:
            assert finding.message in said
        for number in (found.targets, found.kept, found.targets - found.kept):
            assert f"{number:,}" in said


def test_a_comparison_needs_nothing_else_to_be_shown(seen):
    found = compare(seen, "eksft", "dataset-wide")
    for said in (str(found), Page(found._repr_html_()).text):
        for number in (found.both_dropped, found.only_a_dropped, found.only_b_dropped, found.both_kept):
            assert f"{number:,}" in said
        assert f"{found.jaccard:.3f}" in said
        for token, count in (*found.only_a, *found.only_b):
            text = re.escape(read_sequence(seen, 0).decoder.visible(token))
            assert re.search(rf"{text}\s*{count:,}", said)


def test_plain_values_are_those_of_the_command(cli, seen):
    found = compare(seen, "eksft", "random")
    assert json.loads(cli("compare", seen.path, "eksft", "random", "--json")[1]) == json.loads(json.dumps(found.to_dict()))
    tried = sweep(seen, {"drop": "top(entropy, f)"}, {"f": ["0.1", "0.3"]})
    printed = json.loads(cli("sweep", seen.path, "--drop", "top(entropy, f)", "--vary", "f=0.1,0.3", "--json")[1])
    assert printed == json.loads(json.dumps({"store": str(seen.path), **tried.to_dict()}))


@pytest.mark.parametrize("row", HOSTILE_ROWS.values())
def test_a_sequence_is_shown_to_the_letter(seen, row):
    view = read_sequence(seen, row, mask="dataset-wide")
    check_harmless(view._repr_html_(), str(view))
    html = str(token_view(view))
    start, end = html.index('<div class="ts-tokens"'), html.rindex("</div></div>")
    spaces_as_text = "".join(p.text if not p.text.strip(" ") else visible(p.text, newline="\n") for p in view.pieces())
    assert Page(html[start:end]).text == spaces_as_text.removesuffix("\n")


def test_names_of_files_and_notes_of_models_cannot_harm(tmp_path):
    own = copy_of_store(tmp_path)
    scoring = own.scorings["warm"].manifest
    edit_manifest(own.path / "stats" / "warm", model={"source": HOSTILE}, notes=[HOSTILE])
    edit_manifest(own.path, dataset={"source": HOSTILE})
    edit_manifest(own.path / "masks" / "eksft", clauses=[{"text": HOSTILE, "dropped": 1}] * 2)
    hurt = Store(own.path)
    assert hurt.scorings["warm"].manifest.model.source != scoring.model.source
    results = [hurt, hurt.scorings["warm"], hurt.masks["eksft"], audit(hurt, "eksft"), compare(hurt, "eksft", "random")]
    for thing in results:
        check_harmless(thing._repr_html_(), str(thing))
    assert all("alert(1)" in said for thing in results[:4] for said in (str(thing), Page(thing._repr_html_()).text))


BLOCKS = [
    Line(HOSTILE, HOSTILE),
    Note(HOSTILE),
    Note(HOSTILE, Look.CODE),
    Numbers([(HOSTILE, HOSTILE)]),
    Facts([(HOSTILE, HOSTILE)]),
    Words(HOSTILE, [(HOSTILE, HOSTILE)]),
    Shares(HOSTILE, [Share(HOSTILE, 4, 1)], numbered=True),
    Shares(HOSTILE, [Share(HOSTILE, 4, 1)]),
    *(Table(HOSTILE, [HOSTILE], [[Cell(HOSTILE, look, after=HOSTILE, bar=0.5)]]) for look in Look),
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: type(block).__name__)
def test_every_block_shows_hostile_text_as_text(block):
    html, text = str(blocks_html(block)), plain_text(OnTerminal([block]))
    check_harmless(html, text)
    for said in (Page(html).text, text):
        assert "</style><script>alert(1)</script><img src=x onerror='alert(2)'>" in said


def test_every_kind_of_block_is_tried():
    assert {type(block) for block in BLOCKS} == set(get_args(Block))


def test_a_new_result_is_shown_once_its_blocks_are_known():
    class Pair(Shown):
        pass

    blocks_of.register(Pair, lambda pair: [Facts([("left", "1 < 2")])])
    assert str(Pair()) == "left  1 < 2"
    assert "1 &lt; 2" in Pair()._repr_html_()


def test_what_nobody_has_said_how_to_show_is_an_error():
    class Unknown(Shown):
        pass

    with pytest.raises(TypeError, match="how a Unknown is shown"):
        str(Unknown())
