"""A real browser, and servers of the app for it."""

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from inspect_fixtures import store_with_masks

from tokenstats.cli.app import app_command


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Path], str]]:
    """Start the app on a store, as `tokenstats app` would; its address."""
    running: list[subprocess.Popen] = []

    def start(store: Path) -> str:
        process, address = _start(store)
        running.append(process)
        return address

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def server(serve: Callable[[Path], str]) -> str:
    """The app on the shared store."""
    return serve(store_with_masks().path)


def _start(store: Path) -> tuple[subprocess.Popen, str]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = app_command(store, port, headless=True)
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
            break
        except OSError:
            assert running.poll() is None, "the server has ended"
            time.sleep(0.1)
    return running, address
