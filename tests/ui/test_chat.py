"""The chat in a real browser, against a fake Litmus server: answers, stops and refusals, and the choice of the model."""

import re

import pytest
from browser import CHROMIUM, fill, flashing
from playwright.sync_api import Locator, Page, Route, expect

from tests.ui.chatting import (
    QUESTION,
    STORED,
    ask,
    ask_until_taken,
    box,
    button,
    conversation,
    enter_until,
    expect_answer,
    expect_answering,
    models,
    score,
    settings,
    wait_until,
)
from tests.ui.fakelitmus import BASE, CARD, NO_CHAT, Fake

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


def current(page: Page) -> Locator:
    """The model name that the list of models marks as selected."""
    return page.locator("[aria-current] b")


def reload(page: Page) -> None:
    """Reloads once the browser has stored the selected model, which it does a moment after the page shows it."""
    page.wait_for_function(f"{STORED} !== null")
    page.reload()


def choose(page: Page, name: str) -> None:
    models(page).click()
    page.get_by_role("option", name=name).click()
    expect(page.locator("header.litmus summary")).to_contain_text(name)


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
    fake.hold_after = 0
    fake.progress = (412, 1024)
    ask(loaded, QUESTION)
    expect(loaded.get_by_text("Reading the prompt: 412 of 1,024 tokens")).to_be_visible()
    fake.hold_after = 6
    expect(conversation(loaded)).to_contain_text("Once")
    expect(loaded.locator("#live")).to_contain_text("Answering · ")
    expect(conversation(loaded)).to_have_attribute("aria-busy", "true")
    expect(loaded).to_have_title("answering… · storyteller · Litmus")
    expect(conversation(loaded)).not_to_contain_text("a crow.Once")
    fake.hold_after = None
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
    fake.words = ["Once ", "upon ", *["time "] * 2000]
    fake.wait_s = 0.1
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("Once upon time")
    expect(button(loaded, "Send")).to_have_count(0)  # Stop has its place
    loaded.keyboard.press("Escape")
    expect(conversation(loaded)).to_contain_text("You stopped this answer.")
    assert fake.disconnected.wait(60)
    expect(conversation(loaded)).to_contain_text("Once upon time")
    expect(button(loaded, "Send")).to_be_enabled()
    expect(box(loaded)).to_have_value("")


def test_stop_before_the_first_token_returns_the_question(loaded: Page, fake: Fake):
    fake.hold_after = 0
    ask(loaded, QUESTION)
    expect(loaded.get_by_text("Waiting for the first token")).to_be_visible()
    wait_until(loaded, lambda: bool(fake.requests))
    button(loaded, "Stop").click()
    expect(conversation(loaded)).to_contain_text("Stopped before the first token.")
    expect(box(loaded)).to_have_value(QUESTION)
    assert fake.disconnected.wait(60)


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
    with flashing(loaded.locator("#line"), "Sending the question"):  # what the page shows of its models may draw the line anew
        ask(loaded, QUESTION)
    expect(box(loaded)).to_have_value("")
    box(loaded).fill("The next question")
    wait_until(loaded, lambda: bool(held))  # the browser empties the box before it sends
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
    enter_until(loaded, "a fox</b> met")
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
    expect(models(several)).to_have_value("base")
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
    expect(models(several)).to_have_value("base")


def test_a_model_that_is_no_longer_served_is_reported_once(several: Page, page_url: str, fake: Fake):
    choose(several, "base")
    several.wait_for_function(f"{STORED} !== null")
    stored = several.evaluate(STORED)
    several.goto("about:blank")  # a choice asks the server twice, as Gradio raises `input` once more for a list that loses the focus
    fake.cards = [CARD]
    several.goto(page_url)
    expect(several.get_by_role("alert")).to_have_text("base is no longer served here, so storyteller is selected.")
    expect(models(several)).to_have_count(0)
    several.wait_for_function(f"stored => {STORED} !== stored", arg=stored)
    several.reload()
    expect(several.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible(timeout=20_000)
    expect(several.get_by_role("alert")).to_have_count(0)


def test_the_context_is_shown_after_a_reload_whichever_answer_comes_last(loaded: Page):
    ask(loaded, QUESTION)
    expect_answer(loaded)
    held: list[Route] = []  # what opens the conversation, until the page knows its model
    knows = False
    loaded.route("**/run/predict*", lambda call: call.continue_() if knows else held.append(call))
    loaded.reload()
    expect(loaded.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible()
    knows = True
    for call in held:
        call.continue_()
    expect_answer(loaded)
    expect(loaded.get_by_text("21 of 4,096 tokens of the context (1%).")).to_be_visible()


def test_a_closed_tab_ends_the_upstream_request(loaded: Page, fake: Fake):
    """The last test of the tab, as another one would have to compile Gradio's scripts again."""
    fake.words = ["time "] * 2000
    fake.wait_s = 0.1
    ask(loaded, QUESTION)
    expect(conversation(loaded)).to_contain_text("time time")
    loaded.close()
    assert fake.disconnected.wait(60)
