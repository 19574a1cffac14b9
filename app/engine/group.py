"""A search in the engine's loop: the slots of one request follow the moves of its state machine, tokens and cache together."""

from collections.abc import Sequence
from typing import Protocol

import torch

from app.engine.detokenizer import PATIENCE, Detokenizer
from app.engine.flat import FlatModel
from app.engine.request import Beams, Contrast, Delta, Event, Generate
from app.engine.sampler import Draw, process
from app.engine.search import BeamSearch, ContrastiveSearch, Move
from app.engine.slot import Slot


class Group(Protocol):
    """`slots` are the request's, the leading one first; rows of `logits` and `hidden` are in their order."""

    def read(self, hidden: torch.Tensor) -> None:
        """Hidden states `[tokens, width]` of the next piece of the prompt."""

    def start(self, slots: Sequence[Slot], logits: torch.Tensor) -> Event | None:
        """The prompt has been read; `logits` `[1, vocab]` are those after it."""

    def advance(self, slots: Sequence[Slot], logits: torch.Tensor, hidden: torch.Tensor) -> Event | None:
        """Each slot's token has been run. The event that is due, if any."""


def group_of(request: Generate, model: FlatModel, ends: frozenset[int]) -> Group:
    if isinstance(request.search, Beams):
        return BeamGroup(request, request.search, model, ends)
    assert isinstance(request.search, Contrast)
    return ContrastGroup(request, request.search, model, ends)


class BeamGroup:
    """Says everything at the end."""

    def __init__(self, request: Generate, search: Beams, model: FlatModel, ends: frozenset[int]) -> None:
        self._request, self._model, self._ends = request, model, ends
        self._search = BeamSearch(search, request.max_tokens, ends, self._stopped if request.stop else None)
        self._reach = max((len(word.encode()) for word in request.stop), default=0) + PATIENCE  # tokens a stop string may be spread over
        self._detokenizer: Detokenizer | None = None  # of the leading slot, which is given no token before the search is over

    def read(self, hidden: torch.Tensor) -> None:
        pass

    def start(self, slots: Sequence[Slot], logits: torch.Tensor) -> Event | None:
        self._detokenizer = slots[0].detokenizer
        return self._follow(slots, self._search.start(self._scores(slots[:1], logits)[0]), 0)

    def advance(self, slots: Sequence[Slot], logits: torch.Tensor, hidden: torch.Tensor) -> Event | None:
        return self._follow(slots, self._search.advance(self._scores(slots, logits)), len(self._request.prompt))

    def _stopped(self, tokens: Sequence[int]) -> bool:
        """Whether there is a stop string in the text of these tokens, of which only the last can complete one."""
        assert self._detokenizer is not None
        text = self._detokenizer.read(tokens[-self._reach :])
        return any(word in text for word in self._request.stop)

    def _scores(self, slots: Sequence[Slot], logits: torch.Tensor) -> torch.Tensor:
        draws = [Draw(self._request.sampling, slot.tokens, len(self._request.prompt), self._ends) for slot in slots]
        return process(logits.float().log_softmax(-1), draws)

    def _follow(self, slots: Sequence[Slot], move: Move | None, start: int) -> Event | None:
        if move is None:
            return self._finish(slots[0])
        held = slots[0].length
        _copy(self._model, slots, move, start, held)
        answers = [slots[source].tokens for source in move.sources]
        for slot, tokens, token in zip(slots, answers, move.tokens, strict=True):
            slot.tokens, slot.length = [*tokens, token], held
        return None

    def _finish(self, lead: Slot) -> Event:
        tokens, finish = self._search.best
        lead.tokens, lead.length = list(self._request.prompt), len(self._request.prompt)  # what its cache is sure to hold
        text, count = "", 0
        for count, token in enumerate(tokens, 1):
            shown, ended = lead.push(token, self._ends)
            text += shown
            if ended is not None:
                return Delta(self._request.id, text, count, ended, cached=lead.cached)
        return Delta(self._request.id, text, count, finish, cached=lead.cached)


class ContrastGroup:
    """Each slot holds what has been chosen so far and one candidate for the next token."""

    def __init__(self, request: Generate, search: Contrast, model: FlatModel, ends: frozenset[int]) -> None:
        self._request, self._model, self._ends = request, model, ends
        self._search = ContrastiveSearch(search)
        self._chosen = list(request.prompt)

    def read(self, hidden: torch.Tensor) -> None:
        self._search.read(hidden)

    def start(self, slots: Sequence[Slot], logits: torch.Tensor) -> Event | None:
        move = self._search.start(self._processed(slots[:1], logits)[0])
        self._follow(slots, move, 0, slots[0].length)
        return None

    def advance(self, slots: Sequence[Slot], logits: torch.Tensor, hidden: torch.Tensor) -> Event | None:
        place, move = self._search.advance(self._processed(slots, logits), hidden)
        lead, token, held = slots[0], slots[place].tokens[-1], slots[0].length
        lead.tokens = list(self._chosen)
        text, finish = lead.push(token, self._ends)
        self._chosen.append(token)
        first = len(self._chosen) == len(self._request.prompt) + 1
        if finish is not None:
            lead.length = held - 1  # what its cache holds behind is its own candidate
        else:
            self._follow(slots, move, held - 1, held)
        return Delta(self._request.id, text, 1, finish, cached=lead.cached if first else 0)

    def _processed(self, slots: Sequence[Slot], logits: torch.Tensor) -> torch.Tensor:
        return process(logits, [Draw(self._request.sampling, slot.tokens, len(self._request.prompt), self._ends) for slot in slots])

    def _follow(self, slots: Sequence[Slot], move: Move, start: int, held: int) -> None:
        _copy(self._model, slots, move, start, held)
        for slot, token in zip(slots, move.tokens, strict=True):
            slot.tokens, slot.length = [*self._chosen, token], held


def _copy(model: FlatModel, slots: Sequence[Slot], move: Move, start: int, end: int) -> None:
    """Positions `[start, end)` of each slot's cache become those of its source's."""
    model.copy([slots[source].index for source in move.sources], [slot.index for slot in slots], start, end)
