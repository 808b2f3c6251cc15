"""The app's pages held against the rules of axe-core, light and dark, wide and narrow: what is serious, and where.

    npm install axe-core                                     # in a folder of its own; it is not part of this project
    python -m pipelines.axe_app node_modules/axe-core/axe.min.js runs/store

Prints each violation with its weight and one element that has it; exit status 1 where one is serious or critical. Needs
Chromium and playwright.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from pipelines.app_hands import served
from tokenstats import Store

PAGES = {"Tokens": ".tokens .t", "Rows": "canvas", "Compare": ".tokens .t", "Audit": ".ts-table", "Overview": ".ts-table"}
SIZES = ((1400, 950, "light"), (1400, 950, "dark"), (390, 844, "light"))


def violations(page: Any, axe: Path) -> list[dict[str, Any]]:
    """What axe finds on a page, the shadow trees too."""
    page.evaluate(axe.read_text(encoding="utf-8"))
    return page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((found) => found.violations)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axe", type=Path, help="axe.min.js")
    parser.add_argument("store", type=Path)
    args = parser.parse_args()
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    worst = 0
    with sync_playwright() as playwright, served(Store(args.store)) as (address, _):
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for width, height, scheme in SIZES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            for name, there in PAGES.items():
                page.goto(f"{address}/?page={name}&row=13&picture=entropy+against+KL")
                page.locator(there).first.wait_for(timeout=60_000)
                page.wait_for_timeout(1500)
                for rule in violations(page, args.axe):
                    worst += rule["impact"] in ("serious", "critical")
                    first = rule["nodes"][0]
                    where = f"{len(rule['nodes'])} × {first['target']}: {first['html'][:140]}"
                    print(f"{name} {width} {scheme}: {rule['impact']} {rule['id']}: {rule['help']}\n    {where}")
            page.close()
    sys.exit(1 if worst else 0)


if __name__ == "__main__":
    main()
