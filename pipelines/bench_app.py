"""The app in a real browser on made-up stores: how long what a reader does takes until it is seen, and the server's memory.

    python -m pipelines.bench_app --tokens 10000000                # beside it: a row of 27,959 tokens is scrolled through

Stores are made without a model (pipelines/made_up_store.py), with a vocabulary of made-up words, and deleted afterwards. A time
begins with the browser's own event (a key, a press, a release) and ends with the frame in which the page shows what was asked
for; each is the median of the rounds. Every row, mask and threshold is a new one, so that nothing was drawn before. Needs
Chromium and playwright, and Linux for /proc. The load of the machine is printed beside the numbers: read them with it.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright
from tokenizers import Tokenizer, decoders, models

from pipelines.made_up_store import ASSISTANT, VOCABULARY, FlatPart, made_up_statistics, made_up_store, write_store
from tokenstats import Rule, Store, build_mask
from tokenstats.cli.app import app_command

LONG_ROW = 27_959
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
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
_SCROLL = """async (pixels) => {
  const tokens = window.view().querySelector(".tokens");
  tokens.scrollTop = 0;
  const frames = [];
  let before = await new Promise(requestAnimationFrame);
  for (let i = 0; i < 400 && tokens.scrollTop + tokens.clientHeight < tokens.scrollHeight - 2; i++) {
    tokens.scrollTop += pixels;
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - before);
    before = now;
  }
  return frames;
}"""


def add_words(store: Store) -> None:
    """A tokenizer of made-up words, so that rows are decoded as those of a real store are."""
    letters = "etaoinshrdlu"
    words = {f"Ġ{''.join(letters[int(digit, 12)] for digit in np.base_repr(i, 12))}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=next(iter(words))))
    tokenizer.decoder = decoders.ByteLevel()
    store.tokenizer_folder.mkdir(exist_ok=True)
    tokenizer.save(str(store.tokenizer_folder / "tokenizer.json"))


def long_store(path: Path) -> Store:
    """A store of one long row."""
    rng = np.random.default_rng(0)
    is_target = np.arange(LONG_ROW) >= 100
    ids = rng.integers(3, VOCABULARY, LONG_ROW)
    part = FlatPart(
        np.array([0, LONG_ROW]), ids, is_target, np.where(is_target, ASSISTANT, 1), made_up_statistics(rng, LONG_ROW)
    )
    return write_store(path, [part])


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


def median_ms(rounds: int, do: Callable[[int], float]) -> float:
    """The median of so many rounds, each counted from 1."""
    return statistics.median(do(i) for i in range(1, rounds + 1))


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


def saved_as_shown(page: Page, store: Store) -> int:
    """How often a rule that is saved 0, 100 and 800 ms after a drag in nats is the one on the screen."""
    right = 0
    for wait in (0, 100, 800):
        page.get_by_label("Save as mask").fill(f"saved-{wait}")
        page.keyboard.press("Enter")
        page.get_by_test_id("stAlert").filter(has_text="drops").wait_for(state="hidden")
        page.locator(".steer canvas").first.hover()
        box = page.locator(".steer canvas").first.bounding_box()
        assert box is not None
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * (0.4 + wait / 4000), box["y"] + 40, steps=5)
        page.mouse.up()
        page.wait_for_timeout(wait)
        page.get_by_role("button", name="Save mask").click()
        page.get_by_text("drops").filter(has_text=f"saved-{wait} ").wait_for()
        shown = " ".join(page.get_by_test_id("stSidebar").get_by_test_id("stCode").inner_text().split())
        right += store.masks[f"saved-{wait}"].manifest.rule["drop"] == shown
    return right


def beside_an_audit(browser: Any, address: str, rounds: int) -> tuple[float, bool]:
    """The next row of one reader while another's audit goes on, and whether the audit lasted as long and was cancelled then."""
    page, other = open_page(browser, address), browser.new_page()
    other.goto(f"{address}/?page=Audit")
    other.get_by_text("counting every token").wait_for()
    passed = median_ms(rounds, lambda i: next_row(page, i))
    cancel = other.get_by_role("button", name="Cancel")
    was_at_it = cancel.count() == 1
    if was_at_it:
        cancel.click()
        other.get_by_role("button", name="Start again").wait_for()
    page.close()
    other.close()
    return passed, was_at_it


def memory_mib(process: int) -> float:
    """What the server holds now; files that it has mapped, as the index of a search is, can be let go and do not count."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024


def measure(browser: Any, store: Store, rounds: int) -> Iterator[tuple[str, float]]:
    """Name and milliseconds (the last: MiB) of each thing that is done on one store."""
    masks = [f"stored-{i}" for i in range(rounds)]
    for i, name in enumerate(masks):
        build_mask(store, Rule(drop=f"top(entropy, 0.{i + 1}, per=sequence)"), name)
    with served(store) as (address, process):
        page = open_page(browser, address)
        yield "next row, ms", median_ms(rounds, lambda i: next_row(page, i))
        for scope in ("share of each sequence", "share of the dataset", "nats"):
            page.close()
            page = open_page(browser, address, f"cut_by={scope.replace(' ', '+')}")
            page.wait_for_function("steer()")
            yield f"held, {scope}, ms", median_ms(rounds, lambda i: held(page, i))  # noqa: B023
            yield f"released, {scope}, ms", median_ms(rounds, lambda i: released(page, rounds + i))  # noqa: B023
        yield "saved is shown, of 3", saved_as_shown(page, store)
        page.close()
        page = open_page(browser, address, f"decisions={masks[0]}")
        yield "stored mask, ms", median_ms(rounds - 1, lambda i: open_mask(page, masks[i]))
        page.get_by_role("button", name="Rows and search").click()
        page.get_by_test_id("stDataFrame").first.wait_for()
        columns = ["length", "turns", "dropped", "learned", "targets"]
        yield "sorted rows, ms", median_ms(min(rounds, 5), lambda i: sort_rows(page, columns[i - 1]))
        yield "token search, ms", median_ms(rounds, lambda i: search(page, f" {'etaoinshrdlu'[i]}"))
        page.close()
        passed, was_at_it = beside_an_audit(browser, address, rounds)
        yield f"next row, audit beside ({'to the end' if was_at_it else 'shorter'}), ms", passed
        yield "server's memory, MiB", memory_mib(process)


def scrolling(browser: Any, store: Store) -> float:
    """The 95th percentile of the frames while a long row is scrolled through, ms."""
    with served(store) as (address, _):
        page = open_page(browser, address)
        frames = page.evaluate(_SCROLL, 240)
        page.close()
    return float(np.percentile(frames, 95))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", default=[10_000_000], help="sizes of the stores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where stores are made; a temporary folder otherwise")
    args = parser.parse_args()
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(dir=args.folder) as folder:
        browser = playwright.chromium.launch(executable_path=found, args=_FLAGS)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        long = long_store(Path(folder) / "long")
        add_words(long)
        print(f"frames while scrolling {LONG_ROW:,} tokens, 95th percentile: {scrolling(browser, long):.0f} ms")
        for tokens in args.tokens:
            store = made_up_store(Path(folder) / str(tokens), tokens)
            add_words(store)
            print(f"{tokens:,} tokens")
            for name, value in measure(browser, store, args.rounds):
                print(f"  {name:32} {value:8.0f}   load {os.getloadavg()[0]:.1f}", flush=True)
            shutil.rmtree(store.path)


if __name__ == "__main__":
    main()
