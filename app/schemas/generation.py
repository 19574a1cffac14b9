"""Chat and completions: what is asked and what is answered, in OpenAI's forms and with vLLM's further fields."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator
from pydantic.config import JsonDict

from app.schemas.messages import Message, Metadata, ResponseFormat, Tool, ToolCall, ToolChoice
from app.schemas.wire import TIER, Tier, Usage, UsedTier, Wire

FinishReason = Literal["stop", "length", "tool_calls"]
StopWord = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0)]
LONGEST_ID = 10  # digits
LOGIT_BIAS = "token id, as a string, to what is added to its logit: -100 bans it, 100 all but forces it"
BAD_WORDS = "texts that are not generated, neither where a word begins nor behind a blank"
THIEF: JsonDict = {
    "type": "object",
    "properties": {"name": {"enum": ["fox", "crow"]}, "guilty": {"type": "boolean"}},
    "required": ["name", "guilty"],
    "additionalProperties": False,
}
PLACE: JsonDict = {"type": "object", "properties": {"place": {"type": "string", "maxLength": 20}}, "required": ["place"]}
WEATHER: JsonDict = {"type": "function", "function": {"name": "weather", "description": "The weather at a place.", "parameters": PLACE}}


class StreamOptions(Wire):
    include_usage: bool | None = Field(None, description="send a last chunk with the token counts")
    include_obfuscation: Literal[False] | None = Field(None, description="false: nothing is sent to hide lengths")


class SamplingFields(Wire):
    """What chat and completions share. A field left out takes the model's own default (its generation_config.json)."""

    model: str | None = Field(None, description="name of a served model, see /v1/models; the default one when left out")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus: smallest set of tokens with this much probability")
    top_k: int | None = Field(None, ge=-1, description="keep the k likeliest tokens; 0 and -1 keep all")
    min_p: float | None = Field(None, ge=0, le=1, description="keep tokens at least this share as likely as the likeliest")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="taken from the logit of tokens the answer already holds")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="the same, once for each time the answer holds them")
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=10, description="divides the logit of tokens that prompt or answer hold (multiplies it below 0); 1 is none"
    )
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024)] | None = Field(None, description=LOGIT_BIAS)
    bad_words: Annotated[list[StopWord], Field(max_length=128)] | None = Field(None, description=BAD_WORDS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="the same request with the same seed gives the same tokens")
    n: int | None = Field(None, ge=1, le=16, description="how many answers, 1 when left out; answer i is sampled with seed + i")
    stop: StopWord | Annotated[list[StopWord], Field(max_length=16)] | None = Field(
        None, description="text that ends the answer; it is not part of it"
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = Field(None, description="tokens that end the answer")
    min_tokens: int | None = Field(None, ge=0, description="no token ends the answer before it has this many; at most max_tokens")
    ignore_eos: bool | None = Field(None, description="the model's own end tokens do not end the answer")
    stream: bool | None = Field(None, description="answer as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    service_tier: Tier | None = Field(None, description=TIER)
    user: str | None = Field(
        None, max_length=256, description="who asks, as your own program names them; security.banned_users refuses some"
    )

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) <= LONGEST_ID and key == str(int(key))):
                raise ValueError(f"{key[:40]!r} is no token id; each key is one, as a string of digits")
        return value

    @property
    def stop_words(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(SamplingFields):
    messages: list[Message] = Field(min_length=1, max_length=1024, description="the conversation so far, the oldest message first")
    max_tokens: int | None = Field(None, ge=1, description="longest answer in tokens; what the context leaves when left out")
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")
    logprobs: bool | None = Field(None, description="give the log-probability of each token of the answer")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and of this many likeliest tokens; needs logprobs: true")
    response_format: ResponseFormat | None = Field(None, description="the form of the answer; any text when left out")
    tools: list[Tool] | None = Field(None, min_length=1, max_length=128, description="functions that the model may call")
    tool_choice: ToolChoice | None = Field(None, description="auto where there are tools; none, required, or the one function to be called")
    parallel_tool_calls: bool | None = Field(None, description="whether one answer may hold several calls; true when left out")
    metadata: Metadata | None = Field(None, description="given back with the answer, for your own bookkeeping")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "Tell me a story about a fox and a crow."}], "max_tokens": 120, "seed": 7},
                {
                    "messages": [{"role": "user", "content": "Who stole the cheese?"}],
                    "response_format": {"type": "json_schema", "json_schema": {"name": "thief", "schema": THIEF}},
                    "max_tokens": 60,
                },
                {"messages": [{"role": "user", "content": "What is the weather in the wood?"}], "tools": [WEATHER], "max_tokens": 60},
            ]
        }
    )


class CompletionRequest(SamplingFields):
    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="text, texts, token ids, or lists of token ids")
    max_tokens: int | None = Field(None, ge=0, description="longest answer in tokens, 16 when left out; 0 only with echo")
    logprobs: int | None = Field(None, ge=0, le=20, description="give the log-probability of each token and of this many likeliest ones")
    suffix: None = Field(None, description="null only: nothing is written in front of a given end")
    echo: bool | None = Field(None, description="put the prompt before the answer; with logprobs its tokens, too")
    best_of: int | None = Field(
        None, ge=1, le=16, description="sample this many answers, give the n with the highest mean log-probability; no stream"
    )

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0.8, "seed": 7}]}
    )


class TopLogprob(Wire):
    token: str = Field(description="the token's text; `bytes:\\xe7...` for a part of a character")
    logprob: float = Field(description="natural logarithm under the model itself: before temperature, penalties and filters")
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Wire):
    content: list[ContentLogprob]
    refusal: None = None


class TextLogprobs(Wire):
    """Columns, one entry a token. The first token of an echoed prompt has no probability: nothing predicts it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] = Field(description="the likeliest tokens, and the token itself")
    text_offset: list[int] = Field(description="character of the choice's text that the token begins at")


class AnswerMessage(Wire):
    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="null where there is nothing but tool_calls")
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Wire):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatResponse(Wire):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: UsedTier | None = None
    system_fingerprint: str = Field(description="of model, revision and quantization: as long as it stays, so do answers to a seed")
    metadata: dict[str, str] | None = None


class CompletionChoice(Wire):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason


class CompletionResponse(Wire):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    service_tier: UsedTier | None = None
    system_fingerprint: str
