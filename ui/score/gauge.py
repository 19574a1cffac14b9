"""Draws a score between machine-like and human-like as HTML: an axis for each method, a needle, and the threshold.

Decides nothing: the axes only say where to draw, and the threshold comes from the server.
"""

import math
from dataclasses import dataclass

from app.schemas import Direction, Method
from ui.score.numbers import format_score

METHOD_NAMES: dict[Method, str] = {
    "combined": "Combined",
    "binoculars": "Binoculars",
    "likelihood_ratio": "Likelihood ratio",
    "fast_detect": "Fast-DetectGPT",
    "perplexity": "Perplexity",
    "log_rank": "Log-rank",
}


@dataclass(frozen=True, slots=True)
class Axis:
    """The range of scores that is drawn; a score outside it is drawn at the nearer end. On a `logarithmic` axis equal ratios are
    equally far apart."""

    low: float
    high: float
    logarithmic: bool = False

    def ticks(self) -> list[float]:
        fractions = [step / 4 for step in range(5)]
        if self.logarithmic:
            return [self.low * (self.high / self.low) ** fraction for fraction in fractions]
        return [self.low + (self.high - self.low) * fraction for fraction in fractions]

    def position(self, score: float, direction: Direction) -> float:
        """Where the score is drawn, in percent from the left. The machine-like end is on the left."""
        clamped = min(max(score, self.low), self.high)
        if self.logarithmic:
            fraction = math.log(clamped / self.low) / math.log(self.high / self.low)
        else:
            fraction = (clamped - self.low) / (self.high - self.low)
        return 100 * (fraction if direction == "lower" else 1 - fraction)


AXES: dict[Method, Axis] = {
    "combined": Axis(-6, 6),
    "binoculars": Axis(0.5, 1.5),
    "likelihood_ratio": Axis(-0.5, 0.5),
    "fast_detect": Axis(-4, 8),
    "perplexity": Axis(1, 10_000, logarithmic=True),
    "log_rank": Axis(0, 6),
}


def gauge_html(method: Method, score: float, direction: Direction, threshold: float | None) -> str:
    axis = AXES[method]
    ticks = "".join(label(axis.position(tick, direction), f"{tick:g}") for tick in axis.ticks())
    outside = "" if axis.low <= score <= axis.high else ", beyond the end of this axis"
    limit = "" if threshold is None else f"; the threshold of a machine verdict is {format_score(threshold)}"
    aria_label = f"{METHOD_NAMES[method]} score {format_score(score)}{outside}; {direction} is more machine-like{limit}"
    name, line = ("", "") if threshold is None else _threshold_html(axis.position(threshold, direction), threshold)
    return (
        f'<div class="gauge" role="img" aria-label="{aria_label}">'
        f'<div class="ends"><span>← more machine-like</span><span>more human-like →</span></div>{name}'
        f'<div class="track">{line}<i class="needle" style="left:{axis.position(score, direction):.1f}%"></i></div>'
        f'<div class="ticks">{ticks}</div></div>'
    )


def small_gauge_html(method: Method, score: float, direction: Direction) -> str:
    """The needle on the same axis without ticks and labels, for one line of text."""
    return (
        f'<span class="track" aria-hidden="true"><i class="needle" style="left:{AXES[method].position(score, direction):.1f}%"></i></span>'
    )


def _threshold_html(percent: float, threshold: float) -> tuple[str, str]:
    """The threshold's label above the track, and its line on the track."""
    names = f'<div class="names">{label(percent, f"machine threshold {format_score(threshold)}")}</div>'
    return names, f'<i class="threshold" style="left:{percent:.1f}%"></i>'


def label(percent: float, text: str) -> str:
    """A label at `percent` from the left, shifted back by as many percent of its own width, so that it stays inside at both ends."""
    return f'<span class="tick" style="left:{percent:.1f}%;transform:translateX(-{percent:.1f}%)">{text}</span>'
