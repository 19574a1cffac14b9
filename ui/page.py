"""The Gradio page: a header that says what is served, the choice among several models, a chat tab and a score tab. `create_page` builds
it, `mount` hangs it into an app.

Knows a Litmus server by its address only. Holds no state of a visitor.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ui import header, score
from ui.chat import chat_tab
from ui.client import Client, ServerError
from ui.models import Choice

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
        head = gr.HTML(header.connecting(server_url))
        model = gr.Dropdown([], value=None, label="Model", interactive=True, filterable=False, visible=False, elem_id="model")
        kept = gr.BrowserState("", storage_key="litmus-model", secret="litmus")  # a name, nothing secret
        with gr.Tab("Chat"):
            notice = chat_tab(client, model)
        with gr.Tab("Score"):
            method = score.score_tab(client, model)
        shown = [head, model, method, notice, kept]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(greet(client), [kept, method], shown, **hidden)
        model.input(greet(client), [model, method], shown, trigger_mode="always_last", **hidden)
    page.queue(default_concurrency_limit=CALLS_AT_ONCE, api_open=False)
    return page


def greet(client: Client) -> Callable[[str, str], Awaitable[tuple[Any, ...]]]:
    async def describe(asked: str, method: str) -> tuple[Any, ...]:
        """Asks the server anew each time: what it serves may have changed since the page was loaded."""
        try:
            readiness = await client.ready()
            choice = Choice(await client.models(), readiness, asked)
        except ServerError as error:
            return header.unreachable(error.message), *(gr.skip(),) * 4
        methods = choice.card.methods if choice.card else []
        return header.header(choice), picker(choice), score.choices(methods, method), header.speechless(choice), choice.kept

    return describe


def picker(choice: Choice) -> dict[str, Any]:
    """The model dropdown: seen only where there is a choice. Its value is what requests send as `model`."""
    return gr.update(choices=[(card.id, card.id) for card in choice.cards], value=choice.sent, visible=choice.several)


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
