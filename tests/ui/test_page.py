"""The mounted page in a real browser, against a fake Litmus server."""

import re
from collections.abc import Iterator
from contextlib import suppress

import pytest
from browser import CHROMIUM, fill
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.ui.conftest import BASE, CARD, KEY, NO_CHAT, Fake, running
from ui.page import mount
from ui.visitors import Visitors

QUESTION = "Tell me a story about <b>a fox</b> & a crow."

expect.set_options(timeout=20_000)  # beside other tests on two cores
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


@pytest.fixture(scope="module")
def page_url(fake_server: Fake) -> Iterator[str]:
    with running(mount(FastAPI(), Visitors(fake_server.url))) as url:
        yield f"{url}/ui"


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A phone-sized window. All tests share it, so that Gradio's files are fetched once."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.fixture
def page(fake: Fake, page_url: str, context: BrowserContext) -> Iterator[Page]:
    """The page in a tab of its own. A request to another origin fails the test."""
    page = context.new_page()
    foreign_requests: list[str] = []
    origin = page_url.removesuffix("/ui")
    page.on("request", lambda request: request.url.startswith(("data:", "blob:", origin)) or foreign_requests.append(request.url))
    page.goto(page_url)
    yield page
    page.close()
    assert foreign_requests == []


@pytest.fixture
def loaded(page: Page) -> Page:
    expect(page.get_by_text("storyteller", exact=True)).to_be_visible(timeout=20_000)
    return page


@pytest.fixture
def several(page: Page, fake: Fake) -> Iterator[Page]:
    """The page for a server of three models, the default in the middle. Clears the browser's storage afterwards."""
    fake.cards = [BASE, CARD, NO_CHAT]
    page.reload()
    expect(models(page)).to_have_value("storyteller", timeout=20_000)
    yield page
    page.evaluate("localStorage.clear()")


def models(page: Page) -> Locator:
    return page.get_by_role("combobox", name="Model", exact=True)


def current(page: Page) -> Locator:
    """The model name that the header marks as selected."""
    return page.locator("[aria-current] b")


def reload(page: Page) -> None:
    """Reloads once the browser has stored the selected model, which it does a moment after the page shows it."""
    page.wait_for_function("localStorage.getItem('litmus-model') !== null")
    page.reload()


def choose(page: Page, name: str) -> None:
    models(page).click()
    page.get_by_role("option", name=name).click()
    expect(current(page)).to_have_text(name)


def ask(page: Page, text: str) -> None:
    box = page.get_by_label("Message", exact=True)
    box.fill(text)
    box.press("Enter")


def ask_until_taken(page: Page, text: str) -> None:
    """Press Enter again where Gradio drops it, as it does while the event of the last Enter is still on its way."""
    page.get_by_label("Message", exact=True).fill(text)
    for _ in range(20):
        page.get_by_label("Message", exact=True).press("Enter")
        with suppress(AssertionError):
            expect(conversation(page)).to_contain_text(text, timeout=2000)
            return


def score(page: Page, text: str) -> None:
    page.get_by_role("tab", name="Score").click()
    fill(page.get_by_label("Text to score"), text)
    page.get_by_role("button", name="Score", exact=True).click()


def conversation(page: Page) -> Locator:
    return page.get_by_role("log")


def test_the_header_says_what_is_served_and_a_phone_does_not_scroll_sideways(loaded: Page):
    for words in ("nf4, computing in bfloat16", "4,096 tokens", "storyteller-base"):
        expect(loaded.get_by_text(words, exact=True)).to_be_visible()
    for tab in ("Score", "Chat"):
        loaded.get_by_role("tab", name=tab).click()
        assert loaded.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_an_answer_streams_and_ends_with_its_numbers(loaded: Page, fake: Fake):
    fake.first_wait_s = 2  # the browser is asked once a second what it shows
    fake.wait_s = 0.3
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("waiting for the first token…")
    expect(conversation(loaded)).to_contain_text("streaming · TTFT")
    expect(conversation(loaded)).not_to_contain_text("a crow.Once")
    expect(conversation(loaded)).to_contain_text("Once upon a time <b>a fox</b> met")
    expect(conversation(loaded)).to_contain_text(re.compile(r"9 tokens · \d+\.\d tokens/s · TTFT [\d,]+ ms · finished \(stop\)"))
    assert conversation(loaded).locator("b").count() == 0


