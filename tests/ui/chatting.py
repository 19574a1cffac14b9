"""What a visitor does in the chat and sees of it."""

import time
from collections.abc import Callable
from contextlib import suppress

from browser import fill
from playwright.sync_api import BrowserContext, Locator, Page, expect

QUESTION = "Tell me a story about <b>a fox</b> & a crow."
STORED = "localStorage.getItem('litmus-model')"  # encrypted, so that only a change of it can be awaited


def open_page(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(f"{url}/ui")
    expect(page.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible()
    return page


def models(page: Page) -> Locator:
    return page.get_by_role("combobox", name="Model", exact=True)


def settings(page: Page) -> None:
    button(page, "Settings").click()


def ask(page: Page, text: str) -> None:
    box(page).fill(text)
    box(page).press("Enter")


def ask_until_taken(page: Page, text: str) -> None:
    box(page).fill(text)
    enter_until(page, text)


def enter_until(page: Page, words: str) -> None:
    """Press Enter until the conversation has the words: Gradio drops it while the event of the last Enter is still on its way."""
    for _ in range(20):
        box(page).press("Enter")
        with suppress(AssertionError):
            expect(conversation(page)).to_contain_text(words, timeout=2000)
            return


def wait_until(page: Page, condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for something that the page does not show."""
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {seconds} s"
        page.wait_for_timeout(20)


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
    """Waits until an answer has begun."""
    expect(page.locator("#live[data-state=answering]")).to_be_visible()


def shelf(page: Page) -> Locator:
    return page.get_by_role("navigation", name="Conversations")


def talk(page: Page, *questions: str) -> None:
    for count, question in enumerate(questions, 1):
        ask_until_taken(page, question)
        expect_answer(page, count)
