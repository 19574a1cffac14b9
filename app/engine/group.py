"""A beam or contrastive search in the engine's loop: the slots of one request follow its search, in their tokens and their pages."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from app.engine.detokenizer import MAX_INCOMPLETE_TOKENS, Detokenizer
from app.engine.events import Delta, Event
from app.engine.request import BeamSearchParams, ContrastiveSearchParams, Generate
from app.engine.sampler import SamplerRow, process_logits
from app.engine.search import BeamSearch, Continuation, ContrastiveSearch
from app.engine.slot import Slot

Fork = Callable[[Sequence[Slot], Sequence[int], int], None]  # as `SlotCache.fork`


class SearchGroup(Protocol):
    """`slots` are those of the request, the leading one first; each holds a branch. Rows of `logits` and `hidden` have the same order."""

    def add_prompt_states(self, hidden: torch.Tensor) -> None:
        """Called with the hidden states `[tokens, width]` of each chunk of the prompt."""

    def start(self, slots: Sequence[Slot], logits: torch.Tensor) -> Event | None:
        """Called once, when the prompt is prefilled. `logits` `[1, vocab]` are those after its last token."""

    def advance(self, slots: Sequence[Slot], logits: torch.Tensor, hidden: torch.Tensor) -> Event | None:
        """Called after each step in which the latest token of every slot was run. Returns an event to send, if there is one."""


def create_search_group(request: Generate, fork: Fork, end_tokens: frozenset[int]) -> SearchGroup:
    if isinstance(request.search, BeamSearchParams):
        return BeamGroup(request, request.search, fork, end_tokens)
    assert isinstance(request.search, ContrastiveSearchParams)
    return ContrastiveGroup(request, request.search, fork, end_tokens)


class BeamGroup:
    """Emits the whole answer at the end: before that, any beam may still become the best one."""

    def __init__(self, request: Generate, params: BeamSearchParams, fork: Fork, end_tokens: frozenset[int]) -> None:
        self._request, self._fork, self._end_tokens = request, fork, end_tokens
        self._search = BeamSearch(params, request.max_tokens, end_tokens, self._has_stop_string if request.stop else None)
        # Last tokens in whose text a stop string is looked for: a stop string has at most a token a byte.
        self._stop_check_tokens = max((len(stop.encode()) for stop in request.stop), default=0) + MAX_INCOMPLETE_TOKENS
        self._detokenizer: Detokenizer | None = None  # of the leading slot; gets no token before the search is over

    def add_prompt_states(self, hidden: torch.Tensor) -> None:
        pass

    def start(self, slots: Sequence[Slot], logits: torch.Tensor) -> Event | None:
        self._detokenizer = slots[0].detokenizer
        return self._apply(slots, self._search.start(self._scores(slots[:1], logits)[0]))

    def advance(self, slots: Sequence[Slot], logits: torch.Tensor, hidden: torch.Tensor) -> Event | None:
        return self._apply(slots, self._search.advance(self._scores(slots, logits)))

    def _has_stop_string(self, tokens: Sequence[int]) -> bool:
        """Whether the text behind the first `min_tokens` of `tokens` has a stop string, which only the last token can have completed."""
        assert self._detokenizer is not None
        first = max(self._request.sampling.min_tokens, len(tokens) - self._stop_check_tokens)
        text = self._detokenizer.preview(tokens[first:])
        return any(stop in text for stop in self._request.stop)

    def _scores(self, slots: Sequence[Slot], logits: torch.Tensor) -> torch.Tensor:
        rows = [SamplerRow(self._request.sampling, slot.tokens, len(self._request.prompt), self._end_tokens) for slot in slots]
        return process_logits(logits.float().log_softmax(-1), rows)

    def _apply(self, slots: Sequence[Slot], continuation: Continuation | None) -> Event | None:
        """Continue every slot."""
        if continuation is None:
            return self._finish(slots[0])
        self._fork(slots, continuation.sources, slots[0].length)
        sequences = [slots[source].tokens for source in continuation.sources]
        for slot, tokens, token in zip(slots, sequences, continuation.tokens, strict=True):
            slot.tokens = [*tokens, token]
        return None

    def _finish(self, lead: Slot) -> Event:
        tokens, finish = self._search.best
        # The prompt is the only part of the leading slot's cache that is certain to belong to the best sequence.
        lead.tokens, lead.length = list(self._request.prompt), len(self._request.prompt)
        text = ""
        for count, token in enumerate(tokens, 1):
            new_text, slot_finish = lead.push(token, self._end_tokens)
            text += new_text
            if slot_finish is not None:
                return Delta(self._request.id, text, tuple(tokens[:count]), slot_finish, cached=lead.cached, prefill_s=lead.prefill_s)
        return Delta(self._request.id, text, tuple(tokens), finish, cached=lead.cached, prefill_s=lead.prefill_s)


class ContrastiveGroup:
    """Each slot holds the tokens chosen so far and one candidate for the next token. Emits every token when it is chosen."""

    def __init__(self, request: Generate, params: ContrastiveSearchParams, fork: Fork, end_tokens: frozenset[int]) -> None:
        self._request, self._fork, self._end_tokens = request, fork, end_tokens
        self._search = ContrastiveSearch(params)
        self._chosen = list(request.prompt)

    def add_prompt_states(self, hidden: torch.Tensor) -> None:
        self._search.add_prompt_states(hidden)

    def start(self, slots: Sequence[Slot], logits: torch.Tensor) -> Event | None:
        continuation = self._search.start(self._process(slots[:1], logits)[0])
        self._apply(slots, continuation, slots[0].length)
        return None

    def advance(self, slots: Sequence[Slot], logits: torch.Tensor, hidden: torch.Tensor) -> Event | None:
        branch, continuation = self._search.advance(self._process(slots, logits), hidden)
        lead, token, length = slots[0], slots[branch].tokens[-1], slots[0].length
        lead.tokens = list(self._chosen)
        text, finish = lead.push(token, self._end_tokens)
        self._chosen.append(token)
        is_first = len(self._chosen) == len(self._request.prompt) + 1
        if finish is not None:
            lead.length = length - 1  # the last position of its cache holds its own candidate, not the chosen token
        else:
            self._apply(slots, continuation, length)
        cached, prefill_s = (lead.cached, lead.prefill_s) if is_first else (0, 0.0)
        return Delta(self._request.id, text, (token,), finish, cached=cached, prefill_s=prefill_s)

    def _process(self, slots: Sequence[Slot], logits: torch.Tensor) -> torch.Tensor:
        rows = [SamplerRow(self._request.sampling, slot.tokens, len(self._request.prompt), self._end_tokens) for slot in slots]
        return process_logits(logits, rows)

    def _apply(self, slots: Sequence[Slot], continuation: Continuation, length: int) -> None:
        """Give every slot its next candidate after the first `length` tokens of the chosen branch."""
        self._fork(slots, continuation.sources, length)
        for slot, token in zip(slots, continuation.tokens, strict=True):
            slot.tokens = [*self._chosen, token]
