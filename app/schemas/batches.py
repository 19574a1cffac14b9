"""Bodies of `/v1/batches`, and the lines of their files: OpenAI's, with `/v1/score` as one more endpoint."""

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field

from app.schemas.files import MAX_FILE_S, MIN_FILE_S
from app.schemas.wire import Int, Wire, at_most

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/score"]
ENDPOINTS: tuple[str, ...] = get_args(Endpoint)
BatchStatus = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED: tuple[BatchStatus, ...] = ("failed", "completed", "expired", "cancelled")
MAX_PAIRS = 16
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=MAX_PAIRS), at_most(MAX_PAIRS)
]


class OutputExpiresAfter(Wire):
    anchor: Literal["created_at"]
    seconds: Int = Field(ge=MIN_FILE_S, le=MAX_FILE_S, description="after the file with the answers was made")


class BatchRequest(Wire):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input_file_id": "file-abc123", "endpoint": "/v1/score", "completion_window": "24h"}]}
    )

    input_file_id: str = Field(max_length=64, description="a file with the purpose batch: one request a line")
    endpoint: Endpoint = Field(description="the one that every line names as its url")
    completion_window: Literal["24h"] = Field(description="what is not done then ends with the code batch_expired")
    metadata: Metadata | None = Field(None, description=f"up to {MAX_PAIRS} texts, returned with the batch")
    output_expires_after: OutputExpiresAfter | None = None


class BatchCounts(Wire):
    total: int
    completed: int
    failed: int


class BatchProblem(Wire):
    """What is wrong with the input file as a whole, or with a line of it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = Field(None, description="number of the line, from 1")


class BatchProblems(Wire):
    object: Literal["list"] = "list"
    data: list[BatchProblem]


class InputDetails(Wire):
    cached_tokens: int


class OutputDetails(Wire):
    reasoning_tokens: int


class BatchUsage(Wire):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Batch(Wire):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = Field(description="the model that the first line names")
    errors: BatchProblems | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = Field(description="the answers; none if no line has one")
    error_file_id: str | None = Field(description="the lines without an answer, and why; none if each has one")
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: BatchUsage | None = Field(description="of all answers, once the batch has ended")
    metadata: dict[str, str] | None


class BatchList(Wire):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class LineError(Wire):
    code: str
    message: str


class LineResponse(Wire):
    status_code: int
    request_id: str
    body: dict[str, Any]


class OutputLine(Wire):
    """A line of a file of answers or errors: exactly one of `response` and `error` is there."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineError | None
