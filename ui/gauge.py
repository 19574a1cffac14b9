"""Where a score lies between machine and human: an axis for each method, and its drawing with the needle and the border as HTML.

Decides nothing: the axes only say where to draw, and the border is the server's.
"""

import math
from dataclasses import dataclass

from app.schemas import Direction, Method

METHODS: dict[Method, str] = {
    "binoculars": "Binoculars",
    "likelihood_ratio": "Likelihood ratio",
    "fast_detect": "Fast-DetectGPT",
    "perplexity": "Perplexity",
    "log_rank": "Log-rank",
}


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

    def position(self, score: float, direction: Direction) -> float:
        """Percent from the left, where the machine-like end is."""
        within = min(max(score, self.low), self.high)
        if self.powers:
            share = math.log(within / self.low) / math.log(self.high / self.low)
        else:
            share = (within - self.low) / (self.high - self.low)
        return 100 * (share if direction == "lower" else 1 - share)


AXES: dict[Method, Axis] = {
    "binoculars": Axis(0.5, 1.5),
    "likelihood_ratio": Axis(-0.5, 0.5),
    "fast_detect": Axis(-4, 8),
    "perplexity": Axis(1, 10_000, powers=True),
    "log_rank": Axis(0, 6),
}


def number(value: float) -> str:
    return f"{value:,.3f}" if abs(value) < 1e6 else f"{value:.2e}"


def gauge(method: Method, score: float, direction: Direction, threshold: float | None) -> str:
    axis = AXES[method]
    ticks = "".join(_at(axis.position(tick, direction), "tick", f"{tick:g}") for tick in axis.ticks())
    beyond = "" if axis.low <= score <= axis.high else ", beyond the end of this axis"
    known = "" if threshold is None else f"; the border of a machine verdict is {number(threshold)}"
    label = f"{METHODS[method]} score {number(score)}{beyond}; {direction} is more machine-like{known}"
    named, line = ("", "") if threshold is None else _border(axis.position(threshold, direction), threshold)
    return (
        f'<div class="gauge" role="img" aria-label="{label}">'
        f'<div class="ends"><span>← more machine-like</span><span>more human-like →</span></div>{named}'
        f'<div class="track">{line}<i class="needle" style="left:{axis.position(score, direction):.1f}%"></i></div>'
        f'<div class="ticks">{ticks}</div></div>'
    )


def small(method: Method, score: float, direction: Direction) -> str:
    """The place on the same axis, to stand before a line of text."""
    return (
        f'<span class="track" aria-hidden="true"><i class="needle" style="left:{AXES[method].position(score, direction):.1f}%"></i></span>'
    )


def _border(place: float, threshold: float) -> tuple[str, str]:
    name = f'<div class="names">{_at(place, "tick", f"machine’s border {number(threshold)}")}</div>'
    return name, f'<i class="border" style="left:{place:.1f}%"></i>'


def _at(place: float, name: str, words: str) -> str:
    """Moved back by its own share of its width, so that neither end sticks out."""
    return f'<span class="{name}" style="left:{place:.1f}%;transform:translateX(-{place:.1f}%)">{words}</span>'
