"""The rule language: what it accepts, what it refuses and how helpfully, and that it never runs anything."""

import ast
import contextlib
import random
import string
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_texts import DEEP, boolean_texts, random_text, value_texts

from tokenstats.errors import InputError, RuleError
from tokenstats.masking.language.builtins import BOOLEAN, NUMBER
from tokenstats.masking.language.parser import parse
from tokenstats.masking.rule import Rule, preset_names


@given(boolean_texts())
@settings(max_examples=200, deadline=None)
def test_printing_and_parsing_again_gives_the_same_rule(text: str):
    once = parse(text)
    assert parse(once.text) == once
    assert ast.dump(parse(once.text).tree) == ast.dump(once.tree)
    assert Rule(drop=once.text).fingerprint == Rule(drop=text).fingerprint


@given(value_texts())
@settings(max_examples=100, deadline=None)
def test_printing_and_parsing_a_weight_again_gives_the_same_weight(text: str):
    once = parse(text, NUMBER)
    assert parse(once.text, NUMBER) == once
    assert ast.dump(parse(once.text, NUMBER).tree) == ast.dump(once.tree)
    assert Rule(weight=once.text).fingerprint == Rule(weight=text).fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "entropy - (kl - nll) > -(1 - kl)",
        "(kl + 1) * 2 / (nll / 3) > -kl * 2 - -1",
        "not (kl > 1 and (nll > 1 or not is_special))",
        "kl > 1 or nll > 1 and not top(-kl, 0.2, per=turn)",
        "following(kl > 1 or nll > 1)",
    ],
)
def test_brackets_are_printed_where_they_are_needed_and_nowhere_else(text):
    assert parse(text).text == text
    assert parse(f"(({text}))").text == text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("top(entropy,0.20)", "top(entropy, 0.2, per=dataset)"),
        ("entropy>2 or (kl>1 or nll>3)", "entropy > 2 or kl > 1 or nll > 3"),
        ("random(0.1)", "random(0.1, seed=0)"),
        ("random(0.1, seed=4, per=turn)", "random(0.1, per=turn, seed=4)"),
        ("random(0.1, seed=4, among=(kl>1.0), per=turn)", "random(0.1, per=turn, among=kl > 1, seed=4)"),
        ("top(kl, 0.1, among=not not is_special)", "top(kl, 0.1, per=dataset, among=is_special)"),
        ("entropy > +2", "entropy > 2"),
        ("(entropy) > (2.0)", "entropy > 2"),
        ("not not is_special", "is_special"),
        ("not not (kl > 1 or nll > 1)", "kl > 1 or nll > 1"),
        ("zscore(kl, per=dataset) > 1e0", "zscore(kl) > 1"),
        ('stats["warm"].entropy > 1', "warm.entropy > 1"),
        ("entropy > 2\n  or kl > 1", "entropy > 2 or kl > 1"),
    ],
)
def test_two_spellings_of_one_rule_have_one_fingerprint(one: str, other: str):
    assert Rule(drop=one).fingerprint == Rule(drop=other).fingerprint


def test_what_decides_is_in_the_fingerprint():
    rules = [
        Rule(drop="entropy > 2"),
        Rule(drop="entropy >= 2"),
        Rule(keep="entropy > 2"),
        Rule(drop="entropy > 2", protect=""),
        Rule(drop="random(0.1)"),
        Rule(drop="random(0.1)", budget="same as a"),
        Rule(weight="prob"),
        Rule(weight="prob", drop="entropy > 2"),
        Rule(drop="entropy > 2", min_kept=2),
        Rule(drop="entropy > 2", min_kept=3),
        Rule(drop="entropy > 2", min_kept=3, too_few="keep"),
        Rule(drop="following(entropy) > 2"),
        Rule(drop="top(entropy, 1, per=role)"),
        Rule(drop="top(entropy, 1, per=turn)"),
    ]
    assert len({r.fingerprint for r in rules}) == len(rules)


