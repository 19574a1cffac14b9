"""One choice of an answer, built up delta by delta: text, tool calls, log-probabilities and finish reason.

Knows neither response bodies nor streams.
"""

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from app.engine.detokenizer import PROMPT_CONTEXT_TOKENS
from app.engine.events import Delta, TokenLogprob
from app.forms.parser import ArgumentsDelta, TextDelta, ToolCallStart
from app.forms.splitter import Place, SplitText
from app.schemas import FinishReason
from app.tokenizer import Tokenizer
from serve.wire.logprobs import LogprobEntry, OffsetTracker
from serve.wire.requests import AnswerOptions, Prompt

CALL_ID_CHARACTERS = string.ascii_letters + string.digits


def _call_id() -> str:
    """Nine letters and digits: the chat templates of some models accept no other id."""
    return "".join(secrets.choice(CALL_ID_CHARACTERS) for _ in range(9))


@dataclass(slots=True)
class PartialCall:
    """A tool call; `arguments` grow while it is streamed."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=_call_id)


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What one delta of the engine adds to its choice."""

    text: str
    entries: list[LogprobEntry]
    calls: list[ToolCallStart | ArgumentsDelta]
    thought: str = ""
    thought_entries: list[LogprobEntry] = field(default_factory=list)
    tokens: tuple[int, ...] = ()  # where the request wants their ids


def _joined(deltas: Sequence[ChoiceDelta]) -> ChoiceDelta:
    return ChoiceDelta(
        "".join(delta.text for delta in deltas),
        [entry for delta in deltas for entry in delta.entries],
        [call for delta in deltas for call in delta.calls],
        "".join(delta.thought for delta in deltas),
        [entry for delta in deltas for entry in delta.thought_entries],
        tuple(token for delta in deltas for token in delta.tokens),
    )


