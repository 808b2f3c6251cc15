"""Options: what is not what it should be is refused with a line that says what would be; a mapping becomes options and back."""

import ast
import math
import pickle
import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from imports import loaded_after

import tokenstats
from tokenstats.corpus.options import CorpusOptions
from tokenstats.errors import InputError, RuleError, StoreError, TokenstatsWarning, argument, one_line, with_arguments
from tokenstats.options import above, at_least, between, check, field, from_mapping, one_of, to_dict
from tokenstats.rounds.options import RoundOptions
from tokenstats.scoring.options import EngineOptions, Request, ScoringOptions
from tokenstats.training.options import ExportOptions, TrainOptions

ALL = [CorpusOptions, EngineOptions, ExportOptions, RoundOptions, ScoringOptions, TrainOptions]
every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@dataclass(frozen=True, kw_only=True)
class Example:
    count: int = field(1, "a count", at_least(1))
    share: float = field(0.5, "a share", between(0, 1))
    rate: float | None = field(None, "a rate", above(0))
    way: str = field("plain", "a way", one_of("plain", "fancy"))
    loud: bool = field(False, "be loud")

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count got 0; expected a whole number, at least 1"),
        ({"count": "3"}, "count got '3'; expected a whole number, at least 1"),
        ({"count": True}, "count got True; expected a whole number, at least 1"),
        ({"count": 2.0}, "count got 2.0; expected a whole number, at least 1"),
        ({"count": None}, "count got None; expected a whole number, at least 1"),
        ({"share": 1.0}, "share got 1.0; expected at least 0 and below 1"),
        ({"share": math.nan}, "share got nan; expected at least 0 and below 1"),
        ({"rate": math.inf}, "rate got inf; expected a number above 0"),
        ({"way": "fanci"}, "way got 'fanci' (did you mean 'fancy'?); expected one of: plain, fancy"),
        ({"way": 3}, "way got 3; expected one of: plain, fancy"),
        ({"loud": 1}, "loud got 1; expected true or false"),
        ({"loud": "\x1b[31m\nyes"}, "loud got '\N{REPLACEMENT CHARACTER}[31m yes'; expected true or false"),
    ],
)
def test_a_value_of_another_type_or_out_of_its_bounds_is_refused(wrong, message):
    with pytest.raises(InputError) as refused:
        Example(**wrong)
    assert str(refused.value) == message


def test_whole_numbers_are_numbers_and_none_is_allowed_where_the_type_says_so():
    assert Example(share=0, rate=3) == Example(share=0.0, rate=3.0)
    assert Example(rate=None).rate is None


def test_an_unknown_key_names_the_nearest_one():
    with pytest.raises(
        InputError, match=r"run.toml, \[example\] has an unknown key 'cuont' \(did you mean 'count'\?\); expected: count"
    ):
        from_mapping(Example, {"cuont": 2}, "run.toml, [example]")


@every
def test_options_are_the_mapping_of_their_fields_and_defaults_are_valid(kind):
    options = kind()
    assert from_mapping(kind, to_dict(options)) == options
    assert list(to_dict(options)) == [each.name for each in fields(kind)]
    assert all(each.metadata["help"] for each in fields(kind))
    with pytest.raises(InputError, match="unknown key 'nothing_of_the_kind'"):
        from_mapping(kind, {"nothing_of_the_kind": 1})


@every
def test_options_are_frozen_and_go_from_process_to_process(kind):
    options = kind()
    with pytest.raises(AttributeError):
        setattr(options, fields(kind)[0].name, None)
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EngineOptions(workers=2), "workers would do nothing: the engine is local; give kind='ray' with it"),
        (lambda: EngineOptions(workers=2, ray_address="auto"), "workers, ray_address would do nothing"),
        (
            lambda: EngineOptions(kind="ray", patience=3),
            "patience would do nothing: no worker waits for tokens with kind='ray'",
        ),
        (lambda: Request("m", None, ScoringOptions(reference_pass="separate")), "reference_pass='separate' got no reference"),
        (
            lambda: TrainOptions(eval_steps=5),
            "eval_steps would do nothing: no row is held out; give eval_share above 0 with it",
        ),
        (lambda: TrainOptions(epochs=1, max_steps=3), "epochs would do nothing: max_steps says when to stop"),
        (lambda: TrainOptions(lora_alpha=4), "lora_alpha would do nothing: the whole model is trained; give lora_rank too"),
        (lambda: ExportOptions(compat="trl-legacy", trainer="verl"), "compat='trl-legacy' adds a column for TRL"),
        (lambda: CorpusOptions(columns={"promt": "q"}), "columns maps 'promt' (did you mean 'prompt'?)"),
    ],
)
def test_what_would_do_nothing_is_refused_and_says_what_it_needs(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_options_load_neither_torch_nor_transformers():
    modules = (f"tokenstats.{group}.options" for group in ("corpus", "rounds", "scoring", "training"))
    assert loaded_after(f"import {', '.join(modules)}", "torch transformers pyarrow polars") == []


# ---- messages


def arguments_in(marked: str) -> list[tuple[str, str | None]]:
    found = []
    with_arguments(marked, lambda name, value: found.append((name, value)) or "")
    return found


@pytest.mark.parametrize("kind", [InputError, StoreError, RuleError, TokenstatsWarning])
def test_a_message_names_arguments_as_python_does_and_remembers_which_words_they_are(kind):
    error = kind(f"{argument('topk')} and topk, {argument('dtype', 'float32')}, {argument('chat', False)}")
    assert str(error) == "topk and topk, dtype='float32', chat=False"
    assert error.args == (str(error),)
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert arguments_in(one.marked) == [("topk", None), ("dtype", "'float32'"), ("chat", "False")]


def test_text_from_outside_cannot_pass_for_an_argument():
    hostile = argument("topk")
    error = InputError(f"got {one_line(hostile)}; expected {argument('model', hostile)}")
    assert [name for name, _ in arguments_in(error.marked)] == ["model"]


def texts_of(path: Path) -> list[str]:
    """All strings of a module, docstrings too; what is filled in is {}."""
    tree = ast.parse(path.read_text())
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inside = {id(part) for node in joined for part in node.values}
    plain = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in inside]
    return [n.value for n in plain] + [
        "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values) for node in joined
    ]


def test_no_module_of_the_library_speaks_of_options_of_the_command_line():
    package = Path(tokenstats.__file__).parent
    flag = re.compile(r"(?<![\w-])--(?=[a-z{])")
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] != "cli":
            assert [text for text in texts_of(path) if flag.search(text)] == [], path
    assert flag.search("take --dtype bfloat16")
    assert flag.search("choose with --{}")


def test_every_error_says_what_arguments_it_means_in_one_way():
    """What is named is an argument or a field of some function or class of the library: else nobody could give it."""
    package = Path(tokenstats.__file__).parent
    named, known = set(), set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "argument"
                and isinstance(node.args[0], ast.Constant)
            ):
                named.add(node.args[0].value)
            elif isinstance(node, ast.FunctionDef):
                known |= {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                known.add(node.target.id)
    assert named
    assert named <= known
