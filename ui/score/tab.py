"""The score tab: a text, a method, and the report of the server's answer.

Knows neither thresholds nor verdicts; the server decides and explains.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app.schemas import Method
from ui.client import ServerError
from ui.markup import alert_html
from ui.score import report
from ui.score.examples import TEXTS
from ui.score.gauge import METHOD_NAMES
from ui.visitors import Visitors

AUTOMATIC = ""  # value of the method dropdown: the server chooses
NO_TEXT = "There is no text to score yet. Paste at least a few sentences."
TOKENS_JS = Path(__file__).with_name("tokens.js")


def score_tab(visitors: Visitors, model: gr.Dropdown) -> tuple[gr.Dropdown, gr.Textbox]:
    """Builds the tab. `model` is the page's model dropdown.

    Returns the method dropdown, which the page fills with the methods of the selected model, and the box of the text.
    """
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            text = gr.Textbox(
                value="", label="Text to score", placeholder="Paste a text. A verdict needs about 50 words or more.", lines=10, max_lines=24
            )
            method = gr.Dropdown([("Automatic", AUTOMATIC)], value=AUTOMATIC, label="Method", interactive=True)
            with gr.Row():
                score = gr.Button("Score", variant="primary", min_width=90)
                clear = gr.Button("Clear", min_width=90)
            gr.Examples([[example] for example in TEXTS.values()], text, label="Examples", example_labels=list(TEXTS))
        with gr.Column(scale=1, min_width=320):
            result = gr.HTML(report.idle_html(), js_on_load=TOKENS_JS.read_text(encoding="utf-8"), elem_id="result")
            gr.HTML(report.caveat_html())

    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    scored = score.click(score_handler(visitors), [text, method, model], result, **hidden)
    clear.click(lambda: ("", report.idle_html()), None, [text, result], cancels=[scored], **hidden)
    return method, text


def score_handler(visitors: Visitors) -> Callable[[gr.Request, str, str, str | None], AsyncIterator[str]]:
    async def score(request: gr.Request, text: str, method: str, model: str | None) -> AsyncIterator[str]:
        """Yields the HTML of the result: first that scoring runs, then the report or an error."""
        if not text.strip():
            yield alert_html(NO_TEXT)
            return
        yield report.scoring_html()
        try:
            yield report.report_html(await visitors.client(request.request).score(text, method or None, model), text, model)
        except ServerError as error:
            yield alert_html(error.message)

    return score


def method_update(methods: Sequence[Method], current: str) -> dict[str, Any]:
    """Updates the method dropdown to the methods of a model. The current method stays selected if the model has it."""
    choices = [("Automatic", AUTOMATIC), *((METHOD_NAMES[method], method) for method in methods)]
    return gr.update(choices=choices, value=current if current in methods else AUTOMATIC)
