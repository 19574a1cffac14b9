"""Draws the losses of a fine-tuning job as an inline SVG, in the styles of the plots on the System tab. Pure: numbers in, HTML out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ui.jobs.client import Event
from ui.markup import escape_html

WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 548, 10, 150  # of the area that is drawn in
MOST = 500  # points of a line; of more, some are left out
NOTHING_YET = "The curve begins with the first step."
KEY = '<svg class="key" viewBox="0 0 28 8" aria-hidden="true"><path class="line l{style}" d="M1 4H27"/></svg>'
Point = tuple[int, float]  # step, loss


@dataclass(frozen=True, slots=True)
class Losses:
    """`steps` is how many there will be, 0 if that is not known."""

    train: tuple[Point, ...] = ()
    valid: tuple[Point, ...] = ()
    steps: int = 0

    @property
    def last_step(self) -> int:
        return max((step for step, _ in (*self.train, *self.valid)), default=0)


def losses_of(events: Sequence[Event]) -> Losses:
    """The numbers of the metrics events, by step. What is no finite number is left out."""
    rows = [event.data for event in events if event.type == "metrics" and event.data]
    steps = [int(value) for row in rows if (value := _number(row.get("total_steps"))) is not None]
    return Losses(_points(rows, "train_loss"), _points(rows, "valid_loss"), max(steps, default=0))


def curve_html(losses: Losses) -> str:
    lines = {name: points for name, points in (("training", losses.train), ("validation", losses.valid)) if points}
    title = '<figcaption><b>Loss</b> <span class="unit">nats per token, by step</span></figcaption>'
    if not lines:
        return f'<figure class="timeline curve-of-loss">{title}<p class="nothing">{NOTHING_YET}</p></figure>'
    values = [loss for points in lines.values() for _, loss in points]
    axis = Axis(min(values), max(values), max(losses.steps, losses.last_step, 1))
    drawn = "".join(_line(points, axis, style) for style, points in enumerate(lines.values()))
    legend = "".join(
        f"<li>{KEY.format(style=style)}{name} <b>{points[-1][1]:.3f}</b></li>" for style, (name, points) in enumerate(lines.items())
    )
    return (
        f'<figure class="timeline curve-of-loss">{title}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape_html(_label(losses, lines))}">{axis.html()}{drawn}</svg><ul class="lines">{legend}</ul></figure>'
    )


@dataclass(frozen=True, slots=True)
class Axis:
    """Where losses and steps lie in the drawing. The scale of the losses begins at a round number below the smallest."""

    low: float
    high: float
    steps: int

    @property
    def spacing(self) -> float:
        """Of the lines of the grid: 1, 2 or 5 times a power of ten, so that there are three to seven of them."""
        span = max(self.high - self.low, abs(self.high) * 0.02, 1e-6)
        power = 10.0 ** math.floor(math.log10(span / 3))
        return max(step * power for step in (1, 2, 5) if step * power <= span / 2)

    @property
    def ticks(self) -> list[float]:
        first = math.floor(self.low / self.spacing + 1e-9)
        last = max(math.ceil(self.high / self.spacing - 1e-9), first + 1)
        return [step * self.spacing for step in range(first, last + 1)]

    def x(self, step: int) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / self.steps, 1)

    def y(self, loss: float) -> float:
        ticks = self.ticks
        return round(BOTTOM - (BOTTOM - TOP) * (loss - ticks[0]) / (ticks[-1] - ticks[0]), 1)

    def html(self) -> str:
        digits = max(0, -math.floor(math.log10(self.spacing)))
        rows = "".join(
            f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{self.y(loss)}" y2="{self.y(loss)}"/>'
            f'<text x="{LEFT - 6}" y="{self.y(loss) + 4}" text-anchor="end">{loss:.{digits}f}</text>'
            for loss in self.ticks
        )
        return rows + "".join(_step_tick(step, self.x(step), step == self.steps) for step in (0, self.steps // 2, self.steps))


def _step_tick(step: int, x: float, is_last: bool) -> str:
    return f'<text x="{x}" y="{BOTTOM + 18}" text-anchor="{"end" if is_last else "middle"}">{step:,}</text>'


def _label(losses: Losses, lines: dict[str, tuple[Point, ...]]) -> str:
    """What a screen reader says in place of the drawing."""
    ends = "; ".join(f"{name} from {points[0][1]:.3f} to {points[-1][1]:.3f}" for name, points in lines.items())
    return f"Loss up to step {losses.last_step:,} of {max(losses.steps, losses.last_step):,}: {ends}"


def _line(points: Sequence[Point], axis: Axis, style: int) -> str:
    """Dots where they do not run together."""
    drawn = [*points[: -1 : max(len(points) // MOST, 1)], points[-1]]
    path = "".join(f"{'L' if index else 'M'}{axis.x(step)} {axis.y(loss)}" for index, (step, loss) in enumerate(drawn))
    few = points if len(points) <= 40 else ()
    dots = "".join(f'<circle class="dot l{style}" cx="{axis.x(step)}" cy="{axis.y(loss)}" r="2.5"/>' for step, loss in few)
    return f'<path class="line l{style}" d="{path}"/>{dots}'


def _points(rows: Sequence[dict[str, object]], name: str) -> tuple[Point, ...]:
    return tuple(sorted(_pairs(rows, name)))


def _pairs(rows: Sequence[dict[str, object]], name: str) -> Iterator[Point]:
    for row in rows:
        step, loss = _number(row.get("step")), _number(row.get(name))
        if step is not None and loss is not None:
            yield int(step), loss


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
