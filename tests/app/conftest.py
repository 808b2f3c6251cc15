"""One real browser, and one server of the app with two stores, for all tests: each is dear to start."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from app_pages import HOME
from inspect_fixtures import byte_level_tokenizer, store_with_masks
from streamlit.testing.v1 import AppTest
from synthetic import make_store

from tokenstats import Rule, Store, build_mask
from tokenstats.cli.app import app_command

SMILE_PLACE = 9
"""Of the first byte of the smile in its row: "A smile " stands before it."""


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=[*flags, "--disable-sync", "--no-first-run"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two stores: ``chats``, which tests add masks to, and ``long``."""
    folder = tmp_path_factory.mktemp("stores")
    shutil.copytree(store_with_masks().path, folder / "chats")
    chats = Store(folder / "chats")
    build_mask(chats, Rule(drop=f"position == {SMILE_PLACE}"), "one-byte")
    build_mask(chats, Rule(drop=" or ".join(f"position == {n}" for n in range(8)), protect=""), "many")
    build_mask(chats, Rule.from_preset("dft"), "dft")
    crowded = Rule(drop="top(entropy, 0.4, per=sequence) or random(0.4, per=sequence) or position < 20")
    build_mask(letters_store(folder / "long"), crowded, "crowded")
    return folder


@pytest.fixture(scope="session")
def chats(stores: Path) -> Store:
    return Store(stores / "chats")


@pytest.fixture(scope="session")
def server(stores: Path) -> Iterator[str]:
    """The app on the two stores, as `tokenstats app` would start it; its address."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(app_command(stores, port, headless=True), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
            break
        except OSError:
            assert process.poll() is None, "the server has ended"
            time.sleep(0.1)
    yield address
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture(scope="session")
def context(browser):
    """Pages share what they have fetched: Streamlit's own scripts are read once."""
    return browser.new_context(viewport={"width": 1300, "height": 900})


@pytest.fixture
def page(context) -> Iterator[object]:
    opened = context.new_page()
    yield opened
    opened.close()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    def run(*arguments: object) -> AppTest:
        monkeypatch.setattr(sys, "argv", [HOME, *map(str, arguments)])
        return AppTest.from_file(HOME, default_timeout=60).run()

    return run


def letters_store(path: Path) -> Store:
    """Long rows, a token a byte: the tokenizer's alphabet without its words."""
    tokenizer = byte_level_tokenizer()
    byte_of = {tokenizer.decode([i]): i for i in range(100) if len(tokenizer.decode([i])) == 1}
    rng = np.random.default_rng(0)
    letters = np.array(sorted(byte_of.values()))
    rows = [rng.choice(letters, 6701), rng.choice(letters, 27959)]
    targets = [np.arange(6701) >= 6701 - 18, np.arange(27959) >= 100]
    statistics = {"entropy": [rng.gamma(1.0, 1.0, len(r)).astype(np.float32) for r in rows]}
    statistics["kl"] = [x * 2 for x in statistics["entropy"]]
    store = make_store(path, rows, targets, statistics, rows_per_part=2)
    (path / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(path / "tokenizer" / "tokenizer.json"))
    return store
