"""Thoughts that a reasoning model writes before its answer: how its chat template marks them, and how they are taken out of a text.

    learn_reasoning(template) -> Reasoning | None             by the marks that the template names
    Reasoning.place(prompt)                                  whether the prompt itself has opened the thought, or has closed it
    Reasoning.splitter(...)                                  takes thought and answer in a text apart, as it streams in
    Reasoning.form_grammar(...), .calls_grammar(...)         grammars of an answer whose form or calls come after the thought

Knows no tokenizer, no model and no request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.forms.channels import Channels
from app.forms.splitter import Place, Splitter, SplitText
from app.forms.tools import AddedTokens, Calls, ToolFormat, as_regex


class Reasoning(Protocol):
    """How a model writes thoughts."""

    @property
    def open(self) -> str: ...

    @property
    def close(self) -> str: ...

    @property
    def marks(self) -> Sequence[str]:
        """All texts that belong to neither thought nor answer."""

    @property
    def ends(self) -> Sequence[str]:
        """What leads from a thought to the answer."""

    @property
    def marks_answers(self) -> bool:
        """Whether there are marks in an answer whose thought the prompt has closed, too."""

    def place(self, prompt: str) -> Place: ...

    def closing(self, has_calls: bool) -> str:
        """What ends all thoughts of an answer."""

    def splitter(self, place: Place, has_calls: bool) -> Splitter: ...

    def tool_format(self, format: ToolFormat) -> ToolFormat:
        """The format of calls as the splitter leaves them in the answer."""

    def with_thought(self, message: Mapping[str, Any], thought: str) -> dict[str, Any]:
        """A message of a conversation as the chat template takes it."""

    def form_grammar(self, grammar: str, tokens: AddedTokens, place: Place) -> str:
        """The grammar of an answer that follows `grammar` after its thought."""

    def calls_grammar(self, calls: Calls, tokens: AddedTokens, place: Place) -> str:
        """The grammar of an answer that calls tools after its thought."""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The marks around a thought, and those around the answer that follows it, if it has any."""

    open: str
    close: str
    answer_open: str = ""
    answer_close: str = ""
    answers_alone: bool = False  # the marks of an answer stand around one without a thought, too

    @property
    def marks(self) -> list[str]:
        return [mark for mark in (self.open, self.close, self.answer_open, self.answer_close) if mark]

    @property
    def ends(self) -> list[str]:
        return [self.close]

    @property
    def marks_answers(self) -> bool:
        return bool(self.answer_open)

    def place(self, prompt: str) -> Place:
        end = prompt.rstrip()
        if end.endswith(self.close):
            return Place.AFTER_THOUGHT
        return Place.IN_THOUGHT if end.endswith(self.open) else Place.BEFORE_THOUGHT

    def closing(self, has_calls: bool) -> str:
        return self.close

    def splitter(self, place: Place, has_calls: bool) -> "ThoughtSplitter":
        return ThoughtSplitter(self, place)

    def tool_format(self, format: ToolFormat) -> ToolFormat:
        return format

    def with_thought(self, message: Mapping[str, Any], thought: str) -> dict[str, Any]:
        return {**message, "reasoning_content": thought}

    def form_grammar(self, grammar: str, tokens: AddedTokens, place: Place) -> str:
        grammar = in_answer_marks(grammar, self, tokens)
        return grammar if place == Place.AFTER_THOUGHT else after_thought(grammar, self, tokens, place == Place.IN_THOUGHT, may_end=False)

    def calls_grammar(self, calls: Calls, tokens: AddedTokens, place: Place) -> str:
        grammar = calls.grammar((self.open, self.close))
        if place == Place.AFTER_THOUGHT:
            return grammar
        return after_thought(grammar, self, tokens, place == Place.IN_THOUGHT, calls.may_be_cut)


