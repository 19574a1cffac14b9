"""The passages of a long text as bars along it: how each reads, the highest and the mean. Pure; the numbers are the server's."""

from collections.abc import Sequence

from app.schemas import PassageScore, Score
from ui.score.numbers import format_score, percent

WIDTH, HEIGHT = 600, 90


def curve_html(score: Score, passages: Sequence[PassageScore], length: int) -> str:
    """Bars of the probability of each passage where the calibration gives one, else of its score. Blank for fewer than two passages.

    `length`: characters of the text. The list of passages says the same in words.
    """
    chances = [passage.p_machine.value if passage.p_machine else None for passage in passages]
    by_chance = any(chance is not None for chance in chances)
    values = chances if by_chance else [passage.score for passage in passages]
    known = [value for value in values if value is not None]
    if len(passages) < 2 or not known:
        return ""
    low, high = (0.0, 1.0) if by_chance else (min(0.0, *known), max(0.0, *known))
    bars = "".join(_bar(passage, value, (low, high), length) for passage, value in zip(passages, values, strict=True) if value is not None)
    return (
        f'<figure class="curve"><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{_summary(score, values, by_chance)}">{_half() if by_chance else ""}{bars}</svg>'
        f'<div class="ends"><span>beginning of the text</span><span>end</span></div>'
        f"<figcaption>{_summary(score, values, by_chance)}</figcaption></figure>"
    )


def _bar(passage: PassageScore, value: float, limits: tuple[float, float], length: int) -> str:
    low, high = limits
    x, width = WIDTH * passage.start / max(length, 1), WIDTH * (passage.end - passage.start) / max(length, 1)
    height = max((HEIGHT - 4) * (value - low) / ((high - low) or 1), 1.5)
    kind = passage.verdict if passage.verdict in {"machine", "human"} else "unclear"
    return f'<rect class="{kind}" x="{x:.1f}" width="{max(width - 1, 1):.1f}" y="{HEIGHT - height:.1f}" height="{height:.1f}"/>'


def _half() -> str:
    return f'<line class="limit" x1="0" x2="{WIDTH}" y1="{HEIGHT / 2 + 2:.1f}" y2="{HEIGHT / 2 + 2:.1f}"/>'


def _summary(score: Score, values: Sequence[float | None], by_chance: bool) -> str:
    known = [value for value in values if value is not None]
    most = min(known) if score.direction == "lower" and not by_chance else max(known)
    where, mean = values.index(most) + 1, sum(known) / len(known)
    what, show = ("Probability of machine text", percent) if by_chance else ("Score", format_score)
    skipped = len(values) - len(known)
    rest = f" {skipped} {'passage has' if skipped == 1 else 'passages have'} none." if skipped else ""
    return (
        f"{what} of each of the {len(values)} passages: the most machine-like is passage {where} with {show(most)}, the mean is "
        f"{show(mean)}.{rest}"
    )
