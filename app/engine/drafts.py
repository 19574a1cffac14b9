"""Drafts: tokens that are expected to follow in an answer, and run in the same step as the token before them.

Sampling is a function of (seed, position), so a draft changes no answer: each place is drawn by its own noise, the tokens that equal their
draft are kept with the one drawn behind them, the others are as if they had never been run. Known as speculative decoding (arXiv
2211.17192), here with an exact match instead of a rejection. Policy only: no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from app.engine.acceptance import Acceptance, FirstGuess
from app.engine.budget import StepBudget
from app.engine.lookup import Match, OwnText
from app.engine.request import Generate
from app.engine.slot import Slot

if TYPE_CHECKING:
    from app.engine.grammar import Choices, GrammarState, LookAhead

MAX_TOKENS = 32  # of the draft of one slot; where many decode, twice their share of the rows
MAX_ROWS = 64  # of the drafts of a step
DOUBT = 0.9  # a chance that is not certain counts for so much of itself: it is an estimate


@dataclass(frozen=True, slots=True)
class Draft:
    """Of a slot. `choices` are what its grammar leaves after its last token, and after each of `tokens`; empty without a grammar."""

    tokens: tuple[int, ...] = ()
    choices: "tuple[Choices, ...]" = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """What may be drafted for a slot: the tokens that its grammar forces, then those of a match. `chances`: that each is kept."""

    slot: Slot
    ahead: "LookAhead | None"
    expected: tuple[int, ...]
    chances: list[float]

    def draft(self, count: int) -> Draft:
        """The first `count` tokens, or fewer where the grammar does not allow the next."""
        if self.ahead is None:
            return Draft(self.expected[:count])
        forced = len(self.ahead.tokens)
        for token in self.expected[: max(0, count - forced)]:
            if not self.ahead.follow(token):
                break
        kept = min(count, len(self.ahead.tokens))
        return Draft(tuple(self.ahead.tokens[:kept]), tuple(self.ahead.choices[: kept + 1]))


class Source:
    """What is expected to follow in the text of one request."""

    def __init__(self, request: Generate, prior: Acceptance) -> None:
        self._text = OwnText(request.prompt, request.prediction)
        self._acceptance, self._of_all = Acceptance(prior), prior
        self._latest: tuple[int, Match] | None = None  # tokens that came before the match, and the match

    def expect(self, tokens: Sequence[int], ahead: Sequence[int], limit: int) -> tuple[tuple[int, ...], list[float]]:
        """At most `limit` tokens expected behind `tokens` and `ahead`, and their chances."""
        self._text.update(tokens)
        match = self._text.match(ahead, limit)
        self._latest = None if match is None else (len(ahead), match)
        return ((), []) if match is None else (match.tokens, self._acceptance.chances(match.length, len(match.tokens)))

    def record(self, sampled: Sequence[int]) -> None:
        """`sampled` came behind the tokens of the latest call."""
        if self._latest is not None:
            ahead, match = self._latest
            for acceptance in (self._acceptance, self._of_all):
                acceptance.record(match.length, match.tokens, sampled[ahead:])


class Drafter:
    """Drafts for the slots that decode, as far as they make the step's tokens per second more. No search is drafted."""

    def __init__(
        self, budget: StepBudget, grammars: "Mapping[str, GrammarState]", end_tokens_of: Callable[[Generate], frozenset[int]]
    ) -> None:
        """`grammars` are the states of answers, by the ids of their requests."""
        self.is_on = True
        self.create_source: Callable[[Generate, Acceptance], Source] = Source
        self._budget, self._grammars, self._end_tokens_of = budget, grammars, end_tokens_of
        self._sources: dict[str, Source] = {}  # by the request's id
        self._acceptance = Acceptance(FirstGuess())

    def draft(self, slots: Sequence[Slot]) -> dict[Slot, Draft]:
        """`slots` are all that decode in the step. A slot whose answer follows a grammar has a draft, though it may be empty."""
        if not self.is_on or not slots:
            return {}
        most = min(MAX_TOKENS, 2 * MAX_ROWS // len(slots))
        proposals = [self._propose(slot, slot.request, most) for slot in slots if slot.request is not None and not slot.group]
        counts = draft_counts([proposal.chances for proposal in proposals], len(slots), self._budget)
        drafts = {proposal.slot: proposal.draft(count) for proposal, count in zip(proposals, counts, strict=True)}
        return {slot: draft for slot, draft in drafts.items() if draft.tokens or draft.choices}

    def record(self, id: str, sampled: Sequence[int]) -> None:
        """The step has given the answer these tokens."""
        if id in self._sources:
            self._sources[id].record(sampled)

    def forget(self, id: str) -> None:
        self._sources.pop(id, None)

    def clear(self) -> None:
        self._sources.clear()

    def _propose(self, slot: Slot, request: Generate, most: int) -> Proposal:
        limit = min(most, request.max_tokens - slot.generated - 1)
        ahead = self._grammars[request.id].look_ahead() if request.grammar is not None else None
        if ahead is not None:
            ahead.follow_certain(limit)
        forced = [] if ahead is None else ahead.tokens
        if request.id not in self._sources:
            self._sources[request.id] = self.create_source(request, self._acceptance)
        expected, chances = self._sources[request.id].expect(slot.tokens, forced, limit - len(forced))
        ends = self._end_tokens_of(request)
        kept = tuple(takewhile(lambda token: token not in ends, expected))  # the token before an end token is the last that is run
        return Proposal(slot, ahead, kept, [1.0] * len(forced) + chances[: len(kept)])


def draft_counts(chances: Sequence[Sequence[float]], slots: int, budget: StepBudget) -> list[int]:
    """How many tokens of each proposal to draft, so that the expected tokens of the step by its duration are most. `chances` are, for each
    proposal, those that its first, second, ... token is kept; `slots` decode. Beside others a step lasts at most `budget.stretch` times as
    long as without drafts.
    """
    counts, base_s = [0] * len(chances), budget.costs.step_s(slots)
    if not base_s:
        return counts
    likeliest = sorted((-chance, place, index) for index, each in enumerate(chances) for place, chance in enumerate(each))[:MAX_ROWS]
    tokens, best, best_rate = float(slots), 0, slots / base_s
    for rows, (chance, _, _) in enumerate(likeliest, 1):
        tokens -= chance if chance == -1.0 else DOUBT * chance
        step_s = budget.costs.step_s(slots + rows) or base_s
        if slots > 1 and step_s > budget.stretch * base_s:
            break
        if tokens / step_s > best_rate:
            best, best_rate = rows, tokens / step_s
    for _, _, index in likeliest[:best]:
        counts[index] += 1
    return counts
