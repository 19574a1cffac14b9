"""Where a score lies among the calibration's human and machine texts, as an inline SVG with text around it. Pure; decides nothing.

The shapes stretch with the page, so every label is HTML beside them. The machine-like end is on the left, as on the gauge.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from app.schemas import Distribution, Score
from ui.markup import escape_html
from ui.score.gauge import METHOD_NAMES, label
from ui.score.numbers import format_score

WIDTH, HEIGHT = 600, 120  # of the drawing's own coordinates
NO_PLOT = "The calibration of this model was made before distributions were kept, so there is no picture of where other texts lie."


def plot_html(score: Score, value: float) -> str:
    """Blank without a calibration; a sentence for one without a distribution."""
    if score.distribution is None:
        return f'<p class="hint">{NO_PLOT}</p>' if score.threshold is not None else ""
    return _figure(Drawn(score.distribution, score.direction == "lower"), score, value)


class Drawn:
    """A distribution on the page: 0 is the left, the machine-like end, 1 the right."""

    def __init__(self, distribution: Distribution, lower_is_machine: bool) -> None:
        self.edges, self.method, self.tokens = distribution.edges, distribution.method, distribution.tokens
        self.lower = lower_is_machine
        self.human, self.machine = (self._from_left(counts) for counts in (distribution.human, distribution.machine))
        self.top = max(*shares(self.human), *shares(self.machine))

    def _from_left(self, counts: Sequence[int]) -> list[int]:
        return list(counts) if self.lower else list(reversed(counts))

    def place(self, value: float) -> float:
        """From 0 to 1. Within a bin, as far as the value is between its edges."""
        bins = len(self.edges) - 1
        number = min(max(bisect_right(self.edges, value) - 1, 0), bins - 1)
        low, high = self.edges[number], self.edges[number + 1]
        fraction = (number + min(max((value - low) / (high - low), 0.0), 1.0)) / bins
        return fraction if self.lower else 1 - fraction

    def beyond(self, counts: Sequence[int], value: float) -> float:
        """The share of texts that are at least as machine-like as the value."""
        position = self.place(value) * len(counts)
        whole = int(position)
        part = counts[whole] * (position - whole) if whole < len(counts) else 0.0
        return (sum(counts[:whole]) + part) / max(sum(counts), 1)

    def is_outside(self, value: float) -> bool:
        return not self.edges[0] <= value <= self.edges[-1]


def shares(counts: Sequence[int]) -> list[float]:
    total = max(sum(counts), 1)
    return [count / total for count in counts]


def _figure(drawn: Drawn, score: Score, value: float) -> str:
    human, machine = sum(drawn.human), sum(drawn.machine)
    threshold = score.threshold
    line = "" if threshold is None else _line(drawn.place(threshold), "limit")
    names = label(100 * drawn.place(value), f"this text {format_score(value)}")
    limit = "" if threshold is None else label(100 * drawn.place(threshold), f"machine threshold {format_score(threshold)}")
    sentence = _sentence(drawn, value)
    return (
        f'<figure class="plot" aria-label="Where this text lies">'
        f'<ul class="legend" aria-label="Curves"><li><span class="swatch human"></span> {human:,} human texts</li>'
        f'<li><span class="swatch machine"></span> {machine:,} machine texts</li>'
        f"<li>{escape_html(drawn.tokens)} tokens long, as this one</li></ul>"
        '<div class="ends"><span>← more machine-like</span><span>more human-like →</span></div>'
        f'<div class="names here">{names}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{METHOD_NAMES[drawn.method]}: {sentence}">'
        f"{HATCH}{_curve(drawn.human, drawn.top, 'human')}{_curve(drawn.machine, drawn.top, 'machine')}{line}"
        f"{_line(drawn.place(value), 'this')}</svg>"
        f'<div class="ticks">{"".join(_ticks(drawn))}</div><div class="names">{limit}</div>'
        f"<figcaption>{sentence}</figcaption></figure>"
    )


HATCH = (
    '<defs><pattern id="machine-hatch" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<line x1="0" y1="0" x2="0" y2="8" class="hatch"/></pattern></defs>'
)


def _curve(counts: Sequence[int], top: float, side: str) -> str:
    """Steps, one a bin; the area below them is filled."""
    step = WIDTH / len(counts)
    heights = [HEIGHT - (HEIGHT - 4) * share / top for share in shares(counts)]
    points = " ".join(f"{step * number:.1f},{height:.1f} {step * (number + 1):.1f},{height:.1f}" for number, height in enumerate(heights))
    return f'<polygon class="{side}" points="0,{HEIGHT} {points} {WIDTH},{HEIGHT}"/><polyline class="{side}" points="{points}"/>'


def _line(place: float, name: str) -> str:
    x = WIDTH * place
    return f'<line class="{name}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}"/>'


def _ticks(drawn: Drawn) -> Iterator[str]:
    bins = len(drawn.edges) - 1
    for number in range(5):
        edge = drawn.edges[number * bins // 4]
        yield label(100 * drawn.place(edge), f"{edge:.3g}")


def _sentence(drawn: Drawn, value: float) -> str:
    human, machine = (_of_hundred(drawn.beyond(counts, value)) for counts in (drawn.human, drawn.machine))
    end = " It lies beyond the end of the picture." if drawn.is_outside(value) else ""
    return (
        f"{human[:1].upper()}{human[1:]} of 100 human texts and {machine} of 100 machine texts of this length are at least as machine-like "
        f"as this one.{end}"
    )


def _of_hundred(share: float) -> str:
    return "fewer than 1" if share < 0.01 else "more than 99" if share > 0.99 else f"about {100 * share:.0f}"
