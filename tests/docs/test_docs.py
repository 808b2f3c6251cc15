"""What the README and docs/ show is what the commands print."""

import re

import pytest

from pipelines.run_docs import ROOT, blocks_of, make_store, prepare, run_notebook, run_page, same

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if list(blocks_of(page.read_text(encoding="utf-8")))]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_what_stands_there_is_what_is_printed(page, store, tmp_path):
    text = page.read_text(encoding="utf-8")
    prepare(tmp_path, store)
    _, differ = run_page(text, tmp_path)
    assert not differ, "\n\n".join(differ)


def test_the_notebook_runs_and_shows_what_stands_there(store, tmp_path):
    prepare(tmp_path, store)
    notebook, differ = run_notebook(ROOT / "docs" / "quickstart.ipynb", tmp_path)
    assert not differ, "\n\n".join(differ)
    pages = [out["data"] for cell in notebook.cells for out in cell.get("outputs", []) if "text/html" in out.get("data", {})]
    assert len(pages) >= 6, "the store, two rows, an audit, a sweep and a comparison show themselves"
    assert not any("<script" in page["text/html"] for page in pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)", text):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target.read_text(encoding="utf-8")), link


def anchors_of(text: str) -> set[str]:
    """Those that GitHub gives the headings of a page: its letters in lower case, hyphens for blanks, and nothing else."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        ("mean 0.1234, 5 rows", "mean 0.1233, 5 rows", True),
        ("mean 0.1234", "mean 0.1334", False),
        ("1,234 rows", "1,235 rows", True),
        ("12 rows", "14 rows", False),
        ("a\nb\nc", "a\n…\nc", True),
        ("a\nb\nd", "a\n…\nc", False),
        ("dropped", "kept", False),
    ],
)
def test_numbers_may_round_otherwise_and_words_may_not_differ(found, expected, equal):
    assert same(found, expected) is equal
