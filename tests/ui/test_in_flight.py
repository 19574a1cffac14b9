"""What is asked for while a step of the chat is on its way to the server and back."""

import re

import pytest
from browser import CHROMIUM, fill
from playwright.sync_api import Page, Route, ViewportSize, expect

from tests.ui.chatting import QUESTION, ask, box, button, conversation, expect_answer, shelf, talk, wait_until
from tests.ui.fakelitmus import Fake

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


@pytest.fixture
def viewport() -> ViewportSize:
    """Wide enough that the list of conversations is open."""
    return {"width": 1400, "height": 900}


def hold_step(page: Page, name: str) -> list[Route]:
    """Holds the calls of a step on their way to the server; `name` as it stands in their inputs."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        is_meant = f'[\\"{name}\\",' in (route.request.post_data or "")
        held.append(route) if is_meant else route.continue_()

    page.route("**/gradio_api/run/predict*", hold)
    return held


def test_a_question_that_is_sent_before_the_page_has_its_conversation_is_answered(loaded: Page, fake: Fake):
    held = hold_step(loaded, "new")
    loaded.reload()
    fill(box(loaded), QUESTION)
    button(loaded, "Send").click()
    box(loaded).press("Enter")
    wait_until(loaded, lambda: bool(held))
    expect(loaded.locator("#told")).to_have_text(re.compile("is sent as soon as the page is ready"))
    expect(box(loaded)).to_have_value(QUESTION)
    assert fake.requests == []
    held[0].continue_()
    expect_answer(loaded)
    expect(box(loaded)).to_have_value("")
    expect(loaded.locator("#told")).to_be_empty()
    assert len(fake.requests) == 1


def test_a_question_that_is_sent_while_another_conversation_opens_is_asked_there(loaded: Page, fake: Fake):
    talk(loaded, "Who?")
    button(loaded, "New conversation").click()
    talk(loaded, "Where?")
    held = hold_step(loaded, "open")
    shelf(loaded).get_by_role("button", name="Who?", exact=True).click()
    ask(loaded, "And then?")
    wait_until(loaded, lambda: bool(held))
    expect(loaded.locator("#told")).to_have_text(re.compile("is sent as soon as the page is ready"))
    assert len(fake.requests) == 2
    held[0].continue_()
    expect_answer(loaded, 2)
    expect(conversation(loaded)).to_contain_text("And then?")
    assert [each["content"] for each in fake.requests[-1]["messages"] if each["role"] == "user"] == ["Who?", "And then?"]
    assert len(fake.requests) == 3


def test_a_question_that_is_sent_while_another_is_fetched_for_an_edit_stays_in_the_box(loaded: Page, fake: Fake):
    talk(loaded, "Who?")
    held = hold_step(loaded, "edit")
    fill(box(loaded), "A draft")
    button(loaded, "Edit").click()
    box(loaded).press("Enter")
    wait_until(loaded, lambda: bool(held))
    held[0].continue_()
    expect(box(loaded)).to_have_value("Who?")
    button(loaded, "Cancel").click()
    expect(box(loaded)).to_have_value("A draft")
    assert len(fake.requests) == 1


def test_a_conversation_that_is_chosen_while_a_question_is_on_its_way_opens_and_the_question_is_kept(loaded: Page, fake: Fake):
    talk(loaded, "Who?")
    button(loaded, "New conversation").click()
    expect(conversation(loaded)).not_to_contain_text("Who?")
    held: list[Route] = []
    loaded.route("**/gradio_api/run/predict*", lambda route: route.continue_() if held else held.append(route))
    ask(loaded, "Where?")
    wait_until(loaded, lambda: bool(held))
    shelf(loaded).get_by_role("button", name="Who?", exact=True).click()
    loaded.wait_for_timeout(300)
    held[0].continue_()
    expect(conversation(loaded)).to_contain_text("Who?")
    expect_answer(loaded)
    shelf(loaded).get_by_role("button", name="Where?", exact=True).click()
    expect(conversation(loaded)).to_contain_text("Where?")
    expect(conversation(loaded)).not_to_contain_text("Who?")
