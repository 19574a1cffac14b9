"""How a model writes tool calls, learned from its own chat template, and a grammar that enforces it. `app.forms.parser` reads calls back.

    learn_tool_format(render, added_tokens) -> ToolFormat | ToolsUnsupported    from what the template writes for two made-up calls
    ToolFormat.grammar(tools, forced, parallel) -> str                          for llguidance; `tools`: names with their argument schemas

`render(messages, tools, add_generation_prompt)` applies the template and raises `InvalidRequest` for what the template refuses.
Knows no tokenizer, no model and no request.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from app.errors import InvalidRequest
from app.forms.grammar import Schema, schema_term

Messages = Sequence[dict[str, Any]]
Render = Callable[[Messages, Sequence[dict[str, Any]], bool], str]
Segments = tuple[str, ...]  # fixed text, split at each place where the template writes a call's id

PROBE_ANSWER = "\ue007"  # a private-use character, which no template writes by itself
PROBE_NAMES = ("measure_a", "measure_b")
PROBE_IDS = ("aB3dE5gH7", "zY8xW6vU4")  # nine letters and digits: Mistral's templates accept no other ids
PROBE_ARGUMENTS: tuple[Schema, ...] = ({"depth": "north 1"}, {"depth": "south 2"})
CALL_ID = "[a-zA-Z0-9]{9}"
TOOL_NAME = re.compile("[a-zA-Z0-9_-]+")
MIN_TRIGGER_CHARS = 3  # a shorter first word does not tell a call from other text


@dataclass(frozen=True, slots=True)
class AddedTokens:
    """The tokens added to the vocabulary, by their text. A grammar must name each of them by its id, special or not."""

    ids: Mapping[str, int]
    special: frozenset[str]  # left out of the text of an answer
    ends: frozenset[str]  # these end an answer

    def split(self, text: str) -> list[str]:
        """The text in parts: each is an added token or contains none."""
        any_token = "|".join(re.escape(token) for token in sorted(self.ids, key=len, reverse=True))
        return [part for part in re.split(f"({any_token})", text) if part] if any_token else [text] * bool(text)

    def term(self, part: str) -> str:
        """A part as llguidance's Lark syntax has it: an added token by its id, other text as a string."""
        return f"<[{self.ids[part]}]>" if part in self.ids else json.dumps(part, ensure_ascii=False)

    def visible(self, text: str) -> str:
        """The text without special tokens, as a client receives it."""
        return "".join(part for part in self.split(text) if part not in self.special)