def test_dropping_x_is_keeping_not_x():
    assert Rule(drop="entropy > 2 or is_special").fingerprint == Rule(keep="not (entropy > 2 or is_special)").fingerprint
    assert Rule(drop="entropy > 2", min_kept=3).fingerprint == Rule(drop="entropy > 2", min_kept=3, too_few="drop").fingerprint


@pytest.mark.parametrize("name", ["Qwen3-8B", "1", "and", "None", "warm.2", "x" * 64])
def test_a_scoring_of_any_name_can_be_read_and_printed(name: str):
    rule = Rule(drop=f"stats['{name}'].entropy > stats['warm'].entropy")
    assert rule.expression is not None
    assert (name, "entropy") in rule.columns
    assert rule.columns >= {("warm", "entropy")}
    assert rule.expression.text.endswith("> warm.entropy")
    assert parse(rule.expression.text) == rule.expression


def test_a_name_may_be_a_scoring_and_a_column_at_once():
    assert parse("entropy.kl > entropy").columns == {("entropy", "kl"), (None, "entropy")}
    assert parse("top(kl, 0.2, per=sequence)").columns == {(None, "kl")}
    assert parse("top(kl, 0.2, per=role)").columns == {(None, "kl"), (None, "role")}  # the groups have to be read


def test_the_branches_of_or_are_the_clauses():
    rule = Rule(drop="top(entropy, 0.2) or kl > 1 and nll > 2 or (position < 3 or is_special)")
    assert [c.text for c in rule.clauses] == ["top(entropy, 0.2)", "kl > 1 and nll > 2", "position < 3", "is_special"]
    assert rule.columns == {(None, c) for c in ("entropy", "kl", "nll", "position", "is_special", "is_end_of_turn")}
    assert parse("warm.entropy > entropy").columns == {("warm", "entropy"), (None, "entropy")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entrpy > 2", r"unknown column 'entrpy' \(did you mean 'entropy'\?\), at column 1"),
        ("kl > 1 or entrop > 2", "did you mean 'entropy'.* at column 11"),
        ("entropy >", "syntax error: .*, at column"),
        ("entropy > 2)", "syntax error: .*, at column 12"),
        ("entropy", "is a number; expected a boolean"),
        ("entropy and kl", "'and' and 'or' needs a boolean.*compare it"),
        ("(entropy > 2) + 1 > 1", "arithmetic needs a number"),
        ("top(entropy, 1.5)", "expected a share above 0 and below 1"),
        ("top(entropy, 1.0)", "top got 1.0; expected a share above 0 and below 1"),
        ("clip(entropy, 3, -1) > 0", "clip got 3.0 to -1.0; expected the lower bound first"),
        ("1e-400 < entropy", "1e-400 is too small: as a float64 it is 0"),
        ("top(entropy, 0)", "expected a share"),
        ("top(entropy)", r"written top\(entropy, 0.2, per=sequence\)"),
        ("top(entropy, 0.2, per=row)", "per is one of dataset, sequence, turn, role"),
        ("top(entropy, 0.2, per=sequense)", r"did you mean 'sequence'\?\), at column 23"),
        ("top(entropy, 0.2, pre=sequence)", r"did you mean 'per'\?\), at column 19"),
        ("zscore(entropy, 0.2) > 1", r"written zscore\(entropy, per=sequence\); got 2"),
        ("zscore(entropy)", "is a number; expected a boolean"),
        ("percent_rnk(entropy) > 1", r"did you mean 'percent_rank'\?"),
        ("following(role)", "a number or a condition, not a role"),
        ("following(entropy, 2) > 1", r"following takes 1 value\(s\), got 2"),
        ("stat['a'].entropy > 1", r'as stats\["NAME"\].entropy, at column 1'),
        ("stats['a'].entrpy > 1", "column 'entrpy' of scoring 'a' .did you mean 'entropy'"),
        ("stats['a'] > 1", "Subscript is not part"),
        ("Qwen3-8B.entropy > 1", r"for a scoring called Qwen3-8B write stats\[\"Qwen3-8B\"\].entropy"),
        ("kl > 1 or warm-up.kl > 1", r"unknown column 'warm' .for a scoring called warm-up write .*, at column 11"),
        ("  kl > 1 or entrop > 2", "at column 13"),
        ("kl > 1\n  or entrop > 2", "at line 2, column 6"),
        ("é > 1", "unknown column 'é', at column 1"),
        ("entropy > 2 or é.kl2 > 1", "'kl2' of scoring 'é' .did you mean 'kl'.., at column 16"),
        ("kl > 1 # high", "a '#' has no place here.*at column 8"),
        ("top(entropy, 0.2, by=sequence)", "top takes per and among, each once; got 'by'"),
        ("top(entropy, 0.2, among=kl)", "among needs a boolean, but 'kl' is a number; compare it"),
        (
            "top(entropy, 0.2, among=is_special, among=is_special)",
            "top takes per and among, each once; got 'among', at column 37",
        ),
        ("following(entropy, among=is_special) > 1", r"following takes 1 value\(s\), got 2"),
        ("quantile(entropy, 5) > 1", "quantile got 5"),
        ("tip(entropy, 0.2)", "did you mean 'top'"),
        ("entropy > 1e999", "too large"),
        ("entropy > 1" + "0" * 400, "too large"),
        ("role == 'asistant'", "role is compared with .*did you mean 'assistant'.*column 9"),
        ("role > 'user'", "role is compared with"),
        ("entropy > 'a'", "has no place here"),
        ("entropy is 2", "only < <= > >="),
        ("entropy if kl > 1 else nll > 2", "IfExp is not part"),
        ("entropy > True", "has no place here"),
        ("", "is empty"),
    ],
)
def test_errors_say_what_where_and_what_instead(text: str, message: str):
    with pytest.raises(RuleError, match=message) as caught:
        Rule(drop=text)
    assert "\n" not in str(caught.value)


