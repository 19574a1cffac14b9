"""How a model writes tool calls, and a grammar that enforces it. `app.forms.learning` finds it out, `app.forms.parser` reads calls back.

    ToolFormat.grammar(tools, forced, parallel) -> str    for llguidance; `tools`: names with their argument schemas

Knows no template, no tokenizer, no model and no request.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from app.forms.grammar import Schema, schema_term
from app.forms.parameters import ParameterFormat

Segments = tuple[str, ...]  # fixed text, split at each place where the template writes a call's id

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
    parameters: ParameterFormat | None = None  # None: ARGUMENTS are one JSON object

    @property
    def trigger(self) -> str:
        """What marks the beginning of a call: the added token at its start, or else its first word, or else all text before the name."""
        first = self.added_tokens.split(self.before_name)[0]
        word = re.split(r"[\s{]", first)[0]
        return first if first in self.added_tokens.ids else word if len(word) >= MIN_TRIGGER_CHARS else first

    @property
    def closing_marks(self) -> tuple[str, ...]:
        """What ends a text that stands in a call as it is, and what ends the calls where another one might begin."""
        if self.parameters is None:
            return ()
        after, between = self.after_calls[0], (self.between_calls or ("",))[0]
        return self.parameters.after_value, after.removeprefix(commonprefix([after, between]))

    def grammar(self, tools: Mapping[str, Schema], forced: bool, parallel: bool, marks: Sequence[str] = ()) -> str:
        """A grammar in llguidance's Lark syntax. `forced`: only calls of these tools; else text that may end in calls. At most one call
        unless `parallel`. `marks` are those around a thought: text does not begin with the first of them.
        """
        more = f"({self._terms(self.between_calls)} call)*" if parallel and self.between_calls is not None else ""
        calls = [
            f"{self._terms((name + self.before_arguments[0], *self.before_arguments[1:]))} {self._arguments(index, schema)}"
            for index, (name, schema) in enumerate(tools.items())
        ]
        rest = f"{self._terms((self.before_name.removeprefix(self.trigger),))} call {more} {self._terms(self.after_calls)}"
        start = f"start: {self._terms((self.trigger,))} rest" if forced else self._text_then_calls(marks)
        rules = [start, f"rest: {rest}", f"call: {' | '.join(calls)}", f"ID: /{CALL_ID}/", *self._parameter_rules(tools)]
        return "\n".join(rules) + "\n"

    def _arguments(self, index: int, schema: Schema) -> str:
        return schema_term(schema) if self.parameters is None else f"arguments{index}"

    def _parameter_rules(self, tools: Mapping[str, Schema]) -> list[str]:
        if self.parameters is None:
            return []
        format = self.parameters
        rules = [format.rules(f"arguments{index}", schema, self._fixed, "raw") for index, schema in enumerate(tools.values())]
        first, *others = self.added_tokens.split(format.after_value) or [""]
        rest = " ".join(self.added_tokens.term(part) for part in others)
        if first in self.added_tokens.ids:
            raw = [f"raw: RAW? {self.added_tokens.term(first)} {rest}", f"RAW: /(?s:.+)/ & ~/(?s:.*){as_regex(first)}(?s:.*)/"]
        else:
            raw = [f"raw: raw_text {rest}", f"raw_text[lazy]: /(?s:.*){as_regex(first)}/"]
        return [rule for each in rules for rule in each] + raw

    def _fixed(self, text: str) -> str:
        return self._terms((text,)) or '""'

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
