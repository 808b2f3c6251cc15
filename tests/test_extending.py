"""docs/EXTENDING.md, done: each test copies the package, adds one thing by the edits that the page promises, and uses it.

The edits are what a newcomer would write; nothing else of the copy is touched.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from disk import write_jsonl
from naive_presets import per_sequence

import tokenstats
from tokenstats import Rule, Store, audit, build_mask
from tokenstats.schema import STATISTICS
from tokenstats.training.forms import COLUMNS
from tokenstats.training.guides import FORMS, GUIDES

DOCS = Path(__file__).parents[1] / "docs"


class Copy:
    """A copy of the package that can be edited and run."""

    def __init__(self, folder: Path):
        self.folder, self.package = folder, folder / "tokenstats"
        shutil.copytree(Path(tokenstats.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))

    def insert(self, file: str, text: str, after: str) -> None:
        """Insert lines behind the one line that begins with ``after``, whatever its indent."""
        lines = (self.package / file).read_text(encoding="utf-8").splitlines(keepends=True)
        (place,) = (i for i, line in enumerate(lines) if line.lstrip().startswith(after))
        (self.package / file).write_text("".join([*lines[: place + 1], text, *lines[place + 1 :]]), encoding="utf-8")

    def append(self, file: str, text: str) -> None:
        with (self.package / file).open("a", encoding="utf-8") as end:
            end.write(text)

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Run a command of the copy; returns (exit status, stdout, stderr)."""
        return self._python("-m", "tokenstats", *map(str, arguments))

    def must(self, *arguments: object) -> str:
        """What a command that succeeds prints."""
        status, out, err = self.run(*arguments)
        assert status == 0, err
        return out

    def python(self, code: str) -> str:
        """What code that imports the copy prints."""
        status, out, err = self._python("-c", code)
        assert status == 0, err
        return out

    def _python(self, *arguments: str) -> tuple[int, str, str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "copy")


@pytest.fixture
def store(scored: Store, tmp_path: Path) -> Store:
    """A store that the package made as it is, to write masks into."""
    shutil.copytree(scored.path, tmp_path / "store")
    return Store(tmp_path / "store")


def kept(store: Path, mask: str) -> list[list[bool]]:
    return [flags for part in sorted((store / "masks" / mask).glob("*.parquet")) for flags in lists(part, "keep")]


def lists(part: Path, column: str) -> list[list]:
    return pq.read_table(part)[column].to_pylist()


def test_a_rule_function_is_an_entry_of_builtins(copy: Copy, store: Store):
    copy.insert("masking/language/builtins.py", '    "square": Function(1, np.square),\n', after='"sqrt": Function')

    copy.must("mask", store.path, "--drop", "square(entropy) > 0.25", "--name", "new")

    build_mask(store, Rule(drop="entropy > 0.5"), "expected")  # an entropy is at least 0
    assert kept(store.path, "new") == kept(store.path, "expected")
    status, _, err = copy.run("mask", store.path, "--drop", "square(entropy, 2) > 0.25", "--name", "wrong")
    assert (status, "square takes 1 value(s), got 2" in err) == (2, True)


def add_statistic(copy: Copy) -> None:
    line = '    Statistic("renyi", pa.float32(), "nats", "Rényi entropy of order 2, -log Σ p²"),\n'
    copy.insert("schema.py", line, after='Statistic("sum_p2"')
    from_sums = '        "renyi": (2 * log_total - sums.squares.log())[0],\n'
    copy.insert("scoring/reductions/by_torch.py", from_sums, after='"sum_p2":')
    from_probabilities = '    columns["renyi"] = -p.square().sum(-1).log()\n'
    copy.insert("scoring/reductions/whole_logits.py", from_probabilities, after='columns["top1_logprob"]')


def test_a_statistic_is_a_line_of_the_schema_and_its_formula_from_sums_and_from_probabilities(
    copy: Copy, chats: list[dict], base: str, warmup: str, tmp_path: Path
):
    add_statistic(copy)

    data, new = write_jsonl(tmp_path / "chats.jsonl", chats[:4]), tmp_path / "new"
    copy.must("compute", data, "--model", warmup, "--reference", base, "--store", new)

    (part,) = (new / "stats" / "warmup").glob("*.parquet")
    found, sum_p2 = (np.concatenate([np.array(row, float) for row in lists(part, name)]) for name in ("renyi", "sum_p2"))
    np.testing.assert_allclose(found, -np.log(sum_p2), atol=1e-6, rtol=1e-6)
    assert Store(new).scorings["warmup"].manifest.means["renyi"] == pytest.approx(np.nanmean(found), rel=1e-6)
    copy.must("mask", new, "--drop", "renyi > 0.5", "--protect", "", "--name", "new")
    assert Store(new).masks["new"].manifest.dropped == np.count_nonzero(found > 0.5) > 0
    of_whole_logits = copy.python("""
import torch
from tokenstats.scoring.reductions.whole_logits import token_statistics
print(token_statistics(torch.tensor([[1.0, 2, 4]]).log(), torch.tensor([0]))["renyi"].item())
""")
    assert float(of_whole_logits) == pytest.approx(np.log(49 / 21))  # p = 1/7, 2/7, 4/7


