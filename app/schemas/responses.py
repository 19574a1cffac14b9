"""The request body of /v1/responses: OpenAI's Responses API without storage. Each request carries the whole conversation in its input."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from app.schemas.generation import PLACE, THIEF_SCHEMA, SamplingFields, StreamOptions
from app.schemas.items import Item, full_name
from app.schemas.messages import MAX_TOOLS, Function, Metadata, Name, Schema, choice_tag
from app.schemas.thought import Reasoning
from app.schemas.wire import COUNTED, Int, OnlyFalse, OnlyTrue, Wire, kind_of

MAX_ITEMS = 1023  # with the instructions, the 1024 messages that a chat may have
FORMATS = ("text", "json_object", "json_schema")
LOGPROBS = "message.output_text.logprobs"
NOTHING_STORED = "null only: nothing is stored; send the earlier items again, in input"
Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]
Summary = Literal["auto", "concise", "detailed"]


def _supported_format(kind: object) -> object:
    if isinstance(kind, str) and kind not in FORMATS:
        raise ValueError(f"a format of type {kind[:40]!r} is not supported; only {', '.join(FORMATS)} are")
    return kind


# The brackets mark the tags as names of union members, which are left out of the path of a field in an error.
def _tool_tag(tool: object) -> str:
    return "[namespace]" if kind_of(tool) == "namespace" else _inner_tag(tool)


def _inner_tag(tool: object) -> str:
    kind = kind_of(tool)
    return "[hosted]" if kind is not None and kind != "function" else "[function]"


def _format_tag(format: object) -> str:
    return "[schema]" if kind_of(format) == "json_schema" else "[plain]"


class FunctionTool(Function):
    type: Literal["function"]


class HostedTool(Wire):
    """A tool of another kind, such as web_search or custom: the model is not told of it."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(max_length=128)


InnerTool = Annotated[
    Annotated[FunctionTool, Tag("[function]")] | Annotated[HostedTool, Tag("[hosted]")], Discriminator(_inner_tag), COUNTED
]


class NamespaceTool(Wire):
    """Functions under one name, as Codex sends those of an MCP server. A call has the namespace and the function's name apart."""

    type: Literal["namespace"]
    name: Name
    description: str | None = Field(None, description="shown to the model before that of its first function")
    tools: list[InnerTool] = Field(max_length=MAX_TOOLS, description="functions; tools of other types are left out, and named")

    @property
    def functions(self) -> list[FunctionTool]:
        return [tool for tool in self.tools if isinstance(tool, FunctionTool)]

    @model_validator(mode="after")
    def _fits(self) -> "NamespaceTool":
        for tool in self.functions:
            full_name(tool.name, self.name)
        return self


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("[function]")] | Annotated[NamespaceTool, Tag("[namespace]")] | Annotated[HostedTool, Tag("[hosted]")],
    Discriminator(_tool_tag),
    COUNTED,
]


class NamedFunctionTool(Wire):
    type: Literal["function"]
    name: Name


class AllowedFunctionTools(Wire):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = Field(description="required: at least one of them is called")
    tools: list[Annotated[NamedFunctionTool, COUNTED]] = Field(
        min_length=1, max_length=MAX_TOOLS, description="by their names; the model is told of the others, too"
    )


ResponsesToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")]
    | Annotated[NamedFunctionTool, Tag("[function]")]
    | Annotated[AllowedFunctionTools, Tag("[allowed]")],
    Discriminator(choice_tag),
]


class PlainFormat(Wire):
    type: Annotated[Literal["text", "json_object"], BeforeValidator(_supported_format)]


class SchemaFormat(Wire):
    type: Literal["json_schema"]
    name: Name = Field(description="for your own records; not shown to the model")
    schema_: Schema = Field(alias="schema", description="JSON schema that the answer conforms to")
    description: str | None = Field(None, description="for your own records; not shown to the model")
    strict: bool | None = Field(None, description="true or false: the answer always conforms to the schema")


class TextOptions(Wire):
    """The form of the answer. It is enforced, but not shown to the model: describe it in the conversation as well."""

    format: (
        Annotated[
            Annotated[PlainFormat, Tag("[plain]")] | Annotated[SchemaFormat, Tag("[schema]")],
            Discriminator(_format_tag),
        ]
        | None
    ) = Field(None, description="any text when left out")
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="low and high are left out, and named: the conversation says how long an answer should be"
    )


class ResponsesReasoning(Reasoning):
    summary: Summary | None = Field(None, description="left out, and named, like generate_summary: a thought is returned as it is")
    generate_summary: Summary | None = None


class ResponsesStreamOptions(StreamOptions):
    include_usage: OnlyTrue | None = Field(None, description="true only: the last event always has the token counts")
    continuous_usage_stats: OnlyFalse | None = Field(None, description="false only")


class ResponsesRequest(SamplingFields):
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)] = Field(
        description="what the user says, or the items of the conversation so far, the oldest first"
    )
    instructions: str | None = Field(None, description="a system message in front of the input")
    max_output_tokens: Int | None = Field(
        None, ge=1, description="limit of the answer in tokens; when left out, what the context leaves after the prompt"
    )
    text: TextOptions | None = Field(None, description="the form of the answer")
    tools: list[AnyTool] | None = Field(
        None,
        max_length=MAX_TOOLS,
        description="functions that the model may call, also in namespaces; tools of other types are left out, and named",
    )
    tool_choice: ResponsesToolChoice | None = Field(
        None,
        description="auto, none, required, the one function to call, or those that may be called, one of a namespace as `namespace__name`; "
        "auto when left out",
    )
    parallel_tool_calls: bool | None = Field(None, description="whether one answer may contain several tool calls; true when left out")
    include: list[Included] | None = Field(
        None,
        max_length=16,
        description="message.output_text.logprobs: return the log-probability of each token of the answer; others are left out, and named",
    )
    top_logprobs: Int | None = Field(
        None,
        ge=0,
        le=20,
        description="return log-probabilities, and those of this many most likely tokens at each position; not with tools",
    )
    metadata: Metadata | None = Field(None, description="returned with the answer, for your own records")
    max_tool_calls: Int | None = Field(None, ge=1, description="limits built-in tools, of which there are none")
    n: Int | None = Field(None, ge=1, le=1, description="1 only: a response is one answer")
    stream_options: ResponsesStreamOptions | None = Field(None, description="only with stream")
    store: bool | None = Field(None, description="false, also when left out: no response is stored; true is left out, and named")
    background: bool | None = Field(None, description="false only: the answer is computed while its client waits")
    truncation: Literal["disabled", "auto"] | None = Field(
        None, description="input that does not fit is refused, never cut: auto is left out, and named"
    )
    reasoning: ResponsesReasoning | None = Field(None, description="how the model thinks before its answer")
    previous_response_id: None = Field(None, description=NOTHING_STORED)
    conversation: None = Field(None, description=NOTHING_STORED)
    prompt: None = Field(None, description="null only: no prompts are stored; write them in instructions and input")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "Tell me a story about a fox and a crow.", "max_output_tokens": 120, "seed": 7},
                {
                    "instructions": "You are a judge.",
                    "input": [{"role": "user", "content": [{"type": "input_text", "text": "Who stole the cheese?"}]}],
                    "text": {"format": {"type": "json_schema", "name": "thief", "schema": THIEF_SCHEMA}},
                    "max_output_tokens": 60,
                },
                {
                    "input": "What is the weather in the wood?",
                    "tools": [{"type": "function", "name": "weather", "description": "The weather at a place.", "parameters": PLACE}],
                    "max_output_tokens": 60,
                },
            ]
        }
    )
