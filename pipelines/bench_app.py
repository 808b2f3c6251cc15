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
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright
from tokenizers import Tokenizer, decoders, models

from pipelines.app_hands import (
    FLAGS,
    drag,
    held,
    next_row,
    open_mask,
    open_page,
    released,
    rule_shown,
    search,
    served,
    sort_rows,
)
from pipelines.made_up_store import ASSISTANT, VOCABULARY, FlatPart, made_up_statistics, made_up_store, write_store
from tokenstats import Rule, Store, build_mask

LONG_ROW = 27_959
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


def median_ms(rounds: int, do: Callable[[int], float]) -> float:
    """The median of so many rounds, each counted from 1."""
    return statistics.median(do(i) for i in range(1, rounds + 1))


_WAITS = (0, 100, 800)
"""Milliseconds from a drag to the press of a button."""


def saved_as_shown(page: Page, store: Store) -> int:
    """How often a rule that is saved 0, 100 and 800 ms after a drag in nats is the one on the screen."""
    right = 0
    for wait in _WAITS:
        page.get_by_label("Save as mask").fill(f"saved-{wait}")
        page.keyboard.press("Enter")
        page.get_by_test_id("stAlert").filter(has_text="drops").wait_for(state="hidden")
        drag(page, wait)
        page.get_by_role("button", name="Save mask").click()
        page.get_by_text("drops").filter(has_text=f"saved-{wait} ").wait_for()
        right += store.masks[f"saved-{wait}"].manifest.rule["drop"] == rule_shown(page)
    return right


def file_as_shown(page: Page) -> int:
    """The same of the rule's file; each is another than the one before."""
    right, before = 0, rule_shown(page)
    for wait in _WAITS:
        drag(page, wait)
        with page.expect_download() as download:
            page.get_by_role("button", name="Rule file").click()
        shown = rule_shown(page)
        right += Rule.load(download.value.path()).drop == shown != before
        before = shown
    return right


def beside_an_audit(browser: Any, address: str, rounds: int) -> tuple[float, bool]:
    """The next row of one reader while another's audit goes on, and whether the audit lasted as long and was cancelled then."""
    page, other = open_page(browser, address), browser.new_page()
    other.goto(f"{address}/?page=Audit")
    # of a small store it is over before there is a bar
    other.get_by_text("counting every token").or_(other.get_by_test_id("stMetric")).first.wait_for()
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
        yield "file is shown, of 3", file_as_shown(page)
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
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
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
