"""Bodies of requests to /v1/chat/completions and /v1/completions: OpenAI's fields and vLLM's additional ones."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, StringConstraints, field_validator, model_validator
from pydantic.config import JsonDict

from app.schemas.forms import FormFields
from app.schemas.messages import MAX_TOOLS, Message, Metadata, Prediction, Tool, ToolChoice
from app.schemas.thought import UNLIMITED, ThoughtFields
from app.schemas.wire import COUNTED, SEED, TIER, TIMEOUT, WHOLE, Int, OnlyFalse, Seed, Tier, Timeout, Wire, at_most, contradiction

PromptEnd = Literal["generation prompt", "messages", "continued message"]  # what a rendered conversation ends with
Stop = Annotated[str, StringConstraints(max_length=256)]
StopWord = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0)]
Ids = Annotated[list[int], Field(fail_fast=True), WHOLE]
MAX_ID_DIGITS = 10
MAX_STOPS = 32
MAX_BIASES = 1024
LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")  # names of one field
SYNONYMS = (LIMITS, ("repetition_penalty", "repeat_penalty"))
LOGIT_BIAS = "maps a token id, as a string, to a number that is added to its logit: -100 bans the token, 100 all but forces it"
BAD_WORDS = "texts that the answer must not contain, at its start or after a space"
PROGRESS = "only with stream: while the prompt is read, chunks say how far that is, in prompt_progress; llama-server's field"
THIEF_SCHEMA: JsonDict = {
    "type": "object",
    "properties": {"name": {"enum": ["fox", "crow"]}, "guilty": {"type": "boolean"}},
    "required": ["name", "guilty"],
    "additionalProperties": False,
}
PLACE: JsonDict = {"type": "object", "properties": {"place": {"type": "string", "maxLength": 20}}, "required": ["place"]}
WEATHER: JsonDict = {"type": "function", "function": {"name": "weather", "description": "The weather at a place.", "parameters": PLACE}}


def _some(limit: int) -> int:
    if not limit:
        raise ValueError("Input should be greater than or equal to 1, or -1 for no limit")
    return limit


AnswerLimit = Annotated[Int, Field(ge=UNLIMITED, json_schema_extra={"not": {"const": 0}}), AfterValidator(_some)]


class StreamOptions(Wire):
    include_usage: bool | None = Field(None, description="send a last chunk with the token counts (usage)")
    continuous_usage_stats: bool | None = Field(None, description="with include_usage: every chunk has the token counts so far")
    include_obfuscation: OnlyFalse | None = Field(None, description="false only: chunks are not padded to hide their lengths")


class PromptProgress(Wire):
    """How far a prompt is read, in llama-server's form: of all of it processed / total, of what takes time (processed - cache) /
    (total - cache).
    """

    total: int = Field(description="tokens of the prompt")
    cache: int = Field(description="of these, tokens whose keys and values were in the KV cache")
    processed: int = Field(description="tokens read so far, those of the cache included")
    time_ms: int = Field(description="since the request got its slot")


class SamplingParameters(Wire):
    """How a token is chosen, as far as a model or the setting `model.sampling` may have defaults for it."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 means greedy decoding")
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="nucleus sampling: keep the smallest set of most likely tokens with at least this probability; 0 keeps the likeliest",
    )
    top_k: Int | None = Field(None, ge=-1, description="keep the k most likely tokens; 0 and -1 keep all")
    min_p: float | None = Field(
        None, ge=0, le=1, description="keep tokens whose probability is at least this share of the most likely token's"
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="subtracted from the logit of each token that the answer already contains"
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="subtracted from the logit of a token once for each time that the answer contains it"
    )
    repetition_penalty: float | None = Field(
        None,
        ge=0.01,
        le=10,
        description="divides the logit of each token that the prompt or answer contains (multiplies a negative one); 1 means no penalty",
    )


