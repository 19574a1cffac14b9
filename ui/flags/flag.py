"""What a visitor says about a verdict or an answer: one line of the file of flags. Knows no file and no HTTP."""

import hashlib
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_REASON = 500
MAX_TEXT = 500_000
Label = Literal["human", "machine", "good", "bad", "withdrawn"]


class Flag(BaseModel):
    """`human`, `machine`: who wrote a scored text, as far as the visitor knows. `good`, `bad`: the thumbs of a chat's answer,
    `withdrawn` one that was taken back.

    Of lines with the same `id` the last one counts: a visitor changed their mind, or added to it.
    `hash` is the SHA-256 of the text, in UTF-8. `text` is there only if the visitor ticked that it may be kept.
    """

    model_config = ConfigDict(extra="forbid")

    about: Literal["score", "chat"]
    label: Label
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    id: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    model: str = Field(max_length=200)
    verdict: str | None = Field(None, max_length=40)
    method: str | None = Field(None, max_length=40)
    score: float | None = None
    threshold: float | None = None
    reason: str = Field("", max_length=MAX_REASON)
    text: str | None = Field(None, max_length=MAX_TEXT)

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if self.text is not None and hash_of(self.text) != self.hash:
            raise ValueError("the text has changed since; score it again, then send this")
        return self


def hash_of(text: str) -> str:
    """What is kept of a text whose visitor did not ask to keep it: it tells whether two flags are about the same text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
