"""The report: counts that add up, a page that cannot be harmed by the data, and folders that are never half written."""

import hashlib
import re
import shutil
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from inspect_fixtures import CHINESE, HOSTILE_ROWS, IMAGE, SCRIPT, SMILE, copy_of_store, make_store, store_with_masks

from tokenstats import Rule, Store, build_mask
from tokenstats.errors import InputError, StoreError
from tokenstats.inspect.audit.audit import DroppedToken, audit
from tokenstats.inspect.histograms import BINS, measure
from tokenstats.inspect.render import figures
from tokenstats.inspect.render.html_tokens import details, token_view
from tokenstats.inspect.render.scripts import script
from tokenstats.inspect.report import report
from tokenstats.inspect.threshold_lines import cuts
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.inspect.tokens.sequence import read_sequence

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "nav", "div", "a", "main", "section", "footer", "h1", "h2", "h3", "p"),
    *("dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "code", "span", "i", "b", "figure", "img", "figcaption"),
    "script",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on all masks; tests do not change it."""
    return report(store_with_masks(), tmp_path_factory.mktemp("report") / "out")


class Page(HTMLParser):
    """What a browser would make of it: elements, attributes, and the text of the token views."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(str(html))  # of a Markup each slice would be escaped again

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def targets_on_disk(store: Store, column: str) -> np.ndarray:
    """The column's values at the targets, read in plain Python."""
    values = []
    for part in range(store.part_count):
        flags = store.part("tokens", part)["is_target"].to_pylist()
        lists = store.part("stats/warm", part)[column].to_pylist()
        values += [v for row, chosen in zip(lists, flags, strict=True) for v, c in zip(row, chosen, strict=True) if c]
    return np.array(values)


def dropped_on_disk(store: Store, mask: str) -> np.ndarray:
    flags = []
    for part in range(store.part_count):
        targets, keeps = (
            store.part("tokens", part)["is_target"].to_pylist(),
            store.part(f"masks/{mask}", part)["keep"].to_pylist(),
        )
        flags += [not k for row, keep in zip(targets, keeps, strict=True) for t, k in zip(row, keep, strict=True) if t]
    return np.array(flags)


@pytest.mark.parametrize("column", ["entropy", "kl"])
def test_histograms_count_every_target_once_in_its_bin(seen, column):
    found = measure(seen, "warm", ["eksft"])
    values, edges = targets_on_disk(seen, column), found.edges(column)
    inside = np.clip(values, edges[0], edges[-1] * (1 - 1e-9))
    assert (found.counts(column) == np.histogram(inside, edges)[0]).all()
    assert (found.counts(column, "eksft") == np.histogram(inside[dropped_on_disk(seen, "eksft")], edges)[0]).all()
    assert found.counts(column).sum() == found.targets == seen.manifest.targets


def test_counts_by_place_add_up_to_what_the_mask_drops(seen):
    found = measure(seen, "warm", list(seen.masks))
    for mask in seen.masks:
        counts, dropped = found.masks[mask], int(dropped_on_disk(seen, mask).sum())
        assert counts.dropped.sum() == counts.by_tenth[:, 1].sum() == dropped
        assert counts.by_tenth[:, 0].sum() == seen.manifest.targets
        assert (counts.by_position[:, 1] <= counts.by_position[:, 0]).all()


def test_counts_do_not_depend_on_the_parts(seen):
    whole = make_store("one-part", part_tokens=1_000_000)
    a, b = measure(whole, "warm", []), measure(seen, "warm", [])
    # float32 rounding of another batch may move a value over an edge, never far
    assert np.abs(np.cumsum(a.counts("entropy")) - np.cumsum(b.counts("entropy"))).max() <= 2


def test_quantiles_by_place_are_right_to_a_bin(seen):
    found = measure(seen, "warm", [])
    first = []
    for part in range(seen.part_count):
        flags, values = seen.part("tokens", part)["is_target"].to_pylist(), seen.part("stats/warm", part)["entropy"].to_pylist()
        for flag, value in zip(flags, values, strict=True):
            first += [v for i, v in enumerate(value) if flag[i] and not flag[i - 1]]
    width = np.diff(found.edges("entropy")).max()
    low, middle, high = found.quantiles("entropy", (0.1, 0.5, 0.9))[0]
    for got, share in ((low, 0.1), (middle, 0.5), (high, 0.9)):
        nearby = np.quantile(first, share, method="lower"), np.quantile(first, share, method="higher")
        assert nearby[0] - width <= got <= nearby[1] + width
    assert np.isnan(found.quantiles("entropy", (0.5,))[-1]) or found.by_position["entropy"][-1].sum() > 0


def test_a_bin_for_what_is_too_small_or_too_large():
    found = measure(store_with_masks(), "warm", [])
    edges = found.edges("kl")
    assert len(edges) == BINS + 1
    assert (np.diff(edges) > 0).all()
    assert edges[1] == pytest.approx(1e-6)
    assert edges[-2] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("rule", "thresholds", "expected"),
    [
        ("entropy > 2 or kl >= 0.5", {}, {"entropy": [2.0], "kl": [0.5]}),
        ("top(entropy, 0.2)", {"top(entropy, 0.2)": 3.5}, {"entropy": [3.5], "kl": []}),
        ("top(entropy, 0.2, per=sequence)", {}, {"entropy": [], "kl": []}),
        ("kl > quantile(kl, 0.9)", {"quantile(kl, 0.9)": 1.25}, {"entropy": [], "kl": [1.25]}),
        ("1 < entropy < 2", {}, {"entropy": [1.0, 2.0], "kl": []}),
        ("top(kl / entropy, 0.2) or nll > 1", {"top(kl / entropy, 0.2)": 9.0}, {"entropy": [], "kl": []}),
        ("warm.entropy > 1 or cold.entropy > 2", {}, {"entropy": [1.0], "kl": []}),
    ],
)
def test_cuts_are_the_thresholds_over_the_whole_dataset(rule, thresholds, expected):
    assert cuts(Rule(drop=rule), thresholds, "warm") == expected


