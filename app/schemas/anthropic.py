"""Bodies of /v1/messages and /v1/messages/count_tokens: those of Anthropic's Messages API, as far as this server acts on their fields."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, field_validator, model_validator
from pydantic.config import JsonDict

from app.schemas.blocks import (
    CACHE,
    MAX_BLOCKS,
    AnswerText,
    AnswerThinking,
    AnswerToolUse,
    Block,
    CacheControl,
    RedactedThinkingBlock,
    TextBlock,
    TextBlocks,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from app.schemas.generation import SamplingParameters, Stop
from app.schemas.messages import MAX_TOOLS, Name, Schema, object_type
from app.schemas.thought import LIMIT
from app.schemas.wire import COUNTED, SEED, Int, Seed, Wire, kind_of

BLOCKS_OF_ROLE = {"user": ("text", "tool_result"), "assistant": ("text", "tool_use", "thinking", "redacted_thinking"), "system": ("text",)}
ROLES = {"ctx": "user", "msg": "user"}  # what Claude Code from 2.1.154 on may write, as vLLM reads it
MODEL = "name of a served model, see /v1/models; the default model when left out"
WEATHER: JsonDict = {
    "name": "weather",
    "description": "The weather at a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string", "maxLength": 20}}, "required": ["place"]},
}


def _role(role: object) -> object:
    return ROLES.get(role, role) if isinstance(role, str) else role


def _tool_tag(tool: Any) -> str:
    """A tool in OpenAI's form is a mistake, not one to be left out."""
    return "[client]" if kind_of(tool) in {None, "custom", "function"} else "[hosted]"


class Turn(Wire):
    """One message. A last one of the assistant is continued: the answer goes on where its text ends."""

    role: Annotated[Literal["user", "assistant", "system"], BeforeValidator(_role)] = Field(
        description="ctx and msg, which Claude Code writes, are user"
    )
    content: str | Annotated[list[Block], Field(max_length=MAX_BLOCKS)] = Field(
        description="text, or blocks: text of every role, tool_use of the assistant, tool_result of the user"
    )

    @property
    def blocks(self) -> list[TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock]:
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.blocks if isinstance(block, TextBlock))

    @model_validator(mode="after")
    def _by_role(self) -> "Turn":
        for block in self.blocks:
            if block.type not in BLOCKS_OF_ROLE[self.role]:
                supported = " and ".join(BLOCKS_OF_ROLE[self.role])
                raise ValueError(f"a message of role '{self.role}' has no block of type '{block.type}'; it may have {supported}")
        return self


