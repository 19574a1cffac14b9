"""Translates one score into HTML: verdict, gauge, the server's explanation, statistics and the coloured tokens.

Pure, and decides nothing: the verdict and its reasons are the server's. The axes below only say where to draw.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.schemas import Method, Score, ScoredToken, Statistics, Verdict
from ui.view import escaped

VERDICTS: dict[Verdict, str] = {
    "machine": "Likely machine-written",
    "human": "Likely human-written",
    "uncertain": "Uncertain",
    "uncalibrated": "Not calibrated",
    "insufficient": "Too short to judge",
}
METHODS: dict[Method, str] = {
    "binoculars": "Binoculars",
    "fast_detect": "Fast-DetectGPT",
    "perplexity": "Perplexity",
    "log_rank": "Log-rank",
}
CAVEAT = (
    "A score is not a proof. Detectors are often wrong about short texts, writers whose first language is not English, famous or "
    "quoted texts, and machine text that was paraphrased. Never decide about a person by this number alone."
)
PART = "·"  # a token that is the rest of a character already shown
HINT = (
    "Coloured by rank: how far down the model’s own list the token stood. The stronger the colour, the more it surprised the model. "
    "Point at a token, or press Tab and use the arrow keys."
)


@dataclass(frozen=True, slots=True)
class Axis:
    """The stretch of a method's scores that is drawn; a score beyond it stands at the end. `powers` draws equal ratios equally far."""

    low: float
    high: float
    powers: bool = False

    def ticks(self) -> list[float]:
        shares = [step / 4 for step in range(5)]
        if self.powers:
            return [self.low * (self.high / self.low) ** share for share in shares]
        return [self.low + (self.high - self.low) * share for share in shares]

    def position(self, score: float, direction: str) -> float:
        """Percent from the left, where the machine-like end is."""
        within = min(max(score, self.low), self.high)
        if self.powers:
            share = math.log(within / self.low) / math.log(self.high / self.low)
        else:
            share = (within - self.low) / (self.high - self.low)
        return 100 * (share if direction == "lower" else 1 - share)