HOSTILE = [
    "__import__('os').system('touch /tmp/owned')",
    "().__class__.__bases__[0].__subclasses__()",
    "[x for x in (1,)]",
    "(lambda: 1)()",
    "entropy.__class__ > 1",
    "warm.entropy.real > 1",
    "(x := 3) > 2",
    "f'{entropy}' == 'a'",
    "top(*entropy, 0.2)",
    "top(entropy, 0.2, **kl)",
    "entropy[0] > 1",
    "await entropy",
    "entropy ** 9999999 > 1",
    "9" * 3999,
    "9" * 10_000,
    "(" * 3000,
    "top(" * 900 + "entropy",
    "-" * 3900 + "1 > 0",
    "not " * 900 + "is_special",
    "entropy > 1\x00",
    "entropy > 1 # \ud800",
    "top(entropy, 0.2) # high entropy\n or top(kl, 0.2)",
    "abs(" * 49 + "entropy" + ")" * 49 + " + 1" * 200 + " > 2",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_hostile_gets_past_the_parser(text: str):
    with pytest.raises(RuleError):
        Rule(drop=text)


@given(st.text(alphabet=string.ascii_letters + string.digits + "()[]{}.,+-*/<>=!'\"# \n\t_:@^~&|%é", max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_rule_or_a_clean_error(text: str):
    message = ""
    try:
        assert parse(text).kind == BOOLEAN
    except RuleError as error:
        message = str(error)
    assert "\n" not in message


def test_30_000_random_texts_are_rules_or_clean_errors():
    rng, valid, slowest, messages = random.Random(0), 0, 0.0, set()
    for _ in range(30_000):
        text = random_text(rng)
        before = time.thread_time()
        try:
            rule = Rule(drop=text)
        except RuleError as error:
            messages.add(str(error))
        else:
            assert rule.expression is not None
            assert parse(rule.expression.text) == rule.expression
            valid += 1
        slowest = max(slowest, time.thread_time() - before)
    assert 1_500 < valid < 28_500  # both kinds are among them
    assert not any("\n" in message or len(message) > 1000 for message in messages)
    assert slowest < 1.0  # seconds; typically 0.1 ms


@pytest.mark.parametrize("shape", range(len(DEEP)))
def test_no_text_takes_much_memory(shape):
    tracemalloc.start()
    try:
        for size in (40, 400, 10_000, 100_000):
            with contextlib.suppress(RuleError):
                Rule(drop=DEEP[shape](size))
        assert tracemalloc.get_traced_memory()[1] < 20e6  # bytes
    finally:
        tracemalloc.stop()


def test_what_is_accepted_is_short_enough_to_be_read_again_as_it_is_printed():
    just = " and ".join(["top(kl, .1)"] * 200)
    assert len(just) < 4000
    assert parse(parse(just).text) == parse(just)
    with pytest.raises(RuleError, match="written out with its options, has 4194 characters; expected at most 4000"):
        parse(" and ".join(["top(kl,.1)"] * 247))


def test_presets_parse_and_name_their_source():
    for name in preset_names():
        rule = Rule.load(name)
        assert rule.source
        assert rule.description is not None
        assert rule.description.endswith(".")
        # what replays published code protects no more than that code does
        assert rule.protect == ("" if name.endswith("-as-released") else "is_end_of_turn")
    assert [c.text for c in Rule.load("eksft").clauses] == [
        "top(entropy, 0.2, per=sequence)",
        "top(kl, 0.2, per=sequence)",
    ]
    assert Rule.load("eksft").drop == "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)"
    with pytest.raises(InputError, match="did you mean 'eksft'"):
        Rule.load("eksf")


def test_a_rule_file_says_the_same_when_written_and_read(tmp_path):
    rule = Rule(
        drop="random(0.1, seed=7)",
        weight="prob",
        min_kept=3,
        too_few="keep",
        budget="same as eksft",
        source='a "quoted" source\nof two lines, \N{GRINNING FACE} and \x7f',
    )
    path = tmp_path / "rule.toml"
    path.write_text(rule.to_toml(), encoding="utf-8-sig")  # as some editors do
    assert Rule.load(path) == rule


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("drop = ", "is not TOML"),
        ('drp = "entropy > 2"', "did you mean 'drop'"),
        ("drop = 3", "drop is a int; expected a string"),
        ('drop = "entropy > 2"\nkeep = "kl > 1"', "exactly one"),
        ("", "exactly one"),
        ('drop = "entropy > 2"\nbudget = "same as eksft"', "must be a single random"),
        ('weight = "prob"\nbudget = "same as eksft"', "must be a single random"),
        ('drop = "random(0.1, among=is_special)"\nbudget = "same as eksft"', "draws among all that may be dropped"),
        ('weight = "prob > 2"', "is a boolean; expected a number"),
        ('drop = "is_special"\nmin_kept = "3"', "min_kept is a str; expected a whole number"),
        ('drop = "is_special"\nmin_kept = true', "min_kept is a bool; expected a whole number"),
        ('drop = "is_special"\nmin_kept = 0', "min_kept got 0; expected a whole number of tokens, at least 1"),
        ('drop = "is_special"\ntoo_few = "keep"', "expected min_kept beside it"),
        ('drop = "is_special"\nmin_kept = 3\ntoo_few = "leave"', "expected one of: drop, keep"),
        ('drop = "is_special"\nmin_kept = ' + "9" * 5000, "is not TOML: .* digits"),
        ('drop = "random(0.2)"\nbudget = "like ../x"', "expected 'same as MASK'"),
    ],
)
def test_rule_files_that_make_no_sense(tmp_path, content: str, message: str):
    (tmp_path / "r.toml").write_text(content)
    with pytest.raises(RuleError, match=message):
        Rule.load(tmp_path / "r.toml")


def test_more_clauses_than_reason_has_bits_are_refused():
    assert len(Rule(drop=" or ".join(f"position == {i}" for i in range(16))).clauses) == 16
    with pytest.raises(RuleError, match="17 'or' clauses"):
        Rule(drop=" or ".join(f"position == {i}" for i in range(17)))
    with pytest.raises(RuleError, match="16 'or' clauses and min_kept; expected at most 16"):
        Rule(drop=" or ".join(f"position == {i}" for i in range(16)), min_kept=1)