def test_the_next_turn_sends_the_conversation_without_notes(loaded: Page, fake: Fake):
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("finished (stop)")
    loaded.get_by_text("Settings").click()
    fill(loaded.get_by_label("Temperature"), "0")
    fill(loaded.get_by_label("System prompt"), "Be brief.")
    loaded.get_by_label("System prompt").press("Tab")
    expect(loaded.get_by_label("System prompt")).to_have_value("Be brief.")
    expect(loaded.get_by_role("button", name="Send")).to_be_enabled()
    with loaded.expect_response("**/queue/join*"):
        ask(loaded, "  ")
    loaded.wait_for_timeout(300)  # nothing may happen after a blank message, so there is no event to wait for
    ask_until_taken(loaded, "And then?")
    expect(conversation(loaded).get_by_text("finished (stop)")).to_have_count(2)
    first, second = fake.requests
    assert first["messages"] == [{"role": "user", "content": QUESTION}]
    assert second["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "".join(fake.words)},
        {"role": "user", "content": "And then?"},
    ]
    assert (second["temperature"], second["max_tokens"], "top_p" in second) == (0, 256, False)


def test_stop_ends_the_upstream_request_and_keeps_the_text(loaded: Page, fake: Fake):
    fake.words = ["Once ", "upon ", *["time "] * 500]
    fake.wait_s = 0.1
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("Once upon time")
    loaded.get_by_role("button", name="Stop").click()
    expect(conversation(loaded)).to_contain_text("stopped · TTFT")
    assert fake.disconnected.wait(3)
    expect(conversation(loaded)).to_contain_text("Once upon time")
    expect(loaded.get_by_role("button", name="Send")).to_be_enabled()
    expect(loaded.get_by_label("Message", exact=True)).to_have_value("")


def test_stop_before_the_first_token_returns_the_question(loaded: Page, fake: Fake):
    fake.first_wait_s = 30
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("waiting for the first token…")
    loaded.get_by_role("button", name="Stop").click()
    expect(conversation(loaded)).to_contain_text("stopped before the first token")
    expect(loaded.get_by_label("Message", exact=True)).to_have_value(QUESTION)
    assert fake.disconnected.wait(3)


def test_a_closed_tab_ends_the_upstream_request(loaded: Page, fake: Fake):
    fake.words = ["time "] * 500
    fake.wait_s = 0.1
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("time time")
    loaded.close()
    assert fake.disconnected.wait(10)


def test_enter_while_an_answer_streams_keeps_both(loaded: Page, fake: Fake):
    fake.wait_s = 0.15
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("Once upon")
    ask(loaded, "Too early")
    expect(conversation(loaded)).to_contain_text("finished (stop)")
    expect(loaded.get_by_label("Message", exact=True)).to_have_value("Too early")
    assert len(fake.requests) == 1


def test_a_refusal_is_shown_and_the_question_returns_to_the_box(loaded: Page, fake: Fake):
    box = loaded.get_by_label("Message", exact=True)
    fake.refusal = (429, "The queue is full.")
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("⚠ The queue is full. Try again in 7 s.")
    expect(box).to_have_value(QUESTION)
    fake.refusal = None
    expect(loaded.get_by_role("button", name="Send")).to_be_enabled()
    box.press("Enter")
    expect(conversation(loaded)).to_contain_text("finished (stop)")
    assert fake.requests[1]["messages"] == [{"role": "user", "content": QUESTION}]
    expect(loaded.get_by_role("button", name="Clear")).to_be_enabled()
    loaded.get_by_role("button", name="Clear").click()
    expect(loaded.get_by_text("Ask for a story")).to_be_visible()


