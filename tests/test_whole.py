"""The whole product as a new user sees it: the bundled models, the real server, the page in a browser."""

import re
from collections.abc import Iterator

import pytest
from browser import CHROMIUM, FLAGS, fill
from playwright.sync_api import Page, expect, sync_playwright
from serving import RunningServer, serving

TEXT = (
    "It was the best of days to be a fox. The sun lay on the stubble, the dogs were asleep in the yard, and the old crow who sat on the "
    "gate had, as usual, a great deal to say about nothing at all. The fox listened with his head on one side, for he had learned that "
    "those who talk with something in their beaks may be brought to drop it, and he was very fond of cheese. So he waited, and smiled."
)

expect.set_options(timeout=60_000)  # beside other tests on two cores
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("whole"), "--server.drain_s", "300", page=True) as running:
        yield running


@pytest.fixture(scope="module")
def page(running: RunningServer) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(running.url)
        expect(page.get_by_text("storyteller · float32 · 1,024 tokens")).to_be_visible()
        yield page
        browser.close()


def test_a_newcomer_chats(page: Page) -> None:
    box = page.get_by_label("Message", exact=True)
    box.fill("Tell me a story about a fox and a crow.")
    box.press("Enter")
    expect(page.get_by_role("log")).to_contain_text(
        re.compile(r"\d+ tokens · [\d.,]+ tokens/s · first token after [\d,]+ ms"), timeout=60_000
    )


def test_a_newcomer_scores_a_text(page: Page) -> None:
    page.get_by_role("tab", name="Score").click()
    fill(page.get_by_label("Text to score"), TEXT)
    page.get_by_role("button", name="Score", exact=True).click()
    result = page.get_by_role("region", name="Result")
    expect(result.get_by_role("heading", level=2)).to_have_text(re.compile("machine text|human text|Cannot tell"))
    expect(result.get_by_text("Combined score", exact=True)).to_be_visible()
    expect(result.get_by_text("Threshold of a machine verdict", exact=True)).to_be_visible()
    expect(result.locator(".t")).not_to_have_count(0)


def test_a_stop_with_the_page_open_is_quick_and_quiet(page: Page, running: RunningServer) -> None:
    expect(page.get_by_role("tab", name="Score")).to_be_visible()
    running.process.terminate()
    assert running.process.wait(60) == 0  # long before the 300 s that requests in flight would get
    assert "Traceback" not in running.log.read_text()
    assert TEXT[:30] not in running.log.read_text()
