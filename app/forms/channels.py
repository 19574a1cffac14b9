"""Answers in channels, as GPT-OSS writes them (OpenAI's harmony format): each message of an answer has a header that names its channel.

    <|channel|>analysis<|message|>a thought<|end|><|start|>assistant<|channel|>final<|message|>the answer
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}         a tool call, which the token <|call|> ends

Thoughts and messages to the user may alternate. Knows no tokenizer, no model and no request.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.forms.grammar import schema_term
from app.forms.splitter import Place, Splitter, SplitText
from app.forms.tools import AddedTokens, Calls, ToolFormat, as_regex

START, CHANNEL, MESSAGE, END, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>"
NEXT = f"{END}{START}assistant"  # between two messages
FINAL = f"{CHANNEL}final{MESSAGE}"
CALL = f"{START}assistant{CHANNEL}commentary to=functions."  # a call's header as the parser gets it, however the model has written it
RECIPIENT = re.compile(r"to=functions\.([a-zA-Z0-9_.-]+)")
HEADERS = (START, CHANNEL, "to=functions.")  # how a header begins
MAX_HEADER_CHARS = 300
BETWEEN = "\n\n"  # two thoughts, or two messages to the user


@dataclass(frozen=True, slots=True)
class Channels:
    open: str = f"{CHANNEL}analysis{MESSAGE}"
    close: str = END

    @property
    def marks(self) -> list[str]:
        return [START, CHANNEL, MESSAGE, END, CONSTRAIN]

    @property
    def ends(self) -> list[str]:
        return [END, f"final{MESSAGE}"]

    @property
    def marks_answers(self) -> bool:
        return True

    def place(self, prompt: str) -> Place:
        if prompt.endswith(FINAL):
            return Place.AFTER_THOUGHT
        return Place.IN_THOUGHT if prompt.endswith(self.open) else Place.BEFORE_THOUGHT

    def closing(self, has_calls: bool) -> str:
        return END if has_calls else NEXT + FINAL  # before calls there may be other thoughts

    def splitter(self, place: Place, has_calls: bool) -> Splitter:
        return ChannelSplitter(place, has_calls)

    def tool_format(self, format: ToolFormat) -> ToolFormat:
        """The format of the calls that the splitter hands on, for a template that writes them in a channel; else the same."""
        if not format.before_name.endswith("to=functions."):
            return format
        between = None if format.between_calls is None else (CALL,)
        return replace(format, before_name=CALL, before_arguments=(MESSAGE,), between_calls=between, after_calls=("",))

    def with_thought(self, message: Mapping[str, Any], thought: str) -> dict[str, Any]:
        """GPT-OSS's template has one place for the thought before a call and what was said before it."""
        if not (message.get("tool_calls") and message.get("content")):
            return {**message, "thinking": thought}
        return {**message, "thinking": f"{thought}{BETWEEN}{message['content']}", "content": ""}

    def form_grammar(self, grammar: str, tokens: AddedTokens, place: Place) -> str:
        """The answer of `grammar` is the message in the final channel."""
        return _grammar(grammar, tokens, place, ["final"])

    def calls_grammar(self, calls: Calls, tokens: AddedTokens, place: Place) -> str:
        if calls.format.before_name != CALL:  # the calls stand in the final message
            return _grammar(calls.grammar(), tokens, place, ["final", "unclosed"] if calls.may_be_cut else ["final"])
        named = " | ".join(f"{tokens.terms(name)} header {schema_term(schema)}" for name, schema in calls.tools.items())
        types = ['" json"', *(f'" " {tokens.term(CONSTRAIN)} {word}' for word in ('"json"', '" json"') if CONSTRAIN in tokens.ids)]
        channel = f'({tokens.term(CHANNEL)} "commentary")?'
        more = f"({tokens.terms(NEXT)} call)*" if calls.parallel and calls.format.between_calls is not None else ""
        rules = [
            "answer: NOTE?" if calls.form is None else calls.form.replace("start:", "answer:", 1),
            f"calls: call {more}",
            f'call: {channel} " to=functions." ({named})',
            f"header: {channel} ({' | '.join(types)})? {tokens.term(MESSAGE)}",
        ]
        ends = ["calls"] if calls.forced else ["final", "calls", *["unclosed"] * calls.may_be_cut]
        return _grammar("\n".join(rules), tokens, place, ends)


def _grammar(answer: str, tokens: AddedTokens, place: Place, ends: list[str]) -> str:
    """Any number of messages in other channels, and then one of `ends`. `answer` is the grammar of the message in the final channel."""
    others = f"(unclosed next)* ({' | '.join(ends)})"
    is_answer = place == Place.AFTER_THOUGHT and "final" in ends
    rest = f"(next {others})?" if "unclosed" in ends else f"next {others}"  # where the answer may be cut anywhere, or may not
    start = "answer" if is_answer else others if place == Place.BEFORE_THOUGHT else f"NOTE? {rest}"
    rules = [
        f"start: {start}",
        f'unclosed: {tokens.term(CHANNEL)} ("analysis" | "commentary") {tokens.term(MESSAGE)} NOTE?',
        f"next: {tokens.terms(NEXT)}",
        f"NOTE: /(?s:.+)/ & ~/(?s:.*){as_regex(END)}(?s:.*)/",
        f"final: {tokens.terms(FINAL)} answer",
        answer.replace("start:", "answer:", 1),
    ]
    return "\n".join(rules)


class ChannelSplitter(Splitter):
    """Takes the headers out. Calls go to the answer, each after a header that is always written alike."""

    def __init__(self, place: Place, has_calls: bool) -> None:
        super().__init__()
        self._has_calls, self._is_call = has_calls, False
        self._told = {True: False, False: False}  # by whether it is thought: is there any text of it yet
        if place != Place.BEFORE_THOUGHT:
            self._begin(place == Place.IN_THOUGHT, END, "")

    def _read_opening(self) -> SplitText | None:
        header, found, rest = self._buffer.partition(MESSAGE)
        begun = header.lstrip()
        if len(header) > MAX_HEADER_CHARS or not any(begun.startswith(mark) or (not found and mark.startswith(begun)) for mark in HEADERS):
            return self._begin_text() if self._buffer else None
        if not found:
            return None
        header = header.rpartition(START)[2]
        call = RECIPIENT.search(header)
        self._begin(call is None and f"{CHANNEL}analysis" in header, END, rest)
        self._is_call = call is not None and self._has_calls
        return SplitText(answer=f"{CALL}{call[1]}{MESSAGE}" if call is not None and self._has_calls else "")

    def _part(self, text: str) -> SplitText:
        was_empty = self._is_empty
        part = super()._part(text)
        if was_empty and not self._is_empty and not self._is_call and self._told[self.is_thinking]:
            part = SplitText(thought=BETWEEN + part.thought) if self.is_thinking else SplitText(answer=BETWEEN + part.answer)
        self._told[self.is_thinking] |= not self._is_empty
        return part

    def flush(self) -> SplitText:
        if self._state == self._read_opening and self._buffer.lstrip().startswith(HEADERS):
            self._buffer = ""  # a header that was cut off
        return super().flush()
