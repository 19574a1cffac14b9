"""The mounted page in a real browser, against a fake Litmus server."""

import re
from contextlib import suppress

import pytest
from browser import CHROMIUM, fill, violations
from fastapi import FastAPI
from playwright.sync_api import Locator, Page, Route, expect

from tests.ui.conftest import BASE, CARD, KEY, NO_CHAT, Fake, running
from tests.ui.samples import HOSTILE, MARKDOWN
from ui.page import mount
from ui.visitors import Visitors

QUESTION = "Tell me a story about <b>a fox</b> & a crow."

expect.set_options(timeout=20_000)  # beside other tests on two cores
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


@pytest.fixture
def several(fake: Fake, request: pytest.FixtureRequest) -> Page:
    """The page for a server of three models, the default in the middle."""
    fake.cards = [BASE, CARD, NO_CHAT]
    page: Page = request.getfixturevalue("page")
    expect(models(page)).to_have_value("storyteller", timeout=20_000)
    return page


def models(page: Page) -> Locator:
    return page.get_by_role("combobox", name="Model", exact=True)


def current(page: Page) -> Locator:
    """The model name that the list of models marks as selected."""
    return page.locator("[aria-current] b")


def reload(page: Page) -> None:
    """Reloads once the browser has stored the selected model, which it does a moment after the page shows it."""
    page.wait_for_function("localStorage.getItem('litmus-model') !== null")
    page.reload()


def choose(page: Page, name: str) -> None:
    models(page).click()
    page.get_by_role("option", name=name).click()
    expect(page.locator("header.litmus summary")).to_contain_text(name)


def ask(page: Page, text: str) -> None:
    box(page).fill(text)
    box(page).press("Enter")


def ask_until_taken(page: Page, text: str) -> None:
    """Press Enter again where Gradio drops it, as it does while the event of the last Enter is still on its way."""
    box(page).fill(text)
    for _ in range(20):
        box(page).press("Enter")
        with suppress(AssertionError):
            expect(conversation(page)).to_contain_text(text, timeout=2000)
            return


def score(page: Page, text: str) -> None:
    page.get_by_role("tab", name="Score").click()
    fill(page.get_by_label("Text to score"), text)
    page.get_by_role("button", name="Score", exact=True).click()


def conversation(page: Page) -> Locator:
    return page.get_by_role("log")


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message", exact=True)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def expect_answer(page: Page, count: int = 1) -> None:
    """Waits until the last of `count` answers has ended."""
    expect(button(page, "Retry")).to_have_count(count)
    expect(button(page, "Send")).to_be_visible()


def expect_answering(page: Page) -> None:
    expect(page.locator("#live[data-state=answering]")).to_be_visible()


def settings(page: Page) -> None:
    button(page, "Settings").click()


def test_the_bar_says_what_is_served_and_a_phone_does_not_scroll_sideways(loaded: Page):
    loaded.locator("header.litmus summary").click()
    for words in ("nf4, computing in bfloat16", "4,096 tokens", "storyteller-base"):
        expect(loaded.get_by_text(words, exact=True)).to_be_visible()
    for tab in ("Score", "Chat"):
        loaded.get_by_role("tab", name=tab).click()
        assert loaded.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_the_conversation_fills_the_window_with_the_message_box_at_its_end(loaded: Page, fake: Fake, width: int, height: int):
    fake.words = ["A long answer.\n\n"] * 100
    loaded.set_viewport_size({"width": width, "height": height})
    ask(loaded, QUESTION)
    expect_answer(loaded)
    assert loaded.evaluate("document.documentElement.scrollHeight <= innerHeight")
    bottom = box(loaded).evaluate("element => element.getBoundingClientRect().bottom")
    assert height - 60 < bottom < height
    assert conversation(loaded).evaluate("element => element.getBoundingClientRect().height") > height * 0.6
    loaded.set_viewport_size({"width": 390, "height": 844})