class ToolsUnsupported(Exception):
    """Why this model's answers cannot be held to tool calls."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The fixed text around the names and arguments of tool calls:

    `before_name` NAME `before_arguments` ARGUMENTS (`between_calls` NAME `before_arguments` ARGUMENTS)* `after_calls`

    `between_calls` is None if the template writes at most one call per answer.
    """

    before_name: str
    before_arguments: Segments
    between_calls: Segments | None
    after_calls: Segments
    added_tokens: AddedTokens
    arguments_as_text: bool = False  # the template expects a call's arguments as a JSON string, not as an object

    @property
    def trigger(self) -> str:
        """What marks the beginning of a call: the added token at its start, or else its first word, or else all text before the name."""
        first = self.added_tokens.split(self.before_name)[0]
        word = re.split(r"[\s{]", first)[0]
        return first if first in self.added_tokens.ids else word if len(word) >= MIN_TRIGGER_CHARS else first

    def grammar(self, tools: Mapping[str, Schema], forced: bool, parallel: bool, marks: Sequence[str] = ()) -> str:
        """A grammar in llguidance's Lark syntax. `forced`: only calls of these tools; else text that may end in calls. At most one call
        unless `parallel`. `marks` are those around a thought: text does not begin with the first of them.
        """
        more = f"({self._terms(self.between_calls)} call)*" if parallel and self.between_calls is not None else ""
        calls = [
            f"{self._terms((name + self.before_arguments[0], *self.before_arguments[1:]))} {schema_term(schema)}"
            for name, schema in tools.items()
        ]
        rest = f"{self._terms((self.before_name.removeprefix(self.trigger),))} call {more} {self._terms(self.after_calls)}"
        start = f"start: {self._terms((self.trigger,))} rest" if forced else self._text_then_calls(marks)
        return "\n".join([start, f"rest: {rest}", f"call: {' | '.join(calls)}", f"ID: /{CALL_ID}/"]) + "\n"

    def _text_then_calls(self, marks: Sequence[str]) -> str:
        """Text that contains no beginning of a call, optionally followed by calls."""
        trigger, begin = self.trigger, self.added_tokens.visible(self.trigger) or self.added_tokens.visible(self.before_name)
        not_marked = "".join(f" & ~/[ \\n]*{as_regex(mark)}(?s:.*)/" for mark in marks[:1])
        text = f"TEXT: /(?s:.*)/ & ~/(?s:.*){as_regex(begin)}(?s:.*)/{not_marked}"
        other = self._text_with_other_tokens(marks)
        if trigger in self.added_tokens.ids:
            return f"start: {other} TEXT? | {other} TEXT? {self._terms((trigger,))} rest\n{text}"
        return f"start: {other} (TEXT | head rest)\nhead[lazy]: /(?s:.*){as_regex(trigger)}/{not_marked}\n{text}"

    def _text_with_other_tokens(self, marks: Sequence[str]) -> str:
        """Text with visible added tokens that are part neither of a call nor of these marks."""
        segments = (self.before_name, *(self.between_calls or ()), *self.after_calls)
        own = {part for segment in segments for part in self.added_tokens.split(segment)} | set(marks)
        ids, special = self.added_tokens.ids, self.added_tokens.special
        others = sorted(str(id) for token, id in ids.items() if token not in special and token not in own)
        return f"(TEXT? <[{','.join(others)}]>)*" if others else ""

    def _terms(self, segments: Segments) -> str:
        return " ID ".join(" ".join(self.added_tokens.term(part) for part in self.added_tokens.split(segment)) for segment in segments)


def as_regex(text: str) -> str:
    """A regular expression that matches exactly this text."""
    return "".join(letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in text)


def learn_tool_format(render: Render, added_tokens: AddedTokens) -> ToolFormat | ToolsUnsupported:
    """The model's way of writing tool calls, or the reason why Litmus cannot use it."""
    try:
        return _TemplateProbe(render, added_tokens).tool_format()
    except ToolsUnsupported as reason:
        return reason


