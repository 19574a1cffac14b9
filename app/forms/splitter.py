"""Takes the sections of an answer apart as its text streams in: what is thought, and what is said.

    Splitter.push(text), .flush()        the thought and the answer in it; `app.forms.reasoning` and `app.forms.channels` know the marks

Knows no tokenizer, no model and no request.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from app.forms.parser import overlap


class Place(Enum):
    """Where a prompt ends, so that the answer's text begins there."""

    BEFORE_THOUGHT = "before"
    IN_THOUGHT = "in"
    AFTER_THOUGHT = "after"


@dataclass(frozen=True, slots=True)
class SplitText:
    thought: str = ""
    answer: str = ""


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
