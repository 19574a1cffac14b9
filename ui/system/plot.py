"""Draws series as an inline SVG: lines over the last minutes, told apart by colour and by dashes, with units, ticks and a legend.

Pure: numbers in, HTML out. Colours and dashes are classes of `system.css`, so that they follow dark mode.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ui.markup import escape_html
from ui.system.history import KEPT_S, History, Point, Series, latest
from ui.system.units import count_text, number_text

WIDTH, HEIGHT = 360, 168
LEFT, RIGHT, TOP, BOTTOM = 56, 350, 8, 132  # of the area that is drawn in
MINUTE_S = 60.0
LINES = 6  # styles; further lines begin again with the first
NOTHING_YET = "Collecting: the line begins in a moment."


@dataclass(frozen=True, slots=True)
class Plot:
    """`unit` stands in the title and in the label. `text` writes a value, on the axis and in the legend. `empty` says why no line is
    there. The axis goes up to `least` at least.
    """

    title: str
    unit: str
    series: Series
    text: Callable[[float], str] = number_text
    empty: str = NOTHING_YET
    least: float = 1.0
    span_s: float = KEPT_S

    def html(self) -> str:
        drawn = {name: points for name, points in self.series.items() if any(value is not None for _, value in points)}
        title = f'<figcaption><b>{escape_html(self.title)}</b> <span class="unit">{escape_html(self.unit)}</span></figcaption>'
        if not drawn:
            return f'<figure class="timeline">{title}<p class="nothing">{escape_html(self.empty)}</p></figure>'
        top = nice_top(max([self.least, *_values(drawn)]))
        lines = "".join(_line(points, top, self.span_s, index % LINES) for index, points in enumerate(drawn.values()))
        return (
            f'<figure class="timeline">{title}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape_html(self.label(drawn))}">'
            f"{_y_axis(top, self.text)}{_x_axis(self.span_s)}{lines}</svg>{self._legend(drawn)}</figure>"
        )

    def label(self, drawn: Series) -> str:
        """What a screen reader says in place of the drawing."""
        now = ", ".join(f"{name} {self._now(points)}" for name, points in drawn.items())
        return f"{self.title}, {self.unit}, over the last {count_text(round(self.span_s / MINUTE_S), 'minute')}; now: {now}"

    def _now(self, points: Sequence[Point]) -> str:
        value = latest(points)
        return "none" if value is None else self.text(value)

    def _legend(self, drawn: Series) -> str:
        items = "".join(
            f'<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true"><path class="line l{index % LINES}" d="M1 4H27"/></svg>'
            f"{escape_html(name)} <b>{escape_html(self._now(points))}</b></li>"
            for index, (name, points) in enumerate(drawn.items())
        )
        return f'<ul class="lines">{items}</ul>'


def span_of(history: History) -> float:
    """How many seconds the plots show: one minute at first, later all that is kept."""
    return MINUTE_S if not history or history[-1].at_s - history[0].at_s <= MINUTE_S else KEPT_S


def nice_top(value: float) -> float:
    """The smallest of 1, 2, 4, 5, 10 times a power of ten that is not below `value`: its halves are short numbers, too."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 10) if step * power >= value * (1 - 1e-9))


def _values(series: Series) -> Iterator[float]:
    return (value for points in series.values() for _, value in points if value is not None)


def _y(value: float, top: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * min(max(value / top, 0.0), 1.0), 1)


def _x(at_s: float, span_s: float) -> float:
    return round(RIGHT + (RIGHT - LEFT) * max(at_s, -span_s) / span_s, 1)


def _line(points: Sequence[Point], top: float, span_s: float, style: int) -> str:
    """A path with a gap wherever nothing is known, and a dot where the neighbours of a value are not known."""
    path, dots = "", ""
    for index, (at_s, value) in enumerate(points):
        if value is None:
            continue
        begins = index == 0 or points[index - 1][1] is None
        path += f"{'M' if begins else 'L'}{_x(at_s, span_s)} {_y(value, top)}"
        if begins and (index + 1 == len(points) or points[index + 1][1] is None):
            dots += f'<circle class="dot l{style}" cx="{_x(at_s, span_s)}" cy="{_y(value, top)}" r="2.5"/>'
    return f'<path class="line l{style}" d="{path}"/>{dots}'


def _y_axis(top: float, text: Callable[[float], str]) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{_y(value, top)}" y2="{_y(value, top)}"/>'
        f'<text x="{LEFT - 6}" y="{_y(value, top) + 4}" text-anchor="end">{escape_html(text(value))}</text>'
        for value in (0.0, top / 2, top)
    )


def _x_axis(span_s: float) -> str:
    """Ticks at whole minutes, or at quarters of the only one."""
    step_s, unit_s, unit = (MINUTE_S, MINUTE_S, "minutes") if span_s > MINUTE_S else (MINUTE_S / 4, 1.0, "seconds")
    ticks = "".join(
        f'<text x="{_x(-step * step_s, span_s)}" y="{BOTTOM + 16}" text-anchor="middle">{step * step_s / unit_s:.0f}</text>'
        for step in range(1, round(span_s / step_s) + 1)
    )
    now = f'<text x="{RIGHT}" y="{BOTTOM + 16}" text-anchor="end">now</text>'
    return f'{ticks}{now}<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 32}" text-anchor="middle">{unit} ago</text>'
