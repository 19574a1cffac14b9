"""The browser that looks at the page."""

from pathlib import Path

from playwright.sync_api import Locator

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
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
