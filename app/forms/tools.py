"""How a model writes calls of tools, learned from its own chat template; held to by a grammar. How they are read back: `app.forms.parser`.

    learn(render, marks: Marks) -> Format | NoTools                   what the template writes for calls of two made-up tools
    Format.grammar(tools, forced, parallel) -> str                    for llguidance; `tools` are names with the schemas of their arguments

`render(messages, tools, opened)` is the template; it raises `InvalidRequest` for what it refuses. Knows no tokenizer, no model
and no request.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from app.errors import InvalidRequest
from app.forms.grammar import Schema, part

Messages = Sequence[dict[str, Any]]
Render = Callable[[Messages, Sequence[dict[str, Any]], bool], str]
Pieces = tuple[str, ...]  # a text, cut where the id of a call stands

ANSWER = "\ue007"  # a private character: no template writes it by itself
NAMES = ("measure_a", "measure_b")
IDS = ("aB3dE5gH7", "zY8xW6vU4")  # nine letters and digits: Mistral's templates take no other
VALUES: tuple[Schema, ...] = ({"depth": "north 1"}, {"depth": "south 2"})
ID = "[a-zA-Z0-9]{9}"
NAME = re.compile("[a-zA-Z0-9_-]+")
WORD = 3  # characters that tell the beginning of a call from other text


@dataclass(frozen=True, slots=True)
class Marks:
    """Added tokens by their text. A grammar has to name each by its id, special or not."""

    ids: Mapping[str, int]
    hidden: frozenset[str]  # not in the text of an answer
    ends: frozenset[str]  # end an answer

    def cut(self, text: str) -> list[str]:
        """The text in pieces, each a mark or free of marks."""
        known = "|".join(re.escape(mark) for mark in sorted(self.ids, key=len, reverse=True))
        return [piece for piece in re.split(f"({known})", text) if piece] if known else [text] * bool(text)

    def shown(self, text: str) -> str:
        return "".join(piece for piece in self.cut(text) if piece not in self.hidden)


class NoTools(Exception):
    """Why this model cannot be held to calls of tools."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Format:
    """`begin` NAME `middle` ARGUMENTS (`between` NAME `middle` ARGUMENTS)* `close`. Without `between` a model calls once in an answer."""

    begin: str
    middle: Pieces
    between: Pieces | None
    close: Pieces
    marks: Marks
    spelled: bool = False  # the template takes the arguments of a call as text, not as an object

    @property
    def trigger(self) -> str:
        """What a call is known by: the mark that it begins with, else its first word, else all that stands before the name."""
        first = self.marks.cut(self.begin)[0]
        word = re.split(r"[\s{]", first)[0]
        return first if first in self.marks.ids else word if len(word) >= WORD else first

    def grammar(self, tools: Mapping[str, Schema], forced: bool, parallel: bool) -> str:
        """Calls of these tools and nothing else if `forced`, else text that may end in calls; one call at most unless `parallel`."""
        more = f"({self._terms(self.between)} call)*" if parallel and self.between is not None else ""
        calls = [f"{self._terms((name + self.middle[0], *self.middle[1:]))} {part(schema)}" for name, schema in tools.items()]
        rest = f"{self._terms((self.begin.removeprefix(self.trigger),))} call {more} {self._terms(self.close)}"
        start = f"start: {self._terms((self.trigger,))} rest" if forced else self._free()
        return "\n".join([start, f"rest: {rest}", f"call: {' | '.join(calls)}", f"ID: /{ID}/"]) + "\n"

    def _free(self) -> str:
        """Any text in which no call seems to begin, and perhaps calls behind it."""
        trigger, begin = self.trigger, self.marks.shown(self.trigger) or self.marks.shown(self.begin)
        text = f"TEXT: /(?s:.*)/ & ~/(?s:.*){_spelt(begin)}(?s:.*)/"
        if trigger in self.marks.ids:
            return f"start: {self._asides()} TEXT? | {self._asides()} TEXT? {self._terms((trigger,))} rest\n{text}"
        return f"start: {self._asides()} (TEXT | head rest)\nhead[lazy]: /(?s:.*){_spelt(trigger)}/\n{text}"

    def _asides(self) -> str:
        """Text with marks that stand in it and are none of a call's: those of thoughts, for example."""
        own = {piece for text in (self.begin, *(self.between or ()), *self.close) for piece in self.marks.cut(text)}
        others = sorted(str(id) for mark, id in self.marks.ids.items() if mark not in self.marks.hidden and mark not in own)
        return f"(TEXT? <[{','.join(others)}]>)*" if others else ""

    def _terms(self, text: Pieces) -> str:
        return " ID ".join(" ".join(self._term(piece) for piece in self.marks.cut(one)) for one in text)

    def _term(self, piece: str) -> str:
        return f"<[{self.marks.ids[piece]}]>" if piece in self.marks.ids else json.dumps(piece, ensure_ascii=False)


