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
from app.engine.counts import MAX_ROWS, DrawCosts, Draws, draft_counts
from app.engine.lanes import Drawing
from app.engine.lookup import Match, OwnText
from app.engine.proposer import Proposer, Reader
from app.engine.request import Generate
from app.engine.slot import Slot

if TYPE_CHECKING:
    from app.engine.draftmodel import DraftModel
    from app.engine.grammar import Choices, GrammarState, LookAhead

MAX_TOKENS = 32  # of the draft of one slot; where many decode, twice their share of the rows


@dataclass(frozen=True, slots=True)
class Draft:
    """Of a slot. `choices` are what its grammar leaves after its last token, and after each of `tokens`; empty without a grammar."""

    tokens: tuple[int, ...] = ()
    choices: "tuple[Choices, ...]" = ()


@dataclass(slots=True)
class Proposal:
    """What may be drafted for a slot: the tokens that its grammar forces, then those of a match, or those that `reader` is to draw.
    `chances`: that each is kept.
    """

    slot: Slot
    ahead: "LookAhead | None"
    expected: tuple[int, ...]
    chances: list[float]
    forced: int  # tokens that the grammar forces
    reader: Reader | None = None

    @property
    def draws(self) -> Draws | None:
        return None if self.reader is None else Draws(self.forced, self.reader.unread)

    def drawing(self, request: Generate, count: int, ends: frozenset[int]) -> Drawing | None:
        """What is to be drawn for the first `count` tokens, if that is anything."""
        if self.reader is None or count <= self.forced:
            return None
        text = [*self.slot.tokens, *([] if self.ahead is None else self.ahead.tokens)]
        return Drawing(request, self.reader.lane, text, len(self.slot.tokens), count - self.forced, ends, self.ahead)

    def draft(self, count: int) -> Draft:
        """The first `count` tokens, or fewer where the grammar does not allow the next."""
        if self.ahead is None:
            return Draft(self.expected[:count])
        for token in self.expected[: max(0, count - self.forced)]:
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
        if self._latest is None:
            return
        ahead, match = self._latest
        for acceptance in (self._acceptance, self._of_all):
            acceptance.record(match.length, match.tokens, sampled[ahead:])
        goes_on = not ahead and match.tokens[: len(sampled)] == tuple(sampled)  # in a step that is launched ahead nothing is looked for
        self._latest = (0, match.behind(len(sampled))) if goes_on else None


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
        self.proposer: Proposer | None = None  # of a draft model

    def add_model(self, model: "DraftModel") -> None:
        """Let `model` draw tokens where it is likelier to be right than the request's own text."""
        self.proposer = Proposer(model, self._budget)

    def draft(self, slots: Sequence[Slot]) -> dict[Slot, Draft]:
        """`slots` are all that decode in the step. A slot whose answer follows a grammar has a draft, though it may be empty."""
        if not self.is_on or not slots:
            return {}
        most = min(MAX_TOKENS, 2 * MAX_ROWS // len(slots))
        readers = {} if self.proposer is None else self.proposer.ready(slots)
        proposals = [
            self._propose(slot, slot.request, most, readers.get(slot)) for slot in slots if slot.request is not None and not slot.group
        ]
        costs = None if self.proposer is None else DrawCosts(self.proposer.model.costs, [proposal.draws for proposal in proposals])
        counts = draft_counts([proposal.chances for proposal in proposals], len(slots), self._budget, costs).tokens
        if self.proposer is not None:
            self._draw(self.proposer, proposals, counts)
        drafts = {proposal.slot: proposal.draft(count) for proposal, count in zip(proposals, counts, strict=True)}
        return {slot: draft for slot, draft in drafts.items() if draft.tokens or draft.choices}

    def record(self, id: str, sampled: Sequence[int]) -> None:
        """The step has given the answer these tokens."""
        if id in self._sources:
            self._sources[id].record(sampled)
        if self.proposer is not None:
            self.proposer.record(id, sampled)

    def forget(self, id: str) -> None:
        self._sources.pop(id, None)
        if self.proposer is not None:
            self.proposer.forget(id)

    def clear(self) -> None:
        self._sources.clear()
        if self.proposer is not None:
            self.proposer.clear()

    def _draw(self, proposer: Proposer, proposals: Sequence[Proposal], counts: Sequence[int]) -> None:
        """Let the draft model draw the tokens of which it is to be known."""
        drawings = {}
        for proposal, count in zip(proposals, counts, strict=True):
            request = proposal.slot.request
            drawing = None if request is None else proposal.drawing(request, count, self._end_tokens_of(request))
            if drawing is not None:
                drawings[proposal.slot] = drawing
        proposer.draw(list(drawings.values()))
        for proposal in proposals:
            if proposal.slot in drawings and proposal.ahead is None:
                proposal.expected = tuple(drawings[proposal.slot].drawn.values())

    def _propose(self, slot: Slot, request: Generate, most: int, reader: Reader | None) -> Proposal:
        """From the request's own text, or the draft model, whichever is likelier to be right. `reader`: the model has read the request."""
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
        certain, guessed = [1.0] * len(forced), chances[: len(kept)]
        drawn = [] if reader is None or self.proposer is None else self.proposer.chances(slot, reader, limit - len(forced))
        if drawn and drawn[0] > max(guessed, default=0.0):
            return Proposal(slot, ahead, (), certain + drawn, len(forced), reader)
        return Proposal(slot, ahead, kept, certain + guessed, len(forced))
