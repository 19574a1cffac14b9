"""The chunks of an upstream's chat as the answer that the forms of /v1/responses and /v1/messages are made of: `serve.wire.answers.Answer`
for what an engine of our own says. Knows no form.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from app.forms.parser import ArgumentsDelta, ToolCallStart
from app.schemas import FinishReason, Usage, UsedTier
from app.schemas.wire import CompletionTokensDetails, PromptTokensDetails
from serve.upstream.answer import choices_of
from serve.upstream.meter import is_count
from serve.wire.choice import ChoiceDelta, PartialCall

REASONS: Mapping[str, FinishReason] = {"length": "length", "tool_calls": "tool_calls"}  # every other one is a stop
THOUGHTS = ("reasoning_content", "reasoning")


@dataclass(slots=True)
class RemoteChoice:
    """Grows chunk by chunk, with the fields of `serve.wire.choice.Choice`."""

    text: str = ""
    thought: str = ""
    calls: list[PartialCall] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_string: str | None = None  # a chat does not say which one ended it
    started: bool = False
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    cached_tokens: int = 0

    def add(self, choice: Mapping[str, Any]) -> ChoiceDelta:
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        text = _text(delta.get("content"))
        thought = next(filter(None, (_text(delta.get(name)) for name in THOUGHTS)), "")
        pieces = delta.get("tool_calls")
        calls = [piece for call in pieces for piece in self._call(call)] if isinstance(pieces, list) else []
        self.started, self.text, self.thought = True, self.text + text, self.thought + thought
        if choice.get("finish_reason") is not None:
            self.finish_reason = REASONS.get(choice["finish_reason"], "stop")
        return ChoiceDelta(text, [], calls, thought)

    def _call(self, piece: Any) -> Iterator[ToolCallStart | ArgumentsDelta]:
        """The first piece of a call has its name, the others more of its arguments; some servers send both at once."""
        function = piece.get("function") if isinstance(piece, dict) else None
        if not isinstance(function, dict):
            return
        index = piece.get("index", len(self.calls))
        if function.get("name") and index >= len(self.calls):
            index = len(self.calls)
            id = {"id": piece["id"]} if isinstance(piece.get("id"), str) and piece["id"] else {}
            self.calls.append(PartialCall(function["name"], **id))
            yield ToolCallStart(index, function["name"])
        arguments = _text(function.get("arguments"))
        if arguments and index < len(self.calls):
            self.calls[index].arguments += arguments
            yield ArgumentsDelta(index, arguments)


@dataclass(slots=True)
class RemoteAnswer:
    """`name` is the model's here."""

    id: str
    name: str
    tier: UsedTier | None = None
    metadata: dict[str, str] | None = None
    tokenizer: None = None
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int = 0
    fingerprint: str = "unknown"  # as the upstream says
    choices: list[RemoteChoice] = field(default_factory=lambda: [RemoteChoice()])

    @property
    def facts(self) -> Any:
        return SimpleNamespace(name=self.name, fingerprint=self.fingerprint)

    @property
    def options(self) -> Any:
        return SimpleNamespace(tier=self.tier, metadata=self.metadata)

    @property
    def prompts(self) -> list[Any]:
        """One, of as many tokens as it has."""
        return [SimpleNamespace(ids=range(self.prompt_tokens))]

    def add(self, chunk: Mapping[str, Any]) -> tuple[int, ChoiceDelta]:
        self.fingerprint = _text(chunk.get("system_fingerprint")) or self.fingerprint
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._count(usage)
        added = [self.choices[0].add(choice) for choice in choices_of(chunk)[:1]]
        return 0, added[0] if added else ChoiceDelta("", [], [])

    def _count(self, usage: Mapping[str, Any]) -> None:
        choice = self.choices[0]
        self.prompt_tokens = _number(usage, "prompt_tokens")
        choice.completion_tokens = _number(usage, "completion_tokens")
        choice.cached_tokens = _number(usage.get("prompt_tokens_details"), "cached_tokens")
        details = usage.get("completion_tokens_details")
        choice.reasoning_tokens = _number(details, "reasoning_tokens")
        choice.accepted_tokens = _number(details, "accepted_prediction_tokens")
        choice.rejected_tokens = _number(details, "rejected_prediction_tokens")

    def usage(self) -> Usage:
        choice = self.choices[0]
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=choice.completion_tokens,
            total_tokens=self.prompt_tokens + choice.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=choice.cached_tokens),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=choice.reasoning_tokens,
                accepted_prediction_tokens=choice.accepted_tokens,
                rejected_prediction_tokens=choice.rejected_tokens,
            ),
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(counts: Any, name: str) -> int:
    count: Any = counts.get(name) if isinstance(counts, dict) else None
    return int(count) if is_count(count) else 0
