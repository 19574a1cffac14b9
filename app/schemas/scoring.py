"""Scores: the texts that are asked about and what is said of each."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from app.schemas.wire import TIER, Tier, Usage, UsedTier, Wire

Method = Literal["binoculars", "fast_detect", "perplexity", "log_rank"]
Verdict = Literal["machine", "human", "uncertain", "uncalibrated", "insufficient"]
MIN_SCORED_TOKENS = 64


class ScoreRequest(Wire):
    model: str | None = Field(None, description="name of a served model; the only one when left out")
    input: str | Annotated[list[str], Field(min_length=1, max_length=64)] = Field(description="a text, or a list of texts")
    method: Method | None = Field(None, description="binoculars where an observer is loaded, else fast_detect, when left out")
    return_tokens: bool = Field(False, description="give each token with its log-probability, rank and entropy")
    service_tier: Tier | None = Field(None, description=TIER)

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
    service_tier: UsedTier | None = None