def test_an_answer_streams_and_ends_with_its_numbers(loaded: Page, fake: Fake):
    fake.first_wait_s = 2  # the browser is asked once a second what it shows
    fake.wait_s = 0.3
    fake.progress = (412, 1024)
    ask(loaded, QUESTION)
    expect(loaded.get_by_text("Reading the prompt: 412 of 1,024 tokens")).to_be_visible()
    expect(loaded.locator("#live")).to_contain_text("Answering · ")
    expect(conversation(loaded)).to_have_attribute("aria-busy", "true")
    expect(loaded).to_have_title("answering… · storyteller · Litmus")
    expect(conversation(loaded)).not_to_contain_text("a crow.Once")
    expect(conversation(loaded)).to_contain_text("Once upon a time <b>a fox</b> met")
    expect(conversation(loaded)).to_contain_text(
        re.compile(r"storyteller · nf4 · 9 tokens · \d+\.\d tokens/s · first token after [\d,]+ ms · seed \d+")
    )
    expect(loaded.get_by_text("21 of 4,096 tokens of the context (1%).")).to_be_visible()
    expect(loaded).to_have_title("storyteller · Litmus")
    assert conversation(loaded).locator("b").count() == 0


def test_the_next_turn_sends_the_conversation_without_notes(loaded: Page, fake: Fake):
    ask(loaded, QUESTION)
    expect_answer(loaded)
    settings(loaded)
    fill(loaded.get_by_label("Temperature"), "0")
    fill(loaded.get_by_label("Seed"), "7")
    fill(loaded.get_by_label("System prompt"), "Be brief.")
    loaded.get_by_label("System prompt").press("Tab")
    expect(loaded.get_by_label("System prompt")).to_have_value("Be brief.")
    settings(loaded)
    with loaded.expect_response("**/run/predict*"):
        ask(loaded, "  ")
    loaded.wait_for_timeout(300)  # nothing may happen after a blank message, so there is no event to wait for
    ask_until_taken(loaded, "And then?")
    expect_answer(loaded, 2)
    first, second = fake.requests
    assert first["messages"] == [{"role": "user", "content": QUESTION}]
    assert second["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "".join(fake.words)},
        {"role": "user", "content": "And then?"},
    ]
    assert isinstance(first["seed"], int), "the page draws one, so that the answer can be repeated"
    assert (second["temperature"], second["seed"], "max_tokens" in second, "top_p" in second) == (0, 7, False, False)


def test_stop_ends_the_upstream_request_and_keeps_the_text(loaded: Page, fake: Fake):
    fake.words = ["Once ", "upon ", *["time "] * 500]
    fake.wait_s = 0.1
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("Once upon time")
    expect(button(loaded, "Send")).to_have_count(0)  # Stop has its place
    loaded.keyboard.press("Escape")
    expect(conversation(loaded)).to_contain_text("You stopped this answer.")
    assert fake.disconnected.wait(3)
    expect(conversation(loaded)).to_contain_text("Once upon time")
    expect(button(loaded, "Send")).to_be_enabled()
    expect(box(loaded)).to_have_value("")


def test_stop_before_the_first_token_returns_the_question(loaded: Page, fake: Fake):
    fake.first_wait_s = 30
    ask(loaded, QUESTION)
    expect(loaded.get_by_text("Waiting for the first token")).to_be_visible()
    while not fake.requests:
        loaded.wait_for_timeout(50)
    button(loaded, "Stop").click()
    expect(conversation(loaded)).to_contain_text("Stopped before the first token.")
    expect(box(loaded)).to_have_value(QUESTION)
    assert fake.disconnected.wait(3)


def test_a_closed_tab_ends_the_upstream_request(loaded: Page, fake: Fake):
    fake.words = ["time "] * 500
    fake.wait_s = 0.1
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("time time")
    loaded.close()
    assert fake.disconnected.wait(10)


def test_enter_while_an_answer_streams_keeps_both(loaded: Page, fake: Fake):
    fake.hold_after = 2
    ask(loaded, QUESTION)
    expect_answering(loaded)
    ask(loaded, "Too early")
    fake.hold_after = None
    expect_answer(loaded)
    expect(box(loaded)).to_have_value("Too early")
    assert len(fake.requests) == 1


