"""Bodies of /v1/embeddings: OpenAI's fields, and how the hidden states of a text become one vector."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from app.schemas.generation import TokenId
from app.schemas.wire import TIER, TIMEOUT, WHOLE, Int, Tier, Timeout, UsedTier, Wire

MAX_INPUTS = 2048
Text = Annotated[str, StringConstraints(min_length=1)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1), WHOLE]
Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_INPUTS)]
TokenIdLists = Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_INPUTS)]


class EmbeddingRequest(Wire):
    """One text or up to 2048, as text or as token ids. The vector of a text does not depend on the others."""

    model: str | None = Field(None, description="name of a served model, see /v1/models; the default model when left out")
    input: Text | Texts | TokenIds | TokenIdLists = Field(description="a text, a list of texts, token ids, or lists of token ids")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="float: a list of numbers, also when left out; base64: the same numbers as float32, little-endian"
    )
    dimensions: Int | None = Field(None, ge=1, description="the model's own size only: vectors are not shortened")
    pooling: Literal["mean", "last"] = Field(
        "mean", description="mean of the hidden states of all tokens, or the hidden state of the last token"
    )
    service_tier: Tier | None = Field(None, description=TIER)
    timeout_s: Timeout | None = Field(None, description=TIMEOUT)
    user: str | None = Field(
        None, max_length=256, description="your own id for the end user; requests of users in security.banned_users are refused"
    )
    safety_identifier: str | None = Field(None, max_length=256, description="OpenAI's newer name of user")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "Once upon a time there was a fox."},
                {"input": ["A fox stole the cheese.", "The crow sang."], "encoding_format": "base64", "pooling": "last"},
            ]
        }
    )

    @property
    def items(self) -> dict[str, str | list[int]]:
        """Each text or list of token ids, by the name of its field."""
        if isinstance(self.input, str):
            return {"input": self.input}
        lists = [item for item in self.input if not isinstance(item, int)]
        ids = [item for item in self.input if isinstance(item, int)]
        return {"input": ids} if ids else {f"input.{index}": item for index, item in enumerate(lists)}


class Embedding(Wire):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="a vector of length 1; a string with encoding_format base64")


class EmbeddingUsage(Wire):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Wire):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    service_tier: UsedTier | None = None
