"""The answer of /v1/responses: its output items, its token counts, and the options of its request as they were understood."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from app.schemas.answers import ContentLogprob
from app.schemas.items import ItemStatus
from app.schemas.responses import FunctionTool, NamespaceTool, ResponsesToolChoice, TextOptions
from app.schemas.wire import UsedTier, Wire

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(Wire):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[JsonValue] = []
    logprobs: list[ContentLogprob] = Field([], description="empty unless include or top_logprobs ask for them")


class OutputMessage(Wire):
    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputText]


class OutputCall(Wire):
    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str = Field(description="a function_call_output names it")
    name: str
    namespace: str | None = Field(None, exclude_if=lambda namespace: namespace is None, description="that the function is in, if any")
    arguments: str = Field(description="a JSON object, as a string")
    status: ItemStatus = Field(description="incomplete if the answer ended within the call")


class ReasoningText(Wire):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputReasoning(Wire):
    type: Literal["reasoning"] = "reasoning"
    id: str
    summary: list[JsonValue] = []
    content: list[ReasoningText] = Field(description="what a reasoning model thought before its answer")
    status: ItemStatus


OutputItem = Annotated[OutputMessage | OutputCall | OutputReasoning, Field(discriminator="type")]


class InputTokensDetails(Wire):
    cached_tokens: int = Field(description="input tokens that were not computed again, because the KV cache still held them")
    cache_write_tokens: int = Field(description="the other input tokens: they were computed, and the KV cache now holds them")


class OutputTokensDetails(Wire):
    reasoning_tokens: int = Field(description="output tokens that a reasoning model thought")
    accepted_prediction_tokens: int = Field(0, description="as in a chat's usage: output tokens that were drafted")
    rejected_prediction_tokens: int = Field(0, description="as in a chat's usage: tokens that were drafted and are not in the output")


class ResponsesUsage(Wire):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Wire):
    reason: Literal["max_output_tokens"]


class ResponseError(Wire):
    code: Literal["server_error"]
    message: str


class ResponsesAnswer(Wire):
    """The answer, with the options of its request as they were understood."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem]
    usage: ResponsesUsage | None = Field(None, description="null until the answer is complete")
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float = Field(description="as used: the request's, or else the model's default")
    top_p: float = Field(description="as used: the request's, or else the model's default")
    top_logprobs: int
    text: TextOptions
    tools: list[FunctionTool | NamespaceTool]
    tool_choice: ResponsesToolChoice
    service_tier: UsedTier | None
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    system_fingerprint: str = Field(
        description="digest of model, revision and quantization; while it stays the same, the same seed gives the same answer"
    )
    store: Literal[False] = False
    background: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
    reasoning: None = None
    previous_response_id: None = None