class _TemplateProbe:
    """Renders made-up conversations with one and with two tool calls, and compares the results."""

    def __init__(self, render: Render, added_tokens: AddedTokens) -> None:
        self._render, self._added_tokens, self._arguments_as_text = render, added_tokens, False

    def tool_format(self) -> ToolFormat:
        """Raises `ToolsUnsupported`."""
        before_name, before_arguments, after_calls = self._single_call()
        between_calls = self._between_calls(before_name, before_arguments, after_calls)
        before_name = before_name.lstrip()  # white space after the text before a call is part of that text
        if not self._added_tokens.visible(before_name).strip():
            raise ToolsUnsupported("this model marks its tool calls only by special tokens, which are not part of an answer's text")
        return ToolFormat(before_name, before_arguments, between_calls, after_calls, self._added_tokens, self._arguments_as_text)

    def _single_call(self) -> tuple[str, Segments, Segments]:
        """What stands before the name, before the arguments and after the call; with arguments as text if the template refuses an object,
        or writes it as Python does.
        """
        refusal: ToolsUnsupported | None = None
        try:
            turn = self._assistant_turn(calls=1)
        except ToolsUnsupported as reason:
            refusal = reason
        else:
            if str(PROBE_ARGUMENTS[0]) not in turn:
                return self._split(turn)
        self._arguments_as_text = True
        try:
            return self._split(self._assistant_turn(calls=1))
        except ToolsUnsupported as reason:
            raise refusal or reason from reason

    def _split(self, turn: str) -> tuple[str, Segments, Segments]:
        before_name, name, rest = turn.partition(PROBE_NAMES[0])
        if not name:
            raise ToolsUnsupported("this model's chat template shows tools to the model, but does not write tool calls")
        if PROBE_NAMES[0] in rest or PROBE_IDS[0] in before_name:
            raise ToolsUnsupported("this model's chat template does not write the name of a called tool exactly once, before the call's id")
        span = _find_object(rest, PROBE_ARGUMENTS[0])
        if span is None:
            raise ToolsUnsupported("this model's chat template does not write a call's arguments as one JSON object after the tool's name")
        return before_name, _split_at_ids(rest[: span[0]]), _split_at_ids(rest[span[1] :])

    def _between_calls(self, before_name: str, before_arguments: Segments, after_calls: Segments) -> Segments | None:
        """What stands between the arguments of a call and the name of the next; None if the template does not write two calls alike."""
        try:
            turn = self._assistant_turn(calls=2)
        except ToolsUnsupported:
            return None
        first, _, second = turn.removeprefix(before_name + PROBE_NAMES[0]).partition(PROBE_NAMES[1])
        span_1, span_2 = _find_object(first, PROBE_ARGUMENTS[0]), _find_object(second, PROBE_ARGUMENTS[1])
        if span_1 is None or span_2 is None or not turn.startswith(before_name + PROBE_NAMES[0]):
            return None
        alike = _split_at_ids(first[: span_1[0]]) == before_arguments == _split_at_ids(second[: span_2[0]])
        return _split_at_ids(first[span_1[1] :]) if alike and _split_at_ids(second[span_2[1] :]) == after_calls else None

    def _assistant_turn(self, calls: int) -> str:
        """What the template writes for a turn with tool calls: from where a plain answer would begin to the end of the turn."""
        question = {"role": "user", "content": "How deep?"}
        tool_calls = [self._tool_call(index) for index in range(calls)]
        prompt = self._rendered([question], add_generation_prompt=True)
        if PROBE_NAMES[0] not in prompt:
            raise ToolsUnsupported("this model's chat template ignores tools: it does not write them into the prompt")
        with_answer = self._rendered([question, {"role": "assistant", "content": PROBE_ANSWER}])
        with_calls = self._rendered([question, {"role": "assistant", "content": "", "tool_calls": tool_calls}])
        start = len(commonprefix([with_answer, with_calls]))
        if start < len(prompt) and not with_answer[start:].startswith(PROBE_ANSWER):
            raise ToolsUnsupported("this model's chat template does not write tool calls where it writes the assistant's answers")
        return self._without_turn_end(with_calls[start:], with_answer.partition(PROBE_ANSWER)[2])

    def _without_turn_end(self, text: str, after_answer: str) -> str:
        """Cuts the text at the first end token; without one, cuts off what also follows a plain answer."""
        ends = [text.find(token) for token in self._added_tokens.ends if token in text]
        return text[: min(ends)] if ends else text.removesuffix(after_answer)

    def _rendered(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        try:
            return self._render(messages, [_probe_tool(name) for name in PROBE_NAMES], add_generation_prompt)
        except InvalidRequest as error:
            raise ToolsUnsupported(f"this model's chat template refuses tools or tool calls: {error.message}") from error

    def _tool_call(self, index: int) -> dict[str, Any]:
        arguments = json.dumps(PROBE_ARGUMENTS[index]) if self._arguments_as_text else PROBE_ARGUMENTS[index]
        return {"id": PROBE_IDS[index], "type": "function", "function": {"name": PROBE_NAMES[index], "arguments": arguments}}


def _probe_tool(name: str) -> dict[str, Any]:
    depth = {"type": "string", "description": "where"}
    parameters = {"type": "object", "properties": {"depth": depth}, "required": ["depth"]}
    return {"type": "function", "function": {"name": name, "description": "Says how deep it is.", "parameters": parameters}}


def _find_object(text: str, expected: Schema) -> tuple[int, int] | None:
    """Start and end of the first JSON object in the text that equals `expected`."""
    for brace in re.finditer("{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, brace.start())
        except json.JSONDecodeError:
            continue
        if value == expected:
            return brace.start(), end
    return None


def _split_at_ids(text: str) -> Segments:
    return tuple(re.split("|".join(PROBE_IDS), text))
