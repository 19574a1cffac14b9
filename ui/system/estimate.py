"""The part of the System tab that asks how much memory a model would take, before it is loaded. The server computes it."""

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from ui.client import ServerError
from ui.markup import alert_html
from ui.system import client, rights
from ui.system.fields import DTYPES, FINE_TUNING, QUANTIZATIONS, request_fields
from ui.system.memory import estimate_html
from ui.visitors import Visitors

FIELDS = ("model", "quantize", "dtype", "context", "slots", "fine_tune")  # in the order of the form
ESTIMATE, ESTIMATING = "Estimate", "Estimating …"
NO_MODEL = "Name a model: a served one, auto for the default one, or a hub name."


def estimate_form(visitors: Visitors) -> None:
    gr.HTML("<h2>How much memory would a model take?</h2>", padding=False)
    with gr.Row():
        model = _textbox("Model to estimate", "a served one, auto, a hub name", min_width=280)
        quantize = gr.Dropdown([*QUANTIZATIONS], value=QUANTIZATIONS[0], label="Its quantization", min_width=140)
        dtype = gr.Dropdown([*DTYPES], value=DTYPES[0], label="It computes in", min_width=140)
    with gr.Row():
        context = _textbox("Context, tokens", "the model's own")
        slots = _textbox("Number of slots", "8 when blank")
        fine_tune = gr.Dropdown([("no, serve it", ""), *FINE_TUNING], value="", label="Fine-tune it?", min_width=140)
    ask = gr.Button(ESTIMATE, min_width=140)
    result = gr.HTML("", elem_id="estimate", padding=False)
    inputs = [model, quantize, dtype, context, slots, fine_tune]
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    began = gr.on([ask.click, model.submit], begin, None, [result, ask], **hidden)
    # Enter, pressed once more while an estimate runs, has its own afterwards.
    done = began.then(estimate_handler(visitors), inputs, result, trigger_mode="always_last", **hidden)
    done.then(lambda: gr.update(value=ESTIMATE, interactive=True), None, ask, **hidden)


def begin() -> tuple[str, dict[str, Any]]:
    """Takes away what was estimated for other inputs, and the button until there is an answer."""
    return f'<p class="status busy" role="status">{ESTIMATING}</p>', gr.update(value=ESTIMATING, interactive=False)


def _textbox(label: str, placeholder: str, min_width: int = 140) -> gr.Textbox:
    return gr.Textbox(value="", label=label, placeholder=placeholder, max_lines=1, min_width=min_width)


def estimate_handler(visitors: Visitors) -> Callable[..., Awaitable[str]]:
    async def estimate(request: gr.Request, *texts: str) -> str:
        try:
            await rights.check(visitors, request.request)
            fields = request_fields(FIELDS, texts)
            if "model" not in fields:
                return alert_html(NO_MODEL)
            return estimate_html(await client.estimate(visitors.client(request.request), fields), fields)
        except ServerError as error:
            return alert_html(error.message)

    return estimate
