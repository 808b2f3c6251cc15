"""Fixtures that many tests share: the bundled models and data, a small store of them, and the command line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from disk import write_jsonl

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several processes that wait for each other on one core take minutes
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
if not Path("/dev/nvidiactl").exists():  # read when triton is first imported, by whichever test module comes first
    os.environ.setdefault("TRITON_INTERPRET", "1")

DATA = Path(__file__).resolve().parent.parent / "data"
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def base() -> str:
    """The bundled base model: the reference."""
    return str(DATA / "models" / "base")


@pytest.fixture(scope="session")
def warmup() -> str:
    """The bundled warm-up: the base after a short fine-tune, the policy that has moved."""
    return str(DATA / "models" / "warmup")


@pytest.fixture(scope="session")
def chats() -> list[dict]:
    return [json.loads(line) for line in (DATA / "sft.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, base: str, warmup: str, chats: list[dict]):
    """A store of 60 chats in several parts, scored by the warm-up against the base. Tests do not write to it."""
    from tokenstats.computing import compute
    from tokenstats.corpus.options import CorpusOptions

    folder = tmp_path_factory.mktemp("scored")
    store = compute(
        write_jsonl(folder / "chats.jsonl", chats[:60]),
        model=warmup,
        reference=base,
        store=folder / "store",
        corpus=CorpusOptions(part_tokens=2000),
    ).store
    assert store.part_count > 2
    return store


@pytest.fixture(scope="session")
def seen():
    """The store of many cases with its masks, made once. Tests do not write to it."""
    from inspect_fixtures import store_with_masks

    return store_with_masks()


@pytest.fixture
def own(tmp_path: Path):
    """A copy of it that a test may write to."""
    from inspect_fixtures import copy_of_store

    return copy_of_store(tmp_path)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command line in this process; returns (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from tokenstats.cli import main

        monkeypatch.setattr("sys.argv", ["tokenstats", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run
