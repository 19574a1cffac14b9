"""The live line above the message box: what the server is doing with the question, and how full the context is.

Pure. The state in `data-state` is what scripts announce to screen readers and show in the window's title.
"""

from ui.chat.answer import Answer
from ui.chat.conversation import Conversation
from ui.markup import escape_html

FILLING, NEARLY_FULL = 0.8, 0.95  # of the context


def sending_html() -> str:
    return _line_html("waiting", "Sending the question", None, None)


def running_html(answer: Answer, context: int | None) -> str:
    state, sentence = _stage(answer)
    return _line_html(state, sentence, _used(answer.prompt_tokens, answer.completion_tokens), context, answer.model)


def idle_html(conversation: Conversation, context: int | None) -> str:
    """After an answer: how much of the context the conversation takes."""
    facts = None if conversation.last is None else conversation.last.facts
    used = None if facts is None else _used(facts.prompt_tokens, facts.completion_tokens)
    return _line_html("idle", "", used, context)


def problem_html(sentence: str) -> str:
    return f'<p id="live" data-state="problem" role="alert">{escape_html(sentence)}</p>'


def _stage(answer: Answer) -> tuple[str, str]:
    if answer.pause is not None:
        return answer.pause.state, answer.pause.words
    if answer.ttft_ms is not None:
        speed = "" if answer.tokens_per_s is None else f" · {answer.tokens_per_s:,.1f} tokens/s"
        count = answer.completion_tokens
        tokens = "" if count is None else f" · {count:,} {'token' if count == 1 else 'tokens'}"
        return ("answering" if answer.text else "thinking"), (
            f"{'Answering' if answer.text else 'Thinking'}{tokens}{speed} · first token after {answer.ttft_ms:,.0f} ms"
        )
    if answer.loading:
        return "loading", answer.loading
    if answer.queue is not None:
        estimate = "" if not answer.queue.wait_s else f", about {answer.queue.wait_s} s"
        return "waiting", f"Waiting: position {answer.queue.position} in the queue{estimate}"
    if answer.progress is not None:
        return "reading", f"Reading the prompt: {answer.progress.processed:,} of {answer.progress.total:,} tokens"
    return "waiting", "Waiting for the first token"


def _line_html(state: str, sentence: str, used: int | None, context: int | None, model: str = "") -> str:
    """`sentence` changes many times a second, so it is hidden from screen readers; its state is announced instead."""
    gauge = "" if used is None or not context else _gauge_html(used, context)
    now = f'<span class="now" aria-hidden="true">{escape_html(sentence)}</span>' if sentence else ""
    return f'<p id="live" data-state="{state}" data-model="{escape_html(model)}">{now}{gauge}</p>'


def _gauge_html(used: int, context: int) -> str:
    part = used / context
    words = f"{used:,} of {context:,} tokens of the context ({part:.0%})"
    level, advice = "", ""
    if part >= 1:
        level, advice = " full", " It is full: start a new conversation, or undo a question."
    elif part >= NEARLY_FULL:
        level, advice = " full", " The next answer may not fit: start a new conversation, or undo a question."
    elif part >= FILLING:
        level, advice = " nearly", " It is nearly full: long questions will soon not fit."
    meter = f'<span class="meter" aria-hidden="true"><span style="width:{min(part, 1):.1%}"></span></span>'
    return f'<span class="gauge-line{level}">{meter}{words}.{advice}</span>'


def _used(prompt_tokens: int | None, completion_tokens: int | None) -> int | None:
    return None if prompt_tokens is None else prompt_tokens + (completion_tokens or 0)
