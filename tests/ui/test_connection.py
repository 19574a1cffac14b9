"""The page loses its server, or the stream on which it hears of its calls: what it says, and that nothing typed is lost."""

import re
import time

import pytest
from browser import CHROMIUM, fill, flashing
from fastapi import FastAPI
from playwright.sync_api import APIResponse, BrowserContext, Page, Route, expect

from tests.ui.chatting import ask, ask_until_taken, box, button, conversation, expect_answer, expect_answering, open_page, score, wait_until
from tests.ui.fakelitmus import KEY, Fake, running
from ui.page import mount
from ui.visitors import Visitors

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
CALL, JOIN, EVENTS = "**/gradio_api/run/predict", "**/gradio_api/queue/join*", "**/gradio_api/queue/data*"
NOTHING_KEPT = "() => window.litmus && sessionStorage.getItem('litmus-typed') === null"
ONLY_THE_TEXT_TO_SCORE = "() => sessionStorage.getItem('litmus-typed') === JSON.stringify({ '#score-text textarea': 'It rained.' })"
SILENT_STREAM = """async () => {
    litmus.silence_ms = 0; // in a page that is loaded anew it is as before
    const { name } = performance.getEntriesByType("resource").findLast((entry) => entry.name.includes("/queue/data"));
    const text = await (await fetch(name)).text();
    const refused = await fetch("gradio_api/call", { method: "POST" }).then(() => false, () => true);
    return [text, refused];
}"""


def expect_lost(page: Page) -> None:
    expect(page.get_by_text("Connection to the server was lost.").first).to_be_visible()


def test_the_page_outlives_its_server_though_a_stream_was_open(fake: Fake, context: BrowserContext):
    """Gradio opens a stream for a call whose number it hears after all the call's messages have passed: nothing closes that stream."""
    fake.hold_after = 3
    held: list[tuple[Route, APIResponse]] = []
    with running(mount(FastAPI(), Visitors(fake.url))) as url:
        port, page = int(url.rpartition(":")[2]), open_page(context, url)
        ask(page, "Mine")
        expect_answering(page)
        page.route(JOIN, lambda route: held.append((route, route.fetch())))
        score(page, "It rained for three days.")
        wait_until(page, lambda: len(held) == 1 and len(fake.requests) == 2)
        page.get_by_role("tab", name="Chat").click()
        fake.hold_after = None
        expect_answer(page)
        with page.expect_request(EVENTS):
            held[0][0].fulfill(response=held[0][1])
        page.unroute_all()
    with running(mount(FastAPI(), Visitors(fake.url)), port):
        ask_until_taken(page, "Still there?")
        expect_answer(page, 2)
        page.reload()
        expect(conversation(page)).to_contain_text("Still there?")
        expect_answer(page, 2)
        page.close()


def test_an_answer_that_a_restart_cuts_off_is_kept_as_far_as_it_came_and_goes_on_after_the_login_and_what_was_typed_is_there(
    fake: Fake, context: BrowserContext
):
    fake.keys, fake.hold_after = [KEY], 3
    with running(mount(FastAPI(), Visitors(fake.url, login=None))) as url:
        port, page = int(url.rpartition(":")[2]), context.new_page()
        page.goto(f"{url}/ui")
        log_in(page)
        page.get_by_role("tab", name="Score").click()
        fill(page.get_by_label("Text to score"), "It rained.")
        page.get_by_role("tab", name="Chat").click()
        ask(page, "Mine")
        expect_answering(page)
        box(page).fill("What I will ask next")
    expect_lost(page)
    expect(page.locator("#live")).to_have_text(
        re.compile("This answer has ended. The page waits for the server; what you wrote will stand")
    )
    expect(button(page, "Stop")).to_have_count(0)
    with running(mount(FastAPI(), Visitors(fake.url, login=None)), port):
        log_in(page)
        expect(box(page)).to_have_value("What I will ask next")
        page.wait_for_function(ONLY_THE_TEXT_TO_SCORE)
        expect(conversation(page)).to_contain_text("⚠ The connection was lost.")
        fake.hold_after = None
        button(page, "Continue").click()
        expect(conversation(page)).to_contain_text("Once Once upon a time")  # what had come, and what the fake server says each time
        expect_answer(page)
        page.get_by_role("tab", name="Score").click()
        expect(page.get_by_label("Text to score")).to_have_value("It rained.")
        page.close()


