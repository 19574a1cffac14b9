"""The Gradio page: a header that says what is served, a chat tab and a score tab. `create_page` builds it, `mount` hangs it into an app.

Knows a Litmus server by its address only. Holds no state of a visitor.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ui import score, view
from ui.chat import chat_tab
from ui.client import Client, ServerError

PATH = "/ui"
CALLS_AT_ONCE = 64
STYLE = Path(__file__).with_name("style.css")
# The page may talk to its own origin only; Gradio itself needs inline scripts, inline styles and eval.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; img-src 'self' data: blob:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEAD = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'


def create_page(server_url: str) -> gr.Blocks:
    client = Client(server_url)
    with gr.Blocks(title="Litmus", analytics_enabled=False) as page:
        header = gr.HTML(view.connecting(server_url))
        with gr.Tab("Chat"):
            chat_tab(client)
        with gr.Tab("Score"):
            method = score.score_tab(client)
        page.load(greet(client), None, [header, method], show_progress="hidden", api_visibility="private")
    page.queue(default_concurrency_limit=CALLS_AT_ONCE, api_open=False)
    return page


def greet(client: Client) -> Callable[[], Awaitable[tuple[Any, ...]]]:
    async def describe() -> tuple[Any, ...]:
        try:
            status = (await client.ready()).status
            cards = await client.models()
        except ServerError as error:
            return view.unreachable(error.message), gr.skip()
        methods = cards[0].methods if cards else []
        return view.header(cards, status), score.choices(methods)

    return describe


def options() -> dict[str, Any]:
    """What Gradio takes at launch and at mount alike: our looks, and everything that calls out or listens switched off."""
    return {
        "theme": _theme(),
        "css_paths": [STYLE],
        "head": HEAD,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "show_error": False,
        "max_file_size": 1,  # bytes: the page takes no files
    }


def _theme() -> gr.themes.Base:
    """Gradio's own, which brings its fonts along, with an accent dark enough to read white on."""
    return gr.themes.Default(primary_hue="teal", neutral_hue="slate").set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800", color_accent="*primary_600"
    )


def mount(app: FastAPI, server_url: str) -> FastAPI:
    """`app` with the page at /ui, talking to `server_url`. Call it before the app starts: Gradio joins its lifespan."""
    return gr.mount_gradio_app(app, create_page(server_url), path=PATH, **options())