COHERE = ("<|START_THINKING|>", "<|END_THINKING|>")
FORMATS: dict[str, Reasoning] = {  # by a text in the template; of two, the first one counts
    "<response></response>": ReasoningFormat("<think>", "</think>", "<response>", "</response>"),  # Granite 3.2 and 3.3
    "</think>": ReasoningFormat("<think>", "</think>"),  # Qwen3, DeepSeek-R1, SmolLM3
    "[/THINK]": ReasoningFormat("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    "</thinking>": ReasoningFormat("<thinking>", "</thinking>"),  # older distills
    "</reasoning>": ReasoningFormat("<reasoning>", "</reasoning>"),
    "</seed:think>": ReasoningFormat("<seed:think>", "</seed:think>"),  # Seed-OSS
    "</mm:think>": ReasoningFormat("<mm:think>", "</mm:think>"),  # MiniMax M3
    "</think:opensource>": ReasoningFormat("<think:opensource>", "</think:opensource>"),  # Hunyuan 3
    "<|END_RESPONSE|>": ReasoningFormat(*COHERE, "<|START_RESPONSE|>", "<|END_RESPONSE|>", answers_alone=True),  # Command R7B
    "<|END_TEXT|>": ReasoningFormat(*COHERE, "<|START_TEXT|>", "<|END_TEXT|>", answers_alone=True),  # later ones of Cohere
    "<|END_THINKING|>": ReasoningFormat(*COHERE),
    "<|channel|>analysis": Channels(),  # GPT-OSS, LLM-jp 4
    "<channel|>": ReasoningFormat("<|channel>thought", "<channel|>"),  # Gemma 4
}


def learn_reasoning(template: str) -> Reasoning | None:
    """None if the template names no marks."""
    return next((format for text, format in FORMATS.items() if text in template), None)


def in_answer_marks(grammar: str, format: ReasoningFormat, tokens: AddedTokens) -> str:
    """The grammar of an answer that follows `grammar`, with the marks around it or without."""
    if not format.answer_open:
        return grammar
    marked = f"{tokens.terms(format.answer_open)} SPACE? inner SPACE? {tokens.terms(format.answer_close)}"
    return f"start: {marked} | inner\nSPACE: /[ \\n]{{1,4}}/\n" + grammar.replace("start:", "inner:", 1)


def after_thought(grammar: str, format: ReasoningFormat, tokens: AddedTokens, opened: bool, may_end: bool) -> str:
    """The grammar of an answer that follows `grammar` after a thought; the thought may be left out unless the prompt has `opened` it.
    `may_end`: the answer may end within the thought.
    """
    text = f"/(?s:.+)/ & ~/(?s:.*){as_regex(format.close)}(?s:.*)/"
    if format.close in tokens.ids:
        own = {part for mark in format.marks for part in tokens.split(mark)}
        others = sorted(str(id) for token, id in tokens.ids.items() if token not in tokens.special and token not in own)
        part = f"(THOUGHT? <[{','.join(others)}]>)* THOUGHT?" if others else "THOUGHT?"
        thought = f"unclosed: {part}\nthought: unclosed {tokens.term(format.close)}\nTHOUGHT: {text}"
    else:
        thought = f"unclosed: THOUGHT?\nthought[lazy]: /(?s:.*){as_regex(format.close)}/\nTHOUGHT: {text}"
    inside = "(thought GAP? answer | unclosed)" if may_end else "thought GAP? answer"
    start = inside if opened else f"{tokens.terms(format.open)} {inside} | answer"
    return f"start: {start}\n{thought}\nGAP: /[ \\n]{{1,4}}/\n" + grammar.replace("start:", "answer:", 1)


class ThoughtSplitter(Splitter):
    """One thought, and what follows it."""

    def __init__(self, format: ReasoningFormat, place: Place) -> None:
        super().__init__()
        self._format, self._has_begun = format, place != Place.BEFORE_THOUGHT
        if place == Place.IN_THOUGHT:
            self._begin(True, format.close, "")
        self.is_thinking = place != Place.AFTER_THOUGHT

    def _read_opening(self) -> SplitText | None:
        """Before the first letter, and between thought and answer, where white space belongs to neither."""
        format, text = self._format, self._buffer.lstrip()
        openings = [] if self._has_begun else [(format.open, format.close)]
        if format.answer_open and (self._has_begun or format.answers_alone):
            openings.append((format.answer_open, format.answer_close))
        for open, close in openings:
            if text.startswith(open):
                return self._begin(open == format.open, close, text.removeprefix(open))
        if not text or any(open.startswith(text) for open, _ in openings):
            return None
        self._buffer = text if self._has_begun else self._buffer
        return self._begin_text()

    def _after_section(self) -> None:
        if self.is_thinking:
            super()._after_section()
        else:
            self._begin_text()
