"""The Gradio page: a bar with the model, a chat tab and a score tab.

`create_page` builds it, `mount` adds it to a FastAPI app. It calls a Litmus server by its visitors' clients and keeps no visitor's state.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.routing import Mount

from app.neighbours import Neighbours
from ui import header
from ui.calls import MAX_BYTES
from ui.chat import tab as chat_tab
from ui.chat.examples import placeholder_html
from ui.chat.steps import redraw_line
from ui.client import ServerError
from ui.compare.tab import compare_tab
from ui.flags.file import FlagFile
from ui.guard import Guard
from ui.jobs.tab import jobs_tab
from ui.models import ModelSelection
from ui.routes import own_routes
from ui.score import tab as score
from ui.system.tab import system_tab
from ui.visitors import Visitors

PATH = "/ui"
MAX_CONCURRENT_CALLS = 64
RETRY_S = 2.0  # how often the page asks again while the server does not serve all its models
STYLESHEET = Path(__file__).with_name("style.css")
TAB_STYLESHEETS = [Path(__file__).with_name(tab) / f"{tab}.css" for tab in ("chat", "score", "compare", "system", "jobs")]
SCRIPTS = [Path(__file__).with_name(name) for name in ("connection.js", "browser.js")]
ICON_LINK = '<link rel="icon" href="icon.svg" type="image/svg+xml">'


def create_page(visitors: Visitors, flags: bool = False, max_file_bytes: int = MAX_BYTES) -> gr.Blocks:
    with gr.Blocks(title="Litmus", analytics_enabled=False, fill_width=True) as page:
        with gr.Row(elem_id="bar"):
            page_header = gr.HTML(header.connecting_header(visitors.server_url), padding=False, elem_id="about")
            model = gr.Dropdown([], value=None, label="Model", interactive=True, filterable=False, visible=False, elem_id="model")
            if visitors.all_log_in:
                gr.HTML('<a href="logout">Log out</a>', elem_id="logout", padding=False)
        # The browser keeps the model's name between visits. Gradio asks for a secret; a model's name needs none.
        remembered = gr.BrowserState("", storage_key="litmus-model", secret="litmus")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat", elem_id="chat"):
                chat = chat_tab.ChatTab(page, flags)
            with gr.Tab("Score", id="score", elem_id="score-tab"):
                scoring = score.score_tab(visitors, model, flags, max_file_bytes)
            with gr.Tab("Compare", id="compare", elem_id="compare-tab") as compare:
                compare_tab(visitors, compare)
            with gr.Tab("Jobs", id="jobs"):
                jobs_tab()
            with gr.Tab("System", id="system") as system:
                system_tab(visitors, system)
        chat.connect(visitors, page, model, scoring.text)
        retry = gr.Timer(RETRY_S, active=False)
        outputs = [page_header, model, scoring.method, chat.notice, remembered, retry, chat.served, chat.chatbot]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for refreshed in (
            page.load(refresh_handler(visitors), [remembered, scoring.method], outputs, **hidden),
            model.input(choice_handler(visitors), [model, scoring.method, chat.served], outputs, trigger_mode="always_last", **hidden),
            retry.tick(refresh_handler(visitors), [remembered, scoring.method], outputs, **hidden),
        ):
            refreshed.then(redraw_line, [chat.running, chat.kept, chat.served], chat.line, **hidden)
    page.queue(default_concurrency_limit=MAX_CONCURRENT_CALLS, api_open=False)
    return page


def refresh_handler(visitors: Visitors) -> Callable[[gr.Request, str, str], Awaitable[tuple[Any, ...]]]:
    async def refresh(request: gr.Request, requested_model: str, method: str) -> tuple[Any, ...]:
        """Updates all that depends on the served models, the remembered one, and whether the page asks again by itself.

        Asks the server each time: the models it serves may have changed since the page was loaded.
        """
        client = visitors.client(request.request)
        try:
            readiness = await client.ready()
            cards = await client.models_unless_loading(readiness)
        except ServerError as error:
            return header.unreachable_header(error.message), *(gr.skip(),) * 4, gr.Timer(active=True), *(gr.skip(),) * 2
        if cards is None:
            return header.loading_header(readiness), *(gr.skip(),) * 4, gr.Timer(active=True), *(gr.skip(),) * 2
        selection = ModelSelection(cards, readiness, requested_model)
        return (
            header.models_header(selection),
            model_update(selection),
            score.method_update(selection.selected.methods if selection.selected else [], method),
            header.no_chat_notice(selection),
            selection.remembered,
            gr.Timer(active=readiness.status != "ready"),
            header.served(selection),
            gr.update(placeholder=placeholder_html(selection.selected.id if selection.selected else "")),
        )

    return refresh


def choice_handler(visitors: Visitors) -> Callable[[gr.Request, str, str, list[Any]], Awaitable[tuple[Any, ...]]]:
    """Gradio calls it for every list that loses the focus, too: only another name than the one that is served is a choice."""
    refresh = refresh_handler(visitors)

    async def choose(request: gr.Request, requested_model: str, method: str, served: list[Any]) -> tuple[Any, ...]:
        return (gr.skip(),) * 8 if served[:1] == [requested_model] else await refresh(request, requested_model, method)

    return choose


def model_update(selection: ModelSelection) -> dict[str, Any]:
    """Updates the model dropdown, which is visible only if there are several models. Its value is what requests send as `model`."""
    names = [(card.id, card.id) for card in selection.cards]
    return gr.update(choices=names, value=selection.request_model, visible=selection.has_several)


def launch_options() -> dict[str, Any]:
    """The options that Gradio takes both to launch and to mount: our style, and every feature off that calls out or opens an API."""
    return {
        "theme": _theme(),
        "css_paths": [STYLESHEET, *TAB_STYLESHEETS],
        "head": ICON_LINK + "".join(f"<script>{path.read_text(encoding='utf-8')}</script>" for path in (*SCRIPTS, *chat_tab.SCRIPTS)),
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
    """Gradio's default theme, with fills dark enough for white text, and with fonts from the package: those for its weight of 600 lack the
    letters from C on, so 700 stands for it.
    """
    text, mono = (gr.themes.LocalFont(name, weights=(400, 700)) for name in ("Source Sans Pro", "IBM Plex Mono"))
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=(text, "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(mono, "ui-monospace", "Consolas", "monospace"),
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_hover_dark="#991b1b",
        color_accent="*primary_600",
    )


def mount(
    app: FastAPI,
    visitors: Visitors,
    neighbours: Neighbours | None = None,
    flags: FlagFile | None = None,
    max_file_bytes: int = MAX_BYTES,
) -> FastAPI:
    """Adds the page to `app` at /ui. Call it before the app starts, because Gradio joins its lifespan.

    With `neighbours` the page checks Host and Origin itself: `serve` does so for all of its routes. With `flags` visitors can say that a
    verdict is wrong.
    """
    gr.mount_gradio_app(app, create_page(visitors, flags is not None, max_file_bytes), path=PATH, **launch_options())
    page = app.router.routes[-1]
    assert isinstance(page, Mount)
    page.app = Guard(page.app, visitors, neighbours, own_routes(visitors, flags, max_file_bytes))
    return app
