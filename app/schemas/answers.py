"""Answers of /v1/chat/completions and /v1/completions, in OpenAI's form and with vLLM's additional fields."""

from typing import Literal

from pydantic import Field

from app.schemas.messages import ToolCall
from app.schemas.wire import Usage, UsedTier, Wire

FinishReason = Literal["stop", "length", "tool_calls"]
STOP_REASON = "the stop string or the token of stop_token_ids that ended the answer; null for the model's own end"
PROMPT_LOGPROBS = "for each token of the prompt, its id and the likeliest ones; null for the first, which nothing predicts"


class TopLogprob(Wire):
    token: str = Field(description="the token's text; `bytes:\\xe7...` if it is only part of a character")
    logprob: float = Field(
        description="natural logarithm of the probability by the model's logits, before temperature, penalties and filters"
    )
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Wire):
    content: list[ContentLogprob]
    reasoning_content: list[ContentLogprob] | None = Field(None, description="of the tokens of a thought")
    refusal: None = None


class TextLogprobs(Wire):
    """Lists with one entry per token. The first token of an echoed prompt has no probability, because nothing precedes it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] = Field(description="the most likely tokens, and the token itself")
    text_offset: list[int] = Field(description="index of the token's first character in the choice's text")


class AnswerMessage(Wire):
    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="null if the answer has tool_calls and no text")
    reasoning_content: str | None = Field(None, description="what a reasoning model thought before its answer")
    reasoning: str | None = Field(None, description="the same, by the name that vLLM and OpenRouter use")
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class PromptLogprob(Wire):
    """vLLM's form."""

    logprob: float
    rank: int | None = Field(description="1 for the likeliest token at its position; null for a token that is none of those asked for")
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatChoice(Wire):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason
    stop_reason: str | int | None = Field(None, description=STOP_REASON)
    token_ids: list[int] | None = None


class ChatResponse(Wire):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: UsedTier | None = None
    system_fingerprint: str = Field(
        description="digest of model, revision and quantization; while it stays the same, the same seed gives the same answer"
    )
    metadata: dict[str, str] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = Field(None, description=PROMPT_LOGPROBS)


class CompletionChoice(Wire):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason
    stop_reason: str | int | None = Field(None, description=STOP_REASON)
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = Field(None, description=PROMPT_LOGPROBS)


class CompletionResponse(Wire):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    service_tier: UsedTier | None = None
    system_fingerprint: str
