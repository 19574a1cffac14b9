"""Decides for which requests a draft model draws tokens, and when it reads what they have said so far. Policy; no torch.

Reading a prompt takes time that only a long answer pays back, and nobody knows how long an answer becomes. So a request is read once its
answer has lasted so long that drafts would have saved as much time: then at most twice the time is taken that the best choice takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine.acceptance import DrawAcceptance
from app.engine.budget import StepBudget
from app.engine.counts import DrawCosts, Draws, draft_counts
from app.engine.lanes import Drawing, Lane
from app.engine.slot import Slot

if TYPE_CHECKING:
    from app.engine.draftmodel import DraftModel

MAX_DRAWS = 16  # of a request in a step
READY_TOKENS = 16  # that a request which is drawn for may have unread: they are read with the first draw
MAX_READ = 128  # tokens that are read in one forward
PIECES = (MAX_READ, 64, 32, 16)  # tokens that are read beside a step: the first that do not make it longer than others may


@dataclass(slots=True)
class Reader:
    """How far the draft model has come with a request."""

    lane: Lane
    acceptance: DrawAcceptance
    unread: int = 0  # tokens
    saved_s: float = 0.0  # seconds that drafts would have saved while it was not ready
    drawn: Mapping[int, int] = field(default_factory=dict)  # the latest draft: places and tokens


class Proposer:
    def __init__(self, model: "DraftModel", budget: StepBudget) -> None:
        self.model = model
        self._budget = budget
        self._readers: dict[str, Reader] = {}  # by the request's id
        self._acceptance = DrawAcceptance()  # of all requests

    def ready(self, slots: Sequence[Slot]) -> dict[Slot, Reader]:
        """Those of `slots`, which decode, that may be drawn for. None in a step beside which something is read."""
        readers = {slot: reader for slot in slots if (reader := self._reader(slot)) is not None}
        unread = {slot: reader for slot, reader in readers.items() if reader.unread > READY_TOKENS}
        if unread and self._read_one(unread, len(slots)):
            return {}
        return {slot: reader for slot, reader in readers.items() if slot not in unread}

    def chances(self, slot: Slot, reader: Reader, most: int) -> list[float]:
        """Of at most `most` tokens that may be drawn for a slot."""
        return reader.acceptance.chances(max(0, min(most, MAX_DRAWS, self.model.context - len(slot.tokens))))

    def draw(self, drawings: Sequence[Drawing]) -> None:
        """Draw what is wanted in a step."""
        self.model.draw(drawings)
        drawn = {drawing.request.id: drawing.drawn for drawing in drawings}
        for id, reader in self._readers.items():
            reader.drawn = drawn.get(id, {})
            if not reader.drawn:
                reader.acceptance.fade()
        if not drawn:
            self._acceptance.fade()

    def record(self, id: str, sampled: Sequence[int]) -> None:
        """The step has given the answer these tokens."""
        reader = self._readers.get(id)
        if reader is None:
            return
        for is_kept in [sampled[place] == token for place, token in reader.drawn.items() if place < len(sampled)]:
            reader.acceptance.record(is_kept)
            self._acceptance.record(is_kept)
        reader.drawn = {}

    def forget(self, id: str) -> None:
        self._readers.pop(id, None)
        self.model.lanes.release(id)

    def clear(self) -> None:
        self._readers.clear()
        self.model.lanes.clear()

    def _reader(self, slot: Slot) -> Reader | None:
        """None if nothing can be drawn for the slot."""
        request, tokens = slot.request, slot.tokens
        if request is None or slot.group or request.adapter is not None:
            return None
        if len(tokens) >= self.model.context:  # its lane is another's from now on
            self.forget(request.id)
            return None
        lane = self.model.lanes.of(slot)
        if lane is None:
            return None
        reader = self._readers.setdefault(request.id, Reader(lane, DrawAcceptance(self._acceptance)))
        reader.unread = lane.keep(tokens)
        return reader if max(tokens[-reader.unread :]) < self.model.vocabulary else None

    def _read_one(self, unread: Mapping[Slot, Reader], slots: int) -> bool:
        """Read a piece of what is unread, of the first request for which that pays. False if there is none."""
        base_s = self._budget.costs.step_s(slots) or 0.0
        chances, costs = self._acceptance.chances(MAX_DRAWS), DrawCosts(self.model.costs, [Draws(0)])
        saved_s = draft_counts([chances], slots, self._budget, costs).saved_s
        for reader in unread.values():
            reader.saved_s += saved_s
        for slot, reader in unread.items() if saved_s else ():
            if reader.saved_s >= self._read_s(reader.unread):
                spare_s, at = (self._budget.stretch - 1) * base_s, len(slot.tokens) - reader.unread
                piece = next((size for size in PIECES if self._read_s(size) <= spare_s), PIECES[-1])
                self.model.read(reader.lane, slot.tokens[at : min(at + piece, len(slot.tokens) - 1)])
                reader.saved_s -= self._read_s(min(piece, reader.unread))
                return True
        return False

    def _read_s(self, tokens: int) -> float:
        return self.model.costs.step_s(tokens) or 0.0
