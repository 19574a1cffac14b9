"""The scored text as HTML: its sentences as a list with their places on the gauge, and its tokens coloured by rank.

Offsets index the text as it was sent, so that is what is shown, every character once. Pure; decides nothing.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.schemas import Score, SentenceScore, TokenScore
from ui.gauge import METHODS, number, small
from ui.messages import escaped

PART = "·"  # a token that is the rest of a character already shown
HINT = (
    "Coloured by rank: how far down the model’s own list the token stood. The stronger the colour, the more it surprised the model. "
    "Point at a token, or press Tab and use the arrow keys."
)
APART = "One sentence alone says little: read these as hints about where to look, not as verdicts."


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens up to this rank, coloured the same, as in GLTR (arXiv 1906.04043)."""

    top: float
    label: str


BUCKETS = (Bucket(10, "top 10"), Bucket(100, "top 100"), Bucket(1000, "top 1,000"), Bucket(float("inf"), "beyond"))


def sentences(score: Score, scored: Sequence[SentenceScore], text: str) -> str:
    items = "".join(_sentence(score, sentence, text) for sentence in scored)
    return (
        f'<h3>Sentences</h3><p class="hint">{METHODS[score.method]} of each, on the axis above. {APART}</p>'
        f'<ol class="sentences" tabindex="0" aria-label="Scored sentences">{items}</ol>'
    )


def _sentence(score: Score, sentence: SentenceScore, text: str) -> str:
    words = shown(text[sentence.start : sentence.end].strip())
    if sentence.score is None:
        return f'<li><span class="place">no score</span><span class="words">{words}</span></li>'
    count = f"{sentence.tokens:,} token{'' if sentence.tokens == 1 else 's'}"
    mean = "" if sentence.logprob is None else f", mean log-probability {sentence.logprob:.3f}"
    return (
        f'<li title="{count}{mean}"><span class="place">{small(score.method, sentence.score, score.direction)}'
        f'<b>{number(sentence.score)}</b><small>{count}</small></span><span class="words">{words}</span></li>'
    )


def tokens(scored: Sequence[TokenScore], text: str) -> str:
    return (
        f'<h3>Tokens</h3><p class="hint">{HINT}</p>{_legend(scored)}'
        f'<div class="tokens" role="group" aria-label="Scored tokens"><div class="run">{"".join(_run(scored, text))}</div>'
        '<div class="tip" role="tooltip" id="token-tip" hidden></div></div>'
    )


def _run(scored: Sequence[TokenScore], text: str) -> Iterator[str]:
    """Every character once: offsets leave out what was not scored, and overlap where a character takes several tokens."""
    end = 0
    for index, token in enumerate(scored):
        yield _gap(text[end : token.start])
        yield _token(token, text[max(end, token.start) : token.end], 0 if index == 0 else -1)
        end = max(end, token.end)
    yield _gap(text[end:])


def _gap(text: str) -> str:
    return f'<span class="unscored">{shown(text)}</span>' if text else ""


def _legend(scored: Sequence[TokenScore]) -> str:
    counts = Counter(_bucket(token) for token in scored)
    items = (
        f'<li><span class="key b{index}">{bucket.label}</span> {counts[index] / len(scored):.0%}</li>'
        for index, bucket in enumerate(BUCKETS)
    )
    return f'<ul class="legend" aria-label="Rank">{"".join(items)}</ul>'


def _bucket(token: TokenScore) -> int:
    return next(index for index, bucket in enumerate(BUCKETS) if token.rank <= bucket.top)


def _token(token: TokenScore, text: str, tab_index: int) -> str:
    """One stop of the Tab key for all tokens; the arrow keys move on. The numbers, and what was scored in place of the text as sent
    where that differs, are words for `tokens.js` to show."""
    numbers = f"{token.logprob:.3f} {token.rank} {token.entropy:.3f}"
    read = f' data-r="{escaped(token.text)}"' if text != token.text else ""
    return f'<span class="t b{_bucket(token)}" tabindex="{tab_index}" data-n="{numbers}"{read}>{shown(text) or PART}</span>'


def shown(text: str) -> str:
    """Line ends and invisible characters as marks; the character itself stays, in a box of its own that keeps its effects in."""
    if text.isprintable():
        return escaped(text)
    return "".join(_letter(letter) for letter in text.replace("\r\n", "\n"))


def _letter(letter: str) -> str:
    if letter == "\n":
        return '<i class="eol">↵</i>\n'
    if unicodedata.category(letter) == "Cf" or (unicodedata.category(letter) == "Cc" and not letter.isspace()):
        return f'<i class="unseen" title="U+{ord(letter):04X}, not visible">{letter}</i>'
    return escaped(letter)
