"""docs/RULES.md says what the code does: its rules parse, its presets are the files, every word of the language is there."""

import re
import tomllib
from pathlib import Path

import pytest

from tokenstats import Rule
from tokenstats.errors import RuleError
from tokenstats.masking.language.builtins import BOOLEAN, COLUMNS, NUMBER, SCOPES, WORDS
from tokenstats.masking.language.parser import Expression, parse
from tokenstats.masking.rule import preset_names
from tokenstats.schema import ROLES

PAGE = (Path(__file__).parents[2] / "docs" / "RULES.md").read_text(encoding="utf-8")
RULES = [line for block in re.findall(r"```rule\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
FILES = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
INLINE = [
    text
    for text in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.S))
    if re.search(r"\(.*\d|[<>] \d", text)
]
PRESETS = dict(re.findall(r"^\| `([a-z0-9-]+)` \| ((?:drop|keep|weight) `[^`]+`) \|", PAGE, re.M))


def parse_any(text: str) -> Expression:
    try:
        return parse(text, BOOLEAN)
    except RuleError:
        return parse(text, NUMBER)


def test_the_page_has_examples():
    assert (len(RULES) > 8, len(FILES) > 2, len(INLINE) > 15) == (True, True, True)


@pytest.mark.parametrize("text", RULES)
def test_every_rule_on_the_page_is_valid_and_printed_as_it_is_written(text):
    printed = parse(text).text
    assert printed == text.replace('"', "'")


@pytest.mark.parametrize("text", FILES)
def test_every_file_on_the_page_is_a_rule(text, tmp_path):
    (tmp_path / "rule.toml").write_text(text)
    assert Rule.load(tmp_path / "rule.toml").to_dict() == {"protect": "is_end_of_turn", **tomllib.loads(text)}


@pytest.mark.parametrize("text", [t for t in INLINE if not t.startswith(("int(", "keep", "weight", "--", "min_kept"))])
def test_every_expression_within_the_text_is_valid(text):
    x_for_a_column = re.sub(r"\bx\b", "entropy", re.sub(r"\bf\b", "0.2", re.sub(r"=n\b", "=1", text)))
    assert parse_any(x_for_a_column).text


def test_the_table_of_presets_is_what_the_files_say():
    written = {}
    for name in preset_names():
        rule = Rule.load(name)
        key = "drop" if rule.drop is not None else "keep" if rule.keep is not None else "weight"
        written[name] = f"{key} `{getattr(rule, key)}`"
    assert written == PRESETS, "docs/RULES.md, Presets: a row for each, its second cell the rule as its file has it"
    row_of = {name: next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")) for name in PRESETS}
    for name in preset_names():
        source = re.search(r"arXiv:\d{4}\.\d{5}", Rule.load(name).source or "")
        own = name.split("-")[0] == "eksft" or name.endswith("-only") or name == "stm-difference"
        assert source is None or own or source.group() in row_of[name]


@pytest.mark.parametrize("word", [*COLUMNS, *WORDS, *SCOPES])
def test_every_word_of_the_language_is_explained(word):
    assert re.search(rf"`[^`]*\b{word}\b[^`]*`", PAGE), f"docs/RULES.md does not explain `{word}`; give it a line there"


def test_every_role_is_named():
    assert all(f"'{role}'" in PAGE for role in ROLES)
