"""The token view in a real browser: every token can be reached, every reason seen, on long rows and in every script."""

from itertools import pairwise

import pytest
from browser_pages import is_in_view, metric, nodes, open_row
from inspect_fixtures import BREAKOUT, HOSTILE_ROWS, IMAGE, SCRIPT, SMILE

from tokenstats.inspect.report import report

ARABIC = "السلام عليكم"
MOST_NODES = 3000


def test_hostile_rows_are_seen_and_do_nothing(page, server):
    requested, dialogs, errors = [], [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_row(page, server, 1)
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
    assert not dialogs
    assert not errors
    assert {url for url in requested if not url.startswith((server, server.replace("http", "ws"), "data:", "blob:"))} == set()


@pytest.mark.parametrize(("row", "first", "last"), [(0, 6701 - 18, 6700), (1, 100, 27958)])
def test_a_long_row_opens_at_its_first_target_and_its_last_token_is_one_key_away(page, server, row, first, last):
    open_row(page, server, row, store="long")
    assert is_in_view(page, f'[data-piece="{first}"]')
    assert nodes(page) <= MOST_NODES
    page.locator(".tokens").focus()
    page.keyboard.press("End")
    page.locator(f'[data-piece="{last}"].current').wait_for()
    assert is_in_view(page, f'[data-piece="{last}"]')
    page.keyboard.press("Home")
    page.locator('[data-piece="0"].current').wait_for()
    assert is_in_view(page, '[data-piece="0"]')
    assert nodes(page) <= MOST_NODES
    if row == 1:
        seen, most = every_token_passes_by(page)
        assert seen == 27959
        assert most <= MOST_NODES


def every_token_passes_by(page) -> tuple[int, int]:
    """Scroll through a row, a window at a time; how many tokens were drawn, and how many elements at most."""
    return page.locator(".tokens").evaluate(
        """async (tokens) => {
          const seen = new Set();
          let most = 0;
          tokens.scrollTop = 0;
          for (let i = 0; i < 3000; i++) {
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
            for (const token of tokens.querySelectorAll("[data-piece]")) seen.add(token.dataset.piece);
            most = Math.max(most, tokens.getElementsByTagName("*").length);
            if (tokens.scrollTop + tokens.clientHeight >= tokens.scrollHeight - 2) break;
            tokens.scrollTop += tokens.clientHeight;
          }
          return [seen.size, most];
        }"""
    )


def test_a_click_pins_a_token_with_its_limits_a_reload_keeps_it_and_back_lets_it_go(page, server):
    open_row(page, server, 13)
    page.locator(".tokens .d").first.click()
    page.locator(".inspector.pinned").wait_for()
    said = page.locator(".inspector .condition").first.inner_text()
    assert said.startswith("entropy ")
    assert "this row's limit" in said
    words = [said.split()[1], *said.split()[-2:]]
    value, limit, distance = (float(word.strip(",:≥>=").replace("−", "-")) for word in words)
    assert abs(value - limit - distance) < 2e-3
    page.wait_for_url("**token=13.*")
    shown = page.locator(".inspector .token").inner_text()
    page.reload()
    page.locator(".inspector.pinned").wait_for(timeout=60_000)
    assert page.locator(".inspector .token").inner_text() == shown
    page.go_back()
    page.locator(".inspector:not(.pinned)").wait_for()
    assert "token=" not in page.url


def test_a_character_of_several_tokens_is_not_dropped_where_only_one_of_them_is(page, server):
    open_row(page, server, HOSTILE_ROWS[next(text for text in HOSTILE_ROWS if SMILE in text)], "&decisions=one-byte")
    smile = page.locator(".tokens .ticked.mixed")
    assert smile.count() == 1
    assert "d" not in smile.get_attribute("class").split()


def test_eight_clauses_look_different_without_their_colours(page, server):
    open_row(page, server, 13, "&decisions=many")
    looks = page.locator(".legend .t.d").evaluate_all(
        """all => all.slice(0, 8).map(token => {
          const style = getComputedStyle(token);
          return [style.textDecorationLine, style.textDecorationStyle].join(" ");
        })"""
    )
    assert len(set(looks)) == 8
    marks = page.locator(".tokens [data-mark]").evaluate_all("all => all.map(token => token.dataset.mark)")
    assert marks == [str(n + 1) for n in range(8)]


def test_numbers_above_tokens_of_one_letter_do_not_overlap_and_none_is_cut(page, server):
    open_row(page, server, 1, "&decisions=crowded", store="long")
    marks = places_of_marks(page)
    texts = {mark["text"] for mark in marks}
    assert texts <= {"1", "2", "3", "1+2", "1+3", "2+3", "1+2+3", "+"}
    assert {"1", "2", "3", "1+2", "+"} <= texts  # in full where the next one leaves room, else short
    for one, other in pairwise(marks):
        if abs(one["top"] - other["top"]) < 2:
            assert one["right"] <= other["left"] + 0.5
    assert "+ where it is narrow" in page.locator(".legend").inner_text()


def places_of_marks(page) -> list[dict]:
    """What stands above tokens, and from where to where, in the order of the text."""
    return page.locator(".tokens [data-mark]").evaluate_all(
        """all => {
          const context = document.createElement("canvas").getContext("2d");
          return all.map(token => {
            const style = getComputedStyle(token, "::before");
            context.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
            const { left, top } = token.getBoundingClientRect();
            const edge = parseFloat(style.borderInlineStartWidth) + parseFloat(style.paddingInlineStart);
            return { text: token.dataset.mark, left, top, right: left + edge + context.measureText(token.dataset.mark).width };
          });
        }"""
    )


def test_weights_are_seen_at_once_where_a_rule_only_weighs(page, server):
    open_row(page, server, 13, "&decisions=dft")
    assert page.locator(".choices-of-colour [aria-pressed=true]").inner_text() == "weight"
    assert page.locator(".tokens [class*=' h']").count() > 10
    assert metric(page, "Mean weight").count() == 1


@pytest.mark.parametrize(("scheme", "width"), [("light", 1300), ("dark", 390)])
def test_context_can_be_read_letters_join_and_nothing_covers_the_tokens(browser, server, scheme, width):
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    open_row(page, server, 1)
    assert contrast_of_context(page) >= 4.5
    whole, by_token, apart = widths_of_word(page, ARABIC)
    assert abs(whole - by_token) < 0.6
    assert apart - whole > 1 or not has_joined_forms(page)
    page.locator(".tokens").scroll_into_view_if_needed()
    on_top = page.locator(".tokens").evaluate(
        """tokens => {
          const { left, top, width, height } = tokens.getBoundingClientRect();
          return document.elementFromPoint(left + width / 2, top + height / 2).shadowRoot === tokens.getRootNode();
        }"""
    )
    assert on_top
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def contrast_of_context(page) -> float:
    return page.locator(".tokens .t.x").first.evaluate(
        """token => {
          const linear = x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
          const light = colour => {
            const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(x => linear(x / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const text = light(getComputedStyle(token).color);
          const ground = light(getComputedStyle(token.closest(".token-view")).backgroundColor);
          return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
        }"""
    )


def widths_of_word(page, word: str) -> tuple[float, float, float]:
    """Of a word drawn in one piece, a token a letter, and with its letters kept from joining: isolated forms are wider."""
    return page.locator(".tokens .chunk").first.evaluate(
        """(chunk, word) => {
          const measure = (pieces) => {
            const line = document.createElement("div");
            line.style.cssText = "position: absolute; white-space: pre";
            for (const piece of pieces) {
              const token = document.createElement("span");
              token.className = "t";
              token.textContent = piece;
              line.append(token);
            }
            chunk.append(line);
            const width = line.getBoundingClientRect().width;
            line.remove();
            return width;
          };
          return [measure([word]), measure([...word]), measure([...word].map(letter => `${letter}\\u200c`))];
        }""",
        word,
    )


def has_joined_forms(page) -> bool:
    """Does this machine have a font whose Arabic letters join? Of one that has none, there is nothing to see."""
    whole, _, apart = widths_of_word(page, "ببب")
    return apart - whole > 1


def test_the_report_shows_its_pictures_and_token_views_and_runs_nothing(page, chats, tmp_path):
    index = report(chats, tmp_path / "report", masks=["eksft"])
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
