"""The app and the report in a real browser: what is seen, and what hostile rows do not do."""

from inspect_fixtures import BREAKOUT, HOSTILE_ROWS, IMAGE, SCRIPT, SMILE, copy_of_store

from tokenstats.inspect.report import report


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
        page.locator(".facts b", has_text=f"row {row}").wait_for()
        assert text in page.locator(".tokens").inner_text()
        page.locator(".tokens .t:not(.x)").first.hover()
        assert "entropy" in page.locator(".inspector").inner_text()
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
    assert page.locator(".token-view .tokens").count() == 3
    assert not page.evaluate("window.hacked")
    page.locator(".token-view").first.get_by_role("button", name="KL").click()
    assert page.locator(".token-view.heat").count() == 1
    # the page forbids scripts even where one would have slipped in
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    page.close()