class SamplingFields(SamplingParameters):
    """Fields of chat and completions. A sampling parameter left out has the model's default: `default_sampling_params` in /v1/models."""

    model: str | None = Field(None, description="name of a served model, see /v1/models; the default model when left out")
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES), at_most(MAX_BIASES)] | None = Field(None, description=LOGIT_BIAS)
    bad_words: Annotated[list[StopWord], Field(max_length=128)] | None = Field(None, description=BAD_WORDS)
    seed: Seed | None = Field(None, description=SEED)
    n: Int | None = Field(None, ge=1, le=16, description="number of answers; 1 when left out; answer i is sampled with seed + i")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="stop strings: each ends the answer and is not part of it; an empty one does nothing"
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128), WHOLE] | None = Field(None, description="tokens that end the answer")
    min_tokens: Int | None = Field(
        None,
        ge=0,
        description="nothing ends the answer before it has this many tokens; stop strings count in what follows; at most max_tokens",
    )
    ignore_eos: bool | None = Field(None, description="continue past the model's end tokens")
    stream: bool | None = Field(None, description="send the answer as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    service_tier: Tier | None = Field(None, description=TIER)
    timeout_s: Timeout | None = Field(None, description=TIMEOUT)
    user: str | None = Field(
        None, max_length=256, description="your own id for the end user; requests of users in security.banned_users are refused"
    )
    safety_identifier: str | None = Field(None, max_length=256, description="OpenAI's newer name of user")
    prompt_cache_key: str | None = Field(
        None, max_length=256, description="not needed: equal beginnings of prompts are found by their tokens"
    )
    prompt_cache_retention: str | None = Field(None, max_length=64, description="not needed: beginnings are kept while there is room")

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) <= MAX_ID_DIGITS and key == str(int(key))):
                raise ValueError(f"{key[:40]!r} is no token id; each key must be a token id as a string of digits")
        return value

    @property
    def stop_words(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        words = (self.stop,) if isinstance(self.stop, str) else self.stop
        return tuple(word for word in words if word)


class TokenFields(Wire):
    """Fields of chat and completions about single tokens, by vLLM's names."""

    allowed_token_ids: Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=65_536), WHOLE] | None = Field(
        None, description="no other token may come, so that without an end token among them the answer has max_tokens"
    )
    include_stop_str_in_output: bool | None = Field(None, description="keep the stop string or token that ends the answer in its text")
    return_token_ids: bool | None = Field(None, description="return prompt_token_ids, and token_ids of each answer")
    prompt_logprobs: Int | None = Field(
        None,
        ge=0,
        le=20,
        description="return the log-probability of each token of the prompt, and of this many most likely tokens at its position; "
        "not with stream",
    )


class AnswerFields(SamplingFields, TokenFields):
    """Fields of chat and completions that a response does not have; some are llama-server's names of fields that stand beside them."""

    return_progress: bool | None = Field(None, description=PROGRESS)
    repeat_penalty: float | None = Field(None, ge=0.01, le=10, description="llama-server's name of repetition_penalty")
    add_special_tokens: bool | None = Field(
        None, description="whether the tokenizer puts its own special tokens, such as BOS, around a text or a rendered conversation"
    )

    @model_validator(mode="after")
    def _says_each_thing_once(self) -> "AnswerFields":
        for names in SYNONYMS:
            said = {name: value for name in names if (value := getattr(self, name, None)) is not None}
            if len(set(said.values())) > 1:
                raise contradiction(said)
        return self

    @property
    def answer_limit(self) -> int | None:
        """In tokens, by whichever name it has; `UNLIMITED`: what the context leaves after the prompt."""
        return next((limit for name in LIMITS if (limit := getattr(self, name, None)) is not None), None)


class RenderingFields(Wire):
    """How the chat template writes a conversation: fields of chats and of /tokenize."""

    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        None,
        max_length=32,
        description="variables of the model's chat template, such as enable_thinking; one that it does not use is left out",
    )
    add_generation_prompt: bool | None = Field(
        None, description="whether the prompt opens the assistant's turn; true when left out, false with continue_final_message"
    )
    continue_final_message: bool | None = Field(
        None, description="go on where the last message, by the assistant, ends; the answer is the continuation alone"
    )

    def continues_last(self, messages: Sequence[Message]) -> bool:
        return bool(self.continue_final_message or messages[-1].prefix)

    def prompt_end_of(self, messages: Sequence[Message]) -> PromptEnd:
        if self.continues_last(messages):
            return "continued message"
        return "messages" if self.add_generation_prompt is False else "generation prompt"

    def check_continued(self, messages: Sequence[Message], has_others: bool, others: str) -> None:
        """Raises `ValueError` for a message that cannot be continued, or not together with the `others`."""
        if any(message.prefix for message in messages[:-1]):
            raise ValueError("prefix is only for the last message")
        if not self.continues_last(messages):
            return
        if self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt cannot both be true")
        last = messages[-1]
        if last.role != "assistant" or last.tool_calls or not last.text.strip():
            raise ValueError("continue_final_message needs a last message of role 'assistant' with a content and no tool_calls")
        if has_others:
            raise ValueError(f"continue_final_message cannot be combined with {others}")


