"""The parts of a chat request: messages, tools, tool calls and the response format."""

import json
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, model_validator

from app.schemas.wire import COUNTED, Wire, at_most, kind_of, misfit

Role = Literal["system", "developer", "user", "assistant", "tool"]
MAX_NAME_CHARS = 128
Name = Annotated[str, Field(pattern=rf"^[a-zA-Z0-9_.-]{{1,{MAX_NAME_CHARS}}}$")]
MAX_TOOLS = 512
MAX_PARTS = 1024
Schema = dict[str, JsonValue]


TEXT_PARTS = ("text", "input_text")  # the second is that of the Responses API
PARTS = (*TEXT_PARTS, "refusal")


def _supported(part: object) -> object:
    kind = kind_of(part)
    if kind is not None and kind not in PARTS:
        raise ValueError(f"a content part of type {kind[:40]!r} is not supported; only parts of type 'text' are")
    return part


def _part_tag(part: object) -> str:
    """The brackets mark the name of a union's member, which is left out of the path of a field in an error."""
    return "[refusal]" if kind_of(part) == "refusal" else "[text]"


class TextPart(Wire):
    type: Literal["text", "input_text"]
    text: str


class RefusalPart(Wire):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Part = Annotated[
    Annotated[TextPart, Tag("[text]")] | Annotated[RefusalPart, Tag("[refusal]")],
    Discriminator(_part_tag),
    BeforeValidator(_supported),
    COUNTED,
]


class Prediction(Wire):
    type: Literal["content"]
    content: str | Annotated[list[Annotated[TextPart, BeforeValidator(_supported), COUNTED]], Field(max_length=MAX_PARTS)] = Field(
        description="text, or parts of type text"
    )

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


def _as_text(arguments: object) -> object:
    """Some clients keep the arguments parsed, or null where there are none."""
    if arguments is None:
        return "{}"
    try:
        return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
    except RecursionError as error:
        raise ValueError("the object is nested too deep") from error


Arguments = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | dict[str, JsonValue] | None)]


class FunctionCall(Wire):
    name: Name
    arguments: Arguments = Field(
        description="a JSON object, as a string or as it is; null or an empty string has no properties, one that breaks off is closed"
    )


