"""How a model writes tool calls, and a grammar that enforces it. `app.forms.learning` finds it out, `app.forms.parser` reads calls back.

    ToolFormat.grammar(tools, forced, parallel) -> str    for llguidance; `tools`: names with their argument schemas

Knows no template, no tokenizer, no model and no request.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix

from app.forms.grammar import Schema, schema_term
from app.forms.parameters import ParameterFormat

Segments = tuple[str, ...]  # fixed text, split at each place where the template writes a call's id

CALL_ID = "[a-zA-Z0-9]{9}"
CALL_NUMBER = "[0-9]{1,4}"
TOOL_NAME = re.compile("[a-zA-Z0-9_.-]+")
MIN_TRIGGER_CHARS = 3  # a shorter first word does not tell a call from other text
EMPTY = '""'
JSON_START = re.compile(r'[\[{]*["\-0-9tfn\]}]')


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

    def terms(self, text: str) -> str:
        """A text as one part after the other."""
        return " ".join(self.term(part) for part in self.split(text))

    def shown(self, texts: Iterable[str]) -> "AddedTokens":
        """These tokens, of which none in `texts` is left out of the text of an answer."""
        return replace(self, special=self.special - ({part for text in texts for part in self.split(text)} - self.ends))


class ToolsUnsupported(Exception):
    """Why this model's answers cannot be held to tool calls."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The fixed text around the names and arguments of tool calls:

    `opening` NAME `before_arguments` ARGUMENTS (`between_calls` NAME `before_arguments` ARGUMENTS)* `after_calls`

    `between_calls` is None if the template writes at most one call per answer. The added tokens in it are part of an answer's text.
    """

    before_name: str
    before_arguments: Segments
    between_calls: Segments | None
    after_calls: Segments
    added_tokens: AddedTokens
    arguments_as_text: bool = False  # the template expects a call's arguments as a JSON string, not as an object
    parameters: ParameterFormat | None = None  # None: ARGUMENTS are one JSON object
    after_first_id: str | None = None  # up to the name, where the template writes a call's id before it: `before_name` ends at that id
    call_id: str = CALL_ID  # as a regular expression

    @property
    def opening(self) -> Segments:
        """All text before the name of the first call."""
        return (self.before_name,) if self.after_first_id is None else (self.before_name, self.after_first_id)

    @property
    def trigger(self) -> str:
        """What marks the beginning of a call: its first added token with what stands before it, or its first word, or else all text
        before the name.
        """
        first, *rest = self.added_tokens.split(self.before_name)
        if first in self.added_tokens.ids:
            return first
        word = re.split(r"[\s{]", first)[0]
        if len(word) >= MIN_TRIGGER_CHARS:
            return word
        return first + "".join(rest[:1])

    @property
    def begins_by_name(self) -> bool:
        """Whether the text before a name is too short to mark a call: only a name and what follows it do, as in `[name(`."""
        return len(self.before_name) < MIN_TRIGGER_CHARS and not set(self.added_tokens.split(self.before_name)) & set(self.added_tokens.ids)

    @property
    def begins_like_json(self) -> bool:
        """Whether the first letters of calls might be those of a JSON value."""
        return self.begins_by_name or JSON_START.match(self.before_name) is not None

    def beginnings(self, tools: Iterable[str]) -> list[str]:
        """The texts that begin a call of one of these tools."""
        return [f"{self.before_name}{name}{self.before_arguments[0]}" for name in tools] if self.begins_by_name else [self.before_name]

    def example(self) -> str:
        """A call with made-up names."""
        arguments = '{"ARGUMENT": "VALUE"}' if self.parameters is None else self.parameters.write([("ARGUMENT", "VALUE")])
        id = "aB3dE5gH7" if self.call_id == CALL_ID else "0"
        opening, before_arguments, after = (id.join(segments) for segments in (self.opening, self.before_arguments, self.after_calls))
        return f"{opening}NAME{before_arguments}{arguments}{after}"

    @property
    def fixed_texts(self) -> tuple[str, ...]:
        """All text of a call that does not depend on its tool."""
        parameters = () if self.parameters is None else self.parameters.fixed_texts
        return (*self.opening, *self.before_arguments, *(self.between_calls or ()), *self.after_calls, *parameters)

    @property
    def closing_marks(self) -> tuple[str, ...]:
        """What ends a text that stands in a call as it is, and what ends the calls where another one might begin."""
        after, between = (self.added_tokens.split(text) for text in (self.after_calls[0], (self.between_calls or ("",))[0]))
        rest = after[len(commonprefix([after, between])) :]
        is_token = bool(rest) and rest[0] in self.added_tokens.ids
        end = "".join(rest) if is_token else self.after_calls[0].removeprefix(commonprefix([self.after_calls[0], "".join(between)]))
        if self.parameters is not None:
            return self.parameters.closing_mark, end
        return (end,) if is_token or end.startswith("\n") else ()  # a bracket is found without

    def grammar(self, tools: Mapping[str, Schema], forced: bool, parallel: bool, marks: Sequence[str] = ()) -> str:
        """A grammar in llguidance's Lark syntax. `forced`: only calls of these tools; else text that may end in calls. At most one call
        unless `parallel`. `marks` are those around a thought: text does not begin with the first of them.
        """
        more = f"({self._terms(self.between_calls)} call)*" if parallel and self.between_calls is not None else ""
        calls = [
            f"{self._terms((name + self.before_arguments[0], *self.before_arguments[1:]))} {self._arguments(index, schema)}"
            for index, (name, schema) in enumerate(tools.items())
        ]
        if forced:
            start = f"start: {self._terms(self.opening) or EMPTY} call end"
        elif self.begins_by_name:
            start = self._text_then_named_calls(tools, marks)
        else:
            start = self._text_then_calls(marks)
        end = f"end: {more} {self._terms(self.after_calls) or EMPTY}"
        return "\n".join([start, end, f"call: {' | '.join(calls)}", f"ID: /{self.call_id}/", *self._parameter_rules(tools)]) + "\n"

    def _arguments(self, index: int, schema: Schema) -> str:
        return schema_term(schema) if self.parameters is None else f"arguments{index}"

    def _parameter_rules(self, tools: Mapping[str, Schema]) -> list[str]:
        if self.parameters is None:
            return []
        format = self.parameters
        rules = [format.rules(f"arguments{index}", schema, self._fixed, "raw") for index, schema in enumerate(tools.values())]
        end = format.after_value
        raw = [f"raw: {self._text_up_to(end, 'RAW')}", *self._text_rules(end, "RAW")] if end else []
        return [rule for each in rules for rule in each] + raw

    def _fixed(self, text: str) -> str:
        return self._terms((text,)) or EMPTY

    def _text_up_to(self, end: str, name: str) -> str:
        """A term for any text and the first `end` after it. The rules that it needs are `_text_rules`, whose names begin with `name`."""
        first, *rest = self.added_tokens.split(end)
        if first in self.added_tokens.ids:
            return f"{name}? {self._terms((end,))}"
        return f"{name} {self._terms((''.join(rest),))}" if rest else f"{name.lower()}_text"

    def _text_rules(self, end: str, name: str, also: str = "") -> list[str]:
        """`also` is a further condition, as a regular expression in llguidance's syntax."""
        first, *rest = self.added_tokens.split(end)
        if first in self.added_tokens.ids:
            return [f"{name}: /(?s:.+)/ & {_without(first)}{also}"]
        if rest:  # all text before an added token, with what has to stand directly before it
            return [f"{name}: /(?s:.*){as_regex(first)}/ & {_without(first + rest[0])}{also}"]
        return [f"{name.lower()}_text[lazy]: /(?s:.*){as_regex(first)}/{also}"]

    def _text_then_calls(self, marks: Sequence[str]) -> str:
        """Text that contains no beginning of a call, optionally followed by calls."""
        trigger, not_marked, other = self.trigger, _not_begun(marks), self._text_with_other_tokens(marks)
        text = f"TEXT: /(?s:.*)/ & {_without(trigger)}{not_marked}"
        rest = f"{self._terms((self.before_name.removeprefix(trigger), *self.opening[1:]))} call end"
        if trigger in self.added_tokens.ids:
            return f"start: {other} TEXT? | {other} TEXT? {self._terms((trigger,))} {rest}\n{text}"
        head = "\n".join(self._text_rules(trigger, "HEAD", not_marked))
        return f"start: {other} (TEXT? | {self._text_up_to(trigger, 'HEAD')} {rest})\n{text}\n{head}"

    def _text_then_named_calls(self, tools: Mapping[str, Schema], marks: Sequence[str]) -> str:
        """The same where a call begins by the name of a tool."""
        begins, not_marked, other = self.beginnings(tools), _not_begun(marks), self._text_with_other_tokens(marks)
        heads = []
        for index, (begin, schema) in enumerate(zip(begins, tools.values(), strict=True)):
            others = "".join(f" & {_without(text)}" for text in begins if text != begin)
            rest = self._terms(("", *self.before_arguments[1:]))
            heads.append(f"head{index}: begin{index} {rest} {self._arguments(index, schema)} end")
            heads.append(f"begin{index}[lazy]: /(?s:.*){as_regex(begin)}/{others}{not_marked}")
        text = " & ".join(["TEXT: /(?s:.*)/", *map(_without, begins)]) + not_marked
        choices = " | ".join(["TEXT?", *(f"head{index}" for index in range(len(begins)))])
        return "\n".join([f"start: {other} ({choices})", text, *heads])

    def _text_with_other_tokens(self, marks: Sequence[str]) -> str:
        """Text with visible added tokens that are part neither of a call nor of these marks."""
        own = {part for text in (*self.fixed_texts, *marks) for part in self.added_tokens.split(text)}
        ids, special = self.added_tokens.ids, self.added_tokens.special
        others = sorted(str(id) for token, id in ids.items() if token not in special and token not in own)
        return f"(TEXT? <[{','.join(others)}]>)*" if others else ""

    def _terms(self, segments: Segments) -> str:
        return " ID ".join(self.added_tokens.terms(segment) for segment in segments)


