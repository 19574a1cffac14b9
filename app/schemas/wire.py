"""What all bodies share: the strict base class, token counts, errors."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Tier = Literal["auto", "default", "flex"]
UsedTier = Literal["default", "flex"]
TIER = "flex marks batch work: it waits behind interactive requests; auto means default"


class Wire(BaseModel):
    """Base of all bodies. Unknown fields are refused, and so is a value of another type: a quoted number is not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PromptTokensDetails(Wire):
    cached_tokens: int = Field(description="prompt tokens that were not computed again, because the KV cache still held them")


class Usage(Wire):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class ErrorBody(Wire):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Wire):
    error: ErrorBody
