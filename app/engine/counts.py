"""How many tokens to draft, from the chances that they are kept, what a step of so many rows costs, and what the draft model costs.

Pure arithmetic on measured durations.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.engine.budget import StepBudget
from app.engine.costs import RowCosts

MAX_ROWS = 64  # of the drafts of a step
DOUBT = 0.9  # a chance that is not certain counts for so much of itself: it is an estimate


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tokens of each proposal to draft. `saved_s`: seconds by which the step is shorter than steps that give as many without."""

    tokens: list[int]
    saved_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Draws:
    """The draft model draws the tokens of a proposal from place `first` on, and reads `unread` tokens for the first of them."""

    first: int
    unread: int = 1


@dataclass(slots=True)
class DrawCosts:
    """What the draft model takes for the tokens added so far: forwards one after the other, each of all proposals that go on so far.
    `draws` has an entry a proposal, None if its tokens are known; without any, all are.
    """

    costs: RowCosts | None = None
    draws: Sequence[Draws | None] = ()
    seconds: float = 0.0
    _rows: Counter[int] = field(default_factory=Counter)  # of each forward

    def add(self, index: int, place: int) -> None:
        """The token at `place` of proposal `index` is drafted, too, and so are those before it."""
        draws = self.draws[index] if self.draws else None
        if draws is None or place < draws.first or self.costs is None:
            return
        turn, before_s = place - draws.first, 0.0
        if self._rows[turn]:
            before_s = self.costs.step_s(self._rows[turn]) or 0.0
        self._rows[turn] += 1 if turn else draws.unread
        self.seconds += (self.costs.step_s(self._rows[turn]) or 0.0) - before_s


def draft_counts(chances: Sequence[Sequence[float]], slots: int, budget: StepBudget, drawing: DrawCosts | None = None) -> Counts:
    """How many tokens of each proposal to draft, so that the expected tokens of the step by its duration are most. `chances` are, for each
    proposal, those that its first, second, ... token is kept; `slots` decode. Beside others a step lasts at most `budget.stretch` times as
    long as without drafts.
    """
    drawing = DrawCosts() if drawing is None else drawing
    counts, base_s = [0] * len(chances), budget.costs.step_s(slots)
    if not base_s:
        return Counts(counts)
    likeliest = sorted((-chance, place, index) for index, each in enumerate(chances) for place, chance in enumerate(each))[:MAX_ROWS]
    tokens, best, best_rate, saved_s = float(slots), 0, slots / base_s, 0.0
    for rows, (chance, place, index) in enumerate(likeliest, 1):
        tokens -= chance if chance == -1.0 else DOUBT * chance
        drawing.add(index, place)
        step_s = (budget.costs.step_s(slots + rows) or base_s) + drawing.seconds
        if slots > 1 and step_s > budget.stretch * base_s:
            break
        if tokens / step_s > best_rate:
            best, best_rate, saved_s = rows, tokens / step_s, tokens * base_s / slots - step_s
    for _, _, index in likeliest[:best]:
        counts[index] += 1
    return Counts(counts, saved_s)