def test_a_single_model_has_no_dropdown_and_is_not_sent(loaded: Page, fake: Fake):
    expect(models(loaded)).to_have_count(0)
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("finished (stop)")
    score(loaded, "A text.")
    expect(loaded.get_by_role("heading", name="Reads like machine text")).to_be_visible()
    assert ["model" in body for body in fake.requests] == [False, False]


def test_another_model_continues_the_conversation(several: Page, fake: Fake):
    ask(several, QUESTION)
    expect(conversation(several)).to_contain_text("storyteller · 9 tokens")
    choose(several, "base")
    ask(several, "And then?")
    expect(conversation(several)).to_contain_text("base · 9 tokens")
    assert [body["model"] for body in fake.requests] == ["storyteller", "base"]
    assert [message["content"] for message in fake.requests[1]["messages"]] == [QUESTION, "".join(fake.words), "And then?"]
    assert several.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_selecting_a_model_updates_the_methods(several: Page, fake: Fake):
    several.get_by_role("tab", name="Score").click()
    method = several.get_by_role("combobox", name="Method")
    method.click()
    several.get_by_role("option", name="Binoculars").click()
    choose(several, "base")
    expect(method).to_have_value("Automatic")
    method.click()
    expect(several.get_by_role("option")).to_contain_text(["Automatic", "Fast-DetectGPT", "Perplexity", "Log-rank"])
    several.get_by_role("option", name="Log-rank").click()
    choose(several, "storyteller")
    expect(method).to_have_value("Log-rank")
    choose(several, "base")
    score(several, "A text.")
    expect(several.get_by_role("heading", name="Reads like machine text")).to_be_visible()
    assert (fake.requests[0]["model"], fake.requests[0]["methods"]) == ("base", ["log_rank"])


def test_a_model_is_selected_by_keyboard_and_remembered_after_a_reload(several: Page):
    models(several).focus()
    several.keyboard.press("ArrowUp")
    several.keyboard.press("Enter")
    expect(current(several)).to_have_text("base")
    reload(several)
    expect(models(several)).to_have_value("base", timeout=20_000)
    expect(current(several)).to_have_text("base")


def test_a_model_without_a_chat_template_shows_a_notice_and_sends_nothing(several: Page, fake: Fake):
    send = several.get_by_role("button", name="Send")
    choose(several, "mute")
    expect(several.get_by_role("alert")).to_have_text(
        "mute has no chat template, so it cannot chat. Choose base or storyteller to chat. The Score tab works."
    )
    expect(send).to_be_disabled()
    with several.expect_response("**/queue/join*"):
        ask(several, QUESTION)
    several.wait_for_timeout(300)  # nothing may happen, so there is no event to wait for
    expect(several.get_by_label("Message", exact=True)).to_have_value(QUESTION)
    assert fake.requests == []
    choose(several, "storyteller")
    expect(several.get_by_role("alert")).to_have_count(0)
    send.click()
    expect(conversation(several)).to_contain_text("finished (stop)")


def test_send_is_enabled_again_only_for_a_model_that_chats(several: Page, fake: Fake):
    fake.wait_s = 0.3
    ask(several, QUESTION)
    expect(conversation(several)).to_contain_text("Once upon")
    choose(several, "mute")
    expect(conversation(several)).to_contain_text("finished (stop)")
    expect(several.get_by_role("button", name="Clear")).to_be_enabled()
    expect(several.get_by_role("button", name="Send")).to_be_disabled()


def test_a_model_that_is_loading_again_shows_an_alert_and_the_default_answers(several: Page, fake: Fake):
    fake.cards = [CARD, NO_CHAT]
    fake.ready, fake.presence = (503, "loading"), {"storyteller": "ready", "base": "loading", "mute": "ready"}
    models(several).click()
    several.get_by_role("option", name="base").click()
    expect(several.get_by_role("alert")).to_have_text(
        "The server is still loading base. This page will show them when they are ready. "
        "base is not available yet, so storyteller is selected."
    )
    expect(models(several)).to_have_value("storyteller")
    ask(several, QUESTION)
    expect(conversation(several)).to_contain_text("finished (stop)")
    assert fake.requests[0]["model"] == "storyteller"
    fake.cards, fake.ready = [CARD, BASE], (200, "ready")
    expect(models(several)).to_have_value("base", timeout=20_000)


