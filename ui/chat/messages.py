"""Translates a conversation into Gradio's chat messages. Each has a note: what is known of it, and what can be done with it.

Pure: no Gradio component, no HTTP, no clock. The buttons' classes say what they do, because Gradio keeps no other attribute of them;
actions.js reads them.
"""

from collections.abc import Sequence
from typing import Any

from ui.chat.answer import Answer
from ui.chat.conversation import Conversation, Facts, Turn
from ui.chat.markdown import harmless, literal
from ui.flags.flag import hash_of

ChatMessage = dict[str, Any]  # Gradio's: {"role": str, "content": [{"type": "text", "text": Markdown}, ...]}
Action = tuple[str, str]  # name, label
ENDINGS = {
    "stop": "",
    "length": "The answer was cut: it reached the limit of tokens.",
    "full": "The answer was cut: the context is full.",
    "stopped": "You stopped this answer.",
    "failed": "The answer broke off.",
}
UNANSWERED = "No answer has come: the page or its server left."


def chat_messages(conversation: Conversation, running: Answer | None = None) -> list[ChatMessage]:
    """The branch that is shown, and behind it the answer that is on its way. One that continues the last turn takes its place."""
    path = conversation.path
    if running is not None and running.begun:
        path = path[:-1]
    shown = [_turn_message(conversation, index, is_busy=running is not None) for index in path]
    return shown if running is None else [*shown, _running_message(running)]


def note_text(facts: Facts) -> str:
    """Model, tokens, speed, TTFT and seed, as far as they are known."""
    parts = [facts.model, facts.precision]
    if facts.completion_tokens is not None:
        parts.append(f"{facts.completion_tokens:,} token{'' if facts.completion_tokens == 1 else 's'}")
    if facts.tokens_per_s is not None:
        parts.append(f"{facts.tokens_per_s:,.1f} tokens/s")
    if facts.ttft_ms is not None:
        parts.append(f"first token after {facts.ttft_ms:,.0f} ms")
    if facts.seed is not None:
        parts.append(f"seed {facts.seed}")
    return " · ".join(filter(None, parts))


def ending_text(turn: Turn) -> str:
    """How the answer ended, if that was not by itself."""
    if turn.facts is None:
        return ""
    if turn.facts.finish == "stopped" and not turn.text:
        return "Stopped before the first token."
    return f"⚠ {turn.facts.problem}" if turn.facts.problem else ENDINGS[turn.facts.finish]


def _turn_message(conversation: Conversation, index: int, is_busy: bool) -> ChatMessage:
    turn = conversation.turns[index]
    pager = "" if is_busy else _pager_html(conversation.versions(index), index)
    is_last = index == conversation.leaf
    actions = [] if is_busy else _question_actions(is_last) if turn.role == "user" else _answer_actions(turn, is_last)
    buttons = pager + "".join(_button_html(name, index, label) for name, label in actions)
    if turn.role == "assistant" and turn.text and not is_busy:
        buttons += _thumbs_html(turn.text, index)
    if turn.role == "user":
        return _message("user", literal(turn.text), _note_html(UNANSWERED if is_last and not is_busy else "", "", buttons))
    facts = "" if turn.facts is None else note_text(turn.facts)
    return _message("assistant", harmless(turn.text, turn.thought), _note_html(ending_text(turn), facts, buttons))


def _running_message(answer: Answer) -> ChatMessage:
    text = harmless(answer.begun + answer.text, answer.thought, is_thinking=not answer.text)
    return _message("assistant", text, '<span class="note wait">…</span>' if not text else "")


def _question_actions(is_last: bool) -> Sequence[Action]:
    return [("edit", "Edit"), ("copy", "Copy"), *([("retry", "Answer this")] if is_last else [])]


def _answer_actions(turn: Turn, is_last: bool) -> Sequence[Action]:
    actions = []
    if is_last and turn.text and turn.facts is not None and turn.facts.finish not in ("stop", "full"):
        actions.append(("continue", "Continue"))
    actions.append(("retry", "Retry"))
    if turn.text:
        actions += [("copy", "Copy"), ("score", "Score this answer")]
    return [*actions, ("undo", "Undo")] if is_last else actions


def _pager_html(versions: Sequence[int], index: int) -> str:
    """Goes from one branch to the one beside it. Nothing where there is only one."""
    if len(versions) < 2:
        return ""
    place = versions.index(index)
    before = _button_html("show", versions[place - 1], "‹", "Version before") if place else ""
    after = _button_html("show", versions[place + 1], "›", "Next version") if place + 1 < len(versions) else ""
    return f'<span class="pager">{before}{place + 1} of {len(versions)}{after}</span>'


def _button_html(name: str, index: int, label: str, title: str = "") -> str:
    return f'<button type="button" class="do do-{name}-{index}" title="{title or label}">{label}</button>'


def _thumbs_html(text: str, index: int) -> str:
    """The hash is what a thumb keeps of the answer. thumbs.js reads it from the class, and marks the thumb that was chosen."""
    buttons = _button_html("good", index, "Good", "Good answer") + _button_html("bad", index, "Bad", "Bad answer")
    return f'<span class="thumbs hash-{hash_of(text)}">{buttons}</span>'


def _note_html(ending: str, facts: str, buttons: str) -> str:
    parts = [("ending", literal(ending)), ("facts", literal(facts)), ("actions", buttons)]
    return f'<span class="note">{"".join(f"<span class={name}>{content}</span>" for name, content in parts if content)}</span>'


def _message(role: str, *parts: str) -> ChatMessage:
    return {"role": role, "content": [{"type": "text", "text": part} for part in parts if part]}
