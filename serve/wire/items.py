"""The output items of a response, built up delta by delta, and the events that tell a client of each step.

Knows no stream and no request.
"""

import uuid
from dataclasses import dataclass, field
from typing import Any

from app.forms.parser import ToolCallStart
from app.schemas import ContentLogprob, FinishReason
from app.schemas.items import ItemStatus
from app.schemas.reply import OutputCall, OutputItem, OutputMessage, OutputReasoning, OutputText, ReasoningText
from app.tokenizer import Tokenizer
from serve.wire.choice import ChoiceDelta, PartialCall
from serve.wire.logprobs import LogprobEntry, chat_logprobs
from serve.wire.namespaces import Names

Event = dict[str, Any]  # with its `type`, but without a sequence number


@dataclass(slots=True)
class Text:
    """A message of the assistant with one part of text."""

    index: int  # among the items of the output
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    status: ItemStatus = "in_progress"
    text: str = ""
    logprobs: list[ContentLogprob] = field(default_factory=list)

    def item(self) -> OutputMessage:
        return OutputMessage(id=self.id, status=self.status, content=[self.part()])

    def part(self) -> OutputText:
        return OutputText(text=self.text, logprobs=self.logprobs)

    def begin(self) -> list[Event]:
        item = self.item().model_copy(update={"content": []})
        return [_added(self.index, item), {"type": "response.content_part.added", **_place(self), "part": self.part().model_dump()}]

    def add(self, text: str, logprobs: list[ContentLogprob]) -> Event:
        self.text += text
        self.logprobs += logprobs
        return {"type": "response.output_text.delta", **_place(self), "delta": text, "logprobs": _dumped(logprobs)}

    def end(self, status: ItemStatus) -> list[Event]:
        self.status = status
        return [
            {"type": "response.output_text.done", **_place(self), "text": self.text, "logprobs": _dumped(self.logprobs)},
            {"type": "response.content_part.done", **_place(self), "part": self.part().model_dump()},
            _done(self.index, self.item()),
        ]


@dataclass(slots=True)
class Call:
    """A tool call. Its arguments grow with the choice that it belongs to."""

    index: int  # among the items of the output
    call: PartialCall
    name: str
    namespace: str | None = None
    id: str = field(default_factory=lambda: f"fc_{uuid.uuid4().hex}")
    status: ItemStatus = "in_progress"

    def item(self) -> OutputCall:
        id, arguments = self.call.id, self.call.arguments
        return OutputCall(id=self.id, call_id=id, name=self.name, namespace=self.namespace, arguments=arguments, status=self.status)

    def begin(self) -> list[Event]:
        return [_added(self.index, self.item().model_copy(update={"arguments": ""}))]

    def add(self, arguments: str) -> Event:
        return {"type": "response.function_call_arguments.delta", **self._place(), "delta": arguments}

    def end(self, status: ItemStatus) -> list[Event]:
        self.status = status
        done = {"type": "response.function_call_arguments.done", **self._place(), "name": self.name, "arguments": self.call.arguments}
        return [done, _done(self.index, self.item())]

    def _place(self) -> Event:
        return {"item_id": self.id, "output_index": self.index}


@dataclass(slots=True)
class Thought:
    """What a reasoning model thought."""

    index: int  # among the items of the output
    id: str = field(default_factory=lambda: f"rs_{uuid.uuid4().hex}")
    status: ItemStatus = "in_progress"
    text: str = ""

    def item(self) -> OutputReasoning:
        return OutputReasoning(id=self.id, status=self.status, content=[ReasoningText(text=self.text)])

    def begin(self) -> list[Event]:
        return [_added(self.index, self.item().model_copy(update={"content": []}))]

    def add(self, text: str) -> Event:
        self.text += text
        return {"type": "response.reasoning_text.delta", **_place(self), "delta": text}

    def end(self, status: ItemStatus) -> list[Event]:
        self.status = status
        return [{"type": "response.reasoning_text.done", **_place(self), "text": self.text}, _done(self.index, self.item())]


class Output:
    """The items of one response. One of them is open at a time; what does not belong to it closes it."""

    def __init__(self, calls: list[PartialCall], tokenizer: Tokenizer, names: Names) -> None:
        """`calls` are those of the choice, which grow as it does."""
        self._calls, self._tokenizer, self._names = calls, tokenizer, names
        self._items: list[Text | Call | Thought] = []
        self._open: Text | Call | Thought | None = None

    def items(self) -> list[OutputItem]:
        return [item.item() for item in self._items]

    def add(self, delta: ChoiceDelta) -> list[Event]:
        events: list[Event] = []
        if delta.thought:
            events += self._add_thought(delta.thought)
        if delta.text or delta.entries:
            events += self._add_text(delta.text, delta.entries)
        for piece in delta.calls:
            if isinstance(piece, ToolCallStart):
                events += self._begin(self._call(self._calls[piece.index]))
            elif isinstance(self._open, Call):
                events.append(self._open.add(piece.arguments))
        return events

    def finish(self, reason: FinishReason | None) -> list[Event]:
        """Close the last item: None says that the answer failed. An answer without any item is an empty message."""
        events = [] if self._items or reason is None else self._begin(Text(0))
        whole = reason == "tool_calls" if isinstance(self._open, Call) else reason == "stop"
        return events + self._close("completed" if whole else "incomplete")

    def _call(self, call: PartialCall) -> Call:
        namespace, name = self._names.get(call.name, (None, call.name))
        return Call(len(self._items), call, name, namespace)

    def _add_thought(self, text: str) -> list[Event]:
        events: list[Event] = []
        thought = self._open
        if not isinstance(thought, Thought):
            thought = Thought(len(self._items))
            events = self._begin(thought)
        return [*events, thought.add(text)]

    def _add_text(self, text: str, entries: list[LogprobEntry]) -> list[Event]:
        events: list[Event] = []
        message = self._open
        if not isinstance(message, Text):
            message = Text(len(self._items))
            events = self._begin(message)
        return [*events, message.add(text, chat_logprobs(entries, [], self._tokenizer).content)]

    def _begin(self, item: Text | Call | Thought) -> list[Event]:
        closed = self._close("completed")
        self._items.append(item)
        self._open = item
        return closed + item.begin()

    def _close(self, status: ItemStatus) -> list[Event]:
        item, self._open = self._open, None
        return [] if item is None else item.end(status)


def _added(index: int, item: OutputItem) -> Event:
    return {"type": "response.output_item.added", "output_index": index, "item": item.model_dump()}


def _done(index: int, item: OutputItem) -> Event:
    return {"type": "response.output_item.done", "output_index": index, "item": item.model_dump()}


def _dumped(logprobs: list[ContentLogprob]) -> list[Any]:
    return [entry.model_dump() for entry in logprobs]


def _place(item: Text | Thought) -> Event:
    """Where the one part of the item's content stands."""
    return {"item_id": item.id, "output_index": item.index, "content_index": 0}