def test_what_is_typed_before_the_server_has_the_question_stays(loaded: Page, fake: Fake):
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        held.append(route) if not held else route.continue_()

    loaded.route("**/gradio_api/run/predict*", hold_the_first)
    ask(loaded, QUESTION)
    expect(box(loaded)).to_have_value("")
    box(loaded).fill("The next question")
    assert fake.requests == []
    held[0].continue_()
    expect_answer(loaded)
    expect(box(loaded)).to_have_value("The next question")
    assert len(fake.requests) == 1


def test_a_refusal_is_shown_and_the_question_returns_to_the_box(loaded: Page, fake: Fake):
    fake.refusal = (429, "The queue is full.")
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("⚠ The queue is full. Try again in 7 s.")
    expect(box(loaded)).to_have_value(QUESTION)
    fake.refusal = None
    expect(button(loaded, "Send")).to_be_enabled()
    box(loaded).press("Enter")
    expect(conversation(loaded)).to_contain_text("a fox</b> met")
    expect_answer(loaded)
    assert fake.requests[1]["messages"] == [{"role": "user", "content": QUESTION}]
    expect(conversation(loaded).get_by_text(QUESTION)).to_have_count(1)
    button(loaded, "Conversations").click()
    button(loaded, "New conversation").click()
    expect(loaded.get_by_text("Ask something, or pick an example.")).to_be_visible()


def test_a_single_model_has_no_dropdown_and_is_not_sent(loaded: Page, fake: Fake):
    expect(models(loaded)).to_have_count(0)
    ask(loaded, QUESTION)
    expect_answer(loaded)
    score(loaded, "A text.")
    expect(loaded.get_by_role("heading", name="Reads like machine text")).to_be_visible()
    assert ["model" in body for body in fake.requests] == [False, False]


def test_another_model_continues_the_conversation(several: Page, fake: Fake):
    ask(several, QUESTION)
    expect(conversation(several)).to_contain_text("storyteller · nf4 · 9 tokens")
    choose(several, "base")
    ask(several, "And then?")
    expect(conversation(several)).to_contain_text("base · nf4 · 9 tokens")
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
    several.locator("header.litmus summary").click()
    expect(current(several)).to_have_text("base")
    reload(several)
    expect(models(several)).to_have_value("base", timeout=20_000)
    several.locator("header.litmus summary").click()
    expect(current(several)).to_have_text("base")


def test_a_model_without_a_chat_template_shows_a_notice_and_sends_nothing(several: Page, fake: Fake):
    send = several.get_by_role("button", name="Send")
    choose(several, "mute")
    expect(several.get_by_role("alert")).to_have_text(
        "mute has no chat template, so it cannot chat. Choose base or storyteller to chat. The Score tab works."
    )
    expect(send).to_be_disabled()
    with several.expect_response("**/run/predict*"):
        ask(several, QUESTION)
    several.wait_for_timeout(300)  # nothing may happen, so there is no event to wait for
    expect(several.get_by_role("textbox", name="Message", exact=True)).to_have_value(QUESTION)
    assert fake.requests == []
    choose(several, "storyteller")
    expect(several.get_by_role("alert")).to_have_count(0)
    send.click()
    expect_answer(several)


def test_send_is_enabled_again_only_for_a_model_that_chats(several: Page, fake: Fake):
    fake.hold_after = 2
    ask(several, QUESTION)
    expect_answering(several)
    choose(several, "mute")
    fake.hold_after = None
    expect_answer(several)
    expect(button(several, "Send")).to_be_disabled()


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
    expect_answer(several)
    assert fake.requests[0]["model"] == "storyteller"
    fake.cards, fake.ready = [CARD, BASE], (200, "ready")
    expect(models(several)).to_have_value("base", timeout=20_000)


