"""Code that a model brings with it runs only where the user says so: never because something answers for them."""

import json
import os
import shutil
import subprocess
import sys
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


def run(tmp_path: Path, *arguments: object) -> tuple[subprocess.CompletedProcess, bool]:
    """A command of its own, with ``y`` piped into it; did the code that a model brings run?"""
    witness = tmp_path / "witness"
    witness.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tokenstats", *map(str, arguments)],
        input="y\n" * 20,
        capture_output=True,
        text=True,
        env=os.environ | {"WITNESS": str(witness), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
    )
    return done, witness.exists()


def test_a_piped_yes_runs_no_code_of_a_model(tmp_path, chats, warmup, with_own_model, with_own_tokenizer):
    rows, store = write_jsonl(tmp_path / "rows.jsonl", chats[:4]), tmp_path / "store"
    for what in (
        ["--model", with_own_model],
        ["--model", with_own_tokenizer],
        ["--model", warmup, "--reference", with_own_model],
    ):
        done, ran = run(tmp_path, "compute", rows, *what, "--store", store)
        assert (done.returncode, done.stdout, ran) == (2, "", False), done.stderr
        assert done.stderr.endswith("which is not run unasked; read it, then allow it with --trust-remote-code\n")
        assert "Traceback" not in done.stderr
        assert not store.exists()


def test_it_runs_where_the_user_allows_it_and_the_manifests_say_so(tmp_path, chats, warmup, with_own_model):
    rows, store = write_jsonl(tmp_path / "rows.jsonl", chats[:4]), tmp_path / "store"
    done, ran = run(tmp_path, "compute", rows, "--model", with_own_model, "--store", store, "--trust-remote-code")
    assert (done.returncode, ran) == (0, True), done.stderr
    opened = Store(store)
    assert opened.manifest.tokenizer.trust_remote_code
    assert opened.scorings.choose().manifest.trust_remote_code
    options = ["--mask", "none", "--model", with_own_model, "--max-steps", 1, "--device", "cpu"]
    done, ran = run(tmp_path, "train", store, *options, "--out", tmp_path / "out")
    assert (done.returncode, ran) == (2, False), done.stderr
    assert "--trust-remote-code" in done.stderr
    done, ran = run(tmp_path, "train", store, *options, "--out", tmp_path / "out", "--trust-remote-code")
    assert (done.returncode, ran) == (0, True), done.stderr


def test_a_tokenizer_says_what_it_would_have_run(with_own_tokenizer):
    with pytest.raises(InputError, match="brings code of its own"):
        load_tokenizer(str(with_own_tokenizer))