AXES: dict[Method, Axis] = {
    "binoculars": Axis(0.5, 1.5),
    "fast_detect": Axis(-4, 8),
    "perplexity": Axis(1, 10_000, powers=True),
    "log_rank": Axis(0, 6),
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens up to this rank, coloured the same, as in GLTR (arXiv 1906.04043)."""

    top: float
    label: str


BUCKETS = (Bucket(10, "top 10"), Bucket(100, "top 100"), Bucket(1000, "top 1,000"), Bucket(float("inf"), "beyond"))


def report(score: Score, text: str, model: str | None = None) -> str:
    """`text` is what was sent, `model` whose score it is, where several are served. What no scored token covers, its first token among it,
    is shown uncoloured."""
    parts = [_verdict(score, model), _gauge(score), f'<p class="explanation">{escaped(score.explanation)}</p>']
    if score.statistics is not None:
        parts.append(_statistics(score, score.statistics))
    if score.tokens:
        # Offsets count in the text without its invisible characters, which is not on the wire: blanks stand in for the gaps then.
        parts.append(_tokens(score.tokens, " " * len(text) if score.removed_characters else text))
    return f'<section class="report" aria-label="Result">{"".join(parts)}</section>'


def idle() -> str:
    return '<p class="status">Paste a text and press Score. The result appears here.</p>'


def scoring() -> str:
    return '<p class="status busy" role="status">Scoring the text</p>'


def caveat() -> str:
    return f'<p class="caveat">{CAVEAT}</p>'


def _verdict(score: Score, model: str | None) -> str:
    number = "no score" if score.score is None else _number(score.score)
    by = f" by {escaped(model)}" if model is not None else ""
    return (
        f'<div class="verdict"><strong class="badge {score.verdict}">{VERDICTS[score.verdict]}</strong>'
        f"<span>{METHODS[score.method]} <b>{number}</b>{by}</span></div>"
    )


def _number(value: float) -> str:
    return f"{value:,.3f}" if abs(value) < 1e6 else f"{value:.2e}"


def _gauge(score: Score) -> str:
    if score.score is None:
        return ""
    axis = AXES[score.method]
    place = axis.position(score.score, score.direction)
    ticks = "".join(_at(axis.position(tick, score.direction), "tick", f"{tick:g}") for tick in axis.ticks())
    beyond = "" if axis.low <= score.score <= axis.high else ", beyond the end of this axis"
    label = f"{METHODS[score.method]} score {_number(score.score)}{beyond}; {score.direction} is more machine-like"
    return (
        f'<div class="gauge" role="img" aria-label="{label}">'
        '<div class="ends"><span>← more machine-like</span><span>more human-like →</span></div>'
        f'<div class="track"><i class="needle" style="left:{place:.1f}%"></i></div>'
        f'<div class="ticks">{ticks}</div></div>'
    )


def _at(place: float, name: str, words: str) -> str:
    """Moved back by its own share of its width, so that neither end sticks out."""
    return f'<span class="{name}" style="left:{place:.1f}%;transform:translateX(-{place:.1f}%)">{words}</span>'


def _statistics(score: Score, means: Statistics) -> str:
    rows = {
        "Scored tokens": f"{score.scored_tokens:,}",
        "Perplexity": _number(means.perplexity),
        "Log-perplexity": f"{means.log_perplexity:.3f}",
        "Mean log-rank": f"{means.mean_log_rank:.3f}",
        "Mean entropy": f"{means.mean_entropy:.3f} nats",
    }
    if means.cross_entropy is not None:
        rows["Cross-entropy"] = f"{means.cross_entropy:.3f}"
    if score.windows > 1:
        rows["Windows"] = f"{score.windows:,}"
    if score.removed_characters:
        rows["Invisible characters removed"] = f"{score.removed_characters:,}"
    return f'<dl class="facts">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows.items())}</dl>'


def _tokens(tokens: Sequence[ScoredToken], text: str) -> str:
    return (
        f'<h3>Tokens</h3><p class="hint">{HINT}</p>{_legend(tokens)}'
        f'<div class="tokens" role="group" aria-label="Scored tokens"><div class="run">{"".join(_run(tokens, text))}</div>'
        '<div class="tip" role="tooltip" id="token-tip" hidden></div></div>'
    )


def _run(tokens: Sequence[ScoredToken], text: str) -> Iterator[str]:
    """Every character once: offsets leave out blanks with some tokenizers, and overlap where a character takes several tokens."""
    end = 0
    for index, token in enumerate(tokens):
        yield _gap(text[end : token.start])
        yield _token(token, token.text[max(end - token.start, 0) :] or PART, 0 if index == 0 else -1)
        end = max(end, token.end)
    yield _gap(text[end:])


def _gap(text: str) -> str:
    return f'<span class="unscored">{_shown(text)}</span>' if text else ""


def _legend(tokens: Sequence[ScoredToken]) -> str:
    counts = Counter(_bucket(token) for token in tokens)
    items = (
        f'<li><span class="key b{index}">{bucket.label}</span> {counts[index] / len(tokens):.0%}</li>'
        for index, bucket in enumerate(BUCKETS)
    )
    return f'<ul class="legend" aria-label="Rank">{"".join(items)}</ul>'


def _bucket(token: ScoredToken) -> int:
    return next(index for index, bucket in enumerate(BUCKETS) if token.rank <= bucket.top)


def _token(token: ScoredToken, text: str, tab_index: int) -> str:
    """One stop of the Tab key for all tokens; the arrow keys move on. The numbers are words for `tokens.js` to show."""
    numbers = f"{token.logprob:.3f} {token.rank} {token.entropy:.3f}"
    return f'<span class="t b{_bucket(token)}" tabindex="{tab_index}" data-n="{numbers}">{_shown(text)}</span>'


def _shown(text: str) -> str:
    return escaped(text.replace("\r\n", "\n")).replace("\n", '<i class="eol">↵</i>\n')