def test_a_page_opened_while_the_server_loads_goes_on_by_itself(fake: Fake, page_url: str, context: BrowserContext):
    fake.ready, fake.presence, fake.refusal = (503, "loading"), {"storyteller": "loading"}, (503, "it is loading")
    page = context.new_page()
    page.goto(page_url)
    expect(page.get_by_text("The server is loading storyteller. This page goes on when it is ready.")).to_be_visible(timeout=20_000)
    fake.ready, fake.presence, fake.refusal = (200, "ready"), {"storyteller": "ready"}, None
    expect(page.get_by_text("nf4, computing in bfloat16")).to_be_visible(timeout=20_000)
    page.close()


def test_a_model_that_is_no_longer_served_is_reported_once(several: Page, fake: Fake):
    choose(several, "base")
    fake.cards = [CARD]
    reload(several)
    expect(several.get_by_role("alert")).to_have_text("base is no longer served here, so storyteller is selected.", timeout=20_000)
    expect(models(several)).to_have_count(0)
    several.wait_for_timeout(500)  # the browser stores the new name a moment later and encrypted, so its value cannot be awaited
    several.reload()
    expect(several.get_by_text("nf4, computing in bfloat16")).to_be_visible(timeout=20_000)
    expect(several.get_by_role("alert")).to_have_count(0)


def test_the_content_security_policy_blocks_other_origins(fake: Fake, page_url: str, context: BrowserContext):
    page = context.new_page()
    page.goto(page_url)
    expect(page.get_by_text("storyteller", exact=True)).to_be_visible()
    page.evaluate("document.addEventListener('securitypolicyviolation', event => window.blocked = event.blockedURI)")
    page.evaluate("new Image().src = 'http://example.invalid/pixel.png'")
    page.wait_for_function("window.blocked === 'http://example.invalid/pixel.png'")
    page.close()


def test_with_keys_the_page_asks_for_one_and_then_works(fake: Fake, context: BrowserContext):
    fake.keys = [KEY]
    with running(mount(FastAPI(), Visitors(fake.url, login=True))) as url:
        page = context.new_page()
        page.goto(f"{url}/ui")
        page.get_by_label("Key").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("this key is not one of this server's keys.")
        page.get_by_label("Key").fill(KEY)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_text("storyteller", exact=True)).to_be_visible(timeout=20_000)
        page.get_by_text("Tell me a story about a fox and a crow.").click()  # an example
        expect(page.get_by_label("Message", exact=True)).to_have_value("Tell me a story about a fox and a crow.")
        ask(page, QUESTION)
        expect(conversation(page)).to_contain_text("finished (stop)")
        fake.keys = ["another"]
        ask_until_taken(page, "And then?")
        expect(conversation(page)).to_contain_text("⚠ this key is not one of this server's keys.")
        page.get_by_role("link", name="Log out").click()
        expect(page.get_by_label("Key")).to_be_visible()
        page.close()


def test_an_unreachable_server_says_how_to_start_one(context: BrowserContext):
    with running(mount(FastAPI(), Visitors("http://127.0.0.1:9"))) as url:
        page = context.new_page()
        page.goto(f"{url}/ui")
        expect(page.get_by_role("alert")).to_contain_text(
            "No Litmus server answers at http://127.0.0.1:9. Start one with `make run`", timeout=20_000
        )
        ask(page, QUESTION)
        expect(conversation(page)).to_contain_text("No Litmus server answers")
        expect(page.get_by_label("Message", exact=True)).to_have_value(QUESTION)
        page.close()
