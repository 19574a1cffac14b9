"""What a conversation is made of: messages, tools, the calls of tools, and the form an answer is to have."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from app.schemas.wire import Wire

Role = Literal["system", "developer", "user", "assistant", "tool"]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Schema = dict[str, JsonValue]


def _text_only(part: object) -> object:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"a part of type {kind[:40]!r} is not supported: this server reads parts of type 'text'")
    return part


class TextPart(Wire):
    type: Literal["text"]
    text: str


class FunctionCall(Wire):
    name: Name
    arguments: str = Field(description="a JSON object, as text")


class ToolCall(Wire):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Wire):
    """`tool_calls` belong to the assistant, `tool_call_id` to what a tool answered."""

    role: Role = Field(description="developer is told to the model as system")
    content: str | list[Annotated[TextPart, BeforeValidator(_text_only)]] | None = Field(None, description="text, or parts of type text")
    name: str | None = Field(
        None, min_length=1, max_length=64, description="who speaks, where the model's chat template has a place for it"
    )
    tool_calls: list[ToolCall] | None = Field(None, max_length=128, description="what the assistant called for")
    tool_call_id: str | None = Field(None, max_length=128, description="the id of the call that this is the result of")
    refusal: None = Field(None, description="these four only as null: clients send back what they were given")
    audio: None = None
    annotations: None = None
    function_call: None = None

    @property
    def text(self) -> str:
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @model_validator(mode="after")
    def _by_role(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls belong to a message of the assistant, not of role '{self.role}'")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of role 'tool' needs a tool_call_id, and no other message has one")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing; only a message with tool_calls may do without")
        return self


class Function(Wire):
    name: Name
    description: str | None = Field(None, description="what the model is told of it")
    parameters: Schema | None = Field(None, description="JSON schema of the arguments, an object; without it the function has none")
    strict: bool | None = Field(None, description="arguments always keep to the schema, asked for or not")

    @property
    def arguments(self) -> Schema:
        """The schema of an object."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}

    @model_validator(mode="after")
    def _takes_an_object(self) -> "Function":
        if self.arguments["type"] != "object":
            raise ValueError("parameters must be the JSON schema of an object: arguments have names")
        return self


class Tool(Wire):
    type: Literal["function"]
    function: Function


class NamedFunction(Wire):
    name: Name


class NamedTool(Wire):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class NamedSchema(Wire):
    name: Name = Field(description="for your own records: the model is not told")
    description: str | None = Field(None, description="for your own records: the model is not told")
    schema_: Schema | None = Field(None, alias="schema", description="JSON schema that the answer keeps to; any object when left out")
    strict: bool | None = Field(None, description="the answer always keeps to the schema, asked for or not")


class ResponseFormat(Wire):
    """The form of the answer. The model is not told of it: say in the conversation what you want to read."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="with type json_schema only")

    @model_validator(mode="after")
    def _fits(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("type 'json_schema' needs json_schema, and no other type has one")
        return self


Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)]
