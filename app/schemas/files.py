"""Bodies of `/v1/files`: OpenAI's."""

from typing import Literal

from pydantic import Field

from app.schemas.wire import Wire

Purpose = Literal["batch", "batch_output", "fine-tune", "fine-tune-results"]
MIN_FILE_S, MAX_FILE_S = 3600, 30 * 86_400  # how long after its creation a file may expire


class FileObject(Wire):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix time in seconds")
    expires_at: int | None = None
    filename: str
    purpose: Purpose = Field(
        description="batch_output: the answers or errors of a batch; fine-tune-results: the losses of a fine-tuning job"
    )
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(Wire):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Wire):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
