"""The content blocks of Anthropic's Messages API: as clients send them, and as answers have them."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag

from app.schemas.messages import Name
from app.schemas.wire import COUNTED, Wire, kind_of

MAX_BLOCKS = 256
CACHE = "accepted and not needed: equal beginnings of prompts are found by their tokens"


def _tag(block: Any) -> str:
    """The name of a union member. It has a blank, so that no path in an error is confused with the field `text`."""
    return f"{kind_of(block)} block"


def _one_of(*kinds: str) -> Callable[[object], object]:
    def check(block: object) -> object:
        kind = kind_of(block)
        if kind is None:
            raise ValueError(f"a block must be an object with a type: {', '.join(kinds)}")
        if kind not in kinds:
            raise ValueError(f"a block of type {kind[:40]!r} is not supported here; only {', '.join(kinds)}")
        return block

    return check


class CacheControl(Wire):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Wire):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = Field(None, description=CACHE)


TextBlocks = Annotated[list[Annotated[TextBlock, BeforeValidator(_one_of("text")), COUNTED]], Field(max_length=MAX_BLOCKS)]


class ToolUseBlock(Wire):
    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=128)
    name: Name
    input: dict[str, JsonValue]
    cache_control: CacheControl | None = Field(None, description=CACHE)


class ToolResultBlock(Wire):
    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=128, description="id of the tool_use whose result this is")
    content: str | TextBlocks | None = None
    is_error: bool | None = Field(None, description="true: the model reads `Error: ` before the content")
    cache_control: CacheControl | None = Field(None, description=CACHE)


class ThinkingBlock(Wire):
    """A thought of an earlier answer. The chat template decides whether the model sees it."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = Field(None, description="not read: thoughts are not signed here")


class RedactedThinkingBlock(Wire):
    """A thought that another server encrypted: the model does not see it."""

    type: Literal["redacted_thinking"]
    data: str


Block = Annotated[
    Annotated[TextBlock, Tag("text block")]
    | Annotated[ThinkingBlock, Tag("thinking block")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking block")]
    | Annotated[ToolUseBlock, Tag("tool_use block")]
    | Annotated[ToolResultBlock, Tag("tool_result block")],
    Discriminator(_tag),
    BeforeValidator(_one_of("text", "tool_use", "tool_result", "thinking", "redacted_thinking")),
    COUNTED,
]


class AnswerText(Wire):
    type: Literal["text"] = "text"
    text: str


class AnswerThinking(Wire):
    type: Literal["thinking"] = "thinking"
    thinking: str = Field(description="what a reasoning model thought before its answer")
    signature: str = Field("", description="always empty")


class AnswerToolUse(Wire):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, JsonValue]
