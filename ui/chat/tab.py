"""The chat tab: two sidebars, the conversation, the message box, and one streamed request for each answer.

Everything a visitor writes or gets stays in their browser; this module holds no state between calls.
"""

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from ui import loading
from ui.chat import line, steps
from ui.chat.answer import Answer
from ui.chat.conversation import Conversation, load, request_messages
from ui.chat.desk import Change, Desk
from ui.chat.examples import placeholder_html
from ui.chat.markdown import LATEX
from ui.chat.messages import chat_messages
from ui.chat.refusal import told
from ui.chat.sampling import Form, FormError
from ui.chat.settings import settings_form
from ui.client import RequestFields, ServerError
from ui.visitors import Visitors

FOLDER = Path(__file__).parent
SCRIPTS = [FOLDER / name for name in ("storage.js", "shelf.js", "thumbs.js", "actions.js")]
REDRAW_INTERVAL_S = 0.1
SEEDS = 2**31
AnswerHandler = Callable[..., AsyncIterator[Any]]
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class ChatTab:
    """The tab's components. `connect` gives them their events, once the parts of the page that they need are there.

    The page fills `notice`, which says why the selected model cannot chat and is blank for one that can, and `served`.
    """

    def __init__(self, page: gr.Blocks, flags: bool = False) -> None:
        with gr.Sidebar(open=False, width=280, elem_id="left"):
            gr.HTML((FOLDER / "shelf.html").read_text(encoding="utf-8"), js_on_load="litmus.shelf.mount(element)", padding=False)
        with gr.Sidebar(open=False, width=320, position="right", elem_id="right"):
            self.settings = settings_form(page)
        self.notice = gr.HTML("", elem_id="notice", padding=False)
        self.chatbot = _chatbot(flags)
        self.line = gr.HTML("", elem_id="line", padding=False)
        if flags:
            gr.HTML(
                (FOLDER / "thumbs.html").read_text(encoding="utf-8"),
                js_on_load="litmus.thumbs.mount(element)",
                elem_id="thumb",
                padding=False,
            )
        gr.HTML('<p id="told" role="alert"></p>', js_on_load="litmus.mountChat()", elem_id="tell", padding=False)
        self.banner = gr.HTML("", elem_id="editing", padding=False)
        with gr.Row(elem_id="ask"):
            self.box = gr.Textbox(value="", label="Message", placeholder="Write a message", max_lines=8, scale=8, elem_id="message")
            self.send = gr.Button("Send", variant="primary", min_width=90, scale=0, elem_id="send")
            self.stop = gr.Button("Stop", variant="stop", min_width=90, scale=0, visible=False, elem_id="stop")
        gr.HTML('<p class="unsure">A model may be wrong: check what matters.</p>', elem_id="unsure", padding=False)
        gr.HTML('<p id="said" class="unseen-text" role="status"></p>', padding=False)
        self.act, self.lost = (gr.Button(name, visible="hidden", elem_id=name.lower()) for name in ("Act", "Lost"))
        # Gradio changes what is not shown at once: a component that is shown may still have its old value when the next step begins.
        self.kept, self.action, self.running, self.editing = (gr.Textbox("", visible=False) for _ in range(4))
        self.draft, self.served = gr.JSON([], visible=False), gr.JSON([], visible=False)

    def connect(self, visitors: Visitors, page: gr.Blocks, model: gr.Dropdown, score_text: gr.Textbox) -> None:
        desk = self._desk(score_text)
        sending = [self.box.submit, self.send.click]
        inputs = [self.running, self.box, self.notice, self.line]
        gr.on(sending, None, inputs, self.line, js=f"(...all) => litmus.sending(all, {json.dumps(line.sending_html())})", **HIDDEN)
        asked = gr.on(
            sending,
            steps.send_question,
            [self.running, self.kept, self.box, self.editing, self.notice, *self.settings],
            desk.outputs,
            js="(...all) => litmus.take(all)",
            queue=False,
            **HIDDEN,
        )
        asked.success(None, None, None, js="() => litmus.taken('')", **HIDDEN)
        asked.then(None, None, None, js="() => litmus.asked()", **HIDDEN)
        inputs = [self.action, self.running, self.kept, self.box, self.editing, self.notice, self.served, *self.settings]
        acted = self.act.click(steps.act, inputs, desk.outputs, js="(...all) => litmus.inputs(all)", queue=False, **HIDDEN)
        acted.then(None, None, None, js="() => litmus.acted()", **HIDDEN)
        opened = page.load(steps.act, inputs, desk.outputs, js="(...all) => litmus.firstInputs(all)", queue=False, **HIDDEN)
        opened.then(None, None, None, js="() => litmus.restore()", **HIDDEN)
        drawn = opened.then(steps.redraw_line, [self.running, self.kept, self.served], self.line, queue=False, **HIDDEN)
        drawn.then(None, None, None, js="() => litmus.opened()", **HIDDEN)
        ends = [self.running, self.kept, self.draft, self.box, self.notice, self.served]
        inputs = [self.running, self.draft, self.kept, model, self.served, *self.settings]
        answered = [step.then(answer_handler(visitors), inputs, desk.outputs, **HIDDEN) for step in (asked, acted)]
        for stream in answered:
            stream.then(steps.finish, ends, desk.outputs, queue=False, **HIDDEN)
        stopped, inputs = self.stop.click(None, cancels=answered), [*ends, self.action]
        stopped.then(steps.stop, inputs, desk.outputs, js="(...all) => litmus.stopping(all)", queue=False, **HIDDEN)
        inputs = [self.kept, self.draft, self.running]
        ended = [self.line, *inputs, self.send, self.stop]
        self.lost.click(None, inputs, ended, js="(...all) => litmus.cutOff(all)", **HIDDEN)
        self.kept.change(None, self.kept, None, js="(text) => litmus.keep(text)", **HIDDEN)
        self.notice.change(steps.send_update, [self.running, self.notice], self.send, queue=False, **HIDDEN)

    def _desk(self, score_text: gr.Textbox) -> Desk:
        own = (self.chatbot, self.line, self.kept, self.draft, self.running, self.editing, self.banner, self.box, self.send, self.stop)
        return Desk(*own, score_text)


