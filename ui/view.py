"""Translates what the server said into what the page shows: chat messages with their notes, and the header.

Pure: no Gradio component, no HTTP, no clock. Whatever came from a model or a user is escaped here before it becomes HTML.
"""

import html
from collections.abc import Sequence
from typing import Any

from app.schemas import ModelCard
from ui.answer import Answer

ChatMessage = dict[str, Any]  # Gradio's: {"role": str, "content": [{"type": "text", "text": HTML}, ...]}
TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})
TAGLINE = "One model that chats, and tells how machine-like a text is."
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


def connecting(server_url: str) -> str:
    return _header(f'<p class="status">Asking {escaped(server_url)} what it serves.</p>')


def unreachable(sentence: str) -> str:
    return _header(problem(sentence))


def problem(sentence: str) -> str:
    return f'<p class="status problem" role="alert">{escaped(sentence)}</p>'


def header(cards: Sequence[ModelCard], status: str) -> str:
    """What is served; `status` is the word of GET /ready."""
    note = (
        "" if status == "ready" else f'<p class="status problem" role="alert">The server is {escaped(status)}: answers may be refused.</p>'
    )
    return _header(note + "".join(_card(card) for card in cards))


def _card(card: ModelCard) -> str:
    facts = {
        "Model": card.id,
        "Precision": card.dtype if card.quantize == "none" else f"{card.quantize}, computing in {card.dtype}",
        "Device": card.device,
        "Context": f"{card.context:,} tokens",
        "Slots": f"{card.slots:,}",
        "Observer": card.observer or "none",
    }
    if not card.chat:
        facts["Chat"] = "no chat template"
    pairs = "".join(f"<div><dt>{name}</dt><dd>{escaped(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{pairs}</dl>'


def _header(inside: str) -> str:
    return f'<header class="litmus"><h1>Litmus</h1><p class="tagline">{TAGLINE}</p>{inside}</header>'
