"""The routes that an upstream may answer: what its answers are called there and here, and how a stream of theirs ends. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
COUNT, EMBEDDINGS, SCORE, GENERATE = "/v1/messages/count_tokens", "/v1/embeddings", "/v1/score", "/generate"
TOKENIZE, DETOKENIZE, TEMPLATE = "/tokenize", "/detokenize", "/apply-template"


@dataclass(frozen=True, slots=True)
class Wire:
    """`prefix` begins the ids of answers. `inner` is the field of a stream's events that holds the answer with its id and model; without
    it, each event has them. `last` are the events that end a stream; without them `[DONE]` does.
    """

    path: str
    prefix: str = ""
    inner: str | None = None
    last: frozenset[str] = frozenset()
    kind: Literal["generate", "score", "embed", "count"] = "generate"

    @property
    def streams(self) -> bool:
        return self.kind == "generate" and bool(self.prefix)

    @property
    def ends_with_done(self) -> bool:
        return self.has_choices

    @property
    def has_choices(self) -> bool:
        """Whether its answers and the events of its streams do."""
        return self.streams and not self.last


ALL = (
    Wire(CHAT, "chatcmpl"),
    Wire(TEXT, "cmpl"),
    Wire(RESPONSES, "resp", "response", frozenset({"response.completed", "response.incomplete", "response.failed"})),
    Wire(MESSAGES, "msg", "message", frozenset({"message_stop"})),
    Wire(COUNT, kind="count"),
    Wire(EMBEDDINGS, kind="embed"),
    Wire(SCORE, "score", kind="score"),
    Wire(GENERATE),
    Wire(TOKENIZE, kind="count"),
    Wire(DETOKENIZE, kind="count"),
    Wire(TEMPLATE, kind="count"),
)
WIRES: Mapping[str, Wire] = MappingProxyType({wire.path: wire for wire in ALL})
OURS = frozenset({SCORE, GENERATE})  # routes that only another Litmus has
