"""The app and the report in a real browser: what is seen, and what hostile rows do not do."""

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest
from inspect_fixtures import BREAKOUT, HOSTILE_ROWS, IMAGE, SCRIPT, SMILE, copy_of_store, store_with_masks

from tokenstats.cli.app import app_command
from tokenstats.inspect.report import report


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
def server() -> Iterator[str]:
    """The app on the shared store, as `tokenstats app` would start it."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = app_command(store_with_masks().path, port, headless=True)
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
                break
            except OSError:
                assert running.poll() is None, "the server has ended"
                time.sleep(0.1)
        yield address
    finally:
        running.terminate()
        running.wait(timeout=20)


def test_in_a_real_browser_tokens_are_seen_and_hostile_rows_do_nothing(browser, server):
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    requested, dialogs, errors = [], [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server)
    for text in (SCRIPT, IMAGE, BREAKOUT, SMILE):
        row = HOSTILE_ROWS.get(text, 1)
        page.get_by_label("Row, 0 to 34").fill(str(row))
        page.keyboard.press("Enter")
        page.wait_for_function("row => document.querySelector('.ts-head b')?.textContent === `row ${row}`", arg=row)
        shown = page.locator(".ts-tokens").inner_text()
        assert text in shown
        page.locator(".ts-tokens .t:not(.x)").first.hover()
        tip = page.evaluate("getComputedStyle(document.querySelector('.ts-tokens .t:not(.x)'), '::after').content")
        assert "entropy" in tip
        assert page.evaluate("window.hacked") is None
        assert page.locator("#broken").count() == 0
    assert page.get_by_test_id("stException").count() == 0
    assert page.get_by_test_id("stMetricValue").first.inner_text().endswith("%")
    assert not dialogs
    assert not errors
    assert {url for url in requested if not url.startswith((server, server.replace("http", "ws"), "data:", "blob:"))} == set()
    page.close()


def test_in_a_real_browser_the_report_shows_its_pictures_and_runs_nothing(browser, tmp_path):
    store = copy_of_store(tmp_path)
    index = report(store, tmp_path / "report", masks=["eksft"])
    page = browser.new_page()
    page.goto(index.as_uri())
    widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert len(widths) == 7
    assert all(widths)
    assert page.locator(".tabs .panel:visible").count() == 3
    page.locator(".tabs label", has_text="coloured by KL").first.click()
    assert page.locator(".ts-tokens.heat:visible").count() == 1
    # the page forbids scripts even where one would have slipped in
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    page.close()
