"""Translates a conversation into Gradio chat messages and back. Each answer carries a note: progress, speed, or an error.

Pure: no Gradio component, no HTTP, no clock. All text from a model or a visitor is escaped here before it becomes HTML.
"""

import html
from collections.abc import Sequence
from typing import Any

from ui.chat.answer import Answer

ChatMessage = dict[str, Any]  # Gradio's: {"role": str, "content": [{"type": "text", "text": HTML}, ...]}
STREAMING_NOTE, WAITING_NOTE = "streaming", "waiting for the first token"
IN_PROGRESS_MARK = "…"  # the note of an answer that is not finished ends in it
FINISH_NOTES = {"stop": "finished (stop)", "length": "cut at the token limit (length)"}


def user_message(text: str) -> ChatMessage:
    return _message("user", text)


def streaming_message(answer: Answer) -> ChatMessage:
    """An answer that is not finished; its note ends in an ellipsis."""
    note = WAITING_NOTE if answer.ttft_ms is None else f"{STREAMING_NOTE} · TTFT {answer.ttft_ms:,.0f} ms"
    if answer.queue is not None:
        estimate = "" if not answer.queue.wait_s else f", about {answer.queue.wait_s} s"
        note = f"{WAITING_NOTE}: position {answer.queue.position} in the queue{estimate}"
    return _message("assistant", answer.text, note + IN_PROGRESS_MARK)


def finished_message(answer: Answer) -> ChatMessage:
    """A finished answer; its note holds the model, the token count, the speed, TTFT and the finish reason, as far as they are known."""
    parts = [FINISH_NOTES.get(answer.finish_reason or "", "finished")]
    if answer.ttft_ms is not None:
        parts.insert(0, f"TTFT {answer.ttft_ms:,.0f} ms")
    if answer.tokens_per_s is not None:
        parts.insert(0, f"{answer.tokens_per_s:,.1f} tokens/s")
    if answer.completion_tokens is not None:
        parts.insert(0, f"{answer.completion_tokens:,} token{'' if answer.completion_tokens == 1 else 's'}")
    if answer.model is not None:
        parts.insert(0, answer.model)
    return _message("assistant", answer.text, " · ".join(parts))


def failed_message(answer: Answer, sentence: str) -> ChatMessage:
    """The text that arrived before the failure, and the failure as the note."""
    return _message("assistant", answer.text, f"⚠ {sentence}")


def mark_stopped(history: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Changes the note of an unfinished answer to "stopped". A history without one is returned unchanged."""
    if awaits_answer(history):
        return [*history, _message("assistant", "", "stopped before it started")]
    if not is_streaming(history):
        return list(history)
    *before, last = history
    note = _note(last).removesuffix(IN_PROGRESS_MARK)
    note = note.replace(WAITING_NOTE, "stopped before the first token").replace(STREAMING_NOTE, "stopped")
    return [*before, _message("assistant", _text(last), note)]


def is_streaming(history: Sequence[ChatMessage]) -> bool:
    """Whether the last message is an unfinished answer."""
    return bool(history) and _note(history[-1]).endswith(IN_PROGRESS_MARK)


def awaits_answer(history: Sequence[ChatMessage]) -> bool:
    """Whether the last message is a question that has no answer yet, not even an empty one."""
    return bool(history) and history[-1]["role"] == "user"


def unanswered_question(history: Sequence[ChatMessage]) -> str:
    """The last question, if its answer ended without any text, so that it can be sent again. Blank otherwise."""
    if len(history) < 2 or history[-1]["role"] != "assistant" or _text(history[-1]):
        return ""
    return _text(history[-2])


def request_messages(history: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """The conversation as the request's `messages`: plain text, no notes. Questions whose answer has no text are left out."""
    request: list[dict[str, str]] = []
    for message in history:
        text = _text(message)
        if message["role"] == "assistant" and not text:
            request.pop()  # the question before it
        else:
            request.append({"role": message["role"], "content": text})
    return request


def _message(role: str, text: str, note: str = "") -> ChatMessage:
    """Escapes the parts: the Chatbot shows HTML even with Markdown off. Quotes stay, because it uses the same text as a label."""
    parts = [text, note] if role == "assistant" else [text]
    return {"role": role, "content": [{"type": "text", "text": html.escape(part, quote=False)} for part in parts]}


def _text(message: ChatMessage) -> str:
    return html.unescape(message["content"][0]["text"])


def _note(message: ChatMessage) -> str:
    return html.unescape(message["content"][1]["text"]) if len(message["content"]) > 1 else ""