def test_every_picture_is_there_and_nothing_comes_from_elsewhere(written):
    html = written.read_text()
    page = Page(html)
    sources = [i["src"] for i in page.all("img")]
    assert len(sources) == len(set(sources)) == 3 + 1 + 3 * 3
    for source in sources:
        assert (written.parent / source).read_bytes().startswith(b"\x89PNG")
    assert sorted(sources) == sorted(p.relative_to(written.parent).as_posix() for p in written.parent.rglob("*.png"))
    anchors = {attributes["id"] for tag, attributes in page.tags if "id" in attributes}
    assert all(a["href"][0] == "#" and a["href"][1:] in anchors for a in page.all("a"))
    assert not re.search(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", html)
    assert all(i["alt"] and int(i["width"]) > 0 and int(i["height"]) > 0 for i in page.all("img"))


def test_the_data_cannot_add_anything_to_the_page(written):
    page = Page(written.read_text())
    assert {tag for tag, _ in page.tags} <= TAGS
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "broken" not in {attributes.get("id") for _, attributes in page.tags}
    # nothing runs but our own script, whose digest the page names; the rest is data
    *data, code = page.all("script")
    assert all(attributes == {"type": "application/json"} for attributes in data)
    digest = b64encode(hashlib.sha256(script("page.js").encode()).digest()).decode()
    assert code == {"type": "module"}
    assert f"script-src 'sha256-{digest}';" in page.all("meta")[-1]["content"]


@pytest.mark.parametrize("text", [SCRIPT, IMAGE])
def test_hostile_text_is_shown_as_text(seen, text):
    html = token_view(read_sequence(seen, HOSTILE_ROWS[text], mask="eksft"))
    page = Page(html)
    assert text in page.text
    assert {tag for tag, _ in page.tags} <= {"div", "span", "b", "code", "i"}


@pytest.mark.parametrize("row", range(0, 35, 3))
def test_the_token_view_shows_every_token_with_its_decision(seen, row):
    view = read_sequence(seen, row, mask="dataset-wide")
    page = Page(token_view(view))
    spans = [a for a in page.all("span") if "data-tip" in a]
    pieces = view.pieces()
    assert len(spans) == len(pieces)
    for span, piece in zip(spans, pieces, strict=True):
        tip = span["data-tip"].replace("\N{ZERO WIDTH SPACE}", "")
        classes = set(span["class"].split())
        assert ("d" in classes) == piece.dropped
        assert ("x" in classes) == (not piece.is_target)
        assert tip == details(piece, view)
        for token in piece.tokens:
            assert f"token {token.index} " in tip
            assert f"id {token.id} " in tip
            if token.is_target:
                assert f"{token.statistics['entropy']:.4f}" in tip
            for clause in token.clauses:
                assert f"dropped by {clause + 1}  {view.clauses[clause]}" in tip


def test_colouring_by_a_statistic_keeps_what_is_dropped_recognisable(seen):
    view = read_sequence(seen, 20, mask="eksft")
    plain, heat = (Page(token_view(view, colour_by=c)) for c in (None, "kl"))
    decorated = [
        [set(a["class"].split()) & {"d", "c0", "c1", "cm"} for a in p.all("span") if "data-tip" in a] for p in (plain, heat)
    ]
    assert decorated[0] == decorated[1]
    levels = [int(re.search(r"\bh(\d)\b", a["class"] + " h0")[1]) for a in heat.all("span") if "data-tip" in a]
    values = [max((t.statistics.get("kl", 0.0) for t in p.tokens), default=0.0) for p in view.pieces()]
    assert sorted(levels) == [level for _, level in sorted(zip(values, levels, strict=True), key=lambda x: (x[0], x[1]))]
    assert max(levels) == 9


def test_a_long_sequence_says_how_much_is_not_shown(seen):
    html = token_view(read_sequence(seen, 20), most=10)
    shown = [a for a in Page(html).all("span") if "data-tip" in a]
    assert len(shown) == 10
    assert f"{len(read_sequence(seen, 20)) - 10} more tokens are not shown" in html


def test_the_most_likely_alternatives_are_in_the_details():
    store = make_store("with-alternatives", topk=3)
    view = read_sequence(store, 20)
    piece = next(p for p in view.pieces() if p.is_target)
    ids = piece.tokens[0].statistics["topk_ids"]
    line = next(line for line in details(piece, view).split("\n") if line.startswith("likeliest"))
    assert [Decoder(store).visible(i) for i in ids] == line.split()[1::2]


def test_numbers_on_the_page_are_the_masks_own(written, seen):
    text = re.sub(r"\s+", " ", Page(written.read_text()).text)
    for mask in seen.masks:
        manifest = seen.masks[mask].manifest
        dropped = manifest.targets - manifest.kept
        assert f"{manifest.kept:,}{dropped:,}{dropped / manifest.targets:.1%}" in text


def test_a_former_report_is_replaced_and_nothing_else_is(seen, tmp_path):
    to = tmp_path / "out"
    report(seen, to, masks=["eksft", "random"])
    first = {p.name for p in to.rglob("*.png")}
    report(seen, to, masks=["eksft"])
    assert {p.name for p in to.rglob("*.png")} < first
    (to / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        report(seen, to, masks=["eksft"])
    assert (to / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_left_alone(seen, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "index.html").write_text("mine")
    with pytest.raises(InputError, match="not a report"):
        report(seen, tmp_path / "thesis")
    with pytest.raises(InputError, match="is a file"):
        report(seen, tmp_path / "thesis" / "index.html")
    assert (tmp_path / "thesis" / "index.html").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert report(seen, tmp_path / "empty", masks=[]).exists()


def test_a_report_that_fails_leaves_the_former_one(seen, tmp_path, monkeypatch):
    page = report(seen, tmp_path / "out", masks=["eksft"])
    before = page.read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "dropped_tokens_figure", fail)
    with pytest.raises(KeyboardInterrupt):
        report(seen, tmp_path / "out", masks=["random"])
    assert page.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_without_a_reference_there_is_no_kl_and_without_a_scoring_no_statistics(tmp_path):
    alone = make_store("no-reference", reference=False)
    html = report(alone, tmp_path / "alone").read_text()
    assert "img/distribution.png" in html
    assert "img/joint.png" not in html
    bare = copy_of_store(tmp_path)
    shutil.rmtree(bare.path / "stats")
    shutil.rmtree(bare.path / "masks")
    build_mask(bare, Rule(drop="position < 3"), "start")
    html = report(bare, tmp_path / "bare").read_text()
    assert "img/place.png" in html
    assert "img/distribution" not in html


def test_a_mask_or_scoring_that_is_not_there_leaves_no_folder(seen, tmp_path):
    for options in ({"masks": ["nobody"]}, {"scoring": "nobody"}):
        with pytest.raises(StoreError, match=r"no (mask|scoring) 'nobody'"):
            report(seen, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_labels_without_a_glyph_or_with_dollars_draw_without_a_warning(tmp_path):
    texts = ["$x_1$", "$", "\\frac{1}{2}", CHINESE, SMILE, "\N{COMBINING ACUTE ACCENT}", "⟨F0⟩", "\U000f0000", "a" * 100]
    tokens = [DroppedToken(i, text, 10, 5) for i, text in enumerate(texts)]
    figure = figures.dropped_tokens_figure(tokens)
    figure.savefig(tmp_path / "tokens.png")  # warnings are errors here
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "$x_1$"
    assert len(labels) == len(texts)
    assert all(len(label) <= 24 for label in labels)


def test_figures_of_no_token_at_all(seen, tmp_path):
    nothing = measure(seen, "warm", [])
    nothing.joint[:] = 0
    for table in nothing.by_position.values():
        table[:] = 0
    pictures = [
        figures.distribution_figure(nothing, None),
        figures.joint_figure(nothing, None),
        figures.profile_figure(nothing),
    ]
    for number, figure in enumerate([*pictures, figures.dropped_tokens_figure([])]):
        figure.savefig(tmp_path / f"{number}.png")
    assert audit(seen).most_dropped == ()


def test_an_unlikely_token_is_not_said_to_be_impossible():
    from tokenstats.inspect.render.html_tokens import _probability

    assert [_probability(x) for x in (0.0, -5.0, -17.0, None)] == ["100.00%", "0.67%", "4.1e-08", ""]