class ChatRequest(AnswerFields, ThoughtFields, FormFields, RenderingFields):
    messages: list[Annotated[Message, COUNTED]] = Field(
        min_length=1, max_length=1024, description="the conversation so far, the oldest message first"
    )
    max_tokens: AnswerLimit | None = Field(
        None, description="limit of the answer in tokens; when left out or -1, what the context leaves after the prompt"
    )
    max_completion_tokens: AnswerLimit | None = Field(None, description="newer name of max_tokens")
    n_predict: AnswerLimit | None = Field(None, description="llama-server's name of max_tokens")
    logprobs: bool | None = Field(None, description="return the log-probability of each token of the answer")
    top_logprobs: Int | None = Field(
        None, ge=0, le=20, description="also return this many most likely tokens at each position; needs logprobs: true"
    )
    tools: list[Annotated[Tool, COUNTED]] | None = Field(None, max_length=MAX_TOOLS, description="functions that the model may call")
    tool_choice: ToolChoice | None = Field(
        None, description="auto, none, required, the one function to call, or those that may be called; auto when left out"
    )
    parallel_tool_calls: bool | None = Field(None, description="whether one answer may contain several tool calls; true when left out")
    metadata: Metadata | None = Field(None, description="returned with the answer, for your own records")
    prediction: Prediction | None = Field(
        None, description="a text that much of the answer is expected to repeat: it makes the answer faster, and changes nothing of it"
    )

    @model_validator(mode="after")
    def _continues_the_last_message(self) -> "ChatRequest":
        other = self.forms[0] if self.forms else "response_format"
        self.check_continued(self.messages, bool(self.tools or self.forms), f"tools or {other}: a form begins with the answer")
        return self

    @property
    def continues(self) -> bool:
        """Whether the answer goes on where the last message ends."""
        return self.continues_last(self.messages)

    @property
    def prompt_end(self) -> PromptEnd:
        return self.prompt_end_of(self.messages)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "Tell me a story about a fox and a crow."}], "max_tokens": 120, "seed": 7},
                {
                    "messages": [{"role": "user", "content": "Who stole the cheese?"}],
                    "response_format": {"type": "json_schema", "json_schema": {"name": "thief", "schema": THIEF_SCHEMA}},
                    "max_tokens": 60,
                },
                {"messages": [{"role": "user", "content": "What is the weather in the wood?"}], "tools": [WEATHER], "max_tokens": 60},
            ]
        }
    )


class CompletionRequest(AnswerFields, FormFields):
    prompt: str | Annotated[list[str], Field(fail_fast=True)] | Ids | Annotated[list[Ids], Field(fail_fast=True)] = Field(
        description="a text, a list of texts, token ids, or lists of token ids"
    )
    max_tokens: Int | None = Field(
        None, ge=UNLIMITED, description="limit of the answer in tokens; 16 when left out; -1: what the context leaves; 0 only with echo"
    )
    n_predict: Int | None = Field(None, ge=UNLIMITED, description="llama-server's name of max_tokens")
    logprobs: Int | None = Field(
        None, ge=0, le=20, description="return the log-probability of each token and of this many most likely tokens at its position"
    )
    suffix: None = Field(None, description="null only: inserting text before a suffix is not supported")
    echo: bool | None = Field(None, description="return the prompt before the answer; with logprobs, its tokens as well")
    best_of: Int | None = Field(
        None, ge=1, le=16, description="sample this many answers and return the n with the highest mean log-probability; not with stream"
    )

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0.8, "seed": 7}]}
    )
