"""From an answer to the bodies and server-sent events of Anthropic's Messages API: blocks of text and of tool use.

Does not know the router.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import Any

from app.engine.events import Event, Notice
from app.errors import LitmusError
from app.forms.parser import ArgumentsDelta, ToolCallStart
from app.schemas import FinishReason, MessagesResponse
from app.schemas.anthropic import MessagesUsage, StopReason
from app.schemas.blocks import AnswerText, AnswerThinking, AnswerToolUse
from serve.observe.record import current_id
from serve.wire.answers import Answer
from serve.wire.choice import Choice, ChoiceDelta, PartialCall
from serve.wire.errors import messages_error
from serve.wire.sse import comments, sse

STOP_REASONS: dict[FinishReason, StopReason] = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}


def messages_body(answer: Answer) -> MessagesResponse:
    """The answer so far. A call whose input was cut off by `max_tokens` is left out: nobody could run it."""
    choice = answer.choices[0]
    blocks: list[AnswerThinking | AnswerText | AnswerToolUse] = [AnswerThinking(thinking=choice.thought)] if choice.thought else []
    blocks += [AnswerText(text=choice.text)] if choice.text else []
    for call in choice.calls:
        arguments = _arguments(call)
        if arguments is not None:
            blocks.append(AnswerToolUse(id=call.id, name=call.name, input=arguments))
    return MessagesResponse(id=answer.id, model=answer.facts.name, content=blocks, usage=_usage(answer), **_stop(choice))


def _arguments(call: PartialCall) -> dict[str, Any] | None:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):  # ValueError: cut off, or a number of thousands of digits
        return None
    return arguments if isinstance(arguments, dict) else None


def _stop(choice: Choice) -> dict[str, Any]:
    """Why the answer ended, and the stop sequence if one ended it; nulls while it goes on."""
    if choice.finish_reason == "stop" and choice.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_string}
    reason = None if choice.finish_reason is None else STOP_REASONS[choice.finish_reason]
    return {"stop_reason": reason, "stop_sequence": None}


def _usage(answer: Answer) -> MessagesUsage:
    choice, prompt = answer.choices[0], len(answer.prompts[0].ids)
    return MessagesUsage(
        input_tokens=prompt - choice.cached_tokens,
        cache_read_input_tokens=choice.cached_tokens,
        output_tokens=choice.completion_tokens,
    )


class BlockWriter:
    """Writes what a choice gains as the events of its blocks, one open block at a time."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._started = 0  # blocks
        self._open: str | None = None  # the type of the block that may go on

    def write(self, delta: ChoiceDelta) -> Iterator[str]:
        if delta.thought:
            if self._open != "thinking":
                yield from self._start({"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": delta.thought})
        if delta.text:
            if self._open != "text":
                yield from self._start({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": delta.text})
        for piece in delta.calls:
            yield from self._write_call(piece)

    def _write_call(self, piece: ToolCallStart | ArgumentsDelta) -> Iterator[str]:
        if isinstance(piece, ToolCallStart):
            call = self._choice.calls[piece.index]
            yield from self._start({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        else:
            yield self._delta({"type": "input_json_delta", "partial_json": piece.arguments})

    def _start(self, block: dict[str, object]) -> Iterator[str]:
        yield from self.close()
        self._open, self._started = str(block["type"]), self._started + 1
        yield event("content_block_start", index=self._started - 1, content_block=block)

    def _delta(self, delta: dict[str, object]) -> str:
        return event("content_block_delta", index=self._started - 1, delta=delta)

    def close(self) -> Iterator[str]:
        if self._open is not None:
            self._open = None
            yield event("content_block_stop", index=self._started - 1)


def event(name: str, **fields: object) -> str:
    return f"event: {name}\n{sse({'type': name, **fields})}"


async def messages_stream(answer: Answer, events: AsyncIterable[Event]) -> AsyncIterator[str]:
    """The server-sent events of an answer.

    The first one waits for the first token: only then is it known how much of the prompt was cached.
    """
    choice = answer.choices[0]
    writer = BlockWriter(choice)
    try:
        async for engine_event in events:
            if isinstance(engine_event, Notice):
                for comment in comments(engine_event, choice.started):
                    yield comment
                continue
            is_first = not choice.started
            _, delta = answer.add(engine_event)
            if is_first:
                yield _message_start(answer)
                yield event("ping")
            for line in writer.write(delta):
                yield line
        for line in writer.close():
            yield line
        yield event("message_delta", delta=_stop(choice), usage=_usage(answer).model_dump())
        yield event("message_stop")
    except LitmusError as error:
        yield f"event: error\n{sse(messages_error(error, current_id()))}"


def _message_start(answer: Answer) -> str:
    message = messages_body(answer).model_copy(update={"content": [], "stop_reason": None, "stop_sequence": None})
    return event("message_start", message=message.model_dump())
