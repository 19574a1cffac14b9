"""The scored text as HTML: its tokens coloured by rank as in GLTR, or a list of its sentences or passages, each with a small gauge.

Token and sentence offsets index the text as it was sent, so that text is shown, every character once. Pure; decides nothing.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.schemas import PassageScore, Score, SentenceScore, TokenScore, Verdict, WarningCode
from ui.markup import escape_html
from ui.score.gauge import METHOD_NAMES, small_gauge_html
from ui.score.numbers import format_score

CONTINUATION_MARK = "·"  # shown for a token whose character an earlier token already shows
TOKENS_HINT = (
    "Colours show how predictable each token was to this model, not who wrote it: its rank among the tokens that the model expected there. "
    "Point at a token to see its numbers, or press Tab and use the arrow keys."
)
SENTENCES_HINT = "One sentence alone says little: read these as hints about where to look, not as verdicts."

PASSAGES_HINT = "Each part of the text, judged as if it stood alone: this shows where a text changes."
VERDICTS: dict[Verdict, str] = {
    "machine": "reads like machine text",
    "human": "reads like human text",
    "uncertain": "cannot tell",
    "uncalibrated": "not calibrated",
    "insufficient": "too short",
}
WARNED: dict[WarningCode, str] = {
    "not_english": "no English prose",
    "code": "program code",
    "table": "a table",
    "list": "a list",
    "verse": "verse",
    "repeated": "repeats itself",
    "memorised": "known by heart",
}  # of a passage without a verdict


@dataclass(frozen=True, slots=True)
class Bucket:
    """The ranks up to `max_rank`, above the bucket before; drawn in one colour, as in GLTR (arXiv 1906.04043)."""

    max_rank: float
    label: str


BUCKETS = (
    Bucket(10, "top 10: expected"),
    Bucket(100, "top 100: likely"),
    Bucket(1000, "top 1,000: unlikely"),
    Bucket(float("inf"), "beyond the top 1,000: surprising"),
)


def passages_html(score: Score, passages: Sequence[PassageScore], text: str) -> str:
    items = "".join(_passage_item(score, passage, text) for passage in passages)
    return f'<p class="hint">{PASSAGES_HINT}</p><ol class="sentences" tabindex="0" aria-label="Scored passages">{items}</ol>'


def _passage_item(score: Score, passage: PassageScore, text: str) -> str:
    content = text_html(text[passage.start : passage.end].strip())
    verdict = WARNED[passage.warnings[0]] if passage.warnings else VERDICTS[passage.verdict]
    gauge = "" if passage.score is None else small_gauge_html(score.method, passage.score, score.direction)
    value = "no score" if passage.score is None else format_score(passage.score)
    return (
        f'<li><span class="place">{gauge}<b>{value}</b><small>{_token_count(passage.tokens)}</small>'
        f'<strong class="badge {passage.verdict}">{verdict}</strong></span><span class="words">{content}</span></li>'
    )


def sentences_html(score: Score, sentences: Sequence[SentenceScore], text: str) -> str:
    items = "".join(_sentence_item(score, sentence, text) for sentence in sentences)
    return (
        f'<p class="hint">The {METHOD_NAMES[score.method]} score of each. {SENTENCES_HINT}</p>'
        f'<ol class="sentences" tabindex="0" aria-label="Scored sentences">{items}</ol>'
    )


def _sentence_item(score: Score, sentence: SentenceScore, text: str) -> str:
    content = text_html(text[sentence.start : sentence.end].strip())
    if sentence.score is None:
        return f'<li><span class="place">no score</span><span class="words">{content}</span></li>'
    count = _token_count(sentence.tokens)
    mean = "" if sentence.logprob is None else f", mean log-probability {sentence.logprob:.3f}"
    return (
        f'<li title="{count}{mean}"><span class="place">{small_gauge_html(score.method, sentence.score, score.direction)}'
        f'<b>{format_score(sentence.score)}</b><small>{count}</small></span><span class="words">{content}</span></li>'
    )


def _token_count(tokens: int) -> str:
    return f"{tokens:,} token{'' if tokens == 1 else 's'}"


def tokens_html(tokens: Sequence[TokenScore], text: str) -> str:
    return (
        f'<p class="hint">{TOKENS_HINT}</p>{_legend_html(tokens)}'
        f'<div class="tokens" role="group" aria-label="Scored tokens"><div class="run">{"".join(_token_spans(tokens, text))}</div>'
        '<div class="tip" role="tooltip" id="token-tip" hidden></div></div>'
    )


def _token_spans(tokens: Sequence[TokenScore], text: str) -> Iterator[str]:
    """Shows every character once. Text between tokens was not scored; tokens overlap where one character takes several of them."""
    end = 0  # of the text shown so far
    for index, token in enumerate(tokens):
        yield _unscored_span(text[end : token.start])
        yield _token_span(token, text[max(end, token.start) : token.end], 0 if index == 0 else -1)
        end = max(end, token.end)
    yield _unscored_span(text[end:])


def _unscored_span(text: str) -> str:
    return f'<span class="unscored">{text_html(text)}</span>' if text else ""


def _legend_html(tokens: Sequence[TokenScore]) -> str:
    counts = Counter(_bucket_index(token) for token in tokens)
    items = (
        f'<li><span class="key b{index}">{bucket.label}</span> {counts[index] / len(tokens):.0%}</li>'
        for index, bucket in enumerate(BUCKETS)
    )
    return f'<ul class="legend" aria-label="Rank">{"".join(items)}</ul>'


def _bucket_index(token: TokenScore) -> int:
    return next(index for index, bucket in enumerate(BUCKETS) if token.rank <= bucket.max_rank)


def _token_span(token: TokenScore, text: str, tab_index: int) -> str:
    """One token. `tokens.js` shows the attributes in a tooltip.

    `tab_index` is 0 for the first token and -1 for the rest: Tab stops once, the arrow keys move on.
    `data-n`: log-probability, rank and entropy. `data-r`: the text that was scored, if normalization changed what was sent. `data-a`: the
    likeliest tokens with their log-probabilities, as JSON, if they were asked for.
    """
    numbers = f"{token.logprob:.3f} {token.rank} {token.entropy:.3f}"
    scored_as = f' data-r="{escape_html(token.text)}"' if text != token.text else ""
    expected = f' data-a="{_alternatives(token)}"' if token.alternatives else ""
    content = text_html(text) or CONTINUATION_MARK
    return f'<span class="t b{_bucket_index(token)}" tabindex="{tab_index}" data-n="{numbers}"{scored_as}{expected}>{content}</span>'


def _alternatives(token: TokenScore) -> str:
    pairs = [[each.text, round(each.logprob, 3)] for each in token.alternatives or ()]
    return escape_html(json.dumps(pairs, ensure_ascii=False, separators=(",", ":")))


def text_html(text: str) -> str:
    """Escapes text and marks its line ends and invisible characters. The characters themselves stay, so that the text can be copied."""
    if text.isprintable():
        return escape_html(text)
    return "".join(_character_html(character) for character in text.replace("\r\n", "\n"))


def _character_html(character: str) -> str:
    """Invisible characters get an element of their own, which keeps bidirectional controls from affecting the text around them."""
    if character == "\n":
        return '<i class="eol">↵</i>\n'
    category = unicodedata.category(character)
    if category == "Cf" or (category == "Cc" and not character.isspace()):
        return f'<i class="unseen" title="U+{ord(character):04X}, not visible">{character}</i>'
    return escape_html(character)
