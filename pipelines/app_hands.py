"""What a reader does in the app, in a real browser: each returns how long it took until it was seen.

A time begins with the browser's own event (a key, a press, a release) and ends with the frame in which the page shows what was
asked for.
"""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from playwright.sync_api import Page

from tokenstats import Store
from tokenstats.cli.app import app_command

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_WATCH = """
window.began = 0;
for (const name of ["keydown", "pointerdown", "pointerup", "input", "change"]) {
  addEventListener(name, (event) => { window.began = event.timeStamp; }, true);
}
window.runs = 0; // how often the server has drawn the page
new MutationObserver((changes) => {
  for (const { target } of changes) if (target.dataset.testScriptState === "notRunning") window.runs++;
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-test-script-state"] });
window.view = () => [...document.querySelectorAll("*")].map((e) => e.shadowRoot).find((root) => root?.querySelector(".tokens"));
window.steer = () => [...document.querySelectorAll("*")].map((e) => e.shadowRoot).find((root) => root?.querySelector(".steer"));
window.facts = () => window.view()?.querySelector(".facts")?.textContent ?? "";
window.until = (isThere) => new Promise((done, fail) => {
  const look = () => {
    const passed = performance.now() - window.began;
    if (isThere()) done(passed);
    else if (passed > 120000) fail(`nothing within two minutes: ${isThere}`);
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
});
"""


@contextmanager
def served(store: Store) -> Iterator[tuple[str, int]]:
    """The app on a store: its address, and the process."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(app_command(store.path, port, headless=True), **quiet)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def open_page(browser: Any, address: str, query: str = "") -> Page:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(600_000)
    page.add_init_script(_WATCH)
    page.goto(f"{address}/?{query}")
    page.locator(".tokens .t").first.wait_for()
    page.wait_for_timeout(1500)  # Streamlit's own scripts have settled
    return page


def next_row(page: Page, i: int) -> float:
    page.locator("body").press("j")
    return page.evaluate(f"until(() => facts().startsWith('row {i}'))")


def held(page: Page, i: int) -> float:
    """A threshold moved while it is held: until the frame after its numbers and tokens have changed."""
    was = page.evaluate("[steer().querySelector('.steer-total').textContent, facts()]")
    page.evaluate(f"""() => {{ const range = steer().querySelector("input"); range.value = {20 + i};
      range.dispatchEvent(new Event("input", {{bubbles: true, composed: true}})); }}""")
    there = f"until(() => steer().querySelector('.steer-total').textContent !== {was[0]!r})"
    return page.evaluate(there)


def released(page: Page, i: int) -> float:
    """The same threshold let go: until the numbers above, which the server works out, have changed."""
    metric = "document.querySelector('[data-testid=stMetricValue]').textContent"
    was = page.evaluate(metric)
    held(page, i)
    page.evaluate("steer().querySelector('input').dispatchEvent(new Event('change', {bubbles: true, composed: true}))")
    passed = page.evaluate(f"until(() => {metric} !== {was!r} && facts().includes('new rule'))")
    page.wait_for_timeout(500)  # the rest of the page has been drawn
    return passed


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).click()
    page.wait_for_timeout(400)  # the list has stopped moving
    page.get_by_role("option", name=option, exact=True).click()


def open_mask(page: Page, name: str) -> float:
    choose(page, "Decisions of", name)
    return page.evaluate(f"until(() => facts().endsWith({name!r}))")


def sort_rows(page: Page, by: str) -> float:
    """The table in another order, until the page is whole."""
    runs = page.evaluate("runs")
    choose(page, "Sort by", by)
    return _drawn(page, runs)


def search(page: Page, text: str) -> float:
    """A token sought, until its places are listed and the page is whole."""
    runs = page.evaluate("runs")
    page.get_by_label("Where is it dropped").fill(text)
    page.keyboard.press("Enter")
    return _drawn(page, runs)


def _drawn(page: Page, runs: int) -> float:
    passed = page.evaluate(f"until(() => runs > {runs})")
    page.wait_for_timeout(500)
    return passed


def drag(page: Page, wait: int) -> None:
    """Drag the first threshold, in nats, to another place for each wait, let it go, and wait."""
    page.locator(".steer canvas").first.hover()
    box = page.locator(".steer canvas").first.bounding_box()
    assert box is not None
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (0.4 + wait / 4000), box["y"] + 40, steps=5)
    page.mouse.up()
    page.wait_for_timeout(wait)


def rule_shown(page: Page) -> str:
    """The rule as the sidebar has it."""
    return " ".join(page.get_by_test_id("stSidebar").get_by_test_id("stCode").inner_text().split())
