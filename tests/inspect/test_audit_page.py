"""docs/AUDIT.md against what the audit really says: every key, every type, every check; and the gate that rests on them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from inspect_fixtures import copy_of_store, edit_manifest, store_with_masks

from tokenstats import Rule, Store, build_mask
from tokenstats.errors import InputError
from tokenstats.inspect.audit.audit import AUDIT_SCHEMA, Audit, audit
from tokenstats.inspect.audit.checks import VERDICTS
from tokenstats.inspect.audit.gate import Gate
from tokenstats.inspect.audit.run_checks import CHECKS
from tokenstats.schema import TOKEN_CLASSES

PAGE = (Path(__file__).parents[2] / "docs" / "AUDIT.md").read_text(encoding="utf-8")


def table(title: str) -> list[list[str]]:
    """The cells of the first table below the last heading of that name."""
    section = re.split(rf"^#+ {title}$", PAGE, flags=re.M)[-1]
    lines = re.search(r"(^\|.*\n)+", section, re.M).group().splitlines()[2:]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


OBJECTS = {name: table(name) for name in ("Audit", "Share", "Finding", "LeftOut", "Weights", "Means", "DroppedToken")}
PLAIN = {"string": str, "integer": int, "number": (int, float), "object": dict, "null": type(None)}


def check(value: Any, kind: str, where: str) -> None:
    """Is a value of the type that the page gives it?"""
    options = kind.split(" or ")
    if value is None:
        assert "null" in options, where
        return
    (kind,) = set(options) - {"null"}
    if kind.startswith("list of "):
        assert isinstance(value, list), where
        for item in value:
            check(item, kind.removeprefix("list of "), where)
    elif kind in OBJECTS:
        assert set(value) == {key for key, *_ in OBJECTS[kind]}, where
        for key, of, _ in OBJECTS[kind]:
            check(value[key], of, f"{where}.{key}")
    else:
        assert isinstance(value, PLAIN[kind]), where
        assert not isinstance(value, bool), where


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A mask for each check that not every mask has."""
    own = copy_of_store(tmp_path_factory.mktemp("page"))
    build_mask(own, Rule(drop="entropy > 5", weight="clip(entropy, 0, 1)", min_kept=3), "weighted")
    build_mask(own, Rule(drop="random(0.2, per=sequence)", budget="same as eksft"), "control")
    return own


@pytest.fixture(scope="module")
def audits(store) -> list[Audit]:
    return [audit(store, mask) for mask in (None, *store.masks)]


def test_every_key_has_the_type_that_the_page_gives_it(audits):
    seen: dict[str, set[str]] = {}
    for found in audits:
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        check(plain, "Audit", "audit")
        for key, value in plain.items():
            seen.setdefault(key, set()).add(type(value).__name__ if value != [] else "empty")
    assert all(kinds != {"empty"} for kinds in seen.values()), "each list was checked with something in it"
    assert {"NoneType", "dict"} <= seen["weights"]


def test_the_page_says_of_every_check_what_its_function_says(audits):
    rows = [[name, check.made.value, check.looks_for] for name, check in CHECKS.items()]
    lacks = "\n".join(
        f"| `{name}` | {made} | {what} |" for name, made, what in rows if [name, made, what] not in table("Checks")
    )
    assert table("Checks") == rows, f"docs/AUDIT.md, Checks: a row for each function, in their order; it lacks\n{lacks}"
    made = {finding.name for found in audits for finding in found.findings}
    assert made == set(CHECKS)
    for found in audits:
        places = [list(CHECKS).index(finding.name) for finding in found.findings]
        assert places == sorted(places)


def test_the_page_lists_verdicts_classes_and_the_schema():
    assert [verdict for verdict, _ in table("Verdicts")] == list(VERDICTS)
    assert {name for name, _ in table("Classes of tokens")} == set(TOKEN_CLASSES)
    assert f"version of this description: {AUDIT_SCHEMA}" in PAGE


def test_a_gate_fails_on_its_level_and_on_graver_verdicts(store):
    findings = audit(store, "eksft").findings
    verdicts = {level: {f.verdict for f in Gate.parse(level).failing(findings)} for level in ("note", "warning", "problem")}
    there = {f.verdict for f in findings}
    assert verdicts == {
        "note": there - {"ok"},
        "warning": there - {"ok", "note"},
        "problem": there & {"problem"},
    }
    assert there - {"ok"}
    assert Gate.parse("problem, note") == Gate.parse("note")


def test_a_gate_fails_on_named_checks_unless_they_are_ok(store):
    findings = audit(store, "eksft").findings
    assert [f.name for f in Gate.parse("truncated_rows,kl").failing(findings)] == ["truncated_rows"]
    assert Gate.parse("kl,nothing_kept").failing(findings) == []
    assert Gate().failing(findings) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing_kpt", r"'nothing_kpt' \(did you mean 'nothing_kept'\?\)"),
        ("problems", r"'problems' \(did you mean 'problem'\?\)"),
        ("ok", r"'ok'"),
        ("kl,", r"''"),
        ("", r"''"),
    ],
)
def test_a_gate_of_an_unknown_name_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Gate.parse(text)


def test_a_gate_on_a_check_that_was_not_made_is_refused(store):
    with pytest.raises(InputError, match="fail_on='share_dropped': this check is made for a mask, and there is none here"):
        Gate.parse("share_dropped").failing(audit(store).findings)


def test_on_the_command_line_a_failed_gate_is_status_1_and_names_the_checks(cli, tmp_path):
    own = copy_of_store(tmp_path)
    assert cli("audit", own.path, "--fail-on", "problem")[0] == 0
    edit_manifest(own.path / "stats" / "warm", means={"kl": 0.0})
    status, out, err = cli("audit", own.path, "--fail-on", "problem,truncated_rows", "--json")
    assert status == 1
    assert json.loads(out)["verdict"] == "problem"
    assert err == "failed: truncated_rows (warning), kl of warm (problem)\n"
    status, out, err = cli("audit", own.path, "--fail-on", "truncated_row")
    assert (status, out) == (2, "")
    assert "did you mean 'truncated_rows'" in err
    assert store_with_masks().scorings["warm"].manifest.means["kl"] > 0
