"""Takes the sections of an answer apart as its text streams in: what is thought, and what is said.

    Splitter.push(text), .flush()        the thought and the answer in it; `app.forms.reasoning` and `app.forms.channels` know the marks
    Splitter.go_on(text)                 before them, for an answer that continues a text

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
        self._has_begun = False  # is or was there a section, in the answer or in the prompt
        self.continued = ""  # the end of the text that the answer continues, while it is held back: no part of the answer
        self.is_thinking = True  # no section of the answer proper is open
        self._state: Callable[[], SplitText | None] = self._read_opening

    @property
    def place(self) -> Place:
        """Where in an answer the text so far ends."""
        if self._state == self._read_section and self.is_thinking:
            return Place.IN_THOUGHT
        return Place.BEFORE_THOUGHT if self._state == self._read_opening and not self._has_begun else Place.AFTER_THOUGHT

    def is_undecided(self, text: str) -> bool:
        """Whether only what follows shows what the text pushed last belongs to. White space after a section belongs to nothing; without
        any text a token has a part of a character.
        """
        return self._state == self._read_opening and (not self._has_begun or bool(self._buffer.strip()) or not text)

    def go_on(self, text: str) -> None:
        """Read the text that the answer continues. It is no part of the answer."""
        self.push(text)
        if self._is_empty or self._state == self._read_opening:
            self._buffer = self._buffer.lstrip()
        self.continued = self._buffer

    def push(self, text: str) -> SplitText:
        self._buffer += text
        thought, answer = "", ""
        while (part := self._state()) is not None:
            thought, answer = thought + part.thought, answer + part.answer
        return self._without_continued(thought, answer)

    def flush(self) -> SplitText:
        """What was held back, when the answer has ended."""
        rest, self._buffer = self._buffer, ""
        if self._state == self._read_section and self.is_thinking:
            return self._without_continued(rest.rstrip(), "")
        return self._without_continued("", rest.lstrip() if self.is_thinking else rest)

    def _without_continued(self, thought: str, answer: str) -> SplitText:
        if thought or answer or not self._buffer.startswith(self.continued):  # it turned out to be text, or of a mark
            thought, answer = thought.removeprefix(self.continued), answer.removeprefix(self.continued)
            self.continued = ""
        return SplitText(thought, answer)

    @abstractmethod
    def _read_opening(self) -> SplitText | None:
        """Find out which section begins, by `_begin` or `_begin_text`; None: more text is needed."""

    def _after_section(self) -> None:
        self._state, self.is_thinking = self._read_opening, True

    def _begin(self, is_thought: bool, close: str, rest: str) -> SplitText:
        """A section up to the mark `close`, without white space around it; `rest` is the text that follows its opening mark."""
        self._buffer, self._close, self.is_thinking, self._is_empty = rest, close, is_thought, True
        self._state, self._has_begun = self._read_section, True
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
