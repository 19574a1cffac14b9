"""The chat tab: wires the conversation, the form and the buttons to one streamed request a turn.

The conversation lives in the Chatbot of each visitor's page; nothing is kept here between calls.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr

from ui import messages
from ui.answer import Answer
from ui.client import Client, ServerError
from ui.examples import PROMPTS
from ui.messages import ChatMessage
from ui.sampling import Form, FormError

REDRAW_S = 0.05
MAX_TOKENS = 256
Updates = tuple[Any, ...]
Turn = Callable[..., AsyncIterator[Any]]


def chat_tab(client: Client, model: gr.Dropdown) -> gr.HTML:
    """`model` is the page's choice. Handed back is the notice that says why that one does not chat: it is blank where it does."""
    notice = gr.HTML("", elem_id="notice", padding=False)
    chatbot = gr.Chatbot(
        label="Conversation",
        elem_id="conversation",
        placeholder="Ask for a story, or pick an example below.",
        height="min(56vh, 560px)",
        render_markdown=False,
        latex_delimiters=[],
        allow_tags=False,
        buttons=[],
        feedback_options=None,
    )
    with gr.Row(elem_id="ask"):
        box = gr.Textbox(value="", label="Message", placeholder="Enter sends, Shift+Enter breaks the line.", max_lines=8, scale=8)
        send = gr.Button("Send", variant="primary", min_width=90, scale=1)
        stop = gr.Button("Stop", variant="stop", min_width=90, scale=1, interactive=False)
        clear = gr.Button("Clear", min_width=90, scale=1)
    gr.Examples([[prompt] for prompt in PROMPTS], box, label="Examples")
    with gr.Accordion("Settings: a blank field takes the model's default", open=False):
        fields = _fields()

    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    outputs, buttons = [chatbot, box], [send, stop, clear]
    asked = gr.on([box.submit, send.click], begin, [chatbot, box, notice], [*outputs, *buttons], queue=False, **hidden)
    answered = asked.then(turn(client), [chatbot, model, *fields], chatbot, **hidden)
    answered.then(settle, [chatbot, box, notice], [*outputs, *buttons], queue=False, **hidden)  # runs after a stop too
    notice.change(heed, [chatbot, notice], send, queue=False, **hidden)
    stop.click(None, cancels=[answered])
    clear.click(lambda: ([], ""), None, outputs, queue=False, **hidden)
    return notice


def _fields() -> list[gr.components.Component]:
    """In the order of `Form`."""
    default = "model's default"
    with gr.Row():
        max_tokens = _field("Max tokens", "what the context leaves", value=str(MAX_TOKENS))
        temperature = _field("Temperature (0 to 2)", default)
        top_p = _field("Top-p (above 0, to 1)", default)
    with gr.Row():
        top_k = _field("Top-k (0 keeps all)", default)
        min_p = _field("Min-p (0 to 1)", default)
        seed = _field("Seed", "random")
    with gr.Row():
        stop = _field("Stop strings, one a line", r"none; \n stands for a line break", lines=2)
        system = _field("System prompt", "none", lines=2)
    return [max_tokens, temperature, top_p, top_k, min_p, seed, stop, system]


def _field(label: str, placeholder: str, value: str = "", lines: int = 1) -> gr.Textbox:
    """`value` is never None: a field of a closed accordion would hand over None instead of a blank."""
    return gr.Textbox(value=value, label=label, placeholder=placeholder, lines=lines, max_lines=max(lines, 1) * 2, min_width=140)


def begin(history: list[ChatMessage], text: str, notice: str | None) -> Updates:
    """Puts the question into the conversation. A blank text, or one sent while an answer is on its way or to a model that does not chat,
    stays in the box."""
    if not text.strip() or notice or _busy(history):
        return (gr.skip(),) * 5
    return [*history, messages.question(text)], "", *_buttons(running=True)


def heed(history: list[ChatMessage], notice: str | None) -> dict[str, Any]:
    """The Send button, when another model was chosen."""
    return gr.update(interactive=not notice and not _busy(history))


def turn(client: Client) -> Turn:
    async def answer(history: list[ChatMessage], model: str | None, *settings: str) -> AsyncIterator[Any]:
        """Yields the conversation. A stop is raised in here, and leaving `aclosing` ends the request."""
        if not messages.unanswered(history):
            yield gr.skip()  # Gradio would clear the outputs of a generator that yields nothing
            return
        so_far = Answer(time.perf_counter(), model=model)
        yield [*history, messages.answering(so_far)]
        try:
            form = Form(*settings)
            named = {} if model is None else {"model": model}
            body = {**named, "messages": [*form.opening(), *messages.conversation(history)], **form.fields()}
            async with aclosing(client.chat(body)) as chunks:
                drawn_s = 0.0
                async for chunk in chunks:
                    now_s = time.perf_counter()
                    so_far.take(chunk, now_s)
                    if now_s - drawn_s >= REDRAW_S:
                        drawn_s = now_s
                        yield [*history, messages.answering(so_far)]
        except (ServerError, FormError) as error:
            yield [*history, messages.failed(so_far, str(error))]
            return
        yield [*history, messages.answered(so_far)]

    return answer


def settle(history: list[ChatMessage], text: str, notice: str | None) -> Updates:
    """When an answer is over. One that is still on its way was stopped, and says so; a question without an answer goes back to the box."""
    told = messages.stopped(history)
    changed = told if told != history else gr.skip()
    return changed, text or messages.lost_question(told), *_buttons(running=False, mute=bool(notice))


def _busy(history: list[ChatMessage]) -> bool:
    """Whether an answer is on its way, or about to be."""
    return messages.live(history) or messages.unanswered(history)


def _buttons(running: bool, mute: bool = False) -> Updates:
    """Send, Stop and Clear. `mute` is a model that does not chat."""
    return gr.update(interactive=not running and not mute), gr.update(interactive=running), gr.update(interactive=not running)
