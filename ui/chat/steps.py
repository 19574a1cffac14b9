"""The steps of a chat that need no server: a question is sent, an answer ends, a branch is chosen, another conversation is opened.

Each takes what the browser holds and says what changes there. Nothing is kept here between two steps.
"""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from ui.chat import line
from ui.chat.answer import Answer
from ui.chat.conversation import MAX_CHARACTERS, Conversation, ConversationError, Facts, load
from ui.chat.desk import SKIP, Change
from ui.chat.messages import chat_messages
from ui.chat.sampling import Form, FormError

ANSWER, CONTINUE = "answer", "continue"  # what may be running; blank is nothing
TOO_LONG = "This conversation is too long for the page. Export it if you need it, and start a new one."
BANNER = (
    '<p class="banner">You are editing a question. Sending it starts a new branch; the old one is kept. '
    '<button type="button" class="do do-cancel-0">Cancel</button></p>'
)
Served = list[Any]  # of the selected model: its name, its precision, its context in tokens; empty while unknown
Draft = list[str]  # text, thought and facts of the answer on its way


def send_question(running: str, kept: str, text: str, editing: str, notice: str | None, *settings: str) -> tuple[Any, ...]:
    """The browser has taken the text out of the box, unless it is blank, an answer is in progress, or the selected model cannot chat
    (`notice`). Puts back what cannot be sent. `settings` are the fields of `Form`.
    """
    if not text.strip():
        return Change().updates
    if running or notice:
        return Change(box=text).updates
    try:
        Form(*settings).request_fields()
        conversation = opened(kept)
        return _start(conversation.edit(_edited(editing)[0], text) if editing else conversation.ask(text)).updates
    except (ConversationError, FormError) as error:
        return Change(line=line.problem_html(str(error)), box=text).updates


def act(  # noqa: PLR0913  (Gradio gives each component as an argument)
    action: str, running: str, kept: str, box: str, editing: str, notice: str | None, served: Served, *settings: str
) -> tuple[Any, ...]:
    """What a button or a key asks for: a name, and an index or a text. `settings` are the fields of `Form`. A step that ends an edit puts
    the draft back into the box.
    """
    name, value = json.loads(action)
    try:
        draft = _edited(editing)[1] if name == "cancel" else _draft(kept, box, editing)
        change = ACTIONS[name](opened(value if name == "open" else kept), value, served, draft)
        if editing and change.editing == "" and change.box is SKIP:
            change = replace(change, box=draft)
        if starts := change.running not in (SKIP, ""):
            Form(*settings).request_fields()
    except (ConversationError, FormError) as error:
        change, starts = Change(line=line.problem_html(str(error))), False
    return Change().updates if running or (starts and notice) else change.updates


def finish(running: str, kept: str, draft: Draft, box: str, notice: str | None, served: Served) -> tuple[Any, ...]:
    """Runs after a stream. One that has not ended by itself is left to Stop: it may belong to an earlier step that still goes on."""
    return Change().updates if not has_ended(draft) else stop(running, kept, draft, box, notice, served)


def stop(  # noqa: PLR0913  (as for act)
    running: str, kept: str, draft: Draft, box: str, notice: str | None, served: Served, step: str = ""
) -> tuple[Any, ...]:
    """Makes a turn of the answer as far as it came. Puts a question without an answer back into an empty box, unless the answer was stopped
    for another `step`.
    """
    if not running:
        return Change().updates
    conversation = opened(kept)
    text, thought, facts = unpack(draft) if draft else ("", "", Facts(finish="stopped"))
    question = conversation.last.text if conversation.last is not None and not text and not step and running == ANSWER else ""
    ended = conversation.answer(text, thought, facts) if running == ANSWER else conversation.extend(text, facts)
    change = _shown(ended, served)
    if running == CONTINUE and not text and facts.problem:
        change = replace(change, line=line.problem_html(facts.problem))
    return replace(change, draft=[], box=box or question or SKIP, send=_send(notice), stop=_hidden()).updates


