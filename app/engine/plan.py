"""What runs in a step: rows of slots that decode, chunks of prompts, chunks of texts. Decides nothing; no torch."""

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine.drafts import Draft
from app.engine.events import Columns
from app.engine.pages import PageCopy
from app.engine.request import Embed, Score, Window
from app.engine.slot import Slot

if TYPE_CHECKING:
    import torch


@dataclass(slots=True, eq=False)
class TextState:
    """A text being scored or embedded, and how far it has come."""

    job: Score | Embed
    windows: deque[Window]  # not finished yet
    arrived_s: float
    computed: int = 0  # tokens of the first of these windows that have been computed
    columns: list[Columns] = field(default_factory=list)  # to score: statistics of the chunks computed so far, in order
    observed: list["torch.Tensor"] = field(default_factory=list)  # states of the base, which has read the window; the adapter is to read it
    pooled: list[float] = field(default_factory=list)  # to embed: the sum of the hidden states so far, or the last of them


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens `[start, end)` of a slot, to be computed and written to the cache: of its prompt, or of its answer, whose pages were taken."""

    slot: Slot
    start: int
    end: int

    @property
    def of_answer(self) -> bool:
        assert self.slot.request is not None
        return self.start >= len(self.slot.request.prompt)


@dataclass(frozen=True, slots=True)
class ScoreChunk:
    """Tokens `[start, end)` of a text, in one of its windows. `cached`: the window takes several steps, so that its keys and values have
    to be kept, in the one slot reserved for this.
    """

    text: TextState
    window: Window
    start: int
    end: int
    cached: bool


@dataclass(slots=True)
class Plan:
    """What runs in a step."""

    decodes: list[Slot] = field(default_factory=list)
    drafts: dict[Slot, Draft] = field(default_factory=dict)  # of those that decode
    copies: list[PageCopy] = field(default_factory=list)  # to make before the forward, one after the other
    prefill_chunks: list[PrefillChunk] = field(default_factory=list)
    score_chunks: list[ScoreChunk] = field(default_factory=list)
    people_rows: int | None = None  # decoding rows of people, who are not `flex` work; None if the step serves none of them
    may_flex: bool = True  # whether `flex` work may join
    with_flex: bool = False  # whether some has

    @property
    def empty(self) -> bool:
        return not (self.decodes or self.prefill_chunks or self.score_chunks)

    @property
    def decode_only(self) -> bool:
        return not (self.prefill_chunks or self.score_chunks)

    @property
    def decode_rows(self) -> int:
        return len(self.decodes) + sum(len(draft.tokens) for draft in self.drafts.values())

    @property
    def prefill_tokens(self) -> int:
        return sum(chunk.end - chunk.start for chunk in self.prefill_chunks)

    @property
    def score_tokens(self) -> int:
        return sum(chunk.end - chunk.start for chunk in self.score_chunks)

    def job_ids(self, texts: Container[TextState]) -> list[str]:
        """Of its jobs that have not ended; `texts` are those that have not."""
        slots = [*self.decodes, *(chunk.slot for chunk in self.prefill_chunks)]
        unread = [chunk.text.job.id for chunk in self.score_chunks if chunk.text in texts]
        return list(dict.fromkeys([slot.request.id for slot in slots if slot.request is not None] + unread))

    @property
    def runs_flex(self) -> bool:
        """Whether some of it is `flex` work."""
        slots = [*self.decodes, *(chunk.slot for chunk in self.prefill_chunks)]
        return any(slot.is_flex for slot in slots) or any(chunk.text.job.tier == "flex" for chunk in self.score_chunks)
