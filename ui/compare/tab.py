"""The Compare tab: one prompt, two models or two settings of one, both answers streamed side by side with their times.

The sides of a visitor are kept in the visitor's page; this module holds no state between calls.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from app.schemas import ModelCard
from ui.chat.markdown import LATEX
from ui.client import ServerError
from ui.compare.run import run
from ui.compare.side import NAMES, Settings, Side
from ui.compare.view import SHARED, difference_html, drawn, idle_html
from ui.markup import alert_html
from ui.visitors import Visitors

DEFAULT_MAX_TOKENS = "256"
FIELDS_A_SIDE = 6
NO_PROMPT = "There is nothing to compare yet. Write a prompt first."
NO_CHAT = "No served model has a chat template, so there is nothing to compare."
SCRIPT = Path(__file__).with_name("side.js")
PARTS = 6  # of both answers
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Updates = tuple[Any, ...]


def compare_tab(visitors: Visitors, tab: gr.Tab) -> None:
    """Builds the tab inside `tab`."""
    problem = gr.HTML("", elem_id="compare-problem", padding=False)
    prompt = gr.Textbox(
        value="", label="Prompt for both", placeholder="Ctrl+Enter compares.", lines=2, max_lines=12, elem_id="compare-prompt"
    )
    with gr.Row(elem_id="compare-settings"):
        columns = [_settings_column(name) for name in NAMES]
    fields = [field for column in columns for field in column]
    with gr.Row(elem_id="compare-actions"):
        compare = gr.Button("Compare", variant="primary", min_width=90, scale=1, elem_id="compare-begin")
        stop = gr.Button("Stop both", variant="stop", min_width=90, scale=1, interactive=False, elem_id="compare-stop")
        in_turn = gr.Checkbox(False, label="One after the other", info=SHARED, container=False, min_width=280, scale=3)
    difference = gr.HTML(difference_html(Settings(), Settings()), elem_id="difference", padding=False)
    with gr.Row(elem_id="compare-answers"):
        answers = [part for name in NAMES for part in _answer_column(name)]
    sides = gr.State([])

    outputs = [problem, sides, compare, stop, *answers]
    begun = gr.on([compare.click, prompt.submit], begin, [sides, prompt, *fields], outputs, queue=False, **HIDDEN)
    ran = begun.then(stream_handler(visitors), [sides, in_turn], answers, **HIDDEN)
    ran.then(finish, sides, [compare, stop, *answers], queue=False, **HIDDEN)  # runs after a stop too
    stop.click(None, cancels=[ran])
    tab.select(models_handler(visitors), [columns[0][0], columns[1][0]], [problem, columns[0][0], columns[1][0]], queue=False, **HIDDEN)
    gr.on([field.change for field in fields], show_difference, fields, difference, queue=False, trigger_mode="always_last", **HIDDEN)


def _settings_column(name: str) -> list[gr.Dropdown | gr.Textbox]:
    """The settings of a side, in the order of the fields of `Settings`."""
    with gr.Column(min_width=280):
        model = gr.Dropdown([], value=None, label=f"Model {name}", interactive=True, filterable=False)
        with gr.Row():
            temperature = _textbox(f"Temperature {name}", "default")
            top_p = _textbox(f"Top-p {name}", "default")
            seed = _textbox(f"Seed {name}", "random")
            max_tokens = _textbox(f"Max tokens {name}", "no limit", DEFAULT_MAX_TOKENS)
        system = gr.Textbox(value="", label=f"System prompt {name}", placeholder="none", lines=1, max_lines=6)
        return [model, temperature, top_p, seed, max_tokens, system]


def _textbox(label: str, placeholder: str, value: str = "") -> gr.Textbox:
    return gr.Textbox(value=value, label=label, placeholder=placeholder, max_lines=1, min_width=110)


def _answer_column(name: str) -> list[gr.HTML | gr.Markdown]:
    """What `drawn` makes: head, answer, foot."""
    with gr.Column(min_width=280, elem_classes="side"):
        head = gr.HTML(idle_html(name), js_on_load=f"const NAME = 'Answer {name}';\n{SCRIPT.read_text(encoding='utf-8')}", padding=False)
        answer = gr.Markdown("", latex_delimiters=LATEX, line_breaks=True, elem_classes="answer")
        return [head, answer, gr.HTML("", padding=False)]


def settings_of(texts: Sequence[str | None]) -> tuple[Settings, Settings]:
    """The two halves of the form's fields."""
    given = [text or "" for text in texts]
    return Settings(*given[:FIELDS_A_SIDE]), Settings(*given[FIELDS_A_SIDE:])


def show_difference(*texts: str | None) -> str:
    return difference_html(*settings_of(texts))


def begin(sides: list[Side], prompt: str, *texts: str | None) -> Updates:
    """Takes the prompt and the settings as they are now. Nothing happens while two answers are still on their way."""
    if any(not side.has_ended for side in sides):
        return (gr.skip(),) * (4 + PARTS)
    if not prompt.strip():
        return alert_html(NO_PROMPT), *(gr.skip(),) * (3 + PARTS)
    begun = [Side(name, settings, prompt) for name, settings in zip(NAMES, settings_of(texts), strict=True)]
    return "", begun, gr.update(interactive=False), gr.update(interactive=True), *_drawn(begun)


def stream_handler(visitors: Visitors) -> Callable[[gr.Request, list[Side], bool], AsyncIterator[Updates]]:
    async def stream(request: gr.Request, sides: list[Side], in_turn: bool) -> AsyncIterator[Updates]:
        """Yields both answers as they grow. Stop cancels this generator; `aclosing` then closes the requests."""
        if not sides or any(side.sent_s is not None for side in sides):
            yield (gr.skip(),) * PARTS  # Gradio would clear the outputs of a generator that yields nothing
            return
        shown: Updates = ()
        async with aclosing(run(sides, visitors.client(request.request), in_turn)) as changes:
            async for _ in changes:
                drawing = _drawn(sides)
                if drawing != shown:
                    shown = drawing
                    yield drawing

    return stream


def finish(sides: list[Side]) -> Updates:
    """Runs when both answers have ended, or were stopped."""
    for side in sides:
        side.stop(time.perf_counter())
    answers = _drawn(sides) if sides else (gr.skip(),) * PARTS
    return gr.update(interactive=True), gr.update(interactive=False), *answers


def _drawn(sides: Sequence[Side]) -> Updates:
    return tuple(part for side in sides for part in drawn(side))


def models_handler(visitors: Visitors) -> Callable[[gr.Request, str | None, str | None], Awaitable[Updates]]:
    async def models(request: gr.Request, left: str | None, right: str | None) -> Updates:
        """Which models there are to choose from now. A choice stays if it is still served."""
        try:
            cards = await visitors.client(request.request).models()
        except ServerError as error:
            return alert_html(error.message), gr.skip(), gr.skip()
        names = [card.id for card in cards if card.chat]
        first, second = default_names(cards)
        chosen = (left if left in names else first, right if right in names else second)
        return alert_html(NO_CHAT) if not names else "", *(gr.update(choices=names, value=name) for name in chosen)

    return models


def default_names(cards: Sequence[ModelCard]) -> tuple[str | None, str | None]:
    """The default model beside another one, if there is one."""
    names = [card.id for card in sorted(cards, key=lambda card: not card.default) if card.chat]
    return (names[0], names[min(1, len(names) - 1)]) if names else (None, None)
