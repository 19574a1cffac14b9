"""The score tab: a text, a method, and the report of the server's answer; below, many files at once.

Knows neither thresholds nor verdicts; the server decides and explains.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app.schemas import Method
from ui import loading
from ui.calls import MAX_BYTES
from ui.client import ServerError
from ui.markup import alert_html, escape_html
from ui.score import report
from ui.score.examples import TEXTS
from ui.score.gauge import METHOD_NAMES
from ui.visitors import Visitors

AUTOMATIC = ""  # value of the method dropdown: the server chooses
NO_TEXT = "There is no text to score yet. Paste at least a few sentences, choose an example, or score a file below."
FOLDER = Path(__file__).parent
ALTERNATIVES = 5  # beside each token
MAX_CHARACTERS_WITH_ALTERNATIVES = 20_000  # a longer text would make a page of several megabytes
TICK_S = 1.0  # how often the page says how long it has been scoring
# On a phone the result lies below the box, out of sight. Its height counts when it is drawn.
SHOW_RESULT = """() => setTimeout(() => {
    const result = document.querySelector("#result");
    if (result.getBoundingClientRect().top > innerHeight / 2) result.scrollIntoView({ block: "start" });
}, 50)"""
# What is chosen now, and what the result that comes will be of: result.js says where they differ.
CHOSEN, ASKED = (
    f"(...chosen) => document.dispatchEvent(new CustomEvent('{name}', {{ detail: chosen }}))" for name in ("litmus-chosen", "litmus-asked")
)
Scoring = AsyncIterator[tuple[str, dict[str, Any], dict[str, Any]]]  # the result, and updates of the buttons Score and Cancel


@dataclass(frozen=True, slots=True)
class ScoreTab:
    """What the page and other tabs need of the tab: its box, its button and its methods."""

    text: gr.Textbox
    button: gr.Button
    method: gr.Dropdown


def script(*names: str) -> str:
    return "\n".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in names)


def score_tab(visitors: Visitors, model: gr.Dropdown, flags: bool = False, max_file_bytes: int = MAX_BYTES) -> ScoreTab:
    """Builds the tab. `model` is the page's model dropdown, which the page fills with the methods of the selected model."""
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            text = gr.Textbox(
                value="",
                label="Text to score",
                placeholder="Paste a text. A verdict needs about 50 words; 150 or more are better. Ctrl+Enter scores.",
                lines=10,
                max_lines=24,
                elem_id="score-text",
            )
            method = gr.Dropdown([("Automatic", AUTOMATIC)], value=AUTOMATIC, label="Method", interactive=True)
            with gr.Row():
                score = gr.Button("Score", variant="primary", min_width=90, elem_id="score-button")
                cancel = gr.Button("Cancel", variant="stop", min_width=90, visible=False, elem_id="score-cancel")
                clear = gr.Button("Clear", min_width=90, elem_id="score-clear")
            gr.Examples([[example] for example in TEXTS.values()], text, label="Examples", example_labels=list(TEXTS))
            gr.HTML(report.caveat_html())
        with gr.Column(scale=1, min_width=320):
            result = gr.HTML(report.idle_html(), js_on_load=script("tokens", "rows", "result"), elem_id="result")
    gr.HTML(documents_html(max_file_bytes), js_on_load=script("rows", "documents"), elem_id="score-files")
    choice = gr.HTML(choice_html(None, None), visible="hidden", elem_id="score-choice")

    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    buttons = [score, cancel]
    chosen = [text, method, model]
    score.click(None, chosen, js=ASKED)
    scored = score.click(score_handler(visitors, flags), chosen, [result, *buttons], **hidden)
    scored.then(None, js=SHOW_RESULT)
    scored.then(None, chosen, js=CHOSEN)
    gr.on([text.change, method.change, model.change], None, chosen, js=CHOSEN)
    cancel.click(lambda: (report.cancelled_html(), *_buttons(False)), None, [result, *buttons], cancels=[scored], **hidden)
    clear.click(lambda: ("", report.idle_html(), *_buttons(False)), None, [text, result, *buttons], cancels=[scored], **hidden)
    gr.on([method.change, model.change], choice_html, [method, model], choice, **hidden)
    return ScoreTab(text, score, method)


def documents_html(max_file_bytes: int) -> str:
    html = (FOLDER / "documents.html").read_text(encoding="utf-8")
    return html.replace("BYTES", f"{max_file_bytes}").replace("LIMIT", f"{max_file_bytes / 1e6:g}")


def choice_html(method: str | None, model: str | None) -> str:
    """What the script of the files sends as method and model."""
    return f'<span data-method="{escape_html(method or "")}" data-model="{escape_html(model or "")}"></span>'


def score_handler(visitors: Visitors, flags: bool = False) -> Callable[[gr.Request, str, str, str | None], Scoring]:
    async def score(request: gr.Request, text: str, method: str, model: str | None) -> Scoring:
        """Yields the HTML of the result: first that scoring runs, each second how long, then the report or an error."""
        if not text.strip():
            yield alert_html(NO_TEXT), *_buttons(False)
            return
        top = ALTERNATIVES if len(text) <= MAX_CHARACTERS_WITH_ALTERNATIVES else 0
        client, waiting = visitors.client(request.request), [""]  # its last sentence, while the model loads
        scored = loading.ask(client, lambda: client.score(text, method or None, model, top), waiting.append)
        work = asyncio.ensure_future(scored)
        began_s = time.monotonic()
        try:
            while not work.done():
                waited_s = time.monotonic() - began_s
                yield (report.loading_html(waiting[-1]) if waiting[-1] else report.scoring_html(text, waited_s)), *_buttons(True)
                await asyncio.wait({work}, timeout=TICK_S)
            yield report.report_html(work.result(), text, flags), *_buttons(False)
        except ServerError as error:
            yield alert_html(f"{error.message} Your text is still in the box."), *_buttons(False)
        finally:
            work.cancel()  # when the visitor cancels or leaves: the server stops, too

    return score


def _buttons(scoring: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cancel takes the place of Score while a text is scored."""
    return gr.update(visible=not scoring), gr.update(visible=scoring)


def method_update(methods: Sequence[Method], current: str) -> dict[str, Any]:
    """Updates the method dropdown to the methods of a model. The current method stays selected if the model has it."""
    choices = [("Automatic", AUTOMATIC), *((METHOD_NAMES[method], method) for method in methods)]
    return gr.update(choices=choices, value=current if current in methods else AUTOMATIC)
