"""The Gradio page: a header, a dropdown among several models, a chat tab and a score tab.

`create_page` builds it, `mount` adds it to a FastAPI app. It knows a Litmus server by its address only and keeps no visitor's state.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ui import header, score
from ui.chat import chat_tab
from ui.client import Client, ServerError
from ui.models import ModelSelection

PATH = "/ui"
MAX_CONCURRENT_CALLS = 64
RETRY_S = 2.0  # how often the page asks again while the server does not serve all its models
STYLESHEET = Path(__file__).with_name("style.css")
# The page may call its own origin only; Gradio itself needs inline scripts, inline styles and eval.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; img-src 'self' data: blob:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEAD = f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">'


def create_page(server_url: str) -> gr.Blocks:
    client = Client(server_url)
    with gr.Blocks(title="Litmus", analytics_enabled=False) as page:
        page_header = gr.HTML(header.connecting_header(server_url))
        model = gr.Dropdown([], value=None, label="Model", interactive=True, filterable=False, visible=False, elem_id="model")
        # The browser keeps the model's name between visits. Gradio asks for a secret; a model's name needs none.
        remembered = gr.BrowserState("", storage_key="litmus-model", secret="litmus")
        with gr.Tab("Chat"):
            notice = chat_tab(client, model)
        with gr.Tab("Score"):
            method = score.score_tab(client, model)
        retry = gr.Timer(RETRY_S, active=False)
        outputs = [page_header, model, method, notice, remembered, retry]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(refresh_handler(client), [remembered, method], outputs, **hidden)
        model.input(refresh_handler(client), [model, method], outputs, trigger_mode="always_last", **hidden)
        retry.tick(refresh_handler(client), [remembered, method], outputs, **hidden)
    page.queue(default_concurrency_limit=MAX_CONCURRENT_CALLS, api_open=False)
    return page


def refresh_handler(client: Client) -> Callable[[str, str], Awaitable[tuple[Any, ...]]]:
    async def refresh(requested_model: str, method: str) -> tuple[Any, ...]:
        """Updates the header, both dropdowns, the notice, the remembered model, and whether the page asks again by itself.

        Asks the server each time: the models it serves may have changed since the page was loaded.
        """
        try:
            readiness = await client.ready()
            cards = await client.models_unless_loading(readiness)
        except ServerError as error:
            return header.unreachable_header(error.message), *(gr.skip(),) * 4, gr.Timer(active=True)
        if cards is None:
            return header.loading_header(readiness), *(gr.skip(),) * 4, gr.Timer(active=True)
        selection = ModelSelection(cards, readiness, requested_model)
        return (
            header.models_header(selection),
            model_update(selection),
            score.method_update(selection.selected.methods if selection.selected else [], method),
            header.no_chat_notice(selection),
            selection.remembered,
            gr.Timer(active=readiness.status != "ready"),
        )

    return refresh


def model_update(selection: ModelSelection) -> dict[str, Any]:
    """Updates the model dropdown, which is visible only if there are several models. Its value is what requests send as `model`."""
    names = [(card.id, card.id) for card in selection.cards]
    return gr.update(choices=names, value=selection.request_model, visible=selection.has_several)


def launch_options() -> dict[str, Any]:
    """The options that Gradio takes both to launch and to mount: our style, and every feature off that calls out or opens an API."""
    return {
        "theme": _theme(),
        "css_paths": [STYLESHEET],
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
    """Gradio's default theme, whose fonts come with the package, with an accent dark enough for white text."""
    return gr.themes.Default(primary_hue="teal", neutral_hue="slate").set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800", color_accent="*primary_600"
    )


def mount(app: FastAPI, server_url: str) -> FastAPI:
    """Adds the page to `app` at /ui; the page calls `server_url`. Call it before the app starts, because Gradio joins its lifespan."""
    return gr.mount_gradio_app(app, create_page(server_url), path=PATH, **launch_options())