class ToolCall(Wire):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Wire):
    """`tool_calls` is for messages of the assistant, `tool_call_id` for the result of a tool."""

    role: Role = Field(description="developer is rendered as system")
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS)] | None = Field(
        None, description="text, or parts of type text, which the model reads as lines; those of type refusal are an assistant's"
    )
    name: str | None = Field(
        None, min_length=1, max_length=64, description="name of the author; left out if the model's chat template has no place for it"
    )
    tool_calls: list[Annotated[ToolCall, COUNTED]] | None = Field(None, max_length=128, description="the tools that the assistant called")
    tool_call_id: str | None = Field(
        None, max_length=128, description="id of the tool call whose result this message holds; the next unanswered call when left out"
    )
    reasoning_content: str | None = Field(
        None, description="the assistant's thoughts; templates of reasoning models know whether to show them"
    )
    reasoning: str | None = Field(None, description="another name of reasoning_content")
    prefix: bool | None = Field(
        None, description="of the last message, by the assistant: true makes the answer go on where its content ends"
    )
    refusal: str | None = Field(None, description="what an assistant of another server refused with: its content, where it has none")
    audio: None = Field(None, description="null only, like function_call: clients send back what they received")
    annotations: list[JsonValue] | None = Field(None, description="of an earlier answer; not shown to the model")
    function_call: None = None

    @property
    def text(self) -> str:
        """The content as templates take it that know no parts; the parts are lines, as with vLLM and llama-server."""
        if self.content is None:
            return self.refusal or ""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content if part.text)

    @model_validator(mode="after")
    def _by_role(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise misfit("tool_calls", f"tool_calls are only for messages of role 'assistant', not '{self.role}'")
        if self.tool_call_id is not None and self.role != "tool":
            raise misfit("tool_call_id", f"tool_call_id is only for messages of role 'tool', not '{self.role}'")
        if self.refusal and self.role != "assistant":
            raise misfit("refusal", f"refusal is only for messages of role 'assistant', not '{self.role}'")
        if self.prefix and self.role != "assistant":
            raise misfit("prefix", f"prefix is only for messages of role 'assistant', not '{self.role}'")
        if self.content is None and self.role not in {"assistant", "tool"}:
            raise misfit("content", "content is missing; only messages of the assistant and of a tool may omit it")
        return self


def object_type(schema: Schema) -> JsonValue:
    """The type of a schema whose values are objects: also where it leaves that open."""
    type = schema.get("type")
    return "object" if type is None or (isinstance(type, list) and "object" in type) else type


class Function(Wire):
    name: Name
    description: str | None = Field(None, description="what the function does; shown to the model")
    parameters: Schema | None = Field(None, description="JSON schema of the arguments object; no arguments when left out")
    strict: bool | None = Field(
        None, description="true: a schema that cannot be enforced exactly is refused; else the parts that cannot be are left out"
    )

    @property
    def arguments(self) -> Schema:
        """The schema of the arguments object."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {**self.parameters, "type": object_type(self.parameters)}

    @model_validator(mode="after")
    def _takes_an_object(self) -> "Function":
        if self.arguments["type"] != "object":
            raise ValueError("parameters must be a JSON schema of type 'object'")
        return self


class Tool(Wire):
    type: Literal["function"]
    function: Function


class NamedFunction(Wire):
    name: Name


class NamedTool(Wire):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Wire):
    mode: Literal["auto", "required"] = Field(description="required: at least one of them is called")
    tools: list[Annotated[NamedTool, COUNTED]] = Field(
        min_length=1, max_length=MAX_TOOLS, description="by their names; the model is told of the others, too"
    )


class AllowedToolChoice(Wire):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def choice_tag(choice: object) -> str:
    if isinstance(choice, str):
        return "[word]"
    return "[allowed]" if kind_of(choice) == "allowed_tools" else "[function]"


def _of_a_form(choice: object) -> object:
    """Other APIs have other words and forms: `any`, or the name of the function beside the type."""
    kind = kind_of(choice)
    is_object = kind == "allowed_tools" or (kind == "function" and isinstance(choice, dict) and "function" in choice)
    if choice not in CHOICE_WORDS if isinstance(choice, str) else isinstance(choice, dict) and not is_object:
        raise ValueError(CHOICES)
    return choice


CHOICE_WORDS = ("none", "auto", "required")
CHOICES = (
    "Input should be 'none', 'auto', 'required', "
    '{"type": "function", "function": {"name": "..."}} or {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [...]}}'
)
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")]
    | Annotated[NamedTool, Tag("[function]")]
    | Annotated[AllowedToolChoice, Tag("[allowed]")],
    Discriminator(choice_tag),
    BeforeValidator(_of_a_form),
]


class NamedSchema(Wire):
    name: Name = Field(description="for your own records; not shown to the model")
    description: str | None = Field(None, description="for your own records; not shown to the model")
    schema_: Schema | None = Field(None, alias="schema", description="JSON schema that the answer conforms to; any object when left out")
    strict: bool | None = Field(None, description="true or false: the answer always conforms to the schema")


class ResponseFormat(Wire):
    """The form of the answer. It is enforced, but not shown to the model: describe it in the conversation as well."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="with type json_schema only; the schema is in it, or in schema")
    schema_: Schema | None = Field(None, alias="schema", description="JSON schema that the answer conforms to, where llama-server has it")

    @model_validator(mode="after")
    def _fits(self) -> "ResponseFormat":
        if self.type == "text" and self.schema_ is not None:
            raise ValueError("schema is not allowed for type 'text'")
        if self.json_schema is not None and (self.type != "json_schema" or self.schema_ is not None):
            raise ValueError("json_schema is allowed for type 'json_schema' only, and without schema beside it")
        if self.type == "json_schema" and self.json_schema is None and self.schema_ is None:
            raise ValueError("json_schema is required for type 'json_schema'")
        return self

    @property
    def enforced(self) -> tuple[str, Schema] | None:
        """The schema of the answer after the path of its field; None: any object."""
        if self.json_schema is None:
            return None if self.schema_ is None else ("schema", self.schema_)
        return None if self.json_schema.schema_ is None else ("json_schema.schema", self.json_schema.schema_)


Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16), at_most(16)]
