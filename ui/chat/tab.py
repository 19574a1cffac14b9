"""The chat tab: connects the conversation, the settings form and the buttons to one streamed request per turn.

The conversation is kept in the Chatbot of each visitor's page; this module holds no state between calls.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr

from ui.chat import messages
from ui.chat.answer import Answer
from ui.chat.examples import PROMPTS
from ui.chat.messages import ChatMessage
from ui.chat.sampling import Form, FormError
from ui.client import ServerError
from ui.visitors import Visitors

REDRAW_INTERVAL_S = 0.05
DEFAULT_MAX_TOKENS = 256
Updates = tuple[Any, ...]  # one Gradio update per output component
AnswerHandler = Callable[..., AsyncIterator[Any]]


def chat_tab(visitors: Visitors, model: gr.Dropdown) -> gr.HTML:
    """Builds the tab. `model` is the page's model dropdown.

    Returns the notice that says why the selected model cannot chat; the page fills it, and leaves it blank for a model that can.
    """
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
        box = gr.Textbox(value="", label="Message", placeholder="Enter sends, Shift+Enter starts a new line.", max_lines=8, scale=8)
        send = gr.Button("Send", variant="primary", min_width=90, scale=1)
        stop = gr.Button("Stop", variant="stop", min_width=90, scale=1, interactive=False)
        clear = gr.Button("Clear", min_width=90, scale=1)
    gr.Examples([[prompt] for prompt in PROMPTS], box, label="Examples")
    with gr.Accordion("Settings (a blank field means the model's default)", open=False):
        fields = _form_fields()

    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    outputs, buttons = [chatbot, box], [send, stop, clear]
    question_added = gr.on([box.submit, send.click], add_question, [chatbot, box, notice], [*outputs, *buttons], queue=False, **hidden)
    answer_ended = question_added.then(answer_handler(visitors), [chatbot, model, *fields], chatbot, **hidden)
    answer_ended.then(finish_turn, [chatbot, box, notice], [*outputs, *buttons], queue=False, **hidden)  # runs after a stop too
    notice.change(update_send_button, [chatbot, notice], send, queue=False, **hidden)
    stop.click(None, cancels=[answer_ended])
    clear.click(lambda: ([], ""), None, outputs, queue=False, **hidden)
    return notice


def _form_fields() -> list[gr.components.Component]:
    """The settings, in the order of the fields of `Form`."""
    default = "model's default"
    with gr.Row():
        max_tokens = _textbox("Max tokens", "up to the end of the context", value=str(DEFAULT_MAX_TOKENS))
        temperature = _textbox("Temperature (0 to 2)", default)
        top_p = _textbox("Top-p (above 0, up to 1)", default)
    with gr.Row():
        top_k = _textbox("Top-k (0 keeps all tokens)", default)
        min_p = _textbox("Min-p (0 to 1)", default)
        seed = _textbox("Seed", "random")
    with gr.Row():
        stop = _textbox("Stop strings, one per line", r"none; write \n for a line break", lines=2)
        system = _textbox("System prompt", "none", lines=2)
    return [max_tokens, temperature, top_p, top_k, min_p, seed, stop, system]


def _textbox(label: str, placeholder: str, value: str = "", lines: int = 1) -> gr.Textbox:
    """`value` must not be None: inside a closed accordion the field would then send None instead of a blank."""
    return gr.Textbox(value=value, label=label, placeholder=placeholder, lines=lines, max_lines=max(lines, 1) * 2, min_width=140)


def add_question(history: list[ChatMessage], text: str, notice: str | None) -> Updates:
    """Moves the question from the text box into the conversation.

    The text stays in the box if it is blank, while an answer is in progress, or if the selected model cannot chat (`notice`).
    """
    if not text.strip() or notice or _is_busy(history):
        return (gr.skip(),) * 5
    return [*history, messages.user_message(text)], "", *_button_updates(running=True)


def update_send_button(history: list[ChatMessage], notice: str | None) -> dict[str, Any]:
    """Enables or disables Send after another model was selected."""
    return gr.update(interactive=not notice and not _is_busy(history))


def answer_handler(visitors: Visitors) -> AnswerHandler:
    async def stream_answer(request: gr.Request, history: list[ChatMessage], model: str | None, *settings: str) -> AsyncIterator[Any]:
        """Yields the conversation as the answer grows. Stop cancels this generator; `aclosing` then closes the request."""
        if not messages.awaits_answer(history):
            yield gr.skip()  # Gradio would clear the outputs of a generator that yields nothing
            return
        answer = Answer(time.perf_counter(), model=model)
        yield [*history, messages.streaming_message(answer)]
        try:
            form = Form(*settings)
            model_field = {} if model is None else {"model": model}
            body = {**model_field, "messages": [*form.system_messages(), *messages.request_messages(history)], **form.request_fields()}
            async with aclosing(visitors.client(request.request).chat(body)) as chunks:
                drawn_s = 0.0
                async for chunk in chunks:
                    now_s = time.perf_counter()
                    answer.add(chunk, now_s)
                    if now_s - drawn_s >= REDRAW_INTERVAL_S:
                        drawn_s = now_s
                        yield [*history, messages.streaming_message(answer)]
        except (ServerError, FormError) as error:
            yield [*history, messages.failed_message(answer, str(error))]
            return
        yield [*history, messages.finished_message(answer)]

    return stream_answer


def finish_turn(history: list[ChatMessage], text: str, notice: str | None) -> Updates:
    """Runs when an answer has ended. Marks an unfinished answer as stopped, and puts a question without an answer back into the box."""
    final = messages.mark_stopped(history)
    history_update = final if final != history else gr.skip()
    return history_update, text or messages.unanswered_question(final), *_button_updates(running=False, chat_disabled=bool(notice))


def _is_busy(history: list[ChatMessage]) -> bool:
    """Whether an answer is in progress, or its request is about to be sent."""
    return messages.is_streaming(history) or messages.awaits_answer(history)


def _button_updates(running: bool, chat_disabled: bool = False) -> Updates:
    """Updates of Send, Stop and Clear. `chat_disabled`: the selected model cannot chat."""
    return gr.update(interactive=not running and not chat_disabled), gr.update(interactive=running), gr.update(interactive=not running)
