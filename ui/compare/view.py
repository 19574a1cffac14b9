"""Translates the two answers of the Compare tab: head and numbers into HTML, the answer into Markdown that holds none. Pure."""

from collections.abc import Iterator

from ui.chat.markdown import harmless
from ui.client import QueueStatus
from ui.compare.side import LABELS, Settings, Side, differences
from ui.markup import alert_html, escape_html

IDLE = '<p class="hint">Ask something above: both answers appear here, side by side.</p>'
SHARED = "Both run at once and share the machine: each is slower than it would be alone. For times to compare, run one after the other."
CUT = "The answer was cut: it reached the limit of tokens. Raise Max tokens for more, or leave it blank for as many as fit the context."
CUT_THOUGHT = "The limit of tokens was reached while the model was still thinking. Raise Max tokens for an answer."
BLANK = {
    "model": "the server's default",
    "seed": "random",
    "max_tokens": "what the context leaves",
    "system": "none",
}  # what a blank setting means
SHOWN_LETTERS = 120  # of a long system prompt


def idle_html(name: str) -> str:
    return f"<h2>{name}</h2>{IDLE}"


def drawn(side: Side) -> tuple[str, str, str]:
    """What stands above the answer, the answer as Markdown, and what stands below it."""
    head = f'<h2>{side.name} <span class="mark">{escape_html(side.settings.model or "default model")}</span></h2>{_note_html(side)}'
    answer = side.answer
    return head, harmless(answer.text, answer.thought, is_thinking=not answer.text and not side.has_ended), _foot_html(side)


def _foot_html(side: Side) -> str:
    """The numbers, and for the button that copies it the answer as the model wrote it."""
    if not side.has_ended or not side.answer.text:
        return _numbers_html(side)
    copy = f'<button type="button" class="copy">Copy answer {side.name}</button>'
    return f"{_numbers_html(side)}{copy}<pre class=source hidden>{escape_html(side.answer.text)}</pre>"


def _note_html(side: Side) -> str:
    if side.problem:
        return alert_html(side.problem)
    if side.has_ended and not side.stopped and side.answer.finish_reason == "length":
        return f'<p class="note ending" role="status">{CUT if side.answer.text else CUT_THOUGHT}</p>'
    busy = "" if side.has_ended else " busy"
    return f'<p class="note{busy}" role="status">{escape_html(_note(side))}</p>'


def _note(side: Side) -> str:
    if side.stopped:
        return "stopped" if side.answer.text else "stopped before the first token"
    if side.has_ended:
        return "finished"
    if side.sent_s is None:
        return "waits for the other answer"
    if side.answer.pause is not None:
        return side.answer.pause.words
    if side.answer.text or side.answer.thought:
        return "streaming" if side.answer.text else "thinking"
    return side.answer.loading or _place(side.answer.queue)


def _place(queue: QueueStatus | None) -> str:
    if queue is None:
        return "waiting for the first token"
    return f"waiting: position {queue.position} in the queue" + (f", about {queue.wait_s} s" if queue.wait_s else "")


def _numbers_html(side: Side) -> str:
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _numbers(side))
    return f'<dl class="facts">{items}</dl>'


def _numbers(side: Side) -> Iterator[tuple[str, str]]:
    answer = side.answer
    yield "First token", "–" if answer.ttft_ms is None else f"{answer.ttft_ms:,.0f} ms"
    yield "Tokens/s", "–" if answer.tokens_per_s is None else f"{answer.tokens_per_s:,.1f}"
    yield "Tokens", "–" if answer.completion_tokens is None else f"{answer.completion_tokens:,}"
    yield "Total time", "–" if side.total_s is None else f"{side.total_s:,.2f} s"


def difference_html(left: Settings, right: Settings) -> str:
    """The settings in which the sides differ; a sentence where there are none."""
    found = differences(left, right)
    if not found:
        same = "Both sides have the same settings" + ("." if left.given("seed") else ", so only their random seeds differ.")
        return f'<p class="hint">{same}</p>'
    items = "".join(
        f"<li><b>{LABELS[name]}</b> <span>A: {escape_html(_shown(name, pair[0]))}</span> "
        f"<span>B: {escape_html(_shown(name, pair[1]))}</span></li>"
        for name, pair in found.items()
    )
    return f'<ul class="difference" aria-label="What differs">{items}</ul>'


def _shown(name: str, value: str) -> str:
    return f"{value[:SHOWN_LETTERS]}…" if len(value) > SHOWN_LETTERS else value or BLANK.get(name, "model's default")