class Choice:
    """One sampled answer. With echo, its text and its log-probabilities start with those of the prompt."""

    def __init__(self, prompt: Prompt, options: AnswerOptions, tokenizer: Tokenizer) -> None:
        self.text = ""
        self.entries: list[LogprobEntry] = []
        self.calls: list[PartialCall] = []
        self.thought = ""
        self.thought_entries: list[LogprobEntry] = []
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0  # of the drafted ones
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_string: str | None = None  # the one that ended the answer
        self.stop_reason: str | int | None = None  # that, or the request's own token that did
        self.tokens: list[int] = []  # where the request wants their ids
        self.prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self.started = False
        self._prompt, self._options, self._tokenizer = prompt, options, tokenizer
        self._offsets = OffsetTracker(
            tokenizer, len(prompt.text), at_text_start=not tokenizer.decode(list(prompt.ids[-PROMPT_CONTEXT_TOKENS:]))
        )
        self._parser = options.structured.tool_call_parser()
        self._splitter = options.structured.thought_splitter()
        self._held_entries: list[LogprobEntry] = []  # of tokens that may still be of the thought or of the answer
        self._held_tokens = 0
        self._logprob_sum = 0.0

    @property
    def rejected_tokens(self) -> int:
        """How many drafted tokens are not in the answer."""
        return self.drafted_tokens - self.accepted_tokens

    @property
    def mean_logprob(self) -> float:
        return self._logprob_sum / max(self.completion_tokens, 1)

    def add(self, delta: Delta) -> ChoiceDelta:
        """Add a delta of the engine, token by token where it has several; returns what it adds to the choice."""
        self.drafted_tokens += delta.drafted
        self.accepted_tokens += delta.accepted
        added = [self._add(part) for part in delta.parts()]
        return added[0] if len(added) == 1 else _joined(added)

    def _add(self, delta: Delta) -> ChoiceDelta:
        text, entries = "", []
        if not self.started:
            self.started, self.cached_tokens, self.prompt_logprobs = True, delta.cached, delta.prompt_logprobs
            if self._options.echo:
                text, entries = self._prompt.text, self._prompt_entries(delta.prompt_logprobs)
        calls: list[ToolCallStart | ArgumentsDelta] = []
        thought = ""
        thought_entries: list[LogprobEntry] = []
        tokens = delta.tokens if self._options.tokens.ids and not self._options.prompt_only else ()
        self.stop_reason = self._stop_reason_of(delta)
        if not self._options.prompt_only:
            delta = self._with_its_end(delta)
            was_thinking = self._splitter is not None and self._splitter.is_thinking
            thought, answer = self._split_thought(delta)
            answer_text, calls = self._split_text_and_calls(answer, delta.finish is not None)
            text += answer_text
            self._held_entries += self._sampled_entries(delta.logprobs)
            self._held_tokens += len(delta.tokens)
            self.completion_tokens += len(delta.tokens)
            if self._splitter is None or delta.finish is not None or not self._splitter.is_undecided(delta.text):
                is_thought = was_thinking and self._has_begun_thinking and (bool(thought) or not answer)
                thought_entries, entries = (self._held_entries, entries) if is_thought else ([], entries + self._held_entries)
                self.reasoning_tokens += self._held_tokens if is_thought else 0
                self._held_entries, self._held_tokens = [], 0
        self.finish_reason, self.stop_string = self._finish_reason_of(delta), delta.stop_string
        self.text += text
        self.thought += thought
        self.entries += entries
        self.thought_entries += thought_entries
        self.tokens += tokens
        return ChoiceDelta(text, entries, calls, thought, thought_entries, tokens)

    def _stop_reason_of(self, delta: Delta) -> str | int | None:
        """The model's own end is none."""
        if delta.stop_string is not None or delta.finish != "stop" or not delta.tokens:
            return delta.stop_string
        tokens, last = self._options.tokens, delta.tokens[-1]
        is_own = last in tokens.stop_tokens and (tokens.ignore_eos or last not in self._tokenizer.end_tokens())
        return last if is_own else None

    def _with_its_end(self, delta: Delta) -> Delta:
        """With the stop string or token in its text that the engine cuts off, where the request wants to keep it. A special token has no
        text.
        """
        tokens = self._options.tokens
        if not tokens.keeps_stop or delta.finish != "stop":
            return delta
        if delta.stop_string is not None:
            return replace(delta, text=delta.text + delta.stop_string)
        ends = tokens.stop_tokens | (frozenset() if tokens.ignore_eos else self._tokenizer.end_tokens())
        piece = self._tokenizer.piece(delta.tokens[-1]) if delta.tokens and delta.tokens[-1] in ends else None
        return delta if piece is None or piece.special else replace(delta, text=delta.text + piece.data.decode(errors="replace"))

    @property
    def _has_begun_thinking(self) -> bool:
        return self._splitter is not None and self._splitter.place != Place.BEFORE_THOUGHT

    def _split_thought(self, delta: Delta) -> tuple[str, str]:
        """The thought and the answer in a delta's text."""
        if self._splitter is None:
            return "", delta.text
        part = self._splitter.push(delta.text)
        rest = self._splitter.flush() if delta.finish else SplitText()
        return part.thought + rest.thought, part.answer + rest.answer

    def _split_text_and_calls(self, text: str, ended: bool) -> tuple[str, list[ToolCallStart | ArgumentsDelta]]:
        if self._parser is None:
            return text, []
        pieces = self._parser.push(text) + (self._parser.flush() if ended else [])
        calls = [piece for piece in pieces if not isinstance(piece, TextDelta)]
        for piece in calls:
            if isinstance(piece, ToolCallStart):
                self.calls.append(PartialCall(piece.name))
            else:
                self.calls[piece.index].arguments += piece.arguments
        return "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)), calls

    def _finish_reason_of(self, delta: Delta) -> FinishReason | None:
        if delta.finish is None or self._options.prompt_only:
            return delta.finish and "length"
        return "tool_calls" if self.calls and self._parser is not None and self._parser.complete else delta.finish

    def _prompt_entries(self, logprobs: tuple[TokenLogprob, ...]) -> list[LogprobEntry]:
        count = self._options.logprobs
        if count is None:
            return []
        ids, starts = self._prompt.ids, self._prompt.starts
        first = LogprobEntry(ids[0], None, (), starts[0])
        others = zip(logprobs, starts[1:], strict=True)
        return [first, *(LogprobEntry(item.token, item.logprob, item.top[:count], start) for item, start in others)]

    def _sampled_entries(self, logprobs: tuple[TokenLogprob, ...]) -> list[LogprobEntry]:
        self._logprob_sum += sum(item.logprob for item in logprobs)
        if self._options.logprobs is None:
            return []
        return [
            LogprobEntry(item.token, item.logprob, item.top, 0 if self._options.chat else self._offsets.push(item.token))
            for item in logprobs
        ]
