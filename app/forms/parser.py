"""Takes tool calls out of an answer's text as it streams in: `ToolCallParser(format, forced).push(text)`, `.flush()`, `.complete`.

Knows how calls are written (`app.forms.tools`) and nothing of the model that writes them.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.forms.grammar import Schema
from app.forms.tools import TOOL_NAME, Segments, ToolFormat


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the answer outside tool calls."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the JSON text of a call's arguments."""

    index: int
    arguments: str


Event = TextDelta | ToolCallStart | ArgumentsDelta


class ToolCallParser:
    """A state machine over the text of one answer. Text that may be the beginning of a call is held back until the next push or flush.
    `forced`: the answer holds nothing but calls, so the parser never reports text. `or_form`: it holds either calls or a JSON value, in
    whose strings no call begins.
    """

    def __init__(self, format: ToolFormat, forced: bool, tools: Mapping[str, Schema] = MappingProxyType({}), or_form: bool = False) -> None:
        self._parameters, self._tools = format.parameters, tools
        self._before_name, self._forced = format.before_name, forced
        self._beginnings = format.beginnings(tools)
        self._before_first_name = _pattern(("", *format.opening[1:]), format.call_id)
        self._before_arguments = _pattern(format.before_arguments, format.call_id)
        self._between_calls = None if format.between_calls is None else _pattern(format.between_calls, format.call_id)
        self._after_calls = _pattern(format.after_calls, format.call_id)
        self._after_text = format.after_calls[0] if len(format.after_calls) == 1 else ""
        self._buffer = ""
        # One of the `_read_*` methods. Each consumes from the buffer and returns its events; None means that it needs more text.
        self._state: Callable[[], list[Event] | None] = self._read_first if or_form else self._read_text
        self._arguments = ObjectScanner()
        self._calls = 0
        self._name, self._written = "", 0  # of the current call, and how many arguments of it were reported

    @property
    def complete(self) -> bool:
        """Whether the answer may end here: no call has begun, or the last one is closed."""
        return self._state in self._outside or (self._state == self._read_between and self._after_calls.match(self._buffer) is not None)

    def push(self, text: str) -> list[Event]:
        self._buffer += text
        return list(self._events())

    def flush(self) -> list[Event]:
        """Call it when the answer has ended: the text that was held back, unless a call had begun."""
        text, self._buffer = (self._buffer, "") if self._state in self._outside else ("", self._buffer)
        return self._text_event(text)

    @property
    def _outside(self) -> tuple[Callable[[], list[Event] | None], ...]:
        """The states in which no call has begun."""
        return self._read_first, self._read_form, self._read_text

    def _events(self) -> Iterator[Event]:
        while (events := self._state()) is not None:
            yield from events

    def _text_event(self, text: str) -> list[Event]:
        return [TextDelta(text)] if text and not self._forced else []

    def _read_first(self) -> list[Event] | None:
        """Before the first letters, which tell a form from calls."""
        if any(begin.startswith(self._buffer) and begin != self._buffer for begin in self._beginnings):
            return None
        is_call = any(self._buffer.startswith(begin) for begin in self._beginnings)
        self._state = self._read_text if is_call else self._read_form
        return []

    def _read_form(self) -> list[Event] | None:
        text, self._buffer = self._buffer, ""
        return self._text_event(text) or None

    def _read_text(self) -> list[Event] | None:
        text = self._buffer
        places = [at for begin in self._beginnings if (at := text.find(begin)) >= 0]
        if places:
            self._buffer, self._state = text[min(places) + len(self._before_name) :], self._read_opening
            return self._text_event(text[: min(places)])
        safe = len(text) - max((overlap(text, begin) for begin in self._beginnings), default=0)
        self._buffer = text[safe:]
        return self._text_event(text[:safe]) or None

    def _read_opening(self) -> list[Event] | None:
        """The id of the first call, where it stands before the name."""
        match = self._before_first_name.match(self._buffer)
        if match is None:
            return None
        self._buffer, self._state = self._buffer[match.end() :], self._read_name
        return []

    def _read_name(self) -> list[Event] | None:
        name = TOOL_NAME.match(self._buffer)
        if name is None or name.end() == len(self._buffer):  # the name may go on
            return None
        self._buffer, self._state = self._buffer[name.end() :], self._read_before_arguments
        self._calls += 1
        self._name, self._written = name[0], 0
        return [ToolCallStart(self._calls - 1, name[0])]

    def _read_before_arguments(self) -> list[Event] | None:
        match = self._before_arguments.match(self._buffer)
        if match is None:
            return None
        self._buffer, self._arguments = self._buffer[match.end() :], ObjectScanner()
        self._state = self._read_arguments if self._parameters is None else self._read_parameters
        return []

    def _read_parameters(self) -> list[Event] | None:
        """One argument, or the end of all."""
        assert self._parameters is not None
        read = self._parameters.read(self._buffer, not self._written, self._tools.get(self._name, {}))
        if read is not None:
            key, value, end = read
            self._buffer, opening = self._buffer[end:], ", " if self._written else "{"
            self._written += 1
            return [ArgumentsDelta(self._calls - 1, f"{opening}{json.dumps(key)}: {value}")]
        ends = (self._after_calls, *([] if self._between_calls is None else [self._between_calls]))
        if not any(end.match(self._buffer) for end in ends):
            return None
        self._state = self._read_between
        return [ArgumentsDelta(self._calls - 1, "}" if self._written else "{}")]

    def _read_arguments(self) -> list[Event] | None:
        if not self._buffer:
            return None
        end = self._arguments.end(self._buffer)
        arguments, self._buffer = self._buffer[:end], self._buffer[len(self._buffer) if end is None else end :]
        if end is not None:
            self._state = self._read_between
        return [ArgumentsDelta(self._calls - 1, arguments)]

    def _read_between(self) -> list[Event] | None:
        match = None if self._between_calls is None else self._between_calls.match(self._buffer)
        if match is None:
            return None
        after = self._after_calls.match(self._buffer)
        if after is None and len(self._buffer) < len(self._after_text) and self._after_text.startswith(self._buffer):
            return None  # the calls may end here, with more text than stands between two
        if after is not None and after.end() > match.end():
            return None
        self._buffer, self._state = self._buffer[match.end() :], self._read_name
        return []


class ObjectScanner:
    """Finds the end of a JSON object that arrives in chunks."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False

    def end(self, chunk: str) -> int | None:
        """The index after the object's last brace, or None if the object goes on beyond this chunk."""
        for index, letter in enumerate(chunk):
            if self._in_string:
                self._in_string = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
                continue
            self._in_string = letter == '"'
            self._depth += {"{": 1, "}": -1}.get(letter, 0)
            if self._depth == 0:
                return index + 1
        return None


def _pattern(segments: Segments, call_id: str) -> re.Pattern[str]:
    """Matches the segments with any call id between them."""
    return re.compile(call_id.join(re.escape(segment) for segment in segments))


def overlap(text: str, begin: str) -> int:
    """How many of the text's last characters may be the start of `begin`."""
    return next((size for size in range(min(len(text), len(begin) - 1), 0, -1) if begin.startswith(text[-size:])), 0)
