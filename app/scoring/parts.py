"""The scores of a text's parts: passages with verdicts of their own, sentences by their place, tokens. Offsets index the text as sent."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.engine.events import Columns, slice_columns
from app.errors import InvalidRequest
from app.schemas import (
    MIN_SCORED_TOKENS,
    Alternative,
    Distribution,
    Method,
    PassageScore,
    Probability,
    SentenceScore,
    TokenScore,
    Verdict,
)
from app.scoring.calibration import Judgement
from app.scoring.detector import ScoreOptions
from app.scoring.methods import method_score
from app.scoring.prepare import PreparedText
from app.scoring.sentences import sentences
from app.scoring.thresholds import sign_of
from app.tokenizer import Tokenizer

MIN_PLACED_TOKENS = 8  # of a sentence that is given a place among the others: the score of a shorter one says nothing


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on a score, and the judgement behind it, if there is one."""

    verdict: Verdict
    judgement: Judgement | None = None

    @property
    def probability(self) -> Probability | None:
        known = self.judgement
        if known is None or known.p_machine is None or known.p_low is None or known.p_high is None:
            return None
        return Probability(value=known.p_machine, interval=(known.p_low, known.p_high))


def judge(options: ScoreOptions, method: Method, value: float | None, count: int) -> Judged:
    """The verdict on `count` scored tokens. Raises `InvalidRequest` for a target rate that is not calibrated for so many."""
    if value is None or count < MIN_SCORED_TOKENS:
        return Judged("insufficient")
    calibration = options.choice.calibration if method in options.choice.methods else None
    judgement = calibration.judge(method, count, value, options.target_fpr) if calibration else None
    return Judged(judgement.verdict, judgement) if judgement else Judged("uncalibrated")


def passage_scores(method: Method, options: ScoreOptions, columns: Columns, prepared: PreparedText) -> list[PassageScore]:
    """One for each window of the text, judged by the tokens that are scored in it."""
    scores = []
    for window in prepared.job.windows:
        part, tokens = slice_columns(columns, window.scored_from - 1, window.end - 1), window.end - window.scored_from
        value = method_score(method, part, options.combined)
        judged = _judge_part(options, method, value, tokens)
        start, end = prepared.text.original_span(
            prepared.encoded.offsets[window.scored_from][0], prepared.encoded.offsets[window.end - 1][1]
        )
        scores.append(PassageScore(start=start, end=end, tokens=tokens, score=value, verdict=judged.verdict, p_machine=judged.probability))
    return scores


def _judge_part(options: ScoreOptions, method: Method, value: float | None, tokens: int) -> Judged:
    """As a part that is shorter than the whole may lack the target rate: then by the calibrated rate nearest to 1%."""
    try:
        return judge(options, method, value, tokens)
    except InvalidRequest:
        return judge(replace(options, target_fpr=None), method, value, tokens)


def sentence_scores(method: Method, options: ScoreOptions, columns: Columns, prepared: PreparedText) -> list[SentenceScore]:
    """Scores each sentence from the tokens that begin in it; a blank before a word counts to the word."""
    scores: list[SentenceScore] = []
    token_starts = list(prepared.encoded.token_starts())[1 : len(columns.logprob) + 1]
    content = prepared.text.content
    scored_end = prepared.encoded.offsets[-1][1] if prepared.encoded.offsets else 0
    token = 0  # the next token without a sentence
    for start, end in sentences(content[:scored_end] if prepared.truncated else content):
        first = token
        while token < len(token_starts) and token_starts[token] < end:
            token += 1
        part, tokens = slice_columns(columns, first, token), token - first
        mean = sum(part.logprob) / tokens if tokens else None
        sent_start, sent_end = prepared.text.original_span(start, end)
        value = method_score(method, part, options.combined)
        scores.append(SentenceScore(start=sent_start, end=sent_end, tokens=tokens, score=value, place=None, logprob=mean))
    return _placed(scores, sign_of(method))


def _placed(scores: list[SentenceScore], sign: int) -> list[SentenceScore]:
    """`sign` makes higher scores more like a machine's."""
    order = sorted(
        (index for index, score in enumerate(scores) if score.score is not None and score.tokens >= MIN_PLACED_TOKENS),
        key=lambda index: -sign * (scores[index].score or 0),
    )
    places = {index: place for place, index in enumerate(order, 1)}
    return [score.model_copy(update={"place": places.get(index)}) for index, score in enumerate(scores)]


def token_scores(columns: Columns, prepared: PreparedText, tokenizer: Tokenizer | None = None) -> list[TokenScore]:
    """A token's text is the normalized text that was scored."""
    tops = [_alternatives(top, tokenizer) for top in columns.top] if columns.top and tokenizer else [None] * len(columns.logprob)
    rows = zip(prepared.encoded.offsets[1:], columns.logprob, columns.rank, columns.mean, tops, strict=True)
    scores = []
    for (start, end), logprob, rank, mean, top in rows:
        sent_start, sent_end = prepared.text.original_span(start, end)
        text = prepared.text.content[start:end]
        scores.append(TokenScore(text=text, start=sent_start, end=sent_end, logprob=logprob, rank=rank, entropy=-mean, alternatives=top))
    return scores


def _alternatives(top: Sequence[tuple[int, float]], tokenizer: Tokenizer) -> list[Alternative]:
    return [Alternative(text=tokenizer.piece(token).text, logprob=logprob) for token, logprob in top]


def distribution_of(options: ScoreOptions, method: Method, count: int) -> Distribution | None:
    """How texts of the calibration score that have about as many tokens; None if it was not asked for, or the calibration lacks it."""
    calibration = options.choice.calibration if options.distributions else None
    bucket = calibration.bucket(method, count) if calibration else None
    if bucket is None or bucket.histogram is None:
        return None
    counts = bucket.histogram
    return Distribution(method=method, tokens=bucket.name, edges=list(counts.edges), human=list(counts.human), machine=list(counts.machine))
