"""The page around the token view in a real browser: what is saved, keys, Back, thresholds under the hand."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from browser_pages import SlowAnswers, metric, open_row

from tokenstats import Rule


def written_rule(page) -> str:
    """The rule as the sidebar has it."""
    return " ".join(page.get_by_test_id("stSidebar").get_by_test_id("stCode").inner_text().split())


def drag(page, slider, share: float) -> None:
    """Press a slider of the histograms at its middle, move, and let go at a share of its width."""
    slider.hover()  # waits until it stands still
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * share, middle, steps=4)
    page.mouse.up()


def save_as(page, name: str) -> None:
    page.get_by_label("Save as mask").fill(name)
    page.get_by_label("Save as mask").press("Enter")
    page.wait_for_timeout(500)  # what was said of the mask before goes, which moves the page


def test_what_is_saved_is_what_is_on_the_screen_however_soon_after_a_drag(page, server, chats):
    open_row(page, server, 0)
    slider = page.locator(".steer input").first
    for n, wait in enumerate((0, 100, 800)):
        save_as(page, f"quick-{wait}")
        before = written_rule(page)
        drag(page, slider, 0.3 + 0.1 * n)
        page.wait_for_timeout(wait)
        page.get_by_role("button", name="Save mask").click()
        page.get_by_text("drops").filter(has_text=f"quick-{wait} ").wait_for(timeout=30_000)
        on_screen = written_rule(page)
        assert on_screen != before
        assert chats.masks[f"quick-{wait}"].manifest.rule["drop"] == on_screen
    drag(page, slider, 0.7)
    with page.expect_download() as download:
        page.get_by_role("button", name="Rule file").click()
    assert Rule.load(Path(download.value.path())).drop == written_rule(page) != on_screen


@pytest.mark.parametrize("answers_come", ["before the press", "after the press"])
def test_what_is_saved_is_what_was_let_go_though_the_browser_has_not_heard_of_it(page, server, chats, answers_come):
    slow = SlowAnswers(page)
    open_row(page, server, 0)
    name = f"unheard {answers_come}".replace(" ", "-")
    save_as(page, name)
    before = written_rule(page)
    with slow.kept():
        drag(page, page.locator(".steer input").first, 0.6)
        if answers_come == "before the press":  # so that the server has drawn all of it: the browser still sends the old value
            slow.wait_for_all()
        page.get_by_role("button", name="Save mask").click()
    page.get_by_text("drops").filter(has_text=name).wait_for(timeout=30_000)
    assert chats.masks[name].manifest.rule["drop"] == written_rule(page) != before


def test_what_is_saved_is_where_the_slider_of_the_sidebar_was_let_go(page, server, chats):
    open_row(page, server, 0)
    save_as(page, "sidebar")
    before = written_rule(page)
    slider = page.get_by_test_id("stSidebar").get_by_role("slider").first
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    page.evaluate("document.querySelector('.st-key-save button').click()")  # before Streamlit tells of the slider
    page.get_by_text("drops").filter(has_text="sidebar").wait_for(timeout=30_000)
    moved = before.replace("entropy, 0.2,", "entropy, 0.23,")
    assert chats.masks["sidebar"].manifest.rule["drop"] == written_rule(page) == moved


def test_a_quick_second_press_does_not_undo_the_first(page, server):
    slow = SlowAnswers(page)
    open_row(page, server, 13)
    with slow.kept():
        page.locator("body").press("j")
        slow.wait_for_all()
        page.locator("body").press("m")
    page.get_by_role("button", name="Show what is dropped").wait_for()
    page.locator(".facts b", has_text="row 14").wait_for()
    page.wait_for_timeout(600)  # the browser has told that it knows: its reader can go back to where it was
    page.get_by_label("Row, 0 to").fill("13")
    page.get_by_label("Row, 0 to").press("Enter")
    page.locator(".facts b", has_text="row 13").wait_for()


@pytest.mark.parametrize("scope", ["share of each sequence", "nats"])
def test_while_a_threshold_is_held_numbers_and_tokens_are_what_the_server_says_once_it_is_let_go(page, server, scope):
    open_row(page, server, 13, f"&cut_by={quote(scope)}")
    slider = page.locator(".steer input").first
    slider.wait_for()
    slider.evaluate("range => { range.value = '33'; range.dispatchEvent(new Event('input')); }")
    held = page.locator(".steer-total").inner_text(), page.locator(".facts").inner_text()
    dropped, targets = (int(word.replace(",", "")) for word in re.findall(r"([\d,]+) of ([\d,]+) targets", held[0])[0])
    assert metric(page, "Learned").inner_text() != f"{targets - dropped:,}"  # the server has not heard of it
    slider.evaluate("range => range.dispatchEvent(new Event('change'))")
    metric(page, "Learned").filter(has_text=f"{targets - dropped:,}").wait_for(timeout=30_000)
    page.locator(".legend code").first.filter(has_text="entropy").wait_for()
    assert (page.locator(".steer-total").inner_text(), page.locator(".facts").inner_text()) == held
    page.reload()  # the address has the threshold
    metric(page, "Learned").filter(has_text=f"{targets - dropped:,}").wait_for(timeout=30_000)


def test_changes_of_the_rule_are_undone_and_redone_and_back_undoes_any_change(page, server):
    open_row(page, server, 13)
    first, entropy = written_rule(page), page.locator(".steer input").first
    drag(page, entropy, 0.6)
    page.wait_for_function("text => !document.body.innerText.replace(/\\s+/g, ' ').includes(text)", arg=first)
    second = written_rule(page)
    page.get_by_role("button", name="Undo").click()
    page.get_by_test_id("stSidebar").get_by_text("entropy, 0.2,").wait_for()
    assert written_rule(page) == first
    page.get_by_role("button", name="Redo").click()
    page.wait_for_function("text => document.body.innerText.replace(/\\s+/g, ' ').includes(text)", arg=second)
    page.locator("body").press("j")
    page.locator(".facts b", has_text="row 14").wait_for()
    page.wait_for_url("**row=14*")
    page.get_by_text("Compare", exact=True).click()
    page.get_by_text("Rows by disagreement").wait_for()
    page.go_back()
    page.locator(".facts b", has_text="row 14").wait_for()
    page.go_back()
    page.locator(".facts b", has_text="row 13").wait_for()
    assert written_rule(page) == second
    page.reload()  # what was done in this tab can still be undone
    undo = page.get_by_role("button", name="Undo")
    undo.wait_for(timeout=60_000)
    page.wait_for_function("[...document.querySelectorAll('button')].some(b => b.innerText.startsWith('Undo') && !b.disabled)")
    undo.click()
    page.get_by_test_id("stSidebar").get_by_text("entropy, 0.2,").wait_for()
    assert written_rule(page) == first
    page.get_by_role("button", name="Redo").click()
    page.wait_for_function("text => document.body.innerText.replace(/\\s+/g, ' ').includes(text)", arg=second)


def test_keys_open_help_and_search_and_a_chosen_segment_stays_chosen(page, server):
    open_row(page, server, 13)
    page.get_by_role("button", name="keys: ?").wait_for(timeout=60_000)  # what is drawn last listens to the keys
    page.locator("body").press("?")
    page.get_by_role("dialog", name="keys").get_by_text("next row, row before").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Tokens", exact=True).click()  # chosen already
    page.locator("body").press("/")
    search = page.get_by_label("Where is it dropped")
    search.wait_for()
    page.wait_for_function("document.activeElement.ariaLabel.startsWith('Where is it dropped')")
    page.keyboard.type(" so")
    page.keyboard.press("Enter")
    page.get_by_text("among the targets").wait_for()
    assert search.input_value() == " so"


def test_a_pressed_bin_or_cell_lists_its_tokens(page, server):
    open_row(page, server, 13)
    page.locator(".steer canvas").first.click(position={"x": 200, "y": 60})
    said = page.locator(".steer-hover").first.inner_text()
    count = re.search(r"([\d,]+) targets", said)[1]
    page.get_by_text(re.compile(rf"^entropy [^a]* nats: {count} targets, [\d,]+ dropped")).wait_for()
    cells = page.locator(".joint canvas").first
    for _ in range(80):  # upwards through the first column, which holds something somewhere
        cells.press("ArrowUp")
        found = re.search(r"([\d,]+) targets, ([\d.]+) %", page.locator(".joint-said").inner_text())
        if found:
            break
    cells.press("Enter")
    dropped = round(int(found[1]) * float(found[2]) / 100)
    page.get_by_text(re.compile(rf"^entropy .* nats and kl .* nats: {found[1]} targets, {dropped} dropped")).wait_for()


def test_an_expression_is_completed_while_it_is_written_and_an_error_dims_what_is_older(page, server):
    open_row(page, server, 13, "&way=Expression")
    field = page.get_by_label("Drop", exact=True)
    field.fill("")
    field.press_sequentially("ent")
    offered = page.get_by_test_id("stSidebar").get_by_role("group", name="words that fit")
    offered.get_by_role("button", name="entropy", exact=True).wait_for()
    field.press("Tab")
    field.press_sequentially(" > 3 and po")
    offered.get_by_role("button", name="position", exact=True).click()
    field.press_sequentially(" > 2")
    field.press("Control+Enter")
    page.locator(".legend code").filter(has_text="entropy > 3 and position > 2").wait_for()
    field.press_sequentially(" and")
    field.press("Control+Enter")
    page.locator(".token-view.dimmed").wait_for()
    page.get_by_text("syntax error").wait_for()
    assert page.locator(".legend code").inner_text() == "entropy > 3 and position > 2"
