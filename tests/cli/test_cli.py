"""The command line on real input: what it prints, and one helpful line for each mistake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from disk import write_jsonl


@pytest.fixture
def data(tmp_path, chats) -> Path:
    return write_jsonl(tmp_path / "chats.jsonl", chats[:12])


@pytest.fixture(scope="module")
def small(tmp_path_factory, chats, base, warmup) -> Path:
    from tokenstats.computing import compute

    folder = tmp_path_factory.mktemp("cli")
    compute(write_jsonl(folder / "chats.jsonl", chats[:12]), model=warmup, reference=base, store=folder / "store")
    return folder / "store"


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_compute_then_mask_then_compare(cli, data, tmp_path, base, warmup):
    store = tmp_path / "store"
    status, out, err = cli("compute", data, "--model", warmup, "--reference", base, "--store", store)
    assert (status, err) == (0, "")
    assert "12 sequences" in out
    assert "generation markers" in out
    status, out, _ = cli("mask", store, "--rule", "eksft", "--name", "eksft")
    assert status == 0
    assert "top(entropy, 0.2, per=sequence)" in out
    assert cli("mask", store, "--rule", "random", "--budget", "eksft", "--name", "random")[0] == 0
    status, out, _ = cli("compare", store, "eksft", "random", "--json")
    found = json.loads(out)
    assert found["both_dropped"] + found["only_a_dropped"] == found["both_dropped"] + found["only_b_dropped"]
    status, out, _ = cli("compare", store, "eksft", "random")
    assert f"{found['jaccard']:.3f}" in out


def test_what_a_template_loses_and_data_write_out_is_printed_and_audited(cli, tmp_path, warmup):
    reply = {"role": "assistant", "content": "b <|im_end|>", "reasoning_content": "why"}
    rows = [{"messages": [{"role": "user", "content": "a"}, reply]}]
    store = tmp_path / "store"
    out = cli("compute", write_jsonl(tmp_path / "rows.jsonl", rows), "--model", warmup, "--store", store)[1]
    notes = [
        "the template leaves out the reasoning of the last reply (first: row 0)",
        "special tokens written out in the text, read as those tokens (first: row 0)",
    ]
    assert [line for line in out.splitlines() if "note:" in line] == [f"  note: 1 row: {note}" for note in notes]
    checks = {f["name"]: f for f in json.loads(cli("audit", store, "--json")[1])["findings"]}
    assert all(note in checks["template"]["message"] for note in notes)


def test_json_is_one_object(cli, data, tmp_path, base, warmup):
    store = tmp_path / "store"
    out = cli("compute", data, "--model", warmup, "--store", store, "--json")[1]
    assert json.loads(out)["scored"] > 0
    manifest = json.loads(cli("mask", store, "--drop", "entropy > 0.5", "--name", "m", "--json")[1])
    assert manifest["targets"] - manifest["kept"] == manifest["clauses"][0]["dropped"]


def compute_mistakes(tmp_path: Path, base: str, warmup: str) -> dict[str, tuple[list[object], str]]:
    def file(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    chat = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    good = file("good.jsonl", chat)
    other = tmp_path / "other-words"
    shutil.copytree(base, other)
    words = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(words.replace('"<|im_start|>"', '"<|begin|>"'))
    (tmp_path / "empty-folder").mkdir()
    return {
        "missing file": ([tmp_path / "nothing.jsonl", "--model", warmup], "no dataset at"),
        "empty dataset": ([file("empty.jsonl", ""), "--model", warmup], "holds no rows"),
        "unknown shape": ([file("shape.jsonl", '{"foo": 1}\n'), "--model", warmup], "columns seen: foo"),
        "broken line": ([file("broken.jsonl", chat * 2 + '{"mess\n'), "--model", warmup], "line 3 is not JSON"),
        "no assistant": (
            [file("mute.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n'), "--model", warmup],
            "no assistant turn",
        ),
        "not a model": ([good, "--model", tmp_path / "empty-folder"], "is not a model folder"),
        "no such folder": ([good, "--model", tmp_path / "gone"], "no model folder at"),
        "same weights": ([good, "--model", base, "--reference", base], "same weights"),
        "other tokenizer": ([good, "--model", warmup, "--reference", other], "different tokenizers"),
        "bad name": ([good, "--model", warmup, "--name", "../x"], "scoring name '../x'"),
        "bad columns": ([good, "--model", warmup, "--columns", "promt=q"], "did you mean 'prompt'"),
        "bad device": ([good, "--model", warmup, "--device", "abacus"], "--device abacus cannot be used"),
        "bad dtype": (
            [good, "--model", warmup, "--dtype", "float99"],
            "--dtype got 'float99' (did you mean 'float32'?); expected one of: auto",
        ),
        "no template": (
            [good, "--model", warmup, "--template", tmp_path / "gone.jinja"],
            "expected own, training or a Jinja file",
        ),
        "no training template": ([good, "--model", warmup, "--template", "training"], "--template training"),
        "bad length": ([good, "--model", warmup, "--max-length", 1], "--max-length got 1; expected a whole number, at least 2"),
        "alone": ([good, "--model", warmup, "--reference-pass", "separate"], "--reference-pass separate got no reference"),
        "split of a file": ([good, "--model", warmup, "--split", "test"], "--split would do nothing"),
        "chats only": ([good, "--model", warmup, "--no-chat"], "--no-chat is for plain prompts and completions"),
        "unread column": (
            [good, "--model", warmup, "--columns", "messages=messages,input=messages"],
            "--columns maps 'input', which would do nothing: rows are read as messages",
        ),
        "bad special text": ([good, "--model", warmup, "--special-text", "never"], "expected one of: as-is, plain"),
        "bad number": ([good, "--model", warmup, "--topk", "many"], "--topk"),
        "no model": ([good], "--model"),
    }


def test_each_mistake_of_compute_is_one_helpful_line_and_leaves_nothing(cli, tmp_path, base, warmup):
    (tmp_path / "inputs").mkdir()
    for what, (arguments, message) in compute_mistakes(tmp_path / "inputs", base, warmup).items():
        before = everything(tmp_path)
        status, out, err = cli("compute", *arguments, "--store", tmp_path / "store")
        assert status == 2, what
        assert message in err, what
        assert err.count("\n") == 1, f"{what}: {err}"
        assert out == "", what
        assert everything(tmp_path) == before, f"{what} leaves something behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drop", "entrpy > 2", "--name", "m"], "did you mean 'entropy'"),
        (["--drop", "entropy > ", "--name", "m"], "syntax error: "),
        (["--drop", "__import__('os').system('touch owned')", "--name", "m"], "unknown function"),
        (["--rule", "eksft", "--name", "../m"], "mask name '../m'"),
        (["--rule", "eksft", "--name", "/tmp/m"], "mask name"),
        (["--rule", "eksft", "--drop", "kl > 1", "--name", "m"], "expected one of --rule, --drop and --keep"),
        (["--name", "m"], "expected one of --rule, --drop and --keep"),
        (["--rule", "nothing.toml", "--name", "m"], "no rule file"),
        (["--rule", "random", "--budget", "ghost", "--name", "m"], "no mask 'ghost'"),
        (["--rule", "eksft", "--scoring", "warmpu", "--name", "m"], "did you mean 'warmup'"),
    ],
)
def test_each_mistake_of_mask_is_one_helpful_line(cli, small, arguments, message):
    before = everything(small)
    status, out, err = cli("mask", small, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert everything(small) == before


def test_a_store_of_other_data_is_refused_and_stays_as_it_was(cli, small, tmp_path, chats, base, warmup):
    before = {p: (small / p).read_bytes() for p in everything(small) if (small / p).is_file()}
    other = write_jsonl(tmp_path / "other.jsonl", chats[20:30])
    status, _, err = cli("compute", other, "--model", warmup, "--reference", base, "--store", small)
    assert status == 2
    assert "made of other rows" in err
    assert {p: (small / p).read_bytes() for p in everything(small) if (small / p).is_file()} == before


@pytest.mark.parametrize("command", ["mask", "show", "audit", "report", "export", "train", "compare"])
def test_what_is_no_store_is_said(cli, tmp_path, command):
    more = {
        "mask": ["--rule", "eksft", "--name", "m"],
        "report": ["--to", tmp_path / "r"],
        "export": ["--to", tmp_path / "e", "--mask", "m"],
        "train": ["--mask", "none", "--model", "x", "--out", tmp_path / "o"],
        "compare": ["a", "b"],
    }.get(command, [])
    for place, message in ((tmp_path / "gone", "no store at"), (tmp_path, "is not a store")):
        status, out, err = cli(command, place, *more)
        assert (status, out) == (2, "")
        assert message in err
    assert list(tmp_path.iterdir()) == []


def test_odd_places_for_a_store_are_one_line(cli, data, tmp_path, warmup):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "x", "/proc/nowhere/x", tmp_path / ("long" * 100)):
        status, _, err = cli("compute", data, "--model", warmup, "--store", place)
        assert status == 2, place
        assert err.count("\n") == 1, err
    assert (tmp_path / "file").read_text() == "mine"


def test_without_arguments_there_is_help(cli):
    status, out, err = cli()
    assert (status, err) == (0, "")
    assert "Commands:" in out


def test_a_rule_file_cannot_write_escapes_to_the_terminal(cli, small, tmp_path):
    rule = tmp_path / "rule.toml"
    rule.write_text('drop = "entropy > 0"\nprotect = "is_end_of_turn # \\u001b[31m"\nsource = "\\u001b]0;x\\u0007"\n')
    status, out, err = cli("mask", small, "--rule", rule, "--name", "x")
    assert status == 2
    assert "\x1b" not in out + err


def test_a_real_process_ends_with_status_2_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tokenstats", "compute", "no\x1b[31mfile.jsonl", "--model", "m", "--store", str(tmp_path / "s")],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: no dataset at no\N{REPLACEMENT CHARACTER}[31mfile.jsonl")
    assert "Traceback" not in done.stderr


def test_a_home_that_is_nobodys_is_one_line(cli, small):
    status, _, err = cli("export", small, "--mask", "none", "--to", "~nobody-of-that-name/rows")
    assert status == 2
    assert err == "error: a path begins with ~ and the name of somebody who has no home here; write it out, or as ./~NAME\n"


@pytest.mark.parametrize(("option", "value"), [("--workers", 4), ("--ray-address", "auto")])
def test_options_of_a_cluster_are_refused_without_one(cli, data, tmp_path, warmup, option, value):
    status, out, err = cli("compute", data, "--model", warmup, "--store", tmp_path / "store", option, value)
    assert (status, out) == (2, "")
    assert f"{option} would do nothing: the engine is local; give --engine ray with it" in err
    assert not (tmp_path / "store").exists()
