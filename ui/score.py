"""The score tab: a text, a method, and the report of what the server says about them.

Knows neither thresholds nor verdicts; the server explains itself.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app.schemas import Method
from ui import report
from ui.client import Client, ServerError
from ui.examples import TEXTS
from ui.gauge import METHODS
from ui.messages import problem

AUTOMATIC = ""
NO_TEXT = "There is no text to score yet. Paste at least a few sentences."
TOKENS_JS = Path(__file__).with_name("tokens.js")


def score_tab(client: Client, model: gr.Dropdown) -> gr.Dropdown:
    """The method choice is handed back, for the page to fill once it knows what is served. `model` is the page's choice."""
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            text = gr.Textbox(
                value="", label="Text to score", placeholder="Paste a text. A verdict needs about 50 words or more.", lines=10, max_lines=24
            )
            method = gr.Dropdown([("Automatic", AUTOMATIC)], value=AUTOMATIC, label="Method", interactive=True)
            with gr.Row():
                score = gr.Button("Score", variant="primary", min_width=90)
                clear = gr.Button("Clear", min_width=90)
            gr.Examples([[sample] for sample in TEXTS.values()], text, label="Examples", example_labels=list(TEXTS))
        with gr.Column(scale=1, min_width=320):
            result = gr.HTML(report.idle(), js_on_load=TOKENS_JS.read_text(encoding="utf-8"), elem_id="result")
            gr.HTML(report.caveat())

    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    scored = score.click(scorer(client), [text, method, model], result, **private)
    clear.click(lambda: ("", report.idle()), None, [text, result], cancels=[scored], **private)
    return method


def scorer(client: Client) -> Callable[[str, str, str | None], AsyncIterator[str]]:
    async def score(text: str, method: str, model: str | None) -> AsyncIterator[str]:
        if not text.strip():
            yield problem(NO_TEXT)
            return
        yield report.scoring()
        try:
            yield report.report(await client.score(text, method or None, model), text, model)
        except ServerError as error:
            yield problem(error.message)

    return score


def choices(methods: Sequence[Method], chosen: str) -> dict[str, Any]:
    """The method dropdown for a model that offers these; what is chosen stays so where it is among them."""
    named = [("Automatic", AUTOMATIC), *((METHODS[method], method) for method in methods)]
    return gr.update(choices=named, value=chosen if chosen in methods else AUTOMATIC)