@dataclass(frozen=True, slots=True)
class Calls:
    """What an answer may call: tools by their names, with the schemas of their arguments."""

    format: ToolFormat
    tools: Mapping[str, Schema]
    forced: bool  # the answer consists of calls only
    parallel: bool
    form: str | None = None  # the grammar of an answer without calls, which then has none beside other text; None: it is any text

    @property
    def may_be_cut(self) -> bool:
        """Whether the answer may be any text, which may end anywhere."""
        return not self.forced and self.form is None

    def grammar(self, marks: Sequence[str] = ()) -> str:
        if self.forced or self.form is None:
            return self.format.grammar(self.tools, self.forced, self.parallel, marks)
        calls = self.format.grammar(self.tools, True, self.parallel)
        return "\n".join(["start: form | calls", self.form.replace("start:", "form:", 1), calls.replace("start:", "calls:", 1)])


def as_regex(text: str) -> str:
    """A regular expression that matches exactly this text."""
    return "".join(letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in text)


def _without(text: str) -> str:
    """The condition that this text stands nowhere in another."""
    return f"~/(?s:.*){as_regex(text)}(?s:.*)/"


def _not_begun(marks: Sequence[str]) -> str:
    """The condition that a text does not begin with the first of these marks."""
    return "".join(f" & ~/[ \\n]*{as_regex(mark)}(?s:.*)/" for mark in marks[:1])
