"""The browser that looks at the page."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 60_000  # how long the page may take for anything, beside other tests on two cores
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--js-flags=--no-opt --no-maglev",  # a page lives too short to earn what it costs to optimize its scripts
]


def fill(box: Locator, text: str) -> None:
    """Fill a box behind a tab or an accordion, and again if it is emptied.

    Gradio mounts what is behind them when they are first opened, and a script is faster than that.
    """
    for _ in range(20):
        box.fill(text)
        box.page.evaluate("() => new Promise(done => requestIdleCallback(() => setTimeout(done, 300)))")
        if box.input_value() == text:
            return


NOTE = """(part, text) => {
    window.shown = false;
    new MutationObserver(() => (window.shown ||= part.textContent.includes(text))).observe(part, { subtree: true, childList: true });
}"""


@contextmanager
def flashing(part: Locator, text: str) -> Iterator[None]:
    """What the block does makes the part show this text, if only for a moment, in which nobody may ask. A page that was loaded anew
    meanwhile cannot tell any more.
    """
    part.evaluate(NOTE, text)
    yield
    part.page.wait_for_function("window.shown !== false")


def violations(page: Page) -> list[tuple[str, str]]:
    """What axe-core finds serious in what is shown, light and dark: the rule, and the first element that breaks it."""
    found = []
    page.add_style_tag(content="* { transition: none !important; animation: none !important; }")  # no colour is caught half-way
    for is_dark in (False, True):
        page.evaluate("isDark => document.body.classList.toggle('dark', isDark)", is_dark)
        result = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        found += [(each["id"], each["nodes"][0]["html"]) for each in result if each["impact"] in {"serious", "critical"}]
    return found
