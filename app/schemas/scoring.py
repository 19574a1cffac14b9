"""Scores: the texts that are asked about, and what is said of each."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from app.schemas.wire import TIER, Tier, Usage, UsedTier, Wire

Method = Literal["binoculars", "likelihood_ratio", "fast_detect", "perplexity", "log_rank"]
Verdict = Literal["machine", "human", "uncertain", "uncalibrated", "insufficient"]
Granularity = Literal["none", "sentence", "token"]
Direction = Literal["lower", "higher"]
Change = Literal["zero_width", "control", "homoglyph", "compatibility", "quotes", "white_space"]
Caution = Literal["short", "not_english", "repeated", "memorised", "truncated"]
MIN_SCORED_TOKENS = 64
MOST_TEXTS = 256
ONCE = "Once upon a time there was a king who had three sons."


class ScoreRequest(Wire):
    """One text or many; each is scored by itself, whatever it is sent with."""

    model: str | None = Field(None, description="name of a served model; the default one when left out")
    text: str | None = Field(None, description="a text")
    texts: Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)] | None = Field(None, description="or a list of texts")
    methods: Annotated[list[Method], Field(min_length=1)] | None = Field(
        None, description="all of them cost one pass; the verdict rests on the first that is calibrated. The model's best one when left out"
    )
    granularity: Granularity = Field("none", description="what else is scored: sentences, or sentences and tokens")
    calibration: Literal["auto", "none"] = Field("auto", description="none gives scores without a verdict")
    target_fpr: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of human texts that may be taken for machine ones; a calibrated rate, 1% when left out",
    )
    service_tier: Tier | None = Field(None, description=TIER)
    user: str | None = Field(None, max_length=256, description="who asks; security.banned_users refuses some")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": ONCE, "granularity": "token"},
                {"texts": [ONCE, "To be, or not to be."], "methods": ["fast_detect", "log_rank"]},
            ]
        }
    )

    @model_validator(mode="after")
    def _some_text(self) -> "ScoreRequest":
        if (self.text is None) == (self.texts is None):
            raise ValueError("give either text or texts")
        return self

    @property
    def all(self) -> list[str]:
        return [self.text] if self.text is not None else self.texts or []


class Span(Wire):
    """Characters `[start, end)` of the text as it was sent."""

    start: int
    end: int


class SentenceScore(Span):
    tokens: int = Field(description="scored tokens that begin in it")
    score: float | None = Field(description="the verdict's method on these tokens alone: a hint, far less sure than the whole text's")
    logprob: float | None = Field(description="mean of its tokens'")


class TokenScore(Span):
    text: str
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


class Rate(Wire):
    """A false-positive rate: asked for, and as measured on `n` human texts with its exact 95% interval. Null: published without it."""

    target: float | None
    measured: float | None
    interval: tuple[float, float] | None
    n: int | None
    tokens: str = Field(description="lengths of the texts it was measured on, in scored tokens")


class Probability(Wire):
    """That a machine wrote the text, had as many machine as human texts been sent; the interval by drawing groups of texts anew."""

    value: float
    interval: tuple[float, float]


class Warning(Wire):
    code: Caution
    message: str


class Score(Wire):
    """One text's scores. `direction` says which way machine text lies: `lower` or `higher` scores look more like a machine's."""

    index: int
    object: Literal["score"] = "score"
    scores: dict[Method, float | None] = Field(description="null where fewer than one token could be scored")
    method: Method = Field(description="what the verdict rests on")
    direction: Direction
    verdict: Verdict
    explanation: str
    p_machine: Probability | None = None
    threshold: float | None = Field(None, description="the border of the verdict `machine` in the method's scores")
    false_positive_rate: Rate | None = None
    scored_tokens: int
    windows: int = Field(description="overlapping windows the text was scored in; 1 when it fits the context")
    truncated: bool = Field(description="only the beginning was scored: the text is longer than the most windows there may be")
    normalisations: dict[Change, int] = Field(description="characters that were left out or replaced before scoring, by kind")
    warnings: list[Warning]
    statistics: Statistics | None
    sentences: list[SentenceScore] | None = None
    tokens: list[TokenScore] | None = None


class ScoreFailure(Wire):
    """Stands at the index of a text that could not be scored; the others are not affected."""

    index: int
    object: Literal["error"] = "error"
    message: str
    code: str


class UsedCalibration(Wire):
    """Which measurement the verdicts rest on; where there is none, why."""

    source: str | None
    reason: str | None = Field(description="why there is none; null where there is one")


class Timing(Wire):
    total_s: float


class ScoreResponse(Wire):
    id: str
    object: Literal["score.list"] = "score.list"
    created: int
    model: str
    observer: str | None
    quantize: str
    dtype: str
    system_fingerprint: str
    calibration: UsedCalibration
    data: list[Score | ScoreFailure]
    usage: Usage
    timing: Timing
    service_tier: UsedTier | None = None
