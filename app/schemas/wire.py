"""What every body has in common: strictness, token counts, errors."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Tier = Literal["auto", "default", "flex"]
UsedTier = Literal["default", "flex"]
TIER = "flex marks batch work: it waits behind what people wait for; auto is default"


class Wire(BaseModel):
    """Strict: a number in quotes or a `true` for 1 is refused, not read as what it might have meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PromptTokensDetails(Wire):
    cached_tokens: int = Field(description="prompt tokens that did not have to be computed, as their keys and values were still there")


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
