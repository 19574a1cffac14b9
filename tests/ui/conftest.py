"""The page over a fake Litmus server, and the browser that opens it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browser import CHROMIUM, FLAGS, PATIENCE_MS
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from app.settings import prepare_environment
from serve.__main__ import _without_type_stubs
from tests.ui.chatting import models
from tests.ui.fakelitmus import BASE, CARD, NO_CHAT, Fake, create_fake_server, running

prepare_environment()
with _without_type_stubs():  # two seconds quicker, as at a start of the server
    from ui.flags.file import FlagFile
    from ui.page import mount
    from ui.visitors import Visitors

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def fake_server() -> Iterator[Fake]:
    fake = Fake()
    with running(create_fake_server(fake)) as url:
        fake.url = url
        yield fake


@pytest.fixture
def fake(fake_server: Fake) -> Fake:
    """The module's server, reset to its defaults."""
    fake_server.reset()
    return fake_server


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> FlagFile:
    """Where the page keeps what visitors say about answers and verdicts."""
    return FlagFile(tmp_path_factory.mktemp("flags") / "flags.jsonl")


@pytest.fixture(scope="module")
def page_url(fake_server: Fake, flags: FlagFile) -> Iterator[str]:
    """The page and an icon at the root, as `python -m ui` has it."""
    app = FastAPI()
    app.add_api_route("/favicon.ico", lambda: RedirectResponse("/ui/favicon.ico"))
    with running(mount(app, Visitors(fake_server.url), flags=flags)) as url:
        yield f"{url}/ui"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one module: while it is open, `asyncio.run` of other tests would fail."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """All tests share it, so that Gradio's files are fetched once."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


CUT_OFF = ("AbortError: signal is aborted", "Unexpected error Connection errored out.")


@pytest.fixture
def viewport() -> ViewportSize:
    """A phone's; a module may have its own."""
    return {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def tabs(context: BrowserContext) -> list[Page]:
    """The tab that tests look at one after the other: its process has compiled Gradio's scripts, which takes half of the time of a load."""
    return [context.new_page()]


@pytest.fixture
def tab(tabs: list[Page], context: BrowserContext, viewport: ViewportSize) -> Iterator[Page]:
    """An empty tab, in which nothing is stored; a new one if a test has closed it."""
    if tabs[0].is_closed():
        tabs[0] = context.new_page()
    tab = tabs[0]
    tab.set_viewport_size(viewport)
    yield tab
    if not tab.is_closed() and tab.url != "about:blank":
        tab.evaluate("localStorage.clear(), sessionStorage.clear()")
        tab.unroute_all()
        tab.goto("about:blank")


@pytest.fixture
def page(fake: Fake, page_url: str, tab: Page) -> Iterator[Page]:
    """The page. A request to another origin fails the test, and so does an error in the console, but for those of calls that a reload
    cuts off.
    """
    foreign_requests: list[str] = []
    origin = page_url.removesuffix("/ui")
    errors: list[str] = []
    listeners: dict[Any, Callable[[Any], Any]] = {
        "request": lambda request: request.url.startswith(("data:", "blob:", origin)) or foreign_requests.append(request.url),
        "console": lambda said: said.type == "error" and not said.text.startswith(CUT_OFF) and errors.append(said.text),
        "pageerror": lambda error: errors.append(str(error)),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.goto(page_url)
    yield tab
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert (foreign_requests, errors) == ([], [])


@pytest.fixture
def loaded(page: Page) -> Page:
    expect(page.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible(timeout=20_000)
    return page


@pytest.fixture
def several(fake: Fake, request: pytest.FixtureRequest) -> Page:
    """The page for a server of three models, the default in the middle."""
    fake.cards = [BASE, CARD, NO_CHAT]
    page: Page = request.getfixturevalue("page")
    expect(models(page)).to_have_value("storyteller")
    return page