def _chatbot(flags: bool) -> gr.Chatbot:
    """Without `flags` its notes hide the thumbs."""
    return gr.Chatbot(
        label="Conversation",
        show_label=False,
        elem_id="conversation",
        elem_classes=["with-thumbs"] if flags else [],
        placeholder=placeholder_html(""),
        latex_delimiters=LATEX,
        allow_tags=False,
        buttons=[],
        feedback_options=None,
        layout="bubble",
        height=None,
    )


def answer_handler(visitors: Visitors) -> AnswerHandler:
    async def stream_answer(
        request: gr.Request, running: str, draft: steps.Draft, kept: str, model: str | None, served: steps.Served, *settings: str
    ) -> AsyncIterator[Any]:
        """Yields the conversation as the answer grows. Stop cancels this generator; `aclosing` then closes the request.

        The draft counts as stopped until the answer has ended. One that is there already belongs to a stream that goes on.
        """
        if not running or draft:
            yield gr.skip()  # Gradio would clear the outputs of a generator that yields nothing
            return
        conversation = load(kept)
        answer = _new_answer(conversation, running, served)
        yield _drawn(conversation, answer, served)
        try:
            body = request_body(conversation, running, model, Form(*settings))
            answer.seed = body["seed"]
            async with aclosing(loading.answer(visitors.client(request.request), body)) as chunks:
                drawn_s = 0.0
                async for chunk in chunks:
                    now_s = time.perf_counter()
                    answer.add(chunk, now_s)
                    if answer.first_text_s in (None, now_s) or now_s - drawn_s >= REDRAW_INTERVAL_S:
                        drawn_s = now_s
                        yield _drawn(conversation, answer, served)
        except (ServerError, FormError) as error:
            problem, prompt_tokens = told(error)
            answer.prompt_tokens = prompt_tokens or answer.prompt_tokens  # the gauge shows by how much it does not fit
            yield Change(draft=steps.pack(answer, answer.facts("failed", problem))).updates
            return
        yield Change(draft=steps.pack(answer, answer.facts())).updates

    return stream_answer


def request_body(conversation: Conversation, running: str, model: str | None, form: Form) -> RequestFields:
    """The request for the next answer. A seed is drawn where the form has none, so that the answer can be repeated. An answer goes on with
    the seed of its first part.
    """
    model_field = {} if model is None else {"model": model}
    going_on = {"continue_final_message": True} if running == steps.CONTINUE else {}
    messages = [*form.system_messages(), *request_messages(conversation)]
    begun = conversation.last.facts if running == steps.CONTINUE and conversation.last is not None else None
    seed = secrets.randbelow(SEEDS) if begun is None or begun.seed is None else begun.seed
    return {**model_field, "messages": messages, **going_on, "seed": seed, **form.request_fields()}


def _new_answer(conversation: Conversation, running: str, served: steps.Served) -> Answer:
    begun = conversation.last.text if running == steps.CONTINUE and conversation.last is not None else ""
    name, precision = served[:2] if served else ("", "")
    return Answer(time.perf_counter(), model=name, precision=precision, begun=begun, context=steps.context_of(served))


def _drawn(conversation: Conversation, answer: Answer, served: steps.Served) -> tuple[Any, ...]:
    return Change(
        chatbot=chat_messages(conversation, answer),
        line=line.running_html(answer, steps.context_of(served)),
        draft=steps.pack(answer, answer.facts("stopped")),
    ).updates
