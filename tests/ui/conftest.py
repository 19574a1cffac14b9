"""The page over a fake Litmus server, and the browser that opens it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PATIENCE_MS
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect

from app.settings import prepare_environment
from serve.__main__ import _without_type_stubs
from tests.ui.chatting import models
from tests.ui.fakelitmus import BASE, CARD, NO_CHAT, Fake, create_fake_server, running
from tests.ui.window import PHONE, Window, without_errors

prepare_environment()
with _without_type_stubs():  # two seconds quicker, as at a start of the server
    from ui.flags.file import FlagFile
    from ui.page import mount
    from ui.visitors import Visitors

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def fake_server() -> Iterator[Fake]:
    fake = Fake()
    with running(create_fake_server(fake)) as url:
        fake.url = url
        yield fake


@pytest.fixture
def fake(fake_server: Fake) -> Fake:
    """The server, reset to its defaults."""
    fake_server.reset()
    return fake_server


@pytest.fixture(scope="session")
def flag_file(tmp_path_factory: pytest.TempPathFactory) -> FlagFile:
    return FlagFile(tmp_path_factory.mktemp("flags") / "flags.jsonl")


@pytest.fixture
def flags(flag_file: FlagFile) -> FlagFile:
    """Where the page keeps what visitors say about answers and verdicts; nothing yet."""
    flag_file.path.unlink(missing_ok=True)
    return flag_file


@pytest.fixture(scope="session")
def page_url(fake_server: Fake, flag_file: FlagFile) -> Iterator[str]:
    """The page and an icon at the root, as `python -m ui` has it."""
    app = FastAPI()
    app.add_api_route("/favicon.ico", lambda: RedirectResponse("/ui/favicon.ico"))
    with running(mount(app, Visitors(fake_server.url), flags=flag_file)) as url:
        yield f"{url}/ui"


FOLDER = Path(__file__).parent
windows: list[Window] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """Closes the browser when no page test of this folder follows: while it is open, `asyncio.run` of other tests would fail, and so would
    another browser.
    """
    yield
    if nextitem is None or not (nextitem.path.is_relative_to(FOLDER) and hasattr(nextitem.module, "CHROMIUM")):  # type: ignore[attr-defined]
        while windows:
            windows.pop().close()


@pytest.fixture(scope="module")
def window() -> Window:
    if not windows:
        windows.append(Window())
    return windows[0]


@pytest.fixture(scope="module")
def browser(window: Window) -> Browser:
    return window.browser


@pytest.fixture(scope="module")
def context(window: Window) -> BrowserContext:
    return window.context


@pytest.fixture
def viewport() -> ViewportSize:
    return PHONE  # a module may have its own


@pytest.fixture
def tab(window: Window, viewport: ViewportSize) -> Iterator[Page]:
    with window.empty_tab(viewport) as tab:
        yield tab


@pytest.fixture
def page(fake: Fake, page_url: str, tab: Page) -> Iterator[Page]:
    with without_errors(tab, page_url):
        tab.goto(page_url)
        yield tab


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
