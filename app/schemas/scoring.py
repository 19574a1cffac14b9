"""Bodies of /v1/score: the texts to score, and the scores and verdict of each."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from app.schemas.wire import TIER, TIMEOUT, Int, Tier, Timeout, Usage, UsedTier, Wire, misfit

Method = Literal["combined", "binoculars", "likelihood_ratio", "fast_detect", "perplexity", "log_rank"]
Verdict = Literal["machine", "human", "uncertain", "uncalibrated", "insufficient"]
Granularity = Literal["none", "sentence", "token"]
Direction = Literal["lower", "higher"]
Normalisation = Literal["zero_width", "control", "homoglyph", "compatibility", "quotes", "white_space"]
WarningCode = Literal["short", "truncated", "code", "table", "list", "verse", "not_english", "repeated", "memorised"]
MIN_SCORED_TOKENS = 64
MAX_TEXTS = 256
MAX_ALTERNATIVES = 10
CODE_POINTS = "counted in Unicode code points; in JavaScript index Array.from(text)"
EXAMPLE_TEXT = "Once upon a time there was a king who had three sons."


def _one_text(value: object) -> object:
    if isinstance(value, list):
        raise ValueError("Input should be a valid string; a list of texts goes into texts")
    return value


def _many_texts(value: object) -> object:
    if isinstance(value, str):
        raise ValueError("Input should be a valid list; one text goes into text")
    return value


Interval = Annotated[tuple[float, float], Field(strict=False)]  # a list in JSON


class ScoreRequest(Wire):
    """One text or many. Each is scored by itself: the other texts of the request do not affect its score."""

    model: str | None = Field(None, description="name of a served model; the default model when left out")
    text: Annotated[str | None, BeforeValidator(_one_text)] = Field(None, description="a text to score")
    texts: Annotated[Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)] | None, BeforeValidator(_many_texts)] = Field(
        None, description="a list of texts, instead of text"
    )
    methods: Annotated[list[Method], Field(fail_fast=True, min_length=1)] | None = Field(
        None,
        description="all together cost one forward pass; the verdict uses the first calibrated one; the model's best method when left out",
    )
    granularity: Granularity = Field("none", description="also score each sentence, or each sentence and each token")
    calibration: Literal["auto", "none"] = Field("auto", description="none returns scores without a verdict")
    target_fpr: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="false-positive rate, the share of human texts called machine text; must be a calibrated rate; 1% when left out",
    )
    top_tokens: Int = Field(
        0,
        ge=0,
        le=MAX_ALTERNATIVES,
        description="so many of the likeliest tokens beside each token (`alternatives`); needs granularity token",
    )
    distributions: bool = Field(
        False, description="also return how the calibration's human and machine texts of this length score (`distribution`)"
    )
    service_tier: Tier | None = Field(None, description=TIER)
    timeout_s: Timeout | None = Field(None, description=TIMEOUT)
    user: str | None = Field(
        None, max_length=256, description="your own id for the end user; requests of users in security.banned_users are refused"
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": EXAMPLE_TEXT, "granularity": "token"},
                {"texts": [EXAMPLE_TEXT, "To be, or not to be."], "methods": ["fast_detect", "log_rank"]},
            ]
        }
    )

    @model_validator(mode="after")
    def _some_text(self) -> "ScoreRequest":
        if (self.text is None) == (self.texts is None):
            raise ValueError("send either text or texts")
        return self

    @model_validator(mode="after")
    def _tokens_for_alternatives(self) -> "ScoreRequest":
        if self.top_tokens and self.granularity != "token":
            raise misfit("top_tokens", 'top_tokens needs granularity "token"')
        return self

    @property
    def all(self) -> list[str]:
        return [self.text] if self.text is not None else self.texts or []


class Probability(Wire):
    """The probability that a machine wrote the text if half of all texts were by machines. The interval is a bootstrap over groups."""

    value: float
    interval: Interval


class Span(Wire):
    """Characters `[start, end)` of the text as it was sent."""

    start: int = Field(description=f"its first character, {CODE_POINTS}")
    end: int = Field(description=f"the character behind its last one, {CODE_POINTS}")


class SentenceScore(Span):
    tokens: int = Field(description="number of scored tokens that start in the sentence")
    score: float | None = Field(
        description="score of these tokens alone, by the verdict's method: a hint, far less reliable than the score of the whole text"
    )
    place: int | None = Field(None, description="its place among the text's sentences, 1 for the one that is most like a machine's")
    logprob: float | None = Field(description="mean log-probability of its tokens")


class PassageScore(Span):
    """A part of a long text, judged as a text of its own."""

    tokens: int = Field(description="number of scored tokens")
    score: float | None = Field(description="by the verdict's method")
    verdict: Verdict
    p_machine: Probability | None = None
    warnings: list[WarningCode] = Field([], description="why this passage has no verdict, where its score would give one")


class Alternative(Wire):
    text: str
    logprob: float = Field(description="natural logarithm of the probability the model gave this token, <= 0")


class TokenScore(Span):
    text: str
    logprob: float = Field(description="natural logarithm of the probability the model gave this token, <= 0")
    rank: int = Field(description="rank of the token among the model's predictions; 1 is the most likely")
    entropy: float = Field(description="entropy of the model's prediction at this position, in nats")
    alternatives: list[Alternative] | None = Field(None, description="the likeliest tokens at this position, likeliest first")


class Statistics(Wire):
    """Means over the scored tokens, in natural logarithms. `cross_entropy` is null without an observer."""

    log_perplexity: float
    mean_log_rank: float
    mean_entropy: float
    cross_entropy: float | None = None
    perplexity: float = Field(description="exp(log_perplexity)")


class Contribution(Wire):
    """What one statistic adds to the log-odds of a question of `combined`: above 0 speaks for a machine. `question` is the one that leads:
    `likely`, is the text too likely for a person? `drawn`, is it too close to what the model itself draws? `pair`, is it likelier to the
    model than to its observer? Its constant and the other questions are in the score, too, so contributions do not add up to it.
    """

    question: Literal["likely", "drawn", "pair"]
    statistic: str
    meaning: str
    value: float
    log_odds: float


class Rate(Wire):
    """A false-positive rate: the target, and the rate measured on `n` human texts with its exact 95% interval. Null where the source of the
    thresholds does not publish it.
    """

    target: float | None
    measured: float | None
    interval: Interval | None
    n: int | None
    tokens: str = Field(description="lengths of the human texts, in scored tokens")
    found: float | None = Field(None, description="share of the calibration's machine texts of this length beyond the threshold")
    n_machine: int | None = Field(None, description="number of those machine texts")


class Distribution(Wire):
    """How the texts of the calibration score, as counts: `human[i]` human texts and `machine[i]` machine texts score from `edges[i]` up to
    `edges[i + 1]`. Texts beyond the first and the last edge are counted in the bin next to it.
    """

    method: Method
    tokens: str = Field(description="lengths of the texts, in scored tokens")
    edges: list[float] = Field(description="on the scale of the method's scores, rising")
    human: list[int]
    machine: list[int]


class Warning(Wire):
    code: WarningCode
    message: str


class Score(Wire):
    """The scores of one text. `direction` says whether lower or higher scores are more like machine text."""

    index: int
    object: Literal["score"] = "score"
    scores: dict[Method, float | None] = Field(description="null if no token could be scored")
    method: Method = Field(description="the method that the verdict uses")
    direction: Direction
    verdict: Verdict
    explanation: str
    p_machine: Probability | None = None
    threshold: float | None = Field(None, description="the threshold of the verdict `machine`, on the scale of the method's scores")
    false_positive_rate: Rate | None = None
    distribution: Distribution | None = Field(
        None, description="if asked for, and if the calibration that applies has it: files made before it was kept lack it"
    )
    scored_tokens: int
    windows: int = Field(description="number of windows in which the text was scored; 1 if it is short")
    truncated: bool = Field(description="only the beginning was scored, because the text needs more windows than the limit")
    normalisations: dict[Normalisation, int] = Field(
        description="number of characters that were removed or replaced before scoring, by kind"
    )
    warnings: list[Warning]
    statistics: Statistics | None
    contributions: list[Contribution] | None = Field(None, description="what the score of `combined` comes from, the weightiest first")
    passages: list[PassageScore] | None = Field(None, description="of a text of several windows: where it changes")
    sentences: list[SentenceScore] | None = None
    tokens: list[TokenScore] | None = None


class ScoreFailure(Wire):
    """Takes the place of a text that could not be scored; the other texts are not affected."""

    index: int
    object: Literal["error"] = "error"
    message: str
    code: str


class UsedCalibration(Wire):
    """The calibration that the verdicts use, or the reason why there is none."""

    source: str | None
    reason: str | None = Field(description="why there is no calibration; null if there is one")


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
