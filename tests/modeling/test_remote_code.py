"""Code that a model brings with it runs only where the user says so: never because something answers for them."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from disk import write_jsonl

from tokenstats import Store
from tokenstats.errors import InputError
from tokenstats.modeling.tokenizer import load_tokenizer

MODEL_CODE = """
import os, pathlib
pathlib.Path(os.environ["WITNESS"]).write_text("the model's code ran")
from transformers import Qwen3Config, Qwen3ForCausalLM

class OwnConfig(Qwen3Config):
    model_type = "own_qwen"

class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
"""
TOKENIZER_CODE = """
import os, pathlib
pathlib.Path(os.environ["WITNESS"]).write_text("the tokenizer's code ran")
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


Run = Callable[..., tuple[int, str, str, bool]]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def with_own_model(tmp_path, base) -> Path:
    folder = tmp_path / "own-model"
    shutil.copytree(base, folder)
    (folder / "own_model.py").write_text(MODEL_CODE)
    classes = {"AutoConfig": "own_model.OwnConfig", "AutoModelForCausalLM": "own_model.OwnModel"}
    edit(folder / "config.json", model_type="own_qwen", auto_map=classes, architectures=["OwnModel"])
    return folder


@pytest.fixture
def with_own_tokenizer(tmp_path, base) -> Path:
    folder = tmp_path / "own-tokenizer"
    shutil.copytree(base, folder)
    (folder / "own_tokenizer.py").write_text(TOKENIZER_CODE)
    classes = {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=classes)
    edit(folder / "config.json", model_type="own_qwen")  # of a known one transformers would take its own tokenizer
    return folder


@pytest.fixture
def run(cli, tmp_path, monkeypatch) -> Run:
    """A command with ``y`` on its standard input; did the code that a model brings run?"""
    witness, modules = tmp_path / "witness", str(tmp_path / "modules")
    monkeypatch.setenv("WITNESS", str(witness))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", list(sys.path))  # transformers adds the folder

    def answered(*arguments: object) -> tuple[int, str, str, bool]:
        witness.unlink(missing_ok=True)
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]  # as in a new process
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
        return *cli(*arguments), witness.exists()

    return answered


def test_a_piped_yes_runs_no_code_of_a_model(run, tmp_path, chats, warmup, with_own_model, with_own_tokenizer):
    rows, store = write_jsonl(tmp_path / "rows.jsonl", chats[:4]), tmp_path / "store"
    for what in (
        ["--model", with_own_model],
        ["--model", with_own_tokenizer],
        ["--model", warmup, "--reference", with_own_model],
    ):
        status, out, err, ran = run("compute", rows, *what, "--store", store)
        assert (status, out, ran) == (2, "", False), err
        assert err.endswith("which is not run unasked; read it, then allow it with --trust-remote-code\n")
        assert not store.exists()


def test_it_runs_where_the_user_allows_it_and_the_manifests_say_so(run, tmp_path, chats, warmup, with_own_model):
    rows, store = write_jsonl(tmp_path / "rows.jsonl", chats[:4]), tmp_path / "store"
    status, _, err, ran = run("compute", rows, "--model", with_own_model, "--store", store, "--trust-remote-code")
    assert (status, ran) == (0, True), err
    opened = Store(store)
    assert opened.manifest.tokenizer.trust_remote_code
    assert opened.scorings.choose().manifest.trust_remote_code
    options = ["--mask", "none", "--model", with_own_model, "--max-steps", 1, "--device", "cpu"]
    status, _, err, ran = run("train", store, *options, "--out", tmp_path / "out")
    assert (status, ran) == (2, False), err
    assert "--trust-remote-code" in err
    status, _, err, ran = run("train", store, *options, "--out", tmp_path / "out", "--trust-remote-code")
    assert (status, ran) == (0, True), err


def test_a_tokenizer_says_what_it_would_have_run(with_own_tokenizer):
    with pytest.raises(InputError, match="brings code of its own"):
        load_tokenizer(str(with_own_tokenizer))
