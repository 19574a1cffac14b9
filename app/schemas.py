"""The wire: what every route takes and gives, as pydantic models with bounds. Shared by serve, ui and loadtest.

Knows no engine and no server. A field that Litmus does not act on is not here, so `extra="forbid"` refuses it by name.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

Method = Literal["binoculars", "fast_detect", "perplexity", "log_rank"]
Verdict = Literal["machine", "human", "uncertain", "uncalibrated", "insufficient"]
FinishReason = Literal["stop", "length"]
StopWord = Annotated[str, StringConstraints(min_length=1, max_length=256)]
MIN_SCORED_TOKENS = 64


class Wire(BaseModel):
    """Strict: a number in quotes or a `true` for 1 is refused, not read as what it might have meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(Wire):
    include_usage: bool = Field(False, description="send a last chunk with the token counts")


class SamplingFields(Wire):
    """What chat and completions share. A field left out takes the model's own default (its generation_config.json)."""

    model: str | None = Field(None, description="name of a served model, see /v1/models; the only one when left out")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus: smallest set of tokens with this much probability")
    top_k: int | None = Field(None, ge=0, description="keep the k likeliest tokens; 0 keeps all")
    min_p: float | None = Field(None, ge=0, le=1, description="keep tokens at least this share as likely as the likeliest")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="the same request with the same seed gives the same tokens")
    n: int = Field(1, ge=1, le=16, description="how many answers; answer i is sampled with seed + i")
    stop: StopWord | Annotated[list[StopWord], Field(max_length=16)] | None = Field(
        None, description="text that ends the answer; it is not part of it"
    )
    stream: bool = Field(False, description="answer as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with stream")

    @property
    def stop_words(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(Wire):
    type: Literal["text"]
    text: str


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SamplingFields):
    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_tokens: int | None = Field(None, ge=1, description="longest answer in tokens; what the context leaves when left out")
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "Tell me a story about a fox and a crow."}], "max_tokens": 120, "seed": 7},
            ]
        }
    )


class CompletionRequest(SamplingFields):
    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="text, texts, token ids, or lists of token ids")
    max_tokens: int = Field(16, ge=1, description="longest answer in tokens")

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0.8, "seed": 7}]}
    )


class Usage(Wire):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(Wire):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(Wire):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason


class ChatResponse(Wire):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(Wire):
    index: int
    text: str
    finish_reason: FinishReason
    logprobs: None = None


class CompletionResponse(Wire):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ScoreRequest(Wire):
    model: str | None = Field(None, description="name of a served model; the only one when left out")
    input: str | Annotated[list[str], Field(min_length=1, max_length=64)] = Field(description="a text, or a list of texts")
    method: Method | None = Field(None, description="binoculars where an observer is loaded, else fast_detect, when left out")
    return_tokens: bool = Field(False, description="give each token with its log-probability, rank and entropy")

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": "Once upon a time there was a king who had three sons.", "return_tokens": True}]}
    )

    @field_validator("input")
    @classmethod
    def _some_text(cls, value: str | list[str]) -> str | list[str]:
        texts = [value] if isinstance(value, str) else value
        for index, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"text {index} is empty or blank; give at least one word")
        return value

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class ScoredToken(Wire):
    """One token of the scored text. `start` and `end` are character offsets into it (end exclusive)."""

    text: str
    start: int
    end: int
    logprob: float = Field(description="natural logarithm of the probability the model gave this token, <= 0")
    rank: int = Field(description="1 if the model held it the likeliest")
    entropy: float = Field(description="in nats: how open the model held this place")


class Statistics(Wire):
    """Means over the scored tokens, natural logarithms. `cross_entropy` only where an observer took part."""

    log_perplexity: float
    mean_log_rank: float
    mean_entropy: float
    cross_entropy: float | None = None
    perplexity: float = Field(description="exp(log_perplexity)")


class Score(Wire):
    """One text's score. `direction` says which way machine text lies: `lower` or `higher` scores look more like a machine's."""

    index: int
    object: Literal["score"] = "score"
    method: Method
    score: float | None = Field(description="None when fewer than one token could be scored")
    direction: Literal["lower", "higher"]
    verdict: Verdict
    explanation: str
    scored_tokens: int
    windows: int = Field(description="overlapping windows the text was scored in; 1 when it fits the context")
    removed_characters: int = Field(description="zero-width characters taken out before scoring")
    statistics: Statistics | None
    tokens: list[ScoredToken] | None = None


class ScoreFailure(Wire):
    """Stands at the index of a text that could not be scored; the others are not affected."""

    index: int
    object: Literal["error"] = "error"
    message: str
    code: str


class ScoreResponse(Wire):
    id: str
    object: Literal["score.list"] = "score.list"
    created: int
    model: str
    observer: str | None
    data: list[Score | ScoreFailure]
    usage: Usage


class ModelCard(Wire):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "litmus"
    context: int = Field(description="tokens a conversation may hold")
    slots: int
    quantize: str
    dtype: str
    device: str
    observer: str | None
    chat: bool = Field(description="has a chat template")
    methods: list[Method]


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Readiness(Wire):
    status: Literal["ready", "loading", "draining"]


class Health(Wire):
    status: Literal["ok"] = "ok"


class ErrorBody(Wire):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Wire):
    error: ErrorBody
