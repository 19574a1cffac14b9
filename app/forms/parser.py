"""Calls of tools taken out of an answer's text as it comes: `Reader(format, forced).push(text)`, `.flush()`, `.whole`.

Knows how calls are written (`app.forms.tools`) and nothing of who wrote them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.forms.tools import ID, NAME, Format, Pieces


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """More of the text of a call's arguments."""

    index: int
    arguments: str


Event = Said | CallStart | CallPart


class Reader:
    """Reads an answer as its text comes. What may be the beginning of a call is held back; `forced` answers say nothing but calls."""

    def __init__(self, format: Format, forced: bool) -> None:
        shown = format.marks.shown
        self._begin, self._forced = shown(format.begin), forced
        self._middle = _expected(format.middle, shown)
        self._between = None if format.between is None else _expected(format.between, shown)
        self._close = _expected(format.close, shown)
        self._held = ""
        self._step: Callable[[], list[Event] | None] = self._text
        self._object = Object()
        self._calls = 0

    @property
    def whole(self) -> bool:
        """Whether the answer may end here."""
        return self._step == self._text or (self._step == self._behind and self._close.match(self._held) is not None)

    def push(self, text: str) -> list[Event]:
        self._held += text
        return list(self._events())

    def flush(self) -> list[Event]:
        """What was held back when the answer ended: text, unless a call had begun."""
        held, self._held = (self._held, "") if self._step == self._text else ("", self._held)
        return self._said(held)

    def _events(self) -> Iterator[Event]:
        while (events := self._step()) is not None:
            yield from events

    def _said(self, text: str) -> list[Event]:
        return [Said(text)] if text and not self._forced else []

    def _text(self) -> list[Event] | None:
        text, found, rest = self._held.partition(self._begin)
        if found:
            self._held, self._step = rest, self._name
            return self._said(text)
        safe = len(text) - _overlap(text, self._begin)
        self._held = text[safe:]
        return self._said(text[:safe]) or None

    def _name(self) -> list[Event] | None:
        found = NAME.match(self._held)
        if found is None or found.end() == len(self._held):
            return None
        self._held, self._step = self._held[found.end() :], self._inside
        self._calls += 1
        return [CallStart(self._calls - 1, found[0])]

    def _inside(self) -> list[Event] | None:
        found = self._middle.match(self._held)
        if found is None:
            return None
        self._held, self._step, self._object = self._held[found.end() :], self._value, Object()
        return []

    def _value(self) -> list[Event] | None:
        if not self._held:
            return None
        end = self._object.end(self._held)
        piece, self._held = self._held[:end], self._held[len(self._held) if end is None else end :]
        if end is not None:
            self._step = self._behind
        return [CallPart(self._calls - 1, piece)]

    def _behind(self) -> list[Event] | None:
        found = None if self._between is None else self._between.match(self._held)
        if found is None:
            return None
        self._held, self._step = self._held[found.end() :], self._name
        return []


class Object:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False

    def end(self, text: str) -> int | None:
        """The place in this piece behind the object's last brace, if it is in it."""
        for place, letter in enumerate(text):
            if self._quoted:
                self._quoted = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
                continue
            self._quoted = letter == '"'
            self._depth += {"{": 1, "}": -1}.get(letter, 0)
            if self._depth == 0:
                return place + 1
        return None


def _expected(text: Pieces, shown: Callable[[str], str]) -> re.Pattern[str]:
    return re.compile(ID.join(re.escape(shown(piece)) for piece in text))


def _overlap(text: str, mark: str) -> int:
    """How many of the text's last characters may be the beginning of the mark."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