def test_scorings_made_before_a_statistic_are_read_as_they_are_and_do_not_claim_it(copy: Copy, store: Store):
    add_statistic(copy)

    copy.must("show", store.path, "--row", "0")
    copy.must("audit", store.path)
    status, _, err = copy.run("mask", store.path, "--drop", "renyi > 0.5", "--name", "new")
    assert (status, "scoring 'warmup' does not hold: it was made before there was one" in err) == (2, True)


def test_an_audit_check_is_a_function(copy: Copy, store: Store):
    copy.append(
        "inspect/audit/store_checks.py",
        '''

@check(Made.ALWAYS)
def enough_sequences(case: Case) -> Answer:
    """fewer than 100 sequences: warning"""
    there = case.store.manifest.sequences
    return Answer(WARNING if there < 100 else OK, f"{there} sequences", there)
''',
    )

    findings = json.loads(copy.must("audit", store.path, "--json"))["findings"]
    assert [(f["verdict"], f["message"]) for f in findings if f["name"] == "enough_sequences"] == [("warning", "60 sequences")]
    status, _, err = copy.run("audit", store.path, "--fail-on", "enough_sequences")
    assert (status, err) == (1, "failed: enough_sequences (warning)\n")
    assert [f["name"] for f in findings if f["name"] != "enough_sequences"] == [f.name for f in audit(store).findings]


def test_an_export_form_is_an_entry_of_forms_and_a_column_one_of_columns(copy: Copy, store: Store, tmp_path: Path):
    form = '    "completion-mask": Form(("input_ids", "completion_mask"), read_by=("trl",)),\n'
    copy.insert("training/guides.py", form, after="LOSS_MASK: Form(")
    column = '    "completion_mask": Column(pa.int8(), "int8, 1: learned", lambda part: part.keep.astype(np.int8)),\n'
    copy.insert("training/forms.py", column, after="COLUMNS = {")

    build_mask(store, Rule(drop="top(entropy, 0.2)"), "some")
    copy.must("export", store.path, "--mask", "some", "--form", "completion-mask", "--to", tmp_path / "new")
    copy.must("export", store.path, "--mask", "some", "--form", "loss-mask", "--to", tmp_path / "known")

    new, known = (pq.read_table(tmp_path / name / "data") for name in ("new", "known"))
    assert new.column_names == ["input_ids", "completion_mask"]
    assert new.rename_columns(["input_ids", "loss_mask"]).equals(known)
    assert "- `completion_mask`: int8, 1: learned\n" in (tmp_path / "new" / "README.md").read_text()


def test_a_preset_is_a_file(copy: Copy, store: Store):
    file = copy.package / "masking" / "presets" / "surprising.toml"
    file.write_text('drop = "top(nll, 0.2, per=sequence)"\nprotect = ""\n')

    copy.must("mask", store.path, "--rule", "surprising", "--name", "new")

    tables = store.aligned({"tokens": ["is_target"], "stats/warmup": ["logprob"]})
    rows = [row for of in tables for row in of["tokens"].append_column("logprob", of["stats/warmup"]["logprob"]).to_pylist()]
    dropped = per_sequence(rows, lambda row, t: -row["logprob"][t])
    expected = [[flag and t > 0 and (i, t) not in dropped for t, flag in enumerate(r["is_target"])] for i, r in enumerate(rows)]
    assert kept(store.path, "new") == expected


@pytest.mark.parametrize("statistic", [s.name for s in STATISTICS])
def test_the_page_of_the_store_has_every_statistic(statistic: str):
    cells = re.findall(r"^\| (`.*?`) \|", (DOCS / "STORE.md").read_text(encoding="utf-8"), re.M)
    assert f"`{statistic}`" in ", ".join(cells).split(", "), "docs/STORE.md, The numbers: it needs a row there"


@pytest.mark.parametrize("form", FORMS)
def test_the_page_of_exports_says_of_every_form_what_it_holds_and_who_reads_it(form: str):
    page = (DOCS / "EXPORTS.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{form}` \| (.*) \| (.*) \|$", page, re.M)
    assert row, "docs/EXPORTS.md: each form needs a row | `form` | columns | read by | there"
    assert re.findall(r"`(\w+)`", row[1]) == list(FORMS[form].columns)
    assert [trainer for trainer in FORMS[form].read_by if GUIDES[trainer].title not in row[2]] == []


def test_every_column_and_trainer_of_a_form_is_known():
    assert {name for form in FORMS.values() for name in form.columns} <= set(COLUMNS)
    assert {trainer for form in FORMS.values() for trainer in form.read_by} == set(GUIDES)


def test_the_page_of_extensions_names_files_that_are_there():
    root = DOCS.parent
    paths = re.findall(r"`((?:tokenstats|tests|docs)/[\w./-]*)`", (DOCS / "EXTENDING.md").read_text(encoding="utf-8"))
    assert len(paths) > 10
    assert [path for path in paths if not (root / path).exists()] == []
