"""A job played through in the app on the demo's store, in ten pictures for docs/APP.md.

    python -m pipelines.film_app runs/store --to docs/app

Works on a copy: the store stays as it is. Needs Chromium and playwright.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from pipelines.app_hands import served
from tokenstats import Store

SIZE = {"width": 1280, "height": 860}
SHOWN_STORE = "runs/store"
"""How the store is called in the pictures, whatever folder it is copied to."""

_RENAME = """([was, shown]) => {
  for (const field of document.querySelectorAll("input")) if (field.value === was) field.value = shown;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(was, shown);
}"""


def film(page: Any, address: str, shot: Callable[[str], None]) -> None:
    """Do each step, and take its picture."""
    _open(page, f"{address}/?page=Overview", ".ts-table")
    shot("01-overview")
    page.get_by_test_id("stSidebar").get_by_text("Rows", exact=True).click()
    page.get_by_test_id("stDataFrame").wait_for()
    shot("02-rows")
    page.get_by_label("Where is it dropped").fill(" So")
    page.keyboard.press("Enter")
    page.get_by_text("among the targets").wait_for()
    shot("03-search")
    page.get_by_label("Where is it dropped").fill("")
    page.keyboard.press("Enter")
    page.get_by_text("among the targets").wait_for(state="hidden")
    page.wait_for_timeout(1000)
    page.locator(".dvn-scroller").first.click(position={"x": 18, "y": 54})
    page.locator(".tokens .t").first.wait_for()
    shot("04-row")
    page.locator(".tokens .d").nth(3).click()
    page.locator(".inspector.pinned").wait_for()
    shot("05-why")
    _hold(page, page.locator(".steer input").first, 0.4)
    shot("06-change")
    page.mouse.up()
    page.get_by_role("button", name="KL", exact=True).click()
    page.locator(".token-view.heat").wait_for()
    shot("07-colour")
    page.get_by_label("Save as mask").fill("mine")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Save mask").click()
    page.get_by_test_id("stAlert").wait_for()
    shot("08-saved")
    _open(page, f"{address}/?page=Compare&side_a=mine&side_b=eksft", ".tokens .t")
    page.locator(".ts-table").first.wait_for()
    shot("09-compare")
    _open(page, f"{address}/?page=Audit&audited=mine", ".ts-table")
    shot("10-audit")


def _open(page: Any, address: str, there: str) -> None:
    page.goto(address)
    page.locator(there).first.wait_for()


def _hold(page: Any, slider: Any, share: float) -> None:
    """Press a slider where it stands at 20 %, move to a share of its width, and do not let go."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.21, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * share, middle, steps=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--to", type=Path, default=Path("docs/app"))
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        copy = Path(shutil.copytree(args.store, Path(folder) / "store"))
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE)

        def shot(name: str) -> None:
            page.wait_for_timeout(1200)
            page.evaluate(_RENAME, [str(copy), SHOWN_STORE])
            page.screenshot(path=str(args.to / f"{name}.png"))

        with served(Store(copy)) as (address, _):
            film(page, address, shot)
        browser.close()


if __name__ == "__main__":
    main()
