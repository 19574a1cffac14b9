"""Thoughts that a reasoning model writes before its answer: how its chat template marks them, and how they are taken out of a text.

    learn_reasoning(template) -> ReasoningFormat | None               by the marks that the template names
    after_thought(grammar, format, tokens, opened) -> str             a grammar that begins after the thought
    ThoughtSplitter(format, opened).push(text), .flush()             the thought and the answer in a text that streams in

Knows no tokenizer, no model and no request.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from app.forms.parser import overlap
from app.forms.tools import AddedTokens, as_regex


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

    def is_opened_by(self, prompt: str) -> bool:
        """Whether the prompt itself opens the thought, so that the answer's text begins inside of it."""
        return prompt.rstrip().endswith(self.open)

    def is_closed_by(self, prompt: str) -> bool:
        """Whether the prompt itself leaves no room for a thought."""
        return prompt.rstrip().endswith(self.close)


COHERE = ("<|START_THINKING|>", "<|END_THINKING|>")
FORMATS = {  # by a text in the template; of two, the first one counts
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
    "<channel|>": ReasoningFormat("<|channel>thought", "<channel|>"),  # Gemma 4
}


def learn_reasoning(template: str) -> ReasoningFormat | None:
    """None if the template names no marks."""
    return next((format for text, format in FORMATS.items() if text in template), None)


@dataclass(frozen=True, slots=True)
class SplitText:
    thought: str = ""
    answer: str = ""


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


class Splitter(ABC):
    """A state machine over the text of one answer. Text that may belong to a mark is held back until the next push or flush.

    A subclass says which section begins where none is open.
    """

    def __init__(self) -> None:
        self._buffer = ""
        self._close = ""  # the mark that ends the section
        self._is_empty = True  # of the section so far
        self.is_thinking = True  # no section of the answer proper is open
        self._state: Callable[[], SplitText | None] = self._read_opening

    def push(self, text: str) -> SplitText:
        self._buffer += text
        thought, answer = "", ""
        while (part := self._state()) is not None:
            thought, answer = thought + part.thought, answer + part.answer
        return SplitText(thought, answer)

    def flush(self) -> SplitText:
        """What was held back, when the answer has ended."""
        rest, self._buffer = self._buffer, ""
        if self._state == self._read_section and self.is_thinking:
            return SplitText(thought=rest.rstrip())
        return SplitText(answer=rest.lstrip() if self.is_thinking else rest)

    @abstractmethod
    def _read_opening(self) -> SplitText | None:
        """Find out which section begins, by `_begin` or `_begin_text`; None: more text is needed."""

    def _after_section(self) -> None:
        self._state, self.is_thinking = self._read_opening, True

    def _begin(self, is_thought: bool, close: str, rest: str) -> SplitText:
        """A section up to the mark `close`, without white space around it; `rest` is the text that follows its opening mark."""
        self._buffer, self._close, self.is_thinking, self._is_empty = rest, close, is_thought, True
        self._state = self._read_section
        return SplitText()

    def _begin_text(self) -> SplitText:
        """All further text belongs to the answer."""
        self._state, self.is_thinking = self._read_text, False
        return SplitText()

    def _read_section(self) -> SplitText | None:
        text, close, rest = self._buffer.partition(self._close)
        if close:
            part = self._part(text.rstrip())
            self._buffer = rest
            self._after_section()
            return part
        # White space at the end may come before the mark, and the end may be the beginning of the mark.
        safe = len(text) - overlap(text, self._close)
        safe = len(text[:safe].rstrip())
        self._buffer = text[safe:]
        return self._part(text[:safe]) if safe else None

    def _part(self, text: str) -> SplitText:
        if self._is_empty:
            text = text.lstrip()
            self._is_empty = not text
        return SplitText(thought=text) if self.is_thinking else SplitText(answer=text)

    def _read_text(self) -> SplitText | None:
        if not self._buffer:
            return None
        text, self._buffer = self._buffer, ""
        return SplitText(answer=text)


class ThoughtSplitter(Splitter):
    """One thought, and what follows it."""

    def __init__(self, format: ReasoningFormat, opened: bool, closed: bool = False) -> None:
        """`opened`, `closed`: by the prompt."""
        super().__init__()
        self._format, self._has_thought = format, opened or closed
        if opened:
            self._begin(True, format.close, "")
        self.is_thinking = not closed

    def _read_opening(self) -> SplitText | None:
        """Before the first letter, and between thought and answer, where white space belongs to neither."""
        format, text = self._format, self._buffer.lstrip()
        openings = [] if self._has_thought else [(format.open, format.close)]
        if format.answer_open and (self._has_thought or format.answers_alone):
            openings.append((format.answer_open, format.answer_close))
        for open, close in openings:
            if text.startswith(open):
                return self._begin(open == format.open, close, text.removeprefix(open))
        if not text or any(open.startswith(text) for open, _ in openings):
            return None
        self._buffer = text if self._has_thought else self._buffer
        return self._begin_text()

    def _after_section(self) -> None:
        if not self.is_thinking:
            self._begin_text()
            return
        super()._after_section()
        self._has_thought = True
