"""Translates the two answers of the Compare tab into HTML. Pure; all text of a model or a visitor is escaped here."""

from collections.abc import Iterator

from ui.client import QueueStatus
from ui.compare.side import LABELS, Settings, Side, differences
from ui.markup import alert_html, escape_html

IDLE = '<p class="hint">Ask something above: both answers appear here, side by side.</p>'
SHARED = "Both run at once and share the machine: each is slower than it would be alone. For times to compare, run one after the other."
FINISHES = {"stop": "finished", "length": "cut at the limit of tokens: raise Max tokens for more"}
BLANK = {
    "model": "the server's default",
    "seed": "random",
    "max_tokens": "what the context leaves",
    "system": "none",
}  # what a blank setting means
SHOWN_LETTERS = 120  # of a long system prompt


def idle_html(name: str) -> str:
    return f'<section class="side" aria-label="Answer {name}"><h2>{name}</h2>{IDLE}</section>'


def side_html(side: Side) -> str:
    copy = f'<button type="button" class="copy">Copy answer {side.name}</button>' if side.has_ended and side.answer.text else ""
    answer = f'<div class="answer">{answer_html(side.answer.text)}</div>' if side.answer.text else ""
    head = f'<h2>{side.name} <span class="mark">{escape_html(side.settings.model or "default model")}</span></h2>'
    content = f"{head}{_note_html(side)}{answer}{_numbers_html(side)}{copy}"
    return f'<section class="side" aria-label="Answer {side.name}">{content}</section>'


def answer_html(text: str) -> str:
    """An answer as plain text."""
    return escape_html(text)


def _note_html(side: Side) -> str:
    if side.problem:
        return alert_html(side.problem)
    busy = "" if side.has_ended else " busy"
    return f'<p class="note{busy}" role="status">{escape_html(_note(side))}</p>'


def _note(side: Side) -> str:
    if side.stopped:
        return "stopped" if side.answer.text else "stopped before the first token"
    if side.has_ended:
        return FINISHES.get(side.answer.finish_reason or "", "finished")
    if side.sent_s is None:
        return "waits for the other answer"
    if side.answer.text:
        return "streaming"
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
        same = "Both sides have the same settings" + ("." if left.seed.strip() else ", so only their random seeds differ.")
        return f'<p class="hint">{same}</p>'
    items = "".join(
        f"<li><b>{LABELS[name]}</b> <span>A: {escape_html(_shown(name, pair[0]))}</span> "
        f"<span>B: {escape_html(_shown(name, pair[1]))}</span></li>"
        for name, pair in found.items()
    )
    return f'<ul class="difference" aria-label="What differs">{items}</ul>'


def _shown(name: str, value: str) -> str:
    return f"{value[:SHOWN_LETTERS]}…" if len(value) > SHOWN_LETTERS else value or BLANK.get(name, "model's default")