def test_an_edit_goes_on_after_the_page_was_loaded_anew_and_garbage_is_no_text(loaded: Page):
    ask(loaded, "Mine")
    expect_answer(loaded)
    button(loaded, "Edit").click()
    expect(loaded.get_by_text("You are editing a question.")).to_be_visible()
    box(loaded).fill("Mine, edited")
    load_anew(loaded)
    expect(loaded.get_by_text("You are editing a question.")).to_be_visible()
    expect(box(loaded)).to_have_value("Mine, edited")
    loaded.wait_for_function(NOTHING_KEPT)
    expect(box(loaded)).to_be_focused()
    button(loaded, "Cancel").click()
    expect(box(loaded)).to_have_value("")
    box(loaded).fill("Another")
    load_anew(loaded)
    expect(box(loaded)).to_have_value("Another")
    expect(box(loaded)).to_be_focused()
    expect(loaded.get_by_text("You are editing a question.")).to_have_count(0)
    for garbage in ("{bad", "null", '{"##": "x", "#message textarea": 5}'):
        loaded.evaluate("garbage => ['typed', 'writing'].forEach((name) => sessionStorage.setItem(`litmus-${name}`, garbage))", garbage)
        loaded.reload()
        expect(conversation(loaded)).to_contain_text("Mine")
        expect(box(loaded)).to_have_value("")


def load_anew(page: Page) -> None:
    """As Gradio does, when it has found a server."""
    page.evaluate("fetch('gradio_api/app_id').then((answer) => answer.text())")
    page.reload()


def log_in(page: Page) -> None:
    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible()


def test_a_stream_that_went_silent_and_a_server_that_left_are_noticed_and_the_question_returns(fake: Fake, page_url: str, tab: Page):
    page, held = tab, []
    page.route(CALL, lambda route: held.append(route) if '[\\"new\\"' in (route.request.post_data or "") else route.continue_())
    page.goto(page_url)
    expect(page.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible()
    page.route("**/gradio_api/app_id", lambda route: route.abort())  # else the page may be loaded anew before it is asked something
    wait_until(page, lambda: went_silent(page))
    wait_until(page, lambda: len(held) == 1)
    for question in ("Mine", "And this?"):
        page.route("**/gradio_api/app_id", lambda route: route.abort())
        page.route(CALL, refuse_second)
        with flashing(page.locator("#chat"), "The connection was lost. Your question was not sent."):
            ask(page, question)
            while held:  # the first call, which opens the conversation, ends after the question was sent
                held.pop().continue_()
            expect_lost(page)
        before = "Mine\n\n" if question == "Mine" else ""  # which waits in the box until the page has its conversation
        expect(box(page)).to_have_value(before.strip())
        box(page).fill(f"{before}And then")
        page.evaluate("window.isOld = true")
        page.unroute_all()
        page.route(CALL, late)
        page.wait_for_function("window.isOld === undefined")
        expect(page.get_by_text("Ask something, or pick an example.")).to_be_visible()
        page.wait_for_function(NOTHING_KEPT)
        expect(box(page)).to_have_value(f"{question}\n\nAnd then")
        page.unroute_all()


def went_silent(page: Page) -> bool:
    """Whether a stream came too late for the page; it may also end before, where the server has nothing to tell."""
    text, refused = page.evaluate(SILENT_STREAM)
    assert text.endswith('data: {"msg":"close_stream"}\n\n')
    return bool(refused)


def late(route: Route) -> None:
    """The page has its conversation only after the time in which a text would have been written into the box."""
    time.sleep(1)
    route.continue_()


def refuse_second(route: Route) -> None:
    """As nginx does whose servers left."""
    if "And this?" in (route.request.post_data or ""):
        route.fulfill(status=503, json={"error": {}})
    else:
        route.continue_()
