"""Texts and conversations as token ids, and back: vLLM's bodies."""

from typing import Annotated

from pydantic import ConfigDict, Field

from app.schemas.generation import TokenId
from app.schemas.messages import Message, Tool
from app.schemas.wire import Wire

MODEL = "name of a served model, see /v1/models; the default one when left out"


class TokenizeRequest(Wire):
    """A text or a conversation, not both."""

    model: str | None = Field(None, description=MODEL)
    prompt: str | None = Field(None, description="a text")
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)] | None = Field(
        None, description="a conversation, which the model's chat template renders"
    )
    add_special_tokens: bool | None = Field(
        None, description="put the tokens around it that the tokenizer puts around a text (BOS); true for a text, false for a conversation"
    )
    add_generation_prompt: bool | None = Field(None, description="end with what opens the assistant's turn; true; only with messages")
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = Field(
        None, description="functions that the template tells the model of; only with messages"
    )
    return_token_strs: bool = Field(False, description="give the tokens as the vocabulary spells them, too")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "Once upon a time", "return_token_strs": True},
                {"messages": [{"role": "user", "content": "Tell me a story."}], "add_generation_prompt": True},
            ]
        }
    )


class TokenizeResponse(Wire):
    count: int
    max_model_len: int = Field(description="tokens that prompt and answer may have together")
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Wire):
    model: str | None = Field(None, description=MODEL)
    tokens: list[TokenId] = Field(description="token ids")

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [0, 52, 9]}]})


class DetokenizeResponse(Wire):
    prompt: str = Field(description="their text, with the names of control tokens")
