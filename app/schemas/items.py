"""The items of a conversation in the form of OpenAI's Responses API, as clients send them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from app.schemas.messages import MAX_NAME_CHARS, MAX_PARTS, Arguments, Name
from app.schemas.wire import COUNTED, Wire, kind_of

PARTS = ("input_text", "output_text", "text")
ITEMS = ("message", "function_call", "function_call_output", "reasoning")
ItemStatus = Literal["in_progress", "completed", "incomplete"]
CallId = Annotated[str, Field(min_length=1, max_length=128)]


def _text_only(part: object) -> object:
    kind = kind_of(part)
    if kind is not None and kind not in PARTS:
        raise ValueError(f"a content part of type {kind[:40]!r} is not supported; only {', '.join(PARTS)} are")
    return part


def _supported_item(item: object) -> object:
    kind = kind_of(item)
    if kind is not None and kind not in ITEMS:
        raise ValueError(f"an item of type {kind[:40]!r} is not supported; only {', '.join(ITEMS)} are")
    return item


def _item_tag(item: object) -> str:
    """The brackets mark the name of a union's member, which is left out of the path of a field in an error."""
    kind = kind_of(item)
    return f"[{kind}]" if kind in ITEMS else "[message]"  # a message may omit its type


def full_name(name: str, namespace: str | None) -> str:
    """What the model calls a function. Raises `ValueError` for more characters than the name of a function may have."""
    full = name if namespace is None else f"{namespace.removesuffix('__')}__{name}"
    if len(full) > MAX_NAME_CHARS:
        raise ValueError(f"the model would read '{full[:40]}...', {len(full)} characters; at most {MAX_NAME_CHARS} are supported")
    return full


class InputPart(Wire):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[JsonValue] | None = Field(None, description="of an earlier answer; not shown to the model")
    logprobs: list[JsonValue] | None = Field(None, description="of an earlier answer; not shown to the model")


Content = str | Annotated[list[Annotated[InputPart, BeforeValidator(_text_only), COUNTED]], Field(max_length=MAX_PARTS)]


def text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class InputItem(Wire):
    """What items have when a client sends back those of an earlier answer."""

    id: str | None = Field(None, description="of an earlier answer; not needed")
    status: ItemStatus | None = Field(None, description="of an earlier answer; not needed")


class InputMessage(InputItem):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is rendered as system")
    content: Content = Field(description="text, or parts of type input_text and output_text")


class FunctionCallItem(InputItem):
    """A tool call of the assistant. Calls that follow each other, or a message of the assistant, become one message."""

    type: Literal["function_call"]
    call_id: CallId
    name: Name
    namespace: Name | None = Field(None, description="that the function is in")
    arguments: Arguments = Field(description="a JSON object, as a string or as it is; null or an empty string is one without properties")

    @model_validator(mode="after")
    def _fits(self) -> "FunctionCallItem":
        full_name(self.name, self.namespace)
        return self


class FunctionCallOutput(InputItem):
    type: Literal["function_call_output"]
    call_id: CallId | None = Field(None, description="of the call whose result this is; the next unanswered call when left out")
    namespace: str | None = Field(None, description="that the function is in; not needed")
    output: Content = Field(description="the result: text, or parts of type input_text")


class ReasoningItem(Wire):
    """A thought of an earlier answer. It is not shown to the model."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["reasoning"]


Item = Annotated[
    Annotated[InputMessage, Tag("[message]")]
    | Annotated[FunctionCallItem, Tag("[function_call]")]
    | Annotated[FunctionCallOutput, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")],
    Discriminator(_item_tag),
    BeforeValidator(_supported_item),
    COUNTED,
]
