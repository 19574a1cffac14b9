"""Translates what the server said into what the chat shows: messages with their notes.

Pure: no Gradio component, no HTTP, no clock. Whatever came from a model or a user is escaped here before it becomes HTML.
"""

import html
from collections.abc import Sequence
from typing import Any

from ui.answer import Answer

ChatMessage = dict[str, Any]  # Gradio's: {"role": str, "content": [{"type": "text", "text": HTML}, ...]}
TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})
STREAMING, WAITING, UNDERWAY = "streaming", "waiting for the first token", "…"
FINISHED = {"stop": "finished (stop)", "length": "cut at the token limit (length)"}


def escaped(text: str) -> str:
    """Text for an HTML body or attribute. The braces go too: `gr.HTML` reads its value as a template."""
    return html.escape(text).translate(TEMPLATE_CHARACTERS)


def question(text: str) -> ChatMessage:
    return _message("user", text)


def answering(answer: Answer) -> ChatMessage:
    """An answer on its way: its note ends in an ellipsis."""
    words = WAITING if answer.ttft_ms is None else f"{STREAMING} · TTFT {answer.ttft_ms:,.0f} ms"
    if answer.place is not None:
        about = "" if not answer.place.wait_s else f", about {answer.place.wait_s} s"
        words = f"{WAITING}: number {answer.place.position} in the queue{about}"
    return _message("assistant", answer.text, words + UNDERWAY)


def answered(answer: Answer) -> ChatMessage:
    parts = [FINISHED.get(answer.finish_reason or "", "finished")]
    if answer.ttft_ms is not None:
        parts.insert(0, f"TTFT {answer.ttft_ms:,.0f} ms")
    if answer.tokens_per_s is not None:
        parts.insert(0, f"{answer.tokens_per_s:,.1f} tokens/s")
    if answer.tokens is not None:
        parts.insert(0, f"{answer.tokens:,} token{'' if answer.tokens == 1 else 's'}")
    if answer.model is not None:
        parts.insert(0, answer.model)
    return _message("assistant", answer.text, " · ".join(parts))


def failed(answer: Answer, sentence: str) -> ChatMessage:
    return _message("assistant", answer.text, f"⚠ {sentence}")


def stopped(history: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The history with the note of an answer that was on its way saying so; any other history as it is."""
    if unanswered(history):
        return [*history, _message("assistant", "", "stopped before it began")]
    if not live(history):
        return list(history)
    *before, last = history
    words = _note(last).removesuffix(UNDERWAY).replace(WAITING, "stopped before the first token").replace(STREAMING, "stopped")
    return [*before, _message("assistant", _text(last), words)]


def live(history: Sequence[ChatMessage]) -> bool:
    return bool(history) and _note(history[-1]).endswith(UNDERWAY)


def unanswered(history: Sequence[ChatMessage]) -> bool:
    """A question was put and nothing stands under it yet."""
    return bool(history) and history[-1]["role"] == "user"


def lost_question(history: Sequence[ChatMessage]) -> str:
    """What the user asked last, if no word of an answer came: theirs to send again. Blank otherwise."""
    if len(history) < 2 or history[-1]["role"] != "assistant" or _text(history[-1]):
        return ""
    return _text(history[-2])


def conversation(history: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """The messages to send, plain and without notes. A question that got no word of an answer is left out, save the last."""
    sent: list[dict[str, str]] = []
    for message in history:
        text = _text(message)
        if message["role"] == "assistant" and not text:
            sent.pop()
        else:
            sent.append({"role": message["role"], "content": text})
    return sent


def _message(role: str, text: str, note: str = "") -> ChatMessage:
    """The Chatbot shows HTML even with its Markdown off. Quotes stay: it reads the same text out as a label."""
    parts = [text, note] if role == "assistant" else [text]
    return {"role": role, "content": [{"type": "text", "text": html.escape(part, quote=False)} for part in parts]}


def _text(message: ChatMessage) -> str:
    return html.unescape(message["content"][0]["text"])


def _note(message: ChatMessage) -> str:
    return html.unescape(message["content"][1]["text"]) if len(message["content"]) > 1 else ""


def problem(sentence: str) -> str:
    return f'<p class="status problem" role="alert">{escaped(sentence)}</p>'
