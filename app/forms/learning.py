"""How a model writes tool calls, learned from its own chat template.

    learn_tool_format(render, added_tokens) -> ToolFormat | ToolsUnsupported    from what the template writes for made-up calls

`render(messages, tools, add_generation_prompt)` applies the template and raises `InvalidRequest` for what the template refuses.
Knows no tokenizer, no model and no request.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import Any

from app.errors import InvalidRequest
from app.forms.grammar import Schema
from app.forms.parameters import ParameterFormat, learn_parameters, with_other_values
from app.forms.tools import CALL_NUMBER, AddedTokens, Segments, ToolFormat, ToolsUnsupported

Messages = Sequence[dict[str, Any]]
Render = Callable[[Messages, Sequence[dict[str, Any]], bool], str]

PROBE_ANSWER = "\ue007"  # a private-use character, which no template writes by itself
PROBE_NAMES = ("measure_a", "measure_b")
PROBE_IDS = ("aB3dE5gH7", "zY8xW6vU4")  # nine letters and digits: Mistral's templates accept no other ids
PROBE_ARGUMENTS: tuple[Schema, ...] = ({"depth": "north 1"}, {"depth": "south 2"})
PROBE_PARAMETERS: tuple[Schema, ...] = ({"depth": "north 1"}, {"reach": "east 3"})


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
        parameters: ParameterFormat | None = None
        try:
            before_name, before_arguments, after_calls = self._single_call()
            between_calls = self._between_calls(before_name, before_arguments, after_calls)
        except ToolsUnsupported:
            learned = self._parameters()
            if learned is None:
                raise
            parameters, before_name, before_arguments, after_calls, between_calls = learned
        format = ToolFormat(
            before_name, before_arguments, between_calls, after_calls, self._added_tokens, self._arguments_as_text, parameters
        )
        if parameters is None:
            format = self._numbered(format)
        format = replace(format, before_name=format.before_name.lstrip())  # white space after the text before a call is part of that text
        if format.begins_by_name and not (format.before_name and before_arguments[0]):
            raise ToolsUnsupported("this model's chat template does not mark tool calls, so they look like other text")
        return replace(format, added_tokens=self._added_tokens.shown(format.fixed_texts))

    def _parameters(self) -> tuple[ParameterFormat, str, Segments, Segments, Segments | None] | None:
        """How arguments are written one by one, and the text around; None if they are not, or the template writes an id."""
        self._arguments_as_text = False
        both = tuple(item for arguments in PROBE_PARAMETERS for item in arguments.items())
        try:
            turns = [
                self._assistant_turn(1, arguments) for arguments in (PROBE_ARGUMENTS[0], dict(both), {}, {"depth": 7}, {"depth": True})
            ]
        except ToolsUnsupported:
            return None
        befores, _, rests = zip(*(turn.partition(PROBE_NAMES[0]) for turn in turns), strict=True)
        learned = learn_parameters((rests[0], both[:1]), (rests[1], both), rests[2])
        if learned is None or len(set(befores)) > 1 or any(id in turns[1] for id in PROBE_IDS) or PROBE_NAMES[0] in rests[0]:
            return None
        format, start, end = learned
        others = with_other_values(format, (rests[3].removeprefix(start), rests[4].removeprefix(start)), end)
        if others is None or not all(rest.startswith(start) for rest in rests):
            return None
        format = others
        return format, befores[0], (start,), (end,), self._between_parameters(befores[0], rests[0], end)

    def _between_parameters(self, before_name: str, rest: str, end: str) -> Segments | None:
        """What stands between the arguments of a call and the name of the next."""
        try:
            turn = self._assistant_turn(2)
        except ToolsUnsupported:
            return None
        first = before_name + PROBE_NAMES[0] + rest.removesuffix(end)
        second = PROBE_NAMES[1] + rest.replace(*(next(iter(arguments.values())) for arguments in PROBE_ARGUMENTS))
        inner = len(turn) - len(first) - len(second)
        return (turn[len(first) : len(first) + inner],) if inner > 0 and turn.startswith(first) and turn.endswith(second) else None

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
        around = self._around_two_calls()
        if around is None or around[0] != before_name:
            return None
        _, before_1, between, before_2, after = (_split_at_ids(text) for text in around)
        return between if before_1 == before_2 == before_arguments and after == after_calls else None

    def _numbered(self, format: ToolFormat) -> ToolFormat:
        """The format with numbers in place of ids, if the template counts the calls of an answer; else the same."""
        around = self._around_two_calls()
        if around is None:
            return format
        for first, second in (("0", "1"), ("1", "2")):
            numbers = (first, first, f"{first}|{second}", second, second)
            opening, before_1, between, before_2, after = map(_split_at_number, around, numbers)
            is_numbered = len(opening) <= 2 and len(opening) + len(before_1) > 2
            if is_numbered and before_1 == before_2 and between[1:] == opening[1:]:
                after_id = opening[1] if opening[1:] else None
                numbered = replace(format, before_name=opening[0], before_arguments=before_1, between_calls=between, after_calls=after)
                return replace(numbered, after_first_id=after_id, call_id=CALL_NUMBER)
        return format

    def _around_two_calls(self) -> tuple[str, str, str, str, str] | None:
        """What the template writes before, between and after the names and arguments of two calls; None if it does not write both."""
        try:
            turn = self._assistant_turn(calls=2)
        except ToolsUnsupported:
            return None
        before, _, rest = turn.partition(PROBE_NAMES[0])
        first, _, second = rest.partition(PROBE_NAMES[1])
        span_1, span_2 = _find_object(first, PROBE_ARGUMENTS[0]), _find_object(second, PROBE_ARGUMENTS[1])
        if span_1 is None or span_2 is None:
            return None
        return before, first[: span_1[0]], first[span_1[1] :], second[: span_2[0]], second[span_2[1] :]

    def _assistant_turn(self, calls: int, arguments: Schema | None = None) -> str:
        """What the template writes for a turn with tool calls: from where a plain answer would begin to the end of the turn."""
        question = {"role": "user", "content": "How deep?"}
        tool_calls = [self._tool_call(index, arguments) for index in range(calls)]
        prompt = self._rendered([question], add_generation_prompt=True)
        if PROBE_NAMES[0] not in prompt:
            raise ToolsUnsupported("this model's chat template ignores tools: it does not write them into the prompt")
        with_answer = self._rendered([question, {"role": "assistant", "content": PROBE_ANSWER}])
        with_calls = self._rendered([question, {"role": "assistant", "content": "", "tool_calls": tool_calls}])
        start = len(commonprefix([with_answer, with_calls]))
        if start < len(prompt) and not with_answer[start:].startswith(PROBE_ANSWER):
            place = self._place_of_marks(prompt, with_calls, start)
            if place is None:
                raise ToolsUnsupported("this model's chat template does not write tool calls where it writes the assistant's answers")
            start = place
        return self._without_turn_end(with_calls[start:], with_answer.partition(PROBE_ANSWER)[2])

    def _place_of_marks(self, prompt: str, with_calls: str, start: int) -> int | None:
        """Where a call begins that a template writes in place of the marks of an answer or of a thought, with which the prompt may end."""
        if with_calls.startswith(prompt):
            return len(prompt)
        ids, place = self._added_tokens.ids, 0
        for part in self._added_tokens.split(with_calls):
            if place + len(part) > start:
                start = place if part in ids else start  # the beginnings of two marks may be alike
                break
            place += len(part)
        return start if all(part in ids for part in self._added_tokens.split(prompt[start:])) else None

    def _without_turn_end(self, text: str, after_answer: str) -> str:
        """Cuts the text at the first end token; without one, cuts off what also follows a plain answer."""
        ends = [text.find(token) for token in self._added_tokens.ends if token in text]
        return text[: min(ends)] if ends else text.removesuffix(after_answer)

    def _rendered(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        try:
            return self._render(messages, [probe_tool(name) for name in PROBE_NAMES], add_generation_prompt)
        except InvalidRequest as error:
            raise ToolsUnsupported(f"this model's chat template refuses tools or tool calls: {error.message}") from error

    def _tool_call(self, index: int, probe: Schema | None) -> dict[str, Any]:
        values = PROBE_ARGUMENTS[index] if probe is None else probe
        arguments = json.dumps(values) if self._arguments_as_text else values
        return {"id": PROBE_IDS[index], "type": "function", "function": {"name": PROBE_NAMES[index], "arguments": arguments}}


def probe_tool(name: str) -> dict[str, Any]:
    """A made-up tool, for a template to show."""
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


def _split_at_number(text: str, number: str) -> Segments:
    return tuple(re.split(rf"(?<!\w)(?:{number})(?!\w)", text))


def _split_at_ids(text: str) -> Segments:
    return tuple(re.split("|".join(PROBE_IDS), text))