def redraw_line(running: str, kept: str, served: Served) -> Any:
    """The context of another model. The page asks when it knows the model and when it has its conversation, in whichever order: what still
    lacks one of them draws nothing.
    """
    return gr.skip() if running or not kept or not served else line.idle_html(opened(kept), context_of(served))


def send_update(running: str, notice: str | None) -> Any:
    """Send is disabled for a model that cannot chat."""
    return gr.skip() if running else _send(notice)


def opened(kept: str) -> Conversation:
    return load(kept) if kept else Conversation(id=uuid.uuid4().hex)


def context_of(served: Served | None) -> int | None:
    return served[2] if served else None


def pack(answer: Answer, facts: Facts) -> Draft:
    return [answer.text, answer.thought, facts.model_dump_json()]


def unpack(draft: Draft) -> tuple[str, str, Facts]:
    return draft[0], draft[1], Facts.model_validate_json(draft[2])


def has_ended(draft: Draft) -> bool:
    """A draft counts as stopped for as long as its stream goes on."""
    return bool(draft) and unpack(draft)[2].finish != "stopped"


def _start(conversation: Conversation, running: str = ANSWER, **changes: Any) -> Change:
    """The conversation with an answer that is to come."""
    text = conversation.dump()
    if len(text) > MAX_CHARACTERS:
        raise ConversationError(TOO_LONG)
    begun = conversation.last.text if running == CONTINUE and conversation.last is not None else ""
    waiting = Answer(time.perf_counter(), begun=begun)
    return Change(
        chatbot=chat_messages(conversation, waiting),
        line=line.sending_html(),
        kept=text,
        draft=[],
        running=running,
        editing="",
        banner="",
        send=_hidden(),
        stop=gr.update(visible=True),
        **changes,
    )


def _shown(conversation: Conversation, served: Served) -> Change:
    """The conversation at rest. An empty one leaves nothing to keep."""
    return Change(
        chatbot=chat_messages(conversation),
        line=line.idle_html(conversation, context_of(served)),
        kept=conversation.dump() if conversation.turns else "",
        running="",
        editing="",
        banner="",
    )


def _edited(editing: str) -> tuple[int, str]:
    """The question that is being edited, and the draft that stood in the box before."""
    index, draft = json.loads(editing or '[0, ""]')
    return index, draft


def _draft(kept: str, box: str, editing: str) -> str:
    """What somebody has written and not sent: what stands in the box, but for an edited question as it was."""
    if not editing:
        return box
    index, draft = _edited(editing)
    return _joined(draft, "" if box == opened(kept).turns[index].text else box)


def _joined(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))


def _undo(conversation: Conversation, _: Any, served: Served, draft: str) -> Change:
    """The question stands above what is in the box already."""
    before = conversation.undo()
    question = conversation.turns[conversation.path[len(before.path)]].text
    return replace(_shown(before, served), box=_joined(question, draft))


def _edit(conversation: Conversation, index: int, _: Served, draft: str) -> Change:
    return Change(editing=json.dumps([index, draft]), banner=BANNER, box=conversation.turns[index].text)


def _continue(conversation: Conversation, *_: Any) -> Change:
    """Nothing where there is no answer to go on from."""
    return _start(conversation, CONTINUE) if conversation.last is not None and conversation.last.role == "assistant" else Change()


def _score(conversation: Conversation, index: int, *_: Any) -> Change:
    return Change(score_text=conversation.turns[index].text)


def _send(notice: str | None) -> Any:
    return gr.update(visible=True, interactive=not notice)


def _hidden() -> Any:
    return gr.update(visible=False)


ACTIONS: dict[str, Callable[[Conversation, Any, Served, str], Change]] = {
    "open": lambda conversation, _, served, __: _shown(conversation, served),
    "new": lambda _, __, served, ___: _shown(opened(""), served),
    "show": lambda conversation, index, served, _: _shown(conversation.show(index), served),
    "undo": _undo,
    "edit": _edit,
    "cancel": lambda *_: Change(editing="", banner=""),
    "write": lambda _, text, *__: Change(box=text),
    "retry": lambda conversation, index, *_: _start(conversation.retry(index)),
    "continue": _continue,
    "score": _score,
}