def _spelt(text: str) -> str:
    """The text as a regular expression."""
    return "".join(letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in text)


def learn(render: Render, marks: Marks) -> Format | NoTools:
    try:
        return _Lesson(render, marks).format()
    except NoTools as reason:
        return reason


class _Lesson:
    def __init__(self, render: Render, marks: Marks) -> None:
        self._render, self._marks, self._spelled = render, marks, False

    def format(self) -> Format:
        """Raises `NoTools`."""
        begin, middle, close = self._one()
        if not self._marks.shown(begin).strip():
            raise NoTools("this model marks its calls of tools by tokens that are no text")
        return Format(begin, middle, self._between(begin, middle, close), close, self._marks, self._spelled)

    def _one(self) -> tuple[str, Pieces, Pieces]:
        written = self._turn(1)
        begin, found, rest = written.partition(NAMES[0])
        if not found:
            raise NoTools("this model's chat template has a place for tools, but none for their calls")
        if NAMES[0] in rest or IDS[0] in begin:
            raise NoTools("this model's chat template does not write the name of a called tool once, before its arguments")
        at = _arguments(rest, VALUES[0])
        if at is None and not self._spelled:
            self._spelled = True
            with suppress(NoTools):
                return self._one()
        if at is None:
            raise NoTools("this model's chat template does not write the arguments of a call as one JSON object behind the tool's name")
        return begin, _pieces(rest[: at[0]]), _pieces(rest[at[1] :])

    def _between(self, begin: str, middle: Pieces, close: Pieces) -> Pieces | None:
        """What stands between the arguments of a call and the name of the next one; None if the template writes one call only."""
        try:
            written = self._turn(2)
        except NoTools:
            return None
        first, _, second = written.removeprefix(begin + NAMES[0]).partition(NAMES[1])
        one, two = _arguments(first, VALUES[0]), _arguments(second, VALUES[1])
        if one is None or two is None:
            return None
        alike = written.startswith(begin + NAMES[0]) and _pieces(first[: one[0]]) == middle == _pieces(second[: two[0]])
        return _pieces(first[one[1] :]) if alike and _pieces(second[two[1] :]) == close else None

    def _turn(self, calls: int) -> str:
        """What the model writes in a turn that calls: from where it writes a plain answer, up to the end of the turn."""
        asked = {"role": "user", "content": "How deep?"}
        opened = self._told([asked], True)
        if NAMES[0] not in opened:
            raise NoTools("this model's chat template has no place for tools")
        plain = self._told([asked, {"role": "assistant", "content": ANSWER}])
        called = self._told([asked, {"role": "assistant", "content": "", "tool_calls": [self._call(place) for place in range(calls)]}])
        same = len(commonprefix([plain, called]))
        if same < len(opened) and not plain[same:].startswith(ANSWER):
            raise NoTools("this model's chat template writes calls of tools in another place than answers")
        return self._ended(called[same:], plain.partition(ANSWER)[2])

    def _ended(self, text: str, tail: str) -> str:
        """Without what ends the turn: a mark that ends answers, or what stands behind a plain answer."""
        ends = [text.find(mark) for mark in self._marks.ends if mark in text]
        return text[: min(ends)] if ends else text.removesuffix(tail)

    def _told(self, messages: Messages, opened: bool = False) -> str:
        try:
            return self._render(messages, [_tool(name) for name in NAMES], opened)
        except InvalidRequest as error:
            raise NoTools(f"this model's chat template cannot be shown tools and their calls: {error.message}") from error

    def _call(self, place: int) -> dict[str, Any]:
        arguments = json.dumps(VALUES[place]) if self._spelled else VALUES[place]
        return {"id": IDS[place], "type": "function", "function": {"name": NAMES[place], "arguments": arguments}}


def _tool(name: str) -> dict[str, Any]:
    depth = {"type": "string", "description": "where"}
    parameters = {"type": "object", "properties": {"depth": depth}, "required": ["depth"]}
    return {"type": "function", "function": {"name": name, "description": "Says how deep it is.", "parameters": parameters}}


def _arguments(text: str, wanted: Schema) -> tuple[int, int] | None:
    """Where the JSON object begins and ends in the text."""
    for found in re.finditer("{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, found.start())
        except json.JSONDecodeError:
            continue
        if value == wanted:
            return found.start(), end
    return None


def _pieces(text: str) -> Pieces:
    return tuple(re.split("|".join(IDS), text))
