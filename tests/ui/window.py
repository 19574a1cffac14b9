"""The browser that the page tests look through, and what they must not see there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from browser import CHROMIUM, FLAGS, PATIENCE_MS
from playwright.sync_api import Page, ViewportSize, sync_playwright

PHONE: ViewportSize = {"width": 390, "height": 844}
CUT_OFF = ("AbortError: signal is aborted", "Unexpected error Connection errored out.")  # calls, by a reload


class Window:
    """What the page tests look through, one after the other, whatever their module: Gradio's files are fetched once, and the process of
    the tab has compiled its scripts, which takes half of the time of a load.
    """

    def __init__(self) -> None:
        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        self.context = self.browser.new_context(viewport=PHONE)
        self.context.set_default_timeout(PATIENCE_MS)
        self.tab = self.context.new_page()

    @contextmanager
    def empty_tab(self, viewport: ViewportSize = PHONE) -> Iterator[Page]:
        """The tab, in which nothing is stored, even after a failure; a new one if a test has closed it."""
        if self.tab.is_closed():
            self.tab = self.context.new_page()
        tab = self.tab
        tab.set_viewport_size(viewport)
        try:
            yield tab
        finally:
            if not tab.is_closed() and tab.url != "about:blank":
                tab.evaluate("localStorage.clear(), sessionStorage.clear()")
                tab.unroute_all()
                tab.goto("about:blank")

    def close(self) -> None:
        self.browser.close()
        self.playwright.stop()


@contextmanager
def without_errors(tab: Page, page_url: str, expected: tuple[str, ...] = CUT_OFF) -> Iterator[None]:
    """What the block does with the page causes no request to another origin, and no error but what it expects to find in the console."""
    foreign_requests: list[str] = []
    origin = page_url.removesuffix("/ui")
    errors: list[str] = []
    listeners: dict[Any, Callable[[Any], Any]] = {
        "request": lambda request: request.url.startswith(("data:", "blob:", origin)) or foreign_requests.append(request.url),
        "console": lambda said: said.type == "error" and not said.text.startswith(expected) and errors.append(said.text),
        "pageerror": lambda error: errors.append(str(error)),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    yield
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert (foreign_requests, errors) == ([], [])
