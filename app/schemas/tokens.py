"""Bodies of /tokenize and /detokenize, as in vLLM."""

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from app.schemas.generation import RenderingFields, TokenId
from app.schemas.messages import MAX_TOOLS, Message, Tool
from app.schemas.wire import COUNTED, WHOLE, Wire

MODEL = "name of a served model, see /v1/models; the default model when left out"


class TokenizeRequest(RenderingFields):
    """A text or a conversation, not both. What says how a conversation is written is only for `messages`."""

    model: str | None = Field(None, description=MODEL)
    prompt: str | None = Field(None, description="a text")
    messages: Annotated[list[Annotated[Message, COUNTED]], Field(min_length=1, max_length=1024)] | None = Field(
        None, description="a conversation; the model's chat template renders it"
    )
    add_special_tokens: bool | None = Field(
        None,
        description="add the tokenizer's own special tokens, such as BOS; when left out, true for prompt and false for messages",
    )
    tools: Annotated[list[Annotated[Tool, COUNTED]], Field(min_length=1, max_length=MAX_TOOLS)] | None = Field(
        None, description="functions that the chat template describes to the model; only with messages"
    )
    return_token_strs: bool = Field(False, description="also return each token as the vocabulary spells it")

    @model_validator(mode="after")
    def _continues_the_last_message(self) -> "TokenizeRequest":
        if self.messages is not None:
            self.check_continued(self.messages, bool(self.tools), "tools")
        return self

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
    max_model_len: int = Field(description="limit of prompt and answer together, in tokens")
    tokens: list[int]
    token_strs: list[str] | None = None


class RenderedChat(Wire):
    prompt: str = Field(description="the conversation as the chat template writes it, with the names of special tokens")


class DetokenizeRequest(Wire):
    model: str | None = Field(None, description=MODEL)
    tokens: Annotated[list[TokenId], Field(fail_fast=True), WHOLE] = Field(description="token ids")

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [0, 52, 9]}]})


class DetokenizeResponse(Wire):
    prompt: str = Field(description="the text of the tokens, with the names of special tokens")