def test_a_page_opened_while_the_server_loads_goes_on_by_itself(fake: Fake, page_url: str, tab: Page):
    fake.loading = {"storyteller": {"stage": "staging", "done_bytes": 1, "total_bytes": 4}}
    tab.goto(page_url)
    expect(tab.get_by_text("The server is loading storyteller (staging, 25% of 0 MB). This page goes on")).to_be_visible(timeout=20_000)
    ask(tab, QUESTION)
    expect(tab.locator("#live")).to_contain_text("Your question is sent when it is ready.")
    score(tab, "A text.")
    expect(tab.get_by_text("Your text is scored when it is ready.")).to_be_visible()
    fake.loading = None
    expect(tab.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible(timeout=20_000)
    expect(tab.get_by_role("heading", name="Reads like machine text")).to_be_visible()
    tab.get_by_role("tab", name="Chat").click()
    expect_answer(tab)


def test_a_model_that_is_no_longer_served_is_reported_once(several: Page, fake: Fake):
    choose(several, "base")
    fake.cards = [CARD]
    reload(several)
    expect(several.get_by_role("alert")).to_have_text("base is no longer served here, so storyteller is selected.", timeout=20_000)
    expect(models(several)).to_have_count(0)
    several.wait_for_timeout(500)  # the browser stores the new name a moment later and encrypted, so its value cannot be awaited
    several.reload()
    expect(several.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible(timeout=20_000)
    expect(several.get_by_role("alert")).to_have_count(0)


def test_the_content_security_policy_blocks_other_origins(fake: Fake, page_url: str, tab: Page):
    tab.goto(page_url)
    expect(tab.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible()
    tab.evaluate("document.addEventListener('securitypolicyviolation', event => window.blocked = event.blockedURI)")
    tab.evaluate("new Image().src = 'http://example.invalid/pixel.png'")
    tab.wait_for_function("window.blocked === 'http://example.invalid/pixel.png'")


def test_with_keys_the_page_asks_for_one_and_then_works(fake: Fake, tab: Page):
    fake.keys = [KEY]
    with running(mount(FastAPI(), Visitors(fake.url, login=True))) as url:
        tab.goto(f"{url}/ui")
        tab.get_by_label("Key").fill("wrong")
        tab.get_by_role("button", name="Log in").click()
        expect(tab.get_by_role("alert")).to_have_text("This key is not one of this server's keys.")
        tab.get_by_label("Key").fill(KEY)
        tab.get_by_role("button", name="Log in").click()
        expect(tab.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible(timeout=20_000)
        tab.get_by_text("Tell me a story about a fox and a crow.").click()  # an example
        expect(tab.get_by_role("textbox", name="Message", exact=True)).to_have_value("Tell me a story about a fox and a crow.")
        ask(tab, QUESTION)
        expect_answer(tab)
        fake.keys = ["another"]
        ask_until_taken(tab, "And then?")
        expect(conversation(tab)).to_contain_text("⚠ this key is not one of this server's keys.")
        tab.get_by_role("link", name="Log out").click()
        expect(tab.get_by_label("Key")).to_be_visible()
        tab.goto("about:blank")


def test_an_unreachable_server_says_how_to_start_one(tab: Page):
    with running(mount(FastAPI(), Visitors("http://127.0.0.1:9"))) as url:
        tab.goto(f"{url}/ui")
        expect(tab.get_by_role("alert")).to_contain_text(
            "No Litmus server answers at http://127.0.0.1:9. Start one with `make run`", timeout=20_000
        )
        ask(tab, QUESTION)
        expect(conversation(tab)).to_contain_text("No Litmus server answers")
        expect(tab.get_by_role("textbox", name="Message", exact=True)).to_have_value(QUESTION)
        tab.goto("about:blank")


def test_the_system_tab_is_live_only_while_it_is_open(loaded: Page, fake: Fake):
    assert fake.looks == 0
    loaded.get_by_role("tab", name="System").click()
    expect(
        loaded.get_by_role("img", name=re.compile("Tokens written, tokens per second, over the last 1 minute; now: storyteller 0"))
    ).to_be_visible()
    expect(loaded.get_by_text("1 of 1 model ready")).to_be_visible()
    expect(loaded.get_by_text("served · 3 requests in flight · 412 MB")).to_be_visible()
    assert loaded.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    loaded.get_by_role("button", name="Unload…").click()
    expect(loaded.get_by_role("alert")).to_contain_text("Name a model first")
    loaded.get_by_role("combobox", name="Name of the model").click()
    loaded.get_by_role("option", name="storyteller").click()
    loaded.get_by_role("button", name="Unload…").click()
    expect(loaded.get_by_role("button", name="No, keep it")).to_be_focused()
    assert fake.unloaded == []
    loaded.get_by_role("button", name="Yes, unload it").press("Enter")
    expect(loaded.get_by_text("storyteller is being unloaded.")).to_be_visible()
    assert fake.unloaded == ["storyteller"]
    fake.overview = (403, {"error": {"message": "no", "type": "permission_error", "param": None, "code": "admin_only"}})
    expect(loaded.get_by_role("alert")).to_contain_text("This tab is for administrators")
    expect(loaded.get_by_role("button", name="Unload…")).to_be_hidden()
    fake.overview = Fake().overview
    loaded.get_by_role("tab", name="Chat").click()
    looks = fake.looks
    loaded.get_by_role("tab", name="System").click()
    expect(loaded.get_by_text("1 of 1 model ready")).to_be_visible()
    assert fake.looks > looks, "it looks again when it is opened again"


def test_two_answers_are_compared_stopped_and_copied(several: Page, fake: Fake):
    several.get_by_role("tab", name="Compare").click()
    expect(several.get_by_role("combobox", name="Model A")).to_have_value("storyteller")
    expect(several.get_by_role("combobox", name="Model B")).to_have_value("base")
    several.get_by_label("Seed B").fill("7")
    expect(several.get_by_role("list", name="What differs")).to_contain_text("Seed A: random B: 7")
    several.get_by_label("Prompt for both").fill(QUESTION)
    several.get_by_label("Prompt for both").press("Shift+Enter")
    left, right = several.get_by_role("region", name="Answer A"), several.get_by_role("region", name="Answer B")
    for side in (left, right):
        expect(side).to_contain_text("a time <b>a fox</b> met")
        expect(side).to_contain_text("finished")
        expect(side.get_by_text("Total time")).to_be_visible()
    assert {body["model"]: body.get("seed") for body in fake.requests} == {"storyteller": None, "base": 7}
    assert several.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert right.bounding_box()["y"] > left.bounding_box()["y"], "a phone shows one below the other"
    right.get_by_role("button", name="Copy answer B").click()
    expect(right.get_by_role("button", name="Copied")).to_be_visible()
    fake.words, fake.thoughts, fake.finish_reason = [MARKDOWN, HOSTILE], ["Hm."], "length"
    expect(several.get_by_role("button", name="Compare", exact=True)).to_be_enabled()
    several.get_by_role("button", name="Compare", exact=True).click()
    expect(left.locator("strong")).to_have_text("bold")
    expect(left.locator("td").first).to_have_text("Mercury")
    expect(left).to_contain_text("The answer was cut: it reached the limit of tokens.")
    expect(left).to_contain_text("<script>fetch('http://evil.invalid/c')</script>")
    expect(left.get_by_text("Hm.")).to_be_hidden()
    left.get_by_text("Thought").click()
    expect(left.get_by_text("Hm.")).to_be_visible()
    assert left.locator("img, script, iframe, image, [href^=javascript]").count() == 0
    assert violations(several) == []
    fake.thoughts, fake.finish_reason = [], "stop"
    fake.words, fake.wait_s = ["time "] * 500, 0.1
    expect(several.get_by_role("button", name="Compare", exact=True)).to_be_enabled()
    several.get_by_role("button", name="Compare", exact=True).click()
    expect(right).to_contain_text("time time")
    several.get_by_role("button", name="Stop both").click()
    expect(left).to_contain_text("stopped")
    expect(right).to_contain_text("stopped")
    assert fake.disconnected.wait(3)