class HostedTool(Wire):
    """A tool that Anthropic defines, such as web_search_20250305: the model is not told of it."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(max_length=128)


class ClientTool(Wire):
    type: Literal["custom"] | None = None
    name: Name
    description: str | None = Field(None, description="what the tool does; shown to the model")
    input_schema: Schema = Field(description="JSON schema, of type object, that the input of a call conforms to")
    strict: bool | None = Field(None, description="true or false: the input always conforms to the schema")
    cache_control: CacheControl | None = Field(None, description=CACHE)

    @field_validator("input_schema")
    @classmethod
    def _takes_an_object(cls, schema: Schema) -> Schema:
        if object_type(schema) != "object":
            raise ValueError("it must be a JSON schema of type 'object'")
        return schema


AnyTool = Annotated[Annotated[ClientTool, Tag("[client]")] | Annotated[HostedTool, Tag("[hosted]")], Discriminator(_tool_tag), COUNTED]


class ToolSelection(Wire):
    type: Literal["auto", "any", "tool", "none"] = Field(description="tool: the one of the given name; any: at least one")
    name: Name | None = Field(None, description="with type tool only")
    disable_parallel_tool_use: bool | None = Field(None, description="true: at most one call")

    @model_validator(mode="after")
    def _fits(self) -> "ToolSelection":
        if (self.name is not None) != (self.type == "tool"):
            raise ValueError("name is required for type 'tool' and not allowed for other types")
        return self


class JSONOutput(Wire):
    type: Literal["json_schema"]
    schema_: Schema = Field(alias="schema", description="JSON schema that the answer conforms to; it is not shown to the model")


class OutputConfig(Wire):
    format: JSONOutput | None = Field(None, description="the form of the answer; any text when left out")
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="how long the model thinks, if its chat template has a place for it; else left out, and named"
    )


class Thinking(Wire):
    type: Literal["disabled", "enabled", "adaptive"] = Field(description="disabled: no thought, where the chat template can say so")
    budget_tokens: Int | None = Field(None, ge=0, description=f"with type enabled; {LIMIT}")

    @model_validator(mode="after")
    def _fits(self) -> "Thinking":
        if self.budget_tokens is not None and self.type != "enabled":
            raise ValueError("budget_tokens is only for type 'enabled'")
        return self


class RequestMetadata(Wire):
    user_id: str | None = Field(
        None, max_length=256, description="your own id for the end user; requests of users in security.banned_users are refused"
    )


class CountTokensRequest(Wire):
    model: str | None = Field(None, description=MODEL)
    messages: list[Annotated[Turn, COUNTED]] = Field(
        min_length=1, max_length=1024, description="the conversation so far, the oldest message first"
    )
    system: str | TextBlocks | None = Field(None, description="what the model reads before the conversation")
    tools: list[AnyTool] | None = Field(
        None, max_length=MAX_TOOLS, description="tools that the model may call; those that Anthropic defines are left out, and named"
    )
    tool_choice: ToolSelection | None = Field(None, description="auto when left out")
    output_config: OutputConfig | None = Field(None, description="the form of the answer")
    thinking: Thinking | None = Field(
        None,
        description="whether a reasoning model thinks first; what its chat template does when left out, or adaptive; "
        "enabled is left out, and named, for a model that does not think",
    )
    context_management: dict[str, JsonValue] | None = Field(
        None, description="left out, and named: nothing is taken out of a conversation; what does not fit the context is refused"
    )
    cache_control: CacheControl | None = Field(None, description=CACHE)

    @property
    def client_tools(self) -> dict[int, ClientTool]:
        """By their places among the tools."""
        return {place: tool for place, tool in enumerate(self.tools or ()) if isinstance(tool, ClientTool)}

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"system": "You tell tales.", "messages": [{"role": "user", "content": "Tell me a story about a fox and a crow."}]}
            ]
        }
    )


class MessagesRequest(CountTokensRequest, SamplingParameters):
    """Beside Anthropic's fields it has the sampling parameters of a chat, and `seed`."""

    max_tokens: Int = Field(ge=1, description="limit of the answer in tokens")
    stop_sequences: Annotated[list[Stop], Field(max_length=16)] | None = Field(
        None, description="texts: each ends the answer and is not part of it; an empty one does nothing"
    )
    seed: Seed | None = Field(None, description=SEED)
    stream: bool | None = Field(None, description="send the answer as server-sent events")
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description="both mean the one tier that there is here")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "system": "You tell tales.",
                    "messages": [{"role": "user", "content": "Tell me a story about a fox and a crow."}],
                    "max_tokens": 120,
                },
                {
                    "messages": [
                        {"role": "user", "content": "Who stole the cheese?"},
                        {"role": "assistant", "content": "It was the"},
                    ],
                    "max_tokens": 20,
                    "stop_sequences": ["."],
                },
                {
                    "messages": [{"role": "user", "content": "What is the weather in the wood?"}],
                    "tools": [WEATHER],
                    "tool_choice": {"type": "any"},
                    "max_tokens": 60,
                },
            ]
        }
    )


class MessagesUsage(Wire):
    input_tokens: int = Field(description="prompt tokens that had to be computed")
    cache_creation_input_tokens: int = Field(0, description="always 0: what is kept is not paid for")
    cache_read_input_tokens: int = Field(description="prompt tokens that the KV cache still held; the prompt has these and input_tokens")
    output_tokens: int


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessagesResponse(Wire):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerThinking | AnswerText | AnswerToolUse]
    stop_reason: StopReason | None = Field(description="null only at the beginning of a stream")
    stop_sequence: str | None = Field(description="the stop sequence that ended the answer")
    usage: MessagesUsage


class CountTokensResponse(Wire):
    input_tokens: int


class MessagesErrorBody(Wire):
    type: str
    message: str


class MessagesErrorResponse(Wire):
    type: Literal["error"] = "error"
    error: MessagesErrorBody
    request_id: str | None = Field(None, description="the same as the headers X-Request-Id and request-id")
