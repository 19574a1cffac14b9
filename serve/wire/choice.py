"""One sampled answer as its deltas come: text, calls of tools, log-probabilities, and why it ended. Knows no body and no stream."""

import secrets
import string
from dataclasses import dataclass, field

from app.engine.detokenizer import CONTEXT
from app.engine.request import Delta, TokenLogprob
from app.forms.parser import CallPart, CallStart, Said
from app.schemas import FinishReason
from app.tokenizer import Tokenizer
from serve.wire.logprobs import Row, Ruler
from serve.wire.requests import Prompt, Terms

LETTERS = string.ascii_letters + string.digits


def _call_id() -> str:
    """Nine letters and digits: some models' chat templates take no other."""
    return "".join(secrets.choice(LETTERS) for _ in range(9))


@dataclass(slots=True)
class Call:
    name: str
    arguments: str = ""
    id: str = field(default_factory=_call_id)


@dataclass(frozen=True, slots=True)
class Growth:
    """What a delta adds to its choice."""

    text: str
    rows: list[Row]
    calls: list[CallStart | CallPart]


class Part:
    """One sampled answer as it grows. Its text and rows begin with the prompt where that is echoed."""

    def __init__(self, prompt: Prompt, terms: Terms, tokenizer: Tokenizer) -> None:
        self.text = ""
        self.rows: list[Row] = []
        self.calls: list[Call] = []
        self.tokens = 0
        self.cached = 0
        self.finish: FinishReason | None = None
        self.begun = False
        self._prompt, self._terms = prompt, terms
        self._ruler = Ruler(tokenizer, len(prompt.text), opening=not tokenizer.decode(list(prompt.ids[-CONTEXT:])))
        self._reader = terms.form.reader()
        self._logprobs = 0.0

    @property
    def mean_logprob(self) -> float:
        return self._logprobs / max(self.tokens, 1)

    def take(self, delta: Delta) -> Growth:
        text, rows = "", []
        if not self.begun:
            self.begun, self.cached = True, delta.cached
            if self._terms.echo:
                text, rows = self._prompt.text, self._echoed(delta.prompt_logprobs)
        said: str = ""
        calls: list[CallStart | CallPart] = []
        if not self._terms.bare:
            said, calls = self._read(delta)
            rows += self._sampled(delta.logprobs)
            self.tokens += delta.tokens
        self.finish = self._ended(delta)
        self.text += text + said
        self.rows += rows
        return Growth(text + said, rows, calls)

    def _read(self, delta: Delta) -> tuple[str, list[CallStart | CallPart]]:
        """What is said to the reader and what is called for."""
        if self._reader is None:
            return delta.text, []
        pieces = self._reader.push(delta.text) + (self._reader.flush() if delta.finish else [])
        calls = [piece for piece in pieces if not isinstance(piece, Said)]
        for piece in calls:
            if isinstance(piece, CallStart):
                self.calls.append(Call(piece.name))
            else:
                self.calls[piece.index].arguments += piece.arguments
        return "".join(piece.text for piece in pieces if isinstance(piece, Said)), calls

    def _ended(self, delta: Delta) -> FinishReason | None:
        if delta.finish is None or self._terms.bare:
            return delta.finish and "length"
        return "tool_calls" if self.calls and self._reader is not None and self._reader.whole else delta.finish

    def _echoed(self, found: tuple[TokenLogprob, ...]) -> list[Row]:
        if self._terms.logprobs is None:
            return []
        ids, starts = self._prompt.ids, self._prompt.starts
        first = Row(ids[0], None, (), starts[0])
        return [first, *(Row(one.token, one.logprob, one.top, start) for one, start in zip(found, starts[1:], strict=True))]

    def _sampled(self, found: tuple[TokenLogprob, ...]) -> list[Row]:
        self._logprobs += sum(one.logprob for one in found)
        if self._terms.logprobs is None:
            return []
        return [Row(one.token, one.logprob, one.top, 0 if self._terms.chat else self._ruler.push(one.token)) for one in found]
