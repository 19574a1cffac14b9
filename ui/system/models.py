"""The part of the System tab that loads, swaps and unloads models. The server decides what it does; an unload is confirmed first."""

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from ui.client import Client, MissingRoute, ServerError
from ui.markup import alert_html
from ui.system import client, rights
from ui.system.fields import DTYPES, QUANTIZATIONS, UNCHANGED, request_fields
from ui.system.versions import done_html, question_html, versions_html
from ui.visitors import Visitors

FIELDS = ("path", "quantize", "dtype", "context", "slots")  # in the order of the form
NO_NAME = "Name a model first: one of the list, or a new name for another model."
FOCUS = "() => requestAnimationFrame(() => document.querySelector('#unload-no')?.focus())"
Handler = Callable[..., Awaitable[tuple[Any, ...]]]


class ModelsPanel:
    """`outputs` are what a look at the server changes; `listed` gives their updates."""

    OUTPUTS = 3

    def __init__(self, visitors: Visitors) -> None:
        gr.HTML("<h2>Models</h2>", padding=False)
        versions = gr.HTML("", elem_id="versions", padding=False)
        with gr.Column(visible=False) as form:
            with gr.Row():
                name = gr.Dropdown([], value=None, label="Name of the model", allow_custom_value=True, interactive=True, min_width=200)
                path = _textbox("Path", "as it is; a folder, a GGUF file, a hub name", min_width=280)
            fields = [path, *_setting_fields()]
            with gr.Row():
                load = gr.Button("Load this version", variant="primary", min_width=140)
                unload = gr.Button("Unload…", min_width=140)
            asked = gr.State("")
            with gr.Column(visible=False, elem_id="unload-confirm") as confirm:
                question = gr.HTML("", padding=False)
                default = _textbox("Default model afterwards", "only to unload the default model")
                with gr.Row():
                    yes = gr.Button("Yes, unload it", variant="stop", min_width=140)
                    no = gr.Button("No, keep it", elem_id="unload-no", min_width=140)
        result = gr.HTML("", elem_id="change-result", padding=False)
        self.outputs = [versions, name, form]

        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        load.click(load_handler(visitors), [name, *fields], [result, versions], **hidden)
        opened = unload.click(ask_handler(visitors), name, [asked, question, confirm, result], **hidden)
        opened.then(None, js=FOCUS)
        yes.click(unload_handler(visitors), [asked, default], [confirm, result, versions], **hidden)
        no.click(lambda: (gr.update(visible=False), ""), None, [confirm, result], **hidden)


def _setting_fields() -> list[gr.components.Component]:
    with gr.Row():
        quantize = gr.Dropdown([("as it is", UNCHANGED), *QUANTIZATIONS], value=UNCHANGED, label="Quantization", min_width=140)
        dtype = gr.Dropdown([("as it is", UNCHANGED), *DTYPES], value=UNCHANGED, label="Computes in", min_width=140)
        return [quantize, dtype, _textbox("Context, tokens", "as it is"), _textbox("Slots", "as it is")]


def _textbox(label: str, placeholder: str, min_width: int = 140) -> gr.Textbox:
    return gr.Textbox(value="", label=label, placeholder=placeholder, max_lines=1, min_width=min_width)


async def listed(caller: Client, first: bool) -> tuple[Any, ...]:
    """Updates of `ModelsPanel.outputs`; of the names to choose from only at the `first` look, so that no open list changes."""
    try:
        models = await client.models(caller)
    except client.NotAdmin:
        raise
    except MissingRoute as error:
        return done_html(error.message), gr.skip(), gr.update(visible=False)
    except ServerError as error:
        return alert_html(error.message), gr.skip(), gr.skip()
    names = list(dict.fromkeys(model.id for model in models))
    return versions_html(models), gr.update(choices=names) if first else gr.skip(), gr.update(visible=True)


def load_handler(visitors: Visitors) -> Handler:
    async def load(request: gr.Request, name: str | None, *texts: str) -> tuple[Any, ...]:
        """Asks the server to load, and says that it does: the list shows how far it is."""
        if not name or not name.strip():
            return alert_html(NO_NAME), gr.skip()
        try:
            await rights.check(visitors, request.request)
            caller = visitors.client(request.request)
            model = await client.load(caller, name.strip(), request_fields(FIELDS, texts))
            versions = versions_html(await client.models(caller))
        except ServerError as error:
            return alert_html(error.message), gr.skip()
        return done_html(f"{model.id} is being loaded. A version that is served goes on until the new one is ready."), versions

    return load


def ask_handler(visitors: Visitors) -> Handler:
    async def ask(request: gr.Request, name: str | None) -> tuple[Any, ...]:
        """Opens the question. The name is kept, so that another choice in between unloads nothing else."""
        if not name or not name.strip():
            return "", "", gr.update(visible=False), alert_html(NO_NAME)
        try:
            await rights.check(visitors, request.request)
            models = await client.models(visitors.client(request.request))
        except ServerError as error:
            return "", "", gr.update(visible=False), alert_html(error.message)
        return name.strip(), question_html(name.strip(), models), gr.update(visible=True), ""

    return ask


def unload_handler(visitors: Visitors) -> Handler:
    async def unload(request: gr.Request, name: str, default: str) -> tuple[Any, ...]:
        try:
            await rights.check(visitors, request.request)
            caller = visitors.client(request.request)
            model = await client.unload(caller, name, default.strip() or None)
            versions = versions_html(await client.models(caller))
        except ServerError as error:
            return gr.skip(), alert_html(error.message), gr.skip()
        return gr.update(visible=False), done_html(f"{model.id} is being unloaded."), versions

    return unload
