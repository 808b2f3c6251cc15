"""What tests in a real browser do with a page of the app."""

from collections.abc import Iterator
from contextlib import contextmanager
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


class SlowAnswers:
    """Keeps what the server says from a page, as a busy machine or a far network would; what the page says goes through."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self._kept: list[Any] | None = None
        page.route_web_socket("**/_stcore/stream", self._connect)

    def _connect(self, socket: Any) -> None:
        self._socket = socket
        socket.connect_to_server().on_message(self._hear)

    def _hear(self, message: Any) -> None:
        if self._kept is None:
            self._socket.send(message)
        else:
            self._kept.append(message)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, nothing arrives; on leaving, what was kept does, once the server has said all that it has to say."""
        self._kept = []
        yield
        self.wait_for_all()
        kept, self._kept = self._kept, None
        for message in kept:
            self._socket.send(message)

    def wait_for_all(self) -> None:
        """Until the server has answered, and then been silent for a while."""
        said = 0
        while not said or len(self._kept or ()) > said:
            said = len(self._kept or ())
            self._page.wait_for_timeout(600)
