"""What tests in a real browser do with a page of the app."""

from typing import Any


def open_row(page: Any, address: str, row: int, query: str = "", store: str = "chats") -> None:
    """Open a row in the token view."""
    page.goto(f"{address}/?which_store={store}&row={row}{query}")
    page.locator(".facts b", has_text=f"row {row}").wait_for(timeout=60_000)
    page.locator(".tokens .t").first.wait_for()


def metric(page: Any, name: str) -> Any:
    """The value of a number at the top of the page."""
    return page.get_by_test_id("stMetric").filter(has_text=name).get_by_test_id("stMetricValue")


def is_in_view(page: Any, selector: str) -> bool:
    """Is a token within the window of the token view?"""
    return page.locator(selector).first.evaluate(
        """token => {
          const [own, box] = [token.getBoundingClientRect(), token.closest(".tokens").getBoundingClientRect()];
          return own.top >= box.top && own.bottom <= box.bottom;
        }"""
    )


def nodes(page: Any) -> int:
    """How many elements the token view has in the page."""
    return page.locator(".tokens").evaluate("tokens => tokens.getElementsByTagName('*').length")
