"""Thoughts that a reasoning model writes before its answer: how its chat template marks them, and how they are taken out of a text.

    learn_reasoning(template) -> ReasoningFormat | None               by the marks that the template names
    after_thought(grammar, format, tokens, opened) -> str             a grammar that begins after the thought
    ThoughtSplitter(format, opened).push(text), .flush()             the thought and the answer in a text that streams in

Knows no tokenizer, no model and no request.
"""

from collections.abc import Callable
from dataclasses import dataclass

from app.forms.parser import overlap
from app.forms.tools import AddedTokens, as_regex

MARKS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, SmolLM3
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    ("<thinking>", "</thinking>"),  # older distills
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<mm:think>", "</mm:think>"),  # MiniMax M3
    ("<think:opensource>", "</think:opensource>"),  # Hunyuan 3
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R7B and A
)


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The marks around a thought."""

    open: str
    close: str

    def is_opened_by(self, prompt: str) -> bool:
        """Whether the prompt itself opens the thought, so that the answer's text begins inside of it."""
        return prompt.rstrip().endswith(self.open)


def learn_reasoning(template: str) -> ReasoningFormat | None:
    """None if the template names no marks."""
    return next((ReasoningFormat(open, close) for open, close in MARKS if close in template), None)


@dataclass(frozen=True, slots=True)
class SplitText:
    thought: str = ""
    answer: str = ""


def after_thought(grammar: str, format: ReasoningFormat, tokens: AddedTokens, opened: bool, may_end: bool) -> str:
    """The grammar of an answer that follows `grammar` after a thought; the thought may be left out unless the prompt has `opened` it.
    `may_end`: the answer may end within the thought.
    """
    text = f"/(?s:.+)/ & ~/(?s:.*){as_regex(format.close)}(?s:.*)/"
    if format.close in tokens.ids:
        own = (format.open, format.close)
        others = sorted(str(id) for token, id in tokens.ids.items() if token not in tokens.special and token not in own)
        part = f"(THOUGHT? <[{','.join(others)}]>)* THOUGHT?" if others else "THOUGHT?"
        thought = f"unclosed: {part}\nthought: unclosed {tokens.term(format.close)}\nTHOUGHT: {text}"
    else:
        thought = f"unclosed: THOUGHT?\nthought[lazy]: /(?s:.*){as_regex(format.close)}/\nTHOUGHT: {text}"
    inside = "(thought GAP? answer | unclosed)" if may_end else "thought GAP? answer"
    start = inside if opened else f"{tokens.term(format.open)} {inside} | answer"
    return f"start: {start}\n{thought}\nGAP: /[ \\n]{{1,4}}/\n" + grammar.replace("start:", "answer:", 1)


class ThoughtSplitter:
    """A state machine over the text of one answer. Text that may belong to a mark is held back until the next push or flush."""

    def __init__(self, format: ReasoningFormat, opened: bool) -> None:
        self._format = format
        self._buffer = ""
        self._state: Callable[[], SplitText | None] = self._read_thought if opened else self._read_beginning
        self._is_thought_empty = True

    @property
    def is_thinking(self) -> bool:
        """Whether the answer proper has not begun."""
        return self._state != self._read_answer

    def push(self, text: str) -> SplitText:
        self._buffer += text
        thought, answer = "", ""
        while (part := self._state()) is not None:
            thought, answer = thought + part.thought, answer + part.answer
        return SplitText(thought, answer)

    def flush(self) -> SplitText:
        """What was held back, when the answer has ended."""
        rest, self._buffer = self._buffer, ""
        return SplitText(thought=rest.rstrip()) if self._state == self._read_thought else SplitText(answer=rest.lstrip())

    def _read_beginning(self) -> SplitText | None:
        """Before the first letter: a thought begins with its mark, anything else is the answer."""
        text = self._buffer.lstrip()
        if text.startswith(self._format.open):
            self._buffer, self._state = text.removeprefix(self._format.open), self._read_thought
            return SplitText()
        if self._format.open.startswith(text):
            return None
        self._state = self._read_answer
        return SplitText()

    def _read_thought(self) -> SplitText | None:
        thought, close, rest = self._buffer.partition(self._format.close)
        if close:
            self._buffer, self._state = rest, self._read_gap
            return SplitText(thought=self._without_leading_space(thought.rstrip()))
        # White space at the end may come before the mark, and the end may be the beginning of the mark.
        safe = len(thought) - overlap(thought, self._format.close)
        safe = len(thought[:safe].rstrip())
        self._buffer = thought[safe:]
        return SplitText(thought=self._without_leading_space(thought[:safe])) if safe else None

    def _without_leading_space(self, thought: str) -> str:
        if self._is_thought_empty:
            thought = thought.lstrip()
            self._is_thought_empty = not thought
        return thought

    def _read_gap(self) -> SplitText | None:
        """White space between thought and answer belongs to neither."""
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return None
        self._state = self._read_answer
        return SplitText()

    def _read_answer(self) -> SplitText | None:
        if not self._buffer:
            return None
        text, self._buffer = self._buffer, ""
        return SplitText(answer=text)
