"""A run file says what the command line says; what is said twice is the command line's; a mistake is named with its place."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fixtures import masked_store, save_tiny_model

from tokenstats.options import effective, from_mapping, names_of
from tokenstats.run_file import to_toml
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train

QUICK = {"max_steps": 4, "batch_size": 4, "accumulation": 1, "learning_rate": 1e-3, "logging_steps": 1, "plot": False}
OWN = {"store", "mask", "model", "out"}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return masked_store(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def said(store, model, tmp_path) -> dict[str, object]:
    """What a run must be told, and that it is a short one."""
    return {"store": str(store.path), "mask": "some", "model": model, "out": str(tmp_path / "out"), **QUICK}


def write(path: Path, values: dict[str, object]) -> Path:
    path.write_text(to_toml(values))
    return path


def options_of(values: dict[str, object]) -> TrainOptions:
    return from_mapping(TrainOptions, {name: value for name, value in values.items() if name in names_of(TrainOptions)})


def weights(folder: Path) -> bytes:
    (file,) = (path for path in folder.glob("*.safetensors"))
    return file.read_bytes()


@pytest.mark.parametrize(
    "more",
    [
        {"schedule": "cosine_with_restarts", "schedule_args": {"num_cycles": 2}, "optimizer": "adafactor", "seed": 3},
        {"eval_share": 0.25, "eval_steps": 2, "best_by": "eval_loss", "lora_rank": 2, "lora_dropout": 0.1, "dora": True},
        {"follow": "eksft", "reference": "MODEL", "metrics": "targets", "entropy_bonus": 0.1, "entropy_on": "clause 1"},
    ],
)
def test_a_run_is_repeated_from_the_file_beside_its_weights_to_the_last_bit(cli, said, tmp_path, more):
    more = {name: said["model"] if value == "MODEL" else value for name, value in more.items()}
    status, _, err = cli("train", "--config", write(tmp_path / "mine.toml", {**said, **more}))
    assert status == 0, err
    beside = tmp_path / "out" / "run.toml"
    status, _, err = cli("train", "--config", beside, "--out", tmp_path / "again")
    assert status == 0, err
    assert weights(tmp_path / "again") == weights(tmp_path / "out")
    first, second = (tomllib.loads((tmp_path / name / "run.toml").read_text()) for name in ("out", "again"))
    assert {**first, "out": None} == {**second, "out": None}
    assert first.items() >= {**said, **more}.items()


def test_a_run_in_python_leaves_a_file_that_repeats_it(cli, said, store, tmp_path):
    train(store, model=said["model"], mask=None, out=tmp_path / "out", options=options_of(said))
    status, _, err = cli("train", "--config", tmp_path / "out" / "run.toml", "--out", tmp_path / "again")
    assert status == 0, err
    assert weights(tmp_path / "again") == weights(tmp_path / "out")


def test_a_run_says_the_same_by_file_by_options_and_by_both_and_the_command_line_is_stronger(cli, said, tmp_path):
    valued = {name: value for name, value in said.items() if name not in ("store", "plot")}
    flags = ["--no-plot", *(word for name, value in valued.items() for word in (f"--{name.replace('_', '-')}", value))]
    whole = write(tmp_path / "whole.toml", said)
    part = write(tmp_path / "part.toml", {**said, "max_steps": 9, "seed": 5, "padding_free": True, "out": "elsewhere"})
    overridden = ["--max-steps", 4, "--seed", 0, "--no-padding-free"]
    printed = [
        cli("train", said["store"], *flags, "--print-config"),
        cli("train", "--config", whole, "--print-config"),
        cli("train", "--config", part, *overridden, "--out", said["out"], "--print-config"),
    ]
    assert {(status, err) for status, _, err in printed} == {(0, "")}
    assert len({out for _, out, _ in printed}) == 1
    found = tomllib.loads(printed[0][1])
    assert found == {**{name: said[name] for name in OWN}, **effective(options_of(said))}
    assert not (tmp_path / "out").exists(), "nothing is trained"


def test_what_is_printed_is_resolved_and_prints_itself_again(cli, said, tmp_path):
    del said["learning_rate"], said["max_steps"], said["batch_size"]
    said |= {"lora_rank": 4, "eval_share": 0.5, "eval_steps": 7, "best_by": "eval_loss", "schedule_args": {"num_cycles": 0.5}}
    status, out, _ = cli("train", "--config", write(tmp_path / "a.toml", said), "--print-config")
    assert status == 0
    found = tomllib.loads(out)
    assert {found[name] for name in ("epochs", "batch_size", "learning_rate", "lora_alpha", "save_steps")} == {3.0, 8, 2e-4, 7}
    assert not found.keys() & {"max_steps", "kl_term", "reference", "patience"}, "what is not there, or does nothing"
    (tmp_path / "b.toml").write_text(out)
    assert cli("train", "--config", tmp_path / "b.toml", "--print-config")[1] == out
    as_json = json.loads(cli("train", "--config", tmp_path / "b.toml", "--print-config", "--json")[1])
    assert as_json == found


@pytest.mark.parametrize(
    ("lines", "more", "message"),
    [
        ("lerning_rate = 1", [], "run.toml has an unknown key 'lerning_rate' (did you mean 'learning_rate'?)"),
        ("batch-size = 1", [], "run.toml has an unknown key 'batch-size' (did you mean 'batch_size'?)"),
        ("[options]\nseed = 1", [], "run.toml has an unknown key 'options'"),
        ("resume = true", [], "run.toml has an unknown key 'resume'"),
        ("seed = 'one'", [], "seed (run.toml) got 'one'; expected a whole number from 0"),
        ("seed = true", [], "seed (run.toml) got True; expected a whole number"),
        ("max_steps = 2.5", [], "max_steps (run.toml) got 2.5; expected a whole number, at least 1"),
        ("max_steps = 3\nepochs = 3.0", [], "epochs (run.toml) would do nothing: max_steps (run.toml) says when to stop"),
        ("max_steps = 3", ["--epochs", 3], "--epochs would do nothing: max_steps (run.toml) says when to stop"),
        ("epochs = 3", ["--max-steps", 3], "epochs (run.toml) would do nothing: --max-steps says when to stop"),
        ("kl_term = 'exact'", [], "kl_term (run.toml) would do nothing: --kl-penalty is 0; give it with it"),
        ("kl_penalty = 0.1", [], "kl_penalty = 0.1 (run.toml) got no tokens; expected --kl-on with it"),
        ("schedule_args = 2", [], "schedule_args (run.toml) got 2; expected a table of finite numbers and words"),
        ("shares = [0.7, 0.2]", [], "shares (run.toml) got 0.7, 0.2, which sum to 0.9; expected a sum of 1"),
        ("shares = '0.7,0.4'", [], "shares (run.toml) got 0.7, 0.4, which sum to 1.1; expected a sum of 1"),
        ("schedule = 'cosin'", [], "schedule (run.toml) got 'cosin' (did you mean 'cosine'?)"),
        ("model = 3", [], "model (run.toml) got 3; expected a text"),
        ("mask = ''", [], "mask (run.toml) got ''; expected a text"),
        ("seed = ", [], "run.toml is not TOML: Invalid value (at end of document)"),
        ("seed = 1\nseed = 2", [], "run.toml is not TOML: Cannot overwrite a value"),
        ("seed = 1" + "0" * 5000, [], "run.toml is not TOML: Exceeds the limit"),
        ("x = " + "[" * 5000, [], "run.toml is not TOML"),
        ('"\\u001b[31m\\nx" = 1', [], "run.toml has an unknown key '\N{REPLACEMENT CHARACTER}[31m x'"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(cli, said, tmp_path, monkeypatch, lines, more, message):
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(lines)
    own = [word for name in ("mask", "model", "out") if f"{name} =" not in lines for word in (f"--{name}", said[name])]
    status, out, err = cli("train", said["store"], *own, "--config", "run.toml", *more)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


@pytest.mark.parametrize("stores", ["[]", "['a', 3]", "['']", "3", "''"])
def test_a_store_in_a_file_is_a_text_or_several(cli, tmp_path, stores):
    (tmp_path / "run.toml").write_text(f"store = {stores}\n")
    status, _, err = cli("train", "--config", tmp_path / "run.toml")
    assert status == 2
    assert "; expected a text, or a list of texts" in err


def test_what_is_no_run_file_is_said(cli, tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for path, message in (
        (tmp_path / "none.toml", "no run file at"),
        (tmp_path, "cannot be read"),
        (tmp_path / "bytes.toml", "not TOML"),
    ):
        status, out, err = cli("train", "--config", path)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_what_must_be_said_somewhere_is_missed(cli, said, tmp_path):
    for name in sorted(OWN):
        values = {key: value for key, value in said.items() if key != name}
        status, _, err = cli("train", "--config", write(tmp_path / "run.toml", values))
        assert status == 2
        assert f"Missing {'argument' if name == 'store' else 'option'}" in err
        assert ("STORE" if name == "store" else f"--{name}") in err


@pytest.mark.parametrize(
    ("given_at_default", "message"),
    [
        (["--epochs", 3, "--max-steps", 5], "--epochs would do nothing: --max-steps says when to stop; give one of the two"),
        (["--batch-size", 8, "--batch-tokens", 99], "--batch-size would do nothing: --batch-tokens says how large"),
        (["--eval-seed", 0], "--eval-seed would do nothing: no row is held out"),
        (["--lora-dropout", 0], "--lora-dropout would do nothing: the whole model is trained"),
        (["--no-dora"], "--dora would do nothing: the whole model is trained"),
        (["--keep-checkpoints", 2], "--keep-checkpoints would do nothing: there are none"),
    ],
)
def test_what_is_given_must_be_of_use_even_at_its_default(cli, said, given_at_default, message):
    own = [word for name in ("mask", "model", "out") for word in (f"--{name}", said[name])]
    status, _, err = cli("train", said["store"], *own, *given_at_default)
    assert status == 2
    assert err.startswith(f"error: {message}")


def test_the_same_holds_for_options_without_a_run_file(cli, tmp_path):
    words = ["compute", tmp_path / "d.jsonl", "--model", "m", "--store", tmp_path / "s"]
    status, _, err = cli(*words, "--engine", "ray", "--patience", 600)
    assert status == 2
    assert "--patience would do nothing: no worker waits for tokens" in err


texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), texts)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]+", fullmatch=True), st.one_of(values, st.dictionaries(texts, values), st.lists(values))
    )
)
def test_a_table_is_what_is_read_from_it(table):
    assert tomllib.loads(to_toml({**table, "none": None})) == {name: each for name, each in table.items() if name != "none"}
