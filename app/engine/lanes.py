"""Places in the draft model's cache, each for the tokens of one request, and what is drawn behind these. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine.pages import Space, common_prefix_length
from app.engine.request import Generate
from app.engine.slot import Slot

if TYPE_CHECKING:
    from app.engine.grammar import LookAhead

MAX_LANES = 8  # requests that a draft model draws for at once, if there are as many slots


@dataclass(slots=True, eq=False)
class Lane:
    pages: range  # of the draft model's cache
    tokens: list[int] = field(default_factory=list)  # whose keys and values are there, drafted ones that were not kept among them
    space: Space | None = None  # of the request that they came from
    _same: int = 0  # how many of them are known to be those of the request

    def keep(self, tokens: Sequence[int]) -> int:
        """Forget what differs from `tokens`; returns how many of them are to be read. The last always is: it predicts the next one."""
        end = min(len(self.tokens), len(tokens) - 1)
        while self._same < end and self.tokens[self._same] == tokens[self._same]:
            self._same += 1
        self._same = min(self._same, end)
        del self.tokens[self._same :]
        return len(tokens) - self._same

    def give(self, space: Space) -> None:
        """Let another request have it. What it holds stays for a request that begins alike, if that may find it."""
        if space != self.space:
            self.tokens.clear()
        self.space, self._same = space, 0


class Lanes:
    def __init__(self, count: int, pages_each: int) -> None:
        self._free = [Lane(range(index * pages_each, (index + 1) * pages_each)) for index in range(count)]  # longest unused first
        self._taken: dict[str, Lane] = {}  # by the request's id

    def of(self, slot: Slot) -> Lane | None:
        """The lane of the slot's request: from now on that which has most of its tokens. None while others have all of them."""
        request = slot.request
        assert request is not None
        if request.id not in self._taken and self._free:
            lane = max(self._free, key=lambda lane: common_prefix_length(lane.tokens, slot.tokens) if lane.space == request.space else 0)
            self._free.remove(lane)
            lane.give(request.space)
            self._taken[request.id] = lane
        return self._taken.get(request.id)

    def release(self, id: str) -> None:
        if id in self._taken:
            self._free.append(self._taken.pop(id))

    def clear(self) -> None:
        """Take the lanes from all requests, and forget what they hold."""
        self._free += self._taken.values()
        self._taken.clear()
        for lane in self._free:
            lane.tokens.clear()


@dataclass(slots=True, eq=False)
class Drawing:
    """What is drawn for a request: `text` begins with the `start` tokens that it has, `left` further ones are wanted. `drawn` has the
    places of a draft and the tokens there; those between are forced by the grammar.
    """

    request: Generate
    lane: Lane
    text: list[int]
    start: int
    left: int
    ends: frozenset[int]
    ahead: "LookAhead | None" = None
    drawn: dict[int, int] = field(default_factory=dict)

    def add(self, token: int) -> None:
        """Go on behind the token that was drawn. An end token, or one that the grammar does not allow, ends the draft and is no part."""
        if token in self.ends or (self.ahead is not None and not self.ahead.follow(token)):
            self.left = 0
            return
        self.drawn[len(self.text) - self.start] = token
        self.text.append(token)
        self.left -= 1
        if self.ahead is not None:
            before = len(self.ahead.tokens)
            self.ahead.follow_certain(before + self.left)
            self.text += self.ahead.tokens[before:]
            self.left -= len(self.ahead.tokens) - before
